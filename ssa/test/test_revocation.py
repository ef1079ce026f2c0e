# SPDX-License-Identifier: MIT
"""The check of a chain: the sources and what follows from them; over real HTTP."""

from __future__ import annotations

import errno
import os
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import SkipTest

from ssa.errors import SSAError
from ssa.revocation.cache import Cache, Directory, Entry, Key
from ssa.revocation.check import MOST_URLS, Revocation, Rules
from ssa.revocation.fetch import Reach
from ssa.revocation.verdict import SOURCES, Subject
from ssa.test.fetching import FetchCase
from ssa.test.pki import CA, Credential, otherCA, testCA
from ssa.test.responders import (
    DAY,
    HOUR,
    delegate,
    enormous,
    ocspAnswer,
    opensslResponder,
    points,
    redirect,
    revocationList,
    slow,
)

reactor: Any = _reactor
REVOKED, UNKNOWN = ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN


class RevocationCase(FetchCase):
    """A web server, and a check that remembers nothing."""

    def setUp(self) -> None:
        super().setUp()
        self.now = time.time
        self.path = os.path.abspath(self.mktemp())
        self.revocation = self.restarted(keeps=False)

    def restarted(self, keeps: bool = True) -> Revocation:
        """As after a start of the daemon."""
        self.fetcher = self.newFetcher()
        directory = Directory(self.path) if keeps else None
        self.revocation = Revocation(reactor, reactor, self.pool, self.fetcher, directory, Cache())
        return self.revocation

    def issue(self, ca: CA | None = None, **more: Any) -> Credential:
        """A certificate that names C{/ocsp} and C{/crl}."""
        return (ca or testCA()).issue(extensions=points(self.web.url("/ocsp"), self.web.url("/crl"), **more))

    async def written(self, number: int) -> None:
        """Wait until so many files are there."""
        for _ in range(500):
            if os.path.isdir(self.path) and sum(not name.endswith(".new") for name in os.listdir(self.path)) == number:
                return
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.01, waiting.callback, None)
            await waiting
        self.fail("the answers were not written")

    def kept(self, credential: Credential) -> bytes:
        """The OCSP answer in the cache."""
        issuerID = Subject(credential.certificate, testCA().certificate).issuerID
        entry = self.revocation.cache.get(Key("ocsp", issuerID, format(credential.certificate.serial_number, "x")))
        return entry.data if entry is not None else b""

    async def check(
        self,
        credential: Credential,
        *sources: str,
        stapled: bytes = b"",
        required: bool = True,
        seconds: float = 5,
        **more: Any,
    ) -> str:
        """
        Check a chain.

        @return: "" if it is good, else the text.
        """
        chain = (*credential.chain, testCA().certificate)
        rules = Rules(required, frozenset(sources or SOURCES), seconds, **more)
        try:
            await self.revocation.check(chain, stapled, rules)
        except SSAError as error:
            self.assertEqual(errno.EKEYREVOKED, error.errno)
            return error.reason
        return ""

    def assertUnknown(self, text: str, *words: str) -> None:
        self.assertTrue(text.startswith("no definite answer"), text)
        for word in words:
            self.assertIn(word, text)

    def assertRevoked(self, text: str, *words: str) -> None:
        self.assertTrue(text.startswith("a certificate of the peer is revoked"), text)
        for word in words:
            self.assertIn(word, text)


