# SPDX-License-Identifier: MIT
"""
The program under C{ssa run}: connects to the server, case after case, and writes down what came of each.

C{python -m ssa.test.vectors.program FILE PORT OUT EVERY [own]}: C{own} sets the trust anchor by TLS_TRUSTED_PEER_CERTIFICATES;
otherwise it is the configuration's.  EVERY is 1 for all cases, 2 for every second one.  OUT gets a JSON array in each line:
the case's number in the file, the errno (0 for a connection), TLS_ERROR, what the server says, and C{""} or what is wrong
with the daemon after the case.
"""

from __future__ import annotations

import errno
import itertools
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

from ssa.api import IPPROTO_TLS, Option
from ssa.test.vectors.cases import Case, load
from ssa.test.vectors.server import PING, PONG

WORKERS: Final = 8


class Worker(threading.Thread):
    """Takes case after case."""

    def __init__(self, cases: tuple[Case, ...], numbers: Iterator[int], port: int, trusted: bytes, out: TextIO) -> None:
        super().__init__()
        self._cases = cases
        self._numbers = numbers
        self._control = socket.create_connection(("127.0.0.1", port))
        self._lines = self._control.makefile("rw", encoding="ascii")
        self._port = int(self._lines.readline())
        self._trusted = trusted
        self._out = out

    def run(self) -> None:
        """All that are left."""
        for number in self._numbers:
            if number >= len(self._cases):
                break
            self._out.write(json.dumps([number, *self._one(number)]) + "\n")

    def _one(self, number: int) -> list[Any]:
        print(number, file=self._lines, flush=True)
        assert self._lines.readline() == "ready\n"
        case = self._cases[number]
        outcome, told, daemon = 0, "", ""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) as sock:
            try:
                if self._trusted:
                    sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, self._trusted)
                sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, case.host.encode())
                sock.connect(("127.0.0.1", self._port))
                sock.sendall(PING)
                if sock.recv(len(PONG)) != PONG:
                    told = "the answer is missing"
                sock.shutdown(socket.SHUT_WR)
            except OSError as failure:
                outcome = failure.errno or errno.EIO
            try:
                if outcome:
                    told = sock.getsockopt(IPPROTO_TLS, Option.TLS_ERROR, 1024).rstrip(b"\0").decode()
                # Nobody but the daemon knows the number: it has outlived the case.
                if not any(sock.getsockopt(IPPROTO_TLS, Option.TLS_ID, 8)):
                    daemon = "TLS_ID is 0"
            except OSError as failure:
                daemon = f"after connect: {failure}"
        return [outcome, told, self._lines.readline().strip(), daemon]


def main(file: str, port: str, out: str, every: str, own: str = "") -> None:
    """Connect to all of them."""
    collection = load(Path(file))
    trusted = collection.root if own == "own" else b""
    numbers = itertools.count(0, int(every))
    with open(out, "w", buffering=1, encoding="utf-8") as stream:
        workers = [Worker(collection.cases, numbers, int(port), trusted, stream) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
