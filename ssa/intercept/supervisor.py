# SPDX-License-Identifier: MIT
"""
The supervisor: takes each stopped system call to the method for it, and each request of the daemon to the socket it names.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from errno import ECONNABORTED, EINVAL, EIO, ENETDOWN, EOPNOTSUPP, EPERM
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ssa.api import InternetAddress, encodeAddress
from ssa.errors import SSAError
from ssa.intercept import linux
from ssa.intercept.caller import Caller
from ssa.intercept.connecting import Connecting
from ssa.intercept.core import Core
from ssa.intercept.endpoint import Endpoint, State
from ssa.intercept.listening import Listening
from ssa.intercept.namespace import UNBOUND
from ssa.intercept.network import IPrivateNetwork
from ssa.intercept.notify import Gone, Notification
from ssa.intercept.optioncalls import OptionCalls
from ssa.interfaces import Fetched, IRequests
from ssa.protocol.interceptor import InterceptorEnd
from ssa.protocol.messages import SocketNotify

_AT_ONCE = 64
"""How many calls are served before the reactor looks at something else."""

_SECOND_LOOK = 2.0
"""Seconds after which a socket that was nowhere to be found is given up."""

_COOKIE = struct.Struct("=II")
_COOKIE_AT = 16 + 4 + 40  # nlmsghdr, family…, the cookie in struct inet_diag_sockid


@implementer(IReadDescriptor)
class Watch:
    """Calls a function when a descriptor is readable, and another one when it hangs up."""

    def __init__(self, fd: int, readable: Callable[[], None], lost: Callable[[], None] | None = None) -> None:
        self._fd = fd
        self._readable = readable
        self._lost = lost

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        self._readable()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw a hang-up."""
        if self._lost is not None:
            self._lost()

    def logPrefix(self) -> str:
        return "supervisor"


_Served = Callable[[Notification, Endpoint, socket.socket], None]


