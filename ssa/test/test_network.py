# SPDX-License-Identifier: MIT
"""
Tests for the private networks: one contract for L{NamespaceNetwork} (as root and in a user namespace), L{LoopbackNetwork}
and L{FakeNetwork}.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.trial.unittest import SkipTest, SynchronousTestCase
from zope.interface.verify import verifyObject

from ssa.api import InternetAddress
from ssa.intercept import linux
from ssa.intercept.core import TCP_CLOSE, TCP_ESTABLISHED, TCP_LISTEN, tcpState
from ssa.intercept.loopback import LoopbackNetwork
from ssa.intercept.namespace import plainAddress, socketCookie
from ssa.intercept.network import Attempt, HelperClient, IPrivateNetwork, NamespaceNetwork, startHelper
from ssa.intercept.testing import FakeNetwork
from ssa.test.fakes import openDescriptors
from ssa.test.processes import needWay

SYN_SENT = 2
_COOKIE_AT = 16 + 4 + 40

if TYPE_CHECKING:
    _Base = SynchronousTestCase
else:
    _Base = object


def v4(port: int, host: str = "198.51.100.7") -> InternetAddress:
    return InternetAddress(socket.AF_INET, host, port)


def v6(port: int, host: str = "2001:db8::7", scope: int = 0) -> InternetAddress:
    return InternetAddress(socket.AF_INET6, host, port, 0, scope)


PAIRS = [
    (v4(40001, "192.0.2.9"), v4(443)),
    (v6(40002, "2001:db8::9"), v6(443)),
    (v6(40003, "::ffff:192.0.2.9"), v6(443, "::ffff:198.51.100.7")),
    (v4(40004, "127.0.0.1"), v4(443, "127.0.0.1")),
    (v6(40005, "::1"), v6(443, "::1")),
]


class NetworkContract(_Base):
    """What the supervisor expects of a private network."""

    network: NamespaceNetwork | LoopbackNetwork

    def make(self) -> NamespaceNetwork | LoopbackNetwork:
        """Make one; skip the test where that is not possible."""
        raise NotImplementedError

    def setUp(self) -> None:
        self.network = self.make()
        self.socks: list[socket.socket] = []

    def tearDown(self) -> None:
        for sock in self.socks:
            sock.close()

    def keep(self, sock: socket.socket) -> socket.socket:
        self.socks.append(sock)
        return sock

    def program(self, family: int = socket.AF_INET, back: bool = False) -> socket.socket:
        return self.keep(self.network.program(family, back))

    def finder(self, sock: socket.socket) -> Callable[[], socket.socket | None]:
        return sock.dup

    def held(self, local: InternetAddress, remote: InternetAddress, back: bool = False) -> tuple[socket.socket, Attempt]:
        sock = self.program(local.family, back)
        return sock, self.network.hold(sock, False, local, remote, back)

    def events(self, sock: socket.socket, milliseconds: int = 0) -> int:
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        found = poll.poll(milliseconds)
        return found[0][1] if found else 0

    def assertNames(self, sock: socket.socket, local: InternetAddress, remote: InternetAddress) -> None:
        """Programs see the real addresses where nobody answers for the kernel."""
        if not self.network.emulatesNames:
            self.assertEqual(InternetAddress.fromSocket(sock.family, sock.getsockname()), local)
            self.assertEqual(InternetAddress.fromSocket(sock.family, sock.getpeername()), remote)

    def assertJoined(self, one: socket.socket, other: socket.socket) -> None:
        one.setblocking(True)
        other.setblocking(True)
        for sender, receiver in ((one, other), (other, one)):
            sender.sendall(b"x" * 100)
            receiver.settimeout(5)
            self.assertEqual(receiver.recv(100, socket.MSG_WAITALL), b"x" * 100)

    def test_interface(self) -> None:
        verifyObject(IPrivateNetwork, self.network)

    def test_program(self) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            sock = self.program(family)
            self.assertEqual((sock.family, sock.type), (family, socket.SOCK_STREAM))
            self.assertEqual(tcpState(sock), TCP_CLOSE)
            self.assertFalse(os.get_inheritable(sock.fileno()))
            self.assertTrue(os.get_blocking(sock.fileno()))

    def test_hold(self) -> None:
        for blocking in (True, False):
            sock = self.program()
            sock.setblocking(blocking)
            attempt = self.network.hold(sock, False, *PAIRS[0])
            self.assertEqual(attempt.cookie, socketCookie(sock))
            self.assertEqual(tcpState(sock), SYN_SENT)
            self.assertEqual(self.events(sock), 0)
            self.assertEqual(os.get_blocking(sock.fileno()), blocking)
            sock.close()

    def test_release(self) -> None:
        for local, remote in PAIRS:
            sock, attempt = self.held(local, remote)
            plain = self.keep(self.network.release(attempt, self.finder(sock)))
            self.assertEqual(tcpState(sock), TCP_ESTABLISHED)
            self.assertEqual(self.events(sock), select.POLLOUT)
            self.assertFalse(os.get_blocking(plain.fileno()))
            self.assertNames(sock, local, remote)
            self.assertJoined(sock, plain)

    def test_plainEndResets(self) -> None:
        """A daemon that dies gives no clean end of stream."""
        sock, attempt = self.held(*PAIRS[0])
        self.network.release(attempt, self.finder(sock)).close()
        self.assertRaises(ConnectionResetError, sock.recv, 1)

    def test_cleanEnd(self) -> None:
        sock, attempt = self.held(*PAIRS[0])
        plain = self.keep(self.network.release(attempt, self.finder(sock)))
        plain.shutdown(socket.SHUT_WR)
        self.assertEqual(sock.recv(1), b"")

    def test_fail(self) -> None:
        """Pollers see an error, and the socket can connect again, from another port."""
        sock, attempt = self.held(*PAIRS[0])
        self.network.fail(attempt, self.finder(sock))
        self.assertTrue(self.events(sock) & select.POLLERR or self.events(sock) & select.POLLHUP)
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        linux.disconnect(sock.fileno())
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        local, remote = v4(40101, "192.0.2.9"), v4(444)
        again = self.network.hold(sock, False, local, remote)
        plain = self.keep(self.network.release(again, self.finder(sock)))
        self.assertNames(sock, local, remote)
        self.assertJoined(sock, plain)

    def test_releaseAfterClose(self) -> None:
        sock, attempt = self.held(*PAIRS[0])
        sock.close()
        error = self.assertRaises(OSError, self.network.release, attempt, lambda: None)
        self.assertNotIn(error.errno, (None, 0))

    def test_failAfterClose(self) -> None:
        """It may complain, not more."""
        sock, attempt = self.held(*PAIRS[0])
        sock.close()
        try:
            self.network.fail(attempt, lambda: None)
        except OSError as error:
            self.assertIn(error.errno, (errno.ENOENT, errno.EINVAL))

    def test_bound(self) -> None:
        for local, remote in (PAIRS[0], PAIRS[1]):
            sock = self.program(local.family)
            self.network.bind(sock, local)
            attempt = self.network.hold(sock, True, local, remote)
            plain = self.keep(self.network.release(attempt, self.finder(sock)))
            self.assertNames(sock, local, remote)
            self.assertJoined(sock, plain)

    def test_samePortTwice(self) -> None:
        """One local port to two servers, as the kernel gives them out."""
        local = v4(40200, "192.0.2.9")
        for remote in (v4(443), v4(444), v4(443, "198.51.100.8")):
            sock, attempt = self.held(local, remote)
            self.assertJoined(sock, self.keep(self.network.release(attempt, self.finder(sock))))

    def test_mirrored(self) -> None:
        """The program is the client of a program here: the pair of addresses is needed in both directions."""
        client, server = v4(40300, "127.0.0.1"), v4(4433, "127.0.0.1")
        listener = self.program()
        self.network.bind(listener, server)
        self.network.listen(listener, 5)
        sock, attempt = self.held(client, server)
        accepted, daemons = self.network.pair(socket.AF_INET, server, client)
        self.keep(accepted)
        self.keep(daemons)
        plain = self.keep(self.network.release(attempt, self.finder(sock)))
        self.assertNames(sock, client, server)
        self.assertNames(accepted, server, client)
        self.assertJoined(sock, plain)
        self.assertJoined(accepted, daemons)
        self.assertEqual(self.events(listener), 0)

    def test_upgradeBoth(self) -> None:
        """Both ends of one connection as attempts, one of them in the back."""
        one, other = v4(40400, "127.0.0.1"), v4(2525, "127.0.0.1")
        first, attempt = self.held(one, other)
        second, mirrored = self.held(other, one, back=True)
        for sock, each in ((first, attempt), (second, mirrored)):
            self.assertJoined(sock, self.keep(self.network.release(each, self.finder(sock))))

    def test_pair(self) -> None:
        for remote, local in PAIRS:
            sock, plain = self.network.pair(local.family, local, remote)
            self.keep(sock)
            self.keep(plain)
            self.assertEqual(sock.family, local.family)
            self.assertNames(sock, local, remote)
            self.assertEqual(self.events(sock), select.POLLOUT)
            self.assertEqual(sock.connect_ex(sock.getpeername()), errno.EISCONN)
            self.assertJoined(sock, plain)

    def listener(self, address: InternetAddress, backlog: int = 8) -> socket.socket:
        sock = self.program(address.family)
        self.network.bind(sock, address)
        self.network.listen(sock, backlog)
        self.assertEqual(tcpState(sock), TCP_LISTEN)
        return sock

    def test_ring(self) -> None:
        for address in (v4(8443), v6(8444), v4(8445, "0.0.0.0"), v6(8446, "::"), v6(8447, "::ffff:198.51.100.7")):
            listener = self.listener(address)
            self.assertEqual(self.events(listener), 0)
            ports = []
            for _ in range(3):
                port, bell = self.network.ring(listener.getsockname())
                self.keep(bell)
                ports.append(port)
            self.assertEqual(len(set(ports)), 3)
            self.assertEqual(self.events(listener), select.POLLIN)
            for port in ports:
                sock, peer = listener.accept()
                sock.close()
                self.assertEqual(peer[1], port)
            self.assertEqual(self.events(listener), 0)

    def test_ringTheRight(self) -> None:
        """A listener of every address is rung, and not another one that has its port at one address."""
        if self.network.emulatesNames:
            raise SkipTest("here each listener has a port of its own")
        for every, one in ((v4(8500, "0.0.0.0"), v4(8500, "127.0.0.1")), (v6(8501, "::"), v6(8501, "::1"))):
            listeners = []
            for address in (every, one):
                sock = self.program(address.family)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                self.network.bind(sock, address)
                self.network.listen(sock, 5)
                listeners.append(sock)
            self.keep(self.network.ring(listeners[0].getsockname())[1])
            self.assertEqual([self.events(sock) for sock in listeners], [select.POLLIN, 0])

    def test_ringNobody(self) -> None:
        listener = self.listener(v4(8600))
        name = listener.getsockname()
        listener.close()
        self.assertRaises(OSError, self.network.ring, name)

    def test_ringFull(self) -> None:
        """A queue that is full is an error within a moment."""
        listener = self.listener(v4(8700), backlog=0)
        name = listener.getsockname()
        self.keep(self.network.ring(name)[1])
        self.assertRaises(OSError, self.network.ring, name)

    def test_silence(self) -> None:
        listener = self.listener(v4(8800))
        copy = self.keep(listener.dup())
        self.network.silence(socketCookie(listener), listener.getsockname(), copy.dup)
        self.assertNotEqual(tcpState(listener), TCP_LISTEN)
        self.assertTrue(self.events(listener) & (select.POLLERR | select.POLLHUP))
        listener.setblocking(False)
        self.assertEqual(self.assertRaises(OSError, listener.accept).errno, errno.EINVAL)

    def test_strangers(self) -> None:
        """A socket that a program connects by a race reaches no listener, not even its own."""
        listener = self.listener(v4(8900, "127.0.0.1"))
        sock = self.program()
        sock.setblocking(False)
        self.assertEqual(sock.connect_ex(listener.getsockname()), errno.EINPROGRESS)
        self.assertEqual(self.events(sock, 50), 0)
        self.assertEqual(self.events(listener), 0)

    def test_living(self) -> None:
        listener = self.listener(v4(9000))
        sock, attempt = self.held(*PAIRS[0])
        other, _ = self.held(*PAIRS[1])
        plain = self.keep(self.network.release(attempt, self.finder(sock)))
        accepted, _ = self.network.pair(socket.AF_INET, v4(9000), v4(50000, "192.0.2.1"))
        self.keep(accepted)
        cookies = {socketCookie(each) for each in (listener, sock, other, plain, accepted)}
        self.assertEqual(cookies - self.network.living(), set())
        gone = socketCookie(other)
        other.close()
        self.assertNotIn(gone, self.network.living())

    def test_livingMany(self) -> None:
        """More than a message of the helper could hold."""
        socks = [self.keep(self.network.program(socket.AF_INET)) for _ in range(200)]
        attempts = [self.network.hold(sock, False, v4(41000 + i, "192.0.2.9"), v4(443)) for i, sock in enumerate(socks)]
        self.assertEqual({attempt.cookie for attempt in attempts} - self.network.living(), set())

    def notices(self) -> set[int]:
        """The cookies of destroyed sockets so far."""
        found = set()
        for sock in self.network.destroyed:
            sock.setblocking(False)
            while True:
                try:
                    data = sock.recv(65536)
                except BlockingIOError:
                    break
                low, high = struct.unpack_from("=II", data, _COOKIE_AT)
                found.add(low | high << 32)
        return found

    def test_destroyed(self) -> None:
        """The last close of every kind of socket is told, and only that."""
        if isinstance(self.network, FakeNetwork):
            raise SkipTest("the test itself tells of destroyed sockets")
        sock, attempt = self.held(*PAIRS[0])
        waiting, _ = self.held(*PAIRS[1])
        plain = self.keep(self.network.release(attempt, self.finder(sock)))
        accepted, other = self.network.pair(socket.AF_INET, v4(9000), v4(50000, "192.0.2.1"))
        self.keep(other)
        listener = self.listener(v4(9100))
        fresh = self.program()
        cookies = {socketCookie(each) for each in (sock, waiting, accepted, listener, fresh)}
        copies = [each.dup() for each in (sock, waiting, accepted, listener, fresh)]
        for each in (sock, waiting, accepted, listener, fresh):
            each.close()
        self.assertEqual(self.notices() & cookies, set())
        plain.close()
        other.close()
        for copy in copies:
            copy.close()
        found: set[int] = set()
        for _ in range(100):
            found |= self.notices()
            if cookies <= found:
                break
            select.select([], [], [], 0.02)  # the kernel frees some a moment later
        self.assertEqual(cookies - found, set())

    def test_descriptors(self) -> None:
        """Nothing is left of a round of everything, errors included."""
        self.network.program(socket.AF_INET).close()
        before = openDescriptors()
        for _ in range(3):
            sock = self.network.program(socket.AF_INET)
            attempt = self.network.hold(sock, False, *PAIRS[0])
            self.network.release(attempt, self.finder(sock)).close()
            self.assertRaises(OSError, self.network.hold, sock, False, *PAIRS[0])
            sock.close()
            for each in self.network.pair(socket.AF_INET, v4(443), v4(50001)):
                each.close()
            listener = self.network.program(socket.AF_INET)
            self.network.bind(listener, v4(9200))
            self.network.listen(listener, 0)
            name = listener.getsockname()
            self.network.ring(name)[1].close()
            listener.close()
            self.assertRaises(OSError, self.network.ring, name)
        self.assertLessEqual(openDescriptors(), before)

    def test_withoutDescriptors(self) -> None:
        """EMFILE is an OSError, and the network works again afterwards."""
        sock = self.network.program(socket.AF_INET)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        fill = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, openDescriptors() + 40), hard))
        try:
            while True:
                try:
                    fill.append(os.dup(0))
                except OSError:
                    break
            self.assertRaises(OSError, self.network.pair, socket.AF_INET, v4(443), v4(50001))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fill:
                os.close(fd)
        attempt = self.network.hold(sock, False, *PAIRS[0])
        plain = self.keep(self.network.release(attempt, self.finder(sock)))
        self.assertJoined(self.keep(sock), plain)


class _HelperContract(NetworkContract):
    way = ""
    userNamespace = False

    def make(self) -> NamespaceNetwork:
        needWay(self.way)
        pid, control = startHelper(userNamespace=self.userNamespace)
        client = HelperClient(control)
        self.addCleanup(os.waitpid, pid, 0)
        self.addCleanup(client.close)
        network = NamespaceNetwork(client)
        self.addCleanup(network.close)
        return network

    def test_realAddresses(self) -> None:
        self.assertEqual((self.network.emulatesNames, self.network.hasBack), (False, True))

    def test_linkLocal(self) -> None:
        """An interface's number means nothing in the private namespaces; such a connection works all the same."""
        local, remote = v6(42000, "fe80::1", 7), v6(443, "fe80::2", 7)
        sock, attempt = self.held(local, remote)
        plain = self.keep(self.network.release(attempt, self.finder(sock)))
        self.assertEqual((sock.getsockname()[:2], sock.getpeername()[:2]), (("fe80::1", 42000), ("fe80::2", 443)))
        self.assertJoined(sock, plain)
        accepted, other = self.network.pair(socket.AF_INET6, remote, local)
        self.assertJoined(self.keep(accepted), self.keep(other))

    def test_sharedAddress(self) -> None:
        """The bell of one listener may ring at another one of the same address, as with SO_REUSEPORT."""
        listeners = []
        for _ in range(2):
            sock = self.program()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self.network.bind(sock, v4(9300))
            self.network.listen(sock, 64)
            listeners.append(sock)
        bells = [self.keep(self.network.ring(listeners[0].getsockname())[1]) for _ in range(32)]
        for sock in listeners:
            self.assertEqual(self.events(sock), select.POLLIN)
        listeners[1].close()
        self.assertNotEqual([bell for bell in bells if tcpState(bell) == TCP_CLOSE], [])

    def test_helperDies(self) -> None:
        """Without its helper a network fails at once."""
        pid, control = startHelper(userNamespace=self.userNamespace)
        client = HelperClient(control)
        self.addCleanup(client.close)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.assertEqual(self.assertRaises(OSError, NamespaceNetwork, client).errno, errno.ENETDOWN)


