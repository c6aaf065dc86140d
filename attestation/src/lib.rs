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
//!
//! Without the feature `verify`, which is on by default, this is the reader of
//! documents alone: [`Untrusted::parse`] and what it needs, without the standard
//! library and without allocation, for machines that have neither.

#![forbid(unsafe_code)]
#![cfg_attr(not(feature = "verify"), no_std)]
// What only the verifier asks of the reader.
#![cfg_attr(not(feature = "verify"), allow(dead_code, rustdoc::broken_intra_doc_links))]

#[cfg(feature = "verify")]
pub mod anchors;
pub mod binding;
#[cfg(feature = "verify")]
mod cache;
pub mod cbor;
#[cfg(feature = "verify")]
pub mod chain;
mod cose;
mod der;
pub mod document;
#[cfg(feature = "verify")]
pub mod environment;
mod error;
#[cfg(feature = "verify")]
pub mod identity;
#[cfg(feature = "verify")]
pub mod policy;
#[cfg(feature = "policy-file")]
pub mod policy_file;
#[cfg(feature = "verify")]
pub mod revocation;
#[cfg(feature = "rustls")]
pub mod rustls;
#[cfg(feature = "verify")]
pub mod verify;
pub mod x509;

#[cfg(feature = "verify")]
pub use crate::anchors::{Fingerprint, TrustAnchors};
pub use crate::cose::{EnvelopeError, MAX_DOCUMENT};
pub use crate::document::{Pcr, Untrusted};
pub use crate::error::{Class, Error};
#[cfg(feature = "verify")]
pub use crate::policy::Policy;
#[cfg(feature = "policy-file")]
pub use crate::policy_file::PolicyFile;
#[cfg(feature = "verify")]
pub use crate::revocation::RevocationLists;
#[cfg(feature = "verify")]
pub use crate::verify::{Clock, Verified, Verifier};
