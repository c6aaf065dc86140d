//! Promise: `doctor` finds what would keep an enclave from running, says how
//! it knows and what to do; and what `run` looks at beforehand costs nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::path::Path;
use std::process::{Command, Output};

use machine::{Image, Node, Shim};
use serde_json::Value;

const SHIM: &str = env!("CARGO_BIN_EXE_enclave-shim");

fn findings(output: &Output) -> Vec<Value> {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn finding(output: &Output, check: &str) -> Value {
    findings(output).into_iter().find(|finding| finding["check"] == check).unwrap()
}

#[test]
fn on_a_good_node_all_is_well_and_the_code_is_0() {
    let node = Node::new();
    let output = node.command(Path::new(SHIM)).args(["doctor", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let findings = findings(&output);
    assert!(findings.len() >= 8, "{findings:?}");
    assert!(findings.iter().all(|finding| finding["severity"] == "fine"), "{findings:?}");
}

#[test]
fn an_image_is_looked_at_with_its_kernel_and_a_broken_one_is_65() {
    let node = Node::new();
    let image = Image::hello(&node);
    let doctor = |eif: &Path| {
        node.command(Path::new(SHIM)).args(["doctor", "--json", "--eif"]).arg(eif).output().unwrap()
    };
    let good = doctor(&image.path);
    assert_eq!(good.status.code(), Some(0), "advice is no error: {good:?}");
    let evidence = finding(&good, "image")["evidence"].as_str().unwrap().to_owned();
    let version = eif::Image::open(&image.path).unwrap().kernel_version().unwrap();
    assert!(evidence.contains("our agent") && evidence.contains(&version), "{evidence}");
    let broken = node.scratch().join("broken.eif");
    std::fs::write(&broken, b".eif").unwrap();
    let bad = doctor(&broken);
    assert_eq!(bad.status.code(), Some(65), "{bad:?}");
    assert!(finding(&bad, "image")["cause"].as_str().unwrap().contains("broken.eif cannot be used"));
}

#[test]
fn without_a_driver_each_finding_has_a_cause_evidence_and_a_fix() {
    let output = Command::new(SHIM).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["ERROR   module", "ERROR   device", "evidence: /dev/nitro_enclaves is missing", "fix: "] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
}

#[test]
fn a_device_of_another_group_names_the_group_to_add() {
    let node = Node::new();
    let mut command = node.command(Path::new("/usr/bin/setpriv"));
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", SHIM, "doctor", "--json"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let device = finding(&output, "device");
    assert!(device["fix"].as_str().unwrap().contains("supplementalGroups: ["), "{device}");
    assert!(device["evidence"].as_str().unwrap().contains("uid 65534"), "{device}");
}

#[test]
fn a_seccomp_profile_that_forbids_vsock_is_named_with_the_one_to_use() {
    // As runtimes' default profiles do: socket(AF_VSOCK, ...) fails with EPERM.
    let script = r#"
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 40),
         (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"#;
    let mut command = Command::new(machine::python());
    let output = command.args(["-c", script, SHIM, "doctor", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let vsock = finding(&output, "vsock");
    assert_eq!(vsock["cause"], "the pod's seccomp profile forbids vsock sockets", "{vsock}");
    assert!(vsock["evidence"].as_str().unwrap().contains("a seccomp filter is active"), "{vsock}");
    let profile = "deploy/seccomp/enclave-shim.json";
    assert!(vsock["fix"].as_str().unwrap().contains(profile), "{vsock}");
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(profile).exists());
}

#[test]
fn plan_and_preflight_within_run_take_less_than_50_ms() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let at = |step: &str| {
        let lines: Vec<Value> =
            shim.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let found = lines.iter().find(|line| line["fields"]["step"] == step);
        found.and_then(|line| line["fields"]["at_ms"].as_u64()).unwrap_or_else(|| panic!("no {step:?}"))
    };
    let took = at("preflight passed") - at("image checked");
    assert!(took < 50, "{took} ms");
}
