# SPDX-License-Identifier: MIT
"""Tests for L{ssa.netlink.port} and L{ssa.netlink.protocol}: what only the kernel in memory can be made to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EAGAIN, EBADF, EBUSY, EINTR, EIO, EMFILE, EMSGSIZE, ENOBUFS, ENOPROTOOPT, ENOTCONN, EPERM
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IListeningPort
from twisted.logger import capturedLogs
from twisted.trial.unittest import SkipTest, SynchronousTestCase
from zope.interface.verify import verifyObject

from ssa.netlink.codec import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    Acknowledgement,
    BadValueError,
    NetlinkMessage,
)
from ssa.netlink.errors import (
    BadReplyError,
    DumpInterrupted,
    NetlinkError,
    NotListeningError,
    RepliesLostError,
    RequestTimedOut,
    TooManyRequestsError,
)
from ssa.netlink.port import (
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NETLINK_ROUTE,
    INetlinkProtocol,
    INetlinkSocket,
    INetlinkSystem,
    NetlinkPort,
    RealNetlink,
)
from ssa.netlink.protocol import NetlinkProtocol
from ssa.netlink.testing import Answer, MemoryNetlink, MemoryReactor

GET = 18
LIST = [bytes([number]) * 4 for number in range(10)]


class Watcher(NetlinkProtocol):
    """Keeps what it is told."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.notified: list[tuple[NetlinkMessage, int]] = []
        self.overruns = 0
        self.broken = False

    def notificationReceived(self, message: NetlinkMessage, group: int) -> None:
        super().notificationReceived(message, group)
        self.notified.append((message, group))
        if self.broken:
            raise ArithmeticError("a user's fault")

    def overrun(self) -> None:
        super().overrun()
        self.overruns += 1


def echo(message: NetlinkMessage) -> Iterator[Answer]:
    """A subsystem: a dump gives L{LIST}, a request itself, and what begins with C{!} is refused."""
    if message.payload[:1] == b"!":
        raise NetlinkError(EBUSY, "not now", 16)
    if message.flags & NLM_F_DUMP == NLM_F_DUMP:
        for payload in LIST:
            yield message.type, payload
        if message.payload:
            raise NetlinkError(EIO, "half of it")
    elif message.payload:
        for part in bytes(message.payload).split(b","):
            yield message.type, part


class Fixture(SynchronousTestCase):
    """A port on a kernel in memory that echoes."""

    def setUp(self) -> None:
        self.kernel = MemoryNetlink()
        self.kernel.provide(NETLINK_ROUTE, echo)
        self.reactor = MemoryReactor(self.kernel)
        self.protocol = Watcher(self.reactor)
        self.port = NetlinkPort(self.protocol, NETLINK_ROUTE, self.reactor, self.kernel)

    def listen(self) -> None:
        """Open the port."""
        self.port.startListening()
        self.socket = self.kernel.socketOf(self.port)

    def result(self, waits: Deferred[Any]) -> Any:
        """Let the reactor run, and take the result."""
        self.reactor.run()
        return self.successResultOf(waits)

    def failure(self, waits: Deferred[Any], kind: type[Exception]) -> Any:
        """Let the reactor run, and take the error."""
        self.reactor.run()
        return self.failureResultOf(waits, kind).value

    def answer(self, kind: int, flags: int = 0, sequence: int = 1, payload: bytes = b"", port: int = 0) -> None:
        """Let the kernel say something."""
        self.socket.deliver(NetlinkMessage(kind, flags, sequence, port, payload).encode())


