# SPDX-License-Identifier: MIT
"""C{ssa status}: what it prints, and whatever may be at the other end instead of a daemon."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa import cli, statuscommand
from ssa.statusformat import SUFFIX
from ssa.statustext import duration, render, size

EVIL = "\x1b]0;title\x07\r\n\u202e\x9b31m\udc80"
"""What a terminal must not get."""

SOCKET: dict[str, Any] = {
    "id": 7,
    "stage": "connected",
    "role": "client",
    "uid": 4294967294,
    "pid": 77,
    "comm": "prog",
    "executable": "/bin/prog",
    "local": "192.0.2.99:50000",
    "remote": "192.0.2.1:443",
    "identity": "server.example",
    "sections": ["default", "profile bank"],
    "age_seconds": 4000.5,
    "bytes_received": 5000,
    "bytes_sent": 0,
    "error": None,
    "connection": {
        "open": True,
        "age_seconds": 60.0,
        "version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "group": None,
        "alpn": "h2",
        "resumed": True,
        "data_path": "relay",
    },
    "listener": None,
}

ATTEMPTS = {
    "client": {"succeeded": 2, "failed": 3, "errors": {"EKEYEXPIRED": 1, "EPROTO": 2}},
    "server": {"succeeded": 0, "failed": 0, "errors": {}},
}

DOCUMENT: dict[str, Any] = {
    "ssa_status": 1,
    "view": "all",
    "time": "2026-01-02T03:04:05.678+00:00",
    "daemon": {
        "version": "1.0",
        "state": "serving",
        "started": "2026-01-02T03:04:05.678+00:00",
        "uptime_seconds": 7200.5,
        "pid": 1234,
        "uid": 4294967294,
        "user": "nobody",
        "libraries": {"openssl": "OpenSSL 3.5.0", "other": "1"},
    },
    "kernel_module": {"state": "waiting", "description": "not loaded, waiting for it"},
    "configuration": {
        "file": "/etc/ssa.conf",
        "read": "2026-01-02T03:04:05.678+00:00",
        "files_read": "2026-01-02T03:04:05.678+00:00",
        "failed": None,
        "errors": [],
    },
    "totals": {
        "sockets": 1,
        "stages": {"new": 0, "connected": 1},
        "connections": 1,
        "handshakes": 0,
        "events": 5,
        "bytes_received": 5000,
        "bytes_sent": 0,
        "attempts": ATTEMPTS,
    },
    "limits": {name: {"used": 1, "limit": 10} for name in ("sockets", "handshakes", "relay_buffers", "supervisors")},
    "caches": {"sessions": 1, "contexts": 1, "revocation_answers": 1, "revocation_bytes": 2048},
    "user": {
        "uid": 4294967294,
        "sockets": 1,
        "max_sockets": 10,
        "connections": 1,
        "bytes_received": 5000,
        "bytes_sent": 0,
        "attempts": ATTEMPTS,
    },
    "interceptors": [
        {"kind": "kernel", "uid": 0, "pid": 0, "sockets": 0},
        {"kind": "supervisor", "uid": 4294967294, "pid": 99, "sockets": 1},
    ],
    "interceptors_not_listed": 0,
    "sockets": [SOCKET],
    "sockets_not_listed": 0,
}


ROWS = (
    "ID  STAGE      ROLE    USER      PID  PROGRAM    LOCAL             REMOTE                          RECEIVED",
    " 7  connected  client  somebody   77  /bin/prog  192.0.2.99:50000  192.0.2.1:443 (server.example)   4.9 KiB",
)
"""The first columns of its table."""


def changed(**changes: Any) -> dict[str, Any]:
    """The document with other values; C{a__b=1} is C{["a"]["b"]}."""
    document = copy.deepcopy(DOCUMENT)
    for name, value in changes.items():
        place = document
        *path, last = name.split("__")
        for word in path:
            place = place[int(word)] if word.isdigit() else place[word]  # type: ignore[index]
        place[last] = value
    return document


class TextTests(SynchronousTestCase):
    """For a person."""

    def lines(self, document: dict[str, Any]) -> list[str]:
        return render(document, lambda uid: "root" if uid == 0 else "somebody")

    def test_all(self) -> None:
        """Everything."""
        self.assertEqual(
            [
                "daemon         1.0, serving, started 2026-01-02 03:04:05 UTC (2 h 0 min ago), process 1234 of user somebody",
                "libraries      OpenSSL 3.5.0, other 1",
                "kernel module  not loaded, waiting for it",
                "configuration  /etc/ssa.conf, read 2026-01-02 03:04:05 UTC",
                "sockets        1 of 10: 1 connected",
                "connections    1",
                "handshakes     1 of 10 in progress",
                "connects       2 succeeded, 3 failed: 1 EKEYEXPIRED, 2 EPROTO",
                "accepts        0 succeeded, 0 failed",
                "data           4.9 KiB received, 0 B sent",
                "relay buffers  1 of 10 in use",
                "caches         1 sessions, 1 contexts, 1 answers on revocation (2.0 KiB)",
                "supervisors    1 of 10",
                "",
                "INTERCEPTOR  PID  USER      SOCKETS",
                "kernel         -  root            0",
                "supervisor    99  somebody        1",
                "",
                ROWS[0] + "  SENT        AGE  RULES         TLS",
                ROWS[1] + "   0 B  1 min 0 s  profile bank  TLSv1.3 TLS_AES_128_GCM_SHA256 h2 resumed",
            ],
            self.lines(DOCUMENT),
        )

    def test_aligned(self) -> None:
        """Columns begin, or end, at one place, whatever their content, wide characters included."""
        more = [{**SOCKET, "id": number, "comm": "\u6f22" * number} for number in (1, 20, 300)]
        lines = self.lines(changed(sockets=more))
        lines = lines[lines.index("") :]
        (head,) = [line for line in lines if line.startswith(" ID")]
        rows = [line for line in lines if "/bin/prog" in line]
        self.assertEqual(3, len(rows))
        for row in rows:
            wide = row.count("\u6f22")
            self.assertEqual(head.index("LOCAL"), row.index("192.0.2.99") + wide)
            self.assertEqual("connected", row[head.index("STAGE") :].split()[0])

    def test_user(self) -> None:
        """Others: what is theirs, and that there may be more."""
        document = changed(
            view="user", configuration=None, totals=None, limits=None, caches=None, interceptors=[], daemon__pid=None,
            daemon__libraries=None, sockets=[], sockets_not_listed=5,
        )  # fmt: skip
        lines = self.lines(document)
        self.assertIn("your sockets   1 of 10, 1 of them with a connection", lines)
        self.assertEqual("Only root and the daemon's own user see what other users do.", lines[-1])
        self.assertEqual(["no sockets", "5 more sockets are not listed", ""], lines[-4:-1])
        self.assertIn("daemon         1.0, serving, started 2026-01-02 03:04:05 UTC (2 h 0 min ago)", lines)

    def test_failedReload(self) -> None:
        """A configuration with errors is not to be missed."""
        document = changed(configuration__failed="2026-01-02T03:04:06+00:00", configuration__errors=["f:1: one", "f:2: two"])
        text = "\n".join(self.lines(document))
        self.assertIn(
            "\n               reading it again FAILED 2026-01-02 03:04:06 UTC; what was read before stays in force:\n"
            "               f:1: one\n               f:2: two\n",
            text,
        )

    def test_sockets(self) -> None:
        """Other kinds of sockets."""
        for socket_, pattern in (
            ({"connection": {**SOCKET["connection"], "open": False}, "error": "it broke"}, r"(?s)ended .*\n    it broke"),
            ({"connection": None, "listener": {"accepted": 5, "refused": 2}}, "1 h 6 min .* 5 accepted, 2 refused"),
            ({"identity": "192.0.2.1"}, r"192\.0\.2\.1:443  "),
            ({"identity": "2001:db8::1", "remote": "[2001:db8::1]:443"}, r"\[2001:db8::1\]:443  "),
            ({"sections": ["default"]}, "  default  "),
            ({"comm": "other"}, r"/bin/prog \(other\)"),
            ({"executable": ""}, "  prog  "),
            ({"stage": "new", "role": None, "local": None, "remote": None, "identity": None, "sections": None,
              "connection": None}, " new  +-  .*  -  +-  .*  -  +-"),
        ):  # fmt: skip
            self.assertRegex("\n".join(self.lines(changed(sockets=[{**SOCKET, **socket_}]))), pattern)

    def test_control(self) -> None:
        """No control character reaches the terminal, in whatever text it is."""

        def poison(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: poison(each) for name, each in value.items()}
            if isinstance(value, list):
                return [poison(each) for each in value]
            return value + EVIL if isinstance(value, str) else value

        document = poison(DOCUMENT)
        document["view"] = "all"
        document["totals"]["attempts"]["client"]["errors"][EVIL] = 1
        document["totals"]["stages"][EVIL] = 1
        document["daemon"]["libraries"][EVIL] = "x"
        document["sockets"].append({**document["sockets"][0], "error": EVIL})
        for part, name in (("daemon", "started"), ("configuration", "read")):
            self.assertRaises(ValueError, self.lines, document)
            document[part][name] = DOCUMENT[part][name]
        for line in render(document, lambda uid: EVIL):
            self.assertTrue(line.isprintable(), repr(line))

    def test_units(self) -> None:
        """Sizes and times."""
        sizes = {0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 150 << 10: "150 KiB", 3 << 30: "3.0 GiB", 2**90: "1073741824 EiB"}
        self.assertEqual(sizes, {count: size(count) for count in sizes})
        times = {0.4: "0 s", 59: "59 s", 61: "1 min 1 s", 3600: "1 h 0 min", 90000: "1 d 1 h"}
        self.assertEqual(times, {seconds: duration(seconds) for seconds in times})
        for bad in ("1", None, True, [1]):
            self.assertRaises(TypeError, size, bad)
            self.assertRaises(TypeError, duration, bad)


class ServerCase(SynchronousTestCase):
    """Something at the other end."""

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="ssa-test-")
        self.addCleanup(os.rmdir, self.directory)
        self.path = os.path.join(self.directory, "d.sock")

    def bound(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket at the path where the status is expected."""
        listener = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(os.unlink, self.path + SUFFIX)
        self.addCleanup(listener.close)
        listener.bind(self.path + SUFFIX)
        return listener

    def serve(self, *answers: bytes | Callable[[socket.socket], None]) -> None:
        """Answer each connection with the next of these, the last one again and again."""
        listener = self.bound()
        listener.listen()

        def run() -> None:
            number = 0
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                answer = answers[min(number, len(answers) - 1)]
                number += 1
                with connection:
                    try:
                        if callable(answer):
                            answer(connection)
                        else:
                            connection.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=run)
        thread.start()

        def stop() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

        self.addCleanup(stop)

    def said(self, asJSON: bool = False, seconds: float = 10.0) -> tuple[int, str, str]:
        """The exit status, and what is printed."""
        output, errors = io.StringIO(), io.StringIO()
        status = statuscommand.status(self.path, asJSON, output, errors, seconds)
        self.assertEqual(status == 0, errors.getvalue() == "")
        self.assertLessEqual(errors.getvalue().count("\n"), 1)
        self.assertTrue(errors.getvalue().rstrip("\n").isprintable())
        return status, output.getvalue(), errors.getvalue()

    def fails(self, *words: str, asJSON: bool | None = None, seconds: float = 10.0) -> None:
        """It says why there is nothing, and prints nothing."""
        for each in (False, True) if asJSON is None else (asJSON,):
            status, output, errors = self.said(each, seconds)
            self.assertEqual((1, ""), (status, output))
            self.assertTrue(errors.startswith("ssa status: "), errors)
            for word in words:
                self.assertIn(word, errors)


