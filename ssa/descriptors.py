# SPDX-License-Identifier: MIT
"""How many descriptors a process of ours may have."""

from __future__ import annotations

import resource


def raiseDescriptorLimit() -> int:
    """
    Raise the soft limit of descriptors to the hard one: each connection needs two (getrlimit(2), RLIMIT_NOFILE).

    @return: the limit in force.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
