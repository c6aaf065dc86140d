//! The control connection: the shim hears what the agent has come to, and says
//! what it wants.
//!
//! One connection is served at a time; a newer one with the right token
//! replaces it, because a shim dials again only when it has lost the old one.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use wire::{ToAgent, ToShim};

use crate::claim::{Claim, NotAdmitted, Purpose};
use crate::egress::Dials;
use crate::frames::{Frames, FramesError};
use crate::life::{Event, Status};

/// Everything that control connections share.
#[derive(Debug)]
pub(crate) struct Control {
    claim: Arc<Claim>,
    status: watch::Receiver<Status>,
    events: mpsc::Sender<Event>,
    /// What the workload wants to connect to.
    dials: Arc<Dials>,
    /// Variables of the pod for which the workload waits.
    wanted: Vec<String>,
    /// Number of the connection that is served.
    latest: watch::Sender<u64>,
}

impl Control {
    /// Connections that tell `status` and the requests of `dials`, ask for the variables `wanted`, and pass
    /// orders on to `events`.
    pub(crate) fn new(
        claim: Arc<Claim>,
        status: watch::Receiver<Status>,
        events: mpsc::Sender<Event>,
        dials: Arc<Dials>,
        wanted: Vec<String>,
    ) -> Control {
        Control { claim, status, events, dials, wanted, latest: watch::Sender::new(0) }
    }

    /// Serves one connection until it ends or a newer one replaces it.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<(), NotAdmitted> {
        let mut frames = Frames::new(stream);
        self.claim.greet(Purpose::Control, &mut frames).await?;
        let mut latest = self.latest.subscribe();
        self.latest.send_modify(|number| *number += 1);
        let own = *latest.borrow_and_update();
        // The receiver outlives every connection; a failure means that the agent is over.
        let _ = self.events.send(Event::Claimed).await;
        tokio::select! {
            _ = latest.wait_for(|number| *number != own) => Ok(()),
            ended = self.converse(&mut frames) => Ok(ended?),
        }
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        frames: &mut Frames<S>,
    ) -> Result<(), FramesError> {
        if !self.wanted.is_empty() {
            frames.send(&ToShim::EnvironmentWanted { names: self.wanted.clone() }).await?;
        }
        let mut status = self.status.clone();
        let mut told = Told::default();
        loop {
            let news = told.news(&status.borrow_and_update());
            for message in &news {
                frames.send(message).await?;
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return Ok(()) },
                request = self.dials.next_request() => frames.send(&request).await?,
                order = frames.receive::<ToAgent>() => match order? {
                    None => return Ok(()),
                    Some(ToAgent::Ping { id }) => frames.send(&ToShim::Pong { id }).await?,
                    Some(ToAgent::Undialled { stream, reason }) => self.dials.refuse(stream, reason),
                    Some(order) => if let Some(event) = event(order) {
                        let _ = self.events.send(event).await;
                    }
                },
            }
        }
    }
}

fn event(order: ToAgent) -> Option<Event> {
    Some(match order {
        ToAgent::Ping { .. } | ToAgent::Undialled { .. } => return None,
        ToAgent::Stop { grace_ms } => {
            Event::Stop { grace: std::time::Duration::from_millis(grace_ms.into()) }
        }
        ToAgent::Environment { variables } => Event::Environment { variables },
        ToAgent::Hurry => Event::Hurry,
        ToAgent::Signal { number } => Event::Forward { signal: number },
        ToAgent::Goodbye => Event::Goodbye,
    })
}

/// What this connection has said.
#[derive(Debug, Default)]
struct Told {
    phases: usize,
    failure: bool,
    exit: bool,
}

