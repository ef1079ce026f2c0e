# SPDX-License-Identifier: MIT
"""
One C{ssa run}: the supervisor's process from its first step to its last.

It starts the namespace helper, finds the daemon or starts one inside itself, lets the program go, and serves until no
process is left under the filter.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable
from errno import ECONNREFUSED
from typing import Any

from twisted.logger import Logger

from ssa.descriptors import raiseDescriptorLimit
from ssa.embedded import LOG_VARIABLE, logLevel, startLogging
from ssa.intercept.core import Core
from ssa.intercept.launch import Options, releaseDescriptors
from ssa.intercept.linux import nameProcess
from ssa.intercept.network import HelperClient, IPrivateNetwork, NamespaceNetwork, startHelper
from ssa.intercept.notify import NotificationListener
from ssa.intercept.program import Program
from ssa.intercept.supervisor import Supervisor
from ssa.intercept.way import Way
from ssa.protocol.interceptor import InterceptorEnd

DEFAULT_DAEMON = "/run/ssa/daemon.sock"
"""Where the machine's daemon listens."""

REGISTER_TIMEOUT = 20.0
"""Seconds for a daemon to register; programs that ask for a socket meanwhile wait."""

RECONNECT_DELAY = 0.2
"""Seconds between attempts to reach a daemon that is gone."""


def _connect(path: str) -> socket.socket:
    """
    Connect to a daemon's socket.

    @raise OSError: nobody listens there, or it may not be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def _isSocket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _findDaemon(options: Options) -> tuple[socket.socket | None, str]:
    """
    Which daemon to use.

    @return: the link and the path to come back to; without a link a daemon must be embedded.
    @raise OSError: the daemon that was asked for cannot be reached.
    """
    if options.daemon:
        try:
            return _connect(options.daemon), options.daemon
        except OSError as error:
            raise OSError(error.errno, f"no daemon can be reached at {options.daemon}: {error.strerror}") from error
    if not options.embedded and _isSocket(DEFAULT_DAEMON):
        try:
            return _connect(DEFAULT_DAEMON), DEFAULT_DAEMON
        except OSError as error:
            # The administrator's daemon exists: its policy must not be left because it is being restarted or is full.
            if error.errno != ECONNREFUSED:
                raise OSError(error.errno, f"the daemon at {DEFAULT_DAEMON} cannot be used: {error.strerror}") from error
            Session.log.error(
                "the daemon at {path} does not answer: TLS sockets give ENETDOWN until it does (--embedded goes without it)",
                path=DEFAULT_DAEMON,
            )
            return None, DEFAULT_DAEMON
    return None, ""


def _startEmbedded(options: Options) -> tuple[int, socket.socket]:
    """Fork the embedded daemon; returns its pid and our end of the link."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            nameProcess("ssa-daemon")
            releaseDescriptors((theirs.fileno(),))
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            from ssa.embedded import runEmbedded

            runEmbedded(theirs, options.config or None)
        finally:
            os._exit(1)
    theirs.close()
    return pid, ours


class Session:
    """
    Joins the parts.

    @ivar reactor: not running yet.
    """

    log = Logger()

    def __init__(self, reactor: Any, program: Program, newNetwork: Callable[[], IPrivateNetwork], path: str) -> None:
        """
        @param path: of the daemon to come back to when the link is lost; "": there is none.
        """
        self.reactor = reactor
        self._program = program
        self._path = path
        self._core = Core(reactor, NotificationListener(program.notifyFD), newNetwork)
        self.supervisor = Supervisor(self._core)
        self._link: InterceptorEnd | None = None
        self._stopping = False

    def use(self, sock: socket.socket) -> None:
        """Serve with the daemon at the other end of a link."""
        link = self._link = InterceptorEnd(self.reactor, sock, self.supervisor)
        timer = self.reactor.callLater(REGISTER_TIMEOUT, link.close)

        def registered(_: object) -> None:
            timer.cancel()
            self.supervisor.linkUp(link)

        def failed(_: object) -> None:
            if timer.active():
                timer.cancel()
            self.supervisor.linkFailed()

        link.onRegistered.addCallbacks(registered, failed)
        link.lost.addCallback(self._lost)

    def await_(self) -> None:
        """There is no daemon now: programs get ENETDOWN until there is one."""
        self.supervisor.linkFailed()
        self.reactor.callLater(RECONNECT_DELAY, self._reconnect)

    def _lost(self, reason: str) -> None:
        self._link = None
        self.supervisor.linkLost()
        if self._stopping:
            return
        self.log.warn("the daemon is gone: {reason}", reason=reason)
        if self._path:
            self.reactor.callLater(RECONNECT_DELAY, self._reconnect)

    def helperLost(self) -> None:
        """The process with the private networks has died: without it no TLS socket can be served."""
        self._path = ""
        if self._link is not None:
            self.log.error("the namespace helper died: TLS sockets are no longer served")
            self._link.close()

    def _reconnect(self) -> None:
        if self._stopping:
            return
        try:
            sock = _connect(self._path)
        except OSError:
            self.reactor.callLater(RECONNECT_DELAY, self._reconnect)
            return
        self.use(sock)

    def run(self) -> None:
        """Serve until no process is left under the filter."""
        self._program.attach(self.reactor)
        self.supervisor.start()
        self.supervisor.ended.addCallback(self._ended)
        self.reactor.callWhenRunning(self._program.start)
        self.reactor.run(installSignalHandlers=False)

    def _ended(self, _: object) -> None:
        self._stopping = True
        # The program's own status is reported before this process ends.
        self._program.ended.addCallback(lambda _: self.reactor.callLater(0, self._stop))

    def _stop(self) -> None:
        if self._link is not None:
            self._link.close()
        self.reactor.callLater(0, self.reactor.stop)


def supervise(program: Program, options: Options, way: Way) -> None:
    """
    Serve a program until it and all its descendants have ended.

    @raise OSError: with one line that says why interception is not possible.
    """
    nameProcess("ssa-supervisor")
    startLogging(logLevel(os.environ.get(LOG_VARIABLE, "")))
    raiseDescriptorLimit()  # the program has its own limit already
    control: socket.socket | None = None
    helper = 0
    if way is not Way.LOOPBACK:
        helper, control = startHelper(userNamespace=way is Way.USER_NAMESPACE)
    sock, path = _findDaemon(options)
    embedded = 0
    if sock is None and not path:
        embedded, sock = _startEmbedded(options)

    from twisted.internet import epollreactor

    epollreactor.install()  # type: ignore[no-untyped-call]
    from twisted.internet import reactor

    newNetwork: Callable[[], IPrivateNetwork]
    if control is None:
        from ssa.intercept.loopback import LoopbackNetwork

        newNetwork = LoopbackNetwork
    else:
        client = HelperClient(control)
        newNetwork = lambda: NamespaceNetwork(client)  # noqa: E731
    session = Session(reactor, program, newNetwork, path)
    if helper:
        program.watchChild(helper, lambda status: session.helperLost())
    if embedded:
        program.watchChild(embedded, lambda status: None)  # the link tells
    if sock is not None:
        session.use(sock)
    else:
        session.await_()
    session.run()
