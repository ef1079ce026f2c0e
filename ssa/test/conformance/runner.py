# SPDX-License-Identifier: MIT
"""
Run a program with IPPROTO_TLS, and the conformance cases inside of such a program.

By hand, from the top of the tree::

    python -m ssa.test.conformance.runner root case_sending
    python -m ssa.test.conformance.runner loopback case_sending.ClientSending.test_everySize -v
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pwd
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import ssa

PACKAGE: Final = "ssa.test.conformance"
ROOT: Final = Path(ssa.__file__).parent.parent
PATIENCE: Final = float(os.environ.get("SSA_CONFORMANCE_PATIENCE", "1"))
"""
By how much every upper limit of a time is longer than on a real processor: an emulated one is some sixteen times slower, and
what it emulates is mostly not the waiting.
"""

CASE_SECONDS: Final = 20.0
"""How long one case may take, unless its class has another C{timeout}."""
START_SECONDS: Final = 180.0
GRACE_SECONDS: Final = 2.0
"""How long the program has, after its time is up, to write down where it hangs."""
ORDINARY_USER: Final = "nobody"
_OUTPUT: Final = 6000  # characters of its output that a report shows


@dataclass(frozen=True)
class Interception:
    """
    A way to run a program with IPPROTO_TLS.

    @ivar name: for reports.
    @ivar prefix: the command that a program's own command is added to; options go before its last word.
    @ivar environment: what is added to the program's environment.
    @ivar user: the numeric user and group that the program runs as; L{None} for this process's own.
    @ivar needsRoot: only root can use it.
    """

    name: str
    prefix: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: tuple[int, int] | None = None
    needsRoot: bool = False

    def skip(self) -> str:
        """Why this cannot be used here; C{""} if it can.  It is really tried, once."""
        if self.needsRoot and os.geteuid() != 0:
            return f"{self.name}: only for root"
        return _tried(self.name, self.prefix, self.user)

    def start(self, argv: Sequence[str], configuration: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """
        Start a program with IPPROTO_TLS.

        @param configuration: the path of an ssa.conf; C{""} for the defaults.
        @param options: of L{subprocess.Popen}.
        """
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **self.environment}
        if self.user is not None:
            options |= {"user": self.user[0], "group": self.user[1], "extra_groups": []}
            environment |= {"HOME": "/tmp", "TMPDIR": "/tmp"}
        prefix = list(self.prefix)
        if configuration:
            prefix[-1:-1] = ["--config", configuration]
        return subprocess.Popen([*prefix, *argv], env=environment, **options)


def _command(way: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "ssa", "run", "--embedded", "--way", way, "--")


def supervised() -> list[Interception]:
    """The ways of C{ssa run}.  As root, those for ordinary users run as one."""
    user: tuple[int, int] | None = None
    if os.geteuid() == 0:
        entry = pwd.getpwnam(ORDINARY_USER)
        user = (entry.pw_uid, entry.pw_gid)
    every = [
        Interception("root", _command("root"), needsRoot=True),
        Interception("user-namespace", _command("user-namespace"), user=user),
        Interception("loopback", _command("loopback"), user=user),
    ]
    chosen = os.environ.get("SSA_CONFORMANCE_WAYS", "").replace(",", " ").split()
    return [interception for interception in every if not chosen or interception.name in chosen]


def kernel() -> list[Interception]:
    """
    The kernel module, which must be loaded: for a program of root's, and for one of an ordinary user's.  The daemon is root's
    (L{ssa.test.conformance.kernel}).
    """
    command = (sys.executable, "-m", "ssa.test.conformance.kernel")
    user = pwd.getpwnam(ORDINARY_USER).pw_uid
    return [
        Interception("kernel", (*command, "--"), needsRoot=True),
        Interception("kernel-user", (*command, "--user", str(user), "--"), {"HOME": "/tmp", "TMPDIR": "/tmp"}, needsRoot=True),
    ]


@lru_cache(maxsize=16)
def _tried(name: str, prefix: tuple[str, ...], user: tuple[int, int] | None) -> str:
    plain = Interception(name, (), user=user)
    real = Interception(name, prefix, user=user)
    for interception, what in ((plain, "Python and this tree cannot be read by that user"), (real, "")):
        try:
            child = interception.start(
                [sys.executable, "-c", "import ssa.cli, ssa.test.pki, OpenSSL, twisted, service_identity"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )
        except PermissionError as failure:
            return f"{name}: {what}: {failure}"
        try:
            _, complaint = child.communicate(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            end(child)
            return f"{name}: no end within {START_SECONDS} s"
        if child.returncode != 0:
            lines = complaint.decode(errors="replace").strip().splitlines() or [f"status {child.returncode}"]
            return f"{name}: {what or lines[-1]}"
    return ""


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a program that was started with C{start_new_session}, with all of its process group, and wait for it."""
    if child.poll() is None or _groupLives(child.pid):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _groupLives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def configured(text: str) -> Iterator[str]:
    """
    Write an ssa.conf for the time of the block.

    @return: its path, C{""} if there is no text.
    """
    if not text:
        yield ""
        return
    with tempfile.NamedTemporaryFile("w", prefix="ssa-conformance-", suffix=".conf") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        yield file.name


