//! `enclavectl attest`: asks an enclave for a document, or shakes hands with
//! it, and judges the answer.
//!
//! ```text
//! URL        fresh nonce ─▶ GET /v1/attestation ─▶ document ─▶ verdict ─▶ file
//! --connect  TLS 1.3 ─▶ certificate with a document ─▶ verdict
//! ```
//!
//! Exit codes are those of `enclavectl verify`; 74 when nobody answers. A
//! document is written only when it is good, or with `--no-verify`.

pub(crate) mod dial;
mod fetch;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use attestation::Clock;

use crate::failure::{Blame, Failure, OrBlame};
use crate::output::OutputFile;
use crate::verify::expect::{Bytes, Expectations};
use crate::verify::report::{Checked, Report};
use crate::verify::{judge, nonce};
use dial::{Dialler, Target};

/// Ask an enclave for an attestation document and verify it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the shim answers, such as http://pod:9000; the path is /v1/attestation unless given
    #[arg(value_name = "URL", required_unless_present = "connect", conflicts_with = "connect")]
    url: Option<hyper::Uri>,
    /// Shake hands with attested TLS instead
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["nonce", "no_verify"])]
    connect: Option<Target>,
    /// With --connect: have the document made for this very session
    #[arg(long, requires = "connect")]
    session: bool,

    #[command(flatten)]
    expectations: Expectations,
    /// Write the document without verifying it
    #[arg(long, requires = "output")]
    no_verify: bool,
    /// Send this nonce (hexadecimal) instead of 32 random bytes
    #[arg(long, value_name = "HEX", value_parser = nonce)]
    nonce: Option<Bytes>,
    /// Where to write the document
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    // One connection needs no threads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_blame(Blame::Io)?;
    match (&args.connect, &args.url) {
        (Some(target), _) => runtime.block_on(handshake(args, target)),
        (None, Some(url)) => runtime.block_on(request(args, url)),
        (None, None) => Err(Failure::new(Blame::Usage, anyhow!("give a URL or --connect"))),
    }
}

async fn request(args: &Args, url: &hyper::Uri) -> Result<ExitCode, Failure> {
    // Wrong flags are told before anyone is bothered.
    let expected = match args.no_verify {
        true => None,
        false => Some(args.expectations.read()?),
    };
    let nonce = match &args.nonce {
        Some(Bytes(nonce)) => nonce.clone(),
        None => fetch::fresh_nonce().or_blame(Blame::Io)?,
    };
    let document = fetch::document(url, &nonce).await?;
    if let Some(mut expected) = expected {
        expected.policy = expected.policy.nonce(nonce);
        let code = judge(&document, &expected, true, Clock::System, args.json).or_blame(Blame::Io)?;
        if code != 0 {
            return Ok(ExitCode::from(code));
        }
    }
    args.output.as_deref().map_or(Ok(()), |path| write(path, &document))?;
    Ok(ExitCode::SUCCESS)
}

async fn handshake(args: &Args, target: &Target) -> Result<ExitCode, Failure> {
    let expected = args.expectations.read()?;
    let dialler = Dialler::new(target.clone(), &expected, args.session)?;
    let connection = match dialler.dial().await {
        Ok(connection) => connection,
        Err(error) => return error.report(args.json),
    };
    let evidence = connection.evidence.as_slice();
    let verified = dialler.verify(evidence).or_blame(Blame::Data)?;
    let checked = Checked { measurements: expected.measurements, nonce: args.session, handshake: true };
    let report = Report::new(&verified, Clock::System, checked, &expected);
    report.print(args.json).or_blame(Blame::Io)?;
    let document = attestation::rustls::Wrapped::parse(evidence).or_blame(Blame::Data)?.document;
    args.output.as_deref().map_or(Ok(()), |path| write(path, document))?;
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, document: &[u8]) -> Result<(), Failure> {
    let cannot = || format!("cannot write {}", path.display());
    let output = OutputFile::create(path).with_context(cannot).or_blame(Blame::CannotCreate)?;
    let written = output.file().and_then(|mut file| file.write_all(document));
    written.and_then(|()| output.publish()).with_context(cannot).or_blame(Blame::Io)
}
