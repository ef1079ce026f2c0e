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
from ssa.tls.certificates import chainPEM, describeCertificate, weaknessOf
from ssa.tls.ciphers import ianaName
from ssa.tls.clientchains import ClientChains
from ssa.tls.identity import Identity, checkIdentity
from ssa.tls.rules import Rules
from ssa.tls.sessions import Proof, Resumption, lastMoment

__all__ = ["CHANNEL_BINDING_SIZE", "ConnectionInfo", "PeerCheck", "keepStapled", "noteAlert", "noticeState", "peerCheckOf",
           "verifyPeer"]

CHANNEL_BINDING_SIZE = 32
_LOOP = SSL.SSL_CB_LOOP
_CHANNEL_BINDING_LABEL = b"EXPORTER-Channel-Binding"

_FATAL = 2
"""The level of a fatal alert, RFC 8446 section 6."""


class PeerCheck:
    """
    The checks of one connection's peer, and their result.

    @ivar identity: whom the peer must be; C{None} on a server's side.
    @ivar proved: whether the peer has proved its identity, or that it has a certificate whose chain is good if it is a
        client: set by the last of the checks, or by L{conclude} for a peer that proved it when the session began.
    @ivar hasCredential: whether this side had a certificate to show.
    @ivar checksStrength: whether keys and signatures of certificates are checked here, since OpenSSL does not do it.
    @ivar refusal: why the handshake was refused by a check of ours; C{None} while nothing speaks against the peer.
    @ivar required: whether the peer must prove something; on a server's side, whether clients must have a certificate.
    @ivar judged: whether a certificate has been looked at in this handshake.
    @ivar showedCertificate: whether this side, a server, has shown its certificate in this handshake.
    @ivar resumed: whether the handshake resumed a session; known from L{conclude} on.
    @ivar offered: what the peer proved when the session began that a client has offered.
    @ivar resumption: the client's part in the session cache; C{None} if it has none.
    @ivar clientChains: on a server's side, the chains of clients whose sessions may be resumed; C{None} if there are none.
    @ivar stapled: the OCSP answer that the peer has stapled, as it came; empty if none.
    @ivar timestamps: the list of certificate timestamps that the peer has sent in an extension of the handshake; empty if none,
        C{None} if it was not asked for them.
    @ivar rules: what the refusals name as the reason behind them; C{None} if they name none.
    @ivar protocols: the application protocols of this side.
    @ivar user: the user whose program it is; -1 if that is not known.
    @ivar sentAlert: the number of the fatal alert that was sent; C{None} if none was.
    @ivar receivedAlert: the number of the fatal alert that was received; C{None} if none was.
    """

    def __init__(
        self,
        identity: Identity | None,
        hasCredential: bool,
        required: bool | None = None,
        rules: Rules | None = None,
        protocols: Sequence[bytes] = (),
    ) -> None:
        self.identity = identity
        self.hasCredential = hasCredential
        self.required = identity is not None if required is None else required
        self.proved = False
        self.checksStrength = False
        self.refusal: SSAError | None = None
        self.judged = False
        self.showedCertificate = False
        self.resumed = False
        self.offered: Proof | None = None
        self.resumption: Resumption | None = None
        self.clientChains: ClientChains | None = None
        self.stapled = b""
        self.timestamps: bytes | None = None
        self.rules = rules
        self.protocols = tuple(protocols)
        self.user = -1
        self.sentAlert: int | None = None
        self.receivedAlert: int | None = None

    def check(self, certificate: crypto.X509, code: int, depth: int, good: bool) -> bool:
        """
        Judge one step of OpenSSL's path validation: SSL_CTX_set_verify(3), C{verify_callback}.

        @param certificate: the certificate that the step is about.
        @param code: an C{X509_V_ERR_*} number.
        @param depth: 0 for the peer's own certificate.
        @param good: what OpenSSL thinks of it.
        @return: whether to go on; C{False} ends the handshake with an alert.
        """
        self.judged = True
        try:
            if not good:
                self._refuse(certificate, code, depth)
                return False
            weakness = weaknessOf(certificate.to_cryptography()) if self.checksStrength else ""
            if weakness:
                described = describeCertificate(certificate.to_cryptography())
                self.refusal = Cause.WEAK.error(f"{weakness}{self._rule(Cause.WEAK)} {described}")
                return False
            if depth == 0 and self.identity is None:
                self.proved = True
            elif depth == 0 and self.identity is not None:
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

    def conclude(self, connection: SSL.Connection) -> None:
        """
        Judge a handshake with which OpenSSL is content.

        Whether a session was resumed is seen from what a full handshake cannot lack: a client has looked at a certificate,
        a server has shown one.  pyOpenSSL has no other public way (C{SSL_session_reused} is behind its private names,
        which may go at any time), and for trust this is the better question: without a certificate in this handshake,
        only what was proved earlier can count.

        @raise SSAError: the peer has not proved what it must.
        """
        if self.identity is not None:
            self.resumed = not self.judged
            if self.resumed:
                self._resume(connection)
        else:
            self.resumed = not self.showedCertificate
            if self.resumed:
                self._resumeClient(connection)
            elif self.proved and self.clientChains is not None:
                verified = connection.get_verified_chain(as_cryptography=True) or ()
                self.clientChains.keep(verified, _chainSent(connection))
        if self.required and not self.proved:
            raise self.refusal or Cause.UNTRUSTED.error("the handshake ended without a check of the peer")

    def _resume(self, connection: SSL.Connection) -> None:
        """Take over what the server proved, if it was this identity, with the certificate that OpenSSL has kept."""
        offered = self.offered
        own = connection.get_peer_certificate(as_cryptography=True)
        self.proved = (
            offered is not None and offered.identity == self.identity and own is not None and own == offered.chain[0]
        )

    def _resumeClient(self, connection: SSL.Connection) -> None:
        """
        Take over that the client had a good certificate.  The session belongs to this listener's contexts and policy,
        which OpenSSL makes sure of, but the certificate may have expired meanwhile.
        """
        own = connection.get_peer_certificate(as_cryptography=True)
        if own is None:
            return
        known = self.clientChains.verified(own) if self.clientChains is not None else ()
        for certificate in known or (own,):
            if lastMoment([certificate]) < 0:
                self.required = True
                self.refusal = Cause.EXPIRED.error(f"since the session began {describeCertificate(certificate)}")
                return
        self.proved = True

    def sentBefore(self, own: x509.Certificate) -> tuple[x509.Certificate, ...]:
        """
        Find what came with a client's certificate when its session began; it alone if that is not known.  Nothing of it but
        the client's own certificate need have been verified.
        """
        return self.clientChains.sent(own) if self.clientChains is not None else (own,)

    def verifiedChain(self, connection: SSL.Connection) -> tuple[x509.Certificate, ...]:
        """
        Get the chain that the peer has proved its identity with, to a trusted certificate: in this handshake, or when the
        session began.

        @return: empty if it proved nothing, or the chain of a client that has resumed a session is not known any more.
        """
        if not self.proved:
            return ()
        if not self.resumed:
            return tuple(connection.get_verified_chain(as_cryptography=True) or ())
        if self.offered is not None:
            return self.offered.chain
        own = connection.get_peer_certificate(as_cryptography=True)
        if own is None or self.clientChains is None:
            return ()
        chain = self.clientChains.verified(own)
        if not chain:
            self.clientChains.isMissed = True
        return chain

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


