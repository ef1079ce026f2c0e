# SPDX-License-Identifier: MIT
"""
The TLS options: the table of the socket API as data, and the options of one socket.

L{TABLE} says of each option who may set or get it and when; L{SocketOptions} applies the rules that are common to all
and holds the values.  What concerns the caller's buffer (ERANGE, C{*optlen}) and the opening of files is the
interceptor's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from enum import Enum, auto

from cryptography import x509
from zope.interface import Attribute, Interface

from ssa.api import MAXIMUM_NAME, MAXIMUM_OPTION_SIZE, UPGRADE_FORMAT, Option, Role
from ssa.errors import Cause, SSAError
from ssa.policy.profile import Profile
from ssa.tls.certificates import (
    Credential,
    PrivateKey,
    chainPEM,
    pairCredentials,
    parseCertificates,
    parseChains,
    parsePrivateKeys,
    publicKeyOf,
    subjectNames,
)
from ssa.tls.identity import Identity, parseIdentity, parseName

__all__ = ["LARGEST_FILE", "MOST_CREDENTIALS", "MOST_NAMES", "TABLE", "IConnectionInfo", "Phase", "SocketOptions"]

LARGEST_FILE = 1024 * 1024
"""The most bytes of a file, or of a directory's files together, that an option names."""

MOST_CREDENTIALS = 16
"""The most certificate chains, and the most private keys, of one socket."""

MOST_NAMES = 256
"""The most names that TLS_HOSTNAME gives to one listener."""

MOST_PROTOCOLS = 64
"""The most application protocols that TLS_ALPN lists."""


class Phase(Enum):
    """How far a socket is.  A socket whose connect has failed is new again."""

    NEW = auto()
    CONNECTING = auto()
    LISTENING = auto()
    CONNECTED = auto()


class IConnectionInfo(Interface):
    """
    What a get needs from a connection whose handshake has succeeded; it stays readable after the connection's end.

    Each method raises L{SSAError} with ENODATA where there is nothing to tell.
    """

    accepted: bool = Attribute("Whether this is the server's side of the connection.")

    def peerIdentity() -> str:
        """Get the subject of the peer's certificate, as RFC 4514 writes it."""

    def peerChainPEM() -> bytes:
        """Get the certificates that the peer sent, its own first."""

    def cipher() -> str:
        """Get the cipher's name in the IANA registry."""

    def version() -> int:
        """Get the protocol version, C{0x0303} or C{0x0304}."""

    def channelBinding() -> bytes:
        """Get the 32 bytes of C{tls-exporter} (RFC 9266)."""

    def group() -> str:
        """Get the name of the key exchange group."""

    def applicationProtocol() -> bytes:
        """Get the application protocol that was chosen; empty if none was."""

    def serverName() -> str:
        """Get the name that the client asked for; "" if it asked for none."""

    def dataPath() -> str:
        """Get C{"relay"} or C{"ktls"}."""


class _When(Enum):
    """In which phases an option may be set or got."""

    NEVER = auto()
    NEW = auto()
    CONNECTED = auto()
    ANY = auto()


@dataclass(frozen=True)
class OptionRule:
    """
    One row of the table of options.

    @ivar option: its number.
    @ivar settable: when it may be set.
    @ivar gettable: when it may be got.
    @ivar store: takes a value that has passed the common rules into the socket; raises C{ValueError} for a value that
        is wrong, or L{SSAError} for another reason.
    @ivar fetch: gives the value as the program gets it.
    @ivar fromFile: whether the value may be what a file holds.
    """

    option: Option
    settable: _When
    gettable: _When
    store: Callable[[SocketOptions, bytes], None] | None = None
    fetch: Callable[[SocketOptions, IConnectionInfo | None], bytes] | None = None
    fromFile: bool = False


