# SPDX-License-Identifier: MIT
"""
RevocationChecks is on: what a program sees of responders and lists that are good, bad, slow or absent.

The root is in the configuration's trust store: an authority that a program brought itself may not send the daemon to
loopback.  So its key has to be known beforehand.
"""

from __future__ import annotations

import errno
import secrets
import select
import socket
import threading
import time
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from ssa.api import IPPROTO_TLS, Option
from ssa.test.conformance.case import Thread
from ssa.test.conformance.case_stapled import StaplingCase, staplingContext
from ssa.test.conformance.peers import NAME, Peer, echo
from ssa.test.conformance.runner import PATIENCE
from ssa.test.pki import CA, Credential
from ssa.test.responders import Request, Web, ocspAnswer, points, revocationList, slow

REVOKED, UNKNOWN = ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN
SECONDS = 2.0 * PATIENCE
_KEY = 0x5353412074657374
CONFIGURATION = (
    f"[default]\nRevocationChecks = on\nRevocationTimeout = {SECONDS:g}\n"
    f"TrustStoreLocation = {Path(__file__).with_name('authority.pem')}\n"
)


@lru_cache(maxsize=1)
def root() -> CA:
    """The root whose certificate is in the file."""
    return CA("SSA test root, fixed", key=ec.derive_private_key(_KEY, ec.SECP256R1()))


class Checked(StaplingCase):
    """Connections that need an answer."""

    def setUp(self) -> None:
        self.web = Web()
        self.addCleanup(self.web.stop)
        # What a daemon keeps of an earlier run is by issuer and URL, and ports come again.
        self.list = f"/crl-{secrets.token_hex(8)}"

    def clientSocket(self, family: int = socket.AF_INET, flags: int = 0, name: str = NAME) -> socket.socket:
        """A TLS socket that trusts the configuration's root."""
        sock = self.tlsSocket(family, flags)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_REMOTE_HOSTNAME, name.encode())
        return sock

    def issue(self) -> Credential:
        """A certificate that names a responder and a list."""
        return root().issue([NAME], extensions=points(self.web.url("/ocsp"), self.web.url(self.list)))

    def test_stapled(self) -> None:
        """What is stapled settles it; nobody else is asked."""
        identity = self.issue()
        self.assertEqual(self.answered(identity, ocspAnswer(root(), identity.certificate)), 0)
        self.assertEqual(self.web.asked, [])

    def test_responder(self) -> None:
        """A responder says good; the next connection does not ask again."""
        identity = self.issue()
        self.web.put("/ocsp", ocspAnswer(root(), identity.certificate))
        self.assertEqual(self.answered(identity, b""), 0)
        asked = len(self.web.asked)
        self.assertEqual(self.answered(identity, b""), 0)
        self.assertEqual(len(self.web.asked), asked)

    def test_revoked(self) -> None:
        """A responder, or a list, says revoked."""
        identity = self.issue()
        self.web.put("/ocsp", ocspAnswer(root(), identity.certificate, REVOKED))
        self.assertEqual(self.answered(identity, b""), errno.EKEYREVOKED)
        self.assertIn("OCSP", self.said)
        identity = self.issue()
        self.web.put("/ocsp", ocspAnswer(root(), identity.certificate, UNKNOWN))
        self.web.put(self.list, revocationList(root(), [identity.certificate.serial_number]))
        self.assertEqual(self.answered(identity, b""), errno.EKEYREVOKED)
        self.assertIn("superseded", self.said)

    def test_unknown(self) -> None:
        """No definite answer: EKEYREVOKED, and TLS_ERROR tells what each source said."""
        identity = self.issue()
        self.web.put("/ocsp", ocspAnswer(root(), identity.certificate, UNKNOWN))
        self.assertEqual(self.answered(identity, b""), errno.EKEYREVOKED)
        absent = f"{self.list}: the server answers with status 404"
        for words in ("no definite answer", "does not know", absent, "cached: nothing"):
            self.assertIn(words, self.said)

    def test_slow(self) -> None:
        """Nobody answers in time; others connect meanwhile, and the program is not held up by more than the time."""
        waiting, served = self.issue(), self.issue()
        self.web.put("/ocsp", slow)
        self.web.put(self.list, slow)
        late = self.server(echo, staplingContext(waiting, b""), quiet=True)
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        begun = time.monotonic()
        self.fails(errno.EINPROGRESS, sock.connect, late.address)
        self.eventually(lambda: bool(self.web.asked), "a question")
        self.assertEqual(self.answered(served, ocspAnswer(root(), served.certificate)), 0)
        self.assertEqual(select.select([], [sock], [], 0)[1], [])
        self.writable(sock)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), errno.EKEYREVOKED)
        self.assertLess(time.monotonic() - begun, 3 * SECONDS + 2)
        self.assertIn("no answer yet", self.tlsError(sock))

    def test_closed(self) -> None:
        """A socket that is closed while the responder is asked: the other end sees the end."""
        self.web.put("/ocsp", slow)
        self.web.put(self.list, slow)
        ended = threading.Event()

        def untilTheEnd(peer: Peer) -> None:
            if not peer.recv():
                ended.set()

        server = self.server(untilTheEnd, staplingContext(self.issue(), b""), quiet=True)
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        self.fails(errno.EINPROGRESS, sock.connect, server.address)
        self.eventually(lambda: bool(self.web.asked), "a question")
        sock.close()
        self.eventually(lambda: ended.is_set() or bool(server.failures), "the end of the connection", SECONDS * 4)

    def test_manyAtOnce(self) -> None:
        """Many connections to one server ask once."""
        identity = self.issue()
        answer = ocspAnswer(root(), identity.certificate)

        def late(request: Request) -> None:
            time.sleep(0.3)
            request.send(200, answer)

        self.web.put("/ocsp", late)
        server = self.server(echo, staplingContext(identity, b""))

        def connect() -> None:
            self.clientSocket().connect(server.address)

        for thread in [Thread(connect) for _ in range(8)]:
            thread.result()
        self.assertEqual(self.web.count("/ocsp"), 1)

    def test_programsAuthority(self) -> None:
        """An authority that the program brought sends the daemon to nobody on this machine."""
        identity = self.issue()
        self.web.put("/ocsp", ocspAnswer(root(), identity.certificate))
        server = self.server(echo, staplingContext(identity, b""), quiet=True)
        sock = self.clientSocket()
        sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, root().pem)
        self.fails(errno.EKEYREVOKED, sock.connect, server.address)
        self.assertEqual(self.web.asked, [])
