//! What the emulator's tests share: a node of their own, images, huge pages.
#![allow(dead_code)] // every test file uses its own part
#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eif::cpio::{Entry, Writer};
use eif::writer::WriteError;
use eif::{Architecture, ImageWriter, Measurements, Metadata};
use tempfile::TempDir;

/// The program under test.
pub const FAKENITRO: &str = env!("CARGO_BIN_EXE_fakenitro");

/// Says loudly why nothing is tested, unless everything is there.
#[macro_export]
macro_rules! need {
    ($($program:literal),*) => {
        if let Some(missing) = $crate::support::missing(&[$($program),*]) {
            eprintln!("SKIPPED {}: {missing}", module_path!());
            return;
        }
    };
}

/// What a test needs and does not have.
pub fn missing(programs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    let runs = |name: &&&str| {
        Command::new(name).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    };
    programs.iter().find(runs).map(|name| format!("{name} is not installed"))
}

/// What the qemu engine needs and does not have.
pub fn missing_machine() -> Option<String> {
    let named = |name: &str| std::env::var_os(name).is_none().then(|| format!("{name} is not set"));
    missing(&["python3"]).or_else(|| named("FAKENITRO_QEMU")).or_else(|| named("ENCLAVE_KERNEL"))
}

/// A node with a directory of its own.
pub struct Node {
    pub dir: TempDir,
    options: Vec<String>,
}

impl Node {
    pub fn new(options: &[&str]) -> Node {
        Node {
            dir: TempDir::with_prefix("fakenitro-").unwrap(),
            options: options.iter().map(|o| o.to_string()).collect(),
        }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// `program` on this node.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(FAKENITRO);
        command.arg("--state").arg(self.state()).args(&self.options).arg("--").arg(program);
        command
    }

    /// A Python program on this node, to its end.
    pub fn python(&self, program: &str, arguments: &[&str]) -> Output {
        self.command("python3").arg("-c").arg(program).args(arguments).output().unwrap()
    }

    /// Asks the node.
    pub fn ask(&self, question: &[&str]) -> Output {
        Command::new(FAKENITRO).arg("--state").arg(self.state()).args(question).output().unwrap()
    }

    /// Asks the node something that it answers in JSON.
    pub fn json(&self, question: &[&str]) -> serde_json::Value {
        serde_json::from_slice(&self.ask(question).stdout).unwrap()
    }

    pub fn status(&self) -> serde_json::Value {
        self.json(&["status"])
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.state().join("fakenitro.log")).unwrap_or_default()
    }

    /// Launches an image with tests/programs/launch.py.
    pub fn launch(&self, image: &Path, options: &[&str]) -> Launched {
        let mut command = self.command("python3");
        command.arg(program("launch.py")).arg(image).args(options).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Launched { child, lines }
    }
}

impl Drop for Node {
    /// Nothing may be left: no process that names the directory, no socket name.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- node log ---\n{}", self.log());
            return;
        }
        let needle = self.dir.path().display().to_string();
        within("the node's processes end", || processes_naming(&needle).is_empty());
        if let Ok(meta) = fs::metadata(self.state()) {
            let name = format!("@fakenitro/{:x}-{:x}/", meta.dev(), meta.ino());
            within("its names are free", || !fs::read_to_string("/proc/net/unix").unwrap().contains(&name));
        }
    }
}

/// A launcher and its enclave.
pub struct Launched {
    pub child: Child,
    lines: BufReader<ChildStdout>,
}

impl Launched {
    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The CID, which is the first line.
    pub fn cid(&mut self) -> u32 {
        let line = self.line();
        line.strip_prefix("cid ").unwrap_or_else(|| panic!("no CID but {line:?}")).parse().unwrap()
    }

