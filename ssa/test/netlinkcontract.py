# SPDX-License-Identifier: MIT
"""
What a netlink kernel does, as tests: they run on L{ssa.netlink.testing.MemoryNetlink} and on the kernel that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from errno import EINVAL, ENOENT, EOPNOTSUPP, EPERM
from functools import wraps
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase

from ssa.netlink.codec import (
    NLM_F_ACK,
    NLM_F_MULTI,
    AttributePolicy,
    AttributeTable,
    GenericMessage,
    Kind,
    NetlinkMessage,
)
from ssa.netlink.errors import NetlinkError, NotListeningError, UnknownGroupError
from ssa.netlink.generic import (
    CONTROL,
    CTRL_CMD_GETFAMILY,
    CTRL_CMD_NEWFAMILY,
    GENL_CMD_CAP_DO,
    GENL_CMD_CAP_DUMP,
    GENL_ID_CTRL,
    Family,
    GenericNetlinkProtocol,
)
from ssa.netlink.port import NETLINK_GENERIC, INetlinkSystem, NetlinkAddress, NetlinkPort

GET = GenericMessage(CTRL_CMD_GETFAMILY, 1, b"").encode()
GET_CONTROL = GenericMessage(CTRL_CMD_GETFAMILY, 1, CONTROL.encode({"familyName": "nlctrl"})).encode()
NO_BOUNDS = AttributeTable(AttributePolicy(2, "familyName", Kind.STRING))


class Listener(GenericNetlinkProtocol):
    """
    Keeps what it is told.

    @ivar overruns: how often something was lost.
    @ivar late: late replies.
    @ivar reason: why the port was closed.
    """

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.overruns = 0
        self.late: list[NetlinkMessage] = []
        self.control: list[tuple[GenericMessage, str]] = []
        self.others: list[tuple[Family, GenericMessage, str]] = []
        self.came: list[Family] = []
        self.went: list[Family] = []
        self.reason: Failure | None = None

    def overrun(self) -> None:
        super().overrun()
        self.overruns += 1

    def lateReplyReceived(self, message: NetlinkMessage) -> None:
        super().lateReplyReceived(message)
        self.late.append(message)

    def notify_nlctrl(self, message: GenericMessage, group: str) -> None:
        self.control.append((message, group))

    def familyNotification(self, family: Family, message: GenericMessage, group: str) -> None:
        super().familyNotification(family, message, group)
        self.others.append((family, message, group))

    def familyAdded(self, family: Family) -> None:
        super().familyAdded(family)
        self.came.append(family)

    def familyRemoved(self, family: Family) -> None:
        super().familyRemoved(family)
        self.went.append(family)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self.reason = reason


def driven(test: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], Deferred[None] | None]:
    """Make a test of a coroutine: the test case knows how its reactor is driven."""

    @wraps(test)
    def run(self: Any) -> Deferred[None] | None:
        driven: Deferred[None] | None = self.drive(test(self))
        return driven

    return run


class NetlinkContract(TestCase):
    """
    The mixin.  A subclass sets C{reactor} and C{system} in C{setUp} and defines L{drive} and L{turn}; it may skip.
    """

    __test__ = False

    reactor: Any
    system: INetlinkSystem

    def drive(self, test: Coroutine[Any, Any, None]) -> Deferred[None] | None:
        """Run a coroutine to its end."""
        raise NotImplementedError

    async def turn(self) -> None:
        """Let the reactor do what it has to do now."""
        raise NotImplementedError

    def stall(self, seconds: float) -> None:
        """Let time pass in which the reactor does nothing."""
        raise NotImplementedError

    def listen(self, **options: Any) -> tuple[NetlinkPort, Listener]:
        """A port that listens until the end of the test."""
        protocol = Listener(self.reactor)
        port = NetlinkPort(protocol, NETLINK_GENERIC, self.reactor, self.system, **options)
        try:
            port.startListening()
        except CannotListenError as error:
            raise SkipTest(f"netlink is not allowed here: {error.socketError}") from error
        self.addCleanup(self.shut, port)
        return port, protocol

    def shut(self, port: NetlinkPort) -> Deferred[None] | None:
        """Close a port at the end of a test."""
        return self.drive(_wait(port.stopListening))

    async def refusal(self, result: Deferred[Any]) -> NetlinkError:
        """The error with which the kernel answers."""
        return await self.assertFailure(result, NetlinkError)

    # Ports

    @driven
    async def test_address(self) -> None:
        """Two ports have different addresses, and messages find the right one."""
        one, first = self.listen()
        other, second = self.listen()
        self.assertNotEqual(one.portID, other.portID)
        self.assertEqual(one.getHost(), NetlinkAddress(NETLINK_GENERIC, one.portID))
        families = await gatherResults([first.family("nlctrl"), second.family("nlctrl")])
        self.assertEqual(families[0], families[1])
        self.assertEqual(first.refused.total() + second.refused.total(), 0)

    @driven
    async def test_receiveBuffer(self) -> None:
        """The receive buffer has the size that was asked for, which the kernel doubles."""
        port, _ = self.listen(receiveBuffer=20000)
        self.assertEqual(port.receiveBufferSize(), 40000)

    @driven
    async def test_stopListening(self) -> None:
        """A closed port ends what waits, and can be opened again."""
        port, protocol = self.listen()
        waits = self.assertFailure(protocol.request(GENL_ID_CTRL, GET_CONTROL), NotListeningError)
        await gatherResults([port.stopListening(), port.stopListening()])
        await waits
        self.assertEqual((port.fileno(), port.portID, protocol.port), (-1, 0, None))
        await self.assertFailure(protocol.family("nlctrl"), NotListeningError)
        await port.stopListening()
        port.startListening()
        self.assertEqual((await protocol.family("nlctrl")).number, GENL_ID_CTRL)

    @driven
    async def test_overrun(self) -> None:
        """Answers that do not fit into the receive buffer are lost, which is reported; the port goes on."""
        port, protocol = self.listen(receiveBuffer=2304)
        waiting = [protocol.request(GENL_ID_CTRL, GET_CONTROL) for _ in range(200)]
        while not protocol.overruns:
            await self.turn()
        for one in waiting:
            one.addErrback(lambda failure: failure.trap(CancelledError))
            one.cancel()
        self.assertGreaterEqual(port.overruns, 1)
        self.assertEqual((await protocol.family("nlctrl")).number, GENL_ID_CTRL)

    @driven
    async def test_truncated(self) -> None:
        """A datagram that is longer than the port accepts is never seen cut off: it counts as lost."""
        port, protocol = self.listen(maximumDatagram=64)
        result = protocol.request(GENL_ID_CTRL, GET_CONTROL)
        self.assertIs(await result, None)  # of the reply and the acknowledgement, only the latter is short
        self.assertEqual((port.overruns, protocol.overruns), (1, 1))

    @driven
    async def test_wrongSender(self) -> None:
        """What another process sends is refused."""
        port, protocol = self.listen()
        try:
            self.spoof(port, NetlinkMessage(GENL_ID_CTRL, 0, 1, port.portID, GET).encode())
        except OSError as error:
            if error.errno != EPERM:
                raise
            raise SkipTest("sending to other processes takes CAP_NET_ADMIN") from error
        result = protocol.request(GENL_ID_CTRL, GET_CONTROL)
        reply = await result
        assert reply is not None
        self.assertEqual(GenericMessage.decode(reply.payload).command, CTRL_CMD_NEWFAMILY)
        self.assertEqual((port.refused.total(), protocol.control, protocol.late), (1, [], []))

    def spoof(self, port: NetlinkPort, data: bytes) -> None:
        """Send something to a port as another process does."""
        raise NotImplementedError

    # Requests

    @driven
    async def test_reply(self) -> None:
        """A request with an acknowledgement gives the reply that comes before it; one without gives the reply."""
        _, protocol = self.listen()
        for flags in (NLM_F_ACK, 0):
            reply = await protocol.request(GENL_ID_CTRL, GET_CONTROL, flags)
            assert reply is not None
            self.assertEqual((reply.type, reply.flags), (GENL_ID_CTRL, 0))
        await self.turn()
        self.assertEqual(protocol.refused.total(), 0)

    @driven
    async def test_stoppedMeanwhile(self) -> None:
        """A process that was stopped for longer than a request may take finds the answer, which has come meanwhile."""
        _, protocol = self.listen()
        for begin in (
            lambda: protocol.request(GENL_ID_CTRL, GET_CONTROL, timeout=0.01),
            lambda: protocol.dump(GENL_ID_CTRL, GET, timeout=0.01),
        ):
            asked = begin()
            self.stall(0.02)
            await asked

    @driven
    async def test_many(self) -> None:
        """Many requests at a time get each its own answer."""
        _, protocol = self.listen()
        unknown = GenericMessage(CTRL_CMD_GETFAMILY, 1, CONTROL.encode({"familyName": "no such"})).encode()
        results = []
        for _ in range(20):
            results.append(protocol.request(GENL_ID_CTRL, GET_CONTROL))
            results.append(self.refusal(protocol.request(GENL_ID_CTRL, unknown)))  # type: ignore[arg-type]
        for number, result in enumerate(results):
            got = await result
            self.assertEqual(got.errno if isinstance(got, NetlinkError) else 0, ENOENT if number % 2 else 0)

    @driven
    async def test_noSuchFamily(self) -> None:
        """A family that is not there is C{ENOENT}, in words."""
        _, protocol = self.listen()
        error = await self.refusal(protocol.family("ssa-none"))
        self.assertEqual(error.errno, ENOENT)
        self.assertIn("No such file", str(error))
        error = await self.refusal(protocol.request(0x7FFE, GET))
        self.assertEqual(error.errno, ENOENT)

    @driven
    async def test_noSuchCommand(self) -> None:
        """A command that is not there is C{EOPNOTSUPP}, as request and as dump."""
        _, protocol = self.listen()
        error = await self.refusal(protocol.call("nlctrl", 99))
        self.assertEqual((error.errno, error.text, error.offset), (EOPNOTSUPP, "", None))
        error = await self.refusal(protocol.callDump("nlctrl", 99))
        self.assertEqual(error.errno, EOPNOTSUPP)

    @driven
    async def test_extendedAcknowledgement(self) -> None:
        """The kernel explains an error, and points at the attribute."""
        port, protocol = self.listen()
        if not port.extendedAcks:
            raise SkipTest("this kernel does not explain errors")
        error = await self.refusal(protocol.call("nlctrl", CTRL_CMD_GETFAMILY, {"familyName": "x" * 40}, NO_BOUNDS))
        self.assertEqual((error.errno, error.offset), (EINVAL, 20))
        self.assertNotEqual(error.text, "")
        self.assertIn(error.text, str(error))

    @driven
    async def test_cancel(self) -> None:
        """A cancelled request ends at once; its late answer is passed over."""
        _, protocol = self.listen()
        result = protocol.request(GENL_ID_CTRL, GET_CONTROL)
        result.cancel()
        await self.assertFailure(result, CancelledError)
        self.assertEqual((await protocol.family("nlctrl")).number, GENL_ID_CTRL)
        self.assertEqual([message.type for message in protocol.late], [GENL_ID_CTRL])
        self.assertEqual(protocol.refused.total(), 2)

    # Dumps

    @driven
    async def test_dump(self) -> None:
        """A dump as a list, as a stream and as an iterator gives the same."""
        _, protocol = self.listen()
        listed = await protocol.dump(GENL_ID_CTRL, GET, attempts=5)
        self.assertTrue(all(one.type == GENL_ID_CTRL and one.flags & NLM_F_MULTI for one in listed))
        streamed: list[NetlinkMessage] = []
        await protocol.stream(streamed.append, GENL_ID_CTRL, GET)
        iterated = [message async for message in protocol.iterate(GENL_ID_CTRL, GET)]
        for messages in (streamed, iterated):
            self.assertEqual([one.payload for one in messages], [one.payload for one in listed])

    @driven
    async def test_dumpsInTurn(self) -> None:
        """One socket has one dump at a time; several wait for each other, and requests do not."""
        _, protocol = self.listen()
        dumps = [protocol.dump(GENL_ID_CTRL, GET) for _ in range(5)]
        self.assertEqual((await protocol.family("nlctrl")).number, GENL_ID_CTRL)
        first, *others = await gatherResults(dumps)
        for other in others:
            self.assertEqual([one.payload for one in other], [one.payload for one in first])

    @driven
    async def test_cancelDump(self) -> None:
        """A dump that is cancelled, at once or in the middle, leaves the socket to the next."""
        _, protocol = self.listen()
        result = protocol.dump(GENL_ID_CTRL, GET)
        result.cancel()
        await self.assertFailure(result, CancelledError)
        iterator = protocol.iterate(GENL_ID_CTRL, GET)
        async for _ in iterator:
            break
        iterator.close()
        self.assertEqual([message async for message in iterator], [])
        self.assertIn("nlctrl", [family.name for family in await protocol.families()])
        self.assertEqual(protocol.late, [])

    @driven
    async def test_receiverFails(self) -> None:
        """An exception of the receiver ends a dump, and is its result."""
        _, protocol = self.listen()

        def receive(message: NetlinkMessage) -> None:
            raise ArithmeticError("enough")

        await self.assertFailure(protocol.stream(receive, GENL_ID_CTRL, GET), ArithmeticError)
        self.assertNotEqual(await protocol.families(), [])

    # Generic netlink

    @driven
    async def test_control(self) -> None:
        """The family "nlctrl" is on every Linux."""
        _, protocol = self.listen()
        family = await protocol.family("nlctrl")
        self.assertEqual((family.name, family.number, family.headerSize), ("nlctrl", GENL_ID_CTRL, 0))
        self.assertEqual(family.groups, {"notify": GENL_ID_CTRL})
        flags = {operation.number: operation.flags for operation in family.operations}
        both = GENL_CMD_CAP_DO | GENL_CMD_CAP_DUMP
        self.assertEqual(flags[CTRL_CMD_GETFAMILY] & both, both)
        self.assertIs(await protocol.family("nlctrl"), family)

    @driven
    async def test_families(self) -> None:
        """The list of all families agrees with what is said of each."""
        _, protocol = self.listen()
        families = await protocol.families()
        self.assertEqual(len({family.number for family in families}), len(families))
        self.assertIn("nlctrl", [family.name for family in families])
        for family in families:
            single = await protocol.family(family.name)
            self.assertEqual((single.name, single.number, single.groups), (family.name, family.number, family.groups))

    @driven
    async def test_call(self) -> None:
        """A command with attributes by name."""
        _, protocol = self.listen()
        reply = await protocol.call("nlctrl", CTRL_CMD_GETFAMILY, {"familyID": GENL_ID_CTRL}, CONTROL)
        assert reply is not None
        self.assertEqual((reply.command, reply.values["familyName"]), (CTRL_CMD_NEWFAMILY, "nlctrl"))
        replies = await protocol.callDump("nlctrl", CTRL_CMD_GETFAMILY, replyTable=CONTROL)
        self.assertIn("nlctrl", [one.values["familyName"] for one in replies])

    @driven
    async def test_groups(self) -> None:
        """Groups are joined and left by name."""
        _, protocol = self.listen()
        self.assertEqual(await protocol.joinGroup("nlctrl", "notify"), GENL_ID_CTRL)
        self.assertEqual(await protocol.leaveGroup("nlctrl", "notify"), GENL_ID_CTRL)
        await self.assertFailure(protocol.joinGroup("nlctrl", "none"), UnknownGroupError)
        error = await self.refusal(protocol.joinGroup("ssa-none", "notify"))
        self.assertEqual(error.errno, ENOENT)

    @driven
    async def test_noSuchGroup(self) -> None:
        """A group whose number is impossible is refused by the system."""
        port, _ = self.listen()
        for number in (0, 1 << 20):
            with self.assertRaises(OSError) as caught:
                port.joinGroup(number)
            self.assertIn(caught.exception.errno, (EINVAL, ENOENT))
        with suppress(OSError):
            port.leaveGroup(0)


async def _wait(begin: Callable[[], Deferred[None]]) -> None:
    """Begin something, and wait for its end."""
    await begin()