def _chainSent(connection: SSL.Connection) -> tuple[x509.Certificate, ...]:
    """List the certificates that the peer has sent, its own first; empty if it sent none."""
    own = connection.get_peer_certificate(as_cryptography=True)
    if own is None:
        return ()
    chain = connection.get_peer_cert_chain(as_cryptography=True) or []
    # OpenSSL leaves the peer's own certificate out of the chain on a server: SSL_get_peer_cert_chain(3).
    if not chain or chain[0].public_bytes(Encoding.DER) != own.public_bytes(Encoding.DER):
        chain = [own, *chain]
    return tuple(chain)


def verifyPeer(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, good: int) -> bool:
    """Pass a step of the path validation on to the connection's own L{PeerCheck}."""
    try:
        check = peerCheckOf(connection)
    except SSAError:
        return False
    return check.check(certificate, code, depth, bool(good))


def keepStapled(connection: SSL.Connection, answer: bytes, _data: object) -> bool:
    """
    Keep what the server has stapled, for the check after the handshake.

    @return: C{True}: the handshake goes on; C{False} if the connection is not one of this package.
    """
    try:
        check = peerCheckOf(connection)
    except SSAError:
        return False
    check.stapled = answer
    return True


def noticeState(connection: SSL.Connection, where: int, code: int) -> None:
    """
    See what a server's handshake does, and its alerts: SSL_CTX_set_info_callback(3), SSL_state_string_long(3).

    The states are those of the messages Certificate, CompressedCertificate, CertificateRequest and CertificateVerify,
    which only full handshakes have.
    """
    if not where & _LOOP:
        noteAlert(connection, where, code)
        return
    state = connection.get_state_string()
    if b"write" in state and b"certificate" in state:
        check = connection.get_app_data()
        if isinstance(check, PeerCheck):
            check.showedCertificate = True


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
        chain = _chainSent(self._connection)
        if not chain:
            raise Cause.NO_DATA.error("the peer sent no certificate")
        check = self._connection.get_app_data()
        if len(chain) == 1 and isinstance(check, PeerCheck) and check.resumed and self.accepted:
            # A ticket holds the client's own certificate only.
            chain = check.sentBefore(chain[0])
        return chainPEM(chain)

    def resumed(self) -> bool:
        """See L{IConnectionInfo.resumed}."""
        return peerCheckOf(self._connection).resumed

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
        # The library names what the peer chose as it was configured there: one spelling, that of the registry.
        return {"x25519": "X25519", "x448": "X448"}.get(name, name)

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
