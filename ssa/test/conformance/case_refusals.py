# SPDX-License-Identifier: MIT
"""
The table of errnos of a failed connect, row by row: connect(2) that waits, connect(2) that does not, and TLS_UPGRADE, each
against a server that really misbehaves; and listeners, whose bad clients accept(2) never returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test import badservers
from ssa.test.badservers import Serve, serverContext
from ssa.test.conformance import peers
from ssa.test.conformance.case import LIBC, Thread, TLSCase
from ssa.test.conformance.peers import NAME, credential, echo
from ssa.test.pki import Credential, otherCA, testCA

HANDSHAKE_SECONDS = 2.0
CONFIGURATION = f"[default]\nHandshakeTimeout = {HANDSHAKE_SECONDS:g}\n"

SECRET = b"what only the right server may read"
TLS12 = ssl.TLSVersion.TLSv1_2
TLS13 = ssl.TLSVersion.TLSv1_3
_HANDSHAKE_RECORDS = frozenset({20, 21, 22})  # change_cipher_spec, alert, handshake: RFC 8446 section 5.1


class _Recorded:
    """A socket that notes what is received from it."""

    def __init__(self, sock: socket.socket, seen: bytearray) -> None:
        self._sock = sock
        self._seen = seen

    def recv(self, size: int) -> bytes:
        """Receive and note."""
        data = self._sock.recv(size)
        self._seen += data
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def recordTypes(stream: bytes) -> set[int]:
    """The content types of the TLS records in a stream (RFC 8446 section 5.1)."""
    found: set[int] = set()
    while stream:
        found.add(stream[0])
        stream = stream[5 + int.from_bytes(stream[3:5], "big") :]
    return found


def upgrade(sock: socket.socket, tcp: socket.socket, role: int) -> int:
    """TLS_UPGRADE without the interpreter's lock, which the standard library would hold; 0 or the errno."""
    packed = struct.pack("ii", tcp.fileno(), role)
    ctypes.set_errno(0)
    failed = LIBC.setsockopt(sock.fileno(), IPPROTO_TLS, int(Option.TLS_UPGRADE), packed, len(packed))
    return ctypes.get_errno() if failed else 0


def oldClient(sock: socket.socket) -> None:
    """A handshake with nothing newer than TLS 1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.wrap_socket(sock, server_hostname=NAME)


def otherCipherClient(sock: socket.socket) -> None:
    """A handshake with a cipher without forward secrecy only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")
    context.maximum_version = TLS12
    context.wrap_socket(sock, server_hostname=NAME)


def otherProtocolClient(sock: socket.socket) -> None:
    """A handshake with another application protocol."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["other/1"])
    context.wrap_socket(sock, server_hostname=NAME)


def distrustingClient(sock: socket.socket) -> None:
    """A client that refuses the server's certificate and says so by an alert."""
    context = ssl.create_default_context(cadata=otherCA().pem.decode())
    context.wrap_socket(sock, server_hostname=NAME)


def garbageClient(sock: socket.socket) -> None:
    """Random bytes in a handshake record."""
    sock.sendall(b"\x16\x03\x01\x00\x40" + os.urandom(64))


def httpClient(sock: socket.socket) -> None:
    """HTTP without TLS."""
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")


def alertClient(sock: socket.socket) -> None:
    """The fatal alert handshake_failure and nothing else."""
    sock.sendall(b"\x15\x03\x03\x00\x02\x02\x28")


def leavingClient(sock: socket.socket) -> None:
    """The half of a record's header, then the end."""
    sock.sendall(b"\x16\x03\x01")
    sock.shutdown(socket.SHUT_WR)


def abortingClient(sock: socket.socket) -> None:
    """The half of a record's header, then a reset."""
    sock.sendall(b"\x16\x03\x01")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def lateLeavingClient(sock: socket.socket) -> None:
    """The end when the server has certainly begun."""
    time.sleep(0.3)
    leavingClient(sock)


