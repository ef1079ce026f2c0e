# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.handshake}: real TCP on the loopback, peers that behave and peers that do not."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ssa.api import Option
from ssa.errors import Cause, SSAError
from ssa.options import SocketOptions
from ssa.policy.profile import TLS_1_2, TLS_1_3, Profile
from ssa.test.pki import otherCA, testCA
from ssa.test.tlspair import serving, trusting
from ssa.tls.connection import peerCheckOf
from ssa.tls.contexts import clientConnection
from ssa.tls.handshake import Handshake, describeConnectionError
from ssa.tls.identity import parseIdentity
from ssa.tls.servercontexts import serverConnection, serverContexts

_WAIT = 10.0
"""Seconds that a thread of a test waits for its peer at the most."""


def watched() -> set[object]:
    """Everything that the reactor watches."""
    return {*reactor.getReaders(), *reactor.getWriters()}


async def failureOf(done: Deferred[SSL.Connection]) -> SSAError:
    """Wait for a handshake that must fail."""
    try:
        await done
    except SSAError as error:
        return error
    raise AssertionError("the handshake succeeded")


class LoopbackCase(TestCase):
    """A listener on the loopback, and what belongs to it."""

    timeout = 30

    def setUp(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.listener.settimeout(_WAIT)
        self.registered = watched()

    def tearDown(self) -> None:
        now = watched()
        left = [each for each in now - self.registered if isinstance(each, Handshake)]
        self.assertEqual(left, [], "a descriptor was left in the reactor")

    def connecting(self, port: int | None = None) -> socket.socket:
        """Start a non-blocking connect to the listener, or to another port of the loopback."""
        sock = socket.socket()
        self.addCleanup(sock.close)
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port if port is not None else self.listener.getsockname()[1]))
        return sock

    def client(
        self,
        options: SocketOptions | None = None,
        name: str = "server.example",
        timeout: float = _WAIT,
        profile: Profile | None = None,
        port: int | None = None,
    ) -> Handshake:
        """Make the client's handshake, TCP included."""
        sock = self.connecting(port)
        connection = clientConnection(
            profile or Profile(), options or trusting(testCA()), sock, parseIdentity(name)
        )
        return Handshake(reactor, connection, sock, timeout, connecting=True, where="127.0.0.1")

    def scripted(self, script: Callable[[socket.socket], None]) -> Deferred[None]:
        """Run a server in a thread: it accepts one connection and does as the script says."""

        def run() -> None:
            accepted, _ = self.listener.accept()
            accepted.settimeout(_WAIT)
            with accepted:
                script(accepted)

        return deferToThread(run)

    def refused(self, handshake: Handshake, number: int, *words: str) -> Deferred[SSAError]:
        """Start a handshake that must fail with this errno, and with these words in its reason."""

        def check(failure: Failure) -> SSAError:
            error = failure.value
            assert isinstance(error, SSAError), failure
            self.assertEqual(errno.errorcode[error.errno], errno.errorcode[number], error.reason)
            for word in words:
                self.assertIn(word, error.reason)
            self.assertEqual(handshake.fileno(), -1)
            self.assertEqual(handshake.connection.get_context() is not None, True)
            return error

        def unexpected(_: SSL.Connection) -> SSAError:
            raise AssertionError("the handshake succeeded")

        return handshake.start().addCallbacks(unexpected, check)


