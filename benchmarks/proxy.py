# SPDX-License-Identifier: MIT
"""
The relay alone as a proxy: handshake, then L{ssa.relay.Relay}, as the daemon does it, without interceptor and checks.

Usage: python -m benchmarks.proxy CLIENT_PORT TLS_TARGET SERVER_PORT PLAIN_TARGET PEM_FILE
CLIENT_PORT takes plaintext and speaks TLS to TLS_TARGET; SERVER_PORT takes TLS and speaks plaintext to PLAIN_TARGET.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet import epollreactor
from twisted.python.failure import Failure

from ssa.plaintext import TCPEnd
from ssa.relay import Relay, RelayPool, prepareContext

CIPHER = b"TLS_AES_128_GCM_SHA256"


class Descriptor:
    """One step of a connection's life on the reactor: C{step} is called for any event, until C{remove}."""

    def __init__(self, reactor: Any, sock: socket.socket, step: Callable[[], None]) -> None:
        self.reactor = reactor
        self.fileno = sock.fileno
        self.doRead = self.doWrite = step

    def logPrefix(self) -> str:
        return "benchmark"

    def connectionLost(self, reason: Failure) -> None:
        self.doRead()

    def remove(self) -> None:
        self.reactor.removeReader(self)
        self.reactor.removeWriter(self)


class Proxy:
    """Accepts on one port, and joins each connection to a new one to the target."""

    def __init__(
        self, reactor: Any, pool: RelayPool, port: int, target: int, context: SSL.Context, server: bool
    ) -> None:
        self.reactor = reactor
        self.pool = pool
        self.target = ("127.0.0.1", target)
        self.context = context
        self.server = server
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setblocking(False)
        reactor.addReader(Descriptor(reactor, self.listener, self.accept))

    def accept(self) -> None:
        for _ in range(64):
            try:
                accepted, _ = self.listener.accept()
            except BlockingIOError:
                return
            accepted.setblocking(False)
            made = socket.socket()
            made.setblocking(False)
            made.connect_ex(self.target)
            for sock in (accepted, made):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tlsSocket, plainSocket = (accepted, made) if self.server else (made, accepted)
            tls = SSL.Connection(self.context, tlsSocket)
            if self.server:
                tls.set_accept_state()
            else:
                tls.set_connect_state()
            self.shakeHands(tls, tlsSocket, plainSocket)

    def shakeHands(self, tls: SSL.Connection, tlsSocket: socket.socket, plainSocket: socket.socket) -> None:
        def step() -> None:
            try:
                tls.do_handshake()
            except SSL.WantReadError:
                self.reactor.removeWriter(descriptor)
                self.reactor.addReader(descriptor)
            except SSL.Error:
                descriptor.remove()
                tlsSocket.close()
                plainSocket.close()
            else:
                descriptor.remove()
                Relay(self.reactor, tls, tlsSocket, TCPEnd(plainSocket), self.pool).start()

        descriptor = Descriptor(self.reactor, tlsSocket, step)
        if self.server:
            step()
        else:
            self.reactor.addWriter(descriptor)


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    clientPort, tlsTarget, serverPort, plainTarget = (int(argument) for argument in arguments[:4])
    reactor: Any = epollreactor.EPollReactor()  # type: ignore[no-untyped-call]
    pool = RelayPool(reactor)
    contexts = []
    for _ in range(2):
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_tls13_ciphersuites(CIPHER)
        prepareContext(context)
        contexts.append(context)
    contexts[1].use_certificate_chain_file(arguments[4])
    contexts[1].use_privatekey_file(arguments[4])
    contexts[1].set_session_id(b"benchmark")
    Proxy(reactor, pool, clientPort, tlsTarget, contexts[0], server=False)
    Proxy(reactor, pool, serverPort, plainTarget, contexts[1], server=True)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
