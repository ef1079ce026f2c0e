# SPDX-License-Identifier: MIT
"""
The rules that hold for every option of the level IPPROTO_TLS: when it may be set and got, lengths, buffers, sharing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ssa.api import IPPROTO_TLS, MAXIMUM_OPTION_SIZE, UPGRADE_FORMAT, Option
from ssa.test.conformance.case import LIBC, Thread, TLSCase, number, text, value
from ssa.test.conformance.peers import NAME, clientContext, credential, echo, serverContext
from ssa.test.pki import testCA

UNKNOWN: Final = (0, 1, 84, 99, 101, 114, 121, 123, 139, 144, 255, 70000, -1)
"""Numbers of no option."""

CONNECTED_ONLY: Final = (
    Option.TLS_PEER_IDENTITY,
    Option.TLS_PEER_CERTIFICATE_CHAIN,
    Option.TLS_CHOSEN_CIPHER,
    Option.TLS_VERSION_CONN,
    Option.TLS_CHANNEL_BINDING,
    Option.TLS_DATA_PATH,
    Option.TLS_KEY_EXCHANGE,
    Option.TLS_RESUMED_SESSION,
)
"""Got from a connection."""

GET_ONLY: Final = (*CONNECTED_ONLY, Option.TLS_ID, Option.TLS_ERROR)

STRINGS: Final = (
    Option.TLS_REMOTE_HOSTNAME,
    Option.TLS_HOSTNAME,
    Option.TLS_CERTIFICATE_CHAIN,
    Option.TLS_ALPN,
    Option.TLS_ERROR,
)
"""Got at any time; the value is a string, at first an empty one."""

INTEGERS: Final = {
    Option.TLS_SESSION_TTL: 600,
    Option.TLS_REQUEST_PEER_AUTH: 1,
    Option.TLS_REVOCATION_CHECKS: 0,
    Option.TLS_OCSP_STAPLED_CHECKS: 1,
    Option.TLS_OCSP_CHECKS: 1,
    Option.TLS_CRL_CHECKS: 1,
    Option.TLS_CACHED_REV_CHECKS: 1,
    Option.TLS_SESSION_REUSE: 1,
    Option.TLS_VERSION_MIN: 0x0303,
    Option.TLS_VERSION_MAX: 0x0304,
    Option.TLS_SERVER_OCSP_STAPLING: 0,
}
"""Set on a new socket and got at any time, with good values."""

ANY_TIME: Final = (*STRINGS, *INTEGERS, Option.TLS_ID, Option.TLS_TRUSTED_CIPHERS, Option.TLS_CONTEXT)
"""Got at any time."""

SET_ONLY: Final = (
    Option.TLS_TRUSTED_PEER_CERTIFICATES,
    Option.TLS_DISABLE_CIPHER,
    Option.TLS_ENABLE_CIPHER,
    Option.TLS_UPGRADE,
)

CONNECTED_STRINGS: Final = (Option.TLS_PEER_IDENTITY, Option.TLS_CHOSEN_CIPHER, Option.TLS_DATA_PATH)


def settable() -> dict[Option, bytes]:
    """The options that may be set on a new socket, with good values."""
    return {
        Option.TLS_REMOTE_HOSTNAME: NAME.encode(),
        Option.TLS_HOSTNAME: NAME.encode(),
        Option.TLS_TRUSTED_PEER_CERTIFICATES: testCA().pem,
        Option.TLS_CERTIFICATE_CHAIN: credential().chainPEM,
        Option.TLS_PRIVATE_KEY: credential().keyPEM,
        Option.TLS_ALPN: b"h2,http/1.1",
        Option.TLS_TRUSTED_CIPHERS: b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
        Option.TLS_DISABLE_CIPHER: b"TLS_AES_256_GCM_SHA384",
        Option.TLS_ENABLE_CIPHER: b"TLS_AES_256_GCM_SHA384",
        **{option: struct.pack("=i", number) for option, number in INTEGERS.items()},
    }


def rawSet(sock: socket.socket, option: int, data: bytes | ctypes.c_void_p | None, size: int | None = None) -> int:
    """setsockopt(2) itself, without the interpreter's lock; 0 or the errno."""
    length = size if size is not None else len(data) if isinstance(data, bytes) else 0
    ctypes.set_errno(0)
    failed = LIBC.setsockopt(sock.fileno(), IPPROTO_TLS, int(option), data, ctypes.c_int(length))
    return ctypes.get_errno() if failed else 0


