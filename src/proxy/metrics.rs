//! What the data path counts.

use std::sync::Weak;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use relay::Carriers;

use crate::carried::{Carried, Way};

static INGRESS: Way = Way { name: "ingress", whose: "Client", outward: "to_client" };

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

#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub(super) carried: Carried,
    pub(super) accept_errors: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics =
            Metrics { carried: Carried::register(registry, &INGRESS), accept_errors: Counter::default() };
        registry.register(
            "ingress_accept_errors",
            "Failures to accept a connection",
            metrics.accept_errors.clone(),
        );
        metrics
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.carried.ended(outcome.name());
    }
}

/// Asked at every scrape: a task that never ends shows here, whatever it counted.
#[derive(Debug)]
pub(super) struct Tasks(pub(super) Weak<Carriers>);

impl Collector for Tasks {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Tasks on the threads that carry: one a connection, either way, and the resolver's own";
        let encoder = encoder.encode_descriptor("carrier_tasks", help, None, MetricType::Gauge)?;
        let tasks = self.0.upgrade().map_or(0, |carriers| carriers.tasks());
        ConstGauge::new(i64::try_from(tasks).unwrap_or(i64::MAX)).encode(encoder)
    }
}
