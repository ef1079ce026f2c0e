# SPDX-License-Identifier: MIT
"""
A path in the file system at which one process at a time has a unix socket.

A lock beside the socket keeps two daemons from taking the path from each other.  What is no socket of a dead process is never
removed, no symbolic link is followed, and only the socket that was made here is removed at the end.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from errno import EADDRINUSE, ECONNREFUSED, ENOENT

from twisted.logger import Logger

__all__ = ["SocketPlace"]

_BACKLOG = 128


class SocketPlace:
    """
    One such path.

    @ivar path: the socket's.
    """

    _log = Logger()

    def __init__(self, path: str, kind: int) -> None:
        """
        @param path: the socket's.
        @param kind: C{socket.SOCK_SEQPACKET} or C{socket.SOCK_STREAM}.
        """
        self.path = path
        self._type = kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._lock = -1

    @property
    def isTaken(self) -> bool:
        """Whether it is this object that holds the path."""
        return self._lock >= 0

    def take(self) -> socket.socket:
        """
        Make the directory, which everybody can enter, and the socket, to which everybody can connect.

        @return: it listens, and never blocks; it stays this object's.
        @raise OSError: EADDRINUSE, another process has the path or something that is no socket is in the way; or the operating
            system refuses.  Nothing is held then.
        """
        try:
            directory = os.path.dirname(self.path)
            if directory and not os.path.isdir(directory):
                os.makedirs(directory, 0o755)
                os.chmod(directory, 0o755)  # noqa: S103 - everybody has to reach the socket
            self._takeLock()
            self._removeStale()
            self._socket = listener = socket.socket(socket.AF_UNIX, self._type)
            listener.bind(self.path)
            self._openToAll()
            listener.listen(_BACKLOG)
        except OSError:
            self.release()
            raise
        return listener

    def release(self) -> None:
        """Close the socket and the lock, and remove the path if it is still ours.  May be called again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._identity is not None:
            identity, self._identity = self._identity, None
            try:
                status = os.stat(self.path, follow_symlinks=False)
                if (status.st_dev, status.st_ino) == identity:
                    os.unlink(self.path)
            except OSError as error:
                if error.errno != ENOENT:
                    self._log.warn("the socket could not be removed: {why}", why=error.strerror)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _takeLock(self) -> None:
        """Hold the lock of this path until L{release}; the file stays, since removing it would be a race."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._lock = os.open(self.path + ".lock", flags, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(EADDRINUSE, "another daemon serves this path") from None

    def _removeStale(self) -> None:
        """Remove a socket that a dead daemon has left, and nothing else."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise OSError(EADDRINUSE, "something that is no socket is in the way")
        with socket.socket(socket.AF_UNIX, self._type) as probe:
            if probe.connect_ex(self.path) not in (ECONNREFUSED, ENOENT):
                raise OSError(EADDRINUSE, "another process serves this path")
        os.unlink(self.path)

    def _openToAll(self) -> None:
        """
        Let everybody connect: what a peer may do follows from its credentials.

        chmod(2) would follow a link that somebody has put there meanwhile; a descriptor of the path itself (O_PATH, open(2))
        stays what it is, and has its mode changed by its name in C{/proc}.
        """
        itself = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(itself)
            if not stat.S_ISSOCK(status.st_mode):
                raise OSError(EADDRINUSE, "somebody has put something else in the place of the socket")
            self._identity = (status.st_dev, status.st_ino)
            os.chmod(f"/proc/self/fd/{itself}", 0o666)  # noqa: S103 - see above
        finally:
            os.close(itself)
