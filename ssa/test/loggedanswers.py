# SPDX-License-Identifier: MIT
"""
OCSP answers with timestamps of transparency logs (RFC 6962 section 3.3), which the library reads and does not make.
"""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from ssa.test.ctlogs import DELIVERED, inOctetString
from ssa.test.pki import der, testCA
from ssa.test.responders import ocspAnswer


def answerWith(certificate: x509.Certificate, stamps: bytes) -> bytes:
    """
    An OCSP answer with timestamps, which the library does not make: it is changed and signed again.

    The single extensions, C{[1] EXPLICIT}, end the only C{SingleResponse}.
    """
    plain = ocspAnswer(testCA(), certificate)
    response = ocsp.load_der_ocsp_response(plain)
    value = inOctetString(stamps)
    oid = b"\x06\x0a" + bytes.fromhex("2b06010401d679020405")
    extension = der(0xA1, der(0x30, der(0x30, oid + der(0x04, value))))
    tbs = response.tbs_response_bytes
    changed = _append(tbs, extension)
    key: Any = testCA().key
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = der(0x03, b"\0" + key.sign(changed, ec.ECDSA(hashes.SHA256())))
    basic = der(0x30, changed + algorithm + signature)
    kind = bytes.fromhex("06092b0601050507300101")
    data = der(0x30, b"\x0a\x01\x00" + der(0xA0, der(0x30, kind + der(0x04, basic))))
    assert DELIVERED.dotted_string == "1.3.6.1.4.1.11129.2.4.5"
    return data


def _append(tbs: bytes, extension: bytes) -> bytes:
    """Put something at the end of the last SingleResponse: ResponseData { responderID, producedAt, responses }."""
    _, content, _ = _take(tbs)
    parts = []
    while content:
        _, _, rest = _take(content)
        parts.append(content[: len(content) - len(rest)])
        content = rest
    at = next(index for index, part in enumerate(parts) if part[0] == 0x30)
    _, responses, _ = _take(parts[at])
    _, single, _ = _take(responses)
    parts[at] = der(0x30, der(0x30, single + extension))
    return der(0x30, b"".join(parts))


def _take(data: bytes) -> tuple[int, bytes, bytes]:
    length, at = data[1], 2
    if length & 0x80:
        at += length & 0x7F
        length = int.from_bytes(data[2:at], "big")
    return data[0], data[at : at + length], data[at + length :]
