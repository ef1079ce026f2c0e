# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.identity} and L{ssa.tls.certificates}."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtensionOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ssa.test.pki import CA, Credential, testCA, testKey
from ssa.tls import identity
from ssa.tls.certificates import (
    MOST_IN_CHAIN,
    chainPEM,
    describeCertificate,
    dnsNames,
    pairCredentials,
    parseCertificates,
    parseChains,
    parsePrivateKeys,
    subjectNames,
)
from ssa.tls.identity import Identity, checkIdentity, parseIdentity, parseName


def der(credential: Credential) -> bytes:
    """The endpoint's own certificate."""
    return credential.certificate.public_bytes(Encoding.DER)


class ParseTests(SynchronousTestCase):
    """Which names and addresses are taken."""

    def test_good(self) -> None:
        """Names become lower case without the final dot; addresses canonical."""
        for text, value, isAddress in (
            ("Server.Example", "server.example", False),
            ("server.example.", "server.example", False),
            ("localhost", "localhost", False),
            ("a_b._tcp.example", "a_b._tcp.example", False),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", False),
            ("1a.example", "1a.example", False),
            ("192.0.2.1", "192.0.2.1", True),
            ("2001:DB8::0:1", "2001:db8::1", True),
            ("::ffff:192.0.2.1", "192.0.2.1", True),
            ("a." * 126 + "a", "a." * 126 + "a", False),
        ):
            self.assertEqual(parseIdentity(text), Identity(value, isAddress))
        self.assertEqual(parseIdentity("a.example").serverName, b"a.example")
        self.assertIsNone(parseIdentity("::1").serverName)

    def test_bad(self) -> None:
        """What is neither is refused, with a reason."""
        for text, word in (
            ("", "empty"),
            (".", "neither"),
            ("a..b", "neither"),
            ("-a.example", "neither"),
            ("a-.example", "neither"),
            ("a b", "neither"),
            ("a\n.example", "neither"),
            ("*.example", "neither"),
            ("server.example:443", "neither"),
            ("https://server.example", "neither"),
            ("[::1]", "brackets"),
            ("fe80::1%eth0", "zone"),
            ("bücher.example", "A-label"),
            ("1.2.3", "number"),
            ("12345", "number"),
            ("a.0x1f", "number"),
            ("256.1.1.1", "number"),
            ("a" * 64, "63"),
            ("a." * 127 + "a", "253"),
        ):
            with self.assertRaises(ValueError) as caught:
                parseIdentity(text)
            self.assertIn(word, str(caught.exception), text)

    @settings(deadline=None)
    @given(st.text(max_size=300))
    def test_anyText(self, text: str) -> None:
        """Any text is taken or refused with ValueError; what is taken as a name is what DNS can hold."""
        try:
            name = parseName(text)
        except ValueError:
            return
        self.assertTrue(name.isascii() and name == name.lower() and 0 < len(name) <= 253)


class CheckTests(SynchronousTestCase):
    """Does the certificate have the identity?"""

    def test_match(self) -> None:
        """Names, wildcards and addresses that match."""
        certificate = der(testCA().issue(["a.example", "*.b.example", "192.0.2.1", "2001:db8::1", "a_b.example"]))
        for text in ("a.example", "A.EXAMPLE.", "x.b.example", "192.0.2.1", "2001:db8:0::1", "a_b.example"):
            self.assertEqual(checkIdentity(certificate, parseIdentity(text)), "")

    def test_mismatch(self) -> None:
        """Names that only look alike."""
        certificate = der(testCA().issue(["a.example", "*.b.example", "192.0.2.1"]))
        for text in ("b.example", "x.a.example", "x.y.b.example", "example", "192.0.2.2", "a.example.com", "2001:db8::1"):
            self.assertIn(text, checkIdentity(certificate, parseIdentity(text)))

    def test_noNames(self) -> None:
        """The common name does not count."""
        certificate = der(testCA().issue(["a.example"], noNames=True))
        self.assertIn("a.example", checkIdentity(certificate, parseIdentity("a.example")))

    def test_failsClosed(self) -> None:
        """Bytes that are no certificate, and an exception of any kind in service_identity, refuse."""
        self.assertNotEqual(checkIdentity(b"nonsense", parseIdentity("a.example")), "")
        self.assertNotEqual(checkIdentity(b"x" * 100000, parseIdentity("a.example")), "")

        def explode(*arguments: object) -> None:
            raise RuntimeError("boom")

        self.patch(identity, "verify_certificate_hostname", explode)
        certificate = der(CA("other").issue(["a.example"]))
        self.assertIn("boom", checkIdentity(certificate, parseIdentity("a.example")))

    def test_refusalsAreNotRemembered(self) -> None:
        """A success is remembered for this certificate and this name only."""
        certificate = der(testCA().issue(["a.example"]))
        for _ in range(2):
            self.assertEqual(checkIdentity(certificate, parseIdentity("a.example")), "")
            self.assertNotEqual(checkIdentity(certificate, parseIdentity("b.example")), "")


