# SPDX-License-Identifier: MIT
"""Tests of L{ssa.options}: every rule for every option."""

from __future__ import annotations

import errno
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ssa.api import MAXIMUM_OPTION_SIZE, Option
from ssa.errors import Cause, SSAError
from ssa.options import (
    LARGEST_FILE,
    MOST_CREDENTIALS,
    MOST_NAMES,
    TABLE,
    IConnectionInfo,
    Phase,
    SocketOptions,
)
from ssa.policy.profile import Profile
from ssa.test.pki import testCA, testKey

SET_ONLY = {
    Option.TLS_TRUSTED_PEER_CERTIFICATES, Option.TLS_PRIVATE_KEY, Option.TLS_UPGRADE, Option.TLS_DISABLE_CIPHER,
    Option.TLS_ENABLE_CIPHER,
}  # fmt: skip
GET_ONLY = {
    Option.TLS_PEER_IDENTITY, Option.TLS_PEER_CERTIFICATE_CHAIN, Option.TLS_ID, Option.TLS_CHOSEN_CIPHER,
    Option.TLS_ERROR, Option.TLS_VERSION_CONN, Option.TLS_CHANNEL_BINDING, Option.TLS_DATA_PATH,
    Option.TLS_KEY_EXCHANGE, Option.TLS_RESUMED_SESSION,
}  # fmt: skip
CONNECTED = GET_ONLY - {Option.TLS_ID, Option.TLS_ERROR}


@implementer(IConnectionInfo)
class FakeConnection:
    """A connection with an answer to everything."""

    def __init__(self, accepted: bool = False) -> None:
        self.accepted = accepted

    def peerIdentity(self) -> str:
        return "CN=peer"

    def peerChainPEM(self) -> bytes:
        return b"PEM"

    def cipher(self) -> str:
        return "TLS_AES_128_GCM_SHA256"

    def version(self) -> int:
        return 0x0304

    def channelBinding(self) -> bytes:
        return b"b" * 32

    def group(self) -> str:
        raise Cause.NO_DATA.error("group")

    def applicationProtocol(self) -> bytes:
        return b"h2"

    def serverName(self) -> str:
        return "asked.example"

    def dataPath(self) -> str:
        return "relay"

    def resumed(self) -> bool:
        return True


class OptionsCase(SynchronousTestCase):
    """A socket's options."""

    def setUp(self) -> None:
        self.options = SocketOptions(7)

    def put(
        self, option: int, value: bytes, phase: Phase = Phase.NEW, profile: Profile | None = None, file: str = ""
    ) -> None:
        self.options.set(option, value, phase, profile or Profile(), file)

    def get(self, option: int, phase: Phase = Phase.NEW, connection: FakeConnection | None = None) -> bytes:
        return self.options.get(option, phase, connection)

    def assertPutFails(self, number: int, option: int, value: bytes, *words: str, **named: object) -> None:
        with self.assertRaises(SSAError) as caught:
            self.put(option, value, **named)  # type: ignore[arg-type]
        self.assertEqual(errno.errorcode[caught.exception.errno], errno.errorcode[number], caught.exception.reason)
        for word in words:
            self.assertIn(word, caught.exception.reason)
        self.assertEqual(self.options.error, caught.exception.reason)

    def assertGetFails(self, number: int, option: int, *arguments: object) -> None:
        with self.assertRaises(SSAError) as caught:
            self.get(option, *arguments)  # type: ignore[arg-type]
        self.assertEqual(errno.errorcode[caught.exception.errno], errno.errorcode[number])


