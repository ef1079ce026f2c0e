# SPDX-License-Identifier: MIT
"""QEMU's monitor (QMP), as far as it is needed: a break on the serial line, by which the guest's kernel takes SysRq keys."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType

_SECONDS = 10.0


class Monitor:
    """A connection to the monitor; a context manager."""

    def __init__(self, path: Path) -> None:
        """
        Connect and negotiate.

        @param path: of the monitor's unix socket
        @raise OSError: QEMU is gone or does not answer
        """
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_SECONDS)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._lines.readline()  # the greeting
        self._execute("qmp_capabilities")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.close()
        self._socket.close()

    def sendBreak(self) -> None:
        """A break on the guest's console: the next character is a SysRq key."""
        self._execute("chardev-send-break", id="console")

    def _execute(self, command: str, **arguments: str) -> None:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self._lines:
            if "return" in json.loads(line) or "error" in json.loads(line):
                return
        raise ConnectionError("QEMU closed its monitor")