class SourceTests(RevocationCase):
    """Each source, good and bad."""

    async def test_ocsp(self) -> None:
        """A responder's answer."""
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        self.assertEqual("", await self.check(own, "ocsp"))
        self.assertEqual([("GET", "/ocsp")], self.web.asked)
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate, REVOKED))
        self.assertRevoked(await self.check(own, "ocsp"), "keyCompromise", "OCSP", "CN=server.example")

    async def test_crl(self) -> None:
        """A list."""
        own = self.issue()
        self.web.put("/crl", revocationList(testCA()))
        self.assertEqual("", await self.check(own, "crl"))
        self.web.put("/crl", revocationList(testCA(), [own.certificate.serial_number]))
        self.assertRevoked(await self.check(own, "crl"), "superseded", "CRL")
        self.assertEqual([("GET", "/crl")] * 2, self.web.asked)

    async def test_largeList(self) -> None:
        """A list that is read in a thread; the reactor goes on meanwhile."""
        own = self.issue()
        data = revocationList(testCA(), [*range(1, 30000), own.certificate.serial_number])
        self.assertGreater(len(data), 1 << 20)
        self.web.put("/crl", data)
        self.assertRevoked(await self.check(own, "crl"), "superseded")
        self.assertRevoked(await self.check(own, "cached"), "cached answer (CRL)")

    async def test_post(self) -> None:
        """A responder that knows POST only."""
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate)
        self.web.put("/ocsp", lambda request: request.send(200 if request.body else 405, answer if request.body else b""))
        self.assertEqual("", await self.check(own, "ocsp"))
        self.assertEqual([("GET", "/ocsp"), ("POST", "/ocsp")], self.web.asked)

    async def test_openssl(self) -> None:
        """OpenSSL's responder, with a delegated signer: good, revoked, unknown; and nobody there any more."""
        if shutil.which("openssl") is None:
            raise SkipTest("there is no openssl")
        directory = Path(self.mktemp())
        directory.mkdir()
        # The responder has to know the certificates when it starts, and they have to name it: by way of the web server.
        issued = [testCA().issue([name], extensions=points(self.web.url("/ocsp"))) for name in ("good", "revoked", "unknown")]
        good, bad, unknown = (each.certificate for each in issued)
        with opensslResponder(directory, testCA(), [good], [bad]) as url:


            def relay(request: Any) -> None:
                """Pass on what the fetcher sends."""
                path = request.path.partition("/ocsp")[2].lstrip("/")
                kind = {"Content-Type": "application/ocsp-request"}
                asked = urllib.request.Request(url + path, request.body or None, kind)
                with urllib.request.urlopen(asked, timeout=5) as reply:
                    request.send(200, reply.read())

            self.web.put("/ocsp", relay)
            self.assertEqual("", await self.check(issued[0], "ocsp"))
            self.assertRevoked(await self.check(issued[1], "ocsp"), "keyCompromise")
            self.assertUnknown(await self.check(issued[2], "ocsp"), "does not know the certificate")
        self.assertUnknown(await self.check(issued[2], "ocsp"), "OCSP http://127.0.0.1")
        self.assertEqual(unknown.issuer, good.issuer)

    async def test_badAnswers(self) -> None:
        """Unknown, expired, by somebody else, about another certificate, none at all: no definite answer, and it says why."""
        own = self.issue()
        stranger = delegate(otherCA())
        for word, data in (
            ("does not know", ocspAnswer(testCA(), own.certificate, UNKNOWN)),
            ("expired", ocspAnswer(testCA(), own.certificate, begin=-3 * DAY, end=-DAY)),
            ("not issued by", ocspAnswer(testCA(), own.certificate, signer=stranger, include=[stranger[0]])),
            ("another certificate", ocspAnswer(testCA(), testCA().issue().certificate)),
            ("malformed", b"<html>"),
        ):
            self.web.put("/ocsp", data)
            self.assertUnknown(await self.check(own, "ocsp"), word)
        self.web.put("/ocsp", enormous)
        self.assertUnknown(await self.check(own, "ocsp"), "more than 131072 bytes")
        self.assertEqual({"GET"}, {method for method, _ in self.web.asked})
        self.web.put("/ocsp", redirect("/ocsp"))
        self.assertUnknown(await self.check(own, "ocsp"), "more than 3 redirects")
        del self.web.replies["/ocsp"]
        self.assertUnknown(await self.check(own, "ocsp"), "status 404")

    async def test_badLists(self) -> None:
        """The same with lists."""
        own = self.issue()
        for word, data in (
            ("expired", revocationList(testCA(), begin=-3 * DAY, end=-DAY)),
            ("signature is wrong", revocationList(testCA(), key=otherCA().key)),
            ("malformed", b"<html>"),
        ):
            self.web.put("/crl", data)
            self.assertUnknown(await self.check(own, "crl"), word)
        del self.web.replies["/crl"]
        self.assertUnknown(await self.check(own, "crl"), "status 404")

    async def test_nothingNamed(self) -> None:
        """A certificate that names neither."""
        text = await self.check(testCA().issue())
        self.assertUnknown(text, "stapled: nothing", "cached: nothing", "names no responder", "names no list")

    async def test_noSource(self) -> None:
        """An answer is required, and no source counts."""
        chain = (self.issue().certificate, testCA().certificate)
        try:
            await self.revocation.check(chain, b"", Rules(True, frozenset(), 5))
        except SSAError as error:
            self.assertUnknown(error.reason)
        else:
            self.fail("it was good")