def caseModules() -> list[str]:
    """The modules of cases, by name."""
    return sorted(path.stem for path in Path(__file__).parent.glob("case_*.py"))


def casesOf(module: ModuleType) -> dict[str, type[unittest.TestCase]]:
    """The classes of cases that a module defines and does not only base others on (a name with an underscore)."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, unittest.TestCase)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def namesOf(module: ModuleType) -> dict[str, float]:
    """Each case of a module, C{Class.method}, in the order in which they run, with the seconds it may take."""
    return {
        f"{name}.{method}": PATIENCE * float(getattr(getattr(case, method), "timeout", getattr(case, "timeout", CASE_SECONDS)))
        for name, case in casesOf(module).items()
        for method in unittest.defaultTestLoader.getTestCaseNames(case)
    }


@dataclass(frozen=True)
class Outcome:
    """
    What became of a case.

    @ivar kind: C{"ok"}, C{"failure"}, C{"error"}, C{"skip"} or C{"hung"}.
    @ivar text: why.
    @ivar seconds: how long it took.
    """

    kind: str
    text: str = ""
    seconds: float = 0.0


class _Output:
    """
    What the program writes to its standard streams.

    @ivar file: for the program; appends.
    """

    def __init__(self) -> None:
        self.file = tempfile.NamedTemporaryFile("ab", prefix="ssa-conformance-")  # noqa: SIM115
        self._begin = 0

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *failure: object) -> None:
        self.file.close()

    def mark(self) -> None:
        """Forget what has been written."""
        self._begin = os.fstat(self.file.fileno()).st_size

    def read(self) -> str:
        """The end of what has been written since L{mark}."""
        with open(self.file.name, "rb") as file:
            file.seek(max(self._begin, os.fstat(file.fileno()).st_size - _OUTPUT))
            return file.read().decode(errors="replace").strip()


def configurationOf(module: str) -> str:
    """The text of the ssa.conf that a module of cases wants; C{""} for the defaults."""
    return str(getattr(importlib.import_module(f"{PACKAGE}.{module}"), "CONFIGURATION", ""))


class Run:
    """
    The cases of one module under one interception, in one process: a case that hangs ends the process, and the others go on
    in a new one.
    """

    def __init__(
        self, interception: Interception, module: str, names: Sequence[str] | None = None, isServed: bool = False
    ) -> None:
        """
        @param module: C{"case_sending"}.
        @param names: the cases, C{Class.method}; L{None} for all.
        @param isServed: a daemon with the module's configuration runs already.
        """
        self.interception = interception
        self.module = module
        imported = importlib.import_module(f"{PACKAGE}.{module}")
        self._configuration = "" if isServed else configurationOf(module)
        self._limits = namesOf(imported)
        self._waiting = deque(self._limits if names is None else names)
        self._done: dict[str, Outcome] = {}
        self._events = self._stream()

    def outcome(self, name: str) -> Outcome:
        """Run until this case is done, and say how it went."""
        while name not in self._done:
            try:
                finished, outcome = next(self._events)
            except StopIteration:
                return Outcome("error", "the case has not run")
            self._done[finished] = outcome
        return self._done[name]

    def close(self) -> None:
        """End the process, if it runs."""
        self._events.close()

    def __iter__(self) -> Generator[tuple[str, Outcome], None, None]:
        return self._events

    def _stream(self) -> Generator[tuple[str, Outcome], None, None]:
        with configured(self._configuration) as configuration, _Output() as output:
            while self._waiting:
                yield from self._process(configuration, output)

    def _process(self, configuration: str, output: _Output) -> Iterator[tuple[str, Outcome]]:
        reader, writer = os.pipe()
        output.mark()
        child = self.interception.start(
            [sys.executable, "-m", f"{PACKAGE}.inner", str(writer), self.module, *self._waiting],
            configuration,
            stdin=subprocess.DEVNULL,
            stdout=output.file,
            stderr=output.file,
            pass_fds=(writer,),
            cwd="/",
            start_new_session=True,
        )
        os.close(writer)

        current, since = "", time.monotonic()
        clock = _Deadline(START_SECONDS)
        try:
            for message in _messages(reader, clock, child):
                if message is None:
                    end(child)
                    name = current or self._waiting[0]
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(name)
                    what = f"{name} hung: no end within {self._limit(current):g} s" if current else "the program did not start"
                    yield name, Outcome("hung", f"{what}\n{output.read()}", time.monotonic() - since)
                    return
                if message["kind"] == "start":
                    current, since = message["case"], time.monotonic()
                    clock.extend(self._limit(current) + GRACE_SECONDS)
                else:
                    self._waiting.remove(current)
                    seconds = time.monotonic() - since
                    finished, current, since = current, "", time.monotonic()
                    clock.extend(START_SECONDS)
                    text = message["text"]
                    if message["kind"] in ("failure", "error") and (told := output.read()):
                        text += f"\n--- output so far\n{told}"
                    yield finished, Outcome(message["kind"], text, seconds)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS + 5)
            if self._waiting:
                name = current or self._waiting[0]
                self._waiting.remove(name)
                text = f"the program ended, status {child.poll()}\n{output.read()}"
                yield name, Outcome("error", text, time.monotonic() - since)
        finally:
            os.close(reader)
            end(child)

    def _limit(self, case: str) -> float:
        return self._limits[case] if case else START_SECONDS


class _Deadline:
    """When the program must have said something."""

    def __init__(self, seconds: float) -> None:
        self.extend(seconds)

    def extend(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()


def _messages(reader: int, deadline: _Deadline, child: subprocess.Popen[bytes]) -> Iterator[dict[str, str] | None]:
    """The lines that a program writes, decoded; L{None} when its time is up."""
    pending = b""
    while True:
        left = deadline.left()
        if left <= 0:
            yield None
            return
        readable, _, _ = select.select([reader], [], [], min(left, 0.5))
        if not readable:
            if child.poll() is not None and not select.select([reader], [], [], 0.2)[0]:
                return  # its own children may hold the pipe
            continue
        chunk = os.read(reader, 65536)
        if not chunk:
            return
        pending += chunk
        *lines, pending = pending.split(b"\n")
        for line in lines:
            yield json.loads(line)


def main(argv: Sequence[str]) -> int:
    """Run cases by hand: a way, and modules, classes or cases; C{-v} shows each."""
    words = [word for word in argv if not word.startswith("-")]
    verbose = "-v" in argv
    interceptions = [each for each in supervised() if words and words[0] in (each.name, "all")]
    interceptions += [each for each in kernel() if words and words[0] == each.name]
    if not interceptions:
        print(__doc__, file=sys.stderr)
        return 2
    bad = 0
    for interception in interceptions:
        if interception.skip():
            print("skipped:", interception.skip())
            continue
        for word in words[1:] or caseModules():
            module, _, part = word.partition(".")
            every = namesOf(importlib.import_module(f"{PACKAGE}.{module}"))
            names = [name for name in every if not part or name == part or name.startswith(part + ".")]
            bad += report(Run(interception, module, names), verbose).bad
    return 1 if bad else 0


@dataclass(frozen=True)
class Total:
    """How many cases went well, were skipped, and did not go well."""

    good: int = 0
    skipped: int = 0
    bad: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.good + other.good, self.skipped + other.skipped, self.bad + other.bad)


def report(run: Run, verbose: bool = False) -> Total:
    """
    Run a module's cases, and print those that did not go well and how many there were of each kind.

    @param verbose: print each case.
    """
    begun = time.monotonic()
    counts: dict[str, int] = {}
    title = f"{run.interception.name} {run.module}"
    for name, outcome in run:
        counts[outcome.kind] = counts.get(outcome.kind, 0) + 1
        if verbose or outcome.kind not in ("ok", "skip"):
            line = f"{title}.{name}: {outcome.kind} {outcome.seconds:.2f} s"
            print(line, outcome.text, sep="\n" if "\n" in outcome.text else " ", flush=True)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(f"== {title}: {told} in {time.monotonic() - begun:.1f} s", flush=True)
    good, skipped = counts.pop("ok", 0), counts.pop("skip", 0)
    return Total(good, skipped, sum(counts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
