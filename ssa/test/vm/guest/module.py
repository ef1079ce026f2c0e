# SPDX-License-Identifier: MIT
"""The loaded module, as tests see it from outside."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

SECONDS = 60.0


def users() -> int:
    """
    How many sockets hold the module.

    @return: -1: it is not loaded.
    """
    for line in Path("/proc/modules").read_text().splitlines():
        name, _, count, *_ = line.split()
        if name == "ssa":
            return int(count)
    return -1


def settle(seconds: float = SECONDS) -> int:
    """
    Wait until no socket is left: the last of them end after the call that ends them, when their grace periods have.

    @return: how many are left.
    """
    deadline = time.monotonic() + seconds
    while users() > 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    return users()


def unload() -> None:
    """
    Unload the module.

    @raise subprocess.CalledProcessError: it does not let go.
    """
    subprocess.run(["rmmod", "ssa"], check=True)


def load() -> None:
    """Load the module, with which the machine has been started, again."""
    subprocess.run(["insmod", os.environ["SSA_VM_MODULE"]], check=True)
