# SPDX-License-Identifier: MIT
"""
How the values of ssa.conf are read and shown.

A reader takes the text after the equals sign and raises C{ValueError} with what is wrong, and what is allowed, for a person.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from ssa.policy.profile import OLD_VERSION_NAMES, VERSION_NAMES
from ssa.tls.ciphers import checkCipherList

__all__ = [
    "absolutePath",
    "absolutePaths",
    "access",
    "checked",
    "choice",
    "cipherList",
    "names",
    "pins",
    "seconds",
    "seed",
    "show",
    "showAccess",
    "showPaths",
    "showPins",
    "showSeed",
    "showVersion",
    "showWords",
    "switch",
    "version",
    "whole",
]

_ALL_VERSIONS = {**OLD_VERSION_NAMES, **VERSION_NAMES}
_VERSIONS = {name: number for number, name in _ALL_VERSIONS.items()}
_PIN = "sha256/"
_LARGEST_SEED = 1 << 20


def version(text: str) -> int:
    """Read a protocol; whether an old one is allowed where it stands is decided there."""
    if text not in _VERSIONS:
        raise ValueError(f"{text!r} is no protocol that is allowed; allowed are {' and '.join(VERSION_NAMES.values())}")
    return _VERSIONS[text]


def switch(text: str) -> bool:
    """Read on or off."""
    if text not in ("on", "off"):
        raise ValueError(f"{text!r} is neither on nor off")
    return text == "on"


def whole(least: int, most: int) -> Callable[[str], int]:
    """Make the reader of a whole number."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 12) or not least <= int(text) <= most:
            raise ValueError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return parse


def seconds(least: float, most: float) -> Callable[[str], float]:
    """Make the reader of a time."""

    def parse(text: str) -> float:
        digits = text.replace(".", "", 1)
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 12) or not least <= float(text) <= most:
            raise ValueError(f"{text!r} is no number of seconds from {least:g} to {most:g}")
        return float(text)

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """Make the reader of one of several words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is not allowed; allowed are {_listed(allowed)}")
        return text

    return parse


def names(*allowed: str) -> Callable[[str], frozenset[str]]:
    """Make the reader of any number of words out of several, separated by spaces."""

    def parse(text: str) -> frozenset[str]:
        for word in text.split():
            if word not in allowed:
                raise ValueError(f"{word!r} is not allowed; allowed are {_listed(allowed)}")
        return frozenset(text.split())

    return parse


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def checked(check: Callable[[str], str]) -> Callable[[str], str]:
    """Make the reader of a text that a check approves of by returning ""."""

    def parse(text: str) -> str:
        problem = check(text)
        if problem:
            raise ValueError(problem)
        return text

    return parse


def cipherList(text: str) -> str:
    """Read a list of TLS 1.2 ciphers; whether old ones are allowed where it stands is decided there."""
    problem = checkCipherList(text)
    if problem and checkCipherList(text, mayBeOld=True):
        raise ValueError(problem)
    return text


def absolutePath(text: str) -> str:
    """Read a path; it may be empty."""
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is no absolute path")
    return text


def absolutePaths(text: str) -> tuple[str, ...]:
    """Read paths that are separated by colons, as in PATH."""
    paths = tuple(text.split(":")) if text else ()
    for path in paths:
        if not path.startswith("/"):
            raise ValueError(f"{path!r} is no absolute path; several are separated by colons")
    return paths


def pins(text: str) -> tuple[bytes, ...]:
    """Read digests of public keys, C{sha256/} and 32 bytes in base64 (RFC 7469 section 2.1.1 has the digest)."""
    found = []
    for word in text.split():
        if not word.startswith(_PIN):
            raise ValueError(f"{word!r} does not begin with {_PIN}")
        try:
            digest = base64.b64decode(word[len(_PIN) :], validate=True)
        except (ValueError, binascii.Error):
            raise ValueError(f"{word!r} has no base64 after {_PIN}") from None
        if len(digest) != 32:
            raise ValueError(f"{word!r} stands for {len(digest)} bytes, a SHA-256 digest has 32")
        found.append(digest)
    return tuple(found)


def seed(text: str) -> tuple[str, int]:
    """Read a path and a number of bytes; nothing stands for C{("", 0)}."""
    if not text:
        return ("", 0)
    path, _, count = text.rpartition(" ")
    path = path.strip()
    if not path.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path and a number of bytes, separated by a space")
    if not (count.isascii() and count.isdigit() and len(count) <= 8) or not 1 <= int(count) <= _LARGEST_SEED:
        raise ValueError(f"{count!r} is no number of bytes from 1 to {_LARGEST_SEED}")
    return path, int(count)


def show(value: Any) -> str:
    """
    Write a value as it stands in a file.

    @param value: what one of the readers for switches, numbers, times, words or paths has returned.
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, frozenset):
        return " ".join(sorted(value))
    return str(value)


def showVersion(value: int) -> str:
    """Write a protocol."""
    return _ALL_VERSIONS[value]


def showPaths(value: tuple[str, ...]) -> str:
    """Write paths."""
    return ":".join(value)


def showWords(value: tuple[str, ...]) -> str:
    """Write words."""
    return " ".join(value)


def showPins(value: tuple[bytes, ...]) -> str:
    """Write digests of public keys."""
    return " ".join(_PIN + base64.b64encode(digest).decode("ascii") for digest in value)


def showSeed(value: tuple[str, int]) -> str:
    """Write a path and a number of bytes."""
    return f"{value[0]} {value[1]}" if value[0] else ""


def showAccess(value: bool) -> str:
    """Write whether connections are allowed."""
    return "allow" if value else "deny"


def access(text: str) -> bool:
    """Read whether connections are allowed."""
    return choice("allow", "deny")(text) == "allow"
