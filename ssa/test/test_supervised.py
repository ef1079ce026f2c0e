# SPDX-License-Identifier: MIT
"""Tests for L{ssa.protocol.supervised} and its parts, on real socket pairs with a reactor that the test turns."""

from __future__ import annotations

import array
import fcntl
import os
import resource
import select
import socket
from collections.abc import Callable
from errno import (
    EACCES,
    EBADF,
    ECONNABORTED,
    EEXIST,
    EINVAL,
    EIO,
    ENETDOWN,
    ENFILE,
    ENOBUFS,
    EPERM,
    ETIMEDOUT,
)
from typing import Any
from unittest import mock

from twisted.internet.defer import AlreadyCalledError, CancelledError, Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ssa.api import DataPath, HostnameAddress, InternetAddress, Role
from ssa.errors import SSAError
from ssa.interfaces import Fetched, IEventReceiver, IInterceptor, IRequests
from ssa.netlink.codec import Acknowledgement, BadValueError
from ssa.protocol import messages
from ssa.protocol.answering import LinkLimits
from ssa.protocol.daemon import DaemonEnd, peerCredentials
from ssa.protocol.interceptor import InterceptorEnd
from ssa.protocol.link import LARGEST_FRAME, NO_DESCRIPTOR, Link, closeDescriptors
from ssa.protocol.memfd import LARGEST_INLINE, createMemoryFile, readMemoryFile
from ssa.protocol.messages import Answer, DataReturn, Event, HandshakeReturn, Return, failure
from ssa.protocol.port import SupervisedPort

HERE = InternetAddress(socket.AF_INET, "127.0.0.1", 4433)
THERE = InternetAddress(socket.AF_INET6, "::1", 443)


class PumpedReactor(Clock):
    """A clock that also knows descriptors; L{settle} serves the ready ones until nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def settle(self) -> None:
        for _ in range(10000):
            self.advance(0)
            readable, writable, _ = select.select(self.readers, self.writers, [], 0)
            if not readable and not writable:
                return
            for one, served, serve in [(r, self.readers, r.doRead) for r in readable] + [
                (w, self.writers, w.doWrite) for w in writable
            ]:
                if one in served:
                    why = serve()
                    if why is not None:
                        self.removeReader(one)
                        self.removeWriter(one)
                        one.connectionLost(mock.Mock(getErrorMessage=lambda why=why: str(why)))
        raise AssertionError("the reactor does not come to rest")


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def openDescriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@implementer(IEventReceiver)
class Receiver:
    """Does with events what the test says."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lost: list[IInterceptor] = []
        self.interceptor: Any = None
        self.react: Callable[[Event], Any] = self.good

    def good(self, event: Event) -> Any:
        if not event.wantsAnswer:
            return None
        return succeed(goodAnswer(event))

    def eventReceived(self, interceptor: IInterceptor, event: Event) -> Any:
        self.interceptor = interceptor
        self.events.append(event)
        return self.react(event)

    def interceptorLost(self, interceptor: IInterceptor) -> None:
        self.lost.append(interceptor)


