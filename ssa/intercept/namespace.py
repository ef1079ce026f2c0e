# SPDX-License-Identifier: MIT
"""
The private network namespaces, and the helper process that makes sockets in them.

In a private namespace every address is local, so a socket there can carry the real addresses of a connection and yet reach
nothing but the supervisor.  There are two for each network namespace that programs live in:

  - the I{front}, where a program's socket is made.  While the TLS handshake runs it is in genuine SYN_SENT to its real
    destination; I{release} completes it by a TCP simultaneous open (RFC 9293 section 3.5) from a socket that is
    bound to that destination.  A program's listener lives there too and is rung for each connection that waits.
  - the I{back}, where both ends of an accepted connection are made.  It is another namespace because a program that talks
    to another one under the same supervisor needs the same pair of addresses twice.

An ordinary user may do all this only inside a user namespace, which a process with threads or with work to do elsewhere can
not enter and leave.  So one small helper process does it for everybody, root too, and passes sockets by SCM_RIGHTS.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from errno import EADDRNOTAVAIL, EBADMSG, EINPROGRESS, EISCONN, ETIMEDOUT
from typing import Any

from ssa.intercept import bpf, linux

_RTM_NEWROUTE = 24
_RTM_NEWLINK = 16
_NLM_F_REQUEST_ACK = 0x5
_NLM_F_CREATE = 0x400
NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SYN_SENT = 2
EXISTING = 0xFFFFFFFF & ~(1 << 6)
"""All states but TIME_WAIT, in which there is only the memory of a socket; for L{dumpSockets}."""
DESTROY_GROUPS = 0b101  # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY
_SO_COOKIE = 57
_SO_RCVBUFFORCE = 33
_NOTICES = 16 << 20  # bytes: as much as 10,000 sockets need that end at once
_TCP_REPAIR = 19
_IP_BIND_ADDRESS_NO_PORT = 24
_REPAIR_OFF_NO_WP = -1
_LINGER_RESET = struct.pack("ii", 1, 0)
_CONNECT_TIMEOUT = 200  # milliseconds: on loopback it takes microseconds; a lost one must not stop everybody

_SETTINGS = {
    "ipv4/ip_unprivileged_port_start": "0",
    "ipv4/ip_nonlocal_bind": "1",
    "ipv4/tcp_max_tw_buckets": "0",  # addresses are the real connection's to reserve, not ours
    "ipv4/tcp_syn_retries": "9",  # 1,023 s: longer than any handshake may take
    "ipv4/tcp_syncookies": "0",
    "ipv4/tcp_tw_reuse": "1",
    "ipv6/ip_nonlocal_bind": "1",
}

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""What connect(2) takes the wildcard addresses for."""

_RUNG_AT = {"0.0.0.0": "192.0.2.1", "::": "2001:db8::1"}  # noqa: S104
"""Where a listener of every address is rung: documentation (RFC 5737, RFC 3849), so that nobody listens there alone."""

UNBOUND = {socket.AF_INET: ("0.0.0.0", 0), socket.AF_INET6: ("::", 0)}  # noqa: S104
"""What getsockname(2) tells of a socket without an address."""

RawAddress = tuple[Any, ...]
"""An address as Python's sockets take it."""


