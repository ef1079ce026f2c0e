# SPDX-License-Identifier: MIT
"""
Revocation, stapling and transparency from the socket call to the network: a real daemon, real TLS, real responders.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.x509 import ocsp
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from ssa.api import InternetAddress, Option
from ssa.configuration import loadConfiguration
from ssa.policy.profile import Policy, Profile
from ssa.service import Daemon
from ssa.test.badservers import Serve, running, stapling
from ssa.test.ctlogs import TestLog, issueLogged, logListBytes, timestampList, wholeEntry
from ssa.test.loggedanswers import answerWith
from ssa.test.loopback import Program
from ssa.test.pki import CA, Credential, otherCA, testCA
from ssa.test.responders import DAY, Web, ocspAnswer, opensslResponder, points, revocationList, slow
from ssa.test.test_daemon import DaemonCase, after, reactor

REVOKED, UNKNOWN = ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN
NAME = "server.example"


class CheckedCase(DaemonCase):
    """A daemon whose trust store is the test's root, and a web server for answers."""

    timeout = 40

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        (self.folder / "trust.pem").write_bytes(testCA().pem)
        self.profile = replace(self.profile, trustStore=str(self.folder / "trust.pem"))
        super().setUp()
        self.web = Web()
        self.addCleanup(self.web.stop)

    def issue(self, **more: Any) -> Credential:
        """A certificate that names C{/ocsp} and C{/crl}."""
        return testCA().issue([NAME], extensions=points(self.web.url("/ocsp"), self.web.url("/crl"), **more))

    async def connectTo(self, serve: Serve, name: str = NAME, trust: bytes = b"") -> tuple[int, str]:
        """The errno and TLS_ERROR of a connect to a server; without trusted certificates of the program's own."""
        with running(serve) as server:
            return await self.connectAt(server.port, name, trust)

    async def connectAt(self, port: int, name: str = NAME, trust: bytes = b"") -> tuple[int, str]:
        program = await self.newClient(name, trust)
        number = await self.interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port))
        text = await self.interceptor.error(program)
        if not number:
            assert program.plain is not None
            self.assertTrue(await deferToThread(program.plain.recv, 5))
        self.interceptor.close(program)
        return number, text

    async def newClient(self, name: str = NAME, trust: bytes = b"") -> Program:
        program = await self.interceptor.newSocket()
        if trust:
            await self.interceptor.set(program, Option.TLS_TRUSTED_PEER_CERTIFICATES, trust)
        await self.interceptor.set(program, Option.TLS_REMOTE_HOSTNAME, name.encode())
        return program

    def assertRefused(self, result: tuple[int, str], *words: str) -> None:
        self.assertEqual(errno.EKEYREVOKED, result[0], result[1])
        for word in words:
            self.assertIn(word, result[1])

    def run_(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(coroutine)


class RequiredTests(CheckedCase):
    """RevocationChecks is on."""

    profile = Profile(handshakeTimeout=5.0, revocationChecks=True, revocationTimeout=1.0)

    async def test_stapled(self) -> None:
        """Good and revoked, with each version of TLS."""
        own = self.issue()
        for version in (0x0303, 0x0304):
            good = ocspAnswer(testCA(), own.certificate)
            self.assertEqual((0, ""), await self.connectTo(stapling(own, good, version)))
            bad = ocspAnswer(testCA(), own.certificate, REVOKED)
            self.assertRefused(await self.connectTo(stapling(own, bad, version)), "revoked", "stapled", "keyCompromise")
        self.assertEqual([], self.web.asked)

    async def test_responder(self) -> None:
        """OCSP over HTTP; the next connection finds the answer in the cache."""
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        self.assertEqual((0, ""), await self.connectTo(stapling(own)))
        asked = len(self.web.asked)
        self.assertEqual((0, ""), await self.connectTo(stapling(own)))
        self.assertEqual(asked, len(self.web.asked))

    async def test_list(self) -> None:
        """A list over HTTP says revoked."""
        own = self.issue()
        self.web.put("/crl", revocationList(testCA(), [own.certificate.serial_number]))
        self.assertRefused(await self.connectTo(stapling(own)), "revoked", "CRL http://127.0.0.1", "superseded")

    async def test_unknown(self) -> None:
        """Nobody knows: the text tells of each source."""
        self.assertRefused(
            await self.connectTo(stapling(self.issue())), "no definite answer", "RevocationChecks", "stapled: nothing",
            "cached: nothing", "/ocsp: the server answers with status 404", "/crl: the server answers with status 404",
        )  # fmt: skip

    async def test_othersGoOn(self) -> None:
        """While one connection waits for a responder that says nothing, others are served; then the time is up."""
        own = self.issue()
        self.web.put("/ocsp", slow)
        self.web.put("/crl", slow)
        stapled = stapling(own, ocspAnswer(testCA(), own.certificate))
        begun = time.monotonic()
        waiting = Deferred.fromCoroutine(self.connectTo(stapling(own)))
        while not self.web.asked:
            await after(0.01)
        # Its own sockets: what it keeps of the stapled answer must not answer the first one's question.
        self.assertEqual((0, ""), await self.connectTo(stapled))
        self.assertFalse(waiting.called)
        self.assertRefused(await waiting, "no answer yet", "1 s")
        self.assertLess(time.monotonic() - begun, 4)

    async def test_closed(self) -> None:
        """The program closes the socket meanwhile: the question ends."""
        own = self.issue()
        self.web.put("/ocsp", slow)
        with running(stapling(own)) as server:
            program = await self.newClient()
            connecting = self.interceptor.startConnect(program, InternetAddress(socket.AF_INET, "127.0.0.1", server.port))
            connecting.addErrback(lambda _: None)
            while not self.web.asked:
                await after(0.01)
            self.interceptor.close(program)
            for _ in range(200):
                if not self.daemon.shared.admission.total:
                    break
                await after(0.01)
            self.assertEqual(0, self.daemon.shared.admission.total)

    async def test_programsAuthority(self) -> None:
        """An authority that the program brought cannot send the daemon to loopback; what is stapled counts."""
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        self.assertRefused(await self.connectTo(stapling(own), trust=testCA().pem), "is not asked, only 80")
        self.assertEqual([], self.web.asked)
        good = stapling(own, ocspAnswer(testCA(), own.certificate))
        self.assertEqual((0, ""), await self.connectTo(good, trust=testCA().pem))

    async def test_openssl(self) -> None:
        """OpenSSL's responder is asked by the daemon itself."""
        if shutil.which("openssl") is None:
            raise SkipTest("there is no openssl")
        own = testCA().issue([NAME])
        with opensslResponder(self.folder, testCA(), [own.certificate], []) as url:
            # The certificate has to name the port, which the responder has chosen; it knows serial numbers only.
            pass
        named = testCA().issue([NAME], extensions=points(url))
        with opensslResponder(self.folder, testCA(), [named.certificate], [], port=int(url.split(":")[2].rstrip("/"))):
            self.assertEqual((0, ""), await self.connectTo(stapling(named)))
        other = testCA().issue([NAME], extensions=points(url))
        self.assertRefused(await self.connectTo(stapling(other)), "no connection")


class NotRequiredTests(CheckedCase):
    """The default: nothing is required."""

    async def test_nothingAsked(self) -> None:
        """A certificate with sources, no answer: nobody is asked."""
        self.assertEqual((0, ""), await self.connectTo(stapling(self.issue())))
        self.assertEqual([], self.web.asked)

    async def test_stapledRevoked(self) -> None:
        """A stapled "revoked" is honoured."""
        own = self.issue()
        bad = ocspAnswer(testCA(), own.certificate, REVOKED)
        self.assertRefused(await self.connectTo(stapling(own, bad)), "the stapled OCSP answer")

    async def test_mustStaple(self) -> None:
        """A certificate that demands it: without, with an old one, with a good one."""
        own = self.issue(mustStaple=True)
        self.assertRefused(await self.connectTo(stapling(own)), "RFC 7633", "nothing")
        old = ocspAnswer(testCA(), own.certificate, begin=-3 * DAY, end=-DAY)
        self.assertRefused(await self.connectTo(stapling(own, old)), "RFC 7633", "expired")
        self.assertEqual((0, ""), await self.connectTo(stapling(own, ocspAnswer(testCA(), own.certificate))))

    async def test_nginx(self) -> None:
        """
        nginx staples what OpenSSL's responder says, and other answers from files: the certificates demand a good one.
        """
        nginx = shutil.which("nginx") or ("/usr/sbin/nginx" if os.path.exists("/usr/sbin/nginx") else None)
        if nginx is None or shutil.which("openssl") is None:
            raise SkipTest("there is no nginx, or no openssl")
        own = self.issue(mustStaple=True)
        (self.folder / "own.pem").write_bytes(own.chainPEM)
        (self.folder / "own.key").write_bytes(own.keyPEM)
        # nginx keeps to itself what its responder says but good; from a file it staples everything.
        answers = {
            "revoked": (ocspAnswer(testCA(), own.certificate, REVOKED), "keyCompromise"),
            "unknown": (ocspAnswer(testCA(), own.certificate, UNKNOWN), "the responder does not know the certificate"),
            "expired": (ocspAnswer(testCA(), own.certificate, begin=-3 * DAY, end=-DAY), "it has expired"),
            "wrong": (ocspAnswer(otherCA(), own.certificate, issuer=testCA().certificate), "its signer is neither"),
        }
        for name, (data, _) in answers.items():
            (self.folder / f"{name}.der").write_bytes(data)
        expected = {"good": (0, ""), "absent": (errno.EKEYREVOKED, "stapled: nothing")}
        expected |= {name: (errno.EKEYREVOKED, words) for name, (_, words) in answers.items()}
        with contextlib.ExitStack() as stack:
            free = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in expected}
            ports = {name: sock.getsockname()[1] for name, sock in free.items()}
        with opensslResponder(self.folder, testCA(), [own.certificate]) as url:
            kinds = {name: f"ssl_stapling on; ssl_stapling_file {name}.der;" for name in answers}
            kinds["good"] = (
                f"ssl_stapling on; ssl_stapling_verify on; ssl_trusted_certificate trust.pem; ssl_stapling_responder {url};"
            )
            kinds["absent"] = "ssl_stapling off;"
            servers = "".join(
                f"server {{ listen 127.0.0.1:{ports[name]} ssl; ssl_certificate own.pem; ssl_certificate_key own.key;"
                f' {kind} return 200 "hello"; }}'
                for name, kind in kinds.items()
            )
            temporary = "".join(f"{name}_temp_path tmp;" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            (self.folder / "nginx.conf").write_text(
                f"daemon off; master_process off; pid pid; error_log error.log info; events {{ }}"
                f" http {{ access_log off; {temporary} {servers} }}"
            )
            process = subprocess.Popen([nginx, "-p", str(self.folder), "-c", "nginx.conf"], stderr=subprocess.DEVNULL)
            try:
                # nginx asks when the first client comes, and staples for those after it.
                for name, (number, word) in expected.items():
                    for _ in range(100):
                        result = await self.firstByte(ports[name])
                        if result[0] == number and word in result[1]:
                            break
                        await after(0.1)
                    log = (self.folder / "error.log").read_text()
                    self.assertEqual(number, result[0], name + result[1] + log)
                    self.assertIn(word, result[1], name)
            finally:
                process.terminate()
                process.wait(10)

    async def firstByte(self, port: int) -> tuple[int, str]:
        program = await self.newClient()
        number = await self.interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port))
        text = await self.interceptor.error(program)
        self.interceptor.close(program)
        return number, text


