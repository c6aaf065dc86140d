//! Promise: a revocation list that the caller brings along is heeded, also
//! for chains that are remembered, and believed only from its issuer.

#![allow(clippy::unwrap_used)] // a broken fixture ends the test

mod support;

use std::num::NonZeroUsize;

use attestation::revocation::RevocationListError;
use attestation::{Clock, RevocationLists, TrustAnchors, Verifier};
use support::encode::{bits, der, sequence, time};
use support::signer::{
    Certificate, Fixture, HOST, KEY_USAGE, Key, LEAF, REGIONAL, ROOT, SIGNED_AT, ZONAL, at,
    ecdsa_with_sha384, extension,
};

/// keyCertSign and cRLSign.
const CERT_AND_CRL_SIGN: &[u8] = &[0x03, 0x02, 0x01, 0x06];
const CRL_NUMBER: &[u8] = &[0x55, 29, 20];

/// A fixture of fixed issuers that may sign lists.
fn fixture() -> (Fixture, Verifier) {
    let mut fixture = Fixture::honest();
    for issuer in &mut fixture.certificates[..LEAF] {
        issuer.set_extension(KEY_USAGE, Some(extension(KEY_USAGE, true, CERT_AND_CRL_SIGN)));
    }
    let issuers: Vec<_> = fixture.certificates[..LEAF].iter().map(Certificate::der).collect();
    let anchors = TrustAnchors::from_der(&issuers[..1]).unwrap();
    fixture.bundle = Some(issuers);
    let verifier = Verifier::new(anchors, fixture.policy.clone());
    (fixture, verifier)
}

/// A list by `issuer`, signed by the key of `signer`, that revokes the certificate at `revoked`.
fn list(fixture: &Fixture, issuer: usize, signer: usize, revoked: Option<usize>, hours: i64) -> Vec<u8> {
    let entry = |index: usize| {
        let entry = sequence(&[&fixture.certificates[index].serial, &time(SIGNED_AT - 60)]);
        sequence(&[&entry])
    };
    let number = der(0xa0, &sequence(&[&extension(CRL_NUMBER, false, &der(2, &[1]))]));
    let body = sequence(&[
        &der(2, &[1]),
        &ecdsa_with_sha384(),
        &fixture.certificates[issuer].subject,
        &time(SIGNED_AT - 7200),
        &time(SIGNED_AT + hours * 3600),
        &revoked.map(entry).unwrap_or_default(),
        &number,
    ]);
    sequence(&[&body, &ecdsa_with_sha384(), &bits(&Key::shared(signer).sign(&body))])
}

fn verdict(verifier: &Verifier, fixture: &Fixture) -> &'static str {
    let verdict = verifier.verify(&fixture.document(), Clock::At(at(SIGNED_AT + 1))).map(drop);
    verdict.map_or_else(|refusal| refusal.code(), |()| "accepted")
}

#[test]
fn a_list_revokes_what_its_issuer_issued() {
    let (fixture, verifier) = fixture();
    let cases = [
        ("nothing revoked", list(&fixture, ROOT, ROOT, None, 24), "accepted"),
        ("the regional", list(&fixture, ROOT, ROOT, Some(REGIONAL), 24), "chain.revoked"),
        ("the zonal", list(&fixture, REGIONAL, REGIONAL, Some(ZONAL), 24), "chain.revoked"),
        ("the instance", list(&fixture, ZONAL, ZONAL, Some(HOST), 24), "chain.revoked"),
        ("the leaf", list(&fixture, HOST, HOST, Some(LEAF), 24), "chain.revoked"),
        ("another issuer's serial", list(&fixture, ROOT, ROOT, Some(LEAF), 24), "accepted"),
        ("out of date", list(&fixture, ROOT, ROOT, None, -1), "chain.list-expired"),
        ("signed by a stranger", list(&fixture, ROOT, ZONAL, Some(REGIONAL), 24), "chain.rejected"),
    ];
    for (case, list, expected) in cases {
        let lists = RevocationLists::from_der([list]).unwrap();
        assert_eq!(verdict(&verifier.clone().with_revocation_lists(lists), &fixture), expected, "{case}");
    }
}

#[test]
fn a_remembered_chain_can_still_be_revoked() {
    let (fixture, verifier) = fixture();
    let verifier = verifier.with_chain_cache(NonZeroUsize::MIN.saturating_add(7));
    assert_eq!(verdict(&verifier, &fixture), "accepted");
    assert_eq!(verifier.cached_chains(), 2);
    let lists = RevocationLists::from_der([list(&fixture, ROOT, ROOT, Some(REGIONAL), 24)]).unwrap();
    assert_eq!(verdict(&verifier.with_revocation_lists(lists), &fixture), "chain.revoked");
}

#[test]
fn lists_that_cannot_be_used_are_refused_when_they_are_read() {
    assert!(matches!(RevocationLists::from_pem(b"no list"), Err(RevocationListError::Empty)));
    assert!(matches!(
        RevocationLists::from_pem(b"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----\n"),
        Err(RevocationListError::Pem)
    ));
    assert!(matches!(RevocationLists::from_der([b"no list"]), Err(RevocationListError::List(_))));
    let (fixture, _) = fixture();
    let whole = list(&fixture, ROOT, ROOT, Some(REGIONAL), 24);
    assert!(RevocationLists::from_der([&whole]).is_ok());
    for length in 0..whole.len() {
        assert!(RevocationLists::from_der([&whole[..length]]).is_err(), "cut at {length}");
    }
}
