# SPDX-License-Identifier: MIT
"""The daemon's end of a link: it answers each event exactly once, and asks the interceptor for descriptors."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import ECONNABORTED, EIO, EMFILE, ENFILE, ENOBUFS, ETIMEDOUT
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.api import DataPath, InternetAddress
from ssa.errors import SSAError
from ssa.interfaces import Fetched, IEventReceiver, IInterceptor
from ssa.netlink.codec import Acknowledgement, BadValueError, Buffer, CodecError
from ssa.plaintext import TCPEnd
from ssa.protocol.answering import Answering, LinkLimits, lostError
from ssa.protocol.link import NO_DESCRIPTOR, BoundedLog, Link, decodePacket
from ssa.protocol.messages import (
    FROM_INTERCEPTOR,
    PROTOCOL_VERSION,
    Accepted,
    AcceptedReply,
    Answer,
    Established,
    EstablishedReply,
    Event,
    Fetch,
    FetchReply,
    Register,
    Reply,
    Request,
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
class _PendingRequest:
    """A request without its reply yet; C{result} is gone where nobody waits any more."""

    request: Request
    result: Deferred[Any] | None
    timeout: Any = None


@implementer(IInterceptor)
class DaemonEnd:
    """
    The daemon's end.

    @ivar peerUID: the user id of the interceptor's process.
    @ivar peerPID: its process id.
    @ivar descriptorArrived: called with each descriptor that the interceptor has handed over, before anybody uses it.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        receiver: IEventReceiver,
        limits: LinkLimits = LinkLimits(),  # noqa: B008 - it is frozen
    ) -> None:
        """
        Send REGISTER and begin to receive events.

        @param sock: a connected AF_UNIX SOCK_SEQPACKET socket, which this object owns from now on.
        @raise OSError: the peer cannot be identified; the socket stays the caller's.
        """
        self.peerPID, self.peerUID = peerCredentials(sock)
        self._reactor = reactor
        self._bounded = BoundedLog(self._log)
        self._answering = Answering(reactor, self, receiver, limits, self._send, self._log, self._bounded)
        self.descriptorArrived: Callable[[int], None] = lambda descriptor: None
        self._requests: dict[int, _PendingRequest] = {}
        self._sequence = 0
        self._isLost = False
        self._link = Link(reactor, sock, self)
        self._ask(Register(PROTOCOL_VERSION)).addErrback(self._registrationFailed)

    @property
    def limits(self) -> LinkLimits:
        """The bounds of this link; new ones count from the next event or request on."""
        return self._answering.limits

    @limits.setter
    def limits(self, limits: LinkLimits) -> None:
        self._answering.limits = limits

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

    def accepted(
        self,
        id: int,
        external: InternetAddress,
        remote: InternetAddress,
        connection: socket.socket | None = None,
    ) -> Deferred[tuple[int, int]]:
        """See L{IInterceptor}; the connection stays here."""
        return self._askAbout(id, Accepted(id, external, remote))

    def plaintextEnd(self, id: int, sock: socket.socket) -> TCPEnd:
        """See L{IInterceptor}."""
        return TCPEnd(sock)

    def close(self) -> None:
        """End the link; what waits ends with ENETDOWN."""
        self._link.end("closed by the daemon")

    def frameReceived(self, frame: Buffer, fds: list[int]) -> None:
        """Process one frame from the interceptor; see L{LinkUser<ssa.protocol.link.LinkUser>}."""
        sequence, message = decodePacket(frame, fds, FROM_INTERCEPTOR)
        if isinstance(message, Event):
            self._answering.received(message, EMFILE if fds == [NO_DESCRIPTOR] else 0)
        elif isinstance(message, Reply):
            self._replyReceived(message, sequence, fds)
        else:
            self._acknowledged(message)

    def linkLost(self, reason: str) -> None:
        """End everything that waits; see L{LinkUser<ssa.protocol.link.LinkUser>}."""
        self._isLost = True
        self._log.debug("link to process {pid} ended: {reason}", pid=self.peerPID, reason=reason)
        self._answering.stop()
        requests, self._requests = self._requests, {}
        for request in requests.values():
            self._stopTimer(request)
            if request.result is not None:
                request.result.errback(lostError())
        self._answering.tellLost()

    def _send(self, message: Answer) -> None:
        """Send an answer; one without a value always fits."""
        self._link.sendMessage(message)

    # Requests

    def _askAbout(self, id: int, request: Request) -> Deferred[Any]:
        """Make a request about a socket, unless the program has closed it."""
        if self._isLost:
            return fail(lostError())
        if id not in self._answering.sockets:
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
            matches = request.id == reply.id and reply.newID not in self._answering.sockets
            value = (reply.newID, fds[0])
            if matches and len(self._answering.sockets) < self.limits.maximumSockets:
                # Known even if nobody waits any more: the program has this socket, and will close it.
                self._answering.sockets.add(reply.newID)
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

    def _stopTimer(self, pending: _PendingRequest) -> None:
        if pending.timeout is not None:
            pending.timeout.cancel()
            pending.timeout = None

