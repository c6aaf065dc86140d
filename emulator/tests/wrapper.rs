//! fakenitro as a wrapper: it becomes the command, joins one node, leaves nothing.

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use support::{FAKENITRO, Node, printed, processes_naming, within};

#[test]
fn exit_codes_and_signals_are_the_commands_own() {
    need!();
    let node = Node::new(&[]);
    let code = |script: &str| node.command("sh").args(["-c", script]).status().unwrap();
    assert_eq!(code("exit 7").code(), Some(7));
    assert_eq!(code("kill -SEGV $$").signal(), Some(11));
    let missing = node.command("/nonexistent").output().unwrap();
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
    assert_eq!(node.command("/etc/passwd").stderr(Stdio::null()).status().unwrap().code(), Some(126));
    let usage = Command::new(FAKENITRO).arg("--no-such-option").output().unwrap();
    assert_eq!(usage.status.code(), Some(64));
}

#[test]
fn the_command_has_the_wrappers_pid_and_no_child_of_the_wrapper() {
    need!();
    let node = Node::new(&[]);
    let mut command = node.command("sh");
    let child = command
        .args(["-c", "echo $$; cat /proc/$$/task/$$/children"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let text = printed(child.wait_with_output().unwrap());
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(pid.as_str()));
    // Only cat itself is there.
    assert_eq!(lines.next().unwrap_or_default().split_whitespace().count(), 1, "{text}");
}

#[test]
fn many_start_at_once_on_one_node_and_the_node_ends_with_the_last() {
    need!();
    let node = Node::new(&[]);
    let mut children: Vec<_> = (0..8).map(|_| node.command("true").spawn().unwrap()).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let needle = node.dir.path().display().to_string();
    within("the node ends", || processes_naming(&needle).is_empty());
    let log = node.log();
    assert_eq!(log.matches("started").count(), log.matches("ended").count(), "{log}");
    assert!(!node.state().join("node.sock").exists());
}

#[test]
fn a_daemonised_client_keeps_its_node() {
    need!("python3");
    let node = Node::new(&[]);
    let program = r#"
import os, socket, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
l = socket.socket(40, 1); l.bind((3, 7000)); l.listen(1); c, _ = l.accept(); c.sendall(b"late"); c.close()
"#;
    // Not its output: the daemon keeps that open.
    assert!(node.command("python3").args(["-c", program]).status().unwrap().success());
    let dial = r#"
import socket, time
until = time.monotonic() + 10
while time.monotonic() < until:
    try: c = socket.socket(40, 1); c.connect((3, 7000)); break
    except ConnectionResetError: pass
print(c.recv(4))
"#;
    assert_eq!(printed(node.python(dial, &[])), "b'late'\n");
}

#[test]
fn state_is_private_and_mounts_stay_inside() {
    need!();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let node = Node::new(&[]);
    let text =
        printed(node.command("stat").args(["-c", "%a", node.state().to_str().unwrap()]).output().unwrap());
    assert_eq!(text, "700\n");
    for entry in fs::read_dir(node.state()).unwrap().flatten() {
        let mode = std::os::unix::fs::PermissionsExt::mode(&entry.metadata().unwrap().permissions());
        let public = entry.file_name() == "dev-root.pem" || entry.file_type().unwrap().is_dir();
        assert!(public || mode & 0o77 == 0, "{:?} has mode {mode:o}", entry.file_name());
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn options_that_disagree_with_the_node_are_refused() {
    need!();
    let node = Node::new(&["--slots", "2"]);
    let keeper = node.command("sleep").arg("600").spawn();
    let mut keeper = keeper.unwrap();
    within("the node runs", || node.state().join("node.sock").exists());
    let other = Command::new(FAKENITRO)
        .arg("--state")
        .arg(node.state())
        .args(["--slots", "3", "--", "true"])
        .output();
    let other = other.unwrap();
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    assert_eq!(other.status.code(), Some(125));
    let text = String::from_utf8_lossy(&other.stderr);
    assert!(text.contains("--slots 3") && text.contains("--state"), "{text}");
}

#[test]
fn inside_a_node_the_same_node_is_entered_again_and_another_is_refused() {
    need!();
    let node = Node::new(&[]);
    let state = node.state();
    let state = state.to_str().unwrap();
    let inner = node.command(FAKENITRO).args(["--state", state, "--", "echo", "inside"]).output().unwrap();
    assert_eq!(printed(inner), "inside\n");
    let other = node.command(FAKENITRO).args(["--state", "/tmp", "--", "true"]).output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("cannot be nested"), "{other:?}");
}
