# SPDX-License-Identifier: MIT
"""Sockets and dispatcher, event by event, with everything around them in memory."""

from __future__ import annotations

import errno
import gc
import socket
import struct
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import IPPROTO_TLS, Address, HostnameAddress, InternetAddress, Option, Role
from ssa.dispatcher import Dispatcher
from ssa.errors import SSAError
from ssa.policy.profile import Limits, Profile
from ssa.protocol.messages import (
    AcceptNotify,
    Answer,
    BindNotify,
    CloseNotify,
    ConnectNotify,
    DataReturn,
    Event,
    GetsockoptNotify,
    HandshakeReturn,
    ListenNotify,
    Return,
    SetsockoptNotify,
    SocketNotify,
    UpgradeNotify,
)
from ssa.sockets import TLSSocket
from ssa.states import Stage
from ssa.test.fakes import LOCAL, REMOTE, Around, FakeFactory, openDescriptors, tcpPair
from ssa.test.pki import testCA

NAME = HostnameAddress("server.example", 443)
SIX = InternetAddress(socket.AF_INET6, "2001:db8::1", 443)


class DispatcherCase(SynchronousTestCase):
    """A dispatcher with one interceptor."""

    profile = Profile(handshakeTimeout=30.0)

    def setUp(self) -> None:
        gc.collect()
        self.before = openDescriptors()
        self.around = Around(self.profile)
        self.interceptor = self.around.interceptor
        self.dispatcher = Dispatcher(self.around.services)
        self.number = 0

    def tearDown(self) -> None:
        """Whatever happened, nothing is left when the interceptor is gone and the relays have ended."""
        self.dispatcher.interceptorLost(self.interceptor)
        self.dispatcher.abortAll()
        self.interceptor.close()
        self.assertEqual(0, self.dispatcher.sockets)
        self.assertEqual(0, self.dispatcher.handshakes)
        self.assertEqual(set(), self.around.reactor.readers | self.around.reactor.writers)
        self.assertEqual([], self.around.reactor.getDelayedCalls())
        self.assertEqual(self.before, openDescriptors())

    def send(self, kind: type[Event], id: int, *args: Any) -> Deferred[Answer]:
        self.number += 1
        answer = self.dispatcher.eventReceived(self.interceptor, kind(self.number, id, *args))
        assert answer is not None
        return answer

    def tell(self, kind: type[Event], id: int, *args: Any) -> None:
        self.number += 1
        self.assertIsNone(self.dispatcher.eventReceived(self.interceptor, kind(self.number, id, *args)))

    def newSocket(self, id: int = 1, family: int = socket.AF_INET, uid: int = 1000) -> int:
        """socket(2): 0 or an errno."""
        answer = self.send(SocketNotify, id, family, 77, uid, "prog", "/bin/prog", 1, 2, 3, 4)
        return self.result(answer)

    def result(self, answer: Deferred[Answer]) -> int:
        got = self.successResultOf(answer)
        assert isinstance(got, (Return, HandshakeReturn))
        return -got.result

    def connect(self, remote: Address = REMOTE, id: int = 1) -> Deferred[Answer]:
        return self.send(ConnectNotify, id, True, remote)

    def stage(self, id: int = 1) -> Stage | None:
        return self.dispatcher.stageOf(self.interceptor, id)

    def set(self, option: int, value: bytes, id: int = 1, level: int = IPPROTO_TLS) -> int:
        return self.result(self.send(SetsockoptNotify, id, level, option, value))

    def error(self, id: int = 1) -> str:
        got = self.successResultOf(self.send(GetsockoptNotify, id, IPPROTO_TLS, int(Option.TLS_ERROR)))
        assert isinstance(got, DataReturn)
        return got.value.rstrip(b"\0").decode()

    @property
    def factory(self) -> FakeFactory:
        return self.around.factories.made[-1]

    def connected(self, id: int = 1) -> Any:
        """A socket that is connected; the secured connection."""
        self.assertEqual(0, self.newSocket(id))
        answer = self.connect(id=id)
        self.interceptor.giveReal()
        self.around.reactor.writable()
        secured = self.factory.succeed()
        self.interceptor.establishes.pop()[1].callback(self.interceptor.plaintext())
        self.assertEqual(0, self.result(answer))
        return secured


