# SPDX-License-Identifier: MIT
"""The files that a policy names: what is said about bad ones, and that they are all or nothing."""

from __future__ import annotations

import base64
import errno
import os
import subprocess
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import rand
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ssa.configuration import loadConfiguration
from ssa.errors import SSAError
from ssa.options import SocketOptions
from ssa.policy.parser import ConfigurationError
from ssa.policy.profile import Caller, Policy
from ssa.regularfiles import readRegular
from ssa.test.ctlogs import TestLog, logListBytes
from ssa.test.pki import Credential, otherCA, testCA, testKey
from ssa.test.processes import need
from ssa.test.tlspair import Pair
from ssa.tls import policyfiles
from ssa.tls.policyfiles import LoadedFiles, clientCredentials, serverCredentials, signatureOf, storeOf
from ssa.watching import INTERVAL, FilesWatch


class FilesCase(SynchronousTestCase):
    """A directory of the test's own."""

    maxDiff = None

    def setUp(self) -> None:
        self.place = os.path.abspath(self.mktemp())
        os.mkdir(self.place)

    def path(self, name: str) -> str:
        return os.path.join(self.place, name)

    def write(self, name: str, content: bytes | str) -> str:
        """Write a file as what renews certificates does: beside the old one, then in its place."""
        with open(self.path(name + "~"), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(self.path(name + "~"), self.path(name))
        return self.path(name)

    def credential(self, credential: Credential, name: str = "server") -> tuple[str, str]:
        return self.write(name + ".pem", credential.chainPEM), self.write(name + ".key", credential.keyPEM)

    def load(self, text: str, **options: Any) -> Policy:
        return loadConfiguration(self.write("ssa.conf", text), **options)

    def errors(self, text: str, **options: Any) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            self.load(text, **options)
        start = self.path("ssa.conf") + ":"
        for line in caught.exception.errors:
            self.assertTrue(line.startswith(start), line)
        return [line[len(start) :].replace(self.place, "") for line in caught.exception.errors]


class LoadTests(FilesCase):
    """Good files and bad ones."""

    def test_kept(self) -> None:
        """What was loaded stays, whatever becomes of the files; profiles have it too."""
        chain, key = self.credential(testCA().issue(["default.example"]))
        mine = self.credential(testCA().issue(["me.example"], purpose="client"), "client")
        roots = self.write("roots.pem", testCA().pem)
        policy = self.load(
            f"[default]\nCertPath = {chain}\nKeyPath = {key}\nTrustStoreLocation = {roots}\n"
            f"[profile a]\nUser = 0\nClientCertPath = {mine[0]}\nClientKeyPath = {mine[1]}\n"
        )
        for path in (chain, key, roots, *mine):
            os.unlink(path)
        profile = policy.profileFor(Caller(0), None, 1)
        self.assertIn("default.example", repr(serverCredentials(profile)))
        self.assertIn("me.example", repr(clientCredentials(profile)))
        self.assertEqual((), clientCredentials(policy.default))
        pair = Pair(SocketOptions(2), SocketOptions(1), "default.example", profile, policy.default).shakeHands()
        self.addCleanup(pair.close)
        self.assertEqual({"client": None, "server": None}, pair.errors)

    def test_badCredentials(self) -> None:
        """Certificates and keys that do not exist, do not parse or do not fit."""
        good = testCA().issue()
        for chain, key, words in (
            (None, good.keyPEM, "/c.pem: No such file or directory"),
            (good.chainPEM, None, "/c.key: No such file or directory"),
            (b"rubbish", good.keyPEM, "/c.pem: there is no certificate in PEM format (-----BEGIN CERTIFICATE-----) in it"),
            (good.chainPEM, b"rubbish", "/c.key: there is no private key in PEM format (-----BEGIN PRIVATE KEY-----) in it"),
            (good.chainPEM, good.encryptedKeyPEM, "/c.key: the private key is encrypted; give it decrypted, for instance by"),
            (good.chainPEM, testCA().issue(key=testKey("ec", 78)).keyPEM, "/c.pem and /c.key: no private key fits"),
            (bytes(1 << 21), good.keyPEM, "/c.pem: it is larger than 1048576 bytes"),
        ):
            for name, content in (("c.pem", chain), ("c.key", key)):
                if content is not None:
                    self.write(name, content)
                elif os.path.exists(self.path(name)):
                    os.unlink(self.path(name))
            for first, second in (("CertPath", "KeyPath"), ("ClientCertPath", "ClientKeyPath")):
                text = f"[default]\n{first} = {self.path('c.pem')}\n{second} = {self.path('c.key')}\n"
                (error,) = self.errors(text)
                place = f"3: [default] {second}" if words.startswith("/c.key:") else f"2: [default] {first}"
                self.assertTrue(error.startswith(f"{place}: {words}"), error)

    def test_weakCredential(self) -> None:
        """One that OpenSSL would not serve with is found before any program listens."""
        chain, key = self.credential(testCA().issue(key="rsa1024"))
        (error,) = self.errors(f"[default]\nCertPath = {chain}\nKeyPath = {key}\n")
        self.assertIn("too small", error)

    def test_written(self) -> None:
        """Where the daemon could not write, that is an error at once; what it writes is not watched."""
        store = self.path("seen")
        text = f"[profile a]\nUser = 0\nValidation = first-use\nFirstUseStore = {store}\nKeyLogFile = {self.path('keys')}\n"
        files = self.load(text).default.files
        assert isinstance(files, LoadedFiles)
        self.assertEqual((), files.paths)
        os.symlink("/dev/null", self.path("keys"))
        (error,) = self.errors(text)
        self.assertEqual("5: [profile a] KeyLogFile: /keys: it is a symbolic link", error)
        (error,) = self.errors("[profile a]\nUser = 0\nValidation = first-use\nFirstUseStore = /nowhere/at/all/x\n")
        self.assertEqual("4: [profile a] FirstUseStore: /nowhere/at/all/x: there is no directory /nowhere/at/all", error)

    def test_outOfTime(self) -> None:
        """A certificate that has expired is told, and is no error: it can be renewed while it is in use."""
        chain, key = self.credential(testCA().issue(["old.example"], expired=True))
        files = self.load(f"[default]\nCertPath = {chain}\nKeyPath = {key}\n").default.files
        assert files is not None
        (warning,) = files.warnings
        self.assertIn(f"2: [default] CertPath: {chain}: the certificate has expired [subject ", warning)

    def test_badStores(self) -> None:
        """Trust stores that are missing or hold nothing."""
        self.write("empty.pem", b"nothing")
        os.mkdir(self.path("directory"))
        for name, words in (
            ("missing.pem", "the trust store /missing.pem cannot be read: No such file or directory"),
            ("empty.pem", "the trust store /empty.pem holds no certificate"),
            ("directory", "the trust store /directory holds no certificate"),
        ):
            (error,) = self.errors(f"[profile a]\nUser = 0\nTrustStoreLocation = {self.path(name)}\n")
            self.assertEqual(f"3: [profile a] TrustStoreLocation: {words}", error)

    def test_oddCertificate(self) -> None:
        """A certificate of a version that there is not: it is not trusted, and the others of the store are."""
        der = testCA().issue().certificate.public_bytes(Encoding.DER)
        odd = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
        odd = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(odd) + b"-----END CERTIFICATE-----\n"
        roots = self.write("roots.pem", odd + testCA().pem)
        text = f"[default]\nTrustStoreLocation = {roots}\n"
        self.assertEqual((testCA().certificate,), storeOf(self.load(text).default).certificates())
        self.write("roots.pem", odd)
        self.assertEqual(
            ["2: [default] TrustStoreLocation: the trust store /roots.pem holds no certificate"], self.errors(text)
        )
        chain, key = self.credential(testCA().issue())
        self.write("server.pem", odd)
        (error,) = self.errors(f"[default]\nCertPath = {chain}\nKeyPath = {key}\n")
        self.assertTrue(error.startswith("2: [default] CertPath: /server.pem: certificate 1 in it is malformed: "), error)

    def test_kindsOfKeys(self) -> None:
        """A certificate whose key may only be used with RSASSA-PSS cannot be served: that is said in these words."""
        openssl = need("openssl")
        chain, key = self.path("c.pem"), self.path("c.key")
        for words in (
            ("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-out", key),
            ("req", "-x509", "-key", key, "-subj", "/CN=pss.example", "-out", chain),
        ):
            subprocess.run([openssl, *words], check=True, capture_output=True, timeout=60)
        (error,) = self.errors(f"[default]\nCertPath = {chain}\nKeyPath = {key}\n")
        self.assertIn("2: [default] CertPath: /c.pem and /c.key: the key of the certificate [subject CN=", error)
        self.assertIn("] is of the kind RSASSA-PSS, which is not supported; one of the kind rsaEncryption is", error)

    def test_badLogs(self) -> None:
        """A list of logs that is none."""
        path = self.write("logs.json", "{")
        (error,) = self.errors(f"[default]\nTransparencyLogs = {path}\n")
        start = "2: [default] TransparencyLogs: /logs.json is no list of logs (JSON, version 3): "
        self.assertTrue(error.startswith(f"{start}Expecting "), error)
        self.write("logs.json", "{}")
        (error,) = self.errors(f"[default]\nTransparencyLogs = {path}\n")
        self.assertEqual(f"{start}the list has no list 'operators'", error)
        good = logListBytes(TestLog("one", "some operator"))
        self.write("logs.json", good)
        files = self.load(f"[default]\nTransparencyLogs = {path}\n").default.files
        assert files is not None
        self.assertEqual(good, files.content(path))

    def test_allErrors(self) -> None:
        """All of them at once."""
        errors = self.errors(
            "[default]\nCertPath = /n:/m\nKeyPath = /n:/m\nTrustStoreLocation = /t\n"
            "[profile a]\nUser = 0\nTrustStoreLocation = /u\n"
        )
        self.assertEqual(["2", "2", "4", "7"], [error.partition(":")[0] for error in errors])

    def test_mayLack(self) -> None:
        """What an ordinary user may not read is missing where it is used, and nowhere else; what is wrong is an error."""
        chain, key = self.credential(testCA().issue())
        roots = self.write("roots.pem", testCA().pem)
        text = f"[default]\nCertPath = {chain}\nKeyPath = {key}\nTrustStoreLocation = {roots}\n"
        real = readRegular

        def read(path: str, most: int) -> bytes:
            if path == key:
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path, most)

        self.patch(policyfiles, "readRegular", read)
        self.assertEqual(["3: [default] KeyPath: /server.key: Permission denied"], self.errors(text))
        policy = self.load(text, mayLack=True)
        self.assertEqual(errno.ENOKEY, self.assertRaises(SSAError, serverCredentials, policy.default).errno)
        self.assertEqual(1, len(storeOf(policy.default).certificates()))
        os.unlink(chain)
        self.assertIn("No such file", self.errors(text, mayLack=True)[0])

    def test_equal(self) -> None:
        """What was read twice and has not changed is equal: no listener need begin anew."""
        chain, key = self.credential(testCA().issue())
        log = TestLog("one", "some operator")
        logs = self.write("logs.json", logListBytes(log))
        text = f"[default]\nCertPath = {chain}\nKeyPath = {key}\nTransparencyLogs = {logs}\n"
        before = self.load(text).default.files
        self.credential(testCA().issue())
        self.assertNotEqual(before, self.load(text).default.files)
        before = self.load(text).default.files
        self.write("logs.json", logListBytes(log) + b" ")
        self.assertNotEqual(before, self.load(text).default.files)
        before = self.load(text).default.files
        self.write("logs.json", logListBytes(log) + b" ")
        self.assertEqual(before, self.load(text).default.files)
        self.assertEqual(hash(before), hash(self.load(text).default.files))

    def test_storesByContent(self) -> None:
        """The version of a trust store tells its content, not when it was written."""
        roots = self.write("roots.pem", testCA().pem)
        text = f"[default]\nTrustStoreLocation = {roots}\n"
        first = storeOf(self.load(text).default).version
        self.write("roots.pem", testCA().pem + b"\n")
        self.assertEqual(first, storeOf(self.load(text).default).version)
        self.write("roots.pem", otherCA().pem)
        self.assertNotEqual(first, storeOf(self.load(text).default).version)


