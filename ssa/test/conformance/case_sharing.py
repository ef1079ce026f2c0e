# SPDX-License-Identifier: MIT
"""
Descriptors that several hold: dup, fork, exec, SCM_RIGHTS and threads, at every point of a socket's life.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import Thread, TLSCase, inOrder, text
from ssa.test.conformance.peers import NAME, SECONDS, echo
from ssa.test.pki import testCA

PROGRAM = f"""
import errno, select, socket, sys
what, descriptor, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock = socket.socket(fileno=descriptor)
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == {IPPROTO_TLS}
if what == "connect":
    sock.connect(("127.0.0.1", port))
elif what == "finish":
    assert select.select([], [sock], [], {SECONDS})[1]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    sock.setblocking(True)
elif what == "listen":
    sock.listen()
    sock = sock.accept()[0]
elif what == "accept":
    sock = sock.accept()[0]
sock.getpeername()
sock.sendall(b"ping")
data = b""
while len(data) < 4:
    data += sock.recv(4 - len(data))
assert data == b"ping", data
assert sock.getsockopt({IPPROTO_TLS}, {int(Option.TLS_VERSION_CONN)}) == 0x0304
sock.shutdown(socket.SHUT_WR)
assert sock.recv(1) == b""
"""
"""What an executed program does with a descriptor that it inherits."""


class _Shared(TLSCase):
    def talk(self, sock: socket.socket) -> None:
        """Say that it is connected to L{echo}."""
        sock.setblocking(True)
        sock.sendall(b"ping")
        self.assertEqual(self.exactly(sock, 4), b"ping")

    def execute(self, what: str, sock: socket.socket, port: int = 0) -> None:
        """Run L{PROGRAM} with a descriptor."""
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, what, str(sock.fileno()), str(port)],
            pass_fds=[sock.fileno()],
            timeout=1.5 * SECONDS,
            check=False,
            capture_output=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode())


class Clients(_Shared):
    """Sockets that connect."""

    def test_dupNew(self) -> None:
        """A duplicate made before connect is the same socket."""
        sock = self.clientSocket()
        copy = self.keep(sock.dup())
        copy.connect(self.server(echo).address)
        self.assertEqual(sock.getpeername(), copy.getpeername())
        copy.close()
        self.talk(sock)

    def test_dupClosedOriginal(self) -> None:
        """The socket lives as long as any descriptor."""
        sock = self.clientSocket()
        sock.connect(self.server(echo).address)
        copy = self.keep(sock.dup())
        sock.close()
        self.talk(copy)

    def test_lastClose(self) -> None:
        """Only the last close ends the connection."""
        sock, peer = self.connected()
        copy = self.keep(sock.dup())
        sock.close()
        peer.sock.settimeout(0.1)
        peer.send(b"x")
        self.assertEqual(copy.recv(1), b"x")
        peer.sock.settimeout(None)
        copy.close()
        self.assertEqual(peer.rest(), b"")

    def test_dup2(self) -> None:
        """dup2 onto a number, onto an ordinary socket too."""
        server = self.server(echo)
        ordinary = self.keep(socket.socket())
        sock = self.clientSocket()
        os.dup2(sock.fileno(), ordinary.fileno())
        sock.close()
        ordinary.connect(server.address)
        self.assertEqual(ordinary.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), IPPROTO_TLS)
        self.talk(ordinary)

    def test_numberReused(self) -> None:
        """A number that a TLS socket had is an ordinary one afterwards, and the other way round."""
        listener = self.plainListener()
        for _ in range(20):
            sock = self.clientSocket()
            number = sock.fileno()
            sock.close()
            ordinary = self.keep(socket.socket())
            self.assertEqual(ordinary.fileno(), number)
            ordinary.connect(listener.getsockname())
            accepted = self.keep(listener.accept()[0])
            ordinary.sendall(b"plain")
            self.assertEqual(accepted.recv(10), b"plain")
            self.assertEqual(ordinary.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), socket.IPPROTO_TCP)
            ordinary.close()

    def test_forkNew(self) -> None:
        """Made by the parent, connected by the child, used by both."""
        server = self.server(echo)
        sock = self.clientSocket()
        self.reap(self.child(inOrder(lambda: sock.connect(server.address), lambda: self.talk(sock))))
        self.assertEqual(sock.getpeername(), server.address)
        self.talk(sock)

    def test_forkPending(self) -> None:
        """Connecting in the parent, finished in the child."""
        server = self.server(echo, delay=0.2)
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        sock.connect_ex(server.address)

        def finish() -> None:
            self.assertEqual(sock.connect_ex(server.address), errno.EALREADY)
            self.writable(sock)
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
            self.talk(sock)

        self.reap(self.child(finish))
        self.talk(sock)

    def test_forkPendingParentCloses(self) -> None:
        """The parent closes while it is pending; the child has it for itself."""
        server = self.server(echo, delay=0.2)
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        sock.connect_ex(server.address)

        def finish() -> None:
            self.writable(sock)
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
            self.talk(sock)

        pid = self.child(finish)
        sock.close()
        self.reap(pid)

    def test_forkConnected(self) -> None:
        """A child's end does not end the connection."""
        sock, peer = self.connected()
        self.reap(self.child(lambda: sock.sendall(b"from the child")))
        self.assertEqual(peer.exactly(14), b"from the child")
        sock.sendall(b"from the parent")
        self.assertEqual(peer.exactly(15), b"from the parent")
        sock.close()
        self.assertEqual(peer.rest(), b"")

    def test_forkOptions(self) -> None:
        """Options set by a child are the socket's."""
        sock = self.tlsSocket()

        def configure() -> None:
            sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
            sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())

        self.reap(self.child(configure))
        sock.connect(self.server(echo).address)
        self.talk(sock)

    def test_grandchildren(self) -> None:
        """Orphans keep their sockets."""
        sock, peer = self.connected()

        def child() -> None:
            if os.fork() == 0:
                time.sleep(0.1)
                sock.sendall(b"orphan")
                os._exit(0)

        self.reap(self.child(child))
        sock.close()
        self.assertEqual(peer.rest(), b"orphan")

    def test_execNew(self) -> None:
        """A new socket, connected by an executed program."""
        server = self.server(echo)
        self.execute("connect", self.clientSocket(), server.address[1])

    def test_execPending(self) -> None:
        """A connecting socket, finished by an executed program."""
        server = self.server(echo, delay=0.3)
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        sock.connect_ex(server.address)
        self.execute("finish", sock)

    def test_execConnected(self) -> None:
        """A connected socket, used by an executed program."""
        sock = self.clientSocket()
        sock.connect(self.server(echo).address)
        self.execute("use", sock)

    def test_shell(self) -> None:
        """Programs that know nothing of sockets have one as standard input and output."""
        sock, peer = self.connected()
        child = subprocess.Popen(["cat"], stdin=sock.fileno(), stdout=sock.fileno())
        sock.close()
        peer.send(b"through the cat")
        self.assertEqual(peer.exactly(15), b"through the cat")
        peer.closeNotify()
        self.assertEqual(peer.rest(), b"")
        self.assertEqual(child.wait(5), 0)

    def test_closeOnExec(self) -> None:
        """A descriptor with FD_CLOEXEC does not outlive exec: the connection ends."""
        sock, peer = self.connected()
        pid = self.child(inOrder(lambda: sock.set_inheritable(False), lambda: os.execvp("sleep", ["sleep", "5"])))
        sock.close()
        self.assertEqual(peer.rest(), b"")
        os.kill(pid, 9)
        self.reap(pid, -9)

    def test_killed(self) -> None:
        """A killed process's connection ends; what it had sent arrives."""
        sock, peer = self.connected()

        def child() -> None:
            sock.sendall(b"last")
            time.sleep(20)

        pid = self.child(child)
        sock.close()
        self.assertEqual(peer.exactly(4), b"last")
        os.kill(pid, 9)
        self.reap(pid, -9)
        self.assertEqual(peer.rest(), b"")


