# SPDX-License-Identifier: MIT
"""
Names to addresses, and addresses to one TCP connection.

Two things that are often mixed up are kept apart here.  L{Resolver} asks the
system's resolver (nsswitch, hosts file, DNS) for the addresses of a name and
knows nothing of connections.  L{Race} is the happy eyeballs of RFC 8305: it
tries addresses in an order that alternates between the families, a quarter of
a second apart, and knows nothing of names.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from ssa.api import InternetAddress
from ssa.errors import Cause, SSAError

T = TypeVar("T")

ATTEMPT_DELAY = 0.25
"""Seconds between the starts of two attempts (RFC 8305 section 8)."""

MAX_RESOLVER_THREADS = 16
"""How many names are looked up at the same time, whoever asks."""

MAX_PENDING_NAMES = 1024
"""How many names may wait for a thread or for their answer."""

_LOOPBACK = ("::1", "127.0.0.1")


class IGetAddressInfo(Protocol):
    """The one signature of C{socket.getaddrinfo} that is used here."""

    def __call__(
        self, host: bytes, port: int, family: int, kind: int, proto: int, flags: int, /
    ) -> Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]: ...


class DaemonThreadPool(ThreadPool):
    """
    A thread pool that does not hold up the end of the process.

    A thread inside getaddrinfo(3) cannot be interrupted and may stay there for
    as long as resolv.conf(5) says.  Twisted's own pool is joined when the
    reactor stops, so a name server that does not answer would keep a daemon
    that was told to stop alive; these threads are simply left behind.
    """

    @staticmethod
    def threadFactory(*args: Any, **kwargs: Any) -> threading.Thread:  # type: ignore[override]
        """Make a thread that the interpreter does not wait for."""
        kwargs["daemon"] = True
        return threading.Thread(*args, **kwargs)

    def abandon(self) -> None:
        """Let idle threads end, and forget those that are still looking something up."""
        self.adjustPoolsize(0, 0)


def interleave(addresses: Sequence[InternetAddress]) -> list[InternetAddress]:
    """
    Alternate between the address families, beginning with that of the first
    address, otherwise in the order given (RFC 8305 section 4, with a First
    Address Family Count of 1).  Repeated addresses are dropped.

    @param addresses: addresses in the order of the resolver (RFC 6724).
    """
    unique = list(dict.fromkeys(addresses))
    if not unique:
        return []
    first = [a for a in unique if a.family == unique[0].family]
    second = [a for a in unique if a.family != unique[0].family]
    mixed: list[InternetAddress] = []
    for index in range(max(len(first), len(second))):
        mixed += first[index : index + 1] + second[index : index + 1]
    return mixed


def numericAddress(host: str, port: int) -> InternetAddress | None:
    """
    The address that C{host} spells out, or None when it is a name.

    @param host: as in a sockaddr_host; an IPv6 literal may have a numeric
        scope (C{fe80::1%2}): names of interfaces mean something only in the
        network namespace of the program, which is not the daemon's.
    @param port: 0 to 65535.
    @raise SSAError: EINVAL, the scope is not a number.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return InternetAddress(socket.AF_INET, str(address), port)
    assert isinstance(address, ipaddress.IPv6Address)
    scope = 0
    if address.scope_id is not None:
        if not (address.scope_id.isascii() and address.scope_id.isdigit()) or len(address.scope_id) > 9:
            raise SSAError(errno.EINVAL, f"{host}: the scope of an address must be an interface number")
        scope = int(address.scope_id)
        address = ipaddress.IPv6Address(int(address))
    return InternetAddress(socket.AF_INET6, str(address), port, 0, scope)


def isLocalhost(host: str) -> bool:
    """Whether C{host} is C{localhost} or below it (RFC 6761 section 6.3: never ask the DNS)."""
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


