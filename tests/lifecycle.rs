//! Promise: what the shim goes through is told while it happens, a stop is
//! bounded whenever it comes, and what is left behind says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use machine::shim::{MEMORY_64, config_file};
use machine::{Image, Node, Shim, client, processes_naming, within};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
/// In the order in which they are reached.
const STEPS: [&str; 4] = ["kernel up", "agent up", "workload started", "workload ready"];

/// The JSON object at the end of a termination log.
fn left_behind(node: &Node) -> (String, Option<Value>) {
    let text = std::fs::read_to_string(node.scratch().join("termination-log")).unwrap();
    let report = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    (text, report)
}

/// The process of the shim itself, among those that name its configuration.
fn own_process(config: &Path) -> u32 {
    let mut found = None;
    within(SOON, "the shim's own process is there", || {
        let named = processes_naming(&config.display().to_string());
        found = named.into_iter().find(|pid| {
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("enclave-shim"))
        });
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn phases_are_told_with_their_times_in_log_metrics_and_readyz() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let page = client::get(shim.http(), "/readyz").unwrap().text();
    assert_eq!(page.lines().next(), Some("serving"), "{page}");
    let at = |step: &str| {
        let line = page.lines().find(|line| line.ends_with(&format!("ms  {step}")));
        let line = line.unwrap_or_else(|| panic!("no {step} in {page}"));
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let times = STEPS.map(at);
    assert!(times.is_sorted(), "{times:?}");
    for (step, at_ms) in STEPS.iter().zip(times) {
        let metric = shim.metric(&format!("enclave_shim_step_seconds{{step=\"{step}\"}}"));
        assert_eq!(metric, Some(at_ms as f64 / 1e3), "{step}");
        assert!(shim.log().contains(&format!("\"step\":\"{step}\"")), "{step} is not logged");
    }
}

#[test]
fn sigterm_during_boot_ends_at_once_and_leaves_no_enclave() {
    let node = Node::new();
    let manifest = "name: deaf\nversion: '1'\nentrypoint: [/hello]\ningress: [9999]\n";
    let mut shim = Shim::start(&node, &Image::from_manifest(&node, manifest));
    let http = shim.http();
    shim.until(SOON, "the workload runs and is not ready", |_| {
        client::get(http, "/readyz").is_ok_and(|answer| answer.text().contains("workload started"))
    });
    let sent = Instant::now();
    shim.signal(Signal::SIGTERM);
    let (code, ended) = shim.ended(SOON);
    assert_eq!(code, 143, "{}", shim.log());
    assert!(ended - sent < Duration::from_secs(2), "took {:?}", ended - sent);
    within(SOON, "the enclave is gone", || node.running().is_empty());
}

#[test]
fn sigterm_during_the_launch_ends_before_the_enclave_starts() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::padded(&node, 48));
    let http = shim.http();
    shim.until(SOON, "the launch has begun", |_| client::get(http, "/readyz").is_ok());
    shim.signal(Signal::SIGTERM);
    assert_eq!(shim.exit_code(SOON), 143, "{}", shim.log());
    within(SOON, "no enclave is left", || node.running().is_empty());
}

#[test]
fn a_stop_fits_accept_grace_and_five_seconds_whatever_the_workload_does() {
    let node = Node::new();
    let config = "memory_mib: 64\ndrain: {accept: 300ms, grace: 700ms}\n";
    let mut shim = Shim::with_config(&node, &Image::hello(&node), config);
    shim.ready();
    // A client that never ends, and never reads.
    let _client = client::connect(shim.ingress(8081)).unwrap();
    let ingress = shim.ingress(8080);
    let request = std::thread::spawn(move || client::get(ingress, "/slow/60000"));
    shim.until(SOON, "both clients are in", |_| true);
    within(SOON, "both clients are carried", || {
        shim.metric("enclave_shim_ingress_connections_open") == Some(2.0)
    });
    let sent = Instant::now();
    shim.signal(Signal::SIGTERM);
    let (code, ended) = shim.ended(SOON);
    assert_eq!(code, 137, "{}", shim.log());
    assert!(ended - sent < Duration::from_millis(6000), "took {:?}", ended - sent);
    assert!(shim.log().contains("terminationGracePeriodSeconds of the pod must be at least 6"));
    assert!(request.join().unwrap().is_err());
}

