# SPDX-License-Identifier: MIT
"""
Where the program's ends of TLS connections live: the interface, and its implementation on private network namespaces.

The other implementation, for users who may make no namespaces, is L{ssa.intercept.loopback}.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from errno import EMFILE, ENETDOWN
from typing import Any

from zope.interface import Attribute, Interface, implementer

from ssa.api import InternetAddress
from ssa.intercept.launch import releaseDescriptors
from ssa.intercept.linux import CLONE_NEWUSER, nameProcess, unshare
from ssa.intercept.namespace import AT_A_TIME, UNBOUND, NamespaceHelper, RawAddress, socketCookie
from ssa.intercept.space import Space

_MOST_DESCRIPTORS = max(AT_A_TIME, 6)
_LOOPBACK_INTERFACE = 1

Finder = Callable[[], socket.socket | None]
"""Finds a momentary duplicate of a program's socket; L{None}: no process has it (any more)."""


@dataclass(frozen=True)
class Attempt:
    """
    A program's socket that waits in SYN_SENT.

    @ivar cookie: the socket's SO_COOKIE.
    @ivar local: the address it is bound to.
    @ivar remote: the address it connects to.
    @ivar back: whether it is a socket of the back.
    """

    cookie: int
    local: RawAddress
    remote: RawAddress
    back: bool = False


class IPrivateNetwork(Interface):
    """Makes and joins the sockets of programs.  All calls take microseconds; errors are L{OSError}."""

    emulatesNames: bool = Attribute("Whether getsockname(2) and getpeername(2) must be answered by the supervisor.")
    hasBack: bool = Attribute(
        "Whether addresses are the real ones, so that the two ends of a connection can be in each other's way."
    )
    destroyed: list[socket.socket] = Attribute("Sock_diag(7) sockets that tell of destroyed sockets.")

    def program(family: int, back: bool = False) -> socket.socket:
        """
        A new socket to give to a program.

        @param back: make it where the other end of a connection within the machine can have its mirrored addresses too.
        """

    def bind(sock: socket.socket, address: InternetAddress) -> None:
        """Give a program's socket the address that its real one is bound to."""

    def hold(sock: socket.socket, bound: bool, local: InternetAddress, remote: InternetAddress, back: bool = False) -> Attempt:
        """
        Put a program's socket in SYN_SENT.

        @param bound: whether L{bind} was called for it.
        @param back: as with L{program}.
        """

    def release(attempt: Attempt, find: Finder) -> socket.socket:
        """
        Complete an attempt.

        @return: the plaintext end.
        @raise OSError: the program's socket is gone.
        """

    def fail(attempt: Attempt, find: Finder) -> None:
        """End an attempt so that pollers see an error."""

    def listen(sock: socket.socket, backlog: int) -> None:
        """Let a program's socket listen."""

    def ring(name: RawAddress) -> tuple[int, socket.socket]:
        """
        Make a connection wait at a program's listener.

        @param name: what getsockname(2) tells of the listener itself.
        @return: the port by which the listener will know the connection, and our end of it.
        @raise OSError: the listener is gone or its queue is full.
        """

    def silence(cookie: int, name: RawAddress, find: Finder) -> None:
        """
        End a program's listener: accept(2) fails and pollers see an error.

        @param cookie: its SO_COOKIE.
        @param name: what getsockname(2) tells of it.
        """

    def living() -> set[int]:
        """
        The SO_COOKIE of every TCP socket that the kernel has in its tables: those that are bound, connected or listening.
        It keeps no list of others, a new socket or one whose connection has ended.
        """

    def pair(family: int, local: InternetAddress, remote: InternetAddress) -> tuple[socket.socket, socket.socket]:
        """Both ends of an accepted connection: the program's and the plaintext end."""


