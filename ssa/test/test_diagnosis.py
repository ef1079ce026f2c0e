# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.diagnosis} and L{ssa.tls.rules}: failed handshakes say why, on both sides."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import Option
from ssa.errors import LONGEST_REASON, Cause, SSAError
from ssa.options import SocketOptions
from ssa.policy.profile import TLS_1_2, TLS_1_3, Profile
from ssa.test import badservers
from ssa.test.pki import otherCA, testCA
from ssa.test.test_handshake import LoopbackCase, failureOf
from ssa.test.tlspair import Pair, optionsWith, serving, trusting
from ssa.tls.contexts import clientConnection
from ssa.tls.handshake import Handshake
from ssa.tls.identity import parseIdentity
from ssa.tls.rules import Rules
from ssa.tls.servercontexts import serverConnection, serverContexts


@dataclass(frozen=True)
class Ruled(Profile):
    """A profile whose keys come from a file."""

    lines: dict[str, str] = field(default_factory=dict, compare=False)

    def origin(self, key: str) -> str:
        """Where a key is."""
        return self.lines.get(key, "")


class RuleTests(SynchronousTestCase):
    """The rule behind a refusal."""

    def test_keyRule(self) -> None:
        """A key's place, or that it has none."""
        profile = Ruled(lines={"MinProtocol": "/etc/ssa/ssa.conf:3 [profile web]"})
        self.assertEqual(profile.rule("MinProtocol"), "MinProtocol at /etc/ssa/ssa.conf:3 [profile web]")
        self.assertEqual(profile.rule("MaxProtocol"), "the built-in default of MaxProtocol")

    def test_causes(self) -> None:
        """What each cause names."""
        profile = Ruled(lines={"TrustStoreLocation": "f:1 [default]", "CertVerificationDepth": "f:2 [default]"})
        ours = Rules(profile, "/etc/store.pem")
        self.assertEqual(ours.behind(Cause.UNTRUSTED, 20), "trust store /etc/store.pem, TrustStoreLocation at f:1 [default]")
        self.assertEqual(
            ours.behind(Cause.UNTRUSTED, 22), "at most 10 intermediate certificates, CertVerificationDepth at f:2 [default]"
        )
        self.assertIn("AppCustomValidation", Rules(profile, isProgramsStore=True).behind(Cause.UNTRUSTED))
        self.assertIn("RevocationChecks", ours.behind(Cause.REVOKED))
        for cause in (Cause.WRONG_NAME, Cause.WRONG_PURPOSE, Cause.WEAK, Cause.MALFORMED, Cause.EXPIRED):
            self.assertTrue(ours.behind(cause).startswith("always in force: "), cause)
        self.assertEqual(ours.behind(Cause.INTERNAL), "")

    def refusal(self, options: SocketOptions, profile: Profile, **flaw: bool) -> str:
        pair = Pair(options, serving(testCA().issue(**flaw)), clientProfile=profile).shakeHands()  # type: ignore[arg-type]
        self.addCleanup(pair.close)
        self.assertIsInstance(pair.errors["client"], SSL.Error)
        check = pair.client.get_app_data()
        self.assertIsNotNone(check.sentAlert)
        return str(check.refusal)

    def test_administratorsStore(self) -> None:
        """The trust store in force is named, with the line that says so, before the certificate."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(otherCA().pem)
        profile = Ruled(trustStore=path, lines={"TrustStoreLocation": "/etc/ssa/ssa.conf:12 [default]"})
        text = self.refusal(optionsWith(), profile)
        rule = f"(trust store {path}, TrustStoreLocation at /etc/ssa/ssa.conf:12 [default])"
        self.assertIn(rule, text)
        self.assertLess(text.index(rule), text.index("[subject CN=server.example"))
        for part in ("issuer CN=SSA test root", "valid 20", " UTC", "SHA-256 "):
            self.assertIn(part, text)

    def test_programsStore(self) -> None:
        """The program's own trust store is named as such."""
        text = self.refusal(trusting(otherCA()), Profile())
        self.assertIn("the program's own TLS_TRUSTED_PEER_CERTIFICATES, allowed by the built-in default", text)

    def test_expired(self) -> None:
        """What no key turns off says so."""
        self.assertIn("always in force: RFC 5280", self.refusal(trusting(testCA()), Profile(), expired=True))


