# SPDX-License-Identifier: MIT
"""
C{ssa run}: the processes around the program.

::

    F  front: what the shell started; mirrors the program's stops and its exit, passes signals on
    └ S  supervisor: a session of its own, Twisted, serves the program's notifications
       └ C  the program: in F's process group, session and terminal

F and C share the process group, so what the terminal does (Ctrl-C, Ctrl-Z, window size, hang-up) reaches the program
from the kernel itself.  F only adds what cannot: it passes on what was sent to F alone, and it stops when the program
stops, since the shell looks at F.  F and S keep none of the descriptors that the program inherits, but for standard
error while the program runs.

Should S be killed, C becomes F's child (F is a subreaper too) and F still ends with C's status.  Should F be killed, S
kills C.

This module imports no Twisted: C runs while S is still loading it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from ssa.intercept.launchcalls import (
    SI_KERNEL,
    SI_QUEUE,
    SI_TKILL,
    SI_USER,
    Signal,
    SignalDescriptor,
    becomeChildSubreaper,
)

if TYPE_CHECKING:
    from ssa.intercept.program import Program
    from ssa.intercept.way import Way

EXIT_OWN_FAILURE: Final = 125
"""Exit status when C{ssa run} itself fails, as with env(1) and timeout(1)."""
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
EXIT_SIGNAL: Final = 128

MESSAGE_SIZE: Final = 4096
"""Bound of a message between F, S and C, in bytes."""

_STOP_SIGNALS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_FATAL_AT_START: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
_ANCESTORS: Final = 64


@dataclass(frozen=True)
class Options:
    """
    What C{ssa run} was asked to do.

    @ivar argv: the program and its arguments.
    @ivar config: path of ssa.conf for an embedded daemon; C{""} = the default.
    @ivar daemon: path of the daemon's socket; C{""} = the default one if a daemon answers there.
    @ivar embedded: run a daemon of one's own even if one answers.
    @ivar way: C{"auto"} or a L{ssa.intercept.way.Way}'s value.
    """

    argv: tuple[str, ...]
    config: str = ""
    daemon: str = ""
    embedded: bool = False
    way: str = "auto"


@dataclass(frozen=True)
class Inherited:
    """
    What the program must get as C{ssa run} got it, although Python changes it at its start.

    Python ignores SIGPIPE and SIGXFSZ and does not keep what they were; the program gets their default, as with Python's
    C{subprocess}.

    @ivar mask: the signal mask.
    @ivar environment: the environment as execve(2) passed it (Python may add LC_CTYPE to its own, PEP 538).
    """

    mask: frozenset[int]
    environment: dict[bytes, bytes]

    @classmethod
    def read(cls) -> Inherited:
        """Of this process, before anything is changed."""
        mask = frozenset(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        try:
            with open("/proc/self/environ", "rb") as block:
                entries = block.read().split(b"\0")
            environment = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry[1:])
        except OSError:
            environment = dict(os.environb)
        return cls(mask, environment)

    def restore(self) -> None:
        """Set signals as they were; a pending one may end the process here, as it should."""
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


def say(text: str) -> None:
    """Write one line to standard error; there is nobody to tell if that fails."""
    try:
        os.write(2, f"ssa: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        return


def pair() -> tuple[socket.socket, socket.socket]:
    """
    A SEQPACKET socket pair, close-on-exec, with numbers above the standard descriptors even if those are closed.
    """
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return (_aboveStandard(ends[0]), _aboveStandard(ends[1]))


def _aboveStandard(sock: socket.socket) -> socket.socket:
    if sock.fileno() > 2:
        return sock
    import fcntl

    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 3))


def releaseDescriptors(keep: Iterable[int]) -> None:
    """
    Close every descriptor from 3 on but those in C{keep}, and put /dev/null in the place of standard input and output:
    nobody who waits for the end of a pipe waits for this process.  Standard error stays.

    @raise OSError: /proc or /dev/null is not there.
    """
    kept = set(keep)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError as failure:
                if failure.errno != errno.EBADF:  # the descriptor of the listing itself
                    raise
    nullDescriptors(0, 1)
    try:
        os.fstat(2)
    except OSError:
        nullDescriptors(2)


def nullDescriptors(*numbers: int) -> None:
    """
    Put /dev/null in the place of some descriptors.

    @raise OSError: /dev/null is not there.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in numbers:
        os.dup2(null, number)  # where the two are the same this only takes close-on-exec away
    if null not in numbers:
        os.close(null)


