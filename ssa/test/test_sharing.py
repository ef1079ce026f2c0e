# SPDX-License-Identifier: MIT
"""
Tests of what sockets share: the options of TLS_CONTEXT in the daemon's books, and the tickets that relays collect.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import deferToThread

from ssa.api import IPPROTO_TLS, InternetAddress, Option
from ssa.options import SocketOptions
from ssa.policy.profile import TLS_1_3, Policy
from ssa.protocol.messages import CloseNotify, DataReturn, GetsockoptNotify
from ssa.test.badservers import echo, running, serverContext
from ssa.test.pki import testCA
from ssa.test.test_daemon import DaemonCase, exchange
from ssa.test.test_relay import RelayFixture, receiveAll
from ssa.test.test_sockets import DispatcherCase


class ContextTests(DispatcherCase):
    """Who may take over whose options."""

    def setUp(self) -> None:
        super().setUp()
        self.interceptor.peerUID = 0  # as the kernel's, whose word on users counts

    def tearDown(self) -> None:
        super().tearDown()
        self.assertEqual({}, self.around.services.options)

    def get(self, option: Option, id: int = 1) -> bytes:
        """An option's bytes."""
        got = self.successResultOf(self.send(GetsockoptNotify, id, IPPROTO_TLS, int(option)))
        assert isinstance(got, DataReturn)
        return got.value

    def test_sameUser(self) -> None:
        """The options, and from then on what is shared."""
        self.newSocket(1)
        self.newSocket(2)
        self.set(Option.TLS_ALPN, b"h2", 1)
        first = self.get(Option.TLS_ID, 1)
        self.assertEqual(0, self.set(Option.TLS_CONTEXT, first, 2))
        self.assertEqual((b"h2\0", first), (self.get(Option.TLS_ALPN, 2), self.get(Option.TLS_CONTEXT, 2)))
        self.assertNotEqual(first, self.get(Option.TLS_ID, 2))
        one, two = self.around.services.options.values()
        self.assertEqual((one.space, one.owner), ("/bin/prog", 1000))
        self.assertEqual((two.space, two.owner), (one.space, one.owner))
        self.assertIs(two.shared, one.shared)

    def test_otherUser(self) -> None:
        """EPERM, in both directions and for root too: a socket of root's must not act with another user's key."""
        for mine, uid in ((1, 1000), (2, 1001), (3, 0)):
            self.newSocket(mine, uid=uid)
        self.set(Option.TLS_ALPN, b"h2", 1)
        ids = {mine: self.get(Option.TLS_ID, mine) for mine in (1, 2, 3)}
        for mine in ids:
            for other in ids:
                expected = 0 if mine == other else errno.EPERM
                self.assertEqual(expected, self.set(Option.TLS_CONTEXT, ids[other], mine))
        self.assertEqual(b"\0", self.get(Option.TLS_ALPN, 2))

    def test_notBelieved(self) -> None:
        """What another user's supervisor says of its programs' users does not count: they are that user's."""
        self.newSocket(1, uid=0)
        self.interceptor.peerUID = 1000
        self.newSocket(2, uid=0)
        self.assertEqual(errno.EPERM, self.set(Option.TLS_CONTEXT, self.get(Option.TLS_ID, 1), 2))
        self.interceptor.peerUID = 0

    def test_closed(self) -> None:
        """A socket that is closed is not known any more; who has copied it goes on."""
        self.newSocket(1)
        self.newSocket(2)
        self.newSocket(3)
        first = self.get(Option.TLS_ID, 1)
        self.set(Option.TLS_ALPN, b"h2", 1)
        self.set(Option.TLS_CONTEXT, first, 2)
        self.tell(CloseNotify, 1)
        self.assertEqual(errno.EINVAL, self.set(Option.TLS_CONTEXT, first, 3))
        self.assertEqual(b"h2\0", self.get(Option.TLS_ALPN, 2))

    def test_connectedClosed(self) -> None:
        """The same for one whose connection goes on after its close."""
        secured = self.connected()
        first = self.get(Option.TLS_ID)
        self.newSocket(2)
        self.assertEqual(0, self.set(Option.TLS_CONTEXT, first, 2))
        self.tell(CloseNotify, 1)
        self.newSocket(3)
        self.assertEqual(errno.EINVAL, self.set(Option.TLS_CONTEXT, first, 3))
        secured.relays[0].end()

    def test_missing(self) -> None:
        """No such id."""
        self.newSocket()
        self.assertEqual(errno.EINVAL, self.set(Option.TLS_CONTEXT, struct.pack("=Q", 1 << 60)))
        self.assertIsInstance(self.around.services.options.get(1), SocketOptions)


