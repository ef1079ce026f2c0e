# SPDX-License-Identifier: MIT
"""
C{make test-noninterference}: an ordinary program under C{ssa run} behaves as without it.

Runs tests of sockets from the interpreter's own C{test} package, each module once without and once under C{ssa run}, each run
in a private network namespace of its own with the loopback interface up, and compares the result of every test.  The
tests that differ are run again, up to three times on both sides: a result that was seen on both sides is no difference, but
is named as flaky.  The exit status is 0 if there is no difference, 1 if there is one, 2 if nothing could be compared.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import ssa
from ssa.intercept import linux

MODULES: Final = ("test_socket", "test_selectors", "test_ssl", "test_asyncio", "test_select", "test_epoll")
QUICK: Final = ("test_socket", "test_select", "test_epoll", "test_ssl")
SECONDS: Final = 600.0
"""How long a module may take on one side."""

RETRIES: Final = 3
_RUNNER: Final = Path(__file__).parent / "stdlibtests.py"

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_INTERFACE = struct.Struct("16sh22x")  # struct ifreq, netdevice(7)


def enterPrivateNetwork() -> None:
    """
    Move this process to a new network namespace whose loopback interface is up; an ordinary user gets there through a user
    namespace in which his ids are the same.

    @raise OSError: as unshare(2).
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        linux.unshare(linux.CLONE_NEWNET)
    else:
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name, flags = _INTERFACE.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, _INTERFACE.pack(b"lo", 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _INTERFACE.pack(name, flags | _IFF_UP))


@dataclass
class Run:
    """
    What came of one module on one side.

    @ivar results: the worst result of each test, by its id, e.g. C{"ok"}; C{"lost"} if the interpreter ended in it.
    @ivar details: a failure's traceback or the reason of a skip, by the test's id.
    @ivar seconds: how long it took.
    @ivar problem: why the run itself failed; "" if it did not.
    """

    results: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str = ""


_WORSE: Final = ("ok", "skip", "expected failure", "unexpected success", "failure", "error")


def readResults(path: Path) -> Run:
    """
    Read what the runner wrote.

    @param path: a file of L{ssa.test.stdlibtests}.
    """
    run = Run()
    if not path.exists():
        run.problem = "the runner wrote nothing"
        return run
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, test, *detail = json.loads(line)
        before = run.results.get(test, "lost")
        if kind == "start":
            run.results.setdefault(test, "lost")
        elif before == "lost" or _WORSE.index(kind) > _WORSE.index(before):
            run.results[test] = kind
            run.details[test] = detail[0]
    return run


@dataclass(frozen=True)
class Side:
    """
    How tests are started.

    @ivar name: for the report.
    @ivar prefix: the words before the interpreter's.
    """

    name: str
    prefix: tuple[str, ...]


