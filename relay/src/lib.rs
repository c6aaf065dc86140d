//! Carries bytes between a TCP and a vsock connection: the data path of the
//! shim on the parent and of the agent in the enclave.
//!
//! ```text
//! TCP  ── read ─▶ [ buffer ] ── writes of at most 31 KiB ─▶  vsock
//! TCP  ◀─ write ─ [ buffer ] ◀─────────────────── read ────  vsock
//! ```
//! Buffers belong to the thread, not to the connection: a connection that
//! waits holds none. Nothing waits for more bytes than there are.
//!
//! Each direction ends by itself: an end of stream is passed on as a shutdown
//! and the other direction goes on for as long as it likes. An error ends both,
//! and the TCP peer sees a reset, never a clean end of a cut stream.
//! [`carry`] is the path itself, [`relay_with`] the same on real sockets, on the
//! threads of [`Carriers`].

#![forbid(unsafe_code)]

mod carriers;
mod direction;
mod listener;
mod pool;
mod vsock;

use std::future::{Future, Ready, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

pub use carriers::{Carriers, Place};
use direction::Direction;
pub use listener::Listener;
pub use vsock::Vsock;

/// Longest single write to a vsock, in bytes.
///
/// Longer ones become nonlinear socket buffers in guests with Linux 6.12.41 or
/// newer (commit 6693731487a8) and are silently corrupted on Nitro; 31 KiB
/// stays below 32 KiB with the packet's header.
pub const VSOCK_WRITE_MAX: usize = 31 * 1024;

/// Bytes carried so far, over all relays that share it.
#[derive(Debug, Default)]
pub struct Counters {
    to_vsock: AtomicU64,
    from_vsock: AtomicU64,
}

impl Counters {
    /// Bytes written to vsocks.
    pub fn to_vsock(&self) -> u64 {
        self.to_vsock.load(Ordering::Relaxed)
    }

    /// Bytes written to TCP connections.
    pub fn from_vsock(&self) -> u64 {
        self.from_vsock.load(Ordering::Relaxed)
    }

    /// Counts bytes from a vsock that the caller wrote to TCP before it let a relay do so.
    pub fn count_from_vsock(&self, bytes: u64) {
        self.from_vsock.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Bytes that one relay carried.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Bytes written to the vsock.
    pub to_vsock: u64,
    /// Bytes written to the TCP connection.
    pub from_vsock: u64,
}

/// Why a relay ended before both directions did. Blame is in the variant.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The TCP peer reset the connection, or it broke.
    #[error("the TCP side failed after {} bytes in and {} out", .moved.to_vsock, .moved.from_vsock)]
    Tcp {
        /// What had been carried.
        moved: Moved,
        /// The socket's error.
        source: io::Error,
    },
    /// The enclave's end reset the connection, gave it up, or ended.
    #[error("the vsock side failed after {} bytes in and {} out", .moved.to_vsock, .moved.from_vsock)]
    Vsock {
        /// What had been carried.
        moved: Moved,
        /// The socket's error.
        source: io::Error,
    },
    /// No byte went either way for [`Options::idle_timeout`].
    #[error("idle for {timeout:?} after {} bytes in and {} out", .moved.to_vsock, .moved.from_vsock)]
    Idle {
        /// What had been carried.
        moved: Moved,
        /// The limit that was reached.
        timeout: Duration,
    },
}

/// What a relay does beyond carrying.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// Ends a relay that has written nothing either way for so long. Off by
    /// default: databases and queues keep silent connections for days.
    pub idle_timeout: Option<Duration>,
    /// The program at the other end of the vsock relays with this crate too.
    ///
    /// A vsock cannot carry a reset: its close is seen as an end of stream
    /// (net/vmw_vsock/virtio_transport_common.c). But a relay closes only when
    /// both directions have ended or one has failed, so a far end that closes
    /// while this one may still write has given up: the TCP peer is reset.
    /// After this side has ended its own direction the two look alike.
    pub far_end_relays: bool,
    /// What the caller has read from the TCP side already, to see whose
    /// connection it is. It goes to the vsock first.
    pub already_read: Vec<u8>,
}

/// Carries until both directions have ended. On an error, and when the future is
/// dropped, the TCP peer is reset.
pub async fn relay_with(
    tcp: TcpStream,
    vsock: Vsock,
    counters: &Counters,
    options: Options,
) -> Result<Moved, RelayError> {
    relay_witnessed(tcp, vsock, counters, options, NOBODY).await
}

/// [`relay_with`] over anything that ends at a vsock, such as TLS on one.
pub async fn relay_over<S: AsyncRead + AsyncWrite + Unpin>(
    tcp: TcpStream,
    vsock: &mut S,
    counters: &Counters,
    options: Options,
) -> Result<Moved, RelayError> {
    let mut tcp = Client { stream: tcp, whole: false };
    let outcome = carry_with(&mut tcp.stream, vsock, counters, options).await;
    tcp.whole = outcome.is_ok();
    outcome
}

/// [`relay_with`] and a witness, for ends of stream that may be the far end's death.
///
/// A context that dies looks on a vsock like one that has ended its streams.
/// While the TCP peer may still send, the relay can tell; once it has ended its
/// own direction, nothing on the socket does. `is_alive` is asked then, before
/// the end is passed on: if the far end does not live, the peer is reset.
pub async fn relay_witnessed<W, F>(
    tcp: TcpStream,
    mut vsock: Vsock,
    counters: &Counters,
    options: Options,
    is_alive: Option<W>,
) -> Result<Moved, RelayError>
where
    W: FnOnce() -> F,
    F: Future<Output = bool>,
{
    let mut tcp = Client { stream: tcp, whole: false };
    let outcome = carry_witnessed(&mut tcp.stream, &mut vsock, counters, options, is_alive).await;
    tcp.whole = outcome.is_ok();
    outcome
}

