//! P-384 keys and the two shapes in which their signatures are written.

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
};

use super::der::{self, oid};

/// Octets of an uncompressed P-384 point: 0x04, x, y.
pub const POINT_LEN: usize = 97;
/// Octets of an ES384 signature: r and s, 48 each, big-endian (RFC 9053 section 2.1).
pub const SIGNATURE_LEN: usize = 96;

/// Why a key could not be made, read, or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The library or its random source failed.
    #[error("cannot generate a P-384 key")]
    Generate,
    /// The bytes are not a P-384 private key in PKCS#8 (RFC 5958).
    #[error("not a P-384 private key in PKCS#8")]
    Malformed,
    /// The library refused to sign.
    #[error("cannot sign with the P-384 key")]
    Sign,
}

/// A P-384 private key, kept in memory. Has no `Debug`: nothing may print it.
pub struct SigningKey {
    // The library ties the shape of a signature to the key pair.
    certificates: EcdsaKeyPair,
    documents: EcdsaKeyPair,
    random: SystemRandom,
}

impl SigningKey {
    /// A new key from the system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).map_err(|_| KeyError::Generate)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// Reads an unencrypted PKCS#8 key (DER).
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let read = |shape| EcdsaKeyPair::from_pkcs8(shape, pkcs8).map_err(|_| KeyError::Malformed);
        Ok(Self {
            certificates: read(&ECDSA_P384_SHA384_ASN1_SIGNING)?,
            documents: read(&ECDSA_P384_SHA384_FIXED_SIGNING)?,
            random: SystemRandom::new(),
        })
    }

    /// The key as unencrypted PKCS#8 (DER). The caller guards the bytes.
    pub fn to_pkcs8(&self) -> Result<Vec<u8>, KeyError> {
        let pkcs8 = self.certificates.to_pkcs8v1().map_err(|_| KeyError::Malformed)?;
        Ok(pkcs8.as_ref().to_vec())
    }

    /// The uncompressed public point, [`POINT_LEN`] octets.
    pub fn public_point(&self) -> &[u8] {
        self.certificates.public_key().as_ref()
    }

    /// The SubjectPublicKeyInfo: named curve, uncompressed point (RFC 5480 section 2).
    pub fn public_key_info(&self) -> Vec<u8> {
        let algorithm = der::sequence(&[
            &der::object_identifier(oid::EC_PUBLIC_KEY),
            &der::object_identifier(oid::SECP384R1),
        ]);
        der::sequence(&[&algorithm, &der::bit_string(0, self.public_point())])
    }

    /// The 20-octet key identifier of RFC 7093 section 2, method 1: the leftmost
    /// 160 bits of SHA-256 over the point. (Hardware uses SHA-1; nothing compares.)
    pub fn identifier(&self) -> [u8; 20] {
        let hash = digest::digest(&digest::SHA256, self.public_point());
        let mut identifier = [0; 20];
        identifier.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
        identifier
    }

    /// ECDSA with SHA-384 over `message`, as certificates carry it: DER SEQUENCE of r and s.
    pub fn sign_der(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.certificates.sign(&self.random, message).map_err(|_| KeyError::Sign)?;
        Ok(signature.as_ref().to_vec())
    }

    /// ECDSA with SHA-384 over `message`, as COSE carries it: [`SIGNATURE_LEN`] octets.
    pub fn sign_fixed(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.documents.sign(&self.random, message).map_err(|_| KeyError::Sign)?;
        Ok(signature.as_ref().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

    use super::*;

    #[test]
    fn both_signature_shapes_verify_after_a_round_trip_through_pkcs8() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pkcs8(&key.to_pkcs8().unwrap()).unwrap();
        assert_eq!(key.public_point(), again.public_point());
        assert_eq!(key.public_point().len(), POINT_LEN);

        let signature = again.sign_fixed(b"message").unwrap();
        assert_eq!(signature.len(), SIGNATURE_LEN);
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.public_point())
            .verify(b"message", &signature)
            .unwrap();
        let signature = again.sign_der(b"message").unwrap();
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, key.public_point())
            .verify(b"message", &signature)
            .unwrap();
    }

    #[test]
    fn bytes_that_are_no_key_are_refused() {
        assert!(matches!(SigningKey::from_pkcs8(b"not a key"), Err(KeyError::Malformed)));
    }
}
