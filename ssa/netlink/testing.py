# SPDX-License-Identifier: MIT
"""
A netlink kernel in memory, for the tests of what uses L{ssa.netlink}.

L{MemoryNetlink} stands where L{ssa.netlink.port.RealNetlink} does; L{MemoryReactor} is the reactor that knows which of its
sockets have something to read.  Time passes when a test says so::

    kernel = MemoryNetlink()
    reactor = MemoryReactor(kernel)
    protocol = GenericNetlinkProtocol(reactor)
    port = NetlinkPort(protocol, NETLINK_GENERIC, reactor, kernel)
    port.startListening()
    result = protocol.family("nlctrl")
    reactor.run()
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from errno import (
    EADDRINUSE,
    EAGAIN,
    EBADF,
    EBUSY,
    EINVAL,
    EMSGSIZE,
    ENOBUFS,
    ENOENT,
    ENOPROTOOPT,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
)
from os import strerror
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.netlink.codec import (
    EXTENDED_ACK,
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_DUMP,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    Acknowledgement,
    AttributePolicy,
    AttributeTable,
    CodecError,
    GenericMessage,
    Kind,
    MissingAttributeError,
    NetlinkMessage,
    Value,
    decodeMessages,
)
from ssa.netlink.errors import NetlinkError
from ssa.netlink.generic import (
    CONTROL,
    CTRL_CMD_DELFAMILY,
    CTRL_CMD_GETFAMILY,
    CTRL_CMD_NEWFAMILY,
    CTRL_CMD_NEWMCAST_GRP,
    GENL_CMD_CAP_DO,
    GENL_CMD_CAP_DUMP,
    GENL_ID_CTRL,
)
from ssa.netlink.port import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_CAP_ACK,
    NETLINK_DROP_MEMBERSHIP,
    NETLINK_EXT_ACK,
    NETLINK_GENERIC,
    NETLINK_GET_STRICT_CHK,
    NETLINK_PKTINFO,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    INetlinkSocket,
    INetlinkSystem,
    NetlinkPort,
    Received,
)
from ssa.netlink.protocol import NLM_F_DUMP_INTR

_DEFAULT_BUFFER = 212992
_SEND_BUFFER = 212992
_FIRST_TYPE = 0x10
_LEAST_BUFFER = 2304
_OPTIONS = frozenset((NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK, NETLINK_PKTINFO))
_EMPTY = AttributeTable(ignoreUnknown=True)

CALLS = ("socket", "bind", "getsockname", "setsockopt", "getsockopt", "sendto", "recvfrom", "close")
"""The calls that L{MemoryNetlink.fail} can let fail."""

Answer = tuple[int, bytes]
"""C{nlmsg_type} and payload."""

Subsystem = Callable[[NetlinkMessage], Iterable[Answer]]
"""
Answers a request: yields what it replies, and raises L{NetlinkError} to refuse.  Whether the request is a dump is told by
its flags.  Sequence numbers, acknowledgements and the end of dumps are the kernel's business.
"""


@dataclass
class MemoryCommand:
    """
    A command of a family in memory.

    @ivar do: takes the request's attributes; gives the reply's, or None: there is only an acknowledgement.  Raises
        L{NetlinkError} to refuse.
    @ivar dump: takes the request's attributes; gives those of each message.  Raises L{NetlinkError}, at once or in between.
    @ivar table: decodes the request.
    @ivar replyTable: encodes the reply, by default C{table}.
    @ivar replyCommand: C{genlmsghdr.cmd} of the reply, by default that of the request.
    @ivar flags: C{GENL_ADMIN_PERM} and so on; what it can do is added.
    """

    do: Callable[[dict[str, Value]], Mapping[str, Value] | None] | None = None
    dump: Callable[[dict[str, Value]], Iterable[Mapping[str, Value]]] | None = None
    table: AttributeTable = _EMPTY
    replyTable: AttributeTable | None = None
    replyCommand: int | None = None
    flags: int = 0

    def capabilities(self) -> int:
        """The flags that "nlctrl" tells."""
        do = GENL_CMD_CAP_DO if self.do is not None else 0
        return self.flags | do | (GENL_CMD_CAP_DUMP if self.dump is not None else 0)


@dataclass
class MemoryFamily:
    """
    A generic netlink family in memory.

    @ivar commands: by number.
    @ivar groups: the names of its multicast groups.
    @ivar number: C{nlmsg_type}, given at its registration.
    @ivar groupNumbers: by name, given at its registration.
    """

    name: str
    commands: Mapping[int, MemoryCommand] = field(default_factory=dict)
    groups: Sequence[str] = ()
    version: int = 1
    maximumAttribute: int = 0
    number: int = 0
    groupNumbers: dict[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Value]:
        """What "nlctrl" says."""
        values: dict[str, Value] = {
            "familyName": self.name,
            "familyID": self.number,
            "version": self.version,
            "headerSize": 0,
            "maximumAttribute": self.maximumAttribute,
        }
        if self.commands:
            values["operations"] = [
                {"id": number, "flags": command.capabilities()} for number, command in self.commands.items()
            ]
        if self.groups:
            values["groups"] = [{"id": self.groupNumbers[name], "name": name} for name in self.groups]
        return values

    def answer(self, message: NetlinkMessage) -> Iterator[Answer]:
        """
        Answer a request as a L{Subsystem} does.

        @raise NetlinkError: C{EOPNOTSUPP} no such command; C{EINVAL} attributes that its table refuses, with the offset; or
            what the command raises.
        """
        try:
            request = GenericMessage.decode(message.payload)
        except CodecError as error:
            raise NetlinkError(EINVAL, str(error)) from error
        command = self.commands.get(request.command)
        isDump = message.flags & NLM_F_DUMP == NLM_F_DUMP
        if command is None or (command.dump if isDump else command.do) is None:
            raise NetlinkError(EOPNOTSUPP)
        try:
            values = command.table.decode(request.attributes)
        except CodecError as error:
            raise self._refusal(error, command.table, bytes(request.attributes)) from error
        replies: Iterable[Mapping[str, Value]] = ()
        if isDump and command.dump is not None:
            replies = command.dump(values)
        elif command.do is not None:
            reply = command.do(values)
            replies = () if reply is None else (reply,)
        table = command.table if command.replyTable is None else command.replyTable
        number = request.command if command.replyCommand is None else command.replyCommand
        for one in replies:
            yield self.number, GenericMessage(number, self.version, table.encode(one)).encode()

    @staticmethod
    def _refusal(error: CodecError, table: AttributeTable, data: bytes) -> NetlinkError:
        """Find the attribute at fault: the first that its table does not accept by itself."""
        offset = 0
        while len(data) - offset >= 4:
            length = struct.unpack_from("=H", data, offset)[0]
            try:
                table.decode(data[offset : offset + max(length, 1)])
            except MissingAttributeError:
                pass
            except CodecError:
                return NetlinkError(EINVAL, "Attribute failed policy validation", HEADER_SIZE + 4 + offset)
            offset += (length + 3) & ~3
        return NetlinkError(EINVAL, str(error))


class _Dumping:
    """A dump on its way: gives one datagram after another."""

    def __init__(self, request: NetlinkMessage, answers: Iterator[Answer], interrupted: bool) -> None:
        self.request = request
        self.answers = answers
        self.flags = NLM_F_MULTI | (NLM_F_DUMP_INTR if interrupted else 0)


@implementer(INetlinkSocket)
class MemorySocket:
    """
    A socket of L{MemoryNetlink}.

    @ivar family: C{NETLINK_GENERIC} and so on.
    @ivar portID: its C{nl_pid}, 0 until it is bound.
    @ivar groups: the multicast groups that it has joined.
    @ivar options: those of C{SOL_NETLINK} that are on.
    @ivar receiveLimit: the bytes that may wait.
    @ivar sent: every datagram that was sent.
    @ivar closed: whether it is.
    """

    def __init__(self, kernel: MemoryNetlink, family: int, descriptor: int) -> None:
        self.family = family
        self.portID = 0
        self.groups: set[int] = set()
        self.options: set[int] = set()
        self.receiveLimit = _DEFAULT_BUFFER
        self.sent: list[bytes] = []
        self.closed = False
        self._kernel = kernel
        self._descriptor = descriptor
        self._queue: deque[Received] = deque()
        self._queued = 0
        self._overrun = False
        self._dumping: _Dumping | None = None

    # The system calls

    def fileno(self) -> int:
        """A number that is no descriptor of the process, or -1."""
        return -1 if self.closed else self._descriptor

    def bind(self, port: int) -> None:
        """Take an address; 0: a free one."""
        self._enter("bind")
        taken = {other.portID for other in self._kernel.sockets if other.family == self.family}
        if port == 0:
            port = next(number for number in range(1001, 1002 + len(taken)) if number not in taken)
        if port in taken:
            raise OSError(EADDRINUSE, strerror(EADDRINUSE))
        self.portID = port

    def getsockname(self) -> int:
        """The address."""
        self._enter("getsockname")
        return self.portID

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option that the port uses."""
        self._enter("setsockopt")
        if level == socket.SOL_SOCKET and option in (socket.SO_RCVBUF, SO_RCVBUFFORCE):
            if option == SO_RCVBUFFORCE and not self._kernel.privileged:
                raise OSError(EPERM, strerror(EPERM))
            self.receiveLimit = max(2 * value, _LEAST_BUFFER)
        elif level == SOL_NETLINK and option in (NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP):
            if not 1 <= value <= self._kernel.highestGroup:
                raise OSError(EINVAL, strerror(EINVAL))
            (self.groups.add if option == NETLINK_ADD_MEMBERSHIP else self.groups.discard)(value)
        elif level == SOL_NETLINK and option in _OPTIONS:
            (self.options.add if value else self.options.discard)(option)
        else:
            raise OSError(ENOPROTOOPT, strerror(ENOPROTOOPT))

    def getsockopt(self, level: int, option: int) -> int:
        """Get the size of the receive buffer."""
        self._enter("getsockopt")
        if (level, option) != (socket.SOL_SOCKET, socket.SO_RCVBUF):
            raise OSError(ENOPROTOOPT, strerror(ENOPROTOOPT))
        return self.receiveLimit

    def sendto(self, data: bytes, port: int) -> int:
        """Give requests to the kernel, which acts on them before this returns."""
        self._enter("sendto")
        if port != 0:
            raise OSError(EPERM, strerror(EPERM))
        if len(data) > _SEND_BUFFER - 32:
            raise OSError(EMSGSIZE, strerror(EMSGSIZE))
        self.sent.append(data)
        try:
            messages = decodeMessages(data)
        except CodecError:
            messages = []  # the kernel passes over what it cannot cut into messages
        for message in messages:
            if message.flags & NLM_F_REQUEST and message.type >= _FIRST_TYPE:
                self._kernel._requested(self, message)
        return len(data)

    def recvfrom(self, size: int) -> Received:
        """Take one datagram; a dump that is under way adds another."""
        self._enter("recvfrom")
        if self._overrun:
            self._overrun = False
            raise OSError(ENOBUFS, strerror(ENOBUFS))
        if not self._queue:
            raise BlockingIOError(EAGAIN, strerror(EAGAIN))
        received = self._queue.popleft()
        self._queued -= len(received.data)
        if self._dumping is not None and self._queued <= self.receiveLimit // 2:
            self._continueDump(self._dumping)
        group = received.group if NETLINK_PKTINFO in self.options else 0
        return received._replace(data=received.data[:size], truncated=len(received.data) > size, group=group)

    def close(self) -> None:
        """Close it, also if the call fails, as Linux does."""
        try:
            self._enter("close")
        finally:
            self.closed = True
            if self in self._kernel.sockets:
                self._kernel.sockets.remove(self)

    def _enter(self, call: str) -> None:
        """Every call begins here."""
        if self.closed:
            raise OSError(EBADF, strerror(EBADF))
        self._kernel._enter(call)

    # The kernel's side

    def readable(self) -> bool:
        """Whether L{recvfrom} has something to tell."""
        return bool(self._queue) or self._overrun

    def deliver(self, data: bytes, sender: int = 0, group: int = 0) -> None:
        """
        Put a datagram into the receive buffer.  If it does not fit, it is lost and the next L{recvfrom} says C{ENOBUFS}.

        @param data: anything.
        @param sender: C{nl_pid} of the sender; 0 is the kernel.
        @param group: the multicast group that it was sent to.
        """
        if self._queued + len(data) > self.receiveLimit:
            self._overrun = True
            return
        self._queue.append(Received(data, False, sender, group))
        self._queued += len(data)

    def overrun(self) -> None:
        """Let the next L{recvfrom} say C{ENOBUFS}."""
        self._overrun = True

    def answer(self, request: NetlinkMessage, subsystem: Subsystem) -> None:
        """Let a subsystem answer a request."""
        isDump = request.flags & NLM_F_DUMP == NLM_F_DUMP
        try:
            if isDump and self._dumping is not None:
                raise NetlinkError(EBUSY)
            answers = iter(subsystem(request))
            if isDump:
                first = next(answers, None)
                interrupted = self._kernel._interruptsNext()
                self._dumping = _Dumping(request, _chain(first, answers), interrupted)
                self._continueDump(self._dumping)
                return
            for kind, payload in answers:
                self.deliver(NetlinkMessage(kind, 0, request.sequence, self.portID, payload).encode())
        except NetlinkError as error:
            self._acknowledge(request, error)
        else:
            if request.flags & NLM_F_ACK:
                self._acknowledge(request, None)

    def _acknowledge(self, request: NetlinkMessage, error: NetlinkError | None) -> None:
        explained = error is not None and NETLINK_EXT_ACK in self.options
        acknowledgement = Acknowledgement(
            0 if error is None else -error.errno,
            request.sequence,
            request.type,
            error.text if error is not None and explained else "",
            error.offset if error is not None and explained else None,
        )
        self.deliver(acknowledgement.encode(self.portID))

    def _continueDump(self, dumping: _Dumping) -> None:
        """Put the next datagram of a dump into the buffer; the last message is C{NLMSG_DONE}."""
        sequence = dumping.request.sequence
        pieces: list[bytes] = []
        values: dict[str, Value] = {}
        error = 0
        try:
            for kind, payload in dumping.answers:
                pieces.append(NetlinkMessage(kind, dumping.flags, sequence, self.portID, payload).encode())
                if len(pieces) >= self._kernel.messagesPerDatagram:
                    self.deliver(b"".join(pieces))
                    return
        except NetlinkError as refusal:
            error = -refusal.errno
            if NETLINK_EXT_ACK in self.options and refusal.text:
                values["message"] = refusal.text
        self._dumping = None
        flags = dumping.flags | (NLM_F_ACK_TLVS if values else 0)
        end = struct.pack("=i", error) + EXTENDED_ACK.encode(values)
        pieces.append(NetlinkMessage(NLMSG_DONE, flags, sequence, self.portID, end).encode())
        self.deliver(b"".join(pieces))


