# SPDX-License-Identifier: MIT
"""
A process whose threads do everything to TLS sockets that programs can, in no order, to the same sockets at the same time.

Calls may fail in any way; the kernel has to survive, and every call has to end when the process is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import ENETDOWN

from ssa.api import IPPROTO_TLS, UPGRADE_FORMAT, Option
from ssa.test.conformance.peers import NAME, credential
from ssa.test.pki import testCA
from ssa.test.vm.guest.case import setOption
from ssa.test.vm.guest.programs import connectName, getOption, tls

THREADS = 4
MOST = 24
"""How many sockets a process keeps."""

_FIONREAD = 0x541B
_TIOCOUTQ = 0x5411
_PATIENCE = 10.0
_WITHOUT = 0.3
_REST = 0.002
_HOLD = 0.3
_GET = (Option.TLS_REMOTE_HOSTNAME, Option.TLS_CHOSEN_CIPHER, Option.TLS_ERROR, Option.TLS_PEER_IDENTITY, Option.TLS_DATA_PATH)


ACTS: Mapping[str, int] = {
    "create": 8, "converse": 6, "serve": 6, "connect": 4, "name": 4, "bind": 2, "listen": 3, "relisten": 3, "accept": 4,
    "visit": 3, "send": 6, "receive": 6, "sendFile": 1, "shutdown": 3, "duplicate": 1, "pass": 1, "take": 1, "poll": 2,
    "options": 3, "ask": 3, "linger": 1, "close": 2, "upgrade": 6, "own": 1,
}
"""What threads do, and how often."""


@dataclass(frozen=True)
class Surroundings:
    """
    What the processes have in common.

    @ivar good: the address of a server that does TLS and sends back what it gets.
    @ivar bad: the addresses of servers that do something else, or nothing.
    @ivar path: of a file with certificates.
    @ivar way: both ends of a way for descriptors, from any of the processes to any; neither blocks.
    @ivar deadline: when all end.
    @ivar done: counts how often each thing that a thread does has succeeded, in all processes.
    """

    good: tuple[str, int]
    bad: Sequence[tuple[str, int]]
    path: str
    way: tuple[socket.socket, socket.socket]
    deadline: Deadline
    done: Tally


class Deadline:
    """A moment in memory that processes share, so that it can be put off."""

    def __init__(self, seconds: float) -> None:
        """
        @param seconds: until then.
        """
        self._memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")
        self._memory[0] = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then; 0: it is over."""
        return max(0.0, self._memory[0] - time.monotonic())

    def move(self, seconds: float) -> None:
        """From now on it is so many seconds from now."""
        self._memory[0] = time.monotonic() + seconds


