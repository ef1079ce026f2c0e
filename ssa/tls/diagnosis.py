# SPDX-License-Identifier: MIT
"""
Why a handshake failed: the alert, and what both sides offered.

All of this happens after a failure only; a handshake that succeeds costs one look at the first bytes of its peer.  What this
side offers is found out exactly, by letting its context begin a handshake with nobody and reading the ClientHello.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from OpenSSL import SSL

from ssa.alerts import alertName
from ssa.errors import SSAError
from ssa.policy.profile import VERSION_NAMES
from ssa.tls.ciphers import ianaName
from ssa.tls.codepoints import cipherName, groupName, signatureName, versionName
from ssa.tls.connection import PeerCheck
from ssa.tls.hello import LARGEST_HELLO, Hello, describeStranger, isComplete, readHello

__all__ = ["FirstWords", "describeHello", "explain", "offered"]

_MOST_SHOWN = {"signatures": 6}
"""The most names of a list in a text, if not 12; the evidence has all."""

_MOST_NAMED = 200
"""The most names of one list in the evidence."""

_offers: WeakKeyDictionary[SSL.Context, Hello] = WeakKeyDictionary()


class FirstWords:
    """
    The first bytes of a peer, seen in the socket's buffer before OpenSSL takes them: recv(2), C{MSG_PEEK}.

    @ivar heard: the bytes that are known, without a gap.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.heard = b""
        self._socket: socket.socket | None = sock
        self._size = 4096

    @property
    def isSilent(self) -> bool:
        """Whether the peer has said nothing yet, not even that it says nothing."""
        return not self.heard and self._socket is not None

    def listen(self) -> None:
        """
        To be called before each reading; does nothing once the first message is known.

        @raise OSError: the connection is broken.  The kernel says so once only: OpenSSL would not see it any more.
        """
        if self._socket is None:
            return
        try:
            data = self._socket.recv(self._size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        if self.heard and not self._continues(data):
            self._socket = None
            return
        self.heard += data
        if not data or isComplete(self.heard):
            self._socket = None
        self._size = LARGEST_HELLO

    def _continues(self, data: bytes) -> bool:
        """
        Whether the bytes follow those that are known.  OpenSSL may have taken more than was seen: then the whole message does
        not come out.
        """
        try:
            return isComplete(self.heard + data) and readHello(self.heard + data) is not None
        except ValueError:
            return False


def offered(context: SSL.Context) -> Hello | None:
    """
    Find out what a client's context offers, in its own ClientHello.

    @return: C{None} if it offers nothing at all.
    """
    found = _offers.get(context)
    if found is None:
        alone = SSL.Connection(context, None)
        alone.set_connect_state()
        try:
            alone.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error:
            return None
        try:
            found = readHello(alone.bio_read(LARGEST_HELLO))
        except (SSL.Error, ValueError):
            return None
        if found is not None:
            _offers[context] = found
    return found


def _shown(parts: Sequence[tuple[str, Sequence[str]]]) -> str:
    texts = []
    for what, names in parts:
        most = _MOST_SHOWN.get(what, 12)
        more = f" and {len(names) - most} more" if len(names) > most else ""
        if names:
            texts.append(f"{what} {' '.join(names[:most])}{more}")
    return ", ".join(texts)


def _text(protocols: Sequence[bytes]) -> list[str]:
    return [protocol.decode("ascii", "backslashreplace") for protocol in protocols]


def _parts(hello: Hello) -> list[tuple[str, list[str]]]:
    return [
        ("versions", [versionName(each) for each in hello.versions]),
        ("ciphers", [cipherName(each) for each in hello.ciphers]),
        ("groups", [groupName(each) for each in hello.groups]),
        ("ALPN", _text(hello.protocols)),
        ("name", [hello.serverName] if hello.serverName is not None else []),
        ("signatures", [signatureName(each) for each in hello.signatures]),
    ]


def describeHello(hello: Hello) -> str:
    """
    Say what a ClientHello offers, or a ServerHello has chosen.

    @return: the most telling first.  It may hold what the peer chose; L{ssa.errors.oneLine} makes it safe to show.
    """
    return _shown(_parts(hello))


def explain(
    error: SSAError, connection: SSL.Connection, check: PeerCheck, heard: bytes, isClient: bool
) -> SSAError:
    """
    Add to the reason of a failed handshake what both sides said.

    A refused certificate gets the alert only: it was not what the sides offered.

    @param error: the reason.
    @param connection: after the failure.
    @param check: of this connection.
    @param heard: the peer's first bytes.
    @param isClient: which side this is.
    @return: the error with the longer reason, and with the evidence.
    """
    parts = [error.reason]
    evidence: dict[str, str] = dict(error.evidence)
    if check.receivedAlert is not None:
        evidence["alert_received"] = alertName(check.receivedAlert)
    if check.sentAlert is not None:
        evidence["alert_sent"] = alertName(check.sentAlert)
        parts.append(f"we sent the alert {alertName(check.sentAlert)}")
    try:
        if check.refusal is None or not check.refusal.name.startswith("EKEY"):
            parts.append(_peer(heard, isClient, evidence))
            if "peer" not in evidence:
                parts.append(_own(connection, check, isClient, evidence))
    except Exception as trouble:  # a failure to explain must not hide what has failed
        parts.append(f"the offers cannot be described ({type(trouble).__name__})")
    explained = SSAError(error.errno, "; ".join(part for part in parts if part))
    explained.evidence = evidence
    return explained


def _own(connection: SSL.Connection, check: PeerCheck, isClient: bool, evidence: dict[str, str]) -> str:
    """What this side offers or serves."""
    if isClient:
        hello = offered(connection.get_context())
        if hello is None:
            return "we offered nothing: no cipher is left"
        name = connection.get_servername()
        mine = Hello(
            True,
            hello.versions,
            hello.ciphers,
            hello.groups,
            hello.signatures,
            check.protocols,
            name.decode("ascii", "backslashreplace") if name else None,
        )
        _keep(evidence, "offered", _parts(mine))
        return f"we offered {describeHello(mine)}"
    ciphers = [ianaName(cipher) for cipher in connection.get_cipher_list()]
    protocols = _text(check.protocols)
    parts = [("ciphers", ciphers), ("ALPN", protocols)]
    if check.rules is not None:
        profile = check.rules.profile
        versions = [name for number, name in VERSION_NAMES.items() if profile.minProtocol <= number <= profile.maxProtocol]
        parts.insert(0, ("versions", versions))
    certificate = connection.get_certificate(as_cryptography=True)
    if certificate is not None:
        kind = type(certificate.public_key()).__name__.removesuffix("PublicKey").lstrip("_")
        parts.append(("certificate key", [kind]))
    _keep(evidence, "served", parts)
    return f"we serve {_shown(parts)}"


def _peer(heard: bytes, isClient: bool, evidence: dict[str, str]) -> str:
    """What the other side said."""
    who = "the server" if isClient else "the client"
    if not heard:
        return f"no first message of {who}'s was seen"
    try:
        hello = readHello(heard)
    except ValueError as problem:
        return f"{who}'s first message is malformed: {problem}"
    if hello is None:
        stranger = describeStranger(heard)
        if not stranger:
            return ""  # an alert, or the beginning of something
        evidence["peer"] = stranger
        return f"{who}: {stranger}"
    if hello.isClient == isClient:
        return f"{who} sent the wrong message: it is a {'client' if hello.isClient else 'server'} too"
    _keep(evidence, "answered" if isClient else "offered", _parts(hello))
    return f"{who} {'answered' if isClient else 'offered'} {describeHello(hello)}"


def _keep(evidence: dict[str, str], prefix: str, parts: Sequence[tuple[str, Sequence[str]]]) -> None:
    for what, names in parts:
        if names:
            evidence[f"{prefix}_{what.lower().replace(' ', '_')}"] = " ".join(names[:_MOST_NAMED])
