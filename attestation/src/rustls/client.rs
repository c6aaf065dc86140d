//! The client's side: who the server is follows from a policy, not from DNS.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use ::rustls::client::Resumption;
use ::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use ::rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use ::rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use ::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};

use super::certificate::{EvidenceError, Wrapped};
use super::{binding, provider, session};
use crate::anchors::TrustAnchors;
use crate::binding::Purpose;
use crate::policy::Policy;
use crate::verify::{Clock, Verified, Verifier};

/// Accepts servers whose certificate carries a document that a policy
/// accepts and that speaks for the certificate's key.
#[derive(Debug, Clone)]
pub struct AttestedServerVerifier {
    verifier: Verifier,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AttestedServerVerifier {
    /// A verifier for servers that `policy` accepts. A nonce cannot be in a
    /// certificate, so what the policy says of one does not count: the
    /// handshake's signature takes its place. `user_data` is taken by the
    /// binding: a policy that demands another accepts nobody.
    pub fn new(anchors: TrustAnchors, policy: Policy) -> Self {
        Self::of(&Verifier::new(anchors, policy))
    }

    /// The same by a verifier that remembers chains or heeds revocation lists.
    pub fn of(verifier: &Verifier) -> Self {
        let policy = verifier.policy().clone().without_nonce_insecure();
        Self {
            verifier: verifier.with_policy(policy),
            algorithms: provider().signature_verification_algorithms,
        }
    }

    /// A configuration for TLS 1.3 without resumption.
    ///
    /// # Errors
    /// When the crypto provider lacks TLS 1.3.
    pub fn client_config(self) -> Result<ClientConfig, ::rustls::Error> {
        self.client_config_at(Arc::new(DefaultTimeProvider))
    }

    /// The same by another clock.
    ///
    /// # Errors
    /// As [`Self::client_config`].
    pub fn client_config_at(self, clock: Arc<dyn TimeProvider>) -> Result<ClientConfig, ::rustls::Error> {
        let mut config = ClientConfig::builder_with_details(provider(), clock)
            .with_protocol_versions(&[&::rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self))
            .with_no_client_auth();
        // A resumed session would outlive the document that vouched for it.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// Judges a server's certificate: what the handshake does, for those who
    /// want to show what was verified. The certificate alone proves nothing
    /// about a connection.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn verify<'a>(&self, certificate: &'a [u8], clock: Clock) -> Result<Verified<'a>, EvidenceError> {
        let wrapped = Wrapped::parse(certificate)?;
        let verified = self.verifier.verify(wrapped.document, clock)?;
        let expected = binding(Purpose::TlsCertificate, wrapped.key_info).to_bytes();
        if verified.user_data() != Some(&expected) {
            return Err(EvidenceError::Binding);
        }
        Ok(verified)
    }

    /// Judges the document that the server of `certificate` gave for this very
    /// session: `nonce` is what [`session::nonce`] tells. See [`session`].
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn verify_session<'a>(
        &self,
        certificate: &[u8],
        document: &'a [u8],
        nonce: session::Nonce,
        clock: Clock,
    ) -> Result<Verified<'a>, EvidenceError> {
        let wrapped = Wrapped::parse(certificate)?;
        let policy = self.verifier.policy().clone().nonce(nonce);
        let verified = self.verifier.with_policy(policy).verify(document, clock)?;
        let expected = binding(Purpose::TlsSession, wrapped.key_info).to_bytes();
        if verified.user_data() != Some(&expected) {
            return Err(EvidenceError::Binding);
        }
        Ok(verified)
    }
}

impl ServerCertVerifier for AttestedServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, ::rustls::Error> {
        let clock = Clock::At(UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs()));
        self.verify(end_entity, clock).map_err(refusal)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, ::rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    /// By the very key that the document speaks for: no second reader of
    /// certificates may find another one.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, ::rustls::Error> {
        let key_info = Wrapped::parse(certificate).map_err(refusal)?.key_info;
        let key = SubjectPublicKeyInfoDer::from(key_info);
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// The cause survives the way through `rustls`: see [`cause`].
fn refusal(error: EvidenceError) -> ::rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Why a handshake failed, if it was for the server's evidence.
pub fn cause(error: &::rustls::Error) -> Option<&EvidenceError> {
    match error {
        ::rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            cause.downcast_ref()
        }
        _ => None,
    }
}
