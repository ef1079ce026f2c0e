# SPDX-License-Identifier: MIT
"""
Socket options that a program sets on its end and that matter on the real connection (socket(7), tcp(7), ip(7), ipv6(7)).

They are copied to the real socket when it is made and again when it connects or listens.  Those that a program sets on a
live connection go to the daemon, which has the real socket by then.  TCP_NODELAY is not among them: the real socket
has it always on, and the program's own governs how its writes are cut.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

_SO_PRIORITY = 12
_SO_MARK = 36
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23

_BYTES = 256

_EVERY = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, socket.SO_LINGER),
    (socket.SOL_SOCKET, socket.SO_DONTROUTE),
    (socket.SOL_SOCKET, _SO_PRIORITY),
    (socket.SOL_SOCKET, _SO_MARK),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG),
    (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT),
    (socket.IPPROTO_IP, socket.IP_TOS),
    (socket.IPPROTO_IP, socket.IP_TTL),
    (socket.IPPROTO_IP, _IP_MTU_DISCOVER),
)
_INET6 = (
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
    (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
    (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER),
)
_BUFFERS = ((socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_RCVBUF))
_UNTIL_BIND = ((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),)
"""Cannot be set on a bound socket, and bind(2) changes it by itself on a program's end that has another address."""
_ACCEPTED = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, socket.SO_LINGER),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    (socket.SOL_SOCKET, socket.SO_RCVLOWAT),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO),
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO),
    (socket.SOL_SOCKET, _SO_PRIORITY),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
)


class Defaults:
    """
    What the options of a program's new socket are, so that only what the program changed is copied.

    The real socket's own defaults may differ: they are those of another network namespace.
    """

    def __init__(self, program: Callable[[int], socket.socket]) -> None:
        """
        @param program: makes a program's new socket of a family.
        """
        self._program = program
        self._values: dict[tuple[int, int, int], bytes] = {}

    def of(self, family: int, level: int, name: int) -> bytes:
        """The value that a new socket of a family has, C{b""} where it has none."""
        key = (family, level, name)
        value = self._values.get(key)
        if value is None:
            with self._program(family) as fresh:
                for aLevel, aName in _EVERY + (_INET6 if family == socket.AF_INET6 else ()) + _BUFFERS:
                    self._values[family, aLevel, aName] = _get(fresh, aLevel, aName)
            value = self._values[key]
        return value


def _get(sock: socket.socket, level: int, name: int) -> bytes:
    try:
        return sock.getsockopt(level, name, _BYTES)
    except OSError:
        return b""


def carry(defaults: Defaults, program: socket.socket, real: socket.socket) -> None:
    """
    Copy what a program has set on its end to the real socket, with the rights of this moment.

    @raise OSError: the kernel refuses one of them on the real socket (EPERM: a mark or a priority without the right).
    """
    isBound = real.getsockname()[1] != 0
    for level, name in _EVERY + (_INET6 if program.family == socket.AF_INET6 else ()):
        if isBound and (level, name) in _UNTIL_BIND:
            continue
        value = _get(program, level, name)
        if value and value != defaults.of(program.family, level, name):
            real.setsockopt(level, name, value)
    for level, name in _BUFFERS:
        value = _get(program, level, name)
        if value != defaults.of(program.family, level, name):
            size = int.from_bytes(value, sys.byteorder)
            real.setsockopt(level, name, size // 2)  # the kernel doubles what it is given


def inherit(listener: socket.socket, accepted: socket.socket) -> None:
    """Give an accepted socket what TCP's would have from its listener."""
    for level, name in _ACCEPTED:
        value = _get(listener, level, name)
        if value and value != _get(accepted, level, name):
            accepted.setsockopt(level, name, value)
