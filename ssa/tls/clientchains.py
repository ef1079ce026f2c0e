# SPDX-License-Identifier: MIT
"""
The chains of a listener's clients, for when their sessions are resumed: a ticket holds no more than the client's own
certificate.

Two chains are kept of each: the one that was verified, which is what a client is trusted for, and the one that it sent, which
may have anything in it and is only told to programs.  Many clients have the same issuers, so those are kept once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

__all__ = ["LARGEST_SENT", "MOST_BYTES", "MOST_BYTES_PER_OWNER", "ChainStore", "ClientChains"]

MOST_BYTES = 16 * 1024 * 1024
"""The most bytes for all listeners together."""

MOST_BYTES_PER_OWNER = 4 * 1024 * 1024
"""The most bytes for the listeners of one user other than root: some 8000 clients."""

LARGEST_SENT = 16384
"""The most bytes of what one client has sent beside its own certificate; of more nothing is kept."""

_PER_CLIENT = 512
_PER_CERTIFICATE = 64
_ROOT = 0

_Issuers = tuple[bytes, ...]
_Client = tuple[bytes, bytes]


@dataclass
class _Shared:
    """Certificates above those of some clients, in DER, and how often they are in use."""

    issuers: _Issuers
    uses: int = 0

    @property
    def size(self) -> int:
        return sum(len(each) + _PER_CERTIFICATE for each in self.issuers)


@dataclass
class _Mine:
    """What is kept for one user: the least recently used client first."""

    clients: OrderedDict[_Client, tuple[_Shared, _Shared]] = field(default_factory=OrderedDict)
    shared: dict[_Issuers, _Shared] = field(default_factory=dict)
    size: int = 0

    def put(self, client: _Client, verified: _Issuers, sent: _Issuers) -> None:
        """Keep both chains of a client, without its own certificate."""
        new = self._use(verified), self._use(sent)
        self.drop(client)
        self.clients[client] = new
        self.size += _PER_CLIENT

    def drop(self, client: _Client) -> None:
        """Forget a client if it is known."""
        known = self.clients.pop(client, None)
        if known is None:
            return
        self.size -= _PER_CLIENT
        for shared in known:
            shared.uses -= 1
            if not shared.uses:
                del self.shared[shared.issuers]
                self.size -= shared.size

    def _use(self, issuers: _Issuers) -> _Shared:
        shared = self.shared.get(issuers)
        if shared is None:
            shared = self.shared[issuers] = _Shared(issuers)
            self.size += shared.size
        shared.uses += 1
        return shared


class ChainStore:
    """
    The chains of all clients of all listeners, bounded by bytes: for all, and for each user.

    Who has the most loses one when all are too many: a user's own listeners decide about a user's clients.
    """

    def __init__(self, most: int = MOST_BYTES, mostPerOwner: int = MOST_BYTES_PER_OWNER) -> None:
        """
        @param most: bytes.
        @param mostPerOwner: bytes.
        """
        self._most = most
        self._mostPerOwner = mostPerOwner
        self._owners: dict[int, _Mine] = {}

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return sum(mine.size for mine in self._owners.values())

    def put(self, owner: int, client: _Client, verified: _Issuers, sent: _Issuers) -> None:
        """
        Keep the chains of a client, without its own certificate.

        @param owner: the listener's user.
        """
        mine = self._owners.setdefault(owner, _Mine())
        mine.put(client, verified, sent)
        while owner != _ROOT and mine.size > self._mostPerOwner:
            self._dropOldest(owner)
        while self.size > self._most:
            self._dropOldest(max(self._owners, key=lambda each: self._owners[each].size))

    def get(self, owner: int, client: _Client) -> tuple[_Issuers, _Issuers] | None:
        """Find the chains of a client, without its own certificate: the verified one and the one that it sent."""
        mine = self._owners.get(owner)
        found = mine.clients.get(client) if mine is not None else None
        if mine is None or found is None:
            return None
        mine.clients.move_to_end(client)
        verified, sent = found
        return verified.issuers, sent.issuers

    def _dropOldest(self, owner: int) -> None:
        mine = self._owners[owner]
        mine.drop(next(iter(mine.clients)))
        if not mine.clients:
            del self._owners[owner]


_store = ChainStore()


class ClientChains:
    """
    What is known of the clients of one listener.

    @ivar isMissed: whether the chain of a resumed client was needed and not known any more: only a full handshake helps that
        client.
    """

    def __init__(self, listener: bytes, owner: int, store: ChainStore = _store) -> None:
        """
        @param listener: tells the listeners apart.
        @param owner: its user.
        """
        self._listener = listener
        self._owner = owner
        self._store = store
        self.isMissed = False

    def keep(self, verified: Sequence[x509.Certificate], sent: Sequence[x509.Certificate]) -> None:
        """
        Keep what a full handshake has shown.

        @param verified: from the client's own certificate to a trusted one.
        @param sent: the client's own certificate first.
        """
        if not verified:
            return
        above = _issuers(sent)
        if sum(map(len, above)) > LARGEST_SENT:
            above = ()
        self._store.put(self._owner, self._client(verified[0]), _issuers(verified), above)

    def verified(self, own: x509.Certificate) -> tuple[x509.Certificate, ...]:
        """
        Find the verified chain of a client.

        @param own: its own certificate.
        @return: empty if it is not known any more.
        """
        found = self._store.get(self._owner, self._client(own))
        return _chain(own, found[0]) if found is not None else ()

    def sent(self, own: x509.Certificate) -> tuple[x509.Certificate, ...]:
        """Find what a client has sent; its own certificate alone if that is not known any more."""
        found = self._store.get(self._owner, self._client(own))
        return _chain(own, found[1] if found is not None else ())

    def _client(self, own: x509.Certificate) -> _Client:
        return self._listener, own.fingerprint(hashes.SHA256())


def _issuers(chain: Sequence[x509.Certificate]) -> _Issuers:
    return tuple(each.public_bytes(Encoding.DER) for each in chain[1:])


def _chain(own: x509.Certificate, issuers: _Issuers) -> tuple[x509.Certificate, ...]:
    return (own, *(x509.load_der_x509_certificate(each) for each in issuers))
