# SPDX-License-Identifier: MIT
"""
The handshake: from a TCP socket that may still be connecting to a TLS connection whose peer has been checked.

L{Handshake} is a descriptor on the reactor only while it runs.  It ends exactly once, with the connection or with an
L{SSAError} that says which check failed; the socket of a failed handshake is closed, after its alert has been sent.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.errors import Cause, SSAError, alertOf, causeOfOpenSSL, causeOfSystemError, connectionError, errorQueue, failed
from ssa.policy.profile import TLS_1_2
from ssa.tcpstate import isOver
from ssa.tls.connection import PeerCheck, peerCheckOf
from ssa.tls.diagnosis import FirstWords, explain

__all__ = ["Handshake", "describeConnectionError"]

_MOST_DRAINED = 256 * 1024

_NO_LINGER = bytes(8)
"""struct linger of socket(7), off."""

# What a TLS 1.2 server answers to an empty Certificate message where it demands one: RFC 5246 section 7.4.6 says
# handshake_failure; others are seen.  Before the server's own certificate the first has another meaning.
_CERTIFICATE_ALERTS = frozenset({"handshake failure", "bad certificate", "certificate unknown", "no certificate"})

_REFUSALS = frozenset({
    "bad certificate", "unsupported certificate", "certificate revoked", "certificate expired", "certificate unknown",
    "unknown ca", "access denied",
})  # fmt: skip
"""The alerts by which a peer refuses a certificate, RFC 8446 section 6.2."""


@implementer(IReadWriteDescriptor)
class Handshake:
    """
    One handshake on the reactor.

    @ivar connection: the TLS connection, made by L{ssa.tls.contexts}.
    """

    def __init__(
        self,
        reactor: Any,
        connection: SSL.Connection,
        sock: socket.socket,
        timeout: float,
        connecting: bool = False,
        connectTimeout: float = 0.0,
        where: str = "the peer",
    ) -> None:
        """
        @param reactor: an C{IReactorFDSet} and C{IReactorTime}.
        @param connection: with its side chosen, on C{sock}.
        @param sock: a non-blocking TCP socket; it is closed if the handshake fails, and the caller's if it succeeds.
        @param timeout: seconds that the handshake may take once TCP is established.
        @param connecting: whether connect(2) has been started on C{sock} and may not have ended.
        @param connectTimeout: seconds that TCP may take to connect; 0 leaves it to the kernel.
        @param where: the peer's address, for a person.
        """
        self.connection = connection
        self._reactor = reactor
        self._socket = sock
        self._descriptor = sock.fileno()
        self._timeout = timeout
        self._connecting = connecting
        self._connectTimeout = connectTimeout
        self._where = where
        self._check: PeerCheck = peerCheckOf(connection)
        self._words = FirstWords(sock)
        self._timer: Any = None
        self._reading = False
        self._writing = False
        self._done: Deferred[SSL.Connection] | None = None

    def start(self) -> Deferred[SSL.Connection]:
        """
        Begin; to be called once.

        @return: fires with the connection, which nothing reads from any more, or fails with L{SSAError}: TCP's errno,
            ETIMEDOUT, EPROTO, EKEYREJECTED, EKEYEXPIRED, EKEYREVOKED or ENOKEY.  Cancelling it closes the socket and
            fails it with ECANCELED.
        """
        done: Deferred[SSL.Connection] = Deferred(lambda _: self.cancel())
        self._done = done
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            self._fail(failed(error.errno or errno.EIO, f"TCP_NODELAY for {self._where}"))
            return done
        if self._connecting:
            if self._connectTimeout > 0:
                self._timer = self._reactor.callLater(self._connectTimeout, self._tooLong)
            self._watch(reading=False, writing=True)
        else:
            self._beginTLS()
        return done

    def cancel(self, reason: SSAError | None = None) -> None:
        """
        Give up: close the socket and fail.  Does nothing after the end.

        @param reason: what the Deferred fails with; C{None} for ECANCELED.
        """
        self._fail(reason if reason is not None else Cause.CANCELLED.error())

    # IReadWriteDescriptor

    def fileno(self) -> int:
        """The descriptor that the reactor watches; -1 after the end."""
        return self._descriptor if self._done is not None else -1

    def logPrefix(self) -> str:
        """What log lines begin with."""
        return "TLS handshake"

    def doRead(self) -> None:
        """Something can be read."""
        self._proceed()

    def doWrite(self) -> None:
        """TCP is connected, or has failed to, or something can be written."""
        self._proceed()

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor saw the connection's end (EPOLLHUP, EPOLLERR); it does not watch the descriptor any more.

        What there is to read is read before that end is judged: it may be an alert.  It may also be a stale event of another
        socket, which had the same descriptor when this round of the reactor began: then the handshake goes on.
        """
        self._reading = self._writing = False
        if self._done is not None:
            self._proceed()
        if self._done is not None and isOver(self._socket):
            self._failTLS(self._closedEarly("the connection was lost"))

    # the steps

    def _proceed(self) -> None:
        if self._done is None:
            return
        if self._connecting:
            self._finishConnect()
        else:
            self._shakeHands()

    def _finishConnect(self) -> None:
        """TCP has ended its attempt: connect(2), EINPROGRESS."""
        try:
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number:
                self._socket.getpeername()
        except OSError as error:
            number = error.errno or errno.EIO
        if number == errno.ECONNRESET:
            # A reset instead of the connection is ECONNREFUSED: this one came after it.
            self._fail(self._closedEarly("TCP was reset at once"))
        elif number:
            self._fail(failed(number, f"TCP connection to {self._where}"))
        else:
            self._beginTLS()

    def _beginTLS(self) -> None:
        self._connecting = False
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._reactor.callLater(self._timeout, self._tooLong)
        self._shakeHands()

    def _shakeHands(self) -> None:
        try:
            self._words.listen()
            if self._words.isSilent and self._check.identity is None:
                # A server has nothing to say before the client has.  So nothing comes between the look and OpenSSL's reading.
                self._watch(reading=True, writing=False)
                return
            self.connection.do_handshake()
        except SSL.WantReadError:
            self._watch(reading=True, writing=False)
        except SSL.WantWriteError:
            self._watch(reading=False, writing=True)
        except SSAError as error:  # a callback of ours has refused the peer
            self._failTLS(error)
        except SSL.Error as error:
            self._failTLS(self._judge(error))
        except OSError as error:
            self._failTLS(self._broken(error.errno or errno.EIO))
        except Exception as error:
            self._fail(Cause.INTERNAL.error(f"{type(error).__name__}: {error}"))
        else:
            self._succeed()

    def _judge(self, error: SSL.Error) -> SSAError:
        """Find the most particular reason for a failed handshake."""
        if self._check.refusal is not None:
            return self._check.refusal
        if isinstance(error, SSL.SysCallError):
            return self._broken(error.args[0])
        if isinstance(error, SSL.ZeroReturnError):
            return self._closedEarly("the peer sent close_notify")
        queue = errorQueue(error)
        if alertOf(queue) in _CERTIFICATE_ALERTS and self._mayLackCertificate():
            return Cause.NO_CLIENT_CERTIFICATE.error(causeOfOpenSSL(queue)[1])
        cause, detail = causeOfOpenSSL(queue)
        if cause is Cause.CLOSED_IN_HANDSHAKE:
            return self._closedEarly("it was closed without an alert")
        if self._check.proved and self._check.hasCredential and alertOf(queue) in _REFUSALS:
            # It has shown its own certificate, and so has seen ours.
            detail = f"it refuses our certificate, {detail}"
        return cause.error(f"{self._where}: {detail}")

    def _broken(self, number: int) -> SSAError:
        """TCP has ended with an errno; 0 or less for an end of file."""
        cause = causeOfSystemError(number)
        if cause is None:
            return failed(number, f"TLS handshake with {self._where}")
        return self._closedEarly("it was reset" if number > 0 else "it was closed without an alert")

    def _mayLackCertificate(self) -> bool:
        """Whether the server can have asked for a certificate, got none, and refused that."""
        return (
            self._check.proved
            and not self._check.hasCredential
            and self.connection.get_protocol_version() == TLS_1_2
        )

    def _closedEarly(self, how: str) -> SSAError:
        return Cause.CLOSED_IN_HANDSHAKE.error(f"{self._where}: {how}; perhaps it does not speak TLS")

    def _tooLong(self) -> None:
        self._timer = None
        if self._connecting:
            self._fail(failed(errno.ETIMEDOUT, f"TCP connection to {self._where} in {self._connectTimeout:g} s"))
        else:
            self._failTLS(Cause.HANDSHAKE_TIMEOUT.error(f"{self._where} did not finish it in {self._timeout:g} s"))

    # the end

    def _succeed(self) -> None:
        try:
            self._check.conclude(self.connection)
        except SSAError as error:
            self._fail(error)
            return
        except Exception as error:  # as in the checks themselves: whatever it is, the peer is refused
            self._fail(Cause.MALFORMED.error(f"the peer's certificate cannot be read ({type(error).__name__}: {error})"))
            return
        done = self._end()
        if done is not None:
            done.callback(self.connection)

    def _failTLS(self, error: SSAError) -> None:
        """Fail with what both sides said."""
        self._fail(explain(error, self.connection, self._check, self._words.heard, self._check.identity is not None))

    def _fail(self, error: SSAError) -> None:
        done = self._end()
        if done is None:
            return
        if self._check.resumption is not None:
            self._check.resumption.refused()
        _closeAfterAlert(self._socket)
        done.errback(error)

    def _end(self) -> Deferred[SSL.Connection] | None:
        """Leave the reactor.  @return: what to fire, or C{None} if it is over already."""
        done = self._done
        if done is not None:
            self._watch(reading=False, writing=False)
            self._done = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return done

    def _watch(self, reading: bool, writing: bool) -> None:
        """Tell the reactor what to wait for."""
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._reactor.addReader(self)
            else:
                self._reactor.removeReader(self)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._reactor.addWriter(self)
            else:
                self._reactor.removeWriter(self)


