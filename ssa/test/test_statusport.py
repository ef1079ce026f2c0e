# SPDX-License-Identifier: MIT
"""The status socket: who may ask, and clients that are hostile."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock, Cooperator
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from ssa.protocol.statusport import (
    INTERVAL,
    MOST_AT_A_TIME,
    MOST_OF_OTHERS,
    MOST_OF_USER,
    SECONDS,
    Answer,
    Asking,
    StatusPort,
)
from ssa.test.test_supervised import PumpedReactor, openDescriptors

ROOT, USER = 0, 1000


class AskingTests(SynchronousTestCase):
    """Who may ask, and when."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asking = Asking(self.clock, lambda uid: uid == ROOT)

    def once(self, uid: int) -> float:
        """Ask, and be answered at once."""
        wait = self.asking.begin(uid)
        if not wait:
            self.asking.end(uid)
        return wait

    def test_interval(self) -> None:
        """A user waits between two documents, as long as it is told; others and root do not."""
        self.assertEqual(0, self.once(USER))
        self.clock.advance(0.25)
        self.assertEqual(0.75, self.once(USER))
        self.assertEqual([0] * 3, [self.once(uid) for uid in (USER + 1, ROOT, ROOT)])
        self.clock.advance(0.75)
        self.assertEqual(0, self.once(USER))
        self.clock.advance(INTERVAL)
        self.assertEqual(0, self.once(USER))

    def test_refusedIsNoDocument(self) -> None:
        """Asking too early does not make the wait longer."""
        self.once(USER)
        for _ in range(9):
            self.clock.advance(0.1)
            self.assertGreater(self.once(USER), 0)
        self.clock.advance(0.101)
        self.assertEqual(0, self.once(USER))

    def test_ofUser(self) -> None:
        """So many at a time of one user; one more when one has ended."""
        for _ in range(MOST_OF_USER):
            self.assertEqual(0, self.asking.begin(USER))
            self.clock.advance(INTERVAL)
        self.assertEqual(INTERVAL, self.asking.begin(USER))
        self.assertEqual(0, self.asking.begin(USER + 1))
        self.asking.end(USER)
        self.assertEqual(0, self.asking.begin(USER))

    def test_ofOthers(self) -> None:
        """However many users ask, root is answered."""
        for uid in range(1, MOST_OF_OTHERS + 1):
            self.assertEqual(0, self.asking.begin(uid))
            self.clock.advance(INTERVAL)
        self.assertEqual(INTERVAL, self.asking.begin(USER))
        for _ in range(MOST_AT_A_TIME - MOST_OF_OTHERS):
            self.assertEqual(0, self.asking.begin(ROOT))
        self.assertEqual(INTERVAL, self.asking.begin(ROOT))
        self.asking.end(ROOT)
        self.assertEqual(0, self.asking.begin(ROOT))

    def test_manyUsers(self) -> None:
        """One person with very many user ids gets ten documents in a second, and is not remembered for longer."""
        got = 0
        for uid in range(1, 10_001):
            got += self.once(uid) == 0
            self.clock.advance(0.001)
        self.assertLessEqual(got, 111)
        self.assertLessEqual(len(self.asking._last), 21)
        self.assertEqual(0, self.once(ROOT))


class Transport(StringTransport):
    """Remembers whether it was cut."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class AnswerTests(SynchronousTestCase):
    """From the document to the transport."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.transport: Any = Transport()
        self.made = 0
        self.cooperator = Cooperator(lambda: lambda: True, lambda call: self.clock.callLater(1, call))

    def pieces(self, number: int = 5) -> Iterator[str]:
        for _ in range(number):
            self.made += 1
            yield f"<{self.made}>" if self.made != 2 else ""

    def advance(self, turns: int) -> None:
        for _ in range(turns):
            self.clock.advance(1)

    def test_whole(self) -> None:
        """Piece by piece, one in each turn, then the end."""
        Answer(self.transport, self.pieces(), self.cooperator)
        self.assertEqual(0, self.made)
        self.advance(1)
        self.assertEqual((1, b"<1>"), (self.made, self.transport.value()))
        self.advance(9)
        self.assertEqual(b"<1><3><4><5>", self.transport.value())
        self.assertTrue(self.transport.disconnecting)
        self.assertIsNone(self.transport.producer)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_slow(self) -> None:
        """Nothing is made while the client does not read."""
        Answer(self.transport, self.pieces(), self.cooperator)
        self.advance(1)
        self.transport.producer.pauseProducing()
        self.advance(9)
        self.assertEqual((1, []), (self.made, self.clock.getDelayedCalls()))
        self.transport.producer.resumeProducing()
        self.advance(9)
        self.assertEqual(5, self.made)
        self.assertTrue(self.transport.disconnecting)

    def test_gone(self) -> None:
        """Nothing is made for a client that has gone."""
        Answer(self.transport, self.pieces(), self.cooperator)
        self.advance(1)
        self.transport.producer.stopProducing()
        self.advance(9)
        self.assertEqual((1, []), (self.made, self.clock.getDelayedCalls()))
        self.assertFalse(self.transport.disconnecting)

    def test_mistake(self) -> None:
        """A document that cannot be made is logged, and cut off: what came is no whole document."""

        def broken() -> Iterator[str]:
            yield '{"ssa_status": 1'
            raise ZeroDivisionError

        Answer(self.transport, broken(), self.cooperator)
        self.advance(3)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertTrue(self.transport.aborted)
        self.assertIsNone(self.transport.producer)


