//! What a document must say to be accepted, apart from being authentic.
//!
//! A policy starts from measurements or from the named decision to do without
//! them, and it accepts nothing until it has been told about the nonce. Every
//! loosening has a name that a reviewer can search for.

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;

use crate::chain::Hex;
use crate::document::{Claims, MAX_PCRS, PCR_LEN, Pcr};

/// Largest tolerated difference between the clocks of hypervisor and verifier.
pub const MAX_SKEW: Duration = Duration::from_secs(300);
/// How old a document may be when the policy does not say.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(300);

/// What a document must say. Build it from [`Policy::pcrs`].
#[derive(Debug, Clone)]
pub struct Policy {
    measurements: Measurements,
    nonce: Freshness,
    user_data: Option<Vec<u8>>,
    public_key: Option<Vec<u8>>,
    allow_debug: bool,
    refuse_unknown_fields: bool,
    pub(crate) max_age: Duration,
    pub(crate) skew: Duration,
}

/// One accepted build: all of its registers must match.
type Build = Vec<(u8, Pcr)>;

#[derive(Debug, Clone)]
enum Measurements {
    OneOf(Vec<Build>),
    AnyInsecure,
}

#[derive(Debug, Clone)]
enum Freshness {
    Undecided,
    Nonce(Vec<u8>),
    WaivedInsecure,
}

/// A policy that would not protect anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No register was named.
    #[error("no PCR is named")]
    Empty,
    /// An index above 31.
    #[error("PCR{0} does not exist, indices are 0 to 31")]
    Index(u8),
    /// A register was named twice.
    #[error("PCR{0} is named twice")]
    Repeated(u8),
    /// PCR0, 1 or 2 is expected to be zero, which every debug enclave satisfies.
    #[error("PCR{0} is expected to be zero, as in debug mode")]
    Zero(u8),
    /// PCR1 is named and neither PCR0 nor PCR2: a later ramdisk may overwrite
    /// what it measures.
    #[error("PCR1 is named without PCR0 or PCR2, so another ramdisk could replace the agent")]
    Replaceable,
    /// None of the named registers pins the application.
    #[error("none of PCR0, PCR2 and PCR8 is named, so any application would pass")]
    Weak,
}

/// How an authentic document differs from what the policy asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyViolation {
    /// The enclave runs in debug mode: its measurements are zero and its
    /// console can be read from outside.
    #[error("the enclave runs in debug mode")]
    Debug,
    /// Some of PCR0 to 2 are zero, though not all: neither mode does that.
    #[error("PCR{0} is zero outside of debug mode")]
    ZeroPcr(u8),
    /// A register that the policy names is not in the document.
    #[error("PCR{0} is not in the document")]
    PcrAbsent(u8),
    /// A register has another value.
    #[error("PCR{index} is {}, expected {}", Hex(.actual.as_slice()), Hex(.expected.as_slice()))]
    PcrMismatch {
        /// Index of the register.
        index: u8,
        /// Value that the policy names.
        expected: Box<Pcr>,
        /// Value in the document.
        actual: Box<Pcr>,
    },
    /// None of several accepted builds matches.
    #[error("the measurements match none of {0} accepted builds")]
    NoBuildMatches(usize),
    /// The policy neither demands a nonce nor waives it.
    #[error("the policy does not say which nonce to expect")]
    NonceUndecided,
    /// The document carries no nonce.
    #[error("the document carries no nonce")]
    NonceMissing,
    /// The document carries another nonce.
    #[error("the document answers another nonce")]
    NonceMismatch,
    /// `user_data` is missing or not what was expected.
    #[error("user_data is not what was expected")]
    UserData,
    /// `public_key` is missing or not what was expected.
    #[error("public_key is not what was expected")]
    PublicKey,
    /// The payload has a field that this version does not know.
    #[error("the document has a field of unknown meaning")]
    UnknownField,
}

impl PolicyViolation {
    /// Stable code of this violation.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Debug => "policy.debug",
            Self::ZeroPcr(_) => "policy.zero-pcr",
            Self::PcrAbsent(_) => "policy.pcr-absent",
            Self::PcrMismatch { .. } => "policy.pcr-mismatch",
            Self::NoBuildMatches(_) => "policy.no-build-matches",
            Self::NonceUndecided => "policy.nonce-undecided",
            Self::NonceMissing => "policy.nonce-missing",
            Self::NonceMismatch => "policy.nonce-mismatch",
            Self::UserData => "policy.user-data",
            Self::PublicKey => "policy.public-key",
            Self::UnknownField => "policy.unknown-field",
        }
    }
}

