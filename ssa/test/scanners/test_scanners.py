# SPDX-License-Identifier: MIT
"""
sslyze with Mozilla's profiles, and sslscan, against servers of ours.

They are run where they are: sslyze at SSA_SSLYZE or in C{build/scanners}, where C{make test-scanners} installs it; sslscan in
the path.  All is on the loopback interface, and neither looks anywhere else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.test.badcertificates import leaf
from ssa.test.badservers import echo, running, serverContext
from ssa.test.pki import CA, Credential, testCA
from ssa.test.processes import ROOT, need, needWay
from ssa.test.processes import running as program
from ssa.test.scanners.sslscan import groupNames, weaknesses

HOST = "localhost"
SSLYZE = "SSA_SSLYZE"
SCAN_SECONDS = 180.0
GROUPS = {"x25519", "secp256r1", "secp384r1"}
"""What the levels allow of those that sslscan knows."""


def sslyze() -> str:
    """The path of sslyze; skips the test where it is not."""
    path = os.environ.get(SSLYZE) or str(ROOT / "build" / "scanners" / "bin" / "sslyze")
    if shutil.which(path) is None:
        raise SkipTest(f"there is no {path}: make test-scanners installs sslyze, {SSLYZE} names another one")
    return path


def report(port: int) -> str:
    """What sslscan says of a server, XML."""
    command = [need("sslscan"), "--xml=-", "--no-colour", f"--sni-name={HOST}", f"127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SCAN_SECONDS, check=False)
    return done.stdout[done.stdout.find("<?xml") :]


def certified(authority: CA, kind: str, days: int) -> Credential:
    """A server's certificate for so many days in all, the first of which is yesterday's."""
    return leaf(authority.intermediate(), HOST, kind=kind, days=(-1, days - 1))


@contextlib.contextmanager
def scanned(level: str, *credentials: Credential) -> Iterator[tuple[int, Path]]:
    """
    A program that serves with a security level.

    @return: its port, and the path of the root of its certificates.
    """
    needWay()
    with tempfile.TemporaryDirectory(prefix="ssa-scanners-") as name:
        folder = Path(name)
        configuration, root = folder / "ssa.conf", folder / "root.pem"
        configuration.write_text(f"[default]\nSecurityLevel = {level}\n")
        root.write_bytes(testCA().pem)
        files: tuple[list[str], list[str]] = ([], [])
        for number, credential in enumerate(credentials):
            for paths, kind, content in zip(files, ("chain", "key"), (credential.chainPEM, credential.keyPEM), strict=True):
                path = folder / f"{kind}{number}.pem"
                path.touch(mode=0o600)
                path.write_bytes(content)
                paths.append(str(path))
        command = [*_command(str(configuration)), *(",".join(paths) for paths in files)]
        with program(*command) as server:
            yield int(server.expect(r"^port (\d+)$").group(1)), root


def _command(configuration: str) -> list[str]:
    run = [sys.executable, "-m", "ssa", "run", "--config", configuration, "--"]
    return [*run, sys.executable, "-m", "ssa.test.scanners.program"]


class SSLyzeTests(SynchronousTestCase):
    """sslyze has Mozilla's recommendations (version 5.7) built in."""

    def scan(self, port: int, root: Path, profile: str) -> str:
        """
        Scan a server.

        @return: sslyze's verdict, and what it is about.
        """
        command = [sslyze(), f"--certinfo_ca_file={root}", f"--mozilla_config={profile}", "--sni", HOST, f"127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SCAN_SECONDS, check=False)
        _, found, verdict = done.stdout.partition("COMPLIANCE AGAINST TLS CONFIGURATION")
        self.assertTrue(found, done.stdout[-3000:] + done.stderr[-1000:])
        self.assertEqual(done.returncode, 0 if "OK - Compliant" in verdict else 1, verdict)
        return verdict

    def good(self, level: str, *credentials: Credential) -> None:
        """Say that the level passes the profile of its name."""
        sslyze()
        with scanned(level, *credentials) as (port, root):
            self.assertIn("OK - Compliant", self.scan(port, root, level))

    def test_intermediate(self) -> None:
        """Level intermediate, with certificates of both key types, and with either."""
        ecdsa, rsa = certified(testCA(), "ec", 365), certified(testCA(), "rsa", 365)
        for credentials in ((ecdsa, rsa), (ecdsa,), (rsa,)):
            self.good("intermediate", *credentials)

    def test_modern(self) -> None:
        """Level modern, with a certificate for no more than 90 days."""
        self.good("modern", certified(testCA(), "ec", 89))

    def test_seen(self) -> None:
        """The scanner does look: another level, or a certificate for too long, does not pass."""
        sslyze()
        with scanned("intermediate", certified(testCA(), "ec", 365)) as (port, root):
            verdict = self.scan(port, root, "modern")
        self.assertIn("FAILED - Not compliant", verdict)
        self.assertIn("tls_versions", verdict)
        self.assertIn("maximum_certificate_lifespan", verdict)


class SSLScanTests(SynchronousTestCase):
    """sslscan looks at protocols, ciphers, groups, renegotiation, compression, heartbleed and certificates."""

    def test_levels(self) -> None:
        """It finds no weakness of any level, and no group beyond those of the stricter ones."""
        need("sslscan")
        ecdsa, rsa = certified(testCA(), "ec", 89), certified(testCA(), "rsa", 89)
        for level in ("modern", "intermediate", "custom"):
            for credentials in ((ecdsa, rsa), (rsa,)):
                with scanned(level, *credentials) as (port, _):
                    xml = report(port)
                self.assertEqual(weaknesses(xml), [], level)
                self.assertEqual(groupNames(xml) - GROUPS == set(), level != "custom", level)

    def test_seen(self) -> None:
        """The scanner does look: bad servers have all the weaknesses that they have been given."""
        need("sslscan")
        old = ("tls 1.0 is enabled", "tls 1.1 is enabled", "cipher AECDH-AES128-SHA in TLSv1.0: anonymous")
        for bad, words in (
            (testCA().issue([HOST], key="rsa1024"), (*old, "key", "1024")),
            (testCA().issue([HOST], sha1=True), (*old, "signed with ecdsa-with-SHA1")),
            (testCA().issue([HOST], expired=True), (*old, "a certificate is expired")),
            (testCA().issue([HOST], selfSigned=True), (*old, "a certificate is self-signed")),
        ):
            with running(echo(serverContext(bad))) as server:
                found = "\n".join(weaknesses(report(server.port)))
            for word in words:
                self.assertIn(word, found)


class ReportTests(SynchronousTestCase):
    """Reading sslscan's report."""

    def test_nothing(self) -> None:
        """A report on nothing is no good report."""
        for xml in ("", "<document/>", "<document><ssltest host='a' port='1'></ssltest></document>"):
            self.assertRaises(ValueError, weaknesses, xml)
