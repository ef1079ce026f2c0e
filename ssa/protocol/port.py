# SPDX-License-Identifier: MIT
"""The socket in the file system at which the daemon waits for interceptors."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from ssa.interfaces import IEventReceiver, IInterceptor
from ssa.protocol.answering import LinkLimits
from ssa.protocol.daemon import DaemonEnd, peerCredentials
from ssa.protocol.messages import Answer, Event
from ssa.protocol.placeport import PlacePort

EndFactory = Callable[[Any, socket.socket, IEventReceiver, LinkLimits], DaemonEnd]


class SupervisedPort(PlacePort):
    """
    Listens on a unix path and makes a L{DaemonEnd} for each connection.

    @ivar ends: the links that live.
    """

    def __init__(
        self,
        reactor: Any,
        path: str,
        receiver: IEventReceiver,
        maximumConnections: int = 4096,
        maximumPerUser: int | None = None,
        limits: LinkLimits = LinkLimits(),  # noqa: B008 - it is frozen
        makeEnd: EndFactory = DaemonEnd,
    ) -> None:
        """
        @param path: the socket's path.
        @param receiver: gets the events of all links.
        @param maximumConnections: the most links at a time; one more is closed at once.
        @param maximumPerUser: the most links of one user id, by default half of all; root is only bound by
            C{maximumConnections}.
        @param limits: the bounds of each link.
        """
        super().__init__(reactor, path, socket.SOCK_SEQPACKET, "interceptor")
        self.ends: set[DaemonEnd] = set()
        self._receiver = receiver
        self._banned: dict[int, float] = {}
        self.setLimits(maximumConnections, limits, maximumPerUser)
        self._makeEnd = makeEnd
        self._perUser: Counter[int] = Counter()
        self._forwarder = _Forwarder(self)

    def setLimits(self, maximumConnections: int, limits: LinkLimits, maximumPerUser: int | None = None) -> None:
        """
        Change the bounds, those of the links that live included.  No link is ended.

        @param maximumConnections: as in the constructor, like the others.
        """
        self._maximumConnections = maximumConnections
        self._maximumPerUser = (maximumConnections + 1) // 2 if maximumPerUser is None else maximumPerUser
        self._limits = limits
        for end in self.ends:
            end.limits = limits

    def ban(self, uid: int, seconds: float) -> None:
        """
        End every link of a user, and accept no new one for a while.

        @param uid: the user.
        @param seconds: how long.
        """
        self._banned[uid] = self._reactor.seconds() + seconds
        for end in list(self.ends):
            if end.peerUID == uid:
                end.close()

    def _isBanned(self, uid: int) -> bool:
        if uid in self._banned and self._reactor.seconds() >= self._banned[uid]:
            del self._banned[uid]
        return uid in self._banned

    def endAll(self) -> None:
        """End every link."""
        for end in list(self.ends):
            end.close()

    def accepted(self, connection: socket.socket) -> None:
        """Serve one connection, if there is room."""
        pid, uid = peerCredentials(connection)
        if self._isBanned(uid):
            self._bounded.warn("process {pid} of user {uid}: the user is locked out for now", pid=pid, uid=uid)
            connection.close()
            return
        if len(self.ends) >= self._maximumConnections or (uid != 0 and self._perUser[uid] >= self._maximumPerUser):
            self._bounded.warn("process {pid} of user {uid}: too many interceptors", pid=pid, uid=uid)
            connection.close()
            return
        end = self._makeEnd(self._reactor, connection, self._forwarder, self._limits)
        self.ends.add(end)
        self._perUser[uid] += 1

    def forget(self, end: DaemonEnd) -> None:
        """A link has ended."""
        if end in self.ends:
            self.ends.discard(end)
            self._perUser[end.peerUID] -= 1
            if not self._perUser[end.peerUID]:
                del self._perUser[end.peerUID]


@implementer(IEventReceiver)
class _Forwarder:
    """Passes everything on to the receiver, and tells the port which links have ended."""

    def __init__(self, port: SupervisedPort) -> None:
        self._port = port

    def eventReceived(self, interceptor: IInterceptor, event: Event) -> Deferred[Answer] | None:
        return self._port._receiver.eventReceived(interceptor, event)

    def interceptorLost(self, interceptor: IInterceptor) -> None:
        assert isinstance(interceptor, DaemonEnd)
        self._port.forget(interceptor)
        self._port._receiver.interceptorLost(interceptor)
