# SPDX-License-Identifier: MIT
"""C{ssa status} and a real C{twistd ssa} with programs under C{ssa run}."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ssa
from ssa.statusformat import SUFFIX
from ssa.statustext import render
from ssa.test.sessions import DEADLINE, Session, SessionTestCase
from ssa.test.test_faults import Peer, within

NOBODY = 65534
FIELDS = Path(ssa.__file__).parent.parent / "docs" / "status-fields.inc"
PLACEHOLDERS = {"stages": "STAGE", "errors": "ERRNO"}
"""Objects whose fields have no fixed names."""


def documented() -> set[str]:
    """The fields of C{docs/status-fields.inc}."""
    if not FIELDS.exists():
        raise SkipTest("the documentation is not installed")
    found: set[str] = set()
    for entry in re.findall(r"^   \* - (``.*(?:\n {7}``.*)*)", FIELDS.read_text(encoding="utf-8"), re.MULTILINE):
        found.update(re.findall(r"``([^`]+)``", entry))
    return found


def told(value: Any, name: str = "") -> Iterator[tuple[str, bool]]:
    """The fields of a document, and whether they are values, not objects or lists."""
    if isinstance(value, dict):
        if name:
            yield name, False
        for key in value:
            shown = PLACEHOLDERS[name.rpartition(".")[2]] if name.rpartition(".")[2] in PLACEHOLDERS else str(key)
            yield from told(value[key], f"{name}.{shown}" if name else shown)
    elif isinstance(value, list):
        yield name, False
        for each in value:
            yield from told(each, f"{name}[]")
    else:
        yield name, True


class ExampleTests(SynchronousTestCase):
    """C{docs/status.rst}."""

    def test_example(self) -> None:
        """The example has documented fields only, all that every document has, and can be shown."""
        page = FIELDS.with_name("status.rst")
        if not page.exists():
            raise SkipTest("the documentation is not installed")
        block = page.read_text(encoding="utf-8").split(".. code-block:: json\n\n")[1].split("\n\nThe fields")[0]
        example = json.loads(block)
        fields = set(told(example))
        values = {name for name, isValue in fields if isValue and (name, False) not in fields}
        self.assertEqual(set(), values - documented())
        depends = ("errors", "sockets[].listener", "sockets[].sections[]")  # on what there is
        missing = {name for name in documented() - {name for name, _ in fields} if not any(word in name for word in depends)}
        self.assertEqual(set(), missing)
        self.assertIn("profile payments", "\n".join(render(example, str)))


class StatusCase(SessionTestCase):
    """A daemon, and the command."""

    def setUp(self) -> None:
        super().setUp()
        self.configuration = self.directory / "ssa.conf"
        self.configuration.write_text("[default]\n[profile all]\nApplication = /**\n")
        log = str(self.directory / "log")
        self.daemon = self.startDaemon("--no-kernel", "--config", str(self.configuration), log=log)

    def status(self, *options: str, uid: int | None = None) -> subprocess.CompletedProcess[str]:
        """
        Run the command.

        @param uid: as this user.  Its modules need not be readable for that user.
        """
        program = "import sys; from ssa import cli, statuscommand\n"
        if uid is not None:
            program += f"import os; os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})\n"
        command = [sys.executable, "-c", program + "sys.exit(cli.main())", "status", "--daemon", self.socketPath, *options]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE, check=False)

    def document(self, uid: int | None = None) -> dict[str, Any]:
        """What C{--json} prints."""
        done = self.status("--json", uid=uid)
        self.assertEqual((0, ""), (done.returncode, done.stderr))
        self.assertTrue(done.stdout.isascii())
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def program(self, peer: Peer, before: str = "") -> tuple[Session, int]:
        """A program with a listener, a connection and one that was refused; its listener's port."""
        session = self.start(
            f"""
            with open("/proc/self/comm", "w") as file:
                file.write("\\x1b[31mred")
            {before}
            server = listener()
            say(server.getsockname()[1])
            sock = client()
            sock.connect(("127.0.0.1", {peer.port}))
            say(sock.recv(100).decode())
            sock.sendall(b"12345678")
            refused = client()
            say(attempt(refused.connect, ("127.0.0.1", 1))[0])
            sys.stdin.readline()
            sock.close()
            say("closed")
            sys.stdin.readline()
            """,
            options=["--daemon", self.socketPath],
        )
        port = int(session.line())
        self.assertEqual("hello", session.line())
        self.assertEqual("ECONNREFUSED", session.line())
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            stranger.settimeout(DEADLINE)
            stranger.recv(100)
        return session, port


