# SPDX-License-Identifier: MIT
"""
From the sections of ssa.conf that hold for a connection to its L{Profile}.

C{[default]} comes first, then the profiles that match, in the order of the file; a later one's keys win.  A security level
stands for its keys where it is written: keys in the same section of the same file win over it, and it wins over what is
before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ssa.policy.levels import CUSTOM, LEVELS, OLD
from ssa.policy.matching import Match
from ssa.policy.profile import TLS_1_2, Caller, Limits, NamedFiles, Policy, Profile, Rule
from ssa.policy.schema import KEYS, PAIRS, REVOCATION_SOURCES, Belongs
from ssa.tls.ciphers import checkCipherList

__all__ = [
    "PLUGIN_SETTINGS",
    "SERVER_KEYS",
    "Section",
    "Setting",
    "expandLevel",
    "forNoListener",
    "makePolicy",
    "makeProfile",
    "problemsOf",
    "tooOld",
]

SERVER_KEYS = (("CertPath", "KeyPath"), ("ClientAuth",), ("OCSPStapling",), ("SessionTickets",))
"""What only servers have; keys that belong together are one entry."""

PLUGIN_SETTINGS = {"pin": "PinnedKeys", "first-use": "FirstUseStore"}
"""Validation plug-ins that need a key, and the keys, which do nothing without them."""


@dataclass(frozen=True)
class Setting:
    """
    A value and where it was set.

    @ivar value: as it was read.
    @ivar file: the file.
    @ivar line: the line, from 1.
    @ivar section: the section's name.
    @ivar level: the security level that it comes from, with its version; "" if the key itself was written.
    """

    value: Any
    file: str
    line: int
    section: str
    level: str = ""

    @property
    def origin(self) -> str:
        """Where it comes from, for a person."""
        place = f"{self.file}:{self.line} [{self.section}]"
        return f"{place} SecurityLevel {self.level}" if self.level else place


@dataclass
class Section:
    """
    A section, from all files together.

    @ivar name: between the brackets.
    @ivar file: the file that has it first.
    @ivar line: of its header there.
    @ivar settings: the values that it sets, by key.
    @ivar matchers: the same for the keys of L{ssa.policy.schema.MATCHERS}.
    """

    name: str
    file: str
    line: int
    settings: dict[str, Setting] = field(default_factory=dict)
    matchers: dict[str, Setting] = field(default_factory=dict)

    @property
    def match(self) -> Match:
        """Whom it is for."""

        def value(key: str, default: Any) -> Any:
            return self.matchers[key].value if key in self.matchers else default

        return Match(value("Application", ()), value("User", None), value("Destination", ()))

    def matches(self, who: Caller, destination: str | None, port: int, address: str) -> bool:
        """See L{ssa.policy.profile.Rule}."""
        return self.match.matches(who, destination, port, address)

    def value(self, key: str) -> Any:
        """See L{ssa.policy.profile.Rule}."""
        setting = self.settings.get(key)
        return setting.value if setting is not None else None

    def place(self, keys: Iterable[str]) -> tuple[str, int, str]:
        """
        Find where an error is that keys have to do with.

        @return: the file, the line and the key that is written there; "" for the section's header.
        """
        for key in keys:
            setting = self.settings.get(key) or self.matchers.get(key)
            if setting is not None:
                return setting.file, setting.line, "SecurityLevel" if setting.level else key
        return self.file, self.line, ""


def expandLevel(settings: dict[str, Setting]) -> None:
    """Add what the security level of a part stands for to the keys that are written in it."""
    chosen = settings.get("SecurityLevel")
    if chosen is None:
        return
    level = LEVELS[chosen.value]
    for key, text in level.values.items():
        if key not in settings:
            settings[key] = replace(chosen, value=KEYS[key].parse(text), level=f"{level.name} {level.version}")


def makeProfile(settings: Mapping[str, Setting]) -> Profile:
    """
    Make a profile.

    @param settings: the values that are set, by key; all others are the built-in ones.
    """
    values: dict[str, Any] = {
        key.field: settings[key.name].value
        for key in KEYS.values()
        if key.belongs is Belongs.PROFILE and key.field and key.name in settings
    }
    for attribute, (first, second) in PAIRS.items():
        if first in settings and second in settings:
            values[attribute] = tuple(zip(settings[first].value, settings[second].value, strict=False))
    sources = Profile().revocationSources
    for key, source in REVOCATION_SOURCES.items():
        if key in settings:
            sources = sources | {source} if settings[key].value else sources - {source}
    values["revocationSources"] = sources
    values["limits"] = Limits(
        **{
            key.field: settings[key.name].value
            for key in KEYS.values()
            if key.belongs is Belongs.LIMITS and key.name in settings
        }
    )
    return Profile(**values, origins={key: setting.origin for key, setting in settings.items()})


def makePolicy(default: Section, rules: Sequence[Section]) -> Policy:
    """
    Make the policy of a file that has no errors.

    @param default: its section C{[default]}.
    @param rules: its profiles.
    """

    def merge(matching: Sequence[Rule]) -> Profile:
        settings = dict(default.settings)
        for rule in matching:
            assert isinstance(rule, Section)
            settings.update(rule.settings)
        profile = makeProfile(settings)
        # One profile at a time is checked when the file is read; what several that match say together, only here.
        problems = "; ".join(
            f"{problem} ({', '.join(settings[key].origin for key in keys if key in settings)})"
            for keys, problem in problemsOf(settings)
        )
        return replace(profile, access=False, conflict=problems) if problems else profile

    daemon = {
        key.field: default.settings[key.name].value
        for key in KEYS.values()
        if key.belongs is Belongs.DAEMON and key.name in default.settings
    }
    origins = {key: (setting.file, setting.line) for key, setting in default.settings.items() if not setting.level}
    named = [files for section in (default, *rules) for files in _named(section)]
    return Policy(makeProfile(default.settings), origins, rules=rules, merge=merge, named=named, **daemon)


def _named(section: Section) -> Iterator[NamedFiles]:
    """Find the files that a section names."""

    def place(key: str) -> str:
        file, line, shown = section.place((key,))
        return f"{file}:{line}: [{section.name}] {shown}"

    for first, second in PAIRS.values():
        if first in section.settings and second in section.settings:
            for paths in zip(section.settings[first].value, section.settings[second].value, strict=False):
                yield NamedFiles(first, "credential", paths, place(first), place(second))
    kinds = {"TrustStoreLocation": "store", "TransparencyLogs": "content", "FirstUseStore": "written", "KeyLogFile": "written"}
    for key, kind in kinds.items():
        if key in section.settings and section.settings[key].value:
            yield NamedFiles(key, kind, (section.settings[key].value,), place(key))


def problemsOf(settings: Mapping[str, Setting]) -> Iterator[tuple[tuple[str, ...], str]]:
    """
    Find what only several keys together show to be wrong.

    @return: the keys that it is about, the first one first to be mentioned, and what is wrong.
    """

    def value(key: str) -> Any:
        return settings[key].value if key in settings else KEYS[key].default

    def shown(key: str) -> str:
        return f"{key} ({KEYS[key].show(value(key))})"

    if value("MinProtocol") > value("MaxProtocol"):
        problem = f"{shown('MinProtocol')} is above {shown('MaxProtocol')}"
        # The one that was written itself, not the one that follows from a level, is to be mentioned.
        keys = sorted(("MinProtocol", "MaxProtocol"), key=lambda key: key not in settings or bool(settings[key].level))
        yield tuple(keys), problem
    for chain, key in PAIRS.values():
        named, needed = len(value(chain)), len(value(key))
        if named != needed:
            yield (chain, key), f"{chain} names {named} files and {key} {needed}; each chain needs its key"
    if value("RevocationChecks") and not any(value(key) for key in REVOCATION_SOURCES):
        problem = f"RevocationChecks is on, and no answer counts; one of {', '.join(REVOCATION_SOURCES)} must be on"
        yield ("RevocationChecks", *REVOCATION_SOURCES), problem
    if value("VerifyCertTransparency") and not value("TransparencyLogs"):
        problem = "VerifyCertTransparency is on, and TransparencyLogs names no list of logs"
        yield ("VerifyCertTransparency", "TransparencyLogs"), problem
    for plugin, key in PLUGIN_SETTINGS.items():
        if value(key) and plugin not in value("Validation"):
            yield (key, "Validation"), f"{key} does nothing without {plugin} in Validation"
        if plugin in value("Validation") and not value(key):
            yield ("Validation", key), f"Validation names {plugin}, and {key} is empty"


def forNoListener(section: Section) -> Iterator[tuple[tuple[str, ...], str]]:
    """
    Find what a section says about servers although it holds for none, as it names destinations.

    @return: as L{problemsOf}.
    """
    if not section.match.destinations:
        return
    for keys in SERVER_KEYS:
        if any(key in section.settings for key in keys):
            yield keys, "it is for servers, and a profile with Destination holds for none"


def tooOld(section: Section) -> Iterator[tuple[tuple[str, ...], str]]:
    """
    Find what is obsolete in a section that may not have it, because it does not name the destinations that it is for.

    @return: as L{problemsOf}.
    """
    if section.match.namesDestination:
        return
    remedy = "only a profile whose Destination names certain hosts or addresses may allow it"
    level = section.settings.get("SecurityLevel")
    if level is not None and level.value == OLD:
        others = ", ".join(name for name in LEVELS if name not in (OLD, CUSTOM))
        yield ("SecurityLevel",), f"{OLD!r} is not allowed here, {remedy}; allowed are {others} and {CUSTOM}"
    for key in ("MinProtocol", "MaxProtocol"):
        setting = section.settings.get(key)
        if setting is not None and not setting.level and setting.value < TLS_1_2:
            text = KEYS[key].show(setting.value)
            yield (key,), f"{text!r} is not allowed here, {remedy}; allowed are TLSv1.2 and TLSv1.3"
    ciphers = section.settings.get("CipherList")
    if ciphers is not None and not ciphers.level:
        problem = checkCipherList(ciphers.value)
        if problem:
            yield ("CipherList",), f"{problem}; {remedy}"