class OrderTests(RevocationCase):
    """What is asked when, and what wins."""

    async def test_notRequired(self) -> None:
        """Nothing is asked, and nothing is kept."""
        self.assertEqual("", await self.check(self.issue(), required=False))
        self.assertEqual(([], 0, 0), (self.web.asked, self.fetcher.fetches, len(self.revocation.cache)))

    async def test_together(self) -> None:
        """A responder that says nothing does not hold up the list, and the other way round."""
        own = self.issue()
        self.web.put("/ocsp", slow)
        self.web.put("/crl", revocationList(testCA()))
        begun = time.monotonic()
        self.assertEqual("", await self.check(own))
        self.restarted()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        self.web.put("/crl", slow)
        self.assertEqual("", await self.check(own))
        self.assertLess(time.monotonic() - begun, 4)

    async def test_otherSourceKnows(self) -> None:
        """One source fails, the other decides."""
        own = self.issue()
        self.web.put("/crl", revocationList(testCA(), [own.certificate.serial_number]))
        self.assertRevoked(await self.check(own), "CRL")
        self.restarted()
        self.web.put("/crl", b"x")
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate, REVOKED))
        self.assertRevoked(await self.check(own), "OCSP")

    async def test_time(self) -> None:
        """All are silent: the time ends it, and the text tells of each."""
        own = self.issue()
        self.web.put("/ocsp", slow)
        self.web.put("/crl", slow)
        begun = time.monotonic()
        text = await self.check(own, seconds=0.4)
        self.assertLess(time.monotonic() - begun, 3)
        self.assertUnknown(text, "stapled: nothing", "cached: nothing", "/ocsp: no answer yet", "/crl: no answer yet", "0.4 s")

    async def test_cancelled(self) -> None:
        """The connection is given up: nothing goes on."""
        own = self.issue()
        self.web.put("/ocsp", slow)
        pending = Deferred.fromCoroutine(self.check(own, "ocsp"))
        while not self.web.asked:
            await self.after(0.01)
        pending.cancel()
        try:
            await pending
        except CancelledError:
            pass
        else:
            self.fail("it went on")
        self.assertEqual((0, 0), (len(self.revocation._answers), len(self.revocation._lists)))

    async def test_once(self) -> None:
        """Many connections at one time ask once."""
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate)

        def late(request: Any) -> None:
            request.server.ended.wait(0.3)
            request.send(200, answer)

        self.web.put("/ocsp", late)
        every = [Deferred.fromCoroutine(self.check(own, "ocsp")) for _ in range(20)]
        self.assertEqual([""] * 20, await gatherResults(every))
        self.assertEqual(1, self.web.count("/ocsp"))

    async def test_intermediates(self) -> None:
        """Each certificate but the root needs an answer."""
        middle = testCA().intermediate(extensions=points("", self.web.url("/root")))
        own = self.issue(middle)
        self.web.put("/ocsp", ocspAnswer(middle, own.certificate))
        self.assertUnknown(await self.check(own), "/root: the server answers with status 404", "CN=SSA test intermediate")
        self.web.put("/root", revocationList(testCA()))
        self.assertEqual("", await self.check(own))
        self.restarted()
        self.web.put("/root", revocationList(testCA(), [middle.certificate.serial_number]))
        self.assertRevoked(await self.check(own), "subject CN=SSA test intermediate")

    async def test_mostURLs(self) -> None:
        """A certificate that names many sources: three of each kind are asked, and no more."""
        self.assertEqual(3, MOST_URLS)
        urls = [self.web.url(f"/{number}") for number in range(10)]
        self.assertUnknown(await self.check(testCA().issue(extensions=points("", *urls))), "/0: ", "/2: ")
        self.assertEqual([("GET", f"/{number}") for number in range(3)], self.web.asked)
        self.web.asked.clear()
        places = map(x509.UniformResourceIdentifier, urls)
        access = [x509.AccessDescription(AuthorityInformationAccessOID.OCSP, place) for place in places]
        await self.check(testCA().issue(extensions=[x509.AuthorityInformationAccess(access)]))
        self.assertEqual({f"/{number}" for number in range(3)}, {path for _, path in self.web.asked})

    async def test_othersEnd(self) -> None:
        """One certificate of a chain is revoked: what is still asked about the others ends."""
        middle = testCA().intermediate(extensions=points("", self.web.url("/root")))
        own = self.issue(middle)
        self.web.put("/ocsp", slow)
        self.web.put("/crl", slow)
        self.web.put("/root", revocationList(testCA(), [middle.certificate.serial_number]))
        self.assertRevoked(await self.check(own), "subject CN=SSA test intermediate")
        self.assertEqual((0, 0), (len(self.revocation._answers), len(self.revocation._lists)))

    async def test_publicOnly(self) -> None:
        """A program's own authority asks nobody on this machine."""
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        self.assertUnknown(await self.check(own, reach=Reach.PUBLIC), "port")
        self.assertEqual([], self.web.asked)

    def after(self, seconds: float) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        reactor.callLater(seconds, waiting.callback, None)
        return waiting


