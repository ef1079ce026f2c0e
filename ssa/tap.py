# SPDX-License-Identifier: MIT
"""C{twistd ssa}: the system daemon."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.components import Componentized

from ssa.configuration import loadConfiguration
from ssa.logs import forTwistd
from ssa.notifying import ServiceManager
from ssa.policy.parser import ConfigurationError
from ssa.policy.profile import DEFAULT_FILE, Policy
from ssa.privileges import CAP_NET_ADMIN, keepOnly, withoutOverride
from ssa.service import Daemon
from ssa.statusformat import SUFFIX

DEFAULT_SOCKET = "/run/ssa/daemon.sock"
"""Where supervisors find the daemon of the machine."""

DEFAULT_CACHE = "/var/cache/ssa"
"""Where answers on revocation are kept; systemd's C{CacheDirectory=} says it in C{CACHE_DIRECTORY}."""


def cacheDirectory(environment: Mapping[str, str]) -> str:
    """
    Find where answers on revocation are kept: systemd.exec(5), C{CacheDirectory=}.

    @param environment: of the process.
    """
    first = environment.get("CACHE_DIRECTORY", "").partition(":")[0]
    return first if os.path.isabs(first) else DEFAULT_CACHE


class Options(usage.Options):
    """
    The command line of C{twistd ssa}.

    @ivar policy: what the configuration says, once the command line is parsed.
    """

    synopsis = "[--config FILE] [--socket PATH] [--no-kernel]"
    longdesc = "Does TLS for the programs of this machine that ask for IPPROTO_TLS."
    optParameters = [
        ["config", "c", None, f"The configuration (default: {DEFAULT_FILE}, if it exists)."],
        ["socket", "s", DEFAULT_SOCKET, "Where supervisors (ssa run) find the daemon."],
    ]
    optFlags = [
        ["no-kernel", None, "Serve supervisors only, and leave the kernel module to another daemon."],
    ]

    policy: Policy
    parent: usage.Options | None = None

    def postOptions(self) -> None:
        """
        Check everything before the process goes into the background.

        @raise usage.UsageError: for a socket path that cannot be one.
        @raise SystemExit: with all errors of the configuration, for standard error, without how the command is used.
        """
        path = self["socket"]
        if not os.path.isabs(path):
            raise usage.UsageError(f"--socket: {path!r} is not an absolute path")
        most = 107 - len(SUFFIX)
        if len(os.fsencode(path)) > most:
            raise usage.UsageError(
                f"--socket: the path may have {most} bytes; with {SUFFIX}, for `ssa status`, it is that of a unix socket too,"
                " which has at most 107 (unix(7))"
            )
        if self["config"]:
            # twistd changes the working directory.
            self["config"] = os.path.abspath(self["config"])
        try:
            self.policy = self.load()
        except ConfigurationError as error:
            raise SystemExit(f"ssa: the configuration has errors:\n{error}") from error

    def load(self) -> Policy:
        """
        Read the configuration and the files that it names, with the rights that the daemon has after its start.

        @raise ConfigurationError: with all errors.
        """
        config = self["config"]
        with withoutOverride():
            return loadConfiguration(config or DEFAULT_FILE, required=bool(config))


class ReloadOnHangUp(Service):
    """SIGHUP reads the configuration again."""

    def __init__(self, reactor: Any, reload: Callable[[], object], manager: ServiceManager | None = None) -> None:
        """
        @param reactor: calls C{reload} from its own loop, not from the signal handler.
        @param reload: reads it.
        @param manager: is told of it; by default nobody.
        """
        self._reactor = reactor
        self._reload = reload
        self._manager = ServiceManager({}) if manager is None else manager
        self._before: Any = signal.SIG_DFL

    def startService(self) -> None:
        """Take the signal."""
        super().startService()  # type: ignore[no-untyped-call]
        self._before = signal.signal(signal.SIGHUP, self._received)

    def stopService(self) -> None:
        """Give it back."""
        super().stopService()  # type: ignore[no-untyped-call]
        signal.signal(signal.SIGHUP, self._before)

    def _received(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._reloadNow)

    def _reloadNow(self) -> None:
        self._manager.reloading()
        try:
            self._reload()
        finally:
            self._manager.ready()


class GiveUpRights(Service):
    """Keeps C{CAP_NET_ADMIN} and no other capability, from the start of the service on."""

    _log = Logger()

    def __init__(self, keep: Iterable[int] = (CAP_NET_ADMIN,)) -> None:
        """@param keep: the numbers of the capabilities that are needed."""
        self._keep = tuple(keep)

    def startService(self) -> None:
        """
        Give the others up.

        @raise OSError: the kernel refuses: the service does not start with rights that it was told to give up.
        """
        super().startService()  # type: ignore[no-untyped-call]
        kept = keepOnly(self._keep)
        self._log.info("capabilities: {kept}", kept="CAP_NET_ADMIN" if CAP_NET_ADMIN in kept else "none")


class TellManager(Service):
    """Tells the service manager when the reactor serves, when the service stops, and how it stands to the kernel module."""

    def __init__(self, reactor: Any, manager: ServiceManager, daemon: Daemon) -> None:
        """
        @param reactor: an C{IReactorCore}.
        @param manager: is told.
        @param daemon: is told of.
        """
        self._reactor = reactor
        self._manager = manager
        self._daemon = daemon

    def startService(self) -> None:
        """Wait for the reactor."""
        super().startService()  # type: ignore[no-untyped-call]
        self._daemon.kernelChanged = self._changed
        self._reactor.callWhenRunning(self._ready)

    def stopService(self) -> None:
        """Say so."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._manager.stopping()

    def _ready(self) -> None:
        self._manager.ready()
        self._changed()

    def _changed(self) -> None:
        if self.running:
            self._manager.status(f"Serving supervisors; kernel module: {self._daemon.kernelState.value}")


class SystemDaemon(Daemon):
    """The daemon of the machine: its log is twistd's."""

    def setServiceParent(self, parent: Any) -> None:
        """
        Join twistd's application, and be its logger, unless the command line names one (C{--logger}).

        @param parent: the application.
        """
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        if self.logOutput is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.logOutput)  # type: ignore[no-untyped-call]


def makeService(options: Options) -> IService:
    """Make the service; the reactor is the one that twistd has installed."""
    from twisted.internet import reactor

    manager = ServiceManager()
    daemon = SystemDaemon(reactor, options.policy, options.load, cacheDirectory(os.environ))
    if options.parent is not None:
        output = forTwistd(options.parent, IReactorFromThreads(reactor).callFromThread)
        if output is not None:
            daemon.logTo(output)
    daemon.listenAt(options["socket"])
    if not options["no-kernel"]:
        daemon.serveKernel()
    keep = () if options["no-kernel"] else (CAP_NET_ADMIN,)
    for part in (
        GiveUpRights(keep),
        ReloadOnHangUp(reactor, daemon.reload, manager),
        TellManager(reactor, manager, daemon),
    ):
        part.setServiceParent(daemon)  # type: ignore[no-untyped-call]
    return daemon
