# SPDX-License-Identifier: MIT
"""
Certificate transparency logs for tests: their keys, their lists, and the timestamps that they sign, in a certificate as well.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import struct
import time
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier

from ssa.test.pki import CA, Credential

EMBEDDED = ExtensionOID.PRECERT_SIGNED_CERTIFICATE_TIMESTAMPS
DELIVERED = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.5")


class TestLog:
    """A log with a key of its own."""

    def __init__(self, name: str, operator: str = "", state: str = "usable", since: str = "2020-01-01T00:00:00Z") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name
        self.operator = operator or f"operator of {name}"
        self.state = state
        self.since = since
        self.spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(self.spki).digest()

    def sign(self, entry: bytes, when: float | None = None) -> bytes:
        """
        A C{SerializedSCT}: RFC 6962 section 3.2.

        @param entry: what is signed, with its type.
        """
        stamp = struct.pack("!Q", int((time.time() - 60 if when is None else when) * 1000))
        signature = self.key.sign(b"\0\0" + stamp + entry + b"\0\0", ec.ECDSA(hashes.SHA256()))
        return b"\0" + self.id + stamp + b"\0\0" + b"\x04\x03" + vector(signature)


def vector(data: bytes) -> bytes:
    """With its length of two bytes."""
    return len(data).to_bytes(2, "big") + data


def timestampList(*stamps: bytes) -> bytes:
    """A C{SignedCertificateTimestampList}."""
    return vector(b"".join(vector(stamp) for stamp in stamps))


def wholeEntry(certificate: x509.Certificate) -> bytes:
    """What a log signs of a certificate."""
    der = certificate.public_bytes(Encoding.DER)
    return b"\0\0" + len(der).to_bytes(3, "big") + der


def inOctetString(data: bytes) -> bytes:
    """The value of the extensions: an OCTET STRING in the OCTET STRING."""
    size = len(data)
    if size < 0x80:
        return bytes((0x04, size)) + data
    length = b"\x81" + bytes((size,)) if size < 0x100 else b"\x82" + size.to_bytes(2, "big")
    return b"\x04" + length + data


def issueLogged(
    ca: CA, logs: Sequence[TestLog], *, when: float | None = None, days: int = 90, foreign: bool = False, **more: Any
) -> Credential:
    """
    A certificate with timestamps of logs in it.

    The order is that of reality: the precertificate, which is the certificate with the poison, goes to the logs; they sign
    what remains without the poison; the certificate gets their timestamps in place of it.

    @param when: the timestamps' time.
    @param days: its lifetime.
    @param foreign: whether the timestamps are another certificate's.
    """
    plain = ca.issue(**more)
    tbs = _builder(ca, plain.certificate, days).sign(ca.key, hashes.SHA256()).tbs_certificate_bytes
    if foreign:
        tbs = ca.issue(["foreign.example"]).certificate.tbs_certificate_bytes
    issuer = ca.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    entry = b"\0\1" + hashlib.sha256(issuer).digest() + len(tbs).to_bytes(3, "big") + tbs
    stamps = timestampList(*(log.sign(entry, when) for log in logs))
    extension = x509.UnrecognizedExtension(EMBEDDED, inOctetString(stamps))
    builder = _builder(ca, plain.certificate, days).add_extension(extension, critical=False)
    certificate = builder.sign(ca.key, hashes.SHA256())
    return Credential(certificate, (certificate, *plain.chain[1:]), plain.key)


def _builder(ca: CA, like: x509.Certificate, days: int) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(like.subject)
        .issuer_name(ca.name)
        .public_key(like.public_key())
        .serial_number(like.serial_number)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_before_utc + datetime.timedelta(days=days))
    )
    for extension in like.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder


def logList(*logs: TestLog) -> dict[str, Any]:
    """A list of logs, as browsers publish it."""
    operators: dict[str, dict[str, Any]] = {}
    for log in logs:
        operator = operators.setdefault(log.operator, {"name": log.operator, "email": [], "logs": [], "tiled_logs": []})
        operator["logs"].append(
            {
                "description": log.name,
                "log_id": base64.b64encode(log.id).decode(),
                "key": base64.b64encode(log.spki).decode(),
                "url": f"https://{log.name}.example/",
                "mmd": 86400,
                "state": {log.state: {"timestamp": log.since}},
            }
        )
    return {"version": "80.1", "log_list_timestamp": "2026-01-01T00:00:00Z", "operators": list(operators.values())}


def logListBytes(*logs: TestLog) -> bytes:
    """The same, as the file has it."""
    return json.dumps(logList(*logs)).encode()
