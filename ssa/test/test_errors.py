# SPDX-License-Identifier: MIT
"""Tests of L{ssa.errors}: the one table of errno, and the classification of what OpenSSL says."""

from __future__ import annotations

import errno
import inspect

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from ssa import errors
from ssa.errors import (
    LONGEST_REASON,
    Cause,
    SSAError,
    alertOf,
    causeOfOpenSSL,
    causeOfSystemError,
    causeOfVerifyCode,
    describeVerifyCode,
    failed,
    oneLine,
)

ROWS = {
    errno.ETIMEDOUT: {Cause.HANDSHAKE_TIMEOUT},
    errno.EPROTO: {
        Cause.PROTOCOL, Cause.NOT_TLS, Cause.ALERT, Cause.CLOSED_IN_HANDSHAKE, Cause.NO_COMMON_VERSION,
        Cause.NO_COMMON_CIPHER, Cause.NO_COMMON_ALPN,
    },
    errno.EKEYREJECTED: {Cause.UNTRUSTED, Cause.WRONG_NAME, Cause.WRONG_PURPOSE, Cause.WEAK, Cause.MALFORMED},
    errno.EKEYEXPIRED: {Cause.EXPIRED, Cause.NOT_YET_VALID},
    errno.EKEYREVOKED: {Cause.REVOKED, Cause.REVOCATION_UNKNOWN},
    errno.ENOKEY: {Cause.KEY_MISMATCH, Cause.NO_CLIENT_CERTIFICATE, Cause.NO_OWN_CERTIFICATE},
    errno.EPERM: {Cause.POLICY},
    errno.EHOSTUNREACH: {Cause.NAME_NOT_RESOLVED},
    errno.ENETDOWN: {Cause.DAEMON_GONE},
    errno.ENOPROTOOPT: {Cause.UNKNOWN_OPTION, Cause.ONLY_GET, Cause.ONLY_SET},
    errno.EACCES: {Cause.SECRET},
    errno.EINVAL: {Cause.BAD_VALUE},
    errno.EMSGSIZE: {Cause.TOO_LONG},
    errno.EISCONN: {Cause.TOO_LATE},
    errno.ENOTCONN: {Cause.NOT_CONNECTED},
    errno.ENODATA: {Cause.NO_DATA},
    errno.ECONNRESET: {Cause.TRUNCATED, Cause.RESET, Cause.LOST, Cause.BROKEN, Cause.VIOLATED},
}  # fmt: skip
"""The rows of the socket API."""


class CauseTests(SynchronousTestCase):
    """The table."""

    def test_rows(self) -> None:
        """Every row of the socket API has its errno."""
        for number, causes in ROWS.items():
            for cause in causes:
                self.assertEqual(errno.errorcode[cause.errno], errno.errorcode[number], cause)

    def test_texts(self) -> None:
        """Each cause has words of its own: a log tells them apart."""
        self.assertEqual(len({cause.text for cause in Cause}), len(Cause.__members__))

    def test_error(self) -> None:
        """An error holds the errno, the cause's words and the detail."""
        error = Cause.EXPIRED.error("CN=x")
        self.assertEqual((error.errno, error.reason), (errno.EKEYEXPIRED, f"{Cause.EXPIRED.text}: CN=x"))
        self.assertEqual(Cause.EXPIRED.error().reason, Cause.EXPIRED.text)
        self.assertEqual(str(error), f"EKEYEXPIRED: {error.reason}")
        self.assertEqual(failed(errno.ECONNREFUSED, "TCP").reason, "TCP: Connection refused")

    def test_neverSuccess(self) -> None:
        """An error that a program would take for success cannot be made."""
        for number in (0, -errno.EPERM):
            self.assertRaises(ValueError, SSAError, number, "x")

    def test_imports(self) -> None:
        """Neither the reactor nor OpenSSL is needed."""
        source = inspect.getsource(errors)
        self.assertNotIn("import OpenSSL", source)
        self.assertNotIn("twisted", source)


class OneLineTests(SynchronousTestCase):
    """Reasons may quote a hostile peer."""

    @settings(deadline=None)
    @given(st.text(max_size=3 * LONGEST_REASON))
    def test_anything(self, text: str) -> None:
        """Whatever comes in, one printable line of bounded length comes out."""
        line = oneLine(text)
        self.assertTrue(line.isprintable())
        self.assertLessEqual(len(line.encode()), LONGEST_REASON)
        line.encode("utf-8")

    def test_examples(self) -> None:
        """Control characters, direction marks and lone surrogates are escaped; letters are not."""
        self.assertEqual(oneLine("a\n\tb  c"), "a b c")
        self.assertEqual(oneLine("x\x1b[2J\u202ey\udc80"), "x\\x1b[2J\\u202ey\\udc80")
        self.assertEqual(oneLine("Zürich 東京"), "Zürich 東京")
        self.assertEqual(len(oneLine("x" * 10**6).encode()), LONGEST_REASON)


