# SPDX-License-Identifier: MIT
"""
The kernel module in memory: the same programs as L{ssa.test.loopback}, behind generic netlink instead of a unix socket.

L{ssa.netlink.testing.MemoryNetlink} is the kernel around it.  The descriptors are real: TCP connections over the loopback
interface, and pairs of unix sockets as plaintext ends.  What it answers is what C{kernel-module/netlink.c} answers.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from errno import (
    EAGAIN,
    EBUSY,
    ECONNABORTED,
    ECONNRESET,
    EINPROGRESS,
    EINVAL,
    EIO,
    ENETDOWN,
    ENOBUFS,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
)
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from ssa.api import Address, DataPath, InternetAddress, Role
from ssa.errors import SSAError
from ssa.netlink.codec import AttributeTable, CodecError, GenericMessage, NetlinkMessage
from ssa.netlink.errors import NetlinkError
from ssa.netlink.generic import GENL_ADMIN_PERM
from ssa.netlink.port import INetlinkSocket, INetlinkSystem, Received
from ssa.netlink.testing import MemoryCommand, MemoryFamily, MemoryNetlink, MemorySocket
from ssa.protocol.messages import (
    FAMILY_NAME,
    FROM_DAEMON,
    MULTICAST_GROUP,
    PROTOCOL_VERSION,
    Accepted,
    AcceptedReply,
    AcceptNotify,
    Answer,
    Attribute,
    CloseNotify,
    Command,
    EndOfStream,
    Established,
    EstablishedReply,
    Event,
    Fetch,
    FetchReply,
    HandshakeReturn,
    Message,
    Next,
    Register,
    failure,
)
from ssa.test.loopback import LoopbackInterceptor, Program

CANDIDATES = 16
"""How many addresses of a name may be tried at a time, as C{SSA_CANDIDATES}."""


@implementer(INetlinkSocket)
class _DescribedSocket:
    """A socket of the kernel in memory with a descriptor that is readable whenever it is."""

    def __init__(self, system: DescribedNetlink, inner: MemorySocket) -> None:
        self._system = system
        self._inner = inner
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._isSignalled = False

    def fileno(self) -> int:
        return self._event

    def bind(self, port: int) -> None:
        self._inner.bind(port)

    def getsockname(self) -> int:
        return self._inner.getsockname()

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._inner.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int) -> int:
        return self._inner.getsockopt(level, option)

    def sendto(self, data: bytes, port: int) -> int:
        before, self._system.caller = self._system.caller, self._inner
        try:
            return self._inner.sendto(data, port)
        finally:
            self._system.caller = before
            self._system.refresh()

    def recvfrom(self, size: int) -> Received:
        try:
            return self._inner.recvfrom(size)
        finally:
            self.refresh()

    def close(self) -> None:
        port = self._inner.portID
        self._system.sockets.remove(self)
        event, self._event = self._event, -1
        os.close(event)
        self._inner.close()
        self._system.released(port)

    def refresh(self) -> None:
        """Make the descriptor tell what is."""
        if self._inner.readable() and not self._isSignalled:
            os.eventfd_write(self._event, 1)
        elif self._isSignalled and not self._inner.readable():
            os.eventfd_read(self._event)
        self._isSignalled = self._inner.readable()


@implementer(INetlinkSystem)
class DescribedNetlink:
    """
    Lets a real reactor watch the sockets of a kernel in memory.

    @ivar kernel: that kernel.
    @ivar caller: the socket whose request is being answered.
    @ivar released: called with the C{nl_pid} of each socket that was closed (C{NETLINK_URELEASE}).
    """

    def __init__(self, kernel: MemoryNetlink) -> None:
        self.kernel = kernel
        self.caller: MemorySocket | None = None
        self.sockets: list[_DescribedSocket] = []
        self.released: Callable[[int], None] = lambda port: None

    def socket(self, family: int) -> _DescribedSocket:
        made = _DescribedSocket(self, self.kernel.socket(family))
        self.sockets.append(made)
        return made

    def refresh(self) -> None:
        """Something may have come."""
        for one in self.sockets:
            one.refresh()


class ProgramSocket(socket.socket):
    """
    The program's end of a plaintext pair: an end of stream that nobody vouches for is ECONNRESET, after the data.

    @ivar program: the TLS socket.
    """

    program: ModuleProgram

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        if not data and size and not self.program.eof:
            raise ConnectionResetError(ECONNRESET, os.strerror(ECONNRESET))
        return data


class ModuleProgram(Program):
    """
    A TLS socket, as C{struct ssa_sock}.

    @ivar state: "new", "connecting", "established", "listening" or "dead".
    @ivar isNamed: whether it connects to a name.
    @ivar candidates: the attempts to the addresses of a name.
    @ivar eof: whether the daemon vouches for the end of stream.
    @ivar queue: of a listener: what waits for accept(2).
    @ivar dataPath: what the daemon has said.
    """

    def __init__(self, id: int) -> None:
        super().__init__(id)
        self.state = "new"
        self.isNamed = False
        self.candidates: list[socket.socket] = []
        self.eof = False
        self.queue: deque[ModuleProgram] = deque()
        self.backlog = 0
        self.dataPath: DataPath | None = None

    def release(self) -> None:
        """Close what the kernel holds for it."""
        for sock in (self.plain, self.real, *self.candidates):
            if sock is not None:
                sock.close()
        self.candidates.clear()

    def finish(self) -> None:
        """An attempt is over: the other candidates end."""
        for sock in self.candidates:
            sock.close()
        self.candidates.clear()
        self.isNamed = False


class _Family(MemoryFamily):
    """The family "SSA": its module answers."""

    module: FakeModule

    def answer(self, message: NetlinkMessage) -> Any:
        return iter(self.module.answer(message))


class FakeModule(LoopbackInterceptor):
    """
    The module, and the programs on it.  Programs wait for the first daemon; later ones without a daemon get ENETDOWN.

    @ivar system: for the daemon's L{KernelPort<ssa.protocol.kernelport.KernelPort>}.
    @ivar kernel: the kernel in memory.
    @ivar daemonPort: C{nl_pid} of the registered daemon, 0: none.
    @ivar registrations: how many daemons have registered.
    @ivar registered: the last of them.
    @ivar requests: what the registered daemon has asked for, except for events.
    @ivar nexts: how often it has asked for an event.
    @ivar acceptsAtOnce: whether programs accept what is there.
    @ivar lost: fires when the registered daemon has gone.
    """

    def __init__(self, kernel: MemoryNetlink | None = None, uid: int | None = None) -> None:
        self.kernel = MemoryNetlink() if kernel is None else kernel
        self.system = DescribedNetlink(self.kernel)
        self.system.released = self._released
        self.uid = os.getuid() if uid is None else uid
        self.programs = {}
        self.fetched: list[InternetAddress] = []
        self.establishedError = 0
        self.daemonPort = 0
        self.registrations = 0
        self.registered: Register | None = None
        self.requests: list[Message] = []
        self.nexts = 0
        self.acceptsAtOnce = True
        self.lost: Deferred[None] = Deferred()
        self._lastID = 0
        self._lastEvent = 0
        self._isKicked = False
        self._list: deque[bytes] = deque()
        self._waiting: dict[int, tuple[Event, Deferred[Answer]]] = {}
        self._whenRegistered: list[Deferred[None]] = []
        self.end: Any = self

    # The module's life

    def load(self) -> None:
        """insmod(8)."""
        commands = {one: MemoryCommand(flags=GENL_ADMIN_PERM) for one in FROM_DAEMON}
        family = _Family(FAMILY_NAME, commands, [MULTICAST_GROUP], PROTOCOL_VERSION, max(Attribute))
        family.module = self
        self.kernel.registerFamily(family)
        self._family = family
        self._lastID = 0
        self.system.refresh()

    def unload(self) -> None:
        """rmmod(8), which is only possible without sockets."""
        assert not self.programs
        self.kernel.unregisterFamily(FAMILY_NAME)
        self._list.clear()
        self.daemonPort = 0
        self.system.refresh()

    def _released(self, port: int) -> None:
        """A netlink socket was closed: was it the daemon's?"""
        if port == 0 or port != self.daemonPort:
            return
        self.daemonPort = 0
        self._list.clear()
        waiting, self._waiting = self._waiting, {}
        for program in self._all():
            if program.state == "connecting":
                program.finish()
                program.state = "new"
            elif program.state == "listening":
                program.state = "dead"
        for event, answered in waiting.values():
            answered.callback(failure(event, ENETDOWN))
        lost, self.lost = self.lost, Deferred()
        lost.callback(None)

    def _all(self) -> list[ModuleProgram]:
        return [one for one in self.programs.values() if isinstance(one, ModuleProgram)]

    def whenRegistered(self) -> Deferred[None]:
        """Wait for a daemon."""
        if self.daemonPort:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._whenRegistered.append(waiting)
        return waiting

    # Events

    def nextEvent(self) -> int:
        """The number of the next event."""
        self._lastEvent += 1
        return self._lastEvent

    def notify(self, event: Event) -> Deferred[Answer]:
        """Post an event and wait for its answer, which is a failure with ENETDOWN where there is no daemon."""
        if not self.daemonPort:
            return succeed(failure(event, ENETDOWN))
        answered: Deferred[Answer] = Deferred()
        self._waiting[event.event] = (event, answered)
        self.post(event.payload())
        return answered

    def tell(self, event: Event) -> None:
        """Post an event that wants no answer."""
        if self.daemonPort:
            self.post(event.payload())

    def expect(self, event: Event) -> Deferred[Answer]:
        """Wait for the answer to an event that is posted by other means."""
        answered: Deferred[Answer] = Deferred()
        self._waiting[event.event] = (event, answered)
        return answered

    def post(self, payload: bytes) -> None:
        """Put a message into the list, and kick."""
        self._list.append(payload)
        self.kick()

    def speak(self) -> None:
        """Answer what the daemon has asked while the kernel was silent."""
        self.system.caller = next(one for one in self.kernel.sockets if one.portID == self.daemonPort)
        try:
            self.kernel.release()
        finally:
            self.system.caller = None
            self.system.refresh()

    def kick(self) -> None:
        """Tell the daemon that there are events, unless it knows."""
        if not self._isKicked:
            self._isKicked = True
            self.kernel.notify(FAMILY_NAME, MULTICAST_GROUP, Command.NEXT, {}, AttributeTable())
        self.system.refresh()

    # Requests

    def answer(self, message: NetlinkMessage) -> Iterable[tuple[int, bytes]]:
        """Answer one netlink message, as a L{ssa.netlink.testing.Subsystem} does."""
        if not self.kernel.privileged:
            raise NetlinkError(EPERM)
        try:
            generic = GenericMessage.decode(message.payload)
            kind = FROM_DAEMON.get(generic.command)
            if kind is None:
                raise NetlinkError(EOPNOTSUPP)
            request = kind.fromGeneric(generic)
        except CodecError as error:
            raise NetlinkError(EINVAL, str(error)) from error
        if isinstance(request, Register):
            self._do_REGISTER(request)
            return []
        if not self.daemonPort or self.system.caller is None or self.system.caller.portID != self.daemonPort:
            raise NetlinkError(EPERM, "not the registered daemon")
        if isinstance(request, Next):
            self.nexts += 1
            return [(self._family.number, self._next())]
        self.requests.append(request)
        if isinstance(request, Answer):
            self._answered(request)
            return []
        reply: Message | None = getattr(self, f"_do_{request.command.name}")(request)
        return [] if reply is None else [(self._family.number, reply.payload())]

    def _do_REGISTER(self, request: Register) -> None:
        if request.version != PROTOCOL_VERSION:
            raise NetlinkError(EPROTONOSUPPORT, "another version of the protocol")
        assert self.system.caller is not None
        if self.daemonPort == self.system.caller.portID:
            return
        if self.daemonPort:
            raise NetlinkError(EBUSY, "another daemon is registered")
        self.daemonPort = self.system.caller.portID
        self.registrations += 1
        self.registered = request
        self._isKicked = False
        whenRegistered, self._whenRegistered = self._whenRegistered, []
        for one in whenRegistered:
            one.callback(None)

    def _next(self) -> bytes:
        if not self._list:
            self._isKicked = False
            raise NetlinkError(ENOENT)
        return self._list.popleft()

    def _answered(self, answer: Answer) -> None:
        event, answered = self._waiting.get(answer.event, (None, None))
        if event is None or answered is None or event.id != answer.id:
            return
        del self._waiting[answer.event]
        program = self.programs.get(event.id)
        if isinstance(answer, HandshakeReturn) and isinstance(program, ModuleProgram) and program.state == "connecting":
            program.finish()
            program.state = "new"
            if not answer.result:
                answer = HandshakeReturn(answer.event, answer.id, -EIO)  # it has not been established
        answered.callback(answer)

    def _named(self, id: int) -> ModuleProgram:
        program = self.programs.get(id)
        if not isinstance(program, ModuleProgram):
            raise NetlinkError(ECONNABORTED, "the program has closed the socket")
        return program

    def _do_FETCH(self, request: Fetch) -> FetchReply:
        program = self._named(request.id)
        if request.remote is not None:
            if program.state != "connecting" or not program.isNamed:
                raise NetlinkError(ECONNABORTED)
            if len(program.candidates) == CANDIDATES:
                raise NetlinkError(ENOBUFS)
            self.fetched.append(request.remote)
            candidate = socket.socket(request.remote.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            number = candidate.connect_ex(request.remote.forSocket())
            if number not in (0, EINPROGRESS):
                candidate.close()
                raise NetlinkError(number)
            program.candidates.append(candidate)
            return FetchReply(program.id, None, request.remote, os.dup(program.candidates[-1].fileno()))
        if program.real is None or not (
            program.state == "listening" or (program.state == "connecting" and not program.isNamed)
        ):
            raise NetlinkError(ECONNABORTED)
        return FetchReply(program.id, None, None, os.dup(program.real.fileno()))

    def _choose(self, program: ModuleProgram, request: Established) -> None:
        for sock in program.candidates:
            try:
                names = (sock.getsockname(), sock.getpeername())
            except OSError:
                continue
            if names == (request.external.forSocket(), request.remote.forSocket()):
                program.candidates.remove(sock)
                program.real = sock
                break
        else:
            raise NetlinkError(ENOENT)

    def _do_ESTABLISHED(self, request: Established) -> EstablishedReply:
        program = self._named(request.id)
        if self.establishedError:
            raise NetlinkError(self.establishedError, "as the test wants it")
        if program.state != "connecting":
            raise NetlinkError(ECONNABORTED)
        if program.isNamed:
            self._choose(program, request)
        program.finish()
        program.state = "established"
        program.names = (request.external, request.remote)
        program.dataPath = request.dataPath
        return EstablishedReply(program.id, self._pair(program))

    def _pair(self, program: ModuleProgram) -> int | None:
        """The plaintext connection; with kTLS there is none."""
        if program.dataPath is DataPath.KTLS:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.setblocking(False)
        plain = ProgramSocket(fileno=ours.detach())
        plain.program = program
        plain.settimeout(10)
        program.plain = plain
        return theirs.detach()

    def _do_ACCEPTED(self, request: Accepted) -> AcceptedReply:
        listener = self._named(request.id)
        try:
            if request.fd is None:
                raise OSError(EINVAL, "no descriptor")
            connection = socket.socket(fileno=os.dup(request.fd))
            connection.getpeername()
        except OSError as error:
            raise NetlinkError(EINVAL, "not a connection of this listener") from error
        if listener.state != "listening" or len(listener.queue) > listener.backlog:
            connection.close()
            raise NetlinkError(ECONNABORTED if listener.state != "listening" else EAGAIN)
        child = self._newProgram()
        child.real = connection
        child.state = "established"
        child.names = (request.external, request.remote)
        child.dataPath = request.dataPath
        reply = AcceptedReply(listener.id, child.id, self._pair(child))
        listener.queue.append(child)
        if self.acceptsAtOnce:
            self.accept(listener)
        return reply

    def _do_EOF(self, request: EndOfStream) -> None:
        self._named(request.id).eof = True

    # What programs do

    def _newProgram(self) -> ModuleProgram:
        self._lastID += 1
        program = ModuleProgram(self._lastID)
        self.programs[program.id] = program
        return program

    async def newSocket(self, family: int = socket.AF_INET) -> Program:
        """socket(2)."""
        if not self.registrations:
            await self.whenRegistered()
        before = set(self.programs)
        try:
            return await super().newSocket(family)
        except SSAError:
            for made in set(self.programs) - before:
                self.close(self.programs[made])
            raise

    def startConnect(self, program: Program, remote: Address) -> Deferred[Answer]:
        """connect(2)."""
        assert isinstance(program, ModuleProgram)
        if program.state == "new":
            program.state = "connecting"
            program.isNamed = not isinstance(remote, InternetAddress)
            return super().startConnect(program, remote)
        # The daemon is asked all the same, so that its own refusal can be seen.
        return self.notify(self._connectNotify(program, remote))

    async def upgrade(self, program: Program, sock: socket.socket, role: Role) -> int:
        """TLS_UPGRADE."""
        assert isinstance(program, ModuleProgram)
        program.state = "connecting"
        return await super().upgrade(program, sock, role)

    async def listen(self, program: Program, backlog: int = 16) -> InternetAddress:
        """listen(2)."""
        assert isinstance(program, ModuleProgram)
        before, program.state = program.state, "listening"
        program.backlog = backlog
        try:
            return await super().listen(program, backlog)
        except SSAError:
            program.state = before
            raise

    def accept(self, listener: Program) -> Program:
        """accept(2) of what is in the queue."""
        assert isinstance(listener, ModuleProgram)
        child = listener.queue.popleft()
        listener.accepted.append(child.id)
        self.tell(
            AcceptNotify(self.nextEvent(), child.id, os.getpid(), self.uid, "trial", "/usr/bin/trial", 1, 2, 3, 4)
        )
        return child

    def close(self, program: Program | None = None) -> None:
        """close(2); without a program: the daemon's netlink socket breaks."""
        if program is None:
            self.kernel.fail("recvfrom", EIO)
            for one in self.kernel.sockets:
                one.overrun()
            self.system.refresh()
            return
        assert isinstance(program, ModuleProgram)
        while program.queue:
            self.close(program.queue.popleft())
        del self.programs[program.id]
        program.release()
        self.tell(CloseNotify(self.nextEvent(), program.id))

    def shutDown(self) -> None:
        """All programs end."""
        for program in self._all():
            if program.id in self.programs:
                self.close(program)
