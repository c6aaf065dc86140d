//! The data path on in-memory streams: order, half-close, write cap, errors.

#![allow(clippy::unwrap_used)] // a failure here is the test's

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::prelude::*;
use relay::{Counters, Moved, RelayError, VSOCK_WRITE_MAX, carry};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

/// A stream that notes its longest write and can be told to fail.
struct Observed {
    inner: DuplexStream,
    longest_write: usize,
    shutdowns: usize,
    fail_reads: bool,
}

impl Observed {
    fn new(inner: DuplexStream) -> Observed {
        Observed { inner, longest_write: 0, shutdowns: 0, fail_reads: false }
    }
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.fail_reads {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.longest_write = self.longest_write.max(bytes.len());
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_shutdown(context);
        if done.is_ready() {
            self.shutdowns += 1;
        }
        done
    }
}

#[tokio::test]
async fn half_close_reaches_the_enclave_and_its_answer_still_returns() {
    let (mut client, mut near) = duplex(1024);
    let (mut enclave, mut far) = duplex(1024);
    let counters = Counters::default();
    let relay = carry(&mut near, &mut far, &counters);
    let peers = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        enclave.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        enclave.write_all(b"answer").await.unwrap();
        enclave.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    };
    let (moved, ()) = tokio::join!(relay, peers);
    assert_eq!(moved.unwrap(), Moved { to_vsock: 8, from_vsock: 6 });
    assert_eq!((counters.to_vsock(), counters.from_vsock()), (8, 6));
}

#[tokio::test]
async fn the_enclave_may_close_first_and_still_receive() {
    let (mut client, mut near) = duplex(1024);
    let (mut enclave, mut far) = duplex(1024);
    let counters = Counters::default();
    let peers = async {
        enclave.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "the end of the stream is passed on");
        client.write_all(b"late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut late = Vec::new();
        enclave.read_to_end(&mut late).await.unwrap();
        assert_eq!(late, b"late");
    };
    let (moved, ()) = tokio::join!(carry(&mut near, &mut far, &counters), peers);
    assert_eq!(moved.unwrap(), Moved { to_vsock: 4, from_vsock: 0 });
}

#[tokio::test]
async fn no_write_to_the_vsock_is_longer_than_the_cap() {
    let (mut client, mut near) = duplex(1 << 20);
    let (mut enclave, far) = duplex(1 << 20);
    let mut far = Observed::new(far);
    let counters = Counters::default();
    let payload: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    let expected = payload.clone();
    let peers = async {
        let send = async {
            client.write_all(&payload).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let receive = async {
            enclave.read_to_end(&mut received).await.unwrap();
            enclave.shutdown().await.unwrap();
        };
        tokio::join!(send, receive);
        assert!(received == expected, "payload changed");
    };
    let (moved, ()) = tokio::join!(carry(&mut near, &mut far, &counters), peers);
    moved.unwrap();
    assert_eq!(far.longest_write, VSOCK_WRITE_MAX);
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_everything() {
    let (mut client, mut near) = duplex(100);
    let (mut enclave, mut far) = duplex(1 << 20);
    let counters = Counters::default();
    let payload: Vec<u8> = (0..2_000_000u32).map(|index| (index % 251) as u8).collect();
    let peers = async {
        let send = async {
            enclave.write_all(&payload).await.unwrap();
            enclave.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let receive = async {
            client.read_to_end(&mut received).await.unwrap();
            client.shutdown().await.unwrap();
        };
        tokio::join!(send, receive);
        assert!(received == payload, "payload changed");
    };
    let (moved, ()) = tokio::join!(carry(&mut near, &mut far, &counters), peers);
    assert_eq!(moved.unwrap(), Moved { to_vsock: 0, from_vsock: 2_000_000 });
}

#[tokio::test]
async fn an_error_ends_both_directions_and_names_its_side() {
    let (_client, mut near) = duplex(64);
    let (_enclave, far) = duplex(64);
    let mut far = Observed { fail_reads: true, ..Observed::new(far) };
    let error = carry(&mut near, &mut far, &Counters::default()).await.unwrap_err();
    assert!(
        matches!(error, RelayError::Vsock { moved: Moved { to_vsock: 0, from_vsock: 0 }, .. }),
        "{error}"
    );
}

/// What one peer does next.
#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Receive(usize),
    Yield,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1usize..5000).prop_map(Step::Send),
        (1usize..5000).prop_map(Step::Receive),
        Just(Step::Yield)
    ];
    proptest::collection::vec(step, 0..60)
}

/// Plays `steps`, then closes and reads the rest. Returns (sent, received).
async fn play(mut stream: DuplexStream, steps: Vec<Step>, seed: u8) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut script = steps.into_iter();
    // Sending may block on a full buffer while the peer blocks likewise: both halves run at once.
    let (to_send, to_receive): (Vec<Step>, Vec<Step>) =
        script.by_ref().partition(|step| !matches!(step, Step::Receive(_)));
    let send = async {
        for step in to_send {
            match step {
                Step::Send(length) => {
                    let piece: Vec<u8> = (0..length).map(|index| seed.wrapping_add(index as u8)).collect();
                    writer.write_all(&piece).await.unwrap();
                    sent.extend_from_slice(&piece);
                }
                _ => tokio::task::yield_now().await,
            }
        }
        writer.shutdown().await.unwrap();
    };
    let receive = async {
        for step in to_receive {
            let Step::Receive(length) = step else { continue };
            let mut piece = vec![0; length];
            let count = reader.read(&mut piece).await.unwrap();
            received.extend_from_slice(&piece[..count]);
        }
        reader.read_to_end(&mut received).await.unwrap();
    };
    tokio::join!(send, receive);
    (sent, received)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_interleaving_keeps_the_bytes_and_shuts_each_side_down_once(
        client_steps in steps(), enclave_steps in steps(), client_buffer in 1usize..4096, enclave_buffer in 1usize..4096,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (client, near) = duplex(client_buffer);
            let (enclave, far) = duplex(enclave_buffer);
            let (mut near, mut far) = (Observed::new(near), Observed::new(far));
            let counters = Counters::default();
            let (moved, client, enclave) = tokio::join!(
                carry(&mut near, &mut far, &counters),
                play(client, client_steps, 1),
                play(enclave, enclave_steps, 101),
            );
            let moved = moved.unwrap();
            assert!(client.0 == enclave.1, "towards the enclave");
            assert!(enclave.0 == client.1, "towards the client");
            assert_eq!(moved, Moved { to_vsock: client.0.len() as u64, from_vsock: enclave.0.len() as u64 });
            assert_eq!((near.shutdowns, far.shutdowns), (1, 1));
        });
    }
}
