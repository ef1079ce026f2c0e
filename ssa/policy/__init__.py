# SPDX-License-Identifier: MIT
"""ssa.conf: from its text to the profile in force."""
