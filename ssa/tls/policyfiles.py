# SPDX-License-Identifier: MIT
"""
The files that a policy names: certificates, keys, trust stores, lists of logs.

They are the administrator's, and read with the daemon's rights.  They are all read when a policy is loaded, and kept: a policy
comes into force with everything that belongs to it or not at all, and a file that is being replaced, or is broken since,
is nobody's problem.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Generic, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from ssa.errors import Cause, SSAError, causeOfOpenSSL, errorQueue
from ssa.policy.parser import ConfigurationError
from ssa.policy.profile import NamedFiles, Policy, Profile
from ssa.regularfiles import readRegular
from ssa.tls.certificates import Credential, describeCertificate, pairCredentials, parseChains, parsePrivateKeys
from ssa.tls.loglist import parseLogs
from ssa.tls.trust import TrustStore, findStore

__all__ = ["LoadedFiles", "clientCredentials", "loadFiles", "serverCredentials", "signatureOf", "storeOf"]

K = TypeVar("K")
T = TypeVar("T")

_LARGEST_CREDENTIAL = 1024 * 1024
_LARGEST_CONTENT = 16 * 1024 * 1024
_MOST_ENTRIES = 8192


def serverCredentials(profile: Profile) -> tuple[Credential, ...]:
    """
    Get the certificates for servers that set none (CertPath, KeyPath).

    @raise SSAError: ENOKEY, one cannot be used.
    """
    return _credentials(profile, profile.certificates)


def clientCredentials(profile: Profile) -> tuple[Credential, ...]:
    """
    Get the certificates for clients that set none (ClientCertPath, ClientKeyPath).

    @raise SSAError: ENOKEY, one cannot be used.
    """
    return _credentials(profile, profile.clientCertificates)


def _credentials(profile: Profile, pairs: Sequence[tuple[str, str]]) -> tuple[Credential, ...]:
    if profile.files is not None:
        return profile.files.credentials(pairs)
    return tuple(credential for pair in pairs for credential in _readPair(pair))


def storeOf(profile: Profile) -> TrustStore:
    """
    Find the trust store of a profile.

    @raise SSAError: EKEYREJECTED, there is none or it cannot be read.
    """
    if profile.files is not None and profile.trustStore:
        return profile.files.store(profile.trustStore)
    return findStore(profile.trustStore)


class _Kept(Generic[K, T]):
    """What was read of one kind of files."""

    def __init__(self, read: Callable[[K], T]) -> None:
        self._read = read
        self._values: dict[K, T] = {}
        self._failures: dict[K, Exception] = {}

    def load(self, key: K, mayLack: bool) -> str:
        """
        Read something.

        @param mayLack: whether what this process has no right to read is missing only where it is used.
        @return: what is wrong, for a person; "" if nothing is.
        """
        try:
            self._values[key] = self._read(key)
        except (SSAError, OSError) as error:
            if mayLack and isinstance(error.__cause__ or error, PermissionError):
                self._failures[key] = error
                return ""
            return error.reason.partition(": ")[2] if isinstance(error, SSAError) else f"{key}: {error.strerror}"
        return ""

    def get(self, key: K) -> T:
        """Get what was read; what was not, because no policy named it when files were loaded, is read now."""
        if key in self._failures:
            raise self._failures[key]
        return self._values[key] if key in self._values else self._read(key)

    def has(self, key: K) -> bool:
        """Whether it was read."""
        return key in self._values


class LoadedFiles:
    """
    What files held at one time (L{ssa.policy.profile.PolicyFiles}).

    @ivar paths: all of them.
    @ivar mayLack: whether what this process had no right to read is missing only where it is used.
    @ivar version: a digest of everything that was read: what has equal ones is equal.
    @ivar signature: what L{signatureOf} said of C{paths} before they were read.
    @ivar warnings: what is no error and will not work all the same: certificates out of their time.
    """

    def __init__(self, paths: Sequence[str] = (), mayLack: bool = False) -> None:
        self.paths = tuple(paths)
        self.mayLack = mayLack
        self.signature = signatureOf(self.paths)
        self.version = b""
        self.warnings: list[str] = []
        self._credentials = _Kept(_readPair)
        self._stores = _Kept(_readStore)
        self._contents = _Kept(_readContent)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoadedFiles) and (self.paths, self.version) == (other.paths, other.version)

    def __hash__(self) -> int:
        return hash((self.paths, self.version))

    def credentials(self, pairs: Sequence[tuple[str, str]]) -> tuple[Credential, ...]:
        """See L{ssa.policy.profile.PolicyFiles}."""
        return tuple(credential for pair in pairs for credential in self._credentials.get(pair))

    def store(self, path: str) -> TrustStore:
        """See L{ssa.policy.profile.PolicyFiles}."""
        return self._stores.get(path)

    def content(self, path: str) -> bytes:
        """See L{ssa.policy.profile.PolicyFiles}."""
        return self._contents.get(path)

    def load(self, named: NamedFiles) -> str:
        """
        Read the files of one key.

        @return: what is wrong, for a person; "" if nothing is.
        """
        path = named.paths[0]
        if named.kind == "written":
            return _noPlace(path)
        if named.kind == "store":
            problem = self._stores.load(path, self.mayLack)
            if self._stores.has(path):
                self._add(named, repr(self.store(path).version).encode())
            return problem
        if named.kind == "content":
            problem = self._contents.load(path, self.mayLack)
            if self._contents.has(path):
                self._add(named, self.content(path))
                problem = _noLogs(path, self.content(path))
            return problem
        pair = path, named.paths[1]
        problem = self._credentials.load(pair, self.mayLack)
        if self._credentials.has(pair):
            found = self.credentials([pair])
            self._add(named, b"".join(credential.fingerprint() for credential in found))
            problem = next((f"{path}: {text}" for text in map(_unusable, found) if text), "")
            self.warnings += [f"{named.place}: {path}: {text}" for text in map(_outOfTime, found) if text]
        return problem

    def _add(self, named: NamedFiles, content: bytes) -> None:
        whole = self.version + repr((named.key, named.paths)).encode() + hashlib.sha256(content).digest()
        self.version = hashlib.sha256(whole).digest()


def _readPair(pair: tuple[str, str]) -> tuple[Credential, ...]:
    chainPath, keyPath = pair
    chains = _parsed(chainPath, parseChains)
    keys = _parsed(keyPath, parsePrivateKeys)
    try:
        return pairCredentials(chains, keys)
    except ValueError as error:
        raise Cause.OWN_CERTIFICATE_UNUSABLE.error(f"{chainPath} and {keyPath}: {error}") from None


def _parsed(path: str, parse: Callable[[bytes], T]) -> T:
    """
    Read one half of a credential.

    @raise SSAError: ENOKEY, with the path and what is wrong.
    """
    try:
        return parse(readRegular(path, _LARGEST_CREDENTIAL))
    except OSError as error:
        raise Cause.OWN_CERTIFICATE_UNUSABLE.error(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise Cause.OWN_CERTIFICATE_UNUSABLE.error(f"{path}: {error}") from None


def _readStore(path: str) -> TrustStore:
    """Read a trust store, so that its version tells its content."""
    certificates = tuple(findStore(path).certificates())
    digest = hashlib.sha256()
    for certificate in certificates:
        digest.update(certificate.public_bytes(Encoding.DER))
    return TrustStore(("loaded", path, digest.digest()), path=path, loaded=certificates)


def _readContent(path: str) -> bytes:
    return readRegular(path, _LARGEST_CONTENT)


def _unusable(credential: Credential) -> str:
    """Ask OpenSSL whether it would serve with a certificate, at the security level that is always in force."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_cipher_list(b"DEFAULT:@SECLEVEL=2")
    try:
        context.use_certificate(credential.certificate)
        context.use_privatekey(credential.key)
        context.check_privatekey()
    except SSL.Error as error:
        return f"{causeOfOpenSSL(errorQueue(error))[1]} {describeCertificate(credential.certificate)}"
    return ""


