# SPDX-License-Identifier: MIT
"""
The cases of bettertls (Netflix), read from C{bettertls.json.xz}.

The file holds one JSON object: C{trustRoot}, base64 DER; C{suites}, each with C{testCases}: C{id}, C{certificates} (base64
DER, the leaf first), C{leafKey} (base64 PKCS#8), C{hostname} (a name or an IP address), C{expected} (C{"ACCEPT"} or
C{"REJECT"}) and C{failureIsWarning}, which makes a case a soft one: either verdict is allowed.
"""

from __future__ import annotations

import base64
import datetime
import json
import lzma
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ssa

VARIABLE: Final = "SSA_VECTORS"
ROOT: Final = Path(ssa.__file__).resolve().parent.parent
FILE: Final = "bettertls.json.xz"
_LARGEST: Final = 1 << 28  # bytes of JSON
_DAY: Final = datetime.timedelta(days=1)


class NoVectors(Exception):
    """There are none, or none that can be used today."""


@dataclass(frozen=True)
class Case:
    """
    One chain and its verdict.

    @ivar name: suite and number.
    @ivar chain: DER, the server's own certificate first, as a server sends it.
    @ivar key: PKCS#8, DER.
    @ivar host: whom the client asks for.
    @ivar accept: the verdict.
    @ivar soft: whether the other verdict is allowed too.
    """

    name: str
    chain: tuple[bytes, ...]
    key: bytes
    host: str
    accept: bool
    soft: bool

    @property
    def suite(self) -> str:
        """The suite's name."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True)
class Collection:
    """
    All cases.

    @ivar root: the trust anchor of all, PEM.
    """

    root: bytes
    cases: tuple[Case, ...]


def path() -> Path:
    """
    Where the file is.

    @raise NoVectors: there is none.
    """
    folder = Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "vectors")
    file = folder / FILE
    if not file.is_file():
        raise NoVectors(f"there is no {file}; {VARIABLE} names the folder with the test vectors")
    return file


def load(file: Path) -> Collection:
    """
    Read the file.

    @raise ValueError: it is not what it should be.
    """
    with lzma.open(file) as stream:
        data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"{file} holds more than {_LARGEST} bytes")
    try:
        content = json.loads(data)
        cases = tuple(_case(suite, one) for suite, all_ in content["suites"].items() for one in all_["testCases"])
        root = _pem(base64.b64decode(content["trustRoot"], validate=True))
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise ValueError(f"{file} does not hold cases of bettertls: {problem!r}") from problem
    if len({case.name for case in cases}) != len(cases):
        raise ValueError(f"{file} has two cases of one number")
    return Collection(root, cases)


def _case(suite: str, one: dict[str, Any]) -> Case:
    if one["expected"] not in ("ACCEPT", "REJECT"):
        raise ValueError(f"the verdict {one['expected']!r}")
    return Case(
        f"{suite} {one['id']}",
        tuple(base64.b64decode(certificate, validate=True) for certificate in one["certificates"]),
        base64.b64decode(one["leafKey"], validate=True),
        str(one["hostname"]),
        one["expected"] == "ACCEPT",
        bool(one["failureIsWarning"]),
    )


def _pem(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


def checkDates(collection: Collection, now: datetime.datetime) -> None:
    """
    Say whether the chains can be judged at a time: their verdicts hold while the root is valid, save its first and last day.

    The program, the daemon and OpenSSL look at the real clock, which no test turns back; other days need another export.

    @raise NoVectors: they cannot.
    """
    from cryptography import x509

    root = x509.load_pem_x509_certificate(collection.root)
    if not root.not_valid_before_utc + _DAY <= now <= root.not_valid_after_utc - _DAY:
        raise NoVectors(
            f"the test vectors are for {root.not_valid_before_utc:%Y-%m-%d} to {root.not_valid_after_utc:%Y-%m-%d}; "
            f"today is {now:%Y-%m-%d}"
        )