def execute(argv: Sequence[str], environment: dict[bytes, bytes]) -> NoReturn:
    """
    Replace this process by a program, looked for in PATH as execvp(3) does: a file without a format known to the kernel
    is run by /bin/sh.

    @raise OSError: ENOENT, EACCES… as execve(2); EACCES if a file of the name was found but none could be run.
    """
    name = os.fsencode(argv[0])
    arguments = [os.fsencode(argument) for argument in argv]
    if b"/" in name:
        candidates = [name]
    else:
        folders = environment.get(b"PATH", os.fsencode(os.defpath)).split(b":")
        candidates = [os.path.join(folder or b".", name) for folder in folders] if name else []
    worst = errno.ENOENT
    for candidate in candidates:
        try:
            os.execve(candidate, arguments, environment)
        except OSError as failure:
            if failure.errno == errno.ENOEXEC:
                os.execve(b"/bin/sh", [b"/bin/sh", candidate, *arguments[1:]], environment)
            if failure.errno == errno.EACCES:
                worst = errno.EACCES
            elif failure.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
    raise OSError(worst, os.strerror(worst))


def describeFailure(name: str, number: int) -> tuple[int, str]:
    """
    The exit status and the message for a program that could not be started, as the shell has them.

    @param number: execve's errno.
    """
    if number == errno.ENOENT:
        return EXIT_NOT_FOUND, f"{name}: " + (os.strerror(number) if "/" in name else "command not found")
    return EXIT_NOT_EXECUTABLE, f"{name}: {os.strerror(number)}"


def run(options: Options) -> int:
    """
    Run a program with IPPROTO_TLS.

    @return: the exit status for the shell: the program's own; 128 + n if signal n ended it; 127 not found; 126 not
        executable; 125 if interception is not possible here.
    """
    from ssa.intercept.way import CannotIntercept, chooseWay

    try:
        way = chooseWay(options.way)
    except CannotIntercept as refusal:
        say(str(refusal))
        return EXIT_OWN_FAILURE
    return launch(options.argv, lambda: _installFilter(way), lambda program: _supervise(program, options, way))


def _installFilter(way: Way) -> int:
    from ssa.intercept.bpf import seccompFilter
    from ssa.intercept.linux import architecture
    from ssa.intercept.way import Way, installNotifyFilter

    return installNotifyFilter(seccompFilter(architecture(), emulateNames=way is Way.LOOPBACK))


def _supervise(program: Program, options: Options, way: Way) -> None:
    from ssa.intercept.session import supervise

    supervise(program, options, way)


