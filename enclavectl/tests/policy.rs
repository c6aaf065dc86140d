//! Promise: a policy made from a build accepts that build's documents and no
//! others, and a flag goes before what the file says.

#![allow(clippy::expect_used, clippy::unwrap_used)] // a broken fixture ends the test

#[path = "../../eif/tests/sample/mod.rs"]
mod sample;
#[path = "../../attestation/tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use attestation::{Pcr, Untrusted, environment};
use support::encode::bstr;
use support::signer::{Certificate, Fixture, LEAF, honest_pcrs};
use tempfile::TempDir;

const SIGNED_AT: &str = "2026-01-15T12:00:00Z";
const LATER: &str = "2026-01-15T12:01:30Z";
const NONCE: &str = "6672657368";

/// Two builds of an application, and a document of an enclave that runs the first.
struct Bench {
    directory: TempDir,
    root: String,
    fixture: Fixture,
    pcrs: Vec<(u8, Pcr)>,
}

impl Bench {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
        let mut sections = sample::sections();
        write("app.eif", &sample::assemble(&sections));
        *sections[4].1.last_mut().unwrap() ^= 1;
        write("other.eif", &sample::assemble(&sections));

        let measured = eif::Image::open(&directory.path().join("app.eif")).unwrap().measure().unwrap();
        let mut pcrs = honest_pcrs();
        for (index, pcr) in [measured.pcr0, measured.pcr1, measured.pcr2].iter().enumerate() {
            pcrs[index].1 = *pcr.as_bytes();
        }
        let hex = |index: usize| hex::encode(pcrs[index].1);
        let measurements = serde_json::json!({
            "Measurements": { "HashAlgorithm": "Sha384 { ... }", "PCR0": hex(0), "PCR1": hex(1), "PCR2": hex(2) }
        });
        write("app.json", measurements.to_string().as_bytes());
        let mut fixture = Fixture::honest();
        fixture.bundle = Some(fixture.certificates[..LEAF].iter().map(Certificate::der).collect());
        fixture.set_pcrs(&pcrs);
        fixture.set("nonce", bstr(&hex::decode(NONCE).unwrap()));
        let document = fixture.document();
        write("document", &document);
        let root = Untrusted::parse(&document).unwrap().claimed_certificates().next().unwrap().to_vec();
        let root = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root));
        Self { directory, root, fixture, pcrs }
    }

    /// Signs the document again, with another register.
    fn extend(&mut self, register: (u8, Pcr)) {
        self.pcrs.push(register);
        self.fixture.set_pcrs(&self.pcrs);
        std::fs::write(self.path("document"), self.fixture.document()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enclavectl"));
        command.current_dir(&self.directory).args(arguments).output().expect("enclavectl runs")
    }

    fn code(&self, arguments: &[&str]) -> i32 {
        let output = self.run(arguments);
        output.status.code().expect("an exit code")
    }

    /// Makes `policy.yaml` from `arguments` and verifies the document under it with `flags`.
    fn verdict(&self, arguments: &[&str], flags: &[&str]) -> i32 {
        let made = [&["policy", "from", "-o", "policy.yaml", "--root-fingerprint", &self.root], arguments];
        assert_eq!(self.code(&made.concat()), 0, "{arguments:?}");
        self.code(&[&["verify", "document", "--policy", "policy.yaml"], flags].concat())
    }
}

#[test]
fn a_policy_accepts_the_documents_of_its_builds_only() {
    let bench = Bench::new();
    let fresh = ["--at", SIGNED_AT, "--nonce", NONCE];
    assert_eq!(bench.verdict(&["app.eif"], &fresh), 0);
    assert_eq!(bench.verdict(&["app.json"], &fresh), 0, "measurements stand for the image");
    assert_eq!(bench.verdict(&["other.eif", "app.json"], &fresh), 0, "one of several builds");
    assert_eq!(bench.verdict(&["other.eif"], &fresh), 4);
    let role = format!("3={}", "11".repeat(48));
    assert_eq!(bench.verdict(&["app.eif", "--pcr", &role], &fresh), 4, "another IAM role");
    assert_eq!(bench.verdict(&["app.eif"], &["--at", SIGNED_AT, "--nonce", "00"]), 4);
    assert_eq!(bench.verdict(&["app.eif", "--max-age", "60"], &["--at", LATER, "--nonce", NONCE]), 5);
}

