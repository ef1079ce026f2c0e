# SPDX-License-Identifier: MIT
"""
Certificate transparency: whether enough logs have promised to publish a server's certificate.  RFC 6962.

A signed certificate timestamp (SCT) comes in the certificate itself, in an extension of the TLS handshake, or in a stapled
OCSP answer.  How many are enough is what browsers have agreed on: in the certificate two up to a lifetime of 180 days and
three above, elsewhere two; always of two operators at least, and not of retired logs alone.
"""

from __future__ import annotations

import datetime
import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.certificate_transparency import LogEntryType, SignedCertificateTimestamp, Version
from cryptography.x509.oid import ExtensionOID

from ssa.errors import Cause
from ssa.tls.certificates import MALFORMED, describeCertificate, publicKeyOf
from ssa.tls.loglist import Log, LogList

__all__ = ["CLOCK_SKEW", "Timestamp", "checkTransparency", "parseTimestamps"]

CLOCK_SKEW = 300.0
"""Seconds by which a log's clock may be ahead."""

_SHORT_LIFE = datetime.timedelta(days=180)
_MOST_TIMESTAMPS = 64
_HASHES: dict[int, type[hashes.HashAlgorithm]] = {4: hashes.SHA256, 5: hashes.SHA384, 6: hashes.SHA512}
_RSA, _ECDSA = 1, 3  # SignatureAlgorithm, RFC 5246 section 7.4.1.4.1


@dataclass(frozen=True)
class Timestamp:
    """
    One SCT: RFC 6962 section 3.2.

    @ivar logID: whose it is.
    @ivar milliseconds: when, since the epoch.
    @ivar extensions: opaque.
    @ivar digest: what the signature hashes with.
    @ivar algorithm: the signature's, a number of TLS.
    @ivar signature: the signature.
    """

    logID: bytes
    milliseconds: int
    extensions: bytes
    digest: hashes.HashAlgorithm
    algorithm: int
    signature: bytes


@dataclass
class _Found:
    """What is known of the timestamps of one source."""

    name: str
    needed: int
    logs: list[Log] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    number: int = 0

    @property
    def isEnough(self) -> bool:
        return (
            len(self.logs) >= self.needed
            and len({log.operator for log in self.logs}) >= 2
            and any(log.countsNow for log in self.logs)
        )

    def describe(self) -> str:
        text = f"{self.name}: {len(self.logs)} of {self.number} count, {self.needed} of two operators are needed"
        if self.problems:
            text += f" ({'; '.join(self.problems[:4])})"
        return text


def checkTransparency(
    chain: Sequence[x509.Certificate],
    stapled: bytes,
    fromHandshake: bytes | None,
    logs: LogList,
    now: float,
    rule: str = "VerifyCertTransparency",
) -> None:
    """
    Check a server's certificate.

    @param chain: the verified chain, the server's own certificate first.
    @param stapled: a stapled OCSP answer whose signature has been verified; empty if there is none.
    @param fromHandshake: a C{SignedCertificateTimestampList} from the TLS extension, empty if the server sent none;
        C{None} where the TLS library cannot tell.
    @param logs: those that count.
    @param now: the time, seconds since the epoch.
    @param rule: who asks for it, for a person.
    @raise SSAError: EKEYREJECTED, there are not enough timestamps; the text tells what was found where.
    """
    own = chain[0]
    isLong = own.not_valid_after_utc - own.not_valid_before_utc > _SHORT_LIFE
    embedded = _Found("in the certificate", 3 if isLong else 2)
    delivered = _Found("in the OCSP answer" if fromHandshake is None else "in the handshake and the OCSP answer", 2)
    if len(chain) > 1:
        _judge(embedded, lambda: _embedded(own), lambda: _precertificate(own, chain[1]), logs, now, True)
    else:
        embedded.problems.append("its issuer is not known")
    _judge(delivered, lambda: _stapled(stapled), lambda: _whole(own), logs, now, False)
    _judge(delivered, lambda: parseTimestamps(fromHandshake) if fromHandshake else [], lambda: _whole(own), logs, now, False)
    if embedded.isEnough or delivered.isEnough:
        return
    told = f"{embedded.describe()}; {delivered.describe()}"
    if fromHandshake is None:
        told += "; the extension of the handshake cannot be looked at here"
    raise Cause.TRANSPARENCY.error(f"{told} ({rule}) {describeCertificate(own)}")


def _embedded(certificate: x509.Certificate) -> list[Timestamp]:
    try:
        value = certificate.extensions.get_extension_for_oid(ExtensionOID.PRECERT_SIGNED_CERTIFICATE_TIMESTAMPS).value
    except x509.ExtensionNotFound:
        return []
    assert isinstance(value, x509.PrecertificateSignedCertificateTimestamps)
    return [_converted(each) for each in value]


def _stapled(answer: bytes) -> list[Timestamp]:
    if not answer:
        return []
    response = ocsp.load_der_ocsp_response(answer)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        return []
    try:
        value = response.single_extensions.get_extension_for_class(x509.SignedCertificateTimestamps).value
    except x509.ExtensionNotFound:
        return []
    return [_converted(each) for each in value]


