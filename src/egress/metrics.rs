//! What the way out counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use wire::Undialled;

use crate::carried::{Carried, Open, Way};

static EGRESS: Way = Way { name: "egress", whose: "Outgoing", outward: "to_server" };

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

#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub(super) carried: Carried,
    /// Answers of a resolver that were used after their time, because none was to be had.
    pub(super) stale: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics { carried: Carried::register(registry, &EGRESS), stale: Counter::default() };
        registry.register(
            "egress_stale_answers",
            "Names resolved from memory because no resolver answered",
            metrics.stale.clone(),
        );
        for refusal in Undialled::ALL.map(Outcome::Undialled).into_iter().chain([Outcome::Stranger]) {
            metrics.carried.expect(refusal.name());
        }
        metrics
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.carried.ended(outcome.name());
    }

    pub(super) fn opened(&self) -> Open {
        self.carried.opened()
    }
}
