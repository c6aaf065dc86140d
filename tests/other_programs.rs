//! Promise: programs of other hands, unmodified, launch our images, and our shim
//! launches theirs. scripts/test-machines.sh builds them, names them and runs
//! this on both engines.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use machine::{Image, Node, Shim, python, within};
use serde_json::Value;

/// A boot under emulation, beside others.
const SOON: Duration = Duration::from_secs(60);

/// The directory or program that a variable names; says loudly why nothing is tested.
macro_rules! need {
    ($variable:literal) => {
        match std::env::var_os($variable) {
            Some(path) => PathBuf::from(path),
            None => {
                eprintln!("SKIPPED {}: {} is not set (scripts/test-machines.sh)", module_path!(), $variable);
                return;
            }
        }
    };
}

/// nitro-cli with directories of its own.
struct NitroCli<'a> {
    node: &'a Node,
    program: PathBuf,
}

impl NitroCli<'_> {
    fn new(node: &Node, program: PathBuf) -> NitroCli<'_> {
        for directory in ["sockets", "logs"] {
            std::fs::create_dir(node.scratch().join(directory)).unwrap();
        }
        NitroCli { node, program }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.command(&self.program);
        command
            .args(arguments)
            .env("NITRO_CLI_SOCKETS_PATH", self.node.scratch().join("sockets"))
            .env("NITRO_CLI_LOGS_PATH", self.node.scratch().join("logs"))
            .stdin(Stdio::null());
        command
    }

    /// What it prints on stdout. Files, because the process that it leaves behind
    /// would keep a pipe open.
    fn json(&self, arguments: &[&str]) -> Value {
        let [printed, told] = ["stdout", "stderr"].map(|name| self.node.scratch().join(name));
        let status = self
            .command(arguments)
            .stdout(File::create(&printed).unwrap())
            .stderr(File::create(&told).unwrap())
            .status()
            .unwrap();
        let [printed, told] = [printed, told].map(|path| std::fs::read_to_string(path).unwrap());
        assert!(status.success(), "{arguments:?}: {status}\n{printed}\n{told}");
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}\n{told}"))
    }
}

/// A program whose stdout goes to a file; killed at the end.
struct Follower {
    child: Child,
    path: PathBuf,
}

impl Follower {
    fn start(mut command: Command, path: PathBuf) -> Follower {
        let file = File::create(&path).unwrap();
        command.stdin(Stdio::null()).stderr(file.try_clone().unwrap()).stdout(file);
        Follower { child: command.spawn().unwrap(), path }
    }

    fn printed(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.path).unwrap()).into_owned()
    }

    #[track_caller]
    fn until_printed(&mut self, words: &str) {
        within(SOON, words, || {
            let printed = self.printed().contains(words);
            let ended = self.child.try_wait().unwrap();
            assert!(printed || ended.is_none(), "ended ({ended:?}) before {words:?}:\n{}", self.printed());
            printed
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.path.display(), self.printed());
        }
    }
}

