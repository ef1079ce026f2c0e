# SPDX-License-Identifier: MIT
"""
The relays' shared buffers: few, large, and held only while data moves.

A relay is synchronous between reading one side and writing the other, so a flow whose receiver keeps up borrows a
buffer and returns it within one call. Buffers stay out only behind receivers that have stopped reading. That is why an
empty pool must not make the others wait for a buffer (they would wait for strangers who may never read again): it lends
a I{reserve} buffer of one TLS record instead, and only when those are used up as well does it queue, first come, first
served. A daemon that allows as many reserve buffers as it allows directions (two for each connection) never queues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

RECORD_SIZE = 16384
"""Largest plaintext of one TLS record, bytes (RFC 8446 section 5.1)."""

DEFAULT_SIZE = 16 * RECORD_SIZE
"""Size of a pooled buffer, bytes."""


class Buffer:
    """
    A piece of memory on loan from a L{BufferPool}.

    @ivar view: the whole memory, writable bytes.
    @ivar size: its length, bytes.
    @ivar isReserve: whether it is one of the small ones.
    """

    __slots__ = ("isReserve", "size", "view")

    def __init__(self, size: int, isReserve: bool = False) -> None:
        self.view = memoryview(bytearray(size))
        self.size = size
        self.isReserve = isReserve


class BufferPool:
    """
    Buffers for all relays of one reactor, bounded in total to C{limit * size + reserveLimit * 16384} bytes.

    @ivar lent: number of large buffers that are out now.
    @ivar reserveLent: number of reserve buffers that are out now.
    """

    def __init__(
        self, clock: IReactorTime, limit: int = 64, size: int = DEFAULT_SIZE, reserveLimit: int = 4096
    ) -> None:
        """
        @param clock: tells waiting relays of a free buffer from a fresh stack.
        @param limit: most large buffers, at least 1.
        @param size: length of a large buffer, bytes, at least L{RECORD_SIZE}.
        @param reserveLimit: most reserve buffers, each of L{RECORD_SIZE} bytes.
        @raise ValueError: a limit is out of range.
        """
        if limit < 1 or size < RECORD_SIZE or reserveLimit < 0:
            raise ValueError("a buffer pool needs at least one buffer of at least one TLS record")
        self._clock = clock
        self._limit = limit
        self._size = size
        self._reserveLimit = reserveLimit
        self._free: list[Buffer] = []
        self._waiting: deque[Callable[[], None]] = deque()
        self._wakeup: IDelayedCall | None = None
        self._serving = False
        self.lent = 0
        self.reserveLent = 0

    @property
    def waiting(self) -> int:
        """How many borrowers stand in the queue."""
        return len(self._waiting)

    @property
    def bytesHeld(self) -> int:
        """Memory that the pool holds now, lent or idle, bytes."""
        return (self.lent + len(self._free)) * self._size + self.reserveLent * RECORD_SIZE

    def take(self, whenFree: Callable[[], None]) -> Buffer | None:
        """
        Borrow a buffer; give it back with L{release} as soon as it is empty.

        @param whenFree: called once, later, when C{None} was returned and it is the borrower's turn to ask again.
        @return: a buffer, or C{None} when the pool is exhausted or others have waited longer.
        """
        if not self._waiting or self._serving:
            buffer = self._lend()
            if buffer is not None:
                return buffer
        self._waiting.append(whenFree)
        return None

    def _lend(self) -> Buffer | None:
        if self.lent < self._limit:
            self.lent += 1
            return self._free.pop() if self._free else Buffer(self._size)
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
            self._free.append(buffer)
        self._wakeWaiting()

    def forget(self, whenFree: Callable[[], None]) -> None:
        """Leave the queue: a borrower that ends must not be called again. Unknown callables are ignored."""
        if whenFree in self._waiting:
            self._waiting.remove(whenFree)
        self._wakeWaiting()

    def _available(self) -> bool:
        return self.lent < self._limit or self.reserveLent < self._reserveLimit

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
                self._waiting.popleft()()
        finally:
            self._serving = False
            self._wakeWaiting()
