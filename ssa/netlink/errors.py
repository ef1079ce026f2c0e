# SPDX-License-Identifier: MIT
"""What can go wrong between a request and its answer.  What can go wrong in a message's bytes is in L{ssa.netlink.codec}."""

from __future__ import annotations

import os

__all__ = [
    "BadReplyError",
    "DumpInterrupted",
    "NetlinkError",
    "NetlinkException",
    "NotListeningError",
    "RepliesLostError",
    "RequestTimedOut",
    "TooManyRequestsError",
    "UnknownGroupError",
]


class NetlinkException(Exception):
    """The base of everything with which a request can end."""


class NetlinkError(NetlinkException):
    """
    The kernel has refused a request, with an C{NLMSG_ERROR} or at the end of a dump.

    @ivar errno: a positive error number of L{errno}.
    @ivar text: what the kernel says in the extended acknowledgement (C{NLMSGERR_ATTR_MSG}), or "".
    @ivar offset: where in the request, counted in bytes from its C{nlmsghdr}, the attribute at fault begins
        (C{NLMSGERR_ATTR_OFFS}), or None.
    """

    def __init__(self, errno: int, text: str = "", offset: int | None = None) -> None:
        self.errno = errno
        self.text = text
        self.offset = offset
        reason = os.strerror(errno)
        if text:
            reason += f": {text}"
        if offset is not None:
            reason += f" (attribute at byte {offset})"
        super().__init__(errno, reason)

    def __str__(self) -> str:
        return f"[Errno {self.errno}] {self.args[1]}"


class UnknownGroupError(NetlinkException):
    """A generic netlink family has no multicast group of that name."""


class DumpInterrupted(NetlinkException):
    """
    What was dumped has changed meanwhile (C{NLM_F_DUMP_INTR}): parts may be missing or be there twice.  Ask again.
    """


class BadReplyError(NetlinkException):
    """An answer is not what netlink or the caller's attribute table allows, or there are more answers than one."""


class RepliesLostError(NetlinkException):
    """A dump has more messages than the bound, or a part of it was lost."""


class RequestTimedOut(NetlinkException):
    """No answer came in time.  Whether the kernel has done what was asked is not known."""


class TooManyRequestsError(NetlinkException):
    """The bound of requests that wait for an answer is reached; nothing was sent."""


class NotListeningError(NetlinkException):
    """The port is closed, or was closed before the answer came."""
