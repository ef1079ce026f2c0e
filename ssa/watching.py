# SPDX-License-Identifier: MIT
"""
Watches the files that the policy names: a renewed certificate comes into force by itself.

The files are looked at every few seconds.  inotify(7) would tell at once, but of an inode or of one directory's entries: what
renews certificates exchanges symbolic links somewhere on the path (certbot), or a whole directory (Kubernetes), and a file
on a network is not told of at all.  Every directory and every link on each path would have to be watched, and watched anew
after each change.  stat(2) of a handful of files follows the path as reading does, and costs microseconds.

A change is acted on when it has been the same for two looks, so that a certificate and its key, which are replaced one after
the other, are read together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.tls.policyfiles import signatureOf

__all__ = ["INTERVAL", "FilesWatch"]

INTERVAL = 2.0
"""Seconds between two looks."""


class FilesWatch:
    """Looks at files, and tells when they have changed."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, changed: Callable[[], None]) -> None:
        """
        @param clock: tells when to look.
        @param changed: called when files have changed since L{watch}, once for each change.
        """
        self._changed = changed
        self._paths: tuple[str, ...] = ()
        self._known: tuple[object, ...] = ()
        self._last: tuple[object, ...] = ()
        self._call = LoopingCall(self._look)
        self._call.clock = clock

    def watch(self, paths: Sequence[str], signature: tuple[object, ...]) -> None:
        """
        Watch these files, and no others any more.

        @param paths: files and directories.
        @param signature: what L{signatureOf} said of them before they were read.
        """
        self._paths = tuple(paths)
        self._known = self._last = signature

    def start(self) -> None:
        """Begin."""
        if not self._call.running:
            self._call.start(INTERVAL, now=False).addErrback(self._failed)

    def stop(self) -> None:
        """End."""
        if self._call.running:
            self._call.stop()

    def _failed(self, failure: Failure) -> None:
        self._log.failure("the files that the policy names are not watched any more", failure)

    def _look(self) -> None:
        if not self._paths:
            return
        found = signatureOf(self._paths)
        settled = found == self._last
        self._last = found
        if settled and found != self._known:
            self._known = found
            try:
                self._changed()
            except Exception:
                # A LoopingCall would end: the next change has to be seen all the same.
                self._log.failure("files have changed, and the daemon could not cope with it")
