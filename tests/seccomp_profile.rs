//! Promise: deploy/seccomp/enclave-shim.json allows what a launch and a serving
//! shim need and keeps what no pod needs: it is put in force, system call by
//! system call, before the programs start. How a runtime reads the file is not
//! looked at here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use machine::shim::{MEMORY_64, config_file};
use machine::{Image, Node, Shim, client};
use seccompiler::{BpfProgram, TargetArch};
use serde_json::{Value, json};

const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/seccomp/enclave-shim.json");
const SHIM: &str = env!("CARGO_BIN_EXE_enclave-shim");

/// Installs the programs that the first argument lists in hexadecimal, one a
/// line, and becomes what follows.
const INSTALL: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
for line in open(sys.argv[1]).read().split():
    code = ctypes.create_string_buffer(bytes.fromhex(line))
    program = struct.pack("HxxxxxxQ", len(line) // 16, ctypes.addressof(code))
    assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[2], sys.argv[2:])
"#;

/// The profile as filters of the kernel: what a rule allows, and what a rule
/// answers with an errno of its own.
fn compile(profile: &Value) -> Vec<BpfProgram> {
    let rules = profile["syscalls"].as_array().unwrap();
    assert_eq!(
        (&profile["defaultAction"], &profile["defaultErrnoRet"]),
        (&"SCMP_ACT_ERRNO".into(), &1.into())
    );
    let mut allowed: Vec<Value> = Vec::new();
    let mut answered: Vec<BpfProgram> = Vec::new();
    for rule in rules {
        assert!(rule["includes"].is_null() && rule["excludes"].is_null(), "not understood here: {rule}");
        let names = rule["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        // Other architectures' calls have no number here.
        let entries = names
            .map(|name| entry(name, rule))
            .filter(|entry| filter(std::slice::from_ref(entry), 1).is_some());
        match rule["action"].as_str().unwrap() {
            "SCMP_ACT_ALLOW" => allowed.extend(entries),
            "SCMP_ACT_ERRNO" => {
                let entries: Vec<Value> = entries.collect();
                let errno = rule["errnoRet"].as_u64().unwrap();
                // The other filter lets through what this one answers.
                allowed.extend(entries.clone());
                answered.push(program("allow", json!({"errno": errno}), &entries));
            }
            other => panic!("{other} is not understood here"),
        }
    }
    answered.push(filter(&allowed, 1).unwrap());
    answered
}

fn entry(name: &str, rule: &Value) -> Value {
    let conditions: Vec<Value> = rule["args"].as_array().into_iter().flatten().map(condition).collect();
    match conditions.is_empty() {
        true => json!({"syscall": name}),
        false => json!({"syscall": name, "args": conditions}),
    }
}

fn condition(argument: &Value) -> Value {
    let (index, value) = (&argument["index"], &argument["value"]);
    match argument["op"].as_str().unwrap() {
        "SCMP_CMP_EQ" => json!({"index": index, "type": "qword", "op": "eq", "val": value}),
        // Here `value` is the mask and `valueTwo` what must be left.
        "SCMP_CMP_MASKED_EQ" => {
            json!({"index": index, "type": "qword", "op": {"masked_eq": value}, "val": argument["valueTwo"]})
        }
        other => panic!("{other} is not understood here"),
    }
}

fn filter(allowed: &[Value], errno: u32) -> Option<BpfProgram> {
    compiled(json!({"errno": errno}), json!("allow"), allowed)
}

fn program(otherwise: &str, matched: Value, entries: &[Value]) -> BpfProgram {
    compiled(json!(otherwise), matched, entries).unwrap()
}

fn compiled(otherwise: Value, matched: Value, entries: &[Value]) -> Option<BpfProgram> {
    let text = json!({"it": {"default_action": otherwise, "filter_action": matched, "filter": entries}});
    let architecture = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let programs = seccompiler::compile_from_json(text.to_string().as_bytes(), architecture);
    programs.ok().and_then(|mut programs| programs.remove("it"))
}

/// A file of the programs, for [`INSTALL`].
fn installable(node: &Node) -> PathBuf {
    let profile: Value = serde_json::from_slice(&std::fs::read(PROFILE).unwrap()).unwrap();
    let mut text = String::new();
    for program in compile(&profile) {
        for step in program {
            let bytes = [&step.code.to_ne_bytes()[..], &[step.jt, step.jf], &step.k.to_ne_bytes()].concat();
            bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        }
        text.push('\n');
    }
    let path = node.scratch().join("filters");
    std::fs::write(&path, text).unwrap();
    path
}

/// `program` under the profile, on the node.
fn under_the_profile(node: &Node, program: &str) -> Command {
    let mut command = node.command(&machine::python());
    command.arg("-c").arg(INSTALL).arg(installable(node)).arg(program);
    command
}

#[test]
fn the_shim_launches_serves_and_drains_under_the_pods_profile() {
    let node = Node::new();
    let image = Image::hello(&node);
    let mut command = under_the_profile(&node, SHIM);
    command.arg("run").arg("--eif").arg(&image.path).arg("--config").arg(config_file(&node, MEMORY_64));
    let mut shim = Shim::run(command);
    shim.ready();
    assert_eq!(shim.get("/").status, 200);
    assert_eq!(client::get(shim.http(), "/v1/attestation?nonce=0011").unwrap().status, 200);
    // Nothing of its own limits is lost to the profile.
    let enclave = shim.describe()[0].clone();
    assert_eq!(enclave["Confinement"]["no_new_privileges"], true, "{enclave}");
    let outcomes = enclave["Forbidden"].as_array().unwrap();
    assert!(outcomes.iter().all(|act| act["outcome"].as_str().unwrap().contains("EPERM")), "{enclave}");
    for layer in ["a limit cannot be set", "files cannot be limited", "not sealed"] {
        assert!(!shim.log().contains(layer), "{layer}:\n{}", shim.log());
    }
    shim.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(shim.exit_code(std::time::Duration::from_secs(20)), 0, "{}", shim.log());
}

#[test]
fn doctor_finds_nothing_wrong_under_the_pods_profile() {
    let node = Node::new();
    let output = under_the_profile(&node, SHIM).args(["doctor", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let vsock = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "vsock").unwrap();
    assert!(vsock["evidence"].as_str().unwrap().contains("a seccomp filter is active"), "{vsock}");
}

#[test]
fn what_no_pod_needs_fails_under_it() {
    let node = Node::new();
    let script = "unshare --mount true; echo $?; mount -t tmpfs none /mnt; echo $?";
    let run = |mut command: Command| {
        let output = command.args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(Path::new("/usr/bin/unshare").exists(), "unshare is of package util-linux");
    let within = run(under_the_profile(&node, "/bin/sh"));
    assert!(within.iter().all(|code| code != "0"), "{within:?}");
    // Without it root may, in a namespace of its own.
    let mut free = node.command(Path::new("/usr/bin/unshare"));
    free.args(["--mount", "/bin/sh"]);
    assert_eq!(run(free), ["0", "0"]);
}
