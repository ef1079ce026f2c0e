# SPDX-License-Identifier: MIT
"""
A kernel that finds what a test cannot see: use after free, lock order, sleep in atomic context, leaks; and that fails
allocations on request.

Debian's own source of 6.1, tinyconfig and C{debug.config}.  Built once for each content of those two.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ssa.test.vm.kernels import DEBUG, Kernel, load
from ssa.test.vm.packages import field, refresh, unpack
from ssa.test.vm.place import BUILD, VMError, alone, clear, require, run

_SOURCE = "linux-source-6.1"
_FRAGMENT = Path(__file__).with_name("debug.config")
#: What neither the boot nor the build of a module needs; most of the tree's size.
_SUPERFLUOUS = ("Documentation", "block", "certs", "crypto", "drivers", "fs", "init", "io_uring", "ipc", "kernel", "lib", "mm",
                "net", "rust", "samples", "security", "sound", "usr", "virt", "vmlinux", "vmlinux.a", "vmlinux.o")


def lost(fragment: str, config: str) -> list[str]:
    """
    The fragment's lines that a configuration does not have: Kconfig drops, without a word, what depends on another option.

    @param fragment: lines C{CONFIG_X=value}, where C{n} is "not set"
    @param config: a whole C{.config}
    """
    wanted = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", fragment, re.MULTILINE))
    has = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", config, re.MULTILINE))
    return [f"{name}={value}" for name, value in wanted.items() if has.get(name, "n") != value]


def directoryFor(version: str) -> Path:
    """Where the kernel of this fragment and that version of the source is, or will be."""
    content = hashlib.sha256(version.encode() + b"\n" + _FRAGMENT.read_bytes()).hexdigest()
    return BUILD / f"{DEBUG}-{content[:12]}"


def newestCached() -> Kernel | None:
    """The debug kernel that was built last with this fragment, or C{None}; no network, no apt."""
    found = [kernel for path in BUILD.glob(f"{DEBUG}-*") if path.suffix != ".new" and (kernel := load(path)) is not None]
    fitting = [kernel for kernel in found if directoryFor(kernel.version) == kernel.directory]
    return max(fitting, key=lambda kernel: kernel.image.stat().st_mtime, default=None)


def build(again: bool = False, tell: Callable[[str], None] = print) -> Kernel:
    """
    The debug kernel, from C{build/vm} if this fragment was built before.

    @param again: see whether apt has a newer source, and build that
    @param tell: gets a line about what is being done
    @raise VMError: something is missing, the configuration cannot be had, or the build failed
    """
    with alone(DEBUG):
        found = newestCached()
        return found if found is not None and not again else _build(tell)


def _build(tell: Callable[[str], None]) -> Kernel:
    """Build from the newest source unless that was done."""
    require("apt-get", "bc", "bison", "dpkg", "depmod", "flex", "gcc", "make", "tar", "xz")
    try:
        version = field(_SOURCE, "Version")
    except VMError:
        refresh()
        version = field(_SOURCE, "Version")
    target = directoryFor(version)
    found = load(target)
    if found is not None:
        return found
    tell(f"building the debug kernel from {_SOURCE} {version}: ten to twenty minutes of processor time, once")
    directory = clear(target.with_name(target.name + ".new"))
    unpack([_SOURCE, "busybox-static"], directory)
    archive = directory / "usr" / "src" / f"{_SOURCE}.tar.xz"
    run(["tar", "-xf", archive, "-C", directory])
    shutil.rmtree(directory / "usr" / "src")
    tree = directory / _SOURCE
    _compile(tree)
    release = run(["make", "-s", "kernelrelease"], tree).strip()
    kernel = Kernel(DEBUG, release, version, directory)
    # Compressed: KASAN does not work yet where the ELF image would start (PVH), and the processor faults.
    shutil.copyfile(tree / "arch" / "x86" / "boot" / "bzImage", kernel.image)
    run(["make", "-s", "modules_install", f"INSTALL_MOD_PATH={directory}"], tree)
    for name in ("build", "source"):
        (kernel.modules / name).unlink(missing_ok=True)
    _trim(tree)
    kernel.headers.symlink_to(tree.name)
    kernel.record()
    directory.rename(target)
    return Kernel(DEBUG, release, version, target)


def _compile(tree: Path) -> None:
    """Configure and build the kernel and its modules."""
    fragment = _FRAGMENT.read_text(encoding="utf-8")
    run(["make", "-s", "tinyconfig"], tree)
    config = tree / ".config"
    with config.open("a", encoding="utf-8") as configuration:
        configuration.write(fragment)
    run(["make", "-s", "olddefconfig"], tree)
    dropped = lost(fragment, config.read_text(encoding="utf-8"))
    if dropped:
        raise VMError("the debug kernel's configuration loses " + " ".join(dropped))
    run(["make", "-s", f"-j{os.cpu_count() or 1}", "bzImage", "modules"], tree)


def _trim(tree: Path) -> None:
    """Leave only what building a module needs."""
    for name in _SUPERFLUOUS:
        path = tree / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for pattern in ("arch/**/*.o", "arch/**/*.a"):
        for path in tree.glob(pattern):
            path.unlink()
    for path in (tree / "arch").iterdir():
        if path.is_dir() and path.name != "x86":
            shutil.rmtree(path)
