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
not enter and leave.  So one small helper process makes the namespaces and the sockets in them, for root too, and passes them
by SCM_RIGHTS.  What the supervisor does with them is in L{ssa.intercept.space}.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from errno import EBADMSG
from typing import Any

from ssa.intercept import linux

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
AT_A_TIME = 8
"""How many sockets the helper makes at once: its answer costs more than they do."""

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


class _Namespace:
    """One private network namespace, inside the helper."""

    def __init__(self) -> None:
        linux.unshare(linux.CLONE_NEWNET)
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _makeEverythingLocal()
        for name, value in _SETTINGS.items():
            _set(name, value)
        self.diagnosis = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)

    def descriptors(self) -> list[int]:
        """What the supervisor needs of it, made inside of it."""
        ports = os.open("/proc/sys/net/ipv4/ip_local_port_range", os.O_WRONLY | os.O_CLOEXEC)
        diagnosis = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        return [listenForDestroyed().detach(), diagnosis.detach(), ports]


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

    Requests are one packet each on a SOCK_SEQPACKET pair: JSON.  A reply is two: the descriptors, and then the result, when
    the helper has closed its copies, so that a program's close(2) is the last one.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._networks: list[tuple[_Namespace, _Namespace]] = []
        self._here: _Namespace | None = None

    def run(self) -> None:
        """Serve until the supervisor is gone, then end the attempts that still wait, so that no program hangs."""
        while True:
            try:
                data = self._control.recv(65536)
            except OSError:
                break
            if not data:
                break
            answer: list[Any]
            given: list[int] = []
            try:
                name, *arguments = json.loads(data)
                result, given = getattr(self, f"request_{name}")(*arguments)
                answer = [0, result]
            except OSError as error:
                answer = [error.errno or EBADMSG, str(error.strerror)]
            try:
                socket.send_fds(self._control, [b"descriptors"], given)
                for fd in given:
                    os.close(fd)
                self._control.send(json.dumps(answer).encode())
            except OSError:
                break
        for namespaces in self._networks:
            for namespace in namespaces:
                self._enter(namespace)
                self._abandon(namespace)

    def _enter(self, namespace: _Namespace) -> None:
        if self._here is not namespace:
            linux.setns(namespace.fd, linux.CLONE_NEWNET)
            self._here = namespace

    def request_open(self) -> tuple[int, list[int]]:
        """
        Make a front and a back.

        @return: their number; of each a socket that tells of destroyed sockets, one for sock_diag(7), and its
            C{ip_local_port_range}.
        """
        front = _Namespace()
        given = front.descriptors()
        self._here = back = _Namespace()
        given += back.descriptors()
        self._networks.append((front, back))
        return len(self._networks) - 1, given

    def request_sockets(self, network: int, back: bool, family: int) -> tuple[None, list[int]]:
        """New sockets."""
        self._enter(self._networks[network][back])
        made: list[int] = []
        try:
            for _ in range(AT_A_TIME):
                made.append(socket.socket(family, socket.SOCK_STREAM).detach())
        except OSError:
            if not made:
                raise
        return None, made

    def _abandon(self, namespace: _Namespace) -> None:
        """End every attempt that still waits."""
        for cookie, family, ours, theirs in dumpSockets(namespace.diagnosis, 1 << _SYN_SENT):
            try:
                destroySocket(namespace.diagnosis, cookie, family, ours, theirs)
            except OSError:
                continue  # it has ended by itself meanwhile


def destroySocket(diagnosis: socket.socket, cookie: int, family: int, ours: bytes, theirs: bytes) -> None:
    """
    End a socket as the kernel ends one that failed (SOCK_DESTROY of sock_diag(7)).

    @param diagnosis: a NETLINK_SOCK_DIAG socket of its namespace.
    @param ours: its address: the packed host and the port.
    @param theirs: its peer's.
    """
    identity = (
        ours[-2:]
        + theirs[-2:]
        + ours[:-2].ljust(16, b"\0")
        + theirs[:-2].ljust(16, b"\0")
        + struct.pack("=III", 0, cookie & 0xFFFFFFFF, cookie >> 32)
    )
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + identity
    _acknowledged(diagnosis, struct.pack("=IHHII", 16 + len(body), _SOCK_DESTROY, _NLM_F_REQUEST_ACK, 1, 0) + body)


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
