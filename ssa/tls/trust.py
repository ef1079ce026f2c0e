# SPDX-License-Identifier: MIT
"""
Trust stores: whose signature counts.

The system's store is looked for where the distributions put it, since the OpenSSL in a wheel looks elsewhere.  A store that
is missing, unreadable or empty is an error, never an empty store that would accept nothing with a misleading reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EFBIG

from cryptography import x509
from twisted.logger import Logger

from ssa.errors import Cause
from ssa.regularfiles import readRegular
from ssa.tls.certificates import MALFORMED, MOST_CERTIFICATES, parseCertificates

__all__ = ["SYSTEM_STORES", "TrustStore", "customStore", "findStore", "systemStore"]

SYSTEM_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL, older
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine, BSD
    "/var/lib/ca-certificates/ca-bundle.pem",  # SUSE
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
)
"""Where the system's trust store may be; the first that exists is taken."""

_LARGEST_STORE = 16 * 1024 * 1024
_LARGEST_FILES = 8192
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")

_log = Logger()


@dataclass(frozen=True)
class TrustStore:
    """
    Where trusted certificates come from.

    @ivar version: changes when the content may have changed; equal stores have equal versions.
    @ivar path: the file or directory; "" if the program gave the certificates itself.
    @ivar pem: the program's certificates; empty if they come from C{path}.
    @ivar loaded: what C{path} held when it was read; empty if it is read when it is needed.
    """

    version: tuple[object, ...]
    path: str = ""
    pem: bytes = b""
    loaded: tuple[x509.Certificate, ...] = ()

    @property
    def isCustom(self) -> bool:
        """Whether the program brought it."""
        return not self.path

    def certificates(self) -> Sequence[x509.Certificate]:
        """
        Read the store.

        @return: at least one certificate.
        @raise SSAError: EKEYREJECTED if it cannot be read or is empty.
        """
        if self.loaded:
            return self.loaded
        if self.isCustom:
            return parseCertificates(self.pem)
        try:
            data = _readDirectory(self.path) if os.path.isdir(self.path) else readRegular(self.path, _LARGEST_STORE)
        except OSError as error:
            raise Cause.UNTRUSTED.error(f"the trust store {self.path} cannot be read: {error.strerror}") from error
        found: dict[bytes, x509.Certificate] = {}
        for match in _BLOCK.finditer(data):
            block = match.group(0)
            if block in found:
                continue
            try:
                found[block] = x509.load_pem_x509_certificate(block)
            except MALFORMED as error:
                # One odd root among many must not take the network away; it is not trusted, that is all.
                _log.warn("{path}: a certificate is left out, it is malformed: {error}", path=self.path, error=error)
        if not found:
            raise Cause.UNTRUSTED.error(f"the trust store {self.path} holds no certificate")
        if len(found) > MOST_CERTIFICATES:
            raise Cause.UNTRUSTED.error(
                f"the trust store {self.path} holds {len(found)} certificates, at most {MOST_CERTIFICATES} are allowed"
            )
        return tuple(found.values())


def customStore(pem: bytes) -> TrustStore:
    """
    Make the store of a program's own certificates.

    @param pem: the value of TLS_TRUSTED_PEER_CERTIFICATES, already checked.
    """
    return TrustStore(("custom", hashlib.sha256(pem).digest()), pem=pem)


def findStore(path: str) -> TrustStore:
    """
    Find the administrator's store, or the system's.

    @param path: a PEM file or a directory of PEM files; "" for the system's store.
    @raise SSAError: EKEYREJECTED if it does not exist.
    """
    if not path:
        path = systemStore()
    try:
        status = os.stat(path)
    except OSError as error:
        raise Cause.UNTRUSTED.error(f"the trust store {path} cannot be read: {error.strerror}") from error
    return TrustStore(("path", path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size), path=path)


def systemStore(candidates: Sequence[str] = SYSTEM_STORES) -> str:
    """
    Find the system's trust store.

    @return: the path of a file or of a directory with files in it.
    @raise SSAError: EKEYREJECTED if there is none.
    """
    paths = ssl.get_default_verify_paths()
    for path in (*candidates, paths.cafile, paths.capath):
        if path is None:
            continue
        try:
            if os.path.isdir(path):
                if os.listdir(path):
                    return path
            elif os.path.getsize(path) > 0:
                return path
        except OSError:
            continue
    raise Cause.UNTRUSTED.error(
        "this system has no trust store; install its package ca-certificates, or set TrustStoreLocation"
    )


def _readDirectory(path: str) -> bytes:
    """Read the PEM files of a directory, and the links that c_rehash(1) makes, each file once."""
    parts = []
    size = 0
    seen = set()
    names = sorted(os.listdir(path))
    if len(names) > _LARGEST_FILES:
        raise OSError(EFBIG, f"it has more than {_LARGEST_FILES} entries")
    for name in names:
        full = os.path.join(path, name)
        if not re.search(r"\.(pem|crt|cer|[0-9]+)$", name):
            continue
        real = os.path.realpath(full)
        if real in seen or not os.path.isfile(real):
            continue
        seen.add(real)
        data = readRegular(real, _LARGEST_STORE)
        size += len(data)
        if size > _LARGEST_STORE:
            raise OSError(EFBIG, f"its files are larger than {_LARGEST_STORE} bytes together")
        parts.append(data)
    return b"\n".join(parts)
