# SPDX-License-Identifier: MIT
"""Tests of L{ssa.policy}: what a file may say, and what is said about one that is wrong."""

from __future__ import annotations

import os
import re
from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ssa.policy import parser
from ssa.policy.levels import LEVELS
from ssa.policy.matching import parseApplications, parseDestinations
from ssa.policy.parser import ConfigurationError, loadPolicy, parsePolicy
from ssa.policy.profile import TLS_1_2, TLS_1_3, Caller, Limits, Policy, Profile
from ssa.policy.schema import KEYS, MATCHERS, PAIRS, Belongs
from ssa.tls.ciphers import CIPHERS, checkCipherList

MANUAL = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "ssa.conf.rst")
CONF = os.path.join(os.path.dirname(__file__), "..", "..", "conf", "ssa.conf")


class DefaultFileTests(SynchronousTestCase):
    """conf/ssa.conf shows the built-in defaults."""

    def test_isTheDefault(self) -> None:
        """The file that is shipped means what no file at all means."""
        policy = loadPolicy(CONF)
        self.assertEqual(policy.default, Profile())
        self.assertEqual(Policy().profileFor(Caller(1000), None, 443), Profile())

    def test_showsEveryKey(self) -> None:
        """Each key of the schema is there once, and says where it comes from."""
        with open(CONF, encoding="utf-8") as file:
            text = file.read()
        example = text.index("# ---- profiles")
        written = re.findall(r"^(\w+) =", text, re.MULTILINE)
        left = re.findall(r"^#(\w+) =", text[:example], re.MULTILINE)
        # One key is for profiles only, and stands in one.
        self.assertIn("\n#KeyLogFile =", text[example:])
        self.assertEqual(sorted([*written, *left, "KeyLogFile"]), sorted(KEYS))
        # A key that a level sets would win over it, if it were written.
        self.assertEqual(set(left), {key for level in LEVELS.values() for key in level.values})
        uncommented = re.sub(r"^#(\w+ =|\[)", r"\1", text, flags=re.MULTILINE)
        policy = parsePolicy([("f", uncommented.replace("User = backup\n", "").replace("User = @students\n", ""))])
        self.assertEqual(policy.default, Profile())
        self.assertEqual(4, len(policy.rules))
        lines = text.splitlines()
        for key, (name, line) in loadPolicy(CONF).origins.items():
            self.assertEqual(name, CONF)
            self.assertTrue(lines[line - 1].startswith(f"{key} ="))

    def test_everyFieldHasAKey(self) -> None:
        """The schema sets every field of the profile."""
        found = {belongs: {key.field for key in KEYS.values() if key.belongs is belongs} for belongs in Belongs}
        profile = {field.name for field in fields(Profile)} - {"limits", "origins", "files", "conflict", "sections"}
        self.assertEqual(found[Belongs.PROFILE] - {""} | set(PAIRS) | {"revocationSources"}, profile)
        self.assertEqual(found[Belongs.LIMITS], {field.name for field in fields(Limits)})
        self.assertEqual(found[Belongs.DAEMON], {"logLevel", "logFormat", "randomSeed"})


