# SPDX-License-Identifier: MIT
"""
What connections tell by options of the level IPPROTO_TLS.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, UPGRADE_FORMAT, Option
from ssa.test.conformance.case import PairCase, number, text, value
from ssa.test.conformance.case_options import OptionCase, named, rawSet
from ssa.test.conformance.peers import NAME, Peer, clientContext, credential, echo, serverContext
from ssa.test.pki import otherCA, testCA

LABEL: Final = b"EXPORTER-Channel-Binding"
"""RFC 9266 section 2."""

SUITE: Final = (b"ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
"""A cipher of TLS 1.2: OpenSSL's name and the registry's."""


def alpnContext(*protocols: bytes) -> SSL.Context:
    """A context for clients that offer application protocols."""
    context = clientContext()
    context.set_alpn_protos(list(protocols))
    return context


class Protocols(OptionCase):
    """90, TLS_ALPN."""

    def test_client(self) -> None:
        """The server chooses among what is offered; before, the option says what was set."""
        for served, expected in (((b"http/1.1",), "http/1.1"), ((b"http/1.1", b"h2"), "http/1.1"), ((b"h2",), "h2"), ((), "")):
            with self.subTest(served=served):
                sock = self.clientSocket()
                sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2,http/1.1")
                self.assertEqual(text(sock, Option.TLS_ALPN), "h2,http/1.1")
                sock.connect(self.server(echo, serverContext(alpn=served)).address)
                self.assertEqual(value(sock, Option.TLS_ALPN), expected.encode() + b"\0")

    def test_offered(self) -> None:
        """The order of preference is that of the offer."""
        offers: list[list[bytes]] = []
        context = serverContext()

        def choose(_: SSL.Connection, offered: list[bytes]) -> bytes:
            offers.append(offered)
            return offered[0]

        context.set_alpn_select_callback(choose)
        sock = self.clientSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"c,a,b\0")
        sock.connect(self.server(echo, context).address)
        self.assertEqual(offers, [[b"c", b"a", b"b"]])
        self.assertEqual(text(sock, Option.TLS_ALPN), "c")

    def test_server(self) -> None:
        """A server chooses by its own order."""
        listener = self.tlsSocket()
        self.certify(listener)
        listener.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h3,h2,http/1.1")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for offered, expected in (((b"http/1.1", b"h2"), b"h2"), ((b"http/1.1",), b"http/1.1"), ((), b"")):
            with self.subTest(offered=offered):
                context = alpnContext(*offered) if offered else None
                peer = self.peerTo(listener.getsockname(), context=context)
                sock = self.keep(listener.accept()[0])
                self.assertEqual(value(sock, Option.TLS_ALPN), expected + b"\0")
                self.assertEqual(peer.tls.get_alpn_proto_negotiated(), expected)
        with self.assertRaises(SSL.Error):
            self.peerTo(listener.getsockname(), context=alpnContext(b"other"))

    def test_both(self) -> None:
        """Both ends are TLS sockets: they agree; nothing in common is EPROTO."""
        listener = self.tlsSocket()
        self.certify(listener)
        listener.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"a,b")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = self.clientSocket()
        client.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"b,a")
        client.connect(listener.getsockname())
        server = self.keep(listener.accept()[0])
        self.assertEqual((text(client, Option.TLS_ALPN), text(server, Option.TLS_ALPN)), ("a", "a"))
        other = self.clientSocket()
        other.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"c")
        self.fails(errno.EPROTO, other.connect, listener.getsockname())
        self.assertNotEqual(self.tlsError(other), "")

    def test_none(self) -> None:
        """Without ALPN: ""."""
        for sock in self.bothEnds():
            self.assertEqual(value(sock, Option.TLS_ALPN), b"\0")

    def test_values(self) -> None:
        """What is no list of protocols: EINVAL."""
        sock = self.tlsSocket()
        for bad in (b",", b"h2,", b",h2", b"h2,,h3", b"x" * 256, b"h2\0h3"):
            with self.subTest(value=bad):
                self.sets(errno.EINVAL, sock, Option.TLS_ALPN, bad)
        self.sets(0, sock, Option.TLS_ALPN, b"x" * 255)


class _Connection(PairCase):
    """93, 95, 98, 113, 141, 142, 143, for one role and version."""

    version = 0x0304

    def test_version(self) -> None:
        """113, TLS_VERSION_CONN."""
        sock, _ = self.pair()
        self.assertEqual(value(sock, Option.TLS_VERSION_CONN), struct.pack("=i", self.version))

    def test_cipher(self) -> None:
        """98, TLS_CHOSEN_CIPHER: as the peer knows it, by its name in the registry."""
        sock, peer = self.pair()
        name = text(sock, Option.TLS_CHOSEN_CIPHER)
        self.assertTrue(name.startswith("TLS_"), name)
        if self.version == 0x0304:
            self.assertEqual(name, peer.tls.get_cipher_name())
        else:
            self.assertIn("_WITH_", name)

    def test_channelBinding(self) -> None:
        """141, TLS_CHANNEL_BINDING: the same 32 bytes at both ends, others for each connection."""
        if self.version != 0x0304:
            self.skipTest("RFC 9266 defines it for TLS 1.3")
        seen = set()
        for _ in range(2):
            sock, peer = self.pair()
            binding = value(sock, Option.TLS_CHANNEL_BINDING)
            self.assertEqual(len(binding), 32)
            self.assertEqual(binding, peer.tls.export_keying_material(LABEL, 32, b""))
            seen.add(binding)
        self.assertEqual(len(seen), 2)

    def test_dataPath(self) -> None:
        """142, TLS_DATA_PATH."""
        sock, _ = self.pair()
        self.assertIn(value(sock, Option.TLS_DATA_PATH), (b"relay\0", b"ktls\0"))

    def test_keyExchange(self) -> None:
        """143, TLS_KEY_EXCHANGE: the peer's word for it; ENODATA only where the library cannot tell."""
        sock, peer = self.pair()
        try:
            expected = peer.tls.get_group_name()
        except NotImplementedError:
            expected = None
        try:
            name = text(sock, Option.TLS_KEY_EXCHANGE)
        except OSError as failure:
            self.assertEqual(named(failure.errno or 0), "ENODATA")
            self.assertIsNone(expected)
            return
        self.assertNotEqual(name, "")
        if expected is not None:
            self.assertEqual(name.lower(), expected.lower())

    def test_id(self) -> None:
        """96, TLS_ID: 8 bytes, another for each socket, the same for the life of one."""
        sock, _ = self.pair()
        own = value(sock, Option.TLS_ID)
        others = [value(self.tlsSocket(), Option.TLS_ID) for _ in range(20)]
        self.assertEqual({len(each) for each in (own, *others)}, {8})
        self.assertEqual(len({own, *others}), 21)
        self.assertLess(max(struct.unpack("=Q", each)[0] for each in (own, *others)), 1 << 47, "a kernel address?")
        self.assertEqual(value(sock, Option.TLS_ID), own)
        new = self.clientSocket()
        before = value(new, Option.TLS_ID)
        new.connect(self.server(echo).address)
        self.assertEqual(value(new, Option.TLS_ID), before)

    def test_afterTheEnd(self) -> None:
        """A connection that its peer has ended still tells."""
        sock, peer = self.pair()
        peer.closeNotify()
        self.assertEqual(sock.recv(1), b"")
        self.assertEqual(number(sock, Option.TLS_VERSION_CONN), self.version)
        self.assertEqual(self.tlsError(sock), "")


