# SPDX-License-Identifier: MIT
"""
The whole conformance suite on the kernel module, with real daemons: C{python -m ssa.test.vm.guest.conformance [MODULE...]}, as
root.

It runs as root and as an ordinary user, both at a time: the guest has two processors.  Modules of cases that want the same
configuration share a daemon.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ssa.test.conformance.kernel import served
from ssa.test.conformance.runner import Interception, Run, Total, caseModules, configurationOf, configured, kernel, report


def _all(interception: Interception, modules: Sequence[str]) -> Total:
    total = Total()
    for module in modules:
        begun = time.monotonic()
        total += report(Run(interception, module, isServed=True))
        print(f"{interception.name}: {module}: {time.monotonic() - begun:.0f} s", flush=True)
    return total


def main(argv: Sequence[str]) -> int:
    """
    Run the modules of cases, by default all.

    @return: the exit status; the last line is as trial's.
    """
    begun = time.monotonic()
    groups: dict[str, list[str]] = {}
    for module in argv or caseModules():
        groups.setdefault(configurationOf(module), []).append(module)
    total = Total()
    for text, modules in groups.items():
        with configured(text) as path, served(path), ThreadPoolExecutor() as pool:
            total = sum(pool.map(lambda interception, modules=modules: _all(interception, modules), kernel()), total)
    print(f"{time.monotonic() - begun:.0f} s")
    counts = f"failures={total.bad}, skips={total.skipped}, successes={total.good}"
    print(f"{'FAILED' if total.bad else 'PASSED'} ({counts})", flush=True)
    return 1 if total.bad or not total.good else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
