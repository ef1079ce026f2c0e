# SPDX-License-Identifier: MIT
"""The document of C{ssa status}, on sockets with everything around them in memory."""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ssa import status as module
from ssa.api import Option, Role
from ssa.errors import Cause, SSAError
from ssa.options import IConnectionInfo
from ssa.policy.parser import ConfigurationError
from ssa.policy.profile import Caller, Profile
from ssa.protocol.kernelport import State
from ssa.protocol.messages import AcceptNotify, CloseNotify, SocketNotify
from ssa.revocation.cache import Cache, Entry, Key
from ssa.socketstatus import Attempt, SocketFacts, describeSocket
from ssa.states import Stage
from ssa.status import MOST_ERRORS, ConfigurationState, Parts, Status
from ssa.test.fakes import LOCAL, REMOTE, FakeInterceptor
from ssa.test.pki import testCA
from ssa.test.test_logged import secretsOf
from ssa.test.test_sockets import NAME, ListenerCase

SEES_ALL, USER, OTHER = 990, 1000, 1001


class Info:
    """What is known of a connection."""

    accepted = False

    def version(self) -> int:
        return 0x0304

    def cipher(self) -> str:
        return "TLS_AES_128_GCM_SHA256"

    def group(self) -> str:
        raise Cause.NO_DATA.error("the library cannot tell")

    def applicationProtocol(self) -> bytes:
        return b"h2"

    def resumed(self) -> bool:
        return True

    def dataPath(self) -> str:
        return "relay"


