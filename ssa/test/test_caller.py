# SPDX-License-Identifier: MIT
"""Tests for L{ssa.intercept.caller}: who calls, and what may be done for him."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.intercept import linux
from ssa.intercept.caller import MAXIMUM_ENTRIES, MAXIMUM_FILE, Caller, Credentials, Rights, namespaceOf, readNamedFile
from ssa.intercept.way import ProbeFailed, inChild
from ssa.test.fakes import openDescriptors

CLONE_NEWNS = 0x20000
NOBODY = 65534
CAP_NET_BIND_SERVICE = 1 << 10


def needRoot() -> None:
    """Skip the test where it is not run by root."""
    if os.geteuid() != 0:
        raise SkipTest("only root can take another user's rights")


class CallerTests(SynchronousTestCase):
    """What proc(5) tells."""

    def test_self(self) -> None:
        caller = Caller.of(os.getpid())
        self.assertEqual((caller.thread, caller.pid), (os.getpid(), os.getpid()))
        self.assertEqual((caller.uid, caller.gid), (os.geteuid(), os.getegid()))
        self.assertEqual(set(caller.groups), set(os.getgroups()))
        self.assertEqual(caller.capabilities, linux.getCapabilities()[0])
        self.assertEqual(caller.executable, os.readlink("/proc/self/exe"))
        status = os.stat("/proc/self/exe")
        self.assertEqual((caller.executableDevice, caller.executableInode), (status.st_dev, status.st_ino))
        self.assertEqual(caller.mountNamespace, os.stat("/proc/self/ns/mnt").st_ino)
        self.assertEqual(caller.networkNamespace, os.stat("/proc/self/ns/net").st_ino)
        self.assertEqual(caller.comm, Path("/proc/self/comm").read_text("utf-8").rstrip("\n"))

    def test_thread(self) -> None:
        """A thread has a name of its own, and its process's number."""
        found: list[Caller] = []

        def look() -> None:
            linux.nameProcess("a\nUid:\t1 1 1")
            found.append(Caller.of(threading.get_native_id()))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        self.assertEqual(found[0].pid, os.getpid())
        self.assertNotEqual(found[0].thread, os.getpid())
        self.assertEqual(found[0].uid, os.geteuid())
        self.assertEqual(found[0].comm, "a\nUid:\t1 1 1")

    def test_gone(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        self.assertIn(self.assertRaises(OSError, Caller.of, pid).errno, (errno.ENOENT, errno.ESRCH))
        self.assertIn(self.assertRaises(OSError, Credentials.of, pid).errno, (errno.ENOENT, errno.ESRCH))

    def test_ownUserNamespace(self) -> None:
        """Capabilities over a user namespace of his own are no rights here."""

        def probe() -> None:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reader)
                linux.unshare(linux.CLONE_NEWUSER)
                os.write(writer, b"x")
                os.read(os.pipe()[0], 1)
            os.close(writer)
            if not os.read(reader, 1):
                raise OSError(errno.EPERM, "no user namespace")
            try:
                assert Caller.of(child).capabilities == 0
            finally:
                os.kill(child, 9)
                os.waitpid(child, 0)

        try:
            inChild(probe)
        except ProbeFailed as problem:
            if problem.errno == errno.EPERM:
                raise SkipTest("no user namespaces") from problem
            raise


class RightsTests(SynchronousTestCase):
    """Rights are lent, and given back."""

    def credentials(self) -> tuple[object, ...]:
        return os.geteuid(), os.getegid(), sorted(os.getgroups()), linux.getCapabilities()

    def test_ownRights(self) -> None:
        before = self.credentials()
        with Rights().of(Caller.of(os.getpid())):
            self.assertEqual(self.credentials(), before)

    def test_lent(self) -> None:
        needRoot()
        rights, before = Rights(), self.credentials()
        caller = replace(Caller.of(os.getpid()), uid=NOBODY, gid=NOBODY, groups=(NOBODY, 100), capabilities=0)
        with rights.of(caller):
            self.assertEqual((os.geteuid(), os.getegid(), sorted(os.getgroups())), (NOBODY, NOBODY, [100, NOBODY]))
            self.assertEqual(linux.getCapabilities()[0], 0)
            self.assertEqual(self.assertRaises(OSError, open, "/proc/1/environ").errno, errno.EACCES)
        self.assertEqual(self.credentials(), before)

    def test_givenBackAfterError(self) -> None:
        needRoot()
        rights, before = Rights(), self.credentials()
        caller = replace(Caller.of(os.getpid()), uid=NOBODY, capabilities=0)
        with self.assertRaises(ZeroDivisionError), rights.of(caller):
            raise ZeroDivisionError
        self.assertEqual(self.credentials(), before)

    def test_impossibleGroups(self) -> None:
        """A caller whose rights cannot be taken costs him the call, and us nothing."""
        needRoot()
        rights, before = Rights(), self.credentials()
        with self.assertRaises(ValueError), rights.of(replace(Caller.of(os.getpid()), uid=NOBODY, groups=tuple(range(70000)))):
            self.fail("did something without the right rights")
        self.assertEqual(self.credentials(), before)

    def test_capabilities(self) -> None:
        """A user with one capability has that one; root without one has not."""
        needRoot()
        rights = Rights()
        for uid, capabilities in ((NOBODY, CAP_NET_BIND_SERVICE), (0, linux.getCapabilities()[0] & ~CAP_NET_BIND_SERVICE)):
            with rights.of(replace(Caller.of(os.getpid()), uid=uid, capabilities=capabilities)):
                self.assertEqual(linux.getCapabilities()[0], capabilities)

    def test_network(self) -> None:
        """The network namespace of the caller, for that moment."""
        needRoot()

        def probe() -> None:
            rights = Rights()
            own = os.open("/proc/self/ns/net", os.O_RDONLY)
            inode = namespaceOf(os.getpid(), "net")
            linux.unshare(linux.CLONE_NEWNET)
            other = os.open("/proc/self/ns/net", os.O_RDONLY)
            linux.setns(own, linux.CLONE_NEWNET)
            nobody = replace(Caller.of(os.getpid()), uid=NOBODY, gid=NOBODY, capabilities=0)
            with rights.of(nobody, other), socket.socket() as sock:
                assert os.fstat(other).st_ino != inode
                sock.setblocking(False)
                assert sock.connect_ex(("127.0.0.1", 9)) == errno.ENETUNREACH
            assert namespaceOf(os.getpid(), "net") == inode
            try:
                with rights.of(nobody, os.open("/dev/null", os.O_RDONLY)):
                    raise AssertionError("is in a namespace that is none")
            except OSError as error:
                assert error.errno == errno.EINVAL
            assert namespaceOf(os.getpid(), "net") == inode
            assert os.geteuid() == 0

        inChild(probe)


