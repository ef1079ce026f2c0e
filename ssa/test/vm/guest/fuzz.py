# SPDX-License-Identifier: MIT
"""
Malformed netlink: C{python -m ssa.test.vm.guest.fuzz [--seed N] [--messages N]}, as root, the module loaded and no daemon.

First those who are not the daemon ask for everything (L{ssa.test.vm.guest.strangers}), while programs have sockets in every
state: they must be refused, and the sockets be as before.  Then a daemon that is registered sends every command with every
attribute spoilt in every way, to sockets in every state, while others ask the same sockets and read what C{/proc} says of them.
The kernel has to answer each message, and to survive.  A second worker gets nothing of the first one's.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from errno import (
    EAGAIN,
    EBADF,
    EBUSY,
    EINVAL,
    EMSGSIZE,
    ENETDOWN,
    ENOBUFS,
    ENOENT,
    ENOTSOCK,
    EPERM,
    ERANGE,
    ETIMEDOUT,
    errorcode,
)
from pathlib import Path

from ssa.api import IPPROTO_TLS, Option
from ssa.netlink.codec import NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLM_F_ACK, NLM_F_DUMP
from ssa.protocol.wire import MAXIMUM_VALUE, Attribute, Command
from ssa.test.vm.guest import module, onlookers
from ssa.test.vm.guest.hostile import DAEMON, Hostile, closeIn
from ssa.test.vm.guest.link import GENERIC, HEADER, Link, attribute, u8, u32, u64
from ssa.test.vm.guest.programs import connectName, connectRaw, getOption, server, tls
from ssa.test.vm.guest.standin import Started
from ssa.test.vm.guest.strangers import REQUESTS, STRANGERS, attackInChild, wellFormed

SECONDS = 60.0
_LAST_ATTRIBUTE = max(Attribute) + 3
_COMMANDS = (*range(int(max(Command)) + 3), 100, 255)
_EVERY_SIZE = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 28, 127, 128, 129, 200, 4096, 65531)


def _name(error: int) -> str:
    return errorcode.get(error, str(error)) if error else "success"


def spoilt(choice: random.Random, number: int, good: bytes) -> Iterator[bytes]:
    """
    An attribute, or several, in every way that is wrong.

    @param good: the payload that would be right.
    """
    yield b""
    yield attribute(number, good) * 2
    yield attribute(number, good) * 300
    for size in (len(good) - 1, len(good) + 1, choice.choice(_EVERY_SIZE), 65531):
        yield attribute(number, choice.randbytes(max(size, 0)))
    for value in (bytes(len(good)), b"\xff" * len(good), choice.randbytes(len(good)), b"\x7f" * len(good)):
        yield attribute(number, value)
    yield attribute(number | NLA_F_NESTED, good)
    yield attribute(number | NLA_F_NET_BYTEORDER, good)
    yield attribute(number | NLA_F_NESTED, attribute(number | NLA_F_NESTED, attribute(number, good)))
    for length in (0, 1, 3, len(good) + 3, len(good) + 5, len(good) + 40, 0xFFFF):
        yield attribute(number, good, length)


def _shown(sock: socket.socket) -> tuple[int, str]:
    """What poll says of a socket, and its error if it has one, which stays."""
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLOUT)
    text = Path(f"/proc/self/fdinfo/{sock.fileno()}").read_text()
    return dict(poller.poll(0)).get(sock.fileno(), 0), text


def _parts(attributes: bytes) -> dict[int, bytes]:
    parts: dict[int, bytes] = {}
    while attributes:
        length = int.from_bytes(attributes[:2], "little")
        parts[int.from_bytes(attributes[2:4], "little")] = attributes[4:length]
        attributes = attributes[(length + 3) & ~3 :]
    return parts


class Fuzz:
    """
    One run.

    @ivar problems: what does not hold.
    """

    def __init__(self, seed: int, messages: int, rounds: int) -> None:
        self.problems: list[str] = []
        self._choice = random.Random(seed)
        self._messages = messages
        self._rounds = rounds
        self._sent = 0

    def complain(self, text: str) -> None:
        """Note a problem."""
        self.problems.append(text)
        print(f"problem: {text}", flush=True)

    # Strangers

    def strangers(self) -> None:
        """Nothing that they do may change anything."""
        started = Started()
        family = Link().family
        started.tell("connects", "no")
        with server() as there, tls() as pending, tls() as named, tls() as listener, tls() as idle:
            for sock in (pending, named):
                sock.setblocking(False)
            pending.connect_ex(there.getsockname())
            with contextlib.suppress(BlockingIOError):
                connectName(named, "server.example", 443)
            started.tell("connects", "yes")
            listener.bind(("127.0.0.1", 0))
            listener.listen(5)
            with tls() as connection:
                connection.connect(there.getsockname())
                there.accept()[0].close()  # the one of `pending`
                peer, _ = there.accept()
                peer.settimeout(SECONDS)
                for name in STRANGERS:
                    faulthandler.dump_traceback_later(5 * SECONDS, exit=True)
                    if said := attackInChild(name, family):
                        self.complain(said)
                if select.select([listener], [pending, named], [], 0.2)[:2] != ([], []):
                    self.complain("a stranger has changed a socket that waits")
                for _ in range(3):
                    connection.sendall(b"hello")
                    if peer.recv(5) != b"hello":
                        self.complain("a connection passes other data on")
                idle.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, b"server.example\0")
                peer.close()
        if started.end():
            self.complain("the daemon that was attacked has failed")
        print("strangers: done", flush=True)

    # The hostile daemon

    def hostile(self) -> None:
        """All of it."""
        daemon = Hostile(self._choice)
        for name, part in (
            ("other workers", self._workers), ("inner sockets", self._replaced), ("descriptors", self._descriptors),
            ("values", self._values), ("addresses", self._addresses), ("frames", self._frames),
            ("attributes", self._attributes), ("commands", self._commands),
        ):
            faulthandler.dump_traceback_later(8 * SECONDS, exit=True)
            begun = time.monotonic()
            part(daemon)
            daemon.forget()
            daemon.take()
            print(f"{name}: done, {self._sent} messages, {time.monotonic() - begun:.1f} s", flush=True)
        faulthandler.cancel_dump_traceback_later()
        daemon.link.close()

    def _send(self, daemon: Hostile, message: bytes, what: str) -> int:
        self._sent += 1
        reply = daemon.link.exchange(message)
        closeIn(reply)
        if reply.error == ETIMEDOUT:
            self.complain(f"no answer to {what}")
        return reply.error

    def _workers(self, daemon: Hostile) -> None:
        """A second worker, that names the first one's sockets and events."""
        made = [make() for make in daemon.states() for _ in range(2)]
        attempts = [make() for make in (daemon.connecting, daemon.named, daemon.upgrading)]
        unanswered = {ident for _, ident in attempts}
        made += attempts
        pairs = [daemon.bothEnds() for _ in range(2)]
        waiting = [sock for sock, ident in made if ident in daemon.events and sock.fileno() >= 0]
        before = [_shown(sock) for sock in waiting]
        daemon.take()
        listed = Path("/proc/net/ssa").read_text()
        other = Link()
        for wrong in (0, DAEMON + 1):
            if (error := other.register(wrong)) != EBUSY:
                self.complain(f"a worker of another daemon: {_name(error)}")
        if error := other.register(DAEMON):
            self.complain(f"a second worker: {_name(error)}")
        with socket.create_connection(daemon.remoteAddress()) as tcp:
            for command in REQUESTS:
                if command in (Command.REGISTER, Command.NEXT):
                    continue
                for ident in [ident for _, ident in made] + [ident for _, _, ident in pairs]:
                    event = daemon.events.get(ident)
                    number = event.number(Attribute.EVENT) if event else 0
                    self._sent += 1
                    error = other.ask(command, wellFormed(command, ident, number, tcp.fileno()), NLM_F_ACK).error
                    isGone = ident not in {int(line.split()[0]) for line in listed.splitlines()[1:]}
                    answers = command in (Command.RETURN, Command.DATA_RETURN, Command.HANDSHAKE_RETURN)
                    isLate = answers and ident not in unanswered  # which is ignored, whoever it comes from
                    if error != EPERM and not isGone and not (isLate and not error):
                        self.complain(f"{command.name} of another worker's socket: {_name(error)}")
        if (error := other.ask(Command.NEXT).error) != ENOENT:
            self.complain(f"NEXT of a worker without sockets: {_name(error)}")
        if (now := Path("/proc/net/ssa").read_text()) != listed:
            self.complain(f"another worker has changed sockets: {listed!r}, now {now!r}")
        if (after := [_shown(sock) for sock in waiting]) != before:
            self.complain(f"another worker has changed what poll says: {before}, now {after}")
        for sock, end, _ in pairs:
            sock.send(b"hello")
            end.send(b"world")
            if (got := (end.recv(10), sock.recv(10))) != (b"hello", b"world"):
                self.complain(f"another worker has changed a connection: {got!r}")
        other.close()
        for sock in [sock for sock, _ in made] + [sock for sock, _, _ in pairs]:
            sock.close()

    def _replaced(self, daemon: Hostile) -> None:
        """Other processes ask a socket while its inner one is replaced: by a name's address, by TLS_UPGRADE, and back."""
        with onlookers.asker() as asker:
            for turn in range(self._rounds):
                sock, ident = daemon.named() if turn % 2 else daemon.new()
                onlookers.send(asker, sock)
                for _ in range(3):
                    if turn % 2:
                        daemon.chooseOne(ident)
                    else:
                        daemon.upgradeAndFail(sock, ident)
                sock.close()
                daemon.forget()
                daemon.take()

    def _descriptors(self, daemon: Hostile) -> None:
        """ACCEPTED with descriptors that are no connection of the listener."""
        listener, ident = daemon.listening()
        with contextlib.ExitStack() as stack:

            def keep(sock: socket.socket) -> socket.socket:
                return stack.enter_context(sock)

            there = keep(server())
            elsewhere, plain = keep(_elsewhere()), keep(socket.socket())
            pair = [keep(end) for end in socket.socketpair()]
            sixth = keep(socket.create_connection(keep(server(socket.AF_INET6)).getsockname()[:2]))
            file = stack.enter_context(open("/proc/self/exe", "rb"))
            epoll = stack.enter_context(select.epoll())
            established, _ = daemon.established()
            for what, descriptor in (
                ("-1", -1), ("a closed one", 999), ("a large number", 1 << 30), ("a regular file", file.fileno()),
                ("a UDP socket", keep(socket.socket(type=socket.SOCK_DGRAM)).fileno()), ("epoll", epoll.fileno()),
                ("the netlink socket", daemon.link.sock.fileno()), ("a unix socket", pair[0].fileno()),
                ("a TLS socket", keep(daemon.new()[0]).fileno()), ("the TLS listener", listener.fileno()),
                ("a TLS connection", keep(established).fileno()), ("a TCP socket of another namespace", elsewhere.fileno()),
                ("a TCP socket of IPv6", sixth.fileno()), ("a TCP listener", there.fileno()),
                ("a TCP socket without a connection", plain.fileno()),
            ):
                for path in (0, 1):
                    attributes = u64(Attribute.ID, ident) + u32(Attribute.FD, descriptor) + u8(Attribute.DATA_PATH, path)
                    error = self._send(daemon, daemon.link.message(Command.ACCEPTED, attributes, NLM_F_ACK), what)
                    if error not in (EINVAL, EBADF, ENOTSOCK):
                        self.complain(f"ACCEPTED with {what}, path {path}: {_name(error)}")
            tcp = keep(socket.create_connection(there.getsockname()))
            attributes = u64(Attribute.ID, ident) + u32(Attribute.FD, tcp.fileno())
            ktls = daemon.link.message(Command.ACCEPTED, attributes + u8(Attribute.DATA_PATH, 1), NLM_F_ACK)
            if (error := self._send(daemon, ktls, "kTLS that is none")) != EINVAL:
                self.complain(f"ACCEPTED over kTLS that is none: {_name(error)}")
            errors = [self._send(daemon, daemon.link.message(Command.ACCEPTED, attributes, NLM_F_ACK), "it") for _ in range(9)]
            if errors[:4] != [0] * 4 or set(errors[4:]) != {EAGAIN}:
                self.complain(f"ACCEPTED nine times for a backlog of 3: {[_name(error) for error in errors]}")
            listener.accept()[0].close()
            listener.close()

    def _values(self, daemon: Hostile) -> None:
        """DATA_RETURN with values of every size."""
        sock, ident = daemon.new()
        sock.setblocking(True)
        got: list[object] = []

        def get() -> None:
            try:
                got.append(getOption(sock, Option.TLS_HOSTNAME, 1000))
            except OSError as failure:
                got.append(failure.errno)

        for size in (0, 1, 999, 1000, 1001, 65531, 65532, MAXIMUM_VALUE, MAXIMUM_VALUE + 1, 3 << 20):
            thread = threading.Thread(target=get)
            thread.start()
            while daemon.events.get(ident) is None or daemon.events[ident].command != Command.GETSOCKOPT_NOTIFY:
                select.select([daemon.link.sock], [], [], 0.1)
                daemon.take()
            event = daemon.events.pop(ident)
            which = u64(Attribute.EVENT, event.number(Attribute.EVENT)) + u64(Attribute.ID, ident)
            value = bytes(size)
            parts = [attribute(Attribute.OPTVAL, value[at : at + 65531]) for at in range(0, size, 65531)]
            message = daemon.link.message(Command.DATA_RETURN, which + b"".join(parts), NLM_F_ACK)
            error = self._send(daemon, message, f"a value of {size} bytes")
            if error != (EMSGSIZE if size > MAXIMUM_VALUE else 0):
                self.complain(f"DATA_RETURN of {size} bytes: {_name(error)}")
            if error:
                daemon.events[ident] = event
                if wrong := daemon.answer(ident):
                    self.complain(f"the answer after one of {size} bytes: {_name(wrong)}")
                del daemon.events[ident]
            thread.join(SECONDS)
            wanted = value if size <= 1000 else b"" if error else ERANGE
            if thread.is_alive() or got.pop() != wanted:
                self.complain(f"getsockopt of {size} bytes is wrong")
        sock.close()

    def _addresses(self, daemon: Hostile) -> None:
        """A program's addresses of every size, and the daemon's of every family."""
        for family in (0, 1, 2, 10, 43, 0xFFFF):
            for size in range(0, 129, 1):
                sock, _ = daemon.new()
                address = (family.to_bytes(2, "little") + b"\0\1" + b"\x7f\0\0\1" * 31)[:size]
                with contextlib.suppress(OSError):
                    connectRaw(sock, address)
                with contextlib.suppress(OSError):
                    connectRaw(sock, address[:1])
                sock.close()
            daemon.take()
        for family in (0, 1, 2, 10, 43, 0xFFFF):
            for size in (16, 17, 24, 28, 128):
                sock, ident = daemon.named()
                address = (family.to_bytes(2, "little") + b"\0\1" + b"\x7f\0\0\1" * 31)[:size]
                remote = attribute(Attribute.SOCKADDR_REMOTE, address)
                external = attribute(Attribute.SOCKADDR_EXTERNAL, address)
                for command in (Command.FETCH, Command.ESTABLISHED):
                    attributes = u64(Attribute.ID, ident) + remote + external
                    self._send(daemon, daemon.link.message(command, attributes, NLM_F_ACK), f"family {family}, size {size}")
                sock.close()

    def _frames(self, daemon: Hostile) -> None:
        """Messages that are cut, that lie about their length, or that are too long; and several in one datagram."""
        sock, ident = daemon.new()
        good = daemon.link.message(Command.EOF, u64(Attribute.ID, ident), NLM_F_ACK)
        for size in range(len(good)):
            daemon.link.sock.send(good[:size]) if size else None
        for length in (0, 1, 15, 16, 17, 19, 20, len(good) - 1, len(good) + 1, len(good) + 3, 0x7FFFFFFF, 0xFFFFFFFF):
            daemon.link.sock.send(length.to_bytes(4, "little") + good[4:])
        for flags in (0, 1, 2, 4, 8, 0x10, 0x100, 0x200, 0x300, 0x800, 0xFFFF):
            daemon.link.sock.send(good[:6] + flags.to_bytes(2, "little") + good[8:])
        for size in (1, 2, 3, 5):
            daemon.link.sock.send(good + b"\xff" * size)
        daemon.link.sock.send(good * 500)
        for version in range(4):
            daemon.link.sock.send(good[: HEADER.size] + GENERIC.pack(Command.EOF, version, 0xFFFF) + good[HEADER.size + 4 :])
        with contextlib.suppress(OSError):
            daemon.link.sock.send(good + bytes(7 << 20))
        self._alive(daemon)
        for command in range(256):
            dump = daemon.link.message(command, u64(Attribute.ID, ident), NLM_F_DUMP | NLM_F_ACK)
            if not (error := self._send(daemon, dump, f"a dump of command {command}")):
                self.complain(f"a dump of command {command}: {_name(error)}")
        self._alive(daemon)
        sock.close()

    def _alive(self, daemon: Hostile) -> None:
        """After messages without an answer: the link still works."""
        while True:
            try:
                daemon.link.receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as failure:
                if failure.errno != ENOBUFS:  # some answers were lost, since nobody has read them
                    raise
        if (error := daemon.link.ask(Command.NEXT).error) not in (0, ENOENT):
            self.complain(f"then NEXT: {_name(error)}")

    def _attributes(self, daemon: Hostile) -> None:
        """Every attribute of every command, in every way."""
        for turn, command in enumerate(_COMMANDS):
            make = daemon.states()[turn % len(daemon.states())]
            sock, ident = make()
            for number in range(_LAST_ATTRIBUTE + 1):
                event = daemon.events.get(ident)
                good = wellFormed(command, ident, event.number(Attribute.EVENT) if event else 1, 0)
                parts = _parts(good) if command in REQUESTS else _parts(u64(Attribute.ID, ident))
                payload = parts.pop(number, bytes(4))
                others = b"".join(attribute(other, value) for other, value in parts.items())
                for wrong in spoilt(self._choice, number, payload):
                    for attributes in (others + wrong,) if self._choice.random() < 0.5 else (wrong + others,):
                        message = daemon.link.message(command, attributes, NLM_F_ACK)
                        self._send(daemon, message, f"command {command}, attribute {number}")
            sock.close()
            daemon.take()
            daemon.forget()

    def _commands(self, daemon: Hostile) -> None:
        """Anything to sockets in every state."""
        remaining = self._messages
        while remaining > 0:
            for make in daemon.states():
                sock, ident = make()
                for _ in range(12):
                    remaining -= 1
                    command = self._choice.choice(REQUESTS)
                    other = self._choice.choice((ident, ident, ident, ident, ident - 1, ident + 1, 0, -1))
                    event = daemon.events.get(ident)
                    number = event.number(Attribute.EVENT) if event else 0
                    number = self._choice.choice((number, number, number - 1, number + 1, 0, -1))
                    descriptor = self._choice.randrange(3, 40)
                    attributes = wellFormed(command, other, number, descriptor)
                    if self._choice.random() < 0.3:
                        attributes += daemon.remote()
                    self._send(daemon, daemon.link.message(command, attributes, NLM_F_ACK), command.name)
                    with contextlib.suppress(OSError):
                        self._use(sock)
                sock.close()
            daemon.take()
            daemon.forget()

    def _use(self, sock: socket.socket) -> None:
        """What the program does meanwhile."""
        what = self._choice.randrange(6)
        if what == 0:
            sock.send(b"data")
        elif what == 1:
            sock.recv(10)
        elif what == 2:
            sock.accept()[0].close()
        elif what == 3:
            sock.shutdown(socket.SHUT_WR)


