# SPDX-License-Identifier: MIT
"""Measures SSA beside other TLS proxies; start with C{python -m benchmarks.run}."""
