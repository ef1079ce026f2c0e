# SPDX-License-Identifier: MIT
"""Tests for L{ssa.netlink.codec}."""

from __future__ import annotations

import ast
import struct
import sys
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ssa.netlink import codec
from ssa.netlink.codec import (
    EXTENDED_ACK,
    MAXIMUM_PAYLOAD,
    NLA_F_NESTED,
    NLA_F_NET_BYTEORDER,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLMSG_DONE,
    NLMSG_ERROR,
    Acknowledgement,
    AttributePolicy,
    AttributeTable,
    BadValueError,
    CodecError,
    DuplicateAttributeError,
    GenericMessage,
    Kind,
    MissingAttributeError,
    NetlinkMessage,
    TruncatedError,
    UnknownAttributeError,
    decodeMessage,
    decodeMessages,
)

INNER = AttributeTable(
    AttributePolicy(1, "number", Kind.U32, required=True),
    AttributePolicy(2, "name", Kind.STRING, maximum=15),
)
TABLE = AttributeTable(
    AttributePolicy(1, "u8", Kind.U8),
    AttributePolicy(2, "u16", Kind.U16),
    AttributePolicy(3, "u32", Kind.U32),
    AttributePolicy(4, "u64", Kind.U64),
    AttributePolicy(5, "s32", Kind.S32),
    AttributePolicy(6, "string", Kind.STRING, minimum=1, maximum=10),
    AttributePolicy(7, "binary", Kind.BINARY, minimum=2, maximum=6),
    AttributePolicy(8, "flag", Kind.FLAG),
    AttributePolicy(9, "nest", Kind.NESTED, table=INNER),
    AttributePolicy(10, "array", Kind.INDEXED, maximum=3, table=INNER),
    AttributePolicy(11, "several", Kind.BINARY, count=3),
    AttributePolicy(12, "network", Kind.U32, network=True),
)


def attribute(kind: int, payload: bytes, length: int | None = None) -> bytes:
    """One attribute, written by hand."""
    size = len(payload) + 4 if length is None else length
    return struct.pack("=HH", size, kind) + payload + bytes(-len(payload) & 3)


TEXT = st.binary(min_size=1, max_size=10).filter(lambda raw: b"\0" not in raw).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
INNER_VALUES = st.fixed_dictionaries({"number": st.integers(0, 2**32 - 1)}, optional={"name": TEXT})
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "u8": st.integers(0, 2**8 - 1),
        "u16": st.integers(0, 2**16 - 1),
        "u32": st.integers(0, 2**32 - 1),
        "u64": st.integers(0, 2**64 - 1),
        "s32": st.integers(-(2**31), 2**31 - 1),
        "string": TEXT,
        "binary": st.binary(min_size=2, max_size=6),
        "flag": st.just(True),
        "nest": INNER_VALUES,
        "array": st.lists(INNER_VALUES, max_size=3),
        "several": st.lists(st.binary(max_size=9), min_size=1, max_size=3),
        "network": st.integers(0, 2**32 - 1),
    },
)


