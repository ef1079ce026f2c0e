# SPDX-License-Identifier: MIT
"""
The few Linux system calls that the launcher needs and that Python's C{os} module does not offer.

Every function raises C{OSError} with the kernel's errno.  Nothing here imports Twisted: the launcher starts fast.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from dataclasses import dataclass
from typing import Final

PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_CHILD_SUBREAPER: Final = 36

SI_USER: Final = 0
SI_QUEUE: Final = -1
SI_TKILL: Final = -6
SI_KERNEL: Final = 0x80

_SFD_CLOEXEC: Final = 0o2000000
_SFD_NONBLOCK: Final = 0o4000
_SIGNALFD_RECORD: Final = 128
_SIGSET_SIZE: Final = 128


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


def forbidNewPrivileges() -> None:
    """
    Give up gaining rights by exec, for this process and its children for good (PR_SET_NO_NEW_PRIVS, prctl(2)).
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)


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
