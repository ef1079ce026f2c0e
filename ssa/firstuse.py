# SPDX-License-Identifier: MIT
"""
The validation plug-in C{first-use}: the key that a server has shown first is the one that it must show from then on.

What was seen is kept in a file of lines, C{IDENTITY PORT sha256/… TIME USER}, which an administrator can read and edit: a line
that is removed makes the next connection the first one again.  The file is replaced as a whole, under a lock, so that several
daemons may share it; each looks at it again before it decides.  All other checks stay in force.

The file is common to all users.  So nothing gets into it that only a program's own trusted certificates vouch for, and no
user can fill it.  It is read and written in a thread: both take many milliseconds when it is long, and a disk may take longer.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import errno
import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from ssa.errors import Cause
from ssa.policy.profile import Profile
from ssa.regularfiles import openRegular, readAtMost
from ssa.resolve import DaemonThreadPool
from ssa.tls.certificates import describeCertificate
from ssa.tls.pinning import keyDigest, pinText
from ssa.validation import IValidator, Peer

__all__ = [
    "MOST_ENTRIES",
    "MOST_ENTRIES_PER_USER",
    "FirstUseStore",
    "FirstUseValidator",
    "Seen",
    "StoreError",
    "StoreIsLocked",
    "Use",
]

MOST_ENTRIES = 10000
"""The most servers that a store knows; further ones are refused."""

MOST_ENTRIES_PER_USER = 2500
"""The most of them that programs of one user have been the first to use, unless it is root or the daemon's own."""

_LARGEST_FILE = 4 * 1024 * 1024
_LOCK_STEP = 0.02
"""Seconds until a store that another process changes is tried again."""

_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

_LINE = re.compile(
    r"(?P<identity>[a-z0-9._:-]{1,255}) (?P<port>[0-9]{1,5}) sha256/(?P<digest>[A-Za-z0-9+/]{43}=) (?P<time>\S{1,40})"
    r"(?: (?P<user>[0-9]{1,10}))?"
)

_HEADER = (
    "# Keys of servers as they were seen first: NAME PORT sha256/DIGEST TIME USER (ssa, Validation = first-use).\n"
    "# Remove the line of a server to accept the key that it shows next.\n"
)

Key = tuple[str, int]
"""An identity and a port."""


class Seen(NamedTuple):
    """
    What is known of a server.

    @ivar digest: of its key.
    @ivar time: when it was seen first.
    @ivar user: whose program it was that has seen it; -1 if that is not known.
    """

    digest: bytes
    time: str
    user: int = -1


class Use(NamedTuple):
    """
    A server that was connected to.

    @ivar key: its identity and port.
    @ivar digest: of its key.
    @ivar user: whose program it is; -1 if that is not known.
    @ivar isKept: whether it is kept if it is the first use.
    """

    key: Key
    digest: bytes
    user: int = -1
    isKept: bool = True


class StoreError(Exception):
    """A store cannot be used; the text says why."""


class StoreIsLocked(Exception):
    """Another process changes the store now."""


