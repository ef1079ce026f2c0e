# SPDX-License-Identifier: MIT
"""getsockopt(2) and setsockopt(2) on TLS sockets."""

from __future__ import annotations

import os
import socket
import struct
from errno import EINVAL, EIO, EMSGSIZE, ENETDOWN, ENOPROTOOPT, EOPNOTSUPP, ERANGE

from ssa.api import IPPROTO_TLS, MAXIMUM_OPTION_SIZE, Option
from ssa.intercept import linux
from ssa.intercept.bpf import BYPASS_TLS, SO_PROTOCOL, SOL_TLS, UNSUPPORTED
from ssa.intercept.caller import readNamedFile
from ssa.intercept.connecting import Connecting
from ssa.intercept.core import Core
from ssa.intercept.endpoint import Endpoint, State
from ssa.intercept.notify import Gone, Notification
from ssa.protocol.messages import GetsockoptNotify, SetsockoptNotify

_NAMES_FILES = {
    Option.TLS_TRUSTED_PEER_CERTIFICATES: True,
    Option.TLS_CERTIFICATE_CHAIN: False,
    Option.TLS_PRIVATE_KEY: False,
}
"""The options whose value may be a path, and whether it may be a directory's."""

_PEM = b"-----BEGIN"
_LONGEST_SOCKET_OPTION = 256


