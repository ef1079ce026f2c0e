# SPDX-License-Identifier: MIT
"""
Requests, dumps and notifications of any netlink family (netlink(7)).

L{NetlinkProtocol} knows which answer belongs to which request.  What the messages hold is the business of its user, or
of L{ssa.netlink.generic} for generic netlink.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.netlink.codec import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    Acknowledgement,
    Buffer,
    CodecError,
    NetlinkMessage,
    decodeMessages,
)
from ssa.netlink.errors import (
    BadReplyError,
    DumpInterrupted,
    NetlinkError,
    NotListeningError,
    RepliesLostError,
    RequestTimedOut,
    TooManyRequestsError,
)
from ssa.netlink.port import INetlinkProtocol, NetlinkPort, Tally

_FIRST_TYPE = 0x10  # NLMSG_MIN_TYPE

NLM_F_DUMP_INTR = 0x10
"""On a message of a dump: what is dumped has changed meanwhile."""

Receiver = Callable[[NetlinkMessage], None]
"""Takes one message of a dump."""


class _Exchange:
    """
    One request that waits for its answer.

    @ivar done: fires with the end.
    @ivar reply: of a plain request: what was received before the acknowledgement.
    """

    def __init__(self, protocol: NetlinkProtocol, message: NetlinkMessage, timeout: float) -> None:
        self.message = message
        self.sequence = message.sequence
        self.timeout = timeout
        self.done: Deferred[Any] = Deferred(lambda _: protocol._abandon(self))
        self.timer: IDelayedCall | None = None
        self.reply: NetlinkMessage | None = None
        self._protocol = protocol

    def start(self) -> None:
        """The request is sent: the time runs."""
        self.timer = self._protocol._clock.callLater(self.timeout, self._timedOut)

    def _timedOut(self) -> None:
        # A reactor does what is due before it reads: where the process was stopped, the answer may be there already.
        self.timer = self._protocol._clock.callLater(0, self._giveUp)

    def _giveUp(self) -> None:
        self.timer = None
        self._protocol._abandon(self)
        self.done.errback(RequestTimedOut(f"no answer within {self.timeout} s"))

    def stop(self) -> None:
        """No time runs any more."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    def replied(self, message: NetlinkMessage) -> None:
        """A message that is no acknowledgement."""
        if self.reply is not None or message.flags & NLM_F_MULTI:
            self.finish(BadReplyError("there are several replies; it wants a dump"))
        elif self.message.flags & NLM_F_ACK:
            self.reply = message
        else:
            self.finish(message)

    def acknowledged(self, message: NetlinkMessage, acknowledgement: Acknowledgement) -> None:
        """An C{NLMSG_ERROR} or C{NLMSG_DONE}."""
        if acknowledgement.error:
            self.finish(NetlinkError(-acknowledgement.error, acknowledgement.message, acknowledgement.offset))
        elif message.type == NLMSG_DONE:
            self.finish(BadReplyError("a dump has ended that was none"))
        else:
            self.finish(self.reply)

    def finish(self, result: NetlinkMessage | Exception | None) -> None:
        """This is the end, with a result or an error."""
        self.stop()
        self._protocol._forget(self)
        if isinstance(result, Exception):
            self.done.errback(result)
        else:
            self.done.callback(result)


class _Dump(_Exchange):
    """One dump: its time begins again with each message."""

    def __init__(self, protocol: NetlinkProtocol, message: NetlinkMessage, timeout: float, receiver: Receiver) -> None:
        super().__init__(protocol, message, timeout)
        self._receiver = receiver
        self._interrupted = False

    def replied(self, message: NetlinkMessage) -> None:
        """One part of the dump."""
        self._interrupted = self._interrupted or bool(message.flags & NLM_F_DUMP_INTR)
        if self.timer is not None:
            self.timer.reset(self.timeout)
        try:
            self._receiver(message)
        except Exception:
            # The caller is done with it, the kernel is not.
            failure = Failure()  # type: ignore[no-untyped-call]
            if self.done.called:
                self._protocol._log.failure("the receiver of a dump failed after it was cancelled", failure)
                return
            self._protocol._abandon(self)
            self.done.errback(failure)

    def acknowledged(self, message: NetlinkMessage, acknowledgement: Acknowledgement) -> None:
        """The end of the dump, or its refusal."""
        self._interrupted = self._interrupted or (message.type == NLMSG_DONE and bool(message.flags & NLM_F_DUMP_INTR))
        if acknowledgement.error:
            self.finish(NetlinkError(-acknowledgement.error, acknowledgement.message, acknowledgement.offset))
        elif message.type != NLMSG_DONE:
            self.finish(BadReplyError("a dump was acknowledged without its end"))
        elif self._interrupted:
            self.finish(DumpInterrupted("what was dumped has changed meanwhile"))
        else:
            self.finish(None)


