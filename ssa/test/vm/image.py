# SPDX-License-Identifier: MIT
"""A kernel's ELF image out of the compressed one that distributions ship: it starts seconds faster in an emulator."""

from __future__ import annotations

import lzma
import struct
import subprocess
from pathlib import Path

from ssa.test.vm.place import VMError, find

# Offsets in the x86 boot protocol's header, from Documentation/arch/x86/boot.rst.
_SETUP_SECTORS = 0x1F1
_MAGIC = 0x202
_PAYLOAD = 0x248  # payload_offset and payload_length, since protocol 2.08
_XZ = b"\xfd7zXZ\0"
_ZSTD = b"\x28\xb5\x2f\xfd"


def extract(compressed: Path, image: Path) -> None:
    """
    Write the ELF image that a bzImage holds; the bzImage itself where its compression is not one that can be undone here,
    since QEMU takes both.

    @raise VMError: the file is no bzImage
    """
    data = compressed.read_bytes()
    if data[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise VMError(f"{compressed} is no Linux kernel for x86")
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = (data[_SETUP_SECTORS] + 1) * 512 + offset
    payload = data[start : start + length]
    elf = _decompress(payload)
    image.write_bytes(elf if elf.startswith(b"\x7fELF") else data)


def _decompress(payload: bytes) -> bytes:
    """The payload's content, or nothing if the host cannot decompress it.  Its last four bytes are the size, not data."""
    if payload.startswith(_XZ):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    zstd = find("zstd")
    if payload.startswith(_ZSTD) and zstd:
        return subprocess.run([zstd, "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    return b""
