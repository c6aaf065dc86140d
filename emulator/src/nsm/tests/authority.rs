//! The authority's directory, and its chain in the eyes of OpenSSL.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::MODULE;
use crate::nsm::{Authority, DEFAULT_REGION, KEY_FILE, ROOT_FILE, StoreError};

/// Names the directory that [`open_one_directory_in_another_process`] shall open.
const DIRECTORY_VARIABLE: &str = "ENCLAVE_SHIM_TEST_AUTHORITY";

fn open(directory: &Path) -> Result<Authority, StoreError> {
    Authority::open(directory, DEFAULT_REGION, SystemTime::now())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_key_is_private_and_the_root_is_kept() {
    let directory = TempDir::new().unwrap();
    let node = directory.path().join("a/b");
    let first = open(&node).unwrap();
    assert_eq!(mode(&node.join(KEY_FILE)), 0o600);
    assert_eq!(first.root_path(), node.join(ROOT_FILE));
    let second = open(&node).unwrap();
    assert_eq!(first.root_certificate(), second.root_certificate());
    assert_eq!(first.root_fingerprint(), second.root_fingerprint());
    let mut names: Vec<_> =
        fs::read_dir(&node).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [KEY_FILE, ROOT_FILE], "no temporary file is left");

    let elsewhere = TempDir::new().unwrap();
    assert_ne!(open(elsewhere.path()).unwrap().root_fingerprint(), first.root_fingerprint());
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).unwrap();
    for exposed in [0o640, 0o604, 0o644, 0o660] {
        let key = directory.path().join(KEY_FILE);
        fs::set_permissions(&key, fs::Permissions::from_mode(exposed)).unwrap();
        match open(directory.path()) {
            Err(StoreError::Exposed { mode, .. }) => assert_eq!(mode, exposed),
            other => panic!("{exposed:o}: {:?}", other.err()),
        }
    }
}

#[test]
fn a_root_without_its_key_is_refused_and_nothing_is_written() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).unwrap();
    let key = directory.path().join(KEY_FILE);
    fs::remove_file(&key).unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Mismatch { .. })));
    assert!(!key.exists());
}

#[test]
fn a_start_that_died_between_the_two_files_is_completed() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).unwrap();
    fs::remove_file(directory.path().join(ROOT_FILE)).unwrap();
    let authority = open(directory.path()).unwrap();
    assert_eq!(authority.root_certificate(), open(directory.path()).unwrap().root_certificate());
}

#[test]
fn a_root_is_used_within_its_validity_only() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).unwrap();
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    for (when, valid) in [
        (SystemTime::now() - YEAR, false),
        (SystemTime::now() + 29 * YEAR, true),
        (SystemTime::now() + 31 * YEAR, false),
    ] {
        match Authority::open(directory.path(), DEFAULT_REGION, when) {
            Ok(_) => assert!(valid, "{when:?}"),
            Err(error) => assert!(!valid && matches!(error, StoreError::NotNow { .. }), "{error}"),
        }
    }
}

#[test]
fn files_of_another_root_and_damaged_files_are_refused() {
    let (directory, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    open(directory.path()).unwrap();
    open(other.path()).unwrap();
    let (key, root) = (directory.path().join(KEY_FILE), directory.path().join(ROOT_FILE));
    let text = fs::read_to_string(&root).unwrap();
    fs::copy(other.path().join(ROOT_FILE), &root).unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Mismatch { .. })));

    fs::write(&root, text.replace("CERTIFICATE", "NONSENSE")).unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Malformed { .. })));
    fs::write(&key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Malformed { .. })));
}

#[test]
fn processes_that_start_at_once_agree_on_one_root() {
    for _ in 0..5 {
        let directory = TempDir::new().unwrap();
        let node = directory.path().join("node");
        let children: Vec<_> = (0..8)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--ignored", "--exact", "--nocapture"])
                    .arg("nsm::tests::authority::open_one_directory_in_another_process")
                    .env(DIRECTORY_VARIABLE, &node)
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let kept = hex::encode(open(&node).unwrap().root_fingerprint());
        for output in &outputs {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains(&format!("fingerprint {kept}")), "{text}");
        }
        assert_eq!(mode(&node.join(KEY_FILE)), 0o600);
        assert_eq!(fs::read_dir(&node).unwrap().count(), 2);
    }
}

#[test]
#[ignore = "the other half of processes_that_start_at_once_agree_on_one_root"]
fn open_one_directory_in_another_process() {
    let directory = std::env::var_os(DIRECTORY_VARIABLE).expect("run by the other half only");
    let authority = open(Path::new(&directory)).unwrap();
    println!("fingerprint {}", hex::encode(authority.root_fingerprint()));
}

#[test]
fn openssl_accepts_the_chain_under_this_root_only() {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: openssl is not installed, so nobody else has judged the chain");
        return;
    }
    let (directory, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let authority = open(directory.path()).unwrap();
    open(other.path()).unwrap();
    let leaf = authority.issue(&MODULE.parse().unwrap(), SystemTime::now()).unwrap();

    let issuers = directory.path().join("issuers.pem");
    let bundle: String = leaf.cabundle[1..].iter().map(|certificate| pem(certificate)).collect();
    fs::write(&issuers, bundle).unwrap();
    let end = directory.path().join("leaf.pem");
    fs::write(&end, pem(&leaf.certificate)).unwrap();
    let verify = |root: &Path, extra: &[&str]| {
        let output = Command::new("openssl")
            .args(["verify", "-no-CApath", "-check_ss_sig", "-policy_check"])
            .args(extra)
            .arg("-CAfile")
            .arg(root.join(ROOT_FILE))
            .arg("-untrusted")
            .arg(&issuers)
            .arg(&end)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (accepted, why) = verify(directory.path(), &[]);
    assert!(accepted, "{why}");
    let (accepted, why) = verify(other.path(), &[]);
    assert!(!accepted && why.contains("unable to get"), "{why}");
    let four_hours_on = jiff::Timestamp::now().as_second() + 4 * 3600;
    let (accepted, why) = verify(directory.path(), &["-attime", &four_hours_on.to_string()]);
    assert!(!accepted && why.contains("expired"), "{why}");
}

/// Written by hand, so that it is not the code under test that is tested against.
fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
