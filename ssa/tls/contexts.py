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
from collections import OrderedDict
from collections.abc import Callable, Sequence

from cryptography import x509
from OpenSSL import SSL, crypto

from ssa.errors import Cause, causeOfOpenSSL, errorQueue
from ssa.options import SocketOptions
from ssa.policy.profile import TLS_1_2, Profile
from ssa.tls.certificates import (
    Credential,
    chainPEM,
    describeCertificate,
)
from ssa.tls.connection import PeerCheck, keepStapled, noteAlert, verifyPeer
from ssa.tls.groups import useGroups
from ssa.tls.identity import Identity
from ssa.tls.keylog import useKeyLog
from ssa.tls.policyfiles import clientCredentials, storeOf
from ssa.tls.rules import Rules
from ssa.tls.sessions import Resumption, SessionCache, SessionKey
from ssa.tls.timestamps import askForTimestamps, canAskForTimestamps
from ssa.tls.trust import TrustStore, customStore

__all__ = [
    "ContextCache",
    "asOpenSSL",
    "checkExtensions",
    "clientConnection",
    "newContext",
    "onePerType",
    "storeFor",
    "trust",
    "useCredentials",
]

_SECURITY_LEVEL = 2
"""112 bits at least, SSL_CTX_set_security_level(3): no RSA key below 2048 bits, no SHA-1 signature."""

_MODE_ENABLE_PARTIAL_WRITE = 0x1
"""SSL_MODE_ENABLE_PARTIAL_WRITE of openssl/ssl.h, which pyOpenSSL sets and does not name."""

_MODE_NO_AUTO_CHAIN = 0x8
"""
SSL_MODE_NO_AUTO_CHAIN of openssl/ssl.h, which pyOpenSSL does not name.  Without it a chain of one certificate is completed
from the certificates that are trusted for the peer, up to the root.
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


def newContext(method: int, profile: Profile) -> SSL.Context:
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


def useCredentials(context: SSL.Context, credentials: Sequence[Credential]) -> None:
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
            detail = causeOfOpenSSL(errorQueue(error))[1]
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
        rule = profile.rule("AppCustomValidation")
        raise Cause.POLICY.error(f"TLS_TRUSTED_PEER_CERTIFICATES was set, and AppCustomValidation is off ({rule})")
    checkExtensions(profile, options)
    profile = options.narrowed(profile)
    credentials = onePerType(options.credentials() or clientCredentials(profile))
    store = storeFor(profile, options)
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
    check.user = options.owner
    # OpenSSL's own bounds are off where obsolete protocols are allowed (L{newContext}).
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


def storeFor(profile: Profile, options: SocketOptions) -> TrustStore:
    return customStore(options.trusted) if options.trusted else storeOf(profile)


def _clientContext(profile: Profile, store: TrustStore, credentials: Sequence[Credential]) -> SSL.Context:
    context = newContext(SSL.TLS_CLIENT_METHOD, profile)
    trust(context, asOpenSSL(store.certificates()), store.isCustom)
    context.set_verify_depth(profile.certVerificationDepth)
    # OpenSSL itself checks that the peer's certificate is for servers: SSL_CTX_set_purpose(3).
    context.set_verify(SSL.VERIFY_PEER, verifyPeer)
    # Sessions are kept by us (L{ssa.tls.sessions}), not by the context.
    context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT | SSL.SESS_CACHE_NO_INTERNAL)
    context.set_ocsp_client_callback(keepStapled)
    if profile.certTransparency:
        askForTimestamps(context)
    useCredentials(context, credentials)
    return context


def checkExtensions(profile: Profile, options: SocketOptions) -> None:
    """
    See that the options need no extension that the policy takes away.

    @raise SSAError: EPERM, they do.
    """
    if options.protocols and "application_layer_protocol_negotiation" not in profile.extensions:
        rule = profile.origin("Extensions") or "Extensions"
        raise Cause.POLICY.error(f"TLS_ALPN was set, and application_layer_protocol_negotiation is not in Extensions ({rule})")


def asOpenSSL(certificates: Sequence[x509.Certificate]) -> list[crypto.X509]:
    return [crypto.X509.from_cryptography(certificate) for certificate in certificates]


def trust(context: SSL.Context, certificates: Sequence[crypto.X509], isCustom: bool) -> None:
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


def onePerType(credentials: Sequence[Credential]) -> tuple[Credential, ...]:
    """Take the first credential of each key type, which is what a context can hold."""
    found: dict[str, Credential] = {}
    for credential in credentials:
        found.setdefault(credential.keyType, credential)
    return tuple(found.values())
