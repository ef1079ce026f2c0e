# SPDX-License-Identifier: MIT
"""
Programs in network namespaces of their own, served by the one daemon, which is in the initial namespace and has no way to
where they are.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from errno import ECONNREFUSED, EKEYREJECTED, ENETUNREACH
from pathlib import Path
from typing import Any, ClassVar

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import Thread
from ssa.test.conformance.case_names import hostAddress, rawConnect
from ssa.test.conformance.peers import NAME, clientContext, echo, serverContext
from ssa.test.pki import Credential, testCA
from ssa.test.vm.guest.case import SECONDS, USER, GuestCase, about, run
from ssa.test.vm.guest.network import Pair, enter, inside, ip, ownUserNamespace

_HERE, _THERE = Pair.names
_FAMILIES = ((socket.AF_INET, Pair.four), (socket.AF_INET6, Pair.six))
_SECRET = b"what nobody on the way may read " * 8
_ETH_P_ALL = 3
_ETHERNET = 14
_TCP = 6
_IPV4, _IPV6, _ICMPV6 = 0x0800, 0x86DD, 58


class Wire:
    """All packets on the cable, as one namespace sees them."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.bind(("cable", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self._socket.setblocking(False)

    def packets(self) -> list[bytes]:
        """Those since the last time."""
        packets = []
        while True:
            try:
                packets.append(self._socket.recv(1 << 17))
            except BlockingIOError:
                return packets


