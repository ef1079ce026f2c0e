# SPDX-License-Identifier: MIT
"""
TLS_UPGRADE: TLS on a TCP connection that the program has already used.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time

from OpenSSL import SSL

from ssa.api import UPGRADE_FORMAT, Option, Role
from ssa.test.conformance.case import Thread, edges, epolled, number, text, value
from ssa.test.conformance.case_connectionoptions import LABEL
from ssa.test.conformance.case_options import OptionCase, named, rawSet
from ssa.test.conformance.peers import NAME, Peer, clientContext, echo, serverContext
from ssa.test.pki import testCA


class _Upgrade(OptionCase):
    """A case with TCP connections."""

    def tcp(self, host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
        """Two ordinary sockets, connected with each other, that have talked."""
        listener = self.plainListener(host)
        one = self.keep(socket.create_connection(listener.getsockname()[:2]))
        two = self.keep(listener.accept()[0])
        listener.close()
        one.sendall(b"STARTTLS")
        self.assertEqual(two.recv(20), b"STARTTLS")
        two.sendall(b"220 go")
        self.assertEqual(one.recv(20), b"220 go")
        return one, two

    def secure(self, plain: socket.socket, server: bool, context: SSL.Context | None = None) -> Peer:
        """The ordinary end goes on with TLS."""
        peer = Peer(plain, context or (serverContext() if server else clientContext()), server=server)
        peer.handshake()
        return peer

    def upgrade(self, sock: socket.socket, plain: socket.socket, role: Role) -> int:
        """TLS_UPGRADE; 0 or the errno."""
        return rawSet(sock, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, plain.fileno(), role))

    def talk(self, sock: socket.socket, peer: Peer) -> None:
        """Data goes both ways."""
        sock.setblocking(True)
        sock.sendall(b"ping")
        self.assertEqual(peer.exactly(4), b"ping")
        peer.send(b"pong")
        self.assertEqual(self.exactly(sock, 4), b"pong")

    def socketFor(self, role: Role, family: int = socket.AF_INET, flags: int = 0) -> socket.socket:
        """A socket with what the role needs."""
        if role is Role.CLIENT:
            return self.clientSocket(family, flags)
        sock = self.tlsSocket(family, flags)
        self.certify(sock)
        return sock


class Upgrade(_Upgrade):
    """140, TLS_UPGRADE."""

    def test_blocking(self) -> None:
        """Both roles, at either end of the TCP connection: it returns when the handshake has ended."""
        for role in Role:
            for which in (0, 1):
                with self.subTest(role=role, which=which):
                    ends = self.tcp()
                    mine, theirs = ends[which], ends[1 - which]
                    names = mine.getsockname(), mine.getpeername()
                    securing = Thread(lambda role=role, theirs=theirs: self.secure(theirs, role is Role.CLIENT))  # type: ignore[misc]
                    sock = self.socketFor(role)
                    self.assertEqual(named(self.upgrade(sock, mine, role)), "success")
                    peer = securing.result()
                    mine.close()
                    self.talk(sock, peer)
                    self.assertEqual((sock.getsockname(), sock.getpeername()), names)
                    self.assertEqual(number(sock, Option.TLS_VERSION_CONN), 0x0304)
                    binding = peer.tls.export_keying_material(LABEL, 32, b"")
                    self.assertEqual(value(sock, Option.TLS_CHANNEL_BINDING), binding)
                    self.assertEqual(self.upgrade(sock, theirs, role), errno.EISCONN)
                    sock.shutdown(socket.SHUT_WR)
                    self.assertEqual(peer.rest(), b"")

    def test_nonblocking(self) -> None:
        """EINPROGRESS; not writable until the handshake has ended, then writable with SO_ERROR 0."""
        for role in Role:
            with self.subTest(role=role):
                mine, theirs = self.tcp()
                sock = self.socketFor(role, flags=socket.SOCK_NONBLOCK)
                self.assertEqual(named(self.upgrade(sock, mine, role)), "EINPROGRESS")
                self.assertEqual(select.select([sock], [sock], [], 0.05), ([], [], []))
                self.assertEqual(named(self.upgrade(sock, mine, role)), "EALREADY")
                securing = Thread(lambda role=role, theirs=theirs: self.secure(theirs, role is Role.CLIENT))  # type: ignore[misc]
                self.writable(sock)
                self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
                mine.close()
                self.talk(sock, securing.result())

    def test_early(self) -> None:
        """The client's first bytes of TLS have come before the upgrade."""
        mine, theirs = self.tcp()
        securing = Thread(lambda: self.secure(theirs, False))
        self.readable(mine)
        sock = self.socketFor(Role.SERVER)
        self.assertEqual(named(self.upgrade(sock, mine, Role.SERVER)), "success")
        self.talk(sock, securing.result())
        self.assertEqual(text(sock, Option.TLS_HOSTNAME), NAME)

    def test_six(self) -> None:
        """Over IPv6."""
        mine, theirs = self.tcp("::1")
        securing = Thread(lambda: self.secure(theirs, True))
        sock = self.clientSocket(socket.AF_INET6)
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "success")
        self.talk(sock, securing.result())

    def test_identity(self) -> None:
        """The peer's identity is checked: EKEYREJECTED; without a name it is the address."""
        mine, theirs = self.tcp()
        securing = Thread(lambda: self.secure(theirs, True))
        sock = self.clientSocket(name="other.example")
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EKEYREJECTED")
        self.assertIn("other.example", self.tlsError(sock))
        self.assertRaises(SSL.Error, securing.result)
        self.fails(errno.ENOTCONN, sock.getpeername)
        mine, again = self.tcp()
        securing = Thread(lambda: self.secure(again, True))
        self.sets(0, sock, Option.TLS_REMOTE_HOSTNAME, b"127.0.0.1")
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "success")
        self.assertIsNone(securing.result().tls.get_servername())
        mine, third = self.tcp()
        securing = Thread(lambda: self.secure(third, True, serverContext(testCA().issue([NAME]))))
        self.assertEqual(named(self.upgrade(self.clientSocket(name=""), mine, Role.CLIENT)), "EKEYREJECTED")
        self.assertRaises(SSL.Error, securing.result)

    def test_notTLS(self) -> None:
        """The peer goes on in the clear: EPROTO, in both roles."""
        for role in Role:
            with self.subTest(role=role):
                mine, theirs = self.tcp()
                theirs.sendall(b"500 what do you mean? " * 10)
                sock = self.socketFor(role)
                self.assertEqual(named(self.upgrade(sock, mine, role)), "EPROTO")
                self.assertNotEqual(self.tlsError(sock), "")

    def test_edge(self) -> None:
        """Edge-triggered epoll, registered before the upgrade."""
        mine, theirs = self.tcp()
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        with epolled(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET) as epoll:
            epoll.poll(0)  # a new TCP socket says EPOLLOUT | EPOLLHUP
            self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EINPROGRESS")
            securing = Thread(lambda: self.secure(theirs, True))
            self.assertEqual(edges(epoll, select.EPOLLOUT), select.EPOLLOUT)
        self.talk(sock, securing.result())

    def test_sendTimeout(self) -> None:
        """SO_SNDTIMEO: EINPROGRESS after its time; the handshake goes on, and its end can be waited for."""
        for role in Role:
            with self.subTest(role=role):
                mine, theirs = self.tcp()
                sock = self.socketFor(role)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50_000))
                self.assertEqual(named(self.upgrade(sock, mine, role)), "EINPROGRESS")
                securing = Thread(lambda role=role, theirs=theirs: self.secure(theirs, role is Role.CLIENT))  # type: ignore[misc]
                self.writable(sock)
                self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
                self.talk(sock, securing.result())

    def test_interrupted(self) -> None:
        """A signal: EINTR, the handshake goes on; poll tells the end."""
        mine, theirs = self.tcp()
        sock = self.clientSocket()
        self.interrupt(0.1, restart=False)
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EINTR")
        self.assertEqual(self.signals, 1)
        sock.setblocking(False)
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EALREADY")
        securing = Thread(lambda: self.secure(theirs, True))
        self.writable(sock)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.talk(sock, securing.result())

    def test_restarted(self) -> None:
        """A signal with SA_RESTART: the call goes on to its end."""
        mine, theirs = self.tcp()
        sock = self.clientSocket()
        self.interrupt(0.1, restart=True)

        def late() -> Peer:
            time.sleep(0.5)
            return self.secure(theirs, True)

        securing = Thread(late)
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "success")
        self.assertEqual(self.signals, 1)
        self.talk(sock, securing.result())

    def test_pendingError(self) -> None:
        """An error of a connect that nobody has asked about is not the upgrade's."""
        closed = self.plainListener()
        address = closed.getsockname()
        closed.close()
        for blocking in (True, False):
            with self.subTest(blocking=blocking):
                sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
                self.assertIn(sock.connect_ex(address), (errno.EINPROGRESS, errno.ECONNREFUSED))
                self.writable(sock)
                mine, theirs = self.tcp()
                sock.setblocking(blocking)
                if blocking:
                    securing = Thread(lambda theirs=theirs: self.secure(theirs, True))  # type: ignore[misc]
                    self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "success")
                else:
                    self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EINPROGRESS")
                    self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
                    securing = Thread(lambda theirs=theirs: self.secure(theirs, True))  # type: ignore[misc]
                    self.writable(sock)
                poll = select.poll()
                poll.register(sock, select.POLLIN | select.POLLOUT)
                self.assertEqual(poll.poll(0), [(sock.fileno(), select.POLLOUT)])
                self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
                self.talk(sock, securing.result())

    def test_failure(self) -> None:
        """A failure on a non-blocking socket: SO_ERROR says why, once; then the socket may connect."""
        mine, theirs = self.tcp()
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EINPROGRESS")
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EALREADY")
        theirs.sendall(b"500 what do you mean? " * 10)
        self.writable(sock)
        self.assertEqual(named(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)), "EPROTO")
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.assertIn("TLS", self.tlsError(sock))
        self.assertNotIn("in progress", self.tlsError(sock))
        sock.setblocking(True)
        sock.connect(self.server(echo).address)
        self.assertEqual(self.tlsError(sock), "")

    def test_child(self) -> None:
        """A child upgrades a socket and a connection that it has inherited; its parent goes on with it."""
        mine, theirs = self.tcp()
        securing = Thread(lambda: self.secure(theirs, True))
        sock = self.clientSocket()
        self.reap(self.child(lambda: self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "success")))
        mine.close()
        self.sets(errno.EISCONN, sock, Option.TLS_ALPN, b"h2")
        self.talk(sock, securing.result())

    def test_noCertificate(self) -> None:
        """A server without a certificate: ENOKEY."""
        mine, _ = self.tcp()
        sock = self.tlsSocket()
        self.assertEqual(named(self.upgrade(sock, mine, Role.SERVER)), "ENOKEY")
        self.assertNotEqual(self.tlsError(sock), "")

    def test_refusals(self) -> None:
        """What is no connected TCP socket of the caller; the socket stays new."""
        sock = self.clientSocket()
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        datagram = self.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagram.connect(("127.0.0.1", 9))
        local = [self.keep(each) for each in socket.socketpair()]
        unconnected = self.keep(socket.socket())
        for descriptor, expected in (
            (-1, {"EBADF"}),
            (1 << 20, {"EBADF"}),
            (reader, {"ENOTSOCK"}),
            (unconnected.fileno(), {"ENOTCONN"}),
            (self.plainListener().fileno(), {"ENOTCONN", "EINVAL"}),
            (datagram.fileno(), {"EINVAL", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"}),
            (local[0].fileno(), {"EINVAL", "EAFNOSUPPORT"}),
            (sock.fileno(), {"EINVAL"}),
            (self.tlsSocket().fileno(), {"EINVAL"}),
        ):
            with self.subTest(descriptor=descriptor):
                error = rawSet(sock, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, descriptor, 0))
                self.assertIn(named(error), expected)
                self.assertNotEqual(self.tlsError(sock), "")
        sock.connect(self.server(echo).address)

    def test_otherFamily(self) -> None:
        """A connection of the other address family: EAFNOSUPPORT; it is left alone."""
        for host, family in (("127.0.0.1", socket.AF_INET6), ("::1", socket.AF_INET)):
            with self.subTest(host=host):
                mine, theirs = self.tcp(host)
                sock = self.clientSocket(family)
                self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EAFNOSUPPORT")
                self.assertNotEqual(self.tlsError(sock), "")
                mine.sendall(b"still plain")
                self.assertEqual(theirs.recv(20), b"still plain")

    def test_bound(self) -> None:
        """A socket that is bound: EINVAL, since the connection has its own address; it may still connect."""
        mine, theirs = self.tcp()
        sock = self.clientSocket()
        sock.bind(("127.0.0.1", 0))
        self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EINVAL")
        self.assertIn("bound", self.tlsError(sock))
        mine.sendall(b"still plain")
        self.assertEqual(theirs.recv(20), b"still plain")
        sock.connect(self.server(echo).address)

    def test_stateFirst(self) -> None:
        """EISCONN and EALREADY whatever the descriptor: the old one may be closed once an attempt runs."""
        client, server = self.bothEnds()
        with self.phases() as phases:
            for title, sock in [*phases, ("connected", client), ("accepted", server)]:
                with self.subTest(socket=title):
                    error = rawSet(sock, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, -1, 0))
                    self.assertEqual(named(error), "EALREADY" if title == "connecting" else "EISCONN")

    def test_tooLate(self) -> None:
        """On listeners and connections: EISCONN, and the TCP connection is left alone."""
        client, server = self.bothEnds()
        mine, theirs = self.tcp()
        for sock in (client, server, self.listener()):
            self.assertEqual(named(self.upgrade(sock, mine, Role.CLIENT)), "EISCONN")
        mine.sendall(b"still plain")
        self.assertEqual(theirs.recv(20), b"still plain")