class AttributeTests(SynchronousTestCase):
    """Attributes and their tables."""

    @given(VALUES)
    @settings(max_examples=150, deadline=None)
    def test_roundTrip(self, values: dict[str, Any]) -> None:
        """What is encoded is decoded, and encoded again to the same bytes."""
        encoded = TABLE.encode(values)
        self.assertEqual(len(encoded) % 4, 0)
        for data in (encoded, bytearray(encoded), memoryview(encoded)):
            self.assertEqual(TABLE.decode(data), values)
        self.assertEqual(TABLE.encode(TABLE.decode(encoded)), encoded)

    @given(st.binary(max_size=200))
    @settings(max_examples=300, deadline=None)
    @example(attribute(9, attribute(1, b"\0" * 4) + b"\1"))
    def test_anything(self, data: bytes) -> None:
        """Any bytes decode or raise CodecError."""
        try:
            TABLE.decode(data)
        except CodecError:
            return

    @given(VALUES, st.data())
    @settings(max_examples=200, deadline=None)
    def test_damaged(self, values: dict[str, Any], data: st.DataObject) -> None:
        """So do encoded attributes with some bytes changed or cut off."""
        encoded = bytearray(TABLE.encode(values))
        for _ in range(data.draw(st.integers(0, 3))):
            if encoded:
                encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
        try:
            TABLE.decode(encoded[: data.draw(st.integers(0, len(encoded)))])
        except CodecError:
            return

    def refused(self, error: type[CodecError], *data: bytes) -> None:
        for one in data:
            self.assertRaises(error, TABLE.decode, one)

    def test_layout(self) -> None:
        """The bytes are those of the kernel."""
        little = sys.byteorder == "little"
        expected = "0600 0200 0102 0000" if little else "0006 0002 0201 0000"
        self.assertEqual(TABLE.encode({"u16": 0x0201}), bytes.fromhex(expected))
        self.assertEqual(TABLE.encode({"network": 1}), attribute(12 | NLA_F_NET_BYTEORDER, b"\0\0\0\1"))
        self.assertEqual(TABLE.encode({"string": "ab"}), attribute(6, b"ab\0"))
        self.assertEqual(TABLE.encode({"nest": {"number": 0}}), attribute(9 | NLA_F_NESTED, attribute(1, bytes(4))))
        array = attribute(10 | NLA_F_NESTED, attribute(1 | NLA_F_NESTED, attribute(1, bytes(4))))
        self.assertEqual(TABLE.encode({"array": [{"number": 0}]}), array)

    def test_lengths(self) -> None:
        """A length that does not fit, in every place."""
        self.refused(TruncatedError, b"\4", b"\4\0\1", attribute(3, b"", 3), attribute(3, b"", 0), attribute(3, b"", 5))
        self.refused(TruncatedError, attribute(3, bytes(4), 9), attribute(3, bytes(4), 65535))
        self.refused(TruncatedError, attribute(9, attribute(1, b"", 8)), attribute(10, attribute(1, b"\1\1")))

    def test_missingPadding(self) -> None:
        """The padding of the last attribute may be missing, as in the kernel."""
        self.assertEqual(TABLE.decode(attribute(1, b"\7")[:5]), {"u8": 7})

    def test_sizes(self) -> None:
        """An integer has its size, a flag none; strings and binary data have bounds."""
        self.refused(BadValueError, attribute(1, b""), attribute(1, b"ab"), attribute(4, bytes(4)), attribute(5, bytes(8)))
        self.refused(BadValueError, attribute(8, b"\1"), attribute(7, b"a"), attribute(7, b"abcdefg"))
        self.refused(BadValueError, attribute(6, b""), attribute(6, b"\0"), attribute(6, b"a"), attribute(6, b"a\0b\0"))
        self.refused(BadValueError, attribute(6, b"abcdefghijk\0"), attribute(6, b"a\0\0"))

    def test_flags(self) -> None:
        """The bits of a type stand only where they belong."""
        self.assertEqual(TABLE.decode(attribute(3 | NLA_F_NET_BYTEORDER, b"\0\0\0\1")), {"u32": 1})
        nested = attribute(1, struct.pack("=I", 5))
        self.assertEqual(TABLE.decode(attribute(9, nested)), {"nest": {"number": 5}})
        self.refused(
            BadValueError,
            attribute(3 | NLA_F_NESTED, bytes(4)),
            attribute(3 | NLA_F_NESTED | NLA_F_NET_BYTEORDER, bytes(4)),
            attribute(6 | NLA_F_NESTED, b"a\0"),
            attribute(6 | NLA_F_NET_BYTEORDER, b"a\0"),
            attribute(8 | NLA_F_NESTED, b""),
            attribute(9 | NLA_F_NET_BYTEORDER, nested),
            attribute(10 | NLA_F_NET_BYTEORDER, b""),
        )

    def test_numberOfAttributes(self) -> None:
        """Unknown, missing and repeated ones."""
        self.refused(UnknownAttributeError, attribute(99, b""), attribute(0, b""), attribute(9, attribute(7, b"")))
        self.refused(MissingAttributeError, attribute(9, b""), attribute(10, attribute(1, b"")))
        self.refused(DuplicateAttributeError, attribute(1, b"a") * 2, attribute(8, b"") * 2, attribute(11, b"") * 4)
        element = attribute(1, attribute(1, bytes(4)))
        self.assertEqual(len(TABLE.decode(attribute(10, element * 3))["array"]), 3)  # type: ignore[arg-type]
        self.refused(BadValueError, attribute(10, element * 4))

    def test_ignored(self) -> None:
        """A table may pass over what it does not know, but not over what is cut off."""
        table = AttributeTable(AttributePolicy(1, "one", Kind.U8), ignoreUnknown=True)
        self.assertEqual(table.decode(attribute(9, b"abc") + attribute(1, b"\1")), {"one": 1})
        self.assertRaises(TruncatedError, table.decode, attribute(9, b"abc", 80))

    def test_encodeRefuses(self) -> None:
        """What the other side would refuse is not encoded."""
        bad: list[tuple[type[CodecError], dict[str, Any]]] = [
            (UnknownAttributeError, {"other": 1}),
            (MissingAttributeError, {"nest": {}}),
            (DuplicateAttributeError, {"several": [b""] * 4}),
        ]
        wrong: dict[str, tuple[Any, ...]] = {
            "u8": (256, -1, "1", None, 1.0),
            "s32": (2**31, -(2**31) - 1),
            "string": ("", "x" * 11, "a\0b", b"a", "\ud800"),
            "binary": (b"a", b"abcdefg", "ab", [1, 2]),
            "flag": (1, None),
            "nest": ([], 1, b""),
            "array": ({}, [{"number": 1}] * 4, [1]),
            "several": (b"", "ab"),
        }
        bad += [(BadValueError, {name: value}) for name, several in wrong.items() for value in several]
        for error, values in bad:
            self.assertRaises(error, TABLE.encode, values)

    def test_tooLarge(self) -> None:
        """An attribute that its 16 bits of length cannot hold."""
        large = AttributePolicy(1, "data", Kind.BINARY, count=2)
        table = AttributeTable(AttributePolicy(1, "nest", Kind.NESTED, table=AttributeTable(large)))
        array = AttributeTable(AttributePolicy(1, "array", Kind.INDEXED, table=AttributeTable(large)))
        most = {"data": [bytes(MAXIMUM_PAYLOAD - 4)]}
        self.assertEqual(table.decode(table.encode({"nest": {"data": [bytes(60000)]}})), {"nest": {"data": [bytes(60000)]}})
        for values in (most, {"data": [bytes(40000)] * 2}):
            self.assertRaises(BadValueError, table.encode, {"nest": values})
            self.assertRaises(BadValueError, array.encode, {"array": [values]})

    def test_requiredOfSeveral(self) -> None:
        """An attribute that may repeat but must be there."""
        table = AttributeTable(AttributePolicy(1, "one", Kind.U8, count=2, required=True))
        self.assertRaises(MissingAttributeError, table.encode, {"one": []})
        self.assertRaises(MissingAttributeError, table.encode, {"one": ()})
        self.assertRaises(MissingAttributeError, table.decode, b"")
        self.assertEqual(table.decode(table.encode({"one": (1, 2)})), {"one": [1, 2]})

    def test_tables(self) -> None:
        """A table that contradicts itself cannot be made."""
        wrong: list[dict[str, Any]] = [
            {"number": 0},
            {"number": 0x4000},
            {"kind": Kind.NESTED},
            {"table": INNER},
            {"minimum": 5, "maximum": 4},
            {"maximum": MAXIMUM_PAYLOAD + 1},
            {"count": 0},
            {"kind": Kind.BINARY, "network": True},
        ]
        for one in wrong:
            self.assertRaises(BadValueError, AttributePolicy, **{"number": 1, "name": "x", "kind": Kind.U8, **one})
        policy = AttributePolicy(1, "x", Kind.U8)
        self.assertRaises(BadValueError, AttributeTable, policy, AttributePolicy(1, "y", Kind.U8))
        self.assertRaises(BadValueError, AttributeTable, policy, AttributePolicy(2, "x", Kind.U8))

    def test_depth(self) -> None:
        """Nesting is bounded by the tables, so that no input can exhaust the stack."""
        table = AttributeTable()
        for _ in range(codec.MAXIMUM_DEPTH - 1):
            table = AttributeTable(AttributePolicy(1, "nest", Kind.NESTED, table=table))
        deepest = table
        self.assertRaises(BadValueError, AttributeTable, AttributePolicy(1, "nest", Kind.NESTED, table=deepest))


