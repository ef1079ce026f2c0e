# SPDX-License-Identifier: MIT
"""
Real programs for tests: started with a deadline, listened to line by line, ended by their process id.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from twisted.trial.unittest import SkipTest

import ssa
from ssa.intercept.way import CannotIntercept, chooseWay

SECONDS = 30.0
"""How long anything in a test may take."""

ROOT = Path(ssa.__file__).parent.parent
"""The source tree, or where the package is installed."""


def environment() -> dict[str, str]:
    """This process's environment, in which programs find this C{ssa}."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def underSSA(*command: str, way: str = "auto") -> list[str]:
    """The command that runs a program under C{ssa run} with a daemon of its own."""
    return [sys.executable, "-m", "ssa", "run", "--embedded", "--way", way, "--", *command]


@lru_cache(maxsize=8)
def _unavailable(way: str) -> str:
    try:
        chooseWay(way)
    except CannotIntercept as problem:
        return str(problem)
    return ""


def needWay(way: str = "auto") -> None:
    """Skip the test where sockets cannot be intercepted in this way."""
    problem = _unavailable(way)
    if problem:
        raise SkipTest(problem)


def need(program: str) -> str:
    """The path of an installed program; skips the test where it is not."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        raise SkipTest(f"{program} is not installed")
    return path


class Running:
    """
    A program that runs.

    @ivar output: all lines that it has written so far, standard error included.
    """

    def __init__(self, command: Sequence[str], cwd: str | None = None) -> None:
        """
        @param command: the program and its arguments.
        """
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            env=environment(),
        )
        self.output: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def expect(self, pattern: str, seconds: float = SECONDS) -> re.Match[str]:
        """
        Wait for a line.

        @param pattern: a regular expression that is searched in each line.
        @raise AssertionError: the program has ended without it, or the time is over.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {seconds} s: {self.output}") from None
            if line is None:
                raise AssertionError(f"ended without {pattern!r}: {self.output}")
            self.output.append(line)
            match = re.search(pattern, line)
            if match is not None:
                return match

    def stop(self) -> None:
        """End the program, and wait for it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self._reader.join(SECONDS)
        self.process.stdout.close()


@contextlib.contextmanager
def running(*command: str, cwd: str | None = None) -> Iterator[Running]:
    """Run a program for the time of a C{with} statement."""
    program = Running(command, cwd)
    try:
        yield program
    finally:
        program.stop()


def run(*command: str, input: str = "", more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """
    Run a program to its end.

    @param input: its standard input.
    @param more: additions to its environment.
    @raise subprocess.TimeoutExpired: it has taken more than L{SECONDS}.
    """
    return subprocess.run(
        command,
        input=input,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
        env={**environment(), **(more or {})},
    )


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended (proc(5))."""
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        found += [int(word) for word in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return found


def freePort() -> int:
    """A port of the loopback interface that nobody listened on a moment ago: for programs that cannot choose one."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def waitForPort(program: Running, port: int) -> None:
    """
    Wait until a program accepts connections.

    @raise AssertionError: it has ended, or the time is over.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if program.process.poll() is not None or time.monotonic() > deadline:
            program.stop()
            raise AssertionError(f"port {port} does not answer: {program.output}")
        time.sleep(0.01)