class ConnectTests(DispatcherCase):
    """connect(2)."""

    def test_steps(self) -> None:
        """The states of a connect that succeeds; other calls meanwhile."""
        self.newSocket()
        self.assertIs(Stage.NEW, self.stage())
        answer = self.connect()
        self.assertIs(Stage.CONNECTING, self.stage())
        self.assertEqual(errno.EALREADY, self.result(self.connect()))
        self.assertEqual(errno.EISCONN, self.set(Option.TLS_ALPN, b"h2"))
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.assertIs(Stage.HANDSHAKING, self.stage())
        self.assertEqual(errno.EALREADY, self.result(self.connect(NAME)))
        secured = self.factory.succeed()
        self.assertNoResult(answer)
        self.interceptor.establishes.pop()[1].callback(self.interceptor.plaintext())
        self.assertEqual(0, self.result(answer))
        self.assertIs(Stage.CONNECTED, self.stage())
        self.assertEqual("", self.error())
        self.assertEqual(errno.EISCONN, self.result(self.connect()))
        self.assertEqual(errno.EINVAL, self.result(self.send(ListenNotify, 1, 5, LOCAL)))
        self.tell(CloseNotify, 1)
        self.assertTrue(secured.relays[0].closed)
        self.assertEqual(1, self.dispatcher.sockets)
        secured.relays[0].end()
        self.assertEqual(0, self.dispatcher.sockets)

    def test_identity(self) -> None:
        """The address, the name, or TLS_REMOTE_HOSTNAME before both."""
        self.newSocket()
        self.connect(REMOTE)
        self.assertEqual("192.0.2.1", str(self.factory.identity and self.factory.identity.value))
        self.newSocket(2)
        self.connect(NAME, 2)
        self.assertEqual("server.example", str(self.factory.identity and self.factory.identity.value))
        self.newSocket(3)
        self.assertEqual(0, self.set(Option.TLS_REMOTE_HOSTNAME, b"other.example", 3))
        self.connect(NAME, 3)
        self.assertEqual("other.example", str(self.factory.identity and self.factory.identity.value))

    def test_failedFetch(self) -> None:
        """What the interceptor says is what the program gets; then the socket is new again."""
        self.newSocket()
        answer = self.connect()
        self.interceptor.fetches.pop()[2].errback(SSAError(errno.ENETUNREACH, "no route"))
        self.assertEqual(errno.ENETUNREACH, self.result(answer))
        self.assertEqual("no route", self.error())
        self.assertIs(Stage.FAILED, self.stage())
        self.assertEqual(0, self.set(Option.TLS_ALPN, b"h2"))
        self.assertEqual("", self.error())

    def test_failedHandshake(self) -> None:
        """TLS_ERROR stays until a call succeeds; getsockopt does not change it."""
        self.newSocket()
        answer = self.connect()
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.factory.refuse(SSAError(errno.EKEYEXPIRED, "expired yesterday"))
        self.assertEqual(errno.EKEYEXPIRED, self.result(answer))
        for _ in range(2):
            self.assertEqual("expired yesterday", self.error())
            got = self.send(GetsockoptNotify, 1, IPPROTO_TLS, int(Option.TLS_VERSION_CONN))
            self.assertEqual(errno.ENOTCONN, self.result(got))
        self.assertEqual(errno.EINVAL, self.set(Option.TLS_ALPN, b"a,,b"))
        self.assertNotIn("yesterday", self.error())

    def test_refusedTCP(self) -> None:
        """TCP's own errno."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(unused.getsockname())
        self.newSocket()
        answer = self.connect()
        self.interceptor.giveReal(sock)
        self.around.reactor.writable()
        self.assertEqual(errno.ECONNREFUSED, self.result(answer))

    def test_notTCP(self) -> None:
        """An interceptor that hands over something else."""
        self.newSocket()
        answer = self.connect()
        ours, theirs = socket.socketpair()
        self.interceptor.giveReal(ours)
        theirs.close()
        self.assertEqual(errno.EIO, self.result(answer))

    def test_bug(self) -> None:
        """An exception in the daemon is EIO, logged, and not a hang."""
        self.newSocket()
        self.around.factories.error = ZeroDivisionError()
        self.assertEqual(errno.EIO, self.result(self.connect()))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertIs(Stage.FAILED, self.stage())

    def test_bugsAtWill(self) -> None:
        """A program that has found a bug cannot fill the log with it: neither by connect nor by other calls."""
        self.newSocket()
        self.around.factories.error = ZeroDivisionError()
        for _ in range(100):
            self.assertEqual(errno.EIO, self.result(self.connect()))
        self.assertEqual(10, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.around.reactor.advance(60)

        def fails(*_: object) -> None:
            raise LookupError

        self.patch(TLSSocket, "setOption", fails)
        for _ in range(100):
            self.assertEqual(errno.EIO, self.set(Option.TLS_ALPN, b"h2"))
        self.assertEqual(10, len(self.flushLoggedErrors(LookupError)))

    def test_unreadableCertificate(self) -> None:
        """A certificate with a name of a kind that the library does not read is EINVAL, like any other malformed one."""
        self.newSocket()
        names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("300ba509a1070c056170617274"))
        chain = testCA().issue(noNames=True, extensions=[names]).chainPEM
        self.assertEqual(errno.EINVAL, self.set(Option.TLS_CERTIFICATE_CHAIN, chain))
        self.assertIn("malformed", self.error())

    def test_noKey(self) -> None:
        """Factories refuse before anything is fetched."""
        self.newSocket()
        self.around.factories.error = SSAError(errno.ENOKEY, "no match")
        self.assertEqual(errno.ENOKEY, self.result(self.connect()))
        self.assertEqual([], self.interceptor.fetches)

    def test_closeEverywhere(self) -> None:
        """close(2) at each point: the answer comes, a descriptor that arrives late is closed."""
        for number, step in enumerate(("fetch", "tcp", "handshake", "established"), 1):
            self.newSocket(number)
            answer = self.connect(id=number)
            late = None
            if step == "fetch":
                late = self.interceptor.giveReal
            else:
                self.interceptor.giveReal()
            if step in ("handshake", "established"):
                self.around.reactor.writable()
            if step == "established":
                self.factory.succeed()
            self.tell(CloseNotify, number)
            self.assertEqual(errno.ECANCELED, self.result(answer), step)
            self.assertIsNone(self.stage(number))
            if late is not None:
                late()
            if step == "established":
                self.interceptor.establishes.pop()[1].callback(self.interceptor.plaintext())
            self.assertEqual(0, self.dispatcher.sockets, step)
            self.assertEqual(0, self.dispatcher.handshakes, step)

    def test_earlyOptions(self) -> None:
        """An option of the network connection that is set while nothing stands yet arrives there."""
        self.newSocket()
        answer = self.connect()
        on = struct.pack("=i", 1)
        self.assertEqual(0, self.set(socket.SO_KEEPALIVE, on, level=socket.SOL_SOCKET))
        self.assertEqual(errno.ENOPROTOOPT, self.set(31, b"tls", level=socket.IPPROTO_TCP))
        self.assertEqual(errno.EINVAL, self.set(socket.IP_TTL, struct.pack("=i", 999), level=socket.IPPROTO_IP))
        self.interceptor.giveReal()
        self.around.reactor.writable()
        secured = self.factory.succeed()
        self.interceptor.establishes.pop()[1].callback(self.interceptor.plaintext())
        self.assertEqual(0, self.result(answer))
        self.assertEqual(1, secured.real.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def test_relayEnds(self) -> None:
        """How a connection ended is in TLS_ERROR."""
        secured = self.connected()
        secured.relays[0].end(SSAError(errno.ECONNRESET, "truncated"))
        self.assertEqual("truncated", self.error())
        self.assertIs(Stage.CONNECTED, self.stage())
        self.tell(CloseNotify, 1)
        self.assertEqual(0, self.dispatcher.sockets)

    def test_upgrade(self) -> None:
        """TLS_UPGRADE takes either side."""
        for number, role in ((1, Role.CLIENT), (2, Role.SERVER)):
            self.newSocket(number)
            answer = self.send(UpgradeNotify, number, role, True, LOCAL, REMOTE)
            self.interceptor.giveReal()
            self.around.reactor.writable()
            self.assertEqual(role is Role.CLIENT, self.factory.identity is not None)
            self.factory.succeed()
            self.interceptor.establishes.pop()[1].callback(self.interceptor.plaintext())
            self.assertEqual(0, self.result(answer))


class NameTests(DispatcherCase):
    """connect(2) to a name."""

    def begin(self, *addresses: InternetAddress, family: int = socket.AF_INET6) -> Deferred[Answer]:
        self.newSocket(1, family)
        answer = self.connect(NAME)
        self.assertIs(Stage.RESOLVING, self.stage())
        self.around.resolver.asked.pop()[2].callback(list(addresses))
        return answer

    def test_families(self) -> None:
        """An AF_INET socket can have IPv4 addresses only."""
        self.newSocket(1)
        self.connect(NAME)
        self.assertEqual((socket.AF_INET,), self.around.resolver.asked[0][1])
        self.newSocket(2, socket.AF_INET6)
        self.connect(NAME, 2)
        self.assertEqual((socket.AF_INET6, socket.AF_INET), self.around.resolver.asked[1][1])

    def test_unresolved(self) -> None:
        """EHOSTUNREACH."""
        self.newSocket()
        answer = self.connect(NAME)
        self.around.resolver.asked.pop()[2].errback(SSAError(errno.EHOSTUNREACH, "no such name"))
        self.assertEqual(errno.EHOSTUNREACH, self.result(answer))
        self.assertEqual("no such name", self.error())

    def test_nextAfterHandshake(self) -> None:
        """A handshake that fails lets the next address be tried; the identity is the same."""
        answer = self.begin(SIX, REMOTE)
        self.assertEqual(SIX, self.interceptor.fetches[0][1])
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.assertIs(Stage.HANDSHAKING, self.stage())
        self.factory.refuse(SSAError(errno.EKEYREJECTED, "wrong name"))
        self.assertIs(Stage.CONNECTING, self.stage())
        self.assertEqual(REMOTE, self.interceptor.fetches[0][1])
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.factory.succeed()
        self.interceptor.establishes.pop()[1].callback(self.interceptor.plaintext())
        self.assertEqual(0, self.result(answer))
        self.assertEqual("", self.error())

    def test_mostTelling(self) -> None:
        """When all fail, a refused certificate says more than an unreachable network; the others are named."""
        answer = self.begin(SIX, REMOTE)
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.factory.refuse(SSAError(errno.EKEYREJECTED, "wrong name"))
        self.interceptor.fetches.pop()[2].errback(SSAError(errno.ENETUNREACH, "no route"))
        self.assertEqual(errno.EKEYREJECTED, self.result(answer))
        for word in ("wrong name", "no route", SIX.host, REMOTE.host):
            self.assertIn(word, self.error())

    def test_noMoreTime(self) -> None:
        """All handshakes of one connect together have one HandshakeTimeout."""
        answer = self.begin(SIX, REMOTE)
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.around.reactor.advance(30)
        self.factory.refuse(SSAError(errno.ETIMEDOUT, "too long"))
        self.assertEqual(errno.ETIMEDOUT, self.result(answer))
        self.assertEqual([], self.interceptor.fetches)

    def test_race(self) -> None:
        """The slower TCP connection is closed."""
        answer = self.begin(SIX, REMOTE)
        self.around.reactor.advance(0.25)
        self.assertEqual(2, len(self.interceptor.fetches))
        slow = self.interceptor.fetches[0]
        self.interceptor.giveReal()
        self.around.reactor.writable()
        sock, other = tcpPair()
        self.interceptor.fetches = [slow]
        self.interceptor.giveReal(sock)
        other.settimeout(5)
        self.assertEqual(b"", other.recv(1))
        other.close()
        self.factory.succeed()
        self.interceptor.establishes.pop()[1].callback(self.interceptor.plaintext())
        self.assertEqual(0, self.result(answer))

    def test_badName(self) -> None:
        """A name that can be nobody's identity."""
        self.newSocket()
        self.assertEqual(errno.EINVAL, self.result(self.connect(HostnameAddress("bad..name", 1))))


