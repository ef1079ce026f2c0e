#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Watch network devices come, go and change, until Ctrl-C.  No special rights are needed."""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python.failure import Failure

from ssa.netlink.codec import AttributePolicy, AttributeTable, Kind, NetlinkMessage
from ssa.netlink.errors import NetlinkException
from ssa.netlink.port import NETLINK_ROUTE, NetlinkPort
from ssa.netlink.protocol import NetlinkProtocol

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTNLGRP_LINK = 1
IFF_UP = 1
DEVICE = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
ATTRIBUTES = AttributeTable(AttributePolicy(3, "name", Kind.STRING), ignoreUnknown=True)


class DeviceWatcher(NetlinkProtocol):
    """Prints a line for each device that is there, comes, changes or goes."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.devices: dict[int, tuple[str, bool]] = {}
        self.failed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        assert self.port is not None
        self.port.joinGroup(RTNLGRP_LINK)
        self.lookAgain()

    def overrun(self) -> None:
        """Notifications were lost: what is known may be wrong."""
        super().overrun()
        self.lookAgain()

    def lookAgain(self) -> None:
        """Ask for all devices; what has gone unnoticed is not among them."""
        Deferred.fromCoroutine(self.resynchronise()).addErrback(self.giveUp)

    def giveUp(self, reason: Failure) -> None:
        if not self.failed.called:
            self.failed.errback(reason)

    async def resynchronise(self) -> None:
        seen = set()
        for message in await self.dump(RTM_GETLINK, DEVICE.pack(0, 0, 0, 0, 0), attempts=5):
            seen.add(self.learn(message))
        for index in self.devices.keys() - seen:
            print(f"- {self.devices.pop(index)[0]}", flush=True)

    def notificationReceived(self, message: NetlinkMessage, group: int) -> None:
        if message.type in (RTM_NEWLINK, RTM_DELLINK):
            self.learn(message)

    def learn(self, message: NetlinkMessage) -> int:
        """Take in what the kernel says of a device; returns the device's index."""
        _, _, index, flags, _ = DEVICE.unpack_from(message.payload)
        name = str(ATTRIBUTES.decode(message.payload[DEVICE.size :])["name"])
        if message.type == RTM_DELLINK:
            if self.devices.pop(index, None) is not None:
                print(f"- {name}", flush=True)
            return index
        before = self.devices.get(index)
        now = self.devices[index] = (name, bool(flags & IFF_UP))
        if before != now:
            print(f"{'+' if before is None else '~'} {name} {'up' if now[1] else 'down'}", flush=True)
        return index


async def main(reactor: Any) -> None:
    watcher = DeviceWatcher(reactor)
    port = NetlinkPort(watcher, NETLINK_ROUTE, reactor, receiveBuffer=1 << 20)
    port.startListening()
    try:
        await watcher.failed
    except NetlinkException as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    react(main)
