# SPDX-License-Identifier: MIT
"""Profiles of ssa.conf: whom they are for, what they change, and how that is explained."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ssa.policy.explain import explain
from ssa.policy.levels import LEVELS
from ssa.policy.matching import parseApplications, parseDestinations, parseUsers
from ssa.policy.parser import ConfigurationError, parsePolicy
from ssa.policy.profile import DEFAULT_SUITES, TLS_1_2, TLS_1_3, Caller, Policy, Profile
from ssa.policy.schema import KEYS

WEB = Caller(1000, executable="/usr/bin/curl")


def policy(*texts: str) -> Policy:
    """The policy of some files."""
    return parsePolicy([(f"f{number}", text) for number, text in enumerate(texts, 1)])


class MatchingTests(SynchronousTestCase):
    """The three matchers."""

    def test_applications(self) -> None:
        """Paths, with patterns; a symbolic link stands for what it points to."""
        for text, path, expected in (
            ("/usr/bin/curl", "/usr/bin/curl", True),
            ("/usr/bin/curl", "/usr/bin/curl2", False),
            ("/usr/bin/curl", "", False),
            ("/usr/bin/*", "/usr/bin/curl", True),
            ("/usr/bin/*", "/usr/bin/a/curl", False),
            ("/opt/**", "/opt/a/curl", True),
            ("/opt/**/bin/x?", "/opt/a/b/bin/x1", True),
            ("/a:/b+", "/b+", True),
            ("/a:/b+", "/bb", False),
        ):
            found = any(pattern.fullmatch(path) for pattern in parseApplications(text))
            self.assertEqual(expected, found, (text, path))
        link = os.path.abspath(self.mktemp())
        os.symlink("/usr/bin/env", link)
        real = os.path.realpath("/usr/bin/env")
        self.assertTrue(any(pattern.fullmatch(real) for pattern in parseApplications(link)))

    def test_users(self) -> None:
        """Names, numbers and groups: both the members and those whose first group it is."""
        nobody = pwd.getpwnam("nobody")
        self.assertEqual(frozenset({0, 77, nobody.pw_uid}), parseUsers("root 77 nobody"))
        self.assertIn(nobody.pw_uid, parseUsers(f"@{grp.getgrgid(nobody.pw_gid).gr_name}"))
        self.assertIn(0, parseUsers("@root"))

    def test_destinations(self) -> None:
        """Hosts, addresses, prefixes and ports."""
        for text, host, address, port, expected in (
            ("a.example", "a.example", "", 1, True),
            ("A.example.", "a.EXAMPLE.", "", 1, True),
            ("a.example", "b.a.example", "", 1, False),
            ("*.example", "b.a.example", "", 1, True),
            ("*.example", "example", "", 1, False),
            ("*.example", "a.example.org", "", 1, False),
            ("a?.example", "ab.example", "", 1, True),
            ("a.example:443", "a.example", "", 443, True),
            ("a.example:443", "a.example", "", 444, False),
            ("*", "a.example", "", 1, True),
            ("*e*", "fe80::e", "", 1, False),
            ("*e*", "192.0.2.1", "fe80::e", 1, False),
            ("*", "192.0.2.1", "", 1, True),
            (":443", "a.example", "", 443, True),
            (":443", "192.0.2.1", "", 444, False),
            ("192.0.2.0/24", "192.0.2.77", "", 1, True),
            ("192.0.2.0/24", "192.0.3.77", "", 1, False),
            ("192.0.2.0/24", "::ffff:192.0.2.77", "", 1, True),
            ("::ffff:192.0.2.0/120", "192.0.2.77", "", 1, True),
            ("192.0.2.1:443", "192.0.2.1", "", 443, True),
            ("192.0.2.1", "a.example", "", 1, False),
            ("192.0.2.1", "a.example", "192.0.2.1", 1, True),
            ("2001:db8::/32", "2001:db8::1", "", 1, True),
            ("[2001:db8::1]:443", "2001:db8:0::1", "", 443, True),
            ("[2001:db8::1]:443", "2001:db8::1", "", 444, False),
            ("fe80::/10", "fe80::1%eth0", "", 1, True),
            ("b.example 192.0.2.1 :25", "a.example", "", 25, True),
            # connect(2) to 0.0.0.0 and :: goes to this machine.
            ("127.0.0.0/8", "0.0.0.0", "", 1, True),
            ("127.0.0.0/8", "::ffff:0.0.0.0", "", 1, True),
            ("127.0.0.0/8", "a.example", "0.0.0.0", 1, True),
            ("::1", "::", "", 1, True),
            ("::1", "a.example", "::", 1, True),
            ("::1", "0.0.0.0", "", 1, False),
            ("0.0.0.0", "0.0.0.0", "", 1, True),
            ("0.0.0.0", "127.0.0.1", "", 1, False),
        ):
            rule = f"[profile x]\nDestination = {text}\nMinProtocol = TLSv1.3\n"
            found = policy(rule).profileFor(WEB, host, port, address).minProtocol == TLS_1_3
            self.assertEqual(expected, found, (text, host, address, port))
        self.assertTrue(all(place.isNarrow for place in parseDestinations("*.example 192.0.2.0/24 a:1")))

    def test_listeners(self) -> None:
        """What names a destination, a port even, is for no listener; what does not is."""
        for matcher, expected in (("Destination = *", False), ("Destination = :443", False), ("User = 1000", True)):
            rule = f"[profile x]\n{matcher}\nMinProtocol = TLSv1.3\n"
            self.assertEqual(expected, policy(rule).profileFor(WEB, None, 443).minProtocol == TLS_1_3, matcher)

    def test_allMustMatch(self) -> None:
        """Each kind of matcher has to match."""
        rule = "[profile x]\nApplication = /usr/bin/curl\nUser = 1000\nDestination = a.example\nMinProtocol = TLSv1.3\n"
        found = policy(rule)
        for who, host, expected in (
            (WEB, "a.example", True),
            (WEB, "b.example", False),
            (Caller(1001, executable="/usr/bin/curl"), "a.example", False),
            (Caller(1000, executable="/usr/bin/wget"), "a.example", False),
        ):
            self.assertEqual(expected, found.profileFor(who, host, 1).minProtocol == TLS_1_3)


class MergingTests(SynchronousTestCase):
    """What several sections say together."""

    def test_laterWins(self) -> None:
        """[default] first, then what matches, in the order of the file."""
        found = policy(
            "[default]\nHandshakeTimeout = 1\nConnectTimeout = 1\nTruncation = allow\n"
            "[profile one]\nUser = 1000\nHandshakeTimeout = 2\nConnectTimeout = 2\n"
            "[profile two]\nDestination = *.example\nHandshakeTimeout = 3\n"
            "[profile other]\nUser = 0\nHandshakeTimeout = 4\n"
        ).profileFor(WEB, "a.example", 1)
        self.assertEqual((3.0, 2.0, "allow"), (found.handshakeTimeout, found.connectTimeout, found.truncation))
        self.assertEqual("f1:11 [profile two]", found.origin("HandshakeTimeout"))
        self.assertEqual("f1:8 [profile one]", found.origin("ConnectTimeout"))
        self.assertEqual("f1:4 [default]", found.origin("Truncation"))
        self.assertEqual("", found.origin("MinProtocol"))

    def test_sameObject(self) -> None:
        """The same question, and another one that the same rules answer, get the same object."""
        found = policy("[profile x]\nUser = 1000\nTruncation = allow\n")
        self.assertIs(found.profileFor(WEB, "a.example", 1), found.profileFor(WEB, "b.example", 2))
        self.assertIs(found.default, found.profileFor(Caller(0), "a.example", 1))

    def test_manyQuestions(self) -> None:
        """What programs ask for is not kept without a bound."""
        found = policy("[profile x]\nDestination = a.example\nTruncation = allow\n")
        for number in range(10_000):
            found.profileFor(WEB, f"{number}.example", 1)
        self.assertLess(len(found._found), 5000)

    def test_dropIn(self) -> None:
        """A drop-in goes on with a profile of another file, keeps its place, and may change whom it is for."""
        found = policy(
            "[profile a]\nUser = 1000\nTruncation = allow\nHandshakeTimeout = 1\n"
            "[profile b]\nUser = 1000\nConnectTimeout = 1\n",
            "[profile a]\nHandshakeTimeout = 2\nConnectTimeout = 2\n",
        ).profileFor(WEB, None, 1)
        self.assertEqual(("allow", 2.0, 1.0), (found.truncation, found.handshakeTimeout, found.connectTimeout))
        self.assertEqual("f2:2 [profile a]", found.origin("HandshakeTimeout"))
        moved = policy("[profile a]\nUser = 1000\nTruncation = allow\n", "[profile a]\nUser = 0\n")
        self.assertEqual("error", moved.profileFor(WEB, None, 1).truncation)

    def test_contradiction(self) -> None:
        """Two profiles that are right alone and contradict each other refuse where both match, and say why."""
        found = policy(
            "[profile a]\nUser = 1000\nMinProtocol = TLSv1.3\n[profile b]\nDestination = a.example\nMaxProtocol = TLSv1.2\n"
        )
        self.assertTrue(found.profileFor(WEB, "b.example", 1).access)
        self.assertTrue(found.profileFor(Caller(0), "a.example", 1).access)
        both = found.profileFor(WEB, "a.example", 1)
        self.assertFalse(both.access)
        self.assertEqual(
            "MinProtocol (TLSv1.3) is above MaxProtocol (TLSv1.2) (f1:3 [profile a], f1:6 [profile b])", both.conflict
        )

    def test_revocationSources(self) -> None:
        """Each switch is its own, whatever other sections say."""
        found = policy(
            "[default]\nCRLChecks = off\n[profile a]\nUser = 1000\nOCSPChecks = off\n[profile b]\nUser = 1000\nCRLChecks = on\n"
        )
        self.assertEqual({"stapled", "cached", "ocsp"}, found.default.revocationSources)
        self.assertEqual({"stapled", "cached", "crl"}, found.profileFor(WEB, None, 1).revocationSources)

    def test_limits(self) -> None:
        """The bounds are those of [default], in every profile."""
        found = policy("[default]\nMaxAddresses = 3\n[profile a]\nUser = 1000\nTruncation = allow\n")
        self.assertEqual(3, found.profileFor(WEB, None, 1).limits.maxAddresses)


class LevelTests(SynchronousTestCase):
    """Security levels."""

    def test_values(self) -> None:
        """A level sets its values; each says that it comes from it, with its version."""
        for name, minimum in (("modern", TLS_1_3), ("intermediate", TLS_1_2)):
            profile = policy(f"[default]\nSecurityLevel = {name}\n").default
            self.assertEqual((minimum, TLS_1_3), (profile.minProtocol, profile.maxProtocol))
            self.assertEqual(DEFAULT_SUITES, profile.cipherSuites)
            self.assertEqual("X25519MLKEM768:X25519:P-256:P-384", profile.groups)
            self.assertEqual(name, profile.securityLevel)
            self.assertEqual(f"f1:2 [default] SecurityLevel {name} {LEVELS[name].version}", profile.origin("MinProtocol"))
            self.assertEqual(Profile().handshakeTimeout, profile.handshakeTimeout)

    def test_versions(self) -> None:
        """The values of each version are these: who changes values gives them a new version."""
        found = {}
        for level in LEVELS.values():
            digest = hashlib.sha256(repr(sorted(level.values.items())).encode()).hexdigest()
            found[f"{level.name} {level.version}"] = digest[:16]
        self.assertEqual(
            {
                "modern 5.7-1": "d396301639b74c07",
                "intermediate 5.7-1": "d7c593e85c67612e",
                "old 5.7-1": "b3611beb1b7537bd",
                "custom 1": "4f53cda18c2baa0c",
            },
            found,
        )

    def test_custom(self) -> None:
        """It sets nothing."""
        self.assertEqual(Profile(), policy("[default]\nSecurityLevel = custom\n").default)

    def test_keysWin(self) -> None:
        """Keys in the same section win, wherever they stand; a later section's level wins over keys before it."""
        text = "[default]\nMinProtocol = TLSv1.2\nSecurityLevel = modern\n[profile a]\nUser = 1000\nSecurityLevel = modern\n"
        self.assertEqual(TLS_1_2, policy(text).default.minProtocol)
        self.assertEqual(TLS_1_3, policy(text).profileFor(WEB, None, 1).minProtocol)
        both = policy("[default]\nMinProtocol = TLSv1.2\n", "[default]\nSecurityLevel = modern\n")
        self.assertEqual(TLS_1_3, both.default.minProtocol)

    def test_old(self) -> None:
        """Obsolete protocols and ciphers, for certain destinations only."""
        found = policy("[profile a]\nDestination = old.example 192.0.2.0/24\nSecurityLevel = old\n")
        self.assertEqual(0x0301, found.profileFor(WEB, "old.example", 1).minProtocol)
        self.assertIn(":AES128-SHA", found.profileFor(WEB, "192.0.2.1", 1).cipherList)
        self.assertEqual(Profile(), found.profileFor(WEB, "a.example", 1))
        self.assertEqual(Profile(), found.profileFor(WEB, None, 1))
        for level in LEVELS.values():
            self.assertNotIn("DES", level.values.get("CipherList", ""))