def lateAbortingClient(sock: socket.socket) -> None:
    """A reset when the server has certainly begun: before that it is TCP's own."""
    time.sleep(0.3)
    abortingClient(sock)


def otherProtocolServer(sock: socket.socket) -> None:
    """A server that has another application protocol and says so (RFC 7301 section 3.2)."""
    context = peers.serverContext(alpn=(b"other/1",))

    def choose(_: SSL.Connection, offered: list[bytes]) -> bytes:
        raise LookupError("none of them")

    context.set_alpn_select_callback(choose)
    sock.setblocking(True)
    tls = SSL.Connection(context, sock)
    tls.set_accept_state()
    with contextlib.suppress(LookupError):
        tls.do_handshake()
    sock.recv(1)


class _Refusals(TLSCase):
    """
    Each row of the table.

    @cvar nonblocking: whether the TLS sockets are.
    """

    timeout = 20.0
    nonblocking = False

    def attempt(self, sock: socket.socket, address: Any) -> int:
        """Try to connect: the errno."""
        raise NotImplementedError

    def waited(self, sock: socket.socket, number: int) -> int:
        """What comes of an attempt that is under way: poll tells of it, SO_ERROR says it once."""
        self.assertEqual(errno.errorcode[errno.EINPROGRESS], errno.errorcode.get(number, str(number)), self.tlsError(sock))
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        events = poll.poll(peers.SECONDS * 1000)
        self.assertTrue(events and events[0][1] & select.POLLOUT, f"not writable: {events}")
        outcome = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.assertEqual(bool(outcome), bool(events[0][1] & select.POLLERR), f"{events[0][1]:#x}, {outcome}")
        if outcome:
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        return outcome

    def newSocket(self, name: str = NAME) -> socket.socket:
        """A client's socket that has an application protocol."""
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK if self.nonblocking else 0, name=name)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        return sock

    def check(self, sock: socket.socket, number: int, found: int, words: tuple[str, ...]) -> str:
        """Say what the errno is and what TLS_ERROR tells."""
        told = self.tlsError(sock)
        self.assertEqual(errno.errorcode[number], errno.errorcode.get(found, str(found)), told)
        self.assertTrue(told and told.isprintable() and told == told.strip(), repr(told))
        for word in words:
            self.assertIn(word.lower(), told.lower())
        return told

    def isNew(self, sock: socket.socket) -> None:
        """Say that a socket is as one that has never connected: it has no peer, sends nothing, takes options and connects."""
        self.fails(errno.ENOTCONN, sock.getpeername)
        with self.assertRaises(OSError) as caught:
            sock.send(SECRET, socket.MSG_NOSIGNAL)
        self.assertIn(caught.exception.errno, (errno.EPIPE, errno.ENOTCONN))
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        self.assertEqual(self.tlsError(sock), "")
        good = self.server(echo)
        self.assertEqual(self.attempt(sock, good.address), 0, self.tlsError(sock))
        self.assertEqual(self.tlsError(sock), "")
        self.assertEqual(sock.getpeername(), good.address)
        self.talk(sock)

    def talk(self, sock: socket.socket) -> None:
        """Say that the connection is one."""
        sock.setblocking(True)
        sock.sendall(b"ping")
        self.assertEqual(self.exactly(sock, 4), b"ping")

    def refused(
        self, number: int, serve: Serve, *words: str, sock: socket.socket | None = None, fresh: bool = True
    ) -> str:
        """
        Say what comes of a server.

        @param words: what TLS_ERROR tells, among other things.
        @param fresh: say that the socket is new after it.
        @return: TLS_ERROR.
        """
        sock = sock or self.newSocket()
        server = self.keep(badservers.Server(serve))
        found = self.attempt(sock, ("127.0.0.1", server.port))
        told = self.check(sock, number, found, words)
        if fresh:
            self.isNew(sock)
        server.close()
        return told

    def raw(self, number: int, serve: Callable[[Any], None], *words: str) -> None:
        """Say what comes of a server that does no TLS: it gets nothing but a handshake."""
        seen = bytearray()

        def run(sock: socket.socket) -> None:
            serve(_Recorded(sock, seen))

        self.refused(number, run, *words)
        self.assertEqual(seen[:1], b"\x16", "no ClientHello")
        self.assertNotIn(SECRET, seen)
        self.assertLessEqual(recordTypes(bytes(seen)), _HANDSHAKE_RECORDS)

    def tls(
        self, number: int, context: ssl.SSLContext, *words: str, sock: socket.socket | None = None, fresh: bool = True
    ) -> str:
        """Say what comes of a server that does TLS: no handshake of it ends well, or no byte comes after it."""
        seen = bytearray()

        def run(plain: socket.socket) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secured:
                while data := secured.recv(65536):
                    seen.extend(data)

        told = self.refused(number, run, *words, sock=sock, fresh=fresh)
        self.assertEqual(seen, b"", "application data")
        return told

    def certificate(self, number: int, bad: Credential, *words: str) -> None:
        """Say what comes of a certificate, in each version."""
        for maximum in (TLS12, TLS13):
            with self.subTest(version=maximum.name):
                self.tls(number, serverContext(bad, maximum=maximum), *words)

    # the handshake

    def test_silent(self) -> None:
        """The handshake takes too long: ETIMEDOUT after HandshakeTimeout."""
        begun = time.monotonic()
        sock = self.newSocket()
        self.raw_silent(sock)
        self.assertGreater(time.monotonic() - begun, HANDSHAKE_SECONDS * 0.8)

    def raw_silent(self, sock: socket.socket) -> None:
        """A server that says nothing."""
        seen = bytearray()
        self.refused(
            errno.ETIMEDOUT,
            lambda plain: badservers.stalling(_Recorded(plain, seen)),  # type: ignore[arg-type]
            f"{HANDSHAKE_SECONDS:g} s",
            sock=sock,
        )
        self.assertLessEqual(recordTypes(bytes(seen)), _HANDSHAKE_RECORDS)

    def test_dripping(self) -> None:
        """A server that sends a byte now and then gains no time by it."""

        def drip(sock: Any) -> None:
            sock.recv(4096)
            with contextlib.suppress(OSError):
                for byte in b"\x16\x03\x03\x40\x00" + bytes(95):
                    sock.sendall(bytes([byte]))
                    time.sleep(0.1)

        begun = time.monotonic()
        self.raw(errno.ETIMEDOUT, drip)
        self.assertLess(time.monotonic() - begun, HANDSHAKE_SECONDS * 3)

    def test_notTLS(self) -> None:
        """The server speaks HTTP."""
        self.raw(errno.EPROTO, badservers.notTLS, "TLS")

    def test_garbage(self) -> None:
        """The server answers with random bytes in a handshake record."""
        self.raw(errno.EPROTO, badservers.garbage)

    def test_alert(self) -> None:
        """The server answers with an alert, which TLS_ERROR names."""
        self.raw(
            errno.EPROTO, badservers.alert, "handshake_failure (40)", "we offered versions TLSv1.3", "ALPN h2", f"name {NAME}"
        )

    def test_otherAlert(self) -> None:
        """Another alert."""

        def serve(sock: Any) -> None:
            sock.recv(4096)
            sock.sendall(b"\x15\x03\x03\x00\x02\x02\x50")
            sock.recv(4096)

        self.raw(errno.EPROTO, serve, "internal_error (80)")

    def test_closed(self) -> None:
        """The server closes in the handshake."""
        self.raw(errno.EPROTO, badservers.closing, "closed")

    def test_reset(self) -> None:
        """The server resets in the handshake."""
        self.raw(errno.EPROTO, badservers.resetting, "reset")

    def test_version(self) -> None:
        """The server has nothing newer than TLS 1.1."""
        self.tls(errno.EPROTO, serverContext(credential(), maximum=ssl.TLSVersion.TLSv1_1), "version")

    def test_cipher(self) -> None:
        """The server has a cipher without forward secrecy only."""
        self.tls(errno.EPROTO, serverContext(testCA().issue([NAME], key="rsa"), maximum=TLS12, ciphers="AES128-SHA"))

    def test_protocol(self) -> None:
        """The server has another application protocol only."""
        self.refused(errno.EPROTO, otherProtocolServer, "no_application_protocol")

    # the certificate

    def test_unknownIssuer(self) -> None:
        """A root that nobody trusts."""
        self.certificate(
            errno.EKEYREJECTED,
            otherCA().issue([NAME]),
            "TLS_TRUSTED_PEER_CERTIFICATES, allowed by",  # the rule, then the certificate
            f"[subject CN={NAME}",
            "issuer CN=SSA untrusted root",
            "valid 20",
            "SHA-256 ",
            "we sent the alert unknown_ca (48)",
        )

    def test_selfSigned(self) -> None:
        """Signed by itself."""
        self.certificate(errno.EKEYREJECTED, testCA().issue([NAME], selfSigned=True), "self-signed")

    def test_wrongName(self) -> None:
        """TLS_ERROR tells what was expected and what was found."""
        self.certificate(errno.EKEYREJECTED, testCA().issue(["other.example"]), NAME, "other.example")

    def test_nameInSubject(self) -> None:
        """The common name counts for nothing."""
        self.certificate(errno.EKEYREJECTED, testCA().issue([NAME], noNames=True), NAME)

    def test_wrongAddress(self) -> None:
        """No name was set: the certificate must name the address."""
        bad = testCA().issue([NAME, "127.0.0.9"])
        self.tls(errno.EKEYREJECTED, serverContext(bad), "127.0.0.1", sock=self.newSocket(name=""))

    def test_wrongPurpose(self) -> None:
        """A client's certificate."""
        self.certificate(errno.EKEYREJECTED, testCA().issue([NAME], purpose="client"), "use")

    def test_noAuthority(self) -> None:
        """Issued by a certificate that is no authority's."""
        self.certificate(errno.EKEYREJECTED, testCA().intermediate(isAuthority=False).issue([NAME]))

    def test_missingIntermediate(self) -> None:
        """The chain has a gap."""
        self.certificate(errno.EKEYREJECTED, testCA().intermediate().issue([NAME], withoutChain=True), "issuer")

    def test_weakKey(self) -> None:
        """RSA with 1024 bits."""
        self.tls(errno.EKEYREJECTED, serverContext(testCA().issue([NAME], key="rsa1024"), maximum=TLS12), "weak")
        self.tls(errno.EKEYREJECTED, serverContext(testCA().issue([NAME], key="rsa1024")), "weak")

    def test_weakSignature(self) -> None:
        """Signed with SHA-1."""
        self.certificate(errno.EKEYREJECTED, testCA().issue([NAME], sha1=True), "weak")

    def test_malformed(self) -> None:
        """A critical extension that nobody knows."""
        self.certificate(errno.EKEYREJECTED, testCA().issue([NAME], criticalExtension=True), "critical")

    def test_expired(self) -> None:
        """It was valid until yesterday."""
        self.certificate(errno.EKEYEXPIRED, testCA().issue([NAME], expired=True), "expired")

    def test_notYetValid(self) -> None:
        """It is valid from tomorrow on."""
        self.certificate(errno.EKEYEXPIRED, testCA().issue([NAME], notYetValid=True), "not valid yet")

    # our own certificate

    def test_demanded(self) -> None:
        """TLS 1.2: the server demands a certificate and there is none."""
        context = serverContext(credential(), maximum=TLS12, clientCA=testCA().pem)
        self.tls(errno.ENOKEY, context, "certificate")

    def test_demandedLater(self) -> None:
        """TLS 1.3: the server says so when connect has returned: ECONNRESET at the first recv, TLS_ERROR tells why."""
        context = serverContext(credential(), clientCA=testCA().pem)
        seen: list[bytes] = []

        def run(plain: socket.socket) -> None:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            secured = context.wrap_bio(incoming, outgoing, server_side=True)
            with contextlib.suppress(ssl.SSLError):
                while True:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        seen.append(secured.read(1000))
                    if data := outgoing.read():
                        plain.sendall(data)
                        time.sleep(0.4)  # the client has connected, and asked SO_ERROR, before it hears of the refusal
                    incoming.write(plain.recv(65536))
            plain.sendall(outgoing.read())
            plain.recv(1000)

        server = self.keep(badservers.Server(run))
        sock = self.newSocket()
        found = self.attempt(sock, ("127.0.0.1", server.port))
        self.assertEqual(found, 0, self.tlsError(sock))
        sock.setblocking(True)
        self.fails(errno.ECONNRESET, sock.recv, 1)
        told = self.tlsError(sock)
        self.assertTrue(told.isprintable())
        self.assertIn("certificate", told)
        server.close()
        self.assertEqual(seen, [])

    def test_mismatch(self) -> None:
        """The key is that of another chain: ENOKEY, and the server hears nothing; with the rest of both it connects."""
        first, second = testCA().issue([NAME], purpose="client"), testCA().issue([NAME], key="rsa", purpose="client")
        sock = self.newSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, first.chainPEM)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_PRIVATE_KEY, second.keyPEM)
        seen = bytearray()
        server = self.keep(badservers.Server(lambda plain: badservers.stalling(_Recorded(plain, seen))))  # type: ignore[arg-type]
        found = self.attempt(sock, ("127.0.0.1", server.port))
        self.check(sock, errno.ENOKEY, found, ("key",))
        sock.setsockopt(IPPROTO_TLS, Option.TLS_PRIVATE_KEY, first.keyPEM)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, second.chainPEM)
        self.isNew(sock)
        server.close()
        self.assertEqual(seen, b"")

    def test_keyAlone(self) -> None:
        """A key without a chain."""
        sock = self.newSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_PRIVATE_KEY, credential().keyPEM)
        self.refused(errno.ENOKEY, badservers.stalling, "key", sock=sock, fresh=False)

    def test_manyTimes(self) -> None:
        """One descriptor, one failure after the other, each with its own errno and words."""
        sock = self.newSocket()
        for _ in range(3):
            for number, serve, word in (
                (errno.EPROTO, badservers.alert, "handshake_failure"),
                (errno.EKEYEXPIRED, badservers.echo(serverContext(testCA().issue([NAME], expired=True))), "expired"),
                (errno.EPROTO, badservers.notTLS, "TLS"),
                (errno.EKEYREJECTED, badservers.echo(serverContext(otherCA().issue([NAME]))), "issuer"),
            ):
                self.refused(number, serve, word, sock=sock, fresh=False)
        self.isNew(sock)


