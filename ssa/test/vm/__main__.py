# SPDX-License-Identifier: MIT
"""C{python -m ssa.test.vm}: fetch kernels, build modules, run commands and the scenarios in the virtual machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ssa.test.vm import debugkernel, kernels, module, scenarios
from ssa.test.vm.command import Command
from ssa.test.vm.kernels import DEBUG, SERIES, Kernel
from ssa.test.vm.machine import FAILED, Machine
from ssa.test.vm.place import VMError, require


def obtain(name: str, again: bool = False) -> Kernel:
    """
    A kernel by name, fetched or built if it is not there.

    @raise VMError: it cannot be had
    """
    return debugkernel.build(again, _tell) if name == DEBUG else kernels.fetch(name, again, _tell)


def _tell(line: str) -> None:
    """Progress, on standard error, since a command's output is on the other."""
    print(line, file=sys.stderr, flush=True)


def _say(line: str) -> None:
    """A result, at once."""
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ssa.test.vm", description="a virtual machine to test the kernel module in")
    actions = parser.add_subparsers(dest="action", required=True)

    def add(name: str, text: str, **options: object) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--kernel", choices=(*SERIES, DEBUG), **options)  # type: ignore[arg-type]
        return action

    fetch = add("fetch", "get the kernels, by default both of Debian's", action="append")
    fetch.add_argument("--again", action="store_true", help="look for newer ones")
    buildDebug = actions.add_parser("build-debug-kernel", help="build the debug kernel if that was not done")
    buildDebug.add_argument("--again", action="store_true", help="from the newest source")
    build = add("build", "build a kernel module and print its path", default="6.1")
    build.add_argument("--source", type=Path, default=module.SOURCE, help="the module's directory")
    build.add_argument("arguments", nargs="*", metavar="NAME=VALUE", help="for make, such as W=1")
    test = add("test", "run the scenarios", action="append")
    test.add_argument("--serial", action="store_true", help="one machine at a time")
    test.add_argument("names", nargs="*", help="parts of the names of those to run")
    for name, text in (("run", "run a command in the guest and end with its status"), ("shell", "a shell in the guest")):
        action = add(name, text, default="6.1")
        action.add_argument("--user", type=int, default=0, metavar="NUMBER", help="run as this user instead of root")
        action.add_argument("--directory", type=Path, default=Path.cwd(), help="working directory")
        action.add_argument("--exchange", type=Path, help="a directory that the guest may write, at $SSA_VM_EXCHANGE")
        action.add_argument("--environment", action="append", default=[], metavar="NAME=VALUE", help="a variable to set")
        action.add_argument("--module", action="store_true", help="build the module and load it before")
        action.add_argument("--source", type=Path, default=module.SOURCE, help="the module's directory")
        action.add_argument("--memory", type=int, default=Machine.memory, help="MiB")
        action.add_argument("--processors", type=int, default=Machine.processors, help="how many")
        action.add_argument("--parameter", action="append", default=[], help="a word for the kernel's command line")
        action.add_argument("--qemu", action="append", default=[], metavar="OPTION", help="a word for QEMU's command line")
        if name == "run":
            action.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="after which it counts as hung")
            action.add_argument("--leaks", action="store_true", help="look for leaked memory afterwards (debug kernel)")
            action.add_argument("command", nargs="+", help="the command, after --")
    return parser


def _boot(options: argparse.Namespace) -> int:
    """C{run} and C{shell}."""
    require("qemu-system-x86_64")
    kernel = obtain(options.kernel)
    built = module.build(kernel, options.source).module if options.module else None
    interactive = options.action == "shell"
    environment = dict(entry.partition("=")[::2] for entry in options.environment)
    if interactive:
        environment.setdefault("TERM", "vt100")
    command = Command(["/bin/bash", "-i"] if interactive else options.command, user=options.user,
                      directory=options.directory.absolute(), environment=environment, module=built,
                      leaks=not interactive and options.leaks, terminal=interactive)
    machine = Machine(kernel, options.memory, options.processors, options.parameter, options.qemu)
    if options.exchange is not None:
        options.exchange.mkdir(parents=True, exist_ok=True)

    def hear(data: bytes) -> None:
        sys.stdout.buffer.write(data.replace(b"\r\n", b"\n"))
        sys.stdout.flush()

    outcome = machine.run(command, 0.0 if interactive else options.timeout, options.exchange, hear)
    if outcome.problem:
        _tell(f"vm {kernel.name}: {outcome.problem}")
    _tell(f"vm {kernel.name}: status {outcome.status}, {outcome.seconds:.1f} s, booted in {outcome.booted:.1f} s")
    return outcome.status


def _test(options: argparse.Namespace) -> int:
    """C{test}: the last line is as trial's."""
    require("qemu-system-x86_64")
    wanted = [obtain(name) for name in options.kernel or SERIES]
    # A machine waits as much as it works, and so two together take hardly longer than one.
    machines = 1 if options.serial else min(2, os.cpu_count() or 1)
    total = scenarios.runAll(wanted, options.names, machines, _say)
    words = [f"{word}={count}" for word, count in zip(("successes", "failures", "skips"), total, strict=True) if count]
    print(f"{'FAILED' if total[1] else 'PASSED'} ({', '.join(words)})", flush=True)
    return 1 if total[1] or not total[0] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """
    The command line.

    @return: the exit status: the command's in the guest, 125 if the machine failed, 1 if scenarios failed
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # so that QEMU does not outlive us
    try:
        if options.action in ("run", "shell"):
            return _boot(options)
        if options.action == "test":
            return _test(options)
        if options.action == "build":
            built = module.build(obtain(options.kernel), options.source, options.arguments)
            _tell(built.said.rstrip())
            print(built.module)
        elif options.action == "build-debug-kernel":
            print(obtain(DEBUG, options.again).directory)
        else:
            for name in options.kernel or SERIES:
                kernel = obtain(name, options.again)
                print(f"{name}: {kernel.release}, package version {kernel.version}, in {kernel.directory}")
    except VMError as error:
        _tell(f"vm: {error}")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
