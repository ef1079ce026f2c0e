# SPDX-License-Identifier: MIT
"""
Seccomp user notifications: what a program's stopped system call looks like, and the answers to it.

See seccomp_unotify(2).  Of the two ways to be wrong about a stopped caller, both are closed here: its memory is read once
into a copy of ours, and the notification is checked to be alive *after* each look at the caller (its pid may be
another's by then).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import EACCES, EBADF, EBUSY, EFAULT, EINVAL, ENOENT, ENOSYS, ESRCH

from ssa.intercept import bpf, linux
from ssa.intercept.launchcalls import forbidNewPrivileges
from ssa.intercept.way import Way

_RECEIVE = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_ID_VALID = 0x40082102  # SECCOMP_IOCTL_NOTIF_ID_VALID
_ADD_DESCRIPTOR = 0x40182103  # SECCOMP_IOCTL_NOTIF_ADDFD
_SET_FLAGS = 0x40082104  # SECCOMP_IOCTL_NOTIF_SET_FLAGS
_SYNC_WAKE_UP = 1
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_ADDFD_SETFD = 1  # SECCOMP_ADDFD_FLAG_SETFD

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_ADDITION = struct.Struct("=QIIII")  # struct seccomp_notif_addfd
_ID = struct.Struct("=Q")

_MAXIMUM_UNKNOWN = 256
"""Processes that are remembered for a descriptor that they do not know of."""


def installFilter(way: Way) -> int:
    """
    Put this process, and what it executes and forks, under the filter.

    Root installs it without C{no_new_privs}, so setuid programs work; an ordinary user may not.

    @return: the notification descriptor; the caller must close its copy once the supervisor has it, or calls would hang when
        the supervisor dies.
    @raise OSError: with one line that names cause and remedy.
    """
    try:
        program = bpf.seccompFilter(linux.architecture(), emulateNames=way is Way.LOOPBACK)
        if way is not Way.ROOT:
            forbidNewPrivileges()
        return linux.installFilter(program)
    except OSError as error:
        remedy = {
            EBUSY: "another supervisor already watches this process tree (a container runtime, or ssa run inside ssa run): "
            "start the program outside of it",
            EACCES: "no right to install a seccomp filter: CAP_SYS_ADMIN is missing",
            EINVAL: "this kernel has no seccomp user notification (Linux 5.14 or later with CONFIG_SECCOMP_FILTER is needed)",
            ENOSYS: "this kernel has no seccomp (Linux 5.14 or later with CONFIG_SECCOMP_FILTER is needed)",
        }.get(error.errno or 0, str(error))
        raise OSError(error.errno, f"interception is not possible: {remedy}") from error


class Gone(Exception):
    """The call was interrupted by a signal, or its thread has ended: nobody waits for an answer."""


@dataclass(frozen=True, slots=True)
class Notification:
    """
    One stopped system call.

    @ivar id: its number, unique for the listener.
    @ivar pid: the *thread* that made it, in the supervisor's pid namespace.
    @ivar number: the system call.
    @ivar arguments: the six registers, 64 bits each.
    """

    id: int
    pid: int
    number: int
    arguments: tuple[int, int, int, int, int, int]

    def integer(self, index: int) -> int:
        """An argument of C type C{int}."""
        value = self.arguments[index] & 0xFFFFFFFF
        return value - (1 << 32) if value & 0x80000000 else value


class NotificationListener:
    """
    The supervisor's end of a seccomp filter.

    @ivar fd: the descriptor, owned by this object.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray(_NOTIFICATION.size)
        self._response = bytearray(_RESPONSE.size)
        self._unknown: dict[int, tuple[int, int]] = {}  # process: its number for it, and the inode
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        with contextlib.suppress(OSError):  # Linux before 6.6 has no such request: calls cost some microseconds more
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Notification | None:
        """
        The next stopped call; never blocks.

        @return: L{None} where there is none, or it was interrupted before it could be received.
        @raise EOFError: no process is left under the filter.
        """
        events = self._poll.poll(0)
        if not events:
            return None
        if not events[0][1] & select.POLLIN:
            raise EOFError("no process is left under the filter")
        self._buffer[:] = bytes(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, self._buffer, True)
        except OSError as error:
            if error.errno == ENOENT:
                return None
            raise
        cookie, pid, _flags, number, _arch, _ip, *arguments = _NOTIFICATION.unpack(self._buffer)
        a, b, c, d, e, f = arguments
        return Notification(cookie, pid, number, (a, b, c, d, e, f))

    def _send(self, id: int, value: int, error: int, flags: int) -> None:
        _RESPONSE.pack_into(self._response, 0, id, value, -error, flags)
        try:
            fcntl.ioctl(self.fd, _SEND, self._response, True)
        except OSError as problem:
            if problem.errno == ENOENT:
                raise Gone from problem
            raise

    def succeed(self, call: Notification, value: int = 0) -> None:
        """
        End the call with a value.

        @raise Gone: nobody waits for it any more.
        """
        self._send(call.id, value, 0, 0)

    def fail(self, call: Notification, error: int) -> None:
        """
        End the call with an errno.

        @raise Gone: nobody waits for it any more.
        """
        self._send(call.id, 0, error, 0)

    def proceed(self, call: Notification) -> None:
        """
        Let the kernel carry the call out, as if there were no filter.

        The kernel reads the arguments anew: this is only for calls on descriptors that are no TLS sockets.

        @raise Gone: nobody waits for it any more.
        """
        self._send(call.id, 0, 0, _CONTINUE)

    def giveDescriptor(self, call: Notification, fd: int, closeOnExec: bool) -> int:
        """
        Put a descriptor in the caller's table and end the call with its number.

        SECCOMP_ADDFD_FLAG_SEND would make one step of it, but not a safe one: where the supervisor's ioctl(2) is
        interrupted (SIGSTOP, a debugger, the freezer of a control group or of a suspended machine; seen on Linux 6.18), the
        call ends with 0, the number of another file of the program's, who would then write its plaintext there.

        A caller that a signal interrupts between the two steps has a descriptor that it does not know of.  The next one
        that its process gets, mostly for the same call started again, takes that one's place.  Where the signal comes at
        the very moment of the answer, the kernel says that the answer was taken and starts the call again all the
        same: that one is lost, and nobody can know.

        @return: the number.
        @raise Gone: nobody waits for it any more.
        @raise OSError: EMFILE: the caller has no number left; the call still waits for its answer.
        """
        process = linux.threadGroup(call.pid) if self._unknown else 0
        number, inode = self._unknown.get(process, (0, None))
        how = _ADDFD_SETFD if inode is not None and self.socketInode(call, number) == inode else 0
        request = _ADDITION.pack(call.id, how, fd, number if how else 0, os.O_CLOEXEC if closeOnExec else 0)
        try:
            number = int(fcntl.ioctl(self.fd, _ADD_DESCRIPTOR, bytearray(request), True))
        except OSError as error:
            if error.errno == ENOENT:
                raise Gone from error
            raise
        self._unknown.pop(process, None)
        try:
            self._send(call.id, number, 0, 0)
        except Gone:
            self._noteUnknown(call, number, fd)
            raise
        return number

    def _noteUnknown(self, call: Notification, number: int, fd: int) -> None:
        """A process has a descriptor that it does not know of."""
        try:
            process = linux.threadGroup(call.pid)
        except OSError:
            return  # it has ended
        while len(self._unknown) >= _MAXIMUM_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[process] = number, os.fstat(fd).st_ino

    def replaceDescriptor(self, call: Notification, number: int, fd: int, closeOnExec: bool) -> None:
        """
        Put a descriptor in the place of one in the caller's table, as dup2(2) would; the call goes on.

        @raise Gone: nobody waits for it any more.
        """
        flags = os.O_CLOEXEC if closeOnExec else 0
        request = bytearray(_ADDITION.pack(call.id, _ADDFD_SETFD, fd, number, flags))
        try:
            fcntl.ioctl(self.fd, _ADD_DESCRIPTOR, request, True)
        except OSError as error:
            if error.errno == ENOENT:
                raise Gone from error
            raise

    def isAlive(self, call: Notification) -> bool:
        """Whether the caller is still stopped in this call, and so its pid still its own."""
        try:
            fcntl.ioctl(self.fd, _ID_VALID, _ID.pack(call.id))
        except OSError:
            return False
        return True

    def read(self, call: Notification, address: int, size: int) -> bytes:
        """
        Copy the caller's memory.

        @raise Gone: the caller is no longer there.
        @raise OSError: EFAULT: not all of it is there.
        """
        try:
            data = linux.readMemory(call.pid, address, size)
        except OSError as error:
            self.check(call)
            if error.errno == EFAULT:
                raise OSError(EFAULT, os.strerror(EFAULT)) from error
            raise
        self.check(call)
        if len(data) != size:
            raise OSError(EFAULT, os.strerror(EFAULT))
        return data

    def write(self, call: Notification, address: int, data: bytes) -> None:
        """
        Write to the caller's memory.

        @raise Gone: the caller is no longer there.
        @raise OSError: EFAULT: not all of it could be written.
        """
        self.check(call)
        if linux.writeMemory(call.pid, address, data) != len(data):
            raise OSError(EFAULT, os.strerror(EFAULT))

    def check(self, call: Notification) -> None:
        """
        Make sure that the caller is still stopped in this call.

        @raise Gone: it is not.
        """
        if not self.isAlive(call):
            raise Gone

    def socketInode(self, call: Notification, fd: int) -> int | None:
        """
        The inode number of a socket in the caller's table (proc(5)), cheaper than the socket itself.

        @return: L{None}: no socket has that number.
        """
        try:
            link = os.readlink(f"/proc/{call.pid}/fd/{fd}")
        except OSError:
            return None
        if link.startswith("socket:["):
            return int(link[8:-1])
        return None

    def socketOf(self, call: Notification, fd: int) -> socket.socket | None:
        """
        A duplicate of a socket in the caller's table.

        @return: L{None}: there is no such socket (any more).
        @raise Gone: the caller is no longer there.
        @raise OSError: EPERM and the like: no right to look (see C{ssa doctor}).
        """
        return duplicateSocket(call.pid, fd, lambda: self.check(call))

    def close(self) -> None:
        """Close the descriptor: waiting callers get ENOSYS."""
        os.close(self.fd)


def _unchecked() -> None:
    """For a look that needs no check afterwards."""


def duplicateSocket(pid: int, fd: int, check: Callable[[], None] = _unchecked) -> socket.socket | None:
    """
    A duplicate of another process's socket.

    @param check: called after the look; raises where the pid may be another's by then.
    @return: L{None}: there is no such process, or the number is no socket.
    """
    try:
        pidfd = linux.openThread(pid)
    except OSError:
        check()
        return None
    try:
        copy = linux.getDescriptor(pidfd, fd)
    except OSError as error:
        check()
        if error.errno in (EBADF, ESRCH):
            return None
        raise
    finally:
        os.close(pidfd)
    try:
        check()
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    except BaseException:
        os.close(copy)
        raise
