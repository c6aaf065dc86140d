//! The relay on real sockets: a TCP connection, and a stream socket pair in
//! the vsock's place (this host may have none). With TRUE_VSOCK set it is a true
//! vsock instead: scripts/true-vsock.sh runs this in a machine that has one.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failure here is the test's

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::Duration;

use relay::{Counters, Moved, Options, RelayError, Vsock, carry_with, relay_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_LOCAL, VsockAddr, VsockListener, VsockStream};

/// Longer than any step here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const BETWEEN_RELAYS: Options =
    Options { idle_timeout: None, far_end_relays: true, already_read: Vec::new() };

type Outcome = JoinHandle<Result<Moved, RelayError>>;

/// A client, an enclave, and the relay between them.
async fn connected(options: Options) -> (TcpStream, UnixStream, Outcome) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (enclave, far) = if on_true_vsock() { vsock_pair().await } else { unix_pair() };
    let near = accepted.unwrap().0;
    let relay = tokio::spawn(async move {
        relay_with(near, Vsock::new(OwnedFd::from(far)).unwrap(), &Counters::default(), options).await
    });
    (client.unwrap(), enclave, relay)
}

fn on_true_vsock() -> bool {
    std::env::var_os("TRUE_VSOCK").is_some()
}

fn unix_pair() -> (UnixStream, VsockStream) {
    let (enclave, far) = std::os::unix::net::UnixStream::pair().unwrap();
    enclave.set_nonblocking(true).unwrap();
    (UnixStream::from_std(enclave).unwrap(), VsockStream::from(OwnedFd::from(far)))
}

/// Tokio's type for stream sockets without addresses serves for the enclave's
/// end, so that the tests are the same for both.
async fn vsock_pair() -> (UnixStream, VsockStream) {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_LOCAL, u32::MAX)).unwrap();
    let address = listener.local_addr().unwrap();
    let (far, accepted) = tokio::join!(VsockStream::connect(address), listener.accept());
    let enclave = std::os::unix::net::UnixStream::from(OwnedFd::from(accepted.unwrap().0));
    (UnixStream::from_std(enclave).unwrap(), far.unwrap())
}

async fn ended(relay: Outcome) -> Result<Moved, RelayError> {
    timeout(PATIENCE, relay).await.expect("the relay did not end").unwrap()
}

