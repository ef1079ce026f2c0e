# SPDX-License-Identifier: MIT
"""
Certificates and private keys as programs and administrators give them: PEM, checked once, when it comes in.

PEM is the textual encoding of RFC 7468; text between the blocks is ignored, so that several files may simply follow
each other.  Everything here raises C{ValueError} with a sentence for a person; the caller knows which option it is.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import PublicKeyAlgorithmOID

__all__ = [
    "MALFORMED",
    "MOST_CERTIFICATES",
    "MOST_IN_CHAIN",
    "Credential",
    "PrivateKey",
    "chainPEM",
    "describeCertificate",
    "dnsNames",
    "keyType",
    "pairCredentials",
    "parseCertificates",
    "parseChains",
    "parsePrivateKeys",
    "publicKeyOf",
    "subjectNames",
    "weaknessOf",
]

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

MALFORMED = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for certificates, answers and lists that are malformed, or of a kind that it does not know."""

MOST_CERTIFICATES = 4096
"""The most certificates in one trust store."""

MOST_IN_CHAIN = 32
"""The most certificates in one chain."""

# Some flaws of certificates, of roots even, are tolerated by the library with a warning.  A program's terminal, which an
# embedded daemon shares, is no place for what a peer can bring about.
warnings.filterwarnings("ignore", "Parsed a", CryptographyDeprecationWarning)

_CERTIFICATE = re.compile(
    rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----[^-]*-----END (X509 |TRUSTED )?CERTIFICATE-----"
)
_KEY = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----[^-]*(?:-[^-]+)*-----END \1-----")


@dataclass(frozen=True)
class Credential:
    """
    What an endpoint proves its identity with.

    @ivar chain: the certificates, the endpoint's own first.
    @ivar key: the private key of the first certificate.  It is left out of the C{repr}.
    """

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey

    @property
    def certificate(self) -> x509.Certificate:
        """The endpoint's own certificate."""
        return self.chain[0]

    @property
    def keyType(self) -> str:
        """C{"RSA"}, C{"EC"}, C{"Ed25519"} or C{"Ed448"}: a server holds one certificate of each for a name."""
        return keyType(self.key)

    def fingerprint(self) -> bytes:
        """A digest (32 bytes) that is equal exactly for equal chains; the key follows from the first certificate."""
        digest = hashlib.sha256()
        for certificate in self.chain:
            digest.update(certificate.fingerprint(hashes.SHA256()))
        return digest.digest()

    def __repr__(self) -> str:
        return f"<Credential {describeCertificate(self.certificate)}>"


def parseCertificates(pem: bytes, most: int = MOST_CERTIFICATES) -> tuple[x509.Certificate, ...]:
    """
    Read every certificate of a PEM text.

    @param most: how many there may be.
    @return: at least one certificate, in the order of the text.
    @raise ValueError: if there is none, there are too many, or one is malformed.
    """
    blocks = [match.group(0) for match in _CERTIFICATE.finditer(pem)]
    if len(blocks) != pem.count(b"CERTIFICATE-----") // 2 or pem.count(b"CERTIFICATE-----") % 2:
        raise ValueError("a PEM certificate block is damaged")
    if not blocks:
        raise ValueError("there is no certificate in PEM format (-----BEGIN CERTIFICATE-----) in it")
    if len(blocks) > most:
        raise ValueError(f"there are {len(blocks)} certificates in it, at most {most} are allowed")
    certificates = []
    for number, block in enumerate(blocks, 1):
        if b"TRUSTED CERTIFICATE" in block:
            raise ValueError("OpenSSL's TRUSTED CERTIFICATE blocks are not supported, use CERTIFICATE")
        try:
            certificate = x509.load_pem_x509_certificate(block)
        except MALFORMED as error:
            raise ValueError(f"certificate {number} in it is malformed: {error}") from error
        certificates.append(certificate)
    return tuple(certificates)


def parseChains(pem: bytes) -> tuple[tuple[x509.Certificate, ...], ...]:
    """
    Read one chain, or several that follow each other as the files of a directory do.

    A chain begins with the certificate of an endpoint; certificate authorities belong to the chain before them.

    @raise ValueError: if there is none, or one is malformed, or a chain is longer than L{MOST_IN_CHAIN}.
    """
    chains: list[list[x509.Certificate]] = []
    for certificate in parseCertificates(pem):
        if not chains or not _isAuthority(certificate):
            chains.append([])
        chains[-1].append(certificate)
        if len(chains[-1]) > MOST_IN_CHAIN:
            raise ValueError(f"a chain in it has more than {MOST_IN_CHAIN} certificates")
    for chain in chains:
        publicKeyOf(chain[0])
        _isAuthority(chain[0])  # its extensions can be read
    return tuple(tuple(chain) for chain in chains)


def _isAuthority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except MALFORMED as error:
        raise ValueError(f"a certificate in it has malformed extensions: {error}") from error


def parsePrivateKeys(pem: bytes) -> tuple[PrivateKey, ...]:
    """
    Read every private key of a PEM text, which may hold certificates and parameters too.

    @raise ValueError: if there is none, or one is malformed, encrypted or of a type that TLS cannot use.  The text
        never quotes the key.
    """
    blocks = [(match.group(1), match.group(0)) for match in _KEY.finditer(pem)]
    if not blocks:
        raise ValueError("there is no private key in PEM format (-----BEGIN PRIVATE KEY-----) in it")
    keys: list[PrivateKey] = []
    for label, block in blocks:
        if label == b"ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block:
            raise ValueError("the private key is encrypted; give it decrypted, for instance by openssl pkey -in FILE")
        try:
            key = load_pem_private_key(block, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # The library's own words could quote the input, which is a secret.
            raise ValueError("the private key is malformed, or of a kind that is not supported") from None
        if not isinstance(
            key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)
        ):
            raise ValueError("the private key is neither RSA, ECDSA, Ed25519 nor Ed448")
        keys.append(key)
    return tuple(keys)


