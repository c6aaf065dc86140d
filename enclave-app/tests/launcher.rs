//! Promise: the launcher gives a workload its own root and a container's
//! rights, and says why when it cannot. The real program, in namespaces of its
//! own; no enclave is needed. The workload is the system's shell.

#![allow(clippy::unwrap_used)] // what a test needs and does not have ends it

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// What came of one launch.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    /// What the launcher told the agent; empty once it is the workload.
    report: String,
}

/// An image's root filesystem that holds a shell and its libraries.
struct Image {
    directory: TempDir,
}

impl Image {
    fn new() -> Image {
        let image = Image { directory: TempDir::new().unwrap() };
        for directory in ["bin", "etc", "tmp", "run"] {
            std::fs::create_dir_all(image.root().join(directory)).unwrap();
        }
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        std::fs::copy(&shell, image.root().join("bin/sh")).unwrap();
        for library in libraries(&shell) {
            let target = image.root().join(library.strip_prefix("/").unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(&library, target).unwrap();
        }
        let users = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
        std::fs::write(image.root().join("etc/passwd"), users).unwrap();
        std::fs::write(image.root().join("etc/group"), "app:x:1001:\naudio:x:29:app\n").unwrap();
        image
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("workload/rootfs")
    }

    /// No agent runs here, whose socket could be given away.
    fn write_settings(&self, settings: &Value) -> PathBuf {
        let mut settings = settings.clone();
        settings.as_object_mut().unwrap().entry("nsm").or_insert(json!("none"));
        let path = self.directory.path().join("workload/settings.json");
        std::fs::write(&path, settings.to_string()).unwrap();
        path
    }

    /// Runs `script` in the workload's root; `settings` adds to the defaults.
    fn run(&self, script: &str, settings: Value) -> Outcome {
        let mut all = json!({"argv": ["/bin/sh", "-c", script]});
        all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let settings = self.write_settings(&all);
        outcome(
            Command::new("unshare")
                .args(["--mount", "--pid", "--fork", "--mount-proc"])
                .arg(env!("CARGO_BIN_EXE_enclave-app"))
                .arg("launch-workload")
                .arg(settings)
                .arg(self.root()),
        )
    }
}

fn outcome(command: &mut Command) -> Outcome {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let output = command.stdin(Stdio::from(OwnedFd::from(writer))).stderr(Stdio::inherit()).output().unwrap();
    // The command holds the other writing end until it is dropped or replaced.
    command.stdin(Stdio::null());
    let mut report = String::new();
    reader.read_to_string(&mut report).unwrap();
    Outcome { code: output.status.code(), stdout: String::from_utf8(output.stdout).unwrap(), report }
}

/// As the dynamic loader lists them; none for a static program.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// The launcher changes mounts, users and capabilities.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: the launcher's tests need root");
    }
    root
}

