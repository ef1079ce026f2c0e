# SPDX-License-Identifier: MIT
"""
Options by which a program narrows the policy: versions, ciphers, revocation, stapling.
"""

from __future__ import annotations

import errno
import socket
import struct

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.policy.profile import DEFAULT_CIPHERS, DEFAULT_SUITES
from ssa.test.conformance.case import number, text, value
from ssa.test.conformance.case_options import OptionCase
from ssa.test.conformance.peers import NAME, Peer, clientContext, echo, serverContext
from ssa.tls.ciphers import CIPHERS

TLS_1_2 = 0x0303
TLS_1_3 = 0x0304
GCM = "ECDHE-ECDSA-AES128-GCM-SHA256"
CHACHA = "ECDHE-ECDSA-CHACHA20-POLY1305"
ALL = DEFAULT_SUITES.split(":") + [CIPHERS[name] for name in DEFAULT_CIPHERS.split(":")]


def integer(value: int) -> bytes:
    """An C{int} as programs give it."""
    return struct.pack("=i", value)


class NarrowingCase(OptionCase):
    """A case with listeners."""

    def listening(self, *settings: tuple[Option, bytes | int]) -> socket.socket:
        """A TLS listener with options."""
        sock = self.tlsSocket()
        self.certify(sock)
        for option, setting in settings:
            sock.setsockopt(IPPROTO_TLS, option, setting)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock

    def refusedClient(self, listener: socket.socket, context: SSL.Context) -> str:
        """An ordinary client whose handshake fails; what it was told."""
        peer = Peer(self.keep(socket.create_connection(listener.getsockname())), context, server=False)
        with self.assertRaises(SSL.Error) as caught:
            peer.handshake()
        return str(caught.exception.args)


class Versions(NarrowingCase):
    """111 and 112, TLS_VERSION_MIN and TLS_VERSION_MAX."""

    def test_default(self) -> None:
        """At first, the policy's."""
        sock = self.tlsSocket()
        self.assertEqual(number(sock, Option.TLS_VERSION_MIN), TLS_1_2)
        self.assertEqual(number(sock, Option.TLS_VERSION_MAX), TLS_1_3)

    def test_client(self) -> None:
        """What a client speaks."""
        server = self.server(echo)
        for settings, version in (
            ((), TLS_1_3),
            (((Option.TLS_VERSION_MAX, TLS_1_2),), TLS_1_2),
            (((Option.TLS_VERSION_MIN, TLS_1_3),), TLS_1_3),
            (((Option.TLS_VERSION_MIN, TLS_1_2), (Option.TLS_VERSION_MAX, TLS_1_2)), TLS_1_2),
        ):
            sock = self.clientSocket()
            for option, setting in settings:
                sock.setsockopt(IPPROTO_TLS, option, setting)
            sock.connect(server.address)
            self.assertEqual(number(sock, Option.TLS_VERSION_CONN), version)

    def test_noCommon(self) -> None:
        """A peer without the version: EPROTO; with another setting the same socket connects."""
        server = self.server(echo, serverContext(version=TLS_1_2), quiet=True)
        sock = self.clientSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_VERSION_MIN, TLS_1_3)
        self.fails(errno.EPROTO, sock.connect, server.address)
        self.assertIn("version", self.tlsError(sock))
        sock.setsockopt(IPPROTO_TLS, Option.TLS_VERSION_MIN, TLS_1_2)
        sock.connect(server.address)
        self.assertEqual(number(sock, Option.TLS_VERSION_CONN), TLS_1_2)

    def test_server(self) -> None:
        """What a server speaks; accepted sockets tell the listener's setting."""
        listener = self.listening((Option.TLS_VERSION_MAX, TLS_1_2))
        self.peerTo(listener.getsockname())
        self.readable(listener)
        sock = self.keep(listener.accept()[0])
        self.assertEqual(number(sock, Option.TLS_VERSION_CONN), TLS_1_2)
        self.assertEqual(number(sock, Option.TLS_VERSION_MAX), TLS_1_2)
        self.assertIn("protocol version", self.refusedClient(listener, clientContext(version=TLS_1_3)))

    def test_values(self) -> None:
        """Versions that the policy does not allow: EPERM; no versions: EINVAL; the lowest above the highest: EINVAL."""
        sock = self.tlsSocket()
        for option in (Option.TLS_VERSION_MIN, Option.TLS_VERSION_MAX):
            for version in (0x0300, 0x0301, 0x0302):
                self.sets(errno.EPERM, sock, option, integer(version))
                self.assertIn("policy", self.tlsError(sock))
            for version in (-1, 0, 2, 0x0305, 0xFEFD, TLS_1_3 << 16):
                self.sets(errno.EINVAL, sock, option, integer(version))
        self.sets(0, sock, Option.TLS_VERSION_MIN, integer(TLS_1_3))
        self.sets(errno.EINVAL, sock, Option.TLS_VERSION_MAX, integer(TLS_1_2))
        self.assertEqual((number(sock, Option.TLS_VERSION_MIN), number(sock, Option.TLS_VERSION_MAX)), (TLS_1_3, TLS_1_3))


