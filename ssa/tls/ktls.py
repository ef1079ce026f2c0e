# SPDX-License-Identifier: MIT
"""
kTLS: the keys of a TLS connection go into the kernel, which then encrypts and decrypts what the TCP socket carries.

Only TLS 1.3 with AES-128-GCM, where the kernel has it.  The secrets come from the keylog callback, the only place where
OpenSSL tells them; the keys and nonces follow from them (RFC 8446 section 7.3).  Whoever installs keys knows how many
records each side has already protected with them: a server's session tickets count.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

__all__ = ["CIPHER", "KeyLog", "TrafficKey", "install"]

CIPHER: Final = "TLS_AES_128_GCM_SHA256"
"""The cipher suite whose keys can be installed."""

_KEY_SIZE: Final = 16
_IV_SIZE: Final = 12
_SECRET_SIZE: Final = 32

# linux/tcp.h, linux/socket.h and linux/tls.h
_TCP_ULP: Final = 31
_SOL_TLS: Final = 282
_TLS_TX: Final = 1
_TLS_RX: Final = 2
_TLS_1_3_VERSION: Final = 0x0304
_TLS_CIPHER_AES_GCM_128: Final = 51

# struct tls12_crypto_info_aes_gcm_128: version, cipher, iv, key, salt, rec_seq.  TLS 1.3 has no explicit nonce: the salt is
# the beginning of its iv, and the field iv the rest.
_CRYPTO_INFO: Final = struct.Struct("=HH8s16s4s8s")
_SALT_SIZE: Final = 4


def _expandLabel(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 section 7.1, without a context."""
    label = b"tls13 " + label
    info = struct.pack("!HB", size, len(label)) + label + b"\0"
    return HKDFExpand(hashes.SHA256(), size, info).derive(secret)


@dataclass(frozen=True)
class TrafficKey:
    """
    What protects the records of one direction.

    @ivar key: of AES-128.
    @ivar iv: each record's nonce is this with the record's number.
    @ivar sequence: the number of the next record.
    """

    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)
    sequence: int = 0

    @classmethod
    def fromSecret(cls, secret: bytes, sequence: int = 0) -> TrafficKey:
        """
        Derive it.

        @param secret: a traffic secret of TLS 1.3 with SHA-256.
        @param sequence: how many records have been protected with it.
        @raise ValueError: that is no such secret, or no number of a record.
        """
        if len(secret) != _SECRET_SIZE:
            raise ValueError(f"a traffic secret has {_SECRET_SIZE} bytes, not {len(secret)}")
        if not 0 <= sequence < 1 << 64:
            raise ValueError(f"{sequence} is no number of a record")
        return cls(_expandLabel(secret, b"key", _KEY_SIZE), _expandLabel(secret, b"iv", _IV_SIZE), sequence)

    def cryptoInfo(self) -> bytes:
        """The kernel's C{struct tls12_crypto_info_aes_gcm_128}."""
        salt, iv = self.iv[:_SALT_SIZE], self.iv[_SALT_SIZE:]
        number = self.sequence.to_bytes(8, "big")
        return _CRYPTO_INFO.pack(_TLS_1_3_VERSION, _TLS_CIPHER_AES_GCM_128, iv, self.key, salt, number)


class KeyLog:
    """
    The traffic secrets of one connection, from the lines that OpenSSL logs during its handshake.

    @ivar client: the secret of what the client sends; empty until it is known.
    @ivar server: the secret of what the server sends; empty until it is known.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.client = b""
        self.server = b""

    def logged(self, line: bytes) -> None:
        """
        Take a line of the keylog callback; those of other secrets are passed over.

        @param line: C{LABEL CLIENT_RANDOM SECRET}, the last two in hexadecimal.
        """
        label, _, secret = line.split()
        if label == b"CLIENT_TRAFFIC_SECRET_0":
            self.client = bytes.fromhex(secret.decode("ascii"))
        elif label == b"SERVER_TRAFFIC_SECRET_0":
            self.server = bytes.fromhex(secret.decode("ascii"))

    def keys(self, isServer: bool, sent: int = 0, received: int = 0) -> tuple[TrafficKey, TrafficKey]:
        """
        The keys of one side.

        @param isServer: whether it is the server's.
        @param sent: how many records it has sent after the handshake: a server's session tickets.
        @param received: how many records after the handshake it has read.
        @return: the key of what it sends, and of what it receives.
        @raise ValueError: the secrets are not known, or not of this cipher.
        """
        mine, other = (self.server, self.client) if isServer else (self.client, self.server)
        return TrafficKey.fromSecret(mine, sent), TrafficKey.fromSecret(other, received)


def install(sock: socket.socket, sending: TrafficKey, receiving: TrafficKey) -> None:
    """
    Let the kernel do TLS on a TCP socket from now on.

    @param sock: connected; nothing of the peer's behind the last record that C{receiving} counts may have been read.
    @raise OSError: the kernel cannot.  With ENOENT it has no kTLS, or has not loaded it, and the socket is as it was; after
        any other error the socket is of no use any more.
    """
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
    sock.setsockopt(_SOL_TLS, _TLS_TX, sending.cryptoInfo())
    sock.setsockopt(_SOL_TLS, _TLS_RX, receiving.cryptoInfo())
