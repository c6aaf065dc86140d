//! Promise: `enclavectl verify` tells its verdict by its exit code: 0 verified,
//! 2 malformed, 3 untrusted, 4 policy, 5 stale, 64 usage.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a broken fixture ends the test

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const DOCUMENT: &str = "evervault-2023-01-signed-eif-ratls";
const SIGNED_AT: &str = "2023-01-18T13:07:19.28Z";
const AUDIT: [&str; 3] = ["--any-measurement", "--no-nonce", "--document-time"];

/// The directory of the genuine documents; `None`, loudly, when it is absent.
fn vectors() -> Option<PathBuf> {
    let shared = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/testdata");
    let root = std::env::var_os("ENCLAVE_SHIM_TESTDATA").map_or_else(shared, PathBuf::from);
    let directory = root.join("attestation");
    if directory.is_dir() {
        return Some(directory);
    }
    eprintln!("SKIPPED: no genuine documents in {} (set ENCLAVE_SHIM_TESTDATA)", directory.display());
    None
}

fn verify(document: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enclavectl"));
    command.arg("verify").arg(document).args(flags).output().expect("enclavectl runs")
}

fn code(document: &Path, flags: &[&str]) -> i32 {
    verify(document, flags).status.code().expect("an exit code")
}

fn json(document: &Path, flags: &[&str]) -> (i32, Value) {
    let output = verify(document, &[flags, &["--json"]].concat());
    let report = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    (output.status.code().expect("an exit code"), report)
}

#[test]
fn a_genuine_document_verifies_against_its_own_values_and_is_told_in_json() {
    let Some(directory) = vectors() else { return };
    let document = directory.join(format!("{DOCUMENT}.cbor"));
    let (status, audit) = json(&document, &AUDIT);
    assert_eq!((status, &audit["verified"], &audit["region"]), (0, &true.into(), &"us-east-1".into()));
    assert_eq!((&audit["judged_at"], &audit["checked"]["nonce"]), (&"document-time".into(), &false.into()));

    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pcr = |index: u8| text(&audit["pcrs"][format!("PCR{index}")]);
    let (pcr0, pcr1, pcr2, pcr8) = (pcr(0), pcr(1), pcr(2), pcr(8));
    let (pcr4, nonce, user_data) =
        (format!("4={}", pcr(4)), text(&audit["nonce"]), text(&audit["user_data"]));
    let exact = [
        ["--at", SIGNED_AT, "--nonce", &nonce, "--user-data", &user_data].as_slice(),
        &["--pcr0", &pcr0, "--pcr1", &pcr1, "--pcr2", &pcr2, "--pcr8", &pcr8, "--pcr", &pcr4],
    ]
    .concat();
    let (status, verified) = json(&document, &exact);
    assert_eq!((status, &verified["verified"], &verified["debug"]), (0, &true.into(), &false.into()));
    assert_eq!(verified["checked"], serde_json::json!({ "measurements": true, "nonce": true }));
    assert_eq!((&verified["timestamp"], &verified["judged_at"]), (&SIGNED_AT.into(), &"given-time".into()));
    assert_eq!(verified["not_after"], "2023-01-18T16:07:16Z");
    assert_eq!(verified["module_id"], "i-0ec0e572c8263d8ff-enc0185c4fd382eeb25");

    let swapped = [&exact[..6], &["--pcr0", &pcr1, "--pcr1", &pcr0]].concat();
    let (status, refusal) = json(&document, &swapped);
    assert_eq!((status, &refusal["code"]), (4, &"policy.pcr-mismatch".into()));
}

