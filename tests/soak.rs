//! Promise: whatever the two ends of a stream do, and when the enclave is
//! killed under tens of thousands of them, no byte is wrong, no cut stream
//! looks whole, and nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use machine::{Image, Node, Shim, descriptors, program_path, streams_of, within};

const PORT: u16 = 7000;
const LISTEN: &str = "\n  - {listen: 127.0.0.1:0, port: 7000}";
const CONFIG: &str = "memory_mib: 192\n";
/// Rounds in which the enclave is killed.
const KILLS: u64 = 4;

/// SOAK_SECONDS for longer ones; without it five minutes.
fn seconds() -> u64 {
    std::env::var("SOAK_SECONDS").map_or(300, |text| text.parse().unwrap())
}

#[test]
fn streams_keep_every_byte_and_leave_nothing_while_their_ends_misbehave_and_enclaves_die() {
    let node = Node::new();
    let image = Image::of_bench(&node, "soak-server", PORT, "");
    let each = (seconds() / (KILLS + 2)).max(2);
    let mut streams = whole_life(&node, &image, 2 * each);
    for round in 0..KILLS {
        streams += killed(&node, &image, each, round);
    }
    // Tens of thousands in five minutes.
    assert!(streams >= 70 * seconds(), "{streams} streams");
    assert_eq!(node.stats()["vsock_writes_over_32k"], 0, "the write cap");
}

/// The enclave lives to the end of the soak: what is left open is a leak.
fn whole_life(node: &Node, image: &Image, seconds: u64) -> u64 {
    let mut shim = Shim::with_ingress(node, image, LISTEN, CONFIG);
    shim.ready();
    let (address, process) = (shim.ingress(PORT), shim.process());
    let agent = agent(node);
    // One of each kind, so that what is made once is there already.
    finish(soak(address, &["--seconds", "1", "--seed", "7"]));
    idle(&mut shim);
    let before = (descriptors(process), descriptors(agent));
    assert!(before.0 > 5 && before.1 > 5, "{before:?}");
    let streams = finish(soak(address, &["--seconds", &seconds.to_string()]));
    idle(&mut shim);
    within(Duration::from_secs(10), "the descriptors of shim and agent are those from before", || {
        let now = (descriptors(process), descriptors(agent));
        now.0 <= before.0 && now.1 <= before.1
    });
    shim.signal(nix::sys::signal::Signal::SIGTERM);
    shim.exit_code(Duration::from_secs(40));
    assert!(!shim.log().contains("did not end in time"), "{}", shim.log());
    streams
}

/// The enclave dies under open streams: they are cut, and look cut.
fn killed(node: &Node, image: &Image, seconds: u64, round: u64) -> u64 {
    let mut shim = Shim::with_ingress(node, image, LISTEN, CONFIG);
    shim.ready();
    let seed = (100 + round).to_string();
    let mut soak = soak(shim.ingress(PORT), &["--until-cut", "--seed", &seed]);
    std::thread::sleep(Duration::from_secs(seconds)); // the soak's own length
    assert!(shim.metric("enclave_shim_ingress_connections_open ").unwrap() > 0.0);
    // From here on streams may be cut.
    drop(soak.stdin.take());
    node.kill_enclave(node.running()[0]);
    assert_eq!(shim.exit_code(Duration::from_secs(10)), 76, "{}", shim.log());
    assert!(!shim.log().contains("did not end in time"), "{}", shim.log());
    let streams = finish(soak);
    assert!(node.running().is_empty());
    streams
}

fn soak(address: SocketAddr, arguments: &[&str]) -> Child {
    let mut command = Command::new(program_path("bench"));
    command.args(["soak", "--through", &format!("tcp:{address}")]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How many streams there were.
fn finish(soak: Child) -> u64 {
    let output = soak.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout).trim());
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    streams_of(&text(&output.stdout))
}

fn idle(shim: &mut Shim) {
    within(Duration::from_secs(40), "no connection is open and no task is left", || {
        shim.metric("enclave_shim_ingress_connections_open ") == Some(0.0)
            && shim.metric("enclave_shim_carrier_tasks ") == Some(0.0)
    });
}

/// The first process of the only enclave.
fn agent(node: &Node) -> u32 {
    let pid = node.status()["enclaves"][0]["pid"].as_u64().unwrap();
    assert!(Path::new(&format!("/proc/{pid}/fd")).exists());
    u32::try_from(pid).unwrap()
}
