# SPDX-License-Identifier: MIT
"""Tests of L{ssa.readiness}, on real sockets, without a reactor that runs."""

from __future__ import annotations

import socket

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from ssa.readiness import BROKEN, READ, WRITE, Readiness


class ReadinessTests(TestCase):
    """Interest, events, ends."""

    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        self.readiness = Readiness(IReactorFDSet(self.reactor))
        self.addCleanup(self.readiness.close)
        self.near, self.far = socket.socketpair()
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)
        self.events: list[int] = []

    def turn(self) -> list[int]:
        self.events = []
        self.readiness.doRead()
        return self.events

    def add(self) -> None:
        self.readiness.add(self.near.fileno(), lambda events: self.events.append(events))

    def test_interface(self) -> None:
        verifyObject(IReadDescriptor, self.readiness)

    def test_readerOnlyWhileNeeded(self) -> None:
        self.assertEqual(self.reactor.getReaders(), [])
        self.add()
        self.assertEqual(self.reactor.getReaders(), [self.readiness])
        self.readiness.remove(self.near.fileno())
        self.readiness.remove(self.near.fileno())
        self.assertEqual(self.reactor.getReaders(), [])

    def test_interest(self) -> None:
        self.add()
        self.far.send(b"x")
        self.assertEqual(self.turn(), [])
        self.readiness.want(self.near.fileno(), READ)
        self.assertEqual(self.turn(), [READ])
        self.assertEqual(self.turn(), [READ])
        self.readiness.want(self.near.fileno(), READ | WRITE)
        self.assertEqual(self.turn(), [READ | WRITE])
        self.readiness.want(self.near.fileno(), 0)
        self.assertEqual(self.turn(), [])

    def test_brokenOnce(self) -> None:
        """Without interest the end is told once, not for ever."""
        self.add()
        self.far.close()
        (events,) = self.turn()
        self.assertTrue(events & BROKEN)
        self.assertEqual(self.turn(), [])

    def test_ownerFails(self) -> None:
        """The failure is logged, and the socket no longer watched."""

        def fail(events: int) -> None:
            raise RuntimeError("no")

        self.readiness.add(self.near.fileno(), fail)
        self.readiness.want(self.near.fileno(), WRITE)
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.reactor.getReaders(), [])

    def test_removedByAnother(self) -> None:
        """An owner that removes another one in the same turn is obeyed."""
        calls: list[str] = []

        def owner(name: str, other: socket.socket) -> None:
            calls.append(name)
            self.readiness.remove(other.fileno())

        self.readiness.add(self.near.fileno(), lambda events: owner("near", self.far))
        self.readiness.add(self.far.fileno(), lambda events: owner("far", self.near))
        for sock in (self.near, self.far):
            self.readiness.want(sock.fileno(), WRITE)
        self.turn()
        self.assertEqual(len(calls), 1)

    def test_reactorGivesUp(self) -> None:
        """After the reactor's end nothing raises."""
        self.add()
        self.readiness.connectionLost(Failure(RuntimeError()))
        self.assertEqual(self.readiness.fileno(), -1)
        self.readiness.want(self.near.fileno(), READ)
        self.readiness.remove(self.near.fileno())
        self.assertTrue(self.readiness.logPrefix())
