# SPDX-License-Identifier: MIT
"""
Certificates that L{ssa.test.pki} does not make: each is a good one with something changed, and signed again.

The library signs neither with MD5 nor with SHA-1, so a weak signature is exchanged for the good one in the encoding.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from ssa.test.pki import CA, Credential, Key, der, testKey

_DAY = datetime.timedelta(days=1)

# AlgorithmIdentifier of PKCS #1 v1.5 signatures, RFC 8017 appendix A.2.4; only the last arc differs.
_RSA_WITH = {"md5": 4, "sha1": 5, "sha256": 11}
_DIGESTS: dict[str, hashes.HashAlgorithm] = {"md5": hashes.MD5(), "sha1": hashes.SHA1()}


def _algorithm(digest: str) -> bytes:
    return bytes.fromhex("300d06092a864886f70d0101") + bytes((_RSA_WITH[digest],)) + bytes.fromhex("0500")


def weaklySigned(certificate: x509.Certificate, signer: rsa.RSAPrivateKey, digest: str) -> x509.Certificate:
    """
    Sign an RSA certificate with another digest.

    @param certificate: signed with SHA-256.
    @param digest: C{"md5"} or C{"sha1"}.
    """
    tbs = certificate.tbs_certificate_bytes
    content = tbs[2 + (tbs[1] & 0x7F) if tbs[1] & 0x80 else 2 :]
    good, weak = _algorithm("sha256"), _algorithm(digest)
    assert content.count(good) == 1
    signed = der(0x30, content.replace(good, weak))
    signature = signer.sign(signed, padding.PKCS1v15(), _DIGESTS[digest])
    return x509.load_der_x509_certificate(der(0x30, signed + weak + der(0x03, b"\0" + signature)))


def reissued(
    ca: CA,
    certificate: x509.Certificate,
    *,
    subject: x509.Name | None = None,
    names: Sequence[x509.GeneralName] | None = None,
    criticalNames: bool = False,
    days: tuple[int, int] | None = None,
    key: Key | None = None,
    without: type[x509.ExtensionType] | None = None,
    digest: str = "sha256",
) -> x509.Certificate:
    """
    Issue a certificate again, with changes.

    @param ca: who signs it; with C{digest}, it needs an RSA key.
    @param subject: the new subject.
    @param names: the new alternative names.
    @param criticalNames: whether the extension with them is critical.
    @param days: from when to when it is valid, counted from today.
    @param key: whose certificate it is; L{None} for that of before.
    @param without: an extension that is left out.
    @param digest: of the signature, C{"sha256"}, C{"sha1"} or C{"md5"}.
    """
    public = key.public_key() if key is not None else certificate.public_key()
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if days is not None:
        begin, end = now + days[0] * _DAY, now + days[1] * _DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject if subject is None else subject)
        .issuer_name(ca.name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    for extension in certificate.extensions:
        value, critical = extension.value, extension.critical
        if without is not None and isinstance(value, without):
            continue
        if isinstance(value, x509.SubjectAlternativeName):
            value, critical = x509.SubjectAlternativeName(value if names is None else names), criticalNames
        elif isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(public)
        elif isinstance(value, x509.AuthorityKeyIdentifier):
            value = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
        builder = builder.add_extension(value, critical)
    made = builder.sign(ca.key, hashes.SHA256())
    if digest == "sha256":
        return made
    assert isinstance(ca.key, rsa.RSAPrivateKey)
    return weaklySigned(made, ca.key, digest)


def leaf(ca: CA, name: str, *, kind: str = "ec", **changes: object) -> Credential:
    """
    A server's certificate with changes, see L{reissued}.

    @param name: the DNS name before the changes.
    @param kind: of its key, see L{testKey<ssa.test.pki.testKey>}.
    """
    good = ca.issue([name], key=kind)
    made = reissued(ca, good.certificate, **changes)  # type: ignore[arg-type]
    return Credential(made, (made, *ca.chain), good.key)


def intermediate(ca: CA, *, kind: str = "", **changes: object) -> CA:
    """
    An authority below another one, with changes, see L{reissued}.

    @param kind: of its key; C{""} for ECDSA.
    """
    child = ca.intermediate()
    if kind:
        child.key = testKey(kind, 90)
    child.certificate = reissued(ca, child.certificate, key=child.key, **changes)  # type: ignore[arg-type]
    child.chain = (child.certificate, *ca.chain)
    return child


def organization(name: str) -> x509.Name:
    """A subject without a common name."""
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])


def longCommonName(length: int) -> x509.Name:
    """A subject with a common name that is longer than RFC 5280 allows (appendix A.1, ub-common-name)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n" * length, _validate=False)])

