# SPDX-License-Identifier: MIT
"""
Much data, many connections, small steps.

SSA_CONFORMANCE_BYTES is how much the great transfer moves in each direction, 1 GiB unless it says otherwise.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any

from OpenSSL import SSL

from ssa.test.conformance.case import Thread, TLSCase, pattern
from ssa.test.conformance.peers import SECONDS, Peer, credential, echo
from ssa.test.conformance.runner import PATIENCE

TRANSFER = int(os.environ.get("SSA_CONFORMANCE_BYTES", 1 << 30))
MANY = int(os.environ.get("SSA_CONFORMANCE_CONNECTIONS", "1000"))

CHUNK = 1 << 18

PEER = """
import hashlib, socket, ssl, sys, select
certificate, size = sys.argv[1], int(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    raw, _ = listener.accept()
sock = context.wrap_socket(raw, server_side=True)
sock.setblocking(False)
block = memoryview(bytes(range(256)) * 1024)
out, into = hashlib.sha256(), hashlib.sha256()
sent = received = 0
piece = block[:0]
while received < size or sent < size:
    waits = []
    if sent < size:
        if not piece:
            piece = block[: min(len(block) - sent % 7919, size - sent)]
        try:
            done = sock.send(piece)
            out.update(piece[:done])
            sent += done
            piece = piece[done:]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            waits.append("w")
    if received < size:
        try:
            data = sock.recv(262144)
            assert data, "the stream ended early"
            into.update(data)
            received += len(data)
            continue
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            waits.append("r")
    if sent < size and "w" not in waits:
        continue
    select.select([sock], [sock] if "w" in waits else [], [], 5)
sock.setblocking(True)
print(out.hexdigest(), into.hexdigest(), flush=True)
sock.unwrap()
"""
"""
A peer in a process of its own: it sends and receives so many bytes at the same time and prints what their hashes are.
"""


class Transfer(TLSCase):
    """Both directions at full speed, compared by hash."""

    timeout = 60 + TRANSFER / (1 << 20) / 4

    def test_duplex(self) -> None:
        """What each side sends is what the other one gets."""
        import tempfile

        with tempfile.NamedTemporaryFile() as certificate:
            certificate.write(credential().keyPEM + credential().chainPEM)
            certificate.flush()
            child = subprocess.Popen(
                [sys.executable, "-c", PEER, certificate.name, str(TRANSFER)], stdout=subprocess.PIPE, stderr=None
            )
            self.addCleanup(child.wait)
            self.addCleanup(child.kill)
            assert child.stdout is not None
            self.addCleanup(child.stdout.close)
            port = int(child.stdout.readline())
            sock = self.clientSocket()
            sock.connect(("127.0.0.1", port))

        def send() -> str:
            source, digest, left = random.Random(1), hashlib.sha256(), TRANSFER
            blocks = [source.randbytes(CHUNK) for _ in range(8)]
            number = 0
            while left:
                block = blocks[number % 8][: min(left, CHUNK - number % 4093)]
                sock.sendall(block)
                digest.update(block)
                left -= len(block)
                number += 1
            sock.shutdown(socket.SHUT_WR)
            return digest.hexdigest()

        def receive() -> str:
            digest, buffer, total = hashlib.sha256(), bytearray(CHUNK), 0
            while size := sock.recv_into(buffer):
                digest.update(memoryview(buffer)[:size])
                total += size
            self.assertEqual(total, TRANSFER)
            return digest.hexdigest()

        begun = time.monotonic()
        sending, receiving = Thread(send), Thread(receive)
        sent = sending.result(self.timeout)
        received = receiving.result(self.timeout)
        theirs = child.stdout.readline().split()
        self.assertEqual([received.encode(), sent.encode()], theirs)
        rate = 2 * TRANSFER / (1 << 20) / (time.monotonic() - begun)
        print(f"duplex: {rate:.0f} MiB/s", flush=True)


class SmallSteps(TLSCase):
    """Bytes that come one by one, at every level."""

    def test_handshakeByBytes(self) -> None:
        """A client hello that comes byte by byte, and all else after it."""
        listener = self.listener()
        front = self.plainListener()
        # One by one, a handshake on the debug kernel takes longer than the daemon allows (HandshakeTimeout).
        step = 1 if PATIENCE <= 5 else 8

        def slow() -> None:
            outside = self.keep(front.accept()[0])
            inside = self.keep(socket.create_connection(listener.getsockname()))
            outside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                for source in select.select([outside, inside], [], [], SECONDS)[0]:
                    target = inside if source is outside else outside
                    data = source.recv(step)
                    if not data:
                        return
                    target.sendall(data)

        forwarding = Thread(slow)
        peer = self.peerTo(front.getsockname())
        sock = self.keep(listener.accept()[0])
        peer.send(b"byte by byte")
        self.assertEqual(self.exactly(sock, 12), b"byte by byte")
        sock.sendall(b"and back")
        self.assertEqual(peer.exactly(8), b"and back")
        peer.closeNotify()
        self.assertEqual(sock.recv(1), b"")
        sock.close()
        self.assertEqual(peer.rest(), b"")
        peer.close()
        forwarding.result()

    def inTime(self, begun: float, reference: float) -> None:
        """
        Say that nothing waited for a timer: 40 ms of a delayed acknowledgement, each time, would be far more than this.

        @param reference: seconds that as much takes between ordinary peers, on a machine that may be slow or busy.
        """
        limit = max(8.0, 12 * reference)
        self.assertLess(time.monotonic() - begun, limit, "some timer is in the way")

    def test_pingPong(self) -> None:
        """A thousand small questions and answers without waiting for anybody's timer."""
        address = self.server(echo).address
        peer, begun = self.peerTo(address), time.monotonic()
        for _ in range(100):
            peer.send(b"ping")
            self.assertEqual(peer.exactly(4), b"ping")
        reference = 10 * (time.monotonic() - begun)
        sock = self.clientSocket()
        sock.connect(address)
        begun = time.monotonic()
        for number in range(1000):
            question = struct.pack("I", number)
            sock.sendall(question)
            self.assertEqual(sock.recv(4), question)
        self.inTime(begun, reference)

    def test_shortConnections(self) -> None:
        """A hundred connections one after the other, quickly."""
        server = self.server(echo)
        begun = time.monotonic()
        for _ in range(10):
            peer = self.peerTo(server.address)
            peer.send(b"x")
            self.assertEqual(peer.exactly(1), b"x")
            peer.close()
        reference = 10 * (time.monotonic() - begun)
        begun = time.monotonic()
        for _ in range(100):
            sock = self.clientSocket()
            sock.connect(server.address)
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")
            sock.close()
        self.inTime(begun, reference)


class Many(TLSCase):
    """Many connections at a time."""

    timeout = 120.0

    def raiseLimit(self) -> None:
        """Have enough descriptors."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 4 * MANY + 200:
            if hard < 4 * MANY + 200:
                self.skipTest(f"{hard} descriptors are too few")
            resource.setrlimit(resource.RLIMIT_NOFILE, (4 * MANY + 200, hard))

    def test_clients(self) -> None:
        """A thousand client connections, all open, all used."""
        self.raiseLimit()
        server = Echoing(self)
        socks = []
        for start in range(0, MANY, 50):
            batch = [self.clientSocket(flags=socket.SOCK_NONBLOCK) for _ in range(min(50, MANY - start))]
            for sock in batch:
                self.assertEqual(sock.connect_ex(server.address), errno.EINPROGRESS)
            for sock in batch:
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
                self.assertTrue(poll.poll(2000 * SECONDS), "does not become writable")
                self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
            socks += batch
        self.converse(socks)
        server.stop()

    def test_servers(self) -> None:
        """A thousand accepted connections, all open, all used."""
        self.raiseLimit()
        listener = self.listener(backlog=512)
        peers: list[Peer] = []

        def dial() -> None:
            for _ in range(MANY):
                peers.append(self.peerTo(listener.getsockname()))

        dialling = Thread(dial)
        socks = []
        for _ in range(MANY):
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            self.assertTrue(poll.poll(2000 * SECONDS))
            socks.append(self.keep(listener.accept()[0]))
        dialling.result(6 * SECONDS)
        byName: dict[Any, Peer] = {peer.sock.getsockname(): peer for peer in peers}
        for number, sock in enumerate(socks):
            sock.sendall(pattern(1000, number))
        for number, sock in enumerate(socks):
            peer = byName[sock.getpeername()]
            self.assertEqual(peer.exactly(1000), pattern(1000, number))
            peer.send(pattern(500, number))
        for number, sock in enumerate(socks):
            self.assertEqual(self.exactly(sock, 500), pattern(500, number))
            sock.close()
        for peer in peers:
            self.assertEqual(peer.rest(), b"")

    def converse(self, socks: list[socket.socket]) -> None:
        """Something of its own on each, to and fro, twice."""
        for turn in range(2):
            for number, sock in enumerate(socks):
                sock.setblocking(True)
                sock.sendall(pattern(1000, number + turn))
            for number, sock in enumerate(socks):
                self.assertEqual(self.exactly(sock, 1000), pattern(1000, number + turn))
        for sock in socks:
            sock.close()


class Echoing:
    """An echo server for very many connections, in one thread."""

    def __init__(self, case: TLSCase) -> None:
        from ssa.test.conformance.peers import serverContext

        self._context = serverContext()
        self._listener = case.plainListener(backlog=1024)
        self.address = self._listener.getsockname()
        self._wake, self._stopped = (case.keep(each) for each in socket.socketpair())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._wake.send(b"x")
        self._thread.join(10)

    def _run(self) -> None:
        with select.epoll() as epoll:
            epoll.register(self._listener, select.EPOLLIN)
            epoll.register(self._stopped, select.EPOLLIN)
            connections: dict[int, tuple[socket.socket, SSL.Connection]] = {}
            while True:
                for descriptor, _ in epoll.poll():
                    if descriptor == self._stopped.fileno():
                        for sock, _ in connections.values():
                            sock.close()
                        return
                    if descriptor == self._listener.fileno():
                        sock, _ = self._listener.accept()
                        sock.setblocking(False)
                        connection = SSL.Connection(self._context, sock)
                        connection.set_accept_state()
                        connections[sock.fileno()] = (sock, connection)
                        epoll.register(sock, select.EPOLLIN)
                        continue
                    sock, connection = connections[descriptor]
                    try:
                        while data := connection.recv(1 << 16):
                            connection.send(data)
                    except SSL.WantReadError:
                        continue
                    except (SSL.Error, OSError):
                        epoll.unregister(sock)
                        del connections[descriptor]
                        sock.close()
