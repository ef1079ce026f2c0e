# SPDX-License-Identifier: MIT
"""
C{make soak}: many connections, good and bad, through one C{ssa run} on the client's and one on the server's side, and then: has
anything leaked?

After a warm-up, descriptors, memory and kernel sockets of the supervisor, the daemon, the namespace helper and the program are
taken; then again after the connections.  What must hold:

  - descriptors: not one more, in any of the processes; but the supervisor has a stock of sockets that no program has yet,
    between none and one less than the helper makes at a time;
  - the private network: not one socket more that is not in TIME_WAIT;
  - memory (resident): no process grows by more than L{ALLOWED} plus L{ALLOWED_EACH} for each connection of its side.  An
    object of Python that is kept with its dictionary has about 500 bytes, a TLS connection of OpenSSL 20,000; the fixed
    part is what the allocators keep in different corners from one time to the next.
  - every connection has had the result that its kind must have.

The exit status is 0 if all of it holds, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

from ssa.intercept import linux
from ssa.intercept.namespace import AT_A_TIME
from ssa.test import soaked
from ssa.test.pki import CA
from ssa.test.processes import children, environment, underSSA

CONNECTIONS: Final = 10_000
WARM_UP: Final = 1_000
"""Connections on each side before the first look: caches and allocators are filled then."""

ALLOWED: Final = 6 << 20
"""Bytes of resident memory that a process may grow by, however few connections there are."""

ALLOWED_EACH: Final = 256
"""Bytes that it may grow by for each connection."""

SETTLE_SECONDS: Final = 20.0
"""How long what is closed may take to be gone."""

ORDER: Final = 500
"""Connections between two signs of life."""

_TIME_WAIT = 6
_CLOSE = 7


@dataclass(frozen=True)
class Figures:
    """
    What a process holds.

    @ivar descriptors: open ones.
    @ivar memory: resident bytes that are its own (anonymous).
    @ivar sockets: TCP sockets in its private network namespaces that are not in TIME_WAIT.
    """

    descriptors: int
    memory: int
    sockets: int


def _figures(pid: int, private: bool) -> Figures:
    memory = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    sockets = 0
    if private:
        # In a process of its own: it cannot come back from there.
        command = [sys.executable, "-m", "ssa.test.soak", "--count-sockets", str(pid)]
        sockets = int(subprocess.check_output(command, env=environment()))
    return Figures(len(os.listdir(f"/proc/{pid}/fd")), int(memory.group(1)) * 1024 if memory else 0, sockets)


def countSockets(pid: int) -> int:
    """
    Count the TCP sockets in all network namespaces that a process has descriptors of, without those in TIME_WAIT.

    This process is in the last of them afterwards.

    @raise OSError: as setns(2).
    """
    if os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
        with open(f"/proc/{pid}/ns/user", "rb") as namespace:
            linux.setns(namespace.fileno(), linux.CLONE_NEWUSER)
    own = os.readlink("/proc/self/ns/net")
    # The numbers of the helper's own network namespaces, each once; "net" is the one that it is in now.
    paths = {os.readlink(path): path for path in (Path(f"/proc/{pid}/ns/net"), *Path(f"/proc/{pid}/fd").iterdir())}
    count = 0
    for link, path in paths.items():
        if not link.startswith("net:") or link == own:
            continue
        with open(path, "rb") as namespace:
            linux.setns(namespace.fileno(), linux.CLONE_NEWNET)
        for table in ("tcp", "tcp6"):
            lines = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
            count += sum(int(line.split()[3], 16) not in (_TIME_WAIT, _CLOSE) for line in lines)
    return count


class Side:
    """
    A C{ssa run} with its program, and the orders to it.

    @ivar processes: the pid of each of its processes, by a name for the report.
    """

    def __init__(self, name: str, way: str, *arguments: str) -> None:
        """
        @param name: for the report.
        @param arguments: of L{ssa.test.soaked}.
        """
        self.name = name
        self._process = subprocess.Popen(
            underSSA(sys.executable, soaked.__file__, *arguments, way=way),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def lookAround(self) -> None:
        """Find the processes; all are there when the program has made its first socket."""
        ownNetwork = os.stat("/proc/self/ns/net").st_ino
        supervisor = children(self._process.pid)[0]
        self.processes = {"front": self._process.pid, "supervisor": supervisor}
        self._private: set[str] = set()
        for pid in children(supervisor):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"soaked" in command and b"ssa\0run" not in command:
                name = "program"
            elif os.stat(f"/proc/{pid}/ns/net").st_ino != ownNetwork:
                name = "helper"
                self._private.add(name)
            else:
                name = "daemon"
            self.processes[name] = pid

    def figures(self) -> dict[str, Figures]:
        """What each process holds now."""
        return {name: _figures(pid, name in self._private) for name, pid in self.processes.items()}

    def answer(self) -> Any:
        """The next line of the program."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the {self.name} has ended: {self._process.wait()}")
        return json.loads(line)

    def order(self, line: str) -> Any:
        """Give an order and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End it, and wait for it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


# Servers for the client.


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    context: ssl.SSLContext | None = None
    behaviour = "good"


class _Conversation(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with suppress(OSError):
            self._talk()

    def _talk(self) -> None:
        sock: socket.socket = self.request
        sock.settimeout(30)
        if self.server.behaviour == "hangs up":
            return
        if self.server.behaviour == "no TLS":
            sock.recv(65536)
            sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            return
        assert self.server.context is not None
        with self.server.context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
            data = b""
            while more := tls.recv(65536):
                data += more
            tls.sendall(data[:100] if self.server.behaviour == "truncated" else data)
            if self.server.behaviour != "truncated":
                tls.unwrap()


def _context(folder: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def _startServers(stack: ExitStack, folder: Path) -> dict[str, int]:
    """Servers for all kinds of connections; returns their ports."""
    ports: dict[str, int] = {}
    certificates = {"expired": "expired", "other name": "other"}
    for kind in sorted(set(soaked.KINDS)):
        if kind == "refused":
            refused = stack.enter_context(socket.socket())
            refused.bind(("127.0.0.1", 0))
            ports[kind] = refused.getsockname()[1]
            continue
        server = stack.enter_context(_Server(("127.0.0.1", 0), _Conversation))
        server.behaviour = kind
        server.context = _context(folder, certificates.get(kind, "good"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        ports[kind] = server.server_address[1]
    return ports


# Clients for the server.

_CLIENTS = ("good", "good", "no TLS", "hangs up", "good", "half a hello", "resets", "distrusts")


def _visit(kind: str, port: int, contexts: dict[str, ssl.SSLContext]) -> str:
    """One connection to the server; returns what was wrong."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            if kind == "no TLS":
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                sock.recv(100)
            elif kind == "half a hello":
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            elif kind != "hangs up":
                context = contexts["distrusts" if kind == "distrusts" else "good"]
                with context.wrap_socket(sock, server_hostname="localhost") as tls:
                    tls.sendall(b"y" * soaked.SIZE)
                    if kind == "resets":
                        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return ""
                    size = 0
                    while size < soaked.SIZE:
                        data = tls.recv(65536)
                        if not data:
                            return f"good: {size} bytes came back"
                        size += len(data)
                    tls.unwrap()
    except OSError as error:
        if kind in ("no TLS", "half a hello") or (kind == "distrusts" and isinstance(error, ssl.SSLCertVerificationError)):
            return ""
        return f"{kind}: {error}"
    return "distrusts: connected" if kind == "distrusts" else ""


