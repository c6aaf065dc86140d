//! The way to the security module, which answers one request at a time.
//!
//! ```text
//! agent ────▶ [ lane ] ─┐
//! relay ────▶ [ lane ] ─┼─ in turns ─▶ one thread ─▶ /dev/nsm
//! sessions ─▶ [ lane ] ─┤
//! workload ─▶ [ lane ] ─┘
//! ```
//! The driver blocks, so the module has a thread of its own. The lanes take
//! turns and each holds at most [`LANE`] requests that somebody waits for:
//! neither a flood of outsiders nor a busy workload keeps the agent from
//! renewing its certificate, nor one of them the other from its documents.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nitro_device::nsm::{Attestation, Description, Nsm, NsmError, PcrState};
use tokio::sync::oneshot;

/// Requests that wait in one lane; the shim queues fairly before its is full.
pub(crate) const LANE: usize = 64;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// The agent for itself.
    Agent,
    /// Whoever talks to the shim, which queues fairly.
    Relay,
    /// Clients that ask for a document of their TLS session: the agent cannot
    /// tell one from another, so they share what a flood leaves.
    Sessions,
    /// The workload, on its socket.
    Workload,
}

/// What the module can do. The real one is [`Nsm`].
pub(crate) trait Module: Send + 'static {
    fn attest(&mut self, fields: &Attestation<'_>) -> Result<Vec<u8>, NsmError>;
    fn describe(&mut self) -> Result<Description, NsmError>;
    fn describe_pcr(&mut self, index: u16) -> Result<PcrState, NsmError>;
    fn extend_pcr(&mut self, index: u16, data: &[u8]) -> Result<Vec<u8>, NsmError>;
    fn lock_pcr(&mut self, index: u16) -> Result<(), NsmError>;
    fn random(&mut self) -> Result<Vec<u8>, NsmError>;
}

impl Module for Nsm {
    fn attest(&mut self, fields: &Attestation<'_>) -> Result<Vec<u8>, NsmError> {
        Nsm::attest(self, fields)
    }

    fn describe(&mut self) -> Result<Description, NsmError> {
        Nsm::describe(self)
    }

    fn describe_pcr(&mut self, index: u16) -> Result<PcrState, NsmError> {
        Nsm::describe_pcr(self, index)
    }

    fn extend_pcr(&mut self, index: u16, data: &[u8]) -> Result<Vec<u8>, NsmError> {
        Nsm::extend_pcr(self, index, data)
    }

    fn lock_pcr(&mut self, index: u16) -> Result<(), NsmError> {
        Nsm::lock_pcr(self, index)
    }

    fn random(&mut self) -> Result<Vec<u8>, NsmError> {
        Nsm::random(self)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("too many requests wait for the NSM")]
    Busy,
    #[error("the NSM's thread has ended")]
    Gone,
    #[error("there is no NSM: {0}")]
    Absent(Arc<str>),
    #[error(transparent)]
    Nsm(#[from] NsmError),
}

/// An answer and how long the module took for it.
pub(crate) type Timed<T> = (Result<T, AskError>, Duration);

type Work = Box<dyn FnOnce(&mut dyn Module) + Send>;

struct Job {
    work: Work,
    /// Lives for as long as somebody waits for the answer.
    caller: Weak<()>,
}

impl Job {
    fn is_awaited(&self) -> bool {
        self.caller.strong_count() > 0
    }
}

/// Asks the module, or says why there is none. The thread ends with the last copy.
#[derive(Debug, Clone)]
pub(crate) struct Notary(Result<Arc<Entrance>, Arc<str>>);

#[derive(Debug)]
struct Entrance(Arc<Queue>);

impl Notary {
    /// Starts the thread. It is not joined: at the enclave's end it may hang in
    /// the driver for two minutes, and nothing is lost with it.
    pub(crate) fn start(mut module: impl Module) -> io::Result<Notary> {
        let queue = Arc::new(Queue::default());
        let entrance = Arc::new(Entrance(Arc::clone(&queue)));
        std::thread::Builder::new().name("nsm".to_owned()).spawn(move || {
            while let Some(job) = queue.next() {
                (job.work)(&mut module);
            }
        })?;
        Ok(Notary(Ok(entrance)))
    }

    /// A machine without a module, for this reason.
    pub(crate) fn absent(cause: &str) -> Notary {
        Notary(Err(cause.into()))
    }

    /// Why there is no module.
    pub(crate) fn absence(&self) -> Option<&str> {
        self.0.as_ref().err().map(AsRef::as_ref)
    }