class DocumentationTests(SynchronousTestCase):
    """docs/ssa.conf.rst."""

    def test_everyKey(self) -> None:
        """Each key is there once, in the order of the table, with its type, default, example and what programs see."""
        with open(MANUAL, encoding="utf-8") as file:
            text = file.read()
        entries = re.findall(r"^``(\w+)``\n((?:    .*\n|\n)+)", text, re.MULTILINE)
        self.assertEqual(sorted(name for name, _ in entries), sorted((*KEYS, *MATCHERS)))
        for name, body in entries:
            fields = dict(re.findall(r"^    :(\w+): (.+)$", body, re.MULTILINE))
            self.assertEqual({"Type", "Default", "Example", "Programs"}, set(fields), name)
            example = re.fullmatch(rf"``{name} = (.+)``", fields["Example"])
            assert example is not None, name
            self.assertGreater(len(body[: body.index(":Type:")].strip()), 15, name)
            if name in MATCHERS:
                {"Application": parseApplications, "Destination": parseDestinations}.get(name, str)(example[1])
                continue
            key = KEYS[name]
            value = key.parse(example[1])
            self.assertNotEqual("", key.show(value), name)
            shown = key.show(key.default)
            self.assertEqual(f"``{shown}``" if shown else "empty", fields["Default"], name)

    def test_ranges(self) -> None:
        """The bounds of a number that the manual names are those of the code: these values are allowed, and none beyond."""
        with open(MANUAL, encoding="utf-8") as file:
            text = file.read()
        pattern = r"^``(\w+)``\n(?:    .*\n|\n)+?    :Type: .*?([\d.]+) to (\d+)\n"
        found = re.findall(pattern, text, re.MULTILINE)
        numbers = {name for name, key in KEYS.items() if type(key.default) in (int, float)} - {"MinProtocol", "MaxProtocol"}
        self.assertEqual(numbers | {"RandomSeed"}, {name for name, _, _ in found})
        for name, least, most in found:
            before = "/x " if name == "RandomSeed" else ""
            step = 0.05 if "." in least else 1
            for number in (least, most):
                KEYS[name].parse(before + number)
            for beyond in (float(least) - step, int(most) + step):
                self.assertRaises(ValueError, KEYS[name].parse, f"{before}{beyond:g}" if step < 1 else f"{before}{int(beyond)}")