class NamedFileTests(SynchronousTestCase):
    """Files that options name."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.before = openDescriptors()
        self.rights = Rights()
        self.caller = Caller.of(os.getpid())

    def tearDown(self) -> None:
        os.close(self.rights._network)
        self.assertEqual(openDescriptors(), self.before)

    def file(self, name: str, data: bytes = b"data") -> bytes:
        path = self.directory / name
        path.write_bytes(data)
        return os.fsencode(path)

    def read(self, path: bytes, directories: bool = False, caller: Caller | None = None) -> bytes:
        return readNamedFile(self.rights, caller or self.caller, path, directories)

    def refuses(self, number: int, path: bytes, directories: bool = False, caller: Caller | None = None) -> None:
        self.assertEqual(self.assertRaises(OSError, self.read, path, directories, caller).errno, number)

    def test_file(self) -> None:
        self.assertEqual(self.read(self.file("a")), b"data")

    def test_relative(self) -> None:
        """From the program's working directory."""
        path = self.file("relative")
        here = os.path.relpath(path, os.fsencode(os.getcwd()))
        self.assertEqual(self.read(here), b"data")
        self.assertEqual(self.read(b"./" + here), b"data")

    def test_badPaths(self) -> None:
        self.refuses(errno.EINVAL, b"")
        self.refuses(errno.EINVAL, b"a\0b")
        self.refuses(errno.ENOENT, os.fsencode(self.directory / "none"))
        self.refuses(errno.ENOTDIR, self.file("file") + b"/x")
        self.refuses(errno.ENAMETOOLONG, b"/" + b"x" * 300)
        self.refuses(errno.ENAMETOOLONG, b"/x" * 3000)

    def test_loop(self) -> None:
        (self.directory / "loop").symlink_to("loop")
        self.refuses(errno.ELOOP, os.fsencode(self.directory / "loop"))

    def test_link(self) -> None:
        self.file("target")
        (self.directory / "link").symlink_to("target")
        self.assertEqual(self.read(os.fsencode(self.directory / "link")), b"data")

    def test_size(self) -> None:
        self.assertEqual(len(self.read(self.file("most", bytes(MAXIMUM_FILE)))), MAXIMUM_FILE)
        self.refuses(errno.EFBIG, self.file("more", bytes(MAXIMUM_FILE + 1)))

    def test_endless(self) -> None:
        """What tells no size is bounded all the same."""
        self.assertGreater(len(self.read(b"/proc/self/status")), 100)

    def test_kinds(self) -> None:
        """Nothing but regular files, and no waiting for anybody."""
        fifo = self.directory / "fifo"
        os.mkfifo(fifo)
        self.refuses(errno.EINVAL, os.fsencode(fifo))
        self.refuses(errno.EINVAL, b"/dev/zero")
        path = str(self.directory / "s")
        here = os.getcwd()
        os.chdir(self.directory)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind("s")
                self.refuses(errno.ENXIO, os.fsencode(path))
        finally:
            os.chdir(here)

    def test_directory(self) -> None:
        path = os.fsencode(self.directory)
        self.refuses(errno.EISDIR, path)
        for name, data in (("b.pem", b"B"), ("a.crt", b"A"), ("c.0", b"C"), ("d.cer", b"D"), ("x.txt", b"X"), ("pem", b"Y")):
            self.file(name, data)
        (self.directory / "sub.pem").mkdir()
        os.mkfifo(self.directory / "fifo.pem")
        self.assertEqual(self.read(path, True), b"A\nB\nC\nD\n")

    def test_directoryBounds(self) -> None:
        self.file("a.pem", bytes(MAXIMUM_FILE // 2))
        self.file("b.pem", bytes(MAXIMUM_FILE // 2 + 10))
        self.refuses(errno.EFBIG, os.fsencode(self.directory), True)
        many = self.directory / "many"
        many.mkdir()
        for number in range(MAXIMUM_ENTRIES + 1):
            (many / str(number)).touch()
        self.refuses(errno.EFBIG, os.fsencode(many), True)

    def inProgram(self, before: Callable[[], object], check: Callable[[Caller], None]) -> None:
        """Look at a process of its own, which has done something first."""

        def probe() -> None:
            ready, told = os.pipe()
            wait, end = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(end)
                try:
                    before()
                    os.write(told, b"x")
                finally:
                    os.read(wait, 1)
                    os._exit(0)
            os.close(told)
            try:
                if not os.read(ready, 1):
                    raise OSError(errno.EPERM, "the program could not do its part")
                check(Caller.of(child))
            finally:
                os.close(end)
                os.waitpid(child, 0)

        inChild(probe)

    def test_ownDescriptors(self) -> None:
        """/proc/self is the program's, not the supervisor's."""
        mine = os.open(self.file("mine", b"the supervisor's"), os.O_RDONLY)
        theirs = self.file("theirs", b"the program's")

        def replaceIt() -> None:
            os.dup2(os.open(theirs, os.O_RDONLY), mine)
            os.dup2(mine, 0)

        def check(caller: Caller) -> None:
            for path in (b"/proc/self/fd/%d", b"/proc/thread-self/fd/%d", b"/dev/fd/%d"):
                assert self.read(path % mine, caller=caller) == b"the program's", path
            assert self.read(b"/dev/stdin", caller=caller) == b"the program's"

        try:
            self.inProgram(replaceIt, check)
        finally:
            os.close(mine)

    def test_otherDirectory(self) -> None:
        self.file("inside")

        def check(caller: Caller) -> None:
            assert self.read(b"inside", caller=caller) == b"data"

        self.inProgram(lambda: os.chdir(self.directory), check)

    def refusesIn(self, caller: Caller, number: int, path: bytes) -> None:
        try:
            self.read(path, caller=caller)
        except OSError as error:
            assert error.errno == number, error
        else:
            raise AssertionError(f"{path!r} was read")

    def test_chroot(self) -> None:
        """A program in another root names files there, and gets at no others."""
        needRoot()
        self.file("inside", b"inside")
        outside = self.directory.parent / (self.directory.name + "-outside")
        outside.write_bytes(b"outside")
        (self.directory / "etc").mkdir()
        (self.directory / "absolute").symlink_to("/inside")
        (self.directory / "escape").symlink_to("../../../../../../../../etc/passwd")

        def move() -> None:
            os.chroot(self.directory)
            os.chdir("/etc")

        def check(caller: Caller) -> None:
            assert self.read(b"/inside", caller=caller) == b"inside"
            assert self.read(b"/absolute", caller=caller) == b"inside"
            assert self.read(b"/../inside", caller=caller) == b"inside"
            self.refusesIn(caller, errno.ENOENT, b"/escape")
            self.refusesIn(caller, errno.ENOENT, b"/etc/passwd")
            self.refusesIn(caller, errno.ENOENT, b"/../" + os.fsencode(outside.name))
            self.refusesIn(caller, errno.EACCES, b"../inside")

        self.inProgram(move, check)

    def test_mountNamespace(self) -> None:
        """A program with mounts of its own names files there."""
        needRoot()
        place = self.directory / "place"
        place.mkdir()
        (place / "file").write_bytes(b"below")

        def mount() -> None:
            import ctypes

            libc = ctypes.CDLL(None, use_errno=True)
            linux.unshare(CLONE_NEWNS)
            if libc.mount(b"none", b"/", None, 0x44000, None) or libc.mount(b"t", os.fsencode(place), b"tmpfs", 0, None):
                raise OSError(ctypes.get_errno(), "mount")
            (place / "file").write_bytes(b"above")

        def check(caller: Caller) -> None:
            assert self.read(os.fsencode(place / "file"), caller=caller) == b"above"

        self.inProgram(mount, check)
        self.assertEqual(self.read(os.fsencode(place / "file")), b"below")

    def test_rights(self) -> None:
        """Root's supervisor reads nothing that the user may not read."""
        needRoot()
        secret = self.file("secret")
        os.chmod(secret, 0o600)
        readable = Path("/etc/passwd")

        def drop() -> None:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

        def check(caller: Caller) -> None:
            self.refusesIn(caller, errno.EACCES, secret)
            self.refusesIn(caller, errno.EACCES, b"/proc/1/environ")
            assert self.read(os.fsencode(readable), caller=caller) == readable.read_bytes()

        self.inProgram(drop, check)
