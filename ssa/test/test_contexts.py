# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.contexts} and L{ssa.tls.connection}: policy and options against a peer."""

from __future__ import annotations

import base64
import errno
import io
import json
import lzma
import os
import socket
import struct
import sys
from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from OpenSSL import SSL
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.api import Option
from ssa.errors import Cause, SSAError
from ssa.options import Phase, SocketOptions
from ssa.policy.profile import TLS_1_2, TLS_1_3, Limits, Profile
from ssa.test.pki import Credential, otherCA, testCA, testKey
from ssa.test.tlspair import Pair, optionsWith, serving, trusting
from ssa.tls.connection import ConnectionInfo, peerCheckOf
from ssa.tls.contexts import ContextCache, clientConnection
from ssa.tls.identity import parseIdentity
from ssa.tls.servercontexts import serverContexts


class PairCase(SynchronousTestCase):
    """Makes pairs, and closes them."""

    def pair(self, *arguments: Any, **named: Any) -> Pair:
        pair = Pair(*arguments, **named)
        self.addCleanup(pair.close)
        return pair.shakeHands()

    def assertRefused(self, pair: Pair, cause: Cause, *words: str) -> SSAError:
        """The client has refused the server, for that cause, and the server got an alert."""
        self.assertIsNotNone(pair.errors["client"])
        refusal = peerCheckOf(pair.client).refusal
        assert refusal is not None
        self.assertFalse(peerCheckOf(pair.client).proved)
        self.assertEqual((refusal.errno, refusal.reason.partition(":")[0]), (cause.errno, cause.text))
        for word in words:
            self.assertIn(word, refusal.reason)
        self.assertEqual(len(refusal.reason.splitlines()), 1)
        with self.assertRaises(SSL.Error) as caught:
            pair.server.do_handshake()
            pair.server.recv(1)
        self.assertIn("alert", str((pair.errors["server"] or caught.exception).args))
        return refusal


class GoodPeerTests(PairCase):
    """Peers that prove who they are."""

    def test_trusted(self) -> None:
        """A chain to a trusted root, for the name that was asked for, is accepted, with TLS 1.3 and TLS 1.2."""
        credential = testCA().intermediate().issue(["server.example"])
        for version in (TLS_1_3, TLS_1_2):
            pair = self.pair(trusting(testCA()), serving(credential), clientProfile=Profile(maxProtocol=version))
            self.assertEqual(pair.errors, {"client": None, "server": None})
            self.assertTrue(peerCheckOf(pair.client).proved)
            self.assertEqual(pair.client.get_protocol_version(), version)
            self.assertEqual(pair.exchange(), b"hello")

    def test_address(self) -> None:
        """An IP address is proved by an address in the certificate; no server_name is sent for it."""
        credential = testCA().issue(["192.0.2.1", "2001:db8::1"])
        for name in ("192.0.2.1", "2001:db8:0::1", "::ffff:192.0.2.1"):
            pair = self.pair(trusting(testCA()), serving(credential), name)
            self.assertEqual(pair.errors["client"], None)
            self.assertIsNone(pair.server.get_servername())

    def test_wildcard(self) -> None:
        """A wildcard stands for one label."""
        server = serving(testCA().issue(["*.wild.example"]))
        self.assertIsNone(self.pair(trusting(testCA()), server, "a.wild.example").errors["client"])
        self.assertRefused(self.pair(trusting(testCA()), server, "b.a.wild.example"), Cause.WRONG_NAME)
        self.assertRefused(self.pair(trusting(testCA()), server, "wild.example"), Cause.WRONG_NAME)

    def test_keyTypes(self) -> None:
        """RSA and Ed25519 work as well as ECDSA."""
        for kind in ("rsa", "ed25519"):
            pair = self.pair(trusting(testCA()), serving(testCA().issue(key=kind)))
            self.assertEqual(pair.errors["client"], None)

    def test_partialChain(self) -> None:
        """A program may trust an intermediate authority or a single peer."""
        middle = testCA().intermediate()
        credential = middle.issue(["server.example"])
        for pem in (middle.pem, credential.chainPEM):
            client = optionsWith((Option.TLS_TRUSTED_PEER_CERTIFICATES, pem))
            self.assertIsNone(self.pair(client, serving(credential)).errors["client"])

    def test_administratorStore(self) -> None:
        """TrustStoreLocation names a file or a directory."""
        directory = self.mktemp()
        os.mkdir(directory)
        path = os.path.join(directory, "root.pem")
        with open(path, "wb") as file:
            file.write(b"# a comment\n" + otherCA().pem + testCA().pem)
        for place in (path, directory):
            pair = self.pair(SocketOptions(1), serving(testCA().issue()), clientProfile=Profile(trustStore=place))
            self.assertEqual(pair.errors["client"], None)


