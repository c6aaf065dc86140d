//! An enclave's serial console: kept in memory, appended to a file, and, in
//! debug mode, served to whoever dials CID 0 port 10000 + CID.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;
use std::os::fd::AsFd;

/// How much a late reader still sees, in bytes.
const KEPT: usize = 1 << 20;

/// How long a reader may stall before it is dropped.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an enclave has printed.
#[derive(Default)]
pub(super) struct Console {
    state: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Default)]
struct Kept {
    bytes: VecDeque<u8>,
    /// How many bytes were ever printed.
    printed: u64,
    ended: bool,
}

impl Console {
    /// Reads `input` until its last writer is gone; appends to the file at `log`.
    pub(super) fn collect(&self, mut input: File, log: &Path) -> io::Result<()> {
        let mut log = OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
        let mut chunk = [0; 4096];
        loop {
            poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
            match input.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    self.print(&chunk[..count]);
                    log.write_all(&chunk[..count])?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
        }
        self.state().ended = true;
        self.changed.notify_all();
        Ok(())
    }

    /// Sends everything kept and then everything new, until the enclave or the
    /// reader ends, or the reader takes nothing for [`PATIENCE`].
    pub(super) fn serve(&self, mut reader: Socket) {
        let mut from = 0;
        if reader.set_write_timeout(Some(PATIENCE)).is_err() {
            return;
        }
        while let Some((bytes, next)) = self.after(from) {
            if reader.write_all(&bytes).is_err() {
                return;
            }
            from = next;
        }
    }

    fn print(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.bytes.extend(bytes);
        state.printed += bytes.len() as u64;
        let surplus = state.bytes.len().saturating_sub(KEPT);
        state.bytes.drain(..surplus);
        self.changed.notify_all();
    }

    /// Waits for bytes after position `from`; `None` at the end.
    fn after(&self, from: u64) -> Option<(Vec<u8>, u64)> {
        let state = self.state();
        let state = self
            .changed
            .wait_while(state, |state| state.printed <= from && !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        let oldest = state.printed - state.bytes.len() as u64;
        let skip = from.saturating_sub(oldest) as usize;
        let bytes: Vec<u8> = state.bytes.iter().skip(skip).copied().collect();
        (!bytes.is_empty()).then_some((bytes, state.printed))
    }

    fn state(&self) -> MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_reader_gets_what_is_kept_and_then_the_end() {
        let console = Console::default();
        console.print(b"one ");
        assert_eq!(console.after(0), Some((b"one ".to_vec(), 4)));
        console.print(&vec![b'x'; KEPT]);
        let (bytes, next) = console.after(0).unwrap();
        assert_eq!((bytes.len(), next), (KEPT, KEPT as u64 + 4));
        console.state().ended = true;
        assert_eq!(console.after(next), None);
    }
}
