//! Carries the workload's outgoing connections to where the policy allows.
//!
//! ```text
//! Dial ─▶ admission ─▶ policy: name, port ─▶ resolve ─▶ policy: every address ─▶ connect
//!            │ full        │ denied             │ no name      │ none is left       │ failed
//!            └─────────────┴───── Undialled ◀───┴──────────────┴────────────────────┘
//! connected ─▶ dial the agent's stream port, attach ─▶ relay
//! ```
//! The agent has decided by the measured policy; this is the other, independent
//! one, which alone sees addresses. Images without our agent have [`tunnel`]s. What is checked is what is connected to: no
//! name is resolved twice on the way. One task owns one connection.

mod connect;
mod metrics;
mod names;
mod servers;
mod tunnel;

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use egress::{Decision, Host, Name, Policy, Target};
use relay::{Carriers, RelayError, Vsock};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use wire::Undialled;

use crate::carried::Open;
use crate::config::Config;
use crate::enclave::session::{Attached, Session, persistently};
use crate::exit::chain;
pub(crate) use metrics::Metrics;
use metrics::Outcome;
use names::Names;
pub(crate) use servers::NoResolver;
pub(crate) use tunnel::{Bound as BoundTunnel, bind as bind_tunnels};

/// Requests and refusals on their way between the control connection and here.
const ON_THE_WAY: usize = 1024;
/// For the agent's first bytes to be taken by the server.
const FIRST_BYTES_WITHIN: Duration = Duration::from_secs(10);
const SILENT_AFTER: Duration = Duration::from_secs(60);
/// What the agent asks for.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) stream: u64,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A request that came to nothing.
#[derive(Debug, Clone, Copy)]
struct NotConnected {
    outcome: Outcome,
    /// What the workload is told.
    told: Undialled,
}

impl From<Undialled> for NotConnected {
    fn from(reason: Undialled) -> NotConnected {
        NotConnected { outcome: Outcome::Undialled(reason), told: reason }
    }
}

/// The control connection's ends.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) dials: mpsc::Sender<Dial>,
    pub(crate) undialled: mpsc::Receiver<(u64, Undialled)>,
}

/// Everything that outgoing connections share.
#[derive(Debug, Clone)]
pub(crate) struct Egress {
    policy: Arc<Policy>,
    /// None without rules and tunnels: there is nothing to resolve.
    names: Option<Arc<Names>>,
    within: Duration,
    idle_timeout: Option<Duration>,
    admission: Arc<Semaphore>,
    metrics: Metrics,
    connections: TaskTracker,
    /// Ends every connection at once.
    abort: CancellationToken,
}

impl Egress {
    /// Reads what the resolver needs: later there are no files any more.
    pub(crate) fn new(
        config: &Config,
        metrics: Metrics,
        abort: CancellationToken,
    ) -> Result<Egress, NoResolver> {
        let names = match config.goes_out() {
            true => Some(Arc::new(Names::new(&config.resolver)?)),
            false => None,
        };
        let idle_timeout = config.limits.idle_timeout.duration();
        Ok(Egress {
            policy: Arc::new(config.egress.clone()),
            names,
            within: config.limits.egress_timeout.duration(),
            idle_timeout: Some(idle_timeout).filter(|timeout| !timeout.is_zero()),
            admission: Arc::new(Semaphore::new(config.limits.egress_connections)),
            metrics,
            connections: TaskTracker::new(),
            abort,
        })
    }

    /// Takes the agent's requests until the other end of the line is gone. Each is
    /// carried by one of `carriers` from its dial to its last byte.
    pub(crate) fn open(
        &self,
        session: Session,
        carriers: Arc<Carriers>,
    ) -> (Line, impl Future<Output = ()> + Send + 'static) {
        let (dials, mut asked) = mpsc::channel(ON_THE_WAY);
        let (refuse, undialled) = mpsc::channel(ON_THE_WAY);
        let egress = self.clone();
        let serve = async move {
            let stop = egress.abort.clone();
            while let Some(Some(dial)) = stop.run_until_cancelled(asked.recv()).await {
                egress.take(dial, session.clone(), refuse.clone(), &carriers);
            }
        };
        (Line { dials, undialled }, serve)
    }