def keyType(key: PrivateKey) -> str:
    """Name the type of a key as the server's certificate slots distinguish them."""
    if isinstance(key, rsa.RSAPrivateKey):
        return "RSA"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return "EC"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PrivateKey) else "Ed448"


def publicKeyOf(source: x509.Certificate | PrivateKey) -> bytes:
    """
    Take the public key of a certificate or of a private key, to compare both.

    @return: SubjectPublicKeyInfo, DER.
    @raise ValueError: if a certificate's key is malformed or of an unknown type.
    """
    try:
        return source.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except MALFORMED as error:
        raise ValueError(f"the public key of a certificate cannot be used: {error}") from error


def pairCredentials(
    chains: Sequence[tuple[x509.Certificate, ...]], keys: Sequence[PrivateKey]
) -> tuple[Credential, ...]:
    """
    Bring together the chains and the keys that a program has set in any order.

    @return: one credential for each chain, in the order of the chains.
    @raise ValueError: if a chain has no key, or a key no chain, or a key cannot be used.
    """
    byPublic = {publicKeyOf(key): key for key in keys}
    credentials = []
    used = set()
    for chain in chains:
        public = publicKeyOf(chain[0])
        key = byPublic.get(public)
        if key is None:
            hint = "; the endpoint's own certificate must come first in its chain" if len(chain) > 1 else ""
            what = "no private key fits" if keys else "no private key was given for"
            raise ValueError(f"{what} the certificate {describeCertificate(chain[0])}{hint if keys else ''}")
        if chain[0].public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS:
            # The library reads such a key as one of the other kind, which OpenSSL then does not find to fit.
            raise ValueError(
                f"the key of the certificate {describeCertificate(chain[0])} is of the kind RSASSA-PSS, which is not supported;"
                " one of the kind rsaEncryption is"
            )
        used.add(public)
        credentials.append(Credential(chain, key))
    for public, key in byPublic.items():
        if public not in used:
            raise ValueError(f"no certificate chain fits the private key (of type {keyType(key)}) that was set")
    return tuple(credentials)


def dnsNames(certificate: x509.Certificate) -> tuple[str, ...]:
    """
    List the DNS names that a certificate is for (RFC 5280 section 4.2.1.6), wildcards included.

    @return: in lower case; empty if it has none or its names are malformed.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
    except (x509.ExtensionNotFound, *MALFORMED):
        return ()


def subjectNames(certificate: x509.Certificate) -> tuple[str, ...]:
    """
    List every alternative name of a certificate, DNS names and addresses.

    @return: empty if it has none or its names are malformed.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = tuple(str(address) for address in names.get_values_for_type(x509.IPAddress))
    except (x509.ExtensionNotFound, *MALFORMED):
        return ()
    return dnsNames(certificate) + addresses


def weaknessOf(certificate: x509.Certificate) -> str:
    """
    Say what is weak about a certificate by the measure of OpenSSL's security level 2, SSL_CTX_set_security_level(3): 112 bits.

    The signature of a self-signed certificate is of no importance.

    @return: "" if nothing is.
    """
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            return f"its RSA key has {key.key_size} bits, at least 2048 are needed"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.key_size < 224:
            return f"its key is on the curve {key.curve.name}, of which {key.curve.key_size} bits are too few"
    elif not isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return "its key is neither RSA, ECDSA, Ed25519 nor Ed448"
    digest = certificate.signature_hash_algorithm
    if digest is not None and digest.digest_size < 28 and certificate.issuer != certificate.subject:
        return f"it is signed with the digest {digest.name}, which is too weak"
    return ""


def chainPEM(chain: Sequence[x509.Certificate]) -> bytes:
    """Write certificates as PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


def describeCertificate(certificate: x509.Certificate) -> str:
    """
    Say which certificate it is, for a person who looks for the fault: subject, names, issuer, validity, fingerprint.

    @return: text that may hold what the peer chose; L{ssa.errors.oneLine} makes it safe to show.
    """
    parts = [f"subject {_name(certificate, 'subject')}"]
    names = _alternativeNames(certificate)
    if names:
        parts.append(f"for {names}")
    parts.append(f"issuer {_name(certificate, 'issuer')}")
    try:
        begin = certificate.not_valid_before_utc.strftime("%Y-%m-%d %H:%M:%S")
        end = certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M:%S")
        parts.append(f"valid {begin} to {end} UTC")
    except MALFORMED:
        parts.append("validity malformed")
    parts.append(f"SHA-256 {certificate.fingerprint(hashes.SHA256()).hex()}")
    return "[" + ", ".join(parts) + "]"


def _name(certificate: x509.Certificate, which: str) -> str:
    try:
        name = certificate.subject if which == "subject" else certificate.issuer
        text = name.rfc4514_string()
    except MALFORMED:
        return "malformed"
    return _shortened(text, 120) if text else "empty"


def _alternativeNames(certificate: x509.Certificate) -> str:
    found = subjectNames(certificate)
    shown = [_shortened(name, 80) for name in found[:4]]
    if len(found) > 4:
        shown.append(f"{len(found) - 4} more")
    return " ".join(shown)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
