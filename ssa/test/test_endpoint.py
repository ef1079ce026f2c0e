# SPDX-License-Identifier: MIT
"""Tests for L{ssa.intercept.endpoint}."""

from __future__ import annotations

import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ssa.api import InternetAddress
from ssa.intercept.endpoint import Endpoint, EndpointTable, Home, State
from ssa.intercept.namespace import socketCookie

HERE, THERE = InternetAddress(2, "192.0.2.1", 4000), InternetAddress(2, "192.0.2.2", 443)


class EndpointTableTests(SynchronousTestCase):
    """The table."""

    def setUp(self) -> None:
        nothing: Any = None
        self.home, self.other = Home(1, None, nothing, nothing), Home(2, 5, nothing, nothing)
        self.table = EndpointTable()

    def endpoint(self, number: int, home: Home | None = None, **more: Any) -> Endpoint:
        one = Endpoint(number, socket.AF_INET, 1000 + number, 2000 + number, home or self.home, 1, **more)
        self.table.add(one)
        return one

    def test_of(self) -> None:
        with socket.socket(socket.AF_INET6) as sock:
            endpoint = Endpoint.of(7, sock, self.home, 3)
            self.assertEqual((endpoint.id, endpoint.family, endpoint.session), (7, socket.AF_INET6, 3))
            self.assertEqual(endpoint.cookie, socketCookie(sock))
            self.assertIs(endpoint.state, State.NEW)

    def test_found(self) -> None:
        one, two = self.endpoint(1), self.endpoint(2)
        self.assertIs(self.table.byID(1), one)
        self.assertIs(self.table.byCookie(1002), two)
        self.assertIs(self.table.byInode(2001), one)
        self.assertEqual((len(self.table), list(self.table)), (2, [one, two]))

    def test_removed(self) -> None:
        one = self.endpoint(1)
        for _ in range(2):
            self.table.remove(one)
            self.assertEqual((self.table.byID(1), self.table.byCookie(1001), self.table.byInode(2001)), (None, None, None))
        self.assertEqual(len(self.table), 0)

    def test_inodeAgain(self) -> None:
        """The kernel may use an inode number again before we hear of the close."""
        one = self.endpoint(1)
        two = Endpoint(2, socket.AF_INET, 1002, one.inode, self.home, 1)
        self.table.add(two)
        self.table.remove(one)
        self.assertIs(self.table.byInode(one.inode), two)

    def test_removeWhileIterating(self) -> None:
        for number in range(10):
            self.endpoint(number)
        for endpoint in self.table:
            self.table.remove(endpoint)
        self.assertEqual(len(self.table), 0)

    def test_listeners(self) -> None:
        name = ("0.0.0.0", 443)
        one, two = self.endpoint(1, name=name), self.endpoint(2, name=name)
        stranger, elsewhere = self.endpoint(3, name=name, home=self.other), self.endpoint(4, name=("0.0.0.0", 444))
        for endpoint in (one, two, stranger, elsewhere, one):
            self.table.listens(endpoint)
        self.assertEqual(self.table.listenersAt(self.home, name), [one, two])
        self.assertEqual(self.table.listenersAt(self.other, name), [stranger])
        self.table.remove(one)
        self.table.remove(one)
        self.assertEqual(self.table.listenersAt(self.home, name), [two])
        self.table.remove(two)
        self.assertEqual(self.table.listenersAt(self.home, name), [])

    def test_mirror(self) -> None:
        self.assertFalse(self.table.hasMirror(self.home, HERE, THERE))
        one = self.endpoint(1, state=State.CONNECTED, external=THERE, remote=HERE)
        self.assertTrue(self.table.hasMirror(self.home, HERE, THERE))
        self.assertFalse(self.table.hasMirror(self.home, THERE, HERE))
        self.assertFalse(self.table.hasMirror(self.other, HERE, THERE))
        one.back = True
        self.assertFalse(self.table.hasMirror(self.home, HERE, THERE))
        one.back, one.state = False, State.NEW
        self.assertFalse(self.table.hasMirror(self.home, HERE, THERE))
