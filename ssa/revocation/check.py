# SPDX-License-Identifier: MIT
"""
Whether a peer's certificates are revoked: the sources in the order of their cost, and what follows when none of them knows.

First what the peer has stapled, then the cache, then OCSP responders and revocation lists at the same time; the first
definite answer decides, and "revoked" of any source ends the check.  A peer chooses what it staples, and may choose an old
answer: "good" counts only if the cache does not know better.  Where no answer is required, nothing is asked; a stapled
"revoked", and a certificate that demands a stapled answer, count all the same.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredLock, FirstError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from ssa.errors import Cause
from ssa.revocation.cache import Cache, Directory, Entry, Key
from ssa.revocation.crl import LARGEST_LIST, RevocationList, readList
from ssa.revocation.fetch import UNKNOWN_OWNER, Fetcher, Reach
from ssa.revocation.inflight import InFlight, firstDefinite
from ssa.revocation.ocsp import LARGEST_ANSWER, makeQuestion, questionURL, verifyAnswer
from ssa.revocation.verdict import (
    LONGEST_LIFE,
    MALFORMED,
    Answer,
    NoAnswer,
    NotTaken,
    Status,
    Subject,
    isSelfSigned,
    mustStaple,
    noDefiniteAnswer,
    revoked,
)
from ssa.tls.certificates import describeCertificate

__all__ = ["MOST_URLS", "Revocation", "Rules"]

T = TypeVar("T")

MOST_URLS = 3
"""How many responders, and how many lists, of one certificate are asked, one after the other."""

_SMALL = 64 * 1024
"""Bytes of a list that is read at once; what is larger goes to a thread."""

_STAPLED = "always in force: a stapled answer that says revoked counts"
_DEMANDED = "the certificate demands a stapled answer (TLS feature, RFC 7633)"


@dataclass(frozen=True)
class Rules:
    """
    What one connection needs.

    @ivar required: whether each of the peer's certificates needs a definite answer.
    @ivar sources: those that count, of L{SOURCES<ssa.revocation.verdict.SOURCES>}.
    @ivar timeout: seconds that all questions may take together.
    @ivar reach: where questions may go.
    @ivar couldStaple: whether the peer was asked for a stapled answer: not by servers, and not in a resumed session.
    @ivar rule: who asks for a definite answer, for a person.
    @ivar owner: the user whose program it is; the fetches of each are bounded.
    """

    required: bool
    sources: frozenset[str]
    timeout: float
    reach: Reach = Reach.ANY
    couldStaple: bool = True
    rule: str = "RevocationChecks"
    owner: int = UNKNOWN_OWNER


class Revocation:
    """
    Checks of all connections.

    @ivar cache: the answers in memory.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        clock: IReactorTime,
        pool: ThreadPool,
        fetcher: Fetcher,
        directory: Directory | None = None,
        cache: Cache | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        @param reactor: takes the results of threads.
        @param clock: measures time-outs.
        @param pool: reads large lists, and waits for the disk.
        @param fetcher: asks.
        @param directory: where answers are kept on disk; C{None} for nowhere.
        @param cache: where they are kept in memory.
        @param now: the time of day.
        """
        self._reactor = reactor
        self._clock = clock
        self._pool = pool
        self._fetcher = fetcher
        self._directory = directory
        self.cache = cache if cache is not None else Cache(now)
        self._now = now
        self._answers: InFlight[bytes] = InFlight()
        self._lists: InFlight[RevocationList] = InFlight()
        self._writing = DeferredLock()

    async def check(self, chain: Sequence[x509.Certificate], stapled: bytes, rules: Rules) -> None:
        """
        Check a peer's certificates.

        @param chain: the verified chain, the peer's own certificate first, the trusted one last.
        @param stapled: what the peer has stapled; empty if nothing.
        @raise SSAError: EKEYREVOKED, one is revoked, or has not the answer that it needs.
        """
        try:
            await self._check(chain, stapled, rules)
        except MALFORMED as error:
            described = describeCertificate(chain[0])
            raise Cause.REVOCATION_UNKNOWN.error(
                f"the certificate's extensions are malformed: {error} ({rules.rule}) {described}"
            ) from None

    async def _check(self, chain: Sequence[x509.Certificate], stapled: bytes, rules: Rules) -> None:
        subjects = [Subject(certificate, issuer) for certificate, issuer in pairwise(chain)]
        leaf = subjects[0] if subjects else Subject(chain[0], chain[0])
        answer = self._judgeStapled(leaf, stapled, rules)
        if not rules.required:
            return
        if not subjects and not isSelfSigned(leaf.certificate):
            # Otherwise a program that trusts the peer's own certificate would escape the checks.
            leaf.said.append("it is trusted itself, and its issuer, who can tell, is not known")
            raise noDefiniteAnswer(leaf, f"{rules.rule} asks for a definite answer")
        if answer is not None and "cached" in rules.sources:
            leaf.stapled = stapled, answer
        else:
            leaf.answer = answer
        unanswered = [subject for subject in subjects if subject.answer is None]
        if unanswered:
            await self._within(unanswered, rules)

    def _judgeStapled(self, leaf: Subject, stapled: bytes, rules: Rules) -> Answer | None:
        """
        @return: the stapled answer, if it counts.
        @raise SSAError: EKEYREVOKED.
        """
        answer: Answer | None = None
        if stapled:
            try:
                answer = verifyAnswer(stapled, leaf, self._now())
            except NoAnswer as error:
                leaf.said.append(f"stapled: {error}")
                self.log.debug("a stapled answer is of no use: {error}", error=error)
        elif rules.couldStaple:
            leaf.said.append("stapled: nothing")
        if answer is not None and answer.status is Status.REVOKED:
            raise revoked(leaf, answer, "the stapled OCSP answer", _STAPLED)
        if answer is None and rules.couldStaple and mustStaple(leaf.certificate):
            raise noDefiniteAnswer(leaf, _DEMANDED)
        return answer if "stapled" in rules.sources else None

    async def _within(self, subjects: Sequence[Subject], rules: Rules) -> None:
        """Find the answers within the time."""
        late: list[bool] = []
        work = Deferred.fromCoroutine(self._all(subjects, rules))

        def expire() -> None:
            late.append(True)
            work.cancel()

        timer = self._clock.callLater(rules.timeout, expire)
        try:
            await work
        except CancelledError:
            if not late:
                raise
            silent = [subject for subject in subjects if subject.answer is None]
            subject = silent[0] if silent else subjects[0]
            subject.said.append(f"more than {rules.timeout:.3g} s have passed (RevocationTimeout, HandshakeTimeout)")
            raise noDefiniteAnswer(subject, f"{rules.rule} asks for a definite answer") from None
        finally:
            if timer.active():
                timer.cancel()

    async def _all(self, subjects: Sequence[Subject], rules: Rules) -> None:
        asked = [Deferred.fromCoroutine(self._one(subject, rules)) for subject in subjects]
        every = DeferredList(asked, fireOnOneErrback=True, consumeErrors=True)
        try:
            await every
        except FirstError as error:
            error.subFailure.raiseException()
        finally:
            for each in asked:
                each.cancel()

    async def _one(self, subject: Subject, rules: Rules) -> None:
        """
        Find an answer about one certificate.

        @raise SSAError: EKEYREVOKED.
        """
        answer = await self.cached(subject, rules) if "cached" in rules.sources else None
        if subject.stapled is not None:
            data, answer = subject.stapled
            await self._keepAnswer(subject, data, answer)
        if answer is None:
            asked: list[Deferred[Answer | None]] = []
            if "ocsp" in rules.sources:
                asked.append(Deferred.fromCoroutine(self._askResponders(subject, rules)))
            if "crl" in rules.sources:
                asked.append(Deferred.fromCoroutine(self._askLists(subject, rules)))
            answer = await firstDefinite(asked)
            if answer is None:
                raise noDefiniteAnswer(subject, f"{rules.rule} asks for a definite answer")
        subject.answer = answer

    # the sources

    async def cached(self, subject: Subject, rules: Rules) -> Answer | None:
        """
        Look for an answer that is kept.

        @raise SSAError: EKEYREVOKED; not by an OCSP answer if a later one was stapled.
        """
        found: Answer | None = None
        keys = [_answerKey(subject), *(_listKey(subject, url) for url in subject.lists()[:MOST_URLS])]
        for key in keys:
            entry = await self._find(key)
            if entry is None or (subject.stapled is not None and entry.data == subject.stapled[0]):
                continue
            try:
                answer = await self._takeOut(key, entry, subject)
            except NoAnswer as error:
                # It stays: a program may have made this issuer's certificate, with a name and a key that are not its own.
                subject.said.append(f"cached: {error}")
                continue
            if key.kind == "ocsp" and subject.stapled is not None and subject.stapled[1].overrules(answer):
                continue
            self._refuseRevoked(subject, answer, f"the cached answer ({key.kind.upper()})", rules)
            found = found or answer
        if found is None:
            subject.said.append("cached: nothing")
        return found

    async def _takeOut(self, key: Key, entry: Entry, subject: Subject) -> Answer:
        if key.kind == "ocsp":
            return verifyAnswer(entry.data, subject, self._now())
        if entry.parsed is None or entry.parsed.issuerID != subject.issuerID:
            entry.parsed = await self._perhapsInThread(len(entry.data), readList, entry.data, subject)
        return await self._lookUp(entry.parsed, len(entry.data), subject)

    async def _lookUp(self, parsed: RevocationList, size: int, subject: Subject) -> Answer:
        return await self._perhapsInThread(size, parsed.answer, subject, self._now())

    async def _askResponders(self, subject: Subject, rules: Rules) -> Answer | None:
        async def ask(url: str) -> Answer:
            return (await self.fetchAnswer(subject, url, rules.reach, rules.owner))[0]

        return await self._askEach(subject, "OCSP", "responder", subject.responders(), ask, rules)

    async def _askLists(self, subject: Subject, rules: Rules) -> Answer | None:
        async def ask(url: str) -> Answer:
            return await self._askList(subject, url, rules)

        return await self._askEach(subject, "CRL", "list", subject.lists(), ask, rules)

    async def _askEach(
        self,
        subject: Subject,
        kind: str,
        what: str,
        urls: Sequence[str],
        ask: Callable[[str], Awaitable[Answer]],
        rules: Rules,
    ) -> Answer | None:
        """
        Ask the sources of one kind, one after the other, until one answers.

        @raise SSAError: EKEYREVOKED.
        """
        if not urls:
            subject.said.append(f"{kind}: the certificate names no {what}")
        for url in urls[:MOST_URLS]:
            try:
                answer = await ask(url)
            except NoAnswer as error:
                subject.said.append(f"{kind} {url}: {error}")
                continue
            except CancelledError:
                subject.said.append(f"{kind} {url}: no answer yet")
                raise
            self._refuseRevoked(subject, answer, f"{kind} {url}", rules)
            return answer
        return None

    async def fetchAnswer(
        self, subject: Subject, url: str, reach: Reach, owner: int = UNKNOWN_OWNER
    ) -> tuple[Answer, bytes]:
        """
        Ask a responder for an answer that can be stapled; it is kept.

        Only questions of one user are joined: nobody waits in another one's queue.

        @param owner: see L{Rules.owner}.
        @return: what it says, and the answer itself.
        @raise NoAnswer: it gives no definite answer.
        """

        def begin() -> Deferred[bytes]:
            return Deferred.fromCoroutine(self._fetchAnswer(subject, url, reach, owner))

        data = await self._answers.join((_answerKey(subject), url, reach, owner), begin)
        return verifyAnswer(data, subject, self._now()), data

    async def keptAnswer(self, subject: Subject) -> tuple[bytes, float] | None:
        """
        Look for an OCSP answer that is kept and says that the certificate is good.

        @return: the answer itself, and until when it counts.
        """
        entry = await self._find(_answerKey(subject))
        if entry is None:
            return None
        try:
            answer = verifyAnswer(entry.data, subject, self._now())
        except NoAnswer:
            return None
        return (entry.data, answer.until) if answer.status is Status.GOOD else None

    async def _fetchAnswer(self, subject: Subject, url: str, reach: Reach, owner: int) -> bytes:
        question = makeQuestion(subject)
        short = questionURL(url, question)
        try:
            if not short:
                raise NotTaken("the question is too long for GET")
            data = await self._fetcher.fetch(short, LARGEST_ANSWER, None, reach, owner)
            answer = verifyAnswer(data, subject, self._now())
        except NotTaken as error:
            self.log.debug("{url}: {error}; asking by POST", url=url, error=error)
            data = await self._fetcher.fetch(url, LARGEST_ANSWER, question, reach, owner)
            answer = verifyAnswer(data, subject, self._now())
        await self._keepAnswer(subject, data, answer)
        return data

    async def _askList(self, subject: Subject, url: str, rules: Rules) -> Answer:
        key = _listKey(subject, url)

        def begin() -> Deferred[RevocationList]:
            return Deferred.fromCoroutine(self._fetchList(subject, url, rules))

        parsed = await self._lists.join((key, rules.reach, rules.owner), begin)
        return await self._lookUp(parsed, parsed.size, subject)

    async def _fetchList(self, subject: Subject, url: str, rules: Rules) -> RevocationList:
        data = await self._fetcher.fetch(url, LARGEST_LIST, None, rules.reach, rules.owner)
        parsed = await self._perhapsInThread(len(data), readList, data, subject)
        await self._keepList(subject, url, data, parsed)
        return parsed

    @staticmethod
    def _refuseRevoked(subject: Subject, answer: Answer, source: str, rules: Rules) -> None:
        if answer.status is Status.REVOKED:
            raise revoked(subject, answer, source, rules.rule)

    # what is kept

    async def _find(self, key: Key) -> Entry | None:
        entry = self.cache.get(key)
        if entry is None and self._directory is not None:
            largest = LARGEST_ANSWER if key.kind == "ocsp" else LARGEST_LIST
            read = await deferToThreadPool(self._reactor, self._pool, self._directory.read, key, largest)
            entry = self.cache.get(key)  # perhaps something has come meanwhile
            if entry is None and read is not None:
                entry = read
                self.cache.put(key, entry)
        return entry

    async def _keepAnswer(self, subject: Subject, data: bytes, answer: Answer) -> None:
        """Keep an OCSP answer, unless a later one is known."""
        key = _answerKey(subject)
        known = await self._find(key)
        if known is not None:
            try:
                if known.data == data or not answer.overrules(verifyAnswer(known.data, subject, self._now())):
                    return
            except NoAnswer as error:
                self.log.debug("a kept answer is of no use: {error}", error=error)
        self._keep(key, data, answer.until)

    async def _keepList(self, subject: Subject, url: str, data: bytes, parsed: RevocationList) -> None:
        """Keep a list, unless a later one is known."""
        key = _listKey(subject, url)
        known = await self._find(key)
        checked: Entry | None = None
        while known is not None and known is not checked:
            if known.data == data:
                return
            checked = known
            try:
                await self._takeOut(key, known, subject)
                if known.parsed.begin > parsed.begin:
                    return
            except NoAnswer as error:
                self.log.debug("a kept list is of no use: {error}", error=error)
            known = self.cache.get(key)  # another one, if that took time
        self._keep(key, data, parsed.until(self._now()), parsed)

    def _keep(self, key: Key, data: bytes, until: float, parsed: RevocationList | None = None) -> None:
        self.cache.put(key, Entry(data, min(until, self._now() + LONGEST_LIFE), parsed))
        if self._directory is not None:
            # One after the other: of two answers to one question the later one must be what remains.
            written = self._writing.run(self._write, self._directory, key, data, until)
            written.addErrback(lambda failure: self.log.failure("an answer was not written", failure))

    def _write(self, directory: Directory, key: Key, data: bytes, until: float) -> Deferred[None]:
        return deferToThreadPool(self._reactor, self._pool, directory.write, key, data, until)

    async def _perhapsInThread(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """Do work on a list: at once if it is small, else in a thread, so that nobody else waits."""
        if size <= _SMALL:
            return work(*arguments)
        return await deferToThreadPool(self._reactor, self._pool, work, *arguments)


def _answerKey(subject: Subject) -> Key:
    return Key("ocsp", subject.issuerID, format(subject.certificate.serial_number, "x"))


def _listKey(subject: Subject, url: str) -> Key:
    return Key("crl", subject.issuerID, url)
