# SPDX-License-Identifier: MIT
"""OCSP answers: what counts, and what does not."""

from __future__ import annotations

import datetime
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from twisted.trial.unittest import SynchronousTestCase

from ssa.revocation.ocsp import LARGEST_ANSWER, LONGEST_GET, _find, _isAbout, makeQuestion, questionURL, verifyAnswer
from ssa.revocation.verdict import (
    CLOCK_SKEW,
    LONGEST_WITHOUT_END,
    NoAnswer,
    Status,
    Subject,
    checkTimes,
    mustStaple,
    verifySignature,
)
from ssa.test.pki import CA, otherCA, testCA, testKey
from ssa.test.responders import DAY, HOUR, delegate, ocspAnswer, points

GOOD, REVOKED, UNKNOWN = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN


class AnswerTests(SynchronousTestCase):
    """L{verifyAnswer}."""

    def setUp(self) -> None:
        self.certificate = testCA().issue(extensions=points("http://o.example/")).certificate
        self.subject = Subject(self.certificate, testCA().certificate)

    def refused(self, word: str, data: bytes, now: float | None = None) -> None:
        """It is no answer, and the text says why."""
        error = self.assertRaises(NoAnswer, verifyAnswer, data, self.subject, time.time() if now is None else now)
        self.assertIn(word, str(error))

    def answer(self, *arguments: Any, **more: Any) -> bytes:
        return ocspAnswer(testCA(), self.certificate, *arguments, **more)

    def test_good(self) -> None:
        """Signed by the issuer, which is named by its key or by its name; certIDs with any digest."""
        for byName in (False, True):
            for digest in (hashes.SHA1(), hashes.SHA256()):
                answer = verifyAnswer(self.answer(byName=byName, digest=digest), self.subject, time.time())
                self.assertEqual((Status.GOOD, ""), (answer.status, answer.detail))
                self.assertApproximates(time.time() + 86400, answer.until, 5)

    def test_revoked(self) -> None:
        """With time and reason."""
        answer = verifyAnswer(self.answer(REVOKED), self.subject, time.time())
        self.assertEqual(Status.REVOKED, answer.status)
        self.assertRegex(answer.detail, r"\Ait was revoked on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(keyCompromise\)\Z")

    def test_overrules(self) -> None:
        """The later one of two answers, and "revoked" of two of the same time."""
        now = time.time()
        good, revoked = verifyAnswer(self.answer(), self.subject, now), verifyAnswer(self.answer(REVOKED), self.subject, now)
        self.assertApproximates(now - 3600, good.begin, 5)
        self.assertApproximates(now - 3600, revoked.begin, 5)
        at = replace(good, begin=100.0), replace(revoked, begin=100.0)
        for mine in at:
            for other in at:
                self.assertTrue(replace(mine, begin=101.0).overrules(other))
                self.assertFalse(mine.overrules(replace(other, begin=101.0)))
        self.assertEqual([True, False, True, True], [mine.overrules(other) for mine in at for other in at])

    def test_unknown(self) -> None:
        """Unknown is no answer."""
        self.refused("does not know", self.answer(UNKNOWN))

    def test_delegated(self) -> None:
        """Signed by whom the issuer has appointed."""
        signer = delegate(testCA())
        for byName in (False, True):
            data = self.answer(signer=signer, include=[signer[0]], byName=byName)
            self.assertEqual(Status.GOOD, verifyAnswer(data, self.subject, time.time()).status)

    def test_badDelegates(self) -> None:
        """Without the extended key usage, expired, by another authority, or not in the answer."""
        for word, signer in (
            ("extended key usage", delegate(testCA(), usage=False)),
            ("not valid now", delegate(testCA(), expired=True)),
            ("not issued by", delegate(otherCA())),
        ):
            self.refused(word, self.answer(signer=signer, include=[signer[0]]))
        self.refused("neither", self.answer(signer=delegate(testCA())))

    def test_delegateOfTheIntermediate(self) -> None:
        """An issuer above or below may not sign for this one."""
        below = testCA().intermediate()
        signer = delegate(below)
        self.refused("not issued by", self.answer(signer=signer, include=[signer[0], below.certificate]))

    def test_wrongSigner(self) -> None:
        """Another key under the issuer's name, and a stranger."""
        impostor = CA("SSA test root")
        forged = ocspAnswer(impostor, self.certificate, issuer=testCA().certificate, byName=True)
        self.refused("signature is wrong", forged)
        stranger = otherCA()
        self.refused("neither", ocspAnswer(stranger, self.certificate, issuer=testCA().certificate))

    def test_changed(self) -> None:
        """Any byte changed, with a signer's certificate in it as well; or cut off anywhere."""
        signer = delegate(testCA())
        for data in (self.answer(REVOKED), self.answer(signer=signer, include=[signer[0]])):
            status = verifyAnswer(data, self.subject, time.time()).status
            for at in range(len(data)):
                changed = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
                try:
                    found = verifyAnswer(changed, self.subject, time.time())
                except NoAnswer:
                    continue
                # Not all of what is around the signed parts matters.
                self.assertEqual(status, found.status, f"byte {at}")
            for size in range(len(data)):
                self.assertRaises(NoAnswer, verifyAnswer, data[:size], self.subject, time.time())

    def test_times(self) -> None:
        """Not yet, not any more; with some difference of clocks."""
        self.refused("expired", self.answer(begin=-2 * DAY, end=-DAY))
        self.refused("counts only in", self.answer(begin=HOUR, end=DAY))
        now = time.time()
        data = self.answer(begin=-HOUR, end=HOUR)
        until = now + 3600
        self.assertEqual(Status.GOOD, verifyAnswer(data, self.subject, until + CLOCK_SKEW - 5).status)
        self.refused("expired", data, until + CLOCK_SKEW + 5)
        self.assertEqual(Status.GOOD, verifyAnswer(data, self.subject, now - 3600 - CLOCK_SKEW + 5).status)
        self.refused("counts only in", data, now - 3600 - CLOCK_SKEW - 5)

    def test_withoutEnd(self) -> None:
        """An answer without nextUpdate counts for a day."""
        fresh = verifyAnswer(self.answer(end=None), self.subject, time.time())
        self.assertApproximates(time.time() - 3600 + LONGEST_WITHOUT_END, fresh.until, 5)
        self.refused("no nextUpdate", self.answer(begin=-2 * DAY, end=None))

    def test_anotherCertificate(self) -> None:
        """An answer about another serial number, and one about the same of another issuer."""
        other = testCA().issue(["other.example"]).certificate
        self.refused("another certificate", ocspAnswer(testCA(), other))
        self.refused("another certificate", self.answer(issuer=otherCA().certificate))

    def test_renamedIssuer(self) -> None:
        """An answer about the same serial number of an authority with the same key and another name, or the other way round."""
        single = next(iter(ocsp.load_der_ocsp_response(self.answer()).responses))
        names = ("serial_number", "hash_algorithm", "issuer_name_hash", "issuer_key_hash")
        same: Any = {name: getattr(single, name) for name in names}
        self.assertTrue(_isAbout(SimpleNamespace(**same), self.subject))  # type: ignore[arg-type]
        for name in names[2:]:
            other: Any = SimpleNamespace(**{**same, name: bytes(20)})
            self.assertFalse(_isAbout(other, self.subject), name)

    def test_several(self) -> None:
        """Of several answers about one certificate in one response "revoked" counts, wherever it stands."""
        loaded = [ocsp.load_der_ocsp_response(self.answer(status)) for status in (GOOD, REVOKED, GOOD)]
        singles = [next(iter(each.responses)) for each in loaded]
        for order in ((0, 1, 2), (1, 0, 2), (0, 2, 1)):
            response: Any = SimpleNamespace(responses=[singles[number] for number in order])
            self.assertEqual(Status.REVOKED, _find(response, self.subject, time.time()).status)

    def test_backwards(self) -> None:
        """An answer that ends before it begins."""
        now = time.time()
        self.assertRaises(NoAnswer, checkTimes, now + 100, now - 100, now)
        self.assertEqual(now + 100, checkTimes(now + 100, now + 100, now))

    def test_weakDigests(self) -> None:
        """Signatures with MD5 and SHA-1."""
        data = ocsp.load_der_ocsp_response(self.answer())
        key = testCA().certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        for weak in (hashes.MD5(), hashes.SHA1()):
            error = self.assertRaises(NoAnswer, verifySignature, key, data.signature, data.tbs_response_bytes, weak)
            self.assertIn(f"{weak.name.upper()}, which is too weak", str(error))
        verifySignature(key, data.signature, data.tbs_response_bytes, hashes.SHA256())

    def test_responderErrors(self) -> None:
        """tryLater and its like."""
        data = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(Encoding.DER)
        self.refused("try_later", data)

    def test_nonsense(self) -> None:
        """What is no answer at all, is cut off, or is too long."""
        data = self.answer()
        for nonsense in (b"", b"<html>", bytes(100), data[:-1], data[: len(data) // 2], data + b"x"):
            self.refused("malformed", nonsense)
        self.refused("bytes", data + bytes(LARGEST_ANSWER))

    def test_weak(self) -> None:
        """A signature with a small RSA key does not count."""
        weak = CA("weak", key=testKey("rsa1024"))
        certificate = weak.issue().certificate
        self.subject = Subject(certificate, weak.certificate)
        self.refused("1024 bits", ocspAnswer(weak, certificate))

    def test_rsa(self) -> None:
        """An authority with another kind of key."""
        ca = CA("rsa", key=testKey("rsa", 7))
        certificate = ca.issue().certificate
        answer = verifyAnswer(ocspAnswer(ca, certificate), Subject(certificate, ca.certificate), time.time())
        self.assertEqual(Status.GOOD, answer.status)


class QuestionTests(SynchronousTestCase):
    """What is asked, and where."""

    def test_question(self) -> None:
        """One certificate, SHA-1, no nonce."""
        certificate = testCA().issue().certificate
        request = ocsp.load_der_ocsp_request(makeQuestion(Subject(certificate, testCA().certificate)))
        self.assertEqual(certificate.serial_number, request.serial_number)
        self.assertIsInstance(request.hash_algorithm, hashes.SHA1)
        self.assertEqual(0, len(request.extensions))

    def test_url(self) -> None:
        """Everything is quoted; what is too long is to be posted."""
        self.assertEqual("http://o.example/%2B%2B8%3D", questionURL("http://o.example/", b"\xfb\xef"[:1] + b"\xef"))
        self.assertEqual("", questionURL("http://o.example/" + "x" * LONGEST_GET, b"q"))

    def test_where(self) -> None:
        """Responders and lists that the certificate names; partial and indirect lists are left out."""
        partial = x509.CRLDistributionPoints(
            [
                x509.DistributionPoint(
                    [x509.UniformResourceIdentifier("http://c.example/part")],
                    None,
                    frozenset([x509.ReasonFlags.key_compromise]),
                    None,
                ),
                x509.DistributionPoint(
                    [x509.UniformResourceIdentifier("http://c.example/indirect")],
                    None,
                    None,
                    [x509.DirectoryName(otherCA().name)],
                ),
                x509.DistributionPoint(
                    [x509.UniformResourceIdentifier("ldap://c.example/"), x509.UniformResourceIdentifier("http://c.example/")],
                    None,
                    None,
                    None,
                ),
            ]
        )
        extensions = [*points("http://o.example/"), partial]
        subject = Subject(testCA().issue(extensions=extensions).certificate, testCA().certificate)
        self.assertEqual(("http://o.example/",), subject.responders())
        self.assertEqual(("ldap://c.example/", "http://c.example/"), subject.lists())
        nothing = Subject(testCA().issue().certificate, testCA().certificate)
        self.assertEqual(((), ()), (nothing.responders(), nothing.lists()))

    def test_mustStaple(self) -> None:
        """The TLS feature of RFC 7633."""
        self.assertTrue(mustStaple(testCA().issue(extensions=points(mustStaple=True)).certificate))
        self.assertFalse(mustStaple(testCA().issue().certificate))
        other = x509.TLSFeature([x509.TLSFeatureType.status_request_v2])
        self.assertFalse(mustStaple(testCA().issue(extensions=[other]).certificate))

    def test_duration(self) -> None:
        """Texts have units for people."""
        certificate = testCA().issue().certificate
        data = ocspAnswer(testCA(), certificate, begin=-9 * DAY, end=datetime.timedelta(days=-3))
        error = self.assertRaises(NoAnswer, verifyAnswer, data, Subject(certificate, testCA().certificate), time.time())
        self.assertEqual("it has expired 3.0 days ago", str(error))
