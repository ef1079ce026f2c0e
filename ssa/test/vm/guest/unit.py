# SPDX-License-Identifier: MIT
"""
The unit of conf/ under a real systemd, with the kernel module: started, reloaded, killed, without rights, stopped.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import unittest
from errno import ENETDOWN
from itertools import takewhile
from pathlib import Path
from typing import ClassVar, Final

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import value
from ssa.test.conformance.kernel import canMakeSockets
from ssa.test.conformance.peers import NAME, credential, echo
from ssa.test.pki import testCA
from ssa.test.vm.guest.case import SECONDS, USER, GuestCase, setOption
from ssa.test.vm.guest.systemd import UNIT, Systemd

_CONFIGURATION: Final = Path("/etc/ssa.conf")
_CERTIFICATES: Final = Path("/etc/ssa-certificates")
_NET_ADMIN: Final = 1 << 12
_START: Final = 300.0
_PAGE: Final = UNIT.parent.parent / "docs" / "ssa.conf.rst"
_CLIENT: Final = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 205)
sock.setsockopt(205, 85, sys.argv[2].encode())
sock.connect(("127.0.0.1", int(sys.argv[1])))
sock.sendall(b"hello")
print(sock.recv(5, socket.MSG_WAITALL).decode())
"""


def documented(name: str) -> str:
    """A drop-in as the documentation has it: the lines below its path that are as far in."""
    lines = iter(_PAGE.read_text().splitlines())
    margin = next(line for line in lines if line.endswith(f"/ssa.service.d/{name}")).partition("#")[0]
    return "".join(f"{line.strip()}\n" for line in takewhile(lambda line: line.startswith(margin), lines))


