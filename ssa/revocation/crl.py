# SPDX-License-Identifier: MIT
"""
Revocation lists: RFC 5280 section 5.  No I/O; but a list may have megabytes, and then all of this belongs into a thread.

Only complete lists by the certificate's own issuer count.  Delta lists, indirect ones and those for some reasons only are
no answer: what they leave out would be taken for good.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

from ssa.revocation.verdict import Answer, NoAnswer, Status, Subject, checkStrength, checkTimes

__all__ = ["LARGEST_LIST", "RevocationList", "readList"]

LARGEST_LIST = 16 * 1024 * 1024
"""The most bytes of a list."""

_UNDERSTOOD = frozenset(
    {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_NUMBER,
        ExtensionOID.ISSUING_DISTRIBUTION_POINT,
        ExtensionOID.ISSUER_ALTERNATIVE_NAME,
        ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
        ExtensionOID.FRESHEST_CRL,
    }
)


class RevocationList:
    """
    A list that was signed by an issuer.

    @ivar issuerID: of whom (L{Subject.issuerID}).
    @ivar size: its bytes.
    """

    def __init__(self, issuerID: bytes, parsed: x509.CertificateRevocationList, size: int) -> None:
        """See L{readList}."""
        self.issuerID = issuerID
        self.size = size
        self._parsed = parsed

    def until(self, now: float) -> float:
        """
        Say until when the list counts.

        @raise NoAnswer: it does not count yet, or not any more.
        """
        end = self._parsed.next_update_utc
        return checkTimes(self._parsed.last_update_utc.timestamp(), end.timestamp() if end is not None else None, now)

    def answer(self, subject: Subject, now: float) -> Answer:
        """
        Look a certificate up.

        @raise NoAnswer: the list is not about it, or does not count now.
        """
        if subject.issuerID != self.issuerID:
            raise NoAnswer("it is another issuer's")
        until = self.until(now)
        try:
            _checkScope(self._parsed, subject)
            entry = self._parsed.get_revoked_certificate_by_serial_number(subject.certificate.serial_number)
            if entry is None:
                return Answer(Status.GOOD, until)
            return Answer(Status.REVOKED, until, _detail(entry))
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
            raise NoAnswer(f"it is malformed: {error}") from None


def readList(data: bytes, subject: Subject) -> RevocationList:
    """
    Read a list, and verify that the issuer of a certificate has signed it.

    @param data: DER, as RFC 5280 section 4.2.1.13 wants it, or PEM, as some publish it.
    @raise NoAnswer: it is none that counts.
    """
    if len(data) > LARGEST_LIST:
        raise NoAnswer(f"it has {len(data)} bytes, at most {LARGEST_LIST} are allowed")
    try:
        isPEM = data.lstrip()[:11] == b"-----BEGIN "
        parsed = x509.load_pem_x509_crl(data) if isPEM else x509.load_der_x509_crl(data)
        _checkExtensions(parsed)
        _verifySigner(parsed, subject.issuer)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise NoAnswer(f"it is malformed: {error}") from None
    return RevocationList(subject.issuerID, parsed, len(data))


def _checkExtensions(parsed: x509.CertificateRevocationList) -> None:
    for extension in parsed.extensions:
        if extension.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise NoAnswer("it is a delta list")
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise NoAnswer(f"it has the critical extension {extension.oid.dotted_string}, which is not understood")


def _verifySigner(parsed: x509.CertificateRevocationList, issuer: x509.Certificate) -> None:
    if parsed.issuer != issuer.subject:
        raise NoAnswer("it is by another issuer than the certificate's")
    try:
        if not issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign:
            raise NoAnswer("the certificate's issuer may not sign revocation lists (key usage)")
    except x509.ExtensionNotFound:
        pass
    key = issuer.public_key()
    checkStrength(key, parsed.signature_hash_algorithm)
    if not parsed.is_signature_valid(key):  # type: ignore[arg-type]  # other kinds of keys raise TypeError
        raise NoAnswer("its signature is wrong")


def _checkScope(parsed: x509.CertificateRevocationList, subject: Subject) -> None:
    """
    Check that the list is about this kind of certificate, for all reasons: RFC 5280 section 5.2.5 and 6.3.3 (b).

    @raise NoAnswer: it is not.
    """
    try:
        scope = parsed.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return
    if scope.indirect_crl:
        raise NoAnswer("it is an indirect list")
    if scope.only_some_reasons is not None:
        raise NoAnswer("it is for some reasons of revocation only")
    if scope.only_contains_attribute_certs:
        raise NoAnswer("it is for attribute certificates only")
    if scope.only_contains_user_certs and subject.isAuthority:
        raise NoAnswer("it is for certificates of end entities only")
    if scope.only_contains_ca_certs and not subject.isAuthority:
        raise NoAnswer("it is for certificates of authorities only")
    if scope.relative_name is not None:
        raise NoAnswer("it is for a distribution point with a relative name, which is not supported")
    if scope.full_name is not None:
        named = {_uri(name) for point in subject.points() for name in point.full_name or ()}
        if not named.intersection(_uris(scope.full_name)):
            raise NoAnswer("it is for another distribution point than the certificate names")


def _uris(names: Iterable[x509.GeneralName]) -> set[str]:
    return {text for text in map(_uri, names) if text}


def _uri(name: x509.GeneralName) -> str:
    return name.value if isinstance(name, x509.UniformResourceIdentifier) else ""


def _detail(entry: x509.RevokedCertificate) -> str:
    detail = f"it was revoked on {entry.revocation_date_utc:%Y-%m-%d %H:%M:%S} UTC"
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except (x509.ExtensionNotFound, ValueError, x509.DuplicateExtension):
        return detail
    return f"{detail} ({reason.value})"
