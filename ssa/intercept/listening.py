# SPDX-License-Identifier: MIT
"""
listen(2), accept(2), and connections whose handshake has ended.

The program's listener really listens, in the front of the private network, at the address that the real one has.  For
each finished connection that waits, the supervisor connects to it once (it I{rings}), so poll, select and epoll tell what
they would for TCP, edges included.  accept(2) takes the bell out of the queue and gives the program the connection behind
it, whose two ends were made in the back.  A caller who is blocked in accept(2) gets it without a bell.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from errno import EAGAIN, ECONNABORTED, EFAULT, EINVAL, EIO, EMFILE, ENETDOWN, EOPNOTSUPP
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.api import InternetAddress, encodeAddress
from ssa.errors import SSAError
from ssa.intercept import linux
from ssa.intercept.caller import Caller, Credentials
from ssa.intercept.carried import carry, inherit
from ssa.intercept.connecting import nameOf
from ssa.intercept.core import TCP_CLOSE, TCP_LISTEN, Core, tcpState
from ssa.intercept.endpoint import Connection, Endpoint, Overflow, State, Waiter
from ssa.intercept.notify import Gone, Notification
from ssa.interfaces import Fetched
from ssa.protocol.messages import AcceptNotify, CloseNotify, Event, ListenNotify

_LINGER_RESET = struct.pack("ii", 1, 0)
_STALE_CHECK = 0.5  # seconds between looks for blocked callers whom a signal has interrupted


@implementer(IReadDescriptor)
class _Watch:
    """Watches a descriptor on the reactor and owns it."""

    def __init__(self, reactor: Any, fd: int, ready: Any) -> None:
        self._reactor = reactor
        self._fd = fd
        self._ready = ready
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        self._ready()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw a hang-up: for a listener, that it was shut down."""
        if self._fd >= 0:
            self._ready()

    def logPrefix(self) -> str:
        return "accept"

    def stop(self) -> None:
        """Watch no more; close the descriptor."""
        if self._fd >= 0:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1


