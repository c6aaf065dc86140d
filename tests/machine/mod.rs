//! The machine that end-to-end tests run on: real programs under fakenitro,
//! real sockets, real huge pages. Nothing here waits by sleeping blindly:
//! [`within`] polls a condition until a deadline.
#![allow(dead_code, unused_imports)] // every test file uses its own part
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails
#![allow(unreachable_pub)]

pub mod client;
pub mod container;
pub mod image;
pub mod pod;
pub mod shim;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub use container::Container;
pub use image::Image;
pub use pod::Pod;
pub use shim::Shim;

/// One fakenitro node: a state directory, gone with its processes at the end.
pub struct Node {
    directory: TempDir,
    options: Vec<String>,
}

impl Node {
    pub fn new() -> Node {
        Node::with(&[])
    }

    /// A node whose fakenitro gets these options.
    pub fn with(options: &[&str]) -> Node {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the end-to-end tests need root: fakenitro mounts a private /dev"
        );
        let directory = TempDir::with_prefix("node-").unwrap();
        Node { directory, options: options.iter().map(|option| (*option).to_owned()).collect() }
    }

    /// The state directory.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A directory for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// `program` under this node's fakenitro.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program_path("fakenitro"));
        command.arg("--state").arg(self.path());
        if let Some(engine) = std::env::var_os("FAKENITRO_ENGINE") {
            command.arg("--engine").arg(engine);
        }
        command.args(&self.options).arg("--").arg(program);
        command
    }

    /// What runs on the node, as `fakenitro status` prints it.
    pub fn status(&self) -> Value {
        let output = self.fakenitro(&["status"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("status is not JSON ({error}): {output:?}"))
    }

    /// Ends an enclave as a crash would.
    pub fn kill_enclave(&self, cid: u64) {
        let output = self.fakenitro(&["kill", &cid.to_string()]);
        assert!(output.status.success(), "fakenitro kill: {output:?}");
    }

    /// The same, if it runs still.
    pub fn try_kill_enclave(&self, cid: u64) {
        self.fakenitro(&["kill", &cid.to_string()]);
    }

    /// Says `words` to `port` of the parent as a process that is no enclave: it may
    /// be closed or reset, and gets no byte.
    pub fn stranger_gets_nothing(&self, port: u16, words: &[u8]) {
        let script = r#"
import socket, sys
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.settimeout(20)
s.connect((3, int(sys.argv[1])))
try:
    s.sendall(bytes.fromhex(sys.argv[2]))
    answer = s.recv(1)
except (BrokenPipeError, ConnectionResetError):
    answer = b""
assert answer == b"", answer
"#;
        let words: String = words.iter().map(|byte| format!("{byte:02x}")).collect();
        let output =
            self.command(&python()).args(["-c", script, &port.to_string(), &words]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The first process of the enclave that runs, or the machine that it is;
    /// known before its first instruction.
    pub fn first_process(&self) -> Option<Pid> {
        let enclaves = std::fs::read_dir(self.path().join("enclaves")).into_iter().flatten().flatten();
        let mut states = enclaves.filter_map(|enclave| {
            let text = std::fs::read(enclave.path().join("status.json")).ok()?;
            serde_json::from_slice::<Value>(&text).ok()
        });
        let running = states.find(|state| state["state"] == "running")?;
        Some(Pid::from_raw(i32::try_from(running["pid"].as_i64()?).ok()?))
    }

    /// CIDs of the enclaves that run.
    pub fn running(&self) -> Vec<u64> {
        let status = self.status();
        let enclaves = status["enclaves"].as_array().cloned().unwrap_or_default();
        enclaves.iter().filter_map(|enclave| enclave["cid"].as_u64()).collect()
    }

    /// The node's counters.
    pub fn stats(&self) -> Value {
        let bytes = std::fs::read(self.path().join("stats.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// What the node and its enclaves said, for a test that has failed.
    fn show_logs(&self) {
        let enclaves = std::fs::read_dir(self.path().join("enclaves")).into_iter().flatten().flatten();
        let logs =
            enclaves.flat_map(|enclave| ["console.log", "qemu.log"].map(|log| enclave.path().join(log)));
        for log in std::iter::once(self.path().join("fakenitro.log")).chain(logs) {
            let Ok(bytes) = std::fs::read(&log) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            let from = text.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
            eprintln!("--- {} ---\n{}", log.display(), &text[from..]);
        }
    }

    fn fakenitro(&self, arguments: &[&str]) -> Output {
        Command::new(program_path("fakenitro"))
            .arg("--state")
            .arg(self.path())
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for Node {
    /// Every test ends with a machine that nobody uses any more.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
            return;
        }
        let needle = self.path().display().to_string();
        within(Duration::from_secs(10), "the node's processes are gone", || {
            processes_naming(&needle).is_empty()
        });
    }
}

/// Whether FAKENITRO_ENGINE says that images boot their own kernels, in machines.
pub fn boots_kernels() -> bool {
    std::env::var_os("FAKENITRO_ENGINE").is_some_and(|engine| engine == "qemu")
}

/// A time limit of the process engine, and what takes its place where a
/// processor is emulated and a kernel boots first.
pub fn limit(process: Duration, machine: Duration) -> Duration {
    if boots_kernels() { machine } else { process }
}

/// How long to wait for what is no promise about time: a hang has to become a
/// failure, and a machine whose processor is emulated beside others no hang.
pub fn patience(limit: Duration) -> Duration {
    if boots_kernels() { 6 * limit } else { limit }
}

/// A program of the workspace, built beside the shim.
pub fn program_path(name: &str) -> PathBuf {
    let shim = PathBuf::from(env!("CARGO_BIN_EXE_enclave-shim"));
    let path = shim.with_file_name(name);
    assert!(path.exists(), "{} is not built: run `make programs` first", path.display());
    path
}

/// Polls `condition` until it holds; fails the test after `limit`, see [`patience`].
#[track_caller]
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let limit = patience(limit);
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    started.elapsed()
}

/// How many streams a soak says that it had.
pub fn streams_of(verdict: &str) -> u64 {
    let (count, _) = verdict.split_once(" streams").unwrap();
    count.rsplit(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Descriptors that a process has open.
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Ids of processes whose command line or environment-independent arguments name `needle`.
pub fn processes_naming(needle: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(needle)
        })
        .collect()
}

/// A number that no other test of this machine uses at the same time.
pub fn unique_number() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    std::process::id() * 64 + COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 64
}

/// The system's Python: AF_VSOCK by a program that knows nothing of this project.
pub fn python() -> PathBuf {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    assert!(output.status.success(), "python3 is missing: run scripts/setup.sh test");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}
