# SPDX-License-Identifier: MIT
"""Receiving: only data reaches the program; what other records mean, whatever the call and the size of its buffer."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time

from ssa.test.conformance.case import Thread
from ssa.test.vm.guest.ktls.case import SECONDS, KTLSCase, timeout
from ssa.test.vm.guest.ktls.compat import RECVFROM, RECVMSG, SOCKETCALL, SOCKETCALL_RECV, Compat
from ssa.test.vm.guest.ktls.daemon import Way
from ssa.test.vm.guest.ktls.records import (
    ALERT,
    CERTIFICATE_REQUEST,
    DATA,
    FATAL,
    HANDSHAKE,
    HANDSHAKE_FAILURE,
    USER_CANCELED,
    WARNING,
    RecordPeer,
    keyUpdate,
    message,
    ticket,
)

PEEK, WAITALL, DONTWAIT = socket.MSG_PEEK, socket.MSG_WAITALL, socket.MSG_DONTWAIT


class ClientReceiving(KTLSCase):
    """What a program receives that has connected."""

    # data

    def test_data(self) -> None:
        """Long data comes whole, in whatever pieces it is read."""
        sock, peer = self.connected()
        data = os.urandom(50000)
        sender = Thread(lambda: peer.data(data))
        got, size = bytearray(), 1
        while len(got) < len(data):
            part = sock.recv(min(size, len(data) - len(got)))
            self.assertTrue(part)
            got += part
            size = size * 2 + 1
        sender.result(SECONDS)
        self.assertEqual(bytes(got), data)

    def test_pieces(self) -> None:
        """A record that is read in pieces; padding and empty records are nothing."""
        sock, peer = self.connected()
        peer.sock.sendall(peer.seal(DATA, b"", padding=30) + peer.seal(DATA, b"01234567", padding=100))
        self.assertEqual([sock.recv(1), sock.recv(2), sock.recv(3), sock.recv(64)], [b"0", b"12", b"345", b"67"])
        first, second = bytearray(3), bytearray(10)
        peer.data(b"abcdef")
        self.assertEqual(sock.recvmsg_into([first, second])[0], 6)
        self.assertEqual(bytes(first + second[:3]), b"abcdef")

    def test_peek(self) -> None:
        """MSG_PEEK takes nothing away, and sees behind tickets."""
        sock, peer = self.connected()
        peer.ticket()
        peer.data(b"look")
        for size in (1, 3, 64):
            self.assertEqual(sock.recv(size, PEEK), b"look"[:size])
        self.assertEqual(sock.recv(2), b"lo")
        peer.ticket()
        peer.data(b"!")
        self.assertEqual(sock.recv(64, PEEK), b"ok")
        self.assertEqual(sock.recv(3, WAITALL), b"ok!")

    def test_waitAll(self) -> None:
        """MSG_WAITALL waits for all, also where tickets lie between."""
        sock, peer = self.connected()
        reader = Thread(lambda: sock.recv(9, WAITALL))
        for part in (b"abc", b"def", b"ghi"):
            peer.data(part)
            peer.ticket()
            time.sleep(0.2)
        self.assertEqual(reader.result(SECONDS), b"abcdefghi")

    def test_waitAllEnds(self) -> None:
        """MSG_WAITALL ends with the stream: what there is, then the end."""
        sock, peer = self.connected()
        peer.data(b"abc")
        peer.closeNotify()
        self.assertEqual(sock.recv(9, WAITALL), b"abc")
        self.assertEnds(sock)

    def test_waitAllBreaks(self) -> None:
        """The same with an error."""
        sock, peer = self.connected()
        peer.data(b"abc")
        peer.ticket()
        peer.alert(HANDSHAKE_FAILURE)
        self.assertEqual(sock.recv(9, WAITALL), b"abc")
        self.assertBroken(sock)

    def test_lowWater(self) -> None:
        """SO_RCVLOWAT counts what comes behind a ticket."""
        sock, peer = self.connected()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 6)
        reader = Thread(lambda: sock.recv(64))
        for part in (b"abc", b"def"):
            peer.data(part)
            peer.ticket()
            time.sleep(0.2)
        self.assertEqual(reader.result(SECONDS), b"abcdef")

    def test_timeout(self) -> None:
        """SO_RCVTIMEO is not put off by tickets."""
        sock, peer = self.connected()
        timeout(sock, socket.SO_RCVTIMEO, 2.0)
        stop = threading.Event()

        def send() -> None:
            while not stop.wait(0.5):
                peer.ticket()

        sender = Thread(send)
        started = time.monotonic()
        self.assertFails(errno.EAGAIN, sock.recv, 64)
        self.assertLess(time.monotonic() - started, 15.0)
        self.assertGreater(time.monotonic() - started, 1.9)
        stop.set()
        sender.result(SECONDS)
        peer.data(b"later")
        self.assertEqual(sock.recv(64), b"later")

    def test_available(self) -> None:
        """FIONREAD counts plaintext, and nothing else."""
        sock, peer = self.connected()

        def available() -> int:
            value = array.array("i", [-1])
            fcntl.ioctl(sock, termios.FIONREAD, value)
            return value[0]

        self.assertEqual(available(), 0)
        peer.ticket()
        peer.data(b"12345")
        seen = set()
        self.eventually(lambda: seen.add(available()) or 5 in seen)  # type: ignore[func-returns-value]
        self.assertLessEqual(seen, {0, 5})
        self.assertEqual(sock.recv(2), b"12")
        self.assertEqual(available(), 3)
        peer.data(b"678")
        self.eventually(lambda: available() == 6)
        self.assertEqual(sock.recv(64), b"345678")
        peer.closeNotify()
        self.assertEqual(sock.recv(64), b"")
        self.assertEqual(available(), 0)

    # tickets

    def test_tickets(self) -> None:
        """They are dropped, whatever their size and the buffer's."""
        for size in (1, 20, 300, 5000, 16000):
            with self.subTest(size):
                sock, peer = self.connected()
                peer.ticket(size)
                peer.ticket(size)
                peer.data(b"data")
                self.assertEqual([sock.recv(1), sock.recv(1), sock.recv(64)], [b"d", b"a", b"ta"])
                peer.ticket(size)
                peer.data(b"data")
                self.assertEqual(sock.recv(20000), b"data")
                peer.ticket(size)
                peer.data(b"more")
                first, second = bytearray(3), bytearray(20000)
                self.assertEqual(sock.recvmsg_into([first, second])[0], 4)
                self.assertEqual(bytes(first + second[:1]), b"more")

    def test_onlyTicket(self) -> None:
        """Nothing to read, though poll may have said so."""
        sock, peer = self.connected()
        sock.setblocking(False)
        peer.ticket(3000)
        self.ready(sock, select.POLLIN, 2.0)
        for flags in (0, PEEK, WAITALL):
            self.assertFails(errno.EAGAIN, sock.recv, 64, flags)
        peer.data(b"data")
        self.assertTrue(self.ready(sock, select.POLLIN) & select.POLLIN)
        self.eventually(lambda: sock.recv(64) == b"data")

    def test_blocking(self) -> None:
        """A blocking recv waits on after a ticket."""
        sock, peer = self.connected()
        for flags in (0, PEEK, WAITALL):
            reader = Thread(lambda flags=flags: sock.recv(4, flags))  # type: ignore[misc]
            time.sleep(0.2)
            peer.ticket()
            time.sleep(0.2)
            self.assertTrue(reader.is_alive())
            peer.data(b"data")
            self.assertEqual(reader.result(SECONDS), b"data")
            if flags == PEEK:
                self.assertEqual(sock.recv(64), b"data")

    def test_manyInOneRecord(self) -> None:
        """Several tickets share a record."""
        sock, peer = self.connected()
        peer.send(HANDSHAKE, ticket(5) + ticket(300) + ticket(1))
        peer.data(b"data")
        self.assertEqual(sock.recv(64), b"data")

    def test_fragments(self) -> None:
        """A ticket is spread over several records, its header too."""
        for sizes in ((2, 50), (1, 2, 3), (4,), (3, 104)):
            for room in (1, 7, 4096):
                with self.subTest(sizes=sizes, room=room):
                    sock, peer = self.connected()
                    left, parts = ticket(), []
                    for size in sizes:
                        parts.append(left[:size])
                        left = left[size:]
                    peer.send(HANDSHAKE, *parts, left + ticket(3))
                    peer.data(b"d" * room)
                    self.assertEqual(sock.recv(room), b"d" * room)
                    sock.close()
                    peer.close()

    def test_peekedTickets(self) -> None:
        """Several tickets that MSG_PEEK has already brought into the kernel's list."""
        sock, peer = self.connected()
        peer.data(b"first")
        peer.send(HANDSHAKE, ticket(300), ticket(5), ticket(400))
        peer.data(b"last")
        self.arrived(sock, 5)
        time.sleep(0.3)
        self.assertEqual(sock.recv(4096, PEEK), b"first")
        self.assertEqual(sock.recv(5), b"first")
        self.assertEqual(sock.recv(4096, PEEK), b"last")
        self.assertEqual(sock.recv(1), b"l")
        self.assertEqual(sock.recv(64), b"ast")

    def test_readers(self) -> None:
        """Two readers at a time: each byte goes to one of them, and tickets to none."""
        sock, peer = self.connected()
        got: list[list[bytes]] = [[], []]

        def read(into: list[bytes]) -> None:
            while part := sock.recv(3):
                into.append(part)

        readers = [Thread(lambda into=into: read(into)) for into in got]  # type: ignore[misc]
        for _ in range(40):
            peer.ticket(7)
            peer.data(b"xyz")
        peer.closeNotify()
        for reader in readers:
            reader.result(SECONDS)
        self.assertEqual(sum(len(part) for part in got[0] + got[1]), 120)

    # the end

    def test_end(self) -> None:
        """close_notify is the end, after the data, and stays it."""
        sock, peer = self.connected()
        peer.data(b"last")
        peer.closeNotify()
        self.assertEqual(sock.recv(2), b"la")
        self.assertEqual(sock.recv(64), b"st")
        self.assertEnds(sock)

    def test_endSmallBuffer(self) -> None:
        """close_notify is longer than the buffer; FIN follows."""
        sock, peer = self.connected()
        peer.closeNotify()
        peer.fin()
        self.assertEqual(sock.recv(1), b"")
        self.assertEnds(sock)

    def test_endPeeked(self) -> None:
        """MSG_PEEK finds the end first."""
        sock, peer = self.connected()
        peer.data(b"x")
        peer.closeNotify()
        self.arrived(sock, 1)
        self.assertEqual(sock.recv(64, PEEK), b"x")
        self.assertEqual(sock.recv(1), b"x")
        self.assertEqual(sock.recv(1, PEEK), b"")
        self.assertEnds(sock)

    def test_endHalf(self) -> None:
        """After the peer's end the program can go on to send."""
        sock, peer = self.connected()
        peer.closeNotify()
        self.assertEqual(sock.recv(64), b"")
        sock.sendall(b"still here")
        self.assertEqual(peer.exactly(10), b"still here")
        sock.close()
        self.assertEqual(peer.rest(), (b"", [b"\x01\x00"], "fin"))

    def test_endWakes(self) -> None:
        """All that wait learn of the end: readers in threads, and poll."""
        sock, peer = self.connected()
        readers = [Thread(lambda: sock.recv(64)) for _ in range(3)]
        poller = Thread(lambda: self.ready(sock, select.POLLIN))
        time.sleep(0.3)
        peer.closeNotify()
        self.assertEqual([reader.result(SECONDS) for reader in readers], [b""] * 3)
        self.assertTrue(poller.result(SECONDS) & select.POLLIN)
        edge = self.keep(select.epoll())
        edge.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        self.assertTrue(edge.poll(SECONDS)[0][1] & select.EPOLLRDHUP)

    def test_canceled(self) -> None:
        """user_canceled announces close_notify (RFC 8446 section 6.1), and is no end by itself."""
        sock, peer = self.connected()
        peer.alert(USER_CANCELED, WARNING)
        peer.data(b"x")
        self.assertEqual(sock.recv(64), b"x")
        peer.alert(USER_CANCELED, WARNING)
        peer.closeNotify()
        self.assertEnds(sock)

    def test_afterEnd(self) -> None:
        """What comes after close_notify is nobody's (RFC 8446 section 6.1)."""
        sock, peer = self.connected()
        peer.data(b"x")
        peer.closeNotify()
        peer.data(b"never")
        peer.alert(HANDSHAKE_FAILURE)
        self.assertEqual(sock.recv(64), b"x")
        self.assertEnds(sock)

    # errors

    def breaks(self, sock: socket.socket, peer: RecordPeer, number: int = errno.ECONNRESET) -> None:
        """The data first, then an error for ever; nothing is sent any more, and the peer sees an end without close_notify."""
        self.assertEqual(sock.recv(4, WAITALL), b"good")
        self.assertBroken(sock, number)
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            for _ in range(3):
                sock.send(b"x")
        self.assertEqual(peer.rest()[:2], (b"", []))
        sock.close()

    def test_alert(self) -> None:
        """An alert, fatal or said to be a warning."""
        for level in (FATAL, WARNING):
            with self.subTest(level):
                sock, peer = self.connected()
                peer.data(b"good")
                peer.alert(HANDSHAKE_FAILURE, level)
                self.breaks(sock, peer)

    def test_alertSmallBuffer(self) -> None:
        """An alert that is longer than the buffer."""
        sock, peer = self.connected()
        peer.alert(HANDSHAKE_FAILURE)
        self.assertFails(errno.ECONNRESET, sock.recv, 1)
        self.assertBroken(sock)

    def test_alertWakes(self) -> None:
        """All that wait learn of an error."""
        sock, peer = self.connected()
        readers = [Thread(lambda: sock.recv(64)) for _ in range(2)]
        time.sleep(0.3)
        peer.alert(HANDSHAKE_FAILURE)
        for reader in readers:
            self.assertFails(errno.ECONNRESET, reader.result, SECONDS)

    def test_badAlerts(self) -> None:
        """Alerts that are none."""
        for content in (b"", b"\x01", b"\x02\x28\x00"):
            with self.subTest(content):
                sock, peer = self.connected()
                peer.data(b"good")
                peer.send(ALERT, content)
                self.breaks(sock, peer)

    def test_keyUpdate(self) -> None:
        """The peer changes its key, which the kernel cannot follow: never garbage."""
        for before in (b"", ticket(7)):
            with self.subTest(before):
                sock, peer = self.connected()
                peer.data(b"good")
                peer.send(HANDSHAKE, before + keyUpdate())
                peer.data(b"under the old key")
                self.breaks(sock, peer, errno.EIO)

    def test_keyUpdateSmallBuffer(self) -> None:
        """The same with a buffer of one byte, and by MSG_PEEK."""
        for flags in (0, PEEK):
            sock, peer = self.connected()
            peer.send(HANDSHAKE, keyUpdate())
            self.assertFails(errno.EIO, sock.recv, 1, flags)
            self.assertBroken(sock, errno.EIO)

    def test_otherMessages(self) -> None:
        """Handshake messages that have no place here."""
        for kind in (0, 1, 2, CERTIFICATE_REQUEST, 255):
            with self.subTest(kind):
                sock, peer = self.connected()
                peer.data(b"good")
                peer.send(HANDSHAKE, message(kind, bytes(20)))
                self.breaks(sock, peer)

    def test_otherRecords(self) -> None:
        """Records of types that have no place here."""
        for kind in (20, 24, 99):
            with self.subTest(kind):
                sock, peer = self.connected()
                peer.data(b"good")
                peer.send(kind, b"\x01")
                self.breaks(sock, peer)

    def test_forged(self) -> None:
        """A record that was changed on the way."""
        sock, peer = self.connected()
        forged = bytearray(peer.seal(DATA, b"good") + peer.seal(DATA, b"evil"))
        forged[-1] ^= 1
        peer.sock.sendall(forged)
        self.breaks(sock, peer)

    def test_replayed(self) -> None:
        """A record that comes twice."""
        sock, peer = self.connected()
        peer.sock.sendall(2 * peer.seal(DATA, b"good"))
        self.breaks(sock, peer)

    def test_notTLS(self) -> None:
        """What is no record: too long, too short, of another version, plaintext."""
        for garbage in (
            b"\x17\x03\x03\xff\xff" + bytes(100),
            b"\x17\x03\x03\x00\x03abc",
            b"\x17\x03\x01\x00\x20" + bytes(32),
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"HTTP/1.0 400 Bad Request\r\n\r\n",
        ):
            with self.subTest(garbage[:8]):
                sock, peer = self.connected()
                peer.data(b"good")
                peer.sock.sendall(garbage)
                self.breaks(sock, peer)

    def test_truncated(self) -> None:
        """TCP ends without close_notify: between records, in one, or in the header of one."""
        for size in (0, 3, 10, 20):
            with self.subTest(size):
                sock, peer = self.connected()
                peer.sock.sendall(peer.seal(DATA, b"good") + peer.seal(DATA, b"never")[:size])
                peer.fin()
                self.assertEqual(sock.recv(64), b"good")
                self.assertBroken(sock)

    def test_truncatedMessage(self) -> None:
        """It ends in the middle of a ticket."""
        sock, peer = self.connected()
        peer.send(HANDSHAKE, ticket()[:50])
        peer.fin()
        self.assertBroken(sock)

    def test_vouched(self) -> None:
        """Where the daemon has vouched for it, the end of TCP is the end, but an alert is none."""
        sock, peer = self.connected(Way.VOUCHED)
        self.said(sock)  # the daemon answers after it has vouched
        peer.data(b"all")
        peer.fin()
        self.assertEqual(sock.recv(64), b"all")
        self.assertEnds(sock)
        sock, peer = self.connected(Way.VOUCHED)
        peer.data(b"good")
        peer.alert(HANDSHAKE_FAILURE)
        self.breaks(sock, peer)

    def test_reset(self) -> None:
        """TCP is reset."""
        sock, peer = self.connected()
        peer.data(b"good")
        self.arrived(sock, 4)
        peer.reset()
        self.assertTrue(self.ready(sock, select.POLLRDHUP) & select.POLLRDHUP)
        self.assertEqual(sock.recv(64), b"good")
        self.assertBroken(sock)

    def test_errorFirstSeenBySend(self) -> None:
        """A program that sends before it reads learns of it there, and reads the same afterwards."""
        sock, peer = self.connected()
        peer.data(b"x")
        self.assertEqual(sock.recv(64), b"x")  # the tickets are out of the way
        peer.sock.sendall(b"\x17\x03\x03\xff\xff" + bytes(100))
        self.ready(sock, select.POLLIN)
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            for _ in range(3):
                sock.send(b"x")
        self.assertBroken(sock)

    # calls

    def test_splice(self) -> None:
        """splice moves data, passes over tickets, and knows the end from an error."""
        for alert, level in ((0, WARNING), (HANDSHAKE_FAILURE, FATAL)):
            sock, peer = self.connected()
            source, target = os.pipe()
            self.addCleanup(os.close, source)
            self.addCleanup(os.close, target)
            peer.ticket(300)
            peer.data(b"spliced")
            peer.ticket()
            peer.data(b"again")
            got = b""
            while len(got) < 12:
                self.assertTrue(os.splice(sock.fileno(), target, 100))
                got += os.read(source, 100)
            self.assertEqual(got, b"splicedagain")
            peer.ticket()
            peer.alert(alert, level)
            if alert:
                self.assertFails(errno.ECONNRESET, os.splice, sock.fileno(), target, 100)
                self.assertFails(errno.ECONNRESET, os.splice, sock.fileno(), target, 100)
            else:
                self.assertEqual([os.splice(sock.fileno(), target, 100) for _ in range(2)], [0, 0])

    def test_spliceKeyUpdate(self) -> None:
        """splice meets a change of keys, and the end of TCP."""
        sock, peer = self.connected()
        source, target = os.pipe()
        self.addCleanup(os.close, source)
        self.addCleanup(os.close, target)
        peer.send(HANDSHAKE, keyUpdate())
        self.assertFails(errno.EIO, os.splice, sock.fileno(), target, 100)
        self.assertBroken(sock, errno.EIO)
        sock, peer = self.connected()
        peer.fin()
        self.assertFails(errno.ECONNRESET, os.splice, sock.fileno(), target, 100)

    def test_ancillary(self) -> None:
        """Nothing of TLS shows in ancillary data or flags."""
        sock, peer = self.connected()
        peer.ticket()
        peer.data(b"data")
        self.assertEqual(sock.recvmsg(64, 256)[:3], (b"data", [], 0))
        self.assertFails(errno.EOPNOTSUPP, sock.recv, 1, socket.MSG_OOB)
        self.assertFails(errno.EAGAIN, sock.recv, 1, socket.MSG_ERRQUEUE)

    def test_read(self) -> None:
        """read and readv are recv."""
        sock, peer = self.connected()
        peer.ticket()
        peer.data(b"data")
        peer.closeNotify()
        first, second = bytearray(1), bytearray(64)
        self.assertEqual(os.readv(sock.fileno(), [first, second]), 4)
        self.assertEqual(bytes(first + second[:3]), b"data")
        self.assertEqual(os.read(sock.fileno(), 64), b"")

    def test_edge(self) -> None:
        """Edge-triggered epoll tells of each arrival."""
        sock, peer = self.connected()
        sock.setblocking(False)
        edge = self.keep(select.epoll())
        edge.register(sock, select.EPOLLIN | select.EPOLLET)
        for number in range(3):
            peer.ticket()
            peer.data(bytes([number]))
            got = b""
            while not got:
                self.assertTrue(edge.poll(SECONDS))
                try:
                    got = sock.recv(64)
                except BlockingIOError:
                    continue
            self.assertEqual(got, bytes([number]))

    def test_compat(self) -> None:
        """A 32-bit program sees the same: data behind tickets, the end, no ancillary data."""
        try:
            caller = Compat()
        except NotImplementedError as reason:
            self.skipTest(str(reason))
        sock, peer = self.connected()
        room, control = caller.put(bytes(64)), caller.put(bytes(64))
        arguments = caller.put(struct.pack("=4I", sock.fileno(), room, 64, 0))

        def recvmsg() -> int:
            header = caller.message(room, 64, control, 64)
            size = caller.call(RECVMSG, sock.fileno(), header, 0)
            # Neither ancillary data nor flags.
            self.assertEqual(struct.unpack("=2I", caller.get(header + 20, 8)), (0, 0))
            return size

        for receive in (
            lambda: caller.call(RECVFROM, sock.fileno(), room, 64, 0, 0, 0),
            lambda: caller.call(SOCKETCALL, SOCKETCALL_RECV, arguments),
            recvmsg,
        ):
            peer.ticket(300)
            peer.data(b"thirty-two")
            self.assertEqual(caller.get(room, receive()), b"thirty-two")
        header = caller.message(room, 1, control, 64)
        peer.ticket(300)
        peer.data(b"x")
        self.assertEqual(caller.call(RECVMSG, sock.fileno(), header, 0), 1)
        peer.closeNotify()
        self.assertEqual(caller.call(RECVMSG, sock.fileno(), header, 0), 0)
        sock, peer = self.connected()
        peer.send(HANDSHAKE, keyUpdate())
        self.assertFails(errno.EIO, caller.call, RECVMSG, sock.fileno(), header, 0)


class ServerReceiving(ClientReceiving):
    """What a program receives that has accepted."""

    def connected(self, way: Way = Way.GOOD) -> tuple[socket.socket, RecordPeer]:
        return self.asServer(way)

