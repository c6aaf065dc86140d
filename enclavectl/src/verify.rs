//! `enclavectl verify`: judges one attestation document.
//!
//! ```text
//! DOC ─▶ bytes (raw, base64, hex) ─────────────────┐
//! flags, policy file ─▶ roots, policy, nonce, clock ┴─▶ Verifier ─▶ report ─▶ exit code
//! ```
//!
//! Exit codes: 0 verified, 2 malformed, 3 untrusted, 4 policy, 5 stale, and
//! those of [`Blame`] where no verdict was reached: 64 usage, 65 bad image,
//! 66 a file that cannot be read. Nothing of a document that failed is shown
//! as if it were true.

pub(crate) mod expect;
pub(crate) mod input;
pub(crate) mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{anyhow, ensure};
use attestation::{Clock, Policy};
use clap::ArgAction;

use crate::failure::{Blame, Failure, OrBlame};
use expect::{Bytes, Expectations, Expected, bytes};
use report::{Checked, Report};

/// Verify an attestation document
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The document: CBOR as the NSM made it, or that in base64 or hex; `-` reads standard input
    #[arg(value_name = "DOC")]
    document: PathBuf,

    #[command(flatten)]
    expectations: Expectations,
    #[command(flatten)]
    nonce: NonceArgs,

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

/// How the document proves to be fresh. One of them is needed, unless a
/// policy file waives the nonce.
#[derive(Debug, clap::Args)]
#[group(required = false, multiple = false)]
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
    let (document, expected) = match prepare(&args) {
        Ok(prepared) => prepared,
        Err(failure) => return Ok(failure.report()),
    };
    judge(&document, &expected, args.nonce.nonce.is_some(), args.clock(), args.json).map(ExitCode::from)
}

/// Verifies `document` and prints the verdict, which is also the exit code returned.
///
/// # Errors
/// Only when the verdict cannot be printed.
pub(crate) fn judge(
    document: &[u8],
    expected: &Expected,
    nonce: bool,
    clock: Clock,
    json: bool,
) -> anyhow::Result<u8> {
    match expected.verifier().verify(document, clock) {
        Ok(verified) => {
            let checked = Checked { measurements: expected.measurements, nonce, handshake: false };
            Report::new(&verified, clock, checked, expected).print(json)?;
            Ok(0)
        }
        Err(refusal) => {
            report::print_refusal(refusal.code(), refusal.class(), &refusal, json)?;
            Ok(refusal.class().exit_code())
        }
    }
}

fn prepare(args: &Args) -> Result<(Vec<u8>, Expected), Failure> {
    let mut expected = args.expectations.read()?;
    expected.policy = args.nonce.decide(expected.policy.clone(), expected.waives_nonce())?;
    Ok((input::read(&args.document).or_blame(Blame::NoInput)?, expected))
}

impl Args {
    fn clock(&self) -> Clock {
        match self.at {
            Some(time) => Clock::At(time),
            None if self.document_time => Clock::DocumentTime,
            None => Clock::System,
        }
    }
}

impl NonceArgs {
    fn decide(&self, policy: Policy, waived: bool) -> Result<Policy, Failure> {
        match &self.nonce {
            Some(Bytes(nonce)) => Ok(policy.nonce(nonce.clone())),
            None if self.no_nonce || waived => Ok(policy.without_nonce_insecure()),
            None => Err(Failure::new(
                Blame::Usage,
                anyhow!("give the nonce that was sent with --nonce, or do without by --no-nonce"),
            )),
        }
    }
}

pub(crate) fn nonce(text: &str) -> anyhow::Result<Bytes> {
    let nonce = bytes(text)?;
    ensure!(!nonce.0.is_empty(), "an empty nonce proves nothing");
    Ok(nonce)
}

fn time(text: &str) -> Result<SystemTime, String> {
    let timestamp: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    SystemTime::try_from(timestamp).map_err(|error| error.to_string())
}
