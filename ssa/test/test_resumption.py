# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.sessions}, and of resumption between the two sides: who resumes what, and who must not."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import InternetAddress, Option
from ssa.errors import Cause, SSAError
from ssa.options import Phase, SocketOptions
from ssa.policy.profile import TLS_1_2, TLS_1_3, Profile
from ssa.revocation.peer import PeerJudge
from ssa.test.pki import Credential, otherCA, testCA
from ssa.test.tlspair import serving, trusting
from ssa.tls import connection as connectionModule
from ssa.tls import contexts as contextsModule
from ssa.tls import servercontexts as serverModule
from ssa.tls import sessions as module
from ssa.tls.clientchains import ChainStore, ClientChains
from ssa.tls.connection import ConnectionInfo, peerCheckOf
from ssa.tls.contexts import ContextCache, clientConnection
from ssa.tls.identity import parseIdentity
from ssa.tls.servercontexts import KEY_LIFETIME, ServerContexts, serverConnection, serverContexts
from ssa.tls.sessions import LARGEST_PROOF, Proof, SessionCache, SessionKey
from ssa.validating import peerOf

NAME = "server.example"


class Link:
    """One connection between a client and a server of ours, after its handshake and checks."""

    def __init__(self, client: SSL.Connection, server: SSL.Connection, sockets: tuple[socket.socket, socket.socket]) -> None:
        self.client = client
        self.server = server
        self.sockets = sockets
        running = [client, server]
        for _ in range(50):
            for connection in list(running):
                try:
                    connection.do_handshake()
                except SSL.WantReadError:
                    continue
                running.remove(connection)
            if not running:
                break
        else:
            raise AssertionError("the handshake does not end")
        self.check = peerCheckOf(client)
        self.check.conclude(client)
        peerCheckOf(server).conclude(server)
        resumption = self.check.resumption
        assert resumption is not None
        resumption.established(client, self.check.offered if self.check.resumed else None)
        self.resumption = resumption

    @property
    def resumed(self) -> tuple[bool, bool]:
        """What the client and what the server think."""
        return ConnectionInfo(self.client, False).resumed(), ConnectionInfo(self.server, True).resumed()

    def talk(self) -> bool:
        """Data for the client, with which tickets arrive; whether there was one."""
        self.server.send(b"hello")
        assert self.client.recv(5) == b"hello"
        return self.resumption.collect(self.client)

    def close(self) -> None:
        """An orderly end."""
        for connection in (self.client, self.server):
            with contextlib.suppress(SSL.Error):
                connection.shutdown()
        for sock in self.sockets:
            sock.close()


class ResumptionCase(SynchronousTestCase):
    """Clients and servers that share caches."""

    version = TLS_1_3

    def setUp(self) -> None:
        self.clock = Clock()
        self.sessions = SessionCache(self.clock.seconds)
        self.contexts = ContextCache(self.sessions.forgetTrust)
        self.policy = Profile(minProtocol=self.version, maxProtocol=self.version)
        self.server = self.serve()

    def serve(self, *settings: tuple[Option, bytes], credential: Credential | None = None, **changes: Any) -> ServerContexts:
        """A listener."""
        options = serving(credential or testCA().intermediate().issue([NAME, "other.example"]), settings=settings)
        return ServerContexts(replace(self.policy, **changes), options.credentials(), options, self.clock.seconds)

    def client(self, *settings: tuple[Option, bytes], owner: int = 1000, space: object = "/bin/a") -> SocketOptions:
        """A client's options."""
        options = trusting(testCA(), *settings)
        options.owner, options.space = owner, space
        return options

    def link(
        self,
        options: SocketOptions | None = None,
        server: ServerContexts | None = None,
        profile: Profile | None = None,
        name: str = NAME,
        destination: object = ("192.0.2.1", 443),
        talk: bool = True,
    ) -> Link:
        """Connect, let a ticket come, and end in order."""
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
        made = clientConnection(
            profile or self.policy,
            options or self.client(),
            pair[0],
            parseIdentity(name),
            self.contexts,
            self.sessions,
            destination,
        )
        try:
            link = Link(made, serverConnection(server or self.server, pair[1]), pair)
        except BaseException:
            for sock in pair:
                sock.close()
            raise
        self.addCleanup(link.close)
        if talk:
            link.talk()
            link.close()
        return link

    def assertResumed(self, link: Link) -> None:
        """Both sides say so, and the peer is known all the same."""
        self.assertEqual(link.resumed, (True, True))
        self.assertTrue(link.check.proved)
        self.assertFalse(link.check.judged)

    def assertFull(self, link: Link) -> None:
        """Both sides say so."""
        self.assertEqual(link.resumed, (False, False))
        self.assertTrue(link.check.proved)
        self.assertTrue(link.check.judged)


