# SPDX-License-Identifier: MIT
"""Tests for L{ssa.protocol.messages}."""

from __future__ import annotations

import dataclasses
import socket
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import DataPath, HostnameAddress, InternetAddress, Role, encodeAddress
from ssa.netlink.codec import (
    MAXIMUM_PAYLOAD,
    Acknowledgement,
    BadValueError,
    CodecError,
    DuplicateAttributeError,
    GenericMessage,
    MissingAttributeError,
    NetlinkMessage,
    UnknownAttributeError,
    iterateAttributes,
)
from ssa.protocol import messages
from ssa.protocol.messages import (
    FROM_DAEMON,
    FROM_INTERCEPTOR,
    MAXIMUM_VALUE,
    SUPERVISED_TYPE,
    Attribute,
    Command,
    Message,
    decodeFrame,
    failure,
)

HERE = InternetAddress(socket.AF_INET, "192.0.2.7", 50000)
THERE = InternetAddress(socket.AF_INET6, "2001:db8::1", 443, 0, 3)
NAME = HostnameAddress("example.org", 443)
PROCESS = (42, 1000, "curl", "/usr/bin/curl", 2**63, 2**64 - 1, 4026531841, 4026531840)

EXAMPLES: list[Message] = [
    messages.SocketNotify(1, 2, socket.AF_INET6, *PROCESS),
    messages.SetsockoptNotify(1, 2, 205, 85, b"example.org\0"),
    messages.SetsockoptNotify(1, 2, 1, 9, b"", "/etc/ssl/\udcff.pem"),
    messages.SetsockoptNotify(1, 2, -1, -(2**31), bytes(range(256)) * 400),
    messages.GetsockoptNotify(1, 2, 205, 100),
    messages.BindNotify(2**64 - 1, 0, HERE),
    messages.ConnectNotify(1, 2, True, NAME),
    messages.ConnectNotify(1, 2, False, THERE, HERE),
    messages.ListenNotify(1, 2, 4096, THERE),
    messages.AcceptNotify(1, 2, *PROCESS),
    messages.CloseNotify(1, 2),
    messages.UpgradeNotify(1, 2, Role.SERVER, True, HERE, THERE),
    messages.Return(1, 2, -111),
    messages.DataReturn(1, 2, b"value"),
    messages.DataReturn(1, 2, bytes(MAXIMUM_VALUE)),
    messages.HandshakeReturn(1, 2, 0),
    messages.Register(messages.PROTOCOL_VERSION),
    messages.Register(7),
    messages.Next(),
    messages.Fetch(2),
    messages.Fetch(2, THERE),
    messages.Established(2, HERE, THERE, DataPath.KTLS),
    messages.Accepted(2, HERE, THERE),
    messages.EndOfStream(2),
    messages.FetchReply(2),
    messages.FetchReply(2, HERE, THERE),
    messages.EstablishedReply(2),
    messages.AcceptedReply(2, 3),
]


def classesOf(message: Message) -> dict[int, type[Message]]:
    return FROM_INTERCEPTOR if isinstance(message, (messages.Event, messages.Reply)) else FROM_DAEMON


def attributesOf(message: Message) -> list[tuple[int, bytes]]:
    generic = GenericMessage.decode(message.encode()[16:])
    return [(number & 0x3FFF, bytes(payload)) for number, payload in iterateAttributes(generic.attributes)]


def frameOf(command: int, attributes: list[tuple[int, bytes]], version: int = 1, type: int = SUPERVISED_TYPE) -> bytes:
    body = b"".join(
        struct.pack("=HH", len(payload) + 4, number) + payload + bytes(-len(payload) & 3)
        for number, payload in attributes
    )
    return NetlinkMessage(type, 0, 0, 0, GenericMessage(command, version, body).encode()).encode()