class MalformedTests(RevocationCase):
    """Certificates that the library does not read."""

    async def test_names(self) -> None:
        """A name of a kind that it does not know, as a client may send it: refused, with a text."""
        names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("300ba509a1070c056170617274"))
        text = await self.check(testCA().issue(noNames=True, extensions=[names]))
        self.assertUnknown(text, "the certificate's extensions are malformed", "CN=server.example", "(RevocationChecks)")


class RuleTests(RevocationCase):
    """Each refusal names the rule behind it, where it stands."""

    RULE = "RevocationChecks at /etc/ssa.conf:3 [default]"

    async def test_revoked(self) -> None:
        """By a responder, a list, and the cache."""
        for source in ("ocsp", "crl"):
            own = self.issue()
            self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate, REVOKED))
            self.web.put("/crl", revocationList(testCA(), [own.certificate.serial_number]))
            for asked in (source, "cached"):
                text = await self.check(own, asked, rule=self.RULE)
                self.assertRevoked(text, f"({self.RULE}) [subject CN=server.example")

    async def test_stapled(self) -> None:
        """A stapled answer counts always; it says so."""
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate, REVOKED)
        always = "(always in force: a stapled answer that says revoked counts) [subject CN=server.example"
        for required in (False, True):
            self.assertRevoked(await self.check(own, stapled=answer, required=required, rule=self.RULE), always)

    async def test_unknown(self) -> None:
        """No answer, and an answer that the certificate itself demands."""
        self.assertUnknown(await self.check(testCA().issue(), rule=self.RULE), self.RULE, "[subject CN=server.example")
        text = await self.check(self.issue(mustStaple=True), required=False, rule=self.RULE)
        self.assertUnknown(text, "RFC 7633", "[subject CN=server.example")


