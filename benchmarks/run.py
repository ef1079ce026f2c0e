# SPDX-License-Identifier: MIT
"""
Compare proxies: alternating within one run, medians, each proxy's own CPU time.

    python -m benchmarks.run [--quick] [--rounds N] [--system "ssa run --embedded --"]

Prints a reStructuredText table and writes all samples to benchmarks/results/. A contender that cannot be measured is
printed with the reason. C{--system} adds SSA as a whole: the program is started by that command and uses IPPROTO_TLS;
what its processes but the program itself use counts.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import shlex
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from benchmarks.contenders import PROXIES, Contender, Ports

ROOT = Path(__file__).resolve().parent.parent
TICK = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE = 120.0
OPENSSL_CONFIGURATION = """openssl_conf = all
[all]
ssl_conf = modules
[modules]
system_default = tls
[tls]
MinProtocol = TLSv1.3
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519:P-256
"""

MEASURES = {
    "up": ("bulk up", "CPU s/GiB"),
    "down": ("bulk down", "CPU s/GiB"),
    "up rate": ("bulk up, rate", "GiB/s"),
    "down rate": ("bulk down, rate", "GiB/s"),
    "client cpu": ("full handshake, client", "CPU µs"),
    "client rate": ("full handshakes, client", "1/s"),
    "server cpu": ("full handshake, server", "CPU µs"),
    "server rate": ("full handshakes, server", "1/s"),
    "resumed cpu": ("resumed handshake, server", "CPU µs"),
    "resumed rate": ("resumed handshakes, server", "1/s"),
    "p50": ("1 KiB ping-pong, median", "µs"),
    "p99": ("1 KiB ping-pong, 99th percentile", "µs"),
    "idle": ("idle connection", "KiB"),
}


def writeCertificate(path: Path) -> None:
    """A self-signed P-256 certificate for localhost and its key, both in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def freePorts(count: int) -> list[int]:
    """TCP ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def descendants(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def cpuOf(processes: list[int]) -> float:
    """User and system time of processes, seconds."""
    ticks = 0
    for process in processes:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK


def memoryOf(processes: list[int]) -> int:
    """Proportional set size, bytes."""
    total = 0
    for process in processes:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


class Failed(Exception):
    """A contender did not do what was asked of it."""


class Bench:
    """One run: the far end, the proxies, the programs."""

    def __init__(self, directory: Path, amounts: dict[str, int], system: str) -> None:
        self.amounts = amounts
        self.pem = directory / "both.pem"
        writeCertificate(self.pem)
        configuration = directory / "openssl.cnf"
        configuration.write_text(OPENSSL_CONFIGURATION)
        self.environment = dict(
            os.environ, OPENSSL_CONF=str(configuration), BENCHMARK_AUTHORITIES=str(self.pem), PYTHONPATH=str(ROOT)
        )
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.tlsPort, self.plainPort, *ports = freePorts(2 + 2 * len(PROXIES))
        self.contenders = [
            make(directory, Ports(*ports[2 * number : 2 * number + 2]), self.tlsPort, self.plainPort, self.pem)
            for number, make in enumerate(PROXIES)
        ]
        whole = Contender("ssa", kind="ssa", launcher=shlex.split(system), ports=Ports(self.tlsPort, 0))
        if not system:
            whole.missing = "the system as a whole was not asked for (--system)"
        self.contenders += [
            whole,
            Contender("direct TLS", kind="tls", ports=Ports(self.tlsPort, 0)),
            Contender("plain TCP", kind="tcp", ports=Ports(self.plainPort, 0)),
        ]

    def start(self) -> None:
        """Start the far end and all proxies, and wait until they listen."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        load = [sys.executable, "-m", "benchmarks.load", "serve", str(self.tlsPort), str(self.plainPort), str(self.pem)]
        self.running["load"] = subprocess.Popen(load, env=self.environment, cwd=ROOT)
        self.waitFor(self.plainPort)
        for contender in self.contenders:
            if contender.command and not contender.missing:
                process = subprocess.Popen(
                    contender.command, env=self.environment, cwd=ROOT,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
                self.running[contender.name] = process
                if not (self.waitFor(contender.ports.client) and self.waitFor(contender.ports.server)):
                    contender.missing = "it did not start"

    def waitFor(self, port: int) -> bool:
        """Until something listens there; nothing is left connected."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return True
            except ConnectionRefusedError:
                time.sleep(0.05)
        return False

    def stop(self) -> None:
        """End everything that was started."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def program(
        self, contender: Contender, kind: str, port: int, measure: str, amount: int
    ) -> tuple[dict[str, Any], float, int]:
        """
        Run one program.

        @return: what it said, CPU seconds of the proxy meanwhile, growth of the proxy's memory in bytes.
        """
        command = [*contender.launcher, sys.executable, "-m", "benchmarks.load", "program", kind, str(port), measure]
        program = subprocess.Popen(
            [*command, str(amount)], env=self.environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert program.stdin is not None and program.stdout is not None
        patience = threading.Timer(PATIENCE, program.kill)
        patience.start()
        try:
            if program.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{contender.name}: the program did not start")
            proxies = self.proxiesOf(contender, program.pid)
            memory = memoryOf(proxies) if measure == "idle" else 0
            before = cpuOf(proxies)
            program.stdin.write(b"\n")
            program.stdin.flush()
            answer = program.stdout.readline()
            if not answer:
                raise RuntimeError(f"{contender.name}: the program failed to measure {measure}")
            cpu = cpuOf(proxies) - before
            grown = memoryOf(proxies) - memory if measure == "idle" else 0
            program.stdin.write(b"\n")
            program.stdin.flush()
            program.wait()
            return json.loads(answer), cpu, grown
        finally:
            patience.cancel()
            program.kill()
            program.wait()
            program.stdin.close()
            program.stdout.close()

    def proxiesOf(self, contender: Contender, program: int) -> list[int]:
        """The processes whose cost is the contender's."""
        if contender.command:
            return descendants(self.running[contender.name].pid)
        if contender.launcher:
            processes = []
            for process in descendants(program):
                # The processes of the launcher name the program too, but after their own arguments.
                command = Path(f"/proc/{process}/cmdline").read_bytes()
                if not command.startswith(b"\0".join([sys.executable.encode(), b"-m", b"benchmarks.load"])):
                    processes.append(process)
            return processes
        return []

    def add(self, contender: Contender, measure: str, value: float) -> None:
        self.samples.setdefault(contender.name, {}).setdefault(measure, []).append(value)

    def measure(
        self, contender: Contender, kind: str, port: int, measure: str, amount: str
    ) -> tuple[dict[str, Any], float, int]:
        """As L{program}; a contender that fails is out from then on, and the table says why."""
        try:
            return self.program(contender, kind, port, measure, self.amounts[amount])
        except (OSError, RuntimeError, ValueError) as error:
            contender.missing = f"{measure}: {error}"
            raise Failed from error

    def round(self, memory: bool) -> None:
        """Every measure once for every contender, one contender after the other for each measure."""
        steps = [self.bulk("up"), self.bulk("down"), self.handshakes, self.served("full", "server")]
        steps += [self.served("resumed", "resumed"), self.pingpong]
        if memory:
            steps.append(self.idle)
        for step in steps:
            for contender in self.contenders:
                if not contender.missing:
                    with contextlib.suppress(Failed):
                        step(contender)

    def bulk(self, direction: str) -> Callable[[Contender], None]:
        """One large transfer from or to the program."""
        def step(contender: Contender) -> None:
            gibibytes = self.amounts["bulk"] / (1 << 30)
            answer, cpu, _ = self.measure(contender, contender.kind, contender.ports.client, direction, "bulk")
            self.add(contender, f"{direction} rate", gibibytes / answer["seconds"])
            if contender.isProxied:
                self.add(contender, direction, cpu / gibibytes)

        return step

    def handshakes(self, contender: Contender) -> None:
        """Full handshakes, the proxy being the client."""
        count = self.amounts["handshakes"]
        answer, cpu, _ = self.measure(contender, contender.kind, contender.ports.client, "full", "handshakes")
        self.add(contender, "client rate", count / answer["seconds"])
        if contender.isProxied:
            self.add(contender, "client cpu", cpu / count * 1e6)

    def served(self, measure: str, name: str) -> Callable[[Contender], None]:
        """Handshakes, the proxy being the server."""
        def step(contender: Contender) -> None:
            if not contender.ports.server:
                return
            count = self.amounts["handshakes"]
            answer, cpu, _ = self.measure(contender, "tls", contender.ports.server, measure, "handshakes")
            if measure == "resumed" and answer["reused"] < count - 1:
                return
            self.add(contender, f"{name} rate", count / answer["seconds"])
            self.add(contender, f"{name} cpu", cpu / count * 1e6)

        return step

    def pingpong(self, contender: Contender) -> None:
        """Round trips of one small message."""
        answer, _, _ = self.measure(contender, contender.kind, contender.ports.client, "pingpong", "pingpong")
        for measure in ("p50", "p99"):
            self.add(contender, measure, answer[measure] * 1e6)

    def idle(self, contender: Contender) -> None:
        """Memory of connections that have carried a message and are silent now."""
        if contender.isProxied:
            _, _, grown = self.measure(contender, contender.kind, contender.ports.client, "idle", "idle")
            self.add(contender, "idle", grown / self.amounts["idle"] / 1024)

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            name: {measure: statistics.median(values) for measure, values in samples.items()}
            for name, samples in self.samples.items()
        }


