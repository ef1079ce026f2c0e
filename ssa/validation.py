# SPDX-License-Identifier: MIT
"""
Validation plug-ins: more checks of a peer's certificate, which others can write.

A plug-in is an object that provides L{IValidator} and C{twisted.plugin.IPlugin}, in a module below C{twisted/plugins}.  It is
asked where a profile names it (C{Validation=}), after every other check has succeeded and before the program gets the
connection.  It can refuse, and nothing else: it cannot make a refused certificate good.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from cryptography import x509
    from twisted.internet.defer import Deferred

    from ssa.policy.profile import Profile

__all__ = ["IValidator", "Peer", "validatorNamed", "validatorNames"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class Peer:
    """
    Who is at the other end of a connection whose handshake has succeeded.

    @ivar chain: the verified chain: the peer's certificate first, the trusted one last.  Never empty.  Where a session was
        resumed, it is the chain that was verified when the session began.
    @ivar identity: the DNS name or IP address that the peer has proved to be; "" for a client.
    @ivar isServer: whether it is a server; else it is a client that has shown a certificate to a server of ours.
    @ivar host: its IP address.
    @ivar port: its port.
    @ivar isResumed: whether a session was resumed.
    @ivar isProgramsTrust: whether the trusted certificates are the program's own (TLS_TRUSTED_PEER_CERTIFICATES): then what the
        peer has proved was proved to that program, and counts for no other one.
    @ivar user: the user whose program it is; -1 if that is not known.
    """

    chain: tuple[x509.Certificate, ...]
    identity: str
    isServer: bool
    host: str
    port: int
    isResumed: bool = False
    isProgramsTrust: bool = False
    user: int = -1

    @property
    def certificate(self) -> x509.Certificate:
        """The peer's own certificate."""
        return self.chain[0]


class IValidator(Interface):
    """A check of a peer."""

    name: str = Attribute("What Validation= calls it: small letters, digits and hyphens; unlike that of any other plug-in.")

    def validate(peer: Peer, profile: Profile, reactor: Any) -> Deferred[None] | None:
        """
        Check a peer.

        It must not block.  Any exception and any result but L{None} refuses the peer; so does no result until the
        profile's C{HandshakeTimeout}, when the Deferred is cancelled.

        @param peer: whom to check.
        @param profile: the policy in force for the connection.
        @param reactor: the daemon's, for those that have to wait for something.
        @return: L{None}, or a Deferred of it: nothing speaks against the peer.
        @raise SSAError: the peer is refused; the reason becomes TLS_ERROR, after it is logged.  An C{errno} other than
            EKEYREJECTED, EKEYEXPIRED, EKEYREVOKED and EPERM becomes EKEYREJECTED.
        """


_found: dict[str, Any] = {}


def _look() -> None:
    """Ask C{twisted.plugin} for all plug-ins there are."""
    # Twisted is loaded only where a configuration asks for it: the policy is read before the supervisor forks.
    from twisted.logger import Logger
    from twisted.plugin import getPlugins
    from zope.interface.exceptions import Invalid
    from zope.interface.verify import verifyObject

    log = Logger("ssa.validation")
    found: dict[str, Any] = {}
    twice: set[str] = set()
    for plugin in getPlugins(IValidator):
        try:
            verifyObject(IValidator, plugin)
        except Invalid as problem:
            log.error("{plugin} is no validation plug-in: {problem}", plugin=repr(plugin), problem=str(problem))
            continue
        name = plugin.name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            log.error("{plugin}: {name} is no name for a validation plug-in", plugin=repr(plugin), name=repr(name))
        elif name in found and found[name] is not plugin:
            twice.add(name)
            log.error("there are several validation plug-ins of the name {name}: none of them can be used", name=name)
        else:
            found[name] = plugin
    for name in twice:
        del found[name]
    _found.clear()
    _found.update(found)


def validatorNames() -> frozenset[str]:
    """
    Look for the plug-ins on this machine; to be called when a configuration that names some is read.

    @return: what C{Validation=} can name.
    """
    _look()
    return frozenset(_found)


def validatorNamed(name: str) -> Any:
    """
    Find a plug-in.

    @return: an L{IValidator}; L{None} if there is none of that name.
    """
    if not _found:
        _look()
    return _found.get(name)
