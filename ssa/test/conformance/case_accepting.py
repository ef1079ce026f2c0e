# SPDX-License-Identifier: MIT
"""
bind(2), listen(2), accept(2): names, flags, waiting, sharing, limits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
from functools import partial
from typing import Any

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS
from ssa.test.conformance.case import LIBC, Thread, TLSCase, epolled
from ssa.test.conformance.peers import SECONDS, Peer, clientContext

SOMAXCONN_ALL = -1


class _Listening(TLSCase):
    def dial(self, listener: socket.socket) -> Peer:
        """An ordinary client whose handshake is done; accept has a connection for it at once or before long."""
        return self.peerTo(listener.getsockname())

    def take(self, listener: socket.socket) -> socket.socket:
        """accept, after waiting for readiness."""
        self.readable(listener)
        return self.keep(listener.accept()[0])

    def accept4(self, listener: socket.socket, flags: int) -> int:
        """accept4(2) itself; the descriptor, or minus the errno."""
        ctypes.set_errno(0)
        descriptor = int(LIBC.accept4(listener.fileno(), None, None, flags))
        if descriptor >= 0:
            self.addCleanup(self._closeQuietly, descriptor)
        return descriptor if descriptor >= 0 else -ctypes.get_errno()

    def _closeQuietly(self, descriptor: int) -> None:
        try:
            os.close(descriptor)
        except OSError as failure:
            if failure.errno != errno.EBADF:
                raise


class Accepting(_Listening):
    """accept(2) and accept4(2)."""

    def test_address(self) -> None:
        """accept tells the client's real address, getpeername and getsockname agree."""
        for host in ("127.0.0.1", "::1"):
            with self.subTest(host=host):
                listener = self.listener((host, 0))
                peer = self.dial(listener)
                self.readable(listener)
                sock, address = listener.accept()
                self.keep(sock)
                self.assertEqual(address, peer.sock.getsockname())
                self.assertEqual(sock.getpeername(), address)
                self.assertEqual(sock.getsockname(), peer.sock.getpeername())
                self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), IPPROTO_TLS)

    def test_addressLength(self) -> None:
        """accept cuts the address to the buffer and tells its whole length."""
        listener = self.listener()
        peer = self.dial(listener)
        self.readable(listener)
        buffer, length = ctypes.create_string_buffer(b"\xaa" * 16, 16), ctypes.c_uint(4)
        descriptor = LIBC.accept(listener.fileno(), buffer, ctypes.byref(length))
        self.assertGreaterEqual(descriptor, 0)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(length.value, 16)
        port = peer.sock.getsockname()[1]
        self.assertEqual(buffer.raw, struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + b"\xaa" * 12)

    def test_fault(self) -> None:
        """EFAULT for an address buffer that is not there; the listener lives on."""
        listener = self.listener()
        self.dial(listener)
        self.readable(listener)
        ctypes.set_errno(0)
        length = ctypes.c_uint(16)
        self.assertEqual(LIBC.accept(listener.fileno(), ctypes.c_void_p(1), ctypes.byref(length)), -1)
        self.assertEqual(ctypes.get_errno(), errno.EFAULT)
        peer = self.dial(listener)
        self.readable(listener)
        sock = self.keep(listener.accept()[0])
        if sock.getpeername() != peer.sock.getsockname():  # the first may have been kept
            sock = self.take(listener)
        peer.send(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def test_flags(self) -> None:
        """SOCK_NONBLOCK and SOCK_CLOEXEC of accept4, none inherited from the listener; unknown ones: EINVAL."""
        for inherited in (0, socket.SOCK_NONBLOCK):
            listener = self.listener(flags=inherited)
            for flags in (0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC):
                with self.subTest(inherited=inherited, flags=flags):
                    self.dial(listener)
                    self.readable(listener)
                    descriptor = self.accept4(listener, flags)
                    self.assertGreaterEqual(descriptor, 0)
                    self.assertEqual(os.get_blocking(descriptor), not flags & socket.SOCK_NONBLOCK)
                    self.assertEqual(os.get_inheritable(descriptor), not flags & socket.SOCK_CLOEXEC)
            self.assertEqual(self.accept4(listener, 0x100), -errno.EINVAL)

    def test_lowestNumber(self) -> None:
        """The lowest free descriptor, as for every call."""
        listener = self.listener()
        self.dial(listener)
        self.readable(listener)
        free = os.open("/dev/null", os.O_RDONLY)
        os.close(free)
        self.assertEqual(self.accept4(listener, 0), free)

    def test_nonblocking(self) -> None:
        """EAGAIN while nobody has come."""
        listener = self.listener(flags=socket.SOCK_NONBLOCK)
        self.assertRaises(BlockingIOError, listener.accept)
        peer = self.dial(listener)
        sock = self.take(listener)
        self.assertEqual(sock.getpeername(), peer.sock.getsockname())
        self.assertRaises(BlockingIOError, listener.accept)

    def test_onlyFinished(self) -> None:
        """A client that has not done its handshake, and one whose handshake fails, are never seen."""
        listener = self.listener(flags=socket.SOCK_NONBLOCK)
        silent = self.keep(socket.create_connection(listener.getsockname()))
        garbage = self.keep(socket.create_connection(listener.getsockname()))
        garbage.sendall(b"GET / HTTP/1.0\r\n\r\n")
        impossible = clientContext(version=0x0303)
        impossible.set_cipher_list(b"AES128-SHA:@SECLEVEL=0")
        with self.assertRaises((SSL.Error, OSError)):
            self.peerTo(listener.getsockname(), context=impossible)
        self.assertEqual(select.select([listener], [], [], 0.1)[0], [])
        self.assertRaises(BlockingIOError, listener.accept)
        good = self.dial(listener)
        sock = self.take(listener)
        self.assertEqual(sock.getpeername(), good.sock.getsockname())
        silent.close()
        self.assertRaises(BlockingIOError, listener.accept)

    def test_blocks(self) -> None:
        """accept waits."""
        listener = self.listener()
        accepting = Thread(listener.accept)
        time.sleep(0.1)
        peer = self.dial(listener)
        sock, address = accepting.result()
        self.keep(sock)
        self.assertEqual(address, peer.sock.getsockname())

    def test_timeout(self) -> None:
        """SO_RCVTIMEO: EAGAIN."""
        listener = self.listener()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 150_000))
        begun = time.monotonic()
        self.assertEqual(self.accept4(listener, 0), -errno.EAGAIN)
        self.assertTrue(0.1 < time.monotonic() - begun < 3)
        self.dial(listener)
        self.readable(listener)
        self.assertGreaterEqual(self.accept4(listener, 0), 0)

    def test_interrupted(self) -> None:
        """A signal: EINTR, or the call goes on with SA_RESTART."""
        listener = self.listener()
        previous = signal.signal(signal.SIGUSR1, lambda *_: None)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)

        def disturb(thenDial: bool) -> None:
            time.sleep(0.1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if thenDial:
                time.sleep(0.1)
                self.dial(listener)

        signal.siginterrupt(signal.SIGUSR1, True)
        disturbing = Thread(lambda: disturb(False))
        self.assertEqual(self.accept4(listener, 0), -errno.EINTR)
        disturbing.result()
        signal.siginterrupt(signal.SIGUSR1, False)
        disturbing = Thread(lambda: disturb(True))
        self.assertGreaterEqual(self.accept4(listener, 0), 0)
        disturbing.result()

    def test_shutdownWakes(self) -> None:
        """shutdown of a listener wakes a waiting accept with EINVAL."""
        listener = self.listener()
        accepting = Thread(lambda: self.fails(errno.EINVAL, listener.accept))
        time.sleep(0.1)
        listener.shutdown(socket.SHUT_RD)
        accepting.result()

    def test_notListening(self) -> None:
        """EINVAL on a socket that does not listen."""
        self.fails(errno.EINVAL, self.clientSocket().accept)
        client, _ = self.bothEnds()
        self.fails(errno.EINVAL, client.accept)

    def test_threads(self) -> None:
        """Several threads wait; each connection is given to one."""
        listener = self.listener()
        threads = [Thread(listener.accept) for _ in range(8)]
        time.sleep(0.1)
        peers = [self.dial(listener) for _ in range(8)]
        addresses = {thread.result()[1] for thread in threads}
        self.assertEqual(addresses, {peer.sock.getsockname() for peer in peers})

    def test_processes(self) -> None:
        """Forked workers share a listener; all connections are served, each by one."""
        listener = self.listener()

        def worker() -> None:
            for _ in range(5):
                sock, _ = listener.accept()
                sock.sendall(str(os.getpid()).encode())
                sock.close()

        children = [self.child(worker) for _ in range(4)]
        served = []
        for _ in range(20):
            served.append(int(self.dial(listener).rest()))
        for pid in children:
            self.reap(pid)
        self.assertEqual(sorted(served), sorted(children * 5))

    def test_pollingProcesses(self) -> None:
        """Workers that wait with epoll and a non-blocking accept: one gets it, the others EAGAIN."""
        listener = self.listener(flags=socket.SOCK_NONBLOCK)

        def worker() -> None:
            with epolled(listener, select.EPOLLIN) as epoll:
                while True:
                    epoll.poll(10)
                    try:
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    sock.setblocking(True)
                    if sock.recv(1) == b"q":
                        return
                    sock.sendall(b"done")
                    sock.close()

        children = [self.child(worker) for _ in range(3)]
        for _ in range(20):
            peer = self.dial(listener)
            peer.send(b"x")
            self.assertEqual(peer.rest(), b"done")
        quitting = []
        for _ in children:
            quitting.append(self.dial(listener))
            quitting[-1].send(b"q")
        for pid in children:
            self.reap(pid)

    def test_inherited(self) -> None:
        """An accepted socket has its listener's options, as TCP's."""
        listener = self.listener()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3, 0))
        self.dial(listener)
        sock = self.take(listener)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16), struct.pack("ll", 3, 0))


