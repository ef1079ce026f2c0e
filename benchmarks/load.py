# SPDX-License-Identifier: MIT
"""
The load: a server for the far end, and a program for the near end that measures.

Usage: python -m benchmarks.load serve TLS_PORT PLAIN_PORT PEM_FILE
       python -m benchmarks.load program KIND PORT MEASURE AMOUNT       (KIND: tcp, tls or ssa)

The program connects first, prints C{ready}, waits for a line, measures, prints one line of JSON, waits for a line, and
ends: between the two lines its owner reads the CPU time of the proxies. What a connection is for is its first 9 bytes:
a letter (u: the server takes as many bytes as said and answers one; d: it sends them; e: it echoes messages of that
size) and a 64-bit number.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import ssl
import struct
import sys
import threading
import time
from typing import Any

HEADER = struct.Struct("!cQ")
PIECE = 1 << 18
MESSAGE = 1024
IPPROTO_TLS = 205
TLS_REMOTE_HOSTNAME = 85
TLS_TRUSTED_PEER_CERTIFICATES = 87


def serveOne(sock: Any) -> None:
    """Do what one connection asks for."""
    buffer = bytearray(PIECE)
    view = memoryview(buffer)
    with contextlib.suppress(OSError):
        header = b""
        while len(header) < HEADER.size:
            piece = sock.recv(HEADER.size - len(header))
            if not piece:
                return
            header += piece
        letter, size = HEADER.unpack(header)
        if letter == b"u":
            while size:
                size -= sock.recv_into(view[: min(size, PIECE)]) or size
            sock.sendall(b"k")
        elif letter == b"d":
            while size:
                sock.sendall(view[: min(size, PIECE)])
                size -= min(size, PIECE)
        elif letter == b"e":
            while True:
                got = 0
                while got < size:
                    count = sock.recv_into(view[got:size])
                    if not count:
                        return
                    got += count
                sock.sendall(view[:size])
        sock.recv(1)
    with contextlib.suppress(OSError):
        sock.close()


def acceptAll(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """A thread for each connection."""
    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is None:
            serveOne(sock)
        else:
            with contextlib.suppress(OSError):
                serveOne(context.wrap_socket(sock, server_side=True))
        sock.close()

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def serve(tlsPort: int, plainPort: int, pem: str) -> None:
    """The far end, until killed."""
    threading.stack_size(1 << 18)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.num_tickets = 0
    for port, choice in ((tlsPort, context), (plainPort, None)):
        listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        threading.Thread(target=acceptAll, args=(listener, choice), daemon=True).start()
    threading.Event().wait()


class Program:
    """The near end: connects in one of three ways, and measures."""

    def __init__(self, kind: str, port: int) -> None:
        self.kind = kind
        self.address = ("127.0.0.1", port)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    def connect(self, session: ssl.SSLSession | None = None) -> Any:
        sock = socket.socket(proto=IPPROTO_TLS if self.kind == "ssa" else 0)
        if self.kind == "ssa":
            authorities = os.environ["BENCHMARK_AUTHORITIES"].encode()
            sock.setsockopt(IPPROTO_TLS, TLS_TRUSTED_PEER_CERTIFICATES, authorities)
            sock.setsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, b"localhost")
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(self.address)
        if self.kind == "tls":
            return self.context.wrap_socket(sock, session=session)
        return sock

    def up(self, amount: int) -> dict[str, Any]:
        sock, data = self.connect(), bytes(PIECE)
        start = time.monotonic()
        sock.sendall(HEADER.pack(b"u", amount))
        for _ in range(amount // PIECE):
            sock.sendall(data)
        if sock.recv(1) != b"k":
            raise RuntimeError("the bytes did not arrive")
        seconds = time.monotonic() - start
        sock.close()
        return {"seconds": seconds}

    def down(self, amount: int) -> dict[str, Any]:
        sock, view, left = self.connect(), memoryview(bytearray(PIECE)), amount
        start = time.monotonic()
        sock.sendall(HEADER.pack(b"d", amount))
        while left:
            count = sock.recv_into(view)
            if not count:
                raise RuntimeError("the bytes did not arrive")
            left -= count
        seconds = time.monotonic() - start
        sock.close()
        return {"seconds": seconds}

    def echo(self, sock: Any, size: int) -> None:
        got = 0
        sock.sendall(bytes(size))
        while got < size:
            piece = sock.recv(size - got)
            if not piece:
                raise RuntimeError("no echo")
            got += len(piece)

    def pingpong(self, amount: int) -> dict[str, Any]:
        sock = self.connect()
        sock.sendall(HEADER.pack(b"e", MESSAGE))
        for _ in range(100):
            self.echo(sock, MESSAGE)
        times = []
        for _ in range(amount):
            start = time.perf_counter()
            self.echo(sock, MESSAGE)
            times.append(time.perf_counter() - start)
        sock.close()
        times.sort()
        return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}

    def full(self, amount: int) -> dict[str, Any]:
        start = time.monotonic()
        for _ in range(amount):
            sock = self.connect()
            sock.sendall(HEADER.pack(b"e", 1))
            self.echo(sock, 1)
            sock.close()
        return {"seconds": time.monotonic() - start}

    def resumed(self, amount: int) -> dict[str, Any]:
        session, reused = None, 0
        start = time.monotonic()
        for _ in range(amount):
            sock = self.connect(session)
            sock.sendall(HEADER.pack(b"e", 1))
            self.echo(sock, 1)
            reused += bool(sock.session_reused)
            session = sock.session
            sock.close()
        return {"seconds": time.monotonic() - start, "reused": reused}

    def idle(self, amount: int) -> dict[str, Any]:
        self.connections = []
        for _ in range(amount):
            sock = self.connect()
            sock.sendall(HEADER.pack(b"e", MESSAGE))
            self.echo(sock, MESSAGE)
            self.connections.append(sock)
        return {}


def main(arguments: list[str]) -> None:
    """See the module's text."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments[0] == "serve":
        serve(int(arguments[1]), int(arguments[2]), arguments[3])
        return
    kind, port, measure, amount = arguments[1:]
    program = Program(kind, int(port))
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(getattr(program, measure)(int(amount))), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1:])
