# SPDX-License-Identifier: MIT
"""
A netlink socket on a Twisted reactor (netlink(7)).

L{NetlinkPort} moves datagrams between the kernel and a protocol.  Everything that it asks of the operating system goes
through L{INetlinkSystem}: L{RealNetlink} is the kernel, L{ssa.netlink.testing.MemoryNetlink} is memory.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from errno import EAGAIN, EINTR, ENOBUFS, ENOPROTOOPT, ENOTCONN, EPERM
from typing import Any, NamedTuple

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

NETLINK_ROUTE = 0
NETLINK_GENERIC = 16

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_DROP_MEMBERSHIP = 2
NETLINK_PKTINFO = 3
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

SO_RCVBUFFORCE = 33

MAXIMUM_DATAGRAM = 1 << 20
"""The longest datagram that is accepted, in bytes.  Dumps come in pieces of at most 32 KiB, single messages may be longer."""

_GROUP = struct.Struct("=I")
_CONTROL_SPACE = socket.CMSG_SPACE(_GROUP.size)


class Received(NamedTuple):
    """
    One datagram, as recvmsg(2) gives it.

    @ivar data: the datagram, or its beginning.
    @ivar truncated: whether there was more of it, which is lost (C{MSG_TRUNC}).
    @ivar sender: the sender's C{nl_pid}, which the kernel fills in: 0 is the kernel itself.
    @ivar group: the multicast group to which it was sent, 0 for none (C{NETLINK_PKTINFO}).
    """

    data: bytes
    truncated: bool
    sender: int
    group: int


class INetlinkSocket(Interface):
    """
    One non-blocking C{AF_NETLINK} socket.  Every method raises L{OSError} as its system call does, C{EAGAIN} where a
    blocking one would wait, and perhaps C{EINTR}.
    """

    def fileno() -> int:
        """The descriptor for the reactor, or -1 after L{close}."""

    def bind(port: int) -> None:
        """
        Take an address (bind(2)).

        @param port: C{nl_pid}; 0 lets the kernel choose.
        """

    def getsockname() -> int:
        """The C{nl_pid} of the socket (getsockname(2))."""

    def setsockopt(level: int, option: int, value: int) -> None:
        """Set an integer option (setsockopt(2))."""

    def getsockopt(level: int, option: int) -> int:
        """Get an integer option (getsockopt(2))."""

    def sendto(data: bytes, port: int) -> int:
        """
        Send one datagram (sendto(2)).

        @param port: C{nl_pid} of the receiver, 0 is the kernel.
        @return: the number of bytes sent, which is always all of them.
        """

    def recvfrom(size: int) -> Received:
        """
        Receive one datagram (recvmsg(2)).

        @param size: the most bytes to return.
        """

    def close() -> None:
        """Close the descriptor (close(2))."""


class INetlinkSystem(Interface):
    """What L{NetlinkPort} asks of an operating system."""

    def socket(family: int) -> INetlinkSocket:
        """
        Make an C{AF_NETLINK} socket of C{SOCK_RAW}, non-blocking and close-on-exec.

        @param family: C{NETLINK_ROUTE} and so on.
        @raise OSError: C{EPROTONOSUPPORT} the kernel lacks the family, C{EAFNOSUPPORT} netlink as a whole; C{EPERM},
            C{EMFILE} and so on.
        """


@implementer(INetlinkSocket)
class RealSocket:
    """An L{INetlinkSocket} of the running kernel."""

    def __init__(self, family: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, family)
        self._buffer = bytearray()

    def fileno(self) -> int:
        """The descriptor, or -1."""
        return self._socket.fileno()

    def bind(self, port: int) -> None:
        """Take an address."""
        self._socket.bind((port, 0))

    def getsockname(self) -> int:
        """The C{nl_pid}."""
        port: int = self._socket.getsockname()[0]
        return port

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option."""
        self._socket.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int) -> int:
        """Get an option."""
        return self._socket.getsockopt(level, option)

    def sendto(self, data: bytes, port: int) -> int:
        """Send a datagram."""
        return self._socket.sendto(data, (port, 0))

    def recvfrom(self, size: int) -> Received:
        """Receive a datagram.  The buffer is kept: only those of its pages that were ever written take memory."""
        if len(self._buffer) != size:
            self._buffer = bytearray(size)
        count, control, flags, address = self._socket.recvmsg_into([self._buffer], _CONTROL_SPACE)
        group = 0
        for level, kind, data in control:
            if level == SOL_NETLINK and kind == NETLINK_PKTINFO and len(data) >= _GROUP.size:
                group = _GROUP.unpack_from(data)[0]
        with memoryview(self._buffer) as view:
            return Received(bytes(view[:count]), bool(flags & socket.MSG_TRUNC), address[0], group)

    def close(self) -> None:
        """Close the descriptor."""
        self._socket.close()


