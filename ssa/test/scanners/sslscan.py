# SPDX-License-Identifier: MIT
"""
What sslscan(1) finds, from its XML.
"""

from __future__ import annotations

from xml.etree import ElementTree

_GOOD_PROTOCOLS = {("tls", "1.2"), ("tls", "1.3")}
_GOOD_STRENGTH = {"strong", "acceptable"}
_GOOD_SIGNATURES = {
    "ecdsa-with-SHA256",
    "ecdsa-with-SHA384",
    "ecdsa-with-SHA512",
    "sha256WithRSAEncryption",
    "sha384WithRSAEncryption",
    "sha512WithRSAEncryption",
}
_LEAST_BITS = 112
"""Of a cipher, of a group and of a certificate's key, in the sense of NIST SP 800-57."""


def weaknesses(xml: str) -> list[str]:
    """
    Read a report.

    @param xml: what C{sslscan --xml=-} writes about one server.
    @return: each weakness, for a person.
    @raise ValueError: it is no report of a server that was reached: nothing found must not mean that nothing was looked at.
    """
    try:
        test = ElementTree.fromstring(xml).find("ssltest")
    except ElementTree.ParseError as problem:
        raise ValueError(f"no report of sslscan: {problem}") from problem
    if test is None:
        raise ValueError("no report of sslscan on a server")
    protocols = {(each.get("type"), each.get("version")): each.get("enabled") for each in test.findall("protocol")}
    enabled = {name for name, is_ in protocols.items() if is_ == "1"}
    ciphers, groups, certificates = test.findall("cipher"), test.findall("group"), test.findall(".//certificate")
    if len(protocols) < 6 or not enabled or not ciphers or not groups or not certificates:
        raise ValueError("sslscan has not looked at everything")

    found = [f"{kind} {version} is enabled" for kind, version in sorted(enabled - _GOOD_PROTOCOLS, key=str)]
    for each in ciphers:
        if each.get("strength") not in _GOOD_STRENGTH or int(each.get("bits", "0")) < _LEAST_BITS:
            found.append(f"cipher {each.get('cipher')} in {each.get('sslversion')}: {each.get('strength')}")
    for each in groups:
        if int(each.get("bits", "0")) < _LEAST_BITS:
            found.append(f"group {each.get('name')}: {each.get('bits')} bits")
    for each in test.findall("heartbleed"):
        if each.get("vulnerable") != "0":
            found.append(f"heartbleed in {each.get('sslversion')}")
    for each in test.findall("renegotiation"):
        if each.get("supported") == "1" and each.get("secure") != "1":
            found.append("insecure renegotiation")
    for name, bad in (("compression", "1"), ("fallback", "0")):
        if any(each.get("supported") == bad for each in test.findall(name)):
            found.append("compression" if name == "compression" else "no TLS_FALLBACK_SCSV")
    for certificate in certificates:
        found += _certificate(certificate)
    return found


def _certificate(certificate: ElementTree.Element) -> list[str]:
    found = []
    signature = certificate.findtext("signature-algorithm", "")
    if signature not in _GOOD_SIGNATURES:
        found.append(f"a certificate is signed with {signature or 'something unknown'}")
    key = certificate.find("pk")
    least = 2048 if key is not None and key.get("type") == "RSA" else _LEAST_BITS
    if key is None or key.get("error") != "false" or int(key.get("bits", "0")) < least:
        found.append(f"a certificate's key: {key.attrib if key is not None else 'unknown'}")
    for tag in ("self-signed", "expired"):
        if certificate.findtext(tag, "") != "false":
            found.append(f"a certificate is {tag}")
    return found


def groupNames(xml: str) -> set[str]:
    """The key exchange groups that a server has, as sslscan calls them, without what is in parentheses."""
    return {each.get("name", "").partition(" (")[0] for each in ElementTree.fromstring(xml).iter("group")}
