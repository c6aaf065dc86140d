//! The agent's life: what has happened, and what is to be done about it.
//!
//! ```text
//! Launching ──launched──▶ Running ──exited──▶ Draining ──drained, 2 s──▶ Telling ──goodbye, time──▶ Over
//!     │                      └─stop─▶ Stopping ──exited──▲                  ▲
//!     ├── launcher failed and ended ─────────────────────┤                  │
//!     └── no launcher ──────────────────────────────────────────────────────┘
//! ```
//!
//! Pure: no clock, no process, no socket. Times are measured from the agent's
//! start. Only [`crate::agent`] holds a [`Life`]; everyone else sends it events.

use std::time::Duration;

use wire::{ExitStatus, Phase, Variable};

use crate::environment::Environment;

/// How long strangers to our protocol (nitro-cli) have nothing to wait for:
/// after this time without a claim the agent looks for other launchers.
pub(crate) const CLAIM_WINDOW: Duration = Duration::from_secs(2);
/// For ingress connections to carry what the workload had already written.
const DRAIN: Duration = Duration::from_secs(2);
/// For a shim that has claimed the enclave to fetch the exit status.
const TELL: Duration = Duration::from_secs(5);
/// The same for a failure, which a shim may learn only when it first connects.
const TELL_FAILURE: Duration = Duration::from_secs(10);

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A shim has claimed the enclave, or has come back.
    Claimed,
    /// What the pod has of the variables that the settings name.
    Environment { variables: Vec<Variable> },
    /// They are in PCR16, which is locked: the workload may be started.
    Measured { environment: Environment },
    /// The launcher has become the workload.
    Launched,
    /// The launcher has said why it cannot; it ends by itself.
    LaunchFailed { cause: String },
    /// There is no launcher process and there will be none.
    Unlaunchable { cause: String },
    /// The workload is ready by the rule of its settings.
    Ready,
    /// The launcher or the workload, which are one process, has ended.
    Exited(ExitStatus),
    /// No ingress connection is left.
    Drained,
    /// Asked to stop, by the shim or by a signal to PID 1.
    Stop { grace: Duration },
    /// Asked to stop at once.
    Hurry,
    /// Asked to pass a signal on.
    Forward { signal: u8 },
    /// The shim knows how it ended.
    Goodbye,
    /// [`Life::deadline`] has passed.
    DeadlinePassed,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// SIGTERM to the workload's process group.
    Terminate,
    /// SIGKILL to the workload's process group.
    Kill,
    /// This signal to the workload's process group.
    Forward(u8),
    /// SIGKILL to every process that is left.
    KillLeftovers,
    /// Take no new ingress connection; report [`Event::Drained`].
    Drain,
}

/// What a shim may know, on every connection anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// Every phase so far with its milliseconds since the start; never empty in a [`Life`].
    pub(crate) reached: Vec<(Phase, u64)>,
    /// Why the workload cannot be run.
    pub(crate) failure: Option<String>,
    /// How the workload, or its launcher, ended.
    pub(crate) exited: Option<ExitStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for the launcher's report, and for its end if that came first.
    Launching {
        ended: Option<ExitStatus>,
        stop: Option<Stop>,
    },
    Running,
    Stopping,
    Draining(ExitStatus),
    Telling,
    Over,
}

/// A stop that came while the launcher was still at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Grace(Duration),
    Now,
}

/// The whole state of the agent.
#[derive(Debug)]
pub(crate) struct Life {
    state: State,
    claimed: bool,
    deadline: Option<Duration>,
    status: Status,
}

impl Life {
    /// A life that begins with the launch, `now` after the agent's start.
    pub(crate) fn new(now: Duration) -> Life {
        let status = Status { reached: vec![(Phase::AgentUp, millis(now))], ..Status::default() };
        let state = State::Launching { ended: None, stop: None };
        Life { state, claimed: false, deadline: None, status }
    }

    /// When to send [`Event::DeadlinePassed`].
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// True at the end: the enclave may power off.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// What a shim may know now.
    pub(crate) fn status(&self) -> &Status {
        &self.status
    }