def socketCookie(sock: socket.socket) -> int:
    """The kernel's number for a socket (SO_COOKIE of socket(7)): never used twice."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0])


def attachFilter(sock: socket.socket, program: bytes) -> None:
    """Attach a classic BPF program to a socket and lock it (SO_ATTACH_FILTER, SO_LOCK_FILTER of socket(7))."""
    description, _buffer = linux.packFilter(program)
    sock.setsockopt(socket.SOL_SOCKET, 26, description)
    sock.setsockopt(socket.SOL_SOCKET, 44, 1)


def _acknowledged(netlink: socket.socket, message: bytes) -> None:
    """Send a netlink request and raise the error that it is answered with."""
    netlink.send(message)
    answer = netlink.recv(65536)
    number = -struct.unpack_from("=i", answer, 16)[0]
    if number:
        raise OSError(number, os.strerror(number))


def _makeEverythingLocal() -> None:
    """Bring C{lo} up and make every address local in this thread's network namespace (rtnetlink(7))."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 1, 1, 1)  # struct ifinfomsg: interface 1, IFF_UP
        _acknowledged(netlink, struct.pack("=IHHII", 16 + len(body), _RTM_NEWLINK, _NLM_F_REQUEST_ACK, 1, 0) + body)
        for family in (socket.AF_INET, socket.AF_INET6):
            # struct rtmsg: table 255 (local), protocol RTPROT_BOOT, scope host for IPv4, type RTN_LOCAL; RTA_OIF = 1
            scope = 254 if family == socket.AF_INET else 0
            body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 255, 3, scope, 2, 0) + struct.pack("=HHI", 8, 4, 1)
            flags = _NLM_F_REQUEST_ACK | _NLM_F_CREATE
            try:
                _acknowledged(netlink, struct.pack("=IHHII", 16 + len(body), _RTM_NEWROUTE, flags, 1, 0) + body)
            except OSError:
                if family == socket.AF_INET:
                    raise
                # a machine without IPv6: socket(2) will tell programs


def _set(name: str, value: str) -> None:
    """Write a sysctl of this thread's network namespace; those of later kernels or of a missing IPv6 may be absent."""
    try:
        with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as setting:
            setting.write(value)
    except FileNotFoundError:
        pass


