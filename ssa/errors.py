# SPDX-License-Identifier: MIT
"""
Errors as a program sees them: an errno, and one line that says why.

L{Cause} is the only table that turns a cause into an errno; every other module names a cause and gives the detail.  The
functions below turn what OpenSSL and the kernel report into causes.  This module imports neither the reactor nor
OpenSSL: it works on plain numbers and strings.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from enum import Enum

from ssa.alerts import alertName, alertNumber

__all__ = [
    "LONGEST_REASON",
    "Cause",
    "SSAError",
    "alertOf",
    "causeOfOpenSSL",
    "causeOfSystemError",
    "causeOfVerifyCode",
    "connectionError",
    "describeVerifyCode",
    "errorQueue",
    "failed",
    "oneLine",
]

LONGEST_REASON = 1000
"""The most bytes (UTF-8) that a reason has; what is longer ends in "…".  With its NUL it fits where 1024 bytes do."""


class SSAError(Exception):
    """
    A call of a program fails.

    @ivar errno: the positive error number that the call returns.
    @type errno: C{int}
    @ivar reason: why, in one printable line; it becomes TLS_ERROR.
    @type reason: C{str}
    @ivar evidence: what is known besides, for the log: names of fields and texts.  Nothing secret.
    @type evidence: C{dict}
    """

    def __init__(self, errno: int, reason: str) -> None:
        """
        @param errno: a positive error number of L{errno}.
        @param reason: why, for a person.  It may quote what the peer sent: it is made one printable, bounded line.
        @raise ValueError: if C{errno} is not positive, since 0 would tell the program that all is well.
        """
        if errno <= 0:
            raise ValueError(f"an error needs a positive errno, not {errno}")
        self.errno = errno
        self.reason = oneLine(reason)
        self.evidence: dict[str, str] = {}
        super().__init__(errno, self.reason)

    @property
    def name(self) -> str:
        """The name of the errno: C{"EPROTO"}."""
        return _errnoName(self.errno)

    def __str__(self) -> str:
        name = self.name
        return f"{name}: {self.reason}"


class Cause(Enum):
    """
    Why a call fails, with its errno and the words that begin the reason.

    The section "errno of a failed connect" and the "Rules for every option" of the socket API, row by row.
    """

    # connect, listen, accept and TLS_UPGRADE
    HANDSHAKE_TIMEOUT = (errno.ETIMEDOUT, "the TLS handshake took too long")
    RESOLVE_TIMEOUT = (errno.EHOSTUNREACH, "the name server did not answer in time")
    NAME_NOT_RESOLVED = (errno.EHOSTUNREACH, "the name does not resolve")
    PROTOCOL = (errno.EPROTO, "the peer broke the TLS protocol")
    NOT_TLS = (errno.EPROTO, "the peer does not speak TLS")
    ALERT = (errno.EPROTO, "the peer refused the handshake")
    CLOSED_IN_HANDSHAKE = (errno.EPROTO, "the connection was closed during the TLS handshake")
    NO_COMMON_VERSION = (errno.EPROTO, "no TLS version in common with the peer")
    NO_COMMON_CIPHER = (errno.EPROTO, "no cipher, group or signature algorithm in common with the peer")
    NO_COMMON_ALPN = (errno.EPROTO, "no application protocol in common with the peer")
    NAME_NOT_SERVED = (errno.EPROTO, "the client asked for a name that is not served here")
    UNTRUSTED = (errno.EKEYREJECTED, "the peer's certificate has no issuer that is trusted here")
    WRONG_NAME = (errno.EKEYREJECTED, "the peer's certificate is for another name")
    WRONG_PURPOSE = (errno.EKEYREJECTED, "the peer's certificate may not be used for this")
    WEAK = (errno.EKEYREJECTED, "a key or signature in the peer's certificate chain is too weak")
    MALFORMED = (errno.EKEYREJECTED, "the peer's certificate chain is malformed")
    TRANSPARENCY = (errno.EKEYREJECTED, "the peer's certificate is not in enough transparency logs")
    NO_CERTIFICATE = (errno.EKEYREJECTED, "the peer sent no certificate")
    EXPIRED = (errno.EKEYEXPIRED, "a certificate of the peer has expired")
    NOT_YET_VALID = (errno.EKEYEXPIRED, "a certificate of the peer is not valid yet")
    REVOKED = (errno.EKEYREVOKED, "a certificate of the peer is revoked")
    REVOCATION_UNKNOWN = (errno.EKEYREVOKED, "no definite answer whether the peer's certificate is revoked")
    KEY_MISMATCH = (errno.ENOKEY, "private key and certificate chain do not go together")
    NO_OWN_CERTIFICATE = (errno.ENOKEY, "no certificate to serve with")
    OWN_CERTIFICATE_UNUSABLE = (errno.ENOKEY, "the own certificate cannot be used")
    NO_CLIENT_CERTIFICATE = (errno.ENOKEY, "the server demands a client certificate and there is none")
    VALIDATION = (errno.EKEYREJECTED, "a validation plug-in refuses the peer's certificate")
    NOT_PINNED = (errno.EKEYREJECTED, "none of the keys in the peer's certificate chain is pinned")
    KEY_CHANGED = (errno.EKEYREJECTED, "the peer's key is not the one that was seen first")
    POLICY = (errno.EPERM, "refused by the administrator's policy")
    DAEMON_GONE = (errno.ENETDOWN, "the TLS daemon is gone")
    CANCELLED = (errno.ECANCELED, "cancelled")
    INTERNAL = (errno.EIO, "an internal error of the TLS daemon")

    # an established connection
    TRUNCATED = (errno.ECONNRESET, "the connection ended without close_notify, data may be missing")
    RESET = (errno.ECONNRESET, "the connection was reset")
    LOST = (errno.ECONNRESET, "the connection was lost")
    BROKEN = (errno.ECONNRESET, "the peer ended the connection with an error")
    VIOLATED = (errno.ECONNRESET, "what came from the peer breaks the TLS protocol")

    # options
    UNKNOWN_OPTION = (errno.ENOPROTOOPT, "no such TLS option")
    ONLY_GET = (errno.ENOPROTOOPT, "this option can only be read")
    ONLY_SET = (errno.ENOPROTOOPT, "this option can only be set")
    SECRET = (errno.EACCES, "a private key is never given out")
    BAD_VALUE = (errno.EINVAL, "not a value for this option")
    TOO_LONG = (errno.EMSGSIZE, "the value is too long")
    TOO_MANY = (errno.EMSGSIZE, "too many values")
    TOO_LATE = (errno.EISCONN, "this option is set before connect or listen")
    NOT_CONNECTED = (errno.ENOTCONN, "this option is read on a connected socket")
    NOT_YOURS = (errno.EPERM, "the socket is another user's")
    NO_DATA = (errno.ENODATA, "there is nothing to read")

    # limits
    LIMIT_REACHED = (errno.ENOBUFS, "a limit of the configuration is reached")

    def __init__(self, number: int, text: str) -> None:
        self.errno = number
        self.text = text

    def error(self, detail: str = "") -> SSAError:
        """
        Make the error of this cause.

        @param detail: which certificate, which check, what was expected and found; "" if there is none.
        """
        return SSAError(self.errno, f"{self.text}: {detail}" if detail else self.text)


def failed(number: int, what: str) -> SSAError:
    """
    Make the error of a system call that failed, with the system's own errno.

    @param number: a positive errno.
    @param what: what was attempted, for a person: C{"connect to 192.0.2.1 port 443"}.
    """
    return SSAError(number, f"{what}: {os.strerror(number)}")


def oneLine(text: str) -> str:
    """
    Make text that may come from the peer fit for one line of a log and of TLS_ERROR.

    @return: the text with each run of white space as one space, everything that cannot be printed (control
        characters, lone surrogates, direction marks) escaped, and at most L{LONGEST_REASON} bytes of UTF-8.
    """
    if len(text) > 4 * LONGEST_REASON:
        text = text[: 4 * LONGEST_REASON]
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in text)
    encoded = text.encode("utf-8")
    if len(encoded) > LONGEST_REASON:
        text = encoded[: LONGEST_REASON - 3].decode("utf-8", "ignore") + "…"
    return text


def _errnoName(number: int) -> str:
    return errno.errorcode.get(number, f"errno {number}")


# X509_V_ERR_*, by number: OpenSSL's include/openssl/x509_vfy.h.in; what they mean is in
# X509_STORE_CTX_get_error(3).  Codes that are not here are refused as malformed.
_VERIFY_CODES: dict[int, tuple[Cause, str]] = {
    2: (Cause.UNTRUSTED, "its issuer is neither in the chain nor in the trust store"),
    3: (Cause.REVOCATION_UNKNOWN, "no revocation list"),
    4: (Cause.MALFORMED, "its signature cannot be decoded"),
    5: (Cause.REVOCATION_UNKNOWN, "the signature of the revocation list cannot be decoded"),
    6: (Cause.MALFORMED, "its issuer's public key cannot be decoded"),
    7: (Cause.MALFORMED, "its signature is wrong"),
    8: (Cause.REVOCATION_UNKNOWN, "the signature of the revocation list is wrong"),
    9: (Cause.NOT_YET_VALID, "it is not valid yet"),
    10: (Cause.EXPIRED, "it has expired"),
    11: (Cause.REVOCATION_UNKNOWN, "the revocation list is not valid yet"),
    12: (Cause.REVOCATION_UNKNOWN, "the revocation list has expired"),
    13: (Cause.MALFORMED, "its notBefore is no time"),
    14: (Cause.MALFORMED, "its notAfter is no time"),
    15: (Cause.REVOCATION_UNKNOWN, "lastUpdate of the revocation list is no time"),
    16: (Cause.REVOCATION_UNKNOWN, "nextUpdate of the revocation list is no time"),
    17: (Cause.INTERNAL, "out of memory"),
    18: (Cause.UNTRUSTED, "it is self-signed and not in the trust store"),
    19: (Cause.UNTRUSTED, "its self-signed root is not in the trust store"),
    20: (Cause.UNTRUSTED, "its issuer is not in the trust store, or the chain lacks an intermediate"),
    21: (Cause.UNTRUSTED, "it was sent alone, and its issuer is unknown"),
    22: (Cause.UNTRUSTED, "the chain is longer than CertVerificationDepth allows"),
    23: (Cause.REVOKED, "it is revoked"),
    24: (Cause.MALFORMED, "its issuer has no public key"),
    25: (Cause.MALFORMED, "the chain is longer than its path length constraint allows"),
    26: (Cause.WRONG_PURPOSE, "its key usage or extended key usage does not allow this use"),
    27: (Cause.UNTRUSTED, "it is not marked as trusted for this use"),
    28: (Cause.UNTRUSTED, "it is marked as rejected for this use"),
    29: (Cause.UNTRUSTED, "its issuer's name does not fit"),
    30: (Cause.UNTRUSTED, "its authority key identifier does not fit its issuer"),
    31: (Cause.UNTRUSTED, "its authority key identifier names another issuer"),
    32: (Cause.WRONG_PURPOSE, "its issuer may not sign certificates"),
    33: (Cause.REVOCATION_UNKNOWN, "the issuer of the revocation list is unknown"),
    34: (Cause.MALFORMED, "it has a critical extension that is not understood"),
    35: (Cause.REVOCATION_UNKNOWN, "its issuer may not sign revocation lists"),
    36: (Cause.REVOCATION_UNKNOWN, "the revocation list has a critical extension that is not understood"),
    37: (Cause.WRONG_PURPOSE, "it is a certificate authority where none may be"),
    39: (Cause.WRONG_PURPOSE, "its key may not sign"),
    41: (Cause.MALFORMED, "an extension is invalid or inconsistent"),
    42: (Cause.MALFORMED, "its policy extension is invalid"),
    43: (Cause.UNTRUSTED, "no explicit policy"),
    44: (Cause.REVOCATION_UNKNOWN, "the revocation list does not cover it"),
    45: (Cause.MALFORMED, "an extension has a feature that is not supported"),
    46: (Cause.MALFORMED, "its address resources are not among its issuer's"),
    47: (Cause.MALFORMED, "one of its names is outside of a name constraint's permitted names"),
    48: (Cause.MALFORMED, "one of its names is excluded by a name constraint"),
    49: (Cause.MALFORMED, "a name constraint has minimum or maximum"),
    51: (Cause.MALFORMED, "a name constraint is of an unsupported type"),
    52: (Cause.MALFORMED, "a name constraint has an unsupported syntax"),
    53: (Cause.MALFORMED, "a name has an unsupported syntax"),
    54: (Cause.REVOCATION_UNKNOWN, "the path of the revocation list is not valid"),
    62: (Cause.WRONG_NAME, "the name does not match"),
    63: (Cause.WRONG_NAME, "the mail address does not match"),
    64: (Cause.WRONG_NAME, "the IP address does not match"),
    66: (Cause.WEAK, "its key is too small"),
    67: (Cause.WEAK, "its issuer's key is too small"),
    68: (Cause.WEAK, "it is signed with a digest that is too weak"),
    73: (Cause.REVOCATION_UNKNOWN, "an OCSP answer is needed"),
    74: (Cause.REVOCATION_UNKNOWN, "the OCSP answer is not valid"),
    75: (Cause.REVOCATION_UNKNOWN, "the OCSP responder does not know it"),
    76: (Cause.MALFORMED, "its signature algorithm is not supported or does not fit its issuer's key"),
    77: (Cause.MALFORMED, "the two signature algorithms in it differ"),
    78: (Cause.MALFORMED, "the parameters of its key are not valid"),
    79: (Cause.WRONG_PURPOSE, "its issuer is no certificate authority"),
    80: (Cause.MALFORMED, "it has a path length but is no certificate authority"),
    81: (Cause.MALFORMED, "it has a path length but may not sign certificates"),
    82: (Cause.MALFORMED, "it may sign certificates but is no certificate authority"),
    83: (Cause.MALFORMED, "its issuer's name is empty"),
    84: (Cause.MALFORMED, "its subject is empty"),
    85: (Cause.MALFORMED, "it lacks the authority key identifier"),
    86: (Cause.MALFORMED, "it lacks the subject key identifier"),
    87: (Cause.MALFORMED, "its list of alternative names is empty"),
    88: (Cause.MALFORMED, "its subject is empty and its alternative names are not critical"),
    89: (Cause.MALFORMED, "its basic constraints are not critical"),
    90: (Cause.MALFORMED, "its authority key identifier is critical"),
    91: (Cause.MALFORMED, "its subject key identifier is critical"),
    92: (Cause.MALFORMED, "it is a certificate authority without key usage"),
    93: (Cause.MALFORMED, "it has extensions but is not of version 3"),
    94: (Cause.MALFORMED, "its elliptic curve is given by parameters instead of by name"),
}


def causeOfVerifyCode(code: int) -> Cause:
    """
    Classify a result of OpenSSL's path validation.

    @param code: an C{X509_V_ERR_*} number, X509_STORE_CTX_get_error(3).
    """
    return _VERIFY_CODES.get(code, (Cause.MALFORMED, ""))[0]


def describeVerifyCode(code: int) -> str:
    """
    Say what a result of OpenSSL's path validation means.

    @param code: an C{X509_V_ERR_*} number.
    @return: a clause about the certificate, without its name.
    """
    entry = _VERIFY_CODES.get(code)
    return entry[1] if entry is not None else f"OpenSSL refuses it with verification error {code}"


# Reasons as OpenSSL spells them, lower case (crypto/err/openssl.txt).  Those that are not here are PROTOCOL.
_REASONS: dict[str, Cause] = {
    "wrong version number": Cause.NOT_TLS,
    "http request": Cause.NOT_TLS,
    "https proxy request": Cause.NOT_TLS,
    "unknown protocol": Cause.NOT_TLS,
    "unsupported protocol": Cause.NO_COMMON_VERSION,
    "version too low": Cause.NO_COMMON_VERSION,
    "version too high": Cause.NO_COMMON_VERSION,
    "wrong ssl version": Cause.NO_COMMON_VERSION,
    "no protocols available": Cause.NO_COMMON_VERSION,
    "no shared cipher": Cause.NO_COMMON_CIPHER,
    "no ciphers available": Cause.NO_COMMON_CIPHER,
    "no shared signature algorithms": Cause.NO_COMMON_CIPHER,
    "no suitable signature algorithm": Cause.NO_COMMON_CIPHER,
    "no suitable key share": Cause.NO_COMMON_CIPHER,
    "no suitable groups": Cause.NO_COMMON_CIPHER,
    "no shared groups": Cause.NO_COMMON_CIPHER,
    "wrong cipher returned": Cause.NO_COMMON_CIPHER,
    "unknown cipher returned": Cause.NO_COMMON_CIPHER,
    "wrong signature type": Cause.NO_COMMON_CIPHER,
    "unsupported elliptic curve": Cause.NO_COMMON_CIPHER,
    "wrong curve": Cause.NO_COMMON_CIPHER,
    "no application protocol": Cause.NO_COMMON_ALPN,
    "no required alpn": Cause.NO_COMMON_ALPN,
    "dh key too small": Cause.WEAK,
    "ee key too small": Cause.WEAK,
    "ca key too small": Cause.WEAK,
    "ca md too weak": Cause.WEAK,
    "peer did not return a certificate": Cause.NO_CERTIFICATE,
    "unexpected eof while reading": Cause.CLOSED_IN_HANDSHAKE,
    "certificate verify failed": Cause.MALFORMED,
    "unsafe legacy renegotiation disabled": Cause.POLICY,
    "key values mismatch": Cause.KEY_MISMATCH,
    "key type mismatch": Cause.KEY_MISMATCH,
    "callback failed": Cause.NAME_NOT_SERVED,
    "decryption failed or bad record mac": Cause.PROTOCOL,  # more telling than what the cipher says before it
}

# Alerts of RFC 8446, section 6, whose meaning is one of the rows of the table.  All others are ALERT.
_ALERTS: dict[str, Cause] = {
    "protocol version": Cause.NO_COMMON_VERSION,
    "no application protocol": Cause.NO_COMMON_ALPN,
    "certificate required": Cause.NO_CLIENT_CERTIFICATE,
}

_ALERT = re.compile(r"^(?:sslv3|tlsv1|tlsv13|ssl/tls|tls|dtls)?[0-9.]* *alert (.+)$")


def alertOf(errors: Iterable[tuple[str, str, str]]) -> str:
    """
    Find the alert of the peer among OpenSSL's errors.

    @param errors: C{(library, function, reason)} as pyOpenSSL's C{SSL.Error} holds them.
    @return: its name with spaces, as C{"handshake failure"}; "" if the peer sent none.
    """
    for _library, _function, reason in errors:
        text = reason.lower()
        match = _ALERT.match(text)
        if match is not None:
            return match.group(1)
        if text.startswith(("tlsv1 ", "tlsv13 ")):
            # Some reasons leave the word out: "tlsv1 unrecognized name".
            return text.partition(" ")[2]
    return ""


def errorQueue(error: Exception) -> list[tuple[str, str, str]]:
    """
    Take OpenSSL's error queue out of pyOpenSSL's exception.

    @param error: an C{SSL.Error}.
    @return: C{(library, function, reason)} in OpenSSL's order; empty if the exception has none.
    """
    if error.args and isinstance(error.args[0], (list, tuple)):
        return [(str(a), str(b), str(c)) for a, b, c in error.args[0]]
    return []


def causeOfOpenSSL(errors: Sequence[tuple[str, str, str]]) -> tuple[Cause, str]:
    """
    Classify the error queue that OpenSSL leaves when a handshake or a record fails.

    What this cannot know, such as which certificate was refused, the verify callback has recorded.

    @param errors: C{(library, function, reason)} in OpenSSL's order, as C{SSL.Error.args[0]}; may be empty.
    @return: the cause, and a detail in OpenSSL's words.
    """
    alert = alertOf(errors)
    if alert:
        cause = _ALERTS.get(alert, Cause.ALERT)
        number = alertNumber(alert)
        return cause, f"it sent the alert {alert.replace(' ', '_') if number is None else alertName(number)}"
    for _library, _function, reason in errors:
        found = _REASONS.get(reason.lower())
        if found is not None:
            return found, reason
    for _library, _function, reason in errors:
        if reason:
            return Cause.PROTOCOL, reason
    return Cause.PROTOCOL, "OpenSSL gives no reason"


# An end of the TCP connection by the peer: in a handshake that is a failed handshake, not a failure of TCP.
_PEER_ENDED = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN})


def connectionError(number: int) -> SSAError:
    """
    Say how TCP ended an established TLS connection without close_notify.

    @param number: an errno; 0 or -1 for an end of file, as pyOpenSSL's C{SysCallError} says it.
    @return: always ECONNRESET, as the socket API has it for every end but close_notify.
    """
    if number <= 0:
        return Cause.TRUNCATED.error()
    if number in _PEER_ENDED:
        return Cause.RESET.error()
    return Cause.LOST.error(os.strerror(number))


def causeOfSystemError(number: int) -> Cause | None:
    """
    Classify an errno of the TCP connection after it was established and before the handshake ended.

    @param number: an errno; 0 or -1 for an end of file without close_notify, as pyOpenSSL's C{SysCallError} says it.
    @return: the cause, or C{None} where TCP's own errno is to be passed on (a time-out, a network that went away).
    """
    if number <= 0 or number in _PEER_ENDED:
        return Cause.CLOSED_IN_HANDSHAKE
    return None
