# SPDX-License-Identifier: MIT
"""
The table of errnos of a failed connect, row by row, each against a real server that misbehaves that way, by connect(2) and by
TLS_UPGRADE.

L{ROWS} is that table.  Some rows are more than a server: they have a test of their own here.  C{docs/api.rst} shows the same
errnos; the first test compares the two.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.x509 import ocsp
from OpenSSL import SSL, crypto
from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread

from ssa.api import HostnameAddress, InternetAddress, Option, Role
from ssa.errors import SSAError
from ssa.interfaces import Fetched
from ssa.policy.profile import Policy, Profile
from ssa.test import badservers
from ssa.test.badservers import Serve, echo, running, serverContext, stapling
from ssa.test.loopback import Program
from ssa.test.pki import otherCA, testCA
from ssa.test.responders import ocspAnswer, points
from ssa.test.test_daemon import DaemonCase, after, exchange

reactor: Any = _reactor

TLS12 = ssl.TLSVersion.TLSv1_2


def otherProtocols(sock: socket.socket) -> None:
    """A real server that has another application protocol, and says so (RFC 7301 section 3.2)."""
    credential = testCA().issue()
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(crypto.load_certificate(crypto.FILETYPE_PEM, credential.chainPEM))
    context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, credential.keyPEM))

    def choose(connection: SSL.Connection, offered: list[bytes]) -> bytes:
        raise LookupError("none of them")

    context.set_alpn_select_callback(choose)
    sock.setblocking(True)
    connection = SSL.Connection(context, sock)
    connection.set_accept_state()
    try:
        connection.do_handshake()
    except LookupError:
        sock.recv(1)


def _revoked() -> Serve:
    """A server that staples the proof that its certificate is revoked."""
    credential = testCA().issue()
    return stapling(credential, ocspAnswer(testCA(), credential.certificate, ocsp.OCSPCertStatus.REVOKED))


@dataclass(frozen=True)
class Row:
    """
    One way in which a server misbehaves.

    @ivar number: the errno.
    @ivar serve: makes the server.
    @ivar words: what TLS_ERROR says, among other things.
    """

    number: int
    serve: Callable[[], Serve]
    words: tuple[str, ...] = ()


def _issued(**how: Any) -> Callable[[], Serve]:
    return lambda: echo(serverContext(testCA().issue(**how)))


ROWS: dict[str, Row] = {
    "handshake took too long": Row(errno.ETIMEDOUT, lambda: badservers.stalling, ("1 s",)),
    "not TLS": Row(errno.EPROTO, lambda: badservers.notTLS, ("TLS",)),
    "alert": Row(errno.EPROTO, lambda: badservers.alert, ("handshake_failure",)),
    "closed in the handshake": Row(errno.EPROTO, lambda: badservers.closing, ("closed",)),
    "reset in the handshake": Row(errno.EPROTO, lambda: badservers.resetting, ("reset",)),
    "garbage": Row(errno.EPROTO, lambda: badservers.garbage),
    "no common version": Row(
        errno.EPROTO,
        lambda: echo(serverContext(testCA().issue(), maximum=ssl.TLSVersion.TLSv1_1)),
        ("version",),
    ),
    "no common cipher": Row(
        errno.EPROTO, lambda: echo(serverContext(testCA().issue(key="rsa"), maximum=TLS12, ciphers="AES128-SHA"))
    ),
    "no common ALPN": Row(errno.EPROTO, lambda: otherProtocols, ("no_application_protocol",)),
    "unknown issuer": Row(errno.EKEYREJECTED, lambda: echo(serverContext(otherCA().issue())), ("issuer",)),
    "self-signed": Row(errno.EKEYREJECTED, _issued(selfSigned=True), ("self-signed",)),
    "wrong name": Row(
        errno.EKEYREJECTED, lambda: echo(serverContext(testCA().issue(["other.example"]))), ("server.example",)
    ),
    "name in the subject only": Row(errno.EKEYREJECTED, _issued(noNames=True)),
    "wrong purpose": Row(errno.EKEYREJECTED, _issued(purpose="client")),
    "weak key": Row(errno.EKEYREJECTED, _issued(key="rsa1024")),
    "weak signature": Row(errno.EKEYREJECTED, _issued(sha1=True)),
    "malformed": Row(errno.EKEYREJECTED, _issued(criticalExtension=True), ("critical",)),
    "an intermediate that is no authority": Row(
        errno.EKEYREJECTED, lambda: echo(serverContext(testCA().intermediate(isAuthority=False).issue()))
    ),
    "an intermediate is missing": Row(
        errno.EKEYREJECTED, lambda: echo(serverContext(testCA().intermediate().issue(withoutChain=True)))
    ),
    "expired": Row(errno.EKEYEXPIRED, _issued(expired=True), ("expired",)),
    "not yet valid": Row(errno.EKEYEXPIRED, _issued(notYetValid=True), ("not valid yet",)),
    "demands a stapled answer, and there is none": Row(
        errno.EKEYREVOKED, _issued(extensions=points(mustStaple=True)), ("RFC 7633",)
    ),
    "revoked": Row(errno.EKEYREVOKED, _revoked, ("the stapled OCSP answer",)),
    "client certificate demanded": Row(
        errno.ENOKEY, lambda: echo(serverContext(testCA().issue(), maximum=TLS12, clientCA=testCA().pem))
    ),
}
"""What a server does, and what comes of it."""

ELSEWHERE = {
    "ECONNREFUSED": "test_refused",
    "ENETUNREACH": "test_unreachable",
    "EPERM": "test_policy",
    "EHOSTUNREACH": "test_unresolved",
    "ENETDOWN": "test_stopped",
}
"""The errnos that no misbehaving server makes."""


class ErrnoTableTests(DaemonCase):
    """Each row."""

    timeout = 60
    profile = Profile(handshakeTimeout=1.0)

    async def newClient(self) -> Program:
        program = await self.client()
        await self.interceptor.set(program, Option.TLS_ALPN, b"h2")
        return program

    async def check(self, what: str, row: Row, program: Program, number: int) -> None:
        text = await self.interceptor.error(program)
        name = errno.errorcode.get(number, str(number))
        self.assertEqual((what, errno.errorcode[row.number]), (what, name), text)
        self.assertTrue(text.isprintable() and text, what)
        for word in row.words:
            self.assertIn(word, text, what)

    def test_documented(self) -> None:
        """The page of the specification names these errnos and no others."""
        page = Path(__file__).resolve().parent.parent.parent / "docs" / "api.rst"
        if not page.exists():
            self.skipTest("the documentation is not installed")
        section = page.read_text(encoding="utf-8").split("Errors of connect\n")[1].split("\n---")[-1]
        shown = {name for line in re.findall(r"^   \* - (.*)$", section, re.MULTILINE) for name in re.findall(r"E[A-Z]+", line)}
        tested = {errno.errorcode[row.number] for row in ROWS.values()} | set(ELSEWHERE)
        self.assertEqual(shown, tested)
        for reason in ELSEWHERE.values():
            self.assertTrue(hasattr(self, reason) or " " in reason, reason)

    async def test_connect(self) -> None:
        """connect(2)."""
        for what, row in ROWS.items():
            with running(row.serve()) as server:
                program = await self.newClient()
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                await self.check(what, row, program, await self.interceptor.connect(program, address))

    async def test_upgrade(self) -> None:
        """TLS_UPGRADE as client."""
        for what, row in ROWS.items():
            with running(row.serve()) as server:
                program = await self.newClient()
                sock = socket.create_connection(("127.0.0.1", server.port))
                await self.check(what, row, program, await self.interceptor.upgrade(program, sock, Role.CLIENT))

    async def upgradeServer(self, talk: Callable[[socket.socket], Any], certificate: bool = True) -> tuple[Any, ...]:
        """TLS_UPGRADE as server; C{talk} is the client: errno, TLS_ERROR, what C{talk} returned, the program."""
        program = await self.interceptor.newSocket()
        if certificate:
            credential = testCA().issue()
            await self.interceptor.set(program, Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
            await self.interceptor.set(program, Option.TLS_PRIVATE_KEY, credential.keyPEM)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname(), 10)
            ours, _ = listener.accept()
        self.addCleanup(theirs.close)
        talking = deferToThread(talk, theirs)
        number = await self.interceptor.upgrade(program, ours, Role.SERVER)
        return number, await self.interceptor.error(program), talking, program

    async def test_upgradeServer(self) -> None:
        """TLS_UPGRADE as server, with a client that checks the certificate and talks."""
        context = ssl.create_default_context(cadata=testCA().pem.decode())

        def talk(sock: socket.socket) -> bytes:
            with context.wrap_socket(sock, server_hostname="server.example", suppress_ragged_eofs=False) as tls:
                tls.sendall(b"question")
                got = tls.recv(100)
                tls.unwrap().close()
                return got

        number, text, talking, program = await self.upgradeServer(talk)
        self.assertEqual((0, ""), (number, text))
        self.assertEqual(b"question", await deferToThread(program.plain.recv, 100))
        program.plain.sendall(b"answer")
        self.assertEqual(b"", await deferToThread(program.plain.recv, 100))
        program.plain.shutdown(socket.SHUT_WR)
        self.assertEqual(b"answer", await talking)

    async def test_upgradeServerFails(self) -> None:
        """TLS_UPGRADE as server: clients that misbehave."""
        over = threading.Event()
        self.addCleanup(over.set)

        def refuse(sock: socket.socket) -> None:
            try:
                ssl.create_default_context().wrap_socket(sock, server_hostname="server.example")
            except ssl.SSLError:
                return

        def old(sock: socket.socket) -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.check_hostname = False
            try:
                context.wrap_socket(sock)
            except ssl.SSLError:
                return

        for what, talk, number, word in (
            ("not TLS", lambda sock: sock.sendall(b"GET / HTTP/1.0\r\n\r\n"), errno.EPROTO, "TLS"),
            ("closed", lambda sock: sock.close(), errno.EPROTO, "closed"),
            ("alert", refuse, errno.EPROTO, "unknown_ca"),
            ("version", old, errno.EPROTO, "version"),
            ("silent", lambda sock: over.wait(3), errno.ETIMEDOUT, "1 s"),
        ):
            found, text, talking, _ = await self.upgradeServer(talk)
            self.assertEqual((what, number), (what, found), text)
            self.assertIn(word, text)
            over.set()
            await talking
            over.clear()
        found, text, talking, _ = await self.upgradeServer(lambda sock: None, certificate=False)
        self.assertEqual(errno.ENOKEY, found, text)
        await talking

    async def test_refused(self) -> None:
        """TCP: nobody listens."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        program = await self.client()
        number = await self.interceptor.connect(program, InternetAddress(socket.AF_INET, "127.0.0.1", port))
        self.assertEqual(errno.ECONNREFUSED, number)

    async def test_unreachable(self) -> None:
        """TCP: connect(2) itself fails, here for a broadcast address; the interceptor passes that on."""

        def fetch(id: int, remote: InternetAddress | None) -> Fetched:
            assert remote is not None
            with socket.socket() as sock:
                number = sock.connect_ex(remote.forSocket())
            raise SSAError(number, os.strerror(number))

        self.patch(self.interceptor, "fetch", fetch)
        program = await self.client()
        number = await self.interceptor.connect(program, HostnameAddress("127.255.255.255", 443))
        self.assertEqual(errno.ENETUNREACH, number)
        self.assertIn("unreachable", await self.interceptor.error(program))

    async def test_keyMismatch(self) -> None:
        """Our key and chain do not match: ENOKEY before anything is sent."""
        program = await self.client()
        await self.interceptor.set(program, Option.TLS_CERTIFICATE_CHAIN, testCA().issue(["a.example"]).chainPEM)
        key = testCA().issue(["b.example"], key="rsa").keyPEM
        await self.interceptor.set(program, Option.TLS_PRIVATE_KEY, key)
        with running(badservers.stalling) as server:
            address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
            self.assertEqual(errno.ENOKEY, await self.interceptor.connect(program, address))

    async def test_policy(self) -> None:
        """The administrator has forbidden meanwhile what the program had asked for."""
        program = await self.client()
        self.daemon._loadPolicy = lambda: Policy(replace(self.profile, appCustomValidation=False))
        self.assertTrue(self.daemon.reload())
        with running(echo(serverContext(testCA().issue()))) as server:
            address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
            self.assertEqual(errno.EPERM, await self.interceptor.connect(program, address))
        self.assertIn("AppCustomValidation", await self.interceptor.error(program))

    async def test_unresolved(self) -> None:
        """The name does not resolve."""

        def lookUp(*args: object) -> list[tuple[Any, ...]]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        self.patch(self.daemon.shared.resolver, "_getAddressInfo", lookUp)
        program = await self.client()
        number = await self.interceptor.connect(program, HostnameAddress("nowhere.example", 443))
        self.assertEqual(errno.EHOSTUNREACH, number)
        self.assertIn("not known", await self.interceptor.error(program))

    async def test_stopped(self) -> None:
        """The daemon is stopped meanwhile."""
        with running(badservers.stalling) as server:
            program = await self.client()
            waiting = self.interceptor.startConnect(
                program, InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
            )
            await after(0.05)
            await self.daemon.stopService()
            answer: Any = await waiting
            self.assertEqual(-errno.ENETDOWN, answer.result)

    async def test_exchangeAfterFailure(self) -> None:
        """After any failure the socket is new: the next connect succeeds, and clears TLS_ERROR."""
        with running(badservers.alert) as bad, running(echo(serverContext(testCA().issue()))) as good:
            program = await self.client()
            for server, number in ((bad, errno.EPROTO), (good, 0)):
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                self.assertEqual(number, await self.interceptor.connect(program, address))
            self.assertEqual("", await self.interceptor.error(program))
            assert program.plain is not None
            self.assertEqual(b"data", await deferToThread(exchange, program.plain, b"data"))
