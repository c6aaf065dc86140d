//! From a trusted root down to the key that signed the document.
//!
//! ```text
//! cabundle[0] ─▶ cabundle[1] ─▶ … ─▶ cabundle[n] ─▶ certificate
//! root, by          each names and signs the next,       leaf
//! fingerprint       in exactly this order
//! ```
//!
//! Own rules come first because they are cheap; each signature is then
//! verified once, by `webpki`. Names are unique along the chain, so that there
//! is one path to build and hostile input cannot make `webpki` search.

use std::fmt;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::aws_lc_rs::ECDSA_P384_SHA384;
use webpki::{EndEntityCert, KeyUsage, RevocationOptions, anchor_from_trusted_cert};

use crate::anchors::{Fingerprint, TrustAnchors, fingerprint};
use crate::cache::{Cache, ChainId};
use crate::document::{Claims, MAX_CABUNDLE};
use crate::error::Error;
use crate::revocation::RevocationLists;
use crate::x509::Certificate;

/// The place of a certificate in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// `cabundle[n]`; 0 is the root.
    Issuer(usize),
    /// `certificate`, whose key signs the document.
    Leaf,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issuer(index) => write!(f, "cabundle[{index}]"),
            Self::Leaf => f.write_str("certificate"),
        }
    }
}

/// Why a chain of good certificates does not lead to the document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The document's root is not in the set.
    #[error("root certificate {} is not trusted", Hex(.0))]
    UntrustedRoot(Fingerprint),
    /// A certificate does not name the one before it as its issuer.
    #[error("{0} is not issued by the certificate before it")]
    Order(Position),
    /// Two certificates bear the same subject.
    #[error("{0} repeats the subject of another certificate")]
    RepeatedSubject(Position),
    /// A certificate has ended.
    #[error("{0} expired at Unix time {1}", .position, .not_after)]
    Expired {
        /// Which certificate.
        position: Position,
        /// Last second of its validity, since the epoch.
        not_after: i64,
    },
    /// A certificate has not begun.
    #[error("{0} is not valid before Unix time {1}", .position, .not_before)]
    NotYetValid {
        /// Which certificate.
        position: Position,
        /// Begin of its validity, in seconds since the epoch.
        not_before: i64,
    },
    /// A signature in the chain is wrong.
    #[error("a signature in the chain is wrong")]
    Signature,
    /// More issuers than a path length constraint allows.
    #[error("a path length constraint is exceeded")]
    PathLength,
    /// A certificate is on a revocation list that the caller brought along.
    #[error("a certificate of the chain has been revoked")]
    Revoked,
    /// A revocation list that the caller brought along is out of date.
    #[error("a revocation list has expired")]
    ListExpired,
    /// `webpki` refused the chain for another reason.
    #[error("the chain is not acceptable")]
    Rejected(#[source] webpki::Error),
    /// The path that was verified is not the one in the document.
    #[error("the verified path leaves out certificates of the document")]
    OtherPath,
}

impl ChainError {
    /// Stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UntrustedRoot(_) => "chain.untrusted-root",
            Self::Order(_) => "chain.order",
            Self::RepeatedSubject(_) => "chain.repeated-subject",
            Self::Expired { .. } => "chain.expired",
            Self::NotYetValid { .. } => "chain.not-yet-valid",
            Self::Signature => "chain.signature",
            Self::PathLength => "chain.path-length",
            Self::Revoked => "chain.revoked",
            Self::ListExpired => "chain.list-expired",
            Self::Rejected(_) => "chain.rejected",
            Self::OtherPath => "chain.other-path",
        }
    }
}

/// A chain whose certificates are well-formed, in order, and end in a trusted root.
#[derive(Debug, Clone)]
pub(crate) struct Chain<'a> {
    ders: Vec<CertificateDer<'a>>,
    issuers: Vec<Certificate<'a>>,
    pub(crate) leaf: Certificate<'a>,
    pub(crate) root: Fingerprint,
}

impl<'a> Chain<'a> {
    /// Reads the certificates and applies every rule that needs no signature.
    pub(crate) fn read(claims: &Claims<'a>, anchors: &TrustAnchors) -> Result<Self, Error> {
        let bundle = claims.cabundle.as_slice();
        let root = fingerprint(bundle.first().copied().unwrap_or_default());
        if !anchors.contains(&root) {
            return Err(ChainError::UntrustedRoot(root).into());
        }
        let mut issuers = Vec::with_capacity(MAX_CABUNDLE);
        for (index, der) in bundle.iter().enumerate() {
            let certificate =
                Certificate::parse(der).and_then(|issuer| issuer.check_issuer().map(|()| issuer));
            issuers.push(
                certificate
                    .map_err(|source| Error::Certificate { position: Position::Issuer(index), source })?,
            );
        }
        let leaf = Certificate::parse(claims.certificate).and_then(|leaf| leaf.check_leaf().map(|()| leaf));
        let leaf = leaf.map_err(|source| Error::Certificate { position: Position::Leaf, source })?;
        let ders =
            bundle.iter().chain([&claims.certificate]).map(|der| CertificateDer::from_slice(der)).collect();
        let chain = Self { ders, issuers, leaf, root };
        chain.check_order()?;
        chain.check_root_path_length()?;
        Ok(chain)
    }

