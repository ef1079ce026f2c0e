# SPDX-License-Identifier: MIT
"""
Whom a profile of ssa.conf is for: programs, users and destinations.

A profile matches when each kind of matcher that it has matches; a matcher with several values matches when one of them does.
Every reader here raises C{ValueError} with what is wrong, and what is allowed, for a person.
"""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from ssa.policy.profile import HIGHEST_USER, Caller

__all__ = ["Destination", "Match", "parseApplications", "parseDestinations", "parseUsers"]

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME = re.compile(r"[a-z0-9_*?.-]{1,253}")
_COMMENT = re.compile(r"\s[#;]")
_SPACE_AND_SLASH = re.compile(r"\s/")
_NUMERIC = re.compile(r"[0-9.*?]+")
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where connect(2) to the addresses of no machine goes, on Linux; from a socket that is bound, to where it is bound to."""


@dataclass(frozen=True)
class Destination:
    """
    A place that programs connect to.

    @ivar name: a host name in lower case, in which C{*} stands for any characters and C{?} for any one; "" if the place is
        given by its address, or by its port only.
    @ivar network: its addresses; C{None} if it is given by name or by port only.
    @ivar port: its port; 0 for any.
    """

    name: str = ""
    network: Network | None = None
    port: int = 0

    @property
    def isNarrow(self) -> bool:
        """Whether it names certain places: neither all of them, nor those with some port."""
        if self.network is not None:
            return self.network.prefixlen > 0
        return any(c.isalnum() for c in self.name)

    def matches(self, names: Iterable[str], addresses: Iterable[str], port: int) -> bool:
        """
        Whether a connection goes there.

        @param names: what the destination is called, in lower case.
        @param addresses: its IP addresses.
        """
        if self.port and self.port != port:
            return False
        if self.network is not None:
            return any(_isIn(address, self.network) for address in addresses)
        if not self.name or self.name == "*":
            return True
        pattern = _namePattern(self.name)
        return any(pattern.fullmatch(name) for name in names)


@lru_cache(maxsize=1024)
def _namePattern(name: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(c) or re.escape(c) for c in name), re.DOTALL)


def _isIn(address: str, network: Network) -> bool:
    return ipaddress.ip_address(address) in network


def _plainAddress(text: str) -> str:
    """Read an IP address, in the form in which networks are compared with it; "" if it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _addressesOf(text: str) -> tuple[str, ...]:
    """List the addresses that an address stands for: itself, and where connect(2) to it goes; none if it is no address."""
    plain = _plainAddress(text)
    return tuple(each for each in (plain, _LOOPBACK.get(plain, "")) if each)


@dataclass(frozen=True)
class Match:
    """
    The matchers of one profile.

    @ivar applications: patterns of paths; empty for any program.
    @ivar users: user ids; C{None} for any user.
    @ivar destinations: places; empty for any, and for listeners.
    """

    applications: tuple[re.Pattern[str], ...] = ()
    users: frozenset[int] | None = None
    destinations: tuple[Destination, ...] = ()

    @property
    def namesDestination(self) -> bool:
        """Whether it is only for certain destinations, so that it may allow what is obsolete."""
        return bool(self.destinations) and all(destination.isNarrow for destination in self.destinations)

    def matches(self, who: Caller, destination: str | None, port: int, address: str) -> bool:
        """See L{ssa.policy.profile.Policy.profileFor}.  With destinations, it matches no listener."""
        if self.users is not None and who.uid not in self.users:
            return False
        if self.applications and not any(pattern.fullmatch(who.executable) for pattern in self.applications):
            return False
        if not self.destinations:
            return True
        if destination is None:
            return False
        own = _addressesOf(destination)
        addresses = (*own, *_addressesOf(address))
        names = [] if own else [destination.lower().rstrip(".")]
        return any(place.matches(names, addresses, port) for place in self.destinations)