class PortTests(Fixture):
    """L{NetlinkPort}."""

    def test_interfaces(self) -> None:
        """Everything provides what it says."""
        self.listen()
        verifyObject(IListeningPort, self.port)
        verifyObject(INetlinkProtocol, self.protocol)
        for system in (RealNetlink(), self.kernel):
            verifyObject(INetlinkSystem, system)
        verifyObject(INetlinkSocket, self.socket)
        self.assertIn("Watcher", repr(self.port))
        self.assertIn("Watcher", self.port.logPrefix())

    def test_cannotListen(self) -> None:
        """Whatever call fails, the socket is closed and the error tells why."""
        for call in ("socket", "setsockopt", "bind", "getsockname"):
            self.kernel.fail(call, EMFILE)
            error = self.assertRaises(CannotListenError, self.port.startListening)
            self.assertEqual(error.socketError.errno, EMFILE)
            self.assertEqual((self.kernel.sockets, self.port.fileno(), self.protocol.port), ([], -1, None))
        self.port.startListening()
        self.assertRaises(CannotListenError, self.port.startListening)

    def test_noSuchSubsystem(self) -> None:
        """A family that the kernel lacks."""
        port = NetlinkPort(self.protocol, 21, self.reactor, self.kernel)
        self.assertRaises(CannotListenError, port.startListening)

    def test_oldKernel(self) -> None:
        """Options that an old kernel lacks are done without; the group of a datagram is not."""
        self.kernel.fail("setsockopt", 0, ENOPROTOOPT, ENOPROTOOPT, ENOPROTOOPT)
        self.listen()
        self.assertEqual((self.port.extendedAcks, self.port.strict), (False, False))
        self.assertEqual(self.socket.options & {NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK}, set())
        error = self.failure(self.protocol.request(GET, b"!"), NetlinkError)
        self.assertEqual((error.errno, error.text, error.offset), (EBUSY, "", None))

    def test_unprivilegedBuffer(self) -> None:
        """Who may not force a receive buffer asks for one."""
        self.kernel.privileged = False
        port = NetlinkPort(self.protocol, NETLINK_ROUTE, self.reactor, self.kernel, receiveBuffer=5000)
        port.startListening()
        self.assertEqual(port.receiveBufferSize(), 10000)
        self.kernel.fail("setsockopt", 0, 0, 0, 0, ENOBUFS)
        other = NetlinkPort(self.protocol, NETLINK_ROUTE, self.reactor, self.kernel, receiveBuffer=5000)
        self.assertRaises(CannotListenError, other.startListening)

    def test_notListening(self) -> None:
        """A closed port does nothing."""
        for action in (lambda: self.port.write(b""), lambda: self.port.joinGroup(1), self.port.receiveBufferSize):
            self.assertEqual(self.assertRaises(OSError, action).errno, ENOTCONN)
        self.successResultOf(self.port.stopListening())
        self.assertIs(self.port.doRead(), None)

    def test_interrupted(self) -> None:
        """C{EINTR} and C{EAGAIN} at every call change nothing."""
        for errors in ([EINTR], [EAGAIN], [EINTR] * 40, [EINTR, EAGAIN] * 20):
            self.protocol = Watcher(self.reactor)
            self.port = NetlinkPort(self.protocol, NETLINK_ROUTE, self.reactor, self.kernel)
            self.listen()
            self.kernel.fail("sendto", *errors)
            self.kernel.fail("recvfrom", *errors)
            first = self.protocol.request(GET, b"one")
            second = self.protocol.request(GET, b"two")
            dump = self.protocol.dump(GET)
            self.assertEqual([self.result(one).payload for one in (first, second)], [b"one", b"two"])
            self.assertEqual([message.payload for message in self.result(dump)], LIST)
            self.result(self.port.stopListening())

    def test_keptBack(self) -> None:
        """What the kernel cannot take is kept, in order, up to a bound; one that is refused at last stops no other."""
        self.listen()
        self.port.maximumPending = 3
        self.kernel.fail("sendto", EAGAIN, EAGAIN, EMSGSIZE)
        waits: list[Deferred[Any]] = [self.protocol.request(GET, payload) for payload in (b"one", b"two", b"three", b"four")]
        self.assertEqual(self.failureResultOf(waits[3], OSError).value.errno, ENOBUFS)
        self.assertEqual(self.failure(waits[0], OSError).errno, EMSGSIZE)
        self.assertEqual([self.result(one).payload for one in waits[1:3]], [b"two", b"three"])
        self.assertEqual(self.reactor.getWriters(), [])
        self.kernel.fail("sendto", EAGAIN)
        self.port.maximumPendingBytes = 10
        self.assertEqual(self.assertRaises(OSError, self.port.writeSequence, [b"12345", b"678901"]).errno, ENOBUFS)

    def test_sendRefused(self) -> None:
        """A request that cannot be sent fails with the error of its call."""
        self.listen()
        self.kernel.fail("sendto", EPERM, EPERM, EPERM)
        self.assertEqual(self.failureResultOf(self.protocol.request(GET), OSError).value.errno, EPERM)
        dumps = [self.protocol.dump(GET) for _ in range(3)]
        for dump in dumps[:2]:
            self.assertEqual(self.failureResultOf(dump, OSError).value.errno, EPERM)
        self.assertEqual(len(self.result(dumps[2])), 10)
        self.failureResultOf(self.protocol.request(GET, b"x" * 300000), OSError)
        self.failureResultOf(self.protocol.request(1 << 16), BadValueError)

    def test_boundedReads(self) -> None:
        """One turn reads no more than its bounds."""
        self.listen()
        for bound in ("maximumReads", "maximumThroughput"):
            self.protocol.notified.clear()
            setattr(self.port, bound, 3)
            for number in range(5):
                self.answer(GET, sequence=0, payload=bytes([number]))
            self.port.doRead()
            self.assertEqual(len(self.protocol.notified), 3 if bound == "maximumReads" else 1)
            self.reactor.run()
            self.assertEqual(len(self.protocol.notified), 5)

    def test_overrun(self) -> None:
        """C{ENOBUFS}, also again and again, is told and survived."""
        self.listen()
        self.kernel.fail("recvfrom", *[ENOBUFS] * 100)
        self.socket.overrun()
        self.assertEqual(len(self.result(self.protocol.dump(GET))), 10)
        self.assertEqual((self.protocol.overruns, self.port.overruns), (101, 101))

    def test_socketFails(self) -> None:
        """An error that nobody can do anything about closes the port."""
        self.listen()
        waits = self.protocol.request(GET, b"x")
        self.kernel.fail("recvfrom", EBADF)
        self.kernel.fail("close", EIO)
        error = self.failure(waits, NotListeningError)
        self.assertIn("Bad file descriptor", str(error))
        self.assertEqual((self.port.connected, self.kernel.sockets), (0, []))
        self.result(self.port.stopListening())

    def test_protocolFails(self) -> None:
        """An exception of the protocol is logged, and costs nothing else."""
        self.listen()
        self.protocol.broken = True
        self.answer(GET, sequence=0)
        self.answer(GET, sequence=0)
        self.assertEqual(self.result(self.protocol.request(GET, b"x")).payload, b"x")
        self.assertEqual(len(self.flushLoggedErrors(ArithmeticError)), 2)

        def refuse(data: bytes, group: int) -> None:
            raise LookupError

        self.patch(self.protocol, "datagramReceived", refuse)
        self.answer(GET)
        self.reactor.run()
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_closing(self) -> None:
        """The port closes in a later turn; one who no longer waits is not told."""
        self.listen()
        self.port.loseConnection()
        first, second = self.port.stopListening(), self.port.stopListening()
        self.assertNoResult(first)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertIs(self.result(first), None)
        self.assertEqual(self.socket.closed, True)
        self.port.connectionLost(self.failureResultOf(self.protocol.request(GET)))  # once is enough

    def test_reasonIsDone(self) -> None:
        """A port that was asked to close says so."""
        self.listen()
        reasons: list[Any] = []
        self.patch(self.protocol, "connectionLost", reasons.append)
        self.result(self.port.stopListening())
        self.assertTrue(reasons[0].check(ConnectionDone))

    def test_refusalsAreLoggedSeldom(self) -> None:
        """However much another process sends, the log grows slowly."""
        self.listen()
        with capturedLogs() as events:
            for _ in range(1000):
                self.socket.deliver(b"x" * 10, sender=7)
            self.reactor.run()
        self.assertEqual(self.port.refused.total(), 1000)
        self.assertLess(len(events), 12)


