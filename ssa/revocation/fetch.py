# SPDX-License-Identifier: MIT
"""
Answers over HTTP, within bounds.

The URLs come from certificates whose chain has been verified, so they are the authority's.  An authority that the
administrator trusts may be anywhere.  One that a program brought itself may not send the daemon, which has a network where
the program perhaps has none, to the machine itself or to the network around it: L{Reach.PUBLIC}.  Neither may a redirect to
another host: plain HTTP is not protected, and whoever is in between can send one.

The sockets are ordinary TCP sockets of the daemon's; nothing here passes through SSA.
"""

from __future__ import annotations

import importlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from ssa.api import InternetAddress
from ssa.errors import Cause, SSAError, oneLine
from ssa.resolve import Resolver
from ssa.revocation.turns import Turns
from ssa.revocation.verdict import NoAnswer, NotTaken

__all__ = ["DAEMON", "FETCH_TIME", "MOST_REDIRECTS", "UNKNOWN_OWNER", "Fetcher", "Place", "Reach", "Reply"]

FETCH_TIME = 15.0
"""Seconds that one fetch may take with all its redirects, whoever waits for it."""

UNKNOWN_OWNER = -1
"""The owner of fetches for sockets whose user is not known."""

DAEMON = -2
"""The owner of the daemon's own fetches, about the administrator's certificates."""

MOST_REDIRECTS = 3
"""How many redirects are followed (RFC 9110 section 15.4)."""

LONGEST_URL = 2048
"""The most bytes of a URL."""

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_OK = 200
_HTTP_PORT = 80
_FIRST_ORDINARY_PORT = 1024
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""What is given out of global unicast addresses: the IANA's registry of the IPv6 address space."""
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""The prefix of translators to IPv4: RFC 6052 section 2.1."""


class Reach(Enum):
    """Which addresses may be asked."""

    ANY = "any"
    PUBLIC = "public"


BOUNDS = {Reach.ANY: (12, 8, 192, 64), Reach.PUBLIC: (4, 2, 64, 16)}
"""
How many fetches are in progress at one time, how many of these for one user; how many more wait for their turn, how many of
these for one user.  Whoever brings an authority can let it name a server that never answers: such fetches have turns of
their own.
"""


@dataclass(frozen=True)
class Place:
    """
    Where a fetch goes: a URL that has been checked.

    @ivar url: all of it.
    @ivar host: a name or an address.
    @ivar port: its port.
    @ivar reach: which addresses the host may have.
    """

    url: str
    host: str
    port: int
    reach: Reach

    def admits(self, address: InternetAddress) -> bool:
        """Whether an address of the host may be connected to."""
        if self.reach is Reach.ANY:
            return True
        parsed = ipaddress.ip_address(address.host)
        if isinstance(parsed, ipaddress.IPv6Address):
            within = _within(parsed)
            if within is None:
                return parsed in _UNICAST and parsed.is_global
            parsed = within
        return parsed.is_global and not parsed.is_multicast


def _within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to an IPv6 address are passed on to, by this machine or a translator; L{None}: to none."""
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


@dataclass(frozen=True)
class Reply:
    """
    What a server replied.

    @ivar status: the number.
    @ivar location: where a redirect goes; "" if nowhere.
    @ivar body: the content.
    """

    status: int
    location: str
    body: bytes


class Client(Protocol):
    """Makes one request; L{ssa.revocation.http.HTTPClient}."""

    def request(self, place: Place, body: bytes | None, most: int) -> Deferred[Reply]:
        """
        @param body: what is posted; C{None} for a GET request.
        @param most: bytes that the content may have.
        @return: fails with L{NoAnswer} or L{SSAError}.
        """


