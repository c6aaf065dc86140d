//! Promise: before anything is touched it is clear what the enclave will get,
//! and a limit of the pod that is too low is named with the line to change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machine::shim::config_file;
use machine::{Image, Node, Shim};
use nix::fcntl::{Flock, FlockArg};

const SOON: Duration = Duration::from_secs(20);

/// A control group with a limit of its own on 2 MiB pages; gone at the end.
struct Group {
    path: PathBuf,
    /// Taking the controller away from the root takes it from every group.
    _alone: MutexGuard<'static, ()>,
    /// Containers of other tests use the controller, too (`machine::container`).
    _controller: Option<Flock<File>>,
    /// What was enabled in the root group for it.
    enabled: Option<PathBuf>,
}

impl Group {
    /// A limit on pages that are in use.
    fn with_limit(name: &str, bytes: u64) -> Option<Group> {
        Group::limited(name, "", bytes)
    }

    /// A limit on pages that are promised to a mapping.
    fn with_limit_on_mappings(name: &str, bytes: u64) -> Option<Group> {
        Group::limited(name, ".rsvd", bytes)
    }

    /// Under the mounted hierarchy that has the hugetlb controller, of either version.
    fn limited(name: &str, kind: &str, bytes: u64) -> Option<Group> {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = File::create("/run/lock/enclave-shim-hugetlb").ok();
        let controller = lock.and_then(|file| Flock::lock(file, FlockArg::LockExclusive).ok());
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let (root, limit) = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (root, kind, options) = (PathBuf::from(fields.next()?), fields.next()?, fields.next()?);
            let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            match kind {
                "cgroup2" if controllers.contains("hugetlb") => Some((root, "max")),
                "cgroup" if options.contains("hugetlb") => Some((root, "limit_in_bytes")),
                _ => None,
            }
        })?;
        let control = root.join("cgroup.subtree_control");
        let before = fs::read_to_string(&control).unwrap_or_default();
        let enabled = (control.exists() && !before.contains("hugetlb")).then_some(control);
        if let Some(control) = &enabled {
            fs::write(control, "+hugetlb").ok()?;
        }
        let path = root.join(format!("enclave-shim-{name}-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Group { path, _alone: alone, _controller: controller, enabled };
        let limit = group.path.join(format!("hugetlb.2MB{kind}.{limit}"));
        fs::write(limit, bytes.to_string()).ok()?;
        Some(group)
    }

    /// A shell that joins the group and becomes what follows.
    fn enter(&self, command: &mut Command, then: &str) {
        let script = format!("echo $$ > {}/cgroup.procs && {then} exec \"$@\"", self.path.display());
        command.args(["-c", &script, "sh"]);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        machine::within(SOON, "the group is empty", || fs::remove_dir(&self.path).is_ok());
        if let Some(control) = &self.enabled {
            // Somebody else's group may have come to need it.
            let _ = fs::write(control, "-hugetlb");
        }
    }
}

macro_rules! group {
    ($group:expr) => {
        match $group {
            Some(group) => group,
            None => {
                eprintln!("SKIPPED: no hugetlb control group can be made here");
                return;
            }
        }
    };
}

fn dry_run(node: &Node, image: &Image, flags: &[&str]) -> Output {
    let config = config_file(node, "");
    Command::new(env!("CARGO_BIN_EXE_enclave-shim"))
        .args(["run", "--eif"])
        .arg(&image.path)
        .arg("--config")
        .arg(config)
        .args(flags)
        .output()
        .unwrap()
}

#[test]
fn a_dry_run_prints_the_plan_as_text_and_as_json() {
    let node = Node::new();
    let image = Image::hello(&node);
    let text = dry_run(&node, &image, &["--dry-run", "--memory-mib", "80"]);
    assert!(text.status.success(), "{text:?}");
    assert!(String::from_utf8_lossy(&text.stdout).contains("80 MiB of memory (40 x 2 MiB)"), "{text:?}");
    let json = dry_run(&node, &image, &["--dry-run=json", "--memory-mib", "80"]);
    let plan: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(plan["memory_bytes"], 80 << 20);
    assert_eq!(plan["regions"], serde_json::json!([{"page_bytes": 2 << 20, "pages": 40}]));
    assert_eq!(plan["cpus"]["count"], 2);
    // 60 s, and a second for each 32 MiB of a small image.
    let seconds = plan["boot_timeout_seconds"].as_f64().unwrap();
    assert!((61.0..70.0).contains(&seconds), "{plan}");
    let chosen = dry_run(&node, &image, &["--dry-run", "--memory-mib", "80", "--boot-timeout", "5s"]);
    assert!(String::from_utf8_lossy(&chosen.stdout).contains("to be ready within 5s"), "{chosen:?}");
}

#[test]
fn cpus_are_what_the_device_plugin_granted_unless_ids_are_named() {
    let node = Node::new();
    let image = Image::hello(&node);
    let planned_with = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enclave-shim"));
        command.args(["run", "--dry-run=json", "--memory-mib", "64", "--eif"]).arg(&image.path).args(flags);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        plan["cpus"].clone()
    };
    let planned = |variables: &[(&str, &str)]| planned_with(&[], variables);
    let granted = ("NITRO_ENCLAVES_CPUS", "4");
    assert_eq!(planned(&[granted]), serde_json::json!({"count": 4}));
    let ids = ("ENCLAVE_SHIM_CPU_IDS", "2,3");
    assert_eq!(planned(&[granted, ids]), serde_json::json!({"ids": [2, 3]}));
    // A flag beats the environment, whichever of the two it is.
    assert_eq!(planned_with(&["--cpus", "6"], &[granted, ids]), serde_json::json!({"count": 6}));
    assert_eq!(planned_with(&["--cpu-ids", "4,5"], &[granted, ids]), serde_json::json!({"ids": [4, 5]}));
    assert_eq!(planned(&[("ENCLAVE_SHIM_CPUS", "6"), ids]), serde_json::json!({"ids": [2, 3]}));
}

