# SPDX-License-Identifier: MIT
"""C{ssa run} as a user starts it, for tests that need the whole system: with deadlines, and ended with the test."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ssa.test.pki import Credential, testCA

DEADLINE = 20.0
"""Seconds for what takes milliseconds on an idle machine."""

PRELUDE = """
import errno, os, select, socket, struct, sys, time
CA = os.environ["SSA_TEST_CA"]
CHAIN = os.environ["SSA_TEST_CHAIN"]
KEY = os.environ["SSA_TEST_KEY"]

def say(*words):
    print(*words, flush=True)

def client():
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 205)
    sock.setsockopt(205, 87, CA.encode())
    return sock

def listener(port=0):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 205)
    sock.setsockopt(205, 88, CHAIN.encode())
    sock.setsockopt(205, 89, KEY.encode())
    sock.bind(("127.0.0.1", port))
    sock.listen(8)
    return sock

def attempt(call, *arguments):
    begin = time.monotonic()
    try:
        result = call(*arguments)
    except OSError as error:
        result = errno.errorcode[error.errno]
    return result, time.monotonic() - begin
"""
"""What every script of a test program begins with."""


def testCredential() -> Credential:
    """A certificate for the loopback addresses."""
    return testCA().issue(("localhost", "127.0.0.1", "::1"))


class Session:
    """
    A running C{ssa run}.

    @ivar process: the front.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._buffer = b""

    def line(self, deadline: float = DEADLINE) -> str:
        """
        The next line of the program's output.

        @raise AssertionError: none comes in time, or the output has ended.
        """
        assert self.process.stdout is not None
        end = time.monotonic() + deadline
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                why = "the output ended" if ready else f"nothing within {deadline} s"
                raise AssertionError(f"no line: {why}; so far {self._buffer!r}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def tell(self, text: str) -> None:
        """Write a line to the program's standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def pid(self, name: str) -> int:
        """The process of this session with a name: C{ssa-supervisor}, C{ssa-daemon}, C{ssa-network}."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            for pid in self.processes():
                try:
                    if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                        return pid
                except OSError:
                    continue
        raise AssertionError(f"there is no process {name}")

    def processes(self) -> list[int]:
        """All processes of this session."""
        parents: dict[int, int] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def wait(self, deadline: float = DEADLINE) -> int:
        """The exit status; C{AssertionError} where it does not end in time."""
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"ssa run did not end within {deadline} s") from error

    def end(self) -> None:
        """Kill what is left."""
        if self.process.poll() is None:
            for pid in reversed(self.processes()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: proc_pid_status(5), SigCgt."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(path) == 0


class SessionTestCase(SynchronousTestCase):
    """Tests that start C{ssa run}."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ssa-test-"))
        os.chmod(self.directory, 0o755)
        self.addCleanup(self._removeDirectory)
        credential = testCredential()
        self.environment = dict(os.environ)
        files = {"CA": testCA().pem, "CHAIN": credential.chainPEM, "KEY": credential.keyPEM}
        for name, content in files.items():
            path = self.directory / f"{name.lower()}.pem"
            path.write_bytes(content)
            self.environment[f"SSA_TEST_{name}"] = str(path)
        root = str(Path(__file__).resolve().parent.parent.parent)
        self.environment["PYTHONPATH"] = root

    def _removeDirectory(self) -> None:
        for path in self.directory.iterdir():
            path.unlink()
        self.directory.rmdir()

    def startDaemon(self, *options: str, log: str = "-") -> subprocess.Popen[bytes]:
        """
        Start C{twistd ssa}; returns when it listens at C{socketPath}, and stops as it should on SIGTERM.

        @param options: of its command line.
        @param log: the file for its warnings and errors.
        """
        self.socketPath = str(self.directory / "daemon.sock")
        twist = [sys.executable, "-m", "twisted", "--log-level=warn", f"--log-file={log}"]
        command = [*twist, "ssa", "--socket", self.socketPath, *options]
        process = subprocess.Popen(command, env=self.environment, cwd=self.environment["PYTHONPATH"])

        def stop() -> None:
            if process.poll() is None:
                process.terminate()
                process.wait(DEADLINE)

        self.addCleanup(stop)
        end = time.monotonic() + DEADLINE
        while not (_answers(self.socketPath) and _catches(process.pid, signal.SIGTERM)):
            if time.monotonic() > end:
                raise AssertionError("the daemon does not listen")
            select.select([], [], [], 0.01)
        return process

    def command(self, *options: str) -> list[str]:
        """How this interpreter starts C{ssa run}."""
        return [sys.executable, "-m", "ssa", "run", *options, "--"]

    def start(self, script: str, *arguments: str, options: Sequence[str] = (), limit: int = 0) -> Session:
        """
        Run a Python program under interception.

        @param script: its text; L{PRELUDE} comes before it.
        @param limit: RLIMIT_NOFILE, soft and hard, or 0.
        """
        path = self.directory / f"program{len(list(self.directory.iterdir()))}.py"
        path.write_text(PRELUDE + textwrap.dedent(script))
        command = [*self.command(*options), sys.executable, str(path), *arguments]
        if limit:
            command = ["sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', *command]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
        )
        session = Session(process)
        self.addCleanup(session.end)
        return session
