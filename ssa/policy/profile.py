# SPDX-License-Identifier: MIT
"""
The policy in force, as data: what the administrator's file says about one connection of one program.

The defaults here are the policy of a machine without any file; C{conf/ssa.conf} shows the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ssa.tls.certificates import Credential
    from ssa.tls.trust import TrustStore

__all__ = [
    "ALL_EXTENSIONS",
    "DEFAULT_CIPHERS",
    "DEFAULT_FILE",
    "DEFAULT_SUITES",
    "HIGHEST_USER",
    "OLD_VERSION_NAMES",
    "TLS_1_2",
    "TLS_1_3",
    "VERSION_NAMES",
    "Caller",
    "Limits",
    "NamedFiles",
    "Policy",
    "PolicyFiles",
    "Profile",
    "Rule",
]

DEFAULT_FILE = "/etc/ssa.conf"
"""Where the administrator's file is, unless a command says otherwise."""

HIGHEST_USER = 0xFFFFFFFE
"""The highest user id; (uid_t)-1 is none, chown(2)."""

TLS_1_2 = 0x0303
TLS_1_3 = 0x0304

VERSION_NAMES: dict[int, str] = {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}
"""Protocol numbers (RFC 8446, section 4.2.1) to the names that OpenSSL's configuration and C{ssa.conf} use."""

_MOST_FOUND = 4096
_MOST_MERGED = 1024

OLD_VERSION_NAMES: dict[int, str] = {0x0301: "TLSv1", 0x0302: "TLSv1.1"}
"""Protocols that RFC 8996 forbids, which only a profile for certain destinations may allow and no program may ask for."""

ALL_EXTENSIONS = frozenset(("application_layer_protocol_negotiation", "session_ticket"))
"""
The TLS extensions (by their names in the IANA registry) that a policy may take away.  All others are either always used,
since security depends on them, or follow from another key.
"""


@dataclass(frozen=True)
class Limits:
    """
    The bounds of everything that programs and peers can make the daemon hold.

    Every value is a count, at least 1, except where it says so.

    @ivar maxSockets: TLS sockets of all programs together.
    @ivar maxSocketsPerUser: TLS sockets of one user; root is bound by C{maxSockets} only.
    @ivar maxHandshakes: handshakes in flight, clients and servers of all programs.
    @ivar maxHandshakesPerProgram: handshakes in flight of one process.
    @ivar maxPendingEvents: events of one user at one interceptor that wait for an answer.
    @ivar maxInterceptors: supervisors connected to the daemon's socket at one time.
    @ivar maxAcceptQueue: connections of one listener between accept(2) of the daemon and the program's queue.
    @ivar maxRelayBuffers: buffers of 256 KiB that all relays may hold at one time.
    @ivar maxRelayBuffersPerUser: the same, for the relays of one user; root is bound by C{maxRelayBuffers} only.
    @ivar maxAddresses: addresses of one name that connect tries.
    @ivar maxCachedContexts: prepared TLS contexts that are kept for the next connection.
    """

    maxSockets: int = 65536
    maxSocketsPerUser: int = 16384
    maxHandshakes: int = 4096
    maxHandshakesPerProgram: int = 1024
    maxPendingEvents: int = 4096
    maxInterceptors: int = 512
    maxAcceptQueue: int = 128
    maxRelayBuffers: int = 2048
    maxRelayBuffersPerUser: int = 1024
    maxAddresses: int = 16
    maxCachedContexts: int = 64


DEFAULT_CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
"""TLS 1.2: authenticated encryption with forward secrecy and nothing else, RFC 9325 section 4.2."""

DEFAULT_SUITES = ":".join(
    (
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    )
)
"""TLS 1.3, RFC 8446 appendix B.4; AES-128 first, which costs the least and is as safe here as the others."""