/// Closes with a reset in place of an end of stream.
fn reset(client: TcpStream) {
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn megabytes_cross_both_ways_at_once() {
    let (mut client, mut enclave, relay) = connected(Options::default()).await;
    let up: Vec<u8> = (0..5_000_000u32).map(|index| (index % 251) as u8).collect();
    let down: Vec<u8> = (0..7_000_000u32).map(|index| (index % 241) as u8).collect();
    let (mut client_reads, mut client_writes) = client.split();
    let (mut enclave_reads, mut enclave_writes) = enclave.split();
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let send_up = async {
        client_writes.write_all(&up).await.unwrap();
        client_writes.shutdown().await.unwrap();
    };
    let send_down = async {
        enclave_writes.write_all(&down).await.unwrap();
        enclave_writes.shutdown().await.unwrap();
    };
    let (_, _, one, other) = tokio::join!(
        send_up,
        send_down,
        client_reads.read_to_end(&mut got_down),
        enclave_reads.read_to_end(&mut got_up)
    );
    one.unwrap();
    other.unwrap();
    assert!(got_up == up && got_down == down, "bytes changed");
    assert_eq!(ended(relay).await.unwrap(), Moved { to_vsock: 5_000_000, from_vsock: 7_000_000 });
}

#[tokio::test]
async fn a_client_that_resets_ends_the_enclaves_side_at_once() {
    let (mut client, mut enclave, relay) = connected(Options::default()).await;
    client.write_all(b"partial").await.unwrap();
    let mut partial = [0; 7];
    enclave.read_exact(&mut partial).await.unwrap();
    reset(client);
    assert!(matches!(ended(relay).await, Err(RelayError::Tcp { moved: Moved { to_vsock: 7, .. }, .. })));
    assert_eq!(enclave.read(&mut partial).await.unwrap(), 0);
    let write = enclave.write_all(b"answer").await;
    assert_eq!(write.unwrap_err().kind(), ErrorKind::BrokenPipe, "not a half-close");
}

#[tokio::test]
async fn an_enclave_that_resets_resets_the_client() {
    let (mut client, enclave, relay) = connected(Options::default()).await;
    client.write_all(b"never read").await.unwrap();
    enclave.readable().await.unwrap();
    drop(enclave); // with unread bytes: a reset
    if on_true_vsock() {
        // It cannot carry one: hence `Options::far_end_relays`.
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        return;
    }
    assert!(matches!(ended(relay).await, Err(RelayError::Vsock { .. })));
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_relay_that_is_cancelled_resets_the_client() {
    let (mut client, mut enclave, relay) = connected(Options::default()).await;
    enclave.write_all(b"half").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    relay.abort();
    assert!(relay.await.unwrap_err().is_cancelled());
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_relay_at_the_far_end_that_gives_up_resets_the_client() {
    let (mut client, mut enclave, relay) = connected(BETWEEN_RELAYS).await;
    enclave.write_all(b"the first half of an ans").await.unwrap();
    client.read_exact(&mut [0; 24]).await.unwrap();
    drop(enclave);
    assert!(matches!(ended(relay).await, Err(RelayError::Vsock { .. })));
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_relay_at_the_far_end_may_half_close() {
    let (mut client, mut enclave, relay) = connected(BETWEEN_RELAYS).await;
    enclave.write_all(b"all I have").await.unwrap();
    enclave.shutdown().await.unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"all I have");
    client.write_all(b"thanks").await.unwrap();
    client.shutdown().await.unwrap();
    let mut thanks = Vec::new();
    enclave.read_to_end(&mut thanks).await.unwrap();
    assert_eq!(thanks, b"thanks");
    assert_eq!(ended(relay).await.unwrap(), Moved { to_vsock: 6, from_vsock: 10 });
}

#[tokio::test(start_paused = true)]
async fn an_idle_relay_ends_after_its_timeout_and_never_without_one() {
    let hour = Duration::from_secs(3600);
    let (_client, mut near) = duplex(64);
    let (_enclave, mut far) = duplex(64);
    let counters = Counters::default();
    let forever = carry_with(&mut near, &mut far, &counters, Options::default());
    assert!(timeout(hour * 24 * 30, forever).await.is_err(), "ended by itself");

    let options = Options { idle_timeout: Some(hour), ..Options::default() };
    let start = tokio::time::Instant::now();
    let error = carry_with(&mut near, &mut far, &counters, options).await.unwrap_err();
    assert!(matches!(error, RelayError::Idle { timeout, .. } if timeout == hour), "{error}");
    assert_eq!(start.elapsed(), hour);
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_either_way_keeps_a_relay_alive_for_hours() {
    let hour = Duration::from_secs(3600);
    let (mut client, mut near) = duplex(64);
    let (mut enclave, mut far) = duplex(64);
    let counters = Counters::default();
    let options = Options { idle_timeout: Some(hour), ..Options::default() };
    let peers = async {
        for _ in 0..10 {
            tokio::time::sleep(hour - Duration::from_secs(1)).await;
            client.write_all(b"?").await.unwrap();
            enclave.read_exact(&mut [0]).await.unwrap();
            tokio::time::sleep(hour - Duration::from_secs(1)).await;
            enclave.write_all(b"!").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
        }
        tokio::time::Instant::now()
    };
    let (outcome, last) = tokio::join!(carry_with(&mut near, &mut far, &counters, options), peers);
    let moved = Moved { to_vsock: 10, from_vsock: 10 };
    assert!(matches!(outcome, Err(RelayError::Idle { moved: counted, .. }) if counted == moved));
    assert_eq!(last.elapsed(), hour);
}
