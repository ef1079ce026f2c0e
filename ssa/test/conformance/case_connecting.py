# SPDX-License-Identifier: MIT
"""
connect(2): blocking or not, interrupted, timed out, failed, repeated.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import struct
import threading
import time
from functools import partial

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import LIBC, Thread, TLSCase, edges, epolled
from ssa.test.conformance.peers import NAME, SECONDS, Server, clientContext, echo, serverContext
from ssa.test.conformance.runner import PATIENCE
from ssa.test.pki import otherCA, testCA

DELAY = 0.3 * min(PATIENCE, 4)
"""Seconds that a slow server waits before it answers the handshake."""
AT_ONCE = 100 if PATIENCE <= 5 else 30
"""Attempts at a time: the debug kernel needs seconds of both processors for each."""


def connectError(sock: socket.socket) -> int:
    """SO_ERROR."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def rawConnect(sock: socket.socket, address: tuple[str, int]) -> int:
    """connect(2) itself, which the standard library would repeat after EINTR; 0 or the errno."""
    packed = struct.pack("=H", socket.AF_INET) + struct.pack("!H", address[1]) + socket.inet_aton(address[0]) + bytes(8)
    ctypes.set_errno(0)
    return 0 if LIBC.connect(sock.fileno(), packed, len(packed)) == 0 else ctypes.get_errno()


class _Slow(TLSCase):
    def slow(self) -> Server:
        """A server that takes its time."""
        return self.server(echo, delay=DELAY, quiet=True)

    def held(self, context: SSL.Context | None = None) -> Server:
        """A server that begins no handshake before it is told to."""
        return self.server(echo, context, quiet=True, hold=True)

    def talk(self, sock: socket.socket) -> None:
        """Say that the connection is one."""
        sock.setblocking(True)
        sock.sendall(b"ping")
        self.assertEqual(self.exactly(sock, 4), b"ping")