@implementer(IRequests)
class Requests:
    """Hands out pipes' ends, or what the test says."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.result: Any = None

    def _give(self, make: Callable[[int], Any]) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        if self.result is not None:
            return self.result
        return make(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    def fetch(self, id: int, remote: InternetAddress | None) -> Any:
        self.calls.append(("fetch", id, remote))
        return self._give(lambda fd: Fetched(fd, HERE, THERE))

    def established(
        self, id: int, external: InternetAddress, remote: InternetAddress, dataPath: DataPath
    ) -> Any:
        self.calls.append(("established", id, external, remote, dataPath))
        return self._give(lambda fd: fd)

    def accepted(self, id: int, external: InternetAddress, remote: InternetAddress) -> Any:
        self.calls.append(("accepted", id, external, remote))
        return self._give(lambda fd: (id + 1000, fd))


def socketNotify(event: int, id: int, uid: int | None = None) -> messages.SocketNotify:
    user = os.getuid() if uid is None else uid
    return messages.SocketNotify(event, id, socket.AF_INET, 42, user, "curl", "/usr/bin/curl", 1, 2, 3, 4)


ANSWERED: list[Callable[[int, int], Event]] = [
    socketNotify,
    lambda event, socketID: messages.SetsockoptNotify(event, socketID, 205, 85, b"example.org\0"),
    lambda event, socketID: messages.SetsockoptNotify(event, socketID, 205, 88, bytes(LARGEST_INLINE + 1), "/etc/x.pem"),
    lambda event, socketID: messages.GetsockoptNotify(event, socketID, 205, 100),
    lambda event, socketID: messages.BindNotify(event, socketID, HERE),
    lambda event, socketID: messages.ConnectNotify(event, socketID, True, HostnameAddress("example.org", 443)),
    lambda event, socketID: messages.ConnectNotify(event, socketID, False, THERE, HERE),
    lambda event, socketID: messages.ListenNotify(event, socketID, 128, HERE),
    lambda event, socketID: messages.UpgradeNotify(event, socketID, Role.SERVER, True, HERE, THERE),
]


def goodAnswer(event: Event) -> Answer:
    kind = messages.ANSWERED_BY[type(event)][0]
    return kind(event.event, event.id, b"value" if kind is DataReturn else 0)  # type: ignore[call-arg]


class LinkedTestCase(SynchronousTestCase):
    """Both ends, joined by a socket pair.  No descriptor may be left."""

    limits = LinkLimits()

    def setUp(self) -> None:
        self.descriptors = openDescriptors()
        self.reactor = PumpedReactor()
        self.receiver = Receiver()
        self.requests = Requests()
        ours, theirs = pair()
        self.daemon = DaemonEnd(self.reactor, ours, self.receiver, self.limits)
        self.interceptor = InterceptorEnd(self.reactor, theirs, self.requests)
        self.reactor.settle()
        self.successResultOf(self.interceptor.onRegistered)
        self.assertEqual(self.answered(socketNotify(self.interceptor.nextEvent(), 1)).encode(), Return(1, 1, 0).encode())

    def tearDown(self) -> None:
        self.daemon.close()
        self.interceptor.close()
        self.reactor.settle()
        self.assertEqual(openDescriptors(), self.descriptors)
        self.assertEqual(self.receiver.lost, [self.daemon])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def answered(self, event: Event) -> Any:
        result = self.interceptor.notify(event)
        self.reactor.settle()
        return self.successResultOf(result)

    def quiet(self, number: int, kind: type[Exception] = RuntimeError) -> None:
        """Take the logged errors that a test has caused."""
        self.assertEqual(len(self.flushLoggedErrors(kind)), number)


class SupervisedWire:
    """
    The daemon's end of a unix socket, and the test at its other end.

    @ivar end: the daemon's end.
    """

    end: IInterceptor

    def __init__(self, reactor: PumpedReactor, receiver: Receiver) -> None:
        ours, self._sock = pair()
        self._sock.setblocking(False)
        self.end = self._daemon = DaemonEnd(reactor, ours, receiver, LinkLimits())
        self._reactor = reactor
        self.answers()
        self._sock.send(Acknowledgement(0, 1, messages.SUPERVISED_TYPE).encode())
        reactor.settle()

    def send(self, event: Event) -> None:
        """An event happens."""
        value = getattr(event, event.valueField) if event.valueField else b""
        if len(value) <= LARGEST_INLINE:
            self._sock.send(event.encode())
            return
        fd = createMemoryFile(value)
        socket.send_fds(self._sock, [event.encode(detached=True)], [fd])
        os.close(fd)

    def answers(self) -> list[Any]:
        """What the daemon has said since this was last called."""
        frames: list[Any] = []
        while True:
            try:
                frame = self._sock.recv(LARGEST_FRAME)
            except BlockingIOError:
                return frames
            if not frame:
                return frames
            frames.append(messages.decodeFrame(frame, messages.FROM_DAEMON)[1])

    def close(self) -> None:
        """The daemon ends the link."""
        self._daemon.close()
        self._reactor.settle()

    def release(self) -> None:
        """The test is over."""
        self._sock.close()


class ContractTests(SynchronousTestCase):
    """Every event that wants an answer gets exactly one, on every path."""

    wire: Any = SupervisedWire

    def drive(self, react: Callable[[Event], Any], check: Callable[[Event, list[Any]], None], after: Any = None) -> None:
        """Send every event to a receiver that reacts so, and look at the answers."""
        for make in ANSWERED:
            descriptors = openDescriptors()
            reactor = PumpedReactor()
            receiver = Receiver()
            wire = self.wire(reactor, receiver)
            opening = make is socketNotify
            if not opening:
                wire.send(socketNotify(1, 7))
                reactor.settle()
                self.assertEqual(wire.answers(), [Return(1, 7, 0)])
            receiver.react = react
            event = make(9, 7)
            wire.send(event)
            reactor.settle()
            if after is not None:
                after(reactor, wire, receiver)
                reactor.settle()
            check(event, wire.answers())
            wire.close()
            reactor.advance(1e6)
            self.assertEqual(reactor.getDelayedCalls(), [])
            self.assertEqual(wire.answers(), [])
            self.assertEqual(receiver.lost, [wire.end])
            wire.release()
            self.assertEqual(openDescriptors(), descriptors)

    def fails(self, errno: int) -> Callable[[Event, list[Any]], None]:
        def check(event: Event, answers: list[Any]) -> None:
            self.assertEqual(answers, [failure(event, errno)])

        return check

    def test_success(self) -> None:
        """A result at once."""
        self.drive(
            lambda event: succeed(goodAnswer(event)),
            lambda event, answers: self.assertEqual(answers, [goodAnswer(event)]),
        )

    def test_later(self) -> None:
        """A result later."""
        waiting: list[tuple[Event, Deferred[Answer]]] = []

        def react(event: Event) -> Deferred[Answer]:
            waiting.append((event, Deferred()))
            return waiting[-1][1]

        def after(reactor: PumpedReactor, *_: object) -> None:
            reactor.advance(29)
            event, deferred = waiting.pop()
            deferred.callback(goodAnswer(event))

        self.drive(react, lambda event, answers: self.assertEqual(answers, [goodAnswer(event)]), after)

    def test_error(self) -> None:
        """The Deferred fails with an SSAError."""

        def react(event: Event) -> Deferred[Answer]:
            result: Deferred[Answer] = Deferred()
            result.errback(SSAError(EACCES, "no"))
            return result

        self.drive(react, self.fails(EACCES))

    def test_raisedError(self) -> None:
        """The receiver raises an SSAError."""

        def react(event: Event) -> Deferred[Answer]:
            raise SSAError(EACCES, "no")

        self.drive(react, self.fails(EACCES))

    def test_otherFailure(self) -> None:
        """The Deferred fails with something else: EIO, and logged."""

        def react(event: Event) -> Deferred[Answer]:
            result: Deferred[Answer] = Deferred()
            result.errback(RuntimeError("broken"))
            return result

        self.drive(react, self.fails(EIO))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), len(ANSWERED))

    def test_otherException(self) -> None:
        """The receiver raises something else: EIO, and logged."""

        def react(event: Event) -> Deferred[Answer]:
            raise RuntimeError("broken")

        self.drive(react, self.fails(EIO))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), len(ANSWERED))

    def test_nothing(self) -> None:
        """The receiver returns nothing."""
        self.drive(lambda event: None, self.fails(EIO))

    def test_notADeferred(self) -> None:
        """The receiver returns its answer without a Deferred."""
        self.drive(goodAnswer, self.fails(EIO))

    def test_wrongAnswers(self) -> None:
        """An answer of a wrong type, for another event, another socket, or that cannot be encoded."""

        def other(event: Event) -> Answer:
            wrong = Return if isinstance(goodAnswer(event), HandshakeReturn) else HandshakeReturn
            return wrong(event.event, event.id, 0)

        wrong: list[Callable[[Event], Any]] = [
            other,
            lambda event: None,
            lambda event: Return(event.event, event.id + 1, -EACCES),
            lambda event: HandshakeReturn(event.event + 1, event.id, -EACCES),
            lambda event: event,
        ]
        for make in wrong:
            self.receiveWrong(make)

    def receiveWrong(self, make: Callable[[Event], Any]) -> None:
        self.drive(lambda event: succeed(make(event)), self.fails(EIO))

    def test_unencodable(self) -> None:
        """An answer whose result is no errno."""

        def react(event: Event) -> Deferred[Answer]:
            return succeed(messages.ANSWERED_BY[type(event)][-1](event.event, event.id, -99999))  # type: ignore[call-arg]

        self.drive(react, self.fails(EIO))
        self.assertEqual(len(self.flushLoggedErrors(BadValueError)), len(ANSWERED))

    def test_timeout(self) -> None:
        """No answer in time: ETIMEDOUT, the work is cancelled, and a late result is dropped."""
        cancelled: list[Event] = []

        def react(event: Event) -> Deferred[Answer]:
            def cancel(deferred: Deferred[Answer]) -> None:
                cancelled.append(event)
                deferred.callback(goodAnswer(event))

            return Deferred(cancel)

        self.drive(react, self.fails(ETIMEDOUT), lambda reactor, *_: reactor.advance(LinkLimits().handshakeTime))
        self.assertEqual(len(cancelled), len(ANSWERED))

    def test_connectsTakeTheirTime(self) -> None:
        """A connect is not cut off by the time that other events have."""
        timed: list[type[Event]] = []

        def check(event: Event, answers: list[Any]) -> None:
            if answers:
                timed.append(type(event))

        self.drive(lambda event: Deferred(), check, lambda reactor, *_: reactor.advance(3599))
        self.assertNotIn(messages.ConnectNotify, timed)
        self.assertNotIn(messages.UpgradeNotify, timed)
        self.assertEqual(len(timed), 6)

    def test_daemonEnds(self) -> None:
        """The link ends: no answer at all, and the work is cancelled."""
        waiting: list[Deferred[Answer]] = []

        def react(event: Event) -> Deferred[Answer]:
            waiting.append(Deferred())
            return waiting[-1]

        def after(reactor: PumpedReactor, wire: Any, receiver: Receiver) -> None:
            wire.close()
            wire.close()
            self.assertEqual(receiver.lost, [wire.end])

        self.drive(react, lambda event, answers: self.assertEqual(answers, []), after)
        for one in waiting:
            self.assertTrue(one.called)

    def test_firedTwice(self) -> None:
        """A receiver that tries to answer twice answers once."""

        def react(event: Event) -> Deferred[Answer]:
            result: Deferred[Answer] = Deferred()
            result.callback(goodAnswer(event))
            self.assertRaises(AlreadyCalledError, result.callback, goodAnswer(event))
            return result

        self.drive(react, lambda event, answers: self.assertEqual(answers, [goodAnswer(event)]))

    def test_sameDeferredTwice(self) -> None:
        """A receiver that gives the same Deferred for two events answers each once."""
        descriptors = openDescriptors()
        reactor, receiver = PumpedReactor(), Receiver()
        wire = self.wire(reactor, receiver)
        shared: Deferred[Answer] = Deferred()
        receiver.react = lambda event: shared
        wire.send(socketNotify(1, 1))
        wire.send(socketNotify(2, 2))
        reactor.settle()
        shared.callback(Return(1, 1, 0))
        self.assertEqual(wire.answers(), [Return(1, 1, 0), Return(2, 2, -EIO)])
        wire.close()
        wire.release()
        self.assertEqual(openDescriptors(), descriptors)


class EventTests(LinkedTestCase):
    """Events from end to end."""

    def test_answers(self) -> None:
        """Each event arrives as it was sent, and its answer comes back."""
        for make in ANSWERED[1:]:
            event = make(self.interceptor.nextEvent(), 1)
            self.assertEqual(self.answered(event), goodAnswer(event))
            self.assertEqual(self.receiver.events[-1], event)

    def returnValue(self, value: bytes) -> None:
        self.receiver.react = lambda event: succeed(DataReturn(event.event, event.id, value))

    def test_largeValues(self) -> None:
        """Values up to the bound travel both ways."""
        for size in (LARGEST_INLINE, LARGEST_INLINE + 1, messages.MAXIMUM_VALUE):
            value = os.urandom(size)
            event = messages.SetsockoptNotify(self.interceptor.nextEvent(), 1, 205, 87, value)
            self.assertEqual(self.answered(event), Return(event.event, 1, 0))
            self.assertEqual(self.receiver.events[-1], event)
            self.returnValue(value)
            get = messages.GetsockoptNotify(self.interceptor.nextEvent(), 1, 205, 95)
            self.assertEqual(self.answered(get), DataReturn(get.event, 1, value))
            self.receiver.react = self.receiver.good

    def test_tooLarge(self) -> None:
        """A value beyond the bound fails at the sender, on either side."""
        value = bytes(messages.MAXIMUM_VALUE + 1)
        event = messages.SetsockoptNotify(self.interceptor.nextEvent(), 1, 205, 87, value)
        self.assertEqual(self.answered(event), failure(event, EINVAL))
        self.receiver.react = lambda event: succeed(DataReturn(event.event, event.id, value))
        get = messages.GetsockoptNotify(self.interceptor.nextEvent(), 1, 205, 95)
        self.assertEqual(self.answered(get), failure(get, EIO))
        self.quiet(1, BadValueError)

    def test_noDescriptorForValue(self) -> None:
        """Without a descriptor for a large value the event fails with ENOBUFS, on either side."""
        value = bytes(LARGEST_INLINE + 1)
        with mock.patch("ssa.protocol.link.createMemoryFile", side_effect=OSError(24, "none left")):
            event = messages.SetsockoptNotify(self.interceptor.nextEvent(), 1, 205, 87, value)
            self.assertEqual(self.answered(event), failure(event, ENOBUFS))
            self.receiver.react = lambda event: succeed(DataReturn(event.event, event.id, value))
            get = messages.GetsockoptNotify(self.interceptor.nextEvent(), 1, 205, 95)
            self.assertEqual(self.answered(get), failure(get, ENOBUFS))

    def test_emptyValue(self) -> None:
        """An empty value is one."""
        event = messages.SetsockoptNotify(self.interceptor.nextEvent(), 1, 205, 87, b"")
        self.answered(event)
        self.assertEqual(self.receiver.events[-1], event)

    def test_foreignUser(self) -> None:
        """An event in another user's name is refused, but from root."""
        self.daemon.peerUID = 1000
        event = socketNotify(self.interceptor.nextEvent(), 2, uid=1001)
        self.assertEqual(self.answered(event), failure(event, EPERM))
        self.assertNotIn(event, self.receiver.events)
        accept = messages.AcceptNotify(self.interceptor.nextEvent(), 1, 42, 1001, "c", "/c", 1, 2, 3, 4)
        self.interceptor.tell(accept)
        self.reactor.settle()
        self.assertNotIn(accept, self.receiver.events)
        own = socketNotify(self.interceptor.nextEvent(), 2, uid=1000)
        self.assertEqual(self.answered(own), goodAnswer(own))
        self.daemon.peerUID = 0
        root = socketNotify(self.interceptor.nextEvent(), 3, uid=1001)
        self.assertEqual(self.answered(root), goodAnswer(root))

    def test_unknownSocket(self) -> None:
        """An event on a socket that this link never announced, or has closed, fails with EBADF."""
        bind = messages.BindNotify(self.interceptor.nextEvent(), 2, HERE)
        self.assertEqual(self.answered(bind), failure(bind, EBADF))
        self.interceptor.tell(messages.CloseNotify(self.interceptor.nextEvent(), 1))
        bind = messages.BindNotify(self.interceptor.nextEvent(), 1, HERE)
        self.assertEqual(self.answered(bind), failure(bind, EBADF))
        self.interceptor.tell(messages.CloseNotify(self.interceptor.nextEvent(), 1))
        self.reactor.settle()
        self.assertEqual([type(event) for event in self.receiver.events], [messages.SocketNotify, messages.CloseNotify])

    def test_refusedSocket(self) -> None:
        """A socket that was refused is not known; an id in use is refused."""
        self.receiver.react = lambda event: succeed(failure(event, EPERM))
        event = socketNotify(self.interceptor.nextEvent(), 2)
        self.assertEqual(self.answered(event), failure(event, EPERM))
        bind = messages.BindNotify(self.interceptor.nextEvent(), 2, HERE)
        self.assertEqual(self.answered(bind), failure(bind, EBADF))
        event = socketNotify(self.interceptor.nextEvent(), 1)
        self.assertEqual(self.answered(event), failure(event, EEXIST))

    def test_manyAtATime(self) -> None:
        """Many events, answered in another order."""
        waiting: dict[int, Deferred[Answer]] = {}
        self.receiver.react = lambda event: waiting.setdefault(event.event, Deferred())
        results = {}
        for _ in range(500):
            event = messages.BindNotify(self.interceptor.nextEvent(), 1, HERE)
            results[event.event] = self.interceptor.notify(event)
        self.reactor.settle()
        for number in sorted(waiting, reverse=True):
            waiting[number].callback(Return(number, 1, -number))
        self.reactor.settle()
        for number, result in results.items():
            self.assertEqual(self.successResultOf(result), Return(number, 1, -number))

    def test_numbers(self) -> None:
        """An event's number must be free, and the right method be used."""
        self.receiver.react = lambda event: Deferred()
        event = messages.BindNotify(self.interceptor.nextEvent(), 1, HERE)
        result = self.interceptor.notify(event)
        self.assertRaises(ValueError, self.interceptor.notify, event)
        self.assertRaises(ValueError, self.interceptor.notify, messages.CloseNotify(99, 1))
        self.assertRaises(ValueError, self.interceptor.tell, event)
        result.addErrback(lambda reason: reason.trap(SSAError))

    def test_lost(self) -> None:
        """A link that ends gives ENETDOWN to all that waits, and to all that comes later."""
        self.receiver.react = lambda event: Deferred()
        results = [self.interceptor.notify(make(self.interceptor.nextEvent(), 1)) for make in ANSWERED[1:]]
        self.reactor.settle()
        self.daemon.close()
        self.reactor.settle()
        results.append(self.interceptor.notify(messages.BindNotify(self.interceptor.nextEvent(), 1, HERE)))
        for result in results:
            self.assertEqual(self.failureResultOf(result, SSAError).value.errno, ENETDOWN)
        self.interceptor.tell(messages.CloseNotify(self.interceptor.nextEvent(), 1))
        self.assertIsInstance(self.successResultOf(self.interceptor.lost), str)
        self.assertTrue(self.daemon.isLost)
        self.assertEqual(self.failureResultOf(self.daemon.fetch(1), SSAError).value.errno, ENETDOWN)

    def test_receiverFailsWithoutAnswer(self) -> None:
        """What fails for an event that wants no answer is logged, and the link goes on."""

        def broken(event: Event) -> Any:
            raise RuntimeError("broken")

        self.receiver.react = broken
        close = messages.CloseNotify(self.interceptor.nextEvent(), 1)
        self.interceptor.tell(close)
        self.reactor.settle()
        self.quiet(1)
        self.receiver.react = self.receiver.good
        event = socketNotify(self.interceptor.nextEvent(), 1)
        self.assertEqual(self.answered(event), goodAnswer(event))

    def test_brokenInterceptorLost(self) -> None:
        """A receiver that fails in interceptorLost does not keep the rest from ending."""
        work: Deferred[Answer] = Deferred()
        self.receiver.react = lambda event: work
        result = self.interceptor.notify(messages.BindNotify(self.interceptor.nextEvent(), 1, HERE))
        self.reactor.settle()
        with mock.patch.object(self.receiver, "interceptorLost", side_effect=RuntimeError("broken")):
            self.interceptor.close()
            self.reactor.settle()
        self.quiet(1)
        self.failureResultOf(result, SSAError)
        self.assertTrue(work.called)
        self.receiver.lost.append(self.daemon)


