# SPDX-License-Identifier: MIT
"""
The validation plug-in C{pin}: a server's verified chain must hold one of the public keys that the administrator has named.

As RFC 7469 section 2.6 does it: the SHA-256 digest of the SubjectPublicKeyInfo, of any certificate in the chain.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import implementer

from ssa.errors import Cause
from ssa.policy.profile import Profile
from ssa.tls.certificates import publicKeyOf
from ssa.validation import IValidator, Peer

__all__ = ["PinValidator", "keyDigest", "pinText"]


def keyDigest(certificate: x509.Certificate) -> bytes:
    """
    Digest a certificate's public key.

    @return: the SHA-256 digest (32 bytes) of its SubjectPublicKeyInfo.
    @raise ValueError: the key cannot be used.
    """
    return hashlib.sha256(publicKeyOf(certificate)).digest()


def pinText(digest: bytes) -> str:
    """Write a digest: C{"sha256/…"}, in Base64 (RFC 7469 section 2.4)."""
    return "sha256/" + base64.b64encode(digest).decode("ascii")


@implementer(IPlugin, IValidator)
class PinValidator:
    """Public key pinning."""

    name = "pin"

    def validate(self, peer: Peer, profile: Profile, reactor: Any) -> Deferred[None] | None:
        """
        See L{IValidator}.

        Clients are not pinned: for them there is nothing to say.

        @raise SSAError: EKEYREJECTED, no key of the chain is pinned.
        """
        if not peer.isServer:
            return None
        digests = []
        for certificate in peer.chain:
            try:
                digests.append(keyDigest(certificate))
            except ValueError:
                continue  # a key that cannot be read is not pinned
        if any(digest in profile.pinnedKeys for digest in digests):
            return None
        rule = profile.rule("PinnedKeys")
        found = " ".join(pinText(digest) for digest in digests[:8])
        number = len(profile.pinnedKeys)
        wanted = f"{number or 'no'} {'key is' if number < 2 else 'keys are'} pinned"
        raise Cause.NOT_PINNED.error(f"{peer.identity} has {found}; {wanted} ({rule})")
