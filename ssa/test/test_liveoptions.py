# SPDX-License-Identifier: MIT
"""Options of live connections, on real sockets that go nowhere."""

from __future__ import annotations

import errno
import socket
import struct

from twisted.trial.unittest import SynchronousTestCase

from ssa.errors import SSAError
from ssa.liveoptions import SETTABLE, getLiveOption, neverWaitInClose, setLiveOption

ONE = struct.pack("=i", 1)


class LiveOptionTests(SynchronousTestCase):
    """What passes and what does not."""

    def setUp(self) -> None:
        self.sock = socket.socket()
        self.addCleanup(self.sock.close)

    def refused(self, level: int, name: int, value: bytes) -> int:
        return int(self.assertRaises(SSAError, setLiveOption, self.sock, level, name, value).errno)

    def test_passed(self) -> None:
        """Every number of the table is one that this kernel takes."""
        for level, name in SETTABLE:
            if level == socket.IPPROTO_IPV6:
                continue
            value = struct.pack("=ii", 0, 0) if name == socket.SO_LINGER and level == socket.SOL_SOCKET else ONE
            setLiveOption(self.sock, level, name, value)
        self.assertEqual(1, self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertEqual(1, self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT))

    def test_ipv6(self) -> None:
        """IPv6's own."""
        with socket.socket(socket.AF_INET6) as sock:
            setLiveOption(sock, socket.IPPROTO_IPV6, socket.IPV6_TCLASS, struct.pack("=i", 32))
            setLiveOption(sock, socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, struct.pack("=i", 9))
            self.assertEqual(32, sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS))
            self.assertEqual(9, sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS))

    def test_refused(self) -> None:
        """What could bypass TLS, or is not known."""
        tcp = socket.IPPROTO_TCP
        for level, name in ((tcp, 31), (282, 1), (tcp, 19), (tcp, 14), (tcp, 35), (socket.IPPROTO_IPV6, 1), (1, 25)):
            self.assertEqual(errno.ENOPROTOOPT, self.refused(level, name, ONE), (level, name))

    def test_priority(self) -> None:
        """A priority for which the program would need a capability that the daemon may have."""
        setLiveOption(self.sock, socket.SOL_SOCKET, socket.SO_PRIORITY, struct.pack("=i", 6))
        for number in (7, -1):
            value = struct.pack("=i", number)
            self.assertEqual(errno.EPERM, self.refused(socket.SOL_SOCKET, socket.SO_PRIORITY, value))

    def test_noDelay(self) -> None:
        """TCP_NODELAY is accepted and changes nothing."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        setLiveOption(self.sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, struct.pack("=i", 0))
        self.assertTrue(self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def linger(self) -> tuple[int, ...]:
        return struct.unpack("=ii", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))

    def test_linger(self) -> None:
        """Only "reset on close" reaches the real socket: the daemon's close(2) must not wait."""
        setLiveOption(self.sock, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 3600))
        self.assertEqual((0, 0), self.linger())
        setLiveOption(self.sock, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        self.assertEqual((1, 0), self.linger())
        neverWaitInClose(self.sock)
        self.assertEqual((1, 0), self.linger())
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 5))
        neverWaitInClose(self.sock)
        self.assertEqual(0, self.linger()[0])

    def test_values(self) -> None:
        """Too short is EINVAL; out of range is what the kernel says; a byte will do where ip(7) says so."""
        self.assertEqual(errno.EINVAL, self.refused(socket.SOL_SOCKET, socket.SO_KEEPALIVE, b"\1"))
        self.assertEqual(errno.EINVAL, self.refused(socket.SOL_SOCKET, socket.SO_LINGER, ONE))
        self.assertEqual(errno.EINVAL, self.refused(socket.IPPROTO_IP, socket.IP_TTL, struct.pack("=i", 999)))
        setLiveOption(self.sock, socket.IPPROTO_IP, socket.IP_TOS, b"\x10")
        self.assertEqual(16, self.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS))

    def test_read(self) -> None:
        """Reading has its own list."""
        self.assertEqual(4, len(getLiveOption(self.sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE)))
        self.assertGreater(len(getLiveOption(self.sock, socket.IPPROTO_TCP, socket.TCP_INFO)), 100)
        error = self.assertRaises(SSAError, getLiveOption, self.sock, socket.SOL_SOCKET, 17)
        self.assertEqual(errno.ENOPROTOOPT, error.errno)
