# SPDX-License-Identifier: MIT
"""What a test needs that fetches: a web server, and the threads that names are looked up in."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as _reactor
from twisted.trial.unittest import TestCase

from ssa.resolve import DaemonThreadPool, Resolver
from ssa.revocation.fetch import Fetcher
from ssa.test.responders import Web

reactor: Any = _reactor


class FetchCase(TestCase):
    """
    A web server and a fetcher.

    @ivar web: the server.
    @ivar pool: threads for what waits.
    @ivar fetcher: it fetches from there.
    """

    timeout = 30

    def setUp(self) -> None:
        self.web = Web()
        self.addCleanup(self.web.stop)
        self.pool = DaemonThreadPool(0, 2, "test")
        self.pool.start()
        self.addCleanup(self.pool.abandon)
        self.fetcher = self.newFetcher()

    def newFetcher(self) -> Fetcher:
        """One that has fetched nothing yet, with a resolver of its own."""
        return Fetcher(reactor, reactor, Resolver(reactor, reactor, self.pool), self.pool)
