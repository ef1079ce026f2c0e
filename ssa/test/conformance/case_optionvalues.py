# SPDX-License-Identifier: MIT
"""
What each option of the level IPPROTO_TLS does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.errors import LONGEST_REASON
from ssa.test.conformance.case import Thread, text, value
from ssa.test.conformance.case_options import OptionCase, named
from ssa.test.conformance.peers import NAME, Peer, clientContext, credential, echo, serverContext
from ssa.test.pki import Credential, otherCA, testCA

ORDINARY: Final = 65534


def serverName(peer: Peer) -> bytes | None:
    """The name that a client asked for."""
    return peer.tls.get_servername()


class RemoteHostname(OptionCase):
    """85, TLS_REMOTE_HOSTNAME."""

    def connect(self, name: bytes, identity: Credential | None = None) -> Peer:
        """Connect a socket that expects a name; the server's end."""
        listener = self.plainListener()
        accepting = Thread(lambda: self.peerOf(listener, serverContext(identity)))
        sock = self.clientSocket(name="")
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, name)
        sock.connect(listener.getsockname())
        peer: Peer = accepting.result()
        self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), name.rstrip(b"\0").decode())
        return peer

    def test_names(self) -> None:
        """Names, with and without the final NUL, are sent and must be in the certificate."""
        for name in (NAME.encode(), NAME.encode() + b"\0"):
            with self.subTest(name=name):
                self.assertEqual(serverName(self.connect(name)), NAME.encode())

    def test_addresses(self) -> None:
        """IP literals are checked, and not sent."""
        for name in (b"127.0.0.1", b"127.0.0.2\0", b"::1", b"0:0:0:0:0:0:0:1"):
            with self.subTest(name=name):
                self.assertIsNone(serverName(self.connect(name)))

    def test_internationalized(self) -> None:
        """An A-label is a name as any other, a U-label is EINVAL."""
        label = "xn--bcher-kva.example"
        self.assertEqual(serverName(self.connect(label.encode(), testCA().issue([label]))), label.encode())
        self.sets(errno.EINVAL, self.tlsSocket(), Option.TLS_REMOTE_HOSTNAME, "bücher.example".encode())

    def test_wildcard(self) -> None:
        """A certificate for *.wild.example is one for its children only."""
        identity = testCA().issue(["*.wild.example"])
        self.assertEqual(serverName(self.connect(b"a.wild.example", identity)), b"a.wild.example")
        for name in ("wild.example", "a.b.wild.example"):
            sock = self.clientSocket(name=name)
            self.fails(errno.EKEYREJECTED, sock.connect, self.server(echo, serverContext(identity), quiet=True).address)

    def test_wrong(self) -> None:
        """The certificate is another's: EKEYREJECTED, and TLS_ERROR tells the name."""
        server = self.server(echo, quiet=True)
        for name in ("other.example", "server.example.org", "example", "127.0.0.3", "::2"):
            with self.subTest(name=name):
                sock = self.clientSocket(name=name)
                self.fails(errno.EKEYREJECTED, sock.connect, server.address)
                self.assertIn(name, self.tlsError(sock))

    def test_last(self) -> None:
        """The last one set counts."""
        sock = self.clientSocket(name="other.example")
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        sock.connect(self.server(echo).address)

    def test_values(self) -> None:
        """The longest name has 253 bytes; what is no name: EINVAL."""
        longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61]).encode()
        self.assertEqual(len(longest), 253)
        sock = self.tlsSocket()
        for good in (longest, longest + b"\0"):
            self.sets(0, sock, Option.TLS_REMOTE_HOSTNAME, good)
            self.assertEqual(value(sock, Option.TLS_REMOTE_HOSTNAME), longest + b"\0")
        for bad in (
            longest + b"e", b"a" * 64 + b".example", b"\0", b"a\0b", b"a b", b"*.example", b"server.example:443",
            b"[::1]", b"https://server.example", b"..", b"a..b", b"\xff\xfe", b"server.example\0\0", b"1.2.3", b"1.2.3.4.5",
        ):  # fmt: skip
            with self.subTest(name=bad):
                self.sets(errno.EINVAL, sock, Option.TLS_REMOTE_HOSTNAME, bad)
        self.assertEqual(value(sock, Option.TLS_REMOTE_HOSTNAME), longest + b"\0")