def _chain(first: Answer | None, rest: Iterator[Answer]) -> Iterator[Answer]:
    """The first one, which was taken to see whether there is an error, and the rest."""
    if first is not None:
        yield first
        yield from rest


@implementer(INetlinkSystem)
class MemoryNetlink:
    """
    A kernel in memory, with generic netlink and its family "nlctrl".

    @ivar sockets: the open ones.
    @ivar families: the generic netlink families by name.
    @ivar silent: requests are not answered, but kept for L{release}.
    @ivar interruptDumps: how many of the coming dumps say C{NLM_F_DUMP_INTR}.
    @ivar messagesPerDatagram: how many messages of a dump come together.
    @ivar privileged: whether processes have C{CAP_NET_ADMIN}.
    @ivar highestGroup: the highest multicast group that can be joined.
    """

    def __init__(self) -> None:
        self.sockets: list[MemorySocket] = []
        self.families: dict[str, MemoryFamily] = {}
        self.silent = False
        self.interruptDumps = 0
        self.messagesPerDatagram = 4
        self.privileged = True
        self.highestGroup = 64
        self._failures: defaultdict[str, deque[int]] = defaultdict(deque)
        self._held: list[tuple[MemorySocket, NetlinkMessage]] = []
        self._subsystems: dict[int, Subsystem] = {NETLINK_GENERIC: self._generic}
        self._nextDescriptor = 1 << 20
        self._nextNumber = GENL_ID_CTRL
        self._nextGroup = GENL_ID_CTRL
        get = MemoryCommand(
            self._describeOne, self._describeAll, _CONTROL_REQUEST, CONTROL, replyCommand=CTRL_CMD_NEWFAMILY
        )
        self.registerFamily(MemoryFamily("nlctrl", {CTRL_CMD_GETFAMILY: get}, ["notify"], 2, 10))

    # The system call

    def socket(self, family: int) -> MemorySocket:
        """Make a socket of a family that has a subsystem."""
        self._enter("socket")
        if family not in self._subsystems:
            raise OSError(EPROTONOSUPPORT, strerror(EPROTONOSUPPORT))
        self._nextDescriptor += 1
        made = MemorySocket(self, family, self._nextDescriptor)
        self.sockets.append(made)
        return made

    # What a test does

    def socketOf(self, port: NetlinkPort) -> MemorySocket:
        """
        The socket of a port that listens.

        @raise LookupError: there is none.
        """
        for one in self.sockets:
            if one.fileno() == port.fileno():
                return one
        raise LookupError(f"{port!r} has no socket here")

    def fail(self, call: str, *errors: int) -> None:
        """
        Let the next calls fail.

        @param call: one of L{CALLS}.
        @param errors: the errno of each; 0: this one succeeds.
        @raise ValueError: there is no such call.
        """
        if call not in CALLS:
            raise ValueError(f"{call} is none of {', '.join(CALLS)}")
        self._failures[call].extend(errors)

    def provide(self, family: int, subsystem: Subsystem) -> None:
        """
        Have another netlink family than C{NETLINK_GENERIC}.

        @param family: C{NETLINK_ROUTE} and so on.
        """
        self._subsystems[family] = subsystem

    def registerFamily(self, family: MemoryFamily) -> MemoryFamily:
        """
        Register a generic netlink family and notify of it, as a module does that is loaded.

        @return: the family, with its numbers.
        @raise ValueError: there is one of that name.
        """
        if family.name in self.families:
            raise ValueError(f"there is a family {family.name}")
        family.number = self._nextNumber
        self._nextNumber += 1
        for name in family.groups:
            family.groupNumbers[name] = self._nextGroup
            self._nextGroup += 1
        self.highestGroup = max(self.highestGroup, self._nextGroup)
        self.families[family.name] = family
        self._control(CTRL_CMD_NEWFAMILY, family.describe())
        for name, number in family.groupNumbers.items():
            group: dict[str, Value] = {"id": number, "name": name}
            named: dict[str, Value] = {"familyName": family.name, "familyID": family.number, "groups": [group]}
            self._control(CTRL_CMD_NEWMCAST_GRP, named)
        return family

    def unregisterFamily(self, name: str) -> None:
        """
        Unregister a family, end the memberships in its groups, and notify of it.

        @raise KeyError: there is none of that name.
        """
        family = self.families.pop(name)
        for one in self.sockets:
            if one.family == NETLINK_GENERIC:
                one.groups.difference_update(family.groupNumbers.values())
        self._control(CTRL_CMD_DELFAMILY, family.describe())

    def notify(self, family: str, group: str, command: int, values: Mapping[str, Value], table: AttributeTable) -> None:
        """
        Send a notification of a generic netlink family to all who have joined a group.

        @raise KeyError: there is no such family or group.
        """
        source = self.families[family]
        payload = GenericMessage(command, source.version, table.encode(values)).encode()
        data = NetlinkMessage(source.number, 0, 0, 0, payload).encode()
        self.multicast(NETLINK_GENERIC, source.groupNumbers[group], data)

    def multicast(self, family: int, group: int, data: bytes, sender: int = 0) -> None:
        """
        Send a datagram to all who have joined a group.

        @param family: C{NETLINK_ROUTE} and so on.
        @param sender: C{nl_pid} of the sender; 0 is the kernel.
        """
        for one in self.sockets:
            if one.family == family and group in one.groups:
                one.deliver(data, sender, group)

    def release(self) -> None:
        """Answer what was asked while the kernel was silent, and be silent no longer."""
        self.silent = False
        held, self._held = self._held, []
        for one, message in held:
            if not one.closed:
                self._requested(one, message)

    # What sockets do

    def _enter(self, call: str) -> None:
        """Fail if a test wants it."""
        failures = self._failures[call]
        error = failures.popleft() if failures else 0
        if error:
            raise OSError(error, strerror(error))

    def _requested(self, one: MemorySocket, message: NetlinkMessage) -> None:
        if self.silent:
            self._held.append((one, message))
        else:
            one.answer(message, self._subsystems[one.family])

    def _interruptsNext(self) -> bool:
        self.interruptDumps -= 1
        if self.interruptDumps >= 0:
            return True
        self.interruptDumps = 0
        return False

    # Generic netlink

    def _generic(self, message: NetlinkMessage) -> Iterator[Answer]:
        for family in self.families.values():
            if family.number == message.type:
                return family.answer(message)
        raise NetlinkError(ENOENT)

    def _control(self, command: int, values: Mapping[str, Value]) -> None:
        payload = GenericMessage(command, 2, CONTROL.encode(values)).encode()
        self.multicast(NETLINK_GENERIC, GENL_ID_CTRL, NetlinkMessage(GENL_ID_CTRL, 0, 0, 0, payload).encode())

    def _describeOne(self, values: dict[str, Value]) -> dict[str, Value]:
        if not values:
            raise NetlinkError(EINVAL)
        for family in self.families.values():
            if values.get("familyID", family.number) == family.number and values.get("familyName", family.name) == family.name:
                return family.describe()
        raise NetlinkError(ENOENT)

    def _describeAll(self, values: dict[str, Value]) -> list[dict[str, Value]]:
        return [family.describe() for family in self.families.values()]


