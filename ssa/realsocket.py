# SPDX-License-Identifier: MIT
"""
Descriptors that come from an interceptor, and the wait for their TCP connection.

A descriptor is owned by exactly one place at every moment.  Between the
interceptor's reply and the socket object that closes it there is only
L{keepUntilTaken}.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.api import InternetAddress
from ssa.errors import Cause, SSAError, failed
from ssa.liveoptions import neverWaitInClose

T = TypeVar("T")


def keepUntilTaken(pending: Deferred[T], descriptorsOf: Callable[[T], Iterable[int]]) -> Deferred[T]:
    """
    Make a Deferred that can be cancelled without losing descriptors.

    A request that an interceptor has been sent cannot be taken back.  When
    the result is no longer wanted, its descriptors are closed as it arrives.

    @param pending: the reply; must not be used by anybody else.
    @param descriptorsOf: the descriptors in a reply.
    """
    taken: Deferred[T] = Deferred(lambda _: None)

    def arrived(result: T) -> None:
        if taken.called:
            for fd in descriptorsOf(result):
                os.close(fd)
        else:
            taken.callback(result)

    def refused(failure: Failure) -> None:
        if not taken.called:
            taken.errback(failure)

    pending.addCallbacks(arrived, refused)
    return taken


def adoptTCPSocket(fd: int, what: str) -> socket.socket:
    """
    Make a descriptor that an interceptor has sent a socket of the daemon.

    @param fd: owned by this function; it is closed when it is refused.
    @param what: what it should be, for the error.
    @return: a non-blocking, close-on-exec TCP socket, without Nagle's algorithm.
    @raise SSAError: EIO, it is no TCP socket; or the kernel's error.
    """
    sock = None
    try:
        sock = socket.socket(fileno=fd)
        if (
            sock.family not in (socket.AF_INET, socket.AF_INET6)
            or sock.type != socket.SOCK_STREAM
            or sock.proto != socket.IPPROTO_TCP
        ):
            raise Cause.INTERNAL.error(f"the interceptor sent something else than a TCP socket as {what}")
        sock.setblocking(False)
        sock.set_inheritable(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        if sock is None:
            os.close(fd)
        else:
            sock.close()
        if error.errno == errno.ENOTSOCK:
            raise Cause.INTERNAL.error(f"the interceptor sent something else than a TCP socket as {what}") from error
        raise failed(error.errno or errno.EIO, what) from error
    except SSAError:
        assert sock is not None
        sock.close()
        raise


def adoptRealSocket(fd: int) -> socket.socket:
    """
    L{adoptTCPSocket} for the real network connection or listener: close(2) on it will not wait.

    @raise SSAError: as there.
    """
    sock = adoptTCPSocket(fd, "the network connection")
    try:
        neverWaitInClose(sock)
    except OSError as error:
        sock.close()
        raise failed(error.errno or errno.EIO, "the network connection") from error
    return sock


def localAddress(sock: socket.socket) -> InternetAddress:
    """
    The address that a socket is bound to.

    @raise SSAError: the error of getsockname(2).
    """
    try:
        return InternetAddress.fromSocket(sock.family, sock.getsockname())
    except OSError as error:
        raise failed(error.errno or errno.EIO, "the address of the connection") from error


def remoteAddress(sock: socket.socket) -> InternetAddress:
    """
    The address that a socket is connected to.

    @raise SSAError: the error of getpeername(2).
    """
    try:
        return InternetAddress.fromSocket(sock.family, sock.getpeername())
    except OSError as error:
        raise failed(error.errno or errno.EIO, "the address of the peer") from error


@implementer(IReadWriteDescriptor)
class _ConnectWatch:
    """Waits until a non-blocking connect(2) has ended."""

    def __init__(self, reactor: IReactorFDSet, sock: socket.socket, remote: object) -> None:
        self._reactor = reactor
        self._sock = sock
        self._remote = remote
        self.connected: Deferred[None] = Deferred(lambda _: self._stop())
        reactor.addWriter(self)

    def fileno(self) -> int:
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return "connecting"

    def doRead(self) -> None:
        self.doWrite()

    def doWrite(self) -> None:
        self._stop()
        if self.connected.called:
            return
        try:
            number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number == 0:
                self._sock.getpeername()
        except OSError as error:
            number = error.errno or errno.EIO
        if number == 0:
            self.connected.callback(None)
        else:
            self.connected.errback(failed(number, f"connect to {self._remote}"))

    def connectionLost(self, reason: Any) -> None:
        """The reactor saw an error or hang-up instead of writability."""
        self.doWrite()

    def _stop(self) -> None:
        self._reactor.removeWriter(self)


def waitForConnect(reactor: IReactorFDSet, sock: socket.socket, remote: object) -> Deferred[None]:
    """
    Wait for the end of a connect(2) that is in progress.

    @param reactor: watches the socket.
    @param sock: stays the caller's; must live until the Deferred has fired or is cancelled.
    @param remote: where to, for the error.
    @return: fails with L{SSAError} and TCP's own errno; may be cancelled.
    """
    return _ConnectWatch(reactor, sock, remote).connected


def withTimeout(pending: Deferred[T], clock: IReactorTime, seconds: float, error: SSAError) -> Deferred[T]:
    """
    Cancel C{pending} and fail with C{error} when it takes too long.

    @param seconds: 0 or less: no limit.
    """
    if seconds <= 0:
        return pending

    def late(value: object, timeout: float) -> T:
        raise error

    return pending.addTimeout(seconds, clock, onTimeoutCancel=late)
