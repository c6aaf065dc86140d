//! A running `enclave-shim`, watched through its log, its HTTP server and its exit code.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::client::{self, Answer};
use super::{Image, Node, within};

/// A shim under a node's fakenitro. Killed at the end if it still runs.
pub struct Shim {
    child: Child,
    pub started: Instant,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    ended: Option<(i32, Instant)>,
}

/// What a test wants of the shim beyond its defaults: lines of YAML.
pub const MEMORY_64: &str = "memory_mib: 64\n";

impl Shim {
    /// `enclave-shim run` of `image`, ingress to 8080, 8081 and 8082, memory 64 MiB.
    pub fn start(node: &Node, image: &Image) -> Shim {
        Shim::with_config(node, image, MEMORY_64)
    }

    /// The same with `extra` lines instead of the memory line.
    pub fn with_config(node: &Node, image: &Image, extra: &str) -> Shim {
        Shim::spawn(node, &config_file(node, extra), &image.path, &[])
    }

    /// `ingress` (YAML list items) instead of the usual listeners.
    pub fn with_ingress(node: &Node, image: &Image, ingress: &str, extra: &str) -> Shim {
        Shim::spawn(node, &config_of(node, ingress, extra), &image.path, &["--log-level", "info"])
    }

    /// The same with flags.
    pub fn with_flags(node: &Node, image: &Image, flags: &[&str]) -> Shim {
        Shim::spawn(node, &config_file(node, MEMORY_64), &image.path, flags)
    }

    pub fn spawn(node: &Node, config: &Path, eif: &Path, flags: &[&str]) -> Shim {
        let mut command = node.command(Path::new(env!("CARGO_BIN_EXE_enclave-shim")));
        command.arg("run").arg("--eif").arg(eif).arg("--config").arg(config).args(flags);
        Shim::run(command)
    }

