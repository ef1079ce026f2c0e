# SPDX-License-Identifier: MIT
"""
TLS_REQUEST_PEER_AUTH and the certificates of clients, on both sides.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto

from ssa.api import IPPROTO_TLS, UPGRADE_FORMAT, Option, Role
from ssa.test.conformance.case import Thread, number, text, value
from ssa.test.conformance.case_options import OptionCase, named, rawSet
from ssa.test.conformance.peers import NAME, Peer, clientContext, echo, serverContext
from ssa.test.pki import CA, Credential, otherCA, testCA

NO: Final = 0
REQUEST: Final = 1
REQUIRE: Final = 2


def clientCredential(authority: CA | None = None, **flaws: bool) -> Credential:
    """A client's certificate, below an intermediate authority."""
    middle = (authority or testCA()).intermediate("SSA authority for clients")
    return middle.issue(["me.example"], subject="me", **{"purpose": "client", **flaws})  # type: ignore[arg-type]


class _ClientCertificates(OptionCase):
    """A case with listeners that ask for certificates."""

    def asking(self, wanted: int, trusted: bytes | None = None, **options: bytes) -> socket.socket:
        """A listener."""
        sock = self.tlsSocket()
        self.certify(sock)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REQUEST_PEER_AUTH, wanted)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, trusted or testCA().pem)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock

    def context(self, certificate: Credential | None) -> SSL.Context:
        """An ordinary client's."""
        return clientContext(version=self.version, certificate=certificate)

    def seen(self, listener: socket.socket, certificate: Credential | None) -> socket.socket:
        """Connect an ordinary client; the accepted socket, which has talked."""
        peer = self.peerTo(listener.getsockname(), context=self.context(certificate))
        self.readable(listener)
        sock = self.keep(listener.accept()[0])
        peer.send(b"ping")
        self.assertEqual(self.exactly(sock, 4), b"ping")
        sock.sendall(b"pong")
        self.assertEqual(peer.exactly(4), b"pong")
        return sock

    def unseen(self, listener: socket.socket, certificate: Credential | None) -> str:
        """Connect an ordinary client that is refused, and another one that is not; the alert that the first one got."""
        sock = self.keep(socket.create_connection(listener.getsockname()))
        peer = Peer(sock, self.context(certificate), server=False)
        with self.assertRaises(SSL.Error) as caught:
            peer.handshake()
            peer.recv(1)
        listener.settimeout(0.2)
        with self.assertRaises(TimeoutError):
            listener.accept()
        listener.settimeout(None)
        return str(caught.exception.args)


