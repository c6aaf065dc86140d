//! A Docker daemon for one test: its own socket and files, no network, nothing
//! of the machine's changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::tools;

pub struct Dockerd {
    child: Child,
    directory: TempDir,
}

impl Dockerd {
    /// Nothing, with the reason on stderr, where a daemon cannot run.
    pub fn start() -> Option<Dockerd> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: dockerd needs root");
            return None;
        }
        let tools = tools()?;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let log = fs::File::create(at("log")).unwrap();
        let child = Command::new("dockerd")
            .env("PATH", &tools.path)
            .env("LD_LIBRARY_PATH", &tools.libraries)
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(format!("unix://{}", at("docker.sock").display()))
            .args(["--storage-driver", "vfs", "--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .args(["--ip-forward=false", "--ip-masq=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                eprintln!("SKIPPED: dockerd cannot be started: {error}");
                return None;
            }
        };
        let mut daemon = Dockerd { child, directory };
        let started = Instant::now();
        while !daemon.docker(&["version"]).status.success() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                let log = fs::read_to_string(daemon.directory.path().join("log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                eprintln!("SKIPPED: dockerd cannot run here ({status}): {end:?}");
                return None;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "dockerd does not answer");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Some(daemon)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// As DOCKER_HOST has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn docker(&self, arguments: &[&str]) -> Output {
        self.docker_in(Path::new("/"), arguments)
    }

    pub fn docker_in(&self, directory: &Path, arguments: &[&str]) -> Output {
        let tools = tools().unwrap();
        Command::new(tools.directory.join("usr/bin/docker"))
            .env("PATH", &tools.path)
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_BUILDKIT", "1")
            .env("DOCKER_CONFIG", self.directory.path().join("client"))
            .current_dir(directory)
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Must succeed; gives what is printed.
    #[track_caller]
    pub fn run(&self, directory: &Path, arguments: &[&str]) -> String {
        let output = self.docker_in(directory, arguments);
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Dockerd {
    /// It ends its containerd as well.
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let started = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if started.elapsed() > Duration::from_secs(30) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}
