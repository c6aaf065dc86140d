//! Promise: ready means the workload, by the rule of its measured settings.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;

use std::time::{Duration, Instant};

use machine::{Image, Node, Shim, client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(10);

fn image(node: &Node, lines: &str) -> Image {
    Image::from_manifest(node, &format!("name: ready\nversion: '1'\nentrypoint: [/hello]\n{lines}\n"))
}

#[test]
fn a_workload_may_say_itself_that_it_is_ready() {
    let node = Node::new();
    // Port 9999 is never listened on: only the notification counts.
    let image = image(&node, "ready: notify\ningress: [8080, 9999]");
    let mut shim = Shim::start(&node, &image);
    shim.ready();
    assert_eq!(shim.get("/").status, 200);
}

#[test]
fn without_the_notification_it_is_never_ready() {
    let node = Node::new();
    let image = image(&node, "ready: notify\ningress: [8080]\nenv: {HELLO_SILENT: '1'}");
    let mut shim = Shim::with_config(&node, &image, "memory_mib: 64\nboot: {timeout: 1s}\n");
    let http = shim.http();
    shim.until(SOON, "the workload runs, and the shim is not ready", |_| {
        client::get(http, "/readyz").is_ok_and(|answer| answer.status == 503)
    });
    assert_eq!(shim.exit_code(SOON), 75, "{}", shim.log());
}

#[test]
fn started_does_not_wait_for_a_port() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &image(&node, "ready: started\ningress: [9999]"));
    shim.ready();
}

#[test]
fn without_ingress_ports_started_is_ready() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &image(&node, "ready: listen"));
    shim.ready();
}

/// Held still from its first moment: an agent that says nothing. Not before that: an
/// engine that is held before it has become the agent never ends the launch.
fn silent(node: &Node, config: &str) -> (Shim, Pid) {
    let mut shim = Shim::with_config(node, &Image::hello(node), config);
    let mut agent = None;
    shim.until(SOON, "the enclave runs", |_| {
        agent = node.first_process().filter(|process| {
            let program = std::fs::read_link(format!("/proc/{process}/exe"));
            program.is_ok_and(|program| !program.ends_with("fakenitro"))
        });
        agent.is_some()
    });
    kill(agent.unwrap(), Signal::SIGSTOP).unwrap();
    let page = client::get(shim.http(), "/readyz").unwrap();
    assert_eq!(page.status, 503, "it was ready before it was held: {}", page.text());
    (shim, agent.unwrap())
}

#[test]
fn an_agent_that_is_slow_is_waited_for() {
    const SLOW: Duration = Duration::from_secs(2);
    let node = Node::new();
    let (mut shim, agent) = silent(&node, "memory_mib: 64\n");
    let (http, held) = (shim.http(), Instant::now());
    shim.until(SOON, "two seconds without a word pass", |_| {
        assert_eq!(client::get(http, "/readyz").unwrap().status, 503);
        held.elapsed() > SLOW
    });
    kill(agent, Signal::SIGCONT).unwrap();
    assert!(shim.ready() > SLOW);
    assert_eq!(shim.get("/").status, 200);
}

#[test]
fn an_agent_that_never_answers_is_75_and_that_is_the_cause() {
    let node = Node::new();
    let (mut shim, _) = silent(&node, "memory_mib: 64\nboot: {timeout: 2s}\n");
    assert_eq!(shim.exit_code(SOON), 75, "{}", shim.log());
    for text in ["the enclave was not ready within 2s", "the image's agent never answered"] {
        assert!(shim.log().contains(text), "no {text:?} in\n{}", shim.log());
    }
    machine::within(SOON, "no enclave is left", || node.first_process().is_none());
}
