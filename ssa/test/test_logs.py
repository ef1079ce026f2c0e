# SPDX-License-Identifier: MIT
"""Tests of L{ssa.logs}: formats, levels, and where the log goes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import syslog
from typing import Any

from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ssa.logs import FORMATS, LEVELS, PROGRAM, LogOutput, forTwistd, isJournal, lineSink
from ssa.policy.profile import Policy, Profile
from ssa.service import keyLogs

_WHO: dict[str, Any] = {"executable": "/usr/bin/curl", "comm": "curl", "pid": 7, "uid": 1000}


class Logging(SynchronousTestCase):
    """A logger that writes to memory."""

    def setUp(self) -> None:
        self.file = io.StringIO()

    def output(self, level: str = "debug", format: str = "text", journal: bool = False) -> Logger:
        publisher = LogPublisher()
        self.log = LogOutput(lineSink(self.file, journal), level, format, withTime=not journal)
        publisher.addObserver(self.log)
        return Logger("ssa.example", observer=publisher)

    def lines(self) -> list[str]:
        text = self.file.getvalue()
        self.assertTrue(not text or text.endswith("\n"))
        return text.splitlines()


class FormatTests(Logging):
    """What a line looks like."""

    def test_text(self) -> None:
        """Time, source, level, message."""
        self.output().warn("{what} failed; " + PROGRAM, what="connect to a.example port 443", **_WHO)
        (line,) = self.lines()
        self.assertRegex(
            line,
            r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[ssa\.example#warn\] connect to a\.example port 443 failed;"
            r" program /usr/bin/curl \(curl\), pid 7, user 1000\Z",
        )

    def test_json(self) -> None:
        """One flat object in a line; what is no plain value is left out, the evidence is spread out."""
        log = self.output(format="json")
        evidence = {"alert_sent": "unknown_ca (48)", "pid": "9"}
        log.info("hello {name}", name="x\n\x1b[31m", evidence=evidence, thing=object(), **_WHO)
        (line,) = self.lines()
        self.assertTrue(line.isascii())
        found = json.loads(line)
        self.assertRegex(found.pop("time"), r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00\Z")
        self.assertEqual(
            found,
            {
                "level": "info",
                "logger": "ssa.example",
                "message": "hello x\n\x1b[31m",
                "name": "x\n\x1b[31m",
                "alert_sent": "unknown_ca (48)",
                **_WHO,
            },
        )
        self.assertEqual(list(json.loads(line))[:4], ["time", "level", "logger", "message"])

    def test_journal(self) -> None:
        """Each line has its priority, as sd-daemon(3) has it, and no time."""
        log = self.output(journal=True)
        for level in LEVELS:
            log.emit(LogLevel.lookupByName(level), "one\ntwo")
        self.assertEqual(
            self.lines(),
            [
                line
                for number, level in ((7, "debug"), (6, "info"), (4, "warn"), (3, "error"), (2, "critical"))
                for line in (f"<{number}>[ssa.example#{level}] one", f"<{number}>    two")
            ],
        )

    def test_oneEvent(self) -> None:
        """Nothing that is logged can look like another event, or command a terminal."""
        self.output().info("{comm}", comm="a\n2026-01-01T00:00:00+0000 [ssa#info] forged\r\x1b[2J\u202e")
        _, second = self.file.getvalue().rstrip("\n").split("\n")
        self.assertTrue(second.startswith("    2026"))
        self.assertTrue(second.endswith("forged\\r\\x1b[2J\\u202e"), second)

    def test_failure(self) -> None:
        """A traceback is part of its event, in both formats."""
        for each in FORMATS:
            log = self.output(format=each)
            try:
                raise ValueError("trouble")
            except ValueError:
                log.failure("it failed", Failure())
        self.assertIn("    builtins.ValueError: trouble", self.lines())
        found = json.loads(self.lines()[-1])
        self.assertEqual((found["message"], found["level"]), ("it failed", "critical"))
        self.assertIn("ValueError: trouble", found["traceback"])


class LevelTests(Logging):
    """What is written."""

    def test_levels(self) -> None:
        """What is below the level is not written."""
        for number, least in enumerate(LEVELS):
            self.file.truncate(0)
            self.file.seek(0)
            log = self.output(least)
            for level in LEVELS:
                log.emit(LogLevel.lookupByName(level), level)
            self.assertEqual([re.sub(r".*\] ", "", line) for line in self.lines()], list(LEVELS[number:]))

    def test_configure(self) -> None:
        """Level and format change while it is used; a wrong one changes nothing."""
        log = self.output("error")
        log.info("a")
        self.log.configure("info", "json")
        log.info("b")
        self.assertIn("debug, info, warn", str(self.assertRaises(ValueError, self.log.configure, "loud", "text")))
        self.assertIn("text and json", str(self.assertRaises(ValueError, self.log.configure, "debug", "xml")))
        log.debug("c")
        self.assertEqual([json.loads(line)["message"] for line in self.lines()], ["b"])

    def test_poorLocale(self) -> None:
        """A character that the stream cannot have is escaped, and nothing is lost."""
        data = io.BytesIO()
        stream = io.TextIOWrapper(data, encoding="ascii")
        LogOutput(lineSink(stream), withTime=False)({"log_level": LogLevel.info, "log_format": "cut\u2026"})
        self.assertEqual(data.getvalue(), b"[-#info] cut\\u2026\n")

    def test_brokenStream(self) -> None:
        """A log that cannot be written stops nobody."""
        log = self.output()
        self.file.close()
        log.info("nobody hears")


class PlaceTests(SynchronousTestCase):
    """Where the log goes, as twistd's command line says."""

    def test_ownLogger(self) -> None:
        """An administrator's own logger is left alone, and so is what twistd refuses."""
        for options in ({"logger": object(), "nodaemon": 1}, {"logfile": "-", "nodaemon": False}, {"log_file": "x"}):
            self.assertIsNone(forTwistd(options, lambda call: None))

    def test_standardOutput(self) -> None:
        """In the foreground it is standard output; in the journal, without the time."""
        path = self.mktemp()
        with open(path, "w+") as file:
            self.patch(sys, "stdout", file)
            output = forTwistd({"nodaemon": True}, lambda call: None, {})
            assert output is not None
            output({"log_level": LogLevel.info, "log_format": "here", "log_time": 0.0})
            status = os.stat(path)
            journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
            self.assertTrue(isJournal(file, journal))
            self.assertFalse(isJournal(file, {"JOURNAL_STREAM": "1:1"}))
            self.assertFalse(isJournal(io.StringIO(), journal))
            output = forTwistd({"nodaemon": True}, lambda call: None, journal)
            assert output is not None
            output({"log_level": LogLevel.warn, "log_format": "here", "log_time": 0.0})
        with open(path) as file:
            first, second = file.read().splitlines()
        self.assertRegex(first, r"^19\d\d|^1970")
        self.assertEqual(second, "<4>[-#warn] here")

    def test_syslog(self) -> None:
        """The system's log has a priority for each line."""
        lines: list[tuple[int, str]] = []
        opened: list[tuple[Any, ...]] = []
        self.patch(syslog, "openlog", lambda *arguments: opened.append(arguments))
        self.patch(syslog, "syslog", lambda priority, line: lines.append((priority, line)))
        output = forTwistd({"nodaemon": True, "syslog": True, "prefix": "ssa"}, lambda call: None)
        assert output is not None
        output({"log_level": LogLevel.error, "log_format": "one\ntwo", "log_time": 0.0})
        self.assertEqual(opened, [("ssa", syslog.LOG_PID, syslog.LOG_DAEMON)])
        self.assertEqual(lines, [(syslog.LOG_ERR, "[-#error] one"), (syslog.LOG_ERR, "    two")])

    def test_file(self) -> None:
        """A file, which SIGUSR1 rotates."""
        before = signal.getsignal(signal.SIGUSR1)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        path = os.path.abspath(self.mktemp())
        calls: list[Any] = []
        output = forTwistd({"logfile": path, "nodaemon": False}, calls.append)
        assert output is not None
        output({"log_level": LogLevel.info, "log_format": "before", "log_time": 0.0})
        os.kill(os.getpid(), signal.SIGUSR1)
        (rotate,) = calls
        rotate()
        output({"log_level": LogLevel.info, "log_format": "after", "log_time": 0.0})
        with open(path) as new, open(path + ".1") as old:
            self.assertEqual(["after" in new.read(), "before" in old.read()], [True, True])


class KeyLogListTests(SynchronousTestCase):
    """Which key logs a policy turns on."""

    def test_none(self) -> None:
        """None by default."""
        self.assertEqual(keyLogs(Policy()), [])
        self.assertEqual(keyLogs(Policy(Profile(keyLogFile="/k"))), [("default", "/k")])