class _Connect(_Refusals):
    """What only connect(2) has."""

    def test_refused(self) -> None:
        """TCP: nobody listens."""
        closed = self.plainListener()
        address = closed.getsockname()
        closed.close()
        sock = self.newSocket()
        self.check(sock, errno.ECONNREFUSED, self.attempt(sock, address), ("refused",))
        self.isNew(sock)

    def test_unreachable(self) -> None:
        """TCP: a broadcast address, whose errno is the kernel's own."""
        address = ("127.255.255.255", 9)
        ordinary = self.keep(socket.socket())
        ordinary.settimeout(2)
        with self.assertRaises(OSError) as expected:
            ordinary.connect(address)
        assert expected.exception.errno is not None
        sock = self.newSocket()
        with self.assertRaises(OSError) as found:
            sock.connect(address)
        self.check(sock, expected.exception.errno, found.exception.errno or 0, ())
        self.isNew(sock)


class Blocking(_Connect):
    """connect(2) that waits."""

    def attempt(self, sock: socket.socket, address: Any) -> int:
        """Try to connect."""
        return sock.connect_ex(address)


class Nonblocking(_Connect):
    """connect(2) that does not."""

    nonblocking = True

    def attempt(self, sock: socket.socket, address: Any) -> int:
        """Try to connect."""
        number = sock.connect_ex(address)
        if number == errno.ECONNREFUSED:  # a kernel may say so at once on the loopback
            return number
        return self.waited(sock, number)


    def test_sendEarly(self) -> None:
        """While the handshake lasts no byte is taken, and none reaches the server."""
        seen = bytearray()
        server = self.keep(badservers.Server(lambda plain: badservers.stalling(_Recorded(plain, seen))))  # type: ignore[arg-type]
        sock = self.newSocket()
        self.assertEqual(sock.connect_ex(("127.0.0.1", server.port)), errno.EINPROGRESS)
        end = time.monotonic() + HANDSHAKE_SECONDS / 2
        while time.monotonic() < end:
            self.assertRaises(BlockingIOError, sock.send, SECRET)
            time.sleep(0.02)
        self.check(sock, errno.ETIMEDOUT, self.waited(sock, errno.EINPROGRESS), ())
        self.isNew(sock)
        server.close()
        self.assertNotIn(SECRET, seen)
        self.assertLessEqual(recordTypes(bytes(seen)), _HANDSHAKE_RECORDS)


