# SPDX-License-Identifier: MIT
"""Tests of what options leave of a policy: L{ssa.narrowing}, and the options of L{ssa.options} that it is about."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import Option, PeerAuthentication
from ssa.errors import SSAError
from ssa.narrowing import REVOCATION_SOURCES
from ssa.options import Phase, SocketOptions
from ssa.policy.profile import DEFAULT_CIPHERS, DEFAULT_SUITES, TLS_1_2, TLS_1_3, Profile
from ssa.test.pki import testCA
from ssa.tls.ciphers import CIPHERS, SUITES, cipherNamed, cipherNames, cipherStrings, ianaName

GCM = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
ALL = cipherNames(DEFAULT_CIPHERS, DEFAULT_SUITES)


def integer(value: int) -> bytes:
    """An C{int} as programs give it."""
    return struct.pack("=i", value)


class NarrowingCase(SynchronousTestCase):
    """A socket's options under a policy."""

    def setUp(self) -> None:
        self.known: dict[int, SocketOptions] = {}
        self.options = self.socket(7)

    def socket(self, id: int, owner: int = 1000) -> SocketOptions:
        """The options of another socket."""
        self.known[id] = SocketOptions(id, owner, "/bin/program", self.known.get)
        return self.known[id]

    def put(self, option: int, value: bytes | int, profile: Profile | None = None) -> None:
        raw = integer(value) if isinstance(value, int) else value
        self.options.set(option, raw, Phase.NEW, profile or Profile())

    def get(self, option: int, profile: Profile | None = None) -> int:
        """An option's number."""
        return int(struct.unpack("=i", self.options.get(option, Phase.NEW, None, profile))[0])

    def text(self, option: int, profile: Profile | None = None) -> str:
        """An option's string."""
        return self.options.get(option, Phase.NEW, None, profile).decode().rstrip("\0")

    def refuses(self, number: int, option: int, value: bytes | int, profile: Profile | None = None, word: str = "") -> None:
        """Say that a value is refused, with an errno, and that nothing else changes."""
        before = {name: each for name, each in vars(self.options).items() if name != "error"}
        with self.assertRaises(SSAError) as caught:
            self.put(option, value, profile)
        self.assertEqual(errno.errorcode[caught.exception.errno], errno.errorcode[number], caught.exception.reason)
        self.assertIn(word, caught.exception.reason)
        self.assertEqual(self.options.error, caught.exception.reason)
        self.assertEqual({name: each for name, each in vars(self.options).items() if name != "error"}, before)


class IntegerTests(NarrowingCase):
    """What is common to the options that are numbers."""

    def test_lengths(self) -> None:
        """An int has four bytes, an id eight."""
        for option in (
            Option.TLS_SESSION_TTL, Option.TLS_REQUEST_PEER_AUTH, Option.TLS_REVOCATION_CHECKS,
            Option.TLS_OCSP_STAPLED_CHECKS, Option.TLS_OCSP_CHECKS, Option.TLS_CRL_CHECKS, Option.TLS_CACHED_REV_CHECKS,
            Option.TLS_SESSION_REUSE, Option.TLS_VERSION_MIN, Option.TLS_VERSION_MAX, Option.TLS_SERVER_OCSP_STAPLING,
        ):  # fmt: skip
            for size in (0, 1, 2, 3, 5, 8):
                self.refuses(errno.EINVAL, option, bytes(size), word=f"{size} bytes")
        for size in (0, 4, 7, 9):
            self.refuses(errno.EINVAL, Option.TLS_CONTEXT, bytes(size), word=f"{size} bytes")

    def test_switches(self) -> None:
        """0 or 1, nothing else."""
        for option in (
            Option.TLS_REVOCATION_CHECKS, Option.TLS_OCSP_STAPLED_CHECKS, Option.TLS_OCSP_CHECKS, Option.TLS_CRL_CHECKS,
            Option.TLS_CACHED_REV_CHECKS, Option.TLS_SESSION_REUSE, Option.TLS_SERVER_OCSP_STAPLING,
        ):  # fmt: skip
            for value in (-1, 2, 256, 1 << 30):
                self.refuses(errno.EINVAL, option, value, word="must be 0 or 1")


