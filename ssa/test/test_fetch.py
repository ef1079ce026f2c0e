# SPDX-License-Identifier: MIT
"""Fetches within bounds, from a web server that keeps none."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ssa.api import InternetAddress
from ssa.revocation.fetch import (
    BOUNDS,
    FETCH_TIME,
    Fetcher,
    Place,
    Reach,
    Reply,
    parsePlace,
)
from ssa.revocation.verdict import NoAnswer
from ssa.test.fetching import FetchCase
from ssa.test.responders import endlessHeaders, enormous, garbage, redirect, slow

reactor: Any = _reactor


class FetchTests(FetchCase):
    """Over real sockets."""

    timeout = 20

    def get(self, name: str, most: int = 1000, body: bytes | None = None, reach: Reach = Reach.ANY) -> Deferred[bytes]:
        url = self.web.url(name) if name.startswith("/") else name
        return self.fetcher.fetch(url, most, body, reach)

    async def refused(self, word: str, name: str, **more: Any) -> None:
        try:
            await self.get(name, **more)
        except NoAnswer as error:
            self.assertIn(word, str(error))
        else:
            self.fail("it was fetched")

    async def test_get(self) -> None:
        """GET and POST, with or without a length."""
        self.web.put("/a", b"x" * 1000)
        self.assertEqual(b"x" * 1000, await self.get("/a"))
        self.web.put("/echo", lambda request: request.send(200, request.body))
        self.assertEqual(b"question", await self.get("/echo", body=b"question"))

        def old(request: Any) -> None:
            request.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
            request.close_connection = True

        self.web.put("/old", old)
        self.assertEqual(b"all of it", await self.get("/old"))
        self.assertEqual([("GET", "/a"), ("POST", "/echo"), ("GET", "/old")], self.web.asked)

    async def test_name(self) -> None:
        """A host by its name."""
        self.web.put("/a", b"x")
        self.assertEqual(b"x", await self.get(f"http://localhost:{self.web.server_address[1]}/a"))

    async def test_tooMuch(self) -> None:
        """Content and header fields without end, and a length that is too much by one byte."""
        self.web.put("/enormous", enormous)
        await self.refused("more than 1000 bytes", "/enormous")
        self.web.put("/headers", endlessHeaders)
        await self.refused("more than 1000 bytes", "/headers")
        self.web.put("/one", bytes(1001))
        await self.refused("more than 1000 bytes", "/one")

    async def test_status(self) -> None:
        """Anything but 200."""
        await self.refused("status 404", "/nothing")
        self.web.put("/error", lambda request: request.send(500, b"x"))
        await self.refused("status 500", "/error")
        self.web.put("/empty", lambda request: request.send(204, b""))
        await self.refused("status 204", "/empty")

    async def test_redirects(self) -> None:
        """Some are followed, a loop is not, nor one to another scheme or port; a POST request never."""
        self.web.put("/end", b"x")
        self.web.put("/second", redirect("/end"))
        self.web.put("/first", redirect(self.web.url("/second")))
        self.assertEqual(b"x", await self.get("/first"))
        self.web.put("/loop", redirect("/loop"))
        await self.refused("more than 3 redirects", "/loop")
        self.assertEqual(4, self.web.count("/loop"))
        elsewhere = {"https://127.0.0.1/": "only http", "file:///etc/passwd": "only http", "http://127.0.0.1:22/": "port 22"}
        for to, word in elsewhere.items():
            self.web.put("/away", redirect(to))
            await self.refused(word, "/away")
        await self.refused("status 302", "/first", body=b"q")

    async def test_redirectElsewhere(self) -> None:
        """To another host only if that is on the public network: whoever is in between can redirect plain HTTP."""
        self.web.put("/end", b"x")
        port = self.web.server_address[1]
        self.web.put("/away", redirect(f"http://localhost:{port}/end"))
        await self.refused("only 80", "/away")
        self.web.put("/here", redirect("http://localhost/end"))
        await self.refused("not on the public network", "/here")
        self.web.put("/other", redirect("http://127.0.0.2/end"))
        await self.refused("not on the public network", "/other")
        self.assertEqual(0, self.web.count("/end"))
        self.assertEqual(b"x", await self.get(f"http://LOCALHOST:{port}/away"))

    async def test_notHTTP(self) -> None:
        """A server that speaks something else, or ends too early, or is not there."""
        self.web.put("/garbage", garbage)
        await self.refused("not HTTP", "/garbage")

        def short(request: Any) -> None:
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
            request.close_connection = True

        self.web.put("/short", short)
        await self.refused("before the whole answer", "/short")
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            port = nobody.getsockname()[1]
        await self.refused("no connection", f"http://127.0.0.1:{port}/")
        await self.refused("does not resolve", "http://nobody.invalid/")

    async def test_cancelled(self) -> None:
        """Who does not want it any more ends it."""
        self.web.put("/slow", slow)
        for _ in range(3):
            pending = self.get("/slow")
            while not self.web.count("/slow"):
                await self.after(0.01)
            self.web.asked.clear()
            pending.cancel()
            self.failureResultOf(pending, CancelledError)
        self.web.put("/a", b"x")
        self.assertEqual(b"x", await self.get("/a"))

    async def test_together(self) -> None:
        """Many at one time: all get theirs, some wait."""
        self.web.put("/a", b"x")
        results = await gatherResults([self.get("/a") for _ in range(48)])
        self.assertEqual([b"x"] * 48, results)

    async def test_public(self) -> None:
        """A program's own authority cannot send the daemon to this machine."""
        self.web.put("/a", b"x")
        await self.refused("port", "/a", reach=Reach.PUBLIC)
        for url in ("http://127.0.0.1/", "http://localhost/", "http://[::1]/"):
            await self.refused("not on the public network", url, reach=Reach.PUBLIC)
        self.assertEqual([], self.web.asked)

    def after(self, seconds: float) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        reactor.callLater(seconds, waiting.callback, None)
        return waiting


