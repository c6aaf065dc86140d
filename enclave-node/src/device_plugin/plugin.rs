//! One resource's life beside kubelet's.
//!
//! ```text
//!          ┌──────────── kubelet started, our socket is gone ───────────────┐
//!          ▼                                                                │
//! Binding ──▶ Serving ──register──▶ Registered ──no stream for a while──▶ register again
//!                ▲ │ refused: wait longer each time, or for kubelet's start │
//!                └─┘                                                        │
//! stop in any state: streams end, calls finish, the socket is removed ◀─────┘
//!
//! Serving, Registered ──another plugin took the socket──▶ Displaced ──it is gone──▶ Binding
//! ```
//! It serves before it registers, because kubelet dials back within `Register`.
//! Kubelet empties the directory when it starts and then makes its own socket:
//! whatever happened before that moment, everything begins anew after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::metrics::{Metrics, Outcome};
use super::offer::{Kind, Offer};
use super::registration::register;
use super::service::Service;
use super::settings::ResourceName;
use super::socket::{Identity, Socket};
use super::watch::Directory;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// A kubelet that registered us and does not listen has forgotten us.
const UNHEARD: Duration = Duration::from_secs(10);

/// A resource and what it needs to be offered.
#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) kind: Kind,
    pub(crate) resource: ResourceName,
    /// Kubelet's plugin directory.
    pub(crate) plugins: PathBuf,
    /// The device's path on the node.
    pub(crate) device: Arc<str>,
    pub(crate) offers: watch::Receiver<Arc<Offer>>,
    pub(crate) directory: watch::Receiver<Directory>,
    /// Streams of this resource; kubelet listens when there is one.
    pub(crate) watchers: watch::Sender<usize>,
    pub(crate) metrics: Metrics,
}

/// Why a server has ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Stopped,
    Outdated,
    /// A newer plugin serves in our place, as during a rolling update: it wins.
    Displaced,
}

impl Plugin {
    /// Serves and registers until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut retry = Retry::default();
        loop {
            let starts = self.directory.borrow_and_update().kubelet_starts;
            let path = self.plugins.join(self.resource.socket());
            let ended = match Socket::bind(&path) {
                Ok(socket) => {
                    retry = Retry::default();
                    self.serve(socket, starts, &stop).await
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(resource = %self.resource, %error, cause, "cannot serve");
                    tokio::select! {
                        () = stop.cancelled() => Ended::Stopped,
                        () = sleep(retry.next()) => Ended::Outdated,
                    }
                }
            };
            match ended {
                Ended::Stopped => return,
                Ended::Outdated => {}
                Ended::Displaced => tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.rival_ends(&path) => {}
                },
            }
        }
    }

    /// Waits until nobody serves on the socket at `path`.
    async fn rival_ends(&mut self, path: &Path) {
        tracing::warn!(resource = %self.resource, "another plugin has taken the socket, waiting for its end");
        while UnixStream::connect(path).await.is_ok() {
            // A rival that is killed leaves its socket, and no event.
            let _ = timeout(LAST_RETRY, self.directory.changed()).await;
        }
    }

    async fn serve(&mut self, socket: Socket, starts: u64, stop: &CancellationToken) -> Ended {
        let identity = socket.identity();
        let service = Service {
            kind: self.kind,
            device: Arc::clone(&self.device),
            offers: self.offers.clone(),
            watchers: self.watchers.clone(),
            metrics: self.metrics.clone(),
            stop: stop.child_token(),
            tasks: TaskTracker::new(),
        };
        let stop_server = service.stop.clone();
        let mut directory = self.directory.clone();
        let path = self.plugins.join(self.resource.socket());
        let outdated = async {
            loop {
                let seen = *directory.borrow_and_update();
                match Identity::of(&path) {
                    _ if seen.kubelet_starts != starts => return Ended::Outdated,
                    None => return Ended::Outdated,
                    Some(found) if found != identity => return Ended::Displaced,
                    Some(_) => {}
                }
                if directory.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let life = async {
            let ended = tokio::select! {
                () = stop.cancelled() => Ended::Stopped,
                ended = outdated => ended,
                ended = self.keep_registered() => ended,
            };
            stop_server.cancel();
            ended
        };
        let (ended, ()) = tokio::join!(life, socket.serve(service));
        ended
    }

    /// Registers, and again when kubelet does not listen any more. Never ends.
    async fn keep_registered(&self) -> Ended {
        let mut retry = Retry::default();
        loop {
            let outcome = register(&self.plugins, &self.resource.socket(), self.resource.as_str()).await;
            let metric = if outcome.is_ok() { Outcome::Ok } else { Outcome::Failed };
            self.metrics.registered(self.kind, metric);
            match outcome {
                Ok(()) => {
                    tracing::info!(resource = %self.resource, "registered");
                    retry = Retry::default();
                    self.unheard().await;
                    tracing::warn!(resource = %self.resource, "kubelet does not listen, registering again");
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(resource = %self.resource, %error, cause, "not registered");
                    sleep(retry.next()).await;
                }
            }
        }
    }

    /// Returns when there has been no stream for [`UNHEARD`].
    async fn unheard(&self) {
        let mut watchers = self.watchers.subscribe();
        let mut since = Instant::now();
        loop {
            let heard = *watchers.borrow_and_update() > 0;
            tokio::select! {
                _ = watchers.changed() => since = Instant::now(),
                () = sleep_until(since + UNHEARD), if !heard => return,
            }
        }
    }
}

/// Waits that double.
#[derive(Debug)]
struct Retry(Duration);

impl Default for Retry {
    fn default() -> Retry {
        Retry(FIRST_RETRY)
    }
}

impl Retry {
    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(LAST_RETRY);
        wait
    }
}