class VersionTests(NarrowingCase):
    """TLS_VERSION_MIN and TLS_VERSION_MAX."""

    def test_narrow(self) -> None:
        """The versions in force, before and after."""
        self.assertEqual((self.get(Option.TLS_VERSION_MIN), self.get(Option.TLS_VERSION_MAX)), (TLS_1_2, TLS_1_3))
        self.put(Option.TLS_VERSION_MIN, TLS_1_3)
        self.assertEqual((self.get(Option.TLS_VERSION_MIN), self.get(Option.TLS_VERSION_MAX)), (TLS_1_3, TLS_1_3))
        self.assertEqual(self.options.narrowed(Profile()), replace(Profile(), minProtocol=TLS_1_3))
        self.put(Option.TLS_VERSION_MIN, TLS_1_2)
        self.put(Option.TLS_VERSION_MAX, TLS_1_2)
        self.assertEqual(self.options.narrowed(Profile()), replace(Profile(), maxProtocol=TLS_1_2))

    def test_forbidden(self) -> None:
        """Known versions outside of the policy's: EPERM."""
        for option in (Option.TLS_VERSION_MIN, Option.TLS_VERSION_MAX):
            for version in (0x0300, 0x0301, 0x0302):
                self.refuses(errno.EPERM, option, version, word="TLSv1.2 to TLSv1.3")
            self.refuses(errno.EPERM, option, TLS_1_2, Profile(minProtocol=TLS_1_3))
            self.refuses(errno.EPERM, option, TLS_1_3, Profile(maxProtocol=TLS_1_2))

    def test_unknown(self) -> None:
        """No version: EINVAL."""
        for option in (Option.TLS_VERSION_MIN, Option.TLS_VERSION_MAX):
            for version in (-1, 0, 1, 0x0002, 0x0305, 0xFEFD, 0x03040000):
                self.refuses(errno.EINVAL, option, version, word="no TLS version")

    def test_crossed(self) -> None:
        """The lowest above the highest: EINVAL."""
        self.put(Option.TLS_VERSION_MIN, TLS_1_3)
        self.refuses(errno.EINVAL, Option.TLS_VERSION_MAX, TLS_1_2, word="below TLS_VERSION_MIN")
        self.options = self.socket(8)
        self.put(Option.TLS_VERSION_MAX, TLS_1_2)
        self.refuses(errno.EINVAL, Option.TLS_VERSION_MIN, TLS_1_3, word="above TLS_VERSION_MAX")

    def test_destination(self) -> None:
        """The policy for the destination may leave nothing: EPERM then."""
        self.put(Option.TLS_VERSION_MAX, TLS_1_2)
        with self.assertRaises(SSAError) as caught:
            self.options.narrowed(Profile(minProtocol=TLS_1_3))
        self.assertEqual(caught.exception.errno, errno.EPERM)
        self.assertIn("TLSv1.3", caught.exception.reason)


