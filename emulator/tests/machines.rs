//! Images boot their own kernels in the qemu engine, and talk over a true virtio-vsock.

#![allow(clippy::unwrap_used)] // a failure here is the test's

mod support;

use std::fs;
use std::process::{Child, Stdio};

use support::{HugePages, Node, bootable_probe_image, missing_machine, printed, within};

/// Says loudly why nothing is tested, unless everything is there.
macro_rules! need_machine {
    () => {
        if let Some(missing) = missing_machine() {
            eprintln!("SKIPPED {}: {missing}", module_path!());
            return;
        }
    };
}

const QEMU: [&str; 2] = ["--engine", "qemu"];

fn console(node: &Node, cid: u32) -> String {
    fs::read_to_string(node.state().join(format!("enclaves/{cid}/console.log"))).unwrap_or_default()
}

/// A server on the node at port 9000, for `count` connections, after its first line.
fn server(node: &Node, program: &str, count: usize) -> Child {
    let program = format!(
        "import hashlib, socket\nl = socket.socket(40, 1); l.bind((3, 9000)); l.listen(8)\n\
         print('listening', flush=True)\nfor _ in range({count}):\n    c, peer = l.accept()\n{program}"
    );
    let mut command = node.command("python3");
    let mut server = command.args(["-c", &program]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 10];
    std::io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut line).unwrap();
    server
}

/// Answers each connection with the hash of what came.
const HASH: &str = "    h = hashlib.sha256()
    while chunk := c.recv(65536): h.update(chunk)
    c.sendall(h.hexdigest().encode()); c.close()
";

/// What `pour` sends.
fn poured(bytes: usize) -> String {
    let data: Vec<u8> = (0..bytes as u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &data))
}

#[test]
fn a_kernel_boots_finds_its_module_and_its_reboot_hangs_up() {
    need_machine!();
    let _pages = HugePages::reserve(64);
    let node = Node::new(&QEMU);
    let describe = "6b44657363726962654e534d";
    let pcr0 = "a16b4465736372696265504352a165696e64657800";
    let script = format!("nsm {describe}\nnsm {pcr0}\naddresses\nreboot\n");
    let (image, measured) = bootable_probe_image(node.dir.path(), &script);
    let mut launched = node.launch(&image, &[]);
    let cid = launched.cid();
    assert_eq!(launched.rest(), "hung up 0x10\n");
    let console = console(&node, cid);
    assert!(console.contains(&hex::encode("DescribeNSM")), "{console}");
    assert!(console.contains(&measured.pcr0.to_string()), "{console}");
    assert!(console.contains("Some((4294967295, 700)) AF_VSOCK"), "{console}");
}

#[test]
fn a_panic_by_sysrq_hangs_up_and_leaves_its_last_words() {
    need_machine!();
    let _pages = HugePages::reserve(64);
    let node = Node::new(&QEMU);
    let (image, _) = bootable_probe_image(node.dir.path(), "sysrq c\nhang\n");
    let mut launched = node.launch(&image, &["--debug"]);
    let cid = launched.cid();
    assert!(launched.rest().ends_with("hung up 0x10\n"));
    assert!(console(&node, cid).contains("Kernel panic - not syncing: sysrq triggered crash"));
}

#[test]
fn an_init_that_exits_is_a_panic_too() {
    need_machine!();
    let _pages = HugePages::reserve(64);
    let node = Node::new(&QEMU);
    let (image, _) = bootable_probe_image(node.dir.path(), "exit 7\n");
    let mut launched = node.launch(&image, &[]);
    let cid = launched.cid();
    assert_eq!(launched.rest(), "hung up 0x10\n");
    assert!(console(&node, cid).contains("Attempted to kill init"), "{}", console(&node, cid));
}

#[test]
fn parent_and_machine_dial_each_other_and_know_each_other_s_address() {
    need_machine!();
    let _pages = HugePages::reserve(64);
    let node = Node::new(&QEMU);
    let script = "dial 3 9000 three\ndial 2 9000 two\ndial 0 9000 zero\ndial 3 9001 nobody\ndial 77 9000 other\necho 6000 2\nhang\n";
    let (image, _) = bootable_probe_image(node.dir.path(), script);
    let upper = "    c.sendall(c.makefile().read().upper().encode()); c.close(); print(peer[0], peer[1] > 1023, flush=True)\n";
    let server = server(&node, upper, 3);
    let mut launched = node.launch(&image, &["--cid", "42"]);
    assert_eq!(launched.cid(), 42);
    assert_eq!(printed(server.wait_with_output().unwrap()), "42 True\n".repeat(3));
    within("the enclave listens", || console(&node, 42).contains("listening on 6000"));
    let dial = r#"
import socket
c = socket.socket(40, 1); c.connect((42, 6000))
c.sendall(b"to the enclave"); c.shutdown(1); print(c.makefile().read(), c.getpeername())
"#;
    for _ in 0..2 {
        assert_eq!(printed(node.python(dial, &[])), "to the enclave (42, 6000)\n");
    }
    within("the peers are told", || console(&node, 42).contains("echo 6000 2: [3, 3]"));
    let console = console(&node, 42);
    for answer in ["three: THREE", "two: TWO", "zero: ZERO"] {
        assert!(console.contains(answer), "{answer} in {console}");
    }
    for refused in ["dial 3 9001 nobody", "dial 77 9000 other"] {
        assert!(console.contains(&format!("{refused}: error Connection reset by peer")), "{console}");
    }
    // Nobody listens there now, neither before nor after the driver is up.
    let refused = "import socket\ntry: socket.socket(40, 1).connect((42, 6001))\nexcept ConnectionResetError: print('reset')";
    assert_eq!(printed(node.python(refused, &[])), "reset\n");
    assert!(node.ask(&["kill", "42"]).status.success());
    assert_eq!(launched.rest(), "hung up 0x10\n");
}

