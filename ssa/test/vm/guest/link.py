# SPDX-License-Identifier: MIT
"""
A plain netlink socket to the module: one question at a time, with whatever bytes a test wants in it.

It is on purpose not L{ssa.netlink}, which refuses to send what is malformed.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import ENOBUFS, ENOENT, ETIMEDOUT

from ssa.netlink.codec import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, iterateAttributes
from ssa.protocol.wire import FAMILY_NAME, PROTOCOL_VERSION, Attribute, Command

NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
GENL_ID_CTRL = 0x10
CTRL_CMD_GETFAMILY = 3
_CTRL_FAMILY_ID = 1
_CTRL_FAMILY_NAME = 2
_CTRL_MCAST_GROUPS = 7
_CTRL_GROUP_ID = 2
_RECEIVE = 2 << 20

HEADER = struct.Struct("=IHHII")
GENERIC = struct.Struct("=BBH")
SECONDS = 60


def attribute(number: int, payload: bytes, length: int | None = None) -> bytes:
    """
    One attribute.

    @param length: what its header says, if that is not the truth.
    """
    stated = len(payload) + 4 if length is None else length
    return struct.pack("=HH", stated & 0xFFFF, number & 0xFFFF) + payload + bytes(-len(payload) & 3)


def u64(number: int, value: int) -> bytes:
    """An attribute of 64 bits."""
    return attribute(number, struct.pack("=Q", value & 0xFFFFFFFFFFFFFFFF))


def u32(number: int, value: int) -> bytes:
    """An attribute of 32 bits, signed or not."""
    return attribute(number, struct.pack("=I", value & 0xFFFFFFFF))


def u8(number: int, value: int) -> bytes:
    """An attribute of 8 bits."""
    return attribute(number, bytes((value,)))


@dataclass(frozen=True)
class Reply:
    """
    What the kernel said.

    @ivar error: an errno; 0: it is no error.
    @ivar command: of a reply; 0 of an acknowledgement.
    @ivar attributes: the payloads by number; of several with one number, all of them joined.
    """

    error: int
    command: int = 0
    attributes: dict[int, bytes] = field(default_factory=dict)

    def number(self, which: int) -> int:
        """An integer attribute."""
        return int.from_bytes(self.attributes[which], "little")


class Link:
    """
    A generic netlink socket.

    @ivar sock: the socket.
    @ivar family: the module's number; 0: it cannot be seen.
    @ivar group: the number of its multicast group.
    @ivar isKicked: there are events, or there may be.
    @ivar send: sends a datagram; a test may put another in its place.
    """

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
        self.sock.bind((0, 0))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SECONDS, 0))
        self.sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # or an error repeats the message, for which memory may lack
        self.send: Callable[[bytes], object] = self.sock.send
        self.isKicked = False
        self.family = self.group = 0
        self._sequence = 0
        self._lookUp()

    def _lookUp(self) -> None:
        name = attribute(_CTRL_FAMILY_NAME, FAMILY_NAME.encode() + b"\0")
        reply = self.ask(CTRL_CMD_GETFAMILY, name, family=GENL_ID_CTRL)
        if reply.error:
            if reply.error != ENOENT:
                raise OSError(reply.error, "the family cannot be looked up")
            return
        self.family = reply.number(_CTRL_FAMILY_ID)
        for _, group in iterateAttributes(reply.attributes[_CTRL_MCAST_GROUPS]):
            parts = {kind: bytes(payload) for kind, payload in iterateAttributes(group)}
            self.group = int.from_bytes(parts[_CTRL_GROUP_ID], "little")

    def join(self) -> None:
        """Hear of events from now on."""
        self.sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, self.group)

    def message(self, command: int, attributes: bytes = b"", flags: int = 0, family: int | None = None) -> bytes:
        """A message of the next sequence number."""
        self._sequence += 1
        kind = self.family if family is None else family
        body = GENERIC.pack(command, 1, 0) + attributes
        return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0) + body

    def ask(self, command: int, attributes: bytes = b"", flags: int = 0, family: int | None = None) -> Reply:
        """
        Ask, and wait for the reply or the error.

        @param flags: C{NLM_F_ACK} where success has no reply of its own.
        """
        return self.exchange(self.message(command, attributes, flags, family))

    def exchange(self, message: bytes) -> Reply:
        """
        Send a message and wait for what the kernel says to it.

        @return: with ENOBUFS also where the reply was lost.
        """
        try:
            self.send(message)
        except OSError as failure:
            return Reply(failure.errno or ENOBUFS)
        while True:
            try:
                received = self.receive()
            except BlockingIOError:
                return Reply(ETIMEDOUT)
            except OSError as failure:
                if failure.errno != ENOBUFS:
                    raise
                self.isKicked = True  # a kick may be lost as well
                return Reply(ENOBUFS)
            for sequence, reply in received:
                if sequence == self._sequence:
                    return reply

    def receive(self, flags: int = 0) -> list[tuple[int, Reply]]:
        """
        The next datagram: the sequence number and content of each message.

        @param flags: of recv(2).
        @raise OSError: ENOBUFS: something was lost.
        """
        data = self.sock.recv(_RECEIVE, flags)
        messages: list[tuple[int, Reply]] = []
        while len(data) >= HEADER.size:
            length, kind, _, sequence, _ = HEADER.unpack_from(data)
            body, data = data[HEADER.size : length], data[(length + 3) & ~3 :]
            if kind == NLMSG_ERROR:
                messages.append((sequence, Reply(-struct.unpack_from("=i", body)[0])))
                continue
            attributes: dict[int, bytes] = {}
            for number, payload in iterateAttributes(body[GENERIC.size :]):
                attributes[number & 0x3FFF] = attributes.get(number & 0x3FFF, b"") + payload
            if not sequence and kind == self.family:
                self.isKicked = True
            else:
                messages.append((sequence, Reply(0, body[0], attributes)))
        return messages

    def register(self, daemon: int = 0) -> int:
        """
        Become the daemon, or one of its workers.

        @param daemon: the number that its workers have in common.
        @return: an errno, or 0.
        """
        which = u64(Attribute.DAEMON, daemon) if daemon else b""
        return self.ask(Command.REGISTER, u32(Attribute.VERSION, PROTOCOL_VERSION) + which, NLM_F_ACK).error

    def close(self) -> None:
        """End it, and the registration if it has one."""
        self.sock.close()
