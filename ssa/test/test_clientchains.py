# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.clientchains}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ssa.test.pki import Credential, testCA
from ssa.tls.clientchains import LARGEST_SENT, ChainStore, ClientChains

ROOT = testCA().certificate


class ClientChainTests(SynchronousTestCase):
    """L{ClientChains} and L{ChainStore}."""

    def setUp(self) -> None:
        middle = testCA().intermediate()
        self.clients = [middle.issue([f"client{number}"], purpose="client") for number in range(6)]
        self.store = ChainStore()

    @staticmethod
    def keep(listener: ClientChains, client: Credential) -> None:
        listener.keep((*client.chain, ROOT), client.chain)

    def known(self, listener: ClientChains) -> list[int]:
        """Which clients a listener knows."""
        return [number for number, client in enumerate(self.clients) if listener.verified(client.certificate)]

    def test_both(self) -> None:
        """The chains are those of this listener and client; of one that is not known there is its own certificate at most."""
        one, two = ClientChains(b"1", 1, self.store), ClientChains(b"2", 1, self.store)
        own, other = self.clients[:2]
        self.keep(one, own)
        self.assertEqual(one.verified(own.certificate), (*own.chain, ROOT))
        self.assertEqual(one.sent(own.certificate), own.chain)
        for listener, client in ((two, own), (one, other), (ClientChains(b"1", 2, self.store), own)):
            self.assertEqual(listener.verified(client.certificate), ())
            self.assertEqual(listener.sent(client.certificate), (client.certificate,))
        one.keep((own.certificate,), own.chain)  # the last handshake counts
        self.assertEqual(one.verified(own.certificate), (own.certificate,))
        two.keep((), own.chain)  # nothing was verified
        self.assertEqual(two.sent(own.certificate), (own.certificate,))

    def test_sendsMuch(self) -> None:
        """Of a client that sends too much, what was verified is kept."""
        one = ClientChains(b"1", 1, self.store)
        own = self.clients[0]
        one.keep((*own.chain, ROOT), (own.certificate, *own.chain[1:] * 40))
        self.assertEqual(one.verified(own.certificate), (*own.chain, ROOT))
        self.assertEqual(one.sent(own.certificate), (own.certificate,))
        self.assertLess(self.store.size, LARGEST_SENT)

    def test_issuersOnce(self) -> None:
        """The issuers of many clients are kept once, until the last of them is gone."""
        one = ClientChains(b"1", 0, self.store)
        self.keep(one, self.clients[0])
        first = self.store.size
        self.keep(one, self.clients[0])
        self.assertEqual(self.store.size, first)
        self.keep(one, self.clients[1])
        second = self.store.size - first
        self.assertEqual(second, 512)
        self.store._most = first
        self.keep(one, self.clients[2])
        self.assertEqual((self.known(one), self.store.size), ([2], first))
        self.store._most = 0
        self.keep(one, self.clients[3])
        self.assertEqual((self.known(one), self.store.size), ([], 0))
        self.assertEqual(vars(self.store)["_owners"], {})

    def sizeOf(self, count: int) -> int:
        """How much some clients of one user weigh."""
        store = ChainStore()
        for client in self.clients[:count]:
            self.keep(ClientChains(b"1", 1, store), client)
        return store.size

    def test_perUser(self) -> None:
        """A user's listeners together are bounded, root's by the whole only; who was not seen for longest is forgotten."""
        self.store = ChainStore(mostPerOwner=self.sizeOf(3))
        mine, root = ClientChains(b"1", 1, self.store), ClientChains(b"2", 0, self.store)
        for client in self.clients[:3]:
            self.keep(mine, client)
        mine.verified(self.clients[0].certificate)
        self.keep(mine, self.clients[3])
        self.assertEqual(self.known(mine), [0, 2, 3])
        for client in self.clients:
            self.keep(root, client)
        self.assertEqual(self.known(root), [0, 1, 2, 3, 4, 5])
        self.assertEqual(self.known(mine), [0, 2, 3])
        other = ClientChains(b"3", 1, self.store)
        for client in self.clients[:3]:
            self.keep(other, client)
        self.assertEqual((self.known(mine), self.known(other)), ([], [0, 1, 2]))

    def test_most(self) -> None:
        """When all are too many, who has the most loses one: not who has few."""
        self.store = ChainStore(self.sizeOf(1) + self.sizeOf(3))
        few, many = ClientChains(b"1", 1, self.store), ClientChains(b"2", 2, self.store)
        self.keep(few, self.clients[0])
        for client in self.clients:
            self.keep(many, client)
        self.assertEqual((self.known(few), self.known(many)), ([0], [3, 4, 5]))
