# SPDX-License-Identifier: MIT
"""
The life of one TLS socket, as a state machine and nothing else.

What may happen in which state, and which errno a call gets that comes at the
wrong time, is here; what is then done is in L{ssa.sockets}.  C{docs/states.rst}
draws it, and a test compares the drawing with L{TRANSITIONS}.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol, cast

from automat import TypeMachineBuilder

from ssa.errors import SSAError


class Stage(Enum):
    """The states; the value is the name used in logs and in the drawing."""

    NEW = "new"
    RESOLVING = "resolving"
    CONNECTING = "connecting"
    HANDSHAKING = "handshaking"
    CONNECTED = "connected"
    OPENING = "opening"
    LISTENING = "listening"
    FAILED = "failed"
    CLOSED = "closed"

    @property
    def mayConfigure(self) -> bool:
        """Whether options that count for the next connect or listen may be set."""
        return self in (Stage.NEW, Stage.FAILED)

    @property
    def isPending(self) -> bool:
        """Whether a call is in progress that somebody may be waiting for."""
        return self in (Stage.RESOLVING, Stage.CONNECTING, Stage.HANDSHAKING, Stage.OPENING)


class Life(Protocol):
    """
    The inputs.  The first four are calls of the program: they raise
    L{SSAError} where the state forbids them.  The others are the daemon's own
    steps: one at the wrong time is a bug, C{automat.NoTransition}.
    """

    def resolve(self) -> None:
        """connect(2) to a name."""

    def connect(self) -> None:
        """connect(2) to an address."""

    def upgrade(self) -> None:
        """TLS_UPGRADE."""

    def listen(self) -> None:
        """listen(2)."""

    def addressFound(self) -> None:
        """The name has addresses, the first is being tried."""

    def transportConnected(self) -> None:
        """A TCP connection stands, the handshake begins."""

    def nextAddress(self) -> None:
        """The handshake has failed, and there is another address."""

    def established(self) -> None:
        """The handshake has succeeded and the data path stands."""

    def opened(self) -> None:
        """The listener accepts connections."""

    def fail(self) -> None:
        """What was in progress has failed."""

    def close(self) -> None:
        """The last descriptor is gone, or the daemon gives the socket up."""

    def stage(self) -> Stage:
        """The state."""


class _Known:
    """
    What the machine tells of itself.

    @ivar stage: its state.  The machine itself can be asked too, but looks through all its transitions to answer, and C{ssa
        status} asks every socket.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage


class _Life:
    """A machine with what it tells (L{Life})."""

    def __init__(self, machine: Life, known: _Known) -> None:
        self._machine = machine
        self._known = known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    def stage(self) -> Stage:
        """See L{Life}."""
        return self._known.stage


_builder = TypeMachineBuilder(Life, _Known)
_states = {stage: _builder.state(stage.value) for stage in Stage}

_STEPS: dict[str, Callable[[Life], None]] = {
    name: getattr(Life, name)
    for name in (
        "resolve",
        "connect",
        "upgrade",
        "listen",
        "addressFound",
        "transportConnected",
        "nextAddress",
        "established",
        "opened",
        "fail",
        "close",
    )
}

TRANSITIONS: tuple[tuple[Stage, str, Stage], ...] = (
    (Stage.NEW, "resolve", Stage.RESOLVING),
    (Stage.NEW, "connect", Stage.CONNECTING),
    (Stage.NEW, "upgrade", Stage.CONNECTING),
    (Stage.NEW, "listen", Stage.OPENING),
    (Stage.FAILED, "resolve", Stage.RESOLVING),
    (Stage.FAILED, "connect", Stage.CONNECTING),
    (Stage.FAILED, "upgrade", Stage.CONNECTING),
    (Stage.FAILED, "listen", Stage.OPENING),
    (Stage.RESOLVING, "addressFound", Stage.CONNECTING),
    (Stage.CONNECTING, "transportConnected", Stage.HANDSHAKING),
    (Stage.HANDSHAKING, "nextAddress", Stage.CONNECTING),
    (Stage.HANDSHAKING, "established", Stage.CONNECTED),
    (Stage.OPENING, "opened", Stage.LISTENING),
    (Stage.LISTENING, "listen", Stage.LISTENING),
    (Stage.RESOLVING, "fail", Stage.FAILED),
    (Stage.CONNECTING, "fail", Stage.FAILED),
    (Stage.HANDSHAKING, "fail", Stage.FAILED),
    (Stage.OPENING, "fail", Stage.FAILED),
    (Stage.LISTENING, "fail", Stage.FAILED),
    *((stage, "close", Stage.CLOSED) for stage in Stage),
)
"""(state, input, next state): everything that changes the state."""

_CONNECTS = ("resolve", "connect", "upgrade")
_CONNECTING = (Stage.RESOLVING, Stage.CONNECTING, Stage.HANDSHAKING)

REFUSALS: tuple[tuple[Stage, str, int, str], ...] = (
    *((stage, call, errno.EALREADY, "a connect is in progress") for stage in _CONNECTING for call in _CONNECTS),
    *((stage, "listen", errno.EINVAL, "a connect is in progress") for stage in _CONNECTING),
    *((Stage.CONNECTED, call, errno.EISCONN, "the socket is connected") for call in _CONNECTS),
    (Stage.CONNECTED, "listen", errno.EINVAL, "the socket is connected"),
    *((Stage.LISTENING, call, errno.EISCONN, "the socket is listening") for call in _CONNECTS),
    *((Stage.OPENING, call, errno.EALREADY, "a listen is in progress") for call in (*_CONNECTS, "listen")),
    *((Stage.CLOSED, call, errno.EBADF, "the socket is closed") for call in (*_CONNECTS, "listen")),
)
"""(state, call, errno, why): calls of the program at the wrong time, as TCP answers them (connect(2), listen(2))."""


def _arrival(stage: Stage) -> Callable[[Life, _Known], None]:
    def arrive(life: Life, known: _Known) -> None:
        known.stage = stage

    return arrive


def _refusal(number: int, why: str) -> Callable[[Life, _Known], None]:
    def refuse(life: Life, known: _Known) -> None:
        raise SSAError(number, why)

    return refuse


for _source, _step, _target in TRANSITIONS:
    if _source is _target:
        _states[_source].upon(_STEPS[_step]).loop().returns(None)
    else:
        _states[_source].upon(_STEPS[_step]).to(_states[_target])(_arrival(_target))
for _source, _step, _number, _why in REFUSALS:
    _states[_source].upon(_STEPS[_step]).loop()(_refusal(_number, _why))

_machine = _builder.build()


def newLife(stage: Stage = Stage.NEW) -> Life:
    """
    A life that begins in C{stage}: NEW, or CONNECTED for a socket that a listener has accepted.
    """
    known = _Known(stage)
    return cast(Life, _Life(_machine(known, _states[stage]), known))
