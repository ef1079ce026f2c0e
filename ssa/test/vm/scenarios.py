# SPDX-License-Identifier: MIT
"""What C{make test-vm} and C{make test-vm-debug} run, each in a machine of its own."""

from __future__ import annotations

import compileall
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

from ssa.test.vm import module, style
from ssa.test.vm.command import Command, hidden
from ssa.test.vm.kernels import DEBUG, SERIES, Kernel
from ssa.test.vm.machine import Machine, Outcome
from ssa.test.vm.place import ROOT, VMError

#: The number of the ordinary user in the guest.
USER = 1000

#: For the cases and their peers.  The emulator takes a minute for 64 MiB, and what they could show is shown by 8.
_EMULATED = {"SSA_CONFORMANCE_PATIENCE": "5", "SSA_CONFORMANCE_BYTES": str(8 << 20), "SSA_CONFORMANCE_CONNECTIONS": "300"}
#: The debug kernel is several times slower than Debian's.
_DEBUG_PATIENCE = {"SSA_CONFORMANCE_PATIENCE": "15"}
_DEBUG_SLOWER = 2.0


@dataclass(frozen=True)
class Scenario:
    """
    One boot and what is expected of it.

    @ivar name: says what is tested
    @ivar arguments: the command
    @ivar user: the number of the user that runs it
    @ivar kernels: the names of the kernels that it is for
    @ivar module: build the project's module and load it first
    @ivar leaks: look for leaked memory after it (the debug kernel only; ignored elsewhere)
    @ivar timeout: seconds, generous: the emulator shares its host; twice that on the debug kernel
    @ivar environment: variables of the command
    @ivar parameters: words for the kernel's command line
    @ivar problem: a pattern that the machine's problem has to match: the machine is meant to fail
    @ivar program: the path of a program of the host's without which it is skipped, and the package that has it
    """

    name: str
    arguments: Sequence[str]
    user: int = 0
    kernels: Sequence[str] = (*SERIES, DEBUG)
    module: bool = False
    leaks: bool = False
    timeout: float = 600.0
    environment: Mapping[str, str] = field(default_factory=lambda: _EMULATED)
    parameters: Sequence[str] = ()
    problem: str = ""
    program: tuple[str, str] = ("/bin/sh", "dash")

    def run(self, kernel: Kernel, built: Path | None, stop: Event) -> Outcome:
        """
        Boot and run it.

        @param kernel: to boot
        @param built: the project's module for that kernel; used if L{module} says so
        @param stop: once it is set, the machine is stopped
        @raise VMError: it cannot be run on this host
        """
        blocked = hidden(self.user)
        if blocked:
            raise VMError(f"the guest's user cannot enter {blocked}: use a virtual environment made by /usr/bin/python3")
        built = built if self.module else None
        environment, timeout, leaks = self.environment, self.timeout, False
        if kernel.name == DEBUG:
            environment, timeout, leaks = {**environment, **_DEBUG_PATIENCE}, timeout * _DEBUG_SLOWER, self.leaks
        command = Command(self.arguments, user=self.user, environment=environment, module=built, leaks=leaks)
        return Machine(kernel, parameters=self.parameters).run(command, timeout, stop=stop)

    def passed(self, outcome: Outcome) -> bool:
        """Whether it ended as it was meant to."""
        if self.problem:
            return re.search(self.problem, outcome.problem) is not None
        return outcome.status == 0 and not outcome.problem


_PYTHON = "import sys, ssa.api, twisted; sys.exit(open('/proc/self/uid_map').read().split()[1] != sys.argv[1])"
_FREED = "modprobe lkdtm; echo WRITE_AFTER_FREE >/sys/kernel/debug/provoke-crash/DIRECT; sleep 60"
#: Modules of cases for the debug kernel, in place of all: it is slow.
_CASES = os.environ.get("SSA_VM_CASES", "").split()
_WHO = {"both": "root and as an ordinary user", "root": "root", "user": "an ordinary user"}


def whoConforms(text: str) -> dict[str, str]:
    """
    Read who runs the conformance suite on which kernel, by default both users on each.

    @param text: C{"6.1=root 6.12=user"} takes half of the time.
    @return: by the kernel's name, C{"root"}, C{"user"} or C{"both"}.
    @raise VMError: it says something else.
    """
    chosen = dict.fromkeys(SERIES, "both")
    for word in text.split():
        series, _, who = word.partition("=")
        if series not in chosen or who not in _WHO:
            raise VMError(f"SSA_VM_CONFORMANCE: {word!r} is none of {', '.join(SERIES)} with =root, =user or =both")
        chosen[series] = who
    return chosen


_CONFORMANCE = whoConforms(os.environ.get("SSA_VM_CONFORMANCE", ""))
_KTLS = "modprobe tls && exec python -m ssa.test.vm.guest.ktls"
_RELOAD = "rmmod ssa && insmod $SSA_VM_MODULE && rmmod ssa"


def _guest(name: str, *arguments: str) -> list[str]:
    return ["python", "-m", f"ssa.test.vm.guest.{name}", *arguments]


