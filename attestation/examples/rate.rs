//! Prints how many documents this machine verifies in a second, on one core:
//! `cargo run --release -p attestation --example rate [SECONDS]`.
//!
//! Each verification is whole: parsing, chain, signature, policy; nothing is
//! cached. The documents are the genuine ones of the test data.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use attestation::{Clock, Policy, TrustAnchors, Untrusted, Verifier};

fn main() -> anyhow::Result<()> {
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(1.0), |seconds| seconds.parse())?;
    let verifier = Verifier::new(
        TrustAnchors::aws_g1(),
        Policy::any_measurement_insecure().without_nonce_insecure().allow_debug_insecure(),
    );
    println!("{:<40} {:>6} {:>12} {:>12} {:>12}", "document", "bytes", "verify/s", "us each", "parse us");
    for path in documents()? {
        let document = std::fs::read(&path)?;
        let verify = time(seconds, || verifier.verify(black_box(&document), Clock::DocumentTime).map(drop))?;
        let parse = time(seconds / 10.0, || Untrusted::parse(black_box(&document)).map(drop))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        println!("{name:<40} {:>6} {:>12.0} {:>12.1} {:>12.2}", document.len(), 1e6 / verify, verify, parse);
    }
    Ok(())
}

/// Genuine documents that are to be accepted.
fn documents() -> anyhow::Result<Vec<PathBuf>> {
    let shared = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/testdata");
    let root = std::env::var_os("ENCLAVE_SHIM_TESTDATA").map_or_else(shared, PathBuf::from);
    let directory = root.join("attestation");
    let entries =
        std::fs::read_dir(&directory).with_context(|| format!("no documents in {}", directory.display()))?;
    let mut documents: Vec<_> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    documents.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".cbor") && !name.starts_with("neg-")
    });
    documents.sort();
    ensure!(!documents.is_empty(), "no documents in {}", directory.display());
    Ok(documents)
}

/// Microseconds per call of `work`, over at least `seconds`.
fn time(seconds: f64, mut work: impl FnMut() -> Result<(), attestation::Error>) -> anyhow::Result<f64> {
    let limit = Duration::from_secs_f64(seconds);
    let start = Instant::now();
    let mut calls = 0u32;
    while calls < 10 || start.elapsed() < limit {
        work()?;
        calls += 1;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(calls))
}
