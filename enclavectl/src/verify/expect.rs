//! The flags that say what a document must prove, shared by every command
//! that verifies one. Flags go before the policy file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use attestation::{
    Fingerprint, Pcr, Policy, PolicyFile, RevocationLists, TrustAnchors, Verifier, environment,
};

use super::input;
use crate::failure::{Blame, Failure, OrBlame};

/// What the document must say, and who must stand behind it.
#[derive(Debug, clap::Args)]
pub(crate) struct Expectations {
    #[command(flatten)]
    measurements: MeasurementArgs,

    /// Demand this user_data (hexadecimal)
    #[arg(long, value_name = "HEX", value_parser = bytes)]
    user_data: Option<Bytes>,
    /// Demand this public_key (hexadecimal)
    #[arg(long, value_name = "HEX", value_parser = bytes)]
    public_key: Option<Bytes>,
    /// Accept a document of up to this age, in seconds [default: 300]
    #[arg(long, value_name = "S")]
    max_age: Option<u64>,
    /// Accept an enclave in debug mode, whose application is not measured; only with --any-measurement
    #[arg(long, conflicts_with_all = ["pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr8", "pcr", "eif", "pod_env", "policy"])]
    allow_debug: bool,
    /// Refuse fields that this version does not know
    #[arg(long)]
    strict: bool,

    /// Trust this root instead of AWS's: SHA-256 of its DER (repeatable)
    #[arg(long, value_name = "SHA256", value_parser = digits::<32>)]
    root_fingerprint: Vec<Fingerprint>,
    /// Trust the roots in this PEM file instead of AWS's (repeatable)
    #[arg(long, value_name = "FILE")]
    root_pem: Vec<PathBuf>,
    /// Heed the revocation lists in this PEM file, which must be current (repeatable)
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
}

/// Which application may be behind the document. Some of them are needed.
#[derive(Debug, clap::Args)]
#[group(required = false, multiple = true)]
struct MeasurementArgs {
    /// Expected PCR0, the image (96 hexadecimal digits)
    #[arg(long, value_name = "HEX", value_parser = digits::<48>)]
    pcr0: Option<Pcr>,
    /// Expected PCR1, kernel and first ramdisk
    #[arg(long, value_name = "HEX", value_parser = digits::<48>)]
    pcr1: Option<Pcr>,
    /// Expected PCR2, the application
    #[arg(long, value_name = "HEX", value_parser = digits::<48>)]
    pcr2: Option<Pcr>,
    /// Expected PCR3, the instance's IAM role
    #[arg(long, value_name = "HEX", value_parser = digits::<48>)]
    pcr3: Option<Pcr>,
    /// Expected PCR4, the instance id
    #[arg(long, value_name = "HEX", value_parser = digits::<48>)]
    pcr4: Option<Pcr>,
    /// Expected PCR8, the image's signing certificate
    #[arg(long, value_name = "HEX", value_parser = digits::<48>)]
    pcr8: Option<Pcr>,
    /// Any other expected register (repeatable)
    #[arg(long, value_name = "INDEX=HEX", value_parser = register)]
    pcr: Vec<(u8, Pcr)>,
    /// Expect that the pod set this variable, and no other than those so named: PCR16 (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pod_env: Vec<Variable>,
    /// Expect the measurements of this enclave image
    #[arg(long, value_name = "FILE")]
    eif: Option<PathBuf>,
    /// Expect what this policy file says (see `enclavectl policy`)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr8", "pcr", "eif", "pod_env"])]
    policy: Option<PathBuf>,
    /// Accept any application: this proves only that some enclave signed
    #[arg(long, conflicts_with_all = ["pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr8", "pcr", "eif", "pod_env", "policy"])]
    any_measurement: bool,
}

/// What the flags and the policy file together ask for.
pub(crate) struct Expected {
    pub(crate) policy: Policy,
    verifier: Verifier,
    file: Option<PolicyFile>,
    /// Whether some measurement is compared at all.
    pub(crate) measurements: bool,
    /// The pod's variables that PCR16 is compared with.
    pub(crate) pod_env: Vec<Variable>,
}

impl Expected {
    /// A verifier that asks for [`Self::policy`] as it is now.
    pub(crate) fn verifier(&self) -> Verifier {
        self.verifier.with_policy(self.policy.clone())
    }

    /// Whether the policy file does without a nonce.
    pub(crate) fn waives_nonce(&self) -> bool {
        self.file.as_ref().is_some_and(|file| !file.demands_nonce())
    }

    /// Name of a build in the policy file.
    pub(crate) fn build_name(&self, index: Option<usize>) -> Option<&str> {
        self.file.as_ref()?.build_name(index?)
    }
}