class Documents:
    """Documents of a size."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.made: Counter[int] = Counter()
        self.size = 3

    def seesAll(self, uid: int) -> bool:
        return uid == ROOT

    def pieces(self, uid: int) -> Iterator[str]:
        self.asked.append(uid)
        yield '{"whole": ['
        for _ in range(self.size):
            self.made[uid] += 1
            yield '"' + "x" * 1000 + '", '
        yield "0]}\n"


class PortTests(SynchronousTestCase):
    """Real clients."""

    def setUp(self) -> None:
        self.descriptors = openDescriptors()
        self.reactor = PumpedReactor()
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "d.status")
        self.documents = Documents()
        self.port = StatusPort(self.reactor, self.path, self.documents)
        self.port.startListening()
        self.clients: list[socket.socket] = []

    def tearDown(self) -> None:
        self.port.stopListening()
        self.port.stopListening()
        self.reactor.settle()
        for client in self.clients:
            client.close()
        self.assertEqual(["d.status.lock"], os.listdir(self.directory))
        self.assertEqual(openDescriptors(), self.descriptors)
        self.assertEqual([], self.reactor.getDelayedCalls())
        self.assertEqual(set(), self.reactor.readers | self.reactor.writers)
        self.assertEqual(0, self.port._asking.answered)

    def connect(self, uid: int = ROOT) -> socket.socket:
        """A client of some user."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.clients.append(client)
        client.connect(self.path)
        client.setblocking(False)
        with mock.patch("ssa.protocol.statusport.peerCredentials", return_value=(1, uid)):
            self.reactor.settle()
        return client

    def turn(self, seconds: float = 1.0) -> None:
        """Let time pass, so that documents are made and sent."""
        for _ in range(max(1, round(seconds / 0.02))):
            self.reactor.advance(0.02)
            self.reactor.settle()

    def received(self, client: socket.socket) -> bytes:
        """All that has come; C{b"..."} and no end where it is not over yet."""
        data = b""
        while True:
            self.turn(0.1)
            try:
                part = client.recv(1 << 20)
            except BlockingIOError:
                return data + b"..."
            if not part:
                return data
            data += part

    def test_mode(self) -> None:
        """Everybody may connect."""
        status = os.stat(self.path)
        self.assertTrue(stat.S_ISSOCK(status.st_mode))
        self.assertEqual(0o666, status.st_mode & 0o777)

    def test_otherDaemon(self) -> None:
        """Two daemons do not take it from each other."""
        other = StatusPort(self.reactor, self.path, self.documents)
        self.assertRaises(CannotListenError, other.startListening)

    def test_whole(self) -> None:
        """One document, then the end; as the user whom the kernel names."""
        clients = [self.connect(ROOT), self.connect(USER)]
        for client in clients:
            self.assertEqual(4, len(json.loads(self.received(client))["whole"]))
        self.assertEqual([ROOT, USER], self.documents.asked)
        self.assertEqual(os.geteuid() == 0, self.documents.seesAll(os.geteuid()))

    def test_sends(self) -> None:
        """A client that sends gets an error of its own, and its document; nothing of it is read."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.clients.append(client)
        client.connect(self.path)
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        client.setblocking(False)
        self.reactor.settle()
        self.assertRaises(BrokenPipeError, client.send, b"more")
        self.turn()
        self.assertEqual(4, len(json.loads(client.recv(1 << 20))["whole"]))
        self.turn()

    def test_doesNotRead(self) -> None:
        """A client that does not read makes the daemon keep little, and is cut after a time."""
        self.documents.size = 10_000
        client = self.connect(USER)
        self.turn(3)
        made = self.documents.made[USER]
        self.assertLess(made, 1000)
        self.turn(SECONDS - 4)
        self.assertEqual(made, self.documents.made[USER])
        self.assertEqual(1, self.port._asking.answered)
        self.turn(2)
        self.assertEqual(0, self.port._asking.answered)
        self.assertNotIn(b"0]}", self.received(client))

    def test_readsSlowly(self) -> None:
        """Nor can a client that reads a little keep its place for longer."""
        self.documents.size = 10_000
        client = self.connect(USER)
        for _ in range(round(SECONDS) + 1):
            self.turn(1)
            client.recv(100)
        self.assertEqual(0, self.port._asking.answered)

    def test_goes(self) -> None:
        """A client that goes in the middle leaves nothing."""
        self.documents.size = 10_000
        client = self.connect(USER)
        self.turn(1)
        client.close()
        self.turn(1)
        self.assertEqual(0, self.port._asking.answered)

    def test_goesAtOnce(self) -> None:
        """So does one that does not even wait."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(self.path)
        self.turn(1)
        self.assertEqual(0, self.port._asking.answered)

    def test_again(self) -> None:
        """A user who asks in a loop is told when to ask again, and does not make anybody else wait."""
        clients = [self.connect(uid) for uid in (USER, USER, USER, USER + 1, ROOT, USER, ROOT)]
        answers = [json.loads(self.received(client)) for client in clients]
        self.assertEqual([0, 3, 4, 6], [number for number, answer in enumerate(answers) if "whole" in answer])
        for number in (1, 2, 5):
            self.assertEqual(1, answers[number]["ssa_status"])
            self.assertIn("ask again later", answers[number]["error"])
            self.assertEqual(INTERVAL, answers[number]["retry_seconds"])

    def test_tooMany(self) -> None:
        """Who keeps connections open is refused more of them; root is not."""
        self.documents.size = 10_000
        held = [self.connect(USER)]
        self.turn(1.1)
        held.append(self.connect(USER))
        self.turn(1.1)
        self.assertIn(b"ask again later", self.received(self.connect(USER)))
        self.assertEqual(2, self.port._asking.answered)
        self.documents.size = 1
        self.assertIn(b"whole", self.received(self.connect(ROOT)))

    def test_flood(self) -> None:
        """Connections above a rate wait in the kernel's queue: accepting them is work, too."""
        for _ in range(100):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.clients.append(client)
            client.connect(self.path)
        accepted = 0

        def credentials(connection: socket.socket) -> tuple[int, int]:
            nonlocal accepted
            accepted += 1
            return 1, USER

        with mock.patch("ssa.protocol.statusport.peerCredentials", credentials):
            self.reactor.settle()
            self.assertLessEqual(accepted, 32)
            self.assertNotIn(self.port, self.reactor.readers)
            self.turn(0.2)
            self.assertLessEqual(accepted, 60)
            self.turn(2)
        self.assertEqual(100, accepted)
        self.assertEqual([USER], self.documents.asked[:1])
        self.assertLessEqual(len(self.documents.asked), 3)

    def test_shares(self) -> None:
        """Documents of ordinary users share one turn, however many there are; root's do not wait for them."""
        self.documents.size = 100
        with mock.patch("ssa.protocol.statusport._WORK", 0.0):
            for uid in (*range(1, 9), ROOT):
                self.connect(uid)
            self.turn(1)
        root = self.documents.made.pop(ROOT)
        self.assertTrue(40 <= root <= 50, root)
        self.assertTrue(40 <= sum(self.documents.made.values()) <= 50, self.documents.made)
        self.assertEqual(8, len(self.documents.made))

    def test_noDescriptors(self) -> None:
        """Without descriptors it waits, and goes on later."""
        real = self.port._socket
        self.port._socket = mock.Mock(wraps=real)
        assert self.port._socket is not None and real is not None
        self.port._socket.fileno = real.fileno
        self.port._socket.accept.side_effect = OSError(24, "too many open files")
        client = self.connect(ROOT)
        self.assertEqual([], self.documents.asked)
        self.port._socket = real
        self.turn(1)
        self.assertIn(b"whole", self.received(client))

    def test_mistake(self) -> None:
        """A connection that cannot be answered is closed, and the port goes on."""
        with mock.patch.object(self.documents, "pieces", side_effect=RuntimeError("broken")):
            self.assertEqual(b"", self.received(self.connect(ROOT)))
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))
        self.assertEqual(0, self.port._asking.answered)
        self.assertIn(b"whole", self.received(self.connect(ROOT)))

    def test_stop(self) -> None:
        """Stopping cuts what is being answered."""
        self.documents.size = 10_000
        client = self.connect(ROOT)
        self.turn(1)
        self.port.stopListening()
        self.assertNotIn(b"0]}", self.received(client))
