# SPDX-License-Identifier: MIT
"""
The classic BPF programs of the interceptor: the seccomp filter of the programs, and the gate on their sockets.

A program is a sequence of C{struct sock_filter} (linux/filter.h).  Jumps are written with labels; only forward ones exist.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from errno import ENOSYS

from ssa.api import IPPROTO_TLS
from ssa.intercept.linux import Architecture

_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LOAD_BYTE = 0x30  # BPF_LD | BPF_B | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_GREATER_EQUAL = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_SECCOMP_RET_ALLOW = 0x7FFF0000
_SECCOMP_RET_USER_NOTIF = 0x7FC00000
_SECCOMP_RET_ERRNO = 0x00050000

_INSTRUCTION = struct.Struct("=HBBI")
_MARK = (-0x1000 + 20) & 0xFFFFFFFF  # SKF_AD_OFF + SKF_AD_MARK
_TCP_FLAGS = 13  # offset of the flags in the TCP header (RFC 9293 section 3.1)
_TCP_SYN_RST_ACK = 0x16
_TCP_RST = 0x04
_SEND_REFUSED = 0x24000001  # MSG_FASTOPEN | MSG_ZEROCOPY | MSG_OOB
_RECEIVE_REFUSED = 0x1  # MSG_OOB
_SOCKADDR_SHORTEST = 2  # a family and nothing else: AF_UNSPEC, which disconnects; less is EINVAL in the kernel

GATE_MARK = IPPROTO_TLS
"""The SO_MARK of the supervisor's own sockets in the private network namespaces."""

SO_MARK = 36
SOL_TLS = 282
SO_PROTOCOL = 38
_TCP_REPAIRS = (19, 20, 21, 22, 29)
"""TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OPTIONS, TCP_REPAIR_WINDOW."""

BYPASS_TLS = {
    socket.IPPROTO_TCP: (
        14,  # TCP_MD5SIG
        *_TCP_REPAIRS,
        31,  # TCP_ULP
        32,  # TCP_MD5SIG_EXT
        35,  # TCP_ZEROCOPY_RECEIVE
        38,  # TCP_AO_ADD_KEY
    ),
    socket.IPPROTO_IPV6: (1,),  # IPV6_ADDRFORM
}
"""Options by which a program could pass TLS by: setting them is refused."""
UNSUPPORTED = {
    socket.SOL_SOCKET: (60,),  # SO_ZEROCOPY
    socket.IPPROTO_TCP: (
        socket.TCP_FASTOPEN,
        30,  # TCP_FASTOPEN_CONNECT
        33,  # TCP_FASTOPEN_KEY
        34,  # TCP_FASTOPEN_NO_COOKIE
    ),
}
"""Options that TLS sockets do not have: setting them is refused."""

_SOCKET_OPTIONS_LIVE = {
    socket.SOL_SOCKET: (
        socket.SO_KEEPALIVE,
        socket.SO_LINGER,
        12,  # SO_PRIORITY
        socket.SO_SNDBUF,
        socket.SO_RCVBUF,
        socket.SO_BINDTODEVICE,
        *UNSUPPORTED[socket.SOL_SOCKET],
    ),
    socket.IPPROTO_TCP: (
        socket.TCP_NODELAY,
        socket.TCP_KEEPIDLE,
        socket.TCP_KEEPINTVL,
        socket.TCP_KEEPCNT,
        socket.TCP_USER_TIMEOUT,
        *BYPASS_TLS[socket.IPPROTO_TCP],
        *UNSUPPORTED[socket.IPPROTO_TCP],
    ),
    socket.IPPROTO_IP: (socket.IP_TOS, socket.IP_TTL),
    socket.IPPROTO_IPV6: (socket.IPV6_TCLASS, socket.IPV6_UNICAST_HOPS, *BYPASS_TLS[socket.IPPROTO_IPV6]),
}
_SOCKET_OPTIONS_READ = {
    socket.SOL_SOCKET: (socket.SO_ERROR, SO_PROTOCOL, socket.SO_BINDTODEVICE),
    socket.IPPROTO_TCP: (*_TCP_REPAIRS, 31, 35),  # TCP_ULP, TCP_ZEROCOPY_RECEIVE
}


@dataclass
class Assembler:
    """Collects instructions and resolves labels."""

    _code: list[tuple[int, int, str | None, str | None]] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)

    def load(self, offset: int) -> None:
        """Load the 32-bit word at an offset of the data."""
        self._code.append((_LOAD_WORD, offset, None, None))

    def equal(self, value: int, then: str | None, otherwise: str | None = None) -> None:
        """Jump on equality; L{None} falls through."""
        self._code.append((_EQUAL, value, then, otherwise))

    def atLeast(self, value: int, then: str | None, otherwise: str | None = None) -> None:
        """Jump where the accumulator, unsigned, is not less."""
        self._code.append((_GREATER_EQUAL, value, then, otherwise))

    def anyBit(self, value: int, then: str | None, otherwise: str | None = None) -> None:
        """Jump where a bit of the value is set in the accumulator."""
        self._code.append((_ANY_BIT, value, then, otherwise))

    def ret(self, value: int) -> None:
        """End with a value."""
        self._code.append((_RETURN, value, None, None))

    def label(self, name: str) -> None:
        """Name the next instruction."""
        self._labels[name] = len(self._code)

    def build(self) -> bytes:
        """
        The program as an array of C{struct sock_filter}.

        @raise ValueError: a jump is longer than 255 instructions or goes backwards.
        """
        out = bytearray()
        for position, (code, value, then, otherwise) in enumerate(self._code):
            distances = [0 if name is None else self._labels[name] - position - 1 for name in (then, otherwise)]
            if any(not 0 <= distance < 256 for distance in distances):
                raise ValueError(f"jump from instruction {position} is too far")
            out += _INSTRUCTION.pack(code, distances[0], distances[1], value & 0xFFFFFFFF)
        return bytes(out)


