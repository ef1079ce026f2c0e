# SPDX-License-Identifier: MIT
"""
A real listener: accepts TCP connections, lets each do its handshake, and
passes on those that succeed.

Everything that strangers control is bounded: how many connections one wakeup
accepts, how many are between accept(2) and the program's queue, how many
handshakes are in flight (L{ssa.admission}), how long each may take, and how
often a failure is logged.  What is above a bound waits in the kernel's backlog.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.admission import Admission, Claimant, Slot
from ssa.errors import Cause, SSAError
from ssa.factories import Secured, TLSFactory
from ssa.liveoptions import neverWaitInClose
from ssa.logs import PROGRAM
from ssa.throttle import Throttle, notLogged

ACCEPTS_PER_WAKEUP = 16
"""How many connections are accepted before other descriptors have their turn."""

SHORTEST_PAUSE = 0.05
"""Seconds of the first pause after accept(2) ran out of descriptors or memory; each further one is twice as long."""

LONGEST_PAUSE = 5.0
"""Seconds of the longest pause."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_OF_THE_CONNECTION = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EPERM,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ETIMEDOUT,
    }
)
"""Errors of the connection that would have been accepted, not of the listener (accept(2), "Error handling")."""


class Accepting(Protocol):
    """What a listener tells its socket."""

    def connectionSecured(self, secured: Secured) -> Deferred[None]:
        """
        A handshake has succeeded.  The Deferred fires when the connection is
        in the program's queue or given up; it owns C{secured} from now on.
        """

    def connectionRefused(self, error: SSAError) -> None:
        """A connection that was accepted has failed before L{connectionSecured}, or is given up with the listener."""

    def listenerShutDown(self) -> None:
        """
        Whoever else holds the listener has shut it down: nothing can be accepted any more.

        Of a program on the kernel module it is the last descriptor's close, which the event tells too, or shutdown(2).
        """

    def listenerFailed(self, error: SSAError) -> None:
        """The listener itself is broken and accepts nothing any more."""


