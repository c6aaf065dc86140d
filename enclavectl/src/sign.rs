//! `enclavectl sign`: signs an image that is there.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, anyhow};
use eif::{Image, write_signed};

use crate::{
    failure::{Blame, Failure, OrBlame},
    output::OutputFile,
    report::{MeasuredReport, print_json},
    signing::SigningArgs,
};

/// Signs an image, in place of a signature that it may have.
///
/// What the image measures to stays, but for PCR8, which is the signer's. The
/// signed image takes the place of the old one whole or not at all.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image to sign
    file: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
    /// Image to write [default: the image itself]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Some(signing) = args.signing.open()? else {
        let missing = anyhow!("who signs? give --signing-certificate and --private-key");
        return Err(Failure::new(Blame::Usage, missing));
    };
    let image = Image::open(&args.file)?;
    let path = args.output.as_ref().unwrap_or(&args.file);
    let describe = || format!("cannot create {}", path.display());
    let output = OutputFile::create(path).with_context(describe).or_blame(Blame::CannotCreate)?;
    let file = output.file().with_context(describe).or_blame(Blame::Io)?;
    let measurements = write_signed(&image, file, &signing.signer())?;
    output.publish().with_context(describe).or_blame(Blame::CannotCreate)?;
    print_json(&MeasuredReport::from(measurements))?;
    Ok(ExitCode::SUCCESS)
}
