# SPDX-License-Identifier: MIT
"""What the scenarios have in common."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import socket
import unittest
from collections.abc import Callable, Iterator
from typing import ClassVar

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import LIBC, TLSCase
from ssa.test.conformance.peers import credential
from ssa.test.conformance.runner import PATIENCE
from ssa.test.vm.guest.daemon import Daemon

USER = 1000
"""The ordinary user."""

SLOWER = max(1.0, PATIENCE / 5.0)
"""By how much the guest is slower than with one of Debian's kernels: those are five times slower than the host."""

SECONDS = 60.0 * SLOWER
"""How long the guest may take for what a machine does at once."""

_PR_SET_DUMPABLE = 4


class GuestCase(TLSCase):
    """
    A case in the guest.

    @cvar daemon: serves the module.
    @cvar timeout: seconds, times L{SLOWER}, after which a case counts as hung: all stacks are shown, and the scenario ends.
    """

    daemon: ClassVar[Daemon]
    timeout = 150.0

    def setUp(self) -> None:
        super().setUp()
        faulthandler.dump_traceback_later(self.timeout * SLOWER, exit=True)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)

    def reap(self, pid: int, status: int = 0, seconds: float = SECONDS) -> None:
        """Say how a child ends; it has more time than on a real machine."""
        ended: list[int] = []

        def over() -> bool:
            done, how = os.waitpid(pid, os.WNOHANG)
            if done:
                ended.append(os.waitstatus_to_exitcode(how))
            return bool(done)

        self.eventually(over, f"the end of child {pid}", seconds)
        self.assertEqual(ended, [status], "the child says what is wrong")

    def inChild(self, call: Callable[[], object], user: int = 0) -> None:
        """
        Run something in a child, to its end; its assertions count.

        @param user: the number of the user (and group) that the child is; it has no other rights.
        """

        def run() -> None:
            if user:
                become(user)
            call()

        self.reap(self.child(run))


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Say what a statement is about; unlike unittest's subTest, in a child too, where that would hide a failure."""
    try:
        yield
    except AssertionError as failure:
        raise AssertionError(f"{what}: {failure}") from failure


def setOption(sock: socket.socket, option: Option, value: bytes) -> None:
    """
    Set a TLS option.  The standard library's setsockopt keeps all other threads from running while it waits.

    @raise OSError: as setsockopt(2).
    """
    ctypes.set_errno(0)
    if LIBC.setsockopt(sock.fileno(), IPPROTO_TLS, int(option), value, len(value)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def become(user: int) -> None:
    """Be an ordinary user, for ever."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # The files of this process in /proc are this user's now, as those of a program that he has started.
    if LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def run() -> int:
    """
    Run the cases of the program's own module, with a daemon.

    @return: the exit status.
    """
    credential()  # once, before there are children and threads
    with Daemon() as daemon:
        GuestCase.daemon = daemon
        program = unittest.main(module="__main__", argv=["scenario"], exit=False, verbosity=2, warnings="ignore")
    return 0 if program.result.wasSuccessful() and program.result.testsRun else 1
