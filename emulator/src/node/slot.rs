//! One enclave slot: what NE_CREATE_VM made, until its descriptor is closed.
//!
//! ```text
//! Init ──start──▶ Running ──init ended, killed──▶ Ended      (descriptor hangs up)
//!   └───────────────┴────── last close ──────────────┴──▶ freed (enclave killed, CPUs back)
//! ```
//!
//! The descriptor is the read end of a FIFO: it hangs up when the node drops
//! the write end, and inotify tells when its last copy is closed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::inotify::{AddWatchFlags, Inotify, WatchDescriptor};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::enclave::Enclave;
use super::ne::MemoryRegion;
use super::pool::Taken;

/// A slot.
pub(crate) struct Slot {
    /// The slot's number, never 0.
    pub(crate) uid: u64,
    /// Device and inode of the descriptor that stands for the slot.
    pub(crate) identity: (u64, u64),
    /// The process that created it; only its memory can be donated.
    pub(crate) creator: i32,
    content: Mutex<Content>,
}

/// Where a slot is in its life.
#[derive(Clone)]
pub(crate) enum Phase {
    /// Being put together.
    Init,
    /// An enclave runs, or is being started.
    Running(Option<Arc<Enclave>>),
    /// The enclave has ended; the descriptor has hung up.
    Ended,
}

/// What was put into a slot.
pub(crate) struct Content {
    /// See [`Phase`].
    pub(crate) phase: Phase,
    /// Donated memory in the order in which it was given.
    pub(crate) regions: Vec<MemoryRegion>,
    /// Physically contiguous pieces of it, which is what the limit counts.
    pub(crate) pieces: usize,
    /// CPUs.
    pub(crate) taken: Taken,
    hang_up: Option<File>,
}

impl Slot {
    /// Makes a slot and the descriptor for its creator. `dir` is the node's.
    pub(crate) fn create(
        uid: u64,
        creator: i32,
        dir: &Path,
        watcher: &Inotify,
    ) -> io::Result<(Slot, OwnedFd, WatchDescriptor)> {
        let path = dir.join(format!("slot-{uid:x}"));
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let made = Slot::open(uid, creator, &path, watcher);
        fs::remove_file(&path)?;
        made
    }

    fn open(
        uid: u64,
        creator: i32,
        path: &Path,
        watcher: &Inotify,
    ) -> io::Result<(Slot, OwnedFd, WatchDescriptor)> {
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let writer = OpenOptions::new().write(true).open(path)?;
        fcntl(reader.as_fd(), FcntlArg::F_SETFL(OFlag::empty()))?;
        let meta = reader.metadata()?;
        let watch = watcher.add_watch(path, AddWatchFlags::IN_CLOSE_NOWRITE)?;
        let content = Content {
            phase: Phase::Init,
            regions: Vec::new(),
            pieces: 0,
            taken: Taken::default(),
            hang_up: Some(writer),
        };
        let slot = Slot { uid, identity: (meta.dev(), meta.ino()), creator, content: Mutex::new(content) };
        Ok((slot, reader.into(), watch))
    }

    /// The slot's content; calls on one slot wait for each other here.
    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The enclave is over: hangs the descriptor up.
    pub(crate) fn end(&self) {
        let mut content = self.content();
        content.phase = Phase::Ended;
        content.hang_up = None;
    }
}