class BoundTests(LinkedTestCase):
    """What either side can make the other hold is bounded."""

    limits = LinkLimits(maximumPending=3, maximumRequests=2, maximumSockets=2)

    def test_events(self) -> None:
        """An event too many is answered with ENOBUFS."""
        self.receiver.react = lambda event: Deferred()
        events = [messages.BindNotify(self.interceptor.nextEvent(), 1, HERE) for _ in range(4)]
        results = [self.interceptor.notify(event) for event in events]
        self.reactor.settle()
        self.assertEqual(self.successResultOf(results[3]), failure(events[3], ENOBUFS))
        for result in results[:3]:
            self.assertNoResult(result)
            result.addErrback(lambda reason: reason.trap(SSAError))

    def test_eventsOfInterceptor(self) -> None:
        """The interceptor's own bound."""
        self.interceptor._maximumPending = 0
        event = messages.BindNotify(self.interceptor.nextEvent(), 1, HERE)
        self.assertEqual(self.successResultOf(self.interceptor.notify(event)), failure(event, ENOBUFS))

    def test_sockets(self) -> None:
        """A socket too many is refused, whichever way it comes."""
        self.answered(socketNotify(self.interceptor.nextEvent(), 2))
        event = socketNotify(self.interceptor.nextEvent(), 3)
        self.assertEqual(self.answered(event), failure(event, ENFILE))
        result = self.daemon.accepted(1, HERE, THERE)
        self.reactor.settle()
        self.assertEqual(self.failureResultOf(result, SSAError).value.errno, ENFILE)

    def test_requests(self) -> None:
        """A request too many fails at once, on either side."""
        self.requests.result = Deferred()
        results = [self.daemon.accepted(1, HERE, THERE) for _ in range(3)]
        self.reactor.settle()
        self.assertEqual(self.failureResultOf(results[2], SSAError).value.errno, ENOBUFS)
        for result in results[:2]:
            result.addErrback(lambda reason: reason.trap(SSAError))

    def test_requestsOfInterceptor(self) -> None:
        """The interceptor refuses a request too many."""
        self.interceptor._maximumRequests = 0
        result = self.daemon.fetch(1)
        self.reactor.settle()
        self.assertEqual(self.failureResultOf(result, SSAError).value.errno, ENOBUFS)


