# SPDX-License-Identifier: MIT
"""
C{docs/protocol.rst} from C{kernel-module/ssa.yaml}: C{python -m ssa.test.protocolpage} writes it, a test compares it.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "kernel-module" / "ssa.yaml"
PAGE = ROOT / "docs" / "protocol.rst"

_WIDTH = 128

_CHECKS = {"min-len": "at least {} bytes", "max-len": "at most {} bytes", "min": "from {}", "max": "to {}"}

_INTRODUCTION = """
This page is made from ``kernel-module/ssa.yaml`` by ``python -m ssa.test.protocolpage``; do not edit it. :doc:`architecture`
tells how the messages play together.
"""


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Paragraphs, in lines of bounded length."""
    lines: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        lines += textwrap.wrap(
            " ".join(paragraph.split()), _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        lines.append("")
    return lines


def _titled(text: str, underline: str) -> list[str]:
    return [text, underline * len(text), ""]


def _bounds(attribute: dict[str, Any], constants: dict[str, int]) -> str:
    """The bounds of an attribute, for people."""
    checks = attribute.get("checks", {})
    words = []
    for name, phrase in _CHECKS.items():
        if name in checks:
            value = checks[name]
            words.append(phrase.format(constants.get(value, value)))
    if attribute.get("multi-attr"):
        words.append("may repeat")
    if "enum" in attribute:
        words.append(f"see {attribute['enum']}")
    return ", ".join(words)


def _names(attributes: list[str]) -> str:
    return ", ".join(f"``{name}``" for name in attributes) if attributes else "nothing"


def _operation(operation: dict[str, Any]) -> list[str]:
    lines = [f"{operation['value']}, ``{operation['name']}``", *_wrapped(operation["doc"], "    ")]
    for path, word in ((("event",), "Carries"), (("do", "request"), "Carries"), (("do", "reply"), "The reply carries")):
        place: Any = operation
        for step in path:
            place = place.get(step, {})
        if place and not (path == ("event",) and "do" in operation):
            lines += _wrapped(f"{word} {_names(place['attributes'])}.", "    ")
    return lines


def render(specification: dict[str, Any]) -> str:
    """
    Make the page.

    @param specification: what the file holds.
    """
    constants = {one["name"]: one["value"] for one in specification["definitions"] if one["type"] == "const"}
    operations = specification["operations"]["list"]
    answers = [one for one in operations if one["name"] in ("return", "data-return", "handshake-return")]
    events = [one for one in operations if "event" in one and "do" not in one]
    requests = [one for one in operations if one not in answers and one not in events]
    lines = _titled("The protocol", "=")
    lines += _wrapped(_INTRODUCTION) + _wrapped(specification["doc"])
    groups = ", ".join(f"``{one['name']}``" for one in specification["mcast-groups"]["list"])
    lines += _wrapped(
        f"The generic netlink family is ``{specification['name']}``, version {specification['version']}; "
        f"its multicast group is {groups}."
    )
    for title, chosen in (("Events", events), ("Answers", answers), ("Requests", requests)):
        lines += _titled(title, "-")
        for one in chosen:
            lines += _operation(one)
    lines += _titled("Attributes", "-")
    for one in specification["attribute-sets"][0]["attributes"]:
        bounds = _bounds(one, constants)
        lines.append(f"{one['value']}, ``{one['name']}``, {one['type']}{', ' + bounds if bounds else ''}")
        lines += _wrapped(one["doc"], "    ")
    lines += _titled("Enumerations", "-")
    for one in specification["definitions"]:
        if one["type"] == "enum":
            entries = ", ".join(f"{number} ``{entry}``" for number, entry in enumerate(one["entries"]))
            lines += [f"``{one['name']}``", *_wrapped(f"{one['doc']} {entries}.", "    ")]
    lines += _titled("Constants", "-")
    for one in specification["definitions"]:
        if one["type"] == "const":
            lines += [f"``{one['name']}`` = {one['value']}", *_wrapped(one["doc"], "    ")]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Write the page."""
    import yaml

    PAGE.write_text(render(yaml.safe_load(SOURCE.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
