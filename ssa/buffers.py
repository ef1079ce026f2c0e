# SPDX-License-Identifier: MIT
"""
The relays' shared buffers: few, large, and held only while data moves.

A relay is synchronous between reading one side and writing the other, so a flow whose receiver keeps up borrows a
buffer and returns it within one call. Buffers stay out only behind receivers that have stopped reading. That is why an
empty pool must not make the others wait for a buffer (they would wait for strangers who may never read again): it lends
a I{reserve} buffer of one TLS record instead, and only when those are used up as well does it queue, first come, first
served. A daemon that allows as many reserve buffers as it allows directions (two for each connection) never queues.

Large buffers are bounded for each user as well: who makes many connections to receivers that do not read gets reserve
buffers, which are slower, and leaves the large ones to others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

RECORD_SIZE = 16384
"""Largest plaintext of one TLS record, bytes (RFC 8446 section 5.1)."""

DEFAULT_SIZE = 16 * RECORD_SIZE
"""Size of a pooled buffer, bytes."""

MOST_IDLE = 64
"""Most large buffers that are kept while nobody needs them; the others are given back to the operating system."""

ROOT = 0
"""The user id that no bound for one user applies to."""


class Buffer:
    """
    A piece of memory on loan from a L{BufferPool}.

    @ivar view: the whole memory, writable bytes.
    @ivar size: its length, bytes.
    @ivar isReserve: whether it is one of the small ones.
    @ivar user: the user id that it counts for while it is lent.
    """

    __slots__ = ("isReserve", "size", "user", "view")

    def __init__(self, size: int, isReserve: bool = False) -> None:
        self.view = memoryview(bytearray(size))
        self.size = size
        self.isReserve = isReserve
        self.user = ROOT


class BufferPool:
    """
    Buffers for all relays of one reactor, bounded in total to C{limit * size + reserveLimit * 16384} bytes.  A reserve
    buffer is freed as soon as it comes back.

    @ivar lent: number of large buffers that are out now.
    @ivar reserveLent: number of reserve buffers that are out now.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limit: int = 64,
        size: int = DEFAULT_SIZE,
        reserveLimit: int = 4096,
        userLimit: int | None = None,
    ) -> None:
        """
        @param clock: tells waiting relays of a free buffer from a fresh stack.
        @param limit: most large buffers, at least 1.
        @param size: length of a large buffer, bytes, at least L{RECORD_SIZE}.
        @param reserveLimit: most reserve buffers, each of L{RECORD_SIZE} bytes.
        @param userLimit: most large buffers of one user other than root, at least 1; C{None}: C{limit}.
        @raise ValueError: a limit is out of range.
        """
        if size < RECORD_SIZE:
            raise ValueError("a buffer holds at least one TLS record")
        self._clock = clock
        self._size = size
        self._free: list[Buffer] = []
        self._ofUser: Counter[int] = Counter()
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()
        self._wakeup: IDelayedCall | None = None
        self._serving = False
        self.lent = 0
        self.reserveLent = 0
        self.setLimits(limit, reserveLimit, userLimit)

    def setLimits(self, limit: int, reserveLimit: int, userLimit: int | None = None) -> None:
        """
        Change the bounds. What is lent already stays lent; smaller bounds take effect as it comes back.

        @param limit: as in the constructor, like the others.
        @raise ValueError: a limit is out of range; nothing is changed.
        """
        if limit < 1 or reserveLimit < 0 or (userLimit is not None and userLimit < 1):
            raise ValueError("a buffer pool needs at least one buffer, in total and for each user")
        self._limit = limit
        self._reserveLimit = reserveLimit
        self._userLimit = limit if userLimit is None else userLimit
        self._trim()
        self._wakeWaiting()

    @property
    def waiting(self) -> int:
        """How many borrowers stand in the queue."""
        return len(self._waiting)

    @property
    def bytesHeld(self) -> int:
        """Memory that the pool holds now, lent or idle, bytes."""
        return (self.lent + len(self._free)) * self._size + self.reserveLent * RECORD_SIZE

    def take(self, whenFree: Callable[[], None], user: int = ROOT) -> Buffer | None:
        """
        Borrow a buffer; give it back with L{release} as soon as it is empty.

        @param whenFree: called once, later, when C{None} was returned and it is the borrower's turn to ask again.
        @param user: the user id that the buffer counts for.
        @return: a buffer, or C{None} when the pool is exhausted or others have waited longer.
        """
        if not self._waiting or self._serving:
            buffer = self._lend(user)
            if buffer is not None:
                return buffer
        self._waiting.append((whenFree, user))
        return None

    def _mayHaveLarge(self, user: int) -> bool:
        return self.lent < self._limit and (user == ROOT or self._ofUser[user] < self._userLimit)

    def _lend(self, user: int) -> Buffer | None:
        if self._mayHaveLarge(user):
            self.lent += 1
            if user != ROOT:
                self._ofUser[user] += 1
            buffer = self._free.pop() if self._free else Buffer(self._size)
            buffer.user = user
            return buffer
        if self.reserveLent < self._reserveLimit:
            self.reserveLent += 1
            return Buffer(RECORD_SIZE, isReserve=True)
        return None

    def release(self, buffer: Buffer) -> None:
        """Give C{buffer} back; the borrower must not touch it again."""
        if buffer.isReserve:
            self.reserveLent -= 1
        else:
            self.lent -= 1
            if buffer.user != ROOT:
                self._ofUser[buffer.user] -= 1
            self._free.append(buffer)
            if len(self._free) > MOST_IDLE or self.lent + len(self._free) > self._limit:
                self._trim()
        self._wakeWaiting()

    def _trim(self) -> None:
        """Keep few idle buffers, and never more than the bound allows."""
        while self._free and (len(self._free) > MOST_IDLE or self.lent + len(self._free) > self._limit):
            self._free.pop()

    def forget(self, whenFree: Callable[[], None]) -> None:
        """Leave the queue: a borrower that ends must not be called again. Unknown callables are ignored."""
        for entry in self._waiting:
            if entry[0] == whenFree:
                self._waiting.remove(entry)
                break
        self._wakeWaiting()

    def _available(self) -> bool:
        """Whether one of those who wait could be served."""
        if self.reserveLent < self._reserveLimit:
            return bool(self._waiting)
        return self.lent < self._limit and any(self._mayHaveLarge(user) for _, user in self._waiting)

    def _wakeWaiting(self) -> None:
        if self._waiting and self._wakeup is None and not self._serving and self._available():
            self._wakeup = self._clock.callLater(0, self._serveWaiting)

    def _serveWaiting(self) -> None:
        """Call the borrowers that wait now, in turn, while there is something to lend."""
        self._wakeup = None
        self._serving = True
        try:
            for _ in range(len(self._waiting)):
                if not self._waiting or not self._available():
                    break
                self._waiting.popleft()[0]()
        finally:
            self._serving = False
            self._wakeWaiting()
