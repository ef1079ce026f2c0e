# SPDX-License-Identifier: MIT
"""
Socket options that a program sets on its end and that matter on the real connection (socket(7), tcp(7), ip(7), ipv6(7)).

They are copied to the real socket when it is made and again when it connects or listens.  Those that a program sets on a
live connection go to the daemon, which has the real socket by then.  TCP_NODELAY is not among them: the real socket
has it always on, and the program's own governs how its writes are cut.
"""

from __future__ import annotations

import contextlib
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
    (socket.SOL_SOCKET, socket.SO_SNDBUF),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_TCP, socket.TCP_CORK),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT),
    (socket.IPPROTO_TCP, socket.TCP_LINGER2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    (socket.IPPROTO_IP, socket.IP_TOS),
    (socket.IPPROTO_IP, socket.IP_TTL),
    (socket.IPPROTO_IP, _IP_MTU_DISCOVER),
)
"""
What the kernel clones for a TCP connection that is accepted.  It does not clone SO_PRIORITY.  SO_RCVBUF is left out, since a
window that has been offered cannot be taken back.
"""
_ACCEPTED6 = (
    (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
    (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER),
)


Values = tuple[tuple[int, int, bytes], ...]
"""Options with a value of each: level, name, value."""


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
        self._carried: dict[int, Values] = {}
        self._inherited: dict[int, Values] = {}

    def carried(self, family: int) -> Values:
        """The options that matter on the real connection, as a new socket of a family has them."""
        if family not in self._carried:
            self._read(family)
        return self._carried[family]

    def inherited(self, family: int) -> Values:
        """The options that an accepted socket gets from its listener, as a new socket of a family has them."""
        if family not in self._inherited:
            self._read(family)
        return self._inherited[family]

    def _read(self, family: int) -> None:
        isSix = family == socket.AF_INET6
        options = _EVERY + (_INET6 if isSix else ()) + _BUFFERS
        with self._program(family) as fresh:
            self._carried[family] = _valuesOf(fresh, options)
            self._inherited[family] = _valuesOf(fresh, _ACCEPTED + (_ACCEPTED6 if isSix else ()))


def _valuesOf(sock: socket.socket, options: tuple[tuple[int, int], ...]) -> Values:
    """The options that a socket has; this kernel may not know all of them."""
    found = []
    for level, name in options:
        with contextlib.suppress(OSError):
            found.append((level, name, sock.getsockopt(level, name, _BYTES)))
    return tuple(found)


def carry(defaults: Defaults, program: socket.socket, real: socket.socket) -> None:
    """
    Copy what a program has set on its end to the real socket, with the rights of this moment.

    @raise OSError: the kernel refuses one of them on the real socket (EPERM: a mark or a priority without the right).
    """
    isBound = real.getsockname()[1] != 0
    get = program.getsockopt
    for level, name, default in defaults.carried(program.family):
        value = get(level, name, _BYTES)
        if value == default or (isBound and (level, name) in _UNTIL_BIND):
            continue
        _set(real, level, name, value)


def _set(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    if (level, name) in _BUFFERS:
        sock.setsockopt(level, name, int.from_bytes(value, sys.byteorder) // 2)  # the kernel doubles what it is given
    else:
        sock.setsockopt(level, name, value)


def inherit(defaults: Defaults, listener: socket.socket, accepted: socket.socket) -> None:
    """
    Give an accepted socket what TCP's would have from its listener.

    @param accepted: a program's new socket.
    """
    get = listener.getsockopt
    for level, name, default in defaults.inherited(listener.family):
        value = get(level, name, _BYTES)
        if value != default:
            _set(accepted, level, name, value)
            if (level, name) == (socket.IPPROTO_IP, socket.IP_TOS):  # which sets SO_PRIORITY too
                accepted.setsockopt(socket.SOL_SOCKET, _SO_PRIORITY, 0)
