//! What the agent in the enclave has signed as `user_data`, so that a
//! document speaks for a key of its own.
//!
//! ```text
//!  0         16       17       18                       50
//!  "enclave-binding\0" version  purpose  SHA-256 of the key
//! ```
//!
//! Whoever may have `user_data` of his choosing signed could pose as the
//! enclave. So [`RESERVED`] belongs to the agent alone, and every use has a
//! purpose of its own. Needs no allocation and no standard library.

/// `user_data` that begins so is the agent's: it must refuse to sign such of
/// the workload, whatever follows.
pub const RESERVED: [u8; 16] = *b"enclave-binding\0";
/// Length of an encoded binding in bytes.
pub const BINDING_LEN: usize = 50;

const VERSION: u8 = 1;

/// What the key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// The key of the certificate that carries the document.
    TlsCertificate = 1,
    /// The key of the TLS session whose exporter made the document's nonce.
    TlsSession = 2,
}

/// A statement of the agent about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Binding {
    /// What the key is for.
    pub purpose: Purpose,
    /// SHA-256 of the key's SubjectPublicKeyInfo (DER).
    pub key: [u8; 32],
}

impl Binding {
    /// The bytes to be signed as `user_data`.
    pub fn to_bytes(&self) -> [u8; BINDING_LEN] {
        let mut bytes = [0; BINDING_LEN];
        let (head, key) = bytes.split_at_mut(BINDING_LEN - 32);
        let (prefix, rest) = head.split_at_mut(RESERVED.len());
        prefix.copy_from_slice(&RESERVED);
        rest.copy_from_slice(&[VERSION, self.purpose as u8]);
        key.copy_from_slice(&self.key);
        bytes
    }

    /// The binding in `user_data`, if it is one of this version.
    pub fn from_bytes(user_data: &[u8]) -> Option<Self> {
        let [VERSION, purpose, key @ ..] = user_data.strip_prefix(&RESERVED)? else { return None };
        let purpose = match purpose {
            1 => Purpose::TlsCertificate,
            2 => Purpose::TlsSession,
            _ => return None,
        };
        Some(Self { purpose, key: key.try_into().ok()? })
    }
}

/// Whether only the agent may have this `user_data` signed.
pub fn is_reserved(user_data: &[u8]) -> bool {
    user_data.starts_with(&RESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_reads_back_and_is_reserved() {
        for purpose in [Purpose::TlsCertificate, Purpose::TlsSession] {
            let binding = Binding { purpose, key: core::array::from_fn(|index| index as u8) };
            let bytes = binding.to_bytes();
            assert_eq!(Binding::from_bytes(&bytes), Some(binding));
            assert_eq!((&bytes[..16], bytes[16], bytes[17]), (&RESERVED[..], 1, purpose as u8));
            assert!(is_reserved(&bytes));
        }
    }

    #[test]
    fn anything_else_is_no_binding_but_may_be_reserved() {
        let bytes = Binding { purpose: Purpose::TlsCertificate, key: [7; 32] }.to_bytes();
        let changed = |at: usize, value: u8| {
            let mut changed = bytes;
            changed[at] = value;
            changed
        };
        for (other, reserved) in [
            (changed(0, b'E').to_vec(), false),
            (changed(15, b'1').to_vec(), false),
            (changed(16, 2).to_vec(), true),
            (changed(17, 0).to_vec(), true),
            (changed(17, 3).to_vec(), true),
            (bytes[..49].to_vec(), true),
            ([&bytes[..], &[0]].concat(), true),
            (RESERVED.to_vec(), true),
            (RESERVED[..15].to_vec(), false),
            (Vec::new(), false),
        ] {
            assert_eq!((Binding::from_bytes(&other), is_reserved(&other)), (None, reserved), "{other:?}");
        }
    }
}
