//! `enclavectl pcr`: what a register becomes when one thing is measured into it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use eif::{Pcr, signature::SigningCertificate};

use crate::{
    failure::{Blame, Failure, OrBlame},
    report::print_json,
};

/// Measures a file, or a signing certificate as PCR8 has it.
///
/// Prints the value as `nitro-cli pcr` does: for a policy that is written
/// before there is an image, or a check of one that is.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Args {
    /// File to measure as it is
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Certificate in PEM; the first in the file is measured
    #[arg(long, value_name = "FILE")]
    signing_certificate: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut registers = BTreeMap::new();
    if let Some(path) = &args.input {
        let describe = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(describe).or_blame(Blame::NoInput)?;
        registers.insert("PCR", Pcr::of_reader(file).with_context(describe).or_blame(Blame::Io)?);
    }
    if let Some(path) = &args.signing_certificate {
        let pem = fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let certificate = SigningCertificate::from_pem(pem.or_blame(Blame::NoInput)?)
            .with_context(|| format!("cannot use {}", path.display()))
            .or_blame(Blame::Data)?;
        registers.insert("PCR8", certificate.pcr8());
    }
    print_json(&registers)?;
    Ok(ExitCode::SUCCESS)
}
