# SPDX-License-Identifier: MIT
"""A daemon that is registered, does what a test tells it, and has sockets of programs in every state."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Sequence
from errno import EINVAL

from ssa.netlink.codec import NLM_F_ACK
from ssa.protocol.wire import Attribute, Command
from ssa.test.vm.guest.link import Link, Reply, attribute, u32, u64
from ssa.test.vm.guest.programs import connectName, server, tls, upgrade

_SO_SNDBUFFORCE = 32
DAEMON = 0x5353415353415353
"""What the workers have in common."""


def closeIn(reply: Reply) -> None:
    """Close the descriptor that a reply has brought."""
    if Attribute.FD in reply.attributes:
        with contextlib.suppress(OSError):
            os.close(reply.number(Attribute.FD))


class Hostile:
    """
    The registered daemon, that means ill.

    @ivar link: to the module.
    @ivar events: the last event of each socket.
    """

    def __init__(self, choice: random.Random) -> None:
        self.link = Link()
        self.link.sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 8 << 20)
        self.events: dict[int, Reply] = {}
        self.newest = 0
        self._choice = choice
        self._opened: list[socket.socket] = []
        self.link.join()
        if error := self.link.register(DAEMON):
            raise OSError(error, "cannot register")

    def take(self) -> None:
        """Fetch all events."""
        while not (event := self.link.ask(Command.NEXT)).error:
            ident = event.number(Attribute.ID)
            self.events[ident] = event
            if event.command == Command.SOCKET_NOTIFY:
                self.newest = ident

    def answer(self, ident: int, command: Command = Command.RETURN) -> int:
        """
        Answer the last event of a socket as one should.

        @return: an errno, or 0.
        """
        number = self.events[ident].number(Attribute.EVENT)
        which = u64(Attribute.EVENT, number) + u64(Attribute.ID, ident)
        return self.link.ask(command, which + u32(Attribute.RETURN, 0), NLM_F_ACK).error

    def call(self, function: Callable[[], object], ident: int, command: Command = Command.RETURN) -> None:
        """Let a program make a call that waits for its event to be answered."""
        thread = threading.Thread(target=function)
        thread.start()
        while thread.is_alive():
            select.select([self.link.sock], [], [], 0.1)
            self.take()
            self.answer(ident, command)
        thread.join()

    # Sockets in every state

    def new(self) -> tuple[socket.socket, int]:
        """A new socket, and its id."""
        sock = tls()
        self.take()
        self.answer(self.newest)
        sock.setblocking(False)
        return sock, self.newest

    def connecting(self) -> tuple[socket.socket, int]:
        """One that connects to an address."""
        sock, ident = self.new()
        sock.connect_ex(self._server().getsockname())
        self.take()
        return sock, ident

    def named(self) -> tuple[socket.socket, int]:
        """One that connects to a name, with or without attempts under way."""
        sock, ident = self.new()
        with contextlib.suppress(BlockingIOError):
            connectName(sock, "server.example", 443)
        self.take()
        for _ in range(self._choice.choice((0, 1, 20))):
            closeIn(self.link.ask(Command.FETCH, u64(Attribute.ID, ident) + self.remote()))
        return sock, ident

    def established(self) -> tuple[socket.socket, int]:
        """A connection."""
        sock, ident = self.connecting()
        reply = self.link.ask(Command.ESTABLISHED, u64(Attribute.ID, ident))
        if reply.error:
            raise OSError(reply.error, "ESTABLISHED")
        self._opened.append(socket.socket(fileno=reply.number(Attribute.FD)))
        return sock, ident

    def upgrading(self) -> tuple[socket.socket, int]:
        """One that waits for the handshake on a TCP connection of the program's."""
        sock, ident = self.new()
        tcp = socket.create_connection(self._server().getsockname())
        self._opened.append(tcp)
        with contextlib.suppress(BlockingIOError):
            upgrade(sock, tcp.fileno())
        self.take()
        return sock, ident

    def failed(self) -> tuple[socket.socket, int]:
        """One whose attempt has failed, of whichever kind it was."""
        sock, ident = self._choice.choice((self.connecting, self.named, self.upgrading))()
        number = self.events[ident].number(Attribute.EVENT)
        which = u64(Attribute.EVENT, number) + u64(Attribute.ID, ident)
        self.link.ask(Command.HANDSHAKE_RETURN, which + u32(Attribute.RETURN, -EINVAL), NLM_F_ACK)
        return sock, ident

    def listening(self) -> tuple[socket.socket, int]:
        """A listener."""
        sock, ident = self.new()
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(True)
        self.call(lambda: sock.listen(3), ident)
        sock.setblocking(False)
        return sock, ident

    def shutListener(self) -> tuple[socket.socket, int]:
        """A listener that was shut down."""
        sock, ident = self.listening()
        sock.shutdown(socket.SHUT_RDWR)
        return sock, ident

    def closed(self) -> tuple[socket.socket, int]:
        """One that is closed."""
        sock, ident = self.new()
        sock.close()
        self.take()
        return sock, ident

    def states(self) -> Sequence[Callable[[], tuple[socket.socket, int]]]:
        """All of them."""
        return (self.new, self.connecting, self.named, self.upgrading, self.failed, self.established, self.listening,
                self.shutListener, self.closed)

    def bothEnds(self) -> tuple[socket.socket, socket.socket, int]:
        """A connection, and the plaintext end that the daemon has got."""
        sock, ident = self.established()
        return sock, self._opened[-1], ident

    def chooseOne(self, ident: int) -> None:
        """Of a name's addresses try some, and choose one, if it is still time."""
        attempts = [self.link.ask(Command.FETCH, u64(Attribute.ID, ident) + self.remote()) for _ in range(2)]
        for reply in attempts:
            if not reply.error:
                ends = (Attribute.SOCKADDR_EXTERNAL, Attribute.SOCKADDR_REMOTE)
                addresses = b"".join(attribute(end, reply.attributes[end]) for end in ends if end in reply.attributes)
                closeIn(self.link.ask(Command.ESTABLISHED, u64(Attribute.ID, ident) + addresses))
            closeIn(reply)

    def upgradeAndFail(self, sock: socket.socket, ident: int) -> None:
        """Hand a TCP connection over; its handshake fails, and it is closed."""
        with socket.create_connection(self.remoteAddress()) as tcp, contextlib.suppress(BlockingIOError):
            upgrade(sock, tcp.fileno())
        self.take()
        which = u64(Attribute.EVENT, self.events[ident].number(Attribute.EVENT)) + u64(Attribute.ID, ident)
        self.link.ask(Command.HANDSHAKE_RETURN, which + u32(Attribute.RETURN, -EINVAL), NLM_F_ACK)

    def _server(self) -> socket.socket:
        self._opened.append(server())
        return self._opened[-1]

    def remoteAddress(self) -> tuple[str, int]:
        """The address of a server."""
        host, port = self._server().getsockname()
        return host, port

    def remote(self) -> bytes:
        """The address of a server, as attribute."""
        port = self._server().getsockname()[1].to_bytes(2, "big")
        return attribute(Attribute.SOCKADDR_REMOTE, b"\2\0" + port + b"\x7f\0\0\1" + bytes(8))

    def forget(self) -> None:
        """Close what was opened."""
        while self._opened:
            self._opened.pop().close()
