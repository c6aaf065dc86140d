//! Promise: a document verifies against the image that its enclave was booted
//! from, under the root that the caller names, and against no other.

#![allow(clippy::expect_used, clippy::unwrap_used)] // a broken fixture ends the test

#[path = "../../eif/tests/sample/mod.rs"]
mod sample;
#[path = "../../attestation/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use attestation::Untrusted;
use support::encode::bstr;
use support::signer::{Fixture, honest_pcrs};
use tempfile::TempDir;

/// When the test signer signs.
const SIGNED_AT: &str = "2026-01-15T12:00:00Z";
const NONCE: &[u8] = b"fresh";

/// An image and a document of an enclave that was booted from it.
struct Enclave {
    directory: TempDir,
    root: String,
}

impl Enclave {
    fn booted() -> Self {
        let directory = TempDir::new().unwrap();
        let image = directory.path().join("app.eif");
        std::fs::write(&image, sample::assemble(&sample::sections())).unwrap();
        let measured = eif::Image::open(&image).unwrap().measure().unwrap();

        let mut fixture = Fixture::honest();
        let mut pcrs = honest_pcrs();
        for (index, pcr) in [measured.pcr0, measured.pcr1, measured.pcr2].iter().enumerate() {
            pcrs[index].1 = *pcr.as_bytes();
        }
        fixture.set_pcrs(&pcrs);
        fixture.set("nonce", bstr(NONCE));
        let document = fixture.document();
        let root = Untrusted::parse(&document).unwrap().claimed_certificates().next().unwrap().to_vec();
        std::fs::write(directory.path().join("document"), &document).unwrap();
        Self { directory, root: hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root)) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Exit code of a verification against `image`.
    fn verify(&self, image: &Path, flags: &[&str]) -> i32 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enclavectl"));
        command.arg("verify").arg(self.path("document")).arg("--eif").arg(image);
        let output = command.args(["--at", SIGNED_AT]).args(flags).output().expect("enclavectl runs");
        output.status.code().expect("an exit code")
    }
}

#[test]
fn a_document_verifies_against_its_own_image_only() {
    let enclave = Enclave::booted();
    let (image, nonce) = (enclave.path("app.eif"), hex::encode(NONCE));
    let trusted = ["--root-fingerprint", &enclave.root, "--nonce", &nonce];
    assert_eq!(enclave.verify(&image, &trusted), 0);
    assert_eq!(enclave.verify(&image, &["--nonce", &nonce]), 3, "the root was not named");
    assert_eq!(enclave.verify(&image, &["--root-fingerprint", &enclave.root, "--nonce", "00"]), 4);

    let mut sections = sample::sections();
    *sections[4].1.last_mut().unwrap() ^= 1;
    let other = enclave.path("other.eif");
    std::fs::write(&other, sample::assemble(&sections)).unwrap();
    assert_eq!(enclave.verify(&other, &trusted), 4, "one bit of the application differs");
    std::fs::write(&other, b"no image").unwrap();
    assert_eq!(enclave.verify(&other, &trusted), 65);
}
