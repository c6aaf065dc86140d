//! Whether the agent answers. An enclave that hangs is alive to the driver: nothing but
//! its silence tells.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

/// What the control connection knows, shown in /readyz and /metrics.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    answers: watch::Sender<bool>,
    shown: Gauge,
}

impl Pulse {
    /// An agent that has not been silent yet.
    pub(crate) fn register(registry: &mut Registry) -> Pulse {
        let shown = Gauge::default();
        shown.set(1);
        registry.register("agent_answers", "0 while the agent is silent", shown.clone());
        Pulse { answers: watch::Sender::new(true), shown }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.answers.subscribe()
    }

    /// It is silent: told once.
    pub(super) fn stops(&self) {
        if self.answers.send_replace(false) {
            self.shown.set(0);
            tracing::warn!("the agent does not answer any more; /readyz is 503 until it does");
        }
    }

    /// It is heard.
    pub(super) fn beats(&self) {
        if !self.answers.send_replace(true) {
            self.shown.set(1);
            tracing::info!("the agent answers again");
        }
    }
}
