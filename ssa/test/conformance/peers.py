# SPDX-License-Identifier: MIT
"""
Peers of TLS sockets: ordinary sockets with TLS done by pyOpenSSL, which can also misbehave.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from cryptography.x509 import load_pem_x509_certificate
from OpenSSL import SSL, crypto

from ssa.test.conformance.runner import PATIENCE
from ssa.test.pki import CA, Credential, testCA

SECONDS: Final = 10.0 * PATIENCE
"""How long a peer waits for anything."""

NAME: Final = "server.example"


@lru_cache(maxsize=1)
def credential() -> Credential:
    """The certificate of good servers, for L{NAME} and the loopback addresses."""
    return testCA().issue([NAME, "127.0.0.1", "127.0.0.2", "::1"])


def serverContext(
    good: Credential | None = None, *, alpn: tuple[bytes, ...] = (), version: int = 0, clientCA: CA | None = None
) -> SSL.Context:
    """
    A context for servers.

    @param good: the server's certificate; L{None} for L{credential}.
    @param version: the only version, 0x0303 or 0x0304; 0 for both.
    @param clientCA: demand a certificate that it issued.
    """
    identity = good or credential()
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    _identify(context, identity)
    _limit(context, version)
    if alpn:
        context.set_alpn_select_callback(
            lambda _, offered: next((each for each in alpn if each in offered), SSL.NO_OVERLAPPING_PROTOCOLS)
        )
    if clientCA is not None:
        context.get_cert_store().add_cert(_loaded(clientCA))  # type: ignore[union-attr]
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *arguments: bool(arguments[-1]))
    return context


def clientContext(*, version: int = 0, certificate: Credential | None = None) -> SSL.Context:
    """A context for clients; they do not look at the server's certificate unless the case does."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if certificate is not None:
        _identify(context, certificate)
    _limit(context, version)
    return context


def _loaded(authority: CA) -> crypto.X509:
    return crypto.X509.from_cryptography(load_pem_x509_certificate(authority.pem))


def _identify(context: SSL.Context, identity: Credential) -> None:
    context.use_privatekey(crypto.PKey.from_cryptography_key(identity.key))
    context.use_certificate(crypto.X509.from_cryptography(identity.chain[0]))
    for certificate in identity.chain[1:]:
        context.add_extra_chain_cert(crypto.X509.from_cryptography(certificate))


def _limit(context: SSL.Context, version: int) -> None:
    if version:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)


class Peer:
    """
    The other end of a connection: a blocking socket, each wait of which is bounded by L{SECONDS}.

    @ivar sock: its TCP socket.
    @ivar tls: its TLS connection.
    """

    def __init__(self, sock: socket.socket, context: SSL.Context, server: bool, name: str = NAME) -> None:
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(SECONDS), 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SECONDS), 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.tls = SSL.Connection(context, sock)
        if server:
            self.tls.set_accept_state()
        else:
            self.tls.set_connect_state()
            if name:
                self.tls.set_tlsext_host_name(name.encode())

    def handshake(self) -> None:
        """
        Do the handshake.

        @raise SSL.Error: it failed.
        """
        self.tls.do_handshake()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.tls.send(bytes(view[: 1 << 20])) :]
            except SSL.WantWriteError:
                raise TimeoutError("the peer could not send") from None

    def recv(self, size: int = 65536) -> bytes:
        """
        What has come, at least one byte; nothing after close_notify.

        @raise TimeoutError: nothing came.
        @raise SSL.Error: the stream ended in another way.
        """
        try:
            return self.tls.recv(size)
        except SSL.ZeroReturnError:
            return b""
        except SSL.WantReadError:
            raise TimeoutError("nothing came to the peer") from None

    def exactly(self, size: int) -> bytes:
        """So many bytes, or those before the end."""
        parts = bytearray()
        while len(parts) < size and (part := self.recv(min(size - len(parts), 1 << 18))):
            parts += part
        return bytes(parts)

    def rest(self) -> bytes:
        """All until close_notify."""
        parts = bytearray()
        while part := self.recv(1 << 18):
            parts += part
        return bytes(parts)

    def closeNotify(self) -> None:
        """Say that no more will be sent; TCP stays open."""
        self.tls.shutdown()

    def truncate(self) -> None:
        """End TCP's stream without close_notify."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the TCP connection off."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close TCP, without close_notify unless it has been sent."""
        self.sock.close()


class Server:
    """
    Accepts connections in a thread and does their handshakes, one thread for each.

    @ivar address: where it listens.
    @ivar failures: what went wrong in handshakes and talks.
    """

    def __init__(
        self,
        talk: Callable[[Peer], None],
        context: SSL.Context | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        delay: float = 0.0,
        backlog: int = 1024,
        quiet: bool = False,
        hold: bool = False,
    ) -> None:
        """
        @param talk: called in the connection's thread after the handshake; the connection is closed after it.
        @param port: where to listen; 0 for any.
        @param delay: seconds that it waits before each handshake.
        @param quiet: handshakes may fail.
        @param hold: no handshake begins before L{release}.
        """
        self._talk = talk
        self._released = threading.Event()
        if not hold:
            self._released.set()
        self._context = context or serverContext()
        self._delay = delay
        self._quiet = quiet
        self.failures: list[BaseException] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(backlog)
        self.address = self._listener.getsockname()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._released.wait(SECONDS)
            if self._delay:
                time.sleep(self._delay)
            peer = Peer(sock, self._context, server=True)
            try:
                peer.handshake()
            except (SSL.Error, OSError):
                if not self._quiet:
                    raise
                return
            self._talk(peer)
        except BaseException as failure:
            self.failures.append(failure)
        finally:
            sock.close()

    def release(self) -> None:
        """Let the handshakes begin."""
        self._released.set()

    def close(self) -> None:
        """Listen no more."""
        self.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(SECONDS)

    def join(self) -> None:
        """Wait for the talks to end."""
        for thread in self._threads:
            thread.join(SECONDS)


def echo(peer: Peer) -> None:
    """Send back what comes, then close_notify."""
    while data := peer.recv(1 << 16):
        peer.send(data)
    peer.closeNotify()
