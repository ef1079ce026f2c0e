# SPDX-License-Identifier: MIT
"""
The daemon that C{ssa run} starts inside itself when there is none on the machine.

It is the same L{Daemon<ssa.service.Daemon>}, in a process of its own, for one interceptor.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from twisted.logger import LogLevel, globalLogBeginner

from ssa.logs import LogOutput, isJournal, lineSink

DRAIN_TIME = 60.0
"""
Seconds that connections may go on after the interceptor is gone.  Its programs are gone too, or cannot use
their sockets any more, so this is only for what they had written and the peers have not taken yet.
"""

_DRAIN_STEP = 0.1
"""Seconds between two looks whether they have ended; there are none while the link lives."""

LOG_VARIABLE = "SSA_LOG"
"""The environment variable with the least level that is logged to standard error: debug, info, warn, error or critical."""

_DEFAULT_LEVEL = LogLevel.error

_logging = False


def logLevel(name: str) -> Any:
    """
    @param name: of a level; "" or an unknown one is the default, C{error}.
    @return: a constant of C{twisted.logger.LogLevel}.
    """
    try:
        return LogLevel.levelWithName(name.strip().lower())
    except Exception:
        return _DEFAULT_LEVEL


def startLogging(level: Any) -> None:
    """
    Log to standard error what is at least of this level, and nothing else anywhere.

    The supervisor does so before it forks the embedded daemon, which then logs to the same place.
    """
    global _logging
    if _logging:
        return
    _logging = True
    journal = isJournal(sys.stderr)
    observer = LogOutput(lineSink(sys.stderr, journal), level.name, withTime=not journal)
    globalLogBeginner.beginLoggingTo([observer], discardBuffer=True, redirectStandardIO=False)


def cacheOf(environment: Mapping[str, str]) -> str:
    """
    Find where a user's answers on revocation are kept: the XDG Base Directory Specification.

    @return: "" for nowhere.
    """
    for variable, rest in (("XDG_CACHE_HOME", "ssa"), ("HOME", ".cache/ssa")):
        base = environment.get(variable, "")
        if os.path.isabs(base):
            return os.path.join(base, rest)
    return ""


def serve(reactor: Any, sock: socket.socket, policy: Any) -> None:
    """
    Serve one link until it is gone and its connections have ended.

    @param reactor: not running yet; runs within this call.
    @param sock: the link; owned by this function.
    @param policy: a L{Policy<ssa.policy.profile.Policy>}.
    """
    from ssa.service import Daemon

    daemon = Daemon(reactor, policy, cachePath=cacheOf(os.environ))
    daemon.startService()

    stopped: list[bool] = []

    def stopOnce() -> None:
        if not stopped:
            stopped.append(True)
            reactor.stop()

    def drain(deadline: float) -> None:
        if not daemon.dispatcher.relays or reactor.seconds() >= deadline:
            stopOnce()
        else:
            reactor.callLater(_DRAIN_STEP, drain, deadline)

    def lost() -> None:
        reactor.callLater(0, drain, reactor.seconds() + DRAIN_TIME)

    def stop(signum: int, frame: object) -> None:
        reactor.callFromThread(stopOnce)

    daemon.dispatcher.whenLinkLost(lost)
    daemon.adopt(sock)
    reactor.addSystemEventTrigger("before", "shutdown", daemon.stopService)
    # The terminal's signals are the program's business; the supervisor ends this process.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    reactor.run(installSignalHandlers=False)


def runEmbedded(sock: socket.socket, configPath: str | None = None, level: str | None = None) -> NoReturn:
    """
    Be the embedded daemon; to be called in a child process that has no reactor yet.

    @param sock: the daemon's end of the link, a connected SOCK_SEQPACKET socket.
    @param configPath: of the configuration; C{None} or "": the machine's, if there is one, else the built-in policy.  What an
        administrator has decided holds without the system's daemon as well.
    @param level: the least level to log; C{None}: what L{LOG_VARIABLE} says.
    @return: never.  The process ends with 0; 1 after an error of the daemon, 78 (EX_CONFIG, sysexits.h) for a configuration
        with errors, which are written to standard error.
    """
    status = 1
    try:
        startLogging(logLevel(os.environ.get(LOG_VARIABLE, "") if level is None else level))
        from twisted.internet import epollreactor

        # A reactor that was inherited over fork(2) shares its epoll set with the parent.
        sys.modules.pop("twisted.internet.reactor", None)
        signal.set_wakeup_fd(-1)

        epollreactor.install()  # type: ignore[no-untyped-call]
        from twisted.internet import reactor

        from ssa.configuration import loadConfiguration
        from ssa.policy.parser import ConfigurationError

        try:
            # The machine's private keys are not for its users, and need not be: only a listener without its own misses them.
            policy = loadConfiguration(configPath or None, mayLack=not configPath)
        except ConfigurationError as error:
            sys.stderr.write(f"{error}\n")
            status = 78
        else:
            serve(reactor, sock, policy)
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
