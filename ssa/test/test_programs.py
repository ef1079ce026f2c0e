# SPDX-License-Identifier: MIT
"""
Programs that know nothing of TLS, and the examples, under C{ssa run}, against servers and clients of other makes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path

from OpenSSL import SSL
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.policy.profile import DEFAULT_CIPHERS, DEFAULT_SUITES
from ssa.test.pki import CA
from ssa.test.processes import ROOT, freePort, need, needWay, run, running, underSSA, waitForPort
from ssa.tls.ciphers import ianaName

EXAMPLES = ROOT / "examples"
BUILD_SECONDS = 300.0
"""How long it may take to compile the examples, Go's standard library included."""

GROUPS = {
    "X25519MLKEM768": ("x25519mlkem768",),
    "X25519": ("x25519",),
    "P-256": ("p-256", "secp256r1", "prime256v1"),
    "P-384": ("p-384", "secp384r1"),
    "P-521": ("p-521", "secp521r1"),
    "X448": ("x448",),
}
"""Key exchange groups as openssl's C{-groups} takes them, and the names that TLS libraries have for them."""

_PROBE = """
import json, socket, struct, sys
text = lambda s, option: s.getsockopt(205, option, 1024).rstrip(b"\\0").decode()
for port in sys.argv[2:]:
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 205)
    s.setsockopt(205, 87, sys.argv[1].encode())
    s.setsockopt(205, 85, b"localhost")
    try:
        s.connect(("127.0.0.1", int(port)))
    except OSError as error:
        print(json.dumps({"error": str(error) + ": " + text(s, 100)}), flush=True)
        continue
    found = {"version": struct.unpack("i", s.getsockopt(205, 113, 4))[0], "cipher": text(s, 98)}
    try:
        found["group"] = text(s, 143)
    except OSError as error:
        found["group"] = None
    s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    found["answer"] = s.makefile("rb").read().decode(errors="replace")
    print(json.dumps(found), flush=True)
"""


@lru_cache(maxsize=1)
def _authority() -> CA:
    return CA()


