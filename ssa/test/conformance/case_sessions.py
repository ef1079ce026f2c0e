# SPDX-License-Identifier: MIT
"""
Sessions: TLS_SESSION_REUSE, TLS_SESSION_TTL, TLS_RESUMED_SESSION, with peers of ours and of openssl.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import Thread, number, text, value
from ssa.test.conformance.case_options import OptionCase
from ssa.test.conformance.peers import NAME, Peer, clientContext, credential, echo, serverContext
from ssa.test.conformance.runner import PATIENCE
from ssa.test.pki import Credential, otherCA, testCA

SHORT: Final = int(2 * PATIENCE)
"""Seconds that a session lives in the cases about that: two connections must fit in."""


def ticketOf(hello: bytes) -> list[bytes]:
    """Find the ticket in a ClientHello: the identity in pre_shared_key, RFC 8446 section 4.2.11.  Empty if there is none."""
    at = 5 + 4 + 2 + 32  # the record's header, the message's, the version, the random
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 2
    while at < end:
        kind, size = struct.unpack_from("!HH", hello, at)
        if kind == 41:
            return [hello[at + 8 : at + 8 + int.from_bytes(hello[at + 6 : at + 8], "big")]]
        at += 4 + size
    return []


class SessionCase(OptionCase):
    """A case with servers and clients that come back."""

    def resuming(self, **options: Any) -> SSL.Context:
        """A server's context that resumes sessions."""
        context = serverContext(version=self.version, **options)
        context.set_session_id(os.urandom(16))
        return context

    def ask(self, address: tuple[Any, ...], *settings: tuple[Option, bytes | int], name: str = NAME) -> int:
        """Connect, exchange a word, end in order; whether a session was resumed."""
        sock = self.clientSocket(name=name)
        for option, setting in settings:
            sock.setsockopt(IPPROTO_TLS, option, setting)
        return self.asked(sock, address)

    def asked(self, sock: socket.socket, address: tuple[Any, ...]) -> int:
        """The same with a socket that is there."""
        sock.connect(address)
        sock.sendall(b"ping")
        self.assertEqual(self.exactly(sock, 4), b"ping")
        self.assertEqual(text(sock, Option.TLS_PEER_IDENTITY), f"CN={NAME}")
        self.assertEqual(value(sock, Option.TLS_PEER_CERTIFICATE_CHAIN), credential().chainPEM + b"\0")
        resumed = number(sock, Option.TLS_RESUMED_SESSION)
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(self.rest(sock), b"")
        sock.close()
        return resumed

    def echoing(self, *settings: tuple[Option, bytes | int], identity: Credential | None = None) -> socket.socket:
        """A TLS listener."""
        sock = self.tlsSocket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.certify(sock, identity)
        for option, setting in settings:
            sock.setsockopt(IPPROTO_TLS, option, setting)
        if self.version:
            sock.setsockopt(IPPROTO_TLS, Option.TLS_VERSION_MIN, self.version)
            sock.setsockopt(IPPROTO_TLS, Option.TLS_VERSION_MAX, self.version)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock

    def serveOne(self, listener: socket.socket) -> Thread:
        """Echo for one connection; the result is whether it says that a session was resumed."""

        def serve() -> int:
            self.readable(listener)
            sock = listener.accept()[0]
            resumed = number(sock, Option.TLS_RESUMED_SESSION)
            with sock, contextlib.suppress(ConnectionResetError):
                while data := sock.recv(100):
                    sock.sendall(data)
            return resumed

        return Thread(serve)

    def both(self, listener: socket.socket, *settings: tuple[Option, bytes | int]) -> tuple[int, int]:
        """A connection between two TLS sockets: what each says."""
        serving = self.serveOne(listener)
        mine = self.ask(listener.getsockname(), *settings)
        return mine, int(serving.result())


