# SPDX-License-Identifier: MIT
"""
What the values of the TLS options mean: from a program's bytes to L{ssa.options.SocketOptions}, and back.

A C{set…} raises C{ValueError} for a value that is wrong (EINVAL), and L{ssa.errors.SSAError} for one that is refused for
another reason.  A C{get…} gives the value in force where the policy decides too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptography import x509

from ssa.api import MAXIMUM_NAME, UPGRADE_FORMAT, PeerAuthentication, Role
from ssa.errors import Cause
from ssa.narrowing import LONGEST_SESSION, checkCipher, checkVersion, ciphersInForce, leastAuthentication, versionsInForce
from ssa.policy.profile import Profile
from ssa.tls.certificates import (
    chainPEM,
    parseCertificates,
    parseChains,
    parsePrivateKeys,
    publicKeyOf,
    subjectNames,
)
from ssa.tls.identity import parseIdentity, parseName

if TYPE_CHECKING:
    from ssa.options import IConnectionInfo, SocketOptions

__all__ = [
    "MOST_CREDENTIALS",
    "MOST_NAMES",
    "Fetch",
    "Store",
    "connectionGet",
    "disableCipher",
    "enableCipher",
    "getCiphers",
    "getHostname",
    "getProtocols",
    "getRevocationSource",
    "getVersion",
    "integer",
    "setChain",
    "setCiphers",
    "setContext",
    "setHostname",
    "setKey",
    "setPeerAuthentication",
    "setProtocols",
    "setRemoteHostname",
    "setRevocationChecks",
    "setRevocationSource",
    "setSessionReuse",
    "setSessionTTL",
    "setStapling",
    "setTrusted",
    "setUpgrade",
    "setVersionMax",
    "setVersionMin",
    "withNUL",
]

MOST_CREDENTIALS = 16
"""The most certificate chains, and the most private keys, of one socket."""

MOST_NAMES = 256
"""The most names that TLS_HOSTNAME gives to one listener."""

_MOST_PROTOCOLS = 64
_MOST_CIPHERS = 128

Store = Callable[["SocketOptions", bytes, Profile], None]
Fetch = Callable[["SocketOptions", "IConnectionInfo | None", Profile], bytes]
"""How a value is taken in, and given out."""


def _string(value: bytes) -> str:
    """Read a string that may have its final NUL.  @raise ValueError: for NULs inside, or text that is not ASCII."""
    if value.endswith(b"\0"):
        value = value[:-1]
    if b"\0" in value:
        raise ValueError("there is a NUL inside of the string")
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError("it is not ASCII: an internationalized name is given as A-label (xn--…)") from None


def withNUL(text: str | bytes) -> bytes:
    return (text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text) + b"\0"


def integer(value: int) -> bytes:
    return struct.pack("=i", value)


def setRemoteHostname(options: SocketOptions, value: bytes, profile: Profile) -> None:
    text = _string(value)
    if len(text) > MAXIMUM_NAME:
        raise ValueError(f"the name has {len(text)} bytes, at most {MAXIMUM_NAME} are allowed")
    options.remoteIdentity = parseIdentity(text)
    options.remoteName = text


def setHostname(options: SocketOptions, value: bytes, profile: Profile) -> None:
    """Add a name.  C{*.} in front stands for one label, as in certificates (RFC 9525 section 6.3)."""
    text = _string(value)
    name = parseName(text[2:] if text.startswith("*.") else text)
    if text.startswith("*."):
        if "." not in name:
            raise ValueError(f"{text!r} stands for all names of a top-level domain")
        name = f"*.{name}"
    if name in options.hostnames:
        return
    if len(options.hostnames) >= MOST_NAMES:
        raise Cause.TOO_MANY.error(f"TLS_HOSTNAME was set {MOST_NAMES} times")
    options.hostnames += (name,)


def getHostname(options: SocketOptions, connection: IConnectionInfo | None, profile: Profile) -> bytes:
    if connection is not None and connection.accepted:
        return withNUL(connection.serverName())
    return withNUL(",".join(options.hostnames))


def _withoutNUL(pem: bytes) -> bytes:
    """PEM may come as a C string, with its final NUL."""
    return pem[:-1] if pem.endswith(b"\0") else pem


def setTrusted(options: SocketOptions, value: bytes, profile: Profile) -> None:
    options.trusted = chainPEM(parseCertificates(_withoutNUL(value)))


def setChain(options: SocketOptions, value: bytes, profile: Profile) -> None:
    """Add chains.  One for the same names with a key of the same type takes the place of the one before."""
    chains = list(options.chains)
    keys = options.keys
    for chain in parseChains(_withoutNUL(value)):
        slot = _slot(chain[0])
        same = [index for index, other in enumerate(chains) if _slot(other[0]) == slot]
        if same:
            before = publicKeyOf(chains[same[0]][0])
            chains[same[0]] = chain
            if before != publicKeyOf(chain[0]):
                keys = tuple(key for key in keys if publicKeyOf(key) != before)
        else:
            chains.append(chain)
    if len(chains) > MOST_CREDENTIALS:
        raise Cause.TOO_MANY.error(f"at most {MOST_CREDENTIALS} certificate chains are allowed on a socket")
    options.chains = tuple(chains)
    options.keys = keys


def _slot(certificate: x509.Certificate) -> tuple[str, tuple[str, ...], bytes]:
    """What makes two certificates alternatives of each other: the names and the kind of key."""
    names = tuple(sorted(subjectNames(certificate)))
    subject = b"" if names else certificate.subject.public_bytes()
    return type(certificate.public_key()).__name__, names, subject


def setKey(options: SocketOptions, value: bytes, profile: Profile) -> None:
    keys = {publicKeyOf(key): key for key in options.keys}
    for key in parsePrivateKeys(_withoutNUL(value)):
        keys[publicKeyOf(key)] = key
    if len(keys) > MOST_CREDENTIALS:
        raise Cause.TOO_MANY.error(f"at most {MOST_CREDENTIALS} private keys are allowed on a socket")
    options.keys = tuple(keys.values())


def setProtocols(options: SocketOptions, value: bytes, profile: Profile) -> None:
    """Set the list; an empty one offers none.  RFC 7301 section 3.1: a protocol's name has 1 to 255 bytes."""
    text = _string(value)
    names = tuple(name.strip().encode("ascii") for name in text.split(",")) if text else ()
    for name in names:
        if not 0 < len(name) <= 255:
            raise ValueError(f"a protocol name has {len(name)} bytes, 1 to 255 are allowed")
        if not all(0x20 < byte < 0x7F for byte in name):
            raise ValueError(f"the protocol name {name!r} has bytes that are not visible")
    if len(set(names)) != len(names):
        raise ValueError("a protocol is listed twice")
    if len(names) > _MOST_PROTOCOLS:
        raise ValueError(f"{len(names)} protocols are listed, at most {_MOST_PROTOCOLS} are allowed")
    options.protocols = names


