# SPDX-License-Identifier: MIT
"""
OCSP: the question to a responder, and the verification of its answer.  No I/O.

RFC 6960, in the profile of RFC 5019 that the responders of public authorities follow: one certificate a question, SHA-1 as the
hash that names its issuer, no nonce (answers are made in advance), C{GET} where the question is short.
"""

from __future__ import annotations

import base64
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from ssa.revocation.verdict import (
    CLOCK_SKEW,
    MALFORMED,
    Answer,
    NoAnswer,
    NotTaken,
    Status,
    Subject,
    checkStrength,
    checkTimes,
    verifySignature,
)

__all__ = ["LARGEST_ANSWER", "LONGEST_GET", "makeQuestion", "questionURL", "verifyAnswer"]

LARGEST_ANSWER = 128 * 1024
"""The most bytes of an answer; with a chain of responder certificates in it they are a few thousand."""

LONGEST_GET = 255
"""The most bytes of a question's URL in a C{GET} request; RFC 5019 section 5."""

_MOST_SINGLE_ANSWERS = 256
_MOST_CERTIFICATES = 16


def makeQuestion(subject: Subject) -> bytes:
    """
    Ask about one certificate.

    @return: an C{OCSPRequest}, DER.
    """
    return _request(subject, hashes.SHA1()).public_bytes(Encoding.DER)  # noqa: S303 (it names the issuer, nothing more)


def _request(subject: Subject, digest: hashes.HashAlgorithm) -> ocsp.OCSPRequest:
    return ocsp.OCSPRequestBuilder().add_certificate(subject.certificate, subject.issuer, digest).build()


def questionURL(responder: str, question: bytes) -> str:
    """
    Make the URL for a question by C{GET}: RFC 6960 appendix A.1.

    @return: "" if it would be too long, and C{POST} is the way.
    """
    url = f"{responder.rstrip('/')}/{quote(base64.b64encode(question).decode('ascii'), safe='')}"
    return url if len(url) <= LONGEST_GET else ""


def verifyAnswer(data: bytes, subject: Subject, now: float) -> Answer:
    """
    Read an answer and verify everything about it: RFC 6960 section 3.2.

    @param data: an C{OCSPResponse}, DER.
    @param now: the time.
    @raise NoAnswer: it is none about this certificate by its issuer, or it does not know, or it does not count now.
    """
    if len(data) > LARGEST_ANSWER:
        raise NoAnswer(f"it has {len(data)} bytes, at most {LARGEST_ANSWER} are allowed")
    try:
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise NotTaken(f"the responder says {response.response_status.name.lower()}")
        _verifySigner(response, subject, now)
        return _find(response, subject, now)
    except NoAnswer:
        raise
    except MALFORMED as error:
        raise NoAnswer(f"it is malformed: {error}") from None


def _find(response: ocsp.OCSPResponse, subject: Subject, now: float) -> Answer:
    """Look for the answer about the certificate; of several the worst counts."""
    found: Answer | None = None
    problem: NoAnswer | None = None
    for number, single in enumerate(response.responses):
        if number >= _MOST_SINGLE_ANSWERS:
            raise NoAnswer(f"it is about more than {_MOST_SINGLE_ANSWERS} certificates")
        if not _isAbout(single, subject):
            continue
        try:
            answer = _read(single, now)
        except NoAnswer as error:
            problem = error
            continue
        if found is None or answer.status is Status.REVOKED:
            found = answer
    if found is not None:
        return found
    raise problem if problem is not None else NoAnswer("it is about another certificate")


def _isAbout(single: ocsp.OCSPSingleResponse, subject: Subject) -> bool:
    """Whether the C{certID} is the certificate's: its serial number, and its issuer's name and key."""
    if single.serial_number != subject.certificate.serial_number:
        return False
    asked = _request(subject, single.hash_algorithm)
    return asked.issuer_name_hash == single.issuer_name_hash and asked.issuer_key_hash == single.issuer_key_hash


def _read(single: ocsp.OCSPSingleResponse, now: float) -> Answer:
    end = single.next_update_utc
    begin = single.this_update_utc.timestamp()
    until = checkTimes(begin, end.timestamp() if end is not None else None, now)
    if single.certificate_status is ocsp.OCSPCertStatus.UNKNOWN:
        raise NoAnswer("the responder does not know the certificate")
    if single.certificate_status is ocsp.OCSPCertStatus.GOOD:
        return Answer(Status.GOOD, until, "", begin)
    when, reason = single.revocation_time_utc, single.revocation_reason
    detail = f"it was revoked on {when:%Y-%m-%d %H:%M:%S} UTC" if when is not None else "it was revoked"
    if reason is not None:
        detail += f" ({reason.value})"
    return Answer(Status.REVOKED, until, detail, begin)


def _verifySigner(response: ocsp.OCSPResponse, subject: Subject, now: float) -> None:
    """
    Verify who signed the answer: the issuer, or whom the issuer itself has appointed (RFC 6960 section 4.2.2.2).

    @raise NoAnswer: neither of them.
    """
    problem: NoAnswer | None = None
    candidates = [subject.issuer, *response.certificates[:_MOST_CERTIFICATES]]
    for candidate in candidates:
        if not _isNamed(candidate, response):
            continue
        try:
            if candidate is not subject.issuer:
                _checkDelegated(candidate, subject.issuer, now)
            key = candidate.public_key()
            _verifyWith(key, response)
            return
        except NoAnswer as error:
            problem = error
    raise problem if problem is not None else NoAnswer("its signer is neither the issuer nor in it")


def _verifyWith(key: object, response: ocsp.OCSPResponse) -> None:
    digest = response.signature_hash_algorithm
    signer: CertificateIssuerPublicKeyTypes = key  # type: ignore[assignment]  # any other kind is refused below
    verifySignature(signer, response.signature, response.tbs_response_bytes, digest)


def _isNamed(certificate: x509.Certificate, response: ocsp.OCSPResponse) -> bool:
    """Whether the C{ResponderID} names a certificate: by its subject, or by the SHA-1 digest of its public key."""
    if response.responder_name is not None:
        return certificate.subject == response.responder_name
    return _keyHash(certificate) == response.responder_key_hash


def _keyHash(certificate: x509.Certificate) -> bytes:
    """Hash the BIT STRING of the public key, without tag, length and unused bits (RFC 6960 section 4.2.1)."""
    return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest


def _checkDelegated(certificate: x509.Certificate, issuer: x509.Certificate, now: float) -> None:
    """
    Check that the issuer has appointed a responder.

    Whether the responder's own certificate is revoked is not asked (most have C{id-pkix-ocsp-nocheck}, and the question would
    go to the same responder); it counts only while it is valid.

    @raise NoAnswer: it has not.
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *MALFORMED):
        raise NoAnswer("its signer's certificate was not issued by the certificate's issuer") from None
    checkStrength(issuer.public_key(), certificate.signature_hash_algorithm)
    extensions = certificate.extensions
    try:
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        allowed = ExtendedKeyUsageOID.OCSP_SIGNING in usage
    except x509.ExtensionNotFound:
        allowed = False
    if not allowed:
        raise NoAnswer("its signer's certificate does not have the extended key usage OCSPSigning")
    try:
        if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            raise NoAnswer("the key usage of its signer's certificate does not allow signatures")
    except x509.ExtensionNotFound:
        pass
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not begin - CLOCK_SKEW <= now <= end + CLOCK_SKEW:
        raise NoAnswer("its signer's certificate is not valid now")

