# SPDX-License-Identifier: MIT
"""Answers for listeners: when they are asked for, and what is given out.  No network."""

from __future__ import annotations

from typing import Any

from cryptography.x509 import ocsp
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from ssa.revocation.check import Revocation
from ssa.revocation.fetch import DAEMON, UNKNOWN_OWNER, Reach
from ssa.revocation.stapling import LONGEST_PAUSE, SHORTEST_PAUSE, Staple, Staples, subjectOf
from ssa.revocation.verdict import NoAnswer
from ssa.test.pki import Credential, otherCA, testCA
from ssa.test.responders import DAY, HOUR, ocspAnswer, points, utcNow

REVOKED = ocsp.OCSPCertStatus.REVOKED


class _Fetcher:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Reach, Deferred[bytes]]] = []
        self.owners: list[int] = []
        self.cancelled = 0

    def fetch(
        self, url: str, most: int, body: bytes | None = None, reach: Reach = Reach.ANY, owner: int = UNKNOWN_OWNER
    ) -> Deferred[bytes]:
        def cancel(_: object) -> None:
            self.cancelled += 1

        pending: Deferred[bytes] = Deferred(cancel)
        self.asked.append((url, reach, pending))
        self.owners.append(owner)
        return pending

    def answer(self, data: bytes | None) -> None:
        """Answer what was asked last; C{None}: nobody is there."""
        pending = self.asked[-1][2]
        if data is None:
            pending.errback(NoAnswer("no connection"))
        else:
            pending.callback(data)


