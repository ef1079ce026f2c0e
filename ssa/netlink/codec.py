# SPDX-License-Identifier: MIT
"""
A strict netlink codec without I/O.

Encodes and decodes C{struct nlmsghdr}, C{struct genlmsghdr}, C{NLMSG_ERROR}, C{NLMSG_DONE} and attributes (netlink(7),
C{linux/netlink.h}, C{linux/genetlink.h}).  What attributes a message may carry is data: an L{AttributeTable} of
L{AttributePolicy}.  Every length is checked before a byte behind it is read, whatever the input is; decoding gives a
value or raises a L{CodecError}, nothing else.  Integers are in native byte order, but where C{NLA_F_NET_BYTEORDER} says
otherwise.

Strings are UTF-8; bytes that are none become lone surrogates (PEP 383), since paths and process names may hold any.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Union

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_ROOT = 0x100
NLM_F_MATCH = 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_CAPPED = 0x100
"""On an NLMSG_ERROR: it holds only the header of the request, not its payload."""
NLM_F_ACK_TLVS = 0x200
"""On an NLMSG_ERROR or NLMSG_DONE: attributes of the extended acknowledgement follow."""

NLA_F_NESTED = 0x8000
NLA_F_NET_BYTEORDER = 0x4000
NLA_TYPE_MASK = 0x3FFF

MAXIMUM_PAYLOAD = 0xFFFF - 4
"""The most bytes that one attribute can hold: C{nla_len} is 16 bits and counts its own header."""

MAXIMUM_DEPTH = 8
"""How deep attributes may nest; deeper tables are refused when they are made."""

MAXIMUM_MESSAGES = 4096
"""The most messages in one datagram."""

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")

HEADER_SIZE = _HEADER.size
GENERIC_HEADER_SIZE = _GENERIC.size

Buffer = bytes | bytearray | memoryview
Value = Union[int, str, bytes, bool, Mapping[str, "Value"], Sequence["Value"]]  # noqa: UP007 - it names itself
"""What an attribute holds.  Nested: a mapping by name.  Indexed arrays and those that may repeat: a sequence."""


class CodecError(Exception):
    """Something cannot be encoded or decoded.  The base of every exception of this module."""


class TruncatedError(CodecError):
    """A length points behind the end of the data, or is shorter than its own header."""


class UnknownAttributeError(CodecError):
    """An attribute is none of its table."""


class MissingAttributeError(CodecError):
    """A required attribute is missing."""


class DuplicateAttributeError(CodecError):
    """An attribute is there more often than its policy allows."""


class BadValueError(CodecError):
    """A value has a wrong length, a wrong type or forbidden bits, or is out of range."""


class Kind(Enum):
    """The type of an attribute's payload; the names are those of the kernel's netlink specifications."""

    U8 = "u8"
    U16 = "u16"
    U32 = "u32"
    U64 = "u64"
    S32 = "s32"
    STRING = "string"
    """Ends with one NUL, which is not part of the value."""
    BINARY = "binary"
    FLAG = "flag"
    """No payload; there or not there."""
    NESTED = "nest"
    INDEXED = "indexed-array"
    """A nest whose attributes are all of one table and are numbered as an array's elements are."""


_NATIVE = {
    Kind.U8: struct.Struct("=B"),
    Kind.U16: struct.Struct("=H"),
    Kind.U32: struct.Struct("=I"),
    Kind.U64: struct.Struct("=Q"),
    Kind.S32: struct.Struct("=i"),
}
_NETWORK = {kind: struct.Struct("!" + native.format[1:]) for kind, native in _NATIVE.items()}


@dataclass(frozen=True)
class AttributePolicy:
    """
    What one attribute may be.

    @ivar number: C{nla_type}, 1 to 16383.
    @ivar name: its key in the decoded mapping.
    @ivar minimum: the least bytes of a string (without its NUL) or of binary data.
    @ivar maximum: the most of them; for C{INDEXED}: the most elements.
    @ivar required: refuse a message without it.
    @ivar count: how often it may be there.  If more than once, its value is a sequence, also when it is there once.
    @ivar network: an integer is encoded in network byte order, and says so.
    @ivar table: the attributes of a nest, or of each element of an indexed array.
    """

    number: int
    name: str
    kind: Kind
    minimum: int = 0
    maximum: int = MAXIMUM_PAYLOAD
    required: bool = False
    count: int = 1
    network: bool = False
    table: AttributeTable | None = None
    native: struct.Struct | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "native", _NATIVE.get(self.kind))
        if not 1 <= self.number <= NLA_TYPE_MASK:
            raise BadValueError(f"attribute {self.name}: {self.number} is no attribute number")
        if (self.table is not None) != (self.kind in (Kind.NESTED, Kind.INDEXED)):
            raise BadValueError(f"attribute {self.name}: a table belongs to a nest, and to nothing else")
        if not 0 <= self.minimum <= self.maximum <= MAXIMUM_PAYLOAD or self.count < 1:
            raise BadValueError(f"attribute {self.name}: its bounds contradict each other")
        if self.network and self.native is None:
            raise BadValueError(f"attribute {self.name}: only an integer has a byte order")


