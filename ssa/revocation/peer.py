# SPDX-License-Identifier: MIT
"""
The checks of a peer that come after the handshake: revocation, then certificate transparency.

They apply to each handshake, with a session that is resumed as well: what was good an hour ago may be revoked now.
"""

from __future__ import annotations

from OpenSSL import SSL

from ssa.errors import Cause
from ssa.options import SocketOptions
from ssa.policy.profile import Profile
from ssa.revocation.check import Revocation, Rules
from ssa.revocation.fetch import Reach
from ssa.tls.connection import peerCheckOf

__all__ = ["PeerJudge", "isStapling", "revocationRules"]


def revocationRules(profile: Profile, options: SocketOptions) -> tuple[bool, frozenset[str]]:
    """
    Find what one socket's checks need.

    @return: whether each of the peer's certificates needs an answer, and which sources count.
    """
    return profile.revocationChecks, profile.revocationSources


def isStapling(profile: Profile, options: SocketOptions) -> bool:
    """Whether a listener staples answers."""
    return profile.serverStapling


class PeerJudge:
    """Judges the peers of one tagged socket."""

    def __init__(self, revocation: Revocation, profile: Profile, options: SocketOptions, isServer: bool) -> None:
        """
        @param revocation: knows whether certificates are revoked.
        @param profile: the policy in force.
        @param options: the program's options.
        @param isServer: whether the peers are clients.
        """
        self._revocation = revocation
        self._profile = profile
        self._options = options
        self._isServer = isServer

    async def judge(self, connection: SSL.Connection) -> None:
        """
        Judge a peer whose handshake has succeeded.

        @raise SSAError: EKEYREVOKED or EKEYREJECTED; nothing has been sent to the peer then but the handshake.
        """
        required, sources = revocationRules(self._profile, self._options)
        check = peerCheckOf(connection)
        chain = check.verifiedChain(connection)
        if not chain or (self._isServer and check.resumed and len(chain) == 1):
            # A client may have no certificate.  Everyone else who reaches this has shown one, perhaps when the session began.
            if required and not (self._isServer and connection.get_peer_certificate() is None):
                raise Cause.REVOCATION_UNKNOWN.error("the peer's verified chain is not known any more")
            return
        rules = Rules(
            required,
            sources,
            min(self._profile.revocationTimeout, self._profile.handshakeTimeout),
            Reach.PUBLIC if self._options.trusted else Reach.ANY,
            couldStaple=not self._isServer and not check.resumed,
        )
        await self._revocation.check(chain, check.stapled, rules)
