# SPDX-License-Identifier: MIT
"""
The relay: plaintext on one socket, TLS on the other, and every byte and every kind of end carried across.

Inbound is peer to program, outbound program to peer. What ends how, as TCP would have it end to end:

  - The peer's close_notify: all data, then the program reads end of stream; writing goes on. The program's FIN: all
    data, then close_notify; reading goes on. After both, both sockets are closed in order.
  - Any other end of the TLS side (TCP closed without close_notify, reset, fatal alert, forged record, time-out): the
    data that came before is delivered, then the program gets ECONNRESET (L{ssa.plaintext} knows how). Linux keeps
    data that came before a RST readable.
  - The program resets its socket (SO_LINGER 0, or close with unread data): what it had sent is passed on, then the
    network connection is reset, without close_notify, which would claim a completeness that is not there.
  - The program has closed for good (L{Relay.programClosed}): what it had sent is passed on, then close_notify, then
    FIN, then a bounded wait for the peer. Data of the peer that arrives after that resets the connection.

OpenSSL refuses to read from a connection on which a write has failed. Therefore the relay reads before it writes, and
before each write looks whether TCP has failed, so that data which precedes a reset is normally not lost. What
cannot be closed is a reset that arrives during a write itself.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Literal

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.buffers import DEFAULT_SIZE, RECORD_SIZE, ROOT, Buffer, BufferPool
from ssa.errors import Cause, connectionError
from ssa.interfaces import IPlaintextEnd
from ssa.readiness import BROKEN, READ, WRITE, Readiness
from ssa.tcpstate import end, hasData, isOver, queued
from ssa.tls.handshake import describeConnectionError

_MODE_ENABLE_PARTIAL_WRITE = 0x1
"""SSL_MODE_ENABLE_PARTIAL_WRITE of openssl/ssl.h; pyOpenSSL sets it on every context and does not export it."""

_FIRST_DRAIN_CHECK = 0.001
_LAST_DRAIN_CHECK = 0.25

_MOST_LOOKS = 8
"""How many reads may bring no session ticket before that is looked for only once more, at the end."""

_CLEAN = ""
"""How a direction ended: this, or a reason for people."""

def prepareContext(context: SSL.Context) -> None:
    """
    Set the modes that make a context's connections fit for a L{Relay}: one write makes as many records as it holds,
    and no record buffers stay with an idle connection. (A relay is correct without, but slower.) To be called before
    the first connection is made.
    """
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)


class RelayPool:
    """
    What all relays of one reactor share.

    @ivar buffers: the L{BufferPool}.
    @ivar readiness: the L{Readiness} with all their sockets.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        limit: int = 64,
        size: int = DEFAULT_SIZE,
        reserveLimit: int = 4096,
        userLimit: int | None = None,
    ) -> None:
        """
        @param reactor: also provides L{IReactorTime}.
        @param limit: most large buffers.
        @param size: length of one, bytes.
        @param reserveLimit: most buffers of one record, lent when the large ones are all out.
        @param userLimit: most large buffers for the relays of one user other than root; C{None}: C{limit}.
        """
        self.buffers = BufferPool(IReactorTime(reactor), limit, size, reserveLimit, userLimit)
        self.readiness = Readiness(reactor)

    def close(self) -> None:
        """Stop watching; for when all relays are done."""
        self.readiness.close()


