//! Promise: an authentic document is accepted only when the policy asks for
//! just this one, now (mutation groups 50 to 54).

mod support;

use std::time::Duration;

use attestation::policy::PolicyError;
use attestation::{Class, Clock, Pcr, Policy, TrustAnchors, Verifier};
use support::check;
use support::encode::{NULL, bstr, uint};
use support::signer::{Fixture, LEAF, MODULE, REGION, SIGNED_AT, at, honest_pcrs};

const ZERO: Pcr = [0; 48];
const NONCE: &[u8] = b"a nonce of twenty-one";

fn waived(policy: Policy) -> Policy {
    policy.without_nonce_insecure()
}

#[test]
fn documents_from_the_future_and_from_the_past_are_refused() {
    check(&[
        ("now", |f| f.age = 0, "accepted"),
        ("300 s old", |f| f.age = 300, "accepted"),
        ("301 s old", |f| f.age = 301, "time.stale"),
        ("300 s ahead", |f| f.age = -300, "accepted"),
        ("301 s ahead", |f| f.age = -301, "time.future"),
        ("past the leaf", |f| f.age = 2 * 3600 + 1, "chain.expired"),
        ("before the leaf", |f| f.age = -3601, "chain.not-yet-valid"),
        (
            "an hour old where two are allowed",
            |f| (f.age, f.policy) = (3600, f.policy.clone().max_age(Duration::from_secs(7200))),
            "accepted",
        ),
        (
            "max age does not outlive the chain",
            |f| (f.age, f.policy) = (9000, f.policy.clone().max_age(Duration::MAX)),
            "chain.expired",
        ),
        (
            "11 s ahead of 10",
            |f| (f.age, f.policy) = (-11, f.policy.clone().skew(Duration::from_secs(10))),
            "time.future",
        ),
        (
            "skew is cut to five minutes",
            |f| (f.age, f.policy) = (-301, f.policy.clone().skew(Duration::MAX)),
            "time.future",
        ),
        (
            "signed before the leaf",
            |f| f.set("timestamp", uint((SIGNED_AT as u64 - 3601) * 1000)),
            "time.outside-leaf",
        ),
        (
            "signed after the leaf",
            |f| f.set("timestamp", uint((SIGNED_AT as u64 + 3 * 3600) * 1000)),
            "time.outside-leaf",
        ),
        ("far future", |f| f.set("timestamp", uint((1 << 53) - 1)), "time.outside-leaf"),
    ]);
}

#[test]
fn a_leaf_issued_within_the_skew_of_a_slow_clock_is_accepted() {
    check(&[(
        "leaf is 3 s old, clock is 60 s slow",
        |f| {
            f.certificates[LEAF].not_before = SIGNED_AT - 3;
            f.age = -60;
        },
        "accepted",
    )]);
}

#[test]
fn the_nonce_is_demanded_unless_it_is_waived_by_name() {
    fn expect(f: &mut Fixture, nonce: &[u8]) {
        f.policy = Policy::any_measurement_insecure().nonce(nonce);
    }
    check(&[
        ("undecided", |f| f.policy = Policy::any_measurement_insecure(), "policy.nonce-undecided"),
        ("decided by an empty one", |f| expect(f, b""), "policy.nonce-undecided"),
        ("right", |f| expect(f, NONCE), "accepted"),
        ("other", |f| expect(f, b"another of twenty-one"), "policy.nonce-mismatch"),
        ("prefix", |f| expect(f, &NONCE[..10]), "policy.nonce-mismatch"),
        ("longer", |f| expect(f, &[NONCE, b"!"].concat()), "policy.nonce-mismatch"),
        (
            "null",
            |f| {
                expect(f, NONCE);
                f.set("nonce", vec![NULL]);
            },
            "policy.nonce-missing",
        ),
        (
            "absent",
            |f| {
                expect(f, NONCE);
                f.remove("nonce");
            },
            "policy.nonce-missing",
        ),
        (
            "empty",
            |f| {
                expect(f, NONCE);
                f.set("nonce", bstr(&[]));
            },
            "policy.nonce-mismatch",
        ),
    ]);
}