class _Client:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.requests: list[Deferred[Reply]] = []
        self.places: list[Place] = []

    def request(self, place: Place, body: bytes | None, most: int) -> Deferred[Reply]:
        self.requests.append(Deferred())
        self.places.append(place)
        return self.requests[-1]


class BoundTests(SynchronousTestCase):
    """Times and numbers, without a network."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.client = _Client()
        nothing: Any = None
        self.fetcher = Fetcher(self.clock, self.clock, nothing, nothing, self.client)

    def get(self, reach: Reach = Reach.ANY, owner: int = 1000) -> Deferred[bytes]:
        return self.fetcher.fetch("http://a.example/", 10, None, reach, owner)

    def test_time(self) -> None:
        """A server that says nothing."""
        pending = self.get()
        self.clock.advance(FETCH_TIME - 0.1)
        self.assertNoResult(pending)
        self.clock.advance(0.2)
        self.assertIn("longer than", str(self.failureResultOf(pending, NoAnswer).value))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_number(self) -> None:
        """So many of one user at one time, so many more wait, and the next one is refused."""
        _, most, _, mostWaiting = BOUNDS[Reach.ANY]
        running = [self.get() for _ in range(most)]
        waiting = [self.get() for _ in range(mostWaiting)]
        self.assertEqual(most, len(self.client.requests))
        self.assertIn("too many", str(self.failureResultOf(self.get(), NoAnswer).value))
        self.client.requests[0].callback(Reply(200, "", b"x"))
        self.assertEqual(b"x", self.successResultOf(running[0]))
        self.assertEqual(most + 1, len(self.client.requests))
        for each in (*running[1:], *waiting):
            each.addErrback(lambda _: None)
            each.cancel()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_tarPit(self) -> None:
        """A user whose servers never answer does not keep another one's from being asked."""
        pending = [self.get(reach, 1000) for reach in (Reach.ANY, Reach.PUBLIC) for _ in range(500)]
        taken = BOUNDS[Reach.ANY][1] + BOUNDS[Reach.PUBLIC][1]
        self.assertEqual(taken, len(self.client.requests))
        for reach in (Reach.ANY, Reach.PUBLIC):
            other = self.get(reach, 1001)
            self.client.requests[-1].callback(Reply(200, "", b"x"))
            self.assertEqual(b"x", self.successResultOf(other))
        self.assertEqual(taken + 2, len(self.client.requests))
        for each in pending:
            each.addErrback(lambda _: None)
            each.cancel()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_ownAuthorities(self) -> None:
        """All users together cannot take the turns of trusted authorities for their own."""
        pending = [self.get(Reach.PUBLIC, owner) for owner in range(1000, 1100) for _ in range(10)]
        self.assertEqual(BOUNDS[Reach.PUBLIC][0], len(self.client.requests))
        self.get(Reach.ANY, 1100).addErrback(lambda _: None)
        self.assertIs(Reach.ANY, self.client.places[-1].reach)
        for each in pending:
            each.addErrback(lambda _: None)
            each.cancel()

    def test_redirectedReach(self) -> None:
        """Where a redirect may go: anywhere on the same host, else to the public network."""
        for location, expected in (
            ("/b", Reach.ANY),
            ("http://A.example:8080/b", Reach.ANY),
            ("http://b.example/", Reach.PUBLIC),
            ("//b.example/", Reach.PUBLIC),
            ("http://169.254.169.254/", Reach.PUBLIC),
        ):
            pending = self.get()
            self.client.requests[-1].callback(Reply(302, location, b""))
            self.assertIs(expected, self.client.places[-1].reach, location)
            self.client.requests[-1].callback(Reply(302, "http://a.example/", b""))
            self.assertIs(Reach.ANY, self.client.places[-1].reach)
            self.client.requests[-1].callback(Reply(200, "", b"x"))
            self.assertEqual(b"x", self.successResultOf(pending))
        pending = self.get(Reach.PUBLIC)
        self.client.requests[-1].callback(Reply(302, "/b", b""))
        self.assertIs(Reach.PUBLIC, self.client.places[-1].reach)
        self.client.requests[-1].callback(Reply(302, "http://b.example:8080/", b""))
        self.assertIn("port 8080", str(self.failureResultOf(pending, NoAnswer).value))

    def test_places(self) -> None:
        """Which URLs are fetched."""
        for url in (
            "https://a.example/", "ldap://a.example/", "file:///etc/passwd", "http://", "http:///x", "http://u:p@a.example/",
            "http://a.example:22/", "http://a.example:99999/", "http://a.example/ x", "http://a.example/\r\nX: y",
            "http://a.example/\u00e9", "http://a.example/" + "x" * 3000, "http://[::1", "",
        ):  # fmt: skip
            self.assertRaises(NoAnswer, parsePlace, url, Reach.ANY)
        self.assertEqual(("a.example", 80), self.place("http://A.example"))
        self.assertEqual(("::1", 8080), self.place("http://[::1]:8080/x"))
        self.assertRaises(NoAnswer, parsePlace, "http://a.example:8080/", Reach.PUBLIC)

    def place(self, url: str) -> tuple[str, int]:
        found = parsePlace(url, Reach.ANY)
        return found.host, found.port

    def test_addresses(self) -> None:
        """Which addresses are public."""
        public = parsePlace("http://a.example/", Reach.PUBLIC)
        for host, expected in (
            ("192.0.43.8", True), ("127.0.0.1", False), ("10.1.2.3", False), ("169.254.169.254", False), ("0.0.0.0", False),
            ("224.0.0.1", False), ("::1", False), ("fe80::1", False), ("fc00::1", False), ("::ffff:127.0.0.1", False),
            ("2606:2800:21f::1", True), ("::ffff:192.0.43.8", True),
            ("64:ff9b::10.1.2.3", False), ("64:ff9b::127.0.0.1", False), ("64:ff9b::192.0.43.8", True),
            ("64:ff9b:1::8.8.8.8", False), ("2002:0a01:0203::1", False), ("2002:7f00:0001::1", False),
            ("2002:c000:2b08::1", True), ("fec0::1", False),
            ("::127.0.0.1", False), ("ff0e::1", False), ("2001:db8::1", False),
        ):  # fmt: skip
            address = InternetAddress(socket.AF_INET6 if ":" in host else socket.AF_INET, host, 80)
            self.assertEqual(expected, public.admits(address), host)

    def test_lazy(self) -> None:
        """The HTTP client is not imported before it is needed: most daemons never need it."""
        code = "import sys, ssa.service; sys.exit('twisted.web.client' in sys.modules)"
        self.assertEqual(0, subprocess.run([sys.executable, "-c", code], check=False).returncode)
