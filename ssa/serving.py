# SPDX-License-Identifier: MIT
"""
A listener's TLS under the policy in force: what a reload changes holds for the next handshake.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from ssa.errors import SSAError
from ssa.factories import Secured, TLSFactory
from ssa.policy.profile import Profile
from ssa.tcpstate import close

__all__ = ["CurrentServer"]


class CurrentServer:
    """
    The factory of a listener (L{TLSFactory}), made anew when the policy or one of its files has changed.

    A new policy under which the listener cannot serve (it may not, or has no certificate any more) refuses clients until a
    later one lets it; the listener stays.
    """

    _log = Logger()

    def __init__(self, profileInForce: Callable[[], Profile], make: Callable[[Profile], TLSFactory]) -> None:
        """
        @param profileInForce: finds the listener's profile, the same object as long as it has not changed; raises L{SSAError}
            if it may not serve.
        @param make: makes the factory.
        @raise SSAError: of one of the two.
        """
        self._profileInForce = profileInForce
        self._make = make
        self.profile = profileInForce()
        self._factory = make(self.profile)

    def handshake(self, sock: socket.socket) -> Deferred[Secured]:
        """See L{TLSFactory}."""
        try:
            self._update(self._profileInForce())
        except SSAError as error:
            close(sock, reset=False)
            return fail(error)
        return self._factory.handshake(sock)

    def refresh(self, staples: Callable[[Profile], bool]) -> None:
        """
        Follow the policy now and not with the next client if an OCSP answer is stapled, which has to be fetched before that.

        What keeps the listener from serving, that client is told.

        @param staples: whether it is, under a profile.
        """
        try:
            profile = self._profileInForce()
            if staples(profile) or staples(self.profile):
                self._update(profile)
        except SSAError as error:
            self._log.debug("a listener cannot serve under the new policy: {error}", error=str(error))

    def _update(self, profile: Profile) -> None:
        if profile is self.profile:
            return
        if profile != self.profile or profile.files != self.profile.files:
            before, self._factory = self._factory, self._make(profile)
            before.close()
        self.profile = profile

    def close(self) -> None:
        """See L{TLSFactory}."""
        self._factory.close()
