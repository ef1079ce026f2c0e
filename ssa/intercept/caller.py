# SPDX-License-Identifier: MIT
"""
Who makes a call, and doing something for him with no more rights than he has.

The real sockets are made, bound and connected, and the files that options name are opened, in the caller's network
namespace, with his user, groups and capabilities.  An ordinary user's supervisor has the user's own rights anyway; root's
takes the caller's for the moment (credentials(7), capabilities(7)).  The supervisor has one thread, so nothing else runs
with them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import EACCES, EFBIG, EINVAL, EISDIR, EXDEV
from functools import lru_cache

from ssa.intercept import linux

MAXIMUM_FILE = 1 << 20
"""The most bytes of a file, or of all files of a directory, that an option may name."""

MAXIMUM_ENTRIES = 4096
"""The most entries of a directory that an option may name."""

_SELVES = (  # what these mean depends on who asks (proc(5)), and here it is not the program
    (b"/proc/self/", b"/proc/%d/"),
    (b"/proc/thread-self/", b"/proc/%d/"),
    (b"/dev/fd/", b"/proc/%d/fd/"),
    (b"/dev/stdin", b"/proc/%d/fd/0"),
)

_CA_ENDINGS = (b".pem", b".crt", b".cer", b".0")


def namespaceOf(pid: int, kind: str) -> int:
    """
    The inode number of a namespace of a process (namespaces(7)).

    @param kind: C{net}, C{mnt} or C{user}.
    """
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def _readSmall(path: str) -> bytes:
    """What a file of proc(5) of a few KiB holds."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


@lru_cache(maxsize=1)
def _ownUserNamespace() -> int:
    return namespaceOf(os.getpid(), "user")


@dataclass(frozen=True)
class Credentials:
    """
    What the thread behind a call may do.

    @ivar thread: the thread that called.
    @ivar pid: its process.
    @ivar uid: its effective user id.
    @ivar gid: its effective group id.
    @ivar groups: its supplementary groups.
    @ivar capabilities: its effective capabilities, as a mask; those over a user namespace of its own do not count.
    """

    thread: int
    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: int

    @classmethod
    def of(cls, thread: int) -> Credentials:
        """
        Look at a stopped thread (proc(5)).  The notification must be checked afterwards.

        @raise OSError: it is gone, or may not be looked at.
        """
        status = _readSmall(f"/proc/{thread}/status")

        def field(name: bytes) -> list[bytes]:
            start = status.index(b"\n" + name) + len(name) + 1
            return status[start : status.index(b"\n", start)].split()

        foreign = namespaceOf(thread, "user") != _ownUserNamespace()
        return cls(
            thread=thread,
            pid=int(field(b"Tgid:")[0]),
            uid=int(field(b"Uid:")[1]),
            gid=int(field(b"Gid:")[1]),
            groups=tuple(int(group) for group in field(b"Groups:")),
            capabilities=0 if foreign else int(field(b"CapEff:")[0], 16),
        )


@dataclass(frozen=True)
class Caller(Credentials):
    """
    The process behind a call, as the events describe it.

    @ivar comm: the name of the thread.
    @ivar executable: the path of the program.
    @ivar executableDevice: C{st_dev} of the program.
    @ivar executableInode: C{st_ino} of the program.
    @ivar mountNamespace: inode number.
    @ivar networkNamespace: inode number.
    """

    comm: str
    executable: str
    executableDevice: int
    executableInode: int
    mountNamespace: int
    networkNamespace: int

    @classmethod
    def of(cls, thread: int) -> Caller:
        """
        Look at a stopped thread (proc(5)).  The notification must be checked afterwards.

        @raise OSError: it is gone, or may not be looked at.
        """
        credentials = Credentials.of(thread)
        comm = _readSmall(f"/proc/{thread}/comm").decode("utf-8", "replace").rstrip("\n")
        path = f"/proc/{thread}/exe"
        executable = os.stat(path)
        return cls(
            thread=thread,
            pid=credentials.pid,
            uid=credentials.uid,
            gid=credentials.gid,
            groups=credentials.groups,
            capabilities=credentials.capabilities,
            comm=comm,
            executable=os.readlink(path),
            executableDevice=executable.st_dev,
            executableInode=executable.st_ino,
            mountNamespace=namespaceOf(thread, "mnt"),
            networkNamespace=namespaceOf(thread, "net"),
        )


