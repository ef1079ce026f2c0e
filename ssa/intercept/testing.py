# SPDX-License-Identifier: MIT
"""
Stand-ins for what the supervisor needs from the kernel, for tests of it, or of something that uses it, without seccomp.

The program is this process: L{FakeListener} stops its calls on paper, L{FakeNetwork} makes its sockets on the loopback
interface.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Callable
from errno import EBADF, EFAULT, EMFILE
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed

from ssa.api import InternetAddress
from ssa.intercept import linux
from ssa.intercept.loopback import LoopbackNetwork
from ssa.intercept.namespace import RawAddress
from ssa.intercept.network import Attempt, Finder
from ssa.intercept.notify import Gone, Notification, NotificationListener, duplicateSocket
from ssa.protocol.messages import Answer, Event

_Result = TypeVar("_Result")


def notice(cookie: int) -> bytes:
    """What sock_diag(7) multicasts when a socket is destroyed, as far as the supervisor reads it."""
    body = bytes(4) + bytes(40) + struct.pack("=II", cookie & 0xFFFFFFFF, cookie >> 32)
    return struct.pack("=IHHII", 16 + len(body), 20, 0, 0, 0) + body


class FakeNetwork(LoopbackNetwork):
    """
    A private network that fails where a test wants it to, and tells of destroyed sockets when a test does.

    @ivar errors: operations (names of methods) that fail, with their errno.
    @ivar operations: the names of the methods that were called, in order.
    @ivar notices: the other end of C{destroyed}; L{notice} makes what to send.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, int] = {}
        self.operations: list[str] = []
        for sock in self.destroyed:
            sock.close()
        told, self.notices = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.destroyed = [told]

    def _do(self, name: str, operation: Callable[[], _Result]) -> _Result:
        self.operations.append(name)
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))
        return operation()

    def program(self, family: int, back: bool = False) -> socket.socket:
        return self._do("program", lambda: super(FakeNetwork, self).program(family, back))

    def bind(self, sock: socket.socket, address: InternetAddress) -> None:
        self._do("bind", lambda: super(FakeNetwork, self).bind(sock, address))

    def hold(
        self, sock: socket.socket, bound: bool, local: InternetAddress, remote: InternetAddress, back: bool = False
    ) -> Attempt:
        return self._do("hold", lambda: super(FakeNetwork, self).hold(sock, bound, local, remote, back))

    def release(self, attempt: Attempt, find: Finder) -> socket.socket:
        return self._do("release", lambda: super(FakeNetwork, self).release(attempt, find))

    def fail(self, attempt: Attempt, find: Finder) -> None:
        self._do("fail", lambda: super(FakeNetwork, self).fail(attempt, find))

    def listen(self, sock: socket.socket, backlog: int) -> None:
        self._do("listen", lambda: super(FakeNetwork, self).listen(sock, backlog))

    def ring(self, name: RawAddress) -> tuple[int, socket.socket]:
        return self._do("ring", lambda: super(FakeNetwork, self).ring(name))

    def silence(self, cookie: int, name: RawAddress, find: Finder) -> None:
        self._do("silence", lambda: super(FakeNetwork, self).silence(cookie, name, find))

    def living(self) -> set[int]:
        return self._do("living", lambda: super(FakeNetwork, self).living())

    def pair(self, family: int, local: InternetAddress, remote: InternetAddress) -> tuple[socket.socket, socket.socket]:
        return self._do("pair", lambda: super(FakeNetwork, self).pair(family, local, remote))

    def close(self) -> None:
        """Close all descriptors."""
        for sock in [*self.destroyed, self.notices, self._diagnosis]:
            sock.close()
        for hole in self._holes.values():
            hole.close()


