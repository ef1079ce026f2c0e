# SPDX-License-Identifier: MIT
"""
The intercepted process: runs cases and writes a line of JSON to a descriptor when one starts and when it ends.

C{python -m ssa.test.conformance.inner DESCRIPTOR MODULE CASE…}
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import unittest
from types import TracebackType
from typing import Any, TypeAlias

from ssa.test.conformance.peers import credential
from ssa.test.conformance.runner import PACKAGE, namesOf

ExcInfo: TypeAlias = (
    "tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]"
)


class Reporter(unittest.TestResult):
    """Tells the process outside about each case."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._process = os.getpid()
        self.outcome = ("ok", "")

    def tell(self, kind: str, **more: str) -> None:
        """Write one line; a forked child of a case that got here by mistake says nothing."""
        if os.getpid() != self._process:
            os._exit(99)
        data = memoryview(json.dumps({"kind": kind, **more}).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _set(self, kind: str, text: str) -> None:
        if self.outcome[0] in ("ok", "skip"):
            self.outcome = (kind, text)
        else:
            self.outcome = (self.outcome[0], (self.outcome[1] + "\n" + text)[:20000])

    def addFailure(self, test: unittest.TestCase, err: ExcInfo) -> None:
        super().addFailure(test, err)
        self._set("failure", self.failures[-1][1])

    def addError(self, test: unittest.TestCase, err: ExcInfo) -> None:
        super().addError(test, err)
        self._set("error", self.errors[-1][1])

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._set("skip", reason)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            text = (self.failures if issubclass(err[0], test.failureException) else self.errors)[-1][1]
            self._set("failure", f"{subtest}\n{text}")


def main(argv: list[str]) -> int:
    """Run the cases, each reported; the exit status says nothing."""
    descriptor, module, names = int(argv[0]), argv[1], argv[2:]
    os.set_inheritable(descriptor, False)
    imported = importlib.import_module(f"{PACKAGE}.{module}")
    limits = namesOf(imported)
    credential()  # two threads that asked for it first, at the same time, would make two roots of one name
    loader = unittest.defaultTestLoader
    reporter = Reporter(descriptor)
    lastClass: type[unittest.TestCase] | None = None
    for name in names:
        (case,) = loader.loadTestsFromName(name, imported)
        assert isinstance(case, unittest.TestCase)
        reporter.tell("start", case=name)
        reporter.outcome = ("ok", "")
        faulthandler.dump_traceback_later(limits[name], exit=False)
        if type(case) is not lastClass:
            if lastClass is not None:
                lastClass.tearDownClass()
                lastClass.doClassCleanups()
            type(case).setUpClass()
            lastClass = type(case)
        case.run(reporter)
        faulthandler.cancel_dump_traceback_later()
        reporter.tell(reporter.outcome[0], text=reporter.outcome[1])
    if lastClass is not None:
        lastClass.tearDownClass()
        lastClass.doClassCleanups()
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # threads of peers that wait for something do not keep the process
