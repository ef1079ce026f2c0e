# SPDX-License-Identifier: MIT
"""Two ends of a TLS connection in one process, without a reactor."""

from __future__ import annotations

import socket

from OpenSSL import SSL

from ssa.api import Option
from ssa.options import Phase, SocketOptions
from ssa.policy.profile import Profile
from ssa.test.pki import CA, Credential
from ssa.tls.contexts import clientConnection
from ssa.tls.identity import parseIdentity
from ssa.tls.servercontexts import ServerContexts, serverConnection, serverContexts


def optionsWith(*settings: tuple[Option, bytes], id: int = 1) -> SocketOptions:
    """Make the options of a new socket."""
    options = SocketOptions(id)
    for option, value in settings:
        options.set(option, value, Phase.NEW, Profile())
    return options


def trusting(ca: CA, *settings: tuple[Option, bytes]) -> SocketOptions:
    """Make a client's options: it trusts C{ca}."""
    return optionsWith((Option.TLS_TRUSTED_PEER_CERTIFICATES, ca.pem), *settings)


def serving(*credentials: Credential, settings: tuple[tuple[Option, bytes], ...] = ()) -> SocketOptions:
    """Make a server's options."""
    pairs = []
    for credential in credentials:
        pairs += [
            (Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM),
            (Option.TLS_PRIVATE_KEY, credential.keyPEM),
        ]
    return optionsWith(*pairs, *settings)


class Pair:
    """
    A client and a server, joined.

    @ivar errors: what C{do_handshake} raised on each side, C{"client"} and C{"server"}; L{None} if it succeeded.
    """

    def __init__(
        self,
        client: SocketOptions,
        server: SocketOptions | ServerContexts | SSL.Context,
        name: str = "server.example",
        clientProfile: Profile | None = None,
        serverProfile: Profile | None = None,
    ) -> None:
        self.sockets = socket.socketpair()
        for sock in self.sockets:
            sock.setblocking(False)
        self.client = clientConnection(clientProfile or Profile(), client, self.sockets[0], parseIdentity(name))
        if isinstance(server, SocketOptions):
            server = serverContexts(serverProfile or Profile(), server)
        if isinstance(server, ServerContexts):
            self.server = serverConnection(server, self.sockets[1])
        else:
            self.server = SSL.Connection(server, self.sockets[1])
            self.server.set_accept_state()
        self.errors: dict[str, Exception | None] = {"client": None, "server": None}

    def shakeHands(self) -> Pair:
        """Run both handshakes to their end; a side that fails shuts its direction down."""
        running = {"client": self.client, "server": self.server}
        for _ in range(50):
            for which, connection in list(running.items()):
                try:
                    connection.do_handshake()
                except SSL.WantReadError:
                    continue
                except Exception as error:
                    self.errors[which] = error
                    self.sockets[which == "server"].shutdown(socket.SHUT_WR)
                del running[which]
            if not running:
                return self
        raise AssertionError("the handshake does not end")

    def exchange(self, data: bytes = b"hello") -> bytes:
        """Send from the server to the client.  With TLS 1.3 this also shows the client what the server thought of it."""
        self.server.send(data)
        return self.client.recv(len(data))

    def close(self) -> None:
        """Close both sockets."""
        for sock in self.sockets:
            sock.close()
