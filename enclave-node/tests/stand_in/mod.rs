//! A node made of files, our plugin as a process, and kubelet's stand-ins on
//! other gRPC stacks: `peers/go` (grpc-go, as kubelet) and `peers/kubelet.py`
//! (gRPC's C core). Waiting is for an event or a condition, with a deadline.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is the test's")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub const ENCLAVES: &str = "aws.ec2.nitro/nitro_enclaves";
pub const CPUS: &str = "aws.ec2.nitro/nitro_enclaves_cpus";
const DEADLINE: Duration = Duration::from_secs(30);

/// A node with 8 CPUs in the pool, in cores of two on NUMA node 1, and 1 GiB of pages.
pub struct Node {
    directory: TempDir,
}

impl Node {
    pub fn new() -> Node {
        let node = Node { directory: TempDir::with_prefix("node-").unwrap() };
        fs::create_dir_all(node.plugins()).unwrap();
        node.write("dev/nitro_enclaves", "");
        node.pool("2-9");
        node.write("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1\n");
        for cpu in 0..12 {
            fs::create_dir_all(node.path(&format!("sys/devices/system/cpu/cpu{cpu}/node1"))).unwrap();
        }
        node.pages(512);
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn plugins(&self) -> PathBuf {
        self.path("plugins")
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// As the allocator does it.
    pub fn pool(&self, cpus: &str) {
        self.write("sys/module/nitro_enclaves/parameters/ne_cpus", cpus);
    }

    /// Pages of 2 MiB on NUMA node 1.
    pub fn pages(&self, count: u32) {
        let file = "sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
        self.write(file, &format!("{count}\n"));
    }
}

/// `enclave-node device-plugin` with both resources.
pub struct Plugin {
    child: Child,
    log: Receiver<String>,
}

impl Plugin {
    /// Looks at the node every hour, unless told of a change.
    pub fn start(node: &Node) -> Plugin {
        Plugin::start_with(node, &["--recheck", "3600"])
    }

    pub fn start_with(node: &Node, flags: &[&str]) -> Plugin {
        let mut child = Command::new(env!("CARGO_BIN_EXE_enclave-node"))
            .arg("device-plugin")
            .arg("--plugin-dir")
            .arg(node.plugins())
            .arg("--sysfs")
            .arg(node.path("sys"))
            .arg("--dev")
            .arg(node.path("dev"))
            .args(["--enclave-cpu-advertisement", "--metrics-listen", "127.0.0.1:0"])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = lines(child.stderr.take().unwrap());
        Plugin { child, log }
    }

    /// The rest of the first line of the log that has `marker`, after it.
    pub fn logged(&self, marker: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let line = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("{marker:?} was not logged"));
            if let Some((_, rest)) = line.split_once(marker) {
                return rest.to_owned();
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        within(DEADLINE, "the plugin ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Resident memory in KiB, now and at most.
    pub fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the plugin's log ---");
            self.log.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A gRPC stack that plays kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    Go,
    Python,
}

impl Stack {
    /// Those that this machine has; a missing one is reported loudly.
    pub fn available() -> Vec<Stack> {
        static AVAILABLE: OnceLock<Vec<Stack>> = OnceLock::new();
        let prepare = || {
            let mut stacks = Vec::new();
            for (stack, outcome) in [(Stack::Go, build_go()), (Stack::Python, build_python())] {
                match outcome {
                    Ok(()) => stacks.push(stack),
                    Err(missing) => eprintln!("SKIPPED: no kubelet stand-in on {stack:?}: {missing}"),
                }
            }
            stacks
        };
        AVAILABLE.get_or_init(prepare).clone()
    }

    fn command(self) -> Command {
        match self {
            Stack::Go => Command::new(target("kubelet-go")),
            Stack::Python => {
                let mut command = Command::new(target("kubelet-python/bin/python"));
                command.arg(peers().join("kubelet.py"));
                command
            }
        }
    }
}

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

fn target(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn run(command: &mut Command, need: &str) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{need}: {error}"))?;
    let text = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{need}: {}", text())) }
}

fn build_go() -> Result<(), String> {
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(target("kubelet-go")).arg(".").current_dir(peers().join("go"));
    build.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode").env("GOCACHE", target("go-cache"));
    run(&mut build, "needs Debian's golang-go and golang-google-grpc-dev")
}

fn build_python() -> Result<(), String> {
    let (home, api) = (target("kubelet-python"), target("kubelet-python/api"));
    let python = home.join("bin/python");
    let has_grpc = ["-c", "import grpc, grpc_tools"];
    if run(Command::new(&python).args(has_grpc), "").is_err() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home), "needs python3-venv")?;
        let install = ["-m", "pip", "install", "--quiet", "grpcio==1.*", "grpcio-tools==1.*"];
        run(Command::new(&python).args(install), "needs PyPI's grpcio and grpcio-tools")?;
    }
    fs::create_dir_all(&api).map_err(|error| error.to_string())?;
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device_plugin/api");
    let mut generate = Command::new(&python);
    generate.args(["-m", "grpc_tools.protoc", "-I"]).arg(&proto);
    for kind in ["python_out", "grpc_python_out"] {
        generate.arg(format!("--{kind}={}", api.display()));
    }
    run(generate.arg("v1beta1.proto"), "grpc_tools.protoc fails")
}

/// How a stand-in behaves.
pub struct Manners {
    /// `:authority` of its calls: `localhost`, or `path` as kubelets before 1.26.
    pub authority: &'static str,
    /// Registrations that it refuses at first.
    pub refusals: u32,
    /// Whether it removes every socket when it starts, or only its own.
    pub empties: bool,
}

impl Default for Manners {
    fn default() -> Manners {
        Manners { authority: "localhost", refusals: 0, empties: true }
    }
}

/// A kubelet of one stack. Dropped, it dies as by SIGKILL.
pub struct Kubelet {
    child: Child,
    orders: ChildStdin,
    events: Receiver<String>,
}

impl Kubelet {
    /// Empties the plugin directory and listens.
    pub fn start(stack: Stack, node: &Node) -> Kubelet {
        Kubelet::start_with(stack, node, &Manners::default())
    }