    /// The whole policy. Late and repeated events change nothing: a second
    /// stop, or a workload that becomes ready while it stops, is normal.
    pub(crate) fn on(&mut self, now: Duration, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (state, Event::Claimed) => self.claim(now, state),

            (State::Launching { ended: None, stop }, Event::Launched) => self.start(now, stop),
            (State::Launching { ended: Some(status), .. }, Event::Launched) => {
                self.reach(now, Phase::WorkloadStarted);
                self.drain(now, status)
            }
            (State::Launching { ended, .. }, Event::LaunchFailed { cause }) => {
                self.status.failure = Some(cause);
                ended.map_or_else(Vec::new, |status| self.drain(now, status))
            }
            (State::Launching { .. }, Event::Unlaunchable { cause }) => {
                self.status.failure = Some(cause);
                self.tell(now, None)
            }
            (State::Launching { .. }, Event::Exited(status)) if self.status.failure.is_some() => {
                self.drain(now, status)
            }
            (State::Launching { ended: None, stop }, Event::Exited(status)) => {
                self.go(State::Launching { ended: Some(status), stop }, None)
            }
            (State::Launching { ended, .. }, Event::Hurry) => {
                self.go(State::Launching { ended, stop: Some(Stop::Now) }, None)
            }
            (State::Launching { ended, stop: None }, Event::Stop { grace }) => {
                self.go(State::Launching { ended, stop: Some(Stop::Grace(grace)) }, None)
            }

            (State::Running, Event::Ready) => {
                self.reach(now, Phase::Ready);
                Vec::new()
            }
            (State::Running, Event::Stop { grace }) => self.terminate(now, grace),
            (State::Stopping, Event::Stop { grace }) => {
                self.deadline = self.deadline.map(|deadline| deadline.min(now.saturating_add(grace)));
                Vec::new()
            }
            (State::Running | State::Stopping, Event::Hurry) | (State::Stopping, Event::DeadlinePassed) => {
                self.go(State::Stopping, None);
                vec![Action::Kill]
            }
            (State::Running | State::Stopping, Event::Forward { signal }) => vec![Action::Forward(signal)],
            (State::Running | State::Stopping, Event::Exited(status)) => self.drain(now, status),

            (State::Draining(status), Event::Drained | Event::DeadlinePassed) => self.tell(now, Some(status)),
            (State::Telling, Event::Goodbye | Event::DeadlinePassed) => self.go(State::Over, None),
            _ => Vec::new(),
        }
    }

    fn claim(&mut self, now: Duration, state: State) -> Vec<Action> {
        self.claimed = true;
        if state == State::Telling {
            self.deadline = Some(self.tell_until(now));
        }
        Vec::new()
    }

    fn start(&mut self, now: Duration, stop: Option<Stop>) -> Vec<Action> {
        self.reach(now, Phase::WorkloadStarted);
        match stop {
            None => self.go(State::Running, None),
            Some(Stop::Grace(grace)) => self.terminate(now, grace),
            Some(Stop::Now) => {
                self.go(State::Stopping, None);
                vec![Action::Kill]
            }
        }
    }

    fn terminate(&mut self, now: Duration, grace: Duration) -> Vec<Action> {
        self.go(State::Stopping, Some(now.saturating_add(grace)));
        vec![Action::Terminate]
    }

    fn drain(&mut self, now: Duration, status: ExitStatus) -> Vec<Action> {
        self.go(State::Draining(status), Some(now.saturating_add(DRAIN)));
        vec![Action::KillLeftovers, Action::Drain]
    }

    fn tell(&mut self, now: Duration, exited: Option<ExitStatus>) -> Vec<Action> {
        self.status.exited = exited;
        let until = self.tell_until(now);
        self.go(State::Telling, Some(until))
    }

    /// A workload that ends at once must not be gone before its shim has
    /// dialled: an unclaimed enclave waits out the claim window.
    fn tell_until(&self, now: Duration) -> Duration {
        match (self.status.failure.is_some(), self.claimed) {
            (true, _) => now.saturating_add(TELL_FAILURE),
            (false, true) => now.saturating_add(TELL),
            (false, false) => now.max(CLAIM_WINDOW),
        }
    }

    fn reach(&mut self, now: Duration, phase: Phase) {
        if self.status.reached.last().is_none_or(|(last, _)| *last < phase) {
            self.status.reached.push((phase, millis(now)));
        }
    }

    fn go(&mut self, state: State, deadline: Option<Duration>) -> Vec<Action> {
        (self.state, self.deadline) = (state, deadline);
        Vec::new()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(60);

    fn life(events: impl IntoIterator<Item = Event>) -> Life {
        let mut life = Life::new(Duration::ZERO);
        for event in events {
            life.on(NOW, event);
        }
        life
    }

    #[test]
    fn a_claimed_exit_is_told_until_goodbye() {
        let mut life = life([Event::Claimed, Event::Launched, Event::Ready]);
        let actions = life.on(NOW, Event::Exited(ExitStatus::Code(7)));
        assert_eq!(actions, [Action::KillLeftovers, Action::Drain]);
        assert_eq!(life.status().exited, None, "relays still drain");
        life.on(NOW, Event::Drained);
        assert_eq!(life.status().exited, Some(ExitStatus::Code(7)));
        assert_eq!(life.deadline(), Some(NOW + TELL));
        life.on(NOW, Event::Goodbye);
        assert!(life.is_over());
    }

    #[test]
    fn an_early_exit_waits_for_a_first_claim_and_a_late_one_does_not() {
        let mut early = Life::new(Duration::ZERO);
        for event in [Event::Launched, Event::Exited(ExitStatus::Code(7)), Event::Drained] {
            early.on(Duration::from_millis(5), event);
        }
        assert_eq!(early.deadline(), Some(CLAIM_WINDOW));
        let late = life([Event::Launched, Event::Exited(ExitStatus::Code(7)), Event::Drained]);
        assert_eq!(late.deadline(), Some(NOW));
    }

    #[test]
    fn an_exit_that_overtakes_the_launch_report_is_a_workload_s_exit() {
        let life = life([Event::Exited(ExitStatus::Code(3)), Event::Launched, Event::Drained]);
        assert_eq!(life.status().exited, Some(ExitStatus::Code(3)));
        assert_eq!(life.status().failure, None);
        assert_eq!(life.status().reached.last().map(|(phase, _)| *phase), Some(Phase::WorkloadStarted));
    }

    #[test]
    fn a_failed_launch_tells_its_cause_and_its_code() {
        let failed = || Event::LaunchFailed { cause: "no such program".to_owned() };
        let exited = || Event::Exited(ExitStatus::Code(127));
        for events in [[failed(), exited()], [exited(), failed()]] {
            let life = life(events.into_iter().chain([Event::Drained]));
            assert_eq!(life.status().failure.as_deref(), Some("no such program"));
            assert_eq!(life.status().exited, Some(ExitStatus::Code(127)));
            assert_eq!(life.status().reached.len(), 1, "the workload was never started");
        }
    }

    #[test]
    fn a_stop_during_the_launch_is_kept() {
        let grace = Duration::from_secs(3);
        let mut life = life([Event::Stop { grace }]);
        assert_eq!(life.on(NOW, Event::Launched), [Action::Terminate]);
        assert_eq!(life.deadline(), Some(NOW + grace));
        assert_eq!(life.on(NOW + grace, Event::DeadlinePassed), [Action::Kill]);
    }

    #[test]
    fn a_second_stop_may_shorten_the_grace_and_never_lengthens_it() {
        let stop = |seconds| Event::Stop { grace: Duration::from_secs(seconds) };
        let mut life = life([Event::Launched, stop(10)]);
        assert_eq!(life.on(NOW, stop(30)), []);
        assert_eq!(life.deadline(), Some(NOW + Duration::from_secs(10)));
        life.on(NOW, stop(1));
        assert_eq!(life.deadline(), Some(NOW + Duration::from_secs(1)));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let status =
            prop_oneof![any::<u8>().prop_map(ExitStatus::Code), (1u8..65).prop_map(ExitStatus::Signal)];
        prop_oneof![
            Just(Event::Claimed),
            Just(Event::Launched),
            Just(Event::LaunchFailed { cause: "cause".to_owned() }),
            Just(Event::Unlaunchable { cause: "cause".to_owned() }),
            Just(Event::Ready),
            status.prop_map(Event::Exited),
            Just(Event::Drained),
            (0u64..60_000).prop_map(|ms| Event::Stop { grace: Duration::from_millis(ms) }),
            Just(Event::Hurry),
            (1u8..65).prop_map(|signal| Event::Forward { signal }),
            Just(Event::Goodbye),
            Just(Event::DeadlinePassed),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_in_whatever_order(events in proptest::collection::vec((any_event(), 0u64..5000), 0..64)) {
            let mut life = Life::new(Duration::ZERO);
            let mut now = Duration::ZERO;
            let (mut exits, mut terminations, mut before) = (Vec::new(), 0, life.status().clone());
            for (event, passed) in events {
                now += Duration::from_millis(passed);
                if let Event::Exited(status) = event {
                    exits.push(status);
                }
                let over = life.is_over();
                let actions = life.on(now, event);
                terminations += actions.iter().filter(|action| **action == Action::Terminate).count();
                let signals = actions.iter().any(|action| {
                    matches!(action, Action::Terminate | Action::Kill | Action::Forward(_))
                });
                // The process id may belong to somebody else by then.
                prop_assert!(exits.is_empty() || !signals, "a signal after the exit");
                prop_assert!(!over || actions.is_empty() && life.is_over(), "life after the end");
                let status = life.status();
                prop_assert!(status.reached.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
                prop_assert!(status.reached.starts_with(&before.reached), "a phase was taken back");
                prop_assert!(before.exited.is_none() || status.exited == before.exited);
                prop_assert!(status.exited.is_none_or(|told| exits.first() == Some(&told)));
                before = status.clone();
            }
            prop_assert!(terminations <= 1);
        }

        #[test]
        fn every_ending_comes_to_its_end(
            events in proptest::collection::vec(any_event(), 0..32),
            status in (0u8..255).prop_map(ExitStatus::Code),
        ) {
            let mut life = Life::new(Duration::ZERO);
            for event in events.into_iter().chain([Event::Launched, Event::Exited(status)]) {
                life.on(NOW, event);
            }
            for _ in 0..4 {
                if let Some(deadline) = life.deadline() {
                    life.on(deadline, Event::DeadlinePassed);
                }
            }
            prop_assert!(life.is_over(), "{life:?}");
        }
    }
}