@dataclass(frozen=True)
class Profile:
    """
    How one program's connections to one destination, or one listener, do TLS.

    @ivar minProtocol: the lowest TLS version, C{0x0303} or C{0x0304}.
    @ivar maxProtocol: the highest TLS version, not below C{minProtocol}.
    @ivar cipherList: the TLS 1.2 ciphers, in OpenSSL's format, ciphers(1).
    @ivar cipherSuites: the TLS 1.3 suites, separated by colons.
    @ivar trustStore: path of a PEM file or of a directory of PEM files; "" for the system's store.
    @ivar appCustomValidation: whether a program may replace the trust store (TLS_TRUSTED_PEER_CERTIFICATES).
    @ivar certVerificationDepth: the most intermediate certificates between the peer's and a trusted one.
    @ivar handshakeTimeout: seconds from the established TCP connection, or its attempt, to the end of the handshake.
    @ivar resolveTimeout: seconds that the resolution of a name may take.
    @ivar connectTimeout: seconds that TCP may take to connect; 0 leaves it to the kernel (tcp_syn_retries).
    @ivar truncation: C{"error"}: a connection that ends without close_notify is an error (ECONNRESET);
        C{"allow"}: it is an end of file.
    @ivar certificates: the server's default certificates, pairs of the paths of a PEM chain and of its key.
    @ivar limits: the daemon's bounds.
    @ivar access: whether connections are allowed at all.
    @ivar clientCertificates: what clients show where the program has set none, pairs of paths as C{certificates}.
    @ivar clientAuth: the least that a server asks of its clients: C{"off"}, C{"request"} or C{"require"} a certificate.
    @ivar sessionResumption: whether sessions are resumed.
    @ivar sessionTickets: whether servers give tickets (RFC 5077) to clients of TLS 1.2; they keep the sessions otherwise.
    @ivar sessionTimeout: seconds that a session can be resumed; at most seven days (RFC 8446 section 4.6.1).
    @ivar revocationChecks: whether a definite answer on the revocation of each of the peer's certificates must exist.
    @ivar revocationSources: which answers count: some of C{"stapled"}, C{"cached"}, C{"ocsp"} and C{"crl"}.
    @ivar revocationTimeout: seconds that all questions of one handshake may take together.
    @ivar serverStapling: whether servers staple OCSP answers.
    @ivar certTransparency: whether a server's certificate needs timestamps of logs (RFC 6962).
    @ivar transparencyLogs: path of the list of logs that count, JSON; "" if there is none.
    @ivar validation: the names of the validation plug-ins that are asked too.
    @ivar pinnedKeys: SHA-256 digests (32 bytes) of the SubjectPublicKeyInfo of which a server's verified chain must hold one,
        for the plug-in C{"pin"}; empty if there are none.
    @ivar firstUseStore: path of the file in which the plug-in C{"first-use"} keeps the keys that it has seen.
    @ivar keyLogFile: path of the file for the connections' secrets (NSS key log format); "" for none.
    @ivar groups: the key exchange groups, names separated by colons; "" for the library's own.
    @ivar securityLevel: the name of the level (L{ssa.policy.levels}) that was chosen last; its values are in the other fields.
    @ivar extensions: which of L{ALL_EXTENSIONS} may be used.
    @ivar files: what the files that the policy names held when it was loaded; C{None}: they are read when they are needed.
    @ivar conflict: what is contradictory about the rules that make up this profile; C{access} is C{False} then.
    @ivar origins: where values come from, by the keys of the file: see L{origin}.  Profiles that differ only in it are equal.
    @ivar sections: the names of the file's sections that hold besides C{[default]}, in its order.  Profiles that differ only in
        it are equal.
    """

    minProtocol: int = TLS_1_2
    maxProtocol: int = TLS_1_3
    cipherList: str = DEFAULT_CIPHERS
    cipherSuites: str = DEFAULT_SUITES
    trustStore: str = ""
    appCustomValidation: bool = True
    certVerificationDepth: int = 10
    handshakeTimeout: float = 30.0
    resolveTimeout: float = 15.0
    connectTimeout: float = 0.0
    truncation: str = "error"
    certificates: tuple[tuple[str, str], ...] = ()
    limits: Limits = field(default_factory=Limits)
    access: bool = True
    clientCertificates: tuple[tuple[str, str], ...] = ()
    clientAuth: str = "off"
    sessionResumption: bool = True
    sessionTickets: bool = True
    sessionTimeout: int = 7200
    revocationChecks: bool = False
    revocationSources: frozenset[str] = frozenset(("stapled", "cached", "ocsp", "crl"))
    revocationTimeout: float = 10.0
    serverStapling: bool = False
    certTransparency: bool = False
    transparencyLogs: str = ""
    validation: tuple[str, ...] = ()
    pinnedKeys: tuple[bytes, ...] = ()
    firstUseStore: str = ""
    keyLogFile: str = ""
    groups: str = ""
    securityLevel: str = "custom"
    extensions: frozenset[str] = ALL_EXTENSIONS
    files: PolicyFiles | None = field(default=None, compare=False, repr=False)
    conflict: str = ""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    sections: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def origin(self, key: str) -> str:
        """
        Say which rule of the administrator's a value comes from.

        @param key: as it is written in the file: C{"TrustStoreLocation"}.
        @return: C{"/etc/ssa.conf:12 [profile web]"}; "" for the built-in default.
        """
        return self.origins.get(key, "")

    def rule(self, key: str) -> str:
        """
        Name the rule that a value comes from, for a person.

        @param key: as it is written in the file.
        @return: C{"TrustStoreLocation at /etc/ssa.conf:12 [default]"}, or that it is the built-in default.
        """
        origin = self.origin(key)
        return f"{key} at {origin}" if origin else f"the built-in default of {key}"


@dataclass(frozen=True)
class Caller:
    """
    Who makes a call, as the interceptor saw it.

    @ivar uid: the effective user.
    @ivar pid: the process, in the interceptor's pid namespace; 0 if unknown.
    @ivar comm: the name of the thread, at most 15 bytes, set by the program itself: for logs only.
    @ivar executable: the path of the executable in the program's mount namespace; "" if unknown.
    """

    uid: int
    pid: int = 0
    comm: str = ""
    executable: str = ""


