//! Promise: every way in which an enclave can end, or fail to start, has its
//! exit code, and says its cause and its fix.

mod machine;

use std::path::Path;
use std::time::{Duration, Instant};

use machine::shim::{MEMORY_64, config_file};
use machine::{Image, Node, Shim, client};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn the_workloads_exit_code_is_the_shims() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    // The answer may be cut by the exit.
    let _ = client::post(shim.ingress(8080), "/exit/7", b"");
    assert_eq!(shim.exit_code(SOON), 7, "{}", shim.log());
}

#[test]
fn a_workload_that_dies_of_a_signal_is_128_and_the_signal() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let _ = client::post(shim.ingress(8080), "/abort", b"");
    assert_eq!(shim.exit_code(SOON), 139, "{}", shim.log());
}

#[test]
fn a_killed_enclave_is_noticed_within_a_second_and_its_last_words_are_kept() {
    let node = Node::new();
    let mut shim = Shim::with_flags(&node, &Image::hello(&node), &["--debug"]);
    shim.ready();
    let killed = Instant::now();
    node.kill_enclave(node.running()[0]);
    let (code, seen) = shim.ended(SOON);
    assert_eq!(code, 76, "{}", shim.log());
    assert!(seen - killed < Duration::from_secs(1), "noticed after {:?}", seen - killed);
    let report = shim.log();
    let (_, after) =
        report.split_once("the enclave ended").unwrap_or_else(|| panic!("no cause in:\n{report}"));
    assert!(after.contains("hello: listening"), "no console lines after the cause:\n{report}");
}

#[test]
fn without_a_device_it_is_69_with_the_fix() {
    let node = Node::new();
    let image = Image::hello(&node);
    // Not under fakenitro: this machine has no device.
    assert!(!Path::new("/dev/nitro_enclaves").exists(), "this test needs a machine without enclaves");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_enclave-shim"));
    command.args(["run", "--eif"]).arg(&image.path).arg("--config").arg(config_file(&node, MEMORY_64));
    let mut shim = Shim::run(command);
    assert_eq!(shim.exit_code(SOON), 69, "{}", shim.log());
    assert!(
        shim.log().contains("/dev/nitro_enclaves") && shim.log().contains("enclaves enabled"),
        "{}",
        shim.log()
    );
}

#[test]
fn too_few_huge_pages_are_71_and_the_fix_names_the_resource_line() {
    let node = Node::new();
    let image = Image::hello(&node);
    // More than any test machine sets aside, and a page count to compare with.
    let mut shim = Shim::with_config(&node, &image, "memory_mib: 1048576\n");
    assert_eq!(shim.exit_code(SOON), 71, "{}", shim.log());
    assert!(
        shim.log().contains("hugepages-2Mi: 1048576Mi") || shim.log().contains("hugepages-1Gi: 1024Gi"),
        "{}",
        shim.log()
    );
    assert!(node.running().is_empty(), "an enclave was left");
    let last_words = std::fs::read_to_string(node.scratch().join("termination-log")).unwrap();
    assert!(last_words.contains("hugepages-"), "termination log: {last_words}");
}

#[test]
fn an_unknown_key_is_64_and_named() {
    let node = Node::new();
    let image = Image::hello(&node);
    let mut shim = Shim::with_config(&node, &image, "memory_mib: 64\nmemroy: 64\n");
    assert_eq!(shim.exit_code(SOON), 64, "{}", shim.log());
    assert!(shim.log().contains("memroy"), "{}", shim.log());
}

#[test]
fn an_unknown_flag_is_64() {
    let node = Node::new();
    let image = Image::hello(&node);
    let mut shim = Shim::with_flags(&node, &image, &["--no-such-flag"]);
    assert_eq!(shim.exit_code(SOON), 64, "{}", shim.log());
}

#[test]
fn a_value_of_the_environment_that_cannot_be_read_is_64_with_its_name_also_in_the_termination_log() {
    let node = Node::new();
    let left = node.scratch().join("why");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_enclave-shim"))
        .arg("run")
        .env("ENCLAVE_SHIM_MEMORY_MIB", "512Mi")
        .env("ENCLAVE_SHIM_TERMINATION_LOG", &left)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    for text in [told, std::fs::read_to_string(&left).unwrap()] {
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("error: invalid value '512Mi'"), "{text}");
        assert!(lines.next().unwrap().contains("ENCLAVE_SHIM_MEMORY_MIB"), "{text}");
        assert!(lines.next().unwrap().contains("\"exit_code\":64"), "{text}");
    }
}

#[test]
fn a_program_that_is_not_in_the_image_is_65_and_named() {
    let node = Node::new();
    let image = Image::from_manifest(&node, "name: gone\nversion: '1'\nentrypoint: [/gone]\n");
    let mut shim = Shim::start(&node, &image);
    assert_eq!(shim.exit_code(SOON), 65, "{}", shim.log());
    assert!(shim.log().contains("/gone"), "{}", shim.log());
}

#[test]
fn a_workload_that_never_listens_times_out_with_75() {
    let node = Node::new();
    let image =
        Image::from_manifest(&node, "name: deaf\nversion: '1'\nentrypoint: [/hello]\ningress: [9999]\n");
    let mut shim = Shim::with_config(&node, &image, "memory_mib: 64\nboot: {timeout: 1s}\n");
    assert_eq!(shim.exit_code(SOON), 75, "{}", shim.log());
}

#[test]
fn sigkill_of_the_shim_leaves_no_enclave_running() {
    let node = Node::new();
    let mut shim = Shim::start(&node, &Image::hello(&node));
    shim.ready();
    let enclave = node.status()["enclaves"][0]["pid"].as_u64().unwrap();
    assert!(Path::new(&format!("/proc/{enclave}")).exists());
    shim.signal(Signal::SIGKILL);
    assert_eq!(shim.exit_code(SOON), 137);
    machine::within(SOON, "the enclave's first process is gone", || {
        !Path::new(&format!("/proc/{enclave}")).exists()
    });
}
