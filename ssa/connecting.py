# SPDX-License-Identifier: MIT
"""
From connect(2) to a verified peer: one class that knows the order of things
and none of their details.

An address is tried as the interceptor has begun it.  A name is resolved and
its addresses race (L{ssa.resolve.Race}) for a TCP connection; when the
handshake on the winner fails, for whatever reason, the remaining addresses race
again, until one has succeeded or all have failed: a name may stand for several
machines of which one is broken or has an old certificate, and each that is
taken has proved the same identity.  When all fail, L{mostTelling} chooses the
error.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReactorTime

from ssa.admission import Admission, Claimant
from ssa.api import InternetAddress
from ssa.errors import Cause, SSAError
from ssa.factories import Secured, TLSFactory
from ssa.interfaces import Fetched, IInterceptor
from ssa.policy.profile import Profile
from ssa.realsocket import adoptRealSocket, keepUntilTaken, remoteAddress, waitForConnect, withTimeout
from ssa.resolve import AllFailed, Race, Resolver
from ssa.tcpstate import close

Choose = Callable[[InternetAddress], tuple[Profile, TLSFactory]]
"""Finds the profile and the factory for an address; raises L{SSAError} for one that the policy refuses."""

_TELLING = (
    errno.ENETDOWN,
    errno.EPERM,
    errno.EKEYREVOKED,
    errno.EKEYREJECTED,
    errno.EKEYEXPIRED,
    errno.ENOKEY,
    errno.EPROTO,
    errno.EIO,
    errno.ENOBUFS,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
)
"""
Errors of several addresses, the most telling first: what a peer has shown to be wrong with it says more than that it
could not be reached.  Others, such as ENETUNREACH for a family that the machine does not have, say least.
"""


def mostTelling(host: str, failures: Sequence[tuple[InternetAddress, SSAError]]) -> SSAError:
    """
    One error for a name of which every address has failed.

    @param host: the name.
    @param failures: at least one address, with its error.
    @return: the first of the most telling, with a word on the others.
    """

    def rank(failure: tuple[InternetAddress, SSAError]) -> int:
        number = failure[1].errno
        return _TELLING.index(number) if number in _TELLING else len(_TELLING)

    address, error = min(failures, key=rank)
    others = "; ".join(f"{a.host}: {e.reason}" for a, e in failures if a is not address)
    reason = f"{host} ({address.host}): {error.reason}"
    told = SSAError(error.errno, f"{reason}; the other addresses failed too: {others}" if others else reason)
    told.evidence = error.evidence
    return told


class Connecting:
    """
    One connect(2) or TLS_UPGRADE.

    @ivar real: the real socket while there is exactly one and the handshake
        is in progress, else None; for options that the program sets meanwhile.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        interceptor: IInterceptor,
        id: int,
        profile: Profile,
        admission: Admission,
        claimant: Claimant,
        transportConnected: Callable[[], None],
        nextAddress: Callable[[], None],
    ) -> None:
        """
        @param interceptor: hands over the real sockets.
        @param id: the TLS socket.
        @param profile: what is in force while it is not known where the connection goes.
        @param transportConnected: called when a handshake begins.
        @param nextAddress: called when it has failed and there is another address.
        """
        self._reactor = reactor
        self._clock = clock
        self._interceptor = interceptor
        self._id = id
        self._profile = profile
        self._admission = admission
        self._claimant = claimant
        self._transportConnected = transportConnected
        self._nextAddress = nextAddress
        self.real: socket.socket | None = None

    async def toAddress(self, remote: InternetAddress, choose: Choose) -> Secured:
        """
        Wait for the TCP connection that the interceptor has begun, and do the handshake.

        @param remote: for error messages.
        @param choose: is asked for the address that the connection really has.
        @raise SSAError: see the table of errnos of the socket API.
        """
        return await self._secure(await self._transport(remote, None, self._profile), choose)

    async def toName(
        self,
        host: str,
        port: int,
        families: Sequence[int],
        resolver: Resolver,
        addressFound: Callable[[], None],
        choose: Choose,
    ) -> Secured:
        """
        Resolve a name and try its addresses.

        @param families: those that the program's socket can have.
        @param addressFound: called when the name is resolved.
        @param choose: is asked for each address before it is tried, and for the one that a connection really has.
        @raise SSAError: EHOSTUNREACH, or the most telling error of all addresses.
        """
        profile = self._profile
        found = await resolver.resolve(host, port, families, profile.resolveTimeout)
        addressFound()
        failures: list[tuple[InternetAddress, SSAError]] = []
        chosen: dict[InternetAddress, Profile] = {}
        for address in found[: profile.limits.maxAddresses]:
            try:
                chosen[address] = choose(address)[0]
            except SSAError as error:
                failures.append((address, error))
        waiting = list(chosen)

        def attempt(address: InternetAddress) -> Deferred[socket.socket]:
            return Deferred.fromCoroutine(self._transport(address, address, chosen[address]))

        spent = 0.0
        while waiting:
            try:
                won = await Race(self._clock, waiting, attempt).run()
            except AllFailed as error:
                failures += error.failures
                break
            failures += won.failures
            waiting = list(won.rest)
            began = self._clock.seconds()
            try:
                return await self._secure(won.value, choose)
            except SSAError as error:
                failures.append((won.address, error))
                spent += self._clock.seconds() - began
                if error.errno == errno.ENETDOWN or spent >= profile.handshakeTimeout:
                    break
                if waiting:
                    self._nextAddress()
        raise mostTelling(host, failures)

    @staticmethod
    def _reached(sock: socket.socket) -> InternetAddress:
        try:
            return remoteAddress(sock)
        except SSAError as error:
            if error.errno == errno.ENOTCONN:
                raise Cause.CLOSED_IN_HANDSHAKE.error("the peer was gone before it began") from error
            raise

    async def _transport(
        self, remote: InternetAddress, asked: InternetAddress | None, profile: Profile
    ) -> socket.socket:
        """A connected real socket, which the caller owns."""

        def descriptorsOf(fetched: Fetched) -> list[int]:
            return [fetched.fd]

        fetched = await keepUntilTaken(self._interceptor.fetch(self._id, asked), descriptorsOf)
        sock = adoptRealSocket(fetched.fd)
        try:
            late = SSAError(errno.ETIMEDOUT, f"connect to {remote}: {os.strerror(errno.ETIMEDOUT)}")
            waiting = waitForConnect(self._reactor, sock, remote)
            await withTimeout(waiting, self._clock, profile.connectTimeout, late)
        except BaseException:
            close(sock, reset=False)
            raise
        return sock

    async def _secure(self, sock: socket.socket, choose: Choose) -> Secured:
        """
        Wait for a turn, then do the handshake, by the rules for where the socket is really connected to.

        That need not be what it was meant to be: to 0.0.0.0, a socket connects to the address that it is bound to; a program of
        the kernel's (BPF) may send it elsewhere; and an interceptor may be another user's.

        @param sock: owned by this function.
        """
        self._transportConnected()
        try:
            profile, factory = choose(self._reached(sock))
            slot = await self._admission.take(
                self._claimant, profile.limits.maxHandshakesPerProgram, profile.handshakeTimeout
            )
        except BaseException:
            close(sock, reset=False)
            raise
        try:
            self.real = sock
            return await factory.handshake(sock)
        finally:
            self.real = None
            slot.release()
