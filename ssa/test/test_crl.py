# SPDX-License-Identifier: MIT
"""Revocation lists: what counts, and what does not."""

from __future__ import annotations

import time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from ssa.revocation.crl import LARGEST_LIST, _der, _Layout, readList
from ssa.revocation.verdict import Answer, NoAnswer, Status, Subject
from ssa.test.pki import CA, otherCA, testCA, testKey
from ssa.test.responders import DAY, HOUR, points, revocationList

URL = "http://c.example/list"


def scope(**more: Any) -> list[tuple[x509.ExtensionType, bool]]:
    """An issuing distribution point."""
    values: dict[str, Any] = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return [(x509.IssuingDistributionPoint(**(values | more)), True)]


class _WithSerial:
    """A certificate with another serial number."""

    def __init__(self, certificate: x509.Certificate, serial: int) -> None:
        self.serial_number = serial
        self.extensions = certificate.extensions


def _subject(certificate: Any) -> Subject:
    return Subject(certificate, testCA().certificate)


def _entryOf(data: bytes) -> bytes:
    """The entries of a list."""
    layout = _Layout(data)
    return data[slice(*layout.entries)]


def _withEntries(data: bytes, entries: bytes) -> bytes:
    """The test root's list with other entries, signed again."""
    layout = _Layout(data)
    signed = _der(0x30, layout._before + _der(0x30, entries) + layout._after)
    key: Any = testCA().key
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    return _der(0x30, signed + algorithm + _der(0x03, b"\0" + key.sign(signed, ec.ECDSA(hashes.SHA256()))))