def runModule(side: Side, python: str, module: str, tests: Sequence[str] = ()) -> Run:
    """
    Run a module, or some of its tests, on one side.

    @param python: the interpreter whose tests are run.
    @param tests: their ids; none: all.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ssa-noninterference-") as folder:
        out, log = Path(folder, "results"), Path(folder, "log")
        # The child enters the namespace and becomes the command: neither threads nor the reactor are in the way of unshare(2).
        command = [
            sys.executable, "-m", "ssa.test.noninterference", "--in-private-network",
            *side.prefix, python, str(_RUNNER), str(out), module, *tests,
        ]  # fmt: skip
        with log.open("wb") as written:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                env={**os.environ, "PYTHONPATH": str(Path(ssa.__file__).parent.parent)},
            )
            try:
                status = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                status = -1
        run = readResults(out)
        if status != 0 and not run.problem:
            run.problem = f"status {status}" if status >= 0 else f"not ready after {SECONDS:.0f} s"
        if run.problem:
            run.problem += ": " + log.read_text(errors="replace")[-4000:]
    run.seconds = time.monotonic() - begun
    return run


def differing(one: Run, other: Run) -> list[str]:
    """The ids of the tests whose results are not the same on both sides."""
    return sorted(
        test for test in {**one.results, **other.results} if one.results.get(test) != other.results.get(test)
    )


@dataclass
class Comparison:
    """
    Both sides of one module, and of what was run again.

    @ivar seen: for each test that once differed, the results on each side.
    """

    module: str
    sides: tuple[Run, Run]
    seen: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)

    def note(self, one: Run, other: Run, tests: Sequence[str]) -> None:
        """Add the results of one more pair of runs."""
        for test in tests:
            before = self.seen.setdefault(test, (set(), set()))
            for known, run in zip(before, (one, other), strict=True):
                known.add(run.results.get(test, "missing"))

    @property
    def different(self) -> list[str]:
        """The tests that had no result in common."""
        return [test for test, (one, other) in sorted(self.seen.items()) if not one & other]


def compare(module: str, python: str, sides: tuple[Side, Side], parallel: bool) -> Comparison:
    """
    Run a module on both sides, and again what differs.

    @param parallel: both sides at a time.
    """
    with concurrent.futures.ThreadPoolExecutor(2 if parallel else 1) as pool:

        def both(tests: Sequence[str]) -> tuple[Run, Run]:
            futures = [pool.submit(runModule, side, python, module, tests) for side in sides]
            return futures[0].result(), futures[1].result()

        comparison = Comparison(module, both(()))
        tests = differing(*comparison.sides)
        comparison.note(*comparison.sides, tests)
        for _ in range(RETRIES):
            tests = comparison.different
            # More than a few hundred are no flaky tests, and would not fit into a command line.
            if not tests or len(tests) > 200:
                break
            comparison.note(*both(tests), tests)
    return comparison


def report(comparison: Comparison, sides: tuple[Side, Side]) -> bool:
    """
    Print what was found.

    @return: whether there is no difference.
    """
    one, other = comparison.sides
    counts = [
        ", ".join(f"{list(run.results.values()).count(kind)} {kind}" for kind in sorted(set(run.results.values())))
        for run in comparison.sides
    ]
    print(f"{comparison.module}: {len(one.results)} tests, {one.seconds:.0f} s {sides[0].name} ({counts[0]}),")
    print(f"  {other.seconds:.0f} s {sides[1].name} ({counts[1]})")
    good = True
    for side, run in zip(sides, comparison.sides, strict=True):
        if run.problem:
            good = False
            print(f"  {side.name}: {run.problem}")
    for test, (before, after) in sorted(comparison.seen.items()):
        flaky = bool(before & after)
        good = good and flaky
        word = "flaky" if flaky else "DIFFERENT"
        print(f"  {word}: {test}: {'/'.join(sorted(before))} {sides[0].name}, {'/'.join(sorted(after))} {sides[1].name}")
        if not flaky:
            for side, run in zip(sides, comparison.sides, strict=True):
                if run.details.get(test):
                    print(f"    {side.name}: " + run.details[test].replace("\n", "\n    "))
    if not one.results:
        good = False
        print("  no test has run")
    sys.stdout.flush()
    return good


def _hasTests(python: str) -> bool:
    check = subprocess.run(
        [python, "-c", "import test.test_socket, test.test_asyncio"], capture_output=True, check=False, timeout=60
    )
    return check.returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    """
    The command.

    @param argv: the arguments; default: the process's.
    @return: the exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--in-private-network"]:
        enterPrivateNetwork()
        os.execvp(words[1], words[1:])
    parser = argparse.ArgumentParser(prog="python -m ssa.test.noninterference", description=(__doc__ or "").strip())
    python = os.environ.get("NONINTERFERENCE_PYTHON") or sys.executable
    parser.add_argument("--python", default=python, help="the interpreter whose tests are run (default: this one)")
    parser.add_argument("--way", default="auto", help="as for ssa run")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--parallel", action="store_true", help="both sides at a time: faster, more tests are flaky")
    parser.add_argument("modules", nargs="*", help=f"default: {', '.join(MODULES)}")
    arguments = parser.parse_args(words)
    if not _hasTests(arguments.python):
        print(
            f"{arguments.python} lacks the standard library's tests: on Debian and Ubuntu install libpython3.N-testsuite of"
            " the same version, or name an interpreter that has them (--python, NONINTERFERENCE_PYTHON).",
            file=sys.stderr,
        )
        return 2
    sides = (
        Side("without", ()),
        Side("with ssa run", (sys.executable, "-m", "ssa", "run", "--embedded", "--way", arguments.way, "--")),
    )
    begun = time.monotonic()
    good = True
    tests = 0
    for module in arguments.modules or (QUICK if arguments.quick else MODULES):
        comparison = compare(module, arguments.python, sides, arguments.parallel)
        tests += len(comparison.sides[0].results)
        good = report(comparison, sides) and good
    verdict = "no difference" if good else "there are differences"
    print(f"{tests} tests on both sides, {verdict}, {time.monotonic() - begun:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
