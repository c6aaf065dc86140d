//! The payload of a document: its fields, their bounds, and [`Untrusted`],
//! which holds them before anything has been verified.
//!
//! Field rules follow docs/attestation_process.md of aws-nitro-enclaves-nsm-api
//! (sections 2.2 and 3.2.2), with what hardware really does: optional fields
//! are present as null, user_data and nonce reach 1024 bytes and may be empty,
//! and the payload map is of indefinite length since mid-2025.

use crate::cbor::{CborError, CborFault, Length, Reader};
use crate::cose::{Envelope, EnvelopeError, Malformed};
use crate::error::Error;

/// Length of a PCR value in bytes: documents use SHA-384 only.
pub const PCR_LEN: usize = 48;
/// Highest number of PCRs; indices are 0 to 31.
pub const MAX_PCRS: usize = 32;
/// Most certificates accepted in `cabundle`. Genuine documents carry 4.
pub const MAX_CABUNDLE: usize = 8;
/// Longest certificate, user_data, nonce and public_key, in bytes each.
pub const MAX_FIELD: usize = 1024;
/// Longest module_id in bytes. Genuine ones have 39.
pub const MAX_MODULE_ID: usize = 64;

/// The value of one platform configuration register.
pub type Pcr = [u8; PCR_LEN];

/// A document that is well-formed. Nothing in it is authentic: every accessor
/// says `claimed`, and no conversion leads to [`crate::Verified`] but a
/// [`crate::Verifier`].
#[derive(Debug, Clone)]
pub struct Untrusted<'a> {
    pub(crate) envelope: Envelope<'a>,
    pub(crate) claims: Claims<'a>,
}

/// The fields of the payload, borrowed from the document.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims<'a> {
    pub(crate) module_id: &'a str,
    pub(crate) timestamp_ms: u64,
    pub(crate) pcrs: Pcrs<'a>,
    pub(crate) certificate: &'a [u8],
    pub(crate) cabundle: Bundle<'a>,
    pub(crate) public_key: Option<&'a [u8]>,
    pub(crate) user_data: Option<&'a [u8]>,
    pub(crate) nonce: Option<&'a [u8]>,
    /// Whether the signed map holds a key that this version does not know.
    pub(crate) has_unknown_field: bool,
}

/// PCR values by index.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pcrs<'a>([Option<&'a Pcr>; MAX_PCRS]);

/// The issuing certificates, root first.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bundle<'a> {
    certificates: [&'a [u8]; MAX_CABUNDLE],
    len: usize,
}

/// What is wrong with the payload's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// A mandatory field is missing.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A field is shorter or longer than the format allows.
    #[error("field {field} is {actual} bytes, expected {min} to {max}")]
    Length {
        /// Name of the field.
        field: &'static str,
        /// Length found, in bytes.
        actual: usize,
        /// Shortest accepted length.
        min: usize,
        /// Longest accepted length.
        max: usize,
    },
    /// `digest` is not `SHA384`.
    #[error("digest is not SHA384")]
    Digest,
    /// `timestamp` is zero or at least 2^53.
    #[error("timestamp {0} ms is out of range")]
    Timestamp(u64),
    /// A PCR index above 31.
    #[error("PCR index {0} is out of range")]
    PcrIndex(u64),
    /// A PCR that is not 48 bytes.
    #[error("PCR{index} is {actual} bytes, expected {PCR_LEN}")]
    PcrLength {
        /// Index of the register.
        index: u8,
        /// Length found, in bytes.
        actual: usize,
    },
    /// `pcrs` is empty.
    #[error("no PCR is present")]
    NoPcrs,
    /// `cabundle` is empty.
    #[error("no issuing certificate is present")]
    NoCabundle,
    /// A NitroTPM document: signed by the same root, but for an EC2 instance,
    /// not for an enclave.
    #[error("this is a NitroTPM document of an EC2 instance, not of an enclave")]
    NitroTpm,
}

impl DocumentError {
    /// Stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "document.missing-field",
            Self::Length { .. } => "document.field-length",
            Self::Digest => "document.digest",
            Self::Timestamp(_) => "document.timestamp",
            Self::PcrIndex(_) => "document.pcr-index",
            Self::PcrLength { .. } => "document.pcr-length",
            Self::NoPcrs => "document.no-pcrs",
            Self::NoCabundle => "document.no-cabundle",
            Self::NitroTpm => "document.nitrotpm",
        }
    }
}

