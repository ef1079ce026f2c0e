# SPDX-License-Identifier: MIT
"""C{python -m ssa}: the C{ssa} command."""

import sys

from ssa.cli import main

if __name__ == "__main__":
    sys.exit(main())
