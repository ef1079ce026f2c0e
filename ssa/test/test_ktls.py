# SPDX-License-Identifier: MIT
"""
L{ssa.tls.ktls}: keys that open real records, and what the kernel is given.
"""

from __future__ import annotations

import errno
import socket
import sys
from typing import cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ssa.test.conformance.peers import clientContext, serverContext
from ssa.tls.ktls import CIPHER, KeyLog, TrafficKey, install

# RFC 8448 section 3, "Simple 1-RTT Handshake".
CLIENT_SECRET = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
CLIENT_KEY = bytes.fromhex("17422dda596ed5d9acd890e3c63f5051")
CLIENT_IV = bytes.fromhex("5b78923dee08579033e523d9")
SERVER_SECRET = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
SERVER_KEY = bytes.fromhex("9f02283b6c9c07efc26bb9f2ac92e356")
SERVER_IV = bytes.fromhex("cf782b88dd83549aadf1e984")
CLIENT_RECORD = bytes.fromhex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62"
    "974e1f5a6292a2977014bd1e3deae63aeebb21694915e4"
)


def opened(key: TrafficKey, record: bytes) -> tuple[int, bytes]:
    """
    Decrypt a record.

    @return: its type and its content.
    @raise InvalidTag: it is not protected with this key at this number.
    """
    nonce = int.from_bytes(key.iv, "big") ^ key.sequence
    inner = AESGCM(key.key).decrypt(nonce.to_bytes(12, "big"), record[5:], record[:5]).rstrip(b"\0")
    return inner[-1], inner[:-1]


def records(data: bytes) -> list[bytes]:
    """Cut a stream into records."""
    found = []
    while data:
        size = 5 + int.from_bytes(data[3:5], "big")
        found.append(data[:size])
        data = data[size:]
    return found


class TrafficKeyTests(SynchronousTestCase):
    """
    From secrets to keys to what the kernel takes.
    """

    def test_published(self) -> None:
        """The keys are those of RFC 8448, and open its record."""
        client, server = TrafficKey.fromSecret(CLIENT_SECRET), TrafficKey.fromSecret(SERVER_SECRET)
        self.assertEqual((client.key, client.iv), (CLIENT_KEY, CLIENT_IV))
        self.assertEqual((server.key, server.iv), (SERVER_KEY, SERVER_IV))
        self.assertEqual(opened(client, CLIENT_RECORD), (23, bytes(range(50))))

    def test_cryptoInfo(self) -> None:
        """The structure is the kernel's, in its order, the record's number in network order."""
        info = TrafficKey.fromSecret(CLIENT_SECRET, 0x0102).cryptoInfo()
        self.assertEqual(info[:4], b"\x04\x03\x33\x00" if sys.byteorder == "little" else b"\x03\x04\x00\x33")
        self.assertEqual(info[4:], CLIENT_IV[4:] + CLIENT_KEY + CLIENT_IV[:4] + bytes.fromhex("0000000000000102"))
        self.assertEqual(len(info), 40)

    def test_refused(self) -> None:
        """A secret of another hash, none at all, and numbers that no record has."""
        self.assertRaises(ValueError, TrafficKey.fromSecret, bytes(48))
        self.assertRaises(ValueError, TrafficKey.fromSecret, b"")
        self.assertRaises(ValueError, TrafficKey.fromSecret, bytes(32), -1)
        self.assertRaises(ValueError, TrafficKey.fromSecret, bytes(32), 1 << 64)

    def test_secret(self) -> None:
        """What is printed by mistake says no key."""
        self.assertEqual(repr(TrafficKey.fromSecret(CLIENT_SECRET, 3)), "TrafficKey(sequence=3)")


