# SPDX-License-Identifier: MIT
"""
C{ssa doctor}: what this machine can do for TLS sockets, and what to do about what it cannot.

Each finding is one line: C{ok}, C{no} or C{--} (worth knowing, not needed), what was looked at, and what was found.  Whatever
can be tried is really tried, in throw-away child processes (L{ssa.intercept.way}).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from ssa.intercept.way import (
    CannotIntercept,
    ProbeFailed,
    Way,
    checkCommonNeeds,
    chooseWay,
    inChild,
    tryGetDescriptor,
    tryNotification,
    tryReadMemory,
    tryWay,
    yamaScope,
)

DAEMON_SOCKET: Final = "/run/ssa/daemon.sock"

_SECCOMP_FLAGS: Final = (
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_NEW_LISTENER", 8),
    ("SECCOMP_FILTER_FLAG_TSYNC_ESRCH", 16),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 32),
)
_TCP_ULP: Final = 31
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DESTROY: Final = 21


@dataclass(frozen=True)
class Finding:
    """
    One line of the report.

    @ivar good: C{None}: worth knowing, nothing depends on it.
    @ivar subject: what was looked at.
    @ivar found: what was found, and what to do about it.
    """

    good: bool | None
    subject: str
    found: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "no", None: "--"}[self.good]
        return f"{mark}  {self.subject}: {self.found}"


def _tried(subject: str, probe: Callable[[], None], needed: bool, remedy: str = "") -> Finding:
    """A finding from a probe that either works in a child process or does not."""
    try:
        inChild(probe)
    except ProbeFailed as failure:
        return Finding(False if needed else None, subject, f"{failure}{f'; {remedy}' if remedy else ''}")
    return Finding(True, subject, "works")


def findSystem() -> Iterator[Finding]:
    """The kernel and who is asking."""
    yield Finding(None, "system", f"Linux {platform.release()} {platform.machine()}, user {os.geteuid()}")
    yield Finding(None, "Python", platform.python_version())


def findSeccomp() -> Iterator[Finding]:
    """Seccomp user notification and its features (seccomp(2), seccomp_unotify(2))."""
    yield _tried("seccomp notification with SECCOMP_ADDFD_FLAG_SEND", tryNotification, True, "Linux 5.14 or later is needed")
    known = [name for name, flag in _SECCOMP_FLAGS if _seccompFlagKnown(flag)]
    yield Finding(None, "seccomp flags", ", ".join(known) or "none")


def _seccompFlagKnown(flag: int) -> bool:
    """The kernel looks at the flags before it follows the null pointer: EFAULT means known (seccomp(2))."""

    def probe() -> None:
        from ssa.intercept.launchcalls import forbidNewPrivileges
        from ssa.intercept.linux import architecture

        forbidNewPrivileges()
        libc = ctypes.CDLL(None, use_errno=True)
        number = architecture().numbers["seccomp"]
        flags = flag | (1 if flag == 16 else 8 if flag == 32 else 0)  # those two need another one beside them
        libc.syscall(ctypes.c_long(number), ctypes.c_ulong(1), ctypes.c_ulong(flags), ctypes.c_void_p(0))
        if ctypes.get_errno() != errno.EFAULT:
            raise OSError(ctypes.get_errno(), "seccomp flag")

    try:
        inChild(probe)
    except ProbeFailed:
        return False
    return True


def findPtrace() -> Iterator[Finding]:
    """Rights over one's own child processes."""
    scope = yamaScope()
    yield Finding(None, "Yama ptrace_scope", "no Yama" if scope is None else str(scope))
    remedy = "in a container: --cap-add SYS_PTRACE; with Yama: sysctl kernel.yama.ptrace_scope=1"
    yield _tried("pidfd_getfd", tryGetDescriptor, True, remedy)
    yield _tried("memory of child processes", tryReadMemory, True, remedy)


def findWays() -> Iterator[Finding]:
    """The three ways, each tried."""
    for way in Way:
        try:
            tryWay(way)
        except ProbeFailed as failure:
            yield Finding(None, f"way {way.value}", f"not here: {failure}")
        else:
            yield Finding(True, f"way {way.value}", "works")
    yield _tried(
        "SOCK_DESTROY in a private network", tryDestroy, False, "the kernel has no CONFIG_INET_DIAG_DESTROY; not needed"
    )


