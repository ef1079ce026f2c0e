# SPDX-License-Identifier: MIT
"""The daemon as a service of the system: the service manager, rights, and the unit."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ssa.notifying import VARIABLE, ServiceManager
from ssa.policy.profile import Policy
from ssa.privileges import CAP_NET_ADMIN, permitted
from ssa.protocol.kernelport import State
from ssa.service import Daemon
from ssa.statusformat import SUFFIX
from ssa.tap import GiveUpRights, Options, ReloadOnHangUp, TellManager
from ssa.test.fakemodule import FakeModule
from ssa.test.processes import ROOT

reactor: Any = _reactor
UNIT = Path(__file__).resolve().parents[2] / "conf" / "ssa.service"


class ManagerCase(SynchronousTestCase):
    """A service manager's socket."""

    def setUp(self) -> None:
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.name = f"ssa-test-{os.getpid()}-{id(self)}"
        self.manager.bind("\0" + self.name)
        self.manager.setblocking(False)

    def told(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.manager.recv(1000).decode())
            except BlockingIOError:
                return messages


class NotifyTests(ManagerCase):
    """The protocol of sd_notify(3)."""

    def test_lines(self) -> None:
        """What systemd understands."""
        manager = ServiceManager({VARIABLE: "@" + self.name})
        manager.ready()
        manager.reloading()
        manager.stopping()
        manager.status("one\ntwo")
        ready, reloading, stopping, status = self.told()
        self.assertEqual(("READY=1", "STOPPING=1", "STATUS=one two"), (ready, stopping, status))
        self.assertRegex(reloading, r"\ARELOADING=1\nMONOTONIC_USEC=\d+\Z")

    def test_path(self) -> None:
        """A socket in the file system."""
        path = f"/tmp/{self.name}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(path)
            self.addCleanup(os.unlink, path)
            ServiceManager({VARIABLE: path}).ready()
            self.assertEqual(b"READY=1", listener.recv(100))

    def test_nobody(self) -> None:
        """Without a manager, or with one that is gone, or with nonsense, nothing happens."""
        for environment in ({}, {VARIABLE: ""}, {VARIABLE: "/nonexistent/socket"}, {VARIABLE: "relative"}, {VARIABLE: "@gone"}):
            ServiceManager(environment).ready()

    def test_service(self) -> None:
        """Ready when the reactor runs, then the state of the module, then the stop; a reload in between."""

        class Reactor(Clock):
            """Runs when it is told to."""

            def callWhenRunning(self, call: Any) -> None:
                calls.append(call)

            def callFromThread(self, call: Any) -> None:
                calls.append(call)

        calls: list[Any] = []
        manager = ServiceManager({VARIABLE: "@" + self.name})
        daemon: Any = type("Daemon", (), {"kernelState": State.WAITING})()
        service = TellManager(Reactor(), manager, daemon)
        service.startService()
        self.assertEqual([], self.told())
        calls.pop()()
        self.assertEqual(
            ["READY=1", "STATUS=Serving supervisors; kernel module: not loaded, waiting for it"], self.told()
        )
        daemon.kernelState = State.REGISTERED
        daemon.kernelChanged()
        self.assertEqual(["STATUS=Serving supervisors; kernel module: registered"], self.told())

        def reload() -> None:
            self.assertEqual(1, len(self.told()))
            raise RuntimeError("broken")

        reloading = ReloadOnHangUp(Reactor(), reload, manager)
        reloading.startService()
        os.kill(os.getpid(), signal.SIGHUP)
        reloading.stopService()
        self.assertRaises(RuntimeError, calls.pop())
        self.assertEqual(["READY=1"], self.told())
        service.stopService()
        daemon.kernelChanged()
        self.assertEqual(["STOPPING=1"], self.told())


class RightsTests(SynchronousTestCase):
    """Giving rights up; in processes of their own, since they do not come back."""

    def run_(self, code: str) -> Any:
        """What a program prints as JSON."""
        program = f"import json\nfrom ssa.privileges import *\n{code}\n{textwrap.dedent(self.STATUS)}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment
        )
        self.assertEqual((0, ""), (done.returncode, done.stderr))
        return json.loads(done.stdout)

    STATUS = """
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(json.dumps([*(int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")),
            int(status["NoNewPrivs"]), sorted(permitted())]))
        """

    def test_one(self) -> None:
        """One is left, and no way back to the others."""
        had = permitted()
        kept = {CAP_NET_ADMIN} & had
        got = self.run_("keepOnly([CAP_NET_ADMIN])")
        bits = sum(1 << number for number in kept)
        bounding = [bits] if had else [got[3]]
        self.assertEqual([bits, bits, 0, *bounding, 0, 1, sorted(kept)], got)

    def test_none(self) -> None:
        """None is left; again changes nothing."""
        got = self.run_("keepOnly([])\nkeepOnly([CAP_NET_ADMIN])")
        self.assertEqual(([0, 0, 0], [0, 1, []]), (got[:3], got[4:]))

    def test_withoutOverride(self) -> None:
        """Root has no power over the files of others meanwhile, and has it again; without any capability nothing happens."""
        meanwhile = "import os\npath = '/dev/shm/ssa-test-%d' % os.getpid()\nopen(path, 'w').close()\n"
        meanwhile += "root = os.geteuid() == 0\nroot and os.chown(path, 1234, 1234)\nos.chmod(path, 0)\n"
        tried = "def tried():\n    try: return open(path) and True\n    except PermissionError: return False\n"
        shown = "before = tried()\nwith withoutOverride(): within = tried()\nafter = tried()\nos.unlink(path)\n"
        got = self.run_(f"{meanwhile}{tried}{shown}print(json.dumps([before, within, after]))\nimport sys; sys.exit()")
        isRoot = 1 in permitted()
        self.assertEqual([isRoot, False, isRoot], got)
        self.assertEqual(self.run_(""), self.run_("with withoutOverride(): pass"))
        self.run_("keepOnly([])\nwith withoutOverride(): pass")

    def test_refused(self) -> None:
        """The kernel's refusal is an error, and the service does not start."""

        def refuse(wanted: Any) -> None:
            raise PermissionError(1, "no")

        self.patch(sys.modules["ssa.tap"], "keepOnly", refuse)
        self.assertRaises(PermissionError, GiveUpRights().startService)

    def test_service(self) -> None:
        """The service keeps what it is given."""
        kept: list[Any] = []

        def keep(wanted: Any) -> set[int]:
            kept.append(set(wanted))
            return set()

        self.patch(sys.modules["ssa.tap"], "keepOnly", keep)
        GiveUpRights().startService()
        GiveUpRights(()).startService()
        self.assertEqual([{CAP_NET_ADMIN}, set()], kept)