class Hostname(OptionCase):
    """86, TLS_HOSTNAME."""

    def serving(self, *names: bytes) -> socket.socket:
        """A listener that serves names."""
        sock = self.tlsSocket()
        self.certify(sock)
        for name in names:
            sock.setsockopt(IPPROTO_TLS, Option.TLS_HOSTNAME, name)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock

    def asked(self, listener: socket.socket, name: str) -> str:
        """What an accepted socket says that its client asked for."""
        self.peerTo(listener.getsockname(), name=name)
        sock = self.keep(listener.accept()[0])
        return text(sock, Option.TLS_HOSTNAME)

    def test_any(self) -> None:
        """A listener without names serves any; accepted sockets tell the one asked for, "" if none was."""
        listener = self.serving()
        for name in (NAME, "whatever.example", ""):
            self.assertEqual(self.asked(listener, name), name)

    def test_several(self) -> None:
        """Set repeatedly: each of them is served, others are refused and never seen."""
        listener = self.serving(b"a.example", b"b.example\0", NAME.encode())
        for name in ("b.example", NAME, "a.example"):
            self.assertEqual(self.asked(listener, name), name)
        for name in ("c.example", "x.a.example", "example"):
            with self.subTest(name=name), self.assertRaises(SSL.Error):
                self.peerTo(listener.getsockname(), name=name)
        self.assertEqual(self.asked(listener, "a.example"), "a.example", "a refused one was in the queue")

    def test_client(self) -> None:
        """Set on a socket that then connects it has no effect."""
        sock = self.clientSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_HOSTNAME, b"other.example")
        listener = self.plainListener()
        accepting = Thread(lambda: self.peerOf(listener))
        sock.connect(listener.getsockname())
        self.assertEqual(serverName(accepting.result()), NAME.encode())

    def test_values(self) -> None:
        """What is no name: EINVAL."""
        sock = self.tlsSocket()
        for bad in (b"\0", b"a b", "bücher.example".encode(), b"a\0b", b"a" * 254, b"a" * 64):
            with self.subTest(name=bad):
                self.sets(errno.EINVAL, sock, Option.TLS_HOSTNAME, bad)