@implementer(INetlinkSystem)
class RealNetlink:
    """The L{INetlinkSystem} of the running kernel."""

    def socket(self, family: int) -> RealSocket:
        """Make a socket."""
        return RealSocket(family)


class INetlinkProtocol(Interface):
    """
    What L{NetlinkPort} tells.  L{ssa.netlink.protocol.NetlinkProtocol} is one.  Exceptions out of these methods are logged.
    """

    def makeConnection(port: NetlinkPort) -> None:
        """The port listens; its C{portID} is known."""

    def datagramReceived(data: bytes, group: int) -> None:
        """
        The kernel has sent a datagram.

        @param data: one or more netlink messages.
        @param group: the multicast group to which it was sent, or 0: it is for this socket alone.
        """

    def overrun() -> None:
        """
        Datagrams were lost: the receive buffer was full (C{ENOBUFS}), or one was longer than the port accepts.  What was
        learnt by notifications is out of date.
        """

    def sendFailed(data: bytes, error: OSError) -> None:
        """A datagram that C{NetlinkPort.write} had to keep back was refused at last."""

    def connectionLost(reason: Failure) -> None:
        """The port is closed: C{ConnectionDone}, or an L{OSError}."""


@implementer(IAddress)
@dataclass(frozen=True)
class NetlinkAddress:
    """
    Where a port listens.

    @ivar family: C{NETLINK_GENERIC} and so on.
    @ivar port: C{nl_pid}.
    """

    family: int
    port: int


class Tally:
    """
    Counts what is refused and logs it ever more seldom: the first time, the second, the fourth, the eighth and so on.

    @ivar counts: how often, by the words of the log.
    """

    def __init__(self, log: Logger) -> None:
        self.counts: Counter[str] = Counter()
        self._log = log

    def note(self, what: str, **details: Any) -> None:
        """
        Count and perhaps log.

        @param what: a format that names the details.
        """
        self.counts[what] = count = self.counts[what] + 1
        if count & (count - 1) == 0:
            self._log.warn(what + " ({count} times)", count=count, **details)

    def total(self) -> int:
        """How much was counted in all."""
        return sum(self.counts.values())


