# SPDX-License-Identifier: MIT
"""
An epoll set of its own behind one reader of the Twisted reactor.

All sockets of all relays stand in this set. One turn of the reactor then serves every ready relay with one look-up
each instead of a logging context per event, and the meaning of EPOLLHUP and EPOLLERR is ours to decide: a socket whose
peer has reset the connection may still hold data to read.
"""

from __future__ import annotations

import select
from collections.abc import Callable

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

READ = select.EPOLLIN
"""Interest in, or arrival of, data or an end of stream."""

WRITE = select.EPOLLOUT
"""Interest in, or arrival of, room to send."""

BROKEN = select.EPOLLERR | select.EPOLLHUP
"""Reported without being asked for: the connection is over in both directions."""

_QUIET = select.EPOLLET
"""No interest but L{BROKEN}, and that reported once: level-triggered it would come back for ever."""

_BATCH = 512
"""Most events taken in one turn, so that the reactor's other descriptors get theirs."""


@implementer(IReadDescriptor)
class Readiness:
    """Watches sockets for their owners; each owner is a callable that gets the events of its socket."""

    _log = Logger()

    def __init__(self, reactor: IReactorFDSet) -> None:
        """@param reactor: where the set itself is a reader, while it has members."""
        self._reactor = reactor
        self._epoll = select.epoll(sizehint=-1)
        self._owners: dict[int, Callable[[int], None]] = {}

    def add(self, descriptor: int, owner: Callable[[int], None]) -> None:
        """
        Start to watch a socket, for L{BROKEN} only until L{want} says more.

        @param descriptor: number of the socket; L{remove} it before it is closed.
        @param owner: called with a mask of L{READ}, L{WRITE} and L{BROKEN}. Events may be spurious.
        @raise OSError: epoll_ctl(2) refused it, e.g. ENOSPC.
        """
        self._epoll.register(descriptor, _QUIET)
        self._owners[descriptor] = owner
        if len(self._owners) == 1:
            self._reactor.addReader(self)

    def want(self, descriptor: int, interest: int) -> None:
        """
        Set what C{descriptor} is watched for, level-triggered. Ignored after L{remove}.

        @param interest: L{READ}, L{WRITE}, both or 0.
        """
        if descriptor in self._owners:
            self._epoll.modify(descriptor, interest or _QUIET)

    def remove(self, descriptor: int) -> None:
        """Stop watching. Unknown descriptors are ignored."""
        if self._owners.pop(descriptor, None) is None:
            return
        self._epoll.unregister(descriptor)
        if not self._owners:
            self._reactor.removeReader(self)

    def close(self) -> None:
        """Forget all sockets and close the set."""
        if self._owners:
            self._owners.clear()
            self._reactor.removeReader(self)
        self._epoll.close()

    def doRead(self) -> None:
        """Serve every socket that is ready now, once. An owner that raises is removed, and the failure logged."""
        owners = self._owners
        for descriptor, events in self._epoll.poll(0, _BATCH):
            owner = owners.get(descriptor)
            if owner is None:
                continue
            try:
                owner(events)
            except Exception:
                self._log.failure("the owner of a watched socket failed")
                self.remove(descriptor)

    def fileno(self) -> int:
        """The epoll set's own descriptor (epoll(7): it is readable when a member is ready)."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Name in Twisted's log."""
        return "relay"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives the set up, as it does for every reader when it stops."""
        self._owners.clear()
        self._epoll.close()
