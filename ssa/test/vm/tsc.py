# SPDX-License-Identifier: MIT
"""
The rate of the host's time stamp counter.

The emulated processor shows the host's counter, and a microvm has no other clock to measure it with: a kernel that is not told
the rate waits for ever.
"""

from __future__ import annotations

import ctypes
import mmap
import time

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_SECONDS = 0.1


def kilohertz() -> int:
    """
    Count for a tenth of a second.

    @return: kHz
    """
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(_READ)
        start = ctypes.c_char.from_buffer(code)
        count = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
        try:
            begun, first = time.perf_counter(), int(count())
            time.sleep(_SECONDS)
            ended, last = time.perf_counter(), int(count())
        finally:
            del start
    return round((last - first) / (ended - begun) / 1000)
