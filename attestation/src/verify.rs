//! From bytes to [`Verified`], in the order of the checks.
//!
//! ```text
//! bytes ─▶ Untrusted ─▶ root, certificates, order ─▶ chain ─▶ signature
//!          malformed     untrusted                   stale     untrusted
//!                                                                 │
//!                   Verified ◀─ policy ◀─ time ◀─ identity ◀──────┘
//! ```
//!
//! Cheap bounds come first; measurements are compared only once they are
//! known to be authentic.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::anchors::{Fingerprint, TrustAnchors};
use crate::cache::Cache;
use crate::chain::Chain;
use crate::document::{Claims, Pcr, Untrusted};
use crate::error::Error;
use crate::identity::Identity;
use crate::policy::{Policy, is_debug};
use crate::revocation::RevocationLists;

/// Which time counts as now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The clock of this machine.
    System,
    /// A given time: for tests, audits, and enclaves whose own clock drifts.
    At(SystemTime),
    /// The time that the document gives itself, for audits: an old document
    /// never expires under it, so it proves nothing about the present.
    DocumentTime,
}

/// Why a document is refused for its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Older than the policy allows.
    #[error("document is {age_s} s old, accepted are {max_age_s}")]
    Stale {
        /// Age in whole seconds.
        age_s: u64,
        /// Limit in whole seconds.
        max_age_s: u64,
    },
    /// Further in the future than clocks may differ.
    #[error("document is {ahead_s} s ahead of this clock, accepted are {skew_s}")]
    Future {
        /// Distance in whole seconds.
        ahead_s: u64,
        /// Limit in whole seconds.
        skew_s: u64,
    },
    /// The leaf was not valid when the document was signed.
    #[error("document was signed outside of its certificate's validity")]
    OutsideLeaf,
}

impl TimeError {
    /// Stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Stale { .. } => "time.stale",
            Self::Future { .. } => "time.future",
            Self::OutsideLeaf => "time.outside-leaf",
        }
    }
}

/// Verifies documents against one set of roots and one policy.
#[derive(Debug, Clone)]
pub struct Verifier {
    anchors: TrustAnchors,
    policy: Policy,
    cache: Option<Arc<Cache>>,
    lists: Option<Arc<RevocationLists>>,
}

/// A document that passed every check. Only a [`Verifier`] makes one.
#[derive(Debug, Clone)]
pub struct Verified<'a> {
    claims: Claims<'a>,
    identity: Identity<'a>,
    root: Fingerprint,
    not_after: SystemTime,
    build: Option<usize>,
}

impl Verifier {
    /// A verifier that trusts `anchors` and asks for `policy`.
    pub fn new(anchors: TrustAnchors, policy: Policy) -> Self {
        Self { anchors, policy, cache: None, lists: None }
    }

    /// Remembers the signatures of up to `chains` chains that verified (two
    /// entries for each enclave: its issuers, and those with its leaf; 100
    /// bytes an entry). Clones share them. Roots and dates are checked anew.
    pub fn with_chain_cache(mut self, chains: NonZeroUsize) -> Self {
        self.cache = Some(Arc::new(Cache::new(chains)));
        self
    }

    /// Consults revocation lists as well. Every signature is then verified
    /// every time, remembered or not: a list may have come since.
    pub fn with_revocation_lists(mut self, lists: RevocationLists) -> Self {
        self.lists = Some(Arc::new(lists));
        self
    }

    /// The same roots and memory under another policy, such as one with the
    /// nonce of the next request.
    pub fn with_policy(&self, policy: Policy) -> Self {
        Self { policy, ..self.clone() }
    }

    /// What it asks for.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How many chains are remembered.
    pub fn cached_chains(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.len())
    }

    /// Verifies a document as the NSM returned it.
    ///
    /// # Errors
    /// [`Error`]; its [`Error::code`] is stable.
    pub fn verify<'a>(&self, document: &'a [u8], clock: Clock) -> Result<Verified<'a>, Error> {
        self.verify_parsed(Untrusted::parse(document)?, clock)
    }

    /// Verifies a document that has been parsed already.
    ///
    /// # Errors
    /// [`Error`], but none of class [`crate::Class::Malformed`].
    pub fn verify_parsed<'a>(&self, document: Untrusted<'a>, clock: Clock) -> Result<Verified<'a>, Error> {
        let Untrusted { envelope, claims } = document;
        let moment = Moment::of(&claims, clock, self.policy.skew);
        let chain = Chain::read(&claims, &self.anchors)?;
        chain.verify(moment.chain_time().as_secs(), self.cache.as_deref(), self.lists.as_deref())?;
        if !envelope.is_signed_by(chain.leaf.public_key) {
            return Err(Error::Signature);
        }
        let identity = Identity::check(&claims, &chain)?;
        moment.check(&chain, &self.policy)?;
        let build = self.policy.check(&claims)?;
        Ok(Verified { identity, root: chain.root, not_after: at_second(chain.not_after()), build, claims })
    }
}

