# SPDX-License-Identifier: MIT
"""
The servers of L{ssa.test.badcollection} that need more than the default policy.
"""

from __future__ import annotations

from ssa.policy.profile import DEFAULT_CIPHERS
from ssa.test.badcollection import DHE
from ssa.test.conformance.case_badservers import ServersCase, add

CONFIGURATION = f"[default]\nCipherList = {DEFAULT_CIPHERS}:{DHE}\n"


class Allowed(ServersCase):
    """A policy that allows TLS 1.2 with DHE."""


add(Allowed, isPolicy=True)
