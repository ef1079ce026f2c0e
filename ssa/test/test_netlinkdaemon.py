# SPDX-License-Identifier: MIT
"""The daemon behind generic netlink: the cases of the unix socket again, with a kernel module in memory; and its own."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

from ssa.api import DataPath, HostnameAddress, InternetAddress, Option, Role
from ssa.errors import SSAError
from ssa.policy.profile import Limits, Policy, Profile
from ssa.protocol.kernelport import State
from ssa.protocol.messages import EndOfStream
from ssa.service import Daemon
from ssa.test import badservers, test_daemon, test_errnotable
from ssa.test.badservers import echo, running, serverContext
from ssa.test.fakemodule import FakeModule, ModuleProgram
from ssa.test.fakes import openDescriptors
from ssa.test.loopback import Program
from ssa.test.pki import testCA
from ssa.test.test_daemon import after, exchange

reactor: Any = _reactor


class BehindNetlink:
    """Mixed into the cases of the unix socket: a module instead of a supervisor."""

    daemon: Daemon
    addCleanup: Any
    interceptor: Any

    def newInterceptor(self) -> FakeModule:
        self.module = FakeModule()
        self.module.load()
        self.daemon.serveKernel(self.module.system)
        self.addCleanup(self.module.shutDown)
        return self.module


class ClientTests(BehindNetlink, test_daemon.ClientTests):
    """connect(2) to good servers."""


class RefusalTests(BehindNetlink, test_daemon.RefusalTests):
    """Refusals that come late."""


class NameTests(BehindNetlink, test_daemon.NameTests):
    """connect(2) to a name."""


class ListenerTests(BehindNetlink, test_daemon.ListenerTests):
    """listen(2) and accept(2)."""


class ErrnoTableTests(BehindNetlink, test_errnotable.ErrnoTableTests):
    """The table of errnos."""

    async def test_unreachable(self) -> None:
        """TCP: connect(2) itself fails, here for a broadcast address; the module passes that on."""
        program = await self.client()
        number = await self.interceptor.connect(program, HostnameAddress("127.255.255.255", 443))
        self.assertEqual(errno.ENETUNREACH, number)
        self.assertIn("unreachable", await self.interceptor.error(program))


class EndTests(BehindNetlink, test_daemon.EndTests):
    """How things end when one side goes away."""

    def test_interceptorLost(self) -> Deferred[None]:
        """
        An established connection outlives the netlink socket; what is pending does not.  Nobody can vouch for a clean end of it
        any more.  The daemon registers again and serves new sockets.
        """

        async def test() -> None:
            module = self.module
            with running(badservers.stalling) as stalling, running(echo(serverContext(testCA().issue()))) as good:
                connected = await self.client()
                address = InternetAddress(socket.AF_INET, "127.0.0.1", good.port)
                self.assertEqual(0, await module.connect(connected, address))
                pending = await self.client()
                waiting = module.startConnect(pending, InternetAddress(socket.AF_INET, "127.0.0.1", stalling.port))
                await after(0.05)
                lost = module.lost
                module.close()
                await lost
                answer: Any = await waiting
                self.assertEqual(-errno.ENETDOWN, answer.result)
                await after(0.05)
                self.assertEqual((1, 1, 0), self.counts())
                plain: Any = connected.plain
                plain.sendall(b"still here")
                self.assertEqual(b"still here", await deferToThread(plain.recv, 100))
                plain.shutdown(socket.SHUT_WR)
                await self.assertFailure(deferToThread(plain.recv, 100), ConnectionResetError)
                for _ in range(100):
                    if not self.daemon.dispatcher.sockets:
                        break
                    await after(0.02)
                self.assertEqual((0, 0, 0), self.counts())
                await module.whenRegistered()
                again = await self.client()
                self.assertEqual(0, await module.connect(again, address))

        return self.run_(test())

    def counts(self) -> tuple[int, int, int]:
        dispatcher = self.daemon.dispatcher
        return dispatcher.relays, dispatcher.sockets, dispatcher.handshakes


class ModuleTests(BehindNetlink, test_daemon.DaemonCase):
    """What only the module has."""

    profile = Profile(handshakeTimeout=5.0, limits=Limits(maxPendingEvents=3))
    module: FakeModule

    async def connected(self, port: int) -> Program:
        program = await self.client()
        self.assertEqual(0, await self.module.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port)))
        return program

    async def test_cleanEnd(self) -> None:
        """The daemon vouches for an end before it shows it, once."""
        with running(echo(serverContext(testCA().issue()))) as server:
            program = await self.connected(server.port)
            assert program.plain is not None
            self.assertEqual(b"data", await deferToThread(exchange, program.plain, b"data"))
            vouched = [one for one in self.module.requests if isinstance(one, EndOfStream)]
            self.assertEqual([EndOfStream(program.id)], vouched)

    async def test_networkEnds(self) -> None:
        """The module holds the TCP socket too: the peer sees the end all the same, while the program keeps its socket."""
        ends: list[Any] = []

        def watch(sock: socket.socket) -> None:
            with serverContext(testCA().issue()).wrap_socket(sock, server_side=True) as tls:
                tls.recv(100)
                ends.append(tls.unwrap())
                try:
                    ends.append(ends.pop().recv(100))
                except ConnectionResetError:
                    ends.append("reset")

        def resets(sock: socket.socket) -> None:
            with serverContext(testCA().issue()).wrap_socket(sock, server_side=True) as tls:
                tls.sendall(b"hello")
                # Python's ssl does not tell a reset from an end.
                with socket.socket(fileno=tls.detach()) as raw:
                    raw.settimeout(5)
                    try:
                        ends.append(raw.recv(100))
                    except ConnectionResetError:
                        ends.append("reset")

        with running(watch) as server:
            program = await self.connected(server.port)
            assert program.plain is not None
            self.assertEqual(b"", await deferToThread(exchange, program.plain, b"data"))
            await self.until(lambda: bool(ends))
            self.assertEqual([b""], ends)
        with running(resets) as server:
            program = await self.connected(server.port)
            assert program.plain is not None
            self.assertEqual(b"hello", await deferToThread(program.plain.recv, 100))
            self.daemon.dispatcher.abortAll()
            await self.until(lambda: len(ends) > 1)
            self.assertEqual([b"", "reset"], ends)

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(200):
            if holds():
                return
            await after(0.01)

    async def test_truncated(self) -> None:
        """It does not vouch for any other end."""
        with running(badservers.truncate(serverContext(testCA().issue()))) as server:
            program = await self.connected(server.port)
            plain = program.plain
            assert plain is not None
            self.assertEqual(b"some data", await deferToThread(plain.recv, 100))
            plain.sendall(b"x")
            await self.assertFailure(deferToThread(plain.recv, 100), ConnectionResetError)
            self.assertFalse(any(isinstance(one, EndOfStream) for one in self.module.requests))

    async def test_closedBeforeVouched(self) -> None:
        """The program closes while the daemon wants to vouch: the connection ends all the same."""
        with running(echo(serverContext(testCA().issue()))) as server:
            program = await self.connected(server.port)
            assert program.plain is not None
            program.plain.shutdown(socket.SHUT_WR)
            self.module.close(program)
            for _ in range(100):
                if not self.daemon.dispatcher.sockets:
                    break
                await after(0.02)
            self.assertEqual(0, self.daemon.dispatcher.sockets)

    async def test_descriptors(self) -> None:
        """Connections, good and bad, leave none behind."""
        with running(echo(serverContext(testCA().issue()))) as good, running(badservers.notTLS) as bad:
            await self.connected(good.port)
            self.module.shutDown()
            await after(0.1)
            before = openDescriptors()
            for port in (good.port, bad.port) * 3:
                program = await self.client()
                await self.module.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port))
                self.module.close(program)
            for _ in range(100):
                if not self.daemon.dispatcher.sockets and openDescriptors() <= before:
                    break
                await after(0.02)
            self.assertEqual((0, before), (self.daemon.dispatcher.sockets, openDescriptors()))

    async def listening(self, backlog: int) -> tuple[ModuleProgram, InternetAddress]:
        program: Any = await self.module.newSocket()
        credential = testCA().issue(["one.example"])
        await self.module.set(program, Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
        await self.module.set(program, Option.TLS_PRIVATE_KEY, credential.keyPEM)
        return program, await self.module.listen(program, backlog)

    def greet(self, port: int) -> bytes:
        """Be a client that says something and waits for the answer."""
        context = ssl.create_default_context(cadata=testCA().pem.decode())
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="one.example") as tls:
            tls.sendall(b"hello")
            return tls.recv(100)

    async def test_backPressure(self) -> None:
        """A full backlog makes connections wait, and each accept takes one of them over."""
        self.module.acceptsAtOnce = False
        listener, address = await self.listening(0)
        talking = DeferredList([deferToThread(self.greet, address.port) for _ in range(4)], consumeErrors=True)
        for _ in range(200):
            if self.daemon.dispatcher.handshakes == 0 and listener.queue:
                break
            await after(0.01)
        await after(0.3)
        self.assertEqual(1, len(listener.queue))
        for _ in range(4):
            for _ in range(200):
                if listener.queue:
                    break
                await after(0.01)
            accepted = self.module.accept(listener)
            assert accepted.plain is not None
            self.assertEqual(b"hello", await deferToThread(accepted.plain.recv, 100))
            accepted.plain.sendall(b"welcome")
        self.assertEqual([(True, b"welcome")] * 4, await talking)

    async def test_listenerClosedWhileFull(self) -> None:
        """Connections that wait for a listener end with it."""
        self.module.acceptsAtOnce = False
        listener, address = await self.listening(0)
        talking = DeferredList([deferToThread(self.greet, address.port) for _ in range(3)], consumeErrors=True)
        for _ in range(200):
            if listener.queue:
                break
            await after(0.01)
        await after(0.1)
        self.module.close(listener)
        for succeeded, got in await talking:
            self.assertTrue(not succeeded or got == b"", got)
        for _ in range(100):
            if not self.daemon.dispatcher.sockets:
                break
            await after(0.02)
        self.assertEqual(0, self.daemon.dispatcher.sockets)

    async def test_oneUserIsNotAll(self) -> None:
        """Calls of one user that wait count for that user only, although all come over one link."""
        with running(badservers.stalling) as stalling:
            address = InternetAddress(socket.AF_INET, "127.0.0.1", stalling.port)
            programs = [await self.client() for _ in range(4)]
            waiting = [self.module.startConnect(program, address) for program in programs[:3]]
            self.assertEqual(errno.ENOBUFS, await self.module.connect(programs[3], address))
            self.module.uid += 1
            with running(echo(serverContext(testCA().issue()))) as good:
                await self.connected(good.port)
            self.module.shutDown()
            await DeferredList(waiting)

    async def test_reload(self) -> None:
        """The module is removed and loaded again, with new numbers for everything."""
        first = await self.module.newSocket()
        self.module.close(first)
        await after(0.05)
        self.module.unload()
        await after(0.05)
        self.assertEqual(State.WAITING, self.daemon.kernelState)
        self.assertEqual(0, self.daemon.dispatcher.sockets)
        self.module.load()
        await self.module.whenRegistered()
        second = await self.module.newSocket()
        self.assertEqual((first.id, 2), (second.id, self.module.registrations))
        self.assertEqual(State.REGISTERED, self.daemon.kernelState)

    async def test_restart(self) -> None:
        """A second daemon stands by, and takes over when the first one stops; programs go on with it."""
        await self.module.newSocket()
        other = Daemon(reactor, Policy(self.profile))
        other.serveKernel(self.module.system)
        other.startService()
        self.addCleanup(other.stopService)
        await after(0.05)
        self.assertEqual(State.STANDBY, other.kernelState)
        await self.daemon.stopService()
        self.assertEqual(State.STOPPED, self.daemon.kernelState)
        await self.assertFailure(Deferred.fromCoroutine(self.module.newSocket()), SSAError)
        await self.module.whenRegistered()
        with running(echo(serverContext(testCA().issue()))) as server:
            program = await self.connected(server.port)
            assert program.plain is not None
            self.assertEqual(b"data", await deferToThread(exchange, program.plain, b"data"))
        self.assertEqual((2, State.REGISTERED), (self.module.registrations, other.kernelState))
        self.module.shutDown()

    async def test_overrun(self) -> None:
        """A full receive buffer may have swallowed the kick: the daemon asks for what there is."""
        await self.module.newSocket()
        await after(0.05)
        kernel = self.module.kernel
        before = kernel.multicast
        self.patch(kernel, "multicast", lambda *arguments, **more: None)
        waiting = Deferred.fromCoroutine(self.module.newSocket())
        await after(0.05)
        self.assertNoResult(waiting)
        self.patch(kernel, "multicast", before)
        for one in kernel.sockets:
            one.overrun()
        self.module.system.refresh()
        await waiting
        await self.module.newSocket()

    async def test_guarded(self) -> None:
        """A socket that another user has handed over by TLS_UPGRADE is watched; others are not, for nobody else has them."""
        watched: list[tuple[int, int]] = []
        self.patch(self.daemon._guard, "watch", lambda descriptor, uid: watched.append((descriptor, uid)))
        self.module.uid = os.getuid() + 4711
        with running(echo(serverContext(testCA().issue()))) as server:
            await self.connected(server.port)
            self.assertEqual([], watched)
            program = await self.client()
            sock = socket.create_connection(("127.0.0.1", server.port))
            self.assertEqual(0, await self.module.upgrade(program, sock, Role.CLIENT))
            self.assertEqual([self.module.uid], [uid for _, uid in watched])
            self.daemon._stalled(self.module.uid)
            plain: Any = program.plain
            await self.assertFailure(deferToThread(plain.recv, 100), ConnectionResetError)
            refused: Any = await self.assertFailure(Deferred.fromCoroutine(self.module.newSocket()), SSAError)
            self.assertEqual(errno.EPERM, refused.errno)
            self.module.uid += 1
            await self.module.newSocket()

    async def test_dataPath(self) -> None:
        """The daemon says that it relays."""
        with running(echo(serverContext(testCA().issue()))) as server:
            program: Any = await self.connected(server.port)
            self.assertEqual(DataPath.RELAY, program.dataPath)
