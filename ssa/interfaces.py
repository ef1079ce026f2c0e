# SPDX-License-Identifier: MIT
"""The interfaces between an interceptor, the daemon, and the transport that joins both."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from ssa.api import DataPath, InternetAddress
    from ssa.protocol.messages import Answer, Event


@dataclass(frozen=True)
class Fetched:
    """
    The real TCP socket of a TLS socket.

    @ivar fd: the descriptor; whoever holds this object owns it and has to close it.
    @ivar external: the address that the socket is bound to, or L{None} where it has none yet.
    @ivar remote: the address that it connects to, or L{None} for a listener.
    """

    fd: int
    external: InternetAddress | None
    remote: InternetAddress | None


class IRequests(Interface):
    """
    What an interceptor does when the daemon asks for it.

    Each method may return its result or a Deferred of it.  A failure with L{ssa.errors.SSAError} is sent with its errno, any
    other one is logged and sent as EIO.  The transport closes each returned descriptor after it is sent, or when it
    cannot be sent.
    """

    def fetch(id: int, remote: InternetAddress | None) -> Deferred[Fetched] | Fetched:
        """
        Hand over the real TCP socket.

        @param id: the socket.
        @param remote: connect a new real socket to this address; L{None}: the socket that there is.
        """

    def established(
        id: int, external: InternetAddress, remote: InternetAddress, dataPath: DataPath
    ) -> Deferred[int] | int:
        """
        The handshake has succeeded.

        @return: the descriptor of the plaintext end.
        """

    def accepted(
        id: int, external: InternetAddress, remote: InternetAddress
    ) -> Deferred[tuple[int, int]] | tuple[int, int]:
        """
        A listener has a finished connection.

        @return: the id of the new socket and the descriptor of its plaintext end.
        """


class IInterceptor(Interface):
    """An interceptor as the daemon sees it.  Every failure is an L{ssa.errors.SSAError}; a lost link is ENETDOWN."""

    peerUID: int = Attribute("The user id of the interceptor's process, from the operating system.")
    peerPID: int = Attribute("The process id of the interceptor, from the operating system; for logs only.")

    def fetch(id: int, remote: InternetAddress | None = None) -> Deferred[Fetched]:
        """
        Get the real TCP socket of a TLS socket.  The caller owns the descriptor.

        @param remote: where a new real socket shall connect to (one of the addresses of a name); L{None}: the socket
            that the interceptor has already made.
        """

    def established(
        id: int, external: InternetAddress, remote: InternetAddress, dataPath: DataPath
    ) -> Deferred[int]:
        """
        Report a finished handshake, before the answer to its event.

        @return: fires with the descriptor of the plaintext end, which the caller owns.
        """

    def accepted(
        id: int, external: InternetAddress, remote: InternetAddress, connection: socket.socket
    ) -> Deferred[tuple[int, int]]:
        """
        Report a finished handshake of a listener.  The result waits while the program's backlog is full.

        @param connection: the real socket; it stays the caller's.  When it is closed before the result, there is none.
        @return: fires with the id of the new socket and the descriptor of the plaintext end, which the caller owns.
        """

    def plaintextEnd(id: int, sock: socket.socket) -> IPlaintextEnd:
        """
        Know how a stream ends on the plaintext end that L{established} or L{accepted} has given.

        @param id: the socket.
        @param sock: made of that descriptor; the result owns it.
        """


class IPlaintextEnd(Interface):
    """
    The daemon's end of a program's plaintext connection.  What it says of the end of the stream is about what the program
    receives; what the program sends is read until its own end.
    """

    sock: socket.socket = Attribute("A connected stream socket, for the data.")

    def prepare() -> None:
        """
        Make it non-blocking, and fast.

        @raise OSError: it is closed.
        """

    def cleanEnd() -> Deferred[None]:
        """
        Tell the program that its peer's stream ends here, after what was written.

        @return: fires when it is told; fails with L{OSError}: the program is gone.
        """

    def isDelivered() -> bool:
        """
        Whether L{uncleanEnd} would take nothing away of what was written.

        @raise OSError: the socket is closed.
        """

    def uncleanEnd() -> None:
        """Close it so that the program gets ECONNRESET after the data.  May be called again."""

    def close() -> None:
        """Close it, after a clean end of both directions.  May be called again."""


class IEventReceiver(Interface):
    """The daemon's side of the events."""

    def eventReceived(interceptor: IInterceptor, event: Event) -> Deferred[Answer] | None:
        """
        An interceptor has reported an event.

        @return: fires with the answer, or fails with L{ssa.errors.SSAError}; L{None} for the events that want no answer.
        """

    def interceptorLost(interceptor: IInterceptor) -> None:
        """The link to an interceptor has ended, with everything that it had announced."""
