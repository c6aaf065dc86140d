//! Promise: whatever the driver answers to whatever call, the launch ends with
//! a documented code, a cause that names the answer and a fix, and leaves
//! nothing behind. What a moment can mend, mends itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::path::Path;
use std::time::{Duration, Instant};

use machine::shim::{MEMORY_64, config_file};
use machine::{Image, Node, Shim};
use nitro_device::DriverCode;

const SOON: Duration = Duration::from_secs(20);
const CALLS: [&str; 5] = [
    "NE_CREATE_VM",
    "NE_GET_IMAGE_LOAD_INFO",
    "NE_SET_USER_MEMORY_REGION",
    "NE_ADD_VCPU",
    "NE_START_ENCLAVE",
];

fn inject(node: &Node, faults: &str) {
    std::fs::create_dir_all(node.path()).unwrap();
    // Another file each time: the node sees it by its inode.
    let (fresh, path) = (node.scratch().join("faults"), node.path().join("faults.json"));
    std::fs::write(&fresh, faults).unwrap();
    std::fs::rename(&fresh, &path).unwrap();
}

#[track_caller]
fn ends_with(node: &Node, image: &Image, what: &str, words: &[&str]) {
    let mut shim = Shim::start(node, image);
    assert_eq!(shim.exit_code(SOON), 71, "{what}:\n{}", shim.log());
    let log = shim.log();
    let report: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let said = format!("{} | {}", report["cause"], report["fix"]);
    for word in words {
        assert!(said.contains(word), "{what}: no {word:?} in {said}");
    }
    assert!(report["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{what}: {report}");
    assert!(node.running().is_empty(), "{what}: an enclave was left");
}

#[test]
fn every_driver_code_at_every_call_is_71_with_its_name_and_its_fix() {
    let node = Node::new();
    let image = Image::hello(&node);
    for call in CALLS {
        for code in DriverCode::ALL {
            inject(&node, &format!(r#"[{{"ioctl": "{call}", "errno": {}}}]"#, code.errno()));
            ends_with(&node, &image, &format!("{code:?} at {call}"), &[code.name(), code.fix()]);
        }
    }
    inject(&node, "[]");
    Shim::start(&node, &image).ready();
}

#[test]
fn plain_errnos_are_explained_too() {
    let node = Node::new();
    let image = Image::hello(&node);
    for (call, errno, word) in [
        ("NE_CREATE_VM", 28, "all enclave slots"),
        ("NE_CREATE_VM", 12, "memory"),
        ("NE_SET_USER_MEMORY_REGION", 12, "memory"),
        ("NE_SET_USER_MEMORY_REGION", 5, "process that created"),
        ("NE_START_ENCLAVE", 110, "hypervisor"),
    ] {
        inject(&node, &format!(r#"[{{"ioctl": "{call}", "errno": {errno}}}]"#));
        ends_with(&node, &image, &format!("errno {errno} at {call}"), &[word]);
    }
}

#[test]
fn a_slot_and_cpus_that_are_busy_at_first_are_tried_again() {
    let node = Node::new();
    let image = Image::hello(&node);
    inject(
        &node,
        r#"[{"ioctl": "NE_CREATE_VM", "errno": 16, "times": 2},
            {"ioctl": "NE_ADD_VCPU", "errno": 272, "times": 2, "skip": 1},
            {"ioctl": "NE_GET_IMAGE_LOAD_INFO", "errno": 4, "times": 1},
            {"ioctl": "NE_SET_USER_MEMORY_REGION", "errno": 11, "times": 2},
            {"ioctl": "NE_START_ENCLAVE", "errno": 16, "times": 2}]"#,
    );
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    assert_eq!(shim.get("/").status, 200);
    let again = shim.log().matches("trying again").count();
    assert_eq!(again, 9, "each is tried as often as it fails:\n{}", shim.log());
}

#[test]
fn a_region_that_is_used_after_a_failed_donation_is_told_as_the_failure() {
    let node = Node::new();
    let image = Image::hello(&node);
    inject(
        &node,
        r#"[{"ioctl": "NE_SET_USER_MEMORY_REGION", "errno": 16, "times": 1},
            {"ioctl": "NE_SET_USER_MEMORY_REGION", "errno": 262}]"#,
    );
    ends_with(&node, &image, "busy, then used", &["cannot donate 64 MiB", "still busy"]);
}

#[test]
fn memory_that_cannot_be_mapped_is_71_with_the_resource_line() {
    let node = Node::new();
    let image = Image::hello(&node);
    // The plan holds, and mmap answers ENOMEM: here by a limit on addresses.
    let mut command = node.command(Path::new("/usr/bin/prlimit"));
    command.args(["--as=200000000", env!("CARGO_BIN_EXE_enclave-shim"), "run", "--eif"]).arg(&image.path);
    command.env("MALLOC_ARENA_MAX", "1").env("TOKIO_WORKER_THREADS", "1");
    command.arg("--config").arg(config_file(&node, "memory_mib: 256\n"));
    let mut shim = Shim::run(command);
    assert_eq!(shim.exit_code(SOON), 71, "{}", shim.log());
    for text in ["cannot map 256 MiB of 2 MiB pages", "os error 12", "`hugepages-2Mi: 256Mi`"] {
        assert!(shim.log().contains(text), "no {text:?} in\n{}", shim.log());
    }
    assert!(node.running().is_empty(), "an enclave was left");
}

#[test]
fn patience_with_a_busy_slot_is_bounded() {
    let node = Node::new();
    let image = Image::hello(&node);
    inject(&node, r#"[{"ioctl": "NE_CREATE_VM", "errno": 16}]"#);
    let begun = Instant::now();
    ends_with(&node, &image, "busy for ever", &["all enclave slots"]);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn a_device_of_a_group_that_the_process_lacks_is_69() {
    let node = Node::new();
    let image = Image::hello(&node);
    let config = config_file(&node, MEMORY_64);
    // The test's directory is root's own.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(node.scratch(), open).unwrap();
    let mut command = node.command(Path::new("/usr/bin/setpriv"));
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.arg(env!("CARGO_BIN_EXE_enclave-shim")).arg("run").arg("--eif").arg(&image.path);
    command.arg("--config").arg(&config).args(["--termination-log", "/dev/null"]);
    command.args(["--admin-socket", "/tmp/enclave-shim-denied.sock"]);
    let mut shim = Shim::run(command);
    assert_eq!(shim.exit_code(SOON), 69, "{}", shim.log());
    assert!(shim.log().contains("supplementalGroups"), "{}", shim.log());
}
