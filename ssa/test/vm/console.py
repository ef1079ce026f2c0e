# SPDX-License-Identifier: MIT
"""What the guest's serial console says, and whether the kernel complains in it."""

from __future__ import annotations

import re

#: How a complaint of the kernel begins, after the time that it puts before each of its lines: panics, oopses, what KASAN,
#: lockdep and the other checkers print, hung tasks and stalls.  Not kmemleak, whose first suspicions may be wrong: session.sh
#: asks it twice.
_REPORT = re.compile(
    rb"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? "
    rb"((?:Kernel panic|BUG:|WARNING:|Oops:|UBSAN:|INFO: task |INFO: rcu_|INFO: possible |INFO: trying to register|rcu: INFO:"
    rb"|general protection fault|int3:|invalid opcode|divide error|stack segment|double fault|traps: PANIC|PANIC:"
    rb"|kernel BUG at|refcount_t:|list_(?:add|del) corruption|ODEBUG:|unregister_netdevice: waiting"
    rb"|watchdog: BUG:|INFO: suspicious|ref_tracker:|DEBUG_LOCKS_WARN_ON)[^\r\n]*)"
)


class Console:
    """
    The console's text as it arrives.

    @ivar report: the kernel's first complaint, empty without one
    """

    def __init__(self) -> None:
        """Start with nothing said."""
        self._data = bytearray()
        self._searched = 0
        self.report = ""

    def feed(self, data: bytes) -> None:
        """Add what was read.  A complaint counts when its line is complete."""
        self._data += data
        end = self._data.rfind(b"\n") + 1
        if not self.report and end > self._searched:
            found = _REPORT.search(self._data, self._searched, end)
            self.report = found[1].decode(errors="replace") if found else ""
            self._searched = end

    @property
    def text(self) -> str:
        """All of it, with the ends of lines as Python has them."""
        return self._data.decode(errors="replace").replace("\r\n", "\n")
