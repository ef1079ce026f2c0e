# SPDX-License-Identifier: MIT
"""
Profiles of the administrator's: what a program may do depends on the program, its user and where it connects to.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys

from OpenSSL import SSL

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import TLSCase, number
from ssa.test.conformance.case_names import hostAddress, rawConnect
from ssa.test.conformance.peers import NAME, Server, echo, serverContext
from ssa.test.pki import testCA

DENIED, STRICT, OLD, MINE, THEIRS, STRANGE = (
    f"{name}.example" for name in ("denied", "strict", "old", "mine", "theirs", "strange")
)
DENIED_ADDRESS = "127.0.0.66"

CONFIGURATION = f"""\
[profile loopback]
Destination = 127.0.0.0/8 ::1
Access = deny

[profile open]
Destination = {NAME} {STRICT} {OLD} {THEIRS}
Access = allow

[profile denied]
Destination = {DENIED} {DENIED_ADDRESS} *.nowhere.invalid
Access = deny

[profile strict]
Destination = {STRICT}
MinProtocol = TLSv1.3

[profile old]
Destination = {OLD}
SecurityLevel = old

[profile mine]
Application = {os.path.realpath(sys.executable)}
User = root nobody
Destination = {MINE}
Access = deny

[profile otherProgram]
Application = /usr/bin/no-such-program
Access = deny

[profile otherUser]
User = 4242
Access = deny

