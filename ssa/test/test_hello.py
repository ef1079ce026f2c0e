# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.hello} and L{ssa.tls.codepoints}: what the first message of a peer says."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from ssa.alerts import ALERTS, alertName, alertNumber
from ssa.test.fakes import tcpPair
from ssa.tls.codepoints import cipherName, groupName, signatureName, versionName
from ssa.tls.diagnosis import FirstWords, describeHello, offered
from ssa.tls.hello import LARGEST_HELLO, Hello, describeStranger, isComplete, readHello


def clientHello(name: bytes = b"server.example", protocols: tuple[bytes, ...] = (b"h2", b"http/1.1")) -> bytes:
    """A ClientHello of OpenSSL's."""
    connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    connection.set_connect_state()
    if name:
        connection.set_tlsext_host_name(name)
    if protocols:
        connection.set_alpn_protos(list(protocols))
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(LARGEST_HELLO)


def record(message: bytes, kind: int = 22) -> bytes:
    """A record with some content."""
    return bytes((kind, 3, 1)) + len(message).to_bytes(2, "big") + message


def handshake(kind: int, body: bytes) -> bytes:
    """A record with one handshake message."""
    return record(bytes((kind,)) + len(body).to_bytes(3, "big") + body)


def extensions(*pairs: tuple[int, bytes]) -> bytes:
    """A list of extensions."""
    packed = b"".join(struct.pack(">HH", kind, len(content)) + content for kind, content in pairs)
    return struct.pack(">H", len(packed)) + packed


def oldHello(*rest: bytes, ciphers: bytes = b"\x00\x2f\x0a\x0a\x00\xff") -> bytes:
    """A ClientHello of TLS 1.1 by hand."""
    body = b"\x03\x02" + bytes(32) + b"\x00" + struct.pack(">H", len(ciphers)) + ciphers + b"\x01\x00" + b"".join(rest)
    return handshake(1, body)


def serverHello(version: bytes = b"\x03\x01", cipher: bytes = b"\x00\x05", *rest: bytes, random: bytes = bytes(32)) -> bytes:
    """A ServerHello by hand."""
    return handshake(2, version + random + b"\x00" + cipher + b"\x00" + b"".join(rest))


