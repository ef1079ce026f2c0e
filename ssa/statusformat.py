# SPDX-License-Identifier: MIT
"""What the daemon and C{ssa status} have to agree on."""

from __future__ import annotations

__all__ = ["DEFAULT_DAEMON", "FORMAT", "SUFFIX"]

DEFAULT_DAEMON = "/run/ssa/daemon.sock"
"""The socket of the machine's daemon."""

FORMAT = 1
"""
The number of the format, C{ssa_status} in the document: another one where a field has gone or means something else.  Fields
may be added.
"""

SUFFIX = ".status"
"""What is added to the path of the daemon's socket to get that of the socket at which it tells its status."""
