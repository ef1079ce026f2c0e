# SPDX-License-Identifier: MIT
"""
One TLS client or server factory for each tagged socket.

A factory is built once, from the policy's profile and the socket's options,
and does the handshake on each real TCP connection that it is given: one for
a client (or one per address that is tried), any number for a listener.  This is
the only place where the life of a socket (L{ssa.sockets}) meets TLS.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred

from ssa.api import InternetAddress
from ssa.errors import SSAError
from ssa.interfaces import IPlaintextEnd
from ssa.options import IConnectionInfo, SocketOptions
from ssa.policy.profile import Profile
from ssa.tls.identity import Identity


class RunningRelay(Protocol):
    """A connection whose data moves."""

    def programClosed(self) -> None:
        """The program has closed its last descriptor: send what it wrote, then close_notify."""

    def abort(self, reason: str) -> None:
        """
        Cut both sides; the program sees ECONNRESET.

        @param reason: for TLS_ERROR.
        """

    @property
    def bytesIn(self) -> int:
        """Plaintext delivered to the program, bytes."""

    @property
    def bytesOut(self) -> int:
        """Plaintext taken from the program and sent, bytes."""


class Secured(Protocol):
    """A connection whose handshake has succeeded; it owns its real socket."""

    @property
    def info(self) -> IConnectionInfo:
        """What getsockopt(2) tells of it."""

    @property
    def real(self) -> socket.socket:
        """The real socket."""

    @property
    def external(self) -> InternetAddress:
        """Our real address."""

    @property
    def remote(self) -> InternetAddress:
        """The peer's real address."""

    def relay(self, plaintext: IPlaintextEnd, ended: Callable[[SSAError | None], None], user: int) -> RunningRelay:
        """
        Begin to move data.

        @param plaintext: the program's side; owned by the relay from now on.
        @param ended: called once, later, when both sides are closed, with the reason if it was not a clean end.
        @param user: the user id that its buffers count for.
        """

    def abort(self) -> None:
        """Give the connection up before there is a relay."""


class TLSFactory(Protocol):
    """Does handshakes for one tagged socket."""

    def handshake(self, sock: socket.socket) -> Deferred[Secured]:
        """
        @param sock: a connected, non-blocking TCP socket; owned by the factory from now on.
        @return: fails with L{SSAError} (also after the profile's HandshakeTimeout); may be cancelled.
        """

    def close(self) -> None:
        """Nothing more is asked of it; to be called once for each that was made for a server."""


class MakesFactories(Protocol):
    """Builds the factories."""

    def client(self, profile: Profile, options: SocketOptions, identity: Identity) -> TLSFactory:
        """
        @param identity: whom the peer must prove to be.
        @raise SSAError: ENOKEY and others, the options do not fit together.
        """

    def server(self, profile: Profile, options: SocketOptions) -> TLSFactory:
        """
        @raise SSAError: ENOKEY, no certificate, or chain and key do not match.
        """
