# SPDX-License-Identifier: MIT
"""
Tests for L{ssa.intercept.supervisor} and the calls that it serves, without seccomp and without a daemon.

The contract: whatever state a socket is in, whatever the daemon, the network and the kernel do, each call gets exactly one
answer (or none, if a signal has interrupted it), and no descriptor is left when the program has closed its own.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import IPPROTO_TLS, UPGRADE_FORMAT, DataPath, HostnameAddress, InternetAddress, Option, encodeAddress
from ssa.errors import LONGEST_REASON, SSAError
from ssa.intercept.core import ANSWER_TIMEOUT, Core
from ssa.intercept.endpoint import Endpoint, State
from ssa.intercept.notify import Gone, Notification
from ssa.intercept.supervisor import Supervisor
from ssa.intercept.testing import FakeDaemonLink, FakeListener, FakeNetwork, notice
from ssa.protocol.messages import (
    AcceptNotify,
    Answer,
    CloseNotify,
    ConnectNotify,
    DataReturn,
    Event,
    GetsockoptNotify,
    HandshakeReturn,
    Return,
    SetsockoptNotify,
    SocketNotify,
    UpgradeNotify,
)
from ssa.test.fakes import FakeReactor, openDescriptors

NONBLOCK = socket.SOCK_NONBLOCK
PEER = InternetAddress(socket.AF_INET, "192.0.2.7", 50123)
NEVER = HostnameAddress("server.example", 443)


def good(event: Event) -> Answer:
    """What a content daemon answers."""
    if isinstance(event, GetsockoptNotify):
        return DataReturn(event.event, event.id, b"value\0")
    if isinstance(event, (ConnectNotify, UpgradeNotify)):
        return HandshakeReturn(event.event, event.id, 0)
    return Return(event.event, event.id, 0)


def bad(event: Event) -> Answer:
    """What a daemon answers that refuses."""
    if isinstance(event, (ConnectNotify, UpgradeNotify)):
        return HandshakeReturn(event.event, event.id, -errno.EKEYREJECTED)
    return Return(event.event, event.id, -errno.EPERM)


class Rig:
    """A supervisor, a program and a daemon, all in this process."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.listener = FakeListener()
        self.network = FakeNetwork()
        self.core = Core(self.reactor, self.listener, lambda: self.network)
        self.supervisor = Supervisor(self.core)
        self.link = FakeDaemonLink(self.good)
        self.supervisor.start()
        self.supervisor.linkUp(self.link)  # type: ignore[arg-type]
        self.plain: list[int] = []
        self.peers: list[socket.socket] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.real: list[int] = []

    # The daemon.

    def good(self, event: Event) -> Answer | None:
        """Do all that a daemon does, at once."""
        if isinstance(event, (ConnectNotify, UpgradeNotify)):
            try:
                self.establish(event)
            except SSAError as error:
                return HandshakeReturn(event.event, event.id, -error.errno)
        return good(event)

    def later(self, event: Event) -> Answer | None:
        """Be slow with everything but socket(2)."""
        return good(event) if isinstance(event, SocketNotify) else None

    def refusing(self, event: Event) -> Answer | None:
        """Refuse everything but socket(2)."""
        return good(event) if isinstance(event, SocketNotify) else bad(event)

    def establish(self, event: ConnectNotify | UpgradeNotify) -> None:
        """A handshake succeeds."""
        remote = event.remote
        assert remote is not None
        if isinstance(remote, HostnameAddress):
            remote = InternetAddress.fromSocket(socket.AF_INET, self.server.getsockname())
            fetched = self.supervisor.fetch(event.id, remote)
        else:
            fetched = self.supervisor.fetch(event.id, None)
        self.real.append(fetched.fd)
        assert fetched.external is not None
        self.plain.append(self.supervisor.established(event.id, fetched.external, remote, DataPath.RELAY))

    # The program.

    def serve(self, name: str, *arguments: int) -> Notification:
        """Make a call, and let the supervisor serve it."""
        call = self.listener.call(name, *arguments)
        self.supervisor.serve(call)
        self.link.deliver()
        return call

    def result(self, call: Notification) -> int | None:
        """What a call got."""
        return self.listener.answers[call.id]

    def do(self, name: str, *arguments: int) -> int | None:
        """Make a call; returns what it got."""
        return self.result(self.serve(name, *arguments))

    def socket(self, flags: int = 0, family: int = socket.AF_INET) -> int:
        """A new TLS socket."""
        fd = self.do("socket", family, socket.SOCK_STREAM | flags, IPPROTO_TLS)
        assert fd is not None
        assert fd >= 0, os.strerror(-fd)
        return fd

    def put(self, data: bytes) -> int:
        return self.listener.allocate(data)

    def address(self, address: InternetAddress | HostnameAddress | None = None) -> tuple[int, int]:
        """Where an address lies in the program's memory, and its length; by default, that of a real server."""
        target = address or InternetAddress.fromSocket(socket.AF_INET, self.server.getsockname())
        data = encodeAddress(target)
        return self.put(data), len(data)

    def bind(self, fd: int) -> int | None:
        return self.do("bind", fd, *self.address(InternetAddress(socket.AF_INET, "127.0.0.1", 0)))

    def listening(self, flags: int = 0, backlog: int = 4) -> int:
        """A listener."""
        fd = self.socket(flags)
        assert self.bind(fd) == 0
        assert self.do("listen", fd, backlog) == 0
        return fd

    def connected(self, flags: int = 0) -> int:
        """A connected socket."""
        fd = self.socket(flags)
        got = self.do("connect", fd, *self.address())
        assert got == (-errno.EINPROGRESS if flags else 0), got
        return fd

    def endpoint(self, fd: int) -> Endpoint:
        """What the supervisor knows of it."""
        found = self.core.table.byInode(os.fstat(fd).st_ino)
        assert found is not None
        return found

    def arrive(self, fd: int) -> Any:
        """A connection arrives at a listener."""
        endpoint = self.endpoint(fd)
        assert endpoint.bound is not None
        result = self.supervisor.accepted(endpoint.id, endpoint.bound, PEER)
        if isinstance(result, tuple):
            self.plain.append(result[1])
        return result

    def closed(self, endpoint: Endpoint) -> None:
        """The kernel tells that a socket is no more."""
        self.network.notices.send(notice(endpoint.cookie))
        for sock in self.network.destroyed:
            self.supervisor.socketsDestroyed(sock)

    def close(self) -> None:
        """The program ends, and everything with it."""
        for number in list(self.listener.descriptors):
            self.listener.closeDescriptor(number)
        for endpoint in self.core.table:
            self.closed(endpoint)
        self.reactor.advance(ANSWER_TIMEOUT * 2)
        self.link.lose(SSAError(errno.ENETDOWN, "gone"))
        self.supervisor.linkLost()
        for number in self.plain + self.real:
            os.close(number)
        for sock in [*self.peers, self.server]:
            sock.close()
        self.listener.close()
        self.network.close()
        os.close(self.core.rights._network)


