//! Promise: remembering chains saves signatures and changes no verdict.

#![allow(clippy::unwrap_used)] // a broken fixture ends the test

mod support;

use std::num::NonZeroUsize;

use attestation::{Clock, Policy, TrustAnchors, Untrusted, Verifier};
use support::encode::bstr;
use support::signer::{Certificate, Fixture, HOST, LEAF, REGIONAL, SIGNED_AT, at};
use support::{PRODUCTION, after, vector};

fn lenient() -> Policy {
    Policy::any_measurement_insecure().without_nonce_insecure()
}

fn size(chains: usize) -> NonZeroUsize {
    NonZeroUsize::new(chains).unwrap()
}

/// A fixture whose issuers are fixed, so that documents share them, and a
/// verifier that has seen one of its documents.
fn warmed_up() -> (Fixture, Verifier) {
    let mut fixture = Fixture::honest();
    let issuers: Vec<_> = fixture.certificates[..LEAF].iter().map(Certificate::der).collect();
    let anchors = TrustAnchors::from_der(&issuers[..1]).unwrap();
    fixture.bundle = Some(issuers);
    let verifier = Verifier::new(anchors, fixture.policy.clone()).with_chain_cache(size(8));
    assert!(verifier.verify(&fixture.document(), Clock::At(at(SIGNED_AT))).is_ok());
    assert_eq!(verifier.cached_chains(), 2, "the issuers, and the issuers with the leaf");
    (fixture, verifier)
}

fn code(verifier: &Verifier, document: &[u8], seconds: i64) -> &'static str {
    let verdict = verifier.verify(document, Clock::At(at(seconds)));
    verdict.map_or_else(|refusal| refusal.code(), |_| "accepted")
}

#[test]
fn genuine_documents_verify_again_from_memory_and_still_expire() {
    let verifier = Verifier::new(TrustAnchors::aws_g1(), lenient()).with_chain_cache(size(64));
    for name in PRODUCTION {
        let Some(document) = vector(name) else { return };
        for _ in 0..3 {
            assert!(verifier.verify(&document, after(&document, 0)).is_ok(), "{name}");
        }
        let late = verifier.verify(&document, after(&document, 4 * 3600)).unwrap_err();
        assert_eq!(late.code(), "chain.expired", "{name}");
        let early = verifier.verify(&document, after(&document, -4 * 3600)).unwrap_err();
        assert_eq!(early.code(), "chain.not-yet-valid", "{name}");
    }
    assert_eq!(verifier.cached_chains(), 2 * PRODUCTION.len());
}

#[test]
fn a_new_leaf_of_known_issuers_is_still_verified() {
    let (mut fixture, verifier) = warmed_up();
    fixture.certificates[LEAF].not_after += 60;
    assert_eq!(code(&verifier, &fixture.document(), SIGNED_AT), "accepted");
    assert_eq!(verifier.cached_chains(), 3);
    fixture.certificates[LEAF].signer = 5;
    assert_eq!(code(&verifier, &fixture.document(), SIGNED_AT), "chain.signature");
    assert_eq!(verifier.cached_chains(), 3, "a failure is not remembered");
}

#[test]
fn a_known_chain_does_not_vouch_for_a_document() {
    let (mut fixture, verifier) = warmed_up();
    fixture.set("certificate", bstr(&fixture.certificates[LEAF].der()));
    assert_eq!(code(&verifier, &fixture.document(), SIGNED_AT), "accepted");
    fixture.signature = |signature| bstr(&signature.iter().rev().copied().collect::<Vec<_>>());
    assert_eq!(code(&verifier, &fixture.document(), SIGNED_AT), "cose.signature");
}

#[test]
fn every_issuer_is_judged_by_its_dates_at_each_hit() {
    let (fixture, verifier) = warmed_up();
    let document = fixture.document();
    assert_eq!(code(&verifier, &document, SIGNED_AT), "accepted");
    for index in [REGIONAL, HOST, LEAF] {
        assert_eq!(code(&verifier, &document, fixture.certificates[index].not_after + 1), "chain.expired");
        assert_eq!(
            code(&verifier, &document, fixture.certificates[index].not_before - 1),
            "chain.not-yet-valid"
        );
    }
}

#[test]
fn a_spoiled_issuer_is_not_found_in_memory() {
    let (mut fixture, verifier) = warmed_up();
    let issuers = fixture.bundle.as_mut().unwrap();
    let last = issuers[HOST].len() - 1;
    issuers[HOST][last] ^= 1;
    assert_eq!(code(&verifier, &fixture.document(), SIGNED_AT), "chain.signature");
}

#[test]
fn memory_is_bounded() {
    let (fixture, _) = warmed_up();
    let roots = fixture.bundle.as_ref().unwrap()[..1].to_vec();
    let verifier = Verifier::new(TrustAnchors::from_der(roots).unwrap(), lenient()).with_chain_cache(size(4));
    for _ in 0..10 {
        // Each document has a leaf of its own: the signature differs.
        let document = fixture.document();
        assert!(Untrusted::parse(&document).is_ok());
        assert_eq!(code(&verifier, &document, SIGNED_AT), "accepted");
    }
    assert_eq!(verifier.cached_chains(), 4);
}
