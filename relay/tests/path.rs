//! The data path on in-memory streams: order, half-close, write cap, errors.

#![allow(clippy::expect_used, clippy::unwrap_used)] // a failure here is the test's

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use relay::{Counters, Moved, Options, RelayError, VSOCK_WRITE_MAX, carry, carry_with, carry_witnessed};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::time::{Instant, timeout};

/// A stream that notes its longest write and can be told to fail.
struct Observed {
    inner: DuplexStream,
    longest_write: usize,
    shutdowns: usize,
    /// Bytes until reads fail, and until writes do.
    fail_reads: Option<usize>,
    fail_writes: Option<usize>,
}

impl Observed {
    fn new(inner: DuplexStream) -> Observed {
        Observed { inner, longest_write: 0, shutdowns: 0, fail_reads: None, fail_writes: None }
    }
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.fail_reads == Some(0) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut most = buffer.take(self.fail_reads.unwrap_or(usize::MAX));
        let outcome = Pin::new(&mut self.inner).poll_read(context, &mut most);
        let count = most.filled().len();
        buffer.advance(count);
        self.fail_reads = self.fail_reads.map(|left| left - count);
        outcome
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.longest_write = self.longest_write.max(bytes.len());
        if self.fail_writes == Some(0) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let most = bytes.len().min(self.fail_writes.unwrap_or(usize::MAX));
        let written = std::task::ready!(Pin::new(&mut self.inner).poll_write(context, &bytes[..most]))?;
        self.fail_writes = self.fail_writes.map(|left| left - written);
        Poll::Ready(Ok(written))
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
    let mut far = Observed { fail_reads: Some(0), ..Observed::new(far) };
    let error = carry(&mut near, &mut far, &Counters::default()).await.unwrap_err();
    assert!(
        matches!(error, RelayError::Vsock { moved: Moved { to_vsock: 0, from_vsock: 0 }, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn what_was_read_before_goes_first_and_within_the_cap() {
    let (mut client, mut near) = duplex(1024);
    let (mut enclave, far) = duplex(1024);
    let mut far = Observed::new(far);
    let already_read: Vec<u8> = (0..300_000).map(|index| (index % 251) as u8).collect();
    let expected = [&already_read[..], b"and the rest"].concat();
    let options = Options { already_read, ..Options::default() };
    let counters = Counters::default();
    let peers = async {
        client.write_all(b"and the rest").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        enclave.read_to_end(&mut received).await.unwrap();
        assert!(received == expected, "{} bytes", received.len());
        enclave.shutdown().await.unwrap();
    };
    let (moved, ()) = tokio::join!(carry_with(&mut near, &mut far, &counters, options), peers);
    assert_eq!(moved.unwrap().to_vsock, expected.len() as u64);
    assert!(far.longest_write <= VSOCK_WRITE_MAX);
}

/// A stream whose writes wait while it is shut, and are noted.
struct Gated {
    inner: DuplexStream,
    gate: Rc<RefCell<Gate>>,
}

#[derive(Default)]
struct Gate {
    is_open: bool,
    waiting: Option<Waker>,
    writes: Vec<usize>,
}

impl Gate {
    fn open(&mut self) {
        self.is_open = true;
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gate = Rc::clone(&self.gate);
        let mut gate = gate.borrow_mut();
        if !gate.is_open {
            gate.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        let written = std::task::ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        gate.writes.push(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

const PIECE: usize = 1024;

/// A pipe of one piece: whoever has sent the next one knows that the last one was
/// read. The paused clock moves only when everything is stuck.
#[tokio::test(start_paused = true)]
async fn what_comes_while_a_write_waits_becomes_one_write_within_the_cap() {
    for count in [20, VSOCK_WRITE_MAX / PIECE + 1] {
        let (mut client, mut near) = duplex(PIECE);
        let (mut enclave, inner) = duplex(1 << 20);
        let gate = Rc::new(RefCell::new(Gate::default()));
        let mut far = Gated { inner, gate: Rc::clone(&gate) };
        let peers = async {
            for _ in 0..count {
                let sent = timeout(Duration::from_secs(1), client.write_all(&[7; PIECE])).await;
                sent.expect("reading goes on while the write waits").unwrap();
            }
            let more = timeout(Duration::from_secs(1), client.write_all(&[7; PIECE])).await;
            assert_eq!(more.is_ok(), count == 20, "no more than a full write is read ahead");
            gate.borrow_mut().open();
            client.shutdown().await.unwrap();
            let mut received = Vec::new();
            enclave.read_to_end(&mut received).await.unwrap();
            enclave.shutdown().await.unwrap();
            received.len()
        };
        let counters = Counters::default();
        let (moved, received) = tokio::join!(carry(&mut near, &mut far, &counters), peers);
        assert_eq!(moved.unwrap().to_vsock, received as u64);
        // What is in the pipe when the write goes on follows by itself.
        assert_eq!(gate.borrow().writes, [VSOCK_WRITE_MAX.min(count * PIECE), PIECE]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_piece_that_can_be_written_waits_for_no_other() {
    let (mut client, mut near) = duplex(PIECE);
    let (mut enclave, inner) = duplex(1 << 20);
    let gate = Rc::new(RefCell::new(Gate::default()));
    gate.borrow_mut().open();
    let mut far = Gated { inner, gate: Rc::clone(&gate) };
    let begun = Instant::now();
    let peers = async {
        for _ in 0..100 {
            client.write_all(b"piece").await.unwrap();
            let piece = timeout(Duration::from_secs(1), enclave.read_exact(&mut [0; 5])).await;
            piece.expect("a piece arrives by itself").unwrap();
        }
        client.shutdown().await.unwrap();
        enclave.shutdown().await.unwrap();
    };
    let counters = Counters::default();
    let (moved, ()) = tokio::join!(carry(&mut near, &mut far, &counters), peers);
    assert_eq!(moved.unwrap().to_vsock, 500);
    assert_eq!(gate.borrow().writes, [5; 100]);
    assert_eq!(begun.elapsed(), Duration::ZERO, "nothing waited for a timer");
}

/// The client has ended its direction and waits; then the vsock ends too.
async fn ended_in_doubt(is_alive: bool) -> (Result<Moved, RelayError>, usize, usize) {
    let (mut client, near) = duplex(1024);
    let (mut enclave, mut far) = duplex(1024);
    let mut near = Observed::new(near);
    let asked = std::cell::Cell::new(0);
    let witness = || {
        asked.set(asked.get() + 1);
        std::future::ready(is_alive)
    };
    let peers = async {
        client.shutdown().await.unwrap();
        assert_eq!(enclave.read(&mut [0]).await.unwrap(), 0);
        enclave.write_all(b"answer").await.unwrap();
        enclave.shutdown().await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
    };
    let counters = Counters::default();
    let relay = carry_witnessed(&mut near, &mut far, &counters, Options::default(), Some(witness));
    let (outcome, ()) = tokio::join!(relay, peers);
    (outcome, near.shutdowns, asked.get())
}

#[tokio::test]
async fn an_end_that_may_be_a_death_is_passed_on_only_when_somebody_lives_there() {
    let (outcome, shutdowns, asked) = ended_in_doubt(true).await;
    assert_eq!((outcome.unwrap().from_vsock, shutdowns, asked), (6, 1, 1));
    let (outcome, shutdowns, asked) = ended_in_doubt(false).await;
    assert!(matches!(outcome, Err(RelayError::Vsock { moved: Moved { from_vsock: 6, .. }, .. })));
    assert_eq!((shutdowns, asked), (0, 1));
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

/// Sends `bytes` and reads to the end; whatever becomes of the stream.
async fn exchange(stream: DuplexStream, bytes: Vec<u8>) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        let _ = writer.write_all(&bytes).await;
        let _ = writer.shutdown().await;
    };
    let mut received = Vec::new();
    let receive = async {
        let _ = reader.read_to_end(&mut received).await;
    };
    tokio::join!(send, receive);
    received
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn wherever_a_socket_fails_what_arrived_is_right_and_the_end_is_no_clean_one(
        up in 0usize..20_000, down in 0usize..20_000, buffer in 1usize..4096,
        at in 0usize..20_000, on_reading in any::<bool>(), on_vsock in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (client, near) = duplex(buffer);
            let (enclave, far) = duplex(buffer);
            let (mut near, mut far) = (Observed::new(near), Observed::new(far));
            let failing = if on_vsock { &mut far } else { &mut near };
            *(if on_reading { &mut failing.fail_reads } else { &mut failing.fail_writes }) = Some(at);
            // How many bytes come to the failing half, whose end of stream it would see.
            let reached = if on_reading == on_vsock { down } else { up };
            let of = |length: usize, step: usize| (0..length).map(|index| (index * step % 251) as u8).collect::<Vec<_>>();
            let (ups, downs) = (of(up, 1), of(down, 7));
            let counters = Counters::default();
            let relay = async {
                let outcome = carry(&mut near, &mut far, &counters).await;
                let shutdowns = (near.shutdowns, far.shutdowns);
                // Both ends see it end, as they do when the relay closes its sockets.
                drop((near, far));
                (outcome, shutdowns)
            };
            let ((outcome, shutdowns), got_down, got_up) =
                tokio::join!(relay, exchange(client, ups.clone()), exchange(enclave, downs.clone()));
            assert!(ups.starts_with(&got_up) && downs.starts_with(&got_down), "bytes changed");
            assert!(shutdowns.0 <= 1 && shutdowns.1 <= 1);
            let fails = if on_reading { at <= reached } else { at < reached };
            assert_eq!(outcome.is_err(), fails, "{outcome:?}");
            if let Err(error) = outcome {
                assert_eq!(matches!(error, RelayError::Vsock { .. }), on_vsock, "{error}");
            } else {
                assert_eq!((got_up.len(), got_down.len(), shutdowns), (up, down, (1, 1)));
            }
        });
    }

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
