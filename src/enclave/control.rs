//! The control connection: claims the enclave, hears what becomes of it, and
//! says what is wanted of it.
//!
//! ```text
//! dial ──hello──▶ welcomed ──frames both ways──▶ lost ──back-off──▶ dial
//!   └── refused: another shim has it, or another protocol: the end
//! ```
//! What is wanted is a state, not a queue: it is said again on every
//! connection, so a reconnect loses no order.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use wire::{Refusal, ToAgent, ToShim, Undialled};

use crate::egress::{Dial, Line};
use crate::enclave::pulse::Pulse;
use crate::enclave::session::{Conversation, Session, SessionError};
use crate::environment;
use crate::exit::{Exit, Failure, chain};
use crate::supervisor::Event;

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_millis(100);
/// A ping this often; a connection without any frame for twice as long is given up.
const PING_EVERY: Duration = Duration::from_secs(5);

/// What the supervisor wants of the agent. Only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Carry on.
    Run,
    /// End the workload; it may take until then.
    Stop { until: Instant },
    /// End it now.
    Hurry,
    /// Its exit status is known: power off.
    Goodbye,
}

impl Order {
    fn message(self) -> Option<ToAgent> {
        match self {
            Order::Run => None,
            Order::Stop { until } => {
                let left = until.saturating_duration_since(Instant::now()).as_millis();
                Some(ToAgent::Stop { grace_ms: u32::try_from(left).unwrap_or(u32::MAX) })
            }
            Order::Hurry => Some(ToAgent::Hurry),
            Order::Goodbye => Some(ToAgent::Goodbye),
        }
    }
}

/// What the control task is given.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) session: Session,
    pub(crate) orders: watch::Receiver<Order>,
    /// Signal numbers to pass on to the workload.
    pub(crate) signals: mpsc::Receiver<u8>,
    pub(crate) events: mpsc::Sender<Event>,
    /// Where the workload's outgoing connections are made.
    pub(crate) egress: Line,
    pub(crate) pulse: Pulse,
    pub(crate) stop: CancellationToken,
}

