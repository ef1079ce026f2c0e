# SPDX-License-Identifier: MIT
"""
From ssa.conf and its drop-ins to a L{Policy}.

The files are read by C{configparser}, strictly; all errors of all files are collected, each as
C{file:line: [section] Key: what is wrong, what is allowed}.  With one error there is no policy.
"""

from __future__ import annotations

import configparser
import difflib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ssa.policy.profile import Limits, Policy, Profile
from ssa.policy.schema import KEYS

__all__ = ["DEFAULT_FILE", "ConfigurationError", "loadPolicy", "parsePolicy"]

DEFAULT_FILE = "/etc/ssa/ssa.conf"
"""Where the administrator's file is, unless a command says otherwise."""

_LARGEST_FILE = 1024 * 1024
_MOST_ERRORS = 100
_SECTION = "default"


class ConfigurationError(Exception):
    """
    A configuration cannot be used.

    @ivar errors: one line for each error, in the order of files and lines.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True)
class _Setting:
    """A value and where it was set."""

    value: Any
    file: str
    line: int


def loadPolicy(path: str | None = None, required: bool = True) -> Policy:
    """
    Read the file and the drop-ins C{*.conf} in the directory C{path + ".d"}, in the order of their names.

    A later file's value wins.

    @param path: the administrator's file; C{None} for L{DEFAULT_FILE}, which need not exist.
    @param required: whether a file that is named must exist.
    @raise ConfigurationError: with all errors.
    """
    required = required and path is not None
    path = path if path is not None else DEFAULT_FILE
    errors: list[str] = []
    sources: list[tuple[str, str]] = []
    names = [path]
    directory = path + ".d"
    try:
        names += [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(".conf")]
    except FileNotFoundError:
        pass
    except OSError as error:
        errors.append(f"{directory}: {error.strerror}")
    for name in names:
        try:
            sources.append((name, _read(name)))
        except FileNotFoundError:
            if required or name != path:
                errors.append(f"{name}: there is no such file")
        except UnicodeDecodeError as error:
            errors.append(f"{name}: it is not UTF-8 at byte {error.start}")
        except OSError as error:
            errors.append(f"{name}: {error.strerror}")
    return parsePolicy(sources, errors)


def _read(name: str) -> str:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is no regular file")
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise OSError(0, f"it is larger than {_LARGEST_FILE} bytes")
    return data.decode("utf-8")


def parsePolicy(sources: Sequence[tuple[str, str]], errors: Sequence[str] = ()) -> Policy:
    """
    Make a policy from texts.

    @param sources: pairs of a file's name and its text; a later one's values win.
    @param errors: what is already known to be wrong.
    @raise ConfigurationError: with all errors, C{errors} first.
    """
    problems = list(errors)
    settings: dict[str, _Setting] = {}
    for name, text in sources:
        settings.update(_parseFile(name, text, problems))
    profile = Profile()
    values = {KEYS[key].field: setting.value for key, setting in settings.items()}
    _checkTogether(profile, settings, values, problems)
    if problems:
        raise ConfigurationError(problems)
    certPaths, keyPaths = values.pop("certPaths", ()), values.pop("keyPaths", ())
    limitNames = {field.name for field in fields(Limits)}
    limits = replace(profile.limits, **{field: value for field, value in values.items() if field in limitNames})
    rest = {field: value for field, value in values.items() if field not in limitNames}
    origins = {key: f"{setting.file}:{setting.line} [{_SECTION}]" for key, setting in settings.items()}
    profile = replace(
        profile, limits=limits, certificates=tuple(zip(certPaths, keyPaths, strict=True)), origins=origins, **rest
    )
    return Policy(profile, {key: (setting.file, setting.line) for key, setting in settings.items()})


def _checkTogether(
    profile: Profile, settings: dict[str, _Setting], values: dict[str, Any], problems: list[str]
) -> None:
    """Check what only several keys together show."""

    def add(key: str, problem: str) -> None:
        setting = settings[key]
        problems.append(f"{setting.file}:{setting.line}: [{_SECTION}] {key}: {problem}")

    if values.get("minProtocol", profile.minProtocol) > values.get("maxProtocol", profile.maxProtocol):
        add("MinProtocol" if "MinProtocol" in settings else "MaxProtocol", "MinProtocol is above MaxProtocol")
    chains, keys = values.get("certPaths", ()), values.get("keyPaths", ())
    if len(chains) != len(keys):
        where = "CertPath" if "CertPath" in settings else "KeyPath"
        add(where, f"CertPath names {len(chains)} files and KeyPath {len(keys)}; each chain needs its key")


class _Lines:
    """The lines of a file, and which of them is being read: configparser itself does not tell where a key was."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self.lines, 1):
            self.number = number
            yield line


