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
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType

from OpenSSL import SSL, crypto

from ssa.errors import Cause, causeOfOpenSSL
from ssa.options import SocketOptions
from ssa.policy.profile import Profile
from ssa.tls.certificates import (
    Credential,
    chainPEM,
    describeCertificate,
    dnsNames,
    pairCredentials,
    parseChains,
    parsePrivateKeys,
)
from ssa.tls.connection import PeerCheck, noteAlert, peerCheckOf, verifyPeer
from ssa.tls.identity import Identity, parseName
from ssa.tls.keylog import useKeyLog
from ssa.tls.rules import Rules
from ssa.tls.trust import TrustStore, customStore, findStore

__all__ = ["ContextCache", "ServerContexts", "clientConnection", "serverConnection", "serverContexts"]

_SECURITY_LEVEL = 2
"""112 bits at least, SSL_CTX_set_security_level(3): no RSA key below 2048 bits, no SHA-1 signature."""

_MODE_ENABLE_PARTIAL_WRITE = 0x1
"""SSL_MODE_ENABLE_PARTIAL_WRITE of openssl/ssl.h, which pyOpenSSL sets and does not name."""

_LARGEST_ADMINISTRATOR_FILE = 1024 * 1024


class ContextCache:
    """
    Contexts by what they are made of; the one that was used longest ago goes first.

    A key holds digests of everything that the context is made of, the trust store's content and the private key
    included, so that nobody gets the context of another one's key.
    """

    def __init__(self) -> None:
        self._contexts: OrderedDict[tuple[object, ...], SSL.Context] = OrderedDict()

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
            self._contexts.popitem(last=False)
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
    context.set_cipher_list(f"{profile.cipherList}:@SECLEVEL={_SECURITY_LEVEL}".encode("ascii"))
    context.set_tls13_ciphersuites(profile.cipherSuites.encode("ascii"))
    # OP_IGNORE_UNEXPECTED_EOF stays off: a truncated stream must be seen.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    # One call of send makes all the records of its buffer, and a retry has the same content at any address: pyOpenSSL
    # sets SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
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
) -> SSL.Connection:
    """
    Make the client's side of TLS on a socket.  Its handshake succeeds only with a peer that proves to be C{identity}.

    @param profile: the policy in force.
    @param options: the program's options.
    @param sock: the real TCP socket, non-blocking; it may still be connecting.
    @param identity: whom the peer must be.
    @param cache: where contexts are kept.
    @raise SSAError: ENOKEY for a certificate or key that cannot be used, EKEYREJECTED for a trust store that cannot be
        used, EPERM if the options ask for what the policy does not allow.
    """
    if options.trusted and not profile.appCustomValidation:
        raise Cause.POLICY.error("TLS_TRUSTED_PEER_CERTIFICATES was set, and AppCustomValidation is off")
    credentials = _onePerType(options.credentials())
    store = customStore(options.trusted) if options.trusted else findStore(profile.trustStore)
    key = (
        profile.minProtocol,
        profile.maxProtocol,
        profile.cipherList,
        profile.cipherSuites,
        profile.certVerificationDepth,
        store.version,
        tuple(credential.fingerprint() for credential in credentials),
        profile.keyLogFile,
    )
    context = cache.get(
        key, profile.limits.maxCachedContexts, lambda: _clientContext(profile, store, credentials)
    )
    connection = SSL.Connection(context, sock)
    rules = Rules(profile, store.path, store.isCustom)
    connection.set_app_data(PeerCheck(identity, bool(credentials), rules, options.protocols))
    if identity.serverName is not None:
        connection.set_tlsext_host_name(identity.serverName)
    if options.protocols:
        connection.set_alpn_protos(list(options.protocols))
    connection.set_connect_state()
    return connection


