//! Promise: whatever arrives, judging it takes less than 256 KiB of memory:
//! 192 KiB of stack, which is all that the judging thread has, and 64 KiB of
//! what Rust allocates. Not seen is what the crypto library allocates by
//! itself, a few KiB that no input can enlarge.

#![allow(clippy::unwrap_used)] // a broken fixture ends the test

mod support;

use attestation::{Clock, Policy, TrustAnchors, Verifier};
use peak_alloc::PeakAlloc;
use support::encode::{NULL, array, bstr, entries, head, map, tstr, uint, wide_head};
use support::signer::{Certificate, Fixture, LEAF, extension, name};
use support::{DEBUG, PRODUCTION, vector};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const STACK: usize = 192 * 1024;
const LIMIT: usize = 64 * 1024;

/// Bytes that `work` had allocated at its height.
fn height(work: impl FnOnce()) -> usize {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    work();
    MEMORY.peak_usage() - before
}

/// The only test of this program: another would be counted along.
#[test]
fn no_document_takes_256_kib() {
    assert!(height(|| drop(std::hint::black_box(vec![1u8; LIMIT]))) >= LIMIT, "nothing is counted");

    let mut documents: Vec<(String, Vec<u8>)> =
        hostile().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let honest = Fixture::honest().document();
    documents
        .extend((0..honest.len()).step_by(61).map(|cut| (format!("cut at {cut}"), honest[..cut].to_vec())));
    for name in PRODUCTION.into_iter().chain(DEBUG) {
        documents.extend(vector(name).map(|document| (name.to_owned(), document)));
    }
    // A stack that overflows ends the process.
    let judge = std::thread::Builder::new().stack_size(STACK).spawn(move || judge_all(&documents)).unwrap();
    judge.join().unwrap();
}

fn judge_all(documents: &[(String, Vec<u8>)]) {
    let policy = Policy::any_measurement_insecure().without_nonce_insecure();
    let mut highest = 0;
    for (name, document) in documents {
        // The root is trusted, so that the certificates are looked at.
        let own = attestation::Untrusted::parse(document).ok();
        let root =
            own.and_then(|own| own.claimed_certificates().next().map(<[u8]>::to_vec)).unwrap_or_default();
        let verifier = Verifier::new(TrustAnchors::from_der([root]).unwrap(), policy.clone());
        let taken = height(|| drop(verifier.verify(document, Clock::DocumentTime)));
        assert!(taken < LIMIT, "{name}: {taken} bytes");
        highest = highest.max(taken);
    }
    println!("{} documents, {highest} bytes at most", documents.len());
    assert!(highest > 0, "nothing was judged");
}

fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let with = |payload: Vec<u8>| Fixture { payload: Some(payload), ..Fixture::honest() }.document();
    let mut full = Fixture::honest();
    let issuers: Vec<_> = (0..8).map(|index| stuffed(&full.certificates[index % LEAF], index)).collect();
    full.certificates[LEAF].issuer = name("7");
    full.bundle = Some(issuers);
    for field in ["user_data", "nonce", "public_key"] {
        full.set(field, bstr(&[1; 1024]));
    }
    let unknown: Vec<_> = (0..22u64).map(|key| (tstr(&format!("unknown {key}")), vec![NULL])).collect();
    let mut wordy = Fixture::honest();
    let payload = [vec![0xbf], entries(&unknown), wordy.payload()[1..].to_vec()].concat();
    wordy.payload = Some(payload);
    vec![
        ("nothing but a size", vec![0; 1 << 20]),
        ("16 KiB of zeros", vec![0; 16 * 1024]),
        ("nested arrays", with([vec![0xbf, 0x61, b'n'], vec![0x81; 16_000]].concat())),
        ("nested open arrays", with([vec![0xbf, 0x61, b'n'], vec![0x9f; 16_000]].concat())),
        ("many keys", with([head(5, 8000), vec![0x60; 16_000]].concat())),
        ("a map of 2^63", with(wide_head(5, 1 << 63, 8))),
        ("an array of 2^32", with(map(&[(tstr("cabundle"), wide_head(4, 1 << 32, 8))]))),
        ("text of 2^40", with(map(&[(tstr("module_id"), wide_head(3, 1 << 40, 8))]))),
        ("8000 certificates", with(map(&[(tstr("cabundle"), array(&vec![bstr(&[1]); 7000]))]))),
        ("8000 registers", with(map(&[(tstr("pcrs"), map(&vec![(uint(1), bstr(&[])); 7000]))]))),
        ("all that fits", full.document()),
        ("32 keys", wordy.document()),
    ]
}

/// A certificate as long as may be, of a chain of its own.
fn stuffed(certificate: &Certificate, index: usize) -> Vec<u8> {
    let mut stuffed = certificate.clone();
    stuffed.subject = name(&index.to_string());
    stuffed.issuer = name(&index.saturating_sub(1).to_string());
    stuffed.extensions.push(extension(&[0x2a, 3], false, &[7; 480]));
    stuffed.der()
}
