# SPDX-License-Identifier: MIT
"""
The messages between an interceptor and the daemon: one frozen class each.

C{kernel-module/ssa.yaml} is the definition; a test compares it with this module.  Each message is a generic netlink
message of the family "SSA".  Four kinds:

  - an L{Event} goes from the interceptor to the daemon and carries a number that is unique per link;
  - an L{Answer} goes back and names the event.  L{Event.wantsAnswer} says which events get exactly one, and which none;
  - a L{Request} goes from the daemon to the interceptor, with a C{nlmsg_seq};
  - its L{Reply} has the same command and C{nlmsg_seq}; a request without a result, or with an error, gets an
    C{NLMSG_ERROR} instead (L{ssa.netlink.codec.Acknowledgement}).

Decoding refuses whatever is malformed, missing, repeated, unknown or out of range with a
L{CodecError<ssa.netlink.codec.CodecError>}, and raises nothing else.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import IntEnum
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args, get_type_hints

from ssa.api import Address, DataPath, InternetAddress, Role, decodeAddress, encodeAddress
from ssa.errors import SSAError
from ssa.netlink.codec import (
    MAXIMUM_PAYLOAD,
    NLMSG_ERROR,
    Acknowledgement,
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
        values: dict[str, Value] = {}
        for name, attribute, key, default, _, convert in self.parts:
            value = getattr(self, name)
            if default is not MISSING and value == default:
                continue
            if detached and attribute is Attribute.OPTVAL:
                _isValue(value)
                continue
            values[key] = value if convert is None else convert(value)
        payload = GenericMessage(self.command, PROTOCOL_VERSION, self.table.encode(values)).encode()
        return NetlinkMessage(type, flags, sequence, 0, payload).encode()

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


def _message(command: Command) -> Callable[[type[MessageType]], type[MessageType]]:
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


_EventNumber = Annotated[int, Attribute.EVENT]
_ID = Annotated[int, Attribute.ID]
_MaybeExternal = Annotated[InternetAddress | None, Attribute.SOCKADDR_EXTERNAL]
_External = Annotated[InternetAddress, Attribute.SOCKADDR_EXTERNAL]
_Remote = Annotated[InternetAddress, Attribute.SOCKADDR_REMOTE]


@dataclass(frozen=True)
class Event(Message):
    """
    Something that a program did, from the interceptor.

    @ivar event: the number of the event, unique per link, never 0.
    @ivar id: the number of the TLS socket, unique per link while the link lives.
    """

    event: _EventNumber
    id: _ID

    wantsAnswer: ClassVar[bool] = True


@dataclass(frozen=True)
class Answer(Message):
    """
    The daemon's one answer to an event.

    @ivar event: the number of the event.
    @ivar id: the TLS socket of the event.
    """

    event: _EventNumber
    id: _ID


@dataclass(frozen=True)
class Request(Message):
    """Something that the daemon asks of the interceptor."""


@dataclass(frozen=True)
class Reply(Message):
    """The result of a request that has one."""


@_message(Command.SOCKET_NOTIFY)
@dataclass(frozen=True)
class SocketNotify(Event):
    """
    A program asks for a TLS socket.  Answer: L{Return}.

    @ivar family: AF_INET or AF_INET6.
    @ivar pid: the process (its thread group), in the interceptor's PID namespace.
    @ivar uid: the effective user id.
    @ivar comm: the process's name.
    @ivar executable: the path of the program.
    @ivar executableDevice: C{st_dev} of the program.
    @ivar executableInode: C{st_ino} of the program.
    @ivar mountNamespace: the inode number of the process's mount namespace, in which the path holds.
    @ivar networkNamespace: the inode number of the process's network namespace.
    """

    family: Annotated[int, Attribute.FAMILY]
    pid: Annotated[int, Attribute.PID]
    uid: Annotated[int, Attribute.UID]
    comm: Annotated[str, Attribute.COMM]
    executable: Annotated[str, Attribute.EXECUTABLE]
    executableDevice: Annotated[int, Attribute.EXECUTABLE_DEVICE]
    executableInode: Annotated[int, Attribute.EXECUTABLE_INODE]
    mountNamespace: Annotated[int, Attribute.MOUNT_NAMESPACE]
    networkNamespace: Annotated[int, Attribute.NETWORK_NAMESPACE]


@_message(Command.SETSOCKOPT_NOTIFY)
@dataclass(frozen=True)
class SetsockoptNotify(Event):
    """
    A program sets an option.  Answer: L{Return}.

    At level 205 it is a TLS option; at another level the program set it on a live connection.

    @ivar level: as in setsockopt(2).
    @ivar name: as in setsockopt(2).
    @ivar value: the value, or what the file held that the value names; at most L{MAXIMUM_VALUE} bytes.
    @ivar file: the path of that file, which the interceptor has read with the program's rights; or "".
    """

    level: Annotated[int, Attribute.OPTLEVEL]
    name: Annotated[int, Attribute.OPTNAME]
    value: Annotated[bytes, Attribute.OPTVAL]
    file: Annotated[str, Attribute.FILE] = ""

    def __repr__(self) -> str:
        """Without the value: it may be a private key."""
        return (
            f"SetsockoptNotify(event={self.event}, id={self.id}, level={self.level}, name={self.name}, "
            f"value=<{len(self.value)} bytes>, file={self.file!r})"
        )


@_message(Command.GETSOCKOPT_NOTIFY)
@dataclass(frozen=True)
class GetsockoptNotify(Event):
    """A program gets a TLS option.  Answer: L{DataReturn}, or L{Return} with an error."""

    level: Annotated[int, Attribute.OPTLEVEL]
    name: Annotated[int, Attribute.OPTNAME]


@_message(Command.BIND_NOTIFY)
@dataclass(frozen=True)
class BindNotify(Event):
    """The real socket is bound.  Answer: L{Return}."""

    external: _External


@_message(Command.CONNECT_NOTIFY)
@dataclass(frozen=True)
class ConnectNotify(Event):
    """
    A program connects.  Answer: L{HandshakeReturn}.

    @ivar blocking: whether the program waits.
    @ivar remote: where to; a L{HostnameAddress<ssa.api.HostnameAddress>} is for the daemon to resolve.
    @ivar external: the local address of the real socket, where it has one yet.
    """

    blocking: Annotated[bool, Attribute.BLOCKING]
    remote: Annotated[Address, Attribute.SOCKADDR_REMOTE]
    external: _MaybeExternal = None


@_message(Command.LISTEN_NOTIFY)
@dataclass(frozen=True)
class ListenNotify(Event):
    """
    A program listens.  Answer: L{Return}.

    @ivar backlog: as in listen(2), already limited by the kernel's C{somaxconn}.
    @ivar external: the address of the real listener.
    """

    backlog: Annotated[int, Attribute.BACKLOG]
    external: _External


@_message(Command.ACCEPT_NOTIFY)
@dataclass(frozen=True)
class AcceptNotify(Event):
    """A program took that accepted connection.  No answer.  The fields are those of L{SocketNotify}."""

    pid: Annotated[int, Attribute.PID]
    uid: Annotated[int, Attribute.UID]
    comm: Annotated[str, Attribute.COMM]
    executable: Annotated[str, Attribute.EXECUTABLE]
    executableDevice: Annotated[int, Attribute.EXECUTABLE_DEVICE]
    executableInode: Annotated[int, Attribute.EXECUTABLE_INODE]
    mountNamespace: Annotated[int, Attribute.MOUNT_NAMESPACE]
    networkNamespace: Annotated[int, Attribute.NETWORK_NAMESPACE]

    wantsAnswer: ClassVar[bool] = False


@_message(Command.CLOSE_NOTIFY)
@dataclass(frozen=True)
class CloseNotify(Event):
    """The last descriptor of a socket is gone.  No answer; no event with this id follows."""

    wantsAnswer: ClassVar[bool] = False


@_message(Command.UPGRADE_NOTIFY)
@dataclass(frozen=True)
class UpgradeNotify(Event):
    """
    A program hands over a connected TCP socket (TLS_UPGRADE).  Answer: L{HandshakeReturn}.

    @ivar role: which side of TLS to take.
    @ivar blocking: whether the program waits.
    @ivar external: the connection's local address.
    @ivar remote: its peer's address.
    """

    role: Annotated[Role, Attribute.ROLE]
    blocking: Annotated[bool, Attribute.BLOCKING]
    external: _External
    remote: _Remote


@_message(Command.RETURN)
@dataclass(frozen=True)
class Return(Answer):
    """
    The result of an event without a value.

    @ivar result: 0, or a negative errno.
    """

    result: Annotated[int, Attribute.RETURN]


@_message(Command.DATA_RETURN)
@dataclass(frozen=True)
class DataReturn(Answer):
    """
    The value of an option; it always means success.

    @ivar value: at most L{MAXIMUM_VALUE} bytes.
    """

    value: Annotated[bytes, Attribute.OPTVAL]

    def __repr__(self) -> str:
        """Without the value, which may be long and is nobody's business in a log."""
        return f"DataReturn(event={self.event}, id={self.id}, value=<{len(self.value)} bytes>)"


