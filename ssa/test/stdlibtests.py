# SPDX-License-Identifier: MIT
"""
Run tests of the interpreter's own C{test} package and write each one's result to a file.

This file is run by its path, by the interpreter that is tested, which may have none of the project's dependencies: it
imports the standard library only.  The file that it writes has one JSON array in each line: C{["start", ID]} or
C{[RESULT, ID, DETAIL]}; a test that takes the interpreter down with it is one that has started and has no result.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import tempfile
import unittest
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TextIO

_ErrorInformation = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

EXCLUDED = ("vsock", "VSOCK")
"""Tests with one of these in their names are left out: a private network namespace does not make VSOCK private."""

_DETAIL = 2000
"""The most characters of a failure's traceback that are kept, its end."""


class FileResult(unittest.TestResult):
    """Writes each result when it is there."""

    def __init__(self, out: TextIO) -> None:
        """
        @param out: where the lines go.
        """
        super().__init__()
        self._out = out
        self._failed = False

    def _write(self, *words: str) -> None:
        self._out.write(json.dumps(words) + "\n")
        self._out.flush()

    def _traceback(self, test: unittest.TestCase, error: _ErrorInformation) -> str:
        return str(self._exc_info_to_string(error, test))[-_DETAIL:]  # type: ignore[attr-defined]

    def startTest(self, test: unittest.TestCase) -> None:
        """A test begins."""
        super().startTest(test)
        self._failed = False
        self._write("start", test.id())

    def addSuccess(self, test: unittest.TestCase) -> None:
        """It has passed."""
        self._write("ok", test.id(), "")

    def addError(self, test: unittest.TestCase, err: _ErrorInformation) -> None:
        """It has raised something; the test may also be a class or a module that could not be set up."""
        self._failed = True
        self._write("error", test.id(), self._traceback(test, err))

    def addFailure(self, test: unittest.TestCase, err: _ErrorInformation) -> None:
        """An assertion of it has failed."""
        self._failed = True
        self._write("failure", test.id(), self._traceback(test, err))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        """It was not run."""
        self._write("skip", test.id(), reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: _ErrorInformation) -> None:
        """It has failed as it should."""
        self._write("expected failure", test.id(), "")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        """It has not failed as it should."""
        self._write("unexpected success", test.id(), "")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: _ErrorInformation | None) -> None:
        """A part of it has ended; only failures count, the test is then one too."""
        if err is not None:
            self._failed = True
            self._write("failure", test.id(), f"{subtest}\n{self._traceback(test, err)}"[-_DETAIL:])


def flattened(suite: unittest.TestSuite | unittest.TestCase) -> Iterator[unittest.TestCase]:
    """The tests of a suite, in order."""
    if isinstance(suite, unittest.TestSuite):
        for part in suite:
            yield from flattened(part)
    else:
        yield suite


def main(argv: Sequence[str]) -> int:
    """
    Run tests.

    @param argv: the path of the file to write, the name of a module, and the ids of the tests to run (none: all).
    @return: the exit status: 0 if they ran, whatever their results.
    """
    path, module, wanted = argv[0], argv[1], set(argv[2:])
    faulthandler.enable()
    from test import support
    from test.support import os_helper

    support.use_resources = []  # as `python -m test` without -u
    suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{module}")
    with open(path, "w", encoding="utf-8") as out, tempfile.TemporaryDirectory() as folder, os_helper.change_cwd(folder):
        result = FileResult(out)
        chosen = unittest.TestSuite(
            test
            for test in flattened(suite)
            if not any(word in test.id() for word in EXCLUDED) and (not wanted or test.id() in wanted)
        )
        chosen.run(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
