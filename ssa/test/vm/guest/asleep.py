# SPDX-License-Identifier: MIT
"""A daemon that does nothing: whom it may keep waiting, and how much one user can make the kernel keep for it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from errno import EAGAIN, EALREADY, EINPROGRESS, EMFILE, ENOBUFS, ENOTCONN
from pathlib import Path

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import Thread
from ssa.test.conformance.peers import echo
from ssa.test.vm.guest.case import SECONDS, SLOWER, USER, GuestCase, run, setOption

_OTHER = USER + 1
_PARAMETERS = Path("/sys/module/ssa/parameters")
_QUICK = 2.0 * SLOWER
"""Seconds: what takes less has not waited for the daemon, who does not go on before it is told to."""
_MANY = 300
"""Attempts at a time: more messages than fit into a netlink socket's receive buffer of the usual size."""


class SleepingCase(GuestCase):
    """A case in which the daemon does nothing for a while."""

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """The daemon does nothing during the block."""
        self.daemon.pause()
        try:
            yield
        finally:
            self.daemon.resume()

    @contextlib.contextmanager
    def quick(self, what: str) -> Iterator[None]:
        """Say that a block has waited for nobody."""
        begun = time.monotonic()
        yield
        self.assertLess(time.monotonic() - begun, _QUICK, f"{what} waits for the daemon")


class NonBlocking(SleepingCase):
    """Non-blocking calls never wait."""

    def test_connect(self) -> None:
        """An attempt is EINPROGRESS at once, pending for poll, and goes on with the daemon."""
        server = self.server(echo)
        sock = self.clientSocket()
        with self.asleep():
            sock.setblocking(False)
            with self.quick("connect"):
                self.fails(EINPROGRESS, sock.connect, server.address)
                self.fails(EALREADY, sock.connect, server.address)
            poll = select.poll()
            poll.register(sock, select.POLLIN | select.POLLOUT)
            with self.quick("poll"):
                self.assertEqual(poll.poll(0), [])
                self.assertEqual(poll.poll(300), [])
            with self.quick("other calls"):
                self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
                self.fails(EAGAIN, sock.recv, 1)
                self.fails(EAGAIN, sock.send, b"x")
                self.fails(ENOTCONN, sock.getpeername)
        self.writable(sock, SECONDS)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        sock.setblocking(True)
        sock.sendall(b"hello")
        self.assertEqual(self.exactly(sock, 5), b"hello")

    def test_many(self) -> None:
        """So are hundreds; all of them succeed when the daemon goes on, and those that were closed meanwhile are gone."""
        server = self.server(echo)
        sockets = [self.clientSocket() for _ in range(_MANY)]
        with self.asleep():
            begun = time.monotonic()
            for sock in sockets:
                sock.setblocking(False)
                self.fails(EINPROGRESS, sock.connect, server.address)
            fresh = [self.tlsSocket() for _ in range(_MANY)]
            for sock in fresh + sockets[::3]:
                sock.close()
            self.assertLess(time.monotonic() - begun, _MANY * 0.5 * SLOWER, "something waits")
        for sock in sockets:
            if sock.fileno() >= 0:
                self.writable(sock, 2 * SECONDS)
                self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        sock = sockets[1]
        sock.setblocking(True)
        sock.sendall(b"hello")
        self.assertEqual(self.exactly(sock, 5), b"hello")

    def test_established(self) -> None:
        """Connections: what has come can be read, what fits can be sent, and then EAGAIN; close does not wait either."""
        pairs = [self.connected(), self.accepted()]
        for sock, peer in pairs:
            peer.send(b"before")
            self.readable(sock, SECONDS)
        listener = self.listener()
        listener.setblocking(False)
        with self.asleep():
            for sock, peer in pairs:
                sock.setblocking(False)
                peer.send(b"later")
                sent = 0
                with self.quick("sending and receiving"):
                    self.assertEqual(sock.recv(100), b"before")
                    self.fails(EAGAIN, sock.recv, 100)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            sent += sock.send(bytes(1 << 16))
                self.assertGreater(sent, 0)
                with self.quick("close"):
                    sock.close()
            with self.quick("accept"):
                self.fails(EAGAIN, listener.accept)
        for _, peer in pairs:
            self.assertGreater(len(peer.exactly(1 << 16)), 0, "what was sent arrives")

    def test_accept(self) -> None:
        """A connection that comes meanwhile is accepted when the daemon goes on."""
        listener = self.listener()
        listener.setblocking(False)
        with self.asleep():
            calling = Thread(lambda: self.peerTo(listener.getsockname()))
            with self.quick("accept"):
                self.fails(EAGAIN, listener.accept)
        self.readable(listener, SECONDS)
        listener.accept()[0].close()
        self.assertEqual(calling.result(SECONDS).rest(), b"")