[profile theirs]
Application = {os.path.dirname(os.path.realpath(sys.executable))}/*
Destination = {THEIRS}
Extensions =
"""


class Profiles(TLSCase):
    """The profiles above."""

    def serve(self, version: int = 0, host: str = "127.0.0.1") -> Server:
        """A server with a certificate for every name."""
        names = [NAME, DENIED, STRICT, OLD, MINE, THEIRS, "127.0.0.1", DENIED_ADDRESS]
        return self.server(echo, serverContext(testCA().issue(names), version=version), host=host, quiet=True)

    def test_ordinary(self) -> None:
        """No profile matches: neither another program's nor another user's counts here."""
        sock = self.clientSocket()
        sock.connect(self.serve().address)
        sock.sendall(b"hello")
        self.assertEqual(b"hello", self.exactly(sock, 5))

    def test_deniedName(self) -> None:
        """EPERM, and TLS_ERROR names the rule; the socket is new again and may go elsewhere."""
        server = self.serve()
        sock = self.clientSocket(name=DENIED)
        for _ in range(2):
            self.fails(errno.EPERM, sock.connect, server.address)
            told = self.tlsError(sock)
            self.assertIn(DENIED, told)
            self.assertIn(":11 [profile denied]", told)
            self.fails(errno.ENOTCONN, sock.getpeername)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        sock.connect(server.address)
        self.assertEqual("", self.tlsError(sock))

    def test_deniedNonBlocking(self) -> None:
        """The same for a program that does not wait."""
        sock = self.clientSocket(name=DENIED, flags=socket.SOCK_NONBLOCK)
        result = sock.connect_ex(self.serve().address)
        if result == errno.EINPROGRESS:
            self.writable(sock)
            result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.assertEqual(errno.EPERM, result)

    def test_deniedAddress(self) -> None:
        """An address, whatever name the peer could prove."""
        server = self.serve(host=DENIED_ADDRESS)
        for name in ("", NAME):
            self.fails(errno.EPERM, self.clientSocket(name=name).connect, server.address)
        sock = self.clientSocket(name="")
        self.assertEqual(errno.EPERM, rawConnect(sock, hostAddress(DENIED_ADDRESS, server.address[1])))
        self.assertIn("[profile denied]", self.tlsError(sock))

    def test_everyAddress(self) -> None:
        """The addresses of no machine are this one: what is refused for loopback is refused for them, named or not."""
        for family, here, addresses in (
            (socket.AF_INET, "127.0.0.1", ("0.0.0.0",)),
            (socket.AF_INET6, "127.0.0.1", ("::ffff:0.0.0.0",)),
            (socket.AF_INET6, "::1", ("::",)),
        ):
            server = self.serve(host=here)
            for host in (here if family == socket.AF_INET or here == "::1" else f"::ffff:{here}", *addresses):
                with self.subTest(host=host):
                    address = (host, server.address[1])
                    for name in ("", STRANGE):
                        sock = self.clientSocket(family, name=name)
                        self.fails(errno.EPERM, sock.connect, address)
                        self.assertIn("[profile loopback]", self.tlsError(sock))
                    sock = self.clientSocket(family, name=STRANGE)
                    self.assertEqual(errno.EPERM, rawConnect(sock, hostAddress(*address)))
                    sock = self.clientSocket(family)
                    sock.connect(address)
                    sock.sendall(b"hello")
                    self.assertEqual(b"hello", self.exactly(sock, 5))

    def test_everyAddressBound(self) -> None:
        """From a socket that is bound to an address, 0.0.0.0 is that one; which shows only when it is connected."""
        server = self.serve(host=DENIED_ADDRESS)
        sock = self.clientSocket()
        sock.bind((DENIED_ADDRESS, 0))
        self.fails(errno.EPERM, sock.connect, ("0.0.0.0", server.address[1]))
        told = self.tlsError(sock)
        self.assertIn("[profile denied]", told)
        self.assertIn(f"({DENIED_ADDRESS})", told)

    def test_deniedBeforeLookingUp(self) -> None:
        """A name that is refused is not even looked up: EPERM instead of EHOSTUNREACH, under any identity."""
        for identity in ("", NAME):
            sock = self.clientSocket(name=identity)
            self.assertEqual(errno.EPERM, rawConnect(sock, hostAddress("a.nowhere.invalid", 443)))

    def test_thisProgramAndUser(self) -> None:
        """All matchers of the profile match."""
        self.fails(errno.EPERM, self.clientSocket(name=MINE).connect, self.serve().address)

    def test_strict(self) -> None:
        """One destination has to have TLS 1.3, and another one need not."""
        for version, result in ((0x0303, errno.EPROTO), (0x0304, 0)):
            server = self.serve(version)
            if result:
                self.fails(result, self.clientSocket(name=STRICT).connect, server.address)
            else:
                self.clientSocket(name=STRICT).connect(server.address)
            sock = self.clientSocket()
            sock.connect(server.address)
            self.assertEqual(version, number(sock, Option.TLS_VERSION_CONN))

    def test_old(self) -> None:
        """TLS 1.0 with the destination that was named, and with no other one."""
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.set_max_proto_version(SSL.TLS1_VERSION)
        identity = testCA().issue([NAME, OLD])
        context.use_certificate(identity.certificate)
        context.use_privatekey(identity.key)
        server = self.server(echo, context, quiet=True)
        sock = self.clientSocket(name=OLD)
        sock.connect(server.address)
        self.assertEqual(0x0301, number(sock, Option.TLS_VERSION_CONN))
        sock.sendall(b"hello")
        self.assertEqual(b"hello", self.exactly(sock, 5))
        self.fails(errno.EPROTO, self.clientSocket().connect, server.address)

    def test_extensions(self) -> None:
        """An application protocol where none may be negotiated: EPERM at connect, which is when the destination is known."""
        server = self.serve()
        sock = self.clientSocket(name=THEIRS)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"h2")
        self.fails(errno.EPERM, sock.connect, server.address)
        self.assertIn("Extensions", self.tlsError(sock))
        sock.setsockopt(IPPROTO_TLS, Option.TLS_ALPN, b"")
        sock.connect(server.address)

    def test_listeners(self) -> None:
        """No profile with a destination is for a listener."""
        listener = self.listener()
        self.assertFalse(select.select([listener], [], [], 0)[0])
        self.peerTo(listener.getsockname())
        self.readable(listener)
        listener.accept()[0].close()
