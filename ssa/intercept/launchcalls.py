# SPDX-License-Identifier: MIT
"""
The few Linux system calls that the launcher and the probes need and that Python's C{os} module does not offer.

Every function raises C{OSError} with the kernel's errno.  Nothing here imports Twisted: the launcher starts fast.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct
from dataclasses import dataclass
from typing import Final

PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_CHILD_SUBREAPER: Final = 36

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

SI_USER: Final = 0
SI_QUEUE: Final = -1
SI_TKILL: Final = -6
SI_KERNEL: Final = 0x80

_SFD_CLOEXEC: Final = 0o2000000
_SFD_NONBLOCK: Final = 0o4000
_SIGNALFD_RECORD: Final = 128
_SIGSET_SIZE: Final = 128

_PIDFD_GETFD: Final = 438
"""The same number on every architecture (it is newer than the unified table)."""

_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
    return result


def prctl(option: int, *arguments: int) -> int:
    """
    prctl(2).

    @raise OSError: as the kernel says.
    """
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(_libc().prctl(ctypes.c_int(option), *padded), "prctl")


def becomeChildSubreaper() -> None:
    """
    Let the orphans among this process's descendants be re-parented to it (PR_SET_CHILD_SUBREAPER, prctl(2)).
    """
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def unshare(flags: int) -> None:
    """
    unshare(2).

    @param flags: CLONE_NEW* bits.
    @raise OSError: EPERM, ENOSPC, EINVAL… as the kernel says.
    """
    _checked(_libc().unshare(ctypes.c_int(flags)), "unshare")


def pidfdGetfd(pidfd: int, number: int) -> int:
    """
    pidfd_getfd(2): a copy of another process's descriptor (close-on-exec).

    @param pidfd: the other process.
    @param number: the descriptor's number there.
    @raise OSError: EPERM without ptrace rights, EBADF, ENOSYS before Linux 5.6.
    """
    return _checked(
        _libc().syscall(
            ctypes.c_long(_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0)
        ),
        "pidfd_getfd",
    )


def seccomp(operation: int, flags: int, argument: object) -> int:
    """
    seccomp(2).

    @param argument: C{None} or a ctypes object that is passed by reference.
    @raise OSError: as the kernel says; ENOSYS on an architecture whose number is not known here.
    """
    machine = platform.machine()
    if machine not in _SECCOMP:
        raise OSError(38, f"no seccomp support for {machine}")
    pointer = ctypes.c_void_p(0) if argument is None else ctypes.byref(argument)  # type: ignore[arg-type]
    return _checked(
        _libc().syscall(
            ctypes.c_long(_SECCOMP[machine]), ctypes.c_uint(operation), ctypes.c_uint(flags), pointer
        ),
        "seccomp",
    )


@dataclass(frozen=True)
class Signal:
    """
    One signal as taken from a signalfd (signalfd(2)).

    @ivar number: the signal.
    @ivar code: who generated it: SI_USER, SI_KERNEL… (sigaction(2)).
    @ivar pid: the sender, 0 where there is none.
    """

    number: int
    code: int
    pid: int


class SignalDescriptor:
    """
    A non-blocking, close-on-exec signalfd(2) for signals that the caller has blocked.

    @ivar fd: the descriptor; readable while a signal is pending.
    """

    def __init__(self, numbers: set[int]) -> None:
        """
        @param numbers: the signals to take.
        @raise OSError: EMFILE, ENOMEM.
        """
        bits = sum(1 << (number - 1) for number in numbers)
        mask = bits.to_bytes(8, "little" if struct.pack("=H", 1)[0] else "big")
        self.fd = _checked(
            _libc().signalfd(
                ctypes.c_int(-1),
                ctypes.create_string_buffer(mask.ljust(_SIGSET_SIZE, b"\0"), _SIGSET_SIZE),
                ctypes.c_int(_SFD_CLOEXEC | _SFD_NONBLOCK),
            ),
            "signalfd",
        )

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self.fd

    def take(self) -> list[Signal]:
        """All signals that are pending now, at most 64 in one go."""
        try:
            records = os.read(self.fd, 64 * _SIGNALFD_RECORD)
        except BlockingIOError:
            return []
        found = []
        for start in range(0, len(records), _SIGNALFD_RECORD):
            number, _errno, code, pid = struct.unpack_from("=IiiI", records, start)
            found.append(Signal(number, code, pid))
        return found

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
