# SPDX-License-Identifier: MIT
"""
Servers that answer a ClientHello with what no library would: bytes by hand, RFC 5246 section 7.4.1.3.
"""

from __future__ import annotations

import os
import socket

from ssa.test.badservers import Serve

SSL_3_0 = 0x0300
TLS_1_0 = 0x0301
TLS_1_1 = 0x0302
TLS_1_2 = 0x0303

# The IANA registry "TLS Cipher Suites".
NULL_SHA256 = 0x003B
RC4_SHA = 0x0005
TRIPLE_DES_SHA = 0x000A
STATIC_RSA = 0x009C  # TLS_RSA_WITH_AES_128_GCM_SHA256
ANONYMOUS = 0x00A6  # TLS_DH_anon_WITH_AES_128_GCM_SHA256
EXPORT = 0x0003  # TLS_RSA_EXPORT_WITH_RC4_40_MD5
ECDHE_RSA = 0xC02F  # TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256

# extended_master_secret (RFC 7627) and an empty renegotiation_info (RFC 5746), so that only the choice is bad.
_EXTENSIONS = bytes.fromhex("0017 0000 ff01 0001 00")


def _record(sock: socket.socket) -> bytes:
    """Read one whole record, without its header."""
    data = b""
    while len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5], "big"):
        more = sock.recv(65536)
        if not more:
            break
        data += more
    return data[5:]


def choosing(cipher: int, version: int = TLS_1_2) -> Serve:
    """
    A server that chooses a cipher and a version whatever the client has offered.

    @param cipher: its number in the registry.
    """

    def serve(sock: socket.socket) -> None:
        hello = _record(sock)
        # handshake type and length (4), version (2), random (32), then the session id with its length
        session = hello[38 : 39 + hello[38]]
        body = version.to_bytes(2, "big") + os.urandom(32) + session + cipher.to_bytes(2, "big") + b"\0"
        if version > SSL_3_0:
            body += len(_EXTENSIONS).to_bytes(2, "big") + _EXTENSIONS
        message = b"\x02" + len(body).to_bytes(3, "big") + body
        sock.sendall(b"\x16" + version.to_bytes(2, "big") + len(message).to_bytes(2, "big") + message)
        while sock.recv(4096):
            pass

    return serve


def greeting(sock: socket.socket) -> None:
    """A server of another protocol, which speaks first: SMTP (RFC 5321 section 4.2)."""
    sock.sendall(b"220 server.example ESMTP ready\r\n")
    sock.recv(4096)
    sock.sendall(b"500 5.5.2 Error: bad syntax\r\n")
