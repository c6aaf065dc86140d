//! Accepts connections for as long as the enclave lives.
//!
//! ```text
//! accept ──▶ place ──▶ task
//!   │ error    │ none
//!   ▼          ▼
//! back-off   refuse at once, tell of it now and then
//! ```
//! No error ends a listener: it would cut the workload off for good.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// Whoever finds no place may try again for ever; one line tells of it.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Where connections come from.
pub(crate) trait Accept {
    /// A connection.
    type Stream;
    /// The next one.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Ends one that has no place. A vsock knows but one way to close; the shim takes it for what it is.
    fn refuse(stream: Self::Stream) {
        drop(stream);
    }
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

/// Places for connections, of one listener or of several together.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    free: Arc<Semaphore>,
    refused: Mutex<Refused>,
}

impl Places {
    /// That many.
    pub(crate) fn new(all: usize) -> Places {
        Places { all, free: Arc::new(Semaphore::new(all)), refused: Mutex::default() }
    }

    /// One of them, until it is dropped. None is told of on the console.
    pub(crate) fn take(&self, name: &str) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.free).try_acquire_owned().ok();
        if place.is_none() {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let news = refused.one(Instant::now());
            // The console is slow.
            drop(refused);
            if let Some(count) = news {
                log(&format!("{name}: all {} places are taken; connections refused: {count}", self.all));
            }
        }
        place
    }

    /// How many are left.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.available_permits()
    }
}

/// Connections that found no place.
#[derive(Debug, Default)]
struct Refused {
    told: Option<Instant>,
    untold: u64,
}

impl Refused {
    /// Counts one; how many there are to tell of, if it is time.
    fn one(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.duration_since(told) < TELL_AGAIN_AFTER) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
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

/// Hands connections to `serve` until `stop`, each with a place that is held
/// while it is served. Without a place left the connection is refused: a peer
/// that waits in silence learns nothing.
pub(crate) async fn listen<L: Accept>(
    mut listener: L,
    name: &str,
    places: Arc<Places>,
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
                match places.take(name) {
                    Some(place) => serve(stream, place),
                    None => L::refuse(stream),
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
            Arc::new(Places::new(8)),
            stop.clone(),
            move |stream, _place| served.send(stream).unwrap(),
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
    async fn without_a_place_connections_are_closed_and_never_queued() {
        let (served, mut connections) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (places, held) = (Arc::new(Places::new(2)), stop.clone());
        let mut kept = Vec::new();
        let listener = tokio::spawn(listen(
            Failing { failures: 0, left: 0 },
            "test",
            Arc::clone(&places),
            stop.clone(),
            move |stream, place| {
                kept.push(place);
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
        assert_eq!(places.free(), 2);
    }

    #[test]
    fn a_flood_without_places_is_told_once_in_ten_seconds_with_its_size() {
        let begun = Instant::now();
        let mut refused = Refused::default();
        assert_eq!(refused.one(begun), Some(1));
        let soon = begun + TELL_AGAIN_AFTER - Duration::from_millis(1);
        assert!((0..1000).all(|_| refused.one(soon).is_none()));
        assert_eq!(refused.one(begun + TELL_AGAIN_AFTER), Some(1001));
        assert_eq!(refused.one(begun + TELL_AGAIN_AFTER), None);
    }

    #[test]
    fn whoever_finds_no_place_is_told_of_and_nobody_else() {
        let places = Places::new(1);
        let told = || places.refused.lock().unwrap().told;
        let place = places.take("test").unwrap();
        assert_eq!(told(), None);
        assert!(places.take("test").is_none());
        assert!(told().is_some());
        drop(place);
        assert!(places.take("test").is_some());
    }
}
