//! What the data path counts.

use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use relay::Carriers;

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
    /// It said neither who it is nor whom it wants in time.
    HeaderLate,
    /// It did not come through a load balancer, as its listener wants.
    NoProxyHeader,
    /// It asked for a name that leads nowhere.
    NoRoute,
    /// Nobody listens on the port in the enclave, or the agent takes no header for it.
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
            Outcome::HeaderLate => "header_late",
            Outcome::NoProxyHeader => "no_proxy_header",
            Outcome::NoRoute => "no_route",
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

/// Asked at every scrape: a task that never ends shows here, whatever it counted.
#[derive(Debug)]
pub(super) struct Tasks(pub(super) Weak<Carriers>);

impl Collector for Tasks {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Tasks that carry a connection now";
        let encoder = encoder.encode_descriptor("ingress_tasks", help, None, MetricType::Gauge)?;
        let tasks = self.0.upgrade().map_or(0, |carriers| carriers.tasks());
        ConstGauge::new(i64::try_from(tasks).unwrap_or(i64::MAX)).encode(encoder)
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
