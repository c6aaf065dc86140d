//! Promise: whatever the strict reader accepts, other libraries decode to the
//! same values, and other cryptography verifies. They accept much more; that
//! direction is not asked for.

#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use attestation::{Clock, Policy, TrustAnchors, Untrusted, Verifier};
use coset::{CborSerializable, CoseSign1, TaggedCborSerializable};
use proptest::prelude::*;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_cbor::Value;
use support::signer::{Certificate, Fixture, LEAF};
use support::{DEBUG, PRODUCTION, vector};

/// Decodes the payload with serde_cbor and the envelope with coset, and
/// compares all fields.
fn agree(document: &[u8]) {
    let Ok(ours) = Untrusted::parse(document) else { return };
    let envelope = match document {
        [0xd2, ..] => CoseSign1::from_tagged_slice(document),
        _ => CoseSign1::from_slice(document),
    };
    let envelope = envelope.expect("coset reads the envelope");
    assert_eq!(
        envelope.protected.header.alg,
        Some(coset::Algorithm::Assigned(coset::iana::Algorithm::ES384))
    );
    assert!(envelope.unprotected.is_empty());
    assert_eq!(envelope.signature.len(), 96);

    let payload = envelope.payload.expect("a payload");
    let Ok(Value::Map(fields)) = serde_cbor::from_slice(&payload) else { panic!("serde_cbor reads no map") };
    let field = |name: &str| fields.get(&Value::Text(name.to_owned()));
    assert_eq!(field("module_id"), Some(&Value::Text(ours.claimed_module_id().to_owned())));
    assert_eq!(field("digest"), Some(&Value::Text("SHA384".to_owned())));
    assert_eq!(field("timestamp"), Some(&Value::Integer(ours.claimed_timestamp_ms().into())));
    let pcrs: BTreeMap<_, _> = ours
        .claimed_pcrs()
        .map(|(index, pcr)| (Value::Integer(index.into()), Value::Bytes(pcr.to_vec())))
        .collect();
    assert_eq!(field("pcrs"), Some(&Value::Map(pcrs)));
    let mut certificates: Vec<_> =
        ours.claimed_certificates().map(|der| Value::Bytes(der.to_vec())).collect();
    assert_eq!(field("certificate"), certificates.pop().as_ref());
    assert_eq!(field("cabundle"), Some(&Value::Array(certificates)));
    for (name, value) in [
        ("user_data", ours.claimed_user_data()),
        ("nonce", ours.claimed_nonce()),
        ("public_key", ours.claimed_public_key()),
    ] {
        let theirs = field(name).filter(|value| **value != Value::Null);
        assert_eq!(theirs, value.map(|bytes| Value::Bytes(bytes.to_vec())).as_ref(), "{name}");
    }
}

#[test]
fn genuine_documents_read_the_same_everywhere() {
    for name in PRODUCTION.into_iter().chain(DEBUG) {
        let Some(document) = vector(name) else { return };
        assert!(Untrusted::parse(&document).is_ok(), "{name}");
        agree(&document);
    }
}

#[test]
fn every_single_byte_change_that_is_accepted_reads_the_same_everywhere() {
    let honest = Fixture::honest().document();
    let mut accepted = 0;
    for at in 0..honest.len() {
        for byte in [0x00, 0x1f, 0x40, 0x5f, 0x60, 0x7f, 0x80, 0xa0, 0xbf, 0xf6, 0xff, honest[at] ^ 1] {
            let mut document = honest.clone();
            document[at] = byte;
            accepted += usize::from(Untrusted::parse(&document).is_ok());
            agree(&document);
        }
    }
    assert!(accepted > 1000, "only {accepted} changes were accepted, so nothing was compared");
}

/// Verifies the chain with webpki and ring, which share no cryptography with ours.
fn chain_by_ring(document: &[u8], seconds: u64) -> Result<(), webpki::Error> {
    let untrusted = Untrusted::parse(document).expect("a well-formed document");
    let mut certificates: Vec<_> = untrusted.claimed_certificates().map(CertificateDer::from_slice).collect();
    let leaf = certificates.pop().expect("a leaf");
    let anchors = [webpki::anchor_from_trusted_cert(&certificates[0])?];
    let leaf = webpki::EndEntityCert::try_from(&leaf)?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let usage = webpki::KeyUsage::client_auth();
    let algorithms = [webpki::ring::ECDSA_P384_SHA384];
    leaf.verify_for_usage(&algorithms, &anchors, &certificates[1..], time, usage, None, None).map(drop)
}

/// Whether ours accepts, with the root that the document brings.
fn accepted(document: &[u8]) -> bool {
    let untrusted = Untrusted::parse(document).expect("a well-formed document");
    let anchors = TrustAnchors::from_der(untrusted.claimed_certificates().take(1)).expect("a root");
    let policy = Policy::any_measurement_insecure().without_nonce_insecure().allow_debug_insecure();
    Verifier::new(anchors, policy).verify(document, Clock::DocumentTime).is_ok()
}

fn seconds(document: &[u8]) -> u64 {
    Untrusted::parse(document).expect("a well-formed document").claimed_timestamp_ms() / 1000
}

#[test]
fn whatever_chain_is_accepted_webpki_with_ring_accepts() {
    for name in PRODUCTION.into_iter().chain(DEBUG) {
        let Some(document) = vector(name) else { return };
        assert!(accepted(&document), "{name}");
        assert_eq!(chain_by_ring(&document, seconds(&document)), Ok(()), "{name}");
    }
}

#[test]
fn every_changed_byte_of_a_certificate_that_ring_refuses_is_refused() {
    let fixture = Fixture::honest();
    let originals: Vec<_> = fixture.certificates.iter().map(Certificate::der).collect();
    let (mut both, mut ours_only, mut theirs_only) = (0, 0, 0);
    for which in 1..originals.len() {
        for at in (0..originals[which].len()).step_by(3) {
            let mut ders = originals.clone();
            ders[which][at] ^= 1 << (at % 8);
            let mut changed = Fixture::honest();
            changed.set("certificate", support::encode::bstr(&ders[LEAF]));
            changed.bundle = Some(ders[..LEAF].to_vec());
            let document = changed.document();
            match (accepted(&document), chain_by_ring(&document, seconds(&document)).is_ok()) {
                (false, false) => both += 1,
                (false, true) => ours_only += 1,
                (true, true) => panic!("a changed byte of certificate {which} at {at} was not noticed"),
                (true, false) => theirs_only += 1,
            }
        }
    }
    println!("refused by both {both}, by ours only {ours_only}, by ring only {theirs_only}");
    assert_eq!(theirs_only, 0);
    assert!(both > 500, "too little was changed");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_fields_read_the_same_everywhere(
        user_data in prop::option::of(prop::collection::vec(any::<u8>(), 0..1024)),
        nonce in prop::option::of(prop::collection::vec(any::<u8>(), 0..1024)),
        unknown in prop::collection::vec(any::<u8>(), 0..40),
        definite in any::<bool>(),
        tagged in any::<bool>(),
    ) {
        let mut fixture = Fixture::honest();
        for (name, value) in [("user_data", user_data), ("nonce", nonce)] {
            match value {
                Some(bytes) => fixture.set(name, support::encode::bstr(&bytes)),
                None => fixture.remove(name),
            }
        }
        // Arbitrary bytes where a value belongs: what our reader passes over, others must too.
        fixture.set("unknown", unknown);
        fixture.map_ends = (!definite).then(|| (vec![0xbf], vec![0xff]));
        fixture.before = if tagged { vec![0xd2] } else { vec![] };
        agree(&fixture.document());
    }
}
