# SPDX-License-Identifier: MIT
"""bind(2), connect(2), TLS_UPGRADE, and the daemon's word on how a handshake ended."""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import struct
from errno import (
    EADDRNOTAVAIL,
    EAFNOSUPPORT,
    EALREADY,
    EBADF,
    ECONNABORTED,
    EINPROGRESS,
    EINVAL,
    EIO,
    EISCONN,
    ENETDOWN,
    ENOTCONN,
    ENOTSOCK,
    EOPNOTSUPP,
)

from ssa.api import UPGRADE_FORMAT, Address, DataPath, HostnameAddress, InternetAddress, Role, decodeAddress, encodeAddress
from ssa.errors import SSAError
from ssa.intercept.caller import Credentials
from ssa.intercept.carried import carry, inherit
from ssa.intercept.core import TCP_CLOSE, TCP_CLOSE_WAIT, TCP_ESTABLISHED, Core, tcpState
from ssa.intercept.endpoint import Endpoint, State
from ssa.intercept.namespace import WILDCARDS, socketCookie
from ssa.intercept.notify import Notification
from ssa.interfaces import Fetched
from ssa.protocol.messages import BindNotify, ConnectNotify, UpgradeNotify

_libc = ctypes.CDLL(None, use_errno=True)
_PLACEHOLDER = {
    socket.AF_INET: ("127.0.0.1", "192.0.2.1"),  # RFC 5737: documentation, never a peer
    socket.AF_INET6: ("::1", "2001:db8::1"),  # RFC 3849
}


