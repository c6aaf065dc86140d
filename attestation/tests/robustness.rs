//! Promise: no input makes the parser or the verifier panic, and refusing
//! hostile input is cheap.

#![allow(clippy::unwrap_used)] // a broken fixture ends the test

mod support;

use std::time::{Duration, Instant};

use attestation::{Clock, Policy, TrustAnchors, Untrusted, Verifier};
use proptest::prelude::*;
use support::encode::{bstr, head};
use support::signer::{Certificate, Fixture, LEAF, name};
use support::vector;

/// One change to some bytes.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index, u8),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        match self {
            Self::Set(at, byte) => bytes[at.index(len)] = *byte,
            Self::Insert(at, byte) => bytes.insert(at.index(len), *byte),
            Self::Remove(at) => drop(bytes.remove(at.index(len))),
            Self::Cut(at) => bytes.truncate(at.index(len)),
            Self::Repeat(at, times) => {
                let at = at.index(len);
                bytes.splice(at..at, vec![bytes[at]; usize::from(*times)]);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        at().prop_map(Change::Remove),
        at().prop_map(Change::Cut),
        (at(), any::<u8>()).prop_map(|(at, times)| Change::Repeat(at, times)),
    ]
}

fn lenient(root: &[u8]) -> Verifier {
    let policy = Policy::any_measurement_insecure().without_nonce_insecure().allow_debug_insecure();
    Verifier::new(TrustAnchors::from_der([root]).unwrap(), policy)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = Untrusted::parse(&bytes);
        let framed = [[0x84, 0x44, 0xa1, 1, 0x38, 0x22, 0xa0].as_slice(), &bstr(&bytes), &bstr(&[1; 96])].concat();
        let _ = Untrusted::parse(&framed);
    }

    #[test]
    fn a_changed_genuine_document_never_panics(changes in prop::collection::vec(change(), 1..4)) {
        let Some(mut document) = vector("turnkey-2026-06-indef-pcr32") else { return Ok(()) };
        let genuine = document.clone();
        changes.iter().for_each(|change| change.apply(&mut document));
        let policy = Policy::any_measurement_insecure().without_nonce_insecure();
        let verdict = Verifier::new(TrustAnchors::aws_g1(), policy).verify(&document, Clock::DocumentTime);
        prop_assert!(verdict.is_err() || document == genuine);
    }

    #[test]
    fn a_changed_and_signed_payload_never_panics(changes in prop::collection::vec(change(), 1..4)) {
        let mut fixture = Fixture::honest();
        let mut payload = fixture.payload();
        changes.iter().for_each(|change| change.apply(&mut payload));
        fixture.payload = Some(payload);
        let _ = fixture.judge(&fixture.document());
    }

    #[test]
    fn a_changed_certificate_never_panics(which in 0usize..=LEAF, changes in prop::collection::vec(change(), 1..4)) {
        let mut fixture = Fixture::honest();
        let mut ders: Vec<_> = fixture.certificates.iter().map(Certificate::der).collect();
        let original = ders[which].clone();
        changes.iter().for_each(|change| change.apply(&mut ders[which]));
        let root = ders[0].clone();
        fixture.set("certificate", bstr(&ders[LEAF]));
        fixture.bundle = Some(ders[..LEAF].to_vec());
        let document = fixture.document();
        let verdict = lenient(&root).verify(&document, Clock::DocumentTime);
        // A root is trusted as it stands, so a change to its signature goes unnoticed.
        prop_assert!(verdict.is_err() || which == 0 || ders[which] == original);
    }
}

#[test]
fn hostile_documents_are_refused_within_five_milliseconds() {
    let nested = [vec![0xbf, 0x61, b'n'], vec![0x81; 16_000]].concat();
    let many = [head(5, 8000), vec![0x60; 16_000]].concat();
    let mut fixtures: Vec<(&str, Fixture)> = Vec::new();
    for (name, payload) in [("nested", nested), ("many", many)] {
        fixtures.push((name, Fixture { payload: Some(payload), ..Fixture::honest() }));
    }
    fixtures.push(("same names everywhere", same_names_everywhere()));
    for (name, fixture) in fixtures {
        let document = fixture.document();
        let fastest = (0..20).map(|_| {
            let start = Instant::now();
            assert!(fixture.judge(&document).is_err(), "{name}");
            start.elapsed()
        });
        let fastest = fastest.min().unwrap();
        assert!(fastest < Duration::from_millis(5), "{name}: {fastest:?}");
    }
}

/// Eight issuers that all name each other: a path builder would try them all.
fn same_names_everywhere() -> Fixture {
    let mut fixture = Fixture::honest();
    for certificate in &mut fixture.certificates[..LEAF] {
        (certificate.subject, certificate.issuer) = (name("all"), name("all"));
    }
    fixture.certificates[LEAF].issuer = name("all");
    let issuers: Vec<_> = (0..8).map(|index| fixture.certificates[index % LEAF].der()).collect();
    fixture.trusted = Some(issuers[0].clone());
    fixture.bundle = Some(issuers);
    fixture
}
