# SPDX-License-Identifier: MIT
"""The seccomp supervisor: IPPROTO_TLS for unmodified programs without a kernel module."""
