# SPDX-License-Identifier: MIT
"""
How a message of the protocol is carried: its numbers, its attributes, and the base of all message classes.

C{kernel-module/ssa.yaml} is the definition of all that is here; a test compares them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_type_hints

from ssa.api import Address, DataPath, InternetAddress, Role, decodeAddress, encodeAddress
from ssa.errors import SSAError
from ssa.netlink.codec import (
    MAXIMUM_PAYLOAD,
    AttributePolicy,
    AttributeTable,
    BadValueError,
    Buffer,
    GenericMessage,
    Kind,
    MissingAttributeError,
    NetlinkMessage,
    Value,
    decodeMessage,
)

FAMILY_NAME = "SSA"
MULTICAST_GROUP = "notify"
PROTOCOL_VERSION = 1
"""What L{Register} carries; another one is refused with EPROTONOSUPPORT."""

SUPERVISED_TYPE = 0x20
"""C{nlmsg_type} on the unix socket, where no family has to be looked up."""

MAXIMUM_VALUE = 1 << 20
"""The most bytes of an option's value, over all OPTVAL attributes of its message."""

MAXIMUM_NAME = 16
"""The most bytes of COMM, as C{TASK_COMM_LEN} of the kernel."""

MAXIMUM_PATH = 4095
"""The most bytes of a path, as C{PATH_MAX} without the NUL."""


class Command(IntEnum):
    """C{genlmsghdr.cmd}."""

    SOCKET_NOTIFY = 1
    SETSOCKOPT_NOTIFY = 2
    GETSOCKOPT_NOTIFY = 3
    BIND_NOTIFY = 4
    CONNECT_NOTIFY = 5
    LISTEN_NOTIFY = 6
    ACCEPT_NOTIFY = 7
    CLOSE_NOTIFY = 8
    RETURN = 9
    DATA_RETURN = 10
    HANDSHAKE_RETURN = 11
    REGISTER = 12
    NEXT = 13
    FETCH = 14
    ESTABLISHED = 15
    ACCEPTED = 16
    EOF = 17
    UPGRADE_NOTIFY = 18


class Attribute(IntEnum):
    """C{nla_type}."""

    ID = 1
    BLOCKING = 2
    COMM = 3
    SOCKADDR_INTERNAL = 4
    SOCKADDR_EXTERNAL = 5
    SOCKADDR_REMOTE = 6
    OPTLEVEL = 7
    OPTNAME = 8
    OPTVAL = 9
    RETURN = 10
    EVENT = 11
    PID = 12
    UID = 13
    EXECUTABLE = 14
    EXECUTABLE_DEVICE = 15
    EXECUTABLE_INODE = 16
    MOUNT_NAMESPACE = 17
    NETWORK_NAMESPACE = 18
    ROLE = 19
    FAMILY = 20
    NEW_ID = 21
    DATA_PATH = 22
    FILE = 23
    BACKLOG = 24
    VERSION = 25
    FD = 26
    DAEMON = 27


@dataclass(frozen=True)
class Shape:
    """
    An attribute, whatever message it stands in.

    @ivar minimum: the least bytes of a string (without its NUL) or of binary data.
    @ivar maximum: the most of them.
    @ivar count: how often it may be there.
    """

    kind: Kind
    minimum: int = 0
    maximum: int = MAXIMUM_PAYLOAD
    count: int = 1


_U8, _U16, _U32, _U64, _S32 = (Shape(kind) for kind in (Kind.U8, Kind.U16, Kind.U32, Kind.U64, Kind.S32))
_SOCKADDR = Shape(Kind.BINARY, 2, 128)
_PATH = Shape(Kind.STRING, 0, MAXIMUM_PATH)

