# SPDX-License-Identifier: MIT
"""
The programs that L{ssa.test.soak} runs under C{ssa run}; the standard library only.

Both take orders on standard input, a line each, and answer each with a line of JSON.
"""

from __future__ import annotations

import collections
import concurrent.futures
import errno
import itertools
import json
import os
import socket
import sys
import threading

IPPROTO_TLS = 205
TLS_REMOTE_HOSTNAME, TLS_TRUSTED_PEER_CERTIFICATES, TLS_CERTIFICATE_CHAIN, TLS_PRIVATE_KEY = 85, 87, 88, 89

AT_ONCE = 8
"""How many connections a client has at one time."""

SIZE = 20000
"""Bytes that go each way on a good connection: more than a record."""

KINDS = ("good", "expired", "other name", "good", "truncated", "hangs up", "good", "no TLS", "refused", "good", "abandoned")
"""What happens to each connection of the client, one after the other; all but the last names have a server of their own."""

EXPECTED = {
    "good": "",
    "expired": "EKEYEXPIRED",
    "other name": "EKEYREJECTED",
    "truncated": "ECONNRESET",
    "hangs up": "EPROTO",
    "no TLS": "EPROTO",
    "refused": "ECONNREFUSED",
    "abandoned": "EINPROGRESS",
}
"""The errno that each kind must give."""


def _exchange(sock: socket.socket) -> None:
    sock.sendall(b"x" * SIZE)
    sock.shutdown(socket.SHUT_WR)
    size = 0
    while data := sock.recv(65536):
        size += len(data)
    if size != SIZE:
        raise AssertionError(f"{size} bytes came back, not {SIZE}")


def _once(kind: str, port: int, authorities: str) -> str:
    """One connection; returns an errno's name, "" if all went well."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) as sock:
        try:
            sock.setsockopt(IPPROTO_TLS, TLS_TRUSTED_PEER_CERTIFICATES, authorities.encode())
            sock.setsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, b"localhost")
            if kind == "abandoned":
                sock.setblocking(False)
            sock.connect(("127.0.0.1", port))
            _exchange(sock)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def client(authorities: str, ports: dict[str, int]) -> None:
    """
    An order is a number of connections; the answer counts the results that were wrong, by kind and errno.

    @param ports: where the server for each kind is.
    """
    kinds = itertools.cycle(KINDS)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for order in sys.stdin:
            wrong: collections.Counter[str] = collections.Counter()
            work = [next(kinds) for _ in range(int(order))]
            for kind, result in zip(work, pool.map(lambda kind: _once(kind, ports[kind], authorities), work), strict=True):
                if result != EXPECTED[kind]:
                    wrong[f"{kind}: {result or 'no error'}"] += 1
            print(json.dumps(wrong), flush=True)


def server(chain: str, key: str) -> None:
    """Sends back what each connection brings.  Prints its port; the answer to any order counts connections and failures."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
    listener.setsockopt(IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, chain.encode())
    listener.setsockopt(IPPROTO_TLS, TLS_PRIVATE_KEY, key.encode())
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    counts: collections.Counter[str] = collections.Counter()

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
                counts["good"] += 1
            except OSError as error:
                counts[errno.errorcode.get(error.errno or 0, str(error))] += 1

    def accept() -> None:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            while True:
                connection, _ = listener.accept()
                pool.submit(echo, connection)

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps(listener.getsockname()[1]), flush=True)
    for _ in sys.stdin:
        print(json.dumps(counts), flush=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        client(sys.argv[2], json.loads(sys.argv[3]))
    else:
        server(sys.argv[2], sys.argv[3])
