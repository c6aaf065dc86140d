//! Parses and verifies AWS Nitro Enclaves attestation documents.
//!
//! ```no_run
//! use attestation::{Clock, Policy, TrustAnchors, Verifier};
//! # fn example(document: &[u8], nonce: [u8; 32], pcr0: attestation::Pcr) -> Result<(), Box<dyn std::error::Error>> {
//! let policy = Policy::pcrs([(0, pcr0)])?.nonce(nonce);
//! let verified = Verifier::new(TrustAnchors::aws_g1(), policy).verify(document, Clock::System)?;
//! println!("{} in {}", verified.module_id(), verified.region());
//! # Ok(()) }
//! ```
//!
//! Read [`verify`] first: it holds the order of the checks.

#![forbid(unsafe_code)]

pub mod anchors;
pub mod binding;
mod cache;
pub mod cbor;
pub mod chain;
mod cose;
mod der;
pub mod document;
mod error;
pub mod identity;
pub mod policy;
#[cfg(feature = "policy-file")]
pub mod policy_file;
pub mod revocation;
#[cfg(feature = "rustls")]
pub mod rustls;
pub mod verify;
pub mod x509;

pub use crate::anchors::{Fingerprint, TrustAnchors};
pub use crate::cose::{EnvelopeError, MAX_DOCUMENT};
pub use crate::document::{Pcr, Untrusted};
pub use crate::error::{Class, Error};
pub use crate::policy::Policy;
#[cfg(feature = "policy-file")]
pub use crate::policy_file::PolicyFile;
pub use crate::revocation::RevocationLists;
pub use crate::verify::{Clock, Verified, Verifier};
