# SPDX-License-Identifier: MIT
"""
A program that races with itself, for L{ssa.test.test_races}: it runs under C{ssa run} and uses the standard library only.

Each race gets a TLS socket into the hands of two threads or processes at the wrong moment, again and again for a time, and then
writes L{MARKER} to the TLS socket, whatever has become of it.  The marker is never written to an ordinary socket: if it
arrives somewhere in plaintext, then a TLS socket has carried it there.  The last line of output is a JSON object of counts;
an exit status other than 0 means that something else went wrong.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

MARKER = b"this must be encrypted"
IPPROTO_TLS = 205
TLS_REMOTE_HOSTNAME, TLS_TRUSTED_PEER_CERTIFICATES = 85, 87
_MORE_SECONDS = 15.0

_libc = ctypes.CDLL(None, use_errno=True)
_UNCONNECTED = (
    errno.ENOTCONN, errno.EPIPE, errno.EAGAIN, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO,
)  # fmt: skip


def _address(family: int, port: int) -> bytes:
    """C{struct sockaddr_in} of the loopback interface."""
    return struct.pack("=H", family) + struct.pack("!H4B8x", port, 127, 0, 0, 1)


def _connect(fd: int, address: ctypes.Array[ctypes.c_char]) -> int:
    """connect(2) on a number, without the interpreter's lock; returns 0 or the errno."""
    return 0 if _libc.connect(fd, address, 16) == 0 else ctypes.get_errno()


