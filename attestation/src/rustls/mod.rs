//! TLS whose server is an enclave of an accepted build, for `rustls`.
//!
//! ```text
//! enclave                                          client
//! key ─▶ binding ─▶ NSM ─▶ document ─┐             policy
//!  └─────▶ certificate { key, document } ─▶ 1. document   Verifier
//!                                           2. binding    user_data names the certificate's key
//!                    CertificateVerify   ─▶ 3. signature  by that same key
//! ```
//!
//! TLS 1.3 only, one kind of key, no resumption: every connection is verified
//! anew. [`client`] is for those who connect, [`server`] for the agent,
//! [`session`] for those who want the document to be of this very session.

pub mod certificate;
pub mod client;
pub mod server;
pub mod session;

use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use ::rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use certificate::{EvidenceError, Wrapped};
pub use client::AttestedServerVerifier;
pub use server::{EnclaveIdentity, ServerError};
pub use session::Challenge;

use crate::binding::{Binding, Purpose};

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The binding of a SubjectPublicKeyInfo (DER).
pub(crate) fn binding(purpose: Purpose, key_info: &[u8]) -> Binding {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, key_info).as_ref());
    Binding { purpose, key }
}
