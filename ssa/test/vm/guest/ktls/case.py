# SPDX-License-Identifier: MIT
"""What the cases have in common: the daemon, and connections of both roles."""

from __future__ import annotations

import errno
import faulthandler
import select
import socket
import struct
import subprocess
import sys
import time
import unittest
from collections.abc import Callable
from typing import ClassVar, TypeVar

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import Thread
from ssa.test.conformance.peers import clientContext, serverContext
from ssa.test.vm.guest.ktls.daemon import Way
from ssa.test.vm.guest.ktls.records import RecordPeer

SECONDS = 60.0
"""How long anything may take: the machine is emulated, and its host may be busy."""

BUFFER = 32768
"""Bytes; the emulated processor decrypts slowly what buffers hold."""

T = TypeVar("T")


class Daemon:
    """A daemon in a process."""

    def __init__(self) -> None:
        """Start one and wait until it is registered."""
        command = [sys.executable, "-m", "ssa.test.vm.guest.ktls.daemon"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise AssertionError("the daemon does not start")

    def kill(self) -> None:
        """
        End it at once.

        @raise subprocess.TimeoutExpired: it does not end.
        """
        self._process.kill()
        self._process.wait(SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()


class KTLSCase(unittest.TestCase):
    """
    A case with connections.

    @cvar daemons: the daemon that serves all cases, in a list.
    """

    daemons: ClassVar[list[Daemon]] = []
    maxDiff = 500

    def setUp(self) -> None:
        if not self.daemons:
            self.daemons.append(Daemon())
        faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)

    def keep(self, thing: T) -> T:
        """Close something after the case."""
        self.addCleanup(thing.close)  # type: ignore[attr-defined]
        return thing

    def tlsSocket(self, way: Way = Way.GOOD) -> socket.socket:
        """A socket that is to connect."""
        sock = self.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS))
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, way.value.encode())
        return sock

    def tlsListener(self, way: Way = Way.GOOD) -> socket.socket:
        """A socket that listens."""
        listener = self.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS))
        listener.setsockopt(IPPROTO_TLS, Option.TLS_HOSTNAME, way.value.encode())
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        return listener

    def asClient(self, way: Way = Way.GOOD) -> tuple[socket.socket, RecordPeer]:
        """A program that has connected, and its peer."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(SECONDS)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            peer = Thread(lambda: RecordPeer(_blocking(listener.accept()[0]), serverContext(version=SSL.TLS1_3_VERSION), True))
            sock = self.tlsSocket(way)
            sock.connect(listener.getsockname())
            return sock, self.keep(peer.result(SECONDS))

    def asServer(self, way: Way = Way.GOOD) -> tuple[socket.socket, RecordPeer]:
        """A program that has accepted a connection, and its peer."""
        listener = self.tlsListener(way)

        def shakeHands() -> RecordPeer:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            sock.connect(listener.getsockname())
            _blocking(sock)
            return RecordPeer(sock, clientContext(version=SSL.TLS1_3_VERSION), False)

        peer = Thread(shakeHands)
        sock, _ = listener.accept()
        listener.close()
        return self.keep(sock), self.keep(peer.result(SECONDS))

    def connected(self, way: Way = Way.GOOD) -> tuple[socket.socket, RecordPeer]:
        """A connection, of the role that the class is for."""
        return self.asClient(way)

    # what programs see

    def said(self, sock: socket.socket, option: Option = Option.TLS_DATA_PATH) -> str:
        """An option that the daemon answers."""
        return sock.getsockopt(IPPROTO_TLS, option, 256).rstrip(b"\0").decode()

    def assertFails(self, number: int, call: Callable[..., object], *arguments: object) -> None:
        """A call fails with an errno."""
        with self.assertRaises(OSError) as caught:
            call(*arguments)
        self.assertEqual(errno.errorcode.get(caught.exception.errno or 0), errno.errorcode[number])

    def assertEnds(self, sock: socket.socket) -> None:
        """The stream ends cleanly, and stays at its end."""
        for flags in (0, socket.MSG_PEEK, socket.MSG_WAITALL, socket.MSG_DONTWAIT, 0):
            self.assertEqual(sock.recv(64, flags), b"")
        self.assertTrue(self.ready(sock, select.POLLIN) & select.POLLRDHUP)

    def assertBroken(self, sock: socket.socket, number: int = errno.ECONNRESET) -> None:
        """The stream ends with an error, and never turns into a clean end."""
        for flags in (0, socket.MSG_PEEK, socket.MSG_WAITALL, socket.MSG_DONTWAIT, 0):
            self.assertFails(number, sock.recv, 64, flags)
        self.assertTrue(self.ready(sock, select.POLLIN))

    def ready(self, sock: socket.socket, events: int, seconds: float = SECONDS) -> int:
        """What poll says of a socket; 0 if nothing happens."""
        poll = select.poll()
        poll.register(sock, events | select.POLLRDHUP)
        found = poll.poll(seconds * 1000)
        return found[0][1] if found else 0

    def arrived(self, sock: socket.socket, size: int) -> None:
        """Wait until so many bytes of data can be read."""
        self.eventually(lambda: len(sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)) >= size)

    def eventually(self, holds: Callable[[], object], seconds: float = SECONDS) -> None:
        """Wait until something holds; EAGAIN means that it does not yet."""
        end = time.monotonic() + seconds
        while True:
            try:
                if holds():
                    return
            except BlockingIOError:
                pass
            if time.monotonic() > end:
                self.fail("it does not come true")
            time.sleep(0.01)


def timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Set SO_RCVTIMEO or SO_SNDTIMEO."""
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


def _blocking(sock: socket.socket) -> socket.socket:
    sock.settimeout(None)
    timeout(sock, socket.SO_RCVTIMEO, SECONDS)
    return sock