class PolicyFiles(Protocol):
    """
    What the files that a policy names held when it was loaded (L{ssa.tls.policyfiles}).

    @ivar warnings: lines about what is no error and will not work all the same.
    """

    warnings: list[str]

    def credentials(self, pairs: Sequence[tuple[str, str]]) -> tuple[Credential, ...]:
        """
        Get certificates with their keys.

        @param pairs: as in L{Profile.certificates}.
        @raise SSAError: ENOKEY, one could not be read.
        """

    def store(self, path: str) -> TrustStore:
        """
        Get a trust store.

        @param path: as in L{Profile.trustStore}, not "".
        @raise SSAError: EKEYREJECTED, it could not be read.
        """

    def content(self, path: str) -> bytes:
        """
        Get the content of another file.

        @param path: as in L{Profile.transparencyLogs}, not "".
        @raise OSError: it could not be read.
        """


@dataclass(frozen=True)
class NamedFiles:
    """
    Files that one key of the policy names.

    @ivar key: the key.
    @ivar kind: C{"credential"}, a chain and its key; C{"store"}, a trust store; C{"content"}, anything else that is read;
        C{"written"}, what the daemon itself writes.
    @ivar paths: two paths, or one.
    @ivar place: where they are named, as errors begin: C{file:line: [section] Key}.
    @ivar secondPlace: the same for the second path.
    """

    key: str
    kind: str
    paths: tuple[str, ...]
    place: str
    secondPlace: str = ""


class Rule(Protocol):
    """
    A profile of the file: whom it is for.  What it says, the policy's C{merge} knows.

    @ivar name: of its section.
    """

    name: str

    def value(self, key: str) -> Any:
        """
        Get what the profile itself sets.

        @param key: as it is written in the file.
        @return: C{None} if it does not set the key.
        """

    def matches(self, who: Caller, destination: str | None, port: int, address: str) -> bool:
        """See L{Policy.profileFor}."""


class Policy:
    """
    The administrator's whole policy.

    @ivar default: what applies where nothing more particular does.
    @ivar origins: for each key of C{[default]} that was set, the file and the line (from 1) that set it.
    @ivar rules: the profiles of the file, in its order.
    @ivar logLevel: the least level that is logged: C{"debug"}, C{"info"}, C{"warn"}, C{"error"} or C{"critical"}.
    @ivar logFormat: C{"text"} or C{"json"}.
    @ivar named: the files that all profiles name.
    @ivar file: the administrator's file; "" if there is none.
    @ivar randomSeed: path of a file, and how many bytes of it are mixed into the random number generator; C{("", 0)}: none.
    """

    def __init__(
        self,
        default: Profile | None = None,
        origins: dict[str, tuple[str, int]] | None = None,
        *,
        rules: Sequence[Rule] = (),
        merge: Callable[[Sequence[Rule]], Profile] | None = None,
        named: Sequence[NamedFiles] = (),
        logLevel: str = "info",
        logFormat: str = "text",
        randomSeed: tuple[str, int] = ("", 0),
    ) -> None:
        """
        @param default: the profile for everything; C{None} for the built-in one.
        @param origins: where its values come from; C{None} if nowhere but the defaults.
        @param merge: makes the profile of rules that match, at least one; C{None} if there are no rules.
        """
        self.default = default if default is not None else Profile()
        self.origins: dict[str, tuple[str, int]] = dict(origins) if origins is not None else {}
        self.rules = tuple(rules)
        self._merge = merge
        self.named = tuple(named)
        self.logLevel = logLevel
        self.logFormat = logFormat
        self.randomSeed = randomSeed
        self.file = ""
        self._found: dict[tuple[object, ...], Profile] = {}
        self._merged: dict[tuple[int, ...], Profile] = {}

    def withFiles(self, files: PolicyFiles) -> Policy:
        """
        Make the same policy with what its files hold now.

        @param files: for all its profiles.
        """
        new = copy(self)
        new.default = replace(self.default, files=files)
        new._found = {}
        new._merged = {}
        return new

    def profileFor(self, who: Caller, destination: str | None, port: int, address: str = "") -> Profile:
        """
        Find the profile for a socket.

        @param who: the program.
        @param destination: the name or address that the peer must prove to have; C{None} for a listener.
        @param port: the port that it connects to or listens on.
        @param address: the address that is really connected to; "" if it is not known (yet), or is C{destination}.
        @return: the profile; equal questions get the same object.
        """
        if not self.rules:
            return self.default
        key = (who.uid, who.executable, destination, port, address)
        profile = self._found.get(key)
        if profile is None:
            if len(self._found) >= _MOST_FOUND:
                self._found.clear()
            profile = self._found[key] = self._find(who, destination, port, address)
        return profile

    def _find(self, who: Caller, destination: str | None, port: int, address: str) -> Profile:
        matching = tuple(i for i, rule in enumerate(self.rules) if rule.matches(who, destination, port, address))
        if not matching or self._merge is None:
            return self.default
        profile = self._merged.get(matching)
        if profile is None:
            if len(self._merged) >= _MOST_MERGED:
                self._merged.clear()
            rules = [self.rules[i] for i in matching]
            profile = self._merged[matching] = replace(
                self._merge(rules), files=self.default.files, sections=tuple(rule.name for rule in rules)
            )
        return profile
