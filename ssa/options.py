# SPDX-License-Identifier: MIT
"""
The TLS options of one socket.

L{ssa.optiontable.TABLE} says of each option who may set or get it and when; L{SocketOptions} applies the rules that are
common to all and holds the values.  What concerns the caller's buffer (ERANGE, C{*optlen}) and the opening of files is the
interceptor's.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from enum import Enum, auto

from cryptography import x509
from zope.interface import Attribute, Interface

from ssa.api import MAXIMUM_OPTION_SIZE, Option, PeerAuthentication
from ssa.errors import Cause, SSAError
from ssa.narrowing import leastAuthentication, narrowedBy
from ssa.optiontable import TABLE, When
from ssa.optionvalues import MOST_CREDENTIALS, MOST_NAMES
from ssa.policy.profile import Profile
from ssa.tls.certificates import Credential, PrivateKey, pairCredentials
from ssa.tls.identity import Identity

__all__ = ["LARGEST_FILE", "MOST_CREDENTIALS", "MOST_NAMES", "TABLE", "IConnectionInfo", "Phase", "SocketOptions"]

LARGEST_FILE = 1024 * 1024
"""The most bytes of a file, or of a directory's files together, that an option names."""


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

    def resumed() -> bool:
        """Say whether the handshake resumed a session."""


