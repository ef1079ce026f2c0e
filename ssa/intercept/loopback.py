# SPDX-License-Identifier: MIT
"""
The way without namespaces, for users who may make none.

The program's sockets live in its own network namespace, on the loopback interface.  A socket whose handshake is
running connects to the I{hole}: a listener whose queue of one is full, so that the kernel drops each SYN silently and the
socket stays in SYN_SENT.  It is released by a TCP simultaneous open (RFC 9293 section 3.5) from a socket that shares the hole's
address (SO_REUSEPORT).  getsockname(2) and getpeername(2) are answered by the supervisor.

A program that races with itself, by putting a TLS socket (dup2(2)) in the place of an ordinary one whose connect(2) is under
way, makes the kernel connect that socket.  It leads nowhere: the socket is bound to the loopback interface, and takes segments
only from the supervisor's sockets, which it knows by their hop count.  They send 255 (IP_TTL), the program's sockets drop
what has less (IP_MINTTL, ip(7); the idea is RFC 5082's), and other sockets send 64.  What this way cannot promise, and the
others can: a service of this machine that asks for 255 itself could be reached in this race.
"""

from __future__ import annotations

import contextlib
import os
import socket
from errno import ECONNABORTED, EINPROGRESS, EISCONN

from zope.interface import implementer

from ssa.api import InternetAddress
from ssa.intercept import linux
from ssa.intercept.core import TCP_ESTABLISHED, tcpState
from ssa.intercept.namespace import (
    EXISTING,
    NETLINK_SOCK_DIAG,
    RawAddress,
    dumpSockets,
    listenForDestroyed,
    socketCookie,
)
from ssa.intercept.network import Attempt, Finder, IPrivateNetwork
from ssa.intercept.space import connectAtOnce

_HOPS = 255
_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73


def _takeFromOursOnly(sock: socket.socket) -> None:
    """Let a program's socket, and those that it accepts, drop what comes from other sockets than L{_ours}."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, _HOPS)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, _HOPS)


def _ours(family: int) -> socket.socket:
    """A socket whose segments the programs' sockets take."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _HOPS)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _HOPS)
    except OSError:
        sock.close()
        raise
    return sock

_CONNECTED = (TCP_ESTABLISHED, 4, 5)  # TCP_FIN_WAIT1, TCP_FIN_WAIT2


def _isNamed(program: socket.socket, attempt: Attempt) -> bool:
    """Whether it is the connection of this attempt."""
    return bool(program.getsockname() == attempt.local and program.getpeername() == attempt.remote)


class _Hole:
    """A listener of one family that answers nobody."""

    def __init__(self, family: int, host: str) -> None:
        self.family = family
        self.host = host
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listener.bind((host, 0))
        self._listener.listen(0)
        self.address: RawAddress = self._listener.getsockname()
        self._plug = socket.socket(family, socket.SOCK_STREAM)
        self._plug.connect(self.address)

    def close(self) -> None:
        """Close the listener, and what fills its queue."""
        self._plug.close()
        self._listener.close()

    def sharer(self) -> socket.socket:
        """A socket bound to the hole's address."""
        sock = _ours(self.family)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(self.address)
        except OSError:
            sock.close()
            raise
        return sock


@implementer(IPrivateNetwork)
class LoopbackNetwork:
    """The program's ends of connections on the loopback interface."""

    emulatesNames = True
    hasBack = False

    def __init__(self) -> None:
        self._holes = {int(socket.AF_INET): _Hole(socket.AF_INET, "127.0.0.1")}
        try:
            self._holes[int(socket.AF_INET6)] = _Hole(socket.AF_INET6, "::1")
        except OSError:  # a machine without ::1
            with contextlib.suppress(OSError):
                self._holes[int(socket.AF_INET6)] = _Hole(socket.AF_INET6, "::ffff:127.0.0.1")
        self.destroyed = [listenForDestroyed()]
        self._diagnosis = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)

    def program(self, family: int, back: bool = False) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
            _takeFromOursOnly(sock)
        except OSError:
            sock.close()
            raise
        return sock

    def bind(self, sock: socket.socket, address: InternetAddress) -> None:
        sock.bind((self._holes[int(sock.family)].host, 0))

    def hold(
        self, sock: socket.socket, bound: bool, local: InternetAddress, remote: InternetAddress, back: bool = False
    ) -> Attempt:
        hole = self._holes[int(sock.family)]
        blocking = os.get_blocking(sock.fileno())
        os.set_blocking(sock.fileno(), False)
        try:
            number = sock.connect_ex(hole.address)
        finally:
            os.set_blocking(sock.fileno(), blocking)
        if number != EINPROGRESS:
            raise OSError(number or EISCONN, os.strerror(number or EISCONN))
        return Attempt(socketCookie(sock), sock.getsockname(), hole.address)

    def release(self, attempt: Attempt, find: Finder) -> socket.socket:
        family = socket.AF_INET6 if ":" in attempt.local[0] else socket.AF_INET
        plain = self._holes[int(family)].sharer()
        try:
            connectAtOnce(plain, attempt.local)
            # The port may be another user's by now: no byte before it is known whose socket answered.
            program = find()
            if program is None:
                raise OSError(ECONNABORTED, os.strerror(ECONNABORTED))
            with program:
                # A quick program has sent its question and shut its side down by now.
                if tcpState(program) not in _CONNECTED or not _isNamed(program, attempt):
                    raise OSError(ECONNABORTED, os.strerror(ECONNABORTED))
        except OSError:
            plain.close()
            raise
        return plain

    def fail(self, attempt: Attempt, find: Finder) -> None:
        program = find()
        if program is not None:
            with program:
                linux.disconnect(program.fileno())

    def listen(self, sock: socket.socket, backlog: int) -> None:
        sock.listen(backlog)

    def ring(self, name: RawAddress) -> tuple[int, socket.socket]:
        family = socket.AF_INET6 if ":" in name[0] else socket.AF_INET
        bell = _ours(family)
        try:
            bell.bind((self._holes[int(family)].host, 0))
            connectAtOnce(bell, name)
        except OSError:
            bell.close()
            raise
        return int(bell.getsockname()[1]), bell

    def silence(self, cookie: int, name: RawAddress, find: Finder) -> None:
        program = find()
        if program is not None:
            with program:
                program.shutdown(socket.SHUT_RDWR)

    def living(self) -> set[int]:
        return {cookie for cookie, _, _, _ in dumpSockets(self._diagnosis, EXISTING)}

    def pair(self, family: int, local: InternetAddress, remote: InternetAddress) -> tuple[socket.socket, socket.socket]:
        host = self._holes[family].host
        plain = _ours(family)
        try:
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                _takeFromOursOnly(listener)
                listener.bind((host, 0))
                listener.listen(8)
                plain.bind((host, 0))
                connectAtOnce(plain, listener.getsockname())
                listener.settimeout(1)
                while True:
                    sock, peer = listener.accept()
                    if peer == plain.getsockname():  # else somebody else of this machine
                        break
                    sock.close()
        except OSError:
            plain.close()
            raise
        return sock, plain
