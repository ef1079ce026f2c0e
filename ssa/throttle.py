# SPDX-License-Identifier: MIT
"""How often something that a peer can cause is written to the log."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

__all__ = ["Throttle", "notLogged"]


class Throttle:
    """
    Allows a burst, then a steady rate (a token bucket).

    @ivar suppressed: how many were refused since the last that was allowed.
    """

    def __init__(self, clock: IReactorTime, burst: int = 10, interval: float = 6.0) -> None:
        """
        @param clock: tells the time.
        @param burst: how many at once.
        @param interval: seconds until one more is allowed.
        """
        self._clock = clock
        self._burst = burst
        self._interval = interval
        self._tokens = float(burst)
        self._last = clock.seconds()
        self.suppressed = 0

    def allow(self) -> int | None:
        """
        Ask for one.

        @return: None, be silent; else how many were suppressed before this one.
        """
        now = self._clock.seconds()
        self._tokens = min(self._burst, self._tokens + (now - self._last) / self._interval)
        self._last = now
        if self._tokens < 1:
            self.suppressed += 1
            return None
        self._tokens -= 1
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed


def notLogged(suppressed: int) -> str:
    """Say how many lines were left out before one that is written; "" if none was."""
    return f" ({suppressed} more were not logged)" if suppressed else ""
