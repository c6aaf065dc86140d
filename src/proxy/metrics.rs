//! What the data path counts.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

/// How a client's connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Both directions came to their ends.
    Completed,
    /// The client reset it, or it broke.
    ClientFailed,
    /// The enclave reset it, or ended.
    EnclaveFailed,
    /// Nothing went either way for too long.
    Idle,
    /// Refused at the door: limits.connections are open.
    Full,
    /// Nobody listens on the port in the enclave.
    DialRefused,
    /// The enclave did not answer the dial in time.
    DialLate,
    /// The dial failed otherwise.
    DialFailed,
    /// The shim ended first.
    Aborted,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::ClientFailed => "client_failed",
            Outcome::EnclaveFailed => "enclave_failed",
            Outcome::Idle => "idle",
            Outcome::Full => "full",
            Outcome::DialRefused => "dial_refused",
            Outcome::DialLate => "dial_late",
            Outcome::DialFailed => "dial_failed",
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
    pub(super) open: Gauge,
    pub(super) accept_errors: Counter,
    pub(super) bytes: Arc<relay::Counters>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        registry.register(
            "ingress_connections",
            "Client connections by how they ended",
            metrics.connections.clone(),
        );
        registry.register("ingress_connections_open", "Client connections now", metrics.open.clone());
        registry.register(
            "ingress_accept_errors",
            "Failures to accept a connection",
            metrics.accept_errors.clone(),
        );
        registry.register_collector(Box::new(Bytes(Arc::clone(&metrics.bytes))));
        metrics
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.connections.get_or_create(&OutcomeLabel { outcome: outcome.name() }).inc();
    }
}

/// The relay counts in atomics of its own; they are read at every scrape.
#[derive(Debug)]
struct Bytes(Arc<relay::Counters>);

impl Collector for Bytes {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut family =
            encoder.encode_descriptor("ingress_bytes", "Bytes carried", None, MetricType::Counter)?;
        for (direction, bytes) in [("to_enclave", self.0.to_vsock()), ("to_client", self.0.from_vsock())] {
            let counter = ConstCounter::new(bytes);
            counter.encode(family.encode_family(&[("direction", direction)])?)?;
        }
        Ok(())
    }
}

// The descriptor's type is given by hand above; this keeps it right.
const _: () = assert!(matches!(<ConstCounter<u64> as TypedMetric>::TYPE, MetricType::Counter));
