//! What the module answers, in the CBOR of AWS's `nsm-api` (src/api/mod.rs,
//! `Response`): a bare text for an answer without fields, else a map of one.
//! Fields are written in the order of that type, lengths definite.

use std::convert::Infallible;
use std::fmt;

use minicbor::Encoder;

use super::pcr::{Digest, PCR_COUNT};

/// Longest response: the driver's buffer (linux/drivers/misc/nsm.c, NSM_RESPONSE_MAX_SIZE).
pub const RESPONSE_MAX: usize = 0x3000;
/// Bytes in one `GetRandom` answer. The kernel's random source reads only the long
/// form of a byte string's head, so a shorter answer would seed nothing.
pub const RANDOM_LEN: usize = 256;

/// Error names of `nsm-api`, those that a module can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request is not a well-formed request.
    InvalidArgument,
    /// No such PCR.
    InvalidIndex,
    /// For completeness of the set: clients use it when an answer is not the one awaited.
    InvalidResponse,
    /// The PCR is locked.
    ReadOnlyIndex,
    /// No such command.
    InvalidOperation,
    /// The answer is longer than [`RESPONSE_MAX`].
    BufferTooSmall,
    /// The request or one of its fields is too long.
    InputTooLarge,
    /// Signing or the random source failed.
    InternalError,
}

impl ErrorCode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::InvalidIndex => "InvalidIndex",
            Self::InvalidResponse => "InvalidResponse",
            Self::ReadOnlyIndex => "ReadOnlyIndex",
            Self::InvalidOperation => "InvalidOperation",
            Self::BufferTooSmall => "BufferTooSmall",
            Self::InputTooLarge => "InputTooLarge",
            Self::InternalError => "InternalError",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One answer, not yet encoded.
#[derive(Debug)]
pub(super) enum Response<'a> {
    DescribeNsm { module_id: &'a str, locked: Vec<u8> },
    DescribePcr { lock: bool, data: Digest },
    ExtendPcr { data: Digest },
    LockPcr,
    LockPcrs,
    Attestation { document: Vec<u8> },
    GetRandom { random: Box<[u8; RANDOM_LEN]> },
    Error(ErrorCode),
}

impl Response<'_> {
    /// The encoded answer, at most [`RESPONSE_MAX`] bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new(Vec::new());
        match self.write(&mut out) {
            Ok(()) if out.writer().len() <= RESPONSE_MAX => out.into_writer(),
            Ok(()) => Response::Error(ErrorCode::BufferTooSmall).encode(),
            // Not reached: writing to a Vec cannot fail.
            Err(_) => Vec::new(),
        }
    }

    fn write(&self, out: &mut Encoder<Vec<u8>>) -> Result<(), minicbor::encode::Error<Infallible>> {
        match self {
            Self::DescribeNsm { module_id, locked } => {
                out.map(1)?.str("DescribeNSM")?.map(7)?;
                out.str("version_major")?.u8(1)?;
                out.str("version_minor")?.u8(0)?;
                out.str("version_patch")?.u8(0)?;
                out.str("module_id")?.str(module_id)?;
                out.str("max_pcrs")?.u8(PCR_COUNT)?;
                out.str("locked_pcrs")?.array(locked.len() as u64)?;
                for index in locked {
                    out.u8(*index)?;
                }
                out.str("digest")?.str("SHA384")?;
            }
            Self::DescribePcr { lock, data } => {
                out.map(1)?.str("DescribePCR")?.map(2)?;
                out.str("lock")?.bool(*lock)?.str("data")?.bytes(data)?;
            }
            Self::ExtendPcr { data } => {
                out.map(1)?.str("ExtendPCR")?.map(1)?.str("data")?.bytes(data)?;
            }
            Self::LockPcr => {
                out.str("LockPCR")?;
            }
            Self::LockPcrs => {
                out.str("LockPCRs")?;
            }
            Self::Attestation { document } => {
                out.map(1)?.str("Attestation")?.map(1)?.str("document")?.bytes(document)?;
            }
            Self::GetRandom { random } => {
                out.map(1)?.str("GetRandom")?.map(1)?.str("random")?.bytes(random.as_slice())?;
            }
            Self::Error(code) => {
                out.map(1)?.str("Error")?.str(code.as_str())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_the_bytes_of_the_published_type() {
        let zeros = "00".repeat(48);
        for (answer, expected) in [
            (Response::LockPcr, "674c6f636b504352".to_owned()),
            (Response::LockPcrs, "684c6f636b50435273".to_owned()),
            (Response::Error(ErrorCode::InvalidIndex), "a1654572726f726c496e76616c6964496e646578".to_owned()),
            (
                Response::DescribePcr { lock: true, data: [0; 48] },
                format!("a16b4465736372696265504352a2646c6f636bf564646174615830{zeros}"),
            ),
            (Response::ExtendPcr { data: [0; 48] }, format!("a169457874656e64504352a164646174615830{zeros}")),
        ] {
            assert_eq!(hex::encode(answer.encode()), expected);
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_becomes_an_error() {
        let fits = Response::Attestation { document: vec![0; RESPONSE_MAX - 26] }.encode();
        assert_eq!(fits.len(), RESPONSE_MAX);
        let refused = Response::Attestation { document: vec![0; RESPONSE_MAX - 25] }.encode();
        assert_eq!(refused, Response::Error(ErrorCode::BufferTooSmall).encode());
    }
}
