# SPDX-License-Identifier: MIT
"""L{ssa.regularfiles}."""

from __future__ import annotations

import os
import socket
from errno import EISDIR, ENOENT, ENXIO

from twisted.trial.unittest import SynchronousTestCase

from ssa.regularfiles import readRegular


class ReadRegularTests(SynchronousTestCase):
    """Reading a file of which only the path is known."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())

    def write(self, data: bytes) -> None:
        """Make the file."""
        with open(self.path, "wb") as file:
            file.write(data)

    def refused(self, text: str, number: int = 0, most: int = 10) -> None:
        """It is refused, with a text and a number."""
        error = self.assertRaises(OSError, readRegular, self.path, most)
        self.assertEqual((number, text), (error.errno, error.strerror))

    def test_whole(self) -> None:
        """As large as it may be, or empty."""
        for data in (b"", b"0123456789"):
            self.write(data)
            self.assertEqual(data, readRegular(self.path, 10))

    def test_larger(self) -> None:
        """One byte more."""
        self.write(b"0123456789!")
        self.refused("it is larger than 10 bytes")

    def test_endless(self) -> None:
        """A file that says it is empty, and is not."""
        self.path = "/proc/self/status"
        self.refused("it is larger than 10 bytes")

    def test_link(self) -> None:
        """A symbolic link is followed."""
        self.write(b"data")
        link = self.mktemp()
        os.symlink(self.path, link)
        self.assertEqual(b"data", readRegular(link, 10))

    def test_missing(self) -> None:
        """There is none."""
        self.refused(os.strerror(ENOENT), ENOENT)

    def test_fifo(self) -> None:
        """A FIFO without a writer is not waited for."""
        os.mkfifo(self.path)
        self.refused("it is no regular file")

    def test_socket(self) -> None:
        """A socket cannot be opened."""
        self.path = f"socket{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(self.path)
            self.addCleanup(os.unlink, self.path)
            self.refused(os.strerror(ENXIO), ENXIO)

    def test_device(self) -> None:
        """A device gives what is endless."""
        self.path = "/dev/zero"
        self.refused("it is no regular file")

    def test_directory(self) -> None:
        """A directory; its descriptor is closed."""
        self.path = "/"
        before = os.listdir("/proc/self/fd")
        self.refused(os.strerror(EISDIR), EISDIR)
        self.assertEqual(before, os.listdir("/proc/self/fd"))
