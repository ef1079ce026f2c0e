# SPDX-License-Identifier: MIT
"""
Injected faults: C{python -m ssa.test.vm.guest.faults [--optional] [NAME...]}, as root on the debug kernel, the module loaded
and no daemon.  Other kernels inject none, and it fails there; with C{--optional} it makes each call once, undisturbed.

Every call of a program, and every request of the daemon, is made again and again: the first thing in it that can fail fails
(an allocation, a copy from or to the program), then the second, and so on until the call goes undisturbed.  Each time it has to
end with success or with an errno that says so; then the same call has to succeed on the same socket, and everything can be
closed.  In the end the module can be unloaded; what was lost in between is kmemleak's to find.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import socket
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from errno import EADDRINUSE, EAGAIN, EFAULT, EINPROGRESS, ENFILE, ENOBUFS, ENOMEM, errorcode

from ssa.api import IPPROTO_TLS, Option
from ssa.protocol.wire import Command
from ssa.test.vm.guest import injection, module
from ssa.test.vm.guest.link import Link
from ssa.test.vm.guest.programs import connectName, drain, server, tls, upgrade
from ssa.test.vm.guest.standin import Started

PROPER = frozenset((ENOMEM, ENOBUFS, ENFILE, EFAULT))
"""The errnos of a call in which something could not be allocated or copied."""

CALL_SECONDS = 60
"""How long one call may take; then it hangs."""

MOST = 400
"""No call has so many things that can fail."""

_PEM = b"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"

Body = Generator[Callable[[], object], object, None]
"""
One round: prepares, yields the call, gets its result (None if it failed), and tidies up.  It closes what it has made whatever
happens.
"""


@dataclass(frozen=True)
class Call:
    """
    A call into which faults are injected.

    @ivar name: for reports.
    @ivar body: makes one round.
    @ivar good: errnos that are as good as success.
    @ivar bad: what else than L{PROPER} it may end with after a fault.
    @ivar again: whether the same call has to succeed after it has failed.
    @ivar done: errnos of that second call that are all right after EFAULT, where the first one has done its work and could only
        not say so.
    """

    name: str
    body: Callable[[], Body]
    good: frozenset[int] = frozenset()
    bad: frozenset[int] = frozenset()
    again: bool = True
    done: frozenset[int] = frozenset()


def _closing(*sockets: socket.socket) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for sock in sockets:
        stack.callback(sock.close)
    return stack


def _creating(family: int) -> Callable[[], Body]:
    def body() -> Body:
        made = yield lambda: tls(family)
        if isinstance(made, socket.socket):
            made.close()

    return body


def _on(call: Callable[[socket.socket], object], family: int = socket.AF_INET) -> Callable[[], Body]:
    """A call on a new socket."""

    def body() -> Body:
        with tls(family) as sock:
            yield lambda: call(sock)

    return body


def _connecting(
    call: Callable[[socket.socket, int], object], family: int = socket.AF_INET, block: bool = True
) -> Callable[[], Body]:
    """A call with the port of a server."""

    def body() -> Body:
        with server(family) as there, tls(family) as sock:
            port = there.getsockname()[1]
            sock.setblocking(block)
            yield lambda: call(sock, port)
            if not block:
                select.select([], [sock], [], 30)
            drain(there)

    return body


@contextlib.contextmanager
def _connected() -> Generator[tuple[socket.socket, socket.socket], None, None]:
    """A TLS socket, and the TCP socket at the other end, where what it says arrives as it is."""
    with server() as there, tls() as sock:
        sock.connect(there.getsockname())
        peer, _ = there.accept()
        with peer:
            yield sock, peer


def _established(call: Callable[[socket.socket], object], data: bytes = b"") -> Callable[[], Body]:
    """A call on a connection, in which some data of the peer's waits."""

    def body() -> Body:
        with _connected() as (sock, peer):
            sock.settimeout(30)
            if data:
                peer.sendall(data)
                select.select([sock], [], [], 30)
            sock.setblocking(True)
            yield lambda: call(sock)

    return body