def rawGet(sock: socket.socket, option: int, size: int) -> tuple[int, int, bytes]:
    """
    getsockopt(2) itself.

    @param size: what C{*optlen} says; the buffer is larger, and full of 0xAA.
    @return: 0 or the errno; C{*optlen} after the call; the whole buffer.
    """
    space = max(size, 0) + 64
    buffer = ctypes.create_string_buffer(b"\xaa" * space, space)
    length = ctypes.c_int(size)
    ctypes.set_errno(0)
    failed = LIBC.getsockopt(sock.fileno(), IPPROTO_TLS, int(option), buffer, ctypes.byref(length))
    return (ctypes.get_errno() if failed else 0), length.value, buffer.raw


class OptionCase(TLSCase):
    """A case that calls setsockopt(2) and getsockopt(2) themselves."""

    def sets(self, expected: int, sock: socket.socket, option: int, data: bytes | None, size: int | None = None) -> None:
        """Say what setting an option results in, 0 or an errno."""
        self.assertEqual(named(rawSet(sock, option, data, size)), named(expected), f"set {option!r} to {data!r:.60}")

    def gets(self, expected: int, sock: socket.socket, option: int) -> None:
        """Say what getting an option results in, 0 or an errno; nothing is written with an error."""
        error, _, buffer = rawGet(sock, option, 60000)
        self.assertEqual(named(error), named(expected), f"get {option!r}")
        if error:
            self.assertEqual(buffer.strip(b"\xaa"), b"")

    @contextmanager
    def phases(self) -> Iterator[list[tuple[str, socket.socket]]]:
        """Sockets that are no longer new, nor connected."""
        silent = self.plainListener()
        pending = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        self.assertEqual(pending.connect_ex(silent.getsockname()), errno.EINPROGRESS)
        yield [("listening", self.listener()), ("connecting", pending)]


def named(error: int) -> str:
    """An errno by its name."""
    return errno.errorcode.get(error, str(error)) if error else "success"


class When(OptionCase):
    """Who may be set and got, and when."""

    def test_unknown(self) -> None:
        """Unknown numbers, at every point of a socket's life: ENOPROTOOPT."""
        connected, _ = self.connected()
        for sock in (self.tlsSocket(), connected, self.listener()):
            for option in UNKNOWN:
                with self.subTest(option=option):
                    self.sets(errno.ENOPROTOOPT, sock, option, struct.pack("=i", 1))
                    self.gets(errno.ENOPROTOOPT, sock, option)

    def test_complete(self) -> None:
        """Every option of the socket API is in one of the lists."""
        listed = {*GET_ONLY, *settable(), Option.TLS_UPGRADE, Option.TLS_CONTEXT}
        self.assertEqual(listed, set(Option))

    def test_getOnly(self) -> None:
        """What can only be got cannot be set: ENOPROTOOPT, before and after connect."""
        connected, _ = self.connected()
        for sock in (self.tlsSocket(), connected):
            for option in GET_ONLY:
                with self.subTest(option=option):
                    self.sets(errno.ENOPROTOOPT, sock, option, struct.pack("=Q", 1))

    def test_setOnly(self) -> None:
        """What can only be set cannot be got: ENOPROTOOPT, a private key EACCES, set or not."""
        connected, _ = self.connected()
        for sock in (self.tlsSocket(), self.clientSocket(), connected, self.listener()):
            for option in SET_ONLY:
                self.gets(errno.ENOPROTOOPT, sock, option)
            self.gets(errno.EACCES, sock, Option.TLS_PRIVATE_KEY)

    def test_tooLate(self) -> None:
        """Options for new sockets: EISCONN from connect or listen on, also on accepted sockets; nothing changes."""
        client, server = self.bothEnds()
        with self.phases() as phases:
            for title, sock in [*phases, ("connected", client), ("accepted", server)]:
                context = {Option.TLS_CONTEXT: value(self.tlsSocket(), Option.TLS_ID)}
                for option, good in {**settable(), **context}.items():
                    with self.subTest(socket=title, option=option):
                        self.sets(errno.EISCONN, sock, option, good)
        client.sendall(b"x")
        self.assertEqual(server.recv(1), b"x")

    def test_tooEarly(self) -> None:
        """What only a connection has: ENOTCONN on new, connecting and listening sockets, and after a failed connect."""
        refused = self.clientSocket()
        closed = self.plainListener()
        address = closed.getsockname()
        closed.close()
        self.fails(errno.ECONNREFUSED, refused.connect, address)
        with self.phases() as phases:
            for title, sock in [*phases, ("new", self.tlsSocket()), ("refused", refused)]:
                for option in CONNECTED_ONLY:
                    with self.subTest(socket=title, option=option):
                        self.gets(errno.ENOTCONN, sock, option)

    def test_anyTime(self) -> None:
        """What can be got at any time."""
        client, server = self.bothEnds()
        with self.phases() as phases:
            for title, sock in [*phases, ("new", self.tlsSocket()), ("connected", client), ("accepted", server)]:
                for option in ANY_TIME:
                    with self.subTest(socket=title, option=option):
                        self.gets(0, sock, option)

    def test_protocol(self) -> None:
        """SO_PROTOCOL says 205."""
        client, server = self.bothEnds()
        with self.phases() as phases:
            for title, sock in [*phases, ("new", self.tlsSocket()), ("connected", client), ("accepted", server)]:
                with self.subTest(socket=title):
                    self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), IPPROTO_TLS)


