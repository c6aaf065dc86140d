//! Whether the signature is one over PCR0 by the certificate beside it.
//!
//! That says nothing about whose certificate it is: that is what PCR8, which
//! is measured from it, is compared for.

use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::UnparsedPublicKey;
use minicbor::{Decoder, Encoder, data::Tag, encode};

use super::certificate::{self, CertificateError, Signer};
use super::{Signature, definite, integers};
use crate::pcr::Pcr;

/// Why a signature does not vouch for an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each means")]
pub enum SignatureCheckError {
    #[error("the signing certificate cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    #[error("the signing certificate is not valid yet")]
    NotYetValid,
    #[error("the signing certificate has expired")]
    Expired,
    #[error("the signature is no COSE_Sign1 over one register")]
    Malformed,
    #[error("the signature's algorithm is {actual}, its key's curve makes it {expected}")]
    Algorithm { expected: i64, actual: i64 },
    #[error("the signature was not made with the certificate's key")]
    Forged,
    #[error("register {0} is signed, not PCR0")]
    Register(u64),
    #[error("PCR0 {signed} is signed, the image measures {actual}")]
    Pcr0 { signed: Pcr, actual: Pcr },
}

impl Signature {
    /// Checks the certificate's validity at `now`, the signature with its
    /// key, and that what is signed is `pcr0`, the image's own.
    ///
    /// Sources: RFC 9052 sections 4.2 and 4.4, RFC 9053 section 2.1; the
    /// payload is `{register_index: 0, register_value: [48 integers]}`.
    pub fn check(&self, pcr0: &Pcr, now: SystemTime) -> Result<(), SignatureCheckError> {
        let signer = certificate::read(self.certificate())?;
        signer.valid_at(now)?;
        let envelope = Envelope::read(self.cose()).ok_or(SignatureCheckError::Malformed)?;
        let expected = signer.curve.cose_algorithm();
        if envelope.algorithm != expected {
            return Err(SignatureCheckError::Algorithm { expected, actual: envelope.algorithm });
        }
        let signed = envelope.signed().map_err(|_| SignatureCheckError::Malformed)?;
        UnparsedPublicKey::new(signer.curve.verification(), signer.key)
            .verify(&signed, envelope.signature)
            .map_err(|_| SignatureCheckError::Forged)?;
        let (index, value) = register(envelope.payload).ok_or(SignatureCheckError::Malformed)?;
        match (index, value) {
            (0, value) if value == *pcr0 => Ok(()),
            (0, signed) => Err(SignatureCheckError::Pcr0 { signed, actual: *pcr0 }),
            (other, _) => Err(SignatureCheckError::Register(other)),
        }
    }
}

impl Signer<'_> {
    /// Whether its certificate is valid at `now`.
    pub(super) fn valid_at(&self, now: SystemTime) -> Result<(), SignatureCheckError> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
        if now < *self.validity.start() {
            return Err(SignatureCheckError::NotYetValid);
        }
        if now > *self.validity.end() {
            return Err(SignatureCheckError::Expired);
        }
        Ok(())
    }
}

/// A COSE_Sign1, with or without its tag.
pub(super) struct Envelope<'a> {
    protected: &'a [u8],
    algorithm: i64,
    payload: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// What is to be signed: see [`Envelope::signed`].
    pub(super) fn unsigned(protected: &'a [u8], algorithm: i64, payload: &'a [u8]) -> Envelope<'a> {
        Envelope { protected, algorithm, payload, signature: &[] }
    }

    fn read(bytes: &'a [u8]) -> Option<Envelope<'a>> {
        let mut decoder = Decoder::new(bytes);
        if decoder.probe().tag().is_ok_and(|tag| tag == Tag::new(18)) {
            decoder.tag().ok()?;
        }
        if definite(decoder.array().ok()?).ok()? != 4 {
            return None;
        }
        let protected = decoder.bytes().ok()?;
        // Nobody signed the unprotected header: it must say nothing.
        if definite(decoder.map().ok()?).ok()? != 0 {
            return None;
        }
        let payload = decoder.bytes().ok()?;
        let signature = decoder.bytes().ok()?;
        let algorithm = algorithm(protected)?;
        let whole = decoder.position() == bytes.len();
        whole.then_some(Envelope { protected, algorithm, payload, signature })
    }

    /// `Sig_structure`, without external data.
    pub(super) fn signed(&self) -> Result<Vec<u8>, encode::Error<Infallible>> {
        let mut encoder = Encoder::new(Vec::new());
        encoder.array(4)?.str("Signature1")?;
        encoder.bytes(self.protected)?.bytes(&[])?.bytes(self.payload)?;
        Ok(encoder.into_writer())
    }
}

