# SPDX-License-Identifier: MIT
"""Tests for L{ssa.netlink.generic}, on a kernel in memory whose families come and go."""

from __future__ import annotations

from errno import EINVAL, ENOENT, EPERM
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ssa.netlink.codec import (
    Acknowledgement,
    AttributePolicy,
    AttributeTable,
    BadValueError,
    GenericMessage,
    Kind,
    NetlinkMessage,
    UnknownAttributeError,
    Value,
)
from ssa.netlink.errors import BadReplyError, NetlinkError, NotListeningError, UnknownGroupError
from ssa.netlink.generic import (
    CONTROL,
    CTRL_CMD_NEWFAMILY,
    GENL_ID_CTRL,
    Family,
    GenericNetlinkProtocol,
    Operation,
    Reply,
)
from ssa.netlink.port import NETLINK_GENERIC, NetlinkPort
from ssa.netlink.testing import MemoryCommand, MemoryFamily, MemoryNetlink, MemoryReactor
from ssa.test.netlinkcontract import Listener

ADD = 1
LIST = 2
CHANGED = 3
TABLE = AttributeTable(
    AttributePolicy(1, "key", Kind.STRING, minimum=1, maximum=8),
    AttributePolicy(2, "value", Kind.U32),
)


class Store(Listener):
    """Has a method for notifications of the family "key-value"."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.changes: list[tuple[dict[str, Value], str]] = []

    def notify_key_value(self, message: GenericMessage, group: str) -> None:
        self.changes.append((TABLE.decode(message.attributes), group))


class GenericTests(SynchronousTestCase):
    """L{GenericNetlinkProtocol}."""

    def setUp(self) -> None:
        self.values: dict[str, Value] = {"a": 1, "b": 2}
        self.kernel = MemoryNetlink()
        self.family = MemoryFamily(
            "key-value",
            {
                ADD: MemoryCommand(do=self.add, table=TABLE),
                LIST: MemoryCommand(
                    dump=lambda _: [{"key": key, "value": value} for key, value in self.values.items()],
                    replyTable=TABLE,
                ),
            },
            ["changes", "more"],
            3,
            2,
        )
        self.kernel.registerFamily(self.family)
        self.reactor = MemoryReactor(self.kernel)
        self.protocol = Store(self.reactor)
        self.port = NetlinkPort(self.protocol, NETLINK_GENERIC, self.reactor, self.kernel)
        self.port.startListening()
        self.socket = self.kernel.socketOf(self.port)

    def add(self, values: dict[str, Value]) -> dict[str, Value] | None:
        """The command: stores a value, and replies with it if there was none."""
        if "value" not in values:
            raise NetlinkError(EINVAL, "there is no value")
        key = str(values["key"])
        before = self.values.get(key)
        self.values[key] = values["value"]
        self.kernel.notify("key-value", "changes", CHANGED, values, TABLE)
        return None if before is not None else values

    def result(self, waits: Deferred[Any]) -> Any:
        """Let the reactor run, and take the result."""
        self.reactor.run()
        return self.successResultOf(waits)

    def failure(self, waits: Deferred[Any], kind: type[Exception]) -> Any:
        """Let the reactor run, and take the error."""
        self.reactor.run()
        return self.failureResultOf(waits, kind).value

    def test_family(self) -> None:
        """A family is described with everything, and looked up once."""
        found = self.result(self.protocol.family("key-value"))
        groups = {"changes": 17, "more": 18}
        self.assertEqual(found, Family("key-value", 17, 3, 0, 2, (Operation(1, 2), Operation(2, 4)), groups))
        sent = len(self.socket.sent)
        self.assertIs(self.result(self.protocol.family("key-value")), found)
        self.assertEqual(len(self.socket.sent), sent)
        self.failure(self.protocol.family("a name too long for it"), BadValueError)

    def test_families(self) -> None:
        """All families, also if the list changes meanwhile."""
        for number in range(20):
            self.kernel.registerFamily(MemoryFamily(f"family{number}"))
        self.kernel.interruptDumps = 4
        names = [family.name for family in self.result(self.protocol.families())]
        self.assertEqual(names, ["nlctrl", "key-value", *(f"family{number}" for number in range(20))])

    def test_call(self) -> None:
        """Commands with attributes, and without a reply."""
        reply = self.result(self.protocol.call("key-value", ADD, {"key": "c", "value": 3}, TABLE))
        self.assertEqual(reply, Reply(ADD, {"key": "c", "value": 3}))
        self.assertIs(self.result(self.protocol.call("key-value", ADD, {"key": "c", "value": 4}, TABLE)), None)
        replies = self.result(self.protocol.callDump("key-value", LIST, replyTable=TABLE))
        self.assertEqual([one.values["value"] for one in replies], [1, 2, 4])

    def test_refused(self) -> None:
        """The family's and the policy's refusals."""
        error = self.failure(self.protocol.call("key-value", ADD, {"key": "c"}, TABLE), NetlinkError)
        self.assertEqual((error.errno, error.text, error.offset), (EINVAL, "there is no value", None))
        loose = AttributeTable(AttributePolicy(1, "key", Kind.STRING), AttributePolicy(2, "value", Kind.U32))
        values: dict[str, Value] = {"value": 1, "key": "longer than eight"}
        error = self.failure(self.protocol.call("key-value", ADD, values, loose), NetlinkError)
        self.assertEqual((error.errno, error.offset), (EINVAL, 28))
        self.failure(self.protocol.call("key-value", ADD, {"other": 1}, TABLE), UnknownAttributeError)
        self.failure(self.protocol.call("key-value", ADD, {}, TABLE, header=b"1234"), ValueError)

    def test_badReplies(self) -> None:
        """A reply that the caller's table refuses, and one of another family."""
        narrow = AttributeTable(AttributePolicy(1, "key", Kind.STRING))
        self.failure(self.protocol.call("key-value", ADD, {"key": "d", "value": 1}, TABLE, narrow), BadReplyError)
        self.failure(self.protocol.callDump("key-value", LIST, replyTable=narrow), BadReplyError)
        self.kernel.silent = True
        named: dict[str, Value] = {"familyName": "x", "familyID": 7}
        good = GenericMessage(CTRL_CMD_NEWFAMILY, 2, CONTROL.encode(named)).encode()
        other = GenericMessage(CTRL_CMD_NEWFAMILY, 2, CONTROL.encode({**named, "familyName": "y"})).encode()
        nameless = GenericMessage(CTRL_CMD_NEWFAMILY, 2, b"").encode()
        for kind, payload in ((99, good), (GENL_ID_CTRL, other), (GENL_ID_CTRL, nameless), (GENL_ID_CTRL, b""), (0, b"")):
            waits = self.protocol.family("x")
            sequence = self.protocol._sequence
            if kind:
                self.socket.deliver(NetlinkMessage(kind, 0, sequence, 0, payload).encode())
            self.socket.deliver(Acknowledgement(0, sequence, GENL_ID_CTRL).encode(self.port.portID))
            self.failure(waits, BadReplyError)
        waits = self.protocol.family("x")
        sequence = self.protocol._sequence
        self.socket.deliver(NetlinkMessage(GENL_ID_CTRL, 0, sequence, 0, good).encode())
        self.socket.deliver(Acknowledgement(0, sequence, GENL_ID_CTRL).encode(self.port.portID))
        family = self.result(waits)
        reply = NetlinkMessage(GENL_ID_CTRL, 0, 1, 0, good)
        self.assertRaises(BadReplyError, self.protocol._decode, family, reply, CONTROL)

    def test_ownHeader(self) -> None:
        """Families with a header of their own, between the generic one and the attributes."""
        family = Family("old", 40, headerSize=6)
        self.assertRaises(ValueError, self.protocol._payload, family, 1, {}, TABLE, b"123456")
        payload = self.protocol._payload(family, 1, {"value": 5}, TABLE, b"123456\0\0")
        reply = self.protocol._decode(family, NetlinkMessage(40, 0, 1, 0, payload), TABLE)
        self.assertEqual(reply, Reply(1, {"value": 5}, b"123456"))
        short = GenericMessage(1, 1, b"1234").encode()
        self.assertRaises(BadReplyError, self.protocol._decode, family, NetlinkMessage(40, 0, 1, 0, short), TABLE)

    def test_notifications(self) -> None:
        """A notification goes to the method that has the family's name."""
        self.assertEqual(self.result(self.protocol.joinGroup("key-value", "changes")), 17)
        self.result(self.protocol.call("key-value", ADD, {"key": "a", "value": 9}, TABLE))
        self.assertEqual(self.protocol.changes, [({"key": "a", "value": 9}, "changes")])
        payload = GenericMessage(CHANGED, 1, TABLE.encode({"key": "b"})).encode()
        self.socket.deliver(NetlinkMessage(self.family.number, 0, 0, 0, payload).encode())
        self.reactor.run()
        self.assertEqual(self.protocol.changes[1:], [({"key": "b"}, "")])
        self.result(self.protocol.leaveGroup("key-value", "changes"))
        self.result(self.protocol.call("key-value", ADD, {"key": "a", "value": 9}, TABLE))
        self.assertEqual(len(self.protocol.changes), 2)

    def test_otherNotifications(self) -> None:
        """A family without a method; families and groups that nobody knows."""
        other = self.kernel.registerFamily(MemoryFamily("other", groups=["all"]))
        self.result(self.protocol.joinGroup("other", "all"))
        self.kernel.notify("other", "all", 5, {}, TABLE)
        self.reactor.run()
        [(family, message, group)] = self.protocol.others
        self.assertEqual((family.number, message.command, group), (other.number, 5, "all"))
        before = self.protocol.refused.total()
        payload = GenericMessage(5, 1, b"").encode()
        self.socket.deliver(NetlinkMessage(99, 0, 0, 0, payload).encode())
        self.socket.deliver(NetlinkMessage(other.number, 0, 0, 0, payload).encode(), group=63)
        self.socket.deliver(NetlinkMessage(other.number, 0, 0, 0, b"").encode())
        self.socket.deliver(NetlinkMessage(GENL_ID_CTRL, 0, 0, 0, GenericMessage(1, 2, b"").encode()).encode())
        self.reactor.run()
        self.assertEqual(self.protocol.refused.total() - before, 4)
        self.assertEqual(len(self.protocol.others), 1)

    def test_reload(self) -> None:
        """A family that goes and comes again is looked up anew, and both is told."""
        self.result(self.protocol.joinGroup("key-value", "changes"))
        self.kernel.unregisterFamily("key-value")
        error = self.failure(self.protocol.call("key-value", ADD, {"key": "a"}, TABLE), NetlinkError)
        self.assertEqual(error.errno, ENOENT)
        self.kernel.registerFamily(self.family)
        self.assertEqual(self.result(self.protocol.family("key-value")).number, self.family.number)
        self.assertEqual([family.name for family in self.protocol.went], ["key-value"])
        self.assertEqual([family.number for family in self.protocol.came], [18])
        self.assertEqual({group for _, group in self.protocol.control}, {"notify"})
        self.kernel.notify("key-value", "changes", CHANGED, {"key": "a"}, TABLE)
        self.reactor.run()
        self.assertEqual(self.protocol.changes, [])  # the kernel has ended the membership

    def test_lostNotification(self) -> None:
        """If a notification may be lost, or the number is refused, what was known is forgotten."""
        found = self.result(self.protocol.family("key-value"))
        self.socket.overrun()
        self.reactor.run()
        self.assertIsNot(self.result(self.protocol.family("key-value")), found)
        self.kernel.families["key-value"].number = 77
        for ask in (
            lambda: self.protocol.call("key-value", ADD, {"key": "a", "value": 1}, TABLE),
            lambda: self.protocol.callDump("key-value", LIST, replyTable=TABLE),
        ):
            self.protocol._remember(found)
            self.assertEqual(self.failure(ask(), NetlinkError).errno, ENOENT)
            self.result(ask())

    def test_cannotWatch(self) -> None:
        """Who may not watch families keeps nothing of them."""
        protocol = GenericNetlinkProtocol(self.reactor)
        port = NetlinkPort(protocol, NETLINK_GENERIC, self.reactor, self.kernel)
        self.kernel.fail("setsockopt", 0, 0, 0, 0, EPERM)
        port.startListening()
        found = self.result(protocol.family("key-value"))
        self.assertIsNot(self.result(protocol.family("key-value")), found)
        self.kernel.fail("setsockopt", EPERM)
        self.assertEqual(self.failure(protocol.joinGroup("key-value", "more"), OSError).errno, EPERM)
        self.failure(protocol.joinGroup("key-value", "none"), UnknownGroupError)

    def test_closedMeanwhile(self) -> None:
        """A port that closes during a lookup joins nothing."""
        waits = self.protocol.joinGroup("key-value", "changes")
        self.result(self.port.stopListening())
        self.failureResultOf(waits, NotListeningError)


class MemoryTests(SynchronousTestCase):
    """What L{ssa.netlink.testing} refuses of its user."""

    def test_misuse(self) -> None:
        """Mistakes of tests are told."""
        kernel = MemoryNetlink()
        self.assertRaises(ValueError, kernel.fail, "open", 1)
        self.assertRaises(ValueError, kernel.registerFamily, MemoryFamily("nlctrl"))
        self.assertRaises(KeyError, kernel.unregisterFamily, "none")
        reactor = MemoryReactor(kernel)
        port = NetlinkPort(GenericNetlinkProtocol(reactor), NETLINK_GENERIC, reactor, kernel)
        self.assertRaises(LookupError, kernel.socketOf, port)

        def again() -> None:
            reactor.callLater(0, again)

        again()
        self.assertRaises(RuntimeError, reactor.run, 10)
        self.assertEqual((reactor.getReaders(), reactor.getWriters(), reactor.removeAll()), ([], [], []))
        port.startListening()
        self.assertEqual(reactor.removeAll(), [port])
