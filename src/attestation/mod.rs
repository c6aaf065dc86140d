//! Fetches attestation documents from the agent for any number of clients.
//!
//! ```text
//! HTTP ─▶ same nonce under way? ─ yes ─▶ wait for its answer
//!                │ no
//!                ▼
//!         [ queue per client ] ─ in turns ─▶ two workers ─vsock─▶ agent ─▶ NSM
//!                │ full: 429                   │ a connection each, dialled again when lost
//! ```
//! The NSM is serial: the second worker only keeps it from idling while an
//! answer travels. [`mod@queue`] decides whose turn it is, [`worker`] asks.

mod metrics;
mod queue;
mod worker;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

pub(crate) use metrics::Metrics;
pub(crate) use queue::Client;
#[cfg(test)]
pub(crate) use worker::Agents;
pub(crate) use worker::Requests;

use queue::Queue;

/// From a request's arrival to its answer, at most.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long the agent may take for one document.
const DOCUMENT_WITHIN: Duration = Duration::from_secs(5);
/// The NSM's own limit on nonces, in bytes.
const LONGEST_NONCE: usize = 1024;

/// What a client chooses: 1 to 1024 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Nonce(Arc<[u8]>);

/// Why bytes are no nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a nonce has 1 to {LONGEST_NONCE} bytes, not {0}")]
pub(crate) struct NonceLength(usize);

impl TryFrom<Vec<u8>> for Nonce {
    type Error = NonceLength;

    fn try_from(bytes: Vec<u8>) -> Result<Nonce, NonceLength> {
        match bytes.len() {
            1..=LONGEST_NONCE => Ok(Nonce(bytes.into())),
            length => Err(NonceLength(length)),
        }
    }
}

/// Why there is no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoDocument {
    #[error("too many requests are waiting")]
    Full {
        /// When there may be room again.
        retry_after: Duration,
    },
    /// The agent's own queue is full: other callers of the NSM got there first.
    #[error("the enclave is busy: {0}")]
    Busy(String),
    #[error("the enclave does not answer attestation requests now")]
    NotRunning,
    #[error("the agent refused: {0}")]
    Refused(String),
    #[error("the agent cannot be reached: {0}")]
    Unreachable(String),
    #[error("the document did not come in time")]
    Late,
}

pub(crate) type Outcome = Result<Bytes, NoDocument>;

/// The entrance, for any number of clients.
#[derive(Debug, Clone)]
pub(crate) struct Attestation {
    queue: Arc<Queue>,
    metrics: Metrics,
}

/// A queue that nobody serves yet.
pub(crate) fn queue(metrics: Metrics) -> (Attestation, Requests) {
    let queue = Arc::new(Queue::default());
    let requests = Requests::new(Arc::clone(&queue), metrics.clone());
    (Attestation { queue, metrics }, requests)
}

impl Attestation {
    /// A COSE_Sign1 over `nonce`, as the NSM signed it, for the client at `address`.
    pub(crate) async fn document(&self, address: IpAddr, nonce: Nonce) -> Outcome {
        let outcome = self.wait_for(Client::from(address), nonce).await;
        self.metrics.count(&outcome);
        outcome
    }

    async fn wait_for(&self, client: Client, nonce: Nonce) -> Outcome {
        let (answer, document) = oneshot::channel();
        let joined = self.queue.join(client, nonce, answer)?;
        if joined {
            self.metrics.coalesced();
        }
        self.metrics.waiting(self.queue.len());
        match timeout(ANSWER_WITHIN, document).await {
            Ok(answered) => answered.unwrap_or(Err(NoDocument::NotRunning)),
            Err(_) => Err(NoDocument::Late),
        }
    }
}

#[cfg(test)]
mod tests;