/// The page of examples/hello, asked for over vsock from the node.
fn page(node: &Node, cid: u64) -> String {
    let script = format!(
        "import socket\ns = socket.socket(40, 1)\ns.connect(({cid}, 8080))\n\
         s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')\nprint(s.makefile().read())"
    );
    let output = node.command(&python()).arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn nitro_cli_runs_describes_follows_and_terminates_our_image() {
    let tools = need!("AWS_TOOLS");
    let node = Node::new();
    let image = Image::hello(&node);
    let cli = NitroCli::new(&node, tools.join("nitro-cli"));
    // It wants four times the image.
    let mib = (4 * std::fs::metadata(&image.path).unwrap().len()).div_ceil(2 << 20) * 2 + 2;
    let memory = mib.max(128).to_string();
    let eif = image.path.to_str().unwrap();
    let run = cli.json(&[
        "run-enclave",
        "--eif-path",
        eif,
        "--cpu-count",
        "2",
        "--memory",
        &memory,
        "--debug-mode",
        "--enclave-name",
        "ours",
    ]);
    assert_eq!((&run["EnclaveName"], &run["NumberOfCPUs"]), (&"ours".into(), &2.into()), "{run}");
    let cid = run["EnclaveCID"].as_u64().unwrap();
    assert_eq!(node.running(), [cid]);
    assert!(page(&node, cid).starts_with("HTTP/1.1 200"));

    let described = cli.json(&["describe-enclaves"]);
    let described = &described.as_array().unwrap()[0];
    assert_eq!(described["EnclaveID"], run["EnclaveID"]);
    assert_eq!((&described["State"], &described["Flags"]), (&"RUNNING".into(), &"DEBUG_MODE".into()));
    for pcr in ["PCR0", "PCR1", "PCR2"] {
        assert_eq!(described["Measurements"][pcr], image.measurements[pcr], "{pcr}");
    }

    let mut console =
        Follower::start(cli.command(&["console", "--enclave-name", "ours"]), node.scratch().join("console"));
    console.until_printed("hello: listening");

    let terminated = cli.json(&["terminate-enclave", "--enclave-name", "ours"]);
    assert_eq!(terminated["Terminated"], true, "{terminated}");
    within(SOON, "the console ends with the enclave", || console.child.try_wait().unwrap().is_some());
    assert!(node.running().is_empty());
    assert_eq!(cli.json(&["describe-enclaves"]), Value::Array(Vec::new()));
}

#[test]
fn qemus_nitro_accelerator_launches_our_image() {
    let qemu = need!("FAKENITRO_QEMU");
    let node = Node::new();
    let image = Image::hello(&node);
    let mut command = node.command(&qemu);
    command
        .args(["-M", "nitro", "-accel", "nitro,debug-mode=on,enclave-cid=33", "-nographic"])
        .args(["-smp", "2", "-m", "256M", "-kernel"])
        .arg(&image.path);
    let mut launcher = Follower::start(command, node.scratch().join("qemu"));
    launcher.until_printed("hello: listening");
    assert_eq!(node.running(), [33]);
    assert!(page(&node, 33).starts_with("HTTP/1.1 200"));
    drop(launcher);
    within(SOON, "the enclave ends with its launcher", || node.running().is_empty());
}

/// The image's own parts, put together again by AWS's builder.
#[test]
fn our_shim_launches_what_eif_build_wrote_and_both_measure_the_same() {
    let tools = need!("AWS_TOOLS");
    let node = Node::new();
    let ours = Image::hello(&node);
    let parts = eif::Image::read(File::open(&ours.path).unwrap()).unwrap();
    let mut command = Command::new(tools.join("eif_build"));
    let path = node.scratch().join("theirs.eif");
    command.arg("--kernel").arg(machine::image::kernel()).arg("--cmdline");
    command.arg(String::from_utf8(parts.cmdline().unwrap()).unwrap()).arg("--output").arg(&path);
    command.args(["--name", "theirs", "--version", "1"]);
    for (number, section) in parts.layout().ramdisks().enumerate() {
        let ramdisk = node.scratch().join(format!("ramdisk-{number}"));
        std::io::copy(&mut parts.reader(section), &mut File::create(&ramdisk).unwrap()).unwrap();
        command.arg("--ramdisk").arg(ramdisk);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // After a line about the file.
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let measured: Value = serde_json::from_str(printed.trim_start_matches(|first| first != '{')).unwrap();
    for pcr in ["PCR0", "PCR1", "PCR2"] {
        assert_eq!(measured[pcr], ours.measurements[pcr], "{pcr}: {measured}");
    }
    let theirs = Image { path, measurements: measured };
    let mut shim = Shim::start(&node, &theirs);
    shim.ready();
    assert_eq!(shim.get("/").status, 200);
    shim.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(shim.exit_code(SOON), 0, "{}", shim.log());
}