class Readiness(_Listening):
    """Readable means that a finished connection waits."""

    def test_level(self) -> None:
        """select, poll and epoll agree, as long as one waits."""
        listener = self.listener()
        poll = select.poll()
        poll.register(listener, select.POLLIN | select.POLLOUT)
        with epolled(listener, select.EPOLLIN | select.EPOLLOUT) as epoll:
            self.assertEqual((poll.poll(0), epoll.poll(0)), ([], []))
            self.dial(listener)
            self.dial(listener)
            for _ in range(2):
                self.assertEqual(poll.poll(1000 * SECONDS), [(listener.fileno(), select.POLLIN)])
                self.assertEqual(epoll.poll(SECONDS), [(listener.fileno(), select.EPOLLIN)])
                self.assertEqual(select.select([listener], [listener], [], SECONDS), ([listener], [], []))
                self.keep(listener.accept()[0])
                time.sleep(0.05)
            self.assertEqual((poll.poll(0), epoll.poll(0)), ([], []))

    def test_edge(self) -> None:
        """Edge-triggered epoll, registered before listen and after: an event for each connection that comes."""
        for early in (True, False):
            with self.subTest(early=early):
                listener = self.tlsSocket(flags=socket.SOCK_NONBLOCK)
                self.certify(listener)
                listener.bind(("127.0.0.1", 0))
                with select.epoll() as epoll:
                    if early:
                        epoll.register(listener, select.EPOLLIN | select.EPOLLET)
                        epoll.poll(0)
                    listener.listen()
                    if not early:
                        epoll.register(listener, select.EPOLLIN | select.EPOLLET)
                    for _ in range(5):
                        epoll.poll(0)
                        self.dial(listener)
                        self.assertTrue(epoll.poll(SECONDS)[0][1] & select.EPOLLIN)
                        self.keep(listener.accept()[0])
                        self.assertRaises(BlockingIOError, listener.accept)

    def test_gone(self) -> None:
        """A client that has hung up meanwhile is still accepted, with what it sent and how it ended."""
        listener = self.listener()
        peer = self.dial(listener)
        peer.send(b"bye")
        peer.closeNotify()
        peer.close()
        sock = self.take(listener)
        self.assertEqual(self.rest(sock), b"bye")
        broken = self.dial(listener)
        broken.reset()
        sock = self.take(listener)
        self.fails(errno.ECONNRESET, sock.recv, 1)


