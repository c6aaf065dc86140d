//! Asks the agent, over a connection that is kept.

use std::sync::Arc;
use std::time::Duration;

use minicbor::bytes::ByteVec;
use relay::Vsock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use wire::{AttestationAnswer, AttestationOutcome, AttestationRequest};

use super::queue::Queue;
use super::{DOCUMENT_WITHIN, Metrics, NoDocument, Nonce, Outcome};
use crate::enclave::session::{Conversation, Session, SessionError};
use crate::exit::chain;

/// The queue's other end.
#[derive(Debug)]
pub(crate) struct Requests {
    queue: Arc<Queue>,
    metrics: Metrics,
}

impl Requests {
    pub(super) fn new(queue: Arc<Queue>, metrics: Metrics) -> Requests {
        Requests { queue, metrics }
    }

    /// Answers requests until `stop`.
    pub(crate) async fn serve<A: Agents>(self, agents: A, stop: CancellationToken) {
        let work = || stop.run_until_cancelled(self.work(&agents));
        tokio::join!(work(), work());
    }

    async fn work<A: Agents>(&self, agents: &A) {
        let mut agent = None;
        loop {
            let nonce = self.queue.next().await;
            self.metrics.waiting(self.queue.len());
            let begun = Instant::now();
            let outcome = self.fetch(agents, &mut agent, &nonce).await;
            self.queue.answer(&nonce, &outcome, begun.elapsed());
        }
    }

    /// Asks on the kept connection; one that broke while it was idle is dialled again, once.
    async fn fetch<A: Agents>(
        &self,
        agents: &A,
        agent: &mut Option<Conversation<A::Stream>>,
        nonce: &Nonce,
    ) -> Outcome {
        let kept = agent.is_some();
        let asked = AttestationRequest { nonce: ByteVec::from(nonce.0.to_vec()) };
        // Taken out while it is in use: after a late answer it must not serve the next client.
        let answered = timeout(DOCUMENT_WITHIN, async {
            match ask(agents, agent.take(), &asked).await {
                Err(_) if kept => ask(agents, None, &asked).await,
                result => result,
            }
        });
        let (conversation, answer) = match answered.await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err(NoDocument::Unreachable(chain(&error))),
            Err(_) => return Err(NoDocument::Late),
        };
        *agent = Some(conversation);
        self.metrics.nsm_took(Duration::from_micros(answer.nsm_us));
        match answer.outcome {
            AttestationOutcome::Document(document) => Ok(Vec::from(document).into()),
            AttestationOutcome::Refused { cause, busy: true } => Err(NoDocument::Busy(cause)),
            AttestationOutcome::Refused { cause, busy: false } => Err(NoDocument::Refused(cause)),
        }
    }
}

/// Whoever still waits learns that nobody serves any more.
impl Drop for Requests {
    fn drop(&mut self) {
        self.queue.close();
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
    type Stream = Vsock;

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
