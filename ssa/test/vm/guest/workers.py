# SPDX-License-Identifier: MIT
"""
Several workers of one daemon on the kernel module: C{python -m ssa.test.vm.guest.workers}, as root, without a daemon.

They are registrations of this process, each on a netlink socket of its own, by L{ssa.protocol.kernelport}.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python import log
from zope.interface import implementer

from ssa.api import IPPROTO_TLS, Option
from ssa.interfaces import IEventReceiver, IInterceptor
from ssa.protocol.kernelport import KernelPort, State
from ssa.protocol.messages import (
    Answer,
    CloseNotify,
    ConnectNotify,
    DataReturn,
    Event,
    GetsockoptNotify,
    Return,
    SocketNotify,
)

reactor: Any = _reactor
SECONDS = 60.0
"""How long anything may take; the guest is slow."""


@implementer(IEventReceiver)
class Worker:
    """
    One registration.

    @ivar sockets: the ids that it was told of and that are not closed.
    @ivar name: what it answers to getsockopt.
    @ivar connects: the ids that connect, which is never answered.
    """

    def __init__(self, daemon: int | None) -> None:
        self.sockets: set[int] = set()
        self.connects: list[int] = []
        self.name = str(id(self)).encode()
        self.port = KernelPort(reactor, self, daemon=daemon)

    def isIn(self, state: State) -> bool:
        """Whether its registration stands there."""
        return self.port.state is state

    def eventReceived(self, interceptor: IInterceptor, event: Event) -> Deferred[Answer] | None:
        """Keep count, and say yes."""
        if isinstance(event, SocketNotify):
            self.sockets.add(event.id)
        elif isinstance(event, CloseNotify):
            self.sockets.discard(event.id)
        elif isinstance(event, ConnectNotify):
            self.connects.append(event.id)
        if not event.wantsAnswer:
            return None
        if isinstance(event, ConnectNotify):
            return Deferred()
        if isinstance(event, GetsockoptNotify):
            return succeed(DataReturn(event.event, event.id, self.name))
        return succeed(Return(event.event, event.id, 0))

    def interceptorLost(self, interceptor: IInterceptor) -> None:
        """Its sockets are nobody's."""
        self.sockets.clear()


async def until(question: Callable[[], Any], what: str) -> None:
    """Wait for something to be true."""
    for _ in range(int(SECONDS * 20)):
        if question():
            return
        await deferLater(reactor, 0.05)
    raise AssertionError(f"not in {SECONDS:g} s: {what}")


def tls(family: int = socket.AF_INET) -> socket.socket:
    """A TLS socket."""
    return socket.socket(family, socket.SOCK_STREAM, IPPROTO_TLS)