class GoodTests(ServerCase):
    """A daemon."""

    def test_both(self) -> None:
        """As text, and as it came."""
        data = json.dumps(DOCUMENT, indent=1).encode() + b"\n"
        self.serve(data)
        self.assertEqual((0, data.decode(), ""), self.said(True))
        status, output, _ = self.said()
        self.assertEqual((0, "daemon "), (status, output[:7]))

    def test_askAgain(self) -> None:
        """Where it is told to ask again, it does."""
        again = json.dumps({"ssa_status": 1, "error": "ask again later", "retry_seconds": 0.05}).encode()
        self.serve(again, again, json.dumps(DOCUMENT).encode())
        self.assertEqual(0, self.said()[0])

    def test_command(self) -> None:
        """The words of the command line."""
        asked: list[tuple[str, bool]] = []

        def main(path: str, asJSON: bool) -> int:
            asked.append((path, asJSON))
            return 7

        self.patch(statuscommand, "main", main)
        for words in (["status"], ["status", "--json", "--daemon", "/x"]):
            self.assertEqual(7, cli.main(words))
        self.assertEqual([("/run/ssa/daemon.sock", False), ("/x", True)], asked)

    def test_locale(self) -> None:
        """A locale without a character is no error."""
        self.serve(json.dumps({**DOCUMENT, "sockets": [{**SOCKET, "comm": "\u6f22"}]}).encode())
        raw = io.BytesIO()
        output = io.TextIOWrapper(raw, encoding="ascii")
        self.assertEqual(0, statuscommand.status(self.path, False, output, io.StringIO()))
        self.assertIn(rb"/bin/prog (\u6f22)", raw.getvalue())

    def test_closedPipe(self) -> None:
        """Who reads may have seen enough: no traceback."""
        self.serve(json.dumps(DOCUMENT).encode())
        read, write = os.pipe()
        os.close(read)
        errors = io.StringIO()
        with open(write, "w") as output:
            self.assertEqual((1, ""), (statuscommand.status(self.path, False, output, errors), errors.getvalue()))


