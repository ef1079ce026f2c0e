# SPDX-License-Identifier: MIT
"""
L{ssa.cli}: the command line.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ssa
from ssa import cli
from ssa.intercept import launch
from ssa.version import __version__


class CommandLineTests(SynchronousTestCase):
    """
    What words become.
    """

    def usageError(self, *words: str) -> str:
        """What is printed for a wrong use."""
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            ended = self.assertRaises(SystemExit, cli.main, words)
        self.assertEqual(ended.code, 2)
        return errors.getvalue()

    def test_run(self) -> None:
        """Options of C{run} end at the program; the program's own are its own."""
        asked: list[launch.Options] = []

        def run(options: launch.Options) -> int:
            asked.append(options)
            return 7

        self.patch(launch, "run", run)
        config = self.mktemp()
        Path(config).write_text("[default]\n")
        full = os.path.abspath(config)
        for words, options in (
            (["ls", "-l"], launch.Options(("ls", "-l"))),
            (["--", "ls", "--", "-l"], launch.Options(("ls", "--", "-l"))),
            (["ls", "--", "x"], launch.Options(("ls", "--", "x"))),
            (["--", "--x", "--config", "y"], launch.Options(("--x", "--config", "y"))),
            (["--embedded", "--config", config, "ls"], launch.Options(("ls",), config=full, embedded=True)),
            (["--config", config, "ls"], launch.Options(("ls",), config=full, embedded=True)),
            (["--daemon=/s", "--way", "loopback", "ls"], launch.Options(("ls",), daemon="/s", way="loopback")),
            ([""], launch.Options(("",))),
        ):
            self.assertEqual(cli.main(["run", *words]), 7)
            self.assertEqual(asked.pop(), options)

    def test_badConfiguration(self) -> None:
        """A configuration with errors is not the program's problem: it is not started, and the errors are shown."""
        self.patch(launch, "run", lambda options: self.fail("started"))
        config = self.mktemp()
        Path(config).write_text("[default]\nMinProtocol = TLSv9\n")
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.assertEqual(cli.main(["run", "--config", config, "ls"]), launch.EXIT_OWN_FAILURE)
        self.assertIn(f"{os.path.abspath(config)}:2: [default] MinProtocol: ", errors.getvalue())

    def test_usageErrors(self) -> None:
        """Wrong uses end with status 2."""
        self.usageError()
        self.usageError("no-such-command")
        self.usageError("run", "--no-such-option", "ls")
        self.usageError("run", "--daemon", "/s", "--embedded", "ls")
        self.usageError("run", "--way", "magic", "ls")
        self.assertIn("--config is for", self.usageError("run", "--daemon", "/s", "--config", "f", "ls"))
        self.assertIn("PROGRAM is missing", self.usageError("run"))
        self.usageError("run", "--")

    def test_version(self) -> None:
        """C{--version} tells the version."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            self.assertRaises(SystemExit, cli.main, ["--version"])
        self.assertEqual(output.getvalue(), f"ssa {__version__}\n")

    def test_lazy(self) -> None:
        """Neither the command line nor the launcher loads Twisted: they start fast, and fork."""
        code = (
            "import sys, ssa.cli, ssa.__main__, ssa.intercept.launch, ssa.intercept.way\n"
            "print([name for name in sys.modules if name.split('.')[0] in ('twisted', 'OpenSSL', 'zope')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, cwd=Path(ssa.__file__).parent.parent,
        )  # fmt: skip
        self.assertEqual(done.stdout, "[]\n")
