# SPDX-License-Identifier: MIT
"""TLS itself: contexts, identity checks and handshakes, on pyOpenSSL."""