class VerifyCodeTests(SynchronousTestCase):
    """OpenSSL's verification codes."""

    def test_againstOpenSSL(self) -> None:
        """The numbers are those of the library in use."""
        codes = SSL.X509VerificationCodes
        for name, cause in (
            ("CERT_HAS_EXPIRED", Cause.EXPIRED),
            ("CERT_NOT_YET_VALID", Cause.NOT_YET_VALID),
            ("CERT_REVOKED", Cause.REVOKED),
            ("UNABLE_TO_GET_CRL", Cause.REVOCATION_UNKNOWN),
            ("CRL_HAS_EXPIRED", Cause.REVOCATION_UNKNOWN),
            ("DEPTH_ZERO_SELF_SIGNED_CERT", Cause.UNTRUSTED),
            ("SELF_SIGNED_CERT_IN_CHAIN", Cause.UNTRUSTED),
            ("UNABLE_TO_GET_ISSUER_CERT_LOCALLY", Cause.UNTRUSTED),
            ("UNABLE_TO_VERIFY_LEAF_SIGNATURE", Cause.UNTRUSTED),
            ("CERT_CHAIN_TOO_LONG", Cause.UNTRUSTED),
            ("CERT_UNTRUSTED", Cause.UNTRUSTED),
            ("INVALID_CA", Cause.WRONG_PURPOSE),
            ("INVALID_PURPOSE", Cause.WRONG_PURPOSE),
            ("KEYUSAGE_NO_CERTSIGN", Cause.WRONG_PURPOSE),
            ("HOSTNAME_MISMATCH", Cause.WRONG_NAME),
            ("IP_ADDRESS_MISMATCH", Cause.WRONG_NAME),
            ("CERT_SIGNATURE_FAILURE", Cause.MALFORMED),
            ("UNHANDLED_CRITICAL_EXTENSION", Cause.MALFORMED),
            ("PERMITTED_VIOLATION", Cause.MALFORMED),
            ("EXCLUDED_VIOLATION", Cause.MALFORMED),
            ("PATH_LENGTH_EXCEEDED", Cause.MALFORMED),
        ):
            self.assertIs(causeOfVerifyCode(getattr(codes, f"ERR_{name}")), cause, name)

    def test_unknown(self) -> None:
        """A code that is not known is a refusal with its number."""
        self.assertEqual(causeOfVerifyCode(12345).errno, errno.EKEYREJECTED)
        self.assertIn("12345", describeVerifyCode(12345))


class OpenSSLTests(SynchronousTestCase):
    """The error queue."""

    def test_alerts(self) -> None:
        """Alerts are found in each of OpenSSL's spellings; some have a row of their own."""
        for reason, alert, cause in (
            ("sslv3 alert handshake failure", "handshake failure", Cause.ALERT),
            ("ssl/tls alert handshake failure", "handshake failure", Cause.ALERT),
            ("tlsv1 alert protocol version", "protocol version", Cause.NO_COMMON_VERSION),
            ("tlsv1 alert no application protocol", "no application protocol", Cause.NO_COMMON_ALPN),
            ("tlsv13 alert certificate required", "certificate required", Cause.NO_CLIENT_CERTIFICATE),
            ("tlsv1 unrecognized name", "unrecognized name", Cause.ALERT),
            ("ssl/tls alert certificate unknown", "certificate unknown", Cause.ALERT),
        ):
            queue = [("SSL routines", "", reason)]
            self.assertEqual(alertOf(queue), alert)
            found, detail = causeOfOpenSSL(queue)
            self.assertIs(found, cause)
            self.assertIn(alert.replace(" ", "_"), detail)

    def test_reasons(self) -> None:
        """Reasons that are rows of their own; all others are a broken protocol."""
        for reason, cause in (
            ("wrong version number", Cause.NOT_TLS),
            ("http request", Cause.NOT_TLS),
            ("unsupported protocol", Cause.NO_COMMON_VERSION),
            ("no shared cipher", Cause.NO_COMMON_CIPHER),
            ("unexpected eof while reading", Cause.CLOSED_IN_HANDSHAKE),
            ("bad record type", Cause.PROTOCOL),
        ):
            self.assertEqual(causeOfOpenSSL([("SSL routines", "f", reason)]), (cause, reason))
        self.assertIs(causeOfOpenSSL([])[0], Cause.PROTOCOL)
        self.assertIs(causeOfOpenSSL([("", "", "")])[0], Cause.PROTOCOL)
        self.assertEqual(alertOf([("SSL routines", "", "record layer failure")]), "")

    def test_systemErrors(self) -> None:
        """What ends TCP in the handshake is a failed handshake if the peer did it, and TCP's errno if the network did."""
        for number in (-1, 0, errno.ECONNRESET, errno.EPIPE):
            self.assertIs(causeOfSystemError(number), Cause.CLOSED_IN_HANDSHAKE)
        for number in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETDOWN):
            self.assertIsNone(causeOfSystemError(number))
