# SPDX-License-Identifier: MIT
"""Answers that are kept, in memory and on disk; questions that are asked once."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ssa.embedded import cacheOf
from ssa.revocation.cache import Cache, Directory, Entry, Key
from ssa.revocation.inflight import InFlight, firstDefinite
from ssa.revocation.verdict import LONGEST_LIFE

DAY = 86400.0


def key(number: int, kind: str = "ocsp") -> Key:
    """A key."""
    return Key(kind, b"issuer", str(number))


class CacheTests(SynchronousTestCase):
    """L{Cache}."""

    def setUp(self) -> None:
        self.time = 1e9
        self.cache = Cache(lambda: self.time, 3, 100)

    def test_lifetime(self) -> None:
        """Until the answer's end, seven days at most."""
        self.assertEqual(7 * DAY, LONGEST_LIFE)
        self.cache.put(key(1), Entry(b"a", self.time + 10))
        self.cache.put(key(2), Entry(b"b", self.time + 100 * DAY))
        self.cache.put(key(3), Entry(b"c", self.time))
        self.assertIsNone(self.cache.get(key(3)))
        self.time += 9
        self.assertIsNotNone(self.cache.get(key(1)))
        self.time += 1
        self.assertIsNone(self.cache.get(key(1)))
        self.time += LONGEST_LIFE - 11
        self.assertIsNotNone(self.cache.get(key(2)))
        self.time += 1
        self.assertIsNone(self.cache.get(key(2)))
        self.assertEqual((0, 0), (len(self.cache), self.cache.size))

    def test_bounds(self) -> None:
        """By number and by bytes; the one that was used longest ago goes first."""
        for number in range(3):
            self.cache.put(key(number), Entry(bytes(10), self.time + 10))
        self.cache.get(key(0))
        self.cache.put(key(3), Entry(bytes(10), self.time + 10))
        self.assertIsNone(self.cache.get(key(1)))
        self.assertIsNotNone(self.cache.get(key(0)))
        self.cache.put(key(4), Entry(bytes(85), self.time + 10))
        self.assertEqual((2, 95), (len(self.cache), self.cache.size))
        self.cache.put(key(5), Entry(bytes(101), self.time + 10))
        self.assertIsNone(self.cache.get(key(5)))
        self.cache.put(key(4), Entry(bytes(5), self.time + 10))
        self.assertEqual(15, self.cache.size)