@_message(Command.HANDSHAKE_RETURN)
@dataclass(frozen=True)
class HandshakeReturn(Answer):
    """
    How a handshake ended.

    @ivar result: 0, or a negative errno.
    """

    result: Annotated[int, Attribute.RETURN]


@_message(Command.REGISTER)
@dataclass(frozen=True)
class Register(Request):
    """
    The daemon is there; the first request on a link.  Reply: an acknowledgement.

    @ivar version: L{PROTOCOL_VERSION}.
    """

    version: Annotated[int, Attribute.VERSION] = PROTOCOL_VERSION


@_message(Command.NEXT)
@dataclass(frozen=True)
class Next(Request):
    """
    Netlink only: the next event, or ENOENT where there is none.

    The kernel sends NEXT to the group "notify" when there is one.
    """


@_message(Command.FETCH)
@dataclass(frozen=True)
class Fetch(Request):
    """
    Hand over the real TCP socket.  Reply: L{FetchReply} with a descriptor.

    @ivar id: the TLS socket.
    @ivar remote: make a new real socket and connect it to this address; L{None}: the one that there is.
    """

    id: _ID
    remote: Annotated[InternetAddress | None, Attribute.SOCKADDR_REMOTE] = None


@_message(Command.ESTABLISHED)
@dataclass(frozen=True)
class Established(Request):
    """
    A handshake has succeeded.  Reply: L{EstablishedReply} with the plaintext end.

    @ivar external: the connection's local address.
    @ivar remote: its peer's address.
    @ivar dataPath: what carries its data.
    """

    id: _ID
    external: _External
    remote: _Remote
    dataPath: Annotated[DataPath, Attribute.DATA_PATH]


