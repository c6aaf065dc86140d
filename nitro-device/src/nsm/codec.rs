//! The module's CBOR: externally tagged enums. A request without fields is a
//! bare text string, any other a map of one entry; integers in their shortest
//! form (a virtual module of QEMU insists).

use std::fmt;

use minicbor::data::Type;
use minicbor::encode::Write;
use minicbor::{Decoder, Encoder};

/// What a document is to say besides the measurements. At most 1024 bytes each.
#[derive(Debug, Default, Clone, Copy)]
pub struct Attestation<'a> {
    /// Chosen by the workload or the agent, never by an outsider.
    pub user_data: Option<&'a [u8]>,
    /// Chosen by whoever wants a fresh document.
    pub nonce: Option<&'a [u8]>,
    /// Chosen by the workload or the agent, never by an outsider.
    pub public_key: Option<&'a [u8]>,
}

/// The module about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Major, minor, patch.
    pub version: [u16; 3],
    /// `i-…-enc…`.
    pub module_id: String,
    /// Number of PCRs (32).
    pub max_pcrs: u16,
    /// Which of them are locked.
    pub locked_pcrs: Vec<u16>,
    /// Name of the PCRs' hash (`SHA384`).
    pub digest: String,
}

/// One PCR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrState {
    /// Locked for the enclave's life.
    pub locked: bool,
    /// 48 bytes.
    pub value: Vec<u8>,
}

/// The module's own reasons. Source: the NSM API's `ErrorCode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NsmErrorCode {
    /// A field has a value that cannot be.
    InvalidArgument,
    /// No such PCR.
    InvalidIndex,
    /// The answer does not belong to the request.
    InvalidResponse,
    /// The PCR is locked.
    ReadOnlyIndex,
    /// Not now.
    InvalidOperation,
    /// The caller's buffer is too small.
    BufferTooSmall,
    /// A field is longer than 1024 bytes.
    InputTooLarge,
    /// The module's own fault.
    InternalError,
    /// A name that is none of these.
    Unknown(String),
}

impl NsmErrorCode {
    fn from_name(name: &str) -> NsmErrorCode {
        match name {
            "InvalidArgument" => NsmErrorCode::InvalidArgument,
            "InvalidIndex" => NsmErrorCode::InvalidIndex,
            "InvalidResponse" => NsmErrorCode::InvalidResponse,
            "ReadOnlyIndex" => NsmErrorCode::ReadOnlyIndex,
            "InvalidOperation" => NsmErrorCode::InvalidOperation,
            "BufferTooSmall" => NsmErrorCode::BufferTooSmall,
            "InputTooLarge" => NsmErrorCode::InputTooLarge,
            "InternalError" => NsmErrorCode::InternalError,
            other => NsmErrorCode::Unknown(other.chars().take(64).collect()),
        }
    }
}

impl fmt::Display for NsmErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NsmErrorCode::Unknown(name) => write!(formatter, "{name:?}"),
            known => write!(formatter, "{known:?}"),
        }
    }
}

/// Why an answer yields no value.
#[derive(Debug)]
pub(super) enum AnswerError {
    Refused(NsmErrorCode),
    Malformed(String),
}

impl From<minicbor::decode::Error> for AnswerError {
    fn from(error: minicbor::decode::Error) -> AnswerError {
        AnswerError::Malformed(error.to_string())
    }
}

type Answer<T> = Result<T, AnswerError>;

pub(super) fn describe_nsm() -> Vec<u8> {
    build(|encoder| encoder.str("DescribeNSM").map(drop))
}

pub(super) fn random() -> Vec<u8> {
    build(|encoder| encoder.str("GetRandom").map(drop))
}

pub(super) fn attestation(fields: &Attestation<'_>) -> Vec<u8> {
    build(|encoder| {
        encoder.map(1)?.str("Attestation")?.map(3)?;
        optional(encoder.str("user_data")?, fields.user_data)?;
        optional(encoder.str("nonce")?, fields.nonce)?;
        optional(encoder.str("public_key")?, fields.public_key)
    })
}