class _Server(_ClientCertificates):
    """The TLS socket listens."""

    def test_notAsked(self) -> None:
        """0: a client's certificate is not asked for."""
        sock = self.seen(self.asking(NO), clientCredential())
        self.fails(errno.ENODATA, value, sock, Option.TLS_PEER_IDENTITY)
        self.assertEqual(number(sock, Option.TLS_REQUEST_PEER_AUTH), NO)

    def test_known(self) -> None:
        """1 and 2: the subject and the chain of a client that has a certificate."""
        for wanted in (REQUEST, REQUIRE):
            mine = clientCredential()
            sock = self.seen(self.asking(wanted), mine)
            self.assertEqual(text(sock, Option.TLS_PEER_IDENTITY), "CN=me")
            self.assertEqual(value(sock, Option.TLS_PEER_CERTIFICATE_CHAIN), mine.chainPEM + b"\0")
            self.assertEqual(number(sock, Option.TLS_REQUEST_PEER_AUTH), wanted)

    def test_without(self) -> None:
        """1: a client without is accepted, ENODATA; 2: it is never seen."""
        sock = self.seen(self.asking(REQUEST), None)
        for option in (Option.TLS_PEER_IDENTITY, Option.TLS_PEER_CERTIFICATE_CHAIN):
            self.fails(errno.ENODATA, value, sock, option)
        listener = self.asking(REQUIRE)
        self.assertIn("handshake failure" if self.version == 0x0303 else "certificate required", self.unseen(listener, None))
        self.assertEqual(text(self.seen(listener, clientCredential()), Option.TLS_PEER_IDENTITY), "CN=me")

    def test_bad(self) -> None:
        """A certificate that is no good is refused by both: unknown issuer, expired, for another purpose, incomplete."""
        server = testCA().intermediate().issue(["me.example"], purpose="server")
        for wanted in (REQUEST, REQUIRE):
            for title, bad, alert in (
                ("issuer", clientCredential(otherCA()), "unknown ca"),
                ("expired", clientCredential(expired=True), "expired"),
                ("not yet valid", clientCredential(notYetValid=True), "certificate"),
                ("purpose", server, "certificate"),
                ("self-signed", testCA().issue(["me.example"], selfSigned=True, purpose="client"), "unknown ca"),
                ("incomplete", clientCredential(withoutChain=True), "unknown ca"),
            ):
                with self.subTest(title=title, wanted=wanted):
                    self.assertIn(alert, self.unseen(self.asking(wanted), bad))

    def test_trust(self) -> None:
        """What counts for clients is the listener's own trust, not the certificate that it serves with."""
        listener = self.asking(REQUIRE, otherCA().pem)
        self.assertIn("unknown ca", self.unseen(listener, clientCredential()))
        self.assertEqual(text(self.seen(listener, clientCredential(otherCA())), Option.TLS_PEER_IDENTITY), "CN=me")

    def test_system(self) -> None:
        """Without any trust of its own, the system's: the test's root is not in it."""
        sock = self.tlsSocket()
        self.certify(sock)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REQUEST_PEER_AUTH, REQUIRE)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        self.assertIn("unknown ca", self.unseen(sock, clientCredential()))

    def test_names(self) -> None:
        """The authorities are named to the client."""
        listener = self.asking(REQUEST, testCA().pem + otherCA().pem)
        peer = self.peerTo(listener.getsockname(), context=self.context(None))
        names = [each.rfc4514_string() for each in peer.tls.get_client_ca_list(as_cryptography=True)]
        self.assertEqual(sorted(names), sorted(each.certificate.subject.rfc4514_string() for each in (testCA(), otherCA())))
        self.assertIsInstance(peer.tls.get_client_ca_list(as_cryptography=True)[0], x509.Name)

    def test_byName(self) -> None:
        """The same is asked for whatever name the client asks for."""
        listener = self.tlsSocket()
        for each in (testCA().issue(["a.example"]), testCA().issue(["b.example"])):
            self.certify(listener, each)
        listener.setsockopt(IPPROTO_TLS, Option.TLS_REQUEST_PEER_AUTH, REQUIRE)
        listener.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for name in ("a.example", "b.example", "c.example", ""):
            sock = self.keep(socket.create_connection(listener.getsockname()))
            peer = Peer(sock, self.context(None), server=False, name=name)
            with self.assertRaises(SSL.Error):
                peer.handshake()
                peer.recv(1)
            self.peerTo(listener.getsockname(), context=self.context(clientCredential()), name=name)
            self.readable(listener)
            self.assertEqual(text(self.keep(listener.accept()[0]), Option.TLS_PEER_IDENTITY), "CN=me")

    def test_upgrade(self) -> None:
        """The same for the server's side of TLS_UPGRADE: EKEYREJECTED where the client has none."""
        for certificate, expected in ((clientCredential(), "success"), (None, "EKEYREJECTED")):
            listener = self.plainListener()
            theirs = self.keep(socket.create_connection(listener.getsockname()))
            mine = self.keep(listener.accept()[0])
            peer = Peer(theirs, self.context(certificate), server=False)
            sock = self.tlsSocket()
            self.certify(sock)
            sock.setsockopt(IPPROTO_TLS, Option.TLS_REQUEST_PEER_AUTH, REQUIRE)
            sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
            shaking = Thread(peer.handshake)
            result = rawSet(sock, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, mine.fileno(), Role.SERVER))
            self.assertEqual(named(result), expected)
            if not result:
                shaking.result()
                self.assertEqual(text(sock, Option.TLS_PEER_IDENTITY), "CN=me")
            else:
                self.assertIn("sent no certificate", self.tlsError(sock))


class Server13(_Server):
    """TLS 1.3."""


class Server12(_Server):
    """TLS 1.2."""

    version = 0x0303