class Race:
    """
    What the races share.

    @ivar counts: what has happened, for the report.
    """

    def __init__(self, sniffer: int, server: int, authorities: str, seconds: float, writes: bool) -> None:
        """
        @param sniffer: the port that must never see the marker.
        @param server: the port of a TLS server for C{localhost}.
        @param seconds: how long to race.
        @param writes: whether the marker must have been written once.
        """
        self._writes = writes
        self.sniffer = ctypes.create_string_buffer(_address(socket.AF_INET, sniffer), 16)
        self.server = ctypes.create_string_buffer(_address(socket.AF_INET, server), 16)
        self._authorities = authorities.encode()
        self._end = time.monotonic() + seconds
        self.counts: collections.Counter[str] = collections.Counter()

    def going(self) -> bool:
        """Whether there is time for another round; a machine with much to do gets more, until the race has shown something."""
        self.counts["rounds"] += 1
        now = time.monotonic()
        shown = self.counts["rounds"] > 5 and (self.counts["written"] > 0 or not self._writes)
        return now < self._end or (not shown and now < self._end + _MORE_SECONDS)

    def tls(self, blocking: bool = False) -> socket.socket:
        """A TLS socket that would trust the server."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        sock.setsockopt(IPPROTO_TLS, TLS_TRUSTED_PEER_CERTIFICATES, self._authorities)
        sock.setsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, b"localhost")
        sock.setblocking(blocking)
        return sock

    def ordinary(self) -> socket.socket:
        """A TCP socket."""
        sock = socket.socket()
        sock.setblocking(False)
        return sock

    def write(self, sock: socket.socket) -> None:
        """Write the marker to a TLS socket, in whatever state it is."""
        # Give what may be on its way there a moment to arrive: a poller's.
        try:
            sock.settimeout(0.02)
            sock.send(MARKER, socket.MSG_NOSIGNAL)
            self.counts["written"] += 1
        except TimeoutError:
            self.counts["not written"] += 1
        except OSError as error:
            if error.errno not in _UNCONNECTED:
                raise
            self.counts[errno.errorcode[error.errno]] += 1
        finally:
            sock.setblocking(False)

    def during(self, work: Callable[[], None], other: Callable[[], None]) -> None:
        """Call a function in this thread while another one is called over and over, at least once, in a second thread."""
        ready, stop = threading.Event(), threading.Event()
        problems: list[BaseException] = []

        def repeat() -> None:
            ready.set()
            try:
                while True:
                    other()
                    if stop.is_set():
                        return
            except BaseException as problem:
                problems.append(problem)

        thread = threading.Thread(target=repeat)
        thread.start()
        ready.wait()
        try:
            work()
        finally:
            stop.set()
            thread.join()
        if problems:
            raise problems[0]

    # The races.

    def tlsOverOrdinary(self) -> None:
        """The number of an ordinary socket becomes that of a TLS socket while connect(2) on it is under way."""
        while self.going():
            with self.tls() as tls, self.ordinary() as ordinary, self.ordinary() as spare:
                number = spare.fileno()

                def flip(number: int = number, tls: socket.socket = tls, ordinary: socket.socket = ordinary) -> None:
                    os.dup2(tls.fileno(), number)
                    os.dup2(ordinary.fileno(), number)

                def work(number: int = number) -> None:
                    for _ in range(20):
                        error = _connect(number, self.sniffer)
                        self.counts[errno.errorcode.get(error, "0")] += 1

                self.during(work, flip)
                self.write(tls)

    def ordinaryOverTLS(self) -> None:
        """The number of a TLS socket becomes that of an ordinary socket while connect(2) on it is under way."""
        turn = 0
        while self.going():
            turn += 1
            with self.tls(blocking=True) as tls, self.ordinary() as ordinary, self.ordinary() as spare:
                number = spare.fileno()
                os.dup2(tls.fileno(), number)

                def work(number: int = number) -> None:
                    self.counts[f"connect {errno.errorcode.get(_connect(number, self.server), '0')}"] += 1

                def replace(number: int = number, ordinary: socket.socket = ordinary, turn: int = turn) -> None:
                    time.sleep(turn % 8 * 0.003)  # before the call, within it, after it
                    os.dup2(ordinary.fileno(), number)

                self.during(work, replace)
                self.write(tls)
                try:
                    # If the call has met the ordinary socket, then it is connected to the server by its own doing; then
                    # it is an ordinary connection, on which nothing may be written here.
                    ordinary.getpeername()
                    self.counts["ordinary connected"] += 1
                except OSError:
                    self.counts["ordinary not connected"] += 1

    def sockaddrFlipping(self) -> None:
        """The address changes between two families and two ports while connect(2) reads it."""
        addresses = [self.server.raw, _address(socket.AF_UNSPEC, 0), self.sniffer.raw]
        memory = ctypes.create_string_buffer(16)

        def flip() -> None:
            for address in addresses:
                ctypes.memmove(memory, address, 16)

        while self.going():
            with self.tls() as tls:

                def work(tls: socket.socket = tls) -> None:
                    for _ in range(5):
                        self.counts[f"connect {errno.errorcode.get(_connect(tls.fileno(), memory), '0')}"] += 1

                self.during(work, flip)
                self.write(tls)

    def closeAndReuse(self) -> None:
        """The number is closed during a pending call, and opened again as an ordinary or another TLS socket."""
        turn = 0
        while self.going():
            turn += 1
            first = self.tls(blocking=True)
            number = first.detach()
            started = threading.Event()

            def pending(number: int = number, started: threading.Event = started) -> None:
                started.set()
                self.counts[f"connect {errno.errorcode.get(_connect(number, self.server), '0')}"] += 1

            thread = threading.Thread(target=pending)
            thread.start()
            started.wait()
            for _ in range(turn % 4):
                os.sched_yield()
            with self.tls() if turn % 2 else self.ordinary() as second:
                os.dup2(second.fileno(), number)  # closes the first socket's last descriptor, and takes its number
                thread.join()
                if turn % 2:
                    self.write(second)
                else:
                    self.counts["ordinary"] += 1
            os.close(number)

    def forkDuringConnect(self) -> None:
        """A process is forked while connect(2) is under way, and both write; every other child connects, too."""
        turn = 0
        while self.going():
            turn += 1
            with self.tls(blocking=True) as tls:
                children: list[int] = []

                def fork(tls: socket.socket = tls, children: list[int] = children, turn: int = turn) -> None:
                    if len(children) >= 3:
                        return
                    pid = os.fork()
                    if pid == 0:
                        try:
                            if turn % 2:
                                _connect(tls.fileno(), self.sniffer)
                            self.write(tls)
                        finally:
                            os._exit(0)
                    children.append(pid)

                def work(tls: socket.socket = tls) -> None:
                    self.counts[f"connect {errno.errorcode.get(_connect(tls.fileno(), self.server), '0')}"] += 1

                self.during(work, fork)
                self.write(tls)
                for child in children:
                    os.waitpid(child, 0)

    def setsockoptDuringConnect(self) -> None:
        """Options change while connect(2) is under way: what was verified is what the socket says afterwards."""
        names = [b"localhost", b"other.example"]
        while self.going():
            with self.tls(blocking=True) as tls:

                def change(tls: socket.socket = tls) -> None:
                    for name in names:
                        try:
                            tls.setsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, name)
                            self.counts["set"] += 1
                        except OSError as error:
                            self.counts[f"set {errno.errorcode.get(error.errno or 0, '0')}"] += 1

                failures: list[int] = []

                def work(tls: socket.socket = tls, failures: list[int] = failures) -> None:
                    failures.append(_connect(tls.fileno(), self.server))

                self.during(work, change)
                self.counts[f"connect {errno.errorcode.get(failures[0], '0')}"] += 1
                if failures[0] == 0:
                    name = tls.getsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, 256).rstrip(b"\0")
                    if name != b"localhost":
                        raise AssertionError(f"connected, and the peer's name is said to be {name!r}")
                elif failures[0] != errno.EKEYREJECTED:
                    raise AssertionError(f"connect: {os.strerror(failures[0])}")
                self.write(tls)


def sockets(seconds: float) -> None:
    """Make TLS sockets in several threads; print the numbers that cannot be theirs."""
    print("begin", flush=True)
    end = time.monotonic() + seconds
    wrong: list[int] = []

    def make() -> None:
        while time.monotonic() < end and not wrong:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
            if sock.fileno() <= 2:
                wrong.append(sock.detach())
            sock.close()

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("end", wrong, flush=True)


def interrupted(seconds: float) -> None:
    """Make TLS sockets while signals interrupt the calls; print how many descriptors are left that nobody knows of."""
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.siginterrupt(signal.SIGALRM, False)
    before = len(os.listdir("/proc/self/fd"))
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS).close()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(len(os.listdir("/proc/self/fd")) - before)


def main() -> None:
    """Run the race of the first argument."""
    name, sniffer, server, authorities, seconds, writes = sys.argv[1:]
    race = Race(int(sniffer), int(server), authorities, float(seconds), writes == "True")
    getattr(race, name)()
    print(json.dumps(race.counts))


if __name__ == "__main__":
    main()
