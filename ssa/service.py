# SPDX-License-Identifier: MIT
"""
The daemon as a service: the same for C{twistd ssa} and for the one that C{ssa run} starts inside itself.
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ssa.admission import Admission
from ssa.descriptors import raiseDescriptorLimit
from ssa.dispatcher import Dispatcher
from ssa.engine import TLSFactories
from ssa.interfaces import IEventReceiver
from ssa.logs import LogOutput
from ssa.netlink.port import INetlinkSystem
from ssa.policy.parser import ConfigurationError
from ssa.policy.profile import Limits, Policy
from ssa.protocol.kernelport import KernelPort, State
from ssa.protocol.statusport import StatusPort
from ssa.protocol.supervised import DaemonEnd, LinkLimits, SupervisedPort
from ssa.relay import RelayPool
from ssa.resolve import MAX_RESOLVER_THREADS, DaemonThreadPool, Resolver
from ssa.revocation.cache import Directory
from ssa.revocation.check import Revocation
from ssa.revocation.fetch import Fetcher
from ssa.revocation.stapling import Staples
from ssa.sockets import Services
from ssa.stallguard import StallGuard
from ssa.status import ConfigurationState, Parts, Status
from ssa.statusformat import SUFFIX
from ssa.tls.keylog import reopenKeyLogs
from ssa.tls.policyfiles import LoadedFiles, loadFiles
from ssa.watching import FilesWatch

STOP_TIME = 0.5
"""Seconds that connections have to pass on what they hold when the daemon is told to stop."""

BAN_TIME = 60.0
"""Seconds for which a user who made the daemon wait (L{ssa.stallguard}) is locked out."""

REVOCATION_THREADS = 2
"""How many threads read revocation lists and wait for the disk."""

_STOP_STEP = 0.05
"""Seconds without any progress after which nothing is left to pass on."""


def _reserveFor(limits: Limits) -> int:
    """
    How many reserve buffers the relays need so that none ever waits for one: one for each direction of each connection
    (L{ssa.buffers}).
    """
    return 2 * limits.maxSockets


def _userName() -> str:
    """The name of the user that this process runs as; "" if it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


