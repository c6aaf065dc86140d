//! Images start in the process engine, talk, and end as enclaves do.

mod support;

use std::fs;

use support::{HugePages, Node, printed, probe_image, within};

fn console(node: &Node, cid: u32) -> String {
    fs::read_to_string(node.state().join(format!("enclaves/{cid}/console.log"))).unwrap_or_default()
}

#[test]
fn an_enclave_boots_prints_and_hangs_up_when_init_exits() {
    need!("python3");
    let _pages = HugePages::reserve(64);
    let node = Node::new(&[]);
    let (image, _) = probe_image(node.dir.path(), "print hello\nseed\nexit 7\n");
    let mut launched = node.launch(&image, &[]);
    let cid = launched.cid();
    assert_eq!(launched.rest(), "hung up 0x10\n");
    assert_eq!(console(&node, cid), "print hello: printed\nseed: credited\n");
    let status = fs::read_to_string(node.state().join(format!("enclaves/{cid}/status.json"))).unwrap();
    assert!(status.contains(r#""state": "ended""#), "{status}");
}

#[test]
fn a_reboot_ends_the_enclave_and_not_the_host() {
    need!("python3");
    let _pages = HugePages::reserve(64);
    let node = Node::new(&[]);
    let (image, _) = probe_image(node.dir.path(), "reboot\n");
    let mut launched = node.launch(&image, &[]);
    launched.cid();
    assert_eq!(launched.rest(), "hung up 0x10\n");
}

#[test]
fn parent_and_enclave_dial_each_other() {
    need!("python3");
    let _pages = HugePages::reserve(64);
    let node = Node::new(&[]);
    let script = "addresses\ndial 3 9000 three\ndial 2 9000 two\ndial 77 9000 other\necho 6000 2\nhang\n";
    let (image, _) = probe_image(node.dir.path(), script);
    let server = r#"
import socket
l = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); l.bind((3, 9000)); l.listen(4)
print("listening", flush=True)
for _ in range(2):
    c, peer = l.accept(); c.sendall(c.makefile().read().upper().encode()); c.close(); print(peer[0], flush=True)
"#;
    let mut command = node.command("python3");
    let mut server = command.args(["-c", server]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = [0; 10];
    std::io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut line).unwrap();
    let mut launched = node.launch(&image, &["--cid", "42"]);
    assert_eq!(launched.cid(), 42);
    assert_eq!(printed(server.wait_with_output().unwrap()), "42\n42\n");
    within("the enclave listens", || console(&node, 42).contains("listening on 6000"));
    let dial = r#"
import socket
c = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); c.connect((42, 6000))
c.sendall(b"to the enclave"); c.shutdown(socket.SHUT_WR); print(c.makefile().read(), c.getpeername())
"#;
    for _ in 0..2 {
        assert_eq!(printed(node.python(dial, &[])), "to the enclave (42, 6000)\n");
    }
    within("the peers are told", || console(&node, 42).contains("echo 6000 2: [3, 3]"));
    let console = console(&node, 42);
    assert!(console.contains("Some((4294967295, 4294967295)) Some((4294967295, 700)) AF_VSOCK"), "{console}");
    assert!(console.contains("three: THREE\n") && console.contains("two: TWO\n"), "{console}");
    assert!(console.contains("dial 77 9000 other: error Connection reset by peer"), "{console}");
    assert!(node.ask(&["kill", "42"]).status.success());
    assert_eq!(launched.rest(), "hung up 0x10\n");
}