impl Policy {
    /// Accepts the build with these registers. PCR0 (image) or PCR2
    /// (application) must be among them, or PCR8 (signing certificate) without
    /// PCR1: that alone proves neither the application nor the agent, because
    /// a later ramdisk may overwrite the agent.
    ///
    /// # Errors
    /// [`PolicyError`] when the registers would pin nothing.
    pub fn pcrs(build: impl IntoIterator<Item = (u8, Pcr)>) -> Result<Self, PolicyError> {
        Ok(Self::new(Measurements::OneOf(vec![checked(build)?])))
    }

    /// Accepts any application at all, also one of an attacker. For
    /// inspection, never for trust.
    pub fn any_measurement_insecure() -> Self {
        Self::new(Measurements::AnyInsecure)
    }

    fn new(measurements: Measurements) -> Self {
        Self {
            measurements,
            nonce: Freshness::Undecided,
            user_data: None,
            public_key: None,
            allow_debug: false,
            refuse_unknown_fields: false,
            max_age: DEFAULT_MAX_AGE,
            skew: MAX_SKEW,
        }
    }

    /// Also accepts another build, such as the release before.
    ///
    /// # Errors
    /// [`PolicyError`] as for [`Self::pcrs`].
    pub fn or_pcrs(mut self, build: impl IntoIterator<Item = (u8, Pcr)>) -> Result<Self, PolicyError> {
        let build = checked(build)?;
        if let Measurements::OneOf(builds) = &mut self.measurements {
            builds.push(build);
        }
        Ok(self)
    }

    /// Demands exactly this nonce, which the caller has just drawn at random.
    /// An empty one decides nothing: every document will be refused.
    pub fn nonce(mut self, nonce: impl Into<Vec<u8>>) -> Self {
        let nonce = nonce.into();
        self.nonce = if nonce.is_empty() { Freshness::Undecided } else { Freshness::Nonce(nonce) };
        self
    }

    /// Does without a nonce: a document may then be a replay for as long as
    /// [`Self::max_age`] allows.
    pub fn without_nonce_insecure(mut self) -> Self {
        self.nonce = Freshness::WaivedInsecure;
        self
    }

    /// Demands exactly this `user_data`.
    pub fn user_data(mut self, user_data: impl Into<Vec<u8>>) -> Self {
        self.user_data = Some(user_data.into());
        self
    }

    /// Demands exactly this `public_key`.
    pub fn public_key(mut self, public_key: impl Into<Vec<u8>>) -> Self {
        self.public_key = Some(public_key.into());
        self
    }

    /// How old a document may be; 300 s unless set.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// How far the document's clock may be ahead; cut to [`MAX_SKEW`].
    pub fn skew(mut self, skew: Duration) -> Self {
        self.skew = skew.min(MAX_SKEW);
        self
    }

    /// Accepts enclaves in debug mode, whose application nobody measured and
    /// whose console anyone on the host can read. Their PCR0, 1, 2 and 8 are
    /// zero, so only [`Self::any_measurement_insecure`] accepts them then.
    pub fn allow_debug_insecure(mut self) -> Self {
        self.allow_debug = true;
        self
    }

    /// Refuses documents with fields that this version does not know. They
    /// are signed like the rest, so they pass unless this is called.
    pub fn refuse_unknown_fields(mut self) -> Self {
        self.refuse_unknown_fields = true;
        self
    }

    /// Whether the register `index` is compared in the build that matched
    /// (see [`crate::Verified::build`]).
    pub fn compares(&self, build: Option<usize>, index: u8) -> bool {
        match (&self.measurements, build) {
            (Measurements::OneOf(builds), Some(build)) => {
                builds.get(build).is_some_and(|build| build.iter().any(|(named, _)| *named == index))
            }
            _ => false,
        }
    }

    /// The index of the build that matches; `None` where any measurement does.
    pub(crate) fn check(&self, claims: &Claims<'_>) -> Result<Option<usize>, PolicyViolation> {
        if self.refuse_unknown_fields && claims.has_unknown_field {
            return Err(PolicyViolation::UnknownField);
        }
        self.check_nonce(claims.nonce)?;
        self.check_debug(claims)?;
        let build = self.check_measurements(claims)?;
        if !is_expected(self.user_data.as_deref(), claims.user_data) {
            return Err(PolicyViolation::UserData);
        }
        if !is_expected(self.public_key.as_deref(), claims.public_key) {
            return Err(PolicyViolation::PublicKey);
        }
        Ok(build)
    }

