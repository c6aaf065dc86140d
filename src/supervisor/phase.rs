//! The policy: which phase follows which event. No clock, no I/O.

use std::time::Duration;

use nitro_device::Cid;
use serde::Serialize;
use wire::ExitStatus;

use crate::config::{Config, Timespan};
use crate::exit::{Exit, Explanation, Failure};

/// Between the workload's end and our hearing of it: the agent first lets its
/// connections finish, for 2 s at most, and needs a moment to say so.
const AGENT_WITHIN: Duration = Duration::from_secs(3);
/// For open connections to end by themselves once the workload has.
const RELAYS_WITHIN: Duration = Duration::from_secs(3);
/// For the enclave to power off once its exit status is known.
const POWER_OFF_WITHIN: Duration = Duration::from_secs(2);
/// For frames that the agent sent before the enclave hung up.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(200);

/// What the shim waits for. Drawn in [`super`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// For the host side of the launch.
    Launching,
    /// For the agent to say that the workload is ready.
    Booting,
    /// For a reason to end.
    Serving,
    /// For endpoints to be removed; connections are still taken.
    Draining,
    /// For the workload to end within its grace.
    Stopping,
    /// For the workload to end at once.
    Hurrying,
    /// The enclave is gone: for what its agent said last.
    LastWords,
    /// The workload has ended: for open connections.
    Finishing(ExitStatus),
    /// Nothing is left to carry: for the enclave to power off.
    Parting(ExitStatus),
    /// For nothing.
    Ended(Ending),
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The enclave runs, with this context id.
    Launched(Cid),
    /// The enclave gave its first sign of life: a connection taken, or a byte
    /// on its console.
    Contact,
    /// The agent has come this far.
    Reached(wire::Phase),
    /// SIGTERM or SIGINT.
    Stop { signal: u8 },
    /// The workload has ended.
    Exited(ExitStatus),
    /// The enclave's descriptor reports a hang-up.
    HungUp,
    /// No connection is open any more.
    Idle,
    /// The phase has lasted as long as it may.
    TimeOver,
    /// It cannot go on.
    Failed(Failure),
}

/// How it all ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The workload ended, by itself or because it was asked to.
    Workload(ExitStatus),
    /// A stop signal came before the workload was ready: nothing to drain.
    StoppedEarly { signal: u8 },
    /// The workload outlived its grace and the agent's SIGKILL.
    GraceOver,
    /// The enclave was not ready in time.
    BootTimeout,
    /// The enclave ended without an exit status.
    Died,
    /// Anything else.
    Failed(Failure),
}

/// What happened on the way to an ending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Circumstances {
    /// A stop signal came.
    pub(crate) asked: bool,
    /// How far the agent said that the enclave has come.
    pub(crate) heard: Option<wire::Phase>,
    /// How long the enclave was given to be ready.
    pub(crate) boot_timeout: Timespan,
    /// The image has no agent.
    pub(crate) foreign: bool,
}

impl Circumstances {
    /// Takes note of an event.
    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::Stop { .. } => self.asked = true,
            Event::Reached(phase) => self.heard = self.heard.max(Some(*phase)),
            _ => {}
        }
    }
}

/// Whose exit code it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Workload,
    Shim,
}

impl Phase {
    /// The whole policy. Late or repeated events change nothing: a phase told
    /// twice after a reconnect and a third SIGTERM are normal.
    pub(crate) fn after(self, event: Event) -> Phase {
        use {Ending as End, Event as On, Phase::*};
        match (self, event) {
            (ended @ Ended(_), _) => ended,

            // Once the exit status is known nothing can change it.
            (Finishing(status), On::Idle | On::TimeOver | On::Stop { .. }) => Parting(status),
            (Finishing(status), On::HungUp) => Ended(End::Workload(status)),
            (Parting(status), On::HungUp | On::TimeOver | On::Stop { .. }) => Ended(End::Workload(status)),
            (known @ (Finishing(_) | Parting(_)), _) => known,

            (_, On::Failed(failure)) => Ended(End::Failed(failure)),
            (LastWords, On::Exited(status)) => Ended(End::Workload(status)),
            (LastWords, On::TimeOver) => Ended(End::Died),
            (LastWords, _) => LastWords,

            (Launching, On::Launched(_)) => Booting,
            (Launching | Booting, On::Stop { signal }) => Ended(End::StoppedEarly { signal }),
            (Launching, _) => Launching,

            (_, On::Exited(status)) => Finishing(status),
            (_, On::HungUp) => LastWords,

            (Booting, On::Reached(wire::Phase::Ready)) => Serving,
            (Booting, On::TimeOver) => Ended(End::BootTimeout),
            (Serving, On::Stop { .. }) => Draining,
            (Draining, On::TimeOver) => Stopping,
            (Draining | Stopping, On::Stop { .. }) => Hurrying,
            (Stopping | Hurrying, On::TimeOver) => Ended(End::GraceOver),
            (phase @ (Booting | Serving | Draining | Stopping | Hurrying), _) => phase,
        }
    }

