# SPDX-License-Identifier: MIT
"""
Large values beside a frame: sealed memory files.

A packet of a SOCK_SEQPACKET socket is bounded by the sender's buffer, so a value that does not fit travels as a descriptor
of a memory file (memfd_create(2)).  Its seals (fcntl(2), F_ADD_SEALS) are checked on receipt: without them the sender
could change or shorten the value while it is read.  Only memory files can have seals, so that reading one never waits
for a disk, a network or another process.
"""

from __future__ import annotations

import fcntl
import os
from errno import EINVAL

from ssa.netlink.codec import BadValueError
from ssa.protocol.messages import MAXIMUM_VALUE

LARGEST_INLINE = 32 * 1024
"""The most bytes of a value that stay in the frame."""

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def createMemoryFile(value: bytes) -> int:
    """
    Write a value into a sealed memory file.

    @return: its descriptor, which the caller owns.
    @raise OSError: no descriptor or memory is left.
    """
    fd = os.memfd_create("ssa-value", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(value)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def readMemoryFile(fd: int) -> bytes:
    """
    Read a value that another process has sent.

    @param fd: stays the caller's.
    @raise BadValueError: it is no memory file, is not sealed, or holds more than
        L{MAXIMUM_VALUE<ssa.protocol.messages.MAXIMUM_VALUE>} bytes.
    """
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise BadValueError("a value's memory file is not sealed")
        size = os.fstat(fd).st_size
        if size > MAXIMUM_VALUE:
            raise BadValueError(f"an option's value has at most {MAXIMUM_VALUE} bytes, not {size}")
        value = os.pread(fd, size, 0)
    except OSError as error:
        if error.errno == EINVAL:
            raise BadValueError("a value came as a descriptor that is no memory file") from None
        raise BadValueError(f"a value's memory file cannot be read: {error.strerror}") from error
    if len(value) != size:
        raise BadValueError("a value's memory file could not be read at once")
    return value
