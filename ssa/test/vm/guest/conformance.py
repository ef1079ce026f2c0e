# SPDX-License-Identifier: MIT
"""
The whole conformance suite on the kernel module, with real daemons: C{python -m ssa.test.vm.guest.conformance [--as WHO]
[MODULE...]}, as root.

It runs as root and as an ordinary user, both at a time: the guest has two processors.  Modules of cases that want the same
configuration share a daemon.
"""

from __future__ import annotations

import argparse
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

    @param argv: C{--as root} or C{--as user} for one of both, and modules.
    @return: the exit status; the last line is as trial's.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--as", dest="who", choices=("root", "user", "both"), default="both")
    parser.add_argument("modules", nargs="*")
    options = parser.parse_args(argv)
    ways = {"root": slice(0, 1), "user": slice(1, 2), "both": slice(0, 2)}[options.who]
    begun = time.monotonic()
    groups: dict[str, list[str]] = {}
    for module in options.modules or caseModules():
        groups.setdefault(configurationOf(module), []).append(module)
    total = Total()
    for text, modules in groups.items():
        with configured(text) as path, served(path), ThreadPoolExecutor() as pool:
            total = sum(pool.map(lambda interception, modules=modules: _all(interception, modules), kernel()[ways]), total)
    print(f"{time.monotonic() - begun:.0f} s")
    counts = f"failures={total.bad}, skips={total.skipped}, successes={total.good}"
    print(f"{'FAILED' if total.bad else 'PASSED'} ({counts})", flush=True)
    return 1 if total.bad or not total.good else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
