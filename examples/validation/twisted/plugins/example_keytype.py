# SPDX-License-Identifier: MIT
"""
A validation plug-in for SSA: servers must have a key on an elliptic curve.

Put this file into a directory twisted/plugins on the daemon's Python path (without an __init__.py in either), or have your
package install it there, and name it in ssa.conf:

    [default]
    Validation = key-type
"""

import errno

from cryptography.hazmat.primitives.asymmetric import ec
from twisted.plugin import IPlugin
from zope.interface import implementer

from ssa.errors import SSAError
from ssa.validation import IValidator


@implementer(IPlugin, IValidator)
class KeyTypeValidator:
    """Refuses a server whose key is not on an elliptic curve."""

    name = "key-type"

    def validate(self, peer, profile, reactor):
        """
        Say nothing to accept, raise to refuse.  Something that takes time returns a Deferred of None, and never blocks.
        """
        key = peer.certificate.public_key()
        if peer.isServer and not isinstance(key, ec.EllipticCurvePublicKey):
            raise SSAError(errno.EKEYREJECTED, f"{peer.identity} has a key of another kind: {type(key).__name__}")


keyType = KeyTypeValidator()
