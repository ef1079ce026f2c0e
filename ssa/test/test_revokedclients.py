# SPDX-License-Identifier: MIT
"""Servers that ask clients for certificates, and whether those are revoked; sessions that are resumed are judged again."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

from cryptography.x509 import ocsp
from OpenSSL import SSL, crypto
from twisted.internet.threads import deferToThread

from ssa.api import InternetAddress, Option
from ssa.policy.profile import Profile
from ssa.test.badservers import running, stapling
from ssa.test.pki import Credential, testCA
from ssa.test.responders import ocspAnswer, points, revocationList
from ssa.test.test_daemon import after
from ssa.test.test_revocationdaemon import NAME, CheckedCase

REVOKED = ocsp.OCSPCertStatus.REVOKED


class ClientCertificateTests(CheckedCase):
    """RevocationChecks and ClientAuth are on."""

    profile = Profile(handshakeTimeout=5.0, revocationChecks=True, revocationTimeout=1.0, clientAuth="require")

    async def listening(self) -> int:
        own = testCA().issue([NAME])
        program = await self.interceptor.newSocket()
        await self.interceptor.set(program, Option.TLS_CERTIFICATE_CHAIN, own.chainPEM)
        await self.interceptor.set(program, Option.TLS_PRIVATE_KEY, own.keyPEM)
        self.listener = program
        return (await self.interceptor.listen(program)).port

    @staticmethod
    def contextFor(client: Credential, version: int = 0x0304) -> SSL.Context:
        """A client's context; sessions belong to it."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.use_privatekey(crypto.PKey.from_cryptography_key(client.key))
        context.use_certificate(crypto.X509.from_cryptography(client.certificate))
        for certificate in client.chain[1:]:
            context.add_extra_chain_cert(crypto.X509.from_cryptography(certificate))
        return context

    @staticmethod
    def visit(port: int, context: SSL.Context, session: Any = None) -> tuple[bool, Any]:
        """Be a client.  @return: whether the server took it and said something, and the session."""
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.setblocking(True)
            connection = SSL.Connection(context, sock)
            if session is not None:
                connection.set_session(session)
            connection.set_connect_state()
            try:
                connection.do_handshake()
                connection.send(b"hello")
                connection.recv(100)
                session = connection.get_session()
                connection.shutdown()  # OpenSSL resumes no session of a connection that was cut
                return True, session
            except SSL.Error:
                return False, None

    async def visited(self, port: int, context: SSL.Context, session: Any = None) -> tuple[bool, Any, bool]:
        """Visit the listener.  @return: whether it took the client, the session, and whether that was resumed."""
        resumed = False
        visiting = deferToThread(self.visit, port, context, session)
        while not visiting.called:
            if self.listener.accepted:
                program = self.interceptor.programs[self.listener.accepted.pop(0)]
                assert program.plain is not None
                await deferToThread(program.plain.recv, 5)
                resumed = await self.interceptor.get(program, Option.TLS_RESUMED_SESSION) == struct.pack("=i", 1)
                program.plain.sendall(b"hi")
                self.interceptor.close(program)
            await after(0.01)
        return (*await visiting, resumed)

    async def test_answers(self) -> None:
        """Good, revoked, unknown."""
        port = await self.listening()
        good = ocsp.OCSPCertStatus.GOOD
        for name, status, expected in (("good", good, True), ("bad", REVOKED, False), ("gone", None, False)):
            client = testCA().issue([name], purpose="client", extensions=points(self.web.url(f"/{name}")))
            if status is not None:
                self.web.put(f"/{name}", ocspAnswer(testCA(), client.certificate, status))
            self.assertEqual(expected, (await self.visited(port, self.contextFor(client)))[0], name)

    async def test_resumed(self) -> None:
        """A session is resumed while the certificates are good, the intermediate's too, and not after one was revoked."""
        port = await self.listening()
        for version in (0x0303, 0x0304):
            middle = testCA().intermediate(f"middle {version}", extensions=points("", self.web.url(f"/root{version}")))
            client = middle.issue(["client"], purpose="client", extensions=points("", self.web.url(f"/middle{version}")))
            self.web.put(f"/root{version}", revocationList(testCA()))
            self.web.put(f"/middle{version}", revocationList(middle))
            context = self.contextFor(client, version)
            good, session, resumed = await self.visited(port, context)
            self.assertEqual((True, False), (good, resumed))
            good, session, resumed = await self.visited(port, context, session)
            self.assertEqual((True, True), (good, resumed))
            self.daemon.shared.factories._revocation.cache._entries.clear()  # type: ignore[attr-defined]
            self.web.put(f"/root{version}", revocationList(testCA(), [middle.certificate.serial_number]))
            self.assertFalse((await self.visited(port, context, session))[0])


class ResumedServerTests(CheckedCase):
    """A client that resumes a session judges the server again."""

    profile = Profile(handshakeTimeout=5.0, revocationChecks=True, revocationTimeout=1.0)

    async def connectOnce(self, port: int) -> tuple[int, bool, str]:
        """@return: the errno, whether the session was resumed, and TLS_ERROR."""
        program = await self.newClient()
        number = await self.interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port))
        text = await self.interceptor.error(program)
        resumed = False
        if not number:
            assert program.plain is not None
            self.assertTrue(await deferToThread(program.plain.recv, 5))
            resumed = await self.interceptor.get(program, Option.TLS_RESUMED_SESSION) == struct.pack("=i", 1)
            await after(0.05)
        self.interceptor.close(program)
        await after(0.05)
        return number, resumed, text

    async def test_resumed(self) -> None:
        """By the cache, which has the answer that was stapled; without it, or with a revocation, it is refused."""
        own = testCA().issue([NAME], extensions=points(self.web.url("/ocsp")))
        for version in (0x0303, 0x0304):
            with running(stapling(own, ocspAnswer(testCA(), own.certificate), version)) as server:
                self.assertEqual((0, False, ""), await self.connectOnce(server.port))
                self.assertEqual((0, True, ""), await self.connectOnce(server.port))
                self.assertEqual([], self.web.asked)
                self.daemon.shared.factories._revocation.cache._entries.clear()  # type: ignore[attr-defined]
                number, _, text = await self.connectOnce(server.port)
                self.assertEqual(errno.EKEYREVOKED, number)
                self.assertIn("/ocsp: the server answers with status 404", text)
                self.assertNotIn("stapled: nothing", text)
                self.web.asked.clear()
