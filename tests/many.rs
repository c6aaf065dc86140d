//! Promise: ten thousand connections are open at once through one shim, and
//! cost it next to nothing while they say nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure here is the test's

mod machine;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use machine::{Image, Node, Shim, client, descriptors, within};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const WANTED: u64 = 10_000;
/// What the shim keeps of its descriptors for other things.
const SHIM_KEEPS: u64 = 320;
const SILENCE: Duration = Duration::from_secs(60);
const BYTES_EACH: u64 = 4096;
/// For ten thousand to open or close, also on an emulated processor.
const SETTLED: Duration = Duration::from_secs(180);

/// As many as the limit of open files allows: each is two descriptors of the shim.
fn affordable() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let raised = hard.max(2 * WANTED + SHIM_KEEPS);
    // Needs a right that containers lack; then it stays as it is.
    let hard = setrlimit(Resource::RLIMIT_NOFILE, raised, raised).map_or(hard, |()| raised);
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let count = WANTED.min((hard - SHIM_KEEPS) / 2);
    if count < WANTED {
        eprintln!("REDUCED to {count} connections: the limit of open files is {hard} and cannot be raised");
    }
    usize::try_from(count).unwrap()
}

#[test]
fn ten_thousand_connections_are_alive_after_a_minute_of_silence_and_cost_four_kibibytes_each() {
    let count = affordable();
    let node = Node::new();
    let image = Image::of_bench(&node, "echo", 7000, "");
    let config = format!("memory_mib: 192\nlimits: {{connections: {count}}}\n");
    let mut shim = Shim::with_ingress(&node, &image, "\n  - {listen: 127.0.0.1:0, port: 7000}", &config);
    shim.ready();
    let (address, process) = (shim.ingress(7000), shim.process());

    // Whatever is only allocated once is not a connection's.
    drop((0..50).map(|_| open(address)).collect::<Vec<_>>());
    settled(&mut shim, 0);
    let (files, before) = (descriptors(process), private_memory(process));
    let mut streams: Vec<TcpStream> = (0..count).map(|_| open(address)).collect();
    settled(&mut shim, count);
    let each = private_memory(process).saturating_sub(before) / count as u64;
    println!("{count} connections, {each} bytes each");
    assert!(each <= BYTES_EACH, "{each} bytes of the shim's memory per idle connection");

    std::thread::sleep(SILENCE); // what is promised is silence of this length
    for (number, stream) in streams.iter_mut().enumerate() {
        echoes(stream).unwrap_or_else(|error| panic!("connection {number} of {count}: {error}"));
    }
    settled(&mut shim, count);

    // The next one finds the shim full, and is told so at once.
    let refused = client::connect(address).and_then(|mut late| late.read(&mut [0])).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(shim.metric("enclave_shim_ingress_connections_total{outcome=\"full\"}"), Some(1.0));
    drop(streams);
    settled(&mut shim, 0);
    within(SETTLED, "every descriptor is closed", || descriptors(process) <= files);
}

fn open(address: std::net::SocketAddr) -> TcpStream {
    let mut stream = client::connect(address).unwrap();
    echoes(&mut stream).unwrap();
    stream
}

fn echoes(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

fn settled(shim: &mut Shim, count: usize) {
    within(SETTLED, "as many connections as expected are open", || {
        shim.metric("enclave_shim_ingress_connections_open ") == Some(count as f64)
    });
}

/// Resident bytes of a process that it shares with no other.
fn private_memory(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024).sum()
}