States = dict[str, Callable[[Rig], int]]


def _ordinary(rig: Rig) -> int:
    sock = socket.socket()
    rig.listener.descriptors.add(sock.fileno())
    return sock.detach()


def _bound(rig: Rig) -> int:
    fd = rig.socket()
    assert rig.bind(fd) == 0
    return fd


def _connecting(rig: Rig, flags: int = NONBLOCK) -> int:
    fd = rig.socket(flags)
    rig.link.react = rig.later
    call = rig.serve("connect", fd, *rig.address())
    assert rig.listener.answers.get(call.id, -errno.EINPROGRESS) == -errno.EINPROGRESS
    return fd


def _failed(rig: Rig) -> int:
    fd = rig.socket(NONBLOCK)
    rig.link.react = rig.refusing
    assert rig.do("connect", fd, *rig.address()) == -errno.EINPROGRESS
    return fd


def _refused(rig: Rig) -> int:
    rig.link.react = bad
    return rig.socket()


def _accepted(rig: Rig) -> int:
    listener = rig.listening()
    rig.arrive(listener)
    fd = rig.do("accept", listener, 0, 0)
    assert fd is not None
    assert fd >= 0
    return fd


def _waiting(rig: Rig) -> int:
    fd = rig.listening(NONBLOCK)
    rig.arrive(fd)
    return fd


def _dead(rig: Rig) -> int:
    fd = rig.listening()
    rig.supervisor.linkLost()
    return fd


def _unserved(rig: Rig) -> int:
    fd = rig.socket()
    rig.supervisor.linkLost()
    return fd


STATES: States = {
    "no socket": lambda rig: 9999,
    "ordinary": _ordinary,
    "new": lambda rig: rig.socket(),
    "new, not blocking": lambda rig: rig.socket(NONBLOCK),
    "bound": _bound,
    "connecting": _connecting,
    "connecting, blocking": lambda rig: _connecting(rig, 0),
    "connected": lambda rig: rig.connected(),
    "connected, not blocking": lambda rig: rig.connected(NONBLOCK),
    "failed": _failed,
    "refused": _refused,
    "listening": lambda rig: rig.listening(),
    "listening, not blocking": lambda rig: rig.listening(NONBLOCK),
    "a connection waits": _waiting,
    "accepted": _accepted,
    "listener of a lost daemon": _dead,
    "socket of a lost daemon": _unserved,
}

Call = Callable[[Rig, int], tuple[str, tuple[int, ...]]]


