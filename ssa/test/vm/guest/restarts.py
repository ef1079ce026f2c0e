# SPDX-License-Identifier: MIT
"""The daemon dies, is stopped and started again: what programs see that are in the middle of something."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from errno import ECONNRESET, EINPROGRESS, ENETDOWN, EPIPE
from functools import partial
from typing import Any

from ssa.api import IPPROTO_TLS, UPGRADE_FORMAT, Option, Role
from ssa.test.conformance.case import Thread, text, value
from ssa.test.conformance.case_names import hostAddress, rawConnect
from ssa.test.conformance.peers import Peer
from ssa.test.vm.guest.case import SECONDS, SLOWER, GuestCase, about, run, setOption
from ssa.test.vm.guest.load import Load

AT_ONCE = 5.0 * SLOWER
"""Seconds within which a call that waited has ended, in an emulated machine with other things to do."""


class Pending(GuestCase):
    """Calls that wait when the daemon ends, each in a thread of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.calls: dict[str, tuple[int, Thread]] = {}
        self.addCleanup(self.daemon.ensure)

    def waits(self, what: str, number: int, call: Callable[..., Any], *arguments: Any) -> None:
        """A call that is going to fail with an errno."""
        self.calls[what] = number, Thread(lambda: self.fails(number, call, *arguments))

    def raises(self, call: Callable[..., int], *arguments: Any) -> None:
        """Raise what a C function returns as its error."""
        number = call(*arguments)
        if number:
            raise OSError(number, os.strerror(number))

    def endAtOnce(self, end: Callable[[], None]) -> None:
        """All calls wait; then the daemon ends, and all have failed as they should."""
        time.sleep(1.0)
        for what, (_, thread) in self.calls.items():
            self.assertTrue(thread.is_alive(), f"{what} does not wait")
        end()
        begun = time.monotonic()
        for what, (_, thread) in self.calls.items():
            with about(what):
                try:
                    thread.result(max(0.1, begun + AT_ONCE - time.monotonic()))
                except TimeoutError:
                    self.fail("it still waits")
        self.newSockets()

    def newSockets(self) -> None:
        """New sockets fail, at once."""
        begun = time.monotonic()
        for family in (socket.AF_INET, socket.AF_INET6):
            self.fails(ENETDOWN, socket.socket, family, socket.SOCK_STREAM, IPPROTO_TLS)
        self.assertLess(time.monotonic() - begun, 1.0)

    def works(self) -> None:
        """TLS sockets work, in this process, which has seen the daemon's end."""
        client, server = self.bothEnds()
        client.sendall(b"x" * 50_000)
        self.assertEqual(self.exactly(server, 50_000), b"x" * 50_000)
        client.close()
        self.assertEqual(server.recv(1), b"")

    def handshakes(self, end: Callable[[], None]) -> None:
        """Attempts and listeners."""
        silent = self.plainListener().getsockname()
        self.waits("connect", ENETDOWN, self.clientSocket().connect, silent)
        named = self.clientSocket()
        named, address = self.clientSocket(), hostAddress("127.0.0.1", silent[1])
        self.waits("connect to a name", ENETDOWN, self.raises, rawConnect, named, address)
        tcp = self.keep(socket.create_connection(silent))
        upgrade = struct.pack(UPGRADE_FORMAT, tcp.fileno(), Role.CLIENT)
        self.waits("TLS_UPGRADE", ENETDOWN, setOption, self.clientSocket(), Option.TLS_UPGRADE, upgrade)
        listener, polled = self.listener(), self.listener()
        self.waits("accept", ENETDOWN, listener.accept)
        watched = self.clientSocket()
        watched.setblocking(False)
        self.fails(EINPROGRESS, watched.connect, silent)
        poll = select.poll()
        for sock in (polled, watched):
            poll.register(sock, select.POLLIN | select.POLLOUT)
        fresh = self.clientSocket()
        half = self.keep(socket.create_connection(listener.getsockname()))
        half.settimeout(SECONDS)
        self.assertEqual(poll.poll(0), [])
        self.endAtOnce(end)
        events = dict(poll.poll(AT_ONCE * 1000))
        for sock, what in ((polled, "a listener"), (watched, "an attempt")):
            with about(what):
                self.assertTrue(events.get(sock.fileno(), 0) & select.POLLERR, "poll does not tell the error")
                self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), ENETDOWN)
        self.fails(ENETDOWN, polled.accept)
        self.fails(ENETDOWN, fresh.connect, silent)
        self.fails(ENETDOWN, fresh.setsockopt, IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, b"server.example")
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(half.recv(1), b"", "a client in the middle of its handshake is let go")
        with self.assertRaises((ConnectionError, TimeoutError)) as refused:
            late = socket.create_connection(polled.getsockname(), AT_ONCE)
            self.keep(late)
            late.recv(1)
            raise ConnectionResetError("ended")
        self.assertNotIsInstance(refused.exception, TimeoutError, "a client that comes later waits for nobody")
        address = listener.getsockname()
        listener.close()
        self.daemon.ensure()
        self.works()
        self.fails(ENETDOWN, fresh.connect, silent)
        self.assertEqual(self.listener(address).getsockname(), address, "the port is free")

    def test_handshakesCrash(self) -> None:
        """The daemon is killed."""
        self.handshakes(self.daemon.crash)

    def test_handshakesStop(self) -> None:
        """The daemon is stopped, as init does."""
        self.handshakes(self.daemon.stop)

    def test_options(self) -> None:
        """Calls that wait for the answer of a daemon that does nothing, and is then killed."""
        sockets = [self.clientSocket() for _ in range(3)]
        server = self.tlsSocket()
        self.certify(server)
        server.bind(("127.0.0.1", 0))
        self.daemon.pause()
        self.waits("setsockopt", ENETDOWN, setOption, sockets[0], Option.TLS_REMOTE_HOSTNAME, b"a.example")
        self.waits("getsockopt", ENETDOWN, value, sockets[1], Option.TLS_REMOTE_HOSTNAME)
        self.waits("listen", ENETDOWN, server.listen, 1)
        self.waits("connect", ENETDOWN, sockets[2].connect, self.plainListener().getsockname())
        fresh = self.tlsSocket()
        self.endAtOnce(self.daemon.crash)
        self.fails(ENETDOWN, fresh.getsockopt, IPPROTO_TLS, Option.TLS_ID, 8)
        self.daemon.ensure()
        self.works()

    def connections(self, end: Callable[[], None]) -> None:
        """Established connections, of both roles: data that has come, then an error, never a clean end."""
        peers: list[tuple[str, socket.socket, Peer]] = []
        for what in ("waiting", "with data", "sending", "polled", "ended"):
            for role, pair in (("client", self.connected), ("server", self.accepted)):
                peers.append((f"{role}, {what}", *pair()))
        polled = select.epoll()
        self.addCleanup(polled.close)
        for what, sock, peer in peers:
            self.assertEqual(text(sock, Option.TLS_DATA_PATH), "relay", what)
            if what.endswith("waiting"):
                self.waits(what, ECONNRESET, sock.recv, 1)
            elif what.endswith("with data"):
                peer.send(b"data")
                self.assertEqual(sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL), b"data")
            elif what.endswith("sending"):
                self.waits(what, EPIPE, self.fill, sock)
            elif what.endswith("polled"):
                polled.register(sock, select.EPOLLIN | select.EPOLLET)
            else:
                peer.closeNotify()
                self.assertEqual(sock.recv(1), b"")
        self.endAtOnce(end)
        self.eventually(lambda: len(polled.poll(0.1)) == 2, "both polled ones are told", AT_ONCE)
        for what, sock, _ in peers:
            with about(what):
                if what.endswith("with data"):
                    self.assertEqual(sock.recv(100), b"data")
                if what.endswith("ended"):
                    self.assertEqual(sock.recv(1), b"", "an end that the peer has said stays a clean one")
                else:
                    self.fails(ECONNRESET, sock.recv, 1)
                    self.fails(ECONNRESET, sock.recv, 1)
                    self.fails(EPIPE, sock.send, b"x")
        self.daemon.ensure()
        self.works()

    def fill(self, sock: socket.socket) -> None:
        """Send to a peer that does not read."""
        try:
            while True:
                sock.sendall(bytes(1 << 18))
        except ConnectionResetError as failure:
            # There was something that the daemon had not read; the next call says what TCP's would.
            raise BrokenPipeError(EPIPE, os.strerror(EPIPE)) from failure

    def test_connectionsCrash(self) -> None:
        """The daemon is killed."""
        self.connections(self.daemon.crash)

    def test_connectionsStop(self) -> None:
        """The daemon is stopped, as init does."""
        self.connections(self.daemon.stop)


