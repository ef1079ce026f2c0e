# SPDX-License-Identifier: MIT
"""
TLS_CONTEXT: sockets with the options and the sessions of another one.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import struct
from typing import Any

from ssa.api import IPPROTO_TLS, UPGRADE_FORMAT, Option, Role
from ssa.test.conformance.case import Thread, number, text, value
from ssa.test.conformance.case_options import named, rawSet
from ssa.test.conformance.case_sessions import SessionCase
from ssa.test.conformance.peers import NAME, Peer, clientContext, credential, echo, serverContext
from ssa.test.conformance.runner import ORDINARY_USER


class Context(SessionCase):
    """107, TLS_CONTEXT."""

    def setUp(self) -> None:
        self._context = clientContext()
        self._session: Any = None

    def test_copies(self) -> None:
        """All options of the other socket, and nothing that is done to one later concerns the other."""
        first = self.clientSocket()
        first.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        self.certify(first)
        first.setsockopt(IPPROTO_TLS, Option.TLS_SESSION_TTL, 60)
        identity = value(first, Option.TLS_ID)
        second = self.tlsSocket()
        second.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h3")
        own = value(second, Option.TLS_ID)
        self.assertEqual(value(second, Option.TLS_CONTEXT), own)
        second.setsockopt(IPPROTO_TLS, Option.TLS_CONTEXT, identity)
        self.assertEqual((value(second, Option.TLS_CONTEXT), value(second, Option.TLS_ID)), (identity, own))
        self.assertEqual(text(second, Option.TLS_REMOTE_HOSTNAME), NAME)
        self.assertEqual(text(second, Option.TLS_ALPN), "h2")
        self.assertEqual(text(second, Option.TLS_CERTIFICATE_CHAIN).encode(), credential().chainPEM)
        self.assertEqual(number(second, Option.TLS_SESSION_TTL), 60)
        second.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h3")
        self.assertEqual(text(first, Option.TLS_ALPN), "h2")
        first.close()
        second.connect(self.server(echo, serverContext(alpn=(b"h3",))).address)
        self.assertEqual(text(second, Option.TLS_ALPN), "h3")

    def test_phases(self) -> None:
        """Of a socket at any point of its life; set on a new one only."""
        listener = self.listener()
        for sock in (listener, *self.bothEnds()):
            new = self.tlsSocket()
            self.sets(0, new, Option.TLS_CONTEXT, value(sock, Option.TLS_ID))
            self.sets(errno.EISCONN, sock, Option.TLS_CONTEXT, value(new, Option.TLS_ID))

    def test_unknown(self) -> None:
        """No such socket, or one that is closed: EINVAL, and nothing changes."""
        gone = self.tlsSocket()
        identity = value(gone, Option.TLS_ID)
        gone.close()
        scratch, sock = self.tlsSocket(), self.clientSocket()
        self.eventually(lambda: rawSet(scratch, Option.TLS_CONTEXT, identity) == errno.EINVAL, "the end of the socket")
        for wrong in (0, 1 << 63, (1 << 64) - 1):
            self.sets(errno.EINVAL, sock, Option.TLS_CONTEXT, struct.pack("=Q", wrong))
            self.assertIn("TLS_CONTEXT", self.tlsError(sock))
        self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)

    def test_otherUser(self) -> None:
        """Another user's socket: EPERM, both ways; nothing is copied."""
        if os.geteuid() != 0:
            self.skipTest("only root can be another user")
        try:
            stranger = pwd.getpwnam(ORDINARY_USER).pw_uid
            with open("/proc/self/uid_map", encoding="ascii") as file:
                if not any(int(first) <= stranger < int(first) + int(many) for first, _, many in map(str.split, file)):
                    self.skipTest("there is no other user in this user namespace")
        except KeyError:
            self.skipTest(f"there is no user {ORDINARY_USER}")
        mine = self.clientSocket()
        identity = value(mine, Option.TLS_ID)
        reader, writer = os.pipe()
        again, theirs = os.pipe()

        def child() -> None:
            os.setgroups([])
            os.setuid(stranger)
            sock = self.tlsSocket()
            self.sets(errno.EPERM, sock, Option.TLS_CONTEXT, identity)
            self.assertIn("another user's", self.tlsError(sock))
            self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), "")
            os.write(writer, value(sock, Option.TLS_ID))
            os.read(again, 1)

        pid = self.child(child)
        self.readable(reader)
        self.sets(errno.EPERM, mine, Option.TLS_CONTEXT, os.read(reader, 8))
        os.write(theirs, b"x")
        self.reap(pid)
        for descriptor in (reader, writer, again, theirs):
            os.close(descriptor)
        self.assertEqual(text(mine, Option.TLS_REMOTE_HOSTNAME), NAME)

    def test_itself(self) -> None:
        """A socket's own id changes nothing."""
        sock = self.clientSocket()
        self.sets(0, sock, Option.TLS_CONTEXT, value(sock, Option.TLS_ID))
        self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)

    def test_sessions(self) -> None:
        """Sessions are shared."""
        server = self.server(echo, self.resuming())
        first = self.clientSocket()
        second = self.tlsSocket()
        second.setsockopt(IPPROTO_TLS, Option.TLS_CONTEXT, value(first, Option.TLS_ID))
        self.assertEqual((self.asked(first, server.address), self.asked(second, server.address)), (0, 1))

    def test_upgradedServers(self) -> None:
        """A server that upgrades connections one by one resumes sessions if its sockets share a context."""
        template = self.tlsSocket()
        self.certify(template)
        found = []
        for shared in (False, False, True, True, True):
            listener = self.plainListener()
            theirs = self.keep(socket.create_connection(listener.getsockname()))
            mine = self.keep(listener.accept()[0])
            sock = self.tlsSocket()
            if shared:
                sock.setsockopt(IPPROTO_TLS, Option.TLS_CONTEXT, value(template, Option.TLS_ID))
            else:
                self.certify(sock)

            def client(theirs: socket.socket = theirs) -> Peer:
                peer = Peer(theirs, self._context, server=False)
                if self._session is not None:
                    peer.tls.set_session(self._session)
                peer.handshake()
                return peer

            shaking = Thread(client)
            result = rawSet(sock, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, mine.fileno(), Role.SERVER))
            self.assertEqual(named(result), "success")
            mine.close()
            peer = shaking.result()
            sock.sendall(b"x")
            self.assertEqual(peer.exactly(1), b"x")
            self._session = peer.tls.get_session()
            peer.closeNotify()
            self.assertEqual(sock.recv(1), b"")
            found.append(number(sock, Option.TLS_RESUMED_SESSION))
            sock.close()
        self.assertEqual(found, [0, 0, 0, 1, 1])