class _Common:
    """What TLS 1.2 and 1.3 have in common."""

    def test_resumed(self: Any) -> None:
        """The second connection resumes the first one's session, the third the second's; the chain is still told."""
        first = self.link()
        self.assertFull(first)
        expected = ConnectionInfo(first.client, False).peerChainPEM()
        verified = first.check.verifiedChain(first.client)
        self.assertEqual(len(verified), 3)
        for _ in range(3):
            again = self.link()
            self.assertResumed(again)
            self.assertEqual(ConnectionInfo(again.client, False).peerChainPEM(), expected)
            self.assertEqual(ConnectionInfo(again.client, False).peerIdentity(), f"CN={NAME}")
            self.assertEqual(again.check.verifiedChain(again.client), verified)

    def test_size(self: Any) -> None:
        """A session weighs what the server has sent, and what was verified."""
        link = self.link()
        proof = vars(link.resumption)["_proof"]
        sent = x509.load_pem_x509_certificates(ConnectionInfo(link.client, False).peerChainPEM())
        expected = sum(len(each.public_bytes(Encoding.DER)) for each in (*sent, *proof.chain))
        self.assertEqual((len(sent), len(proof.chain), proof.size), (2, 3, expected))

    def test_stateful(self: Any) -> None:
        """The same where the server gives no tickets and keeps the sessions."""
        server = self.serve(sessionTickets=False)
        self.assertFull(self.link(server=server))
        for _ in range(3):
            self.assertResumed(self.link(server=server))

    def test_apart(self: Any) -> None:
        """Each difference in what decides about trust, or about who one is, means a full handshake."""
        self.link()
        mine = testCA().issue(["me.example"], purpose="client")
        certified = (Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM), (Option.TLS_PRIVATE_KEY, mine.keyPEM)
        for title, link in (
            ("user", lambda: self.link(self.client(owner=0))),
            ("program", lambda: self.link(self.client(space="/bin/b"))),
            ("destination", lambda: self.link(destination=("192.0.2.2", 443))),
            ("port", lambda: self.link(destination=("192.0.2.1", 444))),
            ("identity", lambda: self.link(name="other.example")),
            ("policy", lambda: self.link(profile=replace(self.policy, truncation="allow"))),
            ("validation", lambda: self.link(profile=replace(self.policy, validation=("pin",)))),
            ("pins", lambda: self.link(profile=replace(self.policy, pinnedKeys=(b"x" * 32,)))),
            ("depth", lambda: self.link(profile=replace(self.policy, certVerificationDepth=5))),
            ("revocation", lambda: self.link(self.client((Option.TLS_REVOCATION_CHECKS, struct.pack("=i", 1))))),
            ("ciphers", lambda: self.link(self.client((Option.TLS_DISABLE_CIPHER, b"TLS_CHACHA20_POLY1305_SHA256")))),
            ("certificate", lambda: self.link(self.client(*certified))),
            (
                "trust",
                lambda: self.link(self.client((Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem + otherCA().pem))),
            ),
        ):
            self.assertFull(link())
            self.assertResumed(link())  # so it was this difference, and nothing else
            self.assertNotEqual(title, "")
        self.assertResumed(self.link())

    def test_untrusted(self: Any) -> None:
        """Who does not trust the server's issuer gains nothing from the session of one who does."""
        self.link()
        stranger = trusting(otherCA())
        stranger.owner, stranger.space = 1000, "/bin/a"
        self.assertRaises(SSL.Error, self.link, stranger)

    def test_otherListener(self: Any) -> None:
        """A listener with the same certificate and policy resumes no session of another one."""
        self.link()
        self.assertFull(self.link(server=self.serve()))

    def test_off(self: Any) -> None:
        """Switched off on either side, by either way."""
        self.link()
        for setting in ((Option.TLS_SESSION_REUSE, bytes(4)), (Option.TLS_SESSION_TTL, bytes(4))):
            for _ in range(2):
                self.assertFull(self.link(self.client(setting)))
            server = self.serve(setting)
            for _ in range(2):
                self.assertFull(self.link(server=server))
        off = replace(self.policy, sessionResumption=False)
        server = self.serve(sessionResumption=False)
        for _ in range(2):
            self.assertFull(self.link(profile=off))
            self.assertFull(self.link(server=server))

    def test_lifetime(self: Any) -> None:
        """A session ends when the time since the full handshake is over, however often it was resumed."""
        ttl = self.client((Option.TLS_SESSION_TTL, struct.pack("=i", 100)))
        self.assertFull(self.link(ttl))
        for _ in range(3):
            self.clock.advance(30)
            self.assertResumed(self.link(ttl))
        self.clock.advance(11)
        self.assertFull(self.link(ttl))

    def test_shorterLife(self: Any) -> None:
        """A socket with a shorter time does not take what another one has kept for longer."""
        self.link()
        self.clock.advance(50)
        self.assertFull(self.link(self.client((Option.TLS_SESSION_TTL, struct.pack("=i", 40)))))

    def test_certificateEnd(self: Any) -> None:
        """A session does not outlive a certificate."""
        self.patch(module, "lastMoment", lambda chain: 60.0)
        self.link()
        self.clock.advance(59)
        self.assertResumed(self.link())
        self.clock.advance(2)
        self.assertEqual(len(self.sessions), 1)
        self.assertFull(self.link())

    def test_keyRotation(self: Any) -> None:
        """The keys of tickets do not live longer than they should; connections go on."""
        server = self.serve(sessionTimeout=60)
        before = server.default
        self.link(server=server)
        self.clock.advance(KEY_LIFETIME - 1)
        self.assertIs(server.default, before)
        self.clock.advance(1)
        self.assertIsNot(server.default, before)
        self.assertFull(self.link(server=server))

    def test_secondName(self: Any) -> None:
        """A name with a certificate of its own: another context, the listener's same keys for tickets."""
        for changes in ({}, {"sessionTickets": False}):
            options = serving(
                testCA().issue(["first.example"]),
                testCA().issue([NAME]),
                settings=((Option.TLS_HOSTNAME, NAME.encode()), (Option.TLS_HOSTNAME, b"first.example")),
            )
            policy = replace(self.policy, **changes)
            server = ServerContexts(policy, options.credentials(), options, self.clock.seconds)
            for name in (NAME, "first.example"):
                self.assertFull(self.link(server=server, name=name))
                again = self.link(server=server, name=name)
                self.assertResumed(again)
                self.assertEqual(ConnectionInfo(again.server, True).serverName(), name)
                self.assertEqual(ConnectionInfo(again.client, False).peerIdentity(), f"CN={name}")
            self.sessions = SessionCache(self.clock.seconds)
            self.contexts = ContextCache(self.sessions.forgetTrust)

    def test_refusedSession(self: Any) -> None:
        """A session with which a handshake failed is not offered again."""
        self.link()
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
            self.addCleanup(sock.close)
        made = clientConnection(
            self.policy, self.client(), pair[0], parseIdentity(NAME), self.contexts, self.sessions, ("192.0.2.1", 443)
        )
        check = peerCheckOf(made)
        self.assertIsNotNone(check.offered)
        assert check.resumption is not None
        check.resumption.refused()
        self.assertEqual(len(self.sessions), 0)
        self.assertFull(self.link())

    def test_evictedContext(self: Any) -> None:
        """Sessions go with the context that they need."""
        self.link()
        few = replace(self.policy, limits=replace(self.policy.limits, maxCachedContexts=1), certVerificationDepth=7)
        self.link(self.client(owner=5), profile=few)
        self.assertEqual(len(self.sessions), 1)
        self.assertFull(self.link())

    def test_claim(self: Any) -> None:
        """Without what was proved before, a handshake without certificates proves nothing."""
        other = Proof(parseIdentity("other.example"), testCA().issue([NAME]).chain, 0, 1e9)
        for destination, offered in enumerate((None, other, replace(other, identity=parseIdentity(NAME)))):
            self.link(destination=destination)
            pair = socket.socketpair()
            for sock in pair:
                sock.setblocking(False)
                self.addCleanup(sock.close)
            made = clientConnection(
                self.policy, self.client(), pair[0], parseIdentity(NAME), self.contexts, self.sessions, destination
            )
            self.assertIsNotNone(peerCheckOf(made).offered)
            peerCheckOf(made).offered = offered
            with self.assertRaises(SSAError) as caught:
                Link(made, serverConnection(self.server, pair[1]), pair)
            self.assertEqual(caught.exception.errno, Cause.UNTRUSTED.errno)

    def clientAuthentication(self: Any, **changes: Any) -> None:
        """A client's certificate, and its chain, are known to the server in a resumed session too."""
        mine = testCA().intermediate("SSA intermediate for clients").issue(["me.example"], purpose="client")
        certified = (Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM), (Option.TLS_PRIVATE_KEY, mine.keyPEM)
        server = self.serve(
            (Option.TLS_REQUEST_PEER_AUTH, struct.pack("=i", 2)),
            (Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem),
            **changes,
        )
        self.assertFull(self.link(self.client(*certified), server))
        for _ in range(2):
            again = self.link(self.client(*certified), server)
            self.assertResumed(again)
            info = ConnectionInfo(again.server, True)
            self.assertEqual((info.peerIdentity(), info.peerChainPEM()), ("CN=me.example", mine.chainPEM))
            check = peerCheckOf(again.server)
            self.assertTrue(check.proved)
            self.assertEqual(check.verifiedChain(again.server), (*mine.chain, testCA().certificate))

    def test_clientCertificate(self: Any) -> None:
        """With tickets."""
        self.clientAuthentication()

    def test_clientCertificateStateful(self: Any) -> None:
        """With sessions that the server keeps."""
        self.clientAuthentication(sessionTickets=False)

    def test_clientSendsMore(self: Any) -> None:
        """
        What a client has sent beside its chain is told to programs, but nobody takes it for verified, not in a resumed
        session either: plug-ins would believe it.
        """
        important = testCA().issue(["important.example"], purpose="client")
        use = contextsModule.useCredentials

        def useMore(context: SSL.Context, credentials: Any) -> None:
            use(context, credentials)
            context.add_extra_chain_cert(crypto.X509.from_cryptography(important.certificate))

        self.patch(contextsModule, "useCredentials", useMore)  # the client's: programs' chains are put in order first
        for own in (testCA(), testCA().intermediate("SSA intermediate for clients")):
            mine = own.issue(["me.example"], purpose="client")
            certified = (Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM), (Option.TLS_PRIVATE_KEY, mine.keyPEM)
            server = self.serve(
                (Option.TLS_REQUEST_PEER_AUTH, struct.pack("=i", 2)),
                (Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem),
            )
            self.assertFull(self.link(self.client(*certified), server))
            again = self.link(self.client(*certified), server)
            self.assertResumed(again)
            self.assertEqual(ConnectionInfo(again.server, True).peerChainPEM(), mine.chainPEM + important.chainPEM)
            found = peerOf(again.server, InternetAddress(socket.AF_INET, "192.0.2.7", 999), True)
            assert found is not None
            self.assertTrue(found.isResumed)
            self.assertEqual(found.chain, (*mine.chain, testCA().certificate))

    def test_clientForgotten(self: Any) -> None:
        """
        A client that resumes a session and whose chain is not known any more has no verified chain; from a minute after the
        keys of tickets were made on, it gets new ones, and its next handshake is a full one.
        """
        store = ChainStore(most=0)
        self.patch(serverModule, "ClientChains", lambda listener, owner: ClientChains(listener, owner, store))
        mine = testCA().issue(["me.example"], purpose="client")
        certified = (Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM), (Option.TLS_PRIVATE_KEY, mine.keyPEM)
        server = self.serve(
            (Option.TLS_REQUEST_PEER_AUTH, struct.pack("=i", 2)),
            (Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem),
        )
        before = server.default
        self.link(self.client(*certified), server)
        self.clock.advance(61)
        self.assertIs(server.default, before)
        again = self.link(self.client(*certified), server)
        self.assertResumed(again)
        self.assertEqual(ConnectionInfo(again.server, True).peerChainPEM(), mine.chainPEM)
        self.assertIs(server.default, before)  # nobody has needed it
        self.assertEqual(peerCheckOf(again.server).verifiedChain(again.server), ())
        remote = InternetAddress(socket.AF_INET, "192.0.2.7", 999)
        self.assertEqual(self.assertRaises(SSAError, peerOf, again.server, remote, True).errno, errno.EKEYREJECTED)
        renewed = server.default
        self.assertIsNot(renewed, before)
        self.assertFull(self.link(self.client(*certified), server))
        again = self.link(self.client(*certified), server)
        self.assertEqual(peerCheckOf(again.server).verifiedChain(again.server), ())
        self.clock.advance(59)
        self.assertIs(server.default, renewed)  # clients must not decide how often
        self.clock.advance(1)
        self.assertIsNot(server.default, renewed)

    def test_clientExpired(self: Any) -> None:
        """A session of a client whose certificate has expired meanwhile is refused."""
        mine = testCA().intermediate("SSA intermediate for clients").issue(["me.example"], purpose="client")
        certified = (Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM), (Option.TLS_PRIVATE_KEY, mine.keyPEM)
        for wanted in (1, 2):
            server = self.serve(
                (Option.TLS_REQUEST_PEER_AUTH, struct.pack("=i", wanted)),
                (Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem),
            )
            self.link(self.client(*certified), server)
            for expired in mine.chain:
                real = module.lastMoment
                self.patch(
                    connectionModule,
                    "lastMoment",
                    lambda chain, expired=expired, real=real: -1.0 if chain[0] == expired else real(chain),
                )
                with self.assertRaises(SSAError) as caught:
                    self.link(self.client(*certified), server)
                self.assertEqual(caught.exception.errno, Cause.EXPIRED.errno)
                self.assertIn("since the session began", caught.exception.reason)
                self.patch(connectionModule, "lastMoment", real)
                self.link(self.client(*certified), server)


