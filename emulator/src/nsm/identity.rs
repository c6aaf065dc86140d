//! Names of things that attest: the instance, and the module of one enclave on it.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;

/// Text that does not have the form of the identifier that it was read as.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct IdentityError {
    text: String,
    expected: &'static str,
}

/// An EC2 instance id: `i-` and 8 or 17 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(String);

impl InstanceId {
    /// A new random id, for a node that has none yet.
    pub fn generate() -> Self {
        let mut random = [0; 8];
        // Only uniqueness is lost if the random source fails.
        let _ = rand::fill(&mut random);
        Self(format!("i-0{:016x}", u64::from_be_bytes(random)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let digits = text.strip_prefix("i-").unwrap_or_default();
        if !matches!(digits.len(), 8 | 17) || !digits.bytes().all(is_lower_hex) {
            return Err(IdentityError {
                text: text.into(),
                expected: "an instance id (i-0123456789abcdef0)",
            });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A module id, `<instance id>-enc<16 hexadecimal digits>`: the enclave's name in
/// `DescribeNSM`, in documents, and as nitro-cli's `EnclaveID`. The digits are the
/// slot number that NE_CREATE_VM returned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModuleId {
    instance: InstanceId,
    slot: u64,
    text: String,
}

impl ModuleId {
    /// The module of the enclave in `slot` of `instance`.
    pub fn new(instance: InstanceId, slot: u64) -> Self {
        let text = format!("{instance}-enc{slot:016x}");
        Self { instance, slot, text }
    }

    /// A slot number as hardware makes them: milliseconds since 1970 in the upper
    /// 48 bits, random lower 16 (seen in every genuine document since 2024).
    pub fn generate_slot(now: SystemTime) -> u64 {
        let millis = now.duration_since(UNIX_EPOCH).map(|since| since.as_millis()).unwrap_or(0);
        let mut random = [0; 2];
        let _ = rand::fill(&mut random); // as above
        ((millis as u64) << 16) | u64::from(u16::from_be_bytes(random))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The instance that the enclave runs on.
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// The enclave's slot number.
    pub fn slot(&self) -> u64 {
        self.slot
    }
}

impl FromStr for ModuleId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let refuse =
            || IdentityError { text: text.into(), expected: "a module id (i-…-enc0123456789abcdef)" };
        let (instance, slot) = text.split_once("-enc").ok_or_else(refuse)?;
        if slot.len() != 16 || !slot.bytes().all(is_lower_hex) {
            return Err(refuse());
        }
        let slot = u64::from_str_radix(slot, 16).map_err(|_| refuse())?;
        Ok(Self::new(instance.parse()?, slot))
    }
}

impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_id_survives_a_round_trip_and_others_are_refused() {
        let text = "i-06f4d13c6679a7232-enc019f15f1504dc31d";
        let module: ModuleId = text.parse().unwrap();
        assert_eq!(module.as_str(), text);
        assert_eq!(module.instance().as_str(), "i-06f4d13c6679a7232");
        assert_eq!(module.slot(), 0x019f_15f1_504d_c31d);
        for wrong in ["", "i-06f4d13c6679a7232", "i-xyz-enc019f15f1504dc31d", "i-06f4d13c6679a7232-enc1"] {
            assert!(wrong.parse::<ModuleId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn generated_ids_are_well_formed_and_differ() {
        let (one, other) = (InstanceId::generate(), InstanceId::generate());
        assert_ne!(one, other);
        assert_eq!(one.as_str().parse::<InstanceId>().unwrap(), one);
        let now = UNIX_EPOCH + std::time::Duration::from_millis(0x019f_15f1_504d);
        assert_eq!(ModuleId::generate_slot(now) >> 16, 0x019f_15f1_504d);
    }
}