#[test]
fn closing_the_descriptor_or_dying_ends_the_enclave_and_frees_the_slot() {
    need!("python3");
    let _pages = HugePages::reserve(128);
    let node = Node::new(&["--slots", "2"]);
    let (image, _) = probe_image(node.dir.path(), "hang\n");
    // Keeps the node alive, so that its state can be asked for.
    let mut keeper = node.launch(&image, &[]);
    let keeper_cid = keeper.cid();
    let mut closing = node.launch(&image, &["--hold", "0"]);
    assert_ne!(closing.cid(), keeper_cid);
    assert_eq!(closing.rest(), "closed\n");
    within("the slot is free", || node.status()["slots"] == 1);
    within("the enclave is gone", || node.status()["enclaves"].as_array().unwrap().len() == 1);
    let mut killed = node.launch(&image, &[]);
    let cid = killed.cid();
    let pid = node.status()["enclaves"].as_array().unwrap().iter().find(|e| e["cid"] == cid).unwrap()["pid"]
        .clone();
    killed.child.kill().unwrap();
    within("the slot is free", || node.status()["slots"] == 1);
    within("its first process is gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(node.status()["cpus"], serde_json::json!([2, 3]));
}

#[test]
fn a_node_that_is_killed_takes_its_enclaves_along_and_can_be_started_again() {
    need!("python3");
    let _pages = HugePages::reserve(64);
    let node = Node::new(&[]);
    let (image, _) = probe_image(node.dir.path(), "hang\n");
    let mut launched = node.launch(&image, &[]);
    launched.cid();
    let status = node.status();
    let enclave = format!("/proc/{}", status["enclaves"][0]["pid"]);
    let node_pid = nix::unistd::Pid::from_raw(status["pid"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(node_pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(launched.rest(), "hung up 0x10\n");
    within("the enclave is gone", || !std::path::Path::new(&enclave).exists());
    assert!(node.command("true").status().unwrap().success());
}

#[test]
fn the_console_is_served_in_debug_mode_only() {
    need!("python3");
    let _pages = HugePages::reserve(64);
    let node = Node::new(&[]);
    let (image, _) = probe_image(node.dir.path(), "print early\nprint late\nhang\n");
    let mut launched = node.launch(&image, &["--debug"]);
    let cid = launched.cid().to_string();
    let mut seen = String::new();
    while !seen.contains("print late: printed") {
        let line = launched.line();
        assert!(!line.is_empty(), "the console ended after {seen:?}");
        seen += &line;
    }
    assert!(seen.contains("print early: printed"), "{seen}");
    assert!(node.ask(&["kill", &cid]).status.success());
    let rest = launched.rest();
    assert!(rest.ends_with("hung up 0x10\n"), "{rest}");
    let (image, _) = probe_image(node.dir.path(), "hang\n");
    let mut launched = node.launch(&image, &[]);
    let port = (10_000 + launched.cid()).to_string();
    let dial = "import socket, sys\ns = socket.socket(40, 1)\ntry: s.connect((0, int(sys.argv[1])))\nexcept ConnectionResetError: print('reset')";
    assert_eq!(printed(node.python(dial, &[&port])), "reset\n");
}

#[test]
fn the_security_module_answers_with_limits_and_measurements() {
    need!("python3");
    let _pages = HugePages::reserve(64);
    let node = Node::new(&[]);
    // "DescribeNSM", {"DescribePCR": {"index": 0}}, and one byte more than the device takes.
    let describe = "6b44657363726962654e534d";
    let pcr0 = "a16b4465736372696265504352a165696e64657800";
    let long = "00".repeat(0x1001);
    let script = format!("nsm {describe}\nnsm {pcr0}\nnsm {long}\nexit 0\n");
    let (image, measured) = probe_image(node.dir.path(), &script);
    let mut launched = node.launch(&image, &[]);
    let cid = launched.cid();
    launched.rest();
    let console = console(&node, cid);
    let answers: Vec<&str> = console.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    assert!(answers[0].contains(&hex::encode("DescribeNSM")), "{console}");
    assert!(answers[1].contains(&measured.pcr0.to_string()), "{console}");
    assert!(answers[2].contains("Message too long"), "{}", answers[2]);
}

#[test]
fn the_host_is_unchanged_by_a_malicious_image() {
    need!("python3");
    let _pages = HugePages::reserve(64);
    let node = Node::new(&[]);
    let (image, _) = probe_image(node.dir.path(), "mischief\nexit 0\n");
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let watched = || {
        let sysctls = ["kernel/hostname", "kernel/panic", "kernel/core_pattern", "vm/nr_hugepages"];
        sysctls.map(|name| read(&format!("/proc/sys/{name}")))
    };
    let (before, mounts) = (watched(), read("/proc/self/mountinfo"));
    let mut bystander = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let mut launched = node.launch(&image, &[]);
    let cid = launched.cid();
    launched.rest();
    let console = console(&node, cid);
    assert!(console.ends_with("mischief: over\n"), "{console}");
    for refused in ["clock", "sysctl", "core pattern", "huge pages", "sysrq", "block device", "module"] {
        assert!(!console.contains(&format!("mischief {refused}: done")), "{console}");
    }
    assert_eq!(watched(), before);
    assert_eq!(read("/proc/self/mountinfo"), mounts);
    assert!(std::time::SystemTime::now() > std::time::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30));
    assert!(bystander.try_wait().unwrap().is_none(), "a process of the host was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn a_large_write_inside_the_enclave_is_counted_for_its_cid() {
    need!("python3");
    let _pages = HugePages::reserve(64);
    let node = Node::new(&[]);
    let (image, _) = probe_image(node.dir.path(), "echo 6000 1\nflood 16 6001 1\nexit 0\n");
    let mut launched = node.launch(&image, &[]);
    let cid = launched.cid();
    within("the enclave listens", || console(&node, cid).contains("listening"));
    let dial = r#"
import socket, sys
c = socket.socket(40, 1); c.connect((int(sys.argv[1]), 6000)); c.send(b"x" * 40000); c.shutdown(1)
n = 0
while chunk := c.recv(65536): n += len(chunk)
print(n)
"#;
    assert_eq!(printed(node.python(dial, &[&cid.to_string()])), "40000\n");
    launched.rest();
    within("the counters are written", || {
        let text = fs::read(node.state().join("stats.json")).unwrap();
        let stats: serde_json::Value = serde_json::from_slice(&text).unwrap();
        stats["vsock_writes_over_32k_by_cid"] == serde_json::json!({"3": 1})
    });
}
