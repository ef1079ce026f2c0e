# SPDX-License-Identifier: MIT
"""The version of the project, its one place."""

__version__ = "0.1.0.dev0"
