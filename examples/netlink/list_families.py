#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""List the generic netlink families of the running kernel, with their commands and multicast groups."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import react

from ssa.netlink.generic import GENL_CMD_CAP_DO, GENL_CMD_CAP_DUMP, GenericNetlinkProtocol
from ssa.netlink.port import NETLINK_GENERIC, NetlinkPort


def describe(flags: int) -> str:
    """What a command can do, in words."""
    words = [word for bit, word in ((GENL_CMD_CAP_DO, "do"), (GENL_CMD_CAP_DUMP, "dump")) if flags & bit]
    return "+".join(words) or "-"


async def main(reactor: Any) -> None:
    protocol = GenericNetlinkProtocol(reactor)
    port = NetlinkPort(protocol, NETLINK_GENERIC, reactor)
    port.startListening()
    for family in sorted(await protocol.families(), key=lambda family: family.number):
        print(f"{family.name}: number {family.number}, version {family.version}")
        for operation in family.operations:
            print(f"    command {operation.number}: {describe(operation.flags)}")
        for name, number in family.groups.items():
            print(f"    group {name}: {number}")
    await port.stopListening()


if __name__ == "__main__":
    react(main)