class KeyLogTests(SynchronousTestCase):
    """
    The secrets of real handshakes.
    """

    def shakeHands(self) -> tuple[SSL.Connection, SSL.Connection, bytes]:
        """
        Join a client and a server whose keys are logged.

        @return: both, and what the server sent after the client's Finished.
        """
        self.logs: dict[int, KeyLog] = {}
        ends = []
        for context in (clientContext(version=SSL.TLS1_3_VERSION), serverContext(version=SSL.TLS1_3_VERSION)):
            context.set_tls13_ciphersuites(CIPHER.encode())
            context.set_keylog_callback(lambda connection, line: self.logs[id(connection)].logged(line))
            end = SSL.Connection(context, None)
            self.logs[id(end)] = KeyLog()
            ends.append(end)
        client, server = ends
        client.set_connect_state()
        server.set_accept_state()
        self.assertRaises(SSL.WantReadError, client.do_handshake)
        server.bio_write(client.bio_read(65536))
        self.assertRaises(SSL.WantReadError, server.do_handshake)
        client.bio_write(server.bio_read(65536))
        client.do_handshake()
        server.bio_write(client.bio_read(65536))
        server.do_handshake()
        return client, server, server.bio_read(65536)

    def test_realRecords(self) -> None:
        """Both sides derive keys that open the other's records; the server's tickets count."""
        client, server, flush = self.shakeHands()
        tickets = records(flush)
        self.assertTrue(tickets)
        server.send(b"from the server")
        client.send(b"from the client")
        fromServer, fromClient = server.bio_read(65536), client.bio_read(65536)
        for end, isServer in ((client, False), (server, True)):
            sent, received = (len(tickets), 0) if isServer else (0, len(tickets))
            sending, receiving = self.logs[id(end)].keys(isServer, sent, received)
            ofServer, ofClient = (sending, receiving) if isServer else (receiving, sending)
            self.assertEqual(opened(ofServer, fromServer), (23, b"from the server"))
            self.assertEqual(opened(ofClient, fromClient), (23, b"from the client"))
            uncounted = TrafficKey(ofServer.key, ofServer.iv, ofServer.sequence + 1)
            self.assertRaises(InvalidTag, opened, uncounted, fromServer)
            kinds = [opened(TrafficKey(ofServer.key, ofServer.iv, n), each) for n, each in enumerate(tickets)]
            self.assertEqual([(kind, content[0]) for kind, content in kinds], [(22, 4)] * len(tickets))

    def test_unknown(self) -> None:
        """Without the lines there are no keys; other lines are passed over."""
        log = KeyLog()
        log.logged(b"CLIENT_RANDOM " + b"00" * 32 + b" " + b"11" * 48)
        log.logged(b"CLIENT_HANDSHAKE_TRAFFIC_SECRET " + b"00" * 32 + b" " + b"22" * 32)
        self.assertRaises(ValueError, log.keys, False)
        log.logged(b"CLIENT_TRAFFIC_SECRET_0 " + b"00" * 32 + b" " + b"33" * 32)
        self.assertRaises(ValueError, log.keys, True)


class RecordingSocket:
    """Notes the options that are set."""

    def __init__(self, failing: int = 0) -> None:
        self.calls: list[tuple[int, int, bytes]] = []
        self._failing = failing

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        """Note it, or fail the last one."""
        self.calls.append((level, name, value))
        if len(self.calls) == self._failing:
            raise OSError(errno.ENOENT, "no such thing")


class InstallTests(SynchronousTestCase):
    """
    What the kernel is told.
    """

    sending, receiving = TrafficKey.fromSecret(CLIENT_SECRET, 0), TrafficKey.fromSecret(SERVER_SECRET, 2)

    def test_options(self) -> None:
        """The protocol above TCP first, then a key for each direction."""
        sock = RecordingSocket()
        install(cast("socket.socket", sock), self.sending, self.receiving)
        self.assertEqual(
            sock.calls, [(6, 31, b"tls"), (282, 1, self.sending.cryptoInfo()), (282, 2, self.receiving.cryptoInfo())]
        )

    def test_noKernelTLS(self) -> None:
        """A kernel without it says so, and nothing else is tried."""
        sock = RecordingSocket(failing=1)
        self.assertRaises(OSError, install, cast("socket.socket", sock), self.sending, self.receiving)
        self.assertEqual(len(sock.calls), 1)

    def test_realKernel(self) -> None:
        """The kernel takes the structures, and data passes."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            self.addCleanup(client.close)
            server = listener.accept()[0]
            self.addCleanup(server.close)
        try:
            install(client, self.sending, self.receiving)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            raise SkipTest("this kernel has no kTLS") from None
        install(server, self.receiving, self.sending)
        client.sendall(b"there")
        self.assertEqual(server.recv(64), b"there")
        server.sendall(b"and back")
        self.assertEqual(client.recv(64), b"and back")
