//! What `enclavectl build` is given in tests: a container image as a layout,
//! kernel and manifest, in one directory.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output},
};

use eif::{Image, rootfs::Digest};
use serde_json::{Value, json};
use tempfile::TempDir;
use wire::settings::Settings;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_enclavectl");
pub const MANIFEST: &str = "name: hello\nversion: '1.2'\ningress: [8080]\n";

/// A container image as a layout, kernel and manifest, in one directory.
pub struct Inputs(pub TempDir);

impl Inputs {
    pub fn new(run: &Value) -> Inputs {
        let inputs = Inputs(tempfile::tempdir().unwrap());
        fs::create_dir_all(inputs.path("rootfs/etc")).unwrap();
        fs::write(inputs.path("rootfs/hello"), "program").unwrap();
        fs::write(inputs.path("rootfs/etc/motd"), "hello\n").unwrap();
        for (name, mode) in [("rootfs/hello", 0o755), ("rootfs/etc/motd", 0o644), ("rootfs/etc", 0o755)] {
            fs::set_permissions(inputs.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(inputs.path("enclave.yaml"), MANIFEST).unwrap();
        fs::write(inputs.path("kernel"), bzimage()).unwrap();
        let root = "--owner=0 --group=0 --mtime=@0 --sort=name";
        inputs.shell(&format!("tar {root} -cf layer.tar -C rootfs etc hello"));
        inputs.layout(run);
        inputs
    }

    /// The layout `oci`, of layer.tar.
    pub fn layout(&self, run: &Value) {
        fs::create_dir_all(self.path("oci/blobs/sha256")).unwrap();
        fs::write(self.path("oci/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layer =
            self.blob("application/vnd.oci.image.layer.v1.tar", &fs::read(self.path("layer.tar")).unwrap());
        let rootfs = json!({"type": "layers", "diff_ids": [layer["digest"]]});
        let config = json!({"architecture": "amd64", "os": "linux", "config": run, "rootfs": rootfs});
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let mut manifest =
            self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(self.path("oci/index.json"), index.to_string()).unwrap();
    }

    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::sha256(bytes);
        fs::write(self.path("oci/blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn shell(&self, command: &str) -> Output {
        let output = Command::new("sh").args(["-c", command]).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        output
    }

    /// This program itself serves as agent and shim, being a static program.
    pub fn build(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Docker's configuration is the directory `docker`, if the test makes one.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .current_dir(self.0.path())
            .env_remove("SOURCE_DATE_EPOCH")
            .env("DOCKER_CONFIG", self.path("docker"))
            .args([
                "build",
                "--kernel",
                "kernel",
                "--app",
                "enclave.yaml",
                "-o",
                "out.eif",
                "--agent",
                PROGRAM,
            ])
            .args(arguments);
        command
    }

    #[track_caller]
    pub fn image(&self, arguments: &[&str]) -> Vec<u8> {
        succeeded(&self.build(arguments));
        fs::read(self.path("out.eif")).unwrap()
    }

    /// The agent's settings in the image that was built last.
    pub fn settings(&self) -> Settings {
        let bytes = fs::read(self.path("out.eif")).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let section = image.layout().ramdisks().nth(1).unwrap();
        let input = std::io::BufReader::new(image.reader(section));
        let mut reader = eif::cpio::Reader::new(input).unwrap();
        let found = std::iter::from_fn(|| reader.next_entry().unwrap())
            .find(|entry| entry.name == wire::settings::SETTINGS_PATH.as_bytes()[1..])
            .unwrap();
        let start = (section.payload.start + found.data_offset) as usize;
        Settings::from_json(&bytes[start..start + found.size as usize]).unwrap()
    }
}

/// As much of a bzImage as identifies one (Documentation/arch/x86/boot.rst).
pub fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0x90; 0x8000];
    bytes[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20E..0x210].copy_from_slice(&[0, 0]);
    bytes
}

#[track_caller]
pub fn succeeded(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
pub fn failed(output: &Output, code: i32, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
}

pub fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: the program {program} is not installed");
    }
    found
}
