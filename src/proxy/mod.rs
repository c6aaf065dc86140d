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
}

impl Traffic {
    pub(crate) fn new(limits: &Limits, metrics: Metrics, abort: CancellationToken) -> Traffic {
        Traffic {
            admission: Arc::new(Semaphore::new(limits.connections)),
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

/// Two descriptors a connection: takes what the hard limit allows and says
/// when that is too little.
pub(crate) fn raise_descriptor_limit(connections: usize) {
    let needed = 2 * connections as u64 + 64;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < needed {
            setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard)?;
        }
        Ok(hard)
    });
    match raised {
        Ok(hard) if hard < needed => {
            tracing::warn!(needed, hard, "the limit on open files is below limits.connections");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit on open files cannot be raised"),
    }
}
