# SPDX-License-Identifier: MIT
"""What the daemon's sockets need around them, in memory and under the test's control."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from zope.interface import implementer

from ssa.admission import Admission
from ssa.api import DataPath, InternetAddress
from ssa.errors import SSAError
from ssa.factories import TLSFactory
from ssa.interfaces import Fetched, IInterceptor, IPlaintextEnd
from ssa.options import SocketOptions
from ssa.plaintext import TCPEnd
from ssa.policy.profile import Policy, Profile
from ssa.sockets import Services
from ssa.tls.identity import Identity

REMOTE = InternetAddress(socket.AF_INET, "192.0.2.1", 443)
LOCAL = InternetAddress(socket.AF_INET, "192.0.2.99", 50000)


def tcpPair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = socket.create_connection(listener.getsockname())
        second, _ = listener.accept()
    return first, second


@implementer(IReactorFDSet)
class FakeReactor(Clock):
    """Remembers who watches what."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def removeAll(self) -> list[Any]:
        return []

    def getReaders(self) -> list[Any]:
        return list(self.readers)

    def getWriters(self) -> list[Any]:
        return list(self.writers)

    def writable(self) -> None:
        """Everything that waits to be writable is."""
        for each in list(self.writers):
            each.doWrite()

    def readable(self) -> None:
        """Everything that waits to be readable is."""
        for each in list(self.readers):
            each.doRead()


@implementer(IInterceptor)
class FakeInterceptor:
    """Requests wait until the test answers them."""

    peerUID = 1000
    peerPID = 4242

    def __init__(self) -> None:
        self.fetches: list[tuple[int, InternetAddress | None, Deferred[Fetched]]] = []
        self.establishes: list[tuple[int, Deferred[int]]] = []
        self.accepts: list[tuple[int, Deferred[tuple[int, int]]]] = []
        self.held: list[socket.socket] = []

    def fetch(self, id: int, remote: InternetAddress | None = None) -> Deferred[Fetched]:
        pending: Deferred[Fetched] = Deferred()
        self.fetches.append((id, remote, pending))
        return pending

    def established(
        self, id: int, external: InternetAddress, remote: InternetAddress, dataPath: DataPath
    ) -> Deferred[int]:
        pending: Deferred[int] = Deferred()
        self.establishes.append((id, pending))
        return pending

    def accepted(
        self, id: int, external: InternetAddress, remote: InternetAddress, connection: socket.socket
    ) -> Deferred[tuple[int, int]]:
        pending: Deferred[tuple[int, int]] = Deferred()
        self.accepts.append((id, pending))
        return pending

    def plaintextEnd(self, id: int, sock: socket.socket) -> TCPEnd:
        return TCPEnd(sock)

    def giveReal(self, sock: socket.socket | None = None) -> None:
        """Answer the last fetch with a connected socket."""
        if sock is None:
            sock, other = tcpPair()
            self.held.append(other)
        self.fetches.pop()[2].callback(Fetched(sock.detach(), LOCAL, REMOTE))

    def plaintext(self) -> int:
        """A plaintext end; ours is held."""
        ours, theirs = socket.socketpair()
        self.held.append(ours)
        return theirs.detach()

    def close(self) -> None:
        """Close what the test still holds."""
        for sock in self.held:
            sock.close()


class FakeRelay:
    """A relay that does nothing."""

    def __init__(
        self, real: socket.socket, plaintext: IPlaintextEnd, ended: Callable[[SSAError | None], None]
    ) -> None:
        self.real = real
        self.plaintext = plaintext
        self.ended = ended
        self.closed = False
        self.aborted = ""
        self.bytesIn = 0
        self.bytesOut = 0

    def programClosed(self) -> None:
        self.closed = True

    def abort(self, reason: str) -> None:
        self.aborted = reason
        self.end(SSAError(104, reason))

    def end(self, error: SSAError | None = None) -> None:
        """Both sides are done."""
        self.real.close()
        self.plaintext.close()
        self.ended(error)


class FakeSecured:
    """A finished handshake."""

    info: Any = None

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.external = LOCAL
        self.remote = REMOTE
        self.relays: list[FakeRelay] = []
        self.aborted = False

    def relay(self, plaintext: IPlaintextEnd, ended: Callable[[SSAError | None], None], user: int) -> FakeRelay:
        self.relays.append(FakeRelay(self.real, plaintext, ended))
        return self.relays[-1]

    def abort(self) -> None:
        self.aborted = True
        self.real.close()


class FakeFactory:
    """Handshakes that end when the test says so."""

    def __init__(self, identity: Identity | None) -> None:
        self.identity = identity
        self.handshakes: list[tuple[socket.socket, Deferred[Any]]] = []
        self.closed = 0

    def handshake(self, sock: socket.socket) -> Deferred[Any]:
        pending: Deferred[Any] = Deferred(lambda _: sock.close())
        self.handshakes.append((sock, pending))
        return pending

    def close(self) -> None:
        self.closed += 1

    def succeed(self) -> FakeSecured:
        """The oldest handshake succeeds."""
        sock, pending = self.handshakes.pop(0)
        secured = FakeSecured(sock)
        pending.callback(secured)
        return secured

    def refuse(self, error: SSAError) -> None:
        """The oldest handshake fails."""
        sock, pending = self.handshakes.pop(0)
        sock.close()
        pending.errback(error)


class FakeFactories:
    """Remembers the factories."""

    def __init__(self) -> None:
        self.made: list[FakeFactory] = []
        self.error: Exception | None = None

    def _make(self, identity: Identity | None) -> TLSFactory:
        if self.error is not None:
            raise self.error
        self.made.append(FakeFactory(identity))
        return self.made[-1]

    def client(self, profile: Profile, options: SocketOptions, identity: Identity) -> TLSFactory:
        return self._make(identity)

    def server(self, profile: Profile, options: SocketOptions) -> TLSFactory:
        return self._make(None)


class FakeResolver:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, ...], Deferred[list[InternetAddress]]]] = []

    def resolve(
        self, host: str, port: int, families: tuple[int, ...], timeout: float
    ) -> Deferred[list[InternetAddress]]:
        pending: Deferred[list[InternetAddress]] = Deferred()
        self.asked.append((host, families, pending))
        return pending


class Around:
    """All of it."""

    def __init__(self, profile: Profile | None = None) -> None:
        self.reactor = FakeReactor()
        self.interceptor = FakeInterceptor()
        self.factories = FakeFactories()
        self.resolver = FakeResolver()
        chosen = profile if profile is not None else Profile()
        resolver: Any = self.resolver
        self.services = Services(
            self.reactor,
            self.reactor,
            Policy(chosen),
            resolver,
            Admission(self.reactor, chosen.limits.maxHandshakes),
            self.factories,
        )


def openDescriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