class Daemon(MultiService):
    """
    Serves interceptors.

    @ivar dispatcher: knows all sockets.
    @ivar shared: what all sockets share.
    @ivar status: says what the daemon does.
    @ivar kernelChanged: called after each change of L{kernelState}.
    @ivar logOutput: has its level and format from the policy; C{None}: whoever started the daemon has chosen them.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, policy: Policy, loadPolicy: Callable[[], Policy] | None = None, cachePath: str = ""
    ) -> None:
        """
        @param reactor: watches descriptors, tells the time, takes results of threads.
        @param policy: the policy in force at first.
        @param loadPolicy: reads the policy again, or raises C{Exception} when it has errors; C{None}: there is no file.
        @param cachePath: the directory where answers on revocation are kept over a restart; "" for nowhere.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._loadPolicy = loadPolicy
        self._threads = DaemonThreadPool(0, MAX_RESOLVER_THREADS, "resolver")
        limits = policy.default.limits
        self._relays = RelayPool(
            reactor,
            limits.maxRelayBuffers,
            reserveLimit=_reserveFor(limits),
            userLimit=limits.maxRelayBuffersPerUser,
        )
        self._guard = StallGuard(reactor, self._stalled)
        resolver = Resolver(reactor, self._clock, self._threads)
        self._readers = DaemonThreadPool(0, REVOCATION_THREADS, "revocation")
        revocation = Revocation(
            reactor,
            self._clock,
            self._readers,
            Fetcher(reactor, self._clock, resolver, self._readers),
            Directory(cachePath) if cachePath else None,
        )
        self._staples = Staples(self._clock, revocation)
        self._factories = TLSFactories(reactor, self._clock, self._relays, revocation, self._staples)
        self.shared = Services(
            reactor,
            self._clock,
            policy,
            resolver,
            Admission(self._clock, limits.maxHandshakes),
            self._factories,
        )
        self.dispatcher = Dispatcher(self.shared)
        self._watch = FilesWatch(self._clock, self._filesChanged)
        self._watchFiles()
        self._ports: list[SupervisedPort] = []
        self._statusPorts: list[StatusPort] = []
        self._paths: list[str] = []
        self._ends: set[DaemonEnd] = set()
        self._kernel: KernelPort | None = None
        self.kernelChanged: Callable[[], None] = lambda: None
        self.logOutput: LogOutput | None = None
        self._configuration = ConfigurationState()
        self.status = Status(
            Parts(
                self.shared,
                self.dispatcher,
                self._relays.buffers,
                self._factories.sessions,
                self._factories.contexts,
                revocation.cache,
                self._configuration,
                lambda: self.kernelState,
                self._supervisors,
                lambda: None if self._kernel is None else self._kernel.end,
                os.geteuid,
                os.getpid,
            )
        )

    def _supervisors(self) -> list[DaemonEnd]:
        """Those that are connected."""
        own = [end for end in self._ends if not end.isLost]
        return [end for port in self._ports for end in port.ends] + own

    @property
    def kernelState(self) -> State:
        """How the daemon stands to the kernel module."""
        return State.STOPPED if self._kernel is None else self._kernel.state

    def serveKernel(self, system: INetlinkSystem | None = None) -> None:
        """
        Serve the kernel module whenever there is one, from L{startService} on.  Where this process may not, that is logged, and
        nothing else.

        @param system: the operating system, by default the one that runs.
        """
        self._kernel = KernelPort(self._reactor, self.dispatcher, self._kernelLimits(), system)
        self._kernel.changed = lambda: self.kernelChanged()
        self._kernel.descriptorArrived = self._kernelDescriptorArrived
        if self.running:
            self._kernel.startListening()

    def _kernelDescriptorArrived(self, descriptor: int, uid: int) -> None:
        """A program has handed over a socket that it holds as well."""
        if self._isForeign(uid):
            self._guard.watch(descriptor, uid)

    def listenAt(self, path: str) -> None:
        """
        Serve supervisors that connect to a unix socket, from L{startService} on, and tell the status at another one beside it.

        @param path: of the socket; that of the other one ends in L{SUFFIX} too.
        """
        self._paths.append(path)

    def adopt(self, sock: socket.socket) -> DaemonEnd:
        """
        Serve the one interceptor at the other end of a socket.

        @param sock: a connected SOCK_SEQPACKET socket; owned by the daemon from now on.
        @return: the link.
        """
        end = self._newEnd(self._reactor, sock, self.dispatcher, self._linkLimits())
        self._ends.add(end)
        return end

    def _newEnd(self, reactor: Any, sock: socket.socket, receiver: IEventReceiver, limits: LinkLimits) -> DaemonEnd:
        """Make the end of a link; what another user hands over is guarded."""
        end = DaemonEnd(reactor, sock, receiver, limits)
        uid = end.peerUID
        if self._isForeign(uid):
            end.descriptorArrived = lambda descriptor: self._guard.watch(descriptor, uid)
        return end

    def _isForeign(self, uid: int) -> bool:
        """Whether a user is another one than the daemon's own, and not root."""
        return uid not in (0, os.geteuid())

    def _stalled(self, uid: int) -> None:
        """A user has made the daemon wait: it loses its connections, and is locked out for a while."""
        self.log.error(
            "user {uid} made the daemon wait on a socket; its connections are ended, it is locked out for {time:g} s",
            uid=uid,
            time=BAN_TIME,
        )
        self.dispatcher.abortUser(uid)
        for port in self._ports:
            port.ban(uid, BAN_TIME)
        if self._kernel is not None:
            self._kernel.ban(uid, BAN_TIME)
        for end in list(self._ends):
            if end.peerUID == uid:
                end.close()

    def _linkLimits(self) -> LinkLimits:
        limits = self.shared.policy.default.limits
        return LinkLimits(maximumPending=limits.maxPendingEvents, maximumSockets=limits.maxSockets)

    def _kernelLimits(self) -> LinkLimits:
        """The module's link is that of all users: what one of them may have is the dispatcher's business."""
        limits = self.shared.policy.default.limits
        return LinkLimits(maximumPending=limits.maxSockets, maximumSockets=limits.maxSockets)

    def privilegedStartService(self) -> None:
        """
        Open the sockets, while the process may still do so.

        @raise twisted.internet.error.CannotListenError: another daemon is there, or the path cannot be used.  Nothing is open
            then.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        raiseDescriptorLimit()
        try:
            for path in self._paths:
                self._open(path)
        except CannotListenError:
            self._closePorts()
            raise
        self._paths = []

    def _open(self, path: str) -> None:
        """Open the two sockets of a path."""
        port = SupervisedPort(
            self._reactor,
            path,
            self.dispatcher,
            maximumConnections=self.shared.policy.default.limits.maxInterceptors,
            limits=self._linkLimits(),
            makeEnd=self._newEnd,
        )
        port.startListening()
        self._ports.append(port)
        status = StatusPort(self._reactor, path + SUFFIX, self.status)
        status.startListening()
        self._statusPorts.append(status)
        self.log.info("serving at {path}", path=path)

    def _closePorts(self) -> None:
        """Close all of them."""
        for status in self._statusPorts:
            status.stopListening()
        for port in self._ports:
            port.stopListening()
        self._ports, self._statusPorts = [], []

    def startService(self) -> None:
        """Begin to serve."""
        if self._paths:
            self.privilegedStartService()
        super().startService()  # type: ignore[no-untyped-call]
        if self._statusPorts:
            self.status.userName = _userName()  # looking it up may take its time: not in the daemon of `ssa run`
        self._policyChanged()
        self._threads.start()
        self._watch.start()
        self._readers.start()
        if self._kernel is not None:
            self._kernel.startListening()

    async def _stop(self) -> None:
        """
        End in order: pending calls fail with ENETDOWN now, connections get L{STOP_TIME}
        to pass on what they hold and are then cut, the links are closed last.
        """
        self.status.isStopping = True
        self._watch.stop()
        self.dispatcher.stop()
        deadline = self._clock.seconds() + STOP_TIME
        moved = -1
        while self.dispatcher.relays and self._clock.seconds() < deadline:
            before, moved = moved, self.dispatcher.bytesMoved
            if moved == before:
                break
            await self._sleep(_STOP_STEP)
        self.dispatcher.abortAll()
        self._closePorts()
        for end in self._ends:
            end.close()
        self._ends.clear()
        if self._kernel is not None:
            await self._kernel.stopListening()
        self._guard.stop()
        self._relays.close()
        self._staples.stop()
        self._threads.abandon()
        self._readers.abandon()

    def stopService(self) -> Deferred[None]:
        """
        Stop; nothing hangs.

        @return: fires within L{STOP_TIME}.
        """
        children = super().stopService()  # type: ignore[no-untyped-call]

        def both(_: object) -> Deferred[None]:
            return Deferred.fromCoroutine(self._stop())

        if isinstance(children, Deferred):
            return children.addBoth(both)
        return both(None)

    def _sleep(self, seconds: float) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._clock.callLater(seconds, waiting.callback, None)
        return waiting

    def _watchFiles(self) -> None:
        files = self.shared.policy.default.files
        if isinstance(files, LoadedFiles):
            self._watch.watch(files.paths, files.signature)
            for warning in files.warnings:
                self.log.warn("{warning}", warning=warning)
        else:
            self._watch.watch((), ())

    def _filesChanged(self) -> None:
        """
        Certificates, keys, trust stores or lists of logs have changed on disk.  All or nothing: with any error everything stays
        as it is until they change again.  The policy itself is not read again: it may be half written.
        """
        try:
            files = self.shared.policy.default.files
            policy = loadFiles(self.shared.policy, isinstance(files, LoadedFiles) and files.mayLack)
        except Exception as error:
            self._configuration.hasFailed(error, onlyFiles=True)
            if not isinstance(error, ConfigurationError):
                raise
            self.log.error("files have changed and have errors, the old ones stay in force:\n{error}", error=str(error))
            return
        self._configuration.succeeded(onlyFiles=True)
        self.shared.policy = policy
        self._watchFiles()
        self._factories.policyChanged()
        self.dispatcher.policyChanged()
        self.log.info("files that the configuration names have changed and were read again")

    def reload(self) -> bool:
        """
        Read the policy again (SIGHUP).  All or nothing: with any error the old one stays in force, and the errors are logged.
        No established connection is touched; everything else holds from the next handshake on, of listeners too.  Limits count
        at once, smaller ones as what is above them ends.

        @return: whether there is a new policy.
        """
        if self._loadPolicy is None:
            self.log.info("there is no configuration file to read again")
            return False
        try:
            policy = self._loadPolicy()
        except Exception as error:
            self._configuration.hasFailed(error)
            self.log.error("the configuration has errors, the old one stays in force:\n{error}", error=str(error))
            return False
        self._configuration.succeeded()
        self.shared.policy = policy
        self._watchFiles()
        self._factories.policyChanged()
        self.dispatcher.policyChanged()
        limits = policy.default.limits
        self.shared.admission.maxTotal = limits.maxHandshakes
        self._relays.buffers.setLimits(limits.maxRelayBuffers, _reserveFor(limits), limits.maxRelayBuffersPerUser)
        for port in self._ports:
            port.setLimits(limits.maxInterceptors, self._linkLimits())
        for end in self._ends:
            end.limits = self._linkLimits()
        if self._kernel is not None:
            self._kernel.setLimits(self._kernelLimits())
        reopenKeyLogs()
        self._policyChanged()
        self.log.info("the configuration was read again")
        return True

    def logTo(self, output: LogOutput) -> None:
        """
        Log as the policy says, from now on and after each reload.

        @param output: where to.
        """
        policy = self.shared.policy
        output.configure(policy.logLevel, policy.logFormat)
        self.logOutput = output

    def _policyChanged(self) -> None:
        """Log as the policy says, and say aloud whose secrets are written to files."""
        policy = self.shared.policy
        if self.logOutput is not None:
            self.logTo(self.logOutput)
        for name, path in keyLogs(policy):
            self.log.critical(
                "KEY LOG: the secrets of the TLS connections of [{profile}] are written to {path}: "
                "whoever reads it can read them",
                profile=name,
                path=path,
            )


def keyLogs(policy: Policy) -> list[tuple[str, str]]:
    """
    List the key logs that a policy turns on.

    @return: names of sections of the file, and paths.
    """
    found = [("default", policy.default.keyLogFile), *((rule.name, rule.value("KeyLogFile")) for rule in policy.rules)]
    return [(name, path) for name, path in found if path]
