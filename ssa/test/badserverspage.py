# SPDX-License-Identifier: MIT
"""
C{docs/badservers.rst} from L{ssa.test.badcollection}: C{python -m ssa.test.badserverspage} writes it, a test compares it.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from ssa.test.badcollection import COLLECTION, Bad

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "badservers.rst"

_INTRODUCTION: Final = """\
Bad servers
===========

What a program gets when it connects to a server with which something is wrong. Each row is a server that the tests run on the
loopback interface and connect to, with every interceptor; certificates are tried with TLS 1.2 and with TLS 1.3. This page is
made from ``ssa/test/badcollection.py`` by ``python -m ssa.test.badserverspage``; do not edit it.

``connect`` gives the errno, ``TLS_ERROR`` the line for a person: what is shown here is how it begins and, after "…", the words
in it that tell this case from others. The line itself goes on with the certificate that was refused and what was expected.

"connects" means that the server is a good one, however odd it looks. The program has set ``TLS_TRUSTED_PEER_CERTIFICATES`` to
the root of the good servers, and ``TLS_REMOTE_HOSTNAME`` to the name, or not at all where it wants the IP address. The policy
is the default one unless the row says otherwise.

Nothing of the program's data has left the machine in any of the cases that fail: the handshake has not ended.
"""


def outcome(bad: Bad) -> str:
    """The errno's name, or that there is none."""
    return "connects" if bad.cause is None else f"``{errno.errorcode[bad.cause.errno]}``"


def told(bad: Bad) -> str:
    """What TLS_ERROR says."""
    if bad.cause is None:
        return "\\-"
    return " … ".join((bad.cause.text, *bad.words))


def render() -> str:
    """Make the page."""
    lines = [_INTRODUCTION]
    for title, section in COLLECTION.items():
        lines += [title, "-" * len(title), "", ".. list-table::", "   :header-rows: 1", "   :widths: 35 15 50", ""]
        lines += ["   * - the server", "     - ``connect``", "     - ``TLS_ERROR``"]
        for bad in section.values():
            lines += [f"   * - {bad.title}", f"     - {outcome(bad)}", f"     - {told(bad)}"]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