class MessageTests(SynchronousTestCase):
    """Messages and their headers."""

    @given(
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.binary(max_size=50),
    )
    @settings(max_examples=100, deadline=None)
    def test_roundTrip(self, kind: int, flags: int, sequence: int, port: int, payload: bytes) -> None:
        """What is encoded is decoded, alone and in a row."""
        message = NetlinkMessage(kind, flags, sequence, port, payload)
        self.assertEqual(decodeMessage(message.encode()), message)
        self.assertEqual(decodeMessages(message.encode() * 3), [message] * 3)

    @given(st.binary(max_size=100))
    @settings(max_examples=300, deadline=None)
    def test_anything(self, data: bytes) -> None:
        """Any bytes decode or raise CodecError, on every level."""
        for decode in (decodeMessage, GenericMessage.decode):
            try:
                decode(data)
            except CodecError:
                continue

    @given(st.sampled_from([NLMSG_ERROR, NLMSG_DONE, 16]), st.integers(0, 0xFFFF), st.binary(max_size=80))
    @settings(max_examples=300, deadline=None)
    def test_anyAcknowledgement(self, kind: int, flags: int, payload: bytes) -> None:
        """Any acknowledgement decodes or raises CodecError."""
        try:
            Acknowledgement.decode(NetlinkMessage(kind, flags, 0, 0, payload))
        except CodecError:
            return

    def test_lengths(self) -> None:
        """A length that does not fit."""
        whole = NetlinkMessage(16, 0, 1, 2, b"payload").encode()
        self.assertEqual(len(whole), 24)
        for cut in (*range(1, 23), 15):
            self.assertRaises(TruncatedError, decodeMessages, whole[:cut])
        self.assertRaises(TruncatedError, decodeMessages, whole + b"\0")
        self.assertRaises(TruncatedError, decodeMessages, struct.pack("=IHHII", 15, 16, 0, 0, 0))
        self.assertEqual(decodeMessages(b""), [])
        self.assertRaises(BadValueError, decodeMessage, b"")
        self.assertRaises(BadValueError, decodeMessage, whole * 2)

    def test_numberOfMessages(self) -> None:
        """A datagram has a bounded number of messages."""
        self.assertRaises(BadValueError, decodeMessages, NetlinkMessage(1, 0, 0, 0, b"").encode() * 4097)

    def test_ranges(self) -> None:
        """Numbers that a header cannot hold."""
        self.assertRaises(BadValueError, NetlinkMessage(65536, 0, 0, 0, b"").encode)
        self.assertRaises(BadValueError, NetlinkMessage(0, 0, -1, 0, b"").encode)
        self.assertRaises(BadValueError, GenericMessage(256, 1, b"").encode)

    def test_generic(self) -> None:
        """The generic netlink header."""
        message = GenericMessage(3, 1, b"abcd")
        self.assertEqual(GenericMessage.decode(message.encode()), message)
        self.assertRaises(TruncatedError, GenericMessage.decode, b"\1\1\0")
        self.assertRaises(BadValueError, GenericMessage.decode, b"\1\1\1\0")


