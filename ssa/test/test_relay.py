# SPDX-License-Identifier: MIT
"""Tests of L{ssa.relay}: real TCP on loopback, real TLS, program and peer as blocking code in threads."""

from __future__ import annotations

import datetime
import hashlib
import os
import random
import select
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from ssa.interfaces import IPlaintextEnd
from ssa.plaintext import TCPEnd
from ssa.relay import Relay, RelayPool, prepareContext

T = TypeVar("T")
Steps = Generator[Deferred[Any], Any, None]

PATIENCE = 20
LINGER_RESET = struct.pack("ii", 1, 0)


def makeCertificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed certificate; nobody checks it here."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "peer.test")])
    start = datetime.datetime(2020, 1, 1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(datetime.datetime(2100, 1, 1))
    return builder.sign(key, hashes.SHA256()), key


CERTIFICATE, KEY = makeCertificate()


def makeContext(version: int, server: bool) -> SSL.Context:
    """A context for one version."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    prepareContext(context)
    if server:
        context.use_certificate(CERTIFICATE)
        context.use_privatekey(KEY)
    return context


def tcpPair(receiveBuffer: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection; the second has SO_RCVBUF C{receiveBuffer} if that is not 0."""
    with socket.socket() as listener:
        if receiveBuffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receiveBuffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class Peer:
    """The network peer: blocking TLS, patience bounded."""

    def __init__(self, tls: SSL.Connection, sock: socket.socket) -> None:
        self.tls = tls
        self.sock = sock
        sock.setblocking(True)
        patience = struct.pack("ll", PATIENCE, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)

    def send(self, data: bytes) -> None:
        self.tls.sendall(data)

    def receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self.tls.recv(min(65536, size - len(data)))
        return bytes(data)

    def receiveAll(self) -> bytes:
        """Until close_notify."""
        data = bytearray()
        while True:
            try:
                data += self.tls.recv(65536)
            except SSL.ZeroReturnError:
                return bytes(data)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self.sock.close()


def receiveAll(sock: socket.socket) -> bytes:
    """Read to the end of stream."""
    data = bytearray()
    while piece := sock.recv(65536):
        data += piece
    return bytes(data)


def receiveUntilReset(sock: socket.socket) -> bytes:
    """Read until ECONNRESET; an end of stream is a failure."""
    data = bytearray()
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return bytes(data)
        if not piece:
            raise AssertionError("a clean end of stream")
        data += piece


class RelayFixture(TestCase):
    """Makes relays between a program's socket and a peer."""

    timeout = 60
    version = SSL.TLS1_3_VERSION
    relayIsServer = False

    def setUp(self) -> None:
        self.pool = RelayPool(IReactorFDSet(reactor))
        self.addCleanup(self.pool.close)
        self.reasons: list[str] = []

    def makeRelay(self, *, started: bool = True, receiveBuffer: int = 0, **more: Any) -> tuple[Relay, socket.socket, Peer]:
        """A relay, the program's end of its plaintext connection, and the peer."""
        near, far = tcpPair(receiveBuffer)
        mine = SSL.Connection(makeContext(self.version, self.relayIsServer), near)
        other = SSL.Connection(makeContext(self.version, not self.relayIsServer), far)
        for tls, isServer in ((mine, self.relayIsServer), (other, not self.relayIsServer)):
            if isServer:
                tls.set_accept_state()
            else:
                tls.set_connect_state()
        near.setblocking(False)
        far.setblocking(False)
        waiting = {mine, other}
        while waiting:
            for tls in (mine, other):
                try:
                    tls.do_handshake()
                    waiting.discard(tls)
                except SSL.WantReadError:
                    continue
        plain, program = tcpPair(receiveBuffer)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        program.settimeout(PATIENCE)
        end, program = self.makeEnd(plain, program)
        relay = Relay(
            IReactorTime(reactor), mine, near, end, more.pop("pool", self.pool), onReason=self.reasons.append, **more
        )
        self.addCleanup(program.close)
        self.addCleanup(far.close)
        self.addCleanup(relay.abort, "the test is over")
        if started:
            relay.start()
        return relay, program, Peer(other, far)

    def makeEnd(self, plain: socket.socket, program: socket.socket) -> tuple[IPlaintextEnd, socket.socket]:
        """The plaintext end of a connection, and the program's."""
        return TCPEnd(plain), program

    def inThread(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        return deferToThread(work, *arguments)


class DataTests(RelayFixture):
    """Every byte arrives, in order, both ways."""

    @inlineCallbacks
    def test_echo(self) -> Steps:
        relay, program, peer = self.makeRelay()
        for size in (1, 16383, 16384, 16385, 300000):
            data = random.randbytes(size)
            yield self.inThread(program.sendall, data)
            self.assertEqual((yield self.inThread(peer.receive, size)), data)
            yield self.inThread(peer.send, data)
            got = yield self.inThread(self._receive, program, size)
            self.assertEqual(got, data)
        self.assertEqual(relay.bytesIn, relay.bytesOut)

    def _receive(self, sock: socket.socket, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += sock.recv(size - len(data))
        return bytes(data)

    @inlineCallbacks
    def test_byteAtATime(self) -> Steps:
        _relay, program, peer = self.makeRelay()

        def peerSide() -> bytes:
            # one thread: a TLS object does not serve two at a time
            for value in range(256):
                peer.send(bytes([value]))
            peer.tls.shutdown()
            return peer.receiveAll()

        def trickleOut() -> None:
            for value in range(256):
                program.send(bytes([value]))
            program.shutdown(socket.SHUT_WR)

        sent, _, got = yield gatherResults([
            self.inThread(peerSide), self.inThread(trickleOut), self.inThread(receiveAll, program),
        ])
        self.assertEqual(got, bytes(range(256)))
        self.assertEqual(sent, bytes(range(256)))

    @inlineCallbacks
    def test_duplexBulk(self) -> Steps:
        """64 MiB each way at the same time, in pieces of odd sizes."""
        # One TLS object serves one thread at a time, so the peer's two directions take turns on a non-blocking socket.
        relay, program, peer = self.makeRelay()
        total = 64 << 20
        block = random.randbytes(1 << 20)

        def send() -> str:
            digest, left, generator = hashlib.sha256(), total, random.Random(1)
            while left:
                size = min(left, generator.randrange(1, 1 << 20))
                program.sendall(block[:size])
                digest.update(block[:size])
                left -= size
            program.shutdown(socket.SHUT_WR)
            return digest.hexdigest()

        def receive() -> str:
            digest = hashlib.sha256()
            while piece := program.recv(1 << 18):
                digest.update(piece)
            return digest.hexdigest()

        def exchange() -> tuple[str, str]:
            peer.sock.setblocking(False)
            sent, received, left, pending = hashlib.sha256(), hashlib.sha256(), total, b""
            reading = writing = True
            while reading or writing:
                progress = False
                if reading:
                    try:
                        received.update(peer.tls.recv(1 << 16))
                        progress = True
                    except SSL.WantReadError:
                        pass
                    except SSL.ZeroReturnError:
                        reading = False
                        progress = True
                if writing:
                    try:
                        if not pending and left:
                            pending = block[: min(left, 99991)]
                            left -= len(pending)
                            sent.update(pending)
                        if pending:
                            pending = pending[peer.tls.send(pending) :]
                        else:
                            peer.tls.shutdown()
                            writing = False
                        progress = True
                    except SSL.WantWriteError:
                        pass
                if not progress:
                    select.select([peer.sock] * reading, [peer.sock] * writing, [], PATIENCE)
            return sent.hexdigest(), received.hexdigest()

        out, into, (sent, received) = yield gatherResults(
            [self.inThread(send), self.inThread(receive), self.inThread(exchange)]
        )
        self.assertEqual(out, received)
        self.assertEqual(into, sent)
        yield relay.done
        self.assertEqual((relay.bytesIn, relay.bytesOut), (total, total))
        self.assertEqual(self.pool.buffers.lent, 0)

    @inlineCallbacks
    def test_heldByOpenSSL(self) -> Steps:
        """Bytes that OpenSSL has decrypted before the start need no event of the socket."""
        relay, program, peer = self.makeRelay(started=False)
        peer.send(b"abcdefgh")
        tls = relay._tls
        assert tls is not None
        got = b""
        while not got:
            try:
                got = tls.recv(3)
            except SSL.WantReadError:
                continue
        self.assertEqual(tls.pending(), 5)
        relay.start()
        self.assertEqual((yield self.inThread(program.recv, 100)), b"defgh")

    @inlineCallbacks
    def test_nodelay(self) -> Steps:
        relay, program, peer = self.makeRelay()
        for sock in (relay._tlsSocket, relay._plainSocket):
            self.assertTrue(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        program.shutdown(socket.SHUT_WR)
        yield self.inThread(peer.receiveAll)
        peer.tls.shutdown()
        yield relay.done

    @inlineCallbacks
    def test_backPressure(self) -> Steps:
        """Receivers that don't read stop the relay's reading; large buffers stay bounded; other flows go on."""
        pool = RelayPool(IReactorFDSet(reactor), limit=2, reserveLimit=64)
        self.addCleanup(pool.close)
        stalled = [self.makeRelay(pool=pool, receiveBuffer=4096) for _ in range(4)]

        def fill(send: Callable[[bytes], Any]) -> int:
            sent = 0
            try:
                while True:
                    sent += send(bytes(65536))
            except (SSL.WantWriteError, BlockingIOError):
                return sent

        for _relay, program, peer in stalled:
            peer.sock.setblocking(False)
            program.setblocking(False)
        before = -1
        while before != (before := sum(r.bytesIn + r.bytesOut for r, _, _ in stalled)) or not pool.buffers.reserveLent:
            for _relay, program, peer in stalled:
                yield self.inThread(fill, peer.tls.send)
                yield self.inThread(fill, program.send)
        self.assertEqual(pool.buffers.lent, 2)
        self.assertLessEqual(pool.buffers.bytesHeld, 2 * 262144 + 64 * 16384)
        _relay, program, peer = self.makeRelay(pool=pool)
        yield gatherResults([self.inThread(program.sendall, b"x" * 500000), self.inThread(peer.receive, 500000)])
        for relay, program, _peer in stalled:
            program.setblocking(True)
            program.settimeout(PATIENCE)
            relay.abort("enough")
        self.assertEqual(pool.buffers.lent + pool.buffers.reserveLent, 0)

    @inlineCallbacks
    def test_turns(self) -> Steps:
        """With a single buffer, and that one stuck, relays wait; when it comes back, every one gets its turn."""
        pool = RelayPool(IReactorFDSet(reactor), limit=1, reserveLimit=0)
        self.addCleanup(pool.close)
        stuck, _program, peer = self.makeRelay(pool=pool, receiveBuffer=4096)
        peer.sock.setblocking(False)
        while not pool.buffers.lent:
            try:
                while True:
                    peer.tls.send(bytes(65536))
            except SSL.WantWriteError:
                yield self.inThread(lambda: None)
        flows = [self.makeRelay(pool=pool) for _ in range(5)]
        for _relay, program, peer in flows:
            program.sendall(b"up")
            peer.send(b"down")
        while pool.buffers.waiting < 2 * len(flows):
            yield self.inThread(lambda: None)
        flows[0][0].abort("leaves the queue")
        self.assertEqual(pool.buffers.waiting, 2 * len(flows) - 2)
        stuck.abort("gives its buffer back")
        for _relay, program, peer in flows[1:]:
            self.assertEqual((yield self.inThread(peer.receive, 2)), b"up")
            self.assertEqual((yield self.inThread(program.recv, 100)), b"down")
        self.assertEqual((pool.buffers.lent, pool.buffers.waiting), (0, 0))

    @inlineCallbacks
    def test_oneDirectionStalls(self) -> Steps:
        """A program that only writes, and a peer that only writes, don't stop each other's other direction."""
        relay, program, peer = self.makeRelay(receiveBuffer=4096)
        peer.sock.setblocking(False)
        before = -1
        while before != (before := relay.bytesIn):
            try:
                while True:
                    peer.tls.send(bytes(65536))
            except SSL.WantWriteError:
                yield self.inThread(lambda: None)
        peer.sock.setblocking(True)
        data = random.randbytes(200000)
        _, got = yield gatherResults([self.inThread(program.sendall, data), self.inThread(peer.receive, len(data))])
        self.assertEqual(got, data)


class TLS12DataTests(DataTests):
    version = SSL.TLS1_2_VERSION


class ServerDataTests(DataTests):
    relayIsServer = True


class CleanEndTests(RelayFixture):
    """Ends that the peer or the program asked for."""

    @inlineCallbacks
    def test_peerEndsFirst(self) -> Steps:
        relay, program, peer = self.makeRelay()
        peer.send(b"last words")
        peer.tls.shutdown()
        self.assertEqual((yield self.inThread(receiveAll, program)), b"last words")
        yield self.inThread(program.sendall, b"still talking")
        self.assertEqual((yield self.inThread(peer.receive, 13)), b"still talking")
        program.close()
        yield relay.done
        self.assertEqual(self.reasons, [])

    @inlineCallbacks
    def test_programEndsFirst(self) -> Steps:
        relay, program, peer = self.makeRelay()
        program.sendall(b"question")
        program.shutdown(socket.SHUT_WR)
        self.assertEqual((yield self.inThread(peer.receiveAll)), b"question")
        answer = random.randbytes(1 << 20)

        def reply() -> None:
            peer.send(answer)
            peer.tls.shutdown()

        _, got = yield gatherResults([self.inThread(reply), self.inThread(receiveAll, program)])
        self.assertEqual(got, answer)
        yield relay.done
        self.assertEqual(self.reasons, [])
        self.assertEqual((yield self.inThread(peer.sock.recv, 1)), b"")

    @inlineCallbacks
    def test_programReadsLate(self) -> Steps:
        """A relay that has ended leaves the data to the kernel: no reset cuts it off."""
        relay, program, peer = self.makeRelay()
        program.shutdown(socket.SHUT_WR)
        yield self.inThread(peer.receiveAll)
        peer.send(b"x" * 100000)
        peer.tls.shutdown()
        yield relay.done
        self.assertEqual(len((yield self.inThread(receiveAll, program))), 100000)

    @inlineCallbacks
    def test_truncationAllowed(self) -> Steps:
        relay, program, peer = self.makeRelay(truncation="allow")
        peer.send(b"all there is")
        peer.sock.shutdown(socket.SHUT_WR)
        self.assertEqual((yield self.inThread(receiveAll, program)), b"all there is")
        yield self.inThread(program.sendall, b"reply")
        program.shutdown(socket.SHUT_WR)
        self.assertEqual((yield self.inThread(peer.receiveAll)), b"reply")
        yield relay.done
        self.assertEqual(self.reasons, [])

    @inlineCallbacks
    def test_programClosed(self) -> Steps:
        """After the program's close: its data, close_notify, FIN; then the peer's end."""
        relay, program, peer = self.makeRelay()
        data = random.randbytes(3 << 20)

        def sendAndClose() -> None:
            program.sendall(data)
            program.close()

        yield self.inThread(sendAndClose)
        relay.programClosed()
        self.assertEqual((yield self.inThread(peer.receiveAll)), data)
        self.assertEqual((yield self.inThread(peer.sock.recv, 1)), b"")
        self.assertFalse(relay._finished)
        peer.tls.shutdown()
        yield relay.done
        self.assertEqual(self.reasons, [])

    @inlineCallbacks
    def test_programClosedPeerSilent(self) -> Steps:
        """A peer that does not end is waited for only as long as was said."""
        relay, program, peer = self.makeRelay(lingerTime=0.05)
        program.close()
        relay.programClosed()
        yield relay.done
        self.assertEqual((yield self.inThread(peer.receiveAll)), b"")

    @inlineCallbacks
    def test_programClosedPeerSendsOn(self) -> Steps:
        """Data after the program's close resets the connection, as in TCP."""
        relay, program, peer = self.makeRelay()
        program.sendall(b"bye")
        program.close()
        relay.programClosed()
        self.assertEqual((yield self.inThread(peer.receiveAll)), b"bye")
        peer.send(b"more")
        yield relay.done
        # Linux says EPIPE, not ECONNRESET, to who has the FIN already (tcp_reset).
        yield self.assertFailure(self.inThread(peer.send, b"even more"), SSL.SysCallError)

    @inlineCallbacks
    def test_closedWithoutNotice(self) -> Steps:
        """The program is gone, the interceptor has not said so, and the peer sends on: both sides end."""
        relay, program, peer = self.makeRelay()
        program.close()
        self.assertEqual((yield self.inThread(peer.receiveAll)), b"")

        def sendOn() -> None:
            while True:
                peer.send(bytes(1000))

        yield self.assertFailure(self.inThread(sendOn), SSL.SysCallError)
        yield relay.done


class TLS12CleanEndTests(CleanEndTests):
    version = SSL.TLS1_2_VERSION

    @inlineCallbacks
    def test_peerEndsFirst(self) -> Steps:
        relay, program, peer = self.makeRelay()
        peer.send(b"last words")
        peer.tls.shutdown()
        self.assertEqual((yield self.inThread(receiveAll, program)), b"last words")
        program.close()
        yield relay.done


class OtherEndTests(RelayFixture):
    """Ends that nobody asked for: the data, then ECONNRESET, and the reason."""

    @inlineCallbacks
    def endsWithReset(self, end: Callable[[Peer], None], reason: str, size: int = 200000, **more: Any) -> Steps:
        relay, program, peer = self.makeRelay(**more)
        data = random.randbytes(size)

        def sendAndEnd() -> None:
            peer.send(data)
            end(peer)

        _, got = yield gatherResults([self.inThread(sendAndEnd), self.inThread(receiveUntilReset, program)])
        yield relay.done
        self.assertEqual(len(got), len(data))
        self.assertEqual(got, data)
        self.assertEqual(len(self.reasons), 1)
        self.assertIn(reason, self.reasons[0])
        self.assertEqual(self.pool.buffers.lent, 0)

    def test_truncated(self) -> Deferred[None]:
        return self.endsWithReset(lambda peer: peer.sock.close(), "ended without close_notify", 5)

    def test_truncatedBulk(self) -> Deferred[None]:
        return self.endsWithReset(lambda peer: peer.sock.shutdown(socket.SHUT_WR), "without close_notify", 2 << 20)

    def test_truncatedSlowProgram(self) -> Deferred[None]:
        return self.endsWithReset(
            lambda peer: peer.sock.shutdown(socket.SHUT_WR), "without close_notify", receiveBuffer=4096
        )

    def test_reset(self) -> Deferred[None]:
        return self.endsWithReset(lambda peer: peer.reset(), "the connection was reset", 5)

    def test_forgedRecord(self) -> Deferred[None]:
        return self.endsWithReset(
            lambda peer: peer.sock.sendall(b"\x17\x03\x03\x00\x40" + bytes(64)), "bad record mac"
        )

    def test_notTLS(self) -> Deferred[None]:
        return self.endsWithReset(lambda peer: peer.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n"), "TLS")

    @inlineCallbacks
    def test_resetIsNoTruncation(self) -> Steps:
        """A profile that allows truncation does not allow a reset, found by reading or by writing."""
        for writing in (False, True):
            self.reasons.clear()
            relay, program, peer = self.makeRelay(truncation="allow")
            peer.send(b"data")
            self.assertEqual((yield self.inThread(program.recv, 100)), b"data")
            peerEnds = self.inThread(peer.reset)
            if writing:
                may = relay._mayReadTLS
                self.patch(relay, "_mayReadTLS", lambda relay=relay, may=may: relay._outFailure is not None and may())
                relay._setInterest()
                yield peerEnds
                program.send(b"x")
            self.assertEqual((yield self.inThread(receiveUntilReset, program)), b"")
            yield relay.done
            self.assertEqual(self.reasons, ["the connection was reset"])

    @inlineCallbacks
    def test_alert(self) -> Steps:
        """The peer finds a forged record and says so."""
        relay, program, peer = self.makeRelay()
        relay._tlsSocket.send(b"\x17\x03\x03\x00\x40" + bytes(64))
        yield self.assertFailure(self.inThread(peer.receiveAll), SSL.Error)
        self.assertEqual((yield self.inThread(receiveUntilReset, program)), b"")
        yield relay.done
        self.assertEqual(self.reasons, ["the peer ended the connection with an error: it sent the alert bad_record_mac (20)"])

    @inlineCallbacks
    def test_dataBeforeResetWhileWriting(self) -> Steps:
        """The peer answers, then resets, while the program's data waits: the answer is not lost."""
        relay, program, peer = self.makeRelay()
        program.setblocking(False)
        before = -1
        while before != (before := relay.bytesOut):
            try:
                while True:
                    program.send(bytes(1 << 20))
            except BlockingIOError:
                yield self.inThread(lambda: None)
        peer.send(b"too large")
        peer.reset()
        program.settimeout(PATIENCE)
        self.assertEqual((yield self.inThread(receiveUntilReset, program)), b"too large")
        yield relay.done

    @inlineCallbacks
    def test_resetWhileProgramDoesNotRead(self) -> Steps:
        """What the program has not read yet when the reset comes stays readable."""
        relay, program, peer = self.makeRelay()
        peer.send(b"x" * 50000)
        peer.sock.close()
        yield relay.done
        got = yield self.inThread(receiveUntilReset, program)
        self.assertEqual(len(got), 50000)

    @inlineCallbacks
    def test_failureAfterCleanEnd(self) -> Steps:
        """After the peer's close_notify a write into a dead connection gives the program an error."""
        relay, program, peer = self.makeRelay()
        peer.send(b"end")
        peer.tls.shutdown()
        self.assertEqual((yield self.inThread(receiveAll, program)), b"end")
        peer.sock.close()

        def writeOn() -> None:
            while True:
                program.send(bytes(100))

        yield self.assertFailure(self.inThread(writeOn), BrokenPipeError, ConnectionResetError)
        yield relay.done
        self.assertEqual(self.reasons, ["the connection was reset"])

    @inlineCallbacks
    def test_programResets(self) -> Steps:
        """The program's abortive close: what it sent, then a reset of the network connection."""
        relay, program, peer = self.makeRelay()
        program.sendall(b"before")
        self.assertEqual((yield self.inThread(peer.receive, 6)), b"before")
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        program.close()
        error = yield self.assertFailure(self.inThread(peer.receive, 1), SSL.SysCallError)
        self.assertEqual(error.args[1], "ECONNRESET")
        yield relay.done
        self.assertEqual(self.reasons, [])

    @inlineCallbacks
    def test_abort(self) -> Steps:
        relay, program, peer = self.makeRelay()
        relay.abort("stopped by the administrator")
        relay.abort("again")
        relay.programClosed()
        yield relay.done
        self.assertEqual((yield self.inThread(receiveUntilReset, program)), b"")
        yield self.assertFailure(self.inThread(peer.receive, 1), SSL.SysCallError)
        self.assertEqual(self.reasons, ["stopped by the administrator"])

    @inlineCallbacks
    def test_internalError(self) -> Steps:
        """An exception nobody thought of: logged, both sides reset, nothing leaks."""
        relay, program, peer = self.makeRelay()

        def fail() -> None:
            raise RuntimeError("unforeseen")

        self.patch(relay, "_readTLS", fail)
        peer.send(b"x")
        self.assertEqual((yield self.inThread(receiveUntilReset, program)), b"")
        yield relay.done
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class TLS12OtherEndTests(OtherEndTests):
    version = SSL.TLS1_2_VERSION


class KeyUpdateTests(RelayFixture):
    """TLS 1.3 KeyUpdate, which only openssl(1) sends on demand."""

    @inlineCallbacks
    def test_keyUpdate(self) -> Steps:
        program = shutil.which("openssl")
        if program is None:
            raise SkipTest("no openssl command")
        directory = self.mktemp()
        os.mkdir(directory)
        path = os.path.join(directory, "peer.pem")
        with open(path, "wb") as file:
            file.write(CERTIFICATE.public_bytes(serialization.Encoding.PEM))
            file.write(KEY.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = subprocess.Popen(
            [program, "s_server", "-accept", f"127.0.0.1:{port}", "-cert", path, "-tls1_3", "-naccept", "1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )
        assert server.stdin is not None and server.stdout is not None
        serverInput, serverOutput = server.stdin, server.stdout

        def end() -> None:
            server.kill()
            server.wait()
            serverInput.close()
            serverOutput.close()

        self.addCleanup(end)

        def handshake() -> tuple[SSL.Connection, socket.socket]:
            while serverOutput.readline().strip() != b"ACCEPT":
                continue
            near = socket.create_connection(("127.0.0.1", port))
            tls = SSL.Connection(makeContext(SSL.TLS1_3_VERSION, False), near)
            tls.set_connect_state()
            tls.do_handshake()
            return tls, near

        tls, near = yield self.inThread(handshake)
        plain, client = tcpPair()
        client.settimeout(PATIENCE)
        self.addCleanup(client.close)
        relay = Relay(IReactorTime(reactor), tls, near, TCPEnd(plain), self.pool, onReason=self.reasons.append)
        self.addCleanup(relay.abort, "the test is over")
        relay.start()

        def say(line: bytes) -> bytes:
            serverInput.write(line)
            return client.recv(100)

        def hear(line: bytes) -> None:
            client.sendall(line)
            while serverOutput.readline() != line:
                continue

        self.assertEqual((yield self.inThread(say, b"one\n")), b"one\n")
        for command in (b"K\n", b"k\n", b"K\n"):
            serverInput.write(command)
            yield self.inThread(hear, b"from the program\n")
            self.assertEqual((yield self.inThread(say, b"two\n")), b"two\n")
            yield self.inThread(hear, b"and again\n")
        self.assertEqual(self.reasons, [])
