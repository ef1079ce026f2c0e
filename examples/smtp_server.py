# SPDX-License-Identifier: MIT
"""
Receive messages by SMTP with STARTTLS, without the ssl module: smtp_server.py PORT CHAIN KEY

Each message is printed. Port 0 takes a free one. Nothing is accepted before STARTTLS (RFC 3207), which TLS_UPGRADE does. One
socket that is never connected holds the certificate; all others share its options and sessions by TLS_CONTEXT.
"""

import os
import socket
import socketserver
import struct
import sys

IPPROTO_TLS = 205
TLS_CERTIFICATE_CHAIN, TLS_PRIVATE_KEY, TLS_CONTEXT, TLS_UPGRADE = 88, 89, 107, 140
TLS_ID, TLS_ERROR = 96, 100
SERVER = 1
LONGEST_LINE, LARGEST_MESSAGE = 4096, 1 << 20


def text(sock, option):
    """An option that is a string."""
    return sock.getsockopt(IPPROTO_TLS, option, 1024).rstrip(b"\0").decode()


class Lines:
    """Lines of a socket, bounded."""

    def __init__(self, sock):
        self.sock = sock
        self.rest = b""

    def read(self):
        """The next line without its end; None when there are no more."""
        while b"\n" not in self.rest:
            if len(self.rest) > LONGEST_LINE:
                return None
            data = self.sock.recv(4096)
            if not data:
                return None
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line.rstrip(b"\r")


class Session(socketserver.BaseRequestHandler):
    """One client."""

    def say(self, reply):
        """Send a reply."""
        self.request.sendall(reply.encode() + b"\r\n")

    def setup(self):
        self.request.settimeout(60)
        self.lines = Lines(self.request)
        self.secure = False

    def handle(self):
        try:
            self.talk()
        except OSError as error:
            print(f"{self.client_address[0]}: {error.strerror or error}", file=sys.stderr, flush=True)

    def talk(self):
        self.say("220 example.org ESMTP")
        while (line := self.lines.read()) is not None:
            verb = line.split(b" ")[0].upper()
            if verb == b"QUIT":
                self.say("221 bye")
                return
            if verb == b"EHLO":
                self.say("250 example.org" if self.secure else "250-example.org\r\n250 STARTTLS")
            elif verb in (b"HELO", b"NOOP", b"RSET"):
                self.say("250 example.org")
            elif verb == b"STARTTLS" and not self.secure:
                if self.lines.rest:
                    # Commands that were sent ahead in the clear must not be taken for ones that came over TLS.
                    self.say("501 nothing may follow STARTTLS")
                    return
                self.say("220 go ahead")
                self.upgrade()
            elif not self.secure:
                self.say("530 issue STARTTLS first")
            elif verb in (b"MAIL", b"RCPT"):
                self.say("250 fine")
            elif verb == b"DATA":
                self.say("354 end with a dot")
                if not self.receive():
                    return
            else:
                self.say("502 not known here")

    def upgrade(self):
        """The rest of the conversation is on a TLS socket."""
        sock = socket.socket(self.request.family, socket.SOCK_STREAM, IPPROTO_TLS)
        try:
            sock.setsockopt(IPPROTO_TLS, TLS_CONTEXT, self.server.template.getsockopt(IPPROTO_TLS, TLS_ID, 8))
            sock.setsockopt(IPPROTO_TLS, TLS_UPGRADE, struct.pack("=ii", self.request.fileno(), SERVER))
        except OSError as error:
            why = text(sock, TLS_ERROR)
            sock.close()
            raise OSError(error.errno, f"{error.strerror}: {why}") from error
        self.request.close()
        sock.settimeout(60)
        self.request, self.lines, self.secure = sock, Lines(sock), True

    def receive(self):
        """Print a message; whether it has come whole."""
        message = []
        size = 0
        while (line := self.lines.read()) is not None:
            if line == b".":
                print(b"\n".join(message).decode(errors="replace"), flush=True)
                self.say("250 received")
                return True
            size += len(line)
            if size > LARGEST_MESSAGE:
                self.say("552 too large")
                return False
            message.append(line.removeprefix(b"."))
        return False

    def finish(self):
        self.request.close()  # after an upgrade that is not the socket that the server closes


class Server(socketserver.ThreadingTCPServer):
    """An ordinary TCP server, and the socket that holds the certificate."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, port, chain, key):
        self.template = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
        try:
            self.template.setsockopt(IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, os.fsencode(chain))
            self.template.setsockopt(IPPROTO_TLS, TLS_PRIVATE_KEY, os.fsencode(key))
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}\nTLS_ERROR: {text(self.template, TLS_ERROR)}") from error
        super().__init__(("127.0.0.1", port), Session)


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: smtp_server.py PORT CHAIN KEY")
    try:
        server = Server(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    except OSError as error:
        sys.exit(f"{error.strerror or error}")
    print("listening on port", server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
