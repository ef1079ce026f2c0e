# SPDX-License-Identifier: MIT
"""What the daemon logs of its work: who, where to and why; and never a secret or what programs send."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from ssa.api import InternetAddress, Option
from ssa.errors import SSAError
from ssa.logs import LogOutput, lineSink
from ssa.policy.profile import Profile
from ssa.test.badservers import echo, running, serverContext
from ssa.test.pki import Credential, otherCA, testCA, testKey
from ssa.test.processes import environment
from ssa.test.test_daemon import DaemonCase
from ssa.test.test_errnotable import ROWS

PAYLOAD = b"a payload that nobody else may read"
PASSWORD = "open-sesame-of-the-key"
MARKER = base64.b64encode(b"the inside of a private key").decode()


def secretsOf(credential: Credential) -> Iterator[str]:
    """Texts by which a private key would show."""
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        pem = credential.key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()
        yield from [line for line in pem.splitlines() if len(line) > 20 and "-----" not in line]
    der = credential.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    yield der.hex()[64:128]
    yield repr(der)[20:60]


class LoggedCase(DaemonCase):
    """A daemon with all of its log, as text and as JSON."""

    timeout = 60
    profile = Profile(handshakeTimeout=1.0)

    def setUp(self) -> None:
        super().setUp()
        self.text, self.json = io.StringIO(), io.StringIO()
        for file, name in ((self.text, "text"), (self.json, "json")):
            output = LogOutput(lineSink(file), "debug", name)
            globalLogPublisher.addObserver(output)
            self.addCleanup(globalLogPublisher.removeObserver, output)

    def events(self) -> list[dict[str, Any]]:
        """The events as objects."""
        return [json.loads(line) for line in self.json.getvalue().splitlines()]


class ContentTests(LoggedCase):
    """What an event tells."""

    async def test_connect(self) -> None:
        """A refused certificate: the program, the destination, the identity, the check and the rule, at C{warn}."""
        number, told = await self.connectTo(echo(serverContext(testCA().issue(expired=True))))
        self.assertEqual(number, errno.EKEYEXPIRED)
        (event,) = [each for each in self.events() if "errno" in each]
        self.assertEqual((event["level"], event["errno"], event["destination"]), ("warn", "EKEYEXPIRED", "127.0.0.1"))
        self.assertEqual((event["identity"], event["alert_sent"]), ("server.example", "certificate_expired (45)"))
        self.assertIsInstance(event["port"], int)
        for key in ("executable", "comm", "pid", "uid"):
            self.assertIn(key, event)
        self.assertIn(told, event["message"])
        pattern = r"\Aconnect to 127\.0\.0\.1 port \d+ failed: EKEYEXPIRED: .*; program .*, user \d+\Z"
        self.assertRegex(event["message"], pattern)
        self.assertTrue(all(not isinstance(value, (dict, list)) for value in event.values()))
        self.assertIn(event["message"], self.text.getvalue())

    async def test_level(self) -> None:
        """What no check has refused is worth less."""
        number, _ = await self.connectTo(ROWS["alert"].serve())
        self.assertEqual(number, errno.EPROTO)
        (event,) = [each for each in self.events() if "errno" in each]
        self.assertEqual((event["level"], event["alert_received"]), ("info", "handshake_failure (40)"))
        self.assertIn("TLSv1.3", event["offered_versions"])

    async def test_listener(self) -> None:
        """A client that is refused: its address, and what it offered."""
        program = await self.interceptor.newSocket()
        credential = testCA().issue()
        await self.interceptor.set(program, Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
        await self.interceptor.set(program, Option.TLS_PRIVATE_KEY, credential.keyPEM)
        address = await self.interceptor.listen(program)

        def http() -> None:
            with socket.create_connection(address.forSocket()[:2]) as sock:
                sock.sendall(b"GET /private HTTP/1.0\r\n\r\n")
                sock.settimeout(5)
                sock.recv(100)

        await deferToThread(http)
        (event,) = [each for each in self.events() if "errno" in each]
        self.assertEqual((event["level"], event["peer"], event["errno"]), ("info", "127.0.0.1", "EPROTO"))
        self.assertIn("the client: it speaks HTTP", event["message"])
        self.assertNotIn("private", self.json.getvalue())

    async def test_rate(self) -> None:
        """A program that fails all the time does not fill the disk."""
        closed = InternetAddress(socket.AF_INET, "127.0.0.1", 1)
        program = await self.client()
        for _ in range(150):
            self.assertEqual(await self.interceptor.connect(program, closed), errno.ECONNREFUSED)
        self.assertLess(len([each for each in self.events() if each.get("errno") == "ECONNREFUSED"]), 130)


class SecretTests(LoggedCase):
    """What is never logged, at any level, nor told by TLS_ERROR."""

    async def test_secrets(self) -> None:
        """Keys, PEM, passwords and payload: with good and bad options, good and bad peers."""
        own = testCA().issue(key=testKey("ec", 91), purpose="both")
        other = otherCA().issue(key=testKey("rsa", 92))
        encrypted = own.encryptedKeyPEM
        damaged = f"-----BEGIN PRIVATE KEY-----\n{MARKER}\n-----END PRIVATE KEY-----\n".encode()
        told: list[str] = []

        async def tried(program: Any, option: Option, value: bytes) -> None:
            try:
                await self.interceptor.set(program, option, value)
            except SSAError as error:
                told.append(str(error))
            told.append(await self.interceptor.error(program))

        for row in ROWS.values():
            program = await self.client()
            await tried(program, Option.TLS_CERTIFICATE_CHAIN, own.chainPEM)
            for bad in (encrypted, damaged, PASSWORD.encode(), own.keyPEM[:-40]):
                await tried(program, Option.TLS_PRIVATE_KEY, bad)
            await tried(program, Option.TLS_CERTIFICATE_CHAIN, own.keyPEM)
            await tried(program, Option.TLS_REMOTE_HOSTNAME, own.keyPEM[:200])
            with running(row.serve()) as server:
                address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
                await tried(program, Option.TLS_PRIVATE_KEY, other.keyPEM)
                number = await self.interceptor.connect(program, address)  # the key does not fit
                self.assertEqual(number, errno.ENOKEY)
                told.append(await self.interceptor.error(program))
                await tried(program, Option.TLS_CERTIFICATE_CHAIN, other.chainPEM)
                await tried(program, Option.TLS_PRIVATE_KEY, own.keyPEM)
                await self.interceptor.connect(program, address)
                told.append(await self.interceptor.error(program))
        with running(echo(serverContext(testCA().issue()))) as server:
            program = await self.client()
            address = InternetAddress(socket.AF_INET, "127.0.0.1", server.port)
            self.assertEqual(await self.interceptor.connect(program, address), 0)
            assert program.plain is not None

            def talk(sock: socket.socket) -> bytes:
                sock.sendall(PAYLOAD)
                return sock.recv(1000)

            self.assertEqual(await deferToThread(talk, program.plain), PAYLOAD)
            self.interceptor.close(program)
        everything = self.text.getvalue() + self.json.getvalue() + "\n".join(told)
        self.assertGreater(len(self.events()), len(ROWS))
        others = (PAYLOAD.decode(), PAYLOAD.hex(), PASSWORD, MARKER, "PRIVATE KEY-----\n")
        for secret in (*secretsOf(own), *secretsOf(other), *others):
            self.assertNotIn(secret, everything)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(line for line in file if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


class DaemonLogTests(TestCase):
    """The log of C{twistd ssa}."""

    timeout = 60

    def test_twistd(self) -> None:
        """It is our own format, and the level is the policy's from the beginning on, and after a reload."""
        directory = os.path.abspath(self.mktemp())
        os.makedirs(directory)
        script = (
            "import sys\n"
            "from ssa import tap\n"
            "from ssa.policy.profile import Policy\n"
            "levels = iter([('info', 'json'), ('error', 'text'), ('info', 'text')])\n"
            "def load(self):\n"
            "    policy = Policy()\n"
            "    policy.logLevel, policy.logFormat = next(levels)\n"
            "    return policy\n"
            "tap.Options.load = load\n"
            "from twisted.scripts.twistd import run\n"
            f"sys.argv = ['twistd', '-n', '--pidfile=', 'ssa', '--no-kernel', '--socket', '/tmp/ssa-log-{os.getpid()}.sock']\n"
            "run()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=directory,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        killer = threading.Timer(30, process.kill)
        killer.start()
        self.addCleanup(killer.cancel)
        assert process.stdout is not None
        lines: list[str] = []

        def until(pattern: str) -> None:
            for line in process.stdout or ():
                lines.append(line)
                if re.search(pattern, line):
                    return
            self.fail(f"no {pattern}: {lines}")

        until("capabilities")
        begun = [json.loads(line) for line in lines[-2:]]
        self.assertIn("serving at", begun[0]["message"])
        lines.clear()
        while not catches(process.pid, signal.SIGHUP):
            signal.sigtimedwait([], 0.05)
        os.kill(process.pid, signal.SIGHUP)  # error: nothing is logged
        signal.sigtimedwait([], 0.5)
        os.kill(process.pid, signal.SIGHUP)  # info
        until("the configuration was read again")
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], r"\A\S+ \[ssa\.tap\.SystemDaemon#info\] the configuration was read again$")
        process.terminate()
        process.communicate()
        self.assertEqual(os.listdir(directory), [])
