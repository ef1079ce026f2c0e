# SPDX-License-Identifier: MIT
"""Tests of client certificates where the policy decides: C{clientAuth}, C{clientCertificates} and the trust store."""

from __future__ import annotations

import errno
import os
from typing import Any

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import Option
from ssa.errors import Cause, SSAError
from ssa.options import SocketOptions
from ssa.policy.profile import TLS_1_2, Profile
from ssa.test.pki import CA, Credential, otherCA, testCA
from ssa.test.tlspair import Pair, serving, trusting
from ssa.tls.connection import ConnectionInfo, peerCheckOf
from ssa.tls.handshake import describeConnectionError
from ssa.tls.servercontexts import ServerContexts, serverContexts


class AuthenticationCase(SynchronousTestCase):
    """Pairs under policies with files."""

    def setUp(self) -> None:
        self.mine = testCA().intermediate("SSA authority for clients").issue(["me.example"], purpose="client", subject="me")
        self.files = self.write("chain.pem", self.mine.chainPEM), self.write("key.pem", self.mine.keyPEM)
        self.store = self.write("store.pem", testCA().pem)

    def write(self, name: str, content: bytes) -> str:
        """A file's path."""
        folder = self.mktemp()
        os.makedirs(folder)
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(content)
        return os.path.abspath(path)

    def pair(self, client: SocketOptions, server: SocketOptions | ServerContexts, **named: Any) -> Pair:
        """A pair after its handshake and checks."""
        pair = Pair(client, server, **named)
        self.addCleanup(pair.close)
        pair.shakeHands()
        for which, connection in (("client", pair.client), ("server", pair.server)):
            if pair.errors[which] is None:
                try:
                    peerCheckOf(connection).conclude(connection)
                except SSAError as error:
                    pair.errors[which] = error
        return pair

    def with_(self, credential: Credential) -> SocketOptions:
        """A client with a certificate of its program's."""
        return trusting(
            testCA(), (Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM), (Option.TLS_PRIVATE_KEY, credential.keyPEM)
        )


class ServerTests(AuthenticationCase):
    """What a server asks for."""

    def policy(self, word: str) -> Profile:
        """A policy for servers."""
        return Profile(clientAuth=word, trustStore=self.store)

    def test_policy(self) -> None:
        """The policy asks, of programs that say nothing about it, and trusts its own store."""
        for word in ("request", "require"):
            pair = self.pair(self.with_(self.mine), serving(testCA().issue()), serverProfile=self.policy(word))
            self.assertEqual(pair.errors, {"client": None, "server": None})
            info = ConnectionInfo(pair.server, True)
            self.assertEqual((info.peerIdentity(), info.peerChainPEM()), ("CN=me", self.mine.chainPEM))
            self.assertTrue(peerCheckOf(pair.server).proved)
            self.assertEqual(len(peerCheckOf(pair.server).verifiedChain(pair.server)), 3)

    def test_none(self) -> None:
        """Without a certificate: requested, nothing is proved; required, refused."""
        pair = self.pair(trusting(testCA()), serving(testCA().issue()), serverProfile=self.policy("request"))
        self.assertEqual(pair.errors, {"client": None, "server": None})
        check = peerCheckOf(pair.server)
        self.assertEqual((check.proved, check.resumed, check.verifiedChain(pair.server)), (False, False, ()))
        pair = self.pair(trusting(testCA()), serving(testCA().issue()), serverProfile=self.policy("require"))
        self.assertIsInstance(pair.errors["server"], SSL.Error)

    def test_ownTrust(self) -> None:
        """The program's own trust takes the place of the policy's, where that allows it."""
        server = serving(
            testCA().issue(), settings=((Option.TLS_TRUSTED_PEER_CERTIFICATES, otherCA().pem),)
        )
        pair = self.pair(self.with_(self.mine), server, serverProfile=self.policy("require"))
        refusal = peerCheckOf(pair.server).refusal
        assert refusal is not None
        self.assertEqual(refusal.errno, errno.EKEYREJECTED)
        self.assertIn("CN=SSA authority for clients", refusal.reason)
        forbidden = Profile(clientAuth="require", trustStore=self.store, appCustomValidation=False)
        with self.assertRaises(SSAError) as caught:
            serverContexts(forbidden, server)
        self.assertEqual(caught.exception.errno, errno.EPERM)

    def test_depth(self) -> None:
        """CertVerificationDepth counts for clients."""
        profile = Profile(clientAuth="require", trustStore=self.store, certVerificationDepth=0)
        pair = self.pair(self.with_(self.mine), serving(testCA().issue()), serverProfile=profile)
        refusal = peerCheckOf(pair.server).refusal
        assert refusal is not None
        self.assertIn("CertVerificationDepth", refusal.reason)

    def test_purpose(self) -> None:
        """A server's certificate is none for clients."""
        bad = testCA().issue(["me.example"], purpose="server")
        pair = self.pair(self.with_(bad), serving(testCA().issue()), serverProfile=self.policy("request"))
        refusal = peerCheckOf(pair.server).refusal
        assert refusal is not None
        self.assertEqual(refusal.reason.partition(":")[0], Cause.WRONG_PURPOSE.text)

    def test_noStore(self) -> None:
        """A trust store that is not there: listen fails, clients are not let in unseen."""
        for path in (self.store + ".missing", self.write("empty.pem", b"")):
            with self.assertRaises(SSAError) as caught:
                serverContexts(Profile(clientAuth="request", trustStore=path), serving(testCA().issue()))
            self.assertEqual(caught.exception.errno, errno.EKEYREJECTED)

    def test_manyNames(self) -> None:
        """The names of a few authorities are sent, those of a whole store are not."""
        pem = testCA().pem + b"".join(CA(f"authority {number}", key=testCA().key).pem for number in range(64))
        few = self.pair(trusting(testCA()), serving(testCA().issue()), serverProfile=self.policy("request"))
        self.assertEqual(
            few.client.get_client_ca_list(as_cryptography=True), [testCA().certificate.subject]
        )
        many = Profile(clientAuth="request", trustStore=self.write("many.pem", pem))
        pair = self.pair(self.with_(self.mine), serving(testCA().issue()), serverProfile=many)
        self.assertEqual(pair.client.get_client_ca_list(as_cryptography=True), [])
        self.assertTrue(peerCheckOf(pair.server).proved)


