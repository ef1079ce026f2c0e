# SPDX-License-Identifier: MIT
"""A daemon under a policy: profiles, what they refuse, and what a change touches."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from typing import Any

from twisted.internet.threads import deferToThread

from ssa import service, watching
from ssa.api import HostnameAddress, InternetAddress, Option, Role
from ssa.configuration import loadConfiguration
from ssa.errors import SSAError
from ssa.policy.profile import Policy
from ssa.protocol.messages import HandshakeReturn
from ssa.test.badservers import echo, running, serverContext
from ssa.test.ctlogs import TestLog, issueLogged, logListBytes
from ssa.test.loopback import Program, startConnect
from ssa.test.pki import Credential, otherCA, testCA, testKey
from ssa.test.test_daemon import DaemonCase, after, exchange
from ssa.tls.policyfiles import LoadedFiles


def local(port: int, host: str = "127.0.0.1") -> InternetAddress:
    """A server of the test."""
    return InternetAddress(socket.AF_INET, host, port)


class PolicyCase(DaemonCase):
    """A daemon with a file of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.place = os.path.abspath(self.mktemp())
        os.mkdir(self.place)
        self.daemon._loadPolicy = self.load

    def load(self) -> Policy:
        return loadConfiguration(self.path("ssa.conf"))

    def path(self, name: str) -> str:
        return os.path.join(self.place, name)

    def write(self, name: str, content: bytes) -> str:
        with open(self.path(name + "~"), "wb") as file:
            file.write(content)
        os.replace(self.path(name + "~"), self.path(name))
        return self.path(name)

    def configure(self, text: str) -> bool:
        """Write the file and reload."""
        self.write("ssa.conf", text.encode())
        return self.daemon.reload()

    def certificate(self, credential: Credential) -> None:
        """Write the server's certificate."""
        self.write("c.pem", credential.chainPEM)
        self.write("c.key", credential.keyPEM)

    @property
    def certified(self) -> str:
        """The keys for it."""
        return f"CertPath = {self.path('c.pem')}\nKeyPath = {self.path('c.key')}\n"

    def lookUp(self, addresses: dict[str, list[str]]) -> None:
        """Give names addresses."""

        def find(host: bytes, port: int, *rest: int) -> list[tuple[Any, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses[host.decode()]]

        self.patch(self.daemon.shared.resolver, "_getAddressInfo", find)

    async def connectToName(self, name: str, port: int, identity: str = "server.example") -> tuple[int, str]:
        program = await self.client(identity)
        number = await self.interceptor.connect(program, HostnameAddress(name, port))
        return number, await self.interceptor.error(program)

    async def refused(self, attempt: Any) -> int:
        try:
            await attempt
        except SSAError as error:
            return error.errno
        return 0


class ProfileTests(PolicyCase):
    """Who may do what."""

    async def test_destinations(self) -> None:
        """A name, an address and a port that are refused; the others are not."""
        with running(echo(serverContext(testCA().issue(["server.example", "other.example"])))) as server:
            where = local(server.port)
            for rule, allowed in (
                ("server.example", False),
                ("other.example", True),
                ("127.0.0.0/8", False),
                ("10.0.0.0/8", True),
                (f":{server.port}", False),
                (f"127.0.0.1:{server.port}", False),
                (":1", True),
            ):
                self.assertTrue(self.configure(f"[profile no]\nDestination = {rule}\nAccess = deny\n"))
                program = await self.client()
                self.assertEqual(0 if allowed else errno.EPERM, await self.interceptor.connect(program, where), rule)
                if not allowed:
                    self.assertIn(f"{self.path('ssa.conf')}:3 [profile no]", await self.interceptor.error(program))
                    # The socket is new again, and may go elsewhere.
                    self.assertTrue(self.configure("[default]\n"))
                    self.assertEqual(0, await self.interceptor.connect(program, where))

    async def test_onlySome(self) -> None:
        """Everything is refused but what is allowed."""
        self.configure("[default]\nAccess = deny\n[profile yes]\nDestination = server.example\nAccess = allow\n")
        serve = echo(serverContext(testCA().issue(["server.example", "other.example"])))
        self.assertEqual((0, ""), await self.connectTo(serve))
        self.assertEqual(errno.EPERM, (await self.connectTo(serve, "other.example"))[0])

    async def test_addressesOfAName(self) -> None:
        """A rule on addresses holds for those that a name stands for: one is left out, or all are refused."""
        self.lookUp({"many.example": ["127.0.0.2", "127.0.0.1"]})
        with running(echo(serverContext(testCA().issue()))) as server:
            self.configure("[profile no]\nDestination = 127.0.0.2\nAccess = deny\n")
            self.assertEqual((0, ""), await self.connectToName("many.example", server.port))
            self.assertEqual(["127.0.0.1"], [address.host for address in self.interceptor.fetched[-1:]])
            self.configure("[profile no]\nDestination = 127.0.0.0/8\nAccess = deny\n")
            before = len(self.interceptor.fetched)
            number, text = await self.connectToName("many.example", server.port)
            self.assertEqual(errno.EPERM, number)
            self.assertIn("(127.0.0.2)", text)
            self.assertEqual(before, len(self.interceptor.fetched))

    async def test_profileOfAnAddress(self) -> None:
        """The profile of the address that is really connected to is the one that holds."""
        self.lookUp({"a.example": ["127.0.0.1"]})
        context = serverContext(testCA().issue(), maximum=ssl.TLSVersion.TLSv1_2)
        with running(echo(context)) as server:
            self.configure("[profile strict]\nDestination = 127.0.0.0/8\nMinProtocol = TLSv1.3\n")
            self.assertEqual(errno.EPROTO, (await self.connectToName("a.example", server.port))[0])
            self.configure("[profile strict]\nDestination = 127.1.0.0/16\nMinProtocol = TLSv1.3\n")
            self.assertEqual(0, (await self.connectToName("a.example", server.port))[0])

    async def connectElsewhere(self, announced: InternetAddress, real: InternetAddress) -> tuple[int, str]:
        """Connect with an interceptor that tells another address than the one that it connects to."""
        program = await self.client()
        program.real = startConnect(real)
        answer = await self.interceptor.end.notify(self.interceptor._connectNotify(program, announced))
        assert isinstance(answer, HandshakeReturn)
        return -answer.result, await self.interceptor.error(program)

    async def test_elsewhere(self) -> None:
        """What holds is what holds for the address that the socket is connected to, not for the one that was announced."""
        weak = "[default]\nMinProtocol = TLSv1.3\n[profile weak]\nDestination = {}\nMinProtocol = TLSv1.2\n"
        context = serverContext(testCA().issue(), maximum=ssl.TLSVersion.TLSv1_2)
        with running(echo(context)) as server:
            real, announced = local(server.port), local(server.port, "192.0.2.7")
            self.configure("[profile no]\nDestination = 127.0.0.0/8\nAccess = deny\n")
            number, text = await self.connectElsewhere(announced, real)
            self.assertEqual(errno.EPERM, number, text)
            self.assertIn("server.example (127.0.0.1)", text)
            self.assertIn("[profile no]", text)
            self.configure("[profile no]\nDestination = 192.0.2.7\nAccess = deny\n")
            self.assertEqual(errno.EPERM, (await self.connectElsewhere(announced, real))[0])
            self.configure(weak.format("192.0.2.7"))
            self.assertEqual(errno.EPROTO, (await self.connectElsewhere(announced, real))[0])
            self.configure(weak.format("127.0.0.1"))
            self.assertEqual((0, ""), await self.connectElsewhere(announced, real))
            self.configure(weak.format(f"192.0.2.7:{server.port}"))
            self.assertEqual(errno.EPROTO, (await self.connectElsewhere(announced, real))[0])

    async def test_everyAddress(self) -> None:
        """0.0.0.0 is this machine, by its address or as a name's."""
        self.lookUp({"zero.example": ["0.0.0.0"]})
        with running(echo(serverContext(testCA().issue()))) as server:
            self.assertEqual((0, ""), await self.connectToName("zero.example", server.port))
            self.configure("[profile no]\nDestination = 127.0.0.0/8\nAccess = deny\n")
            self.assertEqual(errno.EPERM, (await self.connectToName("zero.example", server.port))[0])
            program = await self.client()
            self.assertEqual(errno.EPERM, await self.interceptor.connect(program, local(server.port, "0.0.0.0")))

    async def test_dialedName(self) -> None:
        """A name that is refused is refused under any identity, and does not get its weaker profile with another one."""
        self.lookUp({"a.example": ["127.0.0.1"]})
        context = serverContext(testCA().issue(), maximum=ssl.TLSVersion.TLSv1_2)
        with running(echo(context)) as server:
            self.configure("[profile no]\nDestination = a.example\nAccess = deny\n")
            self.assertEqual(errno.EPERM, (await self.connectToName("a.example", server.port))[0])
            self.configure(
                "[default]\nMinProtocol = TLSv1.3\n[profile weak]\nDestination = a.example\nMinProtocol = TLSv1.2\n"
            )
            self.assertEqual(errno.EPROTO, (await self.connectToName("a.example", server.port))[0])

    async def test_programs(self) -> None:
        """A program, and a user, that may do nothing."""
        self.certificate(testCA().issue())
        serve = echo(serverContext(testCA().issue()))
        for matcher in ("Application = /usr/bin/trial", f"User = {os.getuid()}"):
            self.configure(f"[default]\n{self.certified}[profile no]\n{matcher}\nAccess = deny\n")
            self.assertEqual(errno.EPERM, (await self.connectTo(serve))[0])
            self.assertEqual(errno.EPERM, await self.refused(self.interceptor.listen(await self.interceptor.newSocket())))
        self.configure(f"[default]\n{self.certified}[profile no]\nApplication = /usr/bin/other\nAccess = deny\n")
        self.assertEqual((0, ""), await self.connectTo(serve))
        await self.interceptor.listen(await self.interceptor.newSocket())

    async def test_upgrade(self) -> None:
        """An upgraded connection goes to a destination as well."""
        self.configure("[profile no]\nDestination = server.example\nAccess = deny\n")
        with running(echo(serverContext(testCA().issue()))) as server:
            program = await self.client()
            sock = socket.create_connection(("127.0.0.1", server.port))
            self.assertEqual(errno.EPERM, await self.interceptor.upgrade(program, sock, Role.CLIENT))

    async def test_old(self) -> None:
        """TLS 1.0 and 1.1 with the one destination that has nothing better, with certificates as good as everywhere."""
        self.configure("[profile old]\nDestination = server.example\nSecurityLevel = old\n")
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            context = serverContext(testCA().issue(["server.example", "other.example"]), maximum=version)
            self.assertEqual((0, ""), await self.connectTo(echo(context)))
            self.assertEqual(errno.EPROTO, (await self.connectTo(echo(context), "other.example"))[0])
        for flaw in ({"key": "rsa1024"}, {"sha1": True}):
            issued: Any = flaw
            number, text = await self.connectTo(echo(serverContext(testCA().issue(**issued), maximum=ssl.TLSVersion.TLSv1)))
            self.assertEqual(errno.EKEYREJECTED, number, text)
        self.assertEqual((0, ""), await self.connectTo(echo(serverContext(testCA().issue()))))


class ChangeTests(PolicyCase):
    """Reloads, and files that change by themselves."""

    async def listener(self) -> tuple[Program, int]:
        program = await self.interceptor.newSocket()
        return program, (await self.interceptor.listen(program)).port

    async def served(self, port: int, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
        """The name in the certificate that a listener shows; "" if it refuses the handshake."""
        context = ssl.create_default_context(cadata=testCA().pem.decode())
        context.check_hostname = False
        context.maximum_version = version

        def shakeHands() -> str:
            with socket.create_connection(("127.0.0.1", port), 10) as sock:
                try:
                    found: Any = context.wrap_socket(sock).getpeercert()
                except (ssl.SSLError, ConnectionError):
                    return ""
                return str(found["subjectAltName"][0][1])

        return await deferToThread(shakeHands)

    async def test_listeners(self) -> None:
        """A listener follows the policy, its certificate included; what it accepted before goes on."""
        self.certificate(testCA().issue(["one.example"]))
        self.assertTrue(self.configure(f"[default]\n{self.certified}"))
        _, port = await self.listener()
        self.assertEqual("one.example", await self.served(port))
        self.certificate(testCA().issue(["two.example"]))
        self.assertEqual("one.example", await self.served(port))
        self.assertTrue(self.configure(f"[default]\n{self.certified}"))
        self.assertEqual("two.example", await self.served(port))
        self.assertEqual("two.example", await self.served(port, ssl.TLSVersion.TLSv1_2))
        self.assertTrue(self.configure(f"[default]\nMinProtocol = TLSv1.3\n{self.certified}"))
        self.assertEqual("", await self.served(port, ssl.TLSVersion.TLSv1_2))
        self.assertTrue(self.configure(f"[default]\nAccess = deny\n{self.certified}"))
        self.assertEqual("", await self.served(port))
        self.assertTrue(self.configure("[default]\n"))
        self.assertEqual("", await self.served(port))
        self.assertTrue(self.configure(f"[default]\n{self.certified}"))
        self.assertEqual("two.example", await self.served(port))

    async def test_ownCertificate(self) -> None:
        """A program's own certificate stays under every policy."""
        program = await self.interceptor.newSocket()
        mine = testCA().issue(["mine.example"])
        await self.interceptor.set(program, Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM)
        await self.interceptor.set(program, Option.TLS_PRIVATE_KEY, mine.keyPEM)
        port = (await self.interceptor.listen(program)).port
        self.certificate(testCA().issue(["admin.example"]))
        self.assertTrue(self.configure(f"[default]\nMinProtocol = TLSv1.3\n{self.certified}"))
        self.assertEqual("mine.example", await self.served(port))
        self.assertEqual("", await self.served(port, ssl.TLSVersion.TLSv1_2))

    async def test_allOrNothing(self) -> None:
        """A certificate that is broken keeps everything as it was, other keys too, and the log says why."""
        self.certificate(testCA().issue(["one.example"]))
        self.assertTrue(self.configure(f"[default]\n{self.certified}"))
        before = self.daemon.shared.policy
        self.write("c.key", testCA().issue(key=testKey("ec", 79)).keyPEM)
        told: list[str] = []
        self.patch(service.Daemon, "log", type("Log", (), {"error": lambda self, text, **rest: told.append(rest["error"])})())
        self.assertFalse(self.configure(f"[default]\nMaxSockets = 1\n{self.certified}"))
        self.assertIs(before, self.daemon.shared.policy)
        self.assertIn(f"{self.path('ssa.conf')}:3: [default] CertPath: ", told[0])
        self.assertIn("no private key fits", told[0])
        self.assertNotIn("PRIVATE", told[0])

    async def test_watched(self) -> None:
        """Files that change come into force by themselves, together; a broken one changes nothing."""
        self.certificate(testCA().issue(["one.example"]))
        roots = self.write("roots.pem", testCA().pem)
        text = f"[default]\nTrustStoreLocation = {roots}\n{self.certified}"
        self.assertTrue(self.configure(text))
        _, port = await self.listener()

        def look() -> None:
            for _ in range(2):
                self.daemon._watch._look()

        look()
        self.write("ssa.conf", b"[half writ")
        self.certificate(testCA().issue(["two.example"], key=testKey("ec", 80)))
        look()
        self.assertEqual("two.example", await self.served(port))
        self.write("c.pem", testCA().issue(["three.example"], key=testKey("ec", 81)).chainPEM)
        look()
        self.assertEqual("two.example", await self.served(port))
        self.write("c.key", testCA().issue(["three.example"], key=testKey("ec", 81)).keyPEM)
        look()
        self.assertEqual("three.example", await self.served(port))
        self.write("roots.pem", b"")
        look()
        files = self.daemon.shared.policy.default.files
        assert isinstance(files, LoadedFiles)
        self.assertEqual(1, len(files.store(roots).certificates()))
        self.flushLoggedErrors()

    async def test_trustStore(self) -> None:
        """A trust store that changes holds for the next connect; a connection goes on."""
        roots = self.write("roots.pem", testCA().pem)
        self.assertTrue(self.configure(f"[default]\nTrustStoreLocation = {roots}\n"))
        with running(echo(serverContext(testCA().issue()))) as server:
            program = await self.interceptor.newSocket()
            await self.interceptor.set(program, Option.TLS_REMOTE_HOSTNAME, b"server.example")
            self.assertEqual(0, await self.interceptor.connect(program, local(server.port)))
            self.write("roots.pem", otherCA().pem)
            for _ in range(2):
                self.daemon._watch._look()
            other = await self.interceptor.newSocket()
            await self.interceptor.set(other, Option.TLS_REMOTE_HOSTNAME, b"server.example")
            self.assertEqual(errno.EKEYREJECTED, await self.interceptor.connect(other, local(server.port)))
            assert program.plain is not None
            self.assertEqual(b"still", await deferToThread(exchange, program.plain, b"still"))

    async def connectAgain(self, port: int) -> tuple[int, bool]:
        """Connect, exchange data, with which a ticket comes: the errno, and whether a session was resumed."""
        program = await self.interceptor.newSocket()
        await self.interceptor.set(program, Option.TLS_REMOTE_HOSTNAME, b"server.example")
        number = await self.interceptor.connect(program, local(port))
        if number:
            return number, False
        resumed = await self.interceptor.get(program, Option.TLS_RESUMED_SESSION) == struct.pack("=i", 1)
        assert program.plain is not None
        self.assertEqual(b"data", await deferToThread(exchange, program.plain, b"data"))
        return 0, resumed

    async def test_sessions(self) -> None:
        """No client resumes a session from before a reload, whatever has changed."""
        roots = self.write("roots.pem", testCA().pem)
        text = f"[default]\nTrustStoreLocation = {roots}\n"
        self.assertTrue(self.configure(text))
        with running(echo(serverContext(testCA().issue()))) as server:
            for _ in range(2):
                self.assertEqual((0, False), await self.connectAgain(server.port))
                self.assertEqual((0, True), await self.connectAgain(server.port))
                self.assertTrue(self.configure(text))

    async def test_logs(self) -> None:
        """A list of logs that changes ends the sessions that began under the old one."""
        logs = [TestLog(name) for name in ("a", "b", "c", "d")]
        roots = self.write("roots.pem", testCA().pem)
        path = self.write("logs.json", logListBytes(*logs[:2]))
        self.assertTrue(
            self.configure(
                f"[default]\nTrustStoreLocation = {roots}\nTransparencyLogs = {path}\nVerifyCertTransparency = on\n"
            )
        )
        with running(echo(serverContext(issueLogged(testCA(), logs[:2])))) as server:
            self.assertEqual((0, False), await self.connectAgain(server.port))
            self.assertEqual((0, True), await self.connectAgain(server.port))
            self.write("logs.json", logListBytes(*logs[2:]))
            for _ in range(2):
                self.daemon._watch._look()
            self.assertEqual((errno.EKEYREJECTED, False), await self.connectAgain(server.port))

    async def test_byTheClock(self) -> None:
        """The daemon looks by itself."""
        self.certificate(testCA().issue(["one.example"]))
        self.patch(watching, "INTERVAL", 0.02)
        self.daemon._watch.stop()
        self.daemon._watch.start()
        self.assertTrue(self.configure(f"[default]\n{self.certified}"))
        _, port = await self.listener()
        self.certificate(testCA().issue(["two.example"]))
        for _ in range(100):
            await after(0.05)
            if await self.served(port) == "two.example":
                break
        else:
            self.fail("not noticed")