class SocketOptions:
    """
    The options of one TLS socket.

    @ivar remoteIdentity: whom TLS_REMOTE_HOSTNAME says that the peer must be; C{None} if it was not set.
    @ivar hostnames: the names that a listener serves; empty if it serves any.
    @ivar trusted: PEM of the certificates that replace the trust store; empty for the profile's.
    @ivar chains: the certificate chains, in the order in which they were set.
    @ivar keys: the private keys.
    @ivar protocols: the application protocols, in order of preference.
    @ivar sessionTTL: TLS_SESSION_TTL; C{None} if it was not set, as all that follow.
    @ivar sessionReuse: TLS_SESSION_REUSE.
    @ivar trustedCiphers: TLS_TRUSTED_CIPHERS, IANA names.
    @ivar disabledCiphers: what TLS_DISABLE_CIPHER has named.
    @ivar versionMin: TLS_VERSION_MIN; 0 if it was not set.
    @ivar versionMax: TLS_VERSION_MAX; 0 if it was not set.
    @ivar peerAuthentication: TLS_REQUEST_PEER_AUTH.
    @ivar revocationChecks: TLS_REVOCATION_CHECKS.
    @ivar revocationDropped: the sources that the program does not let count; see L{revocationRules}.
    @ivar serverStapling: TLS_SERVER_OCSP_STAPLING.
    @ivar context: TLS_CONTEXT; 0 if it was not set.
    @ivar owner: the user whose socket it is, as far as that is known for sure; sockets of one owner may share sessions.
    @ivar space: what sockets have in common that share their sessions: the program, and what TLS_CONTEXT copies.
    @ivar shared: holds what the servers of one L{context} have in common.
    @ivar find: finds the options of the socket with a TLS_ID.
    @ivar error: the line of TLS_ERROR.  Whoever makes a call succeed or fail on the socket sets it: see L{failed} and
        L{succeeded}.
    """

    def __init__(
        self,
        id: int,
        owner: int = -1,
        space: object = None,
        find: Callable[[int], SocketOptions | None] = lambda _: None,
    ) -> None:
        """
        @param id: the value of TLS_ID, unique while the daemon lives.
        """
        self.id: int = id
        self.owner = owner
        self.space = space
        self.find = find
        self.context: int = 0
        self.shared: dict[tuple[object, ...], object] = {}
        self.remoteName: str = ""
        self.remoteIdentity: Identity | None = None
        self.hostnames: tuple[str, ...] = ()
        self.trusted = b""
        self.chains: tuple[tuple[x509.Certificate, ...], ...] = ()
        self.keys: tuple[PrivateKey, ...] = ()
        self.protocols: tuple[bytes, ...] = ()
        self.sessionTTL: int | None = None
        self.sessionReuse: bool | None = None
        self.trustedCiphers: tuple[str, ...] | None = None
        self.disabledCiphers: frozenset[str] = frozenset()
        self.versionMin = 0
        self.versionMax = 0
        self.peerAuthentication: PeerAuthentication | None = None
        self.revocationChecks: bool | None = None
        self.revocationDropped: frozenset[str] = frozenset()
        self.serverStapling: bool | None = None
        self.error: str = ""

    def __repr__(self) -> str:
        return f"<SocketOptions of socket {self.id}>"

    def inherit(self, id: int) -> SocketOptions:
        """
        Copy the options for an accepted socket; nothing that is done to one changes the other.

        @param id: the new socket's.
        """
        new = copy(self)  # every value is immutable, but what is shared
        new.id = id
        new.error = ""
        new.context = self.context or self.id
        return new

    def adopt(self, other: SocketOptions) -> None:
        """
        TLS_CONTEXT: take over all options of another socket, and share its sessions.

        @param other: of the same L{owner}.
        """
        own = self.id, self.owner, self.find, self.error
        self.__dict__.update(other.__dict__)
        self.id, self.owner, self.find, self.error = own
        self.context = other.id

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
            raise Cause.UNKNOWN_OPTION.error(f"number {number}")
        name = rule.option.name
        if rule.settable is When.NEVER or rule.store is None:
            raise Cause.ONLY_GET.error(name)
        if rule.settable is When.NEW and phase is not Phase.NEW:
            raise Cause.TOO_LATE.error(name)
        if rule.option is Option.TLS_TRUSTED_PEER_CERTIFICATES and not profile.appCustomValidation:
            raise Cause.POLICY.error(f"{name} is set, and AppCustomValidation is off ({profile.rule('AppCustomValidation')})")
        if file and not rule.fromFile:
            raise Cause.BAD_VALUE.error(f"{name} names no file")
        most = LARGEST_FILE if file else MAXIMUM_OPTION_SIZE
        if len(value) > most:
            raise Cause.TOO_LONG.error(f"{name} has {len(value)} bytes, at most {most} are allowed")
        try:
            rule.store(self, value, profile)
        except ValueError as error:
            source = f" from {file}" if file else ""
            raise Cause.BAD_VALUE.error(f"{name}{source}: {error}") from None

    def get(
        self, number: int, phase: Phase, connection: IConnectionInfo | None, profile: Profile | None = None
    ) -> bytes:
        """
        Get an option.

        @param number: the option, as the program gave it.
        @param phase: how far the socket is.
        @param connection: the connection; C{None} exactly if there is none yet.
        @param profile: the policy in force; C{None} for that of a machine without configuration.
        @return: the whole value; strings come with their final NUL.
        @raise SSAError: ENOPROTOOPT, EACCES, ENOTCONN or ENODATA.  A failed get does not change TLS_ERROR, which tells
            of the last call that did something.
        """
        rule = TABLE.get(number)
        if rule is None:
            raise Cause.UNKNOWN_OPTION.error(f"number {number}")
        name = rule.option.name
        if rule.option is Option.TLS_PRIVATE_KEY:
            raise Cause.SECRET.error(name)
        if rule.gettable is When.NEVER or rule.fetch is None:
            raise Cause.ONLY_SET.error(name)
        if rule.gettable is When.CONNECTED and (phase is not Phase.CONNECTED or connection is None):
            raise Cause.NOT_CONNECTED.error(name)
        return rule.fetch(self, connection, profile if profile is not None else Profile())

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

    # what is in force

    def narrowed(self, profile: Profile) -> Profile:
        """
        Apply what the program says about versions and ciphers to a policy.

        @raise SSAError: EPERM, nothing is left.
        """
        return narrowedBy(profile, self.versionMin, self.versionMax, self.trustedCiphers, self.disabledCiphers)

    def sessionSeconds(self, profile: Profile) -> int:
        """Say for how many seconds sessions may be resumed; 0: not at all."""
        if not profile.sessionResumption or self.sessionReuse is False:
            return 0
        return profile.sessionTimeout if self.sessionTTL is None else min(profile.sessionTimeout, self.sessionTTL)

    def clientAuthentication(self, profile: Profile) -> PeerAuthentication:
        """Say what a server asks of its clients: the more of what the program and the policy want."""
        least = leastAuthentication(profile)
        return least if self.peerAuthentication is None else max(least, self.peerAuthentication)

    def revocationRules(self, profile: Profile) -> tuple[bool, frozenset[str]]:
        """
        Say what counts about revocation.

        A program can ask for definite answers where the policy does not, never the other way round.  It can leave out
        sources only where a definite answer is required: then every peer that is accepted has an answer of a source
        that the policy counts, and one that is left out can only cost a connection.  Without that requirement a source
        that is left out would hide a revocation, so all of the policy's count.

        @return: whether a definite answer must exist; the sources that count, some of
            L{ssa.narrowing.REVOCATION_SOURCES}.
        """
        required = profile.revocationChecks or bool(self.revocationChecks)
        return required, profile.revocationSources - (self.revocationDropped if required else frozenset())

    def staples(self, profile: Profile) -> bool:
        """Say whether a server staples OCSP answers: if the program or the policy wants it."""
        return profile.serverStapling or bool(self.serverStapling)
