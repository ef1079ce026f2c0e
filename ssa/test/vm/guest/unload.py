# SPDX-License-Identifier: MIT
"""The module is unloaded only when no socket needs it, and the daemon that runs serves the next one."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from errno import EAGAIN, EPROTONOSUPPORT
from pathlib import Path

from ssa.api import IPPROTO_TLS
from ssa.test.conformance.case import LIBC, Thread
from ssa.test.vm.guest.case import SECONDS, USER, GuestCase, about, run

_DELETE_MODULE = 176  # of x86-64
_MODULE = os.environ.get("SSA_VM_MODULE", "")


def unload() -> None:
    """
    Unload the module, or say why not: without waiting, as rmmod(8).

    @raise OSError: as delete_module(2).
    """
    ctypes.set_errno(0)
    if LIBC.syscall(_DELETE_MODULE, b"ssa", os.O_NONBLOCK):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def load() -> None:
    """
    Load it.

    @raise subprocess.CalledProcessError: it cannot be.
    """
    subprocess.run(["insmod", _MODULE], check=True, stdin=subprocess.DEVNULL)


def isLoaded() -> bool:
    """Whether the module is there."""
    return Path("/sys/module/ssa").exists()


class Unloading(GuestCase):
    """The module comes and goes under the daemon."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.restore)

    def restore(self) -> None:
        """As it was before."""
        if not isLoaded():
            load()
        self.daemon.ensure()

    def refuses(self, what: str) -> None:
        """Say that the module is needed."""
        with about(what):
            self.fails(EAGAIN, unload)
            self.assertTrue(isLoaded())

    def unloads(self) -> None:
        """Unload; what was closed a moment ago may still be on its way out."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                unload()
                break
            except OSError as failure:
                self.assertEqual(failure.errno, EAGAIN, str(failure))
                self.assertLess(time.monotonic(), deadline, "nothing is open, and the module is still needed")
                time.sleep(0.05)
        self.assertFalse(isLoaded())
        self.fails(EPROTONOSUPPORT, socket.socket, socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        self.fails(EPROTONOSUPPORT, socket.socket, socket.AF_INET6, socket.SOCK_STREAM, IPPROTO_TLS)

    def again(self) -> None:
        """Unload and load: the same daemon serves again."""
        self.unloads()
        load()
        self.daemon.awaitService()
        self.works()

    def works(self) -> None:
        """Both roles, and nothing stays open."""
        client, server = self.bothEnds()
        client.sendall(b"hello")
        self.assertEqual(self.exactly(server, 5), b"hello")
        client.close()
        self.assertEqual(server.recv(1), b"")
        server.close()

    def test_sockets(self) -> None:
        """A socket in each state keeps the module; the last close lets it go."""
        silent = self.plainListener().getsockname()

        def fresh() -> socket.socket:
            return self.tlsSocket()

        def connecting() -> socket.socket:
            sock = self.clientSocket()
            sock.setblocking(False)
            sock.connect_ex(silent)
            return sock

        def failed() -> socket.socket:
            sock = self.clientSocket()
            free = socket.create_server(("127.0.0.1", 0))
            address = free.getsockname()
            free.close()
            self.assertEqual(sock.connect_ex(address), errno.ECONNREFUSED)
            return sock

        def connected() -> socket.socket:
            return self.connected()[0]

        def accepted() -> socket.socket:
            return self.accepted()[0]

        def orphaned() -> socket.socket:
            sock, peer = self.connected()
            peer.reset()
            return sock

        def listening() -> socket.socket:
            return self.listener()

        def waited() -> socket.socket:
            listener = self.listener()
            Thread(lambda: self.peerTo(listener.getsockname())).result(SECONDS)
            self.readable(listener, SECONDS)
            return listener

        kinds: tuple[Callable[[], socket.socket], ...] = (
            fresh, connecting, failed, connected, accepted, orphaned, listening, waited
        )
        for make in kinds:
            sock = make()
            self.refuses(make.__name__)
            copy = sock.dup()
            sock.close()
            self.refuses(f"{make.__name__}, a duplicate")
            copy.close()
            with about(f"{make.__name__}, closed"):
                self.again()

    def test_inFlight(self) -> None:
        """A descriptor on its way from one process to another counts, and one that nobody takes is gone with the way."""
        here, there = socket.socketpair()
        sock = self.tlsSocket()
        socket.send_fds(here, [b"x"], [sock.fileno()])
        sock.close()
        self.refuses("in flight")
        here.close()
        there.close()
        self.again()

    def test_inherited(self) -> None:
        """A child that has inherited a socket keeps it."""
        sock = self.tlsSocket()
        reader, writer = os.pipe()

        def child() -> None:
            os.close(writer)
            os.read(reader, 1)

        pid = self.child(child)
        sock.close()
        self.refuses("a child's")
        os.close(writer)
        os.close(reader)
        self.reap(pid)
        self.again()

    def test_withoutDaemon(self) -> None:
        """With the daemon gone, sockets that it leaves behind keep the module, and it can be unloaded after them."""
        client, server = self.bothEnds()
        listener = self.listener()
        self.daemon.crash()
        for sock in (client, server, listener):
            self.refuses("what a dead daemon has left")
            sock.close()
        self.unloads()
        load()
        self.daemon.start()
        self.works()

    def test_asleep(self) -> None:
        """Events that the daemon has not fetched keep nothing: they go with the module."""
        sockets = [self.tlsSocket() for _ in range(50)]
        self.daemon.pause()
        sockets += [self.tlsSocket() for _ in range(50)]
        for sock in sockets:
            sock.close()
        self.unloads()
        load()
        self.daemon.resume()
        self.daemon.awaitService()
        self.works()

    def test_races(self) -> None:
        """Programs that make sockets all the time while the module comes and goes get sockets, or errors that say so."""
        seen: Counter[str] = Counter()
        over = threading.Event()

        def make() -> None:
            while not over.is_set():
                try:
                    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) as sock:
                        sock.bind(("127.0.0.1", 0))
                    seen["ok"] += 1
                except OSError as failure:
                    seen[errno.errorcode[failure.errno or 0]] += 1
                time.sleep(0.002)

        threads = [Thread(make) for _ in range(3)]
        times = 0
        deadline = time.monotonic() + 4 * SECONDS
        try:
            while times < 8:
                self.assertLess(time.monotonic(), deadline, f"unloaded {times} times")
                try:
                    unload()
                except OSError as failure:
                    self.assertEqual(failure.errno, EAGAIN, str(failure))
                    time.sleep(0.01)
                    continue
                times += 1
                time.sleep(0.1)
                load()
                self.daemon.awaitService()
        finally:
            over.set()
            for thread in threads:
                thread.result(SECONDS)
        print(f"{dict(seen)}", flush=True)
        # ENOMEM is the kernel's own word (sk_alloc) in the moment in which any protocol's module is on its way out.
        self.assertLessEqual(set(seen), {"ok", "ENETDOWN", "EPROTONOSUPPORT", "ENOMEM"})
        self.assertGreater(seen["ok"], 0)
        self.works()
        self.again()

    def test_users(self) -> None:
        """An ordinary user unloads nothing, but his sockets keep the module as root's do."""

        def hold() -> None:
            sock = self.tlsSocket()
            self.fails(errno.EPERM, unload)
            os.write(told, b"!")
            os.read(reader, 1)
            sock.close()

        ready, told = os.pipe()
        reader, writer = os.pipe()
        pid = self.child(lambda: self.inChild(hold, USER))
        self.assertEqual(len(os.read(ready, 1)), 1)
        self.refuses("a user's")
        os.write(writer, b"!")
        self.reap(pid)
        for descriptor in (ready, told, reader, writer):
            os.close(descriptor)
        self.again()


if __name__ == "__main__":
    sys.exit(run())
