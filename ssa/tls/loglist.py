# SPDX-License-Identifier: MIT
"""
Lists of certificate transparency logs, in the JSON format, version 3, that browsers publish: which logs count, and since or
until when.

The list is the administrator's file; it is read when the policy is loaded, and again when it has changed.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ssa.regularfiles import openRegular, readAtMost

__all__ = ["Log", "LogList", "findLogs", "parseLogs"]

_LARGEST_FILE = 16 * 1024 * 1024
_MOST_LOGS = 4096
_MOST_KEPT = 8

STATES = ("pending", "qualified", "usable", "readonly", "retired", "rejected")
"""What a log can be."""

_COUNTING = frozenset(("qualified", "usable", "readonly"))


@dataclass(frozen=True)
class Log:
    """
    One log.

    @ivar id: SHA-256 of its key (RFC 6962 section 3.2).
    @ivar key: its public key.
    @ivar operator: who runs it.
    @ivar description: its name.
    @ivar state: one of L{STATES}.
    @ivar since: seconds since the epoch; since when it is in that state.
    """

    id: bytes
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    operator: str
    description: str
    state: str
    since: float

    @property
    def countsNow(self) -> bool:
        """Whether new timestamps of it count."""
        return self.state in _COUNTING

    def countsFor(self, timestamp: float) -> bool:
        """Whether a timestamp of it counts that is in a certificate: one of a retired log only if it is from before."""
        return self.countsNow or (self.state == "retired" and timestamp < self.since)


@dataclass(frozen=True)
class LogList:
    """
    A list.

    @ivar logs: by their ids.
    """

    logs: dict[bytes, Log]


_kept: dict[str, tuple[tuple[int, ...], LogList]] = {}


def findLogs(path: str) -> LogList:
    """
    Read a list, or find it as it was read before if the file has not changed.

    @param path: of the file.
    @raise ValueError: it cannot be read, or is no such list; the text says what is wrong.
    """
    try:
        with openRegular(path) as file:
            status = os.fstat(file.fileno())
            version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            known = _kept.get(path)
            if known is not None and known[0] == version:
                return known[1]
            data = readAtMost(file, _LARGEST_FILE)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = parseLogs(data)
    except ValueError as error:
        raise ValueError(f"{path} is no list of logs (JSON, version 3): {error}") from None
    while len(_kept) >= _MOST_KEPT:
        del _kept[next(iter(_kept))]
    _kept[path] = (version, found)
    return found


@lru_cache(maxsize=_MOST_KEPT)
def parseLogs(data: bytes) -> LogList:
    """
    Read a list; the last ones are remembered.

    @param data: JSON.
    @raise ValueError: with what is wrong.
    """
    try:
        top = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    logs: dict[bytes, Log] = {}
    for operator in _list(top, "operators", "the list"):
        name = _text(operator, "name", "an operator")
        for kind in ("logs", "tiled_logs"):
            for entry in _list(operator, kind, f"operator {name!r}") if kind in operator else ():
                log = _log(entry, name)
                if log.id in logs:
                    raise ValueError(f"log {log.description!r} is listed twice")
                logs[log.id] = log
                if len(logs) > _MOST_LOGS:
                    raise ValueError(f"there are more than {_MOST_LOGS} logs in it")
    if not logs:
        raise ValueError("there is no log in it")
    return LogList(logs)


def _log(entry: Any, operator: str) -> Log:
    description = _text(entry, "description", f"a log of operator {operator!r}") if "description" in _object(entry) else "?"
    where = f"log {description!r} of operator {operator!r}"
    spki = _bytes(entry, "key", where)
    digest = hashlib.sha256(spki).digest()
    if "log_id" in entry and _bytes(entry, "log_id", where) != digest:
        raise ValueError(f"{where}: log_id is not the SHA-256 digest of key")
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{where}: key is no public key: {error}") from None
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
        raise ValueError(f"{where}: key is neither ECDSA nor RSA")  # RFC 6962 section 2.1.4
    # A list without states is one of logs that all count.
    state, since = "usable", 0.0
    if "state" in entry:
        states = _object(entry["state"])
        if len(states) != 1 or next(iter(states)) not in STATES:
            raise ValueError(f"{where}: state is none, or more than one, of {', '.join(STATES)}")
        state, details = next(iter(states.items()))
        since = _time(details, where)
    return Log(digest, key, operator, description, state, since)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"an object is expected where there is {type(value).__name__}")
    return value


def _list(container: Any, key: str, where: str) -> list[Any]:
    value = _object(container).get(key)
    if not isinstance(value, list):
        raise ValueError(f"{where} has no list {key!r}")
    return value


def _text(container: Any, key: str, where: str) -> str:
    value = _object(container).get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} has no text {key!r}")
    return value


def _bytes(container: Any, key: str, where: str) -> bytes:
    try:
        return base64.b64decode(_text(container, key, where), validate=True)
    except binascii.Error:
        raise ValueError(f"{where}: {key} is not base64") from None


def _time(details: Any, where: str) -> float:
    text = _text(details, "timestamp", f"{where}: state")
    try:
        time = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"{where}: {text!r} is no time") from None
    if time.tzinfo is None:
        raise ValueError(f"{where}: {text!r} has no time zone")
    return time.timestamp()