class StaplingTests(CheckedCase):
    """Our listeners staple."""

    profile = Profile(handshakeTimeout=5.0, serverStapling=True)

    async def listen(self, *credentials: Credential) -> tuple[Program, int]:
        program = await self.interceptor.newSocket()
        for credential in credentials:
            await self.interceptor.set(program, Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
            await self.interceptor.set(program, Option.TLS_PRIVATE_KEY, credential.keyPEM)
        return program, (await self.interceptor.listen(program)).port

    @staticmethod
    def stapledBy(port: int, name: str = NAME, ciphers: bytes = b"") -> tuple[bytes, bytes]:
        """What a client of OpenSSL's gets: the answer, and the server's certificate."""
        got: list[bytes] = []
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if ciphers:
            context.set_max_proto_version(0x0303)
            context.set_cipher_list(ciphers)

        def keep(connection: SSL.Connection, data: bytes, _: object) -> bool:
            got.append(data)
            return True

        context.set_ocsp_client_callback(keep)
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.setblocking(True)
            connection = SSL.Connection(context, sock)
            connection.request_ocsp()
            connection.set_tlsext_host_name(name.encode())
            connection.set_connect_state()
            connection.do_handshake()
            certificate = connection.get_peer_certificate()
            assert certificate is not None
            return got[0], crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)

    async def eventually(self, port: int, expected: bytes, *arguments: Any) -> None:
        for _ in range(200):
            got = (await deferToThread(self.stapledBy, port, *arguments))[0]
            if got == expected:
                return
            await after(0.02)
        self.assertEqual(expected, got)

    async def test_fetchedAhead(self) -> None:
        """The first client gets it already; one that does not ask is served too; it ends with the listener."""
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate)
        self.web.put("/ocsp", answer)
        program, port = await self.listen(own)
        while not self.web.asked or not self.daemon._staples.current(next(iter(self.daemon._staples._staples))):
            await after(0.01)
        self.assertEqual(answer, (await deferToThread(self.stapledBy, port))[0])
        self.assertEqual(1, self.web.count("/ocsp"))
        with socket.create_connection(("127.0.0.1", port)) as sock:
            connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), sock)
            connection.set_connect_state()
            sock.setblocking(True)
            await deferToThread(connection.do_handshake)
        self.interceptor.close(program)
        for _ in range(200):
            if not len(self.daemon._staples):
                break
            await after(0.01)
        self.assertEqual(0, len(self.daemon._staples))

    async def asked(self, path: str) -> None:
        """Wait until an answer was fetched."""
        for _ in range(500):
            if self.web.count(path) and all(staple.current() for staple in self.daemon._staples._staples.values()):
                return
            await after(0.01)
        self.fail("nobody has asked")

    async def test_fetchedAfterChange(self) -> None:
        """
        A listener's answer is there before the next client comes, also when stapling is turned on, or the certificate renewed,
        meanwhile: a certificate may demand it.
        """
        own, new = self.issue(), testCA().issue([NAME], extensions=points(self.web.url("/new")), key="rsa")
        answers = [ocspAnswer(testCA(), each.certificate) for each in (own, new)]
        self.web.put("/ocsp", answers[0])
        self.web.put("/new", answers[1])
        chain, key, config = self.folder / "c.pem", self.folder / "c.key", self.folder / "ssa.conf"
        chain.write_bytes(own.chainPEM)
        key.write_bytes(own.keyPEM)
        text = f"[default]\nTrustStoreLocation = {self.folder / 'trust.pem'}\nCertPath = {chain}\nKeyPath = {key}\n"
        self.daemon._loadPolicy = lambda: loadConfiguration(str(config))
        config.write_text(text)
        self.assertTrue(self.daemon.reload())
        listeners = [await self.listen() for _ in range(20)]
        self.assertEqual(b"", (await deferToThread(self.stapledBy, listeners[0][1]))[0])
        config.write_text(text + "OCSPStapling = on\n")
        self.assertTrue(self.daemon.reload())
        await self.asked("/ocsp")
        for _, port in listeners:
            self.assertEqual(answers[0], (await deferToThread(self.stapledBy, port))[0])
        chain.write_bytes(new.chainPEM)
        key.write_bytes(new.keyPEM)
        for _ in range(2):
            self.daemon._watch._look()
        await self.asked("/new")
        for _, port in listeners:
            self.assertEqual(answers[1], (await deferToThread(self.stapledBy, port))[0])
        self.assertEqual((1, 1), (self.web.count("/ocsp"), self.web.count("/new")))
        config.write_text(text)
        self.assertTrue(self.daemon.reload())
        for _ in range(100):
            if not len(self.daemon._staples):
                break
            await after(0.01)
        self.assertEqual(0, len(self.daemon._staples))

    async def test_severalCertificates(self) -> None:
        """Each certificate has its own answer: by name, and by kind of key."""
        credentials = {}
        for name, key in (("a.example", "ec"), ("b.example", "ec"), ("b.example", "rsa")):
            path = f"/{name}-{key}"
            own = testCA().issue([name], key=key, extensions=points(self.web.url(path)))
            answer = ocspAnswer(testCA(), own.certificate)
            self.web.put(path, answer)
            credentials[name, key] = own, answer
        _, port = await self.listen(*(own for own, _ in credentials.values()))
        for (name, key), (_, answer) in credentials.items():
            kind = b"ECDSA" if key == "ec" else b"RSA"
            await self.eventually(port, answer, name, b"ECDHE-" + kind + b"-AES128-GCM-SHA256")

    async def test_notGivenOut(self) -> None:
        """What is expired, or by somebody else, is not given out; clients are served without."""
        for data in (b"x", ocspAnswer(testCA(), testCA().issue(["x.example"]).certificate)):
            own = self.issue()
            self.web.put("/ocsp", data)
            before = self.web.count("/ocsp")
            _, port = await self.listen(own)
            while self.web.count("/ocsp") == before:
                await after(0.01)
            await after(0.05)
            self.assertEqual(b"", (await deferToThread(self.stapledBy, port))[0])

    async def test_mustStaple(self) -> None:
        """Our client and our server together, with a certificate that demands it."""
        own = self.issue(mustStaple=True)
        answer = ocspAnswer(testCA(), own.certificate)
        self.web.put("/ocsp", answer)
        _, port = await self.listen(own)
        await self.eventually(port, answer)
        program = await self.newClient()
        self.assertEqual(0, await self.interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port)))

    async def test_s_client(self) -> None:
        """openssl s_client -status shows it."""
        if shutil.which("openssl") is None:
            raise SkipTest("there is no openssl")
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate)
        self.web.put("/ocsp", answer)
        _, port = await self.listen(own)
        await self.eventually(port, answer)
        trusted = str(self.folder / "trust.pem")
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-status", "-CAfile", trusted]
        done = await deferToThread(subprocess.run, command, input=b"", capture_output=True, timeout=20)
        self.assertIn(b"OCSP Response Status: successful", done.stdout)
        self.assertIn(b"Cert Status: good", done.stdout)

    async def test_programsCertificate(self) -> None:
        """A certificate that a program made itself does not send the daemon to loopback."""
        stranger = CA("stranger")
        own = stranger.issue([NAME], extensions=points(self.web.url("/ocsp")))
        chained = Credential(own.certificate, (own.certificate, stranger.certificate), own.key)
        self.web.put("/ocsp", ocspAnswer(stranger, own.certificate))
        _, port = await self.listen(chained)
        await after(0.3)
        self.assertEqual(b"", (await deferToThread(self.stapledBy, port))[0])
        self.assertEqual([], self.web.asked)


