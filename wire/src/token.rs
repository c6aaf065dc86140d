//! The secret by which an agent knows the shim that claimed it.

use std::fmt;

use minicbor::{Decode, Encode};

/// Sixteen random bytes, made by the shim for one enclave's life.
///
/// It keeps other processes of the node out; it gives no confidentiality
/// against the parent, which sees every byte on the vsock.
#[derive(Clone, Encode, Decode)]
#[cbor(transparent)]
pub struct SessionToken(#[n(0)] minicbor::bytes::ByteArray<16>);

impl SessionToken {
    /// A token of these bytes, which must come from a random source.
    pub fn from_random(bytes: [u8; 16]) -> SessionToken {
        SessionToken(bytes.into())
    }
}

/// Compares every byte whatever the first difference: a stranger who may try
/// often learns nothing from the time.
impl PartialEq for SessionToken {
    fn eq(&self, other: &SessionToken) -> bool {
        self.0.iter().zip(other.0.iter()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

impl Eq for SessionToken {}

/// Never prints the secret.
impl fmt::Debug for SessionToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SessionToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_by_any_byte_and_never_print() {
        let token = SessionToken::from_random([7; 16]);
        assert_eq!(token, SessionToken::from_random([7; 16]));
        for byte in 0..16 {
            let mut other = [7; 16];
            other[byte] ^= 1;
            assert_ne!(token, SessionToken::from_random(other));
        }
        assert_eq!(format!("{token:?}"), "SessionToken(..)");
    }
}