    /// Certificates from the root to the leaf.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = (Position, &Certificate<'a>)> {
        let issuers =
            self.issuers.iter().enumerate().map(|(index, issuer)| (Position::Issuer(index), issuer));
        issuers.chain([(Position::Leaf, &self.leaf)])
    }

    /// Last second at which every certificate is valid, since the epoch.
    pub(crate) fn not_after(&self) -> i64 {
        self.certificates().map(|(_, certificate)| certificate.not_after).min().unwrap_or(i64::MIN)
    }

    /// Verifies validity, path lengths and all signatures at `seconds` since
    /// the epoch. Signatures that `cache` remembers are not verified again,
    /// unless there are revocation lists: those are consulted every time.
    pub(crate) fn verify(
        &self,
        seconds: u64,
        cache: Option<&Cache>,
        lists: Option<&RevocationLists>,
    ) -> Result<(), ChainError> {
        self.check_validity(i64::try_from(seconds).unwrap_or(i64::MAX))?;
        let [issuers @ .., leaf] = self.ders.as_slice() else { return Err(ChainError::OtherPath) };
        if let Some(lists) = lists {
            return lists.applied(|lists| verify_path(issuers, leaf, seconds, lists));
        }
        let Some(cache) = cache else { return verify_path(issuers, leaf, seconds, None) };
        let known_issuers = ChainId::of(issuers.iter().map(AsRef::as_ref));
        let known_chain = ChainId::of(self.ders.iter().map(AsRef::as_ref));
        if cache.contains(known_chain) {
            return Ok(());
        }
        match issuers {
            // The last issuer has been verified, so the leaf may start from it.
            [.., last] if cache.contains(known_issuers) => {
                verify_path(std::slice::from_ref(last), leaf, seconds, None)?
            }
            issuers => verify_path(issuers, leaf, seconds, None)?,
        }
        cache.insert(known_issuers);
        cache.insert(known_chain);
        Ok(())
    }

    fn check_order(&self) -> Result<(), ChainError> {
        let mut issuer: Option<&Certificate<'_>> = None;
        for (index, (position, certificate)) in self.certificates().enumerate() {
            // The root names itself.
            if certificate.issuer != issuer.unwrap_or(certificate).subject {
                return Err(ChainError::Order(position));
            }
            if self.certificates().take(index).any(|(_, earlier)| earlier.subject == certificate.subject) {
                return Err(ChainError::RepeatedSubject(position));
            }
            issuer = Some(certificate);
        }
        Ok(())
    }

    /// `webpki` holds intermediates to their path lengths, but not the root.
    fn check_root_path_length(&self) -> Result<(), ChainError> {
        let limit = self.issuers.first().and_then(Certificate::path_length);
        let below = self.issuers.len().saturating_sub(1);
        match limit {
            Some(limit) if below > usize::from(limit) => Err(ChainError::PathLength),
            _ => Ok(()),
        }
    }

    /// Names the certificate that is out of time, the root included: `webpki`
    /// does neither.
    fn check_validity(&self, seconds: i64) -> Result<(), ChainError> {
        for (position, certificate) in self.certificates() {
            if seconds > certificate.not_after {
                return Err(ChainError::Expired { position, not_after: certificate.not_after });
            }
            if seconds < certificate.not_before {
                return Err(ChainError::NotYetValid { position, not_before: certificate.not_before });
            }
        }
        Ok(())
    }
}

/// Verifies the one path from the first of `issuers`, which is trusted, to `leaf`.
fn verify_path(
    issuers: &[CertificateDer<'_>],
    leaf: &CertificateDer<'_>,
    seconds: u64,
    revocation: Option<RevocationOptions<'_>>,
) -> Result<(), ChainError> {
    let [anchor, intermediates @ ..] = issuers else { return Err(ChainError::OtherPath) };
    let anchor = [anchor_from_trusted_cert(anchor).map_err(ChainError::Rejected)?];
    let leaf = EndEntityCert::try_from(leaf).map_err(ChainError::Rejected)?;
    // Real leaves have no extendedKeyUsage; one that has must allow clients.
    let usage = KeyUsage::client_auth();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let path = leaf
        .verify_for_usage(&[ECDSA_P384_SHA384], &anchor, intermediates, time, usage, revocation, None)
        .map_err(refusal)?;
    if path.intermediate_certificates().count() != intermediates.len() {
        return Err(ChainError::OtherPath);
    }
    Ok(())
}

fn refusal(error: webpki::Error) -> ChainError {
    match error {
        webpki::Error::InvalidSignatureForPublicKey => ChainError::Signature,
        webpki::Error::PathLenConstraintViolated => ChainError::PathLength,
        webpki::Error::CertRevoked => ChainError::Revoked,
        webpki::Error::CrlExpired { .. } => ChainError::ListExpired,
        other => ChainError::Rejected(other),
    }
}

/// Shows bytes as lower-case hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