class CipherTests(NarrowingCase):
    """TLS_TRUSTED_CIPHERS, TLS_DISABLE_CIPHER and TLS_ENABLE_CIPHER."""

    def ciphers(self, profile: Profile | None = None) -> list[str]:
        """The ciphers in force."""
        return self.text(Option.TLS_TRUSTED_CIPHERS, profile).split(":")

    def test_names(self) -> None:
        """Names of both kinds; what is no name of one cipher is none."""
        for name, registered in CIPHERS.items():
            self.assertEqual((cipherNamed(name), cipherNamed(registered)), (registered, registered))
        for name in SUITES:
            self.assertEqual(cipherNamed(name), name)
        for name in (
            "AES128-SHA", "RC4-SHA", "DES-CBC3-SHA", "TLS_RSA_WITH_RC4_128_SHA", "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
            "TLS_RSA_WITH_AES_128_CBC_SHA", "AES128-GCM-SHA256", "NULL-SHA256", "ECDHE-RSA-AES128-SHA", "EXP-RC4-MD5",
            "TLS_AES_128_CCM_8_SHA256", "TLS_RSA_EXPORT_WITH_RC4_40_MD5", "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8",
        ):  # fmt: skip
            self.assertNotIn(cipherNamed(name), (None, *CIPHERS.values(), *SUITES), name)
        for name in (
            "", "ALL", "HIGH", "DEFAULT", "aNULL", "!aNULL", "-RC4", "ECDHE", "AES128", "@SECLEVEL=0", "@STRENGTH",
            "ECDHE+AESGCM", "TLS_", "TLS_FOO_WITH_BAR", "TLS_RSA_WITH_FOO", "tls_aes_128_gcm_sha256", "TLSv1.2", "x" * 200,
            "AESCCM8", "SHA384", "PROFILE=SYSTEM",
        ):  # fmt: skip
            self.assertIsNone(cipherNamed(name), name)

    def test_strings(self) -> None:
        """Names for people, strings for OpenSSL."""
        self.assertEqual(cipherStrings(ALL), (DEFAULT_CIPHERS, DEFAULT_SUITES))
        self.assertEqual(cipherStrings([GCM]), ("ECDHE-ECDSA-AES128-GCM-SHA256", ""))
        self.assertEqual(cipherStrings(["TLS_AES_128_GCM_SHA256"]), ("", "TLS_AES_128_GCM_SHA256"))

    def test_trusted(self) -> None:
        """A list in the program's order; names of both kinds."""
        self.assertEqual(self.ciphers(), list(ALL))
        self.put(Option.TLS_TRUSTED_CIPHERS, b"ECDHE-RSA-AES256-GCM-SHA384:" + GCM.encode() + b":TLS_AES_128_GCM_SHA256\0")
        self.assertEqual(self.ciphers(), [ianaName("ECDHE-RSA-AES256-GCM-SHA384"), GCM, "TLS_AES_128_GCM_SHA256"])
        narrow = self.options.narrowed(Profile())
        self.assertEqual(narrow.cipherList, "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256")
        self.assertEqual(narrow.cipherSuites, "TLS_AES_128_GCM_SHA256")
        self.assertEqual((narrow.minProtocol, narrow.maxProtocol), (TLS_1_2, TLS_1_3))

    def test_oneVersion(self) -> None:
        """Ciphers of one version leave that version only."""
        self.put(Option.TLS_TRUSTED_CIPHERS, GCM.encode())
        narrow = self.options.narrowed(Profile())
        self.assertEqual((narrow.minProtocol, narrow.maxProtocol), (TLS_1_2, TLS_1_2))
        self.assertEqual(narrow.cipherList, cipherStrings([GCM])[0])
        with self.assertRaises(SSAError) as caught:
            self.options.narrowed(Profile(minProtocol=TLS_1_3))
        self.assertEqual(caught.exception.errno, errno.EPERM)
        self.put(Option.TLS_TRUSTED_CIPHERS, b"TLS_AES_256_GCM_SHA384")
        narrow = self.options.narrowed(Profile())
        self.assertEqual((narrow.minProtocol, narrow.maxProtocol), (TLS_1_3, TLS_1_3))

    def test_refused(self) -> None:
        """Forbidden: EPERM.  No cipher: EINVAL."""
        for option in (Option.TLS_TRUSTED_CIPHERS, Option.TLS_ENABLE_CIPHER):
            for name in (b"RC4-SHA", b"AES128-SHA", b"TLS_RSA_WITH_AES_128_CBC_SHA", b"TLS_AES_128_CCM_SHA256"):
                self.refuses(errno.EPERM, option, name, word="not allowed")
        for option in (Option.TLS_TRUSTED_CIPHERS, Option.TLS_ENABLE_CIPHER, Option.TLS_DISABLE_CIPHER):
            for name in (b"", b"\0", b"ALL", b"HIGH", b"nonsense", b"!RC4", b"TLS_AES_128_GCM_SHA256\0\0", b"\xff", b" "):
                self.refuses(errno.EINVAL, option, name)
        many = b":".join([GCM.encode()] * 200)
        for value in (b":", GCM.encode() + b":", GCM.encode() + b":" + GCM.encode(), many):
            self.refuses(errno.EINVAL, Option.TLS_TRUSTED_CIPHERS, value)
        self.refuses(errno.EPERM, Option.TLS_TRUSTED_CIPHERS, GCM.encode() + b":RC4-SHA")
        for option in (Option.TLS_ENABLE_CIPHER, Option.TLS_DISABLE_CIPHER):
            self.refuses(errno.EINVAL, option, GCM.encode() + b":TLS_AES_128_GCM_SHA256")

    def test_disable(self) -> None:
        """One after the other, by either name; one that is forbidden anyhow changes nothing; the last cannot go."""
        self.put(Option.TLS_DISABLE_CIPHER, b"ECDHE-ECDSA-AES128-GCM-SHA256")
        self.put(Option.TLS_DISABLE_CIPHER, b"TLS_AES_128_GCM_SHA256\0")
        self.put(Option.TLS_DISABLE_CIPHER, b"RC4-SHA")
        left = [name for name in ALL if name not in (GCM, "TLS_AES_128_GCM_SHA256")]
        self.assertEqual(self.ciphers(), left)
        for name in left[:-1]:
            self.put(Option.TLS_DISABLE_CIPHER, name.encode())
        self.refuses(errno.EINVAL, Option.TLS_DISABLE_CIPHER, left[-1].encode(), word="no cipher is left")
        self.put(Option.TLS_ENABLE_CIPHER, GCM.encode())
        self.assertEqual(self.ciphers(), [GCM, left[-1]])

    def test_enable(self) -> None:
        """It adds to a list of the program's own, at its end, what the policy allows."""
        self.put(Option.TLS_TRUSTED_CIPHERS, b"TLS_AES_128_GCM_SHA256")
        self.put(Option.TLS_ENABLE_CIPHER, GCM.encode())
        self.put(Option.TLS_ENABLE_CIPHER, GCM.encode())
        self.assertEqual(self.ciphers(), ["TLS_AES_128_GCM_SHA256", GCM])
        self.put(Option.TLS_DISABLE_CIPHER, GCM.encode())
        self.assertEqual(self.ciphers(), ["TLS_AES_128_GCM_SHA256"])

    def test_destination(self) -> None:
        """Of the two lists, what is in both; nothing in common: EPERM."""
        self.put(Option.TLS_TRUSTED_CIPHERS, b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384")
        strict = Profile(cipherSuites="TLS_AES_256_GCM_SHA384", minProtocol=TLS_1_3)
        self.assertEqual(self.options.narrowed(strict).cipherSuites, "TLS_AES_256_GCM_SHA384")
        with self.assertRaises(SSAError) as caught:
            self.options.narrowed(Profile(cipherSuites="TLS_CHACHA20_POLY1305_SHA256"))
        self.assertEqual(caught.exception.errno, errno.EPERM)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([Option.TLS_TRUSTED_CIPHERS, Option.TLS_DISABLE_CIPHER, Option.TLS_ENABLE_CIPHER]),
                st.sampled_from([*ALL, *CIPHERS, *SUITES, "RC4-SHA", "AES128-SHA", "ALL"]),
            ),
            max_size=12,
        ),
        st.sets(st.sampled_from(ALL), min_size=1),
    )
    def test_neverWider(self, calls: list[tuple[Option, str]], allowed: set[str]) -> None:
        """Whatever a program sets, nothing is in force that the policy, then or at the destination, does not allow."""
        options = SocketOptions(1)
        for option, name in calls:
            try:
                options.set(option, name.encode(), Phase.NEW, Profile())
            except SSAError as error:
                self.assertIn(error.errno, (errno.EPERM, errno.EINVAL))
        ciphers, suites = cipherStrings([name for name in ALL if name in allowed])
        policy = Profile(cipherList=ciphers or DEFAULT_CIPHERS, cipherSuites=suites or DEFAULT_SUITES)
        try:
            narrow = options.narrowed(policy)
        except SSAError as error:
            self.assertEqual(error.errno, errno.EPERM)
            return
        inForce = set(cipherNames(narrow.cipherList, narrow.cipherSuites))
        self.assertLessEqual(inForce, set(cipherNames(policy.cipherList, policy.cipherSuites)))
        self.assertLessEqual(policy.minProtocol, narrow.minProtocol)
        self.assertLessEqual(narrow.maxProtocol, policy.maxProtocol)