    /// Has `work` done when it is this lane's turn. A caller that has gone
    /// meanwhile costs the module nothing, and nobody a place.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut dyn Module) -> Result<T, NsmError> + Send + 'static,
    ) -> Timed<T> {
        let Entrance(queue) = match &self.0 {
            Ok(entrance) => entrance.as_ref(),
            Err(cause) => return (Err(AskError::Absent(Arc::clone(cause))), Duration::ZERO),
        };
        let (answer, answered) = oneshot::channel();
        // Dropped with this future.
        let caller = Arc::new(());
        let work = Box::new(move |module: &mut dyn Module| {
            let begun = Instant::now();
            let result = work(module);
            // The caller may have gone away meanwhile.
            let _ = answer.send((result, begun.elapsed()));
        });
        if !queue.push(lane, Job { work, caller: Arc::downgrade(&caller) }) {
            return (Err(AskError::Busy), Duration::ZERO);
        }
        match answered.await {
            Ok((result, took)) => (result.map_err(AskError::from), took),
            Err(_) => (Err(AskError::Gone), Duration::ZERO),
        }
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.0.lanes().closed = true;
        self.0.news.notify_one();
    }
}

#[derive(Debug, Default)]
struct Queue {
    lanes: Mutex<Lanes>,
    news: Condvar,
}

#[derive(Default)]
struct Lanes {
    waiting: [VecDeque<Job>; 4],
    /// Whose turn it is.
    turn: usize,
    closed: bool,
}

impl Queue {
    fn push(&self, lane: Lane, job: Job) -> bool {
        let mut lanes = self.lanes();
        let waiting = &mut lanes.waiting[lane as usize];
        if waiting.len() >= LANE {
            waiting.retain(Job::is_awaited);
        }
        if waiting.len() >= LANE {
            return false;
        }
        waiting.push_back(job);
        self.news.notify_one();
        true
    }

