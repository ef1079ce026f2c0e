# SPDX-License-Identifier: MIT
"""
Many connections, good and bad, of both roles, and then: has the kernel, the daemon or the program anything left of them?

C{python -m ssa.test.vm.guest.soak [CONNECTIONS]}.  After a warm-up, the objects of every slab cache, the sockets that the
kernel counts and the descriptors of the daemon and of this process are taken, and again after the connections.  The kernel
parameter C{slab_nomerge} keeps caches of the same size apart.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import Thread
from ssa.test.conformance.peers import NAME, Peer, clientContext, credential, serverContext
from ssa.test.pki import testCA
from ssa.test.soak import ALLOWED, ALLOWED_EACH
from ssa.test.vm.guest.case import SECONDS, setOption
from ssa.test.vm.guest.daemon import Daemon

CONNECTIONS: Final = 10_000
WARM_UP: Final = 400
"""Connections before the first look: caches and allocators are filled then."""

CLIENTS: Final = 3
SERVERS: Final = 2
_ORDER: Final = 1000
_SLAB: Final = Path("/sys/kernel/slab")
_OURS: Final = ("SSA", "SSAv6")
_DATA: Final = b"a small transfer"
_FAILS: Final = {
    "good": 0,
    "other name": errno.EKEYREJECTED,
    "refused": errno.ECONNREFUSED,
    "no TLS": errno.EPROTO,
}
_KINDS: Final = ("good", "good", "good", "other name", "good", "good", "refused", "good", "good", "no TLS")
_VISITS: Final = ("good", "good", "good", "no TLS", "good", "good", "good", "good", "hangs up", "good")


@dataclass(frozen=True)
class Figures:
    """
    What there is.

    @ivar objects: of each slab cache.
    @ivar current: how many of them may be free: those of the slabs that processors take new ones from all count.
    @ivar sockets: what the kernel counts, by the names of C{/proc/net/sockstat} and C{/proc/net/protocols}.
    @ivar descriptors: of the daemon and of this process.
    @ivar slab: KiB that cannot be reclaimed.
    @ivar memory: bytes of the daemon's own.
    """

    objects: dict[str, int]
    current: dict[str, int]
    sockets: dict[str, int]
    descriptors: dict[str, int]
    slab: int
    memory: int


def look(daemon: int) -> Figures:
    """
    Take the figures.

    @param daemon: its process.
    """
    Path("/proc/sys/vm/drop_caches").write_text("2")
    objects: dict[str, int] = {}
    current: dict[str, int] = {}
    for cache in _SLAB.iterdir():
        with contextlib.suppress(OSError):
            (cache / "shrink").write_text("1")  # so that no processor keeps free objects that would count
            objects[cache.name] = int((cache / "objects").read_text().split()[0])
            current[cache.name] = int((cache / "objs_per_slab").read_text()) * (os.cpu_count() or 1)
    sockets: dict[str, int] = {}
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        name, _, rest = line.partition(": ")
        words = rest.split()
        sockets |= {f"{name} {what}": int(number) for what, number in zip(words[::2], words[1::2], strict=True)}
    for line in Path("/proc/net/protocols").read_text().splitlines()[1:]:
        words = line.split()
        sockets[words[0]] = int(words[2])
    slab = re.search(r"^SUnreclaim:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    memory = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{daemon}/status").read_text(), re.MULTILINE)
    assert slab and memory
    descriptors = {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in (("daemon", daemon), ("program", os.getpid()))}
    return Figures(objects, current, sockets, descriptors, int(slab[1]), int(memory[1]) * 1024)


def left(before: Figures, after: Figures, count: int) -> list[str]:
    """
    What there is that was not there before.

    @param count: how many connections there were: what one in fifty of them has left is seen; of small objects, of
        which a slab holds hundreds, only if there were thousands.
    """
    allowed = max(100, count // 50)
    leaks = [f"{new - before.objects.get(name, 0)} objects in the slab cache {name}" for name, new in after.objects.items()
             if new - before.objects.get(name, 0) > (0 if name in _OURS else allowed + after.current[name])]
    # Pages that TCP has not given back yet are counted too, and are no sockets.
    leaks += [f"{new - before.sockets.get(name, 0)} of {name}" for name, new in after.sockets.items()
              if new > before.sockets.get(name, 0) and not name.endswith((" mem", " memory"))]
    leaks += [f"{new - before.descriptors[name]} descriptors of the {name}" for name, new in after.descriptors.items()
              if new > before.descriptors[name]]
    if after.slab - before.slab > 1024 + count // 4:
        leaks.append(f"{after.slab - before.slab} KiB of slab")
    if after.memory - before.memory > ALLOWED + ALLOWED_EACH * count:
        leaks.append(f"{after.memory - before.memory} bytes of the daemon's memory")
    return leaks


def settled(daemon: int, count: int = 0, before: Figures | None = None) -> Figures:
    """Take the figures when what is closed has had the time to be gone."""
    deadline = time.monotonic() + SECONDS
    now = look(daemon)
    while time.monotonic() < deadline:
        time.sleep(1.0)
        last, now = now, look(daemon)
        if not left(before or last, now, count):
            break
    return now


class Work:
    """
    The connections of both roles, in threads; the ordinary peers are children, so that both processors are busy.

    @ivar wrong: results that should have been others.
    @ivar done: how many of each kind.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self._children: list[int] = []
        self._lock = threading.Lock()
        self._kinds = cycle(_KINDS)
        free = socket.create_server(("127.0.0.1", 0))
        server = socket.create_server(("127.0.0.1", 0), backlog=64)
        silent = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._addresses = {"good": server.getsockname(), "other name": server.getsockname(),
                           "refused": free.getsockname(), "no TLS": silent.getsockname()}
        free.close()
        self._child(lambda: _serve(server, silent))
        server.close()
        silent.close()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        setOption(self._listener, Option.TLS_CERTIFICATE_CHAIN, credential().chainPEM)
        setOption(self._listener, Option.TLS_PRIVATE_KEY, credential().keyPEM)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._listener.settimeout(SECONDS)
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._child(lambda: _visitAll(orders, answers, self._listener.getsockname()))
        os.close(orders)
        os.close(answers)

    def _child(self, call: Callable[[], None]) -> None:
        pid = os.fork()
        if not pid:
            try:
                call()
            finally:
                os._exit(1)
        self._children.append(pid)

    def close(self) -> None:
        """End the peers."""
        self._listener.close()
        os.close(self._orders)
        os.close(self._answers)
        for pid in self._children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)

    def connect(self, count: int) -> None:
        """Half of the connections in each role."""
        visits = count // 2
        os.write(self._orders, visits.to_bytes(4, "big"))
        good = sum(kind == "good" for kind in islice(cycle(_VISITS), visits))
        kinds = list(islice(self._kinds, count - visits))
        accepting = [good // SERVERS + (index < good % SERVERS) for index in range(SERVERS)]
        threads = [Thread(lambda part=kinds[index::CLIENTS]: self._clients(part)) for index in range(CLIENTS)]  # type: ignore[misc]
        threads += [Thread(lambda number=number: self._accept(number)) for number in accepting]  # type: ignore[misc]
        for thread in threads:
            thread.result(3600.0)
        wrong = int.from_bytes(os.read(self._answers, 4), "big")
        if wrong:
            self.wrong.append(f"{wrong} of {visits} ordinary clients had another result than they should have")

    def _clients(self, kinds: list[str]) -> None:
        for kind in kinds:
            try:
                number = self._client(kind)
            except OSError as failure:
                number = failure.errno or -1
            with self._lock:
                self.done[kind] += 1
                if number != _FAILS[kind]:
                    self.wrong.append(f"client, {kind}: {errno.errorcode.get(number, number)}")

    def _client(self, kind: str) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) as sock:
            setOption(sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
            setOption(sock, Option.TLS_REMOTE_HOSTNAME, b"other.example" if kind == "other name" else NAME.encode())
            number = sock.connect_ex(self._addresses[kind])
            if number:
                return number
            sock.sendall(_DATA)
            if sock.recv(100, socket.MSG_WAITALL) != _DATA:
                return -1
        return 0

    def _accept(self, number: int) -> None:
        for _ in range(number):
            try:
                sock, _ = self._listener.accept()
                with sock:
                    data = sock.recv(100)
                    sock.sendall(data)
                    if data != _DATA or sock.recv(1):
                        raise OSError(-1, f"{data!r}")
            except OSError as failure:
                self.wrong.append(f"server: {failure}")
            with self._lock:
                self.done["accepted"] += 1


def _serve(server: socket.socket, silent: socket.socket) -> None:
    """The child with the ordinary servers."""
    context = serverContext()

    def good() -> None:
        while True:
            sock, _ = server.accept()
            with sock, contextlib.suppress(SSL.Error, OSError):
                peer = Peer(sock, context, server=True)
                peer.handshake()
                peer.send(peer.recv(100))
                peer.closeNotify()

    for _ in range(CLIENTS):
        threading.Thread(target=good, daemon=True).start()
    while True:
        sock, _ = silent.accept()
        with sock, contextlib.suppress(OSError):
            sock.recv(100)
            sock.sendall(b"220 no TLS here\r\n")


def _visitAll(orders: int, answers: int, address: tuple[str, int]) -> None:
    """The child with the ordinary clients: reads how many, and answers how many of them went wrong."""
    context = clientContext()
    while order := os.read(orders, 4):
        kinds = list(islice(cycle(_VISITS), int.from_bytes(order, "big")))
        threads = [
            Thread(lambda part=kinds[index::SERVERS]: list(_visits(part, address, context)))  # type: ignore[misc]
            for index in range(SERVERS)
        ]
        wrong = [what for thread in threads for what in thread.result(3600.0)]
        for what in wrong[:5]:
            print(f"ordinary client: {what}", flush=True)
        os.write(answers, len(wrong).to_bytes(4, "big"))


def _visits(kinds: list[str], address: tuple[str, int], context: SSL.Context) -> Iterator[str]:
    for kind in kinds:
        try:
            with socket.create_connection(address, SECONDS) as sock:
                if kind == "no TLS":
                    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    with contextlib.suppress(ConnectionError):
                        while sock.recv(100):
                            pass
                elif kind == "good":
                    peer = Peer(sock, context, server=False)
                    peer.handshake()
                    peer.send(_DATA)
                    if peer.exactly(len(_DATA)) != _DATA:
                        yield f"{kind}: other data"
                    peer.closeNotify()
                    if peer.recv(1):
                        yield f"{kind}: more data"
        except (OSError, SSL.Error, TimeoutError) as failure:
            yield f"{kind}: {failure!r}"


def main(count: int) -> int:
    """
    The command.

    @return: the exit status.
    """
    credential()
    # Connections that have ended would each keep an object for a minute more.
    Path("/proc/sys/net/ipv4/tcp_max_tw_buckets").write_text("0")
    with Daemon() as daemon, contextlib.closing(Work()) as work:
        work.connect(WARM_UP)
        before = settled(daemon.pid)
        begun = time.monotonic()
        for done in range(0, count, _ORDER):
            work.connect(min(_ORDER, count - done))
            print(f"{min(done + _ORDER, count)} connections, {time.monotonic() - begun:.0f} s", flush=True)
        after = settled(daemon.pid, count, before)
        leaks = left(before, after, count)
    changes = {name: new - before.objects.get(name, 0) for name, new in after.objects.items()}
    print(f"the most: {sorted(changes.items(), key=lambda item: -item[1])[:8]}")
    print(f"SSA: {[(name, before.objects.get(name), after.objects.get(name)) for name in _OURS]}, sockets: "
          f"{ {name: (before.sockets.get(name), now) for name, now in after.sockets.items() if now} }")
    print(f"descriptors {before.descriptors} -> {after.descriptors}, slab {before.slab} -> {after.slab} KiB, "
          f"daemon {before.memory >> 10} -> {after.memory >> 10} KiB, {dict(work.done)}")
    for problem in [*leaks, *work.wrong[:20]]:
        print(f"WRONG: {problem}")
    return 1 if leaks or work.wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Look for what connections leave.")
    parser.add_argument("connections", type=int, nargs="?", default=CONNECTIONS, help=f"default: {CONNECTIONS}")
    sys.exit(main(parser.parse_args().connections))