def _argument(number: int) -> int:
    """Offset of the low word of an argument in C{struct seccomp_data}."""
    return 16 + 8 * number + (0 if sys.byteorder == "little" else 4)


def seccompFilter(machine: Architecture, emulateNames: bool = False) -> bytes:
    """
    The filter that notifies the supervisor of the few calls that may concern a TLS socket.

    Calls of another calling convention (i386, x32) are allowed: a socket(2) of theirs with IPPROTO_TLS gets
    EPROTONOSUPPORT from the kernel, and no other call of theirs can do more than act on the private end of a connection.
    io_uring would pass by the filter; it answers ENOSYS, which every user of it must expect.

    @param emulateNames: also notify of getsockname(2) and getpeername(2): the loopback way, in which the program's end of
        a connection does not carry the real addresses.
    """
    numbers = machine.numbers
    a = Assembler()
    a.load(4)
    a.equal(machine.audit, None, "allow")
    a.load(0)
    if machine.foreignFrom:
        a.atLeast(machine.foreignFrom, "allow")
    always = ["bind", "listen", "accept", "accept4"] + (["getsockname", "getpeername"] if emulateNames else [])
    for name in ("socket", "connect", "getsockopt", "setsockopt"):
        a.equal(numbers[name], name)
    for name in always:
        a.equal(numbers[name], "notify")
    for name, index in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        a.equal(numbers[name], f"send{index}")
    for name, index in (("recvfrom", 3), ("recvmsg", 2), ("recvmmsg", 3)):
        a.equal(numbers[name], f"receive{index}")
    a.equal(numbers["io_uring_setup"], "absent", "allow")
    a.label("socket")
    a.load(_argument(2))
    a.equal(IPPROTO_TLS, "notify", "allow")
    a.label("connect")
    a.load(_argument(2))
    a.atLeast(_SOCKADDR_SHORTEST, "notify", "allow")
    a.label("getsockopt")
    _options(a, _SOCKET_OPTIONS_READ, "get")
    a.label("setsockopt")
    _options(a, _SOCKET_OPTIONS_LIVE, "set")
    for prefix, refused in (("send", _SEND_REFUSED), ("receive", _RECEIVE_REFUSED)):
        for index in (2, 3):
            a.label(f"{prefix}{index}")
            a.load(_argument(index))
            a.anyBit(refused, "notify", "allow")
    a.label("absent")
    a.ret(_SECCOMP_RET_ERRNO | ENOSYS)
    a.label("allow")
    a.ret(_SECCOMP_RET_ALLOW)
    a.label("notify")
    a.ret(_SECCOMP_RET_USER_NOTIF)
    return a.build()


def _options(a: Assembler, table: Mapping[int, tuple[int, ...]], prefix: str) -> None:
    """Notify of level IPPROTO_TLS, of SOL_TLS, and of the options in a table; allow all else."""
    a.load(_argument(1))
    a.equal(IPPROTO_TLS, "notify")
    a.equal(SOL_TLS, "notify")
    levels = list(table)
    for index, level in enumerate(levels):
        last = index == len(levels) - 1
        a.equal(level, f"{prefix}{level}", "allow" if last else None)
    for level in levels:
        a.label(f"{prefix}{level}")
        a.load(_argument(2))
        options = table[level]
        for index, option in enumerate(options):
            a.equal(option, "notify", "allow" if index == len(options) - 1 else None)


def socketGate() -> bytes:
    """
    The filter on a program's socket in a private namespace: only segments of the supervisor's marked sockets enter, and
    resets without an acknowledgement, which answer a segment of an established connection.

    It keeps the program's own listeners, and the kernel's answer for a closed port, from answering a connection attempt
    whose handshake is still running.  The data that a socket filter sees begins at the TCP header.
    """
    instructions = (
        (_LOAD_WORD, 0, 0, _MARK),
        (_EQUAL, 3, 0, GATE_MARK),
        (_LOAD_BYTE, 0, 0, _TCP_FLAGS),
        (_AND, 0, 0, _TCP_SYN_RST_ACK),
        (_EQUAL, 0, 1, _TCP_RST),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


__all__ = [
    "BYPASS_TLS",
    "GATE_MARK",
    "SOL_TLS",
    "SO_PROTOCOL",
    "UNSUPPORTED",
    "Assembler",
    "seccompFilter",
    "socketGate",
]