class SocketOptions:
    """
    The options of one TLS socket.

    @ivar remoteIdentity: whom TLS_REMOTE_HOSTNAME says that the peer must be; C{None} if it was not set.
    @ivar hostnames: the names that a listener serves; empty if it serves any.
    @ivar trusted: PEM of the certificates that replace the trust store; empty for the profile's.
    @ivar chains: the certificate chains, in the order in which they were set.
    @ivar keys: the private keys.
    @ivar protocols: the application protocols, in order of preference.
    @ivar error: the line of TLS_ERROR.  Whoever makes a call succeed or fail on the socket sets it: see L{failed} and
        L{succeeded}.
    """

    def __init__(self, id: int) -> None:
        """
        @param id: the value of TLS_ID, unique while the daemon lives.
        """
        self.id = id
        self.remoteName = ""
        self.remoteIdentity: Identity | None = None
        self.hostnames: tuple[str, ...] = ()
        self.trusted = b""
        self.chains: tuple[tuple[x509.Certificate, ...], ...] = ()
        self.keys: tuple[PrivateKey, ...] = ()
        self.protocols: tuple[bytes, ...] = ()
        self.error = ""

    def __repr__(self) -> str:
        return f"<SocketOptions of socket {self.id}>"

    def inherit(self, id: int) -> SocketOptions:
        """
        Copy the options for an accepted socket; nothing that is done to one changes the other.

        @param id: the new socket's.
        """
        new = copy(self)  # every value is immutable
        new.id = id
        new.error = ""
        return new

    def failed(self, error: SSAError) -> SSAError:
        """
        Keep the reason for TLS_ERROR.

        @return: the same error, for C{raise options.failed(error)}.
        """
        self.error = error.reason
        return error

    def succeeded(self) -> None:
        """Clear TLS_ERROR: a connect, listen or option has succeeded."""
        self.error = ""

    def set(self, number: int, value: bytes, phase: Phase, profile: Profile, file: str = "") -> None:
        """
        Set an option.  A value that is refused changes nothing but TLS_ERROR.

        @param number: the option, as the program gave it.
        @param value: the program's bytes, or what its file holds.
        @param phase: how far the socket is.
        @param profile: the policy in force.
        @param file: the path that the program gave instead of the value; "" if none.
        @raise SSAError: ENOPROTOOPT, EISCONN, EMSGSIZE, EINVAL or EPERM, as the socket API lists them.
        """
        try:
            self._set(number, value, phase, profile, file)
        except SSAError as error:
            raise self.failed(error) from None
        self.succeeded()

    def _set(self, number: int, value: bytes, phase: Phase, profile: Profile, file: str) -> None:
        rule = TABLE.get(number)
        if rule is None:
            raise _unknown(number)
        name = rule.option.name
        if rule.settable is _When.NEVER or rule.store is None:
            raise Cause.ONLY_GET.error(name)
        if rule.settable is _When.NEW and phase is not Phase.NEW:
            raise Cause.TOO_LATE.error(name)
        if rule.option is Option.TLS_TRUSTED_PEER_CERTIFICATES and not profile.appCustomValidation:
            raise Cause.POLICY.error(f"{name} is set, and AppCustomValidation is off")
        if file and not rule.fromFile:
            raise Cause.BAD_VALUE.error(f"{name} names no file")
        most = LARGEST_FILE if file else MAXIMUM_OPTION_SIZE
        if len(value) > most:
            raise Cause.TOO_LONG.error(f"{name} has {len(value)} bytes, at most {most} are allowed")
        try:
            rule.store(self, value)
        except ValueError as error:
            source = f" from {file}" if file else ""
            raise Cause.BAD_VALUE.error(f"{name}{source}: {error}") from None

    def get(self, number: int, phase: Phase, connection: IConnectionInfo | None) -> bytes:
        """
        Get an option.

        @param number: the option, as the program gave it.
        @param phase: how far the socket is.
        @param connection: the connection; C{None} exactly if there is none yet.
        @return: the whole value; strings come with their final NUL.
        @raise SSAError: ENOPROTOOPT, EACCES, ENOTCONN or ENODATA.  A failed get does not change TLS_ERROR, which tells
            of the last call that did something.
        """
        rule = TABLE.get(number)
        if rule is None:
            raise _unknown(number)
        name = rule.option.name
        if rule.option is Option.TLS_PRIVATE_KEY:
            raise Cause.SECRET.error(name)
        if rule.gettable is _When.NEVER or rule.fetch is None:
            raise Cause.ONLY_SET.error(name)
        if rule.gettable is _When.CONNECTED and (phase is not Phase.CONNECTED or connection is None):
            raise Cause.NOT_CONNECTED.error(name)
        return rule.fetch(self, connection)

    def credentials(self) -> tuple[Credential, ...]:
        """
        Bring the chains and keys together, when the socket starts to connect or listen.

        @return: one for each chain; empty if none was set.
        @raise SSAError: ENOKEY if a chain has no key or a key has no chain.
        """
        try:
            return pairCredentials(self.chains, self.keys)
        except ValueError as error:
            raise Cause.KEY_MISMATCH.error(str(error)) from None