_VALUES = (
    "", "on", "off", "TLSv1", "TLSv1.2", "TLSv1.3", "modern", "old", "custom", "/a", "/a:/b", "/usr/bin/*", "root", "1000",
    "@root", "a.example", "*", ":443", "10.0.0.0/8", "::1", "allow", "deny", "5", "pin", "first-use", "ECDHE+AESGCM",
    "AES128-SHA", f"sha256/{'A' * 43}=", "session_ticket", "\u0130", "1000 a.example",
)  # fmt: skip
_READERS = {
    **{key.name: key.parse for key in KEYS.values()},
    "Application": parseApplications,
    "User": parseUsers,
    "Destination": parseDestinations,
}


def _isGood(key: str, value: str) -> bool:
    try:
        _READERS[key](value)
    except ValueError:
        return False
    return True


_HEADERS = (["[default]"], ["[profile a]", "User = 1000"], ["[profile b]", "Destination = a.example"], ["[profile c]"])
_GOOD = [f"{key} = {value}" for key in _READERS for value in _VALUES if _isGood(key, value)]
_OFTEN = ("Min", "MaxP", "Cipher", "Access", "Security", "Destination", "User", "CRL")
_PLAIN = [line for line in _GOOD if line.startswith(_OFTEN)]
_LINE = st.one_of(
    st.sampled_from(_GOOD),
    st.sampled_from(_PLAIN),
    st.builds("{} = {}".format, st.sampled_from(sorted(_READERS)), st.sampled_from(_VALUES)),
)
_PART = st.builds(
    lambda header, lines: [header[0], *{line.partition(" ")[0]: line for line in [*header[1:], *lines]}.values()],
    st.sampled_from(_HEADERS),
    st.lists(st.sampled_from(_PLAIN), max_size=3) | st.lists(_LINE, max_size=4),
)
_FILE = st.builds(
    lambda parts: [line for part in {part[0]: part for part in parts}.values() for line in part],
    st.lists(_PART, max_size=3),
)