/// The protected header must be exactly `{1: algorithm}`.
fn algorithm(protected: &[u8]) -> Option<i64> {
    let mut decoder = Decoder::new(protected);
    let one = definite(decoder.map().ok()?).ok()? == 1 && decoder.i64().ok()? == 1;
    let algorithm = decoder.i64().ok()?;
    (one && decoder.position() == protected.len()).then_some(algorithm)
}

fn register(payload: &[u8]) -> Option<(u64, Pcr)> {
    let mut decoder = Decoder::new(payload);
    let (mut index, mut value) = (None, None);
    if definite(decoder.map().ok()?).ok()? != 2 {
        return None;
    }
    for _ in 0..2 {
        match decoder.str().ok()? {
            "register_index" => index = Some(decoder.u64().ok()?),
            "register_value" => value = Some(integers(&mut decoder).ok()?),
            _ => return None,
        }
    }
    let value: [u8; Pcr::LEN] = value?.try_into().ok()?;
    (decoder.position() == payload.len()).then_some((index?, Pcr::from_bytes(value)))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaKeyPair,
    };
    use rustls_pki_types::{PrivateKeyDer, pem::PemObject};

    use super::*;

    const CURVES: [(&str, i64); 3] = [("prime256v1", -7), ("secp384r1", -35), ("secp521r1", -36)];
    const DAY: Duration = Duration::from_secs(86_400);

    /// A certificate and key by a program that knows nothing of this project.
    struct Signer {
        certificate: Vec<u8>,
        key: EcdsaKeyPair,
        algorithm: i64,
    }

    impl Signer {
        fn new((curve, algorithm): (&str, i64)) -> Option<Signer> {
            let directory = tempfile::tempdir().unwrap();
            let (key, certificate) = (directory.path().join("key"), directory.path().join("certificate"));
            let made = Command::new("openssl")
                .args(["req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=test/O=none"])
                .args(["-newkey", "ec", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")])
                .arg("-keyout")
                .arg(&key)
                .arg("-out")
                .arg(&certificate)
                .stderr(Stdio::null())
                .status();
            if !made.is_ok_and(|status| status.success()) {
                eprintln!("SKIPPED: openssl makes no certificate on {curve} here");
                return None;
            }
            let key = PrivateKeyDer::from_pem_file(key).unwrap();
            let kind = match algorithm {
                -7 => &ECDSA_P256_SHA256_FIXED_SIGNING,
                -35 => &ECDSA_P384_SHA384_FIXED_SIGNING,
                _ => &ECDSA_P521_SHA512_FIXED_SIGNING,
            };
            Some(Signer {
                certificate: std::fs::read(certificate).unwrap(),
                key: EcdsaKeyPair::from_pkcs8(kind, key.secret_der()).unwrap(),
                algorithm,
            })
        }

        fn cose(&self, algorithm: i64, index: u64, pcr: &Pcr) -> Vec<u8> {
            let mut protected = Encoder::new(Vec::new());
            protected.map(1).unwrap().i64(1).unwrap().i64(algorithm).unwrap();
            let mut payload = Encoder::new(Vec::new());
            payload.map(2).unwrap().str("register_index").unwrap().u64(index).unwrap();
            payload.str("register_value").unwrap().array(48).unwrap();
            for byte in pcr.as_bytes() {
                payload.u8(*byte).unwrap();
            }
            let (protected, payload) = (protected.into_writer(), payload.into_writer());
            let unsigned = Envelope::unsigned(&protected, algorithm, &payload);
            let signature = self.key.sign(&SystemRandom::new(), &unsigned.signed().unwrap()).unwrap();
            let mut cose = Encoder::new(Vec::new());
            cose.array(4).unwrap().bytes(&protected).unwrap().map(0).unwrap();
            cose.bytes(&payload).unwrap().bytes(signature.as_ref()).unwrap();
            cose.into_writer()
        }

        fn signature(&self, cose: Vec<u8>) -> Signature {
            let certificate = rustls_pki_types::CertificateDer::from_pem_slice(&self.certificate).unwrap();
            Signature { certificate, cose }
        }
    }

    #[test]
    fn a_signature_on_each_curve_is_good_for_its_own_pcr0_and_time_only() {
        for curve in CURVES {
            let Some(signer) = Signer::new(curve) else { return };
            let (pcr, other) = (Pcr::of(b"image"), Pcr::of(b"other"));
            let signature = signer.signature(signer.cose(signer.algorithm, 0, &pcr));
            let now = SystemTime::now();
            assert_eq!(signature.check(&pcr, now), Ok(()), "{curve:?}");
            assert_eq!(
                signature.check(&other, now),
                Err(SignatureCheckError::Pcr0 { signed: pcr, actual: other })
            );
            assert_eq!(signature.check(&pcr, now + 31 * DAY), Err(SignatureCheckError::Expired));
            assert_eq!(signature.check(&pcr, now - 2 * DAY), Err(SignatureCheckError::NotYetValid));
        }
    }

    #[test]
    fn every_changed_byte_of_envelope_or_key_is_noticed() {
        let Some(signer) = Signer::new(CURVES[1]) else { return };
        let (pcr, now) = (Pcr::of(b"image"), SystemTime::now());
        let good = signer.cose(signer.algorithm, 0, &pcr);
        for index in 0..good.len() {
            let mut cose = good.clone();
            cose[index] ^= 1;
            assert!(signer.signature(cose).check(&pcr, now).is_err(), "byte {index}");
        }
        for end in 0..good.len() {
            assert!(signer.signature(good[..end].to_vec()).check(&pcr, now).is_err(), "cut at {end}");
        }
        let tagged = [&[0xD2], &good[..]].concat();
        assert_eq!(signer.signature(tagged).check(&pcr, now), Ok(()));
        let Some(stranger) = Signer::new(CURVES[1]) else { return };
        // Its certificate begins after `now`.
        assert_eq!(stranger.signature(good).check(&pcr, SystemTime::now()), Err(SignatureCheckError::Forged));
    }

    #[test]
    fn another_register_and_another_algorithm_are_named() {
        let Some(signer) = Signer::new(CURVES[0]) else { return };
        let (pcr, now) = (Pcr::of(b"image"), SystemTime::now());
        let check = |algorithm, index| signer.signature(signer.cose(algorithm, index, &pcr)).check(&pcr, now);
        assert_eq!(check(-7, 2), Err(SignatureCheckError::Register(2)));
        assert_eq!(check(-35, 0), Err(SignatureCheckError::Algorithm { expected: -7, actual: -35 }));
    }

    #[test]
    fn a_certificate_cut_anywhere_or_with_another_key_is_refused() {
        let Some(signer) = Signer::new(CURVES[1]) else { return };
        let signature = signer.signature(Vec::new());
        let der = signature.certificate();
        for end in 0..der.len() {
            assert!(certificate::read(&der[..end]).is_err(), "cut at {end}");
        }
        let key = der.windows(5).position(|window| window == [0x2B, 0x81, 0x04, 0x00, 0x22]).unwrap();
        let mut other_curve = der.to_vec();
        other_curve[key + 4] = 0x0A;
        assert_eq!(certificate::read(&other_curve), Err(CertificateError::Key));
    }
}