class StapleCase(SynchronousTestCase):
    """A clock, a responder and the staples of a daemon."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.epoch = utcNow().timestamp()
        self.fetcher = _Fetcher()
        nothing: Any = None
        fetcher: Any = self.fetcher
        self.revocation = Revocation(self.clock, self.clock, nothing, fetcher, now=self.now)
        self.staples = self.newStaples()
        self.own = testCA().issue(extensions=points("http://o.example/"))

    def newStaples(self) -> Staples:
        return Staples(self.clock, self.revocation, self.now, lambda least, most: (least + most) / 2)

    def now(self) -> float:
        return self.epoch + self.clock.seconds()

    def hold(self, credential: Credential | None = None, isAdministrators: bool = True) -> bytes:
        chain = (credential or self.own).chain
        return self.staples.hold(chain, lambda: [testCA().certificate], isAdministrators, 1000)

    def good(self, **more: Any) -> bytes:
        return ocspAnswer(testCA(), self.own.certificate, **more)

    def waits(self) -> float:
        """Until the next question; there is exactly one timer."""
        (call,) = self.clock.getDelayedCalls()
        return call.getTime() - self.clock.seconds()


class StaplesTests(StapleCase):
    """L{Staples}."""

    def test_refreshed(self) -> None:
        """Asked at once, and again at half of the answer's life; the old one is given out meanwhile."""
        key = self.hold()
        self.assertEqual(b"", self.staples.current(key))
        first, second = self.good(end=4 * HOUR), self.good(end=10 * HOUR)
        self.fetcher.answer(first)
        self.assertEqual(first, self.staples.current(key))
        self.assertApproximates(2 * 3600, self.waits(), 5)
        self.clock.advance(self.waits())
        self.assertEqual(2, len(self.fetcher.asked))
        self.assertEqual(first, self.staples.current(key))
        self.fetcher.answer(second)
        self.assertEqual(second, self.staples.current(key))

    def test_expired(self) -> None:
        """An expired answer is not given out."""
        key = self.hold()
        self.fetcher.answer(self.good(end=HOUR))
        self.clock.advance(self.waits())
        self.fetcher.answer(None)
        self.assertNotEqual(b"", self.staples.current(key))
        self.clock.pump([60] * 31)
        self.assertEqual(b"", self.staples.current(key))

    def test_clockJumps(self) -> None:
        """After a sleep of the machine, in which timers stand still, an answer that has expired is asked for at once."""
        key = self.hold()
        self.fetcher.answer(self.good(end=HOUR))
        self.epoch += 2 * 3600
        for _ in range(3):
            self.assertEqual(b"", self.staples.current(key))
        self.assertEqual(2, len(self.fetcher.asked))
        self.fetcher.answer(None)
        for _ in range(3):
            self.assertEqual(b"", self.staples.current(key))
        self.assertEqual(2, len(self.fetcher.asked))
        self.assertEqual(60, self.waits())

    def test_backOff(self) -> None:
        """After each failure the pause is twice as long, to a bound; an answer resets it."""
        key = self.hold()
        pauses = []
        for _ in range(9):
            self.fetcher.answer(None)
            pauses.append(self.waits())
            self.clock.advance(self.waits())
        self.assertEqual([60, 120, 240, 480, 960, 1920, 3600, 3600, 3600], [round(pause) for pause in pauses])
        self.assertEqual((60.0, 3600.0), (SHORTEST_PAUSE, LONGEST_PAUSE))
        self.fetcher.answer(self.good(end=10 * DAY))
        self.assertNotEqual(b"", self.staples.current(key))
        self.clock.advance(self.waits())
        self.fetcher.answer(None)
        self.assertEqual(60, round(self.waits()))

    def test_verified(self) -> None:
        """What is no good answer is a failure."""
        key = self.hold()
        for bad in (
            b"x",
            ocspAnswer(testCA(), testCA().issue(["x.example"]).certificate),
            ocspAnswer(otherCA(), self.own.certificate, issuer=testCA().certificate),
            self.good(begin=-3 * DAY, end=-DAY),
        ):
            self.fetcher.answer(bad)
            self.assertEqual(b"", self.staples.current(key))
            self.clock.advance(self.waits())

    def test_shortLife(self) -> None:
        """Answers that live for seconds are no reason to ask all the time."""
        self.hold()
        self.fetcher.answer(self.good(end=HOUR / 360))
        self.assertEqual(60, round(self.waits()))

    def test_shared(self) -> None:
        """Listeners with the same certificate share the answer; the last one ends the questions."""
        first, second = self.hold(), self.hold()
        self.assertEqual((first, 1), (second, len(self.fetcher.asked)))
        self.fetcher.answer(self.good())
        self.staples.release(first)
        self.assertNotEqual(b"", self.staples.current(second))
        self.assertEqual(1, len(self.clock.getDelayedCalls()))
        self.staples.release(second)
        self.assertEqual(([], b"", 0), (self.clock.getDelayedCalls(), self.staples.current(second), len(self.staples)))
        self.staples.release(second)

    def test_nextListener(self) -> None:
        """The next listener has the answer at once; also if the one before ended while it was being asked for."""
        key = self.hold()
        self.staples.release(key)
        answer = self.good()
        self.fetcher.answer(answer)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.hold()
        self.assertEqual((1, answer), (len(self.fetcher.asked), self.staples.current(key)))

    def test_stop(self) -> None:
        """The daemon stops: nothing goes on."""
        self.hold()
        self.staples.stop()
        self.assertEqual((1, []), (self.fetcher.cancelled, self.clock.getDelayedCalls()))
        self.hold()
        self.fetcher.answer(self.good())
        self.staples.stop()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_nothingToAsk(self) -> None:
        """A certificate without responder, or whose issuer is not known."""
        self.assertEqual(b"", self.hold(testCA().issue()))
        self.assertEqual(b"", self.hold(otherCA().issue(extensions=points("http://o.example/"))))
        self.assertEqual([], self.fetcher.asked)
        self.assertEqual(b"", self.staples.current(b""))
        self.staples.release(b"")

    def test_reach(self) -> None:
        """A program's own certificate may send the daemon anywhere only below the trust store."""
        self.hold(isAdministrators=False)
        self.assertIs(Reach.ANY, self.fetcher.asked[-1][1])
        own = otherCA().issue(["o.example"], extensions=points("http://o.example/"))
        self.hold(Credential(own.certificate, (own.certificate, otherCA().certificate), own.key), isAdministrators=False)
        self.assertIs(Reach.PUBLIC, self.fetcher.asked[-1][1])

    def test_owner(self) -> None:
        """Questions about the administrator's certificates do not wait behind those of a user's programs."""
        self.hold()
        self.hold(testCA().issue(["o.example"], extensions=points("http://o.example/")), isAdministrators=False)
        self.assertEqual([DAEMON, 1000], self.fetcher.owners)

    def test_log(self) -> None:
        """A program that listens again and again cannot fill the log, nor silence it about the administrator's certificates."""
        events: list[Any] = []
        observer: Any = events.append
        for kind in (Staple, Staples):
            self.patch(kind, "log", Logger(observer=observer))
        own = testCA().issue()
        for _ in range(100):
            self.hold(own, isAdministrators=False)
        self.assertEqual(10, len(events))
        self.hold(own)
        self.assertEqual(11, len(events))
        self.clock.advance(6)
        self.hold(own, isAdministrators=False)
        self.assertIn("(90 more were not logged)", formatEvent(events[-1]))
        for _ in range(20):
            key = self.hold(testCA().issue(extensions=points("http://o.example/")), isAdministrators=False)
            self.fetcher.answer(None)
            self.staples.release(key)
        self.assertEqual(12, len(events))

    def test_revoked(self) -> None:
        """Its owner has to know, and its clients too."""
        key = self.hold()
        data = ocspAnswer(testCA(), self.own.certificate, REVOKED)
        self.fetcher.answer(data)
        self.assertEqual(data, self.staples.current(key))

    def test_issuer(self) -> None:
        """From the chain, whatever its order, else from the trust store; a namesake is not taken for it."""
        middle = testCA().intermediate()
        own = middle.issue()
        self.assertIs(middle.certificate, subjectOf(own.chain, list).issuer)
        namesake = testCA().intermediate()
        chain = (own.certificate, namesake.certificate)
        self.assertRaises(NoAnswer, subjectOf, chain, list)
        self.assertIs(middle.certificate, subjectOf(chain, lambda: [middle.certificate]).issuer)
