# SPDX-License-Identifier: MIT
"""
Finding the kernel module, and finding it again.

L{KernelPort} looks for the family, registers, and makes a L{KernelEnd} for each registration.  It waits for a module that is
not loaded, follows one that is removed and loaded again, and stands by while another daemon is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from errno import EACCES, EAFNOSUPPORT, EBUSY, ENOENT, EPERM, EPROTONOSUPPORT, ESOCKTNOSUPPORT
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.interfaces import IEventReceiver
from ssa.netlink.codec import NLM_F_ACK, CodecError, GenericMessage, NetlinkMessage
from ssa.netlink.errors import NetlinkError, NetlinkException
from ssa.netlink.generic import Family, GenericNetlinkProtocol
from ssa.netlink.port import NETLINK_GENERIC, INetlinkSystem, NetlinkPort
from ssa.protocol.answering import LinkLimits
from ssa.protocol.kernel import KernelEnd
from ssa.protocol.messages import FAMILY_NAME, MAXIMUM_VALUE, MULTICAST_GROUP, PROTOCOL_VERSION, Command, Register

STANDBY_PAUSE = 1.0
"""Seconds until the registration is tried again while another daemon has it."""

RETRY_PAUSE = 1.0
"""Seconds until it is tried again after an error that may pass."""

RECEIVE_BUFFER = 16 << 20
"""Bytes; the kernel counts twice of it.  A window of events with the longest values fits in."""

MAXIMUM_DATAGRAM = MAXIMUM_VALUE + (64 << 10)
"""The longest datagram, in bytes: an event with the longest value, a path and the rest."""

MAXIMUM_REQUESTS = 1 << 17
"""The most requests and answers without a reply: those of all sockets, when a stop answers them all at a time."""

_DRAIN_TURNS = 4096
_NO_NETLINK = (EPERM, EACCES, EAFNOSUPPORT, EPROTONOSUPPORT, ESOCKTNOSUPPORT)


class State(Enum):
    """Where a L{KernelPort} stands; the value is for people."""

    STOPPED = "not in use"
    WAITING = "not loaded, waiting for it"
    STANDBY = "another daemon is registered, standing by"
    REGISTERED = "registered"
    FORBIDDEN = "not permitted"


class ModuleProtocol(GenericNetlinkProtocol):
    """
    Tells the port what it has to know.  A port that has gone on to another protocol is not told any more.

    @ivar end: the registration that was made with it.
    @ivar datagrams: how many were received.
    """

    timeout = 30.0
    maximumRequests = MAXIMUM_REQUESTS

    def __init__(self, clock: IReactorTime, owner: KernelPort) -> None:
        super().__init__(clock)
        self.datagrams = 0
        self.end: KernelEnd | None = None
        self._owner = owner

    def datagramReceived(self, data: bytes, group: int) -> None:
        self.datagrams += 1
        super().datagramReceived(data, group)

    def notificationReceived(self, message: NetlinkMessage, group: int) -> None:
        end = self.end
        if end is not None and end.number == message.type:
            # Also while the library does not know the family, because its description is out of date.
            if GenericMessage.decode(message.payload).command == Command.NEXT:
                end.kicked()
            return
        super().notificationReceived(message, group)

    def notify_SSA(self, message: GenericMessage, group: str) -> None:
        """A kick while this daemon is not registered."""
        if self._owner.protocol is self:
            self._owner.kickedInStandby()

    def familyNotification(self, family: Family, message: GenericMessage, group: str) -> None:
        """Other families are nothing to this one."""

    def notify_nlctrl(self, message: GenericMessage, group: str) -> None:
        """L{familyAdded} and L{familyRemoved} are told of what matters."""

    def familyAdded(self, family: Family) -> None:
        if family.name == FAMILY_NAME and self._owner.protocol is self:
            self._owner.moduleLoaded()

    def familyRemoved(self, family: Family) -> None:
        if family.name == FAMILY_NAME and self._owner.protocol is self:
            self._owner.moduleRemoved()

    def lateReplyReceived(self, message: NetlinkMessage) -> None:
        end = self.end
        if end is not None and message.type == end.number:
            end.lateReply(message)
        else:
            super().lateReplyReceived(message)

    def overrun(self) -> None:
        super().overrun()
        if self._owner.protocol is self:
            self._owner.overrun()

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        if self._owner.protocol is self:
            self._owner.portLost(reason)


class KernelPort:
    """
    Serves the kernel module, whenever there is one.

    @ivar end: the registration that lives, or None.
    @ivar protocol: speaks generic netlink, or None.
    @ivar state: where it stands.
    @ivar changed: called after each change of the state.
    @ivar descriptorArrived: see L{KernelEnd}.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        receiver: IEventReceiver,
        limits: LinkLimits = LinkLimits(),  # noqa: B008 - it is frozen
        system: INetlinkSystem | None = None,
        daemon: int | None = None,
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param receiver: gets the events.
        @param limits: the bounds of a registration.
        @param system: the operating system, by default the one that runs.
        @param daemon: a secret number from 1 to 2**64 - 1: others that register with the same one are workers of the same
            daemon, and each gets the sockets that the module has chosen for it.  L{None}: there is one worker.
        """
        self.end: KernelEnd | None = None
        self.protocol: ModuleProtocol | None = None
        self.state = State.STOPPED
        self.changed: Callable[[], None] = lambda: None
        self.descriptorArrived: Callable[[int, int], None] = lambda descriptor, uid: None
        self._reactor = reactor
        self._receiver = receiver
        self._limits = limits
        self._system = system
        self._daemon = daemon
        self._port: NetlinkPort | None = None
        self._registering: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._triedAt = 0.0
        self._banned: dict[int, float] = {}

    def startListening(self) -> None:
        """
        Begin to look for the module.  Whatever is in the way is logged, and ends nothing else.
        """
        self._open()

    def stopListening(self) -> Deferred[None]:
        """
        End the registration: the kernel lets every program that waits go on with ENETDOWN.

        @return: fires when the socket is closed.
        """
        closed = self._close()
        self._enter(State.STOPPED)
        return closed

    def setLimits(self, limits: LinkLimits) -> None:
        """Change the bounds, those of the registration that lives included."""
        self._limits = limits
        if self.end is not None:
            self.end.limits = limits

    def ban(self, uid: int, seconds: float) -> None:
        """
        Refuse a user's new sockets for a while.

        @param uid: the user.
        @param seconds: how long.
        """
        self._banned[uid] = self._reactor.seconds() + seconds

    def _isBanned(self, uid: int) -> bool:
        if uid in self._banned and self._reactor.seconds() >= self._banned[uid]:
            del self._banned[uid]
        return uid in self._banned

    # The socket

    def _open(self) -> None:
        """Make a new socket and look for the module."""
        self._timer = None
        self.protocol = protocol = ModuleProtocol(self._reactor, self)
        self._port = NetlinkPort(
            protocol,
            NETLINK_GENERIC,
            self._reactor,
            self._system,
            receiveBuffer=RECEIVE_BUFFER,
            maximumDatagram=MAXIMUM_DATAGRAM,
        )
        try:
            self._port.startListening()
        except CannotListenError as error:
            self.protocol = self._port = None
            problem: OSError = error.socketError
            if problem.errno in _NO_NETLINK:
                self._forbidden(problem.strerror)
            else:
                self._later(RETRY_PAUSE, self._open, problem.strerror)
            return
        self._register()

    def _close(self) -> Deferred[None]:
        """Close the socket, after everything in it that holds a descriptor."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        registering, self._registering = self._registering, None
        if registering is not None:
            registering.cancel()
        end, port, protocol = self.end, self._port, self.protocol
        # From here on the old protocol tells nothing.
        self.end = self.protocol = self._port = None
        if end is not None and port is not None and protocol is not None:
            end.quiet()
            for _ in range(_DRAIN_TURNS):
                before = protocol.datagrams
                if port.doRead() is not None or protocol.datagrams == before:
                    break
        if end is not None:
            end.lost()
        return succeed(None) if port is None else port.stopListening()

    def _reopen(self, reason: str) -> None:
        """The registration is over: begin anew."""
        self._log.info("the link to the kernel module ends: {reason}", reason=reason)
        self._close()
        self._open()

    def portLost(self, reason: Failure) -> None:
        """The reactor has given up the socket."""
        self._close()
        self._later(RETRY_PAUSE, self._open, reason.getErrorMessage())

    # The registration

    def _register(self) -> None:
        """Register, unless that is being done."""
        if self.end is not None or self._registering is not None or self.protocol is None:
            return
        self._triedAt = self._reactor.seconds()
        registering = Deferred.fromCoroutine(self._registration(self.protocol))
        if not registering.called:
            self._registering = registering
        registering.addErrback(self._notRegistered)

    async def _registration(self, protocol: ModuleProtocol) -> None:
        family = await protocol.family(FAMILY_NAME)
        await protocol.joinGroup(FAMILY_NAME, MULTICAST_GROUP)
        # Nothing is awaited between the acknowledgement and the first request for an event.
        await protocol.request(family.number, Register(PROTOCOL_VERSION, self._daemon).payload(), NLM_F_ACK)
        self._registering = None
        self.end = protocol.end = KernelEnd(
            self._reactor, protocol, family.number, self._receiver, self._limits, lambda reason: self._brokenLater(reason)
        )
        self.end.descriptorArrived = self._descriptorArrived
        self.end.isBanned = self._isBanned
        self._enter(State.REGISTERED)

    def _descriptorArrived(self, descriptor: int, uid: int) -> None:
        self.descriptorArrived(descriptor, uid)

    def _notRegistered(self, failure: Failure) -> None:
        self._registering = None
        error = failure.value
        if isinstance(error, CancelledError):
            return
        number = getattr(error, "errno", None)
        if not isinstance(error, (NetlinkException, OSError, CodecError)):
            self._log.failure("the registration with the kernel module failed", failure)
        if number == ENOENT:
            self._enter(State.WAITING)
        elif number == EBUSY:
            self._enter(State.STANDBY)
            self._later(STANDBY_PAUSE, self._registerAgain)
        elif number in (EPERM, EACCES):
            self._forbidden(str(error))
        elif number == EPROTONOSUPPORT:
            self._log.error("the kernel module does not have version {own} of the protocol", own=PROTOCOL_VERSION)
            self._enter(State.WAITING)
        else:
            self._later(RETRY_PAUSE, self._registerAgain, str(error))

    def _registerAgain(self) -> None:
        self._timer = None
        self._register()

    def _forbidden(self, why: str | None) -> None:
        """There is no hope for this process."""
        self._log.warn("the kernel module cannot be served without CAP_NET_ADMIN: {why}", why=why)
        self._close()
        self._enter(State.FORBIDDEN)

    def _later(self, seconds: float, call: Callable[[], None], why: str | None = None) -> None:
        if why is not None:
            self._log.warn("the kernel module cannot be served now, trying again: {why}", why=why)
        if self._timer is None:
            self._timer = self._reactor.callLater(seconds, call)

    def _enter(self, state: State) -> None:
        if state is self.state and state is not State.REGISTERED:
            return
        self.state = state
        if state is not State.FORBIDDEN:
            self._log.info("kernel module: {state}", state=state.value)
        self.changed()

    # What the protocol tells

    def moduleLoaded(self) -> None:
        """There is a family of that name, newly."""
        if self.end is not None:
            self._reopen("the module was loaded again")
        else:
            self._register()

    def moduleRemoved(self) -> None:
        """There is none any more."""
        if self.end is not None or self._registering is not None:
            self._reopen("the module was removed")
        elif self.state is State.STANDBY:
            self._enter(State.WAITING)

    def kickedInStandby(self) -> None:
        """There are events for another daemon; or it has gone."""
        if self.state is State.STANDBY and self._reactor.seconds() - self._triedAt >= STANDBY_PAUSE / 2:
            self._register()

    def overrun(self) -> None:
        """Something was lost, perhaps that the module was removed, or a kick."""
        if self.end is not None and self.protocol is not None:
            asked = self.protocol.family(FAMILY_NAME)
            asked.addCallbacks(
                self._stillThere, self._goneMeanwhile, callbackArgs=(self.end,), errbackArgs=(self.end,)
            ).addErrback(lambda failure: self._log.failure("the module could not be looked up", failure))
            self.end.overrun()

    def _stillThere(self, family: Family, end: KernelEnd) -> None:
        if end is self.end and family.number != end.number:
            self._reopen("the module was loaded again")

    def _goneMeanwhile(self, failure: Failure, end: KernelEnd) -> None:
        if end is not self.end:
            return
        error = failure.value
        if isinstance(error, NetlinkError) and error.errno == ENOENT:
            self._reopen("the module was removed")
        else:
            self._log.warn("the kernel module could not be looked up: {why}", why=str(error))

    def _brokenLater(self, reason: str) -> None:
        """Not from inside of a call of the end's."""
        end = self.end
        self._reactor.callLater(0, lambda: self._reopen(reason) if end is not None and end is self.end else None)
