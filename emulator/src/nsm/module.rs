//! One enclave's module: requests in, answers out. No I/O, no waiting.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;

use super::authority::{Authority, Leaf};
use super::certificate::Validity;
use super::document::{self, Payload};
use super::faults::Faults;
use super::identity::ModuleId;
use super::key::KeyError;
use super::pcr::{Measurements, PcrBank};
use super::request::{Claims, Request};
use super::response::{ErrorCode, RANDOM_LEN, Response};

/// A leaf with less time left than this is replaced before it signs again. (What
/// hardware waits for is not known; leaves were seen in use for 100 minutes.)
const LEAF_RENEWAL: Duration = Duration::from_secs(5 * 60);

/// Where a module reads the time: the real clock, or a test's.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    /// Any other source.
    pub fn from_fn(source: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// The time.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

/// The state of one enclave's Nitro Security Module, from boot to end.
pub struct Module {
    authority: Arc<Authority>,
    identity: ModuleId,
    pcrs: PcrBank,
    clock: Clock,
    leaf: Option<Leaf>,
    faults: Faults,
}

impl Module {
    /// A module as an enclave finds it at boot. `debug` is the flag of NE_START_ENCLAVE:
    /// the image's registers stay zero. The leaf is issued at the first attestation.
    pub fn new(
        authority: Arc<Authority>,
        identity: ModuleId,
        measured: &Measurements,
        debug: bool,
        clock: Clock,
    ) -> Self {
        let pcrs = PcrBank::at_boot(measured, identity.instance(), debug);
        Self { authority, identity, pcrs, clock, leaf: None, faults: Faults::default() }
    }

    /// The module's id.
    pub fn identity(&self) -> &ModuleId {
        &self.identity
    }

    /// The faults in force.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Replaces the faults, from the next request on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Answers one request, CBOR in and out: always an answer, at most
    /// [`RESPONSE_MAX`](super::RESPONSE_MAX) bytes. [`Faults::delay`] is not waited for here.
    pub fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let mut answer = match self.perform(request) {
            Ok(response) => response.encode(),
            Err(code) => Response::Error(code).encode(),
        };
        if let Some(length) = self.faults.truncate_to {
            answer.truncate(length);
        }
        answer
    }

    fn perform(&mut self, request: &[u8]) -> Result<Response<'_>, ErrorCode> {
        if let Some(code) = self.faults.error {
            return Err(code);
        }
        match Request::decode(request)? {
            Request::DescribeNsm => {
                let locked = self.pcrs.locked().map(|(index, _)| index).collect();
                Ok(Response::DescribeNsm { module_id: self.identity.as_str(), locked })
            }
            Request::DescribePcr { index } => {
                let (lock, data) = self.pcrs.describe(index)?;
                Ok(Response::DescribePcr { lock, data })
            }
            Request::ExtendPcr { index, data } => {
                Ok(Response::ExtendPcr { data: self.pcrs.extend(index, data)? })
            }
            Request::LockPcr { index } => self.pcrs.lock(index).map(|()| Response::LockPcr),
            Request::LockPcrs { range } => self.pcrs.lock_range(range).map(|()| Response::LockPcrs),
            Request::GetRandom => {
                let mut random = Box::new([0; RANDOM_LEN]);
                rand::fill(random.as_mut_slice()).map_err(|_| ErrorCode::InternalError)?;
                Ok(Response::GetRandom { random })
            }
            Request::Attestation(claims) => {
                let document = self.attest(&claims).map_err(|_| ErrorCode::InternalError)?;
                Ok(Response::Attestation { document })
            }
        }
    }

    fn attest(&mut self, claims: &Claims<'_>) -> Result<Vec<u8>, KeyError> {
        let now = self.clock.now();
        let leaf = match self.leaf.take() {
            Some(leaf) if self.is_usable(&leaf, now) => leaf,
            _ => self.issue(now)?,
        };
        let leaf = self.leaf.insert(leaf);
        let payload = Payload {
            module_id: self.identity.as_str(),
            timestamp_ms: now.duration_since(UNIX_EPOCH).map(|since| since.as_millis() as u64).unwrap_or(0),
            pcrs: self.pcrs.locked().map(|(index, value)| (index, *value)).collect(),
            certificate: &leaf.certificate,
            cabundle: leaf.cabundle.iter().map(Vec::as_slice).collect(),
            public_key: claims.public_key,
            user_data: claims.user_data,
            nonce: claims.nonce,
            definite: self.faults.definite_map,
        };
        document::sign(&payload.encode(), &leaf.key)
    }

    fn is_usable(&self, leaf: &Leaf, now: SystemTime) -> bool {
        let expired = leaf.validity.not_after < now;
        if self.faults.stale_leaf { expired } else { leaf.validity.covers(now, LEAF_RENEWAL) }
    }

    fn issue(&self, now: SystemTime) -> Result<Leaf, KeyError> {
        if !self.faults.stale_leaf {
            return self.authority.issue(&self.identity, now);
        }
        const HOUR: Duration = Duration::from_secs(3600);
        let not_before = now.checked_sub(4 * HOUR).unwrap_or(UNIX_EPOCH);
        let window = Validity { not_before, not_after: not_before + 3 * HOUR };
        self.authority.issue_for(&self.identity, now, window)
    }
}
