# SPDX-License-Identifier: MIT
"""What the daemon counts: attempts by role, user and errno, and bytes."""

from __future__ import annotations

import errno
from collections import Counter

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import HostnameAddress, Role
from ssa.counts import MOST_USERS, OTHER, Counts
from ssa.errors import Cause, SSAError
from ssa.policy.profile import Limits, Profile
from ssa.protocol.messages import AcceptNotify, Answer, CloseNotify, UpgradeNotify
from ssa.test.fakes import LOCAL, REMOTE
from ssa.test.test_sockets import DispatcherCase, ListenerCase

CLIENT, SERVER = Role.CLIENT, Role.SERVER


class CountsTests(SynchronousTestCase):
    """The numbers."""

    def test_users(self) -> None:
        """Each user has numbers of its own, all have theirs together."""
        counts = Counts()
        counts.succeeded(CLIENT, 1)
        counts.failed(CLIENT, 1, SSAError(errno.EPROTO, "no"))
        counts.failed(CLIENT, 2, SSAError(errno.EPROTO, "no"))
        counts.failed(SERVER, 2, SSAError(errno.EKEYEXPIRED, "no"))
        counts.carried(2, 10, 5)
        self.assertEqual((1, 1), (counts.ofUser(1).attempts[CLIENT].succeeded, counts.ofUser(1).attempts[CLIENT].failed))
        self.assertEqual({"EKEYEXPIRED": 1}, counts.ofUser(2).attempts[SERVER].errors)
        self.assertEqual({"EPROTO": 2}, counts.all.attempts[CLIENT].errors)
        self.assertEqual((10, 5), (counts.all.received, counts.all.sent))
        self.assertEqual((0, 0), (counts.ofUser(1).received, counts.ofUser(3).attempts[CLIENT].failed))

    def test_names(self) -> None:
        """Numbers that an interceptor makes up are counted together."""
        counts = Counts()
        for number in range(1000, 2000):
            counts.failed(CLIENT, 1, SSAError(number, "odd"))
        self.assertEqual({OTHER: 1000}, counts.all.attempts[CLIENT].errors)

    def test_manyUsers(self) -> None:
        """Who does nothing for a long time is forgotten before memory is full; the numbers of all stay."""
        counts = Counts()
        for uid in range(MOST_USERS):
            counts.succeeded(CLIENT, uid)
        counts.succeeded(CLIENT, 0)
        counts.succeeded(CLIENT, MOST_USERS)
        self.assertEqual([2, 0, 1], [counts.ofUser(uid).attempts[CLIENT].succeeded for uid in (0, 1, MOST_USERS)])
        self.assertEqual(MOST_USERS + 2, counts.all.attempts[CLIENT].succeeded)


