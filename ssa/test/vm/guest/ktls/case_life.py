# SPDX-License-Identifier: MIT
"""Real peers; what the module believes of a daemon; and life without one."""

from __future__ import annotations

import errno
import os
import socket
import time

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import Thread, inOrder
from ssa.test.conformance.peers import Peer, clientContext, serverContext
from ssa.test.vm.guest.ktls.case import SECONDS, Daemon, KTLSCase
from ssa.test.vm.guest.ktls.case_sending import END, fill
from ssa.test.vm.guest.ktls.daemon import Way


class Peers(KTLSCase):
    """OpenSSL at the other end."""

    def talk(self, sock: socket.socket, peer: Peer) -> None:
        """Both say much, then end well."""
        data = os.urandom(100000)
        sender = Thread(inOrder(lambda: sock.sendall(data), lambda: sock.shutdown(socket.SHUT_WR)))
        self.assertEqual(peer.rest(), data)
        sender.result(SECONDS)

        def answer() -> None:
            peer.send(data)
            peer.closeNotify()

        sender = Thread(answer)
        got = bytearray()
        while part := sock.recv(1 << 16):
            got += part
        sender.result(SECONDS)
        self.assertEqual(bytes(got), data)

    def test_server(self) -> None:
        """A program connects; the server's tickets come first."""
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def accept() -> Peer:
                peer = Peer(listener.accept()[0], serverContext(version=SSL.TLS1_3_VERSION), True)
                peer.handshake()
                return peer

            peer = Thread(accept)
            sock = self.tlsSocket()
            sock.connect(listener.getsockname())
            address = listener.getsockname()
        self.assertEqual(self.said(sock), "ktls")
        self.assertEqual(sock.getpeername(), address)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), IPPROTO_TLS)
        self.talk(sock, self.keep(peer.result(SECONDS)))

    def test_client(self) -> None:
        """A program accepts; it sends no ticket twice."""
        listener = self.tlsListener()

        def connect() -> Peer:
            raw = socket.create_connection(listener.getsockname())
            peer = Peer(raw, clientContext(version=SSL.TLS1_3_VERSION), False)
            peer.handshake()
            return peer

        connecting = Thread(connect)
        sock, address = listener.accept()
        self.keep(sock)
        peer = self.keep(connecting.result(SECONDS))
        self.assertEqual(address, peer.sock.getsockname())
        self.assertEqual(sock.getsockname(), listener.getsockname())
        self.assertEqual(self.said(sock), "ktls")
        self.talk(sock, peer)


class Claims(KTLSCase):
    """A daemon that says that a socket carries kTLS."""

    def test_connected(self) -> None:
        """It is refused where one direction lacks its key: nothing goes out as plaintext, and the program gets an error."""
        for way in (Way.NOTHING, Way.LAYER, Way.SENDING, Way.RECEIVING):
            with self.subTest(way), socket.create_server(("127.0.0.1", 0)) as listener:
                sock = self.tlsSocket(way)
                peer = Thread(lambda listener=listener: self.handshakeThenRest(listener.accept()[0]))  # type: ignore[misc]
                self.assertFails(errno.EPROTO, sock.connect, listener.getsockname())
                self.assertRegex(self.said(sock, Option.TLS_ERROR), "^EINVAL .*kTLS")
                self.assertFails(errno.EPIPE, sock.send, b"plaintext")
                self.assertEqual(peer.result(SECONDS), b"")

    @staticmethod
    def handshakeThenRest(sock: socket.socket) -> bytes:
        """What a server gets behind the handshake, as bytes of TCP."""
        peer = Peer(sock, serverContext(version=SSL.TLS1_3_VERSION), True)
        peer.handshake()
        got = b""
        try:
            while part := sock.recv(4096):
                got += part
        except ConnectionResetError:
            pass
        sock.close()
        return got

    def test_accepted(self) -> None:
        """The same for a connection of a listener: no program sees it."""
        for way in (Way.NOTHING, Way.LAYER, Way.SENDING, Way.RECEIVING):
            with self.subTest(way):
                listener = self.tlsListener(way)
                raw = self.keep(socket.create_connection(listener.getsockname()))
                Peer(raw, clientContext(version=SSL.TLS1_3_VERSION), False, "").handshake()
                self.eventually(lambda listener=listener: self.said(listener, Option.TLS_ERROR))  # type: ignore[misc]
                self.assertRegex(self.said(listener, Option.TLS_ERROR), "^EINVAL ")
                listener.setblocking(False)
                self.assertFails(errno.EAGAIN, listener.accept)


class Death(KTLSCase):
    """The daemon dies."""

    def test_connections(self) -> None:
        """Connections live on, of both roles, to their clean end; a new daemon makes new ones."""
        pairs = [self.asClient(), self.asServer(), self.asClient(), self.asServer()]
        reader = Thread(lambda: pairs[0][0].recv(64))
        time.sleep(0.2)
        self.daemons.pop().kill()
        self.assertFails(errno.ENETDOWN, socket.socket, socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        self.assertFails(errno.ENETDOWN, self.said, pairs[0][0])
        self.assertTrue(reader.is_alive())
        pairs[0][1].data(b"wakes up")
        self.assertEqual(reader.result(SECONDS), b"wakes up")
        self.assertAlive(pairs[:2])
        self.daemons.append(Daemon())
        self.assertAlive(pairs[2:])
        self.assertAlive([self.asClient(), self.asServer()])

    def assertAlive(self, pairs: list) -> None:  # type: ignore[type-arg]
        """Connections carry data both ways, pass over tickets, and end cleanly on both sides."""
        for sock, peer in pairs:
            sock.sendall(b"ping" * 5000)
            self.assertEqual(peer.exactly(20000), b"ping" * 5000)
            peer.ticket()
            peer.data(b"pong" * 5000)
            self.assertEqual(sock.recv(20000, socket.MSG_WAITALL), b"pong" * 5000)
            peer.closeNotify()
            self.assertEnds(sock)
            sock.close()
            self.assertEqual(peer.rest(), (b"", END, "fin"))

    def test_blockedSender(self) -> None:
        """A shutdown that waits for a send that waits for the peer keeps no daemon from dying."""
        sock, peer = self.asClient()
        sent = fill(sock)
        sock.setblocking(True)
        sender = Thread(lambda: sock.send(b"s" * 100000))
        time.sleep(0.5)
        shutter = Thread(lambda: sock.shutdown(socket.SHUT_WR))
        time.sleep(0.5)
        started = time.monotonic()
        self.daemons.pop().kill()
        self.assertLess(time.monotonic() - started, 20.0)
        self.daemons.append(Daemon())
        reader = Thread(peer.rest)
        sent += sender.result(SECONDS)
        shutter.result(SECONDS)
        data, alerts, end = reader.result(SECONDS)
        self.assertEqual((len(data), alerts, end), (sent, END, "fin"))