class Limits(_Listening):
    """Backlogs and descriptors."""

    def test_backlog(self) -> None:
        """More clients than the backlog: they wait, and all are served in the end."""
        for backlog in (0, 1, 2):
            with self.subTest(backlog=backlog):
                listener = self.listener(backlog=backlog)
                threads = [Thread(partial(self._echoed, listener)) for _ in range(12)]
                time.sleep(0.2)
                for _ in threads:
                    self.readable(listener)
                    sock = listener.accept()[0]
                    sock.sendall(self.exactly(sock, 4))
                    sock.close()
                for thread in threads:
                    thread.result()

    def _echoed(self, listener: socket.socket) -> None:
        peer = self.dial(listener)
        peer.send(b"ping")
        self.assertEqual(peer.rest(), b"ping")

    def test_negativeBacklog(self) -> None:
        """A negative backlog is as much as there may be."""
        listener = self.listener(backlog=SOMAXCONN_ALL)
        self.dial(listener)
        self.take(listener)

    def test_listenAgain(self) -> None:
        """listen again changes the backlog."""
        listener = self.listener(backlog=1)
        listener.listen(10)
        self.dial(listener)
        self.take(listener)

    def test_noDescriptors(self) -> None:
        """EMFILE of socket and accept; nothing is lost, the connection waits."""
        listener = self.listener()
        peer = self.dial(listener)
        self.readable(listener)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = os.open("/dev/null", os.O_RDONLY)
        os.close(used)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, before[1]))
            descriptors = []
            try:
                while True:
                    descriptors.append(os.open("/dev/null", os.O_RDONLY))
            except OSError as failure:
                self.assertEqual(failure.errno, errno.EMFILE)
            got = [self._errno(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)),
                   self._errno(listener.accept)]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        self.assertEqual(got, [errno.EMFILE, errno.EMFILE])
        sock = self.take(listener)
        peer.send(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def _errno(self, call: Any) -> int | None:
        try:
            call()
        except OSError as failure:
            return failure.errno
        return None


class Binding(_Listening):
    """bind(2): the real address space and the caller's rights."""

    def test_inUse(self) -> None:
        """EADDRINUSE against ordinary sockets and against TLS sockets, both ways."""
        ordinary = self.plainListener()
        sock = self.tlsSocket()
        self.certify(sock)
        self.fails(errno.EADDRINUSE, sock.bind, ordinary.getsockname())
        listener = self.listener()
        other = self.tlsSocket()
        self.certify(other)
        self.fails(errno.EADDRINUSE, other.bind, listener.getsockname())
        self.fails(errno.EADDRINUSE, self.keep(socket.socket()).bind, listener.getsockname())
        other.bind(("127.0.0.1", 0))
        other.listen()
        self.dial(other)
        self.take(other)

    def test_freed(self) -> None:
        """A closed listener's address is free again at once."""
        listener = self.listener()
        address = listener.getsockname()
        listener.close()
        ordinary = self.keep(socket.socket())
        self.eventually(lambda: self._binds(ordinary, address), "the address to be free")
        ordinary.close()
        self.dial(self.listener(address))

    def _binds(self, sock: socket.socket, address: Any) -> bool:
        try:
            sock.bind(address)
        except OSError:
            return False
        return True

    def test_privileged(self) -> None:
        """Ports below 1024: as the caller may."""
        sock, ordinary = self.tlsSocket(), self.keep(socket.socket())
        for port in (1, 843, 1023):
            outcomes = []
            for each in (ordinary, sock):
                try:
                    each.bind(("127.0.0.1", port))
                    outcomes.append(0)
                except OSError as failure:
                    outcomes.append(failure.errno or 0)
            if not outcomes[0]:
                return  # allowed, and the second is in use
            self.assertEqual(outcomes[0], outcomes[1])

    def test_notLocal(self) -> None:
        """EADDRNOTAVAIL for an address of another machine."""
        self.fails(errno.EADDRNOTAVAIL, self.tlsSocket().bind, ("192.0.2.1", 0))

    def test_family(self) -> None:
        """Addresses of another family: as the kernel says."""
        ctypes.set_errno(0)
        six = struct.pack("=H", socket.AF_INET6) + bytes(26)
        sock = self.tlsSocket()
        self.assertEqual(LIBC.bind(sock.fileno(), six, len(six)), -1)
        self.assertEqual(ctypes.get_errno(), errno.EAFNOSUPPORT)
        self.assertEqual(LIBC.bind(sock.fileno(), six, 3), -1)
        self.assertEqual(ctypes.get_errno(), errno.EINVAL)
        self.assertEqual(LIBC.bind(sock.fileno(), ctypes.c_void_p(1), 16), -1)
        self.assertEqual(ctypes.get_errno(), errno.EFAULT)

    def test_twice(self) -> None:
        """EINVAL for a second bind."""
        sock = self.tlsSocket()
        sock.bind(("127.0.0.1", 0))
        self.fails(errno.EINVAL, sock.bind, ("127.0.0.1", 0))

    def test_name(self) -> None:
        """getsockname tells the port that bind or listen chose, before and after listen."""
        sock = self.tlsSocket()
        self.certify(sock)
        sock.bind(("127.0.0.1", 0))
        name = sock.getsockname()
        self.assertNotEqual(name[1], 0)
        sock.listen()
        self.assertEqual(sock.getsockname(), name)
        unbound = self.tlsSocket()
        self.certify(unbound)
        unbound.listen()
        self.assertEqual(unbound.getsockname()[0], "0.0.0.0")
        self.assertNotEqual(unbound.getsockname()[1], 0)
        self.peerTo(("127.0.0.1", unbound.getsockname()[1]))
        self.take(unbound)

    def test_reuseAddress(self) -> None:
        """SO_REUSEADDR: a server starts again while old connections remain."""
        listener = self.listener()
        address = listener.getsockname()
        peer = self.dial(listener)
        sock = self.take(listener)
        listener.close()
        self.eventually(lambda: not self._answers(address), "the listener to be gone")
        again = self.listener(address)
        self.assertEqual(again.getsockname(), address)
        self.dial(again)
        self.take(again)
        peer.send(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def _answers(self, address: Any) -> bool:
        try:
            socket.create_connection(address, 1).close()
        except OSError:
            return False
        return True

    def test_reusePort(self) -> None:
        """SO_REUSEPORT: several listeners share an address, every client is served by one."""
        listeners = []
        address: Any = ("127.0.0.1", 0)
        for _ in range(3):
            sock = self.tlsSocket(flags=socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self.certify(sock)
            sock.bind(address)
            address = sock.getsockname()
            sock.listen()
            listeners.append(sock)
        for _ in range(30):
            peer = self.peerTo(address)
            ready = select.select(listeners, [], [], SECONDS)[0]
            self.assertEqual(len(ready), 1)
            sock = self.keep(ready[0].accept()[0])
            self.assertEqual(sock.getpeername(), peer.sock.getsockname())
            sock.send(b"x")
            self.assertEqual(peer.exactly(1), b"x")

    def test_everyAddress(self) -> None:
        """0.0.0.0 and :: are reached by every local address, which getsockname of the connection tells."""
        listener = self.listener(("0.0.0.0", 0))
        for host in ("127.0.0.1", "127.0.0.2"):
            self.peerTo((host, listener.getsockname()[1]))
            self.assertEqual(self.take(listener).getsockname()[0], host)
        self.assertEqual(listener.getsockname()[0], "0.0.0.0")

    def test_mapped(self) -> None:
        """A listener on :: serves IPv4 clients under mapped addresses, unless IPV6_V6ONLY."""
        listener = self.tlsSocket(socket.AF_INET6)
        self.certify(listener)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        port = listener.getsockname()[1]
        peer = self.peerTo(("127.0.0.1", port))
        sock = self.take(listener)
        self.assertEqual(sock.getpeername()[:2], ("::ffff:127.0.0.1", peer.sock.getsockname()[1]))
        self.assertEqual(sock.getsockname()[:2], ("::ffff:127.0.0.1", port))
        self.peerTo(("::1", port))
        self.assertEqual(self.take(listener).getsockname()[0], "::1")

    def test_onlySix(self) -> None:
        """IPV6_V6ONLY: IPv4 has the port for itself."""
        listener = self.tlsSocket(socket.AF_INET6)
        self.certify(listener)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(("::", 0))
        listener.listen()
        port = listener.getsockname()[1]
        self.fails(errno.ECONNREFUSED, socket.create_connection, ("127.0.0.1", port), 2)
        four = self.listener(("0.0.0.0", port))
        self.peerTo(("127.0.0.1", port))
        self.assertEqual(self.take(four).getsockname()[0], "127.0.0.1")
        self.peerTo(("::1", port))
        self.assertEqual(self.take(listener).getsockname()[0], "::1")

    def test_close(self) -> None:
        """Closing a listener ends what waits at it and refuses what comes."""
        listener = self.listener()
        address = listener.getsockname()
        peer = self.dial(listener)
        self.readable(listener)
        listener.close()
        with self.assertRaises((SSL.Error, OSError)):
            while True:
                peer.send(b"x")
                time.sleep(0.01)
        self.eventually(lambda: not self._answers(address), "refusal")
