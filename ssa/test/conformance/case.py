# SPDX-License-Identifier: MIT
"""
What the cases have in common.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.peers import NAME, SECONDS, Peer, Server, clientContext, credential, serverContext
from ssa.test.pki import Credential, testCA

T = TypeVar("T")

LIBC: Final = ctypes.CDLL(None, use_errno=True)
RECORD: Final = 16384
"""The most plaintext that a record carries (RFC 8446 section 5.1)."""


class Thread(threading.Thread):
    """A thread with a result."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._result: Any = None
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as failure:
            self._failure = failure

    def result(self, seconds: float = SECONDS) -> Any:
        """
        Wait for it.

        @raise TimeoutError: it has not ended.
        """
        self.join(seconds)
        if self.is_alive():
            raise TimeoutError("the thread has not ended")
        if self._failure is not None:
            raise self._failure
        return self._result


def inOrder(*calls: Callable[[], object]) -> Callable[[], None]:
    """One call after the other."""

    def run() -> None:
        for call in calls:
            call()

    return run


class TLSCase(unittest.TestCase):
    """
    A case with TLS sockets, which are closed after it.

    @cvar version: the only TLS version that peers speak; 0 for the best.
    """

    version = 0
    maxDiff = 500

    def keep(self, thing: T) -> T:
        """Close something after the case."""
        self.addCleanup(thing.close)  # type: ignore[attr-defined]
        return thing

    # sockets

    def tlsSocket(self, family: int = socket.AF_INET, flags: int = 0) -> socket.socket:
        """A TLS socket."""
        return self.keep(socket.socket(family, socket.SOCK_STREAM | flags, IPPROTO_TLS))

    def clientSocket(self, family: int = socket.AF_INET, flags: int = 0, name: str = NAME) -> socket.socket:
        """A TLS socket that trusts the test's root and expects a name (C{""}: the address that it connects to)."""
        sock = self.tlsSocket(family, flags)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
        if name:
            sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, name.encode())
        return sock

    def listener(
        self,
        address: tuple[Any, ...] = ("127.0.0.1", 0),
        *,
        backlog: int = 128,
        flags: int = 0,
        identity: Credential | None = None,
        family: int | None = None,
    ) -> socket.socket:
        """A TLS socket that listens with a certificate."""
        if family is None:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = self.tlsSocket(family, flags)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.certify(sock, identity)
        sock.bind(address)
        sock.listen(backlog)
        return sock

    def certify(self, sock: socket.socket, identity: Credential | None = None) -> None:
        """Give a TLS socket a certificate."""
        identity = identity or credential()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, identity.chainPEM)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_PRIVATE_KEY, identity.keyPEM)

    # peers

    def server(self, talk: Callable[[Peer], None], context: SSL.Context | None = None, **options: Any) -> Server:
        """A server in a thread."""
        return self.keep(Server(talk, context or serverContext(version=self.version), **options))

    def plainListener(self, host: str = "127.0.0.1", backlog: int = 16) -> socket.socket:
        """An ordinary TCP listener."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self.keep(socket.socket(family, socket.SOCK_STREAM))
        sock.bind((host, 0))
        sock.listen(backlog)
        sock.settimeout(SECONDS)
        return sock

    def peerOf(self, listener: socket.socket, context: SSL.Context | None = None) -> Peer:
        """The next connection of an ordinary listener, with its handshake done."""
        sock, _ = listener.accept()
        peer = Peer(self.keep(sock), context or serverContext(version=self.version), server=True)
        peer.handshake()
        return peer

    def peerTo(self, address: Any, *, context: SSL.Context | None = None, name: str = NAME) -> Peer:
        """An ordinary TLS client that has connected."""
        sock = self.keep(socket.create_connection(address[:2], SECONDS))
        peer = Peer(sock, context or clientContext(version=self.version), server=False, name=name)
        peer.handshake()
        return peer

    def connected(self, context: SSL.Context | None = None) -> tuple[socket.socket, Peer]:
        """A TLS socket that has connected, and its peer."""
        listener = self.plainListener()
        accepting = Thread(lambda: self.peerOf(listener, context))
        sock = self.clientSocket()
        sock.connect(listener.getsockname())
        peer: Peer = accepting.result()
        listener.close()
        return sock, peer

    def accepted(self, context: SSL.Context | None = None) -> tuple[socket.socket, Peer]:
        """A TLS socket that accept has returned, and its peer."""
        listener = self.listener()
        connecting = Thread(lambda: self.peerTo(listener.getsockname(), context=context))
        self.readable(listener)
        sock = self.keep(listener.accept()[0])
        peer: Peer = connecting.result()
        listener.close()
        return sock, peer

    def bothEnds(self) -> tuple[socket.socket, socket.socket]:
        """Two TLS sockets that are connected with each other."""
        listener = self.listener()
        client = self.clientSocket()
        client.connect(listener.getsockname())
        self.readable(listener)
        server = self.keep(listener.accept()[0])
        listener.close()
        return client, server

    # statements

    def fails(self, number: int, call: Callable[..., Any], *arguments: Any, **options: Any) -> OSError:
        """
        Say that a call fails with an errno.

        @return: the exception.
        """
        try:
            result = call(*arguments, **options)
        except OSError as failure:
            self.assertEqual(errno.errorcode.get(failure.errno or 0), errno.errorcode[number], str(failure))
            return failure
        self.fail(f"{errno.errorcode[number]} expected, the result is {result!r:.80}")

    def readable(self, thing: Any, seconds: float = SECONDS) -> None:
        """Wait until it is readable."""
        self.assertTrue(select.select([thing], [], [], seconds)[0], "does not become readable")

    def writable(self, thing: Any, seconds: float = SECONDS) -> None:
        """Wait until it is writable."""
        self.assertTrue(select.select([], [thing], [], seconds)[1], "does not become writable")

    signals = 0
    """How many signals of L{interrupt} have come."""

    def interrupt(self, seconds: float, restart: bool) -> None:
        """
        Let a signal come to this thread in so many seconds.

        @param restart: with SA_RESTART.
        """

        def note(*_: object) -> None:
            self.signals += 1

        previous = signal.signal(signal.SIGUSR1, note)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        signal.siginterrupt(signal.SIGUSR1, not restart)

        def send() -> None:
            time.sleep(seconds)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        self.addCleanup(Thread(send).result)

    def eventually(self, question: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
        """Ask until the answer is yes."""
        end = time.monotonic() + seconds
        while not question():
            if time.monotonic() > end:
                self.fail(f"not within {seconds} s: {what}")
            time.sleep(0.005)

    def tlsError(self, sock: socket.socket) -> str:
        """What TLS_ERROR says."""
        return text(sock, Option.TLS_ERROR)

    def exactly(self, sock: socket.socket, size: int) -> bytes:
        """So many bytes of a blocking socket, or those before the end of the stream."""
        parts = bytearray()
        while len(parts) < size and (part := sock.recv(min(size - len(parts), 1 << 18))):
            parts += part
        return bytes(parts)

    def rest(self, sock: socket.socket) -> bytes:
        """All until the end of the stream."""
        parts = bytearray()
        while part := sock.recv(1 << 18):
            parts += part
        return bytes(parts)

    def child(self, call: Callable[[], object]) -> int:
        """
        Run something in a forked child; its assertions count.

        @return: the child's process id, which has to be waited for by L{reap}.
        """
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                call()
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        return pid

    def reap(self, pid: int, status: int = 0) -> None:
        """Say how a child ends."""
        ended: list[int] = []

        def over() -> bool:
            done, how = os.waitpid(pid, os.WNOHANG)
            if done:
                ended.append(os.waitstatus_to_exitcode(how))
            return bool(done)

        try:
            self.eventually(over, f"the end of child {pid}")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise
        self.assertEqual(ended, [status])


class PairCase(TLSCase):
    """A case with a connection, for both roles."""

    def pair(self) -> tuple[socket.socket, Peer]:
        """A TLS socket and its peer."""
        raise NotImplementedError


class ClientRole(PairCase):
    """The TLS socket connects."""

    def pair(self) -> tuple[socket.socket, Peer]:
        """A TLS socket and its peer."""
        return self.connected()


class ServerRole(PairCase):
    """The TLS socket comes from accept."""

    def pair(self) -> tuple[socket.socket, Peer]:
        """A TLS socket and its peer."""
        return self.accepted()


def text(sock: socket.socket, option: Option) -> str:
    """An option's string."""
    return value(sock, option).rstrip(b"\0").decode()


