# SPDX-License-Identifier: MIT
"""
What is asked about a certificate, what an answer is, and what follows from several of them.  No I/O.

Times are seconds since the epoch, so that they can be compared, kept in files and faked in tests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from ssa.errors import Cause, SSAError
from ssa.tls.certificates import MALFORMED, describeCertificate, publicKeyOf

__all__ = [
    "CLOCK_SKEW",
    "LONGEST_LIFE",
    "LONGEST_WITHOUT_END",
    "MALFORMED",
    "SOURCES",
    "Answer",
    "NoAnswer",
    "NotTaken",
    "Status",
    "Subject",
    "checkStrength",
    "checkTimes",
    "isSelfSigned",
    "mustStaple",
    "noDefiniteAnswer",
    "revoked",
    "verifySignature",
]

SOURCES = ("stapled", "cached", "ocsp", "crl")
"""The sources of answers, in the order of their cost."""

CLOCK_SKEW = 300.0
"""Seconds by which the clocks of this machine and of an authority may differ."""

LONGEST_WITHOUT_END = 86400.0
"""Seconds for which an answer counts that does not say until when it does (RFC 6960 section 2.4: there may be a newer one)."""

LONGEST_LIFE = 7 * 86400.0
"""Seconds for which an answer is kept at most, whatever it says itself."""

_SMALLEST_RSA_KEY = 2048
_WEAK = (hashes.MD5, hashes.SHA1)


class NoAnswer(Exception):
    """
    A source does not say whether a certificate is revoked.

    Its text is a clause for a person: C{"it was signed by somebody else"}.
    """


class NotTaken(NoAnswer):
    """A server or responder does not take a question, at least not in this way."""


class Status(Enum):
    """A definite answer."""

    GOOD = "good"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Answer:
    """
    A definite answer, verified.

    @ivar status: what it says.
    @ivar until: when it stops to count.
    @ivar detail: of a revocation: when and why; "" otherwise.
    @ivar begin: its thisUpdate: when it was known to be right.
    """

    status: Status
    until: float
    detail: str = ""
    begin: float = 0.0

    def overrules(self, other: Answer) -> bool:
        """Whether it is later than another one of the same source; of two of the same time "revoked" counts."""
        if self.begin != other.begin:
            return self.begin > other.begin
        return self.status is Status.REVOKED or other.status is not Status.REVOKED


@dataclass(eq=False)
class Subject:
    """
    A certificate that needs an answer, and the one above it in the verified chain, which answers are verified with.

    @ivar certificate: what is asked about.
    @ivar issuer: who issued it; its signature on C{certificate} has been verified.
    @ivar said: what each source that was asked said, for a person.
    @ivar answer: the definite answer; C{None} while there is none.
    @ivar stapled: a good answer that the peer has stapled, as it came and as it was read; C{None} if there is none.
    """

    certificate: x509.Certificate
    issuer: x509.Certificate
    said: list[str] = field(default_factory=list)
    answer: Answer | None = None
    stapled: tuple[bytes, Answer] | None = None

    @cached_property
    def issuerID(self) -> bytes:
        """A digest that is equal for equal names and keys of issuers."""
        name = self.issuer.subject.public_bytes()
        return hashlib.sha256(len(name).to_bytes(4, "big") + name + publicKeyOf(self.issuer)).digest()

    @property
    def isAuthority(self) -> bool:
        """Whether the certificate is an authority's."""
        try:
            return self.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            return False

    def responders(self) -> tuple[str, ...]:
        """List the OCSP responders that the certificate names (RFC 5280 section 4.2.2.1)."""
        try:
            access = self.certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        except x509.ExtensionNotFound:
            return ()
        return tuple(
            description.access_location.value
            for description in access
            if description.access_method == AuthorityInformationAccessOID.OCSP
            and isinstance(description.access_location, x509.UniformResourceIdentifier)
        )

    def lists(self) -> tuple[str, ...]:
        """List where the certificate's complete and direct revocation lists are (RFC 5280 section 4.2.1.13)."""
        found: list[str] = []
        for point in self.points():
            if point.reasons is None and point.crl_issuer is None:
                names = point.full_name or ()
                found += [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
        return tuple(found)

    def points(self) -> tuple[x509.DistributionPoint, ...]:
        """List the distribution points of the certificate."""
        try:
            return tuple(self.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value)
        except x509.ExtensionNotFound:
            return ()


def mustStaple(certificate: x509.Certificate) -> bool:
    """Whether a certificate is good only with a stapled answer: the TLS feature status_request of RFC 7633."""
    try:
        features = certificate.extensions.get_extension_for_oid(ExtensionOID.TLS_FEATURE).value
    except x509.ExtensionNotFound:
        return False
    assert isinstance(features, x509.TLSFeature)
    return x509.TLSFeatureType.status_request in features


def isSelfSigned(certificate: x509.Certificate) -> bool:
    """Whether nobody else can revoke a certificate."""
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, *MALFORMED):
        return False
    return True


