# SPDX-License-Identifier: MIT
"""The contract of L{ssa.test.netlinkcontract}, on the kernel in memory and on the one that runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ssa.netlink.port import NETLINK_GENERIC, NetlinkPort, RealNetlink
from ssa.netlink.testing import MemoryNetlink, MemoryReactor
from ssa.test.netlinkcontract import NetlinkContract


class MemoryTests(NetlinkContract):
    """The kernel in memory."""

    def setUp(self) -> None:
        self.kernel = MemoryNetlink()
        self.system = self.kernel
        self.reactor = MemoryReactor(self.kernel)

    def drive(self, test: Coroutine[Any, Any, None]) -> None:
        result = Deferred.fromCoroutine(test)
        self.reactor.run()
        self.successResultOf(result)

    async def turn(self) -> None:
        await deferLater(self.reactor, 0)

    def stall(self, seconds: float) -> None:
        self.reactor.rightNow += seconds

    def spoof(self, port: NetlinkPort, data: bytes) -> None:
        self.kernel.socketOf(port).deliver(data, sender=4242)


class RealTests(NetlinkContract):
    """The kernel that runs."""

    timeout = 30

    def setUp(self) -> None:
        self.system = RealNetlink()
        self.reactor = reactor

    def drive(self, test: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(test)

    async def turn(self) -> None:
        await deferLater(self.reactor, 0.001)

    def stall(self, seconds: float) -> None:
        time.sleep(seconds)

    def spoof(self, port: NetlinkPort, data: bytes) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as other:
            other.bind((0, 0))
            other.sendto(data, (port.portID, 0))


del NetlinkContract
