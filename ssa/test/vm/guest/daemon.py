# SPDX-License-Identifier: MIT
"""The daemon of a scenario: a real C{twistd ssa} that serves the kernel module, and that can be made to misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from ssa.test.conformance.kernel import START_SECONDS, canMakeSockets

STOP_SECONDS = 60.0
"""How long it may take to end when it is asked to."""

_DIRECTORY = Path("/run/ssa-guest")


def environment() -> Mapping[str, str]:
    """
    The daemon's and other programs' environment.

    Unlike the machine's, it lets Python keep what it has compiled, which makes the second start six times faster; the
    guest's files are its own.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Daemon:
    """
    The daemon.

    @ivar pid: its process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._process is not None:
            self.resume()
            self.stop()

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    def launch(self) -> None:
        """Start it, and do not wait."""
        assert self._process is None, "the daemon runs already"
        _DIRECTORY.mkdir(mode=0o700, exist_ok=True)
        command = [sys.executable, "-m", "twisted", "--log-level=warn", "ssa", "--socket", str(_DIRECTORY / "daemon.sock")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment())

    def start(self) -> None:
        """
        Start it and wait until it serves the module.

        @raise AssertionError: it does not.
        """
        self.launch()
        self.awaitService()

    def ensure(self) -> None:
        """Let it serve, whatever has happened to it."""
        if self._process is None:
            self.start()
        else:
            self.resume()
            self.awaitService()

    def awaitService(self) -> None:
        """
        Wait until it serves the module.

        @raise AssertionError: it does not.
        """
        deadline = time.monotonic() + START_SECONDS
        while not canMakeSockets():
            assert self._process is not None and self._process.poll() is None, "the daemon has ended"
            assert time.monotonic() < deadline, "the daemon does not serve the kernel module"
            time.sleep(0.02)

    def crash(self) -> None:
        """Kill it, and wait for its end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)
        self._process = None

    def stop(self) -> None:
        """
        Ask it to end, as init does, and wait for it.

        @raise AssertionError: it does not, or not of this signal.
        """
        assert self._process is not None
        process, self._process = self._process, None
        process.terminate()
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon has not ended within {STOP_SECONDS:g} s") from None
        assert status in (0, -signal.SIGTERM), f"the daemon ended with status {status}"

    def pause(self) -> None:
        """Let it do nothing until L{resume}."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + STOP_SECONDS
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "the daemon does not stop"
            time.sleep(0.005)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)
