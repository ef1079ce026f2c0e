# SPDX-License-Identifier: MIT
"""
Where the log goes, from which level on, and in which format.

A L{LogOutput} is an observer of C{twisted.logger} whose level and format may change while it is used: a reload of the
configuration does so.  Text has one line for each event; an event of several lines (a traceback) has them indented, so that
nothing that a program or a peer says looks like an event of its own.  JSON has one object in each line, without nesting.
Under systemd both have the priority that sd-daemon(3) describes before each line.

Whoever logs must not give away secrets or what programs send: this module writes what it gets.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import signal
import sys
import syslog
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from constantly import NamedConstant
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.logfile import LogFile
from zope.interface import implementer

from ssa.errors import SSAError

__all__ = ["FORMATS", "LEVELS", "PROGRAM", "LogOutput", "forTwistd", "isJournal", "levelOf", "lineSink",
           "syslogSink"]

LEVELS = ("debug", "info", "warn", "error", "critical")
"""The levels, from the one that says the most."""

FORMATS = ("text", "json")

PROGRAM = "program {executable} ({comm}), pid {pid}, user {uid}"
"""Who it is about: the end of a message whose event has these fields."""

_PRIORITIES = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
"""The levels of syslog(3)."""

_REFUSALS = frozenset({errno.EPERM, errno.EKEYREJECTED, errno.EKEYEXPIRED, errno.EKEYREVOKED})


def levelOf(error: SSAError) -> NamedConstant:
    """
    How much a failed call is worth to whoever reads the log.

    @return: C{warn} for what a check or the policy has refused, C{error} for an error of the daemon, else C{info}.
    """
    if error.errno == errno.EIO:
        return LogLevel.error
    return LogLevel.warn if error.errno in _REFUSALS else LogLevel.info


class _Stream(Protocol):
    """What a log is written to."""

    def write(self, text: str) -> object:
        """Write."""

    def flush(self) -> object:
        """Write really."""

    def fileno(self) -> int:
        """The descriptor."""


Sink = Callable[[str, str], None]
"""Takes a level and a text of one or more lines."""


def isJournal(stream: _Stream, environment: Mapping[str, str] = os.environ) -> bool:
    """
    Whether a stream goes to the journal: systemd.exec(5), C{JOURNAL_STREAM}.

    @param stream: for instance standard output.
    @param environment: of the process.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"


def lineSink(stream: _Stream, journal: bool = False) -> Sink:
    """
    Write to a stream.

    @param stream: of text.
    @param journal: whether each line begins with its priority, C{<4>}; and without the time, which the journal has.
    """

    def write(level: str, text: str) -> None:
        prefix = f"<{_PRIORITIES[level]}>" if journal else ""
        lines = "".join(f"{prefix}{line}\n" for line in text.split("\n"))
        try:
            stream.write(lines)
        except UnicodeEncodeError as error:  # the locale has no such character
            stream.write(lines.encode(error.encoding, "backslashreplace").decode(error.encoding))
        stream.flush()

    return write


