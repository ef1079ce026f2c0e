# SPDX-License-Identifier: MIT
"""Which rules hold for whom: clients and servers, whole handshakes and resumed ones."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from OpenSSL import crypto
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ssa.errors import Cause, SSAError
from ssa.options import SocketOptions
from ssa.policy.profile import Profile
from ssa.revocation import peer
from ssa.revocation.check import Rules
from ssa.revocation.fetch import Reach
from ssa.revocation.peer import PeerJudge
from ssa.test.ctlogs import TestLog, logListBytes
from ssa.test.pki import otherCA, testCA
from ssa.test.responders import ocspAnswer, points
from ssa.tls.connection import PeerCheck


class _Revocation:
    """Remembers what it was asked, and answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[x509.Certificate], bytes, Rules]] = []
        self.error: SSAError | None = None

    async def check(self, chain: Sequence[x509.Certificate], stapled: bytes, rules: Rules) -> None:
        self.asked.append((chain, stapled, rules))
        if self.error is not None:
            raise self.error


class _Check(PeerCheck):
    """Knows a chain."""

    chain: tuple[x509.Certificate, ...] = ()

    def verifiedChain(self, connection: object) -> tuple[x509.Certificate, ...]:
        """The chain."""
        return self.chain


class _Connection:
    """What the judge asks a connection."""

    def __init__(self, chain: Sequence[x509.Certificate], resumed: bool) -> None:
        self.chain = chain
        self.check = _Check(None, False)
        self.check.chain = tuple(chain)
        self.check.resumed = resumed
        self.check.stapled = b"stapled"

    def get_app_data(self) -> PeerCheck:
        return self.check

    def get_peer_certificate(self, as_cryptography: bool = False) -> x509.Certificate | crypto.X509 | None:
        if not self.chain:
            return None
        return self.chain[0] if as_cryptography else crypto.X509.from_cryptography(self.chain[0])


