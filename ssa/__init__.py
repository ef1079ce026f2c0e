# SPDX-License-Identifier: MIT
"""TLS as a service of the operating system: the Secure Socket API."""