class BookTests(DispatcherCase):
    """Who has which sockets."""

    profile = Profile(limits=Limits(maxSockets=4, maxSocketsPerUser=2, maxPendingEvents=2))

    def test_limits(self) -> None:
        """EMFILE for a user, ENFILE for all; a close makes room."""
        self.assertEqual([0, 0, errno.EMFILE], [self.newSocket(number) for number in (1, 2, 3)])
        self.assertEqual(0, self.newSocket(4, uid=1001))
        self.assertEqual(0, self.newSocket(5, uid=1001))
        self.assertEqual(errno.ENFILE, self.newSocket(6, uid=1002))
        self.tell(CloseNotify, 1)
        self.assertEqual(0, self.newSocket(7))

    def test_pendingEvents(self) -> None:
        """Too many calls at once."""
        self.newSocket(1)
        self.newSocket(2)
        self.connect(id=1)
        self.connect(id=2)
        self.assertEqual(errno.ENOBUFS, self.result(self.send(BindNotify, 1, LOCAL)))

    def test_unknown(self) -> None:
        """Sockets that do not exist."""
        self.assertEqual(errno.EBADF, self.result(self.connect(id=9)))
        self.assertEqual(errno.EBADF, self.set(Option.TLS_ALPN, b"h2", 9))
        self.tell(CloseNotify, 9)
        self.newSocket()
        self.assertEqual(errno.EEXIST, self.newSocket())
        self.assertEqual(0, self.result(self.send(BindNotify, 1, LOCAL)))

    def test_stop(self) -> None:
        """Pending calls end now, later ones are refused, connections go on until they are cut."""
        secured = self.connected(1)
        self.newSocket(2)
        answer = self.connect(id=2)
        self.dispatcher.stop()
        self.assertEqual(errno.ENETDOWN, self.result(answer))
        self.assertEqual(errno.ENETDOWN, self.newSocket(3))
        self.assertEqual(1, self.dispatcher.relays)
        self.dispatcher.abortAll()
        self.assertTrue(secured.relays[0].aborted)
        self.assertEqual(0, self.dispatcher.relays)
        self.interceptor.giveReal()

    def test_lost(self) -> None:
        """Without its link only an established connection lives on."""
        secured = self.connected(1)
        self.newSocket(2)
        answer = self.connect(id=2)
        self.dispatcher.interceptorLost(self.interceptor)
        self.assertEqual(errno.ENETDOWN, self.result(answer))
        self.assertEqual((1, 1), (self.dispatcher.sockets, self.dispatcher.relays))
        secured.relays[0].end()
        self.assertEqual(0, self.dispatcher.sockets)
        self.interceptor.giveReal()

    def test_keysForgotten(self) -> None:
        """No key outlives its socket."""
        self.connected(1)
        socket_ = next(iter(self.dispatcher._alive))
        before = socket_.options
        self.tell(CloseNotify, 1)
        self.assertIsNot(before, socket_.options)
        self.assertEqual((), socket_.options.keys)


