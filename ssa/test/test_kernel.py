# SPDX-License-Identifier: MIT
"""Tests of L{ssa.protocol.kernel} and L{ssa.protocol.kernelport}, on a module in memory with a reactor that the test turns."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import (
    ECONNABORTED,
    EINVAL,
    EIO,
    EMFILE,
    EMSGSIZE,
    ENETDOWN,
    ENETUNREACH,
    ENOBUFS,
    ENOMEM,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
    ETIMEDOUT,
)
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import DataPath, HostnameAddress, InternetAddress
from ssa.errors import SSAError
from ssa.interfaces import IInterceptor
from ssa.netlink.codec import GenericMessage
from ssa.netlink.errors import NetlinkError
from ssa.protocol import messages
from ssa.protocol.answering import LinkLimits
from ssa.protocol.kernel import LAST_PAUSE, NO_PLAINTEXT, RETRIES, WINDOW, KernelEnd
from ssa.protocol.kernelport import RETRY_PAUSE, STANDBY_PAUSE, KernelPort, State
from ssa.protocol.messages import PROTOCOL_VERSION, Answer, Attribute, Event, HandshakeReturn, Message, Register, Return
from ssa.test import test_supervised
from ssa.test.fakemodule import FakeModule, ModuleProgram
from ssa.test.test_supervised import PumpedReactor, Receiver, openDescriptors, socketNotify

HERE = InternetAddress(socket.AF_INET, "127.0.0.1", 4433)
THERE = InternetAddress(socket.AF_INET, "127.0.0.1", 443)


class NetlinkWire:
    """As L{ssa.test.test_supervised.SupervisedWire}, with a module in memory."""

    end: IInterceptor

    def __init__(self, reactor: PumpedReactor, receiver: Receiver) -> None:
        self.module = FakeModule()
        self.module.load()
        self.port = KernelPort(reactor, receiver, LinkLimits(), self.module.system)
        self.port.startListening()
        reactor.settle()
        assert self.port.end is not None
        self.end = self.port.end
        self._reactor = reactor
        self._seen = 0

    def send(self, event: Event) -> None:
        self.module.post(event.payload())

    def answers(self) -> list[Message]:
        new = self.module.requests[self._seen :]
        self._seen = len(self.module.requests)
        return new

    def close(self) -> None:
        self.port.stopListening()
        self._reactor.settle()

    def release(self) -> None:
        """Nothing is left."""
        assert not self.module.kernel.sockets


class ContractTests(test_supervised.ContractTests):
    """The one answer, over netlink."""

    wire = NetlinkWire


class KernelCase(SynchronousTestCase):
    """A module and the daemon's end, joined by a kernel in memory.  No descriptor and no timer may be left."""

    limits = LinkLimits(requestTime=5.0)
    loaded = True

    def setUp(self) -> None:
        gc.collect()  # what other tests have left is not counted
        self.descriptors = openDescriptors()
        self.reactor = PumpedReactor()
        self.receiver = Receiver()
        self.module = FakeModule()
        self.states: list[State] = []
        self.port = KernelPort(self.reactor, self.receiver, self.limits, self.module.system)
        self.port.changed = lambda: self.states.append(self.port.state)
        if self.loaded:
            self.module.load()
            self.start()
            self.assertEqual(State.REGISTERED, self.port.state)

    def start(self) -> None:
        self.port.startListening()
        self.reactor.settle()

    def tearDown(self) -> None:
        self.module.shutDown()
        self.reactor.settle()
        self.port.stopListening()
        self.reactor.settle()
        self.assertEqual([], self.reactor.getDelayedCalls())
        self.assertEqual([], self.module.kernel.sockets)
        self.assertEqual(self.descriptors, openDescriptors())

    @property
    def end(self) -> KernelEnd:
        end = self.port.end
        assert end is not None
        return end

    def answered(self, event: Event) -> Any:
        result = self.module.notify(event)
        self.reactor.settle()
        return self.successResultOf(result)

    def newSocket(self) -> ModuleProgram:
        result = Deferred.fromCoroutine(self.module.newSocket())
        self.reactor.settle()
        program = self.successResultOf(result)
        assert isinstance(program, ModuleProgram)
        return program

    def refused(self, result: Deferred[Any]) -> int:
        """The errno of a request."""
        failure: Any = self.failureResultOf(result, SSAError)
        number: int = failure.value.errno
        return number

    def settled(self, result: Deferred[Any]) -> Any:
        self.reactor.settle()
        return self.successResultOf(result)

    def stop(self) -> None:
        self.port.stopListening()
        self.reactor.settle()


