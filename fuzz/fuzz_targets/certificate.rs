//! Arbitrary bytes as a certificate, in each place where one can arrive: as
//! issuer and leaf of a document, and as a TLS server's. Nothing may panic,
//! and what is read from it lies within it.
#![no_main]

use attestation::rustls::Wrapped;
use attestation::{Clock, Policy, TrustAnchors, Verifier};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|certificate: &[u8]| {
    if let Ok(wrapped) = Wrapped::parse(certificate) {
        assert_eq!(wrapped.key_info.len(), 91);
        let within = certificate.as_ptr_range();
        let document = wrapped.document.as_ptr_range();
        assert!(within.start <= document.start && document.end <= within.end);
    }
    // It trusts itself, and is its own issuer where its names allow.
    let Ok(anchors) = TrustAnchors::from_der([certificate]) else { return };
    let policy = Policy::any_measurement_insecure().without_nonce_insecure();
    let document = document(certificate);
    let verdict = Verifier::new(anchors, policy).verify(&document, Clock::DocumentTime);
    assert!(verdict.is_err(), "the signature is all zeros");
});

/// A well-formed document that carries `certificate` as root and as leaf.
fn document(certificate: &[u8]) -> Vec<u8> {
    let bytes = |bytes: &[u8]| [&head(0x40, bytes.len()), bytes].concat();
    let text = |text: &str| [&head(0x60, text.len()), text.as_bytes()].concat();
    let payload = [
        vec![0xa6],
        text("module_id"),
        text("i-0123456789abcdef0-enc0123456789abcdef"),
        text("digest"),
        text("SHA384"),
        text("timestamp"),
        [&[0x1b][..], &1_768_478_400_000u64.to_be_bytes()].concat(),
        text("pcrs"),
        [vec![0xa1, 0], bytes(&[1; 48])].concat(),
        text("certificate"),
        bytes(certificate),
        text("cabundle"),
        [vec![0x81], bytes(certificate)].concat(),
    ];
    [&[0x84, 0x44, 0xa1, 1, 0x38, 0x22, 0xa0][..], &bytes(&payload.concat()), &bytes(&[0; 96])].concat()
}

/// The shortest head of a string.
fn head(major: u8, length: usize) -> Vec<u8> {
    match length {
        0..=23 => vec![major | length as u8],
        24..=0xff => vec![major | 24, length as u8],
        _ => vec![major | 25, (length >> 8) as u8, length as u8],
    }
}
