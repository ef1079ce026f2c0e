# SPDX-License-Identifier: MIT
"""
An interceptor for tests of the daemon: ordinary loopback sockets instead of
intercepted calls, the real protocol over a real SEQPACKET link.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from ssa.api import IPPROTO_TLS, Address, DataPath, HostnameAddress, InternetAddress, Option, Role
from ssa.errors import SSAError
from ssa.interfaces import Fetched, IRequests
from ssa.protocol.messages import (
    Answer,
    CloseNotify,
    ConnectNotify,
    DataReturn,
    GetsockoptNotify,
    HandshakeReturn,
    ListenNotify,
    Return,
    SetsockoptNotify,
    SocketNotify,
    UpgradeNotify,
)
from ssa.protocol.supervised import InterceptorEnd


def startConnect(remote: InternetAddress) -> socket.socket:
    """A socket with a non-blocking connect in progress."""
    sock = socket.socket(remote.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.connect_ex(remote.forSocket())
    return sock


class Program:
    """
    What a program holds for one TLS socket.

    @ivar plain: its end of the plaintext connection, a blocking socket with a
        timeout, once the socket is connected.
    @ivar real: the real socket that the interceptor keeps for it.
    @ivar accepted: of a listener: the ids of accepted sockets.
    """

    def __init__(self, id: int) -> None:
        self.id = id
        self.plain: socket.socket | None = None
        self.real: socket.socket | None = None
        self.accepted: list[int] = []
        self.names: tuple[InternetAddress, InternetAddress] | None = None


@implementer(IRequests)
class LoopbackInterceptor:
    """
    @ivar end: the link.
    @ivar programs: what the programs hold, by id.
    @ivar fetched: the addresses that the daemon asked to be connected to.
    """

    def __init__(self, reactor: Any, sock: socket.socket, uid: int | None = None) -> None:
        self.uid = os.getuid() if uid is None else uid
        self.programs: dict[int, Program] = {}
        self.fetched: list[InternetAddress] = []
        self.establishedError = 0
        self._lastID = 0
        self.end = InterceptorEnd(reactor, sock, self)
        self.end.onRegistered.addErrback(lambda failure: failure.trap(SSAError))

    # IRequests

    def fetch(self, id: int, remote: InternetAddress | None) -> Fetched:
        program = self.programs[id]
        if remote is not None:
            self.fetched.append(remote)
            if program.real is not None:
                program.real.close()
            program.real = startConnect(remote)
        assert program.real is not None
        return Fetched(os.dup(program.real.fileno()), None, remote)

    def established(self, id: int, external: InternetAddress, remote: InternetAddress, dataPath: DataPath) -> int:
        if self.establishedError:
            raise SSAError(self.establishedError, "as the test wants it")
        self.programs[id].names = (external, remote)
        return self._plaintext(self.programs[id])

    def accepted(self, id: int, external: InternetAddress, remote: InternetAddress) -> tuple[int, int]:
        listener = self.programs.get(id)
        if listener is None:
            raise SSAError(errno.ECONNABORTED, "the listener is gone")
        program = self._newProgram()
        program.names = (external, remote)
        listener.accepted.append(program.id)
        return program.id, self._plaintext(program)

    def _plaintext(self, program: Program) -> int:
        """A TCP connection within the machine, as the supervisor makes it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            program.plain = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        program.plain.settimeout(10)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return ours.detach()

    # what programs do

    def _newProgram(self) -> Program:
        self._lastID += 1
        program = self.programs[self._lastID] = Program(self._lastID)
        return program

    async def newSocket(self, family: int = socket.AF_INET) -> Program:
        """socket(2); raises L{SSAError}."""
        program = self._newProgram()
        event = SocketNotify(
            self.end.nextEvent(), program.id, family, os.getpid(), self.uid, "trial", "/usr/bin/trial", 1, 2, 3, 4
        )
        self._check(await self.end.notify(event))
        return program

    async def set(self, program: Program, option: Option, value: bytes, level: int = IPPROTO_TLS) -> None:
        """setsockopt(2)."""
        event = SetsockoptNotify(self.end.nextEvent(), program.id, level, int(option), value)
        self._check(await self.end.notify(event))

    async def setLive(self, program: Program, level: int, name: int, value: bytes) -> None:
        """setsockopt(2) at another level."""
        self._check(await self.end.notify(SetsockoptNotify(self.end.nextEvent(), program.id, level, name, value)))

    async def get(self, program: Program, option: Option) -> bytes:
        """getsockopt(2)."""
        answer = await self.end.notify(GetsockoptNotify(self.end.nextEvent(), program.id, IPPROTO_TLS, int(option)))
        if isinstance(answer, DataReturn):
            return answer.value
        self._check(answer)
        raise AssertionError("a get was answered without a value")

    async def error(self, program: Program) -> str:
        """TLS_ERROR."""
        return (await self.get(program, Option.TLS_ERROR)).rstrip(b"\0").decode()

    def startConnect(self, program: Program, remote: Address) -> Deferred[Answer]:
        """connect(2), without waiting."""
        if isinstance(remote, InternetAddress):
            if program.real is not None:
                program.real.close()
            program.real = startConnect(remote)
        return self.end.notify(self._connectNotify(program, remote))

    def _connectNotify(self, program: Program, remote: Address) -> ConnectNotify:
        return ConnectNotify(self.end.nextEvent(), program.id, True, remote)

    async def connect(self, program: Program, remote: Address) -> int:
        """connect(2): 0 or an errno."""
        answer = await self.startConnect(program, remote)
        assert isinstance(answer, HandshakeReturn), answer
        return -answer.result

    async def upgrade(self, program: Program, sock: socket.socket, role: Role) -> int:
        """TLS_UPGRADE: 0 or an errno."""
        program.real = sock
        local = InternetAddress.fromSocket(sock.family, sock.getsockname())
        remote = InternetAddress.fromSocket(sock.family, sock.getpeername())
        answer = await self.end.notify(
            UpgradeNotify(self.end.nextEvent(), program.id, role, True, local, remote)
        )
        assert isinstance(answer, HandshakeReturn), answer
        return -answer.result

    async def listen(self, program: Program, backlog: int = 16) -> InternetAddress:
        """bind(2) to a free port and listen(2); raises L{SSAError}."""
        if program.real is None:
            program.real = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        address = InternetAddress.fromSocket(program.real.family, program.real.getsockname())
        self._check(await self.end.notify(ListenNotify(self.end.nextEvent(), program.id, backlog, address)))
        return address

    def close(self, program: Program) -> None:
        """close(2)."""
        del self.programs[program.id]
        for sock in (program.plain, program.real):
            if sock is not None:
                sock.close()
        self.end.tell(CloseNotify(self.end.nextEvent(), program.id))

    def shutDown(self) -> None:
        """The whole interceptor goes away."""
        for program in list(self.programs.values()):
            for sock in (program.plain, program.real):
                if sock is not None:
                    sock.close()
        self.programs.clear()
        self.end.close()

    @staticmethod
    def _check(answer: Answer) -> None:
        assert isinstance(answer, Return), answer
        if answer.result:
            raise SSAError(-answer.result, "the daemon's answer")


__all__ = ["HostnameAddress", "LoopbackInterceptor", "Program", "startConnect"]