class Lengths(OptionCase):
    """Lengths and pointers."""

    def exact(self, sock: socket.socket, option: Option) -> bytes:
        """An option's value, got with a buffer that fits exactly; shorter ones are refused."""
        whole = value(sock, option)
        size = len(whole)
        self.assertEqual(rawGet(sock, option, size), (0, size, whole + b"\xaa" * 64))
        for room in {0, 1, size // 2, size - 1} - {size}:
            with self.subTest(option=option, room=room):
                error, needed, buffer = rawGet(sock, option, room)
                self.assertEqual((named(error), needed), ("ERANGE", size))
                self.assertEqual(buffer.strip(b"\xaa"), b"", "something was written")
        length = ctypes.c_int(0)
        ctypes.set_errno(0)
        self.assertEqual(LIBC.getsockopt(sock.fileno(), IPPROTO_TLS, int(option), None, ctypes.byref(length)), -1)
        self.assertEqual((named(ctypes.get_errno()), length.value), ("ERANGE", size), "the length alone")
        return whole

    def test_strings(self) -> None:
        """Strings end in a NUL, which counts; a buffer that is too short: ERANGE and the length needed."""
        sock = self.tlsSocket()
        for option in STRINGS:
            self.assertEqual(self.exact(sock, option), b"\0")
        for option, good in settable().items():
            sock.setsockopt(IPPROTO_TLS, option, good)
        for option in (Option.TLS_REMOTE_HOSTNAME, Option.TLS_CERTIFICATE_CHAIN, Option.TLS_ALPN):
            self.assertEqual(self.exact(sock, option), settable()[option] + b"\0")
        self.sets(errno.EINVAL, sock, Option.TLS_REMOTE_HOSTNAME, b"")
        self.assertGreater(len(self.exact(sock, Option.TLS_ERROR)), 1)

    def test_connected(self) -> None:
        """The same for what only connections have, and for numbers."""
        sock, _ = self.connected(serverContext(version=0x0304))
        for option in CONNECTED_STRINGS:
            whole = self.exact(sock, option)
            self.assertEqual(whole.index(b"\0"), len(whole) - 1)
        self.assertTrue(self.exact(sock, Option.TLS_PEER_CERTIFICATE_CHAIN).endswith(b"-----END CERTIFICATE-----\n\0"))
        for option, size in (
            (Option.TLS_ID, 8),
            (Option.TLS_CONTEXT, 8),
            *((option, 4) for option in INTEGERS),
            (Option.TLS_RESUMED_SESSION, 4),
            (Option.TLS_VERSION_CONN, 4),
            (Option.TLS_CHANNEL_BINDING, 32),
        ):
            self.assertEqual(len(self.exact(sock, option)), size)

    def test_longString(self) -> None:
        """A value of more than a page comes whole."""
        sock = self.tlsSocket()
        chain = credential().chainPEM + testCA().pem * 8
        sock.setsockopt(IPPROTO_TLS, Option.TLS_CERTIFICATE_CHAIN, chain)
        self.assertEqual(self.exact(sock, Option.TLS_CERTIFICATE_CHAIN), chain + b"\0")

    def test_tooLong(self) -> None:
        """More than 64 KiB: EMSGSIZE; the value before stays."""
        sock = self.clientSocket()
        for option, good in settable().items():
            for size in (MAXIMUM_OPTION_SIZE + 1, 1 << 20):
                with self.subTest(option=option, size=size):
                    self.sets(errno.EMSGSIZE, sock, option, good + b"\n" * (size - len(good)))
        self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)
        sock.connect(self.server(echo).address)

    def test_longest(self) -> None:
        """64 KiB exactly are allowed."""
        sock = self.clientSocket()
        pem = testCA().pem
        self.sets(0, sock, Option.TLS_TRUSTED_PEER_CERTIFICATES, b"\n" * (MAXIMUM_OPTION_SIZE - len(pem)) + pem)
        sock.connect(self.server(echo).address)

    def test_negative(self) -> None:
        """A negative length: EINVAL, for set and for get."""
        sock = self.tlsSocket()
        for option, good in settable().items():
            for size in (-1, -(1 << 31)):
                with self.subTest(option=option, size=size):
                    self.sets(errno.EINVAL, sock, option, good, size)
        for option in ANY_TIME:
            with self.subTest(option=option):
                error, length, buffer = rawGet(sock, option, -1)
                self.assertEqual((named(error), length), ("EINVAL", -1))
                self.assertEqual(buffer.strip(b"\xaa"), b"")

    def test_faults(self) -> None:
        """Bad pointers: EFAULT; the socket works on."""
        sock = self.clientSocket()
        for option, good in settable().items():
            for pointer in (None, ctypes.c_void_p(1)):
                with self.subTest(option=option, pointer=pointer):
                    self.assertEqual(named(rawSet(sock, option, pointer, len(good))), "EFAULT")
        for option in ANY_TIME:
            for buffer, size in ((None, 60000), (ctypes.c_void_p(1), 60000)):
                length = ctypes.c_int(size)
                ctypes.set_errno(0)
                result = LIBC.getsockopt(sock.fileno(), IPPROTO_TLS, int(option), buffer, ctypes.byref(length))
                self.assertEqual((result, named(ctypes.get_errno())), (-1, "EFAULT"), option)
            for pointer in (None, ctypes.c_void_p(1)):
                space = ctypes.create_string_buffer(1000)
                ctypes.set_errno(0)
                result = LIBC.getsockopt(sock.fileno(), IPPROTO_TLS, int(option), space, pointer)
                self.assertEqual((result, named(ctypes.get_errno())), (-1, "EFAULT"), option)
        sock.connect(self.server(echo).address)

    def test_empty(self) -> None:
        """A value of no bytes, for what needs one: EINVAL."""
        sock = self.tlsSocket()
        for option in settable():
            if option is not Option.TLS_ALPN:
                with self.subTest(option=option):
                    self.sets(errno.EINVAL, sock, option, b"", 0)
                    self.sets(errno.EINVAL, sock, option, b"\0", 1)


    def test_integers(self) -> None:
        """An int has four bytes, an id eight: else EINVAL."""
        sock = self.tlsSocket()
        for option, good in INTEGERS.items():
            for size in (1, 2, 3, 5, 8, 64):
                with self.subTest(option=option, size=size):
                    self.sets(errno.EINVAL, sock, option, struct.pack("=i", good).ljust(size, b"\0")[:size])
        for size in (0, 4, 7, 9, 64):
            self.sets(errno.EINVAL, sock, Option.TLS_CONTEXT, bytes(size))
        self.sets(errno.EMSGSIZE, sock, Option.TLS_CONTEXT, bytes(MAXIMUM_OPTION_SIZE + 1))
        self.assertEqual(named(rawSet(sock, Option.TLS_CONTEXT, None, 8)), "EFAULT")


