# SPDX-License-Identifier: MIT
"""
One socket as C{ssa status} shows it.

C{docs/status-fields.inc} says what each field means.  Nothing here is secret, and no option is told but whom the peer must be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ssa.api import Address, InternetAddress, Role
from ssa.errors import SSAError, oneLine
from ssa.factories import Secured
from ssa.listening import Listener
from ssa.options import IConnectionInfo
from ssa.policy.profile import OLD_VERSION_NAMES, VERSION_NAMES, Caller, Profile
from ssa.states import Stage

__all__ = ["LISTENER", "Attempt", "SocketFacts", "describeSocket"]

LISTENER = "listener"
"""The role of a socket that listens; the others are those of L{Role}."""


@dataclass
class Attempt:
    """
    What a program has last asked a socket to become.

    @ivar role: L{CLIENT<Role.CLIENT>} or L{SERVER<Role.SERVER>}; C{None} for a listener.
    @ivar local: the address that it listens on; C{None} for all but listeners.
    @ivar remote: where it connects to; C{None} for listeners, and for what they have accepted.
    @ivar identity: whom the peer must prove to be; "" for nobody in particular.
    """

    role: Role | None
    local: InternetAddress | None = None
    remote: Address | None = None
    identity: str = ""

    def where(self) -> dict[str, object]:
        """Fields for the log."""
        if self.remote is not None:
            return {"destination": self.remote.host, "port": self.remote.port}
        return {"address": self.local.host, "port": self.local.port} if self.local is not None else {}


@dataclass(frozen=True)
class SocketFacts:
    """
    What is known of a socket.

    @ivar id: its TLS_ID.
    @ivar stage: where it stands.
    @ivar caller: the program.
    @ivar attempt: what it has last been asked to become; C{None} if it is new.
    @ivar profile: the policy in force; C{None} if none is yet.
    @ivar secured: its connection, also when that has ended; C{None} if there was none.
    @ivar isOpen: whether the connection lives.
    @ivar carried: plaintext that the connection has brought to the program, and taken from it, bytes.
    @ivar listener: C{None} if it does not listen.
    @ivar error: TLS_ERROR.
    @ivar made: when it was made, by the daemon's clock.
    @ivar established: when the connection was; C{None} if there was none.
    """

    id: int
    stage: Stage
    caller: Caller
    attempt: Attempt | None
    profile: Profile | None
    secured: Secured | None
    isOpen: bool
    carried: tuple[int, int]
    listener: Listener | None
    error: str
    made: float
    established: float | None


def describeSocket(facts: SocketFacts, now: float) -> dict[str, Any]:
    """
    Say what C{ssa status} shows.

    @param now: by the daemon's clock.
    @return: for L{json.dumps}; every text is one printable line.
    """
    caller, attempt, secured, listener = facts.caller, facts.attempt, facts.secured, facts.listener
    local = secured.external if secured is not None else attempt.local if attempt is not None else None
    remote = secured.remote if secured is not None else attempt.remote if attempt is not None else None
    received, sent = facts.carried
    return {
        "id": facts.id,
        "stage": facts.stage.value,
        "role": None if attempt is None else LISTENER if attempt.role is None else attempt.role.name.lower(),
        "uid": caller.uid,
        "pid": caller.pid,
        "comm": oneLine(caller.comm),
        "executable": oneLine(caller.executable),
        "local": None if local is None else str(local),
        "remote": None if remote is None else oneLine(str(remote)),
        "identity": (oneLine(attempt.identity) or None) if attempt is not None else None,
        "sections": None if facts.profile is None else ["default", *map(oneLine, facts.profile.sections)],
        "age_seconds": round(now - facts.made, 3),
        "bytes_received": received,
        "bytes_sent": sent,
        "error": oneLine(facts.error) or None,
        "connection": None if secured is None else _describeConnection(secured.info, facts, now),
        "listener": None if listener is None else _describeListener(listener),
    }


def _describeConnection(info: IConnectionInfo, facts: SocketFacts, now: float) -> dict[str, Any]:
    number = info.version()
    return {
        "open": facts.isOpen,
        "age_seconds": round(now - (facts.established or now), 3),
        "version": VERSION_NAMES.get(number) or OLD_VERSION_NAMES.get(number) or f"0x{number:04x}",
        "cipher": _known(info.cipher),
        "group": _known(info.group),
        "alpn": oneLine(info.applicationProtocol().decode("ascii", "backslashreplace")) or None,
        "resumed": info.resumed(),
        "data_path": info.dataPath(),
    }


def _describeListener(listener: Listener) -> dict[str, Any]:
    return {"accepted": listener.accepted, "refused": listener.refused, "in_flight": listener.inFlight}


def _known(tell: Callable[[], str]) -> str | None:
    """What the TLS library tells, if it can."""
    try:
        return oneLine(tell())
    except SSAError:
        return None
