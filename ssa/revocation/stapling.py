# SPDX-License-Identifier: MIT
"""
Answers that servers staple: fetched ahead, verified before they are given out, refreshed at half of their life.

All listeners of the daemon that show one certificate share its answer, which also outlives them in the cache.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from OpenSSL import crypto
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.revocation.check import MOST_URLS, Revocation
from ssa.revocation.fetch import DAEMON, UNKNOWN_OWNER, Reach
from ssa.revocation.verdict import MALFORMED, NoAnswer, Status, Subject
from ssa.throttle import Throttle, notLogged
from ssa.tls.certificates import describeCertificate

__all__ = ["LONGEST_PAUSE", "SHORTEST_PAUSE", "Staple", "Staples", "subjectOf"]

SHORTEST_PAUSE = 60.0
"""Seconds after the first failure until the responder is asked again; each further pause is twice as long."""

LONGEST_PAUSE = 3600.0
"""Seconds of the longest pause."""


def subjectOf(chain: Sequence[x509.Certificate], trusted: Callable[[], Sequence[x509.Certificate]]) -> Subject:
    """
    Find who issued a server's own certificate.

    @param chain: as the server sends it, its own certificate first.
    @param trusted: gives the certificates of the trust store, for a chain that leaves the issuer out.
    @raise NoAnswer: the issuer is in neither.
    """
    own = chain[0]
    for candidate in chain[1:]:
        if _hasIssued(candidate, own):
            return Subject(own, candidate)
    for candidate in trusted():
        if _hasIssued(candidate, own):
            return Subject(own, candidate)
    raise NoAnswer("the issuer is neither in its chain nor in the trust store")


def _hasIssued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    if issuer.subject != certificate.issuer:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *MALFORMED):
        return False
    return True


def _isTrusted(chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate]) -> bool:
    """Whether a chain ends in a trust store, X509_verify_cert(3)."""
    store = crypto.X509Store()
    for certificate in trusted:
        store.add_cert(crypto.X509.from_cryptography(certificate))
    own, *others = [crypto.X509.from_cryptography(certificate) for certificate in chain]
    try:
        crypto.X509StoreContext(store, own, others).verify_certificate()
    except crypto.X509StoreContextError:
        return False
    return True


class Staple:
    """
    The answer about one certificate, kept fresh while somebody holds it.

    @ivar holders: how many listeners show the certificate.
    @ivar asked: how often a responder was asked.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        revocation: Revocation,
        subject: Subject,
        reach: Reach,
        owner: int,
        throttle: Throttle,
        now: Callable[[], float],
        uniform: Callable[[float, float], float],
    ) -> None:
        """See L{Staples.hold}."""
        self._clock = clock
        self._revocation = revocation
        self._subject = subject
        self._reach = reach
        self._owner = owner
        self._throttle = throttle
        self._now = now
        self._uniform = uniform
        self._data = b""
        self._until = 0.0
        self._isFresh = False
        self._pause = SHORTEST_PAUSE
        self._timer: IDelayedCall | None = None
        self._work: Deferred[None] | None = None
        self._retired = False
        self.holders = 0
        self.asked = 0

    def current(self) -> bytes:
        """
        Give the answer for a handshake, at once.

        @return: empty if there is none that counts now.
        """
        if self._data and self._until <= self._now():
            self._data = b""
            if self._timer is not None and self._isFresh:
                # The machine has slept, and the timer with it.
                self._stopTimer()
                self._refresh()
        return self._data

    def begin(self) -> None:
        """Take what is cached, or ask."""
        self._start(self._first())

    def retire(self) -> None:
        """Nobody holds it any more: a question in progress is finished, for the cache, and no other one is asked."""
        self._retired = True
        self._stopTimer()

    def stop(self) -> None:
        """Ask no more, at once."""
        self.retire()
        work, self._work = self._work, None
        if work is not None:
            work.cancel()

    def _stopTimer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _start(self, coroutine: object) -> None:
        work: Deferred[None] = Deferred.fromCoroutine(coroutine)  # type: ignore[arg-type]
        self._work = work

        def ended(result: object) -> None:
            if self._work is work:
                self._work = None
                if isinstance(result, Failure) and not isinstance(result.value, CancelledError):
                    suppressed = self._throttle.allow()
                    if suppressed is not None:
                        self.log.failure("stapling failed in the daemon{more}", result, more=notLogged(suppressed))
                    self._again(self._backOff())

        work.addBoth(ended)

    def _again(self, seconds: float) -> None:
        if not self._retired:
            self._timer = self._clock.callLater(seconds, self._refresh)

    def _refresh(self) -> None:
        self._timer = None
        self._start(self._ask())

    async def _first(self) -> None:
        kept = await self._revocation.keptAnswer(self._subject)
        if kept is not None:
            self._take(*kept)
        else:
            await self._ask()

    async def _ask(self) -> None:
        problems = []
        for url in self._subject.responders()[:MOST_URLS]:
            self.asked += 1
            try:
                answer, data = await self._revocation.fetchAnswer(self._subject, url, self._reach, self._owner)
            except NoAnswer as error:
                problems.append(f"{url}: {error}")
                continue
            # The truth is given out all the same: clients would find it out anyway, and the server's owner has to know.
            suppressed = self._throttle.allow() if answer.status is Status.REVOKED else None
            if suppressed is not None:
                self.log.error(
                    "a certificate that is served is revoked: {detail} {certificate}{more}",
                    detail=answer.detail,
                    more=notLogged(suppressed),
                    certificate=describeCertificate(self._subject.certificate),
                )
            self._take(data, answer.until)
            return
        pause = self._backOff()
        self._again(pause)
        suppressed = self._throttle.allow()
        if suppressed is not None:
            self.log.warn(
                "no OCSP answer to staple: {problems}; asking again in {pause:.0f} s {certificate}{more}",
                problems="; ".join(problems),
                pause=pause,
                certificate=describeCertificate(self._subject.certificate),
                more=notLogged(suppressed),
            )

    def _take(self, data: bytes, until: float) -> None:
        self._data, self._until, self._isFresh = data, until, True
        self._pause = SHORTEST_PAUSE
        life = max(0.0, until - self._now())
        # Not all servers of a network in the same second; and never in a hurry, however short the answers live.
        self._again(max(SHORTEST_PAUSE, life * self._uniform(0.45, 0.55)))

    def _backOff(self) -> float:
        self._isFresh = False
        pause, self._pause = self._pause, min(LONGEST_PAUSE, self._pause * 2)
        return pause * self._uniform(0.8, 1.2)


