# SPDX-License-Identifier: MIT
"""
Identical questions are asked once, and whoever comes meanwhile waits for the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")

__all__ = ["InFlight", "firstDefinite"]


class InFlight(Generic[T]):
    """Work in progress, by what it is about."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[Deferred[T]]] = {}
        self._work: dict[Hashable, Deferred[T]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, about: Hashable, begin: Callable[[], Deferred[T]]) -> Deferred[T]:
        """
        Wait for work, which is begun if it is not in progress.

        @return: may be cancelled; the work is cancelled when nobody waits for it any more.
        """

        def leave(mine: Deferred[T]) -> None:
            waiting = self._waiting.get(about)
            if waiting is None or mine not in waiting:
                return
            waiting.remove(mine)
            if not waiting:
                del self._waiting[about]
                self._work.pop(about).cancel()

        mine: Deferred[T] = Deferred(leave)
        others = self._waiting.get(about)
        if others is not None:
            others.append(mine)
            return mine
        self._waiting[about] = waiting = [mine]

        def ended(result: T | Failure) -> None:
            if self._waiting.get(about) is not waiting:
                return  # everybody has left
            del self._waiting[about]
            self._work.pop(about, None)
            for each in waiting:
                if isinstance(result, Failure):
                    each.errback(result)
                else:
                    each.callback(result)

        work = begin()
        self._work[about] = work
        work.addBoth(ended)
        if about not in self._waiting:
            self._work.pop(about, None)
        return mine


def firstDefinite(asked: list[Deferred[T | None]]) -> Deferred[T | None]:
    """
    Wait for the first of several that gives something.

    @param asked: each gives C{None} if it has nothing; they are cancelled when one has given something or has failed.
    @return: C{None} if none gives anything; fails as soon as one of them fails; may be cancelled.
    """
    left = len(asked)
    result: Deferred[T | None] = Deferred(lambda _: stop())

    def stop() -> None:
        for each in asked:
            each.addErrback(lambda _: None)
            each.cancel()

    def gave(value: T | None) -> None:
        nonlocal left
        left -= 1
        if not result.called and (value is not None or not left):
            result.callback(value)
            stop()

    def failed(failure: Failure) -> None:
        if not result.called:
            result.errback(failure)
            stop()

    if not asked:
        result.callback(None)
    for each in asked:
        each.addCallbacks(gave, failed)
    return result