class TransparencyTests(CheckedCase):
    """VerifyCertTransparency is on."""

    A, B = TestLog("a"), TestLog("b")

    def setUp(self) -> None:
        logs = Path(self.mktemp()).absolute()
        logs.write_bytes(logListBytes(self.A, self.B))
        self.profile = Profile(handshakeTimeout=5.0, certTransparency=True, transparencyLogs=str(logs))
        super().setUp()

    async def test_logged(self) -> None:
        """With two timestamps in the certificate, with one, with none."""
        good = issueLogged(testCA(), [self.A, self.B], names=[NAME])
        self.assertEqual((0, ""), await self.connectTo(stapling(good)))
        for bad in (issueLogged(testCA(), [self.A], names=[NAME]), self.issue()):
            number, text = await self.connectTo(stapling(bad))
            self.assertEqual(errno.EKEYREJECTED, number)
            self.assertIn("transparency logs: in the certificate: ", text)

    async def test_extension(self) -> None:
        """Timestamps in the handshake, with each version of TLS, from openssl s_server; and what it takes when they are bad."""
        if shutil.which("openssl") is None:
            raise SkipTest("there is no openssl")
        own = testCA().issue([NAME])
        (self.folder / "own.pem").write_bytes(own.chainPEM)
        (self.folder / "own.key").write_bytes(own.keyPEM)
        entry = wholeEntry(own.certificate)
        good = timestampList(self.A.sign(entry), self.B.sign(entry))
        bad = timestampList(self.A.sign(entry), self.B.sign(entry + b"x"))
        for version in ("-tls1_2", "-tls1_3"):
            for stamps, number in ((good, 0), (bad, errno.EKEYREJECTED), (b"", errno.EKEYREJECTED)):
                result = await self.servedWith(version, stamps)
                self.assertEqual(number, result[0], result[1])
                if number:
                    count = "1 of 2" if stamps else "0 of 0"
                    self.assertIn(f"in the handshake and the OCSP answer: {count} count", result[1])

    async def servedWith(self, version: str, stamps: bytes) -> tuple[int, str]:
        """Connect to openssl s_server, which sends a list of timestamps in its extension."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", "own.pem", "-key", "own.key"]
        command += [version, "-www"]
        if stamps:
            # CLIENT_HELLO, TLS1_2_SERVER_HELLO and TLS1_3_CERTIFICATE: SSL_CTX_use_serverinfo_ex(3), version 2.
            block = base64.encodebytes(struct.pack("!IHH", 0x1180, 18, len(stamps)) + stamps).decode()
            text = f"-----BEGIN SERVERINFOV2 FOR SCT-----\n{block}-----END SERVERINFOV2 FOR SCT-----\n"
            (self.folder / "info.pem").write_text(text)
            command += ["-serverinfo", "info.pem"]
        devnull = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=self.folder, stdin=devnull, stdout=devnull, stderr=devnull)
        try:
            for _ in range(200):
                program = await self.newClient()
                number = await self.interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port))
                text = await self.interceptor.error(program)
                self.interceptor.close(program)
                if number != errno.ECONNREFUSED:
                    break
                await after(0.05)
            return number, text
        finally:
            process.terminate()
            process.wait(10)

    async def test_stapled(self) -> None:
        """Timestamps in the OCSP answer that the server staples; those in one that is somebody else's do not count."""
        own, other = self.issue(), self.issue()
        for stamps, answered, number in (
            ((self.A, self.B), own, 0),
            ((self.A,), own, errno.EKEYREJECTED),
            ((self.A, self.B), other, errno.EKEYREJECTED),
        ):
            entry = wholeEntry(own.certificate)
            answer = answerWith(answered.certificate, timestampList(*(log.sign(entry) for log in stamps)))
            result = await self.connectTo(stapling(own, answer))
            self.assertEqual(number, result[0], result[1])

    async def test_noList(self) -> None:
        """A list that is gone refuses everybody, and says so."""
        good = issueLogged(testCA(), [self.A, self.B], names=[NAME])
        os.unlink(self.profile.transparencyLogs)
        number, text = await self.connectTo(stapling(good))
        self.assertEqual(errno.EKEYREJECTED, number)
        self.assertIn("cannot be read", text)


class RestartTests(CheckedCase):
    """The cache on disk."""

    profile = Profile(handshakeTimeout=5.0, revocationChecks=True)

    async def test_restart(self) -> None:
        """Another daemon with the same directory asks nobody."""
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        path = str(self.folder / "cache")
        for expected in (0, 0):
            await self.daemon.stopService()
            self.daemon = Daemon(reactor, Policy(self.profile), cachePath=path)
            self.daemon.startService()
            self.addCleanup(self.daemon.stopService)
            self.interceptor = self.newInterceptor()
            results = await gatherResults([Deferred.fromCoroutine(self.connectTo(stapling(own))) for _ in range(4)])
            self.assertEqual([(expected, "")] * 4, results)
            while not any(name.endswith(".ocsp") for name in os.listdir(path)):
                await after(0.01)
        self.assertEqual(1, self.web.count("/ocsp"))