def table(bench: Bench) -> str:
    """All medians, a row for each measure, as a reStructuredText list table."""
    medians = bench.medians()
    names = [contender.name for contender in bench.contenders if contender.name in medians]
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - measure"]
    lines += [f"     - {name}" for name in names]
    for measure, (title, unit) in MEASURES.items():
        lines.append(f"   * - {title}, {unit}")
        for name in names:
            value = medians.get(name, {}).get(measure)
            lines.append("     - n/a" if value is None else f"     - {value:.2f}" if value < 10 else f"     - {value:.0f}")
    lines.append("")
    lines += [f"{contender.name}: missing: {contender.missing}" for contender in bench.contenders if contender.missing]
    return "\n".join(lines)


def facts(bench: Bench) -> dict[str, Any]:
    """What the numbers hold for."""
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "relay's OpenSSL": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(),
        "load's and peers' OpenSSL": ssl.OPENSSL_VERSION,
        "peers": {contender.name: contender.version for contender in bench.contenders if contender.version},
        "amounts": bench.amounts,
    }


def main() -> int:
    """@return: 0, or 1 if the relay failed, or its bulk CPU is more than stunnel's."""
    parser = argparse.ArgumentParser(description="Compare SSA's relay with other TLS proxies.")
    parser.add_argument("--quick", action="store_true", help="only check that everything runs; the numbers mean nothing")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of which the median is taken")
    parser.add_argument("--system", default="", help="what starts a program under SSA, e.g. 'ssa run --embedded --'")
    options = parser.parse_args()
    amounts = {"bulk": 1 << 30, "handshakes": 300, "pingpong": 5000, "idle": 1000}
    rounds = options.rounds
    if options.quick:
        amounts = {"bulk": 64 << 20, "handshakes": 20, "pingpong": 200, "idle": 50}
        rounds = 1
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        bench = Bench(Path(name), amounts, options.system)
        try:
            bench.start()
            for number in range(rounds):
                bench.round(memory=number == 0)
        finally:
            bench.stop()
    medians = bench.medians()
    known = facts(bench)
    print(table(bench))
    print()
    for key, value in known.items():
        print(f"{key}: {value}")
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps({"facts": known, "medians": medians, "samples": bench.samples}, indent=1))
    print(f"all samples: {path.relative_to(ROOT)}")
    if bench.contenders[0].missing:
        return 1
    if options.quick or "down" not in medians.get("stunnel", {}):
        return 0
    ours = medians["relay"]["up"] + medians["relay"]["down"]
    theirs = medians["stunnel"]["up"] + medians["stunnel"]["down"]
    print(f"bulk CPU, relay to stunnel: {ours / theirs:.2f}")
    return int(ours > theirs)


if __name__ == "__main__":
    sys.exit(main())
