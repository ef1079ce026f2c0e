# SPDX-License-Identifier: MIT
"""
What scanners of others think of our servers: C{make test-scanners}.
"""
