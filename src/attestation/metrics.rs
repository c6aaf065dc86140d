//! What is counted of attestation requests.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{NoDocument, Outcome};

/// How a request ended: a document, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    outcome: &'static str,
}

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: Family<Label, Counter>,
    coalesced: Counter,
    waiting: Gauge,
    nsm_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            requests: Family::default(),
            coalesced: Counter::default(),
            waiting: Gauge::default(),
            nsm_seconds: Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0]),
        };
        let Metrics { requests, coalesced, waiting, nsm_seconds } = metrics.clone();
        registry.register("attestation_requests", "Attestation requests by outcome", requests);
        let help = "Requests that shared the document of another one for the same nonce";
        registry.register("attestation_coalesced", help, coalesced);
        registry.register("attestation_waiting", "Attestation requests that wait for their turn", waiting);
        let help = "Time that the NSM took for a document";
        registry.register("attestation_nsm_seconds", help, nsm_seconds);
        metrics
    }

    pub(super) fn count(&self, outcome: &Outcome) {
        let outcome = match outcome {
            Ok(_) => "document",
            Err(NoDocument::Full { .. }) => "full",
            Err(NoDocument::Busy(_)) => "busy",
            Err(NoDocument::NotRunning) => "not_running",
            Err(NoDocument::Refused(_)) => "refused",
            Err(NoDocument::Unreachable(_)) => "unreachable",
            Err(NoDocument::Late) => "late",
        };
        self.requests.get_or_create(&Label { outcome }).inc();
    }

    pub(super) fn coalesced(&self) {
        self.coalesced.inc();
    }

    pub(super) fn waiting(&self, requests: usize) {
        self.waiting.set(i64::try_from(requests).unwrap_or(i64::MAX));
    }

    pub(super) fn nsm_took(&self, time: Duration) {
        self.nsm_seconds.observe(time.as_secs_f64());
    }
}
