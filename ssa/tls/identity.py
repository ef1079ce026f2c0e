# SPDX-License-Identifier: MIT
"""
Who the peer must be, and whether its certificate says so.

The matching itself is that of service_identity (RFC 9525); whatever it raises, the peer is refused.

A reference identity is a DNS name in A-label form, or an IP address.  Names follow the preferred syntax of RFC 1123
section 2.1 with one addition: the underscore is allowed in labels, as service_identity and every resolver allow it,
since such host names exist and a certificate authority's refusal to certify them is not ours to enforce.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address

from ssa.api import MAXIMUM_NAME

__all__ = ["Identity", "checkIdentity", "parseIdentity", "parseName"]

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LARGEST_CACHED = 8192
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True)
class Identity:
    """
    A reference identity, RFC 9525 section 1.8.

    @ivar value: a DNS name in lower case without a final dot, or an IP address in its canonical text form.
    @ivar isAddress: whether it is an IP address.
    """

    value: str
    isAddress: bool

    @property
    def serverName(self) -> bytes | None:
        """What goes into the server_name extension; C{None} for addresses, which RFC 6066 section 3 keeps out."""
        return None if self.isAddress else self.value.encode("ascii")

    def __str__(self) -> str:
        return f"{'IP address' if self.isAddress else 'name'} {self.value}"


def parseIdentity(text: str) -> Identity:
    """
    Read a name or an address as TLS_REMOTE_HOSTNAME and C{struct sockaddr_host} hold it, or the address of connect(2).

    An IPv4 address that is mapped into IPv6 (RFC 4291 section 2.5.5.2) is the IPv4 address that it stands for.

    @raise ValueError: with a sentence for a person.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return Identity(parseName(text), False)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{text!r} has a zone, which means something on this machine only; give it without")
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    return Identity(str(address), True)


def parseName(text: str) -> str:
    """
    Read a DNS name.

    @return: in lower case, without the final dot that an absolute name may have.
    @raise ValueError: with a sentence for a person.
    """
    if not text:
        raise ValueError("the name is empty")
    if not text.isascii():
        raise ValueError(f"{text!r} is not ASCII: give the A-label (xn--…) of an internationalized name")
    name = text.lower()
    if name.endswith("."):
        name = name[:-1]
    if len(name) > MAXIMUM_NAME:
        raise ValueError(f"the name has {len(name)} bytes, a DNS name has at most {MAXIMUM_NAME}")
    if name.startswith("["):
        raise ValueError(f"{text!r} is in brackets; give an IPv6 address without them")
    labels = name.split(".")
    for label in labels:
        if len(label) > 63:
            raise ValueError(f"the label {label!r} of the name has more than 63 bytes")
        if not _LABEL.fullmatch(label):
            raise ValueError(
                f"{text!r} is neither a DNS name (letters, digits, hyphens and dots; no port, no wildcard)"
                " nor an IP address"
            )
    if _NUMERIC.fullmatch(labels[-1]):
        raise ValueError(f"{text!r} ends in a number: it is no DNS name, and no complete IP address either")
    return name


def checkIdentity(certificate: bytes, identity: Identity) -> str:
    """
    Check that a certificate, whose chain is already known to be good, belongs to the peer that was asked for.

    @param certificate: DER.
    @return: "" if it does, else why not, for a person.  Any trouble at all is a reason.
    """
    match = _match if len(certificate) <= _LARGEST_CACHED else _match.__wrapped__
    try:
        match(certificate, identity)
    except VerificationError:
        return f"expected the {identity}, and the certificate does not have it"
    except CertificateError as error:
        return f"expected the {identity}; the names in the certificate cannot be used: {error}"
    except Exception as error:  # whatever a hostile certificate provokes in the libraries, the peer is refused
        return f"expected the {identity}; the names in the certificate cannot be read ({type(error).__name__}: {error})"
    return ""


@lru_cache(maxsize=1024)
def _match(certificate: bytes, identity: Identity) -> None:
    """Match with service_identity.  Only successes are cached: an exception is not."""
    parsed = x509.load_der_x509_certificate(certificate)
    if identity.isAddress:
        verify_certificate_ip_address(parsed, identity.value)
    else:
        verify_certificate_hostname(parsed, identity.value)
