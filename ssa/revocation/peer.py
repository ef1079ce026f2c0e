# SPDX-License-Identifier: MIT
"""
The checks of a peer that come after the handshake: revocation, then certificate transparency.

They apply to each handshake, with a session that is resumed as well: what was good an hour ago may be revoked now.
"""

from __future__ import annotations

import time

from cryptography import x509
from OpenSSL import SSL, crypto

from ssa.errors import Cause, SSAError
from ssa.options import SocketOptions
from ssa.policy.profile import Profile
from ssa.revocation.check import Revocation, Rules
from ssa.revocation.fetch import Reach
from ssa.revocation.ocsp import verifyAnswer
from ssa.revocation.verdict import NoAnswer, Subject
from ssa.tls.certificates import describeCertificate
from ssa.tls.connection import PeerCheck, peerCheckOf
from ssa.tls.loglist import findLogs, parseLogs
from ssa.tls.transparency import checkTransparency

__all__ = ["PeerJudge"]

_TLS_FEATURE = bytes.fromhex("06082b06010505070118")
"""The DER encoding of the extension's object identifier, 1.3.6.1.5.5.7.1.24: RFC 7633 section 6."""


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

    async def judge(self, connection: SSL.Connection, left: float) -> None:
        """
        Judge a peer whose handshake has succeeded.

        @param left: seconds that are left of HandshakeTimeout.
        @raise SSAError: EKEYREVOKED or EKEYREJECTED; nothing has been sent to the peer then but the handshake.
        """
        required, sources = self._options.revocationRules(self._profile)
        check = peerCheckOf(connection)
        if not required and not self._isConcerned(connection, check):
            return
        chain = check.verifiedChain(connection)
        if not chain:
            # A client may have no certificate.  Everyone else who reaches this has shown one, perhaps when the session began.
            own = connection.get_peer_certificate(as_cryptography=True) if required else None
            if required and not (self._isServer and own is None):
                described = f" {describeCertificate(own)}" if own is not None else ""
                raise Cause.REVOCATION_UNKNOWN.error(
                    f"the peer's verified chain is not known any more ({self._rule()}){described}"
                )
            return
        rules = Rules(
            required,
            sources,
            max(0.0, min(self._profile.revocationTimeout, left)),
            Reach.PUBLIC if self._options.trusted else Reach.ANY,
            not self._isServer and not check.resumed,
            self._rule(),
            self._options.owner,
        )
        try:
            await self._revocation.check(chain, check.stapled, rules)
            if self._profile.certTransparency and not self._isServer and not check.resumed:
                self._judgeTransparency(chain, check)
        except SSAError as error:
            if check.identity is None:
                raise
            raise SSAError(error.errno, f"{error.reason} (asked for the {check.identity})") from None
        check.stapled, check.timestamps = b"", None  # an established connection does not hold them

    def _rule(self) -> str:
        """Who asks for definite answers."""
        profile = self._profile
        return profile.rule("RevocationChecks") if profile.revocationChecks else "TLS_REVOCATION_CHECKS of the program"

    def _isConcerned(self, connection: SSL.Connection, check: PeerCheck) -> bool:
        """
        Whether there is anything to judge where no answer is required.

        It is asked for every connection and so looks for bytes, which cost less than the certificate's extensions.
        """
        if self._isServer:
            return False
        if check.stapled or self._profile.certTransparency:
            return True
        certificate = None if check.resumed else connection.get_peer_certificate()
        return certificate is not None and _TLS_FEATURE in crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)

    def _judgeTransparency(self, chain: tuple[x509.Certificate, ...], check: PeerCheck) -> None:
        """
        Check that enough logs know a server's certificate.  A resumed session began with a handshake that was checked.

        @raise SSAError: EKEYREJECTED.
        """
        path = self._profile.transparencyLogs
        if not path:
            rule = self._profile.rule("VerifyCertTransparency")
            raise Cause.TRANSPARENCY.error(f"{rule} is on, and TransparencyLogs names no list of logs")
        files = self._profile.files
        try:
            logs = findLogs(path) if files is None else parseLogs(files.content(path))
        except OSError as error:
            raise Cause.TRANSPARENCY.error(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise Cause.TRANSPARENCY.error(str(error)) from None
        now = time.time()
        stapled = check.stapled
        try:
            verifyAnswer(stapled, Subject(chain[0], chain[1] if len(chain) > 1 else chain[0]), now)
        except NoAnswer:
            stapled = b""
        checkTransparency(
            chain, stapled, check.timestamps, logs, now, self._profile.rule("VerifyCertTransparency")
        )