_CONTROL_REQUEST = AttributeTable(
    AttributePolicy(1, "familyID", Kind.U16),
    AttributePolicy(2, "familyName", Kind.STRING, maximum=15),
)


@implementer(IReactorFDSet)
class MemoryReactor(Clock):
    """
    A reactor for ports on a L{MemoryNetlink}: its time is a L{Clock}'s, and a socket is readable if there is something in it.

    Exceptions out of the readers' methods come out of L{turn}.
    """

    def __init__(self, kernel: MemoryNetlink) -> None:
        super().__init__()
        self._kernel = kernel
        self._readers: dict[Any, None] = {}
        self._writers: dict[Any, None] = {}

    def addReader(self, reader: Any) -> None:
        """Watch for something to read."""
        self._readers[reader] = None

    def addWriter(self, writer: Any) -> None:
        """Watch for room to write, which there always is."""
        self._writers[writer] = None

    def removeReader(self, reader: Any) -> None:
        """Watch no longer."""
        self._readers.pop(reader, None)

    def removeWriter(self, writer: Any) -> None:
        """Watch no longer."""
        self._writers.pop(writer, None)

    def removeAll(self) -> list[Any]:
        """Watch nothing."""
        watched = list({**self._readers, **self._writers})
        self._readers.clear()
        self._writers.clear()
        return watched

    def getReaders(self) -> list[Any]:
        """All who wait for something to read."""
        return list(self._readers)

    def getWriters(self) -> list[Any]:
        """All who wait for room to write."""
        return list(self._writers)

    def turn(self) -> bool:
        """
        Do what is due, and read and write once where it is possible.

        @return: whether there was something to do.
        """
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        worked = bool(due)
        for call in due:  # and not those that these make: they are for the next turn
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        readable = {one.fileno() for one in self._kernel.sockets if one.readable()}
        for reader in self.getReaders():
            if reader in self._readers and reader.fileno() in readable:
                worked = True
                self._ended(reader, reader.doRead())
        for writer in self.getWriters():
            if writer in self._writers:
                worked = True
                self._ended(writer, writer.doWrite())
        return worked

    def run(self, most: int = 10000) -> None:
        """
        Turn until there is nothing to do at this time.

        @param most: how often.
        @raise RuntimeError: there was still something to do.
        """
        for _ in range(most):
            if not self.turn():
                return
        raise RuntimeError(f"not done after {most} turns")

    def _ended(self, selectable: Any, why: Exception | None) -> None:
        """As a real reactor does: who returns an exception is disconnected."""
        if why is not None:
            self.removeReader(selectable)
            self.removeWriter(selectable)
            selectable.connectionLost(Failure(why))  # type: ignore[no-untyped-call]
