# SPDX-License-Identifier: MIT
"""Tests of L{ssa.buffers}."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from ssa.buffers import MOST_IDLE, RECORD_SIZE, Buffer, BufferPool


class BufferPoolTests(TestCase):
    """Bounds, turns and reuse."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pool = BufferPool(self.clock, limit=2, size=4 * RECORD_SIZE, reserveLimit=1)
        self.turns: list[str] = []

    def take(self, name: str = "") -> Buffer | None:
        return self.pool.take(lambda: self.turns.append(name))

    def takeAll(self) -> list[Buffer]:
        taken = [self.take() for _ in range(3)]
        return [buffer for buffer in taken if buffer is not None]

    def test_refusesNonsense(self) -> None:
        for arguments in ((0, RECORD_SIZE, 0), (1, RECORD_SIZE - 1, 0), (1, RECORD_SIZE, -1)):
            self.assertRaises(ValueError, BufferPool, self.clock, *arguments)

    def test_largeThenReserveThenQueue(self) -> None:
        sizes = [buffer.size for buffer in self.takeAll()]
        self.assertEqual(sizes, [4 * RECORD_SIZE, 4 * RECORD_SIZE, RECORD_SIZE])
        self.assertIsNone(self.take())
        self.assertEqual((self.pool.lent, self.pool.reserveLent, self.pool.waiting), (2, 1, 1))
        self.assertEqual(self.pool.bytesHeld, 9 * RECORD_SIZE)

    def test_share(self) -> None:
        """One user has at most its share of the large buffers, then small ones; root is not bound."""
        self.pool.setLimits(3, 8, 1)
        sizes = [buffer.size for buffer in (self.pool.take(lambda: None, user) for user in (7, 7, 8, 0)) if buffer]
        self.assertEqual(sizes, [4 * RECORD_SIZE, RECORD_SIZE, 4 * RECORD_SIZE, 4 * RECORD_SIZE])

    def test_shareComesBack(self) -> None:
        """Who waits only because of its share gets its turn when its own buffer is back, and no turns in vain before."""
        self.pool.setLimits(3, 0, 1)
        first = self.pool.take(lambda: None, 7)
        assert first is not None
        self.assertIsNone(self.pool.take(lambda: self.turns.append("second"), 7))
        self.pool.forget(lambda: None)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.pool.release(first)
        self.clock.advance(0)
        self.assertEqual(self.turns, ["second"])

    def test_smaller(self) -> None:
        """Smaller bounds take effect as buffers come back; larger ones wake who waits."""
        buffers = self.takeAll()
        self.pool.setLimits(1, 0)
        self.assertIsNone(self.take("waiting"))
        self.pool.release(buffers[0])
        self.pool.release(buffers[2])
        self.clock.advance(0)
        self.assertEqual((self.turns, self.pool.bytesHeld), ([], 4 * RECORD_SIZE))
        self.pool.setLimits(2, 0)
        self.clock.advance(0)
        self.assertEqual(self.turns, ["waiting"])
        for arguments in ((0, 0), (1, -1), (1, 0, 0)):
            self.assertRaises(ValueError, self.pool.setLimits, *arguments)

    def test_fewIdle(self) -> None:
        """After a rush most of the memory is given back."""
        self.pool.setLimits(3 * MOST_IDLE, 0)
        for buffer in [self.take() for _ in range(2 * MOST_IDLE)]:
            assert buffer is not None
            self.pool.release(buffer)
        self.assertEqual(self.pool.bytesHeld, MOST_IDLE * 4 * RECORD_SIZE)

    def test_reuse(self) -> None:
        first = self.take()
        assert first is not None
        self.pool.release(first)
        self.assertIs(self.take(), first)
        self.assertEqual(self.pool.bytesHeld, 4 * RECORD_SIZE)

    def test_turns(self) -> None:
        """First come, first served; nobody is called from within release, and a newcomer does not jump the queue."""
        buffers = self.takeAll()
        for name in ("a", "b", "c"):
            self.assertIsNone(self.take(name))
        self.pool.release(buffers[0])
        self.assertEqual(self.turns, [])
        self.assertIsNone(self.take("newcomer"))
        self.clock.advance(0)
        self.assertEqual(self.turns, ["a", "b", "c", "newcomer"])

    def test_turnsStopWhenEmpty(self) -> None:
        """Who takes the buffer in its turn ends the round; the next turn comes with the next release."""
        buffers = self.takeAll()
        got: list[Buffer | None] = []

        def borrow() -> None:
            got.append(self.pool.take(borrow))

        for _ in range(2):
            self.assertIsNone(self.pool.take(borrow))
        self.pool.release(buffers[2])
        self.clock.advance(0)
        self.assertEqual(len(got), 1)
        self.assertEqual(self.pool.waiting, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.pool.release(buffers[0])
        self.clock.advance(0)
        self.assertEqual(len(got), 2)
        self.assertNotIn(None, got)

    def test_forget(self) -> None:
        buffers = self.takeAll()

        def turn() -> None:
            self.turns.append("forgotten")

        self.assertIsNone(self.pool.take(turn))
        self.pool.forget(turn)
        self.pool.forget(turn)
        self.pool.release(buffers[1])
        self.clock.advance(0)
        self.assertEqual(self.turns, [])

    def test_turnThatRaises(self) -> None:
        """The others still get their turn."""
        buffers = self.takeAll()

        def fail() -> None:
            raise RuntimeError("no")

        self.assertIsNone(self.pool.take(fail))
        self.assertIsNone(self.take("next"))
        self.pool.release(buffers[0])
        self.assertRaises(RuntimeError, self.clock.advance, 0)
        self.clock.advance(0)
        self.assertEqual(self.turns, ["next"])