class Tally:
    """Counts in memory that processes share; where two count at the same moment, one is lost."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def add(self, which: int) -> None:
        """Count."""
        self._memory[which] += 1

    def named(self) -> dict[str, int]:
        """The counts."""
        return {name: self._memory[index] for index, name in enumerate(ACTS)}


class Turmoil:
    """
    The process.

    @ivar wrong: what must not happen.
    """

    def __init__(self, around: Surroundings, seed: str) -> None:
        self.wrong: list[str] = []
        self._around = around
        self._seed = seed
        self._sockets: list[socket.socket] = []
        self._listeners: list[socket.socket] = []

    def run(self) -> None:
        """Until the deadline, or the end of the process."""
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, random.Random(self._seed).random() < 0.5)
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        threads = [threading.Thread(target=self._loop, args=(index,), daemon=True) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        # What is sent to the process is for one of the threads, in the middle of its call.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        while left := self._around.deadline.left():
            time.sleep(min(left, 1.0))

    def _loop(self, index: int) -> None:
        choice = random.Random(f"{self._seed}/{index}")
        names, weights = list(ACTS), list(ACTS.values())
        while self._around.deadline.left():
            name = choice.choices(names, weights)[0]
            try:
                getattr(self, f"_{name}")(choice)
                self._around.done.add(names.index(name))
            except (OSError, ValueError, IndexError) as failure:  # what programs get; IndexError: there is no socket
                # The next daemon needs the processors to start.
                time.sleep(_WITHOUT if getattr(failure, "errno", 0) == ENETDOWN or not self._sockets else _REST)
            except Exception as failure:
                self.wrong.append(f"{name}: {failure!r}")
                raise

    # Sockets

    def _keep(self, choice: random.Random, sock: socket.socket) -> socket.socket:
        """Add a socket to those that all threads use; an old one goes."""
        self._sockets.append(sock)
        if len(self._sockets) > MOST:
            self._sockets.pop(choice.randrange(MOST)).close()
        return sock

    def _any(self, choice: random.Random) -> socket.socket:
        return choice.choice(list(self._sockets))

    def _new(self, choice: random.Random, family: int = socket.AF_INET) -> socket.socket:
        sock = tls(family)
        self._timed(choice, sock)
        return sock

    def _timed(self, choice: random.Random, sock: socket.socket) -> None:
        """Most calls end by themselves after some time."""
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            if choice.random() < 0.9:
                moment = struct.pack("ll", choice.choice((0, 1, 5)), choice.randrange(100_000, 900_000))
                sock.setsockopt(socket.SOL_SOCKET, option, moment)

    def _create(self, choice: random.Random) -> None:
        sock = self._keep(choice, self._new(choice, choice.choice((socket.AF_INET, socket.AF_INET, socket.AF_INET6))))
        if choice.random() < 0.4:
            os.set_blocking(sock.fileno(), False)

    def _address(self, choice: random.Random) -> tuple[str, int]:
        own: list[tuple[str, int]] = [sock.getsockname()[:2] for sock in self._listeners[-3:]]
        return choice.choice([self._around.good, self._around.good, *self._around.bad, *own])

    def _connect(self, choice: random.Random) -> None:
        sock = self._any(choice)
        address = self._address(choice)
        sock.connect(("::ffff:127.0.0.1" if sock.family == socket.AF_INET6 else address[0], address[1]))

    def _name(self, choice: random.Random) -> None:
        name = choice.choice(("localhost", "127.0.0.1", "server.invalid", "::1"))
        connectName(self._any(choice), name, self._address(choice)[1])

    def _bind(self, choice: random.Random) -> None:
        self._any(choice).bind(("127.0.0.1", 0))

    def _trust(self, sock: socket.socket) -> None:
        setOption(sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
        setOption(sock, Option.TLS_REMOTE_HOSTNAME, NAME.encode())

    def _converse(self, choice: random.Random) -> None:
        """A connection as it should be, to its end or not."""
        sock = tls()
        try:
            self._trust(sock)
            if choice.random() < 0.4:
                os.set_blocking(sock.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(self._around.good)
            select.select([], [sock], [], _PATIENCE)
            sock.send(b"x" * choice.randrange(1, 20_000))
            select.select([sock], [], [], _PATIENCE)
            sock.recv(choice.randrange(1, 30_000))
        finally:
            if choice.random() < 0.5:
                sock.close()
            else:
                self._keep(choice, sock)

    def _serve(self, choice: random.Random) -> None:
        """A listener as it should be."""
        sock = self._new(choice)
        self._keep(choice, sock)
        chain = choice.choice((self._around.path.encode(), credential().chainPEM))
        setOption(sock, Option.TLS_CERTIFICATE_CHAIN, chain)
        setOption(sock, Option.TLS_PRIVATE_KEY, credential().keyPEM)
        sock.bind(("127.0.0.1", 0))
        sock.listen(choice.randrange(5))
        self._listeners.append(sock)
        del self._listeners[:-4]

    def _listen(self, choice: random.Random) -> None:
        self._any(choice).listen(choice.randrange(5))

    def _relisten(self, choice: random.Random) -> None:
        sock = choice.choice(self._listeners)
        sock.shutdown(socket.SHUT_RDWR)
        if choice.random() < 0.8:
            sock.listen(3)

    def _accept(self, choice: random.Random) -> None:
        sock, _ = choice.choice((*self._listeners, self._any(choice))).accept()
        self._timed(choice, sock)
        self._keep(choice, sock)

    def _visit(self, choice: random.Random) -> None:
        """Connect to a listener of this process, and accept that or another connection."""
        listener = choice.choice(self._listeners)
        sock = self._keep(choice, tls())
        self._trust(sock)
        sock.connect(listener.getsockname())
        sock.send(b"z")
        self._keep(choice, listener.accept()[0])

    def _send(self, choice: random.Random) -> None:
        flags = choice.choice((0, 0, socket.MSG_DONTWAIT, socket.MSG_NOSIGNAL, socket.MSG_MORE))
        self._any(choice).send(b"y" * choice.choice((1, 100, 16_384, 300_000)), flags)

    def _receive(self, choice: random.Random) -> None:
        flags = choice.choice((0, 0, socket.MSG_DONTWAIT, socket.MSG_PEEK, socket.MSG_WAITALL, socket.MSG_TRUNC))
        self._any(choice).recvmsg(choice.choice((1, 100, 16_384, 300_000)), 100, flags)

    def _sendFile(self, choice: random.Random) -> None:
        with open(self._around.path, "rb", buffering=0) as file:
            os.sendfile(self._any(choice).fileno(), file.fileno(), 0, 10_000)

    def _shutdown(self, choice: random.Random) -> None:
        self._any(choice).shutdown(choice.choice((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)))

    def _duplicate(self, choice: random.Random) -> None:
        self._keep(choice, self._any(choice).dup())

    def _pass(self, choice: random.Random) -> None:
        """To another process."""
        socket.send_fds(self._around.way[0], [b"x"], [self._any(choice).fileno()])

    def _take(self, choice: random.Random) -> None:
        """From another process."""
        for descriptor in socket.recv_fds(self._around.way[1], 1, 4)[1]:
            self._keep(choice, socket.socket(fileno=descriptor))

    def _poll(self, choice: random.Random) -> None:
        sockets = list(self._sockets)
        with select.epoll() as poller:
            for sock in sockets:
                with contextlib.suppress(OSError):
                    poller.register(sock, select.EPOLLIN | select.EPOLLOUT | choice.choice((0, select.EPOLLET)))
            for _ in range(choice.randrange(1, 4)):
                poller.poll(_HOLD / 3)

    def _options(self, choice: random.Random) -> None:
        sock = self._any(choice)
        which = choice.randrange(7)
        if which == 0:
            setOption(sock, Option.TLS_REMOTE_HOSTNAME, choice.choice((NAME, "other.example", "")).encode())
        elif which == 1:
            value = choice.choice((testCA().pem, b"/etc/ssl/certs", b"/none", b"/dev/tty"))
            setOption(sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, value)
        elif which == 2:
            sock.setsockopt(socket.IPPROTO_TCP, choice.choice((socket.TCP_NODELAY, socket.TCP_CORK)), choice.randrange(2))
        elif which == 3:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, choice.randrange(1, 99))
        elif which == 4:
            sock.setsockopt(socket.SOL_SOCKET, choice.choice((socket.SO_SNDBUF, socket.SO_RCVBUF)), choice.randrange(500_000))
        elif which == 5:
            sock.setsockopt(socket.SOL_SOCKET, choice.choice((socket.SO_KEEPALIVE, socket.SO_REUSEADDR)), choice.randrange(2))
        else:
            self._timed(choice, sock)

    def _ask(self, choice: random.Random) -> None:
        sock = self._any(choice)
        which = choice.randrange(6)
        if which == 0:
            sock.getsockname()
        elif which == 1:
            sock.getpeername()
        elif which == 2:
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        elif which == 3:
            fcntl.ioctl(sock, choice.choice((_FIONREAD, _TIOCOUTQ)), bytes(4))
        elif which == 4:
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            getOption(sock, choice.choice(_GET), choice.choice((0, 10, 4096)))

    def _linger(self, choice: random.Random) -> None:
        linger = struct.pack("ii", choice.randrange(2), choice.randrange(3))
        self._any(choice).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _close(self, choice: random.Random) -> None:
        """While others may be in calls on it."""
        self._sockets.pop(choice.randrange(len(self._sockets))).close()

    def _upgrade(self, choice: random.Random) -> None:
        sock = self._keep(choice, tls())
        self._trust(sock)
        address = self._around.good if choice.random() < 0.7 else self._address(choice)
        with socket.create_connection(address) as tcp:
            os.set_blocking(sock.fileno(), choice.random() < 0.5)
            with contextlib.suppress(BlockingIOError):
                setOption(sock, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, tcp.fileno(), choice.choice((0, 0, 0, 1))))
        select.select([], [sock], [], _PATIENCE)
        sock.getpeername()  # it is connected

    def _own(self, choice: random.Random) -> None:
        """SIGIO."""
        sock = self._any(choice)
        fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_ASYNC)


def works(address: tuple[str, int]) -> None:
    """
    One connection, from its beginning to its clean end.

    @raise OSError: it does not.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) as sock:
        setOption(sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
        setOption(sock, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        sock.connect(address)
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello", "other data"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b"", "no end"
