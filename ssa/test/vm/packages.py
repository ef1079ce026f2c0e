# SPDX-License-Identifier: MIT
"""Debian packages, downloaded with the machine's own apt and unpacked without installing them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ssa.test.vm.place import VMError, require, run


def _numbers(name: str) -> tuple[int, ...]:
    """A key that sorts kernel releases: the numbers in the name, in order."""
    return tuple(int(number) for number in re.findall(r"\d+", name))


def offered(pattern: str) -> list[str]:
    """
    The names of apt's packages that a pattern matches in full, the newest release first.

    @param pattern: a regular expression
    """
    names = [name for name in run(["apt-cache", "pkgnames"]).split() if re.fullmatch(pattern, name)]
    return sorted(names, key=_numbers, reverse=True)


def field(name: str, key: str) -> str:
    """
    One field of the candidate version of a package, such as C{Version} or C{Depends}.

    @return: its value, empty without such a field
    @raise VMError: apt has no candidate of that name
    """
    record = run(["apt-cache", "show", "--no-all-versions", name])
    found = re.search(rf"^{re.escape(key)}: (.*)$", record, re.MULTILINE)
    return found[1] if found else ""


def dependencies(name: str, pattern: str) -> list[str]:
    """The packages that one depends on, first alternatives only, as far as a pattern matches their names in full."""
    first = [entry.split("|")[0].split()[0] for entry in field(name, "Depends").split(",") if entry.strip()]
    return [entry for entry in first if re.fullmatch(pattern, entry)]


def refresh() -> None:
    """
    Fetch apt's lists again, which only root may.

    @raise VMError: not root, or apt failed
    """
    if os.geteuid() != 0:
        raise VMError("apt's lists have not what is needed: run apt-get update as root")
    run(["apt-get", "-q", "update"])


def unpack(names: Sequence[str], root: Path) -> None:
    """
    Download packages and unpack them into one directory; no script of theirs runs and dpkg's database does not change.

    The candidate versions are taken.  Lists that are too old for the archive are fetched again, once, if that is allowed.

    @param root: exists or is made
    @raise VMError: apt does not offer them, or could not fetch them
    """
    require("apt-get", "dpkg")
    download = root / "download"
    download.mkdir(parents=True, exist_ok=True)
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    command = ["apt-get", "-q", *sandbox, "download", *names]
    try:
        run(command, download)
    except VMError:
        refresh()
        run(command, download)
    for archive in sorted(download.glob("*.deb")):
        run(["dpkg", "-x", archive, root])
        archive.unlink()
    download.rmdir()
