//! Notices what changes on the node: its means for enclaves, kubelet's socket.
//!
//! Events come from inotify. Sysfs reports writes (the allocator's) that go
//! through the same mount, and nothing that the kernel does by itself; so the
//! node is also read anew every few seconds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InotifyEvent};
use tokio::sync::watch::{self, Sender};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::api::KUBELET_SOCKET;
use super::inotify::Watch;
use super::metrics::Metrics;
use super::node::{Node, Roots};
use super::offer::{Kind, Offer};

/// A directory of devices also changes for reasons that are not ours.
const DEVICE_NAME: &str = "nitro_enclaves";

/// Why nothing can be noticed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("cannot watch {} (is it mounted?)", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot use inotify (fs.inotify.max_user_instances reached?)")]
    Inotify(#[from] io::Error),
    #[error("the plugin directory was removed")]
    Removed,
}

/// Keeps the offers of all resources up to date.
#[derive(Debug)]
pub(crate) struct NodeWatch {
    roots: Roots,
    max: u32,
    every: Duration,
    offers: Vec<(Kind, Sender<Arc<Offer>>)>,
    metrics: Metrics,
}

impl NodeWatch {
    /// Reads the node at once. `max` enclaves; without events a look every `every`.
    pub(crate) fn new(
        roots: Roots,
        max: u32,
        every: Duration,
        kinds: &[Kind],
        metrics: Metrics,
    ) -> NodeWatch {
        let offers = kinds.iter().map(|kind| (*kind, watch::channel(Arc::default()).0)).collect();
        let watch = NodeWatch { roots, max, every, offers, metrics };
        watch.look();
        watch
    }

    /// Each resource with its offer, now and later.
    pub(crate) fn offers(&self) -> impl Iterator<Item = (Kind, watch::Receiver<Arc<Offer>>)> {
        self.offers.iter().map(|(kind, offer)| (*kind, offer.subscribe()))
    }

    /// Looks after every event until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), WatchError> {
        let watch = Watch::new()?;
        loop {
            // Before the look: what changes after it is an event.
            for place in self.roots.places_to_watch() {
                // What does not exist yet is tried again after the next look.
                let _ = watch.add(&place, changes() | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB);
            }
            self.look();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(self.every) => {}
                seen = meant_for_us(&watch) => seen?,
            }
        }
    }

    fn look(&self) {
        let node = Node::read(&self.roots);
        for (kind, sender) in &self.offers {
            let last = Arc::clone(&sender.borrow());
            let offer = Offer::new(*kind, &node, self.max, &last);
            self.metrics.offered(*kind, &offer);
            if offer != *last {
                report(*kind, &offer);
                sender.send_replace(Arc::new(offer));
            }
        }
    }
}

/// The device came or went, or something changed in sysfs. The rest of /dev does not matter.
async fn meant_for_us(watch: &Watch) -> io::Result<()> {
    loop {
        let modified = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB;
        let ours = |event: &InotifyEvent| {
            event.mask.intersects(modified | AddWatchFlags::IN_Q_OVERFLOW | AddWatchFlags::IN_IGNORED)
                || event
                    .name
                    .as_ref()
                    .is_some_and(|name| name == DEVICE_NAME || name == "ne_cpus" || name == "nr_hugepages")
        };
        if watch.next().await?.iter().any(ours) {
            return Ok(());
        }
    }
}

fn report(kind: Kind, offer: &Offer) {
    match offer.trouble {
        Some(trouble) => {
            tracing::warn!(resource = ?kind, devices = offer.devices.len(), %trouble, "unhealthy")
        }
        None => tracing::info!(resource = ?kind, devices = offer.devices.len(), "healthy"),
    }
}

/// Names that come and go.
fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE
}

/// What happened in the plugin directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Directory {
    /// How often kubelet's socket has appeared.
    pub(crate) kubelet_starts: u64,
    /// How often anything has.
    pub(crate) changes: u64,
}

/// Counts what happens in the plugin directory.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    watch: Watch,
    seen: Sender<Directory>,
    metrics: Metrics,
}

impl DirectoryWatch {
    /// Counts from now on.
    pub(crate) fn new(plugins: &Path, metrics: Metrics) -> Result<DirectoryWatch, WatchError> {
        let watch = Watch::new()?;
        watch
            .add(plugins, changes() | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF)
            .map_err(|source| WatchError::Directory { path: plugins.to_owned(), source })?;
        Ok(DirectoryWatch { watch, seen: watch::channel(Directory::default()).0, metrics })
    }

    pub(crate) fn seen(&self) -> watch::Receiver<Directory> {
        self.seen.subscribe()
    }

    /// Counts until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), WatchError> {
        loop {
            let events = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                events = self.watch.next() => events?,
            };
            for event in events {
                self.count(&event)?;
            }
        }
    }

    fn count(&self, event: &InotifyEvent) -> Result<(), WatchError> {
        let gone = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_IGNORED;
        if event.mask.intersects(gone) {
            return Err(WatchError::Removed);
        }
        let appeared = event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO);
        let kubelet = event.name.as_ref().is_some_and(|name| name == KUBELET_SOCKET);
        // After lost events anything may have happened.
        let started = (appeared && kubelet) || event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        if started {
            tracing::info!("kubelet has started");
            self.metrics.kubelet_started();
        }
        self.seen.send_modify(|seen| {
            seen.changes += 1;
            seen.kubelet_starts += u64::from(started);
        });
        Ok(())
    }
}