class EverythingTests(StatusCase):
    """What root, or the daemon's own user, is shown."""

    def test_whole(self) -> None:
        """Every socket, connection and number; the fields are those that are documented, no more and no fewer."""
        peer = Peer(self)
        session, port = self.program(peer)
        self.configuration.write_text("[default]\nMinProtocol = TLSv9\n")
        self.daemon.send_signal(signal.SIGHUP)
        self.assertTrue(within(lambda: self.document()["configuration"]["failed"] is not None))
        document = self.document()

        fields = set(told(document))
        names = {name for name, _ in fields}
        self.assertEqual(set(), documented() - names)
        values = {name for name in names if (name, False) not in fields}
        self.assertEqual(set(), values - documented())

        daemon = document["daemon"]
        self.assertEqual(("all", "serving", self.daemon.pid), (document["view"], daemon["state"], daemon["pid"]))
        (error,) = document["configuration"]["errors"]
        self.assertTrue(error.startswith(f"{self.configuration}:2: [default] MinProtocol: "), error)
        self.assertEqual(str(self.configuration), document["configuration"]["file"])
        self.assertEqual("stopped", document["kernel_module"]["state"])
        (supervisor,) = document["interceptors"]
        self.assertEqual(("supervisor", os.geteuid(), 3), tuple(supervisor[key] for key in ("kind", "uid", "sockets")))

        totals = document["totals"]
        self.assertEqual((3, 1, 0), (totals["sockets"], totals["connections"], totals["handshakes"]))
        self.assertEqual((5, 8), (totals["bytes_received"], totals["bytes_sent"]))
        client, server = totals["attempts"]["client"], totals["attempts"]["server"]
        self.assertEqual({"succeeded": 1, "failed": 1, "errors": {"ECONNREFUSED": 1}}, client)
        self.assertEqual({"succeeded": 0, "failed": 1, "errors": {"EPROTO": 1}}, server)
        self.assertEqual(totals["attempts"], document["user"]["attempts"])
        self.assertEqual({"used": 3, "limit": 65536}, document["limits"]["sockets"])

        listener, connected, refused = sorted(document["sockets"], key=lambda each: int(each["id"]))
        self.assertEqual(("listening", "listener", f"127.0.0.1:{port}"), tuple(listener[k] for k in ("stage", "role", "local")))
        self.assertEqual({"accepted": 1, "refused": 1, "in_flight": 0}, listener["listener"])
        self.assertEqual(("connected", "client", 5, 8), tuple(
            connected[key] for key in ("stage", "role", "bytes_received", "bytes_sent")
        ))
        self.assertEqual((f"127.0.0.1:{peer.port}", "127.0.0.1"), (connected["remote"], connected["identity"]))
        self.assertEqual(["default", "profile all"], connected["sections"])
        self.assertEqual(r"\x1b[31mred", connected["comm"])
        self.assertEqual(os.path.realpath(sys.executable), connected["executable"])
        connection = connected["connection"]
        self.assertEqual((True, "TLSv1.3", False), tuple(connection[key] for key in ("open", "version", "resumed")))
        self.assertTrue(connection["cipher"].startswith("TLS_"))
        self.assertEqual(("failed", "client"), (refused["stage"], refused["role"]))
        self.assertIn("refused", refused["error"])

        session.tell("close")
        self.assertEqual("closed", session.line())
        peer.connections[0].close()
        self.assertTrue(within(lambda: self.document()["totals"]["connections"] == 0))
        after = self.document()
        self.assertEqual((5, 8), (after["totals"]["bytes_received"], after["totals"]["bytes_sent"]))
        self.assertEqual(2, len(after["sockets"]))
        session.tell("end")
        self.assertEqual(0, session.wait())

    def test_text(self) -> None:
        """For a person: a summary and a table; no control character comes out."""
        peer = Peer(self)
        session, port = self.program(peer)
        done = self.status()
        self.assertEqual((0, ""), (done.returncode, done.stderr))
        self.assertTrue(all(c.isprintable() or c == "\n" for c in done.stdout), repr(done.stdout))
        self.assertIn(r"(\x1b[31mred)", done.stdout)
        for line in (
            rf"(?m)^daemon +\S+, serving, started .* ago\), process {self.daemon.pid} of user ",
            r"(?m)^sockets +3 of 65536: 1 connected, 1 listening, 1 failed$",
            r"(?m)^connects +1 succeeded, 1 failed: 1 ECONNREFUSED$",
            r"(?m)^accepts +0 succeeded, 1 failed: 1 EPROTO$",
            r"(?m)^data +5 B received, 8 B sent$",
            rf"(?m)^ +\d+  listening  listener .* 127\.0\.0\.1:{port} +- .* 1 accepted, 1 refused$",
            rf"(?m)^ +\d+  connected +client .* 127\.0\.0\.1:{peer.port} .* profile all  TLSv1\.3 TLS_",
        ):
            self.assertRegex(done.stdout, line)
        session.tell("close")
        session.tell("end")
        self.assertEqual(0, session.wait())

    def test_gone(self) -> None:
        """No daemon any more: what to do, exit status 1; the socket is gone with the daemon."""
        self.daemon.terminate()
        self.daemon.wait(DEADLINE)
        self.assertEqual([], [name for name in os.listdir(self.directory) if name.endswith(("sock", SUFFIX))])
        done = self.status()
        self.assertEqual((1, ""), (done.returncode, done.stdout))
        self.assertIn("systemctl start ssa", done.stderr)

    def test_killed(self) -> None:
        """A daemon that was killed leaves its sockets; the next one takes their places."""
        self.daemon.kill()
        self.daemon.wait(DEADLINE)
        self.assertTrue(os.path.exists(self.socketPath + SUFFIX))
        self.assertIn("systemctl start ssa", self.status().stderr)
        self.daemon = self.startDaemon("--no-kernel")
        self.assertEqual(self.daemon.pid, self.document()["daemon"]["pid"])