class _Client(_Connection):
    def pair(self) -> tuple[socket.socket, Peer]:
        """A client and its peer."""
        return self.connected()

    def test_peerIdentity(self) -> None:
        """93 and 95: the server's subject, and its chain as it was sent."""
        identity = testCA().intermediate("SSA, \"odd\" + name").issue([NAME], subject="a, b+c")
        for context, chain, subject in (
            (serverContext(version=self.version), credential().chainPEM, f"CN={NAME}"),
            (serverContext(identity, version=self.version), identity.chainPEM, r"CN=a\, b\+c"),
        ):
            sock, _ = self.connected(context)
            self.assertEqual(text(sock, Option.TLS_PEER_IDENTITY), subject)
            self.assertEqual(value(sock, Option.TLS_PEER_CERTIFICATE_CHAIN), chain + b"\0")


class _Server(_Connection):
    def pair(self) -> tuple[socket.socket, Peer]:
        """An accepted socket and its peer."""
        return self.accepted()

    def test_peerIdentity(self) -> None:
        """93 and 95: ENODATA, the client has sent no certificate."""
        sock, _ = self.pair()
        for option in (Option.TLS_PEER_IDENTITY, Option.TLS_PEER_CERTIFICATE_CHAIN):
            self.fails(errno.ENODATA, value, sock, option)