class Passed(_Shared):
    """SCM_RIGHTS."""

    def setUp(self) -> None:
        self.near, self.far = (self.keep(each) for each in socket.socketpair())

    def receiver(self, call: Callable[[socket.socket], object]) -> int:
        """A child that gets a descriptor."""

        def child() -> None:
            _, ancillary, _, _ = self.far.recvmsg(1, socket.CMSG_SPACE(4))
            numbers = array.array("i")
            numbers.frombytes(ancillary[0][2][:4])
            call(socket.socket(fileno=numbers[0]))

        return self.child(child)

    def give(self, sock: socket.socket) -> None:
        """Pass a descriptor and close it."""
        rights: Any = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        self.near.sendmsg([b"x"], rights)
        sock.close()

    def test_new(self) -> None:
        """A new socket, connected by who receives it."""
        server = self.server(echo)

        def use(sock: socket.socket) -> None:
            sock.connect(server.address)
            self.talk(sock)

        pid = self.receiver(use)
        self.give(self.clientSocket())
        self.reap(pid)

    def test_pending(self) -> None:
        """A connecting socket."""
        server = self.server(echo, delay=0.3)

        def finish(sock: socket.socket) -> None:
            self.assertEqual(sock.connect_ex(server.address), errno.EALREADY)
            self.writable(sock)
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
            self.talk(sock)

        pid = self.receiver(finish)
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        sock.connect_ex(server.address)
        self.give(sock)
        self.reap(pid)

    def test_connected(self) -> None:
        """A connected socket, its names and options."""
        server = self.server(echo)

        def use(sock: socket.socket) -> None:
            self.assertEqual(sock.getpeername(), server.address)
            self.assertEqual(sock.getsockopt(IPPROTO_TLS, Option.TLS_VERSION_CONN), 0x0304)
            self.talk(sock)

        pid = self.receiver(use)
        sock = self.clientSocket()
        sock.connect(server.address)
        self.give(sock)
        self.reap(pid)

    def test_options(self) -> None:
        """Options that were set before hold for who receives it, who sets more, of every level; phases are the socket's."""
        server = self.server(echo)

        def use(sock: socket.socket) -> None:
            self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
            sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.fails(errno.EINVAL, sock.setsockopt, IPPROTO_TLS, Option.TLS_ALPN, b",")
            self.assertIn("TLS_ALPN", self.tlsError(sock))

        sock = self.clientSocket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        pid = self.receiver(use)
        self.give(self.keep(sock.dup()))
        self.reap(pid)
        self.assertEqual(text(sock, Option.TLS_ALPN), "h2")
        self.assertIn("TLS_ALPN", self.tlsError(sock))
        self.assertNotEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 0)
        sock.connect(server.address)
        self.assertEqual(self.tlsError(sock), "")

        def late(sock: socket.socket) -> None:
            self.fails(errno.EISCONN, sock.setsockopt, IPPROTO_TLS, Option.TLS_ALPN, b"h2")
            self.talk(sock)

        pid = self.receiver(late)
        self.give(sock)
        self.reap(pid)

    def test_flying(self) -> None:
        """Nobody but the message in flight holds the socket: it lives."""
        sock, peer = self.connected()
        self.give(sock)
        time.sleep(0.1)
        peer.send(b"x")

        def use(sock: socket.socket) -> None:
            self.assertEqual(sock.recv(1), b"x")
            sock.sendall(b"y")

        self.reap(self.receiver(use))
        self.assertEqual(peer.rest(), b"y")

    def test_listener(self) -> None:
        """A listener."""
        listener = self.listener()
        address = listener.getsockname()

        def serve(sock: socket.socket) -> None:
            connection = sock.accept()[0]
            connection.sendall(b"served")

        pid = self.receiver(serve)
        self.give(listener)
        self.assertEqual(self.peerTo(address).rest(), b"served")
        self.reap(pid)

    def test_accepted(self) -> None:
        """An accepted socket."""
        sock, peer = self.accepted()
        pid = self.receiver(lambda given: given.sendall(given.getpeername()[0].encode()))
        self.give(sock)
        self.assertEqual(peer.rest(), b"127.0.0.1")
        self.reap(pid)


