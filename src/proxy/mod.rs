//! Carries client connections into the enclave and answers back out.
//!
//! ```text
//! client ─TCP─▶ listener ─▶ admission ─▶ opening ─▶ dial ─vsock─▶ agent ─▶ workload
//!                             │ full       │ no header, no route, late, refused
//!                             └────────────┴──▶ reset the client, count why
//! ```
//!
//! One task owns one connection, on one thread for life; only counters are
//! shared. Bytes are never changed here: TLS ends inside the enclave. Sockets are bound before the launch,
//! so that a taken port is known early, and listen only once the enclave serves:
//! until then a client is refused by the kernel. Read [`listener`] first.

mod connection;
mod listener;
mod metrics;
mod opening;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nitro_device::Cid;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry;
use relay::Carriers;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use listener::{BindError, Bound, bind};
use metrics::{Metrics, Tasks};

use crate::config::{Config, Ingress};
use crate::enclave::session::Session;

/// A client's socket and a vsock.
const DESCRIPTORS_EACH: u64 = 2;
/// HTTP clients, name servers, and what the shim itself has open.
const DESCRIPTORS_ELSE: u64 = 320;

/// What accepting needs. Never held by a connection: it owns their threads.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    admission: Arc<Semaphore>,
    /// Every connection is a task of this tracker, on one of these threads.
    connections: TaskTracker,
    carriers: Arc<Carriers>,
    terms: Arc<Terms>,
}

/// What every connection shares.
#[derive(Debug)]
struct Terms {
    dial_timeout: Duration,
    header_timeout: Duration,
    idle_timeout: Option<Duration>,
    metrics: Metrics,
    /// Ends every connection at once.
    abort: CancellationToken,
}

/// One listener's way in.
#[derive(Debug, Clone)]
struct Door {
    cid: Cid,
    ingress: Arc<Ingress>,
    /// With our agent, which relays as the shim does.
    session: Option<Arc<Session>>,
}

impl Traffic {
    /// Starts the threads that will carry.
    pub(crate) fn start(
        config: &Config,
        registry: &mut Registry,
        abort: CancellationToken,
    ) -> io::Result<Traffic> {
        let limits = &config.limits;
        let carriers = Arc::new(Carriers::start(usize::MAX)?);
        registry.register_collector(Box::new(Tasks(Arc::downgrade(&carriers))));
        let terms = Terms {
            dial_timeout: limits.dial_timeout.duration(),
            header_timeout: limits.header_timeout.duration(),
            idle_timeout: Some(limits.idle_timeout.duration()).filter(|timeout| !timeout.is_zero()),
            metrics: Metrics::register(registry),
            abort,
        };
        Ok(Traffic {
            admission: Arc::new(Semaphore::new(affordable(limits.connections, kept(config)))),
            connections: TaskTracker::new(),
            carriers,
            terms: Arc::new(terms),
        })
    }

    /// Listens, and accepts until `closing`. `tasks` is told when that has ended.
    /// An image that is not ours has no `session`.
    pub(crate) fn open(
        &self,
        bound: Bound,
        (cid, session): (Cid, Option<Arc<Session>>),
        tasks: &TaskTracker,
        closing: CancellationToken,
    ) -> Result<(), BindError> {
        let (listener, ingress) = bound.listen(&self.carriers)?;
        let door = Door { cid, ingress: Arc::new(ingress), session };
        self.carriers.accept(tasks.track_future(listener::accept(listener, door, self.clone(), closing)));
        Ok(())
    }

    /// The threads, which outgoing connections share.
    pub(crate) fn carriers(&self) -> Arc<Carriers> {
        Arc::clone(&self.carriers)
    }

    /// Returns once no connection is open. Call only when none is accepted any more.
    pub(crate) async fn idle(&self) {
        self.connections.close();
        self.connections.wait().await;
    }
}

/// Descriptors that clients do not get: the workload's outgoing connections have theirs.
fn kept(config: &Config) -> u64 {
    let outgoing = if config.goes_out() { config.limits.egress_connections } else { 0 };
    DESCRIPTORS_ELSE + outgoing as u64 * DESCRIPTORS_EACH
}

/// How many connections the limit on open files leaves room for beside what is `kept`, at
/// most `wanted`; raises the limit as far as it goes. A connection that is accepted
/// and then cannot dial for want of a descriptor would be worse than one refused.
fn affordable(wanted: usize, kept: u64) -> usize {
    let needed = wanted as u64 * DESCRIPTORS_EACH + kept;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let raised = soft.max(needed.min(hard));
        setrlimit(Resource::RLIMIT_NOFILE, raised, hard).map(|()| raised)
    });
    let fitting = match limit {
        Ok(limit) => fitting(wanted, limit, kept),
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

fn fitting(wanted: usize, limit: u64, kept: u64) -> usize {
    let rest = limit - kept.min(limit / 2);
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
            assert_eq!(fitting(wanted, limit, DESCRIPTORS_ELSE), expected, "{wanted} of {limit}");
        }
    }

    #[test]
    fn outgoing_connections_have_their_own_descriptors() {
        let config = |text: &str| -> Config { serde_saphyr::from_str(text).unwrap() };
        let limits = "limits: {egress_connections: 100}";
        assert_eq!(kept(&config(limits)), DESCRIPTORS_ELSE);
        for ways in ["egress: ['a.com:443']", "tunnels: [{port: 8000, to: 'a.com:443'}]"] {
            let kept = kept(&config(&format!("{ways}\n{limits}")));
            assert_eq!(kept, DESCRIPTORS_ELSE + 200, "{ways}");
            assert_eq!(fitting(4096, 1024, kept), (1024 - 512) / 2);
        }
    }
}