class AttributeTable:
    """
    The attributes that may stand in one place: a message, or a nest.

    @ivar policies: the policies by number.
    """

    def __init__(self, *policies: AttributePolicy, ignoreUnknown: bool = False) -> None:
        """
        @param ignoreUnknown: pass over attributes that are not in the table (as one has to with messages of newer kernels)
            instead of refusing them.
        @raise BadValueError: two policies have the same number or name, or the nesting is too deep.
        """
        self.policies: dict[int, AttributePolicy] = {policy.number: policy for policy in policies}
        self._names: dict[str, AttributePolicy] = {policy.name: policy for policy in policies}
        if len(self.policies) != len(policies) or len(self._names) != len(policies):
            raise BadValueError("two attributes of one table have the same number or name")
        self._required = tuple(policy.name for policy in policies if policy.required)
        self._ignoreUnknown = ignoreUnknown
        self.depth: int = 1 + max((policy.table.depth for policy in policies if policy.table is not None), default=0)
        if self.depth > MAXIMUM_DEPTH:
            raise BadValueError(f"attributes nest deeper than {MAXIMUM_DEPTH}")

    def decode(self, data: Buffer) -> dict[str, Value]:
        """
        Decode attributes.

        @return: the values by the names of their policies; a flag that is not there is left out.
        @raise CodecError: the data is not exactly what the table allows.
        """
        values: dict[str, Value] = {}
        repeated: dict[str, list[Value]] = {}
        for kindAndFlags, payload in iterateAttributes(data):
            number = kindAndFlags & NLA_TYPE_MASK
            policy = self.policies.get(number)
            if policy is None:
                if self._ignoreUnknown:
                    continue
                raise UnknownAttributeError(f"attribute {number} is not known here")
            name = policy.name
            native = policy.native
            if native is not None and kindAndFlags == number and len(payload) == native.size:
                value: Value = native.unpack(payload)[0]
            else:
                value = _decodeValue(policy, kindAndFlags & ~NLA_TYPE_MASK, payload)
            if policy.count == 1:
                if name in values:
                    raise DuplicateAttributeError(f"attribute {name} is there twice")
                values[name] = value
                continue
            several = repeated.get(name)
            if several is None:
                values[name] = several = repeated[name] = []
            elif len(several) >= policy.count:
                raise DuplicateAttributeError(f"attribute {name} is there more than {policy.count} times")
            several.append(value)
        for name in self._required:
            if name not in values:
                raise MissingAttributeError(f"attribute {name} is missing")
        return values

    def encode(self, values: Mapping[str, Value]) -> bytes:
        """
        Encode attributes, in the order of the mapping.

        @param values: by name; a flag is left out if its value is false.
        @raise CodecError: a value, or the lack of one, is not what the table allows.
        """
        pieces: list[bytes] = []
        for name, value in values.items():
            policy = self._names.get(name)
            if policy is None:
                raise UnknownAttributeError(f"attribute {name} is not known here")
            if policy.count == 1:
                _encodeAttribute(pieces, policy, value)
                continue
            if not isinstance(value, (list, tuple)):
                raise BadValueError(f"attribute {name} may repeat and takes a sequence")
            if len(value) > policy.count:
                raise DuplicateAttributeError(f"attribute {name} is there more than {policy.count} times")
            for one in value:
                _encodeAttribute(pieces, policy, one)
        for name in self._required:
            if name not in values or (self._names[name].count > 1 and not values[name]):
                raise MissingAttributeError(f"attribute {name} is missing")
        return b"".join(pieces)


