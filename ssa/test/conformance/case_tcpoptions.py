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

from ssa.test.conformance.case import LIBC, ClientRole, PairCase, ServerRole, Thread, TLSCase
from ssa.test.conformance.peers import SECONDS, echo

BYPASSES = {
    "TCP_ULP": (socket.IPPROTO_TCP, 31, b"tls\0"),
    "TCP_REPAIR": (socket.IPPROTO_TCP, 19, struct.pack("i", 1)),
    "TCP_REPAIR_QUEUE": (socket.IPPROTO_TCP, 20, struct.pack("i", 1)),
    "TCP_QUEUE_SEQ": (socket.IPPROTO_TCP, 21, struct.pack("i", 1)),
    "TCP_REPAIR_OPTIONS": (socket.IPPROTO_TCP, 22, bytes(8)),
    "TCP_REPAIR_WINDOW": (socket.IPPROTO_TCP, 29, bytes(20)),
    "TCP_MD5SIG": (socket.IPPROTO_TCP, 14, bytes(216)),
    "TCP_MD5SIG_EXT": (socket.IPPROTO_TCP, 32, bytes(216)),
    "TCP_AO_ADD_KEY": (socket.IPPROTO_TCP, 38, bytes(256)),
    "SOL_TLS, TLS_TX": (282, 1, bytes(40)),
    "SOL_TLS, TLS_RX": (282, 2, bytes(40)),
}
UNAVAILABLE = {
    "TCP_FASTOPEN": (socket.IPPROTO_TCP, 23, struct.pack("i", 5)),
    "TCP_FASTOPEN_CONNECT": (socket.IPPROTO_TCP, 30, struct.pack("i", 1)),
    "TCP_FASTOPEN_KEY": (socket.IPPROTO_TCP, 33, bytes(16)),
    "TCP_FASTOPEN_NO_COOKIE": (socket.IPPROTO_TCP, 34, struct.pack("i", 1)),
    "SO_ZEROCOPY": (socket.SOL_SOCKET, 60, struct.pack("i", 1)),
}
"""What would carry plaintext, or hand the kernel's own memory to it."""

INHERITED = {
    "SO_KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE, struct.pack("i", 1)),
    "SO_LINGER": (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3)),
    "SO_OOBINLINE": (socket.SOL_SOCKET, socket.SO_OOBINLINE, struct.pack("i", 1)),
    "SO_RCVLOWAT": (socket.SOL_SOCKET, socket.SO_RCVLOWAT, struct.pack("i", 2)),
    "SO_RCVTIMEO": (socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 300, 0)),
    "SO_SNDTIMEO": (socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 400, 0)),
    "SO_SNDBUF": (socket.SOL_SOCKET, socket.SO_SNDBUF, struct.pack("i", 30_000)),
    "SO_PRIORITY": (socket.SOL_SOCKET, 12, struct.pack("i", 3)),
    "TCP_NODELAY": (socket.IPPROTO_TCP, socket.TCP_NODELAY, struct.pack("i", 1)),
    "TCP_CORK": (socket.IPPROTO_TCP, socket.TCP_CORK, struct.pack("i", 1)),
    "TCP_KEEPIDLE": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, struct.pack("i", 77)),
    "TCP_KEEPINTVL": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, struct.pack("i", 7)),
    "TCP_KEEPCNT": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, struct.pack("i", 3)),
    "TCP_SYNCNT": (socket.IPPROTO_TCP, socket.TCP_SYNCNT, struct.pack("i", 2)),
    "TCP_LINGER2": (socket.IPPROTO_TCP, socket.TCP_LINGER2, struct.pack("i", 9)),
    "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, struct.pack("i", 5000)),
    "IP_TOS": (socket.IPPROTO_IP, socket.IP_TOS, struct.pack("i", 0x10)),
    "IP_TTL": (socket.IPPROTO_IP, socket.IP_TTL, struct.pack("i", 33)),
}
"""What an accepted socket has from its listener, or has not: as TCP's."""

