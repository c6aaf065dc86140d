//! Counters that tests and people read from `stats.json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::files;

/// The content of `stats.json`. Counts since the node started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// vsock writes of more than 32,768 bytes, by anybody on the node.
    pub vsock_writes_over_32k: u64,
    /// The same by the writer's CID; 3 is the parent.
    pub vsock_writes_over_32k_by_cid: BTreeMap<u32, u64>,
    /// vsock connections that were made.
    pub(crate) vsock_connections: u64,
}

/// Counts, and a way to wait for their change.
#[derive(Default)]
pub(crate) struct Stats {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    counts: Counts,
    /// What the file holds; `None` before the first write.
    published: Option<Counts>,
    ended: bool,
}

impl Stats {
    /// Counts one write above the safe size.
    pub(crate) fn count_large_write(&self, cid: u32) {
        let counts = &mut self.state().counts;
        counts.vsock_writes_over_32k += 1;
        *counts.vsock_writes_over_32k_by_cid.entry(cid).or_default() += 1;
        self.changed.notify_one();
    }

    /// Counts one connection; too frequent to be worth a file of its own.
    pub(crate) fn count_connection(&self) {
        self.state().counts.vsock_connections += 1;
    }

    /// The counts now.
    pub(crate) fn counts(&self) -> Counts {
        self.state().counts.clone()
    }

    /// Lets [`Stats::publish`] write a last time and return.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }

    /// Keeps the file at `path` up to date until [`Stats::end`]. Changes that
    /// come during a write are written together.
    pub(crate) fn publish(&self, path: &Path) {
        loop {
            let (counts, last) = self.next();
            if let Err(error) = files::replace_json(path, &counts) {
                eprintln!("cannot write {}: {error}", path.display());
            }
            if last {
                return;
            }
        }
    }

    /// Waits for counts worth writing, and says whether they are the last.
    fn next(&self) -> (Counts, bool) {
        let same = |state: &mut State| {
            let writes = |counts: &Counts| counts.vsock_writes_over_32k;
            !state.ended && state.published.as_ref().is_some_and(|old| writes(old) == writes(&state.counts))
        };
        let state = self.changed.wait_while(self.state(), same);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.published = Some(state.counts.clone());
        (state.counts.clone(), state.ended)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
