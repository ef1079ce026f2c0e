# SPDX-License-Identifier: MIT
"""
Who may fetch now and who waits: so many at one time, so many of one user, and those who wait are served user by user.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque

from twisted.internet.defer import Deferred, succeed

from ssa.revocation.verdict import NoAnswer

__all__ = ["Turns"]


class Turns:
    """
    A semaphore that one user cannot have alone.

    A free turn goes to the user who had one longest ago, of those who wait and have not as many as they may.
    """

    def __init__(self, most: int, mostOfOne: int, mostWaiting: int, mostWaitingOfOne: int) -> None:
        """
        @param most: how many turns there are.
        @param mostOfOne: how many of them one user may have.
        @param mostWaiting: how many may wait.
        @param mostWaitingOfOne: how many of one user.
        """
        self._most = most
        self._mostOfOne = mostOfOne
        self._mostWaiting = mostWaiting
        self._mostWaitingOfOne = mostWaitingOfOne
        self._taken: Counter[int] = Counter()
        self._waiting: OrderedDict[int, deque[Deferred[None]]] = OrderedDict()
        self._isHandingOver = False

    @property
    def taken(self) -> int:
        """How many turns are taken."""
        return sum(self._taken.values())

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return sum(map(len, self._waiting.values()))

    def take(self, owner: int) -> Deferred[None]:
        """
        Wait for a turn.

        @param owner: the user.
        @return: may be cancelled; when it has succeeded, L{release} is owed.
        @raise NoAnswer: too many wait already.
        """
        if self.taken < self._most and self._taken[owner] < self._mostOfOne:
            self._taken[owner] += 1
            return succeed(None)
        if self.waiting >= self._mostWaiting:
            raise NoAnswer("too many fetches are waiting")
        mine = self._waiting.get(owner, deque())
        if len(mine) >= self._mostWaitingOfOne:
            raise NoAnswer("too many fetches of this user are waiting")

        def leave(turn: Deferred[None]) -> None:
            mine.remove(turn)
            if not mine:
                del self._waiting[owner]

        turn: Deferred[None] = Deferred(leave)
        mine.append(turn)
        self._waiting[owner] = mine
        return turn

    def release(self, owner: int) -> None:
        """Give a turn back."""
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
        if self._isHandingOver:
            return  # a fetch that has ended at once: the loop below goes on
        self._isHandingOver = True
        try:
            while (turn := self._next()) is not None:
                turn.callback(None)
        finally:
            self._isHandingOver = False

    def _next(self) -> Deferred[None] | None:
        """Take a turn for the one who is next; L{None} if nobody can have one."""
        if self.taken >= self._most:
            return None
        for owner, mine in self._waiting.items():
            if self._taken[owner] < self._mostOfOne:
                turn = mine.popleft()
                if mine:
                    self._waiting.move_to_end(owner)
                else:
                    del self._waiting[owner]
                self._taken[owner] += 1
                return turn
        return None
