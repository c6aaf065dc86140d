//! Carries client connections into the enclave and answers back out.
//!
//! ```text
//! client ─TCP─▶ listener ─▶ admission ─▶ dial ─vsock─▶ agent ─▶ workload
//!                             │ full       │ refused, late
//!                             └────────────┴──▶ reset the client, count why
//! ```
//!
//! One task owns one connection; only counters are shared. Bytes are never
//! read here: TLS ends inside the enclave. Sockets are bound before the launch,
//! so that a taken port is known early, and listen only once the enclave serves:
//! until then a client is refused by the kernel. Read [`listener`] first.

mod connection;
mod listener;
mod metrics;

use std::sync::Arc;
use std::time::Duration;

use nitro_device::Cid;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use listener::{BindError, Bound, accept, bind};
pub(crate) use metrics::Metrics;

use crate::config::Limits;

/// A client's socket and a vsock.
const DESCRIPTORS_EACH: u64 = 2;
/// HTTP clients, and what the shim itself has open.
const DESCRIPTORS_ELSE: u64 = 320;

/// What every connection shares.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    admission: Arc<Semaphore>,
    dial_timeout: Duration,
    metrics: Metrics,
    /// Every connection is a task of this tracker.
    connections: TaskTracker,
    /// Ends every connection at once.
    abort: CancellationToken,
}

/// One client's way in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) cid: Cid,
    /// The workload's port.
    pub(crate) port: u16,
    /// Our agent answers there, which relays as the shim does.
    pub(crate) has_agent: bool,
}

impl Traffic {
    pub(crate) fn new(limits: &Limits, metrics: Metrics, abort: CancellationToken) -> Traffic {
        Traffic {
            admission: Arc::new(Semaphore::new(affordable(limits.connections))),
            dial_timeout: limits.dial_timeout.duration(),
            metrics,
            connections: TaskTracker::new(),
            abort,
        }
    }

    /// Returns once no connection is open. Call only when none is accepted any more.
    pub(crate) async fn idle(&self) {
        self.connections.close();
        self.connections.wait().await;
    }
}

/// How many connections the limit on open files leaves room for, at most
/// `wanted`; raises the limit as far as it goes. A connection that is accepted
/// and then cannot dial for want of a descriptor would be worse than one refused.
fn affordable(wanted: usize) -> usize {
    let needed = wanted as u64 * DESCRIPTORS_EACH + DESCRIPTORS_ELSE;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let raised = soft.max(needed.min(hard));
        setrlimit(Resource::RLIMIT_NOFILE, raised, hard).map(|()| raised)
    });
    let fitting = match limit {
        Ok(limit) => fitting(wanted, limit),
        Err(error) => {
            tracing::warn!(%error, "the limit on open files cannot be raised");
            return wanted;
        }
    };
    if fitting < wanted {
        tracing::warn!(wanted, fitting, "limits.connections does not fit the limit on open files");
    }
    fitting
}

fn fitting(wanted: usize, limit: u64) -> usize {
    let rest = limit - DESCRIPTORS_ELSE.min(limit / 2);
    wanted.min(usize::try_from(rest / DESCRIPTORS_EACH).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_connections_are_admitted_than_descriptors_allow() {
        for (wanted, limit, expected) in
            [(4096, 1 << 20, 4096), (4096, 1024, 352), (4096, 60, 15), (10, 1024, 10), (4096, 1, 1)]
        {
            assert_eq!(fitting(wanted, limit), expected, "{wanted} of {limit}");
        }
    }
}
