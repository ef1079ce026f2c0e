# SPDX-License-Identifier: MIT
"""
One answer for each event, whatever the receiver does: the same for every transport.

L{Answering} stands between a link and the daemon.  The link gives it events and a way to send an answer; it sees to it that
each event that wants an answer gets exactly one, in time, and that what the other side can make the daemon keep is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from errno import EBADF, EEXIST, EIO, ENETDOWN, ENFILE, ENOBUFS, EPERM, ETIMEDOUT
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.errors import SSAError
from ssa.interfaces import IEventReceiver, IInterceptor
from ssa.netlink.codec import BadValueError, CodecError
from ssa.protocol.interceptor import isAnswerTo
from ssa.protocol.link import BoundedLog
from ssa.protocol.messages import (
    AcceptNotify,
    Answer,
    CloseNotify,
    ConnectNotify,
    Event,
    SocketNotify,
    UpgradeNotify,
    failure,
)


@dataclass
class _PendingEvent:
    """An event without its answer yet."""

    event: Event
    work: Deferred[Answer] | None = None
    timeout: Any = None


@dataclass(frozen=True)
class LinkLimits:
    """
    The bounds of one link.

    The times are no keys of the configuration: they end what should have ended by itself, by the times that are.

    @ivar answerTime: seconds after which an event is answered with ETIMEDOUT.
    @ivar handshakeTime: the same for connects and upgrades.  It is longer than the longest ResolveTimeout, ConnectTimeout and
        HandshakeTimeout together, for several addresses.
    @ivar requestTime: seconds after which a request fails with ETIMEDOUT; not for C{accepted}, which waits for the program.
    @ivar maximumPending: the most events in work; one more is answered with ENOBUFS.
    @ivar maximumRequests: the most requests without a reply; one more fails with ENOBUFS.
    @ivar maximumSockets: the most TLS sockets; one more is refused with ENFILE.
    """

    answerTime: float = 30.0
    handshakeTime: float = 86400.0
    requestTime: float = 30.0
    maximumPending: int = 4096
    maximumRequests: int = 8192
    maximumSockets: int = 65536


class Answering:
    """
    The events of one interceptor, and the sockets that they are about.

    @ivar limits: the bounds; new ones count from the next event on.
    @ivar sockets: the ids of the TLS sockets that the interceptor has.
    """

    def __init__(
        self,
        reactor: Any,
        interceptor: IInterceptor,
        receiver: IEventReceiver,
        limits: LinkLimits,
        send: Callable[[Answer], None],
        log: Logger,
        bounded: BoundedLog,
    ) -> None:
        """
        @param reactor: an C{IReactorTime}.
        @param interceptor: whose events they are.
        @param send: sends an answer.  It raises C{CodecError} where it cannot be encoded, and L{OSError} where it cannot be
            sent, which an answer without a value always can.
        @param log: of the link.
        @param bounded: the same, for what the other side can bring about.
        """
        self.limits = limits
        self.sockets: set[int] = set()
        self._reactor = reactor
        self._interceptor = interceptor
        self._receiver = receiver
        self._send = send
        self._log = log
        self._bounded = bounded
        self._events: dict[int, _PendingEvent] = {}
        self._given: dict[int, _PendingEvent] = {}

    def received(self, event: Event, shortage: int = 0) -> None:
        """
        Give an event to the receiver, and see to its answer.

        @param shortage: an errno: the event has lost something on its way, so that it has to fail.
        @raise BadValueError: an event of this number waits for its answer already.
        """
        if event.event in self._events:
            raise BadValueError(f"event {event.event} came twice")
        errno = shortage or self._admit(event)
        if not event.wantsAnswer:
            if not errno:
                self._tellReceiver(event)
            elif not isinstance(event, CloseNotify):  # the close of a socket that was refused
                self._bounded.warn("{kind} is not this interceptor's to send", kind=type(event).__name__)
            return
        if errno:
            self._send(failure(event, errno))
            return
        pending = self._events[event.event] = _PendingEvent(event)
        try:
            work = self._receiver.eventReceived(self._interceptor, event)
        except SSAError as error:
            self._answer(pending, failure(event, error.errno))
            return
        except Exception:
            self._bounded.failure("{kind} failed", kind=type(event).__name__)
            self._answer(pending, failure(event, EIO))
            return
        if not isinstance(work, Deferred):
            self._bounded.warn("{kind} was not answered with a Deferred", kind=type(event).__name__)
            self._answer(pending, failure(event, EIO))
            return
        pending.work = work
        work.addCallbacks(self._succeeded, self._failed, callbackArgs=(pending,), errbackArgs=(pending,))
        if self._isPending(pending):
            long = isinstance(event, (ConnectNotify, UpgradeNotify))
            seconds = self.limits.handshakeTime if long else self.limits.answerTime
            pending.timeout = self._reactor.callLater(seconds, self._timedOut, pending)

    def stop(self) -> None:
        """The link has ended: nothing is answered any more, nothing has an id.  L{tellLost} comes after it."""
        self._given, self._events = self._events, {}
        self.sockets.clear()
        for pending in self._given.values():
            self._stopTimer(pending)

    def tellLost(self) -> None:
        """Tell the receiver that the link has ended, and end what it still does for it."""
        try:
            self._receiver.interceptorLost(self._interceptor)
        except Exception:
            self._log.failure("interceptorLost failed")
        given, self._given = self._given, {}
        for pending in given.values():
            if pending.work is not None:
                pending.work.cancel()

    def _admit(self, event: Event) -> int:
        """
        Check whether this link may send this event, and keep the table of its sockets.

        @return: 0 or a positive errno.
        """
        if isinstance(event, (SocketNotify, AcceptNotify)) and self._interceptor.peerUID not in (0, event.uid):
            return EPERM
        if isinstance(event, SocketNotify):
            if event.id in self.sockets:
                return EEXIST
            if len(self.sockets) >= self.limits.maximumSockets:
                return ENFILE
        elif event.id not in self.sockets:
            return EBADF
        if event.wantsAnswer and len(self._events) >= self.limits.maximumPending:
            return ENOBUFS
        if isinstance(event, SocketNotify):
            self.sockets.add(event.id)
        elif isinstance(event, CloseNotify):
            self.sockets.discard(event.id)
        return 0

    def _tellReceiver(self, event: Event) -> None:
        """Pass on an event that wants no answer."""
        try:
            work = self._receiver.eventReceived(self._interceptor, event)
        except Exception:
            self._bounded.failure("{kind} failed", kind=type(event).__name__)
            return
        if isinstance(work, Deferred):
            work.addErrback(lambda reason: self._bounded.failure("{kind} failed", reason, kind=type(event).__name__))

    def _succeeded(self, answer: Answer, pending: _PendingEvent) -> None:
        if not isAnswerTo(pending.event, answer):
            if self._isPending(pending):
                self._bounded.warn(
                    "{kind} was answered with {answer}",
                    kind=type(pending.event).__name__,
                    answer=type(answer).__name__,
                )
            answer = failure(pending.event, EIO)
        self._answer(pending, answer)

    def _failed(self, reason: Failure, pending: _PendingEvent) -> None:
        error = reason.value
        if not self._isPending(pending):
            # Answered already, by a timeout or the end of the link, which cancelled the work.
            return
        if isinstance(error, SSAError):
            self._answer(pending, failure(pending.event, error.errno))
            return
        self._bounded.failure("{kind} failed", reason, kind=type(pending.event).__name__)
        self._answer(pending, failure(pending.event, EIO))

    def _timedOut(self, pending: _PendingEvent) -> None:
        pending.timeout = None
        self._bounded.warn("{kind} got no answer in time", kind=type(pending.event).__name__)
        self._answer(pending, failure(pending.event, ETIMEDOUT))
        if pending.work is not None:
            pending.work.cancel()

    def _isPending(self, pending: _PendingEvent) -> bool:
        return self._events.get(pending.event.event) is pending

    def _answer(self, pending: _PendingEvent, answer: Answer) -> None:
        """Send the answer if there was none yet."""
        if not self._isPending(pending):
            return
        del self._events[pending.event.event]
        self._stopTimer(pending)
        if isinstance(pending.event, SocketNotify) and getattr(answer, "result", 0) < 0:
            self.sockets.discard(pending.event.id)
        try:
            self._send(answer)
        except CodecError:
            self._bounded.failure("the answer to {kind} cannot be encoded", kind=type(pending.event).__name__)
            self._send(failure(pending.event, EIO))
        except OSError as error:
            self._bounded.warn("a value cannot be sent: {error}", error=error.strerror)
            self._send(failure(pending.event, ENOBUFS))

    def _stopTimer(self, pending: _PendingEvent) -> None:
        if pending.timeout is not None:
            pending.timeout.cancel()
            pending.timeout = None


def lostError(text: str = "the interceptor has gone") -> SSAError:
    """What every request gets once the link has ended."""
    return SSAError(ENETDOWN, text)
