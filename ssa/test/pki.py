# SPDX-License-Identifier: MIT
"""
Certificates for tests and for the demo, the bad ones included.

    >>> ca = CA("Test Root")
    >>> server = ca.issue(["server.example", "127.0.0.1"])
    >>> server.chainPEM, server.keyPEM, ca.pem
    >>> ca.issue(["server.example"], expired=True)

Keys are ECDSA P-256 unless a flaw asks for another one, and each process makes a key of each kind only a few times.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_DAY = datetime.timedelta(days=1)


@lru_cache(maxsize=64)
def testKey(kind: str = "ec", number: int = 0) -> Key:
    """
    Make a private key, once in the process for each pair of arguments.

    @param kind: C{"ec"}, C{"ed25519"}, C{"rsa"} (2048 bits) or C{"rsa1024"}.
    @param number: tells keys of one kind apart.
    """
    if kind == "ec":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if kind == "rsa1024" else 2048)


@dataclass(frozen=True)
class Credential:
    """
    A certificate with its key and the chain up to, and without, the root.

    @ivar certificate: the endpoint's own certificate.
    @ivar chain: it and its intermediates.
    @ivar key: its private key.
    """

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: Key

    @property
    def chainPEM(self) -> bytes:
        """The chain, the endpoint's own certificate first."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    @property
    def keyPEM(self) -> bytes:
        """The private key, PKCS#8 without encryption."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def encryptedKeyPEM(self) -> bytes:
        """The private key, encrypted with the password "test"."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"test"))


class CA:
    """
    A certificate authority.

    @ivar certificate: its own certificate.
    @ivar chain: it and the intermediates above it, without the root; empty for a root.
    """

    def __init__(self, name: str = "SSA test root", *, key: Key | None = None) -> None:
        """
        @param name: the common name of its certificate.
        @param key: its key; L{None} for one of its own.
        """
        self.name = _name(name)
        self.key = key if key is not None else ec.generate_private_key(ec.SECP256R1())
        self.chain: tuple[x509.Certificate, ...] = ()
        self.certificate = self._sign(_authority(self.name, self.key, self.name, self.key, True, None), hashes.SHA256())

    @property
    def pem(self) -> bytes:
        """Its certificate, for a trust store."""
        return self.certificate.public_bytes(Encoding.PEM)

    def intermediate(
        self,
        name: str = "SSA test intermediate",
        *,
        isAuthority: bool = True,
        pathLength: int | None = None,
        constraint: x509.NameConstraints | None = None,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> CA:
        """
        Make an authority below this one.

        @param isAuthority: whether its basic constraints say CA:TRUE; without, what it issues must be refused.
        @param pathLength: the number of authorities allowed below it.
        @param constraint: the names that it may certify.
        @param extensions: more, not critical.
        """
        child = CA.__new__(CA)
        child.name = _name(name)
        child.key = ec.generate_private_key(ec.SECP256R1())
        builder = _authority(child.name, child.key, self.name, self.key, isAuthority, pathLength)
        if constraint is not None:
            builder = builder.add_extension(constraint, critical=True)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        child.certificate = self._sign(builder, hashes.SHA256())
        child.chain = (child.certificate, *self.chain)
        return child

    def issue(
        self,
        names: Sequence[str] = ("server.example",),
        *,
        key: str | Key = "ec",
        expired: bool = False,
        notYetValid: bool = False,
        selfSigned: bool = False,
        purpose: str = "server",
        sha1: bool = False,
        noNames: bool = False,
        subject: str | None = None,
        withoutChain: bool = False,
        criticalExtension: bool = False,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> Credential:
        """
        Issue a certificate, good unless a flaw is asked for.

        @param names: DNS names, wildcards included, and IP addresses.
        @param key: a kind of L{testKey}, or a key; C{"rsa1024"} is a flaw.
        @param expired: it was valid until yesterday.
        @param notYetValid: it is valid from tomorrow on.
        @param selfSigned: it is signed by its own key and names itself as issuer.
        @param purpose: the extended key usage: C{"server"}, C{"client"}, C{"both"}, or C{"code"} which is for neither.
        @param sha1: it is signed with SHA-1; this needs an authority with an ECDSA key.
        @param noNames: it has no subject alternative names; the first name is in the common name only.
        @param subject: the common name; L{None} for the first of C{names}.
        @param withoutChain: the intermediates are left out of the chain.
        @param criticalExtension: it has a critical extension that nobody knows.
        @param extensions: more, not critical.
        """
        chosen = testKey(key, len(names)) if isinstance(key, str) else key
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        begin, end = now - 30 * _DAY, now + 300 * _DAY
        if expired:
            end = now - _DAY
        if notYetValid:
            begin = now + _DAY
        commonName = (names[0] if names else "nobody") if subject is None else subject
        own = _name(commonName[:64])
        issuer, signer = (own, chosen) if selfSigned else (self.name, self.key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(own)
            .issuer_name(issuer)
            .public_key(chosen.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(chosen.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_PURPOSES[purpose]), critical=False)
        )
        if not noNames:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
        if criticalExtension:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = _signWith(builder, signer, hashes.SHA256())
        if sha1:
            certificate = _resignedWithSHA1(certificate, signer)
        chain = () if selfSigned or withoutChain else self.chain
        return Credential(certificate, (certificate, *chain), chosen)

    def _sign(self, builder: x509.CertificateBuilder, digest: hashes.HashAlgorithm) -> x509.Certificate:
        return _signWith(builder, self.key, digest)


_PURPOSES = {
    "server": [ExtendedKeyUsageOID.SERVER_AUTH],
    "client": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "both": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    "code": [ExtendedKeyUsageOID.CODE_SIGNING],
}


def _signWith(builder: x509.CertificateBuilder, key: Key, digest: hashes.HashAlgorithm) -> x509.Certificate:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else digest
    return builder.sign(key, algorithm)  # type: ignore[arg-type]


def _resignedWithSHA1(certificate: x509.Certificate, key: Key) -> x509.Certificate:
    """Exchange ECDSA with SHA-256 for ECDSA with SHA-1, which the library itself does not sign certificates with."""
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    good, weak = bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300906072a8648ce3d0401")
    tbs = certificate.tbs_certificate_bytes
    content = tbs[2 + (tbs[1] & 0x7F) if tbs[1] & 0x80 else 2 :]
    signed = der(0x30, content.replace(good, weak, 1))
    signature = key.sign(signed, ec.ECDSA(hashes.SHA1()))
    return x509.load_der_x509_certificate(der(0x30, signed + weak + der(0x03, b"\0" + signature)))


def der(tag: int, content: bytes) -> bytes:
    """One element of DER (X.690)."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _name(commonName: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, commonName)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(
    name: x509.Name, key: Key, issuer: x509.Name, signer: Key, isAuthority: bool, pathLength: int | None
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 60 * _DAY)
        .not_valid_after(now + 600 * _DAY)
        .add_extension(x509.BasicConstraints(ca=isAuthority, path_length=pathLength), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_usage(certificates=isAuthority), critical=True)
    )
    if key is not signer:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(authority, critical=False)
    return builder


@lru_cache(maxsize=1)
def testCA() -> CA:
    """The root that the tests of this process share."""
    return CA()


@lru_cache(maxsize=1)
def otherCA() -> CA:
    """A root that nobody trusts."""
    return CA("SSA untrusted root")
