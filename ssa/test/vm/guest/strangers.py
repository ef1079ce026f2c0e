# SPDX-License-Identifier: MIT
"""
Those who are not the daemon: an ordinary user, root of a user namespace, root of a network namespace, and root that has not
registered.  Each sends every command in a child process; what the kernel says to that comes back.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Mapping
from errno import EBUSY, ENOENT, EOPNOTSUPP, EPERM, errorcode

from ssa.netlink.codec import NLM_F_ACK, NLM_F_DUMP
from ssa.protocol.wire import Attribute, Command
from ssa.test.vm.guest.link import Link, attribute, u8, u32, u64

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_NOBODY = 65534
_EVENTS = range(1, 40, 3)
_IDS = range(12)
_SOME_IDS = range(1, 12, 3)
_libc = ctypes.CDLL(None, use_errno=True)

REQUESTS = (
    Command.RETURN, Command.DATA_RETURN, Command.HANDSHAKE_RETURN, Command.NEXT, Command.FETCH, Command.ESTABLISHED,
    Command.ACCEPTED, Command.EOF, Command.REGISTER,
)
"""What the daemon may send."""


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _becomeNobody() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _userNamespace(flags: int = 0) -> None:
    """Root of a user namespace, that an ordinary user has made."""
    _becomeNobody()
    _unshare(_CLONE_NEWUSER | flags)


_REFUSED = frozenset((EPERM,))
_NOT_THERE = frozenset((ENOENT,))

STRANGERS: Mapping[str, tuple[Callable[[], None], frozenset[int], frozenset[int]]] = {
    "an ordinary user": (_becomeNobody, _REFUSED, _REFUSED),
    "root of a user namespace": (_userNamespace, _REFUSED, _REFUSED),
    "root of a user and a network namespace": (lambda: _userNamespace(_CLONE_NEWNET), _NOT_THERE, _NOT_THERE),
    "root of a network namespace": (lambda: _unshare(_CLONE_NEWNET), _NOT_THERE, _NOT_THERE),
    "root that has not registered": (lambda: None, _REFUSED, frozenset((EBUSY,))),
}
"""How one becomes each of them, what the kernel says to all that they ask for, and what to REGISTER."""


def wellFormed(command: int, ident: int, event: int, descriptor: int) -> bytes:
    """The attributes of a request that would be right if the daemon sent it."""
    address = struct.pack("=H", 2) + struct.pack("!H", 1) + bytes((127, 0, 0, 1)) + bytes(8)
    named = u64(Attribute.ID, ident)
    if command in (Command.RETURN, Command.HANDSHAKE_RETURN):
        return u64(Attribute.EVENT, event) + named + u32(Attribute.RETURN, 0)
    if command == Command.DATA_RETURN:
        return u64(Attribute.EVENT, event) + named + attribute(Attribute.OPTVAL, b"value\0")
    if command == Command.ESTABLISHED:
        ends = attribute(Attribute.SOCKADDR_EXTERNAL, address) + attribute(Attribute.SOCKADDR_REMOTE, address)
        return named + ends + u8(Attribute.DATA_PATH, 0)
    if command == Command.ACCEPTED:
        return named + u32(Attribute.FD, descriptor) + u8(Attribute.DATA_PATH, 0)
    if command == Command.REGISTER:
        return u32(Attribute.VERSION, 1)
    return b"" if command == Command.NEXT else named


def attack(name: str, family: int) -> str:
    """
    Be a stranger, and ask for everything.

    @param name: a key of L{STRANGERS}.
    @param family: the module's number, which a stranger could have guessed.
    @return: what was wrong; empty if nothing.
    """
    become, refusals, registering = STRANGERS[name]
    become()
    link = Link()
    link.family = family
    for command in REQUESTS:
        for ident in _IDS:
            error = link.ask(command, wellFormed(command, ident, _EVENTS[ident], link.sock.fileno()), NLM_F_ACK).error
            if error not in (registering if command == Command.REGISTER else refusals):
                return f"{name}: {command.name}: {errorcode.get(error, error)}"
    for event in _EVENTS:
        for command in (Command.RETURN, Command.DATA_RETURN, Command.HANDSHAKE_RETURN):
            for ident in _SOME_IDS:
                error = link.ask(command, wellFormed(command, ident, event, 0), NLM_F_ACK).error
                if error not in refusals:
                    return f"{name}: {command.name} of event {event}: {errorcode.get(error, error)}"
    for number in (*range(40), 127, 128, 255):
        error = link.ask(number, u64(Attribute.ID, 1), NLM_F_ACK | NLM_F_DUMP).error
        if error not in refusals | {EOPNOTSUPP, EPERM}:
            return f"{name}: a dump of command {number}: {errorcode.get(error, error)}"
    return ""


def attackInChild(name: str, family: int) -> str:
    """L{attack} in a child process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        text = f"{name}: no result"
        try:
            text = attack(name, family)
        except BaseException as failure:
            text = f"{name}: {failure!r}"
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said