class SessionOptionTests(NarrowingCase):
    """TLS_SESSION_TTL, TLS_SESSION_REUSE and TLS_CONTEXT."""

    def test_ttl(self) -> None:
        """The shorter of the program's and the policy's time; 0 is off."""
        self.assertEqual((self.get(Option.TLS_SESSION_TTL), self.get(Option.TLS_SESSION_REUSE)), (7200, 1))
        for seconds, expected in ((60, 60), (100000, 7200), (604800, 7200), (0, 0)):
            self.put(Option.TLS_SESSION_TTL, seconds)
            self.assertEqual(self.get(Option.TLS_SESSION_TTL), expected)
        self.assertEqual(self.get(Option.TLS_SESSION_REUSE), 0)
        for seconds in (-1, 604801, 1 << 30):
            self.refuses(errno.EINVAL, Option.TLS_SESSION_TTL, seconds, word="604800")

    def test_reuse(self) -> None:
        """A program can switch resumption off; on only where the policy has it."""
        self.put(Option.TLS_SESSION_REUSE, 0)
        self.assertEqual((self.get(Option.TLS_SESSION_TTL), self.get(Option.TLS_SESSION_REUSE)), (0, 0))
        self.put(Option.TLS_SESSION_REUSE, 1)
        self.assertEqual((self.get(Option.TLS_SESSION_TTL), self.get(Option.TLS_SESSION_REUSE)), (7200, 1))
        off = Profile(sessionResumption=False)
        self.refuses(errno.EPERM, Option.TLS_SESSION_REUSE, 1, off, word="SessionResumption")
        self.put(Option.TLS_SESSION_REUSE, 0, off)
        self.assertEqual((self.get(Option.TLS_SESSION_TTL, off), self.get(Option.TLS_SESSION_REUSE, off)), (0, 0))

    def test_context(self) -> None:
        """It copies every option of the other socket, and what they share; not the id and not the error."""
        other = self.socket(9)
        other.set(Option.TLS_ALPN, b"h2", Phase.NEW, Profile())
        other.set(Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem, Phase.NEW, Profile())
        credential = testCA().issue()
        other.set(Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM, Phase.NEW, Profile())
        other.set(Option.TLS_PRIVATE_KEY, credential.keyPEM, Phase.NEW, Profile())
        other.failed(SSAError(errno.EIO, "of the other"))
        self.put(Option.TLS_REMOTE_HOSTNAME, b"mine.example")
        self.assertEqual(self.options.get(Option.TLS_CONTEXT, Phase.NEW, None), struct.pack("=Q", 7))
        self.put(Option.TLS_CONTEXT, struct.pack("=Q", 9))
        self.assertEqual(self.options.get(Option.TLS_CONTEXT, Phase.NEW, None), struct.pack("=Q", 9))
        self.assertEqual((self.options.id, self.options.error), (7, ""))
        self.assertEqual((self.options.protocols, self.options.trusted), ((b"h2",), testCA().pem))
        self.assertEqual(self.options.remoteIdentity, None)
        self.assertEqual(len(self.options.credentials()), 1)
        self.assertIs(self.options.shared, other.shared)
        self.put(Option.TLS_ALPN, b"h3")
        self.assertEqual(other.protocols, (b"h2",))

    def test_contextRefused(self) -> None:
        """No such socket: EINVAL.  Another user's: EPERM, and nothing of it is there.  Trust that is not allowed: EPERM."""
        for number in (0, 1, 8, 2**64 - 1):
            self.refuses(errno.EINVAL, Option.TLS_CONTEXT, struct.pack("=Q", number), word=f"the id {number}")
        stranger = self.socket(9, owner=0)
        self.refuses(errno.EPERM, Option.TLS_CONTEXT, struct.pack("=Q", 9), word="another user's")
        stranger.owner = 1000
        stranger.trusted = testCA().pem
        self.refuses(
            errno.EPERM, Option.TLS_CONTEXT, struct.pack("=Q", 9), Profile(appCustomValidation=False), "AppCustomValidation"
        )