impl Told {
    fn news(&mut self, status: &Status) -> Vec<ToShim> {
        let mut news = Vec::new();
        for &(phase, after_ms) in status.reached.iter().skip(self.phases) {
            news.push(ToShim::Reached { phase, after_ms });
        }
        self.phases = status.reached.len();
        if let (Some(cause), false) = (&status.failure, self.failure) {
            news.push(ToShim::Failed { cause: cause.clone() });
            self.failure = true;
        }
        if let (Some(exited), false) = (status.exited, self.exit) {
            news.push(ToShim::Exited(exited));
            self.exit = true;
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use wire::{ExitStatus, Greeting, Hello, PROTOCOL, Phase, Refusal, SessionToken, Undialled};

    struct Agent {
        control: Arc<Control>,
        status: watch::Sender<Status>,
        events: mpsc::Receiver<Event>,
        dials: Arc<Dials>,
    }

    fn agent() -> Agent {
        agent_that_wants(vec![])
    }

    fn agent_that_wants(wanted: Vec<String>) -> Agent {
        let (status, seen) =
            watch::channel(Status { reached: vec![(Phase::AgentUp, 3)], ..Status::default() });
        let (sender, events) = mpsc::channel(8);
        let dials = Arc::<Dials>::default();
        let control = Arc::new(Control::new(Arc::default(), seen, sender, Arc::clone(&dials), wanted));
        Agent { control, status, events, dials }
    }

    impl Agent {
        async fn dial(
            &self,
            token: u8,
        ) -> (Frames<DuplexStream>, Greeting, JoinHandle<Result<(), NotAdmitted>>) {
            let (near, far) = duplex(4096);
            let control = Arc::clone(&self.control);
            let task = tokio::spawn(async move { control.serve(near).await });
            let mut shim = Frames::new(far);
            let token = SessionToken::from_random([token; 16]);
            shim.send(&Hello { version: PROTOCOL, token }).await.unwrap();
            let greeting = shim.receive().await.unwrap().unwrap();
            (shim, greeting, task)
        }
    }

    async fn next(shim: &mut Frames<DuplexStream>) -> ToShim {
        shim.receive().await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn the_shim_hears_every_phase_and_the_agent_every_order() {
        let mut agent = agent();
        let (mut shim, _, _task) = agent.dial(1).await;
        assert_eq!(agent.events.recv().await, Some(Event::Claimed));
        assert_eq!(next(&mut shim).await, ToShim::Reached { phase: Phase::AgentUp, after_ms: 3 });
        // Both at once: none may be lost.
        agent.status.send_modify(|status| {
            status.reached.extend([(Phase::WorkloadStarted, 5), (Phase::Ready, 9)]);
        });
        assert_eq!(next(&mut shim).await, ToShim::Reached { phase: Phase::WorkloadStarted, after_ms: 5 });
        assert_eq!(next(&mut shim).await, ToShim::Reached { phase: Phase::Ready, after_ms: 9 });
        shim.send(&ToAgent::Ping { id: 4 }).await.unwrap();
        assert_eq!(next(&mut shim).await, ToShim::Pong { id: 4 });
        shim.send(&ToAgent::Stop { grace_ms: 1500 }).await.unwrap();
        let grace = std::time::Duration::from_millis(1500);
        assert_eq!(agent.events.recv().await, Some(Event::Stop { grace }));
    }

    #[tokio::test]
    async fn a_dial_is_asked_for_and_its_refusal_comes_back() {
        let agent = agent();
        let dials = Arc::clone(&agent.dials);
        let asked = tokio::spawn(async move { dials.dial(&"[2001:db8::1]:443".parse().unwrap()).await });
        let (mut shim, _, _task) = agent.dial(1).await;
        assert!(matches!(next(&mut shim).await, ToShim::Reached { .. }));
        let ToShim::Dial { stream, host, port } = next(&mut shim).await else { panic!("no dial") };
        assert_eq!((host.as_str(), port), ("2001:db8::1", 443));
        shim.send(&ToAgent::Undialled { stream, reason: Undialled::Denied }).await.unwrap();
        assert_eq!(asked.await.unwrap().err(), Some(Undialled::Denied));
    }

    #[tokio::test]
    async fn a_shim_that_comes_back_hears_again_what_still_matters() {
        let agent = agent();
        agent.status.send_modify(|status| {
            status.reached.push((Phase::WorkloadStarted, 5));
            status.exited = Some(ExitStatus::Code(7));
        });
        for _ in 0..2 {
            let (mut shim, _, _task) = agent.dial(1).await;
            assert_eq!(next(&mut shim).await, ToShim::Reached { phase: Phase::AgentUp, after_ms: 3 });
            assert_eq!(next(&mut shim).await, ToShim::Reached { phase: Phase::WorkloadStarted, after_ms: 5 });
            assert_eq!(next(&mut shim).await, ToShim::Exited(ExitStatus::Code(7)));
        }
    }

    #[tokio::test]
    async fn every_connection_is_asked_for_the_variables_that_the_workload_waits_for() {
        let mut agent = agent_that_wants(vec!["A".into()]);
        for value in ["1", "2"] {
            let (mut shim, _, _task) = agent.dial(1).await;
            assert_eq!(agent.events.recv().await, Some(Event::Claimed));
            assert_eq!(next(&mut shim).await, ToShim::EnvironmentWanted { names: vec!["A".into()] });
            let variables = vec![wire::Variable { name: "A".into(), value: value.into() }];
            shim.send(&ToAgent::Environment { variables: variables.clone() }).await.unwrap();
            assert_eq!(agent.events.recv().await, Some(Event::Environment { variables }));
        }
    }

    #[tokio::test]
    async fn a_newer_connection_replaces_the_older_and_a_stranger_does_not() {
        let agent = agent();
        let (mut old, _, old_task) = agent.dial(1).await;
        let (_stranger, greeting, _) = agent.dial(2).await;
        assert_eq!(greeting, Greeting::Refused(Refusal::AlreadyClaimed));
        next(&mut old).await;
        old.send(&ToAgent::Ping { id: 1 }).await.unwrap();
        assert_eq!(next(&mut old).await, ToShim::Pong { id: 1 });
        let (mut new, _, _task) = agent.dial(1).await;
        old_task.await.unwrap().unwrap();
        assert!(matches!(next(&mut new).await, ToShim::Reached { .. }));
    }
}
