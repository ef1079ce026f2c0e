# SPDX-License-Identifier: MIT
"""
TLS 1.3 by hand after a handshake by OpenSSL: a peer that sends any record, and sees every record that arrives.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

from ssa.tls.ktls import CIPHER, KeyLog, TrafficKey

ALERT, HANDSHAKE, DATA = 21, 22, 23
"""Types of records, RFC 8446 section 5.1."""

WARNING, FATAL = 1, 2
CLOSE_NOTIFY, UNEXPECTED_MESSAGE, HANDSHAKE_FAILURE, USER_CANCELED = 0, 10, 40, 90
TICKET, CERTIFICATE_REQUEST, KEY_UPDATE = 4, 13, 24

_HEADER = struct.Struct("!BHH")
_VERSION = 0x0303
_TAG = 16
_LARGEST = 16384


def exactly(sock: socket.socket, size: int) -> bytes:
    """
    So many bytes.

    @raise EOFError: the stream ends before.
    """
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            raise EOFError(f"the stream ended with {len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)


def exactRecord(sock: socket.socket) -> bytes:
    """
    One whole record, and nothing of what follows it.

    @raise EOFError: the stream has ended.
    """
    header = exactly(sock, _HEADER.size)
    return header + exactly(sock, _HEADER.unpack(header)[2])


def shakeHands(sock: socket.socket, context: SSL.Context, isServer: bool) -> tuple[KeyLog, int]:
    """
    Do a handshake, and read nothing behind it.

    @param sock: blocks.
    @param context: a new one, for this connection only.
    @return: the secrets, and how many records were sent after the handshake: the tickets of a server.
    @raise SSL.Error: it failed.
    """
    log = KeyLog()
    context.set_keylog_callback(lambda _, line: log.logged(line))
    context.set_tls13_ciphersuites(CIPHER.encode())
    connection = SSL.Connection(context, None)
    if isServer:
        connection.set_accept_state()
    else:
        connection.set_connect_state()
        connection.set_tlsext_host_name(b"server.example")
    while True:
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            _flush(connection, sock)
            connection.bio_write(exactRecord(sock))
        else:
            # A client's last flight is under the keys of the handshake.
            sent = _flush(connection, sock)
            return log, sent if isServer else 0


def _flush(connection: SSL.Connection, sock: socket.socket) -> int:
    """
    Send what a connection has to say.

    @return: how many records that was.
    """
    try:
        data = connection.bio_read(1 << 20)
    except SSL.WantReadError:
        return 0
    sock.sendall(data)
    count = 0
    while data:
        data = data[_HEADER.size + _HEADER.unpack(data[: _HEADER.size])[2] :]
        count += 1
    return count


class RecordPeer:
    """
    The other end of a connection, record by record.

    @ivar sock: its TCP socket, which blocks.
    """

    def __init__(self, sock: socket.socket, context: SSL.Context, isServer: bool) -> None:
        """
        Do the handshake.

        @raise SSL.Error: it failed.
        """
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        log, sent = shakeHands(sock, context, isServer)
        self._sending, self._receiving = log.keys(isServer, sent)

    def _nonce(self, key: TrafficKey) -> bytes:
        return (int.from_bytes(key.iv, "big") ^ key.sequence).to_bytes(12, "big")

    # sending

    def seal(self, kind: int, content: bytes, padding: int = 0) -> bytes:
        """A record, which counts as sent."""
        inner = content + bytes([kind]) + bytes(padding)
        header = _HEADER.pack(DATA, _VERSION, len(inner) + _TAG)
        sealed = AESGCM(self._sending.key).encrypt(self._nonce(self._sending), inner, header)
        self._sending = replace(self._sending, sequence=self._sending.sequence + 1)
        return header + sealed

    def send(self, kind: int, *contents: bytes) -> None:
        """Send records of one type, all at once."""
        self.sock.sendall(b"".join(self.seal(kind, content) for content in contents))

    def data(self, content: bytes) -> None:
        """Send data, in as many records as it needs."""
        self.send(DATA, *(content[start : start + _LARGEST] for start in range(0, len(content), _LARGEST)))

    def ticket(self, size: int = 100) -> None:
        """Send a session ticket."""
        self.send(HANDSHAKE, ticket(size))

    def alert(self, description: int, level: int = FATAL) -> None:
        """Send an alert."""
        self.send(ALERT, bytes([level, description]))

    def closeNotify(self) -> None:
        """Say that no more will be sent; TCP stays open."""
        self.alert(CLOSE_NOTIFY, WARNING)

    def fin(self) -> None:
        """End TCP's stream."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the TCP connection off."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # receiving

    def read(self) -> tuple[int, bytes]:
        """
        The next record but tickets: its type and its content.

        @raise EOFError: TCP's stream has ended.
        @raise OSError: it was reset, or nothing has come.
        """
        while True:
            record = exactRecord(self.sock)
            key = self._receiving
            inner = AESGCM(key.key).decrypt(self._nonce(key), record[_HEADER.size :], record[: _HEADER.size]).rstrip(b"\0")
            self._receiving = replace(key, sequence=key.sequence + 1)
            if inner[-1] != HANDSHAKE:
                return inner[-1], inner[:-1]

    def exactly(self, size: int) -> bytes:
        """Data of so many bytes, which ends with a record."""
        data = bytearray()
        while len(data) < size:
            kind, content = self.read()
            if kind != DATA:
                raise AssertionError(f"a record of type {kind} instead of data: {content!r}")
            data += content
        return bytes(data)

    def rest(self) -> tuple[bytes, list[bytes], str]:
        """
        All that comes until the end.

        @return: the data, the alerts behind it, and C{"fin"} or C{"reset"}.
        """
        data = bytearray()
        alerts: list[bytes] = []
        while True:
            try:
                kind, content = self.read()
            except EOFError:
                return bytes(data), alerts, "fin"
            except ConnectionResetError:
                return bytes(data), alerts, "reset"
            if kind == ALERT:
                alerts.append(content)
            elif kind == DATA and not alerts:
                data += content
            else:
                raise AssertionError(f"a record of type {kind} after {alerts}")

    def close(self) -> None:
        """Close TCP, without close_notify unless it has been sent."""
        self.sock.close()


def message(kind: int, body: bytes) -> bytes:
    """A message of the handshake."""
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def ticket(size: int = 100) -> bytes:
    """A session ticket whose content looks like other messages."""
    return message(TICKET, bytes([KEY_UPDATE]) * size)


def keyUpdate() -> bytes:
    """The peer's announcement that it has changed its key."""
    return message(KEY_UPDATE, b"\0")