class TLS13Tests(_Common, ResumptionCase):
    """TLS 1.3."""

    def test_once(self) -> None:
        """A ticket is used once: what is taken is gone, and without a new one nothing is kept."""
        self.link()
        self.assertEqual(len(self.sessions), 1)
        one = self.link(talk=False)
        self.assertResumed(one)
        self.assertEqual(len(self.sessions), 0)
        self.assertFalse(one.resumption.collect(one.client))  # that is the old ticket
        two = self.link(talk=False)
        self.assertFull(two)
        self.assertFalse(two.resumption.collect(two.client))
        self.assertTrue(one.talk())
        self.assertFalse(one.resumption.collect(one.client))
        self.assertEqual(len(self.sessions), 1)
        self.assertTrue(two.talk())
        self.assertEqual(len(self.sessions), 2)
        self.assertResumed(self.link(talk=False))
        self.assertResumed(self.link(talk=False))
        self.assertFull(self.link(talk=False))

    def test_forgottenBeforeTicket(self) -> None:
        """A ticket that comes after everything was forgotten, on a connection from before, is not kept; new ones are."""
        before = self.link(talk=False)
        self.sessions.forgetAll()
        before.talk()
        self.assertEqual(len(self.sessions), 0)
        self.assertFull(self.link())
        self.assertResumed(self.link())

    def test_bounded(self) -> None:
        """Of one destination only a few are kept."""
        for link in [self.link(talk=False) for _ in range(9)]:
            link.talk()
        self.assertEqual(len(self.sessions), 4)


