# SPDX-License-Identifier: MIT
"""
The collection of bad servers as data: what each does, and what a program that connects to it gets.

The conformance cases (C{case_badservers}, C{case_badserverspolicy}) run each of them; C{docs/badservers.rst} is made from
this table by C{python -m ssa.test.badserverspage}, and a test compares the page.
"""

from __future__ import annotations

import base64
import ipaddress
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from ssa.errors import Cause
from ssa.test import badhellos, badservers
from ssa.test.badcertificates import intermediate, leaf, longCommonName, organization
from ssa.test.badservers import Serve, echo, serverContext
from ssa.test.pki import Credential, der, otherCA, testCA
from ssa.test.stapled import answer, stapling

NAME: Final = "server.example"
LONG_NAME: Final = ".".join(("long" * 15, "name" * 15, "with" * 15, "many" * 14, "example"))
"""A name of 250 bytes, in labels of up to 60."""

REVOCATION_NAME: Final = "status.example"
PINNED_NAME: Final = "pinned.example"
"""Names for which C{case_badserverspolicy} has a policy of their own."""

TLS12: Final = ssl.TLSVersion.TLSv1_2
TLS13: Final = ssl.TLSVersion.TLSv1_3

DHE: Final = "DHE-RSA-AES128-GCM-SHA256"
"""What C{case_badserverspolicy} allows in addition to the default."""

OAKLEY_2: Final = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6D"
    "F25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381"
    "FFFFFFFFFFFFFFFF",
    16,
)
"""The prime of 1024 bits of RFC 2409 section 6.2."""


@dataclass(frozen=True)
class Bad:
    """
    A server.

    @ivar title: what is bad about it, for the page.
    @ivar cause: why connect(2) fails, with its errno and the beginning of TLS_ERROR; L{None}: it does not, the server is good.
    @ivar words: more of TLS_ERROR, in this order.
    @ivar servers: makes its ways to serve; all of them get the same answer.
    @ivar host: what the program sets as TLS_REMOTE_HOSTNAME; C{""}: nothing, it connects to 127.0.0.1.
    @ivar policy: which policy it needs: "" for the default one, else one of C{case_badserverspolicy}.
    """

    title: str
    cause: Cause | None
    words: tuple[str, ...]
    servers: Callable[[], tuple[Serve, ...]]
    host: str = NAME
    policy: str = ""


def _certificate(
    title: str,
    make: Callable[[], Credential],
    cause: Cause | None = None,
    *words: str,
    host: str = NAME,
    policy: str = "",
) -> Bad:
    """A server with a certificate, for TLS 1.2 and for TLS 1.3."""

    def servers() -> tuple[Serve, ...]:
        credential = make()
        return tuple(echo(serverContext(credential, maximum=maximum)) for maximum in (TLS12, TLS13))

    return Bad(title, cause, words, servers, host, policy)


def _cipher(title: str, ciphers: str, cause: Cause, *words: str, policy: str = "") -> Bad:
    """A real server with some TLS 1.2 ciphers only."""

    def servers() -> tuple[Serve, ...]:
        context = serverContext(testCA().issue([NAME], key="rsa"), maximum=TLS12, ciphers=ciphers)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(_parameters())
            file.flush()
            context.load_dh_params(file.name)
        return (echo(context),)

    return Bad(title, cause, words, servers, policy=policy)


def _parameters() -> str:
    """Diffie-Hellman parameters with a prime of 1024 bits: DHParameter of PKCS #3, PEM."""
    prime = b"\0" + OAKLEY_2.to_bytes(128, "big")
    body = base64.encodebytes(der(0x30, der(0x02, prime) + der(0x02, b"\x02"))).decode("ascii")
    return f"-----BEGIN DH PARAMETERS-----\n{body}-----END DH PARAMETERS-----\n"


def _version(title: str, maximum: ssl.TLSVersion, number: int) -> Bad:
    """A real server with nothing newer, and one that answers with that version whatever the client has said."""

    def servers() -> tuple[Serve, ...]:
        real = echo(serverContext(testCA().issue([NAME], key="rsa"), maximum=maximum))
        return real, badhellos.choosing(badhellos.ECDHE_RSA, number)

    return Bad(title, Cause.NO_COMMON_VERSION, (), servers)


def _plain(title: str, serve: Serve, cause: Cause, *words: str) -> Bad:
    return Bad(title, cause, words, lambda: (serve,))


def _choosing(title: str, cipher: int) -> Bad:
    return _plain(title, badhellos.choosing(cipher), Cause.NO_COMMON_CIPHER, "cipher returned")


