# SPDX-License-Identifier: MIT
"""
Run all cases: one server, one program under one C{ssa run} with its embedded daemon; and judge what came of them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssa.test.vectors.cases import ROOT, Case, Collection

SECONDS: Final = 600.0
"""How long a run may take before it is ended; how long it ought to take is the test's to say."""

HARD_ACCEPTS: Final = 579
"""
So many of the chains that must be accepted are accepted by OpenSSL itself.  Of the others, 26 need a search for another path
after one has turned out to be bad, which OpenSSL does not do; 30 have an IP address as their only name, and it in the common
name too, which OpenSSL takes for a DNS name that the constraints do not permit.
"""

_REFUSALS: Final = {errno.EKEYREJECTED, errno.EKEYEXPIRED}


@dataclass(frozen=True)
class Outcome:
    """
    What came of a case.

    @ivar number: the errno of connect(2); 0 for a connection.
    @ivar told: TLS_ERROR.
    @ivar server: what the server says.
    @ivar daemon: what was wrong with the daemon after it; C{""} if nothing was.
    """

    case: Case
    number: int
    told: str
    server: str
    daemon: str

    @property
    def accepted(self) -> bool:
        """Whether the program or the server thinks that there was a connection."""
        return self.number == 0 or self.server == "served"

    @property
    def problem(self) -> str:
        """What must not happen whatever the verdict is; C{""} if nothing did."""
        if self.daemon:
            return f"the daemon: {self.daemon}"
        if (self.number == 0) != (self.server == "served"):
            return f"errno {self.number} for the program, and the server says: {self.server}"
        if self.number == 0:
            return self.told
        if self.number not in _REFUSALS or not self.told or not self.told.isprintable():
            return f"{errno.errorcode.get(self.number, self.number)}: {self.told!r}"
        return ""


@dataclass(frozen=True)
class Result:
    """
    What came of all of them.

    @ivar seconds: how long it took.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float

    def hard(self, accept: bool, suite: str = "") -> list[Outcome]:
        """The outcomes of cases with this verdict and no other."""
        return [
            each
            for each in self.outcomes
            if each.case.accept == accept and not each.case.soft and suite in ("", each.case.suite)
        ]

    @property
    def wronglyAccepted(self) -> list[str]:
        """The chains that must be refused and were not."""
        return [each.case.name for each in self.hard(False) if each.accepted]

    @property
    def problems(self) -> list[str]:
        """What must not happen at all."""
        return [f"{each.case.name}: {each.problem}" for each in self.outcomes if each.problem]

    def summary(self) -> str:
        """Lines for people."""
        lines = []
        for suite in sorted({each.case.suite for each in self.outcomes}):
            must, mustNot = self.hard(True, suite), self.hard(False, suite)
            soft = [each for each in self.outcomes if each.case.suite == suite and each.case.soft]
            agreed = sum(each.accepted == each.case.accept for each in soft)
            lines.append(
                f"{suite}: {sum(e.accepted for e in must)} of {len(must)} accepted that must be, "
                f"{sum(e.accepted for e in mustNot)} of {len(mustNot)} that must not; "
                f"{agreed} of {len(soft)} soft ones as expected"
            )
        why = Counter(_shortened(each.told) for each in self.hard(True) if not each.accepted)
        lines += [f"refused though good, {count} times: {reason}" for reason, count in why.most_common()]
        lines.append(f"{len(self.outcomes)} cases in {self.seconds:.1f} s")
        return "\n".join(lines)


def _shortened(told: str) -> str:
    """TLS_ERROR without what describes the one certificate."""
    return told.partition(" [")[0]


@contextlib.contextmanager
def _serving(file: Path) -> Iterator[int]:
    """The server; gives its control port."""
    server = subprocess.Popen(
        [sys.executable, "-m", "ssa.test.vectors.server", str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        yield int(server.stdout.readline())
    finally:
        server.stdin.close()
        server.stdout.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def run(file: Path, collection: Collection, own: bool = True, every: int = 1) -> Result:
    """
    Run the cases.

    @param every: 1 for all of them, 2 for every second one.
    @param own: the program sets the trust anchor; else it is the configuration's TrustStoreLocation.
    @raise AssertionError: a program has failed, or not all cases have an outcome.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ssa-vectors-") as name, _serving(file) as port:
        folder = Path(name)
        root, configuration, out = folder / "root.pem", folder / "ssa.conf", folder / "outcomes"
        root.write_bytes(collection.root)
        configuration.write_text(f"[default]\nTrustStoreLocation = {root}\n")
        command = [sys.executable, "-m", "ssa", "run"]
        command += ["--embedded"] if own else ["--config", str(configuration)]
        program = [sys.executable, "-m", "ssa.test.vectors.program", str(file), str(port), str(out), str(every)]
        done = subprocess.run(
            [*command, "--", *program, *(["own"] if own else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert done.returncode == 0, f"the program ended with status {done.returncode}: {done.stdout[-4000:]}"
        found = {}
        for line in out.read_text(encoding="utf-8").splitlines():
            number, *values = json.loads(line)
            assert number not in found, f"two outcomes of case {number}"
            found[number] = Outcome(collection.cases[number], *values)
    wanted = range(0, len(collection.cases), every)
    assert sorted(found) == list(wanted), f"{len(found)} outcomes of {len(wanted)} cases"
    return Result(tuple(found[number] for number in sorted(found)), time.monotonic() - begun)
