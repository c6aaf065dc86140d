//! Measurements as nitro-cli prints them, for scripts that read its output.

use std::io::{self, Write};

use anyhow::Context;
use eif::Measurements;
use serde::Serialize;

use crate::failure::{Blame, Failure, OrBlame};

/// `HashAlgorithm` and the registers, keys sorted.
#[derive(Serialize)]
pub(crate) struct MeasurementsReport {
    #[serde(rename = "HashAlgorithm")]
    hash_algorithm: &'static str,
    #[serde(flatten)]
    measurements: Measurements,
}

impl From<Measurements> for MeasurementsReport {
    fn from(measurements: Measurements) -> MeasurementsReport {
        MeasurementsReport { hash_algorithm: "Sha384 { ... }", measurements }
    }
}

/// What nitro-cli prints of an image that it built or signed.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct MeasuredReport {
    measurements: MeasurementsReport,
}

impl From<Measurements> for MeasuredReport {
    fn from(measurements: Measurements) -> MeasuredReport {
        MeasuredReport { measurements: measurements.into() }
    }
}

/// Prints `report` on stdout, indented as nitro-cli does.
pub(crate) fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report).or_blame(Blame::Io)?;
    print_text(&format!("{text}\n"))
}

/// Prints `text` on stdout. A reader that has gone away is an error: the
/// result has not arrived.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output").or_blame(Blame::Io)
}
