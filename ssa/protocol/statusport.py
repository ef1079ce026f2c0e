# SPDX-License-Identifier: MIT
"""
The socket at which the daemon says what it does: whoever connects gets one document, then the end of the stream.

Nothing is ever read from a client, and what it gets follows from its credentials as the kernel tells them (unix(7),
SO_PEERCRED).  Any user may ask, so that everything is bounded: how many are answered at a time, how often a user may ask, how
many connections are accepted in a second, how long an answer may take, and how much of the daemon's time all answers to
ordinary users take together.  What is made of a document and not yet sent is at most what L{FileDescriptor} buffers and one
piece.
"""

from __future__ import annotations

import json
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from errno import EAGAIN, EINTR
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.task import CooperativeTask, Cooperator, TaskStopped
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.protocol.daemon import peerCredentials
from ssa.protocol.placeport import PlacePort
from ssa.statusformat import FORMAT
from ssa.throttle import Throttle

__all__ = ["MOST_AT_A_TIME", "MOST_OF_OTHERS", "MOST_OF_USER", "SECONDS", "Answer", "Asking", "Documents", "StatusPort"]

MOST_AT_A_TIME = 32
"""Connections that are answered at a time."""

MOST_OF_OTHERS = 24
"""The same of users who do not see everything: the rest is for those who do."""

MOST_OF_USER = 2
"""The same of one such user."""

SECONDS = 20.0
"""Seconds after which a connection is cut, whether its document has been sent or not."""

INTERVAL = 1.0
"""Seconds between two documents of one user who does not see everything."""

_OTHERS_BURST = 10
_OTHERS_INTERVAL = 0.1
"""So many documents at once, then one in so many seconds: of all such users together, since one person may have many."""

_ACCEPTS_BURST = 32
_ACCEPTS_INTERVAL = 0.01
_ACCEPTS_PAUSE = 0.1
"""The same for connections of everybody, refused ones included; above it they wait in the kernel's queue."""

_WORK = 0.002
"""Seconds of work on documents before other things have their turn."""

_REST = 0.002
"""Seconds until the next such turn, on documents of those who see everything."""

_REST_OF_OTHERS = 0.02
"""The same for all others."""

_SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT


class Documents(Protocol):
    """Makes the documents (L{ssa.status.Status})."""

    def seesAll(self, uid: int) -> bool:
        """Whether a user sees everything."""

    def pieces(self, uid: int) -> Iterator[str]:
        """The document for a user, in pieces; each step is about a millisecond of work."""


class Asking:
    """
    Who may ask, and when.

    @ivar answered: how many are being answered.
    """

    def __init__(self, clock: IReactorTime, seesAll: Callable[[int], bool]) -> None:
        """
        @param clock: tells the time.
        @param seesAll: whether a user sees everything.  Those who do are bound by L{MOST_AT_A_TIME} only.
        """
        self._clock = clock
        self._seesAll = seesAll
        self._ofUser: Counter[int] = Counter()
        self._others = 0
        self._rate = Throttle(clock, _OTHERS_BURST, _OTHERS_INTERVAL)
        self._last: OrderedDict[int, float] = OrderedDict()
        self.answered = 0

    def begin(self, uid: int) -> float:
        """
        Ask for a user.

        @return: 0, it may have a document, and L{end} is to be called after it; else the seconds after which to ask again.
        """
        if self.answered >= MOST_AT_A_TIME:
            return INTERVAL
        if not self._seesAll(uid):
            wait = self._wait(uid)
            if wait:
                return wait
            self._others += 1
            self._ofUser[uid] += 1
        self.answered += 1
        return 0.0

    def end(self, uid: int) -> None:
        """A user has been answered."""
        self.answered -= 1
        if not self._seesAll(uid):
            self._others -= 1
            self._ofUser[uid] -= 1
            if not self._ofUser[uid]:
                del self._ofUser[uid]

    def _wait(self, uid: int) -> float:
        now = self._clock.seconds()
        while self._last:
            oldest = next(iter(self._last))
            if now - self._last[oldest] < INTERVAL:
                break
            del self._last[oldest]
        if uid in self._last:
            return max(0.001, round(self._last[uid] + INTERVAL - now, 3))
        if self._others >= MOST_OF_OTHERS or self._ofUser[uid] >= MOST_OF_USER or self._rate.allow() is None:
            return INTERVAL
        self._last[uid] = now
        return 0.0


