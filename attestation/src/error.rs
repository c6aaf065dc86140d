//! Every way in which a document is refused, sorted by blame.

use crate::cbor::CborError;
#[cfg(feature = "verify")]
use crate::chain::{ChainError, Position};
use crate::cose::EnvelopeError;
use crate::document::DocumentError;
#[cfg(feature = "verify")]
use crate::identity::IdentityError;
#[cfg(feature = "verify")]
use crate::policy::PolicyViolation;
#[cfg(feature = "verify")]
use crate::verify::TimeError;
#[cfg(feature = "verify")]
use crate::x509::CertificateError;

/// Why a document was refused. Texts hold no bytes that the sender chose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The COSE_Sign1 envelope is wrong.
    #[error(transparent)]
    Envelope(EnvelopeError),
    /// The CBOR is not in its one accepted form.
    #[error(transparent)]
    Cbor(CborError),
    /// A field of the payload is wrong or missing.
    #[error(transparent)]
    Document(DocumentError),
    #[cfg(feature = "verify")]
    /// A certificate breaks a rule of its own.
    #[error("{position} is not acceptable")]
    Certificate {
        /// Which certificate.
        position: Position,
        /// The rule it breaks.
        source: CertificateError,
    },
    #[cfg(feature = "verify")]
    /// The chain does not lead from a trusted root to the leaf.
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[cfg(feature = "verify")]
    /// The leaf did not sign this document.
    #[error("the document's signature is wrong")]
    Signature,
    #[cfg(feature = "verify")]
    /// The document contradicts itself about which enclave it is of.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[cfg(feature = "verify")]
    /// The document is too old or from the future.
    #[error(transparent)]
    Time(#[from] TimeError),
    #[cfg(feature = "verify")]
    /// The document is authentic but not what the policy asks for.
    #[error(transparent)]
    Policy(#[from] PolicyViolation),
}

/// Whose fault a refusal is, and the exit code of programs that report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Not a document at all.
    Malformed,
    /// Well-formed, but nobody who is trusted stands behind it.
    Untrusted,
    /// Authentic, but not what was asked for.
    Policy,
    /// Was or will be acceptable at another time.
    Stale,
}

impl Class {
    /// Exit code of `enclavectl verify`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Malformed => 2,
            Self::Untrusted => 3,
            Self::Policy => 4,
            Self::Stale => 5,
        }
    }

    /// Stable name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Untrusted => "untrusted",
            Self::Policy => "policy",
            Self::Stale => "stale",
        }
    }
}

impl Error {
    /// Stable code such as `policy.pcr-mismatch`, for programs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Envelope(error) => error.code(),
            Self::Cbor(error) => error.fault.code(),
            Self::Document(error) => error.code(),
            #[cfg(feature = "verify")]
            Self::Certificate { source, .. } => source.code(),
            #[cfg(feature = "verify")]
            Self::Chain(error) => error.code(),
            #[cfg(feature = "verify")]
            Self::Signature => "cose.signature",
            #[cfg(feature = "verify")]
            Self::Identity(error) => error.code(),
            #[cfg(feature = "verify")]
            Self::Time(error) => error.code(),
            #[cfg(feature = "verify")]
            Self::Policy(error) => error.code(),
        }
    }

    /// Whose fault it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Envelope(_) | Self::Cbor(_) | Self::Document(_) => Class::Malformed,
            #[cfg(feature = "verify")]
            Self::Chain(
                ChainError::Expired { .. } | ChainError::NotYetValid { .. } | ChainError::ListExpired,
            )
            | Self::Time(_) => Class::Stale,
            #[cfg(feature = "verify")]
            Self::Certificate { .. } | Self::Chain(_) | Self::Signature | Self::Identity(_) => {
                Class::Untrusted
            }
            #[cfg(feature = "verify")]
            Self::Policy(_) => Class::Policy,
        }
    }
}