class StapledTests(RevocationCase):
    """What the server has stapled."""

    async def test_good(self) -> None:
        """It settles the matter, where it counts, and is kept for a resumed session."""
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate)
        self.assertEqual("", await self.check(own, stapled=answer))
        self.assertEqual("", await self.check(own, "cached", couldStaple=False))
        self.restarted()
        self.assertUnknown(await self.check(own, "ocsp", stapled=answer), "404")

    async def test_olderThanCached(self) -> None:
        """
        Who has stolen a key staples the last answer that said good: it counts less than a later "revoked" that is kept, and
        does not push it out, on disk neither.  A later one counts more.
        """
        own = self.issue()
        old, new = (ocspAnswer(testCA(), own.certificate, begin=begin * HOUR) for begin in (-3, -1))
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate, REVOKED, begin=-2 * HOUR))
        for restarts in (False, True):
            self.restarted()
            self.assertRevoked(await self.check(own, "ocsp"), "OCSP")
            await self.written(1)
            for _ in range(2):
                if restarts:
                    self.restarted()
                self.assertRevoked(await self.check(own, stapled=old), "the cached answer (OCSP)")
            self.assertRevoked(await self.check(own, "cached", couldStaple=False), "the cached answer (OCSP)")
            # Where the cache does not count, or none is required, the server alone is asked.
            self.assertEqual("", await self.check(own, "stapled", stapled=old))
            self.assertEqual("", await self.check(own, stapled=old, required=False))
            self.assertRevoked(await self.check(own, stapled=old), "the cached answer (OCSP)")
        self.assertEqual("", await self.check(own, stapled=new))
        self.assertEqual("", await self.check(own, "cached", couldStaple=False))
        self.assertEqual("", await self.check(own, stapled=old))
        self.assertEqual(new, self.kept(own))

    async def test_cachedList(self) -> None:
        """A list that is kept and says revoked counts, whatever is stapled."""
        own = self.issue()
        self.web.put("/crl", revocationList(testCA(), [own.certificate.serial_number], begin=-2 * HOUR))
        self.assertRevoked(await self.check(own, "crl"))
        for begin in (-3, -1):
            stapled = ocspAnswer(testCA(), own.certificate, begin=begin * HOUR)
            self.assertRevoked(await self.check(own, stapled=stapled), "the cached answer (CRL)")

    async def test_revoked(self) -> None:
        """It counts even where nothing is required, or the source does not count."""
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate, REVOKED)
        for required in (False, True):
            self.assertRevoked(await self.check(own, "crl", stapled=answer, required=required), "stapled")
        self.assertEqual([], self.web.asked)

    async def test_bad(self) -> None:
        """One that does not count is no answer; where none is required it is ignored."""
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate, begin=-3 * DAY, end=-DAY)
        self.assertUnknown(await self.check(own, "stapled", stapled=answer), "stapled: it has expired")
        self.assertEqual("", await self.check(own, stapled=answer, required=False))

    async def test_trustedItself(self) -> None:
        """
        A program that trusts the server's own certificate does not escape the checks: nobody is left who could tell.  A
        self-signed one nobody else could revoke.
        """
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        for stapled in (b"", ocspAnswer(testCA(), own.certificate), ocspAnswer(testCA(), own.certificate, REVOKED)):
            text = await self.checkAlone(own, stapled)
            self.assertUnknown(text, "RevocationChecks asks", "it is trusted itself", "CN=server.example")
        self.assertEqual("", await self.checkAlone(own, required=False))
        self.assertEqual("", await self.checkAlone(testCA().issue(selfSigned=True)))
        namesake = testCA().issue(subject="SSA test root")
        self.assertEqual(namesake.certificate.subject, namesake.certificate.issuer)
        self.assertUnknown(await self.checkAlone(namesake), "it is trusted itself")

    async def checkAlone(self, credential: Credential, stapled: bytes = b"", required: bool = True) -> str:
        """Check a chain of one certificate."""
        try:
            await self.revocation.check((credential.certificate,), stapled, Rules(required, frozenset(SOURCES), 5))
        except SSAError as error:
            return error.reason
        return ""

    async def test_mustStaple(self) -> None:
        """A certificate that demands an answer is refused without a good one, whatever is required."""
        own = self.issue(mustStaple=True)
        good = ocspAnswer(testCA(), own.certificate)
        old = ocspAnswer(testCA(), own.certificate, begin=-3 * DAY, end=-DAY)
        self.web.put("/ocsp", good)
        for required in (False, True):
            self.assertEqual("", await self.check(own, stapled=good, required=required))
            self.assertUnknown(await self.check(own, required=required), "RFC 7633", "stapled: nothing")
            self.assertUnknown(await self.check(own, stapled=old, required=required), "RFC 7633", "expired")
            self.assertEqual("", await self.check(own, required=required, couldStaple=False))

    async def test_mustStapleAlone(self) -> None:
        """Nobody vouches for a certificate that is itself the trusted one."""
        own = self.issue(mustStaple=True)
        try:
            await self.revocation.check((own.certificate,), b"", Rules(False, frozenset(), 5))
        except SSAError as error:
            self.assertUnknown(error.reason, "RFC 7633")
        else:
            self.fail("it was good")