class OptionCalls:
    """Options: those of TLS go to the daemon, the others to the program's end and the real socket."""

    def __init__(self, core: Core, connecting: Connecting) -> None:
        self._core = core
        self._connecting = connecting

    # setsockopt(2)

    def set(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        """Set an option of any level."""
        core = self._core
        level, name, size = call.integer(1), call.integer(2), call.integer(4)
        if size < 0:
            core.fail(call, EINVAL)
        elif level == SOL_TLS or name in BYPASS_TLS.get(level, ()):
            core.refuse(call, endpoint, ENOPROTOOPT, "an option that could bypass TLS is not available")
        elif name in UNSUPPORTED.get(level, ()):
            core.refuse(call, endpoint, EOPNOTSUPP, "TCP fast open and zero-copy sends are not available for TLS")
        elif level != IPPROTO_TLS:
            self._setOther(call, endpoint, sock, level, name, size)
        elif size > MAXIMUM_OPTION_SIZE:
            core.refuse(call, endpoint, EMSGSIZE, f"an option's value has at most {MAXIMUM_OPTION_SIZE} bytes, not {size}")
        else:
            value = core.listener.read(call, call.arguments[3], size)
            if name == Option.TLS_UPGRADE:
                self._connecting.upgrade(call, endpoint, sock, value)
            else:
                self._setTLS(call, endpoint, name, value)

    def _setTLS(self, call: Notification, endpoint: Endpoint, name: int, value: bytes) -> None:
        core = self._core
        if endpoint.refused or not core.isServed(endpoint):
            core.refuse(call, endpoint, endpoint.refused or ENETDOWN, "the daemon does not serve this socket")
            return
        path = ""
        if name in _NAMES_FILES and endpoint.state is State.NEW and _PEM not in value:
            named = value[:-1] if value.endswith(b"\0") else value
            try:
                caller = core.rights.whose(call.pid)
                core.listener.check(call)
                value = readNamedFile(core.rights, caller, named, _NAMES_FILES[Option(name)])
                core.listener.check(call)  # it was that process's root or directory that we have looked at
            except OSError as error:
                shown = os.fsdecode(named)[:256]
                core.refuse(call, endpoint, error.errno or EIO, f"{Option(name).name}: {shown!r}: {error.strerror or error}")
                return
            path = named.decode("utf-8", "backslashreplace")
        endpoint.reason = ""
        event = SetsockoptNotify(core.nextEvent(), endpoint.id, IPPROTO_TLS, name, value, path)

        def answered(error: int, _: bytes) -> None:
            if error:
                core.fail(call, error)
            else:
                core.succeed(call)

        core.ask(event, answered, call=call)

    def _setOther(self, call: Notification, endpoint: Endpoint, sock: socket.socket, level: int, name: int, size: int) -> None:
        """
        An option of the connection.  Before connect and listen it waits on the program's end; on a listener it goes to the
        real one at once, and on a connection to the daemon.
        """
        core = self._core
        value = core.listener.read(call, call.arguments[3], min(size, _LONGEST_SOCKET_OPTION))
        if (level, name) == (socket.SOL_SOCKET, socket.SO_BINDTODEVICE):
            self._bindToDevice(call, endpoint, value)
            return
        if endpoint.state is State.LISTENING and endpoint.real is not None:
            self._setHere(call, endpoint, [endpoint.real, sock], level, name, value)
        elif endpoint.state in (State.CONNECTING, State.CONNECTED) and core.isServed(endpoint):
            copy = linux.copyOf(sock)
            event = SetsockoptNotify(core.nextEvent(), endpoint.id, level, name, value)

            def answered(error: int, _: bytes) -> None:
                if error:
                    copy.close()
                    core.fail(call, error)
                else:
                    with core.serving(call, copy):
                        self._setHere(call, endpoint, [copy], level, name, value)

            core.ask(event, answered, call=call)
        else:
            self._setHere(call, endpoint, [sock], level, name, value)

    def _bindToDevice(self, call: Notification, endpoint: Endpoint, value: bytes) -> None:
        """The interface is one of the program's network namespace: only the real socket knows it."""
        core = self._core
        caller = core.rights.whose(call.pid)
        core.listener.check(call)
        with core.rights.of(caller, endpoint.home.fd), socket.socket(endpoint.family, socket.SOCK_STREAM) as probe:
            (endpoint.real or probe).setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, value)
        endpoint.device = value.split(b"\0")[0][:15] + b"\0" if value.strip(b"\0") else b""
        core.succeed(call)

    def _setHere(
        self, call: Notification, endpoint: Endpoint, socks: list[socket.socket], level: int, name: int, value: bytes
    ) -> None:
        core = self._core
        try:
            caller = core.rights.whose(call.pid)
            core.listener.check(call)
            with core.rights.of(caller):
                for sock in socks:
                    if (level, name) == (socket.IPPROTO_TCP, socket.TCP_NODELAY) and sock is endpoint.real:
                        continue
                    sock.setsockopt(level, name, value)
        except Gone:
            return
        except OSError as error:
            core.fail(call, error.errno or EIO)
            return
        core.succeed(call)

    # getsockopt(2)

    def get(self, call: Notification, endpoint: Endpoint, sock: socket.socket) -> None:
        """Get an option that is not the kernel's to tell."""
        core = self._core
        level, name = call.integer(1), call.integer(2)
        if level == IPPROTO_TLS:
            self._getTLS(call, endpoint, name)
        elif level == socket.SOL_SOCKET and name == SO_PROTOCOL:
            self._writeInteger(call, IPPROTO_TLS)
        elif level == socket.SOL_SOCKET and name == socket.SO_ERROR:
            self._writeInteger(call, self._takeError(endpoint, sock))
        elif level == socket.SOL_SOCKET and name == socket.SO_BINDTODEVICE:
            self._writeValue(call, endpoint, core.readInteger(call, call.arguments[4]), endpoint.device)
        else:
            core.refuse(call, endpoint, ENOPROTOOPT, "an option that could bypass TLS is not available")

    def _takeError(self, endpoint: Endpoint, sock: socket.socket) -> int:
        kernel = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if endpoint.state is State.CONNECTED:
            return kernel
        if endpoint.state is State.DEAD:
            return ENETDOWN
        error, endpoint.error = endpoint.error, 0
        return error

    def _writeInteger(self, call: Notification, value: int) -> None:
        """As the kernel writes a C{int}: no more than there is room for."""
        room = self._core.readInteger(call, call.arguments[4])
        if room < 0:
            self._core.fail(call, EINVAL)
            return
        data = struct.pack("=i", value)[:room]
        self._core.listener.write(call, call.arguments[3], data)
        self._core.listener.write(call, call.arguments[4], struct.pack("=i", len(data)))
        self._core.succeed(call)

    def _getTLS(self, call: Notification, endpoint: Endpoint, name: int) -> None:
        core = self._core
        room = core.readInteger(call, call.arguments[4])
        if room < 0:
            core.fail(call, EINVAL)
        elif name == Option.TLS_ERROR and not core.isServed(endpoint):
            self._writeReason(call, endpoint, room, endpoint.reason or "the daemon that served this socket is gone")
        elif name == Option.TLS_ERROR and endpoint.reason and endpoint.state is not State.CONNECTED:
            self._writeReason(call, endpoint, room, endpoint.reason)
        elif endpoint.refused or not core.isServed(endpoint):
            core.refuse(call, endpoint, endpoint.refused or ENETDOWN, "the daemon does not serve this socket")
        else:
            event = GetsockoptNotify(core.nextEvent(), endpoint.id, IPPROTO_TLS, name)
            instead = endpoint.reason if name == Option.TLS_ERROR else ""
            core.ask(event, lambda error, value: self._got(call, endpoint, room, error, value, instead), call=call)

    def _got(self, call: Notification, endpoint: Endpoint, room: int, error: int, value: bytes, instead: str) -> None:
        """
        Give the daemon's answer.

        @param instead: of an empty TLS_ERROR.  Of a connection the daemon's word comes first: it may tell how that ended.
        """
        if error:
            self._core.fail(call, error)
            return
        try:
            if instead and len(value) <= 1:
                self._writeReason(call, endpoint, room, instead)
            else:
                self._writeValue(call, endpoint, room, value)
        except Gone:
            return
        except OSError as problem:
            self._core.fail(call, problem.errno or EIO)

    def _writeReason(self, call: Notification, endpoint: Endpoint, room: int, reason: str) -> None:
        self._writeValue(call, endpoint, room, reason.encode("utf-8", "replace") + b"\0")

    def _writeValue(self, call: Notification, endpoint: Endpoint, room: int, value: bytes) -> None:
        """Write the whole value, or say how long it is."""
        core = self._core
        if room >= len(value):
            core.listener.write(call, call.arguments[3], value)
        core.listener.write(call, call.arguments[4], struct.pack("=i", len(value)))
        if room < len(value):
            core.fail(call, ERANGE)
        else:
            core.succeed(call)
