//! The workload's way out: whatever it connects to is carried by the shim.
//!
//! ```text
//! workload ── name? ──▶ resolver: one local address per allowed name
//!    │
//!    ├── address:port ─▶ gateway ─┐
//!    └── CONNECT, SOCKS5 ─▶ proxy ┴─▶ policy ─▶ Dials ─ control ─▶ shim
//!                                                  ◀── stream port ──┘
//! ```
//! All listeners live in a network of their own ([`network`]), joined to the
//! workload's by a pair of interfaces: they never take a port from it. Without
//! rules in the measured settings nothing of this exists.

mod dials;
mod gateway;
mod network;
mod proxy;
mod resolver;

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use egress::names::Names;
use egress::{Policy, PolicyError, Target};
use relay::{Carriers, Counters, Listener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use dials::{Dials, serve};

use crate::listener::Places;
use crate::log::log;
use network::Network;

/// Outgoing connections at once, in whatever state.
const MAX_CONNECTIONS: usize = 4096;
/// Clients of the proxy and of DNS over TCP that have not said yet what they
/// want. They cannot take the places of others.
const MAX_UNDECIDED: usize = 256;
/// Lines about refusals a minute: the console is slow, and a workload may try for ever.
const MAX_LINES: u32 = 60;

/// Everything that is open for the workload.
#[derive(Debug)]
pub(crate) struct Egress {
    listeners: TaskTracker,
    connections: TaskTracker,
    closing: CancellationToken,
    stop: CancellationToken,
    places: Arc<Places>,
    carriers: Arc<Carriers>,
}

/// Why there is no way out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EgressError {
    /// The image build lets no such rules through.
    #[error("the egress rules of the settings cannot be used")]
    Policy(#[from] PolicyError),
    /// The kernel, or the engine that stands for it.
    #[error("cannot make the workload's network: {action} (the kernel needs CONFIG_NET_NS and CONFIG_VETH)")]
    Network { action: &'static str, source: io::Error },
    /// A file of the agent's.
    #[error("cannot write {path}")]
    ResolvConf { path: &'static str, source: io::Error },
}

/// What every connection shares.
#[derive(Debug)]
struct Shared {
    policy: Policy,
    dials: Arc<Dials>,
    names: Mutex<Names>,
    counters: Counters,
    undecided: Places,
    told: Mutex<Told>,
}

impl Egress {
    /// Makes the network and serves what `rules` allow, connections on `carriers`.
    pub(crate) fn open(
        rules: &[String],
        dials: Arc<Dials>,
        carriers: Arc<Carriers>,
    ) -> Result<Egress, EgressError> {
        let policy = Policy::try_from(rules.to_vec())?;
        write_resolv_conf(Path::new(crate::launch::RESOLV_CONF))?;
        let ports = policy.listened_ports().into_iter().chain([network::DNS_PORT, network::PROXY_PORT]);
        let Network { listeners, dns } = Network::make(ports.collect(), &carriers)?;
        let mut names = Names::new(network::FIRST_NAME, network::NAMES);
        // In the order of the rules: the same image, the same addresses.
        let full = policy.names().try_for_each(|name| names.address(name).map(drop));
        if let Err(full) = full {
            log(&format!("egress: {full}"));
        }
        let shared = Arc::new(Shared::new(policy, dials, names));
        let egress = Egress::with(carriers, MAX_CONNECTIONS);
        for listener in listeners {
            egress.accept(listener, &shared);
        }
        let closing = egress.closing.clone();
        egress.listeners.spawn(async move {
            closing.run_until_cancelled(resolver::serve_udp(&dns, &shared)).await;
        });
        Ok(egress)
    }

    fn with(carriers: Arc<Carriers>, places: usize) -> Egress {
        Egress {
            listeners: TaskTracker::new(),
            connections: TaskTracker::new(),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            places: Arc::new(Places::new(places)),
            carriers,
        }
    }

    fn accept(&self, listener: Listener, shared: &Arc<Shared>) {
        let accepting = gateway::accept(
            listener,
            Arc::clone(shared),
            Arc::clone(&self.carriers),
            Arc::clone(&self.places),
            self.connections.clone(),
            (self.closing.clone(), self.stop.clone()),
        );
        self.carriers.accept(self.listeners.track_future(accepting));
    }

    /// Takes nothing new and waits until every connection has ended.
    pub(crate) async fn drain(&self) {
        self.closing.cancel();
        self.listeners.close();
        self.listeners.wait().await;
        self.connections.close();
        self.connections.wait().await;
    }
}

/// The enclave is over: whatever still waits has nobody to wait for.
impl Drop for Egress {
    fn drop(&mut self) {
        self.closing.cancel();
        self.stop.cancel();
    }
}

impl Shared {
    fn new(policy: Policy, dials: Arc<Dials>, names: Names) -> Shared {
        Shared {
            policy,
            dials,
            names: Mutex::new(names),
            counters: Counters::default(),
            undecided: Places::new(MAX_UNDECIDED),
            told: Mutex::default(),
        }
    }

    /// What the measured policy says; a refusal is logged with its reason.
    fn allows(&self, target: &Target) -> bool {
        let decision = self.policy.decide(target);
        if !decision.is_allowed() {
            self.tell(|| format!("egress: {target}: {}", decision.verdict));
        }
        decision.is_allowed()
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        // Whoever panicked held a table that is right at every step.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, line: impl FnOnce() -> String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.may_say(Instant::now()) {
            log(&line());
        }
    }
}

/// How much has been said in this minute.
#[derive(Debug, Default)]
struct Told {
    since: Option<Instant>,
    lines: u32,
}

impl Told {
    fn may_say(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) > Duration::from_secs(60)) {
            if self.lines > MAX_LINES {
                log(&format!("egress: {} lines were left out", self.lines - MAX_LINES));
            }
            *self = Told { since: Some(now), lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= MAX_LINES
    }
}

/// What the launcher shows to the workload as /etc/resolv.conf.
fn write_resolv_conf(path: &Path) -> Result<(), EgressError> {
    let text = resolv_conf(network::GATEWAY);
    let written =
        path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
    written.map_err(|source| EgressError::ResolvConf { path: crate::launch::RESOLV_CONF, source })
}

/// No search list: a name means what the policy means by it.
fn resolv_conf(server: Ipv4Addr) -> String {
    format!(
        "# The enclave's agent answers for the names that the image may reach.\nnameserver {server}\noptions timeout:2 attempts:2\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_that_tries_for_ever_does_not_fill_the_console() {
        let begun = Instant::now();
        let mut told = Told::default();
        let said = (0..1000).filter(|_| told.may_say(begun)).count();
        assert_eq!(said, MAX_LINES as usize);
        assert!(told.may_say(begun + Duration::from_secs(61)));
    }
}