class BadPeerTests(PairCase):
    """Peers that must be refused, each for its own reason and with an alert."""

    def refuse(self, credential: Credential, cause: Cause, *words: str, name: str = "server.example") -> None:
        self.assertRefused(self.pair(trusting(testCA()), serving(credential), name), cause, *words)

    def test_untrusted(self) -> None:
        """A chain to a root that is not trusted; the reason names the certificate."""
        credential = otherCA().issue()
        digest = credential.certificate.fingerprint(hashes.SHA256()).hex()
        self.refuse(credential, Cause.UNTRUSTED, digest, "CN=SSA untrusted root", "server.example")

    def test_selfSigned(self) -> None:
        """A self-signed certificate."""
        self.refuse(testCA().issue(selfSigned=True), Cause.UNTRUSTED, "self-signed")

    def test_missingIntermediate(self) -> None:
        """A chain without its intermediate."""
        self.refuse(testCA().intermediate().issue(withoutChain=True), Cause.UNTRUSTED, "intermediate")

    def test_expired(self) -> None:
        """A certificate that has expired: EKEYEXPIRED."""
        self.refuse(testCA().issue(expired=True), Cause.EXPIRED, "valid 20")

    def test_notYetValid(self) -> None:
        """A certificate that is not valid yet: EKEYEXPIRED."""
        self.refuse(testCA().issue(notYetValid=True), Cause.NOT_YET_VALID)

    def test_wrongName(self) -> None:
        """A good certificate of another name; the reason has both names."""
        self.refuse(testCA().issue(["other.example"]), Cause.WRONG_NAME, "server.example", "other.example")

    def test_commonNameIsNoName(self) -> None:
        """The subject's common name does not count (RFC 9525 section 2)."""
        self.refuse(testCA().issue(["server.example"], noNames=True), Cause.WRONG_NAME)

    def test_wrongAddress(self) -> None:
        """A certificate with the name but without the address; and with the address as a DNS name."""
        self.refuse(testCA().issue(["server.example"]), Cause.WRONG_NAME, name="192.0.2.1")
        self.refuse(testCA().issue(["192.0.2.7"]), Cause.WRONG_NAME, name="192.0.2.1")

    def test_hostileNames(self) -> None:
        """Names that make service_identity raise anything at all refuse the peer."""
        self.refuse(testCA().issue(["*.*.example", "server.example"]), Cause.WRONG_NAME)

    def test_wrongPurpose(self) -> None:
        """A certificate for clients or for code."""
        for purpose in ("client", "code"):
            self.refuse(testCA().issue(purpose=purpose), Cause.WRONG_PURPOSE)

    def test_issuerIsNoAuthority(self) -> None:
        """A chain over a certificate with CA:FALSE."""
        context = self.weakServer(testCA().intermediate(isAuthority=False).issue())
        self.assertRefused(self.pair(trusting(testCA()), context), Cause.WRONG_PURPOSE)

    def test_criticalExtension(self) -> None:
        """A critical extension that nobody knows."""
        self.refuse(testCA().issue(criticalExtension=True), Cause.MALFORMED, "critical")

    def test_nameConstraint(self) -> None:
        """An intermediate that may not certify this name."""
        constraint = x509.NameConstraints([x509.DNSName("other.example")], None)
        self.refuse(testCA().intermediate(constraint=constraint).issue(), Cause.MALFORMED, "name constraint")

    def weakServer(self, credential: Credential) -> SSL.Context:
        """A server with OpenSSL's checks of its own certificate turned off."""
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.use_certificate(credential.certificate)
        for certificate in credential.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(credential.key)
        return context

    def test_weak(self) -> None:
        """An RSA key of 1024 bits, and a signature with SHA-1."""
        for flaw in ({"key": "rsa1024"}, {"sha1": True}):
            pair = self.pair(trusting(testCA()), self.weakServer(testCA().issue(**flaw)))
            self.assertRefused(pair, Cause.WEAK)

    def test_depth(self) -> None:
        """CertVerificationDepth bounds the intermediates."""
        credential = testCA().intermediate("A").intermediate("B").issue()
        good = self.pair(trusting(testCA()), serving(credential), clientProfile=Profile(certVerificationDepth=2))
        self.assertIsNone(good.errors["client"])
        bad = self.pair(trusting(testCA()), serving(credential), clientProfile=Profile(certVerificationDepth=1))
        self.assertRefused(bad, Cause.UNTRUSTED)

    def test_customStoreReplaces(self) -> None:
        """The program's certificates replace the administrator's."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(testCA().pem)
        pair = self.pair(trusting(otherCA()), serving(testCA().issue()), clientProfile=Profile(trustStore=path))
        self.assertRefused(pair, Cause.UNTRUSTED)

    def test_hostileText(self) -> None:
        """Control characters that the peer put into its certificate stay out of the reason."""
        credential = otherCA().issue(subject="evil\n\x1b[2Jname")
        refusal = self.assertRefused(self.pair(trusting(testCA()), serving(credential)), Cause.UNTRUSTED)
        self.assertTrue(refusal.reason.isprintable())


class ClientTests(PairCase):
    """What a client does apart from checking its peer."""

    def test_policyForbidsCustomStore(self) -> None:
        """Options that came before a change of the policy do not outlive it."""
        with self.assertRaises(SSAError) as caught:
            Pair(trusting(testCA()), serving(testCA().issue()), clientProfile=Profile(appCustomValidation=False))
        self.assertEqual(caught.exception.errno, errno.EPERM)

    def test_missingStore(self) -> None:
        """A trust store that is missing or empty is an error."""
        empty = self.mktemp()
        os.mkdir(empty)
        for path in (self.mktemp(), empty, "/dev/null"):
            with self.assertRaises(SSAError) as caught:
                Pair(SocketOptions(1), serving(testCA().issue()), clientProfile=Profile(trustStore=path))
            self.assertEqual(caught.exception.errno, errno.EKEYREJECTED)
            self.assertIn(path, caught.exception.reason)

    def test_keyWithoutChain(self) -> None:
        """A private key without its chain, and a chain without its key: ENOKEY at connect."""
        credential = testCA().issue()
        for setting in (
            (Option.TLS_PRIVATE_KEY, credential.keyPEM),
            (Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM),
        ):
            with self.assertRaises(SSAError) as caught:
                Pair(trusting(testCA(), setting), serving(credential))
            self.assertEqual(caught.exception.errno, errno.ENOKEY)

    def test_contextsAreShared(self) -> None:
        """Connections that need equal contexts share one; no more are kept than allowed."""
        cache = ContextCache()
        sock = socket.socket()
        self.addCleanup(sock.close)
        identity = parseIdentity("a.example")

        def context(options: SocketOptions, **changes: Any) -> SSL.Context:
            profile = replace(Profile(limits=Limits(maxCachedContexts=2)), **changes)
            return clientConnection(profile, options, sock, identity, cache).get_context()

        first = context(trusting(testCA()))
        self.assertIs(context(trusting(testCA())), first)
        self.assertIsNot(context(trusting(otherCA())), first)
        self.assertIsNot(context(trusting(testCA()), minProtocol=TLS_1_3), first)
        self.assertEqual(len(cache), 2)
        credential = testCA().issue()
        own = trusting(
            testCA(), (Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM), (Option.TLS_PRIVATE_KEY, credential.keyPEM)
        )
        self.assertIsNot(context(own), first)
        cache.clear()
        self.assertEqual(len(cache), 0)

    def test_storeChanges(self) -> None:
        """A trust store that has changed is read again."""
        path = self.mktemp()
        profile = Profile(trustStore=path)
        for ca, cause in ((testCA(), None), (otherCA(), Cause.UNTRUSTED)):
            with open(path + ".new", "wb") as file:
                file.write(ca.pem)
            os.rename(path + ".new", path)
            pair = self.pair(SocketOptions(1), serving(testCA().issue()), clientProfile=profile)
            if cause is None:
                self.assertIsNone(pair.errors["client"])
            else:
                self.assertRefused(pair, cause)


class ServerTests(PairCase):
    """A server's certificates, names and protocols."""

    def asked(self, pair: Pair) -> list[str]:
        certificate = pair.client.get_peer_certificate(as_cryptography=True)
        assert certificate is not None
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName)

    def test_byName(self) -> None:
        """The client's name chooses: exact before wildcard, the first certificate for others and for none."""
        server = serving(
            testCA().issue(["first.example", "192.0.2.1"]),
            testCA().issue(["*.wild.example"]),
            testCA().issue(["exact.wild.example"]),
        )
        for name, expected in (
            ("first.example", "first.example"),
            ("a.wild.example", "*.wild.example"),
            ("EXACT.wild.example", "exact.wild.example"),
            ("192.0.2.1", "first.example"),
        ):
            pair = self.pair(trusting(testCA()), server, name)
            self.assertEqual((pair.errors["client"], self.asked(pair)), (None, [expected]))
        other = self.pair(trusting(testCA()), server, "other.example")
        self.assertRefused(other, Cause.WRONG_NAME)

    def test_keyTypesOfOneName(self) -> None:
        """One name with two kinds of key: the client's abilities choose, and each has its own chain."""
        left, right = testCA().intermediate("left"), testCA().intermediate("right")
        server = serving(left.issue(key="ec"), right.issue(key="rsa"))
        for cipher, expected in (("ECDHE-RSA-AES128-GCM-SHA256", right), ("ECDHE-ECDSA-AES128-GCM-SHA256", left)):
            profile = Profile(maxProtocol=TLS_1_2, cipherList=cipher)
            pair = self.pair(trusting(testCA()), server, clientProfile=profile)
            self.assertEqual(pair.errors["client"], None)
            chain = pair.client.get_peer_cert_chain(as_cryptography=True)
            assert chain is not None
            self.assertEqual(chain[1:], [expected.certificate])

    def test_namesServed(self) -> None:
        """TLS_HOSTNAME bounds the names; others get the alert unrecognized_name, and nothing is printed."""
        server = serving(
            testCA().issue(["a.example", "b.example", "192.0.2.1"]), settings=((Option.TLS_HOSTNAME, b"a.example\0"),)
        )
        self.assertIsNone(self.pair(trusting(testCA()), server, "a.example").errors["client"])
        self.assertIsNone(self.pair(trusting(testCA()), server, "192.0.2.1").errors["client"])
        hook, stderr = sys.excepthook, io.StringIO()
        self.patch(sys, "stderr", stderr)
        pair = self.pair(trusting(testCA()), server, "b.example")
        self.assertIn("unrecognized name", str(pair.errors["client"]))
        refusal = peerCheckOf(pair.server).refusal
        assert refusal is not None
        self.assertIn("b.example", refusal.reason)
        self.assertEqual((stderr.getvalue(), sys.excepthook), ("", hook))

    def test_protocols(self) -> None:
        """The server's order decides; nothing in common is the alert no_application_protocol; no offer is no choice."""
        server = serving(testCA().issue(), settings=((Option.TLS_ALPN, b"h2,http/1.1"),))
        pair = self.pair(trusting(testCA(), (Option.TLS_ALPN, b"http/1.1,h2")), server)
        self.assertEqual(pair.client.get_alpn_proto_negotiated(), b"h2")
        pair = self.pair(trusting(testCA()), server)
        self.assertEqual((pair.errors["client"], pair.client.get_alpn_proto_negotiated()), (None, b""))
        pair = self.pair(trusting(testCA(), (Option.TLS_ALPN, b"smtp")), server)
        self.assertIn("no application protocol", str(pair.errors["client"]))
        refused = pair.errors["server"]
        assert isinstance(refused, SSAError)
        self.assertEqual(refused.errno, errno.EPROTO)
        self.assertIn("smtp", refused.reason)

    def test_noCertificate(self) -> None:
        """Without any certificate there is no listener: ENOKEY."""
        with self.assertRaises(SSAError) as caught:
            serverContexts(Profile(), SocketOptions(1))
        self.assertEqual(caught.exception.errno, errno.ENOKEY)

    def test_administratorCertificate(self) -> None:
        """The configuration's certificate serves where the program set none; what is wrong with it is said."""
        credential = testCA().issue()
        chain, key = self.mktemp(), self.mktemp()
        profile = Profile(certificates=((chain, key),))
        with self.assertRaises(SSAError) as caught:
            serverContexts(profile, SocketOptions(1))
        self.assertEqual(caught.exception.errno, errno.ENOKEY)
        self.assertIn(chain, caught.exception.reason)
        for path, pem in ((chain, credential.chainPEM), (key, credential.keyPEM)):
            with open(path, "wb") as file:
                file.write(pem)
        pair = self.pair(trusting(testCA()), SocketOptions(1), serverProfile=profile)
        self.assertEqual(pair.errors["client"], None)
        with open(key, "wb") as file:
            file.write(testCA().issue(key=testKey("ec", 77)).keyPEM)
        with self.assertRaises(SSAError) as caught:
            serverContexts(profile, SocketOptions(1))
        self.assertEqual(caught.exception.errno, errno.ENOKEY)

    def test_weakCertificate(self) -> None:
        """A certificate that is too weak to be used: ENOKEY, and why."""
        with self.assertRaises(SSAError) as caught:
            serverContexts(Profile(), serving(testCA().issue(key="rsa1024")))
        self.assertEqual(caught.exception.errno, errno.ENOKEY)
        self.assertIn("too small", caught.exception.reason)

    def test_versions(self) -> None:
        """No common version is an error on both sides."""
        pair = self.pair(
            trusting(testCA()),
            serving(testCA().issue()),
            clientProfile=Profile(maxProtocol=TLS_1_2),
            serverProfile=Profile(minProtocol=TLS_1_3),
        )
        self.assertIn("protocol version", str(pair.errors["client"]))
        self.assertIn("unsupported protocol", str(pair.errors["server"]))

    def test_serverHasNoPeer(self) -> None:
        """A server's connection asks for no certificate and proves nothing."""
        pair = self.pair(trusting(testCA()), serving(testCA().issue()))
        self.assertFalse(peerCheckOf(pair.server).proved)
        self.assertIsNone(pair.server.get_peer_certificate())

    def test_foreignConnection(self) -> None:
        """A connection without checks is not taken for one of ours."""
        with self.assertRaises(SSAError):
            peerCheckOf(SSL.Connection(SSL.Context(SSL.TLS_METHOD), None))


