# SPDX-License-Identifier: MIT
"""
Sessions that clients resume.

A resumed handshake has no certificates (RFC 8446 section 2.2, RFC 5246 section 7.3): OpenSSL calls no verify callback, and
what the peer is trusted for is what it proved when the session began.  So a session is kept only after every check of the
peer, together with what was proved (L{Proof}), and found again only by a L{SessionKey} that says the same about user,
program, destination, identity, policy, trust store and own certificates.

How long: at most SessionCacheTimeout or TLS_SESSION_TTL from the full handshake on, however often the session was resumed
since (RFC 8446 section 4.6.1 recommends such a limit), and not beyond the end of a certificate's validity.

A ticket of TLS 1.3 is used once (RFC 8446 appendix C.4), so that nobody who watches can tell that two connections are the
same client's.  It comes after the handshake, with the first data: L{Resumption.collect} is called from the relay.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple

from cryptography import x509
from OpenSSL import SSL, crypto

from ssa.policy.profile import TLS_1_3, Profile
from ssa.tls.identity import Identity

__all__ = [
    "LARGEST_PROOF",
    "MOST_BYTES",
    "MOST_BYTES_PER_OWNER",
    "MOST_SESSIONS",
    "MOST_SESSIONS_PER_OWNER",
    "Proof",
    "Resumption",
    "SessionCache",
    "SessionKey",
    "lastMoment",
]

MOST_SESSIONS = 2048
"""The most sessions of all users together.  A server decides how long a ticket is, up to 64 KiB (RFC 8446 section 4.6.1)."""

MOST_SESSIONS_PER_OWNER = 512
"""The most sessions of one user other than root."""

MOST_BYTES = 32 * 1024 * 1024
"""The most bytes of certificates in the sessions of all users together."""

MOST_BYTES_PER_OWNER = 8 * 1024 * 1024
"""The most bytes of certificates in the sessions of one user other than root."""

LARGEST_PROOF = 65536
"""The most bytes of certificates in one session; of a server that sends more none is kept."""

_MOST_PER_KEY = 4
_ROOT = 0


class SessionKey(NamedTuple):
    """
    What two connections must have in common for one to resume the other's session.

    @ivar owner: the user.
    @ivar space: the program, or what TLS_CONTEXT has made common.
    @ivar destination: the peer's address and port.
    @ivar identity: whom the peer must be.
    @ivar profile: the policy in force, with what the options narrow.
    @ivar revocation: L{ssa.options.SocketOptions.revocationRules}.
    @ivar trust: what the context is made of: the content of the trust store and our own certificates among it.
    """

    owner: int
    space: object
    destination: object
    identity: Identity
    profile: Profile
    revocation: tuple[bool, frozenset[str]]
    trust: tuple[object, ...]


@dataclass(frozen=True)
class Proof:
    """
    What a peer proved in a full handshake.

    @ivar identity: that it is this one.
    @ivar chain: with these certificates, from its own to a trusted one.
    @ivar since: when, by the cache's clock.
    @ivar until: when the first of the certificates ends, by the same clock.
    @ivar size: the bytes of all certificates that the session holds: these, and in OpenSSL those that the peer has sent.
    """

    identity: Identity
    chain: tuple[x509.Certificate, ...]
    since: float
    until: float
    size: int = 0


def lastMoment(chain: Sequence[x509.Certificate]) -> float:
    """
    Say for how many seconds from now all certificates of a chain are valid; negative if one has expired.

    @raise ValueError: a date is malformed.
    """
    now = datetime.now(timezone.utc)
    return min((each.not_valid_after_utc - now).total_seconds() for each in chain)


@dataclass(frozen=True)
class _Kept:
    """A session with the context that it belongs to, which pyOpenSSL insists on."""

    session: SSL.Session
    context: SSL.Context
    proof: Proof
    once: bool
    expires: float


class SessionCache:
    """
    The sessions of all clients of the daemon, bounded by number and by size, for all and for each user.

    Who has the most loses one when all are too many: a user's own connections decide about a user's sessions.

    @ivar generation: how often everything was forgotten: what a connection from before brings is not kept.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        most: int = MOST_SESSIONS,
        mostPerOwner: int = MOST_SESSIONS_PER_OWNER,
        mostBytes: int = MOST_BYTES,
        mostBytesPerOwner: int = MOST_BYTES_PER_OWNER,
    ) -> None:
        """
        @param clock: tells the time in seconds.
        """
        self.clock = clock
        self.generation = 0
        self._most = most
        self._mostPerOwner = mostPerOwner
        self._mostBytes = mostBytes
        self._mostBytesPerOwner = mostBytesPerOwner
        self._owners: dict[int, OrderedDict[SessionKey, list[_Kept]]] = {}
        self._byTrust: dict[tuple[object, ...], set[SessionKey]] = {}
        self._counts: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()

    def __len__(self) -> int:
        return sum(self._counts.values())

    def _find(self, key: SessionKey) -> list[_Kept] | None:
        mine = self._owners.get(key.owner)
        return mine.get(key) if mine is not None else None

    def take(self, key: SessionKey, context: SSL.Context) -> tuple[SSL.Session, Proof] | None:
        """
        Find a session to resume; one of TLS 1.3 is gone from the cache then.

        @param context: the connection's.
        """
        kept = self._find(key)
        now = self.clock()
        while kept:
            newest = kept[-1]
            good = newest.context is context and now < newest.expires
            if newest.once or not good:
                self._uncount(key.owner, kept.pop())
                if not kept:
                    self._remove(key)
            if good:
                return newest.session, newest.proof
        return None

    def store(
        self, key: SessionKey, session: SSL.Session, context: SSL.Context, proof: Proof, expires: float, once: bool
    ) -> None:
        """
        Keep a session.

        @param context: of the connection that it comes from.
        @param proof: what its peer has proved.
        @param expires: until when it may be resumed, by the cache's clock.
        @param once: whether it may be used only one time.
        """
        if expires <= self.clock() or proof.size > LARGEST_PROOF:
            return
        mine = self._owners.setdefault(key.owner, OrderedDict())
        kept = mine.get(key)
        if kept is None:
            kept = mine[key] = []
            self._byTrust.setdefault(key.trust, set()).add(key)
        if not once:
            self._uncount(key.owner, *kept)
            kept.clear()
        kept.append(_Kept(session, context, proof, once, expires))
        self._counts[key.owner] += 1
        self._bytes[key.owner] += proof.size
        mine.move_to_end(key)
        if len(kept) > _MOST_PER_KEY:
            self._uncount(key.owner, kept.pop(0))
        while key.owner != _ROOT and (
            self._counts[key.owner] > self._mostPerOwner or self._bytes[key.owner] > self._mostBytesPerOwner
        ):
            self._dropOldest(key.owner)
        for amounts, most in ((self._counts, self._most), (self._bytes, self._mostBytes)):
            while sum(amounts.values()) > most:
                self._dropOldest(max(amounts, key=amounts.__getitem__))

    def forget(self, key: SessionKey) -> None:
        """Drop all sessions of a key: one of them was refused."""
        kept = self._find(key)
        if kept is not None:
            self._uncount(key.owner, *kept)
            self._remove(key)

    def forgetAll(self) -> None:
        """Drop everything, and what connections that there are would still bring."""
        self.generation += 1
        self._owners.clear()
        self._byTrust.clear()
        self._counts.clear()
        self._bytes.clear()

    def forgetTrust(self, trust: tuple[object, ...]) -> None:
        """Drop all sessions of a context that is no longer kept: no other connection will have it."""
        for key in list(self._byTrust.get(trust, ())):
            self.forget(key)

    def _dropOldest(self, owner: int) -> None:
        key, kept = next(iter(self._owners[owner].items()))
        self._uncount(owner, kept.pop(0))
        if not kept:
            self._remove(key)

    def _uncount(self, owner: int, *gone: _Kept) -> None:
        self._counts[owner] -= len(gone)
        self._bytes[owner] -= sum(each.proof.size for each in gone)

    def _remove(self, key: SessionKey) -> None:
        """Drop a key that has no sessions any more."""
        mine = self._owners[key.owner]
        del mine[key]
        if not mine:
            del self._owners[key.owner]
            del self._counts[key.owner], self._bytes[key.owner]
        same = self._byTrust[key.trust]
        same.discard(key)
        if not same:
            del self._byTrust[key.trust]