class Servers(_Shared):
    """Sockets that listen."""

    def test_execBound(self) -> None:
        """Bound here, listening in an executed program."""
        sock = self.tlsSocket()
        self.certify(sock)
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
        executing = Thread(lambda: self.execute("listen", sock))
        self.eventually(lambda: socket.socket().connect_ex(address) == 0, "the listener")
        echo(self.peerTo(address))
        executing.result()

    def test_execListening(self) -> None:
        """Listening here, accepting in an executed program: socket activation."""
        listener = self.listener()
        executing = Thread(lambda: self.execute("accept", listener))
        echo(self.peerTo(listener.getsockname()))
        executing.result()

    def test_execAccepted(self) -> None:
        """Accepted here, used by an executed program, as inetd does."""
        sock, peer = self.accepted()
        executing = Thread(lambda: self.execute("use", sock))
        echo(peer)
        executing.result()

    def test_forking(self) -> None:
        """A child for each connection."""
        listener = self.listener()
        for number in range(5):
            peer = self.peerTo(listener.getsockname())
            sock = listener.accept()[0]
            pid = self.child(partial(self._answer, sock))
            sock.close()
            peer.send(bytes([number]))
            self.assertEqual(peer.rest(), bytes([number]))
            self.reap(pid)

    def _answer(self, sock: socket.socket) -> None:
        sock.sendall(sock.recv(100))

    def test_dupListener(self) -> None:
        """A listener lives as long as any descriptor, and a duplicate accepts."""
        listener = self.listener()
        address = listener.getsockname()
        copy = self.keep(listener.dup())
        listener.close()
        peer = self.peerTo(address)
        sock = self.keep(copy.accept()[0])
        sock.sendall(b"x")
        self.assertEqual(peer.exactly(1), b"x")


