# SPDX-License-Identifier: MIT
"""
connect(2) to a C{struct sockaddr_host}: the name is resolved, every address is tried, and the name is whom the peer must prove
to be.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import socket
import struct
import time
from functools import partial
from typing import Any

from OpenSSL import SSL

from ssa.api import AF_HOSTNAME, IPPROTO_TLS, Option
from ssa.test.conformance import peers
from ssa.test.conformance.case import LIBC, Thread, TLSCase
from ssa.test.conformance.peers import NAME, SECONDS, Peer, Server, echo, serverContext
from ssa.test.pki import Credential, testCA

RESOLVE_SECONDS = 5.0
CONFIGURATION = f"[default]\nResolveTimeout = {RESOLVE_SECONDS:g}\nHandshakeTimeout = 5\n"

DELAY = 0.3
"""Seconds that a slow server waits before it answers the handshake."""
NOWHERE = "nowhere.invalid"
"""A name that never resolves (RFC 6761 section 6.4)."""
LONGEST = ".".join(("a" * 36, "b" * 36, "c" * 37, "invalid"))
"""With its NUL it fills the structure."""
_NAME_SIZE = 120


def hostAddress(name: str | bytes, port: int, size: int = _NAME_SIZE) -> bytes:
    """A C{struct sockaddr_host}, whose name has so many bytes."""
    raw = name.encode() if isinstance(name, str) else name
    return struct.pack("=H", AF_HOSTNAME) + struct.pack("!H", port) + raw.ljust(size, b"\0")


def rawConnect(sock: socket.socket, packed: bytes) -> int:
    """connect(2) itself; 0 or the errno."""
    ctypes.set_errno(0)
    return 0 if LIBC.connect(sock.fileno(), packed, len(packed)) == 0 else ctypes.get_errno()


def localhost() -> Credential:
    """A certificate for the name localhost and no address."""
    return testCA().issue(["localhost"])


class _Named(TLSCase):
    def serve(
        self, host: str = "127.0.0.1", identity: Credential | None = None, *, delay: float = 0.0, seen: list[str] | None = None
    ) -> Server:
        """
        A server with a certificate, which echoes.

        @param seen: the names that clients asked for by SNI.
        """

        def talk(peer: Peer) -> None:
            if seen is not None:
                seen.append((peer.tls.get_servername() or b"").decode())
            echo(peer)

        return self.server(talk, serverContext(identity or localhost()), host=host, delay=delay, quiet=True)

    def serveBoth(self, six: SSL.Context, four: SSL.Context) -> int:
        """
        A server on ::1 and one on 127.0.0.1.

        @return: the port of both.
        """
        for _ in range(50):
            first = Server(echo, six, host="::1", quiet=True)
            try:
                second = Server(echo, four, port=first.address[1], quiet=True)
            except OSError:
                first.close()
                continue
            self.keep(first)
            self.keep(second)
            return int(first.address[1])
        raise self.failureException("no port is free on both loopback addresses")

    def closedPort(self) -> int:
        """A port where nobody listens, on neither loopback address."""
        listener = self.plainListener()
        port = int(listener.getsockname()[1])
        listener.close()
        return port

    def talk(self, sock: socket.socket) -> None:
        """Say that the connection is one."""
        sock.setblocking(True)
        sock.sendall(b"ping")
        self.assertEqual(self.exactly(sock, 4), b"ping")

    def is_(self, number: int, found: int, sock: socket.socket) -> None:
        """Say what an errno is."""
        self.assertEqual(errno.errorcode.get(number, str(number)), errno.errorcode.get(found, str(found)), self.tlsError(sock))

    def toldOf(self, sock: socket.socket, *words: str) -> None:
        """Say what TLS_ERROR tells."""
        told = self.tlsError(sock)
        self.assertTrue(told and told.isprintable(), repr(told))
        for word in words:
            self.assertIn(word, told)


class _Connecting(_Named):
    """
    Each kind of name.

    @cvar flags: of the TLS sockets.
    """

    flags = 0

    def attempt(self, sock: socket.socket, name: str | bytes, port: int) -> int:
        """Try to connect: the errno."""
        raise NotImplementedError

    def new(self, family: int = socket.AF_INET, name: str = "") -> socket.socket:
        """A client's socket; without a name, that of the address is the one that counts."""
        return self.clientSocket(family, self.flags, name)

    def reaches(
        self, name: str, family: int, server: Server, *, peer: str, identity: str = "", sock: socket.socket | None = None
    ) -> None:
        """Say that a name leads to a server, with the real addresses."""
        sock = sock or self.new(family, identity)
        self.is_(0, self.attempt(sock, name, server.address[1]), sock)
        self.assertEqual(sock.getpeername()[:2], (peer, server.address[1]))
        self.assertEqual(sock.getsockname()[0], peer)
        self.assertNotEqual(sock.getsockname()[1], 0)
        self.assertEqual(self.tlsError(sock), "")
        if self.flags:  # TCP says 0 once, after a connect that did not wait
            self.assertIn(sock.connect_ex(sock.getpeername()), (0, errno.EISCONN))
        self.assertEqual(sock.connect_ex(sock.getpeername()), errno.EISCONN)
        self.talk(sock)

    def test_four(self) -> None:
        """An IPv4 literal; the certificate must name the address, and nothing is asked for by SNI."""
        seen: list[str] = []
        self.reaches("127.0.0.1", socket.AF_INET, self.serve(identity=peers.credential(), seen=seen), peer="127.0.0.1")
        self.assertEqual(seen, [""])

    def test_six(self) -> None:
        """An IPv6 literal."""
        seen: list[str] = []
        self.reaches("::1", socket.AF_INET6, self.serve("::1", peers.credential(), seen=seen), peer="::1")
        self.assertEqual(seen, [""])

    def test_fourOnSix(self) -> None:
        """An IPv4 literal and an AF_INET6 socket, whose names are IPv4-mapped."""
        self.reaches("127.0.0.1", socket.AF_INET6, self.serve(identity=peers.credential()), peer="::ffff:127.0.0.1")

    def test_sixOnFour(self) -> None:
        """An IPv6 literal and an AF_INET socket: there is no address to try."""
        sock = self.new()
        self.assertIn(self.attempt(sock, "::1", self.closedPort()), (errno.EAFNOSUPPORT, errno.EHOSTUNREACH))
        self.toldOf(sock, "::1")

    def test_localhostFour(self) -> None:
        """localhost, an AF_INET socket; the name is the identity and is asked for by SNI."""
        seen: list[str] = []
        self.reaches("localhost", socket.AF_INET, self.serve(seen=seen), peer="127.0.0.1")
        self.assertEqual(seen, ["localhost"])

    def test_localhostSix(self) -> None:
        """localhost, an AF_INET6 socket, a server on ::1 only."""
        self.reaches("localhost", socket.AF_INET6, self.serve("::1"), peer="::1")

    def test_localhostSecond(self) -> None:
        """localhost, an AF_INET6 socket, a server on 127.0.0.1 only."""
        self.reaches("localhost", socket.AF_INET6, self.serve(), peer="::ffff:127.0.0.1")

    def test_mappedNext(self) -> None:
        """An attempt at an IPv6 address, by name or not, leaves nothing behind that keeps the next one from an IPv4 address."""
        server = self.serve(identity=peers.credential())
        sock = self.new(socket.AF_INET6)
        self.is_(errno.ECONNREFUSED, self.attempt(sock, "::1", self.closedPort()), sock)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), 0)
        self.reaches("127.0.0.1", socket.AF_INET6, server, peer="::ffff:127.0.0.1", sock=sock)

    def test_onlySix(self) -> None:
        """IPV6_V6ONLY that the program has set holds for names too."""
        sock = self.new(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        number = self.attempt(sock, "localhost", self.serve().address[1])
        self.assertIn(number, (errno.ECONNREFUSED, errno.ENETUNREACH), self.tlsError(sock))
        self.reaches("localhost", socket.AF_INET6, self.serve("::1"), peer="::1", sock=sock)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), 1)

    def test_capitals(self) -> None:
        """Names have no case."""
        self.reaches("LocalHost", socket.AF_INET, self.serve(), peer="127.0.0.1")

    def test_otherName(self) -> None:
        """The name in the address is the identity: EKEYREJECTED for a server that has another; the socket is new again."""
        other, good = self.serve(identity=peers.credential()), self.serve()
        sock = self.new()
        self.is_(errno.EKEYREJECTED, self.attempt(sock, "localhost", other.address[1]), sock)
        self.toldOf(sock, "localhost", NAME)
        self.fails(errno.ENOTCONN, sock.getpeername)
        self.reaches("localhost", socket.AF_INET, good, peer="127.0.0.1", sock=sock)

    def test_otherAddress(self) -> None:
        """A literal is an identity too: a certificate for the name localhost does not do."""
        sock = self.new()
        self.is_(errno.EKEYREJECTED, self.attempt(sock, "127.0.0.1", self.serve().address[1]), sock)
        self.toldOf(sock, "127.0.0.1")

    def test_remoteHostname(self) -> None:
        """TLS_REMOTE_HOSTNAME goes before the name in the address, in the identity and in SNI."""
        seen: list[str] = []
        named = self.serve(identity=peers.credential(), seen=seen)
        self.reaches("localhost", socket.AF_INET, named, peer="127.0.0.1", identity=NAME)
        self.assertEqual(seen, [NAME])
        sock = self.new(name=NAME)
        self.is_(errno.EKEYREJECTED, self.attempt(sock, "localhost", self.serve().address[1]), sock)
        self.toldOf(sock, NAME)

    def test_nameIsNotKept(self) -> None:
        """The name of one attempt is not the identity of the next."""
        sock = self.new()
        self.is_(errno.ECONNREFUSED, self.attempt(sock, "localhost", self.closedPort()), sock)
        self.reaches("127.0.0.1", socket.AF_INET, self.serve(identity=peers.credential()), peer="127.0.0.1", sock=sock)

    def test_refused(self) -> None:
        """Nobody listens anywhere: TCP's errno; then the socket is new."""
        for family in (socket.AF_INET, socket.AF_INET6):
            with self.subTest(family=family):
                sock = self.new(family)
                self.is_(errno.ECONNREFUSED, self.attempt(sock, "localhost", self.closedPort()), sock)
                self.toldOf(sock, "refused")
                sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, b"localhost")
                self.is_(0, self.attempt(sock, "localhost", self.serve().address[1]), sock)
                self.talk(sock)

    def test_nextAddress(self) -> None:
        """An address whose server is the wrong one is not the end, in either order."""
        good, bad = serverContext(localhost()), serverContext(peers.credential())
        for six, four, expected in ((good, bad, "::1"), (bad, good, "::ffff:127.0.0.1")):
            with self.subTest(expected=expected):
                port = self.serveBoth(six, four)
                sock = self.new(socket.AF_INET6)
                self.is_(0, self.attempt(sock, "localhost", port), sock)
                self.assertEqual(sock.getpeername()[0], expected)
                self.talk(sock)

    def test_allBad(self) -> None:
        """Every address has the wrong server: why, not merely that."""
        bad = serverContext(peers.credential())
        port = self.serveBoth(bad, bad)
        sock = self.new(socket.AF_INET6)
        self.is_(errno.EKEYREJECTED, self.attempt(sock, "localhost", port), sock)
        self.toldOf(sock, "localhost")

    def test_unresolved(self) -> None:
        """EHOSTUNREACH, soon, with the name; then the socket is new."""
        for name in (NOWHERE, LONGEST):
            with self.subTest(name=name):
                sock = self.new()
                begun = time.monotonic()
                self.is_(errno.EHOSTUNREACH, self.attempt(sock, name, 443), sock)
                self.assertLess(time.monotonic() - begun, RESOLVE_SECONDS + 1)
                self.toldOf(sock, name)
                self.reaches("localhost", socket.AF_INET, self.serve(), peer="127.0.0.1", sock=sock)

    def test_bound(self) -> None:
        """bind before connect decides the source address here too."""
        listener = self.plainListener()
        accepting = Thread(lambda: self.peerOf(listener, serverContext(localhost())))
        sock = self.new()
        sock.bind(("127.0.0.2", 0))
        source = sock.getsockname()
        self.is_(0, self.attempt(sock, "localhost", listener.getsockname()[1]), sock)
        peer = accepting.result()
        self.assertEqual(peer.sock.getpeername()[0], "127.0.0.2")
        self.assertEqual(peer.sock.getpeername(), sock.getsockname())
        self.assertEqual(sock.getsockname(), source)

    def test_options(self) -> None:
        """Options of the TCP socket that were set before are those of the connection."""
        server = self.serve()
        sock = self.new()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.reaches("localhost", socket.AF_INET, server, peer="127.0.0.1", sock=sock)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)

    def test_wrongStructures(self) -> None:
        """EINVAL, at once, and the socket is as it was."""
        server = self.serve()
        port = server.address[1]
        sock = self.new()
        for what, packed in (
            ("no NUL", hostAddress(b"a" * _NAME_SIZE, port)),
            ("empty name", hostAddress(b"", port)),
            ("the name is cut off", hostAddress("localhost", port)[:8]),
            ("no name", hostAddress("localhost", port)[:4]),
            ("no port", hostAddress("localhost", port)[:2]),
            ("no family", hostAddress("localhost", port)[:1]),
            ("nothing", b""),
            ("too long", hostAddress("localhost", port, 1000)),
        ):
            with self.subTest(what=what):
                self.is_(errno.EINVAL, rawConnect(sock, packed), sock)
                self.fails(errno.ENOTCONN, sock.getpeername)
        self.reaches("localhost", socket.AF_INET, server, peer="127.0.0.1", sock=sock)

    def test_garbageAfterName(self) -> None:
        """What is behind the NUL does not count."""
        server = self.serve()
        sock = self.new()
        name = b"localhost\0" + b"\xff" * (_NAME_SIZE - 10)
        self.is_(0, self.attempt(sock, name, server.address[1]), sock)
        self.talk(sock)