class ReadTests(SynchronousTestCase):
    """What is read."""

    def test_openSSL(self) -> None:
        """A real ClientHello, in one record or in many."""
        data = clientHello()
        hello = readHello(data)
        assert hello is not None
        self.assertTrue(hello.isClient)
        self.assertEqual(hello.versions, (0x0304, 0x0303))
        self.assertEqual(hello.serverName, "server.example")
        self.assertEqual(hello.protocols, (b"h2", b"http/1.1"))
        self.assertIn(0x1301, hello.ciphers)
        self.assertIn(29, hello.groups)
        self.assertIn(0x0403, hello.signatures)
        message = data[5:]
        for size in (1, 7, 500):
            spread = b"".join(record(message[i : i + size]) for i in range(0, len(message), size))
            if len(spread) <= LARGEST_HELLO:
                self.assertEqual(readHello(spread), hello)

    def test_cutOff(self) -> None:
        """The beginning alone says nothing, at whatever byte it ends."""
        data = clientHello()
        for size in range(len(data)):
            self.assertIsNone(readHello(data[:size]))
            self.assertFalse(isComplete(data[:size]), size)
        self.assertTrue(isComplete(data))

    def test_old(self) -> None:
        """Before TLS 1.3 the version is in the old place; GREASE is left out, no extension at all is allowed."""
        self.assertEqual(readHello(oldHello()), Hello(True, (0x0302,), (0x2F, 0xFF)))

    def test_serverHello(self) -> None:
        """The server's answer: of TLS 1.0, of TLS 1.3, and the one that asks again."""
        self.assertEqual(readHello(serverHello()), Hello(False, (0x0301,), (5,)))
        new = extensions((43, b"\x03\x04"), (51, b"\x11\xec" + bytes(10)))
        self.assertEqual(
            readHello(serverHello(b"\x03\x03", b"\x13\x01", new)), Hello(False, (0x0304,), (0x1301,), (0x11EC,))
        )
        retry = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
        again = readHello(serverHello(b"\x03\x03", b"\x13\x01", new, random=retry))
        self.assertTrue(again is not None and again.isRetry)

    def test_malformed(self) -> None:
        """Each length that does not fit is an error."""
        for data, words in (
            (handshake(1, b"\x03"), "2 bytes expected"),
            (oldHello(ciphers=b"\x00"), "no list of numbers"),
            (oldHello(b"\x00\x05\x00"), "5 bytes expected"),
            (oldHello(extensions((0, b""), (0, b""))), "repeated"),
            (oldHello(extensions((0, b"\x00\x05\x00\x00\x01"))), "5 bytes expected"),
            (oldHello(extensions(), b"x"), "left over"),
            (b"\x16\x02\x00\x00\x05hello", "no TLS record"),
            (b"\x16\x03\x01\x00\x00", "no TLS record"),
            (record(b"\x01\xff\xff\xff"), "too long"),
        ):
            error = self.assertRaises(ValueError, readHello, data)
            self.assertIn(words, str(error))
            self.assertTrue(isComplete(data))

    def test_others(self) -> None:
        """Other first messages are no hello, and more of them tells no more."""
        for data in (b"", b"GET / HTTP/1.0\r\n", record(b"\x02\x28", 21), handshake(11, b"")):
            self.assertIsNone(readHello(data))
        self.assertFalse(isComplete(b""))
        self.assertTrue(isComplete(b"G"))
        self.assertTrue(isComplete(record(b"\x02\x28", 21)))

    def test_strangers(self) -> None:
        """What speaks another protocol is recognized, and not quoted."""
        for data, words in (
            (b"HTTP/1.1 400 secret", "it speaks HTTP"),
            (b"220 secret ESMTP", "it speaks SMTP or FTP, before STARTTLS"),
            (b"SSH-2.0-secret", "it speaks SSH"),
            (b"secret", "its first bytes are no TLS record"),
            (b"\x80\x2e\x01\x00\x02" + bytes(40), "it speaks SSL 2.0, or asks for SSLv2 in its format"),
            (record(b"\x02\x28", 21), ""),
            (b"", ""),
        ):
            self.assertEqual(describeStranger(data), words)

    @settings(deadline=None)
    @given(st.binary(max_size=300))
    def test_anything(self, data: bytes) -> None:
        """Any bytes at all are read, or are a C{ValueError}."""
        for each in (data, b"\x16" + data, record(data[:200]), handshake(1, data), handshake(2, data)):
            isComplete(each)
            describeStranger(each)
            with contextlib.suppress(ValueError):
                readHello(each)

    @settings(deadline=None)
    @given(st.data())
    def test_damaged(self, data: st.DataObject) -> None:
        """A real message in which some bytes are changed, or that is cut, is read, or is a C{ValueError}."""
        hello = bytearray(_REAL)
        for _ in range(data.draw(st.integers(0, 4))):
            hello[data.draw(st.integers(0, len(hello) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(ValueError):
            readHello(bytes(hello[: data.draw(st.integers(0, len(hello)))]))

    @settings(deadline=None)
    @given(
        st.lists(st.integers(0, 0xFFFF), max_size=50),
        st.lists(st.integers(0, 0xFFFF), max_size=20),
        st.lists(st.binary(min_size=3, max_size=20), max_size=5),
        st.text(st.characters(codec="ascii", categories=("Ll", "Nd")), min_size=1, max_size=60),
    )
    def test_roundTrip(self, ciphers: list[int], groups: list[int], protocols: list[bytes], name: str) -> None:
        """What is written is what is read."""
        meant = [value for value in ciphers if not (value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF)]
        alpn = b"".join(bytes((len(each),)) + each for each in protocols)
        sni = b"\x00" + struct.pack(">H", len(name)) + name.encode()
        body = extensions(
            (0, struct.pack(">H", len(sni)) + sni),
            (10, struct.pack(f">H{len(groups)}H", 2 * len(groups), *groups)),
            (16, struct.pack(">H", len(alpn)) + alpn),
        )
        found = readHello(oldHello(body, ciphers=struct.pack(f">{len(ciphers)}H", *ciphers)))
        assert found is not None
        self.assertEqual(list(found.ciphers), meant)
        self.assertEqual(found.protocols, tuple(protocols))
        self.assertEqual(found.serverName, name)


_REAL = clientHello()


class NameTests(SynchronousTestCase):
    """Names of numbers."""

    def test_names(self) -> None:
        """Known numbers have names, others are shown as numbers."""
        self.assertEqual([versionName(each) for each in (0x0300, 0x0304, 0x7F12)], ["SSLv3", "TLSv1.3", "0x7f12"])
        self.assertEqual([groupName(each) for each in (29, 4588, 99)], ["X25519", "X25519MLKEM768", "0x0063"])
        self.assertEqual([signatureName(each) for each in (0x0807, 0x9999)], ["ed25519", "0x9999"])
        self.assertEqual(cipherName(0xC02F), "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")
        self.assertEqual([cipherName(each) for each in (0x1301, 0x002F, 0x0005, 0xEEEE)], [
            "TLS_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA", "RC4-SHA", "0xeeee"
        ])  # fmt: skip

    def test_alerts(self) -> None:
        """Alerts have numbers and names, as Python's own table has them."""
        for number, name in ALERTS.items():
            self.assertEqual(alertNumber(name), number)
            self.assertEqual(alertNumber(name.replace("_", " ")), number)
        self.assertEqual(alertName(40), "handshake_failure (40)")
        self.assertEqual(alertName(200), "an unknown alert (200)")
        self.assertIsNone(alertNumber("no such thing"))
        for known in ssl.AlertDescription:
            ours = known.name.removeprefix("ALERT_DESCRIPTION_").lower()
            self.assertEqual(ALERTS[int(known)].replace("canceled", "cancelled"), ours.replace("canceled", "cancelled"))

    def test_describe(self) -> None:
        """The most telling comes first, and lists do not become endless."""
        many = tuple(range(0xE000, 0xE100))
        text = describeHello(Hello(True, (0x0304,), many, (29,), (0x0807,), (b"h2",), "a.example"))
        self.assertTrue(text.startswith("versions TLSv1.3, ciphers 0xe000 "))
        self.assertIn("and 244 more, groups X25519, ALPN h2, name a.example, signatures ed25519", text)

    def test_offered(self) -> None:
        """What a context offers is found out from itself, and kept with it."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(0x0303)
        context.set_cipher_list(b"ECDHE-RSA-AES128-GCM-SHA256")
        hello = offered(context)
        assert hello is not None
        self.assertEqual((hello.versions, hello.ciphers[0]), ((0x0303,), 0xC02F))
        self.assertIs(offered(context), hello)


class FirstWordsTests(SynchronousTestCase):
    """Looking at what OpenSSL reads next."""

    def setUp(self) -> None:
        self.ours, self.theirs = tcpPair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)
        self.theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.words = FirstWords(self.ours)

    def send(self, data: bytes) -> None:
        self.theirs.sendall(data)
        self.ours.settimeout(5)
        while len(self.ours.recv(65536, socket.MSG_PEEK)) < len(data):
            pass

    def test_nothingIsTaken(self) -> None:
        """The bytes stay for OpenSSL; nothing there yet is no error."""
        self.words.listen()
        self.assertEqual(self.words.heard, b"")
        self.send(_REAL)
        self.words.listen()
        self.words.listen()
        self.assertEqual(self.words.heard, _REAL)
        self.assertEqual(self.ours.recv(65536), _REAL)

    def test_twoParts(self) -> None:
        """A message in two segments."""
        self.send(_REAL[:100])
        self.words.listen()
        self.ours.recv(100)
        self.send(_REAL[100:])
        self.words.listen()
        self.assertEqual(self.words.heard, _REAL)

    def test_gap(self) -> None:
        """OpenSSL has taken more than was seen: what follows is not put together with what was seen."""
        self.send(_REAL[:100])
        self.words.listen()
        self.send(_REAL[:200])
        self.ours.recv(250)
        self.words.listen()
        self.assertEqual(self.words.heard, _REAL[:100])

    def test_bounded(self) -> None:
        """No more than a record's worth is looked at."""
        self.theirs.settimeout(5)
        self.send(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + bytes(30000))
        for _ in range(5):
            self.words.listen()
        self.assertLessEqual(len(self.words.heard), LARGEST_HELLO + 4096)

    def test_reset(self) -> None:
        """A reset is told, since the kernel tells it only once."""
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.theirs.close()
        self.assertRaises(ConnectionResetError, self.words.listen)