class Upgrading(_Refusals):
    """TLS_UPGRADE as client, without waiting."""

    nonblocking = True

    def attempt(self, sock: socket.socket, address: Any) -> int:
        """Try to upgrade a connection."""
        with socket.create_connection(address, peers.SECONDS) as tcp:
            tcp.setblocking(True)
            number = upgrade(sock, tcp, 0)
            if number == errno.ENOKEY:  # known before anything is begun
                return number
            return self.waited(sock, number)


class UpgradingBlocking(_Refusals):
    """TLS_UPGRADE as client that waits."""

    def attempt(self, sock: socket.socket, address: Any) -> int:
        """Try to upgrade a connection."""
        with socket.create_connection(address, peers.SECONDS) as tcp:
            tcp.setblocking(True)
            return upgrade(sock, tcp, 0)


class UpgradingServer(TLSCase):
    """TLS_UPGRADE as server, against clients that misbehave."""

    def attempt(self, talk: Callable[[socket.socket], None], certificate: bool = True) -> tuple[int, str]:
        """The errno and TLS_ERROR."""
        listener = self.plainListener()
        theirs = self.keep(socket.create_connection(listener.getsockname(), peers.SECONDS))
        ours = self.keep(listener.accept()[0])
        sock = self.tlsSocket()
        if certificate:
            self.certify(sock)

        def run() -> None:
            with contextlib.suppress(OSError):
                talk(theirs)

        talking = Thread(run)
        number = upgrade(sock, ours, 1)
        told = self.tlsError(sock)
        ours.close()
        theirs.close()
        talking.result()
        return number, told

    def test_clients(self) -> None:
        """Each with its errno and words."""
        for talk, number, word in (
            (httpClient, errno.EPROTO, "TLS"),
            (garbageClient, errno.EPROTO, ""),
            (alertClient, errno.EPROTO, ""),
            (lateLeavingClient, errno.EPROTO, "closed"),
            (lateAbortingClient, errno.EPROTO, "reset"),
            (oldClient, errno.EPROTO, "version"),
            (otherCipherClient, errno.EPROTO, "cipher"),
            (distrustingClient, errno.EPROTO, "unknown_ca"),
        ):
            with self.subTest(client=talk.__name__):
                found, told = self.attempt(talk)
                self.assertEqual(errno.errorcode[number], errno.errorcode.get(found, str(found)), told)
                self.assertTrue(told and told.isprintable(), repr(told))
                self.assertIn(word, told)

    def test_silent(self) -> None:
        """HandshakeTimeout holds here too."""
        found, told = self.attempt(lambda sock: None)
        self.assertEqual(found, errno.ETIMEDOUT, told)
        self.assertIn(f"{HANDSHAKE_SECONDS:g} s", told)

    def test_noCertificate(self) -> None:
        """ENOKEY."""
        found, told = self.attempt(lambda sock: None, certificate=False)
        self.assertEqual(found, errno.ENOKEY, told)
        self.assertIn("certificate", told)


