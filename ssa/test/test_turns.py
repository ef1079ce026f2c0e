# SPDX-License-Identifier: MIT
"""Who may fetch, and in which order."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ssa.revocation.turns import Turns
from ssa.revocation.verdict import NoAnswer


class TurnsTests(SynchronousTestCase):
    """L{Turns}."""

    def setUp(self) -> None:
        self.turns = Turns(4, 2, 8, 5)
        self.order: list[str] = []

    def take(self, owner: int, name: str = "") -> Deferred[None]:
        turn = self.turns.take(owner)
        turn.addCallback(lambda _: self.order.append(name))
        return turn

    def test_bounds(self) -> None:
        """Of all, and of one user; taken and waiting."""
        for _ in range(7):
            self.take(1)
        self.assertEqual((2, 5), (self.turns.taken, self.turns.waiting))
        self.assertIn("of this user", str(self.assertRaises(NoAnswer, self.turns.take, 1)))
        self.take(2), self.take(3)
        self.assertEqual((4, 5), (self.turns.taken, self.turns.waiting))
        for owner in (2, 3, 4):
            self.take(owner)
        self.assertEqual("too many fetches are waiting", str(self.assertRaises(NoAnswer, self.turns.take, 5)))

    def test_userByUser(self) -> None:
        """Who waits with many does not hold up who waits with one."""
        for owner in (1, 1, 2, 2):
            self.take(owner)
        self.order.clear()
        for owner, name in ((1, "a"), (1, "b"), (1, "c"), (3, "d"), (4, "e"), (3, "f")):
            self.take(owner, name)
        self.turns.release(2)
        self.turns.release(2)
        self.assertEqual(["d", "e"], self.order)
        self.turns.release(4)
        self.assertEqual(["d", "e", "f"], self.order)
        self.turns.release(1)
        self.turns.release(1)
        self.turns.release(3)
        self.assertEqual(["d", "e", "f", "a", "b"], self.order)
        self.turns.release(1)
        self.assertEqual((["d", "e", "f", "a", "b", "c"], 0), (self.order, self.turns.waiting))

    def test_cancelled(self) -> None:
        """Who does not wait any more is forgotten."""
        for owner in (1, 1):
            self.take(owner)
        first, second = self.take(1, "first"), self.take(1, "second")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.turns.release(1)
        self.successResultOf(second)
        self.assertEqual(0, self.turns.waiting)
        third = self.take(1)
        third.cancel()
        self.failureResultOf(third, CancelledError)
        self.turns.release(1)
        self.turns.release(1)
        self.assertEqual((0, 0), (self.turns.taken, self.turns.waiting))

    def test_endsAtOnce(self) -> None:
        """Fetches that end as soon as they begin, thousands of them, one after the other."""
        turns = Turns(1, 1, 5000, 5000)
        turns.take(1)
        for _ in range(5000):
            turns.take(1).addCallback(lambda _: turns.release(1))
        turns.release(1)
        self.assertEqual((0, 0), (turns.taken, turns.waiting))
