# SPDX-License-Identifier: MIT
"""
What C{ssa status} shows: one JSON document (RFC 8259), in ASCII, made piece by piece and without any input or output.

C{docs/status-fields.inc} says what each field means; a field keeps its name and its meaning as long as
L{FORMAT<ssa.statusformat.FORMAT>} stays.

Root and the daemon's own user see everything.  Every other user sees what concerns the user alone, besides the daemon's
version, its state and since when it runs: neither how much the others do nor that they are there.  What such a user may not
see is C{null}.

There may be many sockets, and the daemon has other things to do: L{Status.pieces} does a little at a time, and whoever asks it
decides when.  The totals are those of one moment, also of bytes.  Of more sockets than L{MOST_LISTED} or L{MOST_BYTES} allow,
those that are listed are taken from all users in turn, so that nobody hides others behind sockets of one's own.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import cryptography
import OpenSSL
from OpenSSL import SSL
from twisted.copyright import version as twistedVersion

from ssa.buffers import BufferPool
from ssa.counts import Attempts, Tally
from ssa.dispatcher import Dispatcher
from ssa.errors import oneLine
from ssa.interfaces import IInterceptor
from ssa.policy.parser import ConfigurationError
from ssa.protocol.kernelport import State
from ssa.revocation.cache import Cache
from ssa.sockets import Services, TLSSocket
from ssa.socketstatus import describeSocket
from ssa.states import Stage
from ssa.statusformat import FORMAT
from ssa.version import __version__

__all__ = [
    "MOST_BYTES",
    "MOST_ERRORS",
    "MOST_INTERCEPTORS",
    "MOST_LISTED",
    "MOST_LISTED_OF_USER",
    "ConfigurationState",
    "Parts",
    "Status",
]

MOST_LISTED = 16384
"""How many sockets are listed for those who see everything."""

MOST_LISTED_OF_USER = 1024
"""How many for others: their number is what they can make the daemon do again and again."""

MOST_INTERCEPTORS = 1024
"""How many interceptors are listed."""

MOST_BYTES = 32 << 20
"""About how many bytes the list of sockets may have."""

MOST_ERRORS = 100
"""How many errors of a configuration are told."""

_SUMMED = 256
"""Sockets of one step of the totals."""

_LISTED = 8
"""Sockets of one piece of the list."""


class ConfigurationState:
    """
    How the configuration was read.

    @ivar read: when it was last read with success, seconds since 1970.
    @ivar filesRead: when the files that it names were.
    @ivar failed: when reading either has failed since; C{None} if it has not.
    @ivar errors: what was wrong then, line by line.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """
        @param now: the time of day.
        """
        self._now = now
        self._failedOfFiles = False
        self.read = self.filesRead = now()
        self.failed: float | None = None
        self.errors: tuple[str, ...] = ()

    def succeeded(self, onlyFiles: bool = False) -> None:
        """
        There is a new policy.

        @param onlyFiles: its files alone were read: this says nothing of a configuration that has errors.
        """
        self.filesRead = self._now()
        if not onlyFiles:
            self.read = self.filesRead
        if not onlyFiles or self._failedOfFiles:
            self.failed, self.errors = None, ()

    def hasFailed(self, error: Exception, onlyFiles: bool = False) -> None:
        """
        The old policy stays in force.

        @param error: a L{ConfigurationError}, or anything else that has come up.
        """
        self.failed, self._failedOfFiles = self._now(), onlyFiles
        lines = error.errors if isinstance(error, ConfigurationError) else [str(error) or type(error).__name__]
        self.errors = tuple(oneLine(line) for line in lines[:MOST_ERRORS])
        if len(lines) > MOST_ERRORS:
            self.errors += (f"{len(lines) - MOST_ERRORS} more errors are not shown",)


@dataclass
class Parts:
    """
    The parts of the daemon that are shown.

    @ivar services: what the sockets share.
    @ivar dispatcher: knows the sockets.
    @ivar buffers: of the relays.
    @ivar sessions: those that clients can resume.
    @ivar contexts: those of clients that are kept.
    @ivar revocation: the answers in memory.
    @ivar configuration: how it was read.
    @ivar kernelState: how the daemon stands to the kernel module.
    @ivar supervisors: those that are connected.
    @ivar kernel: the registration with the kernel module; C{None} if there is none.
    @ivar uid: the user that the daemon runs as; C{twistd} may change it after the start.
    @ivar pid: the daemon's process; the same.
    """

    services: Services
    dispatcher: Dispatcher
    buffers: BufferPool
    sessions: Sized
    contexts: Sized
    revocation: Cache
    configuration: ConfigurationState
    kernelState: Callable[[], State]
    supervisors: Callable[[], Sequence[IInterceptor]]
    kernel: Callable[[], IInterceptor | None]
    uid: Callable[[], int]
    pid: Callable[[], int]


