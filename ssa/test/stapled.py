# SPDX-License-Identifier: MIT
"""
Servers that staple an OCSP answer of the test's choice (RFC 6066 section 8): with pyOpenSSL, as Python's C{ssl} staples none.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import struct

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from OpenSSL import SSL

from ssa.test.badservers import Serve
from ssa.test.pki import CA, Credential

_HOUR = datetime.timedelta(hours=1)


def answer(
    ca: CA, certificate: x509.Certificate, *, status: str = "good", signer: CA | None = None, expired: bool = False
) -> bytes:
    """
    Make an OCSP answer (RFC 6960), DER.

    @param ca: who has issued the certificate.
    @param status: C{"good"}, C{"revoked"} or C{"unknown"}.
    @param signer: who signs the answer; L{None} for C{ca}.
    @param expired: a newer one should have been there for an hour.
    """
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    isRevoked = status == "revoked"
    by = signer or ca
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=certificate,
            issuer=ca.certificate,
            algorithm=hashes.SHA1(),
            cert_status=ocsp.OCSPCertStatus[status.upper()],
            this_update=now - 24 * _HOUR,
            next_update=now - _HOUR if expired else now + 24 * _HOUR,
            revocation_time=now - 48 * _HOUR if isRevoked else None,
            revocation_reason=x509.ReasonFlags.key_compromise if isRevoked else None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, by.certificate)
    )
    return builder.sign(by.key, hashes.SHA256()).public_bytes(Encoding.DER)


def stapling(credential: Credential, staple: bytes) -> Serve:
    """
    A server with an answer to staple, which echoes.

    @param staple: the answer, DER; C{b""} for none.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(credential.certificate)
    for certificate in credential.chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(credential.key)
    context.set_ocsp_server_callback(lambda connection, data: staple)

    def serve(sock: socket.socket) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
        tls = SSL.Connection(context, sock)
        tls.set_accept_state()
        with contextlib.suppress(SSL.Error):
            tls.do_handshake()
            while data := tls.recv(65536):
                tls.sendall(data)

    return serve