class ListenerCase(DispatcherCase):
    """A dispatcher, and clients of its listeners."""

    def listen(self) -> socket.socket:
        """A listening socket; our copy of the real one."""
        self.newSocket()
        answer = self.send(ListenNotify, 1, 5, LOCAL)
        self.assertIs(Stage.OPENING, self.stage())
        self.assertEqual(errno.EALREADY, self.result(self.connect()))
        real = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(real.close)
        self.interceptor.held.append(real)
        self.interceptor.giveReal(real.dup())
        self.assertEqual(0, self.result(answer))
        self.assertIs(Stage.LISTENING, self.stage())
        return real

    def client(self, listener: socket.socket) -> socket.socket:
        sock = socket.create_connection(listener.getsockname())
        self.interceptor.held.append(sock)
        return sock


class ListenTests(ListenerCase):
    """listen(2)."""

    profile = Profile(limits=Limits(maxAcceptQueue=2))

    def test_accept(self) -> None:
        """A finished handshake is offered; the new socket has its listener's options and another TLS_ID."""
        self.newSocket(9)
        real = self.listen()
        self.client(real)
        self.around.reactor.readable()
        self.assertEqual(1, self.dispatcher.handshakes)
        self.factory.succeed()
        self.assertEqual(0, self.dispatcher.handshakes)
        self.interceptor.accepts.pop()[1].callback((50, self.interceptor.plaintext()))
        self.assertIs(Stage.CONNECTED, self.stage(50))
        self.tell(AcceptNotify, 50, 88, 1000, "child", "/bin/child", 1, 2, 3, 4)
        ids = [
            self.successResultOf(self.send(GetsockoptNotify, number, IPPROTO_TLS, int(Option.TLS_ID)))
            for number in (1, 50)
        ]
        self.assertNotEqual(*(got.value for got in ids if isinstance(got, DataReturn)))

    def test_refused(self) -> None:
        """A failed handshake is never seen."""
        real = self.listen()
        self.client(real)
        self.around.reactor.readable()
        self.factory.refuse(SSAError(errno.EPROTO, "not TLS"))
        self.assertEqual([], self.interceptor.accepts)
        self.assertEqual("", self.error())
        self.assertIs(Stage.LISTENING, self.stage())

    def test_bugsAtWill(self) -> None:
        """Clients who have found a bug cannot fill the log with it."""
        real = self.listen()
        bug: Any = ZeroDivisionError()
        for _ in range(30):
            self.client(real)
            self.around.reactor.readable()
            self.factory.refuse(bug)
        self.assertEqual(10, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertIs(Stage.LISTENING, self.stage())

    def test_backPressure(self) -> None:
        """As many as the bound are in flight, until the program's queue takes one."""
        real = self.listen()
        for _ in range(3):
            self.client(real)
        self.around.reactor.readable()
        self.assertEqual(2, len(self.factory.handshakes))
        self.assertEqual(set(), self.around.reactor.readers)
        self.factory.succeed()
        self.assertEqual(set(), self.around.reactor.readers)
        self.interceptor.accepts.pop()[1].callback((50, self.interceptor.plaintext()))
        self.around.reactor.readable()
        self.assertEqual(2, len(self.factory.handshakes))

    def test_offerRefused(self) -> None:
        """The interceptor does not take it: it is given up, the listener goes on."""
        real = self.listen()
        self.client(real)
        self.around.reactor.readable()
        secured = self.factory.succeed()
        self.interceptor.accepts.pop()[1].errback(SSAError(errno.ENFILE, "no"))
        self.assertTrue(secured.aborted)
        self.assertIs(Stage.LISTENING, self.stage())

    def test_outOfDescriptors(self) -> None:
        """accept(2) without descriptors: a pause that grows, no spinning."""
        self.listen()
        reactor = self.around.reactor
        listener: Any = next(iter(reactor.readers))
        real = listener._sock

        class Exhausted:
            """A socket that cannot accept."""

            def accept(self) -> None:
                raise OSError(errno.EMFILE, "Too many open files")

        listener._sock = Exhausted()
        for pause in (0.05, 0.1, 0.2):
            reactor.readable()
            self.assertEqual(set(), reactor.readers)
            self.assertEqual(0, self.dispatcher.handshakes)
            reactor.advance(pause - 0.01)
            self.assertEqual(set(), reactor.readers)
            reactor.advance(0.01)
            self.assertEqual({listener}, reactor.readers)
        listener._sock = real

    def test_broken(self) -> None:
        """A listener that is shut down behind the daemon's back fails, and the socket says why."""
        self.listen()
        listener: Any = next(iter(self.around.reactor.readers))
        listener.realSocket().shutdown(socket.SHUT_RDWR)
        listener.connectionLost(None)
        self.assertIs(Stage.FAILED, self.stage())
        self.assertIn("shut down", self.error())

    def test_shutDownBehindAConnection(self) -> None:
        """
        A program that accepts a connection and closes its listener at once: the daemon sees the end of the listener before the
        word that the connection was taken.  The connection is served all the same; one that shakes hands is given up.
        """
        for spoil in ("event", "accept"):
            self.setUp()
            real = self.listen()
            listener: Any = next(iter(self.around.reactor.readers))
            for _ in range(2 if spoil == "event" else 1):  # as many as may be in flight accept no further one
                self.client(real)
            self.around.reactor.readable()
            self.factory.succeed()
            real.shutdown(socket.SHUT_RDWR)
            if spoil == "event":
                listener.connectionLost(None)
            else:
                listener.doRead()
            self.assertIs(Stage.FAILED, self.stage())
            self.assertEqual((0, set()), (self.dispatcher.handshakes, self.around.reactor.readers))
            self.interceptor.accepts.pop()[1].callback((50, self.interceptor.plaintext()))
            self.assertIs(Stage.CONNECTED, self.stage(50))
            got = self.successResultOf(self.send(GetsockoptNotify, 50, IPPROTO_TLS, int(Option.TLS_ID)))
            self.assertIsInstance(got, DataReturn)
            self.doCleanups()

    def test_staleEvent(self) -> None:
        """The end of another socket, which had the listener's descriptor until a moment ago, is not the listener's."""
        self.listen()
        listener: Any = next(iter(self.around.reactor.readers))
        self.around.reactor.readers.clear()  # as the reactor does before it tells
        listener.connectionLost(None)
        self.assertIs(Stage.LISTENING, self.stage())
        self.assertEqual({listener}, self.around.reactor.readers)

    def test_notListening(self) -> None:
        """An interceptor that hands over something else."""
        self.newSocket()
        answer = self.send(ListenNotify, 1, 5, LOCAL)
        self.interceptor.giveReal()
        self.assertEqual(errno.EIO, self.result(answer))
        self.assertIs(Stage.FAILED, self.stage())

    def test_noKey(self) -> None:
        """ENOKEY before anything is fetched."""
        self.newSocket()
        self.around.factories.error = SSAError(errno.ENOKEY, "no certificate")
        self.assertEqual(errno.ENOKEY, self.result(self.send(ListenNotify, 1, 5, LOCAL)))
        self.assertEqual([], self.interceptor.fetches)

    def test_again(self) -> None:
        """A second listen, and a connect."""
        self.listen()
        self.assertEqual(0, self.result(self.send(ListenNotify, 1, 50, LOCAL)))
        self.assertEqual(errno.EISCONN, self.result(self.connect()))
        self.assertEqual(errno.EISCONN, self.set(Option.TLS_ALPN, b"h2"))

    def test_closeMeanwhile(self) -> None:
        """Handshakes and offers that are under way end with the listener."""
        real = self.listen()
        clients = [self.client(real), self.client(real)]
        self.around.reactor.readable()
        self.factory.succeed()
        offered = self.interceptor.accepts.pop()[1]
        self.tell(CloseNotify, 1)
        offered.callback((50, self.interceptor.plaintext()))
        self.assertIsNone(self.stage(50))
        for sock in clients:
            sock.settimeout(5)
            self.assertEqual(b"", sock.recv(1))