INHERITED6 = {
    "IPV6_TCLASS": (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, struct.pack("i", 0x10)),
    "IPV6_UNICAST_HOPS": (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, struct.pack("i", 33)),
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
        six = self.clientSocket(socket.AF_INET6)
        self.fails(errno.ENOPROTOOPT, six.setsockopt, socket.IPPROTO_IPV6, IPV6_ADDRFORM, socket.AF_INET)
        sock.connect(self.server(echo).address)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def test_unavailable(self) -> None:
        """Fast open and zero-copy: EOPNOTSUPP at every point of a socket's life, and read as off."""
        client, server = self.bothEnds()
        for sock in (self.clientSocket(), self.listener(), client, server):
            for title, (level, name, value) in UNAVAILABLE.items():
                with self.subTest(option=title):
                    self.fails(errno.EOPNOTSUPP, sock.setsockopt, level, name, value)
            self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, 23), 0)
            self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT), 0)
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, 60), 0)

    def test_negative(self) -> None:
        """A negative length: EINVAL, whatever the option."""
        sock = self.tlsSocket()
        for level, name, value in (*BYPASSES.values(), *UNAVAILABLE.values(), *INHERITED.values()):
            ctypes.set_errno(0)
            self.assertEqual(LIBC.setsockopt(sock.fileno(), level, name, value, -1), -1)
            self.assertEqual(errno.errorcode[ctypes.get_errno()], "EINVAL", (level, name))

    def test_integers(self) -> None:
        """SO_PROTOCOL and SO_ERROR are cut to the buffer, as every int of the kernel's; EINVAL and EFAULT as there."""
        ordinary, sock = self.keep(socket.socket()), self.tlsSocket()
        for name in (socket.SO_PROTOCOL, socket.SO_ERROR):
            for size in (0, 1, 2, 4, 8, -1):
                found = []
                for each in (ordinary, sock):
                    buffer, length = ctypes.create_string_buffer(b"\xaa" * 16, 16), ctypes.c_int(size)
                    ctypes.set_errno(0)
                    failed = LIBC.getsockopt(each.fileno(), socket.SOL_SOCKET, name, buffer, ctypes.byref(length))
                    written = buffer.raw.replace(bytes([6, 0]), bytes([205, 0])) if name == socket.SO_PROTOCOL else buffer.raw
                    found.append((ctypes.get_errno() if failed else 0, length.value, len(written.rstrip(b"\xaa"))))
                self.assertEqual(found[1], found[0], (name, size))
            length = ctypes.c_int(4)
            ctypes.set_errno(0)
            self.assertEqual(LIBC.getsockopt(sock.fileno(), socket.SOL_SOCKET, name, None, ctypes.byref(length)), -1)
            self.assertEqual(ctypes.get_errno(), errno.EFAULT)

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

    def test_real(self) -> None:
        """SO_KEEPALIVE works on the real connection: set before connect, after it, and on a listener."""
        for title in ("before", "after", "listener"):
            with self.subTest(when=title):
                listener = self.listener()
                client = self.clientSocket()
                if title == "before":
                    self._keepAlive(client)
                elif title == "listener":
                    self._keepAlive(listener)
                client.connect(listener.getsockname())
                server = self.keep(listener.accept()[0])
                if title == "after":
                    self._keepAlive(client)
                sock = server if title == "listener" else client
                ends = sock.getsockname(), sock.getpeername()
                # The timer of what is not acknowledged yet, 01, comes first.
                self.eventually(lambda ends=ends: "02" in self._timers(*ends), "the timer of keep-alive")  # type: ignore[misc]
                self.assertNotIn("02", self._timers(sock.getpeername(), sock.getsockname()))

    def _keepAlive(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def _timers(self, local: tuple[str, int], remote: tuple[str, int]) -> set[str]:
        """Which timers run on the network's end of a connection (proc_net_tcp(5)): 02 is that of keep-alive."""
        with open("/proc/net/tcp", encoding="ascii") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        ends = tuple(f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}:{port:04X}" for host, port in (local, remote))
        found = {row[5].split(":")[0] for row in rows if tuple(row[1:3]) == ends}
        self.assertTrue(found, "the connection is not on the network")
        return found

    def test_inherited(self) -> None:
        """An accepted socket has of its listener's options what TCP's would, set before listen or after it."""
        self._inherits("127.0.0.1", INHERITED)

    def test_inheritedSix(self) -> None:
        """The same over IPv6."""
        self._inherits("::1", {**INHERITED, **INHERITED6})

    def _inherits(self, host: str, options: dict[str, tuple[int, int, bytes]]) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for early in (True, False):
            ordinary, listener = self.keep(socket.socket(family)), self.tlsSocket(family)
            self.certify(listener)
            accepted = []
            for each in (ordinary, listener):
                each.bind((host, 0))
                for setting in (early, not early):
                    if setting:
                        for level, name, value in options.values():
                            each.setsockopt(level, name, value)
                    else:
                        each.listen()
                dial = self.peerTo if each is listener else socket.create_connection
                dialing = Thread(lambda dial=dial, each=each: dial(each.getsockname()[:2]))  # type: ignore[misc]
                accepted.append(self.keep(each.accept()[0]))
                if each is ordinary:
                    self.keep(dialing.result())
                else:
                    dialing.result()
            for title, (level, name, _) in options.items():
                with self.subTest(option=title, early=early):
                    expected, found = (each.getsockopt(level, name, 16) for each in accepted)
                    self.assertEqual(found, expected)

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
