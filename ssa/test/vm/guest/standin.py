# SPDX-License-Identifier: MIT
"""
A daemon that does no TLS: it answers every event, and passes bytes on as they are.

That is enough for the module, which never sees what is on the network; and it starts at once, does one request after the other,
and can have faults injected into each.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
from collections.abc import Callable
from errno import EAGAIN, ECONNABORTED, EFAULT, ENFILE, ENOBUFS, ENOENT, ENOMEM

from ssa.api import AF_HOSTNAME
from ssa.netlink.codec import NLM_F_ACK
from ssa.protocol.wire import Attribute, Command
from ssa.test.vm.guest.injection import Injection
from ssa.test.vm.guest.link import HEADER, Link, Reply, attribute, u8, u32, u64

TRANSIENT = frozenset((ENOMEM, ENOBUFS, ENFILE, EFAULT))
"""What a request may end with for lack of memory: it is made again."""

REPLIED = frozenset((Command.NEXT, Command.FETCH, Command.ESTABLISHED, Command.ACCEPTED))
"""The requests that have a reply; the others are acknowledged."""

_CHUNK = 65536


class StandIn:
    """
    Answers events until it is told to end.

    Its control socket takes C{inject COMMAND NTH}: the next request of that command has its Nth fault; C{report}: whether that
    was done; C{sockets}: how many sockets it knows; C{descriptors}: how many it has open; C{connects no}: attempts get no
    answer; C{end}.  What it says to them it says when no event waits.

    @ivar link: to the module.
    @ivar sockets: the TLS sockets that it knows.
    """

    def __init__(self, control: socket.socket) -> None:
        self.link = Link()
        self.sockets: set[int] = set()
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[int, socket.socket] = {}
        self._waiting: list[tuple[int, socket.socket]] = []
        self._injection = Injection()
        self._plan = (0, 0)
        self._report = "no request"
        self._answersConnect = True
        self._isRunning = True
        self.link.send = self._send

    def run(self) -> None:
        """
        Register and serve.

        @raise OSError: it cannot register.
        """
        self.link.join()
        error = self.link.register()
        if error:
            raise OSError(error, "cannot register")
        self._selector.register(self.link.sock, selectors.EVENT_READ, self._heard)
        self._selector.register(self._control, selectors.EVENT_READ, self._told)
        self._control.send(b"ready\n")
        self.link.isKicked = True
        while self._isRunning:
            while self.link.isKicked:
                self._takeEvents()
            for key, _ in self._selector.select(0.05 if self._waiting else None):
                key.data()
            self._offerAgain()

    # Requests

    def _send(self, message: bytes) -> int:
        command, nth = self._plan
        if not nth or message[HEADER.size] != command:
            return self.link.sock.send(message)
        self._plan = (0, 0)
        attempt = self._injection.call(nth, self.link.sock.send, message)
        self._report = "injected" if attempt.isInjected else "undisturbed"
        if attempt.error:
            raise OSError(attempt.error, "injected")
        return len(message)

    def _ask(self, command: Command, *attributes: bytes) -> Reply:
        """Ask until it is not memory that lacks."""
        flags = 0 if command in REPLIED else NLM_F_ACK
        while True:
            reply = self.link.ask(command, b"".join(attributes), flags)
            if reply.error not in TRANSIENT or command == Command.ESTABLISHED:  # the real daemon gives that up, too
                return reply

    def _answer(self, event: Reply, result: int, command: Command = Command.RETURN) -> None:
        which = (u64(Attribute.EVENT, event.number(Attribute.EVENT)), u64(Attribute.ID, event.number(Attribute.ID)))
        self._ask(command, *which, u32(Attribute.RETURN, -result))

    # Events

    def _heard(self) -> None:
        try:
            self.link.receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # a reply was waited for meanwhile, and this came before it
        except OSError as failure:
            if failure.errno != ENOBUFS:
                raise
            self.link.isKicked = True

    def _takeEvents(self) -> None:
        self.link.isKicked = False
        while True:
            event = self.link.ask(Command.NEXT)
            if event.error == ENOENT:
                return
            if event.error in TRANSIENT:
                continue
            if event.error:
                raise OSError(event.error, "NEXT")
            self._happened(event)

    def _happened(self, event: Reply) -> None:
        ident = event.number(Attribute.ID)
        command = event.command
        if command == Command.SOCKET_NOTIFY:
            self.sockets.add(ident)
            self._answer(event, 0)
        elif command == Command.GETSOCKOPT_NOTIFY:
            value = b"v" * event.number(Attribute.OPTNAME) + b"\0"
            number = event.number(Attribute.EVENT)
            self._ask(
                Command.DATA_RETURN, u64(Attribute.EVENT, number), u64(Attribute.ID, ident), attribute(Attribute.OPTVAL, value)
            )
        elif command in (Command.CONNECT_NOTIFY, Command.UPGRADE_NOTIFY):
            if self._answersConnect:
                self._answer(event, self._connect(event, ident), Command.HANDSHAKE_RETURN)
        elif command == Command.LISTEN_NOTIFY:
            self._answer(event, self._listen(ident))
        elif command == Command.CLOSE_NOTIFY:
            self.sockets.discard(ident)
            self._forgetListener(ident)
        elif command != Command.ACCEPT_NOTIFY:
            self._answer(event, 0)

    def _connect(self, event: Reply, ident: int) -> int:
        remote = event.attributes[Attribute.SOCKADDR_REMOTE]
        names: tuple[bytes, ...] = ()
        isNamed = struct.unpack_from("=H", remote)[0] == AF_HOSTNAME
        if isNamed:
            there = struct.pack("=H", socket.AF_INET) + remote[2:4] + socket.inet_aton("127.0.0.1") + bytes(8)
            names = (attribute(Attribute.SOCKADDR_REMOTE, there),)
        fetched = self._ask(Command.FETCH, u64(Attribute.ID, ident), *names)
        if fetched.error:
            return fetched.error
        tcp = socket.socket(fileno=fetched.number(Attribute.FD))
        try:
            tcp.settimeout(10)
            if error := self._connected(tcp):
                return error
            ends = (
                (Attribute.SOCKADDR_EXTERNAL, tcp.getsockname()),
                (Attribute.SOCKADDR_REMOTE, tcp.getpeername()),
            )
            addresses = [attribute(number, _inet(end)) for number, end in ends] if isNamed else []
            reply = self._ask(Command.ESTABLISHED, u64(Attribute.ID, ident), *addresses)
            if reply.error:
                return reply.error
            self._relay(ident, socket.socket(fileno=reply.number(Attribute.FD)), tcp.dup())
            return 0
        finally:
            tcp.close()

    @staticmethod
    def _connected(tcp: socket.socket) -> int:
        """Wait until TCP is connected."""
        with selectors.DefaultSelector() as selector:
            selector.register(tcp, selectors.EVENT_WRITE)
            selector.select(10)
        return tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    # Listeners

    def _listen(self, ident: int) -> int:
        if ident in self._listeners:
            return 0
        fetched = self._ask(Command.FETCH, u64(Attribute.ID, ident))
        if fetched.error:
            return fetched.error
        listener = socket.socket(fileno=fetched.number(Attribute.FD))
        listener.setblocking(False)
        self._listeners[ident] = listener
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(ident, listener))
        return 0

    def _accept(self, ident: int, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            self._forgetListener(ident)  # it was shut down
            return
        self._waiting.append((ident, connection))

    def _offerAgain(self) -> None:
        waiting, self._waiting = self._waiting, []
        for ident, connection in waiting:
            reply = self._ask(Command.ACCEPTED, u64(Attribute.ID, ident), u32(Attribute.FD, connection.fileno()),
                              u8(Attribute.DATA_PATH, 0))
            if reply.error == EAGAIN:
                self._waiting.append((ident, connection))
                continue
            if reply.error:
                connection.close()
                if reply.error != ECONNABORTED:
                    raise OSError(reply.error, "ACCEPTED")
                continue
            new = reply.number(Attribute.NEW_ID)
            self.sockets.add(new)
            self._relay(new, socket.socket(fileno=reply.number(Attribute.FD)), connection)

    def _forgetListener(self, ident: int) -> None:
        listener = self._listeners.pop(ident, None)
        if listener is not None:
            self._selector.unregister(listener)
            listener.close()

    # Connections

    def _relay(self, ident: int, plain: socket.socket, tcp: socket.socket) -> None:
        for end in (plain, tcp):
            end.settimeout(10)
        lasting = {plain, tcp}

        def pump(source: socket.socket, sink: socket.socket) -> None:
            try:
                data = source.recv(_CHUNK)
                if data:
                    sink.sendall(data)
                    return
            except OSError:
                lasting.clear()
            if not dataEnded(source, sink):
                return
            for end in (plain, tcp):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(end)
                end.close()

        def dataEnded(source: socket.socket, sink: socket.socket) -> bool:
            """@return: whether both directions have ended."""
            lasting.discard(source)
            if lasting:
                self._selector.unregister(source)
                if source is tcp:
                    self._ask(Command.EOF, u64(Attribute.ID, ident))
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
            return not lasting

        def watch(source: socket.socket, sink: socket.socket) -> None:
            self._selector.register(source, selectors.EVENT_READ, lambda: pump(source, sink) if source.fileno() >= 0 else None)

        watch(plain, tcp)
        watch(tcp, plain)

    # The test

    def _told(self) -> None:
        line = self._control.recv(1024).decode()
        words = line.split()
        if not words or words[0] == "end":
            self._isRunning = False
            return
        self._takeEvents()
        answer = "ok"
        if words[0] == "inject":
            self._plan = (int(words[1]), int(words[2]))
            self._report = "no request"
        elif words[0] == "report":
            self._plan = (0, 0)
            answer = self._report
        elif words[0] == "sockets":
            answer = str(len(self.sockets))
        elif words[0] == "descriptors":
            answer = str(len(os.listdir("/proc/self/fd")))
        elif words[0] == "connects":
            self._answersConnect = words[1] == "yes"
        else:
            answer = "what?"
        self._control.send(f"{answer}\n".encode())


def _inet(address: tuple[str, int]) -> bytes:
    """A C{struct sockaddr_in}."""
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", address[1]) + socket.inet_aton(address[0]) + bytes(8)


class Started:
    """
    A L{StandIn} in a process of its own.

    @ivar pid: the process.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.pid = os.fork()
        if not self.pid:
            _child(lambda: StandIn(theirs).run(), self._control)
        theirs.close()
        self._control.settimeout(120)
        if self._line() != "ready":
            raise RuntimeError("the stand-in does not serve")

    def tell(self, *words: object) -> str:
        """Tell it something, and hear what it says to that."""
        self._control.send(" ".join(str(word) for word in words).encode())
        return self._line()

    def _line(self) -> str:
        return self._control.recv(1024).decode().strip()

    def end(self) -> int:
        """
        Let it end.

        @return: its exit status.
        """
        with contextlib.suppress(OSError):
            self._control.send(b"end")
        self._control.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _child(serve: Callable[[], None], other: socket.socket) -> None:
    """The forked process; does not return."""
    import traceback

    other.close()
    status = 1
    try:
        serve()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
