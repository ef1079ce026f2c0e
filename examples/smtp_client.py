# SPDX-License-Identifier: MIT
"""
Send a message by SMTP with STARTTLS, without the ssl module: smtp_client.py HOST PORT SENDER RECIPIENT [AUTHORITIES]

The conversation begins on an ordinary socket.  After "220" TLS_UPGRADE makes a verified TLS connection of it (RFC 3207); the
message, from standard input, goes over that or not at all.
"""

import os
import smtplib
import socket
import struct
import sys

IPPROTO_TLS = 205
TLS_REMOTE_HOSTNAME, TLS_TRUSTED_PEER_CERTIFICATES, TLS_UPGRADE = 85, 87, 140
TLS_CHOSEN_CIPHER, TLS_ERROR = 98, 100
CLIENT = 0


def text(sock, option):
    """An option that is a string."""
    return sock.getsockopt(IPPROTO_TLS, option, 1024).rstrip(b"\0").decode()


def upgraded(plain, host, authorities=None):
    """Take over a connected TCP socket: the TLS socket for the rest of the conversation."""
    sock = socket.socket(plain.family, socket.SOCK_STREAM, IPPROTO_TLS)
    try:
        sock.setsockopt(IPPROTO_TLS, TLS_REMOTE_HOSTNAME, host.encode("idna"))
        if authorities is not None:
            sock.setsockopt(IPPROTO_TLS, TLS_TRUSTED_PEER_CERTIFICATES, os.fsencode(authorities))
        # Returns when the handshake has ended and the server has proved that it is the host.
        sock.setsockopt(IPPROTO_TLS, TLS_UPGRADE, struct.pack("=ii", plain.fileno(), CLIENT))
    except OSError as error:
        why = text(sock, TLS_ERROR)
        sock.close()
        raise OSError(error.errno, f"{error.strerror}\nTLS_ERROR: {why}") from error
    sock.settimeout(plain.gettimeout())
    plain.close()
    return sock


def startTLS(smtp, host, authorities=None):
    """Upgrade the connection of an smtplib.SMTP."""
    smtp.ehlo_or_helo_if_needed()
    if not smtp.has_extn("starttls"):
        raise OSError(0, "the server does not offer STARTTLS; nothing is sent in the clear")
    code, reply = smtp.docmd("STARTTLS")
    if code != 220:
        raise OSError(0, f"the server refuses STARTTLS: {code} {reply.decode(errors='replace')}")
    smtp.sock = upgraded(smtp.sock, host, authorities)
    # What the server has said in the clear does not count any more, nor does what it may have sent ahead.
    smtp.file = None
    smtp.helo_resp = smtp.ehlo_resp = None
    smtp.esmtp_features = {}
    smtp.does_esmtp = False


def main():
    if len(sys.argv) not in (5, 6):
        sys.exit("usage: smtp_client.py HOST PORT SENDER RECIPIENT [AUTHORITIES]")
    host, port, sender, recipient = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    try:
        with smtplib.SMTP(host, port, timeout=30) as smtp:
            startTLS(smtp, host, *sys.argv[5:])
            print(text(smtp.sock, TLS_CHOSEN_CIPHER), file=sys.stderr)
            smtp.sendmail(sender, [recipient], sys.stdin.buffer.read())
    except smtplib.SMTPException as error:
        sys.exit(f"{host}: {error}")
    except OSError as error:
        sys.exit(f"{host}: {error.strerror or error}")
    print("sent")


if __name__ == "__main__":
    main()