class DirectoryTests(SynchronousTestCase):
    """L{Directory}."""

    def setUp(self) -> None:
        self.time = 1e9
        self.path = os.path.abspath(self.mktemp()) + "/ssa"
        self.warned: list[dict[str, Any]] = []

    def directory(self, **more: Any) -> Directory:
        """As after a restart."""
        made = Directory(self.path, lambda: self.time, **more)
        made.log = self  # type: ignore[assignment]
        return made

    def warn(self, format: str, **event: Any) -> None:
        self.warned.append(event)

    def file(self, number: int = 1) -> Path:
        return Path(self.path, key(number).fileName())

    def test_restart(self) -> None:
        """What was written is read, private to the daemon."""
        self.assertIsNone(self.directory().read(key(1), 100))
        self.directory().write(key(1), b"answer", self.time + DAY)
        found = self.directory().read(key(1), 100)
        assert found is not None
        self.assertEqual((b"answer", self.time + DAY, None), (found.data, found.until, found.parsed))
        self.assertEqual(0o600, stat.S_IMODE(self.file().stat().st_mode))
        self.assertEqual(0o700, stat.S_IMODE(os.stat(self.path).st_mode))
        self.assertEqual([self.file().name], os.listdir(self.path))
        self.assertIsNone(self.directory().read(key(2), 100))
        self.assertIsNone(self.directory().read(key(1, "crl"), 100))
        self.assertEqual([], self.warned)

    def test_lifetime(self) -> None:
        """Not after the answer's end, nor after seven days."""
        self.directory().write(key(1), b"a", self.time + 10)
        self.directory().write(key(2), b"b", self.time + 100 * DAY)
        self.time += 10
        self.assertIsNone(self.directory().read(key(1), 100))
        self.assertFalse(self.file().exists())
        self.time += LONGEST_LIFE - 11
        self.assertIsNotNone(self.directory().read(key(2), 100))
        self.time += 2
        self.assertIsNone(self.directory().read(key(2), 100))
        self.assertEqual([], self.warned)

    def test_damaged(self) -> None:
        """A file that is damaged, cut off or something else is ignored and removed, and logged."""
        self.directory().write(key(1), b"answer", self.time + DAY)
        good = self.file().read_bytes()
        lies = good.replace(f"{self.time + DAY:.0f}".encode(), f"{self.time + 90 * DAY:.0f}".encode())
        bad = (b"", b"x" * 5000, good[:-1], good + b"x", good.replace(b"answer", b"ANSWER"), good[:20])
        for number, data in enumerate(bad, 1):
            self.file().write_bytes(data)
            self.assertIsNone(self.directory().read(key(1), 100))
            self.assertFalse(self.file().exists())
            self.assertEqual(number, len(self.warned))
        self.file().write_bytes(lies)
        self.assertIsNone(self.directory().read(key(1), 100))
        self.file().write_bytes(good)
        self.assertIsNone(self.directory().read(key(1), 3))

    def test_link(self) -> None:
        """A symbolic link is not followed."""
        self.directory().write(key(1), b"answer", self.time + DAY)
        os.rename(self.file(), self.path + "/elsewhere")
        os.symlink("elsewhere", self.file())
        self.assertIsNone(self.directory().read(key(1), 100))

    def test_noFile(self) -> None:
        """A FIFO is not waited for, and removed; a directory is told of, and does not stay open."""
        os.makedirs(self.path, mode=0o700)
        os.mkfifo(self.file())
        self.assertIsNone(self.directory().read(key(1), 100))
        self.assertFalse(self.file().exists())
        self.file().mkdir()
        before = os.listdir("/proc/self/fd")
        self.assertIsNone(self.directory().read(key(1), 100))
        self.assertEqual(before, os.listdir("/proc/self/fd"))
        self.assertEqual(2, len(self.warned))

    def test_writable(self) -> None:
        """A directory into which others may write is not used; that is logged once."""
        os.makedirs(self.path)
        os.chmod(self.path, 0o777)
        directory = self.directory()
        for _ in range(2):
            directory.write(key(1), b"answer", self.time + DAY)
            self.assertIsNone(directory.read(key(1), 100))
        self.assertEqual([], os.listdir(self.path))
        self.assertEqual(1, len(self.warned))

    def test_noDirectory(self) -> None:
        """A path that is something else."""
        os.makedirs(os.path.dirname(self.path))
        Path(self.path).write_text("file")
        self.directory().write(key(1), b"answer", self.time + DAY)
        self.assertEqual(1, len(self.warned))

    def test_prune(self) -> None:
        """The oldest files go first; so do the unfinished ones of a daemon that was killed."""
        directory = self.directory(mostEntries=2, mostBytes=10000)
        for number in range(4):
            directory.write(key(number), b"a", self.time + DAY)
            os.utime(self.file(number), (self.time + number, self.time + number))
        left = Path(self.path, "x.ocsp.00.new")
        left.write_bytes(b"")
        os.utime(left, (self.time - 4000, self.time - 4000))
        self.time += 10
        directory.prune()
        self.assertEqual({self.file(2).name, self.file(3).name}, set(os.listdir(self.path)))
        self.directory(mostBytes=200).prune()
        self.assertEqual([self.file(3).name], os.listdir(self.path))


    def test_bounds(self) -> None:
        """The bounds hold after each answer that is written, not only now and then; those of other daemons there count too."""
        for most, size in ((8, 100000), (1000, 1000)):
            self.path = os.path.abspath(self.mktemp()) + "/ssa"
            directory = self.directory(mostEntries=most, mostBytes=size)
            for number in range(100):
                directory.write(key(number), bytes(100), self.time + DAY)
                found = [each.stat().st_size for each in Path(self.path).iterdir()]
                self.assertLessEqual(len(found), most)
                self.assertLessEqual(sum(found), size)
                self.assertIsNotNone(directory.read(key(number), 1000))
            other = self.directory(mostEntries=most, mostBytes=size)
            for number in range(100, 200):
                other.write(key(number), bytes(100), self.time + DAY)
            self.assertIsNone(directory.read(key(99), 1000))
            directory.write(key(200), bytes(2 * size), self.time + DAY)
            self.assertFalse(self.file(200).exists())
        self.assertEqual([], self.warned)

    def test_pruneTogether(self) -> None:
        """A file that another daemon removes meanwhile does not end the pruning."""
        directory = self.directory(mostEntries=1)
        for number in range(3):
            directory.write(key(number), b"a", self.time + DAY)
        real = os.scandir

        @contextlib.contextmanager
        def scan(path: str) -> Iterator[list[os.DirEntry[str]]]:
            Path(path, "gone.ocsp").write_bytes(b"")
            with real(path) as entries:
                found = list(entries)
            Path(path, "gone.ocsp").unlink()
            yield sorted(found, key=lambda entry: entry.name != "gone.ocsp")

        for number in range(1, 4):
            Path(self.path, key(number).fileName()).write_bytes(b"a")
        self.patch(os, "scandir", scan)
        directory.prune()
        self.assertEqual(1, len(os.listdir(self.path)))


