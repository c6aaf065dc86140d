//! Who may talk to the agent: the first control hello claims it, every later
//! hello must carry the same token.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use wire::{Greeting, Hello, PROTOCOL, Refusal, SessionToken};

use crate::frames::{Frames, FramesError};

/// A peer that says nothing must not hold a place.
const HELLO_WITHIN: Duration = Duration::from_secs(2);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// May claim the enclave.
    Control,
    /// Only after a claim.
    Attestation,
    /// Only after a claim: brings a client together with its address.
    Announced,
    /// Only after a claim.
    Stream,
    /// Only after a claim, and when the measured settings allow it.
    Logs { allowed: bool },
}

/// The one owner of the enclave, once there is one.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    token: OnceLock<SessionToken>,
}

/// Why a connection did not get past its greeting.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdmitted {
    /// It was told so.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// It went away.
    #[error(transparent)]
    Gone(#[from] FramesError),
}

impl Claim {
    /// True once a shim has claimed the enclave.
    pub(crate) fn is_made(&self) -> bool {
        self.token.get().is_some()
    }

    /// Reads the hello and answers it. After an error the connection is closed.
    pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        purpose: Purpose,
        frames: &mut Frames<S>,
    ) -> Result<(), NotAdmitted> {
        let hello = tokio::time::timeout(HELLO_WITHIN, frames.receive::<Hello>()).await;
        let judged = match hello {
            Ok(Ok(Some(hello))) => self.judge(purpose, &hello),
            Ok(Ok(None)) | Err(_) | Ok(Err(FramesError::Frame(_))) => Err(Refusal::NotAHello),
            Ok(Err(error)) => return Err(error.into()),
        };
        let greeting = match &judged {
            Ok(()) => {
                Greeting::Welcome { build: concat!("enclave-app ", env!("CARGO_PKG_VERSION")).to_owned() }
            }
            Err(refusal) => Greeting::Refused(refusal.clone()),
        };
        // Bounded too: a stranger need not read.
        tokio::time::timeout(HELLO_WITHIN, frames.send(&greeting))
            .await
            .unwrap_or(Err(FramesError::Closed))?;
        judged.map_err(NotAdmitted::Refused)
    }

    /// The version comes first: a token of a protocol that is not spoken here claims nothing.
    fn judge(&self, purpose: Purpose, hello: &Hello) -> Result<(), Refusal> {
        if hello.version != PROTOCOL {
            return Err(Refusal::Version { supported: PROTOCOL });
        }
        let owner = match purpose {
            Purpose::Control => self.token.get_or_init(|| hello.token.clone()),
            Purpose::Attestation | Purpose::Announced | Purpose::Stream | Purpose::Logs { .. } => {
                self.token.get().ok_or(Refusal::NotClaimed)?
            }
        };
        match purpose {
            _ if *owner != hello.token => Err(Refusal::AlreadyClaimed),
            Purpose::Logs { allowed: false } => Err(Refusal::NotAllowed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, duplex};

    fn hello(byte: u8) -> Hello {
        Hello { version: PROTOCOL, token: SessionToken::from_random([byte; 16]) }
    }

    #[test]
    fn only_a_control_hello_claims_and_only_its_token_is_known_later() {
        let claim = Claim::default();
        assert_eq!(claim.judge(Purpose::Attestation, &hello(1)), Err(Refusal::NotClaimed));
        assert_eq!(claim.judge(Purpose::Stream, &hello(1)), Err(Refusal::NotClaimed));
        assert_eq!(claim.judge(Purpose::Control, &hello(1)), Ok(()));
        assert_eq!(claim.judge(Purpose::Control, &hello(2)), Err(Refusal::AlreadyClaimed));
        assert_eq!(claim.judge(Purpose::Attestation, &hello(2)), Err(Refusal::AlreadyClaimed));
        assert_eq!(claim.judge(Purpose::Stream, &hello(2)), Err(Refusal::AlreadyClaimed));
        assert_eq!(claim.judge(Purpose::Attestation, &hello(1)), Ok(()));
        assert_eq!(claim.judge(Purpose::Control, &hello(1)), Ok(()));
    }

    #[test]
    fn a_foreign_version_claims_nothing() {
        let claim = Claim::default();
        let newer = Hello { version: PROTOCOL + 1, ..hello(1) };
        assert_eq!(claim.judge(Purpose::Control, &newer), Err(Refusal::Version { supported: PROTOCOL }));
        assert!(!claim.is_made());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stranger_is_told_and_let_go() {
        let claim = Claim::default();
        let (near, far) = duplex(1024);
        let mut frames = Frames::new(near);
        let outcome = claim.greet(Purpose::Control, &mut frames).await;
        assert!(matches!(outcome, Err(NotAdmitted::Refused(Refusal::NotAHello))));
        assert_eq!(
            Frames::new(far).receive::<Greeting>().await.unwrap(),
            Some(Greeting::Refused(Refusal::NotAHello))
        );
    }

    #[tokio::test]
    async fn bytes_that_are_no_hello_are_refused_at_once() {
        let claim = Claim::default();
        let (near, mut far) = duplex(1024);
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let outcome = claim.greet(Purpose::Control, &mut Frames::new(near)).await;
        assert!(matches!(outcome, Err(NotAdmitted::Refused(Refusal::NotAHello))));
        assert!(!claim.is_made());
    }
}
