# SPDX-License-Identifier: MIT
"""
What every part of the supervisor needs: the notifications, the table of sockets, the daemon, and the callers' rights.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator
from errno import EFAULT, EINVAL, EIO, ENETDOWN, ETIMEDOUT
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ssa.errors import SSAError, oneLine
from ssa.intercept import linux
from ssa.intercept.caller import Caller, Rights
from ssa.intercept.carried import Defaults
from ssa.intercept.endpoint import Endpoint, EndpointTable, Home, State, Waiter
from ssa.intercept.namespace import socketCookie
from ssa.intercept.network import IPrivateNetwork
from ssa.intercept.notify import Gone, Notification, NotificationListener, duplicateSocket
from ssa.protocol.interceptor import InterceptorEnd
from ssa.protocol.messages import Answer, CloseNotify, DataReturn, Event

ANSWER_TIMEOUT = 30.0
"""Seconds after which an option call gets ETIMEDOUT from a daemon that is alive but does not answer."""

MAXIMUM_ADDRESS = 128
"""Bytes of C{struct sockaddr_storage}: more is EINVAL, as in the kernel."""

_TCP_INFO = 11
TCP_ESTABLISHED = 1
TCP_CLOSE = 7
TCP_CLOSE_WAIT = 8
TCP_LISTEN = 10


def tcpState(sock: socket.socket) -> int:
    """The state of a TCP socket, as C{include/net/tcp_states.h} numbers them."""
    return sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0]


class Core:
    """
    The state that the parts of the supervisor share.

    @ivar reactor: with C{callLater}, C{addReader} and C{removeReader}.
    @ivar listener: the notifications.
    @ivar table: the TLS sockets.
    @ivar rights: lends the callers' rights.
    @ivar daemon: the link, or L{None} while there is none.
    @ivar session: the number of that link, counted up with each.
    """

    log = Logger()

    def __init__(self, reactor: Any, listener: NotificationListener, newNetwork: Callable[[], IPrivateNetwork]) -> None:
        """
        @param newNetwork: makes the private network for one more network namespace of programs.
        """
        self.reactor = reactor
        self.listener = listener
        self.table = EndpointTable()
        self.rights = Rights()
        self.daemon: InterceptorEnd | None = None
        self.session = 0
        self._newNetwork = newNetwork
        self._ids = itertools.count(1)
        self._ownNetwork = os.stat("/proc/self/ns/net").st_ino
        self._homes: dict[int, Home] = {}
        self.networkAdded: Callable[[IPrivateNetwork], None] = lambda network: None
        self._served: Notification | None = None
        self._copy: socket.socket | None = None

    # Answers to programs.  A call that was interrupted needs none.

    def succeed(self, call: Notification, value: int = 0) -> bool:
        """
        End a call with a value.

        @return: whether somebody waited for it.
        """
        self._letGo(call)
        try:
            self.listener.succeed(call, value)
        except Gone:
            return False
        return True

    def fail(self, call: Notification, error: int) -> bool:
        """
        End a call with an errno.

        @return: whether somebody waited for it.
        """
        self._letGo(call)
        try:
            self.listener.fail(call, error)
        except Gone:
            return False
        return True

    @contextlib.contextmanager
    def serving(self, call: Notification, sock: socket.socket) -> Iterator[None]:
        """
        Have a copy of the program's socket for as long as its call is served, and close it just before the answer.

        The program may close its own descriptor at once.  Were ours the last one, then SO_LINGER would keep the supervisor
        waiting in close(2), and not the program.
        """
        before = self._served, self._copy
        self._served, self._copy = call, sock
        try:
            yield
        finally:
            self._served, self._copy = before
            sock.close()

    def _letGo(self, call: Notification) -> None:
        if call is self._served and self._copy is not None:
            self._copy.close()

    def proceed(self, call: Notification) -> None:
        """Let the kernel do a call that is none of ours."""
        try:
            self.listener.proceed(call)
        except Gone:
            return

    def refuse(self, call: Notification, endpoint: Endpoint, error: int, reason: str) -> None:
        """End a call with an errno and say why in TLS_ERROR, in one line as the daemon's."""
        endpoint.reason = oneLine(reason)
        self.fail(call, error)

    # The caller's memory.

    def readAddress(self, call: Notification, pointer: int, length: int) -> bytes:
        """
        Copy a socket address, as the kernel would.

        @raise OSError: EINVAL, EFAULT.
        """
        if not 0 <= length <= MAXIMUM_ADDRESS:
            raise OSError(EINVAL, os.strerror(EINVAL))
        return self.listener.read(call, pointer, length)

    def readInteger(self, call: Notification, pointer: int) -> int:
        """
        Copy a C{int}.

        @raise OSError: EFAULT.
        """
        return int(struct.unpack("=i", self.listener.read(call, pointer, 4))[0])

    def writeLimited(self, call: Notification, pointer: int, lengthPointer: int, data: bytes) -> None:
        """
        Write a value as far as the caller's buffer reaches, and its whole length, as the kernel does with socket addresses.

        @raise OSError: EFAULT, EINVAL for a negative length.
        """
        room = self.readInteger(call, lengthPointer)
        if room < 0:
            raise OSError(EINVAL, os.strerror(EINVAL))
        if room:
            self.listener.write(call, pointer, data[:room])
        self.listener.write(call, lengthPointer, struct.pack("=i", len(data)))

    # Sockets.

    def home(self, caller: Caller) -> Home:
        """
        The network namespace of a caller, who is stopped.

        @raise SSAError: ENETDOWN: an ordinary user's supervisor cannot enter another network namespace.
        @raise OSError: no more private networks can be made.
        """
        home = self._homes.get(caller.networkNamespace)
        if home is not None:
            return home
        fd = None
        if caller.networkNamespace != self._ownNetwork:
            if not self.rights.mayEnter:
                raise SSAError(
                    ENETDOWN,
                    "the program has moved to another network namespace, where only root's ssa run can follow it",
                )
            fd = os.open(f"/proc/{caller.thread}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        network = self._newNetwork()
        home = self._homes[caller.networkNamespace] = Home(caller.networkNamespace, fd, network, Defaults(network.program))
        self.networkAdded(network)
        return home

    def livingCookies(self) -> set[int]:
        """The sockets that the kernel still has in the private networks."""
        living: set[int] = set()
        for home in self._homes.values():
            living |= home.network.living()
        return living

    def held(self, inodes: set[int]) -> set[int]:
        """Which of these sockets are in the table of some process that we may look at, or in our own."""
        found: set[int] = set()
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):  # ended, or another user's
                for number in os.listdir(f"/proc/{name}/fd"):
                    with contextlib.suppress(OSError):  # closed meanwhile
                        link = os.readlink(f"/proc/{name}/fd/{number}")
                        if link.startswith("socket:["):
                            found.add(int(link[8:-1]))
        return found & inodes

    def nextID(self) -> int:
        """A number for a new TLS socket."""
        return next(self._ids)

    def find(self, call: Notification, fd: int) -> tuple[Endpoint, socket.socket] | None:
        """
        The TLS socket that a number in the caller's table means now.

        The inode number rules out most; what was fetched is then identified by its cookie, whatever happened to the number in
        between.

        @return: the endpoint and a duplicate, which the caller of this closes; L{None}: it is no TLS socket.
        @raise Gone: the caller is no longer there.
        """
        inode = self.listener.socketInode(call, fd)
        if inode is None or self.table.byInode(inode) is None:
            return None
        sock = self.listener.socketOf(call, fd)
        if sock is None:
            return None
        try:
            endpoint = self.table.byCookie(socketCookie(sock))
        except OSError:
            endpoint = None
        if endpoint is None:
            sock.close()
            return None
        return endpoint, sock

    def findAgain(self, endpoint: Endpoint) -> socket.socket | None:
        """
        A momentary duplicate of a program's socket, when no call is stopped: first where it was used last, then in every
        process under the filter that we may look at.

        @return: L{None}: no process has it in its table.
        """
        found = self._check(endpoint, endpoint.pid, endpoint.fd) if endpoint.fd >= 0 else None
        if found is not None:
            return found
        wanted = f"socket:[{endpoint.inode}]"
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                numbers = os.listdir(f"/proc/{name}/fd")
            except OSError:
                continue  # ended, or another user's
            for number in numbers:
                try:
                    if os.readlink(f"/proc/{name}/fd/{number}") != wanted:
                        continue
                except OSError:
                    continue  # closed meanwhile
                found = self._check(endpoint, int(name), int(number))
                if found is not None:
                    return found
        return None

    def _check(self, endpoint: Endpoint, pid: int, fd: int) -> socket.socket | None:
        try:
            sock = duplicateSocket(pid, fd)
            if sock is None:
                return None
            if socketCookie(sock) == endpoint.cookie:
                return sock
            sock.close()
        except OSError:
            return None
        return None

    def reset(self, sock: socket.socket) -> None:
        """Make a program's socket new again after a failed attempt: no error is left, and it may connect."""
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        linux.disconnect(sock.fileno())
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def nextEvent(self) -> int:
        """
        A number for the next event.

        @raise SSAError: ENETDOWN: there is no daemon.
        """
        if self.daemon is None:
            raise SSAError(ENETDOWN, "no daemon serves TLS sockets at the moment")
        return self.daemon.nextEvent()

    def isServed(self, endpoint: Endpoint) -> bool:
        """Whether the daemon that there is knows a socket."""
        return self.daemon is not None and endpoint.session == self.session

    def ask(
        self,
        event: Event,
        answered: Callable[[int, bytes], None],
        timeout: float | None = ANSWER_TIMEOUT,
        call: Notification | None = None,
    ) -> None:
        """
        Report an event and go on when it is answered.

        @param answered: called once with the errno (0: none) and the value.
        @param timeout: seconds, or L{None}: the daemon bounds it.
        @param call: whom to tell an error that C{answered} raises.
        """
        if self.daemon is None:
            self._answer(answered, ENETDOWN, b"", call)
            return
        timer: Any = None
        waiting = [answered]

        def finish(error: int, value: bytes) -> None:
            if waiting:
                if timer is not None and timer.active():
                    timer.cancel()
                self._answer(waiting.pop(), error, value, call)

        def got(answer: Answer) -> None:
            if isinstance(answer, DataReturn):
                finish(0, answer.value)
            else:
                finish(-getattr(answer, "result", -EIO), b"")

        def lost(failure: Failure) -> None:
            error = failure.value.errno if isinstance(failure.value, SSAError) else ENETDOWN
            finish(error, b"")

        if timeout is not None:
            timer = self.reactor.callLater(timeout, finish, ETIMEDOUT, b"")
        deferred: Deferred[Answer] = self.daemon.notify(event)
        deferred.addCallbacks(got, lost)

    def _answer(self, answered: Callable[[int, bytes], None], error: int, value: bytes, call: Notification | None) -> None:
        """Nothing that goes wrong may leave a caller without an answer."""
        try:
            answered(error, value)
        except Gone:
            return
        except OSError as problem:
            error = problem.errno or EIO
        except Exception:
            self.log.failure("an answer of the daemon could not be used")
            error = EIO
        else:
            return
        if call is not None:
            self.fail(call, error)

    def tellClosed(self, endpoint: Endpoint) -> None:
        """Tell the daemon that the last descriptor of a socket is gone."""
        if self.isServed(endpoint) and self.daemon is not None:
            self.daemon.tell(CloseNotify(self.daemon.nextEvent(), endpoint.id))

    def wait(self, endpoint: Endpoint, call: Notification, fd: int, sock: socket.socket, name: int, error: int) -> Waiter:
        """
        Keep a blocked caller, with the socket's own timeout.

        @param name: SO_SNDTIMEO or SO_RCVTIMEO.
        @param error: what the caller gets when it is over.
        """
        timer: Any = None

        def cancel() -> None:
            if timer is not None and timer.active():
                timer.cancel()

        waiter = Waiter(call, fd, cancel)

        def expired() -> None:
            if waiter in endpoint.waiters:
                endpoint.waiters.remove(waiter)
                self.fail(call, error)

        seconds, microseconds = struct.unpack("@ll", sock.getsockopt(socket.SOL_SOCKET, name, 16))
        if seconds or microseconds:
            timer = self.reactor.callLater(seconds + microseconds / 1e6, expired)
        endpoint.waiters.append(waiter)
        return waiter

    def takeWaiters(self, endpoint: Endpoint) -> list[Waiter]:
        """Those who wait at a socket, who do so no more."""
        waiters, endpoint.waiters = endpoint.waiters, []
        for waiter in waiters:
            waiter.cancel()
        return waiters


__all__ = ["ANSWER_TIMEOUT", "EFAULT", "Core", "State", "tcpState"]