@lru_cache(maxsize=4)
def _examples(target: str) -> Path:
    """Compile the examples; returns where they are."""
    if not EXAMPLES.is_dir():
        raise SkipTest("there are no examples beside the package")
    for program in ("make", "go") if target == "go" else ("make", "cc", "c++"):
        need(program)
    folder = Path(tempfile.mkdtemp(prefix="examples-", dir=os.getcwd()))
    done = subprocess.run(
        ["make", "-C", str(EXAMPLES), target, f"BUILD={folder}"],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
        env={**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"},
    )
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return folder


class _Programs(SynchronousTestCase):
    """Certificates for C{localhost}, and servers that have them."""

    way = "auto"

    def setUp(self) -> None:
        needWay(self.way)
        self.folder = Path(tempfile.mkdtemp(dir=os.getcwd()))
        self.addCleanup(shutil.rmtree, self.folder)
        self.authorities = self.write("ca.pem", _authority().pem)
        for kind in ("ec", "rsa"):
            credential = _authority().issue(["localhost", "127.0.0.1"], key=kind)
            self.write(f"{kind}.pem", credential.chainPEM)
            self.write(f"{kind}.key", credential.keyPEM)

    def write(self, name: str, content: bytes) -> str:
        """Make a file; returns its path."""
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def path(self, name: str) -> str:
        """The path of a file of this test."""
        return str(self.folder / name)

    @contextmanager
    def opensslServer(self, *options: str, kind: str = "ec") -> Iterator[int]:
        """C{openssl s_server}; gives its port."""
        command = [need("openssl"), "s_server", "-accept", "127.0.0.1:0", "-www", "-cert", self.path(f"{kind}.pem")]
        with running(*command, "-key", self.path(f"{kind}.key"), *options) as server:
            yield int(server.expect(r"^ACCEPT .*:(\d+)$").group(1))

    @contextmanager
    def exampleServer(self, *program: str, kind: str = "ec") -> Iterator[int]:
        """An example server under C{ssa run}; gives its port."""
        with running(
            *underSSA(*program, "0", self.path(f"{kind}.pem"), self.path(f"{kind}.key"), way=self.way)
        ) as server:
            yield int(server.expect(r"^listening on port (\d+)$").group(1))

    def assertServed(self, *client: str, page: str = "HTTP/1.0 200") -> None:
        """A client gets a page, exits with 0, and what it prints has C{page} in it."""
        done = run(*underSSA(*client, way=self.way))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(page, done.stdout + done.stderr)

    def assertRefused(self, *client: str, word: str = "TLS_ERROR: ") -> None:
        """A client that does not trust the server's issuer fails and says why."""
        done = run(*underSSA(*client, way=self.way))
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertIn("Key was rejected by service".lower(), (done.stdout + done.stderr).lower())
        self.assertIn(word, done.stdout + done.stderr)
        self.assertNotIn("HTTP/1.0 200", done.stdout)


class _ExampleTests(_Programs):
    """Each example in one way of interception."""

    def checkClient(self, *client: str, page: str = "HTTP/1.0 200", word: str = "TLS_ERROR: ") -> None:
        """A client of HOST PORT [AUTHORITIES] meets a server that it trusts, and one that it does not."""
        with self.opensslServer() as port:
            self.assertServed(*client, "localhost", str(port), self.authorities, page=page)
            self.assertRefused(*client, "localhost", str(port), word=word)

    def checkServer(self, *program: str) -> None:
        """curl and openssl get a page from a server."""
        curl, openssl = need("curl"), need("openssl")
        with self.exampleServer(*program) as port:
            for version in ("--tlsv1.3", "--tls-max=1.2"):
                option = version.split("=")
                url = f"https://localhost:{port}/"
                done = run(curl, "-sS", "--noproxy", "*", "--cacert", self.authorities, *option, url)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertIn("Hello 127.0.0.1", done.stdout)
            done = run(
                openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", "-CAfile", self.authorities,
                "-verify_return_error", "-ign_eof", input="GET / HTTP/1.0\r\n\r\n",
            )  # fmt: skip
            self.assertIn("Hello 127.0.0.1", done.stdout)
            self.assertIn("Verify return code: 0 (ok)", done.stdout)
            # A client that does not speak TLS disturbs nobody.
            done = run(curl, "-sS", "--noproxy", "*", f"http://localhost:{port}/")
            self.assertNotEqual(done.returncode, 0)
            done = run(curl, "-sS", "--noproxy", "*", "--cacert", self.authorities, f"https://localhost:{port}/")
            self.assertIn("Hello 127.0.0.1", done.stdout)

    def test_c(self) -> None:
        """The client in C."""
        self.checkClient(str(_examples("all") / "client"))

    def test_staticC(self) -> None:
        """The same without shared libraries: nothing can be preloaded into it."""
        self.checkClient(str(_examples("all") / "client-static"))

    def test_cServer(self) -> None:
        """The server in C."""
        self.checkServer(str(_examples("all") / "server"))

    def test_python(self) -> None:
        """The client in Python."""
        self.checkClient(sys.executable, str(EXAMPLES / "client.py"), page="TLS_")

    def test_pythonServer(self) -> None:
        """The server in Python."""
        self.checkServer(sys.executable, str(EXAMPLES / "server.py"))

    def test_asyncio(self) -> None:
        """The client with asyncio."""
        client = (sys.executable, str(EXAMPLES / "asyncio_client.py"), "127.0.0.1")
        with self.opensslServer() as port:
            self.assertServed(*client, str(port), "localhost", self.authorities)
            # asyncio puts a text of its own in the place of the errno's.
            done = run(*underSSA(*client, str(port), "localhost", way=self.way))
            self.assertEqual(done.returncode, 1)
            self.assertIn("TLS_ERROR: the peer's certificate", done.stderr)

    def test_go(self) -> None:
        """The client in Go, whose runtime makes its system calls by itself."""
        self.checkClient(str(_examples("go") / "goclient"), page="s_server")

    def test_goServer(self) -> None:
        """The server in Go."""
        self.checkServer(str(_examples("go") / "goserver"))

    def test_socat(self) -> None:
        """socat with so-prototype=205."""
        need("socat")
        self.checkClient(str(EXAMPLES / "client-socat.sh"), word="socat")

    def test_perl(self) -> None:
        """Perl."""
        need("perl")
        self.checkClient(str(EXAMPLES / "client-perl.sh"))

    def mail(self, port: int, *authorities: str) -> subprocess.CompletedProcess[str]:
        """Send a message with the example."""
        command = (sys.executable, str(EXAMPLES / "smtp_client.py"), "localhost", str(port), "a@b.example", "c@d.example")
        return run(*underSSA(*command, *authorities, way=self.way), input="Subject: hello\n\nThis is a secret.\n")

    def test_starttls(self) -> None:
        """A client of SMTP and Twisted's server."""
        with running(
            sys.executable, "-m", "ssa.test.smtpserver", self.path("ec.pem"), self.path("ec.key"), cwd=str(ROOT)
        ) as server:
            port = int(server.expect(r"^listening on port (\d+)$").group(1))
            done = self.mail(port, self.authorities)
            self.assertEqual((done.returncode, done.stdout), (0, "sent\n"), done.stderr)
            self.assertIn("TLS_", done.stderr)
            server.expect(r"^message over TLS: .*This is a secret")
            done = self.mail(port)
            self.assertEqual(done.returncode, 1)
            self.assertIn("TLS_ERROR: the peer's certificate", done.stderr)
        self.assertEqual(len([line for line in server.output if "message" in line]), 1)

    def test_noStarttls(self) -> None:
        """The server does not offer it: nothing is sent."""
        with running(sys.executable, "-m", "ssa.test.smtpserver", cwd=str(ROOT)) as server:
            port = int(server.expect(r"^listening on port (\d+)$").group(1))
            done = self.mail(port, self.authorities)
            self.assertEqual(done.returncode, 1)
            self.assertIn("does not offer STARTTLS", done.stderr)
        self.assertEqual([line for line in server.output if "message" in line], [])

    def test_starttlsServer(self) -> None:
        """The server of SMTP: openssl s_client, twice with one session, and the client of the examples."""
        openssl = need("openssl")
        folder = self.path("session")
        server = (sys.executable, str(EXAMPLES / "smtp_server.py"))
        with running(*underSSA(*server, "0", self.path("ec.pem"), self.path("ec.key"), way=self.way)) as program:
            port = int(program.expect(r"^listening on port (\d+)$").group(1))
            for session, word in (("-sess_out", "New, "), ("-sess_in", "Reused, ")):
                done = run(
                    openssl, "s_client", "-starttls", "smtp", "-connect", f"127.0.0.1:{port}", "-servername", "localhost",
                    "-CAfile", self.authorities, "-verify_return_error", "-crlf", "-ign_eof", session, folder,
                    input="EHLO me\nMAIL FROM:<a@b.example>\nRCPT TO:<c@d.example>\nDATA\nSubject: x\n\nby openssl\n.\nquit\n",
                )  # fmt: skip
                self.assertIn("Verify return code: 0 (ok)", done.stdout, done.stderr)
                self.assertIn(word, done.stdout)
                self.assertIn("250 received", done.stdout)
                program.expect("^by openssl$")
            done = self.mail(port, self.authorities)
            self.assertEqual((done.returncode, done.stdout), (0, "sent\n"), done.stderr)
            program.expect("^This is a secret.$")
            with socket.create_connection(("127.0.0.1", port)) as plain, plain.makefile("rwb", 0) as stream:
                self.assertEqual(stream.readline()[:3], b"220")
                stream.write(b"MAIL FROM:<a@b.example>\r\n")
                self.assertEqual(stream.readline()[:3], b"530")
                stream.write(b"STARTTLS\r\nRSET\r\n")  # a command that is sent ahead in the clear
                self.assertEqual(stream.readline()[:3], b"501")
                self.assertEqual(stream.readline(), b"")

    def test_exampleToExample(self) -> None:
        """Client and server are both under C{ssa run}, each with a daemon of its own."""
        programs = _examples("all")
        with self.exampleServer(str(programs / "server")) as port:
            self.assertServed(str(programs / "client"), "localhost", str(port), self.authorities, page="Hello 127.0.0.1")

    def test_oneSupervisor(self) -> None:
        """Client and server are under the same C{ssa run}."""
        programs = _examples("all")
        script = (
            'mkfifo "$5"; "$0" 0 "$2" "$3" >"$5" & server=$!; read -r words <"$5"; '
            '"$1" localhost "${words##* }" "$4"; status=$?; kill $server; exit $status'
        )
        self.assertServed(
            "sh", "-c", script, str(programs / "server"), str(programs / "client"), self.path("ec.pem"), self.path("ec.key"),
            self.authorities, self.path("port"), page="Hello 127.0.0.1",
        )  # fmt: skip


class RootExampleTests(_ExampleTests):
    """The examples with root's private namespaces."""

    way = "root"


class UserNamespaceExampleTests(_ExampleTests):
    """The examples with namespaces inside of a user namespace."""

    way = "user-namespace"


class LoopbackExampleTests(_ExampleTests):
    """The examples without namespaces."""

    way = "loopback"


del _ExampleTests  # trial would run it by itself


class CompilerTests(SynchronousTestCase):
    """The header."""

    def test_header(self) -> None:
        """All C examples and the header in C++ compile without a warning, and C++ agrees on the layout."""
        self.assertTrue((_examples("all") / "header").exists())


class PeerTests(_Programs):
    """Every version, cipher and group that the default policy allows, against openssl."""

    def opensslGroups(self) -> list[str]:
        """The groups of L{GROUPS} that the installed openssl has."""
        known = [group for group in GROUPS if not self.opensslFails("-groups", group)]
        self.assertIn("P-256", known)
        return known

    def opensslFails(self, *options: str) -> bool:
        """Whether openssl refuses options of a client before it connects anywhere."""
        done = run(need("openssl"), "s_client", "-connect", f"127.0.0.1:{freePort()}", *options)
        return "Connection refused" not in done.stdout + done.stderr and "connect:errno=111" not in done.stderr

    def offers(self) -> list[tuple[str, str, str, tuple[str, ...]]]:
        """What is tried: the kind of key, the cipher, the group and openssl's options."""
        tried: list[tuple[str, str, str, tuple[str, ...]]] = []
        for cipher in DEFAULT_CIPHERS.split(":"):
            kind = "rsa" if "-RSA-" in cipher else "ec"
            tried.append((kind, cipher, "", ("-tls1_2", "-cipher", cipher)))
        for suite in DEFAULT_SUITES.split(":"):
            tried.append(("ec", suite, "", ("-tls1_3", "-ciphersuites", suite)))
        for group in self.opensslGroups():
            tried.append(("ec", "", group, ("-tls1_3", "-groups", group)))
            if group != "X25519MLKEM768":
                # A certificate's curve must be among the groups of TLS 1.2, so this one is RSA.
                tried.append(("rsa", "", group, ("-tls1_2", "-groups", group)))
        return tried

    def test_asClient(self) -> None:
        """Our client against C{openssl s_server}."""
        script = self.write("probe.py", _PROBE.encode())
        offers = self.offers()
        with ExitStack() as stack:
            ports = [str(stack.enter_context(self.opensslServer(*options, kind=kind))) for kind, _, _, options in offers]
            done = run(*underSSA(sys.executable, script, self.authorities, *ports))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        found = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(len(found), len(offers))
        for (_, cipher, group, options), connection in zip(offers, found, strict=True):
            self.assertNotIn("error", connection, options)
            self.assertEqual(connection["version"], 0x0303 if "-tls1_2" in options else 0x0304)
            self.assertIn("HTTP/1.0 200", connection["answer"])
            if cipher:
                self.assertEqual(connection["cipher"], ianaName(cipher))
            if group and connection["group"] is not None:
                self.assertIn(connection["group"].lower(), GROUPS[group])

    def test_asServer(self) -> None:
        """Our server against C{openssl s_client}."""
        openssl = need("openssl")
        program = str(_examples("all") / "server")
        with self.exampleServer(program, kind="ec") as ec, self.exampleServer(program, kind="rsa") as rsa:
            for kind, cipher, group, options in self.offers():
                done = run(
                    openssl, "s_client", "-connect", f"127.0.0.1:{ec if kind == 'ec' else rsa}", "-servername", "localhost",
                    "-CAfile", self.authorities, "-verify_return_error", "-ign_eof", *options,
                    input="GET / HTTP/1.0\r\n\r\n",
                )  # fmt: skip
                self.assertIn("Hello 127.0.0.1", done.stdout, f"{options}\n{done.stderr}")
                self.assertIn(f"{'TLSv1.2' if '-tls1_2' in options else 'TLSv1.3'}, Cipher is {cipher}", done.stdout)
                if group:
                    names = ", ".join(GROUPS[group])
                    line = next(line for line in done.stdout.splitlines() if "Temp Key" in line or "group" in line)
                    self.assertTrue(any(name in line.lower() for name in GROUPS[group]), f"{line}: none of {names}")

    def test_postQuantum(self) -> None:
        """Two programs of ours agree on the hybrid group, where the TLS library has it."""
        if SSL.OPENSSL_VERSION_NUMBER < 0x30500000:
            raise SkipTest("OpenSSL 3.5 and later have X25519MLKEM768")
        script = self.write("probe.py", _PROBE.encode())
        with self.exampleServer(str(_examples("all") / "server")) as port:
            done = run(*underSSA(sys.executable, script, self.authorities, str(port)))
        found = json.loads(done.stdout)
        self.assertNotIn("error", found)
        self.assertEqual(found["group"], "X25519MLKEM768")

    def test_oldVersions(self) -> None:
        """TLS 1.0 and 1.1 are refused on both sides."""
        script = self.write("probe.py", _PROBE.encode())
        program = str(_examples("all") / "server")
        for version in ("-tls1", "-tls1_1"):
            options = (version, "-cipher", "ALL:@SECLEVEL=0")
            with self.opensslServer(*options, kind="rsa") as port:
                done = run(*underSSA(sys.executable, script, self.authorities, str(port)))
            self.assertIn("error", json.loads(done.stdout))
            with self.exampleServer(program, kind="rsa") as port:
                done = run(need("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *options)
            self.assertIn("alert protocol version", done.stderr)

    def test_nginx(self) -> None:
        """Our client against nginx, with keep-alive off and on, TLS 1.2 and 1.3."""
        nginx = need("nginx")
        port, old = freePort(), freePort()
        for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            (self.folder / name).mkdir()
        temporary = "".join(
            f"{name}_temp_path {self.folder}/{name.split('_')[0]};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ).replace(f"{self.folder}/client;", f"{self.folder}/body;")
        configuration = self.write(
            "nginx.conf",
            f"""
            daemon off; pid {self.folder}/pid; error_log stderr notice; worker_processes 1;
            events {{ }}
            http {{
                access_log off; {temporary}
                ssl_certificate {self.path("ec.pem")}; ssl_certificate_key {self.path("ec.key")};
                server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; return 200 "from nginx $ssl_protocol\\n"; }}
                server {{ listen 127.0.0.1:{old} ssl; ssl_protocols TLSv1.2; return 200 "from nginx $ssl_protocol\\n"; }}
            }}
            """.encode(),
        )
        client = str(_examples("all") / "client")
        with running(nginx, "-p", str(self.folder), "-c", configuration) as server:
            waitForPort(server, port)
            self.assertServed(client, "localhost", str(port), self.authorities, page="from nginx TLSv1.3")
            self.assertServed(client, "localhost", str(old), self.authorities, page="from nginx TLSv1.2")
            python = (sys.executable, str(EXAMPLES / "client.py"))
            self.assertServed(*python, "localhost", str(port), self.authorities, page="from nginx TLSv1.3")


