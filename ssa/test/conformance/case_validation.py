# SPDX-License-Identifier: MIT
"""Validation plug-ins as programs see them: one that is named refuses after every other check has succeeded."""

from __future__ import annotations

import errno
import socket

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from ssa.test.conformance.case import TLSCase
from ssa.test.conformance.peers import NAME, Server, echo, serverContext
from ssa.test.pki import testCA
from ssa.tls.pinning import keyDigest, pinText

# The configuration is written by another process than the one in which the cases run: the key must be the same in both.
PINNED = ec.derive_private_key(int.from_bytes(b"a key that is no secret".ljust(31, b"."), "big"), ec.SECP256R1())
PIN = pinText(keyDigest(testCA().issue([NAME], key=PINNED).certificate))

CONFIGURATION = f"[default]\nValidation = pin\nPinnedKeys = {PIN}\n"


class Pinned(TLSCase):
    """The administrator has pinned a key."""

    def against(self, context: SSL.Context) -> tuple[int, socket.socket, Server]:
        """Connect to a server; the errno."""
        server = self.server(echo, context)
        sock = self.clientSocket()
        return sock.connect_ex(server.address), sock, server

    def test_pinned(self) -> None:
        """A server with the key: the connection is one."""
        for version in (0x0303, 0x0304):
            number, sock, _ = self.against(serverContext(testCA().issue([NAME], key=PINNED), version=version))
            self.assertEqual(number, 0, self.tlsError(sock))
            sock.sendall(b"ping")
            self.assertEqual(self.exactly(sock, 4), b"ping")

    def test_other(self) -> None:
        """A good certificate with another key: EKEYREJECTED, and TLS_ERROR tells the key, the rule and the certificate."""
        for version in (0x0303, 0x0304):
            other = testCA().issue([NAME])
            number, sock, _ = self.against(serverContext(other, version=version))
            told = self.tlsError(sock)
            self.assertEqual(errno.errorcode.get(number), "EKEYREJECTED", told)
            for word in (
                "none of the keys in the peer's certificate chain is pinned",
                pinText(keyDigest(other.certificate)),
                "PinnedKeys at ",
                ".conf:3 [default]",
                "plug-in pin, Validation at ",
                f"[subject CN={NAME}",
            ):
                self.assertIn(word, told)

    def test_again(self) -> None:
        """The socket is new after it."""
        number, sock, _ = self.against(serverContext(testCA().issue([NAME])))
        self.assertEqual(errno.errorcode.get(number), "EKEYREJECTED")
        good = self.server(echo, serverContext(testCA().issue([NAME], key=PINNED)))
        sock.connect(good.address)
        sock.sendall(b"ping")
        self.assertEqual(self.exactly(sock, 4), b"ping")

    def test_badCertificate(self) -> None:
        """The key is the right one, and the certificate has expired: the pin does not help."""
        number, sock, _ = self.against(serverContext(testCA().issue([NAME], key=PINNED, expired=True)))
        self.assertEqual(errno.errorcode.get(number), "EKEYEXPIRED", self.tlsError(sock))