    /// Any command whose stderr is a shim's log.
    pub fn run(mut command: Command) -> Shim {
        let started = Instant::now();
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let sink = log.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        Shim { child, started, log, reader: Some(reader), ended: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything on stderr so far.
    pub fn log(&self) -> String {
        self.lines().join("\n")
    }

    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where clients reach the enclave's `port`.
    pub fn ingress(&mut self, port: u16) -> SocketAddr {
        self.address(|line| line["fields"]["port"] == port)
    }

    /// The listener on `host`, for those that have no port of their own.
    pub fn ingress_at(&mut self, host: &str) -> SocketAddr {
        let begins = format!("{host}:");
        self.address(|line| {
            let address = line["fields"]["address"].as_str().unwrap_or_default();
            line["fields"]["message"] == "ingress bound" && address.starts_with(&begins)
        })
    }

    /// The shim's own HTTP server.
    pub fn http(&mut self) -> SocketAddr {
        self.address(|line| line["fields"]["server"] == "http")
    }

    /// The `address` field of the first log line that fits.
    fn address(&mut self, fits: impl Fn(&Value) -> bool) -> SocketAddr {
        let mut found = None;
        self.until(Duration::from_secs(10), "the address is logged", |shim| {
            found = shim.lines().iter().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                fits(&line).then(|| line["fields"]["address"].as_str()?.parse().ok()).flatten()
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits for /readyz to answer 200. Returns the time since the shim's exec.
    pub fn ready(&mut self) -> Duration {
        let http = self.http();
        self.until(Duration::from_secs(30), "ready", |_| {
            client::get(http, "/readyz").is_ok_and(|answer| answer.status == 200)
        });
        self.started.elapsed()
    }

    /// The socket of `describe` and `console`.
    pub fn admin(&mut self) -> PathBuf {
        let mut found = None;
        self.until(Duration::from_secs(10), "the admin socket is logged", |shim| {
            found = shim.lines().iter().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                let bound = line["fields"]["message"] == "admin socket bound";
                bound.then(|| line["fields"]["socket"].as_str().map(PathBuf::from)).flatten()
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// What `enclave-shim describe` prints: the enclave, if it runs.
    pub fn describe(&mut self) -> Value {
        let socket = self.admin();
        let mut command = Command::new(env!("CARGO_BIN_EXE_enclave-shim"));
        let output = command.arg("describe").arg("--socket").arg(socket).output().unwrap();
        assert!(output.status.success(), "describe: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The shim's own process; [`Shim::pid`] is fakenitro's.
    pub fn process(&mut self) -> u32 {
        u32::try_from(self.describe()[0]["ProcessID"].as_u64().unwrap()).unwrap()
    }

    pub fn get(&mut self, path: &str) -> Answer {
        let address = self.ingress(8080);
        client::get(address, path).unwrap()
    }

    /// One metric's value, by the start of its line.
    pub fn metric(&mut self, name: &str) -> Option<f64> {
        let text = client::get(self.http(), "/metrics").ok()?.text();
        text.lines().find(|line| line.starts_with(name))?.rsplit(' ').next()?.parse().ok()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Whether the process that was started is there.
    pub fn is_running(&mut self) -> bool {
        self.ended.is_none() && self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Waits for the end; for clean-up, where failing would hide the failure.
    pub fn gone(&mut self, limit: Duration) -> bool {
        let started = Instant::now();
        while self.is_running() && started.elapsed() < limit {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        !self.is_running()
    }

    /// Waits for the end. Returns the exit code (128 + n if a signal ended the shim itself).
    #[track_caller]
    pub fn exit_code(&mut self, limit: Duration) -> i32 {
        self.ended(limit).0
    }

    /// Exit code and when it was seen.
    #[track_caller]
    pub fn ended(&mut self, limit: Duration) -> (i32, Instant) {
        if self.ended.is_none() {
            let mut status = None;
            let child = &mut self.child;
            let log = self.log.clone();
            let waiting = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                within(limit, "the shim ends", || {
                    status = child.try_wait().unwrap();
                    status.is_some()
                })
            }));
            assert!(
                waiting.is_ok(),
                "the shim goes on:\n{}",
                log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
            );
            let status = status.unwrap();
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            self.ended = Some((code, Instant::now()));
            if let Some(reader) = self.reader.take() {
                reader.join().unwrap();
            }
        }
        self.ended.unwrap()
    }

    /// Like [`within`], but fails at once, with the log, when the shim has ended.
    #[track_caller]
    pub fn until(&mut self, limit: Duration, what: &str, mut condition: impl FnMut(&Shim) -> bool) {
        let limit = super::patience(limit);
        let started = Instant::now();
        while !condition(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the shim ended ({ended:?}) before: {what}\n{}", self.log());
            assert!(started.elapsed() < limit, "not within {limit:?}: {what}\n{}", self.log());
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        if self.ended.is_none() && self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the shim's log ---\n{}", self.log());
        }
    }
}

/// A configuration whose memory suits the engine: a kernel and its unpacked
/// ramdisks take room of their own.
pub fn with_room(config: &str) -> String {
    match super::boots_kernels() {
        true => config.replace("memory_mib: 64\n", "memory_mib: 128\n"),
        false => config.to_owned(),
    }
}

/// A shim.yaml with listeners on ports of the kernel's choice and JSON logs.
pub fn config_file(node: &Node, extra: &str) -> PathBuf {
    let ingress = "
  - {listen: 127.0.0.1:0, port: 8080}
  - {listen: 127.0.0.1:0, port: 8081}
  - {listen: 127.0.0.1:0, port: 8082}";
    config_of(node, ingress, extra)
}

fn config_of(node: &Node, ingress: &str, extra: &str) -> PathBuf {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = node.scratch().join(format!("shim-{number}.yaml"));
    let extra = with_room(extra);
    let text = format!(
        "ingress:{ingress}
http: {{listen: 127.0.0.1:0}}
log: {{format: json, level: debug}}
termination_log: {}
admin: {{socket: {}}}
{extra}",
        node.scratch().join("termination-log").display(),
        node.scratch().join(format!("admin-{number}.sock")).display()
    );
    std::fs::write(&path, text).unwrap();
    path
}
