# SPDX-License-Identifier: MIT
"""
What a program's options leave of the administrator's policy.

A program can only narrow it.  A value that would weaken the policy is refused (EPERM) when it is set; since the policy for
a destination is known only later, the same is applied once more when the socket connects or listens: of the two the
stricter one is in force, and where nothing is left the call fails with EPERM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ssa.api import PeerAuthentication
from ssa.errors import Cause
from ssa.policy.profile import TLS_1_2, TLS_1_3, VERSION_NAMES, Profile
from ssa.tls.ciphers import SUITES, cipherNamed, cipherNames, cipherStrings

__all__ = [
    "LONGEST_SESSION",
    "REVOCATION_SOURCES",
    "checkCipher",
    "checkVersion",
    "ciphersInForce",
    "leastAuthentication",
    "narrowedBy",
    "versionsInForce",
]

LONGEST_SESSION = 7 * 24 * 3600
"""Seconds: RFC 8446 section 4.6.1, no ticket lives longer."""

REVOCATION_SOURCES = frozenset(("stapled", "cached", "ocsp", "crl"))
"""Where an answer about the revocation of a certificate can come from."""

_KNOWN_VERSIONS = {0x0300: "SSLv3", 0x0301: "TLSv1", 0x0302: "TLSv1.1", **VERSION_NAMES}


def _versionName(number: int) -> str:
    return _KNOWN_VERSIONS.get(number, f"{number:#06x}")


def checkVersion(number: int, profile: Profile) -> None:
    """
    Say whether a program may name a TLS version as its lowest or highest.

    @raise ValueError: there is no such version.
    @raise SSAError: EPERM, the policy does not allow it.
    """
    if number not in _KNOWN_VERSIONS:
        raise ValueError(f"{number:#x} is no TLS version, use 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3)")
    if not profile.minProtocol <= number <= profile.maxProtocol:
        raise Cause.POLICY.error(
            f"{_versionName(number)} was asked for, {_versionName(profile.minProtocol)} to"
            f" {_versionName(profile.maxProtocol)} are allowed ({profile.rule('MinProtocol')}, {profile.rule('MaxProtocol')})"
        )


def checkCipher(name: str, profile: Profile | None) -> str:
    """
    Find a cipher that a program has named.

    @param profile: the policy that must allow it; C{None} if it need not.
    @return: its IANA name.
    @raise ValueError: there is no such cipher.
    @raise SSAError: EPERM, the policy does not allow it.
    """
    found = cipherNamed(name)
    if found is None:
        raise ValueError(f"{name[:80]!r} is no cipher's name")
    if profile is not None and found not in cipherNames(profile.cipherList, profile.cipherSuites):
        key = "CipherSuites" if found in SUITES else "CipherList"
        raise Cause.POLICY.error(f"the cipher {name} is not allowed ({profile.rule(key)})")
    return found


def ciphersInForce(profile: Profile, trusted: tuple[str, ...] | None, disabled: Iterable[str]) -> tuple[str, ...]:
    """
    List what is left of the policy's ciphers.

    @param trusted: the program's own list, in its order; C{None} for the policy's.
    @param disabled: what the program has disabled.
    @return: IANA names; perhaps none.
    """
    allowed = cipherNames(profile.cipherList, profile.cipherSuites)
    off = frozenset(disabled)
    wanted = allowed if trusted is None else tuple(name for name in trusted if name in allowed)
    return tuple(name for name in wanted if name not in off)


def versionsInForce(profile: Profile, lowest: int, highest: int) -> tuple[int, int]:
    """
    Combine the policy's versions with the program's.

    @param lowest: 0 if the program has named none.
    @param highest: the same.
    """
    return max(profile.minProtocol, lowest), min(profile.maxProtocol, highest or profile.maxProtocol)


def narrowedBy(
    profile: Profile, lowest: int, highest: int, trusted: tuple[str, ...] | None, disabled: frozenset[str]
) -> Profile:
    """
    Make the policy for one socket.

    A list of ciphers without any of TLS 1.3 leaves TLS 1.2 only, and the other way round.

    @raise SSAError: EPERM, the program's versions and ciphers and the policy's have nothing in common.
    """
    if not (lowest or highest or disabled) and trusted is None:
        return profile
    low, high = versionsInForce(profile, lowest, highest)
    cipherList, cipherSuites = profile.cipherList, profile.cipherSuites
    if trusted is not None or disabled:
        ciphers, suites = cipherStrings(ciphersInForce(profile, trusted, disabled))
        if not ciphers and not suites:
            rules = f"{profile.rule('CipherList')}, {profile.rule('CipherSuites')}"
            raise Cause.POLICY.error(f"the program's ciphers and those of the policy have none in common ({rules})")
        if not suites:
            high = min(high, TLS_1_2)
        if not ciphers:
            low = max(low, TLS_1_3)
        cipherList, cipherSuites = ciphers or cipherList, suites or cipherSuites
    if low > high:
        raise Cause.POLICY.error(
            f"no TLS version is left: the policy allows {_versionName(profile.minProtocol)} to"
            f" {_versionName(profile.maxProtocol)}, the program's versions and ciphers exclude that"
            f" ({profile.rule('MinProtocol')}, {profile.rule('MaxProtocol')})"
        )
    return replace(profile, minProtocol=low, maxProtocol=high, cipherList=cipherList, cipherSuites=cipherSuites)


_LEAST = {
    "off": PeerAuthentication.NONE,
    "request": PeerAuthentication.REQUEST,
    "require": PeerAuthentication.REQUIRE,
}


def leastAuthentication(profile: Profile) -> PeerAuthentication:
    """Say what the policy asks of the clients of servers (ClientAuth); of an unknown word, the most."""
    return _LEAST.get(profile.clientAuth, PeerAuthentication.REQUIRE)