class RoundTripTests(SynchronousTestCase):
    """What is encoded is decoded."""

    def test_examples(self) -> None:
        """Each message, alone and by its number."""
        for message in EXAMPLES:
            frame = message.encode(77)
            self.assertEqual(type(message).decode(frame), message)
            self.assertEqual(decodeFrame(frame, classesOf(message)), (77, message))
            self.assertEqual(decodeFrame(memoryview(frame), classesOf(message)), (77, message))

    def test_complete(self) -> None:
        """There is an example of each class, and a class for each command."""
        known = {*FROM_INTERCEPTOR.values(), *FROM_DAEMON.values()}
        self.assertEqual({type(message) for message in EXAMPLES}, known)
        self.assertEqual({cls.command for cls in known}, set(Command))
        for number, cls in [*FROM_INTERCEPTOR.items(), *FROM_DAEMON.items()]:
            self.assertEqual(number, cls.command)

    def test_types(self) -> None:
        """Enumerations and truth values come back as such."""
        upgrade = messages.UpgradeNotify.decode(messages.UpgradeNotify(1, 2, Role.SERVER, True, HERE, THERE).encode())
        self.assertIs(upgrade.role, Role.SERVER)
        self.assertIs(upgrade.blocking, True)

    def test_frozen(self) -> None:
        """A message cannot be changed."""
        self.assertRaises(dataclasses.FrozenInstanceError, setattr, messages.CloseNotify(1, 2), "id", 3)

    def test_netlinkType(self) -> None:
        """With netlink the type is the family's number."""
        frame = messages.CloseNotify(1, 2).encode(type=29)
        self.assertEqual(decodeFrame(frame, FROM_INTERCEPTOR, type=29)[1], messages.CloseNotify(1, 2))
        self.assertRaises(BadValueError, decodeFrame, frame, FROM_INTERCEPTOR)

    def test_acknowledgement(self) -> None:
        """An acknowledgement comes back as one."""
        one = Acknowledgement(-5, 9, SUPERVISED_TYPE, "why")
        self.assertEqual(decodeFrame(one.encode(), FROM_INTERCEPTOR), (9, one))


class ValueTests(SynchronousTestCase):
    """OPTVAL is cut and joined."""

    def test_chunks(self) -> None:
        """Each attribute holds as much as it can."""
        for size, count in ((0, 1), (MAXIMUM_PAYLOAD, 1), (MAXIMUM_PAYLOAD + 1, 2), (MAXIMUM_VALUE, 17)):
            value = bytes(size)
            found = [payload for number, payload in attributesOf(messages.DataReturn(1, 2, value)) if number == 9]
            self.assertEqual(len(found), count)
            self.assertEqual(b"".join(found), value)

    def test_joined(self) -> None:
        """Chunks of any size are joined in order."""
        frame = frameOf(10, [(11, struct.pack("=Q", 1)), (9, b"a"), (1, struct.pack("=Q", 2)), (9, b""), (9, b"bc")])
        self.assertEqual(messages.DataReturn.decode(frame).value, b"abc")

    def test_bounds(self) -> None:
        """More than the bound is refused, in bytes and in chunks, on both sides."""
        for detached in (False, True):
            self.assertRaises(BadValueError, messages.DataReturn(1, 2, bytes(MAXIMUM_VALUE + 1)).encode, detached=detached)
            text: Any = "text"
            self.assertRaises(BadValueError, messages.DataReturn(1, 2, text).encode, detached=detached)
        head = [(11, struct.pack("=Q", 1)), (1, struct.pack("=Q", 2))]
        self.assertRaises(BadValueError, messages.DataReturn.decode, frameOf(10, head + [(9, bytes(MAXIMUM_PAYLOAD))] * 17))
        self.assertRaises(DuplicateAttributeError, messages.DataReturn.decode, frameOf(10, head + [(9, b"")] * 18))

    def frameWithout(self) -> bytes:
        return messages.DataReturn(1, 2, b"secret").encode(detached=True)

    def test_detached(self) -> None:
        """A value beside the frame."""
        frame = self.frameWithout()
        self.assertNotIn(b"secret", frame)
        self.assertEqual(messages.DataReturn.decode(frame, b"secret"), messages.DataReturn(1, 2, b"secret"))
        self.assertEqual(decodeFrame(frame, FROM_DAEMON, lambda: b"x")[1], messages.DataReturn(1, 2, b"x"))
        self.assertRaises(MissingAttributeError, decodeFrame, frame, FROM_DAEMON)

    def test_detachedWrongly(self) -> None:
        """A value beside a frame that has its own, or has none; and one that is too large."""
        whole = messages.DataReturn(1, 2, b"x").encode()
        self.assertRaises(BadValueError, messages.DataReturn.decode, whole, b"y")
        self.assertRaises(BadValueError, messages.CloseNotify.decode, messages.CloseNotify(1, 2).encode(), b"y")
        self.assertRaises(BadValueError, messages.DataReturn.decode, self.frameWithout(), bytes(MAXIMUM_VALUE + 1))

    def test_secret(self) -> None:
        """No value is shown where a message is logged."""
        for message in (messages.SetsockoptNotify(1, 2, 205, 89, b"secret"), messages.DataReturn(1, 2, b"secret")):
            self.assertNotIn("secret", repr(message))
            self.assertIn("6 bytes", repr(message))


