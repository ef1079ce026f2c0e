# SPDX-License-Identifier: MIT
"""What the kernel knows about a connection's end: questions to sockets, and their close."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
import termios
from errno import ENOTCONN
from fcntl import ioctl

_TCP_CLOSE = 7
"""State of a TCP socket whose connection is over, first byte of struct tcp_info (linux/tcp.h, tcp_states.h)."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ORDINARY_CLOSE = struct.pack("ii", 0, 0)
_UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)


def queued(sock: socket.socket) -> int:
    """Bytes that the other end's kernel has not acknowledged yet, a FIN included (SIOCOUTQ, tcp(7))."""
    return int.from_bytes(ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder, signed=True)


def hasData(sock: socket.socket) -> bool:
    """Whether the kernel holds bytes to read (FIONREAD, tcp(7)); an end of stream is not seen."""
    return ioctl(sock.fileno(), termios.FIONREAD, bytes(4)) != b"\0\0\0\0"


def isOver(sock: socket.socket) -> bool:
    """Whether a reset or a time-out has ended a TCP connection, whatever there may still be to read."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE


def close(sock: socket.socket, reset: bool) -> None:
    """
    Close a socket without blocking, in order or by a reset. Does nothing if it is closed.

    A linger time that the program chose would block close(2), non-blocking socket or not, and with it everyone else.

    The kernel module keeps the real sockets of its programs open, so that this close is not the last one: the peer is told by
    shutdown(2) before.

    @param reset: send RST, and drop what is still queued.
    """
    if sock.fileno() == -1:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE if reset else _ORDINARY_CLOSE)
        if not reset:
            with contextlib.suppress(OSError):  # it is not connected any more
                sock.shutdown(socket.SHUT_RDWR)
    finally:
        sock.close()


def end(sock: socket.socket, reset: bool) -> None:
    """
    End a TCP connection for its peer as well, and close the socket as L{close} does.

    Others may hold the socket too: the kernel module does for as long as the program's own is open, and then close(2) alone
    would not be seen on the network.

    @param reset: send RST, and drop what is still queued.
    """
    if sock.fileno() == -1:
        return
    try:
        if reset:
            _disconnect(sock)
        else:
            sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno != ENOTCONN:  # over already
            raise
    finally:
        close(sock, reset)


def _disconnect(sock: socket.socket) -> None:
    """Dissolve the connection (connect(2) with AF_UNSPEC), which TCP does by RST."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
