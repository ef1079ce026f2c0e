# SPDX-License-Identifier: MIT
"""Every mistake that ssa.conf can have, and the exact words about it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ssa.policy.parser import ConfigurationError, parsePolicy
from ssa.policy.schema import KEYS
from ssa.policy.schema import MATCHERS as MATCHING

_NARROW = "only a profile whose Destination names certain hosts or addresses may allow it"
_OTHER_LEVELS = "allowed are modern, intermediate and custom"
_SOURCES = "OCSPStapledChecks, CachedRevChecks, OCSPChecks, CRLChecks"
_KEYS_OF_GROUPS = "X25519MLKEM768, SecP256r1MLKEM768, SecP384r1MLKEM1024, X25519, X448, P-256, P-384, P-521"

VALUES: tuple[tuple[str, str, str], ...] = (
    # A key of [default], its value, and what is said.
    ("MinProtocol", "TLS1.2", "'TLS1.2' is no protocol that is allowed; allowed are TLSv1.2 and TLSv1.3"),
    ("MinProtocol", "TLSv1", f"'TLSv1' is not allowed here, {_NARROW}; allowed are TLSv1.2 and TLSv1.3"),
    ("MaxProtocol", "", "'' is no protocol that is allowed; allowed are TLSv1.2 and TLSv1.3"),
    ("CipherList", "RC5", "OpenSSL knows no TLS 1.2 cipher or group of ciphers RC5"),
    (
        "CipherList",
        "AES128-SHA",
        f"it lets in AES128-SHA, which lacks forward secrecy or authenticated encryption; {_NARROW}",
    ),
    ("CipherList", "NULL-SHA256", "it lets in NULL-SHA256, which lacks forward secrecy or authenticated encryption"),
    (
        "CipherSuites",
        "TLS_X",
        "TLS_X is none of TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256, TLS_AES_128_CCM_SHA256",
    ),
    ("Groups", "X25519,P-256", f"X25519,P-256 is none of {_KEYS_OF_GROUPS}; several are separated by colons"),
    ("Groups", "P-256:", f"an empty name is none of {_KEYS_OF_GROUPS}; several are separated by colons"),
    (
        "Extensions",
        "server_name",
        "'server_name' is not allowed; allowed are application_layer_protocol_negotiation and session_ticket",
    ),
    ("SecurityLevel", "high", "'high' is not allowed; allowed are modern, intermediate, old and custom"),
    ("SecurityLevel", "old", f"'old' is not allowed here, {_NARROW}; allowed are modern, intermediate and custom"),
    ("Truncation", "ignore", "'ignore' is not allowed; allowed are error and allow"),
    ("Access", "yes", "'yes' is not allowed; allowed are allow and deny"),
    ("TrustStoreLocation", "certs", "'certs' is no absolute path"),
    ("AppCustomValidation", "true", "'true' is neither on nor off"),
    ("CertVerificationDepth", "101", "'101' is no whole number from 0 to 100"),
    ("Validation", "pins", "there is no validation plug-in 'pins'; there are first-use, pin"),
    ("PinnedKeys", "abc", "'abc' does not begin with sha256/"),
    ("PinnedKeys", "sha256/*", "'sha256/*' has no base64 after sha256/"),
    ("PinnedKeys", "sha256/AAAA", "'sha256/AAAA' stands for 3 bytes, a SHA-256 digest has 32"),
    (
        "PinnedKeys",
        "sha256/" + "A" * 43 + "=",
        "PinnedKeys does nothing without pin in Validation",
    ),
    ("Validation", "pin", "Validation names pin, and PinnedKeys is empty"),
    ("FirstUseStore", "/var/lib/ssa/seen", "FirstUseStore does nothing without first-use in Validation"),
    ("Validation", "first-use", "Validation names first-use, and FirstUseStore is empty"),
    ("FirstUseStore", "seen", "'seen' is no absolute path"),
    ("RevocationChecks", "1", "'1' is neither on nor off"),
    *((key, "yes", "'yes' is neither on nor off") for key in _SOURCES.split(", ")),
    ("RevocationTimeout", "0", "'0' is no number of seconds from 0.1 to 3600"),
    ("VerifyCertTransparency", "on", "VerifyCertTransparency is on, and TransparencyLogs names no list of logs"),
    ("TransparencyLogs", "logs.json", "'logs.json' is no absolute path"),
    ("CertPath", "cert.pem", "'cert.pem' is no absolute path; several are separated by colons"),
    ("CertPath", "/a:/b", "CertPath names 2 files and KeyPath 0; each chain needs its key"),
    ("KeyPath", "/a", "CertPath names 0 files and KeyPath 1; each chain needs its key"),
    ("ClientCertPath", "/a", "ClientCertPath names 1 files and ClientKeyPath 0; each chain needs its key"),
    ("ClientKeyPath", "/a", "ClientCertPath names 0 files and ClientKeyPath 1; each chain needs its key"),
    ("ClientAuth", "on", "'on' is not allowed; allowed are off, request and require"),
    ("OCSPStapling", "maybe", "'maybe' is neither on nor off"),
    ("SessionCacheTimeout", "604801", "'604801' is no whole number from 1 to 604800"),
    ("SessionResumption", "", "'' is neither on nor off"),
    ("SessionTickets", "no", "'no' is neither on nor off"),
    ("HandshakeTimeout", "soon", "'soon' is no number of seconds from 0.1 to 3600"),
    ("ConnectTimeout", "-1", "'-1' is no number of seconds from 0 to 3600"),
    ("ConnectTimeout", "3601", "'3601' is no number of seconds from 0 to 3600"),
    ("ResolveTimeout", "1m", "'1m' is no number of seconds from 0.1 to 3600"),
    ("KeyLogFile", "keys", "'keys' is no absolute path"),
    ("KeyLogFile", "/x", "it is allowed in [profile NAME] only, which says whose secrets are written"),
    ("LogLevel", "all", "'all' is not allowed; allowed are debug, info, warn, error and critical"),
    ("LogFormat", "xml", "'xml' is not allowed; allowed are text and json"),
    ("RandomSeed", "/dev/hwrng", "'/dev/hwrng' is not an absolute path and a number of bytes, separated by a space"),
    ("RandomSeed", "/dev/hwrng 0", "'0' is no number of bytes from 1 to 1048576"),
    *(
        (key, value, f"{value!r} is no whole number from 1 to {most}")
        for key, most in (
            ("MaxSockets", 10000000),
            ("MaxSocketsPerUser", 10000000),
            ("MaxHandshakes", 1000000),
            ("MaxHandshakesPerProgram", 1000000),
            ("MaxPendingEvents", 1000000),
            ("MaxInterceptors", 100000),
            ("MaxAcceptQueue", 65536),
            ("MaxRelayBuffers", 1000000),
            ("MaxRelayBuffersPerUser", 1000000),
            ("MaxAddresses", 256),
            ("MaxCachedContexts", 10000),
        )
        for value in ("0", str(most + 1))
    ),
    ("MaxSocket", "1", "there is no such key; do you mean MaxSockets?"),
    ("Colour", "red", "there is no such key"),
    ("User", "root", "it says whom a profile is for, and is allowed in [profile NAME] only"),
    ("Application", "/x", "it says whom a profile is for, and is allowed in [profile NAME] only"),
)

MATCHERS: tuple[tuple[str, str, str], ...] = (
    # The same for a profile.
    ("Application", "", "it is empty; give the path of an executable, in which * stands for any characters but /"),
    ("Application", "curl", "'curl' is no absolute path; several are separated by colons"),
    (
        "Application",
        "/usr/bin/curl /usr/bin/wget",
        "'/usr/bin/curl /usr/bin/wget' has a space before a slash; several paths are separated by colons",
    ),
    (
        "Application",
        "/usr/bin/curl # the old one",
        "'/usr/bin/curl # the old one' has a comment in it; a comment has a line of its own",
    ),
    ("User", "", "it is empty; give names or numbers of users, or @GROUP, separated by spaces"),
    ("User", "no-such-user", "this machine has no user 'no-such-user'"),
    ("User", "@no-such-group", "this machine has no group 'no-such-group'"),
    ("User", "4294967295", "4294967295 is no number of a user; the highest is 4294967294"),
    ("Destination", "", "it is empty; give HOST, ADDRESS, ADDRESS/PREFIX or :PORT, separated by spaces"),
    ("Destination", "a.example:", "'a.example:' has no port from 1 to 65535 after the colon"),
    ("Destination", ":65536", "':65536' has no port from 1 to 65535 after the colon"),
    ("Destination", "https://a", "'https://a' has no port from 1 to 65535 after the colon"),
    (
        "Destination",
        "10.0.0.1/8",
        "'10.0.0.1/8' is no address and no ADDRESS/PREFIX: 10.0.0.1/8 has host bits set",
    ),
    (
        "Destination",
        "10.*",
        "'10.*' is no name and no address; several addresses are given as ADDRESS/PREFIX",
    ),
    (
        "Destination",
        "b\u00fccher.example",
        "'b\u00fccher.example' is not ASCII: give the A-label (xn--\u2026) of an internationalized name",
    ),
    ("Destination", "fe80::1%eth0", "'fe80::1%eth0' has a zone; the address alone holds for all interfaces"),
    ("Destination", "[fe80::1%eth0]:443", "'fe80::1%eth0' has a zone; the address alone holds for all interfaces"),
    ("Destination", "a..b", "'a..b' is no HOST, HOST:PORT, ADDRESS, ADDRESS/PREFIX, [ADDRESS]:PORT or :PORT"),
    ("MaxSockets", "5", "it is a bound of the daemon as a whole, and is allowed in [default] only"),
    ("LogLevel", "info", "it concerns the daemon as a whole, and is allowed in [default] only"),
    ("RandomSeed", "/x 1", "it concerns the daemon as a whole, and is allowed in [default] only"),
    ("Applications", "/x", "there is no such key; do you mean Application?"),
)

FILES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # Whole files, and every line that is said about them.
    ("MaxSockets = 1\n", ("f:1: there is no section before this line; begin with [default]",)),
    ("[default]\nMaxSockets 1\n", ("f:2: this is neither [section], nor Key = value, nor a comment",)),
    ("[default]\n MaxSockets = 1\n", ("f:2: a line must not begin with a space; a value has one line",)),
    (
        "[default]\nMaxSockets = 1\nMaxSockets = 2\n",
        ("f:3: [default] MaxSockets: the key is repeated",),
    ),
    ("[default]\n[default]\n", ("f:2: [default]: the section is repeated",)),
    ("[default] # x\nMaxSockets = 1\n", ("f:1: a section's line ends with ]; nothing may follow its name",)),
    (
        "\ufeff[default]\n",
        ("f:1: the file begins with a byte order mark; it has to be UTF-8 without one",),
    ),
    (
        "[default]\nTrustStoreLocation = /etc/\0x\nMaxSockets = 1\rMaxSockets = 2\n",
        (
            "f:2: there is a control character (U+0000) in this line",
            "f:3: there is a control character (U+000D) in this line",
        ),
    ),
    # What follows a comment on its line is comment, whatever else ends lines in Unicode; and lines are counted as editors do.
    (
        "[default]\r\n# one\x0c two\u2028MinProtocol = TLSv1.3\x85MinProtocol = TLSv1.3\r\nColour = red\r\n",
        ("f:3: [default] Colour: there is no such key",),
    ),
    ("[defaults]\nX = 1\n", ("f:1: [defaults]: there is no such section; allowed are [default] and [profile NAME]",)),
    ("[profile]\n", ("f:1: [profile]: a profile has a name of one word: [profile NAME]",)),
    ("[profile a b]\n", ("f:1: [profile a b]: a profile has a name of one word: [profile NAME]",)),
    (
        "[profile a]\nMinProtocol = TLSv1.3\n",
        ("f:1: [profile a]: it is for nobody: give at least one of Application, User, Destination",),
    ),
    (
        "[profile a]\nUser = root\n[profile a]\nUser = root\nMaxSockets = 0\n",
        ("f:3: [profile a]: the section is repeated",),
    ),
    (
        "[default]\nMinProtocol = TLSv1.3\nMaxProtocol = TLSv1.2\n",
        ("f:2: [default] MinProtocol: MinProtocol (TLSv1.3) is above MaxProtocol (TLSv1.2)",),
    ),
    (
        "[default]\nSecurityLevel = modern\nMaxProtocol = TLSv1.2\n",
        ("f:3: [default] MaxProtocol: MinProtocol (TLSv1.3) is above MaxProtocol (TLSv1.2)",),
    ),
    (
        "[default]\nMinProtocol = TLSv1.3\n\n[profile a]\nUser = root\nMaxProtocol = TLSv1.2\n",
        ("f:6: [profile a] MaxProtocol: MinProtocol (TLSv1.3) is above MaxProtocol (TLSv1.2)",),
    ),
    (
        "[default]\nRevocationChecks = on\nOCSPStapledChecks = off\nCachedRevChecks = off\nOCSPChecks = off\nCRLChecks = off\n",
        (f"f:2: [default] RevocationChecks: RevocationChecks is on, and no answer counts; one of {_SOURCES} must be on",),
    ),
    (
        "[default]\nCertPath = /a\nKeyPath = /b\n[profile a]\nUser = root\nCertPath = /c\n",
        ("f:6: [profile a] CertPath: a profile that sets CertPath has to set KeyPath too",),
    ),
    (
        "[default]\nValidation = pin\nPinnedKeys = sha256/" + "A" * 43 + "=\n[profile a]\nUser = root\nValidation =\n",
        ("f:6: [profile a] Validation: PinnedKeys does nothing without pin in Validation",),
    ),
    *(
        (
            f"[profile a]\nDestination = a.example\n{lines}\n[profile b]\nUser = root\n{lines}\n",
            (f"f:3: [profile a] {lines.partition(' ')[0]}: it is for servers, and a profile with Destination holds for none",),
        )
        for lines in (
            "CertPath = /c\nKeyPath = /k",
            "ClientAuth = require",
            "OCSPStapling = on",
            "SessionTickets = off",
        )
    ),
    *(
        (
            f"[profile a]\nDestination = {destination}\nSecurityLevel = old\n",
            (f"f:3: [profile a] SecurityLevel: 'old' is not allowed here, {_NARROW}; {_OTHER_LEVELS}",),
        )
        for destination in ("*", ":443", "*:443", "0.0.0.0/0", "[::/0]:443", "*-*", "good.example *")
    ),
    (
        "[profile a]\nApplication = /usr/bin/x\nMaxProtocol = TLSv1.1\n",
        (
            f"f:3: [profile a] MaxProtocol: 'TLSv1.1' is not allowed here, {_NARROW}; allowed are TLSv1.2 and TLSv1.3",
            "f:3: [profile a] MaxProtocol: MinProtocol (TLSv1.2) is above MaxProtocol (TLSv1.1)",
        ),
    ),
    (
        "[default]\nMaxSockets = x\nColour = red\n[profile a]\nUser =\nTruncation = x\n",
        (
            "f:2: [default] MaxSockets: 'x' is no whole number from 1 to 10000000",
            "f:3: [default] Colour: there is no such key",
            "f:5: [profile a] User: it is empty; give names or numbers of users, or @GROUP, separated by spaces",
            "f:6: [profile a] Truncation: 'x' is not allowed; allowed are error and allow",
        ),
    ),
)


class BadPolicyTests(SynchronousTestCase):
    """The tables above."""

    maxDiff = None

    def said(self, text: str) -> tuple[str, ...]:
        try:
            parsePolicy([("f", text)])
        except ConfigurationError as error:
            return error.errors
        return ()

    def test_everyKey(self) -> None:
        """There is a bad value of each key and each matcher in the tables."""
        self.assertEqual(set(KEYS), {key for key, _, _ in VALUES if key in KEYS})
        self.assertEqual(set(MATCHING), {key for key, _, _ in MATCHERS if key in MATCHING})

    def test_values(self) -> None:
        """One bad value of [default]."""
        for key, value, words in VALUES:
            self.assertEqual((f"f:2: [default] {key}: {words}",), self.said(f"[default]\n{key} = {value}\n"))

    def test_profiles(self) -> None:
        """One bad value of a profile."""
        for key, value, words in MATCHERS:
            text = f"[profile web]\n{key} = {value}\n"
            self.assertEqual((f"f:2: [profile web] {key}: {words}",), self.said(text))

    def test_files(self) -> None:
        """Whole files."""
        for text, lines in FILES:
            self.assertEqual(lines, self.said(text))

    def test_severalFiles(self) -> None:
        """Errors come in the order of files and lines, also those that only a file and its drop-in show together."""
        first = "[default]\nMinProtocol = TLSv1.3\nTruncation = x\n[profile a]\nUser = root\nKeyPath = /k\n"
        second = "[default]\nMaxProtocol = TLSv1.2\n[profile a]\nKeyPath = k\n"
        with self.assertRaises(ConfigurationError) as caught:
            parsePolicy([("f", first), ("g", second)])
        self.assertEqual(
            (
                "f:3: [default] Truncation: 'x' is not allowed; allowed are error and allow",
                "g:4: [profile a] KeyPath: 'k' is no absolute path; several are separated by colons",
            ),
            caught.exception.errors,
        )
        with self.assertRaises(ConfigurationError) as caught:
            parsePolicy([("f", first.replace("Truncation = x", "")), ("g", second.replace("KeyPath = k", "Truncation = x"))])
        self.assertIn("g:4: [profile a] Truncation: ", caught.exception.errors[1])
        self.assertEqual(
            "f:2: [default] MinProtocol: MinProtocol (TLSv1.3) is above MaxProtocol (TLSv1.2)", caught.exception.errors[0]
        )
