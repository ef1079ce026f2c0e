# SPDX-License-Identifier: MIT
"""A port at a path in the file system: what the daemon's two sockets have in common."""

from __future__ import annotations

import socket
from abc import abstractmethod
from errno import EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.protocol.link import BoundedLog
from ssa.protocol.place import SocketPlace

__all__ = ["PlacePort"]

_ACCEPTS_PER_WAKEUP = 16
_PAUSE = 0.5
"""Seconds without accepting after a shortage: the connection stays in the queue, and the socket readable."""

_SHORTAGES = (EMFILE, ENFILE, ENOBUFS, ENOMEM)


class PlacePort(FileDescriptor):
    """
    Listens on a unix path.

    Everybody may connect: what a peer may do follows from its credentials.  No two daemons have the path at a time
    (L{SocketPlace}).

    @ivar path: where it listens.
    """

    _log = Logger()

    def __init__(self, reactor: Any, path: str, kind: int, what: str) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param path: the socket's path.
        @param kind: C{socket.SOCK_SEQPACKET} or C{socket.SOCK_STREAM}.
        @param what: who connects, for the log.
        """
        super().__init__(reactor)
        self._reactor: Any = reactor
        self.path = path
        self._what = what
        self._place = SocketPlace(path, kind)
        self._socket: socket.socket | None = None
        self._resume: IDelayedCall | None = None
        self._bounded = BoundedLog(self._log, 1000)

    @abstractmethod
    def accepted(self, connection: socket.socket) -> None:
        """
        Somebody has connected.

        @param connection: owned by this method from now on, unless it raises.
        """

    @abstractmethod
    def endAll(self) -> None:
        """End every connection: the port is closed."""

    def pauseNow(self) -> float:
        """How many seconds to accept nothing for; 0 to accept the next one."""
        return 0.0

    def fileno(self) -> int:
        """The listening descriptor, or -1."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """How the reactor names this in its log."""
        return type(self).__module__

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
        """Stop to accept, remove the socket, and end every connection.  May be called again."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._socket is not None:
            self._reactor.removeReader(self)
        self._socket = None
        self.connected = 0
        self._place.release()
        self.endAll()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has given up the listening socket."""
        self._log.warn("the listening socket failed: {why}", why=reason.getErrorMessage())
        self.stopListening()

    def doWrite(self) -> None:
        """A listening socket is never written."""

    def doRead(self) -> None:
        """Accept what waits; called by the reactor."""
        for _ in range(_ACCEPTS_PER_WAKEUP):
            if self._socket is None:
                return
            seconds = self.pauseNow()
            if seconds:
                self._pause(seconds)
                return
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno in _SHORTAGES:
                    self._bounded.warn("no {what} can be accepted: {why}", what=self._what, why=error.strerror)
                    self._pause(_PAUSE)
                elif error.errno not in (EAGAIN, EINTR, ECONNABORTED):
                    raise
                return
            try:
                self.accepted(connection)
            except Exception:
                connection.close()
                self._bounded.failure("no {what} could be served", what=self._what)

    def _pause(self, seconds: float) -> None:
        self._reactor.removeReader(self)
        self._resume = self._reactor.callLater(seconds, self._accept)

    def _accept(self) -> None:
        self._resume = None
        self._reactor.addReader(self)