@dataclass
class Soak:
    """
    The connections.

    @ivar wrong: results that should have been others.
    """

    client: Side
    server: Side
    port: int
    contexts: dict[str, ssl.SSLContext]

    def __post_init__(self) -> None:
        self.wrong: list[str] = []
        self._kinds = cycle(_CLIENTS)

    def visits(self, count: int) -> None:
        """Connect to our server."""
        with ThreadPoolExecutor(soaked.AT_ONCE) as pool:
            results = pool.map(lambda kind: _visit(kind, self.port, self.contexts), islice(self._kinds, count))
            self.wrong += [f"server, {result}" for result in results if result]

    def connect(self, count: int, quiet: bool = False) -> None:
        """Half of the connections on each side, both sides at a time."""
        begun = time.monotonic()
        done = 0
        while done < count:
            now = min(ORDER, count - done)
            visitors = threading.Thread(target=self.visits, args=(now // 2,))
            visitors.start()
            for what, times in self.client.order(str(now - now // 2)).items():
                self.wrong.append(f"client, {what}, {times} times")
            visitors.join()
            done += now
            if not quiet:
                print(f"{done} connections, {time.monotonic() - begun:.0f} s", flush=True)


def settled(side: Side, before: dict[str, Figures] | None = None) -> dict[str, Figures]:
    """
    Wait until descriptors and sockets are as they were, or do not change any more.

    @param before: how they were.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    now = side.figures()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        last, now = now, side.figures()
        reference = last if before is None else before
        if all(
            now[name].descriptors <= figures.descriptors and now[name].sockets <= figures.sockets
            for name, figures in reference.items()
        ):
            break
    return now


def compare(side: Side, before: dict[str, Figures], after: dict[str, Figures], count: int) -> list[str]:
    """
    Print the figures.

    @param count: how many connections were on this side.
    @return: what has leaked.
    """
    leaks: list[str] = []
    allowed = ALLOWED + ALLOWED_EACH * count
    for name, old in before.items():
        new = after[name]
        sockets = f", sockets {old.sockets} -> {new.sockets}" if name == "helper" else ""
        print(
            f"{side.name:7} {name:11} descriptors {old.descriptors} -> {new.descriptors}{sockets},"
            f" memory {old.memory / 2**20:.1f} -> {new.memory / 2**20:.1f} MiB"
        )
        stock = AT_A_TIME - 1 if name == "supervisor" else 0
        if new.descriptors > old.descriptors + stock:
            leaks.append(f"{side.name}, {name}: {new.descriptors - old.descriptors} descriptors")
        if new.sockets > old.sockets:
            leaks.append(f"{side.name}, {name}: {new.sockets - old.sockets} sockets in the private network")
        if name != "program" and new.memory > old.memory + allowed:
            leaks.append(f"{side.name}, {name}: {new.memory - old.memory} bytes of memory, {allowed} are allowed")
    return leaks


def main(argv: Sequence[str] | None = None) -> int:
    """
    The command.

    @param argv: the arguments; default: the process's.
    @return: the exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--count-sockets"]:
        print(countSockets(int(words[1])))
        return 0
    parser = argparse.ArgumentParser(prog="python -m ssa.test.soak", description="Look for leaks.")
    parser.add_argument("--way", default="auto", help="as for ssa run")
    parser.add_argument("connections", type=int, nargs="?", default=CONNECTIONS, help=f"default: {CONNECTIONS}")
    arguments = parser.parse_args(words)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssa-soak-")))
        authority = CA()
        for name, credential in (
            ("good", authority.issue(["localhost"])),
            ("expired", authority.issue(["localhost"], expired=True)),
            ("other", authority.issue(["other.example"])),
        ):
            (folder / f"{name}.pem").write_bytes(credential.chainPEM)
            (folder / f"{name}.key").write_bytes(credential.keyPEM)
        authorities = folder / "ca.pem"
        authorities.write_bytes(authority.pem)
        contexts = {
            "good": ssl.create_default_context(cafile=str(authorities)),
            "distrusts": ssl.create_default_context(cadata=CA().pem.decode()),
        }
        ports = _startServers(stack, folder)
        client = Side("client", arguments.way, "client", str(authorities), json.dumps(ports))
        stack.callback(client.stop)
        server = Side("server", arguments.way, "server", str(folder / "good.pem"), str(folder / "good.key"))
        stack.callback(server.stop)
        soak = Soak(client, server, server.answer(), contexts)
        soak.connect(2 * WARM_UP, quiet=True)
        sides = (client, server)
        for side in sides:
            side.lookAround()
        before = [settled(side) for side in sides]
        soak.connect(arguments.connections)
        leaks: list[str] = []
        for side, old in zip(sides, before, strict=True):
            leaks += compare(side, old, settled(side, old), arguments.connections // 2)
        print(f"the server has seen {server.order('counts')}")
    for problem in [*leaks, *soak.wrong[:20]]:
        print(f"WRONG: {problem}")
    print("nothing has leaked" if not leaks else "there are leaks")
    return 1 if leaks or soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
