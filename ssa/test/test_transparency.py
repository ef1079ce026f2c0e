# SPDX-License-Identifier: MIT
"""Certificate transparency: lists of logs, timestamps and how many are enough."""

from __future__ import annotations

import base64
import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from ssa.errors import SSAError
from ssa.test.ctlogs import (
    TestLog,
    inOctetString,
    issueLogged,
    logList,
    logListBytes,
    timestampList,
    vector,
    wholeEntry,
)
from ssa.test.loggedanswers import answerWith
from ssa.test.pki import Credential, otherCA, testCA
from ssa.test.responders import ocspAnswer
from ssa.tls.loglist import findLogs, parseLogs
from ssa.tls.timestamps import canAskForTimestamps, timestampsOfMessage
from ssa.tls.transparency import CLOCK_SKEW, checkTransparency, parseTimestamps

A, B, C = TestLog("a"), TestLog("b"), TestLog("c")
SAME = TestLog("same", A.operator)
RETIRED = TestLog("retired", state="retired", since="2026-01-01T00:00:00Z")
RETIRED_AT = 1767225600.0
READONLY = TestLog("readonly", state="readonly")
REJECTED = TestLog("rejected", state="rejected")
PENDING = TestLog("pending", state="pending")
STRANGER = TestLog("stranger")
LOGS = parseLogs(logListBytes(A, B, C, SAME, RETIRED, READONLY, REJECTED, PENDING))


class PolicyTests(SynchronousTestCase):
    """L{checkTransparency}."""

    def check(
        self, credential: Credential, stapled: bytes = b"", handshake: bytes | None = None, now: float | None = None
    ) -> str:
        """
        Check a certificate of the test's root.

        @return: "" if it is good.
        """
        chain = (credential.certificate, testCA().certificate)
        try:
            checkTransparency(chain, stapled, handshake, LOGS, time.time() if now is None else now)
        except SSAError as error:
            self.assertEqual(errno.EKEYREJECTED, error.errno)
            return error.reason
        return ""

    def issued(self, *logs: TestLog, **more: Any) -> str:
        return self.check(issueLogged(testCA(), logs, **more))

    def test_enough(self) -> None:
        """Two up to 180 days, three above; of several operators."""
        self.assertEqual("", self.issued(A, B, days=180))
        self.assertEqual("", self.issued(A, B, C, days=181))
        self.assertEqual("", self.issued(A, SAME, C, days=365))
        self.assertEqual("", self.issued(A, READONLY))

    def test_notEnough(self) -> None:
        """Too few, the same log twice, one operator only, none."""
        self.assertIn("2 of 2 count, 3 of two operators are needed", self.issued(A, B, days=181))
        self.assertIn("in the certificate: 1 of 1 count, 2", self.issued(A))
        self.assertIn("1 of 2 count", self.issued(A, A))
        self.assertIn("2 of 2 count", self.issued(A, SAME))
        text = self.issued()
        self.assertIn("in the certificate: 0 of 0 count", text)
        self.assertIn("in the OCSP answer: 0 of 0 count", text)
        self.assertIn("extension of the handshake cannot be looked at", text)
        self.assertIn("CN=server.example", text)

    def test_states(self) -> None:
        """Logs that are unknown, rejected, pending, or were retired before the timestamp."""
        for log, word in (
            (STRANGER, "not in the list"),
            (REJECTED, "the log is rejected"),
            (PENDING, "the log is pending"),
            (RETIRED, "the log is retired"),
        ):
            self.assertIn(word, self.issued(A, log))

    def test_retired(self) -> None:
        """A timestamp from before the log was retired counts; but not of such logs alone."""
        self.assertEqual("", self.issued(A, RETIRED, when=RETIRED_AT - 1))
        self.assertIn("1 of 2 count", self.issued(A, RETIRED, when=RETIRED_AT))
        second = TestLog("second", state="retired", since="2026-01-01T00:00:00Z")
        logs = parseLogs(logListBytes(RETIRED, second))
        chain = (issueLogged(testCA(), [RETIRED, second], when=RETIRED_AT - 1).certificate, testCA().certificate)
        error = self.assertRaises(SSAError, checkTransparency, chain, b"", None, logs, time.time())
        self.assertIn("2 of 2 count", error.reason)

    def test_future(self) -> None:
        """A timestamp from the future."""
        self.assertIn("future", self.issued(A, B, when=time.time() + CLOCK_SKEW + 10))
        self.assertEqual("", self.issued(A, B, when=time.time() + CLOCK_SKEW - 10))

    def test_signature(self) -> None:
        """Timestamps of another certificate, or below another issuer."""
        self.assertIn("the signature is wrong", self.issued(A, B, foreign=True))
        own = issueLogged(testCA(), [A, B])
        chain = (own.certificate, otherCA().certificate)
        error = self.assertRaises(SSAError, checkTransparency, chain, b"", None, LOGS, time.time())
        self.assertIn("the signature is wrong", error.reason)
        error = self.assertRaises(SSAError, checkTransparency, chain[:1], b"", None, LOGS, time.time())
        self.assertIn("issuer is not known", error.reason)

    def test_malformedList(self) -> None:
        """An extension that holds nonsense."""
        for nonsense in (b"", b"\x04\x01\x00", inOctetString(b"\0\5abc")):
            extension = x509.UnrecognizedExtension(x509.PrecertificateSignedCertificateTimestamps.oid, nonsense)
            self.assertIn("malformed", self.check(testCA().issue(extensions=[extension])))

    def test_stapled(self) -> None:
        """Timestamps in an OCSP answer."""
        own = testCA().issue()
        entry = wholeEntry(own.certificate)

        def answer(*stamps: bytes) -> bytes:
            return answerWith(own.certificate, timestampList(*stamps))

        self.assertEqual("", self.check(own, answer(A.sign(entry), B.sign(entry))))
        self.assertIn("1 of 1 count", self.check(own, answer(A.sign(entry))))
        self.assertIn("signature is wrong", self.check(own, answer(A.sign(entry[:-1] + b"x"), B.sign(entry))))
        # What a retired log signed earlier counts in a certificate only.
        self.assertIn("retired", self.check(own, answer(A.sign(entry), RETIRED.sign(entry, RETIRED_AT - 1))))
        self.assertIn("0 of 0", self.check(own, ocspAnswer(testCA(), own.certificate)))

    def test_handshake(self) -> None:
        """Timestamps of the handshake."""
        own = testCA().issue()
        entry = wholeEntry(own.certificate)
        self.assertEqual("", self.check(own, handshake=timestampList(A.sign(entry), B.sign(entry))))
        self.assertIn("handshake and the OCSP answer: 0 of 0", self.check(own, handshake=b""))
        self.assertIn("malformed", self.check(own, handshake=b"\0"))
        stapled = answerWith(own.certificate, timestampList(B.sign(entry)))
        self.assertEqual("", self.check(own, stapled, timestampList(A.sign(entry))))