class BothSidesTests(LoopbackCase):
    """A client and a server of ours."""

    def both(self, client: Handshake, server: SocketOptions) -> tuple[Deferred[Any], Deferred[Any]]:
        done = client.start()
        accepted, _ = self.listener.accept()
        self.addCleanup(accepted.close)
        accepted.setblocking(False)
        contexts = serverContexts(Profile(), server)
        shake = Handshake(reactor, serverConnection(contexts, accepted), accepted, _WAIT, where="the client")
        return done, shake.start()

    async def test_success(self) -> None:
        """Both sides end with a connection that carries data; nothing is left in the reactor."""
        for version in (TLS_1_2, TLS_1_3):
            client = self.client(profile=Profile(maxProtocol=version))
            ours, theirs = self.both(client, serving(testCA().intermediate().issue()))
            connection, other = await ours, await theirs
            self.assertTrue(peerCheckOf(connection).proved)
            self.assertEqual(client.fileno(), -1)
            self.assertEqual(connection.get_protocol_version(), version)
            connection.setblocking(True)
            connection.settimeout(None)
            other.setblocking(True)
            connection.send(b"ping")
            self.assertEqual(other.recv(4), b"ping")
            self.assertTrue(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async def test_refused(self) -> None:
        """The client refuses; the server gets the alert and says so."""
        client = self.client()
        ours, theirs = self.both(client, serving(testCA().issue(expired=True)))
        failure = await failureOf(ours)
        self.assertEqual(failure.errno, errno.EKEYEXPIRED)
        other = await failureOf(theirs)
        self.assertEqual(other.errno, errno.EPROTO)
        self.assertIn("alert", other.reason)

    async def test_nameNotServed(self) -> None:
        """The server's refusals have their reasons on the server's side too."""
        client = self.client(name="b.example")
        server = serving(testCA().issue(["a.example", "b.example"]), settings=((Option.TLS_HOSTNAME, b"a.example"),))
        ours, theirs = self.both(client, server)
        failure = await failureOf(ours)
        self.assertEqual((failure.errno, "unrecognized_name" in failure.reason), (errno.EPROTO, True))
        other = await failureOf(theirs)
        self.assertIn("b.example", other.reason)

    async def test_protocols(self) -> None:
        """No application protocol in common."""
        client = self.client(trusting(testCA(), (Option.TLS_ALPN, b"smtp")))
        ours, theirs = self.both(client, serving(testCA().issue(), settings=((Option.TLS_ALPN, b"h2"),)))
        failure = await failureOf(ours)
        self.assertEqual((failure.errno, failure.reason.partition(":")[0]), (errno.EPROTO, Cause.NO_COMMON_ALPN.text))
        other = await failureOf(theirs)
        self.assertEqual(other.errno, errno.EPROTO)


class CertificateTests(LoopbackCase):
    """Every row of the errno table that is about the peer's certificate."""

    async def test_rows(self) -> None:
        """Each flaw has its errno and its reason."""
        for credential, number, word in (
            (otherCA().issue(), errno.EKEYREJECTED, "no issuer that is trusted"),
            (testCA().issue(selfSigned=True), errno.EKEYREJECTED, "self-signed"),
            (testCA().issue(["other.example"]), errno.EKEYREJECTED, "other.example"),
            (testCA().issue(purpose="client"), errno.EKEYREJECTED, "may not be used"),
            (testCA().issue(expired=True), errno.EKEYEXPIRED, "expired"),
            (testCA().issue(notYetValid=True), errno.EKEYEXPIRED, "not valid yet"),
        ):
            contexts = serverContexts(Profile(), serving(credential))

            def script(sock: socket.socket, contexts: Any = contexts) -> None:
                connection = serverConnection(contexts, sock)
                sock.setblocking(True)
                with self.assertRaises(SSL.Error):
                    connection.do_handshake()
                    connection.recv(1)

            peer = self.scripted(script)
            error = await self.refused(self.client(), number, word)
            self.assertIn("SHA-256 ", error.reason)
            await peer


class MisbehavingPeerTests(LoopbackCase):
    """Peers that do not do TLS, or not to the end."""

    async def against(self, script: Callable[[socket.socket], None], number: int, *words: str, **named: Any) -> None:
        peer = self.scripted(script)
        await self.refused(self.client(**named), number, *words)
        await peer

    async def test_notTLS(self) -> None:
        """A peer that speaks another protocol."""
        await self.against(lambda sock: sock.sendall(b"220 mail.example ESMTP\r\n"), errno.EPROTO, "does not speak TLS")
        await self.against(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad\r\n\r\n"), errno.EPROTO)

    async def test_closes(self) -> None:
        """A peer that closes at once, or after the ClientHello, or in the middle of a record."""

        def closeLate(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.shutdown(socket.SHUT_WR)

        def closeInside(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.sendall(b"\x16\x03\x03\x10\x00abc")

        for script in (lambda sock: None, closeLate, closeInside):
            await self.against(script, errno.EPROTO, Cause.CLOSED_IN_HANDSHAKE.text)

    async def test_resets(self) -> None:
        """A reset after TCP was established is a failed handshake."""

        def reset(sock: socket.socket) -> None:
            sock.recv(1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        await self.against(reset, errno.EPROTO, "reset")

    async def test_alerts(self) -> None:
        """An alert is named."""

        def alert(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)

        await self.against(alert, errno.EPROTO, "handshake_failure")

    async def test_garbage(self) -> None:
        """Records full of nonsense."""

        def garbage(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.sendall(b"\x16\x03\x03\x00\x64" + os.urandom(100))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(65536)

        await self.against(garbage, errno.EPROTO)

    async def test_silence(self) -> None:
        """A peer that says nothing: the time-out ends it, and the socket is closed."""
        closed = []

        def silent(sock: socket.socket) -> None:
            while sock.recv(65536):
                pass
            closed.append(True)

        await self.against(silent, errno.ETIMEDOUT, "0.2 s", timeout=0.2)
        self.assertEqual(closed, [True])

    async def test_oneByteAtATime(self) -> None:
        """A slow peer is no bad one."""
        contexts = serverContexts(Profile(), serving(testCA().issue()))

        def slow(sock: socket.socket) -> None:
            connection = SSL.Connection(contexts.default, None)
            connection.set_app_data(peerCheckOf(serverConnection(contexts, sock)))
            connection.set_accept_state()
            while True:
                try:
                    connection.do_handshake()
                    done = True
                except SSL.WantReadError:
                    done = False
                try:
                    data = connection.bio_read(65536)
                except SSL.WantReadError:
                    data = b""
                for byte in data:
                    sock.sendall(bytes((byte,)))
                if done:
                    return
                connection.bio_write(sock.recv(1))

        peer = self.scripted(slow)
        client = self.client()
        connection = await client.start()
        self.assertTrue(peerCheckOf(connection).proved)
        await peer

    async def test_oldVersion(self) -> None:
        """A server of TLS 1.2 only, for a client of TLS 1.3 only."""
        contexts = serverContexts(Profile(maxProtocol=TLS_1_2), serving(testCA().issue()))

        def script(sock: socket.socket) -> None:
            sock.setblocking(True)
            self.assertRaises(SSL.Error, serverConnection(contexts, sock).do_handshake)

        profile = Profile(minProtocol=TLS_1_3)
        await self.against(script, errno.EPROTO, Cause.NO_COMMON_VERSION.text, profile=profile)

    async def test_noCommonCipher(self) -> None:
        """A server without a cipher in common."""
        suites = Profile(cipherSuites="TLS_AES_256_GCM_SHA384", minProtocol=TLS_1_3)
        contexts = serverContexts(suites, serving(testCA().issue()))

        def script(sock: socket.socket) -> None:
            sock.setblocking(True)
            self.assertRaises(SSL.Error, serverConnection(contexts, sock).do_handshake)

        profile = Profile(cipherSuites="TLS_CHACHA20_POLY1305_SHA256", minProtocol=TLS_1_3)
        await self.against(script, errno.EPROTO, "handshake_failure", profile=profile)

    def demanding(self, version: int) -> SSL.Context:
        credential = testCA().issue()
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(version)
        context.use_certificate(credential.certificate)
        context.use_privatekey(credential.key)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *arguments: True)
        return context

    def serve(self, context: SSL.Context, sock: socket.socket) -> None:
        sock.setblocking(True)
        connection = SSL.Connection(context, sock)
        connection.set_accept_state()
        with self.assertRaises(SSL.Error):
            connection.do_handshake()
        sock.shutdown(socket.SHUT_WR)
        sock.recv(65536)

    async def test_clientCertificate(self) -> None:
        """A TLS 1.2 server that demands a certificate: ENOKEY."""
        context = self.demanding(TLS_1_2)
        await self.against(lambda sock: self.serve(context, sock), errno.ENOKEY, "demands a client certificate")

    async def test_clientCertificateLate(self) -> None:
        """With TLS 1.3 the handshake succeeds, and the first read says why it fails: ECONNRESET."""
        context = self.demanding(TLS_1_3)
        peer = self.scripted(lambda sock: self.serve(context, sock))
        connection = await self.client().start()
        connection.setblocking(True)
        with self.assertRaises(SSL.Error) as caught:
            await deferToThread(connection.recv, 1)
        connection.close()
        await peer
        error = describeConnectionError(caught.exception)
        self.assertEqual(error.errno, errno.ECONNRESET)
        self.assertIn("certificate_required", error.reason)


class TCPTests(LoopbackCase):
    """TCP's own failures keep their errno."""

    def test_refused(self) -> Deferred[SSAError]:
        """A port where nobody listens."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
        return self.refused(self.client(port=port), errno.ECONNREFUSED, "127.0.0.1")

    def test_neverConnected(self) -> Deferred[SSAError]:
        """A socket on which nobody has started to connect."""
        sock = socket.socket()
        sock.setblocking(False)
        connection = clientConnection(Profile(), trusting(testCA()), sock, parseIdentity("a.example"))
        return self.refused(Handshake(reactor, connection, sock, 5, connecting=True), errno.ENOTCONN)

    async def test_cancel(self) -> None:
        """Cancelling closes the socket and ends with ECANCELED; a second one does nothing."""
        client = self.client()
        done = client.start()
        done.addErrback(lambda failure: failure.value)
        done.cancel()
        error = await done
        assert isinstance(error, SSAError)
        self.assertEqual(error.errno, errno.ECANCELED)
        client.cancel()
        await succeed(None)

    async def test_cancelWithReason(self) -> None:
        """Whoever cancels may say why."""
        client = self.client()
        done = client.start().addErrback(lambda failure: failure.value)
        client.cancel(Cause.DAEMON_GONE.error())
        error = await done
        assert isinstance(error, SSAError)
        self.assertEqual(error.errno, errno.ENETDOWN)


class _Reactor(Clock):
    """A clock that remembers descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[object] = set()
        self.writers: set[object] = set()

    def addReader(self, reader: object) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: object) -> None:
        self.readers.discard(reader)

    def addWriter(self, writer: object) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: object) -> None:
        self.writers.discard(writer)


class TimeTests(SynchronousTestCase):
    """Time-outs, without waiting."""

    def test_timeouts(self) -> None:
        """TCP's time and the handshake's are counted each for itself; both are ETIMEDOUT."""
        clock = _Reactor()
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        for connect in (False, True):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            connection = clientConnection(Profile(), trusting(testCA()), sock, parseIdentity("a.example"))
            shake = Handshake(clock, connection, sock, 7, connecting=True, connectTimeout=3)
            done = shake.start()
            self.assertEqual((clock.readers, clock.writers), (set(), {shake}))
            clock.advance(2.9)
            self.assertNoResult(done)
            if connect:
                shake.doWrite()
                self.assertEqual((clock.readers, clock.writers), ({shake}, set()))
                clock.advance(6.9)
                self.assertNoResult(done)
            clock.advance(0.2)
            error = self.failureResultOf(done, SSAError).value
            self.assertEqual(error.errno, errno.ETIMEDOUT)
            self.assertEqual((clock.readers, clock.writers, clock.calls), (set(), set(), []))
            self.assertEqual((sock.fileno(), shake.fileno()), (-1, -1))
            # What the reactor may still have in its hands is harmless.
            shake.doRead()
            shake.doWrite()
            shake.connectionLost(Failure(Exception()))

    def test_staleEvent(self) -> None:
        """The end of another socket, which had the same descriptor until a moment ago, does not end the handshake."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        sock = socket.create_connection(listener.getsockname())
        self.addCleanup(sock.close)
        sock.setblocking(False)
        clock = _Reactor()
        connection = clientConnection(Profile(), trusting(testCA()), sock, parseIdentity("a.example"))
        shake = Handshake(clock, connection, sock, 7)
        done = shake.start()
        clock.readers.clear()  # as the reactor does before it tells
        shake.connectionLost(Failure(Exception()))
        self.assertNoResult(done)
        self.assertEqual(clock.readers, {shake})
        shake.cancel()
        self.failureResultOf(done, SSAError)

    def test_unchecked(self) -> None:
        """A handshake that ended without a check of the peer is no success."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        connection = clientConnection(Profile(), trusting(testCA()), ours, parseIdentity("a.example"))
        shake = Handshake(_Reactor(), connection, ours, 7)
        self.patch(connection, "do_handshake", lambda: None)
        self.patch(socket.socket, "setsockopt", lambda *arguments: None)
        error = self.failureResultOf(shake.start(), SSAError).value
        self.assertEqual(error.errno, errno.EKEYREJECTED)

    def test_internal(self) -> None:
        """An exception of any kind fails the handshake."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        connection = clientConnection(Profile(), trusting(testCA()), ours, parseIdentity("a.example"))
        self.patch(connection, "do_handshake", lambda: 1 // 0)
        self.patch(socket.socket, "setsockopt", lambda *arguments: None)
        error = self.failureResultOf(Handshake(_Reactor(), connection, ours, 7).start(), SSAError).value
        self.assertEqual(error.errno, errno.EIO)

    def test_notTCP(self) -> None:
        """A socket that is not TCP fails with an errno."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        connection = clientConnection(Profile(), trusting(testCA()), ours, parseIdentity("a.example"))
        self.failureResultOf(Handshake(_Reactor(), connection, ours, 7).start(), SSAError)
        self.assertEqual(ours.fileno(), -1)


class EstablishedTests(SynchronousTestCase):
    """What the relay says of a connection that broke."""

    def test_causes(self) -> None:
        """Every end but close_notify is ECONNRESET, with its own reason."""
        for error, cause in (
            (SSL.SysCallError(-1, "Unexpected EOF"), Cause.TRUNCATED),
            (SSL.SysCallError(errno.ECONNRESET, "ECONNRESET"), Cause.RESET),
            (SSL.SysCallError(errno.ETIMEDOUT, "ETIMEDOUT"), Cause.LOST),
            (SSL.Error([("SSL routines", "", "unexpected eof while reading")]), Cause.TRUNCATED),
            (SSL.Error([("SSL routines", "", "decryption failed or bad record mac")]), Cause.VIOLATED),
            (SSL.Error([("SSL routines", "", "ssl/tls alert handshake failure")]), Cause.BROKEN),
            (SSL.Error(), Cause.VIOLATED),
        ):
            found = describeConnectionError(error)
            self.assertEqual((found.errno, found.reason.partition(":")[0]), (errno.ECONNRESET, cause.text))
