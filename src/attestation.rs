//! Fetches attestation documents from the agent, one at a time: the NSM is
//! serial, so a queue here is the whole concurrency.
//!
//! ```text
//! HTTP ─▶ bounded queue ─▶ one task ─vsock─▶ agent ─▶ NSM
//!           │ full: 429      │ one connection, dialled again when it is lost
//! ```

use std::time::Duration;

use minicbor::bytes::ByteVec;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_vsock::VsockStream;
use wire::{AttestationAnswer, AttestationOutcome, AttestationRequest};

use crate::exit::chain;
use crate::session::{Conversation, Session, SessionError};

/// Requests that wait.
const QUEUE: usize = 64;
/// How long the agent may take for one document.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The NSM's own limit on nonces, in bytes.
const LONGEST_NONCE: usize = 1024;

/// What a client chooses: 1 to 1024 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nonce(Vec<u8>);

/// Why bytes are no nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a nonce has 1 to {LONGEST_NONCE} bytes, not {0}")]
pub(crate) struct NonceLength(usize);

impl TryFrom<Vec<u8>> for Nonce {
    type Error = NonceLength;

    fn try_from(bytes: Vec<u8>) -> Result<Nonce, NonceLength> {
        match bytes.len() {
            1..=LONGEST_NONCE => Ok(Nonce(bytes)),
            length => Err(NonceLength(length)),
        }
    }
}

/// Why there is no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoDocument {
    #[error("too many requests are waiting")]
    Full,
    #[error("the enclave does not answer attestation requests now")]
    NotRunning,
    #[error("the agent refused: {0}")]
    Refused(String),
    #[error("the agent cannot be reached: {0}")]
    Unreachable(String),
    #[error("the agent took longer than {ANSWER_WITHIN:?}")]
    Late,
}

/// How a request ended: a document, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    outcome: &'static str,
}

/// What is counted.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: Family<Label, Counter>,
    nsm_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            requests: Family::default(),
            nsm_seconds: Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0]),
        };
        let requests = metrics.requests.clone();
        registry.register("attestation_requests", "Attestation requests by outcome", requests);
        let nsm = metrics.nsm_seconds.clone();
        registry.register("attestation_nsm_seconds", "Time that the NSM took for a document", nsm);
        metrics
    }

    fn count(&self, result: &Result<Vec<u8>, NoDocument>) {
        let outcome = match result {
            Ok(_) => "document",
            Err(NoDocument::Full) => "full",
            Err(NoDocument::NotRunning) => "not_running",
            Err(NoDocument::Refused(_)) => "refused",
            Err(NoDocument::Unreachable(_)) => "unreachable",
            Err(NoDocument::Late) => "late",
        };
        self.requests.get_or_create(&Label { outcome }).inc();
    }
}

/// The queue's entrance, for any number of clients.
#[derive(Debug, Clone)]
pub(crate) struct Attestation {
    queue: mpsc::Sender<Request>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Request {
    nonce: Nonce,
    answer: oneshot::Sender<Result<Vec<u8>, NoDocument>>,
}

/// The queue's other end, for [`Requests::serve`].
#[derive(Debug)]
pub(crate) struct Requests {
    queue: mpsc::Receiver<Request>,
    metrics: Metrics,
}

/// A queue that nobody serves yet.
pub(crate) fn queue(metrics: Metrics) -> (Attestation, Requests) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let requests = Requests { queue: receiver, metrics: metrics.clone() };
    (Attestation { queue: sender, metrics }, requests)
}

impl Attestation {
    /// A COSE_Sign1 over `nonce`, as the NSM signed it.
    pub(crate) async fn document(&self, nonce: Nonce) -> Result<Vec<u8>, NoDocument> {
        let (answer, document) = oneshot::channel();
        let result = match self.queue.try_send(Request { nonce, answer }) {
            Ok(()) => document.await.unwrap_or(Err(NoDocument::NotRunning)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NoDocument::Full),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(NoDocument::NotRunning),
        };
        self.metrics.count(&result);
        result
    }
}