def iterateAttributes(data: Buffer) -> Iterator[tuple[int, Buffer]]:
    """
    Cut data into attributes.

    @return: C{nla_type} with its flags, and the payload.
    @raise TruncatedError: a length does not fit.  The padding behind the last attribute may be missing, as in the kernel.
    """
    offset = 0
    end = len(data)
    while offset < end:
        if end - offset < 4:
            raise TruncatedError(f"{end - offset} bytes are too few for an attribute's header")
        length, kindAndFlags = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or length > end - offset:
            raise TruncatedError(f"an attribute of {length} bytes where {end - offset} are left")
        yield kindAndFlags, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _decodeValue(policy: AttributePolicy, flags: int, payload: Buffer) -> Value:
    """Decode one payload in every case; the common one of a native integer is done inline by the caller."""
    kind = policy.kind
    name = policy.name
    native = policy.native
    if native is not None:
        if flags not in (0, NLA_F_NET_BYTEORDER):
            raise BadValueError(f"attribute {name} is no nest")
        if len(payload) != native.size:
            raise BadValueError(f"attribute {name} has {native.size} bytes, not {len(payload)}")
        number: int = (_NETWORK[kind] if flags else native).unpack(payload)[0]
        return number
    if policy.table is not None:
        if flags not in (0, NLA_F_NESTED):
            raise BadValueError(f"attribute {name} is a nest, and has no byte order")
        if kind is Kind.NESTED:
            return policy.table.decode(payload)
        elements: list[Value] = []
        for _, element in iterateAttributes(payload):
            if len(elements) >= policy.maximum:
                raise BadValueError(f"attribute {name} has more than {policy.maximum} elements")
            elements.append(policy.table.decode(element))
        return elements
    if flags:
        raise BadValueError(f"attribute {name} is neither a nest nor an integer")
    if kind is Kind.FLAG:
        if payload:
            raise BadValueError(f"attribute {name} is a flag, and has no value")
        return True
    raw = bytes(payload)
    if kind is Kind.STRING:
        if not raw.endswith(b"\0"):
            raise BadValueError(f"attribute {name} does not end with a NUL")
        raw = raw[:-1]
        if b"\0" in raw:
            raise BadValueError(f"attribute {name} has a NUL inside")
    if not policy.minimum <= len(raw) <= policy.maximum:
        raise BadValueError(f"attribute {name} has {policy.minimum} to {policy.maximum} bytes, not {len(raw)}")
    return raw.decode("utf-8", "surrogateescape") if kind is Kind.STRING else raw


def _encodeAttribute(pieces: list[bytes], policy: AttributePolicy, value: Value) -> None:
    """Append one attribute with its header and padding."""
    flags = 0
    if policy.native is not None:
        if not isinstance(value, int):
            raise BadValueError(f"attribute {policy.name} takes an integer")
        if policy.network:
            flags = NLA_F_NET_BYTEORDER
        try:
            payload = (_NETWORK[policy.kind] if flags else policy.native).pack(value)
        except struct.error:
            raise BadValueError(f"attribute {policy.name}: {value} is out of range for {policy.kind.value}") from None
    elif policy.kind is Kind.FLAG:
        if not isinstance(value, bool):
            raise BadValueError(f"attribute {policy.name} is a flag, and takes a bool")
        if not value:
            return
        payload = b""
    elif policy.table is not None:
        flags = NLA_F_NESTED
        payload = _encodeNest(policy, policy.table, value)
    else:
        payload = _encodeBytes(policy, value)
    if len(payload) > MAXIMUM_PAYLOAD:
        raise BadValueError(f"attribute {policy.name} of {len(payload)} bytes does not fit")
    pieces.append(_ATTRIBUTE.pack(len(payload) + 4, policy.number | flags))
    pieces.append(payload)
    if len(payload) & 3:
        pieces.append(bytes(-len(payload) & 3))