SHAPES: dict[Attribute, Shape] = {
    Attribute.ID: _U64,
    Attribute.BLOCKING: _U8,
    Attribute.COMM: Shape(Kind.STRING, 0, MAXIMUM_NAME),
    Attribute.SOCKADDR_INTERNAL: _SOCKADDR,
    Attribute.SOCKADDR_EXTERNAL: _SOCKADDR,
    Attribute.SOCKADDR_REMOTE: _SOCKADDR,
    Attribute.OPTLEVEL: _S32,
    Attribute.OPTNAME: _S32,
    Attribute.OPTVAL: Shape(Kind.BINARY, 0, MAXIMUM_PAYLOAD, -(-MAXIMUM_VALUE // MAXIMUM_PAYLOAD)),
    Attribute.RETURN: _S32,
    Attribute.EVENT: _U64,
    Attribute.PID: _U32,
    Attribute.UID: _U32,
    Attribute.EXECUTABLE: _PATH,
    Attribute.EXECUTABLE_DEVICE: _U64,
    Attribute.EXECUTABLE_INODE: _U64,
    Attribute.MOUNT_NAMESPACE: _U64,
    Attribute.NETWORK_NAMESPACE: _U64,
    Attribute.ROLE: _U8,
    Attribute.FAMILY: _U16,
    Attribute.NEW_ID: _U64,
    Attribute.DATA_PATH: _U8,
    Attribute.FILE: _PATH,
    Attribute.BACKLOG: _U32,
    Attribute.VERSION: _U32,
    Attribute.FD: _U32,
    Attribute.DAEMON: _U64,
}


def _isValue(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise BadValueError("an option's value is bytes")
    if len(value) > MAXIMUM_VALUE:
        raise BadValueError(f"an option's value has at most {MAXIMUM_VALUE} bytes, not {len(value)}")
    return value


def _cut(value: Any) -> list[bytes]:
    _isValue(value)
    return [value[start : start + MAXIMUM_PAYLOAD] for start in range(0, len(value) or 1, MAXIMUM_PAYLOAD)]


def _join(value: Any) -> bytes:
    return _isValue(b"".join(value))


def _toAddress(value: Any) -> Address:
    try:
        return decodeAddress(value)
    except SSAError as error:
        raise BadValueError(error.reason) from None


def _toInternetAddress(value: Any) -> InternetAddress:
    address = _toAddress(value)
    if not isinstance(address, InternetAddress):
        raise BadValueError("a host name stands where only an Internet address may")
    return address


def _fromAddress(value: Address) -> bytes:
    try:
        return encodeAddress(value)
    except SSAError as error:
        raise BadValueError(error.reason) from None


def _fromInternetAddress(value: Address) -> bytes:
    if not isinstance(value, InternetAddress):
        raise BadValueError("a host name stands where only an Internet address may")
    return _fromAddress(value)


def _within(low: int, high: int, what: str) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not low <= value <= high:
            raise BadValueError(f"{what} is {low} to {high}, not {value}")
        return int(value)

    return check


def _isFamily(value: Any) -> int:
    if value not in (socket.AF_INET, socket.AF_INET6):
        raise BadValueError(f"address family {value} is neither AF_INET nor AF_INET6")
    return int(value)


def _toBool(value: Any) -> bool:
    if value not in (0, 1):
        raise BadValueError(f"a truth value is 0 or 1, not {value}")
    return bool(value)


def _member(enumeration: type[IntEnum]) -> Callable[[Any], IntEnum]:
    def convert(value: Any) -> IntEnum:
        try:
            return enumeration(value)
        except ValueError:
            raise BadValueError(f"{value} is no {enumeration.__name__}") from None

    return convert


_error = _within(-4095, 0, "a result")
_eventNumber = _within(1, (1 << 64) - 1, "an event's number")

_DECODE: dict[Attribute, Callable[[Any], Any]] = {
    Attribute.BLOCKING: _toBool,
    Attribute.SOCKADDR_EXTERNAL: _toInternetAddress,
    Attribute.SOCKADDR_REMOTE: _toInternetAddress,
    Attribute.OPTVAL: _join,
    Attribute.RETURN: _error,
    Attribute.EVENT: _eventNumber,
    Attribute.ROLE: _member(Role),
    Attribute.FAMILY: _isFamily,
    Attribute.DATA_PATH: _member(DataPath),
}
_ENCODE: dict[Attribute, Callable[[Any], Any]] = {
    Attribute.BLOCKING: lambda value: int(_toBool(value)),
    Attribute.SOCKADDR_EXTERNAL: _fromInternetAddress,
    Attribute.SOCKADDR_REMOTE: _fromInternetAddress,
    Attribute.OPTVAL: _cut,
    Attribute.RETURN: _error,
    Attribute.EVENT: _eventNumber,
    Attribute.ROLE: _member(Role),
    Attribute.FAMILY: _isFamily,
    Attribute.DATA_PATH: _member(DataPath),
}


class _Part(NamedTuple):
    """How one field of a message is carried."""

    field: str
    attribute: Attribute
    key: str
    default: Any
    decode: Callable[[Any], Any] | None
    encode: Callable[[Any], Any] | None


MessageType = TypeVar("MessageType", bound="Message")


class Message:
    """
    The base of all messages.

    Each field of a subclass is annotated with the L{Attribute} that carries it; one with a default is left out where it has
    that value.

    @cvar command: its number.
    @cvar table: the attributes that it may carry.
    @cvar parts: how each field is carried.
    @cvar valueField: the name of the field that OPTVAL carries, or "".
    """

    command: ClassVar[Command]
    table: ClassVar[AttributeTable]
    parts: ClassVar[tuple[_Part, ...]] = ()
    valueField: ClassVar[str] = ""

    def encode(self, sequence: int = 0, type: int = SUPERVISED_TYPE, flags: int = 0, detached: bool = False) -> bytes:
        """
        Encode the whole frame.

        @param sequence: C{nlmsg_seq}: the number of a request, which its reply repeats.
        @param type: C{nlmsg_type}: the family's number with netlink.
        @param flags: C{nlmsg_flags}.
        @param detached: leave out the value (L{valueField}): it travels beside the frame.
        @raise CodecError: a field cannot be encoded.
        """
        return NetlinkMessage(type, flags, sequence, 0, self.payload(detached)).encode()

    def payload(self, detached: bool = False) -> bytes:
        """
        Encode what follows C{nlmsghdr}.

        @param detached: as for L{encode}.
        @raise CodecError: a field cannot be encoded.
        """
        values: dict[str, Value] = {}
        for name, attribute, key, default, _, convert in self.parts:
            value = getattr(self, name)
            if default is not MISSING and value == default:
                continue
            if detached and attribute is Attribute.OPTVAL:
                _isValue(value)
                continue
            values[key] = value if convert is None else convert(value)
        return GenericMessage(self.command, PROTOCOL_VERSION, self.table.encode(values)).encode()

    @classmethod
    def decode(cls: type[MessageType], frame: Buffer, detached: bytes | None = None) -> MessageType:
        """
        Decode a whole frame that has to be this message.

        @param detached: the value that came beside the frame.
        @raise CodecError: it is malformed, or another message.
        """
        message = GenericMessage.decode(decodeMessage(frame).payload)
        if message.command != cls.command:
            raise BadValueError(f"command {message.command} is not {cls.command.name}")
        return cls.fromGeneric(message, detached)

    @classmethod
    def fromGeneric(cls: type[MessageType], message: GenericMessage, detached: bytes | None = None) -> MessageType:
        """
        Decode the attributes.

        @param detached: the value that came beside the frame.
        @raise CodecError: they are not exactly those of this message.
        """
        if message.version != PROTOCOL_VERSION:
            raise BadValueError(f"version {message.version} of the protocol is not {PROTOCOL_VERSION}")
        values = cls.table.decode(message.attributes)
        if detached is not None:
            if not cls.valueField or Attribute.OPTVAL.name in values:
                raise BadValueError(f"{cls.command.name} came with a value that does not belong to it")
            values[Attribute.OPTVAL.name] = (detached,)
        arguments = []
        for _, _, key, default, convert, _ in cls.parts:
            value = values.get(key, MISSING)
            if value is MISSING:
                if default is MISSING:
                    raise MissingAttributeError(f"attribute {key} is missing")
                arguments.append(default)
            else:
                arguments.append(value if convert is None else convert(value))
        return cls(*arguments)


def message(command: Command) -> Callable[[type[MessageType]], type[MessageType]]:
    """Derive how a message is encoded from the annotations of its fields."""

    def complete(cls: type[MessageType]) -> type[MessageType]:
        parts: list[_Part] = []
        hints = get_type_hints(cls, include_extras=True)
        for one in fields(cls):  # type: ignore[arg-type]
            kind, attribute = get_args(hints[one.name])[:2]
            decode, encode = _DECODE.get(attribute), _ENCODE.get(attribute)
            if kind == Address:
                decode, encode = _toAddress, _fromAddress
            parts.append(_Part(one.name, attribute, attribute.name, one.default, decode, encode))
            if attribute is Attribute.OPTVAL:
                cls.valueField = one.name
        cls.command = command
        cls.parts = tuple(parts)
        cls.table = AttributeTable(
            *(
                AttributePolicy(
                    part.attribute,
                    part.key,
                    SHAPES[part.attribute].kind,
                    SHAPES[part.attribute].minimum,
                    SHAPES[part.attribute].maximum,
                    count=SHAPES[part.attribute].count,
                )
                for part in parts
            )
        )
        return cls

    return complete
