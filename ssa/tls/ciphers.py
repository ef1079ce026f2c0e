# SPDX-License-Identifier: MIT
"""
The ciphers that are allowed at all, and their names.

Only authenticated encryption with forward secrecy is allowed (RFC 9325 section 4.2, RFC 8446): no program can have another
one, and no policy but one for destinations that the administrator names (L{OLD_CIPHERS}).  AES-CCM with the short tag
(CCM_8) is left out, as the IANA registry does not recommend it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from OpenSSL import SSL

__all__ = [
    "CIPHERS",
    "OLD_CIPHERS",
    "SUITES",
    "checkCipherList",
    "checkCipherSuites",
    "cipherNamed",
    "cipherNames",
    "cipherStrings",
    "ianaName",
]

_WORD = re.compile(r"[A-Za-z0-9_-]{3,64}")

_AUTHENTICATED = {"ECDHE-ECDSA": "ECDHE_ECDSA", "ECDHE-RSA": "ECDHE_RSA", "DHE-RSA": "DHE_RSA"}
_ENCRYPTION = {
    "AES128-GCM-SHA256": "AES_128_GCM_SHA256",
    "AES256-GCM-SHA384": "AES_256_GCM_SHA384",
    "CHACHA20-POLY1305": "CHACHA20_POLY1305_SHA256",
    "AES128-CCM": "AES_128_CCM",
    "AES256-CCM": "AES_256_CCM",
    "ARIA128-GCM-SHA256": "ARIA_128_GCM_SHA256",
    "ARIA256-GCM-SHA384": "ARIA_256_GCM_SHA384",
}

CIPHERS: dict[str, str] = {
    f"{theirs}-{cipher}": f"TLS_{ours}_WITH_{name}"
    for theirs, ours in _AUTHENTICATED.items()
    for cipher, name in _ENCRYPTION.items()
    if not (theirs == "ECDHE-RSA" and cipher.endswith("CCM"))
}
"""The TLS 1.2 ciphers that may be used: OpenSSL's name to the name in the IANA registry "TLS Cipher Suites"."""

# OpenSSL names the ARIA ciphers with ECDHE and RSA without the word RSA.
for _bits, _digest in (("128", "256"), ("256", "384")):
    _iana = CIPHERS.pop(f"ECDHE-RSA-ARIA{_bits}-GCM-SHA{_digest}")
    CIPHERS[f"ECDHE-ARIA{_bits}-GCM-SHA{_digest}"] = _iana

OLD_CIPHERS: dict[str, str] = {
    **{
        f"{theirs}-AES{bits}-{digest}": f"TLS_{ours}_WITH_AES_{bits}_CBC_{digest}"
        for theirs, ours in _AUTHENTICATED.items()
        for bits in ("128", "256")
        for digest in ("SHA", "SHA256", "SHA384")
        # RFC 5289 and RFC 5246 appendix A.5: ECDHE has SHA384 with AES-256, DHE has SHA256 with both.
        if digest == "SHA" or digest == ("SHA384" if bits == "256" and theirs != "DHE-RSA" else "SHA256")
    },
    **{f"AES{bits}-SHA{n}": f"TLS_RSA_WITH_AES_{bits}_CBC_SHA{n}" for bits in ("128", "256") for n in ("", "256")},
    "AES128-GCM-SHA256": "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "AES256-GCM-SHA384": "TLS_RSA_WITH_AES_256_GCM_SHA384",
}
"""
Ciphers without forward secrecy or authenticated encryption that a profile for certain destinations may allow, for servers that
have nothing better.  Ciphers that are broken or encrypt nothing (RC4, 3DES, NULL, anonymous) are not among them.
"""

SUITES = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
)
"""The TLS 1.3 suites that may be used."""


def ianaName(name: str) -> str:
    """
    Translate a cipher's name.

    @param name: OpenSSL's name.
    @return: the name in the IANA registry; OpenSSL's own for a cipher that is not in the tables.
    """
    return CIPHERS.get(name) or OLD_CIPHERS.get(name, name)


def checkCipherList(text: str, mayBeOld: bool = False) -> str:
    """
    Check a list of TLS 1.2 ciphers in OpenSSL's format, ciphers(1), by asking OpenSSL what it lets in.

    @param mayBeOld: whether L{OLD_CIPHERS} are allowed too.
    @return: "" if it lets in allowed ciphers only, and at least one; else what is wrong, for a person.
    """
    if not text.isascii() or not text.isprintable():
        return "it has characters that are not ASCII"
    words = [word for word in text.replace(",", ":").replace(" ", ":").split(":") if word]
    for word in words:
        if "@SECLEVEL" in word.upper():
            return "@SECLEVEL cannot be set: security level 2 is always in force"
        # What is mistyped after one of these signs would be left in.
        if not (_isKnown(word[1:]) if word[0] in "!-+" else word == "@STRENGTH" or _expand(word)):
            return f"OpenSSL knows no TLS 1.2 cipher or group of ciphers {word}"
    found = _expand(text)
    if not found:
        return "no cipher is left"
    refused = [name for name in found if name not in CIPHERS and not (mayBeOld and name in OLD_CIPHERS)]
    if refused and mayBeOld:
        return f"it lets in {', '.join(refused[:5])}{' and others' if len(refused) > 5 else ''}, which no profile may allow"
    if refused:
        return (
            f"it lets in {', '.join(refused[:5])}{' and others' if len(refused) > 5 else ''}, which lacks forward secrecy"
            " or authenticated encryption"
        )
    return ""