def _unknown(number: int) -> SSAError:
    try:
        name = Option(number).name
    except ValueError:
        return Cause.UNKNOWN_OPTION.error(f"number {number}")
    return Cause.UNKNOWN_OPTION.error(f"{name} is not supported by this version")


def _string(value: bytes) -> str:
    """Read a string that may have its final NUL.  @raise ValueError: for NULs inside, or text that is not ASCII."""
    if value.endswith(b"\0"):
        value = value[:-1]
    if b"\0" in value:
        raise ValueError("there is a NUL inside of the string")
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError("it is not ASCII: an internationalized name is given as A-label (xn--…)") from None


def _withNUL(text: str | bytes) -> bytes:
    return (text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text) + b"\0"


def _integer(value: int) -> bytes:
    return struct.pack("=i", value)


def _setRemoteHostname(options: SocketOptions, value: bytes) -> None:
    text = _string(value)
    if len(text) > MAXIMUM_NAME:
        raise ValueError(f"the name has {len(text)} bytes, at most {MAXIMUM_NAME} are allowed")
    options.remoteIdentity = parseIdentity(text)
    options.remoteName = text


def _setHostname(options: SocketOptions, value: bytes) -> None:
    name = parseName(_string(value))
    if name in options.hostnames:
        return
    if len(options.hostnames) >= MOST_NAMES:
        raise Cause.TOO_MANY.error(f"TLS_HOSTNAME was set {MOST_NAMES} times")
    options.hostnames += (name,)


def _getHostname(options: SocketOptions, connection: IConnectionInfo | None) -> bytes:
    if connection is not None and connection.accepted:
        return _withNUL(connection.serverName())
    return _withNUL(",".join(options.hostnames))


def _withoutNUL(pem: bytes) -> bytes:
    """PEM may come as a C string, with its final NUL."""
    return pem[:-1] if pem.endswith(b"\0") else pem


def _setTrusted(options: SocketOptions, value: bytes) -> None:
    options.trusted = chainPEM(parseCertificates(_withoutNUL(value)))


def _setChain(options: SocketOptions, value: bytes) -> None:
    """Add chains.  One for the same names with a key of the same type takes the place of the one before."""
    chains = list(options.chains)
    keys = options.keys
    for chain in parseChains(_withoutNUL(value)):
        slot = _slot(chain[0])
        same = [index for index, other in enumerate(chains) if _slot(other[0]) == slot]
        if same:
            before = publicKeyOf(chains[same[0]][0])
            chains[same[0]] = chain
            if before != publicKeyOf(chain[0]):
                keys = tuple(key for key in keys if publicKeyOf(key) != before)
        else:
            chains.append(chain)
    if len(chains) > MOST_CREDENTIALS:
        raise Cause.TOO_MANY.error(f"at most {MOST_CREDENTIALS} certificate chains are allowed on a socket")
    options.chains = tuple(chains)
    options.keys = keys


def _slot(certificate: x509.Certificate) -> tuple[str, tuple[str, ...], bytes]:
    """What makes two certificates alternatives of each other: the names and the kind of key."""
    names = tuple(sorted(subjectNames(certificate)))
    subject = b"" if names else certificate.subject.public_bytes()
    return type(certificate.public_key()).__name__, names, subject


def _setKey(options: SocketOptions, value: bytes) -> None:
    keys = {publicKeyOf(key): key for key in options.keys}
    for key in parsePrivateKeys(_withoutNUL(value)):
        keys[publicKeyOf(key)] = key
    if len(keys) > MOST_CREDENTIALS:
        raise Cause.TOO_MANY.error(f"at most {MOST_CREDENTIALS} private keys are allowed on a socket")
    options.keys = tuple(keys.values())


def _setProtocols(options: SocketOptions, value: bytes) -> None:
    """Set the list; an empty one offers none.  RFC 7301 section 3.1: a protocol's name has 1 to 255 bytes."""
    text = _string(value)
    names = tuple(name.strip().encode("ascii") for name in text.split(",")) if text else ()
    for name in names:
        if not 0 < len(name) <= 255:
            raise ValueError(f"a protocol name has {len(name)} bytes, 1 to 255 are allowed")
        if not all(0x20 < byte < 0x7F for byte in name):
            raise ValueError(f"the protocol name {name!r} has bytes that are not visible")
    if len(set(names)) != len(names):
        raise ValueError("a protocol is listed twice")
    if len(names) > MOST_PROTOCOLS:
        raise ValueError(f"{len(names)} protocols are listed, at most {MOST_PROTOCOLS} are allowed")
    options.protocols = names