class AcknowledgementTests(SynchronousTestCase):
    """NLMSG_ERROR and NLMSG_DONE."""

    def test_roundTrip(self) -> None:
        """With and without what an extended acknowledgement adds."""
        for one in (
            Acknowledgement(0, 5, 16),
            Acknowledgement(-22, 5, 16, "wrong"),
            Acknowledgement(-4095, 0xFFFFFFFF, 16, "wrong", 24),
            Acknowledgement(-1, 5, 16, "", 0),
        ):
            message = decodeMessage(one.encode())
            self.assertEqual(message.type, NLMSG_ERROR)
            self.assertEqual(Acknowledgement.decode(message), one)

    def test_fromKernel(self) -> None:
        """As the kernel writes it: the whole request, then the attributes."""
        request = NetlinkMessage(16, 5, 7, 9, b"abcdef").encode()
        payload = struct.pack("=i", -22) + request + EXTENDED_ACK.encode({"message": "why", "offset": 20})
        message = NetlinkMessage(NLMSG_ERROR, NLM_F_ACK_TLVS, 7, 9, payload)
        self.assertEqual(Acknowledgement.decode(message), Acknowledgement(-22, 7, 16, "why", 20))
        cut = NetlinkMessage(NLMSG_ERROR, NLM_F_ACK_TLVS, 7, 9, payload[:22])
        self.assertRaises(TruncatedError, Acknowledgement.decode, cut)

    def test_done(self) -> None:
        """The end of a dump, with an error and without."""
        self.assertEqual(Acknowledgement.decode(NetlinkMessage(NLMSG_DONE, 2, 7, 9, b"")), Acknowledgement(0, 7))
        payload = struct.pack("=i", -5) + EXTENDED_ACK.encode({"message": "why"})
        message = NetlinkMessage(NLMSG_DONE, NLM_F_ACK_TLVS, 7, 9, payload)
        self.assertEqual(Acknowledgement.decode(message), Acknowledgement(-5, 7, 0, "why"))

    def test_refused(self) -> None:
        """What is no acknowledgement."""
        header = NetlinkMessage(16, 0, 7, 0, b"").encode()

        def decode(kind: int, payload: bytes, flags: int = NLM_F_CAPPED) -> Acknowledgement:
            return Acknowledgement.decode(NetlinkMessage(kind, flags, 7, 0, payload))

        self.assertRaises(BadValueError, decode, 16, b"")
        self.assertRaises(TruncatedError, decode, NLMSG_ERROR, b"")
        self.assertRaises(TruncatedError, decode, NLMSG_DONE, b"\0")
        self.assertRaises(TruncatedError, decode, NLMSG_ERROR, bytes(4) + header[:12])
        self.assertRaises(BadValueError, decode, NLMSG_ERROR, struct.pack("=i", 1) + header)
        self.assertRaises(BadValueError, decode, NLMSG_ERROR, struct.pack("=i", -4096) + header)
        other = NetlinkMessage(16, 0, 8, 0, b"").encode()
        self.assertRaises(BadValueError, decode, NLMSG_ERROR, bytes(4) + other)
        self.assertRaises(BadValueError, Acknowledgement(5, 1).encode)


class IndependenceTests(SynchronousTestCase):
    """The codec is a library of its own."""

    def test_imports(self) -> None:
        """It imports nothing but the standard library."""
        tree = ast.parse(Path(codec.__file__).read_text())
        names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names += [one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names]
        for name in names:
            self.assertIn(name.partition(".")[0], sys.stdlib_module_names)
