# SPDX-License-Identifier: MIT
"""
The server: shows another chain on each connection, as it is told.

C{python -m ssa.test.vectors.server FILE} prints the port of its control socket.  Each control connection has a TLS port of its
own, which comes first, in a line.  Then, for each case: a line with the case's number in the file; a line C{ready}; one
connection to the TLS port; and a line that says what became of it: C{served}, or C{refused} and why.  The process ends with
its standard input.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from OpenSSL import SSL, crypto

from ssa.test.vectors.cases import Case, load

SECONDS: Final = 20
"""How long the server waits for a connection and for each step of it."""

PING: Final = b"ping"
PONG: Final = b"pong"


def context(case: Case) -> SSL.Context:
    """A context that shows the chain as it is, at security level 0: whether it is good is the client's question."""
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    made.set_cipher_list(b"ALL:@SECLEVEL=0")
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    first, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, der) for der in case.chain)
    made.use_certificate(first)
    for certificate in others:
        made.add_extra_chain_cert(certificate)
    made.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_ASN1, case.key))
    return made


def serve(listener: socket.socket, made: SSL.Context) -> str:
    """Serve one connection, and say what became of it."""
    try:
        sock, _ = listener.accept()
    except TimeoutError:
        return "refused nobody has connected"
    with sock:
        sock.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, SECONDS.to_bytes(8, sys.byteorder) + bytes(8))
        tls = SSL.Connection(made, sock)
        tls.set_accept_state()
        try:
            tls.do_handshake()
            said = tls.recv(len(PING))
            if said != PING:
                return f"refused it said {said!r}"
            tls.sendall(PONG)
            with contextlib.suppress(SSL.ZeroReturnError):
                tls.recv(1)
            tls.shutdown()
        except (SSL.Error, OSError) as error:
            return f"refused {type(error).__name__} {' '.join(str(error.args).split())}"
    return "served"


def obey(control: socket.socket, cases: tuple[Case, ...]) -> None:
    """Do what one control connection says, until it ends."""
    with control, socket.create_server(("127.0.0.1", 0)) as listener, control.makefile("rw", encoding="ascii") as lines:
        listener.settimeout(SECONDS)
        print(listener.getsockname()[1], file=lines, flush=True)
        for line in lines:
            made = context(cases[int(line)])
            print("ready", file=lines, flush=True)
            print(serve(listener, made), file=lines, flush=True)


def main(file: str) -> None:
    """Listen until standard input ends."""
    cases = load(Path(file)).cases
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            control, _ = listener.accept()
            threading.Thread(target=obey, args=(control, cases), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