class RuleTests(OptionsCase):
    """The rules that are common to all options."""

    def test_unknown(self) -> None:
        """Numbers without an option."""
        for number in {*range(-2, 300), 2**31 - 1} - set(TABLE):
            self.assertPutFails(errno.ENOPROTOOPT, number, b"\1\0\0\0")
            self.assertGetFails(errno.ENOPROTOOPT, number)

    def test_supported(self) -> None:
        """Every option of the socket API, and nothing else."""
        self.assertEqual(sorted(TABLE), sorted(Option))

    def test_onlyGet(self) -> None:
        """What can only be read, in every phase."""
        for option in GET_ONLY:
            for phase in Phase:
                self.assertPutFails(errno.ENOPROTOOPT, option, b"x", option.name, phase=phase)

    def test_onlySet(self) -> None:
        """What can only be set; a private key is EACCES."""
        for option in SET_ONLY:
            number = errno.EACCES if option is Option.TLS_PRIVATE_KEY else errno.ENOPROTOOPT
            self.assertGetFails(number, option)
            self.assertGetFails(number, option, Phase.CONNECTED, FakeConnection())

    def test_tooLate(self) -> None:
        """All settable options are for new sockets."""
        for option in set(TABLE) - GET_ONLY:
            for phase in (Phase.CONNECTING, Phase.LISTENING, Phase.CONNECTED):
                self.assertPutFails(errno.EISCONN, option, b"x", phase=phase)

    def test_notConnected(self) -> None:
        """What only a connection can tell."""
        for option in CONNECTED:
            for phase in (Phase.NEW, Phase.CONNECTING, Phase.LISTENING):
                self.assertGetFails(errno.ENOTCONN, option, phase)

    def test_tooLong(self) -> None:
        """More than 64 KiB from the program, more than 1 MiB from a file."""
        for option in set(TABLE) - GET_ONLY:
            self.assertPutFails(errno.EMSGSIZE, option, bytes(MAXIMUM_OPTION_SIZE + 1))
        padding = b"#" * MAXIMUM_OPTION_SIZE
        self.put(Option.TLS_CERTIFICATE_CHAIN, padding + testCA().issue().chainPEM, file="/x")
        self.assertPutFails(errno.EMSGSIZE, Option.TLS_CERTIFICATE_CHAIN, bytes(LARGEST_FILE + 1), file="/x")

    def test_notPEM(self) -> None:
        """PEM options take nothing else; the path is named."""
        for option in (
            Option.TLS_TRUSTED_PEER_CERTIFICATES,
            Option.TLS_CERTIFICATE_CHAIN,
            Option.TLS_PRIVATE_KEY,
        ):
            self.assertPutFails(errno.EINVAL, option, b"")
            self.assertPutFails(errno.EINVAL, option, b"\0")
            self.assertPutFails(errno.EINVAL, option, b"junk", "/etc/x.pem", file="/etc/x.pem")

    def test_fileWhereNoneBelongs(self) -> None:
        """Only PEM options come from files."""
        self.assertPutFails(errno.EINVAL, Option.TLS_REMOTE_HOSTNAME, b"a.example", file="/etc/hostname")

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(sorted(TABLE)), st.binary(max_size=200), st.sampled_from(list(Phase)))
    def test_anyValue(self, option: int, value: bytes, phase: Phase) -> None:
        """Any bytes are taken or refused with an errno; a refusal changes nothing."""
        options = SocketOptions(1)
        before = {name: each for name, each in vars(options).items() if name != "error"}
        try:
            options.set(option, value, phase, Profile())
        except SSAError:
            self.assertNotEqual(options.error, "")
            self.assertEqual({name: each for name, each in vars(options).items() if name != "error"}, before)


