# SPDX-License-Identifier: MIT
"""
From ssa.conf and its drop-ins to a L{Policy}.

All errors of all files are collected, each as C{file:line: [section] Key: what is wrong, what is allowed}.  With one error
there is no policy.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ssa.policy.matching import parseApplications, parseDestinations, parseUsers
from ssa.policy.merging import Section, Setting, expandLevel, forNoListener, makePolicy, problemsOf, tooOld
from ssa.policy.profile import DEFAULT_FILE, Policy
from ssa.policy.schema import KEYS, MATCHERS, PAIRS, Belongs
from ssa.policy.sections import DEFAULT, Part, readParts
from ssa.regularfiles import readRegular

__all__ = ["DEFAULT_FILE", "SHIPPED_VALIDATION", "ConfigurationError", "Validators", "loadPolicy", "parsePolicy"]

SHIPPED_VALIDATION = ("pin", "first-use")
"""The names of the validation plug-ins that come with this project."""

Validators = Callable[[], Iterable[str]]
"""Finds the names of the validation plug-ins; it is called when a file uses one, since finding them takes time."""

_LARGEST_FILE = 1024 * 1024
_READERS: dict[str, Callable[[str], Any]] = {
    "Application": parseApplications,
    "User": parseUsers,
    "Destination": parseDestinations,
}


def _shippedValidation() -> Iterable[str]:
    return SHIPPED_VALIDATION


class ConfigurationError(Exception):
    """
    A configuration cannot be used.

    @ivar errors: one line for each error, in the order of files and lines.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


def loadPolicy(
    path: str | None = None, required: bool = True, validators: Validators = _shippedValidation
) -> Policy:
    """
    Read the file and the drop-ins C{*.conf} in the directory C{path + ".d"}, in the order of their names; hidden files, which
    editors make, are none.

    A later file's value wins.

    @param path: the administrator's file; C{None} for L{DEFAULT_FILE}, which need not exist.
    @param required: whether a file that is named must exist.
    @param validators: finds the validation plug-ins.
    @raise ConfigurationError: with all errors.
    """
    required = required and path is not None
    path = path if path is not None else DEFAULT_FILE
    errors: list[str] = []
    sources: list[tuple[str, str]] = []
    names = [path]
    directory = path + ".d"
    try:
        found = sorted(name for name in os.listdir(directory) if name.endswith(".conf") and not name.startswith("."))
        names += [os.path.join(directory, name) for name in found]
    except FileNotFoundError:
        pass
    except OSError as error:
        errors.append(f"{directory}: {error.strerror}")
    for name in names:
        try:
            sources.append((name, readRegular(name, _LARGEST_FILE).decode("utf-8")))
        except FileNotFoundError:
            if required or name != path:
                errors.append(f"{name}: there is no such file")
        except UnicodeDecodeError as error:
            errors.append(f"{name}: it is not UTF-8 at byte {error.start}")
        except OSError as error:
            errors.append(f"{name}: {error.strerror}")
    policy = parsePolicy(sources, errors, validators)
    policy.file = path if any(name == path for name, _ in sources) else ""
    return policy


def parsePolicy(
    sources: Sequence[tuple[str, str]], errors: Sequence[str] = (), validators: Validators = _shippedValidation
) -> Policy:
    """
    Make a policy from texts.

    @param sources: pairs of a file's name and its text; a later one's values win.
    @param errors: what is already known to be wrong.
    @param validators: finds the validation plug-ins.
    @raise ConfigurationError: with all errors, C{errors} first.
    """
    default = Section(DEFAULT, "", 0)
    profiles: dict[str, Section] = {}
    wrong: list[tuple[int, int, str]] = []
    broken: set[str] = set()
    for order, (name, text) in enumerate(sources):
        found: list[tuple[int, str]] = []
        for part in readParts(name, text, found):
            section = _sectionOf(part, default, profiles, found)
            if section is not None:
                before = len(found)
                settings, matchers = _parsePart(part, section, found, validators)
                section.settings.update(settings)
                section.matchers.update(matchers)
                if len(found) > before:
                    broken.add(section.name)
        wrong.extend((order, line, f"{name}:{line}: {problem}") for line, problem in found)
    names = [name for name, _ in sources]
    # What is wrong with a section as a whole is not certain before all its values are right.
    for section in (default, *profiles.values()):
        for keys, problem in _problemsIn(section, default, broken):
            file, line, shown = section.place(keys)
            what = f"[{section.name}] {shown}" if shown else f"[{section.name}]"
            wrong.append((names.index(file), line, f"{file}:{line}: {what}: {problem}"))
    problems = [*errors, *dict.fromkeys(text for _, _, text in sorted(wrong))]
    if problems:
        raise ConfigurationError(problems)
    return makePolicy(default, list(profiles.values()))