class AuthenticationTests(NarrowingCase):
    """TLS_REQUEST_PEER_AUTH and TLS_SERVER_OCSP_STAPLING."""

    def test_most(self) -> None:
        """Of what program and policy want, the more."""
        for word, least in (("off", 0), ("request", 1), ("require", 2)):
            profile = Profile(clientAuth=word)
            self.options = self.socket(20 + least)
            self.assertEqual(self.get(Option.TLS_REQUEST_PEER_AUTH, profile), least)
            for value in range(3):
                if value < least:
                    self.refuses(errno.EPERM, Option.TLS_REQUEST_PEER_AUTH, value, profile, word)
                else:
                    self.put(Option.TLS_REQUEST_PEER_AUTH, value, profile)
                    self.assertEqual(self.get(Option.TLS_REQUEST_PEER_AUTH, profile), value)
        for value in (-1, 3, 256):
            self.refuses(errno.EINVAL, Option.TLS_REQUEST_PEER_AUTH, value)

    def test_later(self) -> None:
        """A policy that asks for more when the socket listens is obeyed; an unknown word asks for the most."""
        self.put(Option.TLS_REQUEST_PEER_AUTH, 0)
        for word, least in (("request", 1), ("require", 2), ("surprise", 2)):
            self.assertEqual(self.options.clientAuthentication(Profile(clientAuth=word)), PeerAuthentication(least))

    def test_stapling(self) -> None:
        """On by either; off only where the policy has it off."""
        on = Profile(serverStapling=True)
        self.assertEqual((self.get(Option.TLS_SERVER_OCSP_STAPLING), self.get(Option.TLS_SERVER_OCSP_STAPLING, on)), (0, 1))
        self.refuses(errno.EPERM, Option.TLS_SERVER_OCSP_STAPLING, 0, on)
        self.put(Option.TLS_SERVER_OCSP_STAPLING, 1)
        self.assertEqual(self.get(Option.TLS_SERVER_OCSP_STAPLING), 1)
        self.put(Option.TLS_SERVER_OCSP_STAPLING, 0)
        self.assertFalse(self.options.staples(Profile()))
        self.assertTrue(self.options.staples(on))