/// No witness.
const NOBODY: Option<fn() -> Ready<bool>> = None;

/// The TCP side. Without this the kernel would close a cut stream with FIN,
/// and the peer would take it for a whole one.
struct Client {
    stream: TcpStream,
    whole: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.whole {
            // Fails only on a socket that is gone already.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// The path itself, on any two streams. Cancel it by dropping the future.
pub async fn carry<A, B>(tcp: &mut A, vsock: &mut B, counters: &Counters) -> Result<Moved, RelayError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    carry_with(tcp, vsock, counters, Options::default()).await
}

/// [`carry`] with options.
pub async fn carry_with<A, B>(
    tcp: &mut A,
    vsock: &mut B,
    counters: &Counters,
    options: Options,
) -> Result<Moved, RelayError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    carry_witnessed(tcp, vsock, counters, options, NOBODY).await
}

/// [`carry_with`] and a witness, see [`relay_witnessed`].
pub async fn carry_witnessed<A, B, W, F>(
    tcp: &mut A,
    vsock: &mut B,
    counters: &Counters,
    options: Options,
    mut is_alive: Option<W>,
) -> Result<Moved, RelayError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
    W: FnOnce() -> F,
    F: Future<Output = bool>,
{
    let Options { idle_timeout, far_end_relays, already_read } = options;
    let mut inward = Direction::after(already_read, VSOCK_WRITE_MAX);
    let mut outward = Direction::new(usize::MAX);
    let mut idle = idle_timeout.map(Idle::new);
    let ended = loop {
        let doubts = is_alive.is_some();
        let ended = poll_fn(|context| {
            let inward_done =
                inward.poll(context, Pin::new(&mut *tcp), Pin::new(&mut *vsock), &counters.to_vsock);
            outward.suspect_full_close(far_end_relays && inward_done.is_pending());
            outward.hold_end(doubts && inward_done.is_ready());
            let outward_done =
                outward.poll(context, Pin::new(&mut *vsock), Pin::new(&mut *tcp), &counters.from_vsock);
            if outward.is_held() && matches!(inward_done, Poll::Ready(Ok(()))) {
                return Poll::Ready(Ok(Ended::InDoubt));
            }
            let done = both(inward_done.map_err(Fault::inward), outward_done.map_err(Fault::outward));
            match &mut idle {
                Some(idle) if done.is_pending() => idle.poll(context, inward.moved() + outward.moved()),
                _ => done,
            }
            .map_ok(|()| Ended::Both)
        })
        .await;
        match ended {
            Ok(Ended::Both) => break Ok(()),
            Err(fault) => break Err(fault),
            Ok(Ended::InDoubt) => {
                // Boxed: what is needed for a moment must not stay with the connection for life.
                if let Some(is_alive) = is_alive.take()
                    && !Box::pin(is_alive()).await
                {
                    break Err(Fault::Vsock(io::ErrorKind::ConnectionReset.into()));
                }
            }
        }
    };
    let moved = Moved { to_vsock: inward.moved(), from_vsock: outward.moved() };
    match ended {
        Ok(()) => Ok(moved),
        Err(Fault::Tcp(source)) => Err(RelayError::Tcp { moved, source }),
        Err(Fault::Vsock(source)) => Err(RelayError::Vsock { moved, source }),
        Err(Fault::Idle(timeout)) => Err(RelayError::Idle { moved, timeout }),
    }
}

/// Where a relay has come to.
enum Ended {
    /// Nothing is left to do.
    Both,
    /// Only an end of stream from the vsock is left, which may be a death.
    InDoubt,
}

/// Notices that nothing moves.
struct Idle {
    timeout: Duration,
    alarm: Pin<Box<Sleep>>,
    moved: u64,
    since: Instant,
}

impl Idle {
    fn new(timeout: Duration) -> Idle {
        Idle { timeout, alarm: Box::pin(sleep(timeout)), moved: 0, since: Instant::now() }
    }

    /// Moving bytes only note the time; the alarm is set anew when it rings.
    fn poll(&mut self, context: &mut Context<'_>, moved: u64) -> Poll<Result<(), Fault>> {
        if moved != self.moved {
            (self.moved, self.since) = (moved, Instant::now());
        }
        while self.alarm.as_mut().poll(context).is_ready() {
            let deadline = self.since + self.timeout;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(Fault::Idle(self.timeout)));
            }
            self.alarm.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// What ended a relay early.
enum Fault {
    Tcp(io::Error),
    Vsock(io::Error),
    Idle(Duration),
}

impl Fault {
    fn inward(error: direction::Error) -> Fault {
        match error {
            direction::Error::Read(source) => Fault::Tcp(source),
            direction::Error::Write(source) => Fault::Vsock(source),
        }
    }

    fn outward(error: direction::Error) -> Fault {
        match error {
            direction::Error::Read(source) => Fault::Vsock(source),
            direction::Error::Write(source) => Fault::Tcp(source),
        }
    }
}

fn both(a: Poll<Result<(), Fault>>, b: Poll<Result<(), Fault>>) -> Poll<Result<(), Fault>> {
    match (a, b) {
        (Poll::Ready(Err(fault)), _) | (_, Poll::Ready(Err(fault))) => Poll::Ready(Err(fault)),
        (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
        _ => Poll::Pending,
    }
}
