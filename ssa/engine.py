# SPDX-License-Identifier: MIT
"""
The real TLS factories: L{ssa.tls} for the handshake, L{ssa.relay} for the data.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Literal

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from ssa.errors import Cause, SSAError, failed
from ssa.factories import RunningRelay, Secured, TLSFactory
from ssa.interfaces import IPlaintextEnd
from ssa.options import SocketOptions
from ssa.policy.profile import Profile
from ssa.realsocket import localAddress, remoteAddress
from ssa.relay import Relay, RelayPool
from ssa.tcpstate import close
from ssa.tls.connection import ConnectionInfo
from ssa.tls.contexts import clientConnection, serverConnection, serverContexts
from ssa.tls.handshake import Handshake
from ssa.tls.identity import Identity
from ssa.validating import Validating, peerOf


class TLSFactories:
    """Builds the factory of each tagged socket (L{ssa.factories.MakesFactories})."""

    def __init__(self, reactor: Any, clock: IReactorTime, relays: RelayPool) -> None:
        """
        @param reactor: watches the sockets of handshakes; also an C{IReactorTime}.
        @param clock: the relays' clock.
        @param relays: what all relays share.
        """
        self._reactor = reactor
        self._clock = clock
        self._relays = relays
        self._validating = Validating(reactor)

    def client(self, profile: Profile, options: SocketOptions, identity: Identity) -> TLSFactory:
        """
        See L{ssa.factories.MakesFactories}.

        @raise SSAError: ENOKEY, key and chain do not go together.
        """
        options.credentials()

        def connect(sock: socket.socket) -> SSL.Connection:
            return clientConnection(profile, options, sock, identity)

        return _Factory(self._reactor, self._clock, self._relays, profile, connect, False, self._validating)

    def server(self, profile: Profile, options: SocketOptions) -> TLSFactory:
        """
        See L{ssa.factories.MakesFactories}.

        @raise SSAError: ENOKEY, no certificate, or key and chain do not go together.
        """
        contexts = serverContexts(profile, options)

        def accept(sock: socket.socket) -> SSL.Connection:
            return serverConnection(contexts, sock)

        return _Factory(self._reactor, self._clock, self._relays, profile, accept, True, self._validating)


class _Factory:
    """One side of TLS, for one tagged socket."""

    def __init__(
        self,
        reactor: Any,
        clock: IReactorTime,
        relays: RelayPool,
        profile: Profile,
        make: Callable[[socket.socket], SSL.Connection],
        accepts: bool,
        validating: Validating,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._relays = relays
        self._profile = profile
        self._make = make
        self._accepts = accepts
        self._validating = validating

    def handshake(self, sock: socket.socket) -> Deferred[Secured]:
        """See L{TLSFactory}."""
        return Deferred.fromCoroutine(self._handshake(sock))

    async def _handshake(self, sock: socket.socket) -> Secured:
        try:
            external, remote = localAddress(sock), remoteAddress(sock)
            handshake = Handshake(
                self._reactor, self._make(sock), sock, self._profile.handshakeTimeout, where=str(remote)
            )
        except SSAError as error:
            close(sock, reset=False)
            if error.errno == errno.ENOTCONN:
                raise Cause.CLOSED_IN_HANDSHAKE.error("the peer was gone before it began") from error
            raise
        except BaseException:
            close(sock, reset=False)
            raise
        began = self._clock.seconds()
        try:
            connection = await handshake.start()
        except SSAError as error:
            if error.errno == errno.ECANCELED:
                raise CancelledError from error
            raise
        if self._profile.validation:
            await self._validate(connection, sock, remote, self._clock.seconds() - began)
        info = ConnectionInfo(connection, self._accepts)
        return _Secured(self._clock, self._relays, self._profile, connection, info, sock, external, remote)


    async def _validate(self, connection: SSL.Connection, sock: socket.socket, remote: Any, spent: float) -> None:
        """
        Ask the validation plug-ins; all other checks have succeeded.

        @param sock: closed if the peer is refused.
        @param spent: the seconds that the handshake has taken.
        @raise SSAError: the peer is refused.
        """
        try:
            peer = peerOf(connection, remote, self._accepts)
            if peer is not None:
                await self._validating.validate(self._profile, peer, self._profile.handshakeTimeout - spent)
        except BaseException:
            close(sock, reset=False)
            raise


class _Secured:
    """A finished handshake (L{Secured})."""

    def __init__(
        self,
        clock: IReactorTime,
        relays: RelayPool,
        profile: Profile,
        connection: SSL.Connection,
        info: ConnectionInfo,
        real: socket.socket,
        external: Any,
        remote: Any,
    ) -> None:
        self._clock = clock
        self._relays = relays
        self._truncation: Literal["error", "allow"] = "allow" if profile.truncation == "allow" else "error"
        self._connection = connection
        self.info = info
        self.real = real
        self.external = external
        self.remote = remote

    def relay(self, plaintext: IPlaintextEnd, ended: Callable[[SSAError | None], None], user: int) -> RunningRelay:
        """See L{Secured}."""
        reasons: list[str] = []
        relay = Relay(
            self._clock,
            self._connection,
            self.real,
            plaintext,
            self._relays,
            self._truncation,
            reasons.append,
            user=user,
        )

        def finished(_: object) -> None:
            ended(SSAError(errno.ECONNRESET, reasons[0]) if reasons else None)

        try:
            relay.start()
        except OSError as error:
            # Nothing is owned by the relay then.  Never a clean end: that would look like the peer's close_notify.
            reasons.append(failed(error.errno or errno.EIO, "the relay could not begin").reason)
            relay.abort(reasons[0])
        if relay.done.called:
            self._clock.callLater(0, finished, None)
        else:
            relay.done.addCallback(finished)
        return relay

    def abort(self) -> None:
        """See L{Secured}."""
        close(self.real, reset=False)