pub(super) fn pcr_request(name: &str, field: &str, value: u16) -> Vec<u8> {
    build(|encoder| encoder.map(1)?.str(name)?.map(1)?.str(field)?.u16(value).map(drop))
}

pub(super) fn extend_pcr(index: u16, data: &[u8]) -> Vec<u8> {
    build(|encoder| {
        encoder.map(1)?.str("ExtendPCR")?.map(2)?;
        encoder.str("index")?.u16(index)?.str("data")?.bytes(data).map(drop)
    })
}

pub(super) fn read_description(answer: &[u8]) -> Answer<Description> {
    let mut found = Description {
        version: [0; 3],
        module_id: String::new(),
        max_pcrs: 0,
        locked_pcrs: Vec::new(),
        digest: String::new(),
    };
    read_fields(answer, "DescribeNSM", |name, value| {
        match name {
            "version_major" => found.version[0] = value.u16()?,
            "version_minor" => found.version[1] = value.u16()?,
            "version_patch" => found.version[2] = value.u16()?,
            "module_id" => found.module_id = value.str()?.to_owned(),
            "max_pcrs" => found.max_pcrs = value.u16()?,
            "locked_pcrs" => found.locked_pcrs = value.array_iter()?.collect::<Result<_, _>>()?,
            "digest" => found.digest = value.str()?.to_owned(),
            _ => value.skip()?,
        }
        Ok(())
    })?;
    Ok(found)
}

pub(super) fn read_random(answer: &[u8]) -> Answer<Vec<u8>> {
    read_bytes(answer, "GetRandom", "random")
}

pub(super) fn read_document(answer: &[u8]) -> Answer<Vec<u8>> {
    read_bytes(answer, "Attestation", "document")
}

pub(super) fn read_extension(answer: &[u8]) -> Answer<Vec<u8>> {
    read_bytes(answer, "ExtendPCR", "data")
}

pub(super) fn read_pcr(answer: &[u8]) -> Answer<PcrState> {
    let (mut locked, mut bytes) = (None, None);
    read_fields(answer, "DescribePCR", |name, value| {
        match name {
            "lock" => locked = Some(value.bool()?),
            "data" => bytes = Some(value.bytes()?.to_vec()),
            _ => value.skip()?,
        }
        Ok(())
    })?;
    match (locked, bytes) {
        (Some(locked), Some(value)) => Ok(PcrState { locked, value }),
        _ => Err(AnswerError::Malformed("lock or data is missing".to_owned())),
    }
}

/// An answer without fields is the request's name as a text string.
pub(super) fn read_unit(answer: &[u8], name: &'static str) -> Answer<()> {
    let mut decoder = Decoder::new(answer);
    if decoder.datatype()? == Type::String {
        return match decoder.str()? {
            found if found == name => Ok(()),
            found => Err(unexpected(found, name)),
        };
    }
    read_fields(answer, name, |_, value| Ok(value.skip()?))
}

fn read_bytes(answer: &[u8], name: &'static str, field: &'static str) -> Answer<Vec<u8>> {
    let mut found = None;
    read_fields(answer, name, |key, value| {
        if key == field {
            found = Some(value.bytes()?.to_vec());
        } else {
            value.skip()?;
        }
        Ok(())
    })?;
    found.ok_or_else(|| AnswerError::Malformed(format!("{field} is missing")))
}

