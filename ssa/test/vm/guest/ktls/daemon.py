# SPDX-License-Identifier: MIT
"""
A daemon that puts the keys of every connection into the kernel: C{python -m ssa.test.vm.guest.ktls.daemon}.

It does one thing after the other, checks nobody's certificate, and says "ready" on standard output when it is registered.
Where a case sets TLS_REMOTE_HOSTNAME (of a client) or TLS_HOSTNAME (of a listener) to the name of a L{Way}, it lies to the
module, or keeps what it should give away.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
from enum import Enum
from typing import TypeVar

from OpenSSL import SSL

from ssa.api import DataPath, InternetAddress, Option
from ssa.netlink.codec import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    Acknowledgement,
    GenericMessage,
    NetlinkMessage,
    decodeMessages,
)
from ssa.netlink.generic import CONTROL, CTRL_CMD_GETFAMILY, GENL_ID_CTRL, Family
from ssa.protocol.messages import (
    EVENTS,
    FAMILY_NAME,
    MULTICAST_GROUP,
    PROTOCOL_VERSION,
    Accepted,
    AcceptedReply,
    CloseNotify,
    ConnectNotify,
    DataReturn,
    EndOfStream,
    Established,
    EstablishedReply,
    Event,
    Fetch,
    FetchReply,
    GetsockoptNotify,
    HandshakeReturn,
    ListenNotify,
    Message,
    Next,
    Register,
    Return,
    SetsockoptNotify,
)
from ssa.test.conformance.peers import clientContext, serverContext
from ssa.test.vm.guest.ktls.records import shakeHands
from ssa.tls.ktls import KeyLog, install

SECONDS = 60.0
"""How long a peer may take; the machine is slow."""

_NETLINK_GENERIC = 16
_SOL_NETLINK, _ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK = 270, 1, 10, 11

ReplyType = TypeVar("ReplyType", bound=Message)


class Way(Enum):
    """
    What the daemon does with a connection before it says that the kernel has the keys.
    """

    GOOD = "good"
    """Install both."""
    NOTHING = "nothing"
    LAYER = "layer"
    """The protocol above TCP, but no keys."""
    SENDING = "sending"
    RECEIVING = "receiving"
    VOUCHED = "vouched"
    """Install both, and vouch for the end of stream at once: C{Truncation=allow}."""
    KEPT = "kept"
    """Install both, and keep the descriptor."""


class _KeptBack:
    """Takes the place of a socket for L{install}, and passes on only some options."""

    def __init__(self, sock: socket.socket, count: int, skipped: int = -1) -> None:
        self._sock, self._left, self._skipped = sock, count, skipped

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        self._left -= 1
        if self._left >= 0 and name != self._skipped:
            self._sock.setsockopt(level, name, value)


class Link:
    """
    A netlink socket that waits for each reply.

    @ivar number: the family's.
    """

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
        self._sock.bind((0, 0))
        self._sock.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._sock.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._sequence = 0
        self._kicked = False
        self.number = GENL_ID_CTRL
        asked = GenericMessage(CTRL_CMD_GETFAMILY, 2, CONTROL.encode({"familyName": FAMILY_NAME}))
        described = self._ask(asked.encode(), 0)
        assert described is not None
        family = Family.fromMessage(described)
        self.number = family.number
        self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, family.groups[MULTICAST_GROUP])

    def fileno(self) -> int:
        """Readable when the kernel kicks."""
        return self._sock.fileno()

    def _ask(self, payload: bytes, flags: int) -> GenericMessage | None:
        self._sequence += 1
        self._sock.send(NetlinkMessage(self.number, NLM_F_REQUEST | flags, self._sequence, 0, payload).encode())
        while True:
            for message in decodeMessages(self._sock.recv(1 << 21)):
                if message.sequence != self._sequence:
                    self._kicked = True
                    continue
                if message.type != NLMSG_ERROR:
                    return GenericMessage.decode(message.payload)
                acknowledgement = Acknowledgement.decode(message)
                if acknowledgement.error:
                    raise OSError(-acknowledgement.error, acknowledgement.message)
                return None

    def tell(self, request: Message) -> None:
        """Ask for something that has no result, or answer."""
        self._ask(request.payload(), NLM_F_ACK)

    def ask(self, request: Message, kind: type[ReplyType]) -> ReplyType:
        """Ask for something."""
        reply = self._ask(request.payload(), 0)
        assert reply is not None
        return kind.fromGeneric(reply)

    def events(self) -> list[Event]:
        """What has happened."""
        found: list[Event] = []
        while True:
            self._kicked = False
            try:
                reply = self._ask(Next().payload(), 0)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                if self._kicked:  # between the kernel's look and its answer
                    continue
                return found
            assert reply is not None
            found.append(EVENTS[reply.command].fromGeneric(reply))


class Daemon:
    """All that it knows of sockets."""

    def __init__(self) -> None:
        self._link = Link()
        self._ways: dict[int, Way] = {}
        self._said: dict[int, str] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._kept: list[socket.socket] = []

    def run(self) -> None:
        """Serve for ever."""
        self._link.tell(Register(PROTOCOL_VERSION))
        print("ready", flush=True)
        while True:
            # A kick may have been passed over by any request but the last.
            while events := self._link.events():
                for event in events:
                    self._received(event)
            listeners = list(self._listeners.items())
            ready, _, _ = select.select([self._link.fileno(), *(one.fileno() for _, one in listeners)], [], [])
            for number, listener in listeners:
                if listener.fileno() in ready:
                    self._accept(number, listener)

    def _received(self, event: Event) -> None:
        if isinstance(event, ConnectNotify):
            self._link.tell(HandshakeReturn(event.event, event.id, -self._connect(event)))
        elif isinstance(event, ListenNotify):
            fetched = self._link.ask(Fetch(event.id), FetchReply)
            assert fetched.fd is not None
            self._listeners[event.id] = listener = socket.socket(fileno=fetched.fd)
            listener.setblocking(False)
            self._link.tell(Return(event.event, event.id, 0))
        elif isinstance(event, SetsockoptNotify):
            if event.name in (Option.TLS_REMOTE_HOSTNAME, Option.TLS_HOSTNAME):
                self._ways[event.id] = Way(event.value.rstrip(b"\0").decode())
            self._link.tell(Return(event.event, event.id, 0))
        elif isinstance(event, GetsockoptNotify):
            text = "ktls" if event.name == Option.TLS_DATA_PATH else self._said.get(event.id, "")
            self._link.tell(DataReturn(event.event, event.id, text.encode() + b"\0"))
        elif isinstance(event, CloseNotify):
            if event.id in self._listeners:
                self._listeners.pop(event.id).close()
        elif event.wantsAnswer:
            self._link.tell(Return(event.event, event.id, 0))

    def _give(self, sock: socket.socket, way: Way, log: KeyLog, isServer: bool, sent: int) -> None:
        """Install what the way wants."""
        count = {Way.NOTHING: 0, Way.LAYER: 1, Way.SENDING: 2}.get(way, 3)
        target = _KeptBack(sock, count, skipped=1 if way is Way.RECEIVING else -1)
        install(target, *log.keys(isServer, sent))  # type: ignore[arg-type]

    def _connect(self, event: ConnectNotify) -> int:
        """
        @return: 0, or why it failed.
        """
        way = self._ways.get(event.id, Way.GOOD)
        fetched = self._link.ask(Fetch(event.id), FetchReply)
        assert fetched.fd is not None
        sock = socket.socket(fileno=fetched.fd)
        try:
            select.select([], [sock], [], SECONDS)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                return error
            sock.settimeout(SECONDS)
            log, sent = shakeHands(sock, clientContext(version=SSL.TLS1_3_VERSION), False)
            self._give(sock, way, log, False, sent)
            names = [InternetAddress.fromSocket(sock.family, name) for name in (sock.getsockname(), sock.getpeername())]
            try:
                self._link.ask(Established(event.id, names[0], names[1], DataPath.KTLS), EstablishedReply)
            except OSError as refusal:
                self._said[event.id] = f"{errno.errorcode[refusal.errno or 0]} {refusal.strerror}"
                return errno.EPROTO
            if way is Way.VOUCHED:
                self._link.tell(EndOfStream(event.id))
            return 0
        except (SSL.Error, EOFError, OSError):
            return errno.EPROTO
        finally:
            if way is Way.KEPT:
                self._kept.append(sock)
            else:
                sock.close()

    def _accept(self, id: int, listener: socket.socket) -> None:
        way = self._ways.get(id, Way.GOOD)
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        try:
            sock.settimeout(SECONDS)
            log, sent = shakeHands(sock, serverContext(version=SSL.TLS1_3_VERSION), True)
            self._give(sock, way, log, True, sent)
            names = [InternetAddress.fromSocket(sock.family, name) for name in (sock.getsockname(), sock.getpeername())]
            try:
                reply = self._link.ask(Accepted(id, names[0], names[1], DataPath.KTLS, sock.fileno()), AcceptedReply)
            except OSError as refusal:
                self._said[id] = f"{errno.errorcode[refusal.errno or 0]} {refusal.strerror}"
                return
            if way is Way.VOUCHED:
                self._link.tell(EndOfStream(reply.newID))
        except (SSL.Error, EOFError, OSError):
            pass  # a peer that is no good
        finally:
            if way is Way.KEPT:
                self._kept.append(sock)
            else:
                sock.close()


if __name__ == "__main__":
    try:
        Daemon().run()
    except Exception as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr, flush=True)
        raise
