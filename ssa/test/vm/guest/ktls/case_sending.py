# SPDX-License-Identifier: MIT
"""Sending: all of it arrives, and close_notify behind it."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import tempfile
import time

from ssa.test.conformance.case import LIBC, Thread
from ssa.test.vm.guest.ktls.case import BUFFER, SECONDS, KTLSCase, timeout
from ssa.test.vm.guest.ktls.compat import SENDMSG, SENDTO, Compat
from ssa.test.vm.guest.ktls.daemon import Way
from ssa.test.vm.guest.ktls.records import ALERT, DATA, RecordPeer

SOL_TLS, SET_RECORD_TYPE = 282, 1
END = [b"\x01\x00"]


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("nameSize", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controlSize", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Message(ctypes.Structure):
    _fields_ = [("header", _Header), ("sent", ctypes.c_uint)]


def fill(sock: socket.socket) -> int:
    """
    Send until the socket takes no more, and the peer's kernel neither.

    @return: how many bytes it took.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 1.0)[1]:
        try:
            sent += sock.send(b"f" * 40000)
        except BlockingIOError:
            continue
    return sent


class ClientSending(KTLSCase):
    """What a program sends that has connected."""

    def test_data(self) -> None:
        """Long data arrives whole."""
        sock, peer = self.connected()
        data = os.urandom(100000)
        sender = Thread(lambda: sock.sendall(data))
        self.assertEqual(peer.exactly(len(data)), data)
        sender.result(SECONDS)

    def test_flags(self) -> None:
        """Flags that mean nothing to TCP mean nothing here; those that promise what TLS cannot are refused."""
        sock, peer = self.connected()
        for flag in (int(socket.MSG_EOR), socket.MSG_DONTROUTE, socket.MSG_CONFIRM, socket.MSG_DONTWAIT, socket.MSG_NOSIGNAL):
            self.assertEqual(sock.send(b"flag", flag), 4)
            self.assertEqual(peer.exactly(4), b"flag")
        for flag in (socket.MSG_OOB, 0x4000000, 0x20000000):  # MSG_ZEROCOPY, MSG_FASTOPEN
            self.assertFails(errno.EOPNOTSUPP, sock.send, b"flag", flag)

    def test_more(self) -> None:
        """MSG_MORE may hold data back for a moment, as TCP does, but not for ever."""
        sock, peer = self.connected()
        sock.send(b"first", socket.MSG_MORE)
        self.assertEqual(peer.exactly(5), b"first")
        sock.send(b"second", socket.MSG_MORE)
        sock.send(b"third")
        self.assertEqual(peer.exactly(11), b"secondthird")
        sock.send(b"last", socket.MSG_MORE)
        sock.close()
        self.assertEqual(peer.rest(), (b"last", END, "fin"))

    def test_sendmmsg(self) -> None:
        """sendmmsg sends all of its messages."""
        sock, peer = self.connected()
        texts = [ctypes.create_string_buffer(text, len(text)) for text in (b"one", b"two", b"three")]
        vectors = [_Vector(ctypes.cast(text, ctypes.c_void_p), len(text)) for text in texts]
        headers = [_Header(vectors=ctypes.pointer(vector), count=1) for vector in vectors]
        messages = (_Message * 3)(*(_Message(header) for header in headers))
        self.assertEqual(LIBC.sendmmsg(sock.fileno(), messages, 3, 0), 3)
        self.assertEqual([message.sent for message in messages], [3, 3, 5])
        self.assertEqual(peer.exactly(11), b"onetwothree")

    def test_recordType(self) -> None:
        """A program does not choose the types of records, and cannot have itself taken for the daemon."""
        sock, peer = self.connected()
        sock.sendmsg([b"\x02\x28"], [(SOL_TLS, SET_RECORD_TYPE, bytes([ALERT]))])
        self.assertEqual(peer.read(), (DATA, b"\x02\x28"))
        sock.sendmsg([b"x"], [], 0, ("127.0.0.1", 1))
        self.assertEqual(peer.read(), (DATA, b"x"))

    def test_options(self) -> None:
        """The keys cannot be read or changed, nor the layer above TCP."""
        sock, _ = self.connected()
        for name in (1, 2, 3, 4):
            self.assertFails(errno.ENOPROTOOPT, sock.getsockopt, SOL_TLS, name, 64)
            self.assertFails(errno.ENOPROTOOPT, sock.setsockopt, SOL_TLS, name, bytes(40))
        self.assertFails(errno.ENOPROTOOPT, sock.setsockopt, socket.IPPROTO_TCP, 31, b"tls")
        self.assertFails(errno.ENOPROTOOPT, sock.getsockopt, socket.IPPROTO_TCP, 31, 16)

    def test_sendfile(self) -> None:
        """sendfile sends a file, also one that is shorter than what was asked for."""
        sock, peer = self.connected()
        content = os.urandom(50000)
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            for wanted in (len(content), 1 << 30):
                offset = 0
                while offset < len(content):
                    offset += os.sendfile(sock.fileno(), file.fileno(), offset, wanted - offset)
                self.assertEqual(peer.exactly(len(content)), content)

    def test_splice(self) -> None:
        """splice from a pipe."""
        sock, peer = self.connected()
        source, target = os.pipe()
        self.addCleanup(os.close, source)
        self.addCleanup(os.close, target)
        os.write(target, b"through a pipe")
        self.assertEqual(os.splice(source, sock.fileno(), 14), 14)
        self.assertEqual(peer.exactly(14), b"through a pipe")

    def test_compat(self) -> None:
        """A 32-bit program sends; it does not choose types of records either."""
        try:
            caller = Compat()
        except NotImplementedError as reason:
            self.skipTest(str(reason))
        sock, peer = self.connected()
        text = caller.put(b"thirty-two")
        self.assertEqual(caller.call(SENDTO, sock.fileno(), text, 10, 0, 0, 0), 10)
        self.assertEqual(peer.exactly(10), b"thirty-two")
        control = caller.put(struct.pack("=3IB3x", 13, SOL_TLS, SET_RECORD_TYPE, ALERT))
        self.assertEqual(caller.call(SENDMSG, sock.fileno(), caller.message(text, 10, control, 16), 0), 10)
        self.assertEqual(peer.read(), (DATA, b"thirty-two"))

    # the end

    def test_close(self) -> None:
        """close sends close_notify, then FIN, also where the daemon keeps its descriptor."""
        for way in (Way.GOOD, Way.KEPT):
            with self.subTest(way):
                sock, peer = self.connected(way)
                sock.sendall(b"last words")
                sock.close()
                self.assertEqual(peer.rest(), (b"last words", END, "fin"))

    def test_closeDuplicates(self) -> None:
        """Only the last descriptor counts."""
        sock, peer = self.connected()
        other = self.keep(socket.socket(fileno=os.dup(sock.fileno())))
        sock.close()
        other.sendall(b"still here")
        self.assertEqual(peer.exactly(10), b"still here")
        other.close()
        self.assertEqual(peer.rest(), (b"", END, "fin"))

    def test_closeUnread(self) -> None:
        """Unread tickets are no unread data, for which TCP would throw away what the program has sent."""
        sock, peer = self.connected()
        for _ in range(3):
            peer.ticket()
        time.sleep(1.0)
        sock.sendall(b"w" * 50000)
        sock.close()
        self.assertEqual(peer.rest(), (b"w" * 50000, END, "fin"))

    def test_closeFull(self) -> None:
        """close with a full send buffer: all of the data, then close_notify, then FIN."""
        sock, peer = self.connected()
        sent = fill(sock)
        sock.close()
        data, alerts, end = peer.rest()
        self.assertEqual((len(data), alerts, end), (sent, END, "fin"))

    def test_closeReset(self) -> None:
        """SO_LINGER of no time: a reset, as TCP, and no word that the stream has ended well."""
        sock, peer = self.connected()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(b"x")
        self.assertEqual(peer.exactly(1), b"x")
        sock.close()
        self.assertEqual(peer.rest(), (b"", [], "reset"))

    def test_closeLingers(self) -> None:
        """SO_LINGER with a time."""
        sock, peer = self.connected()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
        sock.sendall(b"x")
        sock.close()
        self.assertEqual(peer.rest(), (b"x", END, "fin"))

    def test_shutdown(self) -> None:
        """shutdown sends close_notify and FIN, once; reading goes on."""
        sock, peer = self.connected()
        sock.sendall(b"all")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(peer.rest(), (b"all", END, "fin"))
        self.assertFails(errno.EPIPE, sock.send, b"x")
        peer.ticket()
        peer.data(b"answer")
        peer.closeNotify()
        peer.fin()
        self.assertEqual(sock.recv(64), b"answer")
        self.assertEnds(sock)

    def test_shutdownFull(self) -> None:
        """The same with a full send buffer."""
        sock, peer = self.connected()
        sent = fill(sock)
        sock.shutdown(socket.SHUT_WR)
        data, alerts, end = peer.rest()
        self.assertEqual((len(data), alerts, end), (sent, END, "fin"))
        peer.data(b"answer")
        sock.setblocking(True)
        self.assertEqual(sock.recv(64), b"answer")

    def test_shutdownReading(self) -> None:
        """SHUT_RD is told to nobody: what has come can be read, then there is the end; sending goes on."""
        sock, peer = self.connected()
        peer.data(b"here")
        self.arrived(sock, 4)
        sock.shutdown(socket.SHUT_RD)
        self.assertEqual(sock.recv(64), b"here")
        self.assertEnds(sock)
        sock.sendall(b"out")
        self.assertEqual(peer.exactly(3), b"out")

    def test_shutdownWakes(self) -> None:
        """SHUT_RD and SHUT_RDWR wake those that read."""
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            sock, _ = self.connected()
            readers = [Thread(lambda sock=sock: sock.recv(64)) for _ in range(2)]  # type: ignore[misc]
            time.sleep(0.3)
            sock.shutdown(how)
            self.assertEqual([reader.result(SECONDS) for reader in readers], [b"", b""])

    def test_shutdownOtherwise(self) -> None:
        """Only three ways are there to shut down."""
        sock, peer = self.connected()
        for how in (-1, 3, 1 << 20):
            self.assertFails(errno.EINVAL, sock.shutdown, how)
        sock.sendall(b"x")
        self.assertEqual(peer.exactly(1), b"x")

    def test_timeout(self) -> None:
        """SO_SNDTIMEO bounds a send, and a sendfile, that the peer does not take."""
        sock, _ = self.connected()
        timeout(sock, socket.SO_SNDTIMEO, 1.0)
        fill(sock)
        sock.setblocking(True)
        with self.assertRaises(BlockingIOError):
            for _ in range(10):
                sock.send(bytes(1 << 20))
        with tempfile.TemporaryFile() as file:
            file.truncate(1 << 20)
            started = time.monotonic()
            with self.assertRaises(BlockingIOError):
                for _ in range(10):
                    os.sendfile(sock.fileno(), file.fileno(), 0, 1 << 20)
            self.assertLess(time.monotonic() - started, 40.0)

    def test_writable(self) -> None:
        """poll tells when there is room again."""
        sock, peer = self.connected()
        sent = fill(sock)
        self.assertEqual(self.ready(sock, select.POLLOUT, 0.2), 0)
        reader = Thread(lambda: peer.exactly(sent))
        self.assertEqual(self.ready(sock, select.POLLOUT), select.POLLOUT)
        reader.result(SECONDS)

    def test_resetBySending(self) -> None:
        """The peer is gone: an error, not a loss without a word."""
        sock, peer = self.connected()
        peer.reset()
        self.ready(sock, select.POLLRDHUP)
        with self.assertRaises((ConnectionResetError, BrokenPipeError)):
            for _ in range(3):
                sock.send(b"x")


class ServerSending(ClientSending):
    """What a program sends that has accepted."""

    def connected(self, way: Way = Way.GOOD) -> tuple[socket.socket, RecordPeer]:
        return self.asServer(way)
