# SPDX-License-Identifier: MIT
"""The service's entries: twistd's plug-in, and the embedded daemon as a process of its own."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import LogLevel
from twisted.python import usage
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from ssa import cli
from ssa.api import InternetAddress, Option
from ssa.descriptors import raiseDescriptorLimit
from ssa.embedded import logLevel
from ssa.errors import SSAError
from ssa.policy.profile import Policy
from ssa.service import Daemon
from ssa.statusformat import SUFFIX
from ssa.tap import Options, ReloadOnHangUp, cacheDirectory
from ssa.test.badservers import echo, running, serverContext, stalling
from ssa.test.loopback import LoopbackInterceptor
from ssa.test.pki import testCA

reactor: Any = _reactor


def after(seconds: float) -> Deferred[None]:
    """Wait."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


class OptionsTests(SynchronousTestCase):
    """The command line of C{twistd ssa}."""

    def parse(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(list(arguments))
        return options

    def write(self, text: str) -> str:
        path: str = self.mktemp()
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_good(self) -> None:
        """A configuration is read before the process goes into the background."""
        options = self.parse("--config", self.write("[default]\nHandshakeTimeout = 7\n"), "--socket", "/run/x.sock")
        self.assertEqual(7, options.policy.default.handshakeTimeout)
        self.assertEqual("/run/x.sock", options["socket"])

    def test_allErrors(self) -> None:
        """Every error of the configuration is told."""
        path = self.write("[default]\nHandshakeTimeout = soon\nNoSuchKey = 1\n")
        error = self.assertRaises(SystemExit, self.parse, "--config", path)
        for word in (f"{os.path.abspath(path)}:2", f"{path}:3", "HandshakeTimeout", "NoSuchKey"):
            self.assertIn(word, str(error))

    def test_filesOfOthers(self) -> None:
        """What the daemon cannot read any more after its start is an error at the start already, and for C{ssa check}."""
        if os.geteuid() != 0:
            raise SkipTest("an ordinary user can read no file of others anyway")
        credential = testCA().issue()
        chain, key = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        chain.write_bytes(credential.chainPEM)
        key.write_bytes(credential.keyPEM)
        path = self.write(f"[default]\nCertPath = {chain}\nKeyPath = {key}\n")
        self.parse("--config", path)
        os.chown(key, 1234, 1234)
        key.chmod(0o600)
        error = self.assertRaises(SystemExit, self.parse, "--config", path)
        self.assertIn(f":3: [default] KeyPath: {key}: Permission denied", str(error))
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.assertEqual(1, cli.main(["check", path]))
        self.assertIn("Permission denied", errors.getvalue())
        self.assertEqual(credential.keyPEM, key.read_bytes())

    def test_cache(self) -> None:
        """systemd names the directories of the cache in a variable, separated by colons; only an absolute one counts."""
        for value, expected in (
            (None, "/var/cache/ssa"),
            ("", "/var/cache/ssa"),
            ("/a/b", "/a/b"),
            ("/a/b:/c", "/a/b"),
            ("relative", "/var/cache/ssa"),
        ):
            self.assertEqual(expected, cacheDirectory({} if value is None else {"CACHE_DIRECTORY": value}))

    def test_missing(self) -> None:
        """A configuration that was named must exist."""
        self.assertRaises(SystemExit, self.parse, "--config", "/nonexistent/ssa.conf")

    def test_socket(self) -> None:
        """Paths that cannot be a unix socket's, nor become that of the status."""
        for path in ("relative.sock", "/" + "x" * 120, "/" + "x" * 100):
            self.assertRaises(usage.UsageError, self.parse, "--socket", path)
        self.parse("--socket", "/" + "x" * 99)

    def test_logLevel(self) -> None:
        """Quiet unless asked, whatever the variable holds."""
        self.assertEqual(LogLevel.debug, logLevel(" DEBUG"))
        for name in ("", "loud"):
            self.assertEqual(LogLevel.error, logLevel(name))

    def test_hangUp(self) -> None:
        """SIGHUP reads again, in the reactor; stopping gives the signal back."""
        calls: list[Any] = []

        class Reactor:
            """Remembers calls."""

            def callFromThread(self, call: Any) -> None:
                calls.append(call)

        reloads: list[None] = []

        def reload() -> None:
            reloads.append(None)

        before = signal.getsignal(signal.SIGHUP)
        service = ReloadOnHangUp(Reactor(), reload)
        service.startService()
        os.kill(os.getpid(), signal.SIGHUP)
        service.stopService()
        self.assertEqual([], reloads)
        calls.pop()()
        self.assertEqual(([None], []), (reloads, calls))
        self.assertEqual(before, signal.getsignal(signal.SIGHUP))

    def test_descriptors(self) -> None:
        """The soft limit becomes the hard one."""
        hard = raiseDescriptorLimit()
        self.assertEqual((hard, hard), resource.getrlimit(resource.RLIMIT_NOFILE))


class PathTests(TestCase):
    """The daemon at a path."""

    timeout = 20

    def test_serves(self) -> Deferred[None]:
        """A supervisor connects to the path; a second daemon cannot take it; it is gone after the stop."""
        path = os.path.join(os.path.abspath(self.mktemp()), "daemon.sock")
        if len(path) > 100:
            path = os.path.join("/tmp", f"ssa-test-{os.getpid()}.sock")

        async def test() -> None:
            daemon = Daemon(reactor, Policy())
            daemon.listenAt(path)
            daemon.startService()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(path)
            interceptor = LoopbackInterceptor(reactor, sock)
            program = await interceptor.newSocket()
            self.assertEqual(8, len(await interceptor.get(program, Option.TLS_ID)))
            other = Daemon(reactor, Policy())
            other.listenAt(path)
            self.assertRaises(CannotListenError, other.startService)
            await daemon.stopService()
            await interceptor.end.lost
            self.assertFalse(os.path.exists(path))
            try:
                await interceptor.newSocket()
            except SSAError as error:
                self.assertEqual(errno.ENETDOWN, error.errno)
            else:
                self.fail("a socket without a daemon")

        return Deferred.fromCoroutine(test())


    def test_bothOrNone(self) -> None:
        """Where something is in the way of the status socket, nothing is open, and what is in the way stays."""
        path = f"/tmp/ssa-test-{os.getpid()}.sock"
        with open(path + SUFFIX, "w"):
            self.addCleanup(os.unlink, path + SUFFIX)
        daemon = Daemon(reactor, Policy())
        daemon.listenAt(path)
        self.assertRaises(CannotListenError, daemon.privilegedStartService)
        self.assertFalse(os.path.exists(path))
        self.assertTrue(os.path.isfile(path + SUFFIX))
        for name in (path, path + SUFFIX):
            os.unlink(name + ".lock")

    def test_noStatusOfOnesOwn(self) -> None:
        """The daemon of C{ssa run} has no status socket."""
        daemon = Daemon(reactor, Policy())
        daemon.startService()
        self.addCleanup(daemon.stopService)
        self.assertEqual([], daemon._statusPorts)


class EmbeddedTests(TestCase):
    """The embedded daemon as C{ssa run} starts it."""

    timeout = 30

    def start(self, *arguments: str) -> tuple[LoopbackInterceptor, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            "import socket, sys; from ssa.embedded import runEmbedded; "
            "runEmbedded(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        theirs.close()
        assert process.stderr is not None
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return LoopbackInterceptor(reactor, ours), process

    async def ended(self, process: subprocess.Popen[bytes], seconds: float) -> tuple[int, bytes]:
        """Its status and what it wrote, within some seconds."""
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            self.assertLess(time.monotonic(), deadline, "the embedded daemon did not end")
            await after(0.02)
        assert process.stderr is not None
        return process.returncode, process.stderr.read()

    def test_life(self) -> Deferred[None]:
        """It serves, says nothing, and ends when the link and the connections have ended."""

        async def test() -> None:
            interceptor, process = self.start()
            with running(echo(serverContext(testCA().issue(["server.example"])))) as server:
                program = await interceptor.newSocket()
                await interceptor.set(program, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
                await interceptor.set(program, Option.TLS_REMOTE_HOSTNAME, b"server.example")
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                self.assertEqual(0, await interceptor.connect(program, address))
                assert program.plain is not None
                interceptor.end.close()
                await interceptor.end.lost
                program.plain.sendall(b"after the link")
                got = b""
                program.plain.setblocking(False)
                while got != b"after the link":
                    await after(0.01)
                    with contextlib.suppress(BlockingIOError):
                        got += program.plain.recv(100)
                self.assertIsNone(process.poll())
                interceptor.shutDown()
                self.assertEqual((0, b""), await self.ended(process, 5))

        return Deferred.fromCoroutine(test())

    def test_terminated(self) -> Deferred[None]:
        """SIGTERM: a pending connect gets ENETDOWN, and the process ends at once."""

        async def test() -> None:
            interceptor, process = self.start()
            with running(stalling) as server:
                program = await interceptor.newSocket()
                waiting = interceptor.startConnect(
                    program, InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                )
                await after(0.1)
                process.send_signal(signal.SIGTERM)
                answer: Any = await waiting
                self.assertEqual(-errno.ENETDOWN, answer.result)
                self.assertEqual((0, b""), await self.ended(process, 2))
            interceptor.shutDown()
            await interceptor.end.lost

        return Deferred.fromCoroutine(test())

    def test_killed(self) -> Deferred[None]:
        """SIGKILL: ENETDOWN for what is pending, ECONNRESET for what is connected."""

        async def test() -> None:
            interceptor, process = self.start()
            with running(stalling) as server, running(echo(serverContext(testCA().issue(["127.0.0.1"])))) as good:
                connected = await interceptor.newSocket()
                await interceptor.set(connected, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem)
                address = InternetAddress(socket.AF_INET, "127.0.0.1", good.port)
                self.assertEqual(0, await interceptor.connect(connected, address))
                pending = await interceptor.newSocket()
                waiting = interceptor.startConnect(
                    pending, InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                )
                await after(0.1)
                process.kill()
                try:
                    await waiting
                except SSAError as error:
                    self.assertEqual(errno.ENETDOWN, error.errno)
                else:
                    self.fail("an answer from a dead daemon")
                assert connected.plain is not None
                self.assertRaises(ConnectionResetError, connected.plain.recv, 1)
            interceptor.shutDown()

        return Deferred.fromCoroutine(test())

    def test_badConfiguration(self) -> Deferred[None]:
        """Errors of the configuration are told, and nothing is served."""

        async def test() -> None:
            path: str = self.mktemp()
            with open(path, "w") as file:
                file.write("[default]\nNoSuchKey = 1\n")
            interceptor, process = self.start(path)
            status, text = await self.ended(process, 5)
            self.assertEqual(78, status)
            self.assertIn(b"NoSuchKey", text)
            await interceptor.end.lost

        return Deferred.fromCoroutine(test())