class JudgeTests(SynchronousTestCase):
    """L{PeerJudge}."""

    def setUp(self) -> None:
        self.revocation = _Revocation()
        self.chain = (testCA().issue(purpose="both").certificate, testCA().certificate)
        self.options = SocketOptions(1)
        self.left = 30.0

    def judge(
        self, profile: Profile, isServer: bool, resumed: bool = False, chain: Sequence[x509.Certificate] | None = None
    ) -> Deferred[None]:
        connection: Any = _Connection(self.chain if chain is None else chain, resumed)
        return Deferred.fromCoroutine(self.newJudge(profile, isServer).judge(connection, self.left))

    def newJudge(self, profile: Profile, isServer: bool) -> PeerJudge:
        revocation: Any = self.revocation
        return PeerJudge(revocation, profile, self.options, isServer)

    def rules(self, profile: Profile, isServer: bool, resumed: bool = False) -> Rules:
        self.successResultOf(self.judge(profile, isServer, resumed))
        chain, stapled, rules = self.revocation.asked.pop()
        self.assertEqual((self.chain, b"stapled"), (chain, stapled))
        return rules

    def refused(self, judged: Deferred[None]) -> str:
        error = self.failureResultOf(judged, SSAError).value
        assert isinstance(error, SSAError)
        self.assertEqual(errno.EKEYREVOKED, error.errno)
        return error.reason

    def test_rules(self) -> None:
        """The profile's; only a client's whole handshake can have a stapled answer."""
        profile = Profile(revocationChecks=True, revocationSources=frozenset(("crl",)), revocationTimeout=7)
        for isServer, resumed in ((False, False), (False, True), (True, False)):
            rule = profile.rule("RevocationChecks")
            expected = Rules(True, frozenset(("crl",)), 7, Reach.ANY, not isServer and not resumed, rule)
            self.assertEqual(expected, self.rules(profile, isServer, resumed))
        self.assertFalse(self.rules(Profile(), False).required)

    def test_time(self) -> None:
        """Not longer than what is left for the handshake."""
        for self.left, expected in ((3, 3), (-1, 0)):
            self.assertEqual(expected, self.rules(Profile(revocationTimeout=7), False).timeout)

    def test_reach(self) -> None:
        """A program that brought its own authorities."""
        self.options.trusted = testCA().pem
        self.assertIs(Reach.PUBLIC, self.rules(Profile(), False).reach)

    def test_owner(self) -> None:
        """What is asked counts for the user whose socket it is."""
        self.options.owner = 1000
        for isServer in (False, True):
            self.assertEqual(1000, self.rules(Profile(revocationChecks=True), isServer).owner)

    def test_refused(self) -> None:
        """What the check says reaches the caller."""
        self.revocation.error = Cause.REVOKED.error("x")
        self.assertIn("revoked", self.refused(self.judge(Profile(), False)))
        self.assertIn("revoked", self.refused(self.judge(Profile(revocationChecks=True), True)))

    def test_nothingToJudge(self) -> None:
        """Nothing is required, nothing stapled, nothing demanded: nobody is asked."""
        demanding = (testCA().issue(extensions=points(mustStaple=True)).certificate, testCA().certificate)
        for chain, isServer, resumed, stapled, expected in (
            (self.chain, False, False, b"", 0),
            (self.chain, False, True, b"", 0),
            (self.chain, True, False, b"", 0),
            (self.chain, False, False, b"x", 1),
            (demanding, False, False, b"", 1),
            (demanding, False, True, b"", 0),
            (demanding, True, False, b"", 0),
        ):
            connection: Any = _Connection(chain, resumed)
            connection.check.stapled = stapled
            judge = self.newJudge(Profile(), isServer)
            self.successResultOf(Deferred.fromCoroutine(judge.judge(connection, 1)))
            self.assertEqual(expected, len(self.revocation.asked), (isServer, resumed, stapled))
            self.revocation.asked.clear()

    def test_noCertificate(self) -> None:
        """A client without certificate is no matter of revocation; a server without chain must not happen."""
        profile = Profile(revocationChecks=True)
        self.successResultOf(self.judge(profile, True, chain=()))
        self.assertIn("chain is not known", self.refused(self.judge(profile, False, chain=())))
        self.successResultOf(self.judge(Profile(), False, chain=()))
        self.assertEqual([], self.revocation.asked)

    def test_resumedClient(self) -> None:
        """The chain of a client's resumed session is the verified one; if it is not known, and must be: refused."""
        origins = {"RevocationChecks": "/etc/ssa.conf:3 [default]"}
        profile = Profile(revocationChecks=True)
        self.successResultOf(self.judge(profile, True, resumed=True))
        self.assertEqual([self.chain], [chain for chain, _, _ in self.revocation.asked])
        connection: Any = _Connection(self.chain, True)
        connection.check.chain = ()
        for isRequired in (True, False):
            profile = Profile(revocationChecks=isRequired, origins=origins)
            judged = Deferred.fromCoroutine(self.newJudge(profile, True).judge(connection, self.left))
            if isRequired:
                reason = self.refused(judged)
                self.assertIn("chain is not known", reason)
                self.assertIn("(RevocationChecks at /etc/ssa.conf:3 [default]) [subject CN=server.example", reason)
            else:
                self.successResultOf(judged)
        self.assertEqual(1, len(self.revocation.asked))

    def test_transparencyOfAnswers(self) -> None:
        """Timestamps in a stapled answer count only if it is the issuer's about this certificate."""
        got: list[bytes] = []
        self.patch(peer, "checkTransparency", lambda chain, stapled, *rest: got.append(stapled))
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(logListBytes(TestLog("one", "some operator")))
        good = ocspAnswer(testCA(), self.chain[0])
        for answer in (good, ocspAnswer(otherCA(), self.chain[0]), ocspAnswer(testCA(), testCA().issue().certificate), b"x"):
            connection: Any = _Connection(self.chain, False)
            connection.check.stapled = answer
            judge = self.newJudge(Profile(certTransparency=True, transparencyLogs=path), False)
            self.successResultOf(Deferred.fromCoroutine(judge.judge(connection, 1)))
        self.assertEqual([good, b"", b"", b""], got)

    def test_transparencyWithoutList(self) -> None:
        """It is on, and there is no list: refused.  Not where it was checked before, nor for clients."""
        profile = Profile(certTransparency=True)
        error = self.failureResultOf(self.judge(profile, False), SSAError).value
        assert isinstance(error, SSAError)
        self.assertEqual(errno.EKEYREJECTED, error.errno)
        self.assertIn("TransparencyLogs names no list", error.reason)
        self.successResultOf(self.judge(profile, False, resumed=True))
        self.successResultOf(self.judge(profile, True))
