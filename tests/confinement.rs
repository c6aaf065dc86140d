//! Promise: the workload cannot reach AF_VSOCK, the NSM or PID 1's descriptors
//! unless its measured settings say so, also as uid 0.
#![allow(clippy::unwrap_used, clippy::panic)] // a broken fixture ends the test

mod machine;

use machine::{Image, Node, Shim};
use serde_json::Value;

/// What examples/hello tries at `/probe`.
const FORBIDDEN: [&str; 12] = [
    "vsock",
    "vsock_device",
    "nsm",
    "pid1_fd",
    "pid1_root",
    "pid1_memory",
    "pid1_pidfd_getfd",
    "mknod",
    "mount",
    "io_uring",
    "core_pattern",
    "sysfs",
];

/// The workload's uid, and what `/probe` found.
fn probe(manifest_lines: &str) -> (Value, Value) {
    let node = Node::new();
    let manifest =
        format!("name: probe\nversion: '1'\nentrypoint: [/hello]\ningress: [8080, 8081]\n{manifest_lines}\n");
    let image = Image::from_manifest(&node, &manifest);
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    let found = shim.get("/probe").json();
    println!("{manifest_lines:?}: {found}");
    (found["uid"].clone(), found)
}

/// What `/probe` says of one act: "ok", or the errno's name.
fn said<'a>(found: &'a Value, act: &str) -> &'a str {
    found[act].as_str().unwrap_or_else(|| panic!("no {act} in {found}"))
}

#[test]
fn the_superuser_of_the_workload_is_confined() {
    let (user, found) = probe("user: '0:0'");
    assert_eq!(user, 0);
    for act in FORBIDDEN {
        assert_ne!(said(&found, act), "ok", "{act}: {found}");
    }
}

#[test]
fn an_ordinary_user_is_confined() {
    let (user, found) = probe("user: app");
    assert_eq!(user, 1000);
    for act in FORBIDDEN {
        assert_ne!(said(&found, act), "ok", "{act}: {found}");
    }
}

#[test]
fn measured_settings_may_allow_vsock() {
    let (_, found) = probe("user: '0:0'\nvsock: allow");
    assert_eq!(said(&found, "vsock"), "ok", "{found}");
    assert_ne!(said(&found, "nsm"), "ok", "{found}");
    assert_ne!(said(&found, "pid1_fd"), "ok", "{found}");
}

#[test]
fn measured_settings_may_allow_the_nsm() {
    let (_, found) = probe("user: '0:0'\nnsm: direct");
    assert_eq!(said(&found, "nsm"), "ok", "{found}");
    assert_ne!(said(&found, "vsock"), "ok", "{found}");
}

#[test]
fn user_workdir_and_environment_are_the_images() {
    let node = Node::new();
    let manifest = "name: who\nversion: '1'\nentrypoint: [/hello]\ningress: [8080, 8081]\nuser: app\nworkdir: /tmp\nenv: {COLOUR: dark green}\n";
    let image = Image::from_manifest(&node, manifest);
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    let who = shim.get("/whoami").json();
    assert_eq!((who["uid"].as_u64(), who["gid"].as_u64()), (Some(1000), Some(1000)), "{who}");
    assert_eq!(who["cwd"], "/tmp");
    assert!(shim.get("/env").text().lines().any(|line| line == "COLOUR=dark green"));
}
