# SPDX-License-Identifier: MIT
"""
Key exchange groups (RFC 8446 section 4.2.7): which ones a context offers, and in what order.

pyOpenSSL has no call for them.  SSL_CTX_set1_groups_list(3), which OpenSSL's headers keep under its older name too, is taken
from its binding; where that is missing no context is made, rather than one with other groups.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL

from ssa.errors import Cause

__all__ = ["useGroups"]

_library: Any = vars(SSL)["_lib"]


def useGroups(context: SSL.Context, groups: str) -> None:
    """
    Limit a context to some groups.  Those that the TLS library does not have are left out.

    @param groups: their names in OpenSSL's spelling, separated by colons, the best first; "" for the library's own choice.
    @raise SSAError: EPERM if none is left, or the groups cannot be set at all.
    """
    if not groups:
        return
    use = getattr(_library, "SSL_CTX_set1_curves_list", None)
    if use is None:
        raise Cause.POLICY.error("Groups are set, and this version of pyOpenSSL cannot limit them")

    def accepts(text: str) -> bool:
        accepted = bool(use(context._context, text.encode("ascii")) == 1)
        _library.ERR_clear_error()
        return accepted

    known = [name for name in groups.split(":") if name.isascii() and accepts(name)]
    if not known or not accepts(":".join(known)):
        raise Cause.POLICY.error(f"the TLS library has none of the Groups {groups}")
