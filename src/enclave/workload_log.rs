//! The workload's output, as its measured settings allow: fetched from the
//! agent and logged line by line.
//!
//! ```text
//! agent ─vsock─▶ pace ─▶ one log event a line: stream, line
//!                 └ over the rate: not read; the agent drops and counts
//! ```
//! The node's disk is bounded by the pace, this process by one frame. What the
//! agent has kept when the workload ends is bounded too, and is read at once.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use wire::{LogMessage, Refusal};

use crate::enclave::session::{Conversation, Session, SessionError};
use crate::exit::chain;
use crate::tail::{Tail, printable};

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// Failures in a row after which there is no log port: an agent opens it
/// before the control port, on which it has been heard.
const ATTEMPTS: u32 = 6;

/// What is counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    lines: Counter,
    dropped: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        registry.register("workload_log_lines", "Lines of the workload's output", metrics.lines.clone());
        let dropped = metrics.dropped.clone();
        registry.register("workload_log_lines_dropped", "Lines over log.workload_lines", dropped);
        metrics
    }
}

/// What the task is given.
#[derive(Debug)]
pub(crate) struct WorkloadLog {
    pub(crate) session: Session,
    /// Lines a second, more than 0.
    pub(crate) rate: u32,
    /// Takes the last lines, for reports.
    pub(crate) tail: Tail,
    /// The workload has ended: no pace any more.
    pub(crate) last: CancellationToken,
    pub(crate) metrics: Metrics,
}

impl WorkloadLog {
    /// Returns at the output's end, when there is none to have, or at `stop`.
    pub(crate) async fn follow(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let (mut retry, mut failures) = (FIRST_RETRY, 0);
        let mut pace = Pace::new(self.rate, Instant::now());
        loop {
            let error = match self.session.open(wire::port::LOGS).await {
                Ok(agent) => {
                    (retry, failures) = (FIRST_RETRY, 0);
                    match self.read(agent, &mut pace).await {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(SessionError::Refused(Refusal::NotAllowed)) => {
                    tracing::debug!("the image's settings keep the workload's output in the enclave");
                    return;
                }
                Err(error) => error,
            };
            failures += 1;
            if failures == ATTEMPTS {
                tracing::warn!(reason = chain(&error), "the workload's output cannot be fetched");
                return;
            }
            sleep(retry).await;
            retry = (2 * retry).min(LONGEST_RETRY);
        }
    }

    async fn read(&self, mut agent: Conversation, pace: &mut Pace) -> Result<(), SessionError> {
        loop {
            tokio::select! {
                () = sleep_until(pace.ready_at()) => {}
                () = self.last.cancelled() => {}
            }
            match agent.receive().await? {
                LogMessage::End => return Ok(()),
                LogMessage::Lines { dropped, lines } => {
                    pace.spend(lines.len(), Instant::now());
                    self.print(dropped, lines);
                }
            }
        }
    }

    fn print(&self, dropped: u64, lines: Vec<wire::LogLine>) {
        if dropped > 0 {
            self.metrics.dropped.inc_by(dropped);
            tracing::warn!(dropped, "workload: lines over log.workload_lines were dropped here");
        }
        self.metrics.lines.inc_by(lines.len() as u64);
        for line in lines {
            let text = printable(&line.text);
            tracing::info!(stream = line.stream.name(), line = text, "workload");
            self.tail.push(text);
        }
    }
}

/// When the next lines may be read: on average `rate` a second, after a pause a
/// second's worth at once.
#[derive(Debug)]
struct Pace {
    each: Duration,
    /// By when everything so far would have been read at the rate.
    paid_until: Instant,
}

impl Pace {
    const BURST: Duration = Duration::from_secs(1);

    fn new(rate: u32, now: Instant) -> Pace {
        Pace { each: Duration::from_secs(1) / rate.max(1), paid_until: now }
    }

    fn ready_at(&self) -> Instant {
        self.paid_until
    }

    fn spend(&mut self, lines: usize, now: Instant) {
        let credit_from = now.checked_sub(Self::BURST).unwrap_or(now);
        let lines = u32::try_from(lines).unwrap_or(u32::MAX);
        self.paid_until = self.paid_until.max(credit_from) + self.each.saturating_mul(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_a_flood_is_read_at_the_rate() {
        let mut pace = Pace::new(100, Instant::now());
        sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        let mut read = 0;
        while begun.elapsed() < Duration::from_secs(10) {
            sleep_until(pace.ready_at()).await;
            pace.spend(30, Instant::now());
            read += 30;
        }
        assert!((1000..=1160).contains(&read), "{read} lines in 10 s at 100 a second and a burst of 100");
    }
}
