# SPDX-License-Identifier: MIT
"""
Options of programs whose administrator does not let them choose whom they trust.
"""

from __future__ import annotations

import errno
import tempfile

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import text
from ssa.test.conformance.case_options import OptionCase
from ssa.test.conformance.peers import NAME, echo
from ssa.test.pki import testCA

CONFIGURATION = "[default]\nAppCustomValidation = off\n"


class SystemTrustOnly(OptionCase):
    """AppCustomValidation is off."""

    def test_refused(self) -> None:
        """TLS_TRUSTED_PEER_CERTIFICATES: EPERM, as PEM and as a file; TLS_ERROR says why."""
        sock = self.tlsSocket()
        with tempfile.NamedTemporaryFile(prefix="ssa-options-") as file:
            file.write(testCA().pem)
            file.flush()
            for trusted in (testCA().pem, file.name.encode()):
                self.sets(errno.EPERM, sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, trusted)
                self.assertIn("AppCustomValidation", self.tlsError(sock))

    def test_noEffect(self) -> None:
        """After the refusal the system's store counts: the test's root is not in it."""
        sock = self.tlsSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        self.sets(errno.EPERM, sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
        self.fails(errno.EKEYREJECTED, sock.connect, self.server(echo, quiet=True).address)

    def test_others(self) -> None:
        """The other options are there."""
        sock = self.tlsSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        self.certify(sock)
        self.assertEqual(text(sock, Option.TLS_ALPN), "h2")
