//! Launches wait for each other, and answer their own enclave only.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::SOON;
use crate::image::image;
use crate::machine::shim::config_file;
use crate::machine::{self, Node, Shim, client};

pub fn start(node: &Node, eif: &Path, extra: &str) -> Shim {
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
    node.stranger_gets_nothing(9000, &[0xb7]);
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