class Threads(_Shared):
    """One process, many threads."""

    def test_readerAndWriter(self) -> None:
        """One thread reads while another writes."""
        sock = self.clientSocket()
        sock.connect(self.server(echo).address)
        data = os.urandom(2_000_000)
        reading = Thread(lambda: self.exactly(sock, len(data)))
        sock.sendall(data)
        self.assertTrue(reading.result() == data)

    def test_manyReaders(self) -> None:
        """Several threads read: each byte goes to one."""
        sock, peer = self.connected()
        threads = [Thread(lambda: self.rest(sock)) for _ in range(8)]
        data = bytes(range(256)) * 400
        peer.send(data)
        peer.closeNotify()
        received = b"".join(thread.result() for thread in threads)
        self.assertEqual(sorted(received), sorted(data))

    def test_connectTwice(self) -> None:
        """Two threads connect the same socket: one connection."""
        server = self.server(echo, delay=0.2)
        sock = self.clientSocket()
        threads = [Thread(lambda: sock.connect_ex(server.address)) for _ in range(2)]
        numbers = sorted(thread.result() for thread in threads)
        self.assertEqual(numbers[0], 0)
        self.assertIn(numbers[1], (0, errno.EALREADY, errno.EISCONN))
        self.talk(sock)

    def test_closeWhileReading(self) -> None:
        """Another thread's close does not wake a reader; shutdown does (as TCP)."""
        sock, peer = self.connected()
        descriptor = os.dup(sock.fileno())
        reading = Thread(lambda: os.read(descriptor, 10))
        time.sleep(0.05)
        os.close(descriptor)
        peer.send(b"x")
        self.assertEqual(reading.result(), b"x")
