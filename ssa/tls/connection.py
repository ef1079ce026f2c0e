# SPDX-License-Identifier: MIT
"""
What is known of one TLS connection: the checks of its peer, and what programs may ask of it.

pyOpenSSL's callbacks belong to a context, which many connections share; what concerns one connection is kept as its
application data (C{Connection.get_app_data}), a L{PeerCheck}.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto
from zope.interface import implementer

from ssa.api import DataPath
from ssa.errors import Cause, SSAError, causeOfVerifyCode, describeVerifyCode
from ssa.options import IConnectionInfo
from ssa.policy.profile import TLS_1_3
from ssa.tls.certificates import chainPEM, describeCertificate
from ssa.tls.ciphers import ianaName
from ssa.tls.identity import Identity, checkIdentity
from ssa.tls.rules import Rules

__all__ = ["CHANNEL_BINDING_SIZE", "ConnectionInfo", "PeerCheck", "noteAlert", "peerCheckOf", "verifyPeer"]

CHANNEL_BINDING_SIZE = 32
_CHANNEL_BINDING_LABEL = b"EXPORTER-Channel-Binding"

_FATAL = 2
"""The level of a fatal alert, RFC 8446 section 6."""


class PeerCheck:
    """
    The checks of one connection's peer, and their result.

    @ivar identity: whom the peer must be; C{None} on a server's side, where the peer need not prove anything.
    @ivar proved: whether the peer has proved its identity: set by the last of the checks and nowhere else.
    @ivar hasCredential: whether this side had a certificate to show.
    @ivar refusal: why the handshake was refused by a check of ours; C{None} while nothing speaks against the peer.
    @ivar rules: what the refusals name as the reason behind them; C{None} if they name none.
    @ivar protocols: the application protocols of this side.
    @ivar sentAlert: the number of the fatal alert that was sent; C{None} if none was.
    @ivar receivedAlert: the number of the fatal alert that was received; C{None} if none was.
    @ivar resumed: whether the handshake resumed a session.
    """

    def __init__(
        self,
        identity: Identity | None,
        hasCredential: bool,
        rules: Rules | None = None,
        protocols: Sequence[bytes] = (),
    ) -> None:
        self.identity = identity
        self.hasCredential = hasCredential
        self.proved = False
        self.refusal: SSAError | None = None
        self.rules = rules
        self.protocols = tuple(protocols)
        self.sentAlert: int | None = None
        self.receivedAlert: int | None = None
        self.resumed = False

    def verifiedChain(self, connection: SSL.Connection) -> tuple[x509.Certificate, ...]:
        """
        Get the chain that the peer has proved its identity with, SSL_get0_verified_chain(3).

        @return: its own certificate first, a trusted one last; empty if it sent none.
        """
        return tuple(connection.get_verified_chain(as_cryptography=True) or ())

    def check(self, certificate: crypto.X509, code: int, depth: int, good: bool) -> bool:
        """
        Judge one step of OpenSSL's path validation: SSL_CTX_set_verify(3), C{verify_callback}.

        @param certificate: the certificate that the step is about.
        @param code: an C{X509_V_ERR_*} number.
        @param depth: 0 for the peer's own certificate.
        @param good: what OpenSSL thinks of it.
        @return: whether to go on; C{False} ends the handshake with an alert.
        """
        try:
            if not good:
                self._refuse(certificate, code, depth)
                return False
            if depth == 0 and self.identity is not None:
                # The chain has been built and every signature has been checked when this is called for depth 0.
                problem = checkIdentity(
                    crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate), self.identity
                )
                if problem:
                    described = describeCertificate(certificate.to_cryptography())
                    self.refusal = Cause.WRONG_NAME.error(f"{problem}{self._rule(Cause.WRONG_NAME)} {described}")
                    return False
                self.proved = True
            return True
        except Exception as error:  # an exception must refuse this peer, and must not reach another connection
            self.proved = False
            self.refusal = Cause.MALFORMED.error(f"a certificate cannot be read ({type(error).__name__}: {error})")
            return False

    def _refuse(self, certificate: crypto.X509, code: int, depth: int) -> None:
        self.proved = False
        cause = causeOfVerifyCode(code)
        which = "the peer's certificate" if depth == 0 else f"the certificate {depth} above the peer's"
        # The words are kept even if the certificate cannot be described.
        what = f"{which}: {describeVerifyCode(code)}{self._rule(cause, code)}"
        self.refusal = cause.error(what)
        described = describeCertificate(certificate.to_cryptography())
        wanted = f" (asked for the {self.identity})" if self.identity is not None else ""
        self.refusal = cause.error(f"{what} {described}{wanted}")

    def _rule(self, cause: Cause, code: int = 0) -> str:
        """The rule behind a refusal, in parentheses; it comes before what the peer can make long."""
        rule = self.rules.behind(cause, code) if self.rules is not None else ""
        return f" ({rule})" if rule else ""


def peerCheckOf(connection: SSL.Connection) -> PeerCheck:
    """
    Find the checks of a connection that this package has made.

    @raise SSAError: EIO for any other connection: one without checks must not be taken for a good one.
    """
    check = connection.get_app_data()
    if not isinstance(check, PeerCheck):
        raise Cause.INTERNAL.error("a TLS connection has no checks")
    return check


def verifyPeer(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, good: int) -> bool:
    """Pass a step of the path validation on to the connection's own L{PeerCheck}."""
    try:
        check = peerCheckOf(connection)
    except SSAError:
        return False
    return check.check(certificate, code, depth, bool(good))


