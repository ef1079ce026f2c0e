# SPDX-License-Identifier: MIT
"""
L{ssa.doctor} and L{ssa.intercept.way}: what this machine can do, found out and explained.
"""

from __future__ import annotations

import errno
import io
import os
import time

from twisted.trial.unittest import SynchronousTestCase

from ssa import doctor
from ssa.intercept import way
from ssa.intercept.way import CannotIntercept, ProbeFailed, Way, chooseWay, inChild


def _notPermitted() -> None:
    raise OSError(errno.EPERM, "not permitted", "the step")


def _hang() -> None:
    time.sleep(60)


def _nothing() -> None:
    pass


class ProbeTests(SynchronousTestCase):
    """
    Probes in child processes.
    """

    def test_outcomes(self) -> None:
        """A probe works, fails with an errno and a step, or does not answer."""
        inChild(_nothing)
        failure = self.assertRaises(ProbeFailed, inChild, _notPermitted)
        self.assertEqual((failure.errno, failure.step), (errno.EPERM, "the step"))
        self.assertEqual(str(failure), "the step: Operation not permitted")
        self.assertEqual(self.assertRaises(ProbeFailed, inChild, _hang, 0.05).errno, 0)

    def test_noTraces(self) -> None:
        """Probes leave neither descriptors nor children, and change nothing in this process."""
        before = os.listdir("/proc/self/fd"), os.readlink("/proc/self/ns/net")
        for probe in (_nothing, _notPermitted, way.tryNotification, way.tryUserNamespace, way.tryLoopback):
            try:
                inChild(probe)
            except ProbeFailed as failure:
                self.assertTrue(failure.step)
        self.assertEqual((os.listdir("/proc/self/fd"), os.readlink("/proc/self/ns/net")), before)
        with open("/proc/self/status") as status:
            self.assertIn("Seccomp_filters:\t0", status.read().replace("Seccomp_filters:\t1", "Seccomp_filters:\t0"))


class ChoiceTests(SynchronousTestCase):
    """
    The best way that works.
    """

    def works(self, *ways: Way, number: int = errno.EPERM) -> None:
        """Let only some ways work."""

        def fail() -> None:
            raise OSError(number, os.strerror(number), "unshare")

        self.patch(way, "_TRIALS", {each: _nothing if each in ways else fail for each in Way})
        self.patch(way, "checkCommonNeeds", _nothing)

    def test_order(self) -> None:
        """Root first, then user namespaces, then the loopback."""
        self.works(*Way)
        self.assertIs(chooseWay(), Way.ROOT)
        self.works(Way.USER_NAMESPACE, Way.LOOPBACK)
        self.assertIs(chooseWay(), Way.USER_NAMESPACE)
        self.works(Way.LOOPBACK)
        self.assertIs(chooseWay(), Way.LOOPBACK)

    def test_insisting(self) -> None:
        """A way that was asked for is taken, or refused with the cause."""
        self.works(Way.LOOPBACK)
        self.assertIs(chooseWay("loopback"), Way.LOOPBACK)
        refusal = self.assertRaises(CannotIntercept, chooseWay, "root")
        self.assertIn("root: unshare: Operation not permitted", str(refusal))
        self.assertNotIn("\n", str(refusal))

    def test_explanations(self) -> None:
        """Each cause has its remedy, in one line."""
        for number, words in (
            (errno.EBUSY, "not inside another `ssa run`"),
            (errno.ENOSYS, "Linux 5.14"),
            (errno.EPERM, "seccomp profile"),
        ):
            self.assertIn(words, way._explainNotification(ProbeFailed(number, "seccomp user notification")))
        failure = ProbeFailed(errno.EPERM, "pidfd_getfd")
        for scope, words in ((None, "--cap-add SYS_PTRACE"), (2, "sysctl kernel.yama.ptrace_scope=1"), (3, "reboot")):

            def yamaScope(scope: int | None = scope) -> int | None:
                return scope

            self.patch(way, "yamaScope", yamaScope)
            self.assertIn(words, way._explainPtrace(failure))


class ReportTests(SynchronousTestCase):
    """
    The report as a whole.
    """

    def test_report(self) -> None:
        """Every line is a finding; the status says whether C{ssa run} can work."""
        output = io.StringIO()
        status = doctor.report(output)
        lines = output.getvalue().splitlines()
        for line in lines:
            self.assertIn(line[:4], ("ok  ", "no  ", "--  "), line)
        self.assertEqual(lines[-1][:2], "ok" if status == 0 else "no")
        self.assertEqual(len(lines), 18)

    def test_impossible(self) -> None:
        """Where nothing works, the last line says so and the status is 1."""

        def refuse(wanted: str = "auto") -> Way:
            raise CannotIntercept("no rights: get some")

        self.patch(doctor, "chooseWay", refuse)
        output = io.StringIO()
        self.assertEqual(doctor.report(output), 1)
        self.assertTrue(output.getvalue().endswith("no  ssa run: no rights: get some\n"))