class CertificateTests(SynchronousTestCase):
    """PEM."""

    def test_chains(self) -> None:
        """One chain, and several after each other with text between them."""
        middle = testCA().intermediate()
        one, two = middle.issue(["a.example"]), middle.issue(["b.example"])
        self.assertEqual(parseChains(b"# hello\n" + one.chainPEM), (one.chain,))
        self.assertEqual(parseChains(one.chainPEM + b"\n\n" + two.chainPEM), (one.chain, two.chain))
        self.assertEqual(parseChains(testCA().pem), ((testCA().certificate,),))

    def test_badCertificates(self) -> None:
        """None, damaged, malformed, too many."""
        good = testCA().pem
        for pem, word in (
            (b"", "no certificate"),
            (b"-----BEGIN CERTIFICATE-----\n", "damaged"),
            (good + good[:-10], "damaged"),
            (good.replace(b"MII", b"MIA"), "malformed"),
            (good.replace(b"BEGIN CERT", b"BEGIN TRUSTED CERT").replace(b"END CERT", b"END TRUSTED CERT"), "TRUSTED"),
            (good * (MOST_IN_CHAIN + 1), "more than"),
        ):
            with self.assertRaises(ValueError) as caught:
                parseChains(pem)
            self.assertIn(word, str(caught.exception))
        self.assertRaises(ValueError, parseCertificates, good * 3, 2)

    def test_unreadableNames(self) -> None:
        """
        An alternative name of a kind that the library does not read (x400Address, ediPartyName; RFC 5280 section 4.2.1.6): such
        a certificate can be described, and is refused where it is set.
        """
        for names in ("300ba509a1070c056170617274", "3004a3023000"):
            extension = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex(names))
            certificate = testCA().issue(noNames=True, extensions=[extension]).certificate
            self.assertEqual(((), ()), (dnsNames(certificate), subjectNames(certificate)))
            self.assertIn("CN=server.example", describeCertificate(certificate))
            error = self.assertRaises(ValueError, parseChains, chainPEM([certificate]))
            self.assertIn("malformed extensions", str(error))

    def test_keys(self) -> None:
        """Keys of each kind and in each encoding, with other blocks beside them."""
        for kind in ("ec", "rsa", "ed25519"):
            credential = testCA().issue(key=kind)
            (key,) = parsePrivateKeys(credential.chainPEM + credential.keyPEM)
            self.assertEqual(pairCredentials([credential.chain], [key])[0].certificate, credential.certificate)
        old = testKey("rsa").private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        self.assertEqual(len(parsePrivateKeys(old + testCA().issue().keyPEM)), 2)

    def test_badKeys(self) -> None:
        """An encrypted key is named as such; nothing of a key is quoted."""
        credential = testCA().issue()
        secret = credential.keyPEM.splitlines()[1]
        for pem, word in (
            (b"", "no private key"),
            (credential.chainPEM, "no private key"),
            (credential.encryptedKeyPEM, "encrypted"),
            (credential.keyPEM.replace(secret[:8], b"AAAAAAAA"), "malformed"),
        ):
            with self.assertRaises(ValueError) as caught:
                parsePrivateKeys(pem)
            self.assertIn(word, str(caught.exception))
            self.assertNotIn(secret[8:20].decode(), str(caught.exception))
        (pair,) = pairCredentials([credential.chain], parsePrivateKeys(credential.keyPEM))
        self.assertNotIn("PrivateKey", repr(pair))

    def test_description(self) -> None:
        """What tells a certificate from others."""
        text = describeCertificate(testCA().issue([f"n{number}.example" for number in range(9)]).certificate)
        for part in ("CN=n0.example", "n3.example", "5 more", "issuer CN=SSA test root", "UTC", "SHA-256"):
            self.assertIn(part, text)
        self.assertEqual(dnsNames(testCA().certificate), ())
