# SPDX-License-Identifier: MIT
"""
Answers that are kept: in memory, and in files so that a restart does not lose them.

What is kept is what came from the network, and whoever takes it out verifies it as if it had just come: neither a file that
somebody changed nor an entry under a wrong key can make a certificate good.  Entries live until the answer's own end, seven
days at most.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger

from ssa.regularfiles import NoRegularFile, openRegular
from ssa.revocation.verdict import CLOCK_SKEW, LONGEST_LIFE

__all__ = ["LARGEST_CACHE", "MOST_ENTRIES", "Cache", "Directory", "Entry", "Key"]

MOST_ENTRIES = 4096
"""How many answers are kept, in memory and on disk each."""

LARGEST_CACHE = 64 * 1024 * 1024
"""How many bytes they may have together, in memory and on disk each.  A list that has been read takes twice its size."""

_MAGIC = b"ssa-revocation 1"
_LONGEST_HEADER = 256
_PRUNE_EVERY = 64


@dataclass(frozen=True)
class Key:
    """
    What an answer is an answer to.

    @ivar kind: C{"ocsp"} or C{"crl"}.
    @ivar issuerID: L{Subject.issuerID<ssa.revocation.verdict.Subject.issuerID>}.
    @ivar what: a serial number, or a list's URL.
    """

    kind: str
    issuerID: bytes
    what: str

    def fileName(self) -> str:
        """Name the file of the answer."""
        digest = hashlib.sha256(self.issuerID + self.what.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{digest}.{self.kind}"


@dataclass
class Entry:
    """
    An answer.

    @ivar data: as it came.
    @ivar until: when it is forgotten.
    @ivar parsed: what was made of it in this process, and has been verified; C{None} if nothing was.
    """

    data: bytes
    until: float
    parsed: Any = None


class Cache:
    """
    Answers in memory; the one that was used longest ago goes first.

    @ivar size: bytes of all of them.
    """

    def __init__(
        self, now: Callable[[], float] = time.time, mostEntries: int = MOST_ENTRIES, mostBytes: int = LARGEST_CACHE
    ) -> None:
        """
        @param now: the time.
        @param mostEntries: how many.
        @param mostBytes: how many bytes.
        """
        self._now = now
        self._mostEntries = mostEntries
        self._mostBytes = mostBytes
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Entry | None:
        """Find an answer that has not ended."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.until <= self._now():
            self.remove(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an answer, for seven days at most; one that is larger than the whole cache is not kept."""
        now = self._now()
        entry.until = min(entry.until, now + LONGEST_LIFE)
        self.remove(key)
        if entry.until <= now or len(entry.data) > self._mostBytes:
            return
        self._entries[key] = entry
        self.size += len(entry.data)
        while len(self._entries) > self._mostEntries or self.size > self._mostBytes:
            self.remove(next(iter(self._entries)))

    def remove(self, key: Key) -> None:
        """Forget an answer."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size -= len(entry.data)


class Directory:
    """
    Answers in files, one for each; its methods wait for the disk and belong into a thread.

    A directory that cannot be used, or in which others could write, is not used; that is logged, once.
    """

    log = Logger()

    def __init__(
        self,
        path: str,
        now: Callable[[], float] = time.time,
        mostEntries: int = MOST_ENTRIES,
        mostBytes: int = LARGEST_CACHE,
    ) -> None:
        """
        @param path: absolute; it is made when the first answer is to be kept.
        @param now: the time.
        @param mostEntries: how many files.
        @param mostBytes: how many bytes in all files.
        """
        self.path = path
        self._now = now
        self._mostEntries = mostEntries
        self._mostBytes = mostBytes
        self._written = 0
        # What is there, as far as this process knows: other ones may use the directory too.
        self._entries = 0
        self._bytes = 0
        self._complained: set[str] = set()

    def read(self, key: Key, largest: int) -> Entry | None:
        """
        Read an answer.

        @param largest: the most bytes that it may have.
        @return: C{None} if there is none that counts; a file that is damaged is removed.
        """
        path = os.path.join(self.path, key.fileName())
        try:
            if not self._isUsable():
                return None
            with openRegular(path, followLinks=False) as file:
                data = file.read(largest + _LONGEST_HEADER + 1)
            return self._parse(data, key, largest)
        except FileNotFoundError:
            return None
        except (NoRegularFile, ValueError) as error:
            why = error.strerror if isinstance(error, NoRegularFile) else error
            self.log.warn("{path}: {error}; it is ignored and removed", path=path, error=why)
            self._remove(path)
            return None
        except OSError as error:
            self._complain(error)
            return None

    def _parse(self, data: bytes, key: Key, largest: int) -> Entry | None:
        header, newline, content = data[:_LONGEST_HEADER].partition(b"\n")
        content = data[len(header) + 1 :]
        parts = header.split(b" ")
        if not newline or b" ".join(parts[:2]) != _MAGIC or len(parts) != 6 or parts[2] != key.kind.encode("ascii"):
            raise ValueError("it is no kept answer of this version")
        if len(content) > largest:
            raise ValueError(f"it has more than {largest} bytes")
        if hashlib.sha256(content).hexdigest().encode("ascii") != parts[5]:
            raise ValueError("it is damaged")
        stored, until = float(parts[3]), float(parts[4])
        now = self._now()
        if not (stored <= now + CLOCK_SKEW and until <= stored + LONGEST_LIFE + 1 and now < until):
            self._remove(os.path.join(self.path, key.fileName()))
            return None
        return Entry(content, until)

    def write(self, key: Key, data: bytes, until: float) -> None:
        """
        Keep an answer: readers see the old file or the new one, complete.  One that is larger than all may be is not kept.
        """
        now = self._now()
        until = min(until, now + LONGEST_LIFE)
        digest = hashlib.sha256(data).hexdigest()
        content = f"{_MAGIC.decode()} {key.kind} {now:.0f} {until:.0f} {digest}\n".encode("ascii") + data
        if len(content) > self._mostBytes:
            return
        path = os.path.join(self.path, key.fileName())
        temporary = f"{path}.{secrets.token_hex(8)}.new"
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            if not self._isUsable():
                return
            self._makeRoom(len(content))
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(content)
                os.replace(temporary, path)
            except BaseException:
                self._remove(temporary)
                raise
            self._written += 1
            self._entries += 1
            self._bytes += len(content)
        except OSError as error:
            self._complain(error)

    def _makeRoom(self, size: int) -> None:
        """Prune before a file of so many bytes if it would be too much, and now and then; if it is, for a while."""
        isFull = self._entries >= self._mostEntries or self._bytes + size > self._mostBytes
        if isFull:
            self.prune(max(1, self._mostEntries // 8), max(size, self._mostBytes // 8))
        elif self._written % _PRUNE_EVERY == 0:
            self.prune(1, size)

    def prune(self, moreEntries: int = 0, moreBytes: int = 0) -> None:
        """
        Remove what is too old or too much, the oldest first, and what a daemon that was killed has left.

        @param moreEntries: for how many more there shall be room.
        @param moreBytes: how many bytes they have together.
        """
        now = self._now()
        files = []
        with os.scandir(self.path) as found:
            for entry in found:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # another daemon was faster
                if entry.name.endswith(".new"):
                    if status.st_mtime < now - 3600:
                        self._remove(entry.path)
                elif entry.name.endswith((".ocsp", ".crl")):
                    files.append((status.st_mtime, status.st_size, entry.path))
        files.sort(reverse=True)
        self._entries = self._bytes = 0
        size = 0
        for number, (written, length, path) in enumerate(files):
            size += length
            isTooMuch = number >= self._mostEntries - moreEntries or size > self._mostBytes - moreBytes
            if isTooMuch or written < now - LONGEST_LIFE:
                self._remove(path)
            else:
                self._entries += 1
                self._bytes += length

    def _isUsable(self) -> bool:
        """
        Whether nobody else can write into the directory.

        @raise OSError: it is not there.
        """
        status = os.stat(self.path)
        if not stat.S_ISDIR(status.st_mode):
            self._complain(NotADirectoryError(0, "it is no directory"))
            return False
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            self._complain(PermissionError(0, "others may write into it"))
            return False
        return True

    def _complain(self, error: OSError) -> None:
        text = error.strerror or str(error)
        if text not in self._complained and len(self._complained) < 16:
            self._complained.add(text)
            self.log.warn("{path}: {error}; answers are kept in memory only", path=self.path, error=text)

    def _remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._complain(error)
