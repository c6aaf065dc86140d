//! Which root certificates are trusted.
//!
//! Documents carry their root as `cabundle[0]`, so a SHA-256 fingerprint is
//! enough to know it: the set holds fingerprints and nothing can be added to
//! it from the environment.

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// SHA-256 of a root certificate's DER.
pub type Fingerprint = [u8; 32];

/// Fingerprint of the root of AWS's commercial partition, "G1", as AWS publishes it in
/// <https://docs.aws.amazon.com/enclaves/latest/user/verify-root.html>.
pub const AWS_G1: Fingerprint = [
    0x64, 0x1a, 0x03, 0x21, 0xa3, 0xe2, 0x44, 0xef, 0xe4, 0x56, 0x46, 0x31, 0x95, 0xd6, 0x06, 0x31, 0x7e,
    0xd7, 0xcd, 0xcc, 0x3c, 0x17, 0x56, 0xe0, 0x98, 0x93, 0xf3, 0xc6, 0x8f, 0x79, 0xbb, 0x5b,
];

/// The root certificates that a verifier trusts; never empty.
#[derive(Debug, Clone)]
pub struct TrustAnchors(Vec<Fingerprint>);

/// A set of trust anchors that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// No root was given: such a verifier could accept nothing.
    #[error("no root certificate was given")]
    Empty,
    /// The PEM text is broken.
    #[error("root certificate is not valid PEM")]
    Pem,
}

impl TrustAnchors {
    /// The root of AWS's commercial partition. Other partitions (China,
    /// GovCloud) have roots of their own: see [`Self::from_fingerprints`].
    pub fn aws_g1() -> Self {
        Self(vec![AWS_G1])
    }

    /// Roots by the SHA-256 of their DER.
    ///
    /// # Errors
    /// [`AnchorError::Empty`].
    pub fn from_fingerprints(roots: impl IntoIterator<Item = Fingerprint>) -> Result<Self, AnchorError> {
        let roots: Vec<_> = roots.into_iter().collect();
        if roots.is_empty() { Err(AnchorError::Empty) } else { Ok(Self(roots)) }
    }

    /// Roots by their DER certificates.
    ///
    /// # Errors
    /// [`AnchorError::Empty`].
    pub fn from_der<D: AsRef<[u8]>>(roots: impl IntoIterator<Item = D>) -> Result<Self, AnchorError> {
        Self::from_fingerprints(roots.into_iter().map(|root| fingerprint(root.as_ref())))
    }

    /// Roots by the `CERTIFICATE` blocks of a PEM text.
    ///
    /// # Errors
    /// [`AnchorError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, AnchorError> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        Self::from_der(roots.map_err(|_| AnchorError::Pem)?)
    }

    /// The roots of both sets.
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    pub(crate) fn contains(&self, root: &Fingerprint) -> bool {
        self.0.contains(root)
    }
}

pub(crate) fn fingerprint(der: &[u8]) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(digest(&SHA256, der).as_ref());
    fingerprint
}