def _closeAfterAlert(sock: socket.socket) -> None:
    """
    Close a socket so that an alert that was written last arrives.

    A close with unread data is a reset, which can overtake the alert: what has arrived is read away first.  A linger time
    would make close(2) wait.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        sock.shutdown(socket.SHUT_WR)
        drained = 0
        while drained < _MOST_DRAINED:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
            if not data:
                break
            drained += len(data)
    except OSError:
        pass  # not connected, reset, or nothing there: it is closed all the same
    finally:
        sock.close()


def describeConnectionError(error: SSL.Error) -> SSAError:
    """
    Say why an established connection failed: for the relay, when a read or a write raises.

    @param error: what C{recv} or C{send} raised; not one of the C{Want…Error}s, and not C{ZeroReturnError}, which is the
        clean end.
    @return: always ECONNRESET, as the socket API has it for every end but close_notify; an end of TCP without
        close_notify has the text of L{Cause.TRUNCATED}.
    """
    if isinstance(error, SSL.SysCallError):
        return connectionError(error.args[0])
    queue = errorQueue(error)
    cause, detail = causeOfOpenSSL(queue)
    if cause is Cause.CLOSED_IN_HANDSHAKE:
        return Cause.TRUNCATED.error()
    if not alertOf(queue):
        return Cause.VIOLATED.error(detail)
    if cause is Cause.NO_CLIENT_CERTIFICATE:
        return Cause.BROKEN.error(f"{cause.text} ({detail})")
    if alertOf(queue) in _REFUSALS:
        # A server of TLS 1.3 looks at the client's certificate when the client's handshake has ended.
        return Cause.BROKEN.error(f"it refuses our certificate, {detail}")
    return Cause.BROKEN.error(detail)
