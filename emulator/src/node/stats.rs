//! Counters that tests and people read from `stats.json`.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::files;

/// The content of `stats.json`. Counts since the node started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// vsock writes of more than 32,768 bytes, by anybody on the node.
    pub vsock_writes_over_32k: u64,
    /// The same by the writer's CID; 3 is the parent.
    pub vsock_writes_over_32k_by_cid: BTreeMap<u32, u64>,
    /// vsock connections that were made.
    pub vsock_connections: u64,
}

/// Counts, and a way to wait for their change.
#[derive(Default)]
pub struct Stats {
    state: Mutex<(Counts, bool, bool)>,
    changed: Condvar,
}

impl Stats {
    /// Counts one write above the safe size.
    pub fn count_large_write(&self, cid: u32) {
        self.change(|counts| {
            counts.vsock_writes_over_32k += 1;
            *counts.vsock_writes_over_32k_by_cid.entry(cid).or_default() += 1;
        });
    }

    /// Counts one connection; too frequent to be worth a file of its own.
    pub fn count_connection(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.vsock_connections += 1;
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Lets [`Stats::publish`] write a last time and return.
    pub fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).2 = true;
        self.changed.notify_all();
    }

    /// Keeps `path` equal to the counts until [`Stats::end`]. Changes that come
    /// during a write are written together.
    pub fn publish(&self, path: &std::path::Path) {
        loop {
            let (counts, last) = {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let mut state = self
                    .changed
                    .wait_while(state, |(_, changed, end)| !*changed && !*end)
                    .unwrap_or_else(PoisonError::into_inner);
                state.1 = false;
                (state.0.clone(), state.2)
            };
            if let Err(error) = files::replace_json(path, &counts) {
                eprintln!("cannot write {}: {error}", path.display());
            }
            if last {
                return;
            }
        }
    }

    fn change(&self, apply: impl FnOnce(&mut Counts)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        apply(&mut state.0);
        state.1 = true;
        self.changed.notify_one();
    }
}