class RequestTests(LinkedTestCase):
    """Requests from end to end."""

    def ask(self, name: str) -> Deferred[Any]:
        calls: dict[str, Callable[[], Deferred[Any]]] = {
            "fetch": lambda: self.daemon.fetch(1, THERE),
            "established": lambda: self.daemon.established(1, HERE, THERE, DataPath.RELAY),
            "accepted": lambda: self.daemon.accepted(1, HERE, THERE),
        }
        result = calls[name]()
        self.reactor.settle()
        return result

    def test_fetch(self) -> None:
        """The real socket comes with its addresses; the descriptor is close-on-exec."""
        fetched = self.successResultOf(self.ask("fetch"))
        self.assertEqual((fetched.external, fetched.remote), (HERE, THERE))
        self.assertFalse(os.get_inheritable(fetched.fd))
        os.close(fetched.fd)
        self.assertEqual(self.requests.calls, [("fetch", 1, THERE)])

    def test_established(self) -> None:
        """The plaintext end comes."""
        os.close(self.successResultOf(self.ask("established")))
        self.assertEqual(self.requests.calls, [("established", 1, HERE, THERE, DataPath.RELAY)])

    def test_accepted(self) -> None:
        """The plaintext end comes with a new id, which is known from then on."""
        newID, fd = self.successResultOf(self.ask("accepted"))
        os.close(fd)
        self.assertEqual(newID, 1001)
        event = messages.GetsockoptNotify(self.interceptor.nextEvent(), newID, 205, 96)
        self.assertEqual(self.answered(event), goodAnswer(event))

    def test_errors(self) -> None:
        """Each kind of failure arrives as an SSAError."""
        for name in ("fetch", "established", "accepted"):
            self.requests.result = SSAError(ECONNABORTED, "closed\0 meanwhile")
            error = self.failureResultOf(self.ask(name), SSAError).value
            self.assertEqual((error.errno, error.reason[:6]), (ECONNABORTED, "closed"))
            self.requests.result = RuntimeError("broken")
            self.assertEqual(self.failureResultOf(self.ask(name), SSAError).value.errno, EIO)
            self.quiet(1)
            self.requests.result = "wrong"
            self.assertEqual(self.failureResultOf(self.ask(name), SSAError).value.errno, EIO)
            self.flushLoggedErrors()

    def test_later(self) -> None:
        """A result may come later."""
        self.requests.result = Deferred()
        result = self.ask("accepted")
        self.reactor.advance(1e5)
        self.assertNoResult(result)
        self.requests.result.callback((5, os.open("/dev/null", os.O_RDONLY)))
        self.reactor.settle()
        os.close(self.successResultOf(result)[1])

    def test_timeout(self) -> None:
        """A reply that comes too late finds nobody, and its descriptor is closed."""
        self.requests.result = Deferred()
        result = self.ask("fetch")
        self.reactor.advance(31)
        self.assertEqual(self.failureResultOf(result, SSAError).value.errno, ETIMEDOUT)
        self.requests.result.callback(Fetched(os.open("/dev/null", os.O_RDONLY), HERE, None))
        self.reactor.settle()
        self.assertFalse(self.daemon.isLost)

    def test_cancelled(self) -> None:
        """A request that nobody waits for any more: the same, and an accepted socket's id is known."""
        self.requests.result = Deferred()
        result = self.ask("accepted")
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.requests.result.callback((5, os.open("/dev/null", os.O_RDONLY)))
        self.reactor.settle()
        event = messages.GetsockoptNotify(self.interceptor.nextEvent(), 5, 205, 96)
        self.assertEqual(self.answered(event), goodAnswer(event))

    def test_closedSocket(self) -> None:
        """A request about a socket that is closed fails at once."""
        self.interceptor.tell(messages.CloseNotify(self.interceptor.nextEvent(), 1))
        self.reactor.settle()
        self.assertEqual(self.failureResultOf(self.ask("fetch"), SSAError).value.errno, ECONNABORTED)

    def test_lost(self) -> None:
        """The link ends before the reply: ENETDOWN here, and there the descriptor is closed."""
        self.requests.result = Deferred()
        result = self.ask("fetch")
        self.interceptor.close()
        self.reactor.settle()
        self.assertEqual(self.failureResultOf(result, SSAError).value.errno, ENETDOWN)
        self.requests.result.callback(Fetched(os.open("/dev/null", os.O_RDONLY), HERE, None))

    def test_unencodableReply(self) -> None:
        """A result that cannot be encoded is EIO, and its descriptor closed."""
        bad = InternetAddress(socket.AF_INET, "nonsense", 1)
        self.requests.result = Fetched(os.open("/dev/null", os.O_RDONLY), bad, None)
        self.assertEqual(self.failureResultOf(self.ask("fetch"), SSAError).value.errno, EIO)
        self.quiet(1, BadValueError)

    def test_unencodableRequest(self) -> None:
        """A request that cannot be encoded is EIO."""
        result = self.daemon.fetch(1, InternetAddress(socket.AF_INET, "nonsense", 1))
        self.assertEqual(self.failureResultOf(result, SSAError).value.errno, EIO)


