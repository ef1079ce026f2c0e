# SPDX-License-Identifier: MIT
"""What is wrong with the kernel module's source though it compiles: warnings, sparse's remarks, the kernel's style."""

from __future__ import annotations

import re
import subprocess

from ssa.test.vm import debugkernel, module
from ssa.test.vm.kernels import Kernel
from ssa.test.vm.place import find, require

#: The kernel's style but for what does not fit a module that is built outside of its tree, for several kernels.
_IGNORED = ("SPDX_LICENSE_TAG", "LINUX_VERSION_CODE", "EMBEDDED_FILENAME")
_REMARK = re.compile(r"^\S+:\d+:(?:\d+:)? (?:\w+: )?(?:warning|error|note):? .*$", re.MULTILINE)


def remarks(kernel: Kernel) -> list[str]:
    """
    Build the module with all warnings and look at it with sparse.

    @param kernel: against whose headers
    @return: a line each; empty if there is nothing to say
    @raise VMError: it does not build, or a program is missing
    """
    require("sparse")
    built = module.build(kernel, arguments=["W=1", "C=2", "CF=-D__CHECK_ENDIAN__"])
    return _REMARK.findall(built.said)


def checkpatch() -> tuple[list[str], str]:
    """
    Look at the source with the kernel's own C{checkpatch.pl --strict}, which is part of the debug kernel's source.

    @return: its remarks, a line each; and why it was not looked at, empty if it was
    """
    kernel = debugkernel.newestCached()
    script = kernel and kernel.headers / "scripts" / "checkpatch.pl"
    if not script or not script.exists() or not find("perl"):
        return [], "there is no checkpatch.pl: it comes with the debug kernel; and it needs perl"
    files = sorted([*module.SOURCE.glob("*.c"), *module.SOURCE.glob("*.h")])
    done = subprocess.run([find("perl") or "perl", str(script), "--no-tree", "--strict", "--terse", "--no-summary",
                           "--ignore", ",".join(_IGNORED), "-f", *map(str, files)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line.strip()], ""
