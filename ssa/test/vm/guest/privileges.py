# SPDX-License-Identifier: MIT
"""What an ordinary user may do, and what only the administrator's daemon may."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from errno import EACCES, EBUSY, EINVAL, EISDIR, EKEYREJECTED, ENOENT, EPERM
from functools import partial
from pathlib import Path
from typing import cast

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, DataPath, InternetAddress, Option
from ssa.netlink.codec import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    Acknowledgement,
    GenericMessage,
    NetlinkMessage,
    decodeMessage,
)
from ssa.netlink.generic import CONTROL
from ssa.netlink.port import NETLINK_GENERIC
from ssa.protocol.messages import (
    FAMILY_NAME,
    PROTOCOL_VERSION,
    Accepted,
    DataReturn,
    EndOfStream,
    Established,
    Fetch,
    HandshakeReturn,
    Message,
    Next,
    Register,
    Return,
)
from ssa.test.conformance.case import Thread, text
from ssa.test.conformance.peers import NAME, credential, echo, serverContext
from ssa.test.pki import otherCA
from ssa.test.vm.guest.case import USER, GuestCase, about, become, run
from ssa.test.vm.guest.network import ownUserNamespace

_CTRL_TYPE = 16
_CTRL_GETFAMILY = 3
_ADDRESS = InternetAddress(socket.AF_INET, "127.0.0.1", 443)
_FILES = (Option.TLS_PRIVATE_KEY, Option.TLS_CERTIFICATE_CHAIN, Option.TLS_TRUSTED_PEER_CERTIFICATES)
_PROMPT = 20.0  # seconds: far less than for ever


class Netlink:
    """A generic netlink socket for one request after the other."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self._socket.settimeout(_PROMPT)
        self._sequence = 0

    def ask(self, type: int, payload: bytes, flags: int = 0) -> NetlinkMessage:
        """The one answer to a request."""
        self._sequence += 1
        request = NetlinkMessage(type, NLM_F_REQUEST | flags, self._sequence, 0, payload)
        self._socket.sendto(request.encode(), (0, 0))
        return decodeMessage(self._socket.recv(65536))

    def refusal(self, type: int, message: Message) -> int:
        """The errno with which a message is refused; 0 if it is not."""
        return -Acknowledgement.decode(self.ask(type, message.payload(), NLM_F_ACK)).error

    def family(self) -> int:
        """
        The number of the module's family.

        @raise OSError: there is none, as this network namespace sees it.
        """
        payload = GenericMessage(_CTRL_GETFAMILY, 1, CONTROL.encode({"familyName": FAMILY_NAME})).encode()
        answer = self.ask(_CTRL_TYPE, payload)
        if answer.type != _CTRL_TYPE:
            error = -Acknowledgement.decode(answer).error
            raise OSError(error, os.strerror(error))
        attributes = CONTROL.decode(GenericMessage.decode(answer.payload).attributes)
        return cast(int, attributes["familyID"])


def requests(id: int) -> Sequence[Message]:
    """All that a daemon says, about a socket that exists."""
    return (
        Register(PROTOCOL_VERSION),
        Next(),
        Return(1, id, 0),
        DataReturn(1, id, b"x"),
        HandshakeReturn(1, id, 0),
        Fetch(id),
        Fetch(id, _ADDRESS),
        Established(id, _ADDRESS, _ADDRESS, DataPath.RELAY),
        Accepted(id, _ADDRESS, _ADDRESS, DataPath.RELAY, 0),
        EndOfStream(id),
    )


