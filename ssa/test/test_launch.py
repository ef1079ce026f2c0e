# SPDX-License-Identifier: MIT
"""
L{ssa.intercept.launch} and L{ssa.intercept.program}: the processes around a program, with real processes, signals and a
terminal, but without a filter and with a supervisor that serves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ssa
from ssa.intercept.launch import describeFailure, releaseDescriptors

_SECONDS = 20.0
"""How long anything in these tests may take."""

_LAUNCHER = """
import os, selectors, sys
from ssa.intercept.launch import launch

class Reactor:
    def __init__(self):
        self.selector = selectors.DefaultSelector()
    def addReader(self, reader):
        self.selector.register(reader.fileno(), selectors.EVENT_READ, reader)
    def removeReader(self, reader):
        self.selector.unregister(reader.fileno())

def supervise(program):
    if os.environ.get("TEST_REFUSE"):
        program.refuse("no daemon: start one")
    if os.environ.get("TEST_BREAK"):
        raise ValueError("broken")
    reactor = Reactor()
    if not program.start():
        return
    program.attach(reactor)
    while program.status is None:
        for key, _ in reactor.selector.select():
            key.data.doRead()
    # The program's orphans go on, and so does the supervisor.
    for name in filter(None, [os.environ.get("TEST_LINGER")]):
        with open(name) as pipe:
            pipe.read()

def installFilter():
    if os.environ.get("TEST_BUSY"):
        raise OSError(16, "a notifier is there already")
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