class ListTests(SynchronousTestCase):
    """L{readList} and the look-up."""

    def setUp(self) -> None:
        self.certificate = testCA().issue(extensions=points("", URL)).certificate
        self.subject = Subject(self.certificate, testCA().certificate)

    def answer(self, data: bytes, subject: Subject | None = None) -> Answer:
        subject = subject or self.subject
        return readList(data, subject).answer(subject, time.time())

    def refused(self, word: str, data: bytes, subject: Subject | None = None) -> None:
        """It is no answer, and the text says why."""
        self.assertIn(word, str(self.assertRaises(NoAnswer, self.answer, data, subject)))

    def test_goodAndRevoked(self) -> None:
        """DER and PEM."""
        for encoding in (Encoding.DER, Encoding.PEM):
            answer = self.answer(revocationList(testCA(), [1, 2], encoding=encoding))
            self.assertEqual(Status.GOOD, answer.status)
            self.assertApproximates(time.time() + 86400, answer.until, 5)
            answer = self.answer(revocationList(testCA(), [1, self.certificate.serial_number], encoding=encoding))
            self.assertEqual(Status.REVOKED, answer.status)
            self.assertRegex(answer.detail, r"\Ait was revoked on .* UTC \(superseded\)\Z")

    def test_times(self) -> None:
        """Expired, or from the future."""
        self.refused("expired", revocationList(testCA(), begin=-2 * DAY, end=-DAY))
        self.refused("counts only in", revocationList(testCA(), begin=HOUR, end=DAY))

    def test_wrongSigner(self) -> None:
        """Another key under the issuer's name, or another issuer."""
        self.refused("signature is wrong", revocationList(testCA(), key=otherCA().key))
        self.refused("another issuer", revocationList(otherCA()))

    def test_mayNotSign(self) -> None:
        """An issuer without cRLSign."""
        below = testCA().intermediate(isAuthority=False)
        certificate = below.issue().certificate
        self.refused("may not sign", revocationList(below), Subject(certificate, below.certificate))

    def test_weak(self) -> None:
        """A small key."""
        weak = CA("weak", key=testKey("rsa1024"))
        self.refused("1024 bits", revocationList(weak), Subject(weak.issue().certificate, weak.certificate))

    def test_partial(self) -> None:
        """Delta lists, indirect ones and those for some reasons are no answer."""
        self.refused("delta", revocationList(testCA(), extensions=[(x509.DeltaCRLIndicator(1), True)]))
        self.refused("indirect", revocationList(testCA(), extensions=scope(indirect_crl=True)))
        some = frozenset([x509.ReasonFlags.key_compromise])
        self.refused("some reasons", revocationList(testCA(), extensions=scope(only_some_reasons=some)))
        self.refused("attribute", revocationList(testCA(), extensions=scope(only_contains_attribute_certs=True)))

    def test_kinds(self) -> None:
        """Lists for end entities only, and for authorities only."""
        users = revocationList(testCA(), extensions=scope(only_contains_user_certs=True))
        authorities = revocationList(testCA(), extensions=scope(only_contains_ca_certs=True))
        below = Subject(testCA().intermediate().certificate, testCA().certificate)
        self.assertEqual(Status.GOOD, self.answer(users).status)
        self.refused("authorities only", authorities)
        self.assertEqual(Status.GOOD, self.answer(authorities, below).status)
        self.refused("end entities only", users, below)

    def test_point(self) -> None:
        """A list of one distribution point is only for the certificates that name it."""
        here = scope(full_name=[x509.UniformResourceIdentifier(URL)])
        self.assertEqual(Status.GOOD, self.answer(revocationList(testCA(), extensions=here)).status)
        there = scope(full_name=[x509.UniformResourceIdentifier(URL + "2")])
        self.refused("another distribution point", revocationList(testCA(), extensions=there))
        relative = x509.RelativeDistinguishedName(testCA().name)
        self.refused("relative", revocationList(testCA(), extensions=scope(relative_name=relative)))

    def test_criticalExtension(self) -> None:
        """One that nobody knows."""
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.2"), b"\x05\x00")
        self.refused("55555.2", revocationList(testCA(), extensions=[(unknown, True)]))
        self.assertEqual(Status.GOOD, self.answer(revocationList(testCA(), extensions=[(unknown, False)])).status)

    def test_everySerial(self) -> None:
        """Serial numbers of every length, among others that hold their bytes, and none."""
        serials = [1, 0x7F, 0x80, 0xFF, 0x8000, 0x020101, (1 << 159) - 1, 0x0201010201010201010201]
        for number, own in enumerate(serials):
            for listed in ([], serials, serials[:number] + serials[number + 1 :]):
                parsed = readList(revocationList(testCA(), listed), self.subject)
                certificate: Any = _WithSerial(self.certificate, own)
                answer = parsed.answer(_subject(certificate), time.time())
                self.assertEqual(Status.REVOKED if own in listed else Status.GOOD, answer.status, f"{own:x} in {listed}")

    def test_negativeSerial(self) -> None:
        """A serial number below zero, which RFC 5280 section 4.1.2.2 does not allow, is in no list; it is no answer either."""
        parsed = readList(revocationList(testCA(), [1]), self.subject)
        for own in (-1, -(1 << 80)):
            certificate: Any = _WithSerial(self.certificate, own)
            self.assertIn("malformed", str(self.assertRaises(NoAnswer, parsed.answer, _subject(certificate), time.time())))

    def test_begin(self) -> None:
        """An answer tells of when it is."""
        for serials in ([], [self.certificate.serial_number]):
            answer = self.answer(revocationList(testCA(), serials, begin=-2 * HOUR))
            self.assertApproximates(time.time() - 7200, answer.begin, 5)

    def test_large(self) -> None:
        """Nearly as much as is allowed, the certificate's own entry in the middle, at the end, or missing."""
        other = revocationList(testCA(), [1 << 100])
        own = revocationList(testCA(), [self.certificate.serial_number])
        filler = _entryOf(other)
        count = (LARGEST_LIST - 4096) // len(filler) // 2
        for entries, expected in (
            (filler * (2 * count), Status.GOOD),
            (filler * count + _entryOf(own) + filler * count, Status.REVOKED),
            (filler * (2 * count) + _entryOf(own), Status.REVOKED),
        ):
            data = _withEntries(other, entries)
            self.assertGreater(len(data), LARGEST_LIST - 8192)
            self.assertEqual(expected, self.answer(data).status)
        changed = bytearray(data)
        changed[len(changed) // 2] ^= 1
        self.refused("signature is wrong", bytes(changed))

    def test_rsa(self) -> None:
        """An authority with another kind of key."""
        ca = CA("rsa", key=testKey("rsa", 7))
        certificate = ca.issue().certificate
        subject = Subject(certificate, ca.certificate)
        self.assertEqual(Status.REVOKED, self.answer(revocationList(ca, [certificate.serial_number]), subject).status)
        self.refused("signature is wrong", revocationList(ca, key=testKey("rsa", 8)), subject)

    def test_cutAnywhere(self) -> None:
        """A list that ends anywhere, and one with any byte changed."""
        data = revocationList(testCA(), [self.certificate.serial_number])
        for size in range(len(data)):
            self.assertRaises(NoAnswer, readList, data[:size], self.subject)
        for at in range(len(data)):
            changed = data[:at] + bytes((data[at] ^ 0x01,)) + data[at + 1 :]
            self.assertRaises(NoAnswer, readList, changed, self.subject)

    def test_anotherIssuersSubject(self) -> None:
        """A list is never asked about another issuer's certificate."""
        parsed = readList(revocationList(testCA()), self.subject)
        other = Subject(otherCA().issue().certificate, otherCA().certificate)
        self.assertRaises(NoAnswer, parsed.answer, other, time.time())

    def test_nonsense(self) -> None:
        """What is no list, is cut off, or is too long."""
        data = revocationList(testCA(), range(1, 50))
        for nonsense in (b"", b"<html>", bytes(100), data[:-1], b"-----BEGIN X509 CRL-----\nxx\n-----END X509 CRL-----\n"):
            self.refused("malformed", nonsense)
        self.refused("bytes", bytes(LARGEST_LIST + 1))
