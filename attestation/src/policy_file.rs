//! The policy as a YAML file that a reviewer can read and a client can ship.
//!
//! ```yaml
//! version: 1
//! builds:                        # one of them must match, register by register
//!   - name: hello 1.0.0
//!     pcrs: { PCR0: 3d8c..., PCR1: 4b4d..., PCR2: 21b9... }
//! pcrs: { PCR3: 7f10... }        # demanded beside the registers of each build
//! max_age_s: 300
//! nonce: required                # or waived
//! ```
//!
//! The file holds values, never paths: what a policy accepts must not change
//! because another file did. Unknown fields are refused, so that a misspelt
//! demand is not a demand that was dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::anchors::{AWS_G1, AnchorError, Fingerprint, TrustAnchors};
use crate::document::{MAX_FIELD, Pcr};
use crate::policy::{Policy, PolicyError};

/// Largest policy file read, in bytes: some thousand builds.
pub const MAX_POLICY_FILE: usize = 1024 * 1024;

/// A policy file that was read and found usable.
#[derive(Debug, Clone)]
pub struct PolicyFile {
    policy: Policy,
    anchors: TrustAnchors,
    names: Vec<String>,
    demands_nonce: bool,
}

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// Longer than [`MAX_POLICY_FILE`].
    #[error("policy is {actual} bytes, at most {MAX_POLICY_FILE} are read")]
    Size {
        /// Length in bytes.
        actual: usize,
    },
    /// Not YAML, an unknown field, or a value of the wrong form.
    #[error("policy is malformed: {reason}")]
    Malformed {
        /// What the reader says, with line and column.
        reason: String,
    },
    /// A version that this program does not know.
    #[error("policy is of version {0}, known is 1")]
    Version(u64),
    /// No build is listed: nothing would ever be accepted.
    #[error("policy lists no build")]
    NoBuild,
    /// A build that would not protect anything.
    #[error("build {name:?} cannot be used")]
    Build {
        /// The build's name, or its place in the list.
        name: String,
        /// The rule that it breaks.
        source: PolicyError,
    },
    /// `roots` is there but empty.
    #[error("policy trusts no root")]
    Roots(#[source] AnchorError),
}