class Resumption:
    """What one client's connection has to do with the cache."""

    def __init__(self, cache: SessionCache, key: SessionKey, seconds: int) -> None:
        """
        @param seconds: how long a session may be resumed; 0: none is resumed or kept.
        """
        self._cache = cache
        self._generation = cache.generation
        self._key = key
        self._seconds = seconds
        self._proof: Proof | None = None
        self._mark = b""
        self._hasOffered = False

    def offer(self, connection: SSL.Connection) -> Proof | None:
        """
        Before the handshake: offer the server a session, if there is one.

        @return: what its peer has proved; only good if the server takes the offer.
        """
        if self._seconds <= 0:
            return None
        while (found := self._cache.take(self._key, connection.get_context())) is not None:
            session, proof = found
            if self._cache.clock() >= proof.since + self._seconds:
                # This socket's TLS_SESSION_TTL is shorter than that of the one that kept it.
                self._cache.forget(self._key)
                continue
            connection.set_session(session)
            self._hasOffered = True
            return proof
        return None

    def refused(self) -> None:
        """The handshake has failed: if a session was offered, it is not offered again, and no other one."""
        if self._hasOffered:
            self._cache.forget(self._key)

    def established(self, connection: SSL.Connection, resumed: Proof | None) -> None:
        """
        The peer has passed every check, and nothing has been read after the handshake.

        @param resumed: what it proved earlier, if the session was resumed.
        """
        if self._seconds <= 0:
            return
        if resumed is not None:
            self._proof = resumed
        else:
            chain = tuple(connection.get_verified_chain(as_cryptography=True) or ())
            if not chain:
                return
            now = self._cache.clock()
            held = [*(connection.get_verified_chain() or ()), *(connection.get_peer_cert_chain() or ())]
            size = sum(len(crypto.dump_certificate(crypto.FILETYPE_ASN1, each)) for each in held)
            try:
                self._proof = Proof(self._key.identity, chain, now, now + lastMoment(chain), size)
            except ValueError:  # dates that OpenSSL could read and the library cannot: no session then
                return
        self._mark = _mark(connection)
        if connection.get_protocol_version() < TLS_1_3:
            self._store(connection, once=False)

    def collect(self, connection: SSL.Connection) -> bool:
        """
        Something was read, or the connection is about to end: keep the session of a ticket that has come.

        @return: whether one was kept now.
        """
        if self._proof is None or connection.get_protocol_version() < TLS_1_3:
            return False
        mark = _mark(connection)
        if not mark or mark == self._mark:
            return False
        self._mark = mark
        self._store(connection, once=True)
        return True

    def _store(self, connection: SSL.Connection, once: bool) -> None:
        session = connection.get_session()
        proof = self._proof
        if session is not None and proof is not None and self._generation == self._cache.generation:
            expires = min(proof.since + self._seconds, proof.until)
            self._cache.store(self._key, session, connection.get_context(), proof, expires, once)


def _mark(connection: SSL.Connection) -> bytes:
    """
    Get what changes when a ticket of TLS 1.3 arrives.

    Each ticket has a key of its own (RFC 8446 section 4.6.1), with which OpenSSL replaces the session's; pyOpenSSL shows
    it as C{master_key} and raises an error before the first.  Nothing else in its public interface tells a session that
    can be resumed from one that cannot, or a new ticket from the one that this connection has already used.

    @return: a digest, since the key is secret; empty if there is no key.
    """
    try:
        key = connection.master_key()
    except SSL.Error:
        return b""
    return hashlib.sha256(key).digest() if key else b""