def _encodeNest(policy: AttributePolicy, table: AttributeTable, value: Value) -> bytes:
    """Encode what a nest or an indexed array holds; elements are numbered from 1, as the kernel does."""
    if policy.kind is Kind.NESTED:
        if not isinstance(value, Mapping):
            raise BadValueError(f"attribute {policy.name} is a nest, and takes a mapping")
        return table.encode(value)
    if not isinstance(value, (list, tuple)):
        raise BadValueError(f"attribute {policy.name} is an array, and takes a sequence")
    if len(value) > policy.maximum:
        raise BadValueError(f"attribute {policy.name} has more than {policy.maximum} elements")
    pieces: list[bytes] = []
    for number, element in enumerate(value, 1):
        if not isinstance(element, Mapping):
            raise BadValueError(f"attribute {policy.name} takes a sequence of mappings")
        inner = table.encode(element)
        if len(inner) > MAXIMUM_PAYLOAD:
            raise BadValueError(f"an element of {policy.name} does not fit")
        pieces += (_ATTRIBUTE.pack(len(inner) + 4, number | NLA_F_NESTED), inner, bytes(-len(inner) & 3))
    return b"".join(pieces)


def _encodeBytes(policy: AttributePolicy, value: Value) -> bytes:
    """Encode a string or binary data."""
    if policy.kind is Kind.STRING:
        if not isinstance(value, str):
            raise BadValueError(f"attribute {policy.name} takes a string")
        try:
            raw = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise BadValueError(f"attribute {policy.name} cannot be written in UTF-8") from None
        if b"\0" in raw:
            raise BadValueError(f"attribute {policy.name} has a NUL inside")
        end = b"\0"
    else:
        if not isinstance(value, (bytes, bytearray)):
            raise BadValueError(f"attribute {policy.name} takes bytes")
        raw = bytes(value)
        end = b""
    if not policy.minimum <= len(raw) <= policy.maximum:
        raise BadValueError(f"attribute {policy.name} has {policy.minimum} to {policy.maximum} bytes, not {len(raw)}")
    return raw + end


@dataclass(frozen=True)
class NetlinkMessage:
    """
    One netlink message.

    @ivar type: C{nlmsg_type}.
    @ivar flags: C{nlmsg_flags}.
    @ivar sequence: C{nlmsg_seq}.
    @ivar port: C{nlmsg_pid}: the port id of the sender.
    @ivar payload: what follows the header, without padding.
    """

    type: int
    flags: int
    sequence: int
    port: int
    payload: Buffer

    def encode(self) -> bytes:
        """
        Encode the message, padded to four bytes.

        @raise BadValueError: a number is out of range.
        """
        size = HEADER_SIZE + len(self.payload)
        try:
            header = _HEADER.pack(size, self.type, self.flags, self.sequence, self.port)
        except struct.error as error:
            raise BadValueError(f"a message's header cannot be encoded: {error}") from None
        return b"".join((header, self.payload, bytes(-size & 3)))


def decodeMessages(data: Buffer) -> list[NetlinkMessage]:
    """
    Cut a datagram into its messages.

    @raise TruncatedError: a length does not fit.
    @raise BadValueError: there are more than L{MAXIMUM_MESSAGES}.
    """
    messages: list[NetlinkMessage] = []
    offset = 0
    end = len(data)
    while offset < end:
        if end - offset < HEADER_SIZE:
            raise TruncatedError(f"{end - offset} bytes are too few for a message's header")
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < HEADER_SIZE or length > end - offset:
            raise TruncatedError(f"a message of {length} bytes where {end - offset} are left")
        if len(messages) >= MAXIMUM_MESSAGES:
            raise BadValueError(f"a datagram has more than {MAXIMUM_MESSAGES} messages")
        payload = data[offset + HEADER_SIZE : offset + length]
        messages.append(NetlinkMessage(kind, flags, sequence, port, payload))
        offset += (length + 3) & ~3
    return messages


def decodeMessage(data: Buffer) -> NetlinkMessage:
    """
    Decode a datagram that holds exactly one message.

    @raise CodecError: it holds none, several, or something else.
    """
    messages = decodeMessages(data)
    if len(messages) != 1:
        raise BadValueError(f"a datagram has {len(messages)} messages instead of one")
    return messages[0]


@dataclass(frozen=True)
class GenericMessage:
    """
    What a generic netlink message holds.

    @ivar command: C{genlmsghdr.cmd}.
    @ivar version: C{genlmsghdr.version}.
    @ivar attributes: the encoded attributes.
    """

    command: int
    version: int
    attributes: Buffer

    def encode(self) -> bytes:
        """
        Encode it as the payload of a L{NetlinkMessage}.

        @raise BadValueError: a number is out of range.
        """
        try:
            return _GENERIC.pack(self.command, self.version, 0) + self.attributes
        except struct.error as error:
            raise BadValueError(f"a generic netlink header cannot be encoded: {error}") from None

    @classmethod
    def decode(cls, payload: Buffer) -> GenericMessage:
        """
        Decode the payload of a L{NetlinkMessage}.

        @raise CodecError: it is too short, or its reserved bits are set.
        """
        if len(payload) < GENERIC_HEADER_SIZE:
            raise TruncatedError(f"{len(payload)} bytes are too few for a generic netlink header")
        command, version, reserved = _GENERIC.unpack_from(payload)
        if reserved:
            raise BadValueError("reserved bits of a generic netlink header are set")
        return cls(command, version, payload[GENERIC_HEADER_SIZE:])


