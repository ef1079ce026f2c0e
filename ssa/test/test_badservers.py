# SPDX-License-Identifier: MIT
"""The collection of bad servers is what the documentation says, and each is as bad as it claims to be."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.test import badhellos, badserverspage
from ssa.test.badcollection import COLLECTION, NAME, OAKLEY_2
from ssa.test.badservers import running
from ssa.test.conformance import case_badservers, case_badserverspolicy
from ssa.test.pki import testCA


class PageTests(SynchronousTestCase):
    """C{docs/badservers.rst}."""

    def test_page(self) -> None:
        """It is the collection's: C{python -m ssa.test.badserverspage} writes it."""
        if not badserverspage.PAGE.exists():
            raise SkipTest("there is no documentation beside the package")
        self.assertEqual(badserverspage.PAGE.read_text(encoding="utf-8"), badserverspage.render())

    def test_rows(self) -> None:
        """Each server has a row with its errno and the words that the conformance cases look for."""
        page = badserverspage.render()
        for section in COLLECTION.values():
            for bad in section.values():
                number = "connects" if bad.cause is None else errno.errorcode[bad.cause.errno]
                self.assertIn(f"* - {bad.title}\n", page)
                self.assertIn(number, page)
                for words in bad.words:
                    self.assertIn(words, page)


class CollectionTests(SynchronousTestCase):
    """The table itself."""

    def test_run(self) -> None:
        """Each server is a conformance case, once."""
        names = [name for section in COLLECTION.values() for name in section]
        self.assertEqual(len(set(names)), len(names))
        cases = [
            method.removeprefix("test_")
            for case in (case_badservers.Servers, case_badserverspolicy.Policies)
            for method in dir(case)
            if method.startswith("test_") and method.removeprefix("test_") in names
        ]
        self.assertEqual(sorted(cases), sorted(names))

    def test_prime(self) -> None:
        """The weak group is a group, of 1024 bits: else it would be refused for another reason."""
        self.assertEqual(OAKLEY_2.bit_length(), 1024)
        self.assertEqual(pow(3, OAKLEY_2 - 1, OAKLEY_2), 1)


class LenientTests(SynchronousTestCase):
    """Clients that do not care get through to the servers whose badness is in the handshake."""

    def context(self, ciphers: str = "ALL:COMPLEMENTOFALL") -> ssl.SSLContext:
        """A client that takes everything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        return context

    def connect(self, name: str, section: str, context: ssl.SSLContext | None = None) -> tuple[str, str]:
        """Version and cipher of a connection to the first of a server's ways."""
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(running(COLLECTION[section][name].servers()[0]))
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            tls = stack.enter_context((context or self.context()).wrap_socket(plain, server_hostname=NAME))
            tls.sendall(b"ping")
            self.assertEqual(tls.recv(4), b"ping")
            cipher = tls.cipher()
            assert cipher is not None
            return tls.version() or "", cipher[0]

    def test_ciphers(self) -> None:
        """What only bad ciphers have."""
        for name, prefix in (
            ("onlyDHE", "DHE-"),
            ("weakDH", "DHE-RSA-AES128-GCM-SHA256"),
            ("onlyNull", ""),
            ("onlyAnonymous", "A"),
            ("onlyStaticRSA", ""),
        ):
            version, cipher = self.connect(name, "Ciphers")
            self.assertEqual(version, "TLSv1.2")
            self.assertTrue(cipher.startswith(prefix), cipher)
            self.assertEqual("NULL" in cipher, name == "onlyNull", cipher)

    def test_versions(self) -> None:
        """What has old versions only."""
        self.assertEqual(self.connect("tls10", "Versions")[0], "TLSv1")
        self.assertEqual(self.connect("tls11", "Versions")[0], "TLSv1.1")

    def test_weak(self) -> None:
        """Weak certificates are good ones but for that."""
        for name in COLLECTION["Weak keys and signatures"]:
            context = self.context()
            context.load_verify_locations(cadata=testCA().pem.decode())
            context.verify_mode, context.check_hostname = ssl.CERT_REQUIRED, True
            self.connect(name, "Weak keys and signatures", context)

    def test_hello(self) -> None:
        """A hello by hand is well-formed: a client that has offered the cipher goes on until the certificate is due."""
        context = self.context("ECDHE-RSA-AES128-GCM-SHA256")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            running(badhellos.choosing(badhellos.ECDHE_RSA)) as server,
            socket.create_connection(("127.0.0.1", server.port), 0.5) as plain,
        ):
            self.assertRaises(TimeoutError, context.wrap_socket, plain, server_hostname=NAME)
