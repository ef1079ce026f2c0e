# SPDX-License-Identifier: MIT
"""The socket in the file system at which the daemon waits for interceptors."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from errno import EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.interfaces import IEventReceiver, IInterceptor
from ssa.protocol.answering import LinkLimits
from ssa.protocol.daemon import DaemonEnd, peerCredentials
from ssa.protocol.link import BoundedLog
from ssa.protocol.messages import Answer, Event
from ssa.protocol.place import SocketPlace

_ACCEPTS_PER_WAKEUP = 16
_PAUSE = 0.5
_SHORTAGES = (EMFILE, ENFILE, ENOBUFS, ENOMEM)

EndFactory = Callable[[Any, socket.socket, IEventReceiver, LinkLimits], DaemonEnd]


class SupervisedPort(FileDescriptor):
    """
    Listens on a unix path and makes a L{DaemonEnd} for each connection.

    Everybody may connect: what a peer may do follows from its credentials.  No two daemons have the path at a time
    (L{SocketPlace}).

    @ivar path: where it listens.
    @ivar ends: the links that live.
    """

    _log = Logger()

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
        super().__init__(reactor)
        self._reactor: Any = reactor
        self.path = path
        self.ends: set[DaemonEnd] = set()
        self._receiver = receiver
        self._banned: dict[int, float] = {}
        self.setLimits(maximumConnections, limits, maximumPerUser)
        self._makeEnd = makeEnd
        self._perUser: Counter[int] = Counter()
        self._place = SocketPlace(path, socket.SOCK_SEQPACKET)
        self._socket: socket.socket | None = None
        self._resume: Any = None
        self._bounded = BoundedLog(self._log, 1000)
        self._forwarder = _Forwarder(self)

    def fileno(self) -> int:
        """The listening descriptor, or -1."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """How the reactor names this in its log."""
        return "ssa.protocol.port"

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

    def startListening(self) -> None:
        """
        Make the directory and the socket, and begin to accept.

        @raise CannotListenError: another daemon is there (EADDRINUSE), something that is no socket is in the way, or the
            operating system refuses.
        """
        try:
            self._socket = self._place.take()
        except OSError as error:
            raise CannotListenError(None, self.path, error) from error  # type: ignore[no-untyped-call]
        self.connected = 1
        self._reactor.addReader(self)

    def stopListening(self) -> None:
        """Stop to accept, remove the socket, and end every link.  May be called again."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._socket is not None:
            self._reactor.removeReader(self)
        self._release()
        for end in list(self.ends):
            end.close()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has given up the listening socket."""
        self._log.warn("the listening socket failed: {why}", why=reason.getErrorMessage())
        self.stopListening()

    def doRead(self) -> None:
        """Accept what waits; called by the reactor."""
        for _ in range(_ACCEPTS_PER_WAKEUP):
            if self._socket is None:
                return
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno in _SHORTAGES:
                    # The connection stays in the queue, and the socket readable: only time can tell.
                    self._bounded.warn("no interceptor can be accepted: {why}", why=error.strerror)
                    self._reactor.removeReader(self)
                    self._resume = self._reactor.callLater(_PAUSE, self._accept)
                elif error.errno not in (EAGAIN, EINTR, ECONNABORTED):
                    raise
                return
            try:
                self._connected(connection)
            except Exception:
                connection.close()
                self._bounded.failure("an interceptor could not be served")

    def doWrite(self) -> None:
        """A listening socket is never written."""

    def _connected(self, connection: socket.socket) -> None:
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

    def _accept(self) -> None:
        self._resume = None
        self._reactor.addReader(self)

    def _release(self) -> None:
        """Close the socket, and remove the path if it is still ours."""
        self._socket = None
        self.connected = 0
        self._place.release()


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
