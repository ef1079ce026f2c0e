# SPDX-License-Identifier: MIT
"""
Giving up the rights that the daemon does not need (capabilities(7)).

What it needs is C{CAP_NET_ADMIN}, for as long as it serves the kernel module: netlink checks it with every message.  It keeps
its user: root without capabilities may read and write what belongs to root, such as the keys that the configuration names, and
no more.  To run as another user, let the service manager do it, with C{CAP_NET_ADMIN} as ambient capability.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
CAP_NET_ADMIN = 12

_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522
_MAXIMUM = 64


class _Header(ctypes.Structure):
    """C{struct __user_cap_header_struct}."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    """C{struct __user_cap_data_struct}."""

    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


_Sets = _Data * 2


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def _get() -> ctypes.Array[_Data]:
    libc = ctypes.CDLL(None, use_errno=True)
    sets = _Sets()
    _checked(libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), sets), "capget")
    return sets


def _set(sets: ctypes.Array[_Data]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), sets), "capset")


@contextlib.contextmanager
def withoutOverride() -> Iterator[None]:
    """
    Do something without root's power over the files of others, as the daemon is after its start: what it could not read again
    must not be read at the start either.

    It holds for the calling thread; whoever has no such power keeps what there is.

    @raise OSError: the kernel refuses.
    """
    before, sets = _get(), _get()
    sets[0].effective &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    _set(sets)
    try:
        yield
    finally:
        _set(before)


def permitted() -> set[int]:
    """
    The capabilities that the calling thread may use.

    @raise OSError: capget(2) failed.
    """
    sets = _get()
    both = sets[0].permitted | sets[1].permitted << 32
    return {number for number in range(_MAXIMUM) if both >> number & 1}


def keepOnly(wanted: Iterable[int]) -> set[int]:
    """
    Give up every capability but some, for good: none of them, and no right of a set-user-ID program, comes back with execve(2).

    Capabilities belong to threads: to be called before there is a second one.

    @param wanted: the numbers of what shall be kept, where it is there.
    @return: what is left.
    @raise OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    had = permitted()
    keep = had & set(wanted)
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero), "prctl(PR_SET_NO_NEW_PRIVS)")
    _checked(libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), zero, zero, zero), "prctl(PR_CAP_AMBIENT)")
    if CAP_SETPCAP in had:
        for number in range(_MAXIMUM):
            # Those that the kernel does not know are EINVAL, and end the list.
            if libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(number), zero, zero, zero) < 0:
                break
            if number not in keep:
                dropped = libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), zero, zero, zero)
                _checked(dropped, "prctl(PR_CAPBSET_DROP)")
    bits = sum(1 << number for number in keep)
    sets = _Sets(
        _Data(bits & 0xFFFFFFFF, bits & 0xFFFFFFFF, 0),
        _Data(bits >> 32, bits >> 32, 0),
    )
    _set(sets)
    return keep
