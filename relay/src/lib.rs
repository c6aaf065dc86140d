//! Carries bytes between a TCP and a vsock connection: the data path of the
//! shim on the parent and of the agent in the enclave.
//!
//! ```text
//! TCP  ── read ─▶ [ buffer ] ── writes of at most 31 KiB ─▶  vsock
//! TCP  ◀─ write ─ [ buffer ] ◀─────────────────── read ────  vsock
//! ```
//!
//! Each direction ends by itself: an end of stream is passed on as a shutdown
//! and the other direction goes on for as long as it likes. An error ends both,
//! and the TCP peer sees a reset, never a clean end of a cut stream.
//! [`carry`] is the path itself, [`relay`] the same on real sockets.

#![forbid(unsafe_code)]

mod direction;
mod pool;
mod vsock;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_vsock::VsockStream;

use direction::Direction;
use vsock::Vsock;

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
    /// The enclave reset the connection, or it ended.
    #[error("the vsock side failed after {} bytes in and {} out", .moved.to_vsock, .moved.from_vsock)]
    Vsock {
        /// What had been carried.
        moved: Moved,
        /// The socket's error.
        source: io::Error,
    },
}

/// Carries until both directions have ended. On an error the TCP peer is reset.
pub async fn relay(
    mut tcp: TcpStream,
    vsock: VsockStream,
    counters: &Counters,
) -> Result<Moved, RelayError> {
    let mut vsock = Vsock::new(vsock).map_err(|source| RelayError::Vsock { moved: Moved::default(), source })?;
    let outcome = carry(&mut tcp, &mut vsock, counters).await;
    if outcome.is_err() {
        // Without this the kernel would close with FIN: the peer would take a cut stream for a whole one.
        // The call fails only on a socket that is gone already.
        let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
    }
    outcome
}

/// The path itself, on any two streams. Cancel it by dropping the future.
pub async fn carry<A, B>(tcp: &mut A, vsock: &mut B, counters: &Counters) -> Result<Moved, RelayError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut inward = Direction::new(VSOCK_WRITE_MAX);
    let mut outward = Direction::new(usize::MAX);
    let ended = poll_fn(|context| {
        let inward_done =
            inward.poll(context, Pin::new(&mut *tcp), Pin::new(&mut *vsock), &counters.to_vsock);
        let outward_done =
            outward.poll(context, Pin::new(&mut *vsock), Pin::new(&mut *tcp), &counters.from_vsock);
        both(inward_done.map_err(Fault::inward), outward_done.map_err(Fault::outward))
    })
    .await;
    let moved = Moved { to_vsock: inward.moved(), from_vsock: outward.moved() };
    match ended {
        Ok(()) => Ok(moved),
        Err(Fault::Tcp(source)) => Err(RelayError::Tcp { moved, source }),
        Err(Fault::Vsock(source)) => Err(RelayError::Vsock { moved, source }),
    }
}

/// Which socket failed.
enum Fault {
    Tcp(io::Error),
    Vsock(io::Error),
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
