# SPDX-License-Identifier: MIT
"""The initial RAM disk: busybox, the modules that reach the host's files, and C{init.sh}."""

from __future__ import annotations

import lzma
import stat
from pathlib import Path

from ssa.test.vm.kernels import Kernel
from ssa.test.vm.place import VMError

#: What mounting the guest's root needs, where the kernel has it not built in.
_MODULES = ("virtio_mmio", "virtio_rng", "9pnet_virtio", "9p", "overlay")
_INIT = Path(__file__).with_name("init.sh")


class Archive:
    """
    A cpio archive in the format "newc", which the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
    """

    def __init__(self) -> None:
        """Start with nothing in it."""
        self._parts: list[bytes] = []
        self._count = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        """
        Add one file, directory or link, owned by root.

        @param name: its path, without a slash at the start; its directory was added before
        @param mode: type and permissions, as C{st_mode}
        @param content: what a file holds, where a link points
        """
        self._count += 1
        path = name.encode() + b"\0"
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        self._parts += [_padded(b"070701" + b"".join(b"%08X" % field for field in fields) + path), _padded(content)]

    def bytes(self) -> bytes:
        """The whole archive, with its end."""
        ended = Archive()
        ended._parts, ended._count = list(self._parts), self._count
        ended.add("TRAILER!!!", 0)
        return b"".join(ended._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def modules(kernel: Kernel) -> list[Path]:
    """
    The files of the modules to load before the root is mounted, each after those that it needs.

    @raise VMError: the kernel has one of them neither as module nor built in
    """
    needs: dict[str, list[str]] = {}
    paths: dict[str, Path] = {}
    for line in (kernel.modules / "modules.dep").read_text(encoding="utf-8").splitlines():
        path, _, rest = line.partition(":")
        paths[_name(path)] = kernel.modules / path
        needs[_name(path)] = [_name(other) for other in rest.split()]
    builtIn = {_name(line) for line in (kernel.modules / "modules.builtin").read_text(encoding="utf-8").split()}
    order: list[str] = []

    def take(name: str) -> None:
        if name in order or name in builtIn:
            return
        if name not in needs:
            raise VMError(f"kernel {kernel.release} has no module {name}")
        for other in needs[name]:
            take(other)
        order.append(name)

    for name in _MODULES:
        take(name)
    return [paths[name] for name in order]


def _name(path: str) -> str:
    """A module's name from its file's."""
    return Path(path).name.split(".ko")[0].replace("-", "_")


def build(kernel: Kernel) -> bytes:
    """
    The RAM disk for a kernel.

    @raise VMError: the kernel lacks something
    """
    archive = Archive()
    for directory in ("bin", "dev", "proc", "sys", "modules", "host", "changes", "root"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, kernel.busybox.read_bytes())
    archive.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    archive.add("init", stat.S_IFREG | 0o755, _INIT.read_bytes())
    for number, path in enumerate(modules(kernel)):
        content = path.read_bytes()
        archive.add(f"modules/{number:02}-{_name(path.name)}.ko", stat.S_IFREG | 0o644,
                    lzma.decompress(content) if path.suffix == ".xz" else content)
    return archive.bytes()