@implementer(INetlinkProtocol)
class NetlinkProtocol:
    """
    Sends requests to the kernel and gives each its answer.

    Override L{notificationReceived}, L{overrun}, L{connectionMade}, L{connectionLost} and L{lateReplyReceived} as needed; call
    the overridden method.

    One socket can have but one dump at a time: further ones wait here for their turn.

    @ivar port: where it sends, or None while there is none.
    @ivar refused: what was received and could not be used.
    """

    timeout = 10.0
    """Seconds until a request without an answer ends, or a dump without a further message."""

    maximumRequests = 1024
    """How many requests and dumps may wait for answers at a time."""

    maximumDump = 65536
    """How many messages of a dump are kept: for a list, or for one who iterates and is slow."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        """
        @param clock: measures the time of requests.
        """
        self.port: NetlinkPort | None = None
        self.refused = Tally(self._log)
        self._clock = clock
        self._sequence = 0
        self._exchanges: dict[int, _Exchange] = {}
        self._waitingDumps: deque[_Dump] = deque()
        self._dumping = 0
        self._startingDumps = False
        self._abandonedDump: IDelayedCall | None = None

    # What a user asks for

    def request(
        self, type: int, payload: Buffer = b"", flags: int = NLM_F_ACK, timeout: float | None = None
    ) -> Deferred[NetlinkMessage | None]:
        """
        Ask for one thing.

        With C{NLM_F_ACK} the end is the acknowledgement, and the result the reply that came before it, if any.  Without it the
        end is the reply.  Cancel the Deferred to wait no longer; that takes nothing back.

        @param type: C{nlmsg_type}.
        @param payload: what follows C{nlmsghdr}.
        @param flags: C{NLM_F_*}; C{NLM_F_REQUEST} is added.
        @param timeout: seconds, by default L{timeout}.
        @return: fires with the reply or None; fails with L{NetlinkError}, L{RequestTimedOut}, L{BadReplyError},
            L{NotListeningError}, L{TooManyRequestsError}, C{CodecError} (a number is out of range), or L{OSError} (the request
            could not be sent).
        """
        message = NetlinkMessage(type, flags | NLM_F_REQUEST, self._nextSequence(), 0, payload)
        exchange = _Exchange(self, message, self.timeout if timeout is None else timeout)
        return self._begin(exchange)

    def stream(
        self, receiver: Receiver, type: int, payload: Buffer = b"", flags: int = 0, timeout: float | None = None
    ) -> Deferred[None]:
        """
        Ask for all there is, and take it message by message.

        @param receiver: is called with each message.  An exception of it ends the dump and becomes the result.
        @param type: C{nlmsg_type}.
        @param payload: what follows C{nlmsghdr}.
        @param flags: C{NLM_F_*}; C{NLM_F_REQUEST} and C{NLM_F_DUMP} are added.
        @param timeout: seconds from one message to the next, by default L{timeout}.
        @return: fires after the last message; fails as L{request} does, and with L{DumpInterrupted} after the last message.
        """
        message = NetlinkMessage(type, flags | NLM_F_REQUEST | NLM_F_DUMP, self._nextSequence(), 0, payload)
        return self._begin(_Dump(self, message, self.timeout if timeout is None else timeout, receiver))

    def dump(
        self, type: int, payload: Buffer = b"", flags: int = 0, timeout: float | None = None, attempts: int = 1
    ) -> Deferred[list[NetlinkMessage]]:
        """
        Ask for all there is, and take it as a list.

        @param attempts: how often to ask, if what is dumped changes meanwhile.
        @return: fires with the messages; fails as L{stream} does, and with L{RepliesLostError}: they are more than
            L{maximumDump}.
        """
        return Deferred.fromCoroutine(self._dump(type, payload, flags, timeout, attempts))

    async def _dump(
        self, type: int, payload: Buffer, flags: int, timeout: float | None, attempts: int
    ) -> list[NetlinkMessage]:
        while True:
            messages: list[NetlinkMessage] = []
            attempts -= 1
            try:
                await self.stream(self._appendTo(messages), type, payload, flags, timeout)
            except DumpInterrupted:
                if attempts <= 0:
                    raise
            else:
                return messages

    def _appendTo(self, messages: list[NetlinkMessage] | deque[NetlinkMessage]) -> Receiver:
        """A receiver that keeps messages, up to the bound."""

        def append(message: NetlinkMessage) -> None:
            if len(messages) >= self.maximumDump:
                raise RepliesLostError(f"a dump has more than {self.maximumDump} messages")
            messages.append(message)

        return append

    def iterate(self, type: int, payload: Buffer = b"", flags: int = 0, timeout: float | None = None) -> DumpIterator:
        """
        Ask for all there is, and take it with C{async for}.

        @return: an asynchronous iterator.  It raises at its end what L{stream} fails with.  Who leaves it early calls its
            C{close}.
        """
        iterator = DumpIterator()
        keep = self._appendTo(iterator.backlog)

        def receive(message: NetlinkMessage) -> None:
            keep(message)
            iterator.wake()

        iterator.begin(self.stream(receive, type, payload, flags, timeout))
        return iterator

    # What a subclass may want to know

    def connectionMade(self) -> None:
        """The port listens, L{port} is set: requests can be made."""

    def notificationReceived(self, message: NetlinkMessage, group: int) -> None:
        """
        The kernel says something that nobody asked for.

        @param group: the multicast group that it was sent to, or 0: it was sent to this port alone.
        """

    def lateReplyReceived(self, message: NetlinkMessage) -> None:
        """
        The kernel answers a request that was cancelled, or whose time was over.  This matters where answers carry something
        that has to be given back, such as descriptors.  Late parts of dumps, and late acknowledgements, are passed over.
        """
        self.refused.note("ignored a late netlink answer of type {type}", type=message.type)

    def overrun(self) -> None:
        """
        Messages from the kernel were lost.  What was learnt from notifications is out of date: ask for it anew.  Dumps go on.
        The answer of a request may be among the lost; then its time runs out.
        """

    # What the port says

    def makeConnection(self, port: NetlinkPort) -> None:
        """The port listens."""
        self.port = port
        self.connectionMade()

    def connectionLost(self, reason: Failure) -> None:
        """
        The port is closed.  Everything that waits for an answer fails with L{NotListeningError}.

        @param reason: why.
        """
        self.port = None
        exchanges = [*self._exchanges.values(), *self._waitingDumps]
        self._exchanges.clear()
        self._waitingDumps.clear()
        self._slotFree()
        for exchange in exchanges:
            exchange.stop()
        for exchange in exchanges:
            if not exchange.done.called:
                exchange.done.errback(NotListeningError(f"the port was closed: {reason.getErrorMessage()}"))

    def sendFailed(self, data: bytes, error: OSError) -> None:
        """The port could not send a request that it had kept back."""
        for message in decodeMessages(data):
            exchange = self._exchanges.get(message.sequence)
            if exchange is not None:
                exchange.finish(error)

    def datagramReceived(self, data: bytes, group: int) -> None:
        """The kernel has sent messages."""
        try:
            messages = decodeMessages(data)
        except CodecError as error:
            self.refused.note("refused a netlink datagram: {why}", why=str(error))
            return
        for message in messages:
            if self.port is None:
                return
            if message.type == NLMSG_OVERRUN:
                self._tell(self.overrun)
            elif message.type != NLMSG_NOOP:
                self._messageReceived(self.port, message, group)

    def _messageReceived(self, port: NetlinkPort, message: NetlinkMessage, group: int) -> None:
        """Tell notifications and answers apart, and find the request of an answer."""
        ends = message.type in (NLMSG_ERROR, NLMSG_DONE)
        if message.type < _FIRST_TYPE and not ends:
            self.refused.note("refused a netlink message of the reserved type {type}", type=message.type)
        elif group or message.sequence == 0:
            if ends:
                self.refused.note("refused a netlink acknowledgement of nothing")
                return
            self._tell(self.notificationReceived, message, group)
        elif message.port not in (0, port.portID):
            self.refused.note("refused a netlink answer for port {port}", port=message.port)
        elif (exchange := self._exchanges.get(message.sequence)) is None:
            self._lateMessage(message, ends)
        elif not ends:
            exchange.replied(message)
        else:
            try:
                acknowledgement = Acknowledgement.decode(message)
            except CodecError as error:
                exchange.finish(BadReplyError(str(error)))
            else:
                exchange.acknowledged(message, acknowledgement)

    def _lateMessage(self, message: NetlinkMessage, ends: bool) -> None:
        """An answer that nobody waits for."""
        if message.sequence == self._dumping:
            if ends:
                self._slotFree()
                self._startDumps()
        elif ends:
            self.refused.note("ignored a late netlink acknowledgement")
        else:
            self._tell(self.lateReplyReceived, message)

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        """Call what a subclass may have overridden; its faults do not keep other messages from being read."""
        try:
            method(*arguments)
        except Exception:
            self._log.failure("unhandled exception from {name}", name=getattr(method, "__qualname__", repr(method)))

    def _listening(self) -> NetlinkPort:
        """The port, or an exception."""
        if self.port is None:
            raise NotListeningError("there is no port that listens")
        return self.port

    # Requests on their way

    def _nextSequence(self) -> int:
        """A number that no request in use has; 0 is for notifications."""
        while True:
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            used = self._sequence in self._exchanges or self._sequence in (0, self._dumping)
            if not used and all(dump.sequence != self._sequence for dump in self._waitingDumps):
                return self._sequence

    def _begin(self, exchange: _Exchange) -> Deferred[Any]:
        """Send a request, or let a dump wait for its turn."""
        if self.port is None:
            return fail(NotListeningError("there is no port that listens"))
        if len(self._exchanges) + len(self._waitingDumps) >= self.maximumRequests:
            return fail(TooManyRequestsError(f"{self.maximumRequests} requests wait for answers"))
        if isinstance(exchange, _Dump):
            self._waitingDumps.append(exchange)
            self._startDumps()
        else:
            self._send(self.port, exchange)
        return exchange.done

    def _send(self, port: NetlinkPort, exchange: _Exchange) -> None:
        """Send a request; its time begins."""
        self._exchanges[exchange.sequence] = exchange
        try:
            port.write(exchange.message.encode())
        except (CodecError, OSError) as error:
            exchange.finish(error)
        else:
            exchange.start()

    def _startDumps(self) -> None:
        """Send the next dump, if the last one is over.  One that cannot be sent makes way for the one after it."""
        if self._startingDumps:
            return
        self._startingDumps = True
        try:
            while self._waitingDumps and not self._dumping and self.port is not None:
                exchange = self._waitingDumps.popleft()
                self._dumping = exchange.sequence
                self._send(self.port, exchange)
        finally:
            self._startingDumps = False

    def _slotFree(self) -> None:
        """The kernel dumps nothing for this port any more."""
        self._dumping = 0
        timer, self._abandonedDump = self._abandonedDump, None
        if timer is not None and timer.active():
            timer.cancel()

    def _forget(self, exchange: _Exchange) -> None:
        """The kernel is done with a request."""
        self._exchanges.pop(exchange.sequence, None)
        if exchange.sequence == self._dumping:
            self._slotFree()
            self._startDumps()

    def _abandon(self, exchange: _Exchange) -> None:
        """
        The caller is done with a request, and the kernel perhaps not.  The end of a dump is waited for before the next one
        begins, but not for ever.
        """
        exchange.stop()
        if self._exchanges.pop(exchange.sequence, None) is None:
            if isinstance(exchange, _Dump) and exchange in self._waitingDumps:
                self._waitingDumps.remove(exchange)
        elif exchange.sequence == self._dumping:
            self._abandonedDump = self._clock.callLater(exchange.timeout, self._giveUpDump)

    def _giveUpDump(self) -> None:
        """The end of an abandoned dump does not come."""
        self._slotFree()
        self._startDumps()


class DumpIterator(AsyncIterator[NetlinkMessage]):
    """
    Gives the messages of a dump one by one, to one C{async for}.

    @ivar backlog: what has come and was not yet taken.
    """

    def __init__(self) -> None:
        self.backlog: deque[NetlinkMessage] = deque()
        self._dump: Deferred[None] | None = None
        self._waiter: Deferred[None] | None = None
        self._failure: Failure | None = None

    def begin(self, dump: Deferred[None]) -> None:
        """
        Follow a dump.

        @param dump: fires at its end.
        """
        self._dump = dump
        dump.addBoth(self._ended)

    def _ended(self, result: Failure | None) -> None:
        self._dump = None
        self._failure = result
        self.wake()

    def wake(self) -> None:
        """There is something new."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    async def __anext__(self) -> NetlinkMessage:
        while not self.backlog and self._dump is not None:
            self._waiter = Deferred(self._forgetWaiter)
            await self._waiter
        if self.backlog:
            return self.backlog.popleft()
        failure, self._failure = self._failure, None
        if failure is not None:
            failure.raiseException()
        raise StopAsyncIteration

    def _forgetWaiter(self, waiter: Deferred[None]) -> None:
        self._waiter = None

    def close(self) -> None:
        """Take no more.  May be called again."""
        self.backlog.clear()
        if self._dump is not None:
            self._dump.cancel()
            self._failure = None