def _option(name: str, level: int, number: int, value: bytes) -> Call:
    if name == "setsockopt":
        return lambda rig, fd: (name, (fd, level, number, rig.put(value), len(value)))
    return lambda rig, fd: (name, (fd, level, number, rig.put(value), rig.put(struct.pack("=i", len(value)))))


def _upgrade(rig: Rig, fd: int) -> tuple[str, tuple[int, ...]]:
    first = socket.create_connection(rig.server.getsockname())
    second, _ = rig.server.accept()
    rig.peers.append(second)
    rig.listener.descriptors.add(first.fileno())
    value = struct.pack(UPGRADE_FORMAT, first.detach(), 0)
    return "setsockopt", (fd, IPPROTO_TLS, Option.TLS_UPGRADE, rig.put(value), len(value))


CALLS: dict[str, Call] = {
    "socket": lambda rig, fd: ("socket", (socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)),
    "socket of a wrong kind": lambda rig, fd: ("socket", (socket.AF_UNIX, socket.SOCK_STREAM, IPPROTO_TLS)),
    "bind": lambda rig, fd: ("bind", (fd, *rig.address(InternetAddress(socket.AF_INET, "127.0.0.1", 0)))),
    "bind elsewhere": lambda rig, fd: ("bind", (fd, *rig.address(PEER))),
    "bind, bad memory": lambda rig, fd: ("bind", (fd, 1, 16)),
    "bind, long": lambda rig, fd: ("bind", (fd, rig.put(bytes(200)), 200)),
    "connect": lambda rig, fd: ("connect", (fd, *rig.address())),
    "connect, a long address": lambda rig, fd: (
        "connect",
        (fd, rig.put(encodeAddress(InternetAddress.fromSocket(2, rig.server.getsockname())).ljust(128, b"x")), 128),
    ),
    "connect to a name": lambda rig, fd: ("connect", (fd, *rig.address(NEVER))),
    "connect, bad memory": lambda rig, fd: ("connect", (fd, 1, 16)),
    "connect, negative": lambda rig, fd: ("connect", (fd, 1, -1)),
    "connect, unspecified": lambda rig, fd: ("connect", (fd, rig.put(bytes(16)), 16)),
    "connect, unknown family": lambda rig, fd: ("connect", (fd, rig.put(b"\xff" * 16), 16)),
    "listen": lambda rig, fd: ("listen", (fd, 1)),
    "accept": lambda rig, fd: ("accept", (fd, 0, 0)),
    "accept, with a name": lambda rig, fd: ("accept", (fd, rig.put(bytes(16)), rig.put(struct.pack("=i", 16)))),
    "accept, bad memory": lambda rig, fd: ("accept", (fd, 1, 1)),
    "accept4": lambda rig, fd: ("accept4", (fd, 0, 0, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)),
    "accept4, bad flags": lambda rig, fd: ("accept4", (fd, 0, 0, 1)),
    "set a TLS option": _option("setsockopt", IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, b"name"),
    "set a TLS option, long": _option("setsockopt", IPPROTO_TLS, Option.TLS_ALPN, bytes(65537)),
    "set a TLS option, bad memory": lambda rig, fd: ("setsockopt", (fd, IPPROTO_TLS, 85, 1, 4)),
    "name a file": _option("setsockopt", IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, os.fsencode(__file__)),
    "name no file": _option("setsockopt", IPPROTO_TLS, Option.TLS_PRIVATE_KEY, b"/nowhere"),
    "set keep-alive": _option("setsockopt", socket.SOL_SOCKET, socket.SO_KEEPALIVE, struct.pack("=i", 1)),
    "set an interface": _option("setsockopt", socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0"),
    "bypass TLS": _option("setsockopt", socket.IPPROTO_TCP, 31, b"tls"),
    "fast open": _option("setsockopt", socket.IPPROTO_TCP, 30, struct.pack("=i", 1)),
    "get a TLS option": _option("getsockopt", IPPROTO_TLS, Option.TLS_ALPN, bytes(64)),
    "get a TLS option, short": _option("getsockopt", IPPROTO_TLS, Option.TLS_ALPN, b"x"),
    "get a TLS option, bad memory": lambda rig, fd: ("getsockopt", (fd, IPPROTO_TLS, 90, 1, 1)),
    "get TLS_ERROR": _option("getsockopt", IPPROTO_TLS, Option.TLS_ERROR, bytes(256)),
    "get SO_ERROR": _option("getsockopt", socket.SOL_SOCKET, socket.SO_ERROR, bytes(4)),
    "get SO_PROTOCOL": _option("getsockopt", socket.SOL_SOCKET, 38, bytes(4)),
    "get an interface": _option("getsockopt", socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bytes(16)),
    "get TCP_ULP": _option("getsockopt", socket.IPPROTO_TCP, 31, bytes(16)),
    "getsockname": lambda rig, fd: ("getsockname", (fd, rig.put(bytes(16)), rig.put(struct.pack("=i", 16)))),
    "getpeername": lambda rig, fd: ("getpeername", (fd, rig.put(bytes(16)), rig.put(struct.pack("=i", 16)))),
    "sendmsg": lambda rig, fd: ("sendmsg", (fd, 0, socket.MSG_OOB)),
    "recvmmsg": lambda rig, fd: ("recvmmsg", (fd, 0, 1, socket.MSG_OOB)),
    "upgrade": _upgrade,
    "upgrade, no descriptor": _option("setsockopt", IPPROTO_TLS, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, -1, 0)),
    "upgrade, no role": _option("setsockopt", IPPROTO_TLS, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, 0, 7)),
}