    /// How long the phase may last before [`Event::TimeOver`]. After a stop
    /// signal all of them together are cut to the drain's whole.
    pub(crate) fn limit(&self, config: &Config, boot_timeout: Timespan) -> Option<Duration> {
        match self {
            Phase::Launching | Phase::Serving | Phase::Ended(_) => None,
            Phase::Booting => Some(boot_timeout.duration()),
            Phase::Draining => Some(config.drain.accept.duration()),
            Phase::Stopping => Some(config.drain.grace.duration() + AGENT_WITHIN),
            Phase::Hurrying => Some(AGENT_WITHIN),
            Phase::LastWords => Some(LAST_WORDS_WITHIN),
            Phase::Finishing(_) => Some(RELAYS_WITHIN),
            Phase::Parting(_) => Some(POWER_OFF_WITHIN),
        }
    }

    /// A stable word for logs, metrics and /readyz.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Phase::Launching => "launching",
            Phase::Booting => "booting",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
            Phase::Stopping => "stopping",
            Phase::Hurrying => "hurrying",
            Phase::LastWords => "last words",
            Phase::Finishing(_) => "finishing",
            Phase::Parting(_) => "parting",
            Phase::Ended(_) => "ended",
        }
    }
}

impl Ending {
    /// The process's exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Ending::Workload(status) => status.shell_code(),
            Ending::StoppedEarly { signal } => 128u8.saturating_add(*signal),
            Ending::GraceOver => 128 + 9,
            Ending::BootTimeout => Exit::BootTimeout.code(),
            Ending::Died => Exit::EnclaveDied.code(),
            Ending::Failed(failure) => failure.exit.code(),
        }
    }

    pub(crate) fn origin(&self) -> Origin {
        match self {
            Ending::Workload(_) => Origin::Workload,
            _ => Origin::Shim,
        }
    }

    /// A stable word for reports.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Ending::Workload(_) => "workload",
            Ending::StoppedEarly { .. } => "stopped_early",
            Ending::GraceOver => "grace_over",
            Ending::BootTimeout => Exit::BootTimeout.name(),
            Ending::Died => Exit::EnclaveDied.name(),
            Ending::Failed(failure) => failure.exit.name(),
        }
    }

    /// The lines for the operator; `None` when all went as it was asked.
    pub(crate) fn explanation(&self, config: &Config, on_the_way: &Circumstances) -> Option<Explanation> {
        Some(match self {
            Ending::Workload(ExitStatus::Code(0)) | Ending::StoppedEarly { .. } => return None,
            Ending::Workload(_) if on_the_way.asked => return None,
            Ending::Workload(status) => Explanation::new(
                match status {
                    ExitStatus::Code(code) => format!("the workload exited with {code}"),
                    ExitStatus::Signal(signal) => format!("signal {signal} ended the workload"),
                },
                format!("the cause is in the workload; {}", look(config)),
            ),
            Ending::GraceOver => Explanation::new(
                format!("the workload did not end within its grace of {}", config.drain.grace),
                "let the workload end on SIGTERM, or set a longer drain.grace (and the pod's terminationGracePeriodSeconds)",
            ),
            Ending::BootTimeout => Explanation::new(
                format!("the enclave was not ready within {}", on_the_way.boot_timeout),
                match on_the_way.heard {
                    _ if on_the_way.foreign => format!(
                        "the image never sent its heartbeat to port 9000 of the instance: more memory_mib, a longer boot.timeout, or `readiness: agent` if it has our agent; {}",
                        look(config)
                    ),
                    Some(_) => format!(
                        "let the workload listen on every port of its settings, or set a longer boot.timeout; {}",
                        look(config)
                    ),
                    None => format!(
                        "the image's agent never answered: use an image of `enclavectl build`, more memory_mib, or a longer boot.timeout; {}",
                        look(config)
                    ),
                },
            ),
            Ending::Died => Explanation::new(
                "the enclave ended without an exit status of its workload",
                format!(
                    "an enclave with too little memory ends like this: try a larger memory_mib; {}",
                    look(config)
                ),
            ),
            Ending::Failed(failure) => failure.explanation.clone(),
        })
    }
}

