# SPDX-License-Identifier: MIT
"""C{twistd ssa}: the system daemon."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService, Service
from twisted.python import usage

from ssa.policy.parser import DEFAULT_FILE, ConfigurationError, loadPolicy
from ssa.policy.profile import Policy
from ssa.service import Daemon

DEFAULT_SOCKET = "/run/ssa/daemon.sock"
"""Where supervisors find the daemon of the machine."""


class Options(usage.Options):
    """
    The command line of C{twistd ssa}.

    @ivar policy: what the configuration says, once the command line is parsed.
    """

    synopsis = "[--config FILE] [--socket PATH]"
    longdesc = "Does TLS for the programs of this machine that ask for IPPROTO_TLS."
    optParameters = [
        ["config", "c", None, f"The configuration (default: {DEFAULT_FILE}, if it exists)."],
        ["socket", "s", DEFAULT_SOCKET, "Where supervisors (ssa run) find the daemon."],
    ]

    policy: Policy

    def postOptions(self) -> None:
        """
        Check everything before the process goes into the background.

        @raise usage.UsageError: with all errors of the configuration, or for a socket path that cannot be one.
        """
        path = self["socket"]
        if not os.path.isabs(path):
            raise usage.UsageError(f"--socket: {path!r} is not an absolute path")
        if len(os.fsencode(path)) > 107:
            raise usage.UsageError("--socket: the path of a unix socket has at most 107 bytes (unix(7))")
        if self["config"]:
            # twistd changes the working directory.
            self["config"] = os.path.abspath(self["config"])
        try:
            self.policy = self.load()
        except ConfigurationError as error:
            raise usage.UsageError(f"the configuration has errors:\n{error}") from error

    def load(self) -> Policy:
        """
        Read the configuration.

        @raise ConfigurationError: with all errors.
        """
        config = self["config"]
        return loadPolicy(config) if config else loadPolicy(DEFAULT_FILE, required=False)


class ReloadOnHangUp(Service):
    """SIGHUP reads the configuration again."""

    def __init__(self, reactor: Any, reload: Callable[[], object]) -> None:
        """
        @param reactor: calls C{reload} from its own loop, not from the signal handler.
        @param reload: reads it.
        """
        self._reactor = reactor
        self._reload = reload
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
        self._reactor.callFromThread(self._reload)


def makeService(options: Options) -> IService:
    """Make the service; the reactor is the one that twistd has installed."""
    from twisted.internet import reactor

    daemon = Daemon(reactor, options.policy, options.load)
    daemon.listenAt(options["socket"])
    ReloadOnHangUp(reactor, daemon.reload).setServiceParent(daemon)  # type: ignore[no-untyped-call]
    return daemon
