# SPDX-License-Identifier: MIT
"""The netlink library on real network devices, in a network namespace of its own; and its examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from errno import EEXIST
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ssa
from ssa.test.netdevices import NOT_POSSIBLE, RTM_NEWLINK

ROOT = Path(ssa.__file__).parent.parent
EXAMPLES = ROOT / "examples" / "netlink"


def run(*command: str) -> str:
    """Run Python with the package in its path; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == NOT_POSSIBLE:
        raise SkipTest(f"no network devices can be made here: {done.stdout.strip()}")
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


class DeviceTests(SynchronousTestCase):
    """C{NETLINK_ROUTE}: requests that change something, their acknowledgements, and notifications."""

    def test_devices(self) -> None:
        """A device is made, changed, looked at and removed; every step is acknowledged and notified."""
        result: dict[str, Any] = json.loads(run("-m", "ssa.test.netdevices", "devices"))
        self.assertIn([RTM_NEWLINK, "lo", False], result["before"])
        self.assertEqual(result["reply"], [RTM_NEWLINK, "ssa0", True])
        self.assertEqual((result["twice"], result["refused"]), (EEXIST, 0))
        self.assertIn("ssa0", result["after"])


class ExampleTests(SynchronousTestCase):
    """The programs in C{examples/netlink}."""

    def setUp(self) -> None:
        if not EXAMPLES.is_dir():
            raise SkipTest("there are no examples beside the package")

    def test_listFamilies(self) -> None:
        """All families of the kernel are listed."""
        try:
            printed = run(str(EXAMPLES / "list_families.py"))
        except AssertionError as error:
            if "CannotListenError" not in str(error):
                raise
            raise SkipTest("netlink is not allowed here") from error
        self.assertTrue(printed.startswith("nlctrl: number 16, version 2\n    command 3: do+dump\n"), printed)
        self.assertIn("    group notify: 16\n", printed)

    def test_watchDevices(self) -> None:
        """Devices come and go before its eyes."""
        result = json.loads(run("-m", "ssa.test.netdevices", "watch", str(EXAMPLES / "watch_devices.py")))
        lines = [line.strip() for line in result["lines"]]
        self.assertEqual(lines[0], "+ lo down")
        self.assertLess(lines.index("+ ssa0 down"), lines.index("~ ssa0 up"))
        self.assertEqual((lines[-1], result["status"]), ("- ssa0", 0))
