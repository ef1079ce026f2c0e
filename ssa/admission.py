# SPDX-License-Identifier: MIT
"""
How much of the daemon one program may take.

A handshake is the dearest thing that the daemon does for anyone, and a peer
that is slow on purpose can make it last.  L{Admission} bounds how many are in
flight, for each program, each user and in total, and lets the others wait for
their turn, one program after the other, so that nobody can keep everybody out.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from ssa.errors import Cause

USER_SHARE = 0.75
"""
The part of all handshakes that the programs of one user may have in flight; root may have all.  The process id of a program
is what its interceptor says, the user id is what the operating system says: this bound holds whoever lies.
"""


@dataclass(frozen=True)
class Claimant:
    """
    Who wants a slot.

    @ivar uid: the user.
    @ivar pid: the process.
    """

    uid: int
    pid: int


class Slot:
    """The right to do one handshake; L{release} it in any case."""

    def __init__(self, released: Callable[[], None]) -> None:
        self._released: Callable[[], None] | None = released

    def release(self) -> None:
        """Give it back.  Doing so again has no effect."""
        released, self._released = self._released, None
        if released is not None:
            released()


class Admission:
    """
    Counts the handshakes in flight.

    @ivar total: how many are in flight.
    @ivar maxTotal: handshakes in flight of all programs together; may be changed at any time (a smaller number takes
        effect as they end).
    """

    def __init__(self, clock: IReactorTime, maxTotal: int) -> None:
        """
        @param clock: measures how long a caller waits.
        @param maxTotal: handshakes in flight of all programs together.
        """
        self._clock = clock
        self.maxTotal = maxTotal
        self.total = 0
        self._ofProgram: Counter[Claimant] = Counter()
        self._ofUser: Counter[int] = Counter()
        self._waiting: OrderedDict[Claimant, deque[tuple[int, Deferred[Slot]]]] = OrderedDict()
        self._freed: dict[Callable[[], None], None] = {}

    def inFlight(self, who: Claimant) -> int:
        """How many handshakes of this program are in flight."""
        return self._ofProgram[who]

    def _hasRoom(self, who: Claimant, maxForProgram: int) -> bool:
        share = self.maxTotal if who.uid == 0 else max(1, int(self.maxTotal * USER_SHARE))
        return (
            self.total < self.maxTotal and self._ofUser[who.uid] < share and self._ofProgram[who] < maxForProgram
        )

    def _take(self, who: Claimant) -> Slot:
        self.total += 1
        self._ofProgram[who] += 1
        self._ofUser[who.uid] += 1
        return Slot(lambda: self._release(who))

    def tryTake(self, who: Claimant, maxForProgram: int) -> Slot | None:
        """
        A slot, or None when there is none now; those who wait come first.

        @param who: the program that asks.
        @param maxForProgram: how many it may have in flight.
        """
        if who in self._waiting or not self._hasRoom(who, maxForProgram):
            return None
        return self._take(who)

    def take(self, who: Claimant, maxForProgram: int, timeout: float) -> Deferred[Slot]:
        """
        Wait for a slot.

        @param who: the program that asks.
        @param maxForProgram: how many it may have in flight.
        @param timeout: seconds.
        @return: fails with L{SSAError} ETIMEDOUT; may be cancelled.
        """
        slot = self.tryTake(who, maxForProgram)
        if slot is not None:
            return succeed(slot)

        def forget(_: object) -> None:
            queue = self._waiting.get(who)
            if queue is not None and entry in queue:
                queue.remove(entry)
                if not queue:
                    del self._waiting[who]

        def late() -> None:
            forget(None)
            waiter.errback(
                Cause.HANDSHAKE_TIMEOUT.error(f"it could not begin within {timeout:g} s, too many are in progress")
            )

        def stopTimer(result: Slot) -> Slot:
            if timer.active():
                timer.cancel()
            return result

        waiter: Deferred[Slot] = Deferred(forget)
        entry = (maxForProgram, waiter)
        timer = self._clock.callLater(timeout, late)
        waiter.addBoth(stopTimer)
        self._waiting.setdefault(who, deque()).append(entry)
        return waiter

    def whenFreed(self, call: Callable[[], None]) -> None:
        """Call C{call} once, when a slot has been given back."""
        self._freed[call] = None

    def forget(self, call: Callable[[], None]) -> None:
        """Undo L{whenFreed}."""
        self._freed.pop(call, None)

    def _release(self, who: Claimant) -> None:
        self.total -= 1
        self._ofProgram[who] -= 1
        self._ofUser[who.uid] -= 1
        if not self._ofProgram[who]:
            del self._ofProgram[who]
        if not self._ofUser[who.uid]:
            del self._ofUser[who.uid]
        self._grant()
        freed, self._freed = self._freed, {}
        for call in freed:
            call()

    def _grant(self) -> None:
        """Give what is free to those who wait: one for each program in turn."""
        granted = True
        while granted and self.total < self.maxTotal:
            granted = False
            for who in list(self._waiting):
                queue = self._waiting[who]
                maxForProgram, waiter = queue[0]
                if not self._hasRoom(who, maxForProgram):
                    continue
                queue.popleft()
                del self._waiting[who]
                if queue:
                    self._waiting[who] = queue
                granted = True
                waiter.callback(self._take(who))
                break