class SeedTests(FilesCase):
    """RandomSeed."""

    def test_added(self) -> None:
        """So many bytes are mixed in, and none of them counts as entropy."""
        added: list[tuple[bytes, int]] = []
        self.patch(rand, "add", lambda data, entropy: added.append((data, entropy)))
        path = self.write("seed", b"0123456789")
        self.load(f"[default]\nRandomSeed = {path} 4\n")
        self.assertEqual([(b"0123", 0)], added)
        self.load("[default]\n")
        self.assertEqual(1, len(added))

    def test_real(self) -> None:
        """OpenSSL takes it."""
        self.load("[default]\nRandomSeed = /dev/urandom 64\n")
        self.assertEqual(1, rand.status())

    def test_bad(self) -> None:
        """A file that does not give it, and a pipe that would make the daemon wait."""
        path = self.write("seed", b"0123456789")
        os.mkfifo(self.path("pipe"))
        for name, words in (
            (f"{path} 11", "/seed: it gives 10 bytes now, 11 are asked for"),
            (f"{self.path('missing')} 1", "/missing: No such file or directory"),
            (f"{self.path('pipe')} 1", "/pipe: it gives 0 bytes now, 1 are asked for"),
            (f"{self.place} 1", ": Is a directory"),
        ):
            self.assertEqual([f"2: [default] RandomSeed: {words}"], self.errors(f"[default]\nRandomSeed = {name}\n"))


