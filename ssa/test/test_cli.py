# SPDX-License-Identifier: MIT
"""
L{ssa.cli}: the command line.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ssa
from ssa import cli
from ssa.intercept import launch
from ssa.test.pki import testCA
from ssa.version import __version__

NOBODY = 65534


class CommandLineTests(SynchronousTestCase):
    """
    What words become.

    @ivar machines: what is the machine's configuration.
    """

    machines = "/nonexistent/ssa.conf"

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

    def unreadable(self) -> tuple[str, str]:
        """A configuration whose private key nobody but root may read, and the error of it."""
        folder = tempfile.mkdtemp()  # trial's own folders cannot be entered by others
        self.addCleanup(shutil.rmtree, folder)
        os.chmod(folder, 0o755)
        credential = testCA().issue()
        for name, data in (("cert.pem", credential.chainPEM), ("key.pem", credential.keyPEM)):
            Path(folder, name).write_bytes(data)
        os.chmod(f"{folder}/key.pem", 0)
        config = f"{folder}/ssa.conf"
        Path(config).write_text(f"[default]\nCertPath = {folder}/cert.pem\nKeyPath = {folder}/key.pem\n")
        return config, f"{config}:3: [default] KeyPath: {folder}/key.pem: Permission denied\n"

    def ranAsUser(self, config: str) -> tuple[int, str]:
        """The exit status and the errors of C{ssa run} for an ordinary user."""
        ordinary: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        code = (
            "import sys; from ssa import cli; from ssa.intercept import launch; launch.run = lambda options: 7;"
            "cli.DEFAULT_FILE = sys.argv[2]; sys.exit(cli.main(['run', '--config', sys.argv[1], 'ls']))"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(ssa.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            ran = subprocess.run(
                [sys.executable, "-c", code, config, self.machines],
                cwd="/", env=environment, capture_output=True, text=True, check=False, **ordinary,
            )  # fmt: skip
        except PermissionError as error:
            raise SkipTest(f"an ordinary user cannot start {sys.executable}") from error
        return ran.returncode, ran.stderr

    def test_unreadable(self) -> None:
        """A user names a configuration with a key of root's: the program is not started, and what to do is said."""
        config, error = self.unreadable()
        hint = "ssa run: with --config FILE, you must be able to read every file that FILE names\n"
        self.assertEqual((launch.EXIT_OWN_FAILURE, error + hint), self.ranAsUser(config))
        # Nothing of the kind helps against another error.
        with open(config, "a") as file:
            file.write("X = 1\n")
        status, errors = self.ranAsUser(config)
        self.assertEqual((launch.EXIT_OWN_FAILURE, 1), (status, len(errors.splitlines())))
        self.assertIn(f"{config}:4: [default] X: ", errors)

    def test_unreadableMachines(self) -> None:
        """So is who names the machine's configuration; it holds without being named."""
        config, error = self.unreadable()
        self.machines = config
        link = config + ".link"
        os.symlink(config, link)
        status, errors = self.ranAsUser(config)
        self.assertEqual(launch.EXIT_OWN_FAILURE, status)
        self.assertTrue(errors.startswith(f"{error}ssa run: leave --config away: {config} holds without it too, "), errors)
        self.assertIn("leave --config away", self.ranAsUser(link)[1])

    def said(self, *words: str) -> tuple[int, str, str]:
        """The exit status, and what is printed."""
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = cli.main(words)
        return status, output.getvalue(), errors.getvalue()

    def test_check(self) -> None:
        """A good file is silent; errors are lines on standard error, those of the files that it names too."""
        config = os.path.abspath(self.mktemp())
        Path(config).write_text("[default]\nMaxSockets = 5\n")
        self.assertEqual((0, "", ""), self.said("check", config))
        Path(config).write_text("[default]\nTrustStoreLocation = /nonexistent/roots.pem\n")
        problem = "the trust store /nonexistent/roots.pem cannot be read: No such file or directory"
        self.assertEqual((1, "", f"{config}:2: [default] TrustStoreLocation: {problem}\n"), self.said("check", config))
        self.assertEqual((1, "", f"{config}x: there is no such file\n"), self.said("check", config + "x"))

    def test_explain(self) -> None:
        """What holds for whom; each question that cannot be answered says why."""
        config = os.path.abspath(self.mktemp())
        Path(config).write_text(
            "[profile web]\nApplication = /usr/bin/x\nUser = 77\nDestination = [::1]:443 a.example 192.0.2.1\nAccess = deny\n"
        )
        for words, denied in (
            ((), False),
            (("--application", "/usr/bin/x", "--user", "77", "--destination", "[::1]:443"), True),
            (("--application", "/usr/bin/x", "--user", "77", "--destination", "[::1]:444"), False),
            (("--application", "/usr/bin/x", "--user", "77", "--destination", "A.example:1"), True),
            (("--application", "/usr/bin/x", "--user", "77", "--destination", "b:1", "--address", "192.0.2.1"), True),
            (("--application", "/usr/bin/x", "--user", "root", "--destination", "a.example:1"), False),
            (("--application", "/usr/bin/y", "--user", "77", "--destination", "a.example:1"), False),
        ):
            status, output, errors = self.said("explain", *words, config)
            self.assertEqual((0, ""), (status, errors))
            (line,) = (line for line in output.splitlines() if line.startswith("Access"))
            self.assertEqual("deny" if denied else "allow", line.split()[2], words)
            self.assertEqual(f"{config}:5 [profile web]" if denied else "default", line.partition("# ")[2])
        wrong: tuple[tuple[tuple[str, ...], str], ...] = (
            (("--user", "no-such-user"), "--user: there is no user 'no-such-user'"),
            (("--destination", "a.example"), "--destination: 'a.example' is not HOST:PORT, with a port from 1 to 65535"),
            (("--destination", "::1:443"), "an IPv6 address is written as [ADDRESS]:PORT"),
            (("--destination", "a:0"), "with a port from 1 to 65535"),
            (("--application", "x"), "--application: 'x' is no absolute path"),
            (("--address", "x"), "--address: 'x' does not appear to be"),
            (("--destination", "[x]:1"), "--destination: '[x]:1' is not [ADDRESS]:PORT"),
            (("--user", "4294967295"), "--user: '4294967295' is no number of a user"),
            (("--user", "1" * 5000), "is no number of a user"),
        )
        for arguments, problem in wrong:
            status, output, errors = self.said("explain", *arguments, config)
            self.assertEqual((2, ""), (status, output))
            self.assertIn(problem, errors)
        Path(config).write_text("[default]\nX = 1\n")
        self.assertEqual((1, "", f"{config}:2: [default] X: there is no such key\n"), self.said("explain", config))

    def test_seenEnough(self) -> None:
        """Who reads only the first lines gets no traceback."""
        for words in (["explain"], ["doctor"], ["--help"]):
            reader, writer = os.pipe()
            os.close(reader)
            with open(writer, "wb") as output:
                ran = subprocess.run([sys.executable, "-m", "ssa", *words], stdout=output, stderr=subprocess.PIPE, check=False)
            self.assertEqual((1, b""), (ran.returncode, ran.stderr), words)

    def test_usageErrors(self) -> None:
        """Wrong uses end with status 2."""
        self.usageError()
        self.usageError("no-such-command")
        self.usageError("run", "--no-such-option", "ls")
        self.usageError("run", "--daemon", "/s", "--embedded", "ls")
        self.usageError("run", "--way", "magic", "ls")
        self.assertIn("--config is for", self.usageError("run", "--daemon", "/s", "--config", "f", "ls"))
        for words in ("run",), ("run", "--daemon", "/s", "--config", "f", "ls"):
            self.assertIn("usage: ssa run [", self.usageError(*words))
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