impl Requests {
    /// Answers requests until `stop`.
    pub(crate) async fn serve<A: Agents>(mut self, session: A, stop: CancellationToken) {
        let mut agent = None;
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => return,
                request = self.queue.recv() => match request {
                    Some(request) => request,
                    None => return,
                },
            };
            // A client that has gone needs no document.
            if request.answer.is_closed() {
                continue;
            }
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = self.fetch(&session, &mut agent, request.nonce) => result,
            };
            let _ = request.answer.send(result);
        }
    }

    /// Asks on the kept connection; one that broke while it was idle is dialled again, once.
    async fn fetch<A: Agents>(
        &self,
        session: &A,
        agent: &mut Option<Conversation<A::Stream>>,
        nonce: Nonce,
    ) -> Result<Vec<u8>, NoDocument> {
        let kept = agent.is_some();
        let asked = AttestationRequest { nonce: ByteVec::from(nonce.0) };
        // Taken out while it is in use: after a late answer it must not serve the next client.
        let answered = timeout(ANSWER_WITHIN, async {
            match ask(session, agent.take(), &asked).await {
                Err(_) if kept => ask(session, None, &asked).await,
                result => result,
            }
        });
        let (conversation, answer) = match answered.await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err(NoDocument::Unreachable(chain(&error))),
            Err(_) => return Err(NoDocument::Late),
        };
        *agent = Some(conversation);
        self.metrics.nsm_seconds.observe(answer.nsm_us as f64 / 1e6);
        match answer.outcome {
            AttestationOutcome::Document(document) => Ok(document.into()),
            AttestationOutcome::Refused { cause } => Err(NoDocument::Refused(cause)),
        }
    }
}

/// Where conversations about documents come from.
pub(crate) trait Agents: Sync {
    /// What carries one.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;
    /// A new one, past its greeting.
    fn dial(&self) -> impl Future<Output = Result<Conversation<Self::Stream>, SessionError>> + Send;
}

impl Agents for Session {
    type Stream = VsockStream;

    async fn dial(&self) -> Result<Conversation, SessionError> {
        self.open(wire::port::ATTESTATION).await
    }
}

async fn ask<A: Agents>(
    agents: &A,
    agent: Option<Conversation<A::Stream>>,
    request: &AttestationRequest,
) -> Result<(Conversation<A::Stream>, AttestationAnswer), SessionError> {
    let mut agent = match agent {
        Some(agent) => agent,
        None => agents.dial().await?,
    };
    agent.send(request).await?;
    let answer = agent.receive().await?;
    Ok((agent, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_has_one_to_1024_bytes() {
        for (length, good) in [(0, false), (1, true), (1024, true), (1025, false)] {
            assert_eq!(Nonce::try_from(vec![7; length]).is_ok(), good, "{length}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_closed_one_says_so() {
        let (attestation, requests) = queue(Metrics::register(&mut Registry::default()));
        let nonce = || Nonce::try_from(vec![1]).unwrap();
        let waiting: Vec<_> = (0..QUEUE)
            .map(|_| {
                let (answer, document) = oneshot::channel();
                attestation.queue.try_send(Request { nonce: nonce(), answer }).unwrap();
                document
            })
            .collect();
        assert_eq!(attestation.document(nonce()).await, Err(NoDocument::Full));
        drop(requests);
        assert_eq!(attestation.document(nonce()).await, Err(NoDocument::NotRunning));
        drop(waiting);
    }

    /// Agents that answer as many requests as each of these says, then hang up.
    struct Mortal {
        lives: std::sync::Mutex<Vec<usize>>,
    }

    impl Agents for Mortal {
        type Stream = tokio::io::DuplexStream;

        async fn dial(&self) -> Result<Conversation<Self::Stream>, SessionError> {
            let answers = self.lives.lock().unwrap().pop().ok_or(SessionError::Silent)?;
            let (near, far) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let mut shim = Conversation::over(far);
                for _ in 0..answers {
                    let AttestationRequest { nonce } = shim.receive().await.unwrap();
                    let outcome = AttestationOutcome::Document(nonce);
                    shim.send(&AttestationAnswer { outcome, nsm_us: 1 }).await.unwrap();
                }
            });
            Ok(Conversation::over(near))
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_lost_while_idle_costs_no_client_its_document() {
        let (attestation, requests) = queue(Metrics::register(&mut Registry::default()));
        let stop = CancellationToken::new();
        // Taken from the end: one that dies after two documents, one after one, one at once.
        let agents = Mortal { lives: std::sync::Mutex::new(vec![0, 1, 2]) };
        let serving = tokio::spawn(requests.serve(agents, stop.clone()));
        for byte in [1, 2, 3] {
            let nonce = Nonce::try_from(vec![byte]).unwrap();
            assert_eq!(attestation.document(nonce).await, Ok(vec![byte]), "document {byte}");
        }
        // A second loss in a row is no accident of a kept connection any more.
        let nonce = Nonce::try_from(vec![4]).unwrap();
        assert!(matches!(attestation.document(nonce).await, Err(NoDocument::Unreachable(_))));
        stop.cancel();
        serving.await.unwrap();
    }
}
