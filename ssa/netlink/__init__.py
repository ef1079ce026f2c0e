# SPDX-License-Identifier: MIT
"""A netlink library for Twisted: codec, port and generic netlink."""
