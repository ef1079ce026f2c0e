# SPDX-License-Identifier: MIT
"""
Users who make a shared daemon wait: the daemon's thread really is blocked here, until the guard ends it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import InternetAddress, Option
from ssa.errors import SSAError
from ssa.interfaces import Fetched
from ssa.policy.profile import Profile
from ssa.stallguard import StallGuard
from ssa.test.badservers import echo, running, serverContext
from ssa.test.fakes import tcpPair
from ssa.test.loopback import LoopbackInterceptor, Program
from ssa.test.pki import testCA
from ssa.test.test_daemon import DaemonCase, after, exchange

reactor: Any = _reactor

USER = 4711
"""The hostile one."""

LINGER = b"\1\0\0\0\x40\0\0\0"


def clearNonBlocking(sock: socket.socket) -> None:
    """What an interceptor can do at any time with its duplicate."""
    flags = fcntl.fcntl(sock.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(sock.fileno(), fcntl.F_SETFL, flags & ~os.O_NONBLOCK)


class GuardTests(SynchronousTestCase):
    """The guard alone; this thread is the one that it watches."""

    def setUp(self) -> None:
        self.found: list[int] = []
        self.guard = StallGuard(self, self.found.append, tick=0.02)
        self.addCleanup(self.guard.stop)
        self.calls: list[tuple[Callable[[int], None], int]] = []

    def callFromThread(self, call: Callable[[int], None], uid: int) -> None:
        """IReactorFromThreads."""
        self.calls.append((call, uid))

    def logged(self) -> list[str]:
        """What the guard logs from now on."""
        lines: list[str] = []

        class Log:
            """Only errors."""

            def error(self, format: str, **values: object) -> None:
                lines.append(format.format(**values))

        self.patch(self.guard, "_log", Log())
        return lines

    def pair(self, uid: int = USER) -> tuple[socket.socket, socket.socket]:
        ours, theirs = tcpPair()
        for sock in (ours, theirs):
            self.addCleanup(sock.close)
        ours.setblocking(False)
        self.guard.watch(ours.fileno(), uid)
        return ours, theirs

    def ends(self, call: Callable[[], object], *errors: type[Exception]) -> None:
        """A call that would block ends, and the user is found."""
        late = threading.Timer(10, os._exit, [99])
        late.start()
        try:
            call()
        except errors:
            pass
        finally:
            late.cancel()
        self.assertEqual([USER], [uid for _, uid in self.calls])
        for each, uid in self.calls:
            each(uid)
        self.assertEqual([USER], self.found)

    def test_recv(self) -> None:
        """recv(2) of Python's own, which goes on after a signal."""
        ours, _ = self.pair()
        clearNonBlocking(ours)
        self.ends(lambda: self.assertEqual(b"", ours.recv(1)))

    def test_openSSL(self) -> None:
        """OpenSSL's read(2)."""
        ours, _ = self.pair()
        connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), ours)
        connection.set_connect_state()
        clearNonBlocking(ours)
        self.ends(connection.do_handshake, SSL.Error)

    def test_drip(self) -> None:
        """A byte now and then, so that no single call takes long."""
        ours, theirs = self.pair()
        connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), ours)
        connection.set_connect_state()
        clearNonBlocking(ours)
        over = threading.Event()

        def drip() -> None:
            theirs.send(b"\x16\x03\x03\x40\x00")
            while not over.wait(0.005):
                try:
                    theirs.send(b"\x02")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(over.set)
        began = time.monotonic()
        self.ends(connection.do_handshake, SSL.Error)
        self.assertLess(time.monotonic() - began, 5)

    def test_send(self) -> None:
        """send(2) to a peer that does not read."""
        ours, _ = self.pair()
        clearNonBlocking(ours)
        self.ends(lambda: ours.sendall(bytes(1 << 26)), OSError)

    def test_accept(self) -> None:
        """accept(2), for which there is no MSG_DONTWAIT."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        listener.setblocking(False)
        self.guard.watch(listener.fileno(), USER)
        clearNonBlocking(listener)
        self.ends(listener.accept, OSError)

    def test_close(self) -> None:
        """close(2) with SO_LINGER, while the peer's window is closed."""
        ours, theirs = self.pair()
        try:
            while True:
                ours.send(bytes(65536))
        except BlockingIOError:
            pass
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        self.ends(ours.close)
        theirs.close()

    def test_othersAreLeftAlone(self) -> None:
        """What another user has handed over works on, and so does a number that is somebody else's now."""
        other, peer = self.pair(uid=5000)
        reused, _ = self.pair()
        mine, yours = tcpPair()
        self.addCleanup(mine.close)
        self.addCleanup(yours.close)
        number = reused.fileno()
        reused.close()
        os.dup2(mine.fileno(), number)
        self.addCleanup(os.close, number)
        ours, _ = self.pair()
        clearNonBlocking(ours)
        self.ends(lambda: ours.recv(1))
        for one, two in ((other, peer), (mine, yours)):
            one.send(b"still here")
            self.assertEqual(b"still here", two.recv(100))

    def test_uninterruptible(self) -> None:
        """What cannot be ended is logged once, with the user, and nobody is shut down for it."""
        errors = self.logged()
        self.patch(self.guard, "_look", lambda: (USER, "D"))
        ours, theirs = self.pair()
        end = time.monotonic() + 5
        while not errors and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)
        self.assertEqual([f"the daemon is held up in the kernel over a socket of user {USER}"], errors)
        theirs.send(b"open")
        self.assertEqual(([], b"open"), (self.calls, ours.recv(100)))

    def test_blind(self) -> None:
        """A kernel that does not tell is logged, and the guard ends."""
        errors = self.logged()
        self.pair()
        self.guard._task = "/nonexistent"
        thread = self.guard._thread
        assert thread is not None
        thread.join(5)
        self.assertFalse(thread.is_alive())
        self.assertEqual(1, len(errors))

    def test_workIsNoStall(self) -> None:
        """A thread that computes, or sleeps elsewhere, is nobody's fault."""
        self.pair()
        unknown, peer = tcpPair()
        self.addCleanup(unknown.close)
        self.addCleanup(peer.close)
        end = time.monotonic() + 0.15
        while time.monotonic() < end:
            sum(range(1000))
        time.sleep(0.15)
        unknown.settimeout(0.15)
        self.assertRaises(TimeoutError, unknown.recv, 1)
        self.assertEqual([], self.calls)


