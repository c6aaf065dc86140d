//! The relay over a true AF_VSOCK, and what it relies on there. Needs a kernel
//! with vsock_loopback: scripts/true-vsock.sh boots one and sets TRUE_VSOCK.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failure here is the test's

use std::io::ErrorKind;
use std::time::Duration;

use relay::{Counters, Options, VSOCK_WRITE_MAX, Vsock, relay_with};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_LOCAL, VsockAddr, VsockListener, VsockStream};

/// Longer than anything here takes on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(120);
/// The parent's CID, which a machine that is nobody's guest does not have.
const PARENT: u32 = 3;
const UNKNOWN: u32 = 77;

/// Says loudly why nothing is tested.
macro_rules! need_true_vsock {
    () => {
        if std::env::var_os("TRUE_VSOCK").is_none() {
            eprintln!("SKIPPED {}: TRUE_VSOCK is not set (scripts/true-vsock.sh)", module_path!());
            return;
        }
    };
}

fn listener() -> (VsockListener, VsockAddr) {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_LOCAL, u32::MAX)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Ingress as the shim has it: a TCP port whose connections are carried to `to`.
async fn ingress(to: VsockAddr, connections: usize) -> (std::net::SocketAddr, JoinHandle<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let mut relays = Vec::new();
        for _ in 0..connections {
            let (tcp, _) = listener.accept().await.unwrap();
            relays.push(tokio::spawn(async move {
                let vsock = Vsock::connect(to.cid(), to.port()).await.unwrap();
                relay_with(tcp, vsock, &Counters::default(), Options::default()).await.unwrap()
            }));
        }
        let mut bytes = 0;
        for relay in relays {
            bytes += relay.await.unwrap().to_vsock;
        }
        bytes
    });
    (address, served)
}

/// An enclave that sends everything back, `connections` times.
fn echo(listener: VsockListener, connections: usize) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut echoes = Vec::new();
        for _ in 0..connections {
            let (stream, _) = listener.accept().await.unwrap();
            echoes.push(tokio::spawn(async move {
                let (mut reads, mut writes) = stream.into_split();
                let mut buffer = vec![0; VSOCK_WRITE_MAX];
                loop {
                    match reads.read(&mut buffer).await.unwrap() {
                        0 => break,
                        count => writes.write_all(&buffer[..count]).await.unwrap(),
                    }
                }
                writes.shutdown().await.unwrap();
            }));
        }
        for echo in echoes {
            echo.await.unwrap();
        }
    })
}

fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|n| (n ^ seed).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

#[test]
fn a_connect_that_does_not_block_is_in_progress_first() {
    need_true_vsock!();
    let (listener, address) = {
        let socket = Socket::new(Domain::VSOCK, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::vsock(VMADDR_CID_LOCAL, u32::MAX)).unwrap();
        socket.listen(1).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    };
    let client = Socket::new(Domain::VSOCK, Type::STREAM, None).unwrap();
    client.set_nonblocking(true).unwrap();
    let error = client.connect(&address).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(115), "EINPROGRESS, not {error}");
    listener.accept().unwrap();
    assert!(client.take_error().unwrap().is_none());
}

#[tokio::test]
async fn a_port_that_nobody_has_is_a_reset_and_a_context_that_is_not_there_no_device() {
    need_true_vsock!();
    let refused = VsockStream::connect(VsockAddr::new(VMADDR_CID_LOCAL, 4242)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{refused}");
    for cid in [UNKNOWN, PARENT] {
        let missing = VsockStream::connect(VsockAddr::new(cid, 4242)).await.unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(19), "ENODEV, not {missing}");
    }
}

#[tokio::test]
async fn a_port_can_be_had_once_and_again_when_it_is_given_back() {
    need_true_vsock!();
    let (first, address) = listener();
    let taken = VsockListener::bind(address).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    drop(first);
    VsockListener::bind(address).unwrap();
}

#[tokio::test]
async fn two_hundred_connections_at_once_keep_their_bytes_apart() {
    need_true_vsock!();
    const CONNECTIONS: usize = 200;
    let (listener, address) = listener();
    let enclave = echo(listener, CONNECTIONS);
    let (address, served) = ingress(address, CONNECTIONS).await;
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        clients.push(tokio::spawn(async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            let sent = pattern(10_000 + number, number as u32);
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert!(answer == sent, "connection {number}: {} bytes", answer.len());
        }));
    }
    for client in clients {
        timeout(PATIENCE, client).await.unwrap().unwrap();
    }
    timeout(PATIENCE, enclave).await.unwrap().unwrap();
    assert_eq!(served.await.unwrap(), (0..CONNECTIONS as u64).map(|number| 10_000 + number).sum::<u64>());
}

/// More than every buffer on the way holds: the writer has to stop and go on.
#[tokio::test]
async fn a_reader_that_stalls_loses_nothing_and_holds_the_writer_back() {
    need_true_vsock!();
    let (listener, address) = listener();
    let (address, served) = ingress(address, 1).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut enclave, _) = listener.accept().await.unwrap();
    let sent = pattern(24 << 20, 1);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!writer.is_finished(), "24 MiB went where nobody reads");
    let mut received = Vec::new();
    timeout(PATIENCE, enclave.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == expected, "{} bytes", received.len());
    drop(enclave);
    drop(writer.await.unwrap());
    assert_eq!(served.await.unwrap(), 24 << 20);
}