class ParseTests(SynchronousTestCase):
    """Texts, right and wrong."""

    def errors(self, *texts: str) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            parsePolicy([(f"f{number}", text) for number, text in enumerate(texts, 1)])
        return list(caught.exception.errors)

    def profile(self, *texts: str) -> Profile:
        return parsePolicy([(f"f{number}", text) for number, text in enumerate(texts, 1)]).default

    def test_values(self) -> None:
        """Values of each kind arrive in the profile."""
        profile = self.profile(
            "[default]\n# comment\nMinProtocol = TLSv1.3\nAppCustomValidation=off\nHandshakeTimeout = 2.5\n"
            "CertPath = /a:/b\nKeyPath = /c:/d\nMaxSockets = 7\nTruncation = allow\nTrustStoreLocation = /x # y\n"
        )
        self.assertEqual((profile.minProtocol, profile.maxProtocol), (TLS_1_3, TLS_1_3))
        self.assertFalse(profile.appCustomValidation)
        self.assertEqual(profile.handshakeTimeout, 2.5)
        self.assertEqual(profile.certificates, (("/a", "/c"), ("/b", "/d")))
        self.assertEqual(profile.limits, Limits(maxSockets=7))
        self.assertEqual(profile.truncation, "allow")
        self.assertEqual(profile.trustStore, "/x # y")

    def test_comments(self) -> None:
        """A comment ends with its line, whatever else ends lines in Unicode."""
        for end in "\x0b\x0c\x1c\x85\u2028\u2029\r":
            self.assertEqual(Profile(), self.profile(f"[default]\n# was:{end}MinProtocol = TLSv1.3\n"), repr(end))

    def test_origin(self) -> None:
        """A value knows its rule; a built-in one has none."""
        profile = self.profile("[default]\nMaxSockets = 7\n\nTrustStoreLocation = /x\n", "[default]\nMaxSockets = 9\n")
        self.assertEqual(profile.origin("TrustStoreLocation"), "f1:4 [default]")
        self.assertEqual(profile.origin("MaxSockets"), "f2:2 [default]")
        self.assertEqual(profile.origin("MinProtocol"), "")

    def test_laterFileWins(self) -> None:
        """A drop-in changes what it names and nothing else."""
        profile = self.profile("[default]\nMaxSockets = 7\nMaxHandshakes = 8\n", "[default]\nMaxSockets = 9\n")
        self.assertEqual(profile.limits, Limits(maxSockets=9, maxHandshakes=8))
        self.assertEqual(self.profile(""), Profile())

    def test_allErrors(self) -> None:
        """Every error of every file is reported with its place."""
        errors = self.errors(
            "MaxSockets = 1\n"
            "[default]\n"
            "MaxSocket = 1\n"
            "MinProtocol = TLSv1\n"
            "rubbish\n"
            "MaxSockets = 5\n"
            "MaxSockets = 6\n"
            "  indented = 1\n"
            "[other]\n"
            "Anything = 1\n"
            "[profile web]\n"
            "Application = /usr/bin/x\n"
            "MinProtocol = SSLv3\n"
            "[default]\n"
            "MaxHandshakes = 0\n",
            "[default]\nTruncation = maybe\nHandshakeTimeout = soon\nCertPath = a\n",
        )
        places = [error.partition(": ")[0] for error in errors]
        self.assertEqual(
            places, ["f1:1", "f1:3", "f1:4", "f1:5", "f1:7", "f1:8", "f1:9", "f1:13", "f1:14", "f2:2", "f2:3", "f2:4"]
        )
        self.assertIn("[default] MaxSocket: there is no such key; do you mean MaxSockets?", errors[1])
        self.assertIn("[default] MinProtocol: 'TLSv1' is not allowed here, only a profile whose Destination", errors[2])
        self.assertIn("[default] MaxSockets: the key is repeated", errors[4])
        self.assertIn("[profile web] MinProtocol: ", errors[7])
        self.assertIn("[default]: the section is repeated", errors[8])
        self.assertIn("error and allow", errors[9])

    def test_together(self) -> None:
        """Keys that contradict each other."""
        for text, key in (
            ("MinProtocol = TLSv1.3\nMaxProtocol = TLSv1.2", "MinProtocol"),
            ("CertPath = /a:/b\nKeyPath = /c", "CertPath"),
            ("KeyPath = /c", "KeyPath"),
        ):
            (error,) = self.errors(f"[default]\n{text}\n")
            self.assertIn(f"[default] {key}: ", error)

    def test_badValues(self) -> None:
        """What is out of range or of the wrong kind."""
        for key, value in (
            ("CertVerificationDepth", "101"),
            ("CertVerificationDepth", "-1"),
            ("CertVerificationDepth", "\u0661"),
            ("MaxSockets", "1e3"),
            ("HandshakeTimeout", "nan"),
            ("HandshakeTimeout", "inf"),
            ("HandshakeTimeout", "0"),
            ("AppCustomValidation", "yes"),
            ("TrustStoreLocation", "relative"),
            ("CipherSuites", ""),
            ("CipherSuites", "TLS_AES_128_CCM_8_SHA256"),
            ("CipherSuites", "TLS_SHA256_SHA256"),
        ):
            (error,) = self.errors(f"[default]\n{key} = {value}\n")
            self.assertTrue(error.startswith(f"f1:2: [default] {key}: "), error)

    def test_weakCiphers(self) -> None:
        """A list that lets in anything without forward secrecy or authenticated encryption names it."""
        for text, word in (
            ("AES128-GCM-SHA256", "AES128-GCM-SHA256"),
            ("ECDHE-RSA-AES128-SHA", "ECDHE-RSA-AES128-SHA"),
            ("ECDHE-RSA-AES128-SHA256", "ECDHE-RSA-AES128-SHA256"),
            ("NULL-SHA256", "NULL-SHA256"),
            ("aNULL", "lets in"),
            ("ALL", "and others"),
            ("DEFAULT", "and others"),
            ("ECDHE+AESGCM:AES256-SHA", "AES256-SHA"),
            ("PSK-AES128-GCM-SHA256", "PSK"),
            ("ECDHE+AESGCM:NONSENSE", "NONSENSE"),
            ("ECDHE+AESGCM:!AES126", "AES126"),
            ("ECDHE+AESGCM:!aNULL:-AESGMC", "AESGMC"),
            ("ECDHE+AESGCM:!", "group of ciphers !"),
            ("ECDHE+AESGCM:@STRENGHT", "@STRENGHT"),
            ("ECDHE+AESGCM:@SECLEVEL=0", "SECLEVEL"),
            ("!ALL", "no cipher"),
            ("", "no cipher"),
            ("ECDHE\u00e9", "ASCII"),
        ):
            self.assertIn(word, checkCipherList(text), text)
        usual = "!aNULL:!kRSA:!PSK:!SRP:!MD5:!RC4:!3DES:!DES:!EXPORT:!eNULL:!DSS:!ARIA:!CAMELLIA:!SHA1:!SHA256:!SHA384"
        for text in (
            Profile().cipherList,
            "ECDHE+AESGCM",
            "ECDHE+CHACHA20:ECDHE+AESGCM",
            "DHE+AESGCM:!aNULL:!aDSS:!PSK",
            f"HIGH:{usual}:!ECDH+SHA1:!AESCCM8:!DES-CBC3-SHA:@STRENGTH",
        ):
            self.assertEqual(checkCipherList(text), "", text)

    def test_cipherNames(self) -> None:
        """Every name in the table of ciphers is one that OpenSSL, where it has the cipher, knows by that name."""
        for name in CIPHERS:
            problem = checkCipherList(name)
            self.assertTrue(not problem or "OpenSSL knows no" in problem, problem)

    @settings(max_examples=150, deadline=None)
    @given(st.text(alphabet=st.sampled_from("[]= \t\n#;defaultprofileMaxSock1:%(\x85\u2028\x0c"), max_size=80))
    def test_anyText(self, text: str) -> None:
        """Any text gives a policy or errors with places, never another exception."""
        try:
            parsePolicy([("f", text)])
        except ConfigurationError as error:
            self.assertTrue(error.errors)
            for line in error.errors:
                self.assertRegex(line, r"^f:\d+: ")


