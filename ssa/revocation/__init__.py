# SPDX-License-Identifier: MIT
"""Whether certificates are revoked: OCSP, revocation lists, the cache of their answers, and stapling."""
