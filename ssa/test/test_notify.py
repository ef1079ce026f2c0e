# SPDX-License-Identifier: MIT
"""Tests for L{ssa.intercept.notify} on real notifications, with a child as the program."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from ssa.intercept import linux
from ssa.intercept.namespace import socketCookie
from ssa.intercept.notify import Gone, Notification, NotificationListener, duplicateSocket
from ssa.intercept.way import inChild, installNotifyFilter
from ssa.test.fakes import openDescriptors
from ssa.test.processes import needWay

NOTIFY, ALLOW = 0x7FC00000, 0x7FFF0000
_SECONDS = 10


def _filter(name: str) -> bytes:
    """Notify of one system call."""
    number = linux.architecture().numbers[name]
    code = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, NOTIFY), (0x06, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class Program:
    """A child whose calls of one kind stop; it reports the result of a function."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                fd = installNotifyFilter(_filter(name))
                socket.send_fds(theirs, [b"x"], [fd])
                os.close(fd)
                try:
                    answer = repr(function())
                except OSError as error:
                    answer = errno.errorcode[error.errno or 0]
                os.write(writer, answer.encode())
            finally:
                os._exit(0)
        theirs.close()
        os.close(writer)
        self._reader = reader
        with ours:
            ours.settimeout(_SECONDS)
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        self.listener = NotificationListener(fds[0])

    def call(self) -> Notification:
        """The next stopped call."""
        select.select([self.listener.fd], [], [], _SECONDS)
        found = self.listener.receive()
        assert found is not None
        return found

    def result(self) -> str:
        """What the function gave."""
        ready, _, _ = select.select([self._reader], [], [], _SECONDS)
        return os.read(self._reader, 1000).decode() if ready else "hangs"

    def close(self) -> None:
        """End it; harmless if that was done."""
        if self.pid == 0:
            return
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0
        os.close(self._reader)
        self.listener.close()


