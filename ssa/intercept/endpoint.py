# SPDX-License-Identifier: MIT
"""
What the supervisor knows of each TLS socket, and the table of them.

The supervisor keeps no duplicate of a program's socket: the kernel must see the last close(2) when it happens.  A socket is
known by its inode number, which proc(5) tells cheaply, and then by its SO_COOKIE, which is never used twice.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred

from ssa.api import Address, InternetAddress
from ssa.intercept.caller import Credentials
from ssa.intercept.carried import Defaults
from ssa.intercept.namespace import RawAddress, socketCookie
from ssa.intercept.network import Attempt, IPrivateNetwork
from ssa.intercept.notify import Notification


class State(enum.Enum):
    """The supervisor's view of a TLS socket; docs/states.rst draws the daemon's, which has more."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    LISTENING = "listening"
    DEAD = "dead"


@dataclass(eq=False)
class Home:
    """
    A network namespace that programs live in.

    @ivar inode: its number.
    @ivar fd: a descriptor of it, or L{None}: the supervisor's own.
    @ivar network: where the program's ends of its TLS sockets live.
    @ivar defaults: what the options of a new socket there are.
    """

    inode: int
    fd: int | None
    network: IPrivateNetwork
    defaults: Defaults


@dataclass(eq=False)
class Waiter:
    """
    A blocked caller.

    @ivar call: his call.
    @ivar fd: the number that he used.
    @ivar cancel: stops his timeout and whatever watches him.
    @ivar listener: a copy of the socket that he waits at in accept(2), until L{cancel}.
    """

    call: Notification
    fd: int
    cancel: Callable[[], None]
    listener: socket.socket | None = None


@dataclass(eq=False)
class Connection:
    """
    A finished connection that waits for accept(2).

    @ivar endpoint: what it will be.
    @ivar sock: the program's end, not yet in any program.
    @ivar listener: where it came in.
    @ivar bell: our end of the connection that makes the listener readable, or L{None}.
    """

    endpoint: Endpoint
    sock: socket.socket
    listener: Endpoint
    bell: socket.socket | None = None


@dataclass(eq=False)
class Overflow:
    """A finished connection that waits for room in the listener's backlog."""

    external: InternetAddress
    remote: InternetAddress
    done: Deferred[tuple[int, int]]


@dataclass(eq=False)
class Endpoint:
    """
    One TLS socket.

    @ivar id: its number on the link.
    @ivar family: AF_INET or AF_INET6.
    @ivar cookie: SO_COOKIE of the program's end.
    @ivar inode: inode number of the program's end.
    @ivar home: where it lives.
    @ivar session: the daemon link that it was announced on; a later daemon does not know it.
    @ivar refused: the errno with which the daemon refused it, or 0.
    @ivar real: the real TCP socket, while the supervisor has it.
    @ivar bound: where the program bound it, or where a listener was bound by itself.
    @ivar external: our address of the connection.
    @ivar remote: the peer's address.
    @ivar target: where the program wants to connect to.
    @ivar attempt: what holds the program's socket in SYN_SENT.
    @ivar back: whether the program's end lives in the back of the private network.
    @ivar tried: whether it has been in an attempt, which the kernel must forget before the next one.
    @ivar device: the interface that the program bound it to (SO_BINDTODEVICE), NUL-terminated, or b"".
    @ivar caller: who connects or listens.
    @ivar pid: the thread that connected, to find the socket again.
    @ivar fd: the number that it used.
    @ivar waiters: the callers blocked in connect(2) or accept(2).
    @ivar error: the errno that SO_ERROR or the next connect(2) will tell, or 0.
    @ivar reason: why the supervisor itself refused the last call (TLS_ERROR), or "".
    @ivar backlog: of a listener.
    @ivar name: of a listener: getsockname(2) of the program's end.
    @ivar ready: of a listener: connections that wait, by the port of their bell.
    @ivar overflow: of a listener: connections beyond the backlog.
    """

    id: int
    family: int
    cookie: int
    inode: int
    home: Home
    session: int
    state: State = State.NEW
    refused: int = 0
    real: socket.socket | None = None
    bound: InternetAddress | None = None
    external: InternetAddress | None = None
    remote: InternetAddress | None = None
    target: Address | None = None
    attempt: Attempt | None = None
    back: bool = False
    tried: bool = False
    device: bytes = b""
    caller: Credentials | None = None
    pid: int = 0
    fd: int = -1
    waiters: list[Waiter] = field(default_factory=list)
    error: int = 0
    reason: str = ""
    backlog: int = 0
    name: RawAddress = ()
    ready: dict[int, Connection] = field(default_factory=dict)
    overflow: list[Overflow] = field(default_factory=list)

    @classmethod
    def of(cls, id: int, sock: socket.socket, home: Home, session: int) -> Endpoint:
        """Make one for a socket that a program will get."""
        return cls(id, int(sock.family), socketCookie(sock), os.fstat(sock.fileno()).st_ino, home, session)

    def closeReal(self) -> None:
        """Close the supervisor's copy of the real socket, if it has one."""
        if self.real is not None:
            self.real.close()
            self.real = None


class EndpointTable:
    """All TLS sockets that some program has."""

    def __init__(self) -> None:
        self._byInode: dict[int, Endpoint] = {}
        self._byCookie: dict[int, Endpoint] = {}
        self._byID: dict[int, Endpoint] = {}
        self._listeners: dict[tuple[Home, RawAddress], list[Endpoint]] = {}

    def __len__(self) -> int:
        return len(self._byID)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(list(self._byID.values()))

    def add(self, endpoint: Endpoint) -> None:
        """Know a socket from now on."""
        self._byInode[endpoint.inode] = endpoint
        self._byCookie[endpoint.cookie] = endpoint
        self._byID[endpoint.id] = endpoint

    def remove(self, endpoint: Endpoint) -> None:
        """Forget a socket; harmless if it is not known."""
        if self._byInode.get(endpoint.inode) is endpoint:
            del self._byInode[endpoint.inode]
        self._byCookie.pop(endpoint.cookie, None)
        self._byID.pop(endpoint.id, None)
        sharers = self._listeners.get((endpoint.home, endpoint.name), [])
        if endpoint in sharers:
            sharers.remove(endpoint)
            if not sharers:
                del self._listeners[endpoint.home, endpoint.name]

    def listens(self, endpoint: Endpoint) -> None:
        """A socket, whose C{name} is known now, has become a listener; harmless if it was one."""
        sharers = self._listeners.setdefault((endpoint.home, endpoint.name), [])
        if endpoint not in sharers:
            sharers.append(endpoint)

    def listenersAt(self, home: Home, name: RawAddress) -> list[Endpoint]:
        """The listeners with a name: several where they share it (SO_REUSEPORT)."""
        return list(self._listeners.get((home, name), ()))

    def hasMirror(self, home: Home, local: InternetAddress, remote: InternetAddress) -> bool:
        """Whether the other end of a connection is a TLS socket here too, in the front."""
        return any(
            one.home is home and not one.back and (one.external, one.remote) == (remote, local)
            for one in self._byID.values()
            if one.state in (State.CONNECTING, State.CONNECTED)
        )

    def byInode(self, inode: int) -> Endpoint | None:
        """The socket with an inode number; check the cookie before you believe it."""
        return self._byInode.get(inode)

    def byCookie(self, cookie: int) -> Endpoint | None:
        """The socket with a cookie."""
        return self._byCookie.get(cookie)

    def byID(self, id: int) -> Endpoint | None:
        """The socket with a number on the link."""
        return self._byID.get(id)