class Interrupted(SleepingCase):
    """Calls that do wait end with a signal."""

    def test_killed(self) -> None:
        """A program that waits can be killed at once, and leaves nothing behind."""
        silent = self.plainListener().getsockname()
        calls = (
            lambda: self.clientSocket().connect(silent),
            lambda: setOption(self.tlsSocket(), Option.TLS_REMOTE_HOSTNAME, b"a.example"),
            lambda: self.tlsSocket().getsockopt(IPPROTO_TLS, Option.TLS_ID, 8),
        )
        for sig in (signal.SIGTERM, signal.SIGKILL):
            with self.asleep():
                children = [self.child(call) for call in calls]
                time.sleep(1.0)
                for pid in children:
                    self.assertEqual(os.waitpid(pid, os.WNOHANG), (0, 0), "the call does not wait")
                    os.kill(pid, sig)
                for pid in children:
                    self.reap(pid, -sig)
        client, _ = self.bothEnds()
        client.sendall(b"x")


class Limits(SleepingCase):
    """The bounds of one user."""

    def limit(self, name: str, value: int) -> None:
        """Set a parameter of the module for the time of the case."""
        path = _PARAMETERS / name
        old = path.read_text()
        path.write_text(str(value))
        self.addCleanup(path.write_text, old)

    def exhaust(self, number: int, most: int) -> list[socket.socket]:
        """Make sockets until that fails with an errno; there must not be more than so many then."""
        sockets: list[socket.socket] = []
        with self.quick("socket"):
            for _ in range(most):
                try:
                    sockets.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS))
                except OSError as failure:
                    self.assertEqual(failure.errno, number, str(failure))
                    return sockets
            self.fails(number, socket.socket, socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        return sockets

    def others(self) -> None:
        """Other users, root among them, make sockets as ever."""

        def make() -> None:
            sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) for _ in range(5)]
            self.assertEqual(len({sock.fileno() for sock in sockets}), 5)

        self.inChild(make, _OTHER)
        self.inChild(make)

    def test_sockets(self) -> None:
        """A user has max_sockets sockets and not one more; closing one makes room for one, with the daemon asleep too."""
        self.limit("max_sockets", 10)

        def greedy() -> None:
            sockets = self.exhaust(EMFILE, 10)
            self.assertEqual(len(sockets), 10)
            for _ in range(30):
                sockets.pop().close()
                self.assertEqual(len(self.exhaust(EMFILE, 1)), 1, "a socket that is closed counts no more")
                sockets = self.refill(sockets, 10)

        def sleeping() -> None:
            with contextlib.ExitStack() as stack:
                sockets = [stack.enter_context(sock) for sock in self.exhaust(EMFILE, 10)]
                self.assertEqual(len(sockets), 10)

        self.inChild(greedy, USER)
        with self.asleep():
            self.inChild(sleeping, USER)
            self.others()
        self.inChild(greedy, USER)

    def refill(self, sockets: list[socket.socket], size: int) -> list[socket.socket]:
        """As many sockets as there may be."""
        return sockets + [socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) for _ in range(size - len(sockets))]

    def test_accepted(self) -> None:
        """Accepted sockets count for the listener's user; others than him are not troubled, and room is used again."""
        self.limit("max_sockets", 4)

        def serve() -> None:
            listener = self.listener()
            for _ in range(3):
                kept = []
                for _ in range(3):  # with the listener they are four
                    calling = Thread(lambda: self.peerTo(listener.getsockname()))
                    self.readable(listener, SECONDS)
                    kept.append(listener.accept()[0])
                    calling.result(SECONDS)
                self.fails(EMFILE, socket.socket, socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
                late = Thread(lambda: self.peerTo(listener.getsockname()).rest())
                with self.assertRaises(Exception) as refused:
                    late.result(SECONDS)
                self.assertNotIsInstance(refused.exception, TimeoutError, "who is one too many is let go")
                self.assertEqual(select.select([listener], [], [], 0)[0], [])
                for sock in kept:
                    sock.close()

        self.inChild(serve, USER)

    def test_events(self) -> None:
        """
        A user has max_events events that the daemon has not answered, however he makes them and closes his sockets; others
        go on.  When the daemon goes on, so does he.
        """
        self.limit("max_events", 40)
        full, tell = os.pipe()
        goes, go = os.pipe()

        def greedy() -> None:
            sockets = self.exhaust(ENOBUFS, 40)
            self.assertGreater(len(sockets), 5)
            for sock in sockets:
                sock.close()
            self.assertEqual(len(self.exhaust(ENOBUFS, 1)), 0, "closed sockets leave events, which still count")
            os.write(tell, b"!")
            self.assertEqual(os.read(goes, 1), b"!")
            self.awaitRoom()
            sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)]
            setOption(sockets[0], Option.TLS_REMOTE_HOSTNAME, b"a.example")
            client, server = self.bothEnds()
            client.sendall(b"x")
            self.assertEqual(server.recv(1), b"x")

        self.daemon.pause()
        self.addCleanup(self.daemon.resume)
        pid = self.child(lambda: self.inChild(greedy, USER))
        os.close(tell)
        self.assertEqual(os.read(full, 1), b"!", "the user's program has failed")
        self.others()
        self.daemon.resume()
        os.write(go, b"!")
        self.reap(pid, seconds=2 * SECONDS)
        for descriptor in (full, goes, go):
            os.close(descriptor)

    def hasRoom(self) -> bool:
        """Whether the user may have a dozen sockets at a time: the daemon has answered nearly all of his events."""
        with contextlib.ExitStack() as stack:
            try:
                for _ in range(12):
                    stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS))
            except OSError as failure:
                self.assertEqual(failure.errno, ENOBUFS, str(failure))
                return False
        return True

    def awaitRoom(self) -> None:
        """Wait until the daemon has answered this user's events; each look makes new ones, so not too often."""
        deadline = time.monotonic() + SECONDS
        while not self.hasRoom():
            self.assertLess(time.monotonic(), deadline, "the user may not make sockets again")
            time.sleep(0.5)
        time.sleep(0.5)

    def test_waiting(self) -> None:
        """Calls that wait count as well, and those that were interrupted do not."""
        self.limit("max_events", 30)

        def patient() -> None:
            sock = self.tlsSocket()
            # Again and again: on a slow machine the first one may come before the call.
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            for _ in range(100):
                with contextlib.suppress(InterruptedError):
                    setOption(sock, Option.TLS_REMOTE_HOSTNAME, b"a.example")
            signal.setitimer(signal.ITIMER_REAL, 0)

        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, True)
        self.addCleanup(signal.signal, signal.SIGALRM, signal.SIG_DFL)
        self.inChild(self.awaitRoom, USER)
        with self.asleep():
            self.inChild(patient, USER)
        self.inChild(self.awaitRoom, USER)


if __name__ == "__main__":
    sys.exit(run())
