# SPDX-License-Identifier: MIT
"""
Everything at once: C{python -m ssa.test.vm.guest.stress [--seconds N] [--crashes N] [--seed N]}, as root, the module
loaded and no daemon.

Processes do everything to TLS sockets (L{ssa.test.vm.guest.turmoil}), are interrupted by signals and killed in the middle of
their calls; the daemon is killed, stopped, goes on and is started again; C{/proc} is read.  In the end nothing hangs, a daemon
that starts then serves, and the module can be unloaded.  What each does follows from the seed; when, the machine decides.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from ssa.test.conformance.kernel import START_SECONDS
from ssa.test.conformance.peers import Server, credential, echo, serverContext
from ssa.test.pki import testCA
from ssa.test.vm.guest import module, onlookers
from ssa.test.vm.guest.daemon import Daemon
from ssa.test.vm.guest.standin import Started
from ssa.test.vm.guest.turmoil import Deadline, Surroundings, Tally, Turmoil, works

PROCESSES = 3
SECONDS = 60.0
_PAUSE = (0.1, 0.7)

ESSENTIAL = ("converse", "serve", "visit", "send", "receive", "upgrade")
"""What shows that it was no idle run."""


def _fork(run: Callable[[], object]) -> int:
    """Run something in a child, which ends after it."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        run()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Peers:
    """
    Servers in a process of their own.

    @ivar good: the address of the one that does TLS.
    @ivar bad: those of one that says something else, one that hangs up, one that says nothing, and one that is not there.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self.pid = _fork(lambda: self._run(theirs))
        theirs.close()
        addresses = [(host, port) for host, port in json.loads(self._control.recv(4096))]
        self.good, *self.bad = addresses

    def _run(self, control: socket.socket) -> None:
        self._control.close()
        good = Server(echo, serverContext(), quiet=True)
        talkative, curt, silent = (socket.create_server(("127.0.0.1", 0), backlog=200) for _ in range(3))
        with socket.create_server(("127.0.0.1", 0)) as absent:
            missing = absent.getsockname()

        def answer(listener: socket.socket, what: bytes) -> None:
            while True:
                with listener.accept()[0] as sock, contextlib.suppress(OSError):
                    sock.sendall(what)

        threading.Thread(target=answer, args=(talkative, b"220 welcome\r\n" * 10), daemon=True).start()
        threading.Thread(target=answer, args=(curt, b""), daemon=True).start()
        addresses = [good.address, *(listener.getsockname() for listener in (talkative, curt, silent)), missing]
        control.send(json.dumps(addresses).encode())
        control.recv(1)

    def close(self) -> None:
        """End them."""
        self._control.close()
        os.waitpid(self.pid, 0)


class Stress:
    """
    One run.

    @ivar problems: what does not hold.
    @ivar done: how often what was done.
    """

    def __init__(self, seed: int, seconds: float, crashes: int, peers: Peers, path: str) -> None:
        self.problems: list[str] = []
        self.done: Counter[str] = Counter()
        self._seed = seed
        self._choice = random.Random(seed)
        self._crashes = crashes
        self._service = seconds / (crashes + 2)
        self._quiet = time.monotonic() + self._service
        self._generation = 0
        self._children: list[int] = []
        way = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in way:
            end.setblocking(False)
        self._around = Surroundings(peers.good, peers.bad, path, way, Deadline(seconds), Tally())

    def run(self, daemon: Daemon) -> None:
        """Until the time is over."""
        for _ in range(PROCESSES):
            self._start()
        acts = (self._interrupt, self._kill, self._pause, self._crash)
        while self._around.deadline.left():
            time.sleep(self._choice.uniform(*_PAUSE))
            act = self._choice.choices(acts, (10, 3, 2, 1))[0]
            if act == self._crash and (self.done["_crash"] == self._crashes or time.monotonic() < self._quiet):
                continue
            act(daemon)
            self.done[act.__name__] += 1
            self._reap()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        self._gone(self._children)
        for end in self._around.way:
            end.close()
        counts = self._around.done.named()
        print(f"succeeded: {counts}", flush=True)
        self.problems += [f"{name} has never succeeded" for name in ESSENTIAL if not counts[name]]

    def _start(self) -> None:
        self._generation += 1
        seed = f"{self._seed}/{self._generation}"

        def run() -> None:
            turmoil = Turmoil(self._around, seed)
            turmoil.run()
            for what in turmoil.wrong:
                print(f"process {seed}: {what}", file=sys.stderr, flush=True)
            if turmoil.wrong:
                raise AssertionError("a call failed as none may")

        self._children.append(_fork(run))

    def _reap(self) -> None:
        """Those that have ended by themselves: only time may end them."""
        for pid in list(self._children):
            done, how = os.waitpid(pid, os.WNOHANG)
            if done:
                self._children.remove(pid)
                if self._around.deadline.left() or os.waitstatus_to_exitcode(how):
                    self.problems.append(f"a process ended with status {os.waitstatus_to_exitcode(how)}")
                    self._start()

    def _gone(self, pids: Sequence[int]) -> None:
        """They have been killed, and end."""
        deadline = time.monotonic() + SECONDS
        for pid in pids:
            while not os.waitpid(pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    self.problems.append(f"process {pid} does not end")
                    subprocess.run(["sh", "-c", f"cat /proc/{pid}/task/*/stack; echo w >/proc/sysrq-trigger"], check=False)
                    return
                time.sleep(0.01)

    def _interrupt(self, daemon: Daemon) -> None:
        for _ in range(self._choice.randrange(1, 20)):
            os.kill(self._choice.choice(self._children), signal.SIGUSR1)

    def _kill(self, daemon: Daemon) -> None:
        pid = self._children.pop(self._choice.randrange(len(self._children)))
        os.kill(pid, signal.SIGKILL)
        self._gone([pid])
        self._start()

    def _pause(self, daemon: Daemon) -> None:
        daemon.pause()
        time.sleep(self._choice.uniform(0.1, 1.5))
        daemon.resume()

    def _crash(self, daemon: Daemon) -> None:
        """Until the next real one serves, one that passes all on serves for a moment, and is killed too."""
        left = self._around.deadline.left()
        print(f"the daemon is killed, {left:.0f} s are left", flush=True)
        self._around.deadline.move(START_SECONDS)
        daemon.crash()
        with contextlib.ExitStack() as stack:
            standin = Started()
            stack.callback(self._end, standin)
            daemon.launch()
            for _ in range(self._choice.randrange(1, 6)):
                time.sleep(self._choice.uniform(*_PAUSE))
                self._choice.choice((self._interrupt, self._kill))(daemon)
        daemon.awaitService()
        print(f"a new daemon serves, {left:.0f} s are left: {self._around.done.named()}", flush=True)
        self._quiet = time.monotonic() + self._service
        self._around.deadline.move(left)  # to start takes long, and is no time of test

    def _end(self, standin: Started) -> None:
        os.kill(standin.pid, signal.SIGKILL)
        standin.end()


def main(argv: Sequence[str]) -> int:
    """The entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--crashes", type=int, default=4, help="how often the daemon is killed at most")
    parser.add_argument("--seed", type=int, default=205)
    options = parser.parse_args(argv)
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which may be sent to a child before it has begun
    subprocess.run(["modprobe", "tls"], check=False)  # kTLS, where the kernel has it
    credential(), testCA()  # once, before there are children
    peers = Peers()
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0o644)
        file.write(credential().chainPEM)
        file.flush()
        with onlookers.proc(os.getpid()), Daemon() as daemon:
            stress = Stress(options.seed, options.seconds, options.crashes, peers, file.name)
            faulthandler.dump_traceback_later(options.seconds + (options.crashes + 1) * START_SECONDS, exit=True)
            stress.run(daemon)
            daemon.ensure()
            works(peers.good)
            print(f"done: {dict(stress.done)}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    peers.close()
    if left := module.settle():
        stress.problems.append(f"{left} sockets hold the module")
    else:
        module.unload()
    for problem in stress.problems:
        print(f"problem: {problem}", flush=True)
    print(f"{len(stress.problems)} problems", flush=True)
    return 1 if stress.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
