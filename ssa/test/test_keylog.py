# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.keylog}: secrets are written where the profile says so, and nowhere else."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from typing import Any

from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ssa.policy.profile import TLS_1_2, TLS_1_3, Policy, Profile
from ssa.service import Daemon
from ssa.test.fakes import FakeReactor
from ssa.test.pki import testCA
from ssa.test.processes import environment
from ssa.test.tlspair import Pair, serving, trusting
from ssa.tls import keylog
from ssa.tls.contexts import ContextCache, clientConnection
from ssa.tls.identity import parseIdentity
from ssa.tls.keylog import KeyLog, keyLogFor, reopenKeyLogs

_LINE = re.compile(r"[A-Z_0-9]+ [0-9a-f]{64} [0-9a-f]{96,}|[A-Z_0-9]+ [0-9a-f]{64} [0-9a-f]{64}")


@implementer(ILogObserver)
class Heard(list[dict[str, Any]]):
    """Remembers what is logged."""

    def __call__(self, event: LogEvent) -> None:
        """An event."""
        self.append(dict(event))


def read(path: str) -> list[str]:
    """The lines of a file."""
    with open(path) as file:
        return file.read().splitlines()


class FileTests(SynchronousTestCase):
    """One key log."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())

    def log(self, most: int = keylog.LARGEST_KEY_LOG) -> KeyLog:
        found = KeyLog(self.path, most)
        self.addCleanup(found.reopen)
        return found

    def observe(self) -> None:
        self.seen = Heard()
        self.patch(KeyLog, "_log", Logger(observer=self.seen))

    def test_private(self) -> None:
        """Only its owner reads it, whatever the umask; lines are added at the end, and go on after a rotation."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        log = self.log()
        log.write(b"a")
        log.write(b"b")
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        os.rename(self.path, self.path + ".1")
        log.reopen()
        log.write(b"c")
        self.assertEqual((read(self.path + ".1"), read(self.path)), (["a", "b"], ["c"]))

    def refuses(self, word: str, most: int = keylog.LARGEST_KEY_LOG) -> None:
        self.observe()
        log = self.log(most)
        log.write(b"secret")
        log.write(b"secret")
        self.assertTrue(log.isBroken)
        self.assertEqual(len(self.seen), 1)
        self.assertIn(word, self.seen[0]["why"])
        self.assertNotIn("secret", repr(self.seen))

    def test_link(self) -> None:
        """A link is not followed."""
        os.symlink(self.path + ".target", self.path)
        self.refuses("symbolic links")
        self.assertFalse(os.path.exists(self.path + ".target"))

    def test_hardLink(self) -> None:
        """A file with several names is not written."""
        with open(self.path, "w"):
            pass
        os.chmod(self.path, 0o600)
        os.link(self.path, self.path + ".other")
        self.refuses("one name only")

    def test_mode(self) -> None:
        """Neither is one that others can read."""
        with open(self.path, "w"):
            pass
        os.chmod(self.path, 0o640)
        self.refuses("mode 0600")

    def test_otherUser(self) -> None:
        """Nor one of somebody else."""
        with open(self.path, "w"):
            pass
        os.chmod(self.path, 0o600)
        self.patch(os, "geteuid", lambda: os.getuid() + 1)
        self.refuses("belong to the daemon's user")

    def test_pipe(self) -> None:
        """Nor anything but a file, and nothing waits for it."""
        os.mkfifo(self.path)
        self.refuses("")

    def test_noDirectory(self) -> None:
        """A directory that is missing."""
        self.path = "/nonexistent/keys"
        self.refuses("No such file")

    def test_bounded(self) -> None:
        """The file does not grow without end."""
        self.log().write(b"x" * 50)
        self.refuses("it has reached 55 bytes", 55)
        self.assertEqual(os.stat(self.path).st_size, 51)


class ConnectionTests(SynchronousTestCase):
    """Whose secrets are written."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.addCleanup(reopenKeyLogs)

    def pair(self, **profiles: Profile) -> Pair:
        pair = Pair(trusting(testCA()), serving(testCA().issue()), **profiles).shakeHands()  # type: ignore[arg-type]
        self.addCleanup(pair.close)
        self.assertEqual(pair.errors, {"client": None, "server": None})
        return pair

    def test_client(self) -> None:
        """A client's, in the format of NSS: the line's second field is the random of the ClientHello."""
        for version, label in ((TLS_1_2, "CLIENT_RANDOM"), (TLS_1_3, "CLIENT_TRAFFIC_SECRET_0")):
            pair = self.pair(clientProfile=Profile(maxProtocol=version, keyLogFile=self.path))
            lines = read(self.path)
            random = pair.client.client_random()
            assert random is not None
            self.assertTrue(any(line.startswith(f"{label} {random.hex()} ") for line in lines), lines)
            for line in lines:
                self.assertRegex(line, _LINE)

    def test_server(self) -> None:
        """A server's."""
        self.pair(serverProfile=Profile(keyLogFile=self.path))
        self.assertTrue(read(self.path))

    def test_otherProfiles(self) -> None:
        """A connection of another profile never, not even with an equal context otherwise."""
        self.pair(clientProfile=Profile(keyLogFile=self.path))
        before = read(self.path)
        self.pair()
        self.assertEqual(read(self.path), before)
        cache = ContextCache()
        contexts = []
        for profile in (Profile(), Profile(keyLogFile=self.path), Profile(keyLogFile=self.path + ".2")):
            pair = self.pair()
            made = clientConnection(profile, trusting(testCA()), pair.sockets[0], parseIdentity("a.example"), cache)
            contexts.append(made.get_context())
        self.assertEqual(len(set(contexts)), 3)

    def test_brokenLog(self) -> None:
        """Trouble with the file breaks no connection."""
        self.path = "/nonexistent/keys"
        self.patch(KeyLog, "_log", Logger(observer=Heard()))
        pair = self.pair(clientProfile=Profile(keyLogFile=self.path))
        self.assertEqual(pair.exchange(), b"hello")
        self.assertTrue(keyLogFor(self.path).isBroken)

    def test_environment(self) -> None:
        """SSLKEYLOGFILE in the environment has no effect."""
        script = (
            "from ssa.test.test_keylog import *\n"
            "pair = Pair(trusting(testCA()), serving(testCA().issue())).shakeHands()\n"
            "assert pair.exchange() == b'hello'\n"
        )
        subprocess.run(
            [sys.executable, "-c", script], check=True, timeout=60, env={**environment(), "SSLKEYLOGFILE": self.path}
        )
        self.assertFalse(os.path.exists(self.path))


class WarningTests(SynchronousTestCase):
    """An administrator cannot overlook it."""

    def test_startAndReload(self) -> None:
        """It is said at the start and at each reload, at the highest level; a reload tries a broken file again."""
        policies = [Policy(Profile(keyLogFile="/nonexistent/keys"))]
        daemon = Daemon(FakeReactor(), policies[0], lambda: policies[0])
        seen = Heard()
        self.patch(Daemon, "log", Logger(observer=seen))

        def warnings() -> list[str]:
            found = [event["path"] for event in seen if event["log_level"].name == "critical"]
            seen.clear()
            return found

        daemon._policyChanged()
        self.assertEqual(warnings(), ["/nonexistent/keys"])
        log = keyLogFor("/nonexistent/keys")
        log.isBroken = True
        self.assertTrue(daemon.reload())
        self.assertEqual(warnings(), ["/nonexistent/keys"])
        self.assertFalse(log.isBroken)
        policies[0] = Policy()
        self.assertTrue(daemon.reload())
        self.assertEqual(warnings(), [])
