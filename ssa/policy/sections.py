# SPDX-License-Identifier: MIT
"""
From the text of one file to its sections: keys, values as they are written, and lines.

The text is read by C{configparser}, strictly.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["DEFAULT", "Part", "readParts"]

DEFAULT = "default"
"""The section that holds for everything."""

_MOST_ERRORS = 100
_CONTROL = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
"""What no value has, and what some editor might show as the end of a line."""


@dataclass(frozen=True)
class Part:
    """
    What one file says in one section.

    @ivar section: the name between the brackets.
    @ivar file: the file's name.
    @ivar line: of the header.
    @ivar entries: key, value and line, in the order of the file.
    """

    section: str
    file: str
    line: int
    entries: list[tuple[str, str, int]] = field(default_factory=list)


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


def readParts(name: str, text: str, found: list[tuple[int, str]]) -> list[Part]:
    """
    Read one file.

    C{configparser} stops at its first error: the line is then blanked and the file read again, until all are known.

    @param name: the file's.
    @param found: lines and what is wrong with them; what is wrong here is added.
    @return: its sections, in the order of the file.
    """
    # Only a line feed ends a line, with or without a carriage return: so a comment ends where the administrator sees its end.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if text.startswith("\ufeff"):
        found.append((1, "the file begins with a byte order mark; it has to be UTF-8 without one"))
        lines[0] = lines[0][1:]
    for number, line in enumerate(lines, 1):
        control = _CONTROL.search(line) if line.lstrip()[:1] not in ("#", ";") else None
        if control is not None:
            found.append((number, f"there is a control character (U+{ord(control[0]):04X}) in this line"))
            lines[number - 1] = ""
        elif line[:1].isspace() and line.strip() and line.strip()[0] not in "#;":
            found.append((number, "a line must not begin with a space; a value has one line"))
            lines[number - 1] = ""
        elif line.startswith("[") and not line.rstrip().endswith("]"):
            found.append((number, "a section's line ends with ]; nothing may follow its name"))
            lines[number - 1] = line[: line.find("]") + 1]
    repeated: set[str] = set()
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
            # Its keys must not count for the section before it.
            repeated.add(f"repeated in line {number}")
            lines[number - 1] = f"[repeated in line {number}]"
            if len(found) > _MOST_ERRORS:
                return []
            continue
        except configparser.MissingSectionHeaderError as error:
            number = error.lineno
            found.append((number, f"there is no section before this line; begin with [{DEFAULT}]"))
        except configparser.ParsingError as error:
            for number, _ in error.errors:
                found.append((number, "this is neither [section], nor Key = value, nor a comment"))
                lines[number - 1] = ""
        lines[number - 1] = ""
        if len(found) > _MOST_ERRORS:
            return []
    places = iter(parser.places)
    parts = []
    # Keys come back in the order in which they were read, section by section.
    for section in parser.sections():
        part = Part(section, name, _lineOf(lines, f"[{section}]"))
        entries = parser._sections[section].items()  # type: ignore[attr-defined]
        part.entries.extend((key, value, next(places)) for key, value in entries)
        if section not in repeated:
            parts.append(part)
    return parts


def _lineOf(lines: Sequence[str], header: str) -> int:
    for number, line in enumerate(lines, 1):
        if line.strip().startswith(header):
            return number
    return 1