class EventTests(KernelCase):
    """Events on their way."""

    def test_one(self) -> None:
        """One event needs two requests, and no waiting."""
        before = self.module.nexts
        self.newSocket()
        self.assertEqual(2, self.module.nexts - before)

    def test_many(self) -> None:
        """Many are fetched in order, several at a time; none is asked for in vain more often than the window is wide."""
        program = self.newSocket()
        before = self.module.nexts
        under: list[int] = []
        real = self.module._next

        def count() -> bytes:
            under.append(len(self.end._nexts))
            return real()

        self.patch(self.module, "_next", count)
        waiting = [
            self.module.notify(messages.GetsockoptNotify(self.module.nextEvent(), program.id, 205, number))
            for number in range(300)
        ]
        self.reactor.settle()
        self.assertEqual(list(range(300)), [event.name for event in self.receiver.events if hasattr(event, "name")])
        for one in waiting:
            self.assertEqual(b"value", getattr(self.successResultOf(one), "value", None))
        self.assertLessEqual(self.module.nexts - before, 300 + WINDOW)
        self.assertGreater(max(under), WINDOW // 2)

    def test_duringAnEvent(self) -> None:
        """An event that comes while another one is processed is not forgotten."""
        program = self.newSocket()
        more: list[Deferred[Answer]] = []

        def react(event: Event) -> Any:
            if len(more) < 5:
                more.append(self.module.notify(messages.BindNotify(self.module.nextEvent(), program.id, HERE)))
            return self.receiver.good(event)

        self.receiver.react = react
        self.answered(messages.BindNotify(self.module.nextEvent(), program.id, HERE))
        self.assertEqual([0] * 5, [getattr(self.successResultOf(one), "result", 1) for one in more])

    def test_largest(self) -> None:
        """A value of 1 MiB fits."""
        program = self.newSocket()
        value = bytes(messages.MAXIMUM_VALUE)
        event = messages.SetsockoptNotify(self.module.nextEvent(), program.id, 205, 88, value, "/" + "x" * 4000)
        # What the memory's sendto has as limit is for the daemon's direction.
        self.assertEqual(0, self.answered(event).result)
        self.assertEqual(event, self.receiver.events[-1])

    def test_senseless(self) -> None:
        """What cannot be read is answered all the same: a program may pass anything as an address."""
        program = self.newSocket()
        good = messages.ConnectNotify(77, program.id, True, HostnameAddress("name", 1))
        bad = bytes(good.payload()).replace(b"name\0", b"\xff\xfe\xfd\xfc\0")
        for payload, answer in (
            (bad, HandshakeReturn(77, program.id, -EINVAL)),
            (messages.BindNotify(78, program.id, HERE).payload()[:-4] + b"\1\2\3\4", Return(78, program.id, 0)),
            (GenericMessage(99, 1, messages.CloseNotify(79, 5).payload()[4:]).encode(), Return(79, 5, -EOPNOTSUPP)),
        ):
            self.module.post(payload)
            self.reactor.settle()
            self.assertEqual(answer, self.module.requests[-1])
        before = len(self.module.requests)
        for payload in (b"", b"\1", GenericMessage(5, 1, b"\xff" * 9).encode(), GenericMessage(99, 1, b"").encode()):
            self.module.post(payload)
        closing = messages.CloseNotify(80, program.id).payload() + struct.pack("=HHI", 8, 99, 0)
        self.module.post(closing)
        self.reactor.settle()
        self.assertEqual(before, len(self.module.requests))
        self.assertEqual(ECONNABORTED, self.refused(self.end.fetch(program.id)))

    def test_twice(self) -> None:
        """An event that comes twice is answered once."""
        self.receiver.react = lambda event: Deferred()
        self.module.post(socketNotify(50, 50).payload())
        self.module.post(socketNotify(50, 50).payload())
        self.reactor.settle()
        self.assertEqual(1, len(self.receiver.events))

    def test_unknownUser(self) -> None:
        """What the kernel says of a user is true."""
        self.assertEqual(Return(60, 60, 0), self.answered(socketNotify(60, 60, 12345)))

    def test_banned(self) -> None:
        """A user who is banned gets no socket, for as long as that is."""
        self.port.ban(4711, 60)
        self.assertEqual(-EPERM, self.answered(socketNotify(61, 61, 4711)).result)
        self.assertEqual(0, self.answered(socketNotify(62, 62, 4712)).result)
        self.reactor.advance(60)
        self.assertEqual(0, self.answered(socketNotify(63, 63, 4711)).result)

    def test_noMemory(self) -> None:
        """The kernel cannot give an event now: it is asked again."""
        refusals = [NetlinkError(ENOMEM)] * 3
        real = self.module._next

        def fails() -> bytes:
            if refusals:
                raise refusals.pop()
            return real()

        self.patch(self.module, "_next", fails)
        result = self.module.notify(socketNotify(64, 64))
        for _ in range(5):
            self.reactor.settle()
            self.reactor.advance(0.05)
        self.reactor.settle()
        self.assertEqual(Return(64, 64, 0), self.successResultOf(result))

    def test_overrun(self) -> None:
        """Lost messages: what is under way is asked for again, and an event that comes late counts."""
        self.module.kernel.silent = True
        result = self.module.notify(socketNotify(65, 65))
        self.reactor.settle()
        self.module.kernel.sockets[0].overrun()
        self.module.system.refresh()
        self.reactor.settle()
        self.module.speak()
        self.reactor.settle()
        self.assertEqual(Return(65, 65, 0), self.successResultOf(result))
        self.assertEqual(Return(66, 66, 0), self.answered(socketNotify(66, 66)))

    def test_silentKernel(self) -> None:
        """A request for an event that is never answered is given up, and made again."""
        self.module.kernel.silent = True
        result = self.module.notify(socketNotify(67, 67))
        self.reactor.settle()
        self.module.kernel._held.clear()
        self.module.kernel.silent = False
        self.reactor.advance(self.limits.requestTime)
        self.reactor.advance(0.05)
        self.reactor.settle()
        self.assertEqual(Return(67, 67, 0), self.successResultOf(result))


class AnswerTests(KernelCase):
    """Answers on their way."""

    def get(self) -> Deferred[Answer]:
        program = self.newSocket()
        return self.module.notify(messages.GetsockoptNotify(self.module.nextEvent(), program.id, 205, 100))

    def failing(self, *errors: int) -> None:
        """Let the answers that are sent from now on fail."""
        real = self.receiver.react

        def react(event: Event) -> Any:
            self.module.kernel.fail("sendto", *errors)
            return real(event)

        self.receiver.react = react

    def test_tooLong(self) -> None:
        """A value that netlink does not take becomes an error."""
        result = self.get()
        self.failing(EMSGSIZE)
        self.reactor.settle()
        self.assertEqual(-ENOBUFS, getattr(self.successResultOf(result), "result", 0))

    def test_refusedValue(self) -> None:
        """So does one that the module has no memory for."""
        real = self.module._answered

        def refuse(answer: Answer) -> None:
            if isinstance(answer, messages.DataReturn):
                raise NetlinkError(ENOMEM)
            real(answer)

        self.patch(self.module, "_answered", refuse)
        self.assertEqual(-ENOBUFS, getattr(self.settled(self.get()), "result", 0))

    def test_again(self) -> None:
        """An answer that cannot be sent now is sent later."""
        result = self.get()
        self.failing(ENOBUFS)
        self.reactor.settle()
        self.assertNoResult(result)
        self.reactor.advance(0.05)
        self.reactor.settle()
        self.assertEqual(b"value", getattr(self.successResultOf(result), "value", None))

    def test_never(self) -> None:
        """Where that does not help, the link ends, and so does every wait; the daemon begins anew."""
        result = self.get()
        self.receiver.react = lambda event: Deferred()
        self.reactor.settle()
        first = self.end

        def refuse(answer: Answer) -> None:
            raise NetlinkError(ENOMEM)

        self.patch(self.module, "_answered", refuse)
        self.receiver.react = self.receiver.good
        other = self.module.notify(socketNotify(70, 70))
        for _ in range(RETRIES + 1):
            self.reactor.settle()
            self.reactor.advance(20)
        self.reactor.settle()
        for one in (result, other):
            self.assertEqual(-ENETDOWN, getattr(self.successResultOf(one), "result", 0))
        self.assertIsNot(first, self.end)
        self.assertEqual((2, [first]), (self.module.registrations, self.receiver.lost))

    def test_acknowledgementLost(self) -> None:
        """The kernel has acted on an answer whose acknowledgement is lost: it is not sent again."""
        work: Deferred[Answer] = Deferred()
        self.receiver.react = lambda event: work
        result = self.module.notify(socketNotify(71, 71))
        self.reactor.settle()
        work.callback(Return(71, 71, 0))
        self.assertEqual(Return(71, 71, 0), self.successResultOf(result))
        memory = self.module.kernel.sockets[0]
        while memory.readable():
            memory.recvfrom(1 << 16)
        self.reactor.advance(self.limits.requestTime)
        self.reactor.settle()
        self.assertEqual([Return(71, 71, 0)], self.module.requests)


@dataclass
class Asked:
    """
    One kind of request.

    @ivar ask: makes it.
    @ivar descriptor: finds the descriptor in its result.
    """

    ask: Callable[[], Deferred[Any]]
    descriptor: Callable[[Any], int]


class RequestTests(KernelCase):
    """Requests and their descriptors."""

    def setUp(self) -> None:
        super().setUp()
        self.listener = self.newSocket()
        self.listener.real = socket.create_server(("127.0.0.1", 0))
        self.listener.state = "listening"
        self.listener.backlog = 10
        self.address = InternetAddress.fromSocket(socket.AF_INET, self.listener.real.getsockname())
        self.client = socket.create_connection((self.address.host, self.address.port))
        self.connection, _ = self.listener.real.accept()
        self.connecting = self.newSocket()
        self.connecting.real = self.client.dup()
        self.connecting.state = "connecting"
        self.named = self.newSocket()
        self.named.state = "connecting"
        self.named.isNamed = True
        self.module.acceptsAtOnce = False

    def tearDown(self) -> None:
        self.client.close()
        self.connection.close()
        super().tearDown()

    def accepted(self) -> Deferred[tuple[int, int]]:
        return self.end.accepted(self.listener.id, HERE, THERE, self.connection)

    def kinds(self) -> dict[str, Asked]:
        return {
            "fetch": Asked(lambda: self.end.fetch(self.connecting.id), lambda result: int(result.fd)),
            "fetch listener": Asked(lambda: self.end.fetch(self.listener.id), lambda result: int(result.fd)),
            "fetch name": Asked(lambda: self.end.fetch(self.named.id, self.address), lambda result: int(result.fd)),
            "accepted": Asked(self.accepted, lambda result: int(result[1])),
            "established": Asked(
                lambda: self.end.established(self.connecting.id, HERE, THERE, DataPath.RELAY), lambda result: int(result)
            ),
        }

    def test_results(self) -> None:
        """Each gives a descriptor, which the caller owns."""
        for name, kind in self.kinds().items():
            result = self.settled(kind.ask())
            fd = kind.descriptor(result)
            os.fstat(fd)
            os.close(fd)
            if name == "accepted":
                self.assertEqual(self.listener.queue[0].id, result[0])

    def test_late(self) -> None:
        """A reply that comes after its time is over is known, and its descriptor closed."""
        for kind in self.kinds().values():
            self.module.kernel.silent = True
            result = kind.ask()
            self.reactor.advance(self.limits.requestTime)
            self.assertEqual(ETIMEDOUT, self.refused(result))
            self.module.speak()
            self.reactor.settle()
        self.noDescriptorsLeft()
        self.assertIn(self.listener.queue[0].id, self.end._answering.sockets)

    def test_cancelled(self) -> None:
        """The same for a request that was cancelled, before and after the kernel has replied."""
        for speaks in (False, True):
            for name, kind in self.kinds().items():
                if speaks and name == "established":
                    continue  # it was established in the first turn
                self.module.kernel.silent = True
                result = kind.ask()
                if speaks:
                    self.module.speak()
                result.cancel()
                self.failureResultOf(result, CancelledError)
                if not speaks:
                    self.module.speak()
                self.reactor.settle()
        self.noDescriptorsLeft()

    def test_stopped(self) -> None:
        """The daemon stops while replies are on their way: their descriptors are closed as well."""
        results = [kind.ask() for kind in self.kinds().values()]
        taken: list[int] = []
        for result, kind in zip(results, self.kinds().values(), strict=True):
            result.addCallbacks(lambda got, kind=kind: taken.append(kind.descriptor(got)), lambda failure: None)
        self.stop()
        for fd in taken:
            os.close(fd)
        self.assertEqual(5, len(taken))

    def test_lost(self) -> None:
        """The link ends: ENETDOWN for what waits and for what comes."""
        self.module.kernel.silent = True
        results = [kind.ask() for kind in self.kinds().values()]
        end = self.end
        self.stop()
        self.module.kernel.silent = False
        for result in results:
            self.assertEqual(ENETDOWN, self.refused(result))
        self.assertTrue(end.isLost)
        self.assertEqual(ENETDOWN, self.refused(end.fetch(self.connecting.id)))
        self.assertEqual(ENETDOWN, self.refused(end.endOfStream(self.connecting.id)))
        end.lost()
        self.assertEqual([end], self.receiver.lost)

    def test_errors(self) -> None:
        """The kernel's errors are the caller's, with its words."""
        for number in (ENETUNREACH, EMFILE, EPERM):
            for kind in self.kinds().values():

                def refuse(request: Message, number: int = number) -> None:
                    raise NetlinkError(number, "the kernel's words")

                for name in ("_do_FETCH", "_do_ESTABLISHED", "_do_ACCEPTED"):
                    self.patch(self.module, name, refuse)
                result = kind.ask()
                self.reactor.settle()
                failure: Any = self.failureResultOf(result, SSAError)
                self.assertEqual(number, failure.value.errno)
                self.assertIn("the kernel's words", failure.value.reason)

    def test_notSent(self) -> None:
        """Requests that cannot be sent."""
        for kind in self.kinds().values():
            self.module.kernel.fail("sendto", ENOMEM)
            self.assertEqual(ENOMEM, self.refused(kind.ask()))

    def test_wrongReplies(self) -> None:
        """A reply to something else, or without a descriptor, or none; a descriptor in it is closed."""

        def other(request: Any) -> Message:
            return messages.AcceptedReply(1, 2, os.dup(self.client.fileno()))

        def without(request: Any) -> Message:
            kind = messages.REPLIES[request.command]
            return kind(1, 2) if kind is messages.AcceptedReply else kind(1)  # type: ignore[call-arg]

        def nothing(request: Any) -> None:
            """An acknowledgement is not asked for: the time runs out."""

        for make, number in ((other, EIO), (without, EIO), (nothing, ETIMEDOUT)):
            for name, kind in self.kinds().items():
                if make is other and name == "accepted":
                    continue
                for method in ("_do_FETCH", "_do_ESTABLISHED", "_do_ACCEPTED"):
                    self.patch(self.module, method, make)
                result = kind.ask()
                self.reactor.settle()
                self.reactor.advance(self.limits.requestTime)
                self.assertEqual(number, self.refused(result), name)
        self.noDescriptorsLeft()

    def noDescriptorsLeft(self) -> None:
        """None of this process that neither the test nor the module has."""
        module = [self.listener.real, self.connecting.real, *self.named.candidates, self.connecting.plain]
        for child in self.listener.queue:
            module += [child.plain, child.real]
        known = sum(sock is not None for sock in module) + 2 + len(self.module.kernel.sockets)
        self.assertEqual(self.descriptors + known, openDescriptors())

    def test_kTLS(self) -> None:
        """Where the kernel does TLS, there is no plaintext end."""
        result = self.end.established(self.connecting.id, HERE, THERE, DataPath.KTLS)
        self.assertEqual(NO_PLAINTEXT, self.settled(result))
        newID, fd = self.settled(self.end.accepted(self.listener.id, HERE, THERE, self.connection, DataPath.KTLS))
        self.assertEqual((self.listener.queue[0].id, NO_PLAINTEXT), (newID, fd))

    def test_closedSocket(self) -> None:
        """Nothing is asked about a socket that is closed."""
        self.module.close(self.connecting)
        self.reactor.settle()
        before = len(self.module.requests)
        self.assertEqual(ECONNABORTED, self.refused(self.end.fetch(self.connecting.id)))
        self.assertEqual(before, len(self.module.requests))

    def test_endOfStream(self) -> None:
        """The end is vouched for when the kernel says so; a socket that is gone is an error."""
        self.module.kernel.silent = True
        result = self.end.endOfStream(self.connecting.id)
        self.reactor.settle()
        self.assertNoResult(result)
        self.assertFalse(self.connecting.eof)
        self.module.speak()
        self.reactor.settle()
        self.assertIsNone(self.successResultOf(result))
        self.assertTrue(self.connecting.eof)
        result = self.end.endOfStream(4711)
        self.reactor.settle()
        self.assertEqual(ECONNABORTED, self.refused(result))

    # Back-pressure

    def offers(self) -> int:
        return sum(isinstance(one, messages.Accepted) for one in self.module.requests)

    def full(self) -> None:
        """Let the backlog be full."""
        self.listener.backlog = 0
        _, fd = self.settled(self.accepted())
        os.close(fd)

    def test_wait(self) -> None:
        """One connection asks again and again, ever more seldom; the others stand behind it."""
        self.full()
        results = [self.accepted() for _ in range(3)]
        self.reactor.settle()
        self.assertEqual(2, self.offers())
        for _ in range(100):
            self.reactor.advance(0.1)
            self.reactor.settle()
        self.assertLess(self.offers(), 30)
        self.assertGreater(self.offers(), 8)
        for result in results:
            self.assertNoResult(result)
        for result in results:
            self.module.accept(self.listener)
            self.reactor.settle()
            os.close(self.successResultOf(result)[1])
        self.assertEqual({}, self.end._backlogs)

    def test_timer(self) -> None:
        """Room that nobody tells of is found too."""
        self.full()
        result = self.accepted()
        self.reactor.settle()
        self.listener.queue.popleft().release()
        self.reactor.advance(LAST_PAUSE)
        os.close(self.settled(result)[1])

    def test_listenAgain(self) -> None:
        """A larger backlog is room."""
        self.full()
        result = self.accepted()
        self.reactor.settle()
        listening = Deferred.fromCoroutine(self.module.listen(self.listener, 5))
        self.settled(listening)
        os.close(self.successResultOf(result)[1])

    def test_givenUp(self) -> None:
        """A connection that was closed meanwhile is not offered: its number may be another one's."""
        self.full()
        result = self.accepted()
        self.reactor.settle()
        before = self.offers()
        self.connection.close()
        self.module.accept(self.listener)
        self.reactor.settle()
        self.assertEqual(ECONNABORTED, self.refused(result))
        self.assertEqual(before, self.offers())

    def test_listenerClosed(self) -> None:
        """A listener's end is the end of all that wait for it."""
        self.full()
        results = [self.accepted() for _ in range(3)]
        self.reactor.settle()
        self.module.close(self.listener)
        self.reactor.settle()
        self.assertEqual([ECONNABORTED] * 3, [self.refused(result) for result in results])
        self.assertEqual({}, self.end._backlogs)

    def test_lostWhileFull(self) -> None:
        """So is the end of the link."""
        self.full()
        results = [self.accepted() for _ in range(3)]
        self.reactor.settle()
        self.stop()
        self.assertEqual([ENETDOWN] * 3, [self.refused(result) for result in results])

    def test_cancelledWhileFull(self) -> None:
        """Waiting can be cancelled, at the head and behind it."""
        self.full()
        results = [self.accepted() for _ in range(3)]
        self.reactor.settle()
        for result in (results[1], results[0]):
            result.cancel()
            self.failureResultOf(result, CancelledError)
        self.module.accept(self.listener)
        self.reactor.settle()
        os.close(self.successResultOf(results[2])[1])


class RegistrationTests(KernelCase):
    """Finding the module, and finding it again."""

    loaded = False

    def test_waits(self) -> None:
        """There is no module yet: no timer runs, and its loading is noticed."""
        self.start()
        self.assertEqual(([State.WAITING], []), (self.states, self.reactor.getDelayedCalls()))
        self.module.load()
        self.reactor.settle()
        self.assertEqual([State.WAITING, State.REGISTERED], self.states)
        self.newSocket()

    def test_reload(self) -> None:
        """Each loading is a new interceptor, since the numbers of sockets begin anew."""
        self.module.load()
        self.start()
        first = self.end
        for number in range(1, 4):
            program = self.newSocket()
            self.module.close(program)
            self.reactor.settle()
            self.module.unload()
            self.reactor.settle()
            self.assertEqual(State.WAITING, self.port.state)
            self.module.load()
            self.reactor.settle()
            self.assertEqual((number + 1, number), (self.module.registrations, len(self.receiver.lost)))
        self.assertIs(first, self.receiver.lost[0])
        self.assertIsNot(first, self.end)

    def test_quickReload(self) -> None:
        """It is removed and loaded between two turns of the reactor."""
        self.module.load()
        self.start()
        self.module.unload()
        self.module.load()
        self.reactor.settle()
        self.assertEqual((2, State.REGISTERED), (self.module.registrations, self.port.state))
        self.newSocket()

    def test_reloadThatWasLost(self) -> None:
        """The notifications of it were lost: the overrun makes the daemon look."""
        for reloaded in (True, False):
            self.module.load()
            self.start()
            before = self.module.registrations
            multicast = self.module.kernel.multicast
            self.patch(self.module.kernel, "multicast", lambda *arguments, **more: None)
            self.module.unload()
            if reloaded:
                self.module.load()
            self.patch(self.module.kernel, "multicast", multicast)
            self.module.kernel.sockets[0].overrun()
            self.module.system.refresh()
            self.reactor.settle()
            if reloaded:
                self.assertEqual((before + 1, State.REGISTERED), (self.module.registrations, self.port.state))
                self.module.unload()
            self.reactor.settle()
            self.assertEqual(State.WAITING, self.port.state)
            self.stop()

    def test_groupsComeLate(self) -> None:
        """The groups of the family are announced after the registration: kicks are understood all the same."""
        self.module.load()
        self.start()
        protocol: Any = self.port.protocol
        protocol._forgetFamily("SSA")
        self.newSocket()

    def test_anotherDaemon(self) -> None:
        """Where there is another daemon, this one stands by; a kick after the other's end, or a timer, lets it in."""
        self.module.load()
        self.start()
        for kicks in (True, False):
            receiver = Receiver()
            other = KernelPort(self.reactor, receiver, self.limits, self.module.system)
            other.startListening()
            self.reactor.settle()
            self.assertEqual(State.STANDBY, other.state)
            self.reactor.advance(STANDBY_PAUSE * 0.6)
            self.port.stopListening()
            self.reactor.settle()
            if kicks:
                self.module.kick()
            else:
                self.reactor.advance(STANDBY_PAUSE)
            self.reactor.settle()
            self.assertEqual(State.REGISTERED, other.state)
            self.port, self.receiver = other, receiver
            self.newSocket()
        self.module.shutDown()

    def test_worker(self) -> None:
        """A worker registers with the number of its daemon; without one there is no attribute."""
        self.module.load()
        for number in (None, 2**64 - 1):
            port = KernelPort(self.reactor, Receiver(), self.limits, self.module.system, number)
            port.startListening()
            self.reactor.settle()
            self.assertEqual(State.REGISTERED, port.state)
            self.assertEqual(Register(PROTOCOL_VERSION, number), self.module.registered)
            port.stopListening()
            self.reactor.settle()

    def test_anotherDaemonAndNoModule(self) -> None:
        """The module is removed while the daemon stands by."""
        self.module.load()
        self.start()
        other = KernelPort(self.reactor, Receiver(), self.limits, self.module.system)
        other.startListening()
        self.reactor.settle()
        self.module.unload()
        self.reactor.settle()
        self.assertEqual((State.WAITING, State.WAITING), (self.port.state, other.state))
        other.stopListening()
        self.reactor.settle()

    def test_robbed(self) -> None:
        """The module says that it has another daemon: begin anew."""
        self.module.load()
        self.start()
        self.module.daemonPort = 4711
        self.module.kick()
        self.reactor.settle()
        self.assertEqual(State.STANDBY, self.port.state)
        self.module.daemonPort = 0
        self.reactor.advance(STANDBY_PAUSE)
        self.reactor.settle()
        self.assertEqual(State.REGISTERED, self.port.state)

    def test_noRight(self) -> None:
        """Without CAP_NET_ADMIN there is nothing to wait for."""
        self.module.kernel.privileged = False
        self.module.load()
        self.start()
        self.assertEqual(([State.FORBIDDEN], []), (self.states, self.reactor.getDelayedCalls()))
        self.module.unload()

    def test_noNetlink(self) -> None:
        """Nor where there is no netlink."""
        self.module.kernel.fail("socket", EPROTONOSUPPORT)
        self.start()
        self.assertEqual(([State.FORBIDDEN], []), (self.states, self.reactor.getDelayedCalls()))

    def test_passing(self) -> None:
        """Errors that may pass: no descriptor, no memory, a busy kernel."""
        self.module.load()
        self.module.kernel.fail("socket", EMFILE)
        self.start()
        self.assertEqual([], self.states)
        self.module.kernel.fail("sendto", ENOMEM)
        self.reactor.advance(RETRY_PAUSE)
        self.reactor.settle()
        self.assertEqual([], self.states)
        self.reactor.advance(RETRY_PAUSE)
        self.reactor.settle()
        self.assertEqual([State.REGISTERED], self.states)

    def test_socketBreaks(self) -> None:
        """The netlink socket fails: a new one is made."""
        self.module.load()
        self.start()
        first = self.end
        self.module.close()
        self.reactor.settle()
        self.assertEqual([first], self.receiver.lost)
        self.reactor.advance(RETRY_PAUSE)
        self.reactor.settle()
        self.assertEqual(2, self.module.registrations)

    def test_otherVersion(self) -> None:
        """A module that speaks another version is told in the log, and a newer one waited for."""

        def refuse(request: Message) -> None:
            raise NetlinkError(EPROTONOSUPPORT)

        self.patch(self.module, "_do_REGISTER", refuse)
        self.module.load()
        self.start()
        self.assertEqual(([State.WAITING], []), (self.states, self.reactor.getDelayedCalls()))

    def test_busyAtTheStart(self) -> None:
        """Another daemon is there before this one."""
        self.module.load()
        self.module.daemonPort = 4711
        self.start()
        self.assertEqual([State.STANDBY], self.states)
        self.module.daemonPort = 0

    def test_limits(self) -> None:
        """New bounds count at once."""
        self.module.load()
        self.start()
        self.port.setLimits(LinkLimits(maximumSockets=1))
        self.newSocket()
        self.assertEqual(1, self.end.limits.maximumSockets)
        failure: Any = self.failureResultOf(self.wait(self.module.newSocket()), SSAError)
        self.assertEqual(23, failure.value.errno)

    def wait(self, coroutine: Any) -> Deferred[Any]:
        result = Deferred.fromCoroutine(coroutine)
        self.reactor.settle()
        return result

    def test_attribute(self) -> None:
        """The number of the attribute that carries a descriptor is that of the module."""
        self.assertEqual(26, Attribute.FD)