class TimestampListTests(SynchronousTestCase):
    """L{parseTimestamps}."""

    def test_read(self) -> None:
        """Each field; later versions are left out."""
        stamp = A.sign(b"x", 1234.567)
        (found,) = parseTimestamps(timestampList(stamp, b"\1" + stamp[1:]))
        self.assertEqual((A.id, 1234567, b"", 3), (found.logID, found.milliseconds, found.extensions, found.algorithm))
        self.assertEqual([], parseTimestamps(b"\0\0"))

    def test_nonsense(self) -> None:
        """Anything that is cut off or has something after it."""
        good = timestampList(A.sign(b"x"), B.sign(b"x"))
        for bad in (b"", b"\0", good[:-1], good + b"x", timestampList(A.sign(b"x")[:-1]), timestampList(A.sign(b"x") + b"x")):
            self.assertRaises(ValueError, parseTimestamps, bad)
        self.assertRaises(ValueError, parseTimestamps, timestampList(*[A.sign(b"x")] * 65))


class MessageTests(SynchronousTestCase):
    """L{timestampsOfMessage}."""

    @staticmethod
    def message(*extensions: tuple[int, bytes]) -> bytes:
        """A Certificate message with one certificate, of RFC 8446 section 4.4.2."""
        listed = b"".join(kind.to_bytes(2, "big") + vector(data) for kind, data in extensions)
        entry = b"\0\0\3abc" + vector(listed)
        body = b"\0" + len(entry).to_bytes(3, "big") + entry
        return b"\x0b" + len(body).to_bytes(3, "big") + body

    def test_found(self) -> None:
        """Among others, first or last, or not at all."""
        stamps = timestampList(A.sign(b"x"))
        self.assertEqual(stamps, timestampsOfMessage(self.message((18, stamps), (5, b"y"))))
        self.assertEqual(stamps, timestampsOfMessage(self.message((5, b"y"), (18, stamps))))
        self.assertEqual(b"", timestampsOfMessage(self.message((5, b"y"))))
        self.assertEqual(b"", timestampsOfMessage(self.message()))

    def test_cutOff(self) -> None:
        """A message that ends anywhere."""
        whole = self.message((5, b"y"), (18, b"stamps"))
        for size in range(len(whole)):
            self.assertRaises(ValueError, timestampsOfMessage, whole[:size])

    def test_available(self) -> None:
        """The pyOpenSSL of the tests can be asked."""
        self.assertTrue(canAskForTimestamps())


