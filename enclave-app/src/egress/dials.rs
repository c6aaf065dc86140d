//! Connections that the shim is asked for, and those that it brings.
//!
//! ```text
//! dial ── Dial {stream} ──▶ control ──▶ shim ─┬─ Undialled ──▶ control ─▶ refuse
//!   ▲                                         └─ stream port: hello, attach ─▶ serve
//!   └──────────────── by the number ◀───────────────────────────┴───────────────┘
//! ```

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use egress::Target;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_vsock::VsockStream;
use wire::{Attach, ToShim, Undialled};

use crate::claim::{Claim, NotAdmitted, Purpose};
use crate::frames::{Frames, FramesError};

/// Requests that wait for a control connection.
const MAX_UNSAID: usize = 1024;
/// The shim's own limit is shorter; this is for one that has gone.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// From the shim's hello to its attach, which it sends together.
const ATTACHED_WITHIN: Duration = Duration::from_secs(2);

/// A connection that the shim has brought.
#[derive(Debug)]
pub(crate) struct Attached {
    /// To the shim, and behind it to where the workload wanted. No runtime watches it any
    /// more: its client's carrier will.
    pub(crate) stream: OwnedFd,
    /// What came with the last frame.
    pub(crate) first_bytes: Vec<u8>,
}

pub(super) type Answer = Result<Attached, Undialled>;

/// Every request that has no answer yet.
#[derive(Debug)]
pub(crate) struct Dials {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    unsaid: mpsc::Sender<ToShim>,
    /// Read by the control connection that is served.
    outbox: tokio::sync::Mutex<mpsc::Receiver<ToShim>>,
}

impl Default for Dials {
    fn default() -> Dials {
        let (unsaid, outbox) = mpsc::channel(MAX_UNSAID);
        Dials { next: AtomicU64::new(1), waiting: Mutex::default(), unsaid, outbox: outbox.into() }
    }
}

impl Dials {
    /// Asks the shim to connect to `target`, which the policy allows.
    pub(crate) async fn dial(&self, target: &Target) -> Answer {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting().insert(stream, answer);
        // Also when this future is dropped: nobody waits any more.
        let _forget = Forget { dials: self, stream };
        let request = ToShim::Dial { stream, host: target.host.bare(), port: target.port };
        if self.unsaid.try_send(request).is_err() {
            return Err(Undialled::Full);
        }
        match timeout(ANSWERED_WITHIN, answered).await {
            Ok(Ok(answer)) => answer,
            // The sender is only ever dropped by `_forget`.
            Ok(Err(_)) | Err(_) => Err(Undialled::Late),
        }
    }

    /// The next request to say. May be dropped and called again.
    pub(crate) async fn next_request(&self) -> ToShim {
        match self.outbox.lock().await.recv().await {
            Some(request) => request,
            // `self.unsaid` is a sender.
            None => std::future::pending().await,
        }
    }

    /// The shim does not connect.
    pub(crate) fn refuse(&self, stream: u64, reason: Undialled) {
        self.settle(stream, Err(reason));
    }

    pub(super) fn settle(&self, stream: u64, answer: Answer) {
        let waiting = self.waiting().remove(&stream);
        if let Some(waiting) = waiting {
            // Whoever asked may have gone in this very moment.
            let _ = waiting.send(answer);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Forget<'a> {
    dials: &'a Dials,
    stream: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.dials.waiting().remove(&self.stream);
    }
}

/// Takes one connection on the stream port to where it is waited for.
pub(crate) async fn serve(claim: &Claim, dials: &Dials, stream: VsockStream) -> Result<(), NotAdmitted> {
    let mut frames = Frames::new(stream);
    claim.greet(Purpose::Stream, &mut frames).await?;
    let attach = timeout(ATTACHED_WITHIN, frames.receive::<Attach>()).await;
    let Some(Attach { stream: number }) = attach.unwrap_or(Err(FramesError::Closed))? else { return Ok(()) };
    let (stream, first_bytes) = frames.into_parts();
    dials.settle(number, Ok(Attached { stream: stream.into(), first_bytes }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn target() -> Target {
        "api.example.com:443".parse().unwrap()
    }

    #[tokio::test]
    async fn a_refusal_reaches_the_one_that_asked_and_a_stray_one_nobody() {
        let dials = Arc::new(Dials::default());
        let asking = Arc::clone(&dials);
        let asked = tokio::spawn(async move { asking.dial(&target()).await });
        let ToShim::Dial { stream, host, port } = dials.next_request().await else { panic!("no dial") };
        assert_eq!((host.as_str(), port), ("api.example.com", 443));
        dials.refuse(stream + 1, Undialled::Late);
        dials.refuse(stream, Undialled::Refused);
        dials.refuse(stream, Undialled::Denied);
        assert_eq!(asked.await.unwrap().err(), Some(Undialled::Refused));
        assert!(dials.waiting().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_has_gone_is_not_waited_for_for_ever() {
        let dials = Dials::default();
        assert_eq!(dials.dial(&target()).await.err(), Some(Undialled::Late));
        assert!(dials.waiting().is_empty());
    }

    #[tokio::test]
    async fn a_client_that_has_gone_is_forgotten_and_no_queue_grows_without_bound() {
        let dials = Dials::default();
        for _ in 0..MAX_UNSAID {
            let asked = tokio::time::timeout(Duration::ZERO, dials.dial(&target())).await;
            assert!(asked.is_err());
        }
        assert!(dials.waiting().is_empty());
        assert_eq!(dials.dial(&target()).await.err(), Some(Undialled::Full));
    }
}
