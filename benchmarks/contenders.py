# SPDX-License-Identifier: MIT
"""What is measured: proxies started by a command, and programs that need none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

BUFFER = 128 * 1024
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"


@dataclass
class Ports:
    """Where the ends of one proxy are: C{client} takes plaintext, C{server} takes TLS."""

    client: int
    server: int


@dataclass
class Contender:
    """
    One column of the table.

    @ivar command: what starts the proxy; empty if there is none.
    @ivar ports: of the proxy.
    @ivar kind: how the program connects (L{benchmarks.load}).
    @ivar launcher: what the program is started with, for SSA itself; its processes but the program count as the proxy.
    @ivar missing: why it cannot be measured, or empty.
    """

    name: str
    command: list[str] = field(default_factory=list)
    ports: Ports = field(default_factory=lambda: Ports(0, 0))
    kind: str = "tcp"
    launcher: list[str] = field(default_factory=list)
    missing: str = ""
    version: str = ""

    @property
    def isProxied(self) -> bool:
        """Whether there is a proxy whose cost can be told."""
        return bool(self.command or self.launcher)


def versionOf(command: list[str]) -> str:
    """The version that a program says it has: the first line that has its name and a digit."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    name = os.path.basename(command[0])
    for line in (result.stdout + result.stderr).splitlines():
        if name in line.lower() and any(character.isdigit() for character in line):
            return line.partition(" - http")[0].strip()
    return "unknown"


def found(name: str) -> str:
    """The path of a program, in the directories of administrators too, or empty."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or ""


def relay(directory: Path, ports: Ports, tlsPort: int, plainPort: int, pem: Path) -> Contender:
    """The relay alone (L{benchmarks.proxy})."""
    numbers = [str(port) for port in (ports.client, tlsPort, ports.server, plainPort)]
    return Contender("relay", [sys.executable, "-m", "benchmarks.proxy", *numbers, str(pem)], ports)


def stunnel(directory: Path, ports: Ports, tlsPort: int, plainPort: int, pem: Path) -> Contender:
    """stunnel; its buffers are fixed at 18 KiB."""
    program = found("stunnel") or found("stunnel4")
    if not program:
        return Contender("stunnel", missing="no stunnel: apt-get install stunnel4")
    path = directory / "stunnel.conf"
    path.write_text(f"""foreground = yes
pid =
debug = err
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[client]
client = yes
accept = 127.0.0.1:{ports.client}
connect = 127.0.0.1:{tlsPort}
[server]
accept = 127.0.0.1:{ports.server}
connect = 127.0.0.1:{plainPort}
cert = {pem}
""")
    return Contender("stunnel", [program, str(path)], ports, version=versionOf([program, "-version"]))


def haproxy(directory: Path, ports: Ports, tlsPort: int, plainPort: int, pem: Path) -> Contender:
    """haproxy, one thread."""
    program = found("haproxy")
    if not program:
        return Contender("haproxy", missing="no haproxy: apt-get install haproxy")
    path = directory / "haproxy.cfg"
    path.write_text(f"""global
  nbthread 1
  maxconn 4000
  tune.bufsize {BUFFER}
defaults
  mode tcp
  timeout connect 5s
  timeout client 10m
  timeout server 10m
listen client
  bind 127.0.0.1:{ports.client} backlog 4096
  server far 127.0.0.1:{tlsPort} ssl verify none
listen server
  bind 127.0.0.1:{ports.server} backlog 4096 ssl crt {pem}
  server far 127.0.0.1:{plainPort}
""")
    return Contender("haproxy", [program, "-q", "-f", str(path)], ports, version=versionOf([program, "-v"]))


def nginx(directory: Path, ports: Ports, tlsPort: int, plainPort: int, pem: Path) -> Contender:
    """nginx stream, one worker."""
    program = found("nginx")
    if not program or not os.path.exists(STREAM_MODULE):
        return Contender("nginx", missing="no nginx with its stream module: apt-get install nginx libnginx-mod-stream")
    path = directory / "nginx.conf"
    path.write_text(f"""load_module {STREAM_MODULE};
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 8192; }}
stream {{
  proxy_buffer_size {BUFFER};
  ssl_session_cache shared:sessions:1m;
  server {{
    listen 127.0.0.1:{ports.client} backlog=4096;
    proxy_pass 127.0.0.1:{tlsPort};
    proxy_ssl on;
    proxy_ssl_protocols TLSv1.3;
  }}
  server {{
    listen 127.0.0.1:{ports.server} ssl backlog=4096;
    proxy_pass 127.0.0.1:{plainPort};
    ssl_protocols TLSv1.3;
    ssl_certificate {pem};
    ssl_certificate_key {pem};
  }}
}}
""")
    return Contender(
        "nginx", [program, "-p", str(directory), "-c", str(path)], ports, version=versionOf([program, "-v"])
    )


PROXIES = (relay, stunnel, haproxy, nginx)
