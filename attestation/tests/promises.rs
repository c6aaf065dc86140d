//! Promise: 900 full verifications a second on one core, 2,200 with the issuing
//! chain remembered, 4,000 when the leaf is too; no accepted document takes
//! 1.5 ms. That is demanded of an optimised build (`make bench`), half of it where
//! code is not optimised and others use the core. Counted is this thread's
//! processor time in the best of some rounds.

#![allow(clippy::unwrap_used)] // a broken fixture ends the test

mod support;

use std::hint::black_box;
use std::num::NonZeroUsize;

use attestation::{Clock, Policy, TrustAnchors, Verifier};
use support::signer::{Certificate, Fixture, LEAF, ROOT};
use support::{DEBUG, PRODUCTION, vector};

/// The part of the promise that is demanded here.
const PART: f64 = if cfg!(debug_assertions) { 0.5 } else { 1.0 };
const ROUNDS: usize = if cfg!(debug_assertions) { 12 } else { 60 };
const CALLS: usize = 24;
const CHAINS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2 * CALLS);

/// Seconds that this thread has run: the first number, in nanoseconds. Source:
/// Linux `Documentation/scheduler/sched-stats.rst`.
fn cpu_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn lenient() -> Policy {
    Policy::any_measurement_insecure().without_nonce_insecure().allow_debug_insecure()
}

/// Seconds per call of the best round; every round starts from `prepare`.
fn best<T>(mut prepare: impl FnMut() -> T, mut call: impl FnMut(&mut T, usize)) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let mut prepared = prepare();
        let begun = cpu_time();
        (0..CALLS).for_each(|index| call(&mut prepared, index));
        (cpu_time() - begun) / CALLS as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

#[test]
fn documents_verify_at_the_promised_rate_and_none_takes_long() {
    let genuine: Vec<_> = PRODUCTION.into_iter().chain(DEBUG).map_while(vector).collect();
    let verifier = Verifier::new(TrustAnchors::aws_g1(), lenient());
    let times = genuine.iter().map(|document| {
        best(
            || (),
            |(), _| {
                let _ = black_box(verifier.verify(black_box(document), Clock::DocumentTime).unwrap());
            },
        )
    });
    let times: Vec<f64> = times.collect();
    if times.is_empty() {
        return;
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    println!("{:.0} a second on average, the worst takes {:.2} ms", 1.0 / mean, worst * 1e3);
    assert!(1.0 / mean >= PART * 900.0, "{:.0} a second", 1.0 / mean);
    assert!(worst < 1.5e-3 / PART, "{:.2} ms", worst * 1e3);
}

#[test]
fn documents_of_known_leaves_verify_at_the_promised_rate() {
    let genuine: Vec<_> = PRODUCTION.into_iter().map_while(vector).collect();
    for document in &genuine {
        let verifier = Verifier::new(TrustAnchors::aws_g1(), lenient()).with_chain_cache(CHAINS);
        verifier.verify(document, Clock::DocumentTime).unwrap();
        let time = best(
            || (),
            |(), _| {
                let _ = black_box(verifier.verify(black_box(document), Clock::DocumentTime).unwrap());
            },
        );
        println!("{:.0} a second for {} bytes", 1.0 / time, document.len());
        assert!(1.0 / time >= PART * 4000.0, "{:.0} a second for {} bytes", 1.0 / time, document.len());
    }
}

#[test]
fn documents_of_new_leaves_of_known_issuers_verify_at_the_promised_rate() {
    let mut fixture = Fixture::honest();
    let issuers: Vec<_> = fixture.certificates[..LEAF].iter().map(Certificate::der).collect();
    let anchors = TrustAnchors::from_der([&issuers[ROOT]]).unwrap();
    fixture.bundle = Some(issuers);
    // Each document is built with a leaf of its own.
    let documents: Vec<_> = (0..=CALLS).map(|_| fixture.document()).collect();
    let prepare = || {
        let verifier = Verifier::new(anchors.clone(), lenient()).with_chain_cache(CHAINS);
        verifier.verify(&documents[CALLS], Clock::DocumentTime).unwrap();
        verifier
    };
    let time = best(prepare, |verifier, index| {
        let _ = black_box(verifier.verify(black_box(&documents[index]), Clock::DocumentTime).unwrap());
    });
    println!("{:.0} a second", 1.0 / time);
    assert!(1.0 / time >= PART * 2200.0, "{:.0} a second", 1.0 / time);
}
