# SPDX-License-Identifier: MIT
"""
Faults injected into system calls: the kernel's C{fail-nth} (Documentation/fault-injection) makes the Nth thing that can fail in
the next system calls of a thread fail: an allocation, or a copy from or to the program.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_DEBUG = Path("/sys/kernel/debug")
_FILE = "/proc/thread-self/fail-nth"
_SETTINGS = {
    "failslab/ignore-gfp-wait": "N",  # by default only allocations that cannot wait fail
    "failslab/verbose": "0",
    "fail_page_alloc/ignore-gfp-wait": "N",
    "fail_page_alloc/verbose": "0",
    "fail_usercopy/verbose": "0",
}


def isAvailable() -> bool:
    """Whether this kernel injects faults."""
    return os.path.exists(_FILE) and (_DEBUG / "failslab").exists()


def prepare() -> None:
    """
    Let every kind of allocation fail where it is asked to, without a word.

    @raise OSError: this kernel injects no faults.
    """
    for name, value in _SETTINGS.items():
        (_DEBUG / name).write_text(value)


@dataclass(frozen=True)
class Attempt:
    """
    A call in which something may have failed.

    @ivar error: its errno; 0: it succeeded.
    @ivar result: what it returned.
    @ivar isInjected: whether there was so much that could fail: if not, the call went undisturbed.
    """

    error: int
    result: object
    isInjected: bool


class Injection:
    """Injects faults into calls of the thread that makes it; where the kernel cannot, each call goes undisturbed."""

    def __init__(self) -> None:
        self._file = os.open(_FILE, os.O_RDWR | os.O_CLOEXEC) if isAvailable() else -1

    def call(self, nth: int, function: Callable[..., object], *arguments: object) -> Attempt:
        """
        Call a function that makes one system call.

        @param nth: which of the things that can fail in it fails; from 1.
        """
        error = 0
        result: object = None
        if self._file >= 0:
            os.pwrite(self._file, b"%d" % nth, 0)
        try:
            result = function(*arguments)
        except OSError as failure:
            error = failure.errno or 0
        return Attempt(error, result, self._end())

    def _end(self) -> bool:
        """
        Inject no more.

        @return: whether the fault was injected.
        """
        if self._file < 0:
            return False
        left = 1
        # Reading copies to the program and writing from it: where one is left, that is what fails.
        with contextlib.suppress(OSError):
            left = int(os.pread(self._file, 16, 0))
        with contextlib.suppress(OSError):
            os.pwrite(self._file, b"0", 0)
        return left == 0

    def close(self) -> None:
        """Give up the file."""
        if self._file >= 0:
            os.close(self._file)
