# SPDX-License-Identifier: MIT
"""
What the daemon has done since its start, in numbers: for all together, and for each user.
"""

from __future__ import annotations

import errno
from collections import Counter, OrderedDict

from ssa.api import Role
from ssa.errors import SSAError

__all__ = ["MOST_USERS", "OTHER", "Attempts", "Counts", "Tally"]

MOST_USERS = 4096
"""How many users are counted apart; of more, those who have done nothing for the longest time begin anew."""

OTHER = "other"
"""Counts errors whose number has no name: an interceptor may send any number, and names are kept."""


class Attempts:
    """
    The attempts of one role to make a TLS connection that have ended.

    @ivar succeeded: how many have.
    @ivar errors: how many have failed, by the name of the errno.
    """

    def __init__(self) -> None:
        self.succeeded = 0
        self.errors: Counter[str] = Counter()

    @property
    def failed(self) -> int:
        """How many have failed."""
        return sum(self.errors.values())


class Tally:
    """
    What is counted, for one user or for all.

    @ivar attempts: by role.
    @ivar received: plaintext that peers have sent to programs, on connections that have ended, bytes.
    @ivar sent: the same from programs to peers.
    """

    def __init__(self) -> None:
        self.attempts = {role: Attempts() for role in Role}
        self.received = 0
        self.sent = 0


class Counts:
    """
    All of it.

    @ivar all: of all users together.
    """

    def __init__(self) -> None:
        self.all = Tally()
        self._ofUser: OrderedDict[int, Tally] = OrderedDict()

    def ofUser(self, uid: int) -> Tally:
        """What one user's programs have done; all zero for one who has done nothing."""
        return self._ofUser.get(uid) or Tally()

    def succeeded(self, role: Role, uid: int) -> None:
        """
        A connection is established.

        @param uid: the user whose program it is.
        """
        for tally in self._talliesOf(uid):
            tally.attempts[role].succeeded += 1

    def failed(self, role: Role, uid: int, error: SSAError) -> None:
        """
        A connect, an upgrade, or a connection that a listener has accepted, has failed.

        @param uid: the user whose program it is.
        """
        name = error.name if error.errno in errno.errorcode else OTHER
        for tally in self._talliesOf(uid):
            tally.attempts[role].errors[name] += 1

    def carried(self, uid: int, received: int, sent: int) -> None:
        """
        A connection is no more.

        @param received: bytes; see L{Tally}.
        @param sent: the same.
        """
        if received or sent:
            for tally in self._talliesOf(uid):
                tally.received += received
                tally.sent += sent

    def _talliesOf(self, uid: int) -> tuple[Tally, Tally]:
        own = self._ofUser.get(uid)
        if own is None:
            own = self._ofUser[uid] = Tally()
            if len(self._ofUser) > MOST_USERS:
                self._ofUser.popitem(last=False)
        self._ofUser.move_to_end(uid)
        return self.all, own