class ClientTests(DispatcherCase):
    """connect(2) and TLS_UPGRADE."""

    def counted(self, role: Role = CLIENT, uid: int = 1000) -> tuple[int, Counter[str]]:
        counts = self.around.services.counts
        attempts = counts.ofUser(uid).attempts[role]
        self.assertEqual(attempts.errors, counts.all.attempts[role].errors)
        return attempts.succeeded, attempts.errors

    def test_connects(self) -> None:
        """What succeeds, what a check refuses, what the policy refuses, and what the program gives up."""
        self.connected()
        self.newSocket(2)
        answer = self.connect(id=2)
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.factory.refuse(Cause.EXPIRED.error())
        self.assertEqual(errno.EKEYEXPIRED, self.result(answer))
        self.around.factories.error = Cause.POLICY.error()
        self.assertEqual(errno.EPERM, self.result(self.connect(id=2)))
        self.around.factories.error = None
        pending = self.connect(id=2)
        self.tell(CloseNotify, 2)
        self.assertEqual(errno.ECANCELED, self.result(pending))
        self.assertEqual((1, {"EKEYEXPIRED": 1, "EPERM": 1, "ECANCELED": 1}), self.counted())

    def test_onceForAName(self) -> None:
        """A name with a bad address and a good one is one attempt."""
        self.newSocket()
        self.connect(HostnameAddress("server.example", 443))
        self.around.resolver.asked.pop()[2].callback([REMOTE])
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.factory.refuse(Cause.REVOKED.error())
        self.assertEqual((0, {"EKEYREVOKED": 1}), self.counted())

    def test_wrongTime(self) -> None:
        """A call at the wrong time is no attempt."""
        self.connected()
        self.assertEqual(errno.EISCONN, self.result(self.connect()))
        self.assertEqual((1, {}), self.counted())

    def test_upgrade(self) -> None:
        """An upgrade counts for its role."""
        self.newSocket()
        answer: Deferred[Answer] = self.send(UpgradeNotify, 1, SERVER, True, LOCAL, REMOTE)
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.factory.refuse(Cause.NOT_TLS.error())
        self.assertEqual(errno.EPROTO, self.result(answer))
        self.assertEqual((0, {"EPROTO": 1}), self.counted(SERVER))
        self.assertEqual((0, {}), self.counted(CLIENT))

    def test_bytes(self) -> None:
        """Bytes stay when the connection has ended, and when the socket is closed; none counts twice."""
        counts = self.around.services.counts
        relay = self.connected().relays[0]
        other = self.connected(2).relays[0]
        relay.bytesIn, relay.bytesOut, other.bytesIn = 100, 20, 3
        self.assertEqual(123, self.dispatcher.bytesMoved)
        relay.end()
        self.assertEqual(123, self.dispatcher.bytesMoved)
        self.tell(CloseNotify, 1)
        self.assertEqual((123, 100, 20), (self.dispatcher.bytesMoved, counts.all.received, counts.all.sent))
        self.tell(CloseNotify, 2)
        other.bytesOut = 4  # what was still to be sent
        other.end()
        self.assertEqual((127, 103, 24), (self.dispatcher.bytesMoved, counts.ofUser(1000).received, counts.all.sent))


class ServerTests(ListenerCase):
    """Connections that a listener has accepted: each counts exactly once, whatever becomes of it."""

    profile = Profile(limits=Limits(maxAcceptQueue=5))

    def test_accepts(self) -> None:
        """The program gets it, a check refuses it, the interceptor does, we have made a mistake, or the listener is closed."""
        real = self.listen()
        for _ in range(5):
            self.client(real)
        self.around.reactor.readable()
        self.factory.succeed()
        self.factory.succeed()
        self.interceptor.accepts.pop(0)[1].callback((50, self.interceptor.plaintext()))
        self.tell(AcceptNotify, 50, 88, 1000, "child", "/bin/child", 1, 2, 3, 4)
        self.interceptor.accepts.pop(0)[1].errback(SSAError(errno.ENFILE, "no"))
        self.factory.refuse(Cause.NOT_TLS.error())
        mistake: SSAError = ZeroDivisionError()  # type: ignore[assignment]
        self.factory.refuse(mistake)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.tell(CloseNotify, 1)
        attempts = self.around.services.counts.ofUser(1000).attempts
        self.assertEqual({"ENFILE": 1, "EPROTO": 1, "EIO": 1, "ECANCELED": 1}, attempts[SERVER].errors)
        self.assertEqual((1, 4), (attempts[SERVER].succeeded, attempts[SERVER].failed))
        self.assertEqual((0, 0), (attempts[CLIENT].succeeded, attempts[CLIENT].failed))

    def test_offered(self) -> None:
        """A connection that waits for the program when the listener is closed has failed, too."""
        real = self.listen()
        self.client(real)
        self.around.reactor.readable()
        self.factory.succeed()
        self.tell(CloseNotify, 1)
        self.interceptor.accepts.pop(0)[1].callback((50, self.interceptor.plaintext()))
        self.assertEqual({"ECANCELED": 1}, self.around.services.counts.all.attempts[SERVER].errors)
