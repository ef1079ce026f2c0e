# SPDX-License-Identifier: MIT
"""
Run a program on the kernel module with a daemon of its own: C{python -m ssa.test.conformance.kernel [--config FILE] --
PROGRAM [ARG...]}, as root, where the module is loaded and no daemon is registered.

The daemon is a real C{twistd ssa}; the program is started when TLS sockets can be made, and the daemon is stopped after it.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from errno import ENETDOWN
from pathlib import Path

from ssa.api import IPPROTO_TLS

START_SECONDS = 180.0
"""How long the daemon may take to register; a virtual machine is slow."""


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


def main(argv: Sequence[str]) -> int:
    """
    The entry point.

    @return: the program's exit status; 125 where the daemon does not serve.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="")
    parser.add_argument("program", nargs="+")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="ssa-kernel-") as directory:
        command = [sys.executable, "-m", "twisted", "--log-level=warn", "ssa", "--socket", str(Path(directory, "daemon.sock"))]
        if arguments.config:
            command += ["--config", arguments.config]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not canMakeSockets():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    print("the daemon does not serve the kernel module", file=sys.stderr)
                    return 125
                time.sleep(0.05)
            return subprocess.call(arguments.program, close_fds=False)
        finally:
            daemon.terminate()
            daemon.wait()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main(sys.argv[1:]))