class NameAndKeyTests(PairCase):
    """Which certificate a client gets that asks for a name and can verify one kind of key only."""

    RSA = Profile(maxProtocol=TLS_1_2, cipherList="ECDHE-RSA-AES128-GCM-SHA256")
    ECDSA = Profile(maxProtocol=TLS_1_2, cipherList="ECDHE-ECDSA-AES128-GCM-SHA256")

    def test_wildcardForKind(self) -> None:
        """The exact name comes first; for a kind of key that it lacks, a wildcard will do."""
        exact = testCA().issue(["a.w.example"])
        wild = testCA().issue(["*.w.example"], key="rsa")
        server = serving(testCA().issue(["first.example"]), exact, wild)
        for profile, expected in ((self.ECDSA, exact), (self.RSA, wild)):
            pair = self.pair(trusting(testCA()), server, "a.w.example", clientProfile=profile)
            self.assertEqual(pair.errors, {"client": None, "server": None})
            self.assertEqual(pair.client.get_peer_certificate(as_cryptography=True), expected.certificate)

    def test_exactBeforeWildcard(self) -> None:
        """Of one kind of key, the exact name, whichever was set first."""
        exact, wild = testCA().issue(["a.w.example"]), testCA().issue(["*.w.example"])
        for order in ((exact, wild), (wild, exact)):
            pair = self.pair(trusting(testCA()), serving(*order), "a.w.example")
            self.assertEqual(pair.client.get_peer_certificate(as_cryptography=True), exact.certificate)

    def test_chainAsSet(self) -> None:
        """A chain is sent as it was set, also where the sender trusts the certificates that are missing in it."""
        credential = testCA().intermediate().issue(["server.example"], withoutChain=True)
        settings = (
            (Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem),
            (Option.TLS_REQUEST_PEER_AUTH, struct.pack("=i", 1)),
        )
        pair = self.pair(trusting(testCA()), serving(testCA().issue(), settings=settings))
        self.assertEqual(len(pair.client.get_peer_cert_chain(as_cryptography=True) or ()), 1)
        self.assertRefused(self.pair(trusting(testCA()), serving(credential, settings=settings)), Cause.UNTRUSTED)