class _HostileInterceptor(LoopbackInterceptor):
    """
    Keeps making the real sockets blocking.

    @ivar waitsForRelay: whether it leaves them alone for now.
    """

    def __init__(self, reactor: Any, sock: socket.socket) -> None:
        super().__init__(reactor, sock, USER)
        self.kept: list[socket.socket] = []
        self.waitsForRelay = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._flip)
        self._thread.start()

    def fetch(self, id: int, remote: InternetAddress | None) -> Fetched:
        fetched = super().fetch(id, remote)
        self.keep(fetched.fd)
        return fetched

    def keep(self, fd: int) -> None:
        """Have one more duplicate."""
        self.kept.append(socket.socket(fileno=os.dup(fd)))

    def _flip(self) -> None:
        while not self._over.wait(0.001):
            for sock in () if self.waitsForRelay else tuple(self.kept):
                clearNonBlocking(sock)

    def shutDown(self) -> None:
        self._over.set()
        self._thread.join()
        for sock in self.kept:
            sock.close()
        super().shutDown()


class DaemonTests(DaemonCase):
    """A daemon with two users, one of them hostile."""

    profile = Profile(handshakeTimeout=5.0)

    def setUp(self) -> None:
        super().setUp()
        self.accused: list[int] = []
        abortUser = self.daemon.dispatcher.abortUser

        def accuse(uid: int) -> None:
            self.accused.append(uid)
            abortUser(uid)

        self.patch(self.daemon.dispatcher, "abortUser", accuse)
        self.hostile = self.newUser()

    def newUser(self) -> _HostileInterceptor:
        """A link of another user; where the tests may not become one, the kernel's answer is made up."""
        if os.geteuid() == 0:
            os.seteuid(USER)
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            finally:
                os.seteuid(0)
            self.daemon.adopt(theirs)
        else:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with mock.patch("ssa.protocol.daemon.peerCredentials", return_value=(os.getpid(), USER)):
                self.daemon.adopt(theirs)
        interceptor = _HostileInterceptor(reactor, ours)
        self.addCleanup(self.end, interceptor)
        return interceptor

    async def connected(self, interceptor: LoopbackInterceptor, port: int) -> Program:
        program = await interceptor.newSocket()
        await interceptor.set(program, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
        await interceptor.set(program, Option.TLS_REMOTE_HOSTNAME, b"server.example")
        if await interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port)):
            raise AssertionError("no connection")
        return program

    def check(self, attack: Callable[[], Any]) -> Deferred[None]:
        """The good user's connection survives an attack, the hostile user's link does not."""

        async def test() -> None:
            late = threading.Timer(15, os._exit, [99])
            late.start()
            try:
                with running(echo(serverContext(testCA().issue(["server.example"])))) as server:
                    good = await self.connected(self.interceptor, server.port)
                    await attack()
                    await self.hostile.end.lost
                    assert good.plain is not None
                    self.assertEqual(b"on", await deferToThread(exchange, good.plain, b"on"))
            finally:
                late.cancel()
            for _ in range(100):
                if self.daemon.dispatcher.sockets <= 1:
                    break
                await after(0.02)
            self.assertEqual([USER], self.accused)

        return self.run_(test())

    def test_handshake(self) -> Deferred[None]:
        """A handshake whose server begins a record and stops."""

        def serve(sock: socket.socket) -> None:
            sock.recv(4096)
            time.sleep(0.05)
            sock.sendall(b"\x16\x03\x03")
            sock.recv(1)

        async def attack() -> None:
            with running(serve) as server:
                try:
                    await self.connected(self.hostile, server.port)
                except (SSAError, AssertionError):
                    return
                self.fail("a handshake without a peer")

        return self.check(attack)

    def test_relay(self) -> Deferred[None]:
        """An established connection whose peer begins a record and stops."""

        async def attack() -> None:
            context = serverContext(testCA().issue(["server.example"]))

            def serve(sock: socket.socket) -> None:
                spare = sock.dup()
                with spare, context.wrap_socket(sock, server_side=True) as tls:
                    tls.recv(1)
                    spare.sendall(b"\x17\x03\x03")
                    tls.recv(1)

            with running(serve) as server:
                self.hostile.waitsForRelay = True
                program = await self.connected(self.hostile, server.port)
                self.hostile.waitsForRelay = False
                await after(0.01)
                assert program.plain is not None
                program.plain.send(b"x")
                await self.hostile.end.lost

        return self.check(attack)

    def test_listener(self) -> Deferred[None]:
        """accept(2) when there is nothing more to accept."""

        async def attack() -> None:
            program = await self.hostile.newSocket()
            credential = testCA().issue(["server.example"])
            await self.hostile.set(program, Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
            await self.hostile.set(program, Option.TLS_PRIVATE_KEY, credential.keyPEM)
            address = await self.hostile.listen(program)
            await after(0.01)
            with socket.create_connection(("127.0.0.1", address.port)):
                await self.hostile.end.lost

        return self.check(attack)
