//! Inotify as a future.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::unix::AsyncFd;

/// Watches directories.
#[derive(Debug)]
pub(crate) struct Watch(AsyncFd<Descriptor>);

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    pub(crate) fn new() -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // The descriptor is owned by the wrapper and never exchanged.
        #[expect(deprecated, reason = "its successor is an unsafe function")]
        let descriptor = AsyncFd::new(Descriptor(inotify))?;
        Ok(Watch(descriptor))
    }

    /// Reports what happens in `directory` from now on. Adding it again changes nothing.
    pub(crate) fn add(&self, directory: &Path, events: AddWatchFlags) -> io::Result<()> {
        self.0.get_ref().0.add_watch(directory, events | AddWatchFlags::IN_ONLYDIR)?;
        Ok(())
    }

    /// The next events, at least one.
    pub(crate) async fn next(&self) -> io::Result<Vec<InotifyEvent>> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().0.read_events() {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                events => return Ok(events?),
            }
        }
    }
}