class FirstUseStore:
    """
    One file.

    @ivar path: of the file, which need not exist; its directory must.
    """

    def __init__(self, path: str, most: int = MOST_ENTRIES, mostPerUser: int = MOST_ENTRIES_PER_USER) -> None:
        """
        @param path: absolute.
        @param most: the most entries.
        @param mostPerUser: the most entries of one user.
        """
        self.path = path
        self._most = most
        self._mostPerUser = mostPerUser
        # Replaced as a whole: two threads look at it.
        self._read: tuple[tuple[int, ...], Mapping[Key, Seen]] = ((), {})

    def known(self) -> Mapping[Key, Seen] | None:
        """
        Get all that was seen, at once; for any thread.

        @return: L{None} if the file has changed since it was read, or cannot be looked at.
        """
        version, entries = self._read
        try:
            return entries if _version(os.lstat(self.path)) == version else None
        except FileNotFoundError:
            return None if version else entries
        except OSError:
            return None

    def find(self, key: Key) -> Seen | None:
        """
        Look a server up.

        @return: L{None} if it was not seen.
        @raise StoreError: the file cannot be read, or has a line that cannot be.
        """
        return self._refresh().get(key)

    def learn(self, uses: Sequence[Use], now: datetime.datetime) -> list[Seen | StoreError | None]:
        """
        Look servers up, and keep the keys of those that are not known yet.

        @return: what is known of each now, of several first uses the first one's; L{StoreError} for one that cannot be kept;
            L{None} for one that is not known and not to be kept.
        @raise StoreError: the store cannot be read or written; nothing is changed.
        @raise StoreIsLocked: try again.
        """
        entries = self._refresh()
        if all(use.key in entries or not use.isKept for use in uses):
            return [entries.get(use.key) for use in uses]
        time = now.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._locked():
            before = self._refresh()
            after = dict(before)
            counts = Counter(each.user for each in before.values())
            result = [self._learn(use, after, counts, time) for use in uses]
            if len(after) > len(before):
                self._write(after)
        return result

    def _learn(self, use: Use, entries: dict[Key, Seen], counts: Counter[int], time: str) -> Seen | StoreError | None:
        seen = entries.get(use.key)
        if seen is not None or not use.isKept:
            return seen
        if len(entries) >= self._most:
            return StoreError(f"{self.path} is full: it has {self._most} entries; remove those that are not needed")
        if use.user not in (0, os.geteuid()) and counts[use.user] >= self._mostPerUser:
            whose = f"user {use.user}" if use.user >= 0 else "no known user"
            return StoreError(f"{self.path} has {self._mostPerUser} entries of {whose}, which is the most that one may have")
        seen = Seen(use.digest, time, use.user)
        if _LINE.fullmatch(_line(use.key, seen).rstrip("\n")) is None or not 0 < use.key[1] < 65536:
            return StoreError(f"{self.path} cannot hold {use.key[0]!r} port {use.key[1]}")
        entries[use.key] = seen
        counts[use.user] += 1
        return seen

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; it is a file of its own, since the store is replaced."""
        path = self.path + ".lock"
        try:
            descriptor = os.open(path, _LOCK, 0o600)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                    raise StoreIsLocked(path) from error
                raise StoreError(f"{path}: {error.strerror}") from error
            yield
        finally:
            os.close(descriptor)

    def _refresh(self) -> Mapping[Key, Seen]:
        """Read the file if it is another one than last time; all that was seen."""
        try:
            with openRegular(self.path, followLinks=False) as file:
                status = os.fstat(file.fileno())
                version, entries = self._read
                if _version(status) == version:
                    return entries
                if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                    raise StoreError(f"{self.path}: others than the daemon's user and root can change it")
                data = readAtMost(file, _LARGEST_FILE)
        except FileNotFoundError:
            self._read = ((), {})
            return self._read[1]
        except IsADirectoryError as error:
            raise StoreError(f"{self.path}: it is no regular file") from error
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        entries = self._parse(data)
        self._read = (_version(status), entries)
        return entries

    def _parse(self, data: bytes) -> dict[Key, Seen]:
        found: dict[Key, Seen] = {}
        for number, line in enumerate(data.decode("utf-8", "backslashreplace").split("\n"), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            if match is None or not 0 < int(match["port"]) < 65536:
                raise StoreError(f"{self.path}:{number}: this is not NAME PORT sha256/DIGEST TIME USER")
            key = (match["identity"], int(match["port"]))
            if key in found:
                raise StoreError(f"{self.path}:{number}: {key[0]} port {key[1]} is there twice")
            try:
                digest = base64.b64decode(match["digest"], validate=True)
            except binascii.Error as error:
                raise StoreError(f"{self.path}:{number}: {error}") from error
            found[key] = Seen(digest, match["time"], int(match["user"]) if match["user"] else -1)
        return found

    def _write(self, entries: Mapping[Key, Seen]) -> None:
        """Replace the file so that at each moment, and after a crash, there is the old one or the new one."""
        data = (_HEADER + "".join(_line(key, seen) for key, seen in sorted(entries.items()))).encode("ascii")
        temporary = f"{self.path}.{os.getpid()}.new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            descriptor = os.open(temporary, _MAKE, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                    os.rename(temporary, self.path)
                    version = _version(os.fstat(descriptor))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            self._read = (version, entries)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}") from error


def _version(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _line(key: Key, seen: Seen) -> str:
    user = f" {seen.user}" if seen.user >= 0 else ""
    return f"{key[0]} {key[1]} {pinText(seen.digest)} {seen.time}{user}\n"


class _Turns:
    """
    The uses of one store that wait for it.  One thread works at a time, for all that wait: a write costs the same for one and
    for many.  Who is given up (L{Deferred.cancel}) waits no longer, so there are never more than handshakes.
    """

    def __init__(self, store: FirstUseStore, pool: ThreadPool) -> None:
        self._store = store
        self._pool = pool
        self._waiting: dict[Deferred[Seen | None], Use] = {}
        self._isBusy = False

    def learn(self, use: Use, reactor: Any) -> Deferred[Seen | None]:
        """
        See L{FirstUseStore.learn}.

        @return: fails with L{StoreError}.
        """

        def givenUp(done: Deferred[Seen | None]) -> None:
            self._waiting.pop(done, None)

        done: Deferred[Seen | None] = Deferred(givenUp)
        self._waiting[done] = use
        self._next(reactor)
        return done

    def _next(self, reactor: Any) -> None:
        if self._isBusy or not self._waiting:
            return
        self._isBusy = True
        # Until it has an answer each stays in the list: the store may be locked.
        turn = dict(self._waiting)
        now = datetime.datetime.now(datetime.timezone.utc)
        learned = deferToThreadPool(reactor, self._pool, self._store.learn, tuple(turn.values()), now)
        learned.addCallbacks(
            self._answered, self._failed, callbackArgs=(turn, reactor), errbackArgs=(turn, reactor)
        )

    def _answered(self, result: Sequence[Seen | StoreError | None], turn: Mapping[Deferred[Any], Use], reactor: Any) -> None:
        self._isBusy = False
        for done, seen in zip(turn, result, strict=True):
            if self._waiting.pop(done, None) is None:
                continue
            if isinstance(seen, StoreError):
                done.errback(seen)
            else:
                done.callback(seen)
        self._next(reactor)

    def _failed(self, failure: Failure, turn: Mapping[Deferred[Any], Use], reactor: Any) -> None:
        if isinstance(failure.value, StoreIsLocked):
            # Another process holds it for a moment; how long this may go on is the caller's business.
            deferLater(reactor, _LOCK_STEP, lambda: None).addCallback(lambda _: self._again(reactor))
            return
        self._isBusy = False
        for done in turn:
            if self._waiting.pop(done, None) is not None:
                done.errback(failure)
        self._next(reactor)

    def _again(self, reactor: Any) -> None:
        self._isBusy = False
        self._next(reactor)


@implementer(IPlugin, IValidator)
class FirstUseValidator:
    """Trust on first use."""

    name = "first-use"

    def __init__(self, pool: ThreadPool | None = None) -> None:
        """
        @param pool: reads and writes the files; L{None}: a thread of its own, which begins when it is needed.
        """
        self._pool = pool
        self._stores: dict[str, tuple[FirstUseStore, _Turns]] = {}

    def _storeAt(self, path: str) -> tuple[FirstUseStore, _Turns]:
        if self._pool is None:
            self._pool = DaemonThreadPool(0, 1, "first-use")
            self._pool.start()
        if path not in self._stores:
            store = FirstUseStore(path)
            self._stores[path] = store, _Turns(store, self._pool)
        return self._stores[path]

    def validate(self, peer: Peer, profile: Profile, reactor: Any) -> Deferred[None] | None:
        """
        See L{IValidator}.

        Of clients nothing is remembered: for them there is nothing to say.  Neither of servers that a program's own trusted
        certificates vouch for: they are only compared with what is known.

        @raise SSAError: EKEYREJECTED, another key was seen first, or the store cannot be used.
        """
        if not peer.isServer:
            return None
        path = profile.firstUseStore
        if not path:
            raise Cause.VALIDATION.error(f"no file keeps what was seen first ({profile.rule('FirstUseStore')})")
        try:
            digest = keyDigest(peer.certificate)
        except ValueError as trouble:
            raise Cause.MALFORMED.error(f"{trouble} {describeCertificate(peer.certificate)}") from trouble
        use = Use((peer.identity, peer.port), digest, peer.user, not peer.isProgramsTrust)
        store, turns = self._storeAt(path)
        known = store.known()
        if known is not None and (use.key in known or not use.isKept):
            _compare(use, known.get(use.key), profile)
            return None

        def refused(failure: Failure) -> Failure:
            if not isinstance(failure.value, StoreError):
                return failure
            raise Cause.VALIDATION.error(f"{failure.value} ({profile.rule('FirstUseStore')})") from failure.value

        return turns.learn(use, reactor).addCallbacks(lambda seen: _compare(use, seen, profile), refused)


def _compare(use: Use, seen: Seen | None, profile: Profile) -> None:
    """
    Compare a key with the one that was seen first.

    @param seen: L{None}: the server is not known.
    @raise SSAError: EKEYREJECTED, it is another one.
    """
    if seen is not None and seen.digest != use.digest:
        raise Cause.KEY_CHANGED.error(
            f"{use.key[0]} port {use.key[1]} had {pinText(seen.digest)} first, at {seen.time},"
            f" and has {pinText(use.digest)} now; if that is right, remove its line from {profile.firstUseStore}"
            f" ({profile.rule('FirstUseStore')})"
        )
