# SPDX-License-Identifier: MIT
"""
C{make demo}: TLS by socket(2), shown on the loopback interface with a certification authority made for the occasion.

A server and a client, which contain no TLS code, talk under C{ssa run}; then the client meets servers that it must refuse.
The exit status is 0 only if everything happened as it should.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssa.test.pki import CA, Credential

HOST: Final = "server.demo.example"
SECONDS: Final = 60.0
"""How long any of the programs may take."""

SERVER: Final = """
import select, socket, sys
IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, TLS_PRIVATE_KEY = 205, 88, 89
listeners = []
for chain, key in zip(sys.argv[1::2], sys.argv[2::2]):
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
    listener.setsockopt(IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, chain.encode())
    listener.setsockopt(IPPROTO_TLS, TLS_PRIVATE_KEY, key.encode())
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listeners.append(listener)
print(*[listener.getsockname()[1] for listener in listeners], flush=True)
while True:
    for listener in select.select(listeners, [], [])[0]:
        connection, address = listener.accept()
        with connection:
            said = connection.recv(1000).decode()
            connection.sendall(f"Hello {address[0]}, you said: {said}".encode())
"""

CLIENT: Final = """
import errno, socket, struct, sys
IPPROTO_TLS, TLS_REMOTE_HOSTNAME, TLS_TRUSTED_PEER_CERTIFICATES = 205, 85, 87
port, host, authority = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
sock.setsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, host.encode())
sock.setsockopt(IPPROTO_TLS, TLS_TRUSTED_PEER_CERTIFICATES, authority.encode())
text = lambda option: sock.getsockopt(IPPROTO_TLS, option, 1024).rstrip(b"\\0").decode()
try:
    sock.connect(("127.0.0.1", port))
except OSError as failure:
    print("refused:", errno.errorcode.get(failure.errno, failure.errno), "-", failure.strerror)
    print("TLS_ERROR:", text(100))
    sys.exit(1)
sock.sendall(b"good morning")
sock.shutdown(socket.SHUT_WR)
print("server says:", sock.makefile().read())
version = struct.unpack("i", sock.getsockopt(IPPROTO_TLS, 113, 4))[0]
print("version:", {0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}[version])
print("cipher:", text(98))
try:
    print("key exchange:", text(143))
except OSError as failure:
    if failure.errno != errno.ENODATA:
        raise
    print("key exchange: the TLS library cannot tell")
print("peer identity:", text(93))
print("data path:", text(142))
"""


@dataclass(frozen=True)
class Scene:
    """
    One meeting of client and server.

    @ivar title: what is shown.
    @ivar credential: the server's.
    @ivar refused: the errno's name that connect(2) must give, or C{""}.
    """

    title: str
    credential: Credential
    refused: str


def scenes(authority: CA) -> list[Scene]:
    """What is shown, in this order."""
    return [
        Scene("A server with a good certificate", authority.issue([HOST]), ""),
        Scene("A certificate that has expired", authority.issue([HOST], expired=True), "EKEYEXPIRED"),
        Scene("A certificate for another name", authority.issue(["other.demo.example"]), "EKEYREJECTED"),
        Scene("A self-signed certificate", authority.issue([HOST], selfSigned=True), "EKEYREJECTED"),
    ]


def _command(script: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "ssa", "run", "--embedded", sys.executable, str(script), *arguments]


def _shown(command: list[str], folder: Path) -> str:
    """A command as a person would type it."""
    words = [word.replace(f"{folder}/", "").replace(sys.executable, "python3") for word in command]
    return " ".join(words).replace("python3 -m ssa", "ssa", 1)


def _save(folder: Path, number: int, credential: Credential) -> list[str]:
    chain, key = folder / f"chain{number}.pem", folder / f"key{number}.pem"
    chain.write_bytes(credential.chainPEM)
    key.touch(mode=0o600)
    key.write_bytes(credential.keyPEM)
    return [str(chain), str(key)]


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[list[int]]:
    """A server; gives the ports that it prints."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield [int(word) for word in server.stdout.readline().split()]
    finally:
        server.terminate()
        try:
            server.wait(SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()


def _problems(scene: Scene, done: subprocess.CompletedProcess[str]) -> list[str]:
    """How a client's output differs from what it must be."""
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    if scene.refused:
        wanted = {"refused": f"{scene.refused} - ", "TLS_ERROR": ""}
    else:
        wanted = {
            "server says": "Hello 127.0.0.1, you said: good morning",
            "version": "TLS 1.",
            "cipher": "TLS_",
            "key exchange": "",
            "peer identity": f"CN={HOST}",
            "data path": "",
        }
    problems = [
        f"{key}: expected {value!r}, found {found.get(key)!r}"
        for key, value in wanted.items()
        if not found.get(key, "").strip() or not found[key].startswith(value)
    ]
    if done.returncode != (1 if scene.refused else 0):
        problems.append(f"the client's exit status is {done.returncode}")
    return problems


def main() -> int:
    """
    Show it.

    @return: the exit status: 0 if everything was as expected.
    """
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    print(f"TLS by socket(2): programs without TLS code, run by {who}.\n", flush=True)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ssa-demo-") as name:
        folder = Path(name)
        server, client = folder / "server.py", folder / "client.py"
        server.write_text(SERVER.lstrip())
        client.write_text(CLIENT.lstrip())
        authority = CA("SSA demo authority")
        (folder / "authority.pem").write_bytes(authority.pem)
        acts = scenes(authority)
        files = [_save(folder, number, scene.credential) for number, scene in enumerate(acts, 1)]
        command = _command(server, *[path for pair in files for path in pair])
        print(f"$ {_shown(command, folder)} &\n", flush=True)
        with _running(command) as ports:
            if len(ports) != len(acts):
                print("The demo failed: the server did not start.", file=sys.stderr)
                return 1
            for scene, port in zip(acts, ports, strict=True):
                command = _command(client, str(port), HOST, str(folder / "authority.pem"))
                print(f"# {scene.title}\n$ {_shown(command, folder)}", flush=True)
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
                print("\n".join(f"  {line}" for line in done.stdout.splitlines()), end="\n\n", flush=True)
                problems += [f"{scene.title}: {problem}" for problem in _problems(scene, done)]
    for problem in problems:
        print(f"The demo failed: {problem}", file=sys.stderr)
    if not problems:
        print("Everything was as it should be: one connection, three refusals.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