@_message(Command.ACCEPTED)
@dataclass(frozen=True)
class Accepted(Request):
    """
    A listener has a finished connection.  Reply: L{AcceptedReply} with its plaintext end, perhaps much later.

    @ivar id: the listener.
    @ivar external: the connection's local address.
    @ivar remote: its peer's address.
    """

    id: _ID
    external: _External
    remote: _Remote


@_message(Command.EOF)
@dataclass(frozen=True)
class EndOfStream(Request):
    """Netlink only: the peer's close_notify came; the stream ends cleanly.  Reply: an acknowledgement."""

    id: _ID


@_message(Command.FETCH)
@dataclass(frozen=True)
class FetchReply(Reply):
    """
    The real TCP socket, beside a descriptor.

    @ivar external: its local address, where it has one.
    @ivar remote: the address that it connects to; L{None} for a listener.
    """

    id: _ID
    external: _MaybeExternal = None
    remote: Annotated[InternetAddress | None, Attribute.SOCKADDR_REMOTE] = None


@_message(Command.ESTABLISHED)
@dataclass(frozen=True)
class EstablishedReply(Reply):
    """The plaintext end, as a descriptor beside it."""

    id: _ID


@_message(Command.ACCEPTED)
@dataclass(frozen=True)
class AcceptedReply(Reply):
    """
    The plaintext end of an accepted connection, as a descriptor beside it.

    @ivar id: the listener.
    @ivar newID: the TLS socket that accept(2) will return.
    """

    id: _ID
    newID: Annotated[int, Attribute.NEW_ID]


EVENTS: dict[int, type[Event]] = {
    cls.command: cls
    for cls in (
        SocketNotify,
        SetsockoptNotify,
        GetsockoptNotify,
        BindNotify,
        ConnectNotify,
        ListenNotify,
        AcceptNotify,
        CloseNotify,
        UpgradeNotify,
    )
}
ANSWERS: dict[int, type[Answer]] = {cls.command: cls for cls in (Return, DataReturn, HandshakeReturn)}
REQUESTS: dict[int, type[Request]] = {
    cls.command: cls for cls in (Register, Next, Fetch, Established, Accepted, EndOfStream)
}
REPLIES: dict[int, type[Reply]] = {cls.command: cls for cls in (FetchReply, EstablishedReply, AcceptedReply)}

FROM_INTERCEPTOR: dict[int, type[Message]] = {**EVENTS, **REPLIES}
FROM_DAEMON: dict[int, type[Message]] = {**ANSWERS, **REQUESTS}

ANSWERED_BY: dict[type[Event], tuple[type[Answer], ...]] = {
    SocketNotify: (Return,),
    SetsockoptNotify: (Return,),
    GetsockoptNotify: (DataReturn, Return),
    BindNotify: (Return,),
    ConnectNotify: (HandshakeReturn,),
    ListenNotify: (Return,),
    UpgradeNotify: (HandshakeReturn,),
}
"""The answers that each event may get; the last one can carry an error."""


def failure(event: Event, errno: int) -> Answer:
    """
    The answer that an event has failed.

    @param errno: positive, as in L{errno}.
    @raise KeyError: the event wants no answer.
    """
    kind = ANSWERED_BY[type(event)][-1]
    return kind(event.event, event.id, -errno)  # type: ignore[call-arg]


def decodeFrame(
    frame: Buffer,
    classes: dict[int, type[Message]],
    detached: Callable[[], bytes] | None = None,
    type: int = SUPERVISED_TYPE,
) -> tuple[int, Message | Acknowledgement]:
    """
    Decode any frame that one side may send.

    @param classes: L{FROM_INTERCEPTOR} or L{FROM_DAEMON}.
    @param detached: reads the value that came beside the frame; called only for a message that has one.
    @param type: C{nlmsg_type} of the messages.
    @return: C{nlmsg_seq}, and the message or acknowledgement.
    @raise CodecError: it is malformed, unknown, or not this side's to send.
    """
    outer = decodeMessage(frame)
    if outer.type == NLMSG_ERROR:
        return outer.sequence, Acknowledgement.decode(outer)
    if outer.type != type:
        raise BadValueError(f"a message of type {outer.type} is not known here")
    generic = GenericMessage.decode(outer.payload)
    cls = classes.get(generic.command)
    if cls is None:
        raise BadValueError(f"command {generic.command} is not this side's to send")
    value = detached() if detached is not None and cls.valueField else None
    return outer.sequence, cls.fromGeneric(generic, value)
