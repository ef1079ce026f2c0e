# SPDX-License-Identifier: MIT
"""
Makes and removes network devices in a private network namespace, with L{ssa.netlink}, and says what it saw.

Run as a program of its own: C{python -m ssa.test.netdevices devices}, or C{... watch PROGRAM} to run a program there
meanwhile.  Ends with L{NOT_POSSIBLE} where the system does not allow it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from errno import ENODEV, ENOTSUP
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from ssa.netlink.codec import NLM_F_ACK, AttributePolicy, AttributeTable, Kind, NetlinkMessage
from ssa.netlink.errors import NetlinkError
from ssa.netlink.port import NETLINK_ROUTE, NetlinkPort
from ssa.netlink.protocol import NetlinkProtocol

NOT_POSSIBLE = 77
KINDS = ("bridge", "veth")
"""
Devices that need nothing but a name; a kernel may lack any of them.  The modules of others (dummy, ifb) make devices of their
own in the machine's namespace when they are loaded.
"""

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTNLGRP_LINK = 1
NLM_F_CREATE_EXCLUSIVELY = 0x600
IFF_UP = 1
DEVICE = struct.Struct("=BxHiII")
KIND = AttributeTable(AttributePolicy(1, "kind", Kind.STRING), ignoreUnknown=True)
ATTRIBUTES = AttributeTable(
    AttributePolicy(3, "name", Kind.STRING, maximum=15),
    AttributePolicy(18, "information", Kind.NESTED, table=KIND),
    ignoreUnknown=True,
)


def enterNamespace() -> None:
    """Go into a user namespace and a network namespace, which have nobody else in them; ends the process if it cannot."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(0x10000000 | 0x40000000) != 0:
        print(f"no namespaces here: {os.strerror(ctypes.get_errno())}")
        sys.exit(NOT_POSSIBLE)


class Devices(NetlinkProtocol):
    """Keeps what the kernel tells of devices: the message's type, the name and whether it is up."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.seen: list[tuple[int, str, bool]] = []
        self._waiter: tuple[tuple[int, str, bool], Deferred[None]] | None = None

    def notificationReceived(self, message: NetlinkMessage, group: int) -> None:
        super().notificationReceived(message, group)
        if group == RTNLGRP_LINK and message.type in (RTM_NEWLINK, RTM_DELLINK):
            self.seen.append(describe(message))
            if self._waiter is not None and self._waiter[0] == self.seen[-1]:
                waiter = self._waiter[1]
                self._waiter = None
                waiter.callback(None)

    async def saw(self, *what: Any) -> None:
        """Wait for a notification."""
        if what not in self.seen:
            waiter: Deferred[None] = Deferred()
            self._waiter = (what, waiter)
            await waiter

    async def change(self, type: int, name: str, flags: int = 0, kind: str = "", up: bool = False) -> None:
        """Make, change or remove a device by its name."""
        values: dict[str, Any] = {"name": name}
        if kind:
            values["information"] = {"kind": kind}
        state = (IFF_UP if up else 0, IFF_UP)
        await self.request(type, DEVICE.pack(0, 0, 0, *state) + ATTRIBUTES.encode(values), flags | NLM_F_ACK)

    async def make(self, name: str) -> str:
        """Make a device of a kind that this kernel has; returns the kind, or "" if there is none."""
        for kind in KINDS:
            try:
                await self.change(RTM_NEWLINK, name, NLM_F_CREATE_EXCLUSIVELY, kind)
            except NetlinkError as error:
                if error.errno != ENOTSUP:
                    raise
            else:
                return kind
        return ""


def describe(message: NetlinkMessage) -> tuple[int, str, bool]:
    """What a message says of a device."""
    flags = DEVICE.unpack_from(message.payload)[3]
    name = ATTRIBUTES.decode(message.payload[DEVICE.size :])["name"]
    return message.type, str(name), bool(flags & IFF_UP)


async def devices(protocol: Devices) -> dict[str, Any]:
    """Make a device, look at it, remove it."""
    before = [describe(one) for one in await protocol.dump(RTM_GETLINK, DEVICE.pack(0, 0, 0, 0, 0))]
    kind = await protocol.make("ssa0")
    if not kind:
        sys.exit(NOT_POSSIBLE)
    await protocol.saw(RTM_NEWLINK, "ssa0", False)
    await protocol.change(RTM_NEWLINK, "ssa0", up=True)
    await protocol.saw(RTM_NEWLINK, "ssa0", True)
    reply = await protocol.request(RTM_GETLINK, DEVICE.pack(0, 0, 0, 0, 0) + ATTRIBUTES.encode({"name": "ssa0"}))
    assert reply is not None
    try:
        await protocol.change(RTM_NEWLINK, "ssa0", NLM_F_CREATE_EXCLUSIVELY, kind)
    except NetlinkError as error:
        twice = error.errno
    after = [describe(one)[1] for one in await protocol.dump(RTM_GETLINK, DEVICE.pack(0, 0, 0, 0, 0))]
    await protocol.change(RTM_DELLINK, "ssa0")
    await protocol.saw(RTM_DELLINK, "ssa0", False)
    try:
        await protocol.change(RTM_DELLINK, "ssa0")
    except NetlinkError as error:
        assert error.errno == ENODEV, error
    return {"before": before, "reply": describe(reply), "twice": twice, "after": after, "refused": protocol.refused.total()}


async def watch(protocol: Devices, program: str) -> dict[str, Any]:
    """Let a program watch the same."""
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        output: IO[str] = child.stdout
        lines = [output.readline()]
        kind = await protocol.make("ssa0")
        if kind:
            await protocol.change(RTM_NEWLINK, "ssa0", up=True)
            await protocol.change(RTM_DELLINK, "ssa0")
            while lines[-1] not in ("- ssa0\n", ""):
                lines.append(output.readline())
        child.send_signal(signal.SIGINT)
        status = child.wait(20)
    if not kind:
        sys.exit(NOT_POSSIBLE)
    return {"lines": lines, "status": status}


async def main(reactor: Any, what: str, *arguments: str) -> None:
    """Do one of the two."""
    protocol = Devices(reactor)
    port = NetlinkPort(protocol, NETLINK_ROUTE, reactor)
    port.startListening()
    port.joinGroup(RTNLGRP_LINK)
    result = await (devices(protocol) if what == "devices" else watch(protocol, *arguments))
    await port.stopListening()
    print(json.dumps(result))


if __name__ == "__main__":
    if not hasattr(socket, "AF_NETLINK"):
        sys.exit(NOT_POSSIBLE)
    enterNamespace()
    react(main, sys.argv[1:])
