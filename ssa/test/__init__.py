# SPDX-License-Identifier: MIT
"""Tests; run them with C{trial ssa.test}."""
