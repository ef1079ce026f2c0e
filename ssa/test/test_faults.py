# SPDX-License-Identifier: MIT
"""What programs see when a part of the system dies: an errno within a second, never a hang, never a clean end."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable

from ssa.test.sessions import DEADLINE, Session, SessionTestCase

PROMPT = 1.0
"""Seconds in which a program must get its errno."""


def within(condition: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    """Whether a condition comes true in time; looks at it often."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        select.select([], [], [], 0.01)
    return condition()


class Peer:
    """A TLS server of this process that says hello and then keeps the connection."""

    def __init__(self, test: SessionTestCase, greet: bool = True) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.connections: list[socket.socket] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(test.environment["SSA_TEST_CHAIN"], test.environment["SSA_TEST_KEY"])

        def serve() -> None:
            while True:
                try:
                    sock, _ = self.listener.accept()
                    if greet:
                        sock = context.wrap_socket(sock, server_side=True)
                        sock.sendall(b"hello")
                    self.connections.append(sock)
                except OSError:
                    if self.listener.fileno() < 0:
                        return

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        test.addCleanup(self.close)

    def close(self) -> None:
        """End it."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join()
        for sock in self.connections:
            sock.close()


class DaemonDeathTests(SessionTestCase):
    """The daemon is killed, or told to stop, at each moment of a socket's life."""

    killer = signal.SIGKILL

    def kill(self, session: Session, name: str = "ssa-daemon") -> None:
        """Send the signal of this class of tests."""
        os.kill(session.pid(name), self.killer)

    def assertPrompt(self, line: str, *errors: str) -> None:
        """A line is one of some errors and a time within a second."""
        name, took = line.split()
        self.assertIn(name, errors)
        self.assertLess(float(took), PROMPT)

    def test_blockingConnect(self) -> None:
        """A program blocked in connect(2) gets ENETDOWN."""
        peer = Peer(self, greet=False)
        session = self.start(
            f"""
            sock = client()
            say("begin")
            result, took = attempt(sock.connect, ("127.0.0.1", {peer.port}))
            say(result, time.time())
            """
        )
        self.assertEqual(session.line(), "begin")
        self.assertTrue(within(lambda: len(peer.connections) == 1))
        begin = time.time()
        self.kill(session)
        name, at = session.line().split()
        self.assertEqual(name, "ENETDOWN")
        self.assertLess(float(at) - begin, PROMPT)
        self.assertEqual(session.wait(), 0)

    def test_nonBlockingConnect(self) -> None:
        """A program that polls for its connection sees an error, and SO_ERROR says ENETDOWN."""
        peer = Peer(self, greet=False)
        session = self.start(
            f"""
            sock = client()
            sock.setblocking(False)
            say(errno.errorcode[sock.connect_ex(("127.0.0.1", {peer.port}))])
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            begin = time.monotonic()
            events = poll.poll(15000)
            say(bool(events), errno.errorcode[sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)], time.time())
            """
        )
        self.assertEqual(session.line(), "EINPROGRESS")
        self.assertTrue(within(lambda: len(peer.connections) == 1))
        begin = time.time()
        self.kill(session)
        events, name, at = session.line().split()
        self.assertEqual((events, name), ("True", "ENETDOWN"))
        self.assertLess(float(at) - begin, PROMPT)

    def test_connected(self) -> None:
        """An established connection gives the data that came, then ECONNRESET; never a clean end of stream."""
        peer = Peer(self)
        session = self.start(
            f"""
            sock = client()
            sock.connect(("127.0.0.1", {peer.port}))
            say(sock.recv(100, socket.MSG_PEEK).decode())
            sys.stdin.readline()
            say(sock.recv(100).decode())
            say(attempt(sock.recv, 100)[0])
            say(attempt(client)[0])
            """
        )
        self.assertEqual(session.line(), "hello")
        self.kill(session)
        session.tell("go")
        self.assertEqual(session.line(), "hello")
        self.assertEqual(session.line(), "ECONNRESET")
        self.assertEqual(session.line(), "ENETDOWN")

    def test_transfer(self) -> None:
        """In the middle of a transfer both directions end with an error."""
        peer = Peer(self)
        session = self.start(
            f"""
            sock = client()
            sock.connect(("127.0.0.1", {peer.port}))
            sock.recv(5)
            say("sending")
            try:
                while True:
                    sock.sendall(bytes(65536))
            except OSError as error:
                say(errno.errorcode[error.errno], time.time())
            """
        )
        self.assertEqual(session.line(), "sending")
        self.assertTrue(within(lambda: len(peer.connections) == 1))
        self.assertGreater(len(peer.connections[0].recv(65536)), 0)
        begin = time.time()
        self.kill(session)
        name, at = session.line().split()
        self.assertIn(name, ("ECONNRESET", "EPIPE"))
        self.assertLess(float(at) - begin, PROMPT + 0.5 * (self.killer != signal.SIGKILL))

    def test_listener(self) -> None:
        """A blocked accept(2) gets ENETDOWN, and so does each later call."""
        session = self.start(
            """
            server = listener()
            say("listening")
            result, took = attempt(server.accept)
            say(result, time.time())
            say(attempt(server.accept)[0], attempt(server.listen)[0], attempt(client)[0])
            """
        )
        self.assertEqual(session.line(), "listening")
        begin = time.time()
        self.kill(session)
        name, at = session.line().split()
        self.assertEqual(name, "ENETDOWN")
        self.assertLess(float(at) - begin, PROMPT)
        self.assertEqual(session.line(), "ENETDOWN ENETDOWN ENETDOWN")

    def test_polledListener(self) -> None:
        """Whoever polls a listener wakes up."""
        session = self.start(
            """
            server = listener()
            server.setblocking(False)
            poll = select.poll()
            poll.register(server, select.POLLIN)
            say("listening")
            say(bool(poll.poll(15000)), attempt(server.accept)[0], time.time())
            """
        )
        self.assertEqual(session.line(), "listening")
        begin = time.time()
        self.kill(session)
        events, name, at = session.line().split()
        self.assertEqual((events, name), ("True", "ENETDOWN"))
        self.assertLess(float(at) - begin, PROMPT)

    def test_options(self) -> None:
        """Options of a socket whose daemon is gone: ENETDOWN, and TLS_ERROR says so."""
        session = self.start(
            """
            sock = client()
            say("made")
            sys.stdin.readline()
            say(attempt(sock.setsockopt, 205, 85, b"localhost")[0], attempt(sock.getsockopt, 205, 96, 8)[0])
            say(sock.getsockopt(205, 100, 1000).decode())
            """
        )
        self.assertEqual(session.line(), "made")
        daemon = session.pid("ssa-daemon")
        self.kill(session)
        self.assertTrue(within(lambda: daemon not in session.processes()))
        session.tell("go")
        self.assertEqual(session.line(), "ENETDOWN ENETDOWN")
        self.assertIn("daemon", session.line())