impl<'a> Untrusted<'a> {
    /// Reads a document as the NSM returned it: COSE_Sign1, with or without tag 18.
    ///
    /// # Errors
    /// [`Error::Envelope`], [`Error::Cbor`] or [`Error::Document`], all of class
    /// [`crate::Class::Malformed`].
    pub fn parse(document: &'a [u8]) -> Result<Self, Error> {
        let envelope = Envelope::parse(document)?;
        let claims = Claims::parse(envelope.payload, envelope.payload_at)?;
        Ok(Self { envelope, claims })
    }

    /// The module id that the document gives itself.
    pub fn claimed_module_id(&self) -> &'a str {
        self.claims.module_id
    }

    /// The time that the document gives itself, in milliseconds since the epoch.
    pub fn claimed_timestamp_ms(&self) -> u64 {
        self.claims.timestamp_ms
    }

    /// The PCRs that the document claims, in rising order of index.
    pub fn claimed_pcrs(&self) -> impl Iterator<Item = (u8, &'a Pcr)> + '_ {
        self.claims.pcrs.iter()
    }

    /// The `user_data` that the document carries.
    pub fn claimed_user_data(&self) -> Option<&'a [u8]> {
        self.claims.user_data
    }

    /// The `nonce` that the document carries.
    pub fn claimed_nonce(&self) -> Option<&'a [u8]> {
        self.claims.nonce
    }

    /// The `public_key` that the document carries.
    pub fn claimed_public_key(&self) -> Option<&'a [u8]> {
        self.claims.public_key
    }

    /// The certificates that the document carries: issuers from the root on, then the leaf.
    pub fn claimed_certificates(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.claims.cabundle.as_slice().iter().copied().chain([self.claims.certificate])
    }
}

impl<'a> Pcrs<'a> {
    pub(crate) fn at(&self, index: u8) -> Option<&'a Pcr> {
        self.0.get(usize::from(index)).copied().flatten()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, &'a Pcr)> + '_ {
        (0u8..).zip(self.0).filter_map(|(index, pcr)| Some((index, pcr?)))
    }
}

impl<'a> Bundle<'a> {
    pub(crate) fn as_slice(&self) -> &[&'a [u8]] {
        self.certificates.get(..self.len).unwrap_or_default()
    }
}

impl<'a> Claims<'a> {
    fn parse(payload: &'a [u8], at: usize) -> Result<Self, Malformation> {
        let mut reader = Reader::new(payload, at);
        let mut fields = Fields::default();
        let mut map = reader.map(MAX_FIELDS, Length::Either)?;
        while reader.more(&mut map)? {
            fields.read(&mut reader)?;
        }
        reader.end()?;
        fields.complete()
    }
}

const MAX_FIELDS: usize = 32;
/// The payload map is depth 1; whatever an unknown key holds lies within it.
const PAYLOAD_DEPTH: u8 = 1;
const MAX_TIMESTAMP: u64 = 1 << 53;

const MODULE_ID: &str = "module_id";
const DIGEST: &str = "digest";
const TIMESTAMP: &str = "timestamp";
const PCRS: &str = "pcrs";
const CERTIFICATE: &str = "certificate";
const CABUNDLE: &str = "cabundle";
const PUBLIC_KEY: &str = "public_key";
const USER_DATA: &str = "user_data";
const NONCE: &str = "nonce";
const NITROTPM_PCRS: &str = "nitrotpm_pcrs";

/// The payload while it is being read.
#[derive(Debug, Default)]
struct Fields<'a> {
    /// Every key so far: single assignment holds for unknown ones too.
    keys: [&'a str; MAX_FIELDS],
    len: usize,
    nitrotpm: bool,
    claims: Claims<'a>,
}

impl<'a> Fields<'a> {
    fn read(&mut self, reader: &mut Reader<'a>) -> Result<(), Malformation> {
        let at = reader.offset();
        let key = reader.text()?;
        if self.has(key) {
            return Err(Reader::error(at, CborFault::DuplicateKey).into());
        }
        if let Some(slot) = self.keys.get_mut(self.len) {
            *slot = key;
            self.len += 1;
        }
        let claims = &mut self.claims;
        match key {
            MODULE_ID => {
                claims.module_id = reader.text()?;
                bounded(MODULE_ID, claims.module_id.as_bytes(), 1, MAX_MODULE_ID)?;
            }
            DIGEST if reader.text()? == "SHA384" => {}
            DIGEST => return Err(DocumentError::Digest.into()),
            TIMESTAMP => claims.timestamp_ms = timestamp(reader)?,
            PCRS => claims.pcrs = pcrs(reader)?,
            CERTIFICATE => claims.certificate = bounded(CERTIFICATE, reader.bytes()?, 1, MAX_FIELD)?,
            CABUNDLE => claims.cabundle = cabundle(reader)?,
            PUBLIC_KEY => claims.public_key = optional(PUBLIC_KEY, reader, 1)?,
            USER_DATA => claims.user_data = optional(USER_DATA, reader, 0)?,
            NONCE => claims.nonce = optional(NONCE, reader, 0)?,
            other => {
                self.nitrotpm |= other == NITROTPM_PCRS;
                claims.has_unknown_field = true;
                reader.skip(PAYLOAD_DEPTH)?;
            }
        }
        Ok(())
    }