class _Client(_ClientCertificates):
    """The TLS socket connects."""

    def demanding(self, authority: CA | None = None) -> SSL.Context:
        """The context of a server that demands a certificate."""
        return serverContext(version=self.version, clientCA=authority or testCA())

    def test_shown(self) -> None:
        """The server gets the whole chain."""
        mine = clientCredential()
        seen: list[list[crypto.X509]] = []

        def talk(peer: Peer) -> None:
            seen.append([peer.tls.get_peer_certificate()])  # type: ignore[list-item]
            echo(peer)

        sock = self.clientSocket()
        self.certify(sock, mine)
        sock.connect(self.server(talk, self.demanding()).address)
        sock.sendall(b"ping")
        self.assertEqual(self.exactly(sock, 4), b"ping")
        self.assertEqual(seen[0][0].to_cryptography(), mine.certificate)

    def test_bothEnds(self) -> None:
        """Two TLS sockets: the server knows the client's subject and chain."""
        mine = clientCredential()
        listener = self.asking(REQUIRE)
        sock = self.clientSocket()
        self.certify(sock, mine)
        if self.version:
            sock.setsockopt(IPPROTO_TLS, Option.TLS_VERSION_MAX, self.version)
        sock.connect(listener.getsockname())
        self.readable(listener)
        accepted = self.keep(listener.accept()[0])
        self.assertEqual(text(accepted, Option.TLS_PEER_IDENTITY), "CN=me")
        self.assertEqual(value(accepted, Option.TLS_PEER_CERTIFICATE_CHAIN), mine.chainPEM + b"\0")


class Client13(_Client):
    """TLS 1.3: the server's refusal comes after connect."""

    version = 0x0304

    def refused(self, sock: socket.socket, context: SSL.Context) -> str:
        """connect succeeds, the first recv fails; TLS_ERROR."""
        sock.connect(self.server(echo, context, quiet=True).address)
        self.fails(errno.ECONNRESET, sock.recv, 1)
        return self.tlsError(sock)

    def test_missing(self) -> None:
        """ECONNRESET at the first recv; TLS_ERROR says that a certificate is missing."""
        told = self.refused(self.clientSocket(), self.demanding())
        self.assertIn("demands a client certificate and there is none", told)

    def test_refused(self) -> None:
        """The same for a certificate that the server does not want."""
        sock = self.clientSocket()
        self.certify(sock, clientCredential(otherCA()))
        told = self.refused(sock, self.demanding())
        self.assertIn("refuses our certificate", told)
        self.assertIn("unknown_ca", told)

    def test_ownServer(self) -> None:
        """A TLS socket as the server says the same."""
        sock = self.clientSocket()
        sock.connect(self.asking(REQUIRE).getsockname())
        self.fails(errno.ECONNRESET, sock.recv, 1)
        self.assertIn("demands a client certificate and there is none", self.tlsError(sock))


class Client12(_Client):
    """TLS 1.2: connect fails."""

    version = 0x0303

    def test_missing(self) -> None:
        """ENOKEY; with a certificate the same socket connects."""
        server = self.server(echo, self.demanding(), quiet=True)
        sock = self.clientSocket()
        self.fails(errno.ENOKEY, sock.connect, server.address)
        self.assertIn("demands a client certificate and there is none", self.tlsError(sock))
        self.certify(sock, clientCredential())
        sock.connect(server.address)

    def test_refused(self) -> None:
        """EPROTO, and TLS_ERROR names the alert."""
        sock = self.clientSocket()
        self.certify(sock, clientCredential(otherCA()))
        self.fails(errno.EPROTO, sock.connect, self.server(echo, self.demanding(), quiet=True).address)
        told = self.tlsError(sock)
        self.assertIn("refuses our certificate", told)
        self.assertIn("unknown_ca", told)


class Values(_ClientCertificates):
    """The values of TLS_REQUEST_PEER_AUTH."""

    def test_values(self) -> None:
        """0, 1 and 2; else EINVAL.  At first 0."""
        sock = self.tlsSocket()
        self.assertEqual(number(sock, Option.TLS_REQUEST_PEER_AUTH), NO)
        for good in (2, 1, 0):
            self.sets(0, sock, Option.TLS_REQUEST_PEER_AUTH, struct.pack("=i", good))
            self.assertEqual(number(sock, Option.TLS_REQUEST_PEER_AUTH), good)
        for bad in (-1, 3, 1 << 20):
            self.sets(errno.EINVAL, sock, Option.TLS_REQUEST_PEER_AUTH, struct.pack("=i", bad))
            self.assertIn("TLS_REQUEST_PEER_AUTH", self.tlsError(sock))

    def test_client(self) -> None:
        """It has no effect on a socket that connects."""
        sock = self.clientSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REQUEST_PEER_AUTH, REQUIRE)
        sock.connect(self.server(echo).address)
        self.assertEqual(text(sock, Option.TLS_PEER_IDENTITY), f"CN={NAME}")