class Rights:
    """
    Lends the supervisor the rights of callers.

    @ivar mayEnter: whether it can enter other network namespaces.
    """

    def __init__(self) -> None:
        self._root = self.mayEnter = os.geteuid() == 0
        self._network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._groups = os.getgroups()
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._effective = linux.getCapabilities()[0]
        self._own = Credentials.of(os.getpid())

    def whose(self, thread: int) -> Credentials:
        """
        Whose rights to lend for a stopped thread.  The notification must be checked afterwards.

        @return: an ordinary user's supervisor has no others than its own, whoever calls.
        @raise OSError: the thread is gone, or may not be looked at.
        """
        if not self._root:
            return replace(self._own, thread=thread)
        return Credentials.of(thread)

    @contextmanager
    def of(self, caller: Credentials, network: int | None = None) -> Iterator[None]:
        """
        Do something as the caller: with his credentials, and in a network namespace.

        @param network: the namespace's descriptor; L{None}: the supervisor's own.
        """
        if not self._root:
            yield
            return
        changed = (
            caller.uid != self._uid
            or caller.gid != self._gid
            or set(caller.groups) != set(self._groups)
            or caller.capabilities & self._effective != self._effective
        )
        if network is not None:
            linux.setns(network, linux.CLONE_NEWNET)
        try:
            if not changed:
                yield
                return
            try:
                os.setgroups(caller.groups)
                os.setegid(caller.gid)
                os.seteuid(caller.uid)
                linux.setEffectiveCapabilities(caller.capabilities & linux.getCapabilities()[1])
                yield
            finally:
                self._restore()
        finally:
            if network is not None:
                self._return()

    def _restore(self) -> None:
        """Take the own rights again; a supervisor that cannot must not go on with a caller's."""
        try:
            linux.setEffectiveCapabilities(self._effective)
            os.seteuid(self._uid)
            os.setegid(self._gid)
            os.setgroups(self._groups)
            linux.setEffectiveCapabilities(self._effective)
        except OSError:
            os.abort()

    def _return(self) -> None:
        try:
            linux.setns(self._network, linux.CLONE_NEWNET)
        except OSError:
            os.abort()


def readNamedFile(rights: Rights, caller: Credentials, path: bytes, directories: bool) -> bytes:
    """
    What a file holds that a program named in an option, read with the program's rights.

    A path is resolved as the program's own open(2) would: from its root and its working directory.  Only regular files are
    read.  For a directory, what its files with a usual ending hold (.pem, .crt, .cer, and OpenSSL's hashed .0), one
    after the other in the order of their names.

    @param directories: whether a directory is allowed.
    @raise OSError: that of open(2) as the program; EISDIR for a directory that is not allowed, EINVAL for another kind of
        file, EFBIG for more than L{MAXIMUM_FILE} bytes or L{MAXIMUM_ENTRIES} entries.
    """
    if not path or b"\0" in path:
        raise OSError(EINVAL, "a path is empty or contains a NUL")
    with _whereAPathBegins(caller, path) as (directory, rest, resolve), rights.of(caller):
        fd = _openFrom(directory, rest, resolve)
        try:
            kind = os.fstat(fd).st_mode
            if stat.S_ISREG(kind):
                return _readAll(fd, MAXIMUM_FILE)
            if not stat.S_ISDIR(kind):
                raise OSError(EINVAL, "is not a regular file")
            if not directories:
                raise OSError(EISDIR, os.strerror(EISDIR))
            return _readDirectory(fd)
        finally:
            os.close(fd)


_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@contextmanager
def _whereAPathBegins(caller: Credentials, path: bytes) -> Iterator[tuple[int | None, bytes, int]]:
    """
    The caller's root or working directory, looked up with our own rights: a process that has changed its user may not be
    looked at by that user.

    @return: the directory, or L{None} for our own root; the path from there; and how openat2(2) shall resolve it, or 0.
    """
    for alias, meant in _SELVES:
        if path.startswith(alias):
            path = meant % caller.thread + path[len(alias) :]
    base = f"/proc/{caller.thread}"
    isAbsolute = path.startswith(b"/")
    ownRoot, theirRoot = os.stat("/"), os.stat(f"{base}/root")
    isHere = (ownRoot.st_dev, ownRoot.st_ino) == (theirRoot.st_dev, theirRoot.st_ino)
    isHere = isHere and namespaceOf(caller.thread, "mnt") == namespaceOf(os.getpid(), "mnt")
    if isHere and isAbsolute:
        yield None, path, 0
        return
    start = f"{base}/root" if isAbsolute else f"{base}/cwd"
    directory = os.open(start, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory, path, 0 if isHere else linux.RESOLVE_IN_ROOT if isAbsolute else linux.RESOLVE_BENEATH
    finally:
        os.close(directory)


def _openFrom(directory: int | None, path: bytes, resolve: int) -> int:
    if directory is None or not resolve:
        return os.open(path, _OPEN, dir_fd=directory)
    try:
        return linux.openAt(directory, path, _OPEN, resolve)
    except OSError as error:
        if error.errno == EXDEV and resolve == linux.RESOLVE_BENEATH:
            raise OSError(EACCES, "a relative path may not leave the working directory in another root") from error
        raise


def _readAll(fd: int, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        part = os.read(fd, 65536)
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > limit:
            raise OSError(EFBIG, f"holds more than {MAXIMUM_FILE} bytes")
        parts.append(part)


def _readDirectory(directory: int) -> bytes:
    names = sorted(os.fsencode(name) for name in os.listdir(directory))
    if len(names) > MAXIMUM_ENTRIES:
        raise OSError(EFBIG, f"has more than {MAXIMUM_ENTRIES} entries")
    parts: list[bytes] = []
    size = 0
    for name in names:
        if not name.endswith(_CA_ENDINGS):
            continue
        fd = os.open(name, _OPEN, dir_fd=directory)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                part = _readAll(fd, MAXIMUM_FILE - size)
                size += len(part) + 1
                parts.append(part + b"\n")
        finally:
            os.close(fd)
    return b"".join(parts)
