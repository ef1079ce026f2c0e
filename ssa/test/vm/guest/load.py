# SPDX-License-Identifier: MIT
"""Programs that keep making connections, in threads, and say what went wrong."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import pattern
from ssa.test.conformance.peers import NAME, Peer, Server, clientContext, credential, echo, serverContext
from ssa.test.pki import testCA
from ssa.test.vm.guest.case import SECONDS, setOption

SIZE = 20_000
"""Bytes that each connection carries in each direction, in pieces."""

_PIECE = 4_000
_PAUSE = 0.1
_DOWN = frozenset({errno.ENETDOWN})
_BROKEN = frozenset({errno.ECONNRESET, errno.EPIPE})


@contextlib.contextmanager
def call(name: str, allowed: frozenset[int]) -> Iterator[None]:
    """
    A call that may fail because the daemon is gone, in one of these ways and in no other.

    @raise Broken: it has failed so.
    """
    try:
        yield
    except OSError as failure:
        number = failure.errno or 0
        what = f"{name}: {errno.errorcode.get(number, str(failure))}"
        if number in allowed:
            raise Broken(what) from None
        raise AssertionError(what) from failure


class Broken(Exception):
    """The daemon is gone: what has failed, and how."""


class Worker(threading.Thread):
    """
    Does the same again and again.

    @ivar done: how often it has succeeded.
    @ivar broken: how often what has failed because of the daemon's end.
    @ivar wrong: what must not happen.
    @ivar begun: when the turn that it does now has begun.
    """

    def __init__(self, name: str, turn: Callable[[], None]) -> None:
        super().__init__(daemon=True, name=name)
        self.done = 0
        self.broken: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.begun = time.monotonic()
        self._turn = turn
        self._ended = False
        self.start()

    def run(self) -> None:
        while not self._ended:
            self.begun = time.monotonic()
            try:
                self._turn()
                self.done += 1
            except Broken as failure:
                self.broken[str(failure)] += 1
                time.sleep(_PAUSE)
            except Exception as failure:
                self.wrong.append(f"{self.name}: {type(failure).__name__}: {failure}")
                time.sleep(_PAUSE)

    def hasBegunSince(self, when: float) -> bool:
        """Whether the turn of that time has ended."""
        return self.begun > when

    def end(self) -> None:
        """No further turn."""
        self._ended = True


class Load:
    """
    Clients and servers with TLS sockets, and ordinary peers for each.

    @ivar workers: all of them.
    """

    def __init__(self, clients: int, servers: int) -> None:
        """
        @param clients: how many connect at a time.
        @param servers: how many accept at a time.
        """
        self._data = pattern(SIZE)
        self._server = Server(echo, serverContext(), quiet=True)
        self._context = clientContext()
        self.workers = [Worker(f"client {index}", self._connect) for index in range(clients)]
        for index in range(servers):
            listening = _Listening()
            self.workers += [
                Worker(f"server {index}", listening.serve),
                Worker(f"ordinary client {index}", lambda at=listening: self._visit(at)),  # type: ignore[misc]
            ]

    def close(self) -> None:
        """End all that can end."""
        for worker in self.workers:
            worker.end()
        for worker in self.workers:
            worker.join(SECONDS)
        self._server.close()

    @property
    def wrong(self) -> Sequence[str]:
        """What must not have happened."""
        return [what for worker in self.workers for what in worker.wrong]

    @property
    def broken(self) -> Counter[str]:
        """What has failed because of the daemon's end."""
        return sum((worker.broken for worker in self.workers), Counter())

    def done(self) -> list[int]:
        """How often each worker has succeeded."""
        return [worker.done for worker in self.workers]

    def _connect(self) -> None:
        """A client's turn."""
        with call("socket", _DOWN):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        with sock:
            with call("setsockopt", _DOWN):
                setOption(sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
                setOption(sock, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
            with call("connect", _DOWN):
                sock.connect(self._server.address)
            for at in range(0, SIZE, _PIECE):
                with call("send", _BROKEN):
                    sock.sendall(self._data[at : at + _PIECE])
                self._compare(_exactly(sock, _PIECE), at)
            with call("shutdown", _BROKEN):
                sock.shutdown(socket.SHUT_WR)
            with call("recv of the end", _BROKEN):
                assert sock.recv(1) == b"", "more than was sent came back"

    def _compare(self, came: bytes, at: int) -> None:
        assert came == self._data[at : at + _PIECE], f"a clean end, or other data, after {at} bytes: {len(came)} bytes"

    def _visit(self, at: _Listening) -> None:
        """An ordinary client's turn: TLS sees to it that an end without close_notify is an error."""
        try:
            with socket.create_connection(at.address, SECONDS) as sock:
                peer = Peer(sock, self._context, server=False)
                peer.handshake()
                for offset in range(0, SIZE, _PIECE):
                    peer.send(self._data[offset : offset + _PIECE])
                    self._compare(peer.exactly(_PIECE), offset)
                peer.closeNotify()
                assert peer.recv(1) == b"", "more than was sent came back"
        except (SSL.SysCallError, ConnectionError) as failure:
            raise Broken(f"ordinary client: {failure}") from None


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    with call("recv", _BROKEN):
        while len(parts) < size and (part := sock.recv(size - len(parts))):
            parts += part
    return bytes(parts)


class _Listening:
    """
    A server that begins anew after a daemon's end, on the port that it had.

    @ivar address: where it listens.
    """

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self.address = ("127.0.0.1", 0)
        self._listen()

    def _listen(self) -> None:
        with call("socket", _DOWN):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with call("setsockopt", _DOWN):
                setOption(sock, Option.TLS_CERTIFICATE_CHAIN, credential().chainPEM)
                setOption(sock, Option.TLS_PRIVATE_KEY, credential().keyPEM)
            with call("bind", frozenset()):
                sock.bind(self.address)
            with call("listen", _DOWN):
                sock.listen(16)
        except BaseException:
            sock.close()
            raise
        self._listener = sock
        self.address = sock.getsockname()

    def serve(self) -> None:
        """A turn."""
        if self._listener is None:
            self._listen()
        assert self._listener is not None
        try:
            with call("accept", _DOWN):
                sock, _ = self._listener.accept()
        except Broken:
            self._listener.close()
            self._listener = None
            raise
        with sock:
            while True:
                with call("accepted recv", _BROKEN):
                    data = sock.recv(65536)
                if not data:
                    return
                with call("accepted send", _BROKEN):
                    sock.sendall(data)