#[test]
fn debug_enclaves_need_the_named_exception() {
    fn zero(f: &mut Fixture, indices: &[usize]) {
        let mut pcrs = honest_pcrs();
        indices.iter().for_each(|index| pcrs[*index].1 = ZERO);
        f.set_pcrs(&pcrs);
    }
    fn allow(f: &mut Fixture) {
        f.policy = f.policy.clone().allow_debug_insecure();
    }
    check(&[
        ("debug", |f| zero(f, &[0, 1, 2]), "policy.debug"),
        (
            "debug with a role",
            |f| {
                zero(f, &[0, 1, 2]);
                allow(f);
            },
            "accepted",
        ),
        ("only PCR0 zero", |f| zero(f, &[0]), "policy.zero-pcr"),
        ("only PCR1 zero", |f| zero(f, &[1]), "policy.zero-pcr"),
        (
            "PCR0 and 2 zero, debug allowed",
            |f| {
                zero(f, &[0, 2]);
                allow(f);
            },
            "policy.zero-pcr",
        ),
        ("PCR0 to 2 absent", |f| f.set_pcrs(&honest_pcrs()[3..]), "policy.debug"),
    ]);
}

#[test]
fn measurements_must_all_match() {
    fn build(f: &mut Fixture, build: &[(u8, Pcr)]) {
        f.policy = waived(Policy::pcrs(build.iter().copied()).unwrap());
    }
    const GOOD: [(u8, Pcr); 3] = [(0, [0xa0; 48]), (1, [0xa1; 48]), (2, [0xa2; 48])];
    const OTHER: [(u8, Pcr); 1] = [(0, [0xb0; 48])];
    check(&[
        ("all three", |f| build(f, &GOOD), "accepted"),
        ("PCR0 alone", |f| build(f, &GOOD[..1]), "accepted"),
        ("other PCR0", |f| build(f, &OTHER), "policy.pcr-mismatch"),
        ("other PCR2", |f| build(f, &[GOOD[0], (2, [0xa1; 48])]), "policy.pcr-mismatch"),
        (
            "last bit of PCR0",
            |f| {
                let mut pcr = [0xa0; 48];
                pcr[47] ^= 1;
                build(f, &[(0, pcr)]);
            },
            "policy.pcr-mismatch",
        ),
        ("PCR8 on an unsigned image", |f| build(f, &[GOOD[0], (8, [8; 48])]), "policy.pcr-mismatch"),
        ("unsigned demanded", |f| build(f, &[GOOD[0], (8, ZERO)]), "accepted"),
        ("absent PCR16", |f| build(f, &[GOOD[0], (16, ZERO)]), "policy.pcr-absent"),
        (
            "second of two builds",
            |f| f.policy = waived(Policy::pcrs(OTHER).unwrap().or_pcrs(GOOD).unwrap()),
            "accepted",
        ),
        (
            "neither of two builds",
            |f| f.policy = waived(Policy::pcrs(OTHER).unwrap().or_pcrs(OTHER).unwrap()),
            "policy.no-build-matches",
        ),
    ]);
}

#[test]
fn a_policy_that_pins_nothing_cannot_be_built() {
    let build = |build: &[(u8, Pcr)]| Policy::pcrs(build.iter().copied()).map(drop).unwrap_err();
    assert_eq!(build(&[]), PolicyError::Empty);
    assert_eq!(build(&[(0, ZERO), (1, ZERO), (2, ZERO)]), PolicyError::Zero(0));
    assert_eq!(build(&[(0, [1; 48]), (2, ZERO)]), PolicyError::Zero(2));
    assert_eq!(build(&[(1, [1; 48])]), PolicyError::Weak);
    assert_eq!(build(&[(1, [1; 48]), (8, [1; 48])]), PolicyError::Replaceable);
    assert_eq!(build(&[(3, [1; 48]), (4, [1; 48])]), PolicyError::Weak);
    assert_eq!(build(&[(8, ZERO)]), PolicyError::Weak);
    assert_eq!(build(&[(32, [1; 48])]), PolicyError::Index(32));
    assert_eq!(build(&[(0, [1; 48]), (0, [2; 48])]), PolicyError::Repeated(0));
}

