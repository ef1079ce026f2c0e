# SPDX-License-Identifier: MIT
"""Tests for L{ssa.intercept.bpf}: its programs are run here as the kernel would run them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable

from twisted.trial.unittest import SynchronousTestCase

from ssa.api import AF_HOSTNAME, IPPROTO_TLS
from ssa.intercept.bpf import GATE_MARK, SO_PROTOCOL, SOL_TLS, Assembler, seccompFilter, socketGate
from ssa.intercept.linux import ARCHITECTURES, Architecture

NOTIFY, ALLOW, ABSENT = 0x7FC00000, 0x7FFF0000, 0x00050000 | errno.ENOSYS
AUDIT_ARCH_I386 = 0x40000003
X32 = 0x40000000
MARK_AT = 0xFFFFF014  # SKF_AD_OFF + SKF_AD_MARK
WHOLE = 0xFFFFFFFF
NAMES = ("getsockname", "getpeername")


def run(program: bytes, load: Callable[[int, int], int]) -> int:
    """
    A classic BPF machine for the instructions that the project uses.

    @param load: reads so many bytes at an offset.
    @raise AssertionError: the kernel would refuse the program.
    """
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        assert position < len(code), "runs off its end"
        kind, then, otherwise, value = code[position]
        position += 1
        if kind == 0x20:
            accumulator = load(value, 4)
        elif kind == 0x30:
            accumulator = load(value, 1)
        elif kind == 0x54:
            accumulator &= value
        elif kind in (0x15, 0x35, 0x45):
            hit = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}[kind]
            position += then if hit else otherwise
        elif kind == 0x06:
            return int(value)
        else:
            raise AssertionError(f"instruction {kind:#x} is unknown")


def seccompData(audit: int, number: int, arguments: Iterable[int]) -> Callable[[int, int], int]:
    """C{struct seccomp_data}: only aligned words can be loaded."""
    six = [argument & 0xFFFFFFFFFFFFFFFF for argument in arguments]
    data = struct.pack("=iIQ6Q", number, audit, 0x1234, *six, *[0] * (6 - len(six)))

    def load(offset: int, size: int) -> int:
        assert size == 4
        assert offset % 4 == 0
        return int(struct.unpack_from("=I", data, offset)[0])

    return load


def segment(flags: int, mark: int) -> Callable[[int, int], int]:
    """A TCP header as a socket filter sees it, with the mark of its packet."""
    data = struct.pack("!HHIIBBHHH", 443, 50000, 1, 2, 5 << 4, flags, 1024, 0, 0)

    def load(offset: int, size: int) -> int:
        if offset == MARK_AT:
            return mark
        return int.from_bytes(data[offset : offset + size], "big")

    return load


class SeccompFilterTests(SynchronousTestCase):
    """Which calls stop."""

    def verdict(self, machine: Architecture, name: str, *arguments: int, emulate: bool = False) -> int:
        return run(seccompFilter(machine, emulate), seccompData(machine.audit, machine.numbers[name], arguments))

    def expect(self, verdict: int, name: str, *arguments: int) -> None:
        """It is the same on each machine and in each way, but for names."""
        for machine in ARCHITECTURES.values():
            for emulate in (False, True):
                found = self.verdict(machine, name, *arguments, emulate=emulate)
                self.assertEqual(hex(found), hex(verdict), (machine.name, emulate, name, arguments))

    def test_socket(self) -> None:
        for family in (socket.AF_INET, socket.AF_INET6, AF_HOSTNAME, socket.AF_UNIX):
            self.expect(NOTIFY, "socket", family, socket.SOCK_STREAM, IPPROTO_TLS)
            for protocol in (0, socket.IPPROTO_TCP, IPPROTO_TLS + 256, IPPROTO_TLS - 1, 715):
                self.expect(ALLOW, "socket", family, socket.SOCK_STREAM, protocol)

    def test_upperHalvesOfIntegers(self) -> None:
        # The kernel looks at an int only; what is above may be anything.
        self.expect(NOTIFY, "socket", 2, 1, 0xDEAD_0000_0000 | IPPROTO_TLS)
        self.expect(NOTIFY, "setsockopt", 3, 0xDEAD_0000_0000 | IPPROTO_TLS, 85)
        self.expect(NOTIFY, "sendto", 3, 0, 0, 0xDEAD_0000_0000 | socket.MSG_FASTOPEN)

    def test_connect(self) -> None:
        for size in (0, 1):
            self.expect(ALLOW, "connect", 3, 0x1000, size)  # the kernel refuses them by itself
        for size in (2, 3, 16, 28, 110, 124, 128, 129, 0x7FFFFFFF, -1):
            self.expect(NOTIFY, "connect", 3, 0x1000, size)

    def test_always(self) -> None:
        for name in ("bind", "listen", "accept", "accept4"):
            self.expect(NOTIFY, name, 3, 0, 0, 0)

    def test_names(self) -> None:
        for machine in ARCHITECTURES.values():
            for name in NAMES:
                self.assertEqual(self.verdict(machine, name, 3), ALLOW)
                self.assertEqual(self.verdict(machine, name, 3, emulate=True), NOTIFY)

    def test_getsockopt(self) -> None:
        for level, name in (
            *((IPPROTO_TLS, option) for option in (0, 85, 100, 140, 0x7FFFFFFF)),
            (SOL_TLS, 1),
            (socket.SOL_SOCKET, socket.SO_ERROR),
            (socket.SOL_SOCKET, SO_PROTOCOL),
            (socket.SOL_SOCKET, socket.SO_BINDTODEVICE),
            *((socket.IPPROTO_TCP, option) for option in (19, 20, 21, 22, 29)),
            (socket.IPPROTO_TCP, 31),
            (socket.IPPROTO_TCP, 35),
        ):
            self.expect(NOTIFY, "getsockopt", 3, level, name)
        for level, name in (
            (socket.SOL_SOCKET, socket.SO_TYPE),
            (socket.SOL_SOCKET, socket.SO_PEERCRED),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_INFO),
            (socket.IPPROTO_IP, socket.SO_ERROR),
            (socket.IPPROTO_IPV6, SO_PROTOCOL),
        ):
            self.expect(ALLOW, "getsockopt", 3, level, name)

    def test_setsockopt(self) -> None:
        for level, name in (
            *((IPPROTO_TLS, option) for option in (0, 85, 100, 140, -1)),
            (SOL_TLS, 1),
            *((socket.SOL_SOCKET, option) for option in (socket.SO_KEEPALIVE, socket.SO_LINGER, 60)),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            *((socket.IPPROTO_TCP, option) for option in (14, 19, 20, 21, 22, 23, 29, 30, 31, 32, 33, 34, 38)),
            (socket.IPPROTO_IP, socket.IP_TOS),
            (socket.IPPROTO_IPV6, 1),
        ):
            self.expect(NOTIFY, "setsockopt", 3, level, name)
        for level, name in (
            (socket.SOL_SOCKET, socket.SO_RCVTIMEO),
            (socket.SOL_SOCKET, socket.SO_RCVLOWAT),
            (socket.SOL_SOCKET, 50),  # SO_ATTACH_BPF: locked by the gate
            (socket.SOL_SOCKET, socket.SO_REUSEADDR),
            (socket.IPPROTO_TCP, socket.TCP_CORK),
            (socket.IPPROTO_UDP, 1),
            (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
        ):
            self.expect(ALLOW, "setsockopt", 3, level, name)

    def test_sending(self) -> None:
        flagsAt = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
        for name, index in flagsAt.items():
            before = [0xFFFFFFFF] * index
            for flag in (socket.MSG_FASTOPEN, 0x4000000, socket.MSG_OOB):
                self.expect(NOTIFY, name, *before, flag)
                self.expect(NOTIFY, name, *before, flag | socket.MSG_DONTWAIT)
            for flag in (0, socket.MSG_DONTWAIT, socket.MSG_NOSIGNAL | socket.MSG_MORE, socket.MSG_PEEK):
                self.expect(ALLOW, name, *before, flag)

    def test_receiving(self) -> None:
        for name, index in {"recvfrom": 3, "recvmsg": 2, "recvmmsg": 3}.items():
            before = [0xFFFFFFFF] * index
            self.expect(NOTIFY, name, *before, socket.MSG_OOB | socket.MSG_DONTWAIT)
            for flag in (0, socket.MSG_PEEK, socket.MSG_WAITALL, socket.MSG_FASTOPEN):
                self.expect(ALLOW, name, *before, flag)

    def test_ioUring(self) -> None:
        self.expect(ABSENT, "io_uring_setup", 8, 0)

    def test_otherCalls(self) -> None:
        for machine in ARCHITECTURES.values():
            ours = set(machine.numbers.values())
            program = seccompFilter(machine)
            for number in set(range(600)) - ours:
                self.assertEqual(run(program, seccompData(machine.audit, number, [IPPROTO_TLS] * 6)), ALLOW, number)
            self.assertEqual(run(program, seccompData(machine.audit, -1, [])), ALLOW)

    def test_otherConventions(self) -> None:
        x86 = ARCHITECTURES["x86_64"]
        program = seccompFilter(x86)
        for name in ("socket", "bind", "accept", "connect"):
            arguments = [2, socket.SOCK_STREAM, IPPROTO_TLS]
            self.assertEqual(run(program, seccompData(x86.audit, X32 | x86.numbers[name], arguments)), ALLOW)
            for number in (x86.numbers[name], 359, 102):  # i386: socket, socketcall
                self.assertEqual(run(program, seccompData(AUDIT_ARCH_I386, number, arguments)), ALLOW)
        for machine in ARCHITECTURES.values():
            for other in ARCHITECTURES.values():
                if other is not machine:
                    data = seccompData(other.audit, other.numbers["bind"], [3])
                    self.assertEqual(run(seccompFilter(machine), data), ALLOW)

    def test_ends(self) -> None:
        for machine in ARCHITECTURES.values():
            for emulate in (False, True):
                program = seccompFilter(machine, emulate)
                self.assertEqual(len(program) % 8, 0)
                self.assertLess(len(program) // 8, 4096)  # BPF_MAXINSNS
                self.assertEqual(struct.unpack_from("=H", program, len(program) - 8)[0], 0x06)

    def test_numbersAreDistinct(self) -> None:
        for machine in ARCHITECTURES.values():
            self.assertEqual(len(set(machine.numbers.values())), len(machine.numbers))
        self.assertEqual(set(ARCHITECTURES["x86_64"].numbers), set(ARCHITECTURES["aarch64"].numbers))


class SocketGateTests(SynchronousTestCase):
    """Which segments reach a program's socket."""

    FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

    def test_marked(self) -> None:
        for flags in range(256):
            self.assertEqual(run(socketGate(), segment(flags, GATE_MARK)), WHOLE)

    def test_unmarked(self) -> None:
        for mark in (0, 1, GATE_MARK - 1, GATE_MARK + 1, GATE_MARK << 8):
            for flags in range(256):
                bare = flags & (self.SYN | self.RST | self.ACK) == self.RST
                self.assertEqual(run(socketGate(), segment(flags, mark)), WHOLE if bare else 0, (mark, flags))


class AssemblerTests(SynchronousTestCase):
    """Labels."""

    def test_backwards(self) -> None:
        a = Assembler()
        a.label("before")
        a.load(0)
        a.equal(1, "before")
        a.ret(0)
        self.assertRaises(ValueError, a.build)

    def test_tooFar(self) -> None:
        for distance, good in ((255, True), (256, False)):
            a = Assembler()
            a.equal(0, "end")
            for _ in range(distance):
                a.load(0)
            a.label("end")
            a.ret(7)
            if good:
                self.assertEqual(run(a.build(), lambda offset, size: 0), 7)
            else:
                self.assertRaises(ValueError, a.build)

    def test_unknownLabel(self) -> None:
        a = Assembler()
        a.equal(0, "nowhere")
        self.assertRaises(KeyError, a.build)