def _converted(sct: SignedCertificateTimestamp) -> Timestamp:
    if sct.version is not Version.v1 or sct.entry_type not in (LogEntryType.X509_CERTIFICATE, LogEntryType.PRE_CERTIFICATE):
        raise ValueError("a timestamp is of an unknown version")
    time = sct.timestamp.replace(tzinfo=datetime.timezone.utc)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    milliseconds = (time - epoch) // datetime.timedelta(milliseconds=1)
    digest, algorithm = sct.signature_hash_algorithm, sct.signature_algorithm.value
    return Timestamp(sct.log_id, milliseconds, sct.extension_bytes, digest, algorithm, sct.signature)


def parseTimestamps(data: bytes) -> list[Timestamp]:
    """
    Read a C{SignedCertificateTimestampList}: RFC 6962 section 3.3.

    @raise ValueError: it is malformed.
    """
    rest, none = _vector(data)
    if none:
        raise ValueError("something follows the list")
    found: list[Timestamp] = []
    while rest:
        one, rest = _vector(rest)
        if len(found) >= _MOST_TIMESTAMPS:
            raise ValueError(f"there are more than {_MOST_TIMESTAMPS}")
        if len(one) < 43 or one[0] != 0:
            continue  # of a later version: RFC 6962 section 3.3 has it ignored
        logID, (milliseconds,) = one[1:33], struct.unpack_from("!Q", one, 33)
        extensions, tail = _vector(one[41:])
        if len(tail) < 4 or tail[0] not in _HASHES:
            raise ValueError("a signature is of an unknown kind")
        signature, none = _vector(tail[2:])
        if none:
            raise ValueError("something follows a signature")
        found.append(Timestamp(logID, milliseconds, extensions, _HASHES[tail[0]](), tail[1], signature))
    return found


def _vector(data: bytes) -> tuple[bytes, bytes]:
    """Take a vector with a length of two bytes, RFC 8446 section 3.4."""
    if len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        raise ValueError("it is cut off")
    end = 2 + int.from_bytes(data[:2], "big")
    return data[2:end], data[end:]


def _precertificate(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """C{precert_entry} with its type: what the log has signed of a certificate that its timestamp is in."""
    tbs = certificate.tbs_precertificate_bytes
    return struct.pack("!H", 1) + hashlib.sha256(publicKeyOf(issuer)).digest() + len(tbs).to_bytes(3, "big") + tbs


def _whole(certificate: x509.Certificate) -> bytes:
    """C{x509_entry} with its type."""
    der = certificate.public_bytes(Encoding.DER)
    return struct.pack("!H", 0) + len(der).to_bytes(3, "big") + der


def _judge(
    found: _Found,
    read: Callable[[], list[Timestamp]],
    entry: Callable[[], bytes],
    logs: LogList,
    now: float,
    isEmbedded: bool,
) -> None:
    """Add the logs whose timestamps count, each once."""
    try:
        timestamps = read()
        signed = entry() if timestamps else b""
    except MALFORMED as error:
        found.problems.append(f"the list is malformed: {error}")
        return
    found.number += len(timestamps)
    for timestamp in timestamps[:_MOST_TIMESTAMPS]:
        log = logs.logs.get(timestamp.logID)
        if log is None:
            found.problems.append(f"log {timestamp.logID.hex()[:16]}… is not in the list")
            continue
        seconds = timestamp.milliseconds / 1000
        if seconds > now + CLOCK_SKEW:
            found.problems.append(f"{log.description}: the timestamp is in the future")
        elif not (log.countsFor(seconds) if isEmbedded else log.countsNow):
            found.problems.append(f"{log.description}: the log is {log.state}")
        elif not _isSigned(timestamp, log, signed):
            found.problems.append(f"{log.description}: the signature is wrong")
        elif log not in found.logs:
            found.logs.append(log)


def _isSigned(timestamp: Timestamp, log: Log, entry: bytes) -> bool:
    """Verify a log's signature: C{digitally-signed struct} of RFC 6962 section 3.2."""
    size = struct.pack("!H", len(timestamp.extensions))
    data = b"\0\0" + struct.pack("!Q", timestamp.milliseconds) + entry + size + timestamp.extensions
    if not isinstance(timestamp.digest, (hashes.SHA256, hashes.SHA384, hashes.SHA512)):
        return False
    try:
        if isinstance(log.key, ec.EllipticCurvePublicKey) and timestamp.algorithm == _ECDSA:
            log.key.verify(timestamp.signature, data, ec.ECDSA(timestamp.digest))
        elif isinstance(log.key, rsa.RSAPublicKey) and timestamp.algorithm == _RSA:
            log.key.verify(timestamp.signature, data, padding.PKCS1v15(), timestamp.digest)
        else:
            return False
    except (InvalidSignature, *MALFORMED):
        return False
    return True