EXTENDED_ACK = AttributeTable(
    AttributePolicy(1, "message", Kind.STRING),
    AttributePolicy(2, "offset", Kind.U32),
    AttributePolicy(5, "missingType", Kind.U32),
    AttributePolicy(6, "missingNest", Kind.U32),
    ignoreUnknown=True,
)
"""C{enum nlmsgerr_attrs}, as far as it says something to a person."""


@dataclass(frozen=True)
class Acknowledgement:
    """
    An C{NLMSG_ERROR} or C{NLMSG_DONE}: how a request ended.

    @ivar error: 0, or a negative errno.
    @ivar sequence: C{nlmsg_seq} of the request.
    @ivar requestType: C{nlmsg_type} of the request; 0 with C{NLMSG_DONE}, which does not carry it.
    @ivar message: what the extended acknowledgement says, or "".
    @ivar offset: the offset of the attribute at fault in the request, from the extended acknowledgement.
    """

    error: int
    sequence: int
    requestType: int = 0
    message: str = ""
    offset: int | None = None

    def encode(self, port: int = 0) -> bytes:
        """
        Encode it as a whole C{NLMSG_ERROR} message that does not repeat the request's payload.

        @param port: the port id of the one who asked.
        @raise BadValueError: a number is out of range, or C{error} is positive.
        """
        if not -4095 <= self.error <= 0:
            raise BadValueError(f"{self.error} is neither 0 nor a negative errno")
        values: dict[str, Value] = {}
        if self.message:
            values["message"] = self.message
        if self.offset is not None:
            values["offset"] = self.offset
        flags = NLM_F_CAPPED | (NLM_F_ACK_TLVS if values else 0)
        request = NetlinkMessage(self.requestType, 0, self.sequence, port, b"").encode()
        payload = _ERROR.pack(self.error) + request + EXTENDED_ACK.encode(values)
        return NetlinkMessage(NLMSG_ERROR, flags, self.sequence, port, payload).encode()

    @classmethod
    def decode(cls, message: NetlinkMessage) -> Acknowledgement:
        """
        Decode an C{NLMSG_ERROR} or C{NLMSG_DONE}.

        @raise CodecError: it is another message, is too short, holds a number that is no error, or belongs to another request.
        """
        payload = message.payload
        if message.type not in (NLMSG_ERROR, NLMSG_DONE):
            raise BadValueError(f"a message of type {message.type} acknowledges nothing")
        isError = message.type == NLMSG_ERROR
        if len(payload) < _ERROR.size:
            if payload or isError:
                raise TruncatedError(f"{len(payload)} bytes are too few for an acknowledgement")
            return cls(0, message.sequence)
        error = _ERROR.unpack_from(payload)[0]
        if not -4095 <= error <= 0:
            raise BadValueError(f"{error} is neither 0 nor a negative errno")
        start = _ERROR.size
        requestType = 0
        if isError:
            if len(payload) < start + HEADER_SIZE:
                raise TruncatedError("an acknowledgement lacks the header of its request")
            length, requestType, _, sequence, _ = _HEADER.unpack_from(payload, start)
            if sequence != message.sequence:
                raise BadValueError("an acknowledgement and the request in it have different numbers")
            if message.flags & NLM_F_CAPPED:
                start += HEADER_SIZE
            else:
                if length < HEADER_SIZE or length > len(payload) - start:
                    raise TruncatedError("the request in an acknowledgement is cut off")
                start += (length + 3) & ~3
        values: dict[str, Value] = {}
        if message.flags & NLM_F_ACK_TLVS:
            values = EXTENDED_ACK.decode(payload[start:])
        text = values.get("message", "")
        offset = values.get("offset")
        return cls(
            error,
            message.sequence,
            requestType,
            text if isinstance(text, str) else "",
            offset if isinstance(offset, int) else None,
        )