class ClientTests(LoopbackCase):
    """A client says what it offered and what the server answered."""

    async def against(
        self, serve: badservers.Serve, number: int, *words: str, profile: Profile | None = None
    ) -> SSAError:
        def later(sock: socket.socket) -> None:
            """What comes while the client writes its first message may be read at once, and is not seen."""
            time.sleep(0.2)
            serve(sock)

        with badservers.running(later) as server:
            sock = self.connecting(server.port)
            options = trusting(testCA(), (Option.TLS_ALPN, b"h2,http/1.1"))
            connection = clientConnection(profile or Profile(), options, sock, parseIdentity("server.example"))
            shake = Handshake(reactor, connection, sock, 1.0, connecting=True, where="127.0.0.1")
            error = await failureOf(shake.start())
        self.assertEqual(errno.errorcode[error.errno], errno.errorcode[number], error.reason)
        for word in words:
            self.assertIn(word, error.reason)
        self.assertLessEqual(len(error.reason), LONGEST_REASON)
        return error

    async def test_alert(self) -> None:
        """An alert has name and number; versions, ciphers, groups, protocols and name are told."""
        error = await self.against(
            badservers.alert,
            errno.EPROTO,
            "handshake_failure (40)",
            "we offered versions TLSv1.3 TLSv1.2, ciphers TLS_AES_128_GCM_SHA256 ",
            "ALPN h2 http/1.1",
            "name server.example",
        )
        self.assertEqual(error.evidence["alert_received"], "handshake_failure (40)")
        self.assertEqual(error.evidence["offered_alpn"], "h2 http/1.1")
        self.assertIn("X25519", error.evidence["offered_groups"])
        self.assertIn("ecdsa_secp256r1_sha256", error.evidence["offered_signatures"])

    async def test_asConfigured(self) -> None:
        """What is offered is what the profile says, not what OpenSSL could do."""
        profile = Profile(maxProtocol=TLS_1_2, cipherList="ECDHE-RSA-AES128-GCM-SHA256")
        error = await self.against(badservers.alert, errno.EPROTO, profile=profile)
        self.assertEqual(error.evidence["offered_versions"], "TLSv1.2")
        self.assertEqual(error.evidence["offered_ciphers"].split()[0], "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")
        self.assertNotIn("ECDSA_WITH", error.evidence["offered_ciphers"])

    async def test_answered(self) -> None:
        """A server that chooses what was not offered is told with its choice."""

        def old(sock: socket.socket) -> None:
            sock.recv(65536)
            body = b"\x03\x01" + bytes(32) + b"\x00\x00\x05\x00"
            sock.sendall(b"\x16\x03\x01" + (len(body) + 4).to_bytes(2, "big") + b"\x02\x00\x00" + bytes((len(body),)) + body)
            sock.recv(65536)

        error = await self.against(old, errno.EPROTO, "we sent the alert protocol_version (70)")
        # Whether the answer was seen before OpenSSL took it is a matter of timing on the loopback.
        if "no first message" not in error.reason:
            self.assertIn("the server answered versions TLSv1, ciphers RC4-SHA", error.reason)

    async def test_notTLS(self) -> None:
        """Another protocol is recognized; its words are not repeated, and neither is the offer."""

        def smtp(sock: socket.socket) -> None:
            sock.sendall(b"220 very private words\r\n")
            sock.recv(65536)

        error = await self.against(smtp, errno.EPROTO, "does not speak TLS", "the server: it speaks SMTP or FTP")
        self.assertNotIn("private", error.reason + str(error.evidence))
        self.assertNotIn("we offered", error.reason)

    async def test_silence(self) -> None:
        """A server that says nothing."""
        await self.against(
            badservers.stalling, errno.ETIMEDOUT, "no first message of the server's was seen", "we offered versions"
        )

    async def test_certificate(self) -> None:
        """A refused certificate: the alert that was sent, and no list of ciphers."""
        context = badservers.serverContext(testCA().issue(expired=True))
        error = await self.against(badservers.echo(context), errno.EKEYEXPIRED, "we sent the alert certificate_expired (45)")
        self.assertEqual(error.evidence, {"alert_sent": "certificate_expired (45)"})

    async def test_unreachable(self) -> None:
        """Where there was no TLS at all, TLS is not explained."""
        handshake = self.client(port=1)
        error = await failureOf(handshake.start())
        self.assertEqual(error.errno, errno.ECONNREFUSED)
        self.assertNotIn("offered", error.reason)