/// Forged or not, and however it is asked: what is shown are claims.
#[test]
fn inspecting_a_document_shows_its_claims_and_never_says_that_they_are_verified() {
    let bench = Bench::new();
    let honest = std::fs::read(bench.path("document")).unwrap();
    let mut forged = honest.clone();
    *forged.last_mut().unwrap() ^= 1;
    std::fs::write(bench.path("forged"), &forged).unwrap();
    std::fs::write(bench.path("forged.hex"), hex::encode(&forged)).unwrap();
    let registers: Vec<String> = Untrusted::parse(&honest)
        .unwrap()
        .claimed_pcrs()
        .filter(|(_, pcr)| pcr.iter().any(|byte| *byte != 0))
        .map(|(index, pcr)| format!("{:<9} {}\n", format!("PCR{index}"), hex::encode(pcr)))
        .collect();
    assert!(registers.len() >= 3);
    let shown = |arguments: &[&str]| {
        let output = bench.run(&[&["inspect"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for name in ["document", "forged", "forged.hex"] {
        let text = shown(&[name]);
        assert!(text.starts_with("UNCHECKED: ") && !text.to_lowercase().contains("verified"), "{text}");
        assert!(text.contains(NONCE) && registers.iter().all(|line| text.contains(line)), "{text}");
        let report: serde_json::Value = serde_json::from_str(&shown(&[name, "--json"])).unwrap();
        assert_eq!(report["verified"], false);
        assert_eq!(report["claimed"]["nonce"], NONCE);
        assert_eq!(report["claimed"]["certificates"][0], bench.root.as_str());
    }
    std::fs::write(bench.path("nonsense"), "neither this nor that").unwrap();
    let output = bench.run(&["inspect", "nonsense"]);
    assert_eq!(output.status.code(), Some(65));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("nonsense is neither an enclave image nor an attestation document"), "{told}");
}

#[test]
fn the_report_names_the_build_that_matched() {
    let bench = Bench::new();
    assert_eq!(bench.verdict(&["other.eif", "app.eif"], &["--at", SIGNED_AT, "--nonce", NONCE]), 0);
    let flags =
        ["verify", "document", "--policy", "policy.yaml", "--at", SIGNED_AT, "--nonce", NONCE, "--json"];
    let report: serde_json::Value = serde_json::from_slice(&bench.run(&flags).stdout).unwrap();
    assert_eq!(report["build"], "app.eif");
    let checked = String::from_utf8(bench.run(&["policy", "check", "policy.yaml"]).stdout).unwrap();
    assert_eq!(checked, "policy.yaml: accepts other.eif, app.eif; a fresh nonce is demanded\n");
}

#[test]
fn the_pods_variables_that_nobody_compared_are_told() {
    let mut bench = Bench::new();
    let told = |bench: &Bench, expected: &[&str]| {
        let fresh = ["--root-fingerprint", &bench.root, "--at", SIGNED_AT, "--nonce", NONCE];
        let output = bench.run(&[&["verify", "document"], expected, &fresh].concat());
        assert_eq!(
            output.status.code(),
            Some(0),
            "{expected:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().contains("NOT CHECKED: PCR16")
    };
    assert!(!told(&bench, &["--eif", "app.eif"]), "the document has no such register");
    bench.extend((16, environment::pcr([("MODE", "fast")])));
    assert!(told(&bench, &["--eif", "app.eif"]));
    assert!(told(&bench, &["--any-measurement"]));
    assert!(!told(&bench, &["--eif", "app.eif", "--pod-env", "MODE=fast"]));
    for (arguments, unchecked) in [(&["app.eif"][..], true), (&["app.eif", "--pod-env", "MODE=fast"], false)]
    {
        assert_eq!(bench.verdict(arguments, &["--at", SIGNED_AT, "--nonce", NONCE]), 0);
        assert_eq!(told(&bench, &["--policy", "policy.yaml"]), unchecked, "{arguments:?}");
    }
}

#[test]
fn flags_go_before_the_file() {
    let bench = Bench::new();
    let late = ["--at", LATER, "--nonce", NONCE, "--max-age", "120"];
    assert_eq!(bench.verdict(&["app.eif", "--max-age", "60"], &late), 0);
    let other = "00".repeat(32);
    let rooted = ["--at", SIGNED_AT, "--nonce", NONCE, "--root-fingerprint", &other];
    assert_eq!(bench.verdict(&["app.eif"], &rooted), 3);
}

#[test]
fn a_nonce_is_given_or_waived_by_the_file_or_by_a_flag() {
    let bench = Bench::new();
    assert_eq!(bench.verdict(&["app.eif"], &["--at", SIGNED_AT]), 64);
    assert_eq!(bench.verdict(&["app.eif"], &["--at", SIGNED_AT, "--no-nonce"]), 0);
    assert_eq!(bench.verdict(&["app.eif", "--no-nonce"], &["--at", SIGNED_AT]), 0);
}

#[test]
fn what_cannot_become_a_policy_has_its_exit_code() {
    let bench = Bench::new();
    std::fs::write(bench.path("empty.json"), "{}").unwrap();
    std::fs::write(bench.path("debug.json"), format!("{{\"PCR0\": \"{}\"}}", "00".repeat(48))).unwrap();
    std::fs::write(bench.path("odd.yaml"), "version: 1\nbuilds: []\nmax-age: 3\n").unwrap();
    for (arguments, code) in [
        (&["policy", "from", "no-such-file"][..], 66),
        (&["policy", "from", "document"], 65),
        (&["policy", "from", "empty.json"], 65),
        (&["policy", "from", "debug.json"], 64),
        (&["policy", "from", "app.eif", "--registers", "1"], 64),
        (&["policy", "from", "app.eif", "-o", "no/such/directory"], 73),
        (&["policy", "from"], 64),
        (&["policy", "check", "odd.yaml"], 64),
        (&["policy", "check", "no-such-file"], 66),
        (&["verify", "document", "--no-nonce", "--policy", "odd.yaml"], 64),
        (&["verify", "document", "--no-nonce", "--policy", "odd.yaml", "--any-measurement"], 64),
    ] {
        let output = bench.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}