def _getProtocols(options: SocketOptions, connection: IConnectionInfo | None) -> bytes:
    if connection is not None:
        return _withNUL(connection.applicationProtocol())
    return _withNUL(b",".join(options.protocols))


def _setUpgrade(options: SocketOptions, value: bytes) -> None:
    """The interceptor carries TLS_UPGRADE out; what arrives here is one that it could not make sense of."""
    if len(value) != struct.calcsize(UPGRADE_FORMAT):
        raise ValueError(f"it has {len(value)} bytes, struct tls_upgrade has {struct.calcsize(UPGRADE_FORMAT)}")
    descriptor, role = struct.unpack(UPGRADE_FORMAT, value)
    if role not in (Role.CLIENT, Role.SERVER):
        raise ValueError(f"the role is {role}, and must be 0 (client) or 1 (server)")
    raise ValueError(f"descriptor {descriptor} is no connected TCP socket of the caller")


def _connectionGet(get: Callable[[IConnectionInfo], bytes]) -> Callable[[SocketOptions, IConnectionInfo | None], bytes]:
    """Make the C{fetch} of an option that needs a connection."""

    def fetch(options: SocketOptions, connection: IConnectionInfo | None) -> bytes:
        if connection is None:
            raise Cause.NOT_CONNECTED.error()
        return get(connection)

    return fetch


_RULES = (
    OptionRule(
        Option.TLS_REMOTE_HOSTNAME,
        _When.NEW,
        _When.ANY,
        store=_setRemoteHostname,
        fetch=lambda options, connection: _withNUL(options.remoteName),
    ),
    OptionRule(Option.TLS_HOSTNAME, _When.NEW, _When.ANY, store=_setHostname, fetch=_getHostname),
    OptionRule(Option.TLS_TRUSTED_PEER_CERTIFICATES, _When.NEW, _When.NEVER, store=_setTrusted, fromFile=True),
    OptionRule(
        Option.TLS_CERTIFICATE_CHAIN,
        _When.NEW,
        _When.ANY,
        store=_setChain,
        fetch=lambda options, connection: _withNUL(b"".join(chainPEM(chain) for chain in options.chains)),
        fromFile=True,
    ),
    OptionRule(Option.TLS_PRIVATE_KEY, _When.NEW, _When.NEVER, store=_setKey, fromFile=True),
    OptionRule(Option.TLS_ALPN, _When.NEW, _When.ANY, store=_setProtocols, fetch=_getProtocols),
    OptionRule(
        Option.TLS_PEER_IDENTITY,
        _When.NEVER,
        _When.CONNECTED,
        fetch=_connectionGet(lambda connection: _withNUL(connection.peerIdentity())),
    ),
    OptionRule(
        Option.TLS_PEER_CERTIFICATE_CHAIN,
        _When.NEVER,
        _When.CONNECTED,
        fetch=_connectionGet(lambda connection: _withNUL(connection.peerChainPEM())),
    ),
    OptionRule(
        Option.TLS_ID, _When.NEVER, _When.ANY, fetch=lambda options, connection: struct.pack("=Q", options.id)
    ),
    OptionRule(
        Option.TLS_CHOSEN_CIPHER,
        _When.NEVER,
        _When.CONNECTED,
        fetch=_connectionGet(lambda connection: _withNUL(connection.cipher())),
    ),
    OptionRule(
        Option.TLS_ERROR, _When.NEVER, _When.ANY, fetch=lambda options, connection: _withNUL(options.error)
    ),
    OptionRule(
        Option.TLS_VERSION_CONN,
        _When.NEVER,
        _When.CONNECTED,
        fetch=_connectionGet(lambda connection: _integer(connection.version())),
    ),
    OptionRule(Option.TLS_UPGRADE, _When.NEW, _When.NEVER, store=_setUpgrade),
    OptionRule(
        Option.TLS_CHANNEL_BINDING,
        _When.NEVER,
        _When.CONNECTED,
        fetch=_connectionGet(lambda connection: connection.channelBinding()),
    ),
    OptionRule(
        Option.TLS_DATA_PATH,
        _When.NEVER,
        _When.CONNECTED,
        fetch=_connectionGet(lambda connection: _withNUL(connection.dataPath())),
    ),
    OptionRule(
        Option.TLS_KEY_EXCHANGE,
        _When.NEVER,
        _When.CONNECTED,
        fetch=_connectionGet(lambda connection: _withNUL(connection.group())),
    ),
)

TABLE: dict[int, OptionRule] = {int(rule.option): rule for rule in _RULES}
"""Every option that this version supports, by its number."""
