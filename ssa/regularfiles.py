# SPDX-License-Identifier: MIT
"""Reading files whose paths somebody has written down: no more of them than is wanted, and without ever waiting."""

from __future__ import annotations

import os
import stat
from errno import EFBIG, EINVAL
from typing import BinaryIO

__all__ = ["NoRegularFile", "openRegular", "readAtMost", "readRegular"]


class NoRegularFile(OSError):
    """What was opened is a FIFO, a device or a terminal; errno is EINVAL."""


def openRegular(path: str, followLinks: bool = True) -> BinaryIO:
    """
    Open a file for reading, to look at it before it is read.

    A FIFO without a writer is not waited for, and a terminal does not become the process's own: open(2), O_NONBLOCK and
    O_NOCTTY.

    @param path: of a regular file.
    @param followLinks: whether it may be a symbolic link.  What an administrator names often is one (/etc/ssl/certs, the
        newest of renewed certificates).  Where only the daemon makes files, a link is somebody else's, and must not lead to a
        file that is not the daemon's: ELOOP.
    @return: the file, which the caller closes.
    @raise NoRegularFile: it is something else.
    @raise OSError: of open(2), and EISDIR for a directory.
    """
    more = os.O_NONBLOCK | os.O_NOCTTY | (0 if followLinks else os.O_NOFOLLOW)
    # With an opener, open() closes the descriptor of a directory, which it does not where it is given the descriptor.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | more))  # noqa: SIM115
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NoRegularFile(EINVAL, "it is no regular file")
    except BaseException:
        file.close()
        raise
    return file


def readAtMost(file: BinaryIO, most: int) -> bytes:
    """
    Read the rest of a file.  What counts is what there is, not the size that the file has: it may grow, or have none (proc(5)).

    @param most: the most bytes that there may be.
    @raise OSError: of read(2); EFBIG if there are more.
    """
    data = file.read(most + 1)
    if len(data) > most:
        raise OSError(EFBIG, f"it is larger than {most} bytes")
    return data


def readRegular(path: str, most: int, followLinks: bool = True) -> bytes:
    """
    Read a file whole.

    @param path: as in L{openRegular}.
    @param most: the most bytes that it may have.
    @param followLinks: as in L{openRegular}.
    @raise OSError: as L{openRegular} and L{readAtMost}.
    """
    with openRegular(path, followLinks) as file:
        return readAtMost(file, most)
