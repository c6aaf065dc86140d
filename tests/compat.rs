//! Promise: scripts around nitro-cli find its fields where they look for them,
//! and operators can ask a running shim.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use machine::shim::{MEMORY_64, config_file};
use machine::{Image, Node, Shim, within};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
/// Source: aws-nitro-enclaves-cli, `run-enclave` and `describe-enclaves`.
const RUN_ENCLAVE: [&str; 7] =
    ["EnclaveName", "EnclaveID", "ProcessID", "EnclaveCID", "NumberOfCPUs", "CPUIDs", "MemoryMiB"];

fn ask(request: &str, socket: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enclave-shim"))
        .arg(request)
        .arg("--socket")
        .arg(socket)
        .output()
        .unwrap()
}

#[test]
fn run_json_prints_run_enclaves_fields_on_stdout_once_ready() {
    let node = Node::new();
    let image = Image::hello(&node);
    let printed = node.scratch().join("stdout");
    let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_enclave-shim")));
    command.args(["run", "--json", "--cpus", "2", "--eif"]).arg(&image.path);
    command.arg("--config").arg(config_file(&node, MEMORY_64)).stdout(File::create(&printed).unwrap());
    let mut shim = Shim::run(command);
    shim.ready();
    let mut json = Value::Null;
    within(SOON, "stdout is one JSON object", || {
        let text = std::fs::read_to_string(&printed).unwrap();
        json = serde_json::from_str(&text).unwrap_or_default();
        json.is_object()
    });
    assert_eq!(json.as_object().unwrap().len(), RUN_ENCLAVE.len(), "{json}");
    assert!(RUN_ENCLAVE.iter().all(|field| !json[field].is_null()), "{json}");
    assert_eq!(json["EnclaveCID"].as_u64(), node.running().first().copied(), "{json}");
    let memory = if machine::boots_kernels() { 128 } else { 64 };
    assert_eq!((&json["NumberOfCPUs"], &json["MemoryMiB"]), (&2.into(), &memory.into()));
    assert_eq!(json["CPUIDs"].as_array().map(Vec::len), Some(2), "{json}");
    assert_eq!(json["EnclaveName"], image.path.file_stem().unwrap().to_str().unwrap());
    assert!(json["EnclaveID"].as_str().unwrap().contains("-enc"), "{json}");
}

#[test]
fn describe_is_an_array_in_the_shape_of_describe_enclaves() {
    let node = Node::new();
    let mut shim = Shim::with_flags(&node, &Image::hello(&node), &["--debug"]);
    shim.ready();
    let described = shim.describe();
    let enclave = &described.as_array().unwrap()[0];
    assert!(RUN_ENCLAVE.iter().all(|field| !enclave[field].is_null()), "{enclave}");
    assert_eq!((&enclave["State"], &enclave["Flags"]), (&"RUNNING".into(), &"DEBUG_MODE".into()));
    assert_eq!(enclave["Phase"], "serving");
    let pid = enclave["ProcessID"].as_u64().unwrap();
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(program.file_name().unwrap(), "enclave-shim");
}

#[test]
fn the_admin_socket_is_the_owners_alone_and_dies_with_the_shim() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let socket = shim.admin();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    shim.signal(Signal::SIGTERM);
    shim.signal(Signal::SIGTERM);
    shim.exit_code(SOON);
    let output = ask("describe", &socket);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("no shim listens") && text.contains("fix: "), "{text}");
}

#[test]
fn the_console_is_told_from_its_first_line_to_its_end() {
    let node = Node::new();
    let mut shim = Shim::with_flags(&node, &Image::hello(&node), &["--debug"]);
    shim.ready();
    let mut follower = Command::new(env!("CARGO_BIN_EXE_enclave-shim"))
        .arg("console")
        .arg("--socket")
        .arg(shim.admin())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("hello: listening")), "what was said before");
    shim.signal(Signal::SIGTERM);
    shim.signal(Signal::SIGTERM);
    assert!(lines.any(|line| line.contains("the workload ended")), "what is said now");
    shim.exit_code(SOON);
    // A kernel has a word of its own when it goes.
    let later = lines.filter(|line| !line.contains("reboot: "));
    assert_eq!(later.count(), 0, "nothing after the last line");
    assert!(follower.wait().unwrap().success());
}

#[test]
fn in_production_mode_there_is_no_console_and_that_is_said() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let output = ask("console", &shim.admin());
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("debug mode only"), "{output:?}");
    assert!(output.stdout.is_empty());
}
