# SPDX-License-Identifier: MIT
"""
Those who say whether a certificate is revoked: answers and lists, good and bad; a web server that serves them, well and
badly; and OpenSSL's own responder.  Everything on loopback.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from ssa.test.pki import CA, Key, testKey

HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)


def utcNow() -> datetime.datetime:
    """The time, in whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def points(ocspURL: str = "", *lists: str, mustStaple: bool = False) -> list[x509.ExtensionType]:
    """The extensions that say where answers are."""
    found: list[x509.ExtensionType] = []
    if ocspURL:
        location = x509.UniformResourceIdentifier(ocspURL)
        found.append(
            x509.AuthorityInformationAccess([x509.AccessDescription(AuthorityInformationAccessOID.OCSP, location)])
        )
    if lists:
        found.append(
            x509.CRLDistributionPoints(
                [x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None) for url in lists]
            )
        )
    if mustStaple:
        found.append(x509.TLSFeature([x509.TLSFeatureType.status_request]))
    return found


def delegate(
    ca: CA, *, usage: bool = True, expired: bool = False, number: int = 90
) -> tuple[x509.Certificate, Key]:
    """
    A responder's certificate.

    @param usage: whether it may sign OCSP answers.
    """
    key = testKey("ec", number)
    now = utcNow()
    purpose = ExtendedKeyUsageOID.OCSP_SIGNING if usage else ExtendedKeyUsageOID.SERVER_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "responder")]))
        .issuer_name(ca.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * DAY)
        .not_valid_after(now - DAY if expired else now + 30 * DAY)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.OCSPNoCheck(), critical=False)
    )
    return builder.sign(ca.key, hashes.SHA256()), key


def ocspAnswer(
    ca: CA,
    certificate: x509.Certificate,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    *,
    begin: datetime.timedelta = -HOUR,
    end: datetime.timedelta | None = DAY,
    signer: tuple[x509.Certificate, Key] | None = None,
    include: Sequence[x509.Certificate] = (),
    issuer: x509.Certificate | None = None,
    byName: bool = False,
    digest: hashes.HashAlgorithm | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
) -> bytes:
    """
    An OCSP answer, DER.

    @param begin: thisUpdate, from now.
    @param end: nextUpdate, from now.
    @param signer: who signs; L{None} for the authority.
    @param include: the certificates in it.
    @param issuer: whom the certID names; L{None} for the authority.
    @param byName: whether the signer is named by its subject instead of its key.
    @param digest: of the certID.
    """
    now = utcNow()
    isRevoked = status is ocsp.OCSPCertStatus.REVOKED
    who, key = signer if signer is not None else (ca.certificate, ca.key)
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate,
        issuer=issuer if issuer is not None else ca.certificate,
        algorithm=digest if digest is not None else hashes.SHA1(),
        cert_status=status,
        this_update=now + begin,
        next_update=now + end if end is not None else None,
        revocation_time=now - 2 * DAY if isRevoked else None,
        revocation_reason=x509.ReasonFlags.key_compromise if isRevoked else None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.NAME if byName else ocsp.OCSPResponderEncoding.HASH, who)
    if include:
        builder = builder.certificates(list(include))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def revocationList(
    ca: CA,
    revoked: Sequence[int] = (),
    *,
    begin: datetime.timedelta = -HOUR,
    end: datetime.timedelta = DAY,
    key: Key | None = None,
    name: x509.Name | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    encoding: Encoding = Encoding.DER,
) -> bytes:
    """
    A revocation list.

    @param revoked: serial numbers.
    @param begin: thisUpdate, from now.
    @param end: nextUpdate, from now.
    @param key: who signs; L{None} for the authority.
    @param name: the issuer's; L{None} for the authority's.
    @param extensions: each with whether it is critical.
    """
    now = utcNow()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name if name is not None else ca.name)
        .last_update(now + begin)
        .next_update(now + end)
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - 2 * DAY)
        entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.superseded), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key if key is not None else ca.key, hashes.SHA256()).public_bytes(encoding)


Reply = Callable[["Request"], None]
"""What is served at a path."""


