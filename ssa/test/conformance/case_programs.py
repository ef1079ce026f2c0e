# SPDX-License-Identifier: MIT
"""
Event loops that know nothing of TLS sockets: asyncio, Twisted, selectors, socketserver, http.
"""

from __future__ import annotations

import asyncio
import http.client
import http.server
import os
import selectors
import socket
import socketserver
import subprocess
import sys
import threading
from typing import Any

from ssa.test.conformance.case import Thread, TLSCase, pattern
from ssa.test.conformance.peers import SECONDS, Peer, echo
from ssa.test.conformance.runner import PATIENCE
from ssa.test.pki import testCA

TWISTED_CLIENT = """
import os, socket, sys
from twisted.internet import reactor, tcp
from twisted.internet.protocol import ClientFactory, Protocol
from ssa.api import IPPROTO_TLS, Option

class Connector(tcp.Client):
    "A Twisted client whose socket is made with another protocol number: nothing else is different."
    def createInternetSocket(self):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, IPPROTO_TLS)
        sock.setsockopt(IPPROTO_TLS, Option.TLS_TRUSTED_PEER_CERTIFICATES, os.environb[b"CA"])
        return sock

class Conversation(Protocol):
    def connectionMade(self):
        self.data = b""
        self.transport.write(b"x" * 500000)
    def dataReceived(self, data):
        self.data += data
        if len(self.data) == 500000:
            assert self.transport.getPeer().port == PORT
            self.transport.loseConnection()
    def connectionLost(self, reason):
        print(len(self.data), reason.type.__name__, flush=True)
        reactor.stop()

class Factory(ClientFactory):
    protocol = Conversation
    def clientConnectionFailed(self, connector, reason):
        print(reason, flush=True)
        reactor.stop()

PORT = int(sys.argv[1])
factory = Factory()
connector = tcp.Connector("127.0.0.1", PORT, factory, 10, None, reactor)
connector._makeTransport = lambda: Connector("127.0.0.1", PORT, None, connector, reactor)
connector.connect()
reactor.run()
"""

TWISTED_SERVER = """
import os, socket, sys
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from ssa.test.conformance.case import TLSCase

class Echo(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)
    def readConnectionLost(self):
        self.transport.loseConnection()
    def connectionLost(self, reason):
        if not os.environ.get("KEEP"):
            reactor.stop()

CASE = TLSCase()
listener = CASE.listener(flags=socket.SOCK_NONBLOCK)
port = reactor.adoptStreamPort(listener.fileno(), socket.AF_INET, Factory.forProtocol(Echo))
print(port.getHost().port, flush=True)
reactor.run()
"""


class Asyncio(TLSCase):
    """
    asyncio's streams and socket calls.

    It hands a socket's protocol number to getaddrinfo(3), which knows 205 no more than it knows MPTCP's 262: the program
    calls its own socket object one of protocol 0.
    """

    def asyncioSocket(self) -> socket.socket:
        """A TLS socket as asyncio takes it."""
        sock = self.clientSocket(flags=socket.SOCK_NONBLOCK)
        return self.keep(socket.socket(sock.family, sock.type, 0, fileno=sock.detach()))

    def test_client(self) -> None:
        """A connection made with loop.sock_connect, then streams."""
        server = self.server(echo)
        data = pattern(1_000_000)

        async def main() -> bytes:
            sock = self.asyncioSocket()
            await asyncio.get_running_loop().sock_connect(sock, server.address)
            reader, writer = await asyncio.open_connection(sock=sock)
            self.assertEqual(writer.get_extra_info("peername"), server.address)

            async def send() -> None:
                writer.write(data)
                await writer.drain()
                writer.write_eof()

            sending = asyncio.create_task(send())
            received = await reader.read()
            await sending
            writer.close()
            await writer.wait_closed()
            return received

        self.assertTrue(asyncio.run(asyncio.wait_for(main(), 1.5 * SECONDS)) == data)

    def test_failure(self) -> None:
        """An exception with the errno of the handshake."""
        listener = self.plainListener()
        answering = Thread(lambda: listener.accept()[0].sendall(b"SSH-2.0-what\r\n"))

        async def main() -> None:
            sock = self.asyncioSocket()
            with self.assertRaises(OSError):
                await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
            self.assertNotEqual(self.tlsError(sock), "")

        asyncio.run(asyncio.wait_for(main(), 1.5 * SECONDS))
        answering.result()

    def test_server(self) -> None:
        """start_server on a TLS listener, twenty clients at a time."""
        listener = self.listener(flags=socket.SOCK_NONBLOCK)
        address = listener.getsockname()
        data = pattern(100_000)

        def client() -> bytes:
            peer = self.peerTo(address)
            sent, received = 0, b""
            while sent < len(data):
                peer.send(data[sent : sent + 20_000])
                sent += 20_000
                received += peer.exactly(20_000)
            peer.closeNotify()
            return received + peer.rest()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while part := await reader.read(10_000):
                writer.write(part)
                await writer.drain()
            writer.close()

        async def main() -> None:
            server = await asyncio.start_server(serve, sock=listener)
            async with server:
                clients = [Thread(client) for _ in range(20)]
                for thread in clients:
                    result = await asyncio.get_running_loop().run_in_executor(None, thread.result)
                    self.assertTrue(result == data)

        asyncio.run(asyncio.wait_for(main(), 1.5 * SECONDS))

    def test_both(self) -> None:
        """Client and server in one loop."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            writer.close()

        async def main() -> None:
            listener = self.listener(flags=socket.SOCK_NONBLOCK)
            server = await asyncio.start_server(serve, sock=listener)
            async with server:
                for _ in range(10):
                    sock = self.asyncioSocket()
                    await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
                    reader, writer = await asyncio.open_connection(sock=sock)
                    writer.write(b"hello")
                    self.assertEqual(await reader.read(), b"hello")
                    writer.close()

        asyncio.run(asyncio.wait_for(main(), 1.5 * SECONDS))


class Twisted(TLSCase):
    """Twisted's reactor, in processes of its own."""

    def test_client(self) -> None:
        """A tcp.Client whose socket is a TLS socket."""
        server = self.server(echo)
        done = subprocess.run(
            [sys.executable, "-c", TWISTED_CLIENT, str(server.address[1])],
            timeout=18 * PATIENCE,
            check=False,
            capture_output=True,
            env={**os.environ, "CA": testCA().pem.decode()},
        )
        self.assertEqual(done.stdout.decode().strip(), "500000 ConnectionDone", done.stderr.decode())

    def test_server(self) -> None:
        """A Port adopted from a TLS listener."""
        child = subprocess.Popen([sys.executable, "-c", TWISTED_SERVER], stdout=subprocess.PIPE)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        assert child.stdout is not None
        self.addCleanup(child.stdout.close)
        peer = self.peerTo(("127.0.0.1", int(child.stdout.readline())))
        for size in (1, 10_000, 100_000):
            peer.send(pattern(size))
            self.assertEqual(peer.exactly(size), pattern(size))
        peer.closeNotify()
        self.assertEqual(peer.rest(), b"")
        self.assertEqual(child.wait(SECONDS), 0)


