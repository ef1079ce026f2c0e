# SPDX-License-Identifier: MIT
"""
What each key of ssa.conf does: a daemon with that key set, from the text of the file to what a program sees.

There is one test for each key, named after it, and a test that none is missing.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from ssa.api import Address, HostnameAddress, InternetAddress, Option
from ssa.errors import SSAError
from ssa.policy.parser import parsePolicy
from ssa.policy.profile import Caller, Policy
from ssa.policy.schema import KEYS, Belongs
from ssa.service import Daemon
from ssa.statusformat import SUFFIX
from ssa.test import badservers
from ssa.test.badservers import echo, running, serverContext
from ssa.test.loopback import LoopbackInterceptor, Program
from ssa.test.pki import testCA
from ssa.test.test_daemon import DaemonCase, after, exchange

reactor: Any = _reactor

ELSEWHERE = {
    "Validation": ("pin", ("pin",)),
    "PinnedKeys": (f"sha256/{'A' * 43}=", (bytes(32),)),
    "FirstUseStore": ("/x", "/x"),
    "RevocationChecks": ("on", True),
    "OCSPStapledChecks": ("off", frozenset({"cached", "ocsp", "crl"})),
    "CachedRevChecks": ("off", frozenset({"stapled", "ocsp", "crl"})),
    "OCSPChecks": ("off", frozenset({"stapled", "cached", "crl"})),
    "CRLChecks": ("off", frozenset({"stapled", "cached", "ocsp"})),
    "RevocationTimeout": ("0.5", 0.5),
    "VerifyCertTransparency": ("on", True),
    "TransparencyLogs": ("/x", "/x"),
    "ClientAuth": ("require", "require"),
    "OCSPStapling": ("on", True),
    "SessionResumption": ("off", False),
    "SessionTickets": ("off", False),
    "SessionCacheTimeout": ("60", 60),
    "LogLevel": ("debug", "debug"),
    "LogFormat": ("json", "json"),
}
"""Keys of parts that have their tests of their own: a value, and what arrives in the profile or in the policy."""

NEEDED = {
    "Validation": {"PinnedKeys": f"sha256/{'A' * 43}="},
    "PinnedKeys": {"Validation": "pin"},
    "FirstUseStore": {"Validation": "first-use"},
    "VerifyCertTransparency": {"TransparencyLogs": "/x"},
}
"""What else these keys need."""

ORDINARY = os.getuid() or 4711
"""A user id that limits for one user apply to."""


def policyOf(**values: object) -> Policy:
    """The policy of a file with these keys."""
    lines = [f"{key} = {value}\n" for key, value in values.items()]
    return parsePolicy([("ssa.conf", "[default]\n" + "".join(lines))])


def local(port: int) -> InternetAddress:
    """A server of the test."""
    return InternetAddress(socket.AF_INET, "127.0.0.1", port)


class KeyTests(DaemonCase):
    """One test for each key; C{test_} and its name."""

    def configure(self, **values: object) -> None:
        """Read a file with these keys, as SIGHUP does."""
        self.daemon._loadPolicy = lambda: policyOf(**values)
        self.assertTrue(self.daemon.reload())

    async def connect(self, serve: badservers.Serve, name: str = "server.example") -> tuple[int, str]:
        return await self.connectTo(serve, name)

    async def option(self, serve: badservers.Serve, option: Option) -> bytes:
        """What a connection to a server says."""
        with running(serve) as server:
            program = await self.client()
            self.assertEqual(0, await self.interceptor.connect(program, local(server.port)))
            return await self.interceptor.get(program, option)

    async def refused(self, attempt: Any) -> int:
        """The errno of a call that is refused."""
        try:
            await attempt
        except SSAError as error:
            return error.errno
        return 0

    def test_everyKey(self) -> None:
        """No key is without its test."""
        self.assertEqual(set(KEYS), set(ELSEWHERE) | {key for key in KEYS if hasattr(self, f"test_{key}")})

    def test_elsewhere(self) -> None:
        """What is used by other parts arrives where they look for it."""
        for key, (text, value) in ELSEWHERE.items():
            policy = policyOf(**{key: text}, **NEEDED.get(key, {}))
            source = policy if KEYS[key].belongs is Belongs.DAEMON else policy.default
            self.assertEqual(value, getattr(source, KEYS[key].field or "revocationSources"), key)

    def test_KeyLogFile(self) -> None:
        """It is in a profile only; what it does has tests of its own."""
        policy = parsePolicy([("ssa.conf", "[profile traced]\nUser = 0\nKeyLogFile = /x\n")])
        self.assertEqual("/x", policy.profileFor(Caller(0), None, 0).keyLogFile)
        self.assertEqual("", policy.default.keyLogFile)

    # protocol

    async def test_SecurityLevel(self) -> None:
        """The modern level and a server that has only TLS 1.2."""
        self.configure(SecurityLevel="modern")
        context = serverContext(testCA().issue(), maximum=ssl.TLSVersion.TLSv1_2)
        self.assertEqual(errno.EPROTO, (await self.connect(echo(context)))[0])
        self.configure(SecurityLevel="intermediate")
        self.assertEqual((0, ""), await self.connect(echo(context)))

    async def test_Groups(self) -> None:
        """The one group that is left."""
        self.configure(Groups="P-384")
        group = await self.option(echo(serverContext(testCA().issue())), Option.TLS_KEY_EXCHANGE)
        self.assertEqual(b"secp384r1\0", group)

    async def test_Extensions(self) -> None:
        """A program that asks for an application protocol where none may be."""
        self.configure(Extensions="session_ticket")
        with running(echo(serverContext(testCA().issue(), alpn=["h2"]))) as server:
            program = await self.client()
            await self.interceptor.set(program, Option.TLS_ALPN, b"h2")
            self.assertEqual(errno.EPERM, await self.interceptor.connect(program, local(server.port)))
            self.assertIn("ssa.conf:2 [default]", await self.interceptor.error(program))
        self.assertEqual((0, ""), await self.connect(echo(serverContext(testCA().issue(), alpn=["h2"]))))

    async def test_Access(self) -> None:
        """Neither connect nor listen; the rule is named."""
        self.configure(Access="deny")
        number, text = await self.connect(echo(serverContext(testCA().issue())))
        self.assertEqual(errno.EPERM, number)
        self.assertIn("may not connect to server.example (127.0.0.1) port", text)
        self.assertIn("Access = deny, ssa.conf:2 [default]", text)
        self.assertEqual(errno.EPERM, await self.refused(self.interceptor.listen(await self.interceptor.newSocket())))

    async def test_MinProtocol(self) -> None:
        """A server that has only TLS 1.2."""
        self.configure(MinProtocol="TLSv1.3")
        context = serverContext(testCA().issue(), maximum=ssl.TLSVersion.TLSv1_2)
        number, text = await self.connect(echo(context))
        self.assertEqual(errno.EPROTO, number)
        self.assertIn("version", text)

    async def test_MaxProtocol(self) -> None:
        """A server that could do better."""
        self.configure(MaxProtocol="TLSv1.2")
        version = await self.option(echo(serverContext(testCA().issue())), Option.TLS_VERSION_CONN)
        self.assertEqual(0x0303, int.from_bytes(version, "little"))

    async def test_CipherList(self) -> None:
        """The one cipher of TLS 1.2 that is left."""
        self.configure(CipherList="ECDHE-ECDSA-CHACHA20-POLY1305", MaxProtocol="TLSv1.2")
        cipher = await self.option(echo(serverContext(testCA().issue())), Option.TLS_CHOSEN_CIPHER)
        self.assertEqual(b"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256\0", cipher)

    async def test_CipherSuites(self) -> None:
        """The one suite of TLS 1.3 that is left."""
        self.configure(CipherSuites="TLS_CHACHA20_POLY1305_SHA256")
        cipher = await self.option(echo(serverContext(testCA().issue())), Option.TLS_CHOSEN_CIPHER)
        self.assertEqual(b"TLS_CHACHA20_POLY1305_SHA256\0", cipher)

    async def test_Truncation(self) -> None:
        """A missing close_notify, and a record that is cut, are an end of file."""
        self.configure(Truncation="allow")
        for rest in (b"", b"\x17\x03\x03\x00\x40cut"):
            context = serverContext(testCA().issue())

            def serve(sock: socket.socket, rest: bytes = rest, context: ssl.SSLContext = context) -> None:
                with sock.dup() as spare:
                    tls = context.wrap_socket(sock, server_side=True)
                    tls.sendall(b"some data")
                    tls.recv(1)
                    spare.sendall(rest)
                    os.close(tls.detach())

            with running(serve) as server:
                program = await self.client()
                self.assertEqual(0, await self.interceptor.connect(program, local(server.port)))
                plain = program.plain
                assert plain is not None
                self.assertEqual(b"some data", await deferToThread(plain.recv, 100))
                plain.sendall(b"x")
                self.assertEqual(b"", await deferToThread(plain.recv, 100))

    # trust

    async def test_TrustStoreLocation(self) -> None:
        """The administrator's CA instead of the system's."""
        with written(testCA().pem) as path:
            self.configure(TrustStoreLocation=path)
            with running(echo(serverContext(testCA().issue()))) as server:
                program = await self.interceptor.newSocket()
                await self.interceptor.set(program, Option.TLS_REMOTE_HOSTNAME, b"server.example")
                self.assertEqual(0, await self.interceptor.connect(program, local(server.port)))

    async def test_AppCustomValidation(self) -> None:
        """A program's own CA is refused, also when it was set before the administrator said so."""
        early = await self.client()
        self.configure(AppCustomValidation="off")
        self.assertEqual(errno.EPERM, await self.refused(self.client()))
        with running(echo(serverContext(testCA().issue()))) as server:
            self.assertEqual(errno.EPERM, await self.interceptor.connect(early, local(server.port)))

    async def test_CertVerificationDepth(self) -> None:
        """A chain with an intermediate certificate."""
        serve = echo(serverContext(testCA().intermediate().issue()))
        self.configure(CertVerificationDepth=1)
        self.assertEqual((0, ""), await self.connect(serve))
        self.configure(CertVerificationDepth=0)
        number, text = await self.connect(serve)
        self.assertEqual(errno.EKEYREJECTED, number)
        self.assertIn("CertVerificationDepth", text)

    async def test_CertPath(self) -> None:
        """A server that brings no certificate."""
        credential = testCA().issue(["admin.example"])
        with written(credential.chainPEM) as chain, written(credential.keyPEM) as key:
            self.configure(CertPath=chain, KeyPath=key)
            address = await self.interceptor.listen(await self.interceptor.newSocket())
            context = ssl.create_default_context(cadata=testCA().pem.decode())

            def shakeHands() -> str | None:
                with socket.create_connection(("127.0.0.1", address.port), 10) as sock:
                    return context.wrap_socket(sock, server_hostname="admin.example").version()

            self.assertEqual("TLSv1.3", await deferToThread(shakeHands))

    async def test_KeyPath(self) -> None:
        """A key that is another certificate's."""
        with written(testCA().issue().chainPEM) as chain, written(testCA().issue(["b.example"], key="rsa").keyPEM) as key:
            self.configure(CertPath=chain, KeyPath=key)
            listening = self.interceptor.listen(await self.interceptor.newSocket())
            self.assertEqual(errno.ENOKEY, await self.refused(listening))

    async def demanding(self, **keys: str) -> int:
        """A connect of a program without a certificate to a server that demands one, in TLS 1.2 so that connect knows."""
        context = serverContext(testCA().issue(), maximum=ssl.TLSVersion.TLSv1_2, clientCA=testCA().pem)
        self.configure(**keys)
        return (await self.connect(echo(context)))[0]

    async def test_ClientCertPath(self) -> None:
        """A client that brings no certificate shows the administrator's."""
        credential = testCA().issue(["client.example"], purpose="client")
        self.assertNotEqual(0, await self.demanding())
        with written(credential.chainPEM) as chain, written(credential.keyPEM) as key:
            self.assertEqual(0, await self.demanding(ClientCertPath=chain, ClientKeyPath=key))

    async def test_ClientKeyPath(self) -> None:
        """A key that is another certificate's."""
        with written(testCA().issue().chainPEM) as chain, written(testCA().issue(["b.example"], key="rsa").keyPEM) as key:
            self.assertEqual(errno.ENOKEY, await self.demanding(ClientCertPath=chain, ClientKeyPath=key))

    def test_RandomSeed(self) -> None:
        """See L{ssa.test.test_policyfiles.SeedTests}."""
        self.assertEqual(("/dev/urandom", 16), policyOf(RandomSeed="/dev/urandom 16").randomSeed)

    # times

    async def test_HandshakeTimeout(self) -> None:
        """A server that says nothing."""
        self.configure(HandshakeTimeout=0.2)
        number, text = await self.connect(badservers.stalling)
        self.assertEqual(errno.ETIMEDOUT, number)
        self.assertIn("0.2 s", text)

    async def test_ConnectTimeout(self) -> None:
        """A listener whose backlog is full: Linux drops the SYN."""
        self.configure(ConnectTimeout=0.3)
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            waiting = []
            for _ in range(3):
                sock = socket.socket()
                self.addCleanup(sock.close)
                sock.setblocking(False)
                sock.connect_ex(address)
                waiting.append(sock)
            began = time.monotonic()
            program = await self.client()
            self.assertEqual(errno.ETIMEDOUT, await self.interceptor.connect(program, local(address[1])))
            self.assertLess(time.monotonic() - began, 3)
            self.assertIn("connect to", await self.interceptor.error(program))

    async def test_ResolveTimeout(self) -> None:
        """A name server that does not answer."""
        self.configure(ResolveTimeout=0.2)

        def lookUp(*args: object) -> list[tuple[Any, ...]]:
            time.sleep(0.5)
            return []

        self.patch(self.daemon.shared.resolver, "_getAddressInfo", lookUp)
        program = await self.client()
        number = await self.interceptor.connect(program, HostnameAddress("slow.example", 443))
        self.assertEqual(errno.EHOSTUNREACH, number)
        self.assertIn("0.2 s", await self.interceptor.error(program))
        await after(0.5)

    # bounds

    async def test_MaxSockets(self) -> None:
        """One socket too many, for anybody."""
        self.configure(MaxSockets=2)
        for _ in range(2):
            await self.interceptor.newSocket()
        self.assertEqual(errno.ENFILE, await self.refused(self.interceptor.newSocket()))

    async def test_MaxSocketsPerUser(self) -> None:
        """One socket too many, for one user."""
        self.configure(MaxSocketsPerUser=2)
        self.interceptor.uid = ORDINARY
        for _ in range(2):
            await self.interceptor.newSocket()
        self.assertEqual(errno.EMFILE, await self.refused(self.interceptor.newSocket()))

    async def handshakesInFlight(self) -> int:
        """How many of three connects to a server that says nothing do their handshake."""
        with running(badservers.stalling) as server:
            for _ in range(3):
                program = await self.client()
                self.interceptor.startConnect(program, local(server.port)).addErrback(lambda failure: None)
            await after(0.2)
            return self.daemon.dispatcher.handshakes

    async def test_MaxHandshakes(self) -> None:
        """Handshakes of all wait for their turn."""
        self.configure(MaxHandshakes=2)
        self.interceptor.uid = ORDINARY if os.getuid() else 0
        # One user other than root may have three quarters of all.
        self.assertEqual(1 if os.getuid() else 2, await self.handshakesInFlight())

    async def test_MaxHandshakesPerProgram(self) -> None:
        """The same for one process."""
        self.configure(MaxHandshakesPerProgram=1)
        self.assertEqual(1, await self.handshakesInFlight())

    async def test_MaxPendingEvents(self) -> None:
        """One call too many that waits."""
        self.configure(MaxPendingEvents=1)
        with running(badservers.stalling) as server:
            first, second = await self.client(), await self.client()
            self.interceptor.startConnect(first, local(server.port)).addErrback(lambda failure: None)
            self.assertEqual(errno.ENOBUFS, await self.interceptor.connect(second, local(server.port)))

    async def test_MaxInterceptors(self) -> None:
        """One supervisor too many, also after a reload."""
        path = os.path.join(tempfile.mkdtemp(prefix="ssa-test-"), "d.sock")
        daemon = Daemon(reactor, policyOf(MaxInterceptors=3), lambda: policyOf(MaxInterceptors=1))
        daemon.listenAt(path)
        daemon.startService()
        links = []

        async def accepted() -> bool:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(path)
            link = LoopbackInterceptor(reactor, sock)
            links.append(link)
            return await self.refused(link.newSocket()) == 0

        try:
            self.assertTrue(await accepted())
            self.assertTrue(daemon.reload())
            self.assertFalse(await accepted())
        finally:
            for link in links:
                link.shutDown()
            await daemon.stopService()
            os.unlink(path + ".lock")
            os.unlink(path + SUFFIX + ".lock")
            os.rmdir(os.path.dirname(path))

    async def test_MaxAcceptQueue(self) -> None:
        """Connections that the program does not accept are left in the kernel's queue above it."""
        self.configure(MaxAcceptQueue=2)
        never: Deferred[tuple[int, int]] = Deferred()
        offered: list[int] = []

        def accepted(id: int, *addresses: object) -> Deferred[tuple[int, int]]:
            offered.append(id)
            return never

        self.patch(self.interceptor, "accepted", accepted)
        listener = await self.interceptor.newSocket()
        credential = testCA().issue()
        await self.interceptor.set(listener, Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
        await self.interceptor.set(listener, Option.TLS_PRIVATE_KEY, credential.keyPEM)
        address = await self.interceptor.listen(listener)
        context = ssl.create_default_context(cadata=testCA().pem.decode())
        context.check_hostname = False

        def shakeHands() -> bool:
            sock = socket.create_connection(("127.0.0.1", address.port), 10)
            self.addCleanup(sock.close)
            sock.settimeout(0.5)
            try:
                self.addCleanup(context.wrap_socket(sock).close)
            except TimeoutError:
                return False
            return True

        done = [await deferToThread(shakeHands) for _ in range(3)]
        self.assertEqual(([True, True, False], 2), (done, len(offered)))

    async def flooded(self, connections: int, uid: int) -> tuple[int, int]:
        """How many large and small buffers the connections of programs that do not read hold."""

        def serve(sock: socket.socket) -> None:
            with serverContext(testCA().issue()).wrap_socket(sock, server_side=True) as tls:
                while True:
                    tls.sendall(bytes(1 << 20))

        with running(serve) as server:
            self.interceptor.uid = uid
            programs: list[Program] = []
            for _ in range(connections):
                programs.append(await self.client())
                self.assertEqual(0, await self.interceptor.connect(programs[-1], local(server.port)))
            pool = self.daemon._relays.buffers
            for _ in range(200):
                if pool.lent + pool.reserveLent == connections:
                    break
                await after(0.02)
            found = pool.lent, pool.reserveLent
            for program in programs:
                self.interceptor.close(program)
            return found

    async def test_MaxRelayBuffers(self) -> None:
        """The large buffers of all."""
        self.configure(MaxRelayBuffers=2)
        self.assertEqual((2, 1), await self.flooded(3, 0 if os.getuid() == 0 else ORDINARY))

    async def test_MaxRelayBuffersPerUser(self) -> None:
        """The large buffers of one user."""
        self.configure(MaxRelayBuffersPerUser=1)
        self.assertEqual((1, 2), await self.flooded(3, ORDINARY))

    async def test_MaxAddresses(self) -> None:
        """A name with many addresses, of which none is any good."""
        self.configure(MaxAddresses=2)

        def lookUp(host: bytes, port: int, *rest: int) -> list[tuple[Any, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in range(2, 8)]

        self.patch(self.daemon.shared.resolver, "_getAddressInfo", lookUp)
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        program = await self.client()
        remote: Address = HostnameAddress("many.example", port)
        self.assertEqual(errno.ECONNREFUSED, await self.interceptor.connect(program, remote))
        self.assertEqual(2, len(self.interceptor.fetched))

    async def test_MaxCachedContexts(self) -> None:
        """Contexts for programs with other trusted certificates each."""
        self.configure(MaxCachedContexts=1)
        serve = echo(serverContext(testCA().issue()))
        with running(serve) as server:
            for extra in (b"", testCA().intermediate().pem):
                program = await self.client(trust=testCA().pem + extra)
                self.assertEqual(0, await self.interceptor.connect(program, local(server.port)))
        self.assertEqual(1, len(self.daemon._factories.contexts))


class ReloadTests(DaemonCase):
    """What a reload touches, and what it does not."""

    async def test_connectionsGoOn(self) -> None:
        """An established connection does not notice that its limits have shrunk."""
        with running(echo(serverContext(testCA().issue()))) as server:
            program = await self.client()
            self.assertEqual(0, await self.interceptor.connect(program, local(server.port)))
            self.daemon._loadPolicy = lambda: policyOf(MaxSockets=1, MaxRelayBuffers=1, MaxRelayBuffersPerUser=1)
            self.assertTrue(self.daemon.reload())
            assert program.plain is not None
            self.assertEqual(b"still", await deferToThread(exchange, program.plain, b"still"))


@contextmanager
def written(content: bytes) -> Iterator[str]:
    """A file with some content."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name