class UnderLoad(GuestCase):
    """Programs that go on making connections while the daemon comes and goes."""

    timeout = 400.0

    def moves(self, load: Load, what: str, times: int = 3) -> None:
        """Say that every worker succeeds some more times."""
        before = load.done()
        deadline = time.monotonic() + 2 * SECONDS
        while not all(now >= then + times for now, then in zip(load.done(), before, strict=True)):
            if time.monotonic() > deadline:
                self.fail(f"{what}: {before} -> {load.done()}, {dict(load.broken)}, {load.wrong[:5]}")
            time.sleep(0.05)

    def test_comesAndGoes(self) -> None:
        """Killed, stopped, killed while it does nothing: every call ends, and the same processes go on with the next daemon."""
        load = Load(6, 3)
        self.addCleanup(load.close)
        self.addCleanup(self.daemon.ensure)
        self.moves(load, "at first")
        self.assertEqual(load.broken, {}, "something is broken although the daemon lives")
        for what, end in (("killed", self.daemon.crash), ("stopped", self.daemon.stop), ("killed in its sleep", self.asleep)):
            with about(what):
                end()
                begun = time.monotonic()
                for worker in load.workers:
                    self.eventually(partial(worker.hasBegunSince, begun), f"the turn of {worker.name} ends", AT_ONCE)
                self.fails(ENETDOWN, self.tlsSocket)
                self.daemon.start()
                self.moves(load, "after the start")
                quiet = load.broken
                self.moves(load, "with the new daemon")
                self.assertEqual(load.broken - quiet, {}, "something is broken although the daemon lives")
        print(f"{sum(load.done())} connections; {dict(load.broken)}", flush=True)
        self.assertEqual(load.wrong, [])

    def asleep(self) -> None:
        """It does nothing for a while, and is killed then."""
        self.daemon.pause()
        time.sleep(1.0)
        self.daemon.crash()


if __name__ == "__main__":
    sys.exit(run())
