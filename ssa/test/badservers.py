# SPDX-License-Identifier: MIT
"""
Servers that misbehave in the ways that the socket API has an errno for, and
a good one; each in a thread, on a free loopback port.

They use OpenSSL through Python's own C{ssl}, or pyOpenSSL where that cannot do it, not the code under test.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator

from OpenSSL import SSL, crypto

from ssa.test.pki import Credential

Serve = Callable[[socket.socket], None]

_RESET = struct.pack("ii", 1, 0)


def serverContext(
    credential: Credential,
    *,
    maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ciphers: str = "",
    alpn: list[str] | None = None,
    clientCA: bytes = b"",
) -> ssl.SSLContext:
    """A context for a server, at security level 0 so that it can be as bad as the test wants."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(f"{ciphers or 'ALL'}:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = maximum
    with tempfile.NamedTemporaryFile() as chain, tempfile.NamedTemporaryFile() as key:
        chain.write(credential.chainPEM)
        chain.flush()
        key.write(credential.keyPEM)
        key.flush()
        context.load_cert_chain(chain.name, key.name)
    if alpn is not None:
        context.set_alpn_protocols(alpn)
    if clientCA:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clientCA.decode())
    return context


def echo(context: ssl.SSLContext) -> Serve:
    """Do the handshake, echo until the client's close_notify, answer it."""

    def serve(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            while True:
                data = tls.recv(65536)
                if not data:
                    break
                tls.sendall(data)
            tls.unwrap()

    return serve


def stapling(credential: Credential, answer: bytes = b"", version: int = 0) -> Serve:
    """A server that staples an answer, and says one word."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_privatekey(crypto.PKey.from_cryptography_key(credential.key))
    context.use_certificate(crypto.X509.from_cryptography(credential.certificate))
    for certificate in credential.chain[1:]:
        context.add_extra_chain_cert(crypto.X509.from_cryptography(certificate))
    if version:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    context.set_ocsp_server_callback(lambda connection, data: answer)

    def serve(sock: socket.socket) -> None:
        sock.setblocking(True)
        connection = SSL.Connection(context, sock)
        connection.set_accept_state()
        try:
            connection.do_handshake()
            connection.send(b"hello")
            while connection.recv(100):
                pass
        except SSL.Error:
            pass

    return serve


def truncate(context: ssl.SSLContext) -> Serve:
    """Send some data, then end TCP without close_notify."""

    def serve(sock: socket.socket) -> None:
        tls = context.wrap_socket(sock, server_side=True)
        tls.sendall(b"some data")
        tls.recv(1)
        os.close(tls.detach())

    return serve


def notTLS(sock: socket.socket) -> None:
    """Speak HTTP."""
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def alert(sock: socket.socket) -> None:
    """Answer with the fatal alert handshake_failure (RFC 8446 section 6)."""
    sock.recv(4096)
    sock.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
    sock.recv(4096)


def closing(sock: socket.socket) -> None:
    """Read the ClientHello and close."""
    sock.recv(4096)


def resetting(sock: socket.socket) -> None:
    """Read the ClientHello and reset."""
    sock.recv(4096)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def stalling(sock: socket.socket) -> None:
    """Say nothing until the client goes."""
    while sock.recv(4096):
        pass


def garbage(sock: socket.socket) -> None:
    """Answer with a record of random content."""
    sock.recv(4096)
    sock.sendall(b"\x16\x03\x03\x00\x40" + os.urandom(64))
    sock.recv(4096)


class Server:
    """
    A listening socket with a thread for each connection.

    @ivar port: where it listens.
    @ivar errors: what its connections raised.
    """

    def __init__(self, serve: Serve, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._serve = serve
        self._listener = socket.create_server((host, 0), family=family)
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.errors: list[BaseException] = []
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            # Python's ssl takes the descriptor away from the socket; this one is for the end.
            spare = connection.dup()
            thread = threading.Thread(target=self._one, args=(connection, spare), daemon=True)
            with self._lock:
                self._connections.append(spare)
                self._threads.append(thread)
            thread.start()

    def _one(self, connection: socket.socket, spare: socket.socket) -> None:
        try:
            with connection:
                self._serve(connection)
        except Exception as error:
            self.errors.append(error)
        finally:
            with self._lock:
                self._connections.remove(spare)
                spare.close()

    def close(self) -> None:
        """End the server and its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        with self._lock:
            threads = list(self._threads)
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(5)


@contextlib.contextmanager
def running(serve: Serve, host: str = "127.0.0.1") -> Iterator[Server]:
    """A server for the time of a with statement."""
    server = Server(serve, host)
    try:
        yield server
    finally:
        server.close()
