# SPDX-License-Identifier: MIT
"""
Which of the three ways of interception this process can use, found out by trying.

Each probe does the real thing in a throw-away child process: rights come from so many places (capabilities, Yama, AppArmor,
a container's seccomp profile, sysctls) that asking for them proves nothing.  The children are forked: call the probes from
a process with one thread.  No Twisted here: C{ssa run} starts with this.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Final

from ssa.intercept.launchcalls import forbidNewPrivileges
from ssa.intercept.linux import CLONE_NEWNET, CLONE_NEWUSER, getDescriptor, installFilter, unshare

PROBE_SECONDS: Final = 5.0
"""How long a probe may take."""

_NOTIF_ADDFD: Final = 0x40182103  # SECCOMP_IOCTL_NOTIF_ADDFD
_ADDFD_SEND: Final = 2
_TCP_REPAIR: Final = 19
_SO_ATTACH_FILTER: Final = 26
_SO_LOCK_FILTER: Final = 44
_SO_MARK: Final = 36
_ALLOW: Final = 0x7FFF0000
_RETURN: Final = 0x06  # BPF_RET | BPF_K


class CannotIntercept(Exception):
    """
    C{ssa run} cannot work here.  The text is one line for a person: cause and remedy.
    """


class Way(enum.Enum):
    """
    How the program's sockets are kept apart from the network (the documentation's page on the supervisor explains them).
    """

    ROOT = "root"
    """Private network namespaces, made with the rights of root."""

    USER_NAMESPACE = "user-namespace"
    """Private network namespaces, made by an ordinary user inside a user namespace."""

    LOOPBACK = "loopback"
    """No namespace: sockets are held by a full listen queue on the loopback interface."""


class ProbeFailed(Exception):
    """
    What a probe tried is not possible.

    @ivar errno: the kernel's answer; 0 where the probe did not answer at all.
    @ivar step: what was tried.
    """

    def __init__(self, number: int, step: str) -> None:
        self.errno = number
        self.step = step
        super().__init__(f"{step}: {os.strerror(number)}" if number else step)


def inChild(probe: Callable[[], None], seconds: float = PROBE_SECONDS) -> None:
    """
    Call a function in a forked child.

    @param probe: raises C{OSError} (its third argument or the file name says at which step) for "not possible".
    @param seconds: the child is killed after this time.
    @raise ProbeFailed: with the errno of the child's C{OSError}; 0 if it ended in any other way.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _answer(probe, writer)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], seconds)
        answer = os.read(reader, 512) if ready else b""
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer == b"0 ":
        return
    number, _, step = answer.decode(errors="replace").partition(" ")
    raise ProbeFailed(int(number or 0), step or "the probe did not answer")


def _answer(probe: Callable[[], None], writer: int) -> None:
    """The child's part: never returns."""
    answer = "0 the probe failed in an unexpected way"
    try:
        probe()
        answer = "0 "
    except OSError as failure:
        answer = f"{failure.errno or 0} {failure.filename or failure.strerror or failure}"
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        with contextlib.suppress(OSError):
            os.write(writer, answer.encode(errors="replace")[:512])
        os._exit(0)


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """Name what is being tried in an C{OSError} that it raises."""
    try:
        yield
    except OSError as failure:
        raise OSError(failure.errno, failure.strerror, name) from failure


def _returning(value: int) -> bytes:
    """A classic BPF program of one instruction."""
    return struct.pack("=HBBI", _RETURN, 0, 0, value)


def installNotifyFilter(code: bytes) -> int:
    """
    Install a notifying filter in this process; there is no way back.

    Who has no CAP_SYS_ADMIN must give up the rights of set-user-ID programs for it (PR_SET_NO_NEW_PRIVS, seccomp(2)).

    @param code: an array of C{struct sock_filter}.
    @return: the notify descriptor.
    @raise OSError: as seccomp(2); EBUSY: a notifier is there already.
    """
    try:
        return installFilter(code)
    except OSError as failure:
        if failure.errno != errno.EACCES:
            raise
    forbidNewPrivileges()
    return installFilter(code)


def tryNotification() -> None:
    """
    Install a notifying filter and ask for SECCOMP_ADDFD_FLAG_SEND (Linux 5.14).

    @raise OSError: EBUSY, ENOSYS, EINVAL, EPERM…
    """
    with _step("seccomp user notification"):
        listener = installNotifyFilter(_returning(_ALLOW))
    request = struct.pack("=QIIII", 1, _ADDFD_SEND, 0, 0, 0)
    try:
        fcntl.ioctl(listener, _NOTIF_ADDFD, request)
    except OSError as failure:
        if failure.errno != errno.ENOENT:  # ENOENT: no such notification, so the request as such is known
            raise OSError(failure.errno, failure.strerror, "SECCOMP_ADDFD_FLAG_SEND") from failure