/// 32,404 bytes is the most that this kernel puts in one piece; one more and
/// the device sees several descriptors.
#[test]
fn writes_of_every_size_arrive_whole() {
    need_machine!();
    let _pages = HugePages::reserve(64);
    let node = Node::new(&QEMU);
    let sizes = [(31 << 10, 31 << 10), (32404, 32404), (32405, 32405), (32768, 32768), (65536, 65536)];
    let more = [(1 << 20, 31 << 10), (1 << 20, 70_000), (5_000_011, 1 << 20), (100_000, 300)];
    let pours: Vec<_> = sizes.iter().chain(&more).collect();
    let script: String =
        pours.iter().map(|(bytes, write)| format!("pour 3 9000 {bytes} {write}\n")).collect();
    let (image, _) = bootable_probe_image(node.dir.path(), &(script + "reboot\n"));
    let server = server(&node, HASH, pours.len());
    let mut launched = node.launch(&image, &[]);
    let cid = launched.cid();
    launched.rest();
    printed(server.wait_with_output().unwrap());
    let console = console(&node, cid);
    for (bytes, write) in &pours {
        let expected = format!("pour 3 9000 {bytes} {write}: {}", poured(*bytes));
        assert!(console.contains(&expected), "no {expected} in {console}");
    }
}

#[test]
fn capped_writes_survive_a_machine_that_damages_large_ones() {
    need_machine!();
    let _pages = HugePages::reserve(64);
    let node = Node::new(&["--engine", "qemu", "--large-writes", "corrupt"]);
    let script = "pour 3 9000 1000000 31744\npour 3 9000 1000000 65536\nreboot\n";
    let (image, _) = bootable_probe_image(node.dir.path(), script);
    let server = server(&node, HASH, 2);
    let mut launched = node.launch(&image, &["--cid", "20"]);
    launched.cid();
    launched.rest();
    printed(server.wait_with_output().unwrap());
    let console = console(&node, 20);
    assert!(console.contains(&format!("pour 3 9000 1000000 31744: {}", poured(1_000_000))), "{console}");
    assert!(console.contains("pour 3 9000 1000000 65536: "), "{console}");
    assert!(!console.contains(&format!("pour 3 9000 1000000 65536: {}", poured(1_000_000))), "{console}");
    let stats: serde_json::Value =
        serde_json::from_slice(&fs::read(node.state().join("stats.json")).unwrap()).unwrap();
    assert!(stats["vsock_writes_over_32k_by_cid"]["20"].as_u64().unwrap() >= 10, "{stats}");
}

#[test]
fn two_machines_run_side_by_side_and_one_s_end_is_its_own() {
    need_machine!();
    let _pages = HugePages::reserve(128);
    let node = Node::new(&QEMU);
    let (image, _) = bootable_probe_image(node.dir.path(), "echo 6000 1\nreboot\n");
    let mut first = node.launch(&image, &["--cid", "30"]);
    let mut second = node.launch(&image, &["--cid", "31"]);
    assert_eq!((first.cid(), second.cid()), (30, 31));
    for cid in [30, 31] {
        within("it listens", || console(&node, cid).contains("listening on 6000"));
    }
    assert!(node.ask(&["kill", "30"]).status.success());
    assert_eq!(first.rest(), "hung up 0x10\n");
    let gone =
        "import socket\ntry: socket.socket(40, 1).connect((30, 6000))\nexcept OSError as e: print(e.errno)";
    assert_eq!(printed(node.python(gone, &[])), format!("{}\n", libc::ENODEV));
    let dial = "import socket\nc = socket.socket(40, 1); c.connect((31, 6000)); c.send(b'still'); c.shutdown(1); print(c.makefile().read())";
    assert_eq!(printed(node.python(dial, &[])), "still\n");
    assert_eq!(second.rest(), "hung up 0x10\n");
}

#[test]
fn a_node_that_is_killed_takes_its_machines_along() {
    need_machine!();
    let _pages = HugePages::reserve(64);
    let node = Node::new(&QEMU);
    let (image, _) = bootable_probe_image(node.dir.path(), "hang\n");
    let mut launched = node.launch(&image, &[]);
    launched.cid();
    let status = node.status();
    let qemu = format!("/proc/{}", status["enclaves"][0]["pid"]);
    let node_pid = nix::unistd::Pid::from_raw(status["pid"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(node_pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(launched.rest(), "hung up 0x10\n");
    within("QEMU is gone", || !std::path::Path::new(&qemu).exists());
}

#[test]
fn without_a_qemu_the_start_fails_and_the_log_says_what_is_missing() {
    need_machine!();
    let _pages = HugePages::reserve(64);
    for (program, cause) in [("/nonexistent/qemu", "No such file"), ("/bin/false", "ended at once")] {
        let node = Node::new(&["--engine", "qemu", "--accelerator", "tcg", "--qemu", program]);
        let (image, _) = bootable_probe_image(node.dir.path(), "hang\n");
        let launched = node.launch(&image, &[]);
        assert_eq!(launched.rest(), "");
        assert!(node.log().contains(cause), "{program}: {}", node.log());
    }
}
