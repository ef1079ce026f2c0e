# SPDX-License-Identifier: MIT
"""
The messages between an interceptor and the daemon: one frozen class each.

C{kernel-module/ssa.yaml} is the definition; a test compares it with this module and L{ssa.protocol.wire}.  Each message
is a generic netlink message of the family "SSA".  Four kinds:

  - an L{Event} goes from the interceptor to the daemon and carries a number that is unique per link;
  - an L{Answer} goes back and names the event.  L{Event.wantsAnswer} says which events get exactly one, and which none;
  - a L{Request} goes from the daemon to the interceptor, with a C{nlmsg_seq};
  - its L{Reply} has the same command and C{nlmsg_seq}; a request without a result, or with an error, gets an
    C{NLMSG_ERROR} instead (L{ssa.netlink.codec.Acknowledgement}).

Decoding refuses whatever is malformed, missing, repeated, unknown or out of range with a
L{CodecError<ssa.netlink.codec.CodecError>}, and raises nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ssa.api import Address, DataPath, InternetAddress, Role
from ssa.netlink.codec import (
    NLMSG_ERROR,
    Acknowledgement,
    BadValueError,
    Buffer,
    GenericMessage,
    decodeMessage,
)
from ssa.protocol.wire import (
    FAMILY_NAME,
    MAXIMUM_NAME,
    MAXIMUM_PATH,
    MAXIMUM_VALUE,
    MULTICAST_GROUP,
    PROTOCOL_VERSION,
    SHAPES,
    SUPERVISED_TYPE,
    Attribute,
    Command,
    Message,
    message,
)

__all__ = [
    "ANSWERED_BY",
    "ANSWERS",
    "EVENTS",
    "FAMILY_NAME",
    "FROM_DAEMON",
    "FROM_INTERCEPTOR",
    "MAXIMUM_NAME",
    "MAXIMUM_PATH",
    "MAXIMUM_VALUE",
    "MULTICAST_GROUP",
    "PROTOCOL_VERSION",
    "REPLIES",
    "REQUESTS",
    "SHAPES",
    "SUPERVISED_TYPE",
    "AcceptNotify",
    "Accepted",
    "AcceptedReply",
    "Answer",
    "Attribute",
    "BindNotify",
    "CloseNotify",
    "Command",
    "ConnectNotify",
    "DataReturn",
    "EndOfStream",
    "Established",
    "EstablishedReply",
    "Event",
    "Fetch",
    "FetchReply",
    "GetsockoptNotify",
    "HandshakeReturn",
    "ListenNotify",
    "Message",
    "Next",
    "Register",
    "Reply",
    "Request",
    "Return",
    "SetsockoptNotify",
    "SocketNotify",
    "UpgradeNotify",
    "decodeFrame",
    "failure",
]

_EventNumber = Annotated[int, Attribute.EVENT]
_ID = Annotated[int, Attribute.ID]
_MaybeExternal = Annotated[InternetAddress | None, Attribute.SOCKADDR_EXTERNAL]
_MaybeFD = Annotated[int | None, Attribute.FD]
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


@message(Command.SOCKET_NOTIFY)
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
    @ivar mountNamespace: a number of the process's mount namespace, in which the path holds: the inode number from a
        supervisor, a keyed hash from the kernel module, which is not told the former.
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


@message(Command.SETSOCKOPT_NOTIFY)
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


@message(Command.GETSOCKOPT_NOTIFY)
@dataclass(frozen=True)
class GetsockoptNotify(Event):
    """A program gets a TLS option.  Answer: L{DataReturn}, or L{Return} with an error."""

    level: Annotated[int, Attribute.OPTLEVEL]
    name: Annotated[int, Attribute.OPTNAME]


@message(Command.BIND_NOTIFY)
@dataclass(frozen=True)
class BindNotify(Event):
    """The real socket is bound.  Answer: L{Return}."""

    external: _External


@message(Command.CONNECT_NOTIFY)
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


@message(Command.LISTEN_NOTIFY)
@dataclass(frozen=True)
class ListenNotify(Event):
    """
    A program listens.  Answer: L{Return}.

    @ivar backlog: as in listen(2), already limited by the kernel's C{somaxconn}.
    @ivar external: the address of the real listener.
    """

    backlog: Annotated[int, Attribute.BACKLOG]
    external: _External


@message(Command.ACCEPT_NOTIFY)
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


@message(Command.CLOSE_NOTIFY)
@dataclass(frozen=True)
class CloseNotify(Event):
    """The last descriptor of a socket is gone.  No answer; no event with this id follows."""

    wantsAnswer: ClassVar[bool] = False


@message(Command.UPGRADE_NOTIFY)
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


@message(Command.RETURN)
@dataclass(frozen=True)
class Return(Answer):
    """
    The result of an event without a value.

    @ivar result: 0, or a negative errno.
    """

    result: Annotated[int, Attribute.RETURN]


@message(Command.DATA_RETURN)
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


@message(Command.HANDSHAKE_RETURN)
@dataclass(frozen=True)
class HandshakeReturn(Answer):
    """
    How a handshake ended.

    @ivar result: 0, or a negative errno.
    """

    result: Annotated[int, Attribute.RETURN]


@message(Command.REGISTER)
@dataclass(frozen=True)
class Register(Request):
    """
    The daemon, or one more of its workers, is there; the first request on a link.  Reply: an acknowledgement.

    @ivar version: L{PROTOCOL_VERSION}.
    @ivar daemon: netlink only: a secret number that the workers of one daemon have in common; C{None}: there is only one.
    """

    version: Annotated[int, Attribute.VERSION]  # no default: it must always be said
    daemon: Annotated[int | None, Attribute.DAEMON] = None


@message(Command.NEXT)
@dataclass(frozen=True)
class Next(Request):
    """
    Netlink only: the next event, or ENOENT where there is none.

    The kernel sends NEXT to the group "notify" when there is one.
    """


@message(Command.FETCH)
@dataclass(frozen=True)
class Fetch(Request):
    """
    Hand over the real TCP socket.  Reply: L{FetchReply} with a descriptor.

    @ivar id: the TLS socket.
    @ivar remote: make a new real socket and connect it to this address; L{None}: the one that there is.
    """

    id: _ID
    remote: Annotated[InternetAddress | None, Attribute.SOCKADDR_REMOTE] = None


@message(Command.ESTABLISHED)
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


@message(Command.ACCEPTED)
@dataclass(frozen=True)
class Accepted(Request):
    """
    A listener has a finished connection.  Reply: L{AcceptedReply} with its plaintext end, perhaps much later.

    @ivar id: the listener.
    @ivar external: the connection's local address.
    @ivar remote: its peer's address.
    @ivar dataPath: what carries its data.
    @ivar fd: netlink only: the connection's real TCP socket.
    """

    id: _ID
    external: _External
    remote: _Remote
    dataPath: Annotated[DataPath, Attribute.DATA_PATH] = DataPath.RELAY
    fd: _MaybeFD = None


@message(Command.EOF)
@dataclass(frozen=True)
class EndOfStream(Request):
    """Netlink only: the peer's close_notify came; the stream ends cleanly.  Reply: an acknowledgement."""

    id: _ID


@message(Command.FETCH)
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
    fd: _MaybeFD = None


@message(Command.ESTABLISHED)
@dataclass(frozen=True)
class EstablishedReply(Reply):
    """
    The plaintext end, as a descriptor beside it.

    @ivar fd: netlink only: that descriptor.  (The same in the other replies.)
    """

    id: _ID
    fd: _MaybeFD = None


@message(Command.ACCEPTED)
@dataclass(frozen=True)
class AcceptedReply(Reply):
    """
    The plaintext end of an accepted connection, as a descriptor beside it.

    @ivar id: the listener.
    @ivar newID: the TLS socket that accept(2) will return.
    """

    id: _ID
    newID: Annotated[int, Attribute.NEW_ID]
    fd: _MaybeFD = None


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
