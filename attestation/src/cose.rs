//! The COSE_Sign1 envelope (RFC 9052 section 4.2) and its ES384 signature.
//!
//! ```text
//! [d2] 84  44 a1013822  a0  59 LLLL payload  58 60 r||s
//! tag? │   protected    │   1..16384 bytes   96 bytes
//!      array(4)         unprotected, not signed: must be empty
//! ```
//!
//! Both headers are compared byte for byte instead of being interpreted: that
//! leaves no room for a second algorithm, `crit`, or unsigned attributes.

#[cfg(feature = "verify")]
use aws_lc_rs::digest;
#[cfg(feature = "verify")]
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, ParsedPublicKey};

use crate::cbor::{CborError, Length, Reader};

/// Largest document read, in bytes. The NSM's own response buffer holds 12288.
pub const MAX_DOCUMENT: usize = 16 * 1024;

/// What is wrong with the envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The document is empty or larger than [`MAX_DOCUMENT`].
    #[error("document is {actual} bytes, expected 1 to {MAX_DOCUMENT}")]
    Size {
        /// Length of the input in bytes.
        actual: usize,
    },
    /// A tag other than 18 (COSE_Sign1), or a second one.
    #[error("document carries a tag other than a single 18")]
    Tag,
    /// Not an array of four elements.
    #[error("COSE_Sign1 is not an array of four elements")]
    Shape,
    /// The protected header is not exactly `{1: -35}` (ES384).
    #[error("protected header is not exactly {{alg: ES384}}")]
    Protected,
    /// The unprotected header, which nobody signed, is not empty.
    #[error("unprotected header is not empty")]
    Unprotected,
    /// The payload is empty, detached, or not a byte string.
    #[error("payload is empty or detached")]
    Payload,
    /// The signature is not 96 bytes.
    #[error("signature is {actual} bytes, expected {SIGNATURE_LEN}")]
    SignatureLength {
        /// Length found, in bytes.
        actual: usize,
    },
}

impl EnvelopeError {
    /// Stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Size { .. } => "cose.size",
            Self::Tag => "cose.tag",
            Self::Shape => "cose.shape",
            Self::Protected => "cose.protected",
            Self::Unprotected => "cose.unprotected",
            Self::Payload => "cose.payload",
            Self::SignatureLength { .. } => "cose.signature-length",
        }
    }
}

/// An envelope that has the right shape; nothing in it is authentic yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Envelope<'a> {
    pub(crate) payload: &'a [u8],
    /// Offset of the payload's first byte in the document.
    pub(crate) payload_at: usize,
    /// The payload with its head, as received: the tail of `Sig_structure`.
    signed: &'a [u8],
    signature: &'a [u8],
}

const TAG_18: u8 = 0xd2;
const ARRAY_OF_FOUR: u8 = 0x84;
const MAJOR_TAG: u8 = 6;
const MAJOR_ARRAY: u8 = 4;
const PROTECTED: &[u8] = &[0xa1, 0x01, 0x38, 0x22];
const UNPROTECTED: u8 = 0xa0;
const SIGNATURE_LEN: usize = 96;
const NULL: u8 = 0xf6;

/// `["Signature1", h'a1013822', h'', ` of `Sig_structure` (RFC 9052 section 4.4).
const SIG_STRUCTURE_START: &[u8] = b"\x84\x6aSignature1\x44\xa1\x01\x38\x22\x40";

/// Why an envelope could not be read.
#[derive(Debug)]
pub(crate) enum Malformed {
    Cbor(CborError),
    Envelope(EnvelopeError),
}

impl<'a> Envelope<'a> {
    pub(crate) fn parse(document: &'a [u8]) -> Result<Self, Malformed> {
        if document.is_empty() || document.len() > MAX_DOCUMENT {
            return Err(Malformed::Envelope(EnvelopeError::Size { actual: document.len() }));
        }
        let mut reader = untagged(document)?;
        if protected(&mut reader)? != PROTECTED {
            return Err(Malformed::Envelope(EnvelopeError::Protected));
        }
        unprotected(&mut reader)?;
        let payload_head = reader.offset();
        let payload = payload(&mut reader)?;
        let payload_at = reader.offset() - payload.len();
        // The head is in its shortest form, which is what the signer hashed.
        let signed = reader.since(payload_head);
        let signature = reader.bytes()?;
        if signature.len() != SIGNATURE_LEN {
            return Err(Malformed::Envelope(EnvelopeError::SignatureLength { actual: signature.len() }));
        }
        reader.end()?;
        Ok(Self { payload, payload_at, signed, signature })
    }

    /// Whether the holder of `key` (uncompressed P-384 point, 97 bytes) signed
    /// this envelope. High and low s are both genuine (hardware emits both),
    /// so a signature never identifies a document.
    #[cfg(feature = "verify")]
    pub(crate) fn is_signed_by(&self, key: &[u8]) -> bool {
        let mut hash = digest::Context::new(&digest::SHA384);
        hash.update(SIG_STRUCTURE_START);
        hash.update(self.signed);
        ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key)
            .is_ok_and(|key| key.verify_digest_sig(&hash.finish(), self.signature).is_ok())
    }
}

/// Steps over tag 18, if it is there, and the head of the outer array.
fn untagged(document: &[u8]) -> Result<Reader<'_>, Malformed> {
    let (body, base) = match document {
        [TAG_18, body @ ..] => (body, 1),
        body => (body, 0),
    };
    match body.first() {
        Some(&ARRAY_OF_FOUR) => Ok(Reader::new(&body[1..], base + 1)),
        Some(byte) if byte >> 5 == MAJOR_TAG => Err(Malformed::Envelope(EnvelopeError::Tag)),
        Some(byte) if byte >> 5 == MAJOR_ARRAY => {
            // Told apart from a plain wrong count: a long or open-ended head.
            Reader::new(body, base).array(usize::MAX, Length::Definite)?;
            Err(Malformed::Envelope(EnvelopeError::Shape))
        }
        _ => Err(Malformed::Envelope(EnvelopeError::Shape)),
    }
}

fn protected<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    match reader.peek() {
        Some(byte) if byte >> 5 == 2 => Ok(reader.bytes()?),
        Some(_) => Err(Malformed::Envelope(EnvelopeError::Protected)),
        None => Ok(reader.bytes()?),
    }
}

fn unprotected(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    match reader.peek() {
        Some(UNPROTECTED) => {
            reader.skip(0)?;
            Ok(())
        }
        Some(_) => Err(Malformed::Envelope(EnvelopeError::Unprotected)),
        None => Ok(reader.skip(0)?),
    }
}

fn payload<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    if reader.peek() == Some(NULL) {
        return Err(Malformed::Envelope(EnvelopeError::Payload));
    }
    let payload = reader.bytes()?;
    if payload.is_empty() {
        return Err(Malformed::Envelope(EnvelopeError::Payload));
    }
    Ok(payload)
}

impl From<CborError> for Malformed {
    fn from(error: CborError) -> Self {
        Self::Cbor(error)
    }
}

impl From<EnvelopeError> for Malformed {
    fn from(error: EnvelopeError) -> Self {
        Self::Envelope(error)
    }
}