    fn has(&self, key: &str) -> bool {
        self.keys.iter().take(self.len).any(|seen| *seen == key)
    }

    fn complete(self) -> Result<Claims<'a>, Malformation> {
        if self.nitrotpm {
            return Err(DocumentError::NitroTpm.into());
        }
        for field in [MODULE_ID, DIGEST, TIMESTAMP, PCRS, CERTIFICATE, CABUNDLE] {
            if !self.has(field) {
                return Err(DocumentError::Missing(field).into());
            }
        }
        Ok(self.claims)
    }
}

fn bounded<'a>(
    field: &'static str,
    bytes: &'a [u8],
    min: usize,
    max: usize,
) -> Result<&'a [u8], DocumentError> {
    if (min..=max).contains(&bytes.len()) {
        return Ok(bytes);
    }
    Err(DocumentError::Length { field, actual: bytes.len(), min, max })
}

fn optional<'a>(
    field: &'static str,
    reader: &mut Reader<'a>,
    min: usize,
) -> Result<Option<&'a [u8]>, Malformation> {
    Ok(match reader.bytes_or_null()? {
        Some(bytes) => Some(bounded(field, bytes, min, MAX_FIELD)?),
        None => None,
    })
}

fn timestamp(reader: &mut Reader<'_>) -> Result<u64, Malformation> {
    let timestamp = reader.uint()?;
    if timestamp == 0 || timestamp >= MAX_TIMESTAMP {
        return Err(DocumentError::Timestamp(timestamp).into());
    }
    Ok(timestamp)
}

fn pcrs<'a>(reader: &mut Reader<'a>) -> Result<Pcrs<'a>, Malformation> {
    let mut pcrs = Pcrs::default();
    let mut map = reader.map(MAX_PCRS, Length::Either)?;
    while reader.more(&mut map)? {
        let at = reader.offset();
        let index = reader.uint()?;
        let slot = usize::try_from(index).ok().and_then(|index| pcrs.0.get_mut(index));
        let slot = slot.ok_or(DocumentError::PcrIndex(index))?;
        let value = reader.bytes()?;
        let actual = value.len();
        let value = value.try_into();
        let value = value.map_err(|_| DocumentError::PcrLength { index: index as u8, actual })?;
        if slot.replace(value).is_some() {
            return Err(Reader::error(at, CborFault::DuplicateKey).into());
        }
    }
    if pcrs.iter().next().is_none() {
        return Err(DocumentError::NoPcrs.into());
    }
    Ok(pcrs)
}

fn cabundle<'a>(reader: &mut Reader<'a>) -> Result<Bundle<'a>, Malformation> {
    let mut bundle = Bundle::default();
    let mut array = reader.array(MAX_CABUNDLE, Length::Either)?;
    while reader.more(&mut array)? {
        let certificate = bounded(CABUNDLE, reader.bytes()?, 1, MAX_FIELD)?;
        if let Some(slot) = bundle.certificates.get_mut(bundle.len) {
            *slot = certificate;
            bundle.len += 1;
        }
    }
    if bundle.len == 0 {
        return Err(DocumentError::NoCabundle.into());
    }
    Ok(bundle)
}

/// Why a payload could not be read.
enum Malformation {
    Cbor(CborError),
    Document(DocumentError),
}

impl From<CborError> for Malformation {
    fn from(error: CborError) -> Self {
        Self::Cbor(error)
    }
}

impl From<DocumentError> for Malformation {
    fn from(error: DocumentError) -> Self {
        Self::Document(error)
    }
}

impl From<Malformation> for Error {
    fn from(error: Malformation) -> Self {
        match error {
            Malformation::Cbor(error) => Self::Cbor(error),
            Malformation::Document(error) => Self::Document(error),
        }
    }
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        match error {
            Malformed::Cbor(error) => Self::Cbor(error),
            Malformed::Envelope(error) => Self::Envelope(error),
        }
    }
}

impl From<EnvelopeError> for Error {
    fn from(error: EnvelopeError) -> Self {
        Self::Envelope(error)
    }
}
