# SPDX-License-Identifier: MIT
"""Tests for L{ssa.intercept.carried}, on real sockets."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.intercept.carried import Defaults, carry, inherit

SO_PRIORITY, SO_MARK = 12, 36
ONE = struct.pack("=i", 1)

CARRIED = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.SOL_SOCKET, SO_PRIORITY, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 17),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 18),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12345),
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT, 2),
    (socket.IPPROTO_IP, socket.IP_TTL, 33),
    (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
)
INHERITED = (CARRIED[2], *CARRIED[4:])


class CarriedTests(SynchronousTestCase):
    """From a program's end to the real socket, and from a listener to what it accepts."""

    def setUp(self) -> None:
        self.socks: list[socket.socket] = []
        self.defaults = Defaults(lambda family: socket.socket(family, socket.SOCK_STREAM))

    def tearDown(self) -> None:
        for sock in self.socks:
            sock.close()

    def new(self, family: int = socket.AF_INET) -> socket.socket:
        self.socks.append(socket.socket(family, socket.SOCK_STREAM))
        return self.socks[-1]

    def test_nothing(self) -> None:
        """What the program has not set is left as the real socket has it."""
        real = self.new()
        for level, name, value in CARRIED:
            real.setsockopt(level, name, value)
        before = [real.getsockopt(level, name) for level, name, _ in CARRIED]
        carry(self.defaults, self.new(), real)
        self.assertEqual([real.getsockopt(level, name) for level, name, _ in CARRIED], before)

    def test_each(self) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            for level, name, value in CARRIED:
                program, real = self.new(family), self.new(family)
                program.setsockopt(level, name, value)
                carry(self.defaults, program, real)
                self.assertEqual(real.getsockopt(level, name), program.getsockopt(level, name), (family, level, name))

    def test_inet6(self) -> None:
        for name, value in ((socket.IPV6_V6ONLY, 1), (socket.IPV6_TCLASS, 8), (socket.IPV6_UNICAST_HOPS, 9)):
            program, real = self.new(socket.AF_INET6), self.new(socket.AF_INET6)
            program.setsockopt(socket.IPPROTO_IPV6, name, value)
            carry(self.defaults, program, real)
            self.assertEqual(real.getsockopt(socket.IPPROTO_IPV6, name), value)

    def test_linger(self) -> None:
        program, real = self.new(), self.new()
        value = struct.pack("ii", 1, 7)
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
        carry(self.defaults, program, real)
        self.assertEqual(real.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8), value)

    def test_buffers(self) -> None:
        """The kernel doubles what it is given; that must not add up."""
        for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            program, real = self.new(), self.new()
            program.setsockopt(socket.SOL_SOCKET, name, 30000)
            carry(self.defaults, program, real)
            carry(self.defaults, program, real)
            self.assertEqual(real.getsockopt(socket.SOL_SOCKET, name), program.getsockopt(socket.SOL_SOCKET, name))

    def test_noDelay(self) -> None:
        """The real socket's is always on, whatever the program has."""
        real = self.new()
        real.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        carry(self.defaults, self.new(), real)
        self.assertTrue(real.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_bound(self) -> None:
        """IPV6_V6ONLY cannot be set any more on a socket that is bound."""
        program, real = self.new(socket.AF_INET6), self.new(socket.AF_INET6)
        try:
            real.bind(("::1", 0))
        except OSError as problem:
            raise SkipTest("no IPv6") from problem
        program.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        program.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        carry(self.defaults, program, real)
        self.assertTrue(real.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def test_refused(self) -> None:
        """A mark that the caller has no right to set on the real socket is an error, not forgotten."""
        if os.geteuid() != 0:
            raise SkipTest("only root can set a mark")
        program, real = self.new(), self.new()
        program.setsockopt(socket.SOL_SOCKET, SO_MARK, 7)
        os.seteuid(65534)
        try:
            self.assertEqual(self.assertRaises(OSError, carry, self.defaults, program, real).errno, errno.EPERM)
        finally:
            os.seteuid(0)

    def test_inherited(self) -> None:
        listener, accepted = self.new(), self.new()
        for level, name, value in INHERITED:
            listener.setsockopt(level, name, value)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 2, 0))
        inherit(self.defaults, listener, accepted)
        for level, name, value in INHERITED:
            self.assertEqual(accepted.getsockopt(level, name), value, (level, name))
        self.assertTrue(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertEqual(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16), struct.pack("@ll", 2, 0))

    def test_inheritedSix(self) -> None:
        listener, accepted = self.new(socket.AF_INET6), self.new(socket.AF_INET6)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 8)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 9)
        inherit(self.defaults, listener, accepted)
        self.assertEqual(accepted.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS), 8)
        self.assertEqual(accepted.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS), 9)

    def test_inheritedBuffer(self) -> None:
        """The kernel doubles what it is given."""
        listener, accepted = self.new(), self.new()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30000)
        inherit(self.defaults, listener, accepted)
        self.assertEqual(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 60000)

    def test_notInheritedPriority(self) -> None:
        """The kernel gives an accepted connection the priority 0 (sk_clone_lock)."""
        listener, accepted = self.new(), self.new()
        listener.setsockopt(socket.SOL_SOCKET, SO_PRIORITY, 5)
        inherit(self.defaults, listener, accepted)
        self.assertEqual(accepted.getsockopt(socket.SOL_SOCKET, SO_PRIORITY), 0)

    def test_notInherited(self) -> None:
        """Where the connection is bound is not the listener's to say."""
        listener, accepted = self.new(), self.new()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        inherit(self.defaults, listener, accepted)
        self.assertFalse(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))

    def test_readOnce(self) -> None:
        """The defaults of a family are read from one new socket."""
        made: list[int] = []

        def program(family: int) -> socket.socket:
            made.append(family)
            return socket.socket(family, socket.SOCK_STREAM)

        defaults = Defaults(program)
        for family in (socket.AF_INET, socket.AF_INET6) * 3:
            carry(defaults, self.new(family), self.new(family))
            inherit(defaults, self.new(family), self.new(family))
        self.assertEqual(made, [socket.AF_INET, socket.AF_INET6])
        self.assertEqual(int.from_bytes(ONE, sys.byteorder), 1)
