# SPDX-License-Identifier: MIT
"""
Revocation lists: RFC 5280 section 5.  No I/O; but a list may have megabytes, and then all of this belongs into a thread.

Only complete lists by the certificate's own issuer count.  Delta lists, indirect ones and those for some reasons only are
no answer: what they leave out would be taken for good.

The library that parses lists holds the interpreter's lock meanwhile, half a second for the largest ones, and so holds up all
threads.  It is given what a list says about itself; its entries are hashed and searched here, in steps that let others go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from ssa.revocation.verdict import MALFORMED, Answer, NoAnswer, Status, Subject, checkStrength, checkTimes

__all__ = ["LARGEST_LIST", "RevocationList", "readList"]

LARGEST_LIST = 16 * 1024 * 1024
"""The most bytes of a list."""

_LARGEST_PEM = 1024 * 1024
_STEP = 512 * 1024  # bytes that are searched at once: below a millisecond

_SEQUENCE, _BIT_STRING, _TIMES = 0x30, 0x03, (0x17, 0x18)

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


class _Layout:
    """
    Where things are in a C{CertificateList}: RFC 5280 section 5.1.

    @ivar signed: the bounds of C{tbsCertList}, with its header.
    @ivar entries: the bounds of the content of C{revokedCertificates}; equal if there is none.
    """

    def __init__(self, data: bytes) -> None:
        """@raise ValueError: it is no such list."""
        self.data = data
        begin, end = _content(data, 0, len(data), _SEQUENCE)
        if end != len(data):
            raise ValueError("something follows it")
        parts = _elements(data, begin, end, 3)
        if len(parts) != 3:
            raise ValueError("it has not the three parts of a list")
        value, end = _content(data, *parts[2], _BIT_STRING)
        if value == end or data[value]:
            raise ValueError("its signature is no whole number of bytes")
        self.signed = parts[0]
        self._rest = data[parts[1][0] : parts[2][1]]
        fields = _elements(data, *_content(data, *self.signed, _SEQUENCE), 7)
        times = [index for index, (at, _) in enumerate(fields) if data[at] in _TIMES]
        if len(fields) < 3 or not times:
            raise ValueError("it lacks an issuer or a time")
        after = times[-1] + 1
        self._before = data[fields[0][0] : fields[after - 1][1]]
        algorithm = data[slice(*fields[0 if data[fields[0][0]] == _SEQUENCE else 1])]
        if algorithm != data[slice(*parts[1])]:
            raise ValueError("the two signature algorithms in it differ")
        self.entries = (0, 0)
        if after < len(fields) and data[fields[after][0]] == _SEQUENCE:
            self.entries = _content(data, *fields[after], _SEQUENCE)
            after += 1
        self._after = data[fields[after][0] : fields[-1][1]] if after < len(fields) else b""

    def parsed(self, entry: bytes = b"") -> x509.CertificateRevocationList:
        """Give the library the list without its entries, or with one."""
        entries = _der(_SEQUENCE, entry) if entry else b""
        signed = _der(_SEQUENCE, self._before + entries + self._after)
        return x509.load_der_x509_crl(_der(_SEQUENCE, signed + self._rest))

    def find(self, serial: int) -> bytes:
        """
        Find the entry of a serial number.

        @return: empty if there is none.
        """
        size = serial.bit_length() // 8 + 1
        number = _der(0x02, serial.to_bytes(size, "big"))
        begin, end = self.entries
        while begin < end:
            # An integer has one encoding in DER: what is not found as bytes is not there.
            if self.data.find(number, begin, min(end, begin + _STEP + len(number))) >= 0:
                return self._walk(number)
            begin += _STEP
        return b""

    def _walk(self, number: bytes) -> bytes:
        """Look at one entry after the other: the bytes may have been something else than a serial number."""
        at, end = self.entries
        while at < end:
            first, after = _content(self.data, at, end, _SEQUENCE)
            if self.data.startswith(number, first, after):
                return self.data[at:after]
            at = after
        return b""


def _content(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """
    Read an element's header: X.690 section 8.1.

    @return: the bounds of its content.
    @raise ValueError: it is another element, or does not end before C{end}.
    """
    if end - at < 2 or data[at] != tag:
        raise ValueError("an element of it is missing or of another kind")
    length, at = data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        if not 0 < size <= 4 or at + size > end:
            raise ValueError("the length of an element is malformed")
        length, at = int.from_bytes(data[at : at + size], "big"), at + size
    if at + length > end:
        raise ValueError("it is cut off")
    return at, at + length


def _elements(data: bytes, at: int, end: int, most: int) -> list[tuple[int, int]]:
    """List the bounds of elements that follow each other, with their headers."""
    found = []
    while at < end:
        _, after = _content(data, at, end, data[at])
        found.append((at, after))
        at = after
        if len(found) > most:
            raise ValueError("it has too many parts")
    return found


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


class RevocationList:
    """
    A list that was signed by an issuer.

    @ivar issuerID: of whom (L{Subject.issuerID}).
    @ivar size: its bytes.
    """

    def __init__(self, issuerID: bytes, layout: _Layout, parsed: x509.CertificateRevocationList) -> None:
        """See L{readList}."""
        self.issuerID = issuerID
        self.size = len(layout.data)
        self._layout = layout
        self._parsed = parsed

    @property
    def begin(self) -> float:
        """Its thisUpdate."""
        return self._parsed.last_update_utc.timestamp()

    def until(self, now: float) -> float:
        """
        Say until when the list counts.

        @raise NoAnswer: it does not count yet, or not any more.
        """
        end = self._parsed.next_update_utc
        return checkTimes(self.begin, end.timestamp() if end is not None else None, now)

    def answer(self, subject: Subject, now: float) -> Answer:
        """
        Look a certificate up.

        @raise NoAnswer: the list is not about it, or does not count now.
        """
        if subject.issuerID != self.issuerID:
            raise NoAnswer("it is another issuer's")
        until = self.until(now)
        serial = subject.certificate.serial_number
        try:
            _checkScope(self._parsed, subject)
            entry = self._layout.find(serial)
            if not entry:
                return Answer(Status.GOOD, until, "", self.begin)
            return Answer(Status.REVOKED, until, _detail(self._layout.parsed(entry), serial), self.begin)
        except MALFORMED as error:
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
        if data[:11] == b"-----BEGIN ":
            if len(data) > _LARGEST_PEM:
                raise NoAnswer(f"it is PEM and has more than {_LARGEST_PEM} bytes; lists are published as DER")
            data = x509.load_pem_x509_crl(data).public_bytes(Encoding.DER)
        layout = _Layout(data)
        parsed = layout.parsed()
        _checkExtensions(parsed)
        _verifySigner(parsed, layout, subject.issuer)
    except MALFORMED as error:
        raise NoAnswer(f"it is malformed: {error}") from None
    return RevocationList(subject.issuerID, layout, parsed)


def _checkExtensions(parsed: x509.CertificateRevocationList) -> None:
    for extension in parsed.extensions:
        if extension.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise NoAnswer("it is a delta list")
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise NoAnswer(f"it has the critical extension {extension.oid.dotted_string}, which is not understood")


def _verifySigner(parsed: x509.CertificateRevocationList, layout: _Layout, issuer: x509.Certificate) -> None:
    if parsed.issuer != issuer.subject:
        raise NoAnswer("it is by another issuer than the certificate's")
    try:
        if not issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign:
            raise NoAnswer("the certificate's issuer may not sign revocation lists (key usage)")
    except x509.ExtensionNotFound:
        pass
    key = issuer.public_key()
    algorithm = parsed.signature_hash_algorithm
    checkStrength(key, algorithm)
    signed = memoryview(layout.data)[slice(*layout.signed)]
    parameters = parsed.signature_algorithm_parameters
    try:
        if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
            key.verify(parsed.signature, signed)
            return
        if algorithm is None:
            raise NoAnswer("its signature algorithm does not fit its signer's key")
        digest = hashlib.new(algorithm.name, signed).digest()  # without the interpreter's lock
        if isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, (padding.PKCS1v15, padding.PSS)):
            key.verify(parsed.signature, digest, parameters, Prehashed(algorithm))
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(parsed.signature, digest, ec.ECDSA(Prehashed(algorithm)))
        else:
            raise NoAnswer("its signature algorithm does not fit its signer's key")
    except InvalidSignature:
        raise NoAnswer("its signature is wrong") from None


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


def _detail(parsed: x509.CertificateRevocationList, serial: int) -> str:
    """Say when and why, from a list with one entry."""
    entry = parsed.get_revoked_certificate_by_serial_number(serial)
    if entry is None:
        raise ValueError("an entry cannot be read")
    detail = f"it was revoked on {entry.revocation_date_utc:%Y-%m-%d %H:%M:%S} UTC"
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except (x509.ExtensionNotFound, *MALFORMED):
        return detail
    return f"{detail} ({reason.value})"