impl Control {
    /// Keeps the connection until told to stop, or until the agent refuses.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            failure = self.keep() => {
                // The supervisor lives as long as this task.
                let _ = self.events.send(Event::Failed(failure)).await;
            }
        }
    }

    async fn keep(&mut self) -> Failure {
        let mut retry = FIRST_RETRY;
        // Since when it has not been heard; a boot has a time limit of its own.
        let mut silent: Option<Instant> = None;
        loop {
            match self.open().await {
                Ok(conversation) => {
                    tracing::debug!("control connection is up");
                    self.pulse.beats();
                    retry = FIRST_RETRY;
                    let lost = self.converse(conversation).await;
                    tracing::debug!(reason = chain(&lost), "control connection is lost");
                    let before = if let SessionError::Silent(time) = lost { time } else { Duration::ZERO };
                    silent = Instant::now().checked_sub(before);
                }
                Err(SessionError::Refused(refusal)) if refusal != Refusal::NotAHello => {
                    return refused(&refusal);
                }
                Err(error) => tracing::trace!(reason = chain(&error), "the agent does not answer yet"),
            }
            if silent.is_some_and(|since| since.elapsed() > 2 * PING_EVERY) {
                self.pulse.stops();
            }
            sleep(retry).await;
            retry = (retry * 3 / 2).min(LONGEST_RETRY);
        }
    }

    async fn open(&self) -> Result<Conversation, SessionError> {
        let reached = self.session.reach(wire::port::CONTROL).await?;
        let _ = self.events.send(Event::Contact).await;
        self.session.greet(reached, wire::port::CONTROL).await
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        mut agent: Conversation<S>,
    ) -> SessionError {
        let mut pings = ping_interval();
        let mut last_heard = Instant::now();
        let mut ping_id = 0;
        self.orders.mark_changed();
        loop {
            let said = tokio::select! {
                message = agent.receive::<ToShim>() => match message {
                    Ok(message) => {
                        last_heard = Instant::now();
                        self.hear(message).await
                    }
                    Err(error) => return error,
                },
                Ok(()) = self.orders.changed() => self.orders.borrow_and_update().message(),
                Some(number) = self.signals.recv() => Some(ToAgent::Signal { number }),
                Some((stream, reason)) = self.egress.undialled.recv() => {
                    Some(ToAgent::Undialled { stream, reason })
                }
                _ = pings.tick() => {
                    if last_heard.elapsed() > 2 * PING_EVERY {
                        return SessionError::Silent(2 * PING_EVERY);
                    }
                    ping_id += 1;
                    Some(ToAgent::Ping { id: ping_id })
                }
            };
            if let Some(message) = said
                && let Err(error) = agent.send(&message).await
            {
                return error;
            }
        }
    }

    /// What is to be answered at once, if anything.
    async fn hear(&self, message: ToShim) -> Option<ToAgent> {
        let event = match message {
            ToShim::Pong { .. } => return None,
            // This connection must not wait for one of the workload's.
            ToShim::Dial { stream, host, port } => {
                let full = self.egress.dials.try_send(Dial { stream, host, port }).is_err();
                return full.then_some(ToAgent::Undialled { stream, reason: Undialled::Full });
            }
            ToShim::EnvironmentWanted { names } => match environment::of_pod(&names) {
                Ok(variables) => return Some(ToAgent::Environment { variables }),
                Err(failure) => Event::Failed(failure),
            },
            ToShim::Reached { phase, after_ms } => {
                tracing::info!(?phase, after_ms, "enclave reached a phase");
                Event::Reached(phase)
            }
            ToShim::Exited(status) => Event::Exited(status),
            ToShim::Failed { cause } => Event::Failed(Failure::new(
                Exit::Image,
                format!("the workload cannot be run: {cause}"),
                "correct what the image was built from, and build it again",
            )),
        };
        let _ = self.events.send(event).await;
        None
    }
}

