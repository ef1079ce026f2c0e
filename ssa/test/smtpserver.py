# SPDX-License-Identifier: MIT
"""
Twisted's mail server with STARTTLS, for the tests of programs that upgrade connections::

    python -m ssa.test.smtpserver [CHAIN KEY]

It prints its port, and each message with how it came.  Without a certificate it offers no STARTTLS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet import protocol, reactor, ssl
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import ISSLTransport
from twisted.mail import smtp
from zope.interface import implementer


@implementer(smtp.IMessage)
class _Message:
    """Prints itself."""

    def __init__(self, session: smtp.ESMTP) -> None:
        self._session = session
        self._lines: list[bytes] = []

    def lineReceived(self, line: bytes) -> None:
        self._lines.append(line)

    def eomReceived(self) -> Deferred[None]:
        how = "over TLS" if ISSLTransport.providedBy(self._session.transport) else "in the clear"
        text = b"\n".join(self._lines).decode()
        print(f"message {how}: {' / '.join(text.splitlines())}", flush=True)
        return succeed(None)

    def connectionLost(self) -> None:
        """It has not come whole."""


@implementer(smtp.IMessageDelivery)
class _Delivery:
    """Takes everything."""

    def __init__(self, session: smtp.ESMTP) -> None:
        self._session = session

    def receivedHeader(self, helo: object, origin: object, recipients: object) -> bytes:
        return b"Received: by a test"

    def validateFrom(self, helo: object, origin: smtp.Address) -> smtp.Address:
        return origin

    def validateTo(self, user: smtp.User) -> Callable[[], _Message]:
        return lambda: _Message(self._session)


class _Factory(protocol.ServerFactory):
    def __init__(self, context: Any) -> None:
        self._context = context

    def buildProtocol(self, address: object) -> smtp.ESMTP:
        session = smtp.ESMTP(contextFactory=self._context)
        session.delivery = _Delivery(session)
        session.factory = self
        session.host = b"localhost"
        return session


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    context = None
    if arguments:
        chain, key = arguments
        context = ssl.DefaultOpenSSLContextFactory(key, chain, SSL.TLS_SERVER_METHOD)
    port = reactor.listenTCP(0, _Factory(context), interface="127.0.0.1")
    host = port.getHost()
    assert isinstance(host, IPv4Address)
    print("listening on port", host.port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