class FileCase(OptionCase):
    """A case with files."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ssa-options-"))
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.directory.chmod(0o755)
        previous = os.getcwd()
        self.addCleanup(os.chdir, previous)

    def file(self, content: bytes, name: str = "file.pem") -> bytes:
        """A file's path."""
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return os.fsencode(path)

    def asOpen(self, sock: socket.socket, option: Option, path: bytes) -> str:
        """
        Say that an option with a path fails as open(2) does.

        @return: the errno's name; C{""} if it can be opened.
        """
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as failure:
            assert failure.errno is not None
            self.sets(failure.errno, sock, option, path)
            return errno.errorcode[failure.errno]
        return ""

    def failures(self, option: Option) -> None:
        """Files that cannot be opened, and those that hold something else."""
        sock = self.tlsSocket()
        loop = self.directory / "loop"
        loop.symlink_to(loop)
        plain = self.file(b"", "plain.pem")
        for path, expected in (
            (os.fsencode(self.directory / "missing.pem"), "ENOENT"),
            (b"missing.pem", "ENOENT"),
            (os.fsencode(loop), "ELOOP"),
            (plain + b"/below", "ENOTDIR"),
            (b"/" + b"n" * 300, "ENAMETOOLONG"),
        ):
            with self.subTest(path=path):
                self.assertEqual(self.asOpen(sock, option, path), expected)
                self.assertNotEqual(self.tlsError(sock), "")
        for content in (
            b"", b"hello\n", bytes(1000), b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"-----BEGIN",
        ):  # fmt: skip
            with self.subTest(content=content):
                self.sets(errno.EINVAL, sock, option, self.file(content))
                if b"-----BEGIN" in content:
                    self.sets(errno.EINVAL, sock, option, content)
        os.mkfifo(self.directory / "fifo")
        self.sets(errno.EINVAL, sock, option, os.fsencode(self.directory / "fifo"))
        self.unreadable(option)

    def longPaths(self, option: Option) -> None:
        """TLS_ERROR shows a path that cannot be opened in at most 1000 bytes, and can be printed, whatever is in the path."""
        sock = self.tlsSocket()
        for word in (b"x", b"\x01", b"\xff", "\u00e9".encode(), "\U0001f600".encode()):
            path = b"/".join([b"/missing", *[word * (240 // len(word))] * 8])
            with self.subTest(word=word):
                self.sets(errno.ENOENT, sock, option, path)
                said = self.tlsError(sock)
                self.assertTrue(said.startswith(f"{option.name}: "), said)
                self.assertIn("/missing/", said)
                self.assertTrue(said.isprintable(), said)
                self.assertLessEqual(len(said.encode()), LONGEST_REASON)

    def unreadable(self, option: Option) -> None:
        """A file that the caller may not read, though another user, root perhaps, could."""
        secret = self.file(testCA().pem, "secret.pem")
        os.chmod(secret, 0)
        closed = self.file(testCA().pem, "closed/readable.pem")
        (self.directory / "closed").chmod(0)

        def child() -> None:
            if os.geteuid() == 0:
                with contextlib.suppress(PermissionError):  # not every user namespace has groups
                    os.setgroups([])
                    os.setegid(ORDINARY)
                os.seteuid(ORDINARY)
            sock = self.tlsSocket()
            for path in (secret, closed):
                self.assertEqual(self.asOpen(sock, option, path), "EACCES")
                self.assertNotEqual(self.tlsError(sock), "")

        try:
            self.reap(self.child(child))
        finally:
            (self.directory / "closed").chmod(0o755)


class TrustedPeerCertificates(FileCase):
    """87, TLS_TRUSTED_PEER_CERTIFICATES."""

    def outcome(self, trusted: bytes) -> int:
        """The errno of a connect with this as trust store."""
        sock = self.tlsSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        self.sets(0, sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, trusted)
        return sock.connect_ex(self.server(echo, quiet=True).address)

    def test_pem(self) -> None:
        """PEM: one certificate or several, with text around them, and with a final NUL."""
        good, bad = testCA().pem, otherCA().pem
        for trusted in (good, good + b"\0", bad + good, b"# our root\n" + good + b"\n# the end"):
            self.assertEqual(named(self.outcome(trusted)), "success")
        self.assertEqual(named(self.outcome(bad)), "EKEYREJECTED")

    def test_replaces(self) -> None:
        """The last one set is the whole store."""
        sock = self.clientSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, otherCA().pem)
        self.fails(errno.EKEYREJECTED, sock.connect, self.server(echo, quiet=True).address)

    def test_paths(self) -> None:
        """A file or a directory of files, absolute or relative, with and without a final NUL."""
        path = self.file(testCA().pem, "store/root.pem")
        self.file(otherCA().pem, "store/other.pem")
        wrong = self.file(otherCA().pem, "wrong/root.pem")
        os.chdir(self.directory)
        for trusted in (path, path + b"\0", b"store/root.pem", b"./store/../store/root.pem"):
            with self.subTest(path=trusted):
                self.assertEqual(named(self.outcome(trusted)), "success")
        for trusted in (os.path.dirname(path), b"store", b"store/\0"):
            with self.subTest(path=trusted):
                self.assertEqual(named(self.outcome(trusted)), "success")
        for trusted in (wrong, os.path.dirname(wrong)):
            self.assertEqual(named(self.outcome(trusted)), "EKEYREJECTED")

    def test_largeFile(self) -> None:
        """The limit of 64 KiB is the value's, not the file's: stores of real systems are larger."""
        path = self.file(otherCA().pem * 300 + testCA().pem)
        self.assertGreater(os.path.getsize(path), 1 << 17)
        self.assertEqual(named(self.outcome(path)), "success")

    def test_failures(self) -> None:
        """Files that are missing, unreadable, or no PEM."""
        self.failures(Option.TLS_TRUSTED_PEER_CERTIFICATES)
        empty = self.directory / "empty"
        empty.mkdir()
        self.sets(errno.EINVAL, self.tlsSocket(), Option.TLS_TRUSTED_PEER_CERTIFICATES, os.fsencode(empty))

    def test_otherChecks(self) -> None:
        """Every other check stays."""
        for identity, expected in (
            (testCA().issue([NAME], expired=True), errno.EKEYEXPIRED),
            (testCA().issue([NAME], notYetValid=True), errno.EKEYEXPIRED),
            (testCA().issue([NAME], purpose="client"), errno.EKEYREJECTED),
            (testCA().issue(["other.example"]), errno.EKEYREJECTED),
            (testCA().issue([NAME], selfSigned=True), errno.EKEYREJECTED),
        ):
            sock = self.clientSocket()
            self.fails(expected, sock.connect, self.server(echo, serverContext(identity), quiet=True).address)


class Certificates(FileCase):
    """88 and 89, TLS_CERTIFICATE_CHAIN and TLS_PRIVATE_KEY."""

    def bound(self) -> socket.socket:
        """A socket that may listen."""
        sock = self.tlsSocket()
        sock.bind(("127.0.0.1", 0))
        return sock

    def shown(self, listener: socket.socket, name: str = NAME, context: SSL.Context | None = None) -> bytes:
        """The subject's common name that a listener shows a client."""
        peer = self.peerTo(listener.getsockname(), name=name, context=context)
        self.keep(listener.accept()[0])
        certificate = peer.tls.get_peer_certificate()
        assert certificate is not None
        return str(certificate.get_subject().CN).encode()

    def test_order(self) -> None:
        """PEM or paths, the chain before the key or after it."""
        identity = credential()
        chains = (identity.chainPEM, identity.chainPEM + b"\0", self.file(identity.chainPEM, "chain.pem"), b"chain.pem")
        keys = (identity.keyPEM, identity.keyPEM + b"\0", self.file(identity.keyPEM, "key.pem") + b"\0", b"key.pem")
        os.chdir(self.directory)
        for chain, key in zip(chains, keys, strict=True):
            for chainFirst in (True, False):
                with self.subTest(chain=chain, chainFirst=chainFirst):
                    sock = self.bound()
                    both = [(Option.TLS_CERTIFICATE_CHAIN, chain), (Option.TLS_PRIVATE_KEY, key)]
                    for option, data in both if chainFirst else reversed(both):
                        self.sets(0, sock, option, data)
                    sock.listen()
                    self.assertEqual(self.shown(sock), NAME.encode())
                    self.assertEqual(text(sock, Option.TLS_CERTIFICATE_CHAIN).encode(), identity.chainPEM)

    def test_mismatch(self) -> None:
        """No key, no chain, or another's key: ENOKEY from listen and from connect; the right one heals it."""
        good = testCA().issue([NAME], key=ec.generate_private_key(ec.SECP256R1()), purpose="both")
        other = testCA().issue([NAME], key=ec.generate_private_key(ec.SECP256R1()), purpose="both")
        for title, chain, key in (("no key", good.chainPEM, b""), ("no chain", b"", good.keyPEM),
                                  ("another key", good.chainPEM, other.keyPEM)):  # fmt: skip
            with self.subTest(title=title):
                sock, client = self.bound(), self.clientSocket()
                for each in (sock, client):
                    if chain:
                        self.sets(0, each, Option.TLS_CERTIFICATE_CHAIN, chain)
                    if key:
                        self.sets(0, each, Option.TLS_PRIVATE_KEY, key)
                self.fails(errno.ENOKEY, sock.listen)
                self.assertNotEqual(self.tlsError(sock), "")
                self.fails(errno.ENOKEY, client.connect, self.server(echo, quiet=True).address)
                self.assertNotEqual(self.tlsError(client), "")
        sock = self.bound()
        self.fails(errno.ENOKEY, sock.listen)
        self.sets(0, sock, Option.TLS_CERTIFICATE_CHAIN, good.chainPEM)
        self.fails(errno.ENOKEY, sock.listen)
        self.sets(0, sock, Option.TLS_PRIVATE_KEY, good.keyPEM)
        sock.listen()
        self.assertEqual(self.shown(sock), NAME.encode())

    def test_byName(self) -> None:
        """Several chains: the client's name chooses."""
        sock = self.bound()
        names = ("a.example", "b.example", "*.wild.example")
        for name in names:
            self.certify(sock, testCA().issue([name], key=ec.generate_private_key(ec.SECP256R1())))
        sock.listen()
        for asked, expected in (("b.example", "b.example"), ("a.example", "a.example"), ("x.wild.example", names[2])):
            self.assertEqual(self.shown(sock, asked), expected.encode())
        self.assertEqual(text(sock, Option.TLS_CERTIFICATE_CHAIN).count("BEGIN CERTIFICATE"), 3)

    def test_byKeyType(self) -> None:
        """Several kinds of keys for one name: what the client can verify chooses."""
        sock = self.bound()
        for kind in ("rsa", "ec"):
            self.certify(sock, testCA().issue([NAME], key=kind, subject=f"{kind} key"))
        sock.listen()
        for cipher, expected in ((b"ECDHE-RSA-AES128-GCM-SHA256", b"rsa key"), (b"ECDHE-ECDSA-AES128-GCM-SHA256", b"ec key")):
            context = clientContext(version=0x0303)
            context.set_cipher_list(cipher)
            self.assertEqual(self.shown(sock, context=context), expected)

    def test_intermediates(self) -> None:
        """The whole chain is sent, the leaf first."""
        identity = testCA().intermediate().issue([NAME])
        listener = self.listener(identity=identity)
        client = self.clientSocket()
        client.connect(listener.getsockname())
        self.assertEqual(text(client, Option.TLS_PEER_CERTIFICATE_CHAIN).encode(), identity.chainPEM)

    def test_client(self) -> None:
        """A client shows its certificate to a server that demands one."""
        identity = testCA().issue(["somebody"], purpose="client")
        for version in (0x0303, 0x0304):
            listener = self.plainListener()
            context = serverContext(version=version, clientCA=testCA())
            accepting = Thread(lambda listener=listener, context=context: self.peerOf(listener, context))  # type: ignore[misc]
            sock = self.clientSocket()
            self.certify(sock, identity)
            sock.connect(listener.getsockname())
            shown = accepting.result().tls.get_peer_certificate()
            self.assertEqual(shown.get_subject().CN, "somebody")

    def test_values(self) -> None:
        """An encrypted key, a key for a chain, a chain for a key: EINVAL."""
        sock = self.tlsSocket()
        for bad in (credential().encryptedKeyPEM, self.file(credential().encryptedKeyPEM), credential().chainPEM):
            self.sets(errno.EINVAL, sock, Option.TLS_PRIVATE_KEY, bad)
        self.sets(errno.EINVAL, sock, Option.TLS_CERTIFICATE_CHAIN, credential().keyPEM)
        self.assertEqual(value(sock, Option.TLS_CERTIFICATE_CHAIN), b"\0")

    def test_chainFailures(self) -> None:
        """Files that are missing, unreadable, or no PEM."""
        self.failures(Option.TLS_CERTIFICATE_CHAIN)
        self.longPaths(Option.TLS_CERTIFICATE_CHAIN)

    def test_keyFailures(self) -> None:
        """The same for keys."""
        self.failures(Option.TLS_PRIVATE_KEY)