class Sockets(GuestCase):
    """An ordinary user's programs have TLS."""

    def test_connects(self) -> None:
        """A user's client reaches a good server, and is told of the data path and of the peer."""
        server = self.server(echo)

        def client() -> None:
            self.assertEqual(os.getuid(), USER)
            sock = self.clientSocket()
            sock.connect(server.address)
            sock.sendall(b"hello")
            self.assertEqual(self.exactly(sock, 5), b"hello")
            sock.shutdown(socket.SHUT_WR)
            self.assertEqual(sock.recv(1), b"", "close_notify is the end")
            self.assertIn(text(sock, Option.TLS_DATA_PATH), ("relay", "ktls"))

        self.inChild(client, USER)
        self.assertEqual(server.failures, [])

    def test_verifies(self) -> None:
        """A user's client refuses a server that somebody else vouches for, and one of another name."""
        stranger = serverContext(otherCA().issue([NAME]))

        def client() -> None:
            listener = self.plainListener()
            for name, context in ((NAME, stranger), ("other.example", serverContext())):
                peer = Thread(partial(self.peerOf, listener, context))
                self.fails(EKEYREJECTED, self.clientSocket(name=name).connect, listener.getsockname())
                self.assertRaises(SSL.Error, peer.result)

        self.inChild(client, USER)

    def test_accepts(self) -> None:
        """A user's server is reached by an ordinary client."""

        def serve() -> None:
            sock, peer = self.accepted()
            peer.send(b"hello")
            self.assertEqual(self.exactly(sock, 5), b"hello")
            sock.sendall(b"and back")
            self.assertEqual(peer.exactly(8), b"and back")
            sock.close()
            self.assertEqual(peer.rest(), b"")

        self.inChild(serve, USER)


class Ports(GuestCase):
    """Ports below 1024 are for those who may bind them with TCP."""

    def test_user(self) -> None:
        """EACCES for a user, and the socket is good for another port."""

        def serve() -> None:
            sock = self.tlsSocket()
            self.certify(sock)
            self.fails(EACCES, sock.bind, ("127.0.0.1", 443))
            sock.bind(("127.0.0.1", 0))
            sock.listen(1)
            self.assertGreaterEqual(sock.getsockname()[1], 1024)

        self.inChild(serve, USER)

    def test_userNamespace(self) -> None:
        """Rights in a user namespace of his own are none in the network namespace that all share."""

        def serve() -> None:
            ownUserNamespace()
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                self.fails(EACCES, self.tlsSocket(family).bind, (address, 443))

        self.inChild(serve, USER)

    def test_root(self) -> None:
        """Root has port 443, and clients reach it there."""

        def serve() -> None:
            listener = self.listener(("127.0.0.1", 443))
            connecting = Thread(lambda: self.peerTo(("127.0.0.1", 443)))
            self.readable(listener)
            sock = self.keep(listener.accept()[0])
            peer = connecting.result()
            self.assertEqual(sock.getsockname(), ("127.0.0.1", 443))
            peer.send(b"hello")
            self.assertEqual(self.exactly(sock, 5), b"hello")

        self.inChild(serve)


class Daemons(GuestCase):
    """Only the registered daemon is heard; only root's can register."""

    def refusedAll(self, expected: int, register: int = 0) -> None:
        """Say that all a daemon says is refused, also about one's own socket."""
        sock = self.tlsSocket()
        own = number64(sock)
        link = Netlink()
        family = link.family()
        for message in requests(own):
            wanted = register if register and isinstance(message, Register) else expected
            self.assertEqual(link.refusal(family, message), wanted, f"{message!r}: {os.strerror(wanted)} expected")
        self.assertEqual(number64(sock), own, "the real daemon goes on")

    def test_user(self) -> None:
        """EPERM for an ordinary user."""
        self.inChild(lambda: self.refusedAll(EPERM), USER)

    def test_userNamespace(self) -> None:
        """EPERM with CAP_NET_ADMIN in a user namespace of one's own."""

        def ask() -> None:
            ownUserNamespace()
            self.refusedAll(EPERM)

        self.inChild(ask, USER)

    def test_networkNamespace(self) -> None:
        """In a network namespace of one's own, over which one has CAP_NET_ADMIN, there is no such family."""
        family = Netlink().family()

        def ask() -> None:
            sock = self.tlsSocket()  # of the initial network namespace
            own = number64(sock)
            ownUserNamespace(network=True)
            link = Netlink()
            self.fails(ENOENT, link.family)
            for message in requests(own):
                self.assertEqual(link.refusal(family, message), ENOENT, repr(message))

        self.inChild(ask, USER)

    def test_droppedRights(self) -> None:
        """The right of whoever has opened a netlink socket is not that of whoever sends on it."""

        def ask() -> None:
            link = Netlink()  # as root
            family = link.family()
            become(USER)
            for message in requests(1):
                self.assertEqual(link.refusal(family, message), EPERM, repr(message))

        self.inChild(ask)

    def test_anotherOfRoot(self) -> None:
        """A second daemon does not take the module from the first, nor answers for it."""
        self.inChild(lambda: self.refusedAll(EPERM, register=EBUSY))


