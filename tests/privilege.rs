//! Promise: the shim needs no root, no capability and no writable root
//! filesystem, and gives up what it has once the enclave runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use machine::shim::{MEMORY_64, config_file};
use machine::{Image, Node, Shim, client};
use serde_json::Value;

/// DAC_OVERRIDE, NET_BIND_SERVICE, SYS_RESOURCE. Source: Linux `include/uapi/linux/capability.h`.
const KEPT: u64 = 1 << 1 | 1 << 10 | 1 << 24;
const USER: u32 = 10_101;
const DEVICE_GROUP: u32 = 10_202;

/// A field of every thread's status.
fn of_every_thread(pid: u64, field: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let values: Vec<_> = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
        .map(|status| {
            let prefix = format!("{field}:");
            let line = status.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
            line.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
        })
        .collect();
    assert!(!values.is_empty());
    values
}

fn filters(pid: u64) -> u64 {
    let counts = of_every_thread(pid, "Seccomp_filters");
    assert!(counts.iter().all(|count| *count == counts[0]), "a thread was left out: {counts:?}");
    counts[0].parse().unwrap()
}

fn outcomes(enclave: &Value) -> Vec<&str> {
    enclave["Forbidden"].as_array().unwrap().iter().map(|act| act["outcome"].as_str().unwrap()).collect()
}

#[test]
fn once_the_enclave_runs_the_shim_can_open_no_file_and_run_no_program() {
    let node = Node::new();
    let image = Image::hello(&node);
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    let enclave = shim.describe()[0].clone();
    // Tried by the running shim itself, just now.
    let outcomes = outcomes(&enclave);
    assert_eq!(outcomes.len(), 4);
    assert!(outcomes.iter().all(|outcome| outcome.contains("EPERM")), "{enclave}");
    let pid = enclave["ProcessID"].as_u64().unwrap();
    assert!(of_every_thread(pid, "NoNewPrivs").iter().all(|value| value == "1"));
    for effective in of_every_thread(pid, "CapEff") {
        assert_eq!(u64::from_str_radix(&effective, 16).unwrap() & !KEPT, 0, "{effective}");
    }
    let sealed = filters(pid);
    drop(shim);

    let mut open = Shim::with_config(&node, &image, "memory_mib: 64\nsandbox: false\n");
    open.ready();
    let enclave = open.describe()[0].clone();
    assert!(enclave["Forbidden"].as_array().unwrap().iter().any(|act| act["outcome"] == "done"), "{enclave}");
    assert_eq!(filters(enclave["ProcessID"].as_u64().unwrap()) + 2, sealed, "two filters, on every thread");
    assert!(open.log().contains("sandbox is off"));
}

#[test]
fn files_are_limited_before_the_launch_where_the_kernel_can() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let files = shim.describe()[0]["Confinement"]["files"].as_str().unwrap().to_owned();
    if files == "missing" {
        assert!(shim.log().contains("landlock"), "a missing layer must be said");
        return println!("SKIPPED: this kernel has no landlock");
    }
    assert!(["enforced", "partly"].contains(&files.as_str()), "{files}");
}

#[test]
fn a_user_with_the_devices_group_no_capability_and_a_read_only_root_is_enough() {
    let node = Node::new();
    let (image, config) = (Image::hello(&node), config_file(&node, MEMORY_64));
    // What a pod gives its user: a directory of its own; the rest is read-only.
    let scratch = node.scratch();
    std::fs::set_permissions(scratch, PermissionsExt::from_mode(0o777)).unwrap();
    let script = format!(
        "set -e
        chgrp {DEVICE_GROUP} /dev/nitro_enclaves; chmod 0660 /dev/nitro_enclaves
        mount --make-rprivate /
        mount --bind {0} {0}; mount -o remount,bind,ro /
        exec setpriv --reuid {USER} --regid {USER} --groups {DEVICE_GROUP} --bounding-set=-all \\
            --inh-caps=-all --ambient-caps=-all --no-new-privs \"$@\"",
        scratch.display()
    );
    let mut command = node.command(Path::new("/usr/bin/unshare"));
    command.args(["--mount", "/bin/sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_enclave-shim")]);
    command.arg("run").arg("--eif").arg(&image.path).arg("--config").arg(&config);
    let mut shim = Shim::run(command);
    shim.ready();
    assert_eq!(shim.get("/").status, 200);
    let enclave = shim.describe()[0].clone();
    let pid = enclave["ProcessID"].as_u64().unwrap();
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), USER);
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        assert!(of_every_thread(pid, set).iter().all(|value| value == "0000000000000000"), "{set}");
    }
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.split(' ').nth(3).unwrap().split(',').any(|option| option == "ro"), "{root}");
    assert!(outcomes(&enclave).iter().all(|outcome| outcome.contains("EPERM")), "{enclave}");
    assert_eq!(client::get(shim.http(), "/v1/attestation?nonce=0011").unwrap().status, 200);
}
