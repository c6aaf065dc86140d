//! Revocation lists that the caller brings along; nothing is ever fetched.
//!
//! AWS's own procedure does without them ("We do not use CRL",
//! attestation_process.md section 3.2.4): certificates live for hours. For
//! those who want them, each list must be signed by the issuer whose
//! certificates it revokes, and must be current.

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::{self, PemObject};
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

/// A set of revocation lists; never empty.
#[derive(Debug)]
pub struct RevocationLists(Vec<CertRevocationList<'static>>);

/// Revocation lists that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationListError {
    /// None was given.
    #[error("no revocation list was given")]
    Empty,
    /// The PEM text is broken.
    #[error("revocation list is not valid PEM")]
    Pem,
    /// Not a complete, direct version 2 list for all reasons (RFC 5280 section 5).
    #[error("revocation list cannot be used")]
    List(#[source] webpki::Error),
}

impl RevocationLists {
    /// Lists by their DER.
    ///
    /// # Errors
    /// [`RevocationListError`].
    pub fn from_der<D: AsRef<[u8]>>(lists: impl IntoIterator<Item = D>) -> Result<Self, RevocationListError> {
        let read = |list: D| OwnedCertRevocationList::from_der(list.as_ref()).map(CertRevocationList::Owned);
        let lists: Result<Vec<_>, _> = lists.into_iter().map(read).collect();
        match lists.map_err(RevocationListError::List)? {
            lists if lists.is_empty() => Err(RevocationListError::Empty),
            lists => Ok(Self(lists)),
        }
    }

    /// Lists by the `X509 CRL` blocks of a PEM text.
    ///
    /// # Errors
    /// [`RevocationListError`].
    pub fn from_pem(text: &[u8]) -> Result<Self, RevocationListError> {
        let lists: Result<Vec<CertificateRevocationListDer<'_>>, pem::Error> =
            CertificateRevocationListDer::pem_slice_iter(text).collect();
        Self::from_der(lists.map_err(|_| RevocationListError::Pem)?)
    }

    /// Runs `verify` with these lists. Certificates of which no list speaks
    /// pass; a list that has expired or is not its issuer's does not.
    pub(crate) fn applied<T>(&self, verify: impl FnOnce(Option<webpki::RevocationOptions<'_>>) -> T) -> T {
        let lists: Vec<_> = self.0.iter().collect();
        let options = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        verify(options)
    }
}