class StandardLibrary(TLSCase):
    """Programs of the standard library."""

    def test_selectors(self) -> None:
        """A loop with the default selector, many clients in one thread."""
        server = self.server(echo)
        with selectors.DefaultSelector() as selector:
            data = pattern(50_000)
            for _ in range(20):
                client = self.clientSocket(flags=socket.SOCK_NONBLOCK)
                client.connect_ex(server.address)
                selector.register(client, selectors.EVENT_WRITE, [memoryview(data), bytearray()])
            left = 20
            while left:
                ready = selector.select(SECONDS)
                self.assertTrue(ready)
                for key, events in ready:
                    sock: Any = key.fileobj
                    state: Any = key.data
                    if events & selectors.EVENT_WRITE:
                        state[0] = state[0][sock.send(state[0]) :]
                        selector.modify(sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if state[0] else 0), state)
                        if not state[0]:
                            sock.shutdown(socket.SHUT_WR)
                    if events & selectors.EVENT_READ:
                        part = sock.recv(10_000)
                        state[1] += part
                        if not part:
                            selector.unregister(sock)
                            self.assertTrue(state[1] == data)
                            left -= 1

    def test_http(self) -> None:
        """http.client over a TLS socket, http.server on one, files as buffered objects."""

        class Page(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = pattern(200_000)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        class Threaded(socketserver.ThreadingMixIn, socketserver.TCPServer):
            daemon_threads = True

        listener = self.listener()
        server = Threaded(listener.getsockname(), Page, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        serving.start()
        self.addCleanup(server.shutdown)
        sock = self.clientSocket()
        sock.connect(listener.getsockname())
        connection = http.client.HTTPConnection("server.example")
        connection.sock = sock
        for _ in range(3):
            connection.request("GET", "/")
            self.assertTrue(connection.getresponse().read() == pattern(200_000))
        connection.close()

    def test_files(self) -> None:
        """socket.makefile, line by line."""

        def talk(peer: Peer) -> None:
            peer.send(b"220 ready\r\n")
            self.assertEqual(peer.exactly(6), b"QUIT\r\n")
            peer.send(b"221 bye\r\n")
            peer.closeNotify()

        server = self.server(talk)
        sock = self.clientSocket()
        sock.connect(server.address)
        with sock.makefile("rwb") as file:
            self.assertEqual(file.readline(), b"220 ready\r\n")
            file.write(b"QUIT\r\n")
            file.flush()
            self.assertEqual(file.readlines(), [b"221 bye\r\n"])
        server.join()
        self.assertEqual(server.failures, [])

    def test_timeouts(self) -> None:
        """socket.settimeout: a non-blocking socket underneath, and poll."""
        server = self.server(echo, delay=0.2)
        sock = self.clientSocket()
        sock.settimeout(SECONDS)
        sock.connect(server.address)
        sock.settimeout(0.1)
        self.assertRaises(TimeoutError, sock.recv, 1)
        sock.sendall(b"x")
        sock.settimeout(SECONDS)
        self.assertEqual(sock.recv(1), b"x")