class TLS12Tests(_Common, ResumptionCase):
    """TLS 1.2."""

    version = TLS_1_2

    def test_often(self) -> None:
        """A session may be used by several connections at the same time."""
        self.link(talk=False)
        links = [self.link(talk=False) for _ in range(3)]
        for link in links:
            self.assertResumed(link)
        self.assertEqual(len(self.sessions), 1)

    def test_forgottenInHandshake(self) -> None:
        """The session of a handshake during which everything was forgotten is not kept."""
        before = self.link(talk=False)
        self.sessions.forgetAll()
        before.resumption.established(before.client, None)
        self.assertEqual(len(self.sessions), 0)
        self.assertFull(self.link())


class SharedServerTests(ResumptionCase):
    """TLS_CONTEXT on servers: sockets that are upgraded one by one."""

    def test_shared(self) -> None:
        """A socket with another one's context resumes its sessions while their options are equal, and no longer."""
        policy = self.policy
        first = serving(testCA().issue([NAME]))
        known = {1: first}
        second = SocketOptions(2, find=known.get)
        second.set(Option.TLS_CONTEXT, struct.pack("=Q", 1), Phase.NEW, policy)
        self.assertFull(self.link(server=serverContexts(policy, first)))
        self.assertResumed(self.link(server=serverContexts(policy, second)))
        third = SocketOptions(3, find=known.get)
        third.set(Option.TLS_CONTEXT, struct.pack("=Q", 1), Phase.NEW, policy)
        third.set(Option.TLS_REQUEST_PEER_AUTH, struct.pack("=i", 1), Phase.NEW, policy)
        third.set(Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem, Phase.NEW, policy)
        self.assertFull(self.link(server=serverContexts(policy, third)))
        self.assertFull(self.link(server=serverContexts(policy, serving(testCA().issue([NAME])))))

    def test_policy(self) -> None:
        """Another policy means other contexts."""
        options = serving(testCA().issue([NAME]))
        one = serverContexts(self.policy, options)
        self.assertIs(serverContexts(self.policy, options), one)
        self.assertIsNot(serverContexts(replace(self.policy, truncation="allow"), options), one)


    def test_sharedClients(self) -> None:
        """
        The chains of clients last as long as their sessions: a listener that is prepared again, as after each change of a
        file, resumes them and knows the whole chain for revocation.
        """
        asked: list[Sequence[x509.Certificate]] = []

        class _Revocation:
            """Finds everybody good."""

            async def check(self, chain: Sequence[x509.Certificate], stapled: bytes, rules: object) -> None:
                asked.append(chain)

        revocation: Any = _Revocation()
        policy = replace(self.policy, revocationChecks=True, clientAuth="require")
        mine = testCA().intermediate("SSA intermediate for clients").issue(["me.example"], purpose="client")
        certified = (Option.TLS_CERTIFICATE_CHAIN, mine.chainPEM), (Option.TLS_PRIVATE_KEY, mine.keyPEM)
        options = serving(
            testCA().issue([NAME]), settings=((Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem),)
        )
        for expected in (self.assertFull, self.assertResumed, self.assertResumed):
            link = self.link(self.client(*certified), serverContexts(policy, options))
            expected(link)
            judge = PeerJudge(revocation, policy, options, isServer=True)
            self.successResultOf(Deferred.fromCoroutine(judge.judge(link.server, 5.0)))
        self.assertEqual(asked, [(*mine.chain, testCA().certificate)] * 3)