def listenForDestroyed() -> socket.socket:
    """A socket that tells of each TCP socket of this thread's network namespace that is no more (sock_diag(7))."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _NOTICES)
    except PermissionError:  # an ordinary user gets what the machine's limit allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NOTICES)
    sock.bind((0, DESTROY_GROUPS))
    return sock


class _Space:
    """One private network namespace, inside the helper."""

    def __init__(self) -> None:
        linux.unshare(linux.CLONE_NEWNET)
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _makeEverythingLocal()
        for name, value in _SETTINGS.items():
            _set(name, value)
        self.destroyed = listenForDestroyed()
        self.asked = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self.diagnosis = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self.ports = os.open("/proc/sys/net/ipv4/ip_local_port_range", os.O_WRONLY | os.O_CLOEXEC)


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


def _forceBind(sock: socket.socket, address: RawAddress) -> None:
    """Bind to an address that others may hold too (TCP_REPAIR), and leave SO_REUSEADDR as it was."""
    reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    try:
        sock.bind(address)
    finally:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_NO_WP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


def plainAddress(address: RawAddress) -> tuple[int, RawAddress]:
    """
    The family and address that the network sees: IPv4 for an IPv4-mapped one (RFC 4291 section 2.5.5.2).
    """
    host = str(address[0])
    if host.lower().startswith("::ffff:") and "." in host:
        return socket.AF_INET, (host[7:], address[1])
    return (socket.AF_INET6 if ":" in host else socket.AF_INET), tuple(address)


class NamespaceHelper:
    """
    The helper's side: owns the namespaces, serves one supervisor, ends with it.

    Requests and replies are one packet each on a SOCK_SEQPACKET pair: JSON, with descriptors beside it.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._networks: list[tuple[_Space, _Space]] = []
        self._here: _Space | None = None
        self._gate = bpf.socketGate()

    def run(self) -> None:
        """Serve until the supervisor is gone, then end the attempts that still wait, so that no program hangs."""
        while True:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._control, 65536, 4)
            except InterruptedError:
                continue
            except OSError:
                break
            if not data:
                break
            sockets = [socket.socket(fileno=fd) for fd in fds]
            answer: list[Any]
            given: list[socket.socket] = []
            try:
                name, *arguments = json.loads(data)
                result, given = getattr(self, f"request_{name}")(sockets, *arguments)
                answer = [0, result]
            except OSError as error:
                answer = [error.errno or EBADMSG, str(error)]
            try:
                socket.send_fds(self._control, [json.dumps(answer).encode()], [s.fileno() for s in given])
            except OSError:
                break
            finally:
                for sock in sockets + given:
                    sock.close()
        for spaces in self._networks:
            for space in spaces:
                self._enter(space)
                self._abandon(space)

    def _enter(self, space: _Space) -> None:
        if self._here is not space:
            linux.setns(space.fd, linux.CLONE_NEWNET)
            self._here = space

    def request_open(self, sockets: list[socket.socket]) -> tuple[int, list[socket.socket]]:
        """
        Make a front and a back.

        @return: their number; the sockets that tell of destroyed sockets, and two that can be asked for living ones.
        """
        front, back = _Space(), _Space()
        self._here = back
        self._networks.append((front, back))
        return len(self._networks) - 1, [front.destroyed, back.destroyed, front.asked, back.asked]

    def request_socket(
        self, sockets: list[socket.socket], network: int, back: bool, family: int
    ) -> tuple[None, list[socket.socket]]:
        """A program's new socket, behind the gate."""
        self._enter(self._networks[network][back])
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            attachFilter(sock, self._gate)
        except OSError:
            sock.close()
            raise
        return None, [sock]

    def request_bind(self, sockets: list[socket.socket], address: list[Any]) -> tuple[None, list[socket.socket]]:
        """Give a program's socket the address that its real socket has got."""
        _forceBind(sockets[0], tuple(address))
        return None, []

    def request_hold(
        self, sockets: list[socket.socket], network: int, back: bool, bound: bool, local: list[Any], remote: list[Any]
    ) -> tuple[None, list[socket.socket]]:
        """
        Put a program's socket in SYN_SENT, from and to the real addresses.

        The port is chosen by the connect itself, out of a range of one: a bind to the port would stay with the socket, and
        an attempt after a failed one has another port.
        """
        space = self._networks[network][back]
        self._enter(space)
        sock = sockets[0]
        blocking = os.get_blocking(sock.fileno())
        os.set_blocking(sock.fileno(), False)
        try:
            if not bound:
                os.pwrite(space.ports, b"%d %d" % (local[1], local[1]), 0)
                chosen = sock.getsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT) if sock.family == socket.AF_INET else 0
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                try:
                    sock.bind((local[0], 0, *local[2:]))
                finally:
                    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, chosen)
            result = sock.connect_ex(tuple(remote))
            if result == EADDRNOTAVAIL and not bound:
                # the port is somebody's by a bind (a remote port of another connection): share it by force
                _forceBind(sock, tuple(local))
                result = sock.connect_ex(tuple(remote))
        finally:
            os.set_blocking(sock.fileno(), blocking)
        if result != EINPROGRESS:
            raise OSError(result or EISCONN, os.strerror(result or EISCONN))
        return None, []

    def _peer(self, family: int, local: RawAddress) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, bpf.GATE_MARK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _forceBind(sock, local)
        except OSError:
            sock.close()
            raise
        return sock

    def request_release(
        self, sockets: list[socket.socket], network: int, back: bool, local: list[Any], remote: list[Any]
    ) -> tuple[None, list[socket.socket]]:
        """Complete an attempt; reply with the plaintext end."""
        self._enter(self._networks[network][back])
        family, theirs = plainAddress(tuple(remote))
        _, ours = plainAddress(tuple(local))
        sock = self._peer(family, theirs)
        try:
            connectAtOnce(sock, ours)
        except OSError:
            sock.close()
            raise
        return None, [sock]

    def request_fail(
        self, sockets: list[socket.socket], network: int, back: bool, cookie: int, local: list[Any], remote: list[Any]
    ) -> tuple[None, list[socket.socket]]:
        """End an attempt or a listener as the kernel ends one that failed (SOCK_DESTROY of sock_diag(7))."""
        self._destroy(self._networks[network][back], cookie, tuple(local), tuple(remote))
        return None, []

    def _destroy(self, space: _Space, cookie: int, local: RawAddress, remote: RawAddress) -> None:
        family, ours = plainAddress(local)
        _, theirs = plainAddress(remote)
        self._destroyRaw(
            space,
            cookie,
            family,
            socket.inet_pton(family, ours[0]) + struct.pack("!H", ours[1]),
            socket.inet_pton(family, theirs[0]) + struct.pack("!H", theirs[1]),
        )

    def _destroyRaw(self, space: _Space, cookie: int, family: int, ours: bytes, theirs: bytes) -> None:
        identity = (
            ours[-2:]
            + theirs[-2:]
            + ours[:-2].ljust(16, b"\0")
            + theirs[:-2].ljust(16, b"\0")
            + struct.pack("=III", 0, cookie & 0xFFFFFFFF, cookie >> 32)
        )
        body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + identity
        header = struct.pack("=IHHII", 16 + len(body), _SOCK_DESTROY, _NLM_F_REQUEST_ACK, 1, 0)
        _acknowledged(space.diagnosis, header + body)

    def request_listen(self, sockets: list[socket.socket], backlog: int) -> tuple[None, list[socket.socket]]:
        """Let a program's socket listen, whoever else holds the port in the front."""
        sock = sockets[0]
        reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.listen(backlog)
        finally:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        return None, []

    def request_ring(
        self, sockets: list[socket.socket], network: int, port: int, listener: list[Any]
    ) -> tuple[int, list[socket.socket]]:
        """
        Make a connection wait at a program's listener, so that it becomes readable.

        @return: the port of our end, by which C{accept} knows it.
        """
        space = self._networks[network][0]
        self._enter(space)
        family, address = plainAddress(tuple(listener))
        host = _RUNG_AT.get(address[0], address[0])
        sock = self._peer(family, ("127.0.0.1" if family == socket.AF_INET else "::1", port))
        try:
            connectAtOnce(sock, (host, *address[1:]))
        except OSError:
            sock.close()
            raise
        return port, [sock]

    def request_pair(
        self, sockets: list[socket.socket], network: int, family: int, local: list[Any], remote: list[Any]
    ) -> tuple[None, list[socket.socket]]:
        """Both ends of an accepted connection: the program's, and the plaintext end."""
        self._enter(self._networks[network][1])
        ours = tuple(local)
        theirs = tuple(remote)
        plainFamily, plainOurs = plainAddress(ours)
        _, plainTheirs = plainAddress(theirs)
        sock = socket.socket(family, socket.SOCK_STREAM)
        made = [sock]
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _forceBind(sock, ours)
            attachFilter(sock, self._gate)
            plain = self._peer(plainFamily, plainTheirs)
            made.append(plain)
            sock.setblocking(False)
            result = sock.connect_ex(theirs)
            if result != EINPROGRESS:
                raise OSError(result or EISCONN, os.strerror(result or EISCONN))
            connectAtOnce(plain, plainOurs)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            sock.setblocking(True)
            sock.connect_ex(theirs)  # tells the kernel that the attempt is over: the next one must be EISCONN
        except OSError:
            for one in made:
                one.close()
            raise
        return None, made

    def _abandon(self, space: _Space) -> None:
        """End every attempt that still waits."""
        for cookie, family, ours, theirs in dumpSockets(space.diagnosis, 1 << _SYN_SENT):
            try:
                self._destroyRaw(space, cookie, family, ours, theirs)
            except OSError:
                continue  # it has ended by itself meanwhile


def dumpSockets(diagnosis: socket.socket, states: int) -> list[tuple[int, int, bytes, bytes]]:
    """
    The TCP sockets of a namespace (SOCK_DIAG_BY_FAMILY of sock_diag(7)).

    @param diagnosis: a NETLINK_SOCK_DIAG socket of that namespace.
    @param states: a mask of C{1 << state}.
    @return: of each its cookie, its family, and its two addresses: the packed host and the port.
    """
    found: list[tuple[int, int, bytes, bytes]] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, states) + bytes(48)
        diagnosis.send(struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body)
        length = 4 if family == socket.AF_INET else 16
        done = False
        while not done:
            data = diagnosis.recv(1 << 20)
            while len(data) >= 16 and not done:
                size, kind = struct.unpack_from("=IH", data)
                done = kind in (_NLMSG_ERROR, _NLMSG_DONE) or size < 16
                if not done and size >= 16 + 4 + 48:
                    identity = data[20:68]
                    low, high = struct.unpack_from("=II", identity, 40)
                    ours = identity[4 : 4 + length] + identity[0:2]
                    theirs = identity[20 : 20 + length] + identity[2:4]
                    found.append((low | high << 32, family, ours, theirs))
                data = data[(size + 3) & ~3 :]
    return found
