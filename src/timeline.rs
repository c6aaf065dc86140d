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

    /// Notes a step.
    pub(crate) fn reached(&self, step: &'static str) {
        let at = self.elapsed();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(step, at_ms, "step");
        self.lock().push(Step { step, at_ms });
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
