# SPDX-License-Identifier: MIT
"""Where the virtual machine's files are, and which programs of the host it needs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parents[3]
#: All that is made or fetched here; the variable puts it where C{make clean} and other checkouts leave it alone.
BUILD = Path(os.environ.get("SSA_VM_CACHE") or ROOT / "build" / "vm").absolute()

#: Each program that is needed somewhere, and the Debian package that has it.
PACKAGES: Mapping[str, str] = {
    "apt-get": "apt",
    "bc": "bc",
    "bison": "bison",
    "depmod": "kmod",
    "dpkg": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    "make": "make",
    "pahole": "dwarves",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "sparse": "sparse",
    "tar": "tar",
    "xz": "xz-utils",
    "zstd": "zstd",
}


class VMError(Exception):
    """The virtual machine cannot do what was asked, and why: a missing program or package, a failed build."""


def find(program: str) -> str | None:
    """
    A program's path, also where an ordinary user's C{PATH} has no C{sbin}.

    @return: the path, or C{None}
    """
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def missing(programs: Iterable[str]) -> list[str]:
    """Those of the programs that the host does not have."""
    return [program for program in programs if find(program) is None]


def require(*programs: str) -> None:
    """
    Go on only if the host has these programs.

    @raise VMError: some are missing; the message names the packages
    """
    absent = missing(programs)
    if absent:
        packages = " ".join(sorted({PACKAGES[program] for program in absent}))
        raise VMError(f"{', '.join(absent)} not found: apt-get install {packages}")


def run(arguments: Sequence[str | Path], directory: Path | None = None, errors: bool = False) -> str:
    """
    Run a program of the host and wait for it, without a terminal.

    @param errors: return what it writes to standard error as well
    @return: its standard output
    @raise VMError: it failed; the message ends with the last lines of what it said
    """
    words = [str(argument) for argument in arguments]
    found = find(words[0])
    if found is None:
        require(words[0])
    done = subprocess.run([found or words[0], *words[1:]], cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT if errors else subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        said = "\n".join((done.stdout + (done.stderr or "")).splitlines()[-40:])
        raise VMError(f"{' '.join(words)}: status {done.returncode}\n{said}")
    return done.stdout


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """
    Keep other processes out of one thing below L{BUILD}, a kernel or a module, while it is being made: they wait.

    @param name: of the thing
    @raise VMError: nothing may be made there
    """
    try:
        BUILD.mkdir(parents=True, exist_ok=True)
        lock = (BUILD / f"{name}.lock").open("w")
    except OSError as error:
        raise VMError(f"{error.filename}: {error.strerror} (the variable SSA_VM_CACHE names another directory)") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clear(directory: Path) -> Path:
    """An empty directory where perhaps one with content was."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory
