# SPDX-License-Identifier: MIT
"""C{ssa run} beside the rest of the machine: a daemon of its own, other users, other network namespaces, TLS_UPGRADE."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest

from ssa.intercept.linux import CLONE_NEWNET, unshare
from ssa.intercept.way import ProbeFailed, inChild
from ssa.test.sessions import DEADLINE, SessionTestCase
from ssa.test.test_faults import Peer


class SystemDaemonTests(SessionTestCase):
    """C{twistd ssa} serves supervisors on a socket."""

    def test_serves(self) -> None:
        """A program's connection is the daemon's; the supervisor starts none of its own."""
        self.startDaemon()
        peer = Peer(self)
        session = self.start(
            f"""
            sock = client()
            sock.connect(("127.0.0.1", {peer.port}))
            say(sock.recv(100).decode())
            """,
            options=["--daemon", self.socketPath],
        )
        self.assertEqual(session.line(), "hello")
        self.assertEqual(session.wait(), 0)

    def test_missing(self) -> None:
        """A daemon that was asked for and is not there is an error, not another daemon."""
        path = str(self.directory / "none.sock")
        result = subprocess.run(
            [*self.command("--daemon", path), "true"],
            env=self.environment,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        self.assertEqual(result.returncode, 125)
        self.assertIn(f"no daemon can be reached at {path}: No such file".encode(), result.stderr)

    def test_restart(self) -> None:
        """A program that lives longer than the daemon gets ENETDOWN, and is served again when there is a new one."""
        daemon = self.startDaemon()
        peer = Peer(self)
        session = self.start(
            f"""
            old = client()
            say("made")
            sys.stdin.readline()
            say(attempt(client)[0], attempt(old.connect, ("127.0.0.1", {peer.port}))[0])
            sys.stdin.readline()
            for _ in range(200):
                result = attempt(client)[0]
                if result != "ENETDOWN":
                    break
                time.sleep(0.05)
            result.connect(("127.0.0.1", {peer.port}))
            say(result.recv(100).decode(), attempt(old.connect, ("127.0.0.1", {peer.port}))[0])
            """,
            options=["--daemon", self.socketPath],
        )
        self.assertEqual(session.line(), "made")
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        session.tell("gone")
        self.assertEqual(session.line(), "ENETDOWN ENETDOWN")
        self.startDaemon()
        session.tell("back")
        self.assertEqual(session.line(), "hello ENETDOWN")


class RightsTests(SessionTestCase):
    """Root's supervisor does nothing for a program that the program could not do."""

    def setUp(self) -> None:
        if os.geteuid():
            raise SkipTest("only root's supervisor has more rights than its programs")
        super().setUp()

    def test_lowPort(self) -> None:
        """A program that gave up root cannot bind below 1024; one that is root can."""
        session = self.start(
            """
            sock = client()
            with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
                lowest = int(file.read())
            say(attempt(sock.bind, ("127.0.0.1", lowest - 1))[0] if lowest else None)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 205)
            say(attempt(sock.bind, ("127.0.0.1", lowest - 2))[0] if lowest else "EACCES")
            """
        )
        self.assertEqual(session.line(), "None")
        self.assertEqual(session.line(), "EACCES")

    def test_firstSocket(self) -> None:
        """A program that gave up root before its first TLS socket can bind, listen and connect."""
        peer = Peer(self)
        session = self.start(
            f"""
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            say(attempt(listener)[0].getsockname()[0])
            sock = client()
            say(attempt(sock.connect, ("127.0.0.1", {peer.port}))[0])
            """
        )
        self.assertEqual(session.line(), "127.0.0.1")
        self.assertEqual(session.line(), "None")

    def test_files(self) -> None:
        """A program that gave up root cannot name a file that only root may read, nor learn whether it is there."""
        secret = self.directory / "secret"
        secret.mkdir(mode=0o700)
        (secret / "ca.pem").write_bytes(Path(self.environment["SSA_TEST_CA"]).read_bytes())
        self.addCleanup(secret.rmdir)
        self.addCleanup((secret / "ca.pem").unlink)
        session = self.start(
            f"""
            path = {str(secret / "ca.pem")!r}.encode()
            sock = client()
            say(attempt(sock.setsockopt, 205, 87, path)[0], attempt(sock.setsockopt, 205, 87, path + b"x")[0])
            os.setresgid(65534, 65534, 65534)
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            for name in (path, path + b"x"):
                say(attempt(sock.setsockopt, 205, 87, name)[0])
            say(sock.getsockopt(205, 100, 1000).decode())
            """
        )
        self.assertEqual(session.line(), "None ENOENT")
        self.assertEqual(session.line(), "EACCES")
        self.assertEqual(session.line(), "EACCES")
        self.assertIn("TLS_TRUSTED_PEER_CERTIFICATES", session.line())

    def test_relativePath(self) -> None:
        """A relative path is one from the program's working directory."""
        session = self.start(
            f"""
            sock = client()
            os.chdir({str(self.directory)!r})
            say(attempt(sock.setsockopt, 205, 87, b"ca.pem")[0], attempt(sock.setsockopt, 205, 87, b"./ca.pem\\0")[0])
            os.chdir("/")
            say(attempt(sock.setsockopt, 205, 87, b"ca.pem")[0])
            """
        )
        self.assertEqual(session.line(), "None None")
        self.assertEqual(session.line(), "ENOENT")

    def test_root(self) -> None:
        """A path is resolved from the program's root directory, symbolic links too."""
        jail = self.directory / "jail"
        jail.mkdir()
        (jail / "real.pem").write_bytes(Path(self.environment["SSA_TEST_CA"]).read_bytes())
        (jail / "ca.pem").symlink_to("/real.pem")
        (jail / "out.pem").symlink_to("../../../../../../etc/passwd")
        self.addCleanup(jail.rmdir)
        for name in ("real.pem", "ca.pem", "out.pem"):
            self.addCleanup((jail / name).unlink)
        session = self.start(
            f"""
            sock = client()
            os.chroot({str(jail)!r})
            os.chdir("/")
            for name in (b"/ca.pem", b"/etc/passwd", b"/out.pem", b"ca.pem", b"real.pem"):
                say(attempt(sock.setsockopt, 205, 87, name)[0])
            """
        )
        self.assertEqual(session.line(), "None")
        self.assertEqual(session.line(), "ENOENT")
        self.assertEqual(session.line(), "ENOENT")
        self.assertEqual(session.line(), "EACCES")
        self.assertEqual(session.line(), "None")

    def test_oddFiles(self) -> None:
        """A FIFO does not hang, and neither it nor a device nor a huge file is read."""
        fifo = self.directory / "fifo"
        os.mkfifo(fifo)
        huge = self.directory / "huge"
        with huge.open("wb") as file:
            file.truncate(1 << 30)
        session = self.start(
            f"""
            sock = client()
            for name in ({str(fifo)!r}, "/dev/zero", {str(huge)!r}, {str(self.directory)!r}):
                say(*attempt(sock.setsockopt, 205, 88, name.encode()))
            """
        )
        for expected in ("EINVAL", "EINVAL", "EFBIG", "EISDIR"):
            name, took = session.line().split()
            self.assertEqual(name, expected)
            self.assertLess(float(took), 1.0)

    def test_otherNetwork(self) -> None:
        """A program that moves to another network namespace connects on that network."""
        try:
            inChild(lambda: unshare(CLONE_NEWNET))
        except ProbeFailed as why:
            raise SkipTest(f"no network namespace can be made: {why}") from why
        peer = Peer(self)
        session = self.start(
            f"""
            import ctypes, fcntl, ssl, threading
            if ctypes.CDLL(None).unshare(0x40000000):
                raise SystemExit("unshare failed")
            say(attempt(client().connect, ("127.0.0.1", {peer.port}))[0])
            probe = socket.socket()
            request = struct.pack("16sH14x", b"lo", 1)
            fcntl.ioctl(probe, 0x8914, request)  # SIOCSIFFLAGS, IFF_UP
            server = socket.create_server(("127.0.0.1", {peer.port}))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CHAIN, KEY)
            def serve():
                sock = context.wrap_socket(server.accept()[0], server_side=True)
                sock.sendall(b"from inside")
                sock.close()
            threading.Thread(target=serve, daemon=True).start()
            sock = client()
            sock.connect(("127.0.0.1", {peer.port}))
            say(sock.recv(100).decode())
            """
        )
        self.assertEqual(session.line(), "ENETUNREACH")
        self.assertEqual(session.line(), "from inside")
        self.assertEqual(peer.connections, [])


class UpgradeTests(SessionTestCase):
    """TLS_UPGRADE takes over a connected TCP socket."""

    def test_bothRoles(self) -> None:
        """
        A client and a server under the same supervisor turn one TCP connection into TLS and talk.

        They are two processes: Python holds its interpreter lock in setsockopt(2), so two threads of it would wait for
        each other.
        """
        session = self.start(
            """
            server = socket.create_server(("127.0.0.1", 0))
            def serve():
                plain, _ = server.accept()
                plain.sendall(b"220 ready")
                assert plain.recv(100) == b"STARTTLS"
                secure = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 205)
                secure.setsockopt(205, 88, CHAIN.encode())
                secure.setsockopt(205, 89, KEY.encode())
                secure.setsockopt(205, 140, struct.pack("ii", plain.fileno(), 1))
                plain.close()
                say("server", secure.getsockname() == server.getsockname(), secure.recv(100).decode())
                secure.sendall(b"secret back")
                secure.close()
            if not os.fork():
                serve()
                os._exit(0)
            plain = socket.create_connection(server.getsockname())
            assert plain.recv(100) == b"220 ready"
            plain.sendall(b"STARTTLS")
            secure = client()
            secure.setsockopt(205, 85, b"localhost")
            secure.setsockopt(205, 140, struct.pack("ii", plain.fileno(), 0))
            names = plain.getsockname(), plain.getpeername()
            plain.close()
            secure.sendall(b"secret")
            os.wait()
            say("client", (secure.getsockname(), secure.getpeername()) == names, secure.recv(100).decode())
            say(repr(secure.recv(100)), secure.getsockopt(205, 93, 100))
            """
        )
        self.assertEqual(session.line(), "server True secret")
        self.assertEqual(session.line(), "client True secret back")
        self.assertEqual(session.line(), "b'' b'CN=localhost\\x00'")
        self.assertEqual(session.wait(), 0)

    def test_refusals(self) -> None:
        """What cannot be upgraded is refused with its errno."""
        session = self.start(
            """
            sock = client()
            def upgrade(value):
                return attempt(sock.setsockopt, 205, 140, value)[0]
            file = os.open("/dev/null", os.O_RDONLY)
            datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            local, _ = socket.socketpair()
            fresh = socket.socket()
            tls = client()
            say(upgrade(b"short"), upgrade(struct.pack("ii", 999, 0)), upgrade(struct.pack("ii", file, 0)))
            say(*(upgrade(struct.pack("ii", one.fileno(), 0)) for one in (datagram, local, fresh, tls)))
            say(upgrade(struct.pack("ii", fresh.fileno(), 2)))
            """
        )
        self.assertEqual(session.line(), "EINVAL EBADF ENOTSOCK")
        self.assertEqual(session.line(), "EINVAL EAFNOSUPPORT ENOTCONN EINVAL")
        self.assertEqual(session.line(), "EINVAL")


class ManyConnectionsTests(SessionTestCase):
    """Short connections one after the other."""

    def test_noDelay(self) -> None:
        """Small requests are not held back by Nagle's algorithm meeting delayed acknowledgements (40 ms each)."""
        peer = Peer(self)
        session = self.start(
            f"""
            begin = time.monotonic()
            for _ in range(50):
                sock = client()
                sock.connect(("127.0.0.1", {peer.port}))
                sock.send(b"a")
                sock.send(b"b")
                assert sock.recv(5) == b"hello"
                sock.close()
            say(time.monotonic() - begin)
            """
        )
        begin = time.monotonic()
        self.assertGreater(float(session.line(60)), 0)
        self.assertLess(time.monotonic() - begin, DEADLINE)
