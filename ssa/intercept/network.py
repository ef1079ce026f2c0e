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
from errno import EADDRINUSE, EADDRNOTAVAIL, ENETDOWN
from typing import Any

from zope.interface import Attribute, Interface, implementer

from ssa.api import InternetAddress
from ssa.intercept.launch import releaseDescriptors
from ssa.intercept.linux import CLONE_NEWUSER, nameProcess, unshare
from ssa.intercept.namespace import EXISTING, UNBOUND, NamespaceHelper, RawAddress, attachFilter, dumpSockets, socketCookie

_PORTS_TRIED = 64

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

    def call(self, name: str, *arguments: object, sockets: tuple[socket.socket, ...] = ()) -> tuple[Any, list[socket.socket]]:
        """
        @return: the helper's result and sockets.
        @raise OSError: as the helper met it; ENETDOWN where the helper has died.
        """
        request = json.dumps([name, *arguments]).encode()
        try:
            socket.send_fds(self._control, [request], [sock.fileno() for sock in sockets])
            data, fds, _flags, _address = socket.recv_fds(self._control, 65536, 4)
        except ConnectionError as error:
            raise OSError(ENETDOWN, "the namespace helper died") from error
        given = [socket.socket(fileno=fd) for fd in fds]
        for sock in given:
            os.set_inheritable(sock.fileno(), False)
        if not data:
            raise OSError(ENETDOWN, "the namespace helper died")
        number, result = json.loads(data)
        if number:
            for sock in given:
                sock.close()
            raise OSError(number, result)
        return result, given

    def close(self) -> None:
        """Let the helper end."""
        self._control.close()


@implementer(IPrivateNetwork)
class NamespaceNetwork:
    """The front and the back for the programs of one real network namespace."""

    emulatesNames = False
    hasBack = True

    def __init__(self, helper: HelperClient) -> None:
        self._helper = helper
        self._number, (front, back, *self._asked) = helper.call("open")
        self.destroyed = [front, back]
        self._nextPort = 1

    def program(self, family: int, back: bool = False) -> socket.socket:
        _, (sock,) = self._helper.call("socket", self._number, back, family)
        return sock

    def bind(self, sock: socket.socket, address: InternetAddress) -> None:
        self._helper.call("bind", address.forSocket(), sockets=(sock,))

    def hold(
        self, sock: socket.socket, bound: bool, local: InternetAddress, remote: InternetAddress, back: bool = False
    ) -> Attempt:
        ours, theirs = local.forSocket(), remote.forSocket()
        self._helper.call("hold", self._number, back, bound, ours, theirs, sockets=(sock,))
        return Attempt(socketCookie(sock), ours, theirs, back)

    def release(self, attempt: Attempt, find: Finder) -> socket.socket:
        _, (plain,) = self._helper.call("release", self._number, attempt.back, attempt.local, attempt.remote)
        return plain

    def fail(self, attempt: Attempt, find: Finder) -> None:
        self._helper.call("fail", self._number, attempt.back, attempt.cookie, attempt.local, attempt.remote)

    def listen(self, sock: socket.socket, backlog: int) -> None:
        self._helper.call("listen", backlog, sockets=(sock,))

    def ring(self, name: RawAddress) -> tuple[int, socket.socket]:
        # One port after the other.  A listener's queue holds fewer than there are, so a busy one is soon passed.
        for _ in range(_PORTS_TRIED):
            port = self._nextPort
            self._nextPort = port % 65535 + 1
            try:
                _, (bell,) = self._helper.call("ring", self._number, port, name)
            except OSError as error:
                if error.errno not in (EADDRINUSE, EADDRNOTAVAIL):
                    raise
                continue
            return port, bell
        raise OSError(EADDRINUSE, os.strerror(EADDRINUSE))

    def silence(self, cookie: int, name: RawAddress, find: Finder) -> None:
        family = socket.AF_INET6 if ":" in name[0] else socket.AF_INET
        self._helper.call("fail", self._number, False, cookie, name, UNBOUND[family])

    def living(self) -> set[int]:
        return {cookie for asked in self._asked for cookie, _, _, _ in dumpSockets(asked, EXISTING)}

    def pair(self, family: int, local: InternetAddress, remote: InternetAddress) -> tuple[socket.socket, socket.socket]:
        _, (sock, plain) = self._helper.call("pair", self._number, family, local.forSocket(), remote.forSocket())
        return sock, plain


__all__ = ["Attempt", "Finder", "HelperClient", "IPrivateNetwork", "NamespaceNetwork", "attachFilter", "startHelper"]