#[test]
fn bindings_match_whole() {
    const KEY: &[u8] = b"a key";
    fn expect(f: &mut Fixture, key: &[u8]) {
        f.policy = f.policy.clone().public_key(key);
        f.set("public_key", bstr(KEY));
    }
    fn data(f: &mut Fixture, data: &[u8]) {
        f.policy = f.policy.clone().user_data(data);
        f.set("user_data", bstr(b"bound"));
    }
    check(&[
        ("right key", |f| expect(f, KEY), "accepted"),
        ("other key", |f| expect(f, b"other"), "policy.public-key"),
        ("prefix of the key", |f| expect(f, b"a k"), "policy.public-key"),
        (
            "null key",
            |f| {
                expect(f, KEY);
                f.set("public_key", vec![NULL]);
            },
            "policy.public-key",
        ),
        ("right data", |f| data(f, b"bound"), "accepted"),
        ("prefix of the data", |f| data(f, b"boun"), "policy.user-data"),
        ("longer data", |f| data(f, b"bound to fail"), "policy.user-data"),
        (
            "null data",
            |f| {
                data(f, b"bound");
                f.set("user_data", vec![NULL]);
            },
            "policy.user-data",
        ),
        (
            "empty data is not null",
            |f| {
                data(f, b"");
                f.set("user_data", vec![NULL]);
            },
            "policy.user-data",
        ),
    ]);
}

#[cfg(feature = "policy-file")]
#[test]
fn what_a_policy_file_demands_beside_measurements_is_demanded() {
    fn file(f: &mut Fixture, demand: &str) {
        let build = format!("version: 1\nnonce: waived\nbuilds: [{{pcrs: {{PCR0: {}}}}}]\n", "a0".repeat(48));
        f.policy = attestation::PolicyFile::parse(&format!("{build}{demand}\n")).unwrap().policy();
        f.set("user_data", bstr(b"bound"));
        f.set("public_key", bstr(b"a key"));
    }
    check(&[
        ("nothing more", |f| file(f, ""), "accepted"),
        ("its user_data", |f| file(f, "user_data: '626f756e64'"), "accepted"),
        ("other user_data", |f| file(f, "user_data: '626f756e65'"), "policy.user-data"),
        ("its public_key", |f| file(f, "public_key: '61206b6579'"), "accepted"),
        ("other public_key", |f| file(f, "public_key: '61206b657a'"), "policy.public-key"),
        ("no unknown field", |f| file(f, "refuse_unknown_fields: true"), "accepted"),
        (
            "an unknown field",
            |f| {
                file(f, "refuse_unknown_fields: true");
                f.set("novelty", uint(1));
            },
            "policy.unknown-field",
        ),
        (
            "an unknown field that is let pass",
            |f| {
                file(f, "refuse_unknown_fields: false");
                f.set("novelty", uint(1));
            },
            "accepted",
        ),
    ]);
}

#[test]
fn a_development_chain_is_refused_by_awss_root() {
    let fixture = Fixture::honest();
    let document = fixture.document();
    assert!(fixture.judge(&document).is_ok());
    let verifier = Verifier::new(TrustAnchors::aws_g1(), fixture.policy.clone());
    let refusal = verifier.verify(&document, Clock::At(at(SIGNED_AT))).unwrap_err();
    assert_eq!((refusal.code(), refusal.class()), ("chain.untrusted-root", Class::Untrusted));
}

#[test]
fn a_verified_document_tells_what_was_signed() {
    let mut fixture = Fixture::honest();
    fixture.set("user_data", bstr(b"data"));
    let document = fixture.document();
    let roots: Vec<_> =
        attestation::Untrusted::parse(&document).unwrap().claimed_certificates().take(1).collect();
    let verifier = Verifier::new(TrustAnchors::from_der(roots).unwrap(), fixture.policy.clone());
    let verified = verifier.verify(&document, Clock::DocumentTime).unwrap();
    assert_eq!((verified.module_id(), verified.instance_id()), (MODULE, support::signer::INSTANCE));
    assert_eq!((verified.region(), verified.is_debug()), (REGION, false));
    assert_eq!(verified.timestamp(), at(SIGNED_AT));
    assert_eq!(verified.not_after(), at(SIGNED_AT + 2 * 3600), "the leaf ends first");
    assert_eq!(
        (verified.user_data(), verified.public_key(), verified.nonce()),
        (Some(&b"data"[..]), None, Some(NONCE))
    );
    assert_eq!(verified.pcr(0), Some(&[0xa0; 48]));
    assert_eq!((verified.pcr(16), verified.pcr(200)), (None, None));
    assert_eq!(verified.pcrs().count(), 16);
}