def _elsewhere() -> socket.socket:
    """A connected TCP socket of another network namespace."""
    import subprocess

    ours, theirs = socket.socketpair()
    code = ("import socket, sys; l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); "
            "s = socket.socket(fileno=int(sys.argv[1])); socket.send_fds(s, [b'x'], [c.fileno(), l.fileno()]); s.recv(1)")
    command = ["unshare", "-n", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh", sys.executable, "-c", code]
    with ours, theirs, subprocess.Popen([*command, str(theirs.fileno())], pass_fds=(theirs.fileno(),)):
        connection, listener = socket.recv_fds(ours, 1, 2)[1]
        os.close(listener)
        ours.send(b"x")
    return socket.socket(fileno=connection)


def main(argv: Sequence[str]) -> int:
    """The entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=205)
    parser.add_argument("--messages", type=int, default=1500, help="how many anyhow to sockets in every state")
    parser.add_argument("--rounds", type=int, default=40, help="how many sockets are asked while they change")
    options = parser.parse_args(argv)
    print(f"seed {options.seed}", flush=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    fuzz = Fuzz(options.seed, options.messages, options.rounds)
    descriptors = len(os.listdir("/proc/self/fd"))
    with onlookers.proc(os.getpid()):
        fuzz.strangers()
        fuzz.hostile()
    try:
        tls().close()
        fuzz.complain("there is a daemon still")
    except OSError as failure:
        if failure.errno != ENETDOWN:
            fuzz.complain(f"without a daemon: {failure}")
    if (now := len(os.listdir("/proc/self/fd"))) != descriptors:
        fuzz.complain(f"{now} descriptors instead of {descriptors}")
    if left := module.settle():
        fuzz.complain(f"{left} sockets hold the module")
    else:
        module.unload()
    print(f"{len(fuzz.problems)} problems", flush=True)
    return 1 if fuzz.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
