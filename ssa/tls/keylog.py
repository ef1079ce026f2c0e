# SPDX-License-Identifier: MIT
"""
The secrets of connections for a tool that decrypts recorded traffic, where the administrator has turned it on.

The format is that of NSS key logs (RFC 9850, SSLKEYLOGFILE), which Wireshark reads.  The file is named by the profile and by
nothing else: no environment variable counts.  It is made with mode 0600, it never is a link, and it belongs to the daemon's
user; trouble with it is logged once and never breaks a connection.
"""

from __future__ import annotations

import errno
import os
import stat

from OpenSSL import SSL
from twisted.logger import Logger

__all__ = ["LARGEST_KEY_LOG", "KeyLog", "keyLogFor", "reopenKeyLogs", "useKeyLog"]

LARGEST_KEY_LOG = 1024 * 1024 * 1024
"""The most bytes of a key log; then it gets no more lines."""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class KeyLog:
    """
    One file.

    @ivar path: of the file.
    @ivar isBroken: whether there was trouble; until L{reopen} there are no more lines then.
    """

    _log = Logger()

    def __init__(self, path: str, most: int = LARGEST_KEY_LOG) -> None:
        """
        @param path: of the file, which need not exist.
        @param most: the bytes that it may have.
        """
        self.path = path
        self.isBroken = False
        self._most = most
        self._descriptor = -1

    def write(self, line: bytes) -> None:
        """
        Add a line.

        @param line: as OpenSSL gives it, without its end.
        """
        if self.isBroken:
            return
        try:
            if self._descriptor < 0:
                self._open()
            data = line + b"\n"
            if os.fstat(self._descriptor).st_size + len(data) > self._most:
                raise OSError(errno.EFBIG, f"it has reached {self._most} bytes, and gets no more lines")
            if os.write(self._descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, "a line could not be written as a whole")
        except OSError as error:
            self.isBroken = True
            self._close()
            self._log.error(
                "the key log {path} cannot be written, connections go on without: {why}",
                path=self.path,
                why=error.strerror or str(error),
            )

    def reopen(self) -> None:
        """Open the file again with the next line: it may have been moved away, or what was wrong with it be mended."""
        self._close()
        self.isBroken = False

    def _open(self) -> None:
        descriptor = os.open(self.path, _FLAGS, 0o600)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            if status.st_uid != os.geteuid() or status.st_mode & 0o077 or status.st_nlink != 1:
                raise OSError(errno.EPERM, "the file must belong to the daemon's user, with mode 0600 and one name only")
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_logs: dict[str, KeyLog] = {}
"""By path: what is open, or was tried.  The paths are the administrator's."""


def keyLogFor(path: str) -> KeyLog:
    """Find the key log of a path, or make it."""
    found = _logs.get(path)
    if found is None:
        found = _logs[path] = KeyLog(path)
    return found


def reopenKeyLogs() -> None:
    """Open every key log again when it is used next: the administrator has had the configuration read again."""
    for log in _logs.values():
        log.reopen()


def useKeyLog(context: SSL.Context, path: str) -> None:
    """
    Have a context's connections write their secrets: SSL_CTX_set_keylog_callback(3).

    @param context: of a profile with a C{keyLogFile}, and used for no other profile's connections.
    @param path: of the file.
    """
    log = keyLogFor(path)
    context.set_keylog_callback(lambda _, line: log.write(line))