class ServerTests(LoopbackCase):
    """A server says what the client offered and what it serves."""

    async def refuses(self, client: Callable[[socket.socket], object], number: int, *words: str) -> SSAError:
        def run() -> None:
            with socket.create_connection(self.listener.getsockname(), 10) as sock:
                try:
                    client(sock)
                    sock.settimeout(10)
                    sock.recv(1)
                except OSError:
                    pass

        peer = threading.Thread(target=run)
        peer.start()
        accepted, _ = self.listener.accept()
        self.addCleanup(accepted.close)
        accepted.setblocking(False)
        contexts = serverContexts(Profile(), serving(testCA().issue(), settings=((Option.TLS_ALPN, b"h2"),)))
        error = await failureOf(
            Handshake(reactor, serverConnection(contexts, accepted), accepted, 5, where="the client").start()
        )
        peer.join(10)
        self.assertEqual(errno.errorcode[error.errno], errno.errorcode[number], error.reason)
        for word in words:
            self.assertIn(word, error.reason)
        return error

    def wrapping(self, maximum: ssl.TLSVersion, ciphers: str, *protocols: str) -> Callable[[socket.socket], object]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers(ciphers)
        context.maximum_version = maximum
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return lambda sock: context.wrap_socket(sock, server_hostname="x.example").recv(1)

    async def test_cipher(self) -> None:
        """No cipher in common: the client's, and ours with the kind of the certificate's key."""
        error = await self.refuses(
            self.wrapping(ssl.TLSVersion.TLSv1_2, "AES128-SHA:@SECLEVEL=0"),
            errno.EPROTO,
            "no shared cipher",
            "we sent the alert handshake_failure (40)",
            "the client offered versions TLSv1.2, ciphers TLS_RSA_WITH_AES_128_CBC_SHA ",
            "name x.example",
            "we serve versions TLSv1.2 TLSv1.3, ciphers TLS_AES_128_GCM_SHA256 ",
            "certificate key EC",
        )
        self.assertEqual(error.evidence["offered_ciphers"], "TLS_RSA_WITH_AES_128_CBC_SHA TLS_EMPTY_RENEGOTIATION_INFO_SCSV")
        self.assertEqual(error.evidence["served_certificate_key"], "EC")

    async def test_protocol(self) -> None:
        """No application protocol in common."""
        await self.refuses(
            self.wrapping(ssl.TLSVersion.TLSv1_3, "DEFAULT", "other/1"),
            errno.EPROTO,
            "offered other/1, served h2",
            "we sent the alert no_application_protocol (120)",
            "ALPN other/1",
        )

    async def test_refusedByClient(self) -> None:
        """The client's alert has its number."""
        context = ssl.create_default_context(cadata=otherCA().pem.decode())
        await self.refuses(
            lambda sock: context.wrap_socket(sock, server_hostname="server.example"),
            errno.EPROTO,
            "it sent the alert unknown_ca (48)",
            "the client offered versions TLSv1.3",
        )

    async def test_slowly(self) -> None:
        """A ClientHello in two segments is understood as well."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(TLS_1_2)
        context.set_cipher_list(b"AES128-SHA:@SECLEVEL=0")
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        self.assertRaises(SSL.WantReadError, connection.do_handshake)
        data = connection.bio_read(65536)

        def slowly(sock: socket.socket) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(data[:60])
            time.sleep(0.1)
            sock.sendall(data[60:])

        await self.refuses(slowly, errno.EPROTO, "the client offered versions TLSv1.2, ciphers TLS_RSA_WITH_AES_128_CBC_SHA ")

    async def test_http(self) -> None:
        """HTTP to a TLS port."""
        error = await self.refuses(
            lambda sock: sock.sendall(b"GET /private HTTP/1.0\r\n\r\n"), errno.EPROTO, "the client: it speaks HTTP"
        )
        self.assertNotIn("private", error.reason + str(error.evidence))


class NoCostTests(LoopbackCase):
    """Handshakes that succeed."""

    async def test_success(self) -> None:
        """Nothing is kept, and no alert counts as one."""
        for version in (TLS_1_2, TLS_1_3):
            client = self.client(profile=Profile(maxProtocol=version))
            done = client.start()
            accepted, _ = self.listener.accept()
            self.addCleanup(accepted.close)
            accepted.setblocking(False)
            contexts = serverContexts(Profile(), serving(testCA().issue()))
            other = Handshake(reactor, serverConnection(contexts, accepted), accepted, 5).start()
            connection, theirs = await done, await other
            for each in (connection, theirs):
                self.assertIsNone(each.get_app_data().sentAlert)
                self.assertIsNone(each.get_app_data().receivedAlert)