@implementer(IReadDescriptor)
class Listener:
    """
    Accepts on one real listening socket.

    @ivar inFlight: connections between accept(2) and the program's queue.
    @ivar accepted: how many connections have come.
    @ivar refused: how many of them have failed their handshake.
    """

    log = Logger()

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        sock: socket.socket,
        factory: TLSFactory,
        accepting: Accepting,
        admission: Admission,
        claimant: Claimant,
        maxForProgram: int,
        maxInFlight: int,
        describe: Callable[[], dict[str, object]],
        failures: Throttle,
    ) -> None:
        """
        @param sock: non-blocking and listening; owned by this object.
        @param factory: does the handshakes; closed when this stops.
        @param accepting: told of the connections.
        @param admission: bounds the handshakes of all.
        @param claimant: the program that listens.
        @param maxForProgram: how many handshakes it may have in flight.
        @param maxInFlight: the bound of L{inFlight}.
        @param describe: who listens where, for the log.
        @param failures: bounds the tracebacks of all listeners.
        """
        self._reactor = reactor
        self._clock = clock
        self._sock = sock
        self._factory = factory
        self._accepting = accepting
        self._admission = admission
        self._claimant = claimant
        self._maxForProgram = maxForProgram
        self._maxInFlight = maxInFlight
        self._describe = describe
        self._throttle = Throttle(clock)
        self._failures = failures
        self._serving: set[Deferred[None]] = set()
        self._handshakes: set[Deferred[Secured]] = set()
        self._pause = 0.0
        self._timer: IDelayedCall | None = None
        self._stopped = False
        self.inFlight = 0
        self.accepted = 0
        self.refused = 0

    def start(self) -> None:
        """Begin to accept."""
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Close the listener and give up every connection that the program has not got yet."""
        self.retire()
        for serving in list(self._serving):
            serving.cancel()

    def retire(self) -> None:
        """
        Close the listener and give up the handshakes.  Connections that have finished theirs go on: the program may have taken
        them, and the interceptor's word on that be still on its way.
        """
        if self._stopped:
            return
        self._stopped = True
        self._reactor.removeReader(self)
        self._admission.forget(self._resume)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._sock.close()
        for handshake in list(self._handshakes):
            handshake.cancel()
        self._factory.close()

    def setBacklog(self, backlog: int) -> None:
        """
        listen(2) once more.

        @raise SSAError: the error of listen(2).
        """
        try:
            self._sock.listen(max(0, min(backlog, 0x7FFFFFFF)))
        except OSError as error:
            raise SSAError(error.errno or errno.EINVAL, f"listen: {error.strerror or error}") from error

    def realSocket(self) -> socket.socket:
        """The real listening socket; it stays this object's."""
        return self._sock

    def fileno(self) -> int:
        """The descriptor that the reactor watches."""
        return self._sock.fileno()

    def logPrefix(self) -> str:
        """The name in Twisted's own log messages."""
        return "listening"

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor found the listener shut down, or a stale event of another socket: descriptors that are closed and opened
        within one round of the reactor have the same numbers.
        """
        if not self._stopped and not self._isShutDown():
            self._resume()

    def _isShutDown(self) -> bool:
        """Whether the listener accepts nothing any more; then all is told."""
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        self.retire()
        self._accepting.listenerShutDown()
        return True

    def doRead(self) -> None:
        """Accept what waits, up to the bounds."""
        for _ in range(ACCEPTS_PER_WAKEUP):
            if self._stopped:
                return
            if self.inFlight >= self._maxInFlight:
                self._reactor.removeReader(self)
                return
            slot = self._admission.tryTake(self._claimant, self._maxForProgram)
            if slot is None:
                self._reactor.removeReader(self)
                self._admission.whenFreed(self._resume)
                return
            if not self._acceptOne(slot):
                slot.release()
                return

    def _acceptOne(self, slot: Slot) -> bool:
        """
        @return: whether another one may be accepted; False also means that the slot was not used.
        """
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._rest(error)
                return False
            if error.errno in _OF_THE_CONNECTION:
                slot.release()
                return True
            if not self._isShutDown():
                self._broken(SSAError(error.errno or errno.EIO, f"accept: {error.strerror or error}"))
            return False
        self._pause = 0.0
        self.accepted += 1
        self.inFlight += 1
        serving = Deferred.fromCoroutine(self._serve(sock, slot))
        self._serving.add(serving)
        serving.addBoth(self._served, serving)
        return True

    async def _serve(self, sock: socket.socket, slot: Slot) -> None:
        """One connection from accept(2) to the program's queue."""
        remote = "an unknown peer"
        try:
            try:
                sock.setblocking(False)
                neverWaitInClose(sock)  # SO_LINGER is inherited from the listener
                remote = str(sock.getpeername()[0])
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                raise SSAError(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO)) from error
            secured = await self._handshake(sock)
        except SSAError as error:
            self.refused += 1
            self._accepting.connectionRefused(error)
            suppressed = self._throttle.allow()
            if suppressed is not None:
                self.log.info(
                    "a connection from {peer} was refused: {error}{more}; " + PROGRAM,
                    peer=remote,
                    error=str(error),
                    errno=error.name,
                    suppressed=suppressed,
                    more=f" ({suppressed} more were not logged)" if suppressed else "",
                    evidence=error.evidence,
                    **self._describe(),
                )
            return
        finally:
            slot.release()
        await self._accepting.connectionSecured(secured)

    def _handshake(self, sock: socket.socket) -> Deferred[Secured]:
        handshake = self._factory.handshake(sock)
        self._handshakes.add(handshake)

        def ended(result: Secured | Failure) -> Secured | Failure:
            self._handshakes.discard(handshake)
            return result

        return handshake.addBoth(ended)

    def _served(self, result: object, serving: Deferred[None]) -> None:
        self._serving.discard(serving)
        self.inFlight -= 1
        if isinstance(result, Failure):
            self._failed(result)
        if self._timer is None:
            self._resume()

    def _failed(self, failure: Failure) -> None:
        """A connection was given up with the listener, or by a mistake of ours."""
        if isinstance(failure.value, CancelledError):
            self._accepting.connectionRefused(Cause.CANCELLED.error("the listener was closed"))
            return
        self._accepting.connectionRefused(Cause.INTERNAL.error("an accepted connection"))
        suppressed = self._failures.allow()
        if suppressed is not None:
            self.log.failure("an accepted connection failed in the daemon{more}", failure, more=notLogged(suppressed))

    def _rest(self, error: OSError) -> None:
        """Out of descriptors or memory: the kernel keeps the connections, try again later."""
        self._pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, self._pause * 2))
        self._reactor.removeReader(self)
        self._timer = self._clock.callLater(self._pause, self._rested)
        if self._throttle.allow() is not None:
            self.log.error(
                "accept: {error}; trying again in {pause} s; " + PROGRAM,
                error=error.strerror,
                pause=self._pause,
                **self._describe(),
            )

    def _rested(self) -> None:
        self._timer = None
        self._resume()

    def _resume(self) -> None:
        if not self._stopped and self._timer is None and self.inFlight < self._maxInFlight:
            self._reactor.addReader(self)

    def _broken(self, error: SSAError) -> None:
        if not self._stopped:
            self.stop()
            self._accepting.listenerFailed(error)