@contextlib.contextmanager
def _listening() -> Generator[tuple[socket.socket, socket.socket], None, None]:
    """A TLS listener for which a connection waits, and the client."""
    with tls() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(5)
        with socket.create_connection(sock.getsockname(), 30) as client:
            select.select([sock], [], [], 30)
            sock.setblocking(False)
            yield sock, client


def _accepting() -> Body:
    with _listening() as (sock, _):
        made = yield sock.accept
        if isinstance(made, tuple):
            made[0].close()


def _upgrading() -> Body:
    with server() as there, socket.create_connection(there.getsockname()) as tcp, tls() as sock:
        descriptor = tcp.fileno()
        yield lambda: upgrade(sock, descriptor)
        drain(there)


def _closingNew() -> Body:
    descriptor = tls().detach()
    yield lambda: os.close(descriptor)


def _closingConnected() -> Body:
    with _connected() as (sock, _):
        descriptor = sock.detach()
        yield lambda: os.close(descriptor)


def _closingListener() -> Body:
    with _listening() as (sock, _):
        descriptor = sock.detach()
        yield lambda: os.close(descriptor)


def _polling() -> Body:
    with _connected() as (sock, _), select.epoll() as poller:
        yield lambda: poller.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)


def _sendingDescriptors() -> Body:
    """A TLS socket over a unix socket: it must arrive, or not have left."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tls() as sock:
        sent = yield lambda: socket.send_fds(ours, [b"x"], [sock.fileno()])
        if sent:
            for descriptor in socket.recv_fds(theirs, 1, 1)[1]:
                os.close(descriptor)


def _set(name: Option, value: bytes | int) -> Callable[[socket.socket], object]:
    return lambda sock: sock.setsockopt(IPPROTO_TLS, name, value)


def calls(directory: str) -> Sequence[Call]:
    """
    All calls of programs.

    @param directory: for files that options name.
    """
    path = os.path.join(directory, "chain.pem")
    with open(path, "wb") as file:
        file.write(_PEM * 2000)
    name = path.encode() + b"\0"
    busy = frozenset((EADDRINUSE,))
    return (
        Call("socket", _creating(socket.AF_INET)),
        Call("socket of IPv6", _creating(socket.AF_INET6)),
        Call("setsockopt", _on(_set(Option.TLS_REMOTE_HOSTNAME, b"server.example\0"))),
        Call("setsockopt with a long value", _on(_set(Option.TLS_TRUSTED_PEER_CERTIFICATES, (_PEM * 1100)[:65536]))),
        Call("setsockopt with a file", _on(_set(Option.TLS_CERTIFICATE_CHAIN, name))),
        Call("setsockopt of SOL_SOCKET", _on(lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))),
        Call("setsockopt of TCP", _on(lambda sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"))),
        Call("getsockopt", _on(lambda sock: sock.getsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, 1024))),
        Call("bind", _on(lambda sock: sock.bind(("127.0.0.1", 0))), bad=busy),
        Call("bind of IPv6", _on(lambda sock: sock.bind(("::1", 0)), socket.AF_INET6), bad=busy),
        Call("connect", _connecting(lambda sock, port: sock.connect(("127.0.0.1", port)))),
        Call("connect of IPv6", _connecting(lambda sock, port: sock.connect(("::1", port)), socket.AF_INET6)),
        Call("connect without waiting", _connecting(lambda sock, port: sock.connect(("127.0.0.1", port)), block=False),
             frozenset((EINPROGRESS,))),
        Call("connect to a name", _connecting(lambda sock, port: connectName(sock, "server.example", port))),
        Call("listen", _on(lambda sock: sock.listen(5)), bad=busy),
        Call("accept", _accepting, done=frozenset((EAGAIN,))),
        Call("send", _established(lambda sock: sock.send(b"x" * 10000))),
        Call("sendmsg", _established(lambda sock: sock.sendmsg([b"x" * 10000, b"y"], [(socket.SOL_SOCKET, 1, b"\0\0\0\0")])),
             again=False),
        Call("sendfile", _established(lambda sock: _sendfile(sock, path))),
        Call("recv", _established(lambda sock: sock.recv(100), b"hello" * 1000)),
        Call("recvmsg", _established(lambda sock: sock.recvmsg(100, 100), b"hello" * 1000)),
        Call("poll", _established(lambda sock: select.select([sock], [sock], [sock], 1), b"hello")),
        Call("epoll_ctl", _polling),
        Call("getsockname", _established(lambda sock: sock.getsockname())),
        Call("getpeername", _established(lambda sock: sock.getpeername())),
        Call("shutdown of sending", _established(lambda sock: sock.shutdown(socket.SHUT_WR))),
        Call("shutdown of both", _established(lambda sock: sock.shutdown(socket.SHUT_RDWR))),
        Call("TLS_UPGRADE", _upgrading),
        Call("SCM_RIGHTS", _sendingDescriptors),
        Call("close", _closingNew, again=False),
        Call("close of a connection", _closingConnected, again=False),
        Call("close of a listener", _closingListener, again=False),
    )


def _sendfile(sock: socket.socket, path: str) -> int:
    with open(path, "rb", buffering=0) as file:
        return os.sendfile(sock.fileno(), file.fileno(), 0, 20000)


class Faults:
    """
    Runs rounds, and counts.

    @ivar problems: what does not hold.
    """

    def __init__(self, settle: Callable[[], object] = lambda: None) -> None:
        """
        @param settle: waits until the daemon has nothing to do, so that the call is the one that tells it.
        """
        self.problems: list[str] = []
        self.settle = settle
        self._injection = injection.Injection()

    def _complain(self, text: str) -> None:
        self.problems.append(text)
        print(f"problem: {text}", flush=True)

    def program(self, call: Call) -> None:
        """All rounds of a program's call."""
        seen: dict[str, int] = {}
        for nth in range(1, MOST):
            faulthandler.dump_traceback_later(CALL_SECONDS, exit=True)
            attempt = self._round(call, nth)
            seen[_name(attempt.error)] = seen.get(_name(attempt.error), 0) + 1
            if not attempt.isInjected:
                if attempt.error and attempt.error not in call.good:
                    self._complain(f"{call.name}: {_name(attempt.error)} without a fault")
                break
        else:
            self._complain(f"{call.name}: no end after {MOST} faults")
        faulthandler.cancel_dump_traceback_later()
        print(f"{call.name}: {nth - 1} faults, {', '.join(f'{count} {name}' for name, count in seen.items())}", flush=True)

    def _round(self, call: Call, nth: int) -> injection.Attempt:
        body = call.body()
        function = next(body)
        self.settle()
        attempt = self._injection.call(nth, function)
        result = attempt.result
        if attempt.error and attempt.isInjected and attempt.error not in call.good:
            if attempt.error not in PROPER | call.bad:
                self._complain(f"{call.name}, fault {nth}: {_name(attempt.error)}")
            if call.again:
                try:
                    result = function()
                except OSError as failure:
                    if failure.errno not in call.good | (call.done if attempt.error == EFAULT else frozenset()):
                        then = f"then {_name(failure.errno or 0)}, without a fault"
                        self._complain(f"{call.name}, fault {nth}: {_name(attempt.error)}, {then}")
        with contextlib.suppress(StopIteration):
            body.send(result)
        return attempt

    def daemon(self, started: Started, command: Command, body: Callable[[], Body]) -> None:
        """All rounds of a request of the daemon's: the program's call has to go on as if nothing had been."""
        for nth in range(1, MOST):
            faulthandler.dump_traceback_later(CALL_SECONDS, exit=True)
            one = body()
            function = next(one)
            started.tell("inject", int(command), nth)
            error = 0
            result: object = None
            try:
                result = function()
            except OSError as failure:
                error = failure.errno or 0
            report = started.tell("report")
            if error and error not in PROPER:
                self._complain(f"{command.name}, fault {nth}: the program gets {_name(error)}")
            with contextlib.suppress(StopIteration):
                one.send(result)
            if report == "no request":
                self._complain(f"{command.name}: the daemon has not made it")
                break
            if report == "undisturbed":
                if error:
                    self._complain(f"{command.name}: {_name(error)} without a fault")
                break
        faulthandler.cancel_dump_traceback_later()
        print(f"{command.name}: {nth - 1} faults", flush=True)

    def registering(self) -> None:
        """All rounds of REGISTER."""
        for nth in range(1, MOST):
            link = Link()
            attempts: list[injection.Attempt] = []

            def send(message: bytes, link: Link = link, attempts: list[injection.Attempt] = attempts, nth: int = nth) -> int:
                attempts.append(self._injection.call(nth, link.sock.send, message))
                if attempts[-1].error:
                    raise OSError(attempts[-1].error, "injected")
                return len(message)

            link.send = send
            error = link.register()
            link.send = link.sock.send
            if error and error not in PROPER:
                self._complain(f"REGISTER, fault {nth}: {_name(error)}")
            if error and (second := link.register()):
                self._complain(f"REGISTER, fault {nth}: then {_name(second)}, without a fault")
            link.close()
            if not attempts[0].isInjected:
                break
        print(f"REGISTER: {nth - 1} faults", flush=True)