def launch(
    argv: Sequence[str],
    installFilter: Callable[[], int],
    supervise: Callable[[Program], None],
) -> int:
    """
    Fork the supervisor and the program and be their front until the program ends.  Needs a process with one thread.

    @param argv: the program and its arguments.
    @param installFilter: called in the program's process before exec: installs the seccomp filter, returns the notify
        descriptor.  An C{OSError} it raises ends the start; its text is shown.
    @param supervise: called in the supervisor's process, where no Twisted module was imported yet; returns when the
        supervisor has nothing left to serve.  It must call L{Program.start<ssa.intercept.program.Program.start>}.
    @return: the exit status for the shell.
    @raise OSError: no process or descriptor could be had.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    inherited = Inherited.read()
    becomeChildSubreaper()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ours, theirs = pair()
    frontPID = os.getpid()
    supervisorPID = os.fork()
    if supervisorPID == 0:
        ours.close()
        _onlyDo(lambda: _becomeSupervisor(frontPID, theirs, argv, inherited, installFilter, supervise))
    theirs.close()
    return Front(ours, supervisorPID).run()


def _onlyDo(work: Callable[[], None]) -> NoReturn:
    """Do C{work} in a forked process and end it, whatever happens: never return into the parent's code."""
    status = EXIT_OWN_FAILURE
    try:
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else EXIT_OWN_FAILURE
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _becomeSupervisor(
    frontPID: int,
    front: socket.socket,
    argv: Sequence[str],
    inherited: Inherited,
    installFilter: Callable[[], int],
    supervise: Callable[[Program], None],
) -> None:
    ours, theirs = pair()
    programPID = os.fork()
    if programPID == 0:
        front.close()
        ours.close()
        _onlyDo(lambda: _becomeProgram(theirs, argv, inherited, installFilter))
    theirs.close()
    os.setsid()
    os.chdir("/")
    becomeChildSubreaper()
    releaseDescriptors((front.fileno(), ours.fileno()))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    frontFD = os.pidfd_open(frontPID)
    if os.getppid() != frontPID:
        return  # F was killed at once, its number may be another's by now; C ends at the end of its socket

    from ssa.intercept.program import Program, StartFailed

    program = Program(programPID, argv[0], ours, front, frontFD)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD})
    try:
        program.receiveNotifyDescriptor()
        supervise(program)
    except StartFailed:
        return  # the front has been told
    except Exception as failure:
        if program.started:
            raise
        why: object = failure
        if isinstance(failure, OSError):
            why = failure.strerror or failure
        else:
            traceback.print_exc()
        with contextlib.suppress(StartFailed):
            program.refuse(f"the supervisor could not start: {why}")


def _becomeProgram(control: socket.socket, argv: Sequence[str], inherited: Inherited, installFilter: Callable[[], int]) -> None:
    try:
        notify = installFilter()
    except OSError as failure:
        control.send(f"refused {failure.strerror or failure}".encode()[:MESSAGE_SIZE], socket.MSG_NOSIGNAL)
        return
    socket.send_fds(control, [b"filtered"], [notify])
    os.close(notify)  # or calls would hang for ever once the supervisor is gone
    if control.recv(16) != b"go":
        return
    inherited.restore()
    try:
        execute(argv, inherited.environment)
    except OSError as failure:
        control.send(f"failed {failure.errno}".encode(), socket.MSG_NOSIGNAL)