class LogListTests(SynchronousTestCase):
    """L{parseLogs} and L{findLogs}."""

    def test_read(self) -> None:
        """Operators, keys and states; logs of both kinds."""
        top = logList(A, RETIRED)
        entry = logList(B)["operators"][0]["logs"][0]
        top["operators"][0]["tiled_logs"].append(entry)
        found = parseLogs(json.dumps(top).encode()).logs
        self.assertEqual({A.id, B.id, RETIRED.id}, set(found))
        self.assertEqual(A.operator, found[B.id].operator)
        self.assertEqual(("retired", RETIRED_AT), (found[RETIRED.id].state, found[RETIRED.id].since))

    def test_wrong(self) -> None:
        """Each mistake has its text."""

        def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
            top = logList(A)
            change(top["operators"][0]["logs"][0])
            return json.dumps(top).encode()

        for data, word in (
            (b"", "Expecting value"),
            (b"[]", "an object is expected"),
            (b"{}", "no list 'operators'"),
            (b'{"operators": []}', "no log"),
            (b'{"operators": [{"logs": []}]}', "no text 'name'"),
            (b"[" * 100000, "nested too deeply"),
            (changed(lambda log: log.pop("key")), "no text 'key'"),
            (changed(lambda log: log.update(key="?")), "not base64"),
            (changed(lambda log: log.update(key="AAAA", log_id="")), "no text 'log_id'"),
            (changed(lambda log: log.update(log_id="AAAA")), "not the SHA-256 digest"),
            (changed(lambda log: (log.update(key="AAAA"), log.pop("log_id"))), "no public key"),
            (changed(lambda log: log.update(state={"splendid": {}})), "state is none"),
            (changed(lambda log: log.update(state={"usable": {"timestamp": "soon"}})), "no time"),
            (changed(lambda log: log.update(state={"usable": {"timestamp": "2020-01-01T00:00:00"}})), "no time zone"),
            (logListBytes(A, A), "listed twice"),
        ):
            error = self.assertRaises(ValueError, parseLogs, data)
            self.assertIn(word, str(error))

    def test_wrongKey(self) -> None:
        """A log with an Ed25519 key: RFC 6962 knows ECDSA and RSA."""
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import PublicFormat

        key = ed25519.Ed25519PrivateKey.generate().public_key()
        top = logList(A)
        log = top["operators"][0]["logs"][0]
        log["key"] = base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
        del log["log_id"]
        self.assertIn("neither ECDSA nor RSA", str(self.assertRaises(ValueError, parseLogs, json.dumps(top).encode())))

    def test_file(self) -> None:
        """A file is read again when it has changed."""
        path = os.path.abspath(self.mktemp())
        self.assertIn("cannot be read", str(self.assertRaises(ValueError, findLogs, path)))
        Path(path).write_bytes(logListBytes(A))
        first = findLogs(path)
        self.assertIs(first, findLogs(path))
        Path(path + ".new").write_bytes(logListBytes(A, B))
        os.rename(path + ".new", path)
        self.assertEqual({A.id, B.id}, set(findLogs(path).logs))
        Path(path).write_bytes(b"{")
        self.assertIn(path, str(self.assertRaises(ValueError, findLogs, path)))
        self.assertIn("regular", str(self.assertRaises(ValueError, findLogs, "/dev/null")))
        Path(path).write_bytes(bytes(16 * 1024 * 1024 + 1))
        self.assertIn("is larger than 16777216 bytes", str(self.assertRaises(ValueError, findLogs, path)))

    def test_directory(self) -> None:
        """A directory is refused, and does not stay open."""
        before = os.listdir("/proc/self/fd")
        self.assertIn("Is a directory", str(self.assertRaises(ValueError, findLogs, "/")))
        self.assertEqual(before, os.listdir("/proc/self/fd"))