class PlaceTests(SynchronousTestCase):
    """Where a user's own daemon keeps answers."""

    def test_cacheOf(self) -> None:
        """XDG Base Directory Specification: a path that is not absolute is ignored."""
        for environment, expected in (
            ({"XDG_CACHE_HOME": "/x", "HOME": "/home/u"}, "/x/ssa"),
            ({"XDG_CACHE_HOME": "x", "HOME": "/home/u"}, "/home/u/.cache/ssa"),
            ({"HOME": "/home/u"}, "/home/u/.cache/ssa"),
            ({"HOME": ""}, ""),
            ({}, ""),
        ):
            self.assertEqual(expected, cacheOf(environment))


class InFlightTests(SynchronousTestCase):
    """L{InFlight} and L{firstDefinite}."""

    def setUp(self) -> None:
        self.flights: InFlight[str] = InFlight()
        self.begun: list[Deferred[str]] = []
        self.cancelled = 0

    def begin(self) -> Deferred[str]:
        def cancel(_: object) -> None:
            self.cancelled += 1

        self.begun.append(Deferred(cancel))
        return self.begun[-1]

    def test_once(self) -> None:
        """Equal questions are asked once, others each."""
        first, second = self.flights.join("a", self.begin), self.flights.join("a", self.begin)
        other = self.flights.join("b", self.begin)
        self.assertEqual(2, len(self.begun))
        self.begun[0].callback("yes")
        self.assertEqual(("yes", "yes"), (self.successResultOf(first), self.successResultOf(second)))
        self.assertNoResult(other)
        self.flights.join("a", self.begin)
        self.assertEqual(3, len(self.begun))

    def test_failure(self) -> None:
        """A failure reaches everybody."""
        first, second = self.flights.join("a", self.begin), self.flights.join("a", self.begin)
        self.begun[0].errback(KeyError("x"))
        self.failureResultOf(first, KeyError)
        self.failureResultOf(second, KeyError)
        self.assertEqual(0, len(self.flights))

    def test_leaving(self) -> None:
        """Who leaves does not disturb the others; when the last one leaves, the work ends."""
        first, second = self.flights.join("a", self.begin), self.flights.join("a", self.begin)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(0, self.cancelled)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual((1, 0), (self.cancelled, len(self.flights)))

    def test_atOnce(self) -> None:
        """Work that is done at once."""

        def begin() -> Deferred[str]:
            done: Deferred[str] = Deferred()
            done.callback("now")
            return done

        self.assertEqual("now", self.successResultOf(self.flights.join("a", begin)))
        self.assertEqual(0, len(self.flights))

    def test_firstDefinite(self) -> None:
        """The first that has something; nothing if none has; a failure at once; the others are cancelled."""

        def several() -> list[Deferred[str | None]]:
            return [self.begin() for _ in range(3)]  # type: ignore[misc]

        asked = several()
        result = firstDefinite(asked)
        asked[1].callback(None)
        self.assertNoResult(result)
        asked[0].callback("a")
        self.assertEqual("a", self.successResultOf(result))
        self.assertEqual(1, self.cancelled)
        asked = several()
        result = firstDefinite(asked)
        for each in asked:
            each.callback(None)
        self.assertIsNone(self.successResultOf(result))
        asked = several()
        result = firstDefinite(asked)
        asked[2].errback(KeyError("x"))
        self.failureResultOf(result, KeyError)
        self.assertEqual(3, self.cancelled)
        asked = several()
        result = firstDefinite(asked)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(6, self.cancelled)
        self.assertIsNone(self.successResultOf(firstDefinite([])))
