# SPDX-License-Identifier: MIT
"""
An HTTPS client with asyncio and without the ssl module: asyncio_client.py ADDRESS PORT HOST [AUTHORITIES]
"""

import asyncio
import os
import socket
import sys

IPPROTO_TLS = 205
TLS_REMOTE_HOSTNAME, TLS_TRUSTED_PEER_CERTIFICATES, TLS_ERROR = 85, 87, 100


def newSocket(address, host, authorities):
    """A non-blocking TLS socket for one host."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, IPPROTO_TLS)
    sock.setsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, host.encode("idna"))
    if authorities is not None:
        sock.setsockopt(IPPROTO_TLS, TLS_TRUSTED_PEER_CERTIFICATES, os.fsencode(authorities))
    # asyncio hands a socket's protocol to getaddrinfo(3), which knows no 205: the same descriptor as a "protocol 0" socket.
    sock = socket.socket(sock.family, sock.type, 0, fileno=sock.detach())
    sock.setblocking(False)
    return sock


async def get(address, port, host, authorities=None):
    """Fetch the first page of a server."""
    sock = newSocket(address, host, authorities)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except OSError as error:
        why = sock.getsockopt(IPPROTO_TLS, TLS_ERROR, 1024).rstrip(b"\0").decode()
        sock.close()
        raise OSError(error.errno, f"{error.strerror}\nTLS_ERROR: {why}") from error
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        writer.write(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: asyncio_client.py ADDRESS PORT HOST [AUTHORITIES]")
    try:
        page = asyncio.run(get(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
    except OSError as error:
        sys.exit(f"{sys.argv[3]}: {error.strerror or error}")
    sys.stdout.buffer.write(page)


if __name__ == "__main__":
    main()