class ClientTests(AuthenticationCase):
    """What a client shows."""

    server = Profile(clientAuth="request")

    def test_policy(self) -> None:
        """The policy's certificate, where the program has set none; the program's, where it has."""
        own = testCA().issue(["own.example"], purpose="client", subject="own")
        server = Profile(clientAuth="require", trustStore=self.store)
        profile = Profile(clientCertificates=(self.files,))
        for options, expected in ((trusting(testCA()), "CN=me"), (self.with_(own), "CN=own")):
            pair = self.pair(options, serving(testCA().issue()), clientProfile=profile, serverProfile=server)
            self.assertEqual(pair.errors, {"client": None, "server": None})
            self.assertEqual(ConnectionInfo(pair.server, True).peerIdentity(), expected)

    def test_renewed(self) -> None:
        """A file that has changed is read again."""
        server = Profile(clientAuth="require", trustStore=self.store)
        profile = Profile(clientCertificates=(self.files,))
        for subject in ("one", "another"):
            credential = testCA().issue(["me.example"], purpose="client", subject=subject)
            for path, content in zip(self.files, (credential.chainPEM, credential.keyPEM), strict=True):
                with open(path, "wb") as file:
                    file.write(content)
            pair = self.pair(trusting(testCA()), serving(testCA().issue()), clientProfile=profile, serverProfile=server)
            self.assertEqual(ConnectionInfo(pair.server, True).peerIdentity(), f"CN={subject}")

    def test_unusable(self) -> None:
        """Files that are not there, or do not fit: ENOKEY, and the file is named."""
        other = self.write("other.pem", testCA().issue(key="rsa").keyPEM)
        for files, word in (
            (("/nonexistent/chain.pem", self.files[1]), "/nonexistent/chain.pem"),
            ((self.files[0], other), other),
            ((self.store, self.files[1]), self.store),
        ):
            with self.assertRaises(SSAError) as caught:
                Pair(trusting(testCA()), serving(testCA().issue()), clientProfile=Profile(clientCertificates=(files,)))
            self.assertEqual(caught.exception.errno, errno.ENOKEY)
            self.assertIn(word, caught.exception.reason)

    def test_told(self) -> None:
        """TLS 1.3: what the first read says of a certificate that is missing, and of one that is refused."""
        server = Profile(clientAuth="require", trustStore=self.store)
        stranger = otherCA().issue(["me.example"], purpose="client")
        for options, words in (
            (trusting(testCA()), "demands a client certificate and there is none (it sent the alert certificate_required"),
            (self.with_(stranger), "it refuses our certificate, it sent the alert unknown_ca"),
        ):
            pair = self.pair(options, serving(testCA().issue()), serverProfile=server)
            self.assertIsNone(pair.errors["client"])
            with self.assertRaises(SSL.Error) as caught:
                pair.client.recv(1)
            error = describeConnectionError(caught.exception)
            self.assertEqual(error.errno, errno.ECONNRESET)
            self.assertIn(words, error.reason)

    def test_version(self) -> None:
        """The same pairs in TLS 1.2 fail in the handshake."""
        server = Profile(clientAuth="require", trustStore=self.store, maxProtocol=TLS_1_2)
        pair = self.pair(trusting(testCA()), serving(testCA().issue()), serverProfile=server)
        self.assertIsInstance(pair.errors["client"], SSL.Error)