class UnitTests(SynchronousTestCase):
    """conf/ssa.service."""

    def test_keys(self) -> None:
        """What the daemon relies on."""
        if not UNIT.exists():
            raise SkipTest("the unit is only in a source tree")
        unit = configparser.RawConfigParser(strict=True)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(UNIT)
        service = dict(unit["Service"])
        self.assertEqual("notify", service["Type"])
        self.assertEqual("CAP_NET_ADMIN", service["CapabilityBoundingSet"])
        self.assertEqual("ssa", service["RuntimeDirectory"])
        for family in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"):
            self.assertIn(family, service["RestrictAddressFamilies"].split())
        for forbidden in ("PrivateNetwork", "PrivateUsers", "MemoryDenyWriteExecute"):
            self.assertNotIn(forbidden, service)
        self.assertRegex(service["ExecStart"], r"\Atwistd .*\bssa\Z")

    def test_systemd(self) -> None:
        """systemd understands every line."""
        if shutil.which("systemd-analyze") is None or not UNIT.exists():
            raise SkipTest("needs systemd-analyze and a source tree")
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(UNIT)], capture_output=True, text=True, timeout=60
        )
        ours = [line for line in done.stderr.splitlines() if "ssa.service" in line and "not executable" not in line]
        self.assertEqual([], ours)


class OptionTests(SynchronousTestCase):
    """The command line."""

    def test_noKernel(self) -> None:
        """The module can be left alone."""
        for arguments, expected in (([], 0), (["--no-kernel"], 1)):
            options = Options()
            options.parseOptions(arguments)
            self.assertEqual(expected, options["no-kernel"])
        self.assertRaises(usage.UsageError, Options().parseOptions, ["--no-kernel=yes"])


class ServiceTests(TestCase):
    """The daemon with the module and a unix socket at the same time."""

    timeout = 20

    async def test_both(self) -> None:
        """Without netlink rights supervisors are served; with them, both."""
        for privileged, state in ((False, State.FORBIDDEN), (True, State.REGISTERED)):
            path = f"/tmp/ssa-test-{os.getpid()}.sock"
            module = FakeModule()
            module.kernel.privileged = privileged
            module.load()
            changes: list[State] = []
            daemon = Daemon(reactor, Policy())

            def changed(changes: list[State] = changes, daemon: Daemon = daemon) -> None:
                changes.append(daemon.kernelState)

            daemon.kernelChanged = changed
            daemon.listenAt(path)
            daemon.serveKernel(module.system)
            self.assertEqual(State.STOPPED, daemon.kernelState)
            daemon.startService()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as supervisor:
                supervisor.connect(path)
                waiting: Deferred[None] = Deferred()
                reactor.callLater(0.1, waiting.callback, None)
                await waiting
                self.assertTrue(supervisor.recv(1000))
                self.assertEqual(state, daemon.kernelState)
                status = json.loads("".join(daemon.status.pieces(0)))
                self.assertEqual(state.name.lower(), status["kernel_module"]["state"])
                self.assertEqual(["kernel", "supervisor"][not privileged :], [each["kind"] for each in status["interceptors"]])
                daemon.reload()
                await daemon.stopService()
            self.assertEqual([state, State.STOPPED], changes)
            os.unlink(path + ".lock")
            os.unlink(path + SUFFIX + ".lock")

    async def test_whole(self) -> None:
        """C{twistd ssa} tells the service manager, gives its rights up, and stops in order."""
        directory = f"/tmp/ssa-test-{os.getpid()}"
        os.mkdir(directory)
        self.addCleanup(shutil.rmtree, directory)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"{directory}/notify")
            manager.settimeout(15)
            environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: f"{directory}/notify"}
            command = [sys.executable, "-m", "twisted", "--log-format=text", "ssa", "--socket", f"{directory}/s/daemon.sock"]
            with subprocess.Popen(
                command, env=environment, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                try:
                    told = [manager.recv(1000).decode()]
                    while not told[-1].startswith("STATUS=") or "not in use" in told[-1]:
                        told.append(manager.recv(1000).decode())
                    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
                        status = dict(line.split(":", 1) for line in file)
                    process.terminate()
                    output, _ = process.communicate(timeout=15)
                finally:
                    process.kill()
            manager.setblocking(False)
            while told[-1] != "STOPPING=1":
                told.append(manager.recv(1000).decode())
        self.assertEqual("READY=1", told[0], output)
        self.assertIn(int(status["CapEff"], 16), (0, 1 << CAP_NET_ADMIN))
        self.assertEqual(1, int(status["NoNewPrivs"]))
        self.assertIn("serving at", output)
        self.assertIn("kernel module", output)
