//! Makes the signature of an image: a COSE_Sign1 (RFC 9052 section 4.2) over
//! PCR0 by the key of a certificate, and both in a section's payload.
//!
//! ```text
//! PCR0 ─▶ Sig_structure ─▶ SigningKey ─▶ COSE_Sign1 ─┬─▶ section ─▶ check
//! certificate (PEM as given) ────────────────────────┘
//! ```
//! What comes out was verified as a reader would: a key that is not the
//! certificate's, wherever it is kept, makes no section.

use std::{error::Error, time::SystemTime};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{EcdsaKeyPair, KeyPair},
};
use minicbor::{Encoder, encode};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};

use super::certificate::{self, CertificateError};
use super::check::{Envelope, SignatureCheckError};
use super::{Curve, Signature, SignatureError};
use crate::layout::MAX_SIGNATURE;
use crate::pcr::Pcr;

/// What a key's error is: its kinds are the business of whoever keeps it.
pub type KeyFailure = Box<dyn Error + Send + Sync>;

/// A private key, wherever it is kept.
pub trait SigningKey {
    /// Signs `message` with the algorithm of `curve` (which is that of the
    /// certificate's key). Gives r and s, each [`Curve::scalar_len`] bytes.
    fn sign(&self, curve: Curve, message: &[u8]) -> Result<Vec<u8>, KeyFailure>;
}

/// Why an image cannot be signed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum SignError {
    #[error("the signing certificate is not PEM")]
    Pem(#[source] pem::Error),
    #[error("the signing certificate cannot be used")]
    Certificate(#[source] CertificateError),
    #[error(
        "the certificate's file holds a private key as well, and all of it would become part of the image: \
         give a file with certificates only"
    )]
    KeyInCertificate,
    #[error("the key does not sign")]
    Key(#[source] KeyFailure),
    #[error("cannot encode the signature")]
    Encode(#[source] encode::Error<std::convert::Infallible>),
    #[error(
        "the certificates are too long: their section has {len} bytes, at most {MAX_SIGNATURE} are accepted"
    )]
    Long { len: usize },
    #[error("what was signed cannot be read back")]
    ReadBack(#[source] SignatureError),
    #[error("the signature does not hold")]
    Check(#[source] SignatureCheckError),
}

/// The certificate of a signer, and those of its issuers if they are given.
pub struct SigningCertificate {
    pem: Vec<u8>,
    der: CertificateDer<'static>,
    curve: Curve,
}

impl SigningCertificate {
    /// Reads PEM, which becomes part of the image as it is. The first
    /// certificate is the signer's.
    pub fn from_pem(pem: Vec<u8>) -> Result<SigningCertificate, SignError> {
        if pem.windows(PRIVATE_KEY.len()).any(|window| window == PRIVATE_KEY) {
            return Err(SignError::KeyInCertificate);
        }
        let der = CertificateDer::from_pem_slice(&pem).map_err(SignError::Pem)?;
        let curve = certificate::read(&der).map_err(SignError::Certificate)?.curve;
        Ok(SigningCertificate { pem, der, curve })
    }

    /// The curve of its key.
    pub fn curve(&self) -> Curve {
        self.curve
    }

    /// What an image that it signs has as PCR8.
    pub fn pcr8(&self) -> Pcr {
        Pcr::of(&self.der)
    }
}

const PRIVATE_KEY: &[u8] = b"PRIVATE KEY-----";

/// Why a private key cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum PrivateKeyError {
    #[error("the private key is encrypted: decrypt it first (openssl pkey -in FILE)")]
    Encrypted,
    #[error("the private key is not PEM of PKCS#8 or SEC1")]
    Pem(#[source] pem::Error),
    #[error("the private key is not on P-256, P-384 or P-521")]
    Kind,
    #[error("the private key is on {actual}, the certificate's key on {expected}", expected = .expected.name(), actual = .actual.name())]
    Curve { expected: Curve, actual: Curve },
    #[error("the private key is not the certificate's")]
    Other,
}

/// A private key in memory.
pub struct PrivateKey(EcdsaKeyPair);

impl PrivateKey {
    /// Reads the key of `certificate` from PEM: PKCS#8 or SEC1.
    pub fn from_pem(pem: &[u8], certificate: &SigningCertificate) -> Result<PrivateKey, PrivateKeyError> {
        const ENCRYPTED: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
        if ENCRYPTED.iter().any(|mark| pem.windows(mark.len()).any(|window| window == *mark)) {
            return Err(PrivateKeyError::Encrypted);
        }
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(PrivateKeyError::Pem)?;
        let on = |curve: Curve| EcdsaKeyPair::from_private_key_der(curve.signing(), der.secret_der()).ok();
        let expected = certificate.curve;
        let Some(pair) = on(expected) else {
            let actual = Curve::ALL.into_iter().find(|curve| on(*curve).is_some());
            return Err(
                actual.map_or(PrivateKeyError::Kind, |actual| PrivateKeyError::Curve { expected, actual })
            );
        };
        let signer = certificate::read(&certificate.der).map_err(|_| PrivateKeyError::Other)?;
        if pair.public_key().as_ref() != signer.key {
            return Err(PrivateKeyError::Other);
        }
        Ok(PrivateKey(pair))
    }
}

impl SigningKey for PrivateKey {
    /// The curve was compared with the certificate's when the key was read.
    fn sign(&self, _curve: Curve, message: &[u8]) -> Result<Vec<u8>, KeyFailure> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| "the signature cannot be computed")?.as_ref().to_vec())
    }
}