def _many(count: int) -> Credential:
    return testCA().issue([*(f"host{number}.many.example" for number in range(count - 1)), NAME], subject=NAME)


def _stapled(title: str, cause: Cause | None, *words: str, **options: Any) -> Bad:
    """A server that staples an answer, see L{answer}."""

    def servers() -> tuple[Serve, ...]:
        good = testCA().issue([REVOCATION_NAME])
        return (stapling(good, answer(testCA(), good.certificate, **options)),)

    return Bad(title, cause, words, servers, REVOCATION_NAME, "revocation")


def _withRoot() -> Credential:
    """With the root in the chain that the server sends, as well-meaning administrators do."""
    made = otherCA().issue([NAME])
    return Credential(made.certificate, (*made.chain, otherCA().certificate), made.key)


def _constrained(*, permitted: str = "", excluded: str = "") -> Credential:
    def names(name: str) -> list[x509.GeneralName] | None:
        return [x509.DNSName(name)] if name else None

    constraint = x509.NameConstraints(names(permitted), names(excluded))
    return testCA().intermediate("constrained", constraint=constraint).issue([NAME])


def _constrainedAddress() -> Credential:
    network = x509.IPAddress(ipaddress.ip_network("192.0.2.0/24"))
    return testCA().intermediate("constrained", constraint=x509.NameConstraints([network], None)).issue(["127.0.0.1"])


def _rsaAuthority(kind: str = "rsa") -> Callable[..., Credential]:
    """What issues certificates with an RSA key, below the tests' root."""
    return lambda **changes: leaf(intermediate(testCA(), kind=kind), NAME, **changes)


def _sha1Intermediate() -> Credential:
    return intermediate(intermediate(testCA(), kind="rsa"), digest="sha1").issue([NAME])


def _expiredIntermediate() -> Credential:
    return intermediate(testCA(), days=(-50, -1)).issue([NAME])


def _names(*names: str) -> Callable[[], Credential]:
    return lambda: testCA().issue(names)


def _noSubject() -> Credential:
    return leaf(testCA(), NAME, subject=x509.Name([]), criticalNames=True)


def _addressAsName() -> Credential:
    return leaf(testCA(), NAME, names=[x509.DNSName("127.0.0.1")])


