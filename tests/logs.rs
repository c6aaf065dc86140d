//! Promise: in production mode the workload's output reaches the pod's log
//! exactly when its measured settings say so; a flood is bounded and counted,
//! and stops nobody. The workload is the system's shell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use machine::{Image, Node, Shim};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(15);
const QUIET: &str = "memory_mib: 64\nlimits: {connections: 16}\n";

/// A root filesystem that holds a shell, its libraries and users.
fn shell_rootfs(node: &Node) -> PathBuf {
    let root = node.scratch().join("shell");
    for directory in ["bin", "etc", "tmp", "run", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    let listed = Command::new("ldd").arg(&shell).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in libraries {
        let target = root.join(file.strip_prefix("/").unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&file, target).unwrap();
    }
    std::fs::copy(&shell, root.join("bin/sh")).unwrap();
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\n").unwrap();
    root
}

/// `script` as an image; `lines` are added to its manifest.
fn script(node: &Node, script: &str, lines: &str) -> Image {
    let script = serde_json::to_string(script).unwrap();
    let manifest =
        format!("name: script\nversion: '1'\nuser: app\nentrypoint: [/bin/sh, -c, {script}]\n{lines}\n");
    Image::from_rootfs(node, &manifest, &shell_rootfs(node))
}

/// Every `(stream, line)` of the workload in the shim's log.
fn output(shim: &Shim) -> Vec<(String, String)> {
    events(shim, "workload")
        .into_iter()
        .map(|fields| {
            let text = |name: &str| fields[name].as_str().unwrap().to_owned();
            (text("stream"), text("line"))
        })
        .collect()
}

/// Fields of the log's events with this message.
fn events(shim: &Shim, message: &str) -> Vec<Value> {
    let lines: Vec<Value> = shim.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let fields = lines.into_iter().map(|line| line["fields"].clone());
    fields.filter(|fields| fields["message"] == message).collect()
}

fn report(shim: &Shim) -> Value {
    let reports = shim.log().lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    reports.unwrap_or_else(|| panic!("no report in\n{}", shim.log()))
}

#[test]
fn both_outputs_arrive_whole_in_production_mode_also_of_a_workload_that_ends_at_once() {
    let node = Node::new();
    let image =
        script(&node, "echo first; echo oops >&2; printf 'bell \\007 ünfinished'; exit 3", "logs: forward");
    let mut shim = Shim::with_config(&node, &image, QUIET);
    assert_eq!(shim.exit_code(SOON), 3, "{}", shim.log());
    let mut output = output(&shim);
    output.sort();
    let expected = [("stderr", "oops"), ("stdout", "bell \u{FFFD} ünfinished"), ("stdout", "first")];
    assert_eq!(output, expected.map(|(stream, line)| (stream.to_owned(), line.to_owned())));
    let report = report(&shim);
    let kept = report["output"].as_array().unwrap_or_else(|| panic!("{report}"));
    assert!(kept.contains(&"first".into()) && kept.contains(&"oops".into()), "{report}");
    assert_eq!(report["console"].as_array().map(Vec::len), Some(0), "no console in production: {report}");
}

#[test]
fn without_the_measured_permission_nothing_arrives() {
    let node = Node::new();
    let image = script(&node, "echo secret; echo secret >&2; exit 3", "");
    let mut shim = Shim::with_config(&node, &image, QUIET);
    assert_eq!(shim.exit_code(SOON), 3, "{}", shim.log());
    assert_eq!(output(&shim), []);
    assert!(!shim.log().contains("secret"), "{}", shim.log());
}

#[test]
fn a_flood_is_bounded_and_counted_and_the_workload_does_not_wait_for_it() {
    let node = Node::new();
    // 200 000 lines are a second's work for a shell and 200 s at the rate.
    let image = script(
        &node,
        "i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done; echo the end; exit 4",
        "logs: forward",
    );
    let mut shim = Shim::with_flags(&node, &image, &["--log-workload-lines", "1000"]);
    let (code, ended) = shim.ended(Duration::from_secs(60));
    assert_eq!(code, 4, "{}", shim.log().lines().last().unwrap_or_default());
    let (lines, took) = (output(&shim).len(), ended - shim.started);
    let dropped: u64 = events(&shim, "workload: lines over log.workload_lines were dropped here")
        .iter()
        .filter_map(|fields| fields["dropped"].as_u64())
        .sum();
    println!("{lines} lines in {took:?}, {dropped} dropped");
    // The rate, a burst, and what agent and sockets hold at the end: 256 KiB each.
    let bound = 1000.0 * (took.as_secs_f64() + 1.0) + 2.0 * 262_144.0 / 12.0;
    assert!((lines as f64) < bound, "{lines} lines in {took:?}");
    assert!(lines > 1000, "only {lines} lines");
    assert_eq!(dropped + lines as u64, 200_001, "every line arrived or was counted");
}

#[test]
fn debug_mode_is_loud_and_says_that_all_pcrs_are_zero() {
    let node = Node::new();
    let image = Image::hello(&node);
    let mut shim = Shim::with_flags(&node, &image, &["--debug"]);
    shim.ready();
    let banner = events(&shim, "all PCRs are zero in debug mode");
    assert_eq!(banner[0]["pcr0"], "0".repeat(96), "{}", shim.log());
    assert!(shim.log().contains("DEBUG MODE"), "{}", shim.log());
    assert_eq!(shim.metric("enclave_shim_debug_mode"), Some(1.0));
    let page = machine::client::get(shim.http(), "/readyz").unwrap().text();
    assert!(page.contains("debug mode"), "{page}");
    let measured = image.measurements["PCR0"].as_str().unwrap();
    assert!(!shim.log().contains(measured), "the image's own PCR0 must not be printed as if it held");
}

#[test]
fn production_mode_says_nothing_of_debug_mode() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    assert_eq!(shim.metric("enclave_shim_debug_mode"), Some(0.0));
    assert!(!shim.log().contains("DEBUG MODE"), "{}", shim.log());
}
