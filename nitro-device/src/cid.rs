//! Vsock context ids that an enclave can have.

use std::fmt;

/// An enclave's context id: at least 4, below `u32::MAX`.
///
/// 0 is the hypervisor, 1 local, 2 the well-known host, 3 the parent instance,
/// `u32::MAX` "any" (vsock(7)); the driver refuses them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid(u32);

impl Cid {
    /// The parent instance, as seen from an enclave and from itself.
    pub const PARENT: u32 = 3;
    /// Where the hypervisor serves debug consoles.
    pub const HYPERVISOR: u32 = 0;

    /// The number for a vsock address.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The hypervisor's port on which this enclave's debug console is read.
    /// Source: nitro-cli's console, port 10000 + CID on CID 0.
    pub fn console_port(self) -> u32 {
        self.0.saturating_add(10_000)
    }
}

/// Why a number is no enclave's context id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("CID {0} is reserved; an enclave's is 4 to 4294967294")]
pub struct CidError(pub u64);

impl TryFrom<u64> for Cid {
    type Error = CidError;

    fn try_from(number: u64) -> Result<Cid, CidError> {
        match u32::try_from(number) {
            Ok(cid @ 4..=0xFFFF_FFFE) => Ok(Cid(cid)),
            _ => Err(CidError(number)),
        }
    }
}

impl TryFrom<u32> for Cid {
    type Error = CidError;

    fn try_from(number: u32) -> Result<Cid, CidError> {
        Cid::try_from(u64::from(number))
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ids_cannot_exist() {
        for number in [0, 1, 2, 3, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX] {
            assert_eq!(Cid::try_from(number), Err(CidError(number)));
        }
        assert_eq!(Cid::try_from(4u32).unwrap().get(), 4);
        assert_eq!(Cid::try_from(16u64).unwrap().console_port(), 10_016);
    }
}
