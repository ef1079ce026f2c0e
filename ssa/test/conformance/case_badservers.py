# SPDX-License-Identifier: MIT
"""
The collection of bad servers, L{ssa.test.badcollection}: a program with the default policy connects to each.

The table of C{docs/badservers.rst} is made from the same data.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from ssa.api import IPPROTO_TLS, Option
from ssa.test import badservers
from ssa.test.badcollection import COLLECTION, Bad
from ssa.test.conformance.case import TLSCase
from ssa.test.pki import testCA


class ServersCase(TLSCase):
    """Connects and compares."""

    timeout = 30.0

    def meet(self, bad: Bad) -> None:
        """
        Connect to each of a server's ways, with one socket after the other, and then with the same one to a good server.
        """
        expected = 0 if bad.cause is None else bad.cause.errno
        for number, serve in enumerate(bad.servers()):
            with self.subTest(way=number):
                server = self.keep(badservers.Server(serve))
                sock = self.tlsSocket()
                sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
                if bad.host:
                    sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, bad.host.encode())
                found = sock.connect_ex(("127.0.0.1", server.port))
                told = self.tlsError(sock)
                self.assertEqual(errno.errorcode.get(expected, "0"), errno.errorcode.get(found, str(found)), told)
                if bad.cause is None:
                    self.assertEqual(told, "")
                    sock.sendall(b"ping")
                    self.assertEqual(self.exactly(sock, 4), b"ping")
                else:
                    self.assertTrue(told.isprintable(), repr(told))
                    self.assertTrue(told.startswith(bad.cause.text), told)
                    rest = told[len(bad.cause.text) :]
                    for words in bad.words:
                        _, found_, rest = rest.partition(words)
                        self.assertEqual(found_, words, told)
                    self.fails(errno.ENOTCONN, sock.getpeername)
                sock.close()
                server.close()


def _method(bad: Bad) -> Callable[[ServersCase], None]:
    def test(self: ServersCase) -> None:
        self.meet(bad)

    test.__doc__ = f"{bad.title}."
    return test


def add(case: type[ServersCase], *policies: str) -> None:
    """Give a class of cases a method for each server that needs one of these policies."""
    for section in COLLECTION.values():
        for name, bad in section.items():
            if bad.policy in policies:
                setattr(case, f"test_{name}", _method(bad))


class Servers(ServersCase):
    """All that need no more than the default policy."""


add(Servers, "")