class HostileTests(SynchronousTestCase):
    """A peer that breaks the protocol loses the link; nothing leaks, nothing is answered twice."""

    def setUp(self) -> None:
        self.descriptors = openDescriptors()
        self.reactor = PumpedReactor()
        self.receiver = Receiver()
        ours, self.peer = pair()
        self.peer.setblocking(False)
        self.daemon = DaemonEnd(self.reactor, ours, self.receiver, LinkLimits())

    def tearDown(self) -> None:
        self.daemon.close()
        self.reactor.settle()
        self.peer.close()
        self.assertEqual(openDescriptors(), self.descriptors)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def send(self, frame: bytes, fds: list[int] | None = None) -> None:
        """Send a raw packet; the descriptors are closed."""
        owned = fds or []
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", owned))] if owned else []
        self.peer.sendmsg([frame], control)
        closeDescriptors(owned)
        self.reactor.settle()

    def null(self) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    def register(self) -> None:
        self.send(Acknowledgement(0, 1, messages.SUPERVISED_TYPE).encode())
        self.send(socketNotify(1, 1).encode())
        self.assertFalse(self.daemon.isLost)

    def test_garbage(self) -> None:
        """Bytes that are no frame."""
        self.send(b"\xff" * 40)
        self.assertTrue(self.daemon.isLost)
        self.assertEqual(self.receiver.lost, [self.daemon])

    def test_descriptorsWithGarbage(self) -> None:
        """Their descriptors are closed."""
        self.send(b"\xff" * 40, [self.null()])
        self.assertTrue(self.daemon.isLost)

    def test_tooManyDescriptors(self) -> None:
        """More descriptors than a frame may have, in several numbers."""
        self.send(socketNotify(1, 1).encode(), [self.null() for _ in range(200)])
        self.assertTrue(self.daemon.isLost)
        self.assertEqual(self.receiver.events, [])

    def test_twoDescriptors(self) -> None:
        """One more than a frame may have."""
        self.send(socketNotify(1, 1).encode(), [self.null(), self.null()])
        self.assertTrue(self.daemon.isLost)

    def test_uselessDescriptor(self) -> None:
        """A descriptor beside a frame that has none."""
        self.send(socketNotify(1, 1).encode(), [self.null()])
        self.assertTrue(self.daemon.isLost)

    def test_oversizedPacket(self) -> None:
        """A packet that does not fit."""
        self.send(bytes(LARGEST_FRAME + 100), [self.null()])
        self.assertTrue(self.daemon.isLost)

    def test_maximalPacket(self) -> None:
        """A packet one byte too large."""
        self.send(bytes(LARGEST_FRAME + 1))
        self.assertTrue(self.daemon.isLost)

    def test_emptyPacket(self) -> None:
        """An empty packet is the end, whatever comes with it."""
        self.send(b"", [self.null()])
        self.assertTrue(self.daemon.isLost)

    def test_daemonsMessages(self) -> None:
        """Messages that only the daemon may send."""
        self.send(Return(1, 1, 0).encode())
        self.assertTrue(self.daemon.isLost)

    def test_repeatedEvent(self) -> None:
        """The number of an event that waits."""
        self.register()
        self.receiver.react = lambda event: Deferred()
        self.send(messages.BindNotify(5, 1, HERE).encode())
        self.send(messages.BindNotify(5, 1, HERE).encode())
        self.assertTrue(self.daemon.isLost)

    def test_unaskedReply(self) -> None:
        """A reply, or an acknowledgement, to a request that does not wait."""
        self.register()
        self.send(messages.FetchReply(1, HERE, None).encode(77), [self.null()])
        self.assertTrue(self.daemon.isLost)

    def test_unaskedAcknowledgement(self) -> None:
        """An acknowledgement of nothing."""
        self.register()
        self.send(Acknowledgement(0, 77, messages.SUPERVISED_TYPE).encode())
        self.assertTrue(self.daemon.isLost)

    def test_wrongReplies(self) -> None:
        """A reply of another kind, for another socket, or without its descriptor."""
        for reply, fds in (
            (messages.EstablishedReply(1), 1),
            (messages.FetchReply(2, HERE, None), 1),
            (messages.FetchReply(1, HERE, None), 0),
        ):
            self.register()
            result = self.daemon.fetch(1)
            self.send(reply.encode(2), [self.null() for _ in range(fds)])
            self.assertTrue(self.daemon.isLost)
            self.assertEqual(self.failureResultOf(result, SSAError).value.errno, ENETDOWN)
            self.peer.close()
            ours, self.peer = pair()
            self.peer.setblocking(False)
            self.daemon = DaemonEnd(self.reactor, ours, self.receiver, LinkLimits())

    def test_acceptedTwice(self) -> None:
        """An accepted socket with an id that is in use."""
        self.register()
        result = self.daemon.accepted(1, HERE, THERE)
        self.send(messages.AcceptedReply(1, 1).encode(2), [self.null()])
        self.assertTrue(self.daemon.isLost)
        self.failureResultOf(result, SSAError)

    def test_replyWithoutDescriptor(self) -> None:
        """An acknowledgement where a descriptor has to come."""
        self.register()
        result = self.daemon.fetch(1)
        self.send(Acknowledgement(0, 2, messages.SUPERVISED_TYPE).encode())
        self.assertEqual(self.failureResultOf(result, SSAError).value.errno, EIO)

    def test_noRegistration(self) -> None:
        """A peer that does not register in time, or refuses."""
        self.reactor.advance(31)
        self.reactor.settle()
        self.assertTrue(self.daemon.isLost)

    def test_refusedRegistration(self) -> None:
        """A peer that has another version."""
        self.send(Acknowledgement(-EPERM, 1, messages.SUPERVISED_TYPE, "no").encode())
        self.assertTrue(self.daemon.isLost)

    def test_badMemoryFiles(self) -> None:
        """A value in something that is no sealed memory file, or is too large."""
        frame = messages.SetsockoptNotify(2, 1, 205, 87, b"").encode(detached=True)
        unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.write(unsealed, b"value")
        big = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.ftruncate(big, messages.MAXIMUM_VALUE + 1)
        fcntl.fcntl(big, fcntl.F_ADD_SEALS, 15)
        read, write = os.pipe()
        os.close(write)
        for fd in (unsealed, big, read, self.null()):
            self.register()
            self.send(frame, [fd])
            self.assertTrue(self.daemon.isLost)
            self.peer.close()
            ours, self.peer = pair()
            self.peer.setblocking(False)
            self.daemon = DaemonEnd(self.reactor, ours, self.receiver, LinkLimits())
        self.assertNotIn(messages.SetsockoptNotify, [type(event) for event in self.receiver.events])

    def test_valueTwice(self) -> None:
        """A value in the frame and beside it."""
        self.register()
        self.send(messages.SetsockoptNotify(2, 1, 205, 87, b"x").encode(), [createMemoryFile(b"y")])
        self.assertTrue(self.daemon.isLost)

    def test_valueMissing(self) -> None:
        """A value neither in the frame nor beside it."""
        self.register()
        self.send(messages.SetsockoptNotify(2, 1, 205, 87, b"x").encode(detached=True))
        self.assertTrue(self.daemon.isLost)

    def test_doesNotRead(self) -> None:
        """A peer that sends but never reads loses the link when the queue is full; nothing is kept."""
        self.register()
        self.daemon._link.maximumFrames = 10
        for number in range(2, 5000):
            try:
                self.peer.send(messages.BindNotify(number, 1, HERE).encode())
            except OSError:
                break
            self.reactor.settle()
        self.assertTrue(self.daemon.isLost)


