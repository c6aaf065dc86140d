//! Accepts connections for as long as the enclave lives.
//!
//! ```text
//! accept ──▶ permit ──▶ task
//!   │ error    │ none
//!   ▼          ▼
//! back-off   close at once
//! ```
//! No error ends a listener: it would cut the workload off for good.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, VsockAddr};
use relay::Listener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use crate::log::log;

/// After the first error in a row, and at most: doubled in between.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Connections that the kernel holds between two accepts.
const BACKLOG: i32 = 128;

/// Where connections come from.
pub(crate) trait Accept {
    /// A connection.
    type Stream;
    /// The next one.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for VsockListener {
    type Stream = VsockStream;

    async fn accept(&mut self) -> io::Result<VsockStream> {
        Ok(VsockListener::accept(self).await?.0)
    }
}

impl Accept for Listener {
    type Stream = OwnedFd;

    async fn accept(&mut self) -> io::Result<OwnedFd> {
        Ok(Listener::accept(self).await?.0)
    }
}

/// A socket that listens on `port` of the enclave; no runtime watches it yet.
pub(crate) fn bind(port: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let listener = socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    socket::bind(listener.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port))?;
    socket::listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Hands connections to `serve` until `stop`, each with a permit that is held
/// while it is served. Without a permit left the connection is closed: a peer
/// that waits in silence learns nothing.
pub(crate) async fn listen<L: Accept>(
    mut listener: L,
    name: &str,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    mut serve: impl FnMut(L::Stream, OwnedSemaphorePermit),
) {
    let mut back_off = BACK_OFF.0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok(stream) => {
                back_off = BACK_OFF.0;
                if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
                    serve(stream, permit);
                }
            }
            Err(error) => {
                if back_off == BACK_OFF.0 {
                    log(&format!("{name}: cannot accept, will go on trying: {error}"));
                }
                tokio::select! {
                    () = tokio::time::sleep(back_off) => {}
                    () = stop.cancelled() => return,
                }
                back_off = (2 * back_off).min(BACK_OFF.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use tokio::sync::mpsc;

    /// Fails as often as it is told to between two connections.
    struct Failing {
        failures: usize,
        left: usize,
    }

    impl Accept for Failing {
        type Stream = usize;

        async fn accept(&mut self) -> io::Result<usize> {
            if self.left > 0 {
                self.left -= 1;
                return Err(Errno::EMFILE.into());
            }
            self.left = self.failures;
            tokio::task::yield_now().await;
            Ok(self.failures)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_survives_errors_and_slows_down_meanwhile() {
        let (served, mut connections) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let begun = tokio::time::Instant::now();
        let listener = tokio::spawn(listen(
            Failing { failures: 20, left: 20 },
            "test",
            Arc::new(Semaphore::new(8)),
            stop.clone(),
            move |stream, _permit| served.send(stream).unwrap(),
        ));
        for _ in 0..3 {
            assert_eq!(connections.recv().await, Some(20));
        }
        // 5 + 10 + … + 640 ms, then a second each: 20 errors take well over 10 s.
        assert!(begun.elapsed() > Duration::from_secs(30));
        stop.cancel();
        listener.await.unwrap();
    }

    #[tokio::test]
    async fn without_a_permit_connections_are_closed_and_never_queued() {
        let (served, mut connections) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (permits, held) = (Arc::new(Semaphore::new(2)), stop.clone());
        let mut kept = Vec::new();
        let listener = tokio::spawn(listen(
            Failing { failures: 0, left: 0 },
            "test",
            Arc::clone(&permits),
            stop.clone(),
            move |stream, permit| {
                kept.push(permit);
                served.send(stream).unwrap();
            },
        ));
        connections.recv().await.unwrap();
        connections.recv().await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(connections.is_empty());
        held.cancel();
        listener.await.unwrap();
        assert_eq!(permits.available_permits(), 2);
    }
}