    /// Returns once no connection is open. Call only when the workload has ended.
    pub(crate) async fn idle(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    fn take(
        &self,
        dial: Dial,
        session: Session,
        refuse: mpsc::Sender<(u64, Undialled)>,
        carriers: &Carriers,
    ) {
        let egress = self.clone();
        let stream = dial.stream;
        let span =
            tracing::debug_span!("egress", stream, cid = %session.cid(), host = dial.host, port = dial.port);
        let (carrier, seat) = carriers.place();
        let carry = async move {
            let abort = egress.abort.clone();
            let carried = pin!(egress.carry(dial, &session));
            let ended = abort.run_until_cancelled(carried).await.unwrap_or(Ok(Outcome::Aborted));
            egress.metrics.ended(ended.unwrap_or_else(|not_connected| not_connected.outcome));
            if let Err(NotConnected { told, .. }) = ended {
                // A control connection that has gone takes its requests along.
                let _ = timeout(SILENT_AFTER, refuse.send((stream, told))).await;
            }
            drop(seat);
        };
        self.connections.spawn_on(carry.instrument(span), &carrier);
    }

    /// The data path.
    async fn carry(&self, dial: Dial, session: &Session) -> Result<Outcome, NotConnected> {
        let _place = self.admit(&shown(&dial))?;
        let server = self.connect(&dial).await?;
        let Attached { stream, first_bytes } = self.attach(session, dial.stream).await?;
        Ok(self.relay(server, stream, first_bytes, Some(session)).await)
    }

    /// Brings the stream to the agent, which may be busy: its queue is short.
    async fn attach(&self, session: &Session, stream: u64) -> Result<Attached, NotConnected> {
        persistently(|| session.attach(stream)).await.map_err(|error| {
            tracing::debug!(reason = chain(&error), "the agent does not take the stream");
            NotConnected { outcome: Outcome::EnclaveFailed, told: Undialled::Late }
        })
    }

    /// A place among the open connections, given back when it is dropped.
    fn admit(&self, target: &impl Display) -> Result<(OwnedSemaphorePermit, Open), Undialled> {
        match Arc::clone(&self.admission).try_acquire_owned() {
            Ok(place) => Ok((place, self.metrics.opened())),
            Err(_) => {
                tracing::info!(%target, "egress refused: limits.egress_connections are open");
                Err(Undialled::Full)
            }
        }
    }

    /// From a request to a connection.
    async fn connect(&self, dial: &Dial) -> Result<TcpStream, Undialled> {
        let target = Target::new(&dial.host, dial.port).map_err(|error| {
            tracing::info!(target = %shown(dial), reason = %error, "egress refused: no target");
            Undialled::BadTarget
        })?;
        self.reach(&target, &self.policy).await
    }

    /// From a target to a connection. Every decision leaves one line.
    async fn reach(&self, target: &Target, policy: &Policy) -> Result<TcpStream, Undialled> {
        let deadline = Instant::now() + self.within;
        let decision = policy.decide(target);
        let rule = decision.rule.as_ref().map(|(_, rule)| rule.as_str());
        if !decision.is_allowed() {
            tracing::info!(%target, reason = %decision.verdict, rule, "egress denied");
            return Err(Undialled::Denied);
        }
        let addresses =
            timeout_at(deadline, self.addresses(target, policy)).await.unwrap_or(Err(Undialled::Late))?;
        let (server, address) = connect::first(addresses, deadline).await.inspect_err(|reason| {
            tracing::info!(%target, rule, reason = %reason, "egress allowed, not connected");
        })?;
        tracing::info!(%target, rule, %address, "egress allowed");
        Ok(server)
    }

    /// What the target leads to and the policy leaves of it.
    async fn addresses(&self, target: &Target, policy: &Policy) -> Result<Vec<SocketAddr>, Undialled> {
        let name = match &target.host {
            // Decided on as it is named.
            Host::Address(address) => return Ok(vec![SocketAddr::new(*address, target.port)]),
            Host::Name(name) => name,
        };
        let resolved = self.resolve(name).await.inspect_err(|reason| {
            tracing::info!(%target, reason = %reason, "egress allowed, not resolved");
        })?;
        let decide = |address: &IpAddr| (*address, policy.decide_address(*address, target.port));
        let (left, refused): (Vec<_>, Vec<_>) =
            resolved.iter().map(decide).partition(|(_, decision)| decision.is_allowed());
        for (address, Decision { verdict, rule }) in &refused {
            let rule = rule.as_ref().map(|(_, rule)| rule.as_str());
            tracing::info!(%target, %address, reason = %verdict, rule, "egress address denied");
        }
        match left.is_empty() {
            true => Err(Undialled::AddressDenied),
            false => Ok(left.into_iter().map(|(address, _)| SocketAddr::new(address, target.port)).collect()),
        }
    }

    async fn resolve(&self, name: &Name) -> Result<Vec<IpAddr>, Undialled> {
        match &self.names {
            Some(names) => names.addresses(name, &self.metrics).await,
            // A name is allowed only by a rule.
            None => Err(Undialled::Denied),
        }
    }

    /// `session` is that of our agent, where it is the far end.
    async fn relay(
        &self,
        mut server: TcpStream,
        enclave: Vsock,
        first_bytes: Vec<u8>,
        session: Option<&Session>,
    ) -> Outcome {
        let first = timeout(FIRST_BYTES_WITHIN, server.write_all(&first_bytes)).await;
        if !matches!(first, Ok(Ok(()))) {
            return Outcome::ServerFailed;
        }
        self.metrics.carried.bytes.count_from_vsock(first_bytes.len() as u64);
        let options = relay::Options {
            idle_timeout: self.idle_timeout,
            far_end_relays: session.is_some(),
            already_read: Vec::new(),
        };
        // As for clients: once the server has ended its own direction, the enclave's
        // end of stream may be its death, and only a greeting tells.
        let is_alive =
            session.cloned().map(|session| move || Box::pin(async move { session.is_alive().await }));
        match relay::relay_witnessed(server, enclave, &self.metrics.carried.bytes, options, is_alive).await {
            Ok(moved) => {
                tracing::debug!(to_enclave = moved.to_vsock, to_server = moved.from_vsock, "completed");
                Outcome::Completed
            }
            Err(error) => {
                tracing::debug!(reason = chain(&error), "broke");
                match error {
                    RelayError::Tcp { .. } => Outcome::ServerFailed,
                    RelayError::Vsock { .. } => Outcome::EnclaveFailed,
                    RelayError::Idle { .. } => Outcome::Idle,
                }
            }
        }
    }
}

/// The agent's words, which have not been checked: enough to recognise them.
fn shown(dial: &Dial) -> String {
    let host: String = dial.host.chars().take(80).flat_map(char::escape_default).collect();
    format!("{host}:{}", dial.port)
}

/// Why a connection attempt failed, as the workload is told.
fn reason(error: &io::Error) -> Undialled {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED | Errno::ECONNRESET) => Undialled::Refused,
        Some(Errno::ETIMEDOUT) => Undialled::Late,
        // The shim's own limits, and a machine without a free port.
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::EADDRNOTAVAIL) => {
            Undialled::Full
        }
        _ => Undialled::Unreachable,
    }
}

#[cfg(test)]
mod tests;