class Front:
    """
    F: what the shell sees of the program.

    All signals are blocked in F and taken from a signalfd with their origin.  What the supervisor reports comes over a
    socket: C{started PID} with a pidfd, C{stopped SIGNAL}, C{continued}, C{exited STATUS}, C{signaled SIGNAL}, C{failed
    STATUS TEXT}.
    """

    def __init__(self, channel: socket.socket, supervisorPID: int) -> None:
        self._channel = channel
        self._channel.setblocking(False)
        self._supervisorPID = supervisorPID
        self._programPID = 0
        self._programFD = -1
        self._status: int | None = None
        self._stopSignal = 0
        self._held: list[Signal] = []
        self._adopted = False
        self._leader = os.getsid(0) == os.getpid()

    def run(self) -> int:
        """
        Mirror the program until it ends.

        @return: the exit status for the shell.
        """
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        releaseDescriptors((self._channel.fileno(),))
        signals = SignalDescriptor({int(number) for number in signal.valid_signals()})
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        while self._status is None:
            ready = [fd for fd, _ in poll.poll()]
            if self._channel.fileno() in ready:
                self._takeReports()
                if self._adopted:
                    poll.unregister(self._channel)
                    self._channel.close()
            if self._status is None and signals.fd in ready:
                for received in signals.take():
                    self._signalled(received)
            if self._status is None and self._stopSignal:
                self._stop()
        return self._status

    # What the supervisor says.

    def _takeReports(self) -> None:
        while not self._adopted and self._status is None:
            try:
                data, descriptors, _flags, _address = socket.recv_fds(self._channel, MESSAGE_SIZE, 1)
            except BlockingIOError:
                return
            if not data:
                self._supervisorLost()
                return
            word, _, rest = data.decode(errors="replace").partition(" ")
            if word == "started":
                self._programPID = int(rest)
                self._programFD = descriptors[0]
                held, self._held = self._held, []
                for received in held:
                    self._pass(received)
            elif word == "stopped":
                self._stopSignal = int(rest)
            elif word == "continued":
                self._stopSignal = 0
            elif word == "exited":
                self._status = int(rest)
            elif word == "signaled":
                self._status = EXIT_SIGNAL + int(rest)
            elif word == "failed":
                status, _, text = rest.partition(" ")
                say(text)
                self._status = int(status)

    def _supervisorLost(self) -> None:
        """S was killed.  The program goes on without TLS sockets; it is F's child once S is gone."""
        os.waitpid(self._supervisorPID, 0)
        self._adopted = True
        if not self._programPID:
            say("the supervisor ended before the program was started")
            self._status = EXIT_OWN_FAILURE
            return
        say("the supervisor was killed: the program's TLS sockets are dead")
        self._waitProgram()

    def _waitProgram(self) -> None:
        while self._status is None:
            pid, status = os.waitpid(self._programPID, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not pid:
                return
            if os.WIFSTOPPED(status):
                self._stopSignal = os.WSTOPSIG(status)
            elif os.WIFCONTINUED(status):
                self._stopSignal = 0
            else:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else EXIT_SIGNAL - code

    # What others send to F.

    def _signalled(self, received: Signal) -> None:
        if received.number == signal.SIGCHLD and received.code > 0:
            if self._adopted:
                self._waitProgram()
        elif not self._programPID:
            ignored = signal.getsignal(received.number) is signal.SIG_IGN
            if received.number in _FATAL_AT_START and not ignored:
                self._status = EXIT_SIGNAL + received.number
            elif len(self._held) < 64:
                self._held.append(received)
        else:
            self._pass(received)

    def _pass(self, received: Signal) -> None:
        """Send a signal on to the program if F alone got it."""
        if received.code == SI_KERNEL:
            # From the terminal: the whole group has it, but a hang-up goes to the session's leader only.
            if not (self._leader and received.number == signal.SIGHUP):
                return
        elif received.code not in (SI_USER, SI_QUEUE, SI_TKILL) or self._isOwn(received.pid):
            return
        if received.number == signal.SIGCONT and not self._programStopped():
            return  # sent to the whole group, as the shell's fg and bg do
        try:
            signal.pidfd_send_signal(self._programFD, received.number)
        except ProcessLookupError:
            return  # it has ended; the report is under way
        except PermissionError:
            say(f"not permitted to pass {signal.Signals(received.number).name} on to the program")

    def _isOwn(self, pid: int) -> bool:
        """Whether a signal's sender is F, S or comes from the program: that was meant for the whole group."""
        for _ in range(_ANCESTORS):
            if pid in (os.getpid(), self._supervisorPID, self._programPID):
                return True
            if pid <= 1:
                return False
            pid = int((_processState(pid) or ("", "0"))[1])
        return False

    def _programStopped(self) -> bool:
        return (_processState(self._programPID) or ("", "0"))[0] == "T"

    def _stop(self) -> None:
        """
        Stop as the program did, so that the shell sees it.

        A continue must not be lost in between.  The stop signal is generated while it is blocked; the supervisor sends
        its report before SIGCONT, so either the report is here already, or SIGCONT is yet to come and takes the pending
        stop signal away (signal(7)), or ends the stop.
        """
        number = self._stopSignal if self._stopSignal in _STOP_SIGNALS else signal.SIGTSTP
        os.kill(os.getpid(), number)
        if self._adopted:
            self._waitProgram()
        else:
            self._takeReports()
        if self._stopSignal and self._status is None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # stopped here
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        self._stopSignal = 0


def _processState(pid: int) -> tuple[str, str] | None:
    """A process's state letter and its parent, from /proc/PID/stat (proc(5)); C{None} if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[1]