@implementer(IPushProducer)
class Answer:
    """
    Gives a document to a transport, as fast as it takes it and as the daemon's other work allows.
    """

    _log = Logger()

    def __init__(self, transport: Any, pieces: Iterator[str], cooperator: Cooperator) -> None:
        """
        Begin.

        @param transport: an C{IConsumer} with C{loseConnection} and C{abortConnection}.
        @param pieces: the document.
        @param cooperator: says when to go on.
        """
        self._transport = transport
        self._pieces = pieces
        self._task: CooperativeTask[Iterator[None]] = cooperator.cooperate(self._send())
        transport.registerProducer(self, True)
        self._task.whenDone().addCallbacks(self._sent, self._failed)

    def _send(self) -> Iterator[None]:
        for piece in self._pieces:
            if piece:
                self._transport.write(piece.encode("ascii"))
            yield None

    def _sent(self, _: object) -> None:
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def _failed(self, failure: Failure) -> None:
        """A document that ends in the middle is not taken for a whole one: it is no JSON."""
        if not failure.check(TaskStopped):  # type: ignore[no-untyped-call]
            self._log.failure("the status could not be made", failure)
            self._transport.unregisterProducer()
            self._transport.abortConnection()

    def pauseProducing(self) -> None:
        """See L{IPushProducer}."""
        self._task.pause()

    def resumeProducing(self) -> None:
        """See L{IPushProducer}."""
        self._task.resume()

    def stopProducing(self) -> None:
        """The client has gone, or is cut."""
        self._task.stop()


class _Connection(FileDescriptor):
    """A client that only reads."""

    def __init__(self, reactor: Any, sock: socket.socket, ended: Callable[[_Connection], None]) -> None:
        """
        @param sock: non-blocking; owned by this object.
        @param ended: called once, at the end.
        """
        super().__init__(reactor)
        self._reactor: Any = reactor
        self._socket = sock
        self._ended = ended
        sock.shutdown(socket.SHUT_RD)  # what the client sends is its own error: EPIPE
        self.connected = 1
        self._deadline: IDelayedCall = reactor.callLater(SECONDS, self.abortConnection)

    def fileno(self) -> int:
        """The descriptor, or -1."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """How the reactor names this in its log."""
        return "ssa.protocol.statusport"

    def writeSomeData(self, data: bytes) -> int | Exception:
        """Send; see L{FileDescriptor}."""
        try:
            return self._socket.send(data, _SEND_FLAGS)
        except OSError as error:
            return 0 if error.errno in (EAGAIN, EINTR) else ConnectionLost(error.strerror)

    def doRead(self) -> None:
        """Nothing is read."""

    def abortConnection(self) -> None:
        """End now, whatever is still to be sent."""
        if self.connected:
            self.connectionLost(Failure(ConnectionAborted()))  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:
        """The document has been sent, or the client has gone."""
        if not self.connected:
            return
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self.connected = 0
        if self._deadline.active():
            self._deadline.cancel()
        self._socket.close()
        self._ended(self)


class StatusPort(PlacePort):
    """
    Listens on a unix path and answers whoever connects.
    """
    def __init__(self, reactor: Any, path: str, documents: Documents) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param path: the socket's path.
        @param documents: makes what is answered.
        """
        super().__init__(reactor, path, socket.SOCK_STREAM, "client of the status")
        self._documents = documents
        self._asking = Asking(reactor, documents.seesAll)
        self._accepts = Throttle(reactor, _ACCEPTS_BURST, _ACCEPTS_INTERVAL)
        self._connections: set[_Connection] = set()
        self._forAll = self._cooperator(_REST)
        self._forOthers = self._cooperator(_REST_OF_OTHERS)

    def _cooperator(self, rest: float) -> Cooperator:
        clock = self._reactor

        def turn() -> Callable[[], bool]:
            end = clock.seconds() + _WORK
            return lambda: bool(clock.seconds() >= end)

        return Cooperator(turn, lambda call: clock.callLater(rest, call))

    def endAll(self) -> None:
        """Cut every connection."""
        for connection in list(self._connections):
            connection.abortConnection()

    def pauseNow(self) -> float:
        """Above the rate of connections they wait in the kernel's queue."""
        return _ACCEPTS_PAUSE if self._accepts.allow() is None else 0.0

    def accepted(self, connection: socket.socket) -> None:
        """Answer one connection, now or never."""
        connection.setblocking(False)
        _, uid = peerCredentials(connection)
        wait = self._asking.begin(uid)
        if wait:
            refusal = {"ssa_status": FORMAT, "error": "too many ask: ask again later", "retry_seconds": wait}
            try:
                connection.send(json.dumps(refusal).encode("ascii") + b"\n", _SEND_FLAGS)
            except OSError as error:
                self._log.debug("a client that was to ask again later has gone: {why}", why=error.strerror)
            connection.close()
            return
        try:
            transport = _Connection(self._reactor, connection, lambda ended: self._ended(ended, uid))
        except OSError:
            self._asking.end(uid)
            raise
        self._connections.add(transport)
        try:
            Answer(transport, self._documents.pieces(uid), self._forAll if self._documents.seesAll(uid) else self._forOthers)
        except BaseException:
            transport.abortConnection()
            raise

    def _ended(self, connection: _Connection, uid: int) -> None:
        self._connections.discard(connection)
        self._asking.end(uid)
