//! Attestation documents by nonce, for the shim.
//!
//! Outsiders choose the nonce and nothing else: `user_data` and `public_key` of
//! these documents are null. They belong to the workload and to the agent; a
//! client that could set them could bind its own key to somebody else's enclave.

use std::pin::pin;
use std::time::Duration;

use minicbor::bytes::ByteVec;
use nitro_device::nsm::Attestation;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use wire::{AttestationAnswer, AttestationOutcome, AttestationRequest};

use crate::claim::{Claim, NotAdmitted, Purpose};
use crate::frames::Frames;
use crate::log::chain;
use crate::nsm::{AskError, Lane, Notary};

/// The NSM's own limit in bytes, of every field.
pub(crate) const LONGEST_FIELD: usize = 1024;
/// The shim waits no longer for a document.
const WITHIN: Duration = Duration::from_secs(5);

/// Serves one connection: one request at a time, until it ends.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    claim: &Claim,
    notary: &Notary,
    stream: S,
) -> Result<(), NotAdmitted> {
    let mut frames = Frames::new(stream);
    claim.greet(Purpose::Attestation, &mut frames).await?;
    let mut next = frames.receive().await?;
    while let Some(AttestationRequest { nonce }) = next {
        let mut answer = pin!(answer(notary, nonce.into()));
        // The shim asks one at a time: what comes meanwhile is the connection's end,
        // and nobody waits for the answer any more.
        let (early, answer) = tokio::select! {
            answer = answer.as_mut() => (None, answer),
            early = frames.receive() => match early? {
                None => return Ok(()),
                early => (early, answer.await),
            },
        };
        frames.send(&answer).await?;
        next = match early {
            Some(request) => Some(request),
            None => frames.receive().await?,
        };
    }
    Ok(())
}

async fn answer(notary: &Notary, nonce: Vec<u8>) -> AttestationAnswer {
    if nonce.len() > LONGEST_FIELD {
        let cause = format!("the nonce has {} bytes, at most {LONGEST_FIELD} are allowed", nonce.len());
        return reply(AttestationOutcome::Refused { cause, busy: false }, Duration::ZERO);
    }
    let sign = move |module: &mut dyn crate::nsm::Module| {
        module.attest(&Attestation { nonce: Some(&nonce), user_data: None, public_key: None })
    };
    let (signed, took) = match timeout(WITHIN, notary.ask(Lane::Relay, sign)).await {
        Ok(signed) => signed,
        Err(_) => return reply(late(), WITHIN),
    };
    let outcome = match signed {
        Ok(document) => AttestationOutcome::Document(ByteVec::from(document)),
        Err(error) => {
            let busy = matches!(error, AskError::Busy);
            AttestationOutcome::Refused { cause: chain(&error), busy }
        }
    };
    reply(outcome, took)
}

fn late() -> AttestationOutcome {
    AttestationOutcome::Refused { cause: "the NSM did not answer in time".to_owned(), busy: false }
}

fn reply(outcome: AttestationOutcome, took: Duration) -> AttestationAnswer {
    AttestationAnswer { outcome, nsm_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nsm::fake::Fake;
    use tokio::io::{DuplexStream, duplex};
    use wire::{Greeting, Hello, PROTOCOL, SessionToken};

    fn document(answer: AttestationAnswer) -> Vec<u8> {
        match answer.outcome {
            AttestationOutcome::Document(bytes) => bytes.into(),
            AttestationOutcome::Refused { cause, .. } => panic!("refused: {cause}"),
        }
    }

    #[tokio::test]
    async fn a_nonce_that_is_too_long_never_reaches_the_module() {
        let (_shut, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let answer = answer(&notary, vec![0; LONGEST_FIELD + 1]).await;
        assert!(
            matches!(answer.outcome, AttestationOutcome::Refused { cause, .. } if cause.contains("1025 bytes"))
        );
    }

    /// The claim of a shim, and its hello.
    async fn claimed() -> (Hello, Claim) {
        let hello = Hello { version: PROTOCOL, token: SessionToken::from_random([1; 16]) };
        let claim = Claim::default();
        let (near, far) = duplex(64 * 1024);
        let mut owner = Frames::new(far);
        owner.send(&hello).await.unwrap();
        claim.greet(Purpose::Control, &mut Frames::new(near)).await.unwrap();
        (hello, claim)
    }

    /// The shim's side of a connection on which it has asked for a document.
    async fn asked(hello: &Hello, far: DuplexStream) -> Frames<DuplexStream> {
        let mut shim = Frames::new(far);
        shim.send(hello).await.unwrap();
        assert!(matches!(shim.receive().await.unwrap(), Some(Greeting::Welcome { .. })));
        shim.send(&AttestationRequest { nonce: b"nonce".to_vec().into() }).await.unwrap();
        shim
    }

    #[tokio::test]
    async fn whoever_hangs_up_is_not_answered() {
        let (_shut, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let (hello, claim) = claimed().await;
        let (near, far) = duplex(64 * 1024);
        let hangs_up = async { drop(asked(&hello, far).await) };
        let (served, ()) = tokio::join!(timeout(2 * WITHIN, serve(&claim, &notary, near)), hangs_up);
        served.expect("the module, which answers nobody, is waited for").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_shim_does() {
        let (_shut, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let (hello, claim) = claimed().await;
        let (near, far) = duplex(64 * 1024);
        let begun = tokio::time::Instant::now();
        let waits = async {
            let answer: Option<AttestationAnswer> = asked(&hello, far).await.receive().await.unwrap();
            answer.unwrap().outcome
        };
        let serving = timeout(10 * WITHIN, serve(&claim, &notary, near));
        let (served, outcome) = tokio::join!(serving, waits);
        served.expect("the module, which answers nobody, is waited for").unwrap();
        assert_eq!(outcome, late());
        assert_eq!(begun.elapsed(), WITHIN);
    }

    #[tokio::test]
    async fn a_full_lane_is_told_as_such() {
        let (_shut, module) = Fake::gated();
        let notary = Notary::start(module).unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        let busy = loop {
            let notary = notary.clone();
            waiting.spawn(async move { answer(&notary, vec![1]).await.outcome });
            tokio::task::yield_now().await;
            if let Some(outcome) = waiting.try_join_next() {
                break outcome.unwrap();
            }
            assert!(waiting.len() <= crate::nsm::LANE + 1, "nobody is refused");
        };
        assert!(matches!(&busy, AttestationOutcome::Refused { busy: true, .. }), "{busy:?}");
        let absent = answer(&Notary::absent("no such device"), vec![1]).await.outcome;
        assert!(matches!(&absent, AttestationOutcome::Refused { busy: false, .. }), "{absent:?}");
    }

    #[tokio::test]
    async fn requests_on_one_connection_are_answered_in_order_and_hold_the_nonce_alone() {
        let notary = Notary::start(Fake::open()).unwrap();
        let (hello, claim) = claimed().await;
        let (near, far) = duplex(64 * 1024);
        let mut client = Frames::new(far);
        let client_side = async {
            client.send(&hello).await.unwrap();
            assert!(matches!(client.receive().await.unwrap(), Some(Greeting::Welcome { .. })));
            for nonce in ["first", "second"] {
                client.send(&AttestationRequest { nonce: nonce.as_bytes().to_vec().into() }).await.unwrap();
                let answer = client.receive().await.unwrap().unwrap();
                assert_eq!(document(answer), format!("null|{nonce}|null").as_bytes());
            }
            drop(client);
        };
        let (served, ()) = tokio::join!(serve(&claim, &notary, near), client_side);
        served.unwrap();
    }
}