def value(sock: socket.socket, option: Option, size: int = 1 << 16) -> bytes:
    """An option's bytes, in a buffer of any size: the standard library's has at most 1024 bytes."""
    buffer = ctypes.create_string_buffer(size)
    length = ctypes.c_uint(size)
    ctypes.set_errno(0)
    if LIBC.getsockopt(sock.fileno(), IPPROTO_TLS, int(option), buffer, ctypes.byref(length)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[: length.value]


def number(sock: socket.socket, option: Option) -> int:
    """An option's number."""
    return int(sock.getsockopt(IPPROTO_TLS, option))


@contextlib.contextmanager
def epolled(sock: socket.socket, events: int) -> Iterator[select.epoll]:
    """An epoll instance with one registration."""
    with select.epoll() as epoll:
        epoll.register(sock, events)
        yield epoll


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two stretches are alike, so that what is lost, repeated or exchanged is noticed."""
    block = b"".join((seed + position).to_bytes(4, "big") for position in range(min(size, 1 << 18) // 4 + 1))
    if len(block) < size:
        import random

        return random.Random(seed).randbytes(size)
    return block[:size]


def edges(epoll: select.epoll, wanted: int) -> int:
    """What an edge-triggered epoll instance tells of one socket, all in one, until it has told what is wanted."""
    events = 0
    end = time.monotonic() + SECONDS
    while not events & wanted and time.monotonic() < end:
        for _, event in epoll.poll(0.5):
            events |= event
    return events