def _outOfTime(credential: Credential) -> str:
    """Say that a certificate is not valid now; "" if it is.  It may be renewed at any time, and so is no error."""
    now = datetime.now(timezone.utc)
    certificate = credential.certificate
    if now > certificate.not_valid_after_utc:
        return f"the certificate has expired {describeCertificate(certificate)}"
    if now < certificate.not_valid_before_utc:
        return f"the certificate is not valid yet {describeCertificate(certificate)}"
    return ""


def _noPlace(path: str) -> str:
    """Say why a file cannot be written there; "" if nothing speaks against it."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        return f"{path}: there is no directory {directory}"
    if os.path.islink(path):
        return f"{path}: it is a symbolic link"
    if os.path.exists(path) and not os.path.isfile(path):
        return f"{path}: it is no regular file"
    return ""


def _noLogs(path: str, content: bytes) -> str:
    """Say why a list of logs cannot be used; "" if it can."""
    try:
        parseLogs(content)
    except ValueError as error:
        return f"{path} is no list of logs (JSON, version 3): {error}"
    return ""


def loadFiles(policy: Policy, mayLack: bool = False) -> Policy:
    """
    Read everything that a policy names.

    @param mayLack: what this process has no right to read is missing only for those who need it: an ordinary user's own daemon
        works under the machine's policy without the machine's private keys.
    @return: the policy with its files.
    @raise ConfigurationError: with all that is wrong.
    """
    # What the daemon itself writes changes all the time, and no change of it is a change of the policy.
    read = {path for named in policy.named if named.kind != "written" for path in named.paths}
    files = LoadedFiles(sorted(read), mayLack)
    errors = []
    for named in policy.named:
        problem = files.load(named)
        if problem:
            isSecond = named.paths[0] != named.paths[-1] and problem.startswith(f"{named.paths[-1]}:")
            errors.append(f"{named.secondPlace if isSecond else named.place}: {problem}")
    if errors:
        raise ConfigurationError(errors)
    return policy.withFiles(files)


def signatureOf(paths: Sequence[str]) -> tuple[object, ...]:
    """
    Say something of files that changes when they do.

    @param paths: files and directories; of directories also their entries count.
    """
    found: list[object] = []
    for path in paths:
        found.append(_signature(path))
        try:
            names = sorted(os.listdir(path))[:_MOST_ENTRIES] if os.path.isdir(path) else []
        except OSError:
            names = []
        found.extend((name, _signature(os.path.join(path, name))) for name in names)
    return tuple(found)


def _signature(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        return (-(error.errno or 1),)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
