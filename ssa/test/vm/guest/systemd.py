# SPDX-License-Identifier: MIT
"""
systemd as it is in use: process 1 of a PID namespace of its own, with the project's unit and no other service of the host's.

Its root, its network and its users are the guest's: the kernel module's daemon has to be in the initial namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import ssa
from ssa.test.vm.guest.case import SECONDS

SYSTEMD: Final = "/lib/systemd/systemd"
UNIT: Final = Path(ssa.__file__).parent.parent / "conf" / "ssa.service"

_UNITS: Final = Path("/run/ssa-units")
_JOURNAL: Final = Path("/run/ssa-journal")
_PROGRAMS: Final = Path("/usr/local/bin")
_TARGETS: Final = ("default", "sysinit", "basic", "network", "shutdown", "multi-user")
"""What services depend on, or are in the way of, without anything in it."""

_TWISTD: Final = """#!/bin/sh
PYTHONPATH={root} exec {python} -c 'import sys; from twisted.scripts.twistd import run; sys.argv[0] = "twistd"; run()' "$@"
"""


class Systemd:
    """
    The service manager.

    @ivar dropIn: the directory of the unit's drop-ins.
    """

    dropIn: Final = _UNITS / "ssa.service.d"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Systemd:
        self._write()
        environment = {"container": "vm", "PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": str(_UNITS)}
        options = ("--system", "--unit=default.target", "--log-target=console", "--log-level=notice", "--show-status=no")
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", SYSTEMD, *options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + SECONDS
        while self.control("list-units", "default.target").returncode:
            assert self._process.poll() is None, "systemd has ended"
            assert time.monotonic() < deadline, "systemd does not answer"
            time.sleep(0.2)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        assert self._process is not None
        self.control("stop", "ssa")
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _write(self) -> None:
        """Its files: the project's unit as it is, and as little as possible beside it."""
        self.dropIn.mkdir(parents=True)
        shutil.copy(UNIT, _UNITS)
        shutil.copy("/lib/systemd/system/modprobe@.service", _UNITS)
        for target in _TARGETS:
            (_UNITS / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        twistd = _PROGRAMS / "twistd"
        twistd.write_text(_TWISTD.format(root=UNIT.parent.parent, python=sys.executable))
        twistd.chmod(0o755)
        hidden = [path for path in ("/home", "/root") if any(str(p).startswith(path + "/") for p in (UNIT, sys.executable))]
        place = f"[Service]\nStandardOutput=append:{_JOURNAL}\nStandardError=append:{_JOURNAL}\n"
        if hidden:  # the checkout, or the interpreter, is where a daemon's would never be
            place += "ProtectHome=read-only\n"
        (self.dropIn / "place.conf").write_text(place)

    def control(self, *words: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """
        Run C{systemctl}.

        @return: what has become of it; a status that is not 0 is the caller's business.
        """
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            return subprocess.CompletedProcess(words, 1, "", "systemd has not been started yet")
        command = ["nsenter", f"--target={children[0]}", "--pid", "--mount", "systemctl", "--no-pager", *words]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)

    def do(self, *words: str) -> None:
        """
        Run C{systemctl}.

        @raise AssertionError: it has failed.
        """
        done = self.control(*words)
        assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr.strip()}\n{self.said()}"

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.control("show", "--value", f"--property={name}", "ssa").stdout.strip()

    def said(self) -> str:
        """What the service has written."""
        return _JOURNAL.read_text() if _JOURNAL.exists() else ""