class BadTests(ServerCase):
    """No daemon, or something else: exit status 1 and one line, soon."""

    def test_none(self) -> None:
        """Nobody there: what to do."""
        self.fails("no daemon answers", "systemctl start ssa", "--daemon", "`ssa run`")

    def test_stale(self) -> None:
        """A socket that a dead daemon has left."""
        self.bound()
        self.fails("no daemon answers", "systemctl start ssa")

    def test_older(self) -> None:
        """A daemon without a status socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(self.path)
            self.addCleanup(os.unlink, self.path)
            self.fails("older version", self.path)

    def test_permission(self) -> None:
        """A directory that one may not enter."""
        self.assertIn("mode of the directory", statuscommand._whyNot("/x", PermissionError(errno.EACCES, "no")))
        if os.geteuid() == 0:
            raise SkipTest("root may enter every directory")
        self.bound().listen()
        os.chmod(self.directory, 0)
        self.addCleanup(os.chmod, self.directory, 0o700)
        self.fails("Permission denied", "mode of the directory")

    def test_otherKind(self) -> None:
        """A socket of another kind, or a path that cannot be one."""
        self.bound(socket.SOCK_SEQPACKET).listen()
        self.fails("no daemon of SSA")
        self.path = "/" + "x" * 120
        self.fails("no daemon of SSA")

    def test_nonsense(self) -> None:
        """Answers that are none; also as JSON nothing of it is printed."""
        whole = json.dumps(DOCUMENT).encode()
        for answer, words in (
            (b"", ["said nothing"]),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", ["no JSON"]),
            (whole[:-10], ["cut off"]),
            (b"[" * 100_000, ["no JSON"]),
            (b'{"ssa_status": ' + b"9" * 10_000 + b"}", ["no JSON"]),
            (b"[]", ["ssa_status"]),
            (b'{"ssa_status": true}', ["ssa_status"]),
            (b'{"other": 1}', ["ssa_status"]),
            (whole.replace(b"prog", b"\x1b[2J"), ["no JSON"]),
            (whole.replace(b"prog", "\x9b2J".encode()), ["no ASCII"]),
            (b"\x1b[2J" + whole, ["no JSON"]),
        ):
            with self.subTest(answer[:40]):
                case = type(self)("test_none")
                case.setUp()
                try:
                    case.serve(answer)
                    case.fails(*words)
                finally:
                    case.doCleanups()

    def test_wrongForm(self) -> None:
        """JSON of another form is no text; nor does half of it come out."""
        new = {**SOCKET, "connection": None}
        changes: tuple[dict[str, Any], ...] = (
            {"daemon": None}, {"sockets": [None]}, {"sockets": {}, "interceptors": 5}, {"sockets_not_listed": "\x1b"},
            {"sockets": [{**SOCKET, "uid": "root"}]}, {"limits": {}},
            {"sockets": [{**SOCKET, "connection": 3}]}, {"totals": {**DOCUMENT["totals"], "attempts": []}},
            {"sockets": [{**new, "age_seconds": "x" * 5000}]}, {"sockets": [{**new, "age_seconds": float("inf")}]},
            {"sockets": [SOCKET, {**SOCKET, "uid": None}]}, {"daemon": {**DOCUMENT["daemon"], "started": 1}},
        )  # fmt: skip
        for change in changes:
            case = type(self)("test_none")
            case.setUp()
            try:
                case.serve(json.dumps({**DOCUMENT, **change}).encode())
                case.fails("not the status of a daemon of this version", asJSON=False)
            finally:
                case.doCleanups()

    def test_otherFormat(self) -> None:
        """A newer daemon: no text, and the document with --json."""
        self.serve(json.dumps({"ssa_status": 2}).encode())
        self.fails("format 2", "--json", asJSON=False)
        self.assertEqual(0, self.said(True)[0])

    def test_notNow(self) -> None:
        """A daemon that never has time, and one that wants us to wait for longer than we do."""
        for wait in (0.1, 1e9, -1, "soon", None):
            case = type(self)("test_none")
            case.setUp()
            try:
                case.serve(json.dumps({"ssa_status": 1, "error": "later\x1b", "retry_seconds": wait}).encode())
                case.fails("does not tell now", "later", seconds=0.5)
            finally:
                case.doCleanups()

    def test_endless(self) -> None:
        """More than a daemon ever sends."""
        self.patch(statuscommand, "LARGEST", 1 << 20)

        def pour(connection: socket.socket) -> None:
            while True:
                connection.sendall(b" " * 65536)

        self.serve(pour)
        self.fails("too big")

    def test_slow(self) -> None:
        """Nothing at all, or a byte now and then, is not waited for without end."""
        done = threading.Event()
        self.addCleanup(done.set)

        def drip(connection: socket.socket) -> None:
            while not done.wait(0.05):
                connection.sendall(b" ")

        def nothing(connection: socket.socket) -> None:
            done.wait(10)

        self.serve(nothing, drip)
        begun = time.monotonic()
        self.fails("in time", asJSON=False, seconds=0.3)
        done.set()
        done.clear()
        self.fails("in time", asJSON=True, seconds=0.3)
        self.assertLess(time.monotonic() - begun, 5)

    def test_full(self) -> None:
        """A daemon that accepts nothing more."""
        self.bound().listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(self.path + SUFFIX)
            begun = time.monotonic()
            self.fails("too many wait", seconds=0.3)
            self.assertLess(time.monotonic() - begun, 5)
