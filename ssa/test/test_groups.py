# SPDX-License-Identifier: MIT
"""Tests of L{ssa.tls.groups}."""

from __future__ import annotations

import errno
from typing import Any

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from ssa.errors import SSAError
from ssa.policy.profile import TLS_1_2, TLS_1_3, Profile
from ssa.test.pki import testCA
from ssa.test.tlspair import Pair, serving, trusting
from ssa.tls import groups
from ssa.tls.groups import useGroups


class GroupsTests(SynchronousTestCase):
    """Which groups a connection uses."""

    def group(self, client: str, server: str, version: int = TLS_1_3) -> str | None:
        """The group that both come to; L{None} if there is none."""
        pair = Pair(
            trusting(testCA()),
            # In TLS 1.2 the groups limit the curves of ECDSA certificates too, RFC 8422 section 5.1.1.
            serving(testCA().issue(key="rsa")),
            clientProfile=Profile(groups=client, maxProtocol=version),
            serverProfile=Profile(groups=server, maxProtocol=version),
        )
        self.addCleanup(pair.close)
        pair.shakeHands()
        if pair.errors["client"] is not None:
            self.assertIsNotNone(pair.errors["server"])
            return None
        try:
            return (pair.client.get_group_name() or "").lower()
        except NotImplementedError:  # OpenSSL before 3.2
            return ""

    def test_limited(self) -> None:
        """Either side's list limits both, in either version; the client's cached contexts are told apart."""
        for version in (TLS_1_2, TLS_1_3):
            self.assertIn(self.group("", "P-384", version), ("", "secp384r1"))
            self.assertIn(self.group("P-521", "", version), ("", "secp521r1"))
            self.assertIn(self.group("X25519:P-256", "P-256:P-384", version), ("", "prime256v1", "secp256r1"))
            self.assertIsNone(self.group("X25519", "P-256:P-384", version))
            self.assertIsNone(self.group("P-256", "X25519", version))

    def test_unknownLeftOut(self) -> None:
        """A group that the library does not have is left out, and nothing is left in OpenSSL's error queue."""
        context = SSL.Context(SSL.TLS_METHOD)
        useGroups(context, "NoSuchGroup:X25519:P-256")
        self.assertIn(self.group("NoSuchGroup:P-256", "", TLS_1_3), ("", "prime256v1", "secp256r1"))
        self.assertEqual(groups._library.ERR_get_error(), 0)

    def test_noneLeft(self) -> None:
        """No group at all is an error, and not the library's default."""
        error = self.assertRaises(SSAError, useGroups, SSL.Context(SSL.TLS_METHOD), "NoSuchGroup:Other")
        self.assertEqual(error.errno, errno.EPERM)
        self.assertIn("NoSuchGroup:Other", error.reason)

    def test_bindingMissing(self) -> None:
        """Without the call, groups that are set are an error; without groups nothing needs it."""

        class Empty:
            """A library without it."""

        nothing: Any = Empty()
        self.patch(groups, "_library", nothing)
        error = self.assertRaises(SSAError, useGroups, SSL.Context(SSL.TLS_METHOD), "X25519")
        self.assertEqual(error.errno, errno.EPERM)
        useGroups(SSL.Context(SSL.TLS_METHOD), "")