class Relay:
    """
    Moves bytes between one handshaken TLS connection and one plaintext socket, and owns both from L{start} on.

    @ivar done: fires with C{None}, once, when both sockets are closed.
    @ivar bytesIn: plaintext delivered to the program's socket, bytes.
    @ivar bytesOut: plaintext of the program that was encrypted and sent, bytes.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        tls: SSL.Connection,
        tlsSocket: socket.socket,
        plain: IPlaintextEnd,
        pool: RelayPool,
        truncation: Literal["error", "allow"] = "error",
        onReason: Callable[[str], None] = lambda reason: None,
        lingerTime: float = 30.0,
        user: int = ROOT,
        collect: Callable[[SSL.Connection], bool] | None = None,
    ) -> None:
        """
        @param reactor: the clock for waits that have no event.
        @param tls: handshake finished; made on C{tlsSocket} with a context that saw L{prepareContext}.
        @param tlsSocket: the TCP connection to the peer.
        @param plain: the connection to the program.
        @param pool: shared by the relays of this reactor.
        @param truncation: C{"allow"}: TCP's FIN without close_notify is as good as close_notify.
        @param onReason: gets one line, once, if the program's connection ends with a reset.
        @param lingerTime: how long a peer may make no progress after the program has closed, seconds.
        @param user: the user id that its buffers count for.
        @param collect: called with the connection after reads, which may have brought session tickets, until it says that it
            has found one, and once more before the end; of many reads without one, only after the first.
        """
        self._clock = reactor
        self._tls: SSL.Connection | None = tls
        self._tlsSocket = tlsSocket
        self._plain = plain
        self._plainSocket = plain.sock
        self._buffers = pool.buffers
        self._readiness = pool.readiness
        self._truncation = truncation
        self._onReason = onReason
        self._lingerTime = lingerTime
        self._user = user
        self._collect = collect
        self._looks = _MOST_LOOKS if collect is not None else 0
        self.done: Deferred[None] = Deferred()
        self.bytesIn = 0
        self.bytesOut = 0

        self._inBuffer: Buffer | None = None
        self._inRest: memoryview | None = None  # decrypted, not yet taken by the program's socket
        self._inWaits = False  # for a buffer
        self._inEnd: str | None = None  # how reading TLS ended
        self._inDelivered = False  # ... and that the program's socket knows, or is being told
        self._inTelling = False

        self._outBuffer: Buffer | None = None
        self._outRest: memoryview | None = None  # must be given to OpenSSL unchanged until it is taken
        self._outWaits = False
        self._outEnded = False  # the program's socket has no more
        self._outDone = False  # close_notify is sent
        self._outFailure: str | None = None

        self._readNeedsWrite = False
        self._writeNeedsRead = False
        self._holdsData = False  # OpenSSL has decrypted bytes that no event of the socket will announce
        self._programGone = False
        self._programReset = False
        self._failed = False  # the TLS side is over: deliver, then reset the program's socket
        self._leaving = False  # the program is gone: only the network socket's send queue is waited for
        self._finished = False
        self._watching = False
        self._tlsInterest = 0
        self._plainInterest = 0
        self._tlsDescriptor = -1
        self._plainDescriptor = -1
        self._drainCall: IDelayedCall | None = None
        self._lingerCall: IDelayedCall | None = None
        self._soonCall: IDelayedCall | None = None
        self._lingerMark: tuple[int, int] = (-1, -1)

    # What the owner calls

    def start(self) -> None:
        """
        Begin. Data that OpenSSL holds already is served without waiting for the socket.

        @raise OSError: a socket is closed, or cannot be watched; nothing is owned then.
        """
        self._tlsSocket.setblocking(False)
        if self._tlsSocket.family in (socket.AF_INET, socket.AF_INET6):
            self._tlsSocket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._plain.prepare()
        assert self._tls is not None
        if self._truncation == "allow":
            self._tls.set_options(SSL.OP_IGNORE_UNEXPECTED_EOF)
        self._tlsDescriptor = self._tlsSocket.fileno()
        self._plainDescriptor = self._plainSocket.fileno()
        self._readiness.add(self._tlsDescriptor, self._tlsReady)
        try:
            self._readiness.add(self._plainDescriptor, self._plainReady)
        except OSError:
            self._readiness.remove(self._tlsDescriptor)
            raise
        self._watching = True
        self._holdsData = self._tls.pending() > 0
        self._settle()

    def abort(self, reason: str) -> None:
        """
        End at once: both sockets are reset, data on its way is lost. Does nothing after the end.

        @param reason: for L{onReason<Relay>}.
        """
        if self._finished:
            return
        self._report(reason)
        self._finish(resetPeer=True, resetProgram=True)

    def programClosed(self) -> None:
        """The last descriptor of the program's socket is gone: nobody reads any more. May come at any time."""
        if self._finished or self._leaving:
            return
        try:
            self._programLeft(False)
            self._settle()
        except Exception:
            self._broke()

    # Events

    def _broke(self) -> None:
        """A failure that was not thought of ends this relay, and nothing else."""
        self._log.failure("a relay failed")
        self.abort("internal error in the relay")

    def _tlsReady(self, events: int) -> None:
        try:
            if events & (READ | BROKEN) or self._readNeedsWrite:
                self._readTLS()
            if self._outRest is not None:
                self._writeTLS()
            self._settle()
        except Exception:
            self._broke()

    def _plainReady(self, events: int) -> None:
        try:
            if self._inRest is not None and events & (WRITE | BROKEN):
                self._writePlain()
            if events & (READ | BROKEN):
                if self._mayReadPlain():
                    self._readPlain()
                elif events & BROKEN and not self._finished:
                    if self._plainSocket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        self._programLeft(True)
            self._settle()
        except Exception:
            self._broke()

    def _pendingReady(self) -> None:
        self._soonCall = None
        self._tlsReady(READ)

    def _inTurn(self) -> None:
        self._inWaits = False
        self._tlsReady(READ)

    def _outTurn(self) -> None:
        self._outWaits = False
        self._plainReady(READ)

    # Inbound

    def _mayReadTLS(self) -> bool:
        if self._inEnd is not None or self._inRest is not None or self._inWaits or self._leaving or self._finished:
            return False
        # Once the program is gone, the peer's data is of no use; its end is, but only after what we still owe it.
        return not self._programGone or self._outDone or self._outFailure is not None

    def _readTLS(self) -> None:
        """Read records until the kernel has no more or the buffer is full, then pass them on in one piece."""
        if not self._mayReadTLS():
            return
        tls = self._tls
        assert tls is not None
        buffer = self._buffers.take(self._inTurn, self._user)
        if buffer is None:
            self._inWaits = True
            return
        view, size, filled = buffer.view, buffer.size, 0
        self._readNeedsWrite = self._holdsData = False
        try:
            while True:
                count = tls.recv_into(view[filled:] if filled else view, RECORD_SIZE)
                filled += count
                if size - filled < RECORD_SIZE:
                    break
                if count < RECORD_SIZE and not tls.pending() and not hasData(self._tlsSocket):
                    break
            self._holdsData = tls.pending() > 0
        except SSL.WantReadError:
            pass
        except SSL.WantWriteError:
            self._readNeedsWrite = True
        except SSL.ZeroReturnError:
            self._inEnd = _CLEAN
        except SSL.Error as error:
            # With OpenSSL before 4.0 an error that another connection left in the thread's queue turns "not yet"
            # into a failed system call; EAGAIN is never a reason to end.
            if not (isinstance(error, SSL.SysCallError) and error.args[0] == errno.EAGAIN):
                self._inEnd = describeConnectionError(error).reason
        self._inBuffer = buffer
        if self._looks:
            self._looks -= 1
            self._collectTickets()
        if filled:
            self._inRest = view[:filled]
            self._writePlain()
        else:
            self._dropInbound()

    def _collectTickets(self) -> None:
        """
        Look for session tickets.  They come right after the handshake, so the first read finds them, even of a connection that
        lives for days; one that the program closes at once is still read to the peer's close_notify, and then looked at.
        """
        if self._tls is None or self._collect is None:
            return
        try:
            if self._collect(self._tls):
                self._looks = 0
        except Exception:  # the connection is worth more than its session
            self._log.failure("a session could not be kept")
            self._collect = None

    def _writePlain(self) -> None:
        rest = self._inRest
        if rest is None:
            return
        if self._programGone:
            # Nobody reads this. TCP would answer it with a reset, and so do we.
            self._dropInbound()
            self._programReset = True
            return
        try:
            count = self._plainSocket.send(rest, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._programLeft(True)
            return
        self.bytesIn += count
        if count == len(rest):
            self._dropInbound()
        else:
            self._inRest = rest[count:]

    def _dropInbound(self) -> None:
        self._inRest = None
        buffer, self._inBuffer = self._inBuffer, None
        if buffer is not None:
            self._buffers.release(buffer)

    # Outbound

    def _mayReadPlain(self) -> bool:
        return not (
            self._outEnded or self._outRest is not None or self._outWaits or self._outFailure is not None
            or self._inEnd  # a reason: OpenSSL writes no more
            or self._leaving or self._finished
        )

    def _readPlain(self) -> None:
        buffer = self._buffers.take(self._outTurn, self._user)
        if buffer is None:
            self._outWaits = True
            return
        self._outBuffer = buffer
        try:
            count = self._plainSocket.recv_into(buffer.view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._dropOutbound()
            return
        except OSError:
            self._dropOutbound()
            self._outEnded = True
            self._programLeft(True)
            return
        if count:
            self._outRest = buffer.view[:count]
            self._writeTLS()
        else:
            self._dropOutbound()
            self._outEnded = True

    def _writeWouldFail(self) -> bool:
        """Look before OpenSSL does whether TCP has failed: reading must remain possible."""
        number = self._tlsSocket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._outboundFailed(connectionError(number).reason)
        return number != 0

    def _writeTLS(self) -> None:
        """Encrypt and send what is left of the buffer; after a refusal, the same bytes again."""
        rest = self._outRest
        tls = self._tls
        if rest is None or tls is None:
            return
        if self._inEnd:
            self._dropOutbound()
            return
        self._writeNeedsRead = False
        try:
            while rest:
                if self._writeWouldFail():
                    return
                count = tls.send(rest)
                self.bytesOut += count
                rest = rest[count:]
                self._outRest = rest
        except SSL.WantWriteError:
            return
        except SSL.WantReadError:
            self._writeNeedsRead = True
            return
        except SSL.Error as error:
            if not (isinstance(error, SSL.SysCallError) and error.args[0] == errno.EAGAIN):
                self._outboundFailed(describeConnectionError(error).reason)
            return
        self._dropOutbound()

    def _sayGoodbye(self) -> None:
        """Send close_notify, once everything before it is gone."""
        tls = self._tls
        if tls is None or self._writeWouldFail():
            return
        try:
            tls.shutdown()
        except (SSL.WantWriteError, SSL.WantReadError):
            return
        except SSL.Error as error:
            self._outboundFailed(describeConnectionError(error).reason)
            return
        self._outDone = True
        if self._programGone:
            self._sendFIN()

    def _sendFIN(self) -> None:
        try:
            self._tlsSocket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._log.debug("no FIN to a peer that is gone: {error}", error=error)

    def _outboundFailed(self, reason: str) -> None:
        """Nothing can be sent any more; what the peer has sent before is still read."""
        self._outFailure = reason
        self._dropOutbound()

    def _dropOutbound(self) -> None:
        self._outRest = None
        buffer, self._outBuffer = self._outBuffer, None
        if buffer is not None:
            self._buffers.release(buffer)

    # Ends

    def _programLeft(self, reset: bool) -> None:
        """Nobody reads what comes in any more. C{reset}: and the program's TCP said so by RST."""
        self._programReset = self._programReset or reset
        if self._programGone:
            return
        self._programGone = True
        self._dropInbound()
        if self._inWaits:
            self._inWaits = False
            self._buffers.forget(self._inTurn)
        if self._failed:
            return
        if self._outDone:
            self._sendFIN()
        if self._lingerCall is None:
            self._lingerMark = self._progress()
            self._lingerCall = self._clock.callLater(self._lingerTime, self._lingerOver)

    def _progress(self) -> tuple[int, int]:
        return (self.bytesOut, queued(self._tlsSocket))

    def _lingerOver(self) -> None:
        """The program is gone: a peer that took nothing for the whole time is given up."""
        self._lingerCall = None
        progress = self._progress()
        if progress != self._lingerMark and not (self._outDone and progress[1] == 0):
            self._lingerMark = progress
            self._lingerCall = self._clock.callLater(self._lingerTime, self._lingerOver)
            return
        self._finish(resetPeer=not self._outDone or progress[1] > 0 or self._programReset, resetProgram=True)

    def _settle(self) -> None:
        """Draw the conclusions from what has happened, and set the interest in further events."""
        if self._finished:
            return
        if self._outEnded and self._outRest is None and not (
            self._outDone or self._programReset or self._outFailure is not None or self._inEnd or self._leaving
        ):
            self._sayGoodbye()
        if self._inEnd is not None and self._inRest is None:
            self._inboundEnded(self._inEnd)
        if self._finished:
            return
        if self._programGone and not self._failed and not self._leaving:
            if self._outFailure is not None:
                self._finish(resetPeer=True, resetProgram=True)
                return
            # A reset is passed on when everything before it is; after a close_notify there is nothing before it.
            if self._programReset and self._outRest is None and self._outEnded:
                self._leaving = True
                self._drain(_FIRST_DRAIN_CHECK)
                if self._finished:
                    return
        if self._watching:
            self._setInterest()

    def _inboundEnded(self, end: str) -> None:
        """All data of the peer is passed on."""
        if end == _CLEAN and self._outFailure is not None and self._truncation == "allow":
            # OpenSSL was told not to distinguish close_notify from what a reset leaves behind.
            end = self._outFailure
        if end == _CLEAN and not self._inDelivered:
            self._inDelivered = True
            if not self._programGone:
                self._tellEnd()
        if self._inTelling:
            return
        if end == _CLEAN and self._outFailure is None:
            if self._outDone:
                self._finish(resetPeer=False, resetProgram=False)
            return
        if self._programGone:
            self._finish(resetPeer=False, resetProgram=True)
            return
        if not self._failed:
            self._failed = True
            # A write that failed first knows why; a read after it only sees the end.
            reason = end if end != _CLEAN else self._outFailure
            if self._outFailure is not None and end == Cause.TRUNCATED.text:
                reason = self._outFailure
            self._report(reason or Cause.RESET.text)
            self._dropOutbound()
            self._closeTLS(reset=False)
            self._drain(_FIRST_DRAIN_CHECK)

    def _tellEnd(self) -> None:
        """Tell the program of its peer's end; where that takes a while, nothing ends before it."""
        later = False

        def done(failure: Failure | None) -> None:
            self._inTelling = False
            try:
                if failure is not None and not isinstance(failure.value, OSError):
                    self._log.failure("the end of a stream was not told", failure)
                if failure is not None and not self._finished:
                    self._programLeft(True)
                if later:
                    self._settle()
            except Exception:
                self._broke()

        self._inTelling = True
        self._plain.cleanEnd().addBoth(done)
        later = self._inTelling

    def _drain(self, delay: float) -> None:
        """Wait until what was written last is acknowledged, which has no event, then end by a reset."""
        self._drainCall = None
        if self._finished:
            return
        if self._leaving:
            if queued(self._tlsSocket) == 0 or isOver(self._tlsSocket):
                self._finish(resetPeer=True, resetProgram=True)
                return
        elif self._programGone or self._plain.isDelivered():
            self._finish(resetPeer=True, resetProgram=True)
            return
        self._drainCall = self._clock.callLater(delay, self._drain, min(2 * delay, _LAST_DRAIN_CHECK))

    def _setInterest(self) -> None:
        if self._tlsDescriptor != -1:
            interest = 0
            if self._mayReadTLS():
                interest = WRITE if self._readNeedsWrite else READ
            goodbye = self._outEnded and not self._outDone and not self._programReset and self._outFailure is None
            goodbye = goodbye and not self._inEnd
            if (self._outRest is not None or goodbye) and not self._writeNeedsRead and not self._leaving:
                interest |= WRITE
            if self._holdsData and self._soonCall is None and self._mayReadTLS():
                self._soonCall = self._clock.callLater(0, self._pendingReady)
            if interest != self._tlsInterest:
                self._tlsInterest = interest
                self._readiness.want(self._tlsDescriptor, interest)
        interest = READ if self._mayReadPlain() else 0
        if self._inRest is not None:
            interest |= WRITE
        if interest != self._plainInterest:
            self._plainInterest = interest
            self._readiness.want(self._plainDescriptor, interest)

    def _report(self, reason: str) -> None:
        onReason, self._onReason = self._onReason, lambda reason: None
        try:
            onReason(reason)
        except Exception:
            self._log.failure("the reason of a relay's end was not taken")

    def _closeTLS(self, reset: bool) -> None:
        if self._tlsDescriptor != -1:
            self._readiness.remove(self._tlsDescriptor)
            self._tlsDescriptor = -1
        self._collectTickets()
        self._tls = None
        end(self._tlsSocket, reset)

    def _finish(self, resetPeer: bool, resetProgram: bool) -> None:
        if self._finished:
            return
        self._finished = True
        self._dropInbound()
        self._dropOutbound()
        self._buffers.forget(self._inTurn)
        self._buffers.forget(self._outTurn)
        for call in (self._drainCall, self._lingerCall, self._soonCall):
            if call is not None and call.active():
                call.cancel()
        try:
            self._closeTLS(resetPeer)
        finally:
            try:
                if self._plainDescriptor != -1:
                    self._readiness.remove(self._plainDescriptor)
                    self._plainDescriptor = -1
                if resetProgram:
                    self._plain.uncleanEnd()
                else:
                    self._plain.close()
            finally:
                self.done.callback(None)
