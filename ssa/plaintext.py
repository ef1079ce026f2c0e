# SPDX-License-Identifier: MIT
"""
The kinds of plaintext ends, and how a stream ends on each.

A program has to see the difference between the end of its peer's stream (close_notify) and any other end, also where the daemon
dies at that moment.  How that is said depends on what the interceptor gives the daemon; the relay knows only
L{IPlaintextEnd<ssa.interfaces.IPlaintextEnd>}.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.errors import Cause, SSAError
from ssa.interfaces import IPlaintextEnd
from ssa.tcpstate import close, isOver, queued


def adoptPlaintextEnd(fd: int) -> socket.socket:
    """
    Make the plaintext end that an interceptor has sent a socket of the daemon.

    @param fd: a connected TCP or unix stream socket; closed when refused.
    @raise SSAError: EIO, it is something else.
    """
    refusal = Cause.INTERNAL.error("the interceptor sent something else than a stream socket as plaintext end")
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise refusal from error
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise refusal
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


@implementer(IPlaintextEnd)
class TCPEnd:
    """
    A TCP connection within the machine, as a supervisor makes it: FIN is a clean end, RST an unclean one.

    RST takes data with it that the program's kernel has not acknowledged.
    """

    def __init__(self, sock: socket.socket) -> None:
        """@param sock: owned by this object from now on."""
        self.sock = sock

    def prepare(self) -> None:
        """Set what suits a relay; see L{IPlaintextEnd}."""
        self.sock.setblocking(False)
        if self.sock.family in (socket.AF_INET, socket.AF_INET6):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def cleanEnd(self) -> Deferred[None]:
        """Send FIN; see L{IPlaintextEnd}."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            return fail(error)
        return succeed(None)

    def isDelivered(self) -> bool:
        """Whether the program's kernel has everything; see L{IPlaintextEnd}."""
        return queued(self.sock) == 0 or isOver(self.sock)

    def uncleanEnd(self) -> None:
        """Send RST and close; see L{IPlaintextEnd}."""
        close(self.sock, reset=True)

    def close(self) -> None:
        """Close; see L{IPlaintextEnd}."""
        close(self.sock, reset=False)


@implementer(IPlaintextEnd)
class VouchedEnd:
    """
    One end of a pair of unix stream sockets whose other end the kernel module has: an end of stream is clean only where the
    daemon vouches for it before, else the module makes it ECONNRESET, after the data.

    What was written is in the program's receive queue at once, and stays there.
    """

    _log = Logger()

    def __init__(self, sock: socket.socket, vouch: Callable[[], Deferred[None]]) -> None:
        """
        @param sock: owned by this object from now on.
        @param vouch: tells the module that the stream of this connection ends cleanly; fires when the module knows.
        """
        self.sock = sock
        self._vouch = vouch

    def prepare(self) -> None:
        """Set what suits a relay; see L{IPlaintextEnd}."""
        self.sock.setblocking(False)

    def cleanEnd(self) -> Deferred[None]:
        """Vouch for the end, then half-close; see L{IPlaintextEnd}."""
        return self._vouch().addErrback(self._notVouched).addCallback(self._halfClose)

    def _notVouched(self, failure: Failure) -> None:
        """The program has closed, or the link is lost: without it the program sees ECONNRESET, which is not a lie."""
        failure.trap(SSAError)  # type: ignore[no-untyped-call]
        self._log.debug("nobody vouches for the end of a stream: {why}", why=str(failure.value))

    def _halfClose(self, _: None) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def isDelivered(self) -> bool:
        """Always; see L{IPlaintextEnd}."""
        return True

    def uncleanEnd(self) -> None:
        """Close without a word; see L{IPlaintextEnd}."""
        self.sock.close()

    def close(self) -> None:
        """Close; see L{IPlaintextEnd}."""
        self.sock.close()
