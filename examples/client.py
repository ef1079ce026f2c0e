# SPDX-License-Identifier: MIT
"""
An HTTPS client without the ssl module: client.py HOST PORT [AUTHORITIES]

http.client speaks plain HTTP over a socket that the operating system has made a verified TLS connection.
"""

import http.client
import os
import socket
import sys

IPPROTO_TLS = 205
TLS_REMOTE_HOSTNAME, TLS_TRUSTED_PEER_CERTIFICATES = 85, 87
TLS_CHOSEN_CIPHER, TLS_ERROR = 98, 100


def text(sock, option):
    """An option that is a string."""
    return sock.getsockopt(IPPROTO_TLS, option, 1024).rstrip(b"\0").decode()


def connectTo(host, port, authorities=None):
    """Connect to the first address of a host that answers; it must prove that it is that host."""
    failure = OSError(f"{host} has no address")
    # The protocol is asked for in socket(), not here: getaddrinfo(3) knows no protocol 205.
    for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, IPPROTO_TLS)
        try:
            sock.setsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, host.encode("idna"))
            if authorities is not None:
                sock.setsockopt(IPPROTO_TLS, TLS_TRUSTED_PEER_CERTIFICATES, os.fsencode(authorities))
            sock.connect(address)
            return sock
        except OSError as error:
            failure = OSError(error.errno, f"{error.strerror}\nTLS_ERROR: {text(sock, TLS_ERROR)}")
            sock.close()
    raise failure


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: client.py HOST PORT [AUTHORITIES]")
    host, port = sys.argv[1], int(sys.argv[2])
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.sock = connectTo(host, port, *sys.argv[3:])
    except OSError as error:
        sys.exit(f"{host}: {error.strerror or error}")
    print(text(connection.sock, TLS_CHOSEN_CIPHER), file=sys.stderr)
    connection.request("GET", "/", headers={"Connection": "close"})
    sys.stdout.buffer.write(connection.getresponse().read())


if __name__ == "__main__":
    main()
