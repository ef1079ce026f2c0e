# SPDX-License-Identifier: MIT
"""Reading files whose paths somebody has written down: no more of them than is wanted, and without ever waiting."""

from __future__ import annotations

import os
import stat

__all__ = ["readRegular"]


def _open(path: str, flags: int) -> int:
    """A FIFO without a writer would be waited for, and a terminal become the process's own: open(2)."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def readRegular(path: str, most: int) -> bytes:
    """
    Read a file whole; symbolic links are followed.

    @param path: of a regular file.
    @param most: the most bytes that it may have.
    @raise OSError: of open(2) and read(2); with the number 0 and a text, if it is no regular file or is larger.
    """
    with open(path, "rb", opener=_open) as file:  # closes it also where it is a directory
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is no regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(0, f"it is larger than {most} bytes")
    return data
