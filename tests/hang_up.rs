//! Promise: an enclave that ends without a word is noticed within a second in
//! whatever phase, with 76 and the phase in the report; once the workload's
//! exit status is known, that is what counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use std::time::{Duration, Instant};

use machine::{Image, Node, Shim, client, within};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const NOTICED: Duration = Duration::from_secs(1);
/// Both parts of the drain outlast the test, so that a phase lasts until it is ended.
const PATIENT: &str = "memory_mib: 64\ndrain: {accept: 60s, grace: 60s}\n";
const HASTY: &str = "memory_mib: 64\ndrain: {accept: 10ms, grace: 60s}\n";

fn phase(shim: &mut Shim, name: &str) {
    let http = shim.http();
    shim.until(SOON, name, |_| {
        client::get(http, "/readyz").is_ok_and(|page| page.text().lines().next() == Some(name))
    });
}

/// Ends the enclave and expects 76, and in the report the phase in which it was.
#[track_caller]
fn dies(node: &Node, mut shim: Shim, phase: &str) {
    let killed = Instant::now();
    node.kill_enclave(node.running()[0]);
    let (code, seen) = shim.ended(SOON);
    assert_eq!(code, 76, "{phase}:\n{}", shim.log());
    assert!(seen - killed < NOTICED, "{phase}: noticed after {:?}", seen - killed);
    let report: Value = serde_json::from_str(shim.log().lines().last().unwrap()).unwrap();
    assert_eq!((&report["kind"], &report["origin"]), (&"enclave_died".into(), &"shim".into()), "{report}");
    let steps: Vec<_> = report["timeline"].as_array().unwrap().iter().map(|step| &step["step"]).collect();
    assert!(steps.contains(&&Value::from(phase)), "{phase}: {steps:?}");
    within(SOON, "no enclave is left", || node.running().is_empty());
}

/// A request that the workload finishes before it ends.
fn hold(shim: &mut Shim) {
    let ingress = shim.ingress(8080);
    std::thread::spawn(move || client::get(ingress, "/slow/60000"));
    within(SOON, "the request is carried", || {
        shim.metric("enclave_shim_ingress_connections_open") == Some(1.0)
    });
}

#[test]
fn while_booting() {
    let node = Node::new();
    let image =
        Image::from_manifest(&node, "name: deaf\nversion: '1'\nentrypoint: [/hello]\ningress: [9999]\n");
    let mut shim = Shim::with_config(&node, &image, PATIENT);
    phase(&mut shim, "booting");
    dies(&node, shim, "booting");
}

#[test]
fn while_serving() {
    let node = Node::new();
    let mut shim = Shim::with_config(&node, &Image::hello(&node), PATIENT);
    shim.ready();
    dies(&node, shim, "serving");
}

#[test]
fn while_draining() {
    let node = Node::new();
    let mut shim = Shim::with_config(&node, &Image::hello(&node), PATIENT);
    shim.ready();
    shim.signal(Signal::SIGTERM);
    phase(&mut shim, "draining");
    dies(&node, shim, "draining");
}

#[test]
fn while_the_workload_is_stopping() {
    let node = Node::new();
    let mut shim = Shim::with_config(&node, &Image::hello(&node), HASTY);
    shim.ready();
    hold(&mut shim);
    shim.signal(Signal::SIGTERM);
    phase(&mut shim, "stopping");
    dies(&node, shim, "stopping");
}

/// The agent is held still, so that it cannot answer the order to hurry.
#[test]
fn while_it_is_in_a_hurry() {
    let node = Node::new();
    let mut shim = Shim::with_config(&node, &Image::hello(&node), HASTY);
    shim.ready();
    hold(&mut shim);
    shim.signal(Signal::SIGTERM);
    phase(&mut shim, "stopping");
    kill(node.first_process().unwrap(), Signal::SIGSTOP).unwrap();
    shim.signal(Signal::SIGTERM);
    phase(&mut shim, "hurrying");
    dies(&node, shim, "hurrying");
}

/// To the driver it lives: only its silence tells.
#[test]
fn an_enclave_that_hangs_is_not_ready_until_it_answers_again() {
    let node = Node::new();
    let mut shim = Shim::with_config(&node, &Image::hello(&node), PATIENT);
    shim.ready();
    assert_eq!(shim.metric("enclave_shim_agent_answers"), Some(1.0));
    let (agent, http) = (node.first_process().unwrap(), shim.http());
    let status = |path: &str| client::get(http, path).unwrap().status;
    kill(agent, Signal::SIGSTOP).unwrap();
    let silent = within(Duration::from_secs(40), "it is not ready", || status("/readyz") == 503);
    // Two pings may be late.
    assert!(silent > Duration::from_secs(5), "{silent:?}");
    assert_eq!(shim.metric("enclave_shim_agent_answers"), Some(0.0));
    assert_eq!(status("/healthz"), 200);
    kill(agent, Signal::SIGCONT).unwrap();
    within(SOON, "it is ready again", || status("/readyz") == 200);
    assert!(shim.log().contains("the agent answers again"), "{}", shim.log());
}

#[test]
fn once_the_exit_status_is_known_it_stays_the_answer() {
    let node = Node::new();
    let mut shim = Shim::with_config(&node, &Image::hello(&node), PATIENT);
    shim.ready();
    // A client that stays keeps the shim from parting.
    let _client = client::connect(shim.ingress(8081)).unwrap();
    within(SOON, "the client is carried", || {
        shim.metric("enclave_shim_ingress_connections_open") == Some(1.0)
    });
    let cid = node.running()[0];
    let _ = client::post(shim.ingress(8080), "/exit/7", b"");
    shim.until(SOON, "the status is known", |shim| shim.log().contains("the workload has ended"));
    // It may have powered off by itself meanwhile.
    node.try_kill_enclave(cid);
    assert_eq!(shim.exit_code(SOON), 7, "{}", shim.log());
}