class _Client(SessionCase):
    """The TLS socket connects."""

    def test_resumed(self) -> None:
        """The second connection and all after it resume; the peer's certificates are told all the same."""
        server = self.server(echo, self.resuming())
        self.assertEqual([self.ask(server.address) for _ in range(4)], [0, 1, 1, 1])

    def test_off(self) -> None:
        """TLS_SESSION_REUSE 0, TLS_SESSION_TTL 0."""
        server = self.server(echo, self.resuming())
        self.assertEqual(self.ask(server.address), 0)
        for setting in ((Option.TLS_SESSION_REUSE, 0), (Option.TLS_SESSION_TTL, 0)):
            self.assertEqual(self.ask(server.address, setting), 0)
        self.assertEqual(self.ask(server.address), 1)

    def test_ttl(self) -> None:
        """After TLS_SESSION_TTL seconds a session is over."""
        server = self.server(echo, self.resuming())
        self.assertEqual([self.ask(server.address, (Option.TLS_SESSION_TTL, SHORT)) for _ in range(2)], [0, 1])
        time.sleep(SHORT + 0.1)
        self.assertEqual(self.ask(server.address, (Option.TLS_SESSION_TTL, SHORT)), 0)

    def test_apart(self) -> None:
        """Another identity, other trust, other ciphers, another certificate of one's own: nothing is resumed."""
        server = self.server(echo, self.resuming())
        mine = testCA().issue(["me.example"], purpose="client")
        for settings in (
            ((Option.TLS_REMOTE_HOSTNAME, b"127.0.0.1"),),
            ((Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem + otherCA().pem),),
            ((Option.TLS_DISABLE_CIPHER, b"TLS_AES_256_GCM_SHA384"),),
            ((Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM), (Option.TLS_PRIVATE_KEY, mine.keyPEM)),
        ):
            self.ask(server.address)
            self.assertEqual([self.ask(server.address, *settings) for _ in range(2)], [0, 1], settings[0][0])
        self.assertEqual(self.ask(server.address), 1)

    def test_noTrust(self) -> None:
        """Who does not trust the server's issuer is refused, whatever others have kept."""
        server = self.server(echo, self.resuming(), quiet=True)
        self.ask(server.address)
        for name, trusted in (("other.example", testCA().pem), (NAME, otherCA().pem)):
            sock = self.clientSocket(name=name)
            sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, trusted)
            self.fails(errno.EKEYREJECTED, sock.connect, server.address)

    def test_noServer(self) -> None:
        """A server that has forgotten the session does a full handshake."""
        server = self.server(echo, self.resuming())
        address = server.address
        self.ask(address)
        server.close()
        again = self.server(echo, self.resuming(), port=address[1])
        self.assertEqual([self.ask(again.address) for _ in range(2)], [0, 1])

    def test_impostor(self) -> None:
        """At the same address, somebody else: the session is of no use to him, and he proves nothing."""
        server = self.server(echo, self.resuming())
        address = server.address
        self.ask(address)
        server.close()
        bad = serverContext(otherCA().issue([NAME]), version=self.version)
        self.server(echo, bad, port=address[1], quiet=True)
        self.fails(errno.EKEYREJECTED, self.clientSocket().connect, address)

    def test_short(self) -> None:
        """A connection that the program closes without reading anything leaves a session as well."""
        server = self.server(lambda peer: self.assertEqual(peer.rest(), b""), self.resuming())
        first = self.clientSocket()
        first.connect(server.address)
        first.close()

        def resumed() -> bool:
            sock = self.clientSocket()
            sock.connect(server.address)
            with sock:
                return number(sock, Option.TLS_RESUMED_SESSION) == 1

        self.eventually(resumed, "a resumed session")

    def test_openssl(self) -> None:
        """openssl s_server says the same."""
        with self.openssl("s_server", "-accept", "127.0.0.1:0", "-rev", *self.identity()) as (server, output):
            port = int(self.wait(output, r"^ACCEPT .*:(\d+)$").group(1))
            self.assertEqual([self.reverse(port) for _ in range(3)], [0, 1, 1])
            self.assertIsNone(server.poll())

    def reverse(self, port: int) -> int:
        """Talk with C{openssl s_server -rev}."""
        with self.clientSocket() as sock:
            sock.connect(("127.0.0.1", port))
            sock.sendall(b"abc\n")
            self.assertEqual(self.exactly(sock, 4), b"cba\n")
            return number(sock, Option.TLS_RESUMED_SESSION)

    def identity(self) -> list[str]:
        """Options of openssl for the server's certificate and the version."""
        return [
            "-cert", self.file(credential().chainPEM), "-key", self.file(credential().keyPEM), *self.onlyVersion(),
        ]  # fmt: skip

    def onlyVersion(self) -> list[str]:
        """The option of openssl for the version."""
        return ["-tls1_2"] if self.version == 0x0303 else ["-tls1_3"]

    def file(self, content: bytes) -> str:
        """A file that is gone after the case."""
        file = tempfile.NamedTemporaryFile(prefix="ssa-sessions-")  # noqa: SIM115
        self.addCleanup(file.close)
        file.write(content)
        file.flush()
        return file.name

    @contextlib.contextmanager
    def openssl(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
        """The command line tool, and its output."""
        program = shutil.which("openssl")
        if program is None:
            self.skipTest("there is no openssl")
        with subprocess.Popen(
            [program, *arguments], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:  # unbuffered: a line that was read already makes nothing readable
            try:
                yield process, process.stdout
            finally:
                process.kill()

    def wait(self, output: Any, pattern: str) -> re.Match[str]:
        """Read lines until one fits."""
        while True:
            self.readable(output)
            line = output.readline()
            if not line:
                self.fail(f"no line like {pattern}")
            match = re.search(pattern, line.decode(errors="replace"))
            if match is not None:
                return match


class Client13(_Client):
    """TLS 1.3."""

    version = 0x0304

    def test_once(self) -> None:
        """A ticket is used once (RFC 8446 appendix C.4): what clients show is never the same."""
        context = self.resuming()
        listener = self.plainListener()
        shown: list[bytes] = []
        resumed = []
        for _ in range(3):
            socks = [self.clientSocket(flags=socket.SOCK_NONBLOCK) for _ in range(3)]
            for sock in socks:
                self.assertEqual(sock.connect_ex(listener.getsockname()), errno.EINPROGRESS)
            accepted = [self.keep(listener.accept()[0]) for _ in socks]
            for sock in accepted:
                self.readable(sock)
                shown += ticketOf(sock.recv(65536, socket.MSG_PEEK))
                peer = Peer(sock, context, server=True)
                peer.handshake()
                peer.send(b"x")
            for sock in socks:
                sock.setblocking(True)
                self.assertEqual(sock.recv(1), b"x")
                resumed.append(number(sock, Option.TLS_RESUMED_SESSION))
        self.assertEqual(resumed[:3], [0, 0, 0])
        self.assertEqual(resumed[3:], [1] * 6)
        self.assertEqual(len(shown), 6)
        self.assertEqual(len(set(shown)), 6, "a ticket was used twice")

    def test_early(self) -> None:
        """The ticket of a connection that goes on can be used already."""
        server = self.server(echo, self.resuming())
        sock = self.clientSocket()
        sock.connect(server.address)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")
        self.assertEqual(self.ask(server.address), 1)


class Client12(_Client):
    """TLS 1.2."""

    version = 0x0303

    def test_ids(self) -> None:
        """Without tickets, by session id."""
        context = self.resuming()
        context.set_options(SSL.OP_NO_TICKET)
        server = self.server(echo, context)
        self.assertEqual([self.ask(server.address) for _ in range(3)], [0, 1, 1])


class _Server(SessionCase):
    """The TLS socket listens."""

    def test_bothEnds(self) -> None:
        """Two TLS sockets agree."""
        listener = self.echoing()
        self.assertEqual([self.both(listener) for _ in range(3)], [(0, 0), (1, 1), (1, 1)])

    def test_off(self) -> None:
        """Each of the two options switches it off."""
        for setting in ((Option.TLS_SESSION_REUSE, 0), (Option.TLS_SESSION_TTL, 0)):
            listener = self.echoing(setting)
            self.assertEqual([self.both(listener) for _ in range(2)], [(0, 0), (0, 0)])

    def test_ttl(self) -> None:
        """The server's time counts too."""
        listener = self.echoing((Option.TLS_SESSION_TTL, SHORT))
        self.assertEqual([self.both(listener) for _ in range(2)], [(0, 0), (1, 1)])
        time.sleep(SHORT + 1.1)  # OpenSSL counts whole seconds
        self.assertEqual(self.both(listener), (0, 0))

    def ordinary(self, listener: socket.socket, context: SSL.Context, session: Any, name: str = NAME) -> tuple[int, Any]:
        """An ordinary client, perhaps with a session: whether the accepted socket says resumed, and the new session."""
        serving = self.serveOne(listener)
        peer = Peer(self.keep(socket.create_connection(listener.getsockname())), context, server=False, name=name)
        if session is not None:
            peer.tls.set_session(session)
        peer.handshake()
        peer.send(b"ping")
        self.assertEqual(peer.exactly(4), b"ping")
        kept = peer.tls.get_session()
        peer.closeNotify()
        peer.rest()
        return int(serving.result()), kept

    def test_ordinaryClient(self) -> None:
        """An ordinary client resumes."""
        listener, context = self.echoing(), clientContext(version=self.version)
        first, session = self.ordinary(listener, context, None)
        second, session = self.ordinary(listener, context, session)
        third, _ = self.ordinary(listener, context, session)
        self.assertEqual([first, second, third], [0, 1, 1])

    def test_otherListener(self) -> None:
        """A session of another listener is not resumed, least of all by one that asks for certificates."""
        context = clientContext(version=self.version)
        _, session = self.ordinary(self.echoing(), context, None)
        self.assertEqual(self.ordinary(self.echoing(), context, session)[0], 0)
        asking = self.echoing(
            (Option.TLS_REQUEST_PEER_AUTH, 2), (Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
        )
        sock = self.keep(socket.create_connection(asking.getsockname()))
        peer = Peer(sock, context, server=False)
        peer.tls.set_session(session)
        with self.assertRaises(SSL.Error):
            peer.handshake()
            peer.recv(1)

    def test_clientCertificate(self) -> None:
        """The client's certificates are known in a resumed session as well."""
        mine = testCA().intermediate("SSA authority for clients").issue(["me.example"], purpose="client", subject="me")
        listener = self.echoing(
            (Option.TLS_REQUEST_PEER_AUTH, 2), (Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
        )
        results: list[tuple[int, str, bytes]] = []

        def serve() -> None:
            self.readable(listener)
            with listener.accept()[0] as sock:
                chain = value(sock, Option.TLS_PEER_CERTIFICATE_CHAIN)
                results.append((number(sock, Option.TLS_RESUMED_SESSION), text(sock, Option.TLS_PEER_IDENTITY), chain))
                while data := sock.recv(100):
                    sock.sendall(data)

        for _ in range(3):
            serving = Thread(serve)
            settings = (Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM), (Option.TLS_PRIVATE_KEY, mine.keyPEM)
            self.ask(listener.getsockname(), *settings)
            serving.result()
        self.assertEqual(results, [(resumed, "CN=me", mine.chainPEM + b"\0") for resumed in (0, 1, 1)])

    def test_openssl(self) -> None:
        """openssl s_client resumes, and says so."""
        program = shutil.which("openssl")
        if program is None:
            self.skipTest("there is no openssl")
        listener = self.echoing()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "session")
            found: list[tuple[bool, bool, int]] = []
            for turn in range(2):
                serving = self.serveOne(listener)
                command = [program, "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}", "-servername", NAME]
                command += ["-ign_eof", "-sess_in" if turn else "-sess_out", path]
                with subprocess.Popen(
                    command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                ) as client:
                    assert client.stdin is not None and client.stdout is not None
                    try:
                        client.stdin.write(b"ping\n")
                        client.stdin.flush()
                        lines: list[bytes] = []
                        while not lines or b"ping" not in lines[-1]:
                            self.readable(client.stdout)
                            lines.append(client.stdout.readline())
                            self.assertTrue(lines[-1], b"".join(lines))
                    finally:
                        client.kill()
                told = b"".join(lines)
                found.append((b"Reused, " in told, b"New, " in told, int(serving.result())))
            self.assertEqual(found, [(False, True, 0), (True, False, 1)])


class Server13(_Server):
    """TLS 1.3."""

    version = 0x0304


class Server12(_Server):
    """TLS 1.2."""

    version = 0x0303


class Values(SessionCase):
    """The values of TLS_SESSION_TTL and TLS_SESSION_REUSE."""

    def test_ttl(self) -> None:
        """0 to seven days; the policy's is the most; else EINVAL."""
        sock = self.tlsSocket()
        self.assertEqual(number(sock, Option.TLS_SESSION_TTL), 7200)
        for seconds, expected in ((1, 1), (604800, 7200), (0, 0)):
            sock.setsockopt(IPPROTO_TLS, Option.TLS_SESSION_TTL, seconds)
            self.assertEqual(number(sock, Option.TLS_SESSION_TTL), expected)
        self.assertEqual(number(sock, Option.TLS_SESSION_REUSE), 0)
        for bad in (-1, 604801):
            self.sets(errno.EINVAL, sock, Option.TLS_SESSION_TTL, struct.pack("=i", bad))

    def test_reuse(self) -> None:
        """0 or 1."""
        sock = self.tlsSocket()
        for good in (0, 1):
            sock.setsockopt(IPPROTO_TLS, Option.TLS_SESSION_REUSE, good)
            self.assertEqual(number(sock, Option.TLS_SESSION_REUSE), good)
        for bad in (-1, 2):
            self.sets(errno.EINVAL, sock, Option.TLS_SESSION_REUSE, struct.pack("=i", bad))