fn look(config: &Config) -> &'static str {
    if config.debug {
        "the end of its console is in this report"
    } else {
        "run with --debug to see its console"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(events: &[Event]) -> Phase {
        events.iter().cloned().fold(Phase::Launching, Phase::after)
    }

    fn cid() -> Cid {
        Cid::try_from(16u32).unwrap()
    }

    fn serving() -> Vec<Event> {
        vec![Event::Launched(cid()), Event::Reached(wire::Phase::Ready)]
    }

    const TERM: Event = Event::Stop { signal: 15 };
    const EXIT_7: Event = Event::Exited(ExitStatus::Code(7));

    #[test]
    fn a_drained_stop_ends_with_the_workloads_own_code() {
        let rest = [TERM, Event::TimeOver, EXIT_7, Event::Idle, Event::HungUp];
        let ended = run(&[serving(), rest.to_vec()].concat());
        assert_eq!(ended, Phase::Ended(Ending::Workload(ExitStatus::Code(7))));
    }

    #[test]
    fn every_ending_has_its_documented_code() {
        for (events, code) in [
            (vec![Event::Failed(Failure::new(Exit::Image, "c", "f"))], 65),
            (vec![TERM], 143),
            (vec![Event::Launched(cid()), Event::Stop { signal: 2 }], 130),
            (vec![Event::Launched(cid()), Event::TimeOver], 75),
            (vec![Event::Launched(cid()), EXIT_7, Event::Idle, Event::HungUp], 7),
            ([serving(), vec![Event::HungUp, Event::TimeOver]].concat(), 76),
            ([serving(), vec![Event::HungUp, EXIT_7]].concat(), 7),
            ([serving(), vec![TERM, TERM, Event::TimeOver]].concat(), 137),
            ([serving(), vec![Event::Exited(ExitStatus::Signal(11)), Event::HungUp]].concat(), 139),
        ] {
            let Phase::Ended(ending) = run(&events) else { panic!("{events:?} does not end") };
            assert_eq!(ending.code(), code, "{events:?}");
        }
    }

    #[test]
    fn every_failure_has_a_cause_and_a_fix_and_what_was_asked_for_is_none() {
        let config = Config::default();
        let (alone, asked) =
            (Circumstances::default(), Circumstances { asked: true, ..Circumstances::default() });
        let status = ExitStatus::Code(1);
        for ending in [Ending::Workload(status), Ending::GraceOver, Ending::BootTimeout, Ending::Died] {
            let explanation = ending.explanation(&config, &alone).unwrap();
            assert!(!explanation.cause.is_empty() && !explanation.fix.is_empty(), "{ending:?}");
        }
        let fix = |on_the_way| Ending::BootTimeout.explanation(&config, &on_the_way).unwrap().fix;
        assert!(fix(Circumstances::default()).contains("agent never answered"));
        let heard = Some(wire::Phase::AgentUp);
        assert!(fix(Circumstances { heard, ..Circumstances::default() }).contains("listen on every port"));
        assert!(fix(Circumstances { foreign: true, ..Circumstances::default() }).contains("heartbeat"));
        assert_eq!(Ending::Workload(status).explanation(&config, &asked), None);
        assert_eq!(Ending::Workload(ExitStatus::Code(0)).explanation(&config, &alone), None);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Launched(cid())),
            Just(Event::Contact),
            Just(Event::Reached(wire::Phase::AgentUp)),
            Just(Event::Reached(wire::Phase::Ready)),
            Just(TERM),
            (0u8..=255).prop_map(|code| Event::Exited(ExitStatus::Code(code))),
            Just(Event::HungUp),
            Just(Event::Idle),
            Just(Event::TimeOver),
            Just(Event::Failed(Failure::new(Exit::Bug, "c", "f"))),
        ]
    }

    /// Phases in the order in which they may be passed.
    fn rank(phase: &Phase) -> u8 {
        match phase {
            Phase::Launching => 0,
            Phase::Booting => 1,
            Phase::Serving => 2,
            Phase::Draining => 3,
            Phase::Stopping => 4,
            Phase::Hurrying => 5,
            Phase::LastWords | Phase::Finishing(_) => 6,
            Phase::Parting(_) => 7,
            Phase::Ended(_) => 8,
        }
    }

    proptest! {
        #[test]
        fn no_sequence_goes_back_or_changes_an_ending_or_a_known_status(
            events in proptest::collection::vec(any_event(), 0..40),
        ) {
            let mut phase = Phase::Launching;
            let mut known = None;
            for event in events {
                let next = phase.clone().after(event.clone());
                prop_assert!(rank(&next) >= rank(&phase), "{phase:?} after {event:?} is {next:?}");
                if let Phase::Ended(_) = phase {
                    prop_assert_eq!(&next, &phase);
                }
                if let Phase::Finishing(status) | Phase::Parting(status) = next {
                    prop_assert_eq!(*known.get_or_insert(status), status);
                }
                if let (Phase::Ended(ending), Some(status)) = (&next, known) {
                    prop_assert_eq!(ending, &Ending::Workload(status));
                }
                phase = next;
            }
        }

        #[test]
        fn time_alone_ends_every_phase_but_launching_and_serving(
            events in proptest::collection::vec(any_event(), 0..20),
        ) {
            let mut phase = run(&events);
            let config = Config::default();
            for _ in 0..8 {
                if phase.limit(&config, Timespan::from_secs(60)).is_some() {
                    phase = phase.after(Event::TimeOver);
                }
            }
            prop_assert!(matches!(phase, Phase::Launching | Phase::Serving | Phase::Ended(_)), "{phase:?}");
        }
    }
}
