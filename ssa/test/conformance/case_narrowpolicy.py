# SPDX-License-Identifier: MIT
"""
Programs under a policy that allows little: what they ask for beyond it is refused, and never in force.
"""

from __future__ import annotations

import errno

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import number, text
from ssa.test.conformance.case_narrowing import CHACHA, GCM, TLS_1_2, TLS_1_3, NarrowingCase, integer
from ssa.test.conformance.peers import clientContext, echo, serverContext
from ssa.tls.ciphers import CIPHERS

CONFIGURATION = f"[default]\nMaxProtocol = TLSv1.2\nCipherList = {GCM}:ECDHE-RSA-AES128-GCM-SHA256\n"


class Narrow(NarrowingCase):
    """TLS 1.2 with two ciphers."""

    def test_versions(self) -> None:
        """TLS 1.3 is known, and not allowed: EPERM."""
        sock = self.clientSocket()
        self.assertEqual((number(sock, Option.TLS_VERSION_MIN), number(sock, Option.TLS_VERSION_MAX)), (TLS_1_2, TLS_1_2))
        for option in (Option.TLS_VERSION_MIN, Option.TLS_VERSION_MAX):
            self.sets(errno.EPERM, sock, option, integer(TLS_1_3))
            self.assertIn("TLSv1.2 to TLSv1.2 are allowed", self.tlsError(sock))
            self.sets(0, sock, option, integer(TLS_1_2))
        sock.connect(self.server(echo).address)
        self.assertEqual(number(sock, Option.TLS_VERSION_CONN), TLS_1_2)

    def test_ciphers(self) -> None:
        """One that others may use is not allowed here: EPERM."""
        sock = self.clientSocket()
        for option in (Option.TLS_TRUSTED_CIPHERS, Option.TLS_ENABLE_CIPHER):
            for name in (CHACHA, CIPHERS[CHACHA], "AES128-SHA"):
                self.sets(errno.EPERM, sock, option, name.encode())
                self.assertIn(name, self.tlsError(sock))
        self.sets(errno.EPERM, sock, Option.TLS_TRUSTED_CIPHERS, f"{GCM}:{CHACHA}".encode())
        self.sets(0, sock, Option.TLS_DISABLE_CIPHER, CHACHA.encode())
        only = serverContext(version=TLS_1_2)
        only.set_cipher_list(CHACHA.encode())
        self.fails(errno.EPROTO, sock.connect, self.server(echo, only, quiet=True).address)

    def test_nothingLeft(self) -> None:
        """Ciphers of TLS 1.3 only, which the policy lists and its versions exclude: EPERM from connect and listen."""
        sock = self.clientSocket()
        self.sets(0, sock, Option.TLS_TRUSTED_CIPHERS, b"TLS_AES_128_GCM_SHA256")
        self.fails(errno.EPERM, sock.connect, self.server(echo, quiet=True).address)
        self.assertIn("no TLS version is left", self.tlsError(sock))
        server = self.tlsSocket()
        self.certify(server)
        self.sets(0, server, Option.TLS_TRUSTED_CIPHERS, b"TLS_AES_128_GCM_SHA256")
        server.bind(("127.0.0.1", 0))
        self.fails(errno.EPERM, server.listen)
        self.sets(0, server, Option.TLS_TRUSTED_CIPHERS, GCM.encode())
        server.listen()

    def test_server(self) -> None:
        """A listener has what the policy leaves."""
        listener = self.listening((Option.TLS_DISABLE_CIPHER, b"ECDHE-RSA-AES128-GCM-SHA256"))
        peer = self.peerTo(listener.getsockname())
        self.assertEqual((peer.tls.get_protocol_version(), peer.tls.get_cipher_name()), (TLS_1_2, GCM))
        self.readable(listener)
        sock = self.keep(listener.accept()[0])
        self.assertEqual(text(sock, Option.TLS_TRUSTED_CIPHERS).split(":")[-1], CIPHERS[GCM])
        self.assertIn("protocol version", self.refusedClient(listener, clientContext(version=TLS_1_3)))

    def test_context(self) -> None:
        """TLS_CONTEXT brings nothing that is not allowed."""
        other, sock = self.tlsSocket(), self.clientSocket()
        identity = other.getsockopt(IPPROTO_TLS, Option.TLS_ID, 8)
        self.sets(0, sock, Option.TLS_CONTEXT, identity)
        self.assertEqual(number(sock, Option.TLS_VERSION_MAX), TLS_1_2)