    /// The next job; `None` once nobody can ask any more.
    fn next(&self) -> Option<Job> {
        let mut lanes = self.lanes();
        loop {
            if let Some(job) = lanes.next() {
                return Some(job);
            }
            if lanes.closed {
                return None;
            }
            lanes = self.news.wait(lanes).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lanes {
    fn next(&mut self) -> Option<Job> {
        let count = self.waiting.len();
        let mut awaited =
            |lane: usize| std::iter::from_fn(|| self.waiting[lane].pop_front()).find(Job::is_awaited);
        let (turn, job) = (0..count)
            .map(|step| (self.turn + step) % count)
            .find_map(|lane| Some((lane, awaited(lane)?)))?;
        self.turn = (turn + 1) % count;
        Some(job)
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.waiting.each_ref().map(VecDeque::len);
        formatter.debug_struct("Lanes").field("waiting", &waiting).field("closed", &self.closed).finish()
    }
}

/// Modules for the tests of those who ask.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use nitro_device::nsm::NsmErrorCode;

    /// Answers once it is let, by the sender of its gate. A document is
    /// `user_data|nonce|public_key`; registers behave as the device's.
    pub(crate) struct Fake {
        gate: Option<std::sync::mpsc::Receiver<()>>,
        pub(crate) locked: Vec<u16>,
    }

    impl Fake {
        pub(crate) fn open() -> Fake {
            Fake { gate: None, locked: (0..16).collect() }
        }

        pub(crate) fn gated() -> (std::sync::mpsc::Sender<()>, Fake) {
            let (open, gate) = std::sync::mpsc::channel();
            (open, Fake { gate: Some(gate), ..Fake::open() })
        }

        fn pass(&self) {
            if let Some(gate) = &self.gate {
                // Without a gatekeeper the test is over.
                let _ = gate.recv();
            }
        }

        fn refuse(request: &'static str, code: NsmErrorCode) -> NsmError {
            NsmError::Refused { request, code }
        }
    }

    impl Module for Fake {
        fn attest(&mut self, fields: &Attestation<'_>) -> Result<Vec<u8>, NsmError> {
            self.pass();
            let text = |field: Option<&[u8]>| field.map_or(b"null".to_vec(), <[u8]>::to_vec);
            Ok([fields.user_data, fields.nonce, fields.public_key].map(text).join(&b'|'))
        }

        fn describe(&mut self) -> Result<Description, NsmError> {
            self.pass();
            Ok(Description {
                version: [1, 2, 3],
                module_id: "i-00000000000000000-enc0000000000000000".to_owned(),
                max_pcrs: 32,
                locked_pcrs: self.locked.clone(),
                digest: "SHA384".to_owned(),
            })
        }

        fn describe_pcr(&mut self, index: u16) -> Result<PcrState, NsmError> {
            self.pass();
            Ok(PcrState { locked: self.locked.contains(&index), value: vec![7; 48] })
        }

        fn extend_pcr(&mut self, index: u16, data: &[u8]) -> Result<Vec<u8>, NsmError> {
            self.pass();
            match self.locked.contains(&index) {
                true => Err(Fake::refuse("ExtendPCR", NsmErrorCode::ReadOnlyIndex)),
                false => Ok([data, &[0; 48]].concat()[..48].to_vec()),
            }
        }

        fn lock_pcr(&mut self, index: u16) -> Result<(), NsmError> {
            self.pass();
            match self.locked.contains(&index) {
                true => Err(Fake::refuse("LockPCR", NsmErrorCode::ReadOnlyIndex)),
                false => {
                    self.locked.push(index);
                    Ok(())
                }
            }
        }

        fn random(&mut self) -> Result<Vec<u8>, NsmError> {
            self.pass();
            Ok((0..=255).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    /// A number that the thread hands back when it gets to it.
    async fn number(notary: &Notary, lane: Lane, number: usize) -> Timed<usize> {
        notary.ask(lane, move |module| module.random().map(|_| number)).await
    }

    #[tokio::test]
    async fn a_full_lane_refuses_and_loses_nobody_who_waits() {
        let (open, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        let mut refused = 0;
        // One with the module, LANE in the lane: the next must be refused at once.
        while refused == 0 {
            let (notary, own) = (notary.clone(), waiting.len());
            waiting.spawn(async move { (own, number(&notary, Lane::Relay, own).await.0) });
            tokio::task::yield_now().await;
            while let Some(Ok((_, answer))) = waiting.try_join_next() {
                assert!(matches!(answer, Err(AskError::Busy)));
                refused += 1;
            }
            assert!(waiting.len() <= LANE + 1);
        }
        for _ in 0..waiting.len() {
            open.send(()).unwrap();
        }
        while let Some(joined) = waiting.join_next().await {
            let (own, answer) = joined.unwrap();
            assert_eq!(answer.unwrap(), own);
        }
    }

    #[tokio::test]
    async fn a_crowded_lane_keeps_no_other_waiting_for_more_than_a_turn() {
        let (open, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut waiting = tokio::task::JoinSet::new();
        let lanes = [
            (Lane::Sessions, 0..20),
            (Lane::Workload, 100..120),
            (Lane::Agent, 200..201),
            (Lane::Relay, 300..301),
        ];
        for (lane, numbers) in lanes {
            for own in numbers {
                let (notary, told) = (notary.clone(), told.clone());
                waiting.spawn(async move {
                    let noted = notary.ask(lane, move |module| module.random().map(|_| told.send(own)));
                    noted.await.0.unwrap().unwrap();
                });
                tokio::task::yield_now().await;
            }
        }
        (0..42).for_each(|_| open.send(()).unwrap());
        while waiting.join_next().await.is_some() {}
        let mut seen = Vec::new();
        while let Ok(own) = order.try_recv() {
            seen.push(own);
        }
        assert_eq!(seen.len(), 42);
        for alone in [200, 300] {
            let place = seen.iter().position(|own| *own == alone).unwrap();
            assert!(place <= 4, "{alone} came {place}. in {seen:?}");
        }
        let sessions = seen[..14].iter().filter(|own| **own < 100).count();
        assert!((5..=8).contains(&sessions), "not in turns: {seen:?}");
    }

    #[tokio::test]
    async fn whoever_has_gone_holds_no_place_in_a_full_lane() {
        let (open, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let mut gone = tokio::task::JoinSet::new();
        let (begun, begins) = oneshot::channel();
        gone.spawn({
            let notary = notary.clone();
            let first =
                |module: &mut dyn Module| begun.send(()).map_or(Ok(0), |()| module.random().map(|_| 0));
            async move { notary.ask(Lane::Relay, first).await }
        });
        begins.await.unwrap();
        for own in 0..LANE {
            let notary = notary.clone();
            gone.spawn(async move { number(&notary, Lane::Relay, own).await });
            tokio::task::yield_now().await;
        }
        gone.shutdown().await;
        let mut after = Box::pin(number(&notary, Lane::Relay, 1000));
        assert!(is_pending(&mut after), "refused for the sake of those who have gone");
        // One for the first, which is with the module already.
        open.send(()).unwrap();
        open.send(()).unwrap();
        assert_eq!(after.await.0.unwrap(), 1000);
    }

    fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut context).is_pending()
    }

    #[tokio::test]
    async fn whoever_has_gone_costs_the_module_nothing() {
        let (open, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let first = tokio::spawn({
            let notary = notary.clone();
            async move { number(&notary, Lane::Workload, 1).await.0.unwrap() }
        });
        let gone = tokio::spawn({
            let notary = notary.clone();
            async move { number(&notary, Lane::Workload, 2).await.0.unwrap() }
        });
        tokio::task::yield_now().await;
        gone.abort();
        let _ = gone.await;
        // Two passes through the gate are enough for the other two.
        open.send(()).unwrap();
        open.send(()).unwrap();
        assert_eq!(first.await.unwrap(), 1);
        assert_eq!(number(&notary, Lane::Workload, 3).await.0.unwrap(), 3);
        let absent = Notary::absent("no such device");
        let error = number(&absent, Lane::Agent, 4).await.0.unwrap_err();
        assert_eq!(error.to_string(), "there is no NSM: no such device");
    }
}