class NotificationTests(SynchronousTestCase):
    """Seccomp as it is."""

    def setUp(self) -> None:
        needWay()
        self.before = openDescriptors()

    def program(self, name: str, function: Callable[[], object]) -> Program:
        program = Program(name, function)
        self.addCleanup(self.assertEnd)
        self.addCleanup(program.close)
        return program

    def assertEnd(self) -> None:
        self.assertEqual(openDescriptors(), self.before)

    def test_succeed(self) -> None:
        program = self.program("listen", lambda: socket.socket().listen(17))
        call = program.call()
        self.assertEqual((call.number, call.integer(1)), (linux.architecture().numbers["listen"], 17))
        self.assertTrue(program.listener.isAlive(call))
        program.listener.succeed(call)
        self.assertEqual(program.result(), "None")
        self.assertFalse(program.listener.isAlive(call))

    def test_fail(self) -> None:
        program = self.program("listen", lambda: socket.socket().listen(3))
        call = program.call()
        program.listener.fail(call, errno.EKEYREJECTED)
        self.assertEqual(program.result(), "EKEYREJECTED")

    def test_proceed(self) -> None:
        program = self.program("listen", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).listen(1))
        program.listener.proceed(program.call())
        self.assertEqual(program.result(), "ENOTSUP")

    def test_gone(self) -> None:
        """Nobody waits for the answer of a process that has ended."""
        program = self.program("listen", lambda: socket.socket().listen(1))
        call = program.call()
        os.kill(program.pid, signal.SIGKILL)
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        listener = program.listener
        self.assertFalse(listener.isAlive(call))
        self.assertRaises(Gone, listener.check, call)
        self.assertRaises(Gone, listener.succeed, call)
        self.assertRaises(Gone, listener.fail, call, errno.EIO)
        self.assertRaises(Gone, listener.proceed, call)
        self.assertRaises(Gone, listener.read, call, 0x1000, 4)
        self.assertRaises(Gone, listener.write, call, 0x1000, b"x")
        with socket.socket() as sock:
            self.assertRaises(Gone, listener.giveDescriptor, call, sock.fileno(), False)
            self.assertRaises(Gone, listener.replaceDescriptor, call, 0, sock.fileno(), False)
        self.assertRaises(Gone, listener.socketOf, call, 0)
        self.assertIsNone(listener.socketInode(call, 0))
        self.assertRaises(EOFError, listener.receive)

    def test_giveDescriptor(self) -> None:
        for closeOnExec in (True, False):
            program = self.program("socket", lambda: (s := socket.socket(), os.get_inheritable(s.fileno()), s.fileno())[1:])
            call = program.call()
            with socket.socket() as sock:
                number = program.listener.giveDescriptor(call, sock.fileno(), closeOnExec)
            self.assertEqual(program.result(), repr((not closeOnExec, number)))
            program.close()

    def test_full(self) -> None:
        """A program without a number left gets its answer."""

        def fill() -> object:
            import resource

            resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))
            while True:
                try:
                    os.dup(0)
                except OSError:
                    return socket.socket()

        program = self.program("socket", fill)
        call = program.call()
        with socket.socket() as sock:
            error = self.assertRaises(OSError, program.listener.giveDescriptor, call, sock.fileno(), False)
            self.assertEqual(error.errno, errno.EMFILE)
        program.listener.fail(call, errno.EMFILE)
        self.assertEqual(program.result(), "EMFILE")

    def test_interruptedSupervisor(self) -> None:
        """A supervisor that is stopped while it gives a descriptor does not make socket(2) return another file's number."""

        def supervise() -> None:
            supervisor = os.getpid()
            program = Program("socket", lambda: all(socket.socket().fileno() > 0 for _ in range(300)))
            stopper = os.fork()
            if stopper == 0:
                for _ in range(5000):
                    os.kill(supervisor, signal.SIGSTOP)
                    os.kill(supervisor, signal.SIGCONT)
                os._exit(0)
            given = 0
            with socket.socket() as sock:
                while given < 300:
                    select.select([program.listener.fd], [], [], 1)
                    call = program.listener.receive()
                    if call is not None:
                        program.listener.giveDescriptor(call, sock.fileno(), True)
                        given += 1
            os.kill(stopper, signal.SIGKILL)
            os.waitpid(stopper, 0)
            assert program.result() == "True"
            program.close()

        inChild(supervise, _SECONDS)  # in a process whose stops no shell sees

    def test_interruptedCaller(self) -> None:
        """A signal that interrupts a call starts it again, as another notification."""

        def listen() -> None:
            signal.signal(signal.SIGUSR1, lambda *_: None)
            signal.siginterrupt(signal.SIGUSR1, False)
            socket.socket().listen(1)

        program = self.program("listen", listen)
        first = program.call()
        os.kill(program.pid, signal.SIGUSR1)
        second = program.call()
        self.assertNotEqual(first.id, second.id)
        self.assertRaises(Gone, program.listener.succeed, first)
        program.listener.succeed(second)
        self.assertEqual(program.result(), "None")

    def test_memory(self) -> None:
        """Copies of the program's memory, errors as the kernel's."""
        program = self.program("bind", lambda: socket.socket().bind(("127.0.0.1", 8)))
        call, listener = program.call(), program.listener
        pointer, size = call.arguments[1], call.integer(2)
        data = listener.read(call, pointer, size)
        self.assertEqual(data[:8], struct.pack("=H", socket.AF_INET) + struct.pack("!H", 8) + bytes((127, 0, 0, 1)))
        listener.write(call, pointer, b"\xff")
        self.assertEqual(listener.read(call, pointer, 2), b"\xff" + data[1:2])
        self.assertEqual(listener.read(call, 1, 0), b"")
        for address in (1, 0, 0xFFFFFFFFFFFFFFF0):
            for operation in (lambda at=address: listener.read(call, at, 4), lambda at=address: listener.write(call, at, b"x")):
                self.assertEqual(self.assertRaises(OSError, operation).errno, errno.EFAULT)
        listener.fail(call, errno.EACCES)
        self.assertEqual(program.result(), "EACCES")

    def test_socketOf(self) -> None:
        """The very socket, and no other kind of file."""
        with socket.socket() as sock:
            number = sock.fileno()
            program = self.program("listen", lambda: sock.listen(1))
            call, listener = program.call(), program.listener
            self.assertEqual(listener.socketInode(call, number), os.fstat(number).st_ino)
            copy = listener.socketOf(call, number)
            assert copy is not None
            with copy:
                self.assertEqual(socketCookie(copy), socketCookie(sock))
                self.assertFalse(os.get_inheritable(copy.fileno()))
            for other in (0, 9999, -1):
                self.assertIsNone(listener.socketInode(call, other))
            self.assertIsNone(listener.socketOf(call, 9999))
            listener.succeed(call)
            program.result()

    def test_noProcess(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        self.assertIsNone(duplicateSocket(pid, 0))

    def test_closed(self) -> None:
        """A supervisor that has ended makes calls fail, and none hang."""
        program = self.program("listen", lambda: socket.socket().listen(1))
        program.call()
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, program.listener.fd)
        os.close(null)
        self.assertEqual(program.result(), "ENOSYS")


class IntegerTests(SynchronousTestCase):
    """Registers."""

    def test_signs(self) -> None:
        call = Notification(1, 2, 3, (0, 0xFFFFFFFF, 0x80000000, 0xDEAD00000007, 0xFFFFFFFFFFFFFFFE, 0x7FFFFFFF))
        self.assertEqual([call.integer(i) for i in range(6)], [0, -1, -(1 << 31), 7, -2, 0x7FFFFFFF])


