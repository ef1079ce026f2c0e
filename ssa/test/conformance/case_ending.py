# SPDX-License-Identifier: MIT
"""
How connections end: by which call, in which order, and what each side is told.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time

from OpenSSL import SSL

from ssa.test.conformance.case import RECORD, ClientRole, PairCase, ServerRole, Thread, epolled, inOrder, pattern
from ssa.test.conformance.peers import SECONDS


def _linger(sock: socket.socket, seconds: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))


class _Ending(PairCase):
    # the peer ends

    def test_closeNotify(self) -> None:
        """close_notify is the end of stream, again and again; sending goes on."""
        sock, peer = self.pair()
        peer.send(b"last words")
        peer.closeNotify()
        self.assertEqual(self.rest(sock), b"last words")
        self.assertEqual(sock.recv(10), b"")
        self.assertEqual(sock.recv(10, socket.MSG_DONTWAIT), b"")
        sock.sendall(b"an answer")
        sock.close()
        self.assertEqual(peer.rest(), b"an answer")

    def test_dataThenEnd(self) -> None:
        """Much data, then close_notify, and only then a reader."""
        sock, peer = self.pair()
        data = pattern(200_000)
        sending = Thread(inOrder(lambda: peer.send(data), peer.closeNotify, peer.truncate))
        time.sleep(0.05)
        self.assertEqual(self.rest(sock), data)
        sending.result()
        self.assertEqual(self.tlsError(sock), "")

    def test_truncated(self) -> None:
        """TCP's end without close_notify: the data first, then ECONNRESET with a reason, then no more."""
        sock, peer = self.pair()
        data = pattern(100_000)
        peer.send(data)
        peer.truncate()
        received = bytearray()
        with self.assertRaises(ConnectionResetError):
            while part := sock.recv(7000):
                received += part
        self.assertEqual(received, data)
        self.assertIn("close_notify", self.tlsError(sock))

    def test_reasonAfterRefusal(self) -> None:
        """TLS_ERROR tells how the connection ended also where a call was refused before that."""
        sock, peer = self.pair()
        self.fails(errno.EOPNOTSUPP, sock.send, b"x", socket.MSG_OOB)
        self.assertIn("MSG_OOB", self.tlsError(sock))
        peer.truncate()
        self.fails(errno.ECONNRESET, sock.recv, 10)
        self.assertIn("close_notify", self.tlsError(sock))

    def test_truncatedByClose(self) -> None:
        """The same where the peer closes TCP altogether."""
        sock, peer = self.pair()
        peer.send(b"data")
        peer.close()
        self.assertEqual(self.exactly(sock, 4), b"data")
        self.fails(errno.ECONNRESET, sock.recv, 10)
        self.assertNotEqual(self.tlsError(sock), "")

    def test_truncatedWithData(self) -> None:
        """A record that is cut off gives none of its plaintext."""
        sock, peer = self.pair()
        peer.send(b"whole")
        peer.sock.sendall(b"\x17\x03\x03\x40\x00" + bytes(1000))
        peer.truncate()
        self.assertEqual(self.exactly(sock, 5), b"whole")
        self.fails(errno.ECONNRESET, sock.recv, 10)

    def test_reset(self) -> None:
        """TCP's reset: the data that has come, then ECONNRESET."""
        sock, peer = self.pair()
        peer.send(b"data")
        self.eventually(lambda: sock.recv(10, socket.MSG_PEEK) == b"data", "the data")
        peer.reset()
        self.assertEqual(self.exactly(sock, 4), b"data")
        self.fails(errno.ECONNRESET, sock.recv, 10)
        self.assertNotEqual(self.tlsError(sock), "")

    def test_resetWhileWaiting(self) -> None:
        """A blocked recv is woken by a reset."""
        sock, peer = self.pair()
        receiving = Thread(lambda: self.fails(errno.ECONNRESET, sock.recv, 10))
        time.sleep(0.05)
        peer.reset()
        receiving.result()

    def test_forged(self) -> None:
        """A record that nobody encrypted: the data before it, then ECONNRESET."""
        sock, peer = self.pair()
        peer.send(b"good")
        peer.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.assertEqual(self.exactly(sock, 4), b"good")
        self.fails(errno.ECONNRESET, sock.recv, 10)
        self.assertNotEqual(self.tlsError(sock), "")

    def test_noRecord(self) -> None:
        """Bytes that are not TLS at all."""
        sock, peer = self.pair()
        peer.sock.sendall(b"HTTP/1.0 400 what is this?\r\n\r\n")
        self.fails(errno.ECONNRESET, sock.recv, 10)
        self.assertNotEqual(self.tlsError(sock), "")

    def test_readiness(self) -> None:
        """The end of stream is readable; POLLRDHUP says that it is one; POLLHUP comes when both ways have ended."""
        sock, peer = self.pair()
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLRDHUP)
        self.assertEqual(poll.poll(0), [])
        peer.closeNotify()
        self.assertEqual(poll.poll(1000 * SECONDS), [(sock.fileno(), select.POLLIN | select.POLLRDHUP)])
        sock.shutdown(socket.SHUT_WR)
        self.eventually(lambda: bool(poll.poll(0)[0][1] & select.POLLHUP), "POLLHUP")

    def test_readinessOfError(self) -> None:
        """A broken connection is readable, with POLLERR or POLLHUP, and SO_ERROR tells why, once."""
        sock, peer = self.pair()
        with epolled(sock, select.EPOLLIN | select.EPOLLET) as epoll:
            self.assertEqual(epoll.poll(0), [])
            peer.reset()
            events = 0

            def broken() -> bool:
                nonlocal events
                for _, event in epoll.poll(0):
                    events |= event
                return bool(events & (select.EPOLLERR | select.EPOLLHUP))

            self.eventually(broken, "EPOLLERR")
        self.assertTrue(events & select.EPOLLIN)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), errno.ECONNRESET)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    # the program ends

    def test_shutdownWrite(self) -> None:
        """SHUT_WR sends close_notify; reading goes on."""
        sock, peer = self.pair()
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(peer.rest(), b"question")
        for size in (1, RECORD + 1, 100_000):
            peer.send(pattern(size))
            self.assertEqual(self.exactly(sock, size), pattern(size))
        peer.closeNotify()
        self.assertEqual(sock.recv(1), b"")

    def test_shutdownRead(self) -> None:
        """SHUT_RD: end of stream here, sending goes on."""
        sock, peer = self.pair()
        sock.shutdown(socket.SHUT_RD)
        self.assertEqual(sock.recv(10), b"")
        sock.sendall(b"still")
        self.assertEqual(peer.exactly(5), b"still")

    def test_shutdownBoth(self) -> None:
        """SHUT_RDWR: close_notify there, end of stream here."""
        sock, peer = self.pair()
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_RDWR)
        self.assertEqual(peer.rest(), b"bye")
        self.assertEqual(sock.recv(10), b"")
        self.fails(errno.EPIPE, sock.send, b"x", socket.MSG_NOSIGNAL)

    def test_shutdownTwice(self) -> None:
        """Each way by itself, in both orders."""
        for first, second in ((socket.SHUT_RD, socket.SHUT_WR), (socket.SHUT_WR, socket.SHUT_RD)):
            sock, peer = self.pair()
            sock.sendall(b"bye")
            sock.shutdown(first)
            sock.shutdown(second)
            self.assertEqual(peer.rest(), b"bye")

    def test_shutdownWakes(self) -> None:
        """SHUT_RD wakes a recv that waits in another thread."""
        sock, _ = self.pair()
        receiving = Thread(lambda: sock.recv(10))
        time.sleep(0.05)
        sock.shutdown(socket.SHUT_RDWR)
        self.assertEqual(receiving.result(), b"")

    def test_shutdownUnknown(self) -> None:
        """EINVAL for no way at all, ENOTCONN before connect."""
        sock, _ = self.pair()
        self.fails(errno.EINVAL, sock.shutdown, 7)
        self.fails(errno.ENOTCONN, self.clientSocket().shutdown, socket.SHUT_WR)

    def test_close(self) -> None:
        """close sends what was sent before, close_notify, then TCP's end."""
        sock, peer = self.pair()
        data = pattern(150_000)
        sending = Thread(inOrder(lambda: sock.sendall(data), sock.close))
        self.assertEqual(peer.rest(), data)
        sending.result()
        peer.sock.settimeout(SECONDS)
        self.assertEqual(peer.sock.recv(10), b"")

    def test_closeBothAtOnce(self) -> None:
        """Both sides close, each gets a clean end."""
        sock, peer = self.pair()
        sock.sendall(b"a")
        peer.send(b"b")
        sock.shutdown(socket.SHUT_WR)
        peer.closeNotify()
        self.assertEqual(peer.rest(), b"a")
        self.assertEqual(self.rest(sock), b"b")

    def test_closeUnread(self) -> None:
        """close with unread data is a reset, as TCP's: the peer never takes it for a clean end."""
        sock, peer = self.pair()
        peer.send(b"unread")
        self.readable(sock)
        sock.close()
        with self.assertRaises((SSL.Error, OSError)):
            peer.rest()
            # RFC 8446 allows a close_notify here, and then TCP must still break off the other way.
            for _ in range(100):
                peer.send(b"more")
                time.sleep(0.01)

    def test_lingerZero(self) -> None:
        """SO_LINGER of zero seconds: close is a reset, no close_notify."""
        sock, peer = self.pair()
        _linger(sock, 0)
        sock.close()
        with self.assertRaises((SSL.SysCallError, ConnectionResetError)) as caught:
            peer.rest()
        self.assertIn(errno.ECONNRESET, caught.exception.args)

    def test_linger(self) -> None:
        """SO_LINGER of some seconds: close waits at most so long, all arrives."""
        sock, peer = self.pair()
        _linger(sock, 5)
        data = pattern(100_000)
        begun = time.monotonic()
        closing = Thread(inOrder(lambda: sock.sendall(data), sock.close))
        self.assertEqual(peer.rest(), data)
        peer.close()
        closing.result()
        self.assertLess(time.monotonic() - begun, 4)

    def test_lingerExpires(self) -> None:
        """SO_LINGER with a peer that does not read: close waits for its time and no longer."""
        sock, _ = self.pair()
        sock.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                sock.send(bytes(1 << 18))
                if not select.select([], [sock], [], 0.3)[1]:
                    sock.send(b"x")
        sock.setblocking(True)
        _linger(sock, 1)
        begun = time.monotonic()
        sock.close()
        self.assertTrue(0.9 < time.monotonic() - begun < 3, f"{time.monotonic() - begun:.2f} s")

    def test_lingerZeroWithData(self) -> None:
        """SO_LINGER of zero seconds throws away what has not been sent, and the peer knows that something is missing."""
        sock, peer = self.pair()
        sock.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                sock.send(bytes(1 << 18))
        _linger(sock, 0)
        sock.close()
        with self.assertRaises((SSL.SysCallError, ConnectionResetError)):
            peer.rest()

    def test_peerGone(self) -> None:
        """Sending to a peer that has gone: EPIPE or ECONNRESET before long."""
        sock, peer = self.pair()
        peer.reset()
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            for _ in range(200):
                sock.send(b"x" * 1000, socket.MSG_NOSIGNAL)
                time.sleep(0.01)

    def test_peerGoneWhileBlocked(self) -> None:
        """A send that waits for a peer is woken by its reset."""
        sock, peer = self.pair()

        def send() -> None:
            with self.assertRaises((BrokenPipeError, ConnectionResetError)):
                sock.sendall(bytes(64 << 20), socket.MSG_NOSIGNAL)

        sending = Thread(send)
        time.sleep(0.2)
        peer.reset()
        sending.result()


class ClientEnding(ClientRole, _Ending):
    """As client."""


class ServerEnding(ServerRole, _Ending):
    """As server."""


class ClientEnding12(ClientRole, _Ending):
    """As client, TLS 1.2."""

    version = 0x0303