class WatchTests(FilesCase):
    """Files that change."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.changes: list[float] = []
        self.watch = FilesWatch(self.clock, lambda: self.changes.append(self.clock.seconds()))
        self.watch.start()
        self.addCleanup(self.watch.stop)

    def see(self, *paths: str) -> None:
        self.watch.watch(paths, signatureOf(paths))

    def pass_(self, looks: int) -> None:
        for _ in range(looks):
            self.clock.advance(INTERVAL)

    def linkTo(self, path: str) -> str:
        os.symlink(path, self.path("other"))
        return self.path("other")

    def test_nothing(self) -> None:
        """Without a change, and without files, nothing happens."""
        self.pass_(2)
        self.see(self.write("a", b"1"))
        self.pass_(5)
        self.assertEqual([], self.changes)

    def test_settled(self) -> None:
        """A change counts when it has been the same for two looks, and once."""
        path = self.write("a", b"1")
        self.see(path)
        for content in (b"12", b"123", b"1234"):
            self.write("a", content)
            self.pass_(1)
        self.assertEqual([], self.changes)
        self.pass_(1)
        self.assertEqual(1, len(self.changes))
        self.pass_(3)
        self.assertEqual(1, len(self.changes))

    def test_kinds(self) -> None:
        """A file that goes, comes, or is another one behind a link; a directory's entry."""
        os.mkdir(self.path("d"))
        first, second = self.write("d/a", b"1"), self.write("b", b"1")
        link = self.path("link")
        os.symlink(first, link)
        for number, change in enumerate(
            (
                lambda: os.replace(self.linkTo(second), link),
                lambda: os.unlink(second),
                lambda: self.write("b", b"1"),
                lambda: self.write("d/a", b"2"),
                lambda: self.write("d/new", b""),
            ),
            1,
        ):
            paths = (link, self.path("d"))
            self.see(*paths)
            change()
            self.pass_(2)
            self.assertEqual(number, len(self.changes))

    def test_mistake(self) -> None:
        """What goes wrong with one change does not keep the next one from being seen."""

        def fail() -> None:
            self.changes.append(0)
            raise ZeroDivisionError

        self.patch(self.watch, "_changed", fail)
        path = self.write("a", b"1")
        self.see(path)
        for content in (b"12", b"123"):
            self.write("a", content)
            self.pass_(2)
        self.assertEqual(2, len(self.changes))
        self.assertEqual(2, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_unchanged(self) -> None:
        """What was loaded and has not changed is not loaded again."""
        files = self.load(f"[default]\nTrustStoreLocation = {self.write('roots.pem', testCA().pem)}\n").default.files
        assert isinstance(files, LoadedFiles)
        self.watch.watch(files.paths, files.signature)
        self.pass_(3)
        self.assertEqual([], self.changes)

    def test_beforeReading(self) -> None:
        """What changes while it is read is seen: the signature is older than what was read."""
        path = self.write("a", b"1")
        files = LoadedFiles([path])
        self.write("a", b"22")
        self.watch.watch(files.paths, files.signature)
        self.pass_(2)
        self.assertEqual(1, len(self.changes))