class Ciphers(NarrowingCase):
    """92, 97 and 110: TLS_DISABLE_CIPHER, TLS_TRUSTED_CIPHERS, TLS_ENABLE_CIPHER."""

    def left(self, sock: socket.socket) -> list[str]:
        """The ciphers in force."""
        return text(sock, Option.TLS_TRUSTED_CIPHERS).split(":")

    def test_default(self) -> None:
        """At first, the policy's, by their IANA names."""
        self.assertEqual(self.left(self.tlsSocket()), ALL)

    def test_client(self) -> None:
        """What a client offers, in TLS 1.3 and 1.2."""
        server = self.server(echo)
        for listed, expected in (
            (f"TLS_CHACHA20_POLY1305_SHA256:{GCM}", "TLS_CHACHA20_POLY1305_SHA256"),
            ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
            (CHACHA, CIPHERS[CHACHA]),
            (CIPHERS[GCM], CIPHERS[GCM]),
        ):
            sock = self.clientSocket()
            sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_CIPHERS, listed.encode())
            sock.connect(server.address)
            self.assertEqual(text(sock, Option.TLS_CHOSEN_CIPHER), expected)

    def test_server(self) -> None:
        """What a server takes."""
        listener = self.listening((Option.TLS_TRUSTED_CIPHERS, CHACHA.encode()))
        peer = self.peerTo(listener.getsockname())
        self.assertEqual(peer.tls.get_cipher_name(), CHACHA)
        only = clientContext(version=TLS_1_2)
        only.set_cipher_list(GCM.encode())
        self.assertIn("handshake failure", self.refusedClient(listener, only))

    def test_disable(self) -> None:
        """One after the other; the peer has only the disabled one: EPROTO."""
        only = serverContext(version=TLS_1_2)
        only.set_cipher_list(GCM.encode())
        server = self.server(echo, only, quiet=True)
        sock = self.clientSocket()
        self.sets(0, sock, Option.TLS_DISABLE_CIPHER, GCM.encode())
        self.sets(0, sock, Option.TLS_DISABLE_CIPHER, b"TLS_AES_128_GCM_SHA256\0")
        self.assertEqual(self.left(sock), [name for name in ALL if name not in (CIPHERS[GCM], "TLS_AES_128_GCM_SHA256")])
        self.fails(errno.EPROTO, sock.connect, server.address)
        self.sets(0, sock, Option.TLS_ENABLE_CIPHER, CIPHERS[GCM].encode())
        sock.connect(server.address)
        self.assertEqual(text(sock, Option.TLS_CHOSEN_CIPHER), CIPHERS[GCM])

    def test_last(self) -> None:
        """The last cipher cannot be disabled: EINVAL."""
        sock = self.tlsSocket()
        self.sets(0, sock, Option.TLS_TRUSTED_CIPHERS, GCM.encode())
        self.sets(errno.EINVAL, sock, Option.TLS_DISABLE_CIPHER, GCM.encode())
        self.assertEqual(self.left(sock), [CIPHERS[GCM]])

    def test_values(self) -> None:
        """A cipher that the policy does not allow: EPERM; what is no cipher: EINVAL.  Nothing changes."""
        sock = self.tlsSocket()
        for option in (Option.TLS_TRUSTED_CIPHERS, Option.TLS_ENABLE_CIPHER):
            for name in (b"RC4-SHA", b"AES128-SHA", b"DES-CBC3-SHA", b"TLS_RSA_WITH_RC4_128_SHA", b"TLS_AES_128_CCM_SHA256"):
                self.sets(errno.EPERM, sock, option, name)
                self.assertIn("policy", self.tlsError(sock))
        for option in (Option.TLS_TRUSTED_CIPHERS, Option.TLS_ENABLE_CIPHER, Option.TLS_DISABLE_CIPHER):
            for name in (b"ALL", b"HIGH", b"nonsense", b"!aNULL", b"TLS_AES_128_GCM_SHA256 ", b"\xff\xfe", b"a\0b"):
                self.sets(errno.EINVAL, sock, option, name)
        for option in (Option.TLS_ENABLE_CIPHER, Option.TLS_DISABLE_CIPHER):
            self.sets(errno.EINVAL, sock, option, f"{GCM}:{CHACHA}".encode())
        self.sets(0, sock, Option.TLS_DISABLE_CIPHER, b"RC4-SHA")
        self.assertEqual(self.left(sock), ALL)