COLLECTION: Final[dict[str, dict[str, Bad]]] = {
    "Dates": {
        "expired": _certificate(
            "expired", lambda: testCA().issue([NAME], expired=True), Cause.EXPIRED, "the peer's certificate", "it has expired"
        ),
        "expiredIntermediate": _certificate(
            "an intermediate has expired", _expiredIntermediate, Cause.EXPIRED, "1 above the peer's", "it has expired"
        ),
        "notYetValid": _certificate(
            "not yet valid", lambda: testCA().issue([NAME], notYetValid=True), Cause.NOT_YET_VALID, "it is not valid yet"
        ),
    },
    "Trust": {
        "selfSigned": _certificate(
            "self-signed", lambda: testCA().issue([NAME], selfSigned=True), Cause.UNTRUSTED, "self-signed"
        ),
        "untrustedRoot": _certificate(
            "a root that nobody trusts",
            lambda: otherCA().issue([NAME]),
            Cause.UNTRUSTED,
            "its issuer is not in the trust store",
        ),
        "untrustedRootSent": _certificate(
            "a root that nobody trusts, and the server sends it", _withRoot, Cause.UNTRUSTED, "self-signed root"
        ),
        "incompleteChain": _certificate(
            "the chain lacks the intermediate",
            lambda: testCA().intermediate().issue([NAME], withoutChain=True),
            Cause.UNTRUSTED,
            "the chain lacks an intermediate",
        ),
        "noAuthority": _certificate(
            "issued by a certificate with CA:FALSE",
            lambda: testCA().intermediate(isAuthority=False).issue([NAME]),
            Cause.WRONG_PURPOSE,
            "its issuer is no certificate authority",
        ),
        "pathLength": _certificate(
            "longer than a path length allows",
            lambda: testCA().intermediate("first", pathLength=0).intermediate("second").issue([NAME]),
            Cause.MALFORMED,
            "path length",
        ),
        "depth": _certificate(
            "more intermediates than CertVerificationDepth",
            lambda: _deep(11),
            Cause.UNTRUSTED,
            "CertVerificationDepth",
        ),
    },
    "Names": {
        "wrongHost": _certificate(
            "for another host", _names("other.example"), Cause.WRONG_NAME, f"expected the name {NAME}", "other.example"
        ),
        "noAlternativeNames": _certificate(
            "no alternative names, the name is the common name",
            lambda: testCA().issue([NAME], noNames=True),
            Cause.WRONG_NAME,
            f"expected the name {NAME}",
        ),
        "noSubject": _certificate("no subject (alternative names critical, as RFC 5280 has it)", _noSubject),
        "noCommonName": _certificate(
            "no common name", lambda: leaf(testCA(), NAME, subject=organization("Example"))
        ),
        "names1000": _certificate("1000 alternative names", lambda: _many(1000)),
        "names10000": _certificate(
            "10,000 alternative names: more than 100 KiB", lambda: _many(10000), Cause.PROTOCOL, "excessive message size"
        ),
        "longName": _certificate("a name of 250 bytes", lambda: testCA().issue([LONG_NAME], subject="long"), host=LONG_NAME),
        "longCommonName": _certificate(
            "a common name of 5000 characters", lambda: leaf(testCA(), NAME, subject=longCommonName(5000))
        ),
        "wildcard": _certificate("a wildcard", _names("*.wild.example"), host="a.wild.example"),
        "wildcardTwoLabels": _certificate(
            "a wildcard, for two labels", _names("*.wild.example"), Cause.WRONG_NAME, host="a.b.wild.example"
        ),
        "wildcardNoLabel": _certificate(
            "a wildcard, for no label", _names("*.wild.example"), Cause.WRONG_NAME, host="wild.example"
        ),
        "wildcardPartial": _certificate(
            "a wildcard for a part of a label", _names("a*.wild.example"), Cause.WRONG_NAME, host="ab.wild.example"
        ),
        "wildcardMiddle": _certificate(
            "a wildcard that is not the first label", _names("a.*.example"), Cause.WRONG_NAME, host="a.wild.example"
        ),
        "wildcardTop": _certificate("a wildcard for a whole top level", _names("*.example"), Cause.WRONG_NAME),
        "wildcardAll": _certificate("a wildcard for everything", _names("*"), Cause.WRONG_NAME, host="localhost"),
        "address": _certificate("the IP address", _names("127.0.0.1"), host=""),
        "wrongAddress": _certificate(
            "another IP address", _names("127.0.0.9"), Cause.WRONG_NAME, "expected the IP address 127.0.0.1", host=""
        ),
        "nameForAddress": _certificate(
            "names only, for an IP address", _names(NAME), Cause.WRONG_NAME, "expected the IP address 127.0.0.1", host=""
        ),
        "addressAsName": _certificate(
            "the IP address as a DNS name", _addressAsName, Cause.WRONG_NAME, "expected the IP address 127.0.0.1", host=""
        ),
    },
    "Constraints and purposes": {
        "clientCertificate": _certificate(
            "for clients only (extended key usage)",
            lambda: testCA().issue([NAME], purpose="client"),
            Cause.WRONG_PURPOSE,
            "extended key usage",
        ),
        "codeSigning": _certificate(
            "for code signing only",
            lambda: testCA().issue([NAME], purpose="code"),
            Cause.WRONG_PURPOSE,
            "extended key usage",
        ),
        "notPermitted": _certificate(
            "not among the names that its issuer is permitted",
            lambda: _constrained(permitted="other.example"),
            Cause.MALFORMED,
            "outside of a name constraint's permitted names",
        ),
        "excluded": _certificate(
            "among the names that its issuer is denied",
            lambda: _constrained(excluded="example"),
            Cause.MALFORMED,
            "excluded by a name constraint",
        ),
        "addressNotPermitted": _certificate(
            "not among the addresses that its issuer is permitted",
            _constrainedAddress,
            Cause.MALFORMED,
            "outside of a name constraint's permitted names",
            host="",
        ),
        "noKeyIdentifier": _certificate(
            "no authority key identifier",
            lambda: leaf(testCA(), NAME, without=x509.AuthorityKeyIdentifier),
            Cause.MALFORMED,
            "it lacks the authority key identifier",
        ),
        "criticalExtension": _certificate(
            "a critical extension that nobody knows",
            lambda: testCA().issue([NAME], criticalExtension=True),
            Cause.MALFORMED,
            "critical extension",
        ),
    },
    "Weak keys and signatures": {
        "md5": _certificate(
            "signed with MD5", lambda: _rsaAuthority()(digest="md5"), Cause.WEAK, "the peer's certificate", "digest"
        ),
        "sha1": _certificate(
            "signed with SHA-1", lambda: _rsaAuthority()(digest="sha1"), Cause.WEAK, "the peer's certificate", "digest"
        ),
        "sha1ECDSA": _certificate(
            "signed with ECDSA and SHA-1", lambda: testCA().issue([NAME], sha1=True), Cause.WEAK, "digest"
        ),
        "sha1Intermediate": _certificate(
            "an intermediate is signed with SHA-1", _sha1Intermediate, Cause.WEAK, "1 above the peer's", "digest"
        ),
        "rsa1024": _certificate(
            "RSA with 1024 bits",
            lambda: testCA().issue([NAME], key="rsa1024"),
            Cause.WEAK,
            "the peer's certificate",
            "too small",
        ),
        "rsa1024Intermediate": _certificate(
            "an intermediate has RSA with 1024 bits", lambda: _rsaAuthority("rsa1024")(), Cause.WEAK, "too small"
        ),
    },
    "Ciphers": {
        "onlyDHE": _cipher("DHE with 1024 bits only", "DHE", Cause.ALERT, "handshake_failure"),
        "onlyStaticRSA": _cipher("static RSA only", "kRSA", Cause.ALERT, "handshake_failure"),
        "onlyNull": _cipher("no encryption only", "eNULL", Cause.ALERT, "handshake_failure"),
        "onlyAnonymous": _cipher("anonymous Diffie-Hellman only", "aNULL", Cause.ALERT, "handshake_failure"),
        "choosesStaticRSA": _choosing("chooses static RSA, which was not offered", badhellos.STATIC_RSA),
        "choosesNull": _choosing("chooses no encryption", badhellos.NULL_SHA256),
        "choosesAnonymous": _choosing("chooses anonymous Diffie-Hellman", badhellos.ANONYMOUS),
        "choosesRC4": _choosing("chooses RC4", badhellos.RC4_SHA),
        "choosesTripleDES": _choosing("chooses 3DES", badhellos.TRIPLE_DES_SHA),
        "choosesExport": _choosing("chooses an export cipher", badhellos.EXPORT),
        "weakDH": _cipher(
            "Diffie-Hellman with 1024 bits, where the policy allows DHE", DHE, Cause.WEAK, "dh key too small", policy="dhe"
        ),
    },
    "Versions": {
        "tls10": _version("TLS 1.0", ssl.TLSVersion.TLSv1, badhellos.TLS_1_0),
        "tls11": _version("TLS 1.1", ssl.TLSVersion.TLSv1_1, badhellos.TLS_1_1),
        "ssl3": _plain("SSL 3.0", badhellos.choosing(badhellos.RC4_SHA, badhellos.SSL_3_0), Cause.NO_COMMON_VERSION),
    },
    "Not TLS": {
        "http": _plain("HTTP", badservers.notTLS, Cause.NOT_TLS),
        "smtp": _plain("SMTP, which speaks first", badhellos.greeting, Cause.NOT_TLS),
        "garbage": _plain("random bytes in a handshake record", badservers.garbage, Cause.PROTOCOL),
        "alert": _plain("an alert", badservers.alert, Cause.ALERT, "handshake_failure"),
        "closing": _plain("closes after the ClientHello", badservers.closing, Cause.CLOSED_IN_HANDSHAKE),
        "resetting": _plain("resets after the ClientHello", badservers.resetting, Cause.CLOSED_IN_HANDSHAKE),
    },
}
"""All of them, by section of the page and by name."""


