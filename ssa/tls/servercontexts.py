# SPDX-License-Identifier: MIT
"""
The server's side of L{ssa.tls.contexts}: which certificate a client gets, whom clients must be, and the keys of tickets.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from cryptography import x509
from OpenSSL import SSL, crypto

from ssa.api import PeerAuthentication
from ssa.errors import Cause
from ssa.options import SocketOptions
from ssa.policy.profile import Profile
from ssa.tls.certificates import (
    Credential,
    dnsNames,
)
from ssa.tls.clientchains import ClientChains
from ssa.tls.connection import PeerCheck, noticeState, peerCheckOf, verifyPeer
from ssa.tls.contexts import asOpenSSL, checkExtensions, newContext, onePerType, storeFor, trust, useCredentials
from ssa.tls.identity import parseName
from ssa.tls.policyfiles import serverCredentials
from ssa.tls.rules import Rules

__all__ = ["KEY_LIFETIME", "ServerContexts", "serverConnection", "serverContexts"]

KEY_LIFETIME = 3600.0
"""Seconds for which a server uses the same keys for its tickets, at least."""

_MISSED_LIFETIME = 60.0
"""Seconds for which the keys of tickets are used at least when the chain of a client with a ticket has been forgotten."""

_MOST_NAMED = 64
"""
The most authorities that a server names to its clients (RFC 8446 section 4.2.4).  The list is optional, and that of a whole
trust store would make each handshake some 15 KiB longer to say that any authority will do.
"""


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
    ticket then does a full handshake, which every session needs from time to time (RFC 8446 section 4.6.1).  The same helps a
    client that comes with a ticket when its chain is needed and has been forgotten: it is refused once, not again and again.

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
        self._clientChains = ClientChains(self._sessionContext, options.owner)
        self._authorities: list[crypto.X509] = []
        self._isCustom = False
        if self._authentication is not PeerAuthentication.NONE:
            store = storeFor(profile, options)
            self.rules = Rules(profile, store.path, store.isCustom)
            self._authorities, self._isCustom = asOpenSSL(store.certificates()), store.isCustom
        self._make()

    def _make(self) -> None:
        """Make all contexts."""
        self._since = self._clock()
        self._clientChains.isMissed = False
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
        age = self._clock() - self._since
        if age >= max(KEY_LIFETIME, self._sessionSeconds) or (self._clientChains.isMissed and age >= _MISSED_LIFETIME):
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
        chosen = onePerType(credentials)
        key = tuple(credential.fingerprint() for credential in chosen)
        context = self._made.get(key)
        if context is None:
            context = self._made[key] = self._makeOne(chosen)
        return context

    def _makeOne(self, credentials: Sequence[Credential]) -> SSL.Context:
        context = newContext(SSL.TLS_SERVER_METHOD, self._profile)
        context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
        context.set_info_callback(noticeState)
        self._askClients(context)
        self._setSessions(context)
        useCredentials(context, credentials)
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
        trust(context, self._authorities, self._isCustom)
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
        rule = profile.rule("AppCustomValidation")
        raise Cause.POLICY.error(f"TLS_TRUSTED_PEER_CERTIFICATES was set, and AppCustomValidation is off ({rule})")
    checkExtensions(profile, options)
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
        storeFor(profile, options).version if authentication is not PeerAuthentication.NONE else (),
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
