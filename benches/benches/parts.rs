//! What the parts of the data path cost without a kernel: the relay's own code
//! beside the runtime's copy loop, and what is read and decided for each
//! outgoing connection. The whole, on sockets: `scripts/bench.sh`.

#![allow(clippy::expect_used, clippy::unwrap_used)] // a failure here ends the bench

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use divan::{Bencher, black_box};
use egress::dns::{self, Found};
use egress::{Policy, Target, connect, socks};
use relay::{Counters, carry};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::runtime::{Builder, Runtime};
use wire::{FrameReader, ProxyHeader, ToShim};

fn main() {
    divan::main();
}

/// Gives so many bytes and then its end, takes any, and never waits. It copies nothing.
struct Peer {
    left: usize,
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.left.min(buffer.remaining());
        buffer.initialize_unfilled_to(count);
        buffer.advance(count);
        self.left -= count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// Bytes of one direction: a byte, a page of text, many buffers.
const LENGTHS: [usize; 3] = [1, 16 << 10, 16 << 20];

#[divan::bench(args = LENGTHS)]
fn relay_to_vsock(bencher: Bencher<'_, '_>, length: usize) {
    let (runtime, counters) = (runtime(), Counters::default());
    bencher.bench_local(|| {
        let (mut client, mut enclave) = (Peer { left: length }, Peer { left: 0 });
        runtime.block_on(carry(&mut client, &mut enclave, &counters)).unwrap()
    });
}

#[divan::bench(args = LENGTHS)]
fn relay_from_vsock(bencher: Bencher<'_, '_>, length: usize) {
    let (runtime, counters) = (runtime(), Counters::default());
    bencher.bench_local(|| {
        let (mut client, mut enclave) = (Peer { left: 0 }, Peer { left: length });
        runtime.block_on(carry(&mut client, &mut enclave, &counters)).unwrap()
    });
}

/// The yardstick: tokio's loop with buffers of the same size, for each connection its own.
#[divan::bench(args = LENGTHS)]
fn runtime_copy_loop(bencher: Bencher<'_, '_>, length: usize) {
    const BUFFER: usize = 8 * relay::VSOCK_WRITE_MAX;
    let runtime = runtime();
    bencher.bench_local(|| {
        let (mut client, mut enclave) = (Peer { left: length }, Peer { left: 0 });
        runtime.block_on(copy_bidirectional_with_sizes(&mut client, &mut enclave, BUFFER, BUFFER)).unwrap()
    });
}

/// So many names and one range, of which the last name decides.
fn policy(names: usize) -> Policy {
    let mut text = "egress:\n".to_owned();
    for number in 0..names {
        text += &format!("  - host{number}.example.com:443\n");
    }
    Policy::from_yaml(&(text + "  - '10.0.0.0/8:5432'\n")).unwrap()
}

#[divan::bench(args = [1, 10, 100, 1000])]
fn policy_decides_by_name(bencher: Bencher<'_, '_>, rules: usize) {
    let policy = policy(rules);
    let target: Target = format!("host{}.example.com:443", rules - 1).parse().unwrap();
    assert!(policy.decide(&target).is_allowed());
    bencher.bench_local(|| policy.decide(black_box(&target)).is_allowed());
}

#[divan::bench(args = [1, 10, 100, 1000])]
fn policy_decides_by_address(bencher: Bencher<'_, '_>, rules: usize) {
    let policy = policy(rules);
    let address = Ipv4Addr::new(10, 1, 2, 3).into();
    assert!(policy.decide_address(address, 5432).is_allowed());
    bencher.bench_local(|| policy.decide_address(black_box(address), 5432).is_allowed());
}

/// A question for an A record of www.example.com.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";

#[divan::bench]
fn dns_answer() -> Vec<u8> {
    dns::answer(black_box(QUESTION), |_| Found::Address(Ipv4Addr::new(198, 18, 0, 1))).unwrap()
}

#[divan::bench]
fn connect_request() -> connect::Connect {
    let head =
        b"CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\nUser-Agent: curl/8\r\n\r\n";
    connect::read(black_box(head)).unwrap().unwrap()
}

#[divan::bench]
fn socks_request() -> Target {
    socks::request(black_box(b"\x05\x01\0\x03\x0fwww.example.com\x01\xbb")).unwrap().unwrap().0
}

#[divan::bench]
fn proxy_header_both_ways() -> Option<SocketAddr> {
    let (client, listener) = (([192, 0, 2, 1], 50_000).into(), ([192, 0, 2, 2], 443).into());
    let header = ProxyHeader::tcp(black_box(client), listener);
    ProxyHeader::parse(header.bytes().to_vec()).unwrap().client()
}

/// The frame that asks the shim for one outgoing connection, written and read.
#[divan::bench]
fn dial_frame_both_ways() -> ToShim {
    let dial = ToShim::Dial { stream: black_box(7), host: "www.example.com".to_owned(), port: 443 };
    let mut reader = FrameReader::new();
    reader.push(&wire::encode(&dial).unwrap());
    reader.next_message().unwrap().unwrap()
}
