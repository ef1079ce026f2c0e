# SPDX-License-Identifier: MIT
"""Tests for L{ssa.test.vm}: its parts, and one boot where a kernel is at hand."""

from __future__ import annotations

import lzma
import os
import stat
import struct
import subprocess
from pathlib import Path
from threading import Event

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.test.vm import initrd, kernels, module, place, scenarios
from ssa.test.vm.command import Command, hidden
from ssa.test.vm.console import Console
from ssa.test.vm.debugkernel import lost
from ssa.test.vm.image import extract
from ssa.test.vm.kernels import Kernel
from ssa.test.vm.machine import FAILED, Machine, Outcome
from ssa.test.vm.tsc import kilohertz


class ConsoleTests(SynchronousTestCase):
    """The kernel's complaints are found, and nothing else."""

    def report(self, *pieces: str) -> str:
        """What a console makes of text that comes in pieces."""
        console = Console()
        for piece in pieces:
            console.feed(piece.encode())
        return console.report

    def test_complaints(self) -> None:
        """Every checker's first line counts, with and without the task's number."""
        for line in (
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
            "BUG: kernel NULL pointer dereference, address: 0000000000000010",
            "BUG: KASAN: slab-use-after-free in x+0x1/0x2 [ssa]",
            "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
            "WARNING: CPU: 1 PID: 132 at net/core/stream.c:205 sk_stream_kill_queues+0x1/0x2",
            "WARNING: possible circular locking dependency detected",
            "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
            "INFO: task python:77 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "unregister_netdevice: waiting for lo to become free. Usage count = 2",
        ):
            for prefix in ("[    6.728368] ", "[12345.000001][  T132] "):
                self.assertEqual(self.report("text without an end", prefix + line + "\r\n"), line)

    def test_inPieces(self) -> None:
        """A line that is read in two parts is complete first."""
        self.assertEqual(self.report("[    1.000000] BU", "G: KASA", "N: x\n"), "BUG: KASAN: x")
        self.assertEqual(self.report("[    1.000000] BUG: KASA"), "")

    def test_first(self) -> None:
        """The first complaint is the one that is kept."""
        self.assertEqual(self.report("[    1.000000] BUG: a\n[    1.000000] BUG: b\n", "[    1.000000] BUG: c\n"), "BUG: a")

    def test_programs(self) -> None:
        """What programs print is not the kernel's, nor are its ordinary lines."""
        self.assertEqual(self.report("BUG: of mine\nWARNING: CPU\n", "[    1.000000] ssa: loading out-of-tree module\n",
                                     "[    1.000000] RETBleed: WARNING: Spectre v2\n",
                                     "[    1.000000] kmemleak: 1 new suspected memory leaks\n"), "")