def syslogSink(prefix: str) -> Sink:
    """
    Write to syslog(3).

    @param prefix: the name of this program there.
    """
    syslog.openlog(prefix, syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(level: str, text: str) -> None:
        for line in text.split("\n"):
            syslog.syslog(_PRIORITIES[level], line)

    return write


@implementer(ILogObserver)
class LogOutput:
    """
    Writes events.

    @ivar level: the least level that is written.
    @ivar format: C{"text"} or C{"json"}.
    """

    def __init__(self, sink: Sink, level: str = "info", format: str = "text", withTime: bool = True) -> None:
        """
        @param sink: takes the lines.
        @param withTime: whether text begins with the time.
        @raise ValueError: for an unknown level or format.
        """
        self._sink = sink
        self._withTime = withTime
        self.configure(level, format)

    def configure(self, level: str, format: str) -> None:
        """
        Change what is written from now on.

        @raise ValueError: for an unknown level or format; nothing is changed.
        """
        if level not in LEVELS:
            raise ValueError(f"{level!r} is no level of the log; allowed are {', '.join(LEVELS)}")
        if format not in FORMATS:
            raise ValueError(f"{format!r} is no format of the log; allowed are {' and '.join(FORMATS)}")
        self.level = level
        self.format = format
        self._least = LEVELS.index(level)

    def __call__(self, event: LogEvent) -> None:
        """Write an event.  A log that cannot be written stops nobody."""
        level = event.get("log_level", LogLevel.info)
        name = getattr(level, "name", "info")
        if name not in _PRIORITIES or LEVELS.index(name) < self._least:
            return
        text = self._json(event, name) if self.format == "json" else self._text(event, name)
        with contextlib.suppress(OSError, ValueError):
            self._sink(name, text)

    def _text(self, event: LogEvent, level: str) -> str:
        source = f"[{event.get('log_namespace', '-')}#{level}] "
        if self._withTime:
            source = f"{_time(event).astimezone().strftime('%Y-%m-%dT%H:%M:%S%z')} {source}"
        lines = [_printable(line) for line in (_message(event) + _traceback(event)).split("\n")]
        return "\n    ".join([source + lines[0], *lines[1:]])

    def _json(self, event: LogEvent, level: str) -> str:
        fields: dict[str, object] = {
            "time": _time(event).isoformat(timespec="milliseconds"),
            "level": level,
            "logger": str(event.get("log_namespace", "")),
            "message": _message(event),
        }
        failure = _traceback(event)
        if failure:
            fields["traceback"] = failure.strip("\n")
        for key, value in event.items():
            if key.startswith("log_") or key in fields:
                continue
            if isinstance(value, (bool, int, float, str)) or value is None:
                fields[key] = value
        evidence = event.get("evidence")
        if isinstance(evidence, Mapping):
            fields |= {str(name): str(text) for name, text in evidence.items() if name not in fields}
        return json.dumps(fields, ensure_ascii=True, default=str)


def _time(event: LogEvent) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(float(event.get("log_time", 0.0)), datetime.timezone.utc)


def _message(event: LogEvent) -> str:
    """The text of an event, those of Twisted's older interface included."""
    return str(formatEvent(event)).rstrip("\n")


def _traceback(event: LogEvent) -> str:
    failure = event.get("log_failure")
    if failure is None:
        return ""
    try:
        return "\n" + str(failure.getTraceback()).rstrip("\n")
    except Exception:
        return "\n(there is no traceback)"


def _printable(line: str) -> str:
    """Escape what a terminal could take for a command."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape", "replace").decode("ascii") for c in line)


def forTwistd(
    options: Mapping[str, Any],
    later: Callable[[Callable[[], object]], object],
    environment: Mapping[str, str] = os.environ,
) -> LogOutput | None:
    """
    Log to where twistd(1) would.

    @param options: the command line of twistd itself: C{--logfile}, C{--syslog}, C{--prefix}, C{--nodaemon}, C{--logger}.
    @param later: has something called from the reactor's loop, for signals: C{callFromThread}.
    @param environment: of the process.
    @return: C{None} where the log is not ours: the administrator has named another C{--logger}, twistd will refuse to start,
        or it is C{twist}, which has options of its own for the log.
    """
    if "nodaemon" not in options or options.get("logger"):
        return None
    if options.get("syslog"):
        return LogOutput(syslogSink(str(options.get("prefix") or "ssa")), withTime=False)
    path, nodaemon = options.get("logfile"), options.get("nodaemon")
    if path == "-" and not nodaemon:
        return None
    if path == "-" or (nodaemon and not path):
        stream = sys.stdout
        journal = isJournal(stream, environment)
        return LogOutput(lineSink(stream, journal), withTime=not journal)
    file = LogFile.fromFullPath(path or "twistd.log")  # type: ignore[no-untyped-call]
    if not signal.getsignal(signal.SIGUSR1):  # as twistd has it: SIGUSR1 begins a new file
        signal.signal(signal.SIGUSR1, lambda number, frame: later(file.rotate))
    return LogOutput(lineSink(file))
