//! What the way out counts.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use wire::Undialled;

/// How a request of the workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// It was not connected.
    Undialled(Undialled),
    /// Both directions came to their ends.
    Completed,
    /// The server reset it, or it broke.
    ServerFailed,
    /// The enclave reset it, did not wait for it any more, or ended.
    EnclaveFailed,
    /// Nothing went either way for too long.
    Idle,
    /// Somebody else than the own enclave dialled a tunnel.
    Stranger,
    /// The shim ended first.
    Aborted,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Undialled(reason) => reason.name(),
            Outcome::Completed => "completed",
            Outcome::ServerFailed => "server_failed",
            Outcome::EnclaveFailed => "enclave_failed",
            Outcome::Idle => "idle",
            Outcome::Stranger => "stranger",
            Outcome::Aborted => "aborted",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    connections: Family<OutcomeLabel, Counter>,
    open: Gauge,
    /// Answers of a resolver that were used after their time, because none was to be had.
    pub(super) stale: Counter,
    pub(super) bytes: Arc<relay::Counters>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        registry.register(
            "egress_connections",
            "Outgoing connections by how they ended, or why they were not made",
            metrics.connections.clone(),
        );
        registry.register("egress_connections_open", "Outgoing connections now", metrics.open.clone());
        registry.register(
            "egress_stale_answers",
            "Names resolved from memory because no resolver answered",
            metrics.stale.clone(),
        );
        registry.register_collector(Box::new(Bytes(Arc::clone(&metrics.bytes))));
        // A refusal must be seen as a change from 0.
        for refusal in Undialled::ALL.map(Outcome::Undialled).into_iter().chain([Outcome::Stranger]) {
            drop(metrics.connections.get_or_create(&OutcomeLabel { outcome: refusal.name() }));
        }
        metrics
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.connections.get_or_create(&OutcomeLabel { outcome: outcome.name() }).inc();
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn opened(&self) -> Open {
        self.open.inc();
        Open(self.open.clone())
    }
}

pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The relay counts in atomics of its own; they are read at every scrape.
#[derive(Debug)]
struct Bytes(Arc<relay::Counters>);

impl Collector for Bytes {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut family =
            encoder.encode_descriptor("egress_bytes", "Bytes carried", None, MetricType::Counter)?;
        for (direction, bytes) in [("to_enclave", self.0.to_vsock()), ("to_server", self.0.from_vsock())] {
            let counter = ConstCounter::new(bytes);
            counter.encode(family.encode_family(&[("direction", direction)])?)?;
        }
        Ok(())
    }
}