class Blocking(_Slow):
    """connect(2) that waits."""

    def test_waits(self) -> None:
        """It returns when the handshake has ended, not when TCP has connected."""
        server = self.slow()
        sock = self.clientSocket()
        begun = time.monotonic()
        sock.connect(server.address)
        self.assertGreaterEqual(time.monotonic() - begun, DELAY * 0.9)
        self.talk(sock)
        self.fails(errno.EISCONN, sock.connect, server.address)

    def test_refused(self) -> None:
        """ECONNREFUSED, and the socket may connect elsewhere."""
        closed = self.plainListener()
        address = closed.getsockname()
        closed.close()
        sock = self.clientSocket()
        self.fails(errno.ECONNREFUSED, sock.connect, address)
        self.assertNotEqual(self.tlsError(sock), "")
        self.fails(errno.ENOTCONN, sock.getpeername)
        sock.connect(self.server(echo).address)
        self.talk(sock)
        self.assertEqual(self.tlsError(sock), "")

    def test_retry(self) -> None:
        """After a failed handshake options may be set and connect called, on the same descriptor, many times."""
        good = self.server(echo)
        bad = self.server(echo, serverContext(otherCA().issue([NAME])), quiet=True)
        sock = self.clientSocket()
        for _ in range(5):
            self.fails(errno.EKEYREJECTED, sock.connect, bad.address)
            self.assertNotEqual(self.tlsError(sock), "")
            self.assertEqual(connectError(sock), 0)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        sock.connect(good.address)
        self.talk(sock)

    def test_notTLS(self) -> None:
        """A server that does not speak TLS: EPROTO."""
        listener = self.plainListener()

        def answer() -> None:
            sock = listener.accept()[0]
            sock.sendall(b"220 mail.example ESMTP\r\n")
            sock.recv(1000)
            sock.close()

        answering = Thread(answer)
        sock = self.clientSocket()
        self.fails(errno.EPROTO, sock.connect, listener.getsockname())
        answering.result()

    def test_closedInHandshake(self) -> None:
        """A server that hangs up in the handshake: EPROTO, or TCP's own errno where it resets."""
        listener = self.plainListener()
        answering = Thread(lambda: [listener.accept()[0].recv(1), None][1])
        sock = self.clientSocket()
        with self.assertRaises(OSError) as caught:
            sock.connect(listener.getsockname())
        self.assertIn(caught.exception.errno, (errno.EPROTO, errno.ECONNRESET))
        answering.result()

    def test_unreachable(self) -> None:
        """TCP's own errno, whatever it is, for an address without a way to it."""
        for address in (("255.255.255.255", 9), ("224.0.0.1", 9)):
            with self.subTest(address=address):
                ordinary = self.keep(socket.socket())
                ordinary.settimeout(2)
                with self.assertRaises(OSError) as expected:
                    ordinary.connect(address)
                assert expected.exception.errno is not None
                self.fails(expected.exception.errno, self.clientSocket().connect, address)

    def test_anyAddress(self) -> None:
        """0.0.0.0 means this machine."""
        server = self.server(echo)
        sock = self.clientSocket()
        sock.connect(("0.0.0.0", server.address[1]))
        self.talk(sock)

    def test_sendTimeout(self) -> None:
        """SO_SNDTIMEO: EINPROGRESS after its time; the attempt goes on and connect can be asked again."""
        server = self.held()
        sock = self.clientSocket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50_000))
        self.assertEqual(rawConnect(sock, server.address), errno.EINPROGRESS)
        self.assertEqual(rawConnect(sock, server.address), errno.EALREADY)
        server.release()
        self.writable(sock)
        self.assertEqual(connectError(sock), 0)
        self.talk(sock)

    def test_interrupted(self) -> None:
        """A signal: EINTR, the attempt goes on; poll tells the end."""
        server = self.slow()
        sock = self.clientSocket()
        self.interrupt(DELAY / 3, restart=False)
        self.assertEqual(rawConnect(sock, server.address), errno.EINTR)
        self.assertEqual(self.signals, 1)
        sock.setblocking(False)
        self.assertEqual(rawConnect(sock, server.address), errno.EALREADY)
        self.writable(sock)
        self.assertEqual(connectError(sock), 0)
        self.assertIn(rawConnect(sock, server.address), (0, errno.EISCONN))
        self.talk(sock)

    def test_restarted(self) -> None:
        """A signal with SA_RESTART: the call goes on to its end."""
        server = self.slow()
        sock = self.clientSocket()
        self.interrupt(DELAY / 3, restart=True)
        self.assertEqual(rawConnect(sock, server.address), 0)
        self.assertEqual(self.signals, 1)
        self.talk(sock)

    def test_threads(self) -> None:
        """Many threads connect at a time."""
        server = self.slow()

        def one() -> None:
            sock = self.clientSocket()
            sock.connect(server.address)
            self.talk(sock)

        for thread in [Thread(one) for _ in range(AT_ONCE * 2 // 5)]:
            thread.result()

    def test_closedWhileWaiting(self) -> None:
        """Another thread closes the descriptor: the call goes on, as TCP's, and ends with the handshake."""
        listener = self.plainListener()
        sock = self.clientSocket()
        connecting = Thread(lambda: rawConnect(sock, listener.getsockname()))
        real = self.keep(listener.accept()[0])
        real.settimeout(SECONDS)
        self.assertTrue(real.recv(10), "no hello")
        sock.close()
        real.sendall(b"HTTP/1.0 400 what is this?\r\n\r\n")
        self.assertIn(connecting.result(), (errno.EPROTO, errno.EBADF, errno.ECONNABORTED))
        self.assertEqual(self._untilEnd(real), "ended")

    def _dial(self, address: tuple[str, int]) -> None:
        self.clientSocket().connect(address)

    def test_exit(self) -> None:
        """A program that ends in the middle of a handshake leaves no connection behind."""
        for how in ("exit", "kill"):
            with self.subTest(how=how):
                listener = self.plainListener()
                pid = self.child(partial(self._dial, listener.getsockname()))
                real = self.keep(listener.accept()[0])
                real.settimeout(SECONDS)
                self.assertTrue(real.recv(10))
                os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGTERM)
                self.reap(pid, -(signal.SIGKILL if how == "kill" else signal.SIGTERM))
                self.assertEqual(self._untilEnd(real), "ended")

    def test_exitNonblocking(self) -> None:
        """A pending non-blocking connect is given up when its descriptor is closed."""
        listener = self.plainListener()
        sock = self.clientSocket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        real = self.keep(listener.accept()[0])
        real.settimeout(SECONDS)
        self.assertTrue(real.recv(10))
        sock.close()
        self.assertEqual(self._untilEnd(real), "ended")

    def _untilEnd(self, real: socket.socket) -> str:
        real.settimeout(3)
        try:
            while real.recv(1000):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return "still open"
        return "ended"

    def test_faults(self) -> None:
        """Bad addresses: EFAULT, EINVAL, EAFNOSUPPORT."""
        sock = self.clientSocket()
        ctypes.set_errno(0)
        self.assertEqual(LIBC.connect(sock.fileno(), ctypes.c_void_p(1), 16), -1)
        self.assertEqual(ctypes.get_errno(), errno.EFAULT)
        self.assertEqual(LIBC.connect(sock.fileno(), b"\x02\0\0\x09", 4), -1)
        self.assertEqual(ctypes.get_errno(), errno.EINVAL)
        unknown = struct.pack("=H", 99) + bytes(14)
        self.assertEqual(LIBC.connect(sock.fileno(), unknown, 16), -1)
        self.assertEqual(ctypes.get_errno(), errno.EAFNOSUPPORT)
        sock.connect(self.server(echo).address)
        self.talk(sock)

    def test_unspecified(self) -> None:
        """AF_UNSPEC: 0 on a new socket; EOPNOTSUPP on any other, which goes on.  Less than a family: EINVAL."""
        listener = self.listener()
        client, server = self.bothEnds()
        pending = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        held = self.held()
        pending.connect_ex(held.address)
        for title, sock, expected in (
            ("new", self.clientSocket(), 0),
            ("connecting", pending, errno.EOPNOTSUPP),
            ("connected", client, errno.EOPNOTSUPP),
            ("accepted", server, errno.EOPNOTSUPP),
            ("listening", listener, errno.EOPNOTSUPP),
        ):
            with self.subTest(socket=title):
                short = ((b"\x02", errno.EINVAL), (b"", errno.EINVAL))
                for packed, error in ((bytes(16), expected), (bytes(2), expected), *short):
                    ctypes.set_errno(0)
                    failed = LIBC.connect(sock.fileno(), packed, len(packed))
                    self.assertEqual(ctypes.get_errno() if failed else 0, error, packed)
        client.sendall(b"x")
        self.assertEqual(server.recv(1), b"x")
        self.peerTo(listener.getsockname())
        self.keep(listener.accept()[0])
        held.release()
        self.writable(pending)
        self.talk(pending)

    def test_otherCalls(self) -> None:
        """bind, listen and accept on a socket that connects or is connected: EINVAL, and it goes on."""
        held = self.held()
        pending = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        self.assertEqual(pending.connect_ex(held.address), errno.EINPROGRESS)
        for sock in (pending, self.connected()[0], self.accepted()[0]):
            self.fails(errno.EINVAL, sock.bind, ("127.0.0.1", 0))
            self.fails(errno.EINVAL, sock.listen)
            self.fails(errno.EINVAL, sock.accept)
        held.release()
        self.writable(pending)
        self.assertEqual(connectError(pending), 0)
        self.talk(pending)

    def test_listening(self) -> None:
        """EISCONN from connect on a listener, EINVAL from listen on a connection, as TCP."""
        listener = self.listener()
        self.fails(errno.EISCONN, listener.connect, listener.getsockname())
        sock = self.clientSocket()
        sock.connect(self.server(echo).address)
        self.fails(errno.EINVAL, sock.listen)
        self.talk(sock)


class Nonblocking(_Slow):
    """connect(2) with O_NONBLOCK."""

    def begin(self, server: Server) -> socket.socket:
        """A socket with a connect in progress: to a server that is held, so the call has not waited for the handshake."""
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        self.assertEqual(sock.connect_ex(server.address), errno.EINPROGRESS)
        return sock

    def test_inProgress(self) -> None:
        """EINPROGRESS, EALREADY, not writable; then writable, SO_ERROR 0, EISCONN."""
        server = self.held()
        sock = self.begin(server)
        self.assertEqual(sock.connect_ex(server.address), errno.EALREADY)
        self.assertEqual(select.select([sock], [sock], [sock], 0.1), ([], [], []))
        self.assertEqual(connectError(sock), 0)
        self.assertRaises(BlockingIOError, sock.recv, 1)
        self.assertRaises(BlockingIOError, sock.send, b"x")
        self.fails(errno.ENOTCONN, sock.getpeername)
        server.release()
        self.writable(sock)
        self.assertEqual(connectError(sock), 0)
        self.assertIn(sock.connect_ex(server.address), (0, errno.EISCONN))
        self.assertEqual(sock.connect_ex(server.address), errno.EISCONN)
        self.assertEqual(sock.getpeername(), server.address)
        self.talk(sock)

    def test_localName(self) -> None:
        """While it is connecting the socket has its real local name."""
        listener = self.plainListener()
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        sock.connect_ex(listener.getsockname())
        real = self.keep(listener.accept()[0])
        self.assertEqual(sock.getsockname(), real.getpeername())

    def test_poll(self) -> None:
        """poll: nothing, then POLLOUT alone."""
        server = self.held()
        sock = self.begin(server)
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
        self.assertEqual(poll.poll(100), [])
        server.release()
        self.assertEqual(poll.poll(1000 * SECONDS), [(sock.fileno(), select.POLLOUT)])
        self.talk(sock)

    def test_epoll(self) -> None:
        """epoll by level, registered while the connect is pending."""
        server = self.held()
        sock = self.begin(server)
        with epolled(sock, select.EPOLLIN | select.EPOLLOUT) as epoll:
            self.assertEqual(epoll.poll(0.1), [])
            server.release()
            self.assertEqual(epoll.poll(SECONDS), [(sock.fileno(), select.EPOLLOUT)])
            self.assertEqual(epoll.poll(SECONDS), [(sock.fileno(), select.EPOLLOUT)])
        self.talk(sock)

    def test_edgeBefore(self) -> None:
        """Edge-triggered epoll, registered before connect."""
        server = self.held()
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        with epolled(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET) as epoll:
            epoll.poll(0)  # a new TCP socket says EPOLLOUT | EPOLLHUP
            sock.connect_ex(server.address)
            server.release()
            self.assertEqual(edges(epoll, select.EPOLLOUT), select.EPOLLOUT)
            self.assertEqual(connectError(sock), 0)
            sock.send(b"ping")
            self.assertTrue(epoll.poll(SECONDS)[0][1] & select.EPOLLIN)
            self.assertEqual(sock.recv(10), b"ping")
        self.assertEqual(sock.getpeername(), server.address)

    def test_failure(self) -> None:
        """A failed handshake: writable and readable, SO_ERROR says why, once; then the socket is new."""
        bad = self.held(serverContext(otherCA().issue([NAME])))
        good = self.server(echo)
        sock = self.begin(bad)
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        bad.release()
        events = poll.poll(1000 * SECONDS)[0][1]
        self.assertTrue(events & select.POLLOUT and events & (select.POLLERR | select.POLLHUP), f"{events:#x}")
        self.assertEqual(connectError(sock), errno.EKEYREJECTED)
        self.assertEqual(connectError(sock), 0)
        self.assertNotEqual(self.tlsError(sock), "")
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        self.assertEqual(sock.connect_ex(good.address), errno.EINPROGRESS)
        self.writable(sock)
        self.assertEqual(connectError(sock), 0)
        self.talk(sock)

    def test_failureByConnect(self) -> None:
        """A second connect after the failure tells the error too, and the third starts anew."""
        bad = self.held(serverContext(otherCA().issue([NAME])))
        good = self.server(echo)
        sock = self.begin(bad)
        bad.release()
        self.writable(sock)
        self.assertEqual(sock.connect_ex(good.address), errno.EKEYREJECTED)
        self.assertEqual(sock.connect_ex(good.address), errno.EINPROGRESS)
        self.writable(sock)
        self.assertEqual(connectError(sock), 0)
        self.talk(sock)

    def test_failureEdge(self) -> None:
        """Edge-triggered epoll tells a failure."""
        bad = self.held(serverContext(otherCA().issue([NAME])))
        sock = self.begin(bad)
        with epolled(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET) as epoll:
            self.assertEqual(epoll.poll(0.1), [])
            bad.release()
            events = epoll.poll(SECONDS)[0][1]
            self.assertTrue(events & (select.EPOLLERR | select.EPOLLHUP))
        self.assertEqual(connectError(sock), errno.EKEYREJECTED)

    def test_refused(self) -> None:
        """ECONNREFUSED by SO_ERROR."""
        closed = self.plainListener()
        address = closed.getsockname()
        closed.close()
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        self.assertIn(sock.connect_ex(address), (errno.EINPROGRESS, errno.ECONNREFUSED))
        self.writable(sock)
        self.assertEqual(connectError(sock), errno.ECONNREFUSED)

    def test_receiveAfterFailure(self) -> None:
        """A recv or send after a failure tells the error as TCP does, never data."""
        bad = self.held(serverContext(otherCA().issue([NAME])))
        sock = self.begin(bad)
        bad.release()
        self.writable(sock)
        with self.assertRaises(OSError) as caught:
            sock.send(b"secret", socket.MSG_NOSIGNAL)
        # SO_ERROR and connect tell the reason; a send that comes before them only has to fail.
        self.assertIn(
            caught.exception.errno,
            (errno.EKEYREJECTED, errno.ECONNABORTED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN),
        )
        self.assertEqual(sock.connect_ex(bad.address), errno.EKEYREJECTED)

    def test_becomesBlocking(self) -> None:
        """O_NONBLOCK taken away while the connect is pending: send waits for the handshake."""
        server = self.held()
        sock = self.begin(server)
        sock.setblocking(True)
        releasing = threading.Timer(DELAY, server.release)
        releasing.start()
        self.talk(sock)
        releasing.join()

    def test_manyAtOnce(self) -> None:
        """Many in progress from one thread."""
        server = self.held()
        socks = [self.clientSocket(flags=socket.SOCK_NONBLOCK) for _ in range(AT_ONCE)]
        for sock in socks:
            self.assertEqual(sock.connect_ex(server.address), errno.EINPROGRESS)
        server.release()
        left = set(socks)
        end = time.monotonic() + 15 * PATIENCE
        while left and time.monotonic() < end:
            for sock in select.select([], list(left), [], 1)[1]:
                self.assertEqual(connectError(sock), 0)
                left.discard(sock)
        self.assertEqual(left, set())
        for sock in socks[::10]:
            self.talk(sock)

    def test_quick(self) -> None:
        """A program that sends and shuts down in the moment that it may, fifty times."""
        server = self.server(echo)
        for _ in range(50):
            sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
            sock.connect_ex(server.address)
            self.writable(sock)
            sock.send(b"quick")
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(True)
            self.assertEqual(self.rest(sock), b"quick")
        server.join()
        self.assertEqual(server.failures, [])

    def test_shutdownPending(self) -> None:
        """shutdown while connecting gives ENOTCONN or ends the attempt as TCP does; nothing hangs."""
        server = self.held()
        ordinary = self.keep(socket.socket())
        self.fails(errno.ENOTCONN, ordinary.shutdown, socket.SHUT_RDWR)
        sock = self.begin(server)
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError as failure:
            self.assertEqual(failure.errno, errno.ENOTCONN)
        server.release()
        self.writable(sock)


class Names(TLSCase):
    """Addresses of connections."""

    def test_families(self) -> None:
        """IPv4, IPv6 and IPv4-mapped addresses."""
        for host, family, target in (
            ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
            ("::1", socket.AF_INET6, "::1"),
            ("127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
        ):
            with self.subTest(target=target):
                server = self.server(echo, host=host)
                sock = self.clientSocket(family)
                sock.connect((target, server.address[1]))
                self.assertEqual(sock.getpeername()[:2], (target, server.address[1]))
                self.assertEqual(sock.getsockname()[0], target)
                sock.sendall(b"x")
                self.assertEqual(sock.recv(1), b"x")

    def test_onlySix(self) -> None:
        """IPV6_V6ONLY: a mapped address is unreachable."""
        server = self.server(echo)
        ordinary = self.keep(socket.socket(socket.AF_INET6))
        ordinary.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with self.assertRaises(OSError) as expected:
            ordinary.connect(("::ffff:127.0.0.1", server.address[1]))
        assert expected.exception.errno is not None
        sock = self.clientSocket(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.fails(expected.exception.errno, sock.connect, ("::ffff:127.0.0.1", server.address[1]))

    def test_otherFamily(self) -> None:
        """An IPv6 address on an IPv4 socket: EAFNOSUPPORT."""
        sock = self.clientSocket()
        packed = struct.pack("=H", socket.AF_INET6) + bytes(26)
        ctypes.set_errno(0)
        self.assertEqual(LIBC.connect(sock.fileno(), packed, len(packed)), -1)
        self.assertEqual(ctypes.get_errno(), errno.EAFNOSUPPORT)

    def test_bound(self) -> None:
        """bind before connect decides the source address and port that the peer sees."""
        listener = self.plainListener()
        accepting = Thread(lambda: self.peerOf(listener))
        probe = self.keep(socket.socket())
        probe.bind(("127.0.0.2", 0))
        source = probe.getsockname()
        probe.close()
        sock = self.clientSocket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(source)
        self.assertEqual(sock.getsockname(), source)
        sock.connect(listener.getsockname())
        self.assertEqual(sock.getsockname(), source)
        self.assertEqual(accepting.result().sock.getpeername(), source)

    def test_unbound(self) -> None:
        """A new socket has no name and no peer, as TCP's."""
        for family in (socket.AF_INET, socket.AF_INET6):
            ordinary, sock = self.keep(socket.socket(family)), self.tlsSocket(family)
            self.assertEqual(sock.getsockname(), ordinary.getsockname())
            self.fails(errno.ENOTCONN, sock.getpeername)

    def test_addressIsTheName(self) -> None:
        """Without TLS_REMOTE_HOSTNAME the certificate must name the address."""
        sock = self.clientSocket(name="")
        sock.connect(self.server(echo).address)
        other = self.server(echo, serverContext(testCA().issue(["elsewhere.example"])), quiet=True)
        self.fails(errno.EKEYREJECTED, self.clientSocket(name="").connect, other.address)

    def test_socketTypes(self) -> None:
        """Only stream sockets: others fail as the kernel says."""
        for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RDM):
            with self.subTest(kind=kind), self.assertRaises(OSError) as caught:
                self.keep(socket.socket(socket.AF_INET, kind, IPPROTO_TLS))
            self.assertIn(caught.exception.errno, (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPERM))
        with self.assertRaises(OSError):
            self.keep(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, IPPROTO_TLS))

    def test_socketFlags(self) -> None:
        """SOCK_NONBLOCK and SOCK_CLOEXEC, and none."""
        for flags in (0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC):
            descriptor = LIBC.socket(socket.AF_INET, socket.SOCK_STREAM | flags, IPPROTO_TLS)
            self.assertGreaterEqual(descriptor, 0)
            self.addCleanup(os.close, descriptor)
            self.assertEqual(os.get_blocking(descriptor), not flags & socket.SOCK_NONBLOCK)
            self.assertEqual(os.get_inheritable(descriptor), not flags & socket.SOCK_CLOEXEC)


class SelfTalk(TLSCase):
    """Clients and servers of one program."""

    def test_clientHello(self) -> None:
        """The peer of an ordinary client is a TLS listener that has two names."""
        listener = self.listener()
        peer = self.peerTo(listener.getsockname(), context=clientContext())
        sock = self.keep(listener.accept()[0])
        self.assertEqual(sock.getsockopt(IPPROTO_TLS, Option.TLS_HOSTNAME, 100).rstrip(b"\0"), NAME.encode())
        peer.send(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def test_manyPairs(self) -> None:
        """Twenty connections between sockets of the same program, in both directions."""
        pairs = [self.bothEnds() for _ in range(20)]
        for number, (client, server) in enumerate(pairs):
            client.sendall(bytes([number]) * 1000)
            self.assertEqual(self.exactly(server, 1000), bytes([number]) * 1000)
            server.sendall(bytes([number]) * 1000)
            server.close()
            self.assertEqual(self.rest(client), bytes([number]) * 1000)

    def test_bothSixes(self) -> None:
        """The same over IPv6."""
        listener = self.listener(("::1", 0))
        client = self.clientSocket(socket.AF_INET6)
        client.connect(listener.getsockname())
        server = self.keep(listener.accept()[0])
        self.assertEqual(client.getsockname(), server.getpeername())
        client.sendall(b"x")
        self.assertEqual(server.recv(1), b"x")

    def test_nonblockingBoth(self) -> None:
        """One thread, no waiting call: connect, accept, talk."""
        listener = self.listener(flags=socket.SOCK_NONBLOCK)
        client = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        self.assertRaises(BlockingIOError, listener.accept)
        self.assertEqual(client.connect_ex(listener.getsockname()), errno.EINPROGRESS)
        self.writable(client)
        self.readable(listener)
        server = self.keep(listener.accept()[0])
        server.setblocking(False)
        server.send(b"hello")
        self.readable(client)
        self.assertEqual(client.recv(10), b"hello")