class Listening(TLSCase):
    """Clients that accept(2) never returns."""

    def bad(self, address: Any, client: Callable[[socket.socket], None]) -> None:
        """Let a client misbehave, until the server ends its connection."""
        sock = self.keep(socket.create_connection(address, peers.SECONDS))
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            client(sock)
        with contextlib.suppress(ssl.SSLError, OSError):
            while sock.recv(1000):
                pass

    def good(self, listener: socket.socket, **options: Any) -> None:
        """Say that a good client is the next that accept returns, and the only one."""
        listener.setblocking(False)
        self.assertEqual(select.select([listener], [], [], 0)[0], [])
        self.assertRaises(BlockingIOError, listener.accept)
        peer = self.peerTo(listener.getsockname(), **options)
        self.readable(listener)
        sock, address = listener.accept()
        self.keep(sock).setblocking(True)
        self.assertEqual(address, peer.sock.getsockname())
        peer.send(b"ping")
        self.assertEqual(sock.recv(10), b"ping")
        self.assertRaises(BlockingIOError, listener.accept)
        self.assertEqual(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def never(self, client: Callable[[socket.socket], None], times: int = 3) -> None:
        """Say that a client is never seen."""
        listener = self.tlsSocket()
        self.certify(listener)
        listener.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for _ in range(times):
            self.bad(listener.getsockname(), client)
        self.good(listener)

    def test_http(self) -> None:
        """HTTP without TLS."""
        self.never(httpClient)

    def test_garbage(self) -> None:
        """Random bytes."""
        self.never(garbageClient)

    def test_alert(self) -> None:
        """An alert."""
        self.never(alertClient)

    def test_leaving(self) -> None:
        """The end in the middle of a record."""
        self.never(leavingClient)

    def test_aborting(self) -> None:
        """A reset in the middle of a record."""
        self.never(abortingClient)

    def test_nothing(self) -> None:
        """The end at once."""
        self.never(lambda sock: sock.shutdown(socket.SHUT_WR))

    def test_silent(self) -> None:
        """Nothing until HandshakeTimeout."""
        begun = time.monotonic()
        self.never(lambda sock: None, times=1)
        self.assertGreater(time.monotonic() - begun, HANDSHAKE_SECONDS * 0.8)

    def test_version(self) -> None:
        """TLS 1.1."""
        self.never(oldClient)

    def test_cipher(self) -> None:
        """No cipher in common."""
        self.never(otherCipherClient)

    def test_protocol(self) -> None:
        """No application protocol in common."""
        self.never(otherProtocolClient)

    def test_distrusting(self) -> None:
        """A client that refuses the certificate."""
        self.never(distrustingClient)

    def test_waitingAccept(self) -> None:
        """An accept that waits is not woken by bad clients."""
        listener = self.listener()
        accepting = Thread(listener.accept)
        for client in (httpClient, garbageClient, alertClient, leavingClient, abortingClient, oldClient):
            self.bad(listener.getsockname(), client)
        self.assertTrue(accepting.is_alive())
        peer = self.peerTo(listener.getsockname())
        sock, address = accepting.result()
        self.keep(sock)
        self.assertEqual(address, peer.sock.getsockname())

    def test_noCertificate(self) -> None:
        """listen without a certificate: ENOKEY; with one it listens."""
        sock = self.tlsSocket()
        sock.bind(("127.0.0.1", 0))
        self.fails(errno.ENOKEY, sock.listen)
        told = self.tlsError(sock)
        self.assertIn("certificate", told)
        self.assertTrue(told.isprintable())
        self.certify(sock)
        sock.listen()
        self.assertEqual(self.tlsError(sock), "")
        self.good(sock)

    def test_mismatch(self) -> None:
        """listen with a key of another chain: ENOKEY."""
        sock = self.tlsSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, credential().chainPEM)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_PRIVATE_KEY, testCA().issue([NAME], key="rsa").keyPEM)
        self.fails(errno.ENOKEY, sock.listen)
        self.assertIn("key", self.tlsError(sock))