#[test]
fn every_kind_of_refusal_has_its_exit_code() {
    let Some(directory) = vectors() else { return };
    let table: [(&str, &[&str], i32, &str); 11] = [
        ("neg-base-missing-bytes", &AUDIT, 2, "cbor.type"),
        ("neg-nitrotpm-2026", &AUDIT, 2, "document.nitrotpm"),
        ("neg-oyster-mock-root", &AUDIT, 3, "chain.untrusted-root"),
        ("neg-eternis-2024-07-bad-sig", &AUDIT, 3, "cose.signature"),
        ("evervault-2022-10-debug", &AUDIT, 4, "policy.debug"),
        (DOCUMENT, &["--any-measurement", "--document-time", "--nonce", "00"], 4, "policy.nonce-mismatch"),
        (
            DOCUMENT,
            &["--any-measurement", "--no-nonce", "--document-time", "--user-data", "00"],
            4,
            "policy.user-data",
        ),
        (
            DOCUMENT,
            &["--any-measurement", "--no-nonce", "--document-time", "--public-key", "00"],
            4,
            "policy.public-key",
        ),
        (DOCUMENT, &["--any-measurement", "--no-nonce"], 5, "chain.expired"),
        (DOCUMENT, &["--any-measurement", "--no-nonce", "--at", "2023-01-18T13:20:00Z"], 5, "time.stale"),
        (
            DOCUMENT,
            &["--any-measurement", "--no-nonce", "--at", "2023-01-18T10:00:00Z"],
            5,
            "chain.not-yet-valid",
        ),
    ];
    for (name, flags, status, code) in table {
        let (actual, report) = json(&directory.join(format!("{name}.cbor")), flags);
        assert_eq!((actual, &report["code"]), (status, &code.into()), "{name} {flags:?}");
        assert_eq!((&report["verified"], report.get("module_id")), (&false.into(), None), "{name}");
    }
    let debug = directory.join("evervault-2022-10-debug.cbor");
    assert_eq!(code(&debug, &[&AUDIT[..], &["--allow-debug"]].concat()), 0);
    let older = ["--any-measurement", "--no-nonce", "--at", "2023-01-18T13:20:00Z", "--max-age", "3600"];
    assert_eq!(code(&directory.join(format!("{DOCUMENT}.cbor")), &older), 0);
}

#[test]
fn the_root_is_awss_unless_another_is_named() {
    let Some(directory) = vectors() else { return };
    let document = directory.join(format!("{DOCUMENT}.cbor"));
    let pem = directory.join("root-g1.pem");
    let pem = pem.to_str().unwrap();
    let g1 = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b";
    let other = "00".repeat(32);
    for (roots, status) in [
        (vec!["--root-pem", pem], 0),
        (vec!["--root-fingerprint", g1], 0),
        (vec!["--root-fingerprint", &other, "--root-pem", pem], 0),
        (vec!["--root-fingerprint", &other], 3),
        (vec!["--root-pem", "no-such-file"], 66),
        (vec!["--root-pem", document.to_str().unwrap()], 64),
        (vec!["--crl", "no-such-file"], 66),
        (vec!["--crl", pem], 64),
    ] {
        assert_eq!(code(&document, &[&AUDIT[..], &roots].concat()), status, "{roots:?}");
    }
}

#[test]
fn a_choice_that_was_not_made_is_a_usage_error() {
    let pcr = "11".repeat(48);
    let zero = "00".repeat(48);
    let cases: [&[&str]; 14] = [
        &[],
        &["--any-measurement"],
        &["--no-nonce"],
        &["--any-measurement", "--no-nonce", "--nonce", "00"],
        &["--any-measurement", "--no-nonce", "--pcr0", &pcr],
        &["--any-measurement", "--nonce", ""],
        &["--any-measurement", "--nonce", "0g"],
        &["--any-measurement", "--no-nonce", "--at", "yesterday"],
        &["--any-measurement", "--no-nonce", "--at", SIGNED_AT, "--document-time"],
        &["--no-nonce", "--pcr0", &zero],
        &["--no-nonce", "--pcr1", &pcr],
        &["--no-nonce", "--pcr1", &pcr, "--pcr8", &pcr],
        &["--no-nonce", "--pcr0", &pcr, "--allow-debug"],
        &["--no-nonce", "--pcr0", "1234"],
    ];
    for flags in cases {
        let output = verify(Path::new("/dev/null"), flags);
        assert_eq!(output.status.code(), Some(64), "{flags:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{flags:?}");
    }
}

#[test]
fn an_image_that_cannot_be_measured_ends_before_any_verdict() {
    let flags = |eif| ["--no-nonce", "--eif", eif];
    assert_eq!(code(Path::new("/dev/null"), &flags("/no/such/image")), 66);
    assert_eq!(code(Path::new("/dev/null"), &flags("/dev/null")), 65);
    assert_eq!(code(Path::new("/no/such/document"), &AUDIT), 66);
    assert_eq!(code(Path::new("/dev/null"), &AUDIT), 2);
}

#[test]
fn a_document_is_read_from_standard_input_as_cbor_base64_or_hex() {
    let Some(directory) = vectors() else { return };
    let raw = std::fs::read(directory.join(format!("{DOCUMENT}.cbor"))).unwrap();
    let hexadecimal = hex::encode(&raw).into_bytes();
    let lines = hexadecimal.chunks(64).flat_map(|line| [line, b"\n"].concat()).collect();
    for document in [raw, hexadecimal, lines] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_enclavectl"))
            .args(["verify", "-"])
            .args(AUDIT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("enclavectl runs");
        child.stdin.take().unwrap().write_all(&document).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("VERIFIED as of document-time"), "{text}");
        assert!(text.contains("NOT CHECKED: measurements"), "{text}");
    }
}
