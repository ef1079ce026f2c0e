# SPDX-License-Identifier: MIT
"""
The constants of the socket API and the addresses that it takes.

The numbers are those of C{kernel-module/in_tls.h}; a test compares both files.  Nothing here needs a reactor or OpenSSL.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from errno import EAFNOSUPPORT, EINVAL
from typing import Any

from ssa.errors import SSAError

IPPROTO_TLS = 205
"""The protocol number for socket(2) and the level for getsockopt(2) and setsockopt(2)."""

AF_HOSTNAME = 43
"""The address family of C{struct sockaddr_host}."""

HOST_NAME_SIZE = 120
"""Bytes of C{sockaddr_host.sh_addr.name}, the final NUL included."""

MAXIMUM_NAME = 253
"""The most bytes of a DNS name in its text form, without the final NUL (RFC 1035 section 2.3.4)."""

MAXIMUM_OPTION_SIZE = 64 * 1024
"""The most bytes of an option's value that setsockopt(2) takes; more is EMSGSIZE."""


class Option(IntEnum):
    """The options at level L{IPPROTO_TLS}, named and numbered as in C{in_tls.h}."""

    TLS_REMOTE_HOSTNAME = 85
    TLS_HOSTNAME = 86
    TLS_TRUSTED_PEER_CERTIFICATES = 87
    TLS_CERTIFICATE_CHAIN = 88
    TLS_PRIVATE_KEY = 89
    TLS_ALPN = 90
    TLS_SESSION_TTL = 91
    TLS_DISABLE_CIPHER = 92
    TLS_PEER_IDENTITY = 93
    TLS_REQUEST_PEER_AUTH = 94
    TLS_PEER_CERTIFICATE_CHAIN = 95
    TLS_ID = 96
    TLS_TRUSTED_CIPHERS = 97
    TLS_CHOSEN_CIPHER = 98
    TLS_ERROR = 100
    TLS_REVOCATION_CHECKS = 102
    TLS_OCSP_STAPLED_CHECKS = 103
    TLS_OCSP_CHECKS = 104
    TLS_CRL_CHECKS = 105
    TLS_CACHED_REV_CHECKS = 106
    TLS_CONTEXT = 107
    TLS_SESSION_REUSE = 108
    TLS_RESUMED_SESSION = 109
    TLS_ENABLE_CIPHER = 110
    TLS_VERSION_MIN = 111
    TLS_VERSION_MAX = 112
    TLS_VERSION_CONN = 113
    TLS_SERVER_OCSP_STAPLING = 122
    TLS_UPGRADE = 140
    TLS_CHANNEL_BINDING = 141
    TLS_DATA_PATH = 142
    TLS_KEY_EXCHANGE = 143


class Role(IntEnum):
    """Which side of TLS an upgraded connection takes: the C{role} of TLS_UPGRADE."""

    CLIENT = 0
    SERVER = 1


class DataPath(IntEnum):
    """What carries a connection's data: the daemon's relay, or TLS in the kernel."""

    RELAY = 0
    KTLS = 1


class Version(IntEnum):
    """The TLS versions that a program may name (RFC 5246 and RFC 8446, C{ProtocolVersion})."""

    TLS_1_2 = 0x0303
    TLS_1_3 = 0x0304


class PeerAuthentication(IntEnum):
    """The values of TLS_REQUEST_PEER_AUTH."""

    NONE = 0
    REQUEST = 1
    REQUIRE = 2


UPGRADE_FORMAT = "=ii"
"""C{struct tls_upgrade}, the value of TLS_UPGRADE: a descriptor and a L{Role}."""

_FAMILY = struct.Struct("=H")
_PORT = struct.Struct("!H")
_INET6 = struct.Struct("=I16sI")
_INET_SIZE = 16
_INET6_SIZE = 28
_HOST_SIZE = 4 + HOST_NAME_SIZE
_STORAGE_SIZE = 128
_MAXIMUM_U32 = 0xFFFFFFFF


