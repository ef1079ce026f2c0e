# SPDX-License-Identifier: MIT
"""
System calls as a 32-bit program makes them, from this process: C{int 0x80} with pointers below 4 GiB.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct

RECVFROM, RECVMSG, SENDMSG, SENDTO, SOCKETCALL, IOCTL, GETPID = 371, 372, 370, 369, 102, 54, 20
"""Numbers of calls, asm/unistd_32.h."""

SOCKETCALL_RECV = 10

# push rbx; push rbp; mov eax, [rdi]; mov ebx, [rdi + 4]; mov ecx, [rdi + 8]; mov edx, [rdi + 12]; mov esi, [rdi + 16];
# mov ebp, [rdi + 24]; mov edi, [rdi + 20]; int 0x80; pop rbp; pop rbx; ret
_CODE = bytes.fromhex("53 55 8b07 8b5f04 8b4f08 8b570c 8b7710 8b6f18 8b7f14 cd80 5d 5b c3")
_SIZE = 1 << 16
_ARGUMENTS, _FREE = 256, 512
_MAP_32BIT = 0x40


class Compat:
    """A 32-bit caller with a little memory of its own."""

    def __init__(self) -> None:
        """
        @raise NotImplementedError: neither this processor nor this kernel has such calls.
        """
        if platform.machine() != "x86_64":
            raise NotImplementedError("int 0x80 is of x86")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT
        self._memory = mmap.mmap(-1, _SIZE, flags, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory[: len(_CODE)] = _CODE
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._used = _FREE
        self._enter = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self._base)
        pid = os.fork()
        if not pid:
            # Without these calls in the kernel this is a signal.
            os._exit(0 if self._enterWith(GETPID) == os.getpid() else 1)
        if os.waitpid(pid, 0)[1]:
            raise NotImplementedError("this kernel has no 32-bit calls")

    def _enterWith(self, number: int, *arguments: int) -> int:
        words = [number, *arguments, *[0] * (6 - len(arguments))]
        self._memory[_ARGUMENTS : _ARGUMENTS + 28] = struct.pack("=7I", *words)
        return int(self._enter(self._base + _ARGUMENTS))

    def call(self, number: int, *arguments: int) -> int:
        """
        Make a system call.

        @raise OSError: it fails.
        """
        result = self._enterWith(number, *arguments)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def put(self, data: bytes) -> int:
        """
        Put something into the memory.

        @return: its address.
        """
        at = self._used
        self._used += (len(data) + 15) & ~15
        if self._used > _SIZE:
            raise OSError(errno.ENOMEM, "the memory is full")
        self._memory[at : at + len(data)] = data
        return self._base + at

    def get(self, address: int, size: int) -> bytes:
        """What is in the memory."""
        return self._memory[address - self._base : address - self._base + size]

    def message(self, buffer: int, size: int, control: int = 0, controlSize: int = 0) -> int:
        """
        A C{struct msghdr} with one buffer.

        @return: its address.
        """
        vector = self.put(struct.pack("=II", buffer, size))
        return self.put(struct.pack("=7I", 0, 0, vector, 1, control, controlSize, 0))