class HostileDaemonTests(SynchronousTestCase):
    """A daemon that breaks the protocol."""

    def setUp(self) -> None:
        self.descriptors = openDescriptors()
        self.reactor = PumpedReactor()
        ours, self.peer = pair()
        self.peer.setblocking(False)
        self.requests = Requests()
        self.interceptor = InterceptorEnd(self.reactor, ours, self.requests)

    def tearDown(self) -> None:
        self.interceptor.close()
        self.reactor.settle()
        self.peer.close()
        self.interceptor.onRegistered.addErrback(lambda reason: reason.trap(SSAError))
        self.assertEqual(openDescriptors(), self.descriptors)

    def send(self, frame: bytes) -> None:
        self.peer.send(frame)
        self.reactor.settle()

    def test_unknownAnswers(self) -> None:
        """Answers to events that do not wait are ignored."""
        result = self.interceptor.notify(messages.BindNotify(1, 1, HERE))
        for _ in range(100):
            self.send(Return(99, 1, 0).encode())
        self.assertNoResult(result)
        self.send(Return(1, 1, 0).encode())
        self.send(Return(1, 1, -EIO).encode())
        self.assertEqual(self.successResultOf(result), Return(1, 1, 0))
        self.assertNoResult(self.interceptor.lost)

    def test_wrongAnswers(self) -> None:
        """An answer that the event may not get is EIO for the program."""
        for number, make in enumerate(ANSWERED, 1):
            event = make(number, 1)
            result = self.interceptor.notify(event)
            self.send(
                HandshakeReturn(number, 1, 0).encode()
                if not isinstance(goodAnswer(event), HandshakeReturn)
                else Return(number, 1, 0).encode()
            )
            self.assertEqual(self.successResultOf(result), failure(event, EIO))
        event = messages.GetsockoptNotify(50, 1, 205, 96)
        result = self.interceptor.notify(event)
        self.send(Return(50, 1, 0).encode())
        self.assertEqual(self.successResultOf(result), failure(event, EIO))

    def test_otherVersion(self) -> None:
        """A daemon of another version is refused and the link ends."""
        self.send(messages.Register(2).encode(1))
        self.assertEqual(self.failureResultOf(self.interceptor.onRegistered, SSAError).value.errno, ENETDOWN)
        self.successResultOf(self.interceptor.lost)

    def test_netlinkOnly(self) -> None:
        """Requests of the other transport are refused."""
        self.send(messages.Next().encode(5))
        self.send(messages.EndOfStream(1).encode(6))
        for sequence in (5, 6):
            _, reply = messages.decodeFrame(self.peer.recv(1000), messages.FROM_INTERCEPTOR)
            assert isinstance(reply, Acknowledgement)
            self.assertEqual((reply.sequence, reply.error), (sequence, -95))

    def test_garbage(self) -> None:
        """Bytes that are no frame end the link and all that waits."""
        result = self.interceptor.notify(messages.BindNotify(1, 1, HERE))
        self.send(b"\0" * 16)
        self.assertEqual(self.failureResultOf(result, SSAError).value.errno, ENETDOWN)

    def test_acknowledgement(self) -> None:
        """An acknowledgement of nothing is ignored."""
        self.send(Acknowledgement(0, 9).encode())
        self.assertNoResult(self.interceptor.lost)