@implementer(IRequests)
class Supervisor:
    """
    Serves the programs under one filter.

    @ivar ended: fires when no process is left under the filter.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        core.networkAdded = self._watchNetwork
        self._connecting = Connecting(core)
        self._listening = Listening(core)
        self._options = OptionCalls(core, self._connecting)
        self._starting: list[Notification] | None = []
        self.ended: Deferred[None] = Deferred()
        self._calls = self._dispatchTable()
        self._watches: list[Watch] = []
        self._rescan: Any = None
        self._missed: set[int] = set()

    def _dispatchTable(self) -> dict[int, _Served]:
        numbers = linux.architecture().numbers
        table: dict[str, _Served] = {
            "bind": self._connecting.bind,
            "connect": self._connecting.connect,
            "listen": self._listening.listen,
            "accept": lambda call, endpoint, sock: self._listening.accept(call, endpoint, sock, 0),
            "accept4": lambda call, endpoint, sock: self._listening.accept(call, endpoint, sock, call.integer(3)),
            "setsockopt": self._options.set,
            "getsockopt": self._options.get,
            "getsockname": self._getsockname,
            "getpeername": self._getpeername,
        }
        for name in ("sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg"):
            table[name] = self._unsupported
        return {numbers[name]: method for name, method in table.items()}

    def start(self) -> None:
        """Begin to serve."""
        watch = Watch(self._core.listener.fd, self.notificationsReady, self._filterEnded)
        self._watches.append(watch)
        self._core.reactor.addReader(watch)

    # Calls.

    def notificationsReady(self) -> None:
        """Serve the calls that wait."""
        for _ in range(_AT_ONCE):
            try:
                call = self._core.listener.receive()
            except EOFError:
                self._filterEnded()
                return
            if call is None:
                return
            self.serve(call)

    def _filterEnded(self) -> None:
        watches, self._watches = self._watches, []
        for watch in watches:
            self._core.reactor.removeReader(watch)
        if not self.ended.called:
            self.ended.callback(None)

    def serve(self, call: Notification) -> None:
        """Serve one call.  Whatever goes wrong, the caller gets an errno and does not hang."""
        try:
            self._serve(call)
        except Gone:
            return
        except SSAError as error:
            self._core.fail(call, error.errno)
        except OSError as error:
            self._core.fail(call, error.errno or EIO)
        except Exception:
            self._core.log.failure("a call could not be served: {call}", call=call)
            try:
                self._core.fail(call, EIO)
            except OSError as error:  # the answer had been given, or the call has a descriptor already
                self._core.log.error("a call could not be ended: {error}", error=error)

    def _serve(self, call: Notification) -> None:
        core = self._core
        if call.number == linux.architecture().numbers["socket"]:
            self._socket(call)
            return
        try:
            found = core.find(call, call.integer(0))
        except PermissionError as error:
            # A TLS socket in a process that we may not look into (setuid): refuse rather than guess.
            core.log.warn("no right to look at the sockets of process {pid}: {error}", pid=call.pid, error=error)
            raise OSError(EPERM, os.strerror(EPERM)) from error
        if found is None:
            core.proceed(call)
            return
        endpoint, sock = found
        with core.serving(call, sock):
            self._calls[call.number](call, endpoint, sock)

    def _socket(self, call: Notification) -> None:
        core = self._core
        family, kind = call.integer(0), call.integer(1)
        flags = kind & (socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if family not in (socket.AF_INET, socket.AF_INET6) or kind & ~flags != socket.SOCK_STREAM:
            core.proceed(call)  # the kernel knows which of its errors this is
            return
        if self._starting is not None:
            self._starting.append(call)
            return
        if core.daemon is None:
            core.fail(call, ENETDOWN)
            return
        caller = Caller.of(call.pid)
        core.listener.check(call)
        home = core.home(caller)
        home.defaults.carried(family)  # read now, with our own rights; they are used with the caller's
        with home.network.program(family) as sock:
            sock.setblocking(not flags & socket.SOCK_NONBLOCK)
            endpoint = Endpoint.of(core.nextID(), sock, home, core.session)
            core.table.add(endpoint)
            try:
                core.listener.giveDescriptor(call, sock.fileno(), bool(flags & socket.SOCK_CLOEXEC))
            except BaseException:
                core.table.remove(endpoint)
                raise
        event = SocketNotify(
            core.nextEvent(),
            endpoint.id,
            family,
            caller.pid,
            caller.uid,
            caller.comm,
            caller.executable,
            caller.executableDevice,
            caller.executableInode,
            caller.mountNamespace,
            caller.networkNamespace,
        )

        def answered(error: int, _: bytes) -> None:
            endpoint.refused = error

        core.ask(event, answered)

    def _unsupported(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        self._core.refuse(
            call, endpoint, EOPNOTSUPP, "MSG_OOB, MSG_ZEROCOPY and MSG_FASTOPEN are not available for TLS sockets"
        )

    def _getsockname(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        address = endpoint.external if endpoint.state in (State.CONNECTING, State.CONNECTED) else endpoint.bound
        if address is None:
            address = InternetAddress(endpoint.family, *UNBOUND[socket.AddressFamily(endpoint.family)])
        self._core.writeLimited(call, call.arguments[1], call.arguments[2], encodeAddress(address))
        self._core.succeed(call)

    def _getpeername(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        if endpoint.state is State.CONNECTED and endpoint.remote is not None:
            sock.getpeername()  # the kernel's errno where the connection has ended
            self._core.writeLimited(call, call.arguments[1], call.arguments[2], encodeAddress(endpoint.remote))
            self._core.succeed(call)
        else:
            sock.getpeername()
            self._core.fail(call, EINVAL)

    # The last close of a socket.

    def _watchNetwork(self, network: IPrivateNetwork) -> None:
        for sock in network.destroyed:
            sock.setblocking(False)
            watch = Watch(sock.fileno(), lambda sock=sock: self.socketsDestroyed(sock))  # type: ignore[misc]
            self._watches.append(watch)
            self._core.reactor.addReader(watch)

    def socketsDestroyed(self, notices: socket.socket) -> None:
        """Read notices of destroyed sockets."""
        for _ in range(_AT_ONCE):
            try:
                data = notices.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: notices were lost
                self._rescanIn(0)
                return
            while len(data) >= _COOKIE_AT + _COOKIE.size:
                (size,) = struct.unpack_from("=I", data)
                low, high = _COOKIE.unpack_from(data, _COOKIE_AT)
                endpoint = self._core.table.byCookie(low | high << 32)
                if endpoint is not None:
                    self.closed(endpoint)
                data = data[max((size + 3) & ~3, 16) :]

    def _rescanIn(self, seconds: float) -> None:
        if self._rescan is None or not self._rescan.active():
            self._rescan = self._core.reactor.callLater(seconds, self._lookForClosed)

    def _lookForClosed(self) -> None:
        """
        Notices were lost: look which sockets are left.  The kernel lists those that are bound, connected or listening; others
        are looked for in the processes.  What is not there either may travel in a message (SCM_RIGHTS), so it is only
        forgotten if it is still not there some time later.
        """
        alive = self._core.livingCookies()
        candidates = [endpoint for endpoint in self._core.table if endpoint.cookie not in alive]
        held = self._core.held({endpoint.inode for endpoint in candidates}) if candidates else set()
        missed, self._missed = self._missed, set()
        for endpoint in candidates:
            if endpoint.inode in held:
                continue
            if endpoint.cookie in missed:
                self.closed(endpoint)
            else:
                self._missed.add(endpoint.cookie)
        if self._missed:
            self._rescanIn(_SECOND_LOOK)

    def closed(self, endpoint: Endpoint) -> None:
        """The last descriptor of a socket is gone."""
        self._core.table.remove(endpoint)
        if endpoint.state is State.LISTENING:
            self._listening.closed(endpoint)
        else:
            self._connecting.closed(endpoint)
        endpoint.state = State.DEAD
        self._core.tellClosed(endpoint)

    # The daemon.

    def linkUp(self, link: InterceptorEnd) -> None:
        """A daemon is registered: serve, first those who asked for a socket while it started."""
        self._core.daemon = link
        self._core.session += 1
        self._releaseStarting()

    def linkFailed(self) -> None:
        """The daemon did not come up."""
        self._releaseStarting()

    def _releaseStarting(self) -> None:
        starting, self._starting = self._starting, None
        for call in starting or ():
            self.serve(call)

    def linkLost(self) -> None:
        """The daemon is gone: nothing waits for it any more."""
        self._core.daemon = None
        for endpoint in self._core.table:
            self._connecting.linkLost(endpoint)
            self._listening.linkLost(endpoint)

    def fetch(self, id: int, remote: InternetAddress | None) -> Fetched:
        endpoint = self._endpoint(id)
        if endpoint.state is State.CONNECTING:
            return self._connecting.fetch(endpoint, remote)
        return self._listening.fetch(endpoint)

    def established(self, id: int, external: InternetAddress, remote: InternetAddress, dataPath: Any) -> int:
        return self._connecting.established(self._endpoint(id), external, remote, dataPath)

    def accepted(
        self, id: int, external: InternetAddress, remote: InternetAddress
    ) -> tuple[int, int] | Deferred[tuple[int, int]]:
        return self._listening.accepted(self._endpoint(id), external, remote)

    def _endpoint(self, id: int) -> Endpoint:
        endpoint = self._core.table.byID(id)
        if endpoint is None:
            raise SSAError(ECONNABORTED, "the program has closed the socket")
        return endpoint