def _problemsIn(section: Section, default: Section, broken: Container[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Find what is wrong with a section as a whole, and with what it changes in the default."""
    if section.name in broken and section is not default:
        return
    if section is not default and not section.matchers:
        yield (), f"it is for nobody: give at least one of {', '.join(MATCHERS)}"
        return
    yield from tooOld(section)
    yield from forNoListener(section)
    if section.name in broken or DEFAULT in broken:
        return
    alone = set(problemsOf(default.settings)) if section is not default else set()
    for problem in problemsOf({**default.settings, **section.settings}):
        if problem not in alone:
            yield problem
    for first, second in PAIRS.values():
        if section is not default and (first in section.settings) != (second in section.settings):
            present, absent = (first, second) if first in section.settings else (second, first)
            yield (present,), f"a profile that sets {present} has to set {absent} too"


def _sectionOf(
    part: Part, default: Section, profiles: dict[str, Section], found: list[tuple[int, str]]
) -> Section | None:
    """Find the section that a part of a file belongs to; a name that another file has used goes on."""
    words = part.section.split()
    if part.section == DEFAULT:
        return default
    if words[:1] != ["profile"]:
        allowed = f"allowed are [{DEFAULT}] and [profile NAME]"
        found.append((part.line, f"[{part.section}]: there is no such section; {allowed}"))
    elif len(words) != 2 or part.section != " ".join(words):
        found.append((part.line, f"[{part.section}]: a profile has a name of one word: [profile NAME]"))
    else:
        return profiles.setdefault(part.section, Section(part.section, part.file, part.line))
    return None


def _parsePart(
    part: Part, section: Section, found: list[tuple[int, str]], validators: Validators
) -> tuple[dict[str, Setting], dict[str, Setting]]:
    """Read the values of a part: those of its keys, with what its security level stands for, and its matchers."""
    settings: dict[str, Setting] = {}
    matchers: dict[str, Setting] = {}
    for key, text, line in part.entries:
        value = _parseValue(key, text, section.name == DEFAULT, validators)
        if isinstance(value, _Wrong):
            found.append((line, f"[{section.name}] {key}: {value.text}"))
        else:
            (matchers if key in MATCHERS else settings)[key] = Setting(value, part.file, line, section.name)
    expandLevel(settings)
    return settings, matchers


@dataclass(frozen=True)
class _Wrong:
    text: str


def _parseValue(key: str, value: str, isDefault: bool, validators: Validators) -> Any:
    read = _READERS.get(key)
    if read is not None and isDefault:
        return _Wrong("it says whom a profile is for, and is allowed in [profile NAME] only")
    if read is None:
        known = KEYS.get(key)
        if known is None:
            return _Wrong(f"there is no such key{_hint(key)}")
        if known.belongs is not Belongs.PROFILE and not isDefault:
            what = "is a bound of the daemon" if known.belongs is Belongs.LIMITS else "concerns the daemon"
            return _Wrong(f"it {what} as a whole, and is allowed in [{DEFAULT}] only")
        read = known.parse
    try:
        parsed = read(value)
        if key == "Validation":
            _checkValidation(parsed, validators)
        if key == "KeyLogFile" and parsed and isDefault:
            return _Wrong("it is allowed in [profile NAME] only, which says whose secrets are written")
        return parsed
    except ValueError as error:
        return _Wrong(str(error))


def _hint(key: str) -> str:
    """Propose a key that is written almost like this one."""
    every = (*KEYS, *MATCHERS)
    close = difflib.get_close_matches(key.lower(), [other.lower() for other in every], 1)
    return next((f"; do you mean {other}?" for other in every if other.lower() in close), "")


def _checkValidation(names: Sequence[str], validators: Validators) -> None:
    if not names:
        return
    known = sorted(validators())
    for name in names:
        if name not in known:
            raise ValueError(f"there is no validation plug-in {name!r}; there are {', '.join(known) or 'none'}")