sys.exit(launch(sys.argv[1:], installFilter, supervise))
"""


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(ssa.__file__).parent.parent), **more}


def _state(pid: int) -> str:
    """A process's state letter, empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class LaunchTests(SynchronousTestCase):
    """
    What a program and the one who started it see of each other.
    """

    def setUp(self) -> None:
        self.script = self.mktemp()
        Path(self.script).write_text(_LAUNCHER)
        self.script = os.path.abspath(self.script)

    def launch(self, *argv: str, more: dict[str, str] | None = None) -> list[str]:
        """The command that runs a program under the launcher."""
        settings = [f"{key}={value}" for key, value in (more or {}).items()]
        return ["env", *settings, sys.executable, self.script, *argv]

    def run_(self, *argv: str, **keywords: object) -> subprocess.CompletedProcess[str]:
        more = keywords.pop("more", None)
        assert more is None or isinstance(more, dict)
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            self.launch(*argv, more=more),
            **{
                "capture_output": True,
                "text": True,
                "timeout": _SECONDS,
                "env": _environment(),
                **keywords,
            },
        )

    @contextlib.contextmanager
    def started(self, code: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """A shell script under the launcher; its first line of output is its process."""
        process = subprocess.Popen(
            self.launch("sh", "-c", f"echo $$; {code}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
            start_new_session=True,
        )
        assert process.stdout is not None and process.stderr is not None
        program = 0
        try:
            program = int(process.stdout.readline())
            yield process, program
        finally:
            for pid in (process.pid, program):
                with contextlib.suppress(ProcessLookupError):
                    if pid:
                        os.kill(pid, signal.SIGKILL)
            process.wait(_SECONDS)
            process.stdout.close()
            process.stderr.close()

    def waitFor(self, condition: str, pid: int) -> None:
        """Until a process's state matches a pattern."""
        deadline = time.monotonic() + _SECONDS
        while not re.fullmatch(condition, _state(pid)):
            if time.monotonic() > deadline:
                self.fail(f"process {pid} is in state {_state(pid)!r}, not {condition!r}")
            time.sleep(0.005)

    def test_exitStatus(self) -> None:
        """The program's exit status is the launcher's."""
        for status in (0, 3, 255):
            self.assertEqual(self.run_("sh", "-c", f"exit {status}").returncode, status)

    def test_killed(self) -> None:
        """A program that a signal ends gives 128 + its number."""
        self.assertEqual(self.run_("sh", "-c", "kill -KILL $$").returncode, 128 + 9)
        self.assertEqual(self.run_("sh", "-c", "kill -PIPE $$").returncode, 128 + 13)

    def test_notFound(self) -> None:
        """A program that is not there: 127, in the shell's words."""
        done = self.run_("no-such-program")
        self.assertEqual((done.returncode, done.stderr), (127, "ssa: no-such-program: command not found\n"))
        done = self.run_("./no-such-program")
        self.assertEqual((done.returncode, done.stderr), (127, "ssa: ./no-such-program: No such file or directory\n"))
        self.assertEqual(self.run_("").returncode, 127)

    def test_notExecutable(self) -> None:
        """A program that may not be executed: 126."""
        done = self.run_(self.script)
        self.assertEqual((done.returncode, done.stderr), (126, f"ssa: {self.script}: Permission denied\n"))
        self.assertEqual(self.run_("/").returncode, 126)

    def test_scriptWithoutInterpreter(self) -> None:
        """A file without a format known to the kernel is run by the shell, as execvp(3) does."""
        script = Path(self.mktemp()).absolute()
        script.write_text('echo "$1"; exit 4\n')
        script.chmod(0o755)
        done = self.run_(str(script), "argument")
        self.assertEqual((done.returncode, done.stdout), (4, "argument\n"))

    def test_refused(self) -> None:
        """When interception fails, the program is not run."""
        for how, text in (
            ("TEST_REFUSE", "no daemon: start one"),
            ("TEST_BUSY", "a notifier is there already"),
            ("TEST_BREAK", "the supervisor could not start: broken"),
        ):
            done = self.run_("echo", "run", more={how: "1"})
            self.assertEqual((done.returncode, done.stdout), (125, ""))
            self.assertTrue(done.stderr.endswith(f"ssa: {text}\n"), done.stderr)

    def test_standardStreams(self) -> None:
        """Standard input reaches the program, and its end too."""
        done = self.run_("cat", input="text\n" * 50_000)
        self.assertEqual(done.stdout, "text\n" * 50_000)

    def test_brokenPipe(self) -> None:
        """Nobody but the program keeps its input open: a writer sees when it stops reading."""
        line = " ".join([sys.executable, self.script, "head", "-1"])
        done = subprocess.run(
            ["bash", "-c", f"yes | {line}; echo ${{PIPESTATUS[*]}}"],
            capture_output=True, text=True, timeout=_SECONDS, env=_environment(), check=False,
        )  # fmt: skip
        self.assertIn(done.stdout, ("y\n141 0\n", "y\n1 0\n"))

    def test_closedStandardStreams(self) -> None:
        """Standard descriptors that were closed are closed in the program."""
        line = " ".join([sys.executable, self.script, "sh", "-c", "'ls /proc/self/fd >&2'"])
        done = subprocess.run(
            ["bash", "-c", f"{line} <&- >&-"],
            capture_output=True, text=True, timeout=_SECONDS, env=_environment(), check=False,
        )  # fmt: skip
        self.assertNotIn("1\n", done.stderr.splitlines(keepends=True), done.stderr)

    def test_otherDescriptors(self) -> None:
        """Descriptors beyond the standard ones reach the program, and no others do."""
        with tempfile.TemporaryFile() as file:
            file.write(b"from descriptor")
            file.seek(0)
            number = file.fileno()
            # bash: other shells take one digit only
            done = self.run_("bash", "-c", f"cat <&{number}; ls /proc/self/fd", pass_fds=(number,))
        self.assertTrue(done.stdout.startswith("from descriptor"))
        # ls has one of its own, for the directory
        plain = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, check=True).stdout.split()
        self.assertEqual(len(done.stdout[len("from descriptor") :].split()), len(plain) + 1)

    def test_environment(self) -> None:
        """The environment is as it was, even where Python coerces its locale."""
        done = self.run_("env", env={"PYTHONPATH": _environment()["PYTHONPATH"], "PATH": os.environ["PATH"]})
        self.assertEqual({line.partition("=")[0] for line in done.stdout.splitlines()}, {"PATH", "PYTHONPATH"})

    def test_workingDirectory(self) -> None:
        """The program starts where the launcher was started."""
        self.assertEqual(self.run_("pwd", cwd="/usr").stdout, "/usr\n")

    def test_signalState(self) -> None:
        """Mask and dispositions are as inherited; those that Python sets for itself are default."""
        grep = ["grep", "-E", "'Sig(Blk|Ign)'", "/proc/self/status"]
        for ignored in ((), (signal.SIGINT, signal.SIGHUP)):
            trap = "".join(f"trap '' {int(number)}; " for number in ignored)
            states = []
            for command in (grep, [sys.executable, self.script, *grep]):
                done = subprocess.run(
                    ["bash", "-c", trap + " ".join(command)],
                    capture_output=True, text=True, timeout=_SECONDS, env=_environment(), check=False,
                )  # fmt: skip
                states.append([int(line.split()[1], 16) for line in done.stdout.splitlines()])
            plain, launched = states
            plain[1] &= ~sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))
            self.assertEqual(launched, plain)
            for number in ignored:
                self.assertTrue(launched[1] & 1 << (number - 1))

    def test_orphansDoNotDelay(self) -> None:
        """The launcher ends with the program; what the program left behind keeps no pipe open through the supervisor."""
        fifo = self.mktemp()
        os.mkfifo(fifo)
        begun = time.monotonic()
        done = self.run_(
            "sh", "-c", f"(exec >/dev/null 2>&1; read line <{fifo}) & echo out",
            more={"TEST_LINGER": os.path.abspath(fifo)},
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stdout), (0, "out\n"))
        self.assertLess(time.monotonic() - begun, _SECONDS / 2)
        with open(fifo, "w") as pipe:  # lets both end
            pipe.write("line\n")

    def test_signalsArePassedOn(self) -> None:
        """A signal sent to the launcher alone reaches the program, once."""
        code = 'trap "echo USR1" USR1; trap "echo TERM; exit 5" TERM; echo ready; while :; do sleep 0.01; done'
        with self.started(code) as (process, _program):
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), "ready\n")
            process.send_signal(signal.SIGUSR1)
            self.assertEqual(process.stdout.readline(), "USR1\n")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.stdout.read(), "TERM\n")
            self.assertEqual(process.wait(_SECONDS), 5)

    def test_terminated(self) -> None:
        """SIGTERM to the launcher ends a program that does not catch it."""
        with self.started("exec sleep 100") as (process, program):
            self.waitFor("S", program)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(_SECONDS), 128 + signal.SIGTERM)

    def test_programSignalsItsGroup(self) -> None:
        """A signal that the program sends to its whole group is not given to it twice."""
        code = 'n=0; trap "n=\\$((n+1))" USR1; kill -USR1 0; sleep 0.2; echo $n'
        with self.started(code) as (process, _program):
            assert process.stdout is not None
            self.assertEqual(process.stdout.read(), "1\n")
            self.assertEqual(process.wait(_SECONDS), 0)

    def test_stopAndContinue(self) -> None:
        """The launcher stops and continues with the program."""
        with self.started("exec sleep 100") as (process, program):
            self.waitFor("S", program)
            for _ in range(20):
                os.kill(program, signal.SIGSTOP)
                self.waitFor("T", program)
                os.kill(program, signal.SIGCONT)
                self.waitFor("S", program)
            self.waitFor("S", process.pid)
            process.send_signal(signal.SIGKILL)
            self.waitFor("", program)

    def test_frontKilled(self) -> None:
        """SIGKILL to the launcher kills the program too."""
        with self.started("exec sleep 100") as (process, program):
            self.waitFor("S", program)
            process.kill()
            self.waitFor("", program)

    def test_supervisorKilled(self) -> None:
        """The launcher still mirrors the program when the supervisor is gone."""
        with self.started("echo $PPID; trap 'exit 6' TERM; while :; do sleep 0.01; done") as (process, program):
            assert process.stdout is not None and process.stderr is not None
            os.kill(int(process.stdout.readline()), signal.SIGKILL)
            self.assertIn("supervisor was killed", process.stderr.readline())
            self.waitFor("[SR]", program)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(_SECONDS), 6)