@dataclass(frozen=True)
class InternetAddress:
    """
    An IPv4 or IPv6 address with a port.

    @ivar family: C{socket.AF_INET} or C{socket.AF_INET6}.
    @ivar host: the address in its text form, without a scope.
    @ivar port: 0 to 65535.
    @ivar flowinfo: IPv6 only: C{sin6_flowinfo} in host byte order, as Python's sockets have it.
    @ivar scope: IPv6 only: the number of the interface (C{sin6_scope_id}).
    """

    family: int
    host: str
    port: int
    flowinfo: int = 0
    scope: int = 0

    def forSocket(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """The address as Python's C{socket.connect} and C{socket.bind} take it for this family."""
        if self.family == socket.AF_INET6:
            return (self.host, self.port, self.flowinfo, self.scope)
        return (self.host, self.port)

    @classmethod
    def fromSocket(cls, family: int, address: tuple[Any, ...]) -> InternetAddress:
        """
        Make one from what Python's C{getsockname}, C{getpeername} and C{accept} return.

        @param family: C{socket.AF_INET} or C{socket.AF_INET6}.
        @raise SSAError: EAFNOSUPPORT for another family, EINVAL for a tuple of another shape.
        """
        if family == socket.AF_INET and len(address) == 2:
            return cls(int(family), str(address[0]), int(address[1]))
        if family == socket.AF_INET6 and len(address) == 4:
            host = str(address[0]).partition("%")[0]
            return cls(int(family), host, int(address[1]), int(address[2]), int(address[3]))
        if family in (socket.AF_INET, socket.AF_INET6):
            raise SSAError(EINVAL, "the address of a socket has an unexpected shape")
        raise SSAError(EAFNOSUPPORT, f"address family {family} is neither AF_INET nor AF_INET6")

    def __str__(self) -> str:
        host = f"{self.host}%{self.scope}" if self.scope else self.host
        return f"[{host}]:{self.port}" if self.family == socket.AF_INET6 else f"{host}:{self.port}"


@dataclass(frozen=True)
class HostnameAddress:
    """
    A name with a port: C{struct sockaddr_host}.

    @ivar host: the DNS name (A-label) or IP literal, 1 to 119 ASCII bytes.
    @ivar port: 0 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Address = InternetAddress | HostnameAddress


def encodeAddress(address: Address) -> bytes:
    """
    Encode an address as the C structure of its family.

    @return: a C{struct sockaddr_in}, C{sockaddr_in6} or C{sockaddr_host}.
    @raise SSAError: EINVAL for a host or a number that the structure cannot hold, EAFNOSUPPORT for another family.
    """
    try:
        port = _PORT.pack(address.port)
        if isinstance(address, HostnameAddress):
            name = _checkedName(address.host.encode("ascii"))
            return _FAMILY.pack(AF_HOSTNAME) + port + name.ljust(HOST_NAME_SIZE, b"\0")
        if address.family not in (socket.AF_INET, socket.AF_INET6):
            raise SSAError(EAFNOSUPPORT, f"address family {address.family} is not one of the socket API")
        packed = socket.inet_pton(address.family, address.host)
        if address.family == socket.AF_INET:
            return _FAMILY.pack(socket.AF_INET) + port + packed + bytes(8)
        if not (0 <= address.flowinfo <= _MAXIMUM_U32 and 0 <= address.scope <= _MAXIMUM_U32):
            raise SSAError(EINVAL, "flow information or scope of an IPv6 address is out of range")
        body = _INET6.pack(socket.htonl(address.flowinfo), packed, address.scope)
        return _FAMILY.pack(socket.AF_INET6) + port + body
    except (struct.error, OSError, ValueError) as error:
        raise SSAError(EINVAL, f"an address cannot be encoded: {error}") from error


def decodeAddress(data: bytes) -> Address:
    """
    Decode a C structure of one of the families that the socket API takes.

    A structure may be longer than its family needs, up to C{struct sockaddr_storage}, as connect(2) allows; an IPv6 one may
    lack its scope (RFC 2133), and a C{sockaddr_host} may end anywhere after the NUL of its name.

    @raise SSAError: EINVAL for a wrong length or name, EAFNOSUPPORT for another family.
    """
    size = len(data)
    if size < _FAMILY.size or size > _STORAGE_SIZE:
        raise SSAError(EINVAL, f"a socket address of {size} bytes is too short or too long")
    family = _FAMILY.unpack_from(data)[0]
    if family == socket.AF_INET:
        if size < _INET_SIZE:
            raise SSAError(EINVAL, f"a struct sockaddr_in has {_INET_SIZE} bytes, not {size}")
        host = socket.inet_ntop(socket.AF_INET, data[4:8])
        return InternetAddress(int(socket.AF_INET), host, _PORT.unpack_from(data, 2)[0])
    if family == socket.AF_INET6:
        if size < _INET6_SIZE - 4:
            raise SSAError(EINVAL, f"a struct sockaddr_in6 has {_INET6_SIZE} bytes, not {size}")
        flowinfo, packed, scope = _INET6.unpack_from(data[:_INET6_SIZE].ljust(_INET6_SIZE, b"\0"), 4)
        host = socket.inet_ntop(socket.AF_INET6, packed)
        port = _PORT.unpack_from(data, 2)[0]
        return InternetAddress(int(socket.AF_INET6), host, port, socket.ntohl(flowinfo), scope)
    if family == AF_HOSTNAME:
        name, end, _ = bytes(data[4:_HOST_SIZE]).partition(b"\0")
        if not end:
            raise SSAError(EINVAL, "the name in a struct sockaddr_host does not end with a NUL")
        return HostnameAddress(_checkedName(name).decode("ascii"), _PORT.unpack_from(data, 2)[0])
    raise SSAError(EAFNOSUPPORT, f"address family {family} is not one of the socket API")


def _checkedName(name: bytes) -> bytes:
    """Refuse a name that is empty, too long, or has bytes other than visible ASCII."""
    if not 0 < len(name) < HOST_NAME_SIZE:
        raise SSAError(EINVAL, f"a host name in an address has 1 to {HOST_NAME_SIZE - 1} bytes, not {len(name)}")
    if any(byte <= 0x20 or byte >= 0x7F for byte in name):
        raise SSAError(EINVAL, "a host name in an address has bytes that are not visible ASCII")
    return name