class _Parser(configparser.RawConfigParser):
    """C{configparser} without interpolation, inherited defaults, inline comments and values over several lines."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__(
            strict=True,
            delimiters=("=",),
            comment_prefixes=("#", ";"),
            inline_comment_prefixes=None,
            empty_lines_in_values=False,
            default_section="",  # no section header can be empty: none is inherited from
        )
        self._lines = lines
        self.places: list[int] = []

    def optionxform(self, optionstr: str) -> str:
        """Keep a key as it is written, and note the line; it is called once for each key, in the order of the file."""
        self.places.append(self._lines.number)
        return optionstr


def _parseFile(name: str, text: str, problems: list[str]) -> dict[str, _Setting]:
    """
    Read one file; what is wrong is added to C{problems}.

    C{configparser} stops at its first error: the line is then blanked and the file read again, until all are known.
    """
    lines = text.splitlines()
    found: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        if line[:1].isspace() and line.strip() and line.strip()[0] not in "#;":
            found.append((number, "a line must not begin with a space; a value has one line"))
            lines[number - 1] = ""
    while True:
        source = _Lines(lines)
        parser = _Parser(source)
        try:
            parser.read_file(source, name)
            break
        except configparser.DuplicateOptionError as error:
            number = error.lineno or source.number
            found.append((number, f"[{error.section}] {error.option}: the key is repeated"))
        except configparser.DuplicateSectionError as error:
            number = error.lineno or source.number
            found.append((number, f"[{error.section}]: the section is repeated"))
        except configparser.MissingSectionHeaderError as error:
            number = error.lineno
            found.append((number, f"there is no section before this line; begin with [{_SECTION}]"))
        except configparser.ParsingError as error:
            for number, _ in error.errors:
                found.append((number, "this is neither [section], nor Key = value, nor a comment"))
                lines[number - 1] = ""
        lines[number - 1] = ""
        if len(found) > _MOST_ERRORS:
            problems.extend(f"{name}:{number}: {problem}" for number, problem in sorted(found))
            return {}
    settings = {}
    places = iter(parser.places)
    # Keys come back in the order in which they were read, section by section.
    for section in parser.sections():
        if section != _SECTION:
            number = _lineOf(lines, f"[{section}]")
            if section.split()[:1] == ["profile"]:
                found.append((number, f"[{section}]: this version does not support profiles yet, only [{_SECTION}]"))
            else:
                found.append((number, f"[{section}]: there is no such section, only [{_SECTION}]"))
        for key, value in parser._sections[section].items():  # type: ignore[attr-defined]
            number = next(places)
            if section != _SECTION:
                continue
            problem = _parseValue(key, value)
            if isinstance(problem, _Wrong):
                found.append((number, f"[{section}] {key}: {problem.text}"))
            else:
                settings[key] = _Setting(problem, name, number)
    problems.extend(f"{name}:{number}: {problem}" for number, problem in sorted(found))
    return settings


@dataclass(frozen=True)
class _Wrong:
    text: str


def _parseValue(key: str, value: str) -> Any:
    known = KEYS.get(key)
    if known is None:
        close = difflib.get_close_matches(key.lower(), [other.lower() for other in KEYS], 1)
        hint = next((f"; do you mean {other}?" for other in KEYS if other.lower() in close), "")
        return _Wrong(f"there is no such key{hint}")
    try:
        return known.parse(value)
    except ValueError as error:
        return _Wrong(str(error))


def _lineOf(lines: Sequence[str], header: str) -> int:
    for number, line in enumerate(lines, 1):
        if line.strip().startswith(header):
            return number
    return 1