class RefusalTests(SynchronousTestCase):
    """What is malformed is refused."""

    def test_missing(self) -> None:
        """Each attribute without which a message says nothing."""
        for message in EXAMPLES:
            optional = {part.attribute for part in message.parts if part.default is not dataclasses.MISSING}
            whole = attributesOf(message)
            for number in {number for number, _ in whole} - optional:
                frame = frameOf(message.command, [one for one in whole if one[0] != number])
                self.assertRaises(MissingAttributeError, decodeFrame, frame, classesOf(message))

    def test_repeated(self) -> None:
        """Each attribute that may not repeat."""
        for message in EXAMPLES:
            whole = attributesOf(message)
            for one in whole:
                if one[0] != Attribute.OPTVAL:
                    frame = frameOf(message.command, [*whole, one])
                    self.assertRaises(DuplicateAttributeError, decodeFrame, frame, classesOf(message))

    def test_foreign(self) -> None:
        """Each attribute that is not the message's, known elsewhere or nowhere."""
        for message in EXAMPLES:
            whole = attributesOf(message)
            for number in {*range(1, 30), 1000} - {part.attribute for part in message.parts}:
                frame = frameOf(message.command, [*whole, (number, bytes(4))])
                self.assertRaises(UnknownAttributeError, decodeFrame, frame, classesOf(message))

    def test_values(self) -> None:
        """Values out of range, one by one, on both sides."""
        wrong: list[Message] = [
            messages.CloseNotify(0, 1),
            messages.CloseNotify(2**64, 1),
            messages.CloseNotify(1, -1),
            messages.Return(1, 1, 1),
            messages.Return(1, 1, -4096),
            messages.SocketNotify(1, 1, socket.AF_UNIX, *PROCESS),
            messages.SocketNotify(1, 1, 2, 1, 1, "x" * 17, "/x", 1, 1, 1, 1),
            messages.SocketNotify(1, 1, 2, 1, 1, "x", "/" * 4096, 1, 1, 1, 1),
            messages.SocketNotify(1, 1, 2, 1, 1, "x", "/\0", 1, 1, 1, 1),
            messages.SocketNotify(1, 1, 2, 2**32, 1, "x", "/", 1, 1, 1, 1),
            messages.BindNotify(1, 1, InternetAddress(socket.AF_INET, "nonsense", 1)),
            messages.ConnectNotify(1, 1, True, HostnameAddress("", 1)),
        ]
        bad: Any
        for bad in (2, "yes"):
            wrong.append(messages.ConnectNotify(1, 1, bad, HERE))
            wrong.append(messages.UpgradeNotify(1, 1, bad, True, HERE, THERE))
        for bad in (NAME, "192.0.2.1"):
            wrong.append(messages.BindNotify(1, 1, bad))
            wrong.append(messages.Fetch(1, bad))
        for message in wrong:
            self.assertRaises(BadValueError, message.encode)

    def test_decodedValues(self) -> None:
        """The same from the wire."""
        event, socketID = (11, struct.pack("=Q", 1)), (1, struct.pack("=Q", 2))
        name, here = encodeAddress(NAME), encodeAddress(HERE)
        for command, attributes in (
            (Command.CLOSE_NOTIFY, [(11, bytes(8)), socketID]),
            (Command.RETURN, [event, socketID, (10, struct.pack("=i", 1))]),
            (Command.RETURN, [event, socketID, (10, struct.pack("=i", -4096))]),
            (Command.BIND_NOTIFY, [event, socketID, (5, name)]),
            (Command.BIND_NOTIFY, [event, socketID, (5, here[:15])]),
            (Command.BIND_NOTIFY, [event, socketID, (5, b"\1\0/x")]),
            (Command.BIND_NOTIFY, [event, socketID, (5, b"\2")]),
            (Command.CONNECT_NOTIFY, [event, socketID, (2, b"\2"), (6, here)]),
            (Command.CONNECT_NOTIFY, [event, socketID, (2, b"\1"), (6, name[:15])]),
            (Command.UPGRADE_NOTIFY, [event, socketID, (2, b"\1"), (19, b"\2"), (5, here), (6, here)]),
            (Command.ESTABLISHED, [socketID, (22, b"\2"), (5, here), (6, here)]),
            (Command.ESTABLISHED, [socketID, (22, b"\0"), (5, here), (6, name)]),
        ):
            classes = FROM_INTERCEPTOR if command in FROM_INTERCEPTOR and command != 15 else FROM_DAEMON
            self.assertRaises(BadValueError, decodeFrame, frameOf(command, attributes), classes)

    def test_frames(self) -> None:
        """Another version, type or command, and a command of the other side."""
        close = attributesOf(messages.CloseNotify(1, 2))
        for frame in (
            frameOf(8, close, version=2),
            frameOf(8, close, type=0x21),
            frameOf(0, close),
            frameOf(19, close),
            messages.CloseNotify(1, 2).encode() * 2,
            b"",
        ):
            self.assertRaises(CodecError, decodeFrame, frame, FROM_INTERCEPTOR)
        self.assertRaises(BadValueError, decodeFrame, messages.CloseNotify(1, 2).encode(), FROM_DAEMON)
        self.assertRaises(BadValueError, decodeFrame, messages.Return(1, 2, 0).encode(), FROM_INTERCEPTOR)
        self.assertRaises(BadValueError, messages.CloseNotify.decode, messages.Return(1, 2, 0).encode())

    @given(st.sampled_from(EXAMPLES[:4] + EXAMPLES[5:14]), st.data())
    @settings(max_examples=300, deadline=None)
    def test_damaged(self, message: Message, data: st.DataObject) -> None:
        """A frame with some bytes changed decodes or raises CodecError, and what decodes can be encoded."""
        frame = bytearray(message.encode()[:400])
        for _ in range(data.draw(st.integers(1, 4))):
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        for classes in (FROM_INTERCEPTOR, FROM_DAEMON):
            try:
                _, decoded = decodeFrame(frame, classes)
            except CodecError:
                continue
            decoded.encode()

    @given(st.integers(0, 20), st.lists(st.tuples(st.integers(0, 26), st.binary(max_size=130)), max_size=8))
    @settings(max_examples=300, deadline=None)
    def test_anything(self, command: int, attributes: list[tuple[int, bytes]]) -> None:
        """Any attributes decode or raise CodecError."""
        frame = frameOf(command, attributes)
        for classes in (FROM_INTERCEPTOR, FROM_DAEMON):
            try:
                decodeFrame(frame, classes)
            except CodecError:
                continue


class FailureTests(SynchronousTestCase):
    """Each event that wants an answer can fail."""

    def test_failure(self) -> None:
        """With the right class, and a negative errno."""
        for message in EXAMPLES:
            if isinstance(message, messages.Event) and message.wantsAnswer:
                answer = failure(message, 5)
                kind = messages.ANSWERED_BY[type(message)][-1]
                self.assertEqual(answer, kind(message.event, message.id, -5))  # type: ignore[call-arg]
        self.assertRaises(KeyError, failure, messages.CloseNotify(1, 2), 5)
