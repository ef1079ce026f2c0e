# SPDX-License-Identifier: MIT
"""
bettertls over the real path.

C{make test} runs a part of the cases, C{make test-vectors} (SSA_VECTORS_ALL=1) all of them, where there are any; and cases of
our own in the same format always.
"""

from __future__ import annotations

import base64
import datetime
import json
import lzma
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.test.pki import Credential, otherCA, testCA
from ssa.test.processes import needWay
from ssa.test.vectors.cases import FILE, VARIABLE, Case, Collection, NoVectors, checkDates, load, path
from ssa.test.vectors.run import HARD_ACCEPTS, Outcome, Result, run

ALL = "SSA_VECTORS_ALL"
EVERY = 29
"""C{make test} takes every so manyth case: a prime, so that no pattern of the collection is left out."""

SECONDS = float(os.environ.get("SSA_VECTORS_SECONDS", "120"))
"""How long all cases may take, on a machine that does nothing else."""

NOW = datetime.datetime.now(datetime.timezone.utc)


@lru_cache(maxsize=1)
def _collection() -> tuple[Path, Collection]:
    """The vectors; skips the test where there are none."""
    try:
        file = path()
        collection = load(file)
        checkDates(collection, NOW)
    except NoVectors as problem:
        raise SkipTest(str(problem)) from None
    return file, collection


class BetterTLS(SynchronousTestCase):
    """The cases of Netflix's bettertls."""

    def judge(self, result: Result) -> None:
        """Say that nothing was accepted that must not be, and that nothing else went wrong."""
        self.assertEqual(result.wronglyAccepted, [])
        self.assertEqual(result.problems, [])

    def test_part(self) -> None:
        """A part of the cases, with the administrator's trust store."""
        file, collection = _collection()
        needWay()
        result = run(file, collection, own=False, every=EVERY)
        self.judge(result)
        self.assertTrue(any(each.accepted for each in result.hard(True)))

    def test_all(self) -> None:
        """All cases, with the program's trust anchor: as many accepted as OpenSSL can, in time."""
        if not os.environ.get(ALL):
            raise SkipTest(f"all cases: make test-vectors, or set {ALL}=1")
        file, collection = _collection()
        needWay()
        result = run(file, collection)
        print(f"\n{result.summary()}")
        self.judge(result)
        self.assertGreaterEqual(sum(each.accepted for each in result.hard(True)), HARD_ACCEPTS)
        self.assertLess(result.seconds, SECONDS)


def _exported(number: int, credential: Credential, host: str, expected: str, soft: bool = False) -> dict[str, Any]:
    """A case in the file's format."""
    key = load_pem_private_key(credential.keyPEM, None).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return {
        "id": number,
        "suite": "own",
        "certificates": [_base64(certificate.public_bytes(Encoding.DER)) for certificate in credential.chain],
        "leafKey": _base64(key),
        "hostname": host,
        "expected": expected,
        "requiredFeatures": [],
        "failureIsWarning": soft,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class OwnCases(SynchronousTestCase):
    """The machinery, on cases of our own."""

    def write(self, content: object) -> Path:
        """Write a file of vectors."""
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        file = folder / FILE
        file.write_bytes(lzma.compress(json.dumps(content).encode()))
        return file.resolve()

    def cases(self, *cases: dict[str, Any]) -> Path:
        """Write cases below the tests' root."""
        root = load_pem_x509_certificate(testCA().pem).public_bytes(Encoding.DER)
        return self.write({"trustRoot": _base64(root), "suites": {"own": {"testCases": list(cases)}}})

    def test_verdicts(self) -> None:
        """Good and bad chains get their verdicts; a wrong expectation is found."""
        needWay()
        below = testCA().intermediate()
        file = self.cases(
            _exported(0, below.issue(["server.example"]), "server.example", "ACCEPT"),
            _exported(1, below.issue(["other.example"]), "server.example", "REJECT"),
            _exported(2, below.issue(["127.0.0.1"]), "127.0.0.1", "ACCEPT"),
            _exported(3, otherCA().issue(["server.example"]), "server.example", "REJECT"),
            _exported(4, below.issue(["server.example"], expired=True), "server.example", "ACCEPT"),
            _exported(5, below.issue(["server.example"]), "server.example", "REJECT"),
            _exported(6, below.issue(["server.example"]), "server.example", "REJECT", soft=True),
        )
        collection = load(file)
        checkDates(collection, NOW)
        for own in (True, False):
            result = run(file, collection, own)
            self.assertEqual([each.accepted for each in result.outcomes], [True, False, True, False, False, True, True])
            self.assertEqual(result.problems, [])
            self.assertEqual(result.wronglyAccepted, ["own 5"])
            self.assertIn("2 of 3 accepted that must be, 1 of 3 that must not; 0 of 1 soft", result.summary())
            self.assertIn("expired", result.summary())

    def test_malformed(self) -> None:
        """Files that hold something else are refused with a reason."""
        good = _exported(0, testCA().issue(), "server.example", "ACCEPT")
        contents: tuple[object, ...] = (
            [],
            {},
            {"trustRoot": "", "suites": []},
            {"trustRoot": "!", "suites": {}},
            {"trustRoot": "", "suites": {"own": {"testCases": [{**good, "expected": "MAYBE"}]}}},
            {"trustRoot": "", "suites": {"own": {"testCases": [{**good, "leafKey": "?"}]}}},
            {"trustRoot": "", "suites": {"own": {"testCases": [good, good]}}},
        )
        for content in contents:
            file = self.write(content)
            self.assertIn(str(file), str(self.assertRaises(ValueError, load, file)))

    def test_absent(self) -> None:
        """No file: the reason names it and the variable."""
        self.patch(os, "environ", {**os.environ, VARIABLE: "/nonexistent"})
        problem = str(self.assertRaises(NoVectors, path))
        self.assertIn("/nonexistent", problem)
        self.assertIn(VARIABLE, problem)

    def test_dates(self) -> None:
        """Chains are not judged outside of the days for which they were made."""
        collection = load(self.cases())
        for days in (-100, 700):
            problem = self.assertRaises(NoVectors, checkDates, collection, NOW + datetime.timedelta(days=days))
            self.assertIn("today is", str(problem))


class Judging(SynchronousTestCase):
    """What counts as a problem, whatever the verdict."""

    def outcome(self, number: int, told: str, server: str, daemon: str = "") -> Outcome:
        """An outcome."""
        return Outcome(Case("own 0", (b"",), b"", "server.example", True, False), number, told, server, daemon)

    def test_fine(self) -> None:
        """A connection, and a refusal with a reason."""
        self.assertEqual(self.outcome(0, "", "served").problem, "")
        self.assertEqual(self.outcome(129, "for another name", "refused alert").problem, "")

    def test_problems(self) -> None:
        """Everything else."""
        for outcome in (
            self.outcome(0, "", "refused"),
            self.outcome(0, "the answer is missing", "served"),
            self.outcome(129, "for another name", "served"),
            self.outcome(129, "", "refused"),
            self.outcome(100, "the TLS daemon is gone", "refused"),
            self.outcome(71, "no shared cipher", "refused"),
            self.outcome(129, "for another name", "refused", "TLS_ID: ENETDOWN"),
        ):
            self.assertNotEqual(outcome.problem, "", outcome)
        self.assertTrue(self.outcome(129, "for another name", "served").accepted)
