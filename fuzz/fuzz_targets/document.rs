//! Arbitrary bytes as an attestation document: nothing may panic, and what is
//! parsed must be refused, because no fuzzer holds a key of AWS's.
#![no_main]

use attestation::{Clock, Policy, TrustAnchors, Untrusted, Verifier};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|document: &[u8]| {
    let Ok(untrusted) = Untrusted::parse(document) else { return };
    let Some(root) = untrusted.claimed_certificates().next() else { return };
    let policy = || Policy::any_measurement_insecure().without_nonce_insecure().allow_debug_insecure();
    // Trusting whatever root it brings takes the fuzzer into the certificates.
    if let Ok(anchors) = TrustAnchors::from_der([root]) {
        let _ = Verifier::new(anchors, policy()).verify_parsed(untrusted, Clock::DocumentTime);
    }
});