def _isKnown(text: str) -> bool:
    """Whether a cipher or a group is one that some OpenSSL has, or had: to exclude it is right everywhere."""
    parts = text.split("+")
    return all(_ONCE_GROUPS.fullmatch(each) or _FORGOTTEN.fullmatch(each) or (each and _expand(each)) for each in parts)


def _expand(text: str) -> list[str]:
    """
    Ask OpenSSL which TLS 1.2 ciphers a list means.

    Security level 0 shows all that is in it: what must be refused is found on every machine, not only where the
    library's build would have let it in.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    try:
        context.set_cipher_list(f"{text}:@SECLEVEL=0".encode("ascii"))
    except SSL.Error:
        return []
    return [name for name in SSL.Connection(context, None).get_cipher_list() if not name.startswith("TLS_")]


def checkCipherSuites(text: str) -> str:
    """
    Check a list of TLS 1.3 suites.

    @return: "" if it names allowed suites only, and at least one; else what is wrong, for a person.
    """
    names = [name for name in text.split(":") if name]
    if not names:
        return "no suite is left"
    for name in names:
        if name not in SUITES:
            return f"{name or 'an empty name'} is none of {', '.join(SUITES)}"
    return ""




_OPENSSL_NAMES = {iana: name for name, iana in CIPHERS.items()}

_KEY_EXCHANGE = (
    r"(?:NULL|RSA(?:_EXPORT|_PSK)?|DHE?_(?:RSA|DSS|anon)(?:_EXPORT)?|DHE_PSK|PSK|PSK_DHE|ECDHE?_(?:ECDSA|RSA|anon)|ECDHE_PSK"
    r"|SRP_SHA(?:_RSA|_DSS)?|KRB5(?:_EXPORT)?)"
)
_BULK = (
    r"(?:NULL|RC4_(?:40|128)|RC2_CBC_40|IDEA_CBC|DES40_CBC|DES_CBC|3DES_EDE_CBC|SEED_CBC|CHACHA20_POLY1305"
    r"|(?:AES|CAMELLIA|ARIA)_(?:128|256)_(?:CBC|GCM)|AES_(?:128|256)_CCM(?:_8)?)"
)
_REGISTERED = re.compile(rf"TLS_{_KEY_EXCHANGE}_WITH_{_BULK}(?:_(?:MD5|SHA|SHA256|SHA384))?")
"""The form of TLS 1.2's names in the IANA registry, for the ciphers that this OpenSSL has forgotten."""

_FORGOTTEN = re.compile(
    r"(?:(?:EXP-|EXP1024-)?(?:(?:EC)?DHE?-(?:RSA|ECDSA|DSS)-|EDH-(?:RSA|DSS)-|AECDH-|ADH-)?)"
    r"(?:RC4|RC2-CBC|DES-CBC3|DES-CBC|3DES-EDE-CBC|IDEA-CBC|NULL|SEED)-(?:MD5|SHA|SHA256)"
)
"""OpenSSL's names for ciphers that many builds of it leave out."""

_ONCE_GROUPS = re.compile(
    r"LOW|EXP|EXPORT|EXPORT40|EXPORT56|SSLv2|SSLv3|kDH[rd]?|kECDH[re]?|aDH|aECDH|DES|3DES|RC2|RC4|IDEA|SEED|KRB5|FZA"
    r"|aGOST(?:01)?|kGOST|GOST94|GOST89MAC|[ka]?SRP|MD5|e?NULL|aNULL|ADH|AECDH|a?DSS"
)
"""Groups of ciphers(1), of this and of earlier versions, that may have no cipher any more."""

_OLD_SUITES = ("TLS_AES_128_CCM_8_SHA256", "TLS_SHA256_SHA256", "TLS_SHA384_SHA384")


@lru_cache(maxsize=512)
def cipherNamed(name: str) -> str | None:
    """
    Find one cipher by its OpenSSL or its IANA name.

    @param name: no list, group or keyword of OpenSSL's cipher strings.
    @return: the IANA name; OpenSSL's for a cipher that is never allowed; C{None} if there is no cipher of this name.
    """
    if name in SUITES or name in _OLD_SUITES or name in _OPENSSL_NAMES:
        return name
    if name in CIPHERS:
        return CIPHERS[name]
    if not _WORD.fullmatch(name):
        return None
    found = _expand(name)
    if found == [name] or (len(found) == 1 and _REGISTERED.fullmatch(name)):
        return ianaName(found[0])
    if _REGISTERED.fullmatch(name) or _FORGOTTEN.fullmatch(name):
        return name
    return None


@lru_cache(maxsize=64)
def cipherNames(cipherList: str, cipherSuites: str) -> tuple[str, ...]:
    """
    List the ciphers that a policy allows, TLS 1.3's first.

    @param cipherList: in OpenSSL's format.
    @param cipherSuites: separated by colons.
    @return: names as L{cipherNamed} gives them.
    """
    suites = [name for name in cipherSuites.split(":") if name]
    return (*suites, *(ianaName(name) for name in _expand(cipherList)))


def cipherStrings(names: Sequence[str]) -> tuple[str, str]:
    """
    Write ciphers as OpenSSL takes them.

    @param names: as L{cipherNamed} gives them.
    @return: the list of TLS 1.2 and the suites of TLS 1.3; either may be "".
    """
    suites = [name for name in names if name in SUITES]
    ciphers = [_OPENSSL_NAMES.get(name, name) for name in names if name not in SUITES]
    return ":".join(ciphers), ":".join(suites)