def getProtocols(options: SocketOptions, connection: IConnectionInfo | None, profile: Profile) -> bytes:
    if connection is not None:
        return withNUL(connection.applicationProtocol())
    return withNUL(b",".join(options.protocols))


def setUpgrade(options: SocketOptions, value: bytes, profile: Profile) -> None:
    """The interceptor carries TLS_UPGRADE out; what arrives here is one that it could not make sense of."""
    if len(value) != struct.calcsize(UPGRADE_FORMAT):
        raise ValueError(f"it has {len(value)} bytes, struct tls_upgrade has {struct.calcsize(UPGRADE_FORMAT)}")
    descriptor, role = struct.unpack(UPGRADE_FORMAT, value)
    if role not in (Role.CLIENT, Role.SERVER):
        raise ValueError(f"the role is {role}, and must be 0 (client) or 1 (server)")
    raise ValueError(f"descriptor {descriptor} is no connected TCP socket of the caller")


def _number(value: bytes) -> int:
    """Read an C{int}.  @raise ValueError: for another length."""
    if len(value) != 4:
        raise ValueError(f"it has {len(value)} bytes, an int has 4")
    return int(struct.unpack("=i", value)[0])


def _switch(value: bytes) -> bool:
    """Read an C{int} that is 0 or 1."""
    number = _number(value)
    if number not in (0, 1):
        raise ValueError(f"it is {number}, and must be 0 or 1")
    return number == 1


def setSessionTTL(options: SocketOptions, value: bytes, profile: Profile) -> None:
    """Of it and SessionCacheTimeout the shorter one counts, so a long one weakens nothing."""
    seconds = _number(value)
    if not 0 <= seconds <= LONGEST_SESSION:
        raise ValueError(f"{seconds} seconds; 0 to {LONGEST_SESSION} (seven days, RFC 8446 section 4.6.1) are allowed")
    options.sessionTTL = seconds


def setSessionReuse(options: SocketOptions, value: bytes, profile: Profile) -> None:
    reuse = _switch(value)
    if reuse and not profile.sessionResumption:
        raise Cause.POLICY.error(f"TLS_SESSION_REUSE is 1, and SessionResumption is off ({profile.rule('SessionResumption')})")
    options.sessionReuse = reuse


def disableCipher(options: SocketOptions, value: bytes, profile: Profile) -> None:
    name = checkCipher(_string(value), None)
    disabled = options.disabledCiphers | {name}
    if not ciphersInForce(profile, options.trustedCiphers, disabled):
        raise ValueError(f"without {name} no cipher is left")
    if len(disabled) > _MOST_CIPHERS:
        raise Cause.TOO_MANY.error(f"at most {_MOST_CIPHERS} ciphers can be disabled")
    options.disabledCiphers = disabled


def enableCipher(options: SocketOptions, value: bytes, profile: Profile) -> None:
    """Take back TLS_DISABLE_CIPHER, or add to TLS_TRUSTED_CIPHERS."""
    name = checkCipher(_string(value), profile)
    options.disabledCiphers -= {name}
    if options.trustedCiphers is not None and name not in options.trustedCiphers:
        options.trustedCiphers += (name,)