class Revocation(NarrowingCase):
    """102 to 106, and 122: what the values may be.  What the checks do has its own cases."""

    SOURCES = (
        Option.TLS_OCSP_STAPLED_CHECKS,
        Option.TLS_OCSP_CHECKS,
        Option.TLS_CRL_CHECKS,
        Option.TLS_CACHED_REV_CHECKS,
    )

    def test_default(self) -> None:
        """No definite answer is required, every source counts, no answers are stapled."""
        sock = self.tlsSocket()
        self.assertEqual(number(sock, Option.TLS_REVOCATION_CHECKS), 0)
        self.assertEqual([number(sock, option) for option in self.SOURCES], [1, 1, 1, 1])
        self.assertEqual(number(sock, Option.TLS_SERVER_OCSP_STAPLING), 0)

    def test_sources(self) -> None:
        """Left out only where an answer is required, else EPERM; never all of them, EINVAL."""
        sock = self.tlsSocket()
        for option in self.SOURCES:
            self.sets(errno.EPERM, sock, option, integer(0))
            self.assertIn("TLS_REVOCATION_CHECKS", self.tlsError(sock))
        self.sets(0, sock, Option.TLS_REVOCATION_CHECKS, integer(1))
        for option in self.SOURCES[1:]:
            self.sets(0, sock, option, integer(0))
        self.sets(errno.EINVAL, sock, self.SOURCES[0], integer(0))
        self.assertEqual([number(sock, option) for option in self.SOURCES], [1, 0, 0, 0])
        self.sets(0, sock, Option.TLS_CRL_CHECKS, integer(1))
        self.assertEqual([number(sock, option) for option in self.SOURCES], [1, 0, 1, 0])
        self.sets(0, sock, Option.TLS_REVOCATION_CHECKS, integer(0))
        self.assertEqual([number(sock, option) for option in self.SOURCES], [1, 1, 1, 1])

    def test_values(self) -> None:
        """0 or 1."""
        sock = self.tlsSocket()
        for option in (*self.SOURCES, Option.TLS_REVOCATION_CHECKS, Option.TLS_SERVER_OCSP_STAPLING):
            for bad in (-1, 2, 1 << 24):
                self.sets(errno.EINVAL, sock, option, integer(bad))
                self.assertIn(option.name, self.tlsError(sock))
        for good in (1, 0):
            self.sets(0, sock, Option.TLS_SERVER_OCSP_STAPLING, integer(good))
            self.assertEqual(number(sock, Option.TLS_SERVER_OCSP_STAPLING), good)


class Names(NarrowingCase):
    """86, TLS_HOSTNAME: names for several certificates."""

    def test_wildcard(self) -> None:
        """*.NAME stands for one label; a top-level domain's cannot be set."""
        listener = self.listening((Option.TLS_HOSTNAME, b"*.w.example"), (Option.TLS_HOSTNAME, NAME.encode()))
        self.assertEqual(text(listener, Option.TLS_HOSTNAME), f"*.w.example,{NAME}")
        for name in ("a.w.example", "B.W.Example", NAME):
            self.peerTo(listener.getsockname(), name=name)
            self.readable(listener)
            self.assertEqual(text(self.keep(listener.accept()[0]), Option.TLS_HOSTNAME), name)
        for name in ("w.example", "b.a.w.example", "other.example"):
            peer = Peer(self.keep(socket.create_connection(listener.getsockname())), clientContext(), server=False, name=name)
            with self.assertRaises(SSL.Error) as caught:
                peer.handshake()
            self.assertIn("unrecognized name", str(caught.exception.args))
        for bad in (b"*", b"*.", b"*.example", b"a*.w.example", b"*.*.example", b"*.1.2.3.4"):
            self.sets(errno.EINVAL, self.tlsSocket(), Option.TLS_HOSTNAME, bad)

    def test_identity(self) -> None:
        """A name that a peer must prove is never a wildcard."""
        sock = self.tlsSocket()
        self.sets(errno.EINVAL, sock, Option.TLS_REMOTE_HOSTNAME, b"*.w.example")
        self.assertEqual(value(sock, Option.TLS_REMOTE_HOSTNAME), b"\0")
