//! Prints how many documents this machine verifies in a second, on one core:
//! `cargo run --release -p attestation --example rate [SECONDS]`.
//!
//! "full" verifies five signatures, those of the chain and of the document.
//! "leaf known" remembers the chain and verifies one. The last line is an
//! enclave that is seen for the first time on a known instance: two
//! signatures, measured with documents of a test signer.

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::ensure;
use attestation::{Clock, Policy, TrustAnchors, Untrusted, Verifier};
use support::signer::{Certificate, Fixture, LEAF, ROOT};
use support::{DEBUG, PRODUCTION, vector};

fn main() -> anyhow::Result<()> {
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(1.0), |seconds| seconds.parse())?;
    println!(
        "{:<36} {:>6} {:>8} {:>9} {:>13} {:>10}",
        "document", "bytes", "full/s", "full, us", "leaf known/s", "parse, us"
    );
    for name in PRODUCTION.into_iter().chain(DEBUG) {
        let Some(document) = vector(name) else { break };
        let plain = Verifier::new(TrustAnchors::aws_g1(), lenient());
        let full = time(seconds, || verify(&plain, &document))?;
        let remembering = plain.with_chain_cache(CHAINS);
        let known = time(seconds, || verify(&remembering, &document))?;
        ensure!(remembering.cached_chains() == 2, "nothing was remembered");
        let parse = time(seconds / 10.0, || Ok(Untrusted::parse(black_box(&document)).map(drop)?))?;
        let (full_rate, known_rate) = (1e6 / full, 1e6 / known);
        println!(
            "{name:<36} {:>6} {full_rate:>8.0} {full:>9.1} {known_rate:>13.0} {parse:>10.2}",
            document.len()
        );
    }
    println!("issuers known, leaf new: {:.0}/s", 1e6 / new_leaf(seconds)?);
    Ok(())
}

const CHAINS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(LEAVES);
const LEAVES: usize = 256;

fn lenient() -> Policy {
    Policy::any_measurement_insecure().without_nonce_insecure().allow_debug_insecure()
}

fn verify(verifier: &Verifier, document: &[u8]) -> anyhow::Result<()> {
    verifier.verify(black_box(document), Clock::DocumentTime)?;
    Ok(())
}

/// Microseconds for a document of known issuers with a leaf not seen before.
fn new_leaf(seconds: f64) -> anyhow::Result<f64> {
    let mut fixture = Fixture::honest();
    let issuers: Vec<_> = fixture.certificates[..LEAF].iter().map(Certificate::der).collect();
    let anchors = TrustAnchors::from_der([&issuers[ROOT]])?;
    fixture.bundle = Some(issuers);
    // Each document is built with a leaf of its own.
    let documents: Vec<_> = (0..=LEAVES).map(|_| fixture.document()).collect();
    let (mut spent, mut calls) = (Duration::ZERO, 0u32);
    while spent.as_secs_f64() < seconds {
        let verifier = Verifier::new(anchors.clone(), lenient()).with_chain_cache(CHAINS);
        verify(&verifier, &documents[LEAVES])?;
        let start = Instant::now();
        for document in &documents[..LEAVES] {
            verify(&verifier, document)?;
            calls += 1;
        }
        spent += start.elapsed();
    }
    Ok(spent.as_secs_f64() * 1e6 / f64::from(calls))
}

/// Microseconds per call of `work`, over at least `seconds`.
fn time(seconds: f64, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let limit = Duration::from_secs_f64(seconds);
    let start = Instant::now();
    let mut calls = 0u32;
    while calls < 10 || start.elapsed() < limit {
        work()?;
        calls += 1;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(calls))
}
