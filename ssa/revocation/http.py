# SPDX-License-Identifier: MIT
"""
One HTTP request with Twisted's client: L{ssa.revocation.fetch} has the policy, and imports this when it is needed.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from ssa.api import InternetAddress
from ssa.errors import SSAError
from ssa.resolve import AllFailed, Race, Resolver
from ssa.revocation.fetch import FETCH_TIME, Place, Reply, admitted
from ssa.revocation.verdict import NoAnswer
from ssa.version import __version__

_MOST_AROUND = 64 * 1024
"""Bytes of a reply that are not its content: status, header fields, the marks of chunks."""


class HTTPClient:
    """Makes requests, each on a connection of its own (L{ssa.revocation.fetch.Client})."""

    def __init__(self, reactor: Any, clock: IReactorTime, resolver: Resolver) -> None:
        """
        @param reactor: connects.
        @param clock: measures the attempts to connect.
        @param resolver: looks names up.
        """
        self._reactor = reactor
        self._clock = clock
        self._resolver = resolver

    def request(self, place: Place, body: bytes | None, most: int) -> Deferred[Reply]:
        """See L{ssa.revocation.fetch.Client}."""
        return Deferred.fromCoroutine(self._request(place, body, most))

    async def _request(self, place: Place, body: bytes | None, most: int) -> Reply:
        endpoint = _Endpoint(self._reactor, self._clock, self._resolver, place, most + _MOST_AROUND)
        agent: Agent = Agent.usingEndpointFactory(self._reactor, _Always(endpoint))  # type: ignore[no-untyped-call]
        headers = Headers({b"User-Agent": [f"ssa/{__version__}".encode("ascii")]})
        producer = None
        if body is not None:
            headers.addRawHeader(b"Content-Type", b"application/ocsp-request")
            producer = _Whole(body)
        method = b"GET" if body is None else b"POST"
        try:
            response = await agent.request(method, place.url.encode("ascii"), headers, producer)
            content = await _read(response, most)
        except (ResponseFailed, ConnectionLost) as error:
            if any(isinstance(reason.value, CancelledError) for reason in getattr(error, "reasons", ())):
                raise CancelledError from None
            self._checkSize(endpoint, most)
            raise NoAnswer(f"the server's reply is not HTTP, or incomplete ({type(error).__name__})") from None
        self._checkSize(endpoint, most)
        locations = response.headers.getRawHeaders(b"location") or [b""]
        return Reply(response.code, locations[0].decode("ascii", "backslashreplace"), content)

    @staticmethod
    def _checkSize(endpoint: _Endpoint, most: int) -> None:
        """
        Tell a connection that was cut because too much came from one that has ended.

        @raise NoAnswer: it was cut.
        """
        if endpoint.exceeded:
            raise NoAnswer(f"the server sent more than {most} bytes")


@implementer(IBodyProducer)
class _Whole:
    """A short request body, written at once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """See C{IBodyProducer}."""
        consumer.write(self._data)
        return succeed(None)

    def stopProducing(self) -> None:
        """Nothing to stop."""

    def pauseProducing(self) -> None:
        """Nothing to pause."""

    def resumeProducing(self) -> None:
        """Nothing to resume."""


@implementer(IAgentEndpointFactory)
class _Always:
    """Gives the endpoint of the one request."""

    def __init__(self, endpoint: _Endpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: Any) -> _Endpoint:
        """See C{IAgentEndpointFactory}."""
        return self._endpoint


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """
    Resolves the name, races the addresses that are admitted, and counts what comes.

    @ivar exceeded: whether the server has sent more than it may.
    """

    def __init__(self, reactor: Any, clock: IReactorTime, resolver: Resolver, place: Place, most: int) -> None:
        self._reactor = reactor
        self._clock = clock
        self._resolver = resolver
        self._place = place
        self.most = most
        self.exceeded = False

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See C{IStreamClientEndpoint}."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        place = self._place
        families = (socket.AF_INET, socket.AF_INET6)
        found = admitted(place, await self._resolver.resolve(place.host, place.port, families, FETCH_TIME))

        def attempt(address: InternetAddress) -> Deferred[Any]:
            kind: Any = TCP4ClientEndpoint if address.family == socket.AF_INET else TCP6ClientEndpoint
            counting: Any = WrappingFactory(factory)  # type: ignore[no-untyped-call]
            counting.noisy = factory.noisy = False  # type: ignore[attr-defined]
            counting.protocol = lambda wrapper, inner: _Counting(wrapper, inner, self)
            connected: Deferred[Any] = kind(self._reactor, address.host, address.port, FETCH_TIME).connect(counting)
            return connected.addErrback(refused)

        def refused(failure: Failure) -> Failure:
            error = failure.value
            if not isinstance(error, ConnectError):
                return failure
            return Failure(SSAError(error.osError or errno.EIO, str(error)))  # type: ignore[no-untyped-call]

        try:
            won = await Race(self._clock, found, attempt).run()
        except AllFailed as error:
            raise NoAnswer(f"no connection: {error}") from None
        connection: IProtocol = won.value.wrappedProtocol
        return connection


class _Counting(ProtocolWrapper):
    """Ends a connection on which too much comes."""

    def __init__(self, factory: Any, inner: Any, endpoint: _Endpoint) -> None:
        super().__init__(factory, inner)
        self._endpoint = endpoint
        self._received = 0

    def dataReceived(self, data: bytes) -> None:
        """Count, and pass on."""
        self._received += len(data)
        if self._received > self._endpoint.most:
            self._endpoint.exceeded = True
            transport: Any = self.transport
            transport.abortConnection()
            return
        super().dataReceived(data)  # type: ignore[no-untyped-call]


class _Body(Protocol):
    """Collects a reply's content, up to its bound."""

    def __init__(self, most: int, done: Deferred[bytes]) -> None:
        self._most = most
        self._done = done
        self._parts: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self._size += len(data)
        if self._size > self._most:
            self._fire(NoAnswer(f"the server sent more than {self._most} bytes"))
            self.abort()
        else:
            self._parts.append(data)

    def abort(self) -> None:
        """Cut the connection."""
        transport = self.transport
        if transport is not None:
            (getattr(transport, "abortConnection", None) or transport.loseConnection)()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is all there, or never will be."""
        if isinstance(reason.value, (ResponseDone, PotentialDataLoss)):
            self._fire(b"".join(self._parts))
        else:
            self._fire(NoAnswer("the connection ended before the whole answer was there"))

    def _fire(self, result: bytes | NoAnswer) -> None:
        if self._done.called:
            return
        if isinstance(result, bytes):
            self._done.callback(result)
        else:
            self._done.errback(result)


def _read(response: IResponse, most: int) -> Deferred[bytes]:
    """
    Read the content.

    An old server may end it with the connection (C{PotentialDataLoss}): whether it is complete then shows in its signature.
    """
    done: Deferred[bytes] = Deferred(lambda _: body.abort())
    body = _Body(most, done)
    response.deliverBody(body)  # type: ignore[no-untyped-call]
    return done