class Resolver:
    """
    The system's resolver, off the reactor's thread.

    Twisted's own C{reactor.nameResolver} is not used because it drops the
    text of the resolver's error, which TLS_ERROR has to carry.

    @ivar pending: names being looked up, or waiting for a thread, whose answer
        is still wanted or whose thread is still busy.
    """

    def __init__(
        self,
        reactor: Any,
        clock: IReactorTime,
        pool: ThreadPool,
        getAddressInfo: IGetAddressInfo = socket.getaddrinfo,
        maxPending: int = MAX_PENDING_NAMES,
    ) -> None:
        """
        @param reactor: an C{IReactorFromThreads}.
        @param clock: measures the timeouts.
        @param pool: bounds the number of concurrent look-ups; started by the caller.
        @param getAddressInfo: getaddrinfo(3).
        @param maxPending: how many names may be pending at once.
        """
        self._reactor = reactor
        self._clock = clock
        self._pool = pool
        self._getAddressInfo = getAddressInfo
        self._maxPending = maxPending
        self.pending = 0

    def resolve(self, host: str, port: int, families: Sequence[int], timeout: float) -> Deferred[list[InternetAddress]]:
        """
        The addresses of C{host}, in the order in which to try them.

        @param host: a name or an address literal.
        @param port: 0 to 65535.
        @param families: AF_INET, AF_INET6 or both: what the caller can use.
        @param timeout: seconds.
        @return: fails with L{SSAError} EHOSTUNREACH and the resolver's text
            (no such name, no address of these families, no answer in time),
            or EINVAL or ENOBUFS.
        """
        try:
            literal = numericAddress(host, port)
            if literal is not None:
                return succeed(self._usable(host, [literal], families))
            if isLocalhost(host):
                local = [a for a in (numericAddress(text, port) for text in _LOOPBACK) if a is not None]
                return succeed(self._usable(host, local, families))
            name = host.encode("ascii")
            if not name or b"\0" in name:
                raise SSAError(errno.EINVAL, "the host name is empty or contains a NUL")
            if self.pending >= self._maxPending:
                raise Cause.LIMIT_REACHED.error(f"{host}: too many names are being resolved")
        except UnicodeEncodeError:
            return fail(SSAError(errno.EINVAL, f"{host!r}: host names are ASCII (A-labels)"))
        except SSAError as error:
            return fail(error)
        return self._lookUp(name, host, port, families, timeout)

    def _lookUp(
        self, name: bytes, host: str, port: int, families: Sequence[int], timeout: float
    ) -> Deferred[list[InternetAddress]]:
        abandoned = threading.Event()
        family = families[0] if len(families) == 1 else socket.AF_UNSPEC

        def inThread() -> Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]:
            if abandoned.is_set():
                return []
            return self._getAddressInfo(name, port, family, socket.SOCK_STREAM, socket.IPPROTO_TCP, 0)

        answer: Deferred[list[InternetAddress]] = Deferred(lambda _: abandoned.set())
        self.pending += 1

        def finished(result: Any) -> None:
            self.pending -= 1
            if answer.called:
                return
            try:
                answer.callback(self._usable(host, self._parse(host, result), families))
            except SSAError as error:
                answer.errback(error)

        def late() -> None:
            abandoned.set()
            answer.errback(Cause.RESOLVE_TIMEOUT.error(f"{host}: waited {timeout:g} s"))

        def stopTimer(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        timer = self._clock.callLater(timeout, late)
        answer.addBoth(stopTimer)
        deferToThreadPool(self._reactor, self._pool, inThread).addBoth(finished)
        return answer

    @staticmethod
    def _parse(host: str, result: Any) -> list[InternetAddress]:
        """
        @param result: what getaddrinfo(3) returned, or a Failure of it.
        @raise SSAError: EHOSTUNREACH with the resolver's text.
        """
        if isinstance(result, Failure):
            error = result.value
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise Cause.NAME_NOT_RESOLVED.error(f"{host}: {text}")
        return [
            InternetAddress.fromSocket(int(family), sockaddr)
            for family, _, _, _, sockaddr in result
            if family in (socket.AF_INET, socket.AF_INET6)
        ]

    @staticmethod
    def _usable(host: str, addresses: Sequence[InternetAddress], families: Sequence[int]) -> list[InternetAddress]:
        usable = [a for a in addresses if a.family in families]
        if not usable:
            wanted = " or ".join("IPv4" if f == socket.AF_INET else "IPv6" for f in families)
            raise Cause.NAME_NOT_RESOLVED.error(f"{host} has no {wanted} address")
        return interleave(usable)


@dataclass(frozen=True)
class Won(Generic[T]):
    """
    What a L{Race} found.

    @ivar address: the address that connected.
    @ivar value: what the attempt gave.
    @ivar rest: the addresses that have not failed: not started, or cancelled
        because this one was faster.
    @ivar failures: those that failed before, each with its error.
    """

    address: InternetAddress
    value: T
    rest: tuple[InternetAddress, ...] = ()
    failures: tuple[tuple[InternetAddress, SSAError], ...] = field(default=())


class AllFailed(Exception):
    """
    No attempt of a L{Race} succeeded.

    @ivar failures: every address with its error, in the order of failing.
    """

    def __init__(self, failures: Sequence[tuple[InternetAddress, SSAError]]) -> None:
        super().__init__("; ".join(f"{a.host}: {e.reason}" for a, e in failures))
        self.failures = tuple(failures)


class Race(Generic[T]):
    """
    Happy eyeballs (RFC 8305 section 5): the next attempt starts when the
    last has failed or L{ATTEMPT_DELAY} after it started, the first to succeed
    wins and the others are cancelled.
    """

    def __init__(
        self,
        clock: IReactorTime,
        addresses: Sequence[InternetAddress],
        attempt: Callable[[InternetAddress], Deferred[T]],
        delay: float = ATTEMPT_DELAY,
    ) -> None:
        """
        @param clock: measures the delay.
        @param addresses: in the order in which to try them, at least one.
        @param attempt: starts a connection; the Deferred fails with
            L{SSAError}, and cancelling it gives up everything it holds.
        @param delay: seconds.
        """
        self._clock = clock
        self._waiting = list(addresses)
        self._attempt = attempt
        self._delay = delay
        self._running: dict[InternetAddress, Deferred[T]] = {}
        self._failures: list[tuple[InternetAddress, SSAError]] = []
        self._timer: IDelayedCall | None = None
        self._over = False
        self._result: Deferred[Won[T]] = Deferred(lambda _: self._stop())

    def run(self) -> Deferred[Won[T]]:
        """
        Start; to be called once.

        @return: fails with L{AllFailed}; any other exception of an attempt
            ends the race.  Cancelling it cancels every attempt.
        """
        if not self._waiting:
            return fail(AllFailed([]))
        self._startNext()
        return self._result

    def _startNext(self) -> None:
        self._stopTimer()
        if self._over or not self._waiting:
            return
        address = self._waiting.pop(0)
        if self._waiting:
            self._timer = self._clock.callLater(self._delay, self._startNext)
        attempt = self._attempt(address)
        self._running[address] = attempt
        attempt.addCallbacks(self._succeeded, self._failed, callbackArgs=(address,), errbackArgs=(address,))

    def _succeeded(self, value: T, address: InternetAddress) -> None:
        self._running.pop(address, None)
        rest = (*self._running, *self._waiting)
        self._stop()
        self._result.callback(Won(address, value, rest, tuple(self._failures)))

    def _failed(self, failure: Failure, address: InternetAddress) -> None:
        self._running.pop(address, None)
        if self._over:
            return
        if not isinstance(failure.value, SSAError):
            self._stop()
            self._result.errback(failure)
            return
        self._failures.append((address, failure.value))
        if self._waiting:
            self._startNext()
        elif not self._running:
            self._stop()
            self._result.errback(AllFailed(self._failures))

    def _stop(self) -> None:
        self._over = True
        self._stopTimer()
        running, self._running = self._running, {}
        for attempt in running.values():
            attempt.cancel()

    def _stopTimer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