class Program:
    """
    A process with TLS sockets, which does what it is told: Python's getsockopt keeps the interpreter to itself, so that a
    worker in the same process could not answer it.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self._near, far = context.Pipe()
        self._process = context.Process(target=self._serve, args=(far,))
        self._process.start()
        far.close()

    def _serve(self, far: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._near.close()
        socks: dict[int, socket.socket] = {}
        while True:
            try:
                name, number, value = far.recv()
            except EOFError:
                return
            result: object = None
            try:
                if name == "make":
                    sock = tls()
                    socks[sock.fileno()] = sock
                    result = sock.fileno()
                elif name == "ask":
                    result = socks[number].getsockopt(IPPROTO_TLS, Option.TLS_ID, 64)
                elif name == "connect":
                    socks[number].connect(value)
                else:
                    socks.pop(number).close()
            except OSError as error:
                result = errno.errorcode[error.errno or 0]
            far.send(result)

    def do(self, name: str, number: int = 0, value: object = None) -> Deferred[Any]:
        """
        One call: C{make} a socket, C{ask} its worker, C{connect} or C{close} it.

        @return: fires with the result, or with the name of an errno.
        """
        self._near.send((name, number, value))
        return deferToThread(self._near.recv)

    def end(self) -> None:
        """End the process."""
        self._near.close()
        self._process.join()


async def testSpread() -> None:
    """Sockets go to the worker with the fewest; each worker answers for its own; a closed one counts no more."""
    program = Program()  # before there are workers, of whose sockets it would have copies
    number = int.from_bytes(os.urandom(8), "big") | 1
    workers = [Worker(number) for _ in range(3)]
    for worker in workers:
        worker.port.startListening()
    await until(lambda: all(worker.port.state is State.REGISTERED for worker in workers), "three are registered")
    socks = [await program.do("make") for _ in range(30)]
    await until(lambda: sorted(len(worker.sockets) for worker in workers) == [10, 10, 10], "ten each")
    answers = {sock: await program.do("ask", sock) for sock in socks}
    assert sorted(answers.values()) == sorted(10 * [worker.name for worker in workers]), answers
    for sock in [sock for sock, answer in answers.items() if answer == workers[0].name]:
        await program.do("close", sock)
        socks.remove(sock)
    await until(lambda: not workers[0].sockets, "the first has none")
    more = [await program.do("make") for _ in range(10)]
    await until(lambda: len(workers[0].sockets) == 10, "the first has the new ones")

    # One dies: its sockets with it, and no others.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = program.do("connect", more[0], listener.getsockname())
        await until(lambda: workers[0].connects, "a connect is pending")
        await workers[0].port.stopListening()
        assert await connecting == "ENETDOWN"
    dead = [sock for sock in socks + more if await program.do("ask", sock) == "ENETDOWN"]
    assert dead == more, dead
    assert sorted(len(worker.sockets) for worker in workers) == [0, 10, 10]
    socks.append(await program.do("make"))  # the others serve
    assert await program.do("ask", socks[-1]) in (workers[1].name, workers[2].name)

    # Who does not know the number is another daemon, and stands by until the last of the first has gone.
    other, alone = Worker(number ^ 2), Worker(None)
    for worker in (other, alone):
        worker.port.startListening()
        await until(partial(worker.isIn, State.STANDBY), "it stands by")
    await workers[1].port.stopListening()
    await deferLater(reactor, 0.5)
    assert other.port.state is State.STANDBY and alone.port.state is State.STANDBY
    await workers[2].port.stopListening()
    await until(lambda: State.REGISTERED in (other.port.state, alone.port.state), "one takes over")
    assert await program.do("ask", await program.do("make")) in (other.name, alone.name)
    for worker in (other, alone):
        await worker.port.stopListening()
    assert await program.do("make") == "ENETDOWN"
    program.end()


async def testProc() -> None:
    """/proc/net/ssa, /proc/net/protocols and fdinfo tell of each socket, and no address in the kernel."""
    worker = Worker(None)
    worker.port.startListening()
    await until(lambda: worker.port.state is State.REGISTERED, "registered")
    sock, six = tls(), tls(socket.AF_INET6)
    sock.bind(("127.0.0.1", 0))
    head, *lines = Path("/proc/net/ssa").read_text().splitlines()
    assert head.split() == ["id", "state", "data-path", "uid", "inode", "tcp-inode", "local", "remote"], head
    rows = [dict(zip(head.split(), line.split(), strict=True)) for line in lines]
    row = next(row for row in rows if int(row["inode"]) == os.fstat(sock.fileno()).st_ino)
    assert (row["state"], row["data-path"], row["uid"], row["remote"]) == ("new", "-", "0", "-"), row
    assert row["local"] == f"127.0.0.1:{sock.getsockname()[1]}", row
    assert [row["local"] for row in rows if int(row["inode"]) == os.fstat(six.fileno()).st_ino] == ["[::]:0"], rows
    info = Path(f"/proc/self/fdinfo/{sock.fileno()}").read_text()
    assert f"ssa-id:\t{row['id']}\nssa-state:\tnew\nssa-data-path:\t-\nssa-tcp-inode:\t{row['tcp-inode']}\n" in info, info
    used = re.findall(r"^(SSAv?6?) +\d+ +(\d+) ", Path("/proc/net/protocols").read_text(), re.MULTILINE)
    assert dict(used) == {"SSA": "1", "SSAv6": "1"}, used
    sock.close()
    six.close()
    assert Path("/proc/net/ssa").read_text().splitlines() == [head]
    await worker.port.stopListening()


@inlineCallbacks
def _run(failures: list[BaseException]) -> Any:
    for test in (testSpread, testProc):
        try:
            yield Deferred.fromCoroutine(test())
            print(test.__name__, "ok", flush=True)
        except BaseException as failure:
            failures.append(failure)
            log.err()
    reactor.stop()


def main() -> int:
    """@return: the exit status."""
    import sys

    log.startLogging(sys.stderr, setStdout=False)
    failures: list[BaseException] = []
    reactor.callWhenRunning(_run, failures)
    reactor.run()
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
