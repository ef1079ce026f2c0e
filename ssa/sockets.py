# SPDX-License-Identifier: MIT
"""
What the daemon keeps for each TLS socket of a program.

L{TLSSocket} does what the calls ask for; L{ssa.states} says when they may.
TLS_ERROR is kept by these rules: a connect, upgrade, listen or option that fails sets
it, one that succeeds clears it, reading an option changes nothing, and an
established connection that ends badly sets it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.admission import Admission, Claimant
from ssa.api import IPPROTO_TLS, Address, DataPath, HostnameAddress, InternetAddress, Role
from ssa.connecting import Choose, Connecting
from ssa.counts import Counts
from ssa.errors import Cause, SSAError, failed, oneLine
from ssa.factories import MakesFactories, RunningRelay, Secured, TLSFactory
from ssa.interfaces import Fetched, IInterceptor, IPlaintextEnd
from ssa.listening import Listener
from ssa.liveoptions import checkSettable, getLiveOption, setLiveOption
from ssa.logs import PROGRAM, levelOf
from ssa.options import IConnectionInfo, Phase, SocketOptions
from ssa.plaintext import adoptPlaintextEnd
from ssa.policy.profile import Caller, Policy, Profile
from ssa.realsocket import adoptRealSocket, keepUntilTaken
from ssa.resolve import Resolver
from ssa.serving import CurrentServer
from ssa.socketstatus import Attempt, SocketFacts
from ssa.states import Life, Stage, newLife
from ssa.throttle import Throttle, notLogged
from ssa.tls.identity import Identity, parseIdentity

_PHASES = {
    Stage.NEW: Phase.NEW,
    Stage.FAILED: Phase.NEW,
    Stage.RESOLVING: Phase.CONNECTING,
    Stage.CONNECTING: Phase.CONNECTING,
    Stage.HANDSHAKING: Phase.CONNECTING,
    Stage.CONNECTED: Phase.CONNECTED,
    Stage.OPENING: Phase.LISTENING,
    Stage.LISTENING: Phase.LISTENING,
    Stage.CLOSED: Phase.CONNECTED,
}


@dataclass
class Services:
    """
    What all sockets share.

    @ivar reactor: watches descriptors.
    @ivar clock: tells the time.
    @ivar policy: the policy in force; replaced as a whole by a reload.
    @ivar resolver: looks names up.
    @ivar admission: bounds the handshakes in flight.
    @ivar factories: builds the TLS of a socket.
    @ivar counts: what has been done since the start.
    @ivar throttle: bounds the log lines on failed calls.
    @ivar failures: bounds the tracebacks of what fails in the daemon: who has found out how, can repeat it at will.
    @ivar lastID: the last TLS_ID given out.
    @ivar options: the options of every socket that has not been closed, by TLS_ID: for TLS_CONTEXT.
    """

    reactor: IReactorFDSet
    clock: IReactorTime
    policy: Policy
    resolver: Resolver
    admission: Admission
    factories: MakesFactories
    throttle: Throttle = field(init=False)
    failures: Throttle = field(init=False)
    lastID: int = 0
    options: dict[int, SocketOptions] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.throttle = Throttle(self.clock, burst=100, interval=0.5)
        self.failures = Throttle(self.clock)

    def nextID(self) -> int:
        """A TLS_ID: never the same twice while the daemon lives."""
        self.lastID += 1
        return self.lastID


def _descriptorOf(fd: int) -> list[int]:
    return [fd]


def _descriptorOfFetched(fetched: Fetched) -> list[int]:
    return [fetched.fd]


def _descriptorOfAccepted(reply: tuple[int, int]) -> list[int]:
    return [reply[1]]


class TLSSocket:
    """
    One TLS socket.

    @ivar options: its TLS options.
    @ivar caller: the program that made it, or took it with accept(2).
    @ivar uid: the user that it counts for.
    """

    log = Logger()

    def __init__(
        self,
        services: Services,
        interceptor: IInterceptor,
        id: int,
        family: int,
        caller: Caller,
        adopt: Callable[[int, TLSSocket], None],
        gone: Callable[[TLSSocket], None],
        mayAccept: Callable[[int], bool],
        life: Life | None = None,
        options: SocketOptions | None = None,
    ) -> None:
        """
        @param interceptor: where it lives.
        @param id: its number there.
        @param family: AF_INET or AF_INET6.
        @param adopt: told of each accepted socket and its id.
        @param gone: told once when the socket is closed and nothing of it is left.
        @param mayAccept: whether a user may have one more socket.
        @param life: where it stands; C{None}: new.
        @param options: inherited ones.
        """
        self._services = services
        self._interceptor = interceptor
        self.id = id
        self._family = family
        self.caller = caller
        self.uid = caller.uid
        self._adopt = adopt
        self._gone = gone
        self._mayAccept = mayAccept
        self._life = life if life is not None else newLife()
        if options is None:
            options = SocketOptions(services.nextID(), self.handedOverBy, caller.executable, services.options.get)
        self.options = options
        services.options[options.id] = options
        self._inForce: Profile | None = None
        self._serving: CurrentServer | None = None
        self._pending: Deferred[None] | None = None
        self._giveUpWith: SSAError | None = None
        self._connecting: Connecting | None = None
        self._early: dict[tuple[int, int], bytes] = {}
        self._listener: Listener | None = None
        self._secured: Secured | None = None
        self._relay: RunningRelay | None = None
        self._carried = (0, 0)
        self._attempt: Attempt | None = None
        self._made = services.clock.seconds()
        self._established: float | None = None

    def __repr__(self) -> str:
        return f"<TLSSocket {self.id} {self.stage.value}>"

    @property
    def stage(self) -> Stage:
        """Where the socket stands."""
        return self._life.stage()

    @property
    def handedOverBy(self) -> int:
        """
        The user who may hold the sockets that were handed over as well: the interceptor's; of the kernel's, the program's.
        """
        return self._interceptor.peerUID or self.uid

    @property
    def hasRelay(self) -> bool:
        """Whether it has an established connection that has not ended."""
        return self._relay is not None

    @property
    def isListening(self) -> bool:
        """Whether it has a listener that accepts."""
        return self._listener is not None

    def policyChanged(self) -> None:
        """There is a new policy: what a listener has to fetch before its next client comes, it fetches now."""
        if self._listener is not None and self._serving is not None:
            self._serving.refresh(self.options.staples)

    @property
    def carried(self) -> tuple[int, int]:
        """Plaintext that its connection has brought to the program, and taken from it, bytes; also when it has ended."""
        return (self._relay.bytesIn, self._relay.bytesOut) if self._relay is not None else self._carried

    def facts(self) -> SocketFacts:
        """What is known of it, for C{ssa status}."""
        return SocketFacts(
            self.options.id,
            self.stage,
            self.caller,
            self._attempt,
            self._inForce,
            self._secured,
            self.hasRelay,
            self.carried,
            self._listener,
            self.options.error,
            self._made,
            self._established,
        )

    def describe(self) -> dict[str, object]:
        """Who it belongs to, for the log; nothing secret."""
        caller = self.caller
        return {
            "executable": oneLine(caller.executable) or "unknown",
            "comm": oneLine(caller.comm),
            "pid": caller.pid,
            "uid": caller.uid,
        }

    def _profile(self, destination: str | None, port: int, address: str = "") -> Profile:
        return self._services.policy.profileFor(self.caller, destination, port, address)

    def _allowed(self, destination: str | None, port: int, address: str = "") -> Profile:
        """
        The profile for something that the policy lets the program do.

        @raise SSAError: EPERM, it does not.
        """
        profile = self._profile(destination, port, address)
        if not profile.access:
            where = destination if address in ("", destination) else f"{destination} ({address})"
            what = "listen" if destination is None else f"connect to {where} port {port}"
            rule = f"its rules contradict each other: {profile.conflict}" if profile.conflict else profile.origin("Access")
            program = self.caller.executable or "the program"
            raise Cause.POLICY.error(f"{program} of user {self.caller.uid} may not {what} (Access = deny, {rule})")
        return profile

    def _claimant(self) -> Claimant:
        return Claimant(self.caller.uid, self.caller.pid)

    # options

    def setOption(self, level: int, name: int, value: bytes, file: str) -> None:
        """
        setsockopt(2).

        @param file: the path whose content C{value} is, or "".
        @raise SSAError: see the socket API.
        """
        if level == IPPROTO_TLS:
            self.options.set(name, value, _PHASES[self.stage], self._profile(None, 0), file)
            return
        try:
            self._setLive(level, name, value)
        except SSAError as error:
            raise self.options.failed(error) from None
        self.options.succeeded()

    def _setLive(self, level: int, name: int, value: bytes) -> None:
        """
        An option of the network connection.  A new socket's are carried over
        by the interceptor, which has them on the program's own socket; those
        of a pending one without a real socket wait for it.
        """
        checkSettable(level, name)
        real = self._realSocket()
        if real is not None:
            setLiveOption(real, level, name, value)
        elif self.stage.isPending:
            # Whether the kernel takes the value is found out now, while the call can still be told.
            with socket.socket(self._family, socket.SOCK_STREAM) as trial:
                setLiveOption(trial, level, name, value)
            self._early[level, name] = value

    def getOption(self, level: int, name: int) -> bytes:
        """
        getsockopt(2).

        @raise SSAError: see the socket API.
        """
        if level == IPPROTO_TLS:
            profile = self._inForce if self._inForce is not None else self._profile(None, 0)
            return self.options.get(name, _PHASES[self.stage], self._info(), profile)
        real = self._realSocket()
        if real is None:
            raise Cause.NOT_CONNECTED.error(f"option {name} at level {level}")
        return getLiveOption(real, level, name)

    def _info(self) -> IConnectionInfo | None:
        return self._secured.info if self._secured is not None else None

    def _realSocket(self) -> socket.socket | None:
        if self._listener is not None:
            return self._listener.realSocket()
        if self._relay is not None and self._secured is not None:
            return self._secured.real
        if self._connecting is not None:
            return self._connecting.real
        return None

    # calls

    def connect(self, remote: Address) -> Deferred[None]:
        """
        connect(2).

        @return: fires when the peer has proved its identity and data can flow; fails with L{SSAError}.
        """
        begin = self._life.resolve if isinstance(remote, HostnameAddress) else self._life.connect
        what = f"connect to {remote.host} port {remote.port}"
        return self._start(begin, lambda: self._connect(remote), what, Attempt(Role.CLIENT, remote=remote))

    def upgrade(self, role: Role, remote: InternetAddress) -> Deferred[None]:
        """
        TLS_UPGRADE: TLS on a TCP connection that the program has already used.

        @return: as L{connect}.
        """
        return self._start(
            self._life.upgrade,
            lambda: self._upgrade(role, remote),
            f"upgrade of the connection to {remote}",
            Attempt(role, remote=remote),
        )

    def listen(self, backlog: int, external: InternetAddress) -> Deferred[None]:
        """
        listen(2); once more on a listening socket only changes the backlog.

        @return: fires when connections are accepted; fails with L{SSAError}.
        """
        if self._listener is not None:
            listener = self._listener
            return self._start(self._life.listen, lambda: self._changeBacklog(listener, backlog), "listen")
        what = f"listen on {external}"
        return self._start(self._life.listen, lambda: self._listen(external), what, Attempt(None, local=external))

    def _start(
        self,
        begin: Callable[[], None],
        work: Callable[[], Coroutine[Deferred[Any], Any, None]],
        what: str,
        attempt: Attempt | None = None,
    ) -> Deferred[None]:
        """
        Begin a call, if the state allows it.

        @param begin: the input of the state machine.
        @param work: does it.
        @param what: for the log.
        @param attempt: what the socket shall become; C{None}: what it is already.
        """

        try:
            begin()
        except SSAError as error:
            # A call at the wrong time does not disturb the one that is in progress.
            return fail(self.options.failed(error))

        def ended(result: object) -> None:
            if self._pending is pending:
                self._pending = None
            self._connecting = None
            self._early.clear()
            if isinstance(result, Failure):
                raise self._failed(result, what, attempt or Attempt(None))
            self.options.succeeded()

        self._giveUpWith = None
        self._attempt = attempt or self._attempt
        pending: Deferred[None] = Deferred.fromCoroutine(work())
        self._pending = pending
        return pending.addBoth(ended)

    def _failed(self, failure: Failure, what: str, attempt: Attempt) -> SSAError:
        """
        A call has failed: the socket is new again, and TLS_ERROR tells why.

        @return: what the program gets.
        """
        if self._giveUpWith is not None:
            error = self._giveUpWith
        elif isinstance(failure.value, CancelledError):
            error = Cause.CANCELLED.error(what)
        elif isinstance(failure.value, SSAError):
            error = failure.value
        else:
            suppressed = self._services.failures.allow()
            if suppressed is not None:
                fields: dict[str, Any] = self.describe()
                more = notLogged(suppressed)
                self.log.failure("{what} failed in the daemon{more}; " + PROGRAM, failure, what=what, more=more, **fields)
            error = Cause.INTERNAL.error(what)
        if self.stage.isPending:
            self._life.fail()
        self._inForce = None
        self.options.failed(error)
        if attempt.role is not None:
            self._services.counts.failed(attempt.role, self.caller.uid, error)
        suppressed = self._services.throttle.allow()
        if suppressed is not None:
            where = attempt.where()
            if self.options.remoteIdentity is not None:
                where["identity"] = self.options.remoteIdentity.value
            self.log.emit(
                levelOf(error),
                "{what} failed: {error}{more}; " + PROGRAM,
                what=what,
                error=str(error),
                errno=error.name,
                suppressed=suppressed,
                more=f" ({suppressed} more were not logged)" if suppressed else "",
                evidence=error.evidence,
                **where,
                **self.describe(),
            )
        return error

    async def _connect(self, remote: Address) -> None:
        if isinstance(remote, HostnameAddress):
            secured = await self._connectToName(remote)
        else:
            secured = await self._connectToAddress(remote)
        await self._establish(secured)

    async def _connectToAddress(self, remote: InternetAddress) -> Secured:
        identity = self._identity(remote)
        profile = self._inForce = self._allowed(identity.value, remote.port, remote.host)
        factory = self._services.factories.client(profile, self.options, identity)
        return await self._newConnecting(profile).toAddress(remote, self._chooser(identity, profile, factory))

    async def _connectToName(self, remote: HostnameAddress) -> Secured:
        """
        The policy is asked for the name at first, and for each of its addresses when they are known.  What it refuses it
        refuses by the name that is looked up as well as by the one that the peer has to prove.
        """
        identity = self._identity(remote)
        self._allowed(remote.host, remote.port)
        profile = self._inForce = self._allowed(identity.value, remote.port)
        factory = self._services.factories.client(profile, self.options, identity)
        choose = self._chooser(identity, profile, factory, remote.host)
        return await self._newConnecting(profile).toName(
            remote.host, remote.port, self._families(), self._services.resolver, self._life.addressFound, choose
        )

    def _chooser(self, identity: Identity, profile: Profile, factory: TLSFactory, dialed: str = "") -> Choose:
        """
        Say what holds for an address.

        @param profile: what was found first, with its C{factory}.
        @param dialed: the name that was looked up.
        """

        def choose(address: InternetAddress) -> tuple[Profile, TLSFactory]:
            if dialed:
                self._allowed(dialed, address.port, address.host)
            found = self._inForce = self._allowed(identity.value, address.port, address.host)
            if found is profile:
                return profile, factory
            return found, self._services.factories.client(found, self.options, identity)

        return choose

    async def _upgrade(self, role: Role, remote: InternetAddress) -> None:
        if role is Role.CLIENT:
            identity = self._identity(remote)
            profile = self._inForce = self._allowed(identity.value, remote.port, remote.host)
            factory = self._services.factories.client(profile, self.options, identity)
            choose = self._chooser(identity, profile, factory)
        else:
            profile = self._inForce = self._allowed(None, 0)
            factory = self._services.factories.server(profile, self.options)

            def choose(address: InternetAddress) -> tuple[Profile, TLSFactory]:
                return profile, factory

        try:
            secured = await self._newConnecting(profile).toAddress(remote, choose)
        finally:
            factory.close()
        await self._establish(secured)

    def _newConnecting(self, profile: Profile) -> Connecting:
        services = self._services
        self._connecting = Connecting(
            services.reactor,
            services.clock,
            self._interceptor,
            self.id,
            profile,
            services.admission,
            self._claimant(),
            self._life.transportConnected,
            self._life.nextAddress,
        )
        return self._connecting

    def _families(self) -> tuple[int, ...]:
        """An AF_INET6 socket reaches IPv4 addresses as well, as ::ffff:a.b.c.d (ipv6(7))."""
        return (socket.AF_INET,) if self._family == socket.AF_INET else (socket.AF_INET6, socket.AF_INET)

    def _identity(self, remote: Address) -> Identity:
        """
        Whom the peer has to prove to be: TLS_REMOTE_HOSTNAME, else what connect(2) was given.

        @raise SSAError: EINVAL, it can be nobody's.
        """
        try:
            identity = self.options.remoteIdentity or parseIdentity(remote.host)
        except ValueError as error:
            raise Cause.BAD_VALUE.error(str(error)) from error
        if self._attempt is not None:
            self._attempt.identity = identity.value
        return identity

    async def _establish(self, secured: Secured) -> None:
        """Get the plaintext end and let the data flow."""
        try:
            for (level, name), value in self._early.items():
                setLiveOption(secured.real, level, name, value)
            fd = await keepUntilTaken(
                self._interceptor.established(self.id, secured.external, secured.remote, DataPath.RELAY),
                _descriptorOf,
            )
            plaintext = self._interceptor.plaintextEnd(self.id, adoptPlaintextEnd(fd))
        except BaseException:
            secured.abort()
            raise
        self._life.established()
        self._startRelay(secured, plaintext)

    def _startRelay(self, secured: Secured, plaintext: IPlaintextEnd) -> None:
        assert self._attempt is not None and self._attempt.role is not None
        self._services.counts.succeeded(self._attempt.role, self.caller.uid)
        self._established = self._services.clock.seconds()
        self._secured = secured
        self._relay = secured.relay(plaintext, self._relayEnded, self.uid)

    def _relayEnded(self, error: SSAError | None) -> None:
        self._carried = self.carried
        self._relay = None
        if error is not None:
            self.options.failed(error)
            self.log.debug("a connection ended: {error}; " + PROGRAM, error=str(error), errno=error.name, **self.describe())
        if self.stage is Stage.CLOSED:
            self._gone(self)

    # listening

    async def _changeBacklog(self, listener: Listener, backlog: int) -> None:
        listener.setBacklog(backlog)

    async def _listen(self, external: InternetAddress) -> None:
        services = self._services
        options = self.options
        factory = self._serving = CurrentServer(
            lambda: self._allowed(None, external.port), lambda profile: services.factories.server(profile, options)
        )
        self._inForce = factory.profile
        try:
            sock = await self._fetchListener()
        except BaseException:
            factory.close()
            raise
        limits = factory.profile.limits
        self._listener = Listener(
            services.reactor,
            services.clock,
            sock,
            factory,
            self,
            services.admission,
            self._claimant(),
            limits.maxHandshakesPerProgram,
            min(limits.maxAcceptQueue, limits.maxHandshakesPerProgram),
            self.describe,
            services.failures,
        )
        self._life.opened()
        self._listener.start()

    async def _fetchListener(self) -> socket.socket:
        """
        Take the real listening socket over.

        @raise SSAError: it is none.
        """
        fetched = await keepUntilTaken(self._interceptor.fetch(self.id), _descriptorOfFetched)
        sock = adoptRealSocket(fetched.fd)
        try:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise Cause.INTERNAL.error("the interceptor sent a socket that does not listen")
            for (level, name), value in self._early.items():
                setLiveOption(sock, level, name, value)
        except OSError as error:
            sock.close()
            raise failed(error.errno or errno.EIO, "the real listening socket") from error
        except SSAError:
            sock.close()
            raise
        return sock

    def connectionSecured(self, secured: Secured) -> Deferred[None]:
        """A client has done its handshake with this listener (L{ssa.listening.Accepting})."""
        return Deferred.fromCoroutine(self._offer(secured))

    async def _offer(self, secured: Secured) -> None:
        """Put a finished connection into the program's queue."""
        try:
            if not self._mayAccept(self.uid):
                raise Cause.LIMIT_REACHED.error("the user has too many TLS sockets to accept another one")
            newID, fd = await keepUntilTaken(
                self._interceptor.accepted(self.id, secured.external, secured.remote, secured.real),
                _descriptorOfAccepted,
            )
            plaintext = self._interceptor.plaintextEnd(newID, adoptPlaintextEnd(fd))
        except SSAError as error:
            secured.abort()
            self.connectionRefused(error)
            self.log.info(
                "a connection is not accepted: {error}; " + PROGRAM, error=str(error), errno=error.name, **self.describe()
            )
            return
        except BaseException:
            secured.abort()
            raise
        new = TLSSocket(
            self._services,
            self._interceptor,
            newID,
            self._family,
            self.caller,
            self._adopt,
            self._gone,
            self._mayAccept,
            newLife(Stage.CONNECTED),
            self.options.inherit(self._services.nextID()),
        )
        new._attempt = Attempt(Role.SERVER)
        new._inForce = self._serving.profile if self._serving is not None else self._inForce
        new._startRelay(secured, plaintext)
        self._adopt(newID, new)

    def connectionRefused(self, error: SSAError) -> None:
        """A connection that was accepted is given up (L{ssa.listening.Accepting})."""
        self._services.counts.failed(Role.SERVER, self.caller.uid, error)

    def listenerShutDown(self) -> None:
        """The program has shut the real listener down, or is closing it (L{ssa.listening.Accepting})."""
        self._listener = None
        self.options.failed(Cause.CANCELLED.error("the listener was shut down"))
        self._life.fail()

    def listenerFailed(self, error: SSAError) -> None:
        """The real listener is broken (L{ssa.listening.Accepting})."""
        self._listener = None
        self.options.failed(error)
        self._life.fail()
        self.log.error("a listener is broken: {error}; " + PROGRAM, error=str(error), errno=error.name, **self.describe())

    # the end

    def close(self) -> None:
        """The last descriptor is gone: what is in progress is given up, what was written is still sent."""
        self._end(Cause.CANCELLED.error("the socket was closed"))
        if self._relay is not None:
            self._relay.programClosed()
        else:
            self._gone(self)

    def interceptorLost(self) -> None:
        """The interceptor is gone: only an established connection lives on, until it ends."""
        self._end(Cause.DAEMON_GONE.error("the link to the interceptor is lost"))
        if self._relay is None:
            self._gone(self)

    def giveUp(self) -> None:
        """The daemon stops: fail what is in progress, at once, and accept nothing more."""
        self._giveUpWith = Cause.DAEMON_GONE.error("the TLS daemon is being stopped")
        if self._pending is not None:
            self._pending.cancel()
        self._stopListening()

    def abort(self, reason: str) -> None:
        """Cut an established connection: the program sees ECONNRESET."""
        if self._relay is not None:
            self._relay.abort(reason)

    def _end(self, error: SSAError) -> None:
        self._giveUpWith = error
        if self._pending is not None:
            self._pending.cancel()
        self._stopListening()
        self._life.close()
        self._services.options.pop(self.options.id, None)
        self.options = SocketOptions(self.options.id)

    def _stopListening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
            if self.stage is Stage.LISTENING:
                self._life.fail()
