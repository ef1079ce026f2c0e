# SPDX-License-Identifier: MIT
"""
A TLS socket never carries plaintext to the network, whatever a program does at the same time.

The races are in L{ssa.test.racing}; here are the ends of the connections: a TLS server, and an ordinary listener that keeps
all that arrives.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ssa.test import racing
from ssa.test.pki import CA
from ssa.test.processes import children, needWay, run, running, underSSA

RACE_SECONDS = 1.0
"""How long each race lasts."""

_GREETING = b"I am no TLS socket"
_KEPT = 4096
"""Bytes of each connection that are kept: the marker is looked for in the first ones."""


class Listener:
    """
    Accepts connections on the loopback interface, in a thread of its own.

    @ivar port: where.
    @ivar received: what each connection that has ended carried.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = int(self._listener.getsockname()[1])
        self.received: list[bytes] = []
        self._wakeup, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all; C{received} is complete then."""
        self._wake.close()
        self._thread.join()
        self._listener.close()
        self._wakeup.close()

    def _serve(self) -> None:
        raise NotImplementedError


class Sniffer(Listener):
    """Keeps what arrives as it is, and hangs up on what looks like TLS after the first bytes."""

    def _serve(self) -> None:
        kept: dict[socket.socket, bytes] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            stopping = False
            # After the stop: what is still in the queues is read, up to a moment without anything.
            while (events := selector.select(0.3 if stopping else None)) or not stopping:
                for key, _ in events:
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock is self._wakeup:
                        stopping = True
                        selector.unregister(sock)
                    elif sock is self._listener:
                        connection, _ = sock.accept()
                        kept[connection] = b""
                        selector.register(connection, selectors.EVENT_READ)
                    elif not self._read(sock, kept):
                        selector.unregister(sock)
                        self.received.append(kept.pop(sock))
                        sock.close()
        for sock, data in kept.items():
            self.received.append(data)
            sock.close()

    def _read(self, sock: socket.socket, kept: dict[socket.socket, bytes]) -> bool:
        try:
            data = sock.recv(65536)
        except OSError:
            return False
        kept[sock] = (kept[sock] + data)[:_KEPT]
        return bool(data) and not kept[sock].startswith(b"\x16\x03")


class Server(Listener):
    """A TLS server for C{localhost} that keeps what was decrypted."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """
        @param context: with its certificate.
        """
        self._context = context
        super().__init__()

    def _serve(self) -> None:
        threads: list[threading.Thread] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while self._wakeup not in [key.fileobj for key, _ in selector.select()]:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._talk, args=(connection,), daemon=True)
                thread.start()
                threads.append(thread)
        for thread in threads:
            thread.join(1)

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        data = b""
        with connection, contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as tls:
            try:
                while more := tls.recv(65536):
                    data = (data + more)[:_KEPT]
            finally:
                self.received.append(data)


class _RaceTests(SynchronousTestCase):
    """The races, in one way of interception."""

    way = "auto"

    def setUp(self) -> None:
        needWay(self.way)
        folder = Path(tempfile.mkdtemp(dir=os.getcwd()))
        authority = CA()
        credential = authority.issue(["localhost"])
        self.authorities = str(folder / "ca.pem")
        for name, content in (("ca", authority.pem), ("chain", credential.chainPEM), ("key", credential.keyPEM)):
            (folder / f"{name}.pem").write_bytes(content)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        self.server = Server(context)
        self.addCleanup(self.server.stop)
        self.sniffer = Sniffer()
        self.addCleanup(self.sniffer.stop)

    def race(self, method: Callable[[racing.Race], None], arrives: bool = True) -> None:
        """
        Run a race, and look at what has arrived.

        @param arrives: whether markers must have reached the TLS server: else the race would prove nothing.
        """
        # The sniffer does see what ordinary sockets send.
        with socket.create_connection(("127.0.0.1", self.sniffer.port)) as sock:
            sock.sendall(_GREETING)
        done = run(
            *underSSA(
                sys.executable, racing.__file__, method.__name__, str(self.sniffer.port), str(self.server.port),
                self.authorities, str(RACE_SECONDS), str(arrives), way=self.way,
            )
        )  # fmt: skip
        self.sniffer.stop()
        self.sniffer.stop = lambda: None  # type: ignore[method-assign]
        self.server.stop()
        self.server.stop = lambda: None  # type: ignore[method-assign]
        leaked = [data for data in self.sniffer.received if racing.MARKER[:8] in data]
        self.assertEqual(leaked, [], done.stdout)
        self.assertIn(_GREETING, self.sniffer.received)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        counts = json.loads(done.stdout.splitlines()[-1])
        self.assertGreater(counts["rounds"], 3)
        if arrives:
            self.assertTrue(any(racing.MARKER in data for data in self.server.received), counts)

    def test_tlsOverOrdinary(self) -> None:
        """dup2 puts a TLS socket over an ordinary one."""
        self.race(racing.Race.tlsOverOrdinary, arrives=False)

    def test_ordinaryOverTLS(self) -> None:
        """dup2 puts an ordinary socket over a TLS one."""
        self.race(racing.Race.ordinaryOverTLS)

    def test_sockaddrFlipping(self) -> None:
        """Another thread changes the address."""
        self.race(racing.Race.sockaddrFlipping)

    def test_closeAndReuse(self) -> None:
        """The number is closed and opened again."""
        self.race(racing.Race.closeAndReuse, arrives=False)

    def test_forkDuringConnect(self) -> None:
        """Children with the same socket."""
        self.race(racing.Race.forkDuringConnect)

    def test_setsockoptDuringConnect(self) -> None:
        """Another thread changes the options."""
        self.race(racing.Race.setsockoptDuringConnect)


    def test_supervisorStopped(self) -> None:
        """
        A supervisor that is stopped in the middle of giving a descriptor does not make socket(2) return another file's number.
        """
        script = f"import runpy; runpy.run_path({racing.__file__!r})['sockets']({RACE_SECONDS})"
        with running(*underSSA(sys.executable, "-c", script, way=self.way)) as program:
            program.expect("^begin$")
            supervisor = children(program.process.pid)[0]
            ended = threading.Event()
            results: list[str] = []

            def wait() -> None:
                results.append(program.expect(r"^end (.*)$").group(1))
                ended.set()

            waiting = threading.Thread(target=wait)
            waiting.start()
            while not ended.wait(0.0002) and waiting.is_alive():
                os.kill(supervisor, signal.SIGSTOP)
                os.kill(supervisor, signal.SIGCONT)
            waiting.join()
        self.assertEqual(results, ["[]"])


    def test_programInterrupted(self) -> None:
        """A program that signals interrupt again and again in socket(2) does not fill its table with lost descriptors."""
        script = f"import runpy; runpy.run_path({racing.__file__!r})['interrupted']({2 * RACE_SECONDS})"
        done = run(*underSSA(sys.executable, "-c", script, way=self.way))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        # One waits for the next call.  Others are the kernel's: where the signal wins the race for the notification's lock
        # against the answer, the answer is reported as taken, and yet the call starts again.  Without the care that is
        # tested here there are hundreds: one for each signal that comes between the two steps.
        self.assertLess(int(done.stdout), 16)


class RootRaceTests(_RaceTests):
    """The races with root's private namespaces."""

    way = "root"


class UserNamespaceRaceTests(_RaceTests):
    """The races with namespaces inside of a user namespace."""

    way = "user-namespace"


class LoopbackRaceTests(_RaceTests):
    """The races without namespaces."""

    way = "loopback"


del _RaceTests  # trial would run it by itself
