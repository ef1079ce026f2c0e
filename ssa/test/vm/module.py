# SPDX-License-Identifier: MIT
"""Building a kernel module against a kernel of the virtual machine."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssa.test.vm.kernels import DEBUG, Kernel, relocate
from ssa.test.vm.place import BUILD, ROOT, VMError, alone, require, run

#: The project's module.
SOURCE = ROOT / "kernel-module"
_MADE = shutil.ignore_patterns("*.o", "*.ko", "*.mod", "*.mod.c", "modules.order", "Module.symvers", ".*", "__pycache__")


@dataclass(frozen=True)
class Built:
    """
    A module that was built.

    @ivar module: the file C{NAME.ko}
    @ivar said: what make and the compiler said, warnings included
    """

    module: Path
    said: str


def exists(source: Path = SOURCE) -> bool:
    """Whether there is something that Kbuild can build."""
    files = [source / name for name in ("Kbuild", "Makefile")]
    return any("obj-m" in path.read_text(encoding="utf-8") for path in files if path.exists())


def build(kernel: Kernel, source: Path = SOURCE, arguments: Sequence[str] = ()) -> Built:
    """
    Build a copy of the sources, so that the source directory stays clean and each kernel has its own objects.

    @param kernel: to build against
    @param source: a directory with a Kbuild file
    @param arguments: for make, such as C{W=1}
    @raise VMError: it does not build; the message has the compiler's errors
    """
    require("make", "gcc", "pahole")
    if not exists(source):
        raise VMError(f"{source} has no Kbuild file with obj-m")
    key = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    name = f"module-{kernel.name}-{source.resolve().name}-{key}"
    target = BUILD / name
    with alone(name):
        if kernel.name != DEBUG:
            relocate(kernel)
        shutil.copytree(source, target, ignore=_MADE, dirs_exist_ok=True)
        for old in target.glob("*.ko"):
            old.unlink()
        jobs = f"-j{os.cpu_count() or 1}"
        said = run(["make", jobs, "-C", kernel.headers, f"M={target}", *arguments, "modules"], errors=True)
        modules = sorted(target.glob("*.ko"))
        if len(modules) != 1:
            raise VMError(f"{source} makes {len(modules)} modules, not one")
    return Built(modules[0], said)
