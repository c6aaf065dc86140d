//! Promise: every genuine document verifies at its own time and at no other,
//! and every damaged or foreign one is refused with a code of its own.

mod support;

use attestation::{Class, Clock, Policy, TrustAnchors, Untrusted, Verifier};
use support::{DEBUG, PRODUCTION, after, time_of, vector, vectors};

fn lenient() -> Policy {
    Policy::any_measurement_insecure().without_nonce_insecure()
}

fn g1(policy: Policy) -> Verifier {
    Verifier::new(TrustAnchors::aws_g1(), policy)
}

#[test]
fn every_genuine_document_verifies_at_its_own_time_with_its_own_measurements() {
    for name in PRODUCTION {
        let Some(document) = vector(name) else { return };
        let claimed = Untrusted::parse(&document).unwrap();
        let mut policy = Policy::pcrs(claimed.claimed_pcrs().map(|(index, pcr)| (index, *pcr))).unwrap();
        policy = match claimed.claimed_nonce() {
            Some(nonce) => policy.nonce(nonce),
            None => policy.without_nonce_insecure(),
        };
        for clock in [after(&document, 0), Clock::DocumentTime] {
            let verified =
                g1(policy.clone()).verify(&document, clock).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(!verified.is_debug());
            assert_eq!(verified.timestamp(), time_of(&document));
            assert!(verified.not_after() > verified.timestamp(), "{name}");
            assert!(verified.module_id().starts_with(verified.instance_id()));
            assert!(verified.region().contains('-'), "{name}: {}", verified.region());
        }
    }
}

#[test]
fn a_debug_document_needs_the_named_exception() {
    for name in DEBUG {
        let Some(document) = vector(name) else { return };
        let refusal = g1(lenient()).verify(&document, after(&document, 0)).unwrap_err();
        assert_eq!((refusal.code(), refusal.class()), ("policy.debug", Class::Policy), "{name}");
        let verified = g1(lenient().allow_debug_insecure()).verify(&document, after(&document, 0));
        assert!(verified.unwrap_or_else(|e| panic!("{name}: {e}")).is_debug());
    }
}

#[test]
fn every_genuine_document_is_stale_after_ten_minutes_and_expired_after_four_hours() {
    for name in PRODUCTION.into_iter().chain(DEBUG) {
        let Some(document) = vector(name) else { return };
        let verifier = g1(lenient().allow_debug_insecure());
        for (seconds, code) in
            [(600, "time.stale"), (4 * 3600, "chain.expired"), (-3 * 3600, "chain.not-yet-valid")]
        {
            let refusal = verifier.verify(&document, after(&document, seconds)).unwrap_err();
            assert_eq!((refusal.code(), refusal.class()), (code, Class::Stale), "{name} {seconds} s later");
        }
    }
}

#[test]
fn a_slow_clock_is_forgiven_up_to_the_skew() {
    for name in PRODUCTION {
        let Some(document) = vector(name) else { return };
        assert!(g1(lenient()).verify(&document, after(&document, -299)).is_ok(), "{name}");
        let refusal = g1(lenient()).verify(&document, after(&document, -302)).unwrap_err();
        assert!(["time.future", "chain.not-yet-valid"].contains(&refusal.code()), "{name}: {refusal}");
    }
}

#[test]
fn every_damaged_or_foreign_document_is_refused_with_a_code_of_its_own() {
    let table = [
        ("neg-base-missing-bytes", "cbor.type", Class::Malformed),
        ("neg-eternis-2024-07-bad-sig", "cose.signature", Class::Untrusted),
        ("neg-nitrotpm-2026", "document.nitrotpm", Class::Malformed),
        ("neg-oyster-mock-root", "chain.untrusted-root", Class::Untrusted),
    ];
    for (name, code, class) in table {
        let Some(document) = vector(name) else { return };
        let verifier = g1(lenient().allow_debug_insecure());
        let refusal = verifier.verify(&document, Clock::DocumentTime).unwrap_err();
        assert_eq!((refusal.code(), refusal.class()), (code, class), "{name}: {refusal}");
    }
}