def _rawBind(sock: socket.socket, address: bytes) -> None:
    """bind(2) with the program's own bytes, so that every error is the kernel's."""
    if _libc.bind(sock.fileno(), address, len(address)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _rawConnect(sock: socket.socket, address: bytes) -> int:
    """connect(2) with the program's own bytes; returns 0 or the errno."""
    return 0 if _libc.connect(sock.fileno(), address, len(address)) == 0 else ctypes.get_errno()


def nameOf(sock: socket.socket) -> InternetAddress:
    """getsockname(2)."""
    return InternetAddress.fromSocket(sock.family, sock.getsockname())


def isUnspecified(raw: bytes) -> bool:
    """Whether a socket address has the family AF_UNSPEC."""
    return len(raw) >= 2 and struct.unpack_from("=H", raw)[0] == socket.AF_UNSPEC


class Connecting:
    """The client's side, and TLS_UPGRADE."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._placeholders = itertools.cycle(range(1024, 65536))

    # bind(2)

    def bind(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        """Bind the real socket first, in the program's own namespace with its own rights, then the program's end."""
        core = self._core
        raw = core.readAddress(call, call.arguments[1], call.integer(2))
        if endpoint.state is not State.NEW or endpoint.bound is not None:
            core.refuse(call, endpoint, EINVAL, "bind: the socket is already bound, connected or listening")
            return
        caller = self._callerOf(call)
        try:
            real = self._newReal(endpoint, caller, sock, raw)
        except OSError as error:
            core.refuse(call, endpoint, error.errno or EIO, f"bind: {error.strerror}")
            return
        address = nameOf(real)
        try:
            if address.port:
                endpoint.home.network.bind(sock, address)
        except OSError as error:
            real.close()
            core.refuse(call, endpoint, error.errno or EIO, f"bind: {error.strerror}")
            return
        endpoint.real = real
        endpoint.bound = address
        if core.isServed(endpoint):
            core.ask(BindNotify(core.nextEvent(), endpoint.id, address), lambda error, value: None)
        core.succeed(call)

    def _callerOf(self, call: Notification) -> Credentials:
        caller = self._core.rights.whose(call.pid)
        self._core.listener.check(call)
        return caller

    def _newReal(self, endpoint: Endpoint, caller: Credentials, sock: socket.socket, bind: bytes | None) -> socket.socket:
        """
        Make the real socket as the caller would.

        @raise OSError: as the kernel told it to the caller's rights.
        """
        with self._core.rights.of(caller, endpoint.home.fd):
            real = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                carry(endpoint.home.defaults, sock, real)
                if endpoint.device:
                    real.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, endpoint.device)
                real.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if bind is not None:
                    _rawBind(real, bind)
                elif endpoint.bound is not None:
                    real.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    real.bind(endpoint.bound.forSocket())
            except BaseException:
                real.close()
                raise
        return real

    # connect(2)

    def connect(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        """Start a connection, or say how the one that there is stands."""
        core = self._core
        raw = core.readAddress(call, call.arguments[1], call.integer(2))
        if len(raw) < 2:
            core.fail(call, EINVAL)
        elif isUnspecified(raw):
            self._disconnect(call, endpoint, sock)
        elif endpoint.state is State.CONNECTED:
            number = _rawConnect(sock, raw)  # the kernel knows: EISCONN, or 0 once after a non-blocking attempt
            core.fail(call, number) if number else core.succeed(call)
        elif endpoint.state is State.DEAD:
            core.fail(call, ENETDOWN)
        elif endpoint.state is State.LISTENING:
            core.fail(call, EISCONN)
        elif endpoint.state is State.CONNECTING:
            if os.get_blocking(sock.fileno()):  # waits for the attempt that there is, as in the kernel
                core.wait(endpoint, call, call.integer(0), sock, socket.SO_SNDTIMEO, EALREADY)
            else:
                core.fail(call, EALREADY)
        elif endpoint.error:
            error, endpoint.error = endpoint.error, 0
            core.reset(sock)
            core.fail(call, error)
        elif endpoint.refused or not core.isServed(endpoint):
            core.refuse(call, endpoint, endpoint.refused or ENETDOWN, "the daemon does not serve this socket")
        else:
            self._start(call, endpoint, sock, raw)

    def _disconnect(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        """connect(2) to AF_UNSPEC gives up an attempt; an established connection cannot become another one's."""
        core = self._core
        if endpoint.state is State.CONNECTING:
            core.refuse(call, endpoint, EOPNOTSUPP, "an attempt to connect ends with close, not with AF_UNSPEC")
        elif endpoint.state is State.NEW:
            core.reset(sock)
            endpoint.error = 0
            core.succeed(call)
        else:
            core.refuse(call, endpoint, EOPNOTSUPP, "a TLS connection or listener cannot be dissolved with AF_UNSPEC")

    def _start(self, call: Notification, endpoint: Endpoint, sock: socket.socket, raw: bytes) -> None:
        core = self._core
        caller = self._callerOf(call)
        if endpoint.tried or tcpState(sock) != TCP_CLOSE:
            core.reset(sock)
        try:
            target = decodeAddress(raw)
        except SSAError as error:
            core.refuse(call, endpoint, error.errno, f"connect: {error.reason}")
            return
        try:
            if isinstance(target, HostnameAddress):
                local, remote = self._placeholder(endpoint)
                endpoint.closeReal()
            else:
                local, remote = self._startReal(endpoint, caller, sock, raw, target)
        except OSError as error:
            core.refuse(call, endpoint, error.errno or EIO, f"connect: {error.strerror}")
            return
        self._begin(call, endpoint, sock, caller, target, local, remote)
        if endpoint.state is State.CONNECTING:
            blocking = os.get_blocking(sock.fileno())
            external = None if isinstance(target, HostnameAddress) else local
            event = ConnectNotify(core.nextEvent(), endpoint.id, blocking, target, external)
            core.ask(event, lambda error, value: self._finished(endpoint, error), timeout=None)
            self._waitOrGo(call, endpoint, sock, blocking)

    def _begin(
        self,
        call: Notification,
        endpoint: Endpoint,
        sock: socket.socket,
        caller: Credentials,
        target: Address | None,
        local: InternetAddress,
        remote: InternetAddress,
    ) -> None:
        """Hold the program's socket in SYN_SENT; or end the call with why it can't be."""
        try:
            bound = endpoint.bound is not None and endpoint.bound.port != 0
            attempt = endpoint.home.network.hold(sock, bound, local, remote, endpoint.back)
        except OSError as error:
            endpoint.closeReal()
            self._core.refuse(call, endpoint, error.errno or EADDRNOTAVAIL, f"connect: {error.strerror}")
            return
        endpoint.state = State.CONNECTING
        endpoint.tried = True
        endpoint.attempt = attempt
        endpoint.caller = caller
        endpoint.target = target
        endpoint.external, endpoint.remote = local, remote
        endpoint.pid, endpoint.fd = call.pid, call.integer(0)
        endpoint.error = 0
        endpoint.reason = ""

    def _waitOrGo(self, call: Notification, endpoint: Endpoint, sock: socket.socket, blocking: bool) -> None:
        if blocking and endpoint.state is State.CONNECTING:
            self._core.wait(endpoint, call, call.integer(0), sock, socket.SO_SNDTIMEO, EINPROGRESS)
        elif blocking:
            error, endpoint.error = endpoint.error, 0
            self._core.fail(call, error)
        else:
            self._core.fail(call, EINPROGRESS)

    def _startReal(
        self, endpoint: Endpoint, caller: Credentials, sock: socket.socket, raw: bytes, target: InternetAddress
    ) -> tuple[InternetAddress, InternetAddress]:
        """Start the TCP connection; returns its two addresses."""
        real = endpoint.real
        if real is None:
            real = self._newReal(endpoint, caller, sock, None)
        try:
            with self._core.rights.of(caller, endpoint.home.fd):
                if endpoint.real is not None:
                    carry(endpoint.home.defaults, sock, real)
                number = _rawConnect(real, raw)
            if number not in (0, EINPROGRESS):
                raise OSError(number, os.strerror(number))
            remote = target
            if target.host in WILDCARDS:
                remote = InternetAddress(target.family, WILDCARDS[target.host], target.port)
            local = nameOf(real)
        except BaseException:
            if endpoint.real is None:
                real.close()
            raise
        endpoint.real = real
        return local, remote

    def _placeholder(self, endpoint: Endpoint) -> tuple[InternetAddress, InternetAddress]:
        """Addresses to wait under while a name is resolved and its addresses are tried."""
        ours, theirs = _PLACEHOLDER[socket.AddressFamily(endpoint.family)]
        port = next(self._placeholders)
        if endpoint.bound is not None and endpoint.bound.port:
            return endpoint.bound, InternetAddress(endpoint.family, theirs, port)
        return InternetAddress(endpoint.family, ours, port), InternetAddress(endpoint.family, theirs, port)

    # TLS_UPGRADE

    def upgrade(self, call: Notification, endpoint: Endpoint, sock: socket.socket, value: bytes) -> None:
        """Take over a connected TCP socket of the caller (STARTTLS)."""
        core = self._core
        if len(value) != struct.calcsize(UPGRADE_FORMAT):
            core.refuse(call, endpoint, EINVAL, "TLS_UPGRADE takes a struct of a descriptor and a role")
            return
        fd, number = struct.unpack(UPGRADE_FORMAT, value)
        if number not in (Role.CLIENT, Role.SERVER):
            core.refuse(call, endpoint, EINVAL, f"TLS_UPGRADE: role {number} is neither 0 (client) nor 1 (server)")
            return
        if endpoint.state is State.CONNECTING:
            if os.get_blocking(sock.fileno()):  # the restart of a call that a signal interrupted
                core.wait(endpoint, call, call.integer(0), sock, socket.SO_SNDTIMEO, EINPROGRESS)
            else:
                core.refuse(call, endpoint, EALREADY, "TLS_UPGRADE: a handshake is in progress")
            return
        if endpoint.state is not State.NEW:
            core.refuse(call, endpoint, EISCONN, "TLS_UPGRADE: the socket is connected or listening")
            return
        if endpoint.refused or not core.isServed(endpoint):
            core.refuse(call, endpoint, endpoint.refused or ENETDOWN, "the daemon does not serve this socket")
            return
        if endpoint.bound is not None:
            core.refuse(call, endpoint, EINVAL, "TLS_UPGRADE: the socket is bound; the connection has its own address")
            return
        self._takeOver(call, endpoint, sock, fd, Role(number))

    def _takeOver(self, call: Notification, endpoint: Endpoint, sock: socket.socket, fd: int, role: Role) -> None:
        core = self._core
        if core.listener.socketInode(call, fd) is None:
            core.listener.check(call)
            exists = os.path.lexists(f"/proc/{call.pid}/fd/{fd}")
            core.refuse(call, endpoint, ENOTSOCK if exists else EBADF, f"TLS_UPGRADE: descriptor {fd} is no socket")
            return
        real = core.listener.socketOf(call, fd)
        if real is None:
            core.refuse(call, endpoint, EBADF, f"TLS_UPGRADE: descriptor {fd} is no socket")
            return
        problem = self._unfit(endpoint, real)
        if problem is not None:
            real.close()
            core.refuse(call, endpoint, problem[0], f"TLS_UPGRADE: {problem[1]}")
            return
        caller = self._callerOf(call)
        local, remote = nameOf(real), InternetAddress.fromSocket(real.family, real.getpeername())
        real.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if endpoint.tried or tcpState(sock) != TCP_CLOSE:
            core.reset(sock)
        endpoint.real = real
        if endpoint.home.network.hasBack and core.table.hasMirror(endpoint.home, local, remote):
            with self._moveToBack(call, endpoint, sock) as moved:
                self._beginUpgrade(call, endpoint, moved, caller, role, local, remote)
        else:
            self._beginUpgrade(call, endpoint, sock, caller, role, local, remote)

    def _beginUpgrade(
        self,
        call: Notification,
        endpoint: Endpoint,
        sock: socket.socket,
        caller: Credentials,
        role: Role,
        local: InternetAddress,
        remote: InternetAddress,
    ) -> None:
        core = self._core
        self._begin(call, endpoint, sock, caller, None, local, remote)
        if endpoint.state is State.CONNECTING:
            blocking = os.get_blocking(sock.fileno())
            event = UpgradeNotify(core.nextEvent(), endpoint.id, role, blocking, local, remote)
            core.ask(event, lambda error, value: self._finished(endpoint, error), timeout=None)
            self._waitOrGo(call, endpoint, sock, blocking)

    def _moveToBack(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> socket.socket:
        """
        Replace a socket by one in the back, since its mirrored addresses are in use in the front: by the other end of
        the very connection that is upgraded.

        Every number of the caller's process changes with it.  A copy in another process, or an epoll registration
        made before the upgrade, keeps the old socket, which is the price of this rare case.
        """
        core = self._core
        new = endpoint.home.network.program(endpoint.family, back=True)
        inherit(endpoint.home.defaults, sock, new)
        carry(endpoint.home.defaults, sock, new)
        new.setblocking(os.get_blocking(sock.fileno()))
        for name in os.listdir(f"/proc/{call.pid}/fd"):
            number = int(name)
            if core.listener.socketInode(call, number) == endpoint.inode:
                with open(f"/proc/{call.pid}/fdinfo/{number}", encoding="ascii") as info:
                    flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
                core.listener.replaceDescriptor(call, number, new.fileno(), bool(flags & os.O_CLOEXEC))
        core.table.remove(endpoint)
        endpoint.inode, endpoint.cookie = os.fstat(new.fileno()).st_ino, socketCookie(new)
        endpoint.back, endpoint.tried = True, False
        core.table.add(endpoint)
        return new

    def _unfit(self, endpoint: Endpoint, real: socket.socket) -> tuple[int, str] | None:
        """Why a descriptor can't be upgraded."""
        if self._core.table.byInode(os.fstat(real.fileno()).st_ino) is not None:
            return EINVAL, "the descriptor is a TLS socket already"
        if real.family not in (socket.AF_INET, socket.AF_INET6):
            return EAFNOSUPPORT, "the descriptor is no TCP socket"
        if real.type != socket.SOCK_STREAM or real.proto != socket.IPPROTO_TCP:
            return EINVAL, "the descriptor is no TCP socket"
        if tcpState(real) not in (TCP_ESTABLISHED, TCP_CLOSE_WAIT):
            return ENOTCONN, "the TCP socket is not connected"
        if real.family != endpoint.family:
            return EAFNOSUPPORT, "the TLS socket and the TCP socket are of different address families"
        return None

    # What the daemon asks for.

    def fetch(self, endpoint: Endpoint, remote: InternetAddress | None) -> Fetched:
        """
        Hand over the real socket of an attempt; with an address, make one that connects there.

        @raise SSAError: there is no attempt, or the address cannot be connected to.
        """
        if endpoint.state is not State.CONNECTING or endpoint.caller is None:
            raise SSAError(ECONNABORTED, "the program has given up")
        if remote is None:
            if endpoint.real is None:
                raise SSAError(EINVAL, "there is no real socket to fetch")
            sock, endpoint.real = endpoint.real, None
            return Fetched(sock.detach(), endpoint.external, endpoint.remote)
        if not isinstance(endpoint.target, HostnameAddress):
            raise SSAError(EINVAL, "only a connection to a name has a choice of addresses")
        return self._fetchFor(endpoint, endpoint.caller, remote)

    def _fetchFor(self, endpoint: Endpoint, caller: Credentials, remote: InternetAddress) -> Fetched:
        if endpoint.family == socket.AF_INET6 and remote.family == socket.AF_INET:
            remote = InternetAddress(socket.AF_INET6, f"::ffff:{remote.host}", remote.port)
        if remote.family != endpoint.family:
            raise SSAError(EAFNOSUPPORT, f"an IPv4 socket cannot connect to {remote}")
        program = self._core.findAgain(endpoint)
        if program is None:
            raise SSAError(ECONNABORTED, "the program has given up")
        try:
            with program:
                real = self._newReal(endpoint, caller, program, None)
            try:
                with self._core.rights.of(caller, endpoint.home.fd):
                    number = real.connect_ex(remote.forSocket())
                if number not in (0, EINPROGRESS):
                    raise OSError(number, os.strerror(number))
                return Fetched(os.dup(real.fileno()), nameOf(real), remote)
            finally:
                real.close()
        except OSError as error:
            raise SSAError(error.errno or EIO, str(error.strerror)) from error

    def established(self, endpoint: Endpoint, external: InternetAddress, remote: InternetAddress, dataPath: DataPath) -> int:
        """
        Complete the program's end.

        @return: the plaintext end.
        @raise SSAError: ECONNABORTED: the program has given up.
        """
        attempt = endpoint.attempt
        if endpoint.state is not State.CONNECTING or attempt is None:
            raise SSAError(ECONNABORTED, "the program has given up")
        if dataPath is not DataPath.RELAY:
            raise SSAError(EOPNOTSUPP, "this interceptor has no kTLS data path")
        network = endpoint.home.network
        endpoint.reason = ""  # of a call that was refused meanwhile: how the attempt ends is newer
        try:
            if isinstance(endpoint.target, HostnameAddress):
                program = self._core.findAgain(endpoint)
                if program is None:
                    raise SSAError(ECONNABORTED, "the program has given up")
                with program:
                    # From the placeholder to the real addresses.  A poller may wake for a moment; SO_ERROR waits for us.
                    self._core.reset(program)
                    bound = endpoint.bound is not None and endpoint.bound.port != 0
                    attempt = network.hold(program, bound, external, remote, endpoint.back)
            plain = network.release(attempt, lambda: self._core.findAgain(endpoint))
        except OSError as error:
            raise SSAError(ECONNABORTED, f"the program's end is gone: {error.strerror}") from error
        endpoint.state = State.CONNECTED
        endpoint.attempt = None
        endpoint.external, endpoint.remote = external, remote
        endpoint.closeReal()
        if any(self._core.listener.isAlive(waiter.call) for waiter in endpoint.waiters):
            self._settle(endpoint)
        return plain.detach()

    def _finished(self, endpoint: Endpoint, error: int) -> None:
        """The daemon's answer to a connect or an upgrade."""
        if endpoint.state is State.DEAD:
            return
        if not error and endpoint.state is not State.CONNECTED:
            error = EIO
            self._core.log.error("the daemon calls socket {id} connected, but has not fetched its end", id=endpoint.id)
        if error and endpoint.state is not State.CONNECTED:
            self._failed(endpoint, error)
            return
        # Connected.  If the link broke after that, the data tells.
        for waiter in self._core.takeWaiters(endpoint):
            self._core.succeed(waiter.call)

    def _settle(self, endpoint: Endpoint) -> None:
        """
        Tell the kernel that a blocking connect(2) has returned: the next one must be EISCONN.

        Before the daemon has the plaintext end: a reset that came through it would be this call's, and lost to the program.
        """
        program = self._core.findAgain(endpoint)
        if program is not None and endpoint.remote is not None:
            with program:
                _rawConnect(program, encodeAddress(endpoint.remote))

    def _failed(self, endpoint: Endpoint, error: int) -> None:
        """End an attempt: blocked callers get the errno, pollers an error that SO_ERROR tells."""
        core = self._core
        attempt, endpoint.attempt = endpoint.attempt, None
        endpoint.state = State.NEW
        endpoint.reason = ""  # as in established
        endpoint.external = endpoint.remote = None
        endpoint.closeReal()
        waiters = core.takeWaiters(endpoint)
        blocked = any(core.listener.isAlive(waiter.call) for waiter in waiters)
        if attempt is not None:
            try:
                endpoint.home.network.fail(attempt, lambda: core.findAgain(endpoint))
            except OSError as problem:
                core.log.warn("socket {id} could not be told its error: {problem}", id=endpoint.id, problem=problem)
        if blocked:
            program = core.findAgain(endpoint)
            if program is not None:
                with program:
                    self._forget(endpoint, program)
        else:
            endpoint.error = error
        for waiter in waiters:
            core.fail(waiter.call, error)

    def _forget(self, endpoint: Endpoint, program: socket.socket) -> None:
        try:
            self._core.reset(program)
        except OSError as problem:
            self._core.log.warn("socket {id} could not be made new: {problem}", id=endpoint.id, problem=problem)

    def linkLost(self, endpoint: Endpoint) -> None:
        """The daemon is gone; pending events are failed by the link itself, before this."""
        if endpoint.state is State.CONNECTING:
            self._failed(endpoint, ENETDOWN)

    def closed(self, endpoint: Endpoint) -> None:
        """The program has closed a socket that was connecting."""
        endpoint.attempt = None
        endpoint.closeReal()
        for waiter in self._core.takeWaiters(endpoint):
            self._core.fail(waiter.call, EBADF)
