# SPDX-License-Identifier: MIT
"""
Telling the service manager how the service is: sd_notify(3), the protocol of C{Type=notify}.

One datagram of C{NAME=value} lines to the unix socket that C{NOTIFY_SOCKET} names.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.logger import Logger

VARIABLE = "NOTIFY_SOCKET"
"""The environment variable with the socket's path; one that begins with "@" is in the abstract namespace (unix(7))."""


class ServiceManager:
    """
    The service manager that has started this process, if there is one.

    @ivar address: of its socket, or "".
    """

    _log = Logger()

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """@param environment: of the process."""
        self.address = environment.get(VARIABLE, "")

    def ready(self) -> None:
        """The service is up, or up again after L{reloading}."""
        self.tell("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again; L{ready} has to follow."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service goes down."""
        self.tell("STOPPING=1")

    def status(self, text: str) -> None:
        """
        Say in one line how it is.

        @param text: for people; C{systemctl status} shows it.
        """
        self.tell("STATUS=" + text.replace("\n", " "))

    def tell(self, *lines: str) -> None:
        """
        Send one datagram.  Nobody to tell is no error; that it cannot be told is logged, and changes nothing.

        @param lines: C{NAME=value}.
        """
        if not self.address.startswith(("/", "@")):
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            self._log.warn("the service manager cannot be told {what}: {why}", what=lines[0], why=error.strerror)
