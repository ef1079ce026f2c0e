# SPDX-License-Identifier: MIT
"""
The table of the socket API's TLS options, as data: who may set or get each one, and when.

L{ssa.options} applies it, L{ssa.optionvalues} knows what the values mean.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, auto

from ssa.api import Option
from ssa.optionvalues import (
    Fetch,
    Store,
    connectionGet,
    disableCipher,
    enableCipher,
    getCiphers,
    getHostname,
    getProtocols,
    getRevocationSource,
    getVersion,
    integer,
    setChain,
    setCiphers,
    setContext,
    setHostname,
    setKey,
    setPeerAuthentication,
    setProtocols,
    setRemoteHostname,
    setRevocationChecks,
    setRevocationSource,
    setSessionReuse,
    setSessionTTL,
    setStapling,
    setTrusted,
    setUpgrade,
    setVersionMax,
    setVersionMin,
    withNUL,
)
from ssa.tls.certificates import chainPEM

__all__ = ["TABLE", "OptionRule", "When"]


class When(Enum):
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
    @ivar store: takes a value that has passed the common rules into the socket, under a policy; raises C{ValueError} for
        a value that is wrong, or L{SSAError} for another reason.
    @ivar fetch: gives the value as the program gets it: of what a policy also decides, the value in force.
    @ivar fromFile: whether the value may be what a file holds.
    """

    option: Option
    settable: When
    gettable: When
    store: Store | None = None
    fetch: Fetch | None = None
    fromFile: bool = False


_RULES = (
    OptionRule(
        Option.TLS_REMOTE_HOSTNAME,
        When.NEW,
        When.ANY,
        store=setRemoteHostname,
        fetch=lambda options, connection, profile: withNUL(options.remoteName),
    ),
    OptionRule(Option.TLS_HOSTNAME, When.NEW, When.ANY, store=setHostname, fetch=getHostname),
    OptionRule(Option.TLS_TRUSTED_PEER_CERTIFICATES, When.NEW, When.NEVER, store=setTrusted, fromFile=True),
    OptionRule(
        Option.TLS_CERTIFICATE_CHAIN,
        When.NEW,
        When.ANY,
        store=setChain,
        fetch=lambda options, connection, profile: withNUL(b"".join(chainPEM(chain) for chain in options.chains)),
        fromFile=True,
    ),
    OptionRule(Option.TLS_PRIVATE_KEY, When.NEW, When.NEVER, store=setKey, fromFile=True),
    OptionRule(Option.TLS_ALPN, When.NEW, When.ANY, store=setProtocols, fetch=getProtocols),
    OptionRule(
        Option.TLS_SESSION_TTL,
        When.NEW,
        When.ANY,
        store=setSessionTTL,
        fetch=lambda options, connection, profile: integer(options.sessionSeconds(profile)),
    ),
    OptionRule(Option.TLS_DISABLE_CIPHER, When.NEW, When.NEVER, store=disableCipher),
    OptionRule(Option.TLS_ENABLE_CIPHER, When.NEW, When.NEVER, store=enableCipher),
    OptionRule(
        Option.TLS_REQUEST_PEER_AUTH,
        When.NEW,
        When.ANY,
        store=setPeerAuthentication,
        fetch=lambda options, connection, profile: integer(options.clientAuthentication(profile)),
    ),
    OptionRule(Option.TLS_TRUSTED_CIPHERS, When.NEW, When.ANY, store=setCiphers, fetch=getCiphers),
    OptionRule(
        Option.TLS_REVOCATION_CHECKS,
        When.NEW,
        When.ANY,
        store=setRevocationChecks,
        fetch=lambda options, connection, profile: integer(options.revocationRules(profile)[0]),
    ),
    *(
        OptionRule(
            option, When.NEW, When.ANY, store=setRevocationSource(source), fetch=getRevocationSource(source)
        )
        for option, source in (
            (Option.TLS_OCSP_STAPLED_CHECKS, "stapled"),
            (Option.TLS_OCSP_CHECKS, "ocsp"),
            (Option.TLS_CRL_CHECKS, "crl"),
            (Option.TLS_CACHED_REV_CHECKS, "cached"),
        )
    ),
    OptionRule(
        Option.TLS_SESSION_REUSE,
        When.NEW,
        When.ANY,
        store=setSessionReuse,
        fetch=lambda options, connection, profile: integer(options.sessionSeconds(profile) > 0),
    ),
    OptionRule(
        Option.TLS_RESUMED_SESSION,
        When.NEVER,
        When.CONNECTED,
        fetch=connectionGet(lambda connection: integer(connection.resumed())),
    ),
    OptionRule(Option.TLS_VERSION_MIN, When.NEW, When.ANY, store=setVersionMin, fetch=getVersion(0)),
    OptionRule(Option.TLS_VERSION_MAX, When.NEW, When.ANY, store=setVersionMax, fetch=getVersion(1)),
    OptionRule(
        Option.TLS_SERVER_OCSP_STAPLING,
        When.NEW,
        When.ANY,
        store=setStapling,
        fetch=lambda options, connection, profile: integer(options.staples(profile)),
    ),
    OptionRule(
        Option.TLS_CONTEXT,
        When.NEW,
        When.ANY,
        store=setContext,
        fetch=lambda options, connection, profile: struct.pack("=Q", options.context or options.id),
    ),
    OptionRule(
        Option.TLS_PEER_IDENTITY,
        When.NEVER,
        When.CONNECTED,
        fetch=connectionGet(lambda connection: withNUL(connection.peerIdentity())),
    ),
    OptionRule(
        Option.TLS_PEER_CERTIFICATE_CHAIN,
        When.NEVER,
        When.CONNECTED,
        fetch=connectionGet(lambda connection: withNUL(connection.peerChainPEM())),
    ),
    OptionRule(
        Option.TLS_ID, When.NEVER, When.ANY, fetch=lambda options, connection, profile: struct.pack("=Q", options.id)
    ),
    OptionRule(
        Option.TLS_CHOSEN_CIPHER,
        When.NEVER,
        When.CONNECTED,
        fetch=connectionGet(lambda connection: withNUL(connection.cipher())),
    ),
    OptionRule(
        Option.TLS_ERROR, When.NEVER, When.ANY, fetch=lambda options, connection, profile: withNUL(options.error)
    ),
    OptionRule(
        Option.TLS_VERSION_CONN,
        When.NEVER,
        When.CONNECTED,
        fetch=connectionGet(lambda connection: integer(connection.version())),
    ),
    OptionRule(Option.TLS_UPGRADE, When.NEW, When.NEVER, store=setUpgrade),
    OptionRule(
        Option.TLS_CHANNEL_BINDING,
        When.NEVER,
        When.CONNECTED,
        fetch=connectionGet(lambda connection: connection.channelBinding()),
    ),
    OptionRule(
        Option.TLS_DATA_PATH,
        When.NEVER,
        When.CONNECTED,
        fetch=connectionGet(lambda connection: withNUL(connection.dataPath())),
    ),
    OptionRule(
        Option.TLS_KEY_EXCHANGE,
        When.NEVER,
        When.CONNECTED,
        fetch=connectionGet(lambda connection: withNUL(connection.group())),
    ),
)

TABLE: dict[int, OptionRule] = {int(rule.option): rule for rule in _RULES}
"""Every option that this version supports, by its number."""
