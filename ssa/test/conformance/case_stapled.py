# SPDX-License-Identifier: MIT
"""
What servers staple, with the default configuration: "revoked" counts, and so does a certificate that demands an answer.
"""

from __future__ import annotations

import errno
import select
import socket

from cryptography.x509 import ocsp
from OpenSSL import SSL

from ssa.test.conformance.case import TLSCase
from ssa.test.conformance.peers import NAME, SECONDS, echo, serverContext
from ssa.test.pki import Credential, testCA
from ssa.test.responders import DAY, ocspAnswer, points

REVOKED = ocsp.OCSPCertStatus.REVOKED


def staplingContext(identity: Credential, answer: bytes, version: int = 0) -> SSL.Context:
    """A server's context that staples an answer."""
    context = serverContext(identity, version=version)
    context.set_ocsp_server_callback(lambda connection, data: answer)
    return context


class StaplingCase(TLSCase):
    """Clients and servers that staple."""

    def answered(self, identity: Credential, answer: bytes) -> int:
        """
        Connect to a server.

        @return: 0, or the errno; data has gone both ways in the first case and none in the other.
        """
        server = self.server(echo, staplingContext(identity, answer, self.version), quiet=True)
        sock = self.clientSocket()
        try:
            sock.connect(server.address)
        except OSError as error:
            self.said = self.tlsError(sock)
            self.fails(errno.ENOTCONN, sock.getpeername)
            sock.close()
            return error.errno or -1
        sock.sendall(b"word")
        self.assertEqual(self.exactly(sock, 4), b"word")
        sock.close()
        return 0


class Stapled(StaplingCase):
    """With TLS 1.3."""

    def test_good(self) -> None:
        """A good answer, one that is of no use, and none."""
        identity = testCA().issue([NAME])
        for answer in (ocspAnswer(testCA(), identity.certificate), b"nonsense", b""):
            self.assertEqual(self.answered(identity, answer), 0)

    def test_revoked(self) -> None:
        """EKEYREVOKED, and TLS_ERROR says when and why."""
        identity = testCA().issue([NAME])
        self.assertEqual(self.answered(identity, ocspAnswer(testCA(), identity.certificate, REVOKED)), errno.EKEYREVOKED)
        self.assertIn("keyCompromise", self.said)
        self.assertIn("the stapled OCSP answer", self.said)
        self.assertTrue(self.said.isprintable())

    def test_mustStaple(self) -> None:
        """A certificate that demands a stapled answer is good only with a good one."""
        identity = testCA().issue([NAME], extensions=points(mustStaple=True))
        good = ocspAnswer(testCA(), identity.certificate)
        old = ocspAnswer(testCA(), identity.certificate, begin=-3 * DAY, end=-DAY)
        self.assertEqual(self.answered(identity, good), 0)
        for bad in (b"", old, b"nonsense"):
            self.assertEqual(self.answered(identity, bad), errno.EKEYREVOKED)
            self.assertIn("RFC 7633", self.said)

    def test_nonBlocking(self) -> None:
        """A non-blocking connect is told with SO_ERROR, after which the socket is new again."""
        identity = testCA().issue([NAME])
        bad = self.server(
            echo, staplingContext(identity, ocspAnswer(testCA(), identity.certificate, REVOKED), self.version), quiet=True
        )
        good = self.server(echo, staplingContext(identity, b"", self.version))
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        self.fails(errno.EINPROGRESS, sock.connect, bad.address)
        self.assertTrue(select.select([], [sock], [], SECONDS)[1])
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), errno.EKEYREVOKED)
        self.fails(errno.EINPROGRESS, sock.connect, good.address)
        self.writable(sock)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)


class StapledTLS12(Stapled):
    """With TLS 1.2, where the answer is a message of its own."""

    version = 0x0303
