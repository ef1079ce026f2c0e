# SPDX-License-Identifier: MIT
"""
What the first message of a TLS peer says, for a person who wants to know why a handshake failed.

A small strict reader of ClientHello and ServerHello (RFC 8446 sections 4.1.2 and 4.1.3, RFC 5246 section 7.4.1) without I/O.
Nothing is decided by what it finds: OpenSSL reads the same bytes and does.  Each length is checked before it is used; what does
not fit is a C{ValueError}, and every list is bounded by the size of the input.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ssa.tls.codepoints import versionName

__all__ = ["LARGEST_HELLO", "Hello", "describeStranger", "isComplete", "readHello"]

LARGEST_HELLO = 16384
"""The most bytes of a peer's first message that are looked at."""

_HANDSHAKE, _ALERT = 22, 21
_CLIENT_HELLO, _SERVER_HELLO = 1, 2
_LARGEST_RECORD = 16384
_RECORD = 5
_MESSAGE = 4

# RFC 8446 section 4.1.3: the ServerHello that asks for another ClientHello has this random.
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

_SERVER_NAME, _GROUPS, _SIGNATURES, _ALPN, _VERSIONS, _KEY_SHARE = 0, 10, 13, 16, 43, 51


@dataclass(frozen=True)
class Hello:
    """
    A ClientHello or a ServerHello.  Numbers are those of the IANA registries; values of RFC 8701 (GREASE) are left out.

    @ivar isClient: whether it is a ClientHello.
    @ivar versions: what the client offers, or the one that the server has chosen.
    @ivar ciphers: the same.
    @ivar groups: the client's groups; the one that the server has chosen, if it says so.
    @ivar signatures: the client's signature algorithms.
    @ivar protocols: the application protocols of the client, or the chosen one.
    @ivar serverName: whom the client asks for; C{None} if it does not say.
    @ivar isRetry: whether the server asks for another ClientHello.
    """

    isClient: bool
    versions: tuple[int, ...] = ()
    ciphers: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    signatures: tuple[int, ...] = ()
    protocols: tuple[bytes, ...] = ()
    serverName: str | None = None
    isRetry: bool = False