#[test]
fn a_crash_report_is_left_on_stderr_and_bounded_in_the_termination_log() {
    let node = Node::new();
    // Kernel-like chatter of 20 long lines does not fit; cause and fix always do.
    let name = "x".repeat(300);
    let manifest = format!(
        "name: hello\nversion: '1'\nentrypoint: [/hello, {name}]\nuser: app\ningress: [8080, 8081]\n"
    );
    let mut shim = Shim::with_flags(&node, &Image::from_manifest(&node, &manifest), &["--debug"]);
    shim.ready();
    node.kill_enclave(node.running()[0]);
    assert_eq!(shim.exit_code(SOON), 76, "{}", shim.log());
    let (text, report) = left_behind(&node);
    assert!(text.len() <= 4096 && text.starts_with("error: ") && text.contains("\nfix: "), "{text}");
    let report = report.unwrap_or_else(|| panic!("no report in {text}"));
    assert_eq!((&report["origin"], &report["kind"]), (&"shim".into(), &"enclave_died".into()));
    assert_eq!(report["exit_code"], 76);
    let steps: Vec<_> = report["timeline"].as_array().unwrap().iter().map(|step| &step["step"]).collect();
    assert!(STEPS.iter().all(|step| steps.contains(&&Value::from(*step))), "{steps:?}");
    let on_stderr = shim.log().lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    assert_eq!(on_stderr.unwrap()["kind"], "enclave_died");
}

#[test]
fn a_clean_end_leaves_an_empty_termination_log() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let _ = client::post(shim.ingress(8080), "/exit/0", b"");
    assert_eq!(shim.exit_code(SOON), 0, "{}", shim.log());
    assert_eq!(left_behind(&node).0, "");
}

#[test]
fn out_of_descriptors_new_clients_wait_and_are_served_afterwards() {
    let node = Node::new();
    let config = config_file(&node, MEMORY_64);
    let mut shim = Shim::spawn(&node, &config, &Image::hello(&node).path, &[]);
    shim.ready();
    let ingress = shim.ingress(8080);
    let pid = own_process(&config);
    let limit = |soft: usize| {
        let range = format!("--nofile={soft}:");
        let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &range]).status().unwrap();
        assert!(status.success(), "prlimit is of package util-linux");
    };
    // Only 0 to 2 could be opened, and they are.
    limit(3);
    let waiting = std::thread::spawn(move || client::get(ingress, "/"));
    shim.until(SOON, "the listener is out of descriptors", |shim| shim.log().contains("Too many open files"));
    assert!(!waiting.is_finished(), "nobody may be turned away while descriptors are short");
    limit(1024);
    assert_eq!(waiting.join().unwrap().unwrap().status, 200);
    assert_eq!(shim.get("/").status, 200);
}

#[test]
fn as_pid_1_it_reaps_what_others_left() {
    let node = Node::new();
    let (image, config) = (Image::hello(&node), config_file(&node, MEMORY_64));
    let mut command = node.command(Path::new("/usr/bin/unshare"));
    command.args(["--pid", "--fork", "--kill-child"]).arg(env!("CARGO_BIN_EXE_enclave-shim"));
    command.arg("run").arg("--eif").arg(&image.path).arg("--config").arg(&config);
    let mut shim = Shim::run(command);
    shim.ready();
    let pid = own_process(&config);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
    // As `kubectl exec` would: a process of its own, whose child outlives it.
    let fifo = node.scratch().join("orphan");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("(read line <{0}; exit 3) & exit 0", fifo.display());
    let entered = Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--pid", "/bin/sh", "-c", &script])
        .status()
        .unwrap();
    assert!(entered.success());
    let orphan = children(pid).into_iter().next().expect("the orphan is the shim's child");
    std::fs::write(&fifo, "go\n").unwrap();
    within(SOON, "the orphan is reaped", || !PathBuf::from(format!("/proc/{orphan}")).exists());
    assert_eq!(children(pid), [] as [u32; 0]);
    assert_eq!(client::get(shim.http(), "/readyz").unwrap().status, 200, "the shim goes on");
    // PID 1 of the namespace; unshare itself would not pass it on.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    assert_eq!(shim.exit_code(SOON), 0, "{}", shim.log());
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}
