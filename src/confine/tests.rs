//! The limits are tried in processes of their own: this test program again,
//! told by a variable what to do. Nothing lifts them again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};

use super::*;

const ROLE: &str = "ENCLAVE_SHIM_TEST_CONFINED";

/// Runs the test `name` in a process that has the role.
fn in_a_process_of_its_own(name: &str, role: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("confine::tests::{name}"), "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{name} did not run: {text}");
}

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

#[test]
fn a_sealed_process_opens_no_file_runs_no_program_and_starts_no_process() {
    let name = "a_sealed_process_opens_no_file_runs_no_program_and_starts_no_process";
    if role().is_none() {
        return in_a_process_of_its_own(name, "sealed");
    }
    let before = probe();
    assert!(before.iter().any(|probe| probe.outcome == "done"), "nothing was allowed before: {before:?}");
    let witness = std::thread::spawn({
        let (told, heard) = std::sync::mpsc::channel::<()>();
        // Dropped after the seal: this thread was there before.
        SEALED.set(std::sync::Mutex::new(Some(told))).ok();
        move || {
            let _ = heard.recv();
            probe()
        }
    });
    set_no_new_privs().unwrap();
    syscalls::forbid().unwrap();
    SEALED.get().unwrap().lock().unwrap().take();
    for probes in [probe(), witness.join().unwrap()] {
        assert!(probes.iter().all(|probe| probe.outcome == Errno::EPERM.to_string()), "{probes:?}");
    }
    assert_eq!(Command::new("/bin/true").spawn().unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(setrlimit(Resource::RLIMIT_NOFILE, 10, 10), Err(Errno::EPERM));
    assert_eq!(nix::unistd::unlink("/nonexistent"), Err(Errno::EPERM));
    assert_eq!(std::fs::metadata("/").unwrap_err().raw_os_error(), Some(libc::EPERM));
    // What serving needs goes on.
    assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
}

static SEALED: std::sync::OnceLock<std::sync::Mutex<Option<std::sync::mpsc::Sender<()>>>> =
    std::sync::OnceLock::new();

#[test]
fn before_the_launch_only_its_files_can_be_opened_and_no_right_comes_back() {
    let name = "before_the_launch_only_its_files_can_be_opened_and_no_right_comes_back";
    let Some(directory) = role().map(PathBuf::from) else {
        let directory = tempfile::tempdir().unwrap();
        for file in ["app.eif", "device", "other"] {
            std::fs::write(directory.path().join(file), file).unwrap();
        }
        return in_a_process_of_its_own(name, directory.path().to_str().unwrap());
    };
    let config =
        Config { eif: directory.join("app.eif"), device: directory.join("device"), ..Config::default() };
    let other = directory.join("other");
    assert!(File::open(&other).is_ok());
    let confinement = limit(&config);
    assert!(confinement.no_new_privileges);
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(status.lines().any(|line| line == "NoNewPrivs:\t1"), "{status}");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let kept: u64 = KEPT.iter().map(Capability::bitmask).sum();
    assert_eq!(u64::from_str_radix(effective, 16).unwrap() & !kept, 0, "{effective}");
    assert!(File::open(&config.eif).is_ok());
    assert!(crate::enclave::session::Session::new(nitro_device::Cid::try_from(16u32).unwrap()).is_ok());
    assert!(File::options().read(true).write(true).open(&config.device).is_ok());
    if confinement.files == "missing" {
        return println!("SKIPPED: this kernel has no landlock, files are not limited here");
    }
    let refused = |path: &Path| File::open(path).unwrap_err().kind() == std::io::ErrorKind::PermissionDenied;
    assert!(refused(&other) && refused(Path::new("/etc/passwd")), "{confinement:?}");
    assert!(File::options().write(true).open(&config.eif).is_err(), "the image can be written");
    assert!(File::create(directory.join("new")).is_err(), "a file can be made");
    assert!(std::fs::remove_file(&other).is_err(), "a file can be removed");
}

#[test]
fn without_the_sandbox_nothing_is_limited_and_that_is_said() {
    let config = Config { sandbox: false, ..Config::default() };
    assert_eq!(limit(&config).files, "off");
    seal(&config);
    assert!(File::open("/proc/self/status").is_ok());
}

#[test]
fn the_pods_profile_allows_what_the_shim_needs_before_and_after_it_is_sealed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/seccomp/enclave-shim.json");
    let profile: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let rules = profile["syscalls"].as_array().unwrap();
    let whatever = rules.iter().filter(|rule| rule["args"].is_null() && rule["action"] == "SCMP_ACT_ALLOW");
    let allowed: Vec<&str> = whatever
        .flat_map(|rule| rule["names"].as_array().unwrap().iter().filter_map(serde_json::Value::as_str))
        .collect();
    let sealed = include_str!("syscalls.rs").split("libc::SYS_").skip(1);
    let sealed =
        sealed.map(|rest| rest.split(|char: char| !char.is_alphanumeric() && char != '_').next().unwrap());
    let limits =
        ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp", "capset"];
    let launch = ["openat", "ioctl", "mbind", "madvise", "pread64", "execve"];
    // Both have rules of their own: threads only, and "not here" so that libc takes clone.
    for name in sealed.chain(limits).chain(launch).filter(|name| !["clone", "clone3"].contains(name)) {
        assert!(allowed.contains(&name), "the profile does not allow {name}");
    }
}