    fn check_nonce(&self, actual: Option<&[u8]>) -> Result<(), PolicyViolation> {
        let expected = match &self.nonce {
            Freshness::Undecided => return Err(PolicyViolation::NonceUndecided),
            Freshness::WaivedInsecure => return Ok(()),
            Freshness::Nonce(nonce) => nonce,
        };
        let actual = actual.ok_or(PolicyViolation::NonceMissing)?;
        verify_slices_are_equal(expected, actual).map_err(|_| PolicyViolation::NonceMismatch)
    }

    fn check_debug(&self, claims: &Claims<'_>) -> Result<(), PolicyViolation> {
        if is_debug(claims) {
            return if self.allow_debug { Ok(()) } else { Err(PolicyViolation::Debug) };
        }
        match IMAGE_PCRS.into_iter().find(|index| claims.pcrs.at(*index) == Some(&ZERO)) {
            Some(index) => Err(PolicyViolation::ZeroPcr(index)),
            None => Ok(()),
        }
    }

    fn check_measurements(&self, claims: &Claims<'_>) -> Result<Option<usize>, PolicyViolation> {
        let builds = match &self.measurements {
            Measurements::AnyInsecure => return Ok(None),
            Measurements::OneOf(builds) => builds.as_slice(),
        };
        match builds {
            [only] => check_build(only, claims).map(|()| Some(0)),
            builds => match builds.iter().position(|build| check_build(build, claims).is_ok()) {
                Some(build) => Ok(Some(build)),
                None => Err(PolicyViolation::NoBuildMatches(builds.len())),
            },
        }
    }
}

/// PCR0 the image, PCR1 kernel and first ramdisk, PCR2 the application.
const IMAGE_PCRS: [u8; 3] = [0, 1, 2];
/// Registers of which one must be named to pin the application.
const PINNING_PCRS: [u8; 3] = [0, 2, 8];
const ZERO: Pcr = [0; PCR_LEN];

/// Debug mode zeroes PCR0 to 2, but neither PCR3 nor PCR4.
pub(crate) fn is_debug(claims: &Claims<'_>) -> bool {
    IMAGE_PCRS.into_iter().all(|index| claims.pcrs.at(index).is_none_or(|pcr| *pcr == ZERO))
}

fn checked(build: impl IntoIterator<Item = (u8, Pcr)>) -> Result<Build, PolicyError> {
    let mut checked = Build::new();
    for (index, pcr) in build {
        if usize::from(index) >= MAX_PCRS {
            return Err(PolicyError::Index(index));
        }
        if checked.iter().any(|(seen, _)| *seen == index) {
            return Err(PolicyError::Repeated(index));
        }
        if IMAGE_PCRS.contains(&index) && pcr == ZERO {
            return Err(PolicyError::Zero(index));
        }
        checked.push((index, pcr));
    }
    let pins = |(index, pcr): &(u8, Pcr)| PINNING_PCRS.contains(index) && *pcr != ZERO;
    let names = |wanted: u8| checked.iter().any(|(index, _)| *index == wanted);
    match checked.is_empty() {
        true => Err(PolicyError::Empty),
        false if !checked.iter().any(pins) => Err(PolicyError::Weak),
        false if names(1) && !names(0) && !names(2) => Err(PolicyError::Replaceable),
        false => Ok(checked),
    }
}

fn check_build(build: &Build, claims: &Claims<'_>) -> Result<(), PolicyViolation> {
    for (index, expected) in build {
        let actual = claims.pcrs.at(*index).ok_or(PolicyViolation::PcrAbsent(*index))?;
        if actual != expected {
            let (expected, actual) = (Box::new(*expected), Box::new(*actual));
            return Err(PolicyViolation::PcrMismatch { index: *index, expected, actual });
        }
    }
    Ok(())
}

fn is_expected(expected: Option<&[u8]>, actual: Option<&[u8]>) -> bool {
    match (expected, actual) {
        (None, _) => true,
        (Some(expected), Some(actual)) => verify_slices_are_equal(expected, actual).is_ok(),
        (Some(_), None) => false,
    }
}
