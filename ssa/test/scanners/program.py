# SPDX-License-Identifier: MIT
"""
The server that is scanned, a program without TLS code: C{program.py CHAIN,CHAIN… KEY,KEY…} prints its port.

It answers whatever it gets with an empty HTTP response, so that scanners see a server of the kind that they know.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

from ssa.api import IPPROTO_TLS, Option

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def answer(sock: socket.socket) -> None:
    """Serve one connection."""
    with sock, contextlib.suppress(OSError):
        if sock.recv(65536):
            sock.sendall(ANSWER)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass


def main(chains: str, keys: str) -> None:
    """Serve until the process is ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) as listener:
        for path in chains.split(","):
            listener.setsockopt(IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, path.encode())
        for path in keys.split(","):
            listener.setsockopt(IPPROTO_TLS, Option.TLS_PRIVATE_KEY, path.encode())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        print(f"port {listener.getsockname()[1]}", flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=answer, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
