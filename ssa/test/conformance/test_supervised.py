# SPDX-License-Identifier: MIT
"""
The conformance cases under each way of C{ssa run}.

SSA_CONFORMANCE_WAYS, a list of ways, limits this to some of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import ClassVar

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.test.conformance.runner import PACKAGE, Interception, Outcome, Run, caseModules, casesOf, namesOf, supervised


class _Cases(SynchronousTestCase):
    """The cases of one class, run by one interception."""

    interception: ClassVar[Interception]
    runs: ClassVar[dict[str, Run]]
    module: ClassVar[str]

    def check(self, name: str) -> None:
        """Run the module up to this case, and be its result."""
        reason = self.interception.skip()
        if reason:
            raise SkipTest(reason)
        if self.module not in self.runs:
            for other in list(self.runs):  # one process at a time
                self.runs.pop(other).close()
            self.runs[self.module] = Run(self.interception, self.module)
        self.judge(self.runs[self.module].outcome(name))

    def judge(self, outcome: Outcome) -> None:
        """Fail or skip as the case did."""
        if outcome.kind == "skip":
            raise SkipTest(outcome.text)
        if outcome.kind != "ok":
            self.fail(f"{outcome.kind} after {outcome.seconds:.1f} s\n{outcome.text}")


def _method(name: str) -> Callable[[_Cases], None]:
    def test(self: _Cases) -> None:
        self.check(name)

    return test


def _generate() -> None:
    for interception in supervised():
        runs: dict[str, Run] = {}
        for module in caseModules():
            imported = importlib.import_module(f"{PACKAGE}.{module}")
            names = namesOf(imported)
            for case, original in casesOf(imported).items():
                methods = {name.split(".")[1]: _method(name) for name in names if name.startswith(case + ".")}
                title = f"{interception.name.title().replace('-', '')}_{module.removeprefix('case_')}_{case}"
                globals()[title] = type(
                    title,
                    (_Cases,),
                    {
                        "__doc__": original.__doc__,
                        "__module__": __name__,
                        "interception": interception,
                        "module": module,
                        "runs": runs,
                        **methods,
                    },
                )


_generate()
