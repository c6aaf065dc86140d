//! The signature section: `[{"signing_certificate": [u8...], "signature": [u8...]}]`
//! in CBOR, both values being *arrays of integers*, not byte strings. The
//! first is PEM, the second an untagged COSE_Sign1 over PCR0.

mod certificate;
mod check;
mod curve;
mod der;
mod sign;

use minicbor::{Decoder, decode};
use rustls_pki_types::{CertificateDer, pem, pem::PemObject};

use crate::pcr::Pcr;
pub use certificate::{CertificateError, CertificateSummary};
pub use check::SignatureCheckError;
pub use curve::Curve;
pub use sign::{
    ImageSigner, KeyFailure, PrivateKey, PrivateKeyError, SignError, SigningCertificate, SigningKey,
};

/// A signature section, decoded. [`Signature::check`] says what it is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    certificate: CertificateDer<'static>,
    cose: Vec<u8>,
}

/// Why a signature section cannot be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum SignatureError {
    #[error("not the CBOR of a signature")]
    Cbor(#[from] decode::Error),
    #[error("{count} signatures, exactly one is possible")]
    Count { count: u64 },
    #[error("unexpected or repeated entry {name:?}")]
    Entry { name: String },
    #[error("{name} is missing")]
    Missing { name: &'static str },
    #[error("{count} bytes follow the signature")]
    Trailing { count: usize },
    #[error("the signing certificate is not PEM")]
    Pem(#[source] pem::Error),
}

impl Signature {
    /// Decodes a section's payload.
    pub fn from_cbor(bytes: &[u8]) -> Result<Signature, SignatureError> {
        let mut decoder = Decoder::new(bytes);
        let count = definite(decoder.array()?)?;
        if count != 1 {
            return Err(SignatureError::Count { count });
        }
        let (mut certificate, mut cose) = (None, None);
        for _ in 0..definite(decoder.map()?)? {
            let name = decoder.str()?;
            let slot = match name {
                "signing_certificate" => &mut certificate,
                "signature" => &mut cose,
                _ => return Err(SignatureError::Entry { name: name.to_owned() }),
            };
            if slot.replace(integers(&mut decoder)?).is_some() {
                return Err(SignatureError::Entry { name: name.to_owned() });
            }
        }
        let count = bytes.len() - decoder.position();
        if count != 0 {
            return Err(SignatureError::Trailing { count });
        }
        let certificate = certificate.ok_or(SignatureError::Missing { name: "signing_certificate" })?;
        Ok(Signature {
            certificate: CertificateDer::from_pem_slice(&certificate).map_err(SignatureError::Pem)?,
            cose: cose.ok_or(SignatureError::Missing { name: "signature" })?,
        })
    }

    /// DER of the first certificate: the signer's.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The COSE_Sign1, not verified.
    pub fn cose(&self) -> &[u8] {
        &self.cose
    }

    /// What people read of the signer's certificate.
    pub fn summary(&self) -> Result<CertificateSummary, CertificateError> {
        certificate::read(&self.certificate)?.summary()
    }

    /// What the signer measures to.
    pub fn pcr8(&self) -> Pcr {
        Pcr::of(&self.certificate)
    }
}

/// Grows as integers are really there: each takes at least one byte of input.
fn integers(decoder: &mut Decoder<'_>) -> Result<Vec<u8>, SignatureError> {
    let count = definite(decoder.array()?)?;
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.push(decoder.u8()?);
    }
    Ok(bytes)
}

fn definite(len: Option<u64>) -> Result<u64, decode::Error> {
    len.ok_or_else(|| decode::Error::message("a length is indefinite"))
}

#[cfg(test)]
mod tests {
    use minicbor::Encoder;

    use super::*;

    const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----\nAQIDBA==\n-----END CERTIFICATE-----\n";

    fn encode(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        encoder.array(1).unwrap().map(entries.len() as u64).unwrap();
        for (name, value) in entries {
            encoder.str(name).unwrap().array(value.len() as u64).unwrap();
            for byte in *value {
                encoder.u8(*byte).unwrap();
            }
        }
        encoder.into_writer()
    }

    #[test]
    fn pcr8_is_the_first_certificate() {
        let two = [PEM, b"-----BEGIN CERTIFICATE-----\n/w==\n-----END CERTIFICATE-----\n"].concat();
        let bytes = encode(&[("signing_certificate", &two), ("signature", &[0x84])]);
        let signature = Signature::from_cbor(&bytes).unwrap();
        assert_eq!(signature.certificate(), [1, 2, 3, 4]);
        assert_eq!(signature.pcr8(), Pcr::of(&[1, 2, 3, 4]));
        assert_eq!(signature.cose(), [0x84]);
    }

    #[test]
    fn other_shapes_are_refused() {
        let good = encode(&[("signing_certificate", PEM), ("signature", &[0x84])]);
        for end in 0..good.len() {
            assert!(Signature::from_cbor(&good[..end]).is_err(), "cut at {end}");
        }
        let long: Vec<u8> = [&good[..], &[0]].concat();
        assert!(matches!(Signature::from_cbor(&long), Err(SignatureError::Trailing { count: 1 })));
        assert!(matches!(Signature::from_cbor(&[0x80]), Err(SignatureError::Count { count: 0 })));
        let endless = [0x81, 0xa1, 0x69, b's', b'i', b'g', b'n', b'a', b't', b'u', b'r', b'e', 0x9b];
        let endless = [&endless[..], &[0xff; 8]].concat();
        assert!(matches!(Signature::from_cbor(&endless), Err(SignatureError::Cbor(_))));
        for entries in [
            &[("signing_certificate", PEM)][..],
            &[("signature", b"x")],
            &[("signing_certificate", PEM), ("signature", b"x"), ("other", b"x")],
            &[("signing_certificate", PEM), ("signing_certificate", PEM)],
            &[("signing_certificate", b"no pem"), ("signature", b"x")],
        ] {
            assert!(Signature::from_cbor(&encode(entries)).is_err());
        }
    }
}