def tryGetDescriptor() -> None:
    """
    Copy a descriptor out of a child process.

    @raise OSError: EPERM: no ptrace rights; ENOSYS: Linux before 5.6.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        with _step("pidfd_getfd"):
            pidfd = os.pidfd_open(child)
            os.close(getDescriptor(pidfd, reader))
            os.close(pidfd)
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def tryReadMemory() -> None:
    """
    Read the memory of a child process, as arguments of a stopped call are read.

    @raise OSError: EPERM, EACCES: no ptrace rights.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        with _step("reading another process's memory"), open(f"/proc/{child}/mem", "rb"):
            pass
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def tryPrivateNetwork() -> None:
    """
    Make a private network namespace and do in it what the interceptor needs: a mark, TCP_REPAIR, a locked socket filter.

    @raise OSError: what is not permitted or not there.
    """
    with _step("unshare(CLONE_NEWNET)"):
        unshare(CLONE_NEWNET)
    _tryNetworkRights()


def tryUserNamespace() -> None:
    """
    The same in a new user namespace.

    @raise OSError: what is not permitted or not there.
    """
    with _step("unshare(CLONE_NEWUSER | CLONE_NEWNET)"):
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
    _tryNetworkRights()


def _tryNetworkRights() -> None:
    code = _returning(0xFFFFFFFF)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        with _step("SO_MARK in a private network namespace"):
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, 1)
        with _step("TCP_REPAIR in a private network namespace"):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
        buffer = ctypes.create_string_buffer(code, len(code))
        with _step("SO_ATTACH_FILTER"):
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(buffer)))
        with _step("SO_LOCK_FILTER"):
            sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)


def tryLoopback() -> None:
    """
    A listener on the loopback interface whose queue is full drops SYNs: try that a connect to it stays pending.

    @raise OSError: ECONNREFUSED, EADDRNOTAVAIL… there is no usable loopback interface.
    """
    with _step("a full listener on the loopback interface"), contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        listener, plug, held = sockets
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        plug.connect(listener.getsockname())
        held.setblocking(False)
        held.connect_ex(listener.getsockname())
        ready = select.select([], [held], [], 0.01)[1]
        if ready:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def checkCommonNeeds() -> None:
    """
    What every way needs: an architecture that is known, seccomp notifications, and ptrace rights over one's own children.

    @raise CannotIntercept: with cause and remedy.
    """
    if platform.machine() not in ("x86_64", "aarch64"):
        raise CannotIntercept(f"`ssa run` knows no system call table for {platform.machine()}: use the kernel module")
    try:
        inChild(tryNotification)
    except ProbeFailed as failure:
        raise CannotIntercept(_explainNotification(failure)) from failure
    try:
        inChild(tryGetDescriptor)
        inChild(tryReadMemory)
    except ProbeFailed as failure:
        raise CannotIntercept(_explainPtrace(failure)) from failure


def _explainNotification(failure: ProbeFailed) -> str:
    if failure.errno == errno.EBUSY:
        return (
            "a seccomp notifier watches this process already, and the kernel allows one for each process: "
            "not inside another `ssa run`, nor inside a container or sandbox that uses one"
        )
    if failure.errno in (errno.ENOSYS, errno.EINVAL):
        return (
            f"{failure}: the kernel ({platform.release()}) is too old or without CONFIG_SECCOMP_FILTER; "
            "Linux 5.14 or later is needed"
        )
    return f"{failure}: the container's or sandbox's seccomp profile forbids seccomp(2); allow it there"


def _explainPtrace(failure: ProbeFailed) -> str:
    if failure.errno == errno.ENOSYS:
        return f"{failure}: the kernel ({platform.release()}) is too old; Linux 5.14 or later is needed"
    scope = yamaScope()
    if scope is not None and scope >= 2:
        return (
            f"{failure}: no process may look into another (kernel.yama.ptrace_scope is {scope}); "
            "`sysctl kernel.yama.ptrace_scope=1`, or run as root" + (" after a reboot" if scope == 3 else "")
        )
    return (
        f"{failure}: no right to look into one's own child processes, as in a container with the default profile; "
        "start the container with `--cap-add SYS_PTRACE`"
    )


def yamaScope() -> int | None:
    """kernel.yama.ptrace_scope; C{None} where the kernel has no Yama."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as setting:
            return int(setting.read())
    except (OSError, ValueError):
        return None


_TRIALS: Final = {
    Way.ROOT: tryPrivateNetwork,
    Way.USER_NAMESPACE: tryUserNamespace,
    Way.LOOPBACK: tryLoopback,
}


def tryWay(way: Way) -> None:
    """
    Try what a way needs beyond the common needs.

    @raise ProbeFailed: it is not possible here.
    """
    inChild(_TRIALS[way])


def chooseWay(wanted: str = "auto") -> Way:
    """
    The best way that works for this process.

    @param wanted: C{"auto"}, or a way's value to insist on it.
    @raise CannotIntercept: none does, or not that one: the text names cause and remedy.
    """
    checkCommonNeeds()
    candidates = list(Way) if wanted == "auto" else [Way(wanted)]
    failures: list[str] = []
    for way in candidates:
        try:
            tryWay(way)
        except ProbeFailed as failure:
            failures.append(f"{way.value}: {failure}")
        else:
            return way
    raise CannotIntercept(f"no way to intercept sockets works here ({'; '.join(failures)}); `ssa doctor` says more")
