//! `enclavectl verify`: judges one attestation document.
//!
//! ```text
//! DOC ─▶ bytes (raw, base64, hex) ─┐
//! flags ─▶ roots, policy, clock ───┴─▶ Verifier ─▶ report ─▶ exit code
//! ```
//!
//! Exit codes: 0 verified, 2 malformed, 3 untrusted, 4 policy, 5 stale, and
//! those of [`Blame`] where no verdict was reached: 64 usage, 65 bad image,
//! 66 a file that cannot be read. Nothing of a document that failed is shown
//! as if it were true.

mod input;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use attestation::{Clock, Fingerprint, Pcr, Policy, TrustAnchors, Verifier};
use clap::ArgAction;

use crate::failure::{Blame, Failure, OrBlame};
use report::{Checked, Report};

/// Verify an attestation document
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The document: CBOR as the NSM made it, or that in base64 or hex; `-` reads standard input
    #[arg(value_name = "DOC")]
    document: PathBuf,

    #[command(flatten)]
    measurements: MeasurementArgs,
    #[command(flatten)]
    nonce: NonceArgs,

    /// Demand this user_data (hexadecimal)
    #[arg(long, value_name = "HEX", value_parser = bytes)]
    user_data: Option<Bytes>,
    /// Demand this public_key (hexadecimal)
    #[arg(long, value_name = "HEX", value_parser = bytes)]
    public_key: Option<Bytes>,
    /// Accept a document of up to this age, in seconds
    #[arg(long, value_name = "S", default_value_t = 300)]
    max_age: u64,
    /// Accept an enclave in debug mode, whose application is not measured
    #[arg(long)]
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

    /// For audits: judge as of this time instead of now
    #[arg(long, value_name = "RFC3339", value_parser = time, conflicts_with = "document_time")]
    at: Option<SystemTime>,
    /// For audits: judge as of the document's own time, so that it never expires
    #[arg(long)]
    document_time: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Which application may be behind the document.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
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
    /// Expect the measurements of this enclave image
    #[arg(long, value_name = "FILE")]
    eif: Option<PathBuf>,
    /// Accept any application: this proves only that some enclave signed
    #[arg(long, conflicts_with_all = ["pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr8", "pcr", "eif"])]
    any_measurement: bool,
}

/// How the document proves to be fresh.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct NonceArgs {
    /// The nonce that was sent (hexadecimal)
    #[arg(long, value_name = "HEX", value_parser = nonce)]
    nonce: Option<Bytes>,
    /// Do without a nonce: the document may be a replay
    #[arg(long, action = ArgAction::SetTrue)]
    no_nonce: bool,
}

/// Verifies the document and prints the verdict. The exit code is the verdict:
/// see the module's header.
///
/// # Errors
/// Only when the verdict cannot be printed.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (document, verifier) = match prepare(&args) {
        Ok(prepared) => prepared,
        Err(failure) => return Ok(failure.report()),
    };
    let clock = args.clock();
    match verifier.verify(&document, clock) {
        Ok(verified) => {
            Report::new(&verified, clock, args.checked()).print(args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(refusal) => {
            report::print_refusal(&refusal, args.json)?;
            Ok(ExitCode::from(refusal.class().exit_code()))
        }
    }
}

fn prepare(args: &Args) -> Result<(Vec<u8>, Verifier), Failure> {
    let verifier = Verifier::new(args.anchors()?, args.policy()?);
    Ok((input::read(&args.document).or_blame(Blame::NoInput)?, verifier))
}

impl Args {
    fn checked(&self) -> Checked {
        Checked { measurements: !self.measurements.any_measurement, nonce: self.nonce.nonce.is_some() }
    }

    fn clock(&self) -> Clock {
        match self.at {
            Some(time) => Clock::At(time),
            None if self.document_time => Clock::DocumentTime,
            None => Clock::System,
        }
    }

    fn anchors(&self) -> Result<TrustAnchors, Failure> {
        if self.root_fingerprint.is_empty() && self.root_pem.is_empty() {
            return Ok(TrustAnchors::aws_g1());
        }
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
        anchors.context("no root certificate was given").or_blame(Blame::Usage)
    }

    fn policy(&self) -> Result<Policy, Failure> {
        let mut policy = self.measurements.policy()?;
        policy = match &self.nonce.nonce {
            Some(Bytes(nonce)) => policy.nonce(nonce.clone()),
            None => policy.without_nonce_insecure(),
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
        Ok(policy.max_age(Duration::from_secs(self.max_age)))
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
        Policy::pcrs(build).context("the expected measurements cannot be used").or_blame(Blame::Usage)
    }
}

/// Bytes given as hexadecimal digits.
#[derive(Debug, Clone)]
struct Bytes(Vec<u8>);

fn bytes(text: &str) -> anyhow::Result<Bytes> {
    Ok(Bytes(hex::decode(text)?))
}

fn nonce(text: &str) -> anyhow::Result<Bytes> {
    let nonce = bytes(text)?;
    ensure!(!nonce.0.is_empty(), "an empty nonce proves nothing");
    Ok(nonce)
}

fn digits<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| format!("expected {} hexadecimal digits", 2 * N))?;
    Ok(bytes)
}

fn register(text: &str) -> Result<(u8, Pcr), String> {
    let (index, value) = text.split_once('=').ok_or("expected INDEX=HEX")?;
    let index = index.parse().map_err(|_| "the index is not a number from 0 to 31".to_owned())?;
    Ok((index, digits(value)?))
}

fn time(text: &str) -> Result<SystemTime, String> {
    let timestamp: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    SystemTime::try_from(timestamp).map_err(|error| error.to_string())
}