class DaemonStopTests(DaemonDeathTests):
    """The same for a daemon that is told to stop with SIGTERM."""

    killer = signal.SIGTERM


class SupervisorDeathTests(SessionTestCase):
    """The supervisor, or the process that holds the private network, is killed."""

    def test_blockingConnect(self) -> None:
        """A program blocked in connect(2) gets ENOSYS from the kernel, and goes on."""
        peer = Peer(self, greet=False)
        session = self.start(
            f"""
            sock = client()
            say("begin")
            result, took = attempt(sock.connect, ("127.0.0.1", {peer.port}))
            say(result, time.time())
            sys.exit(7)
            """
        )
        self.assertEqual(session.line(), "begin")
        self.assertTrue(within(lambda: len(peer.connections) == 1))
        begin = time.time()
        os.kill(session.pid("ssa-supervisor"), signal.SIGKILL)
        name, at = session.line().split()
        self.assertEqual(name, "ENOSYS")
        self.assertLess(float(at) - begin, PROMPT)
        self.assertEqual(session.wait(), 7)

    def test_poll(self) -> None:
        """A program that polls for its connection wakes up with an error."""
        peer = Peer(self, greet=False)
        session = self.start(
            f"""
            sock = client()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", {peer.port}))
            say("begin")
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            events = poll.poll(15000)
            say(events[0][1] & select.POLLERR if events else 0, time.time())
            """
        )
        self.assertEqual(session.line(), "begin")
        self.assertTrue(within(lambda: len(peer.connections) == 1))
        begin = time.time()
        os.kill(session.pid("ssa-supervisor"), signal.SIGKILL)
        events, at = session.line().split()
        self.assertNotEqual(events, "0")
        self.assertLess(float(at) - begin, PROMPT)

    def test_connectedGoesOn(self) -> None:
        """A connection that stands is the daemon's and goes on."""
        peer = Peer(self)
        session = self.start(
            f"""
            sock = client()
            sock.connect(("127.0.0.1", {peer.port}))
            say(sock.recv(100).decode())
            sys.stdin.readline()
            sock.sendall(b"still here")
            say(sock.recv(100).decode())
            """
        )
        self.assertEqual(session.line(), "hello")
        os.kill(session.pid("ssa-supervisor"), signal.SIGKILL)
        session.tell("go")
        self.assertEqual(peer.connections[0].recv(100), b"still here")
        peer.connections[0].sendall(b"goodbye")
        self.assertEqual(session.line(), "goodbye")
        self.assertEqual(session.wait(), 0)

    def test_networkHelper(self) -> None:
        """Without the namespace helper new sockets fail at once; the program does not hang."""
        session = self.start(
            """
            client()
            say("begin")
            sys.stdin.readline()
            result, took = attempt(client)
            say(result, took)
            """
        )
        self.assertEqual(session.line(), "begin")
        helper = session.pid("ssa-network")
        os.kill(helper, signal.SIGKILL)
        self.assertTrue(within(lambda: helper not in session.processes()))
        session.tell("go")
        name, took = session.line().split()
        self.assertEqual(name, "ENETDOWN")
        self.assertLess(float(took), PROMPT)


