//! The 32 platform configuration registers of one module.
//!
//! 0..=15 are locked before the enclave runs; 16..=31 start at zero, unlocked, and
//! belong to the workload. A lock lasts as long as the enclave.

use aws_lc_rs::digest::{Context, SHA384};

use super::identity::InstanceId;
use super::response::ErrorCode;

/// A register's value, and every SHA-384 digest here.
pub type Digest = [u8; 48];
/// Registers in a module.
pub const PCR_COUNT: u8 = 32;
/// Registers below this one are locked at boot.
pub const FIRST_FREE: u8 = 16;

const ZERO: Digest = [0; 48];

/// What was measured of an image and of where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurements {
    /// The whole image.
    pub pcr0: Digest,
    /// Kernel and first ramdisk.
    pub pcr1: Digest,
    /// The other ramdisks.
    pub pcr2: Digest,
    /// The certificate that signed the image; `None` for an unsigned one.
    pub pcr8: Option<Digest>,
    /// ARN of the instance's IAM role; `None` when it has none.
    pub role_arn: Option<String>,
}

/// Registers and their locks.
#[derive(Debug, Clone)]
pub(super) struct PcrBank {
    values: [Digest; PCR_COUNT as usize],
    locked: u32,
}

impl PcrBank {
    /// The state at boot. In debug mode the image's registers (0, 1, 2, 8) stay zero;
    /// 3 and 4 do not depend on the image and are set all the same.
    pub(super) fn at_boot(measured: &Measurements, instance: &InstanceId, debug: bool) -> Self {
        let mut values = [ZERO; PCR_COUNT as usize];
        if !debug {
            values[0] = measured.pcr0;
            values[1] = measured.pcr1;
            values[2] = measured.pcr2;
            values[8] = measured.pcr8.unwrap_or(ZERO);
        }
        if let Some(arn) = &measured.role_arn {
            values[3] = extended(&ZERO, arn.as_bytes());
        }
        values[4] = extended(&ZERO, instance.as_str().as_bytes());
        Self { values, locked: (1 << FIRST_FREE) - 1 }
    }

    /// Lock state and value.
    pub(super) fn describe(&self, index: u16) -> Result<(bool, Digest), ErrorCode> {
        let value = self.values.get(usize::from(index)).ok_or(ErrorCode::InvalidIndex)?;
        Ok((self.is_locked(index), *value))
    }

    /// SHA-384 over the old value and `data`; the new value.
    pub(super) fn extend(&mut self, index: u16, data: &[u8]) -> Result<Digest, ErrorCode> {
        let locked = self.is_locked(index);
        let value = self.values.get_mut(usize::from(index)).ok_or(ErrorCode::InvalidIndex)?;
        if locked {
            return Err(ErrorCode::ReadOnlyIndex);
        }
        *value = extended(value, data);
        Ok(*value)
    }

    /// Locks one register; a locked one cannot be locked again.
    pub(super) fn lock(&mut self, index: u16) -> Result<(), ErrorCode> {
        if index >= u16::from(PCR_COUNT) {
            return Err(ErrorCode::InvalidIndex);
        }
        if self.is_locked(index) {
            return Err(ErrorCode::ReadOnlyIndex);
        }
        self.locked |= 1 << index;
        Ok(())
    }

    /// Locks all registers below `range`, those that are locked already included.
    pub(super) fn lock_range(&mut self, range: u16) -> Result<(), ErrorCode> {
        if range > u16::from(PCR_COUNT) {
            return Err(ErrorCode::InvalidIndex);
        }
        self.locked |= ((1u64 << range) - 1) as u32;
        Ok(())
    }

    /// Index and value of each locked register, ascending.
    pub(super) fn locked(&self) -> impl Iterator<Item = (u8, &Digest)> {
        (0u8..).zip(&self.values).filter(|(index, _)| self.is_locked(u16::from(*index)))
    }

    fn is_locked(&self, index: u16) -> bool {
        index < u16::from(PCR_COUNT) && self.locked & (1 << index) != 0
    }
}

fn extended(old: &Digest, data: &[u8]) -> Digest {
    let mut context = Context::new(&SHA384);
    context.update(old);
    context.update(data);
    let mut value = ZERO;
    value.copy_from_slice(context.finish().as_ref());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bank() -> PcrBank {
        let measured = Measurements {
            pcr0: [1; 48],
            pcr1: [2; 48],
            pcr2: [3; 48],
            pcr8: Some([8; 48]),
            role_arn: Some("arn:aws:iam::123456789012:role/test".into()),
        };
        PcrBank::at_boot(&measured, &"i-06f4d13c6679a7232".parse().unwrap(), false)
    }

    #[test]
    fn the_instance_register_matches_a_genuine_document() {
        // PCR4 of the document turnkey-2026-06, from instance i-06f4d13c6679a7232.
        let value = hex::encode(bank().describe(4).unwrap().1);
        assert!(value.starts_with("08e19135bee5"), "{value}");
    }

    #[test]
    fn locking_follows_the_table() {
        use ErrorCode::{InvalidIndex, ReadOnlyIndex};
        // (register, lock it first, extend, lock)
        let table = [
            (0, false, Some(ReadOnlyIndex), Some(ReadOnlyIndex)),
            (15, false, Some(ReadOnlyIndex), Some(ReadOnlyIndex)),
            (16, false, None, None),
            (31, false, None, None),
            (16, true, Some(ReadOnlyIndex), Some(ReadOnlyIndex)),
            (31, true, Some(ReadOnlyIndex), Some(ReadOnlyIndex)),
            (32, false, Some(InvalidIndex), Some(InvalidIndex)),
            (u16::MAX, false, Some(InvalidIndex), Some(InvalidIndex)),
        ];
        for (index, locked_first, extend, lock) in table {
            let mut bank = bank();
            if locked_first {
                bank.lock(index).unwrap();
            }
            assert_eq!(bank.extend(index, b"x").err(), extend, "extend {index}");
            assert_eq!(bank.lock(index).err(), lock, "lock {index}");
        }
        assert_eq!(bank().describe(32).err(), Some(InvalidIndex));
    }

    #[test]
    fn a_range_locks_everything_below_it_and_may_repeat() {
        for (range, locked) in [(0, 16), (16, 16), (17, 17), (31, 31), (32, 32)] {
            let mut bank = bank();
            bank.lock_range(range).unwrap();
            bank.lock_range(range).unwrap();
            assert_eq!(bank.locked().count(), locked, "range {range}");
        }
        assert_eq!(bank().lock_range(33), Err(ErrorCode::InvalidIndex));
    }

    #[test]
    fn extending_chains_digests() {
        let mut bank = bank();
        assert_eq!(bank.describe(16).unwrap(), (false, ZERO));
        let first = bank.extend(16, b"one").unwrap();
        let second = bank.extend(16, b"two").unwrap();
        let by_hand = |old: &[u8], data: &[u8]| {
            aws_lc_rs::digest::digest(&SHA384, &[old, data].concat()).as_ref().to_vec()
        };
        assert_eq!(first.to_vec(), by_hand(&ZERO, b"one"));
        assert_eq!(second.to_vec(), by_hand(&first, b"two"));
        assert_eq!(bank.describe(16).unwrap(), (false, second));
        bank.lock(16).unwrap();
        assert_eq!(bank.describe(16).unwrap(), (true, second));
    }
}