class ValueTests(OptionsCase):
    """What the options take and give."""

    def test_remoteHostname(self) -> None:
        """With or without the final NUL; it comes back with it."""
        self.assertEqual(self.get(Option.TLS_REMOTE_HOSTNAME), b"\0")
        for value in (b"Server.example", b"Server.example\0", b"192.0.2.1", b"::1\0"):
            self.put(Option.TLS_REMOTE_HOSTNAME, value)
            self.assertEqual(self.get(Option.TLS_REMOTE_HOSTNAME), value.rstrip(b"\0") + b"\0")
        for value in (b"", b"\0", b"a\0b", b"a\0\0", b"\xc3\xbc.example", b"a" * 254, b"a b", b"1.2.3"):
            self.assertPutFails(errno.EINVAL, Option.TLS_REMOTE_HOSTNAME, value)
        self.assertEqual(self.get(Option.TLS_REMOTE_HOSTNAME), b"::1\0")

    def test_hostname(self) -> None:
        """Repeatable and bounded; an accepted socket tells what the client asked for."""
        self.put(Option.TLS_HOSTNAME, b"a.example")
        self.put(Option.TLS_HOSTNAME, b"B.example\0")
        self.put(Option.TLS_HOSTNAME, b"a.example")
        self.assertEqual(self.get(Option.TLS_HOSTNAME), b"a.example,b.example\0")
        for value in (b"192.0.2.1", b"*.example", b"*.", b"*", b"a.*.example", b"w*.b.example", b"*.*.b.example", b""):
            self.assertPutFails(errno.EINVAL, Option.TLS_HOSTNAME, value)
        self.assertEqual(self.get(Option.TLS_HOSTNAME, Phase.CONNECTED, FakeConnection(True)), b"asked.example\0")
        self.put(Option.TLS_HOSTNAME, b"*.W.example")
        self.assertEqual(self.options.hostnames[-1], "*.w.example")
        for number in range(MOST_NAMES - 3):
            self.put(Option.TLS_HOSTNAME, f"n{number}.example".encode())
        self.assertPutFails(errno.EMSGSIZE, Option.TLS_HOSTNAME, b"more.example")

    def test_protocols(self) -> None:
        """A list; after the handshake the one chosen."""
        self.put(Option.TLS_ALPN, b"h2,http/1.1\0")
        self.assertEqual(self.options.protocols, (b"h2", b"http/1.1"))
        self.assertEqual(self.get(Option.TLS_ALPN), b"h2,http/1.1\0")
        self.assertEqual(self.get(Option.TLS_ALPN, Phase.CONNECTED, FakeConnection()), b"h2\0")
        for value in (b"h2,", b",", b"h2,h2", b"a b,h2", b"x" * 256, b"\x80", b",".join(b"%d" % n for n in range(65))):
            self.assertPutFails(errno.EINVAL, Option.TLS_ALPN, value)
        self.put(Option.TLS_ALPN, b"")
        self.assertEqual(self.options.protocols, ())

    def test_trusted(self) -> None:
        """PEM of one or more certificates, unless the policy forbids it."""
        self.put(Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem + b"\0")
        self.assertEqual(self.options.trusted, testCA().pem)
        forbidden = Profile(appCustomValidation=False)
        self.assertPutFails(errno.EPERM, Option.TLS_TRUSTED_PEER_CERTIFICATES, testCA().pem, profile=forbidden)

    def test_chainAndKey(self) -> None:
        """In either order; the chain comes back."""
        one, two = testCA().issue(["a.example"]), testCA().issue(["b.example"], key="rsa")
        self.put(Option.TLS_CERTIFICATE_CHAIN, one.chainPEM)
        self.put(Option.TLS_PRIVATE_KEY, two.keyPEM)
        self.put(Option.TLS_CERTIFICATE_CHAIN, two.chainPEM)
        self.put(Option.TLS_PRIVATE_KEY, one.keyPEM)
        self.assertEqual([c.certificate for c in self.options.credentials()], [one.certificate, two.certificate])
        self.assertEqual(self.get(Option.TLS_CERTIFICATE_CHAIN), one.chainPEM + two.chainPEM + b"\0")
        self.assertEqual(SocketOptions(1).credentials(), ())

    def test_renewal(self) -> None:
        """A chain for the same names and kind of key takes the place of the one before, with its key."""
        for number in range(2):
            credential = testCA().issue(["a.example"], key=testKey("ec", number))
            self.put(Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
            self.put(Option.TLS_PRIVATE_KEY, credential.keyPEM)
        (found,) = self.options.credentials()
        self.assertEqual(found.certificate, credential.certificate)

    def test_mismatch(self) -> None:
        """Key and chain that do not go together: ENOKEY when they are needed."""
        self.put(Option.TLS_CERTIFICATE_CHAIN, testCA().issue(key=testKey("ec", 1)).chainPEM)
        self.put(Option.TLS_PRIVATE_KEY, testCA().issue(key=testKey("ec", 2)).keyPEM)
        with self.assertRaises(SSAError) as caught:
            self.options.credentials()
        self.assertEqual(caught.exception.errno, errno.ENOKEY)

    def test_encryptedKey(self) -> None:
        """An encrypted key is refused, in words."""
        self.assertPutFails(errno.EINVAL, Option.TLS_PRIVATE_KEY, testCA().issue().encryptedKeyPEM, "encrypted")

    def test_tooMany(self) -> None:
        """Chains and keys are bounded."""
        for number in range(MOST_CREDENTIALS):
            credential = testCA().issue([f"{number}.example"], key=testKey("ec", number))
            self.put(Option.TLS_CERTIFICATE_CHAIN, credential.chainPEM)
            self.put(Option.TLS_PRIVATE_KEY, credential.keyPEM)
        more = testCA().issue(["more.example"], key=testKey("ec", 999))
        self.assertPutFails(errno.EMSGSIZE, Option.TLS_CERTIFICATE_CHAIN, more.chainPEM)
        self.assertPutFails(errno.EMSGSIZE, Option.TLS_PRIVATE_KEY, more.keyPEM)
        self.assertEqual(len(self.options.credentials()), MOST_CREDENTIALS)

    def test_upgrade(self) -> None:
        """TLS_UPGRADE is the interceptor's; what comes here is a mistake, and is named."""
        for value, word in (
            (b"\0" * 7, "7 bytes"),
            (struct.pack("=ii", 3, 2), "role"),
            (struct.pack("=ii", 3, 1), "no connected TCP socket"),
        ):
            self.assertPutFails(errno.EINVAL, Option.TLS_UPGRADE, value, word)

    def test_connected(self) -> None:
        """What a connection tells, in the form of the socket API."""
        for option, expected in (
            (Option.TLS_PEER_IDENTITY, b"CN=peer\0"),
            (Option.TLS_PEER_CERTIFICATE_CHAIN, b"PEM\0"),
            (Option.TLS_CHOSEN_CIPHER, b"TLS_AES_128_GCM_SHA256\0"),
            (Option.TLS_VERSION_CONN, struct.pack("=i", 0x0304)),
            (Option.TLS_CHANNEL_BINDING, b"b" * 32),
            (Option.TLS_DATA_PATH, b"relay\0"),
            (Option.TLS_RESUMED_SESSION, struct.pack("=i", 1)),
        ):
            self.assertEqual(self.get(option, Phase.CONNECTED, FakeConnection()), expected)
        self.assertGetFails(errno.ENODATA, Option.TLS_KEY_EXCHANGE, Phase.CONNECTED, FakeConnection())
        self.assertEqual(self.get(Option.TLS_ID), struct.pack("=Q", 7))

    def test_error(self) -> None:
        """TLS_ERROR: "" at first, the reason after a failure, "" after a success; a failed get leaves it alone."""
        self.assertEqual(self.get(Option.TLS_ERROR), b"\0")
        self.assertPutFails(errno.EINVAL, Option.TLS_REMOTE_HOSTNAME, b"")
        line = self.get(Option.TLS_ERROR)
        self.assertIn(b"TLS_REMOTE_HOSTNAME", line)
        self.assertGetFails(errno.ENOTCONN, Option.TLS_VERSION_CONN)
        self.assertEqual(self.get(Option.TLS_ERROR), line)
        self.put(Option.TLS_REMOTE_HOSTNAME, b"a.example")
        self.assertEqual(self.get(Option.TLS_ERROR), b"\0")

    def test_inherit(self) -> None:
        """An accepted socket has its listener's options, an id of its own and no error; changes stay apart."""
        self.put(Option.TLS_HOSTNAME, b"a.example")
        self.options.failed(Cause.POLICY.error())
        child = self.options.inherit(8)
        self.assertEqual((child.hostnames, child.id, child.error), (("a.example",), 8, ""))
        child.set(Option.TLS_HOSTNAME, b"b.example", Phase.NEW, Profile())
        self.assertEqual(self.options.hostnames, ("a.example",))
        self.assertNotIn("a.example", repr(self.options))
