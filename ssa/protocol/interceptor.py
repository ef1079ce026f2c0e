# SPDX-License-Identifier: MIT
"""The interceptor's end of a link: it reports events, and does what the daemon asks."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from errno import EINVAL, EIO, EMFILE, ENETDOWN, ENOBUFS, EOPNOTSUPP, EPROTONOSUPPORT
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.errors import SSAError
from ssa.interfaces import Fetched, IRequests
from ssa.netlink.codec import Acknowledgement, Buffer, CodecError
from ssa.protocol.link import NO_DESCRIPTOR, BoundedLog, Link, decodePacket
from ssa.protocol.messages import (
    ANSWERED_BY,
    FROM_DAEMON,
    PROTOCOL_VERSION,
    SUPERVISED_TYPE,
    Accepted,
    AcceptedReply,
    Answer,
    Established,
    EstablishedReply,
    Event,
    Fetch,
    FetchReply,
    Message,
    Register,
    Reply,
    Request,
    failure,
)

_LONGEST_REASON = 1000


def isAnswerTo(event: Event, answer: object) -> bool:
    """Whether an object is an answer that this event may get."""
    kinds = ANSWERED_BY.get(type(event), ())
    if not isinstance(answer, Answer) or not isinstance(answer, kinds):
        return False
    if answer.event != event.event or answer.id != event.id:
        return False
    # Where there are several kinds, the last one is only for errors.
    return len(kinds) == 1 or type(answer) is not kinds[-1] or getattr(answer, "result", 0) < 0


class InterceptorEnd:
    """
    The interceptor's end.

    @ivar onRegistered: fires with L{None} when a daemon with our version of the protocol is there; fails with
        L{SSAError} (ENETDOWN) if the link ends before.
    @ivar lost: fires with the reason (C{str}) when the link has ended.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        requests: IRequests,
        maximumPending: int = 4096,
        maximumRequests: int = 4096,
    ) -> None:
        """
        @param sock: a connected AF_UNIX SOCK_SEQPACKET socket, which this object owns from now on.
        @param requests: does what the daemon asks.
        @param maximumPending: the most events that wait for an answer; one more fails with ENOBUFS.
        @param maximumRequests: the most requests in work; one more fails with ENOBUFS.
        """
        self._requests = requests
        self._maximumPending = maximumPending
        self._maximumRequests = maximumRequests
        self._requestsInWork = 0
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[Event, Deferred[Answer]]] = {}
        self._registered = False
        self._isLost = False
        self._bounded = BoundedLog(self._log)
        self.onRegistered: Deferred[None] = Deferred()
        self.lost: Deferred[str] = Deferred()
        self._link = Link(reactor, sock, self)

    def nextEvent(self) -> int:
        """A number for a new event, unique for this link."""
        return next(self._numbers)

    def notify(self, event: Event) -> Deferred[Answer]:
        """
        Report an event that wants an answer.

        @return: fires with the one answer.  It fails only with L{SSAError} (ENETDOWN), where the link ends before the
            answer.  An event that cannot be sent is answered here with an error: EINVAL where it does not fit its
            message, ENOBUFS where too many wait or no descriptor is left.
        @raise ValueError: the event wants no answer, or its number is in use: a fault of the caller.
        """
        if not event.wantsAnswer:
            raise ValueError(f"{type(event).__name__} wants no answer")
        if event.event in self._pending:
            raise ValueError(f"event {event.event} waits already")
        if self._isLost:
            return fail(_lostError())
        if len(self._pending) >= self._maximumPending:
            return succeed(failure(event, ENOBUFS))
        result: Deferred[Answer] = Deferred()
        self._pending[event.event] = (event, result)
        errno = self._send(event)
        if errno:
            del self._pending[event.event]
            return succeed(failure(event, errno))
        return result

    def tell(self, event: Event) -> None:
        """
        Report an event that wants no answer.

        @raise ValueError: the event wants an answer: a fault of the caller.
        """
        if event.wantsAnswer:
            raise ValueError(f"{type(event).__name__} wants an answer")
        if self._send(event):
            # The daemon must not go on with a wrong picture of the program's sockets.
            self._link.end("an event could not be sent")

    def close(self) -> None:
        """End the link."""
        self._link.end("closed by the interceptor")

    def frameReceived(self, frame: Buffer, fds: list[int]) -> None:
        """Process one frame from the daemon; see L{LinkUser<ssa.protocol.link.LinkUser>}."""
        sequence, message = decodePacket(frame, fds, FROM_DAEMON)
        if isinstance(message, Answer):
            self._answerReceived(message, fds == [NO_DESCRIPTOR])
        elif isinstance(message, Register):
            self._register(message, sequence)
        elif isinstance(message, Request):
            self._requestReceived(message, sequence)
        else:
            self._bounded.warn("the daemon acknowledges a request that nobody made")

    def linkLost(self, reason: str) -> None:
        """End everything that waits; see L{LinkUser<ssa.protocol.link.LinkUser>}."""
        self._isLost = True
        pending, self._pending = self._pending, {}
        for _, result in pending.values():
            result.errback(_lostError())
        if not self._registered:
            self.onRegistered.errback(_lostError())
        self.lost.callback(reason)

    def _send(self, event: Event) -> int:
        """Send an event; return 0 or a positive errno."""
        try:
            self._link.sendMessage(event)
        except CodecError as error:
            self._bounded.warn("{kind} cannot be encoded: {error}", kind=type(event).__name__, error=str(error))
            return EINVAL
        except OSError as error:
            self._bounded.warn("{kind} cannot be sent: {error}", kind=type(event).__name__, error=error.strerror)
            return ENOBUFS
        return 0

    def _answerReceived(self, answer: Answer, shortage: bool) -> None:
        waiting = self._pending.pop(answer.event, None)
        if waiting is None:
            self._bounded.warn("the daemon answers event {event}, which does not wait", event=answer.event)
            return
        event, result = waiting
        if not isAnswerTo(event, answer):
            self._bounded.warn(
                "the daemon answers {event} with {answer}", event=type(event).__name__, answer=type(answer).__name__
            )
            answer = failure(event, EIO)
        result.callback(failure(event, EMFILE) if shortage else answer)

    def _register(self, register: Register, sequence: int) -> None:
        if register.version != PROTOCOL_VERSION:
            self._refuse(register, sequence, EPROTONOSUPPORT, f"version {register.version} of the protocol is unknown")
            self._link.end(f"the daemon has version {register.version} of the protocol")
            return
        self._acknowledge(register, sequence)
        if not self._registered:
            self._registered = True
            self.onRegistered.callback(None)

    def _requestReceived(self, request: Request, sequence: int) -> None:
        """Start what the daemon asks for."""
        if self._requestsInWork >= self._maximumRequests:
            self._refuse(request, sequence, ENOBUFS, "too many requests at a time")
            return
        work: Deferred[Any]
        toReply: Callable[[Any], tuple[Reply, int]]
        if isinstance(request, Fetch):
            work = maybeDeferred(self._requests.fetch, request.id, request.remote)
            toReply = _fetchReply(request)
        elif isinstance(request, Established):
            work = maybeDeferred(
                self._requests.established, request.id, request.external, request.remote, request.dataPath
            )
            toReply = _establishedReply(request)
        elif isinstance(request, Accepted):
            work = maybeDeferred(self._requests.accepted, request.id, request.external, request.remote)
            toReply = _acceptedReply(request)
        else:
            self._refuse(request, sequence, EOPNOTSUPP, f"{request.command.name} is for the kernel module only")
            return
        self._requestsInWork += 1

        def succeeded(result: Any) -> None:
            try:
                reply, fd = toReply(result)
            except (TypeError, ValueError, AttributeError):
                self._bounded.failure("{request} gave a wrong result", request=request.command.name)
                self._refuse(request, sequence, EIO, "the interceptor failed")
                return
            try:
                self._link.sendMessage(reply, sequence, [fd])
            except CodecError:
                self._bounded.failure("the result of {request} cannot be encoded", request=request.command.name)
                self._refuse(request, sequence, EIO, "the interceptor failed")

        def failed(reason: Failure) -> None:
            error = reason.value
            if isinstance(error, SSAError):
                self._refuse(request, sequence, error.errno, error.reason)
                return
            self._bounded.failure("{request} failed", reason, request=request.command.name)
            self._refuse(request, sequence, EIO, "the interceptor failed")

        def done(_: object) -> None:
            self._requestsInWork -= 1

        work.addCallbacks(succeeded, failed).addBoth(done)

    def _acknowledge(self, request: Message, sequence: int) -> None:
        self._link.send(Acknowledgement(0, sequence, SUPERVISED_TYPE).encode())

    def _refuse(self, request: Message, sequence: int, errno: int, reason: str) -> None:
        text = reason[:_LONGEST_REASON].replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
        self._link.send(Acknowledgement(-errno, sequence, SUPERVISED_TYPE, text).encode())


def _lostError() -> SSAError:
    return SSAError(ENETDOWN, "the TLS daemon has gone")


def _isDescriptor(fd: object) -> bool:
    return isinstance(fd, int) and not isinstance(fd, bool) and fd >= 0


def _fetchReply(request: Fetch) -> Callable[[Any], tuple[Reply, int]]:
    def make(result: Any) -> tuple[Reply, int]:
        if not isinstance(result, Fetched) or not _isDescriptor(result.fd):
            raise TypeError("fetch gives a Fetched")
        return FetchReply(request.id, result.external, result.remote), result.fd

    return make


def _establishedReply(request: Established) -> Callable[[Any], tuple[Reply, int]]:
    def make(result: Any) -> tuple[Reply, int]:
        if not _isDescriptor(result):
            raise TypeError("established gives a descriptor")
        return EstablishedReply(request.id), result

    return make


def _acceptedReply(request: Accepted) -> Callable[[Any], tuple[Reply, int]]:
    def make(result: Any) -> tuple[Reply, int]:
        newID, fd = result
        if not _isDescriptor(fd):
            raise TypeError("accepted gives an id and a descriptor")
        return AcceptedReply(request.id, newID), fd

    return make
