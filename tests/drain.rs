//! Promise: SIGTERM ends the service without cutting what is under way.

mod machine;

use std::time::{Duration, Instant};

use machine::{Image, Node, Shim, client, within};
use nix::sys::signal::Signal;

const CONFIG: &str = "memory_mib: 64\ndrain: {accept: 500ms, grace: 10s}\n";

/// The slow request is relayed, and a later one was answered, so that the workload has it too.
fn until_the_workload_has_it(shim: &mut Shim) {
    let open = |shim: &mut Shim| shim.metric("enclave_shim_ingress_connections_open");
    within(Duration::from_secs(5), "the slow request is relayed", || open(shim) == Some(1.0));
    assert_eq!(shim.get("/").status, 200);
    within(Duration::from_secs(5), "only the slow request is open", || open(shim) == Some(1.0));
}

#[test]
fn sigterm_is_unready_at_once_and_the_request_in_flight_finishes() {
    let node = Node::new();
    let mut shim = Shim::with_config(&node, &Image::hello(&node), CONFIG);
    shim.ready();
    let (http, ingress) = (shim.http(), shim.ingress(8080));
    let request = std::thread::spawn(move || client::get(ingress, "/slow/1500"));
    until_the_workload_has_it(&mut shim);

    let sent = Instant::now();
    shim.signal(Signal::SIGTERM);
    shim.until(Duration::from_secs(2), "unready", |_| {
        client::get(http, "/readyz").is_ok_and(|answer| answer.status == 503)
    });
    let unready = sent.elapsed();
    assert!(unready < Duration::from_millis(300), "unready after {unready:?}");
    let late = client::get(ingress, "/").unwrap();
    assert_eq!(late.status, 200, "a connection during the accept window is still served");

    let answer = request.join().unwrap().unwrap();
    assert_eq!(answer.status, 200, "the request in flight");
    assert_eq!(shim.exit_code(Duration::from_secs(10)), 0, "the workload's own code\n{}", shim.log());
}

#[test]
fn after_the_accept_window_new_connections_are_refused() {
    let node = Node::new();
    let mut shim = Shim::with_config(&node, &Image::hello(&node), CONFIG);
    shim.ready();
    let ingress = shim.ingress(8080);
    let request = std::thread::spawn(move || client::get(ingress, "/slow/2500"));
    until_the_workload_has_it(&mut shim);
    shim.signal(Signal::SIGTERM);
    shim.until(Duration::from_secs(2), "connections are refused", |_| client::connect(ingress).is_err());
    assert_eq!(request.join().unwrap().unwrap().status, 200);
    assert_eq!(shim.exit_code(Duration::from_secs(10)), 0, "{}", shim.log());
}

#[test]
fn a_workload_that_outlives_its_grace_is_killed_and_that_is_137() {
    let node = Node::new();
    let mut shim =
        Shim::with_config(&node, &Image::hello(&node), "memory_mib: 64\ndrain: {accept: 0s, grace: 300ms}\n");
    shim.ready();
    let ingress = shim.ingress(8080);
    let request = std::thread::spawn(move || client::get(ingress, "/slow/20000"));
    until_the_workload_has_it(&mut shim);
    let sent = Instant::now();
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.exit_code(Duration::from_secs(10)), 137, "{}", shim.log());
    assert!(sent.elapsed() < Duration::from_secs(5), "took {:?}", sent.elapsed());
    assert!(request.join().unwrap().is_err(), "a cut answer must not look whole");
}

#[test]
fn a_second_sigterm_hurries() {
    let node = Node::new();
    let mut shim =
        Shim::with_config(&node, &Image::hello(&node), "memory_mib: 64\ndrain: {accept: 0s, grace: 60s}\n");
    shim.ready();
    let ingress = shim.ingress(8080);
    let request = std::thread::spawn(move || client::get(ingress, "/slow/50000"));
    until_the_workload_has_it(&mut shim);
    shim.signal(Signal::SIGTERM);
    let http = shim.http();
    shim.until(Duration::from_secs(2), "draining", |_| {
        client::get(http, "/readyz").is_ok_and(|answer| answer.status == 503)
    });
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.exit_code(Duration::from_secs(10)), 137, "{}", shim.log());
    assert!(request.join().unwrap().is_err());
}