def _clientContext(profile: Profile, store: TrustStore, credentials: Sequence[Credential]) -> SSL.Context:
    context = _context(SSL.TLS_CLIENT_METHOD, profile)
    trusted = context.get_cert_store()
    if trusted is None:
        raise Cause.INTERNAL.error("a TLS context has no certificate store")
    for certificate in store.certificates():
        trusted.add_cert(crypto.X509.from_cryptography(certificate))
    flags = crypto.X509StoreFlags.X509_STRICT
    if store.isCustom:
        # A program may trust an intermediate authority, or one peer's certificate, without its root.
        flags |= crypto.X509StoreFlags.PARTIAL_CHAIN
    trusted.set_flags(flags)
    context.set_verify_depth(profile.certVerificationDepth)
    # OpenSSL itself checks that the peer's certificate is for servers: SSL_CTX_set_purpose(3).
    context.set_verify(SSL.VERIFY_PEER, verifyPeer)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    _use(context, credentials)
    return context


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
    6.3); a name that no certificate has gets the first certificate.  If the program has said which names it serves
    (TLS_HOSTNAME), a client that asks for another one gets the alert unrecognized_name (RFC 6066 section 3); one that asks
    for none gets the first certificate.
    """

    def __init__(self, profile: Profile, credentials: Sequence[Credential], options: SocketOptions) -> None:
        """
        @param profile: the policy in force.
        @param credentials: at least one; the first is the default.
        @param options: the listener's options.
        @raise SSAError: ENOKEY for a certificate that cannot be used.
        """
        self.rules = Rules(profile)
        self._profile = profile
        self._served = frozenset(options.hostnames)
        self.protocols = self._protocols = options.protocols
        self._made: dict[tuple[bytes, ...], SSL.Context] = {}
        self._sessionContext = os.urandom(32)
        byName: dict[str, list[Credential]] = {}
        for credential in credentials:
            for name in dnsNames(credential.certificate):
                byName.setdefault(name, []).append(credential)
        first = credentials[0]
        firstNames = set(dnsNames(first.certificate))
        alike = [c for c in credentials if c is first or firstNames & set(dnsNames(c.certificate))]
        self.default = self._contextFor(alike)
        self._byName = {name: self._contextFor(found) for name, found in byName.items()}

    def _contextFor(self, credentials: Sequence[Credential]) -> SSL.Context:
        chosen = _onePerType(credentials)
        key = tuple(credential.fingerprint() for credential in chosen)
        context = self._made.get(key)
        if context is None:
            context = self._made[key] = self._make(chosen)
        return context

    def _make(self, credentials: Sequence[Credential]) -> SSL.Context:
        context = _context(SSL.TLS_SERVER_METHOD, self._profile)
        context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
        context.set_verify(SSL.VERIFY_NONE)
        context.set_session_id(self._sessionContext)
        _use(context, credentials)
        context.set_tlsext_servername_callback(self._nameAsked)
        if self._protocols:
            context.set_alpn_select_callback(self._chooseProtocol)
        return context

    def contextFor(self, name: str) -> SSL.Context | None:
        """
        Choose by the client's name.

        @param name: what server_name says; "" if the client sent none.
        @return: C{None} if the name is not served.
        """
        if not name:
            return self.default
        try:
            wanted = parseName(name)
        except ValueError:
            return None if self._served else self.default
        if self._served and wanted not in self._served:
            return None
        context = self._byName.get(wanted)
        if context is None:
            context = self._byName.get("*." + wanted.partition(".")[2])
        return context if context is not None else self.default

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

    The certificates are the program's; the configuration's (CertPath, KeyPath) if it set none.

    @raise SSAError: ENOKEY if there are none, or they cannot be used.
    """
    credentials = options.credentials() or _administratorCredentials(profile)
    if not credentials:
        raise Cause.NO_OWN_CERTIFICATE.error(
            "set TLS_CERTIFICATE_CHAIN and TLS_PRIVATE_KEY, or CertPath and KeyPath in the configuration"
        )
    return ServerContexts(profile, credentials, options)


def _administratorCredentials(profile: Profile) -> tuple[Credential, ...]:
    """Read the certificates that the configuration names.  Its paths are the administrator's, read with our rights."""
    credentials: list[Credential] = []
    for chainPath, keyPath in profile.certificates:
        try:
            chains = parseChains(_readFile(chainPath))
            keys = parsePrivateKeys(_readFile(keyPath))
            credentials.extend(pairCredentials(chains, keys))
        except OSError as error:
            raise Cause.OWN_CERTIFICATE_UNUSABLE.error(f"{error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise Cause.OWN_CERTIFICATE_UNUSABLE.error(f"CertPath {chainPath}, KeyPath {keyPath}: {error}") from None
    return tuple(credentials)


def _readFile(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_LARGEST_ADMINISTRATOR_FILE + 1)
    if len(data) > _LARGEST_ADMINISTRATOR_FILE:
        raise ValueError(f"{path} is larger than {_LARGEST_ADMINISTRATOR_FILE} bytes")
    return data


def serverConnection(contexts: ServerContexts, sock: socket.socket) -> SSL.Connection:
    """
    Make the server's side of TLS on an accepted socket.

    @param contexts: the listener's.
    @param sock: the real TCP socket, non-blocking and connected.
    """
    connection = SSL.Connection(contexts.default, sock)
    connection.set_app_data(PeerCheck(None, True, contexts.rules, contexts.protocols))
    connection.set_accept_state()
    return connection
