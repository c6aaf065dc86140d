//! Attestation documents by nonce.
//!
//! The module is serial and its driver blocks, so one thread of its own holds
//! it and takes requests from a bounded queue. Outsiders choose the nonce and
//! nothing else: `user_data` and `public_key` of these documents are null. They
//! belong to the workload and to the agent; a client that could set them could
//! bind its own key to somebody else's enclave.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minicbor::bytes::ByteVec;
use nitro_device::nsm::{Attestation, Nsm};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use wire::{AttestationAnswer, AttestationOutcome, AttestationRequest};

use crate::claim::{Claim, NotAdmitted, Purpose};
use crate::frames::Frames;
use crate::log::chain;

/// The NSM's own limit in bytes.
const MAX_NONCE: usize = 1024;
/// Requests that wait; the shim queues fairly before this is full.
const QUEUE: usize = 64;

/// What signs documents.
pub(crate) trait Signer: Send + 'static {
    /// A document with `nonce`, or one line of why not. Blocks.
    fn sign(&mut self, nonce: &[u8]) -> Result<Vec<u8>, String>;
}

impl Signer for Nsm {
    fn sign(&mut self, nonce: &[u8]) -> Result<Vec<u8>, String> {
        let fields = Attestation { nonce: Some(nonce), user_data: None, public_key: None };
        self.attest(&fields).map_err(|error| chain(&error))
    }
}

/// The way to the thread that holds the module. The thread ends with the last copy.
#[derive(Debug, Clone)]
pub(crate) struct Notary {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    nonce: Vec<u8>,
    answer: oneshot::Sender<AttestationAnswer>,
}

impl Notary {
    /// Starts the thread. It is not joined: at the enclave's end it may hang in
    /// the driver for two minutes, and nothing is lost with it.
    pub(crate) fn start(mut signer: impl Signer) -> io::Result<Notary> {
        let (requests, mut waiting) = mpsc::channel::<Request>(QUEUE);
        std::thread::Builder::new().name("nsm".to_owned()).spawn(move || {
            while let Some(Request { nonce, answer }) = waiting.blocking_recv() {
                if answer.is_closed() {
                    continue;
                }
                let begun = Instant::now();
                let signed = signer.sign(&nonce);
                // The client may have gone away meanwhile.
                let _ = answer.send(reply(signed, begun.elapsed()));
            }
        })?;
        Ok(Notary { requests })
    }

    async fn ask(&self, nonce: Vec<u8>) -> AttestationAnswer {
        if nonce.len() > MAX_NONCE {
            let cause = format!("the nonce has {} bytes, at most {MAX_NONCE} are allowed", nonce.len());
            return reply(Err(cause), Duration::ZERO);
        }
        let (answer, answered) = oneshot::channel();
        if self.requests.try_send(Request { nonce, answer }).is_err() {
            return reply(Err("too many requests wait for the NSM".to_owned()), Duration::ZERO);
        }
        let gone = || reply(Err("the NSM's thread has ended".to_owned()), Duration::ZERO);
        answered.await.unwrap_or_else(|_| gone())
    }
}

/// Serves one connection: one request at a time, until it ends. Without a
/// module, `notary` is the reason and every request is refused with it.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    claim: &Claim,
    notary: &Result<Notary, Arc<str>>,
    stream: S,
) -> Result<(), NotAdmitted> {
    let mut frames = Frames::new(stream);
    claim.greet(Purpose::Attestation, &mut frames).await?;
    while let Some(AttestationRequest { nonce }) = frames.receive().await? {
        let answer = match notary {
            Ok(notary) => notary.ask(nonce.into()).await,
            Err(cause) => reply(Err(cause.to_string()), Duration::ZERO),
        };
        frames.send(&answer).await?;
    }
    Ok(())
}

fn reply(signed: Result<Vec<u8>, String>, took: Duration) -> AttestationAnswer {
    let outcome = match signed {
        Ok(document) => AttestationOutcome::Document(ByteVec::from(document)),
        Err(cause) => AttestationOutcome::Refused { cause },
    };
    AttestationAnswer { outcome, nsm_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;
    use wire::{Greeting, Hello, PROTOCOL, SessionToken};

    /// Answers with the nonce itself, once it is let.
    struct Gate(std::sync::mpsc::Receiver<()>);

    impl Signer for Gate {
        fn sign(&mut self, nonce: &[u8]) -> Result<Vec<u8>, String> {
            self.0.recv().map_err(|error| error.to_string())?;
            Ok(nonce.to_vec())
        }
    }

    fn document(answer: AttestationAnswer) -> Vec<u8> {
        match answer.outcome {
            AttestationOutcome::Document(bytes) => bytes.into(),
            AttestationOutcome::Refused { cause } => panic!("refused: {cause}"),
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_loses_nobody_who_waits() {
        let (open, gate) = std::sync::mpsc::channel();
        let notary = Notary::start(Gate(gate)).unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        let mut refused = 0;
        // One with the signer, QUEUE in the queue: the next must be refused at once.
        while refused == 0 {
            let (notary, nonce) = (notary.clone(), waiting.len().to_be_bytes().to_vec());
            waiting.spawn(async move { (nonce.clone(), notary.ask(nonce).await) });
            tokio::task::yield_now().await;
            while let Some(Ok((_, answer))) = waiting.try_join_next() {
                assert!(matches!(answer.outcome, AttestationOutcome::Refused { .. }));
                refused += 1;
            }
            assert!(waiting.len() <= QUEUE + 1);
        }
        for _ in 0..waiting.len() {
            open.send(()).unwrap();
        }
        while let Some(joined) = waiting.join_next().await {
            let (nonce, answer) = joined.unwrap();
            assert_eq!(document(answer), nonce);
        }
    }

    #[tokio::test]
    async fn a_nonce_that_is_too_long_never_reaches_the_module() {
        let (_open, gate) = std::sync::mpsc::channel();
        let notary = Notary::start(Gate(gate)).unwrap();
        let answer = notary.ask(vec![0; MAX_NONCE + 1]).await;
        assert!(
            matches!(answer.outcome, AttestationOutcome::Refused { cause } if cause.contains("1025 bytes"))
        );
    }

    #[tokio::test]
    async fn requests_on_one_connection_are_answered_in_order() {
        let (open, gate) = std::sync::mpsc::channel();
        let notary = Ok(Notary::start(Gate(gate)).unwrap());
        let claim = Claim::default();
        let hello = Hello { version: PROTOCOL, token: SessionToken::from_random([1; 16]) };
        let (near, far) = duplex(64 * 1024);
        let mut owner = Frames::new(far);
        owner.send(&hello).await.unwrap();
        claim.greet(Purpose::Control, &mut Frames::new(near)).await.unwrap();

        let (near, far) = duplex(64 * 1024);
        let mut client = Frames::new(far);
        let client_side = async {
            client.send(&hello).await.unwrap();
            assert!(matches!(client.receive().await.unwrap(), Some(Greeting::Welcome { .. })));
            for nonce in [&b"first"[..], b"second"] {
                open.send(()).unwrap();
                client.send(&AttestationRequest { nonce: nonce.to_vec().into() }).await.unwrap();
                let answer = client.receive().await.unwrap().unwrap();
                assert_eq!(document(answer), nonce);
            }
            drop(client);
        };
        let (served, ()) = tokio::join!(serve(&claim, &notary, near), client_side);
        served.unwrap();
    }
}
