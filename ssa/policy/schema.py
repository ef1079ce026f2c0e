# SPDX-License-Identifier: MIT
"""
The keys of ssa.conf, as data: what each sets, how its value is read, and what is allowed.

C{conf/ssa.conf} documents every key for the administrator; a test compares it with this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ssa.policy.profile import VERSION_NAMES
from ssa.tls.ciphers import checkCipherList, checkCipherSuites

__all__ = ["KEYS", "Key"]

_VERSIONS = {name: number for number, name in VERSION_NAMES.items()}


@dataclass(frozen=True)
class Key:
    """
    One key of the file.

    @ivar name: as it is written.
    @ivar field: the attribute of L{Profile<ssa.policy.profile.Profile>}, or of its limits, that it sets.
    @ivar parse: reads the value; raises C{ValueError} with what is wrong, and what is allowed, for a person.
    @ivar isLimit: whether C{field} belongs to L{Limits<ssa.policy.profile.Limits>}.
    """

    name: str
    field: str
    parse: Callable[[str], Any]
    isLimit: bool = False


def _version(text: str) -> int:
    if text not in _VERSIONS:
        raise ValueError(f"{text!r} is no protocol that is allowed; allowed are {' and '.join(_VERSIONS)}")
    return _VERSIONS[text]


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"{text!r} is neither on nor off")
    return text == "on"


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 12) or not least <= int(text) <= most:
            raise ValueError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return parse


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        digits = text.replace(".", "", 1)
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 12) or not least <= float(text) <= most:
            raise ValueError(f"{text!r} is no number of seconds from {least:g} to {most:g}")
        return float(text)

    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is not allowed; allowed are {' and '.join(allowed)}")
        return text

    return parse


def _checked(check: Callable[[str], str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        problem = check(text)
        if problem:
            raise ValueError(problem)
        return text

    return parse


def _path(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is no absolute path")
    return text


def _paths(text: str) -> tuple[str, ...]:
    """Read paths that are separated by colons, as in PATH."""
    paths = tuple(text.split(":")) if text else ()
    for path in paths:
        if not path.startswith("/"):
            raise ValueError(f"{path!r} is no absolute path; several are separated by colons")
    return paths


def _limit(name: str, field: str, most: int) -> Key:
    return Key(name, field, _whole(1, most), isLimit=True)


_ALL = (
    Key("MinProtocol", "minProtocol", _version),
    Key("MaxProtocol", "maxProtocol", _version),
    Key("CipherList", "cipherList", _checked(checkCipherList)),
    Key("CipherSuites", "cipherSuites", _checked(checkCipherSuites)),
    Key("TrustStoreLocation", "trustStore", _path),
    Key("AppCustomValidation", "appCustomValidation", _switch),
    Key("CertVerificationDepth", "certVerificationDepth", _whole(0, 100)),
    Key("CertPath", "certPaths", _paths),
    Key("KeyPath", "keyPaths", _paths),
    Key("HandshakeTimeout", "handshakeTimeout", _seconds(0.1, 3600)),
    Key("ConnectTimeout", "connectTimeout", _seconds(0, 3600)),
    Key("ResolveTimeout", "resolveTimeout", _seconds(0.1, 3600)),
    Key("Truncation", "truncation", _choice("error", "allow")),
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
"""Every key, by its name."""