class Listening:
    """The server's side."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._somaxconn = _somaxconn()
        self._stale: Any = None

    # listen(2)

    def listen(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        """Ask the daemon, which fetches the real socket, and then let the program's end listen."""
        core = self._core
        if endpoint.state is State.DEAD:
            core.refuse(call, endpoint, ENETDOWN, "the daemon that served this listener is gone")
            return
        if endpoint.state not in (State.NEW, State.LISTENING):
            core.refuse(call, endpoint, EINVAL, "listen: the socket is connected or connecting")
            return
        if endpoint.refused or not core.isServed(endpoint):
            core.refuse(call, endpoint, endpoint.refused or ENETDOWN, "the daemon does not serve this socket")
            return
        caller = core.rights.whose(call.pid)
        core.listener.check(call)
        try:
            self._prepare(endpoint, caller, sock)
        except OSError as error:
            core.refuse(call, endpoint, error.errno or EIO, f"listen: {error.strerror}")
            return
        assert endpoint.bound is not None
        wanted = call.integer(1)
        backlog = self._somaxconn if wanted < 0 else min(wanted, self._somaxconn)
        endpoint.backlog = backlog
        endpoint.caller = caller
        endpoint.reason = ""
        copy = linux.copyOf(sock)
        event = ListenNotify(core.nextEvent(), endpoint.id, backlog, endpoint.bound)
        core.ask(event, lambda error, value: self._listenAnswered(call, endpoint, copy, error), call=call)

    def _prepare(self, endpoint: Endpoint, caller: Credentials, sock: socket.socket) -> None:
        with self._core.rights.of(caller, endpoint.home.fd):
            if endpoint.real is None:
                endpoint.real = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                if endpoint.bound is not None:
                    endpoint.real.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    endpoint.real.bind(endpoint.bound.forSocket())
            if endpoint.device:
                endpoint.real.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, endpoint.device)
            if endpoint.state is State.NEW:
                carry(endpoint.home.defaults, sock, endpoint.real)
            endpoint.real.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if endpoint.bound is None:
                endpoint.real.bind(("", 0))
        if endpoint.bound is None or not endpoint.bound.port:
            endpoint.bound = nameOf(endpoint.real)
            endpoint.home.network.bind(sock, endpoint.bound)

    def _listenAnswered(self, call: Notification, endpoint: Endpoint, sock: socket.socket, error: int) -> None:
        core = self._core
        with sock:
            if endpoint.state is State.DEAD:
                core.fail(call, ENETDOWN)
                return
            if not error:
                try:
                    endpoint.home.network.listen(sock, endpoint.backlog)
                except OSError as problem:
                    error = problem.errno or EIO
                    core.log.error("a listener's program end cannot listen: {problem}", problem=problem)
            if error:
                core.fail(call, error)
                return
            endpoint.state = State.LISTENING
            endpoint.pid, endpoint.fd = call.pid, call.integer(0)
            endpoint.name = sock.getsockname()
            core.table.listens(endpoint)
        core.succeed(call)

    def fetch(self, endpoint: Endpoint) -> Fetched:
        """
        Hand over the real listener, listening.

        @raise SSAError: listen(2) failed, with the caller's rights.
        """
        if endpoint.real is None or endpoint.caller is None:
            raise SSAError(ECONNABORTED, "the program has given up")
        try:
            with self._core.rights.of(endpoint.caller, endpoint.home.fd):
                endpoint.real.listen(endpoint.backlog)
            return Fetched(os.dup(endpoint.real.fileno()), nameOf(endpoint.real), None)
        except OSError as error:
            raise SSAError(error.errno or EIO, str(error.strerror)) from error

    # Connections.

    def accepted(
        self, listener: Endpoint, external: InternetAddress, remote: InternetAddress
    ) -> tuple[int, int] | Deferred[tuple[int, int]]:
        """
        Take a finished connection; wait while the backlog is full.

        @return: the number of the new socket and its plaintext end.
        @raise SSAError: ECONNABORTED: the listener is gone.
        """
        if listener.state is not State.LISTENING:
            raise SSAError(ECONNABORTED, "the program has closed the listener")
        if len(listener.ready) <= listener.backlog:
            return self._take(listener, external, remote)
        waiting = Overflow(external, remote, Deferred())
        listener.overflow.append(waiting)
        return waiting.done

    def _take(self, listener: Endpoint, external: InternetAddress, remote: InternetAddress) -> tuple[int, int]:
        core = self._core
        try:
            sock, plain = listener.home.network.pair(listener.family, external, remote)
        except OSError as error:
            raise SSAError(error.errno or EIO, f"an accepted connection's ends cannot be made: {error.strerror}") from error
        endpoint = Endpoint.of(core.nextID(), sock, listener.home, listener.session)
        endpoint.state = State.CONNECTED
        endpoint.back = listener.home.network.hasBack
        endpoint.external, endpoint.remote = external, remote
        core.table.add(endpoint)
        connection = Connection(endpoint, sock, listener)
        if not self._giveToWaiter(listener, connection, isNew=True):
            try:
                self._ring(connection)
            except OSError as error:
                plain.close()
                core.table.remove(endpoint)
                sock.close()
                raise SSAError(ECONNABORTED, f"the program's listener is gone: {error.strerror}") from error
        return endpoint.id, plain.detach()

    def _ring(self, connection: Connection) -> None:
        listener = connection.listener
        port, connection.bell = listener.home.network.ring(listener.name)
        listener.ready[port] = connection

    def _giveToWaiter(self, listener: Endpoint, connection: Connection, isNew: bool = False) -> bool:
        while listener.waiters:
            waiter = listener.waiters.pop(0)
            try:
                if self._give(waiter.call, connection, waiter.listener, isNew=isNew):
                    return True
            except Gone:
                continue
            finally:
                waiter.cancel()
        return False

    # accept(2)

    def accept(self, call: Notification, endpoint: Endpoint, sock: socket.socket, flags: int) -> None:
        """Give a waiting connection, or wait for one."""
        core = self._core
        if endpoint.state is State.DEAD:
            core.fail(call, ENETDOWN)
            return
        if tcpState(sock) != TCP_LISTEN or flags & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC):
            core.fail(call, EINVAL)
            return
        connection = self._next(endpoint, sock)
        if connection is not None:
            try:
                self._give(call, connection, sock, again=True)
            except Gone:
                self._putBack(connection)
            self._refill(connection.listener)
        elif not os.get_blocking(sock.fileno()):
            core.fail(call, EAGAIN)
        else:
            self._wait(call, endpoint, sock)

    def _next(self, endpoint: Endpoint, sock: socket.socket) -> Connection | None:
        """
        Take a bell out of the listener's queue, and the connection that it stands for.

        Listeners that share an address (SO_REUSEPORT) get each other's bells, so all of them are asked.
        """
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while poll.poll(0):
            try:
                bell, address = sock.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in (EINVAL, EMFILE):
                    return None
                continue
            bell.close()
            connection = self._behind(endpoint, address[1])
            if connection is not None:
                return connection
        return None

    def _behind(self, endpoint: Endpoint, port: int) -> Connection | None:
        for listener in self._core.table.listenersAt(endpoint.home, endpoint.name):
            if port in listener.ready:
                return self._withoutBell(listener, port)
        return None

    def _withoutBell(self, listener: Endpoint, port: int) -> Connection:
        connection = listener.ready.pop(port)
        if connection.bell is not None:
            connection.bell.close()
            connection.bell = None
        return connection

    def _putBack(self, connection: Connection) -> None:
        try:
            self._ring(connection)
        except OSError:
            self._drop(connection)

    def _give(
        self,
        call: Notification,
        connection: Connection,
        listener: socket.socket | None,
        again: bool = False,
        isNew: bool = False,
    ) -> bool:
        """
        End an accept(2) with a connection.

        @param listener: the socket that the caller accepts from.
        @param again: put the connection back where the caller has no number left; else the caller of this keeps it.
        @param isNew: whether the daemon has yet to learn the connection's id.
        @return: whether the connection was given, or is lost as it would be with TCP.
        @raise Gone: nobody waits.
        """
        core = self._core
        flags = call.integer(3) if call.number == linux.architecture().numbers["accept4"] else 0
        endpoint, sock = connection.endpoint, connection.sock
        core.listener.check(call)
        try:
            caller = Caller.of(call.pid)
        except OSError as error:
            core.listener.check(call)  # it has ended: the connection is the next one's
            core.fail(call, error.errno or EIO)
            if again:
                self._putBack(connection)
            return again
        try:
            if call.arguments[1]:
                assert endpoint.remote is not None
                core.writeLimited(call, call.arguments[1], call.arguments[2], encodeAddress(endpoint.remote))
        except OSError as error:
            # as in the kernel, a bad address costs the connection
            core.fail(call, error.errno or EFAULT)
            self._drop(connection, isNew)
            return True
        if listener is not None:
            inherit(endpoint.home.defaults, listener, sock)
        sock.setblocking(not flags & socket.SOCK_NONBLOCK)
        try:
            fd = core.listener.giveDescriptor(call, sock.fileno(), bool(flags & socket.SOCK_CLOEXEC))
        except OSError as error:
            core.fail(call, error.errno or EMFILE)
            if again:
                self._putBack(connection)
            return again
        sock.close()
        endpoint.pid, endpoint.fd = call.pid, fd

        def accepted(number: int) -> Event | None:
            if core.table.byID(endpoint.id) is not endpoint:
                return None  # it is closed already
            return AcceptNotify(
                number,
                endpoint.id,
                caller.pid,
                caller.uid,
                caller.comm,
                caller.executable,
                caller.executableDevice,
                caller.executableInode,
                caller.mountNamespace,
                caller.networkNamespace,
            )

        self._tell(endpoint, accepted, isNew)
        return True

    def _tell(self, endpoint: Endpoint, make: Callable[[int], Event | None], isNew: bool) -> None:
        """
        Tell the daemon something of a connection.

        @param make: makes the event, of a number; L{None}: there is nothing to tell any more.
        @param isNew: whether the daemon learns the connection's id only by the answer that follows what is done now.
        """
        core = self._core

        def tell() -> None:
            if core.daemon is not None and core.isServed(endpoint):
                event = make(core.daemon.nextEvent())
                if event is not None:
                    core.daemon.tell(event)

        if isNew:
            core.reactor.callLater(0, tell)
        else:
            tell()

    def _refill(self, listener: Endpoint) -> None:
        """There is room in the backlog again."""
        while listener.overflow and len(listener.ready) <= listener.backlog:
            waiting = listener.overflow.pop(0)
            try:
                result = self._take(listener, waiting.external, waiting.remote)
            except SSAError:
                waiting.done.errback()
            else:
                waiting.done.callback(result)

    def _wait(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        """
        Keep a caller blocked in accept(2).

        The kernel would hold the open file for him, so we do, and let go when his thread ends, a signal interrupts him, or
        the listener is shut down by another thread.
        """
        core = self._core
        copy = linux.copyOf(sock)
        try:
            watched = os.dup(copy.fileno())
        except OSError:
            copy.close()
            raise
        waiter = core.wait(endpoint, call, call.integer(0), sock, socket.SO_RCVTIMEO, EAGAIN)
        timeout = waiter.cancel
        waiter.listener = copy

        def listenerChanged() -> None:
            if tcpState(copy) != TCP_LISTEN:
                self._end(endpoint, waiter, EINVAL)
                return
            connection = self._next(endpoint, copy)
            if connection is not None:
                if not self._giveToWaiter(endpoint, connection):
                    self._putBack(connection)
                self._refill(connection.listener)

        watches = [_Watch(core.reactor, watched, listenerChanged)]

        def stop() -> None:
            timeout()
            for watch in watches:
                watch.stop()
            copy.close()

        waiter.cancel = stop
        try:
            thread = linux.openThread(call.pid)
        except OSError:
            self._end(endpoint, waiter, EINVAL)  # it has ended
            return
        watches.append(_Watch(core.reactor, thread, lambda: self._end(endpoint, waiter, EINVAL)))
        if self._stale is None:
            self._stale = core.reactor.callLater(_STALE_CHECK, self._dropStale)

    def _end(self, endpoint: Endpoint, waiter: Waiter, error: int) -> None:
        waiter.cancel()
        if waiter in endpoint.waiters:
            endpoint.waiters.remove(waiter)
            self._core.fail(waiter.call, error)

    def _dropStale(self) -> None:
        self._stale = None
        left = False
        for endpoint in self._core.table:
            if endpoint.state is State.LISTENING:
                for waiter in list(endpoint.waiters):
                    if self._core.listener.isAlive(waiter.call):
                        left = True
                    else:
                        self._end(endpoint, waiter, EINVAL)
        if left:
            self._stale = self._core.reactor.callLater(_STALE_CHECK, self._dropStale)

    # Ends.

    def _drop(self, connection: Connection, isNew: bool = False) -> None:
        """
        Reset a connection that no program will get.

        @param isNew: whether the daemon has yet to learn its id.
        """
        core = self._core
        if connection.bell is not None:
            connection.bell.close()
        core.table.remove(connection.endpoint)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        connection.sock.close()
        self._tell(connection.endpoint, lambda number: CloseNotify(number, connection.endpoint.id), isNew)

    def closed(self, endpoint: Endpoint, error: int = EINVAL) -> None:
        """A listener is gone, with all that waits at it."""
        endpoint.closeReal()
        ready, endpoint.ready = endpoint.ready, {}
        for connection in ready.values():
            self._drop(connection)
        overflow, endpoint.overflow = endpoint.overflow, []
        for waiting in overflow:
            waiting.done.errback(SSAError(ECONNABORTED, "the program has closed the listener"))
        for waiter in self._core.takeWaiters(endpoint):
            self._core.fail(waiter.call, error)
        for sharer in self._core.table.listenersAt(endpoint.home, endpoint.name):
            self._ringAgain(sharer)

    def _ringAgain(self, listener: Endpoint) -> None:
        """A listener of the same address (SO_REUSEPORT) is gone, and with it the bells of others that were in its queue."""
        for port, connection in list(listener.ready.items()):
            if connection.bell is not None and tcpState(connection.bell) == TCP_CLOSE:
                self._withoutBell(listener, port)
                self._putBack(connection)

    def linkLost(self, endpoint: Endpoint) -> None:
        """The daemon is gone: nobody accepts any more, and pollers must see it."""
        if endpoint.state is not State.LISTENING:
            return
        endpoint.state = State.DEAD
        self.closed(endpoint, ENETDOWN)
        try:
            endpoint.home.network.silence(endpoint.cookie, endpoint.name, lambda: self._core.findAgain(endpoint))
        except OSError as error:
            self._core.log.warn("listener {id} could not be ended: {error}", id=endpoint.id, error=error)


def _somaxconn() -> int:
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 4096


__all__ = ["EOPNOTSUPP", "Listening"]