#[test]
fn a_self_made_chain_does_not_pass_even_when_its_root_is_trusted() {
    let Some(document) = vector("neg-oyster-mock-root") else { return };
    let root = Untrusted::parse(&document).unwrap().claimed_certificates().next().unwrap().to_vec();
    let verifier = Verifier::new(TrustAnchors::from_der([root]).unwrap(), lenient().allow_debug_insecure());
    let refusal = verifier.verify(&document, Clock::DocumentTime).unwrap_err();
    assert_eq!(refusal.class(), Class::Untrusted, "{refusal:?}");
}

#[test]
fn the_built_in_fingerprint_is_that_of_the_published_root() {
    let Some(directory) = vectors() else { return };
    let Some(document) = vector("blocky-2024-09-max1024") else { return };
    let der = std::fs::read(directory.join("root-g1.der")).unwrap();
    let pem = std::fs::read(directory.join("root-g1.pem")).unwrap();
    for anchors in [TrustAnchors::from_der([der]).unwrap(), TrustAnchors::from_pem(&pem).unwrap()] {
        let verified = Verifier::new(anchors, lenient()).verify(&document, Clock::DocumentTime).unwrap();
        assert_eq!(verified.root_fingerprint(), attestation::anchors::AWS_G1);
    }
    let other = TrustAnchors::from_fingerprints([[7; 32]]).unwrap();
    let refusal = Verifier::new(other, lenient()).verify(&document, Clock::DocumentTime).unwrap_err();
    assert_eq!(refusal.code(), "chain.untrusted-root");
}

#[test]
fn no_truncation_of_a_genuine_document_is_well_formed() {
    for name in ["turnkey-2026-06-indef-pcr32", "blocky-2024-09-max1024"] {
        let Some(document) = vector(name) else { return };
        for end in 0..document.len() {
            let refusal = Untrusted::parse(&document[..end]).unwrap_err();
            assert_eq!(refusal.class(), Class::Malformed, "{name} cut at {end}");
        }
    }
}

#[test]
fn no_flipped_bit_survives() {
    for name in ["anjuna-2021-03-minimal", "turnkey-2026-06-indef-pcr32"] {
        let Some(mut document) = vector(name) else { return };
        let clock = after(&document, 0);
        let verifier = g1(lenient());
        // A prime step samples every region of the document and every bit position.
        for bit in (0..document.len() * 8).step_by(13) {
            document[bit / 8] ^= 1 << (bit % 8);
            assert!(verifier.verify(&document, clock).is_err(), "{name}: bit {bit} flipped");
            document[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn the_signature_is_accepted_with_high_and_low_s() {
    let Some(document) = vector("qos-2022-07-pubkey800") else { return };
    let mut mirrored = document.clone();
    let start = mirrored.len() - 48;
    negate_mod_order(&mut mirrored[start..]);
    assert_ne!(mirrored, document);
    assert!(g1(lenient()).verify(&mirrored, after(&document, 0)).is_ok());
}

/// `n - s` for the order n of P-384 (FIPS 186-4 appendix D.1.2.4).
fn negate_mod_order(s: &mut [u8]) {
    let mut order = [0xffu8; 48];
    order[24..].copy_from_slice(&[
        0xc7, 0x63, 0x4d, 0x81, 0xf4, 0x37, 0x2d, 0xdf, 0x58, 0x1a, 0x0d, 0xb2, 0x48, 0xb0, 0xa7, 0x7a, 0xec,
        0xec, 0x19, 0x6a, 0xcc, 0xc5, 0x29, 0x73,
    ]);
    let mut borrow = 0;
    for (digit, order) in s.iter_mut().zip(order).rev() {
        let (difference, under) = order.overflowing_sub(*digit);
        let (difference, under_again) = difference.overflowing_sub(borrow);
        (*digit, borrow) = (difference, u8::from(under || under_again));
    }
}
