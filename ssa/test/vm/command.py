# SPDX-License-Identifier: MIT
"""A command line for the guest, and the shell scripts that carry it there."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssa.test.vm.kernels import Kernel
from ssa.test.vm.place import ROOT

#: Where the guest has the directory that it shares with the host, and the variable that says so.
EXCHANGE = "/run/vm/exchange"
#: Where the guest has the scripts, the module and the place for the result.
CONTROL = "/run/vm/control"
_SESSION = Path(__file__).with_name("session.sh")


@dataclass(frozen=True)
class Command:
    """
    What runs in the guest.

    @ivar arguments: the program and its arguments; the program is looked for beside this interpreter first
    @ivar user: the number of the user (and group) that it runs as
    @ivar directory: its working directory, a path of the host
    @ivar environment: variables in addition to the few that are always set
    @ivar module: a kernel module (the host's path) that root loads before, with what it depends on; C{SSA_VM_MODULE} is its
        path in the guest
    @ivar leaks: look for memory leaked in the kernel afterwards; only the debug kernel can
    @ivar terminal: the console is its terminal, for a person
    """

    arguments: Sequence[str]
    user: int = 0
    directory: Path = ROOT
    environment: Mapping[str, str] = field(default_factory=dict)
    module: Path | None = None
    leaks: bool = False
    terminal: bool = False

    def variables(self) -> dict[str, str]:
        """The command's whole environment."""
        path = [f"{sys.prefix}/bin", *(f"{prefix}/{name}" for prefix in ("/usr/local", "/usr", "") for name in ("sbin", "bin"))]
        return {
            "HOME": "/run/vm/home" if self.user else "/root",
            "LANG": "C.UTF-8",
            "PATH": ":".join(path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(ROOT),
            "SSA_VM_EXCHANGE": EXCHANGE,
            "TERM": "dumb",
            **({"SSA_VM_MODULE": f"{CONTROL}/{self.module.name}"} if self.module else {}),
            **self.environment,
        }

    def write(self, kernel: Kernel, directory: Path) -> None:
        """
        Write what C{init.sh} and C{session.sh} look for into the directory that they share with the host.

        @param kernel: the guest's
        @param directory: exists
        """
        settings = {
            "MODULES": str(kernel.modules),
            "RELEASE": kernel.release,
            "LOAD": f"{CONTROL}/{self.module.name}" if self.module else "",
            "LEAKS": "yes" if self.leaks else "",
            "NUMBER": str(self.user),
            "SHELL_WANTED": "yes" if self.terminal else "",
            "PATH": self.variables()["PATH"],
        }
        (directory / "settings.sh").write_text(_assignments(settings), encoding="utf-8")
        words = ["env", "-i", *(f"{name}={value}" for name, value in self.variables().items()), *self.arguments]
        if self.user:
            words = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--", *words]
        (directory / "command.sh").write_text(
            f"ulimit -Sn 1024\ncd {shlex.quote(str(self.directory))} || exit 125\nexec {shlex.join(words)}\n", encoding="utf-8")
        if self.module:
            shutil.copyfile(self.module, directory / self.module.name)
        (directory / "session.sh").write_bytes(_SESSION.read_bytes())


def hidden(user: int) -> str:
    """
    The first directory on the way to the checkout or to this interpreter that keeps an ordinary user out.

    @param user: 0 may go everywhere
    @return: its path; empty if there is none
    """
    for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve()):
        for directory in (path, *path.parents):
            if user and not directory.stat().st_mode & 0o001:
                return str(directory)
    return ""


def _assignments(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