def _name(error: int) -> str:
    return errorcode.get(error, str(error)) if error else "success"


def requests() -> Sequence[tuple[Command, Callable[[], Body]]]:
    """The requests of the daemon, each with what makes it make one."""

    def accepting() -> Body:
        with tls() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen(5)
            sock.settimeout(60)

            def accept() -> object:
                with socket.create_connection(sock.getsockname(), 30):
                    sock.accept()[0].close()
                return None

            yield accept

    def ending() -> Body:
        with _connected() as (sock, peer):
            sock.settimeout(60)

            def end() -> object:
                peer.shutdown(socket.SHUT_WR)
                return sock.recv(1)

            yield end

    connect = _connecting(lambda sock, port: sock.connect(("127.0.0.1", port)))
    named = _connecting(lambda sock, port: connectName(sock, "server.example", port))
    option = _on(_set(Option.TLS_REMOTE_HOSTNAME, b"server.example\0"))
    return (
        (Command.RETURN, option),
        (Command.NEXT, option),
        (Command.NEXT, _creating(socket.AF_INET)),
        (Command.NEXT, _closingNew),
        (Command.DATA_RETURN, _on(lambda sock: sock.getsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, 1024))),
        (Command.FETCH, connect),
        (Command.FETCH, named),
        (Command.FETCH, _on(lambda sock: sock.listen(5))),
        (Command.FETCH, _upgrading),
        (Command.ESTABLISHED, connect),
        (Command.ESTABLISHED, named),
        (Command.HANDSHAKE_RETURN, connect),
        (Command.ACCEPTED, accepting),
        (Command.EOF, ending),
    )


