# SPDX-License-Identifier: MIT
"""
The supervisor's view of the program that it was started for: its start, its end, and the front that waits for it.

L{ssa.intercept.launch} describes the processes.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.intercept.launch import EXIT_OWN_FAILURE, MESSAGE_SIZE, describeFailure, nullDescriptors
from ssa.intercept.launchcalls import SignalDescriptor

_REPORT_SECONDS = 5.0
"""How long the report of the program's end may wait for a front that does not read."""


class StartFailed(Exception):
    """
    The program was not started; the front has been told why.  The supervisor ends.
    """


@implementer(IReadDescriptor)
class _Reader:
    """Calls a function when a descriptor is readable."""

    def __init__(self, fd: int, readable: Callable[[], None]) -> None:
        self._fd = fd
        self._readable = readable

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        self._readable()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends, or the descriptor was closed: nothing to read any more."""

    def logPrefix(self) -> str:
        return "program"


class Program:
    """
    The program under supervision.  Exists in the supervisor only; SIGCHLD is blocked there and read from a signalfd.

    @ivar pid: the program's process.
    @ivar pidfd: a pidfd for it.
    @ivar notifyFD: the seccomp notify descriptor, -1 before L{receiveNotifyDescriptor}.  The supervisor owns it.
    @ivar started: whether the program has been executed.
    @ivar status: how it ended, as waitpid(2) says; C{None} while it runs.
    @ivar ended: fires with that status.
    """

    _log = Logger()

    def __init__(self, pid: int, name: str, control: socket.socket, front: socket.socket, frontFD: int) -> None:
        """
        @param name: the program, as it was asked for.
        @param control: to the program's process, closed by its exec.
        @param front: to the front.
        @param frontFD: a pidfd for the front.
        """
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.notifyFD = -1
        self.started = False
        self.status: int | None = None
        self.ended: Deferred[int] = Deferred()
        self._name = name
        self._control = control
        self._front: socket.socket | None = front
        self._frontFD = frontFD
        self._stopped = False
        self._children: dict[int, Callable[[int], None]] = {}
        self._childSignals = SignalDescriptor({signal.SIGCHLD})
        self._reactor: IReactorFDSet | None = None
        self._readers: list[_Reader] = []

    def receiveNotifyDescriptor(self) -> None:
        """
        Take the notify descriptor that the program's process sends.  Blocks until then.

        @raise StartFailed: the filter could not be installed.
        """
        data, descriptors, _flags, _address = socket.recv_fds(self._control, MESSAGE_SIZE, 1)
        if descriptors:
            self.notifyFD = descriptors[0]
            return
        _word, _, text = data.decode(errors="replace").partition(" ")
        self.refuse(text or "the program's process ended before it installed its filter")

    def attach(self, reactor: IReactorFDSet) -> None:
        """
        Watch the program's state, the supervisor's other children and the front from now on.

        @param reactor: it must not handle SIGCHLD itself (C{reactor.run(installSignalHandlers=False)}).
        """
        self._reactor = reactor
        self._readers.append(_Reader(self._childSignals.fileno(), self._childrenChanged))
        if self._front is not None:
            self._readers.append(_Reader(self._front.fileno(), self._frontReadable))
        for reader in self._readers:
            reactor.addReader(reader)
        self._childrenChanged()

    def watchChild(self, pid: int, ended: Callable[[int], None]) -> None:
        """
        Be told when another child of the supervisor ends.  It is reaped here; nobody else may wait for it.

        @param ended: called once with its waitpid(2) status.
        """
        self._children[pid] = ended

    def start(self) -> bool:
        """
        Let the program be executed, and wait until it is (or is not).

        @return: False: it was not found or is not executable.  The front has been told; the process that was to execute it
            ends like any other child.
        """
        # Before it runs, so that the front knows its program even if this process ends at the next moment.
        self._report(f"started {self.pid}", [self.pidfd])
        try:
            self._control.send(b"go", socket.MSG_NOSIGNAL)
            answer = self._control.recv(MESSAGE_SIZE)
        except OSError:  # the process is gone
            answer = b""
        self._control.close()
        if answer:
            status, text = describeFailure(self._name, int(answer.split()[1]))
            self._report(f"failed {status} {text}")
            return False
        self.started = True
        return True

    def refuse(self, text: str, status: int = EXIT_OWN_FAILURE) -> NoReturn:
        """
        Do not start the program; the front shows a line and ends.

        @param text: the line: cause and remedy.
        @param status: the exit status.
        @raise StartFailed: always.
        """
        self._report(f"failed {status} {text}")
        self._control.close()  # its process ends at that
        raise StartFailed(text)

    # The program's and the other children's states.

    def _childrenChanged(self) -> None:
        self._childSignals.take()
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.pid:
                self._programChanged(status)
            elif pid in self._children and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
                self._children.pop(pid)(status)

    def _programChanged(self, status: int) -> None:
        if os.WIFSTOPPED(status):
            self._stopped = True
            self._report(f"stopped {os.WSTOPSIG(status)}")
        elif os.WIFCONTINUED(status):
            self._report("continued")
            self._continueFront()
        else:
            self.status = status
            nullDescriptors(2)
            code = os.waitstatus_to_exitcode(status)
            self._report(f"exited {code}" if code >= 0 else f"signaled {-code}", patient=True)
            self._continueFront()
            self.ended.callback(status)

    def _continueFront(self) -> None:
        """The report was sent before: see L{ssa.intercept.launch.Front}."""
        if self._stopped:
            self._stopped = False
            try:
                signal.pidfd_send_signal(self._frontFD, signal.SIGCONT)
            except ProcessLookupError:
                return

    # The front.

    def _frontReadable(self) -> None:
        """The front sends nothing: it has ended."""
        self._frontLost()

    def _frontLost(self) -> None:
        if self._front is None:
            return
        if self._reactor is not None:
            self._reactor.removeReader(self._readers[1])
        self._front.close()
        self._front = None
        if self.status is None:
            self._log.info("the front was killed: killing the program {pid}", pid=self.pid)
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def _report(self, text: str, descriptors: list[int] | None = None, patient: bool = False) -> None:
        """
        Tell the front.  A front that is itself stopped may miss stops and continues when its queue is full.

        @param patient: wait for space, at most some seconds.
        """
        if self._front is None:
            return
        self._front.settimeout(_REPORT_SECONDS if patient else 0)
        try:
            socket.send_fds(self._front, [text.encode(errors="replace")[:MESSAGE_SIZE]], descriptors or [], socket.MSG_NOSIGNAL)
        except (BlockingIOError, TimeoutError):
            self._log.warn("the front does not read: {text}", text=text)
        except ConnectionError:
            self._frontLost()
