# SPDX-License-Identifier: MIT
"""
Connections are what they seem: addresses, ports, names.
"""

from __future__ import annotations

import socket

from ssa.api import IPPROTO_TLS
from ssa.test.conformance.case import TLSCase
from ssa.test.conformance.peers import echo


class Basics(TLSCase):
    """A conversation as client and as server."""

    def test_client(self) -> None:
        """Connect, send, receive, end of stream; the addresses are the real ones."""
        server = self.server(echo)
        sock = self.clientSocket()
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), IPPROTO_TLS)
        sock.connect(server.address)
        self.assertEqual(sock.getpeername(), server.address)
        sock.sendall(b"hello")
        self.assertEqual(sock.recv(100), b"hello")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(sock.recv(100), b"")
        server.join()
        self.assertEqual(server.failures, [])

    def test_server(self) -> None:
        """Accept, receive, send, close."""
        sock, peer = self.accepted()
        self.assertEqual(sock.getpeername(), peer.sock.getsockname())
        self.assertEqual(sock.getsockname(), peer.sock.getpeername())
        peer.send(b"hello")
        self.assertEqual(sock.recv(100), b"hello")
        sock.sendall(b"world")
        self.assertEqual(peer.recv(), b"world")
        sock.close()
        self.assertEqual(peer.recv(), b"")

    def test_bothEnds(self) -> None:
        """Client and server under the same interception."""
        client, server = self.bothEnds()
        self.assertEqual(client.getsockname(), server.getpeername())
        self.assertEqual(client.getpeername(), server.getsockname())
        client.sendall(b"hello")
        self.assertEqual(server.recv(100), b"hello")
        server.close()
        self.assertEqual(client.recv(100), b"")
