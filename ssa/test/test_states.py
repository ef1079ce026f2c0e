# SPDX-License-Identifier: MIT
"""The life of a socket: every input in every state."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from unittest import SkipTest

from automat import NoTransition
from twisted.trial.unittest import SynchronousTestCase

import ssa
from ssa.errors import SSAError
from ssa.states import REFUSALS, TRANSITIONS, Stage, newLife

CALLS = ("resolve", "connect", "upgrade", "listen")
INPUTS = (*CALLS, "addressFound", "transportConnected", "nextAddress", "established", "opened", "fail", "close")


class StateTests(SynchronousTestCase):
    """The machine against its tables."""

    def test_everything(self) -> None:
        """Each input in each state moves, is refused with an errno, or is a bug; no call of a program is a bug."""
        moves = {(state, name): target for state, name, target in TRANSITIONS}
        refusals = {(state, name): number for state, name, number, _ in REFUSALS}
        self.assertEqual(set(), set(moves) & set(refusals))
        for state in Stage:
            for name in INPUTS:
                life = newLife(state)
                self.assertIs(state, life.stage())
                if (state, name) in moves:
                    getattr(life, name)()
                    self.assertIs(moves[state, name], life.stage())
                elif (state, name) in refusals:
                    error = self.assertRaises(SSAError, getattr(life, name))
                    self.assertEqual(refusals[state, name], error.errno)
                    self.assertIs(state, life.stage())
                else:
                    self.assertNotIn(name, CALLS)
                    self.assertRaises(NoTransition, getattr(life, name))
                    self.assertIs(state, life.stage())

    def test_failedIsNew(self) -> None:
        """A failed socket may do what a new one may."""
        for state in (Stage.NEW, Stage.FAILED):
            self.assertTrue(state.mayConfigure)
        new = {(name, target) for state, name, target in TRANSITIONS if state is Stage.NEW}
        failed = {(name, target) for state, name, target in TRANSITIONS if state is Stage.FAILED}
        self.assertEqual(new, failed)

    def test_drawn(self) -> None:
        """docs/states.rst has exactly these changes and refusals."""
        page = Path(ssa.__file__).parent.parent / "docs" / "states.rst"
        if not page.exists():
            raise SkipTest("the documentation is not installed")
        text = page.read_text(encoding="utf-8")
        rows = [tuple(re.findall(r"- (.+)", row)) for row in re.split(r"\n {3}\* ", text)[1:]]
        drawn = {row for row in rows if len(row) == 3 and row[0] != "State"}
        self.assertEqual({(a.value, name, b.value) for a, name, b in TRANSITIONS}, drawn)
        refused = {row for row in rows if len(row) == 4 and row[0] != "State"}
        self.assertEqual({(a.value, call, errno.errorcode[n], why) for a, call, n, why in REFUSALS}, refused)