#[test]
fn a_dry_run_compares_the_pins_and_leaves_the_termination_log_alone() {
    let node = Node::new();
    let image = Image::hello(&node);
    let log = node.scratch().join("termination-log");
    std::fs::write(&log, "of the shim that serves").unwrap();
    let zero = "0".repeat(96);
    let flags = |pin| ["--dry-run", "--memory-mib", "64", "--expect-pcr1", pin];
    let refused = dry_run(&node, &image, &flags(&zero));
    assert_eq!(refused.status.code(), Some(65), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    let measured = told.split("PCR1 measures ").nth(1).and_then(|rest| rest.get(..96)).unwrap();
    assert!(dry_run(&node, &image, &flags(measured)).status.success());
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "of the shim that serves");
}

#[test]
fn what_may_go_wrong_later_is_said_by_a_dry_run() {
    let node = Node::new();
    let image = Image::padded(&node, 52);
    let text = dry_run(&node, &image, &["--dry-run", "--memory-mib", "64"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("warning: 64 MiB may be too little to unpack this image"), "{text}");
}

#[test]
fn the_pools_cpus_are_checked_before_the_device() {
    let node = Node::new();
    let image = Image::hello(&node);
    for (flags, code, word) in [
        (["--cpus", "100"], 71, "cpu_count to at least 100"),
        (["--cpu-ids", "2,77"], 64, "CPU 77 is not in the pool"),
    ] {
        let flags = [&["--device", "/nonexistent/device"], &flags[..]].concat();
        let mut shim = Shim::with_flags(&node, &image, &flags);
        assert_eq!(shim.exit_code(SOON), code, "{}", shim.log());
        assert!(shim.log().contains(word), "{}", shim.log());
    }
}

#[test]
fn a_control_group_below_the_plan_is_71_with_the_resource_line() {
    let group = group!(Group::with_limit("plan", 32 << 20));
    let node = Node::new();
    let image = Image::hello(&node);
    let mut command = node.command(Path::new("/bin/sh"));
    group.enter(&mut command, "");
    command.arg(env!("CARGO_BIN_EXE_enclave-shim")).arg("run").arg("--eif").arg(&image.path);
    command.arg("--config").arg(config_file(&node, "memory_mib: 64\n"));
    let mut shim = Shim::run(command);
    assert_eq!(shim.exit_code(SOON), 71, "{}", shim.log());
    let expected = ["control group's limits leave 32 MiB", "`hugepages-2Mi: 64Mi`"];
    assert!(expected.iter().all(|text| shim.log().contains(text)), "{}", shim.log());
}

#[test]
fn without_a_wish_the_memory_is_the_grant() {
    let group = group!(Group::with_limit("grant", 72 << 20));
    let node = Node::new();
    let image = Image::hello(&node);
    let mut command = Command::new("/bin/sh");
    group.enter(&mut command, "");
    command.arg(env!("CARGO_BIN_EXE_enclave-shim")).args(["run", "--dry-run=json", "--eif"]);
    let output = command.arg(&image.path).output().unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(plan["memory_bytes"], 72 << 20);
}

/// A shim in the group, where no file tells the group's limits.
fn blind(node: &Node, group: &Group) -> Shim {
    let image = Image::hello(node);
    let mut command = node.command(Path::new("/usr/bin/unshare"));
    command.args(["--mount", "/bin/sh"]);
    group.enter(&mut command, "mount -t tmpfs none /sys/fs/cgroup &&");
    command.arg(env!("CARGO_BIN_EXE_enclave-shim")).arg("run").arg("--eif").arg(&image.path);
    command.arg("--config").arg(config_file(node, "memory_mib: 64\n"));
    Shim::run(command)
}

#[test]
fn a_limit_that_cannot_be_seen_is_an_error_when_pages_are_made_present_not_a_sigbus() {
    let group = group!(Group::with_limit("unseen", 32 << 20));
    let node = Node::new();
    let mut shim = blind(&node, &group);
    assert_eq!(shim.exit_code(SOON), 71, "{}", shim.log());
    assert!(shim.log().contains("cannot make 64 MiB of 2 MiB pages present"), "{}", shim.log());
    assert!(shim.log().contains("`hugepages-2Mi: 64Mi`"), "{}", shim.log());
}

#[test]
fn a_limit_on_mappings_that_cannot_be_seen_is_an_error_when_they_are_made() {
    let group = group!(Group::with_limit_on_mappings("unmapped", 32 << 20));
    let node = Node::new();
    let mut shim = blind(&node, &group);
    assert_eq!(shim.exit_code(SOON), 71, "{}", shim.log());
    assert!(shim.log().contains("cannot map 64 MiB of 2 MiB pages"), "{}", shim.log());
    assert!(shim.log().contains("os error 12"), "{}", shim.log());
    assert!(shim.log().contains("`hugepages-2Mi: 64Mi`"), "{}", shim.log());
}