class RAMDiskTests(SynchronousTestCase):
    """The archive that the kernel unpacks, and the order of modules in it."""

    def test_archive(self) -> None:
        """Headers and contents are where the format wants them, on multiples of four."""
        archive = initrd.Archive()
        archive.add("a", stat.S_IFDIR | 0o755)
        archive.add("a/file", stat.S_IFREG | 0o644, b"12345")
        data, names = archive.bytes(), []
        while data:
            self.assertEqual(data[:6], b"070701")
            fields = [int(data[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
            name = data[110 : 110 + fields[11]]
            start = (110 + fields[11] + 3) // 4 * 4
            names.append((name, oct(fields[1]), data[start : start + fields[6]]))
            data = data[(start + fields[6] + 3) // 4 * 4 :]
        self.assertEqual(names, [(b"a\0", "0o40755", b""), (b"a/file\0", "0o100644", b"12345"), (b"TRAILER!!!\0", "0o0", b"")])

    def kernel(self, dependencies: str, builtIn: str) -> Kernel:
        """A kernel that has only its lists of modules."""
        kernel = Kernel("x", "6.1.0-x", "1", Path(self.mktemp()))
        kernel.modules.mkdir(parents=True)
        (kernel.modules / "modules.dep").write_text(dependencies, encoding="utf-8")
        (kernel.modules / "modules.builtin").write_text(builtIn, encoding="utf-8")
        return kernel

    def test_order(self) -> None:
        """A module comes after what it needs; what is built in is left out."""
        kernel = self.kernel("k/9p.ko.xz: k/9pnet.ko.xz\nk/9pnet.ko.xz:\nk/9pnet_virtio.ko.xz: k/virtio.ko.xz k/9pnet.ko.xz\n"
                             "k/virtio.ko.xz:\nk/virtio-rng.ko.xz: k/virtio.ko.xz\n", "k/overlay.ko\nk/virtio_mmio.ko\n")
        self.assertEqual([path.name.split(".")[0] for path in initrd.modules(kernel)],
                         ["virtio", "virtio-rng", "9pnet", "9pnet_virtio", "9p"])

    def test_absent(self) -> None:
        """A kernel that cannot reach the host's files is refused by name of the module."""
        self.assertIn("virtio_mmio", str(self.assertRaises(place.VMError, initrd.modules, self.kernel("", ""))))


class ImageTests(SynchronousTestCase):
    """The ELF image in a bzImage."""

    def compressed(self, payload: bytes) -> Path:
        """A bzImage of one setup sector that holds a payload."""
        header = bytearray(1024)
        header[0x1F1], header[0x202:0x206] = 1, b"HdrS"
        struct.pack_into("<II", header, 0x248, 16, len(payload))
        path = Path(self.mktemp())
        path.write_bytes(bytes(header) + b"startup".ljust(16) + payload + b"rest")
        return path

    def test_xz(self) -> None:
        """It is decompressed, whatever follows it."""
        elf, target = b"\x7fELF" + b"kernel" * 1000, Path(self.mktemp())
        extract(self.compressed(lzma.compress(elf) + struct.pack("<I", len(elf))), target)
        self.assertEqual(target.read_bytes(), elf)

    def test_other(self) -> None:
        """What cannot be decompressed is left to the boot."""
        path, target = self.compressed(b"some other compression"), Path(self.mktemp())
        extract(path, target)
        self.assertEqual(target.read_bytes(), path.read_bytes())

    def test_noKernel(self) -> None:
        """Any other file is refused."""
        path = Path(self.mktemp())
        path.write_bytes(bytes(2000))
        self.assertRaises(place.VMError, extract, path, Path(self.mktemp()))


class CommandTests(SynchronousTestCase):
    """How a command gets into the guest."""

    def test_words(self) -> None:
        """The guest's shell runs exactly the words, in the directory, with the variables, and nothing of ours around them."""
        directory, work = Path(self.mktemp()), Path(self.mktemp()).absolute()
        directory.mkdir()
        work.mkdir()
        command = Command(["printf", "%s|", "a b", "$HOME", "'\"", "\n"], directory=work, environment={"X": "y z"})
        command.write(Kernel("6.1", "6.1.0", "1", Path("/k")), directory)
        said = subprocess.run(["sh", directory / "command.sh"], stdout=subprocess.PIPE, check=True).stdout
        self.assertEqual(said, b"a b|$HOME|'\"|\n|")
        self.assertEqual(command.variables()["X"], "y z")

    def test_user(self) -> None:
        """An ordinary user gets a home of his own, and the command his rights."""
        directory = Path(self.mktemp())
        directory.mkdir()
        Command(["true"], user=1000).write(Kernel("6.1", "6.1.0", "1", Path("/k")), directory)
        text = (directory / "command.sh").read_text(encoding="utf-8")
        self.assertIn("exec setpriv --reuid=1000 --regid=1000 --clear-groups -- env -i ", text)
        self.assertIn("HOME=/run/vm/home ", text)

    def test_module(self) -> None:
        """A module travels beside the scripts."""
        directory, path = Path(self.mktemp()), Path(self.mktemp()).with_suffix(".ko")
        directory.mkdir()
        path.write_bytes(b"code")
        command = Command(["true"], module=path)
        command.write(Kernel("6.1", "6.1.0", "1", Path("/k")), directory)
        self.assertEqual((directory / path.name).read_bytes(), b"code")
        self.assertEqual(command.variables()["SSA_VM_MODULE"], f"/run/vm/control/{path.name}")

    def test_root(self) -> None:
        """Root may go everywhere."""
        self.assertEqual(hidden(0), "")


class PartsTests(SynchronousTestCase):
    """The rest."""

    def test_lostOptions(self) -> None:
        """What Kconfig dropped or left on is named; what is off and was to be off is not."""
        self.assertEqual(lost("# CONFIG_Z=y\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=n\nCONFIG_D=n\nCONFIG_E=y\n",
                              "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=y\n"),
                         ["CONFIG_B=m", "CONFIG_D=n", "CONFIG_E=y"])

    def test_counter(self) -> None:
        """The time stamp counter's rate is one that processors have."""
        if os.uname().machine != "x86_64":
            raise SkipTest("the counter is x86's")
        self.assertTrue(500_000 < kilohertz() < 10_000_000)

    def test_missingProgram(self) -> None:
        """A missing program is named with the package that has it."""
        self.patch(place, "find", lambda program: None)
        error = self.assertRaises(place.VMError, place.require, "qemu-system-x86_64", "depmod")
        self.assertEqual(str(error), "qemu-system-x86_64, depmod not found: apt-get install kmod qemu-system-x86")

    def test_notOurs(self) -> None:
        """Where nothing may be made, that is said, and what to do."""
        path = Path(self.mktemp())
        path.write_bytes(b"")
        self.patch(place, "BUILD", path)
        with self.assertRaises(place.VMError) as caught, place.alone("6.1"):
            pass
        self.assertIn("SSA_VM_CACHE names another directory", str(caught.exception))

    def test_whoConforms(self) -> None:
        """Who runs the conformance suite can be chosen, and nothing else."""
        self.assertEqual(scenarios.whoConforms(""), {"6.1": "both", "6.12": "both"})
        self.assertEqual(scenarios.whoConforms("6.12=user"), {"6.1": "both", "6.12": "user"})
        for wrong in ("6.1", "6.1=", "5.15=root", "6.1=nobody"):
            self.assertRaises(place.VMError, scenarios.whoConforms, wrong)

    def test_expectedFailure(self) -> None:
        """A scenario that is meant to crash passes only by that crash."""
        crash = scenarios.Scenario("x", ["x"], problem="KASAN: .*use-after-free")
        self.assertTrue(crash.passed(Outcome(FAILED, "BUG: KASAN: slab-use-after-free in x", "", 1.0, 2.0)))
        self.assertFalse(crash.passed(Outcome(0, "", "", 1.0, 2.0)))
        self.assertFalse(crash.passed(Outcome(FAILED, "hung: no end after 1 s", "", 1.0, 2.0)))
        plain = scenarios.Scenario("x", ["x"])
        self.assertTrue(plain.passed(Outcome(0, "", "", 1.0, 2.0)))
        self.assertFalse(plain.passed(Outcome(3, "", "", 1.0, 2.0)))

    def test_noModule(self) -> None:
        """A directory without a Kbuild file is not built."""
        self.assertFalse(module.exists(Path(self.mktemp())))
        self.assertRaises(place.VMError, module.build, Kernel("6.1", "6.1.0", "1", Path("/k")), Path(self.mktemp()))


class BootTests(SynchronousTestCase):
    """One boot of Debian's 6.1."""

    def boot(self, command: list[str], stop: Event | None = None) -> Outcome:
        """Boot and run a command."""
        absent = place.missing(["qemu-system-x86_64", "depmod", "setpriv"])
        if absent:
            raise SkipTest(f"{', '.join(absent)} not installed")
        kernel = kernels.cached("6.1")
        if kernel is None and os.environ.get("SSA_VM") != "1":
            raise SkipTest("no kernel for the virtual machine: make test-vm fetches it, SSA_VM=1 does it from here")
        return Machine(kernel or kernels.fetch("6.1")).run(Command(command), timeout=300, stop=stop)

    def test_true(self) -> None:
        """A command runs in the guest and its status comes back."""
        outcome = self.boot(["sh", "-c", "exit 7"])
        self.assertEqual((outcome.status, outcome.problem), (7, ""), outcome.console)

    def test_stopped(self) -> None:
        """A machine that is not wanted any more is stopped."""
        stop = Event()
        stop.set()
        outcome = self.boot(["sleep", "600"], stop)
        self.assertEqual((outcome.status, outcome.problem), (FAILED, "stopped by the user"), outcome.console)
