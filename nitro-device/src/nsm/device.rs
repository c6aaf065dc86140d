//! The driver's one ioctl, with a reused answer buffer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use super::NsmError;
use crate::abi::{NSM_IOCTL_RAW, NsmIovec, NsmRaw};

/// Where the driver's device lies.
pub const NSM_PATH: &str = "/dev/nsm";
/// Longest request in bytes; more is EMSGSIZE. Source: Linux `drivers/misc/nsm.c`.
pub const MAX_REQUEST: usize = 0x1000;
/// Longest answer in bytes; the driver silently cuts at the buffer's end, so
/// the buffer is always this long.
pub const MAX_RESPONSE: usize = 0x3000;

/// The open device: bytes in, bytes out.
#[derive(Debug)]
pub struct NsmDevice {
    file: File,
    answer: Box<[u8; MAX_RESPONSE]>,
}

impl NsmDevice {
    /// Opens the device.
    pub fn open(path: &Path) -> Result<NsmDevice, NsmError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| NsmError::Open { path: path.display().to_string(), source })?;
        Ok(NsmDevice { file, answer: Box::new([0; MAX_RESPONSE]) })
    }

    /// Sends one CBOR request and returns the CBOR answer. Blocks while the
    /// module works; ETIMEDOUT after 120 s.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<&[u8]> {
        let mut raw = NsmRaw {
            request: NsmIovec { addr: request.as_ptr() as u64, len: request.len() as u64 },
            response: NsmIovec { addr: self.answer.as_mut_ptr() as u64, len: MAX_RESPONSE as u64 },
        };
        // SAFETY:
        // - the driver reads `request.len` bytes from `request` and writes at most MAX_RESPONSE bytes
        //   into `self.answer`; both live through the call, the latter borrowed mutably.
        // - it writes the answer's length back into `raw`, which is an `nsm_raw` (size asserted).
        let rc = unsafe {
            libc::ioctl(self.file.as_raw_fd(), NSM_IOCTL_RAW as libc::Ioctl, std::ptr::from_mut(&mut raw))
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        let length = usize::try_from(raw.response.len).unwrap_or(usize::MAX);
        self.answer.get(..length).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("answer of {length} bytes does not fit its buffer"),
            )
        })
    }
}

impl AsFd for NsmDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