/// Walks `{name: {field: value, …}}`, or turns `{"Error": code}` into a refusal.
fn read_fields<'a>(
    answer: &'a [u8],
    name: &'static str,
    mut field: impl FnMut(&'a str, &mut Decoder<'a>) -> Answer<()>,
) -> Answer<()> {
    let mut decoder = Decoder::new(answer);
    if decoder.map()? != Some(1) {
        return Err(AnswerError::Malformed("not a map of one entry".to_owned()));
    }
    match decoder.str()? {
        "Error" => return Err(AnswerError::Refused(NsmErrorCode::from_name(decoder.str()?))),
        found if found != name => return Err(unexpected(found, name)),
        _ => {}
    }
    let fields = decoder.map()?.ok_or_else(|| AnswerError::Malformed("map of unknown length".to_owned()))?;
    for _ in 0..fields {
        let key = decoder.str()?;
        field(key, &mut decoder)?;
    }
    match answer.len() - decoder.position() {
        0 => Ok(()),
        extra => Err(AnswerError::Malformed(format!("{extra} bytes after the answer"))),
    }
}

fn unexpected(found: &str, name: &str) -> AnswerError {
    let found: String = found.chars().take(64).collect();
    AnswerError::Malformed(format!("an answer to {found:?} instead of {name:?}"))
}

type EncodeResult = Result<(), minicbor::encode::Error<<Vec<u8> as Write>::Error>>;

fn build(fill: impl FnOnce(&mut Encoder<Vec<u8>>) -> EncodeResult) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    // The error type of writing to a Vec is Infallible: only our own calls can fail, and they cannot.
    let written = fill(&mut encoder);
    debug_assert!(written.is_ok(), "encoding into memory failed");
    encoder.into_writer()
}

fn optional(encoder: &mut Encoder<Vec<u8>>, field: Option<&[u8]>) -> EncodeResult {
    match field {
        Some(bytes) => encoder.bytes(bytes).map(drop),
        None => encoder.null().map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_bytes_of_the_device() {
        assert_eq!(random(), b"\x69GetRandom");
        assert_eq!(describe_nsm(), b"\x6bDescribeNSM");
        assert_eq!(pcr_request("DescribePCR", "index", 0), b"\xa1\x6bDescribePCR\xa1\x65index\x00");
        assert_eq!(pcr_request("LockPCRs", "range", 16), b"\xa1\x68LockPCRs\xa1\x65range\x10");
        assert_eq!(extend_pcr(16, &[1, 2]), b"\xa1\x69ExtendPCR\xa2\x65index\x10\x64data\x42\x01\x02");
        assert_eq!(
            attestation(&Attestation { nonce: Some(b"n"), ..Attestation::default() }),
            b"\xa1\x6bAttestation\xa3\x69user_data\xf6\x65nonce\x41n\x6apublic_key\xf6"
        );
    }

    #[test]
    fn answers_are_read_and_refusals_keep_their_code() {
        assert_eq!(read_random(b"\xa1\x69GetRandom\xa1\x66random\x42\x01\x02").unwrap(), [1, 2]);
        let pcr = read_pcr(b"\xa1\x6bDescribePCR\xa2\x64lock\xf5\x64data\x41\x07").unwrap();
        assert_eq!(pcr, PcrState { locked: true, value: vec![7] });
        assert!(read_unit(b"\x67LockPCR", "LockPCR").is_ok());
        let refused = read_unit(b"\xa1\x65Error\x6dReadOnlyIndex", "LockPCR");
        assert!(matches!(refused, Err(AnswerError::Refused(NsmErrorCode::ReadOnlyIndex))));
    }

    #[test]
    fn answers_to_another_request_or_with_a_tail_are_malformed() {
        for answer in [
            &b"\xa1\x67LockPCR\xa0"[..],
            b"\x67LockPCR",
            b"\xa1\x69GetRandom\xa1\x66random\x42\x01\x02\x00",
            b"\xa1\x69GetRandom\xa0",
            b"\xa1\x69GetRandom\xa1\x66random\x5a\xff\xff\xff\xff",
            b"",
        ] {
            assert!(matches!(read_random(answer), Err(AnswerError::Malformed(_))), "{answer:02x?}");
        }
    }
}
