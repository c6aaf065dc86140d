//! When what was reached, for the log, /metrics and the crash report.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Steps since the process started.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Instant,
    steps: Mutex<Vec<Step>>,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    pub(crate) step: &'static str,
    /// Milliseconds since the start.
    pub(crate) at_ms: u64,
}

impl Timeline {
    /// Begins now.
    pub(crate) fn start() -> Timeline {
        Timeline { start: Instant::now(), steps: Mutex::new(Vec::new()) }
    }

    /// Notes a step. A step is reached once: an agent repeats itself on every
    /// connection.
    pub(crate) fn reached(&self, step: &'static str) {
        let at = self.elapsed();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let mut steps = self.lock();
        if steps.iter().all(|known| known.step != step) {
            tracing::debug!(step, at_ms, "step");
            steps.push(Step { step, at_ms });
        }
    }

    /// Since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// All steps so far, in order.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Step>> {
        // A list of steps is whole after every push, whoever panicked.
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_noted_once_and_in_order() {
        let timeline = Timeline::start();
        for step in ["planned", "agent up", "agent up", "serving", "agent up"] {
            timeline.reached(step);
        }
        let steps: Vec<_> = timeline.steps().into_iter().map(|step| step.step).collect();
        assert_eq!(steps, ["planned", "agent up", "serving"]);
    }
}
