//! PCR16 of an enclave whose variables come from the pod.
//!
//! ```text
//! PCR16 = SHA-384(48 zero bytes || SHA-384("A=1\0B=two words\0"))
//! ```
//!
//! The variables are sorted by name, each with a NUL after it, as `env -0`
//! writes them. An image that lets the pod set variables extends and locks the
//! register before its workload starts, also when the pod sets none. Neither
//! names nor values hold a NUL.

use aws_lc_rs::digest::{SHA384, digest};

use crate::document::Pcr;

/// The register that holds the environment.
pub const REGISTER: u8 = 16;

/// What the agent extends the register with.
pub fn measure<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Pcr {
    let mut variables: Vec<_> = variables.into_iter().collect();
    variables.sort_unstable();
    let listed: String = variables.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
    sha384(listed.as_bytes())
}

/// The register's value afterwards.
pub fn pcr<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Pcr {
    sha384(&[[0; 48], measure(variables)].concat())
}

fn sha384(bytes: &[u8]) -> Pcr {
    let mut value = [0; 48];
    value.copy_from_slice(digest(&SHA384, bytes).as_ref());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'A=1\0B=two words\0' | sha384sum`, then the same of 48 zero bytes and that.
    #[test]
    fn anybody_can_compute_the_register_with_a_shell() {
        let expected = [0x5b, 0x66, 0x85, 0x0b, 0x46, 0x22, 0x1b, 0x5f];
        let sorted = pcr([("A", "1"), ("B", "two words")]);
        assert_eq!(sorted[..8], expected);
        assert_eq!(pcr([("B", "two words"), ("A", "1")]), sorted, "the order does not matter");
        assert_ne!(pcr([]), [0; 48], "none at all is measured too");
    }
}
