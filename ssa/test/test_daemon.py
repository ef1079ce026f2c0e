# SPDX-License-Identifier: MIT
"""
The daemon from the link to the network: a real SEQPACKET link, real TLS, real
servers that misbehave; only the interception of calls is left out.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from ssa.api import HostnameAddress, InternetAddress, Option, Role
from ssa.errors import SSAError
from ssa.policy.profile import Limits, Policy, Profile
from ssa.service import Daemon
from ssa.test import badservers
from ssa.test.badservers import Serve, echo, running, serverContext
from ssa.test.loopback import LoopbackInterceptor, Program
from ssa.test.pki import testCA

reactor: Any = _reactor


def after(seconds: float) -> Deferred[None]:
    """Wait."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


class DaemonCase(TestCase):
    """A daemon and one interceptor."""

    timeout = 20
    profile = Profile(handshakeTimeout=5.0)

    def setUp(self) -> None:
        self.daemon = Daemon(reactor, Policy(self.profile))
        self.daemon.startService()
        self.addCleanup(self.daemon.stopService)
        self.interceptor = self.newInterceptor()

    def newInterceptor(self) -> LoopbackInterceptor:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.daemon.adopt(theirs)
        interceptor = LoopbackInterceptor(reactor, ours)
        self.addCleanup(self.end, interceptor)
        return interceptor

    def end(self, interceptor: LoopbackInterceptor) -> Deferred[Any]:
        interceptor.shutDown()
        return interceptor.end.lost

    def run_(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(coroutine)

    async def client(self, name: str = "server.example", trust: bytes | None = None) -> Program:
        """A new socket that trusts the tests' CA."""
        program = await self.interceptor.newSocket()
        pem = testCA().pem if trust is None else trust
        await self.interceptor.set(program, Option.TLS_TRUSTED_PEER_CERTIFICATES, pem)
        if name:
            await self.interceptor.set(program, Option.TLS_REMOTE_HOSTNAME, name.encode())
        return program

    async def connectTo(self, serve: Serve, name: str = "server.example") -> tuple[int, str]:
        """The errno and TLS_ERROR of a connect to a server."""
        with running(serve) as server:
            program = await self.client(name)
            number = await self.interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", server.port))
            return number, await self.interceptor.error(program)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send, half-close, read to the end."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


class ClientTests(DaemonCase):
    """connect(2) to good servers."""

    def test_dataBothWays(self) -> Deferred[None]:
        """A verified connection carries data both ways, tells about itself and ends cleanly."""

        async def test() -> None:
            credential = testCA().issue(["server.example"])
            with running(echo(serverContext(credential, alpn=["h2"]))) as server:
                program = await self.client()
                await self.interceptor.set(program, Option.TLS_ALPN, b"http/1.1,h2")
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                self.assertEqual(0, await self.interceptor.connect(program, address))
                self.assertEqual("", await self.interceptor.error(program))
                assert program.plain is not None
                assert program.names is not None
                self.assertEqual(address, program.names[1])
                data = os.urandom(1 << 20)

                def talk(sock: socket.socket) -> bytes:
                    reader: list[bytes] = []

                    def read() -> None:
                        while part := sock.recv(65536):
                            reader.append(part)

                    thread = threading.Thread(target=read)
                    thread.start()
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    thread.join(10)
                    return b"".join(reader)

                got = await deferToThread(talk, program.plain)
                self.assertEqual(len(data), len(got))
                self.assertTrue(data == got)
                get = self.interceptor.get
                self.assertEqual(struct.pack("=i", 0x0304), await get(program, Option.TLS_VERSION_CONN))
                self.assertEqual(b"h2\0", await get(program, Option.TLS_ALPN))
                self.assertEqual(b"relay\0", await get(program, Option.TLS_DATA_PATH))
                self.assertIn(b"CN=server.example", await get(program, Option.TLS_PEER_IDENTITY))
                self.assertEqual(32, len(await get(program, Option.TLS_CHANNEL_BINDING)))
                self.assertEqual(errno.EISCONN, await self.interceptor.connect(program, address))
                self.interceptor.close(program)

        return self.run_(test())

    def test_identityOfTheAddress(self) -> Deferred[None]:
        """Without TLS_REMOTE_HOSTNAME the certificate must name the IP address."""

        async def test() -> None:
            good = echo(serverContext(testCA().issue(["127.0.0.1"])))
            self.assertEqual((0, ""), await self.connectTo(good, ""))
            bad = echo(serverContext(testCA().issue(["server.example"])))
            number, text = await self.connectTo(bad, "")
            self.assertEqual(errno.EKEYREJECTED, number)
            self.assertIn("127.0.0.1", text)

        return self.run_(test())

    def test_liveOptions(self) -> Deferred[None]:
        """Options of the network connection reach the real socket; the dangerous ones are refused."""

        async def test() -> None:
            with running(echo(serverContext(testCA().issue(["server.example"])))) as server:
                program = await self.client()
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                self.assertEqual(0, await self.interceptor.connect(program, address))
                one = struct.pack("=i", 1)
                await self.interceptor.setLive(program, socket.SOL_SOCKET, socket.SO_KEEPALIVE, one)
                assert program.real is not None
                self.assertEqual(1, program.real.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
                try:
                    await self.interceptor.setLive(program, socket.IPPROTO_TCP, 31, b"tls")
                except SSAError as error:
                    self.assertEqual(errno.ENOPROTOOPT, error.errno)
                else:
                    self.fail("TCP_ULP was accepted")

        return self.run_(test())

    def test_failedIsNewAgain(self) -> Deferred[None]:
        """After a failed connect options may be set, and connect succeeds and clears TLS_ERROR."""

        async def test() -> None:
            with running(echo(serverContext(testCA().issue(["server.example"])))) as server:
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                program = await self.client("other.example")
                self.assertEqual(errno.EKEYREJECTED, await self.interceptor.connect(program, address))
                self.assertIn("other.example", await self.interceptor.error(program))
                await self.interceptor.set(program, Option.TLS_REMOTE_HOSTNAME, b"server.example")
                self.assertEqual("", await self.interceptor.error(program))
                self.assertEqual(0, await self.interceptor.connect(program, address))

        return self.run_(test())

    def test_upgrade(self) -> Deferred[None]:
        """TLS_UPGRADE takes a connection over that has already carried data."""

        async def test() -> None:
            context = serverContext(testCA().issue(["server.example"]))

            def startTLS(sock: socket.socket) -> None:
                sock.sendall(b"ready?")
                sock.recv(3)
                echo(context)(sock)

            with running(startTLS) as server:
                sock = socket.create_connection(("127.0.0.1", server.port))
                self.assertEqual(b"ready?", await deferToThread(sock.recv, 100))
                sock.sendall(b"yes")
                program = await self.client()
                self.assertEqual(0, await self.interceptor.upgrade(program, sock, Role.CLIENT))
                assert program.plain is not None
                self.assertEqual(b"over TLS", await deferToThread(exchange, program.plain, b"over TLS"))

        return self.run_(test())

    def test_truncation(self) -> Deferred[None]:
        """An end without close_notify: the data first, then ECONNRESET, and TLS_ERROR."""

        async def test() -> None:
            with running(badservers.truncate(serverContext(testCA().issue(["server.example"])))) as server:
                program = await self.client()
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                self.assertEqual(0, await self.interceptor.connect(program, address))
                plain = program.plain
                assert plain is not None
                self.assertEqual(b"some data", await deferToThread(plain.recv, 100))
                plain.sendall(b"x")
                try:
                    await deferToThread(plain.recv, 100)
                except ConnectionResetError:
                    pass
                else:
                    self.fail("a truncated stream ended cleanly")
                for _ in range(100):
                    text = await self.interceptor.error(program)
                    if text:
                        break
                    await after(0.01)
                self.assertIn("close_notify", text)

        return self.run_(test())


class RefusalTests(DaemonCase):
    """Refusals that come late; L{ssa.test.test_errnotable} has the others."""

    profile = Profile(handshakeTimeout=0.6)

    def test_clientCertificateDemandedByTLS13(self) -> Deferred[None]:
        """TLS 1.3: connect returns 0, the first recv fails and TLS_ERROR says why."""

        async def test() -> None:
            context = serverContext(testCA().issue(), clientCA=testCA().pem)
            with running(echo(context)) as server:
                program = await self.client()
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                self.assertEqual(0, await self.interceptor.connect(program, address))
                assert program.plain is not None
                try:
                    await deferToThread(program.plain.recv, 100)
                except ConnectionResetError:
                    pass
                else:
                    self.fail("no error")
                for _ in range(100):
                    text = await self.interceptor.error(program)
                    if text:
                        break
                    await after(0.01)
                self.assertIn("certificate", text)

        return self.run_(test())

    def test_establishedRefused(self) -> Deferred[None]:
        """The program has closed when the handshake is done: the connection is given up."""

        async def test() -> None:
            self.interceptor.establishedError = errno.ECONNABORTED
            number, _ = await self.connectTo(echo(serverContext(testCA().issue())))
            self.assertEqual(errno.ECONNABORTED, number)
            self.assertEqual(0, self.daemon.dispatcher.relays)

        return self.run_(test())


class NameTests(DaemonCase):
    """connect(2) to a name."""

    profile = Profile(handshakeTimeout=3.0, resolveTimeout=5.0)

    def test_localhost(self) -> Deferred[None]:
        """The name is the identity; the address is found without asking anybody."""

        async def test() -> None:
            with running(echo(serverContext(testCA().issue(["localhost"])))) as server:
                program = await self.client("")
                self.assertEqual(0, await self.interceptor.connect(program, HostnameAddress("localhost", server.port)))
                self.assertEqual("127.0.0.1", self.interceptor.fetched[0].host)

        return self.run_(test())

    def test_numeric(self) -> Deferred[None]:
        """An address in a sockaddr_host."""

        async def test() -> None:
            with running(echo(serverContext(testCA().issue(["127.0.0.1"])))) as server:
                program = await self.client("")
                self.assertEqual(0, await self.interceptor.connect(program, HostnameAddress("127.0.0.1", server.port)))

        return self.run_(test())

    def test_everyAddress(self) -> Deferred[None]:
        """Two addresses: the first refuses, the second has the good certificate."""

        def lookUp(host: bytes, port: int, *rest: int) -> list[tuple[Any, ...]]:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")
            ]

        self.patch(self.daemon.shared.resolver, "_getAddressInfo", lookUp)

        async def test() -> None:
            with running(echo(serverContext(testCA().issue(["server.example"])))) as server:
                program = await self.client("")
                remote = HostnameAddress("server.example", server.port)
                self.assertEqual(0, await self.interceptor.connect(program, remote))
                self.assertEqual(["127.0.0.2", "127.0.0.1"], [a.host for a in self.interceptor.fetched])

        return self.run_(test())

    def test_unresolved(self) -> Deferred[None]:
        """EHOSTUNREACH with the resolver's text."""

        def lookUp(*args: object) -> list[tuple[Any, ...]]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        self.patch(self.daemon.shared.resolver, "_getAddressInfo", lookUp)

        async def test() -> None:
            program = await self.client("")
            number = await self.interceptor.connect(program, HostnameAddress("nowhere.example", 443))
            self.assertEqual(errno.EHOSTUNREACH, number)
            text = await self.interceptor.error(program)
            self.assertIn("nowhere.example", text)
            self.assertIn("Name or service not known", text)

        return self.run_(test())


class ListenerTests(DaemonCase):
    """listen(2) and accept(2)."""

    profile = Profile(handshakeTimeout=1.0, limits=Limits(maxAcceptQueue=4))

    def talk(self, port: int, name: str, data: bytes) -> tuple[bytes, str]:
        """Be a client: what came back, and the subject's common name of the server."""
        context = ssl.create_default_context(cadata=testCA().pem.decode())
        sock = socket.create_connection(("127.0.0.1", port), 10)
        with context.wrap_socket(sock, server_hostname=name) as tls:
            tls.sendall(data)
            got = tls.recv(65536)
            certificate: Any = tls.getpeercert()
            return got, dict(part[0] for part in certificate["subject"])["commonName"]

    async def listener(self, *names: str) -> tuple[Program, InternetAddress]:
        program = await self.interceptor.newSocket()
        for name in names:
            credential = testCA().issue([name])
            await self.interceptor.set(program, Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
            await self.interceptor.set(program, Option.TLS_PRIVATE_KEY, credential.keyPEM)
        return program, await self.interceptor.listen(program)

    async def nextAccepted(self, listener: Program) -> Program:
        for _ in range(500):
            if listener.accepted:
                return self.interceptor.programs[listener.accepted.pop(0)]
            await after(0.01)
        raise AssertionError("nothing was accepted")

    def test_names(self) -> Deferred[None]:
        """A listener serves several names, and the program learns which was asked for."""

        async def test() -> None:
            listener, address = await self.listener("one.example", "two.example")
            for name in ("two.example", "one.example"):
                talking = deferToThread(self.talk, address.port, name, b"hello")
                accepted = await self.nextAccepted(listener)
                assert accepted.plain is not None
                self.assertEqual(b"hello", await deferToThread(accepted.plain.recv, 100))
                self.assertEqual(name.encode() + b"\0", await self.interceptor.get(accepted, Option.TLS_HOSTNAME))
                accepted.plain.sendall(b"world")
                self.assertEqual((b"world", name), await talking)
                self.interceptor.close(accepted)
            self.interceptor.close(listener)

        return self.run_(test())

    def test_noCertificate(self) -> Deferred[None]:
        """ENOKEY."""

        async def test() -> None:
            try:
                await self.listener()
            except SSAError as error:
                self.assertEqual(errno.ENOKEY, error.errno)
            else:
                self.fail("a listener without certificate")

        return self.run_(test())

    def test_badClients(self) -> Deferred[None]:
        """Failed handshakes are never seen, and do not keep good clients out for long."""

        async def test() -> None:
            listener, address = await self.listener("one.example")
            bad = [socket.create_connection(("127.0.0.1", address.port)) for _ in range(6)]
            bad[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
            bad[1].close()
            talking = deferToThread(self.talk, address.port, "one.example", b"hello")
            accepted = await self.nextAccepted(listener)
            assert accepted.plain is not None
            self.assertEqual(b"hello", await deferToThread(accepted.plain.recv, 100))
            accepted.plain.sendall(b"world")
            await talking
            for sock in bad:
                sock.close()
            self.assertEqual([], listener.accepted)

        return self.run_(test())

    def test_secondListen(self) -> Deferred[None]:
        """Another listen changes the backlog; connect on a listener is EISCONN."""

        async def test() -> None:
            listener, _ = await self.listener("one.example")
            await self.interceptor.listen(listener, 64)
            try:
                await self.interceptor.set(listener, Option.TLS_ALPN, b"h2")
            except SSAError as error:
                self.assertEqual(errno.EISCONN, error.errno)
            else:
                self.fail("an option was set on a listener")

        return self.run_(test())

    def test_closedListener(self) -> Deferred[None]:
        """close(2) of the listener closes the real one and gives unfinished handshakes up."""

        async def test() -> None:
            listener, address = await self.listener("one.example")
            sock = socket.create_connection(("127.0.0.1", address.port))
            self.addCleanup(sock.close)
            sock.settimeout(5)
            await after(0.05)
            self.interceptor.close(listener)
            self.assertEqual(b"", await deferToThread(sock.recv, 1))
            self.assertEqual(0, self.daemon.dispatcher.handshakes)

        return self.run_(test())


class EndTests(DaemonCase):
    """How things end when one side goes away."""

    def test_stop(self) -> Deferred[None]:
        """The daemon stops: a pending connect gets ENETDOWN, an established connection ECONNRESET, at once."""

        async def test() -> None:
            with running(badservers.stalling) as stalling, running(echo(serverContext(testCA().issue()))) as good:
                pending = await self.client()
                waiting = self.interceptor.startConnect(
                    pending, InternetAddress(socket.AF_INET, "127.0.0.1", stalling.port)
                )
                idle = await self.client()
                address = InternetAddress(socket.AF_INET, "127.0.0.1", good.port)
                self.assertEqual(0, await self.interceptor.connect(idle, address))
                began = reactor.seconds()
                stopping = self.daemon.stopService()
                answer: Any = await waiting
                self.assertEqual(-errno.ENETDOWN, answer.result)
                await stopping
                self.assertLess(reactor.seconds() - began, 1)
                assert idle.plain is not None
                try:
                    await deferToThread(idle.plain.recv, 1)
                except ConnectionResetError:
                    pass
                else:
                    self.fail("a connection that was cut ended cleanly")
                try:
                    await self.interceptor.newSocket()
                except SSAError as error:
                    self.assertEqual(errno.ENETDOWN, error.errno)
                else:
                    self.fail("a stopped daemon gave a socket")

        return self.run_(test())

    def test_interceptorLost(self) -> Deferred[None]:
        """An established connection outlives its link; what is pending does not."""

        async def test() -> None:
            with running(badservers.stalling) as stalling, running(echo(serverContext(testCA().issue()))) as good:
                connected = await self.client()
                address = InternetAddress(socket.AF_INET, "127.0.0.1", good.port)
                self.assertEqual(0, await self.interceptor.connect(connected, address))
                pending = await self.client()
                waiting = self.interceptor.startConnect(
                    pending, InternetAddress(socket.AF_INET, "127.0.0.1", stalling.port)
                )
                waiting.addErrback(lambda failure: failure.trap(SSAError))
                plain = connected.plain
                assert plain is not None
                await after(0.05)
                self.interceptor.end.close()
                await self.interceptor.end.lost
                for _ in range(100):
                    if self.daemon.dispatcher.sockets == 1:
                        break
                    await after(0.02)
                self.assertEqual(1, self.daemon.dispatcher.relays)
                self.assertEqual(1, self.daemon.dispatcher.sockets)
                self.assertEqual(0, self.daemon.dispatcher.handshakes)
                self.assertEqual(b"still here", await deferToThread(exchange, plain, b"still here"))
                for _ in range(100):
                    if not self.daemon.dispatcher.sockets:
                        break
                    await after(0.02)
                self.assertEqual(0, self.daemon.dispatcher.sockets)

        return self.run_(test())

    def test_reload(self) -> Deferred[None]:
        """A reload with errors changes nothing; a good one counts for the next connect."""

        async def test() -> None:
            def fails() -> Policy:
                raise ValueError("ssa.conf:3: [default] MinProtocol: no")

            self.daemon._loadPolicy = fails
            before = self.daemon.shared.policy
            self.assertFalse(self.daemon.reload())
            self.assertIs(before, self.daemon.shared.policy)
            self.daemon._loadPolicy = lambda: Policy(replace(self.profile, handshakeTimeout=0.3))
            self.assertTrue(self.daemon.reload())
            number, text = await self.connectTo(badservers.stalling)
            self.assertEqual(errno.ETIMEDOUT, number)
            self.assertIn("0.3 s", text)

        return self.run_(test())