/// Whoever signs images: a certificate and its key.
pub struct ImageSigner<'a> {
    /// Becomes part of the image.
    pub certificate: &'a SigningCertificate,
    /// Its key.
    pub key: &'a dyn SigningKey,
    /// When it signs: the certificate must be valid.
    pub now: SystemTime,
}

impl ImageSigner<'_> {
    /// The payload of a signature section for an image that measures `pcr0`.
    pub fn section(&self, pcr0: &Pcr) -> Result<Vec<u8>, SignError> {
        let signer = certificate::read(&self.certificate.der).map_err(SignError::Certificate)?;
        // Before a key that may be far away, or may count its uses, is asked.
        signer.valid_at(self.now).map_err(SignError::Check)?;
        let cose = self.cose(signer.curve, pcr0)?;
        let section = section(&self.certificate.pem, &cose).map_err(SignError::Encode)?;
        if section.len() as u64 > MAX_SIGNATURE {
            return Err(SignError::Long { len: section.len() });
        }
        let written = Signature::from_cbor(&section).map_err(SignError::ReadBack)?;
        written.check(pcr0, self.now).map_err(SignError::Check)?;
        Ok(section)
    }

    fn cose(&self, curve: Curve, pcr0: &Pcr) -> Result<Vec<u8>, SignError> {
        let protected = protected(curve).map_err(SignError::Encode)?;
        let payload = payload(pcr0).map_err(SignError::Encode)?;
        let envelope = Envelope::unsigned(&protected, curve.cose_algorithm(), &payload);
        let message = envelope.signed().map_err(SignError::Encode)?;
        let signature = self.key.sign(curve, &message).map_err(SignError::Key)?;
        let mut encoder = Encoder::new(Vec::new());
        let mut encode = || {
            encoder.array(4)?.bytes(&protected)?.map(0)?.bytes(&payload)?.bytes(&signature)?;
            Ok(())
        };
        encode().map_err(SignError::Encode)?;
        Ok(encoder.into_writer())
    }
}

type EncodeError = encode::Error<std::convert::Infallible>;

/// `{1: algorithm}`.
fn protected(curve: Curve) -> Result<Vec<u8>, EncodeError> {
    let mut encoder = Encoder::new(Vec::new());
    encoder.map(1)?.i64(1)?.i64(curve.cose_algorithm())?;
    Ok(encoder.into_writer())
}

/// `{register_index: 0, register_value: [48 integers]}`.
fn payload(pcr0: &Pcr) -> Result<Vec<u8>, EncodeError> {
    let mut encoder = Encoder::new(Vec::new());
    encoder.map(2)?.str("register_index")?.u8(0)?.str("register_value")?;
    integers(&mut encoder, pcr0.as_bytes())?;
    Ok(encoder.into_writer())
}

fn section(pem: &[u8], cose: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut encoder = Encoder::new(Vec::new());
    encoder.array(1)?.map(2)?;
    for (name, value) in [("signing_certificate", pem), ("signature", cose)] {
        encoder.str(name)?;
        integers(&mut encoder, value)?;
    }
    Ok(encoder.into_writer())
}

fn integers(encoder: &mut Encoder<Vec<u8>>, bytes: &[u8]) -> Result<(), EncodeError> {
    encoder.array(bytes.len() as u64)?;
    for byte in bytes {
        encoder.u8(*byte)?;
    }
    Ok(())
}
