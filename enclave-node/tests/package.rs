//! Promise: what `make node-package` makes is what nodes and registries take:
//! an archive, a Debian package, and an image whose program runs.
#![allow(clippy::unwrap_used, clippy::panic)] // a broken fixture ends the test

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_enclave-node");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// One run for all tests that do not compare runs.
fn packed_once() -> &'static BTreeMap<&'static str, PathBuf> {
    static ONCE: OnceLock<BTreeMap<&'static str, PathBuf>> = OnceLock::new();
    ONCE.get_or_init(|| {
        let into = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node-package");
        let _ = fs::remove_dir_all(&into);
        packed(&into)
    })
}

/// The files of a run, by extension.
fn packed(into: &Path) -> BTreeMap<&'static str, PathBuf> {
    let output =
        Command::new(repository().join("scripts/node-package.sh")).arg(PROGRAM).arg(into).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let named = |suffix: &'static str| {
        let mut entries = fs::read_dir(into).unwrap().map(|entry| entry.unwrap().path());
        (suffix, entries.find(|path| path.to_str().unwrap().ends_with(suffix)).unwrap())
    };
    [".tar.gz", ".deb", ".oci.tar"].map(named).into()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    output
}

/// As the rendered pool unpacks it, but not over this machine.
fn unpack(archive: &Path, root: &Path) {
    fs::create_dir_all(root).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--no-overwrite-dir", "--directory"]).arg(root);
    run(tar.arg("--file").arg(archive));
}

#[test]
fn the_archive_holds_a_program_that_the_unit_starts() {
    let work = TempDir::new().unwrap();
    let files = packed_once();
    let root = work.path().join("root");
    unpack(&files[".tar.gz"], &root);
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/enclave-allocator.service")).unwrap();
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let mut words = start.split(' ');
    let program = root.join(words.next().unwrap().trim_start_matches('/'));
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
    let help = run(Command::new(&program).args(words).arg("--help"));
    assert!(text(&help.stdout).contains("/etc/nitro_enclaves/allocator.yaml"));
    let rule = fs::read_to_string(root.join("usr/lib/udev/rules.d/99-enclave-node.rules")).unwrap();
    assert!(rule.contains(r#"KERNEL=="nitro_enclaves""#) && rule.contains(r#"GROUP="ne""#), "{rule}");
    let profile = fs::read(root.join("var/lib/kubelet/seccomp/enclave-shim.json")).unwrap();
    assert_eq!(profile, fs::read(repository().join("deploy/seccomp/enclave-shim.json")).unwrap());
    if let Ok(verified) = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--root"])
        .arg(&root)
        .arg("enclave-allocator.service")
        .output()
    {
        let said = text(&verified.stderr);
        assert!(!said.contains("enclave-allocator.service:"), "{said}");
    } else {
        eprintln!("SKIPPED in part: no systemd-analyze to read the unit");
    }
}

#[test]
fn the_same_program_gives_the_same_bytes() {
    let work = TempDir::new().unwrap();
    let two = packed(&work.path().join("two"));
    for (suffix, path) in packed_once() {
        assert!(fs::read(path).unwrap() == fs::read(&two[suffix]).unwrap(), "{suffix}");
    }
}

#[test]
fn debians_tools_take_the_package() {
    let files = packed_once();
    let listed = text(&run(Command::new("dpkg-deb").arg("--contents").arg(&files[".deb"])).stdout);
    for path in ["./usr/bin/enclave-node", "./usr/lib/systemd/system/enclave-allocator.service"] {
        let line = listed
            .lines()
            .find(|line| line.ends_with(path))
            .unwrap_or_else(|| panic!("no {path} in {listed}"));
        assert!(line.contains("root/root"), "{line}");
    }
    let name = run(Command::new("dpkg-deb").args(["--field"]).arg(&files[".deb"]).arg("Package"));
    assert_eq!(text(&name.stdout).trim(), "enclave-node");
}

#[test]
fn the_image_is_one_that_registries_take_and_its_program_runs() {
    let work = TempDir::new().unwrap();
    let files = packed_once();
    let layout = work.path().join("layout");
    // skopeo checks every digest and every media type on the way.
    let copied = Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--quiet"])
        .arg(format!("oci-archive:{}", files[".oci.tar"].display()))
        .arg(format!("oci:{}:node", layout.display()))
        .output();
    let Ok(copied) = copied else { return eprintln!("SKIPPED: there is no skopeo") };
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    let bundle = work.path().join("bundle");
    run(Command::new("umoci")
        .arg("unpack")
        .args(["--image", &format!("{}:node", layout.display())])
        .arg(&bundle));
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["process"]["args"], serde_json::json!(["/enclave-node", "device-plugin"]));
    let version = run(Command::new(bundle.join("rootfs/enclave-node")).arg("--version"));
    assert!(text(&version.stdout).starts_with("enclave-node "));
}
