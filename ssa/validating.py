# SPDX-License-Identifier: MIT
"""
Asks the validation plug-ins of a profile about a peer, after its handshake and before the program gets the connection.

Whatever goes wrong here refuses the peer.
"""

from __future__ import annotations

import errno
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ssa.api import InternetAddress
from ssa.errors import Cause, SSAError
from ssa.policy.profile import Profile
from ssa.throttle import Throttle
from ssa.tls.certificates import describeCertificate
from ssa.tls.connection import peerCheckOf
from ssa.validation import Peer, validatorNamed

__all__ = ["Validating", "peerOf"]

_ERRNOS = frozenset({errno.EKEYREJECTED, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EPERM})
"""What a plug-in may say by itself."""


def peerOf(connection: SSL.Connection, remote: InternetAddress, accepted: bool) -> Peer | None:
    """
    Describe the peer of a connection for plug-ins.

    @param connection: after its handshake.
    @param remote: the peer's address.
    @param accepted: whether this is the server's side.
    @return: L{None} for a client that has shown no certificate.
    @raise SSAError: EKEYREJECTED, the verified chain is not known.
    """
    check = peerCheckOf(connection)
    chain = check.verifiedChain(connection)
    if not chain:
        if accepted and connection.get_peer_certificate() is None:
            return None
        raise Cause.VALIDATION.error("the chain that was verified is not known")
    identity = check.identity.value if check.identity is not None else ""
    isProgramsTrust = check.rules is not None and check.rules.isProgramsStore
    return Peer(chain, identity, not accepted, remote.host, remote.port, check.resumed, isProgramsTrust, check.user)


class Validating:
    """Asks plug-ins, in order."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: also an C{IReactorTime}.
        """
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._throttle = Throttle(reactor)

    async def validate(self, profile: Profile, peer: Peer, seconds: float) -> None:
        """
        Ask all of a profile's plug-ins.

        @param seconds: what is left of the handshake's time, for all of them together.
        @raise SSAError: the peer is refused.
        """
        end = self._clock.seconds() + seconds
        for name in profile.validation:
            try:
                await self._ask(name, profile, peer, end - self._clock.seconds())
            except SSAError as error:
                about = f"(plug-in {name}, {profile.rule('Validation')}) {describeCertificate(peer.certificate)}"
                number = error.errno if error.errno in _ERRNOS or error.errno == errno.ETIMEDOUT else errno.EKEYREJECTED
                raise SSAError(number, f"{error.reason} {about}") from error

    async def _ask(self, name: str, profile: Profile, peer: Peer, seconds: float) -> None:
        plugin = validatorNamed(name)
        if plugin is None:
            raise Cause.VALIDATION.error(f"there is no validation plug-in {name} on this machine")
        late = Cause.HANDSHAKE_TIMEOUT.error(f"the validation plug-in {name} did not answer in time")
        if seconds <= 0:
            raise late
        tooLate: list[bool] = []
        timer: Any = None
        try:
            result = plugin.validate(peer, profile, self._reactor)
            if isinstance(result, Deferred):
                waiting = result

                def cancel() -> None:
                    tooLate.append(True)
                    waiting.cancel()

                timer = self._clock.callLater(seconds, cancel)
                result = await waiting
        except SSAError:
            if tooLate:
                raise late from None
            raise
        except CancelledError:
            if tooLate:
                raise late from None
            raise
        except Exception as trouble:
            if tooLate:
                raise late from None
            if self._throttle.allow() is not None:
                self._log.failure("the validation plug-in {name} has failed", name=name)
            raise Cause.VALIDATION.error(f"the plug-in has failed ({type(trouble).__name__}: {trouble})") from trouble
        finally:
            if timer is not None and timer.active():
                timer.cancel()
        if tooLate:  # whatever it says now
            raise late
        if result is not None:
            raise Cause.VALIDATION.error(f"the plug-in gave the wrong answer: {type(result).__name__} instead of None")