#[test]
fn user_groups_environment_and_working_directory_are_the_image_s() {
    if !is_root() {
        return;
    }
    let script = r#"
        while read -r name values; do case $name in Uid:|Gid:|Groups:) echo $name $values;; esac; done </proc/self/status
        pwd; echo "$HOME $COLOUR $PATH"; umask; echo /proc/self/fd/*"#;
    let settings = json!({"user": "app", "workdir": "/srv/data", "env": ["COLOUR=red", "COLOUR=dark green"]});
    let found = Image::new().run(script, settings);
    let lines: Vec<&str> = found.stdout.lines().collect();
    assert_eq!(
        lines[..4],
        ["Uid: 1000 1000 1000 1000", "Gid: 1001 1001 1001 1001", "Groups: 29", "/srv/data"]
    );
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines[4], format!("/home/app dark green {path}"));
    assert_eq!(lines[5], "0022");
    // 3 is the directory that the shell lists.
    assert_eq!(lines[6], "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3");
    assert_eq!((found.code, found.report.as_str()), (Some(0), ""));
}

#[test]
fn rights_are_a_container_s_without_mknod_also_for_uid_0() {
    if !is_root() {
        return;
    }
    let script = r#"while read -r name value; do case $name in Cap*|NoNewPrivs:|Seccomp:|SigIgn:) echo $name $value;; esac; done </proc/self/status"#;
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT AUDIT_WRITE SETFCAP
    let granted = "00000000a00425fb";
    let none = "0000000000000000";
    for (user, own) in [("0", granted), ("app", none)] {
        let found = Image::new().run(script, json!({"user": user}));
        let (ignored, rights) = found.stdout.split_once('\n').unwrap();
        let ignored = u64::from_str_radix(ignored.strip_prefix("SigIgn: ").unwrap(), 16).unwrap();
        // Others may be ignored by whoever runs the tests; this one, by every Rust program.
        assert_eq!(ignored & (1 << (libc::SIGPIPE - 1)), 0, "SIGPIPE must end a workload");
        let expected = format!(
            "CapInh: {none}\nCapPrm: {own}\nCapEff: {own}\nCapBnd: {granted}\nCapAmb: {none}\nNoNewPrivs: 1\nSeccomp: 2\n"
        );
        assert_eq!(rights, expected, "{user}: {}", found.report);
    }
}

#[test]
fn the_root_holds_no_device_of_the_enclave_and_cannot_change_the_kernel() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    let script = r#"
        echo /dev/*; echo hidden >/dev/null
        (echo x >/proc/sys/kernel/core_pattern) 2>/dev/null || echo core_pattern refused
        (echo x >/sys/kernel/profiling) 2>/dev/null || echo sysfs refused
        (echo x >/tmp/file) && (echo x >/run/file) && echo scratch works
        test -e /workload || echo nothing behind
        while read -r id parent device root point rest; do echo "$point"; done </proc/self/mountinfo"#;
    let found = image.run(script, json!({}));
    let lines: Vec<&str> = found.stdout.lines().collect();
    for device in lines[0].split(' ') {
        let name = device.strip_prefix("/dev/").unwrap();
        let known = "console fd full null ptmx pts random shm stderr stdin stdout tty urandom zero";
        assert!(known.split(' ').any(|known| known == name), "{device}");
    }
    assert_eq!(lines[1..5], ["core_pattern refused", "sysfs refused", "scratch works", "nothing behind"]);
    for point in &lines[5..] {
        let inside = ["/dev", "/proc", "/sys", "/tmp", "/run"].iter().any(|top| point.starts_with(top));
        assert!(*point == "/" || inside, "{point} is left of the old root");
    }
    assert!(!image.root().join("tmp/file").exists(), "/tmp is not the image's own");
}

#[test]
fn what_the_image_has_in_its_scratch_directories_stays() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    std::fs::create_dir(image.root().join("run/server")).unwrap();
    let found = image.run("test -d /run/server && echo there", json!({}));
    assert_eq!(found.stdout, "there\n", "{}", found.report);
}

/// As in a kernel's initial filesystem, which has no parent to be put into: a
/// root whose parent is a shared mount is refused in the same way.
#[test]
fn a_root_that_cannot_be_pivoted_is_covered() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    let script = "test -e /workload || test -e /../workload || echo covered; read -r line </proc/1/status && echo $line";
    image.write_settings(&json!({"argv": ["/bin/sh", "-c", script]}));
    let enclave = image.directory.path();
    std::fs::copy(env!("CARGO_BIN_EXE_enclave-app"), enclave.join("init")).unwrap();
    let prepare = r#"
        set -e; mount --make-shared /; mount --bind "$1" "$1"; cd "$1"; mkdir proc sys dev
        mount -t proc proc proc; mount -t sysfs sysfs sys; mount --rbind /dev dev
        exec chroot . /init launch-workload /workload/settings.json /workload/rootfs"#;
    let found = outcome(
        Command::new("unshare").args(["--mount", "--pid", "--fork", "sh", "-c", prepare, "sh"]).arg(enclave),
    );
    assert_eq!(found.report, "");
    assert_eq!(found.stdout, "covered\nName: sh\n");
}

#[test]
fn failures_are_told_with_a_shell_s_code() {
    if !is_root() {
        return;
    }
    let image = Image::new();
    std::fs::write(image.root().join("plain"), "no program").unwrap();
    for (settings, code, cause) in [
        (json!({"argv": ["/gone"]}), 127, "program \"/gone\" is not in the image"),
        (json!({"argv": ["gone"], "env": ["PATH=/bin"]}), 127, "looked in /bin"),
        (json!({"argv": ["/plain"]}), 126, "cannot execute \"/plain\": Permission denied"),
        (json!({"user": "nobody"}), 125, "user \"nobody\" is not in the image's /etc/passwd"),
        (json!({"workdir": "/etc/passwd"}), 125, "cannot enter the working directory /etc/passwd"),
    ] {
        let found = image.run("exit 0", settings.clone());
        assert_eq!(found.code, Some(code), "{settings}: {}", found.report);
        assert!(found.report.contains(cause), "{settings}: {}", found.report);
    }
    std::fs::set_permissions(image.root().join("plain"), PermissionsExt::from_mode(0o755)).unwrap();
    // Made by the launches before.
    std::fs::remove_dir(image.root().join("dev")).unwrap();
    symlink("/tmp", image.root().join("dev")).unwrap();
    let found = image.run("exit 0", json!({}));
    assert_eq!(found.code, Some(125));
    assert!(found.report.contains("dev is a symbolic link or no directory"), "{}", found.report);
}

#[test]
fn without_being_pid_1_the_agent_does_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_enclave-app")).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("runs only as PID 1"));
}
