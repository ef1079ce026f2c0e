# SPDX-License-Identifier: MIT
"""
The validation plug-in C{first-use}: the key that a server has shown first is the one that it must show from then on.

What was seen is kept in a file of lines, C{IDENTITY PORT sha256/… TIME}, which an administrator can read and edit: a line that
is removed makes the next connection the first one again.  The file is replaced as a whole, under a lock, so that several
daemons may share it; each looks at it again before it decides.  All other checks stay in force.
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
import stat
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer

from ssa.errors import Cause
from ssa.policy.profile import Profile
from ssa.tls.certificates import describeCertificate
from ssa.tls.pinning import keyDigest, pinText
from ssa.validation import IValidator, Peer

__all__ = ["MOST_ENTRIES", "FirstUseStore", "FirstUseValidator", "StoreError", "StoreIsLocked"]

MOST_ENTRIES = 10000
"""The most servers that a store knows; further ones are refused."""

_LARGEST_FILE = 4 * 1024 * 1024
_LOCK_STEP = 0.02
"""Seconds until a store that another process changes is tried again."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

_LINE = re.compile(
    r"(?P<identity>[a-z0-9._:-]{1,255}) (?P<port>[0-9]{1,5}) sha256/(?P<digest>[A-Za-z0-9+/]{43}=) (?P<time>\S{1,40})"
)

_HEADER = (
    "# Keys of servers as they were seen first: NAME PORT sha256/DIGEST TIME (ssa, Validation = first-use).\n"
    "# Remove the line of a server to accept the key that it shows next.\n"
)

Key = tuple[str, int]
"""An identity and a port."""


class StoreError(Exception):
    """A store cannot be used; the text says why."""


class StoreIsLocked(Exception):
    """Another process changes the store now."""


class FirstUseStore:
    """
    One file.

    @ivar path: of the file, which need not exist; its directory must.
    """

    def __init__(self, path: str, most: int = MOST_ENTRIES) -> None:
        """
        @param path: absolute.
        @param most: the most entries.
        """
        self.path = path
        self._most = most
        self._entries: dict[Key, tuple[bytes, str]] = {}
        self._version: tuple[int, ...] = ()

    def find(self, identity: str, port: int) -> tuple[bytes, str] | None:
        """
        Look a server up.

        @return: the digest of its key and the time when it was seen first; L{None} if it was not.
        @raise StoreError: the file cannot be read, or has a line that cannot be.
        """
        self._refresh()
        return self._entries.get((identity, port))

    def add(self, identity: str, port: int, digest: bytes, now: datetime.datetime) -> tuple[bytes, str]:
        """
        Keep the key of a server that is not known yet.

        @return: what is known of it now: of two that try at the same time, the second gets the first one's.
        @raise StoreError: the store cannot be written, or is full; nothing is changed.
        @raise StoreIsLocked: try again.
        """
        with self._locked():
            self._refresh()
            known = self._entries.get((identity, port))
            if known is not None:
                return known
            if len(self._entries) >= self._most:
                raise StoreError(f"{self.path} is full: it has {self._most} entries; remove those that are not needed")
            new = (digest, now.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
            self._write({**self._entries, (identity, port): new})
            self._refresh()
            return new

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

    def _refresh(self) -> None:
        """Read the file if it is another one than last time."""
        try:
            descriptor = os.open(self.path, _READ)
        except FileNotFoundError:
            self._entries, self._version = {}, ()
            return
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if version == self._version:
                return
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{self.path}: it is no regular file")
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise StoreError(f"{self.path}: others than the daemon's user and root can change it")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if len(data) > _LARGEST_FILE:
            raise StoreError(f"{self.path}: it is larger than {_LARGEST_FILE} bytes")
        self._entries = self._parse(data)
        self._version = version

    def _parse(self, data: bytes) -> dict[Key, tuple[bytes, str]]:
        found: dict[Key, tuple[bytes, str]] = {}
        for number, line in enumerate(data.decode("utf-8", "backslashreplace").split("\n"), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            if match is None or not 0 < int(match["port"]) < 65536:
                raise StoreError(f"{self.path}:{number}: this is not NAME PORT sha256/DIGEST TIME")
            key = (match["identity"], int(match["port"]))
            if key in found:
                raise StoreError(f"{self.path}:{number}: {key[0]} port {key[1]} is there twice")
            try:
                digest = base64.b64decode(match["digest"], validate=True)
            except binascii.Error as error:
                raise StoreError(f"{self.path}:{number}: {error}") from error
            found[key] = (digest, match["time"])
        return found

    def _write(self, entries: dict[Key, tuple[bytes, str]]) -> None:
        """Replace the file so that at each moment, and after a crash, there is the old one or the new one."""
        lines = [f"{name} {port} {pinText(digest)} {time}\n" for (name, port), (digest, time) in sorted(entries.items())]
        data = (_HEADER + "".join(lines)).encode("ascii")
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
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}") from error


@implementer(IPlugin, IValidator)
class FirstUseValidator:
    """Trust on first use."""

    name = "first-use"

    def __init__(self) -> None:
        self._stores: dict[str, FirstUseStore] = {}

    def validate(self, peer: Peer, profile: Profile, reactor: Any) -> Deferred[None] | None:
        """
        See L{IValidator}.

        Of clients nothing is remembered: for them there is nothing to say.

        @raise SSAError: EKEYREJECTED, another key was seen first, or the store cannot be used.
        """
        if not peer.isServer:
            return None
        path = profile.firstUseStore
        if not path:
            raise Cause.VALIDATION.error(f"no file keeps what was seen first ({profile.rule('FirstUseStore')})")
        store = self._stores.setdefault(path, FirstUseStore(path))
        try:
            return self._check(store, peer, profile, keyDigest(peer.certificate), reactor)
        except StoreError as trouble:
            raise Cause.VALIDATION.error(f"{trouble} ({profile.rule('FirstUseStore')})") from trouble
        except ValueError as trouble:
            raise Cause.MALFORMED.error(f"{trouble} {describeCertificate(peer.certificate)}") from trouble

    def _check(
        self, store: FirstUseStore, peer: Peer, profile: Profile, digest: bytes, reactor: Any
    ) -> Deferred[None] | None:
        known = store.find(peer.identity, peer.port)
        if known is None:
            try:
                known = store.add(peer.identity, peer.port, digest, datetime.datetime.now(datetime.timezone.utc))
            except StoreIsLocked:
                # Another process holds it for a moment; how long this may go on is the caller's business.
                waiting: Deferred[None] = deferLater(reactor, _LOCK_STEP, lambda: None)
                return waiting.addCallback(lambda _: self.validate(peer, profile, reactor))
        before, time = known
        if before != digest:
            raise Cause.KEY_CHANGED.error(
                f"{peer.identity} port {peer.port} had {pinText(before)} first, at {time}, and has {pinText(digest)} now;"
                f" if that is right, remove its line from {store.path} ({profile.rule('FirstUseStore')})"
            )
        return None