class Unit(GuestCase):
    """The service, as an administrator uses it."""

    systemd: ClassVar[Systemd]
    timeout = 900.0

    def setUp(self) -> None:
        super().setUp()
        _CONFIGURATION.unlink(missing_ok=True)
        self.addCleanup(self.systemd.control, "stop", "ssa")

    def start(self) -> None:
        """Start it; systemctl says that it has started when it serves."""
        done = self.systemd.control("start", "ssa", seconds=_START)
        self.assertEqual((done.returncode, self.systemd.show("ActiveState")), (0, "active"), done.stderr + self.systemd.said())

    def works(self) -> None:
        """A client and a server on the module."""
        client, server = self.bothEnds()
        client.sendall(b"x" * 50_000)
        self.assertEqual(self.exactly(server, 50_000), b"x" * 50_000)

    def leastVersion(self) -> int:
        """TLS_VERSION_MIN of a new socket, which is the policy's."""
        return int.from_bytes(value(self.tlsSocket(), Option.TLS_VERSION_MIN), sys.byteorder)

    def status(self, pid: int) -> dict[str, str]:
        """What the kernel says of a process."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}

    def daemonPID(self) -> int:
        """Its number here: systemd's is that of another PID namespace."""
        (path,) = Path("/sys/fs/cgroup").glob("**/ssa.service/cgroup.procs")
        (pid,) = path.read_text().split()
        return int(pid)

    def test_life(self) -> None:
        """It serves the module when it says so, has no more rights than it needs, and is gone when it is stopped."""
        self.fails(ENETDOWN, socket.socket, socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        self.start()
        self.assertTrue(canMakeSockets(), "it is started before it serves")
        self.assertIn("kernel module: registered", self.systemd.show("StatusText"))
        self.works()
        status = self.status(self.daemonPID())
        for name in ("CapPrm", "CapEff", "CapBnd"):
            self.assertEqual(int(status[name], 16), _NET_ADMIN, name)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))
        self.assertEqual(oct(os.stat("/run/ssa/daemon.sock").st_mode & 0o777), "0o666")
        self.systemd.do("stop", "ssa")
        self.assertEqual((self.systemd.show("ActiveState"), self.systemd.show("Result")), ("inactive", "success"))
        self.assertFalse(Path("/run/ssa").exists())
        self.assertFalse(canMakeSockets())
        self.assertNotIn("rror]", self.systemd.said())

    def test_reload(self) -> None:
        """systemctl reload reads the configuration again, all or nothing."""
        _CONFIGURATION.write_text("[default]\nMinProtocol = TLSv1.2\n")
        self.start()
        self.assertEqual(self.leastVersion(), 0x0303)
        _CONFIGURATION.write_text("[default]\nMinProtocol = TLSv1.3\n")
        self.systemd.do("reload", "ssa")
        self.eventually(lambda: self.leastVersion() == 0x0304, "the new policy", SECONDS)
        _CONFIGURATION.write_text("[default]\nMinProtocol = TLSv1.2\nNonsense = 1\n")
        self.systemd.do("reload", "ssa")
        self.eventually(lambda: f"{_CONFIGURATION}:3: [default] Nonsense" in self.systemd.said(), "the error", SECONDS)
        self.assertEqual(self.leastVersion(), 0x0304, "the old policy stays")
        self.works()

    def test_killed(self) -> None:
        """systemd starts it again, and programs that run go on."""
        self.start()
        first = self.daemonPID()
        os.kill(first, 9)
        self.eventually(lambda: self.systemd.show("NRestarts") == "1" and canMakeSockets(), "the next one", _START)
        self.assertNotEqual(self.daemonPID(), first)
        self.works()

    def test_badConfiguration(self) -> None:
        """It does not start with errors, and says which."""
        _CONFIGURATION.write_text("[default]\nMinProtocol = SSLv3\n")
        self.assertNotEqual(self.systemd.control("start", "ssa", seconds=_START).returncode, 0)
        self.assertIn(f"{_CONFIGURATION}:2: [default] MinProtocol", self.systemd.said())
        self.assertNotIn("Usage:", self.systemd.said(), "that it is used wrongly is not so")
        self.assertFalse(canMakeSockets())

    def test_files(self) -> None:
        """
        It reads a certificate, a key and a trust store that are root's alone, and remembers in its state directory; a
        supervisor of an ordinary user is served too.
        """
        _CERTIFICATES.mkdir(mode=0o700, exist_ok=True)
        chain, key = _CERTIFICATES / "chain.pem", _CERTIFICATES / "key.pem"
        authority = _CERTIFICATES / "authority.pem"
        authority.write_bytes(testCA().pem)
        chain.write_bytes(credential().chainPEM)
        key.touch(0o600)
        key.write_bytes(credential().keyPEM)
        _CONFIGURATION.write_text(
            f"[default]\nCertPath = {chain}\nKeyPath = {key}\nTrustStoreLocation = {authority}\n"
            "Validation = first-use\nFirstUseStore = /var/lib/ssa/known\n"
        )
        self.start()
        server = self.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS))
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        client = self.tlsSocket()
        setOption(client, Option.TLS_REMOTE_HOSTNAME, NAME.encode())
        client.connect(server.getsockname())
        self.keep(server.accept()[0])
        self.eventually(lambda: Path("/var/lib/ssa/known").exists(), "what first-use has seen", SECONDS)
        peer = self.server(echo)
        command = [sys.executable, "-m", "ssa", "run", "--", sys.executable, "-c", _CLIENT]
        done = subprocess.run(
            [*command, str(peer.address[1]), NAME],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_START, user=USER, group=USER, extra_groups=[],
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stdout), (0, "hello\n"), done.stderr)

    def test_seed(self) -> None:
        """RandomSeed needs the drop-in of the documentation: without it the device is not there."""
        _CONFIGURATION.write_text("[default]\nRandomSeed = /dev/hwrng 64\n")
        self.assertTrue(Path("/dev/hwrng").is_char_device(), "the guest has none")
        self.assertNotEqual(self.systemd.control("start", "ssa", seconds=_START).returncode, 0)
        self.assertIn("RandomSeed: /dev/hwrng: No such file or directory", self.systemd.said())
        self.systemd.do("stop", "ssa")  # it would try again
        dropIn = self.systemd.dropIn / "hwrng.conf"
        dropIn.write_text(documented(dropIn.name))
        self.addCleanup(self.systemd.control, "daemon-reload")
        self.addCleanup(dropIn.unlink)
        self.systemd.do("daemon-reload")
        self.start()
        self.works()


if __name__ == "__main__":
    credential()
    with Systemd() as manager:
        Unit.systemd = manager
        program = unittest.main(argv=["unit"], exit=False, verbosity=2, warnings="ignore")
    sys.exit(0 if program.result.wasSuccessful() and program.result.testsRun else 1)