#: First those that show that a pass means something: the machine finds what it is there to find.
SCENARIOS: Sequence[Scenario] = (
    Scenario("the project's Python runs as root", ["python", "-c", _PYTHON, "0"]),
    Scenario("an ordinary user may make namespaces", ["unshare", "-Urn", "python", "-c", _PYTHON, str(USER)], user=USER),
    Scenario("kTLS can be loaded", ["sh", "-c", "modprobe tls && grep -w tls /proc/modules"]),
    Scenario("a panic is a failure", ["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"], problem="sysrq triggered crash"),
    Scenario("a use after free is a failure", ["sh", "-c", _FREED], kernels=(DEBUG,), problem="KASAN: .*use-after-free"),
    Scenario("the module can be loaded and unloaded", ["sh", "-c", _RELOAD], module=True, leaks=True),
    Scenario("workers of one daemon, and what /proc says", _guest("workers"), module=True, leaks=True),
    *(Scenario(f"conformance, as {_WHO[who]}", _guest("conformance", "--as", who), module=True, kernels=(series,),
               timeout=3600.0) for series, who in _CONFORMANCE.items()),
    Scenario("conformance, as root and as an ordinary user", _guest("conformance", *_CASES), module=True, leaks=True,
             kernels=(DEBUG,), timeout=7200.0),
    Scenario("kTLS", ["sh", "-c", _KTLS], module=True, leaks=True, timeout=1800.0),
    Scenario("users have TLS, and no rights of the daemon", _guest("privileges"), module=True, leaks=True),
    Scenario("one daemon serves all network namespaces", _guest("namespaces"), module=True, leaks=True),
    Scenario("the daemon dies, stops and comes back", _guest("restarts"), module=True, leaks=True, timeout=900.0),
    Scenario("the unit under systemd", _guest("unit"), module=True, kernels=SERIES, timeout=1800.0,
             program=("/lib/systemd/systemd", "systemd")),
    Scenario("a daemon that does nothing keeps nobody waiting", _guest("asleep"), module=True, leaks=True, timeout=900.0),
    Scenario("connections leave nothing", _guest("soak", os.environ.get("SSA_VM_CONNECTIONS", "10000")), module=True,
             timeout=3600.0, parameters=["slab_nomerge"], kernels=SERIES),
    Scenario("faults in every call and every request", _guest("faults"), kernels=(DEBUG,), module=True, leaks=True,
             timeout=1800.0),
    Scenario("malformed netlink, from the daemon and from strangers", _guest("fuzz"), module=True, leaks=True, timeout=1800.0),
    Scenario("everything at once, and killed at any moment", _guest("stress"), module=True, kernels=SERIES, timeout=1200.0),
    Scenario("everything at once, and killed at any moment", _guest("stress", "--seconds", "180"), module=True, leaks=True,
             kernels=(DEBUG,), timeout=3600.0),
    Scenario("loaded and unloaded again and again", _guest("reload"), module=True, leaks=True, timeout=2400.0),
    Scenario("unloaded when nothing needs it, and loaded again", _guest("unload"), module=True, leaks=True, timeout=1200.0),
)


#: What is looked at without a boot: gives lines about what is wrong, and why it could not be looked at.
_CHECKS: Mapping[str, Callable[[Kernel], tuple[list[str], str]]] = {
    "the module is built without a warning, also of sparse": lambda kernel: (style.remarks(kernel), ""),
    "the module is in the kernel's style": lambda kernel: style.checkpatch(),
}


def runAll(kernels: Sequence[Kernel], wanted: Sequence[str] = (), machines: int = 1,
           tell: Callable[[str], None] = print) -> tuple[int, int, int]:
    """
    Run the scenarios of some kernels.

    @param kernels: to boot
    @param wanted: parts of names; empty for all
    @param machines: how many run at a time
    @param tell: gets a line for each, and the console of those that failed; not called by two threads at a time
    @return: how many succeeded, failed, and were skipped since there is no module or no tool
    @raise VMError: they cannot be run on this host
    """
    # The guest does not write what it compiles, and would do it again for each program.
    compileall.compile_dir(ROOT / "ssa", quiet=2, workers=0)
    total = Counter[str]()
    telling, stop = Lock(), Event()
    there = module.exists()

    def chosen(name: str) -> bool:
        return not wanted or any(part in name for part in wanted)

    def judge(kernel: Kernel, name: str, result: str, why: str = "", said: Sequence[str] = ()) -> None:
        with telling:
            total[result] += 1
            for line in said:
                tell(line)
            tell(f"{kernel.name}: {name} ... {result}{why and ', '}{why}")

    def boot(job: tuple[Scenario, Kernel]) -> None:
        scenario, kernel = job
        if stop.is_set():
            return
        if scenario.module and not there:
            judge(kernel, scenario.name, "skipped", "there is no module")
            return
        program, package = scenario.program
        if not os.path.exists(program):
            judge(kernel, scenario.name, "skipped", f"there is no {program}: apt-get install {package}")
            return
        outcome = scenario.run(kernel, built.get(kernel.name), stop)
        if scenario.passed(outcome):
            judge(kernel, scenario.name, "ok", f"{outcome.seconds:.1f} s")
        else:
            judge(kernel, scenario.name, "FAILED", outcome.problem or f"status {outcome.status}", [outcome.console.rstrip()])

    for kernel in kernels:
        for name, check in _CHECKS.items():
            if there and chosen(name):
                problems, skip = check(kernel)
                judge(kernel, name, "FAILED" if problems else "skipped" if skip else "ok", skip, problems)
    jobs = [(scenario, kernel) for scenario in SCENARIOS for kernel in kernels
            if kernel.name in scenario.kernels and chosen(scenario.name)]
    needed = {kernel.name: kernel for scenario, kernel in jobs if there and scenario.module}
    built = {name: module.build(kernel).module for name, kernel in needed.items()}
    with ThreadPoolExecutor(machines) as pool:
        try:
            for _ in pool.map(boot, jobs):
                pass
        finally:  # also when the user interrupts it
            stop.set()
    return total["ok"], total["FAILED"], total["skipped"]
