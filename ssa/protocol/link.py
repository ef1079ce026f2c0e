# SPDX-License-Identifier: MIT
"""
Frames and descriptors over a connected SOCK_SEQPACKET socket (unix(7)).

Every descriptor that arrives is closed unless the receiver takes it; every descriptor that is given to be sent is closed,
whether it could be sent or not.  What is malformed or unbounded ends the link: nothing is ever cut off or skipped.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from errno import EAGAIN, EINTR, ENOBUFS, ENOMEM, ETOOMANYREFS
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.netlink.codec import BadValueError, Buffer, CodecError, TruncatedError
from ssa.protocol.memfd import LARGEST_INLINE, createMemoryFile, readMemoryFile
from ssa.protocol.messages import Message, Reply, decodeFrame

LARGEST_FRAME = 48 * 1024
"""The most bytes of a frame: a value that is sent inline, a path and the rest."""

MAXIMUM_DESCRIPTORS = 1
"""The most descriptors beside a frame."""

_PACKETS_PER_WAKEUP = 32
_SEND_BUFFER = 256 * 1024
_RETRY_DELAY = 0.02
_RETRIES = 250
_SHORTAGES = (ETOOMANYREFS, ENOBUFS, ENOMEM)
_CONTROL_SIZE = socket.CMSG_SPACE(MAXIMUM_DESCRIPTORS * 4)
_RECEIVE_FLAGS = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
_SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT


NO_DESCRIPTOR = -1
"""Stands for the descriptors beside a frame when this process had no number left for them (RLIMIT_NOFILE)."""


class LinkUser(Protocol):
    """Who uses a L{Link}."""

    def frameReceived(self, frame: Buffer, fds: list[int]) -> None:
        """
        A frame has arrived.

        @param frame: valid until this returns.
        @param fds: the descriptors beside it, or L{NO_DESCRIPTOR} alone.  Those that are still in the list when this
            returns or raises are closed.
        @raise CodecError: the frame is malformed or forbidden; the link ends.
        """

    def linkLost(self, reason: str) -> None:
        """The link has ended.  Called exactly once."""


class BoundedLog:
    """Logs what the other side makes us say, but only so often."""

    def __init__(self, log: Logger, most: int = 20) -> None:
        """
        @param most: how many lines in all.
        """
        self._log = log
        self._left = most

    def warn(self, format: str, **values: Any) -> None:
        """Log a warning, as L{Logger.warn<twisted.logger.Logger.warn>} does."""
        if self._left > 0:
            self._log.warn(self._counted(format), **values)

    def failure(self, format: str, reason: Failure | None = None, **values: Any) -> None:
        """Log a failure, as L{Logger.failure<twisted.logger.Logger.failure>} does."""
        if self._left > 0:
            self._log.failure(self._counted(format), reason, **values)

    def _counted(self, format: str) -> str:
        self._left -= 1
        return format if self._left else format + " (nothing more is logged about this link)"


def closeDescriptors(fds: list[int]) -> None:
    """Close all descriptors of a list and empty it."""
    while fds:
        try:
            os.close(fds.pop())
        except OSError:
            # The descriptor is gone all the same (close(2)): there is nothing left to do, and others have to follow.
            continue


class Link(FileDescriptor):
    """
    One end of a link.

    @ivar maximumFrames: the most frames in the send queue; one more ends the link.
    @ivar maximumBytes: the most bytes in the send queue; more end the link.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        user: LinkUser,
        maximumFrames: int = 4096,
        maximumBytes: int = 16 << 20,
    ) -> None:
        """
        Start to receive.

        @param reactor: provides L{IReactorFDSet<twisted.internet.interfaces.IReactorFDSet>} and
            L{IReactorTime<twisted.internet.interfaces.IReactorTime>}.
        @param sock: a connected AF_UNIX SOCK_SEQPACKET socket, which the link owns from now on.
        """
        super().__init__(reactor)
        self._reactor: Any = reactor
        self._sock = sock
        self._user = user
        self.maximumFrames = maximumFrames
        self.maximumBytes = maximumBytes
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queuedBytes = 0
        self._buffer = bytearray(LARGEST_FRAME + 1)
        self._view = memoryview(self._buffer)
        self._ending: str | None = None
        self._lost = False
        self._retries = 0
        self._retry: Any = None
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.connected = 1
        self._reactor.addReader(self)

    def fileno(self) -> int:
        """The socket's descriptor, or -1 after the end."""
        return self._sock.fileno()

    def logPrefix(self) -> str:
        """How the reactor names this in its log."""
        return "ssa.protocol.link"

    def send(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        """
        Send a frame, now or when there is room.

        @param fds: the descriptors beside it; they are closed in any case.
        """
        owned = list(fds)
        if self._ending is not None or self._lost:
            closeDescriptors(owned)
            return
        if len(frame) > LARGEST_FRAME or len(owned) > MAXIMUM_DESCRIPTORS:
            closeDescriptors(owned)
            raise BadValueError(f"a frame of {len(frame)} bytes with {len(fds)} descriptors is too large")
        if not self._queue and self._transmit(frame, owned):
            return
        if self._ending is not None:
            closeDescriptors(owned)
            return
        if len(self._queue) >= self.maximumFrames or self._queuedBytes + len(frame) > self.maximumBytes:
            closeDescriptors(owned)
            self.end("the other side does not read")
            return
        self._queue.append((frame, owned))
        self._queuedBytes += len(frame)
        if self._retry is None:
            self._reactor.addWriter(self)

    def sendMessage(self, message: Message, sequence: int = 0, fds: Sequence[int] = ()) -> None:
        """
        Send a message; a large value of it goes into a memory file.

        @param sequence: C{nlmsg_seq}.
        @param fds: the descriptors beside it; they are closed in any case.
        @raise CodecError: it cannot be encoded.
        @raise OSError: there is no descriptor for a memory file.
        """
        owned = list(fds)
        try:
            detached = bool(message.valueField) and len(getattr(message, message.valueField)) > LARGEST_INLINE
            frame = message.encode(sequence, detached=detached)
            if detached:
                owned.append(createMemoryFile(getattr(message, message.valueField)))
        except BaseException:
            closeDescriptors(owned)
            raise
        self.send(frame, owned)

    def end(self, reason: str) -> None:
        """
        End the link.  The user learns of it from the reactor, never from inside a call of its own.

        @param reason: for the log.
        """
        if self._ending is not None or self._lost:
            return
        self._ending = reason
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._dropQueue()
        self._reactor.callLater(0, self._finish, reason)

    def doRead(self) -> Exception | None:
        """Receive some packets; called by the reactor."""
        for _ in range(_PACKETS_PER_WAKEUP):
            if self._ending is not None or self._lost:
                return None
            try:
                size, control, flags, _ = self._sock.recvmsg_into([self._buffer], _CONTROL_SIZE, _RECEIVE_FLAGS)
            except OSError as error:
                if error.errno in (EAGAIN, EINTR):
                    return None
                return ConnectionLost(f"receiving failed: {error.strerror}")
            fds = _descriptorsOf(control) if control else []
            try:
                if flags & socket.MSG_TRUNC:
                    return ConnectionLost("a packet was cut off")
                if flags & socket.MSG_CTRUNC:
                    # No descriptor left in this process: only what came with this packet fails.
                    closeDescriptors(fds)
                    fds = [NO_DESCRIPTOR]
                if size == 0:
                    return ConnectionDone()
                if size > LARGEST_FRAME or len(fds) > MAXIMUM_DESCRIPTORS:
                    return ConnectionLost("a packet is too large")
                self._user.frameReceived(self._view[:size], fds)
            except CodecError as error:
                return ConnectionLost(f"the other side breaks the protocol: {error}")
            except Exception:
                self._log.failure("a frame could not be processed")
                return ConnectionLost("a frame could not be processed")
            finally:
                if fds:
                    closeDescriptors(fds)
        return None

    def doWrite(self) -> Exception | None:
        """Send what waits; called by the reactor."""
        while self._queue:
            frame, fds = self._queue[0]
            if not self._transmit(frame, fds):
                return None
            self._queue.popleft()
            self._queuedBytes -= len(frame)
        self._reactor.removeWriter(self)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has ended the link, for what L{doRead} or L{doWrite} returned."""
        self._finish(reason.getErrorMessage())

    def _finish(self, reason: str) -> None:
        """Release everything and tell the user, once."""
        if self._lost:
            return
        self._lost = True
        self.connected = 0
        self.disconnected = 1
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._dropQueue()
        self._sock.close()
        self._user.linkLost(self._ending or reason)

    def _transmit(self, frame: bytes, fds: list[int]) -> bool:
        """
        Try to send one frame and close its descriptors.

        @return: false where it has to wait, or where the link is about to end.
        """
        try:
            if fds:
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                self._sock.sendmsg([frame], control, _SEND_FLAGS)
            else:
                self._sock.send(frame, _SEND_FLAGS)
        except OSError as error:
            if error.errno in _SHORTAGES and self._retries < _RETRIES:
                # Too many descriptors in flight, or no memory: the socket stays writable, so that only time can tell.
                self._retries += 1
                self._reactor.removeWriter(self)
                self._retry = self._reactor.callLater(_RETRY_DELAY, self._resume)
            elif error.errno not in (EAGAIN, EINTR):
                self.end(f"sending failed: {error.strerror}")
            return False
        self._retries = 0
        if fds:
            closeDescriptors(fds)
        return True

    def _resume(self) -> None:
        self._retry = None
        self._reactor.addWriter(self)

    def _dropQueue(self) -> None:
        """Close what was to be sent."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        while self._queue:
            closeDescriptors(self._queue.popleft()[1])
        self._queuedBytes = 0


def _descriptorsOf(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg(2) returned beside the data."""
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def decodePacket(
    frame: Buffer, fds: list[int], classes: dict[int, type[Message]]
) -> tuple[int, Any]:
    """
    Decode a frame together with what came beside it.

    @param fds: a reply's descriptor stays in the list, and so does L{NO_DESCRIPTOR}: the caller of this fails what the
        frame is about with EMFILE.
    @return: C{nlmsg_seq}, and the message or acknowledgement.
    @raise CodecError: the frame is malformed, or its descriptors do not belong to it.
    """
    detached: Callable[[], bytes] | None = (lambda: readMemoryFile(fds[0])) if fds else None
    if fds == [NO_DESCRIPTOR]:
        detached = bytes  # the message is known, its value is lost
    sequence, message = decodeFrame(frame, classes, detached)
    if isinstance(message, Reply):
        if len(fds) != 1:
            raise TruncatedError(f"{message.command.name} came without its descriptor")
    elif fds:
        if not getattr(message, "valueField", ""):
            raise BadValueError("a descriptor came beside a frame that has none")
        if fds != [NO_DESCRIPTOR]:
            closeDescriptors(fds)
    return sequence, message