class ProtocolTests(Fixture):
    """L{NetlinkProtocol}."""

    def setUp(self) -> None:
        super().setUp()
        self.listen()

    def test_acknowledged(self) -> None:
        """A request without a reply gives None."""
        self.assertIs(self.result(self.protocol.request(GET)), None)

    def test_refused(self) -> None:
        """The kernel's words come with the error."""
        error = self.failure(self.protocol.request(GET, b"!"), NetlinkError)
        self.assertEqual((error.errno, error.text, error.offset), (EBUSY, "not now", 16))
        self.assertEqual(str(error), "[Errno 16] Device or resource busy: not now (attribute at byte 16)")
        error = self.failure(self.protocol.dump(GET, b"!"), NetlinkError)
        self.assertEqual((error.errno, error.text), (EBUSY, "not now"))

    def test_refusedInTheMiddle(self) -> None:
        """A dump may fail after some messages."""
        got: list[NetlinkMessage] = []
        error = self.failure(self.protocol.stream(got.append, GET, b"x"), NetlinkError)
        self.assertEqual((error.errno, error.text, len(got)), (EIO, "half of it", 10))

    def test_severalReplies(self) -> None:
        """Several replies to a request are an error, and leave nothing behind."""
        self.failure(self.protocol.request(GET, b"one,two"), BadReplyError)
        self.assertEqual(self.result(self.protocol.request(GET, b"x")).payload, b"x")

    def test_interruptedDump(self) -> None:
        """A dump whose content changed is reported at its end, or asked for again."""
        self.kernel.interruptDumps = 1
        got: list[NetlinkMessage] = []
        self.failure(self.protocol.stream(got.append, GET), DumpInterrupted)
        self.assertEqual(len(got), 10)
        self.kernel.interruptDumps = 2
        self.assertEqual(len(self.result(self.protocol.dump(GET, attempts=3))), 10)
        self.kernel.interruptDumps = 2
        self.failure(self.protocol.dump(GET, attempts=2), DumpInterrupted)

    def test_interruptedIteration(self) -> None:
        """One who iterates learns of it after the last message."""
        self.kernel.interruptDumps = 1
        got: list[NetlinkMessage] = []

        async def iterate() -> None:
            async for message in self.protocol.iterate(GET):
                got.append(message)

        self.failure(Deferred.fromCoroutine(iterate()), DumpInterrupted)
        self.assertEqual(len(got), 10)

    def test_timeout(self) -> None:
        """Requests end in time; the late answers are passed over."""
        self.kernel.silent = True
        slow, quick = self.protocol.request(GET, b"slow"), self.protocol.request(GET, b"quick", timeout=1)
        dump = self.protocol.dump(GET, timeout=2)
        self.reactor.advance(1)
        self.failure(quick, RequestTimedOut)
        self.reactor.advance(1)
        self.failure(dump, RequestTimedOut)
        self.assertNoResult(slow)
        self.kernel.release()
        self.assertEqual(self.result(slow).payload, b"slow")
        self.assertEqual(self.protocol.refused.total(), 2)
        self.assertEqual(len(self.result(self.protocol.dump(GET))), 10)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_dumpStalls(self) -> None:
        """The time of a dump begins anew with each message, and the next dump waits for its end, but not for ever."""
        self.kernel.silent = True
        got: list[NetlinkMessage] = []
        first = self.protocol.stream(got.append, GET, timeout=3)
        second = self.protocol.dump(GET)
        for _ in range(3):
            self.reactor.advance(2)
            self.answer(GET, NLM_F_MULTI)
            self.reactor.run()
        self.assertEqual(len(got), 3)
        self.reactor.advance(3)
        self.failure(first, RequestTimedOut)
        self.answer(GET, NLM_F_MULTI)
        self.reactor.run()
        self.assertEqual((len(got), len(self.socket.sent)), (3, 1))
        self.reactor.advance(3)
        self.assertEqual(len(self.socket.sent), 2)
        self.kernel.release()
        self.failure(second, NetlinkError)  # the kernel in memory was still dumping: EBUSY

    def test_cancelWaitingDump(self) -> None:
        """A dump that has not begun is not asked for."""
        first, second = self.protocol.dump(GET), self.protocol.dump(GET)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(len(self.result(first)), 10)
        self.assertEqual(len(self.socket.sent), 1)

    def test_cancelInReceiver(self) -> None:
        """A receiver may cancel its own dump; what it raises then is logged."""
        calls: list[NetlinkMessage] = []

        def receive(message: NetlinkMessage) -> None:
            calls.append(message)
            waits.cancel()
            raise LookupError

        waits = self.protocol.stream(receive, GET)
        self.failure(waits, CancelledError)
        self.assertEqual((len(calls), len(self.flushLoggedErrors(LookupError))), (1, 1))

    def test_bounds(self) -> None:
        """No more requests, and no more messages of a dump, than the bounds allow."""
        self.kernel.silent = True
        self.protocol.maximumRequests = 3
        waits: list[Deferred[Any]] = [self.protocol.request(GET, b"x"), self.protocol.dump(GET), self.protocol.dump(GET)]
        self.failureResultOf(self.protocol.request(GET), TooManyRequestsError)
        self.failureResultOf(self.protocol.dump(GET), TooManyRequestsError)
        self.kernel.release()
        for one in waits:
            self.result(one)
        self.protocol.maximumDump = 9
        self.failure(self.protocol.dump(GET), RepliesLostError)
        self.protocol.maximumDump = 10
        self.assertEqual(len(self.result(self.protocol.dump(GET))), 10)

    def test_slowIteration(self) -> None:
        """One who iterates too slowly gets what was kept, then an error."""
        self.protocol.maximumDump = 4
        iterator = self.protocol.iterate(GET)
        self.reactor.run()

        async def iterate() -> None:
            async for message in iterator:
                got.append(message)

        got: list[NetlinkMessage] = []
        self.failureResultOf(Deferred.fromCoroutine(iterate()), RepliesLostError)
        self.assertEqual(len(got), 4)

    def test_cancelIteration(self) -> None:
        """Who waits for the next message may be cancelled, and the iterator closed, more than once."""
        self.kernel.silent = True
        iterator = self.protocol.iterate(GET)
        waits = Deferred.fromCoroutine(iterator.__anext__())
        waits.cancel()
        self.failureResultOf(waits, CancelledError)
        iterator.close()
        iterator.close()
        self.failureResultOf(Deferred.fromCoroutine(iterator.__anext__()), StopAsyncIteration)

    def test_portClosed(self) -> None:
        """Everything that waits fails, and nothing is left."""
        self.kernel.silent = True
        waits: list[Deferred[Any]] = [self.protocol.request(GET), self.protocol.dump(GET), self.protocol.dump(GET)]
        self.port.stopListening()
        for one in waits:
            self.failure(one, NotListeningError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_notifications(self) -> None:
        """What was sent to a group, or has no number, is a notification, whatever number it has."""
        waits = self.protocol.request(GET, b"x")
        self.port.joinGroup(3)
        self.kernel.multicast(NETLINK_ROUTE, 3, NetlinkMessage(GET, 0, 1, self.port.portID, b"all").encode())
        self.answer(GET, sequence=0, payload=b"one")
        self.assertEqual(self.result(waits).payload, b"x")
        self.assertEqual([(bytes(m.payload), group) for m, group in self.protocol.notified], [(b"all", 3), (b"one", 0)])
        self.port.leaveGroup(3)
        self.kernel.multicast(NETLINK_ROUTE, 3, b"none")
        self.reactor.run()
        self.assertEqual((len(self.protocol.notified), self.protocol.refused.total()), (2, 0))

    def test_badAnswers(self) -> None:
        """Answers that cannot be one end their request with an error; those that belong to nobody are refused."""
        self.kernel.silent = True
        own = self.port.portID
        cases = [
            (NLMSG_ERROR, b""),
            (NLMSG_ERROR, b"\1\0\0\0" + bytes(16)),
            (NLMSG_DONE, bytes(4)),
        ]
        for kind, payload in cases:
            waits = self.protocol.request(GET)
            self.answer(kind, sequence=self.protocol._sequence, payload=payload, port=own)
            self.failure(waits, BadReplyError)
        dump = self.protocol.dump(GET)
        sequence = self.protocol._sequence
        self.socket.deliver(Acknowledgement(0, sequence, GET).encode(own))
        self.failure(dump, BadReplyError)
        before = self.protocol.refused.total()
        waits = self.protocol.request(GET)
        sequence = self.protocol._sequence
        self.answer(GET, sequence=sequence, port=own + 1)
        self.answer(NLMSG_ERROR, sequence=0, payload=bytes(20))
        self.answer(5, sequence=sequence)
        self.answer(NLMSG_NOOP, sequence=sequence)
        self.socket.deliver(b"too short")
        self.reactor.run()
        self.assertNoResult(waits)
        self.assertEqual(self.protocol.refused.total() - before, 4)
        self.answer(NLMSG_OVERRUN)
        self.reactor.run()
        self.assertEqual(self.protocol.overruns, 1)

    def test_answerWithoutAcknowledgement(self) -> None:
        """Without C{NLM_F_ACK} the reply is the end."""
        self.assertEqual(self.result(self.protocol.request(GET, b"x", 0)).payload, b"x")
        self.assertEqual(self.protocol.refused.total(), 0)

    def test_numbersBeginAnew(self) -> None:
        """Numbers that are in use are left out when they begin anew."""
        self.kernel.silent = True
        waits: list[Deferred[Any]] = [self.protocol.request(GET, b"0"), self.protocol.dump(GET), self.protocol.dump(GET)]
        self.protocol._sequence = 0xFFFFFFFE
        waits += [self.protocol.request(GET, b"0"), self.protocol.request(GET, b"0", NLM_F_ACK)]
        self.assertEqual(self.protocol._sequence, 4)
        self.kernel.release()
        for one in waits:
            self.result(one)

    def test_closedByNotification(self) -> None:
        """A datagram is not read on when the port was closed by its first message."""
        reason = self.failureResultOf(Watcher(self.reactor).request(GET))
        self.patch(self.protocol, "notificationReceived", lambda message, group: self.port.connectionLost(reason))
        self.socket.deliver(NetlinkMessage(GET, 0, 0, 0, b"").encode() * 2)
        self.reactor.run()
        self.assertEqual(self.port.connected, 0)


HEADERS = st.builds(
    NetlinkMessage,
    st.sampled_from([1, 2, 3, 4, 5, 16, GET, 0xFFFF]),
    st.sampled_from([0, 2, 0x10, 0x12, 0x100, 0x200, 0x300, 0xFFFF]),
    st.integers(0, 4),
    st.sampled_from([0, 1001, 7]),
    st.binary(max_size=60),
)
DATAGRAMS = st.one_of(
    st.binary(max_size=100),
    st.lists(HEADERS, max_size=4).map(lambda messages: b"".join(message.encode() for message in messages)),
    st.tuples(HEADERS, st.integers(0, 60)).map(lambda pair: pair[0].encode()[: pair[1]]),
)


class FuzzTests(SynchronousTestCase):
    """Whatever comes from the kernel's side."""

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(DATAGRAMS, st.sampled_from([0, 0, 0, 5]), st.sampled_from([0, 0, 16])), max_size=12))
    @example([(b"\x10\0\0\0", 0, 0)])
    def test_arbitraryDatagrams(self, datagrams: list[tuple[bytes, int, int]]) -> None:
        """No exception comes out of the port, nothing is logged as a failure, and every request ends once."""
        kernel = MemoryNetlink()
        kernel.provide(NETLINK_ROUTE, echo)
        kernel.silent = True
        reactor = MemoryReactor(kernel)
        protocol = Watcher(reactor)
        port = NetlinkPort(protocol, NETLINK_ROUTE, reactor, kernel)
        port.startListening()
        ended: list[Any] = []
        waits: list[Deferred[Any]] = [protocol.request(GET), protocol.dump(GET), protocol.request(GET, b"x", 0)]
        waits.append(protocol.dump(GET))
        for one in waits:
            one.addBoth(ended.append)
        for data, sender, group in datagrams:
            kernel.sockets[0].deliver(data, sender, group)
        reactor.run()
        self.assertEqual(port.connected, 1)
        reactor.pump([10.0] * 4)
        self.assertEqual((len(ended), self.flushLoggedErrors(), reactor.getDelayedCalls()), (4, [], []))
        kernel.silent = False
        port.stopListening()
        reactor.run()
        self.assertEqual(kernel.sockets, [])


class RealSystemTests(SynchronousTestCase):
    """L{RealNetlink}."""

    def test_refused(self) -> None:
        """What the kernel does not have is an L{OSError}."""
        self.assertRaises(OSError, RealNetlink().socket, 250)

    def test_descriptor(self) -> None:
        """The descriptor does not block, and no program that is started gets it."""
        try:
            made = RealNetlink().socket(NETLINK_ROUTE)
        except OSError as error:
            raise SkipTest(f"netlink is not allowed here: {error}") from error
        self.addCleanup(made.close)
        self.assertFalse(os.get_blocking(made.fileno()))
        self.assertFalse(os.get_inheritable(made.fileno()))