@implementer(IListeningPort)
class NetlinkPort(FileDescriptor):
    """
    A netlink socket that gives what the kernel sends to a protocol.

    @ivar portID: C{nl_pid} of the socket while it listens, else 0.
    @ivar extendedAcks: whether the kernel explains its errors (C{NETLINK_EXT_ACK}, Linux 4.12).
    @ivar strict: whether the kernel checks the requests of dumps strictly (C{NETLINK_GET_STRICT_CHK}, Linux 4.20).
    @ivar overruns: how often datagrams were lost.
    @ivar refused: what was received and not given to the protocol.
    """

    maximumReads = 64
    """How many datagrams are read in one turn of the reactor."""

    maximumThroughput = 1 << 20
    """How many bytes are read in one turn of the reactor."""

    maximumInterrupts = 16
    """How often a call that signals interrupt is repeated at once."""

    maximumPending = 256
    """How many datagrams wait at most, if the kernel cannot take them."""

    maximumPendingBytes = 1 << 22
    """How many bytes they have at most."""

    _log = Logger()

    def __init__(
        self,
        protocol: INetlinkProtocol,
        family: int,
        reactor: Any,
        system: INetlinkSystem | None = None,
        receiveBuffer: int | None = None,
        maximumDatagram: int = MAXIMUM_DATAGRAM,
        strict: bool = True,
    ) -> None:
        """
        @param family: C{NETLINK_GENERIC}, C{NETLINK_ROUTE} and so on.
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param system: the operating system, by default the one that runs.
        @param receiveBuffer: the bytes that may wait in the kernel (C{SO_RCVBUF}), by default the system's choice.  With
            C{CAP_NET_ADMIN} it may be more than C{net.core.rmem_max}, else it is cut to that.
        @param maximumDatagram: longer datagrams are lost and count as an overrun.
        @param strict: let the kernel check the requests of dumps, where it can.
        """
        super().__init__(reactor)
        self._reactor: Any = reactor
        self.protocol = protocol
        self.family = family
        self.portID = 0
        self.extendedAcks = False
        self.strict = strict
        self.overruns = 0
        self.refused = Tally(self._log)
        self._system: INetlinkSystem = RealNetlink() if system is None else system
        self._receiveBuffer = receiveBuffer
        self._maximumDatagram = maximumDatagram
        self._socket: INetlinkSocket | None = None
        self._pending: deque[bytes] = deque()
        self._pendingBytes = 0
        self._waiters: list[Deferred[None]] = []

    def __repr__(self) -> str:
        state = f"port {self.portID}" if self.connected else "not listening"
        return f"<{type(self).__name__} family {self.family}, {state}, for {type(self.protocol).__name__}>"

    def fileno(self) -> int:
        """The descriptor, or -1."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """How the reactor names this in its log."""
        return f"{type(self.protocol).__name__} (netlink {self.family})"

    def getHost(self) -> NetlinkAddress:
        """Where the port listens."""
        return NetlinkAddress(self.family, self.portID)

    def startListening(self) -> None:
        """
        Make the socket, set its options, bind it, and tell the protocol.

        @raise CannotListenError: the operating system refuses; C{socketError} is its L{OSError}.
        """
        if self._socket is not None:
            raise CannotListenError(None, self.family, OSError(EPERM, "it listens already"))  # type: ignore[no-untyped-call]
        try:
            self._socket = self._system.socket(self.family)
            self._configure(self._socket)
            self._socket.bind(0)
            self.portID = self._socket.getsockname()
        except OSError as error:
            self._closeSocket()
            raise CannotListenError(None, self.family, error) from error  # type: ignore[no-untyped-call]
        self.connected = 1
        self.disconnected = 0
        self.disconnecting = False
        self._log.info("{name} starting on netlink family {family}", name=type(self.protocol).__name__, family=self.family)
        self._reactor.addReader(self)
        self._tell(self.protocol.makeConnection, self)

    def _configure(self, sock: INetlinkSocket) -> None:
        """Set the options; what old kernels lack is done without, but for the group of each datagram."""
        sock.setsockopt(SOL_NETLINK, NETLINK_PKTINFO, 1)
        self._optional(sock, NETLINK_CAP_ACK)
        self.extendedAcks = self._optional(sock, NETLINK_EXT_ACK)
        self.strict = self.strict and self._optional(sock, NETLINK_GET_STRICT_CHK)
        if self._receiveBuffer is not None:
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, self._receiveBuffer)
            except OSError as error:
                if error.errno != EPERM:
                    raise
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receiveBuffer)

    @staticmethod
    def _optional(sock: INetlinkSocket, option: int) -> bool:
        """Switch on what not every kernel has."""
        try:
            sock.setsockopt(SOL_NETLINK, option, 1)
        except OSError as error:
            if error.errno != ENOPROTOOPT:
                raise
            return False
        return True

    def receiveBufferSize(self) -> int:
        """
        The bytes that may wait in the kernel, counted as the kernel does (twice of what was asked for, socket(7)).

        @raise OSError: C{ENOTCONN}: the port does not listen.
        """
        return self._listening().getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def joinGroup(self, group: int) -> None:
        """
        Receive what is sent to a multicast group.

        @param group: its number, 1 and up.
        @raise OSError: C{EPERM}, C{EINVAL}, C{ENOENT}; C{ENOTCONN}: the port does not listen.
        """
        self._listening().setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def leaveGroup(self, group: int) -> None:
        """
        Receive no longer what is sent to a multicast group.

        @raise OSError: as L{joinGroup}.
        """
        self._listening().setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, group)

    def _listening(self) -> INetlinkSocket:
        if self._socket is None:
            raise OSError(ENOTCONN, "the netlink port does not listen")
        return self._socket

    # Reading

    def doRead(self) -> OSError | None:
        """
        Read what waits, up to the bounds of one turn; called by the reactor.

        @return: None, or why the port cannot go on.
        """
        total = 0
        for _ in range(self.maximumReads):
            sock = self._socket
            if sock is None or total >= self.maximumThroughput:
                return None
            try:
                received = sock.recvfrom(self._maximumDatagram)
            except OSError as error:
                if error.errno == EAGAIN:
                    return None
                if error.errno == ENOBUFS:
                    self._overrun("netlink family {family}: the receive buffer was full", family=self.family)
                elif error.errno != EINTR:
                    return error
                continue
            total += len(received.data)
            if received.sender != 0:
                self.refused.note("refused a netlink datagram from port {sender}, not the kernel", sender=received.sender)
            elif received.truncated:
                self._overrun("netlink family {family}: a datagram was longer than {most}", most=self._maximumDatagram)
            else:
                self._tell(self.protocol.datagramReceived, received.data, received.group)
        return None

    def _overrun(self, what: str, **details: Any) -> None:
        """Datagrams are lost."""
        self.overruns += 1
        self.refused.note(what, **{"family": self.family, **details})
        self._tell(self.protocol.overrun)

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        """Call the protocol; its faults are not the port's."""
        try:
            method(*arguments)
        except Exception:
            self._log.failure("unhandled exception from {name}", name=getattr(method, "__qualname__", repr(method)))

    # Writing

    def write(self, datagram: bytes) -> None:
        """
        Send a datagram to the kernel, which in general has acted on it when this returns.  If the kernel cannot take it now, it
        is kept and sent later.

        @raise OSError: the kernel refuses it (C{EMSGSIZE}, C{EPERM} and so on), C{ENOTCONN}: the port does not listen,
            C{ENOBUFS}: too many datagrams wait already.
        """
        sock = self._listening()
        if not self._pending and self._send(sock, datagram):
            return
        if len(self._pending) >= self.maximumPending or self._pendingBytes + len(datagram) > self.maximumPendingBytes:
            raise OSError(ENOBUFS, "too many datagrams wait for the kernel")
        self._pending.append(datagram)
        self._pendingBytes += len(datagram)
        self._reactor.addWriter(self)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """
        Send one datagram that is given in pieces.

        @param iovec: the pieces.
        @raise OSError: as L{write}.
        """
        self.write(b"".join(iovec))

    def _send(self, sock: INetlinkSocket, datagram: bytes) -> bool:
        """
        Try to send.

        @return: whether the kernel has taken it.
        """
        for _ in range(self.maximumInterrupts):
            try:
                sock.sendto(datagram, 0)
            except OSError as error:
                if error.errno == EAGAIN:
                    return False
                if error.errno != EINTR:
                    raise
            else:
                return True
        return False

    def doWrite(self) -> None:
        """Send what was kept back; called by the reactor."""
        while self._pending and self._socket is not None:
            datagram = self._pending[0]
            try:
                if not self._send(self._socket, datagram):
                    return
            except OSError as error:
                self._takePending()
                self._tell(self.protocol.sendFailed, datagram, error)
            else:
                self._takePending()
        if self._socket is not None:
            self._reactor.removeWriter(self)

    def _takePending(self) -> None:
        self._pendingBytes -= len(self._pending.popleft())

    # The end

    def stopListening(self) -> Deferred[None]:
        """
        Close the socket.

        @return: fires when it is closed, in a later turn of the reactor.
        """
        if self._socket is None:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._forgetWaiter)
        self._waiters.append(waiter)
        if not self.disconnecting:
            self.disconnecting = True
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._reactor.callLater(0, self._stop)
        return waiter

    def loseConnection(self, _connDone: Any = None) -> None:
        """Close the socket in a later turn of the reactor, as L{stopListening}."""
        self.stopListening()

    def _forgetWaiter(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _stop(self) -> None:
        if self._socket is not None:
            self.connectionLost(Failure(ConnectionDone()))  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:
        """
        Close the socket and tell the protocol; called by the reactor, or by L{stopListening}.

        @param reason: C{ConnectionDone}, or what has failed.
        """
        if self._socket is None:
            return
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self._reactor.removeWriter(self)
        self._closeSocket()
        self._pending.clear()
        self._pendingBytes = 0
        self._log.info("(netlink family {family} closed)", family=self.family)
        self._tell(self.protocol.connectionLost, reason)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _closeSocket(self) -> None:
        """Close the descriptor, which Linux does whatever close(2) says."""
        sock, self._socket = self._socket, None
        self.portID = 0
        if sock is not None:
            try:
                sock.close()
            except OSError as error:
                self._log.warn("closing a netlink socket: {why}", why=error.strerror)
