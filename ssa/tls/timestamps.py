# SPDX-License-Identifier: MIT
"""
Certificate timestamps from the handshake's own extension, C{signed_certificate_timestamp} (RFC 6962 section 3.3.1).

pyOpenSSL has no method for it, but its binding has the functions of OpenSSL that are needed: one asks for the extension and
gets it from a ServerHello of TLS 1.2, the other sees the Certificate message in which TLS 1.3 has it.  The binding's names are
not public: where they are missing, nothing is asked for, and the check of transparency says so.  Only contexts of profiles
with VerifyCertTransparency have these callbacks.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from OpenSSL import SSL

from ssa.policy.profile import TLS_1_3
from ssa.tls.connection import peerCheckOf

__all__ = ["askForTimestamps", "canAskForTimestamps", "timestampsOfMessage"]

_EXTENSION = 18
_HANDSHAKE = 22
_CERTIFICATE = 11


class _Binding:
    """
    What is used of pyOpenSSL's binding, and the callbacks, which have to live as long as the process.

    C{SSL_CTX_add_client_custom_ext(3)}, C{SSL_CTX_set_msg_callback(3)}.
    """

    def __init__(self) -> None:
        """
        Look everything up.

        @raise Exception: something is missing, or of another type.
        """
        private: Any = import_module("OpenSSL._util")
        self._ffi = private.ffi
        self._addExtension = private.lib.SSL_CTX_add_client_custom_ext
        self._setCallback = private.lib.SSL_CTX_set_msg_callback
        self._connections = SSL.Connection._reverse_mapping
        callback = self._ffi.callback
        self._add = callback("int(SSL *, unsigned int, unsigned char **, size_t *, int *, void *)", self._empty, error=-1)
        self._free = callback("void(SSL *, unsigned int, unsigned char *, void *)", lambda *arguments: None)
        self._parse = callback("int(SSL *, unsigned int, unsigned char *, size_t, int *, void *)", self._received, error=0)
        self._see = callback("void(int, int, int, void *, size_t, SSL *, void *)", self._message)

    def install(self, context: SSL.Context) -> bool:
        """
        Ask with every handshake of a context.

        @return: whether OpenSSL does it.
        """
        pointer = context._context
        if self._addExtension(pointer, _EXTENSION, self._add, self._free, self._ffi.NULL, self._parse, self._ffi.NULL) != 1:
            return False
        self._setCallback(pointer, self._see)
        return True

    def _empty(self, ssl: Any, kind: int, out: Any, size: Any, alert: Any, argument: Any) -> int:
        """The client's extension is empty."""
        out[0] = self._ffi.NULL
        size[0] = 0
        return 1

    def _received(self, ssl: Any, kind: int, data: Any, size: int, alert: Any, argument: Any) -> int:
        """The extension of a ServerHello."""
        self._keep(ssl, self._ffi.buffer(data, size)[:])
        return 1

    def _message(self, written: int, version: int, kind: int, data: Any, size: int, ssl: Any, argument: Any) -> None:
        """Every message and the header of every record comes by here."""
        if written or kind != _HANDSHAKE or version != TLS_1_3 or size < 4:
            return
        message = self._ffi.buffer(data, size)
        if message[0] == bytes((_CERTIFICATE,)):
            try:
                found = timestampsOfMessage(message[:])
            except ValueError:
                return  # OpenSSL itself will refuse it
            if found:
                self._keep(ssl, found)

    def _keep(self, ssl: Any, timestamps: bytes) -> None:
        connection = self._connections.get(ssl)
        if connection is not None:
            peerCheckOf(connection).timestamps = timestamps


@lru_cache(maxsize=1)
def _binding() -> _Binding | None:
    try:
        return _Binding()
    except Exception:  # whatever another version of the library brings: then it cannot be done
        return None


@lru_cache(maxsize=1)
def canAskForTimestamps() -> bool:
    """Whether the TLS library can be asked; it is tried, once."""
    return askForTimestamps(SSL.Context(SSL.TLS_CLIENT_METHOD))


def askForTimestamps(context: SSL.Context) -> bool:
    """
    Ask servers for timestamps with every handshake of a client's context; L{PeerCheck<ssa.tls.connection.PeerCheck>} keeps
    what they send.

    @return: whether the TLS library can.
    """
    binding = _binding()
    return binding is not None and binding.install(context)


def timestampsOfMessage(message: bytes) -> bytes:
    """
    Find the list of timestamps in a Certificate message of TLS 1.3: RFC 8446 section 4.4.2.

    @param message: with its header of four bytes.
    @return: that of the first certificate; empty if it has none.
    @raise ValueError: the message is malformed.
    """
    body = _vector(message[1:], 3)[0]
    _, rest = _vector(body, 1)
    entries, _ = _vector(rest, 3)
    _, rest = _vector(entries, 3)
    extensions, _ = _vector(rest, 2)
    while extensions:
        kind = int.from_bytes(extensions[:2], "big")
        data, extensions = _vector(extensions[2:], 2)
        if kind == _EXTENSION:
            return data
    return b""


def _vector(data: bytes, width: int) -> tuple[bytes, bytes]:
    """Take a vector with a length of so many bytes, RFC 8446 section 3.4."""
    end = width + int.from_bytes(data[:width], "big")
    if len(data) < max(width, end):
        raise ValueError("it is cut off")
    return data[width:end], data[end:]
