# SPDX-License-Identifier: MIT
"""
Security levels as data: names for sets of values that belong together.

C{modern}, C{intermediate} and C{old} follow Mozilla's recommendations of these names ("Security/Server Side TLS", version
5.7), as far as this system allows: no 3DES in any level, no finite-field Diffie-Hellman below C{old}, and the
post-quantum hybrid group before the classical ones.  A level that changes gets a new version, which C{ssa explain} shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["CUSTOM", "LEVELS", "OLD", "Level"]

CUSTOM = "custom"
"""The level that sets nothing: the single keys decide, and where there are none, the built-in values."""

OLD = "old"
"""The level that only a profile for certain destinations may have."""


@dataclass(frozen=True)
class Level:
    """
    A security level.

    @ivar name: as it is written.
    @ivar version: of its values: that of Mozilla's recommendation, and a number of ours.
    @ivar values: what it sets, as if these keys were written in its place.
    """

    name: str
    version: str
    values: Mapping[str, str]


_SUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
_GROUPS = "X25519MLKEM768:X25519:P-256:P-384"
_MODERN_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
_OBSOLETE_CIPHERS = (
    "DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384:DHE-RSA-CHACHA20-POLY1305:"
    "ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:"
    "ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:"
    "DHE-RSA-AES128-SHA256:DHE-RSA-AES256-SHA256:AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-SHA256:AES256-SHA256:"
    "AES128-SHA:AES256-SHA"
)


def _level(name: str, version: str, minimum: str, ciphers: str) -> Level:
    values = {
        "MinProtocol": minimum,
        "MaxProtocol": "TLSv1.3",
        "CipherList": ciphers,
        "CipherSuites": _SUITES,
        "Groups": _GROUPS,
    }
    return Level(name, version, MappingProxyType(values))


LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        _level("modern", "5.7-1", "TLSv1.3", _MODERN_CIPHERS),
        _level("intermediate", "5.7-1", "TLSv1.2", _MODERN_CIPHERS),
        _level(OLD, "5.7-1", "TLSv1", f"{_MODERN_CIPHERS}:{_OBSOLETE_CIPHERS}"),
        Level(CUSTOM, "1", MappingProxyType({})),
    )
}
"""Every level, by its name."""
