# SPDX-License-Identifier: MIT
"""
The socket options of a live connection: which of them reach the real socket.

A program sets SO_KEEPALIVE or IP_TOS on its TLS socket and means the network
connection, which the daemon holds.  Only what is in L{SETTABLE} is passed on:
nothing there can bypass TLS, change where the data goes, or make a call of the
daemon wait.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable

from ssa.errors import SSAError

_INT = struct.Struct("=i")
_LINGER = struct.Struct("=ii")

Apply = Callable[[socket.socket, int, int, bytes], None]

MAX_BUFFER = 16 * 1024 * 1024
"""The most bytes that SO_SNDBUF and SO_RCVBUF may ask for; the kernel's own limits hold as well."""

MAX_PRIORITY = 6
"""SO_PRIORITY above it needs CAP_NET_ADMIN (socket(7)): the daemon may have it, the program does not."""

_TCP_USER_TIMEOUT = 18
_IP_MTU = 14
_IPV6_MTU = 24
_IPV6_UNICAST_HOPS = 16
_IPV6_TCLASS = 67
_MAX_READ = 512


def _number(value: bytes) -> int:
    if len(value) < _INT.size:
        raise SSAError(errno.EINVAL, "the value of this option is an int")
    return int(_INT.unpack_from(value)[0])


def _kernel(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    """Pass an int on; the kernel knows what is in range."""
    sock.setsockopt(level, name, _number(value))


def _kernelByte(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    """Pass a number on that may be a single byte (ip(7))."""
    number = value[0] if 0 < len(value) < _INT.size else _number(value)
    sock.setsockopt(level, name, number)


def _buffer(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    sock.setsockopt(level, name, max(0, min(_number(value), MAX_BUFFER)))


def _priority(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    number = _number(value)
    if not 0 <= number <= MAX_PRIORITY:
        raise SSAError(errno.EPERM, f"SO_PRIORITY {number} is not between 0 and {MAX_PRIORITY}")
    sock.setsockopt(level, name, number)


def _linger(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    """
    Only "reset on close" reaches the real socket.  Waiting is the business of
    the program's own close(2): on Linux a positive time would make the
    daemon's close(2) wait, non-blocking or not.
    """
    if len(value) < _LINGER.size:
        raise SSAError(errno.EINVAL, "the value of SO_LINGER is a struct linger")
    on, seconds = _LINGER.unpack_from(value)
    sock.setsockopt(level, name, _LINGER.pack(int(bool(on) and seconds == 0), 0))


def _accepted(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    """
    TCP_NODELAY: accepted, but the real socket stays without Nagle's algorithm.
    The relay has already put together what came in one go, and holding back
    part of a TLS record would only delay the rest of it.
    """
    _number(value)


SETTABLE: dict[tuple[int, int], Apply] = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): _kernel,
    (socket.SOL_SOCKET, socket.SO_LINGER): _linger,
    (socket.SOL_SOCKET, socket.SO_PRIORITY): _priority,
    (socket.SOL_SOCKET, socket.SO_SNDBUF): _buffer,
    (socket.SOL_SOCKET, socket.SO_RCVBUF): _buffer,
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): _accepted,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): _kernel,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): _kernel,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): _kernel,
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT): _kernel,
    (socket.IPPROTO_TCP, _TCP_USER_TIMEOUT): _kernel,
    (socket.IPPROTO_IP, socket.IP_TOS): _kernelByte,
    (socket.IPPROTO_IP, socket.IP_TTL): _kernelByte,
    (socket.IPPROTO_IPV6, _IPV6_TCLASS): _kernel,
    (socket.IPPROTO_IPV6, _IPV6_UNICAST_HOPS): _kernel,
}
"""(level, option) → what to do with the value."""

READABLE: frozenset[tuple[int, int]] = frozenset(SETTABLE) | {
    (socket.IPPROTO_TCP, socket.TCP_INFO),
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG),
    (socket.IPPROTO_IP, _IP_MTU),
    (socket.IPPROTO_IPV6, _IPV6_MTU),
}
"""What may be read from the real socket."""


def checkSettable(level: int, name: int) -> Apply:
    """
    @raise SSAError: ENOPROTOOPT, the option is not in L{SETTABLE}.
    """
    apply = SETTABLE.get((level, name))
    if apply is None:
        raise SSAError(errno.ENOPROTOOPT, f"option {name} at level {level} cannot be set on a TLS connection")
    return apply


def setLiveOption(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    """
    Set an option on a real socket.

    @param value: as the program gave it to setsockopt(2).
    @raise SSAError: ENOPROTOOPT, EINVAL, EPERM, or what the kernel says.
    """
    apply = checkSettable(level, name)
    try:
        apply(sock, level, name, value)
    except OSError as error:
        raise SSAError(
            error.errno or errno.EINVAL, f"option {name} at level {level}: {error.strerror or error}"
        ) from error


def getLiveOption(sock: socket.socket, level: int, name: int) -> bytes:
    """
    Read an option of a real socket.

    @return: as getsockopt(2) gives it, at most 512 bytes.
    @raise SSAError: ENOPROTOOPT, or what the kernel says.
    """
    if (level, name) not in READABLE:
        raise SSAError(errno.ENOPROTOOPT, f"option {name} at level {level} cannot be read from a TLS connection")
    try:
        return sock.getsockopt(level, name, _MAX_READ)
    except OSError as error:
        raise SSAError(
            error.errno or errno.EINVAL, f"option {name} at level {level}: {error.strerror or error}"
        ) from error


def neverWaitInClose(sock: socket.socket) -> None:
    """
    Take back a positive SO_LINGER that the program had set before the socket
    came to the daemon: close(2) of the daemon must not wait (see L{SETTABLE}).
    """
    on, seconds = _LINGER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size))
    if on and seconds:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(0, 0))