class _Sum:
    """Adds sockets up."""

    def __init__(self, ended: Tally) -> None:
        """
        @param ended: what is known of the connections that are no more.
        """
        self.stages: Counter[Stage] = Counter()
        self.connections = 0
        self.received = ended.received
        self.sent = ended.sent

    def add(self, socket: TLSSocket) -> None:
        """Add one."""
        self.stages[socket.stage] += 1
        self.connections += socket.hasRelay
        received, sent = socket.carried
        self.received += received
        self.sent += sent


class Status:
    """
    Makes the document.

    @ivar isStopping: whether the daemon is being stopped.
    @ivar userName: the name of the user that it runs as; "" if that is not known.
    """

    def __init__(self, parts: Parts, now: Callable[[], float] = time.time) -> None:
        """
        @param now: the time of day.
        """
        self._parts = parts
        self._now = now
        self._clock = parts.services.clock
        self._started = self._clock.seconds()
        self._startedAt = now()
        self._libraries = _libraries()
        self.isStopping = False
        self.userName = ""

    def seesAll(self, uid: int) -> bool:
        """Whether this user sees everything."""
        return uid in (0, self._parts.uid())

    def pieces(self, uid: int) -> Iterator[str]:
        """
        Make the document for a user.

        @return: its text in pieces, of which some are empty: each stands for about a millisecond of work.
        """
        parts = self._parts
        seesAll = self.seesAll(uid)
        counts = parts.services.counts
        # One moment: what has ended is counted, what lives is in the list and keeps its bytes when it ends.
        sockets = parts.dispatcher.allSockets()
        everything, own = _Sum(counts.all), _Sum(counts.ofUser(uid))
        shown: dict[int, list[TLSSocket]] = {}
        for number, socket in enumerate(sockets, 1):
            isOwn = socket.caller.uid == uid
            if isOwn:
                own.add(socket)
            if seesAll:
                everything.add(socket)
            if isOwn or seesAll:
                shown.setdefault(socket.caller.uid, []).append(socket)
            if number % _SUMMED == 0:
                yield ""
        del sockets
        head = json.dumps(self._head(uid, seesAll, everything, own))
        yield head[:-1] + ', "sockets": ['
        yield from self._list(shown, MOST_LISTED if seesAll else MOST_LISTED_OF_USER)

    def _list(self, shown: dict[int, list[TLSSocket]], most: int) -> Iterator[str]:
        left = sum(len(each) for each in shown.values())
        size = listed = 0
        piece: list[str] = []
        for number, socket in enumerate(_inTurns(shown.values()), 1):
            if listed >= most or size >= MOST_BYTES:
                break
            left -= 1
            facts = socket.facts()
            if facts.stage is not Stage.CLOSED or facts.isOpen:  # else it has gone meanwhile
                text = json.dumps(describeSocket(facts, self._clock.seconds()))
                piece.append(f"{',' if listed else ''}\n{text}")
                listed += 1
                size += len(text)
            if number % _LISTED == 0:
                yield "".join(piece)
                piece.clear()
        yield "".join(piece) + f'\n], "sockets_not_listed": {left}}}\n'

    def _head(self, uid: int, seesAll: bool, everything: _Sum, own: _Sum) -> dict[str, Any]:
        """Everything but the list of sockets."""
        parts = self._parts
        state = parts.kernelState()
        interceptors = self._interceptors(None if seesAll else uid)
        return {
            "ssa_status": FORMAT,
            "view": "all" if seesAll else "user",
            "time": _time(self._now()),
            "daemon": self._daemon(seesAll),
            "kernel_module": {"state": state.name.lower(), "description": state.value},
            "configuration": self._configuration() if seesAll else None,
            "totals": self._totals(everything) if seesAll else None,
            "limits": self._limits(sum(everything.stages.values())) if seesAll else None,
            "caches": self._caches() if seesAll else None,
            "user": self._user(uid, own),
            "interceptors": [
                {"kind": kind, "uid": each.peerUID, "pid": each.peerPID, "sockets": parts.dispatcher.socketsOf(each)}
                for kind, each in interceptors[:MOST_INTERCEPTORS]
            ],
            "interceptors_not_listed": max(0, len(interceptors) - MOST_INTERCEPTORS),
        }

    def _daemon(self, seesAll: bool) -> dict[str, Any]:
        parts = self._parts
        return {
            "version": __version__,
            "state": "stopping" if self.isStopping else "serving",
            "started": _time(self._startedAt),
            "uptime_seconds": round(self._clock.seconds() - self._started, 3),
            "pid": parts.pid() if seesAll else None,
            "uid": parts.uid() if seesAll else None,
            "user": (oneLine(self.userName) or None) if seesAll else None,
            "libraries": self._libraries if seesAll else None,
        }

    def _configuration(self) -> dict[str, Any]:
        state = self._parts.configuration
        return {
            "file": oneLine(self._parts.services.policy.file) or None,
            "read": _time(state.read),
            "files_read": _time(state.filesRead),
            "failed": None if state.failed is None else _time(state.failed),
            "errors": list(state.errors),
        }

    def _totals(self, everything: _Sum) -> dict[str, Any]:
        parts = self._parts
        return {
            "sockets": sum(everything.stages.values()),
            "stages": {stage.value: everything.stages[stage] for stage in Stage},
            "connections": everything.connections,
            "handshakes": parts.dispatcher.handshakes,
            "events": parts.dispatcher.events,
            "bytes_received": everything.received,
            "bytes_sent": everything.sent,
            "attempts": _attempts(parts.services.counts.all),
        }

    def _limits(self, sockets: int) -> dict[str, Any]:
        parts = self._parts
        limits = parts.services.policy.default.limits
        return {
            "sockets": _used(sockets, limits.maxSockets),
            "handshakes": _used(parts.dispatcher.handshakes, limits.maxHandshakes),
            "relay_buffers": _used(parts.buffers.lent, limits.maxRelayBuffers),
            "supervisors": _used(len(parts.supervisors()), limits.maxInterceptors),
        }

    def _caches(self) -> dict[str, Any]:
        parts = self._parts
        return {
            "sessions": len(parts.sessions),
            "contexts": len(parts.contexts),
            "revocation_answers": len(parts.revocation),
            "revocation_bytes": parts.revocation.size,
        }

    def _user(self, uid: int, own: _Sum) -> dict[str, Any]:
        """What concerns the user who asks, whoever that is."""
        limits = self._parts.services.policy.default.limits
        return {
            "uid": uid,
            "sockets": sum(own.stages.values()),
            "max_sockets": limits.maxSockets if uid == 0 else limits.maxSocketsPerUser,
            "connections": own.connections,
            "bytes_received": own.received,
            "bytes_sent": own.sent,
            "attempts": _attempts(self._parts.services.counts.ofUser(uid)),
        }

    def _interceptors(self, uid: int | None) -> list[tuple[str, IInterceptor]]:
        """
        Those that one user may see.

        @param uid: the user; C{None}: all of them.
        """
        kernel = self._parts.kernel()
        found = [("supervisor", each) for each in self._parts.supervisors() if uid in (None, each.peerUID)]
        return [("kernel", kernel), *found] if kernel is not None and uid is None else found


def _inTurns(groups: Iterable[list[TLSSocket]]) -> Iterator[TLSSocket]:
    """One of each group, then the next one of each."""
    waiting = deque(iter(group) for group in groups)
    while waiting:
        group = waiting.popleft()
        for socket in group:
            yield socket
            waiting.append(group)
            break


def _used(used: int, limit: int) -> dict[str, int]:
    return {"used": used, "limit": limit}


def _attempts(tally: Tally) -> dict[str, Any]:
    def ended(attempts: Attempts) -> dict[str, Any]:
        return {"succeeded": attempts.succeeded, "failed": attempts.failed, "errors": dict(sorted(attempts.errors.items()))}

    return {role.name.lower(): ended(attempts) for role, attempts in tally.attempts.items()}


def _time(seconds: float) -> str:
    """Write a time as RFC 3339 has it, in UTC, as in the log."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def _libraries() -> dict[str, str]:
    return {
        "openssl": SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode("ascii", "backslashreplace"),
        "pyopenssl": OpenSSL.__version__,
        "cryptography": cryptography.__version__,
        "twisted": twistedVersion,
        "python": platform.python_version(),
    }