    /// Everything else until its end.
    pub fn rest(mut self) -> String {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).unwrap();
        self.child.wait().unwrap();
        text
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of tests/programs.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// An image whose /init is examples/probe_init with this script.
pub fn probe_image(dir: &Path, script: &str) -> (PathBuf, Measurements) {
    let init = Path::new(FAKENITRO).with_file_name("examples").join("probe_init");
    let init = fs::read(&init).unwrap_or_else(|error| panic!("{}: {error}", init.display()));
    image(dir, &[&[("init", 0o100755, &init)], &[("probe", 0o100644, script.as_bytes())]])
}

/// The same with the kernel that ENCLAVE_KERNEL names, which boots.
pub fn bootable_probe_image(dir: &Path, script: &str) -> (PathBuf, Measurements) {
    let init = Path::new(FAKENITRO).with_file_name("examples").join("probe_init");
    let init = fs::read(&init).unwrap_or_else(|error| panic!("{}: {error}", init.display()));
    let kernel = fs::read(std::env::var_os("ENCLAVE_KERNEL").unwrap()).unwrap();
    let cmdline = "console=ttyS0 quiet reboot=k panic=1 pci=off nomodules";
    let script: &[(&str, u32, &[u8])] = &[("probe", 0o100644, script.as_bytes())];
    image_with(dir, (&kernel, cmdline), &[&[("init", 0o100755, &init)], script])
}

/// An image of these ramdisks; entries are name, mode and data, in order.
pub fn image(dir: &Path, ramdisks: &[&[(&str, u32, &[u8])]]) -> (PathBuf, Measurements) {
    image_with(dir, (b"a kernel", "console=ttyS0"), ramdisks)
}

fn image_with(
    dir: &Path,
    (bytes, cmdline): (&[u8], &str),
    ramdisks: &[&[(&str, u32, &[u8])]],
) -> (PathBuf, Measurements) {
    let path = dir.join("image.eif");
    let kernel = dir.join("kernel");
    fs::write(&kernel, bytes).unwrap();
    let output = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let metadata = Metadata::from_json(METADATA.as_bytes()).unwrap();
    let mut kernel = File::open(&kernel).unwrap();
    let mut image =
        ImageWriter::create(output, Architecture::X86_64, &mut kernel, cmdline, &metadata).unwrap();
    for entries in ramdisks {
        image
            .generate_ramdisk::<WriteError>(|output| {
                let mut archive = Writer::new(output);
                for (name, mode, data) in *entries {
                    let entry = Entry {
                        name: name.as_bytes(),
                        mode: *mode,
                        uid: 0,
                        gid: 0,
                        inode: 1,
                        links: 1,
                        device: (0, 0),
                        size: data.len() as u32,
                    };
                    archive.append(&entry, &mut &data[..]).unwrap();
                }
                archive.finish().unwrap();
                Ok(())
            })
            .unwrap();
    }
    let (_, measurements) = image.finish().unwrap();
    (path, measurements)
}

const METADATA: &str = r#"{"ImageName":"probe","ImageVersion":"1","BuildMetadata":{"BuildTime":"1970-01-01T00:00:00Z",
"BuildTool":"test","BuildToolVersion":"1","OperatingSystem":"none","KernelVersion":"none"},"DockerInfo":null,"CustomMetadata":null}"#;

/// Huge pages of 2 MiB for one test at a time; what had to be added is given back when dropped.
pub struct HugePages {
    before: Option<u64>,
    _turn: MutexGuard<'static, ()>,
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
static TURN: Mutex<()> = Mutex::new(());

impl HugePages {
    pub fn reserve(mib: u64) -> HugePages {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |path: &str| -> u64 { fs::read_to_string(path).unwrap().trim().parse().unwrap() };
        if read(FREE) >= mib / 2 {
            return HugePages { before: None, _turn: turn };
        }
        let before = read(POOL);
        fs::write(POOL, (before + mib / 2).to_string()).unwrap();
        assert_eq!(read(POOL), before + mib / 2, "the kernel has no {mib} MiB of huge pages to give");
        HugePages { before: Some(before), _turn: turn }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            let _ = fs::write(POOL, before.to_string());
        }
    }
}

/// Longer than an emulated boot takes beside others.
const PATIENCE: Duration = Duration::from_secs(60);

/// Polls a condition; fails the test after [`PATIENCE`].
#[track_caller]
pub fn within(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Processes whose arguments name `needle`.
pub fn processes_naming(needle: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok_and(|pid| pid != std::process::id()))
        })
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|arguments| String::from_utf8_lossy(&arguments).replace('\0', " "))
        .filter(|arguments| arguments.contains(needle))
        .collect()
}

/// What a program printed, after checking that it succeeded.
#[track_caller]
pub fn printed(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}