def number64(sock: socket.socket) -> int:
    """TLS_ID."""
    return int.from_bytes(sock.getsockopt(IPPROTO_TLS, Option.TLS_ID, 8), sys.byteorder)


class Files(GuestCase):
    """Files that an option names are opened with the program's rights."""

    def setUp(self) -> None:
        super().setUp()
        directory = tempfile.TemporaryDirectory(prefix="ssa-guest-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.directory.chmod(0o755)

    def file(self, name: str, content: bytes, mode: int, user: int = 0) -> str:
        """A file's path."""
        path = self.directory / name
        path.write_bytes(content)
        path.chmod(mode)
        os.chown(path, user, user)
        return str(path)

    def set(self, option: Option, path: str) -> Callable[[], None]:
        """Set an option on a new socket to a path."""
        return lambda: self.tlsSocket().setsockopt(IPPROTO_TLS, option, path.encode())

    def test_own(self) -> None:
        """A key and a chain that are the user's alone, and a root that all may read, make a server and a client."""
        key = self.file("own.key", credential().keyPEM, 0o600, USER)
        chain = self.file("own.pem", credential().chainPEM, 0o600, USER)

        def serve() -> None:
            listener = self.tlsSocket()
            listener.setsockopt(IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, chain.encode())
            listener.setsockopt(IPPROTO_TLS, Option.TLS_PRIVATE_KEY, key.encode() + b"\0")
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            client = self.clientSocket()
            client.connect(listener.getsockname())
            self.readable(listener)
            listener.accept()[0].close()

        self.inChild(serve, USER)

    def test_unreadable(self) -> None:
        """EACCES: root's file, one behind root's directory, a link to one; the daemon could read them all."""
        paths = [self.file("root.pem", credential().chainPEM + credential().keyPEM, 0o600)]
        hidden = self.directory / "hidden"
        hidden.mkdir(mode=0o700)
        (hidden / "open.pem").write_bytes(credential().chainPEM)
        (hidden / "open.pem").chmod(0o644)
        (self.directory / "link.pem").symlink_to("root.pem")
        paths += [str(hidden / "open.pem"), str(hidden / "missing.pem"), str(self.directory / "link.pem"), "/etc/shadow"]

        def refused() -> None:
            for option in _FILES:
                for path in paths:
                    with about(f"{option.name} {path}"):
                        self.fails(EACCES, self.set(option, path))

        self.inChild(refused, USER)

    def test_root(self) -> None:
        """Root's program may read root's files."""
        path = self.file("root.key", credential().keyPEM, 0o600)
        self.inChild(self.set(Option.TLS_PRIVATE_KEY, path))

    def test_missing(self) -> None:
        """ENOENT."""

        def refused() -> None:
            for option in _FILES:
                self.fails(ENOENT, self.set(option, str(self.directory / "missing.pem")))

        self.inChild(refused, USER)

    def test_notAFile(self) -> None:
        """What is no regular file is refused at once: a FIFO without a writer, one with a silent one, devices, a socket."""
        silent = self.directory / "silent"
        for path in (self.directory / "fifo", silent):
            os.mkfifo(path)
            path.chmod(0o666)
        writer = os.open(silent, os.O_RDWR)
        self.addCleanup(os.close, writer)

        def refused() -> None:
            for option in _FILES:
                for path in (self.directory / "fifo", silent, Path("/dev/zero"), Path("/dev/null")):
                    with about(f"{option.name} {path}"):
                        begun = time.monotonic()
                        self.fails(EINVAL, self.set(option, str(path)))
                        self.assertLess(time.monotonic() - begun, _PROMPT, "it waits")
            self.fails(EISDIR, self.set(Option.TLS_PRIVATE_KEY, str(self.directory)))

        self.inChild(refused, USER)

    def test_childsRights(self) -> None:
        """It is whoever sets the option whose rights count, not who has made the socket."""
        path = self.file("root.key", credential().keyPEM, 0o600)

        def refused() -> None:
            sock = self.tlsSocket()  # root's
            become(USER)
            self.fails(EACCES, sock.setsockopt, IPPROTO_TLS, Option.TLS_PRIVATE_KEY, path.encode())

        self.inChild(refused)


if __name__ == "__main__":
    sys.exit(run())