impl PolicyFile {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyFileError`].
    pub fn parse(yaml: &str) -> Result<Self, PolicyFileError> {
        if yaml.len() > MAX_POLICY_FILE {
            return Err(PolicyFileError::Size { actual: yaml.len() });
        }
        let document: Document = serde_saphyr::from_str(yaml)
            .map_err(|error| PolicyFileError::Malformed { reason: error.to_string() })?;
        if document.version != VERSION {
            return Err(PolicyFileError::Version(document.version));
        }
        Ok(Self {
            policy: document.policy()?,
            anchors: document.anchors().map_err(PolicyFileError::Roots)?,
            demands_nonce: document.nonce == Nonce::Required,
            names: document.builds.into_iter().enumerate().map(|(index, build)| build.name(index)).collect(),
        })
    }

    /// The policy. Where [`Self::demands_nonce`], it accepts nothing until
    /// [`Policy::nonce`] was called.
    pub fn policy(&self) -> Policy {
        self.policy.clone()
    }

    /// The roots that the file trusts: AWS's commercial one unless it says otherwise.
    pub fn anchors(&self) -> TrustAnchors {
        self.anchors.clone()
    }

    /// Whether a fresh nonce must be given for each document.
    pub fn demands_nonce(&self) -> bool {
        self.demands_nonce
    }

    /// Name of the build that [`crate::Verified::build`] gives the index of.
    pub fn build_name(&self, index: usize) -> Option<&str> {
        self.names.get(index).map(String::as_str)
    }
}

const VERSION: u64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    builds: Vec<Build>,
    #[serde(default)]
    pcrs: Registers,
    max_age_s: Option<u64>,
    #[serde(default)]
    nonce: Nonce,
    user_data: Option<Bytes>,
    public_key: Option<Bytes>,
    #[serde(default)]
    refuse_unknown_fields: bool,
    roots: Option<Vec<Root>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    name: Option<String>,
    pcrs: Registers,
}

/// A nonce belongs to one request, so the file only says whether there is one.
#[derive(Deserialize, Default, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Nonce {
    #[default]
    Required,
    Waived,
}

type Registers = BTreeMap<Register, PcrValue>;

impl Document {
    fn policy(&self) -> Result<Policy, PolicyFileError> {
        let mut policy: Option<Policy> = None;
        for (index, build) in self.builds.iter().enumerate() {
            let registers = build.pcrs.iter().chain(&self.pcrs).map(|(index, pcr)| (index.0, pcr.0));
            let extended = match policy {
                None => Policy::pcrs(registers),
                Some(policy) => policy.or_pcrs(registers),
            };
            let name = || build.name(index);
            policy = Some(extended.map_err(|source| PolicyFileError::Build { name: name(), source })?);
        }
        let mut policy = policy.ok_or(PolicyFileError::NoBuild)?;
        if let Some(seconds) = self.max_age_s {
            policy = policy.max_age(Duration::from_secs(seconds));
        }
        if let Some(Bytes(user_data)) = &self.user_data {
            policy = policy.user_data(user_data.clone());
        }
        if let Some(Bytes(public_key)) = &self.public_key {
            policy = policy.public_key(public_key.clone());
        }
        if self.nonce == Nonce::Waived {
            policy = policy.without_nonce_insecure();
        }
        if self.refuse_unknown_fields {
            policy = policy.refuse_unknown_fields();
        }
        Ok(policy)
    }

    fn anchors(&self) -> Result<TrustAnchors, AnchorError> {
        match &self.roots {
            None => Ok(TrustAnchors::aws_g1()),
            Some(roots) => TrustAnchors::from_fingerprints(roots.iter().map(|root| root.0)),
        }
    }
}

impl Build {
    fn name(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("builds[{index}]"))
    }
}

/// `PCR0` to `PCR31`, as nitro-cli writes them.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Register(u8);

/// 96 hexadecimal digits.
struct PcrValue(Pcr);

/// `aws-g1`, or the SHA-256 of a root's DER in hexadecimal digits.
struct Root(Fingerprint);

/// Hexadecimal digits, as many as a field may hold.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Register {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a register from PCR0 to PCR31", |text| {
            let digits = text.strip_prefix("PCR")?;
            // Otherwise PCR0 and PCR00 would be two keys of one register.
            let plain = digits == "0" || !digits.starts_with(['0', '+']);
            digits.parse().ok().filter(|index| plain && *index < 32).map(Self)
        })
    }
}

impl<'de> Deserialize<'de> for PcrValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "96 hexadecimal digits", |text| array(text).map(Self))
    }
}

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "aws-g1 or 64 hexadecimal digits", |text| match text {
            "aws-g1" => Some(Self(AWS_G1)),
            digits => array(digits).map(Self),
        })
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "up to 1024 bytes in hexadecimal digits", |text| {
            hex::decode(text).ok().filter(|bytes| bytes.len() <= MAX_FIELD).map(Self)
        })
    }
}

fn array<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).ok().map(|()| bytes)
}

/// Reads a scalar as text. YAML's own numbers never come into it: a digest of
/// decimal digits alone stays a digest.
fn text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    read: fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    struct Text<T>(&'static str, fn(&str) -> Option<T>);
    impl<T> Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Other("this text"), &self))
        }
    }
    deserializer.deserialize_str(Text(expected, read))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aa";
    const B: &str = "bb";

    fn pcr(byte: &str) -> String {
        byte.repeat(48)
    }

    fn file(rest: &str) -> Result<PolicyFile, PolicyFileError> {
        PolicyFile::parse(&format!("version: 1\nbuilds:\n  - pcrs: {{PCR0: {}}}\n{rest}", pcr(A)))
    }

    fn reason(result: Result<PolicyFile, PolicyFileError>) -> String {
        match result {
            Ok(_) => "accepted".to_owned(),
            Err(PolicyFileError::Build { name, source }) => format!("{name}: {source}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn builds_keep_their_names_and_the_rest_its_defaults() {
        let text = format!(
            "version: 1\nbuilds:\n  - name: new\n    pcrs: {{PCR0: {}, PCR8: '{}'}}\n  - pcrs: {{PCR2: {}}}\n",
            pcr(A),
            "11".repeat(48),
            pcr(B),
        );
        let file = PolicyFile::parse(&text).unwrap();
        assert_eq!((file.build_name(0), file.build_name(1)), (Some("new"), Some("builds[1]")));
        assert_eq!(file.build_name(2), None);
        assert!(file.demands_nonce());
        assert_eq!(file.policy().max_age, crate::policy::DEFAULT_MAX_AGE);
    }

    #[test]
    fn a_digest_of_decimal_digits_is_no_number() {
        let text = format!("version: 1\nbuilds:\n  - pcrs:\n      PCR0: {}\n", "11".repeat(48));
        assert_eq!(reason(PolicyFile::parse(&text)), "accepted");
    }

    #[test]
    fn everything_optional_has_a_line() {
        let rest = format!(
            "pcrs: {{PCR3: {}, PCR4: {}}}\nmax_age_s: 60\nnonce: waived\nuser_data: '00ff'\npublic_key: aa\n\
             refuse_unknown_fields: true\nroots: [aws-g1, {}]\n",
            pcr(A),
            pcr(B),
            "cc".repeat(32),
        );
        let file = file(&rest).unwrap();
        assert!(!file.demands_nonce());
        assert_eq!(file.policy().max_age, Duration::from_secs(60));
        assert!(file.anchors().contains(&[0xcc; 32]) && file.anchors().contains(&AWS_G1));
    }

    #[test]
    fn what_would_protect_nothing_is_refused() {
        let builds = |builds: &str| reason(PolicyFile::parse(&format!("version: 1\nbuilds: {builds}\n")));
        assert_eq!(builds("[]"), "policy lists no build");
        assert!(builds("[{pcrs: {}}]").contains("no PCR is named"));
        assert!(builds(&format!("[{{name: x, pcrs: {{PCR1: {}}}}}]", pcr(A))).starts_with("x: none of PCR0"));
        let signed = format!("[{{pcrs: {{PCR1: {0}, PCR8: {0}}}}}]", pcr(A));
        assert!(builds(&signed).contains("PCR1 is named without"));
        assert!(builds(&format!("[{{pcrs: {{PCR0: '{}'}}}}]", pcr("00"))).contains("as in debug mode"));
        assert_eq!(
            reason(file(&format!("pcrs: {{PCR0: {}}}\n", pcr(B)))),
            "builds[0]: PCR0 is named twice",
            "a build and the whole may not disagree"
        );
        assert_eq!(reason(file("roots: []\n")), "policy trusts no root");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for rest in [
            "max_age: 300\n",
            "nonce: '00ff'\n",
            "nonce: none\n",
            "pcrs: {PCR32: aa}\n",
            "pcrs: {PCR03: aa}\n",
            "pcrs: {pcr3: aa}\n",
            "pcrs: {PCR3: aa}\n",
            "max_age_s: -1\n",
            "max_age_s: 5m\n",
            "user_data: xyz\n",
            "roots: [aws]\n",
            "nonce: waived\nnonce: required\n",
            // A build names a register that is zero in debug mode: nothing would be let in.
            "allow_debug: true\n",
        ] {
            assert!(reason(file(rest)).starts_with("policy is malformed"), "{rest}");
        }
        let long = format!("user_data: '{}'\n", "00".repeat(MAX_FIELD + 1));
        assert!(reason(file(&long)).starts_with("policy is malformed"));
        assert_eq!(
            reason(PolicyFile::parse("version: 2\nbuilds: []\n")),
            "policy is of version 2, known is 1"
        );
        assert!(reason(PolicyFile::parse(&"#".repeat(MAX_POLICY_FILE + 1))).starts_with("policy is 1048577"));
        assert!(reason(PolicyFile::parse("")).starts_with("policy is malformed"));
    }
}