class TerminalTests(SynchronousTestCase):
    """
    A program under the launcher in a terminal, in an interactive shell with job control.
    """

    def setUp(self) -> None:
        script = Path(self.mktemp()).absolute()
        script.write_text(_LAUNCHER)
        self.command = f"{sys.executable} {script}"
        self.master, slave = os.openpty()
        settings = termios.tcgetattr(slave)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        self.output = b""
        self.shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "--noediting", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=_environment(PS1="", PS2="", HISTFILE=""),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.addCleanup(self.end)

    def end(self) -> None:
        """Hang up: the shell ends its jobs."""
        self.shell.kill()
        self.shell.wait(_SECONDS)
        os.close(self.master)

    def type(self, text: str) -> None:
        """Type into the terminal."""
        os.write(self.master, text.encode())

    def expect(self, pattern: str) -> re.Match[bytes]:
        """Read until a pattern appears; what comes before it is gone."""
        deadline = time.monotonic() + _SECONDS
        while not (found := re.search(pattern.encode(), self.output)):
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.fail(f"no {pattern!r} in {self.output!r}")
            self.output += os.read(self.master, 4096)
        self.output = self.output[found.end() :]
        return found

    def suspend(self) -> None:
        """Type Ctrl-Z once the job has the terminal and runs: before, it would be the shell's."""
        deadline = time.monotonic() + _SECONDS
        while (group := os.tcgetpgrp(self.master)) == self.shell.pid or _state(group) != "S":
            if time.monotonic() > deadline:
                self.fail("the job does not get the terminal")
            time.sleep(0.005)
        self.type("\x1a")
        self.expect("Stopped")

    def test_interrupt(self) -> None:
        """Ctrl-C ends the program; the shell sees 130."""
        self.type(f"{self.command} sh -c 'echo go; exec sleep 100'; echo status $?\n")
        self.expect("go\r\n")
        self.type("\x03")
        self.expect("status 130")

    def test_interruptCaughtOnce(self) -> None:
        """A program that catches Ctrl-C gets it once."""
        code = 'n=0; trap "n=\\$((n+1))" INT; echo go; while [ $n = 0 ]; do sleep 0.01; done; sleep 0.2; echo caught $n'
        self.type(f"{self.command} sh -c '{code}'\n")
        self.expect("go\r\n")
        self.type("\x03")
        self.expect("caught 1\r\n")

    def test_suspend(self) -> None:
        """Ctrl-Z stops the job; fg and bg continue it, as often as one likes."""
        self.type(f"{self.command} sh -c 'echo go; read line; echo got $line; exit 7'\n")
        self.expect("go\r\n")
        for _ in range(3):
            self.suspend()
            self.type("echo status $?\n")
            self.expect("status 148")
            self.type("fg\n")
            self.expect("echo go; read line.*\r\n")
        self.suspend()
        self.type("bg; until jobs | grep Stopped; do sleep 0.01; done\n")
        self.expect("Stopped")  # it reads from the terminal in the background
        self.type("fg\n")
        self.expect("echo go; read line.*\r\n")
        self.type("words\n")
        self.expect("got words\r\n")
        self.type("echo status $?\n")
        self.expect("status 7")

    def test_killStopped(self) -> None:
        """A stopped program that is killed ends the job."""
        self.type(f"{self.command} sh -c 'echo pid $$; exec sleep 100'\n")
        pid = int(self.expect("pid (\\d+)\r\n")[1])
        self.suspend()
        os.kill(pid, signal.SIGKILL)
        self.type("until jobs | grep -v Stopped; do sleep 0.01; done\n")
        self.expect("Exit 137")

    def test_background(self) -> None:
        """A background job ends with its status, and does not disturb the terminal."""
        self.type(f"{self.command} sh -c 'exit 9' & wait $!; echo status $?\n")
        self.expect("status 9")

    def test_windowSize(self) -> None:
        """A change of the window's size reaches the program once."""
        self.type(f"{self.command} sh -c 'trap \"echo resized\" WINCH; echo go; while :; do sleep 0.01; done'\n")
        self.expect("go\r\n")
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, b"\x20\0\x60\0\0\0\0\0")
        self.expect("resized\r\n")
        self.type("\x03echo end\n")
        self.expect("end\r\n")
        self.assertNotIn(b"resized", self.output)


class PieceTests(SynchronousTestCase):
    """
    Parts that need no processes of their own.
    """

    def test_describeFailure(self) -> None:
        """Each errno of execve has its exit status."""
        self.assertEqual(describeFailure("x", errno.ENOENT), (127, "x: command not found"))
        self.assertEqual(describeFailure("x", errno.E2BIG), (126, "x: Argument list too long"))

    def test_releaseDescriptors(self) -> None:
        """Only the kept descriptors and standard error stay."""
        code = (
            "import os; from ssa.intercept.launch import releaseDescriptors\n"
            "kept, other = os.pipe()\n"
            "releaseDescriptors([kept])\n"
            "os.fstat(kept)\n"
            "try: os.fstat(other)\n"
            "except OSError: os.write(2, os.readlink('/proc/self/fd/0').encode())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=False
        )
        self.assertEqual(done.stderr, "/dev/null")
        self.assertTrue(callable(releaseDescriptors))