fn ping_interval() -> Interval {
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

fn refused(refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::Version { .. } => Failure::new(
            Exit::Image,
            format!("the agent in the image does not speak protocol {}: {refusal}", wire::PROTOCOL),
            "use the shim of the release that built the image, or build the image again",
        ),
        _ => Failure::new(
            Exit::EnclaveDied,
            format!("the enclave cannot be used: {refusal}"),
            "look for another process on this node that dials enclaves, then start again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use nitro_device::Cid;
    use prometheus_client::registry::Registry;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use wire::{ExitStatus, Phase};

    use super::*;

    struct Shim {
        control: Option<Control>,
        orders: watch::Sender<Order>,
        signals: mpsc::Sender<u8>,
        events: mpsc::Receiver<Event>,
        dials: mpsc::Receiver<Dial>,
        refusals: mpsc::Sender<(u64, Undialled)>,
    }

    fn shim() -> Shim {
        let orders = watch::Sender::new(Order::Run);
        let (signals, forwarded) = mpsc::channel(4);
        let (sender, events) = mpsc::channel(4);
        let (dialling, dials) = mpsc::channel(1);
        let (refusals, undialled) = mpsc::channel(1);
        let control = Control {
            session: Session::new(Cid::try_from(16u32).unwrap()).unwrap(),
            orders: orders.subscribe(),
            signals: forwarded,
            events: sender,
            egress: Line { dials: dialling, undialled },
            pulse: Pulse::register(&mut Registry::default()),
            stop: CancellationToken::new(),
        };
        Shim { control: Some(control), orders, signals, events, dials, refusals }
    }

    impl Shim {
        /// A conversation with an agent that the test plays.
        fn converse(&mut self) -> (Conversation<DuplexStream>, JoinHandle<(Control, SessionError)>) {
            let (near, far) = duplex(4096);
            let mut control = self.control.take().unwrap();
            let task = tokio::spawn(async move {
                let lost = control.converse(Conversation::over(near)).await;
                (control, lost)
            });
            (Conversation::over(far), task)
        }
    }

    async fn next_order(agent: &mut Conversation<DuplexStream>) -> ToAgent {
        loop {
            match agent.receive().await.unwrap() {
                ToAgent::Ping { .. } => {}
                order => return order,
            }
        }
    }

    #[tokio::test]
    async fn an_order_is_said_again_on_the_next_connection_with_what_is_left_of_the_grace() {
        let mut shim = shim();
        let (mut agent, task) = shim.converse();
        let until = Instant::now() + Duration::from_secs(60);
        shim.orders.send_replace(Order::Stop { until });
        let first = next_order(&mut agent).await;
        drop(agent);
        let (control, lost) = task.await.unwrap();
        assert!(matches!(lost, SessionError::Closed), "{lost}");
        shim.control = Some(control);
        let (mut agent, _task) = shim.converse();
        let second = next_order(&mut agent).await;
        let (ToAgent::Stop { grace_ms: first }, ToAgent::Stop { grace_ms: second }) = (first, second) else {
            panic!("not stopped twice");
        };
        assert!(second <= first && first <= 60_000, "{first} then {second}");
    }

    #[tokio::test]
    async fn what_the_agent_says_becomes_events_in_order_and_signals_are_passed_on() {
        let mut shim = shim();
        let (mut agent, _task) = shim.converse();
        agent.send(&ToShim::Reached { phase: Phase::Ready, after_ms: 1 }).await.unwrap();
        agent.send(&ToShim::Exited(ExitStatus::Code(7))).await.unwrap();
        assert_eq!(shim.events.recv().await, Some(Event::Reached(Phase::Ready)));
        assert_eq!(shim.events.recv().await, Some(Event::Exited(ExitStatus::Code(7))));
        agent.send(&ToShim::Failed { cause: "no such program".into() }).await.unwrap();
        let Some(Event::Failed(failure)) = shim.events.recv().await else { panic!("no failure") };
        assert_eq!(failure.exit, Exit::Image);
        assert!(failure.explanation.cause.contains("no such program"));
        shim.signals.send(10).await.unwrap();
        assert_eq!(next_order(&mut agent).await, ToAgent::Signal { number: 10 });
    }

    #[tokio::test]
    async fn a_dial_is_passed_on_and_refused_at_once_when_too_many_wait() {
        let mut shim = shim();
        let (mut agent, _task) = shim.converse();
        for stream in [1, 2] {
            agent.send(&ToShim::Dial { stream, host: "a.com".into(), port: 443 }).await.unwrap();
        }
        let full = ToAgent::Undialled { stream: 2, reason: Undialled::Full };
        assert_eq!(next_order(&mut agent).await, full);
        assert_eq!(shim.dials.recv().await.unwrap().stream, 1);
        shim.refusals.send((1, Undialled::Denied)).await.unwrap();
        let denied = ToAgent::Undialled { stream: 1, reason: Undialled::Denied };
        assert_eq!(next_order(&mut agent).await, denied);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_agent_is_given_up_and_one_that_answers_is_not() {
        let mut shim = shim();
        let (mut agent, task) = shim.converse();
        let begun = Instant::now();
        while begun.elapsed() < 10 * PING_EVERY {
            let ToAgent::Ping { id } = agent.receive().await.unwrap() else { panic!("no ping") };
            agent.send(&ToShim::Pong { id }).await.unwrap();
        }
        assert!(!task.is_finished());
        let (_, lost) = task.await.unwrap();
        assert!(matches!(lost, SessionError::Silent(_)), "{lost}");
    }

    #[test]
    fn another_shims_enclave_and_another_protocol_have_codes_of_their_own() {
        assert_eq!(refused(&Refusal::AlreadyClaimed).exit, Exit::EnclaveDied);
        assert_eq!(refused(&Refusal::Version { supported: 9 }).exit, Exit::Image);
    }
}
