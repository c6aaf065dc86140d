//! The enclave's side: a key that is born here and never leaves, and the
//! certificate that is made again as often as the documents need it.
//!
//! ```text
//! generate ─▶ binding ─▶ (NSM signs) ─▶ install ─▶ serve
//!                ▲                         │
//!                └──── after Renewal ──────┘
//! ```
//!
//! Who asks the NSM, and when, is the caller's: nothing here waits.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ::rustls::ServerConfig;
use ::rustls::server::{ClientHello, ResolvesServerCert};
use ::rustls::sign::{CertifiedKey, SigningKey};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{binding, certificate, provider};
use crate::binding::{Binding, Purpose};
use crate::document::{Claims, Untrusted};
use crate::error::Error;
use crate::x509::Certificate;

/// A certificate is made again after this time at the latest: well within the
/// 300 s that clients accept unless told otherwise.
pub const RENEWAL: Duration = Duration::from_secs(120);

/// Why an enclave cannot serve TLS.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The crypto library could not make or use a key.
    #[error("cannot make a TLS key")]
    Key,
    /// `rustls` does not take the key or the configuration.
    #[error("cannot set up TLS")]
    Tls(#[from] ::rustls::Error),
    /// The NSM's document cannot be read.
    #[error("cannot read the NSM's document")]
    Document(#[source] Error),
    /// The document is not for this key.
    #[error("the NSM's document does not speak for this key")]
    Binding,
    /// A certificate of the document's chain cannot be read.
    #[error("cannot read the certificates of the NSM's document")]
    Chain,
}

/// A TLS key and its current certificate.
#[derive(Debug)]
pub struct EnclaveIdentity {
    pair: EcdsaKeyPair,
    signer: Arc<dyn SigningKey>,
    key_info: Vec<u8>,
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl EnclaveIdentity {
    /// Makes a P-256 key that lives as long as this value.
    ///
    /// # Errors
    /// [`ServerError::Key`] and [`ServerError::Tls`].
    pub fn generate() -> Result<Self, ServerError> {
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new());
        let pkcs8 = pkcs8.map_err(|_| ServerError::Key)?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).map_err(|_| ServerError::Key)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.as_ref()));
        let signer = ::rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key)?;
        let key_info = certificate::key_info(pair.public_key().as_ref());
        Ok(Self { pair, signer, key_info, current: RwLock::new(None) })
    }

    /// What the NSM must sign as `user_data`: purpose `TlsCertificate` with no
    /// nonce for [`Self::install`], purpose `TlsSession` with the session's
    /// nonce for [`super::session`].
    pub fn binding(&self, purpose: Purpose) -> Binding {
        binding(purpose, &self.key_info)
    }

    /// Serves `document` from now on. Returns after what time the next one
    /// must be installed: [`RENEWAL`], or half of what is left of its chain's
    /// life if that is sooner. By the document's own clock,
    /// because that of an enclave drifts.
    ///
    /// # Errors
    /// [`ServerError`]; what was served before is served on.
    pub fn install(&self, document: &[u8]) -> Result<Duration, ServerError> {
        let untrusted = Untrusted::parse(document).map_err(ServerError::Document)?;
        if untrusted.claimed_user_data() != Some(&self.binding(Purpose::TlsCertificate).to_bytes()) {
            return Err(ServerError::Binding);
        }
        let not_after = chain_ends(&untrusted.claims)?;
        let point = self.pair.public_key().as_ref();
        let body = certificate::body(point, document, untrusted.claims.certificate);
        let body = body.map_err(|_| ServerError::Chain)?;
        let signature = self.pair.sign(&SystemRandom::new(), &body).map_err(|_| ServerError::Key)?;
        let certificate = certificate::signed(&body, signature.as_ref());
        let served = CertifiedKey::new(vec![certificate.into()], self.signer.clone());
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(served));

        let signed = i64::try_from(untrusted.claims.timestamp_ms / 1000).unwrap_or(i64::MAX);
        let left = u64::try_from(not_after.saturating_sub(signed)).unwrap_or(0);
        Ok(Duration::from_secs(left / 2).clamp(Duration::from_secs(1), RENEWAL))
    }

    /// A configuration for TLS 1.3 without tickets. Handshakes fail until a
    /// document is installed.
    ///
    /// # Errors
    /// [`ServerError::Tls`].
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, ServerError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&::rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Last second at which every certificate of the chain is valid. An issuer may
/// end before the leaf that it signed.
fn chain_ends(claims: &Claims<'_>) -> Result<i64, ServerError> {
    let chain = claims.cabundle.as_slice().iter().chain([&claims.certificate]);
    chain.copied().try_fold(i64::MAX, |ends, der| {
        let certificate = Certificate::parse(der).map_err(|_| ServerError::Chain)?;
        Ok(ends.min(certificate.not_after))
    })
}

impl ResolvesServerCert for EnclaveIdentity {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