def parsePlace(url: str, reach: Reach) -> Place:
    """
    Check a URL.

    @raise NoAnswer: it is not one that may be fetched.
    """
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise NoAnswer("the URL is malformed or too long")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise NoAnswer(f"the URL is malformed: {error}") from None
    if parts.scheme != "http":
        raise NoAnswer("only http:// is asked")
    if not host or parts.username is not None or parts.password is not None:
        raise NoAnswer("the URL is malformed, or has a user name in it")
    port = _HTTP_PORT if port is None else port
    if port != _HTTP_PORT and (port < _FIRST_ORDINARY_PORT or reach is Reach.PUBLIC):
        allowed = "80" if reach is Reach.PUBLIC else f"80 or at least {_FIRST_ORDINARY_PORT}"
        raise NoAnswer(f"port {port} is not asked, only {allowed}")
    return Place(url, host, port, reach)


class Fetcher:
    """
    Fetches within bounds of number, size and time.

    @ivar fetches: how many requests have been made.
    """

    def __init__(
        self,
        reactor: Any,
        clock: IReactorTime,
        resolver: Resolver,
        pool: ThreadPool,
        client: Client | None = None,
    ) -> None:
        """
        @param reactor: connects.
        @param clock: measures the times.
        @param resolver: looks names up.
        @param pool: where what takes time is loaded.
        @param client: makes the requests; C{None} for Twisted's, which is loaded when it is needed first.
        """
        self._reactor = reactor
        self._clock = clock
        self._resolver = resolver
        self._pool = pool
        self._client = client
        self._turns = {reach: Turns(*bounds) for reach, bounds in BOUNDS.items()}
        self.fetches = 0

    def fetch(
        self,
        url: str,
        most: int,
        body: bytes | None = None,
        reach: Reach = Reach.ANY,
        owner: int = UNKNOWN_OWNER,
    ) -> Deferred[bytes]:
        """
        Get what is at a URL.

        @param most: the most bytes.
        @param body: what is posted; C{None} for a GET request.
        @param reach: which addresses may be asked.
        @param owner: the user whose program needs it.
        @return: fails with L{NoAnswer}; may be cancelled.
        """
        late: list[bool] = []
        work = Deferred.fromCoroutine(self._fetch(url, most, body, reach, owner))

        def expire() -> None:
            late.append(True)
            work.cancel()

        timer = self._clock.callLater(FETCH_TIME, expire)

        def ended(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            if late:
                raise NoAnswer(f"it took longer than {FETCH_TIME:g} s")
            return result

        return work.addBoth(ended)

    async def _fetch(self, url: str, most: int, body: bytes | None, reach: Reach, owner: int) -> bytes:
        place = parsePlace(url, reach)
        turns = self._turns[reach]
        await turns.take(owner)
        try:
            return await self._follow(place, most, body)
        except (NoAnswer, CancelledError):
            raise
        except SSAError as error:
            raise NoAnswer(error.reason) from None
        finally:
            turns.release(owner)

    async def _follow(self, place: Place, most: int, body: bytes | None) -> bytes:
        client = await self._loaded()
        first = place
        for _ in range(MOST_REDIRECTS + 1):
            self.fetches += 1
            reply = await client.request(place, body, most)
            if reply.status == _OK:
                return reply.body
            if reply.status not in _REDIRECTS or not reply.location or body is not None:
                raise NotTaken(f"the server answers with status {reply.status}")
            target = urljoin(place.url, oneLine(reply.location))
            place = parsePlace(target, first.reach)
            if place.host != first.host:
                place = parsePlace(target, Reach.PUBLIC)
        raise NoAnswer(f"there are more than {MOST_REDIRECTS} redirects")

    async def _loaded(self) -> Client:
        """Twisted's client takes a quarter of a second to import: in a thread, and only where something is ever fetched."""
        if self._client is None:
            module = await deferToThreadPool(self._reactor, self._pool, importlib.import_module, "ssa.revocation.http")
            if self._client is None:
                self._client = module.HTTPClient(self._reactor, self._clock, self._resolver)
        return self._client


def admitted(place: Place, addresses: Sequence[InternetAddress]) -> list[InternetAddress]:
    """
    Choose the addresses that may be connected to.

    @raise SSAError: EPERM, none of them.
    """
    found = [address for address in addresses if place.admits(address)]
    if not found:
        raise Cause.POLICY.error(
            f"{place.host} is not on the public network, the only one where a program's authority or a redirect may lead"
        )
    return found
