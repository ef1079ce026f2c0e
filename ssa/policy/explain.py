# SPDX-License-Identifier: MIT
"""
The policy in force for somebody, for a person: each value with the place that it comes from.
"""

from __future__ import annotations

from typing import Any

from ssa.policy.levels import LEVELS
from ssa.policy.merging import Section
from ssa.policy.profile import Caller, Policy, Profile
from ssa.policy.schema import KEYS, PAIRS, REVOCATION_SOURCES, Belongs, Key

__all__ = ["explain"]

_BUILT_IN = "default"


def explain(policy: Policy, who: Caller, destination: str | None = None, port: int = 0, address: str = "") -> list[str]:
    """
    Say what holds.

    @param policy: the policy.
    @param who: the program.
    @param destination: as in L{Policy.profileFor}.
    @param port: as in L{Policy.profileFor}.
    @param address: as in L{Policy.profileFor}.
    @return: lines: what was asked, the profiles that match, and each key with its value and the file, the line and the
        section (and the security level, with its version) that it comes from, or C{default}.
    """
    profile = policy.profileFor(who, destination, port, address)
    lines = [f"# {_asked(who, destination, port, address)}"]
    matching = [rule for rule in policy.rules if rule.matches(who, destination, port, address)]
    lines += [f"# [{rule.name}] of {rule.file}:{rule.line} matches" for rule in matching if isinstance(rule, Section)]
    if not matching:
        lines.append("# no profile matches, [default] holds")
    if profile.conflict:
        lines.append(f"# refused, since the rules contradict each other: {profile.conflict}")
    rows = [(f"{key.name} = {key.show(_value(policy, profile, key))}".rstrip(), _origin(profile, key)) for key in KEYS.values()]
    width = min(48, max(len(left) for left, _ in rows))
    return lines + [f"{left:{width}}  # {right}" for left, right in rows]


def _asked(who: Caller, destination: str | None, port: int, address: str) -> str:
    program = who.executable or "a program that no Application names"
    if destination is None:
        return f"{program} of user {who.uid} listens"
    return f"{program} of user {who.uid} connects to {destination}{f' ({address})' if address else ''} port {port}"


def _value(policy: Policy, profile: Profile, key: Key) -> Any:
    if key.belongs is Belongs.DAEMON:
        return getattr(policy, key.field)
    if key.belongs is Belongs.LIMITS:
        return getattr(profile.limits, key.field)
    if key.name in REVOCATION_SOURCES:
        return REVOCATION_SOURCES[key.name] in profile.revocationSources
    for attribute, pair in PAIRS.items():
        if key.name in pair:
            return tuple(paths[pair.index(key.name)] for paths in getattr(profile, attribute))
    return getattr(profile, key.field)


def _origin(profile: Profile, key: Key) -> str:
    origin = profile.origin(key.name)
    if key.name == "SecurityLevel":
        return f"{origin or _BUILT_IN}, version {LEVELS[profile.securityLevel].version}"
    return origin or _BUILT_IN
