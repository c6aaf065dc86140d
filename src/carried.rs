//! What both ways through the shim count: connections by how they ended, those
//! that are open, and bytes by direction.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

/// How one way's metrics are called.
#[derive(Debug)]
pub(crate) struct Way {
    /// In front of every name.
    pub(crate) name: &'static str,
    /// Whose connections they are, for the help texts.
    pub(crate) whose: &'static str,
    /// The direction out of the enclave.
    pub(crate) outward: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Carried {
    ended: Family<OutcomeLabel, Counter>,
    open: Gauge,
    /// What the relays count in.
    pub(crate) bytes: Arc<relay::Counters>,
}

impl Carried {
    pub(crate) fn register(registry: &mut Registry, way: &'static Way) -> Carried {
        let carried = Carried::default();
        let Way { name, whose, .. } = way;
        let help = format!("{whose} connections by how they ended, or why they were not made");
        registry.register(format!("{name}_connections"), help, carried.ended.clone());
        let help = format!("{whose} connections now");
        registry.register(format!("{name}_connections_open"), help, carried.open.clone());
        registry.register_collector(Box::new(Bytes { way, counters: Arc::clone(&carried.bytes) }));
        carried
    }

    /// Shows an outcome as 0: its first time must be seen as a change.
    pub(crate) fn expect(&self, outcome: &'static str) {
        drop(self.ended.get_or_create(&OutcomeLabel { outcome }));
    }

    pub(crate) fn ended(&self, outcome: &'static str) {
        self.ended.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn opened(&self) -> Open {
        self.open.inc();
        Open(self.open.clone())
    }
}

pub(crate) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The relay counts in atomics of its own; they are read at every scrape.
#[derive(Debug)]
struct Bytes {
    way: &'static Way,
    counters: Arc<relay::Counters>,
}

impl Collector for Bytes {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let name = format!("{}_bytes", self.way.name);
        let mut family = encoder.encode_descriptor(&name, "Bytes carried", None, MetricType::Counter)?;
        let both = [("to_enclave", self.counters.to_vsock()), (self.way.outward, self.counters.from_vsock())];
        for (direction, bytes) in both {
            let counter = ConstCounter::new(bytes);
            counter.encode(family.encode_family(&[("direction", direction)])?)?;
        }
        Ok(())
    }
}

// The descriptor's type is given by hand above; this keeps it right.
const _: () = assert!(matches!(<ConstCounter<u64> as TypedMetric>::TYPE, MetricType::Counter));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_shows_its_connections_and_bytes_under_its_own_name() {
        static WAY: Way = Way { name: "ferry", whose: "Ferry", outward: "to_shore" };
        let mut registry = Registry::default();
        let carried = Carried::register(&mut registry, &WAY);
        carried.expect("sunk");
        carried.ended("landed");
        let open = carried.opened();
        let page = |registry: &Registry| {
            let mut page = String::new();
            prometheus_client::encoding::text::encode(&mut page, registry).unwrap();
            page
        };
        let shown = page(&registry);
        for line in [
            "ferry_connections_total{outcome=\"sunk\"} 0\n",
            "ferry_connections_total{outcome=\"landed\"} 1\n",
            "ferry_connections_open 1\n",
            "ferry_bytes_total{direction=\"to_enclave\"} 0\n",
            "ferry_bytes_total{direction=\"to_shore\"} 0\n",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        drop(open);
        assert!(page(&registry).contains("ferry_connections_open 0\n"));
    }
}
