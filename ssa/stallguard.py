# SPDX-License-Identifier: MIT
"""
The end of what a hostile user does to make a shared daemon wait.

The sockets that an interceptor hands over stay its own as well.  O_NONBLOCK belongs to the open file (fcntl(2), F_SETFL)
and SO_LINGER to the socket, so whoever holds a duplicate can change both at any moment, and the daemon's next read(2),
accept(2) or close(2), which must never wait, would wait for that user and keep everybody else waiting with it.  To look
at the flags before each call would be a race.  The daemon's own calls pass MSG_DONTWAIT where there is such a flag;
OpenSSL's do not, and accept(2) and close(2) have none.

L{StallGuard} therefore is a thread that looks ten times a second where the reactor's thread sleeps: the kernel says in
C{/proc/self/task/ID/syscall} in which system call, and with which descriptor (proc(5)).  A reactor sleeps in epoll_wait(2)
and nowhere else.  When it is found asleep twice within a second over descriptors that a user has handed over, that user is
at fault: twice in the same call is not asked for, since OpenSSL's next read(2) of the same record would look like progress.
All sockets that this user has handed over are shut down at once (shutdown(2)), and a signal ends the call that waits, so that
it fails, and the next one does not wait either.  Then the daemon is told who it was; until it has acted on that, the guard
looks every few milliseconds, because connect(2) can bring a socket back to life that was shut down.

The data path pays nothing for it.  It is for daemons that serve several users; one that serves only its own user, or root,
hands it nothing, and then there is no thread.

What it cannot end is a wait that no signal and no shutdown ends: while a user's own thread is held up in the middle of
a send(2) on the shared socket by a page fault that the user serves (FUSE, userfaultfd(2)), the kernel keeps the socket
locked, and every call on it waits.  C{docs/security.rst} says so.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

TICK = 0.1
"""Seconds between two looks; a call may wait for about twice as long."""

_QUICK_TICK = 0.003
_WINDOW = 10
"""How many looks a suspicion lasts."""

_WAKE = signal.SIGURG
"""Ignored by default (signal(7)), and used by nobody else here."""

_CLOSE = {"x86_64": "3", "aarch64": "57"}.get(platform.machine(), "")
"""The number of close(2): the one call whose descriptor is gone while it waits."""

_CALL_FIELDS = 9


def _nothing(number: int, frame: object) -> None:
    """A handler that does nothing: the signal is there to end a system call."""


class StallGuard:
    """
    Watches the thread that calls L{watch}.
    """

    _log = Logger()

    def __init__(self, reactor: Any, stalled: Callable[[int], None], tick: float = TICK) -> None:
        """
        @param reactor: an C{IReactorFromThreads}.
        @param stalled: called in the reactor with the user id of who made it wait, after the fact.
        @param tick: seconds between two looks.
        """
        self._reactor = reactor
        self._stalled = stalled
        self._tick = tick
        self._watched: dict[int, tuple[int, int]] = {}
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._reactorThread = 0
        self._guilty: set[int] = set()
        self._task = ""
        self._before: Any = None

    def watch(self, descriptor: int, uid: int) -> None:
        """
        A descriptor has come from a user.  It need not be taken back: one that was closed is told by its inode.

        To be called on the reactor's thread; the first call starts the guard.

        @param descriptor: a socket.
        @param uid: the user.
        """
        try:
            self._watched[descriptor] = (os.fstat(descriptor).st_ino, uid)
        except OSError:
            return  # no descriptor: whoever uses it gets that error as well
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        self._reactorThread = threading.get_ident()
        self._task = f"/proc/self/task/{threading.get_native_id()}"
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(_WAKE, _nothing)
        self._thread = threading.Thread(target=self._run, name="stall guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread.  May be called again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._over.set()
            thread.join()
            self._over.clear()
            if self._before is not None:
                signal.signal(_WAKE, self._before)
        self._watched.clear()

    def _found(self, uid: int) -> None:
        """In the reactor: somebody was found guilty."""
        try:
            self._stalled(uid)
        finally:
            self._guilty.discard(uid)

    # The guard's thread

    def _run(self) -> None:
        seen: deque[int | None] = deque(maxlen=_WINDOW)
        held = 0
        while not self._over.wait(_QUICK_TICK if self._guilty else self._tick):
            try:
                uid, state = self._look()
            except (OSError, ValueError) as error:
                self._log.error("the stall guard cannot look at its process, and ends: {error}", error=error)
                return
            # An uninterruptible sleep is the kernel's business: memory that is read in, a lock.  None of it can be ended.
            held = held + 1 if state == "D" else 0
            if held == _WINDOW:
                self._log.error("the daemon is held up in the kernel over a socket of user {uid}", uid=uid)
            if state != "S":
                uid = None
            if uid is not None and (uid in seen or uid in self._guilty):
                self._end(uid)
            seen.append(uid)

    def _look(self) -> tuple[int | None, str]:
        """
        Find out whose socket the reactor's thread waits for, and how.

        @return: the user id, or C{None}: it does not wait; the state of the thread as in proc(5), "" if it does not wait.
        @raise OSError: the kernel does not tell.
        """
        with open(f"{self._task}/syscall", encoding="ascii") as file:
            uid = self._culprit(file.read().split())
        if uid is None:
            return None, ""
        with open(f"{self._task}/stat", encoding="utf-8", errors="replace") as file:
            return uid, file.read().rpartition(")")[2].split()[0]

    def _culprit(self, call: list[str]) -> int | None:
        """
        Find out whose socket a system call is about.

        @param call: its number, its arguments, and two registers; or C{running} alone.
        @return: the user id, or C{None}: nobody's.
        """
        if len(call) != _CALL_FIELDS:
            return None
        descriptor = int(call[1], 16)
        entry = self._watched.get(descriptor)
        if entry is None:
            return None
        inode, uid = entry
        try:
            isKnown = os.fstat(descriptor).st_ino == inode
        except OSError:
            isKnown = call[0] == _CLOSE
        return uid if isKnown else None

    def _end(self, uid: int) -> None:
        """End the wait, and every other one that this user could bring about."""
        if uid not in self._guilty:
            self._guilty.add(uid)
            self._reactor.callFromThread(self._found, uid)
        for descriptor, (inode, owner) in self._watched.copy().items():
            if owner == uid:
                _shutDown(descriptor, inode)
        signal.pthread_kill(self._reactorThread, _WAKE)


def _shutDown(descriptor: int, inode: int) -> None:
    """Shut a socket down in both directions, if the descriptor still is this socket."""
    try:
        spare = os.dup(descriptor)
    except OSError:
        return  # closed meanwhile
    try:
        sock = socket.socket(fileno=spare)
    except OSError:
        os.close(spare)
        return  # no socket any more
    with sock:
        if os.fstat(spare).st_ino == inode:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # not connected: there is nothing to wait for