COLLECTION["Revocation, where RevocationChecks is on"] = {
    "revoked": _stapled("revoked, the server staples the answer", Cause.REVOKED, "stapled", "revoked on", status="revoked"),
    "statusGood": _stapled("not revoked, the server staples the answer", None),
    "statusUnknown": _stapled(
        "its authority does not know the certificate",
        Cause.REVOCATION_UNKNOWN,
        "stapled: the responder does not know the certificate",
        status="unknown",
    ),
    "statusExpired": _stapled("the answer is too old", Cause.REVOCATION_UNKNOWN, "stapled: it has expired", expired=True),
    "statusForged": _stapled(
        "somebody else has signed the answer", Cause.REVOCATION_UNKNOWN, "stapled: its signer", signer=otherCA()
    ),
    "statusAbsent": _certificate(
        "no answer, and none to be had",
        _names(REVOCATION_NAME),
        Cause.REVOCATION_UNKNOWN,
        "stapled: nothing",
        host=REVOCATION_NAME,
        policy="revocation",
    ),
}
COLLECTION["Pinned keys, where PinnedKeys has another one"] = {
    "notPinned": _certificate(
        "a good certificate", _names(PINNED_NAME), Cause.NOT_PINNED, "sha256/", host=PINNED_NAME, policy="pin"
    ),
}


def _deep(count: int) -> Credential:
    """A chain with so many intermediates."""
    authority = testCA()
    for number in range(count):
        authority = authority.intermediate(f"intermediate {number}")
    return authority.issue([NAME])
