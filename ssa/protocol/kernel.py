# SPDX-License-Identifier: MIT
"""
The kernel module as an interceptor: the protocol over generic netlink.

What differs from the unix socket:

  - The kernel never pushes an event.  It keeps them in a list and sends one small message, the kick; the daemon asks for one
    after the other (NEXT) until there is none (ENOENT).  Only then the next event kicks again.
  - A reply's descriptor is a number in the reply: the kernel has opened it in this process before the reply is read.  So a
    reply that nobody waits for is read all the same, and its descriptor closed.
  - An accepted connection that finds the program's backlog full is refused with EAGAIN, and asked for again.
  - An end of stream is clean only where the daemon has said so (L{ssa.plaintext.VouchedEnd}).

The kernel's word on users, processes and programs counts: it is nobody's claim.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from errno import EAGAIN, ECONNABORTED, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENOENT, EOPNOTSUPP, EPERM, ETIMEDOUT
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, DeferredLock, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.api import DataPath, InternetAddress
from ssa.errors import SSAError
from ssa.interfaces import Fetched, IEventReceiver, IInterceptor
from ssa.netlink.codec import (
    NLM_F_ACK,
    AttributePolicy,
    AttributeTable,
    CodecError,
    GenericMessage,
    Kind,
    NetlinkMessage,
)
from ssa.netlink.errors import (
    NetlinkError,
    NetlinkException,
    NotListeningError,
    RequestTimedOut,
    TooManyRequestsError,
)
from ssa.netlink.protocol import NetlinkProtocol
from ssa.plaintext import VouchedEnd
from ssa.protocol.answering import Answering, LinkLimits, lostError
from ssa.protocol.link import BoundedLog
from ssa.protocol.messages import (
    ANSWERED_BY,
    EVENTS,
    REPLIES,
    Accepted,
    AcceptedReply,
    AcceptNotify,
    Answer,
    Attribute,
    CloseNotify,
    Command,
    DataReturn,
    EndOfStream,
    Established,
    EstablishedReply,
    Event,
    Fetch,
    FetchReply,
    ListenNotify,
    Next,
    Reply,
    Request,
    Return,
    SocketNotify,
    UpgradeNotify,
)

ReplyType = TypeVar("ReplyType", bound=Reply)

NO_PLAINTEXT = -1
"""What L{KernelEnd.established} and L{KernelEnd.accepted} give as descriptor where the kernel does TLS itself."""

WINDOW = 16
"""
The most events that are asked for at a time.  Each may hold an option's value of 1 MiB, and all have to fit into the receive
buffer.
"""

FIRST_PAUSE = 0.02
"""Seconds until a full backlog is asked again for the first time; each further time is twice as long."""

LAST_PAUSE = 1.0
"""Seconds of the longest such pause.  A program that accepts ends it at once."""

RETRY_PAUSE = 0.05
"""Seconds until something that the kernel had no memory for is tried again; each further time is twice as long."""

RETRIES = 8
"""How often an answer is tried again before the link is given up, which ends the wait of all programs."""

_NEXT = Next().payload()
_WHICH = AttributeTable(
    AttributePolicy(Attribute.EVENT, "event", Kind.U64, required=True),
    AttributePolicy(Attribute.ID, "id", Kind.U64, required=True),
    ignoreUnknown=True,
)
_DESCRIPTOR = AttributeTable(AttributePolicy(Attribute.FD, "fd", Kind.U32), ignoreUnknown=True)


def asSSAError(error: Exception, what: str) -> SSAError:
    """
    What the daemon knows as an error of a request.

    @param error: a L{NetlinkException}, C{CodecError} or L{OSError}.
    @param what: the request, for the text.
    """
    if isinstance(error, NetlinkError):
        return SSAError(error.errno, f"{what}: {error.text or os.strerror(error.errno)}")
    if isinstance(error, NotListeningError):
        return lostError("the link to the kernel module has ended")
    if isinstance(error, RequestTimedOut):
        return SSAError(ETIMEDOUT, f"the kernel did not reply to {what}")
    if isinstance(error, TooManyRequestsError):
        return SSAError(ENOBUFS, "too many requests wait for the kernel")
    if isinstance(error, OSError):
        return SSAError(error.errno or EIO, f"{what}: {error.strerror}")
    return SSAError(EIO, f"{what}: {error}")


class _Backlog:
    """
    The connections of one listener that wait to be taken: one asks, the others stand behind it.

    @ivar users: how many there are.
    """

    def __init__(self) -> None:
        self.lock = DeferredLock()
        self.users = 0
        self._waiting: Deferred[None] | None = None

    def wait(self, clock: Any, seconds: float) -> Deferred[None]:
        """
        Wait until there may be room.

        @param seconds: at most.
        """

        def done(result: object) -> None:
            self._waiting = None
            if timer.active():
                timer.cancel()
            if isinstance(result, Failure):
                result.raiseException()

        waiting: Deferred[None] = Deferred()
        self._waiting = waiting
        timer: IDelayedCall = clock.callLater(seconds, waiting.callback, None)
        return waiting.addBoth(done)

    def wake(self) -> None:
        """There may be room, or no listener any more."""
        if self._waiting is not None:
            self._waiting.callback(None)


@implementer(IInterceptor)
class KernelEnd:
    """
    The daemon's end of one registration with the kernel module.

    @ivar number: the family's C{nlmsg_type}.
    @ivar peerUID: 0: what the kernel says of a user is true.
    @ivar peerPID: 0: it is no process.
    @ivar isLost: whether the registration has ended.
    @ivar descriptorArrived: called with each descriptor that a program may hold as well (TLS_UPGRADE) and the program's user,
        before anybody uses it.
    @ivar isBanned: says which users get no sockets for now.
    """

    peerUID = 0
    peerPID = 0

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        protocol: NetlinkProtocol,
        number: int,
        receiver: IEventReceiver,
        limits: LinkLimits = LinkLimits(),  # noqa: B008 - it is frozen
        broken: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """
        Begin to fetch events.

        @param reactor: an C{IReactorTime}.
        @param protocol: on a port that is registered with the module.
        @param number: the family's C{nlmsg_type}.
        @param broken: called with the reason where the link cannot go on: whoever has made it ends it, and may make another.
        """
        self.number = number
        self.isLost = False
        self.descriptorArrived: Callable[[int, int], None] = lambda descriptor, uid: None
        self.isBanned: Callable[[int], bool] = lambda uid: False
        self._reactor = reactor
        self._protocol = protocol
        self._broken = broken
        self._bounded = BoundedLog(self._log, 100)
        self._answering = Answering(reactor, self, receiver, limits, self._send, self._log, self._bounded)
        self._nexts: set[Deferred[Any]] = set()
        self._streak = 0
        self._isKicked = False
        self._isQuiet = False
        self._retry: IDelayedCall | None = None
        self._resends: set[IDelayedCall] = set()
        self._users: dict[int, int] = {}
        self._upgraded: set[int] = set()
        self._listenerOf: dict[int, int] = {}
        self._backlogs: dict[int, _Backlog] = {}
        self.kicked()

    @property
    def limits(self) -> LinkLimits:
        """The bounds of this link; new ones count from the next event or request on."""
        return self._answering.limits

    @limits.setter
    def limits(self, limits: LinkLimits) -> None:
        self._answering.limits = limits

    # IInterceptor

    def fetch(self, id: int, remote: InternetAddress | None = None) -> Deferred[Fetched]:
        """See L{IInterceptor}."""
        return Deferred.fromCoroutine(self._fetch(id, remote))

    async def _fetch(self, id: int, remote: InternetAddress | None) -> Fetched:
        reply = await self._ask(id, Fetch(id, remote), FetchReply)
        if reply.fd is None:
            raise SSAError(EIO, "the kernel replied without a descriptor")
        if id in self._upgraded:
            self.descriptorArrived(reply.fd, self._users.get(id, 0))
        return Fetched(reply.fd, reply.external, reply.remote)

    def established(
        self, id: int, external: InternetAddress, remote: InternetAddress, dataPath: DataPath
    ) -> Deferred[int]:
        """See L{IInterceptor}; where the data path is kTLS, it fires with L{NO_PLAINTEXT}."""
        return Deferred.fromCoroutine(self._established(id, external, remote, dataPath))

    async def _established(
        self, id: int, external: InternetAddress, remote: InternetAddress, dataPath: DataPath
    ) -> int:
        reply = await self._ask(id, Established(id, external, remote, dataPath), EstablishedReply)
        return self._plaintextOf(reply, dataPath)

    def accepted(
        self,
        id: int,
        external: InternetAddress,
        remote: InternetAddress,
        connection: socket.socket,
        dataPath: DataPath = DataPath.RELAY,
    ) -> Deferred[tuple[int, int]]:
        """See L{IInterceptor}; where the data path is kTLS, the descriptor is L{NO_PLAINTEXT}."""
        return Deferred.fromCoroutine(self._accepted(id, external, remote, connection, dataPath))

    async def _accepted(
        self,
        id: int,
        external: InternetAddress,
        remote: InternetAddress,
        connection: socket.socket,
        dataPath: DataPath,
    ) -> tuple[int, int]:
        backlog = self._backlogs.setdefault(id, _Backlog())
        backlog.users += 1
        try:
            await backlog.lock.acquire()
            try:
                reply = await self._offer(id, external, remote, connection, dataPath, backlog)
            finally:
                backlog.lock.release()
        finally:
            backlog.users -= 1
            if not backlog.users:
                self._backlogs.pop(id, None)
        return reply.newID, self._plaintextOf(reply, dataPath)

    async def _offer(
        self,
        id: int,
        external: InternetAddress,
        remote: InternetAddress,
        connection: socket.socket,
        dataPath: DataPath,
        backlog: _Backlog,
    ) -> AcceptedReply:
        """Ask until there is room: back-pressure."""
        pause = FIRST_PAUSE
        while True:
            # Its number may be another connection's by now.
            if connection.fileno() < 0:
                raise SSAError(ECONNABORTED, "the connection was given up before the program took it")
            try:
                request = Accepted(id, external, remote, dataPath, connection.fileno())
                reply = await self._ask(id, request, AcceptedReply)
            except SSAError as error:
                if error.errno != EAGAIN:
                    raise
                await backlog.wait(self._reactor, pause)
                pause = min(2 * pause, LAST_PAUSE)
            else:
                return reply

    def plaintextEnd(self, id: int, sock: socket.socket) -> VouchedEnd:
        """See L{IInterceptor}."""
        return VouchedEnd(sock, lambda: self.endOfStream(id))

    def endOfStream(self, id: int) -> Deferred[None]:
        """
        Vouch for it that the peer's stream ends cleanly after what is in the plaintext connection.

        @return: fires when the kernel knows; fails with L{SSAError}.
        """
        if self.isLost:
            return fail(lostError())
        asked = self._protocol.request(self.number, EndOfStream(id).payload(), NLM_F_ACK, self.limits.requestTime)
        return asked.addCallbacks(lambda _: None, lambda failure: _raise(failure, Command.EOF.name))

    # What the port says

    def kicked(self) -> None:
        """There are events."""
        self._isKicked = True
        if not self._nexts:
            self._askForEvents()

    def overrun(self) -> None:
        """Messages of the kernel were lost; what was asked for is asked for again."""
        nexts, self._nexts = self._nexts, set()
        for asked in nexts:
            asked.cancel()
        self._streak = 0
        self.kicked()

    def lateReply(self, message: NetlinkMessage) -> None:
        """
        A reply to what nobody waits for any more.  An event is one all the same; a descriptor is closed.
        """
        try:
            generic = GenericMessage.decode(message.payload)
            kind = REPLIES.get(generic.command)
            if kind is None:
                self._eventReceived(generic)
                return
            reply = kind.fromGeneric(generic)
        except CodecError as error:
            self._bounded.warn("a late reply of the kernel makes no sense: {why}", why=str(error))
            _closeUnread(message)
            return
        self._learn(reply)
        fd = getattr(reply, "fd", None)
        if fd is not None:
            os.close(fd)

    def quiet(self) -> None:
        """Ask for no further event: the end is near."""
        self._isQuiet = True

    def lost(self) -> None:
        """The registration has ended, and with it everything that waits.  May be called again."""
        if self.isLost:
            return
        self.isLost = self._isQuiet = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        resends, self._resends = self._resends, set()
        for call in resends:
            call.cancel()
        self._answering.stop()
        self._users.clear()
        self._upgraded.clear()
        self._listenerOf.clear()
        for backlog in list(self._backlogs.values()):
            backlog.wake()
        self._answering.tellLost()

    # Events

    def _askForEvents(self) -> None:
        """
        Keep as many requests for events under way as events have come without a break.  The last of them always finds the list
        empty, for only then the kernel kicks again.
        """
        while not self._isQuiet and len(self._nexts) < max(1, min(self._streak, WINDOW)):
            self._isKicked = False
            if not self._askForOne():
                return

    def _askForOne(self) -> bool:
        """
        @return: whether the request is under way.
        """
        asked = self._protocol.request(self.number, _NEXT, 0, self.limits.requestTime)
        if asked.called:
            asked.addErrback(self._nextFailed)
            return False
        self._nexts.add(asked)
        asked.addCallbacks(
            self._nextReplied, self._nextRefused, callbackArgs=(asked,), errbackArgs=(asked,)
        ).addErrback(lambda failure: self._log.failure("an event could not be processed", failure))
        return True

    def _nextReplied(self, message: NetlinkMessage | None, asked: Deferred[Any]) -> None:
        self._nexts.discard(asked)
        self._streak += 1
        try:
            if message is not None:
                self._eventReceived(GenericMessage.decode(message.payload))
        except CodecError as error:
            self._bounded.warn("an event makes no sense: {why}", why=str(error))
        finally:
            self._askForEvents()

    def _nextRefused(self, failure: Failure, asked: Deferred[Any]) -> None:
        if asked not in self._nexts:
            return  # given up by overrun, which has asked anew
        self._nexts.discard(asked)
        self._streak = 0
        error = failure.value
        if not (isinstance(error, NetlinkError) and error.errno == ENOENT):
            self._nextFailed(failure)
        elif self._isKicked and not self._nexts:
            self._askForEvents()

    def _nextFailed(self, failure: Failure) -> None:
        """Something else than "there is none"."""
        error = failure.value
        if self._isQuiet or isinstance(error, NotListeningError):
            return
        if isinstance(error, NetlinkError) and error.errno == EPERM:
            self._broken("the kernel module has another daemon")
            return
        self._bounded.warn("an event could not be fetched: {why}", why=str(error))
        self._isKicked = True
        if self._retry is None:
            self._retry = self._reactor.callLater(RETRY_PAUSE, self._again)

    def _again(self) -> None:
        self._retry = None
        if not self._nexts:
            self._askForEvents()

    def _eventReceived(self, generic: GenericMessage) -> None:
        """
        @raise CodecError: it cannot be answered.
        """
        kind = EVENTS.get(generic.command)
        try:
            if kind is None:
                raise CodecError(f"command {generic.command} is no event")
            event = kind.fromGeneric(generic)
        except CodecError as error:
            self._refuse(generic, kind, error)
            return
        if self.isLost:
            return
        backlog = self._observe(event)
        banned = isinstance(event, SocketNotify) and self.isBanned(event.uid)
        self._answering.received(event, EPERM if banned else 0)
        if backlog is not None:
            backlog.wake()

    def _refuse(self, generic: GenericMessage, kind: type[Event] | None, error: CodecError) -> None:
        """
        Answer an event that this daemon cannot read: an address that is none, since a program may pass anything; or something
        of a newer module.

        @raise CodecError: not even its number can be read.
        """
        which = cast("dict[str, int]", _WHICH.decode(generic.attributes))
        self._bounded.warn("event {number} makes no sense: {why}", number=which["event"], why=str(error))
        if kind is None:
            self._send(Return(which["event"], which["id"], -EOPNOTSUPP))
        elif kind.wantsAnswer:
            refusal = ANSWERED_BY[kind][-1]
            self._send(refusal(which["event"], which["id"], -EINVAL))  # type: ignore[call-arg]
        elif kind is CloseNotify:
            self._answering.sockets.discard(which["id"])

    def _observe(self, event: Event) -> _Backlog | None:
        """
        Remember what requests need.

        @return: the backlog in which there may be room now, or that has come to its end.
        """
        if isinstance(event, SocketNotify):
            self._users[event.id] = event.uid
        elif isinstance(event, UpgradeNotify):
            self._upgraded.add(event.id)
        elif isinstance(event, CloseNotify):
            self._users.pop(event.id, None)
            self._upgraded.discard(event.id)
        if isinstance(event, (AcceptNotify, CloseNotify, ListenNotify)):
            return self._backlogs.get(self._listenerOf.pop(event.id, event.id))
        return None

    # Answers

    def _send(self, answer: Answer, tries: int = 0) -> None:
        """
        Send an answer.  The kernel has acted on it when it acknowledges it.

        @raise CodecError: it cannot be encoded.
        """
        if self.isLost:
            return
        sent = self._protocol.request(self.number, answer.payload(), NLM_F_ACK, self.limits.requestTime)
        sent.addErrback(self._notSent, answer, tries)
        sent.addErrback(lambda failure: self._log.failure("an answer could not be sent", failure))

    def _notSent(self, failure: Failure, answer: Answer, tries: int) -> None:
        error = failure.value
        if self.isLost or isinstance(error, NotListeningError):
            return
        if isinstance(error, RequestTimedOut):
            # The kernel acts before it acknowledges: only the acknowledgement is lost.
            self._log.debug("the answer to event {number} was not acknowledged", number=answer.event)
        elif isinstance(error, NetlinkError) and error.errno == EPERM:
            self._broken("the kernel module has another daemon")
        elif isinstance(answer, DataReturn) and (isinstance(error, NetlinkError) or _isTooLong(error)):
            self._bounded.warn("a value cannot be sent: {why}", why=str(error))
            self._send(Return(answer.event, answer.id, -ENOBUFS))
        elif tries < RETRIES:
            self._bounded.warn("an answer is sent again: {why}", why=str(error))
            self._resend(answer, tries)
        else:
            self._broken(f"the kernel takes no answers: {error}")

    def _resend(self, answer: Answer, tries: int) -> None:
        def again() -> None:
            self._resends.discard(call)
            self._send(answer, tries + 1)

        call: IDelayedCall = self._reactor.callLater(RETRY_PAUSE * 2**tries, again)
        self._resends.add(call)

    # Requests

    async def _ask(self, id: int, request: Request, kind: type[ReplyType]) -> ReplyType:
        """
        Make a request about a socket, unless the program has closed it.

        The reply, which may carry a descriptor, is the end: where there was an acknowledgement to wait for, it could be lost.

        @raise SSAError: whatever goes wrong.
        """
        if self.isLost:
            raise lostError()
        if id not in self._answering.sockets:
            raise SSAError(ECONNABORTED, "the program has closed the socket")
        what = request.command.name
        try:
            message = await self._protocol.request(self.number, request.payload(), 0, self.limits.requestTime)
        except (NetlinkException, CodecError, OSError) as error:
            raise asSSAError(error, what) from error
        if message is None:
            raise SSAError(EIO, f"the kernel acknowledged {what} instead of a reply")
        try:
            generic = GenericMessage.decode(message.payload)
            if generic.command != kind.command:
                raise CodecError(f"command {generic.command}")
            reply = kind.fromGeneric(generic)
        except CodecError as error:
            _closeUnread(message)
            raise SSAError(EIO, f"the kernel's reply to {what} makes no sense: {error}") from error
        self._learn(reply)
        return reply

    def _learn(self, reply: Reply) -> None:
        """A new socket is known even if nobody waits for it any more: the program has it, and will close it."""
        if isinstance(reply, AcceptedReply) and not self.isLost:
            self._answering.sockets.add(reply.newID)
            self._listenerOf[reply.newID] = reply.id

    @staticmethod
    def _plaintextOf(reply: EstablishedReply | AcceptedReply, dataPath: DataPath) -> int:
        if reply.fd is None:
            if dataPath is DataPath.KTLS:
                return NO_PLAINTEXT
            raise SSAError(EIO, "the kernel replied without a descriptor")
        return reply.fd


def _raise(failure: Failure, what: str) -> None:
    """Fail as a request of the daemon does."""
    if isinstance(failure.value, (NetlinkException, CodecError, OSError)):
        raise asSSAError(failure.value, what) from failure.value
    failure.raiseException()


def _closeUnread(message: NetlinkMessage) -> None:
    """Close the descriptor in a reply of which nothing else can be used."""
    try:
        fd = _DESCRIPTOR.decode(GenericMessage.decode(message.payload).attributes).get("fd")
    except CodecError:
        return  # there is none that could be found
    if isinstance(fd, int):
        os.close(fd)


def _isTooLong(error: object) -> bool:
    return isinstance(error, OSError) and error.errno == EMSGSIZE
