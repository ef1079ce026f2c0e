# SPDX-License-Identifier: MIT
"""Sphinx configuration."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from ssa.version import __version__

project = "SSA"
author = "The SSA authors"
project_copyright = "2026, The SSA authors"
version = release = __version__
extensions: list[str] = []
exclude_patterns = ["_build"]
html_theme = "alabaster"
man_pages = [
    ("man/ssa.1", "ssa", "TLS as a service of the operating system", author, 1),
    ("ssa.conf", "ssa.conf", "configuration of SSA", author, 5),
]
