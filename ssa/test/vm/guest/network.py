# SPDX-License-Identifier: MIT
"""Network namespaces, and user namespaces of ordinary users."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ssa.intercept import linux

_NAMED = Path("/run/netns")  # as ip-netns(8)


def ip(*words: str) -> None:
    """
    Run ip(8).

    @raise subprocess.CalledProcessError: it failed.
    """
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL)


class Pair:
    """
    Two network namespaces with a cable between them, and no other way in or out.

    @ivar names: of the namespaces.
    """

    names = ("ssa-a", "ssa-b")
    four = ("192.0.2.1", "192.0.2.2")
    six = ("2001:db8::1", "2001:db8::2")

    def __init__(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.names[1])
        for name, four, six in zip(self.names, self.four, self.six, strict=True):
            ip("-n", name, "address", "add", f"{four}/24", "dev", "cable")
            ip("-n", name, "address", "add", f"{six}/64", "dev", "cable", "nodad")
            ip("-n", name, "link", "set", "cable", "up")

    def close(self) -> None:
        """Give the names back; a namespace lives as long as something in it does."""
        for name in self.names:
            ip("netns", "delete", name)


def enter(name: str) -> None:
    """This thread, and those that it starts, are in a named network namespace from now on."""
    with open(_NAMED / name, "rb") as namespace:
        linux.setns(namespace.fileno(), linux.CLONE_NEWNET)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread, and those that it starts, are in a named network namespace for the time of the block."""
    with open("/proc/thread-self/ns/net", "rb") as own:
        enter(name)
        try:
            yield
        finally:
            linux.setns(own.fileno(), linux.CLONE_NEWNET)


def ownUserNamespace(network: bool = False) -> None:
    """Be root in a new user namespace, with all capabilities there; perhaps in a new network namespace that belongs to it."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | (linux.CLONE_NEWNET if network else 0))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    effective, _, _ = linux.getCapabilities()
    assert effective & 1 << 12, "no CAP_NET_ADMIN in the new namespace"
