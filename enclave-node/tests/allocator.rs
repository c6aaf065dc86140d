//! The program itself, on a directory tree in place of sysfs and on the real
//! one.
#![allow(clippy::unwrap_used)] // a broken fixture ends the test

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

const POOL: &str = "sys/module/nitro_enclaves/parameters/ne_cpus";
const TWO_MIB: &str = "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";
const ONE_GIB: &str = "sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages";

/// 4 CPUs of 2 threads on one node; files that take whatever is written.
fn machine() -> TempDir {
    let root = TempDir::new().unwrap();
    let put = |path: &str, text: &str| write(root.path(), path, text);
    put(POOL, "\n");
    put("sys/devices/system/node/node0/cpulist", "0-3\n");
    for cpu in 0..4 {
        let siblings = format!("{},{}\n", cpu % 2, cpu % 2 + 2);
        put(&format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"), &siblings);
        fs::create_dir(root.path().join(format!("sys/devices/system/cpu/cpu{cpu}/node0"))).unwrap();
    }
    for path in [TWO_MIB, ONE_GIB] {
        put(path, "0\n");
        put(&path.replace("nr_", "free_"), "0\n");
    }
    put("allocator.yaml", "---\nmemory_mib: 1536\ncpu_count: 2\n");
    root
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap().trim().to_owned()
}

fn allocator(root: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enclave-node"));
    command.arg("allocator").arg("--root").arg(root).arg("--config").arg(root.join("allocator.yaml"));
    command.args(flags).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn pages_and_cpus_are_set_aside_once() {
    let root = machine();
    assert_eq!(code(&allocator(root.path(), &["--check"])), 1);
    let planned = allocator(root.path(), &["--dry-run"]);
    assert_eq!(text(&planned.stdout), "node 0: CPUs 1,3, pages 1 x 1Gi + 256 x 2Mi\n");
    assert_eq!(read(root.path(), POOL), "", "a dry run changes nothing");

    let output = allocator(root.path(), &[]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert_eq!(read(root.path(), POOL), "1,3");
    assert_eq!((read(root.path(), ONE_GIB), read(root.path(), TWO_MIB)), ("1".into(), "256".into()));
    assert!(text(&output.stdout).starts_with("set aside on node 0: CPUs 1,3\n"));

    assert_eq!(code(&allocator(root.path(), &["--check"])), 0);
    let again = allocator(root.path(), &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(report["state"], "already set aside");
    assert_eq!(report["reserved"]["pages"][0]["resource"], "hugepages-1Gi");
    assert_eq!(report["reserved"]["pages"][0]["ours"], 1);
}

#[test]
fn pages_of_others_stay_until_taken_over() {
    let root = machine();
    write(root.path(), TWO_MIB, "100\n");
    let output = allocator(root.path(), &[]);
    assert!(text(&output.stdout).contains("hugepages-2Mi: 256 pages, 100 of others kept"));
    assert_eq!(read(root.path(), TWO_MIB), "356");
    assert_eq!(code(&allocator(root.path(), &["--take-over"])), 0);
    assert_eq!(read(root.path(), TWO_MIB), "256");
}

#[test]
fn whoever_is_to_blame_is_in_the_exit_code() {
    let root = machine();
    let missing = Command::new(env!("CARGO_BIN_EXE_enclave-node"))
        .args(["allocator", "--config", "/nonexistent/allocator.yaml"])
        .output()
        .unwrap();
    assert_eq!(code(&missing), 66);
    write(root.path(), "allocator.yaml", "---\nmemory_mib: 512\n\ncpu_count: 2\n");
    let refused = allocator(root.path(), &[]);
    assert_eq!(code(&refused), 64);
    assert!(text(&refused.stderr).contains("line 3: unexpected \"\""), "{}", text(&refused.stderr));
    write(root.path(), "allocator.yaml", "---\nmemory_mib: 512\ncpu_count: 4\n");
    let too_many = allocator(root.path(), &[]);
    assert_eq!(code(&too_many), 71);
    assert_eq!(read(root.path(), TWO_MIB), "0");
    fs::remove_file(root.path().join(POOL)).unwrap();
    assert_eq!(code(&allocator(root.path(), &[])), 69);
    assert_eq!(code(&allocator(root.path(), &["--no-such-flag"])), 64);
}

#[test]
fn what_awss_allocator_drops_silently_is_said() {
    let root = machine();
    write(root.path(), "allocator.yaml", "---\nmemory_mib: 64\ncpu_count: 2\ncpu_pool: 1,3");
    let output = allocator(root.path(), &["--dry-run"]);
    assert_eq!(code(&output), 0);
    let warning = text(&output.stderr);
    assert!(warning.contains("allocator.yaml:4: the last line does not end with a newline"), "{warning}");
}

/// Gives back what the test took, whatever happens.
struct GiveBack {
    path: PathBuf,
    pages: u64,
}

impl Drop for GiveBack {
    fn drop(&mut self) {
        let now = fs::read_to_string(&self.path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(now) = now {
            // Nothing is left to do when it fails.
            let _ = fs::write(&self.path, now.saturating_sub(self.pages).to_string());
        }
    }
}

#[test]
fn the_kernel_of_this_machine_gives_and_takes_pages() {
    const PAGES: u64 = 8;
    let real = Path::new("/").join(TWO_MIB);
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let threads = fs::read_to_string("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list");
    let is_root = fs::OpenOptions::new().write(true).open(&real).is_ok();
    let whole_core = threads.is_ok_and(|list| list.trim() == "0") && online.trim() != "0";
    if !is_root || !whole_core {
        eprintln!("SKIPPED: needs root, 2 MiB pages, and a second core of one thread");
        return;
    }
    let root = TempDir::new().unwrap();
    write(root.path(), POOL, "\n");
    write(root.path(), "allocator.yaml", "---\nmemory_mib: 16\ncpu_count: 1\n");
    fs::create_dir_all(root.path().join("sys/devices/system")).unwrap();
    for part in ["node", "cpu"] {
        let link = format!("sys/devices/system/{part}");
        symlink(Path::new("/").join(&link), root.path().join(&link)).unwrap();
    }
    let _give_back = GiveBack { path: real.clone(), pages: PAGES };
    let output = allocator(root.path(), &["--json"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pool = &report["reserved"]["pages"];
    let two_mib = pool.as_array().unwrap().iter().find(|pool| pool["resource"] == "hugepages-2Mi").unwrap();
    assert_eq!(two_mib["ours"], PAGES);
    assert!(read(Path::new("/"), TWO_MIB).parse::<u64>().unwrap() >= PAGES);
    assert_eq!(read(root.path(), POOL), "1");
}
