# SPDX-License-Identifier: MIT
"""
From a policy and a socket's options to a TLS connection: the only place where policy enters TLS.

A context costs milliseconds (the system's trust store alone is some 140 certificates), so clients' contexts are kept and
shared by all connections that need an equal one.  What differs between connections (the name, the application protocols)
is set on the connection, and what a check finds is kept there: see L{ssa.tls.connection.PeerCheck}.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType

from cryptography import x509
from OpenSSL import SSL, crypto

from ssa.api import PeerAuthentication
from ssa.errors import Cause, causeOfOpenSSL
from ssa.options import SocketOptions
from ssa.policy.profile import TLS_1_2, Profile
from ssa.tls.certificates import (
    Credential,
    chainPEM,
    describeCertificate,
    dnsNames,
)
from ssa.tls.connection import PeerCheck, keepStapled, noteAlert, noticeState, peerCheckOf, verifyPeer
from ssa.tls.groups import useGroups
from ssa.tls.identity import Identity, parseName
from ssa.tls.keylog import useKeyLog
from ssa.tls.policyfiles import clientCredentials, serverCredentials, storeOf
from ssa.tls.rules import Rules
from ssa.tls.sessions import ClientChains, Resumption, SessionCache, SessionKey
from ssa.tls.timestamps import askForTimestamps, canAskForTimestamps
from ssa.tls.trust import TrustStore, customStore

__all__ = ["ContextCache", "ServerContexts", "clientConnection", "serverConnection", "serverContexts"]

_SECURITY_LEVEL = 2
"""112 bits at least, SSL_CTX_set_security_level(3): no RSA key below 2048 bits, no SHA-1 signature."""

_MODE_ENABLE_PARTIAL_WRITE = 0x1
"""SSL_MODE_ENABLE_PARTIAL_WRITE of openssl/ssl.h, which pyOpenSSL sets and does not name."""

_MODE_NO_AUTO_CHAIN = 0x8
"""
SSL_MODE_NO_AUTO_CHAIN of openssl/ssl.h, which pyOpenSSL does not name.  Without it a chain of one certificate is completed
from the certificates that are trusted for the peer, up to the root.
"""

KEY_LIFETIME = 3600.0
"""Seconds for which a server uses the same keys for its tickets, at least."""

_MOST_NAMED = 64
"""
The most authorities that a server names to its clients (RFC 8446 section 4.2.4).  The list is optional, and that of a whole
trust store would make each handshake some 15 KiB longer to say that any authority will do.
"""


class ContextCache:
    """
    Contexts by what they are made of; the one that was used longest ago goes first.

    A key holds digests of everything that the context is made of, the trust store's content and the private key
    included, so that nobody gets the context of another one's key.
    """

    def __init__(self, evicted: Callable[[tuple[object, ...]], None] = lambda key: None) -> None:
        """
        @param evicted: called with the key of each context that is dropped because there are too many.
        """
        self._contexts: OrderedDict[tuple[object, ...], SSL.Context] = OrderedDict()
        self._evicted = evicted

    def __len__(self) -> int:
        return len(self._contexts)

    def get(self, key: tuple[object, ...], most: int, make: Callable[[], SSL.Context]) -> SSL.Context:
        """
        Find a context, or make it.

        @param most: how many may be kept.
        @param make: makes it; what it raises is passed on, and nothing is kept.
        """
        context = self._contexts.get(key)
        if context is None:
            context = make()
            self._contexts[key] = context
        self._contexts.move_to_end(key)
        while len(self._contexts) > most:
            self._evicted(self._contexts.popitem(last=False)[0])
        return context

    def clear(self) -> None:
        """Forget all of them; connections that use one are not touched."""
        self._contexts.clear()


_clientContexts = ContextCache()


def _context(method: int, profile: Profile) -> SSL.Context:
    """Make a context with everything that clients and servers have in common."""
    context = SSL.Context(method)
    context.set_min_proto_version(profile.minProtocol)
    context.set_max_proto_version(profile.maxProtocol)
    # TLS 1.0 and 1.1 sign with MD5 and SHA-1, which every security level but 0 forbids, SSL_CTX_set_security_level(3).  What
    # the level says about certificates is then checked by L{ssa.tls.connection.PeerCheck}.
    level = _SECURITY_LEVEL if profile.minProtocol >= TLS_1_2 else 0
    context.set_cipher_list(f"{profile.cipherList}:@SECLEVEL={level}".encode("ascii"))
    context.set_tls13_ciphersuites(profile.cipherSuites.encode("ascii"))
    useGroups(context, profile.groups)
    # OP_IGNORE_UNEXPECTED_EOF stays off: a truncated stream must be seen.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    if "session_ticket" not in profile.extensions:
        context.set_options(SSL.OP_NO_TICKET)
    # One call of send makes all the records of its buffer, and a retry has the same content at any address: pyOpenSSL
    # sets SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS | _MODE_NO_AUTO_CHAIN)
    context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)
    context.set_info_callback(noteAlert)
    if profile.keyLogFile:
        useKeyLog(context, profile.keyLogFile)
    return context


def _use(context: SSL.Context, credentials: Sequence[Credential]) -> None:
    """
    Give certificates to a context, each of another key type.

    @raise SSAError: ENOKEY if OpenSSL or the security level refuses one.
    """
    for credential in credentials:
        try:
            if len(credentials) == 1:
                context.use_certificate(credential.certificate)
                for certificate in credential.chain[1:]:
                    context.add_extra_chain_cert(certificate)
            else:
                _useChainFile(context, credential)
            context.use_privatekey(credential.key)
            context.check_privatekey()
        except SSL.Error as error:
            detail = causeOfOpenSSL(_queue(error))[1]
            described = describeCertificate(credential.certificate)
            raise Cause.OWN_CERTIFICATE_UNUSABLE.error(f"{detail} {described}") from None


def _useChainFile(context: SSL.Context, credential: Credential) -> None:
    """
    Give a certificate to a context with a chain of its own.

    Chain certificates that are added one by one are common to all certificates of a context; only a file gives each its
    own (SSL_CTX_use_certificate_chain_file(3)).  The file is memory.
    """
    descriptor = os.memfd_create("chain", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(chainPEM(credential.chain))
        file.flush()
        context.use_certificate_chain_file(f"/proc/self/fd/{descriptor}")


def _queue(error: SSL.Error) -> list[tuple[str, str, str]]:
    """Take OpenSSL's error queue out of pyOpenSSL's exception."""
    if error.args and isinstance(error.args[0], (list, tuple)):
        return [(str(a), str(b), str(c)) for a, b, c in error.args[0]]
    return []


def clientConnection(
    profile: Profile,
    options: SocketOptions,
    sock: socket.socket,
    identity: Identity,
    cache: ContextCache = _clientContexts,
    sessions: SessionCache | None = None,
    destination: object = None,
) -> SSL.Connection:
    """
    Make the client's side of TLS on a socket.  Its handshake succeeds only with a peer that proves to be C{identity}.

    @param profile: the policy in force.
    @param options: the program's options.
    @param sock: the real TCP socket, non-blocking; it may still be connecting.
    @param identity: whom the peer must be.
    @param cache: where contexts are kept.
    @param sessions: where sessions are kept; C{None}: none is resumed.
    @param destination: the peer's address and port: a session of another one is not resumed.
    @raise SSAError: ENOKEY for a certificate or key that cannot be used, EKEYREJECTED for a trust store that cannot be
        used, EPERM if the options ask for what the policy does not allow.
    """
    if options.trusted and not profile.appCustomValidation:
        raise Cause.POLICY.error("TLS_TRUSTED_PEER_CERTIFICATES was set, and AppCustomValidation is off")
    _checkExtensions(profile, options)
    profile = options.narrowed(profile)
    credentials = _onePerType(options.credentials() or clientCredentials(profile))
    store = _storeFor(profile, options)
    key = (
        profile.minProtocol,
        profile.maxProtocol,
        profile.cipherList,
        profile.cipherSuites,
        profile.groups,
        profile.certVerificationDepth,
        profile.extensions,
        profile.certTransparency,
        store.version,
        tuple(credential.fingerprint() for credential in credentials),
        profile.keyLogFile,
    )
    context = cache.get(
        key, profile.limits.maxCachedContexts, lambda: _clientContext(profile, store, credentials)
    )
    connection = SSL.Connection(context, sock)
    rules = Rules(profile, store.path, store.isCustom)
    check = PeerCheck(identity, bool(credentials), rules=rules, protocols=options.protocols)
    # OpenSSL's own bounds are off where obsolete protocols are allowed (L{_context}).
    check.checksStrength = profile.minProtocol < TLS_1_2
    connection.set_app_data(check)
    if profile.certTransparency and canAskForTimestamps():
        check.timestamps = b""
    if identity.serverName is not None:
        connection.set_tlsext_host_name(identity.serverName)
    if options.protocols:
        connection.set_alpn_protos(list(options.protocols))
    connection.request_ocsp()
    connection.set_connect_state()
    if sessions is not None:
        session = SessionKey(
            options.owner, options.space, destination, identity, profile, options.revocationRules(profile), key
        )
        check.resumption = Resumption(sessions, session, options.sessionSeconds(profile))
        check.offered = check.resumption.offer(connection)
    return connection


def _storeFor(profile: Profile, options: SocketOptions) -> TrustStore:
    return customStore(options.trusted) if options.trusted else storeOf(profile)


def _clientContext(profile: Profile, store: TrustStore, credentials: Sequence[Credential]) -> SSL.Context:
    context = _context(SSL.TLS_CLIENT_METHOD, profile)
    _trust(context, _asOpenSSL(store.certificates()), store.isCustom)
    context.set_verify_depth(profile.certVerificationDepth)
    # OpenSSL itself checks that the peer's certificate is for servers: SSL_CTX_set_purpose(3).
    context.set_verify(SSL.VERIFY_PEER, verifyPeer)
    # Sessions are kept by us (L{ssa.tls.sessions}), not by the context.
    context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT | SSL.SESS_CACHE_NO_INTERNAL)
    context.set_ocsp_client_callback(keepStapled)
    if profile.certTransparency:
        askForTimestamps(context)
    _use(context, credentials)
    return context


def _checkExtensions(profile: Profile, options: SocketOptions) -> None:
    """
    See that the options need no extension that the policy takes away.

    @raise SSAError: EPERM, they do.
    """
    if options.protocols and "application_layer_protocol_negotiation" not in profile.extensions:
        rule = profile.origin("Extensions") or "Extensions"
        raise Cause.POLICY.error(f"TLS_ALPN was set, and application_layer_protocol_negotiation is not in Extensions ({rule})")


def _asOpenSSL(certificates: Sequence[x509.Certificate]) -> list[crypto.X509]:
    return [crypto.X509.from_cryptography(certificate) for certificate in certificates]


def _trust(context: SSL.Context, certificates: Sequence[crypto.X509], isCustom: bool) -> None:
    """
    Say whom a context trusts.

    @param isCustom: whether a program has brought the certificates.
    """
    trusted = context.get_cert_store()
    if trusted is None:
        raise Cause.INTERNAL.error("a TLS context has no certificate store")
    for certificate in certificates:
        trusted.add_cert(certificate)
    flags = crypto.X509StoreFlags.X509_STRICT
    if isCustom:
        # A program may trust an intermediate authority, or one peer's certificate, without its root.
        flags |= crypto.X509StoreFlags.PARTIAL_CHAIN
    trusted.set_flags(flags)


def _onePerType(credentials: Sequence[Credential]) -> tuple[Credential, ...]:
    """Take the first credential of each key type, which is what a context can hold."""
    found: dict[str, Credential] = {}
    for credential in credentials:
        found.setdefault(credential.keyType, credential)
    return tuple(found.values())


class _NameNotServed(Exception):
    """Tells pyOpenSSL that the client's name is refused; it never leaves the callback's caller."""


class ServerContexts:
    """
    The contexts of one listener: one for each set of certificates that some name needs.

    A client's name is looked up among the certificates' own names, exact names before wildcards (RFC 9525 section
    6.3); a name that no certificate has gets the first certificate.  For each name there can be a certificate of each
    kind of key: the client gets one that it can verify.  If the program has said which names it serves (TLS_HOSTNAME), a
    client that asks for another one gets the alert unrecognized_name (RFC 6066 section 3); one that asks for none gets
    the first certificate.

    Sessions belong to the listener: their id context is random, and so are the keys of tickets, which no other context
    has.  Tickets hold the whole session (RFC 5077), and nothing is kept here; only where SessionTickets is off, OpenSSL
    keeps up to 20480 sessions for a listener.  OpenSSL never changes the keys of tickets: all contexts are made anew when
    they have served for L{KEY_LIFETIME}, or for as long as sessions may be resumed if that is longer.  Who has an older
    ticket then does a full handshake, which every session needs from time to time (RFC 8446 section 4.6.1).

    @ivar chains: what is served, each with the endpoint's own certificate first.
    @ivar staple: gives the OCSP answer to staple with a certificate, at once; empty for none.  C{None} staples nothing.
    """

    def __init__(
        self,
        profile: Profile,
        credentials: Sequence[Credential],
        options: SocketOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param profile: the policy in force, narrowed by the options.
        @param credentials: at least one; the first is the default.
        @param options: the listener's options.
        @param clock: tells the time in seconds.
        @raise SSAError: ENOKEY for a certificate that cannot be used, EKEYREJECTED for a trust store for clients that
            cannot be used.
        """
        self.rules = Rules(profile)
        self._profile = profile
        self._credentials = tuple(credentials)
        self._served = frozenset(options.hostnames)
        self.protocols = self._protocols = options.protocols
        self._authentication = options.clientAuthentication(profile)
        self._sessionSeconds = options.sessionSeconds(profile)
        self._clock = clock
        self._sessionContext = os.urandom(32)
        self.chains = tuple(credential.chain for credential in credentials)
        self.staple: Callable[[x509.Certificate], bytes] | None = None
        self._clientChains = ClientChains(self._sessionContext)
        self._authorities: list[crypto.X509] = []
        self._isCustom = False
        if self._authentication is not PeerAuthentication.NONE:
            store = _storeFor(profile, options)
            self.rules = Rules(profile, store.path, store.isCustom)
            self._authorities, self._isCustom = _asOpenSSL(store.certificates()), store.isCustom
        self._make()

    def _make(self) -> None:
        """Make all contexts."""
        self._since = self._clock()
        self._made: dict[tuple[bytes, ...], SSL.Context] = {}
        exact: dict[str, list[Credential]] = {}
        for credential in self._credentials:
            for name in dnsNames(credential.certificate):
                exact.setdefault(name, []).append(credential)
        first = self._credentials[0]
        firstNames = set(dnsNames(first.certificate))
        alike = [c for c in self._credentials if c is first or firstNames & set(dnsNames(c.certificate))]
        self._default = self._contextFor(alike)
        self._byName = {
            # For a kind of key without a certificate of this very name, one with a wildcard will do.
            name: self._contextFor([*found, *exact.get("*." + name.partition(".")[2], ())])
            for name, found in exact.items()
        }

    @property
    def default(self) -> SSL.Context:
        """The context for new connections; its ticket keys are not old."""
        if self._clock() - self._since >= max(KEY_LIFETIME, self._sessionSeconds):
            self._make()
        return self._default

    def newCheck(self) -> PeerCheck:
        """Make the checks of a new connection."""
        required = self._authentication is PeerAuthentication.REQUIRE
        check = PeerCheck(None, True, required, self.rules, self.protocols)
        if self._authentication is not PeerAuthentication.NONE and self._sessionSeconds:
            check.clientChains = self._clientChains
        return check

    def _contextFor(self, credentials: Sequence[Credential]) -> SSL.Context:
        chosen = _onePerType(credentials)
        key = tuple(credential.fingerprint() for credential in chosen)
        context = self._made.get(key)
        if context is None:
            context = self._made[key] = self._makeOne(chosen)
        return context

    def _makeOne(self, credentials: Sequence[Credential]) -> SSL.Context:
        context = _context(SSL.TLS_SERVER_METHOD, self._profile)
        context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
        context.set_info_callback(noticeState)
        self._askClients(context)
        self._setSessions(context)
        _use(context, credentials)
        context.set_tlsext_servername_callback(self._nameAsked)
        context.set_ocsp_server_callback(self._stapled)
        if self._protocols:
            context.set_alpn_select_callback(self._chooseProtocol)
        return context

    def _askClients(self, context: SSL.Context) -> None:
        """Ask for a certificate of the client, which OpenSSL checks to be for clients: SSL_CTX_set_purpose(3)."""
        if self._authentication is PeerAuthentication.NONE:
            context.set_verify(SSL.VERIFY_NONE)
            return
        _trust(context, self._authorities, self._isCustom)
        context.set_verify_depth(self._profile.certVerificationDepth)
        mode = SSL.VERIFY_PEER
        if self._authentication is PeerAuthentication.REQUIRE:
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(mode, verifyPeer)
        if len(self._authorities) <= _MOST_NAMED:
            for authority in self._authorities:
                context.add_client_ca(authority.to_cryptography())

    def _setSessions(self, context: SSL.Context) -> None:
        context.set_session_id(self._sessionContext)
        if not self._sessionSeconds:
            context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
            context.set_options(SSL.OP_NO_TICKET)
            return
        context.set_timeout(self._sessionSeconds)
        if self._profile.sessionTickets:
            context.set_session_cache_mode(SSL.SESS_CACHE_SERVER | SSL.SESS_CACHE_NO_INTERNAL)
        else:
            context.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
            context.set_options(SSL.OP_NO_TICKET)

    def contextFor(self, name: str) -> SSL.Context | None:
        """
        Choose by the client's name.

        @param name: what server_name says; "" if the client sent none.
        @return: C{None} if the name is not served.
        """
        if not name:
            return self._default
        try:
            wanted = parseName(name)
        except ValueError:
            return None if self._served else self._default
        wildcard = "*." + wanted.partition(".")[2]
        if self._served and wanted not in self._served and wildcard not in self._served:
            return None
        context = self._byName.get(wanted)
        if context is None:
            context = self._byName.get(wildcard)
        return context if context is not None else self._default

    def _nameAsked(self, connection: SSL.Connection) -> None:
        """OpenSSL calls this for every ClientHello, SSL_CTX_set_tlsext_servername_callback(3)."""
        asked = connection.get_servername()
        name = asked.decode("ascii", "backslashreplace") if asked is not None else ""
        context = self.contextFor(name)
        if context is None:
            peerCheckOf(connection).refusal = Cause.NAME_NOT_SERVED.error(name)
            _refuseQuietly()
        elif context is not connection.get_context():
            connection.set_context(context)

    def _stapled(self, connection: SSL.Connection, _data: object) -> bytes:
        """OpenSSL calls this when a client asks, and the certificate is chosen: SSL_CTX_set_tlsext_status_cb(3)."""
        certificate = connection.get_certificate(as_cryptography=True) if self.staple is not None else None
        return self.staple(certificate) if self.staple is not None and certificate is not None else b""

    def _chooseProtocol(self, connection: SSL.Connection, offered: list[bytes]) -> bytes:
        """Choose an application protocol in the server's order of preference, RFC 7301 section 3.2."""
        for protocol in self._protocols:
            if protocol in offered:
                return protocol
        # An exception makes pyOpenSSL answer with the alert no_application_protocol, and comes out of do_handshake.
        raise Cause.NO_COMMON_ALPN.error(
            f"offered {_listed(offered)}, served {_listed(self._protocols)}"
        )