class AnyPolicyTests(SynchronousTestCase):
    """Whatever a file says, it is a policy or a list of errors, and a policy's profiles are sound."""

    @settings(max_examples=300, deadline=None)
    @given(_FILE, _FILE)
    def test_anyFile(self, first: list[str], second: list[str]) -> None:
        """Any lines."""
        try:
            found = policy("\n".join(first), "\n".join(second))
        except ConfigurationError as error:
            for line in error.errors:
                self.assertRegex(line, r"^f[12]:\d+: ")
            self.assertEqual(len(error.errors), len(set(error.errors)))
            return
        for who in (WEB, Caller(0, executable="/a")):
            for host, address in ((None, ""), ("a.example", ""), ("b.example", "10.1.2.3"), ("::1", "")):
                profile = found.profileFor(who, host, 443, address)
                self.assertTrue(explain(found, who, host, 443, address))
                old = profile.minProtocol < TLS_1_2 or profile.maxProtocol < TLS_1_2
                # An obsolete protocol needs a rule for this very destination.
                self.assertTrue(not old or host in ("a.example", "::1") or address, (host, profile))
                self.assertTrue(profile.minProtocol <= profile.maxProtocol or not profile.access)
                self.assertEqual(len(profile.pinnedKeys) > 0 and profile.access, "pin" in profile.validation and profile.access)