class ProgramDeathTests(SessionTestCase):
    """The program is killed: nothing of it stays."""

    def test_connected(self) -> None:
        """The peer of a connection sees its end."""
        peer = Peer(self)
        session = self.start(
            f"""
            sock = client()
            sock.connect(("127.0.0.1", {peer.port}))
            say(os.getpid())
            sys.stdin.readline()
            """
        )
        pid = int(session.line())
        self.assertTrue(within(lambda: len(peer.connections) == 1))
        os.kill(pid, signal.SIGKILL)
        peer.connections[0].settimeout(PROMPT)
        self.assertEqual(peer.connections[0].recv(1), b"")
        self.assertEqual(session.wait(), 128 + signal.SIGKILL)

    def test_connecting(self) -> None:
        """The peer of a connection whose handshake runs sees its end."""
        peer = Peer(self, greet=False)
        session = self.start(
            f"""
            say(os.getpid())
            client().connect(("127.0.0.1", {peer.port}))
            """
        )
        pid = int(session.line())
        self.assertTrue(within(lambda: len(peer.connections) == 1))
        sock = peer.connections[0]
        sock.settimeout(PROMPT)
        self.assertNotEqual(sock.recv(65536), b"")  # the ClientHello
        os.kill(pid, signal.SIGKILL)
        try:
            self.assertEqual(sock.recv(65536), b"")
        except ConnectionResetError:
            return

    def test_listening(self) -> None:
        """The port of a listener in whose accept(2) it was blocked is free."""
        session = self.start(
            """
            server = listener()
            say(os.getpid(), server.getsockname()[1])
            server.accept()
            """
        )
        pid, port = (int(word) for word in session.line().split())
        os.kill(pid, signal.SIGKILL)

        def free() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) != 0

        self.assertTrue(within(free, PROMPT))
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


class DescriptorTests(SessionTestCase):
    """Descriptors run out, on each side: an errno, and everything works again when there are some."""

    def test_exhaustion(self) -> None:
        """With very few descriptors for everybody, connections fail with an errno and later ones succeed."""
        peer = Peer(self)
        session = self.start(
            f"""
            socks, errors = [], set()
            for _ in range(80):
                try:
                    sock = client()
                    socks.append(sock)
                    sock.connect(("127.0.0.1", {peer.port}))
                except OSError as error:
                    errors.add(errno.errorcode[error.errno])
                    if len(socks) > 70 or error.errno == errno.EMFILE:
                        break
            say(" ".join(sorted(errors)))
            for sock in socks:
                sock.close()
            for _ in range(100):
                sock = client()
                try:
                    sock.connect(("127.0.0.1", {peer.port}))
                    say(sock.recv(5).decode())
                    break
                except OSError:
                    sock.close()
                    time.sleep(0.05)
            """,
            limit=64,
        )
        errors = session.line(60).split()
        self.assertTrue(errors)
        self.assertLessEqual(set(errors), {"EMFILE", "ENFILE", "ENOBUFS"})
        self.assertEqual(session.line(60), "hello")