class OtherUserTests(StatusCase):
    """What users see of each other."""

    def setUp(self) -> None:
        if os.geteuid():
            raise SkipTest("only root can be several users")
        super().setUp()

    def test_others(self) -> None:
        """An ordinary user sees what is the user's own, and no trace of anybody else's; root sees both."""
        peer = Peer(self)
        sessions = [
            self.program(peer)[0],
            self.program(peer, f"os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)")[0],
        ]
        everything, own, nothing = self.document(), self.document(NOBODY), self.document(NOBODY - 1)
        self.assertEqual({0: 3, NOBODY: 3}, {uid: [s["uid"] for s in everything["sockets"]].count(uid) for uid in (0, NOBODY)})
        self.assertEqual([NOBODY] * 3, [each["uid"] for each in own["sockets"]])
        self.assertEqual(("user", NOBODY, 3, 1, 8), (
            own["view"], *(own["user"][key] for key in ("uid", "sockets", "connections", "bytes_sent"))
        ))
        self.assertEqual({"ECONNREFUSED": 1}, own["user"]["attempts"]["client"]["errors"])
        for document in (own, nothing):
            self.assertEqual(set(everything), set(document))
            self.assertEqual([None] * 4, [document[key] for key in ("configuration", "totals", "limits", "caches")])
            self.assertEqual([None] * 4, [document["daemon"][key] for key in ("pid", "uid", "user", "libraries")])
            self.assertEqual([], document["interceptors"])
        self.assertEqual(([], 0), (nothing["sockets"], nothing["user"]["attempts"]["client"]["failed"]))
        text = self.status(uid=NOBODY)
        self.assertEqual((0, ""), (text.returncode, text.stderr))
        self.assertIn("your sockets   3 of 16384", text.stdout)
        self.assertNotIn(str(self.configuration), text.stdout)
        for session in sessions:
            session.tell("close")
            session.tell("end")
            self.assertEqual(0, session.wait())

    def test_again(self) -> None:
        """Who asks too often is told when to ask again; the command does, and the others do not notice."""
        done = [self.status(uid=NOBODY).returncode for _ in range(2)]
        self.assertEqual([0, 0], done)
        self.assertEqual("all", self.document()["view"])
