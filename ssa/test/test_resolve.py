# SPDX-License-Identifier: MIT
"""Names to addresses, and the race of addresses, without a network."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import InternetAddress
from ssa.errors import SSAError
from ssa.resolve import AllFailed, Race, Resolver, Won, interleave, isLocalhost, numericAddress


def v4(number: int, port: int = 443) -> InternetAddress:
    return InternetAddress(socket.AF_INET, f"192.0.2.{number}", port)


def v6(number: int, port: int = 443) -> InternetAddress:
    return InternetAddress(socket.AF_INET6, f"2001:db8::{number}", port)


BOTH = (socket.AF_INET6, socket.AF_INET)


class FakePool:
    """A thread pool whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def callInThreadWithCallback(self, onResult: Callable[[bool, Any], None], func: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                result = func()
            except Exception:
                onResult(False, Failure())
            else:
                onResult(True, result)

        self.work.append(run)


class FakeReactor(Clock):
    """Calls from threads are made at once."""

    def callFromThread(self, call: Callable[..., Any], *args: Any) -> None:
        call(*args)


class AddressTests(SynchronousTestCase):
    """Addresses as text."""

    def test_numeric(self) -> None:
        """Literals are addresses, everything else is a name."""
        self.assertEqual(v4(1, 80), numericAddress("192.0.2.1", 80))
        self.assertEqual(v6(1, 80), numericAddress("2001:db8::1", 80))
        self.assertEqual(InternetAddress(socket.AF_INET6, "fe80::1", 1, 0, 3), numericAddress("fe80::1%3", 1))
        for name in ("example.org", "192.0.2", "0x7f.1", "1.2.3.4.5", ""):
            self.assertIsNone(numericAddress(name, 1))

    def test_scopeName(self) -> None:
        """Names of interfaces mean nothing here."""
        for host in ("fe80::1%eth0", "fe80::1%99999999999"):
            self.assertEqual(errno.EINVAL, self.assertRaises(SSAError, numericAddress, host, 1).errno)

    def test_localhost(self) -> None:
        """RFC 6761 section 6.3."""
        for name in ("localhost", "LOCALHOST.", "a.localhost"):
            self.assertTrue(isLocalhost(name))
        for name in ("localhost.example", "notlocalhost", ""):
            self.assertFalse(isLocalhost(name))

    def test_interleave(self) -> None:
        """Families alternate, beginning with the first; what is left follows; nothing twice."""
        self.assertEqual(
            [v6(1), v4(1), v6(2), v4(2), v6(3)], interleave([v6(1), v6(2), v6(3), v4(1), v4(2), v6(1)])
        )
        self.assertEqual([v4(1), v6(1), v4(2)], interleave([v4(1), v4(2), v6(1)]))
        self.assertEqual([], interleave([]))


class ResolverTests(SynchronousTestCase):
    """The resolver, with a getaddrinfo and a thread pool of the test's own."""

    def setUp(self) -> None:
        self.clock = FakeReactor()
        self.pool = FakePool()
        self.asked: list[tuple[Any, ...]] = []
        self.answer: Any = []
        pool: Any = self.pool
        self.resolver = Resolver(self.clock, self.clock, pool, self.getAddressInfo, maxPending=3)

    def getAddressInfo(self, *args: Any) -> Any:
        self.asked.append(args)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def resolve(self, host: str, families: tuple[int, ...] = BOTH) -> Deferred[list[InternetAddress]]:
        return self.resolver.resolve(host, 443, families, 5.0)

    def refused(self, pending: Deferred[Any]) -> SSAError:
        error = self.failureResultOf(pending, SSAError).value
        assert isinstance(error, SSAError)
        return error

    def test_answer(self) -> None:
        """Addresses in the order in which to try them; no timer stays."""
        self.answer = [
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 443, 0, 0)),
            (socket.AF_INET6, 1, 6, "", ("2001:db8::2", 443, 0, 0)),
            (socket.AF_INET, 1, 6, "", ("192.0.2.1", 443)),
            (99, 1, 6, "", ()),
        ]
        pending = self.resolve("example.org")
        self.assertNoResult(pending)
        self.pool.work.pop()()
        self.assertEqual([v6(1), v4(1), v6(2)], self.successResultOf(pending))
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual(0, self.resolver.pending)
        self.assertEqual(b"example.org", self.asked[0][0])

    def test_oneFamily(self) -> None:
        """An AF_INET socket asks for IPv4 addresses only."""
        self.answer = [(socket.AF_INET, 1, 6, "", ("192.0.2.1", 443))]
        pending = self.resolve("example.org", (socket.AF_INET,))
        self.pool.work.pop()()
        self.assertEqual([v4(1)], self.successResultOf(pending))
        self.assertEqual(socket.AF_INET, self.asked[0][2])

    def test_refused(self) -> None:
        """The resolver's text is kept."""
        self.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        pending = self.resolve("example.org")
        self.pool.work.pop()()
        error = self.refused(pending)
        self.assertEqual(errno.EHOSTUNREACH, error.errno)
        self.assertIn("example.org: Temporary failure", error.reason)

    def test_anyException(self) -> None:
        """Whatever the resolver raises, such as for a label that is too long, is a name that does not resolve."""
        self.answer = UnicodeError("label too long")
        pending = self.resolve("x" * 70)
        self.pool.work.pop()()
        self.assertEqual(errno.EHOSTUNREACH, self.refused(pending).errno)

    def test_timeout(self) -> None:
        """The caller does not wait longer than it wants; the thread's late answer is dropped."""
        pending = self.resolve("example.org")
        self.clock.advance(5)
        error = self.refused(pending)
        self.assertEqual(errno.EHOSTUNREACH, error.errno)
        self.assertIn("5 s", error.reason)
        self.assertEqual(1, self.resolver.pending)
        self.pool.work.pop()()
        self.assertEqual(0, self.resolver.pending)
        self.assertEqual([], self.asked)

    def test_cancel(self) -> None:
        """A name that nobody wants any more is not looked up."""
        pending = self.resolve("example.org")
        pending.cancel()
        self.failureResultOf(pending)
        self.pool.work.pop()()
        self.assertEqual([], self.asked)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_bound(self) -> None:
        """Names that wait are bounded, those that hang in a thread included."""
        for _ in range(3):
            self.resolve("example.org").addErrback(lambda _: None)
        self.assertEqual(errno.ENOBUFS, self.refused(self.resolve("example.org")).errno)

    def test_withoutLookUp(self) -> None:
        """Literals and localhost need no thread."""
        self.assertEqual([v4(1)], self.successResultOf(self.resolve("192.0.2.1")))
        hosts = [a.host for a in self.successResultOf(self.resolve("localhost"))]
        self.assertEqual(["::1", "127.0.0.1"], hosts)
        self.assertEqual([], self.pool.work)
        error = self.refused(self.resolve("2001:db8::1", (socket.AF_INET,)))
        self.assertEqual(errno.EHOSTUNREACH, error.errno)

    def test_badNames(self) -> None:
        """What cannot be a name is refused at once."""
        for name in ("", "a\0b", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example"):
            self.assertEqual(errno.EINVAL, self.refused(self.resolve(name)).errno)


class RaceTests(SynchronousTestCase):
    """Happy eyeballs on a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.attempts: dict[InternetAddress, Deferred[str]] = {}
        self.cancelled: list[InternetAddress] = []

    def attempt(self, address: InternetAddress) -> Deferred[str]:
        pending: Deferred[str] = Deferred(lambda _: self.cancelled.append(address))
        self.attempts[address] = pending
        return pending

    def race(self, *addresses: InternetAddress) -> Deferred[Won[str]]:
        return Race(self.clock, addresses, self.attempt).run()

    def test_firstWins(self) -> None:
        """The second is not even started when the first is quick."""
        pending = self.race(v6(1), v4(1))
        self.attempts[v6(1)].callback("six")
        won = self.successResultOf(pending)
        self.assertEqual(Won(v6(1), "six", (v4(1),), ()), won)
        self.assertEqual([v6(1)], list(self.attempts))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_delay(self) -> None:
        """The second starts after 250 ms; the loser is cancelled, and may be tried again."""
        pending = self.race(v6(1), v4(1), v6(2))
        self.clock.advance(0.24)
        self.assertEqual(1, len(self.attempts))
        self.clock.advance(0.01)
        self.assertEqual(2, len(self.attempts))
        self.attempts[v4(1)].callback("four")
        won = self.successResultOf(pending)
        self.assertEqual((v4(1), (v6(1), v6(2))), (won.address, won.rest))
        self.assertEqual([v6(1)], self.cancelled)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_failureStartsNext(self) -> None:
        """A failure starts the next at once, and the delay counts from there."""
        pending = self.race(v6(1), v4(1), v6(2))
        self.clock.advance(0.1)
        error = SSAError(errno.ENETUNREACH, "no route")
        self.attempts[v6(1)].errback(error)
        self.assertIn(v4(1), self.attempts)
        self.clock.advance(0.2)
        self.assertNotIn(v6(2), self.attempts)
        self.clock.advance(0.05)
        self.attempts[v6(2)].callback("six")
        self.assertEqual(((v6(1), error),), self.successResultOf(pending).failures)

    def test_allFail(self) -> None:
        """Every address with its error."""
        pending = self.race(v6(1), v4(1))
        self.attempts[v6(1)].errback(SSAError(errno.ENETUNREACH, "no route"))
        self.attempts[v4(1)].errback(SSAError(errno.ECONNREFUSED, "refused"))
        error = self.failureResultOf(pending, AllFailed).value
        assert isinstance(error, AllFailed)
        self.assertEqual([v6(1), v4(1)], [a for a, _ in error.failures])

    def test_failAtOnce(self) -> None:
        """Attempts that fail without waiting."""
        pending: Deferred[Won[str]] = Race(
            self.clock, [v4(1), v4(2)], lambda _: fail(SSAError(errno.ENETUNREACH, "no"))
        ).run()
        self.failureResultOf(pending, AllFailed)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_succeedAtOnce(self) -> None:
        """Attempts that succeed without waiting."""
        pending = Race(self.clock, [v4(1), v4(2)], lambda _: succeed("yes")).run()
        self.assertEqual((v4(2),), self.successResultOf(pending).rest)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_bug(self) -> None:
        """An unexpected exception ends the race."""
        pending = self.race(v4(1), v4(2))
        self.clock.advance(1)
        self.attempts[v4(1)].errback(ZeroDivisionError())
        self.failureResultOf(pending, ZeroDivisionError)
        self.assertEqual([v4(2)], self.cancelled)

    def test_cancel(self) -> None:
        """Cancelling the race cancels every attempt."""
        pending = self.race(v4(1), v4(2), v4(3))
        self.clock.advance(0.25)
        pending.cancel()
        self.failureResultOf(pending)
        self.assertEqual([v4(1), v4(2)], self.cancelled)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_nothing(self) -> None:
        """No address at all."""
        self.failureResultOf(self.race(), AllFailed)
