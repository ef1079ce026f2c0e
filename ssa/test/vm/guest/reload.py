# SPDX-License-Identifier: MIT
"""
Load and unload: C{python -m ssa.test.vm.guest.reload [--times N]}, as root, the module loaded and no daemon.

In between a daemon registers, or dies, or has not answered yet, and there are sockets of every kind.  What is lost is for
kmemleak to find.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from errno import ENETDOWN, EPROTONOSUPPORT

from ssa.test.vm.guest import module
from ssa.test.vm.guest.hostile import DAEMON, Hostile
from ssa.test.vm.guest.link import Link
from ssa.test.vm.guest.programs import connectName, server, tls
from ssa.test.vm.guest.standin import Started

_SECONDS = 60.0


def _errno(family: int = socket.AF_INET) -> int:
    """What a program gets that wants a TLS socket; 0: the socket."""
    try:
        tls(family).close()
    except OSError as failure:
        return failure.errno or 0
    return 0


def _served() -> None:
    """Both roles, with a daemon that answers and ends."""
    started = Started()
    with server() as there, tls() as sock, tls() as listener:
        sock.connect(there.getsockname())
        listener.bind(("127.0.0.1", 0))
        listener.listen(3)
        with socket.create_connection(listener.getsockname()):
            listener.accept()[0].close()
    assert not started.end(), "the daemon has failed"


def _unanswered(choice: random.Random) -> Link:
    """A daemon that answers nothing more, and stays; sockets in every state are closed."""
    daemon = Hostile(choice)
    for make in daemon.states():
        make()[0].close()
    with server() as there:
        for _ in range(3):
            with tls() as sock, tls() as named:
                sock.setblocking(False)
                sock.connect_ex(there.getsockname())
                named.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    connectName(named, "server.example", 443)
    daemon.forget()
    return daemon.link


def _workers() -> None:
    """Several workers, of which each gets some sockets, and which end one after the other."""
    links = [Link() for _ in range(4)]
    for link in links:
        assert not link.register(DAEMON)
    sockets = [tls() for _ in range(20)]
    for link in links:
        link.close()
        for _ in range(5):
            sockets.pop().close()


def turn(number: int, choice: random.Random) -> None:
    """
    Between loading and unloading.

    @raise AssertionError: something does not hold.
    """
    left: Link | None = None
    kind = number % 4
    assert _errno() == ENETDOWN, "there is a daemon"
    if kind == 1:
        _served()
    elif kind == 2:
        left = _unanswered(choice)
    elif kind == 3:
        _workers()
    assert not module.settle(), f"{module.users()} sockets hold the module"
    if left is None or choice.random() < 0.5:
        module.unload()
        if left is not None:
            left.close()
    else:
        left.close()
        module.unload()


def main(argv: Sequence[str]) -> int:
    """The entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=205)
    options = parser.parse_args(argv)
    print(f"seed {options.seed}, {options.times} times", flush=True)
    choice = random.Random(options.seed)
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(options.times):
        faulthandler.dump_traceback_later(3 * _SECONDS, exit=True)
        if number:
            module.load()
        turn(number, choice)
        for family in (socket.AF_INET, socket.AF_INET6):
            assert _errno(family) == EPROTONOSUPPORT, "a socket without the module"
        now = len(os.listdir("/proc/self/fd"))
        assert now == descriptors, f"turn {number}: {now} descriptors instead of {descriptors}"
    faulthandler.cancel_dump_traceback_later()
    # What the module has registered is gone, wherever it is listed.
    assert not os.path.exists("/proc/net/ssa"), "/proc/net/ssa is there"
    said = subprocess.run(["grep", "-w", "SSA", "/proc/net/protocols"], stdout=subprocess.PIPE, check=False).stdout
    assert not said, said
    assert not Link().family, "the family is there"
    print("done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