class CachedTests(RevocationCase):
    """What is kept."""

    async def test_olderAnswer(self) -> None:
        """
        An answer never replaces a later one, nor "revoked" at the same time: plain HTTP brings what whoever is in between has
        kept.
        """
        own = self.issue()
        self.restarted()
        good, revoked = (
            [ocspAnswer(testCA(), own.certificate, status, begin=begin * HOUR) for begin in (-3, -2, -1)]
            for status in (ocsp.OCSPCertStatus.GOOD, REVOKED)
        )
        for data, expected in (
            (good[0], good[0]),
            (good[1], good[1]),
            (good[0], good[1]),
            (revoked[0], good[1]),
            (revoked[1], revoked[1]),
            (good[1], revoked[1]),
            (good[0], revoked[1]),
            (good[2], good[2]),
        ):
            self.web.put("/ocsp", data)
            await self.check(own, "ocsp")
            self.assertEqual(expected, self.kept(own))
        self.revocation.cache = Cache()
        self.web.put("/ocsp", good[1])
        await self.check(own, "ocsp")
        self.assertEqual(good[2], self.kept(own))

    async def test_olderList(self) -> None:
        """The same with lists; another one whose signature is good, but which is not about the certificate, is replaced."""
        own = self.issue()
        self.restarted()
        old, new = (revocationList(testCA(), serials, begin=begin * HOUR)
                    for serials, begin in (([], -3), ([own.certificate.serial_number], -2)))
        for data in (new, old):
            self.web.put("/crl", data)
            await self.check(own, "crl")
            self.assertRevoked(await self.check(own, "cached"), "the cached answer (CRL)")
        await self.written(1)
        self.restarted()
        self.assertEqual("", await self.check(own, "crl"))
        self.assertRevoked(await self.check(own, "cached"), "the cached answer (CRL)")
        bad = revocationList(testCA(), extensions=[(x509.DeltaCRLIndicator(1), True)])
        key = Key("crl", Subject(own.certificate, testCA().certificate).issuerID, self.web.url("/crl"))
        self.revocation.cache.put(key, Entry(bad, time.time() + 3600))
        self.assertUnknown(await self.check(own, "cached"), "delta")
        self.assertEqual("", await self.check(own, "crl"))
        self.assertEqual("", await self.check(own, "cached"))

    async def test_ownersApart(self) -> None:
        """Nobody waits in another user's queue: only questions of one user are joined."""
        own = self.issue()
        answer = ocspAnswer(testCA(), own.certificate)

        def late(request: Any) -> None:
            request.server.ended.wait(0.3)
            request.send(200, answer)

        self.web.put("/ocsp", late)
        every = [Deferred.fromCoroutine(self.check(own, "ocsp", owner=number % 2)) for number in range(10)]
        self.assertEqual([""] * 10, await gatherResults(every))
        self.assertEqual(2, self.web.count("/ocsp"))

    async def test_restart(self) -> None:
        """Answers and lists outlive a restart, and nobody is asked again."""
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        self.web.put("/crl", revocationList(testCA()))
        self.restarted()
        self.assertEqual("", await self.check(own, "ocsp"))
        self.assertEqual("", await self.check(own, "crl"))
        await self.written(2)
        self.web.replies.clear()
        self.web.asked.clear()
        self.assertEqual("", await self.check(own, "cached"))
        self.restarted()
        self.assertEqual("", await self.check(own))
        self.assertEqual([], self.web.asked)
        for name in os.listdir(self.path):
            if name.endswith(".ocsp"):
                os.unlink(os.path.join(self.path, name))
        self.restarted()
        self.assertEqual("", await self.check(own))
        self.assertEqual([], self.web.asked)

    async def test_forged(self) -> None:
        """What a file says is verified as if it had just come."""
        own = self.issue()
        self.restarted()
        forger = CA("SSA test root")
        subject = Subject(own.certificate, testCA().certificate)
        key = Key("ocsp", subject.issuerID, format(own.certificate.serial_number, "x"))
        forged = ocspAnswer(forger, own.certificate, issuer=testCA().certificate, byName=True)
        Directory(self.path).write(key, forged, time.time() + 3600)
        self.assertUnknown(await self.check(own, "cached"), "cached: its signature is wrong")

    async def test_notCounted(self) -> None:
        """Where the cache does not count, the responder is asked each time."""
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate))
        for number in (1, 2):
            self.assertEqual("", await self.check(own, "ocsp"))
            self.assertEqual(number, self.web.count("/ocsp"))

    async def test_expired(self) -> None:
        """What is kept does not outlive the answer."""
        own = self.issue()
        self.web.put("/ocsp", ocspAnswer(testCA(), own.certificate, begin=-2 * HOUR, end=HOUR / 3600))
        self.assertEqual("", await self.check(own, "ocsp"))
        waiting: Deferred[None] = Deferred()
        reactor.callLater(1.2, waiting.callback, None)
        await waiting
        self.assertUnknown(await self.check(own, "cached"), "cached: nothing")