class Blocking(_Connecting):
    """connect(2) that waits."""

    def attempt(self, sock: socket.socket, name: str | bytes, port: int) -> int:
        """Try to connect."""
        return rawConnect(sock, hostAddress(name, port))

    def test_waits(self) -> None:
        """It returns when the handshake has ended."""
        server = self.serve(delay=DELAY)
        begun = time.monotonic()
        self.reaches("localhost", socket.AF_INET, server, peer="127.0.0.1")
        self.assertGreaterEqual(time.monotonic() - begun, DELAY * 0.9)

    def test_threads(self) -> None:
        """Twenty at a time, to servers and to nowhere."""
        server = self.serve()

        def one(name: str, number: int) -> None:
            sock = self.new()
            self.is_(number, self.attempt(sock, name, server.address[1]), sock)

        for thread in [
            Thread(partial(one, name, number))
            for name, number in (("localhost", 0), (NOWHERE, errno.EHOSTUNREACH)) * 10
        ]:
            thread.result()


class Nonblocking(_Connecting):
    """connect(2) that does not."""

    flags = socket.SOCK_NONBLOCK

    def attempt(self, sock: socket.socket, name: str | bytes, port: int) -> int:
        """Try to connect: EINPROGRESS, whatever the name; poll tells the end, SO_ERROR says it once."""
        self.is_(errno.EINPROGRESS, rawConnect(sock, hostAddress(name, port)), sock)
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        events = poll.poll(peers.SECONDS * 1000)
        self.assertTrue(events and events[0][1] & select.POLLOUT, f"not writable: {events}")
        # A success may wake with more than POLLOUT while the addresses change to the real ones; SO_ERROR is right in any case.
        outcome = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if outcome:
            self.assertTrue(events[0][1] & select.POLLERR, f"{events[0][1]:#x}, {outcome}")
        else:
            self.assertEqual(poll.poll(0), [(sock.fileno(), select.POLLOUT)])
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        return outcome

    def test_inProgress(self) -> None:
        """EINPROGRESS, EALREADY, nothing by poll, no peer, no data; then writable, SO_ERROR 0, EISCONN."""
        server = self.serve(delay=DELAY)
        packed = hostAddress("localhost", server.address[1])
        sock = self.new()
        begun = time.monotonic()
        self.is_(errno.EINPROGRESS, rawConnect(sock, packed), sock)
        self.is_(errno.EALREADY, rawConnect(sock, packed), sock)
        self.assertEqual(sock.connect_ex(server.address), errno.EALREADY)
        self.assertEqual(select.select([sock], [sock], [sock], 0), ([], [], []))
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.assertRaises(BlockingIOError, sock.send, b"x")
        self.assertRaises(BlockingIOError, sock.recv, 1)
        self.fails(errno.ENOTCONN, sock.getpeername)
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
        self.assertEqual(poll.poll(0), [])
        self.assertTrue(poll.poll(1000 * SECONDS)[0][1] & select.POLLOUT)
        self.assertGreater(time.monotonic() - begun, DELAY * 0.9)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.assertEqual(poll.poll(0), [(sock.fileno(), select.POLLOUT)])
        self.assertIn(rawConnect(sock, packed), (0, errno.EISCONN))
        self.is_(errno.EISCONN, rawConnect(sock, packed), sock)
        self.assertEqual(sock.getpeername(), server.address)
        self.talk(sock)

    def test_optionsWhileResolving(self) -> None:
        """TLS options come too late while the attempt is under way."""
        server = self.serve(delay=DELAY)
        sock = self.new()
        self.is_(errno.EINPROGRESS, rawConnect(sock, hostAddress("localhost", server.address[1])), sock)
        self.fails(errno.EISCONN, sock.setsockopt, IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        self.writable(sock)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.talk(sock)

    def test_closeWhileResolving(self) -> None:
        """close while the name is looked up: nothing hangs, nothing is left, others go on."""
        for _ in range(20):
            sock = self.new()
            self.is_(errno.EINPROGRESS, rawConnect(sock, hostAddress(NOWHERE, 443)), sock)
            sock.close()
        self.reaches("localhost", socket.AF_INET, self.serve(), peer="127.0.0.1")

    def test_closeWhileConnecting(self) -> None:
        """close when the handshake has begun: the server sees the end."""
        listener = self.plainListener()
        sock = self.new()
        self.is_(errno.EINPROGRESS, rawConnect(sock, hostAddress("localhost", listener.getsockname()[1])), sock)
        real = self.keep(listener.accept()[0])
        real.settimeout(SECONDS)
        self.assertTrue(real.recv(10))
        sock.close()
        with contextlib.suppress(ConnectionResetError):
            while real.recv(1000):
                pass

    def test_closeAtOnce(self) -> None:
        """close at any moment: each connection that the server sees comes to its end without data."""
        got: list[bytes] = []
        server: Any = self.server(lambda peer: got.append(peer.rest()), serverContext(localhost()), quiet=True)
        for number in range(20):
            sock = self.new()
            self.is_(errno.EINPROGRESS, rawConnect(sock, hostAddress("localhost", server.address[1])), sock)
            time.sleep(number / 5000)
            sock.close()
        sock = self.new()
        self.is_(0, self.attempt(sock, "localhost", server.address[1]), sock)
        sock.sendall(b"last")
        sock.close()
        self.eventually(lambda: b"last" in got, "the last connection")
        server.join()
        self.assertEqual(set(got), {b"", b"last"} if b"" in got else {b"last"})

    def test_failureByConnect(self) -> None:
        """A second connect tells the failure too, and the third starts anew."""
        server = self.serve()
        sock = self.new()
        self.is_(errno.EINPROGRESS, rawConnect(sock, hostAddress(NOWHERE, 443)), sock)
        self.writable(sock)
        packed = hostAddress("localhost", server.address[1])
        self.is_(errno.EHOSTUNREACH, rawConnect(sock, packed), sock)
        self.is_(errno.EINPROGRESS, rawConnect(sock, packed), sock)
        self.writable(sock)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.talk(sock)