class ExplainTests(SynchronousTestCase):
    """The policy for a person."""

    def test_everyKey(self) -> None:
        """Each key with its value and its place."""
        found = policy(
            "[default]\nSecurityLevel = intermediate\nMaxSockets = 5\nLogLevel = warn\nCertPath = /a:/b\nKeyPath = /c:/d\n"
            "[profile web]\nDestination = *.example\nAccess = deny\nCRLChecks = off\nMinProtocol = TLSv1.3\n"
        )
        lines = explain(found, WEB, "a.example", 443)
        self.assertEqual("# /usr/bin/curl of user 1000 connects to a.example port 443", lines[0])
        self.assertEqual("# [profile web] of f1:7 matches", lines[1])
        rows = {line.split(" = ")[0].strip(): line for line in lines[2:]}
        self.assertEqual(list(KEYS), [key.replace(" =", "").split(" ")[0] for key in rows])
        for key, value, place in (
            ("SecurityLevel", "intermediate", "f1:2 [default], version 5.7-1"),
            ("MinProtocol", "TLSv1.3", "f1:11 [profile web]"),
            ("MaxProtocol", "TLSv1.3", "f1:2 [default] SecurityLevel intermediate 5.7-1"),
            ("Access", "deny", "f1:9 [profile web]"),
            ("CRLChecks", "off", "f1:10 [profile web]"),
            ("OCSPChecks", "on", "default"),
            ("MaxSockets", "5", "f1:3 [default]"),
            ("LogLevel", "warn", "f1:4 [default]"),
            ("KeyPath", "/c:/d", "f1:6 [default]"),
            ("HandshakeTimeout", "30", "default"),
        ):
            left, _, right = rows[key].partition("  # ")
            self.assertEqual((f"{key} = {value}", place), (left.rstrip(), right.strip()))

    def test_readable(self) -> None:
        """What is shown can be read again, and means the same."""
        pins = f"Validation = pin\nPinnedKeys = sha256/{'A' * 43}= sha256/{'B' * 42}A=\n"
        for text in (
            "",
            f"[default]\nSecurityLevel = modern\nRandomSeed = /dev/urandom 16\nExtensions =\nRevocationTimeout = 0.5\n{pins}",
        ):
            found = policy(text)
            shown = [line.split("  # ")[0].rstrip() for line in explain(found, WEB)]
            again = policy("[default]\n" + "\n".join(shown))
            self.assertEqual(found.default, again.default)
            self.assertEqual(found.randomSeed, again.randomSeed)

    def test_contradiction(self) -> None:
        """Rules that contradict each other are told."""
        found = policy(
            "[profile a]\nUser = 1000\nMinProtocol = TLSv1.3\n[profile b]\nDestination = a.example\nMaxProtocol = TLSv1.2\n"
        )
        self.assertIn("contradict", explain(found, WEB, "a.example", 1)[3])
        self.assertIn("no profile matches", explain(found, Caller(0))[1])