def tryDestroy() -> None:
    """
    Whether a socket can be destroyed by a message (sock_diag(7)).

    @raise OSError: EOPNOTSUPP: the kernel was built without it.
    """
    from ssa.intercept.linux import CLONE_NEWNET, CLONE_NEWUSER, unshare

    unshare(CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWUSER | CLONE_NEWNET)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        # struct inet_diag_req_v2 for a connection that does not exist: ENOENT, if the request as such is known
        request = struct.pack("=BBBxI48s", socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF, bytes(48))
        diag.send(struct.pack("=IHHII", 16 + len(request), _SOCK_DESTROY, 5, 1, 0) + request)
        number = -struct.unpack_from("=i", diag.recv(4096), 16)[0]
    if number != errno.ENOENT:
        raise OSError(number, os.strerror(number), "SOCK_DESTROY")


def findDaemon(path: str = DAEMON_SOCKET) -> Finding:
    """Whether the system's daemon answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(2)
        try:
            sock.connect(path)
        except OSError as failure:
            return Finding(None, "daemon", f"none at {path} ({failure.strerror}); `ssa run` starts one of its own")
    return Finding(True, "daemon", f"answers at {path}")


def findModule() -> Finding:
    """Whether the kernel module serves IPPROTO_TLS."""
    from ssa.api import IPPROTO_TLS

    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS).close()
    except OSError as failure:
        if failure.errno == errno.ENETDOWN:
            return Finding(None, "kernel module", "loaded, but no daemon is running: `systemctl start ssa`")
        return Finding(None, "kernel module", "not loaded; programs need `ssa run`")
    return Finding(True, "kernel module", "loaded (or this is running under `ssa run`)")


def findKernelTLS() -> Finding:
    """Whether the kernel can encrypt (kTLS)."""
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client.connect(listener.getsockname())
        try:
            client.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError as failure:
            return Finding(None, "kTLS", f"not available ({failure.strerror}); `modprobe tls` as root may help; not needed")
    return Finding(True, "kTLS", "available")


def findOpenSSL() -> Iterator[Finding]:
    """The TLS library and the trust store that it finds."""
    from OpenSSL import SSL

    version = SSL.OpenSSL_version(SSL.OPENSSL_VERSION)
    yield Finding(None, "OpenSSL", version.decode())
    group = agreedGroup()
    postQuantum = "MLKEM" in group.upper()
    yield Finding(
        True if postQuantum else None,
        "key exchange",
        group + ("" if postQuantum else "; no post-quantum group: OpenSSL 3.5 or later has them"),
    )


def agreedGroup() -> str:
    """
    The key exchange group that two ends with this OpenSSL's defaults agree on, found by a handshake in memory.
    """
    from datetime import datetime, timedelta, timezone

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from OpenSSL import SSL

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_privatekey(key)
    context.use_certificate(certificate)
    ends = (SSL.Connection(context, None), SSL.Connection(SSL.Context(SSL.TLS_METHOD), None))
    ends[0].set_accept_state()
    ends[1].set_connect_state()
    for _ in range(4):
        for end, other in (ends, ends[::-1]):
            with contextlib.suppress(SSL.WantReadError):
                end.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(end.bio_read(65536))
    return ends[1].get_group_name() or "unknown"


def findTrust() -> Finding:
    """The system's trust store."""
    from ssa.errors import SSAError
    from ssa.tls.trust import systemStore

    try:
        path = Path(systemStore())
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        count = sum(file.read_bytes().count(b"-----BEGIN CERTIFICATE-----") for file in files)
    except (SSAError, OSError) as failure:
        return Finding(False, "trust store", str(getattr(failure, "reason", failure)))
    return Finding(count > 0, "trust store", f"{path}, {count} certificates")


def report(output: TextIO) -> int:
    """
    Look at everything and print it.

    @return: 0 if C{ssa run} can work, else 1.
    """
    findings = [*findSystem(), *findSeccomp(), *findPtrace(), *findWays()]
    findings += [findDaemon(), findModule(), findKernelTLS(), *findOpenSSL(), findTrust()]
    for finding in findings:
        print(finding, file=output)
    try:
        checkCommonNeeds()
        way = chooseWay()
    except CannotIntercept as refusal:
        print(f"no  ssa run: {refusal}", file=output)
        return 1
    print(f"ok  ssa run: works, the {way.value} way ({_REASONS[way]})", file=output)
    return 0


_REASONS: Final = {
    Way.ROOT: "this process may make network namespaces",
    Way.USER_NAMESPACE: "no right to make network namespaces, but user namespaces are allowed",
    Way.LOOPBACK: "neither network nor user namespaces are allowed",
}
