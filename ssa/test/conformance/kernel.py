# SPDX-License-Identifier: MIT
"""
Run a program on the kernel module: C{python -m ssa.test.conformance.kernel [--config FILE] [--user NUMBER] -- PROGRAM
[ARG...]}, as root, where the module is loaded.

The daemon is a real C{twistd ssa}; the program is started when TLS sockets can be made, and the daemon is stopped after it.
Where one is registered already, and no configuration is asked for, that one serves the program.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from errno import ENETDOWN
from pathlib import Path
from typing import Any

from ssa.api import IPPROTO_TLS

START_SECONDS = 600.0
"""How long the daemon may take to register; a virtual machine with the debug kernel is slow."""


def canMakeSockets() -> bool:
    """
    Whether the kernel has TLS sockets and a daemon that serves them.

    @raise OSError: the kernel has none: the module is not loaded.
    """
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS).close()
    except OSError as error:
        if error.errno == ENETDOWN:
            return False
        raise
    return True


class NotServed(Exception):
    """The daemon has ended, or has not registered with the module in time."""


@contextlib.contextmanager
def served(configuration: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """
    A real daemon that serves the module for the time of the block.

    @param configuration: the path of an ssa.conf; C{""} for the defaults.
    @raise NotServed: it does not.
    """
    with tempfile.TemporaryDirectory(prefix="ssa-kernel-") as directory:
        command = [sys.executable, "-m", "twisted", "--log-level=warn", "ssa", "--socket", str(Path(directory, "daemon.sock"))]
        if configuration:
            command += ["--config", configuration]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not canMakeSockets():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise NotServed("the daemon does not serve the kernel module")
                time.sleep(0.05)
            yield daemon
        finally:
            daemon.terminate()
            daemon.wait()


def main(argv: Sequence[str]) -> int:
    """
    The entry point.

    @return: the program's exit status; 125 where the daemon does not serve.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="")
    parser.add_argument("--user", type=int)
    parser.add_argument("program", nargs="+")
    arguments = parser.parse_args(argv)
    ordinary: dict[str, Any] = {}
    if arguments.user is not None:
        ordinary = {"user": arguments.user, "group": arguments.user, "extra_groups": []}
    with contextlib.ExitStack() as stack:
        if arguments.config or not canMakeSockets():
            try:
                stack.enter_context(served(arguments.config))
            except NotServed as error:
                print(error, file=sys.stderr)
                return 125
        return subprocess.call(arguments.program, close_fds=False, **ordinary)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main(sys.argv[1:]))
