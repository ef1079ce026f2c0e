# SPDX-License-Identifier: MIT
"""Tests of L{ssa.plaintext}, alone and in a relay."""

from __future__ import annotations

import os
import socket
from errno import ECONNABORTED, ECONNRESET, ENETDOWN
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, fail, inlineCallbacks, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from ssa.errors import SSAError
from ssa.interfaces import IPlaintextEnd
from ssa.plaintext import TCPEnd, VouchedEnd
from ssa.test import test_relay
from ssa.test.fakes import openDescriptors, tcpPair
from ssa.test.test_relay import LINGER_RESET, Steps

reactor: Any = _reactor


class TCPTests(SynchronousTestCase):
    """A TCP connection."""

    def setUp(self) -> None:
        self.program, daemon = tcpPair()
        self.end = TCPEnd(daemon)
        self.program.settimeout(5)
        self.addCleanup(self.program.close)
        self.addCleanup(daemon.close)

    def test_clean(self) -> None:
        """FIN; the other direction goes on."""
        self.end.prepare()
        self.assertFalse(self.end.sock.getblocking())
        self.successResultOf(self.end.cleanEnd())
        self.assertEqual(b"", self.program.recv(1))
        self.program.sendall(b"on")
        self.program.shutdown(socket.SHUT_WR)
        self.end.sock.setblocking(True)
        self.assertEqual((b"on", b""), (self.end.sock.recv(10), self.end.sock.recv(10)))
        self.end.close()
        self.end.close()
        self.failureResultOf(self.end.cleanEnd(), OSError)

    def test_unclean(self) -> None:
        """RST, after what was acknowledged."""
        self.end.sock.sendall(b"data")
        while not self.end.isDelivered():
            continue
        self.end.uncleanEnd()
        self.end.uncleanEnd()
        self.assertEqual(b"data", self.program.recv(10))
        self.assertRaises(ConnectionResetError, self.program.recv, 1)


class VouchedTests(SynchronousTestCase):
    """A pair of unix sockets."""

    def setUp(self) -> None:
        self.program, daemon = socket.socketpair()
        self.program.settimeout(0.05)
        self.addCleanup(self.program.close)
        self.addCleanup(daemon.close)
        self.vouched: Deferred[None] = Deferred()
        self.end = VouchedEnd(daemon, lambda: self.vouched)

    def test_clean(self) -> None:
        """Nothing is seen before the kernel knows."""
        self.end.prepare()
        said = self.end.cleanEnd()
        self.assertRaises(TimeoutError, self.program.recv, 1)
        self.assertNoResult(said)
        self.vouched.callback(None)
        self.successResultOf(said)
        self.assertEqual(b"", self.program.recv(1))

    def test_notVouched(self) -> None:
        """The kernel refuses, or is not there: it is half-closed all the same, which the program sees as ECONNRESET."""
        for number in (ECONNABORTED, ENETDOWN):
            with self.subTest(number):
                said = self.end.cleanEnd()
                self.vouched.errback(SSAError(number, "no"))
                self.successResultOf(said)
                self.assertEqual(b"", self.program.recv(1))
                self.vouched = Deferred()

    def test_closedMeanwhile(self) -> None:
        """It was closed before the kernel has answered."""
        said = self.end.cleanEnd()
        self.end.uncleanEnd()
        self.vouched.callback(None)
        self.failureResultOf(said, OSError)

    def test_unclean(self) -> None:
        """Nobody is asked, and what was written stays."""
        self.end.sock.sendall(b"data")
        self.assertTrue(self.end.isDelivered())
        self.end.uncleanEnd()
        self.end.close()
        self.assertEqual((b"data", b""), (self.program.recv(10), self.program.recv(10)))
        self.assertNoResult(self.vouched)


