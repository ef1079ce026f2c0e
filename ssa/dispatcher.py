# SPDX-License-Identifier: MIT
"""
From an interceptor's events to the sockets they are about, and back to exactly
one answer each.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.errors import Cause, SSAError
from ssa.interfaces import IEventReceiver, IInterceptor
from ssa.policy.profile import Caller
from ssa.protocol.messages import (
    ANSWERED_BY,
    AcceptNotify,
    Answer,
    BindNotify,
    CloseNotify,
    ConnectNotify,
    DataReturn,
    Event,
    GetsockoptNotify,
    HandshakeReturn,
    ListenNotify,
    Return,
    SetsockoptNotify,
    SocketNotify,
    UpgradeNotify,
)
from ssa.sockets import Services, TLSSocket
from ssa.states import Stage
from ssa.throttle import notLogged

LISTENERS_AT_ONCE = 8
"""How many listeners follow a new policy before other descriptors have their turn."""


@implementer(IEventReceiver)
class Dispatcher:
    """
    Knows every socket of every interceptor.

    A user with too many sockets gets EMFILE from socket(2), all users together
    ENFILE, as with descriptors: programs know both, and neither looks like an
    error of the network.  Too many events at once are ENOBUFS.

    @ivar events: how many events have come.
    @ivar sockets: how many sockets there are, those included that the program
        has closed but whose last data is still being sent.
    """

    log = Logger()

    def __init__(self, services: Services) -> None:
        """
        @param services: what the sockets share.
        """
        self._services = services
        self._byInterceptor: dict[IInterceptor, dict[int, TLSSocket]] = {}
        self._alive: dict[TLSSocket, None] = {}
        self._ofUser: Counter[int] = Counter()
        self._pendingEvents: Counter[tuple[IInterceptor, int]] = Counter()
        self._answers: dict[Deferred[Answer], Callable[[SSAError], None]] = {}
        self._stopping = False
        self._afterLoss: list[Callable[[], None]] = []
        self._following: deque[TLSSocket] = deque()
        self._followTimer: IDelayedCall | None = None
        self.events = 0

    @property
    def sockets(self) -> int:
        """How many sockets there are."""
        return len(self._alive)

    @property
    def relays(self) -> int:
        """How many connections are established and have not ended."""
        return sum(1 for each in self._alive if each.hasRelay)

    @property
    def bytesMoved(self) -> int:
        """Plaintext that all connections since the start have carried, bytes."""
        ended = self._services.counts.all
        return ended.received + ended.sent + sum(sum(each.carried) for each in self._alive)

    def allSockets(self) -> list[TLSSocket]:
        """The sockets that there are, in the order of their making."""
        return list(self._alive)

    def socketsOf(self, interceptor: IInterceptor) -> int:
        """How many sockets an interceptor has that its programs have not closed."""
        return len(self._byInterceptor.get(interceptor, ()))

    @property
    def handshakes(self) -> int:
        """How many handshakes are in flight."""
        return self._services.admission.total

    # IEventReceiver

    def eventReceived(self, interceptor: IInterceptor, event: Event) -> Deferred[Answer] | None:
        """
        Do what an event asks for.

        @return: the answer, which never fails; C{None} for events that want none.
        """
        self.events += 1
        method = getattr(self, f"event_{event.command.name}", self.eventUnknown)
        if not event.wantsAnswer:
            try:
                method(interceptor, event)
            except SSAError as error:
                self.log.debug("{event} of socket {id}: {error}", event=event.command.name, id=event.id, error=error)
            return None
        payer = (interceptor, self._userOf(interceptor, event))
        refusal = self._refusal(payer)
        if refusal is not None:
            return succeed(self._refuse(event, refusal))
        self._pendingEvents[payer] += 1
        result: object = None

        def abandoned(_: object) -> None:
            if isinstance(result, Deferred):
                result.cancel()

        answer: Deferred[Answer] = Deferred(abandoned)

        def finish(reply: Answer) -> None:
            if self._answers.pop(answer, None) is not None:
                self._pendingEvents[payer] -= 1
                if not self._pendingEvents[payer]:
                    del self._pendingEvents[payer]
                answer.callback(reply)

        self._answers[answer] = lambda error: finish(self._refuse(event, error))
        try:
            result = method(interceptor, event)
        except Exception:
            result = Failure()  # type: ignore[no-untyped-call]
        if isinstance(result, Deferred):
            result.addErrback(self._asAnswer, event).addCallback(finish)
        elif isinstance(result, Failure):
            finish(self._asAnswer(result, event))
        else:
            finish(result)
        return answer

    def interceptorLost(self, interceptor: IInterceptor) -> None:
        """
        The link is gone.  What was new, pending or listening there is dropped;
        an established connection lives on until one of its two ends is closed,
        since its plaintext end needs no interceptor.
        """
        for each in list(self._byInterceptor.pop(interceptor, {}).values()):
            each.interceptorLost()
        for call in self._afterLoss:
            call()

    def whenLinkLost(self, call: Callable[[], None]) -> None:
        """Call C{call} each time that a link has ended, after its sockets have been dropped."""
        self._afterLoss.append(call)

    def policyChanged(self) -> None:
        """There is a new policy; the listeners are told, some at one time, since each may need milliseconds."""
        self._following = deque(each for each in self._alive if each.isListening)
        if self._followTimer is None:
            self._follow()

    def _follow(self) -> None:
        self._followTimer = None
        for _ in range(min(LISTENERS_AT_ONCE, len(self._following))):
            self._following.popleft().policyChanged()
        if self._following:
            self._followTimer = self._services.clock.callLater(0, self._follow)

    # life

    def stop(self) -> None:
        """
        The daemon stops: every pending call ends with ENETDOWN at once, listeners
        are closed, later events are refused.  Connections go on.
        """
        self._stopping = True
        self._following.clear()
        for each in list(self._alive):
            each.giveUp()
        for refuse in list(self._answers.values()):
            refuse(Cause.DAEMON_GONE.error("it is being stopped"))

    def abortAll(self) -> None:
        """Cut every connection: the programs see ECONNRESET."""
        for each in list(self._alive):
            each.abort("the TLS daemon was stopped")

    def abortUser(self, uid: int) -> None:
        """Cut every connection whose sockets this user may hold as well."""
        for each in list(self._alive):
            if each.handedOverBy == uid:
                each.abort("its user made the TLS daemon wait")

    # events

    def event_SOCKET_NOTIFY(self, interceptor: IInterceptor, event: SocketNotify) -> Answer:
        """socket(2)."""
        known = self._byInterceptor.setdefault(interceptor, {})
        if event.id in known:
            raise SSAError(errno.EEXIST, f"there is a socket {event.id} already")
        caller = Caller(event.uid, event.pid, event.comm, event.executable)
        limits = self._services.policy.profileFor(caller, None, 0).limits
        if len(self._alive) >= limits.maxSockets:
            raise SSAError(errno.ENFILE, f"there are {limits.maxSockets} TLS sockets, no more are allowed")
        if not self._mayHaveOneMore(event.uid):
            raise SSAError(errno.EMFILE, f"the user has {limits.maxSocketsPerUser} TLS sockets, no more are allowed")
        new = TLSSocket(
            self._services,
            interceptor,
            event.id,
            event.family,
            caller,
            lambda newID, accepted: self._add(interceptor, newID, accepted),
            self._gone,
            self._mayHaveOneMore,
        )
        self._add(interceptor, event.id, new)
        return Return(event.event, event.id, 0)

    def event_SETSOCKOPT_NOTIFY(self, interceptor: IInterceptor, event: SetsockoptNotify) -> Answer:
        """setsockopt(2)."""
        self._find(interceptor, event).setOption(event.level, event.name, event.value, event.file)
        return Return(event.event, event.id, 0)

    def event_GETSOCKOPT_NOTIFY(self, interceptor: IInterceptor, event: GetsockoptNotify) -> Answer:
        """getsockopt(2)."""
        value = self._find(interceptor, event).getOption(event.level, event.name)
        return DataReturn(event.event, event.id, value)

    def event_BIND_NOTIFY(self, interceptor: IInterceptor, event: BindNotify) -> Answer:
        """bind(2) has succeeded; the interceptor has done it."""
        self._find(interceptor, event)
        return Return(event.event, event.id, 0)

    def event_CONNECT_NOTIFY(self, interceptor: IInterceptor, event: ConnectNotify) -> Deferred[Answer]:
        """connect(2)."""
        connected = self._find(interceptor, event).connect(event.remote)
        return connected.addCallback(lambda _: HandshakeReturn(event.event, event.id, 0))

    def event_UPGRADE_NOTIFY(self, interceptor: IInterceptor, event: UpgradeNotify) -> Deferred[Answer]:
        """TLS_UPGRADE."""
        upgraded = self._find(interceptor, event).upgrade(event.role, event.remote)
        return upgraded.addCallback(lambda _: HandshakeReturn(event.event, event.id, 0))

    def event_LISTEN_NOTIFY(self, interceptor: IInterceptor, event: ListenNotify) -> Deferred[Answer]:
        """listen(2)."""
        listening = self._find(interceptor, event).listen(event.backlog, event.external)
        return listening.addCallback(lambda _: Return(event.event, event.id, 0))

    def event_ACCEPT_NOTIFY(self, interceptor: IInterceptor, event: AcceptNotify) -> None:
        """accept(2) has returned this socket to a program."""
        caller = Caller(event.uid, event.pid, event.comm, event.executable)
        self._find(interceptor, event).caller = caller

    def event_CLOSE_NOTIFY(self, interceptor: IInterceptor, event: CloseNotify) -> None:
        """The last descriptor is gone."""
        closed = self._find(interceptor, event)
        del self._byInterceptor[interceptor][event.id]
        closed.close()

    def eventUnknown(self, interceptor: IInterceptor, event: Event) -> Answer:
        """
        An event without a method here.

        @raise SSAError: EOPNOTSUPP.
        """
        self.log.warn("event {event} is not served", event=event.command.name)
        raise SSAError(errno.EOPNOTSUPP, f"the daemon does not serve {event.command.name}")

    # the rest

    def _find(self, interceptor: IInterceptor, event: Event) -> TLSSocket:
        found = self._byInterceptor.get(interceptor, {}).get(event.id)
        if found is None:
            raise SSAError(errno.EBADF, f"there is no TLS socket {event.id}")
        return found

    def _add(self, interceptor: IInterceptor, id: int, new: TLSSocket) -> None:
        """
        Take a socket into the books.

        An id that is taken already, or a link that is gone, means that nobody
        can ever name the new socket: it is closed.
        """
        self._alive[new] = None
        self._ofUser[new.uid] += 1
        known = self._byInterceptor.get(interceptor)
        if known is None or id in known:
            new.close()
        else:
            known[id] = new

    def _gone(self, socket: TLSSocket) -> None:
        if socket in self._alive:
            del self._alive[socket]
            self._services.counts.carried(socket.caller.uid, *socket.carried)
            self._ofUser[socket.uid] -= 1
            if not self._ofUser[socket.uid]:
                del self._ofUser[socket.uid]

    def _mayHaveOneMore(self, uid: int) -> bool:
        """Root is bound by the limit for all users together only."""
        limits = self._services.policy.default.limits
        return len(self._alive) < limits.maxSockets and (uid == 0 or self._ofUser[uid] < limits.maxSocketsPerUser)

    def _userOf(self, interceptor: IInterceptor, event: Event) -> int:
        """The user whose program waits for an event's answer."""
        if isinstance(event, SocketNotify):
            return event.uid
        found = self._byInterceptor.get(interceptor, {}).get(event.id)
        return found.uid if found is not None else -1

    def _refusal(self, payer: tuple[IInterceptor, int]) -> SSAError | None:
        if self._stopping:
            return Cause.DAEMON_GONE.error("it is being stopped")
        limit = self._services.policy.default.limits.maxPendingEvents
        if self._pendingEvents[payer] >= limit:
            return Cause.LIMIT_REACHED.error(f"{limit} calls wait for their answer already")
        return None

    def _asAnswer(self, failure: Failure, event: Event) -> Answer:
        """Any failure becomes an errno; one that is no L{SSAError} is a bug, and EIO."""
        if isinstance(failure.value, SSAError):
            return self._refuse(event, failure.value)
        suppressed = self._services.failures.allow()
        if suppressed is not None:
            self.log.failure(
                "event {event} of socket {id} failed{more}",
                failure,
                event=event.command.name,
                id=event.id,
                more=notLogged(suppressed),
            )
        return self._refuse(event, Cause.INTERNAL.error(event.command.name))

    def _refuse(self, event: Event, error: SSAError) -> Answer:
        if HandshakeReturn in ANSWERED_BY.get(type(event), ()):
            return HandshakeReturn(event.event, event.id, -error.errno)
        return Return(event.event, event.id, -error.errno)

    def stageOf(self, interceptor: IInterceptor, id: int) -> Stage | None:
        """Where a socket stands; C{None}: there is none.  For tests."""
        found = self._byInterceptor.get(interceptor, {}).get(id)
        return found.stage if found is not None else None