class RevocationTests(NarrowingCase):
    """The five options about revocation."""

    SOURCES = (
        (Option.TLS_OCSP_STAPLED_CHECKS, "stapled"),
        (Option.TLS_OCSP_CHECKS, "ocsp"),
        (Option.TLS_CRL_CHECKS, "crl"),
        (Option.TLS_CACHED_REV_CHECKS, "cached"),
    )

    def test_checks(self) -> None:
        """Asked for by either; the program cannot switch off the policy's."""
        on = Profile(revocationChecks=True)
        self.assertEqual((self.get(Option.TLS_REVOCATION_CHECKS), self.get(Option.TLS_REVOCATION_CHECKS, on)), (0, 1))
        self.refuses(errno.EPERM, Option.TLS_REVOCATION_CHECKS, 0, on, "RevocationChecks is on")
        self.put(Option.TLS_REVOCATION_CHECKS, 1)
        self.assertEqual(self.get(Option.TLS_REVOCATION_CHECKS), 1)
        self.put(Option.TLS_REVOCATION_CHECKS, 0)
        self.assertEqual(self.options.revocationRules(Profile()), (False, REVOCATION_SOURCES))
        self.assertEqual(self.options.revocationRules(on), (True, REVOCATION_SOURCES))

    def test_dropped(self) -> None:
        """A source can be left out only where an answer is required; all of them cannot."""
        for option, source in self.SOURCES:
            self.refuses(errno.EPERM, option, 0, word="set TLS_REVOCATION_CHECKS first")
            self.assertEqual(self.get(option), 1, source)
        self.put(Option.TLS_REVOCATION_CHECKS, 1)
        left = set(REVOCATION_SOURCES)
        for option, source in self.SOURCES[:3]:
            self.put(option, 0)
            left.discard(source)
            self.assertEqual((self.get(option), self.options.revocationRules(Profile())), (0, (True, frozenset(left))))
        self.refuses(errno.EINVAL, self.SOURCES[3][0], 0, word="no source")
        self.put(self.SOURCES[0][0], 1)
        self.assertEqual(self.options.revocationRules(Profile())[1], {"stapled", "cached"})

    def test_soft(self) -> None:
        """Where no answer is required any more, all of the policy's sources count again."""
        self.put(Option.TLS_REVOCATION_CHECKS, 1)
        self.put(Option.TLS_CRL_CHECKS, 0)
        self.put(Option.TLS_REVOCATION_CHECKS, 0)
        self.assertEqual(self.options.revocationRules(Profile()), (False, REVOCATION_SOURCES))

    def test_added(self) -> None:
        """A source that the policy does not count: EPERM."""
        few = Profile(revocationSources=frozenset(("ocsp",)))
        self.refuses(errno.EPERM, Option.TLS_CRL_CHECKS, 1, few, "crl")
        self.put(Option.TLS_OCSP_CHECKS, 1, few)
        self.assertEqual((self.get(Option.TLS_CRL_CHECKS, few), self.get(Option.TLS_OCSP_CHECKS, few)), (0, 1))