class Client13(_Client):
    """A client with TLS 1.3."""


class Client12(_Client):
    """A client with TLS 1.2."""

    version = 0x0303

    def test_suite(self) -> None:
        """The registry's name is not OpenSSL's."""
        context = serverContext(version=self.version)
        context.set_cipher_list(SUITE[0])
        sock, _ = self.connected(context)
        self.assertEqual(value(sock, Option.TLS_CHOSEN_CIPHER), SUITE[1].encode() + b"\0")


class Server13(_Server):
    """A server with TLS 1.3."""


class Server12(_Server):
    """A server with TLS 1.2."""

    version = 0x0303


class Error(OptionCase):
    """100, TLS_ERROR."""

    def test_none(self) -> None:
        """Nothing has failed: ""."""
        client, server = self.bothEnds()
        for sock in (self.tlsSocket(), self.listener(), client, server):
            self.assertEqual(value(sock, Option.TLS_ERROR), b"\0")

    def broken(self) -> tuple[socket.socket, str]:
        """A socket with an error and what it says: one line."""
        sock = self.clientSocket(name="other.example")
        self.certify(sock)
        sock.bind(("127.0.0.1", 0))
        self.fails(errno.EKEYREJECTED, sock.connect, self.server(echo, quiet=True).address)
        line = self.tlsError(sock)
        self.assertIn("other.example", line)
        self.assertTrue(line.isprintable(), line)
        return sock, line

    def test_stays(self) -> None:
        """Gets, failed ones too, leave it; it is not shown once only."""
        sock, line = self.broken()
        self.gets(0, sock, Option.TLS_REMOTE_HOSTNAME)
        self.gets(errno.ENOTCONN, sock, Option.TLS_VERSION_CONN)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), socket.SOCK_STREAM)
        for _ in range(3):
            self.assertEqual(self.tlsError(sock), line)

    def test_option(self) -> None:
        """An option that is set clears it, one that is refused says why."""
        sock, line = self.broken()
        self.sets(errno.EINVAL, sock, Option.TLS_REMOTE_HOSTNAME, b"a b")
        self.assertNotIn(self.tlsError(sock), ("", line))
        self.sets(0, sock, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        self.assertEqual(self.tlsError(sock), "")
        self.sets(errno.ENOENT, sock, Option.TLS_CERTIFICATE_CHAIN, b"/nonexistent")
        self.sets(errno.EINVAL, sock, Option.TLS_ALPN, b",")
        self.assertIn("TLS_ALPN", self.tlsError(sock))
        self.sets(errno.ENOENT, sock, Option.TLS_CERTIFICATE_CHAIN, b"/nonexistent")
        self.sets(0, sock, Option.TLS_ALPN, b"h2")
        self.assertEqual(self.tlsError(sock), "")

    def test_last(self) -> None:
        """The last failure counts, whichever part of the system found it."""
        closed = self.plainListener()
        address = closed.getsockname()
        closed.close()
        sock = self.clientSocket(name="other.example")
        for _ in range(2):
            self.sets(errno.ENOENT, sock, Option.TLS_CERTIFICATE_CHAIN, b"/nonexistent")
            self.assertIn("/nonexistent", self.tlsError(sock))
            self.fails(errno.EKEYREJECTED, sock.connect, self.server(echo, quiet=True).address)
            self.assertIn("other.example", self.tlsError(sock))
            self.sets(errno.EINVAL, sock, Option.TLS_ALPN, b",")
            self.assertIn("TLS_ALPN", self.tlsError(sock))
            self.fails(errno.ECONNREFUSED, sock.connect, address)
            self.assertNotIn("TLS_ALPN", self.tlsError(sock))

    def test_connect(self) -> None:
        """A connect that succeeds clears it."""
        sock = self.clientSocket()
        server = self.server(echo)
        self.sets(errno.ENOENT, sock, Option.TLS_CERTIFICATE_CHAIN, b"/nonexistent")
        self.assertIn("/nonexistent", self.tlsError(sock))
        sock.connect(server.address)
        self.assertEqual(self.tlsError(sock), "")

    def test_listen(self) -> None:
        """A listen that succeeds clears it."""
        sock = self.tlsSocket()
        sock.bind(("127.0.0.1", 0))
        self.fails(errno.ENOKEY, sock.listen)
        self.assertNotEqual(self.tlsError(sock), "")
        self.certify(sock)
        self.sets(errno.EINVAL, sock, Option.TLS_ALPN, b",")
        self.assertNotEqual(self.tlsError(sock), "")
        sock.listen()
        self.assertEqual(self.tlsError(sock), "")

    def test_listenAfterFile(self) -> None:
        """The same where the failure before it was a file's; and a listen that fails says why itself."""
        sock = self.tlsSocket()
        sock.bind(("127.0.0.1", 0))
        self.sets(errno.ENOENT, sock, Option.TLS_CERTIFICATE_CHAIN, b"/nonexistent")
        self.fails(errno.ENOKEY, sock.listen)
        self.assertNotIn("/nonexistent", self.tlsError(sock))
        self.assertNotEqual(self.tlsError(sock), "")
        self.certify(sock)
        self.sets(errno.ENOENT, sock, Option.TLS_CERTIFICATE_CHAIN, b"/nonexistent")
        sock.listen()
        self.assertEqual(self.tlsError(sock), "")

    def test_bind(self) -> None:
        """A bind that fails says why."""
        listener = self.listener()
        sock = self.tlsSocket()
        self.fails(errno.EADDRINUSE, sock.bind, listener.getsockname())
        self.assertIn("bind", self.tlsError(sock))

    def test_meanwhile(self) -> None:
        """How an attempt ends is newer than the refusal of a call that came while it ran."""
        for answer, expected in ((b"", ""), (b"HTTP/1.0 400 what is this?\r\n\r\n", "TLS")):
            with self.subTest(answer=answer):
                listener = self.plainListener()
                sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
                self.assertEqual(sock.connect_ex(listener.getsockname()), errno.EINPROGRESS)
                self.fails(errno.EINVAL, sock.listen)
                self.fails(errno.EOPNOTSUPP, sock.send, b"x", socket.MSG_OOB)
                self.assertNotEqual(self.tlsError(sock), "")
                if answer:
                    real = self.keep(listener.accept()[0])
                    self.assertTrue(real.recv(10))
                    real.sendall(answer)
                else:
                    self.peerOf(listener)
                self.writable(sock)
                self.assertIn(expected, self.tlsError(sock))
                self.assertNotIn("MSG_OOB", self.tlsError(sock))
                self.assertNotIn("listen", self.tlsError(sock))

    def test_refusals(self) -> None:
        """Every refusal of an option leaves a line."""
        for title, option, data in (
            ("unknown", 99, b"1234"),
            ("read only", Option.TLS_ID, bytes(8)),
            ("long", Option.TLS_ALPN, b"x" * 65537),
            ("bad", Option.TLS_PRIVATE_KEY, b"-----BEGIN x"),
            ("upgrade", Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, -1, 0)),
        ):
            with self.subTest(title=title):
                sock = self.tlsSocket()
                self.assertNotEqual(rawSet(sock, option, data), 0)
                self.assertNotEqual(self.tlsError(sock), "")

    def test_peerText(self) -> None:
        """What a hostile certificate says stays one line."""
        sock = self.clientSocket()
        bad = serverContext(otherCA().issue([NAME], subject="evil\n\x1b[2Jline"))
        self.fails(errno.EKEYREJECTED, sock.connect, self.server(echo, bad, quiet=True).address)
        self.assertTrue(self.tlsError(sock).isprintable())
