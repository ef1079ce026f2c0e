# SPDX-License-Identifier: MIT
"""
Which rule stands behind the refusal of a certificate, and where the administrator can change it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssa.errors import Cause
from ssa.policy.profile import Profile

__all__ = ["Rules", "keyRule"]

_CHAIN_TOO_LONG = 22
"""X509_V_ERR_CERT_CHAIN_TOO_LONG."""

_ALWAYS: dict[Cause, str] = {
    Cause.WRONG_NAME: "RFC 9525: the certificate must name what the program connects to",
    Cause.WRONG_PURPOSE: "RFC 5280 section 4.2.1: basic constraints, key usage and extended key usage are kept",
    Cause.WEAK: "at least 112 bits and no SHA-1 (OpenSSL's security level 2)",
    Cause.MALFORMED: "RFC 5280, strictly",
    Cause.EXPIRED: "RFC 5280 section 6.1.3: every certificate of the chain is valid now",
    Cause.NOT_YET_VALID: "RFC 5280 section 6.1.3: every certificate of the chain is valid now",
    Cause.NO_CERTIFICATE: "the peer must prove its identity",
}
"""The rules that no configuration turns off."""


def keyRule(profile: Profile, key: str) -> str:
    """
    Say where the value of a key comes from.

    @param key: as ssa.conf spells it.
    @return: C{"TrustStoreLocation at /etc/ssa.conf:12 [default]"}, or that it is the built-in default.
    """
    origin = profile.origin(key)
    return f"{key} at {origin}" if origin else f"the built-in default of {key}"


@dataclass(frozen=True)
class Rules:
    """
    The rules for one connection.

    @ivar profile: the policy in force.
    @ivar store: the path of the trust store; "" for the program's own.
    @ivar isProgramsStore: whether the program brought the trust store (TLS_TRUSTED_PEER_CERTIFICATES).
    """

    profile: Profile
    store: str = ""
    isProgramsStore: bool = False

    def behind(self, cause: Cause, code: int = 0) -> str:
        """
        Name the rule behind a refusal.

        @param cause: of the refusal.
        @param code: an C{X509_V_ERR_*} number, if OpenSSL refused it.
        @return: a clause; "" if there is nothing to say.
        """
        if code == _CHAIN_TOO_LONG:
            depth = self.profile.certVerificationDepth
            return f"at most {depth} intermediate certificates, {keyRule(self.profile, 'CertVerificationDepth')}"
        if cause is Cause.UNTRUSTED:
            return self._trust()
        if cause in (Cause.REVOKED, Cause.REVOCATION_UNKNOWN):
            return keyRule(self.profile, "RevocationChecks")
        always = _ALWAYS.get(cause)
        return f"always in force: {always}" if always else ""

    def _trust(self) -> str:
        if self.isProgramsStore:
            allowed = keyRule(self.profile, "AppCustomValidation")
            return f"trusted are the program's own TLS_TRUSTED_PEER_CERTIFICATES, allowed by {allowed}"
        return f"trust store {self.store or 'of the system'}, {keyRule(self.profile, 'TrustStoreLocation')}"