class FakeListener(NotificationListener):
    """
    Plays calls of this process.

    Where the kernel would let a mistake pass in silence, it is an error here: a second answer to a call.

    @ivar answers: what each call got, by its number: the value, or the errno as a negative one, or L{None}: carried out by
        the kernel.
    @ivar memory: the program's, by address.
    @ivar steps: how many operations on calls there were.
    @ivar interruptAt: the step at which a signal interrupts the call, or L{None}.
    @ivar full: whether the program has no descriptor left.
    @ivar waiting: calls that the supervisor has not received yet.
    @ivar descriptors: the numbers that the program has got.
    """

    def __init__(self) -> None:
        self.fd, self._signal = os.pipe2(os.O_CLOEXEC)
        self.answers: dict[int, int | None] = {}
        self.memory: dict[int, bytes] = {}
        self.steps = 0
        self.interruptAt: int | None = None
        self.full = False
        self.waiting: list[Notification] = []
        self.descriptors: set[int] = set()
        self._interrupted: set[int] = set()
        self._numbers = itertools.count(1)
        self._addresses = itertools.count(0x10000, 0x10000)

    # The program's side.

    def call(self, name: str, *arguments: int) -> Notification:
        """Stop a call of this process; the test hands it to the supervisor."""
        words = [argument & 0xFFFFFFFFFFFFFFFF for argument in arguments]
        a, b, c, d, e, f = words + [0] * (6 - len(words))
        number = linux.architecture().numbers[name]
        return Notification(next(self._numbers), os.getpid(), number, (a, b, c, d, e, f))

    def allocate(self, data: bytes) -> int:
        """Put something in the program's memory; returns its address."""
        address = next(self._addresses)
        self.memory[address] = data
        return address

    def interrupt(self, call: Notification) -> None:
        """A signal: nobody waits for the answer of a call any more."""
        self._interrupted.add(call.id)

    def closeDescriptor(self, number: int) -> None:
        """The program closes one of its descriptors."""
        self.descriptors.discard(number)
        os.close(number)

    # The supervisor's side.

    def _step(self, call: Notification) -> None:
        if self.interruptAt is not None and self.steps >= self.interruptAt:
            self._interrupted.add(call.id)
        self.steps += 1
        if call.id in self._interrupted or call.id in self.answers:
            raise Gone

    def _answer(self, call: Notification, answer: int | None) -> None:
        if call.id in self.answers and call.id not in self._interrupted:
            raise AssertionError(f"{call} was answered with {self.answers[call.id]}, and now with {answer}")
        self._step(call)
        self.answers[call.id] = answer

    def receive(self) -> Notification | None:
        return self.waiting.pop(0) if self.waiting else None

    def succeed(self, call: Notification, value: int = 0) -> None:
        self._answer(call, value)

    def fail(self, call: Notification, error: int) -> None:
        if error <= 0:
            raise AssertionError(f"{call} fails with errno {error}")
        self._answer(call, -error)

    def proceed(self, call: Notification) -> None:
        self._answer(call, None)

    def giveDescriptor(self, call: Notification, fd: int, closeOnExec: bool) -> int:
        self._step(call)
        if self.full:
            raise OSError(EMFILE, os.strerror(EMFILE))
        number = os.dup(fd)
        try:
            self._answer(call, number)
        except Gone:
            os.close(number)
            raise
        self.descriptors.add(number)
        return number

    def replaceDescriptor(self, call: Notification, number: int, fd: int, closeOnExec: bool) -> None:
        self._step(call)
        os.dup2(fd, number)

    def isAlive(self, call: Notification) -> bool:
        try:
            self._step(call)
        except Gone:
            return False
        return True

    def read(self, call: Notification, address: int, size: int) -> bytes:
        self._step(call)
        data = self.memory.get(address)
        if size and (data is None or len(data) < size):
            raise OSError(EFAULT, os.strerror(EFAULT))
        return (data or b"")[:size]

    def write(self, call: Notification, address: int, data: bytes) -> None:
        self._step(call)
        old = self.memory.get(address)
        if data and (old is None or len(old) < len(data)):
            raise OSError(EFAULT, os.strerror(EFAULT))
        self.memory[address] = data + (old or b"")[len(data) :]

    def check(self, call: Notification) -> None:
        self._step(call)

    def socketOf(self, call: Notification, fd: int) -> socket.socket | None:
        self._step(call)
        return duplicateSocket(call.pid, fd)

    def close(self) -> None:
        """Close what the program and the listener have."""
        for number in list(self.descriptors):
            try:
                self.closeDescriptor(number)
            except OSError as error:
                if error.errno != EBADF:
                    raise
        os.close(self.fd)
        os.close(self._signal)


class FakeDaemonLink:
    """
    Plays the link to a daemon: an L{InterceptorEnd<ssa.protocol.interceptor.InterceptorEnd>} without a daemon.

    @ivar react: answers an event, or returns L{None}: the test does it later.
    @ivar broken: makes the answer of an event that cannot be sent, or L{None}.
    @ivar told: the events that want no answer.
    @ivar pending: the events that wait.
    """

    def __init__(self, react: Callable[[Event], Answer | None]) -> None:
        self.react = react
        self.broken: Callable[[Event], Answer] | None = None
        self.told: list[Event] = []
        self.pending: list[tuple[Event, Deferred[Answer]]] = []
        self._numbers = itertools.count(1)

    def nextEvent(self) -> int:
        """A number for a new event."""
        return next(self._numbers)

    def notify(self, event: Event) -> Deferred[Answer]:
        """Report an event that wants an answer; it never comes at once, but where the event cannot be sent."""
        if self.broken is not None:
            return succeed(self.broken(event))
        waiting: Deferred[Answer] = Deferred()
        self.pending.append((event, waiting))
        return waiting

    def tell(self, event: Event) -> None:
        """Report an event that wants no answer."""
        self.told.append(event)

    def deliver(self) -> None:
        """Let the daemon work."""
        pending, self.pending = self.pending, []
        for event, waiting in pending:
            answer = self.react(event)
            if answer is None:
                self.pending.append((event, waiting))
            else:
                waiting.callback(answer)

    def lose(self, error: Exception) -> None:
        """The link breaks."""
        pending, self.pending = self.pending, []
        for _, waiting in pending:
            waiting.errback(error)
