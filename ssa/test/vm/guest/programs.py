# SPDX-License-Identifier: MIT
"""What programs do with TLS sockets, as single system calls."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

from ssa.api import IPPROTO_TLS, UPGRADE_FORMAT, HostnameAddress, Option, Role, encodeAddress

_libc = ctypes.CDLL(None, use_errno=True)


def tls(family: int = socket.AF_INET) -> socket.socket:
    """A TLS socket."""
    return socket.socket(family, socket.SOCK_STREAM, IPPROTO_TLS)


def connectRaw(sock: socket.socket, address: bytes) -> None:
    """
    connect(2) with any bytes as address.

    @raise OSError: it failed.
    """
    if _libc.connect(sock.fileno(), address, len(address)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def connectName(sock: socket.socket, name: str, port: int) -> None:
    """connect(2) to a name."""
    connectRaw(sock, encodeAddress(HostnameAddress(name, port)))


def upgrade(sock: socket.socket, tcp: int, role: Role = Role.CLIENT) -> None:
    """TLS_UPGRADE."""
    sock.setsockopt(IPPROTO_TLS, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, tcp, role))


def getOption(sock: socket.socket, name: Option, room: int) -> bytes:
    """
    getsockopt(2) of a TLS option; other threads go on meanwhile, which they do not in Python's own.

    @raise OSError: it failed.
    """
    value, size = ctypes.create_string_buffer(room), ctypes.c_uint(room)
    if _libc.getsockopt(sock.fileno(), IPPROTO_TLS, int(name), value, ctypes.byref(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value.raw[: size.value]


def server(family: int = socket.AF_INET) -> socket.socket:
    """A TCP listener on a loopback address, of which nobody has to accept what connects to it."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    listener.listen(128)
    return listener


def drain(listener: socket.socket) -> None:
    """Close the connections that wait at a listener."""
    listener.setblocking(False)
    try:
        while True:
            listener.accept()[0].close()
    except BlockingIOError:
        pass
    finally:
        listener.setblocking(True)
