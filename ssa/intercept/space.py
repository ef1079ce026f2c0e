# SPDX-License-Identifier: MIT
"""
One private network namespace, as the supervisor works with it from outside.

Only a process inside can make sockets there (L{ssa.intercept.namespace}); what is done with them afterwards can be done by
root, and by the ordinary user who made the namespace's user namespace: he has all capabilities over it
(user_namespaces(7)).  So the supervisor asks the helper for sockets, several at a time, and does everything else itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from errno import EADDRINUSE, EADDRNOTAVAIL, EINPROGRESS, EISCONN, ETIMEDOUT

from ssa.intercept import bpf
from ssa.intercept.namespace import (
    EXISTING,
    RawAddress,
    attachFilter,
    destroySocket,
    dumpSockets,
    plainAddress,
)

_TCP_REPAIR = 19
_REPAIR_OFF_NO_WP = -1
_IP_BIND_ADDRESS_NO_PORT = 24
_LINGER_RESET = struct.pack("ii", 1, 0)
_CONNECT_TIMEOUT = 200  # milliseconds: on loopback it takes microseconds; a lost one must not stop everybody
_PORTS_TRIED = 64
_RUNG_AT = {"0.0.0.0": "192.0.2.1", "::": "2001:db8::1"}  # noqa: S104
"""Where a listener of every address is rung: documentation (RFC 5737, RFC 3849), so that nobody listens there alone."""

Supply = Callable[[int], list[socket.socket]]
"""Makes some new sockets of a family inside the namespace."""


def connectAtOnce(sock: socket.socket, address: RawAddress) -> None:
    """
    Connect where the answer comes within microseconds or never.  The socket is left non-blocking, and a close of it that
    nothing was done to prevent resets the connection: a daemon that dies gives no clean end of stream.

    @raise OSError: it was refused, or there was no answer.
    """
    sock.setblocking(False)
    number = sock.connect_ex(address)
    if number == EINPROGRESS:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if poll.poll(_CONNECT_TIMEOUT) else ETIMEDOUT
    if number:
        raise OSError(number, os.strerror(number))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


@contextlib.contextmanager
def _keepingFamilies(sock: socket.socket) -> Iterator[None]:
    """
    Keep IPV6_V6ONLY as the program has it: bind(2) to an IPv6 address sets it, and the next address that is tried may be an
    IPv4-mapped one.  Only for a bind that takes no port, after which the option can still be set.
    """
    if sock.family != socket.AF_INET6:
        yield
        return
    chosen = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    yield
    if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) != chosen:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, chosen)


def _forceBind(sock: socket.socket, address: RawAddress) -> None:
    """Bind to an address that others may hold too (TCP_REPAIR), and leave SO_REUSEADDR as it was."""
    reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    try:
        sock.bind(address)
    finally:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_NO_WP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


class Space:
    """
    One namespace.

    @ivar destroyed: tells of destroyed sockets (sock_diag(7)).
    """

    def __init__(self, supply: Supply, destroyed: socket.socket, diagnosis: socket.socket, ports: int) -> None:
        """
        @param diagnosis: a NETLINK_SOCK_DIAG socket of the namespace.
        @param ports: its C{ip_local_port_range}, open for writing.
        """
        self.destroyed = destroyed
        self._supply = supply
        self._diagnosis = diagnosis
        self._ports = ports
        self._spare: dict[int, list[socket.socket]] = {socket.AF_INET: [], socket.AF_INET6: []}
        self._gate = bpf.socketGate()
        self._nextPort = 1

    def _socket(self, family: int) -> socket.socket:
        spare = self._spare[family]
        if not spare:
            spare += self._supply(family)
        return spare.pop()

    def program(self, family: int) -> socket.socket:
        """A program's new socket, behind the gate."""
        sock = self._socket(family)
        try:
            attachFilter(sock, self._gate)
        except OSError:
            sock.close()
            raise
        return sock

    def _peer(self, family: int, local: RawAddress) -> socket.socket:
        """A socket of ours, to which the gates are open."""
        sock = self._socket(family)
        try:
            sock.setsockopt(socket.SOL_SOCKET, bpf.SO_MARK, bpf.GATE_MARK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _forceBind(sock, local)
        except OSError:
            sock.close()
            raise
        return sock

    def bind(self, sock: socket.socket, address: RawAddress) -> None:
        """Give a program's socket the address that its real socket has got."""
        _forceBind(sock, address)

    def hold(self, sock: socket.socket, bound: bool, local: RawAddress, remote: RawAddress) -> None:
        """
        Put a program's socket in SYN_SENT, from and to the real addresses.

        The port is chosen by the connect itself, out of a range of one: a bind to the port would stay with the socket, and
        an attempt after a failed one has another port.
        """
        blocking = os.get_blocking(sock.fileno())
        os.set_blocking(sock.fileno(), False)
        try:
            if not bound:
                self._chooseAtConnect(sock, local)
            number = sock.connect_ex(remote)
            if number == EADDRNOTAVAIL and not bound:
                # the port is somebody's by a bind (a remote port of another connection): share it by force
                _forceBind(sock, local)
                number = sock.connect_ex(remote)
        finally:
            os.set_blocking(sock.fileno(), blocking)
        if number != EINPROGRESS:
            raise OSError(number or EISCONN, os.strerror(number or EISCONN))

    def _chooseAtConnect(self, sock: socket.socket, local: RawAddress) -> None:
        os.pwrite(self._ports, b"%d %d" % (local[1], local[1]), 0)
        chosen = sock.getsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT)
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        try:
            with _keepingFamilies(sock):
                sock.bind((local[0], 0, *local[2:]))
        finally:
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, chosen)

    def release(self, local: RawAddress, remote: RawAddress) -> socket.socket:
        """Complete an attempt; returns the plaintext end."""
        family, theirs = plainAddress(remote)
        _, ours = plainAddress(local)
        sock = self._peer(family, theirs)
        try:
            connectAtOnce(sock, ours)
        except OSError:
            sock.close()
            raise
        return sock

    def destroy(self, cookie: int, local: RawAddress, remote: RawAddress) -> None:
        """End an attempt or a listener as the kernel ends one that failed."""
        family, ours = plainAddress(local)
        _, theirs = plainAddress(remote)
        packed = [socket.inet_pton(family, host) + struct.pack("!H", port) for host, port, *_ in (ours, theirs)]
        destroySocket(self._diagnosis, cookie, family, *packed)

    def listen(self, sock: socket.socket, backlog: int) -> None:
        """Let a program's socket listen, whoever else holds the port in the namespace."""
        reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.listen(backlog)
        finally:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)

    def ring(self, listener: RawAddress) -> tuple[int, socket.socket]:
        """
        Make a connection wait at a program's listener, so that it becomes readable.

        @return: the port by which accept(2) will know it, and our end.
        """
        family, address = plainAddress(listener)
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        to = (_RUNG_AT.get(address[0], address[0]), *address[1:])
        # One port after the other.  A listener's queue holds fewer than there are, so a busy one is soon passed.
        for _ in range(_PORTS_TRIED):
            port = self._nextPort
            self._nextPort = port % 65535 + 1
            sock = None
            try:
                sock = self._peer(family, (host, port))
                connectAtOnce(sock, to)
            except OSError as error:
                if sock is not None:
                    sock.close()
                if error.errno not in (EADDRINUSE, EADDRNOTAVAIL):
                    raise
                continue
            return port, sock
        raise OSError(EADDRINUSE, os.strerror(EADDRINUSE))

    def pair(self, family: int, local: RawAddress, remote: RawAddress) -> tuple[socket.socket, socket.socket]:
        """Both ends of an accepted connection: the program's, and the plaintext end."""
        _, plainLocal = plainAddress(local)
        plainFamily, plainRemote = plainAddress(remote)
        sock = self._socket(family)
        made = [sock]
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _forceBind(sock, local)
            attachFilter(sock, self._gate)
            plain = self._peer(plainFamily, plainRemote)
            made.append(plain)
            sock.setblocking(False)
            number = sock.connect_ex(remote)
            if number != EINPROGRESS:
                raise OSError(number or EISCONN, os.strerror(number or EISCONN))
            connectAtOnce(plain, plainLocal)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            sock.setblocking(True)
            sock.connect_ex(remote)  # tells the kernel that the attempt is over: the next one must be EISCONN
        except OSError:
            for one in made:
                one.close()
            raise
        return sock, plain

    def living(self) -> set[int]:
        """The cookies of the sockets that the kernel lists."""
        return {cookie for cookie, _, _, _ in dumpSockets(self._diagnosis, EXISTING)}

    def close(self) -> None:
        """Close all descriptors; the programs' sockets live on."""
        for sock in [self.destroyed, self._diagnosis, *self._spare[socket.AF_INET], *self._spare[socket.AF_INET6]]:
            sock.close()
        os.close(self._ports)
