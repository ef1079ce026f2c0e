# SPDX-License-Identifier: MIT
"""
A configuration that lets no program bring its own trusted certificates.
"""

from __future__ import annotations

import errno
import socket

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import TLSCase
from ssa.test.conformance.peers import NAME, echo
from ssa.test.pki import testCA

CONFIGURATION = "[default]\nAppCustomValidation = off\n"


class CustomValidation(TLSCase):
    """AppCustomValidation=off."""

    def test_refused(self) -> None:
        """The option gives EPERM and says why; the system's trust store stays in force."""
        server = self.server(echo, quiet=True)
        sock = self.tlsSocket()
        for _ in range(2):
            self.fails(errno.EPERM, sock.setsockopt, IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
            told = self.tlsError(sock)
            self.assertIn("AppCustomValidation", told)
            self.assertTrue(told.isprintable())
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        for _ in range(2):
            self.fails(errno.EKEYREJECTED, sock.connect, server.address)
            self.fails(errno.ENOTCONN, sock.getpeername)
            with self.assertRaises(OSError):
                sock.send(b"secret", socket.MSG_NOSIGNAL)