def checkTimes(begin: float, end: float | None, now: float) -> float:
    """
    Check the times of an answer: C{thisUpdate} and C{nextUpdate}, RFC 6960 section 4.2.2.1 and RFC 5280 section 5.1.2.

    @param begin: from when on it counts.
    @param end: until when; C{None} if it does not say so.
    @return: until when it counts.
    @raise NoAnswer: it does not count yet, or not any more.
    """
    if begin > now + CLOCK_SKEW:
        raise NoAnswer(f"it counts only in {_duration(begin - now)}")
    until = end if end is not None else begin + LONGEST_WITHOUT_END
    if until < begin:
        raise NoAnswer("its nextUpdate is before its thisUpdate")
    if until + CLOCK_SKEW < now:
        return _expired(now - until, end is None)
    return until


def _expired(ago: float, withoutEnd: bool) -> float:
    if withoutEnd:
        raise NoAnswer(f"it has no nextUpdate, and is older than {_duration(LONGEST_WITHOUT_END)}")
    raise NoAnswer(f"it has expired {_duration(ago)} ago")


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit or (seconds >= unit and unit == 86400):
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def checkStrength(key: object, digest: hashes.HashAlgorithm | None) -> None:
    """
    Refuse what the daemon's security level does not allow in a chain either.

    @param key: the signer's.
    @param digest: what was signed is hashed with it; C{None} where the signature algorithm has its own.
    @raise NoAnswer: the key or the digest is too weak.
    """
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _SMALLEST_RSA_KEY:
        raise NoAnswer(f"its signer has an RSA key of {key.key_size} bits, at least {_SMALLEST_RSA_KEY} are needed")
    if isinstance(digest, _WEAK):
        raise NoAnswer(f"it is signed with {digest.name.upper()}, which is too weak")


def verifySignature(
    key: CertificateIssuerPublicKeyTypes, signature: bytes, data: bytes, digest: hashes.HashAlgorithm | None
) -> None:
    """
    Verify a signature.

    @param digest: C{None} for Ed25519 and Ed448.
    @raise NoAnswer: it is wrong, too weak, or of an algorithm that does not fit the key.
    """
    checkStrength(key, digest)
    try:
        if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
            key.verify(signature, data)
        elif digest is None:
            raise NoAnswer("its signature algorithm does not fit its signer's key")
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), digest)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(digest))
        else:
            raise NoAnswer("its signer has a key of a kind that is not supported")
    except InvalidSignature:
        raise NoAnswer("its signature is wrong") from None
    except (UnsupportedAlgorithm, ValueError) as error:
        raise NoAnswer(f"its signature cannot be verified: {error}") from None


def revoked(subject: Subject, answer: Answer, source: str, rule: str) -> SSAError:
    """
    Make the error of a revoked certificate.

    @param source: who says so.
    @param rule: why it is asked.
    """
    return Cause.REVOKED.error(f"{source} says {answer.detail} ({rule}) {describeCertificate(subject.certificate)}")


def noDefiniteAnswer(subject: Subject, rule: str) -> SSAError:
    """
    Make the error of a certificate without the answer that it needs.

    @param rule: why it needs one.
    """
    said = "; ".join(subject.said) or "no source could be asked"
    return Cause.REVOCATION_UNKNOWN.error(f"{rule}: {said} {describeCertificate(subject.certificate)}")