class ReloadTests(DaemonCase):
    """What a new policy does to the sessions of clients."""

    async def resumed(self, port: int) -> int:
        """Connect, exchange a word, end; whether a session was resumed."""
        program = await self.client()
        self.assertEqual(0, await self.interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port)))
        assert program.plain is not None
        self.assertEqual(b"ping", await deferToThread(exchange, program.plain, b"ping"))
        told = await self.interceptor.get(program, Option.TLS_RESUMED_SESSION)
        self.interceptor.close(program)
        return int(struct.unpack("=i", told)[0])

    async def test_reload(self) -> None:
        """After a reload nothing is resumed that began before, be the policy another one or not."""
        with running(echo(serverContext(testCA().issue()))) as server:
            self.assertEqual([0, 1], [await self.resumed(server.port) for _ in range(2)])
            for policy in (Policy(self.profile), Policy(replace(self.profile, minProtocol=TLS_1_3))):
                self.daemon._loadPolicy = lambda policy=policy: policy
                self.assertTrue(self.daemon.reload())
                self.assertEqual([0, 1], [await self.resumed(server.port) for _ in range(2)])

    async def test_badReload(self) -> None:
        """A file with errors changes nothing."""

        def load() -> Policy:
            raise ValueError("a test")

        with running(echo(serverContext(testCA().issue()))) as server:
            self.assertEqual([0, 1], [await self.resumed(server.port) for _ in range(2)])
            self.daemon._loadPolicy = load
            self.assertFalse(self.daemon.reload())
            self.assertEqual(1, await self.resumed(server.port))


class CollectTests(RelayFixture):
    """A relay looks for tickets after its first reads, and at the end."""

    def counting(self, *answers: bool) -> tuple[list[int], Callable[[SSL.Connection], bool]]:
        """A C{collect} that answers so, C{False} after that, and how often it was called."""
        calls: list[int] = []
        left = list(answers)

        def collect(connection: SSL.Connection) -> bool:
            self.assertIsInstance(connection, SSL.Connection)
            calls.append(1)
            return left.pop(0) if left else False

        return calls, collect

    @inlineCallbacks
    def exchange(self, collect: Callable[[SSL.Connection], bool], turns: int) -> Generator[Any, Any, None]:
        """Turns of a byte each way, then an orderly end."""
        relay, program, peer = self.makeRelay(collect=collect)
        for _ in range(turns):
            yield self.inThread(peer.send, b"x")
            self.assertEqual((yield self.inThread(program.recv, 1)), b"x")
        yield self.inThread(peer.tls.shutdown)
        self.assertEqual((yield self.inThread(receiveAll, program)), b"")
        program.close()
        yield relay.done

    @inlineCallbacks
    def test_found(self) -> Generator[Any, Any, None]:
        """Once found, it is asked once more, at the end."""
        calls, collect = self.counting(True)
        yield self.exchange(collect, 5)
        self.assertEqual(len(calls), 2)

    @inlineCallbacks
    def test_neverFound(self) -> Generator[Any, Any, None]:
        """A server without tickets costs a few looks only."""
        calls, collect = self.counting()
        yield self.exchange(collect, 30)
        self.assertEqual(len(calls), 9)

    @inlineCallbacks
    def test_failure(self) -> Generator[Any, Any, None]:
        """Whatever goes wrong with a session does not concern the data."""

        def collect(connection: SSL.Connection) -> bool:
            raise ValueError("a test")

        yield self.exchange(collect, 3)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.reasons, [])