class CacheTests(SynchronousTestCase):
    """L{SessionCache} by itself."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.cache = SessionCache(self.clock.seconds, most=10, mostPerOwner=4)
        self.context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self.proof = Proof(parseIdentity(NAME), (), 0.0, 1e9)

    def key(self, owner: int, number: int) -> SessionKey:
        identity = parseIdentity(NAME)
        return SessionKey(owner, "", number, identity, Profile(), (False, frozenset()), ("trust", number % 2))

    def put(self, owner: int, number: int, once: bool = True, expires: float = 100.0) -> SSL.Session:
        session = SSL.Session()
        self.cache.store(self.key(owner, number), session, self.context, self.proof, expires, once)
        return session

    def take(self, owner: int, number: int) -> SSL.Session | None:
        found = self.cache.take(self.key(owner, number), self.context)
        return found[0] if found is not None else None

    def test_perUser(self) -> None:
        """A user loses the oldest; root is bound by the whole only."""
        for number in range(6):
            self.put(1, number)
            self.put(0, number)
        self.assertEqual(len(self.cache), 10)
        self.assertEqual([number for number in range(6) if self.take(1, number) is not None], [2, 3, 4, 5])
        self.assertEqual([number for number in range(6) if self.take(0, number) is not None], [0, 1, 2, 3, 4, 5])

    def test_most(self) -> None:
        """When all are too many, who has the most loses one: not who has few."""
        mine = self.put(1, 0)
        for number in range(50):
            self.put(0, number)
        self.assertEqual(len(self.cache), 10)
        self.assertIs(self.take(1, 0), mine)

    def test_bytes(self) -> None:
        """The certificates are bounded by size in the same two ways, and those of one session."""
        cache = self.cache = SessionCache(self.clock.seconds, mostBytes=100000, mostBytesPerOwner=40000)
        self.proof = replace(self.proof, size=10000)
        mine = self.put(1, 0)
        for number in range(6):
            self.put(2, number)
        self.assertEqual([number for number in range(6) if self.take(2, number) is not None], [2, 3, 4, 5])
        for number in range(50):
            self.put(0, number)
        self.assertEqual(len(cache), 10)
        self.proof = replace(self.proof, size=LARGEST_PROOF + 1)
        self.put(3, 0)
        self.assertIsNone(self.take(3, 0))
        self.proof = replace(self.proof, size=LARGEST_PROOF)
        self.put(0, 99)
        self.assertEqual(len(cache), 4)
        self.assertIs(self.take(1, 0), mine)
        # All ways out give back what was taken.
        self.proof = replace(self.proof, size=1000)
        for _ in range(5):
            self.put(0, 99)
            self.put(0, 98, once=False)
        cache.forgetTrust(("trust", 0))
        cache.forget(self.key(0, 99))
        for number in range(50):
            self.take(0, number)
        self.assertEqual((len(cache), sum(vars(cache)["_bytes"].values())), (0, 0))

    def test_expired(self) -> None:
        """What has expired is gone, and what has expired before is not taken in."""
        self.put(1, 0, expires=50)
        self.clock.advance(50)
        self.assertIsNone(self.take(1, 0))
        self.put(1, 1, expires=50)
        self.assertEqual(len(self.cache), 0)

    def test_newest(self) -> None:
        """The newest is taken first; one that may be used often takes the place of all."""
        one, two = self.put(1, 0), self.put(1, 0)
        self.assertIs(self.take(1, 0), two)
        self.assertIs(self.take(1, 0), one)
        self.assertIsNone(self.take(1, 0))
        self.put(1, 0, once=False)
        last = self.put(1, 0, once=False)
        self.assertEqual(len(self.cache), 1)
        self.assertIs(self.take(1, 0), last)
        self.assertIs(self.take(1, 0), last)

    def test_forget(self) -> None:
        """By key, and by context."""
        for number in range(4):
            self.put(1, number)
        self.cache.forget(self.key(1, 0))
        self.cache.forget(self.key(1, 0))
        self.assertEqual(len(self.cache), 3)
        self.cache.forgetTrust(("trust", 1))
        self.assertEqual(len(self.cache), 1)
        self.put(1, 1)
        self.cache.forgetAll()
        self.assertEqual(len(self.cache), 0)
        self.put(1, 0)
        self.cache.forgetTrust(("trust", 0))
        self.assertEqual(len(self.cache), 0)
        self.assertEqual(vars(self.cache)["_owners"], {})
        self.assertEqual(vars(self.cache)["_byTrust"], {})

    def test_otherContext(self) -> None:
        """A session whose context is another one is of no use, and dropped."""
        self.put(1, 0)
        self.assertIsNone(self.cache.take(self.key(1, 0), SSL.Context(SSL.TLS_CLIENT_METHOD)))
        self.assertEqual(len(self.cache), 0)
