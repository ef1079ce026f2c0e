# SPDX-License-Identifier: MIT
"""Bounds of handshakes, and of log lines."""

from __future__ import annotations

import errno

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ssa.admission import Admission, Claimant, Slot
from ssa.errors import SSAError
from ssa.throttle import Throttle

A, B, C = Claimant(1000, 1), Claimant(1000, 2), Claimant(1001, 3)
ROOT = Claimant(0, 4)


class AdmissionTests(SynchronousTestCase):
    """Who may do a handshake now."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.admission = Admission(self.clock, 4)

    def must(self, who: Claimant, most: int = 10) -> Slot:
        slot = self.admission.tryTake(who, most)
        assert slot is not None
        return slot

    def test_perProgram(self) -> None:
        """A program has its own bound."""
        slot = self.must(A, 1)
        self.assertIsNone(self.admission.tryTake(A, 1))
        self.must(B, 1)
        slot.release()
        self.must(A, 1)

    def test_perUser(self) -> None:
        """One user's programs, however many, leave a quarter for others."""
        for who in (A, B, A):
            self.must(who)
        self.assertIsNone(self.admission.tryTake(Claimant(1000, 99), 10))
        self.must(C)

    def test_total(self) -> None:
        """Not even root has more than all."""
        for _ in range(4):
            self.must(ROOT)
        self.assertIsNone(self.admission.tryTake(ROOT, 10))
        self.assertIsNone(self.admission.tryTake(C, 10))

    def test_releaseTwice(self) -> None:
        """Giving a slot back twice counts once."""
        slot = self.must(A)
        self.must(A)
        slot.release()
        slot.release()
        self.assertEqual((1, 1), (self.admission.total, self.admission.inFlight(A)))

    def test_inTurn(self) -> None:
        """Those who wait are served one program after the other."""
        self.admission.maxTotal = 1
        slot = self.must(ROOT)
        served: list[str] = []
        current: list[Slot] = []

        def wait(who: Claimant, name: str) -> None:
            def got(slot: Slot) -> None:
                served.append(name)
                current.append(slot)

            self.admission.take(who, 10, 30).addCallback(got)

        for who, name in ((A, "a1"), (A, "a2"), (A, "a3"), (C, "c1")):
            wait(who, name)
        slot.release()
        while current:
            current.pop().release()
        self.assertEqual(["a1", "c1", "a2", "a3"], served)
        self.assertEqual(0, self.admission.total)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_waitersFirst(self) -> None:
        """Nobody overtakes the own waiting handshakes."""
        slot = self.must(A, 1)
        waiting = self.admission.take(A, 1, 30)
        slot.release()
        self.successResultOf(waiting)
        self.assertIsNone(self.admission.tryTake(A, 1))

    def test_timeout(self) -> None:
        """ETIMEDOUT, and the place in the queue is gone."""
        self.must(A, 1)
        waiting = self.admission.take(A, 1, 30)
        self.clock.advance(30)
        error = self.failureResultOf(waiting, SSAError).value
        assert isinstance(error, SSAError)
        self.assertEqual(errno.ETIMEDOUT, error.errno)
        self.assertIsNone(self.admission.tryTake(A, 1))
        self.must(A, 2)

    def test_cancel(self) -> None:
        """A cancelled wait takes nothing."""
        slot = self.must(A, 1)
        waiting: Deferred[Slot] = self.admission.take(A, 1, 30)
        waiting.cancel()
        self.failureResultOf(waiting)
        slot.release()
        self.assertEqual(0, self.admission.total)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_whenFreed(self) -> None:
        """Listeners are told once, unless they have lost interest."""
        calls: list[int] = []

        def one() -> None:
            calls.append(1)

        def two() -> None:
            calls.append(2)

        slots = [self.must(A), self.must(A)]
        self.admission.whenFreed(one)
        self.admission.whenFreed(two)
        self.admission.forget(two)
        for slot in slots:
            slot.release()
        self.assertEqual([1], calls)


class ThrottleTests(SynchronousTestCase):
    """Log lines that peers cause."""

    def test_burst(self) -> None:
        """A burst, then a steady rate, with a count of what was left out."""
        clock = Clock()
        throttle = Throttle(clock, burst=2, interval=10)
        self.assertEqual([0, 0, None, None], [throttle.allow() for _ in range(4)])
        clock.advance(10)
        self.assertEqual(2, throttle.allow())
        self.assertIsNone(throttle.allow())
        clock.advance(1000)
        self.assertEqual([1, 0, None], [throttle.allow() for _ in range(3)])