def _listed(protocols: Sequence[bytes]) -> str:
    shown = ",".join(protocol.decode("ascii", "backslashreplace") for protocol in protocols[:8])
    return shown + (",…" if len(protocols) > 8 else "")


def _refuseQuietly() -> None:
    """
    Refuse the client's name from within the callback.

    An exception is the only way by which pyOpenSSL lets the callback send an alert, and it shows the exception with
    C{sys.excepthook}, once and at once.  A client's wish must not fill a log: this one call of the hook is left out.
    """
    before = sys.excepthook

    def once(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        sys.excepthook = before
        if not issubclass(kind, _NameNotServed):
            before(kind, value, trace)

    sys.excepthook = once
    raise _NameNotServed


def serverContexts(profile: Profile, options: SocketOptions) -> ServerContexts:
    """
    Prepare a listener, or the server's side of an upgraded connection.

    The certificates are the program's; the configuration's (CertPath, KeyPath) if it set none.  What one socket has
    prepared serves another one that shares its TLS_CONTEXT and has equal options, with its sessions.

    @raise SSAError: ENOKEY if there are none, or they cannot be used, EPERM if the options ask for what the policy does not
        allow.
    """
    if options.trusted and not profile.appCustomValidation:
        raise Cause.POLICY.error("TLS_TRUSTED_PEER_CERTIFICATES was set, and AppCustomValidation is off")
    _checkExtensions(profile, options)
    profile = options.narrowed(profile)
    credentials = options.credentials() or serverCredentials(profile)
    if not credentials:
        raise Cause.NO_OWN_CERTIFICATE.error(
            "set TLS_CERTIFICATE_CHAIN and TLS_PRIVATE_KEY, or CertPath and KeyPath in the configuration"
        )
    authentication = options.clientAuthentication(profile)
    key = (
        profile,
        tuple(credential.fingerprint() for credential in credentials),
        options.hostnames,
        options.protocols,
        authentication,
        options.sessionSeconds(profile),
        options.revocationRules(profile),
        options.staples(profile),
        _storeFor(profile, options).version if authentication is not PeerAuthentication.NONE else (),
    )
    kept = options.shared.get(key)
    if isinstance(kept, ServerContexts):
        return kept
    contexts = ServerContexts(profile, credentials, options)
    options.shared.clear()
    options.shared[key] = contexts
    return contexts


def serverConnection(contexts: ServerContexts, sock: socket.socket) -> SSL.Connection:
    """
    Make the server's side of TLS on an accepted socket.

    @param contexts: the listener's.
    @param sock: the real TCP socket, non-blocking and connected.
    """
    connection = SSL.Connection(contexts.default, sock)
    connection.set_app_data(contexts.newCheck())
    connection.set_accept_state()
    return connection
