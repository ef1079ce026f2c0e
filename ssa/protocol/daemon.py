# SPDX-License-Identifier: MIT
"""The daemon's end of a link: it answers each event exactly once, and asks the interceptor for descriptors."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import (
    EBADF,
    ECONNABORTED,
    EEXIST,
    EIO,
    EMFILE,
    ENETDOWN,
    ENFILE,
    ENOBUFS,
    EPERM,
    ETIMEDOUT,
)
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.api import DataPath, InternetAddress
from ssa.errors import SSAError
from ssa.interfaces import Fetched, IEventReceiver, IInterceptor
from ssa.netlink.codec import Acknowledgement, BadValueError, Buffer, CodecError
from ssa.protocol.interceptor import isAnswerTo
from ssa.protocol.link import NO_DESCRIPTOR, BoundedLog, Link, decodePacket
from ssa.protocol.messages import (
    FROM_INTERCEPTOR,
    Accepted,
    AcceptedReply,
    AcceptNotify,
    Answer,
    CloseNotify,
    ConnectNotify,
    Established,
    EstablishedReply,
    Event,
    Fetch,
    FetchReply,
    Register,
    Reply,
    Request,
    SocketNotify,
    UpgradeNotify,
    failure,
)

_CREDENTIALS = struct.Struct("=iII")
_MAXIMUM_SEQUENCE = 0xFFFFFFFF

ResultType = TypeVar("ResultType")


def peerCredentials(sock: socket.socket) -> tuple[int, int]:
    """
    Who connected (or made the socket pair): unix(7), SO_PEERCRED.

    @return: process id and effective user id.
    @raise OSError: the socket has none.
    """
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


@dataclass
class _PendingEvent:
    """An event without its answer yet."""

    event: Event
    work: Deferred[Answer] | None = None
    timeout: Any = None


@dataclass
class _PendingRequest:
    """A request without its reply yet; C{result} is gone where nobody waits any more."""

    request: Request
    result: Deferred[Any] | None
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


@implementer(IInterceptor)
class DaemonEnd:
    """
    The daemon's end.

    @ivar peerUID: the user id of the interceptor's process.
    @ivar peerPID: its process id.
    @ivar limits: the bounds of this link; new ones count from the next event or request on.
    @ivar descriptorArrived: called with each descriptor that the interceptor has handed over, before anybody uses it.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        receiver: IEventReceiver,
        limits: LinkLimits = LinkLimits(),
    ) -> None:
        """
        Send REGISTER and begin to receive events.

        @param sock: a connected AF_UNIX SOCK_SEQPACKET socket, which this object owns from now on.
        @raise OSError: the peer cannot be identified; the socket stays the caller's.
        """
        self.peerPID, self.peerUID = peerCredentials(sock)
        self._reactor = reactor
        self._receiver = receiver
        self.limits = limits
        self.descriptorArrived: Callable[[int], None] = lambda descriptor: None
        self._events: dict[int, _PendingEvent] = {}
        self._requests: dict[int, _PendingRequest] = {}
        self._sockets: set[int] = set()
        self._sequence = 0
        self._isLost = False
        self._bounded = BoundedLog(self._log)
        self._link = Link(reactor, sock, self)
        self._ask(Register()).addErrback(self._registrationFailed)

    @property
    def isLost(self) -> bool:
        """Whether the link has ended."""
        return self._isLost

    def fetch(self, id: int, remote: InternetAddress | None = None) -> Deferred[Fetched]:
        """See L{IInterceptor}."""
        return self._askAbout(id, Fetch(id, remote))

    def established(
        self, id: int, external: InternetAddress, remote: InternetAddress, dataPath: DataPath
    ) -> Deferred[int]:
        """See L{IInterceptor}."""
        return self._askAbout(id, Established(id, external, remote, dataPath))

    def accepted(self, id: int, external: InternetAddress, remote: InternetAddress) -> Deferred[tuple[int, int]]:
        """See L{IInterceptor}."""
        return self._askAbout(id, Accepted(id, external, remote))

    def close(self) -> None:
        """End the link; what waits ends with ENETDOWN."""
        self._link.end("closed by the daemon")

    def frameReceived(self, frame: Buffer, fds: list[int]) -> None:
        """Process one frame from the interceptor; see L{LinkUser<ssa.protocol.link.LinkUser>}."""
        sequence, message = decodePacket(frame, fds, FROM_INTERCEPTOR)
        if isinstance(message, Event):
            self._eventReceived(message, fds == [NO_DESCRIPTOR])
        elif isinstance(message, Reply):
            self._replyReceived(message, sequence, fds)
        else:
            self._acknowledged(message)

    def linkLost(self, reason: str) -> None:
        """End everything that waits; see L{LinkUser<ssa.protocol.link.LinkUser>}."""
        self._isLost = True
        self._log.debug("link to process {pid} ended: {reason}", pid=self.peerPID, reason=reason)
        requests, self._requests = self._requests, {}
        events, self._events = self._events, {}
        self._sockets.clear()
        for request in requests.values():
            self._stopTimer(request)
            if request.result is not None:
                request.result.errback(_lostError())
        for pending in events.values():
            self._stopTimer(pending)
        try:
            self._receiver.interceptorLost(self)
        except Exception:
            self._log.failure("interceptorLost failed")
        for pending in events.values():
            if pending.work is not None:
                pending.work.cancel()

    # Events

    def _eventReceived(self, event: Event, shortage: bool) -> None:
        if event.event in self._events:
            raise BadValueError(f"event {event.event} came twice")
        errno = EMFILE if shortage else self._admit(event)
        if not event.wantsAnswer:
            if errno:
                self._bounded.warn("{kind} is not this interceptor's to send", kind=type(event).__name__)
            else:
                self._tellReceiver(event)
            return
        if errno:
            self._send(failure(event, errno))
            return
        pending = self._events[event.event] = _PendingEvent(event)
        try:
            work = self._receiver.eventReceived(self, event)
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
        if event.event in self._events and self._events[event.event] is pending:
            long = isinstance(event, (ConnectNotify, UpgradeNotify))
            seconds = self.limits.handshakeTime if long else self.limits.answerTime
            pending.timeout = self._reactor.callLater(seconds, self._timedOut, pending)

    def _admit(self, event: Event) -> int:
        """
        Check whether this link may send this event, and keep the table of its sockets.

        @return: 0 or a positive errno.
        """
        if isinstance(event, (SocketNotify, AcceptNotify)) and self.peerUID not in (0, event.uid):
            return EPERM
        if isinstance(event, SocketNotify):
            if event.id in self._sockets:
                return EEXIST
            if len(self._sockets) >= self.limits.maximumSockets:
                return ENFILE
        elif event.id not in self._sockets:
            return EBADF
        if event.wantsAnswer and len(self._events) >= self.limits.maximumPending:
            return ENOBUFS
        if isinstance(event, SocketNotify):
            self._sockets.add(event.id)
        elif isinstance(event, CloseNotify):
            self._sockets.discard(event.id)
        return 0

    def _tellReceiver(self, event: Event) -> None:
        """Pass on an event that wants no answer."""
        try:
            work = self._receiver.eventReceived(self, event)
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
            self._sockets.discard(pending.event.id)
        try:
            self._link.sendMessage(answer)
        except CodecError:
            self._bounded.failure("the answer to {kind} cannot be encoded", kind=type(pending.event).__name__)
            self._send(failure(pending.event, EIO))
        except OSError as error:
            self._bounded.warn("a value cannot be sent: {error}", error=error.strerror)
            self._send(failure(pending.event, ENOBUFS))

    def _send(self, answer: Answer) -> None:
        """Send an answer without a value: it always fits."""
        self._link.sendMessage(answer)

    # Requests

    def _askAbout(self, id: int, request: Request) -> Deferred[Any]:
        """Make a request about a socket, unless the program has closed it."""
        if self._isLost:
            return fail(_lostError())
        if id not in self._sockets:
            return fail(SSAError(ECONNABORTED, "the program has closed the socket"))
        return self._ask(request)

    def _ask(self, request: Request) -> Deferred[Any]:
        """Make a request."""
        if len(self._requests) >= self.limits.maximumRequests:
            return fail(SSAError(ENOBUFS, "too many requests wait for the interceptor"))
        while True:
            self._sequence = self._sequence % _MAXIMUM_SEQUENCE + 1
            if self._sequence not in self._requests:
                break
        result: Deferred[Any] = Deferred(lambda _: self._abandon(pending))
        pending = _PendingRequest(request, result)
        try:
            self._link.sendMessage(request, self._sequence)
        except CodecError as error:
            return fail(SSAError(EIO, f"a request cannot be encoded: {error}"))
        self._requests[self._sequence] = pending
        if not isinstance(request, Accepted):
            pending.timeout = self._reactor.callLater(self.limits.requestTime, self._requestTimedOut, pending)
        return result

    def _abandon(self, pending: _PendingRequest) -> None:
        """Nobody waits any more; the entry stays, so that a late reply is known and its descriptor closed."""
        pending.result = None
        self._stopTimer(pending)

    def _requestTimedOut(self, pending: _PendingRequest) -> None:
        pending.timeout = None
        result = pending.result
        self._abandon(pending)
        if result is not None:
            result.errback(SSAError(ETIMEDOUT, f"the interceptor did not reply to {pending.request.command.name}"))

    def _replyReceived(self, reply: Reply, sequence: int, fds: list[int]) -> None:
        """A request has its result; the descriptor is taken only if somebody waits for it."""
        pending = self._requests.get(sequence)
        if pending is None:
            raise BadValueError(f"a reply to request {sequence}, which does not wait")
        request = pending.request
        value: Any
        if isinstance(request, Fetch) and isinstance(reply, FetchReply):
            matches = request.id == reply.id
            value = Fetched(fds[0], reply.external, reply.remote)
        elif isinstance(request, Established) and isinstance(reply, EstablishedReply):
            matches = request.id == reply.id
            value = fds[0]
        elif isinstance(request, Accepted) and isinstance(reply, AcceptedReply):
            matches = request.id == reply.id and reply.newID not in self._sockets
            value = (reply.newID, fds[0])
            if matches and len(self._sockets) < self.limits.maximumSockets:
                # Known even if nobody waits any more: the program has this socket, and will close it.
                self._sockets.add(reply.newID)
            elif matches:
                del self._requests[sequence]
                self._complete(pending, SSAError(ENFILE, "the interceptor has too many sockets"))
                return
        else:
            matches = False
        if not matches:
            raise BadValueError(f"{reply.command.name} is no reply to request {sequence}")
        del self._requests[sequence]
        if fds == [NO_DESCRIPTOR]:
            self._complete(pending, SSAError(EMFILE, "the daemon has no descriptor left"))
        elif pending.result is not None:
            self.descriptorArrived(fds[0])
            fds.clear()
            self._complete(pending, value)

    def _acknowledged(self, acknowledgement: Acknowledgement) -> None:
        pending = self._requests.pop(acknowledgement.sequence, None)
        if pending is None:
            raise BadValueError(f"an acknowledgement of request {acknowledgement.sequence}, which does not wait")
        if acknowledgement.error:
            text = acknowledgement.message or f"the interceptor refused {pending.request.command.name}"
            self._complete(pending, SSAError(-acknowledgement.error, text))
        elif isinstance(pending.request, Register):
            self._complete(pending, None)
        else:
            self._complete(pending, SSAError(EIO, "the interceptor replied without a descriptor"))

    def _complete(self, pending: _PendingRequest, value: Any) -> None:
        """Give a request its result, or its L{SSAError}."""
        self._stopTimer(pending)
        result, pending.result = pending.result, None
        if result is None:
            return
        if isinstance(value, SSAError):
            result.errback(value)
        else:
            result.callback(value)

    def _registrationFailed(self, reason: Failure) -> None:
        """Without an acknowledgement in time there is no link."""
        if not self._isLost:
            self._bounded.warn("process {pid} did not register: {why}", pid=self.peerPID, why=str(reason.value))
            self._link.end("the interceptor did not register")

    def _stopTimer(self, pending: _PendingEvent | _PendingRequest) -> None:
        if pending.timeout is not None:
            pending.timeout.cancel()
            pending.timeout = None


def _lostError() -> SSAError:
    return SSAError(ENETDOWN, "the interceptor has gone")
