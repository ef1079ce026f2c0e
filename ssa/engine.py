# SPDX-License-Identifier: MIT
"""
The real TLS factories: L{ssa.tls} for the handshake, L{ssa.relay} for the data.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
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
from ssa.revocation.check import Revocation
from ssa.revocation.peer import PeerJudge
from ssa.revocation.stapling import Staples
from ssa.tcpstate import close
from ssa.tls.connection import ConnectionInfo, peerCheckOf
from ssa.tls.contexts import ContextCache, clientConnection
from ssa.tls.handshake import Handshake
from ssa.tls.identity import Identity
from ssa.tls.policyfiles import storeOf
from ssa.tls.servercontexts import ServerContexts, serverConnection, serverContexts
from ssa.tls.sessions import SessionCache
from ssa.validating import Validating, peerOf


class TLSFactories:
    """
    Builds the factory of each tagged socket (L{ssa.factories.MakesFactories}).

    @ivar sessions: those that clients can resume.
    @ivar contexts: those of clients that are kept.
    """

    def __init__(
        self, reactor: Any, clock: IReactorTime, relays: RelayPool, revocation: Revocation, staples: Staples
    ) -> None:
        """
        @param reactor: watches the sockets of handshakes; also an C{IReactorTime}.
        @param clock: the relays' clock.
        @param relays: what all relays share.
        @param revocation: knows whether peers' certificates are revoked.
        @param staples: the answers that servers staple.
        """
        self._reactor = reactor
        self._clock = clock
        self._relays = relays
        self._revocation = revocation
        self._staples = staples
        self._validating = Validating(reactor)
        self.sessions = SessionCache(clock.seconds)
        self.contexts = ContextCache(self.sessions.forgetTrust)

    def policyChanged(self) -> None:
        """
        Forget the sessions of all clients.  Most of what a new policy changes is in their keys; what files say that it names,
        as pins or logs, is not.
        """
        self.sessions.forgetAll()

    def client(self, profile: Profile, options: SocketOptions, identity: Identity) -> TLSFactory:
        """
        See L{ssa.factories.MakesFactories}.

        @raise SSAError: ENOKEY, key and chain do not go together; EPERM, the options leave nothing of the policy.
        """
        options.credentials()
        options.narrowed(profile)

        def connect(sock: socket.socket) -> SSL.Connection:
            return clientConnection(
                profile, options, sock, identity, self.contexts, self.sessions, remoteAddress(sock)
            )

        judge = PeerJudge(self._revocation, profile, options, isServer=False)
        return _Factory(self._reactor, self._clock, self._relays, profile, connect, judge, self._validating, False)

    def server(self, profile: Profile, options: SocketOptions) -> TLSFactory:
        """
        See L{ssa.factories.MakesFactories}.

        @raise SSAError: ENOKEY, no certificate, or key and chain do not go together.
        """
        contexts = serverContexts(profile, options)

        def accept(sock: socket.socket) -> SSL.Connection:
            return serverConnection(contexts, sock)

        judge = PeerJudge(self._revocation, profile, options, isServer=True)
        held = self._staple(contexts, profile, options)
        return _Factory(self._reactor, self._clock, self._relays, profile, accept, judge, self._validating, True, held)

    def _staple(self, contexts: ServerContexts, profile: Profile, options: SocketOptions) -> Callable[[], None]:
        """
        Have a listener staple.

        @return: ends it.
        """
        if not options.staples(profile):
            return lambda: None
        staples = self._staples

        def trusted() -> Sequence[x509.Certificate]:
            return storeOf(profile).certificates()

        held = [staples.hold(chain, trusted, not options.chains, options.owner) for chain in contexts.chains]
        contexts.staple = lambda certificate: staples.current(certificate.fingerprint(hashes.SHA256()))

        def release() -> None:
            while held:
                staples.release(held.pop())

        return release


class _Factory:
    """One side of TLS, for one tagged socket."""

    def __init__(
        self,
        reactor: Any,
        clock: IReactorTime,
        relays: RelayPool,
        profile: Profile,
        make: Callable[[socket.socket], SSL.Connection],
        judge: PeerJudge,
        validating: Validating,
        accepts: bool,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._relays = relays
        self._profile = profile
        self._make = make
        self._judge = judge
        self._accepts = accepts
        self._release = release
        self._validating = validating

    def handshake(self, sock: socket.socket) -> Deferred[Secured]:
        """See L{TLSFactory}."""
        return Deferred.fromCoroutine(self._handshake(sock))

    def close(self) -> None:
        """See L{TLSFactory}."""
        self._release()

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
        try:
            begun = self._clock.seconds()
            connection = await handshake.start()
        except SSAError as error:
            if error.errno == errno.ECANCELED:
                raise CancelledError from error
            raise
        try:
            await self._judge.judge(connection, self._profile.handshakeTimeout - (self._clock.seconds() - begun))
        except BaseException:
            _refuse(connection, sock)
            raise
        if self._profile.validation:
            await self._validate(connection, sock, remote, self._clock.seconds() - begun)
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
            _refuse(connection, sock)
            raise


def _refuse(connection: SSL.Connection, sock: socket.socket) -> None:
    """End a connection whose peer is refused after the handshake; the session that it has resumed is not offered again."""
    resumption = peerCheckOf(connection).resumption
    if resumption is not None:
        resumption.refused()
    close(sock, reset=False)


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
        check = peerCheckOf(self._connection)
        resumption = check.resumption
        if resumption is not None:
            resumption.established(self._connection, check.offered if check.resumed else None)
        relay = Relay(
            self._clock,
            self._connection,
            self.real,
            plaintext,
            self._relays,
            self._truncation,
            reasons.append,
            user=user,
            collect=resumption.collect if resumption is not None else None,
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
