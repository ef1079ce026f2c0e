# SPDX-License-Identifier: MIT
"""
Sending plaintext: every call and flag that TCP has.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from functools import partial

from ssa.test.conformance.case import LIBC, RECORD, ClientRole, PairCase, ServerRole, Thread, pattern

SIZES = sorted(
    {1, 2, 3, RECORD - 1, RECORD, RECORD + 1, 2 * RECORD - 1, 2 * RECORD, 2 * RECORD + 1, 100_000}
    | {1 << power for power in range(2, 20)}
    | {(1 << power) + 1 for power in (8, 12, 16)}
)
MSG_ZEROCOPY = 0x4000000
MSG_FASTOPEN = 0x20000000
MSG_MORE = 0x8000


class _Sending(PairCase):
    def test_everySize(self) -> None:
        """What is sent in one call arrives whole and in order, whatever its size."""
        sock, peer = self.pair()
        for size in SIZES:
            with self.subTest(size=size):
                data = pattern(size, size)
                sending = Thread(partial(sock.sendall, data))
                self.assertEqual(peer.exactly(size), data)
                sending.result()

    def test_nothing(self) -> None:
        """A send of no bytes is no end of stream."""
        sock, peer = self.pair()
        self.assertEqual(sock.send(b""), 0)
        sock.sendall(b"x")
        self.assertEqual(peer.recv(), b"x")

    def test_manyBuffers(self) -> None:
        """sendmsg with as many buffers as the kernel takes, of many lengths, empty ones too."""
        sock, peer = self.pair()
        limit = os.sysconf("SC_IOV_MAX")
        buffers = [pattern(number % 97, number) for number in range(limit)]
        whole = b"".join(buffers)
        sent = Thread(lambda: sock.sendmsg(buffers))
        self.assertEqual(peer.exactly(len(whole)), whole)
        self.assertEqual(sent.result(), len(whole))
        self.fails(errno.EMSGSIZE, sock.sendmsg, [b"x"] * (limit + 1))

    def test_writev(self) -> None:
        """write(2) and writev(2) are send(2)."""
        sock, peer = self.pair()
        self.assertEqual(os.write(sock.fileno(), b"one"), 3)
        self.assertEqual(peer.exactly(3), b"one")
        self.assertEqual(os.writev(sock.fileno(), [b"two", b"", b"three"]), 8)
        self.assertEqual(peer.exactly(8), b"twothree")

    def test_more(self) -> None:
        """MSG_MORE may hold back, the send without it sends all."""
        sock, peer = self.pair()
        for part in (b"a", b"b" * 100, b"c"):
            self.assertEqual(sock.send(part, MSG_MORE), len(part))
        sock.sendall(b"d")
        self.assertEqual(peer.exactly(103), b"a" + b"b" * 100 + b"cd")

    def test_moreAlone(self) -> None:
        """What MSG_MORE holds back goes out by and by, as with TCP's cork, and before the end."""
        sock, peer = self.pair()
        sock.send(b"held", MSG_MORE)
        self.assertEqual(peer.exactly(4), b"held")
        sock.send(b"held again", MSG_MORE)
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(peer.rest(), b"held again")

    def test_dontwait(self) -> None:
        """MSG_DONTWAIT and O_NONBLOCK: EAGAIN when the peer does not read, all of what was taken arrives."""
        sock, peer = self.pair()
        sent, block = bytearray(), pattern(1 << 16)
        with self.assertRaises(BlockingIOError):
            while True:
                taken = sock.send(block, socket.MSG_DONTWAIT)
                sent += block[:taken]
                self.assertLess(len(sent), 64 << 20, "nothing bounds what is sent")
        sock.setblocking(False)
        for _ in range(100):
            try:
                sent += block[: sock.send(block)]
            except BlockingIOError:
                time.sleep(0.002)
        reading = Thread(lambda: peer.exactly(len(sent)))
        received = reading.result()
        self.assertEqual(len(received), len(sent))
        self.assertTrue(received == sent)
        self.writable(sock)
        sock.setblocking(True)
        sock.sendall(b"more")
        self.assertEqual(peer.exactly(4), b"more")

    def test_timeout(self) -> None:
        """SO_SNDTIMEO bounds a send to a peer that does not read; what was taken is told."""
        sock, _ = self.pair()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 200_000))
        begun = time.monotonic()
        block = bytes(64 << 20)
        self.assertLess(sock.send(block), len(block))
        with self.assertRaises(BlockingIOError):
            for _ in range(10):  # what has been taken may still move on, and make room
                sock.send(block)
        self.assertLess(time.monotonic() - begun, 5)

    def test_interrupted(self) -> None:
        """A signal ends a send that has taken something with the number of bytes taken."""
        sock, peer = self.pair()
        size = 16 << 20

        ended = threading.Event()

        def interrupt() -> None:
            while not ended.wait(0.2):  # on a slow machine the first one may come before the call
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        previous = signal.signal(signal.SIGUSR1, lambda *_: None)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        signal.siginterrupt(signal.SIGUSR1, True)
        interrupting = Thread(interrupt)
        sent = LIBC.send(sock.fileno(), bytes(size), ctypes.c_size_t(size), 0)
        ended.set()
        interrupting.result()
        self.assertTrue(0 < sent < size, f"{sent}")
        self.assertEqual(len(Thread(lambda: peer.exactly(sent)).result()), sent)

    def test_sendfile(self) -> None:
        """sendfile(2) from a file, with an offset and without."""
        sock, peer = self.pair()
        data = pattern(300_000)
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            for offset, count in ((0, 1), (1, RECORD), (5, RECORD + 1), (100, 200_000)):
                sending = Thread(partial(self._sendfile, sock, file.fileno(), offset, count))
                self.assertEqual(peer.exactly(count), data[offset : offset + count])
                sending.result()
            file.seek(7)
            self.assertEqual(os.sendfile(sock.fileno(), file.fileno(), None, 1000), 1000)
            self.assertEqual(peer.exactly(1000), data[7:1007])
            self.assertEqual(os.lseek(file.fileno(), 0, os.SEEK_CUR), 1007)
            self.assertEqual(os.sendfile(sock.fileno(), file.fileno(), len(data), 10), 0)

    def _sendfile(self, sock: socket.socket, file: int, offset: int, count: int) -> None:
        while count:
            done = os.sendfile(sock.fileno(), file, offset, count)
            offset, count = offset + done, count - done

    def test_splice(self) -> None:
        """splice(2) from a pipe."""
        sock, peer = self.pair()
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        for size in (1, 4096, RECORD + 1, 65536):
            data = pattern(size, size)
            os.write(writer, data)
            left = size
            while left:
                left -= splice(reader, sock.fileno(), left)
            self.assertEqual(peer.exactly(size), data)
        os.close(writer)
        self.assertEqual(splice(reader, sock.fileno(), 10), 0)

    def test_mapped(self) -> None:
        """Memory of a mapped file can be sent."""
        sock, peer = self.pair()
        with tempfile.TemporaryFile() as file:
            file.write(pattern(50_000))
            file.flush()
            with mmap.mmap(file.fileno(), 50_000, prot=mmap.PROT_READ) as memory:
                sock.sendall(memory)
                self.assertEqual(peer.exactly(50_000), pattern(50_000))

    def test_fault(self) -> None:
        """EFAULT for memory that is not there; the stream goes on whole."""
        sock, peer = self.pair()
        ctypes.set_errno(0)
        self.assertEqual(LIBC.send(sock.fileno(), ctypes.c_void_p(1), ctypes.c_size_t(100), 0), -1)
        self.assertEqual(ctypes.get_errno(), errno.EFAULT)
        self.assertEqual(LIBC.write(sock.fileno(), ctypes.c_void_p(1), ctypes.c_size_t(RECORD + 1)), -1)
        self.assertEqual(ctypes.get_errno(), errno.EFAULT)
        self.assertEqual(LIBC.sendmsg(sock.fileno(), ctypes.c_void_p(1), 0), -1)
        self.assertEqual(ctypes.get_errno(), errno.EFAULT)
        sock.sendall(b"after")
        self.assertEqual(peer.exactly(5), b"after")

    def test_refusedFlags(self) -> None:
        """MSG_OOB, MSG_ZEROCOPY and MSG_FASTOPEN give EOPNOTSUPP by every call, and nothing is sent."""
        sock, peer = self.pair()
        for flag in (socket.MSG_OOB, MSG_ZEROCOPY, MSG_FASTOPEN):
            with self.subTest(flag=hex(flag)):
                self.fails(errno.EOPNOTSUPP, sock.send, b"x", flag)
                self.fails(errno.EOPNOTSUPP, sock.sendmsg, [b"x"], [], flag)
                self.assertEqual(self._sendmmsg(sock, flag), errno.EOPNOTSUPP)
        self.assertIn("MSG_", self.tlsError(sock))
        sock.sendall(b"y")
        self.assertEqual(peer.recv(), b"y")

    def test_refusedFlagsEarly(self) -> None:
        """They do before connect too: fast open would carry plaintext."""
        sock = self.clientSocket()
        listener = self.plainListener()
        for flag in (socket.MSG_OOB, MSG_ZEROCOPY, MSG_FASTOPEN):
            self.fails(errno.EOPNOTSUPP, sock.sendto, b"x", flag, listener.getsockname())
            self.fails(errno.EOPNOTSUPP, sock.sendmsg, [b"x"], [], flag, listener.getsockname())
        listener.settimeout(0.1)
        self.assertRaises(TimeoutError, listener.accept)

    def _sendmmsg(self, sock: socket.socket, flag: int) -> int:
        buffer = ctypes.create_string_buffer(b"x")
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 1)
        header = (ctypes.c_size_t * 8)(0, 0, ctypes.addressof(vector), 1, 0, 0, 0, 0)
        ctypes.set_errno(0)
        self.assertEqual(LIBC.sendmmsg(sock.fileno(), header, 1, flag), -1)
        return ctypes.get_errno()

    def test_notConnected(self) -> None:
        """Before connect: EPIPE or ENOTCONN as TCP says."""
        ordinary = self.keep(socket.socket())
        sock = self.clientSocket()
        for call in ("send", "recv"):
            numbers = []
            for each in (ordinary, sock):
                try:
                    getattr(each, call)(b"x" if call == "send" else 1)
                except OSError as failure:
                    numbers.append(failure.errno)
            self.assertEqual(numbers[0], numbers[1], call)

    def test_pipe(self) -> None:
        """After shutdown(SHUT_WR) a send gives EPIPE with SIGPIPE, without it under MSG_NOSIGNAL."""
        sock, _ = self.pair()
        sock.shutdown(socket.SHUT_WR)
        caught: list[int] = []
        previous = signal.signal(signal.SIGPIPE, lambda number, _: caught.append(number))
        self.addCleanup(signal.signal, signal.SIGPIPE, previous)
        self.fails(errno.EPIPE, sock.send, b"x", socket.MSG_NOSIGNAL)
        self.assertEqual(caught, [])
        self.fails(errno.EPIPE, sock.send, b"x")
        self.assertEqual(caught, [signal.SIGPIPE])

    def test_pipeKills(self) -> None:
        """SIGPIPE by default ends a program."""
        sock, _ = self.pair()
        sock.shutdown(socket.SHUT_WR)

        def child() -> None:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            sock.send(b"x")

        self.reap(self.child(child), -signal.SIGPIPE)

    def test_address(self) -> None:
        """A stream has no destinations: an address given to sendto is not used."""
        sock, peer = self.pair()
        try:
            sock.sendto(b"x", ("192.0.2.1", 9))
        except OSError as failure:
            self.assertEqual(failure.errno, errno.EISCONN)
            sock.send(b"x")
        self.assertEqual(peer.recv(), b"x")

    def test_threads(self) -> None:
        """Many threads write on one socket: each send of a small size stays in one piece."""
        sock, peer = self.pair()
        blocks = [bytes([65 + number]) * 100 for number in range(16)]

        def write(block: bytes) -> None:
            for _ in range(50):
                sock.sendall(block)

        threads = [Thread(partial(write, block)) for block in blocks]
        received = peer.exactly(16 * 50 * 100)
        for thread in threads:
            thread.result()
        pieces = [received[start : start + 100] for start in range(0, len(received), 100)]
        for block in blocks:
            self.assertEqual(pieces.count(block), 50)

    def test_processes(self) -> None:
        """Many processes write on one socket."""
        sock, peer = self.pair()
        blocks = [bytes([65 + number]) * 64 for number in range(8)]

        def writer(block: bytes) -> None:
            for _ in range(50):
                sock.sendall(block)

        children = [self.child(partial(writer, block)) for block in blocks]
        received = peer.exactly(8 * 50 * 64)
        for pid in children:
            self.reap(pid)
        pieces = [received[start : start + 64] for start in range(0, len(received), 64)]
        for block in blocks:
            self.assertEqual(pieces.count(block), 50)

    def test_peerSlow(self) -> None:
        """A peer that reads one byte at a time gets all of them."""
        sock, peer = self.pair()
        data = pattern(3000)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = bytearray()
        while part := peer.recv(1):
            received += part
        self.assertEqual(received, data)


def splice(source: int, target: int, size: int, flags: int = 0) -> int:
    """splice(2), which the standard library has from Python 3.10 on only where it was built with it."""
    ctypes.set_errno(0)
    done = int(LIBC.splice(source, None, target, None, ctypes.c_size_t(size), flags))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return done


class ClientSending(ClientRole, _Sending):
    """As client."""


class ServerSending(ServerRole, _Sending):
    """As server."""


class ClientSending12(ClientRole, _Sending):
    """As client, TLS 1.2."""

    version = 0x0303