class _Reader:
    """Takes fields off bytes, and never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __len__(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """Take exactly C{size} bytes.  @raise ValueError: there are less."""
        if not 0 <= size <= len(self):
            raise ValueError(f"{size} bytes expected, there are {len(self)}")
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def number(self, size: int) -> int:
        """Take an unsigned number of C{size} bytes."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        """Take a vector whose length is a number of C{size} bytes (RFC 8446 section 3.4)."""
        return _Reader(self.take(self.number(size)))

    def numbers(self) -> tuple[int, ...]:
        """Take all that is left as numbers of two bytes.  @raise ValueError: for half of one."""
        if len(self) % 2:
            raise ValueError(f"{len(self)} bytes are no list of numbers of two bytes")
        return struct.unpack(f">{len(self) // 2}H", self.take(len(self)))

    def end(self) -> None:
        """Nothing may be left.  @raise ValueError: something is."""
        if len(self):
            raise ValueError(f"{len(self)} bytes are left over")


def _meant(values: tuple[int, ...]) -> tuple[int, ...]:
    """Leave out what RFC 8701 reserves for values without a meaning."""
    return tuple(value for value in values if value & 0x0F0F != 0x0A0A or value >> 8 != value & 0xFF)


def _payload(data: bytes) -> Iterator[bytes]:
    """The contents of the handshake records at the beginning; a last one that is cut off is left out."""
    reader = _Reader(data)
    while len(reader) >= _RECORD:
        kind = reader.number(1)
        major = reader.number(1)
        reader.take(1)
        size = reader.number(2)
        if kind != _HANDSHAKE:
            return
        if major != 3 or not 0 < size <= _LARGEST_RECORD:
            raise ValueError("it is no TLS record")
        if size > len(reader):
            return
        yield reader.take(size)


def _message(data: bytes) -> tuple[int, bytes] | None:
    """The first handshake message, which may be spread over several records (RFC 8446 section 5.1); C{None}: cut off."""
    message = bytearray()
    for part in _payload(data):
        message += part
        if len(message) >= _MESSAGE:
            size = int.from_bytes(message[1:4], "big")
            if size > LARGEST_HELLO:
                raise ValueError(f"a message of {size} bytes is too long")
            if len(message) >= _MESSAGE + size:
                return message[0], bytes(message[_MESSAGE : _MESSAGE + size])
    return None


def isComplete(data: bytes) -> bool:
    """
    Whether reading more can tell nothing more.

    @param data: the beginning of what the peer sent.
    """
    if len(data) >= LARGEST_HELLO or (data and data[0] != _HANDSHAKE):
        return True
    if len(data) >= _RECORD + _MESSAGE:
        size = int.from_bytes(data[3:5], "big")
        if int.from_bytes(data[6:9], "big") + _MESSAGE <= size <= len(data) - _RECORD:
            return True  # one record has all of it, as nearly always
    try:
        return _message(data) is not None
    except ValueError:
        return True


def readHello(data: bytes) -> Hello | None:
    """
    Read the first message of a peer.

    @param data: what it sent, from the first byte of the connection on; at most L{LARGEST_HELLO} bytes are looked at.
    @return: C{None} if it is not there completely, or something else comes first.
    @raise ValueError: it is malformed.
    """
    data = data[:LARGEST_HELLO]
    if not data or data[0] != _HANDSHAKE:
        return None
    found = _message(data)
    if found is None:
        return None
    kind, body = found
    if kind == _CLIENT_HELLO:
        return _clientHello(_Reader(body))
    if kind == _SERVER_HELLO:
        return _serverHello(_Reader(body))
    return None


def _extensions(reader: _Reader) -> dict[int, _Reader]:
    """Read the list of extensions, of which each may come once (RFC 8446 section 4.2)."""
    found: dict[int, _Reader] = {}
    if not len(reader):
        return found  # TLS 1.2 allows a hello without any
    every = reader.vector(2)
    reader.end()
    while len(every):
        kind = every.number(2)
        if kind in found:
            raise ValueError(f"extension {kind} is repeated")
        found[kind] = every.vector(2)
    return found


def _clientHello(reader: _Reader) -> Hello:
    legacy = reader.number(2)
    reader.take(32)
    reader.vector(1)  # session id
    ciphers = reader.vector(2).numbers()
    reader.vector(1)  # compression
    extensions = _extensions(reader)
    # Before TLS 1.3 the client names the highest version only.
    versions: tuple[int, ...] = (legacy,)
    if _VERSIONS in extensions:
        versions = extensions[_VERSIONS].vector(1).numbers()
    return Hello(
        True,
        _meant(versions),
        _meant(ciphers),
        _meant(extensions[_GROUPS].vector(2).numbers()) if _GROUPS in extensions else (),
        _meant(extensions[_SIGNATURES].vector(2).numbers()) if _SIGNATURES in extensions else (),
        _protocols(extensions[_ALPN]) if _ALPN in extensions else (),
        _serverName(extensions[_SERVER_NAME]) if _SERVER_NAME in extensions else None,
    )


def _serverHello(reader: _Reader) -> Hello:
    version = reader.number(2)
    random = reader.take(32)
    reader.vector(1)
    cipher = reader.number(2)
    reader.take(1)
    extensions = _extensions(reader)
    if _VERSIONS in extensions:
        version = extensions[_VERSIONS].number(2)
    groups = (extensions[_KEY_SHARE].number(2),) if _KEY_SHARE in extensions else ()
    protocols = _protocols(extensions[_ALPN]) if _ALPN in extensions else ()
    return Hello(False, (version,), (cipher,), groups, protocols=protocols, isRetry=random == _RETRY)


def _protocols(reader: _Reader) -> tuple[bytes, ...]:
    """RFC 7301 section 3.1."""
    names = reader.vector(2)
    found = []
    while len(names):
        found.append(_whole(names.vector(1)))
    return tuple(name for name in found if not _isReserved(name))


def _isReserved(name: bytes) -> bool:
    """RFC 8701 section 2: two equal bytes 0x?A."""
    return len(name) == 2 and name[0] == name[1] and name[0] & 0x0F == 0x0A


def _whole(reader: _Reader) -> bytes:
    return reader.take(len(reader))


def _serverName(reader: _Reader) -> str | None:
    """RFC 6066 section 3; a server's answer is empty."""
    names = reader.vector(2)
    while len(names):
        kind = names.number(1)
        name = _whole(names.vector(2))
        if kind == 0:
            return name.decode("ascii", "backslashreplace")
    return None


# What servers of other protocols say first, or say to a ClientHello.
_GREETINGS = (
    (b"HTTP/", "HTTP"),
    (b"<!DOCTYPE", "HTTP"),
    (b"<html", "HTTP"),
    (b"GET ", "HTTP"),
    (b"POST ", "HTTP"),
    (b"HEAD ", "HTTP"),
    (b"CONNECT ", "HTTP, to a proxy"),
    (b"PRI * HTTP/2", "HTTP/2 without TLS"),
    (b"SSH-", "SSH"),
    (b"* OK", "IMAP, before STARTTLS"),
    (b"+OK", "POP3, before STLS"),
    (b"220", "SMTP or FTP, before STARTTLS"),
    (b"421", "SMTP or FTP: not now"),
    (b"554", "SMTP: refused"),
    (b"EHLO ", "SMTP"),
    (b"RFB ", "VNC"),
)


def describeStranger(data: bytes) -> str:
    """
    Say what a peer speaks that does not speak TLS.  Its bytes are not quoted: they may be anybody's data.

    @param data: what it sent first.
    @return: "" if that is unknown, or TLS.
    """
    if not data:
        return ""
    for begin, name in _GREETINGS:
        if data.startswith(begin):
            return f"it speaks {name}"
    if data[0] == _HANDSHAKE or data[0] == _ALERT:
        if len(data) >= 3 and data[1] == 3:
            return ""
    if len(data) > 4 and data[0] & 0x80 and data[2] == 1:
        return f"it speaks SSL 2.0, or asks for {versionName(int.from_bytes(data[3:5], 'big'))} in its format"
    return "its first bytes are no TLS record"
