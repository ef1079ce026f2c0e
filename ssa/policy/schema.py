# SPDX-License-Identifier: MIT
"""
The keys of ssa.conf, as data: what each sets, how its value is read, and where it is allowed.

C{docs/ssa.conf.rst} and C{conf/ssa.conf} document every key for the administrator; a test compares both with this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ssa.policy.levels import CUSTOM, LEVELS
from ssa.policy.profile import ALL_EXTENSIONS, Limits, Policy, Profile
from ssa.policy.values import (
    absolutePath,
    absolutePaths,
    access,
    checked,
    choice,
    cipherList,
    names,
    pins,
    seconds,
    seed,
    show,
    showAccess,
    showPaths,
    showPins,
    showSeed,
    showVersion,
    showWords,
    switch,
    version,
    whole,
)
from ssa.tls.ciphers import checkCipherSuites

__all__ = ["KEYS", "MATCHERS", "PAIRS", "REVOCATION_SOURCES", "Belongs", "Key"]


class Belongs(Enum):
    """What a key says something about."""

    PROFILE = auto()
    """One program's connections: it may stand in C{[default]} and in profiles."""

    LIMITS = auto()
    """The daemon's bounds: C{[default]} only."""

    DAEMON = auto()
    """The daemon as a whole: C{[default]} only."""


@dataclass(frozen=True)
class Key:
    """
    One key of the file.

    @ivar name: as it is written.
    @ivar field: the attribute of L{Profile<ssa.policy.profile.Profile>}, L{Limits<ssa.policy.profile.Limits>} or
        L{Policy<ssa.policy.profile.Policy>} that it sets; "" for one of several that set an attribute together.
    @ivar parse: reads the value; raises C{ValueError} with what is wrong, and what is allowed, for a person.
    @ivar default: the built-in value.
    @ivar belongs: what it says something about.
    @ivar show: writes a value as it stands in the file.
    """

    name: str
    field: str
    parse: Callable[[str], Any]
    default: Any
    belongs: Belongs = Belongs.PROFILE
    show: Callable[[Any], str] = show


def _key(name: str, field: str, parse: Callable[[str], Any], write: Callable[[Any], str] = show) -> Key:
    return Key(name, field, parse, getattr(Profile(), field), show=write)


def _limit(name: str, field: str, most: int) -> Key:
    return Key(name, field, whole(1, most), getattr(Limits(), field), Belongs.LIMITS)


def _daemon(name: str, field: str, parse: Callable[[str], Any], write: Callable[[Any], str] = show) -> Key:
    return Key(name, field, parse, getattr(Policy(), field), Belongs.DAEMON, write)


def _checkGroups(text: str) -> str:
    """
    Check a list of key exchange groups.

    The library knows which groups it has; here it is only seen to that there is nothing else in the list.
    """
    known = ("X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024", "X25519", "X448", "P-256", "P-384", "P-521")
    for name in text.split(":") if text else ():
        if name not in known:
            return f"{name or 'an empty name'} is none of {', '.join(known)}; several are separated by colons"
    return ""


PAIRS = {"certificates": ("CertPath", "KeyPath"), "clientCertificates": ("ClientCertPath", "ClientKeyPath")}
"""Attributes of the profile that two keys set together, and these."""

REVOCATION_SOURCES = {
    "OCSPStapledChecks": "stapled",
    "CachedRevChecks": "cached",
    "OCSPChecks": "ocsp",
    "CRLChecks": "crl",
}
"""Switches, and the sources of revocation answers that they let count."""

MATCHERS = ("Application", "User", "Destination")
"""The keys of a profile that say what it is for (L{ssa.policy.matching})."""

_ALL = (
    _key("SecurityLevel", "securityLevel", choice(*LEVELS)),
    _key("MinProtocol", "minProtocol", version, showVersion),
    _key("MaxProtocol", "maxProtocol", version, showVersion),
    _key("CipherList", "cipherList", cipherList),
    _key("CipherSuites", "cipherSuites", checked(checkCipherSuites)),
    _key("Groups", "groups", checked(_checkGroups)),
    _key("Extensions", "extensions", names(*sorted(ALL_EXTENSIONS))),
    _key("Truncation", "truncation", choice("error", "allow")),
    _key("Access", "access", access, showAccess),
    _key("TrustStoreLocation", "trustStore", absolutePath),
    _key("AppCustomValidation", "appCustomValidation", switch),
    _key("CertVerificationDepth", "certVerificationDepth", whole(0, 100)),
    # Which names there are is found out where a value is read: L{ssa.policy.parser.parsePolicy}.
    _key("Validation", "validation", lambda text: tuple(dict.fromkeys(text.split())), showWords),
    _key("PinnedKeys", "pinnedKeys", pins, showPins),
    _key("FirstUseStore", "firstUseStore", absolutePath),
    _key("RevocationChecks", "revocationChecks", switch),
    *(Key(name, "", switch, source in Profile().revocationSources) for name, source in REVOCATION_SOURCES.items()),
    _key("RevocationTimeout", "revocationTimeout", seconds(0.1, 3600)),
    _key("VerifyCertTransparency", "certTransparency", switch),
    _key("TransparencyLogs", "transparencyLogs", absolutePath),
    Key("CertPath", "", absolutePaths, (), show=showPaths),
    Key("KeyPath", "", absolutePaths, (), show=showPaths),
    _key("ClientAuth", "clientAuth", choice("off", "request", "require")),
    _key("OCSPStapling", "serverStapling", switch),
    Key("ClientCertPath", "", absolutePaths, (), show=showPaths),
    Key("ClientKeyPath", "", absolutePaths, (), show=showPaths),
    _key("SessionResumption", "sessionResumption", switch),
    _key("SessionTickets", "sessionTickets", switch),
    _key("SessionCacheTimeout", "sessionTimeout", whole(1, 604800)),
    _key("HandshakeTimeout", "handshakeTimeout", seconds(0.1, 3600)),
    _key("ConnectTimeout", "connectTimeout", seconds(0, 3600)),
    _key("ResolveTimeout", "resolveTimeout", seconds(0.1, 3600)),
    _key("KeyLogFile", "keyLogFile", absolutePath),
    _daemon("LogLevel", "logLevel", choice("debug", "info", "warn", "error", "critical")),
    _daemon("LogFormat", "logFormat", choice("text", "json")),
    _daemon("RandomSeed", "randomSeed", seed, showSeed),
    _limit("MaxSockets", "maxSockets", 10_000_000),
    _limit("MaxSocketsPerUser", "maxSocketsPerUser", 10_000_000),
    _limit("MaxHandshakes", "maxHandshakes", 1_000_000),
    _limit("MaxHandshakesPerProgram", "maxHandshakesPerProgram", 1_000_000),
    _limit("MaxPendingEvents", "maxPendingEvents", 1_000_000),
    _limit("MaxInterceptors", "maxInterceptors", 100_000),
    _limit("MaxAcceptQueue", "maxAcceptQueue", 65536),
    _limit("MaxRelayBuffers", "maxRelayBuffers", 1_000_000),
    _limit("MaxRelayBuffersPerUser", "maxRelayBuffersPerUser", 1_000_000),
    _limit("MaxAddresses", "maxAddresses", 256),
    _limit("MaxCachedContexts", "maxCachedContexts", 10_000),
)

KEYS: dict[str, Key] = {key.name: key for key in _ALL}
"""Every key, by its name, in the order in which they are documented."""

assert Profile().securityLevel == CUSTOM, "the built-in values are those of no level"