class StatusCase(ListenerCase):
    """A dispatcher, and its status."""

    kernel: Any = None
    supervisors: tuple[Any, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        buffers: Any = type("Buffers", (), {"lent": 2})()
        self.state = ConfigurationState(lambda: 1.0e9)
        self.revocation = Cache(lambda: 0.0)
        parts = Parts(
            self.around.services,
            self.dispatcher,
            buffers,
            [None] * 3,
            [None] * 4,
            self.revocation,
            self.state,
            lambda: State.WAITING,
            lambda: self.supervisors,
            lambda: self.kernel,
            lambda: SEES_ALL,
            lambda: 4321,
        )
        self.status = Status(parts, lambda: 1.0e9 + self.around.reactor.seconds())

    def connected(self, id: int = 1) -> Any:
        secured = super().connected(id)
        secured.info = Info()
        return secured

    def text(self, uid: int = 0) -> str:
        return "".join(self.status.pieces(uid))

    def document(self, uid: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.text(uid))
        return document

    def ids(self, uid: int = 0) -> list[tuple[int, str]]:
        return [(each["uid"], each["stage"]) for each in self.document(uid)["sockets"]]


class ViewTests(StatusCase):
    """Who sees what."""

    def test_everything(self) -> None:
        """Root and the daemon's own user see all users."""
        self.newSocket(1)
        self.newSocket(2, uid=OTHER)
        for uid in (0, SEES_ALL):
            document = self.document(uid)
            self.assertEqual("all", document["view"])
            self.assertEqual([USER, OTHER], [each["uid"] for each in document["sockets"]])
            self.assertEqual(2, document["totals"]["sockets"])
            self.assertEqual((uid, 0), (document["user"]["uid"], document["user"]["sockets"]))

    def test_own(self) -> None:
        """Others see nothing that changes with what anybody else does."""
        self.supervisors = (self.interceptor,)
        before = self.text(OTHER)
        self.state.hasFailed(ValueError("secret of the configuration"))
        secured = self.connected()
        secured.relays[0].bytesIn = 99
        self.newSocket(2)
        self.connect(id=2)
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.assertEqual(before, self.text(OTHER))
        self.factory.refuse(Cause.EXPIRED.error())
        self.assertEqual(before, self.text(OTHER))
        document = self.document(USER)
        self.assertEqual("user", document["view"])
        self.assertEqual([(USER, "connected"), (USER, "failed")], self.ids(USER))
        user = document["user"]
        self.assertEqual((2, 1, 99, 16384), tuple(user[k] for k in ("sockets", "connections", "bytes_received", "max_sockets")))
        self.assertEqual({"EKEYEXPIRED": 1}, user["attempts"]["client"]["errors"])
        self.assertEqual([self.interceptor.peerPID], [each["pid"] for each in document["interceptors"]])
        self.assertNotIn("secret", self.text(USER))

    def test_interceptors(self) -> None:
        """The kernel is shown to those who see everything; there may be many supervisors."""
        self.patch(module, "MOST_INTERCEPTORS", 3)
        self.kernel = type("Kernel", (), {"peerUID": 0, "peerPID": 0})()
        self.supervisors = tuple(FakeInterceptor() for _ in range(4))
        document = self.document()
        self.assertEqual(["kernel", "supervisor", "supervisor"], [each["kind"] for each in document["interceptors"]])
        self.assertEqual(2, document["interceptors_not_listed"])
        self.assertEqual(4, document["limits"]["supervisors"]["used"])
        self.assertEqual([], self.document(OTHER)["interceptors"])
        self.assertEqual(["supervisor"] * 3, [each["kind"] for each in self.document(USER)["interceptors"]])

    def test_taken(self) -> None:
        """A connection is that of the user whose program has taken it, not of the one who made the listener."""
        real = self.listen()
        self.client(real)
        self.around.reactor.readable()
        self.factory.succeed().info = Info()
        self.interceptor.accepts.pop()[1].callback((50, self.interceptor.plaintext()))
        self.tell(AcceptNotify, 50, 88, OTHER, "child", "/bin/child", 1, 2, 3, 4)
        self.assertEqual([(USER, "listening")], self.ids(USER))
        self.assertEqual([(OTHER, "connected")], self.ids(OTHER))

    def test_secrets(self) -> None:
        """Nothing of what a program has set comes out but whom the peer must be."""
        credential = testCA().issue(["secret-name.example"])
        self.newSocket()
        for option, value in (
            (Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM),
            (Option.TLS_PRIVATE_KEY, credential.keyPEM),
            (Option.TLS_ALPN, b"private-protocol"),
            (Option.TLS_REMOTE_HOSTNAME, b"server.example"),
        ):
            self.assertEqual(0, self.set(option, value))
        self.connect()
        text = self.text()
        for secret in (*secretsOf(credential), "PRIVATE", "CERTIFICATE", "private-protocol", "secret-name"):
            self.assertNotIn(secret, text)
        self.assertIn('"server.example"', text)


class ContentTests(StatusCase):
    """What a field holds."""

    def test_overview(self) -> None:
        """The parts of the daemon."""
        self.status.userName = "dae\x1bmon"
        self.revocation.put(Key("crl", b"", "x"), Entry(b"12345", 100.0))
        self.around.reactor.advance(2.5)
        document = self.document()
        self.assertEqual("2001-09-09T01:46:42.500+00:00", document["time"])
        daemon = document["daemon"]
        shown = tuple(daemon[key] for key in ("uptime_seconds", "pid", "uid", "user"))
        self.assertEqual((2.5, 4321, SEES_ALL, r"dae\x1bmon"), shown)
        self.assertTrue(daemon["libraries"]["openssl"].startswith("OpenSSL "))
        self.assertEqual("waiting", document["kernel_module"]["state"])
        self.assertEqual({"used": 2, "limit": 2048}, document["limits"]["relay_buffers"])
        caches = {"sessions": 3, "contexts": 4, "revocation_answers": 1, "revocation_bytes": 5}
        self.assertEqual(caches, document["caches"])
        self.assertEqual("serving", daemon["state"])
        self.status.isStopping = True
        self.assertEqual("stopping", self.document(USER)["daemon"]["state"])

    def test_socket(self) -> None:
        """A socket through its life."""
        self.newSocket()
        (new,) = self.document()["sockets"]
        self.assertEqual(("new", None, None, None), tuple(new[key] for key in ("stage", "role", "remote", "sections")))
        answer = self.connect(NAME)
        (resolving,) = self.document()["sockets"]
        self.assertEqual(
            ("resolving", "client", "server.example:443", "server.example", ["default"]),
            tuple(resolving[key] for key in ("stage", "role", "remote", "identity", "sections")),
        )
        self.around.resolver.asked.pop()[2].callback([REMOTE])
        self.interceptor.giveReal()
        self.around.reactor.writable()
        self.assertEqual((1, 1), (self.document()["totals"]["handshakes"], self.document()["totals"]["stages"]["handshaking"]))
        self.around.reactor.advance(1)
        secured = self.factory.succeed()
        secured.info = Info()
        self.interceptor.establishes.pop()[1].callback(self.interceptor.plaintext())
        self.assertEqual(0, self.result(answer))
        self.around.reactor.advance(2)
        (connected,) = self.document()["sockets"]
        self.assertEqual((str(LOCAL), str(REMOTE)), (connected["local"], connected["remote"]))
        self.assertEqual((3.0, 2.0), (connected["age_seconds"], connected["connection"]["age_seconds"]))
        secured.relays[0].end(SSAError(errno.ECONNRESET, "the peer\x07 is gone"))
        (ended,) = self.document()["sockets"]
        self.assertFalse(ended["connection"]["open"])
        self.assertEqual(r"the peer\x07 is gone", ended["error"])
        self.tell(CloseNotify, 1)
        self.assertEqual([], self.document()["sockets"])

    def test_closed(self) -> None:
        """What a program has closed is shown as long as it is being sent."""
        secured = self.connected()
        self.tell(CloseNotify, 1)
        (closed,) = self.document()["sockets"]
        self.assertEqual(("closed", str(REMOTE), REMOTE.host), tuple(closed[key] for key in ("stage", "remote", "identity")))
        secured.relays[0].end()
        self.assertEqual([], self.document()["sockets"])

    def test_hostileNames(self) -> None:
        """What a program calls itself is one printable line, in ASCII."""
        evil = "\x1b]0;x\x07\n\u202e\x9b1m\udcff\u00fc\u6f22"
        self.number += 1
        event = SocketNotify(self.number, 1, socket.AF_INET, 77, USER, evil, "/bin/" + evil, 1, 2, 3, 4)
        self.dispatcher.eventReceived(self.interceptor, event)
        text = self.text()
        self.assertTrue(text.isascii())
        self.assertTrue(all(c.isprintable() or c == "\n" for c in text))
        (shown,) = json.loads(text)["sockets"]
        for name in ("comm", "executable"):
            self.assertTrue(shown[name].isprintable(), shown[name])
            self.assertTrue(shown[name].endswith("\u00fc\u6f22"))

    def test_describe(self) -> None:
        """What the TLS library cannot tell, and versions with and without a name."""

        def described(info: IConnectionInfo) -> Any:
            secured: Any = type("Secured", (), {"info": info, "external": LOCAL, "remote": REMOTE})()
            profile = Profile(sections=("profile a\n", "profile b"))
            attempt = Attempt(Role.SERVER)
            facts = SocketFacts(
                1, Stage.CONNECTED, Caller(1), attempt, profile, secured, True, (1, 2), None, "", 1.0, 2.0
            )
            return describeSocket(facts, 5.0)

        info: Any = Info()
        shown = described(info)
        self.assertEqual(["default", "profile a", "profile b"], shown["sections"])
        self.assertEqual("server", shown["role"])
        self.assertEqual((None, "h2", True), tuple(shown["connection"][key] for key in ("group", "alpn", "resumed")))
        for number, name in ((0x0304, "TLSv1.3"), (0x0301, "TLSv1"), (0x0399, "0x0399")):
            info.version = lambda number=number: number
            self.assertEqual(name, described(info)["connection"]["version"])


class ManyTests(StatusCase):
    """Many sockets: little by little, and not all of them."""

    def test_oneMoment(self) -> None:
        """The totals are those of the moment when they were begun, to the byte, whatever happens meanwhile."""
        self.patch(module, "_SUMMED", 1)
        relays = [self.connected(number).relays[0] for number in range(1, 5)]
        for relay in relays:
            relay.bytesIn = 10
        pieces = self.status.pieces(0)
        self.assertEqual("", next(pieces))
        for number, relay in enumerate(relays, 1):
            relay.end()
            self.tell(CloseNotify, number)
        self.connected(9)
        document = json.loads("".join(pieces))
        self.assertEqual((40, 4), (document["totals"]["bytes_received"], document["totals"]["sockets"]))
        self.assertEqual(([], 0), (document["sockets"], document["sockets_not_listed"]))
        self.assertEqual(40, self.document()["totals"]["bytes_received"])

    def test_steps(self) -> None:
        """However many there are, one step does little."""
        for number in range(1, 1001):
            self.newSocket(number)
        pieces = [piece.count('"stage"') for piece in self.status.pieces(0)]
        self.assertEqual(1000, sum(pieces))
        self.assertLessEqual(max(pieces), 8)
        self.assertEqual([0, 0, 0], pieces[:3])

    def test_stepsOverGone(self) -> None:
        """Sockets that have gone meanwhile are steps, too."""
        for number in range(1, 101):
            self.newSocket(number)
        pieces = self.status.pieces(0)
        self.assertIn('"totals"', next(pieces))
        for number in range(1, 101):
            self.tell(CloseNotify, number)
        self.assertGreater(len(list(pieces)), 10)

    def test_inTurns(self) -> None:
        """Of too many, all users' are listed in turn: nobody hides others behind sockets of one's own."""
        self.patch(module, "MOST_LISTED", 4)
        for number in range(1, 11):
            self.newSocket(number)
        self.newSocket(11, uid=OTHER)
        document = self.document()
        self.assertEqual([USER, OTHER, USER, USER], [each["uid"] for each in document["sockets"]])
        self.assertEqual((7, 11), (document["sockets_not_listed"], document["totals"]["sockets"]))

    def test_ofUser(self) -> None:
        """Those who do not see everything get fewer, and their own number all the same."""
        self.patch(module, "MOST_LISTED_OF_USER", 2)
        for number in range(1, 6):
            self.newSocket(number)
        document = self.document(USER)
        self.assertEqual((2, 3, 5), (len(document["sockets"]), document["sockets_not_listed"], document["user"]["sockets"]))
        self.assertEqual(5, len(self.document(0)["sockets"]))

    def test_bytes(self) -> None:
        """The list has a bound in bytes, too."""
        self.patch(module, "MOST_BYTES", 1000)
        for number in range(1, 20):
            self.newSocket(number)
        text = self.text()
        document = json.loads(text)
        self.assertLess(len(text), 6000)
        self.assertEqual(19, len(document["sockets"]) + document["sockets_not_listed"])


class ConfigurationTests(SynchronousTestCase):
    """How the configuration was read."""

    def setUp(self) -> None:
        self.time = 1.0
        self.state = ConfigurationState(lambda: self.time)

    def test_reload(self) -> None:
        """A failure with its errors, until the next success."""
        self.time = 2.0
        self.state.hasFailed(ConfigurationError(["f:1: one\x1b", "f:2: two"]))
        self.assertEqual((1.0, 2.0, ("f:1: one\\x1b", "f:2: two")), (self.state.read, self.state.failed, self.state.errors))
        self.time = 3.0
        self.state.succeeded()
        self.assertEqual((3.0, None, ()), (self.state.read, self.state.failed, self.state.errors))

    def test_files(self) -> None:
        """Files that can be read again say nothing of a configuration that cannot; their own failures they end."""
        self.state.hasFailed(ConfigurationError(["f:1: one"]))
        self.time = 2.0
        self.state.succeeded(onlyFiles=True)
        self.assertEqual((1.0, 2.0, ("f:1: one",)), (self.state.read, self.state.filesRead, self.state.errors))
        self.state.hasFailed(ConfigurationError(["f:3: key"]), onlyFiles=True)
        self.state.succeeded(onlyFiles=True)
        self.assertIsNone(self.state.failed)

    def test_many(self) -> None:
        """So many errors, and how many more."""
        self.state.hasFailed(ConfigurationError(["x"] * (MOST_ERRORS + 7)))
        self.assertEqual((MOST_ERRORS + 1, "7 more errors are not shown"), (len(self.state.errors), self.state.errors[-1]))

    def test_unexpected(self) -> None:
        """Whatever else can happen."""
        self.state.hasFailed(ZeroDivisionError())
        self.assertEqual(("ZeroDivisionError",), self.state.errors)
