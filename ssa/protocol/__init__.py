# SPDX-License-Identifier: MIT
"""The messages between an interceptor and the daemon, and their transports."""
