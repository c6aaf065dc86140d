//! Promise: an image that is not ours runs too. It reports on a port that the
//! whole node shares, so launches wait for each other and answer only their own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use eif::cpio::{Entry, Writer};
use eif::{Architecture, ImageWriter, Metadata};
use machine::shim::config_file;
use machine::{Node, Shim, client};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

const METADATA: &[u8] = br#"{"ImageName": "foreign", "ImageVersion": "1", "BuildMetadata": {"BuildTime": "", "BuildTool": "",
    "BuildToolVersion": "", "OperatingSystem": "", "KernelVersion": ""}, "DockerInfo": null, "CustomMetadata": null}"#;
const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=1 pci=off nomodules";

/// An image of examples/foreign: one ramdisk, no agent, no settings.
fn image(node: &Node, silent: bool) -> PathBuf {
    let path = node.scratch().join(format!("foreign-{silent}.eif"));
    let init = std::fs::read(machine::program_path("foreign-init")).unwrap();
    let mut ramdisk = Writer::new(Vec::new());
    let mut files: Vec<(&[u8], &[u8])> = vec![(b"init", &init)];
    if silent {
        files.push((b"silent", b"yes"));
    }
    for (inode, (name, data)) in (1..).zip(files) {
        let size = u32::try_from(data.len()).unwrap();
        let entry = Entry { name, mode: 0o100_755, uid: 0, gid: 0, inode, links: 1, device: (0, 0), size };
        ramdisk.append(&entry, &mut &*data).unwrap();
    }
    let archive = node.scratch().join("foreign.cpio");
    std::fs::write(&archive, ramdisk.finish().unwrap()).unwrap();
    let output = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let mut kernel = File::open(machine::image::kernel()).unwrap();
    let metadata = Metadata::from_json(METADATA).unwrap();
    let mut writer =
        ImageWriter::create(output, Architecture::HOST, &mut kernel, CMDLINE, &metadata).unwrap();
    writer.copy_ramdisk(&mut File::open(&archive).unwrap()).unwrap();
    writer.finish().unwrap();
    path
}

fn start(node: &Node, eif: &Path, extra: &str) -> Shim {
    Shim::spawn(node, &config_file(node, &format!("memory_mib: 64\n{extra}")), eif, &[])
}

fn echoed(shim: &mut Shim) -> Vec<u8> {
    let mut stream = client::connect(shim.ingress(8080)).unwrap();
    stream.write_all(b"anybody there?").unwrap();
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    answer.to_vec()
}

#[test]
fn four_foreign_images_launched_at_once_all_serve_twice_over_and_a_fifth_finds_no_slot() {
    // CPUs for six: that the fifth is refused is a matter of slots.
    let node = Node::with(&["--cpu-pool", "2-13"]);
    let eif = image(&node, false);
    for round in 0..2 {
        let mut shims: Vec<Shim> = (0..4).map(|_| start(&node, &eif, "")).collect();
        for shim in &mut shims {
            shim.ready();
            assert_eq!(echoed(shim), b"anybody there?", "round {round}");
        }
        assert_eq!(node.running().len(), 4);

        let mut fifth = start(&node, &eif, "");
        assert_eq!(fifth.exit_code(SOON), 71, "{}", fifth.log());
        assert!(fifth.log().contains("all enclave slots of the instance are taken"), "{}", fifth.log());

        for shim in &mut shims {
            shim.signal(Signal::SIGTERM);
        }
        for shim in &mut shims {
            assert_eq!(shim.exit_code(SOON), 143, "{}", shim.log());
        }
        machine::within(SOON, "no enclave is left", || node.running().is_empty());
    }
}

#[test]
fn a_stop_closes_the_enclave_at_once_because_nobody_in_it_could_power_it_off() {
    let node = Node::new();
    let mut shim = start(&node, &image(&node, false), "drain: {accept: 100ms}\n");
    shim.ready();
    let sent = Instant::now();
    shim.signal(Signal::SIGTERM);
    let (code, ended) = shim.ended(SOON);
    assert_eq!(code, 143, "{}", shim.log());
    let limit = machine::limit(Duration::from_millis(1500), Duration::from_secs(5));
    assert!(ended - sent < limit, "took {:?}", ended - sent);
    machine::within(SOON, "no enclave is left", || node.running().is_empty());
}

#[test]
fn a_stranger_on_the_heartbeat_port_is_not_answered_and_does_no_harm() {
    let node = Node::new();
    let mut shim = start(&node, &image(&node, true), "boot: {timeout: 10s}\n");
    shim.until(SOON, "the enclave runs", |shim| shim.log().contains("\"booting\""));
    // From the parent itself: the right byte from the wrong CID.
    let script = r#"
import socket
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.settimeout(8)
s.connect((3, 9000))
try:
    s.sendall(b"\xb7")
    answer = s.recv(1)
except (BrokenPipeError, ConnectionResetError):
    answer = b""
assert answer == b"", answer
"#;
    let output = node.command(&machine::python()).arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    shim.until(SOON, "the stranger is logged", |shim| shim.log().contains("stranger"));
    assert_eq!(shim.exit_code(SOON), 75, "a silent enclave is never ready:\n{}", shim.log());
    assert!(shim.log().contains("the image never sent its heartbeat"), "{}", shim.log());
}

#[test]
fn a_launch_waits_for_the_port_while_another_launch_holds_it() {
    let node = Node::new();
    let mut silent = start(&node, &image(&node, true), "boot: {timeout: 8s}\n");
    silent.until(SOON, "the first enclave runs", |shim| shim.log().contains("\"booting\""));
    let begun = Instant::now();
    let mut next = start(&node, &image(&node, false), "");
    next.ready();
    assert!(next.log().contains("waiting for another launch"), "{}", next.log());
    assert_eq!(silent.exit_code(SOON), 75);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn a_foreign_enclave_that_dies_is_noticed_at_once() {
    let node = Node::new();
    let mut shim = start(&node, &image(&node, true), "");
    shim.until(SOON, "the enclave runs", |shim| shim.log().contains("\"booting\""));
    let killed = Instant::now();
    node.kill_enclave(node.running()[0]);
    let (code, seen) = shim.ended(SOON);
    assert_eq!(code, 76, "{}", shim.log());
    assert!(seen - killed < Duration::from_secs(2), "noticed after {:?}", seen - killed);
}