class Recording:
    """
    Who vouches.

    @ivar asked: how often.
    @ivar answer: what is given.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Deferred[None] = succeed(None)

    def __call__(self) -> Deferred[None]:
        self.asked += 1
        return self.answer


class RelayTests(test_relay.RelayFixture):
    """A relay whose program has a unix socket."""

    def setUp(self) -> None:
        super().setUp()
        self.vouch = Recording()

    def makeEnd(self, plain: socket.socket, program: socket.socket) -> tuple[IPlaintextEnd, socket.socket]:
        plain.close()
        program.close()
        ours, theirs = socket.socketpair()
        theirs.settimeout(test_relay.PATIENCE)
        return VouchedEnd(ours, self.vouch), theirs

    @inlineCallbacks
    def test_clean(self) -> Steps:
        """Data and ends both ways; the end is vouched for once."""
        relay, program, peer = self.makeRelay()
        data = os.urandom(1 << 20)

        def talk() -> bytes:
            peer.send(data)
            peer.tls.shutdown()
            return peer.receiveAll()

        def listen() -> bytes:
            got = test_relay.receiveAll(program)
            program.sendall(b"answer")
            program.shutdown(socket.SHUT_WR)
            return got

        talking = self.inThread(talk)
        got = yield self.inThread(listen)
        self.assertTrue(data == got)
        self.assertEqual(b"answer", (yield talking))
        yield relay.done
        self.assertEqual((1, []), (self.vouch.asked, self.reasons))

    @inlineCallbacks
    def test_slowVouching(self) -> Steps:
        """Both directions have ended before the kernel has answered: nothing is closed before."""
        self.vouch.answer = Deferred()
        relay, program, peer = self.makeRelay()
        program.shutdown(socket.SHUT_WR)

        def talk() -> bytes:
            got = peer.receiveAll()
            peer.send(b"last words")
            peer.tls.shutdown()
            return got

        self.assertEqual(b"", (yield self.inThread(talk)))
        self.assertEqual(b"last words", (yield self.inThread(program.recv, 100)))
        program.settimeout(0.05)
        yield self.assertFailure(self.inThread(program.recv, 100), TimeoutError)
        self.assertFalse(relay.done.called)
        self.vouch.answer.callback(None)
        yield relay.done
        self.assertEqual((b"", 1, []), (program.recv(1), self.vouch.asked, self.reasons))

    @inlineCallbacks
    def test_abortedMeanwhile(self) -> Steps:
        """A relay that is cut while it waits for the kernel."""
        self.vouch.answer = Deferred()
        relay, _program, peer = self.makeRelay()
        yield self.inThread(peer.tls.shutdown)
        while not self.vouch.asked:
            yield self.soon()
        relay.abort("enough")
        yield relay.done
        self.vouch.answer.callback(None)
        self.assertEqual(["enough"], self.reasons)

    def soon(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        IReactorTime(reactor).callLater(0.01, waiting.callback, None)
        return waiting

    @inlineCallbacks
    def test_refused(self) -> Steps:
        """The kernel does not take it: the relay ends as usual."""
        self.vouch.answer = fail(SSAError(ENETDOWN, "gone"))
        relay, program, peer = self.makeRelay()
        yield self.inThread(peer.tls.shutdown)
        self.assertEqual(b"", (yield self.inThread(program.recv, 1)))
        program.close()
        yield relay.done

    @inlineCallbacks
    def test_truncated(self) -> Steps:
        """Another end is not vouched for; the data comes first, all of it, although nobody has read it yet."""
        relay, program, peer = self.makeRelay()
        yield self.inThread(peer.send, b"x" * 100000)
        while relay.bytesIn < 100000:
            yield self.soon()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        peer.sock.close()
        yield relay.done
        got = yield self.inThread(test_relay.receiveAll, program)
        self.assertEqual((100000, 0), (len(got), self.vouch.asked))
        self.assertEqual(1, len(self.reasons))

    @inlineCallbacks
    def test_programCloses(self) -> Steps:
        """What the program has written before its close arrives, then close_notify."""
        relay, program, peer = self.makeRelay()
        program.sendall(b"y" * 50000)
        program.close()
        relay.programClosed()

        def rest() -> bytes:
            got = peer.receiveAll()
            peer.sock.close()
            return got

        self.assertEqual(50000, len((yield self.inThread(rest))))
        yield relay.done
        self.assertEqual([], self.reasons)

    @inlineCallbacks
    def test_descriptors(self) -> Steps:
        """None is left."""
        before = openDescriptors()
        relay, program, peer = self.makeRelay()
        program.close()
        relay.abort("enough")
        yield relay.done
        peer.sock.close()
        self.assertEqual(before, openDescriptors())


class Program(socket.socket):
    """A program's end as the kernel module makes it: an end that nobody vouches for is ECONNRESET, after the data."""

    vouched = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        if not data and not self.vouched:
            raise ConnectionResetError(ECONNRESET, os.strerror(ECONNRESET))
        return data


class BehindModule:
    """Mixed into the tests of the relay: unix sockets instead of TCP."""

    def makeEnd(self, plain: socket.socket, program: socket.socket) -> tuple[IPlaintextEnd, socket.socket]:
        plain.close()
        program.close()
        ours, theirs = socket.socketpair()
        made = Program(fileno=theirs.detach())
        made.settimeout(test_relay.PATIENCE)

        def vouch() -> Deferred[None]:
            made.vouched = True
            answer: Deferred[None] = Deferred()
            reactor.callLater(0, answer.callback, None)
            return answer

        return VouchedEnd(ours, vouch), made


class DataTests(BehindModule, test_relay.DataTests):
    """Every byte arrives."""

    @inlineCallbacks
    def test_nodelay(self) -> Steps:
        """Only the network's side is TCP."""
        relay, _program, _peer = self.makeRelay()
        self.assertTrue(relay._tlsSocket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        relay.abort("enough")
        yield relay.done


class CleanEndTests(BehindModule, test_relay.CleanEndTests):
    """Ends in order."""


class OtherEndTests(BehindModule, test_relay.OtherEndTests):
    """All other ends."""

    @inlineCallbacks
    def test_programResets(self) -> Steps:
        """A program that closes without having read everything has not ended in order (unix(7) has no other reset)."""
        relay, program, peer = self.makeRelay()
        yield self.inThread(peer.send, b"unread")
        while relay.bytesIn < 6:
            yield deferLater(reactor, 0.01)
        program.sendall(b"before")
        program.close()
        self.assertEqual((yield self.inThread(peer.receive, 6)), b"before")
        error = yield self.assertFailure(self.inThread(peer.receive, 1), SSL.SysCallError)
        self.assertEqual("ECONNRESET", error.args[1])
        yield relay.done
        self.assertEqual([], self.reasons)