class RootNetworkTests(_HelperContract, SynchronousTestCase):
    """With root's rights."""

    way = "root"


class UserNamespaceNetworkTests(_HelperContract, SynchronousTestCase):
    """With those of an ordinary user."""

    way = "user-namespace"
    userNamespace = True


class LoopbackNetworkTests(NetworkContract, SynchronousTestCase):
    """Without namespaces."""

    def make(self) -> LoopbackNetwork:
        needWay("loopback")
        return LoopbackNetwork()


class FakeNetworkTests(NetworkContract, SynchronousTestCase):
    """The public stand-in keeps the contract."""

    def make(self) -> FakeNetwork:
        needWay("loopback")
        network = FakeNetwork()
        self.addCleanup(network.close)
        return network

    def test_errors(self) -> None:
        assert isinstance(self.network, FakeNetwork)
        self.network.errors["program"] = errno.EMFILE
        self.assertEqual(self.assertRaises(OSError, self.network.program, socket.AF_INET).errno, errno.EMFILE)


class PlainAddressTests(SynchronousTestCase):
    """IPv4 in IPv6."""

    def test_families(self) -> None:
        for address, family, plain in (
            (("192.0.2.1", 5), socket.AF_INET, ("192.0.2.1", 5)),
            (("::ffff:192.0.2.1", 5, 0, 0), socket.AF_INET, ("192.0.2.1", 5)),
            (("2001:db8::1", 5, 0, 0), socket.AF_INET6, ("2001:db8::1", 5, 0, 0)),
            (("::", 5, 0, 0), socket.AF_INET6, ("::", 5, 0, 0)),
            (("::ffff:1", 5, 0, 0), socket.AF_INET6, ("::ffff:1", 5, 0, 0)),
        ):
            self.assertEqual(plainAddress(address), (family, plain))
