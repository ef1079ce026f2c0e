# SPDX-License-Identifier: MIT
"""
Numbers of TLS and their names, for texts: versions, groups, signature algorithms, ciphers.

From the registries "TLS Supported Groups", "TLS SignatureScheme" and "TLS Cipher Suites" of IANA (RFC 8446 section
11, RFC 8447).  Nothing is decided by them.
"""

from __future__ import annotations

import ssl
from functools import lru_cache

from ssa.tls.ciphers import ianaName

__all__ = ["cipherName", "groupName", "signatureName", "versionName"]

_VERSIONS = {0x0002: "SSLv2", 0x0300: "SSLv3", 0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}

_GROUPS = {
    19: "secp192r1",
    21: "secp224r1",
    22: "secp256k1",
    23: "secp256r1",
    24: "secp384r1",
    25: "secp521r1",
    26: "brainpoolP256r1",
    27: "brainpoolP384r1",
    28: "brainpoolP512r1",
    29: "X25519",
    30: "X448",
    31: "brainpoolP256r1tls13",
    32: "brainpoolP384r1tls13",
    33: "brainpoolP512r1tls13",
    41: "curveSM2",
    256: "ffdhe2048",
    257: "ffdhe3072",
    258: "ffdhe4096",
    259: "ffdhe6144",
    260: "ffdhe8192",
    512: "MLKEM512",
    513: "MLKEM768",
    514: "MLKEM1024",
    4587: "SecP256r1MLKEM768",
    4588: "X25519MLKEM768",
    4589: "SecP384r1MLKEM1024",
    4590: "curveSM2MLKEM768",
    25497: "X25519Kyber768Draft00",
}

_SIGNATURES = {
    0x0101: "rsa_pkcs1_md5",
    0x0201: "rsa_pkcs1_sha1",
    0x0202: "dsa_sha1",
    0x0203: "ecdsa_sha1",
    0x0301: "rsa_pkcs1_sha224",
    0x0302: "dsa_sha224",
    0x0303: "ecdsa_sha224",
    0x0401: "rsa_pkcs1_sha256",
    0x0402: "dsa_sha256",
    0x0403: "ecdsa_secp256r1_sha256",
    0x0501: "rsa_pkcs1_sha384",
    0x0502: "dsa_sha384",
    0x0503: "ecdsa_secp384r1_sha384",
    0x0601: "rsa_pkcs1_sha512",
    0x0602: "dsa_sha512",
    0x0603: "ecdsa_secp521r1_sha512",
    0x0708: "sm2sig_sm3",
    0x0804: "rsa_pss_rsae_sha256",
    0x0805: "rsa_pss_rsae_sha384",
    0x0806: "rsa_pss_rsae_sha512",
    0x0807: "ed25519",
    0x0808: "ed448",
    0x0809: "rsa_pss_pss_sha256",
    0x080A: "rsa_pss_pss_sha384",
    0x080B: "rsa_pss_pss_sha512",
    0x081A: "ecdsa_brainpoolP256r1tls13_sha256",
    0x081B: "ecdsa_brainpoolP384r1tls13_sha384",
    0x081C: "ecdsa_brainpoolP512r1tls13_sha512",
    0x0904: "mldsa44",
    0x0905: "mldsa65",
    0x0906: "mldsa87",
}

# Signalling values, and old ciphers that an OpenSSL of today may not know.
_OTHER_CIPHERS = {
    0x0004: "RC4-MD5",
    0x0005: "RC4-SHA",
    0x000A: "DES-CBC3-SHA",
    0x0016: "DHE-RSA-DES-CBC3-SHA",
    0x00FF: "TLS_EMPTY_RENEGOTIATION_INFO_SCSV",
    0x5600: "TLS_FALLBACK_SCSV",
    0xC007: "ECDHE-ECDSA-RC4-SHA",
    0xC008: "ECDHE-ECDSA-DES-CBC3-SHA",
    0xC011: "ECDHE-RSA-RC4-SHA",
    0xC012: "ECDHE-RSA-DES-CBC3-SHA",
}


def versionName(number: int) -> str:
    """Name a protocol version, as OpenSSL's configuration does: C{"TLSv1.3"}."""
    return _VERSIONS.get(number, f"0x{number:04x}")


def groupName(number: int) -> str:
    """Name a group: C{"X25519"}."""
    return _GROUPS.get(number, f"0x{number:04x}")


def signatureName(number: int) -> str:
    """Name a signature algorithm: C{"ed25519"}."""
    return _SIGNATURES.get(number, f"0x{number:04x}")


def cipherName(number: int) -> str:
    """
    Name a cipher.

    @return: the IANA name of those that are allowed, OpenSSL's name of others.
    """
    return _cipherNames().get(number, f"0x{number:04x}")


@lru_cache(maxsize=1)
def _cipherNames() -> dict[int, str]:
    """Python's own OpenSSL knows numbers and names of ciphers; pyOpenSSL tells names only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    found = dict(_OTHER_CIPHERS)
    for cipher in context.get_ciphers():
        found[int(cipher["id"]) & 0xFFFF] = ianaName(cipher["name"])
    return found
