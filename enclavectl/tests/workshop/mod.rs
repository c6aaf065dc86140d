//! Inputs of a build in one directory, and signers made by OpenSSL.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_enclavectl");
/// Curve as OpenSSL names it, and as this project does.
pub const CURVES: [(&str, &str); 3] =
    [("prime256v1", "P-256"), ("secp384r1", "P-384"), ("secp521r1", "P-521")];
const MANIFEST: &str = "name: hello\nversion: '1.2'\nentrypoint: [/hello]\n";

pub struct Workshop(pub TempDir);

impl Workshop {
    pub fn new() -> Workshop {
        let workshop = Workshop(tempfile::tempdir().unwrap());
        fs::create_dir_all(workshop.path("rootfs/etc")).unwrap();
        fs::write(workshop.path("rootfs/hello"), "program").unwrap();
        fs::write(workshop.path("rootfs/etc/motd"), "hello\n").unwrap();
        fs::write(workshop.path("enclave.yaml"), MANIFEST).unwrap();
        fs::write(workshop.path("kernel"), bzimage()).unwrap();
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `enclavectl` here, without anything of AWS in its environment.
    pub fn enclavectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.current_dir(self.0.path()).env_remove("SOURCE_DATE_EPOCH").args(arguments);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env("HOME", self.0.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        command
    }

    /// Builds `output`; this program itself serves as the agent, being a
    /// static program.
    pub fn build(&self, output: &str, more: &[&str]) -> Command {
        let build = ["build", "--rootfs", "rootfs", "--kernel", "kernel", "--app", "enclave.yaml"];
        let mut command = self.enclavectl(&build);
        command.args(["--agent", PROGRAM, "-o", output]).args(more);
        command
    }

    /// NAME.key and NAME.pem: a key and its certificate of 30 days. False, and
    /// said, where there is no OpenSSL.
    pub fn signer(&self, name: &str, curve: &str) -> bool {
        let subject = format!("/C=DE/O=workshop/CN={name}");
        let (key, certificate) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.pem")));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "30", "-subj", &subject])
            .args(["-newkey", "ec", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")])
            .arg("-keyout")
            .arg(key)
            .arg("-out")
            .arg(certificate)
            .stderr(Stdio::null())
            .status();
        let made = made.is_ok_and(|status| status.success());
        if !made {
            eprintln!("SKIPPED: openssl makes no certificate on {curve} here");
        }
        made
    }

    pub fn openssl(&self, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new("openssl").current_dir(self.0.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// What `inspect` tells of an image.
    pub fn inspect(&self, image: &str) -> Value {
        json(&self.enclavectl(&["inspect", "--json", image]).output().unwrap())
    }

    /// Names of the files here.
    pub fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// As much of a bzImage as identifies one (Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0x90; 0x8000];
    bytes[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20E..0x210].copy_from_slice(&0x600_u16.to_le_bytes());
    bytes[0x800..0x810].copy_from_slice(b"6.1.0-9 (build) ");
    bytes
}

#[track_caller]
pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
pub fn json(output: &Output) -> Value {
    serde_json::from_str(&succeeded(output)).unwrap()
}

/// The exit code, and the one line on stderr that must hold `expected`.
#[track_caller]
pub fn failed(output: &Output, code: i32, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
    assert!(output.stdout.is_empty(), "{output:?}");
}
