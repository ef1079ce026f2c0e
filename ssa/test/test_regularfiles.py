# SPDX-License-Identifier: MIT
"""L{ssa.regularfiles}."""

from __future__ import annotations

import os
import socket
from errno import EACCES, EFBIG, EINVAL, EISDIR, ELOOP, ENOENT, ENXIO
from unittest import skipIf

from twisted.trial.unittest import SynchronousTestCase

from ssa.regularfiles import NoRegularFile, openRegular, readAtMost, readRegular


class ReadRegularTests(SynchronousTestCase):
    """Reading a file of which only the path is known."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())

    def write(self, data: bytes) -> None:
        """Make the file."""
        with open(self.path, "wb") as file:
            file.write(data)

    def refused(self, text: str, number: int = EINVAL, most: int = 10) -> None:
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
        self.refused("it is larger than 10 bytes", EFBIG)

    def test_growing(self) -> None:
        """What counts is how much there is when it is read, not what the file said of itself when it was opened."""
        self.write(b"01234")
        with openRegular(self.path) as file, open(self.path, "ab") as more:
            self.assertEqual(5, os.fstat(file.fileno()).st_size)
            more.write(b"56789!")
            more.flush()
            error = self.assertRaises(OSError, readAtMost, file, 10)
        self.assertEqual((EFBIG, "it is larger than 10 bytes"), (error.errno, error.strerror))

    def test_endless(self) -> None:
        """A file that says it is empty, and is not."""
        self.path = "/proc/self/status"
        self.refused("it is larger than 10 bytes", EFBIG)

    def test_link(self) -> None:
        """A symbolic link is followed."""
        self.write(b"data")
        link = self.mktemp()
        os.symlink(self.path, link)
        self.assertEqual(b"data", readRegular(link, 10))
        error = self.assertRaises(OSError, readRegular, link, 10, followLinks=False)
        self.assertEqual(ELOOP, error.errno)
        self.assertEqual(b"data", readRegular(self.path, 10, followLinks=False))

    def test_missing(self) -> None:
        """There is none."""
        self.refused(os.strerror(ENOENT), ENOENT)

    @skipIf(os.geteuid() == 0, "root may read everything")
    def test_forbidden(self) -> None:
        """One that this process may not read."""
        self.write(b"data")
        os.chmod(self.path, 0)
        self.refused(os.strerror(EACCES), EACCES)
        self.assertRaises(PermissionError, readRegular, self.path, 10)

    def test_closed(self) -> None:
        """No program that is started meanwhile gets the file (O_CLOEXEC), and nothing stays open that was refused."""
        self.write(b"data")
        with openRegular(self.path) as file:
            self.assertFalse(os.get_inheritable(file.fileno()))
        before = os.listdir("/proc/self/fd")
        self.assertRaises(NoRegularFile, openRegular, "/dev/null")
        self.assertEqual(before, os.listdir("/proc/self/fd"))

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
