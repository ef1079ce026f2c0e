# SPDX-License-Identifier: MIT
"""
Receiving plaintext: every call and flag that TCP has.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
from functools import partial

from OpenSSL import SSL

from ssa.test.conformance.case import LIBC, RECORD, ClientRole, PairCase, ServerRole, Thread, epolled, inOrder, pattern
from ssa.test.conformance.case_sending import SIZES, splice
from ssa.test.conformance.peers import SECONDS


def pending(sock: socket.socket) -> int:
    """What FIONREAD says."""
    answer = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, answer)
    return answer[0]


class _Receiving(PairCase):
    def test_everySize(self) -> None:
        """What the peer sends arrives whole, whatever its size, with one MSG_WAITALL."""
        sock, peer = self.pair()
        for size in SIZES:
            with self.subTest(size=size):
                data = pattern(size, size)
                sending = Thread(partial(peer.send, data))
                self.assertEqual(sock.recv(size, socket.MSG_WAITALL), data)
                sending.result()

    def test_piecemeal(self) -> None:
        """Records may be read in pieces of any size."""
        sock, peer = self.pair()
        data = pattern(5 * RECORD)
        sending = Thread(lambda: peer.send(data))
        received = bytearray()
        for size in (1, 2, 3, 1000, RECORD - 1, RECORD, RECORD + 1):
            received += self.exactly(sock, size)
        received += self.exactly(sock, len(data) - len(received))
        sending.result()
        self.assertEqual(received, data)

    def test_oneByOne(self) -> None:
        """A peer that sends a record for each byte."""
        sock, peer = self.pair()
        data = pattern(1000)
        sending = Thread(inOrder(*(partial(peer.send, data[position : position + 1]) for position in range(len(data)))))
        self.assertEqual(self.exactly(sock, len(data)), data)
        sending.result()

    def test_emptyRecords(self) -> None:
        """Records without plaintext are no end of stream."""
        sock, peer = self.pair()
        sock.setblocking(False)
        self.assertRaises(BlockingIOError, sock.recv, 10)
        sock.setblocking(True)
        peer.send(b"x")
        self.assertEqual(sock.recv(10), b"x")

    def test_shortRead(self) -> None:
        """A recv returns what is there; it does not wait for all that was asked for."""
        sock, peer = self.pair()
        peer.send(b"abc")
        self.assertEqual(sock.recv(100_000), b"abc")

    def test_nothingAsked(self) -> None:
        """A recv of no bytes takes none."""
        sock, peer = self.pair()
        peer.send(b"abc")
        self.readable(sock)
        self.assertEqual(sock.recv(0), b"")
        self.assertEqual(sock.recv(10), b"abc")

    def test_peek(self) -> None:
        """MSG_PEEK shows and does not take, again and again."""
        sock, peer = self.pair()
        peer.send(b"abcdef")
        self.assertEqual(sock.recv(3, socket.MSG_PEEK), b"abc")
        self.eventually(lambda: sock.recv(100, socket.MSG_PEEK) == b"abcdef", "all six to be seen")
        self.assertEqual(sock.recv(2), b"ab")
        self.assertEqual(sock.recv(2, socket.MSG_PEEK), b"cd")
        self.assertEqual(sock.recv(100), b"cdef")
        self.assertRaises(BlockingIOError, sock.recv, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)

    def test_peekAcross(self) -> None:
        """MSG_PEEK with MSG_WAITALL sees over the borders of records."""
        sock, peer = self.pair()
        data = pattern(2 * RECORD)
        for start in range(0, len(data), 1000):
            peer.send(data[start : start + 1000])
        for size in (1, 999, 1000, 1001, 5000, RECORD, RECORD + 1, len(data)):
            self.assertEqual(sock.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL), data[:size])
        self.assertEqual(sock.recv(len(data), socket.MSG_WAITALL), data)

    def test_waitall(self) -> None:
        """MSG_WAITALL waits for all, or for the end."""
        sock, peer = self.pair()

        def send() -> None:
            for part in (b"ab", b"cd", b"ef"):
                time.sleep(0.05)
                peer.send(part)
            peer.closeNotify()

        sending = Thread(send)
        self.assertEqual(sock.recv(5, socket.MSG_WAITALL), b"abcde")
        self.assertEqual(sock.recv(5, socket.MSG_WAITALL), b"f")
        sending.result()

    def test_dontwait(self) -> None:
        """MSG_DONTWAIT: EAGAIN while there is nothing."""
        sock, peer = self.pair()
        self.assertRaises(BlockingIOError, sock.recv, 1, socket.MSG_DONTWAIT)
        peer.send(b"x")
        self.readable(sock)
        self.assertEqual(sock.recv(1, socket.MSG_DONTWAIT), b"x")
        self.assertRaises(BlockingIOError, sock.recv, 1, socket.MSG_DONTWAIT)

    def test_truncate(self) -> None:
        """MSG_TRUNC throws bytes of a stream away, as tcp(7) says."""
        sock, peer = self.pair()
        peer.send(b"abcdef")
        self.eventually(lambda: pending(sock) == 6, "six bytes")
        self.assertEqual(LIBC.recv(sock.fileno(), None, ctypes.c_size_t(4), socket.MSG_TRUNC), 4)
        self.assertEqual(sock.recv(10), b"ef")

    def test_manyBuffers(self) -> None:
        """recvmsg into as many buffers as the kernel takes."""
        sock, peer = self.pair()
        limit = os.sysconf("SC_IOV_MAX")
        sizes = [number % 31 for number in range(limit)]
        data = pattern(sum(sizes))
        sending = Thread(lambda: peer.send(data))
        buffers = [bytearray(size) for size in sizes]
        size, ancillary, flags, _ = sock.recvmsg_into(buffers, 0, socket.MSG_WAITALL)
        sending.result()
        self.assertEqual((size, ancillary, flags), (len(data), [], 0))
        self.assertEqual(b"".join(buffers), data)

    def test_readv(self) -> None:
        """read(2) and readv(2) are recv(2)."""
        sock, peer = self.pair()
        peer.send(b"abcdef")
        self.eventually(lambda: pending(sock) == 6, "six bytes")
        self.assertEqual(os.read(sock.fileno(), 2), b"ab")
        buffers = [bytearray(1), bytearray(0), bytearray(10)]
        self.assertEqual(os.readv(sock.fileno(), buffers), 4)
        self.assertEqual(buffers[0] + buffers[2][:3], b"cdef")

    def test_lowWater(self) -> None:
        """SO_RCVLOWAT: readable only from so many bytes on, or at the end."""
        sock, peer = self.pair()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
        peer.send(b"12345")
        self.eventually(lambda: pending(sock) == 5, "five bytes")
        self.assertEqual(select.select([sock], [], [], 0.05)[0], [])
        peer.send(b"67890")
        self.readable(sock)
        self.assertEqual(sock.recv(10), b"1234567890")
        peer.send(b"abc")
        peer.closeNotify()
        self.readable(sock)
        self.assertEqual(self.rest(sock), b"abc")

    def test_splice(self) -> None:
        """splice(2) into a pipe, and the end of stream through it."""
        sock, peer = self.pair()
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        for size in (1, 4096, RECORD + 1, 60_000):
            data = pattern(size, size)
            sending = Thread(partial(peer.send, data))
            received = b""
            while len(received) < size:
                received += os.read(reader, splice(sock.fileno(), writer, size - len(received)))
            sending.result()
            self.assertEqual(received, data)
        peer.closeNotify()
        self.assertEqual(splice(sock.fileno(), writer, 10), 0)

    def test_pending(self) -> None:
        """FIONREAD counts plaintext."""
        sock, peer = self.pair()
        self.assertEqual(pending(sock), 0)
        peer.send(b"x" * 100)
        self.eventually(lambda: pending(sock) == 100, "100 bytes")
        peer.send(b"y" * 50)
        self.eventually(lambda: pending(sock) == 150, "150 bytes")
        sock.recv(30)
        self.assertEqual(pending(sock), 120)

    def test_pollPending(self) -> None:
        """With data left after a short read, poll, select and epoll still say readable."""
        sock, peer = self.pair()
        peer.send(pattern(2 * RECORD))
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        with epolled(sock, select.EPOLLIN) as epoll:
            taken = 0
            while taken < 2 * RECORD:
                self.assertEqual(poll.poll(1000 * SECONDS), [(sock.fileno(), select.POLLIN)])
                self.assertEqual(epoll.poll(SECONDS), [(sock.fileno(), select.EPOLLIN)])
                self.assertEqual(select.select([sock], [], [], SECONDS)[0], [sock])
                taken += len(sock.recv(5000))
            self.assertEqual(poll.poll(0), [])
            self.assertEqual(epoll.poll(0), [])

    def test_edge(self) -> None:
        """Edge-triggered epoll: one event for what comes, no more until more comes."""
        sock, peer = self.pair()
        with epolled(sock, select.EPOLLIN | select.EPOLLET) as epoll:
            self.assertEqual(epoll.poll(0), [])
            for _ in range(10):
                peer.send(b"abc")
                self.assertEqual(epoll.poll(SECONDS), [(sock.fileno(), select.EPOLLIN)])
                self.assertEqual(epoll.poll(0), [])
                self.assertEqual(sock.recv(100, socket.MSG_DONTWAIT), b"abc")

    def test_timeout(self) -> None:
        """SO_RCVTIMEO: EAGAIN after its time; what came before is returned by MSG_WAITALL."""
        sock, peer = self.pair()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100_000))
        begun = time.monotonic()
        self.fails(errno.EAGAIN, sock.recv, 1)
        self.assertTrue(0.08 < time.monotonic() - begun < 3)
        peer.send(b"ab")
        self.readable(sock)
        self.assertEqual(sock.recv(3, socket.MSG_WAITALL), b"ab")

    def test_interrupted(self) -> None:
        """A signal gives EINTR, or the call goes on where SA_RESTART says so."""
        sock, peer = self.pair()
        previous = signal.signal(signal.SIGUSR1, lambda *_: None)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        buffer = ctypes.create_string_buffer(10)

        def disturb(thenSend: bool) -> None:
            time.sleep(0.1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if thenSend:
                time.sleep(0.1)
                peer.send(b"x")

        signal.siginterrupt(signal.SIGUSR1, True)
        disturbing = Thread(lambda: disturb(False))
        ctypes.set_errno(0)
        self.assertEqual(LIBC.recv(sock.fileno(), buffer, ctypes.c_size_t(10), 0), -1)
        self.assertEqual(ctypes.get_errno(), errno.EINTR)
        disturbing.result()
        signal.siginterrupt(signal.SIGUSR1, False)
        disturbing = Thread(lambda: disturb(True))
        self.assertEqual(LIBC.recv(sock.fileno(), buffer, ctypes.c_size_t(10), 0), 1)
        disturbing.result()

    def test_fault(self) -> None:
        """EFAULT for memory that is not there; nothing is lost."""
        sock, peer = self.pair()
        peer.send(b"abc")
        self.readable(sock)
        ctypes.set_errno(0)
        self.assertEqual(LIBC.recv(sock.fileno(), ctypes.c_void_p(1), ctypes.c_size_t(10), 0), -1)
        self.assertEqual(ctypes.get_errno(), errno.EFAULT)
        self.assertEqual(sock.recv(10), b"abc")

    def test_outOfBand(self) -> None:
        """MSG_OOB gives EOPNOTSUPP."""
        sock, _ = self.pair()
        self.fails(errno.EOPNOTSUPP, sock.recv, 1, socket.MSG_OOB)
        self.fails(errno.EOPNOTSUPP, sock.recvmsg, 1, 0, socket.MSG_OOB)

    def test_address(self) -> None:
        """recvfrom gives no address, as TCP."""
        sock, peer = self.pair()
        peer.send(b"abc")
        data, address = sock.recvfrom(10)
        self.assertEqual(data, b"abc")
        self.assertIn(address, (None, ("0.0.0.0", 0)))

    def test_bothWays(self) -> None:
        """Both directions at a time, with records of many sizes."""
        sock, peer = self.pair()
        there, back = pattern(3_000_000, 1), pattern(3_000_001, 2)
        received = Thread(lambda: self.exactly(sock, len(back)))
        sending = Thread(lambda: sock.sendall(there))
        # One thread for the peer: pyOpenSSL connections are not for two.
        peer.sock.setblocking(False)
        outgoing, incoming = memoryview(back), bytearray()

        while outgoing or len(incoming) < len(there):
            moved = False
            if outgoing:
                try:
                    outgoing = outgoing[peer.tls.send(outgoing[: 1 + len(outgoing) % 40_000]) :]
                    moved = True
                except (SSL.WantReadError, SSL.WantWriteError):
                    pass
            try:
                incoming += peer.tls.recv(50_000)
                moved = True
            except (SSL.WantReadError, SSL.WantWriteError):
                pass
            if not moved:
                select.select([peer.sock], [peer.sock] if outgoing else [], [], 1)
        sending.result()
        self.assertTrue(incoming == there)
        self.assertTrue(received.result() == back)


class ClientReceiving(ClientRole, _Receiving):
    """As client."""


class ServerReceiving(ServerRole, _Receiving):
    """As server."""


class ClientReceiving12(ClientRole, _Receiving):
    """As client, TLS 1.2."""

    version = 0x0303