impl<'a> Verified<'a> {
    /// Value of a register; `None` when the document does not carry it
    /// (registers 16 to 31 are there only when locked).
    pub fn pcr(&self, index: u8) -> Option<&'a Pcr> {
        self.claims.pcrs.at(index)
    }

    /// All registers of the document, in rising order of index.
    pub fn pcrs(&self) -> impl Iterator<Item = (u8, &'a Pcr)> + '_ {
        self.claims.pcrs.iter()
    }

    /// Name of the enclave: `i-<instance>-enc<enclave>`.
    pub fn module_id(&self) -> &'a str {
        self.claims.module_id
    }

    /// Id of the EC2 instance that hosts the enclave.
    pub fn instance_id(&self) -> &'a str {
        self.identity.instance_id
    }

    /// AWS region of the instance, from the certificate.
    pub fn region(&self) -> &'a str {
        self.identity.region
    }

    /// When the hypervisor signed the document.
    pub fn timestamp(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.claims.timestamp_ms)
    }

    /// When the document was signed, in milliseconds since the epoch.
    pub fn timestamp_ms(&self) -> u64 {
        self.claims.timestamp_ms
    }

    /// Last second at which every certificate of the chain is valid. A
    /// document must not be cached beyond it.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What the workload chose to have signed.
    pub fn user_data(&self) -> Option<&'a [u8]> {
        self.claims.user_data
    }

    /// The key that the workload chose to have signed, in no fixed format.
    pub fn public_key(&self) -> Option<&'a [u8]> {
        self.claims.public_key
    }

    /// The nonce that the document answers.
    pub fn nonce(&self) -> Option<&'a [u8]> {
        self.claims.nonce
    }

    /// Whether the enclave runs in debug mode, so that nothing is measured.
    pub fn is_debug(&self) -> bool {
        is_debug(&self.claims)
    }

    /// Which of the accepted builds it is: 0 for that of [`Policy::pcrs`], then
    /// those of [`Policy::or_pcrs`]. `None` where any measurement is accepted.
    pub fn build(&self) -> Option<usize> {
        self.build
    }

    /// SHA-256 of the root certificate that vouches for the document.
    pub fn root_fingerprint(&self) -> Fingerprint {
        self.root
    }
}

/// The verifier's time and the document's, both since the epoch.
#[derive(Debug, Clone, Copy)]
struct Moment {
    now: Duration,
    signed: Duration,
    skew: Duration,
}

impl Moment {
    fn of(claims: &Claims<'_>, clock: Clock, skew: Duration) -> Self {
        let signed = Duration::from_millis(claims.timestamp_ms);
        let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = match clock {
            Clock::System => since_epoch(SystemTime::now()),
            Clock::At(time) => since_epoch(time),
            Clock::DocumentTime => signed,
        };
        Self { now, signed, skew }
    }

    /// The chain is judged now. Where the document is ahead by no more than
    /// the skew, this clock is slow and the leaf may have been issued within
    /// that gap: then it is judged at the time of signing.
    fn chain_time(&self) -> Duration {
        if self.signed <= self.now.saturating_add(self.skew) { self.now.max(self.signed) } else { self.now }
    }

    fn check(&self, chain: &Chain<'_>, policy: &Policy) -> Result<(), TimeError> {
        let signed = i64::try_from(self.signed.as_secs()).unwrap_or(i64::MAX);
        if !(chain.leaf.not_before..=chain.leaf.not_after).contains(&signed) {
            return Err(TimeError::OutsideLeaf);
        }
        let ahead = self.signed.saturating_sub(self.now);
        if ahead > self.skew {
            return Err(TimeError::Future { ahead_s: ahead.as_secs(), skew_s: self.skew.as_secs() });
        }
        let age = self.now.saturating_sub(self.signed);
        if age > policy.max_age {
            return Err(TimeError::Stale { age_s: age.as_secs(), max_age_s: policy.max_age.as_secs() });
        }
        Ok(())
    }
}

fn at_second(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}
