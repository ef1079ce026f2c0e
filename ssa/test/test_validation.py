# SPDX-License-Identifier: MIT
"""Tests of L{ssa.validation}, L{ssa.validating} and the plug-ins C{pin} and C{first-use}."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import stat
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL, crypto
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import directlyProvides, implementer

import ssa
from ssa import validation
from ssa.api import InternetAddress, Option
from ssa.engine import TLSFactories
from ssa.errors import Cause, SSAError
from ssa.factories import Secured
from ssa.firstuse import FirstUseStore, FirstUseValidator, Seen, StoreError, StoreIsLocked, Use
from ssa.options import SocketOptions
from ssa.policy.profile import TLS_1_2, TLS_1_3, Profile
from ssa.relay import RelayPool
from ssa.resolve import DaemonThreadPool, Resolver
from ssa.revocation.check import Revocation, Rules
from ssa.revocation.fetch import Fetcher
from ssa.revocation.stapling import Staples
from ssa.test.badservers import echo, running, serverContext
from ssa.test.pki import Credential, testCA, testKey
from ssa.test.test_keylog import Heard
from ssa.test.tlspair import Pair, serving, trusting
from ssa.tls.connection import peerCheckOf, verifyPeer
from ssa.tls.identity import parseIdentity
from ssa.tls.pinning import PinValidator, keyDigest, pinText
from ssa.tls.servercontexts import serverContexts
from ssa.validating import Validating, peerOf
from ssa.validation import IValidator, Peer, validatorNamed, validatorNames

reactor: Any = _reactor

EXAMPLES = Path(ssa.__file__).parent.parent / "examples"


def identity(value: Any) -> Any:
    """The same."""
    return value


def peer(credential: Credential | None = None, **changed: Any) -> Peer:
    """A server."""
    shown = credential or testCA().issue()
    values = {
        "chain": (*shown.chain, testCA().certificate),
        "identity": "server.example",
        "isServer": True,
        "host": "192.0.2.1",
        "port": 443,
    }
    return Peer(**{**values, **changed})


@implementer(IPlugin, IValidator)
class Example:
    """A plug-in whose answer a test chooses."""

    def __init__(self, name: str, answer: Callable[[], Any]) -> None:
        self.name = name
        self._answer = answer

    def validate(self, peer: Peer, profile: Profile, reactor: Any) -> Deferred[None] | None:
        """See L{IValidator}."""
        result: Deferred[None] | None = self._answer()
        return result


class FindTests(SynchronousTestCase):
    """Which plug-ins there are."""

    def setUp(self) -> None:
        self.addCleanup(validation._found.clear)

    def test_shipped(self) -> None:
        """Those that come with the project are found by C{twisted.plugin}, and provide what they should."""
        self.assertLessEqual({"pin", "first-use"}, validatorNames())
        self.assertIsInstance(validatorNamed("pin"), PinValidator)
        self.assertIsInstance(validatorNamed("first-use"), FirstUseValidator)
        self.assertIsNone(validatorNamed("no-such-plugin"))

    def names(self, *plugins: object) -> set[str]:
        self.heard = heard = Heard()
        self.patch(sys.modules["twisted.plugin"], "getPlugins", lambda interface: plugins)
        self.patch(sys.modules["twisted.logger"], "Logger", lambda name: Logger(name, observer=heard))
        return set(validatorNames())

    def test_bad(self) -> None:
        """What is no plug-in, has no proper name, or a name twice, is left out, with a line in the log."""

        class Incomplete:
            """Without its method."""

            name = "incomplete"

        incomplete = Incomplete()
        directlyProvides(incomplete, IValidator)
        good = Example("good", lambda: None)
        again = (Example("twice", lambda: None), Example("twice", lambda: None))
        self.assertEqual(self.names(good, good, incomplete, Example("Bad Name", lambda: None), *again), {"good"})
        self.assertEqual(len(self.heard), 3)
        self.assertIsNone(validatorNamed("twice"))

    def test_example(self) -> None:
        """The example of the documentation is found where it is put, and works."""
        target = self.mktemp()
        os.makedirs(f"{target}/twisted/plugins")
        text = (EXAMPLES / "validation" / "twisted" / "plugins" / "example_keytype.py").read_text(encoding="utf-8")
        (Path(target) / "twisted" / "plugins" / "example_keytype.py").write_text(text, encoding="utf-8")
        import twisted.plugins

        self.patch(twisted.plugins, "__path__", [*twisted.plugins.__path__, f"{os.path.abspath(target)}/twisted/plugins"])
        self.addCleanup(sys.modules.pop, "twisted.plugins.example_keytype", None)
        self.assertIn("key-type", validatorNames())
        plugin = validatorNamed("key-type")
        self.assertIsNone(plugin.validate(peer(testCA().issue(key="ec")), Profile(), None))
        error = self.assertRaises(SSAError, plugin.validate, peer(testCA().issue(key="rsa")), Profile(), None)
        self.assertEqual(error.errno, errno.EKEYREJECTED)


class AskTests(SynchronousTestCase):
    """What becomes of a plug-in's answer."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.heard = Heard()
        self.patch(Validating, "_log", Logger(observer=self.heard))

    def ask(self, *answers: Callable[[], Any], seconds: float = 5.0) -> Deferred[None]:
        names = []
        found = {}
        for number, answer in enumerate(answers):
            names.append(f"plugin-{number}")
            found[names[-1]] = Example(names[-1], answer)
        self.patch(validation, "_found", found)
        profile = Profile(validation=tuple(names))
        return Deferred.fromCoroutine(Validating(self.clock).validate(profile, peer(), seconds))

    def refused(self, done: Deferred[None], number: int, *words: str) -> str:
        error = self.failureResultOf(done, SSAError).value
        self.assertEqual(errno.errorcode[error.errno], errno.errorcode[number], error.reason)
        for word in (*words, "plug-in plugin-0, the built-in default of Validation", "[subject CN=server.example"):
            self.assertIn(word, error.reason)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return str(error.reason)

    def test_good(self) -> None:
        """None, at once or later, of all of them in order."""
        order: list[int] = []
        later: Deferred[None] = Deferred()

        def first() -> Deferred[None]:
            order.append(1)
            return later

        done = self.ask(first, lambda: order.append(2), lambda: succeed(None))
        self.assertNoResult(done)
        self.assertEqual(order, [1])
        later.callback(None)
        self.assertIsNone(self.successResultOf(done))
        self.assertEqual(order, [1, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refuses(self) -> None:
        """Its own words, and an errno that a refusal may have."""

        def refuse() -> None:
            raise SSAError(errno.EKEYREVOKED, "it is bad")

        self.refused(self.ask(refuse), errno.EKEYREVOKED, "it is bad")
        self.refused(self.ask(lambda: fail(SSAError(errno.EPERM, "not here"))), errno.EPERM, "not here")
        self.refused(self.ask(lambda: fail(SSAError(errno.ECONNREFUSED, "odd"))), errno.EKEYREJECTED, "odd")

    def test_firstDecides(self) -> None:
        """The ones behind a refusal are not asked."""
        asked: list[None] = []
        self.refused(self.ask(lambda: fail(SSAError(errno.EPERM, "no")), lambda: asked.append(None)), errno.EPERM)
        self.assertEqual(asked, [])

    def test_exceptions(self) -> None:
        """An exception refuses, and is logged."""

        def raises() -> None:
            raise KeyError("mistake")

        self.refused(self.ask(raises), errno.EKEYREJECTED, "the plug-in has failed (KeyError: 'mistake')")
        self.refused(self.ask(lambda: fail(ValueError("oh"))), errno.EKEYREJECTED, "ValueError: oh")
        self.assertEqual(len(self.heard), 2)

    def test_wrongAnswers(self) -> None:
        """Anything but None refuses, True above all."""
        for answer in (True, False, 0, "", object(), succeed(True)):
            self.refused(self.ask(partial(identity, answer)), errno.EKEYREJECTED, "instead of None")

    def test_late(self) -> None:
        """No answer in time, whatever the plug-in makes of its cancelling."""
        cancelled: list[None] = []

        def giveIn(waiting: Deferred[None]) -> None:
            cancelled.append(None)
            waiting.callback(None)

        every: list[Deferred[None]] = [Deferred(), Deferred(giveIn), Deferred(lambda each: each.errback(ValueError("late")))]
        for waiting in every:
            done = self.ask(partial(identity, waiting))
            self.clock.advance(4.9)
            self.assertNoResult(done)
            self.clock.advance(0.1)
            self.refused(done, errno.ETIMEDOUT, "plugin-0 did not answer in time")
        self.assertEqual(cancelled, [None])
        self.refused(self.ask(lambda: None, seconds=0), errno.ETIMEDOUT)

    def test_timeIsShared(self) -> None:
        """All have the time of one handshake."""
        done = self.ask(lambda: self.clock.advance(6), lambda: None)
        error = self.failureResultOf(done, SSAError).value
        self.assertEqual(error.errno, errno.ETIMEDOUT)

    def test_given(self) -> None:
        """Given up by the program: the plug-in is told, and that is no refusal."""
        stopped: list[None] = []
        done = self.ask(lambda: Deferred(lambda _: stopped.append(None)))
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual((stopped, self.clock.getDelayedCalls()), ([None], []))

    def test_missing(self) -> None:
        """A plug-in that is not installed refuses everybody."""
        profile = Profile(validation=("no-such-plugin",))
        done = Deferred.fromCoroutine(Validating(self.clock).validate(profile, peer(), 5))
        self.assertIn("there is no validation plug-in no-such-plugin", self.failureResultOf(done).value.reason)


class PinTests(SynchronousTestCase):
    """SPKI pinning."""

    def test_digest(self) -> None:
        """RFC 7469 section 2.4: SHA-256 of the SubjectPublicKeyInfo."""
        credential = testCA().issue()
        spki = credential.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.assertEqual(keyDigest(credential.certificate), hashlib.sha256(spki).digest())
        self.assertRegex(pinText(bytes(32)), r"\Asha256/A{43}=\Z")

    def test_anyOfTheChain(self) -> None:
        """The server's own key, an intermediate's or the root's; the key, not the certificate."""
        credential = testCA().intermediate().issue()
        shown = peer(credential)
        for certificate in shown.chain:
            profile = Profile(pinnedKeys=(bytes(32), keyDigest(certificate)))
            self.assertIsNone(PinValidator().validate(shown, profile, None))
        renewed = peer(testCA().issue(key=credential.key))
        own = Profile(pinnedKeys=(keyDigest(credential.certificate),))
        self.assertIsNone(PinValidator().validate(renewed, own, None))

    def test_refused(self) -> None:
        """No key of it, or nothing pinned at all; the keys that it has are told."""
        shown = peer()
        for pinned, words in (((bytes(32),), "1 key is pinned"), ((), "no key is pinned")):
            error = self.assertRaises(
                SSAError, PinValidator().validate, shown, Profile(pinnedKeys=pinned), None
            )
            self.assertEqual(error.errno, errno.EKEYREJECTED)
            for part in (Cause.NOT_PINNED.text, words, pinText(keyDigest(shown.certificate)), "PinnedKeys"):
                self.assertIn(part, error.reason)

    def test_clients(self) -> None:
        """Clients are not pinned."""
        self.assertIsNone(PinValidator().validate(peer(isServer=False, identity=""), Profile(), None))


class Here(Clock):
    """A reactor whose threads are this one."""

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        call(*arguments)


class Inline:
    """
    A thread pool that works at once, or when it is told.

    @ivar held: what it was given to do while C{isHeld}.
    """

    def __init__(self) -> None:
        self.isHeld = False
        self.held: list[Callable[[], None]] = []

    def callInThreadWithCallback(
        self, onResult: Callable[[bool, Any], None], work: Callable[..., Any], *arguments: object
    ) -> None:
        def run() -> None:
            try:
                result = work(*arguments)
            except BaseException:
                onResult(False, Failure())
            else:
                onResult(True, result)

        if self.isHeld:
            self.held.append(run)
        else:
            run()


class StoreTests(SynchronousTestCase):
    """The file of first uses."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

    def write(self, text: str, mode: int = 0o600) -> None:
        with open(self.path, "w") as file:
            file.write(text)
        os.chmod(self.path, mode)

    def add(
        self, store: FirstUseStore, host: str, port: int, digest: bytes = bytes(32), user: int = 1000, isKept: bool = True
    ) -> Seen | None:
        """Learn of one server; raises what it cannot be kept for."""
        (result,) = store.learn([Use((host, port), digest, user, isKept)], self.now)
        if isinstance(result, StoreError):
            raise result
        return result

    def test_kept(self) -> None:
        """What is added is found, by another one too; the file is private and readable for a person."""
        store = FirstUseStore(self.path)
        self.assertIsNone(store.find(("a.example", 443)))
        self.assertEqual(self.add(store, "a.example", 443), (bytes(32), "2026-01-02T03:04:05Z", 1000))
        self.add(store, "2001:db8::1", 993, b"x" * 32, -1)
        for each in (store, FirstUseStore(self.path)):
            self.assertEqual(each.find(("a.example", 443)), (bytes(32), "2026-01-02T03:04:05Z", 1000))
            self.assertEqual(each.find(("2001:db8::1", 993)), (b"x" * 32, "2026-01-02T03:04:05Z", -1))
            self.assertIsNone(each.find(("a.example", 993)))
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        with open(self.path) as file:
            text = file.read()
        self.assertIn(f"a.example 443 {pinText(bytes(32))} 2026-01-02T03:04:05Z 1000\n", text)
        self.assertIn(f"2001:db8::1 993 {pinText(b'x' * 32)} 2026-01-02T03:04:05Z\n", text)
        self.assertEqual([name for name in os.listdir(os.path.dirname(self.path)) if name.endswith(".new")], [])

    def test_secondIsFirst(self) -> None:
        """Of two that add at the same time the first one wins, and the second is told, in one turn as well."""
        one, two = FirstUseStore(self.path), FirstUseStore(self.path)
        self.assertIsNone(two.find(("a.example", 443)))
        self.add(one, "a.example", 443, b"1" * 32)
        seen = self.add(two, "a.example", 443, b"2" * 32)
        self.assertEqual(seen and seen.digest, b"1" * 32)
        uses = [Use(("b.example", 443), digest * 32) for digest in (b"3", b"4")]
        self.assertEqual(one.learn(uses, self.now), [Seen(b"3" * 32, "2026-01-02T03:04:05Z")] * 2)

    def test_edited(self) -> None:
        """An administrator's edit counts at once; a line that is no line stops everything, with its number."""
        store = FirstUseStore(self.path)
        self.add(store, "a.example", 443)
        self.assertIsNotNone(store.known())
        self.write(f"# nothing\n\nb.example 1 {pinText(b'y' * 32)} then\n")
        self.assertIsNone(store.known())
        self.assertEqual(store.find(("b.example", 1)), (b"y" * 32, "then", -1))
        self.assertIsNone(store.find(("a.example", 443)))
        for line, words in (
            ("nonsense", ":2: this is not"),
            (f"a.example 0 {pinText(bytes(32))} t", ":2: this is not"),
            (f"a.example 1 {pinText(bytes(32))} t root", ":2: this is not"),
            ("a.example 1 sha256/short= t", ":2: this is not"),
            (f"b.example 1 {pinText(bytes(32))} t 7", ":2: b.example port 1 is there twice"),
        ):
            self.write(f"b.example 1 {pinText(b'y' * 32)} then\n{line}\n")
            self.assertIn(words, str(self.assertRaises(StoreError, store.find, ("b.example", 1))))
            self.assertRaises(StoreError, self.add, store, "c.example", 1)

    def test_guarded(self) -> None:
        """A file that others can change, a link and a directory are refused."""
        self.write("", 0o620)
        self.assertIn("can change it", str(self.assertRaises(StoreError, FirstUseStore(self.path).find, ("a", 1))))
        os.unlink(self.path)
        os.symlink("/dev/null", self.path)
        self.assertRaises(StoreError, FirstUseStore(self.path).find, ("a", 1))
        os.unlink(self.path)
        os.mkdir(self.path)
        self.assertIn("no regular file", str(self.assertRaises(StoreError, FirstUseStore(self.path).find, ("a", 1))))
        self.assertIsNone(FirstUseStore(self.path).known())

    def test_full(self) -> None:
        """The number of entries is bounded; what does not fit harms nobody else of the same turn."""
        store = FirstUseStore(self.path, 2)
        self.add(store, "a.example", 1)
        uses = [Use(("a.example", port), bytes(32)) for port in (2, 3, 1)]
        second, third, first = store.learn(uses, self.now)
        self.assertIsInstance(second, Seen)
        self.assertIsInstance(first, Seen)
        self.assertIsInstance(third, StoreError)
        self.assertIn("is full", str(third))
        self.assertIn("is full", str(self.assertRaises(StoreError, self.add, store, "a.example", 3)))
        self.assertIsNotNone(store.find(("a.example", 1)))

    def test_perUser(self) -> None:
        """No user fills it for the others: each has a share, which counts after a restart too; root's is all of it."""
        store = FirstUseStore(self.path, 10, 2)
        for port in (1, 2):
            self.add(store, "mine.example", port)
        store = FirstUseStore(self.path, 10, 2)
        self.assertIn("of user 1000", str(self.assertRaises(StoreError, self.add, store, "mine.example", 3)))
        self.assertIsNotNone(self.add(store, "mine.example", 1))
        self.assertIsNotNone(self.add(store, "b.example", 1, user=1001))
        for port in range(1, 5):
            self.assertIsNotNone(self.add(store, "root.example", port, user=0))
        self.write("".join(line for line in self.lines() if "mine.example 1 " not in line))
        self.assertIsNotNone(self.add(store, "mine.example", 3))

    def lines(self) -> list[str]:
        with open(self.path) as file:
            return list(file)

    def test_onlyCompared(self) -> None:
        """What is not to be kept is looked up without a lock, and nothing is written."""
        self.write(f"a.example 1 {pinText(b'y' * 32)} then\n")
        store = FirstUseStore(self.path)
        seen = self.add(store, "a.example", 1, isKept=False)
        self.assertEqual(seen and seen.digest, b"y" * 32)
        self.assertIsNone(self.add(store, "b.example", 1, isKept=False))
        self.assertIsNone(store.find(("b.example", 1)))
        self.assertFalse(os.path.exists(self.path + ".lock"))

    def test_onlyComparedTogether(self) -> None:
        """The same where others that wait at the same time are kept."""
        store = FirstUseStore(self.path)
        uses = [Use((f"{name}.example", 1), bytes(32), isKept=name != "b") for name in "abc"]
        kept, compared, other = store.learn(uses, self.now)
        self.assertEqual((True, None, True), (isinstance(kept, Seen), compared, isinstance(other, Seen)))
        self.assertIsNone(FirstUseStore(self.path).find(("b.example", 1)))

    def test_onDisk(self) -> None:
        """What was kept is on the disk before anybody is told: the file first, then its name."""
        done: list[str] = []
        rename = os.rename

        def toDisk(descriptor: int) -> None:
            done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

        def renamed(old: str, new: str) -> None:
            done.append("name")
            rename(old, new)

        self.patch(os, "fsync", toDisk)
        self.patch(os, "rename", renamed)
        self.add(FirstUseStore(self.path), "a.example", 1)
        self.assertEqual(["file", "name", "directory"], done)

    def test_notReadAgain(self) -> None:
        """After a write the file is known, without reading it again."""
        store = FirstUseStore(self.path)
        self.add(store, "a.example", 1)
        parsed: list[bytes] = []

        def parse(store: FirstUseStore, data: bytes) -> dict[object, object]:
            parsed.append(data)
            return {}

        self.patch(FirstUseStore, "_parse", parse)
        for port in range(2, 5):
            self.add(store, "a.example", port)
        known = store.known()
        self.assertEqual(len(known or ()), 4)
        self.assertEqual(parsed, [])

    def test_unreadable(self) -> None:
        """What could not be read again is not written: it would make the whole file useless."""
        store = FirstUseStore(self.path)
        for host, port in (("a b", 1), ("a\nb", 1), ("", 1), ("a" * 256, 1), ("a.example", 0), ("a.example", 65536)):
            self.assertIn("cannot hold", str(self.assertRaises(StoreError, self.add, store, host, port)))
        self.assertFalse(os.path.exists(self.path))

    def test_large(self) -> None:
        """So is its size."""
        self.write("#" * (4 * 1024 * 1024 + 1))
        self.assertIn("larger", str(self.assertRaises(StoreError, FirstUseStore(self.path).find, ("a", 1))))

    def test_locked(self) -> None:
        """While another process writes, nothing is decided."""
        with open(self.path + ".lock", "w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            self.assertRaises(StoreIsLocked, self.add, FirstUseStore(self.path), "a.example", 1)
        self.add(FirstUseStore(self.path), "a.example", 1)

    def test_noDirectory(self) -> None:
        """What cannot be written is no first use."""
        store = FirstUseStore("/nonexistent/store")
        self.assertIsNone(store.find(("a.example", 1)))
        self.assertRaises(StoreError, self.add, store, "a.example", 1)


class FirstUseTests(SynchronousTestCase):
    """Trust on first use."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.profile = Profile(firstUseStore=self.path)
        self.pool = Inline()
        self.reactor = Here()
        self.plugin = self.another()

    def another(self) -> FirstUseValidator:
        pool: Any = self.pool
        return FirstUseValidator(pool)

    def validate(self, shown: Peer, profile: Profile | None = None, plugin: FirstUseValidator | None = None) -> None:
        """Ask; raises the refusal."""
        waiting = (plugin or self.plugin).validate(shown, profile or self.profile, self.reactor)
        if waiting is None:
            return
        results: list[Any] = []
        waiting.addBoth(results.append)
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()

    def test_sameKey(self) -> None:
        """The key counts, not the certificate: one that is renewed with it is accepted."""
        key = testKey("ec", 77)
        self.validate(peer(testCA().issue(key=key)))
        self.validate(peer(testCA().issue(["other"], key=key)))
        self.validate(peer(testCA().issue(key=key)), plugin=self.another())
        self.assertIsNone(self.plugin.validate(peer(testCA().issue(key=key)), self.profile, self.reactor))

    def test_changedKey(self) -> None:
        """Another key is refused; the text names both, and the file; without the line it is a first use again."""
        old, new = peer(testCA().issue(key=testKey("ec", 77))), peer(testCA().issue(key=testKey("ec", 78)))
        self.validate(old)
        for plugin in (None, None, self.another()):
            error = self.assertRaises(SSAError, self.validate, new, plugin=plugin)
            self.assertEqual(error.errno, errno.EKEYREJECTED)
            for word in (
                Cause.KEY_CHANGED.text,
                "server.example port 443",
                pinText(keyDigest(old.certificate)),
                pinText(keyDigest(new.certificate)),
                f"remove its line from {self.path}",
            ):
                self.assertIn(word, error.reason)
        with open(self.path) as file:
            lines = [line for line in file if not line.startswith("server.example 443 ")]
        with open(self.path, "w") as file:
            file.writelines(lines)
        self.validate(new)
        self.assertRaises(SSAError, self.validate, old)

    def test_otherPort(self) -> None:
        """Another port is another server."""
        self.validate(peer(testCA().issue(key=testKey("ec", 77))))
        self.validate(peer(testCA().issue(key=testKey("ec", 78)), port=993))

    def test_programsTrust(self) -> None:
        """What a program's own authorities vouch for is compared, and never kept: it would decide for all other programs."""
        old, new = (testCA().issue(key=testKey("ec", number)) for number in (77, 78))
        for _ in range(2):
            self.validate(peer(new, isProgramsTrust=True, user=1000))
            self.assertFalse(os.path.exists(self.path))
        self.validate(peer(old, user=1001))
        for plugin in (None, self.another()):
            self.assertRaises(SSAError, self.validate, peer(new, isProgramsTrust=True, user=1000), plugin=plugin)
            self.validate(peer(old, isProgramsTrust=True, user=1000), plugin=plugin)

    def test_user(self) -> None:
        """Whose use it was stands in the file, for the share that each user has."""
        self.validate(peer(user=1003))
        seen = FirstUseStore(self.path).find(("server.example", 443))
        self.assertEqual(seen and seen.user, 1003)
        with open(self.path) as file:
            lines = list(file)
        with open(self.path, "w") as file:
            file.writelines(lines + [f"x{n}.example 1 {pinText(bytes(32))} then 1003\n" for n in range(2499)])
        error = self.assertRaises(SSAError, self.validate, peer(user=1003, port=1))
        self.assertEqual(error.errno, errno.EKEYREJECTED)
        self.assertIn("2500 entries of user 1003", error.reason)
        self.validate(peer(user=1004, port=1))

    def test_noStore(self) -> None:
        """Without a file, or with one that cannot be used, everybody is refused."""
        error = self.assertRaises(SSAError, self.validate, peer(), Profile())
        self.assertIn("FirstUseStore", error.reason)
        broken = Profile(firstUseStore="/nonexistent/store")
        error = self.assertRaises(SSAError, self.validate, peer(), broken)
        self.assertEqual(error.errno, errno.EKEYREJECTED)
        self.assertIn("/nonexistent/store", error.reason)

    def test_waits(self) -> None:
        """While another process holds the store, it waits, and decides afterwards."""
        with open(self.path + ".lock", "w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            done = self.plugin.validate(peer(), self.profile, self.reactor)
            later = self.plugin.validate(peer(port=1), self.profile, self.reactor)
            assert done is not None and later is not None
            self.reactor.advance(0.1)
            self.assertNoResult(done)
        self.reactor.advance(0.1)
        self.assertIsNone(self.successResultOf(done))
        self.assertIsNone(self.successResultOf(later))
        self.assertTrue(os.path.exists(self.path))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_inThread(self) -> None:
        """The reactor waits for no disk: what is not known yet is read and written by one thread, once for all that wait."""
        self.pool.isHeld = True
        waiting = [self.plugin.validate(peer(port=port), self.profile, self.reactor) for port in range(1, 41)]
        self.assertFalse(os.path.exists(self.path))
        self.assertEqual(len(self.pool.held), 1)
        written: list[int] = []
        write = FirstUseStore._write

        def counting(store: FirstUseStore, entries: Any) -> None:
            written.append(len(entries))
            write(store, entries)

        self.patch(FirstUseStore, "_write", counting)
        self.pool.held.pop()()
        self.assertEqual(len(self.pool.held), 1)
        self.pool.held.pop()()
        self.assertEqual(self.pool.held, [])
        for each in waiting:
            assert each is not None
            self.assertIsNone(self.successResultOf(each))
        self.assertEqual(written, [1, 40])

    def test_givenUp(self) -> None:
        """Who does not wait any more takes no place in the line, and is not learnt from."""
        self.pool.isHeld = True
        waiting = [self.plugin.validate(peer(port=port), self.profile, self.reactor) for port in range(1, 41)]
        for each in waiting:
            assert each is not None
            each.cancel()
            self.failureResultOf(each, CancelledError)
        last = self.plugin.validate(peer(port=99), self.profile, self.reactor)
        assert last is not None
        while self.pool.held:
            self.pool.held.pop()()
        self.assertIsNone(self.successResultOf(last))
        store = FirstUseStore(self.path)
        self.assertEqual([port for port in range(100) if store.find(("server.example", port)) is not None], [1, 99])

    def test_trouble(self) -> None:
        """A store that breaks refuses those that wait, and the next turn is not held up by it."""
        self.pool.isHeld = True
        first, second = (self.plugin.validate(peer(port=port), self.profile, self.reactor) for port in (1, 2))
        assert first is not None and second is not None
        os.mkdir(self.path)
        self.pool.held.pop()()
        self.assertIn("no regular file", self.failureResultOf(first, SSAError).value.reason)
        os.rmdir(self.path)
        self.pool.held.pop()()
        self.assertIsNone(self.successResultOf(second))

    def test_clients(self) -> None:
        """Nothing is remembered of clients."""
        self.validate(peer(isServer=False))
        self.assertFalse(os.path.exists(self.path))


class ConnectionTests(TestCase):
    """Real handshakes."""

    timeout = 30

    def setUp(self) -> None:
        self.relays = RelayPool(reactor, 8, reserveLimit=8, userLimit=8)
        self.addCleanup(self.relays.close)
        threads = DaemonThreadPool(0, 2, "test")
        resolver = Resolver(reactor, reactor, threads)
        revocation = Revocation(reactor, reactor, threads, Fetcher(reactor, reactor, resolver, threads), None)
        self.factories = TLSFactories(reactor, reactor, self.relays, revocation, Staples(reactor, revocation))

    def connect(self, profile: Profile, port: int, options: SocketOptions | None = None) -> Deferred[Secured]:
        sock = socket.create_connection(("127.0.0.1", port))
        self.addCleanup(sock.close)
        sock.setblocking(False)
        if options is None:
            options = trusting(testCA())
        return self.factories.client(profile, options, parseIdentity("server.example")).handshake(sock)

    def roots(self) -> str:
        """A trust store of the administrator's."""
        path = Path(self.mktemp()).absolute()
        path.write_bytes(testCA().pem)
        return str(path)

    async def refused(self, profile: Profile, port: int, options: SocketOptions | None = None) -> SSAError:
        try:
            secured = await self.connect(profile, port, options)
        except SSAError as error:
            return error
        secured.abort()
        raise AssertionError("the connection was accepted")

    async def test_pin(self) -> None:
        """The verified chain counts, with its root, which the server does not send."""
        for version in (TLS_1_2, TLS_1_3):
            with running(echo(serverContext(testCA().intermediate().issue()))) as server:
                good = Profile(
                    maxProtocol=version, validation=("pin",), pinnedKeys=(keyDigest(testCA().certificate),)
                )
                secured = await self.connect(good, server.port)
                secured.abort()
                error = await self.refused(Profile(validation=("pin",), pinnedKeys=(bytes(32),)), server.port)
                self.assertEqual(error.errno, errno.EKEYREJECTED)
                self.assertIn(Cause.NOT_PINNED.text, error.reason)
                self.assertIn("[subject CN=server.example", error.reason)

    async def test_otherChecksStay(self) -> None:
        """A pin makes no bad certificate good, and a refused one is no first use."""
        bad = testCA().issue(expired=True)
        path = os.path.abspath(self.mktemp())
        profile = Profile(
            validation=("pin", "first-use"), pinnedKeys=(keyDigest(bad.certificate),), firstUseStore=path
        )
        with running(echo(serverContext(bad))) as server:
            self.assertEqual((await self.refused(profile, server.port)).errno, errno.EKEYEXPIRED)
        self.assertFalse(os.path.exists(path))

    async def test_firstUse(self) -> None:
        """First uses at the same time are decided alike: one key wins, the other server is refused."""
        path = os.path.abspath(self.mktemp())
        profile = Profile(validation=("first-use",), firstUseStore=path, trustStore=self.roots())
        keys = [testCA().issue(key=testKey("ec", number)) for number in (77, 78)]
        contexts = [serverContext(each) for each in keys]
        turn = iter([0, 1] * 4)

        def serve(sock: socket.socket) -> None:
            echo(contexts[next(turn)])(sock)

        with running(serve) as server:
            every = [self.connect(profile, server.port, SocketOptions(number)) for number in range(8)]
            digests, refused = set(), 0
            for each in every:
                try:
                    secured = await each
                except SSAError as error:
                    self.assertIn(Cause.KEY_CHANGED.text, error.reason)
                    refused += 1
                else:
                    digests.add(secured.info.peerChainPEM())
                    secured.abort()
        self.assertEqual((len(digests), refused), (1, 4))

    async def test_firstUseOfOwnTrust(self) -> None:
        """A server that only a program's own authority vouches for does not become everybody's."""
        path = os.path.abspath(self.mktemp())
        profile = Profile(validation=("first-use",), firstUseStore=path, trustStore=self.roots())
        theirs, real = (serverContext(testCA().issue(key=testKey("ec", number))) for number in (77, 78))
        shown = theirs
        with running(lambda sock: echo(shown)(sock)) as server:
            (await self.connect(profile, server.port)).abort()
            shown = real
            (await self.connect(profile, server.port, SocketOptions(1, 1001))).abort()
            seen = FirstUseStore(path).find(("server.example", server.port))
            self.assertEqual(seen and seen.user, 1001)
            shown = theirs
            self.assertIn(Cause.KEY_CHANGED.text, (await self.refused(profile, server.port)).reason)

    async def test_slowPlugin(self) -> None:
        """The program gets the connection when the plug-in has answered, and a refusal when it never does."""
        waiting: Deferred[None] = Deferred()
        answers = iter([waiting, Deferred()])
        self.patch(validation, "_found", {"slow": Example("slow", lambda: next(answers))})
        with running(echo(serverContext(testCA().issue()))) as server:
            profile = Profile(validation=("slow",), handshakeTimeout=1.0)
            connecting = self.connect(profile, server.port)
            reactor.callLater(0.3, waiting.callback, None)
            began = reactor.seconds()
            secured = await connecting
            secured.abort()
            self.assertGreater(reactor.seconds() - began, 0.25)
            error = await self.refused(profile, server.port)
            self.assertEqual(error.errno, errno.ETIMEDOUT)

    async def test_everyConnection(self) -> None:
        """Each connection is validated with the same chain, be its session new or resumed."""
        seen: list[Peer] = []

        @implementer(IPlugin, IValidator)
        class Watching:
            """Remembers whom it was asked about; refuses the third."""

            name = "watching"

            def validate(self, peer: Peer, profile: Profile, reactor: Any) -> Deferred[None] | None:
                """See L{IValidator}."""
                seen.append(peer)
                if len(seen) == 3:
                    raise SSAError(errno.EKEYREJECTED, "enough")
                return None

        self.patch(validation, "_found", {"watching": Watching()})
        profile = Profile(maxProtocol=TLS_1_2, validation=("watching",))
        with running(echo(serverContext(testCA().intermediate().issue()))) as server:
            for _ in range(2):
                (await self.connect(profile, server.port)).abort()
            self.assertIn("enough", (await self.refused(profile, server.port)).reason)
        self.assertEqual([each.chain for each in seen], [seen[0].chain] * 3)
        self.assertEqual(len(seen[0].chain), 3)

    async def test_refusedSession(self) -> None:
        """A server that is refused after the handshake, by a plug-in or as revoked, is not offered its session again."""
        resumed: list[bool] = []
        bad: set[str] = set()

        def answer(which: str) -> None:
            if which in bad:
                raise SSAError(errno.EKEYREJECTED, "enough")

        @implementer(IPlugin, IValidator)
        class Watching:
            """Remembers whether the session was resumed."""

            name = "watching"

            def validate(self, peer: Peer, profile: Profile, reactor: Any) -> Deferred[None] | None:
                """See L{IValidator}."""
                resumed.append(peer.isResumed)
                answer("plug-in")
                return None

        async def check(revocation: Revocation, chain: object, stapled: bytes, rules: Rules) -> None:
            answer("revocation")

        self.patch(validation, "_found", {"watching": Watching()})
        self.patch(Revocation, "check", check)
        profile = Profile(maxProtocol=TLS_1_2, validation=("watching",), revocationChecks=True)
        with running(echo(serverContext(testCA().issue()))) as server:
            for which in ("plug-in", "revocation"):
                for _ in range(2):
                    await self.visit(profile, server.port)
                # Sessions of TLS 1.2 may be used more than once.
                self.assertEqual((resumed, len(self.factories.sessions)), ([False, True], 1))
                bad.add(which)
                self.assertIn("enough", (await self.refused(profile, server.port)).reason)
                bad.clear()
                self.assertEqual(len(self.factories.sessions), 0)
                resumed.clear()

    async def visit(self, profile: Profile, port: int) -> None:
        """Connect, keep the session as with a relay, and end in order."""
        secured: Any = await self.connect(profile, port)
        connection = secured._connection
        check = peerCheckOf(connection)
        assert check.resumption is not None
        check.resumption.established(connection, check.offered if check.resumed else None)
        connection.shutdown()
        secured.abort()

    def pairWithClientCertificate(self, own: Credential | None) -> Pair:
        contexts = serverContexts(Profile(), serving(testCA().issue()))
        store = contexts.default.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(testCA().certificate))
        contexts.default.set_verify(SSL.VERIFY_PEER, verifyPeer)
        settings = () if own is None else (
            (Option.TLS_CERTIFICATE_CHAIN, own.chainPEM), (Option.TLS_PRIVATE_KEY, own.keyPEM)
        )  # fmt: skip
        pair = Pair(trusting(testCA(), *settings), contexts).shakeHands()
        self.addCleanup(pair.close)
        self.assertEqual(pair.errors, {"client": None, "server": None})
        return pair

    def test_peers(self) -> None:
        """What plug-ins are told of both sides; of a client without a certificate they are not asked."""
        remote = InternetAddress(socket.AF_INET, "192.0.2.7", 999)
        own = testCA().intermediate().issue(["client.example"], purpose="client")
        pair = self.pairWithClientCertificate(own)
        found = peerOf(pair.server, remote, True)
        assert found is not None
        self.assertEqual(found.chain, (*own.chain, testCA().certificate))
        self.assertEqual((found.isServer, found.identity, found.host, found.port), (False, "", "192.0.2.7", 999))
        found = peerOf(pair.client, remote, False)
        assert found is not None
        self.assertEqual((found.isServer, found.identity, found.isResumed), (True, "server.example", False))
        self.assertEqual((found.isProgramsTrust, found.user), (True, -1))
        self.assertEqual(found.certificate, found.chain[0])
        self.assertIsNone(peerOf(self.pairWithClientCertificate(None).server, remote, True))

    def test_unknownChain(self) -> None:
        """A server of which no verified chain is known is refused."""
        contexts = serverContexts(Profile(), serving(testCA().issue()))
        pair = Pair(trusting(testCA()), contexts)
        self.addCleanup(pair.close)
        remote = InternetAddress(socket.AF_INET, "192.0.2.7", 999)
        self.assertEqual(self.assertRaises(SSAError, peerOf, pair.client, remote, False).errno, errno.EKEYREJECTED)

    async def test_server(self) -> None:
        """A client without a certificate is not asked about."""
        profile = Profile(validation=("no-such-plugin",))
        factory = self.factories.server(profile, serving(testCA().issue()))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connecting = self.connect(Profile(), listener.getsockname()[1])
            accepted, _ = listener.accept()
            self.addCleanup(accepted.close)
            accepted.setblocking(False)
            secured = await factory.handshake(accepted)
            other = await connecting
            secured.abort()
            other.abort()
