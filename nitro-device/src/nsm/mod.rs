//! The Nitro Security Module: /dev/nsm inside the enclave.
//!
//! [`device`] moves bytes through the driver's one ioctl; [`codec`] is the CBOR
//! of requests and answers; [`Nsm`] joins them. The module is serial: the
//! driver holds one mutex, so calls from several threads only queue.

mod codec;
mod device;

use std::path::Path;

pub use codec::{Attestation, Description, NsmErrorCode, PcrState};
pub use device::{MAX_REQUEST, MAX_RESPONSE, NSM_PATH, NsmDevice};

/// Why the module did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum NsmError {
    /// /dev/nsm cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The device's path.
        path: String,
        /// ENOENT outside an enclave or without the driver.
        source: std::io::Error,
    },
    /// The ioctl failed.
    #[error("the NSM did not answer {request}")]
    Ioctl {
        /// Name of the request.
        request: &'static str,
        /// EMSGSIZE, ETIMEDOUT (the device was silent for 120 s) …
        source: std::io::Error,
    },
    /// The module refused.
    #[error("the NSM refused {request}: {code}")]
    Refused {
        /// Name of the request.
        request: &'static str,
        /// Its reason.
        code: NsmErrorCode,
    },
    /// The answer is not one to this request.
    #[error("the NSM's answer to {request} cannot be read: {reason}")]
    Malformed {
        /// Name of the request.
        request: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The open module, with typed requests. Source of names, limits and errors:
/// the NSM API's request and response enums.
#[derive(Debug)]
pub struct Nsm {
    device: NsmDevice,
}

impl Nsm {
    /// Opens the module, usually at [`NSM_PATH`].
    pub fn open(path: &Path) -> Result<Nsm, NsmError> {
        Ok(Nsm { device: NsmDevice::open(path)? })
    }

    /// Version, module id, which PCRs are locked.
    pub fn describe(&mut self) -> Result<Description, NsmError> {
        self.ask("DescribeNSM", &codec::describe_nsm(), codec::read_description)
    }

    /// 256 random bytes.
    pub fn random(&mut self) -> Result<Vec<u8>, NsmError> {
        self.ask("GetRandom", &codec::random(), codec::read_random)
    }

    /// A signed document, COSE_Sign1 bytes. Each field holds at most 1024 bytes.
    pub fn attest(&mut self, fields: &Attestation<'_>) -> Result<Vec<u8>, NsmError> {
        self.ask("Attestation", &codec::attestation(fields), codec::read_document)
    }

    /// Value and lock of PCR `index` (0 to 31).
    pub fn describe_pcr(&mut self, index: u16) -> Result<PcrState, NsmError> {
        self.ask("DescribePCR", &codec::pcr_request("DescribePCR", "index", index), codec::read_pcr)
    }

    /// PCR `index` becomes SHA-384(PCR || data). Returns its new value, 48 bytes.
    pub fn extend_pcr(&mut self, index: u16, data: &[u8]) -> Result<Vec<u8>, NsmError> {
        self.ask("ExtendPCR", &codec::extend_pcr(index, data), codec::read_extension)
    }

    /// Locks PCR `index` for the enclave's life.
    pub fn lock_pcr(&mut self, index: u16) -> Result<(), NsmError> {
        let request = codec::pcr_request("LockPCR", "index", index);
        self.ask("LockPCR", &request, |answer| codec::read_unit(answer, "LockPCR"))
    }

    /// Locks PCRs 0 up to, not including, `range`.
    pub fn lock_pcrs(&mut self, range: u16) -> Result<(), NsmError> {
        let request = codec::pcr_request("LockPCRs", "range", range);
        self.ask("LockPCRs", &request, |answer| codec::read_unit(answer, "LockPCRs"))
    }

    fn ask<T>(
        &mut self,
        name: &'static str,
        request: &[u8],
        read: impl Fn(&[u8]) -> Result<T, codec::AnswerError>,
    ) -> Result<T, NsmError> {
        let answer =
            self.device.exchange(request).map_err(|source| NsmError::Ioctl { request: name, source })?;
        read(answer).map_err(|error| match error {
            codec::AnswerError::Refused(code) => NsmError::Refused { request: name, code },
            codec::AnswerError::Malformed(reason) => NsmError::Malformed { request: name, reason },
        })
    }
}
