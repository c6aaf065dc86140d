//! The curves that an image may be signed on. Each decides hash and algorithm
//! of its signatures (RFC 9053 section 2.1, as AWS's builder pairs them).

use aws_lc_rs::{
    digest::{self, Digest, SHA256, SHA384, SHA512},
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
        ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm,
    },
};

use super::der::{INTEGER, SEQUENCE, expect};

/// The curve of a signer's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// With SHA-256: ES256.
    P256,
    /// With SHA-384: ES384.
    P384,
    /// With SHA-512: ES512.
    P521,
}

impl Curve {
    pub(super) const ALL: [Curve; 3] = [Curve::P256, Curve::P384, Curve::P521];

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Curve::P256 => "P-256",
            Curve::P384 => "P-384",
            Curve::P521 => "P-521",
        }
    }

    /// What is signed of a message.
    pub fn digest(self, message: &[u8]) -> Digest {
        let algorithm = match self {
            Curve::P256 => &SHA256,
            Curve::P384 => &SHA384,
            Curve::P521 => &SHA512,
        };
        digest::digest(algorithm, message)
    }

    /// Bytes of each half of a signature.
    pub fn scalar_len(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }

    /// A signature as ASN.1 has it (RFC 3279 section 2.2.3) in the form that
    /// COSE wants: both halves, each as long as [`Curve::scalar_len`].
    pub fn fixed_from_der(self, der: &[u8]) -> Option<Vec<u8>> {
        let (halves, rest) = expect(der, SEQUENCE)?;
        let (r, after_r) = expect(halves, INTEGER)?;
        let (s, after_s) = expect(after_r, INTEGER)?;
        if !rest.is_empty() || !after_s.is_empty() {
            return None;
        }
        let mut fixed = Vec::with_capacity(2 * self.scalar_len());
        for half in [r, s] {
            let half = match half {
                // A zero keeps the number positive.
                [0, digits @ ..] => digits,
                [first, ..] if first & 0x80 != 0 => return None,
                digits => digits,
            };
            let padding = self.scalar_len().checked_sub(half.len())?;
            fixed.resize(fixed.len() + padding, 0);
            fixed.extend_from_slice(half);
        }
        Some(fixed)
    }

    /// The number of its algorithm in COSE.
    pub(super) fn cose_algorithm(self) -> i64 {
        match self {
            Curve::P256 => -7,
            Curve::P384 => -35,
            Curve::P521 => -36,
        }
    }

    pub(super) fn verification(self) -> &'static EcdsaVerificationAlgorithm {
        match self {
            Curve::P256 => &ECDSA_P256_SHA256_FIXED,
            Curve::P384 => &ECDSA_P384_SHA384_FIXED,
            Curve::P521 => &ECDSA_P521_SHA512_FIXED,
        }
    }

    pub(super) fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Curve::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Curve::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
            Curve::P521 => &ECDSA_P521_SHA512_FIXED_SIGNING,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_signature_are_padded_and_lose_their_sign_byte() {
        let der = [0x30, 9, 2, 1, 5, 2, 4, 0, 0x80, 1, 2];
        let fixed = Curve::P256.fixed_from_der(&der).unwrap();
        assert_eq!(fixed.len(), 64);
        assert_eq!((fixed[..31].iter().all(|byte| *byte == 0), fixed[31]), (true, 5));
        assert_eq!(fixed[61..], [0x80, 1, 2]);
    }

    #[test]
    fn other_shapes_of_a_signature_are_refused() {
        let half = [&[2, 33][..], &[1; 33]].concat();
        let long = [&[0x30, 38][..], &half, &[2, 1, 1]].concat();
        for der in [&[][..], &[0x30, 0], &[0x30, 3, 2, 1, 1], &[0x30, 6, 2, 1, 0x80, 2, 1, 1], &long] {
            assert_eq!(Curve::P256.fixed_from_der(der), None, "{der:?}");
        }
        let trailing = [0x30, 6, 2, 1, 1, 2, 1, 1, 0];
        assert_eq!(Curve::P256.fixed_from_der(&trailing), None);
    }
}
