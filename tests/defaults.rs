//! Promise: in a pod image nothing has to be said: without flags the shim reads
//! /enclave/image.eif and /enclave/shim.yaml.
#![allow(clippy::unwrap_used, clippy::panic)] // a broken fixture ends the test

mod machine;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use machine::shim::with_room;
use machine::{Image, Node, Shim};
use nix::sys::signal::Signal;

/// A root filesystem as a pod image has it: the static shim, /enclave, and the
/// device and sysfs that the runtime mounts.
fn pod(node: &Node, image: &Image, config: &str) -> Command {
    let root = node.scratch().join("pod");
    for directory in ["enclave", "dev", "sys", "proc", "etc"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy(env!("CARGO_BIN_EXE_enclave-shim"), root.join("enclave-shim")).unwrap();
    std::fs::copy(&image.path, root.join("enclave/image.eif")).unwrap();
    std::fs::write(root.join("enclave/shim.yaml"), config).unwrap();
    let mut command = node.command(Path::new("/usr/bin/unshare"));
    command.args(["--mount", "sh", "-c"]).arg(
        "cd $0 && mount --rbind /dev dev && mount --rbind /sys sys && mount --rbind /proc proc && exec chroot . /enclave-shim run",
    );
    command.arg(&root);
    command
}

#[test]
fn without_flags_the_pod_images_own_files_are_read() {
    let node = Node::new();
    let image = Image::hello(&node);
    let config = "memory_mib: 64\ningress: [{listen: 127.0.0.1:0, port: 8080}]\n\
                  http: {listen: 127.0.0.1:0}\nlog: {format: json}\ndrain: {accept: 0s}\n";
    let mut shim = Shim::run(pod(&node, &image, &with_room(config)));
    shim.ready();
    assert_eq!(shim.get("/").status, 200);
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.exit_code(Duration::from_secs(10)), 0, "{}", shim.log());
}

#[test]
fn an_unknown_key_in_the_pod_images_file_is_refused_too() {
    let node = Node::new();
    let image = Image::hello(&node);
    let mut shim = Shim::run(pod(&node, &image, "memory: 64\n"));
    assert_eq!(shim.exit_code(Duration::from_secs(10)), 64, "{}", shim.log());
    assert!(shim.log().contains("/enclave/shim.yaml") && shim.log().contains("memory"), "{}", shim.log());
}

#[test]
fn flags_beat_the_environment_and_the_environment_beats_the_file() {
    let node = Node::new();
    let image = Image::hello(&node);
    let effective = |shim: &mut Shim| -> serde_json::Value {
        shim.http();
        let log = shim.log();
        let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        serde_json::from_str(first["fields"]["config"].as_str().unwrap()).unwrap()
    };
    let config = machine::shim::config_file(&node, "memory_mib: 64\ndrain: {grace: 11s}\n");
    let run = |flags: &[&str], variable: Option<&str>| {
        let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_enclave-shim")));
        command.args(["run", "--eif"]).arg(&image.path).arg("--config").arg(&config).args(flags);
        if let Some(value) = variable {
            command.env("ENCLAVE_SHIM_DRAIN_GRACE", value);
        }
        let mut shim = Shim::run(command);
        effective(&mut shim)["drain"]["grace"].clone()
    };
    assert_eq!(run(&[], None), "11s");
    assert_eq!(run(&[], Some("12s")), "12s");
    assert_eq!(run(&["--drain-grace", "13s"], Some("12s")), "13s");
}
