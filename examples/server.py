# SPDX-License-Identifier: MIT
"""
An HTTPS server without the ssl module: server.py PORT CHAIN KEY

http.server on a TLS listener; port 0 takes a free one.
"""

import http.server
import os
import socket
import sys

IPPROTO_TLS = 205
TLS_CERTIFICATE_CHAIN, TLS_PRIVATE_KEY = 88, 89
TLS_CHOSEN_CIPHER, TLS_ERROR = 98, 100


class Hello(http.server.BaseHTTPRequestHandler):
    """Says what the connection is."""

    def do_GET(self):
        cipher = self.connection.getsockopt(IPPROTO_TLS, TLS_CHOSEN_CIPHER, 1024).rstrip(b"\0").decode()
        body = f"Hello {self.client_address[0]}, this is {cipher}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    """The standard library's server with another protocol in its socket."""

    def __init__(self, port, chain, key):
        super().__init__(("127.0.0.1", port), Hello, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(self.address_family, self.socket_type, IPPROTO_TLS)
        self.socket.setsockopt(IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, os.fsencode(chain))
        self.socket.setsockopt(IPPROTO_TLS, TLS_PRIVATE_KEY, os.fsencode(key))
        self.server_bind()
        try:
            self.server_activate()
        except OSError as error:
            why = self.socket.getsockopt(IPPROTO_TLS, TLS_ERROR, 1024).rstrip(b"\0").decode()
            raise OSError(error.errno, f"{error.strerror}\nTLS_ERROR: {why}") from error


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: server.py PORT CHAIN KEY")
    try:
        server = Server(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    except OSError as error:
        sys.exit(f"{error.strerror or error}")
    print("listening on port", server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
