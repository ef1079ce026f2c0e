# SPDX-License-Identifier: MIT
"""Processes that look at TLS sockets, in a loop, while others change them: what they see must make sense at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_LINE = re.compile(
    r"\d+ (new|connecting|established|listen|dead|closed) (-|relay|ktls) \d+ \d+ \d+ (-|\S+:\d+) (-|\S+:\d+)"
)
_HEAD = "id state data-path uid inode tcp-inode local remote"
_REST = 0.005
"""Seconds between two looks: the others need the processors too."""

_TCP_INFO = 11
_FIONREAD = 0x541B


class Onlooker:
    """
    Does something again and again in a process of its own, until it is told to end.

    @ivar pid: the process.
    """

    def __init__(self, turn: Callable[[socket.socket], None]) -> None:
        """
        @param turn: done again and again; gets the control socket's other end.
        """
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid:
            theirs.close()
            return
        status = 1
        try:
            self.control.close()
            theirs.setblocking(False)  # recv_fds knows no flags
            turns = 0
            while not _ended(theirs):
                turn(theirs)
                turns += 1
            print(f"{turn.__qualname__.strip('_').split('.')[0]}: {turns} turns", flush=True)
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def __enter__(self) -> Onlooker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        """
        End it.

        @raise AssertionError: it has seen what makes no sense.
        """
        self.control.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert error is not None or not status, f"an onlooker ended with status {status}"


def _ended(control: socket.socket) -> bool:
    """Whether the other end is closed."""
    try:
        return not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


def proc(pid: int) -> Onlooker:
    """
    Reads C{/proc/net/ssa}, and what C{fdinfo} says of a process.

    @param pid: that process.
    """

    def read(_: socket.socket) -> None:
        time.sleep(_REST)
        head, *lines = Path("/proc/net/ssa").read_text().splitlines()
        assert head == _HEAD, head
        for line in lines:
            assert _LINE.fullmatch(line), line
        numbers = [int(line.split()[0]) for line in lines]
        assert numbers == sorted(set(numbers)), numbers
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for entry in os.scandir(f"/proc/{pid}/fdinfo"):
                with contextlib.suppress(FileNotFoundError):
                    text = Path(entry.path).read_text()
                    assert "ssa-id:" not in text or "ssa-tcp-inode:" in text, text

    return Onlooker(read)


def asker() -> Onlooker:
    """Asks the sockets that it is sent (SCM_RIGHTS, over its control socket) everything that needs no daemon; the last ones."""
    kept: list[socket.socket] = []

    def ask(control: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            for descriptor in socket.recv_fds(control, 1, 8)[1]:
                kept.append(socket.socket(fileno=descriptor))
        while len(kept) > 2:
            kept.pop(0).close()
        for sock in kept:
            for question in (
                sock.getsockname,
                sock.getpeername,
                lambda sock=sock: sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256),
                lambda sock=sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
                lambda sock=sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                lambda sock=sock: fcntl.ioctl(sock, _FIONREAD, bytes(4)),
                lambda sock=sock: select.select([sock], [sock], [sock], 0),
            ):
                with contextlib.suppress(OSError):
                    question()

    return Onlooker(ask)


def send(onlooker: Onlooker, sock: socket.socket) -> None:
    """Let an L{asker} ask a socket, too."""
    socket.send_fds(onlooker.control, [b"x"], [sock.fileno()])
