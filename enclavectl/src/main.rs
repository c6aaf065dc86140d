//! Builds, inspects and verifies enclave images and attestation documents.
#![forbid(unsafe_code)]

mod attest;
mod build;
mod daemon;
mod diff;
mod egress;
mod failure;
mod inspect;
#[cfg(feature = "kms")]
mod kms;
mod lint;
mod manifest;
mod output;
mod pcr;
mod pod_image;
mod policy;
mod progress;
mod provenance;
mod registry;
mod render;
mod report;
mod sbom;
mod sign;
mod signing;
mod source;
mod tls_tunnel;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use crate::failure::{Blame, OrBlame};

/// Builds, inspects and verifies enclave images and attestation documents.
#[derive(Parser)]
#[command(version, propagate_version = true)]
enum Command {
    Attest(Box<attest::Args>),
    Build(Box<build::Args>),
    Diff(diff::Args),
    Egress(egress::Args),
    Inspect(inspect::Args),
    Lint(lint::Args),
    Pcr(pcr::Args),
    Render(Box<render::Args>),
    Policy(policy::Args),
    Sign(sign::Args),
    TlsTunnel(Box<tls_tunnel::Args>),
    Verify(Box<verify::Args>),
}

fn main() -> ExitCode {
    let outcome = match Command::try_parse() {
        Ok(Command::Attest(args)) => attest::run(&args),
        Ok(Command::Build(args)) => build::run(&args),
        Ok(Command::Diff(args)) => diff::run(&args),
        Ok(Command::Egress(args)) => egress::run(&args),
        Ok(Command::Inspect(args)) => inspect::run(args),
        Ok(Command::Lint(args)) => lint::run(args),
        Ok(Command::Pcr(args)) => pcr::run(&args),
        Ok(Command::Render(args)) => render::run(*args),
        Ok(Command::Policy(args)) => policy::run(args),
        Ok(Command::Sign(args)) => sign::run(&args),
        Ok(Command::TlsTunnel(args)) => tls_tunnel::run(*args),
        Ok(Command::Verify(args)) => verify::run(*args).or_blame(Blame::Io),
        Err(error) => return usage(&error),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}

/// `--help` and `--version` come here as well, and are no errors.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when the terminal is gone.
    let _ = error.print();
    if error.use_stderr() { Blame::Usage.exit_code() } else { ExitCode::SUCCESS }
}