def parseApplications(text: str) -> tuple[re.Pattern[str], ...]:
    """
    Read paths of executables, separated by colons.

    C{*} and C{?} stand for any characters but a slash, C{**} for any.  A path without them that is a symbolic link also
    stands for what it points to, since the kernel tells the path of the file itself.
    """
    if not text:
        raise ValueError("it is empty; give the path of an executable, in which * stands for any characters but /")
    patterns = []
    for path in text.split(":"):
        if not path.startswith("/"):
            raise ValueError(f"{path!r} is no absolute path; several are separated by colons")
        # Nothing would ever match these: a rule against a program would let it through.
        if _COMMENT.search(path):
            raise ValueError(f"{path!r} has a comment in it; a comment has a line of its own")
        if _SPACE_AND_SLASH.search(path):
            raise ValueError(f"{path!r} has a space before a slash; several paths are separated by colons")
        patterns.append(_pathPattern(path))
        real = os.path.realpath(path) if not set(path) & set("*?") else path
        if real != path:
            patterns.append(_pathPattern(real))
    return tuple(patterns)


def _pathPattern(path: str) -> re.Pattern[str]:
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part) or re.escape(part) for part in re.split(r"(\*\*|\*|\?)", path)), re.DOTALL)


def parseUsers(text: str) -> frozenset[int]:
    """
    Read users and groups, separated by spaces: a name, a number, or @ and the name of a group.

    Who belongs to a group is found out now, not when a program connects.
    """
    if not text:
        raise ValueError("it is empty; give names or numbers of users, or @GROUP, separated by spaces")
    found: set[int] = set()
    for word in text.split():
        if word.startswith("@"):
            found |= _members(word[1:])
        elif word.isascii() and word.isdigit():
            if len(word) > 10 or int(word) > HIGHEST_USER:
                raise ValueError(f"{word} is no number of a user; the highest is {HIGHEST_USER}")
            found.add(int(word))
        else:
            found.add(_found(pwd.getpwnam, word, "user").pw_uid)
    return frozenset(found)


def _found(find: Callable[[str], T], name: str, what: str) -> T:
    try:
        return find(name)
    except (KeyError, ValueError):
        raise ValueError(f"this machine has no {what} {name!r}") from None


def _members(name: str) -> set[int]:
    group = _found(grp.getgrnam, name, "group")
    found = {entry.pw_uid for entry in pwd.getpwall() if entry.pw_gid == group.gr_gid}
    for member in group.gr_mem:
        try:
            found.add(pwd.getpwnam(member).pw_uid)
        except KeyError:
            continue  # a member that does not exist cannot run a program
    return found


def parseDestinations(text: str) -> tuple[Destination, ...]:
    """Read places, separated by spaces: HOST, HOST:PORT, ADDRESS, ADDRESS/PREFIX, [ADDRESS/PREFIX]:PORT or :PORT."""
    if not text:
        raise ValueError("it is empty; give HOST, ADDRESS, ADDRESS/PREFIX or :PORT, separated by spaces")
    return tuple(_destination(word) for word in text.split())


def _destination(word: str) -> Destination:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", word)
    if bracketed is not None:
        return Destination(network=_network(bracketed[1]), port=_port(bracketed[2], word))
    if word.count(":") > 1:
        return Destination(network=_network(word))
    host, colon, port = word.partition(":")
    number = _port(port if colon else None, word)
    if not host:
        return Destination(port=number)
    if "/" in host or _plainAddress(host):
        return Destination(network=_network(host), port=number)
    name = host.lower().rstrip(".")
    if not host.isascii():
        raise ValueError(f"{word!r} is not ASCII: give the A-label (xn--…) of an internationalized name")
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{word!r} is no HOST, HOST:PORT, ADDRESS, ADDRESS/PREFIX, [ADDRESS]:PORT or :PORT")
    if _NUMERIC.fullmatch(name) and name != "*":
        raise ValueError(f"{word!r} is no name and no address; several addresses are given as ADDRESS/PREFIX")
    return Destination(name=name, port=number)


def _port(text: str | None, word: str) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{word!r} has no port from 1 to 65535 after the colon")
    return int(text)


def _network(text: str) -> Network:
    if "%" in text:
        raise ValueError(f"{text!r} has a zone; the address alone holds for all interfaces")
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no address and no ADDRESS/PREFIX: {error}") from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network