class Request(BaseHTTPRequestHandler):
    """A request to L{Web}."""

    server: Web
    body = b""

    def do_GET(self) -> None:
        """Serve."""
        self.serve()

    def do_POST(self) -> None:
        """Serve."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.serve()

    def serve(self) -> None:
        """Look for the first part of the path; what follows may be a question."""
        part = "/" + self.path.split("/")[1]
        self.server.asked.append((self.command, part))
        with contextlib.suppress(OSError):
            reply = self.server.replies.get(part)
            if reply is None:
                self.send(404, b"")
            else:
                reply(self)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole reply."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


class Web(ThreadingHTTPServer):
    """
    A web server, on a free port.

    @ivar replies: what is at C{/name}.
    @ivar asked: method and path of each request.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.replies: dict[str, Reply] = {}
        self.asked: list[tuple[str, str]] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def url(self, name: str) -> str:
        """The URL of a path."""
        return f"http://127.0.0.1:{self.server_address[1]}{name}"

    def put(self, name: str, body: bytes | Reply) -> str:
        """
        Serve something.

        @return: its URL.
        """
        self.replies[name] = body if callable(body) else lambda request: request.send(200, body)
        return self.url(name)

    def count(self, name: str) -> int:
        """How often it was asked for."""
        return sum(1 for _, path in self.asked if path == name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""

    def stop(self) -> None:
        """End the server."""
        self.ended.set()
        self.shutdown()
        self.server_close()
        self.thread.join(5)


def slow(request: Request) -> None:
    """Answer nothing until the client or the server ends."""
    request.server.ended.wait(30)


def enormous(request: Request) -> None:
    """Send without end."""
    request.send_response(200)
    request.end_headers()
    while not request.server.ended.is_set():
        request.wfile.write(bytes(65536))


def endlessHeaders(request: Request) -> None:
    """Send header fields without end."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not request.server.ended.is_set():
        request.wfile.write(b"X-Header: " + b"x" * 1000 + b"\r\n")


def garbage(request: Request) -> None:
    """Speak no HTTP."""
    request.wfile.write(b"\x16\x03\x03nonsense\r\n\r\n" * 10)


def redirect(to: str) -> Reply:
    """Redirect."""
    return lambda request: request.send(302, b"", Location=to)


@contextlib.contextmanager
def opensslResponder(
    directory: Path,
    ca: CA,
    good: Sequence[x509.Certificate],
    revoked: Sequence[x509.Certificate] = (),
    port: int = 0,
) -> Iterator[str]:
    """
    C{openssl ocsp}, with a delegated signer.

    @param directory: for its files.
    @param good: what it knows.
    @param revoked: and of what it knows that it is revoked.  Anything else is unknown to it.
    @param port: where it listens; 0 for a free one.
    @return: its URL.
    """
    signer, key = delegate(ca)
    (directory / "ca.pem").write_bytes(ca.pem)
    (directory / "signer.pem").write_bytes(signer.public_bytes(Encoding.PEM))
    (directory / "signer.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with (directory / "index.txt").open("w") as index:
        for certificate in (*good, *revoked):
            end = f"{certificate.not_valid_after_utc:%y%m%d%H%M%SZ}"
            when = f"{utcNow() - DAY:%y%m%d%H%M%SZ},keyCompromise" if certificate in revoked else ""
            serial = f"{certificate.serial_number:X}"
            serial = "0" * (len(serial) % 2) + serial
            index.write(f"{'R' if when else 'V'}\t{end}\t{when}\t{serial}\tunknown\t/CN=x\n")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["openssl", "ocsp", "-port", str(port), "-index", "index.txt", "-CA", "ca.pem", "-rsigner", "signer.pem",
             "-rkey", "signer.key", "-ndays", "1", "-timeout", "10"],
            cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{_portOf(process, directory / 'log')}/"
    finally:
        process.terminate()
        process.wait(10)


def _portOf(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"ACCEPT \S*:(\d+)", log.read_text(errors="replace"))
        if found is not None:
            return int(found.group(1))
        time.sleep(0.02)
    raise AssertionError(f"openssl ocsp does not listen: {log.read_text(errors='replace')}")