def noteAlert(connection: SSL.Connection, where: int, value: int) -> None:
    """
    Keep the number of a fatal alert with the connection's L{PeerCheck}: SSL_CTX_set_info_callback(3).

    @param where: what has happened.
    @param value: of an alert, the level and the number.
    """
    if not where & SSL.SSL_CB_ALERT or value >> 8 != _FATAL:
        return
    check = connection.get_app_data()
    if isinstance(check, PeerCheck):
        if where & SSL.SSL_CB_READ:
            check.receivedAlert = value & 0xFF
        else:
            check.sentAlert = value & 0xFF


@implementer(IConnectionInfo)
class ConnectionInfo:
    """
    What programs may ask of an established connection.

    It asks the TLS library, and so keeps the connection object; not the socket, which may be closed meanwhile.

    @ivar accepted: whether this is the server's side.
    """

    def __init__(self, connection: SSL.Connection, accepted: bool, dataPath: DataPath = DataPath.RELAY) -> None:
        """
        @param connection: after its handshake.
        @param accepted: whether this is the server's side.
        @param dataPath: what carries the data.
        """
        self._connection = connection
        self.accepted = accepted
        self._dataPath = dataPath

    def peerIdentity(self) -> str:
        """See L{IConnectionInfo.peerIdentity}."""
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            raise Cause.NO_DATA.error("the peer sent no certificate")
        try:
            return certificate.subject.rfc4514_string()
        except ValueError as error:
            raise Cause.NO_DATA.error(f"the peer's subject is malformed: {error}") from error

    def peerChainPEM(self) -> bytes:
        """See L{IConnectionInfo.peerChainPEM}."""
        own = self._connection.get_peer_certificate(as_cryptography=True)
        if own is None:
            raise Cause.NO_DATA.error("the peer sent no certificate")
        chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        # OpenSSL leaves the peer's own certificate out of the chain on a server: SSL_get_peer_cert_chain(3).
        if not chain or chain[0].public_bytes(Encoding.DER) != own.public_bytes(Encoding.DER):
            chain = [own, *chain]
        return chainPEM(chain)

    def cipher(self) -> str:
        """See L{IConnectionInfo.cipher}."""
        name = self._connection.get_cipher_name()
        if name is None:
            raise Cause.NO_DATA.error("no cipher is in use")
        return ianaName(name)

    def version(self) -> int:
        """See L{IConnectionInfo.version}."""
        return self._connection.get_protocol_version()

    def channelBinding(self) -> bytes:
        """
        See L{IConnectionInfo.channelBinding}.

        RFC 9266 section 4.2 allows TLS 1.2 only with the extended master secret.  pyOpenSSL cannot tell whether a
        connection has it, so there is no binding with TLS 1.2.
        """
        if self.version() < TLS_1_3:
            raise Cause.NO_DATA.error("tls-exporter needs TLS 1.3 here")
        return self._connection.export_keying_material(_CHANNEL_BINDING_LABEL, CHANNEL_BINDING_SIZE, b"")

    def group(self) -> str:
        """See L{IConnectionInfo.group}."""
        try:
            name = self._connection.get_group_name()
        except NotImplementedError:  # OpenSSL before 3.2
            name = None
        if not name:
            raise Cause.NO_DATA.error("the TLS library cannot tell the key exchange group")
        return name

    def applicationProtocol(self) -> bytes:
        """See L{IConnectionInfo.applicationProtocol}."""
        return self._connection.get_alpn_proto_negotiated()

    def serverName(self) -> str:
        """See L{IConnectionInfo.serverName}."""
        name = self._connection.get_servername()
        return name.decode("ascii", "backslashreplace") if name is not None else ""

    def dataPath(self) -> str:
        """See L{IConnectionInfo.dataPath}."""
        return self._dataPath.name.lower()
