# SPDX-License-Identifier: MIT
"""
Options of the levels below TLS: they act on the real connection, but for those that could bypass TLS.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time

from ssa.test.conformance.case import LIBC, ClientRole, PairCase, ServerRole, TLSCase
from ssa.test.conformance.peers import SECONDS, echo

BYPASSES = {
    "TCP_ULP": (socket.IPPROTO_TCP, 31, b"tls\0"),
    "TCP_REPAIR": (socket.IPPROTO_TCP, 19, struct.pack("i", 1)),
    "TCP_MD5SIG": (socket.IPPROTO_TCP, 14, bytes(216)),
    "SOL_TLS, TLS_TX": (282, 1, bytes(40)),
    "SOL_TLS, TLS_RX": (282, 2, bytes(40)),
}
TCP_ZEROCOPY_RECEIVE = 35
TCP_FASTOPEN_CONNECT = 30
IPV6_ADDRFORM = 1


def getRaw(sock: socket.socket, level: int, name: int, size: int) -> int:
    """getsockopt(2) itself; 0 or the errno."""
    buffer, length = ctypes.create_string_buffer(size), ctypes.c_uint(size)
    ctypes.set_errno(0)
    return 0 if LIBC.getsockopt(sock.fileno(), level, name, buffer, ctypes.byref(length)) == 0 else ctypes.get_errno()


class _Live(PairCase):
    def test_keepAlive(self) -> None:
        """Options of a live connection can be set and read back, and leave O_NONBLOCK as it is."""
        sock, peer = self.pair()
        for blocking in (True, False):
            sock.setblocking(blocking)
            for level, name, value in (
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 7),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
                (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
                (socket.SOL_SOCKET, socket.SO_PRIORITY, 2),
            ):
                with self.subTest(level=level, name=name):
                    sock.setsockopt(level, name, value)
                    self.assertEqual(sock.getsockopt(level, name), value)
                    self.assertEqual(os.get_blocking(sock.fileno()), blocking)
        sock.setblocking(True)
        peer.send(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def test_buffers(self) -> None:
        """Buffer sizes can be changed while data flows."""
        sock, peer = self.pair()
        for size in (4096, 1 << 20):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            sock.sendall(b"x" * 3000)
            self.assertEqual(peer.exactly(3000), b"x" * 3000)
            peer.send(b"y" * 100_000)
            self.assertEqual(self.exactly(sock, 100_000), b"y" * 100_000)

    def test_bypasses(self) -> None:
        """What could go around TLS: ENOPROTOOPT, and the connection goes on."""
        sock, peer = self.pair()
        for title, (level, name, value) in BYPASSES.items():
            with self.subTest(option=title):
                self.fails(errno.ENOPROTOOPT, sock.setsockopt, level, name, value)
        self.assertEqual(getRaw(sock, socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, 64), errno.ENOPROTOOPT)
        self.assertEqual(getRaw(sock, 282, 1, 40), errno.ENOPROTOOPT)
        peer.send(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def test_cork(self) -> None:
        """TCP_CORK holds back what is sent, until it is taken off."""
        sock, peer = self.pair()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        sock.sendall(b"a")
        sock.sendall(b"b")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        self.assertEqual(peer.exactly(2), b"ab")

    def test_what(self) -> None:
        """SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN and SO_ERROR."""
        sock, _ = self.pair()
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), socket.SOCK_STREAM)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN), socket.AF_INET)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), 205)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), 0)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_signals(self) -> None:
        """O_ASYNC: SIGIO when data comes."""
        sock, peer = self.pair()
        caught: list[int] = []
        previous = signal.signal(signal.SIGIO, lambda number, _: caught.append(number))
        self.addCleanup(signal.signal, signal.SIGIO, previous)
        flags = fcntl.fcntl(sock, fcntl.F_GETFL)
        fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
        self.addCleanup(fcntl.fcntl, sock, fcntl.F_SETFL, flags)  # before the handler goes: the default of SIGIO is the end
        fcntl.fcntl(sock, fcntl.F_SETFL, flags | os.O_ASYNC)
        peer.send(b"x")
        self.eventually(lambda: bool(caught), "SIGIO")
        self.assertEqual(sock.recv(1), b"x")


class ClientLive(ClientRole, _Live):
    """As client."""


class ServerLive(ServerRole, _Live):
    """As server."""


class Early(TLSCase):
    """Before connect and listen."""

    def test_bypasses(self) -> None:
        """The same options on a new socket."""
        sock = self.clientSocket()
        for title, (level, name, value) in BYPASSES.items():
            with self.subTest(option=title):
                self.fails(errno.ENOPROTOOPT, sock.setsockopt, level, name, value)
        self.fails(errno.EOPNOTSUPP, sock.setsockopt, socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        six = self.clientSocket(socket.AF_INET6)
        self.fails(errno.ENOPROTOOPT, six.setsockopt, socket.IPPROTO_IPV6, IPV6_ADDRFORM, socket.AF_INET)
        sock.connect(self.server(echo).address)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def test_listener(self) -> None:
        """SO_ACCEPTCONN and SO_PROTOCOL of a listener."""
        listener = self.listener()
        self.assertEqual(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), 1)
        self.assertEqual(listener.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), 205)

    def test_carried(self) -> None:
        """What is set before connect is there after it."""
        sock = self.clientSocket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        sock.connect(self.server(echo).address)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 5000)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), 40_000)

    def test_ordinary(self) -> None:
        """Ordinary sockets of the same program are as they always were."""
        sock = self.keep(socket.socket())
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), socket.IPPROTO_TCP)
        plain = self.keep(socket.socket())
        listener = self.plainListener()
        plain.connect(listener.getsockname())
        accepted = self.keep(listener.accept()[0])
        plain.send(b"!", socket.MSG_OOB)
        self.assertTrue(select.select([], [], [accepted], SECONDS)[2])
        self.assertEqual(accepted.recv(1, socket.MSG_OOB), b"!")
        time.sleep(0)