class ContractTests(SynchronousTestCase):
    """Exactly one answer, nothing left."""

    used: frozenset[str] | set[str] = frozenset()
    operations = 0

    def each(self) -> Iterator[tuple[str, str]]:
        """Every call in every state."""
        for state in STATES:
            for call in CALLS:
                yield state, call

    def settle(self, rig: Rig, call: Notification, what: object) -> int | None:
        """End what a blocking call may wait for; then there is an answer, or nobody who waits."""
        rig.reactor.advance(ANSWER_TIMEOUT * 2)
        if call.id not in rig.listener.answers:
            rig.link.react = bad
            rig.link.deliver()
        if call.id not in rig.listener.answers and call.id not in rig.listener._interrupted:
            for endpoint in rig.core.table:
                rig.closed(endpoint)
        if call.id in rig.listener._interrupted:
            return None
        self.assertIn(call.id, rig.listener.answers, what)
        return rig.result(call)

    def attempt(self, state: str, call: str, arrange: Callable[[Rig], None], end: Callable[[Rig], None]) -> int:
        """One call in one state; returns the number of its steps."""
        before = openDescriptors()
        rig = Rig()
        try:
            fd = STATES[state](rig)
            name, arguments = CALLS[call](rig, fd)
            arrange(rig)
            start = rig.listener.steps
            self.operations = len(rig.network.operations)
            made = rig.serve(name, *arguments)
            steps = rig.listener.steps - start
            end(rig)
            rig.listener.interruptAt = None
            rig.network.errors.clear()
            self.settle(rig, made, (state, call))
            self.flushLoggedErrors(Gone)
            self.used = set(rig.network.operations[self.operations :])
        finally:
            rig.close()
        self.assertEqual(openDescriptors(), before, (state, call, rig.network.operations))
        return steps

    def nothing(self, rig: Rig) -> None:
        """Change nothing."""

    def test_content(self) -> None:
        """A daemon that answers at once."""
        for state, call in self.each():
            self.attempt(state, call, lambda rig: setattr(rig.link, "react", rig.good), self.nothing)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_refusing(self) -> None:
        """A daemon that refuses."""
        for state, call in self.each():
            self.attempt(state, call, lambda rig: setattr(rig.link, "react", bad), self.nothing)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_silent(self) -> None:
        """A daemon that does not answer in time, and then does."""
        for state, call in self.each():
            self.attempt(state, call, lambda rig: setattr(rig.link, "react", lambda event: None), self.nothing)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_lost(self) -> None:
        """A daemon that is lost while the call waits."""

        def lose(rig: Rig) -> None:
            rig.link.lose(SSAError(errno.ENETDOWN, "gone"))
            rig.supervisor.linkLost()

        for state, call in self.each():
            self.attempt(state, call, lambda rig: setattr(rig.link, "react", lambda event: None), lose)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_answerAfterClose(self) -> None:
        """A daemon whose answer comes when the socket is gone."""

        def close(rig: Rig) -> None:
            for endpoint in rig.core.table:
                rig.closed(endpoint)
            rig.link.react = good
            rig.link.deliver()

        for state, call in self.each():
            self.attempt(state, call, lambda rig: setattr(rig.link, "react", lambda event: None), close)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_nonsense(self) -> None:
        """A daemon that claims a connection which it has not made."""
        for state, call in self.each():
            self.attempt(state, call, lambda rig: setattr(rig.link, "react", good), self.nothing)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_full(self) -> None:
        """A program without a number left."""
        for state, call in self.each():
            self.attempt(state, call, lambda rig: setattr(rig.listener, "full", True), self.nothing)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_interrupted(self) -> None:
        """A signal at each step of a call."""
        for state, call in self.each():
            step = 0
            steps = 1
            while step < steps:

                def arrange(rig: Rig, step: int = step) -> None:
                    rig.link.react = rig.good
                    rig.listener.interruptAt = rig.listener.steps + step

                steps = max(self.attempt(state, call, arrange, self.nothing), steps)
                step += 1
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_networkErrors(self) -> None:
        """Each operation of the private network fails."""
        for state, call in self.each():
            self.attempt(state, call, self.nothing, self.nothing)
            for operation in self.used:

                def arrange(rig: Rig, operation: str = operation) -> None:
                    rig.network.errors[operation] = errno.ENOBUFS

                self.attempt(state, call, arrange, self.nothing)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_unsendable(self) -> None:
        """A link on which no event can be sent."""
        for state, call in self.each():
            self.attempt(state, call, lambda rig: setattr(rig.link, "broken", bad), self.nothing)
        self.assertEqual(self.flushLoggedErrors(), [])


