//! What the world may know of the phase: /readyz and /metrics.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::Phase;
use crate::config::Config;
use crate::timeline::Timeline;

/// The phase as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) phase: &'static str,
    /// Clients are welcome.
    pub(crate) ready: bool,
    /// The workload runs, so the agent attests.
    pub(crate) attests: bool,
    /// The enclave is on its way out.
    pub(crate) leaving: bool,
}

impl From<&Phase> for Status {
    fn from(phase: &Phase) -> Status {
        Status {
            phase: phase.name(),
            ready: matches!(phase, Phase::Serving),
            attests: matches!(phase, Phase::Serving | Phase::Draining | Phase::Stopping),
            leaving: !matches!(phase, Phase::Launching | Phase::Booting | Phase::Serving),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

/// Where the supervisor shows its phase.
#[derive(Debug)]
pub(super) struct StatusBoard {
    shown: watch::Sender<Status>,
    phases: Family<PhaseLabel, Gauge>,
}

impl StatusBoard {
    pub(super) fn register(registry: &mut Registry, timeline: Arc<Timeline>, config: &Config) -> StatusBoard {
        let phases = Family::<PhaseLabel, Gauge>::default();
        registry.register("phase", "1 for the phase that the shim is in", phases.clone());
        registry.register("build", "What runs", Info::new(vec![("version", crate::log::BUILD)]));
        let mode = Gauge::<i64>::default();
        mode.set(config.debug.into());
        registry.register("debug_mode", "1 when the enclave has no secrets from its parent", mode);
        if let Some(&slot) = config.slots.first() {
            let granted = Gauge::<i64>::default();
            granted.set(slot.into());
            registry.register("slot", "The node's enclave slot that the device plugin granted", granted);
        }
        registry.register_collector(Box::new(Steps(timeline)));
        let board = StatusBoard { shown: watch::Sender::new(Status::from(&Phase::Launching)), phases };
        board.show(&Phase::Launching);
        board
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Status> {
        self.shown.subscribe()
    }

    pub(super) fn show(&self, phase: &Phase) {
        let before = self.shown.send_replace(Status::from(phase));
        self.phases.get_or_create(&PhaseLabel { phase: before.phase }).set(0);
        self.phases.get_or_create(&PhaseLabel { phase: phase.name() }).set(1);
    }
}

/// The steps of the launch, read at every scrape.
#[derive(Debug)]
struct Steps(Arc<Timeline>);

impl Collector for Steps {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "step_seconds",
            "When a step was reached, since the start of the process",
            None,
            MetricType::Gauge,
        )?;
        for step in self.0.steps() {
            let seconds = ConstGauge::new(step.at_ms as f64 / 1e3);
            seconds.encode(family.encode_family(&[("step", step.step)])?)?;
        }
        Ok(())
    }
}