class Keeping(OptionCase):
    """What becomes of values."""

    def test_failedConnect(self) -> None:
        """Options survive a failed connect, and can be changed after it."""
        sock = self.clientSocket()
        self.certify(sock)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        closed = self.plainListener()
        address = closed.getsockname()
        closed.close()
        self.fails(errno.ECONNREFUSED, sock.connect, address)
        self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)
        self.assertEqual(text(sock, Option.TLS_ALPN), "h2")
        self.assertEqual(text(sock, Option.TLS_CERTIFICATE_CHAIN).encode(), credential().chainPEM)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h3,h2")
        sock.connect(self.server(echo, serverContext(alpn=(b"h2",))).address)
        self.assertEqual(text(sock, Option.TLS_ALPN), "h2")
        self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)

    def test_refusedValue(self) -> None:
        """A value that is refused leaves the one before."""
        sock = self.clientSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        for option in (Option.TLS_REMOTE_HOSTNAME, Option.TLS_ALPN):
            self.sets(errno.EINVAL, sock, option, b"x\0y")
        self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)
        self.assertEqual(text(sock, Option.TLS_ALPN), "h2")

    def test_inherited(self) -> None:
        """Accepted sockets have their listener's options, and an id of their own."""
        listener = self.tlsSocket()
        for option, good in settable().items():
            listener.setsockopt(IPPROTO_TLS, option, good)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        context = clientContext()
        context.set_alpn_protos([b"http/1.1"])
        own = value(listener, Option.TLS_ID)
        peers = [self.peerTo(listener.getsockname(), context=context) for _ in range(2)]
        accepted = [self.keep(listener.accept()[0]) for _ in peers]
        for sock in accepted:
            self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)
            self.assertEqual(text(sock, Option.TLS_CERTIFICATE_CHAIN).encode(), credential().chainPEM)
            self.assertEqual(text(sock, Option.TLS_ALPN), "http/1.1")
            self.assertEqual(text(sock, Option.TLS_TRUSTED_CIPHERS).encode(), settable()[Option.TLS_TRUSTED_CIPHERS])
            self.assertEqual({option: number(sock, option) for option in INTEGERS}, INTEGERS)
            self.assertEqual(value(sock, Option.TLS_CONTEXT), own)
            self.gets(errno.EACCES, sock, Option.TLS_PRIVATE_KEY)
        self.assertEqual(len({value(sock, Option.TLS_ID) for sock in (listener, *accepted)}), 3)
        self.assertEqual(text(listener, Option.TLS_ALPN), "h2,http/1.1")

    def test_threads(self) -> None:
        """Threads set and get options of the same socket and of others."""
        shared = self.tlsSocket()

        def one(index: int) -> None:
            own = self.tlsSocket()
            for turn in range(10):
                name = f"host{index}-{turn}.example"
                self.assertEqual(rawSet(own, Option.TLS_REMOTE_HOSTNAME, name.encode()), 0)
                self.assertEqual(rawSet(shared, Option.TLS_REMOTE_HOSTNAME, name.encode()), 0)
                self.assertEqual(text(own, Option.TLS_REMOTE_HOSTNAME), name)
                self.assertRegex(text(shared, Option.TLS_REMOTE_HOSTNAME), r"^host\d-\d\.example$")

        for thread in [Thread(lambda index=index: one(index)) for index in range(6)]:  # type: ignore[misc]
            thread.result()

    def test_processes(self) -> None:
        """What a child sets on an inherited socket is set for both."""
        sock = self.tlsSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        identity = value(sock, Option.TLS_ID)

        def child() -> None:
            self.assertEqual(text(sock, Option.TLS_ALPN), "h2")
            self.assertEqual(value(sock, Option.TLS_ID), identity)
            sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
            sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())

        self.reap(self.child(child))
        self.assertEqual(text(sock, Option.TLS_REMOTE_HOSTNAME), NAME)
        sock.connect(self.server(echo).address)
        self.assertEqual(number(sock, Option.TLS_VERSION_CONN), 0x0304)
        self.reap(self.child(lambda: self.sets(errno.EISCONN, sock, Option.TLS_ALPN, b"h2")))

    def test_duplicates(self) -> None:
        """A descriptor's copy is the same socket."""
        sock = self.clientSocket()
        copy = self.keep(sock.dup())
        copy.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        self.assertEqual(text(sock, Option.TLS_ALPN), "h2")
        self.assertEqual(value(sock, Option.TLS_ID), value(copy, Option.TLS_ID))

    def test_files(self) -> None:
        """A closed descriptor: EBADF; a file's: ENOTSOCK; a TCP socket's own answer is not 0."""
        sock = self.tlsSocket()
        descriptor = os.dup(sock.fileno())
        os.close(descriptor)
        self.assertEqual(LIBC.setsockopt(descriptor, IPPROTO_TLS, int(Option.TLS_ALPN), b"h2", 2), -1)
        self.assertEqual(named(ctypes.get_errno()), "EBADF")
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        self.assertEqual(LIBC.setsockopt(reader, IPPROTO_TLS, int(Option.TLS_ALPN), b"h2", 2), -1)
        self.assertEqual(named(ctypes.get_errno()), "ENOTSOCK")
        self.assertNotEqual(rawSet(self.keep(socket.socket()), Option.TLS_ALPN, b"h2"), 0)

    def test_upgradeStruct(self) -> None:
        """TLS_UPGRADE takes a struct of 8 bytes, and a role 0 or 1: else EINVAL."""
        plain = self.keep(socket.socket())
        sock = self.clientSocket()
        for size in (0, 4, 7, 9, 16):
            self.sets(errno.EINVAL, sock, Option.TLS_UPGRADE, struct.pack("=iiii", plain.fileno(), 0, 0, 0), size)
        for role in (-1, 2, 1 << 30):
            self.sets(errno.EINVAL, sock, Option.TLS_UPGRADE, struct.pack(UPGRADE_FORMAT, plain.fileno(), role))
        self.assertEqual(named(rawSet(sock, Option.TLS_UPGRADE, None, 8)), "EFAULT")
        self.sets(errno.EINVAL, sock, Option.TLS_UPGRADE, bytes(8), -1)
        self.sets(errno.EMSGSIZE, sock, Option.TLS_UPGRADE, bytes(MAXIMUM_OPTION_SIZE + 1))