class LoadTests(SynchronousTestCase):
    """Files and drop-ins."""

    def write(self, path: str, text: str | bytes) -> str:
        with open(path, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        return path

    def test_dropIns(self) -> None:
        """Drop-ins come in the order of their names; other files are left alone."""
        path = self.write(self.mktemp(), "[default]\nMaxSockets = 1\nMinProtocol = TLSv1.2\n")
        os.mkdir(path + ".d")
        self.write(path + ".d/20.conf", "[default]\nMaxSockets = 3\n")
        self.write(path + ".d/10.conf", "[default]\nMaxSockets = 2\nMaxAddresses = 4\n")
        self.write(path + ".d/30.conf~", "rubbish")
        os.symlink("user@host.1234", path + ".d/.#20.conf")  # what Emacs makes of a file that is edited
        policy = loadPolicy(path)
        self.assertEqual(policy.default, Profile(minProtocol=TLS_1_2, limits=Limits(maxSockets=3, maxAddresses=4)))
        self.assertEqual(policy.origins["MaxSockets"], (path + ".d/20.conf", 2))

    def test_missing(self) -> None:
        """A file that was asked for must exist; the usual one need not."""
        path = self.mktemp()
        self.patch(parser, "DEFAULT_FILE", path)
        self.assertEqual(loadPolicy().default, Profile())
        self.assertRaises(ConfigurationError, loadPolicy, path)
        self.write(path, "[default]\nMaxSockets = 2\n")
        self.assertEqual(loadPolicy().default.limits.maxSockets, 2)

    def test_unreadable(self) -> None:
        """A directory, a device, a text that is not UTF-8: errors that name the file."""
        directory = self.mktemp()
        os.mkdir(directory)
        for path in (directory, "/dev/null", self.write(self.mktemp(), b"[default]\n\xff")):
            with self.assertRaises(ConfigurationError) as caught:
                loadPolicy(path)
            self.assertIn(path, str(caught.exception))