class CallTests(SynchronousTestCase):
    """What the calls get."""

    def setUp(self) -> None:
        self.before = openDescriptors()
        self.rig = Rig()

    def tearDown(self) -> None:
        self.rig.close()
        self.assertEqual(openDescriptors(), self.before)

    def table(self, state: str, expected: dict[str, int | None]) -> None:
        """Make several calls, each in a fresh state."""
        for call, result in expected.items():
            rig = Rig()
            try:
                fd = STATES[state](rig)
                name, arguments = CALLS[call](rig, fd)
                self.assertEqual(rig.do(name, *arguments), result, (state, call))
            finally:
                rig.close()

    def test_notOurs(self) -> None:
        """The kernel does what is none of ours."""
        for state in ("no socket", "ordinary"):
            self.table(state, {call: None for call in CALLS if not call.startswith("socket")})
        self.table("new", {"socket of a wrong kind": None})

    def test_new(self) -> None:
        e = errno
        self.table(
            "new",
            {
                "bind": 0,
                "bind elsewhere": -e.EADDRNOTAVAIL,
                "bind, bad memory": -e.EFAULT,
                "bind, long": -e.EINVAL,
                "connect": 0,
                "connect, a long address": 0,
                "connect to a name": 0,
                "connect, bad memory": -e.EFAULT,
                "connect, negative": -e.EINVAL,
                "connect, unspecified": 0,
                "connect, unknown family": -e.EAFNOSUPPORT,
                "listen": 0,
                "accept": -e.EINVAL,
                "accept4": -e.EINVAL,
                "set a TLS option": 0,
                "set a TLS option, long": -e.EMSGSIZE,
                "set a TLS option, bad memory": -e.EFAULT,
                "name no file": -e.ENOENT,
                "bypass TLS": -e.ENOPROTOOPT,
                "fast open": -e.EOPNOTSUPP,
                "get a TLS option": 0,
                "get a TLS option, short": -e.ERANGE,
                "get a TLS option, bad memory": -e.EFAULT,
                "get SO_ERROR": 0,
                "get SO_PROTOCOL": 0,
                "get TCP_ULP": -e.ENOPROTOOPT,
                "sendmsg": -e.EOPNOTSUPP,
                "recvmmsg": -e.EOPNOTSUPP,
                "getpeername": -e.ENOTCONN,
                "upgrade": 0,
                "upgrade, no descriptor": -e.EBADF,
                "upgrade, no role": -e.EINVAL,
            },
        )

    def test_connecting(self) -> None:
        e = errno
        self.table(
            "connecting",
            {
                "connect": -e.EALREADY,
                "bind": -e.EINVAL,
                "listen": -e.EINVAL,
                "accept": -e.EINVAL,
                "connect, unspecified": -e.EOPNOTSUPP,
                "get SO_ERROR": 0,
                "upgrade": -e.EALREADY,
            },
        )

    def test_connected(self) -> None:
        e = errno
        for state in ("connected", "accepted"):
            self.table(
                state,
                {
                    "connect": -e.EISCONN,
                    "bind": -e.EINVAL,
                    "listen": -e.EINVAL,
                    "accept": -e.EINVAL,
                    "connect, unspecified": -e.EOPNOTSUPP,
                    "upgrade": -e.EISCONN,
                    "getpeername": 0,
                },
            )

    def test_listening(self) -> None:
        e = errno
        self.table(
            "listening, not blocking",
            {
                "connect": -e.EISCONN,
                "bind": -e.EINVAL,
                "listen": 0,
                "accept": -e.EAGAIN,
                "accept4, bad flags": -e.EINVAL,
                "upgrade": -e.EISCONN,
            },
        )

    def test_failed(self) -> None:
        e = errno
        self.table("failed", {"connect": -e.EKEYREJECTED, "get SO_ERROR": 0})

    def test_lostDaemon(self) -> None:
        e = errno
        self.table(
            "socket of a lost daemon",
            {
                "socket": -e.ENETDOWN,
                "connect": -e.ENETDOWN,
                "listen": -e.ENETDOWN,
                "set a TLS option": -e.ENETDOWN,
                "get a TLS option": -e.ENETDOWN,
                "get TLS_ERROR": 0,
                "upgrade": -e.ENETDOWN,
            },
        )
        self.table("listener of a lost daemon", {"accept": -e.ENETDOWN, "listen": -e.ENETDOWN, "connect": -e.ENETDOWN})

    def test_refused(self) -> None:
        e = errno
        calls = ("connect", "listen", "set a TLS option", "get a TLS option")
        self.table("refused", dict.fromkeys(calls, -e.EPERM))

    def test_socketError(self) -> None:
        """SO_ERROR tells why an attempt failed, once."""
        rig = self.rig
        fd = _failed(rig)
        where, size = rig.put(bytes(4)), rig.put(struct.pack("=i", 4))
        for expected in (errno.EKEYREJECTED, 0):
            self.assertEqual(rig.do("getsockopt", fd, socket.SOL_SOCKET, socket.SO_ERROR, where, size), 0)
            self.assertEqual(struct.unpack("=i", rig.listener.memory[where])[0], expected)

    def test_data(self) -> None:
        """A connection carries data between the program and the daemon's end."""
        rig = self.rig
        fd = rig.connected()
        os.write(fd, b"question")
        self.assertEqual(os.read(rig.plain[0], 100), b"question")
        os.write(rig.plain[0], b"answer")
        self.assertEqual(os.read(fd, 100), b"answer")

    def test_startingDaemon(self) -> None:
        """Who asks for a socket while the daemon starts waits for it."""
        for up in (True, False):
            rig = Rig()
            rig.supervisor._starting = []
            call = rig.serve("socket", socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
            self.assertNotIn(call.id, rig.listener.answers)
            if up:
                rig.supervisor.linkUp(rig.link)  # type: ignore[arg-type]
                self.assertGreater(rig.result(call) or -1, 0)
            else:
                rig.core.daemon = None
                rig.supervisor.linkFailed()
                self.assertEqual(rig.result(call), -errno.ENETDOWN)
            rig.close()

    def test_blockedConnect(self) -> None:
        """All who wait for one attempt get its result."""
        rig = self.rig
        fd = rig.socket()
        rig.link.react = rig.later
        calls = [rig.serve("connect", fd, *rig.address()) for _ in range(3)]
        rig.listener.interrupt(calls[1])
        event, waiting = rig.link.pending.pop()
        assert isinstance(event, ConnectNotify)
        rig.establish(event)
        waiting.callback(good(event))
        self.assertEqual([rig.listener.answers.get(call.id) for call in calls], [0, None, 0])
        self.assertEqual(rig.do("connect", fd, *rig.address()), -errno.EISCONN)

    def test_settlingFails(self) -> None:
        """A caller is answered though the kernel cannot be told that his call is over."""
        rig = self.rig
        fd = rig.socket()
        rig.link.react = rig.later
        call = rig.serve("connect", fd, *rig.address())
        event, waiting = rig.link.pending.pop()
        assert isinstance(event, ConnectNotify)
        rig.establish(event)
        self.patch(rig.core, "findAgain", lambda endpoint: None)
        waiting.callback(good(event))
        self.assertEqual(rig.result(call), 0)

    def test_accept(self) -> None:
        """The first that came is the first that is given, with its address."""
        rig = self.rig
        fd = rig.listening(NONBLOCK)
        ids = [rig.arrive(fd)[0] for _ in range(3)]
        name, size = rig.put(bytes(16)), rig.put(struct.pack("=i", 16))
        for wanted in ids:
            accepted = rig.do("accept4", fd, name, size, socket.SOCK_NONBLOCK)
            assert accepted is not None
            self.assertEqual(rig.endpoint(accepted).id, wanted)
            self.assertFalse(os.get_blocking(accepted))
            self.assertEqual(rig.listener.memory[name], encodeAddress(PEER))
        self.assertEqual(rig.do("accept", fd, 0, 0), -errno.EAGAIN)
        self.assertEqual([told.id for told in rig.link.told if isinstance(told, AcceptNotify)], ids)

    def test_blockedAccept(self) -> None:
        """The first that waits is the first that gets one; a caller who is interrupted costs no connection."""
        rig = self.rig
        fd = rig.listening()
        calls = [rig.serve("accept", fd, 0, 0) for _ in range(3)]
        rig.listener.interrupt(calls[0])
        ids = [rig.arrive(fd)[0] for _ in range(2)]
        for call, wanted in zip(calls[1:], ids, strict=True):
            number = rig.result(call)
            assert number is not None
            self.assertEqual(rig.endpoint(number).id, wanted)

    def test_acceptNotified(self) -> None:
        """The daemon hears of an accept(2) that was waiting after it has the connection's id, which it does not know before."""
        rig = self.rig
        fd = rig.listening()
        for _ in range(2):
            rig.serve("accept", fd, 0, 0)
        ids = []
        for _ in range(2):
            ids.append(rig.arrive(fd)[0])
            self.assertNotIn(ids[-1], [told.id for told in rig.link.told])
        rig.reactor.advance(0)
        self.assertEqual(ids, [told.id for told in rig.link.told if isinstance(told, AcceptNotify)])

    def test_acceptAndClose(self) -> None:
        """Of a connection that is closed at once no more than its end is told."""
        rig = self.rig
        fd = rig.listening()
        call = rig.serve("accept", fd, 0, 0)
        newID = rig.arrive(fd)[0]
        number = rig.result(call)
        assert number is not None
        endpoint = rig.endpoint(number)
        rig.listener.closeDescriptor(number)
        rig.closed(endpoint)
        rig.reactor.advance(0)
        self.assertEqual([CloseNotify], [type(told) for told in rig.link.told if told.id == newID])

    def test_acceptBadAddress(self) -> None:
        """A connection that a bad address costs is closed for the daemon too, after it has learnt its id."""
        rig = self.rig
        fd = rig.listening()
        call = rig.serve("accept", fd, 1, 1)
        newID = rig.arrive(fd)[0]
        self.assertEqual(-errno.EFAULT, rig.result(call))
        self.assertEqual([], [told for told in rig.link.told if told.id == newID])
        rig.reactor.advance(0)
        self.assertEqual([CloseNotify], [type(told) for told in rig.link.told if told.id == newID])

    def test_interruptedAccept(self) -> None:
        """The connection of a caller who was interrupted is the next one's."""
        rig = self.rig
        fd = rig.listening()
        wanted = rig.arrive(fd)[0]
        for step in range(4):
            rig.listener.interruptAt = rig.listener.steps + step
            rig.serve("accept", fd, 0, 0)
        rig.listener.interruptAt = None
        number = rig.do("accept", fd, 0, 0)
        assert number is not None
        self.assertEqual(rig.endpoint(number).id, wanted)

    def test_acceptWithoutNumber(self) -> None:
        """EMFILE costs no connection."""
        rig = self.rig
        fd = rig.listening()
        wanted = rig.arrive(fd)[0]
        rig.listener.full = True
        self.assertEqual(rig.do("accept", fd, 0, 0), -errno.EMFILE)
        rig.listener.full = False
        number = rig.do("accept", fd, 0, 0)
        assert number is not None
        self.assertEqual(rig.endpoint(number).id, wanted)

    def test_inherited(self) -> None:
        """An accepted socket has what its listener has."""
        rig = self.rig
        fd = rig.listening()
        with socket.socket(fileno=os.dup(fd)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 3, 0))
        rig.arrive(fd)
        waiting = rig.do("accept", fd, 0, 0)
        call = rig.serve("accept", fd, 0, 0)
        rig.arrive(fd)
        for number in (waiting, rig.result(call)):
            assert number is not None
            with socket.socket(fileno=os.dup(number)) as accepted:
                self.assertEqual(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
                self.assertEqual(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16), struct.pack("@ll", 3, 0))

    def test_backlog(self) -> None:
        """Connections beyond the backlog wait, and come in order when there is room; closing the listener ends them."""
        rig = self.rig
        fd = rig.listening(NONBLOCK, backlog=1)
        ids = [rig.arrive(fd)[0] for _ in range(2)]
        later: list[Deferred[tuple[int, int]]] = [rig.arrive(fd) for _ in range(3)]
        for one in later:
            self.assertNoResult(one)
        for wanted in ids:
            number = rig.do("accept", fd, 0, 0)
            assert number is not None
            self.assertEqual(rig.endpoint(number).id, wanted)
        rig.plain += [self.successResultOf(one)[1] for one in later[:2]]
        self.assertNoResult(later[2])
        endpoint = rig.endpoint(fd)
        rig.listener.closeDescriptor(fd)
        rig.closed(endpoint)
        self.assertEqual(self.failureResultOf(later[2], SSAError).value.errno, errno.ECONNABORTED)
        self.assertEqual(len([told for told in rig.link.told if isinstance(told, CloseNotify)]), 3)

    def test_twoHomes(self) -> None:
        """Listeners of the same address in two network namespaces do not get each other's connections."""
        rig = self.rig
        first, second = rig.listening(NONBLOCK), rig.listening(NONBLOCK)
        one, two = rig.endpoint(first), rig.endpoint(second)
        home, other = one.home, type(one.home)(7, None, rig.network, one.home.defaults)
        for endpoint, at in ((one, home), (two, other)):
            rig.core.table.remove(endpoint)
            endpoint.home = at
            rig.core.table.add(endpoint)
            rig.core.table.listens(endpoint)
        rig.arrive(first)
        port, connection = next(iter(one.ready.items()))
        two.ready[port] = connection
        name, two.name = two.name, one.name
        del one.ready[port]
        self.assertEqual(rig.do("accept", first, 0, 0), -errno.EAGAIN)
        two.name = name

    def test_noticeForEachSocket(self) -> None:
        """The last close reaches the daemon, whatever the socket was."""
        for state in ("new", "bound", "connecting", "connected", "listening", "accepted", "failed"):
            rig = Rig()
            fd = STATES[state](rig)
            endpoint = rig.endpoint(fd)
            rig.closed(endpoint)
            self.assertIs(endpoint.state, State.DEAD)
            self.assertIn(endpoint.id, [told.id for told in rig.link.told if isinstance(told, CloseNotify)], state)
            rig.close()

    def test_lostNotices(self) -> None:
        """After lost notices only what is really gone is forgotten: the kernel lists no socket that is new."""
        rig = self.rig
        kept = {state: STATES[state](rig) for state in ("new", "bound", "connected", "listening", "accepted")}
        gone = [rig.socket(), rig.connected(), rig.listening()]
        ended = rig.connected()
        os.close(rig.plain.pop())  # reset by the daemon: such a socket is in no list either
        lost = [rig.endpoint(fd).id for fd in gone]
        for fd in gone:
            rig.listener.closeDescriptor(fd)
        os.close(rig.plain.pop())
        rig.supervisor._rescanIn(0)
        for seconds in (0, 1, 1, 1, 1):
            rig.reactor.advance(seconds)
        for fd in [*kept.values(), ended]:
            rig.endpoint(fd)
        told = [one.id for one in rig.link.told if isinstance(one, CloseNotify)]
        self.assertEqual(sorted(told), sorted(lost))

    def test_broken(self) -> None:
        """A fault of ours is EIO, once."""
        rig = self.rig
        fd = rig.socket()

        def broken(*arguments: object) -> None:
            raise RuntimeError("a fault")

        self.patch(rig.core, "find", broken)
        self.assertEqual(rig.do("listen", fd, 1), -errno.EIO)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_brokenAnswer(self) -> None:
        """A fault of ours while the daemon's answer is used is EIO, once."""
        rig = self.rig
        fd = rig.socket()
        rig.link.react = rig.later
        value = rig.put(b"name")
        call = rig.serve("getsockopt", fd, IPPROTO_TLS, Option.TLS_ALPN, value, rig.put(struct.pack("=i", 4)))

        def broken(*arguments: object) -> None:
            raise RuntimeError("a fault")

        self.patch(rig.supervisor._options, "_got", broken)
        rig.link.react = good
        rig.link.deliver()
        self.assertEqual(rig.result(call), -errno.EIO)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_longReason(self) -> None:
        """What the supervisor itself says in TLS_ERROR is as short as what the daemon says, whatever the path is."""
        rig = self.rig
        fd = rig.socket()
        for name in ("\U0001f600" * 50, "\x01" * 80):
            path = "/".join([name] * 5).encode()
            option = (fd, IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, rig.put(path), len(path))
            self.assertEqual(rig.do("setsockopt", *option), -errno.ENOENT)
            value, size = rig.put(bytes(1024)), rig.put(struct.pack("=i", 1024))
            self.assertEqual(rig.do("getsockopt", fd, IPPROTO_TLS, Option.TLS_ERROR, value, size), 0)
            text = bytes(rig.listener.memory[value][:1024]).rstrip(b"\0").decode()
            self.assertTrue(text.startswith("TLS_CERTIFICATE_CHAIN: "), text)
            self.assertTrue(text.isprintable())
            self.assertLessEqual(len(text.encode()), LONGEST_REASON)

    def test_liveOption(self) -> None:
        """An option of a connection goes to the daemon, and to the program's end only if that agrees."""
        rig = self.rig
        fd = rig.connected()
        events: list[Event] = []

        def react(event: Event) -> Answer:
            events.append(event)
            return bad(event)

        rig.link.react = react
        value = struct.pack("=i", 1)
        option = (fd, socket.SOL_SOCKET, socket.SO_KEEPALIVE, rig.put(value), 4)
        self.assertEqual(rig.do("setsockopt", *option), -errno.EPERM)
        assert isinstance(events[0], SetsockoptNotify)
        self.assertEqual((events[0].level, events[0].name, events[0].value), (*option[1:3], value))
        with socket.socket(fileno=os.dup(fd)) as sock:
            self.assertEqual(sock.getsockopt(*option[1:3]), 0)
            rig.link.react = good
            self.assertEqual(rig.do("setsockopt", *option), 0)
            self.assertEqual(sock.getsockopt(*option[1:3]), 1)
