# SPDX-License-Identifier: MIT
"""Debian's kernels for the guest: fetched once, kept below C{build/vm}."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssa.test.vm.image import extract
from ssa.test.vm.packages import dependencies, field, offered, refresh, unpack
from ssa.test.vm.place import BUILD, VMError, alone, clear, require, run

#: The series that the module supports and that are tested.
SERIES = ("6.1", "6.12")
#: The name under which the kernel of L{ssa.test.vm.debugkernel} is asked for.
DEBUG = "debug"
_RECORD = "kernel.json"


@dataclass(frozen=True)
class Kernel:
    """
    A kernel that can be booted, with its modules and what building others against it needs.

    @ivar name: C{6.1}, C{6.12} or C{debug}
    @ivar release: what C{uname -r} says in the guest
    @ivar version: the version of the package that it is from
    @ivar directory: where all of it is
    """

    name: str
    release: str
    version: str
    directory: Path

    @property
    def busybox(self) -> Path:
        """A static busybox for the initial RAM disk."""
        return self.directory / "bin" / "busybox"

    @property
    def image(self) -> Path:
        """What QEMU loads."""
        return self.directory / "image"

    @property
    def modules(self) -> Path:
        """The guest's C{/lib/modules/RELEASE}."""
        return self.directory / "lib" / "modules" / self.release

    @property
    def headers(self) -> Path:
        """The tree for C{make -C}."""
        return self.directory / "headers"

    def record(self) -> None:
        """Write down that the kernel is complete: what L{load} finds is only that."""
        text = json.dumps({"name": self.name, "release": self.release, "version": self.version})
        (self.directory / _RECORD).write_text(text, encoding="utf-8")


def load(directory: Path) -> Kernel | None:
    """The kernel in a directory, or C{None} if none was completed there."""
    try:
        found = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Kernel(found["name"], found["release"], found["version"], directory)


def cached(name: str) -> Kernel | None:
    """The kernel of a series if it was fetched before; no network, no apt."""
    return load(BUILD / name)


def _newest(series: str) -> tuple[str, list[str]]:
    """
    The newest release that apt has with its headers.

    @return: the release and the packages to unpack
    @raise VMError: there is none
    """
    pattern = rf"linux-image-{re.escape(series)}\.\d[\d.]*(-\d+|\+deb\d+)?-amd64"
    for image in offered(pattern):
        release = image.removeprefix("linux-image-")
        headers = f"linux-headers-{release}"
        if offered(re.escape(headers)):
            return release, [image, headers, *dependencies(headers, r"linux-headers-.*-common|linux-kbuild-.*")]
    raise VMError(f"apt offers no kernel {series} with headers (Debian 12 with its security updates has both series)")


def fetch(series: str, again: bool = False, tell: Callable[[str], None] = print) -> Kernel:
    """
    A Debian kernel with its modules and headers, from C{build/vm} if it is there already.

    @param series: one of L{SERIES}
    @param again: look for a newer release, and fetch it if there is one
    @param tell: gets a line about what is being done
    @raise VMError: apt does not have it, or a program is missing
    """
    with alone(series):
        found = cached(series)
        return found if found is not None and not again else _fetch(series, found, tell)


def _fetch(series: str, found: Kernel | None, tell: Callable[[str], None]) -> Kernel:
    """Fetch the newest release unless it is the one that was found."""
    require("apt-get", "dpkg", "depmod")
    try:
        release, packages = _newest(series)
    except VMError:
        refresh()
        release, packages = _newest(series)
    if found is not None and found.release == release:
        return found
    tell(f"fetching {' '.join(packages)}")
    directory = clear(BUILD / f"{series}.new")
    unpack([*packages, "busybox-static"], directory)
    version = field(packages[0], "Version")
    kernel = Kernel(series, release, version, directory)
    extract(directory / "boot" / f"vmlinuz-{release}", kernel.image)
    for name in ("build", "source"):
        (kernel.modules / name).unlink(missing_ok=True)
    run(["depmod", "-b", directory, release])
    kernel.headers.symlink_to(Path("usr") / "src" / f"linux-headers-{release}")
    kernel.record()
    target = BUILD / series
    shutil.rmtree(target, ignore_errors=True)
    directory.rename(target)
    return Kernel(series, release, version, target)


def relocate(kernel: Kernel) -> None:
    """
    Make the headers of a Debian kernel usable where they are now: their Makefile names its other half by absolute path.
    """
    makefile = kernel.headers / "Makefile"
    text = makefile.read_text(encoding="utf-8")
    here = re.sub(r"^include .*/(linux-headers-[^/]+-common/Makefile)$", rf"include {kernel.directory}/usr/src/\1", text,
                  flags=re.MULTILINE)
    if here != text:
        makefile.write_text(here, encoding="utf-8")