class ConnectionInfoTests(PairCase):
    """What programs may ask, and get through L{SocketOptions.get}."""

    def test_client(self) -> None:
        """Everything about a TLS 1.3 connection."""
        middle = testCA().intermediate()
        credential = middle.issue(["server.example"], subject="Server, Inc.")
        client = trusting(testCA(), (Option.TLS_ALPN, b"h2"))
        pair = self.pair(client, serving(credential, settings=((Option.TLS_ALPN, b"h2"),)))
        ours, theirs = ConnectionInfo(pair.client, False), ConnectionInfo(pair.server, True)

        def get(option: Option) -> bytes:
            return client.get(option, Phase.CONNECTED, ours)

        self.assertEqual(get(Option.TLS_PEER_IDENTITY), b"CN=Server\\, Inc.\0")
        self.assertEqual(get(Option.TLS_PEER_CERTIFICATE_CHAIN), credential.chainPEM + b"\0")
        self.assertEqual(get(Option.TLS_CHOSEN_CIPHER), b"TLS_AES_128_GCM_SHA256\0")
        self.assertEqual(get(Option.TLS_VERSION_CONN), struct.pack("=i", 0x0304))
        self.assertEqual(get(Option.TLS_ALPN), b"h2\0")
        self.assertEqual(get(Option.TLS_DATA_PATH), b"relay\0")
        self.assertEqual(len(get(Option.TLS_CHANNEL_BINDING)), 32)
        self.assertEqual(ours.channelBinding(), theirs.channelBinding())
        self.assertIn(b"25519", get(Option.TLS_KEY_EXCHANGE))
        self.assertEqual(theirs.serverName(), "server.example")
        with self.assertRaises(SSAError) as caught:
            theirs.peerIdentity()
        self.assertEqual(caught.exception.errno, errno.ENODATA)
        with self.assertRaises(SSAError) as caught:
            theirs.peerChainPEM()
        self.assertEqual(caught.exception.errno, errno.ENODATA)

    def test_tls12(self) -> None:
        """TLS 1.2 gives the IANA name of the cipher, and no channel binding."""
        profile = Profile(maxProtocol=TLS_1_2)
        pair = self.pair(trusting(testCA()), serving(testCA().issue()), clientProfile=profile)
        info = ConnectionInfo(pair.client, False)
        self.assertEqual(info.cipher(), "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
        self.assertEqual(info.version(), TLS_1_2)
        with self.assertRaises(SSAError) as caught:
            info.channelBinding()
        self.assertEqual(caught.exception.errno, errno.ENODATA)

    def test_afterClose(self) -> None:
        """The information outlives the socket."""
        pair = self.pair(trusting(testCA()), serving(testCA().issue()))
        info = ConnectionInfo(pair.client, False)
        pair.close()
        self.assertEqual(info.peerIdentity(), "CN=server.example")

    def test_noRenegotiation(self) -> None:
        """A TLS 1.2 client that starts another handshake is refused."""
        profile = Profile(maxProtocol=TLS_1_2)
        pair = self.pair(trusting(testCA()), serving(testCA().issue()), clientProfile=profile)
        self.assertRaises(SSL.Error, pair.client.renegotiate)


VECTORS = os.path.join(os.path.dirname(__file__), "..", "..", "..", "shared", "vectors", "bettertls.json.xz")


class BetterTLSTests(SynchronousTestCase):
    """The chains of Netflix's bettertls: none that must be rejected is accepted."""

    def test_rejects(self) -> None:
        """A sample of each suite; every path-building case."""
        if not os.path.exists(VECTORS):
            raise SkipTest("the bettertls vectors are not on this machine")
        with lzma.open(VECTORS) as file:
            data = json.load(file)
        root = x509.load_der_x509_certificate(base64.b64decode(data["trustRoot"]))
        client = optionsWith((Option.TLS_TRUSTED_PEER_CERTIFICATES, root.public_bytes(Encoding.PEM)))
        accepted = rejected = 0
        for name, suite in data["suites"].items():
            cases = suite["testCases"]
            for case in cases if len(cases) < 500 else cases[::11]:
                verdict = self.verdict(client, case)
                if case["expected"] == "REJECT" and not case.get("failureIsWarning"):
                    self.assertFalse(verdict, f"{name} case {case['id']} was accepted")
                    rejected += 1
                elif case["expected"] == "ACCEPT" and verdict:
                    accepted += 1
        # Without any of these the test would prove nothing.
        self.assertGreater(rejected, 500)
        self.assertGreater(accepted, 20)

    def verdict(self, client: SocketOptions, case: dict[str, Any]) -> bool:
        chain = [x509.load_der_x509_certificate(base64.b64decode(c)) for c in case["certificates"]]
        key = load_der_private_key(base64.b64decode(case["leafKey"]), None)
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.use_certificate(chain[0])
        for certificate in chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)  # type: ignore[arg-type]
        pair = Pair(client, context, case["hostname"])
        try:
            pair.shakeHands()
            return pair.errors["client"] is None and peerCheckOf(pair.client).proved
        finally:
            pair.close()
