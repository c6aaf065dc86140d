//! Platform configuration registers: 48 bytes of SHA-384, and the set that an
//! image measures to.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use aws_lc_rs::digest::{Context, SHA384};
use serde::{Deserialize, Serialize};

/// The value of one register: a SHA-384 digest, 48 bytes. Shown and parsed as
/// 96 hexadecimal digits, lower case when shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pcr([u8; Pcr::LEN]);

impl Pcr {
    /// Bytes in a register.
    pub const LEN: usize = 48;
    /// A register that nothing was measured into; also what every register of
    /// a debug-mode enclave reads as in its attestation documents.
    pub const ZERO: Pcr = Pcr([0; Pcr::LEN]);

    /// The register with these bytes.
    pub const fn from_bytes(bytes: [u8; Pcr::LEN]) -> Pcr {
        Pcr(bytes)
    }

    /// The 48 bytes.
    pub const fn as_bytes(&self) -> &[u8; Pcr::LEN] {
        &self.0
    }

    /// Whether nothing was measured into it.
    pub fn is_zero(&self) -> bool {
        *self == Pcr::ZERO
    }

    /// What a zero register becomes when `data` is measured into it:
    /// `SHA384(48 zero bytes || SHA384(data))`. PCR0, 1, 2 and 8 are made so.
    pub fn of(data: &[u8]) -> Pcr {
        let mut context = Context::new(&SHA384);
        context.update(data);
        Pcr::extended_by(context)
    }

    /// As [`Pcr::of`], for everything that is left in `data`.
    pub fn of_reader(mut data: impl Read) -> io::Result<Pcr> {
        let mut context = Context::new(&SHA384);
        let mut buffer = vec![0; 64 << 10];
        loop {
            match data.read(&mut buffer) {
                Ok(0) => return Ok(Pcr::extended_by(context)),
                Ok(count) => context.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Pcr::of`], for data that `context` (SHA-384) has already taken in.
    pub(crate) fn extended_by(context: Context) -> Pcr {
        let mut register = Context::new(&SHA384);
        register.update(&Pcr::ZERO.0);
        register.update(context.finish().as_ref());
        let mut bytes = [0; Pcr::LEN];
        bytes.copy_from_slice(register.finish().as_ref());
        Pcr(bytes)
    }
}

impl fmt::Display for Pcr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pcr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pcr({self})")
    }
}

/// The text is not a register's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a PCR is 96 hexadecimal digits (48 bytes of SHA-384)")]
pub struct ParsePcrError;

impl FromStr for Pcr {
    type Err = ParsePcrError;

    fn from_str(text: &str) -> Result<Pcr, ParsePcrError> {
        let mut bytes = [0; Pcr::LEN];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| ParsePcrError)?;
        Ok(Pcr(bytes))
    }
}

impl TryFrom<String> for Pcr {
    type Error = ParsePcrError;

    fn try_from(text: String) -> Result<Pcr, ParsePcrError> {
        text.parse()
    }
}

impl From<Pcr> for String {
    fn from(pcr: Pcr) -> String {
        pcr.to_string()
    }
}

/// What an image measures to. Serialises with nitro-cli's key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurements {
    /// The whole image: kernel, command line and every ramdisk.
    #[serde(rename = "PCR0")]
    pub pcr0: Pcr,
    /// What boots: kernel, command line and the first ramdisk.
    #[serde(rename = "PCR1")]
    pub pcr1: Pcr,
    /// The application: every ramdisk after the first.
    #[serde(rename = "PCR2")]
    pub pcr2: Pcr,
    /// Who signed it: the first certificate of the signature section. Only in
    /// a signed image.
    #[serde(rename = "PCR8", default, skip_serializing_if = "Option::is_none")]
    pub pcr8: Option<Pcr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_survives_its_text() {
        let pcr = Pcr::of(b"data");
        assert_eq!(pcr.to_string().parse(), Ok(pcr));
        assert_eq!(pcr.to_string().to_uppercase().parse(), Ok(pcr));
        let json = serde_json::to_string(&pcr).unwrap();
        assert_eq!(serde_json::from_str::<Pcr>(&json).unwrap(), pcr);
    }

    #[test]
    fn other_lengths_and_digits_are_refused() {
        let text = Pcr::ZERO.to_string();
        for wrong in ["", "00", &text[1..], &format!("{text}00"), &text.replace("00", "0g")] {
            assert_eq!(wrong.parse::<Pcr>(), Err(ParsePcrError), "{wrong}");
        }
    }
}
