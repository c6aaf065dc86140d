//! What the tests of this crate share.

#![allow(dead_code, unreachable_pub)] // each test program uses its own part
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a broken fixture ends the test

pub mod encode;
pub mod signer;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::{Clock, Untrusted};

/// Genuine documents of enclaves that measured their image.
pub const PRODUCTION: [&str; 13] = [
    "anjuna-2021-03-minimal",
    "opencontracts-2021-08-rsa-pubkey",
    "qos-2022-07-pubkey800",
    "cape-2022-09-userdata746",
    "veracruz-2022-11-euw1",
    "evervault-2023-01-signed-eif-ratls",
    "sparsity-2023-09-apse1",
    "blocky-2024-09-max1024",
    "oyster-2024-12-aps1",
    "nitroattest-2025-01-euc1",
    "oyster-2025-04-pcr16-empty-userdata",
    "dstack-2025-12-indef",
    "turnkey-2026-06-indef-pcr32",
];

/// Genuine documents of enclaves in debug mode.
pub const DEBUG: [&str; 3] =
    ["evervault-2022-10-debug", "evervault-2023-09-debug", "oraclekit-2025-06-indef-debug"];

/// The directory of the genuine documents; `None`, loudly, when it is absent.
pub fn vectors() -> Option<PathBuf> {
    // Beside the repository; a workspace within a crate is one level deeper.
    let beside =
        |levels: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(levels).join("shared/testdata");
    let shared = || Some(beside("../../..")).filter(|path| path.is_dir()).unwrap_or_else(|| beside("../.."));
    let root = std::env::var_os("ENCLAVE_SHIM_TESTDATA").map_or_else(shared, PathBuf::from);
    let directory = root.join("attestation");
    if directory.is_dir() {
        return Some(directory);
    }
    eprintln!("SKIPPED: no genuine documents in {} (set ENCLAVE_SHIM_TESTDATA)", directory.display());
    None
}

/// Bytes of one genuine document; `None`, loudly, when the set is absent.
pub fn vector(name: &str) -> Option<Vec<u8>> {
    let path = vectors()?.join(format!("{name}.cbor"));
    Some(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// The time that a document gives itself.
pub fn time_of(document: &[u8]) -> SystemTime {
    let claimed = Untrusted::parse(document).expect("a well-formed document").claimed_timestamp_ms();
    UNIX_EPOCH + Duration::from_millis(claimed)
}

/// A clock that stands `seconds` after a document's own time.
pub fn after(document: &[u8], seconds: i64) -> Clock {
    let time = time_of(document);
    let distance = Duration::from_secs(seconds.unsigned_abs());
    Clock::At(if seconds < 0 { time - distance } else { time + distance })
}

/// One change to an honest document, and the verdict that must follow.
pub type Case = (&'static str, fn(&mut signer::Fixture), &'static str);

/// Judges every case and reports all that went wrong at once.
pub fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for (name, spoil, expected) in cases {
        let mut fixture = signer::Fixture::honest();
        spoil(&mut fixture);
        let actual = fixture.verdict();
        if actual != *expected {
            wrong.push(format!("{name}: expected {expected}, got {actual}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