    pub fn start_with(stack: Stack, node: &Node, manners: &Manners) -> Kubelet {
        let mut command = stack.command();
        command.arg(node.plugins());
        if stack == Stack::Python {
            command.arg(target("kubelet-python/api"));
        }
        let (refusals, empties) = (manners.refusals.to_string(), manners.empties.to_string());
        command.args([manners.authority, &refusals, &empties]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, events) = (child.stdin.take().unwrap(), lines(child.stdout.take().unwrap()));
        let kubelet = Kubelet { child, orders, events };
        kubelet.event("listening", |_| true);
        kubelet
    }

    /// The next event called `name` that fits; others are passed over.
    pub fn event(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut passed = Vec::new();
        loop {
            let line = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("no {name:?} that fits, only {passed:#?}"));
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["event"] == name && fits(&event) {
                return event;
            }
            passed.push(line);
        }
    }

    /// Waits until both resources are registered and their devices known.
    pub fn knows_both(&self) {
        let mut missing = vec![ENCLAVES, CPUS];
        while !missing.is_empty() {
            let event = self.event("devices", |_| true);
            missing.retain(|resource| event["resource"] != **resource);
        }
    }

    /// The first device list of `resource` that fits.
    pub fn devices(&self, resource: &str, fits: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let list = |event: &Value| event["devices"].as_array().cloned().unwrap();
        let event = self.event("devices", |event| event["resource"] == resource && fits(&list(event)));
        list(&event)
    }

    /// Waits until the newest lists of both resources fit: enclaves, CPUs.
    pub fn both(&self, fits: impl Fn(&[Value]) -> bool) -> [Vec<Value>; 2] {
        let mut newest = [None, None];
        loop {
            let event = self.event("devices", |_| true);
            let list = event["devices"].as_array().cloned().unwrap();
            newest[usize::from(event["resource"] == CPUS)] = Some(list).filter(|list| fits(list));
            if let [Some(enclaves), Some(cpus)] = &newest {
                return [enclaves.clone(), cpus.clone()];
            }
        }
    }

    /// Gives an order and returns the `answer`, or the failure's code.
    pub fn order(&mut self, order: &str, answer: &str) -> Result<Value, String> {
        writeln!(self.orders, "{order}").unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let line = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let event: Value = serde_json::from_str(&line.expect(order)).unwrap();
            match event["event"].as_str() {
                Some(name) if name == answer => return Ok(event),
                Some("failed") => return Err(event["code"].as_str().unwrap().to_owned()),
                _ => {}
            }
        }
    }

    /// Gives an order that has no answer.
    pub fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ids of a device list.
pub fn ids(devices: &[Value]) -> Vec<&str> {
    devices.iter().map(|device| device["id"].as_str().unwrap()).collect()
}

/// Whether there are devices and all have this health.
pub fn all(devices: &[Value], health: &str) -> bool {
    !devices.is_empty() && devices.iter().all(|device| device["health"] == health)
}

/// Polls `condition` until it holds; `what` is said when it never does.
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn lines(stream: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
