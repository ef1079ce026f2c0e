# SPDX-License-Identifier: MIT
"""One boot of the virtual machine: a command goes in, its exit status and the console come out."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from ssa.test.vm import initrd
from ssa.test.vm.command import Command
from ssa.test.vm.console import Console
from ssa.test.vm.kernels import Kernel
from ssa.test.vm.monitor import Monitor
from ssa.test.vm.place import find, require
from ssa.test.vm.tsc import kilohertz

#: The exit status of a run in which the machine, not the command, failed.
FAILED = 125
#: How long a kernel that has complained may go on: the rest of its report, and its panic.
_LAST_WORDS = 5.0
#: How long a kernel may take until it runs our first program, and how many boots are tried where that, or one that is the
#: emulator's fault, is not so.  A few in a hundred boots of the debug kernel, and more of them on a busy host, stop in the
#: kernel's self-tests of RCU; nothing of the project runs then.
_START = 90.0
_BOOTS = 5
#: The emulator sometimes executes the breakpoint by which the kernel patches its own text (static keys) when the kernel has
#: patched it already.  Nothing else makes this report: the module has no static keys.
_EMULATOR = re.compile(r"\bint3: 0000 ")
#: What a kernel is asked before it is given up: blocked tasks, then all processors' stacks.
_KEYS = "wl"
_NOT_STARTED = f"the kernel did not start within {_START:g} s"
_STOPPED = "stopped by the user"
_LINE = ("console=ttyS0 loglevel=5 panic=-1 oops=panic kasan.fault=panic sysrq_always_enabled mitigations=off nokaslr "
         "tsc=reliable no_timer_check reboot=t rcupdate.rcu_cpu_stall_timeout=120 "
         "watchdog_thresh=60 random.trust_cpu=on audit=0")


@dataclass(frozen=True)
class Outcome:
    """
    How a run ended.

    @ivar status: the command's exit status (128 + n for signal n), or L{FAILED}
    @ivar problem: why the machine failed (the kernel's complaint, a hang, no result); empty if it did not
    @ivar console: all that the console said
    @ivar booted: seconds of the guest's clock until the command began; 0 if it did not get there
    @ivar seconds: the whole run, on the host's clock
    """

    status: int
    problem: str
    console: str
    booted: float
    seconds: float


@dataclass(frozen=True)
class Machine:
    """
    The virtual machine.

    @ivar kernel: which it boots
    @ivar memory: MiB
    @ivar processors: how many it has
    @ivar parameters: more words for the kernel's command line
    @ivar options: more options for QEMU, such as C{-gdb tcp:127.0.0.1:1234}
    """

    kernel: Kernel
    memory: int = 1280
    processors: int = 2
    parameters: Sequence[str] = ()
    options: Sequence[str] = ()

    def run(self, command: Command, timeout: float, exchange: Path | None = None,
            hear: Callable[[bytes], object] | None = None, stop: Event | None = None) -> Outcome:
        """
        Boot, run the command, stop.

        @param command: what to run
        @param timeout: seconds after which the machine counts as hung
        @param exchange: a directory of the host that the guest has, to read and write, at L{ssa.test.vm.command.EXCHANGE};
            a temporary one, gone afterwards, without it
        @param hear: gets each piece of the console as it comes
        @param stop: once it is set, the machine is stopped
        @raise VMError: QEMU or something else is missing
        """
        require("qemu-system-x86_64", "setpriv", "depmod")
        # Not where the kernels are: those may be another user's.  And the path is short, for the monitor's socket.
        directory = Path(tempfile.mkdtemp(prefix="ssa-vm-"))
        try:
            control = directory / "control"
            for name in ("control", "exchange"):
                (directory / name).mkdir()
            command.write(self.kernel, control)
            (directory / "initrd").write_bytes(initrd.build(self.kernel))
            words = self._arguments(directory, (exchange or directory / "exchange").resolve())
            begun = time.monotonic()
            console, problem = Console(), ""
            if command.terminal:
                subprocess.run(words, check=False)
            else:
                words += ["-qmp", f"unix:{directory / 'monitor'},server=on,wait=off"]
                for _ in range(_BOOTS):
                    (control / "started").unlink(missing_ok=True)
                    console, problem = _watch(words, directory, timeout, hear, stop or Event())
                    started = (control / "started").exists()
                    if problem == _STOPPED or (started and not _EMULATOR.search(console.report)):
                        break
            return _outcome(control, console, problem, time.monotonic() - begun)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _arguments(self, directory: Path, exchange: Path) -> list[str]:
        """QEMU's command line but for the monitor."""
        line = f"{_LINE} tsc_early_khz={kilohertz()} {' '.join(self.parameters)}"
        shares = [("host", "/", ",readonly=on"), ("control", str(directory / "control"), ""), ("exchange", str(exchange), "")]
        words = ["qemu-system-x86_64", "-M", "microvm", "-accel", "tcg,thread=multi", "-cpu", "max",
                 "-smp", str(self.processors), "-m", str(self.memory),
                 "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                 "-kernel", str(self.kernel.image), "-initrd", str(directory / "initrd"), "-append", line,
                 "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-device", "virtio-rng-device"]
        for name, path, option in shares:
            quoted = path.replace(",", ",,")
            words += ["-fsdev", f"local,id={name},path={quoted},security_model=none,multidevs=remap{option}",
                      "-device", f"virtio-9p-device,fsdev={name},mount_tag={name}"]
        words[0] = find(words[0]) or words[0]
        return ["setpriv", "--pdeathsig=KILL", "--", *words, *self.options]  # QEMU ends when we do, however that happens


def _watch(words: Sequence[str], directory: Path, timeout: float,
           hear: Callable[[bytes], object] | None, stop: Event) -> tuple[Console, str]:
    """Run QEMU until the guest stops, complains or hangs.  Returns the console, and what went wrong if it is not in it."""
    console = Console()
    problem = ""
    begun = time.monotonic()
    deadline = begun + timeout
    started = directory / "control" / "started"
    dying = asked = False
    keys = _KEYS
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu, \
            selectors.DefaultSelector() as selector:
        assert qemu.stdout is not None and qemu.stdin is not None
        selector.register(qemu.stdout, selectors.EVENT_READ)
        try:
            while True:
                selector.select(max(0.0, min(0.5, deadline - time.monotonic())))
                if stop.is_set():
                    problem = _STOPPED
                    break
                if not asked and not dying and begun + _START <= time.monotonic() < deadline and not started.exists():
                    problem = _NOT_STARTED
                    break
                if time.monotonic() >= deadline:
                    if dying or (asked and not keys):
                        break
                    asked = True
                    problem = f"hung: no end after {timeout:g} s"
                    key, keys = keys[0], keys[1:]
                    deadline = time.monotonic() + _LAST_WORDS
                    with contextlib.suppress(OSError), Monitor(directory / "monitor") as connection:
                        connection.sendBreak()
                        qemu.stdin.write(key.encode())
                        qemu.stdin.flush()
                    continue
                if not selector.select(0):
                    continue
                data = os.read(qemu.stdout.fileno(), 65536)
                if not data:
                    break
                console.feed(data)
                if hear is not None:
                    hear(data)
                if console.report and not dying and not asked:
                    dying, deadline = True, min(deadline, time.monotonic() + _LAST_WORDS)
        finally:
            if qemu.poll() is None:
                qemu.kill()
            with contextlib.suppress(OSError):
                qemu.stdin.close()
    return console, problem


def _outcome(control: Path, console: Console, problem: str, seconds: float) -> Outcome:
    """Put together what the guest wrote down and what its kernel said."""

    def said(name: str) -> str:
        try:
            return (control / name).read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""

    log = Console()
    log.feed(said("dmesg").encode() + b"\n")
    status = said("status")
    problem = problem or console.report or log.report or said("problem")
    if not status and not problem:
        problem = "the machine stopped without a result"
    number = int(status) if status and not problem else FAILED
    return Outcome(number, problem, console.text, float(said("booted") or 0), seconds)