def startHelper(userNamespace: bool) -> tuple[int, socket.socket]:
    """
    Fork the namespace helper.

    @param userNamespace: enter a new user namespace first (an ordinary user must).
    @return: its pid and the control socket.
    @raise OSError: the kernel refuses the namespaces; the text says which.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            nameProcess("ssa-network")
            releaseDescriptors((theirs.fileno(),))
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if userNamespace:
                try:
                    unshare(CLONE_NEWUSER)
                except OSError as error:
                    answer = [error.errno, f"a user namespace cannot be made: {error.strerror}"]
                    theirs.send(json.dumps(answer).encode())
                    os._exit(1)
            theirs.send(json.dumps([0, None]).encode())
            NamespaceHelper(theirs).run()
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    answer = json.loads(ours.recv(65536) or b'[32, "the namespace helper died"]')
    if answer[0]:
        ours.close()
        os.waitpid(pid, 0)
        raise OSError(answer[0], answer[1])
    return pid, ours


class HelperClient:
    """The supervisor's side of the namespace helper: one request at a time, each answered within microseconds."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def call(self, name: str, *arguments: object) -> tuple[Any, list[int]]:
        """
        @return: the helper's result and descriptors.
        @raise OSError: as the helper met it; EMFILE where there is no room for descriptors; ENETDOWN where the helper has died.
        """
        try:
            self._control.send(json.dumps([name, *arguments]).encode())
            _, fds, flags, _address = socket.recv_fds(self._control, 64, _MOST_DESCRIPTORS)
            data = self._control.recv(65536)
        except ConnectionError as error:
            raise OSError(ENETDOWN, "the namespace helper died") from error
        for fd in fds:
            os.set_inheritable(fd, False)
        number, result = json.loads(data) if data else (ENETDOWN, "the namespace helper died")
        if flags & socket.MSG_CTRUNC:
            number, result = EMFILE, os.strerror(EMFILE)
        if number:
            for fd in fds:
                os.close(fd)
            raise OSError(number, result)
        return result, fds

    def sockets(self, network: int, back: bool, family: int) -> list[socket.socket]:
        """Some new sockets, at least one, in one of the namespaces of a network."""
        _, fds = self.call("sockets", network, back, family)
        return [socket.socket(fileno=fd) for fd in fds]

    def close(self) -> None:
        """Let the helper end."""
        self._control.close()


def _inside(address: InternetAddress) -> RawAddress:
    """An address as it is in a private namespace: the number of an interface means nothing there, but for C{lo}'s."""
    if address.scope:
        return (address.host, address.port, address.flowinfo, _LOOPBACK_INTERFACE)
    return address.forSocket()


@implementer(IPrivateNetwork)
class NamespaceNetwork:
    """The front and the back for the programs of one real network namespace."""

    emulatesNames = False
    hasBack = True

    def __init__(self, helper: HelperClient) -> None:
        number, fds = helper.call("open")
        front, back = [
            Space(
                lambda family, back=back: helper.sockets(number, back, family),  # type: ignore[misc]
                socket.socket(fileno=fds[3 * back]),
                socket.socket(fileno=fds[3 * back + 1]),
                fds[3 * back + 2],
            )
            for back in (False, True)
        ]
        self._front, self._back = front, back
        self.destroyed = [front.destroyed, back.destroyed]

    def _space(self, back: bool) -> Space:
        return self._back if back else self._front

    def program(self, family: int, back: bool = False) -> socket.socket:
        return self._space(back).program(family)

    def bind(self, sock: socket.socket, address: InternetAddress) -> None:
        self._front.bind(sock, _inside(address))

    def hold(
        self, sock: socket.socket, bound: bool, local: InternetAddress, remote: InternetAddress, back: bool = False
    ) -> Attempt:
        ours, theirs = _inside(local), _inside(remote)
        self._space(back).hold(sock, bound, ours, theirs)
        return Attempt(socketCookie(sock), ours, theirs, back)

    def release(self, attempt: Attempt, find: Finder) -> socket.socket:
        return self._space(attempt.back).release(attempt.local, attempt.remote)

    def fail(self, attempt: Attempt, find: Finder) -> None:
        self._space(attempt.back).destroy(attempt.cookie, attempt.local, attempt.remote)

    def listen(self, sock: socket.socket, backlog: int) -> None:
        self._front.listen(sock, backlog)

    def ring(self, name: RawAddress) -> tuple[int, socket.socket]:
        return self._front.ring(name)

    def silence(self, cookie: int, name: RawAddress, find: Finder) -> None:
        family = socket.AF_INET6 if ":" in name[0] else socket.AF_INET
        self._front.destroy(cookie, name, UNBOUND[family])

    def living(self) -> set[int]:
        return self._front.living() | self._back.living()

    def pair(self, family: int, local: InternetAddress, remote: InternetAddress) -> tuple[socket.socket, socket.socket]:
        return self._back.pair(family, _inside(local), _inside(remote))

    def close(self) -> None:
        """Close all descriptors; the programs' sockets live on."""
        self._front.close()
        self._back.close()


__all__ = ["Attempt", "Finder", "HelperClient", "IPrivateNetwork", "NamespaceNetwork", "startHelper"]
