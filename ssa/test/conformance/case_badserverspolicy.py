# SPDX-License-Identifier: MIT
"""
The servers of L{ssa.test.badcollection} that need more than the default policy.
"""

from __future__ import annotations

from ssa.policy.profile import DEFAULT_CIPHERS
from ssa.test.badcollection import DHE, PINNED_NAME, REVOCATION_NAME
from ssa.test.conformance.case_badservers import ServersCase, add

_OTHER_KEY = "sha256/c29tZWJvZHkgZWxzZSdzIGtleSwgbm90IHRoaXMgb24="

CONFIGURATION = f"""
[default]
CipherList = {DEFAULT_CIPHERS}:{DHE}

[profile revocation]
Destination = {REVOCATION_NAME}
RevocationChecks = on
RevocationTimeout = 2

[profile pinned]
Destination = {PINNED_NAME}
Validation = pin
PinnedKeys = {_OTHER_KEY}
"""


class Policies(ServersCase):
    """Policies that allow DHE, ask for answers on revocation, and pin keys."""


add(Policies, "dhe", "revocation", "pin")