def main(argv: Sequence[str]) -> int:
    """
    The entry point.

    @param argv: C{--optional}, and parts of the names of calls; none for all.
    """
    isOptional, argv = "--optional" in argv, [word for word in argv if word != "--optional"]
    if injection.isAvailable():
        injection.prepare()
    else:
        print("this kernel injects no faults (fail-nth): only the debug kernel does", flush=True)
        if not isOptional:
            return 1
    faults = Faults()

    def wanted(name: str) -> bool:
        return not argv or any(part in name for part in argv)

    if wanted("REGISTER"):
        faults.registering()
    started = Started()
    faults.settle = lambda: started.tell("settle")
    with tempfile.TemporaryDirectory() as directory:
        tls().close()
        descriptors = len(os.listdir("/proc/self/fd"))
        theirs = int(started.tell("descriptors"))
        for call in calls(directory):
            if wanted(call.name):
                faults.program(call)
        for command, body in requests():
            if wanted(command.name):
                faults.daemon(started, command, body)
        for what, now, then in (
            ("program's descriptors", len(os.listdir("/proc/self/fd")), descriptors),
            ("daemon's descriptors", int(started.tell("descriptors")), theirs),
            ("daemon's sockets", int(started.tell("sockets")), 0),
        ):
            if now != then:
                faults.problems.append(f"the {what}: {now} instead of {then}")
    if started.end():
        faults.problems.append("the daemon has failed")
    if left := module.settle():
        faults.problems.append(f"{left} sockets hold the module")
    else:
        module.unload()
    for problem in faults.problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"{len(faults.problems)} problems", flush=True)
    return 1 if faults.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