class LinkTests(SynchronousTestCase):
    """The link itself."""

    def setUp(self) -> None:
        self.descriptors = openDescriptors()
        self.reactor = PumpedReactor()
        ours, self.peer = pair()
        self.peer.setblocking(False)
        self.user = mock.Mock()
        self.link = Link(self.reactor, ours, self.user, maximumFrames=5)

    def tearDown(self) -> None:
        self.link.end("test")
        self.reactor.settle()
        self.peer.close()
        self.assertEqual(self.user.linkLost.call_count, 1)
        self.assertEqual(openDescriptors(), self.descriptors)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def fill(self) -> int:
        """Send until a frame has to wait."""
        number = 0
        while not self.link._queue:
            self.link.send(b"%8d" % number, [os.open("/dev/null", os.O_RDONLY)])
            number += 1
        return number

    def test_waits(self) -> None:
        """What does not fit waits, in order, with its descriptors."""
        sent = self.fill()
        received = []
        while True:
            try:
                frame, fds, _, _ = socket.recv_fds(self.peer, 100, 4)
            except BlockingIOError:
                break
            received.append((frame, len(fds)))
            closeDescriptors(fds)
            self.reactor.settle()
        self.assertEqual(len(received), sent)
        self.assertTrue(received == [(b"%8d" % number, 1) for number in range(sent)])
        self.assertEqual(self.reactor.writers, set())

    def test_overflow(self) -> None:
        """A queue that overflows ends the link; the waiting descriptors are closed."""
        self.fill()
        for _ in range(10):
            self.link.send(b"x", [os.open("/dev/null", os.O_RDONLY)])
        self.reactor.settle()
        self.assertEqual(self.user.linkLost.call_count, 1)
        while True:
            try:
                frame, fds, _, _ = socket.recv_fds(self.peer, 100, 4)
            except OSError:
                break
            closeDescriptors(fds)
            if not frame:
                break

    def test_byteOverflow(self) -> None:
        """The same for bytes."""
        self.link.maximumBytes = 3
        with mock.patch.object(self.link, "_transmit", return_value=False):
            self.link.send(b"abcd")
        self.reactor.settle()
        self.assertEqual(self.user.linkLost.call_count, 1)

    def test_tooLarge(self) -> None:
        """A frame that no receiver takes is refused, and its descriptor closed."""
        fd = os.open("/dev/null", os.O_RDONLY)
        self.assertRaises(BadValueError, self.link.send, bytes(LARGEST_FRAME + 1), [fd])
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
        self.assertRaises(BadValueError, self.link.send, b"x", fds)

    def test_afterEnd(self) -> None:
        """Nothing is sent after the end, and descriptors are closed."""
        self.link.end("over")
        self.link.send(b"x", [os.open("/dev/null", os.O_RDONLY)])
        self.user.linkLost.assert_not_called()
        self.reactor.settle()
        self.link.send(b"x", [os.open("/dev/null", os.O_RDONLY)])
        self.user.linkLost.assert_called_once_with("over")

    def test_shortage(self) -> None:
        """Too many descriptors in flight: it tries again later."""
        sock = self.link._sock
        self.link._sock = mock.Mock(wraps=sock)
        self.link._sock.sendmsg.side_effect = OSError(109, "too many references")
        self.link._sock.fileno = sock.fileno
        self.link.send(b"one", [os.open("/dev/null", os.O_RDONLY)])
        self.link.send(b"two")
        self.reactor.settle()
        self.assertEqual(self.reactor.writers, set())
        self.link._sock = sock
        self.reactor.advance(1)
        self.reactor.settle()
        frame, fds, _, _ = socket.recv_fds(self.peer, 100, 4)
        self.assertEqual((frame, len(fds)), (b"one", 1))
        closeDescriptors(fds)
        self.assertEqual(self.peer.recv(100), b"two")

    def test_shortageForever(self) -> None:
        """But not for ever."""
        sock = self.link._sock
        self.link._sock = mock.Mock(wraps=sock)
        self.link._sock.sendmsg.side_effect = OSError(109, "too many references")
        self.link._sock.fileno = sock.fileno
        self.link.send(b"one", [os.open("/dev/null", os.O_RDONLY)])
        for _ in range(1000):
            self.reactor.settle()
            self.reactor.advance(0.02)
        self.assertEqual(self.user.linkLost.call_count, 1)

    def test_peerGone(self) -> None:
        """Sending to a peer that has gone ends the link."""
        self.peer.close()
        self.link.send(b"x", [os.open("/dev/null", os.O_RDONLY)])
        self.reactor.settle()
        self.assertEqual(self.user.linkLost.call_count, 1)

    def test_brokenUser(self) -> None:
        """A user that raises ends the link; the descriptors are closed."""
        self.user.frameReceived.side_effect = RuntimeError("broken")
        socket.send_fds(self.peer, [b"x"], [0])
        self.reactor.settle()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.user.linkLost.call_count, 1)

    def test_endWhileReceiving(self) -> None:
        """A user that ends the link in a frame gets no further one."""
        self.user.frameReceived.side_effect = lambda frame, fds: self.link.end("enough")
        for _ in range(3):
            self.peer.send(b"x")
        self.reactor.settle()
        self.assertEqual(self.user.frameReceived.call_count, 1)

    def test_noDescriptorsLeft(self) -> None:
        """A process at its limit of descriptors learns which frame has lost its own; the link goes on."""
        received: list[list[int]] = []
        self.user.frameReceived.side_effect = lambda frame, fds: received.append(list(fds))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        socket.send_fds(self.peer, [b"x"], [0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            why = self.link.doRead()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertIsNone(why)
        self.assertEqual(received, [[NO_DESCRIPTOR]])


class MemoryFileTests(SynchronousTestCase):
    """Values beside a frame."""

    def test_roundTrip(self) -> None:
        """What goes in comes out, and cannot be changed meanwhile."""
        fd = createMemoryFile(b"value" * 10000)
        self.addCleanup(os.close, fd)
        self.assertEqual(readMemoryFile(fd), b"value" * 10000)
        self.assertRaises(PermissionError, os.pwrite, fd, b"x", 0)
        self.assertRaises(PermissionError, os.ftruncate, fd, 1)

    def test_failure(self) -> None:
        """A file that could not be written is closed."""
        descriptors = openDescriptors()
        with mock.patch("ssa.protocol.memfd.os.write", side_effect=OSError(12, "no memory")):
            self.assertRaises(OSError, createMemoryFile, b"x")
        self.assertEqual(openDescriptors(), descriptors)


class PortTests(SynchronousTestCase):
    """Where the daemon listens."""

    def setUp(self) -> None:
        self.descriptors = openDescriptors()
        self.reactor = PumpedReactor()
        self.receiver = Receiver()
        self.directory = self.mktemp()
        self.path = os.path.join(self.directory, "daemon.sock")
        self.port = SupervisedPort(self.reactor, self.path, self.receiver, maximumConnections=3, maximumPerUser=3)
        self.clients: list[socket.socket] = []

    def tearDown(self) -> None:
        self.port.stopListening()
        self.port.stopListening()
        self.reactor.settle()
        for client in self.clients:
            client.close()
        self.assertFalse(os.path.exists(self.path) and self.port._place.isTaken)
        self.assertEqual(openDescriptors(), self.descriptors)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.clients.append(client)
        client.connect(self.path)
        client.setblocking(False)
        self.reactor.settle()
        return client

    def test_serves(self) -> None:
        """A connection gets a daemon's end, with the peer's credentials."""
        self.port.startListening()
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o666)
        self.assertEqual(os.stat(self.directory).st_mode & 0o777, 0o755)
        interceptor = InterceptorEnd(self.reactor, self.connect(), Requests())
        self.reactor.settle()
        self.successResultOf(interceptor.onRegistered)
        result = interceptor.notify(socketNotify(1, 1))
        self.reactor.settle()
        self.assertEqual(self.successResultOf(result), Return(1, 1, 0))
        self.assertEqual(self.receiver.interceptor.peerUID, os.getuid())
        self.assertEqual(self.receiver.interceptor.peerPID, os.getpid())
        interceptor.close()
        self.reactor.settle()
        self.assertEqual(len(self.receiver.lost), 1)
        self.assertEqual(self.port.ends, set())

    def test_bounded(self) -> None:
        """One connection too many is closed at once; when another ends there is room again."""
        self.port.startListening()
        clients = [self.connect() for _ in range(4)]
        self.assertEqual(len(self.port.ends), 3)
        self.assertEqual(clients[3].recv(100), b"")
        clients[0].close()
        self.reactor.settle()
        self.connect()
        self.assertEqual(len(self.port.ends), 3)

    def test_boundedPerUser(self) -> None:
        """One user cannot take all the room."""
        self.port = SupervisedPort(self.reactor, self.path, self.receiver, maximumConnections=2)
        self.port.startListening()
        with mock.patch("ssa.protocol.port.peerCredentials", return_value=(1, 1000)), mock.patch(
            "ssa.protocol.daemon.peerCredentials", return_value=(1, 1000)
        ):
            self.connect()
            self.connect()
        self.assertEqual(len(self.port.ends), 1)

    def test_lockedOut(self) -> None:
        """Every link of a user is ended, and no new one accepted for a while; others are not concerned."""
        self.port.startListening()

        def hostile() -> socket.socket:
            with mock.patch("ssa.protocol.port.peerCredentials", return_value=(1, 1000)), mock.patch(
                "ssa.protocol.daemon.peerCredentials", return_value=(1, 1000)
            ):
                return self.connect()

        other, first = self.connect(), hostile()
        first.recv(1000)
        self.port.ban(1000, 60)
        self.reactor.settle()
        self.assertEqual(first.recv(100), b"")
        self.assertEqual(hostile().recv(100), b"")
        self.assertEqual(len(self.port.ends), 1)
        self.assertNotEqual(other.recv(1000), b"")
        self.reactor.advance(61)
        self.assertNotEqual(hostile().recv(1000), b"")

    def test_setLimits(self) -> None:
        """New bounds count for links that live, and for those that come."""
        self.port.startListening()
        self.connect()
        limits = LinkLimits(maximumSockets=7)
        self.port.setLimits(1, limits, 1)
        self.assertEqual([end.limits for end in self.port.ends], [limits])
        self.assertEqual(self.connect().recv(100), b"")

    def test_stopEndsLinks(self) -> None:
        """Stopping ends every link."""
        self.port.startListening()
        client = self.connect()
        client.recv(1000)
        self.port.stopListening()
        self.reactor.settle()
        self.assertEqual(client.recv(100), b"")
        self.assertFalse(os.path.exists(self.path))

    def test_otherDaemon(self) -> None:
        """Two daemons do not take the path from each other; after the first has stopped the second may have it."""
        self.port.startListening()
        other = SupervisedPort(self.reactor, self.path, self.receiver)
        self.assertRaises(CannotListenError, other.startListening)
        self.connect()
        self.assertEqual(len(self.port.ends), 1)
        self.port.stopListening()
        other.startListening()
        other.stopListening()

    def test_otherProcess(self) -> None:
        """Nor is a socket removed that somebody answers who does not know the lock."""
        os.mkdir(self.directory)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(self.path)
            sock.listen()
            self.assertRaises(CannotListenError, self.port.startListening)
        self.assertTrue(os.path.exists(self.path))

    def test_stale(self) -> None:
        """A socket that nobody answers is removed."""
        os.mkdir(self.directory)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(self.path)
        self.port.startListening()
        self.connect()
        self.assertEqual(len(self.port.ends), 1)

    def test_inTheWay(self) -> None:
        """Something else is never removed."""
        os.mkdir(self.directory)
        with open(self.path, "w"):
            pass
        self.assertRaises(CannotListenError, self.port.startListening)
        self.assertTrue(os.path.exists(self.path))

    def test_link(self) -> None:
        """A symbolic link is neither followed nor removed: at no time."""
        os.mkdir(self.directory)
        target = os.path.join(self.directory, "target")
        with open(target, "w"):
            pass
        os.chmod(target, 0o600)
        for path in (self.path + ".lock", self.path):
            os.symlink("target", path)
            self.assertRaises(CannotListenError, self.port.startListening)
            self.assertTrue(os.path.islink(path))
            os.unlink(path)
        bind = socket.socket.bind

        def exchanged(sock: socket.socket, path: str) -> None:
            bind(sock, path)
            os.unlink(path)
            os.symlink("target", path)

        with mock.patch.object(socket.socket, "bind", exchanged):
            self.assertRaises(CannotListenError, self.port.startListening)
        self.assertTrue(os.path.islink(self.path))
        self.assertEqual(os.stat(target).st_mode & 0o777, 0o600)
        os.unlink(self.path)

    def test_exchanged(self) -> None:
        """What somebody has put in the place of the socket meanwhile stays there."""
        self.port.startListening()
        os.unlink(self.path)
        with open(self.path, "w"):
            pass
        self.port.stopListening()
        self.assertTrue(os.path.isfile(self.path))

    def test_noDescriptors(self) -> None:
        """Without descriptors it waits, and goes on later."""
        self.port.startListening()
        real = self.port._socket
        self.port._socket = mock.Mock(wraps=real)
        self.port._socket.fileno = real.fileno  # type: ignore[union-attr]
        self.port._socket.accept.side_effect = OSError(24, "too many open files")
        self.connect()
        self.assertEqual(self.port.ends, set())
        self.port._socket = real
        self.reactor.advance(1)
        self.reactor.settle()
        self.assertEqual(len(self.port.ends), 1)

    def test_brokenConnection(self) -> None:
        """A connection that cannot be served is closed, and the port goes on."""
        self.port.startListening()
        with mock.patch.object(self.port, "_makeEnd", side_effect=RuntimeError("broken")):
            self.assertEqual(self.connect().recv(10), b"")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.connect()
        self.assertEqual(len(self.port.ends), 1)

    def test_credentials(self) -> None:
        """They are this process's."""
        ours, theirs = pair()
        with ours, theirs:
            self.assertEqual(peerCredentials(ours), (os.getpid(), os.getuid()))