class NamespaceCase(GuestCase):
    """A case with two namespaces beside the initial one."""

    pair: ClassVar[Pair]
    identity: ClassVar[Credential]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.pair = Pair()
        cls.addClassCleanup(cls.pair.close)
        cls.identity = testCA().issue([NAME, *Pair.four, *Pair.six])

    def loopback(self) -> str:
        """What the initial namespace's loopback device has counted."""
        (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
        return line

    def noPlaintext(self, wire: Wire) -> None:
        """Say that the wire has carried nothing but TCP, in which nobody can read the secret."""
        packets = wire.packets()
        self.assertGreater(len(packets), 6, "that was no connection over the wire")
        for packet in packets:
            kind = int.from_bytes(packet[12:14], "big")
            if kind == _IPV4:
                self.assertEqual(packet[_ETHERNET + 9], _TCP, "the IPv4 protocol")
            elif kind == _IPV6:
                self.assertIn(packet[_ETHERNET + 6], (_TCP, _ICMPV6, 0), "the IPv6 next header")
            self.assertNotIn(_SECRET[:16], packet, "plaintext")


class Cable(NamespaceCase):
    """From one namespace to the other."""

    def setUp(self) -> None:
        super().setUp()
        self.daemonIsElsewhere()
        before = self.loopback()
        self.addCleanup(lambda: self.assertEqual(self.loopback(), before, "packets on the initial namespace's loopback"))

    def daemonIsElsewhere(self) -> None:
        """Say that the daemon is in the initial namespace, and that there is no route from there to the others."""
        self.assertEqual(os.readlink(f"/proc/{self.daemon.pid}/ns/net"), os.readlink("/proc/self/ns/net"))
        for family, addresses in _FAMILIES:
            for address in addresses:
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    self.fails(ENETUNREACH, sock.connect, (address, 443))

    def connect(self, family: int, addresses: Sequence[str], how: str) -> None:
        """A client here, a server there."""
        ours, theirs = addresses
        with inside(_THERE):
            wire = Wire()
            server = self.server(echo, serverContext(self.identity), host=theirs)
        enter(_HERE)
        sock = self.clientSocket(family, name=NAME if how == "address" else "")
        if how == "name":
            self.assertEqual(rawConnect(sock, hostAddress(theirs, server.address[1])), 0)
        elif how == "non-blocking":
            sock.setblocking(False)
            sock.connect_ex(server.address)
            self.writable(sock)
            self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
            sock.setblocking(True)
        else:
            sock.connect(server.address)
        self.assertEqual(sock.getpeername()[:2], (theirs, server.address[1]))
        self.assertEqual(sock.getsockname()[0], ours)
        sock.sendall(_SECRET)
        self.assertEqual(self.exactly(sock, len(_SECRET)), _SECRET)
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(sock.recv(1), b"")
        server.join()
        self.assertEqual(server.failures, [])
        self.noPlaintext(wire)

    def test_connecting(self) -> None:
        """A client connects over IPv4 and over IPv6, to an address, by a sockaddr_host, blocking and not."""
        for family, addresses in _FAMILIES:
            for how in ("address", "address that is the identity", "name", "non-blocking"):
                with about(f"{addresses[1]}, {how}"):
                    self.inChild(lambda f=family, a=addresses, h=how: self.connect(f, a, h))  # type: ignore[misc]

    def accept(self, family: int, addresses: Sequence[str], bound: str) -> None:
        """A server here, a client there."""
        ours, theirs = addresses
        enter(_HERE)
        listener = self.listener((bound, 0), identity=self.identity, family=family)
        port = listener.getsockname()[1]
        self.assertEqual(listener.getsockname()[0], bound)

        def call() -> Any:
            enter(_THERE)
            wire = Wire()
            peer = self.peerTo((ours, port), context=clientContext())
            return peer, wire, peer.sock.getsockname()

        calling = Thread(call)
        self.readable(listener, SECONDS)
        accepted, address = listener.accept()
        self.keep(accepted)
        peer, wire, clientAddress = calling.result(SECONDS)
        self.assertEqual(address[:2], (theirs, clientAddress[1]))
        self.assertEqual(accepted.getpeername()[:2], (theirs, clientAddress[1]))
        self.assertEqual(accepted.getsockname()[:2], (ours, port))
        accepted.sendall(_SECRET)
        self.assertEqual(peer.exactly(len(_SECRET)), _SECRET)
        peer.send(_SECRET)
        self.assertEqual(self.exactly(accepted, len(_SECRET)), _SECRET)
        accepted.close()
        self.assertEqual(peer.rest(), b"")
        self.noPlaintext(wire)

    def test_accepting(self) -> None:
        """A server listens on an address and on any, and is reached over IPv4 and over IPv6."""
        for family, addresses in _FAMILIES:
            for bound in (addresses[0], "0.0.0.0" if family == socket.AF_INET else "::"):
                with about(bound):
                    self.inChild(lambda f=family, a=addresses, b=bound: self.accept(f, a, b))  # type: ignore[misc]

    def test_bothPrograms(self) -> None:
        """Programs in both namespaces have TLS, and talk with each other."""

        def talk() -> None:
            with inside(_THERE):
                listener = self.listener((Pair.six[1], 0), identity=self.identity)
            enter(_HERE)
            client = self.clientSocket(socket.AF_INET6)
            client.connect(listener.getsockname())
            self.readable(listener, SECONDS)
            server, address = listener.accept()
            self.assertEqual(address, client.getsockname())
            client.sendall(_SECRET)
            self.assertEqual(self.exactly(server, len(_SECRET)), _SECRET)

        self.inChild(talk)

    def test_otherIdentity(self) -> None:
        """The peer has to prove the address that was connected to, in whatever namespace that is."""

        def refuse() -> None:
            with inside(_THERE):
                server = self.server(echo, serverContext(testCA().issue([Pair.four[0]])), host=Pair.four[1], quiet=True)
            enter(_HERE)
            self.fails(EKEYREJECTED, self.clientSocket(name="").connect, server.address)

        self.inChild(refuse)

    def test_refused(self) -> None:
        """TCP's own errors are the namespace's: refused there, no route from here."""

        def refuse() -> None:
            with inside(_THERE):
                bound = self.keep(socket.create_server((Pair.four[1], 0)))
                address = bound.getsockname()
                bound.close()
            self.fails(ENETUNREACH, self.clientSocket().connect, address)
            enter(_HERE)
            self.fails(ECONNREFUSED, self.clientSocket().connect, address)

        self.inChild(refuse)


class Users(NamespaceCase):
    """An ordinary user in a user namespace and a network namespace of his own."""

    def test_loopback(self) -> None:
        """Both roles on his own loopback, port 443 included, which nobody outside of it is troubled by."""
        outside = self.server(echo, serverContext(self.identity), port=443)
        before = self.loopback()

        def talk() -> None:
            ownUserNamespace(network=True)
            self.fails(ENETUNREACH, self.clientSocket().connect, outside.address)
            ip("link", "set", "lo", "up")
            self.fails(ECONNREFUSED, self.clientSocket().connect, outside.address)
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with about(host):
                    listener = self.listener((host, 443))
                    client = self.clientSocket(family)
                    client.connect((host, 443))
                    self.assertEqual(client.getpeername()[:2], (host, 443))
                    self.readable(listener, SECONDS)
                    server, address = listener.accept()
                    self.assertEqual(address[:2], client.getsockname()[:2])
                    client.sendall(_SECRET)
                    self.assertEqual(self.exactly(server, len(_SECRET)), _SECRET)
                    client.shutdown(socket.SHUT_WR)
                    self.assertEqual(server.recv(1), b"")

        self.inChild(talk, USER)
        self.assertEqual(self.loopback(), before, "packets on the initial namespace's loopback")

    def test_ordinaryPeers(self) -> None:
        """The same with ordinary TLS on the other end."""

        def talk() -> None:
            ownUserNamespace(network=True)
            ip("link", "set", "lo", "up")
            for sock, peer in (self.connected(), self.accepted()):
                sock.sendall(_SECRET)
                self.assertEqual(peer.exactly(len(_SECRET)), _SECRET)
                sock.close()
                self.assertEqual(peer.rest(), b"")

        self.inChild(talk, USER)


class Lifetime(GuestCase):
    """A namespace goes when its programs go, whatever the daemon had to do with it."""

    def end(self, sig: int) -> None:
        """A program with sockets of every kind, in a namespace that has a device whose other end we see, ends."""
        ready, told = os.pipe()
        closed, hold = os.pipe()

        def program() -> None:
            os.close(hold)
            ownUserNamespace(network=True)
            ip("link", "set", "lo", "up")
            client, server = self.bothEnds()
            client.sendall(_SECRET)
            self.assertEqual(self.exactly(server, len(_SECRET)), _SECRET)
            listener = self.listener()
            self.assertNotEqual(listener.getsockname()[1], 0)
            fresh = self.tlsSocket()
            slow = self.plainListener()
            pending = self.clientSocket()
            pending.setblocking(False)
            pending.connect_ex(slow.getsockname())
            waiting = self.accepted()
            self.assertEqual(len({fresh.fileno(), *(each.fileno() for each in (waiting[0], pending))}), 3)
            os.write(told, b"!")
            os.read(closed, 1)

        pid = self.child(program)
        os.close(told)
        self.addCleanup(os.close, ready)
        self.addCleanup(os.close, hold)
        self.addCleanup(os.close, closed)
        self.assertEqual(os.read(ready, 1), b"!", "the program has failed")
        ip("link", "add", "probe", "type", "veth", "peer", "name", "probe", "netns", str(pid))
        self.assertTrue(Path("/sys/class/net/probe").exists())
        os.kill(pid, sig)
        self.reap(pid, -sig)
        deadline = time.monotonic() + SECONDS
        while Path("/sys/class/net/probe").exists():
            self.assertLess(time.monotonic(), deadline, "the network namespace is still there")
            time.sleep(0.05)

    def test_killed(self) -> None:
        """A program that is killed leaves nothing in the daemon that would keep its namespace."""
        self.end(signal.SIGKILL)

    def test_daemonGoesOn(self) -> None:
        """And the daemon goes on."""
        self.end(signal.SIGTERM)
        client, server = self.bothEnds()
        client.sendall(b"x")
        self.assertEqual(server.recv(1), b"x")
        self.assertEqual(client.getsockopt(IPPROTO_TLS, Option.TLS_VERSION_CONN), 0x0304)


if __name__ == "__main__":
    sys.exit(run())
