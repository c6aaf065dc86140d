//! Starts a pod's container with runc, under fakenitro from outside: the
//! container inherits the node's filter, whatever namespaces it gets.
//!
//! ```text
//! test ─▶ sandbox: namespaces of mounts and network, veth to the host
//!   └──▶ nsenter ─▶ fakenitro ─▶ runc run ─▶ container
//! ```
//! Docs: docs/emulator.md, *Containers*. The sandbox cleans up when its input
//! closes, so also after a test that was killed.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::client::{self, Answer};
use super::pod::{DEVICE_GROUP, Pod};
use super::{Node, Shim, unique_number};

/// Gives runc all controllers of a machine of the first cgroup version, on
/// which hugetlb may be nowhere or with the second; where all are of the second
/// there is nothing to do. A hierarchy goes back only when nothing lies in it.
const SANDBOX: &str = r#"
pidfile=$1 group=$2
mount --make-rslave /
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ] && ! [ -d /sys/fs/cgroup/hugetlb ]; then
    # Other tests use it where it is: one after the other.
    exec 9>/run/lock/enclave-shim-hugetlb && flock -s 9
    all=$(mktemp -d) && mount -t tmpfs groups "$all"
    for one in /sys/fs/cgroup/*; do
        [ -d "$one" ] && ! [ -L "$one" ] && mkdir "$all/${one##*/}" && mount --bind "$one" "$all/${one##*/}"
    done
    mkdir "$all/hugetlb"
    for try in $(seq 100); do mount -t cgroup -o hugetlb hugetlb "$all/hugetlb" 2>/dev/null && break; sleep 0.05; done
    mount --move "$all" /sys/fs/cgroup && rmdir "$all"
    mine=yes
fi
echo ready
read -r nothing
kill -9 "$(cat "$pidfile" 2>/dev/null)" 2>/dev/null
for try in $(seq 100); do rmdir /sys/fs/cgroup/"$group" /sys/fs/cgroup/*/"$group" 2>/dev/null; ls -d /sys/fs/cgroup/*/"$group" >/dev/null 2>&1 || break; sleep 0.05; done
if [ "${mine:-}" ]; then
    for try in $(seq 60); do [ "$(awk '$1 == "hugetlb" { print $3 }' /proc/cgroups)" = 1 ] && break; sleep 0.05; done
    umount /sys/fs/cgroup/hugetlb
fi
"#;

/// A started container. `shim` is runc, which passes signals on, prints what
/// the container prints and ends with its exit code.
pub struct Container {
    pub shim: Shim,
    pub pod: Pod,
    sandbox: Sandbox,
}

impl Node {
    /// A node whose device belongs to the group that manifests are rendered with.
    pub fn for_pods() -> Node {
        Node::with(&["--device-group", &DEVICE_GROUP.to_string()])
    }
}

impl Container {
    /// What kubelet does with the pod. Reason why not where there is no runc.
    pub fn start(node: &Node, pod: Pod) -> Container {
        let number = unique_number();
        let name = format!("enclave-shim-{number:x}");
        let sandbox = Sandbox::new(&pod.bundle.join("pid"), &name, number);
        pod.write_config(&sandbox.network(), &format!("/{name}"));
        let fakenitro = node.command(Path::new("runc"));
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", sandbox.keeper.id()));
        command.arg(fakenitro.get_program()).args(fakenitro.get_args());
        command
            .arg("--root")
            .arg(node.scratch().join("runc"))
            .args(["run", "--pid-file"])
            .arg(pod.bundle.join("pid"));
        command.arg("--bundle").arg(&pod.bundle).arg(&name);
        Container { shim: Shim::run(command), pod, sandbox }
    }

    /// Where clients reach a port of the pod.
    pub fn address(&self, port: u16) -> SocketAddr {
        (self.sandbox.address, port).into()
    }

    /// Waits until the manifest's own readiness probe succeeds.
    pub fn ready(&mut self) {
        let probe = self.pod.container()["readinessProbe"]["httpGet"].clone();
        let port = self.port_named(probe["port"].as_str().unwrap());
        let (address, path) = (self.address(port), probe["path"].as_str().unwrap().to_owned());
        self.shim.until(Duration::from_secs(90), "the pod is ready", |_| {
            client::get(address, &path).is_ok_and(|answer| answer.status == 200)
        });
    }

    /// The container's port of that name.
    pub fn port_named(&self, name: &str) -> u16 {
        let ports = self.pod.container()["ports"].as_array().unwrap();
        let port = ports.iter().find(|port| port["name"] == name).unwrap_or_else(|| panic!("no port {name}"));
        u16::try_from(port["containerPort"].as_u64().unwrap()).unwrap()
    }

    pub fn get(&self, port: u16, path: &str) -> Answer {
        client::get(self.address(port), path).unwrap()
    }

    /// The container's first process as this machine numbers it, once runc has said so.
    pub fn pid(&self) -> u32 {
        let mut pid = None;
        super::within(Duration::from_secs(20), "runc has started the container", || {
            let text = std::fs::read_to_string(self.pod.bundle.join("pid")).ok();
            pid = text.and_then(|text| text.trim().parse().ok());
            pid.is_some()
        });
        pid.unwrap()
    }

    /// Stops it as kubelet does: SIGTERM, and no longer than the pod's grace.
    pub fn stop(&mut self) -> i32 {
        self.shim.signal(Signal::SIGTERM);
        let grace = self.pod.spec["terminationGracePeriodSeconds"].as_u64().unwrap();
        self.shim.exit_code(Duration::from_secs(grace))
    }
}

impl Drop for Container {
    /// runc does not end its container when it is killed.
    fn drop(&mut self) {
        if self.shim.is_running() {
            let pid = std::fs::read_to_string(self.pod.bundle.join("pid")).ok();
            if let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                self.shim.gone(Duration::from_secs(10));
            }
        }
    }
}

/// What the pod's containers share, and its way to the host.
struct Sandbox {
    /// Holds the namespaces; ends when `input` closes.
    keeper: Child,
    input: Option<ChildStdin>,
    address: Ipv4Addr,
}

impl Sandbox {
    fn new(pidfile: &Path, group: &str, number: u32) -> Sandbox {
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", SANDBOX, "sandbox"])
            .arg(pidfile)
            .arg(group)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "the sandbox cannot be made");
        // A network of four addresses for each pod, from those that no one routes (RFC 2544).
        let network = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (number % (1 << 15)) * 4;
        let [host, address] = [1, 2].map(|offset| Ipv4Addr::from(network + offset));
        let (link, pid) = (format!("es{number:x}"), keeper.id());
        let script = format!(
            "ip link add {link} type veth peer name eth0 netns {pid}
             ip address add {host}/30 dev {link} && ip link set {link} up
             nsenter --net=/proc/{pid}/ns/net sh -ec '
                 ip address add {address}/30 dev eth0; ip link set eth0 up; ip link set lo up
                 ip route add default via {host}'"
        );
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let input = keeper.stdin.take();
        Sandbox { keeper, input, address }
    }

    fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.keeper.id()).into()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.keeper.wait();
    }
}

/// Whether runc is there; says so if not.
pub fn has_runc() -> bool {
    let found = Command::new("runc").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: there is no runc (Debian: runc)");
    }
    found
}

/// A field of the container's first process in /proc/PID/status.
pub fn status_field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// The default profile of containerd 1.7, if scripts/default-seccomp.sh has made it.
pub fn default_profile() -> Option<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/containerd-seccomp.json");
    let text = std::fs::read(&path).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}
