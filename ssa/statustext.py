# SPDX-License-Identifier: MIT
"""
The daemon's status as text for a person: a summary, then tables with aligned columns.

Programs choose their names, and peers some of the rest: nothing that comes from the document reaches a terminal as a control
character, whoever made the document.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from ssa.errors import oneLine

__all__ = ["duration", "render", "size"]

_LABEL = 15
_NUMBERS = frozenset({"ID", "PID", "SOCKETS", "RECEIVED", "SENT", "AGE"})
"""Columns that are aligned to the right."""


def render(document: dict[str, Any], userName: Callable[[int], str]) -> list[str]:
    """
    Write a document for a person.

    @param document: as C{docs/status-fields.inc} says.
    @param userName: finds the name of a user id.
    @return: lines.
    @raise KeyError: the document lacks something; C{TypeError}, C{ValueError}, C{AttributeError}, C{OverflowError}: something
        in it is of another kind.
    """
    everything = document["view"] == "all"
    lines = [*_daemon(document, userName), *(_all(document) if everything else _own(document))]
    interceptors = [
        (each["kind"], _number(each["pid"]) if each["pid"] else "-", userName(each["uid"]), _number(each["sockets"]))
        for each in document["interceptors"]
    ]
    if interceptors:
        lines += ["", *_table(("INTERCEPTOR", "PID", "USER", "SOCKETS"), interceptors)]
        lines += _more(document["interceptors_not_listed"], "interceptors")
    lines += ["", *_sockets(document["sockets"], userName)]
    lines += _more(document["sockets_not_listed"], "sockets")
    if not everything:
        lines += ["", "Only root and the daemon's own user see what other users do."]
    return lines


def _line(label: str, text: str) -> str:
    return f"{label:{_LABEL}}{oneLine(text)}"


def _daemon(document: dict[str, Any], userName: Callable[[int], str]) -> Iterator[str]:
    daemon = document["daemon"]
    started = f"started {_date(daemon['started'])} ({duration(daemon['uptime_seconds'])} ago)"
    since = f"{daemon['version']}, {daemon['state']}, {started}"
    who = f", process {_number(daemon['pid'])} of user {userName(daemon['uid'])}" if daemon["pid"] is not None else ""
    yield _line("daemon", since + who)
    if daemon["libraries"] is not None:
        names = {"openssl": "", "pyopenssl": "pyOpenSSL ", "twisted": "Twisted ", "python": "Python "}
        libraries = daemon["libraries"]
        yield _line("libraries", ", ".join(f"{names.get(key, f'{key} ')}{libraries[key]}" for key in libraries))
    yield _line("kernel module", document["kernel_module"]["description"])


def _all(document: dict[str, Any]) -> Iterator[str]:
    """What those see who see everything."""
    configuration, totals = document["configuration"], document["totals"]
    limits, caches = document["limits"], document["caches"]
    file = configuration["file"] or "no file, the built-in defaults"
    yield _line("configuration", f"{file}, read {_date(configuration['read'])}")
    if configuration["failed"] is not None:
        yield _line("", f"reading it again FAILED {_date(configuration['failed'])}; what was read before stays in force:")
        for error in configuration["errors"]:
            yield _line("", error)
    stages = ", ".join(f"{_number(totals['stages'][stage])} {stage}" for stage in totals["stages"] if totals["stages"][stage])
    yield _line("sockets", _used(limits["sockets"]) + (f": {stages}" if stages else ""))
    yield _line("connections", _number(totals["connections"]))
    yield _line("handshakes", f"{_used(limits['handshakes'])} in progress")
    yield from _attempts(totals)
    yield _line("relay buffers", f"{_used(limits['relay_buffers'])} in use")
    answers = f"{_number(caches['revocation_answers'])} answers on revocation ({size(caches['revocation_bytes'])})"
    yield _line("caches", f"{_number(caches['sessions'])} sessions, {_number(caches['contexts'])} contexts, {answers}")
    yield _line("supervisors", _used(limits["supervisors"]))


def _own(document: dict[str, Any]) -> Iterator[str]:
    """What all others see."""
    user = document["user"]
    sockets = f"{_number(user['sockets'])} of {_number(user['max_sockets'])}"
    yield _line("your sockets", f"{sockets}, {_number(user['connections'])} of them with a connection")
    yield from _attempts(user)


def _attempts(part: dict[str, Any]) -> Iterator[str]:
    for role, label in (("client", "connects"), ("server", "accepts")):
        attempts = part["attempts"][role]
        errors = ", ".join(f"{_number(attempts['errors'][name])} {name}" for name in attempts["errors"])
        text = f"{_number(attempts['succeeded'])} succeeded, {_number(attempts['failed'])} failed"
        yield _line(label, text + (f": {errors}" if errors else ""))
    yield _line("data", f"{size(part['bytes_received'])} received, {size(part['bytes_sent'])} sent")


def _more(number: int, what: str) -> list[str]:
    return [f"{_number(number)} more {what} are not listed"] if number else []


def _sockets(sockets: Sequence[dict[str, Any]], userName: Callable[[int], str]) -> Iterator[str]:
    if not sockets:
        yield "no sockets"
        return
    names = ("ID", "STAGE", "ROLE", "USER", "PID", "PROGRAM", "LOCAL", "REMOTE", "RECEIVED", "SENT", "AGE", "RULES", "TLS")
    ordered = sorted(sockets, key=lambda each: (each["uid"], each["pid"], each["id"]))
    lines = _table(names, [_socket(each, userName) for each in ordered])
    yield next(lines)
    for each, line in zip(ordered, lines, strict=True):
        yield line
        if each["error"] is not None:
            yield f"    {oneLine(each['error'])}"


def _socket(socket: dict[str, Any], userName: Callable[[int], str]) -> tuple[str, ...]:
    """The columns of one socket."""
    connection, listener = socket["connection"], socket["listener"]
    stage, age, tls = socket["stage"], socket["age_seconds"], "-"
    if connection is not None:
        age = connection["age_seconds"]
        if not connection["open"]:
            stage = "ended"
        words = [connection[name] for name in ("version", "cipher", "group", "alpn") if connection[name] is not None]
        tls = " ".join([*words, "resumed"] if connection["resumed"] else words)
    elif listener is not None:
        tls = f"{_number(listener['accepted'])} accepted, {_number(listener['refused'])} refused"
    remote, identity = socket["remote"] or "-", socket["identity"]
    if identity is not None and remote.rpartition(":")[0].strip("[]") != identity:
        remote += f" ({identity})"
    sections = socket["sections"]
    rules = "-" if sections is None else ", ".join(sections[1:]) or "default"
    return (
        _number(socket["id"]),
        stage,
        socket["role"] or "-",
        userName(socket["uid"]),
        _number(socket["pid"]),
        _program(socket["executable"], socket["comm"]),
        socket["local"] or "-",
        remote,
        size(socket["bytes_received"]),
        size(socket["bytes_sent"]),
        duration(age),
        rules,
        tls,
    )


def _program(executable: str, comm: str) -> str:
    """The path, and the name where it says something else."""
    if not executable:
        return comm or "-"
    return executable if os.path.basename(executable)[:15] == comm else f"{executable} ({comm})"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """
    Align columns.

    @return: the line with the names, then one for each row.
    """
    cells = [list(names), *([oneLine(cell) for cell in row] for row in rows)]
    widths = [max(_width(row[column]) for row in cells) for column in range(len(names))]
    for row in cells:
        padded = []
        for name, cell, width in zip(names, row, widths, strict=True):
            padding = " " * (width - _width(cell))
            padded.append(padding + cell if name in _NUMBERS else cell + padding)
        yield "  ".join(padded).rstrip()


def _width(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "FW" else 1 for c in text)


def _number(value: int) -> str:
    """@raise TypeError: it is none."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is no number")
    return str(value)


def _used(limit: dict[str, int]) -> str:
    return f"{_number(limit['used'])} of {_number(limit['limit'])}"


def _date(text: str) -> str:
    """@raise ValueError: it is none."""
    return datetime.fromisoformat(text).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: int) -> str:
    """
    Write a number of bytes for a person.

    @raise TypeError: it is no number.
    """
    if type(count) is not int:
        raise TypeError(f"{count!r} is no number of bytes")
    value, units = float(count), iter(("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = "B"
    while value >= 1024 and unit != "EiB":
        value, unit = value / 1024, next(units)
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """
    Write a time for a person, in its two largest units.

    @raise TypeError: it is no number.
    """
    if type(seconds) not in (int, float):
        raise TypeError(f"{seconds!r} is no number of seconds")
    left = int(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if left >= length:
            return f"{left // length} {unit} {left % length // part} {smaller}"
    return f"{left} s"