class Staples:
    """The answers for the certificates of all listeners."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        revocation: Revocation,
        now: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """
        @param clock: measures pauses.
        @param revocation: asks, and keeps the answers.
        @param now: the time of day.
        @param uniform: a random number between two.
        """
        self._clock = clock
        self._revocation = revocation
        self._now = now
        self._uniform = uniform
        self._staples: dict[bytes, Staple] = {}
        self._ofAdministrator = Throttle(clock)
        self._ofPrograms = Throttle(clock)

    def __len__(self) -> int:
        return len(self._staples)

    def hold(
        self,
        chain: Sequence[x509.Certificate],
        trusted: Callable[[], Sequence[x509.Certificate]],
        isAdministrators: bool,
        owner: int = UNKNOWN_OWNER,
    ) -> bytes:
        """
        Keep the answer about a certificate fresh until L{release}.

        @param chain: as the server sends it.
        @param trusted: gives the certificates of the trust store.
        @param isAdministrators: whether it is the administrator's.  A program's own may send the daemon anywhere only if its
            chain ends in the trust store.
        @param owner: the user whose program shows it, for the bounds of L{ssa.revocation.fetch}; questions about the
            administrator's certificates count for the daemon itself.
        @return: what L{current} and L{release} take; empty if nothing can be stapled, which is logged.
        """
        key = chain[0].fingerprint(hashes.SHA256())
        # A program causes these lines as often as it likes; it must not silence those about the administrator's certificates.
        throttle = self._ofAdministrator if isAdministrators else self._ofPrograms
        staple = self._staples.get(key)
        if staple is None:
            try:
                subject = subjectOf(chain, trusted)
                if not subject.responders():
                    raise NoAnswer("it names no OCSP responder")
                reach = Reach.ANY if isAdministrators or _isTrusted(chain, trusted()) else Reach.PUBLIC
            except (NoAnswer, *MALFORMED) as error:
                suppressed = throttle.allow()
                if suppressed is not None:
                    self.log.warn(
                        "nothing is stapled: {error} {certificate}{more}",
                        error=error,
                        certificate=describeCertificate(chain[0]),
                        more=notLogged(suppressed),
                    )
                return b""
            staple = Staple(
                self._clock,
                self._revocation,
                subject,
                reach,
                DAEMON if isAdministrators else owner,
                throttle,
                self._now,
                self._uniform,
            )
            self._staples[key] = staple
            staple.holders = 1
            staple.begin()
        else:
            staple.holders += 1
        return key

    def current(self, key: bytes) -> bytes:
        """Give the answer for a handshake; empty if there is none that counts now."""
        staple = self._staples.get(key)
        return staple.current() if staple is not None else b""

    def release(self, key: bytes) -> None:
        """A listener has ended; the last one ends the refreshing."""
        staple = self._staples.get(key)
        if staple is None:
            return
        staple.holders -= 1
        if not staple.holders:
            del self._staples[key]
            staple.retire()

    def stop(self) -> None:
        """End all."""
        for staple in self._staples.values():
            staple.stop()
        self._staples.clear()
