//! Peers that are slow, silent, rude or many, on either socket.
#![allow(clippy::unwrap_used, reason = "a failure here is the test's")]

mod stand_in;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use stand_in::{CPUS, Kubelet, Node, Plugin, Stack, all, ids};

const SLOW_STREAMS: u32 = 60;

/// An HTTP/2 frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The client's preface, and settings that allow the server to send no data at all.
fn preface() -> Vec<u8> {
    let no_window = [0, 4, 0, 0, 0, 0];
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &no_window)].concat()
}

/// The head of a gRPC call (HPACK, RFC 7541, nothing compressed).
fn head(stream: u32, method: &str) -> Vec<u8> {
    let path = format!("/v1beta1.DevicePlugin/{method}");
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x09localhost\x0f\x10\x10application/grpc\x00\x02te\x08trailers");
    frame(1, 4, stream, &block)
}

/// Watches on many streams and reads none of them.
fn slow_reader(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&preface()).unwrap();
    for id in (0..SLOW_STREAMS).map(|number| 2 * number + 1) {
        stream.write_all(&[head(id, "ListAndWatch"), frame(0, 1, id, &[0; 5])].concat()).unwrap();
    }
    stream
}

/// Opens calls and takes them back at once (CVE-2023-44487), until it is thrown out.
fn rapid_reset(socket: &Path) -> bool {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&preface()).unwrap();
    let cancel = 8_u32.to_be_bytes();
    (0..100_000_u32).map(|number| 2 * number + 1).any(|id| {
        let call = [head(id, "ListAndWatch"), frame(3, 0, id, &cancel)].concat();
        stream.write_all(&call).is_err()
    })
}

fn rude(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream
}

fn silent(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).unwrap()
}

#[test]
fn slow_silent_and_rude_peers_do_not_hinder_kubelet() {
    for stack in Stack::available() {
        let node = Node::new();
        let mut kubelet = Kubelet::start(stack, &node);
        let mut plugin = Plugin::start(&node);
        kubelet.knows_both();
        let socket = node.plugins().join("nitro_enclaves_cpus.sock");
        let mut peers: Vec<UnixStream> = (0..5).map(|_| slow_reader(&socket)).collect();
        peers.extend((0..10).map(|_| silent(&socket)));
        peers.extend((0..5).map(|_| rude(&socket)));
        assert!(rapid_reset(&socket), "the flood was not stopped");

        for round in 0..50 {
            let (pool, expected) = if round % 2 == 0 { ("4-7", 4) } else { ("2-9", 8) };
            node.pool(pool);
            kubelet.devices(CPUS, |cpus| all(cpus, "Healthy") && ids(cpus).len() == expected);
        }
        kubelet.order(&format!("many {CPUS} 100 2,3"), "done").unwrap();
        drop(kubelet);
        let kubelet = Kubelet::start(stack, &node);
        kubelet.knows_both();

        peers.extend((0..5).map(|_| slow_reader(&socket)));
        let most = plugin.memory().1;
        println!("{stack:?}: at most {most} KiB");
        assert!(most < 15 << 10, "AWS's DaemonSet grants 15 MiB, this took {most} KiB");
        let begin = Instant::now();
        plugin.signal(Signal::SIGTERM);
        assert!(plugin.wait().success());
        assert!(begin.elapsed() < Duration::from_secs(10), "stopped after {:?}", begin.elapsed());
        drop(peers);
    }
}

#[test]
fn more_peers_than_places_leave_kubelets_connection_alone() {
    for stack in Stack::available() {
        let node = Node::new();
        let mut kubelet = Kubelet::start(stack, &node);
        let plugin = Plugin::start(&node);
        kubelet.knows_both();
        let socket = node.plugins().join("nitro_enclaves_cpus.sock");
        let peers: Vec<UnixStream> = (0..100).map(|_| silent(&socket)).collect();
        plugin.logged("too many");
        kubelet.order(&format!("allocate {CPUS} 2,3"), "allocated").unwrap();
        // A kubelet that starts now finds a fresh socket with all its places free.
        drop(kubelet);
        Kubelet::start(stack, &node).knows_both();
        drop(peers);
    }
}

/// Takes kubelet's place on its socket.
fn impostor(node: &Node) -> UnixListener {
    let path = node.plugins().join("kubelet.sock");
    let _ = fs::remove_file(&path);
    UnixListener::bind(path).unwrap()
}

#[test]
fn a_kubelet_that_never_answers_does_not_hold_up_the_stop_or_its_successor() {
    for stack in Stack::available() {
        let node = Node::new();
        let listener = impostor(&node);
        let mut plugin = Plugin::start(&node);
        let _held = listener.accept().unwrap();
        Kubelet::start(stack, &node).knows_both();

        let listener = impostor(&node);
        let _held = listener.accept().unwrap();
        let begin = Instant::now();
        plugin.signal(Signal::SIGTERM);
        assert!(plugin.wait().success());
        assert!(begin.elapsed() < Duration::from_secs(5), "stopped after {:?}", begin.elapsed());
    }
}

#[test]
fn a_kubelet_that_talks_nonsense_is_asked_again() {
    for stack in Stack::available() {
        let node = Node::new();
        let listener = impostor(&node);
        let plugin = Plugin::start(&node);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.write_all(&[0x17; 4096]);
                let _ = stream.read(&mut [0; 64]);
            }
        });
        for _ in 0..3 {
            plugin.logged("not registered");
        }
        Kubelet::start(stack, &node).knows_both();
    }
}
