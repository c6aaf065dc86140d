//! What the plugin counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::offer::{Kind, Offer};

/// Shared by everything that counts; a clone counts in the same place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    devices: Family<DeviceLabels, Gauge>,
    allocations: Family<OutcomeLabels, Counter>,
    registrations: Family<OutcomeLabels, Counter>,
    watchers: Family<ResourceLabels, Gauge>,
    restarts: Counter,
    split_cores: Counter,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As asked.
    Ok,
    /// Refused, or it failed.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    resource: &'static str,
    health: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    resource: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: &'static str,
}

impl OutcomeLabels {
    fn new(kind: Kind, outcome: Outcome) -> OutcomeLabels {
        let outcome = match outcome {
            Outcome::Ok => "ok",
            Outcome::Failed => "failed",
        };
        OutcomeLabels { resource: resource(kind), outcome }
    }
}

fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::Enclaves => "enclaves",
        Kind::Cpus => "cpus",
    }
}

impl Metrics {
    /// All counts, as `/metrics` shows them.
    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("enclave_node");
        registry.register("devices", "Devices offered to kubelet", self.devices.clone());
        registry.register("allocations", "Containers that asked for devices", self.allocations.clone());
        registry.register("registrations", "Registrations at kubelet", self.registrations.clone());
        registry.register("watchers", "ListAndWatch streams", self.watchers.clone());
        registry.register("kubelet_starts", "Times that kubelet's socket appeared", self.restarts.clone());
        registry.register("split_cores", "Containers that were given half a core", self.split_cores.clone());
        registry
    }

    pub(crate) fn offered(&self, kind: Kind, offer: &Offer) {
        let count = i64::try_from(offer.devices.len()).unwrap_or(i64::MAX);
        let (healthy, unhealthy) = if offer.trouble.is_none() { (count, 0) } else { (0, count) };
        for (health, count) in [("healthy", healthy), ("unhealthy", unhealthy)] {
            self.devices.get_or_create(&DeviceLabels { resource: resource(kind), health }).set(count);
        }
    }

    pub(crate) fn allocated(&self, kind: Kind, outcome: Outcome) {
        self.allocations.get_or_create(&OutcomeLabels::new(kind, outcome)).inc();
    }

    pub(crate) fn registered(&self, kind: Kind, outcome: Outcome) {
        self.registrations.get_or_create(&OutcomeLabels::new(kind, outcome)).inc();
    }

    pub(crate) fn watched_by(&self, kind: Kind, watchers: usize) {
        let count = i64::try_from(watchers).unwrap_or(i64::MAX);
        self.watchers.get_or_create(&ResourceLabels { resource: resource(kind) }).set(count);
    }

    pub(crate) fn kubelet_started(&self) {
        self.restarts.inc();
    }

    pub(crate) fn core_split(&self) {
        self.split_cores.inc();
    }
}