def setCiphers(options: SocketOptions, value: bytes, profile: Profile) -> None:
    """Set the whole list; what was disabled before is forgotten."""
    words = _string(value).split(":")
    if len(words) > _MOST_CIPHERS:
        raise ValueError(f"{len(words)} ciphers are listed, at most {_MOST_CIPHERS} are allowed")
    names = tuple(checkCipher(word, profile) for word in words)
    if len(set(names)) != len(names):
        raise ValueError("a cipher is listed twice")
    options.trustedCiphers = names
    options.disabledCiphers = frozenset()


def getCiphers(options: SocketOptions, connection: IConnectionInfo | None, profile: Profile) -> bytes:
    return withNUL(":".join(ciphersInForce(profile, options.trustedCiphers, options.disabledCiphers)))


def setVersionMin(options: SocketOptions, value: bytes, profile: Profile) -> None:
    number = _number(value)
    checkVersion(number, profile)
    if options.versionMax and number > options.versionMax:
        raise ValueError(f"{number:#06x} is above TLS_VERSION_MAX, {options.versionMax:#06x}")
    options.versionMin = number


def setVersionMax(options: SocketOptions, value: bytes, profile: Profile) -> None:
    number = _number(value)
    checkVersion(number, profile)
    if number < options.versionMin:
        raise ValueError(f"{number:#06x} is below TLS_VERSION_MIN, {options.versionMin:#06x}")
    options.versionMax = number


def getVersion(which: int) -> Fetch:
    """@param which: 0 for the lowest version in force, 1 for the highest."""
    return lambda options, connection, profile: integer(
        versionsInForce(profile, options.versionMin, options.versionMax)[which]
    )


def setPeerAuthentication(options: SocketOptions, value: bytes, profile: Profile) -> None:
    number = _number(value)
    if number not in tuple(PeerAuthentication):
        raise ValueError(f"{number} is not allowed; 0 (no), 1 (request) or 2 (require) is")
    wanted = PeerAuthentication(number)
    if wanted < leastAuthentication(profile):
        rule = profile.rule("ClientAuth")
        raise Cause.POLICY.error(f"TLS_REQUEST_PEER_AUTH is {wanted}, and ClientAuth is {profile.clientAuth} ({rule})")
    options.peerAuthentication = wanted


def setRevocationChecks(options: SocketOptions, value: bytes, profile: Profile) -> None:
    checks = _switch(value)
    if profile.revocationChecks and not checks:
        raise Cause.POLICY.error(f"TLS_REVOCATION_CHECKS is 0, and RevocationChecks is on ({profile.rule('RevocationChecks')})")
    options.revocationChecks = checks


_SOURCE_KEYS = {"stapled": "OCSPStapledChecks", "cached": "CachedRevChecks", "ocsp": "OCSPChecks", "crl": "CRLChecks"}


def setRevocationSource(source: str) -> Store:
    """See L{ssa.options.SocketOptions.revocationRules} for why a source can be dropped, and when."""

    def store(options: SocketOptions, value: bytes, profile: Profile) -> None:
        counts = _switch(value)
        required, sources = options.revocationRules(profile)
        if counts:
            if source not in profile.revocationSources:
                raise Cause.POLICY.error(f"answers of the kind {source} do not count ({profile.rule(_SOURCE_KEYS[source])})")
            options.revocationDropped -= {source}
            return
        if not required:
            raise Cause.POLICY.error(
                f"answers of the kind {source} can be left out only where a definite answer is required;"
                " set TLS_REVOCATION_CHECKS first"
            )
        if not sources - {source}:
            raise ValueError("no source of answers would be left")
        options.revocationDropped |= {source}

    return store


def getRevocationSource(source: str) -> Fetch:
    return lambda options, connection, profile: integer(source in options.revocationRules(profile)[1])


def setStapling(options: SocketOptions, value: bytes, profile: Profile) -> None:
    stapling = _switch(value)
    if profile.serverStapling and not stapling:
        raise Cause.POLICY.error(f"TLS_SERVER_OCSP_STAPLING is 0, and OCSPStapling is on ({profile.rule('OCSPStapling')})")
    options.serverStapling = stapling


def setContext(options: SocketOptions, value: bytes, profile: Profile) -> None:
    if len(value) != 8:
        raise ValueError(f"it has {len(value)} bytes, a socket's id has 8")
    number = int(struct.unpack("=Q", value)[0])
    other = options.find(number)
    if other is None:
        raise ValueError(f"there is no TLS socket with the id {number}")
    if other.owner != options.owner:
        raise Cause.NOT_YOURS.error(f"the TLS socket {number}")
    if other.trusted and not profile.appCustomValidation:
        raise Cause.POLICY.error(
            f"the TLS socket {number} has certificates of its own to trust, and AppCustomValidation is off here"
            f" ({profile.rule('AppCustomValidation')})"
        )
    options.adopt(other)


def connectionGet(get: Callable[[IConnectionInfo], bytes]) -> Fetch:
    """Make the C{fetch} of an option that needs a connection."""

    def fetch(options: SocketOptions, connection: IConnectionInfo | None, profile: Profile) -> bytes:
        if connection is None:
            raise Cause.NOT_CONNECTED.error()
        return get(connection)

    return fetch