impl Expectations {
    /// Reads the files that the flags name.
    pub(crate) fn read(&self) -> Result<Expected, Failure> {
        let file = self.measurements.policy.as_deref().map(read_policy).transpose()?;
        let mut policy = match &file {
            Some(file) => file.policy(),
            None => self.measurements.policy()?,
        };
        if let Some(Bytes(user_data)) = &self.user_data {
            policy = policy.user_data(user_data.clone());
        }
        if let Some(Bytes(public_key)) = &self.public_key {
            policy = policy.public_key(public_key.clone());
        }
        if self.allow_debug {
            policy = policy.allow_debug_insecure();
        }
        if self.strict {
            policy = policy.refuse_unknown_fields();
        }
        if let Some(seconds) = self.max_age {
            policy = policy.max_age(Duration::from_secs(seconds));
        }
        let anchors = match (self.anchors()?, &file) {
            (Some(anchors), _) => anchors,
            (None, Some(file)) => file.anchors(),
            (None, None) => TrustAnchors::aws_g1(),
        };
        let mut verifier = Verifier::new(anchors, policy.clone());
        if let Some(lists) = self.revocation_lists()? {
            verifier = verifier.with_revocation_lists(lists);
        }
        let measurements = !self.measurements.any_measurement;
        Ok(Expected { policy, verifier, file, measurements, pod_env: self.measurements.pod_env.clone() })
    }

    fn revocation_lists(&self) -> Result<Option<RevocationLists>, Failure> {
        let mut text = Vec::new();
        for path in &self.crl {
            let cannot = || format!("cannot read {}", path.display());
            text.extend(std::fs::read(path).with_context(cannot).or_blame(Blame::NoInput)?);
            text.push(b'\n');
        }
        if self.crl.is_empty() {
            return Ok(None);
        }
        RevocationLists::from_pem(&text).map(Some).or_blame(Blame::Usage)
    }

    /// The roots that the flags name, if they name any.
    fn anchors(&self) -> Result<Option<TrustAnchors>, Failure> {
        let mut anchors = TrustAnchors::from_fingerprints(self.root_fingerprint.iter().copied()).ok();
        for path in &self.root_pem {
            let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
            let pem = pem.or_blame(Blame::NoInput)?;
            let roots = TrustAnchors::from_pem(&pem).with_context(|| path.display().to_string());
            let roots = roots.or_blame(Blame::Usage)?;
            anchors = Some(match anchors {
                Some(anchors) => anchors.and(roots),
                None => roots,
            });
        }
        Ok(anchors)
    }
}

impl MeasurementArgs {
    fn policy(&self) -> Result<Policy, Failure> {
        if self.any_measurement {
            return Ok(Policy::any_measurement_insecure());
        }
        let named =
            [(0, self.pcr0), (1, self.pcr1), (2, self.pcr2), (3, self.pcr3), (4, self.pcr4), (8, self.pcr8)];
        let named = named.into_iter().filter_map(|(index, pcr)| Some((index, pcr?)));
        let mut build: Vec<(u8, Pcr)> = named.chain(self.pcr.iter().copied()).collect();
        if let Some(path) = &self.eif {
            build.extend(input::measure(path)?);
        }
        if !self.pod_env.is_empty() {
            build.push(pod_register(&self.pod_env)?);
        }
        if build.is_empty() {
            let missing = "say what is expected: --policy, --eif, --pcr0 and so on, or --any-measurement";
            return Err(Failure::new(Blame::Usage, anyhow!(missing)));
        }
        Policy::pcrs(build).context("the expected measurements cannot be used").or_blame(Blame::Usage)
    }
}

/// Reads a policy file. What is wrong in it is like a wrong flag: usage.
pub(crate) fn read_policy(path: &Path) -> Result<PolicyFile, Failure> {
    let yaml = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let yaml = yaml.or_blame(Blame::NoInput)?;
    PolicyFile::parse(&yaml).with_context(|| path.display().to_string()).or_blame(Blame::Usage)
}

/// A variable of the pod, as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    name: String,
    value: String,
}

impl std::fmt::Display for Variable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}={}", self.name, self.value)
    }
}

pub(crate) fn variable(text: &str) -> Result<Variable, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok(Variable { name: name.to_owned(), value: value.to_owned() })
        }
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// The register of the pod's environment and its value.
pub(crate) fn pod_register(variables: &[Variable]) -> Result<(u8, Pcr), Failure> {
    let mut names: Vec<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Failure::new(Blame::Usage, anyhow!("--pod-env names {} twice", pair[0])));
    }
    let pairs = variables.iter().map(|Variable { name, value }| (name.as_str(), value.as_str()));
    Ok((environment::REGISTER, environment::pcr(pairs)))
}

/// Bytes given as hexadecimal digits.
#[derive(Debug, Clone)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

pub(crate) fn bytes(text: &str) -> anyhow::Result<Bytes> {
    Ok(Bytes(hex::decode(text)?))
}

pub(crate) fn digits<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| format!("expected {} hexadecimal digits", 2 * N))?;
    Ok(bytes)
}

pub(crate) fn register(text: &str) -> Result<(u8, Pcr), String> {
    let (index, value) = text.split_once('=').ok_or("expected INDEX=HEX")?;
    let index = index.parse().map_err(|_| "the index is not a number from 0 to 31".to_owned())?;
    Ok((index, digits(value)?))
}
