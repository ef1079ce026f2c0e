# SPDX-License-Identifier: MIT
"""
The system calls by which the supervisor looks at other processes, and the numbers of all that it watches.

seccomp(2), process_vm_readv(2), pidfd_getfd(2), capset(2), openat2(2), unshare(2) and setns(2), which Python's standard
library does not offer.  Every function raises L{OSError} with the errno of its call.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from errno import ENOSYS

_libc = ctypes.CDLL(None, use_errno=True)
_call = _libc.syscall
_call.restype = ctypes.c_long

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3

_PR_SET_NAME = 15
_SECCOMP_SET_MODE_FILTER = 1
_PIDFD_THREAD = os.O_EXCL
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True)
class Architecture:
    """
    What differs from one machine to another.

    @ivar name: as L{platform.machine} tells it.
    @ivar audit: C{AUDIT_ARCH_*} of C{linux/audit.h}: how seccomp names the calling convention.
    @ivar numbers: system call numbers by name.
    @ivar foreignFrom: numbers from here on belong to another convention (x32), or 0.
    @ivar tested: whether the project has run its tests there.
    """

    name: str
    audit: int
    numbers: Mapping[str, int]
    foreignFrom: int
    tested: bool


_NAMES = (
    "socket",
    "connect",
    "accept",
    "sendto",
    "sendmsg",
    "bind",
    "listen",
    "getsockname",
    "getpeername",
    "setsockopt",
    "getsockopt",
    "accept4",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "seccomp",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
)
_X86_64 = (41, 42, 43, 44, 46, 49, 50, 51, 52, 54, 55, 288, 307, 310, 311, 317, 45, 47, 299)
_AARCH64 = (198, 203, 202, 206, 211, 200, 201, 204, 205, 208, 209, 242, 269, 270, 271, 277, 207, 212, 243)
_EVERYWHERE = {"io_uring_setup": 425, "pidfd_open": 434, "openat2": 437, "pidfd_getfd": 438}

ARCHITECTURES = {
    "x86_64": Architecture("x86_64", 0xC000003E, dict(zip(_NAMES, _X86_64, strict=True)) | _EVERYWHERE, 0x40000000, True),
    "aarch64": Architecture("aarch64", 0xC00000B7, dict(zip(_NAMES, _AARCH64, strict=True)) | _EVERYWHERE, 0, False),
}
"""The machines that interception knows (from the kernel's C{unistd.h} of each)."""


def architecture() -> Architecture:
    """
    This machine's table.

    @raise OSError: ENOSYS, with a text that names the machine, where there is none.
    """
    machine = platform.machine()
    found = ARCHITECTURES.get(machine)
    if found is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise OSError(ENOSYS, f"ssa run does not know the system calls of {machine} machines, only of {known}")
    return found


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


_number: dict[str, ctypes.c_long] = {}


def _syscall(name: str, *arguments: object) -> int:
    number = _number.get(name)
    if number is None:
        number = _number[name] = ctypes.c_long(architecture().numbers[name])
    return _checked(_call(number, *arguments), name)


def nameProcess(name: str) -> None:
    """
    Show this process under a name of its own in ps(1) and top(1) (prctl(2) PR_SET_NAME).

    @param name: at most 15 bytes.
    """
    _checked(_libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _checked(_libc.setns(fd, kind), "setns")


def disconnect(fd: int) -> None:
    """connect(2) to AF_UNSPEC: a TCP socket forgets its connection or its failed attempt."""
    _checked(_libc.connect(fd, bytes(16), 16), "connect")


class _Program(ctypes.Structure):
    """C{struct sock_fprog} of linux/filter.h."""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def packFilter(program: bytes) -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
    """
    A C{struct sock_fprog} for setsockopt(2) SO_ATTACH_FILTER.

    @return: the structure and the buffer that it points to, which must outlive the call.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    return struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)), buffer


def installFilter(program: bytes, flags: int = SECCOMP_FILTER_FLAG_NEW_LISTENER) -> int:
    """
    seccomp(2) SECCOMP_SET_MODE_FILTER for this thread and what it forks or executes.

    @return: the notification descriptor.
    """
    description = _Program(len(program) // 8, program)
    mode = ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER)
    return _syscall("seccomp", mode, ctypes.c_ulong(flags), ctypes.byref(description))


_one = ctypes.c_ulong(1)
_zero = ctypes.c_ulong(0)


def readMemory(pid: int, address: int, size: int) -> bytes:
    """
    process_vm_readv(2).

    @return: at most C{size} bytes; fewer where the memory ends before.
    @raise OSError: EFAULT where not even the first byte can be read, EPERM, ESRCH.
    """
    if size == 0:
        return b""
    buffer = ctypes.create_string_buffer(size)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size)
    remote = (ctypes.c_size_t * 2)(address, size)
    count = _syscall("process_vm_readv", ctypes.c_long(pid), local, _one, remote, _one, _zero)
    return buffer.raw[:count]


def writeMemory(pid: int, address: int, data: bytes) -> int:
    """
    process_vm_writev(2).

    @return: the number of bytes written: fewer than given where the writable memory ends before.
    @raise OSError: EFAULT where not even the first byte can be written, EPERM, ESRCH.
    """
    if not data:
        return 0
    buffer = ctypes.create_string_buffer(data, len(data))
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(data))
    remote = (ctypes.c_size_t * 2)(address, len(data))
    return _syscall("process_vm_writev", ctypes.c_long(pid), local, _one, remote, _one, _zero)


def copyOf(sock: socket.socket) -> socket.socket:
    """
    Another descriptor of the same socket.

    C{socket.dup} would set O_NONBLOCK to what it thinks right, and that belongs to all descriptors of the open file, the
    program's too.
    """
    return socket.socket(fileno=os.dup(sock.fileno()))


def openThread(pid: int) -> int:
    """
    pidfd_open(2) for a thread; a kernel that knows no PIDFD_THREAD (before 6.9) gives the thread's process.

    @return: a new close-on-exec descriptor.
    """
    try:
        return _syscall("pidfd_open", ctypes.c_long(pid), ctypes.c_long(_PIDFD_THREAD))
    except OSError:
        return _syscall("pidfd_open", ctypes.c_long(threadGroup(pid)), ctypes.c_long(0))


def threadGroup(pid: int) -> int:
    """The process that a thread belongs to (C{Tgid} of proc(5))."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Tgid:"):
                return int(line[5:])
    raise OSError(ENOSYS, "/proc/PID/status tells no Tgid")


def getDescriptor(pidfd: int, fd: int) -> int:
    """
    pidfd_getfd(2).

    @return: a new close-on-exec descriptor of the same open file.
    """
    return _syscall("pidfd_getfd", ctypes.c_long(pidfd), ctypes.c_long(fd), ctypes.c_long(0))


def openAt(directory: int, path: bytes, flags: int, resolve: int) -> int:
    """
    openat2(2).

    @param resolve: C{RESOLVE_*} of linux/openat2.h.
    @return: a new descriptor.
    """
    how = struct.pack("=QQQ", flags, 0, resolve)
    size = ctypes.c_ulong(len(how))
    return _syscall("openat2", ctypes.c_long(directory), ctypes.c_char_p(path), ctypes.c_char_p(how), size)


def getCapabilities() -> tuple[int, int, int]:
    """
    capget(2) for this thread (capabilities(7)).

    @return: the effective, permitted and inheritable sets as bit masks.
    """
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, data), "capget")
    e0, p0, i0, e1, p1, i1 = struct.unpack("=6I", data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def setEffectiveCapabilities(effective: int) -> None:
    """capset(2): change the effective set, leave the others."""
    _, permitted, inheritable = getCapabilities()
    low = 0xFFFFFFFF
    words = (effective & low, permitted & low, inheritable & low, effective >> 32, permitted >> 32, inheritable >> 32)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(struct.pack("=6I", *words), 24)
    _checked(_libc.capset(header, data), "capset")
